//! Requests and limits as cgroup values: QoS classes, shares, quotas, out-of-memory scores.
//!
//! Sources: `pkg/apis/core/v1/helper/qos`, `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::record::Wanted;
use crate::{
    kinds::{quantity::Quantity, resources},
    runtime::Resources,
};

/// Shares of a whole processor, and the bounds of the kernel.
const SHARES_PER_CPU: i64 = 1024;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
/// Microseconds of the scheduler's period, and the least quota the kernel takes.
const PERIOD_US: i64 = 100_000;
const QUOTA_US_MIN: i64 = 1000;

/// The score of what is killed last.
const SCORE_GUARANTEED: i32 = -997;
/// The priority class of pods that a node cannot do without.
const NODE_CRITICAL: &str = "system-node-critical";

/// A pod's quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The pod's cgroup below the root.
    pub fn cgroup(self, uid: &str) -> String {
        match self {
            Self::Guaranteed => format!("pod{uid}"),
            Self::Burstable => format!("burstable/pod{uid}"),
            Self::BestEffort => format!("besteffort/pod{uid}"),
        }
    }
}

type List = Option<BTreeMap<String, ApiQuantity>>;

fn amount(list: Option<&BTreeMap<String, ApiQuantity>>, name: &str) -> Option<Quantity> {
    list?.get(name)?.0.parse().ok()
}

fn milli(resources: Option<&ResourceRequirements>, limits: bool) -> Option<i64> {
    amount(pick(resources, limits).as_ref(), "cpu").map(Quantity::milli_value)
}

fn memory(resources: Option<&ResourceRequirements>, limits: bool) -> Option<i64> {
    amount(pick(resources, limits).as_ref(), "memory").map(Quantity::value)
}

fn pick(resources: Option<&ResourceRequirements>, limits: bool) -> List {
    let resources = resources?;
    if limits { resources.limits.clone() } else { resources.requests.clone() }
}

/// The class: only cpu and memory count; amounts of zero do not.
pub fn class(spec: &PodSpec) -> Class {
    let pod_level = spec.resources.as_ref().filter(|own| {
        [&own.requests, &own.limits].iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
    });
    let own: Vec<_> = match pod_level {
        Some(pod) => vec![Some(pod)],
        None => spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .map(|c| c.resources.as_ref())
            .collect(),
    };
    let mut guaranteed = true;
    let mut any = false;
    for resources in own {
        for name in ["cpu", "memory"] {
            let [request, limit] = [false, true]
                .map(|limits| amount(pick(resources, limits).as_ref(), name).filter(|q| !q.is_zero()));
            any |= request.is_some() || limit.is_some();
            guaranteed &= match (request, limit) {
                (Some(request), Some(limit)) => request == limit,
                (None, limit) => limit.is_some(),
                (Some(_), None) => false,
            };
        }
    }
    match (any, guaranteed) {
        (false, _) => Class::BestEffort,
        (true, true) => Class::Guaranteed,
        (true, false) => Class::Burstable,
    }
}

fn shares(milli: i64) -> u64 {
    (milli * SHARES_PER_CPU / 1000).clamp(SHARES_MIN, SHARES_MAX) as u64
}

fn quota(milli: i64) -> i64 {
    (milli * PERIOD_US / 1000).max(QUOTA_US_MIN)
}

/// The cgroup of a container. A limit that only the pod has is each container's as well. `pids` is the
/// node's limit for a pod's processes.
pub fn container(spec: &PodSpec, container: &Container, pids: Option<i64>) -> Resources {
    let (resources, pod) = (container.resources.as_ref(), spec.resources.as_ref());
    let own = milli(resources, true).filter(|m| *m > 0);
    let limit = own.or_else(|| milli(pod, true).filter(|m| *m > 0));
    let request = milli(resources, false).or(own).unwrap_or(0);
    let bytes = |resources| memory(resources, true).filter(|m| *m > 0);
    Resources {
        memory_bytes: bytes(resources).or_else(|| bytes(pod)),
        cpu_quota_us: limit.map(quota),
        cpu_shares: Some(shares(request)),
        pids,
        hugepages: hugepages(
            pick(resources, true)
                .iter()
                .flatten()
                .filter_map(|(name, amount)| Some((&**name, amount.0.parse().ok()?))),
        ),
    }
}

/// What a container asks for, with the limits that only the pod has.
pub fn limited(spec: &PodSpec, own: &ResourceRequirements) -> ResourceRequirements {
    let mut limited = own.clone();
    let pod = spec.resources.as_ref().and_then(|pod| pod.limits.as_ref());
    for (name, amount) in pod.into_iter().flatten().filter(|(name, _)| matches!(&***name, "cpu" | "memory")) {
        limited.limits.get_or_insert_default().entry(name.clone()).or_insert_with(|| amount.clone());
    }
    limited
}

