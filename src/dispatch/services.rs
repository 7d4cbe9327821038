//! Services as the nodes' dataplane and environments need them, from Services and EndpointSlices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Namespace, Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};

use crate::{
    kinds::registry,
    net::{Backend, Protocol, ServicePort},
    objects::Objects,
    store::Object,
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The API's own Service, which the environment of every namespace has.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// Services by namespace and name. One without a name stands for its namespace.
pub type Names = BTreeSet<(String, String)>;

/// Of which services something is asked.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    All,
    Of(&'a Names),
}

impl Which<'_> {
    /// What `list` finds in the namespaces of these services: `None` asks for all there are.
    fn in_namespaces<T>(self, list: impl Fn(Option<&str>) -> Vec<T>) -> Vec<T> {
        match self {
            Self::All => list(None),
            Self::Of(names) => {
                let namespaces: BTreeSet<&str> = names.iter().map(|(namespace, _)| &**namespace).collect();
                namespaces.into_iter().flat_map(|namespace| list(Some(namespace))).collect()
            }
        }
    }

    fn services(self, objects: &Objects) -> Vec<Arc<Service>> {
        match self {
            Self::All => objects.list_typed(None),
            Self::Of(names) => names.iter().filter_map(|(ns, name)| objects.get_typed(ns, name)).collect(),
        }
    }

    /// These services, and all others of their namespaces: none for a namespace that there is not.
    pub fn with_neighbours(self, objects: &Objects) -> BTreeMap<String, Vec<Arc<Service>>> {
        let namespaces: Vec<Arc<Namespace>> = self.in_namespaces(|only| match only {
            None => objects.list_typed(None),
            Some(name) => objects.get_typed("", name).into_iter().collect(),
        });
        let names = namespaces.iter().map(|namespace| namespace.metadata.name.clone().unwrap_or_default());
        let mut found: BTreeMap<String, Vec<Arc<Service>>> = names.map(|name| (name, Vec::new())).collect();
        for service in self.in_namespaces(|only| objects.list_typed::<Service>(only)) {
            found.entry(service.metadata.namespace.clone().unwrap_or_default()).or_default().push(service);
        }
        found
    }

    /// EndpointSlices by the namespace and name of their service: of these, and of some more.
    pub fn slices(self, objects: &Objects) -> BTreeMap<(String, String), Vec<Arc<EndpointSlice>>> {
        let kind = registry::of::<EndpointSlice>();
        let mut slices: BTreeMap<(String, String), Vec<_>> = BTreeMap::new();
        for slice in self.in_namespaces(|only| objects.list(kind, only).items) {
            if let Some(key) = service_of(&slice) {
                slices.entry(key).or_default().push(slice.typed());
            }
        }
        slices
    }
}

/// The service of an EndpointSlice.
pub fn service_of(slice: &Object) -> Option<(String, String)> {
    let (_, name) = slice.meta.labels.iter().find(|(label, _)| &**label == SERVICE_NAME)?;
    Some((slice.key.namespace.to_string(), name.to_string()))
}

/// For every service that has an address: namespace, name, ports with their backends. The node a
/// backend is on is not known here: `local` is what the node itself finds by its pod network.
/// `answered` is an address that every node answers itself, without backends.
pub fn ports(objects: &Objects, answered: &str, which: Which<'_>) -> Vec<(String, String, Vec<ServicePort>)> {
    let slices = which.slices(objects);
    let mut found = Vec::new();
    for service in which.services(objects) {
        let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
        if !answered.is_empty() && address == Some(answered) {
            continue;
        }
        let key = (
            service.metadata.namespace.clone().unwrap_or_default(),
            service.metadata.name.clone().unwrap_or_default(),
        );
        let of_service: Vec<&EndpointSlice> =
            slices.get(&key).into_iter().flatten().map(AsRef::as_ref).collect();
        let ports = service_ports(&service, &of_service);
        if !ports.is_empty() {
            found.push((key.0, key.1, ports));
        }
    }
    found
}

fn service_ports(service: &Service, slices: &[&EndpointSlice]) -> Vec<ServicePort> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let addresses = |list: &Option<Vec<String>>| -> Vec<Ipv4Addr> {
        list.iter().flatten().filter_map(|a| a.parse().ok()).collect()
    };
    let cluster_ips = addresses(&spec.cluster_ips);
    if cluster_ips.is_empty() {
        return Vec::new();
    }
    let external_ips = addresses(&spec.external_ips);
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref());
    // An address in the mode `Proxy` is the balancer's own: packets to it have to go there (KEP-1860).
    let balancer_ips: Vec<Ipv4Addr> = balancer
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect();
    let is = |policy: &Option<String>, value: &str| policy.as_deref() == Some(value);
    let affinity_seconds = is(&spec.session_affinity, "ClientIP").then(|| {
        let config =
            spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        config.map_or(10_800, i32::unsigned_abs)
    });
    let name = |port: &str| {
        let meta = &service.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        if port.is_empty() { format!("{namespace}/{name}") } else { format!("{namespace}/{name}:{port}") }
    };
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port))
        else {
            continue;
        };
        let port_name = port.name.as_deref().unwrap_or_default();
        ports.push(ServicePort {
            name: name(port_name),
            protocol,
            port: number,
            cluster_ips: cluster_ips.clone(),
            external_ips: external_ips.clone(),
            balancer_ips: balancer_ips.clone(),
            node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
            affinity_seconds,
            external_local: is(&spec.external_traffic_policy, "Local"),
            internal_local: is(&spec.internal_traffic_policy, "Local"),
            source_ranges: spec.load_balancer_source_ranges.clone().unwrap_or_default(),
            health_check_port: spec
                .health_check_node_port
                .and_then(|p| u16::try_from(p).ok())
                .filter(|p| *p > 0),
            backends: backends(slices, port_name, spec.publish_not_ready_addresses.unwrap_or(false)),
        });
    }
    ports
}

