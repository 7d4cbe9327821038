//! emptyDir volumes: a folder of the pod, on disk, in memory or in huge pages.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, path::Path};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, PodSpec};
use nix::mount::MsFlags;

use super::{super::memory, at, is_mount_point};
use crate::kinds::{quantity::Quantity, resources};

const HUGE_PAGES: &str = "HugePages";
const HUGE_PAGES_OF: &str = "HugePages-";

/// Makes the folder; `memory_bytes` limits one in memory, `spec` says what huge pages the pod asks for.
///
/// # Errors
/// The message of a `FailedMount` event.
pub fn make(
    path: &Path,
    source: &EmptyDirVolumeSource,
    memory_bytes: u64,
    spec: &PodSpec,
) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(at("mkdir", path))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).map_err(at("chmod", path)),
        "Memory" => {
            let options = match memory_bytes {
                0 => "size=50%".to_owned(),
                bytes => format!("size={bytes}"),
            };
            once("tmpfs", path, |kind| memory::unswapped(&options, |options| mount(kind, path, options)))
        }
        medium if medium == HUGE_PAGES || medium.starts_with(HUGE_PAGES_OF) => {
            let bytes = page_bytes(medium, spec)?;
            once("hugetlbfs", path, |kind| mount(kind, path, &format!("mode=777,pagesize={bytes}")))
        }
        other => Err(format!("unknown storage medium {other:?}")),
    }
}

/// Mounts a file system on the folder, unless there is one.
fn once(kind: &str, path: &Path, mount: impl FnOnce(&str) -> nix::Result<()>) -> Result<(), String> {
    if is_mount_point(path) {
        return Ok(());
    }
    mount(kind).map_err(|e| format!("mount {kind} at {}: {e}", path.display()))
}

fn mount(kind: &str, path: &Path, options: &str) -> nix::Result<()> {
    nix::mount::mount(Some(kind), path, Some(kind), MsFlags::empty(), Some(options))
}

/// The size of the pages of a medium of huge pages: the one it names, or the only one that containers of
/// the pod ask for (`getPageSizeMountOption`).
fn page_bytes(medium: &str, spec: &PodSpec) -> Result<i64, String> {
    let size = |name: &str| name.parse::<Quantity>().ok().map(Quantity::value).filter(|bytes| *bytes > 0);
    let asked: BTreeSet<i64> = resources::pod_requests(spec)
        .iter()
        .filter(|(_, amount)| !amount.is_zero())
        .filter_map(|(name, _)| size(name.strip_prefix("hugepages-")?))
        .collect();
    let none = || {
        Err(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        ))
    };
    if let Some(named) = medium.strip_prefix(HUGE_PAGES_OF) {
        return size(named).filter(|bytes| asked.contains(bytes)).map_or_else(none, Ok);
    }
    match asked.first() {
        Some(bytes) if asked.len() == 1 => Ok(*bytes),
        Some(_) => {
            Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes"))
        }
        None => none(),
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
    fn huge_pages_have_the_size_that_is_named_or_asked_for() {
        let pod = |limits: &str| -> PodSpec {
            serde_json::from_str(&format!(
                r#"{{"containers":[{{"name":"a","resources":{{"requests":{{{limits}}}}}}}]}}"#
            ))
            .unwrap()
        };
        let both = r#""hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi""#;
        for (medium, requests, want) in [
            ("HugePages", r#""hugepages-2Mi": "4Mi""#, Ok(2 << 20)),
            ("HugePages-1Gi", both, Ok(1 << 30)),
            (
                "HugePages",
                both,
                Err("medium: HugePages can't be used if container requests multiple huge page sizes"),
            ),
            ("HugePages", r#""memory": "4Mi""#, Err("medium HugePages: hugePages storage requested")),
            ("HugePages-2Mi", r#""memory": "4Mi""#, Err("there is no resource request for huge pages")),
            ("HugePages-x", both, Err("medium HugePages-x: hugePages storage requested")),
        ] {
            match (page_bytes(medium, &pod(requests)), want) {
                (Ok(bytes), Ok(want)) => assert_eq!(bytes, want, "{medium}"),
                (Err(text), Err(want)) => assert!(text.contains(want), "{text}"),
                (found, want) => panic!("{medium} {requests}: {found:?} instead of {want:?}"),
            }
        }
    }

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