/// Of each size of huge pages (as cgroups name them) how many bytes there are in a list of amounts.
fn hugepages<'a>(amounts: impl Iterator<Item = (&'a str, Quantity)>) -> Vec<(String, i64)> {
    let pages = amounts.filter_map(|(name, amount)| {
        let size: Quantity = name.strip_prefix("hugepages-")?.parse().ok()?;
        let size = match size.value() >> 10 {
            kib @ 0..1024 => format!("{kib}KB"),
            kib @ 1024..1_048_576 => format!("{}MB", kib >> 10),
            kib => format!("{}GB", kib >> 20),
        };
        Some((size, amount.value()))
    });
    pages.collect()
}

fn quantities(list: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, Quantity)> {
    list.iter().filter_map(|(name, amount)| Some((name.as_str(), amount.parse().ok()?)))
}

/// Takes the huge pages that the node has from who has not asked for them (`GetHugepageLimitsFromResources`).
pub fn no_other_pages(resources: &mut Resources, capacity: &BTreeMap<String, String>) {
    let sizes = hugepages(quantities(capacity)).into_iter().filter(|(_, bytes)| *bytes > 0);
    let others: Vec<_> =
        sizes.filter(|(size, _)| resources.hugepages.iter().all(|(own, _)| own != size)).collect();
    resources.hugepages.extend(others.into_iter().map(|(size, _)| (size, 0)));
}

/// The cgroup of the whole pod: its own amounts or its containers', and its overhead; a limit only where
/// the pod or every container has one (`ResourceConfigForPod`).
pub fn pod(spec: &PodSpec, pids: Option<i64>) -> Resources {
    let (requests, limits) = (resources::pod_requests(spec), resources::pod_limits(spec));
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let limited = |name: &str| {
        let has = |own: Option<&ResourceRequirements>| {
            amount(pick(own, true).as_ref(), name).is_some_and(|amount| !amount.is_zero())
        };
        has(spec.resources.as_ref()) || containers().all(|c| has(c.resources.as_ref()))
    };
    let limit = |name: &str| limits.get(name).copied().filter(|_| limited(name));
    let request = requests.get("cpu").map_or(0, |amount| amount.milli_value());
    Resources {
        memory_bytes: limit("memory").map(Quantity::value),
        cpu_quota_us: limit("cpu").map(|amount| quota(amount.milli_value())),
        cpu_shares: Some(shares(request)),
        pids,
        hugepages: hugepages(limits.iter().map(|(name, amount)| (&**name, *amount))),
    }
}

/// Limits under which both fit: for the moment between two sizes.
pub fn roomier(a: &Resources, b: &Resources) -> Resources {
    let most = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
    Resources {
        memory_bytes: most(a.memory_bytes, b.memory_bytes),
        cpu_quota_us: most(a.cpu_quota_us, b.cpu_quota_us),
        ..b.clone()
    }
}