/// A protocol by its name in the API; TCP when none is named.
pub fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The endpoints of one port that serve: the ready ones, and those that do while they end.
pub fn backends(slices: &[&EndpointSlice], port_name: &str, all: bool) -> Vec<Backend> {
    let mut found: BTreeMap<(Ipv4Addr, u16), Backend> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        for port in ports.filter(|p| p.name.as_deref().unwrap_or_default() == port_name) {
            let Some(number) = port.port.and_then(|p| u16::try_from(p).ok()) else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let conditions = endpoint.conditions.as_ref();
                let ready = all || conditions.is_none_or(|c| c.ready.unwrap_or(true));
                let ends = conditions.is_some_and(|c| c.serving == Some(true) && c.terminating == Some(true));
                if !ready && !ends {
                    continue;
                }
                for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                    let mut backend = Backend { ending: !ready, ..Backend::new(address, number, false) };
                    if let Some(hints) = endpoint.hints.as_ref().filter(|_| ready) {
                        backend.for_nodes =
                            hints.for_nodes.iter().flatten().map(|n| n.name.clone()).collect();
                        backend.for_zones =
                            hints.for_zones.iter().flatten().map(|z| z.name.clone()).collect();
                    }
                    let known = found.entry((address, number)).or_insert_with(|| backend.clone());
                    if known.ending && ready {
                        *known = backend;
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

/// The environment that a namespace's services give its pods, and `default/kubernetes` to all
/// (`k8s.io/kubernetes/pkg/kubelet/envvars`): name to value, by namespace.
pub fn environment(objects: &Objects, which: Which<'_>) -> BTreeMap<String, BTreeMap<String, String>> {
    let of = |service: &Service| match (&service.metadata.name, &service.spec) {
        (Some(name), Some(spec)) => variables(name, spec),
        _ => BTreeMap::new(),
    };
    let master = objects.get_typed::<Service>(MASTER.0, MASTER.1).map(|service| of(&service));
    let mut by_namespace = BTreeMap::new();
    for (namespace, services) in which.with_neighbours(objects) {
        let mut all: BTreeMap<String, String> = services.iter().flat_map(|service| of(service)).collect();
        for (name, value) in master.iter().flatten() {
            all.entry(name.clone()).or_insert_with(|| value.clone());
        }
        by_namespace.insert(namespace, all);
    }
    by_namespace
}

/// Whether one of these is in the environment of every namespace.
pub fn are_in_all_environments(names: &Names) -> bool {
    names.iter().any(|(namespace, name)| (&**namespace, &**name) == MASTER)
}

fn variables(name: &str, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return found;
    };
    let Some(first) = spec.ports.as_ref().and_then(|ports| ports.first()) else { return found };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    found.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    found.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            found.insert(format!("{prefix}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            found.insert(format!("{prefix}_PORT"), url.clone());
        }
        let each = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        found.insert(format!("{each}_PROTO"), protocol.to_lowercase());
        found.insert(format!("{each}_PORT"), port.port.to_string());
        found.insert(format!("{each}_ADDR"), ip.to_owned());
        found.insert(each, url);
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(ready: bool, terminating: bool, address: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [address],
                "conditions": {"ready": ready, "serving": true, "terminating": terminating},
            }],
        }))
        .unwrap()
    }

    fn web(extra: serde_json::Value) -> Service {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {
                "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}],
            },
        });
        for (field, value) in extra.as_object().unwrap() {
            service["spec"][field] = value.clone();
        }
        serde_json::from_value(service).unwrap()
    }

    #[test]
    fn a_service_leads_to_its_ready_endpoints() {
        let (a, b) = (slice(true, false, "10.42.0.2"), slice(false, true, "10.42.0.3"));
        let ports = service_ports(&web(json!({})), &[&a, &b]);
        assert_eq!(ports[0].name, "ns/web:http");
        assert_eq!((ports[0].port, ports[0].node_port), (80, Some(30080)));
        let found: Vec<_> = ports[0].backends.iter().map(|b| (b.address.to_string(), b.ending)).collect();
        assert_eq!(found, [("10.42.0.2".to_owned(), false), ("10.42.0.3".to_owned(), true)]);
        let published = service_ports(&web(json!({"publishNotReadyAddresses": true})), &[&b]);
        assert!(!published[0].backends[0].ending);
    }

    #[test]
    fn headless_services_have_no_dataplane() {
        let headless = web(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
        assert!(service_ports(&headless, &[]).is_empty());
    }

    #[test]
    fn affinity_has_upstreams_default() {
        let sticky = web(json!({"sessionAffinity": "ClientIP"}));
        assert_eq!(service_ports(&sticky, &[])[0].affinity_seconds, Some(10_800));
    }

    #[test]
    fn services_become_variables_as_in_docker_links() {
        let service = web(json!({}));
        let env = variables("my-web", service.spec.as_ref().unwrap());
        for (name, value) in [
            ("MY_WEB_SERVICE_HOST", "10.43.0.7"),
            ("MY_WEB_SERVICE_PORT", "80"),
            ("MY_WEB_SERVICE_PORT_HTTP", "80"),
            ("MY_WEB_PORT", "tcp://10.43.0.7:80"),
            ("MY_WEB_PORT_80_TCP", "tcp://10.43.0.7:80"),
            ("MY_WEB_PORT_80_TCP_ADDR", "10.43.0.7"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
}
