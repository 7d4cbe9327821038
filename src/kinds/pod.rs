//! Pods, and the Binding of a pod to a node.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRuleOnExitCodes, Pod};
use serde_json::{Value, json};

use super::{
    Durability, ErrorList, Kind, Strategy, Subresource,
    edit::{child, each, present, set_default, set_default_empty},
    keep_all_but_status, meta, names, pod_cells, pod_spec,
    pod_template::default_spec,
    pod_update, pod_warnings,
    registry::row,
    resources::{self, ResourceList},
};

pub const POD: Kind = Kind {
    short_names: &["po"],
    categories: &["all"],
    columns: pod_cells::COLUMNS,
    subresources: &[
        Subresource::Other("attach"),
        Subresource::Other("binding"),
        Subresource::Other("ephemeralcontainers"),
        Subresource::Other("eviction"),
        Subresource::Other("exec"),
        Subresource::Other("log"),
        Subresource::Other("portforward"),
        Subresource::Other("proxy"),
        Subresource::Other("resize"),
        Subresource::Status,
    ],
    strategy: Strategy {
        default,
        prepare_create,
        prepare_status: |new, old| {
            keep_all_but_status(new, old, true);
            if let Some(class) = old["status"].get("qosClass") {
                set_default_empty(child(new, "status"), "qosClass", class.clone());
            }
        },
        validate,
        validate_update: pod_update::check_update,
        validate_part: Some(|part, new, old| match part {
            Subresource::Other("ephemeralcontainers") => pod_update::check_ephemeral_containers(new, old),
            Subresource::Other("resize") => pod_update::check_resize(new, old),
            Subresource::Status => pod_update::check_status(new, old),
            _ => pod_update::check_update(new, old),
        }),
        warnings: pod_warnings::of_pod,
        selectable,
        cells: pod_cells::cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("", "v1", "Pod", "pods", "pod", "io.k8s.api.core.v1.Pod")
};

pub const BINDING: Kind = Kind {
    verbs: &["create"],
    durability: Durability::Virtual,
    strategy: Strategy { validate: pod_update::check_binding, ..Strategy::PLAIN },
    ..row("", "v1", "Binding", "bindings", "binding", "io.k8s.api.core.v1.Binding")
};

/// Whether the pod's Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The action of a rule that makes a pod begin anew.
pub const RESTART_ALL: &str = "RestartAllContainers";

/// What the first rule of a container that is for an end with `code` does.
pub fn restart_action(container: &Container, code: i32) -> Option<&str> {
    let is_for = |codes: &ContainerRestartRuleOnExitCodes| {
        (codes.operator == "In") == codes.values.iter().flatten().any(|v| *v == code)
    };
    let mut rules = container.restart_policy_rules.iter().flatten();
    rules.find(|rule| rule.exit_codes.as_ref().is_some_and(is_for)).map(|rule| &*rule.action)
}

/// Whether a container that ended with `code` runs again, by its own rules and policy or by the
/// pod's policy (upstream's `ContainerShouldRestart`).
pub fn restarts(container: &Container, policy_of_pod: &str, code: i32) -> bool {
    if matches!(restart_action(container, code), Some("Restart" | RESTART_ALL)) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or(policy_of_pod) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// Whether the pod has ended: its phase is Succeeded or Failed.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn default(pod: &mut Value) {
    let spec = child(pod, "spec");
    default_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            requests_from_limits(&mut container["resources"]);
        }
    }
    if let Some(mut resources) = present(spec, "resources").map(Value::take) {
        default_pod_level(&mut resources, spec);
        spec["resources"] = resources;
    }
    // A time that Go writes although nobody has set it.
    if let Some(status) = present(pod, "status") {
        each(status, "conditions").for_each(|c| c["lastProbeTime"] = c["lastProbeTime"].take());
    }
    let spec = child(pod, "spec");
    set_default(spec, "enableServiceLinks", true);
    if spec["hostNetwork"] == true {
        for list in ["containers", "initContainers"] {
            for port in each(spec, list).flat_map(|c| each(c, "ports")) {
                let same = port["containerPort"].clone();
                set_default(port, "hostPort", same);
            }
        }
    }
}

/// What is limited and not requested is requested as limited.
fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources["limits"].as_object().cloned() else { return };
    let requests = child(resources, "requests");
    for (name, amount) in limits {
        set_default(requests, &name, amount);
    }
}

