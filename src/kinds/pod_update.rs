//! What may change in a pod: by an update, its ephemeral containers, and a resize
//! (`ValidatePodUpdate`, `ValidatePodEphemeralContainersUpdate`, `ValidatePodResize`).

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;

use super::{
    ErrorList, FieldError, addresses,
    at::At,
    meta, names,
    pod::{self, RESTART_ALL},
    remove, replace, resources,
};

const STATIC_POD: &str = "kubernetes.io/config.mirror";
const CONTAINER_LISTS: [&str; 2] = ["containers", "initContainers"];

/// Errors of an update of the pod itself.
pub fn check_update(new: &Value, old: &Value) -> ErrorList {
    meta::check_update(new, old, |new, old, errors| {
        let (spec, old_spec) = (new.get("spec"), old.get("spec"));
        for list in CONTAINER_LISTS {
            if spec.get(list).len() != old_spec.get(list).len() {
                errors.push(spec.get(list).forbidden("pod updates may not add or remove containers"));
                return;
            }
        }
        check_annotations(new, old, errors);
        check_deadline(&spec, &old_spec, errors);
        check_tolerations(&spec.get("tolerations"), &old_spec.get("tolerations"), errors);
        let old_gates = old_spec.get("schedulingGates");
        for gate in spec.get("schedulingGates").items() {
            let name = gate.get("name");
            if !old_gates.items().any(|g| g.get("name").str() == name.str()) {
                let detail =
                    format!("only deletion is allowed, but found new scheduling gate '{}'", name.str());
                errors.push(name.forbidden(detail));
            }
        }
        if spec.value == old_spec.value {
            return;
        }
        let mut same = spec.value.clone();
        for list in CONTAINER_LISTS {
            let old_items = old_spec.value[list].as_array().into_iter().flatten();
            let items = same.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            for (item, old_item) in items.zip(old_items) {
                replace(item, "image", old_item);
            }
        }
        for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
            replace(&mut same, field, old_spec.value);
        }
        if !old_gates.is_empty() {
            check_gated(&spec, &old_spec, errors);
            replace(&mut same, "nodeSelector", old_spec.value);
            keep_node_affinity(&mut same, old_spec.value);
        }
        let once_negative = old_spec.get("terminationGracePeriodSeconds").int().is_some_and(|s| s < 0);
        if once_negative && same["terminationGracePeriodSeconds"] == 1 {
            replace(&mut same, "terminationGracePeriodSeconds", old_spec.value);
        }
        if same != *old_spec.value {
            errors.push(spec.forbidden(
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            ));
        }
    })
}

/// Before AppArmor was a field.
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Annotations by which nodes act come with the pod and stay.
fn check_annotations(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let [now, then] = [new, old].map(|pod| pod.get("metadata").get("annotations"));
    let of_nodes = |key: &str| match key {
        STATIC_POD => Some("mirror pod annotation"),
        _ => key.starts_with(APP_ARMOR).then_some("AppArmor annotations"),
    };
    for (key, _) in then.entries().filter(|(key, value)| now.value.get(key) != Some(value)) {
        if let Some(what) = of_nodes(key) {
            errors.push(now.key(key).forbidden(format!("may not remove or update {what}")));
        }
    }
    for (key, _) in now.entries().filter(|(key, _)| then.value.get(key).is_none()) {
        if let Some(what) = of_nodes(key) {
            errors.push(now.key(key).forbidden(format!("may not add {what}")));
        }
    }
}

/// Errors of an update of the pod's status.
pub fn check_status(new: &Value, old: &Value) -> ErrorList {
    meta::check_update(new, old, |new, old, errors| {
        check_annotations(new, old, errors);
        let (status, old_status) = (new.get("status"), old.get("status"));
        for condition in status.get("conditions").items() {
            let (kind, generation) = (condition.get("type"), condition.get("observedGeneration"));
            // Upstream's paths, letter by letter.
            let path = condition.path.replacen("status.", "metadata.", 1);
            if generation.int().is_some_and(|g| g < 0) {
                let at = generation.with_path(format!("{path}.observedGeneration"));
                errors.push(at.invalid("must be greater than or equal to 0"));
            }
            if !["PodScheduled", "Ready", "Initialized"].contains(&kind.str()) {
                kind.with_path(path + ".Type").check(names::qualified, errors);
            }
        }
        check_states(&status, old, errors);
        let nominated = status.get("nominatedNodeName");
        if !nominated.is_empty() && nominated.value != old_status.get("nominatedNodeName").value {
            nominated.check(names::dns_subdomain, errors);
        }
        status.get("qosClass").check_immutable(&old_status.get("qosClass"), errors);
        for list in ["podIPs", "hostIPs"] {
            let ips = status.get(list);
            ips.items().for_each(|ip| ip.get("ip").with_path(ip.path).check(addresses::ip, errors));
        }
    })
}

