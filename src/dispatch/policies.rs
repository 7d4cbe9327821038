//! NetworkPolicies as the nodes need them: selectors resolved to pods, one item a policy and node.
//!
//! A pod is named by its uid, so that a node can isolate it before the master knows its address.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{items::item, services::protocol};
use crate::{
    kinds::labels::Selector,
    mqtt::messages::{Item, ItemKind},
    net::policy::{Policy, PolicyBlock, PolicyPeers, PolicyPod, PolicyPort, PolicyRule, Ports},
    objects::Objects,
};

/// The items of every node that has pods which a policy selects.
pub fn by_node(objects: &Objects) -> BTreeMap<String, Vec<Item>> {
    let policies = objects.list_typed::<NetworkPolicy>(None);
    if policies.is_empty() {
        return BTreeMap::new();
    }
    let mut pods: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in objects.list_typed::<Pod>(None) {
        if has_network(&pod) {
            pods.entry(pod.metadata.namespace.clone().unwrap_or_default()).or_default().push(pod);
        }
    }
    let world = World { namespaces: objects.list_typed(None), pods };
    let mut found: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    for policy in &policies {
        let meta = &policy.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        for (node, policy) in world.policy(namespace, policy) {
            found.entry(node).or_default().push(item(ItemKind::Policy, namespace, name, &policy));
        }
    }
    found
}

/// Whether policies are about a pod: it has an address of its own, and has it still.
fn has_network(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    spec.host_network != Some(true)
        && spec.node_name.as_ref().is_some_and(|node| !node.is_empty())
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

struct World {
    namespaces: Vec<Arc<Namespace>>,
    /// By namespace.
    pods: BTreeMap<String, Vec<Arc<Pod>>>,
}

impl World {
    /// A policy for every node that has a pod which it selects.
    fn policy(&self, namespace: &str, policy: &NetworkPolicy) -> BTreeMap<String, Policy> {
        let Some(spec) = &policy.spec else { return BTreeMap::new() };
        // A selector that cannot be read was refused by validation; it selects nobody.
        let selector =
            Selector::from_label_selector(spec.pod_selector.as_ref().or(Some(&LabelSelector::default())));
        let Ok(selector) = selector else { return BTreeMap::new() };
        let types: BTreeSet<&str> = spec.policy_types.iter().flatten().map(String::as_str).collect();
        let mut found: BTreeMap<String, Policy> = BTreeMap::new();
        let ports = spec.ingress.iter().flatten().flat_map(|rule| rule.ports.iter().flatten());
        let names = names(ports);
        for pod in self.pods.get(namespace).into_iter().flatten() {
            if selector.matches_map(pod.metadata.labels.as_ref()) {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
                // A node knows its own pods' addresses, and before anybody else.
                let subject = PolicyPod { address: None, ..policy_pod(pod, &names) };
                found.entry(node).or_default().subjects.push(subject);
            }
        }
        if found.is_empty() {
            return found;
        }
        let ingress = types.contains("Ingress").then(|| {
            let rules = spec.ingress.iter().flatten();
            rules.map(|r| self.rule(namespace, r.from.as_deref(), r.ports.as_deref(), false)).collect()
        });
        let egress = types.contains("Egress").then(|| {
            let rules = spec.egress.iter().flatten();
            rules.map(|r| self.rule(namespace, r.to.as_deref(), r.ports.as_deref(), true)).collect()
        });
        for policy in found.values_mut() {
            policy.subjects.sort_by(|a, b| a.uid.cmp(&b.uid));
            policy.ingress.clone_from(&ingress);
            policy.egress.clone_from(&egress);
        }
        found
    }

    fn rule(
        &self,
        namespace: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
        outward: bool,
    ) -> PolicyRule {
        let ports = ports.unwrap_or_default();
        let names = if outward { names(ports.iter()) } else { BTreeSet::new() };
        let peers = peers.filter(|peers| !peers.is_empty()).map(|peers| {
            let mut all = PolicyPeers::default();
            let mut pods = BTreeMap::new();
            for peer in peers {
                if let Some(block) = &peer.ip_block {
                    let except = block.except.clone().unwrap_or_default();
                    all.blocks.push(PolicyBlock { cidr: block.cidr.clone(), except });
                }
                pods.extend(self.selected(namespace, peer).map(|pod| (pod.metadata.uid.clone(), pod)));
            }
            all.pods = pods.into_values().map(|pod| policy_pod(pod, &names)).collect();
            all
        });
        PolicyRule { peers, ports: ports.iter().filter_map(port).collect() }
    }

    /// The pods that a peer's selectors mean: without one for namespaces, those of the policy's own.
    fn selected<'a>(
        &'a self,
        namespace: &'a str,
        peer: &NetworkPolicyPeer,
    ) -> impl Iterator<Item = &'a Arc<Pod>> + use<'a> {
        let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        let everything = LabelSelector::default();
        let pods = Selector::from_label_selector(peer.pod_selector.as_ref().or(Some(&everything)));
        let spaces = match &peer.namespace_selector {
            Some(selector) => {
                let selector = Selector::from_label_selector(Some(selector));
                let fits = |n: &&Arc<Namespace>| {
                    selector.as_ref().is_ok_and(|s| s.matches_map(n.metadata.labels.as_ref()))
                };
                self.namespaces.iter().filter(fits).filter_map(|n| n.metadata.name.as_deref()).collect()
            }
            None => vec![namespace],
        };
        let found = spaces.into_iter().filter_map(|space| self.pods.get(space)).flatten();
        found.filter(move |pod| {
            selects && pods.as_ref().is_ok_and(|s| s.matches_map(pod.metadata.labels.as_ref()))
        })
    }
}