/// Requests and limits of the whole pod, where some are given: huge page limits and requests come
/// from the containers', else requests from the pod's limits, and limits from the containers'
/// when all of them have one.
fn default_pod_level(resources: &mut Value, spec: &Value) {
    let any = |resources: &Value, list: &str| resources[list].as_object().is_some_and(|l| !l.is_empty());
    let fill = |resources: &mut Value, list: &str, from: ResourceList| {
        for (name, amount) in from {
            set_default(child(resources, list), &name, amount.to_string());
        }
    };
    let limits = || resources::aggregate_json(spec, "limits");
    let huge = |name: &str| name.starts_with("hugepages-");
    if any(resources, "limits") || any(resources, "requests") {
        let requests = resources["requests"].clone();
        let from = limits().into_iter().filter(|(n, _)| huge(n) && requests.get(n).is_none()).collect();
        fill(resources, "limits", from);
    }
    if any(resources, "limits") {
        let from = resources::aggregate_json(spec, "requests").into_iter();
        fill(resources, "requests", from.filter(|(n, _)| resources::is_pod_level(n) && !huge(n)).collect());
        let from = resources::parse_json(&resources["limits"]).into_iter();
        fill(resources, "requests", from.filter(|(n, _)| resources::is_pod_level(n)).collect());
    } else if any(resources, "requests") {
        let limited = |name: &str| {
            let mut containers =
                ["containers", "initContainers"].iter().filter_map(|f| spec[f].as_array()).flatten();
            containers.all(|c| c["resources"]["limits"].get(name).is_some())
        };
        let from = limits().into_iter();
        let from = from.filter(|(n, _)| resources::is_pod_level(n) && !huge(n) && limited(n));
        fill(resources, "limits", from.collect());
    }
}

/// A new pod is Pending, and of the quality that its (defaulted) resources give it.
/// Writes `matchLabelKeys` and `mismatchLabelKeys` of pod (anti)affinity out into the selectors, with
/// the pod's own labels, as upstream's strategy does: who places pods reads selectors only.
fn merge_label_keys(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    for direction in ["podAffinity", "podAntiAffinity"] {
        for (list, inner) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", None),
            ("preferredDuringSchedulingIgnoredDuringExecution", Some("podAffinityTerm")),
        ] {
            let pointer = format!("/spec/affinity/{direction}/{list}");
            let terms = pod.pointer_mut(&pointer).and_then(Value::as_array_mut);
            for term in terms.into_iter().flatten() {
                let Some(term) = (match inner {
                    Some(field) => term.get_mut(field),
                    None => Some(term),
                }) else {
                    continue;
                };
                if !term["labelSelector"].is_object() {
                    continue;
                }
                for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
                    for key in term[keys].as_array().cloned().unwrap_or_default() {
                        let Some(value) = key.as_str().and_then(|key| labels.get(key)) else { continue };
                        let wanted = json!({"key": key, "operator": operator, "values": [value]});
                        let selector = &mut term["labelSelector"];
                        if !selector["matchExpressions"].is_array() {
                            selector["matchExpressions"] = json!([]);
                        }
                        if let Some(all) = selector["matchExpressions"].as_array_mut() {
                            all.push(wanted);
                        }
                    }
                }
            }
        }
    }
}

fn prepare_create(pod: &mut Value) {
    default(pod);
    merge_label_keys(pod);
    let mut status = json!({"phase": "Pending", "qosClass": resources::qos_class(&pod["spec"])});
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": null,
        }]);
    }
    pod["status"] = status;
    pod["metadata"]["generation"] = 1.into();
}

fn validate(pod: &Value) -> ErrorList {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let is_new = meta::is_new(pod);
    meta::check(pod, true, names::dns_subdomain, |pod, errors| {
        let annotations = pod.get("metadata").get("annotations");
        let cost = annotations.key("controller.kubernetes.io/pod-deletion-cost");
        if cost.is_set() && cost.str().parse::<i32>().is_err() {
            errors.push(cost.invalid("must be a 32bit integer"));
        }
        let spec = pod.get("spec");
        let mirror = annotations.key("kubernetes.io/config.mirror");
        if mirror.is_set() && spec.get("nodeName").is_empty() {
            errors.push(mirror.invalid("must set spec.nodeName if mirror pod annotation is set"));
        }
        pod_spec::check_spec(&spec, Some(pod_name), &[], errors);
        if spec.get("serviceAccountName").is_empty() {
            for volume in spec.get("volumes").items() {
                for source in volume.get("projected").get("sources").items() {
                    let token = source.get("serviceAccountToken");
                    if token.is_set() {
                        errors.push(
                            token.forbidden("must not be specified when serviceAccountName is not set"),
                        );
                    }
                }
            }
        }
        if is_new && !spec.get("ephemeralContainers").is_empty() {
            errors.push(spec.get("ephemeralContainers").forbidden("cannot be set on create"));
        }
        if is_new && !spec.get("nodeName").is_empty() && !spec.get("schedulingGates").is_empty() {
            errors.push(
                spec.get("nodeName").forbidden("cannot be set until all schedulingGates have been cleared"),
            );
        }
    })
}

