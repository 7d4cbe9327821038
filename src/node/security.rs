//! Users, groups, capabilities and profiles of a container, from its security context and image.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, SeccompProfile};

use super::record::Wanted;
use crate::runtime::{CAPABILITIES, Seccomp};

/// What a container may do unless told otherwise (containerd's default set).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// A passwd or group file larger than this is not an image's (bytes).
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;

/// As whom a container runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// The image's `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

impl Accounts {
    /// Reads them from the topmost layers that have them.
    pub fn of_layers(layers: &[PathBuf]) -> Self {
        Self { passwd: topmost(layers, "etc/passwd"), group: topmost(layers, "etc/group") }
    }
}

fn topmost(layers: &[PathBuf], file: &str) -> String {
    let read = |path: &Path| -> Option<String> {
        let meta = std::fs::symlink_metadata(path).ok()?;
        (meta.is_file() && meta.len() <= ACCOUNTS_BYTES_MAX)
            .then(|| std::fs::read_to_string(path).ok())
            .flatten()
    };
    layers.iter().rev().find_map(|layer| read(&layer.join(file))).unwrap_or_default()
}

/// The user and the group that are asked for: the container's, else the pod's.
fn asked(wanted: &Wanted, container: &Container) -> (Option<i64>, Option<i64>) {
    let own = container.security_context.as_ref();
    let pod = wanted.spec.security_context.as_ref();
    (
        own.and_then(|s| s.run_as_user).or_else(|| pod.and_then(|s| s.run_as_user)),
        own.and_then(|s| s.run_as_group).or_else(|| pod.and_then(|s| s.run_as_group)),
    )
}

fn user_and_group(image_user: &str) -> (&str, Option<&str>) {
    image_user.split_once(':').map_or((image_user, None), |(user, group)| (user, Some(group)))
}

/// Refuses root to a container that must not have it (`pkg/kubelet/kuberuntime/security_context_others.go`).
///
/// # Errors
/// The text of a `CreateContainerConfigError`.
pub fn check_root(wanted: &Wanted, container: &Container, image_user: &str) -> Result<(), String> {
    let own = container.security_context.as_ref().and_then(|s| s.run_as_non_root);
    let pod = wanted.spec.security_context.as_ref().and_then(|s| s.run_as_non_root);
    if own.or(pod) != Some(true) {
        return Ok(());
    }
    let place = || format!("(pod: \"{}\", container: {})", wanted.full_name(), container.name);
    match (asked(wanted, container).0, user_and_group(image_user).0) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {}", place())),
        (None, "" | "0") => Err(format!("container has runAsNonRoot and image will run as root {}", place())),
        (None, name) if name.parse::<u32>().is_err() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {}",
            place()
        )),
        _ => Ok(()),
    }
}

/// Resolves the user of a container.
///
/// # Errors
/// The text of a `CreateContainerError`.
pub fn user(
    wanted: &Wanted,
    container: &Container,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User, String> {
    let pod = wanted.spec.security_context.as_ref();
    let (asked_uid, asked_gid) = asked(wanted, container);
    let (image_name, image_group) = user_and_group(image_user);
    let asked = asked_uid.map(|uid| uid.to_string());
    let name = asked.as_deref().unwrap_or(image_name);
    let line = accounts
        .passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 4 && (f[0] == name || f[2] == name) && !name.is_empty());
    let uid = match (name.parse::<u32>(), &line) {
        (_, _) if name.is_empty() => 0,
        (Ok(uid), _) => uid,
        (Err(_), Some(fields)) => fields[2].parse().unwrap_or(0),
        (Err(_), None) => {
            return Err(format!("unable to find user {name}: no matching entries in passwd file"));
        }
    };
    let group = |name: &str| -> Option<u32> {
        name.parse().ok().or_else(|| {
            let mut lines = accounts.group.lines().map(|l| l.split(':').collect::<Vec<_>>());
            lines.find(|f| f.len() >= 3 && f[0] == name)?[2].parse().ok()
        })
    };
    let gid = match (asked_gid, image_group) {
        (Some(gid), _) => gid as u32,
        (None, Some(name)) if asked_uid.is_none() => group(name)
            .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?,
        _ => line.as_ref().and_then(|f| f[3].parse().ok()).unwrap_or(0),
    };
    let mut more: Vec<u32> = Vec::new();
    let strict = pod.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    if let Some(fields) = line.as_ref().filter(|_| !strict) {
        more.extend(accounts.group.lines().filter_map(|l| {
            let f: Vec<_> = l.split(':').collect();
            let member = f.get(3).is_some_and(|m| m.split(',').any(|m| m == fields[0]));
            member.then(|| f[2].parse::<u32>().ok()).flatten()
        }));
    }
    more.extend(pod.and_then(|s| s.fs_group).map(|g| g as u32));
    more.extend(pod.into_iter().flat_map(|s| s.supplemental_groups.iter().flatten()).map(|g| *g as u32));
    more.sort_unstable();
    more.dedup();
    Ok(User { uid, gid, additional_gids: more })
}

