//! NetworkPolicies.

use serde_json::{Value, json};

use super::{
    ErrorList, FieldError, Kind, Strategy,
    addresses::{self, Cidr},
    at::At,
    columns::{self, AGE, NAME, text},
    containers::{PROTOCOLS, check_port_or_name},
    edit::{child, each, set_default_empty},
    labels,
    meta::{self, check_label_selector},
    names,
    registry::row,
};

pub const NETWORK_POLICY: Kind = Kind {
    short_names: &["netpol"],
    columns: &[NAME, text("Pod-Selector", "spec.podSelector"), AGE],
    strategy: Strategy {
        default,
        validate: |policy| {
            meta::check(policy, true, names::dns_subdomain, |policy, errors| {
                check_spec(&policy.get("spec"), errors);
            })
        },
        cells: |policy, now| {
            let selector = labels::format_json(&policy["spec"]["podSelector"]);
            vec![columns::name(policy), selector.into(), columns::age(policy, now).into()]
        },
        ..Strategy::SPEC_ONLY
    },
    ..row(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
        "io.k8s.api.networking.v1.NetworkPolicy",
    )
};

fn default(policy: &mut Value) {
    let spec = child(policy, "spec");
    child(spec, "podSelector");
    for direction in ["ingress", "egress"] {
        for port in each(spec, direction).flat_map(|rule| each(rule, "ports")) {
            set_default_empty(port, "protocol", "TCP");
        }
    }
    if spec["policyTypes"].as_array().is_none_or(Vec::is_empty) {
        let egress = spec["egress"].as_array().is_some_and(|e| !e.is_empty());
        spec["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    }
}

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    check_label_selector(&spec.get("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.get(direction).items() {
            rule.get("ports").items().for_each(|port| check_port(&port, errors));
            rule.get(peers).items().for_each(|peer| check_peer(&peer, errors));
        }
    }
    let types = spec.get("policyTypes");
    if types.len() > 2 {
        errors.push(types.invalid("may not specify more than two policyTypes"));
        return;
    }
    types.items().for_each(|kind| kind.check_one_of(&["Egress", "Ingress"], errors));
}

fn check_port(port: &At<'_>, errors: &mut ErrorList) {
    port.get("protocol").check_one_of(PROTOCOLS, errors);
    let (first, last) = (port.get("port"), port.get("endPort"));
    if first.is_set() {
        check_port_or_name(&first, errors);
    }
    let Some(end) = last.int() else { return };
    if !first.is_set() {
        errors.push(first.required("must be specified if `endPort` is specified"));
    } else if first.value.is_string() {
        errors.push(last.required("may not be specified when `port` is non-numeric"));
    } else {
        if first.int().is_some_and(|p| end < p) {
            errors.push(last.invalid("must be greater than or equal to `port`"));
        }
        last.check_port(errors);
    }
}

fn check_peer(peer: &At<'_>, errors: &mut ErrorList) {
    let block = peer.get("ipBlock");
    let selectors = ["podSelector", "namespaceSelector"].map(|f| peer.get(f));
    for selector in &selectors {
        check_label_selector(selector, errors);
    }
    let selects = selectors.iter().any(At::is_set);
    if block.is_set() {
        check_block(&block, errors);
    }
    match (block.is_set(), selects) {
        (true, true) => errors.push(peer.forbidden("may not specify both ipBlock and another peer")),
        (false, false) => errors.push(peer.required("must specify a peer")),
        _ => {}
    }
}

fn check_block(block: &At<'_>, errors: &mut ErrorList) {
    let cidr = block.get("cidr");
    if !cidr.check_required(errors) {
        return;
    }
    cidr.check(addresses::cidr, errors);
    let whole = Cidr::parse(cidr.str());
    for except in block.get("except").items() {
        except.check(addresses::cidr, errors);
        let (Some(whole), Some(part)) = (whole, Cidr::parse(except.str())) else { continue };
        if part.prefix <= whole.prefix || !whole.contains(part.address) {
            let detail = "must be a strict subset of `cidr`";
            errors.push(FieldError::invalid(&except.path, except.str(), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_follow_the_rules_and_peers_are_checked() {
        let policy = |peer: Value| {
            let mut policy = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"podSelector": {}, "egress": [{"to": [peer], "ports": [{"port": 53}]}]}});
            default(&mut policy);
            policy
        };
        let good = policy(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}));
        assert_eq!(good["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(good["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!((NETWORK_POLICY.strategy.validate)(&good), []);
        let errors = |peer| -> Vec<String> {
            (NETWORK_POLICY.strategy.validate)(&policy(peer)).iter().map(ToString::to_string).collect()
        };
        assert_eq!(errors(json!({})), ["spec.egress[0].to[0]: Required value: must specify a peer"]);
        assert_eq!(
            errors(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}})),
            [
                "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"
            ]
        );
    }
}