fn selectable(pod: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    vec![
        ("spec.nodeName", text(&spec["nodeName"])),
        ("spec.host", text(&spec["nodeName"])),
        ("spec.restartPolicy", text(&spec["restartPolicy"])),
        ("spec.schedulerName", text(&spec["schedulerName"])),
        ("spec.serviceAccountName", text(&spec["serviceAccountName"])),
        ("spec.hostNetwork", spec["hostNetwork"].as_bool().unwrap_or(false).to_string()),
        ("status.phase", text(&status["phase"])),
        ("status.podIP", text(&status["podIP"])),
        ("status.podIPs", text(&status["podIP"])),
        ("status.nominatedNodeName", text(&status["nominatedNodeName"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_of_affinity_become_selectors() {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}},
            "matchLabelKeys": ["hash", "absent"], "mismatchLabelKeys": ["tenant"]});
        let mut pod = json!({"metadata": {"labels": {"hash": "1", "tenant": "a"}}, "spec": {"containers": [], "affinity": {
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
        merge_label_keys(&mut pod);
        let term =
            &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(
            term["labelSelector"]["matchExpressions"],
            json!([{"key": "hash", "operator": "In", "values": ["1"]}, {"key": "tenant", "operator": "NotIn", "values": ["a"]}])
        );
    }

    #[test]
    fn a_new_pod_is_pending_with_its_requests() {
        let mut pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}, "spec": {
            "hostNetwork": true,
            "containers": [{"name": "c", "image": "a:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
        }});
        prepare_create(&mut pod);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
        assert_eq!(pod["metadata"]["generation"], 1);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["resources"]["requests"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(container["ports"][0]["hostPort"], 80);
        assert_eq!(pod["spec"]["enableServiceLinks"], true);
    }

    fn errors(spec: Value) -> Vec<String> {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        default(&mut pod);
        validate(&pod).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn bad_pods_are_refused_in_upstreams_words() {
        let c = |more: Value| {
            let mut container = json!({"name": "c", "image": "i"});
            container.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
            json!({"containers": [container]})
        };
        let cases = [
            (json!({"containers": []}), "spec.containers: Required value"),
            (json!({"containers": [{"name": "c"}]}), "spec.containers[0].image: Required value"),
            (
                json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
                "spec.containers[1].name: Duplicate value: \"c\"",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Sometimes"}),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                c(json!({"ports": [{"containerPort": 70000}]})),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                c(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                c(
                    json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}),
                ),
                "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
            ),
            (
                c(
                    json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Stop", "exitCodes": {"operator": "In"}}]}),
                ),
                "spec.containers[0].restartPolicyRules[0].action: Unsupported value: \"Stop\": supported values: \"Restart\", \"RestartAllContainers\"",
            ),
            (
                c(json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]})),
                "spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified",
            ),
            (
                c(
                    json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "Is"}}]}),
                ),
                "spec.containers[0].restartPolicyRules[0].exitCodes.operator: Unsupported value: \"Is\": supported values: \"In\", \"NotIn\"",
            ),
            (
                c(json!({"lifecycle": {"stopSignal": "SIGUSR1"}})),
                "spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`",
            ),
            (
                json!({"os": {"name": "windows"}, "containers": [{"name": "c", "image": "i", "lifecycle": {"stopSignal": "SIGUSR1"}}]}),
                "spec.containers[0].lifecycle.stopSignal: Unsupported value: \"SIGUSR1\": supported values: \"SIGKILL\", \"SIGTERM\"",
            ),
            (
                c(json!({"livenessProbe": {}})),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                c(json!({"livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}})),
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                c(json!({"env": [{"name": "a=b"}]})),
                "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            ),
            (
                c(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]})),
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x",
            ),
            (
                c(json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}})),
                "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "secret": {}}]}),
                "spec.volumes[0].secret.secretName: Required value",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "initContainers": [{"name": "d", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "tolerations": [{"operator": "Equal"}]}),
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "ephemeralContainers": [{"name": "e", "image": "i"}]}),
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ),
        ];
        for (spec, text) in cases {
            assert_eq!(errors(spec), [text]);
        }
        let rich = json!({"initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "lifecycle": {"stopSignal": "SIGRTMIN+15", "preStop": {"sleep": {"seconds": 5}}}, "resources": {"limits": {"cpu": "1"}}}],
            "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "m"}}]}}],
            "os": {"name": "linux"},
            "dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"], "searches": ["a_b.c."]},
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]});
        assert_eq!(errors(rich), Vec::<String>::new());
    }

    #[test]
    fn pod_level_requests_come_from_containers_and_limits() {
        let mut pod = json!({"spec": {
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}],
        }});
        default(&mut pod);
        assert_eq!(pod["spec"]["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
    }

    #[test]
    fn a_status_update_keeps_the_spec() {
        let old = json!({"metadata": {"labels": {"a": "1"}, "ownerReferences": [1]}, "spec": {"x": 1}, "status": {"phase": "Pending"}});
        let mut new =
            json!({"metadata": {"labels": {"a": "2"}}, "spec": {"x": 2}, "status": {"phase": "Running"}});
        (POD.strategy.prepare_status)(&mut new, &old);
        assert_eq!(
            new,
            json!({"metadata": {"labels": {"a": "2"}, "ownerReferences": [1]}, "spec": {"x": 1}, "status": {"phase": "Running"}})
        );
    }
}