/// `oom_score_adj` of a container on a machine with so many bytes of memory.
pub fn oom_score_adj(wanted: &Wanted, spec: &Container, memory_capacity: i64) -> i32 {
    let pod = &wanted.spec;
    if pod.priority_class_name.as_deref() == Some(NODE_CRITICAL) {
        return SCORE_GUARANTEED;
    }
    // What only the pod has asked for, in equal parts.
    let rest = memory(pod.resources.as_ref(), false).filter(|bytes| *bytes > 0).map_or(0, |bytes| {
        let asked = resources::container_requests(pod).get("memory").map_or(0, |q| q.value());
        let all = pod.containers.len() + pod.init_containers.as_ref().map_or(0, Vec::len);
        (bytes - asked) / i64::try_from(all).unwrap_or(1).max(1)
    });
    let of = |c: &Container| {
        let request = memory(c.resources.as_ref(), false).unwrap_or(0) + rest;
        (1000 - 1000 * request / memory_capacity.max(1)).clamp(3, 999) as i32
    };
    match class(pod) {
        Class::Guaranteed => SCORE_GUARANTEED,
        Class::BestEffort => 1000,
        // A sidecar lives as long as the main container that is killed first.
        Class::Burstable if spec.restart_policy.as_deref() == Some("Always") => {
            let main = pod.containers.iter().map(of).max().unwrap_or(999);
            of(spec).min(main)
        }
        Class::Burstable => of(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(spec: serde_json::Value) -> Wanted {
        Wanted::new(serde_json::from_value(serde_json::json!({ "metadata": {}, "spec": spec })).unwrap())
    }

    fn spec(resources: &str) -> Wanted {
        let resources: serde_json::Value = serde_json::from_str(resources).unwrap();
        wanted(serde_json::json!({ "containers": [{ "name": "a", "resources": resources }] }))
    }

    #[test]
    fn classes_are_upstreams() {
        for (resources, expect) in [
            ("{}", Class::BestEffort),
            (r#"{"requests": {"cpu": "0"}}"#, Class::BestEffort),
            (r#"{"requests": {"cpu": "100m"}}"#, Class::Burstable),
            (r#"{"limits": {"cpu": "1", "memory": "1Gi"}}"#, Class::Guaranteed),
            (
                r#"{"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}}"#,
                Class::Guaranteed,
            ),
            (
                r#"{"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}"#,
                Class::Burstable,
            ),
            (r#"{"limits": {"memory": "1Gi"}}"#, Class::Burstable),
        ] {
            assert_eq!(class(&spec(resources).spec), expect, "{resources}");
        }
    }

    #[test]
    fn amounts_become_cgroup_values() {
        let wanted = spec(
            r#"{"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi", "hugepages-2Mi": "4Mi"}}"#,
        );
        let got = container(&wanted.spec, &wanted.spec.containers[0], Some(100));
        assert_eq!(
            got,
            Resources {
                memory_bytes: Some(128 << 20),
                cpu_quota_us: Some(50_000),
                cpu_shares: Some(256),
                pids: Some(100),
                hugepages: vec![("2MB".to_owned(), 4 << 20)],
            }
        );
        assert_eq!(oom_score_adj(&wanted, &wanted.spec.containers[0], 640 << 20), 900);
        let mut whole = pod(&wanted.spec, None);
        assert_eq!(whole.hugepages, got.hugepages);
        let capacity =
            [("hugepages-1Gi", "0Ki"), ("hugepages-2Mi", "8Mi"), ("hugepages-64Ki", "1Mi"), ("cpu", "2")]
                .map(|(name, amount)| (name.to_owned(), amount.to_owned()));
        no_other_pages(&mut whole, &capacity.into());
        assert_eq!(whole.hugepages, [("2MB".to_owned(), 4 << 20), ("64KB".to_owned(), 0)]);
        let plain = spec("{}");
        assert_eq!(container(&plain.spec, &plain.spec.containers[0], None).cpu_shares, Some(2));
    }

    #[test]
    fn amounts_of_the_pod_are_shared_by_its_containers() {
        let wanted = wanted(serde_json::json!({
            "resources": {"requests": {"cpu": "1", "memory": "300Mi"}, "limits": {"cpu": "2", "memory": "400Mi"}},
            "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [
                {"name": "a", "resources": {"requests": {"memory": "60Mi"}, "limits": {"memory": "100Mi"}}},
                {"name": "b"},
            ],
        }));
        assert_eq!(class(&wanted.spec), Class::Burstable);
        let of = |n: usize| {
            let got = container(&wanted.spec, &wanted.spec.containers[n], None);
            (got.memory_bytes.map(|b| b >> 20), got.cpu_quota_us, got.cpu_shares)
        };
        assert_eq!(of(0), (Some(100), Some(200_000), Some(2)));
        assert_eq!(of(1), (Some(400), Some(200_000), Some(2)));
        let whole = pod(&wanted.spec, None);
        assert_eq!((whole.memory_bytes, whole.cpu_shares), (Some(400 << 20), Some(1024)));
        // 240Mi are left for three containers: 80Mi each, of 1000Mi.
        let score = |c: &Container| oom_score_adj(&wanted, c, 1000 << 20);
        let init = wanted.spec.init_containers.as_ref().unwrap();
        assert_eq!((score(&wanted.spec.containers[0]), score(&wanted.spec.containers[1])), (860, 920));
        assert_eq!(score(&init[0]), 920);
    }

    #[test]
    fn a_pod_is_limited_when_every_container_is() {
        let two = |second: &str| {
            wanted(serde_json::json!({ "containers": [
                { "name": "a", "resources": { "requests": { "cpu": "1" }, "limits": { "memory": "1Mi" } } },
                { "name": "b", "resources": serde_json::from_str::<serde_json::Value>(second).unwrap() },
            ]}))
        };
        // An init container counts beside the sidecars that run already, and the overhead on top.
        let with_init = wanted(serde_json::json!({
            "overhead": {"memory": "5Mi", "cpu": "100m"},
            "initContainers": [
                { "name": "s", "restartPolicy": "Always", "resources": { "limits": { "memory": "10Mi" } } },
                { "name": "i", "resources": { "limits": { "memory": "50Mi" } } },
            ],
            "containers": [{ "name": "a", "resources": { "limits": { "memory": "20Mi" } } }],
        }));
        let whole = pod(&with_init.spec, None);
        assert_eq!(
            (whole.memory_bytes, whole.cpu_quota_us, whole.cpu_shares),
            (Some(65 << 20), None, Some(102))
        );
        assert_eq!(pod(&two("{}").spec, None).memory_bytes, None);
        let both = pod(&two(r#"{"requests": {"cpu": "1"}, "limits": {"memory": "2Mi"}}"#).spec, None);
        assert_eq!((both.memory_bytes, both.cpu_shares), (Some(3 << 20), Some(2048)));
    }
}