/// A container that has ended and is not to run again stays ended.
fn check_states(status: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let spec: PodSpec = serde_json::from_value(old.get("spec").value.clone()).unwrap_or_default();
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let (main, init) = (&spec.containers, spec.init_containers.as_deref().unwrap_or_default());
    let ends_all = |c: &Container| c.restart_policy_rules.iter().flatten().any(|r| r.action == RESTART_ALL);
    if init.iter().chain(main).any(ends_all) {
        return;
    }
    let lists: [(&str, Option<&[Container]>); 3] = [
        ("containerStatuses", Some(main)),
        ("initContainerStatuses", Some(init)),
        ("ephemeralContainerStatuses", None),
    ];
    let ended = |status: &At<'_>| status.get("state").get("terminated").value.is_object();
    for (list, containers) in lists {
        let now = status.get(list);
        let then = old.get("status").get(list).with_path(&now.path);
        for was in then.items().filter(ended) {
            let name = was.get("name").str();
            let Some(is) = now.items().find(|s| s.get("name").str() == name && !ended(s)) else { continue };
            let code = was.get("state").get("terminated").get("exitCode").int().unwrap_or(0);
            let code = i32::try_from(code).unwrap_or(i32::MAX);
            let runs_again = containers.is_some_and(|all| {
                let container = all.iter().find(|c| c.name == name).cloned().unwrap_or_default();
                pod::restarts(&container, policy, code)
            });
            if !runs_again {
                let state = is.with_path(format!("{}.state", was.path));
                errors.push(state.forbidden("may not be transitioned to non-terminated state"));
            }
        }
    }
}

