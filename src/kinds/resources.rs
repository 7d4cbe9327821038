//! What a pod asks for and is limited to (`k8s.io/component-helpers/resource`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use serde_json::Value;

use super::quantity::Quantity;

/// Amounts by resource name.
pub type ResourceList = BTreeMap<String, Quantity>;

/// How a container's amounts count for its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    /// Runs before the main containers, one after the other.
    Init,
    /// An init container that keeps running.
    Sidecar,
}

/// Whether an amount for the whole pod may be given for a resource.
pub fn is_pod_level(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

fn raise(total: &mut ResourceList, list: &ResourceList) {
    for (name, amount) in list {
        let have = total.entry(name.clone()).or_insert(*amount);
        *have = (*have).max(*amount);
    }
}

/// Adds the amounts of a list to a total.
pub fn add(total: &mut ResourceList, list: &ResourceList) {
    for (name, amount) in list {
        *total.entry(name.clone()).or_insert(Quantity::ZERO) += *amount;
    }
}

/// The containers' effective amounts: the sum of what runs together, or the most that any init
/// container needs beside the sidecars started before it.
fn effective(containers: impl Iterator<Item = (Role, ResourceList)>) -> ResourceList {
    let (mut total, mut sidecars, mut init) = (ResourceList::new(), ResourceList::new(), ResourceList::new());
    for (role, list) in containers {
        match role {
            Role::Main => add(&mut total, &list),
            Role::Sidecar => {
                add(&mut total, &list);
                add(&mut sidecars, &list);
                raise(&mut init, &sidecars);
            }
            Role::Init => {
                let mut beside = sidecars.clone();
                add(&mut beside, &list);
                raise(&mut init, &beside);
            }
        }
    }
    raise(&mut total, &init);
    total
}

/// A typed list of amounts; what is no quantity is left out.
pub fn parse(list: Option<&BTreeMap<String, ApiQuantity>>) -> ResourceList {
    let amount = |(name, text): (&String, &ApiQuantity)| Some((name.clone(), text.0.parse().ok()?));
    list.into_iter().flatten().filter_map(amount).collect()
}

/// A list of amounts in its JSON form; what is no quantity is left out.
pub fn parse_json(list: &Value) -> ResourceList {
    let amount = |(name, value): (&String, &Value)| Some((name.clone(), Quantity::from_json(value).ok()?));
    list.as_object().into_iter().flatten().filter_map(amount).collect()
}

type Pick = fn(&ResourceRequirements) -> Option<&BTreeMap<String, ApiQuantity>>;

fn of_containers(spec: &PodSpec, pick: Pick) -> ResourceList {
    let amounts = |c: &Container| parse(c.resources.as_ref().and_then(pick));
    let role = |c: &Container| match c.restart_policy.as_deref() {
        Some("Always") => Role::Sidecar,
        _ => Role::Init,
    };
    let main = spec.containers.iter().map(|c| (Role::Main, amounts(c)));
    let init = spec.init_containers.iter().flatten().map(|c| (role(c), amounts(c)));
    effective(main.chain(init))
}

/// What a pod's containers need together, whatever the pod asks for itself.
pub fn container_requests(spec: &PodSpec) -> ResourceList {
    of_containers(spec, |r| r.requests.as_ref())
}

fn of_spec(spec: &PodSpec, pick: Pick) -> ResourceList {
    let mut total = of_containers(spec, pick);
    let pod_level = parse(spec.resources.as_ref().and_then(pick));
    total.extend(pod_level.into_iter().filter(|(name, _)| is_pod_level(name)));
    total
}

/// What a pod needs of a node: its containers' requests (or the pod's own, where given) and its
/// overhead. The scheduler and the node count with this.
pub fn pod_requests(spec: &PodSpec) -> ResourceList {
    let mut total = of_spec(spec, |r| r.requests.as_ref());
    add(&mut total, &parse(spec.overhead.as_ref()));
    total
}

/// What a pod may use at most, where limited: its containers' limits (or the pod's own) and, for
/// limited resources, its overhead.
pub fn pod_limits(spec: &PodSpec) -> ResourceList {
    let mut total = of_spec(spec, |r| r.limits.as_ref());
    for (name, amount) in parse(spec.overhead.as_ref()) {
        if let Some(limit) = total.get_mut(&name) {
            *limit += amount;
        }
    }
    total
}

/// The containers' effective `requests` or `limits` of a pod spec in its JSON form.
pub fn aggregate_json(spec: &Value, which: &str) -> ResourceList {
    let list = |field: &str| spec[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let amounts = |c: &Value| parse_json(&c["resources"][which]);
    let role = |c: &Value| if c["restartPolicy"] == "Always" { Role::Sidecar } else { Role::Init };
    let main = list("containers").iter().map(|c| (Role::Main, amounts(c)));
    effective(main.chain(list("initContainers").iter().map(|c| (role(c), amounts(c)))))
}

/// A pod's quality of service (`status.qosClass`) from its spec in JSON form.
pub fn qos_class(spec: &Value) -> &'static str {
    let positive = |list: &Value, resource: &str| {
        Quantity::from_json(&list[resource]).ok().filter(|q| *q > Quantity::ZERO)
    };
    let requirements: Vec<&Value> = if ["requests", "limits"]
        .iter()
        .any(|w| spec["resources"][w].as_object().is_some_and(|l| !l.is_empty()))
    {
        vec![&spec["resources"]]
    } else {
        ["containers", "initContainers"]
            .iter()
            .flat_map(|f| spec[f].as_array().into_iter().flatten())
            .map(|c| &c["resources"])
            .collect()
    };
    let (mut some, mut guaranteed) = (false, true);
    for resources in requirements {
        for resource in ["cpu", "memory"] {
            let limit = positive(&resources["limits"], resource);
            let request = positive(&resources["requests"], resource).or(limit);
            some |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (some, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cpu(spec: &Value) -> (i64, i64) {
        let typed: PodSpec = serde_json::from_value(spec.clone()).expect("pod spec");
        let milli = |list: &ResourceList| list.get("cpu").map_or(-1, |q| q.milli_value());
        (milli(&pod_requests(&typed)), milli(&aggregate_json(spec, "requests")))
    }

    #[test]
    fn init_containers_sidecars_and_overhead_count() {
        let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| {
            let mut c = c(cpu);
            c["restartPolicy"] = "Always".into();
            c
        };
        let cases = [
            (json!({"containers": [c("1"), c("500m")]}), 1500, 1500),
            (json!({"containers": [c("1")], "initContainers": [c("3"), c("2")]}), 3000, 3000),
            (json!({"containers": [c("1")], "initContainers": [sidecar("1"), c("1500m")]}), 2500, 2500),
            (json!({"containers": [c("1")], "initContainers": [c("1500m"), sidecar("1")]}), 2000, 2000),
            (json!({"containers": [c("1")], "overhead": {"cpu": "250m"}}), 1250, 1000),
            (json!({"containers": [c("1")], "resources": {"requests": {"cpu": "4"}}}), 4000, 1000),
            (json!({"containers": []}), -1, -1),
        ];
        for (spec, total, containers) in cases {
            assert_eq!(cpu(&spec), (total, containers), "{spec}");
        }
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let c =
            |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let cases = [
            (json!({"containers": [{}]}), "BestEffort"),
            (json!({"containers": [c(json!({"cpu": "1"}), Value::Null)]}), "Burstable"),
            (json!({"containers": [c(full.clone(), full.clone())]}), "Guaranteed"),
            (json!({"containers": [c(Value::Null, full.clone())]}), "Guaranteed"),
            (json!({"containers": [c(full.clone(), full.clone()), {}]}), "Burstable"),
            (json!({"containers": [c(json!({"cpu": "0"}), Value::Null)]}), "BestEffort"),
            (json!({"containers": [{}], "resources": {"limits": full}}), "Guaranteed"),
        ];
        for (spec, class) in cases {
            assert_eq!(qos_class(&spec), class, "{spec}");
        }
    }
}
