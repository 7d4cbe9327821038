//! The addresses of LoadBalancer services and of Ingresses: those of the ready nodes.
//!
//! Watches: services, Ingresses, nodes. Two services cannot have one port of a node: the older one
//! has it, the other is told so.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{
    core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service, ServiceStatus},
    networking::v1::{Ingress, IngressLoadBalancerIngress, IngressLoadBalancerStatus, IngressStatus},
};

use super::{
    owner,
    plan::{Note, Plan},
    runner::{Controller, Round, Source},
};
use crate::{
    kinds::{
        ingress::{is_ours, not_understood},
        placement,
    },
    objects::Objects,
    store::{Key, Object},
};

const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub struct LoadBalancerController;

fn all(resource: &'static str) -> impl Fn(&Objects, &Object) -> Vec<Key> + Send + Sync {
    move |objects, _| objects.store().list(resource, None).items.iter().map(|o| o.key.clone()).collect()
}

impl Controller for LoadBalancerController {
    fn name(&self) -> &'static str {
        "service-controller"
    }

    fn primary(&self) -> &'static str {
        "services"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("nodes", all("services")),
            // Another service may give a port free.
            Source::new("services", |objects, service| {
                if is_balanced(&service.typed()) { all("services")(objects, service) } else { Vec::new() }
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(service) = objects.get_typed::<Service>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        reconcile(&service, &objects.list_typed(None), &objects.list_typed(None))
    }
}

fn is_balanced(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
        && service.metadata.deletion_timestamp.is_none()
}

/// The addresses by which ready nodes are reached: external ones where a node has any.
fn addresses(nodes: &[Arc<Node>]) -> BTreeSet<String> {
    let ready =
        nodes.iter().filter(|n| placement::is_node_ready(n) && placement::node_label(n, EXCLUDED).is_none());
    let of = |node: &Arc<Node>, kind: &str| -> Vec<String> {
        let all = node.status.as_ref().and_then(|s| s.addresses.as_ref());
        all.into_iter().flatten().filter(|a| a.type_ == kind).map(|a| a.address.clone()).collect()
    };
    ready
        .flat_map(|node| {
            let external = of(node, "ExternalIP");
            if external.is_empty() { of(node, "InternalIP") } else { external }
        })
        .collect()
}

/// The ports that a service takes of every node.
fn ports(service: &Service) -> BTreeSet<(String, i32)> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_ref());
    ports
        .into_iter()
        .flatten()
        .map(|p| (p.protocol.clone().unwrap_or_else(|| "TCP".into()), p.port))
        .collect()
}

fn reconcile(service: &Service, nodes: &[Arc<Node>], services: &[Arc<Service>]) -> Plan {
    let mut plan = Plan::about(service);
    let age = |s: &Service| (s.metadata.creation_timestamp.clone(), s.metadata.uid.clone());
    let own = ports(service);
    let rival = services
        .iter()
        .find(|other| is_balanced(other) && age(other) < age(service) && !ports(other).is_disjoint(&own));
    let wanted = if !is_balanced(service) || rival.is_some() { BTreeSet::new() } else { addresses(nodes) };
    let old = service.status.clone().unwrap_or_default();
    let ingress: Vec<LoadBalancerIngress> = wanted
        .into_iter()
        .map(|ip| LoadBalancerIngress {
            ip: Some(ip),
            ip_mode: Some("VIP".into()),
            ..LoadBalancerIngress::default()
        })
        .collect();
    let had = old.load_balancer.as_ref().and_then(|b| b.ingress.clone()).unwrap_or_default();
    let foreign = service.spec.as_ref().is_some_and(|s| s.load_balancer_class.is_some());
    if had != ingress && !foreign {
        let status = ServiceStatus {
            load_balancer: Some(LoadBalancerStatus { ingress: (!ingress.is_empty()).then_some(ingress) }),
            ..old
        };
        plan.status(service, service.status.as_ref(), &status);
    }
    if let Some(rival) = rival.filter(|_| is_balanced(service)) {
        let (namespace, name) = (owner::namespace(&rival.metadata), owner::name(&rival.metadata));
        plan.event(Note::warning(
            "SyncLoadBalancerFailed",
            format!("Error syncing load balancer: service {namespace}/{name} has the same port of the nodes"),
        ));
    }
    plan
}

const INGRESSES: &str = "ingresses.networking.k8s.io";

/// Keeps the addresses of Ingresses of ours, and says what of them has no effect.
pub struct IngressController;

impl Controller for IngressController {
    fn name(&self) -> &'static str {
        "ingress-controller"
    }

    fn primary(&self) -> &'static str {
        "ingresses.networking.k8s.io"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("nodes", all(INGRESSES)),
            Source::new("ingressclasses.networking.k8s.io", all(INGRESSES)),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(ingress) = objects.get_typed::<Ingress>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        if !is_ours(&ingress, &objects.list_typed(None)) {
            return Plan::default();
        }
        ingress_plan(&ingress, &objects.list_typed(None))
    }
}

fn ingress_plan(ingress: &Ingress, nodes: &[Arc<Node>]) -> Plan {
    let mut plan = Plan::about(ingress);
    let all: Vec<IngressLoadBalancerIngress> = addresses(nodes)
        .into_iter()
        .map(|ip| IngressLoadBalancerIngress { ip: Some(ip), ..IngressLoadBalancerIngress::default() })
        .collect();
    let balancer = IngressLoadBalancerStatus { ingress: (!all.is_empty()).then_some(all) };
    let status = IngressStatus { load_balancer: Some(balancer) };
    plan.status(ingress, ingress.status.as_ref(), &status);
    let vain = not_understood(ingress);
    if !vain.is_empty() {
        let list = vain.join(", ");
        plan.event(Note::warning("UnsupportedAnnotation", format!("annotations without effect: {list}")));
    }
    plan
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_older_service_has_the_port() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}))
        .unwrap();
        let service = |name: &str, created: &str| -> Arc<Service> {
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name, "uid": name, "creationTimestamp": created},
                "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}),
                )
                .unwrap(),
            )
        };
        let services = [service("old", "2026-01-01T00:00:00Z"), service("new", "2026-01-02T00:00:00Z")];
        let nodes = [Arc::new(node)];
        assert_eq!(reconcile(&services[0], &nodes, &services).actions.len(), 1);
        let plan = reconcile(&services[1], &nodes, &services);
        assert_eq!((plan.actions.len(), plan.events[0].reason), (0, "SyncLoadBalancerFailed"));
    }

    #[test]
    fn annotations_without_effect_are_said() {
        let ingress = |name: &str| -> Ingress {
            let key = format!("nginx.ingress.kubernetes.io/{name}");
            serde_json::from_value(json!({"metadata": {"name": "i", "annotations": {key: "x"}}, "spec": {}}))
                .unwrap()
        };
        let plan = ingress_plan(&ingress("auth-url"), &[]);
        assert_eq!(
            plan.events[0].message,
            "annotations without effect: nginx.ingress.kubernetes.io/auth-url"
        );
        assert!(ingress_plan(&ingress("rewrite-target"), &[]).events.is_empty());
    }
}
