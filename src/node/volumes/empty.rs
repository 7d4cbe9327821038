//! emptyDir volumes: a folder of the pod, on disk or in memory.

use std::{os::unix::fs::PermissionsExt, path::Path};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, PodSpec};
use nix::mount::MsFlags;

use super::{at, is_mount_point};
use crate::kinds::quantity::Quantity;

/// Makes the folder; `memory_bytes` limits one in memory.
///
/// # Errors
/// The message of a `FailedMount` event.
pub fn make(path: &Path, source: &EmptyDirVolumeSource, memory_bytes: u64) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(at(path))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).map_err(at(path)),
        "Memory" if is_mount_point(path) => Ok(()),
        "Memory" => {
            let options = match memory_bytes {
                0 => "mode=777".to_owned(),
                bytes => format!("mode=777,size={bytes}"),
            };
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(|e| format!("mount tmpfs at {}: {e}", path.display()))
        }
        other => Err(format!("emptyDir medium {other:?} is not supported by Sampan")),
    }
}

/// Bytes that a volume in memory may hold: the least of its own limit, the pod's memory limit and
/// what the node has (upstream's `calculateEmptyDirMemorySize`).
pub fn memory_bytes(source: &EmptyDirVolumeSource, spec: &PodSpec, node_bytes: u64) -> u64 {
    let bytes = |text: &str| {
        let quantity: Option<Quantity> = text.parse().ok();
        quantity.and_then(|q| u64::try_from(q.value()).ok()).filter(|bytes| *bytes > 0)
    };
    let own = source.size_limit.as_ref().and_then(|q| bytes(&q.0));
    [own, pod_memory(spec, bytes)].into_iter().flatten().fold(node_bytes, u64::min)
}

/// The pod's memory limit; `None` when a container has none.
fn pod_memory(spec: &PodSpec, bytes: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let limit = |resources: &Option<k8s_openapi::api::core::v1::ResourceRequirements>| {
        bytes(&resources.as_ref()?.limits.as_ref()?.get("memory")?.0)
    };
    if let Some(pod) = limit(&spec.resources) {
        return Some(pod);
    }
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars).map(|c| limit(&c.resources)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_least_of_all_limits() {
        let source = |limit: &str| -> EmptyDirVolumeSource {
            serde_json::from_str(&format!(r#"{{"medium":"Memory"{limit}}}"#)).unwrap()
        };
        let spec = |text: &str| -> PodSpec { serde_json::from_str(text).unwrap() };
        let limited = spec(
            r#"{"containers":[{"name":"a","resources":{"limits":{"memory":"64Mi"}}},{"name":"b","resources":{"limits":{"memory":"32Mi"}}}]}"#,
        );
        let open =
            spec(r#"{"containers":[{"name":"a","resources":{"limits":{"memory":"64Mi"}}},{"name":"b"}]}"#);
        const MI: u64 = 1 << 20;
        for (limit, spec, want) in [
            ("", &open, 1000 * MI),
            ("", &limited, 96 * MI),
            (r#","sizeLimit":"10Mi""#, &limited, 10 * MI),
            (r#","sizeLimit":"100Mi""#, &limited, 96 * MI),
            (r#","sizeLimit":"100Mi""#, &open, 100 * MI),
            (r#","sizeLimit":"0""#, &open, 1000 * MI),
        ] {
            assert_eq!(memory_bytes(&source(limit), spec, 1000 * MI), want, "{limit}");
        }
    }
}
