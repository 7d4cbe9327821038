//! LimitRanger: defaults and bounds of a namespace for containers, pods and claims.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Request, name_of};
use crate::{
    kinds::{quantity::Quantity, registry, resources},
    objects::Error,
};

fn ranges(request: &Request<'_>) -> Vec<Value> {
    let kind = registry::of::<k8s_openapi::api::core::v1::LimitRange>();
    let ranges = request.objects.list(kind, Some(request.namespace)).items;
    ranges.iter().flat_map(|o| o.value()["spec"]["limits"].as_array().cloned().unwrap_or_default()).collect()
}

/// Fills in requests and limits that a pod's containers leave out.
pub fn default(request: &Request<'_>, pod: &mut Value) {
    if !request.is_create_of("", "Pod") {
        return;
    }
    let mut set: Vec<String> = Vec::new();
    for range in ranges(request).iter().filter(|r| r["type"] == "Container") {
        for list in ["initContainers", "containers"] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                fill(container, range, list, &mut set);
            }
        }
    }
    if !set.is_empty() {
        let text = format!("LimitRanger plugin set: {}", set.join("; "));
        pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"] = text.into();
    }
}

fn fill(container: &mut Value, range: &Value, list: &str, set: &mut Vec<String>) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let what = if list == "containers" { "container" } else { "init container" };
    for (field, from) in [("requests", "defaultRequest"), ("limits", "default")] {
        let mut added = Vec::new();
        for (resource, amount) in range[from].as_object().into_iter().flatten() {
            if container["resources"][field].get(resource).is_none() {
                container["resources"][field][resource] = amount.clone();
                added.push(resource.as_str());
            }
        }
        if !added.is_empty() {
            let word = if field == "requests" { "request" } else { "limit" };
            set.push(format!("{} {word} for {what} {name}", added.join(", ")));
        }
    }
}

/// Refuses what is out of bounds.
pub fn check(request: &Request<'_>, value: &Value) -> Result<(), Error> {
    let is_pod = request.is_create_of("", "Pod") || request.is_resize();
    let is_claim = request.is("", "PersistentVolumeClaim") && request.subresource.is_none();
    if !is_pod && !is_claim {
        return Ok(());
    }
    let mut errors: Vec<String> = Vec::new();
    for range in ranges(request) {
        match range["type"].as_str() {
            Some("Container") if is_pod => {
                for list in ["initContainers", "containers"] {
                    for container in value["spec"][list].as_array().into_iter().flatten() {
                        bounds(&range, "Container", &container["resources"], &mut errors);
                    }
                }
            }
            Some("Pod") if is_pod => {
                let text = |which: &str| -> BTreeMap<String, String> {
                    let all = resources::aggregate_json(&value["spec"], which);
                    all.into_iter().map(|(name, amount)| (name, amount.to_string())).collect()
                };
                let total = json!({"requests": text("requests"), "limits": text("limits")});
                bounds(&range, "Pod", &total, &mut errors);
            }
            Some("PersistentVolumeClaim") if is_claim => {
                bounds(&range, "PersistentVolumeClaim", &value["spec"]["resources"], &mut errors);
            }
            _ => {}
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let message = match errors.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    Err(request.forbidden(name_of(value), message))
}

fn bounds(range: &Value, kind: &str, resources: &Value, errors: &mut Vec<String>) {
    let amount = |value: &Value| Quantity::from_json(value).ok();
    let each = |field: &str| -> Vec<(String, Quantity)> {
        let map = range[field].as_object().into_iter().flatten();
        map.filter_map(|(k, v)| Some((k.clone(), amount(v)?))).collect()
    };
    let of = |field: &str, resource: &str| resources[field].get(resource).and_then(amount);
    for (resource, min) in each("min") {
        match (of("requests", &resource), of("limits", &resource)) {
            (Some(request), _) if request < min => {
                errors
                    .push(format!("minimum {resource} usage per {kind} is {min}, but request is {request}"));
            }
            (None, _) => {
                errors
                    .push(format!("minimum {resource} usage per {kind} is {min}.  No request is specified"));
            }
            (_, Some(limit)) if limit < min => {
                errors.push(format!("minimum {resource} usage per {kind} is {min}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (resource, max) in each("max") {
        let (request, limit) = (of("requests", &resource), of("limits", &resource));
        match (request, limit) {
            (_, None) if kind != "PersistentVolumeClaim" => {
                errors.push(format!("maximum {resource} usage per {kind} is {max}.  No limit is specified"));
            }
            (_, Some(limit)) if limit > max => {
                errors.push(format!("maximum {resource} usage per {kind} is {max}, but limit is {limit}"));
            }
            (Some(request), _) if request > max => {
                errors
                    .push(format!("maximum {resource} usage per {kind} is {max}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (resource, ratio) in each("maxLimitRequestRatio") {
        let (Some(request), Some(limit)) = (of("requests", &resource), of("limits", &resource)) else {
            errors.push(format!(
                "{resource} max limit to request ratio per {kind} is {ratio}, but no request is specified or request is 0."
            ));
            continue;
        };
        let (request, limit) = (request.milli_value(), limit.milli_value());
        if request == 0 || limit.saturating_mul(1000) > ratio.milli_value().saturating_mul(request) {
            let actual = limit as f64 / request.max(1) as f64;
            errors.push(format!(
                "{resource} max limit to request ratio per {kind} is {ratio}, but provided ratio is {actual:.6}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_and_what_is_too_much_is_told() {
        let range = json!({"type": "Container", "default": {"memory": "64Mi"}, "defaultRequest": {"memory": "32Mi"},
            "max": {"memory": "128Mi"}});
        let mut container = json!({"name": "c"});
        let mut set = Vec::new();
        fill(&mut container, &range, "containers", &mut set);
        assert_eq!(
            container["resources"],
            json!({"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}})
        );
        assert_eq!(set, ["memory request for container c", "memory limit for container c"]);
        let mut errors = Vec::new();
        bounds(&range, "Container", &container["resources"], &mut errors);
        assert!(errors.is_empty());
        bounds(&range, "Container", &json!({"limits": {"memory": "1Gi"}}), &mut errors);
        assert_eq!(errors, ["maximum memory usage per Container is 128Mi, but limit is 1Gi"]);
    }
}
