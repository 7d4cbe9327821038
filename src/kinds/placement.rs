//! Where a pod may run: taints and tolerations, node selectors, host ports
//! (`k8s.io/component-helpers/scheduling`). The scheduler, DaemonSets and the node life cycle
//! decide with this.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

pub const NO_SCHEDULE: &str = "NoSchedule";
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
pub const TAINT_MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
pub const TAINT_DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
pub const TAINT_PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
pub const TAINT_NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
pub const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Whether a toleration tolerates a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        "Lt" | "Gt" => {
            let number = |field: &Option<String>| field.as_deref().and_then(|v| v.parse::<i64>().ok());
            match (number(&taint.value), number(&toleration.value)) {
                (Some(taint), Some(bound)) if toleration.operator.as_deref() == Some("Lt") => taint < bound,
                (Some(taint), Some(bound)) => taint > bound,
                _ => false,
            }
        }
        _ => false,
    }
}

/// The first taint of one of `effects` that none of the tolerations tolerates.
pub fn untolerated<'a>(
    taints: Option<&'a Vec<Taint>>,
    tolerations: Option<&Vec<Toleration>>,
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .into_iter()
        .flatten()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.into_iter().flatten().any(|toleration| tolerates(toleration, taint)))
}

pub fn node_name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

pub fn node_label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

pub fn taints(node: &Node) -> Option<&Vec<Taint>> {
    node.spec.as_ref()?.taints.as_ref()
}

pub fn has_taint(node: &Node, key: &str, effect: &str) -> bool {
    taints(node).into_iter().flatten().any(|t| t.key == key && t.effect == effect)
}

/// The status of a node's condition: `True`, `False`, `Unknown`.
pub fn node_condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

pub fn is_node_ready(node: &Node) -> bool {
    node_condition(node, "Ready") == Some("True")
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    let number = |text: &str| text.parse::<i64>().ok();
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        operator @ ("Gt" | "Lt") => match (value.and_then(number), values.first().and_then(|v| number(v))) {
            (Some(have), Some(than)) if operator == "Gt" => have > than,
            (Some(have), Some(than)) => have < than,
            _ => false,
        },
        _ => false,
    }
}

/// Whether one term selects a node; a term without conditions selects none.
pub fn term_selects(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node_name(node);
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|r| requirement_holds(r, node_label(node, &r.key)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_holds(r, Some(name)))
}

/// Whether any term selects a node.
pub fn selector_selects(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_selects(term, node))
}

/// Whether a pod's `nodeSelector` and required node affinity allow a node.
pub fn affinity_allows(spec: &PodSpec, node: &Node) -> bool {
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    spec.node_selector.iter().flatten().all(|(key, value)| node_label(node, key) == Some(value))
        && required.is_none_or(|selector| selector_selects(selector, node))
}

/// A port of the host that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub ip: Box<str>,
    pub protocol: Box<str>,
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be taken; the unspecified address is all addresses.
    pub fn collides(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// The ports of the host that a pod takes.
pub fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|n| *n > 0)?;
            Some(HostPort {
                ip: port.host_ip.as_deref().unwrap_or_default().into(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
                port: number,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerations_tolerate_as_upstreams_do() {
        let taint =
            Taint { key: "k".into(), value: Some("5".into()), effect: NO_EXECUTE.into(), time_added: None };
        let cases = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "5"}), true),
            (json!({"key": "k", "value": "6"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Lt", "value": "6"}), true),
            (json!({"key": "k", "operator": "Gt", "value": "6"}), false),
        ];
        for (toleration, expected) in cases {
            let typed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&typed, &taint), expected, "{toleration}");
        }
    }

    #[test]
    fn node_affinity_allows_as_upstreams_does() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "4"}}}),
        )
        .unwrap();
        let cases = [
            (json!({"nodeSelector": {"disk": "ssd"}}), true),
            (json!({"nodeSelector": {"disk": "hdd"}}), false),
            (
                affinity(json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["3"]}]})),
                true,
            ),
            (
                affinity(
                    json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}),
                ),
                false,
            ),
            (affinity(json!({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]})), true),
            (
                affinity(
                    json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}),
                ),
                true,
            ),
            (affinity(json!({})), false),
        ];
        for (mut spec, expected) in cases {
            spec["containers"] = json!([]);
            let typed: PodSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(affinity_allows(&typed, &node), expected, "{spec}");
        }
    }

    fn affinity(term: serde_json::Value) -> serde_json::Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
    }
}
