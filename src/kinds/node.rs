//! Nodes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, Subresource, addresses,
    at::At,
    columns::{self, AGE, NAME, text, text_or, wide},
    edit::{child, drop_empty, present},
    keep_all_but_status, meta, names,
    quantity::canonicalize_list,
    registry::row,
    resource_names,
    scheduling::check_taints,
};

pub const NODE: Kind = Kind {
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Other("proxy"), Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        // A node registers itself together with its status.
        prepare_create: |_| {},
        prepare_status: |new, old| {
            keep_all_but_status(new, old, true);
            follow_capacity(new, old);
        },
        validate: |node| meta::check(node, false, names::dns_subdomain, check),
        validate_update: |new, old| meta::check_update(new, old, check_change),
        selectable: |node| {
            let unschedulable = node["spec"]["unschedulable"].as_bool().unwrap_or(false);
            vec![("spec.unschedulable", unschedulable.to_string())]
        },
        cells,
        ..Strategy::WITH_STATUS
    },
    ..row("", "v1", "Node", "nodes", "node", "io.k8s.api.core.v1.Node")
};

/// An extended resource that somebody advertises (or takes back) in `capacity` is there for pods: what an
/// upstream node says with its next status.
fn follow_capacity(new: &mut Value, old: &Value) {
    let extended = |node: &Value| -> BTreeMap<String, Value> {
        let all = node["status"]["capacity"].as_object().into_iter().flatten();
        all.filter(|(name, _)| name.contains('/')).map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    let (now, before) = (extended(new), extended(old));
    for name in now.keys().chain(before.keys()) {
        let untouched = new["status"]["allocatable"].get(name) == old["status"]["allocatable"].get(name);
        if now.get(name) == before.get(name) || !untouched {
            continue;
        }
        match now.get(name) {
            Some(amount) => new["status"]["allocatable"][name] = amount.clone(),
            None => super::remove(&mut new["status"]["allocatable"], name),
        }
    }
}

fn default(node: &mut Value) {
    let spec = child(node, "spec");
    drop_empty(spec, &["podCIDR", "podCIDRs", "providerID", "unschedulable", "taints"]);
    // The older, single field and the list say the same.
    if let Some(cidr) = present(spec, "podCIDR").cloned() {
        if spec["podCIDRs"][0] != cidr {
            spec["podCIDRs"] = json!([cidr]);
        }
    } else if let Some(cidr) = spec["podCIDRs"].get(0).cloned() {
        spec["podCIDR"] = cidr;
    } else {
        super::remove(spec, "podCIDRs");
    }
    let Some(status) = present(node, "status") else { return };
    for list in ["capacity", "allocatable"] {
        if let Some(list) = present(status, list) {
            canonicalize_list(list);
        }
    }
    if status["allocatable"].is_null() && !status["capacity"].is_null() {
        status["allocatable"] = status["capacity"].clone();
    }
}

fn check(node: &At<'_>, errors: &mut ErrorList) {
    let spec = node.get("spec");
    check_taints(&spec.get("taints").with_path("metadata.taints"), errors);
    for list in ["capacity", "allocatable"] {
        let list = node.get("status").get(list);
        for (name, _) in list.entries() {
            resource_names::check_amount(name, &list.get(name), errors);
        }
    }
    let cidrs = spec.get("podCIDRs");
    cidrs.items().for_each(|cidr| cidr.check(addresses::cidr, errors));
    if cidrs.len() > 1 && !addresses::one_of_each_family(cidrs.items().map(|c| c.str())) {
        errors.push(cidrs.invalid("may specify no more than one CIDR for each IP family"));
    }
}

fn check_change(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (spec, old_spec) = (new.get("spec"), old.get("spec"));
    for (field, shown) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let (at, had) = (spec.get(field), old_spec.get(field));
        if !had.is_empty() && at.value != had.value {
            errors
                .push(at.forbidden(format!("node updates may not change {shown} except from \"\" to valid")));
        }
    }
    let addresses = new.get("status").get("addresses");
    let mut seen: Vec<&Value> = Vec::new();
    for address in addresses.items() {
        if seen.contains(&address.value) {
            errors.push(FieldError::duplicate(&address.path, address.value.clone()));
        }
        seen.push(address.value);
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "The status of the node"),
    text("Roles", "The roles of the node"),
    AGE,
    text("Version", "status.nodeInfo.kubeletVersion"),
    wide(text("Internal-IP", "status.addresses")),
    wide(text("External-IP", "status.addresses")),
    wide(text("OS-Image", "status.nodeInfo.osImage")),
    wide(text("Kernel-Version", "status.nodeInfo.kernelVersion")),
    wide(text("Container-Runtime", "status.nodeInfo.containerRuntimeVersion")),
];

