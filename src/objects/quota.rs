//! ResourceQuota: what a namespace may hold, counted from the objects there are.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;

use super::{Error, Objects, admission::Request};
use crate::{
    kinds::{
        Kind,
        quantity::Quantity,
        registry,
        resources::{self, ResourceList, add},
    },
    store::Object,
};

fn quotas() -> &'static Kind {
    registry::of::<k8s_openapi::api::core::v1::ResourceQuota>()
}

/// Whether a write can use more of a quota.
pub fn is_counted(request: &Request<'_>) -> bool {
    let grows = request.old.is_none()
        || (request.subresource.is_none()
            && matches!(request.kind.kind, "Service" | "PersistentVolumeClaim"))
        || request.is_resize();
    request.kind.namespaced
        && grows
        && !request.objects.list(quotas(), Some(request.namespace)).items.is_empty()
}

/// Refuses a write that would exceed a quota of its namespace.
pub fn check(request: &Request<'_>, value: &Value) -> Result<(), Error> {
    if !is_counted(request) {
        return Ok(());
    }
    let wants = usage(request.kind, value);
    let had = request.old.map(|old| usage(request.kind, old)).unwrap_or_default();
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    for quota in request.objects.list(quotas(), Some(request.namespace)).items {
        let quota_name = quota.key.name.to_string();
        let quota = quota.value();
        if !selects(&quota, request.kind, value) {
            continue;
        }
        let hard = resources::parse_json(&quota["spec"]["hard"]);
        if request.old.is_none() && request.kind.kind == "Pod" {
            let missing: Vec<&str> = hard
                .keys()
                .map(String::as_str)
                .filter(|r| is_compute(r) && !wants.contains_key(*r))
                .collect();
            if !missing.is_empty() {
                let message = format!("failed quota: {quota_name}: must specify {}", missing.join(","));
                return Err(forbidden(request, name, message));
            }
        }
        let used = used(request.objects, request.namespace, &quota);
        let mut over = (Vec::new(), Vec::new(), Vec::new());
        for (resource, limit) in &hard {
            let zero = Quantity::ZERO;
            let amount = |list: &ResourceList| list.get(resource).copied().unwrap_or(zero);
            let more = amount(&wants) - amount(&had);
            let now = amount(&used);
            if more > zero && now + more > *limit {
                over.0.push(format!("{resource}={more}"));
                over.1.push(format!("{resource}={now}"));
                over.2.push(format!("{resource}={limit}"));
            }
        }
        if !over.0.is_empty() {
            let message = format!(
                "exceeded quota: {quota_name}, requested: {}, used: {}, limited: {}",
                over.0.join(","),
                over.1.join(","),
                over.2.join(",")
            );
            return Err(forbidden(request, name, message));
        }
    }
    Ok(())
}

fn forbidden(request: &Request<'_>, name: &str, message: String) -> Error {
    Error::Forbidden { resource: request.kind.resource(), name: name.to_owned(), message }
}

fn is_compute(resource: &str) -> bool {
    let bare =
        resource.strip_prefix("requests.").or_else(|| resource.strip_prefix("limits.")).unwrap_or(resource);
    matches!(bare, "cpu" | "memory" | "ephemeral-storage") || bare.starts_with("hugepages-")
}

/// What of a quota's resources the objects of a namespace use now (`status.used`).
pub fn used(objects: &Objects, namespace: &str, quota: &Value) -> ResourceList {
    let hard = resources::parse_json(&quota["spec"]["hard"]);
    let mut total: ResourceList = hard.keys().map(|r| (r.clone(), Quantity::ZERO)).collect();
    for kind in registry::KINDS.iter().filter(|k| k.namespaced && k.stored_as.is_none()) {
        let counts = count_name(kind);
        let own = [counts.as_str(), kind.plural];
        let wanted = hard.keys().any(|r| own.contains(&r.as_str()))
            || matches!((kind.group, kind.kind), ("", "Pod" | "Service" | "PersistentVolumeClaim"));
        if !wanted {
            continue;
        }
        for object in objects.list(kind, Some(namespace)).items {
            let value = Object::value(&object);
            if selects(quota, kind, &value) {
                let used = usage(kind, &value).into_iter().filter(|(r, _)| hard.contains_key(r)).collect();
                add(&mut total, &used);
            }
        }
    }
    total
}