fn policy_pod(pod: &Pod, names: &BTreeSet<String>) -> PolicyPod {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
    let mut ports = BTreeMap::new();
    if let Some(spec) = pod.spec.as_ref().filter(|_| !names.is_empty()) {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        for port in containers.flat_map(|container| container.ports.iter().flatten()) {
            let Some(name) = port.name.as_ref().filter(|name| names.contains(*name)) else { continue };
            let Ok(number) = u16::try_from(port.container_port) else { continue };
            ports.entry(format!("{}/{name}", port.protocol.as_deref().unwrap_or("TCP"))).or_insert(number);
        }
    }
    PolicyPod { uid: pod.metadata.uid.clone().unwrap_or_default(), address, ports }
}

/// The names of ports that are spoken of.
fn names<'a>(ports: impl Iterator<Item = &'a NetworkPolicyPort>) -> BTreeSet<String> {
    ports
        .filter_map(|port| match &port.port {
            Some(IntOrString::String(name)) => Some(name.clone()),
            _ => None,
        })
        .collect()
}

fn port(port: &NetworkPolicyPort) -> Option<PolicyPort> {
    let number = |n: i32| u16::try_from(n).ok();
    let ports = match &port.port {
        None => Ports::Range(0, u16::MAX),
        Some(IntOrString::Int(first)) => {
            Ports::Range(number(*first)?, number(port.end_port.unwrap_or(*first))?)
        }
        Some(IntOrString::String(name)) => Ports::Name(name.clone()),
    };
    Some(PolicyPort { protocol: protocol(port.protocol.as_deref())?, ports })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{clock::SystemClock, kinds::registry, objects::WriteOptions, store::Store};

    async fn create(objects: &Objects, namespace: &str, object: Value) {
        let kind = registry::by_resource(match object["kind"].as_str().unwrap() {
            "Namespace" => "namespaces",
            "Pod" => "pods",
            _ => "networkpolicies.networking.k8s.io",
        });
        objects.create(kind.unwrap(), namespace, object, &WriteOptions::system("test")).await.unwrap();
    }

    #[tokio::test]
    async fn selectors_become_pods() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(Store::open(&dir.path().join("state.db")).unwrap(), Arc::new(SystemClock));
        assert!(by_node(&objects).is_empty());
        for name in ["shop", "ops"] {
            let labels = json!({"team": name});
            create(&objects, "", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})).await;
        }
        for (namespace, name, node, host) in [
            ("shop", "web", "one", false),
            ("shop", "db", "two", false),
            ("shop", "agent", "one", true),
            ("ops", "db", "two", false),
            ("ops", "probe", "two", false),
        ] {
            create(&objects, namespace, json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
                "spec": {"nodeName": node, "hostNetwork": host, "containers": [{"name": "c", "image": "a", "ports": [{"name": "sql", "containerPort": 5432}]}]},
            })).await;
        }
        create(&objects, "shop", json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}},
                                      {"namespaceSelector": {"matchLabels": {"team": "ops"}}, "podSelector": {"matchLabels": {"app": "probe"}}}],
                             "ports": [{"port": "sql"}, {"port": 80, "endPort": 90, "protocol": "UDP"}, {"protocol": "SCTP"}]}],
                "egress": [{"to": [{"namespaceSelector": {}}]}, {}]},
        })).await;
        let uid = |namespace: &str, name: &str| {
            objects.get_typed::<Pod>(namespace, name).unwrap().metadata.uid.clone().unwrap()
        };
        let items = by_node(&objects);
        assert_eq!(items.keys().collect::<Vec<_>>(), ["one", "two"]);
        let policy: Policy = items["one"][0].read().unwrap();
        // The pod in the host's network is nobody's business.
        assert_eq!(policy.subjects.iter().map(|s| s.uid.clone()).collect::<Vec<_>>(), [uid("shop", "web")]);
        assert_eq!(policy.subjects[0].ports.get("TCP/sql"), Some(&5432));
        let uids = |rule: &PolicyRule| -> BTreeSet<String> {
            rule.peers.iter().flat_map(|peers| &peers.pods).map(|pod| pod.uid.clone()).collect()
        };
        let ingress = policy.ingress.unwrap();
        assert_eq!(uids(&ingress[0]), BTreeSet::from([uid("shop", "web"), uid("ops", "probe")]));
        let all = Ports::Range(0, u16::MAX);
        let ports: Vec<_> = ingress[0].ports.iter().map(|p| (p.protocol.name(), p.ports.clone())).collect();
        assert_eq!(ports, [("TCP", Ports::Name("sql".into())), ("UDP", Ports::Range(80, 90)), ("SCTP", all)]);
        let egress = policy.egress.unwrap();
        assert_eq!(uids(&egress[0]).len(), 4, "all pods with a network of their own");
        assert_eq!(egress[1], PolicyRule::default());
    }
}