/// The capabilities of a container: the default set, less what is dropped, plus what is added.
pub fn capabilities(container: &Container) -> Vec<String> {
    let context = container.security_context.as_ref();
    if context.and_then(|s| s.privileged) == Some(true) {
        return CAPABILITIES.map(str::to_owned).to_vec();
    }
    let change = context.and_then(|s| s.capabilities.clone()).unwrap_or_default();
    let full = |name: &String| {
        let name = name.to_ascii_uppercase();
        if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let add: Vec<_> = change.add.iter().flatten().map(full).collect();
    let drop: Vec<_> = change.drop.iter().flatten().map(full).collect();
    let base: &[&str] = if add.iter().any(|c| c == "ALL") {
        &CAPABILITIES
    } else if drop.iter().any(|c| c == "ALL") {
        &[]
    } else {
        &DEFAULT_CAPABILITIES
    };
    let mut set: Vec<String> = base.iter().map(|c| (*c).to_owned()).filter(|c| !drop.contains(c)).collect();
    for name in add {
        if name != "ALL" && !set.contains(&name) {
            set.push(name);
        }
    }
    set
}

/// The seccomp filter: the container's profile, else the pod's, else none.
pub fn seccomp(wanted: &Wanted, container: &Container, profiles: &Path) -> Seccomp {
    let own = container.security_context.as_ref();
    if own.and_then(|s| s.privileged) == Some(true) {
        return Seccomp::Unconfined;
    }
    let profile: Option<&SeccompProfile> = own
        .and_then(|s| s.seccomp_profile.as_ref())
        .or_else(|| wanted.spec.security_context.as_ref()?.seccomp_profile.as_ref());
    match profile {
        Some(p) if p.type_ == "RuntimeDefault" => Seccomp::RuntimeDefault,
        Some(p) if p.type_ == "Localhost" => {
            Seccomp::Localhost(profiles.join(p.localhost_profile.as_deref().unwrap_or_default()))
        }
        _ => Seccomp::Unconfined,
    }
}

/// What of a pod this node cannot give; `None` when it can give all.
pub fn unsupported(wanted: &Wanted) -> Option<String> {
    let spec = &wanted.spec;
    if spec.host_users == Some(false) {
        return Some("hostUsers: false (user namespaces) is not supported by Sampan".to_owned());
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("resourceClaims (dynamic resource allocation) are not supported by Sampan".to_owned());
    }
    let contexts = wanted.containers().filter_map(|(_, c)| c.security_context.as_ref());
    for context in contexts {
        if context.windows_options.is_some() {
            return Some("windowsOptions are not supported on Linux".to_owned());
        }
    }
    for (_, container) in wanted.containers() {
        if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
            return Some("volumeDevices (raw block volumes) are not supported by Sampan".to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pod: &str, container: &str) -> Wanted {
        let parse = |t: &str| serde_json::from_str::<serde_json::Value>(t).unwrap();
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"securityContext": parse(pod), "containers": [{"name": "c", "securityContext": parse(container)}]},
        });
        Wanted::new(serde_json::from_value(pod).unwrap())
    }

    fn resolve(pod: &str, container: &str, image: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let wanted = wanted(pod, container);
        let accounts = Accounts {
            passwd: "root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n".into(),
            group: "root:x:0:\nweb:x:102:\nlog:x:7:web,x\n".into(),
        };
        let container = &wanted.spec.containers[0];
        check_root(&wanted, container, image)?;
        user(&wanted, container, image, &accounts).map(|u| (u.uid, u.gid, u.additional_gids))
    }

    #[test]
    fn users_are_resolved_in_the_image() {
        assert_eq!(resolve("{}", "{}", ""), Ok((0, 0, vec![])));
        assert_eq!(resolve("{}", "{}", "web"), Ok((101, 102, vec![7])));
        assert_eq!(resolve("{}", "{}", "101:7"), Ok((101, 7, vec![7])));
        assert_eq!(resolve("{}", "{}", "5000"), Ok((5000, 0, vec![])));
        assert_eq!(resolve(r#"{"runAsUser": 101, "fsGroup": 9}"#, "{}", "root"), Ok((101, 102, vec![7, 9])));
        assert_eq!(
            resolve(r#"{"runAsUser": 1, "runAsGroup": 2}"#, r#"{"runAsUser": 3}"#, ""),
            Ok((3, 2, vec![]))
        );
        assert!(resolve("{}", "{}", "nobody").unwrap_err().contains("unable to find user nobody"));
        for (image, text) in [("", "image will run as root"), ("web", "non-numeric user (web)")] {
            assert!(resolve(r#"{"runAsNonRoot": true}"#, "{}", image).unwrap_err().contains(text));
        }
        assert!(resolve(r#"{"runAsNonRoot": true}"#, "{}", "101").is_ok());
    }

    #[test]
    fn capabilities_are_dropped_and_added() {
        let set = |text: &str| capabilities(&wanted("{}", text).spec.containers[0]);
        assert_eq!(set("{}").len(), 14);
        assert_eq!(
            set(r#"{"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}"#),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert_eq!(set(r#"{"capabilities": {"add": ["ALL"], "drop": ["SYS_ADMIN"]}}"#).len(), 40);
        assert_eq!(set(r#"{"privileged": true}"#).len(), 41);
    }
}