fn check_deadline(spec: &At<'_>, old_spec: &At<'_>, errors: &mut ErrorList) {
    let (deadline, old) = (spec.get("activeDeadlineSeconds"), old_spec.get("activeDeadlineSeconds"));
    match (deadline.int(), old.int()) {
        (Some(new), Some(old)) if new > old => {
            errors.push(deadline.invalid("must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            errors.push(deadline.invalid("must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

/// Every old toleration stays, but for its seconds.
fn check_tolerations(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let kept: Vec<Value> = new.items().map(|t| without_seconds(t.value)).collect();
    if old.items().any(|t| !kept.contains(&without_seconds(t.value))) {
        errors.push(new.forbidden("existing toleration can not be modified except its tolerationSeconds"));
    }
}

/// A pod that waits at a gate may be held to fewer nodes, not to other ones.
fn check_gated(spec: &At<'_>, old_spec: &At<'_>, errors: &mut ErrorList) {
    let (selector, old) = (spec.get("nodeSelector"), old_spec.get("nodeSelector"));
    if old.entries().any(|(key, value)| selector.value.get(key) != Some(value)) {
        errors.push(selector.invalid("only additions are allowed (no mutations or deletions)"));
    }
    let [terms, old_terms] = [spec, old_spec].map(|spec| {
        let node = spec.get("affinity").get("nodeAffinity");
        node.get("requiredDuringSchedulingIgnoredDuringExecution").get("nodeSelectorTerms")
    });
    if !old_terms.is_set() {
        return;
    }
    if terms.len() != old_terms.len() {
        errors.push(terms.invalid("no additions/deletions to non-empty NodeSelectorTerms list are allowed"));
        return;
    }
    for (term, old_term) in terms.items().zip(old_terms.items()) {
        let kept = |list: &str| {
            let new = term.get(list);
            let all: Vec<_> = new.items().map(|r| r.value).collect();
            old_term.get(list).items().all(|r| all.contains(&r.value))
        };
        if !kept("matchExpressions") || !kept("matchFields") {
            errors.push(term.invalid("only additions are allowed (no mutations or deletions)"));
        }
    }
}

fn keep_node_affinity(spec: &mut Value, old_spec: &Value) {
    let had = &old_spec["affinity"];
    if spec["affinity"].is_null() && had.is_null() {
        remove(spec, "affinity");
        return;
    }
    replace(&mut spec["affinity"], "nodeAffinity", had);
    if had.is_null() && spec["affinity"].as_object().is_some_and(serde_json::Map::is_empty) {
        remove(spec, "affinity");
    }
}

fn is_static(pod: &At<'_>) -> bool {
    pod.get("metadata").get("annotations").key(STATIC_POD).is_set()
}

/// Errors of an update of `ephemeralcontainers`: they may be added only.
pub fn check_ephemeral_containers(new: &Value, old: &Value) -> ErrorList {
    let (new, old) = (At::root(new), At::root(old));
    if is_static(&old) {
        return vec![FieldError::forbidden("", "static pods do not support ephemeral containers")];
    }
    let list = new.get("spec").get("ephemeralContainers");
    let mut errors = ErrorList::new();
    for container in old.get("spec").get("ephemeralContainers").items() {
        let name = container.get("name").str();
        match list.items().find(|c| c.get("name").str() == name) {
            None => errors
                .push(list.forbidden(format!("existing ephemeral containers {name:?} may not be removed\n"))),
            Some(same) if same.value != container.value => {
                errors.push(
                    list.forbidden(format!("existing ephemeral containers {name:?} may not be changed\n")),
                );
            }
            Some(_) => {}
        }
    }
    errors
}

/// Errors of an update of `resize`: CPU and memory of the pod and of containers that run may change.
pub fn check_resize(new: &Value, old: &Value) -> ErrorList {
    let (new, old) = (At::root(new), At::root(old));
    if is_static(&old) {
        return vec![FieldError::forbidden("", "static pods cannot be resized")];
    }
    let (spec, old_spec) = (new.get("spec"), old.get("spec"));
    let mut errors = ErrorList::new();
    let class = resources::qos_class(spec.value);
    if class != resources::qos_class(old_spec.value) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", class, detail));
    }
    let mut same = spec.value.clone();
    check_resources_resize(&spec, &old_spec, &mut errors);
    if spec.get("resources").is_set() {
        keep_cpu_and_memory(&mut same, old_spec.value);
        if !old_spec.get("resources").is_set() && same["resources"] == serde_json::json!({}) {
            remove(&mut same, "resources");
        }
    }
    for list in CONTAINER_LISTS {
        if spec.get(list).len() != old_spec.get(list).len() {
            errors.push(spec.get(list).forbidden("pod updates may not add or remove containers"));
            return errors;
        }
        let items = same.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        let places = spec.get(list).items().zip(old_spec.get(list).items());
        for (item, (container, old_container)) in items.zip(places) {
            let runs = list == "containers" || container.get("restartPolicy").str() == "Always";
            if runs {
                check_resources_resize(&container, &old_container, &mut errors);
                keep_cpu_and_memory(item, old_container.value);
            } else if container.value != old_container.value {
                errors.push(spec.forbidden("resources for non-sidecar init containers are immutable"));
            }
        }
    }
    if errors.is_empty() && same != *old_spec.value {
        errors.push(spec.forbidden("only cpu and memory resources are mutable"));
    }
    errors
}

/// Of a container, or of a pod's specification.
fn keep_cpu_and_memory(container: &mut Value, old: &Value) {
    for list in ["requests", "limits"] {
        for resource in ["cpu", "memory"] {
            let had = &old["resources"][list];
            if container["resources"].get(list).is_some() || had.is_object() {
                replace(&mut container["resources"][list], resource, had);
            }
        }
        let empty = container["resources"][list].as_object().is_some_and(serde_json::Map::is_empty);
        if empty && old["resources"].get(list).is_none() {
            remove(&mut container["resources"], list);
        }
    }
    replace(container, "resizePolicy", old);
}

/// Of a container, or of a pod's specification.
fn check_resources_resize(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (resources, had) = (new.get("resources"), old.get("resources"));
    for list in ["requests", "limits"] {
        let now = resources.get(list);
        if had.get(list).entries().any(|(name, _)| !now.key(name).is_set()) {
            errors.push(now.forbidden(format!("resource {list} cannot be removed")));
        }
    }
}

/// Errors of a Binding.
pub fn check_binding(binding: &Value) -> ErrorList {
    let target = At::root(binding).get("target");
    let mut errors = ErrorList::new();
    target.get("kind").check_one_of(&["Node", "<empty>"], &mut errors);
    target.get("name").check_required(&mut errors);
    if errors.is_empty() {
        target.get("name").check(names::dns_subdomain, &mut errors);
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    fn starts(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(|e| e.to_string().chars().take(60).collect()).collect()
    }

    #[test]
    fn only_some_fields_of_a_pod_change() {
        let old = pod(
            json!({"containers": [{"name": "c", "image": "a"}], "tolerations": [{"key": "x"}], "hostname": "h"}),
        );
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "b".into();
        new["spec"]["tolerations"] = json!([{"key": "y"}, {"key": "x", "tolerationSeconds": 1}]);
        new["spec"]["activeDeadlineSeconds"] = 5.into();
        assert_eq!(starts(&check_update(&new, &old)), Vec::<String>::new());
        new["spec"]["hostname"] = "other".into();
        assert_eq!(
            starts(&check_update(&new, &old)),
            ["spec: Forbidden: pod updates may not change fields other tha"]
        );
        let mut new = old.clone();
        new["spec"]["tolerations"] = json!([]);
        new["spec"]["containers"] = json!([]);
        assert_eq!(
            starts(&check_update(&new, &old)),
            ["spec.containers: Forbidden: pod updates may not add or remov"]
        );
    }

    #[test]
    fn a_gated_pod_may_be_narrowed() {
        let old =
            pod(json!({"containers": [], "schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "1"}}));
        let mut new = old.clone();
        new["spec"]["nodeSelector"]["b"] = "2".into();
        new["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}});
        remove(&mut new["spec"], "schedulingGates");
        assert_eq!(starts(&check_update(&new, &old)), Vec::<String>::new());
        new["spec"]["nodeSelector"] = json!({"a": "2"});
        assert_eq!(starts(&check_update(&new, &old)).len(), 1);
        assert_eq!(
            starts(&check_update(&old, &pod(json!({"containers": [], "nodeSelector": {"a": "1"}})))).len(),
            1
        );
    }

    #[test]
    fn a_resize_changes_cpu_and_memory_only() {
        let c = |cpu: &str, memory: &str| {
            pod(
                json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"memory": memory}}}]}),
            )
        };
        assert_eq!(starts(&check_resize(&c("2", "2Gi"), &c("1", "1Gi"))), Vec::<String>::new());
        assert_eq!(starts(&check_resize(&c("2", "1Gi"), &c("1", "2Gi"))), Vec::<String>::new());
        let mut without = c("1", "1Gi");
        remove(&mut without["spec"]["containers"][0]["resources"]["limits"], "memory");
        assert_eq!(
            starts(&check_resize(&without, &c("1", "1Gi"))),
            ["spec.containers[0].resources.limits: Forbidden: resource lim"]
        );
        let mut other = c("1", "1Gi");
        other["spec"]["containers"][0]["image"] = "x".into();
        assert_eq!(
            starts(&check_resize(&other, &c("1", "1Gi"))),
            ["spec: Forbidden: only cpu and memory resources are mutable"]
        );
    }

    #[test]
    fn the_pods_own_resources_are_resized_too() {
        let p = |resources: Value| {
            let mut pod =
                pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}));
            if !resources.is_null() {
                pod["spec"]["resources"] = resources;
            }
            pod
        };
        let one = || p(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}));
        for (new, old, expected) in [
            (p(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "3", "memory": "1Gi"}})), one(), vec![]),
            (one(), p(Value::Null), vec![]),
            (
                p(json!({"requests": {"cpu": "1"}})),
                one(),
                vec!["spec.resources.limits: Forbidden: resource limits cannot be "],
            ),
            (
                p(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "hugepages-2Mi": "2Mi"}})),
                one(),
                vec!["spec: Forbidden: only cpu and memory resources are mutable"],
            ),
            (
                p(
                    json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}),
                ),
                one(),
                vec!["spec: Invalid value: \"Guaranteed\": Pod QOS Class may not cha"],
            ),
        ] {
            assert_eq!(starts(&check_resize(&new, &old)), expected, "{new}");
        }
    }

    #[test]
    fn ephemeral_containers_are_added_only() {
        let old = pod(json!({"ephemeralContainers": [{"name": "a"}]}));
        let more = pod(json!({"ephemeralContainers": [{"name": "b"}, {"name": "a"}]}));
        assert_eq!(starts(&check_ephemeral_containers(&more, &old)), Vec::<String>::new());
        assert_eq!(starts(&check_ephemeral_containers(&old, &more)).len(), 1);
    }
}
