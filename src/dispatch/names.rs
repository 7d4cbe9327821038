//! What the cluster's DNS answers, from Services and EndpointSlices: one item a namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use super::services::Which;
use crate::{
    net::names::{DnsEndpoint, DnsPort, DnsService, DnsTarget},
    objects::Objects,
};

/// The services of every namespace, also of those without any: their pods have names too.
pub fn by_namespace(objects: &Objects, which: Which<'_>) -> BTreeMap<String, Vec<DnsService>> {
    let mut found = BTreeMap::new();
    let slices = which.slices(objects);
    for (namespace, services) in which.with_neighbours(objects) {
        let mut own = Vec::new();
        for service in services {
            let name = service.metadata.name.clone().unwrap_or_default();
            let key = (namespace.clone(), name);
            let of_service = slices.get(&key).into_iter().flatten();
            let of_service: Vec<&EndpointSlice> = of_service.map(AsRef::as_ref).collect();
            if let Some(target) = target(&service, &of_service) {
                own.push(DnsService { namespace: key.0, name: key.1, target });
            }
        }
        own.sort();
        found.insert(namespace, own);
    }
    found
}

fn target(service: &Service, slices: &[&EndpointSlice]) -> Option<DnsTarget> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.as_deref()?.trim_end_matches('.').to_owned();
        return Some(DnsTarget::External { name });
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Some(DnsTarget::Headless { endpoints: endpoints(slices) });
    }
    let addresses: Vec<Ipv4Addr> =
        spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
    if addresses.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten();
    let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port)).collect();
    Some(DnsTarget::Cluster { addresses, ports })
}

fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<DnsPort> {
    Some(DnsPort {
        name: name.unwrap_or_default().to_owned(),
        protocol: protocol.unwrap_or("TCP").to_owned(),
        port: u16::try_from(number).ok()?,
    })
}

/// The endpoints that are ready; the slices of a service that publishes not-ready addresses say
/// that all are.
fn endpoints(slices: &[&EndpointSlice]) -> Vec<DnsEndpoint> {
    let mut found = BTreeSet::new();
    for slice in slices {
        let ports: Vec<DnsPort> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port?))
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            if !endpoint.conditions.as_ref().is_none_or(|c| c.ready.unwrap_or(true)) {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
                let hostname = endpoint.hostname.clone();
                found.insert(DnsEndpoint { address, hostname, ports: ports.clone() });
            }
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn every_type_of_service_has_its_target() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "x"}, "addressType": "IPv4",
            "ports": [{"name": "db", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.42.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.42.0.3"], "hostname": "db-1", "conditions": {"ready": false}},
            ],
        }))
        .unwrap();
        let external = service(json!({"type": "ExternalName", "externalName": "example.org."}));
        assert_eq!(target(&external, &[]), Some(DnsTarget::External { name: "example.org".into() }));
        let headless = service(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
        let Some(DnsTarget::Headless { endpoints }) = target(&headless, &[&slice]) else {
            panic!("headless")
        };
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].hostname.as_deref(), Some("db-0"));
        let cluster = service(json!({"clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"],
            "ports": [{"name": "http", "port": 80}]}));
        let Some(DnsTarget::Cluster { addresses, ports }) = target(&cluster, &[]) else { panic!("cluster") };
        assert_eq!((addresses.len(), ports[0].port), (1, 80));
    }
}