fn count_name(kind: &Kind) -> String {
    format!("count/{}", kind.resource())
}

/// What one object uses, by the names of quota resources.
fn usage(kind: &Kind, value: &Value) -> ResourceList {
    let one = Quantity::from_value(1);
    let mut used: ResourceList = BTreeMap::from([(count_name(kind), one)]);
    let mut count = |name: &str, times: i64| used.insert(name.to_owned(), Quantity::from_value(times));
    match (kind.group, kind.kind) {
        ("", "Pod") => {
            if matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                return used;
            }
            count("pods", 1);
            let Ok(pod) = Pod::deserialize(value) else { return used };
            let (requests, limits) = (resources::pod_requests_now(&pod), resources::pod_limits_now(&pod));
            for (which, bare, all) in [("requests", true, requests), ("limits", false, limits)] {
                for (resource, amount) in all {
                    if bare && matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                        used.insert(resource.clone(), amount);
                    }
                    used.insert(format!("{which}.{resource}"), amount);
                }
            }
        }
        ("", "Service") => {
            count("services", 1);
            let ports = value["spec"]["ports"].as_array().map_or(0, Vec::len) as i64;
            match value["spec"]["type"].as_str() {
                Some("NodePort") => {
                    count("services.nodeports", ports);
                }
                Some("LoadBalancer") => {
                    count("services.loadbalancers", 1);
                    if value["spec"]["allocateLoadBalancerNodePorts"] != false {
                        count("services.nodeports", ports);
                    }
                }
                _ => {}
            }
        }
        ("", "PersistentVolumeClaim") => {
            count("persistentvolumeclaims", 1);
            let class = value["spec"]["storageClassName"].as_str().unwrap_or_default();
            let prefix = format!("{class}.storageclass.storage.k8s.io/");
            if !class.is_empty() {
                count(&format!("{prefix}persistentvolumeclaims"), 1);
            }
            if let Ok(size) = Quantity::from_json(&value["spec"]["resources"]["requests"]["storage"]) {
                used.insert("requests.storage".to_owned(), size);
                if !class.is_empty() {
                    used.insert(format!("{prefix}requests.storage"), size);
                }
            }
        }
        ("", "ConfigMap" | "Secret" | "ReplicationController" | "ResourceQuota") => {
            count(kind.plural, 1);
        }
        _ => {}
    }
    used
}

/// Whether a quota's scopes select an object. Scopes other than a claim's class are about pods.
fn selects(quota: &Value, kind: &Kind, value: &Value) -> bool {
    let mut plain = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let plain = plain.all(|scope| has_scope(scope.as_str().unwrap_or_default(), kind, value));
    let expressions = quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    plain
        && expressions.into_iter().all(|expression| {
            let scope = expression["scopeName"].as_str().unwrap_or_default();
            if scope != "PriorityClass" {
                return has_scope(scope, kind, value);
            }
            let class = value["spec"]["priorityClassName"].as_str().unwrap_or_default();
            let listed = expression["values"].as_array().is_some_and(|all| all.iter().any(|v| v == class));
            kind.kind == "Pod"
                && match expression["operator"].as_str() {
                    Some("In") => listed,
                    Some("NotIn") => !listed,
                    Some("Exists") => !class.is_empty(),
                    _ => class.is_empty(),
                }
        })
}

fn has_scope(scope: &str, kind: &Kind, pod: &Value) -> bool {
    if kind.kind != "Pod" {
        return false;
    }
    let spec = &pod["spec"];
    let best_effort = || resources::qos_class(spec) == "BestEffort";
    match scope {
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "Terminating" => spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0),
        "NotTerminating" => spec["activeDeadlineSeconds"].as_i64().is_none(),
        "PriorityClass" => spec["priorityClassName"].as_str().is_some_and(|c| !c.is_empty()),
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|affinity| {
            let text = spec["affinity"][affinity].to_string();
            text.contains("\"namespaces\"") || text.contains("\"namespaceSelector\"")
        }),
        _ => false,
    }
}
