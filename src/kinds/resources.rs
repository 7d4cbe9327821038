//! What a pod asks for and is limited to (`k8s.io/component-helpers/resource`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus, ResourceRequirements},
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

/// Raises the amounts of a total to those of a list.
pub fn raise(total: &mut ResourceList, list: &ResourceList) {
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

type ApiList = BTreeMap<String, ApiQuantity>;
/// Picks requests or limits.
type Pick = fn(&ResourceRequirements) -> Option<&ApiList>;

const REQUESTS: Pick = |r| r.requests.as_ref();
const LIMITS: Pick = |r| r.limits.as_ref();

fn of_containers<'a>(spec: &'a PodSpec, pick: impl Fn(&'a Container) -> Option<&'a ApiList>) -> ResourceList {
    let amounts = |c: &'a Container| parse(pick(c));
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
    of_containers(spec, asked(REQUESTS))
}

/// What a container's manifest says.
fn asked(pick: Pick) -> impl Fn(&Container) -> Option<&ApiList> {
    move |c| c.resources.as_ref().and_then(pick)
}

fn of_spec(spec: &PodSpec, pick: Pick) -> ResourceList {
    let mut total = of_containers(spec, asked(pick));
    set_pod_level(&mut total, parse(spec.resources.as_ref().and_then(pick)));
    total
}

/// The pod's own amounts count in place of its containers'.
fn set_pod_level(total: &mut ResourceList, own: ResourceList) {
    total.extend(own.into_iter().filter(|(name, _)| is_pod_level(name)));
}

/// What a pod needs of a node: its containers' requests (or the pod's own, where given) and its
/// overhead.
pub fn pod_requests(spec: &PodSpec) -> ResourceList {
    let mut total = of_spec(spec, REQUESTS);
    add(&mut total, &parse(spec.overhead.as_ref()));
    total
}

/// What a pod may use at most, where limited: its containers' limits (or the pod's own) and, for
/// limited resources, its overhead.
pub fn pod_limits(spec: &PodSpec) -> ResourceList {
    let mut total = of_spec(spec, LIMITS);
    add_limited(&mut total, spec);
    total
}

/// Adds the overhead to what is limited.
fn add_limited(total: &mut ResourceList, spec: &PodSpec) {
    for (name, amount) in parse(spec.overhead.as_ref()) {
        if let Some(limit) = total.get_mut(&name) {
            *limit += amount;
        }
    }
}

/// What a pod takes of a node while it is resized: the most of what it asks for, what it has been given
/// and what is in force; without the first when it cannot have that. The scheduler counts with this
/// (`PodRequests` with `UseStatusResources`).
pub fn pod_requests_now(pod: &Pod) -> ResourceList {
    let Some(spec) = &pod.spec else { return ResourceList::new() };
    let differs = |status: &&PodStatus| !has_what_it_asks(spec, status, REQUESTS);
    let Some(status) = pod.status.as_ref().filter(differs) else { return pod_requests(spec) };
    let infeasible = is_infeasible(status);
    let given = |c| container_status(status, c).and_then(|s| s.allocated_resources.as_ref());
    let in_force = |c| container_status(status, c)?.resources.as_ref().and_then(REQUESTS);
    let wanted = |c| asked(REQUESTS)(c).filter(|_| !infeasible);
    let mut total = of_containers(spec, |c| given(c).or_else(|| wanted(c)));
    raise(&mut total, &of_containers(spec, |c| in_force(c).or_else(|| given(c)).or_else(|| wanted(c))));
    if !infeasible {
        raise(&mut total, &container_requests(spec));
    }
    if let Some(own) = spec.resources.as_ref().and_then(REQUESTS) {
        let mut most = if infeasible { ResourceList::new() } else { parse(Some(own)) };
        let in_force = status.resources.as_ref().and_then(REQUESTS);
        for list in [in_force, status.allocated_resources.as_ref()] {
            raise(&mut most, &without_overhead(list, spec));
        }
        set_pod_level(&mut total, most);
    }
    add(&mut total, &parse(spec.overhead.as_ref()));
    total
}

/// What a pod may use at most while it is resized, as [`pod_requests_now`].
pub fn pod_limits_now(pod: &Pod) -> ResourceList {
    let Some(spec) = &pod.spec else { return ResourceList::new() };
    let differs = |status: &&PodStatus| !has_what_it_asks(spec, status, LIMITS);
    let Some(status) = pod.status.as_ref().filter(differs) else { return pod_limits(spec) };
    let infeasible = is_infeasible(status);
    let in_force = |c| container_status(status, c)?.resources.as_ref().and_then(LIMITS);
    let mut total = of_containers(spec, |c| in_force(c).or_else(|| asked(LIMITS)(c).filter(|_| !infeasible)));
    if !infeasible {
        raise(&mut total, &of_containers(spec, asked(LIMITS)));
    }
    if let Some(own) = spec.resources.as_ref().and_then(LIMITS) {
        let mut most = if infeasible { ResourceList::new() } else { parse(Some(own)) };
        raise(&mut most, &without_overhead(status.resources.as_ref().and_then(LIMITS), spec));
        set_pod_level(&mut total, most);
    }
    add_limited(&mut total, spec);
    total
}

fn container_status<'a>(status: &'a PodStatus, container: &Container) -> Option<&'a ContainerStatus> {
    let all = status.container_statuses.iter().flatten();
    let mut all = all.chain(status.init_container_statuses.iter().flatten());
    all.find(|s| s.name == container.name)
}

