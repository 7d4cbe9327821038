//! What a request needs to be allowed, and how a refusal reads. Who may is `objects::rbac`'s.

use super::{
    request::{RequestInfo, ResourcePath},
    status::Refusal,
};
pub use crate::objects::rbac::{Attributes, MASTERS, allowed, decide, role_rules, rules, shown, uncovered};
use crate::objects::{Objects, User};

/// What takes the right to create, whatever the method.
const CONNECTIONS: [&str; 3] = ["pods/attach", "pods/exec", "pods/portforward"];

/// What a request asks for.
fn attributes(info: &RequestInfo) -> Attributes<'_> {
    match &info.resource {
        None => Attributes { verb: info.verb, path: &info.path, ..Attributes::default() },
        Some(path) => Attributes {
            verb: info.verb,
            group: &path.group,
            resource: with_subresource(path),
            name: &path.name,
            namespace: &path.namespace,
            path: "",
            of_node: &info.of_node,
        },
    }
}

fn with_subresource(path: &ResourcePath) -> String {
    if path.subresource.is_empty() {
        path.plural.clone()
    } else {
        format!("{}/{}", path.plural, path.subresource)
    }
}

/// Refuses what `user` may not do, in upstream's words.
pub fn authorize(objects: &Objects, user: &User, info: &RequestInfo) -> Result<(), Refusal> {
    let what = attributes(info);
    decide(objects, user, &what).map_err(|why| forbidden(user, info, &why))?;
    // A WebSocket begins with GET, but who may only read is given no terminal.
    if CONNECTIONS.contains(&&*what.resource) && what.group.is_empty() && what.verb != "create" {
        decide(objects, user, &Attributes { verb: "create", ..what.clone() }).map_err(|why| {
            let message = format!("pods {:?} is forbidden: {why}", what.name);
            Refusal::Forbidden { resource: "pods".to_owned(), name: what.name.to_owned(), message }
        })?;
    }
    Ok(())
}

/// Refuses to create on another verb's way what `user` may not create.
pub fn authorize_creation(objects: &Objects, user: &User, info: &RequestInfo) -> Result<(), Refusal> {
    let what = Attributes { verb: "create", ..attributes(info) };
    decide(objects, user, &what).map(drop).map_err(|why| {
        let resource = info.resource.as_ref().map(ResourcePath::resource).unwrap_or_default();
        let message = format!("{resource} {:?} is forbidden: {why}", what.name);
        Refusal::Forbidden { resource, name: what.name.to_owned(), message }
    })
}

/// `pods "x" is forbidden: User "jane" cannot get resource "pods" in API group "" in the namespace "a"`.
pub fn forbidden(user: &User, info: &RequestInfo, reason: &str) -> Refusal {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let Some(path) = &info.resource else {
        let message =
            format!("forbidden: User {:?} cannot {} path {:?}{reason}", user.name, info.verb, info.path);
        return Refusal::Forbidden { resource: String::new(), name: String::new(), message };
    };
    let resource = with_subresource(path);
    let scope = if path.namespace.is_empty() {
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
