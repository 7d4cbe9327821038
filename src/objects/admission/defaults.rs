//! Priority, DefaultTolerationSeconds, DefaultStorageClass, DefaultIngressClass, PodTopologyLabels and
//! RuntimeClass.

use serde_json::{Value, json};

use super::{Request, name_of, namespace::invalid};
use crate::{
    kinds::{FieldError, registry},
    objects::Error,
    store::Object,
};

const DEFAULT_STORAGE_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_INGRESS_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";

fn objects_of(request: &Request<'_>, api_version: &str, kind: &str) -> Vec<(std::sync::Arc<Object>, Value)> {
    let Some(kind) = registry::by_type(api_version, kind) else { return Vec::new() };
    request
        .objects
        .list(kind, None)
        .items
        .into_iter()
        .map(|o| (std::sync::Arc::clone(&o), o.value()))
        .collect()
}

/// A pod's `priority` and `preemptionPolicy` from its class.
pub fn priority(request: &Request<'_>, pod: &mut Value) -> Result<(), Error> {
    if !request.is_create_of("", "Pod") {
        return Ok(());
    }
    let given = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let classes = objects_of(request, "scheduling.k8s.io/v1", "PriorityClass");
    let class = if given.is_empty() {
        let global = classes.iter().filter(|(_, c)| c["globalDefault"] == true);
        global.min_by_key(|(_, c)| c["value"].as_i64()).map(|(_, c)| c)
    } else {
        let found = classes.iter().find(|(o, _)| *o.key.name == *given).map(|(_, c)| c);
        let missing =
            || request.forbidden(name_of(pod), format!("no PriorityClass with name {given} was found"));
        Some(found.ok_or_else(missing)?)
    };
    let value = class.map_or(0, |c| c["value"].as_i64().unwrap_or(0));
    let policy =
        class.and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority").to_owned();
    if let Some(asked) = pod["spec"]["priority"].as_i64().filter(|asked| *asked != value) {
        return Err(request.forbidden(
            name_of(pod),
            format!("the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"),
        ));
    }
    if let Some(asked) = pod["spec"]["preemptionPolicy"].as_str().filter(|asked| *asked != policy) {
        return Err(request.forbidden(
            name_of(pod),
            format!("the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"),
        ));
    }
    if given.is_empty()
        && let Some(class) = class
    {
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
    }
    pod["spec"]["priority"] = value.into();
    pod["spec"]["preemptionPolicy"] = policy.into();
    Ok(())
}

/// Every pod tolerates a lost node for a while.
pub fn tolerations(request: &Request<'_>, pod: &mut Value) {
    if !request.is_create_of("", "Pod") {
        return;
    }
    let seconds =
        request.objects.settings().map_or(super::super::TOLERATION_SECONDS, |s| s.toleration_seconds);
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = pod["spec"]["tolerations"].as_array().into_iter().flatten().any(|t| {
            let key = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && matches!(effect, "NoExecute" | "")
        });
        if tolerated {
            continue;
        }
        let toleration = json!({"key": taint, "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds});
        match pod["spec"]["tolerations"].as_array_mut() {
            Some(all) => all.push(toleration),
            None => pod["spec"]["tolerations"] = json!([toleration]),
        }
    }
}

/// The newest of the classes that are marked as the default.
fn default_class(request: &Request<'_>, api_version: &str, kind: &str, annotation: &str) -> Option<String> {
    let marked = objects_of(request, api_version, kind).into_iter();
    marked
        .filter(|(_, class)| class["metadata"]["annotations"][annotation] == "true")
        .max_by_key(|(o, class)| {
            let created = class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
            (created, std::cmp::Reverse(o.key.name.clone()))
        })
        .map(|(o, _)| o.key.name.to_string())
}

/// A claim that names no class gets the default one.
pub fn storage_class(request: &Request<'_>, claim: &mut Value) {
    let unset = claim["spec"].get("storageClassName").is_none_or(Value::is_null);
    if !request.is_create_of("", "PersistentVolumeClaim")
        || !unset
        || claim["metadata"]["annotations"].get(BETA_STORAGE_CLASS).is_some()
    {
        return;
    }
    if let Some(class) = default_class(request, "storage.k8s.io/v1", "StorageClass", DEFAULT_STORAGE_CLASS) {
        claim["spec"]["storageClassName"] = class.into();
    }
}

/// An Ingress that names no class gets the default one.
pub fn ingress_class(request: &Request<'_>, ingress: &mut Value) {
    let unset = ingress["spec"].get("ingressClassName").is_none_or(Value::is_null);
    if !request.is_create_of("networking.k8s.io", "Ingress")
        || !unset
        || ingress["metadata"]["annotations"].get(INGRESS_CLASS).is_some()
    {
        return;
    }
    if let Some(class) = default_class(request, "networking.k8s.io/v1", "IngressClass", DEFAULT_INGRESS_CLASS)
    {
        ingress["spec"]["ingressClassName"] = class.into();
    }
}

/// A pod that comes with its node is labelled with the node's place.
pub fn place(request: &Request<'_>, pod: &mut Value) {
    if request.is_create_of("", "Pod") {
        request.objects.label_with_place(pod);
    }
}

/// A pod's overhead, node selector and tolerations from its RuntimeClass.
pub fn runtime_class(request: &Request<'_>, pod: &mut Value) -> Result<(), Error> {
    if !request.is_create_of("", "Pod") {
        return Ok(());
    }
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().map(str::to_owned) else {
        if pod["spec"].get("overhead").is_some_and(|o| o.as_object().is_some_and(|o| !o.is_empty())) {
            let message =
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(request.forbidden(name_of(pod), message));
        }
        return Ok(());
    };
    let classes = objects_of(request, "node.k8s.io/v1", "RuntimeClass");
    let Some((_, class)) = classes.iter().find(|(o, _)| *o.key.name == *name) else {
        let message = format!("pod rejected: RuntimeClass {name:?} not found");
        return Err(request.forbidden(name_of(pod), message));
    };
    if let Some(overhead) = class["overhead"].get("podFixed") {
        match pod["spec"].get("overhead").filter(|o| !o.is_null()) {
            Some(own) if own != overhead => {
                let message = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(request.forbidden(name_of(pod), message));
            }
            _ => pod["spec"]["overhead"] = overhead.clone(),
        }
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        if pod["spec"]["nodeSelector"].get(key).is_some_and(|own| own != value) {
            let error = FieldError::invalid(
                format!("spec.nodeSelector[{key}]"),
                pod["spec"]["nodeSelector"][key].clone(),
                "conflicts with the RuntimeClass's node selector",
            );
            return Err(invalid(request, pod, error));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        match pod["spec"]["tolerations"].as_array_mut() {
            Some(all) if all.contains(toleration) => {}
            Some(all) => all.push(toleration.clone()),
            None => pod["spec"]["tolerations"] = json!([toleration]),
        }
    }
    Ok(())
}