fn is_infeasible(status: &PodStatus) -> bool {
    let pending = status.conditions.iter().flatten().find(|c| c.type_ == "PodResizePending");
    pending.is_some_and(|c| c.reason.as_deref() == Some("Infeasible"))
}

/// Whether the status says nothing but what the manifest says; most pods are never resized.
fn has_what_it_asks(spec: &PodSpec, status: &PodStatus, pick: Pick) -> bool {
    let own = |spec: &PodSpec| spec.resources.as_ref().and_then(pick).cloned();
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    status.resources.as_ref().is_none_or(|r| pick(r) == own(spec).as_ref())
        && status.allocated_resources.is_none()
        && !is_infeasible(status)
        && all.all(|c| {
            let Some(told) = container_status(status, c) else { return true };
            let wanted = asked(pick)(c);
            told.allocated_resources.as_ref().is_none_or(|list| asked(REQUESTS)(c) == Some(list))
                && told.resources.as_ref().and_then(pick).is_none_or(|list| wanted == Some(list))
        })
}

/// The amounts of a whole pod in its status, which count its overhead.
fn without_overhead(list: Option<&ApiList>, spec: &PodSpec) -> ResourceList {
    let mut list = parse(list);
    for (name, amount) in parse(spec.overhead.as_ref()) {
        if let Some(left) = list.get_mut(&name) {
            *left = (*left - amount).max(Quantity::ZERO);
        }
    }
    list
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
    fn a_pod_that_is_resized_takes_the_most_of_what_it_has_and_asks_for() {
        let cpu = |amount: &str| json!({"cpu": amount});
        let pod = |asked: &str, given: &str, in_force: &str, reason: &str| -> Pod {
            let told = |name: &str, given: &str, in_force: &str| {
                json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": cpu(given), "resources": {"requests": cpu(in_force), "limits": cpu(in_force)}})
            };
            let all = [told("c", given, in_force), told("other", "100m", "100m")];
            let mut status = json!({"containerStatuses": all});
            if !reason.is_empty() {
                status["conditions"] =
                    json!([{"type": "PodResizePending", "status": "True", "reason": reason}]);
            }
            serde_json::from_value(json!({
                "spec": {"overhead": cpu("10m"), "containers": [
                    {"name": "c", "resources": {"requests": cpu(asked), "limits": cpu(asked)}},
                    {"name": "other", "resources": {"requests": cpu("100m"), "limits": cpu("100m")}},
                ]},
                "status": status,
            }))
            .unwrap()
        };
        for (asked, given, in_force, reason, requests, limits) in [
            ("1", "1", "1", "", 1110, 1110),
            ("2", "1", "1", "", 2110, 2110),
            ("1", "2", "2", "", 2110, 2110),
            ("1", "1", "2", "", 2110, 2110),
            ("1", "2", "1", "", 2110, 1110),
            ("3", "1", "1", "Deferred", 3110, 3110),
            ("3", "1", "1", "Infeasible", 1110, 1110),
            ("3", "1", "2", "Infeasible", 2110, 2110),
        ] {
            let pod = pod(asked, given, in_force, reason);
            let milli = |list: &ResourceList| list["cpu"].milli_value();
            let found = (milli(&pod_requests_now(&pod)), milli(&pod_limits_now(&pod)));
            assert_eq!(found, (requests, limits), "{asked} {given} {in_force} {reason}");
        }
        let whole = |asked: &str, status: Value| -> Pod {
            let own = json!({"requests": cpu(asked), "limits": cpu(asked)});
            let spec = json!({"overhead": cpu("10m"), "resources": own, "containers": [{"name": "c"}]});
            serde_json::from_value(json!({"spec": spec, "status": status})).unwrap()
        };
        let has = json!({"allocatedResources": cpu("2010m"), "resources": {"requests": cpu("1010m"), "limits": cpu("1010m")}});
        let mut never = has.clone();
        never["conditions"] = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        for (asked, status, requests, limits) in [
            ("1", json!({}), "1010m", "1010m"),
            ("1", has.clone(), "2010m", "1010m"),
            ("3", has, "3010m", "3010m"),
            ("3", never, "2010m", "1010m"),
        ] {
            let pod = whole(asked, status);
            let found = (pod_requests_now(&pod)["cpu"].to_string(), pod_limits_now(&pod)["cpu"].to_string());
            assert_eq!(found, (requests.to_owned(), limits.to_owned()), "{asked}");
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
