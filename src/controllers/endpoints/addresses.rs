//! Which pods of a service answer at which addresses and ports.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::super::{owner, pods};
use crate::{kinds::registry, objects::Objects};

/// An address family, as slices name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: &str) -> Self {
        if address.contains(':') { Self::V6 } else { Self::V4 }
    }

    pub fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The families of a service; the primary one first.
pub fn families(service: &Service) -> Vec<Family> {
    let listed = service.spec.as_ref().and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
    let all: Vec<Family> = listed.iter().map(|f| if f == "IPv6" { Family::V6 } else { Family::V4 }).collect();
    if all.is_empty() { vec![Family::V4] } else { all }
}

/// A port that a pod of the service serves. Ordered by name for stable output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    pub protocol: String,
    pub number: i32,
    pub app_protocol: Option<String>,
}

/// One pod behind a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    pub addresses: Vec<String>,
    pub ports: Vec<Port>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub hostname: Option<String>,
    pub node: Option<String>,
    pub target: ObjectReference,
}

impl Backend {
    /// The first address of a family.
    pub fn address(&self, family: Family) -> Option<&str> {
        self.addresses.iter().map(String::as_str).find(|a| Family::of(a) == family)
    }
}

/// The pods that a service selects.
pub fn selected(objects: &Objects, service: &Service) -> Vec<Arc<Pod>> {
    let Some(selector) = super::selector(service) else { return Vec::new() };
    let namespace = owner::namespace(&service.metadata);
    let pods = objects.list(registry::of::<Pod>(), Some(namespace));
    pods.items.iter().filter(|p| selector.matches(|key| p.meta.label(key))).map(|p| p.typed()).collect()
}

/// What the pods offer. Pods without an address or that have ended offer nothing; pods on their
/// way out are included as terminating.
pub fn backends(service: &Service, selected: &[Arc<Pod>]) -> Vec<Backend> {
    let Some(spec) = service.spec.as_ref() else { return Vec::new() };
    let none = Vec::new();
    let service_ports = spec.ports.as_ref().unwrap_or(&none);
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let one = |pod: &Arc<Pod>| {
        let status = pod.status.as_ref()?;
        if pods::is_terminal(pod) {
            return None;
        }
        let addresses: Vec<String> = match status.pod_ips.as_deref() {
            Some(all) if !all.is_empty() => all.iter().map(|a| a.ip.clone()).collect(),
            _ => status.pod_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect(),
        };
        if addresses.is_empty() {
            return None;
        }
        let ports = service_ports.iter().filter_map(|port| resolve(port, pod)).collect();
        let pod_spec = pod.spec.as_ref()?;
        let in_domain = pod_spec.subdomain == service.metadata.name
            && pod.metadata.namespace == service.metadata.namespace;
        let serving = pods::is_ready(pod);
        let terminating = pods::is_deleting(pod);
        Some(Backend {
            addresses,
            ports,
            ready: publish_all || (serving && !terminating),
            serving,
            terminating,
            hostname: pod_spec.hostname.clone().filter(|h| in_domain && !h.is_empty()),
            node: pod_spec.node_name.clone().filter(|n| !n.is_empty()),
            target: ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectReference::default()
            },
        })
    };
    let mut all: Vec<Backend> = selected.iter().filter_map(one).collect();
    all.sort_by(|a, b| a.addresses.cmp(&b.addresses).then_with(|| a.target.uid.cmp(&b.target.uid)));
    all
}

/// The number of a service's target port in a pod; `None` where the pod has no port of the name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let named = |c: &Container| {
                c.ports.iter().flatten().find_map(|p| {
                    let same =
                        p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol;
                    same.then_some(p.container_port)
                })
            };
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers.iter().chain(sidecars).find_map(named)?
        }
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol.to_owned(),
        number,
        app_protocol: port.app_protocol.clone(),
    })
}
