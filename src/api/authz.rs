//! Who may do what.

use super::{request::RequestInfo, status::Refusal};
use crate::objects::User;

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";
/// Paths that anybody may read (upstream's `system:public-info-viewer`).
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// Refuses what `user` may not do, in upstream's words.
pub fn authorize(user: &User, info: &RequestInfo) -> Result<(), Refusal> {
    if user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    if info.resource.is_none() && info.verb == "get" && PUBLIC_PATHS.contains(&info.path.as_str()) {
        return Ok(());
    }
    Err(forbidden(user, info, ""))
}

/// `pods "x" is forbidden: User "jane" cannot get resource "pods" in API group "" in the namespace "a"`.
pub fn forbidden(user: &User, info: &RequestInfo, reason: &str) -> Refusal {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let Some(path) = &info.resource else {
        let message =
            format!("forbidden: User {:?} cannot {} path {:?}{reason}", user.name, info.verb, info.path);
        return Refusal::Forbidden { resource: String::new(), name: String::new(), message };
    };
    let mut resource = path.plural.clone();
    if !path.subresource.is_empty() {
        resource = format!("{resource}/{}", path.subresource);
    }
    let scope = if path.namespace.is_empty() || path.plural == "namespaces" && path.name.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", path.namespace)
    };
    let what =
        if path.name.is_empty() { path.resource() } else { format!("{} {:?}", path.resource(), path.name) };
    let message = format!(
        "{what} is forbidden: User {:?} cannot {} resource {resource:?} in API group {:?} {scope}{reason}",
        user.name, info.verb, path.group
    );
    Refusal::Forbidden { resource: path.resource(), name: path.name.clone(), message }
}