/// `Ready`, `NotReady,SchedulingDisabled`.
fn status_text(node: &Value) -> String {
    let conditions = node["status"]["conditions"].as_array();
    let ready =
        conditions.into_iter().flatten().find(|c| c["type"] == "Ready").map(|c| c["status"] == "True");
    let text = match ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    };
    let cordoned = node["spec"]["unschedulable"] == true;
    format!("{text}{}", if cordoned { ",SchedulingDisabled" } else { "" })
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn cells(node: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (status, info) = (&node["status"], &node["status"]["nodeInfo"]);
    let address = |kind: &str| {
        let found = status["addresses"].as_array().into_iter().flatten().find(|a| a["type"] == kind);
        found.map_or_else(|| "<none>".into(), |a| a["address"].clone())
    };
    let mut kernel =
        info["kernelVersion"].as_str().filter(|k| !k.is_empty()).unwrap_or("<unknown>").to_owned();
    if let Some(architecture) = info["architecture"].as_str().filter(|a| !a.is_empty()) {
        kernel = format!("{kernel} ({architecture})");
    }
    vec![
        columns::name(node),
        status_text(node).into(),
        roles(node).into(),
        columns::age(node, now).into(),
        text_or(&info["kubeletVersion"], ""),
        address("InternalIP"),
        address("ExternalIP"),
        text_or(&info["osImage"], "<unknown>"),
        kernel.into(),
        text_or(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_its_state_and_roles() {
        let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "False"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
        let cells = cells(&node, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(cells[1..3], [json!("NotReady,SchedulingDisabled"), json!("control-plane,worker")]);
        assert_eq!(cells[4..8], [json!("v1.36.0"), json!("10.0.0.1"), json!("<none>"), json!("<unknown>")]);
    }

    #[test]
    fn advertised_resources_are_allocatable() {
        let node = |capacity: Value, allocatable: Value| json!({"metadata": {"name": "n"}, "status": {"capacity": capacity, "allocatable": allocatable}});
        let plain = node(json!({"cpu": "4"}), json!({"cpu": "3"}));
        let after = |mut new: Value, old: &Value| {
            (NODE.strategy.prepare_status)(&mut new, old);
            new["status"]["allocatable"].clone()
        };
        let with = node(json!({"cpu": "4", "a.b/c": "2"}), json!({"cpu": "3"}));
        assert_eq!(after(with, &plain), json!({"cpu": "3", "a.b/c": "2"}));
        let had = node(json!({"cpu": "4", "a.b/c": "2"}), json!({"cpu": "3", "a.b/c": "2"}));
        let without = node(json!({"cpu": "8"}), json!({"cpu": "3", "a.b/c": "2"}));
        assert_eq!(after(without, &had), json!({"cpu": "3"}));
        // Who says both is believed.
        let both = node(json!({"cpu": "4", "a.b/c": "4"}), json!({"cpu": "3", "a.b/c": "1"}));
        assert_eq!(after(both, &had), json!({"cpu": "3", "a.b/c": "1"}));
    }

    #[test]
    fn the_pod_network_is_given_once() {
        let mut old = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}});
        default(&mut old);
        assert_eq!(old["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
        let mut new = json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.2.0.0/24"]}});
        default(&mut new);
        let texts: Vec<_> =
            (NODE.strategy.validate_update)(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
        );
        let mut bad = new.clone();
        bad["spec"]["taints"] =
            json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}]);
        let texts: Vec<_> = (NODE.strategy.validate)(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.taints[1]: Duplicate value: {\"Key\":\"a\",\"Value\":\"\",\"Effect\":\"NoSchedule\",\"TimeAdded\":null}: taints must be unique by key and effect pair"
            ]
        );
    }
}
