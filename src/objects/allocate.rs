//! Addresses and node ports of Services.
//!
//! There is no table of what is given out: the Services are the table, read under a lock that is
//! held until the write. Deleting a Service is releasing.

use std::{collections::HashSet, net::Ipv4Addr};

use serde_json::{Value, json};

use super::{Error, Objects};
use crate::{
    config::Cidr,
    ids,
    kinds::{FieldError, Kind, remove},
};

/// Upstream's default `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u32> = 30_000..=32_767;
/// Addresses at the beginning of the range that are only given to who asks for them by name.
const STATIC_BAND_MIN: u32 = 16;
const STATIC_BAND_MAX: u32 = 256;

/// Whether objects of this kind get something out of a common pool.
pub fn is_allocated(kind: &Kind) -> bool {
    kind.kind == "Service" && kind.group.is_empty()
}

/// Gives a new Service what it needs.
pub fn create(objects: &Objects, kind: &Kind, service: &mut Value) -> Result<(), Error> {
    let Some(settings) = objects.settings().filter(|_| is_allocated(kind)) else { return Ok(()) };
    let taken = Taken::read(objects, kind, None);
    give(service, settings.service_cidr, &taken)
}

/// Gives, keeps and takes away what a changed Service needs.
pub fn update(objects: &Objects, kind: &Kind, service: &mut Value, old: &Value) -> Result<(), Error> {
    let Some(settings) = objects.settings().filter(|_| is_allocated(kind)) else { return Ok(()) };
    keep(service, old);
    let name = (old["metadata"]["namespace"].as_str(), old["metadata"]["name"].as_str());
    let taken = Taken::read(objects, kind, Some((name.0.unwrap_or_default(), name.1.unwrap_or_default())));
    give(service, settings.service_cidr, &taken)
}

/// What other Services have.
#[derive(Default)]
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    /// Port and protocol.
    ports: HashSet<(u32, String)>,
}

impl Taken {
    fn read(objects: &Objects, kind: &Kind, but: Option<(&str, &str)>) -> Self {
        let mut taken = Self::default();
        for object in objects.list(kind, None).items {
            if but == Some((&object.key.namespace, &object.key.name)) {
                continue;
            }
            let value = object.value();
            let addresses = value["spec"]["clusterIPs"].as_array().into_iter().flatten();
            taken.addresses.extend(addresses.filter_map(|ip| ip.as_str()?.parse::<Ipv4Addr>().ok()));
            let ports = value["spec"]["ports"].as_array().into_iter().flatten();
            taken.ports.extend(ports.filter_map(|port| Some((node_port(port)?, protocol(port)))));
            if let Some(port) = value["spec"]["healthCheckNodePort"].as_u64().filter(|p| *p > 0) {
                taken.ports.insert((port as u32, "TCP".to_owned()));
            }
        }
        taken
    }

    fn port_is_free(&self, port: u32, protocol: &str) -> bool {
        !self.ports.contains(&(port, protocol.to_owned()))
    }
}

fn node_port(port: &Value) -> Option<u32> {
    port["nodePort"].as_u64().filter(|p| *p > 0).map(|p| p as u32)
}

fn protocol(port: &Value) -> String {
    port["protocol"].as_str().unwrap_or("TCP").to_owned()
}

fn service_type(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn needs_address(service: &Value) -> bool {
    service_type(service) != "ExternalName"
}

fn needs_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// Carries over what the client left out, and drops what the new type does not have.
fn keep(service: &mut Value, old: &Value) {
    let is_empty = |value: &Value| value.as_str().unwrap_or_default().is_empty();
    if needs_address(service) && needs_address(old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let absent = service["spec"].get(field).is_none_or(|v| v.is_null() || v == "");
            if absent && let Some(value) = old["spec"].get(field) {
                service["spec"][field] = value.clone();
            }
        }
    } else if !needs_address(service) && needs_address(old) {
        let unchanged = service["spec"]["clusterIP"] == old["spec"]["clusterIP"]
            || is_empty(&service["spec"]["clusterIP"]);
        if unchanged {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
            {
                remove(&mut service["spec"], field);
            }
        }
    }
    let old_ports: Vec<Value> = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let both = needs_node_ports(service) && needs_node_ports(old);
    let dropped = !needs_node_ports(service) && needs_node_ports(old);
    if let Some(ports) = service["spec"]["ports"].as_array_mut() {
        for port in ports {
            let same = |o: &&Value| o["port"] == port["port"] && protocol(o) == protocol(port);
            let before = old_ports.iter().find(same).and_then(node_port);
            if both
                && node_port(port).is_none()
                && let Some(before) = before
            {
                port["nodePort"] = before.into();
            } else if dropped && node_port(port) == before {
                remove(port, "nodePort");
            }
        }
    }
    if needs_health_port(old) && !needs_health_port(service) {
        remove(&mut service["spec"], "healthCheckNodePort");
    }
}

fn give(service: &mut Value, cidr: Cidr, taken: &Taken) -> Result<(), Error> {
    if needs_address(service) {
        give_address(service, cidr, taken)?;
    }
    if needs_node_ports(service) {
        give_ports(service, taken)?;
    }
    if needs_health_port(service) && service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0 {
        service["spec"]["healthCheckNodePort"] = free_port(&HashSet::new(), taken, "TCP")?.into();
    }
    Ok(())
}

/// Refuses what needs IPv6: the range of addresses has only IPv4.
fn refuse_families(service: &Value) -> Result<(), Error> {
    let spec = &service["spec"];
    let no_selector = spec["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    if spec["clusterIP"] == "None" && no_selector {
        return Ok(());
    }
    let policy = &spec["ipFamilyPolicy"];
    if policy == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        return Err(invalid(service, "spec.ipFamilyPolicy", policy.clone(), why.to_owned()));
    }
    let mut families = spec["ipFamilies"].as_array().into_iter().flatten().enumerate();
    match families.find(|(_, family)| *family == "IPv6") {
        Some((i, family)) => {
            let why = "not configured on this cluster".to_owned();
            Err(invalid(service, &format!("spec.ipFamilies[{i}]"), family.clone(), why))
        }
        None => Ok(()),
    }
}

fn give_address(service: &mut Value, cidr: Cidr, taken: &Taken) -> Result<(), Error> {
    refuse_families(service)?;
    let spec = &mut service["spec"];
    let listed = spec["clusterIPs"][0].as_str().unwrap_or_default();
    let given = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).unwrap_or(listed).to_owned();
    let address = if given == "None" {
        given
    } else if given.is_empty() {
        free_address(cidr, taken)?.to_string()
    } else {
        let refuse = |detail: String| invalid(service, "spec.clusterIPs", json!([given]), detail);
        let parsed: Option<Ipv4Addr> = given.parse().ok();
        match parsed {
            Some(ip) if !cidr.contains(ip) => {
                return Err(refuse(format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}"
                )));
            }
            Some(ip) if taken.addresses.contains(&ip) => {
                return Err(refuse(format!("failed to allocate IP {ip}: provided IP is already allocated")));
            }
            _ => given,
        }
    };
    let spec = &mut service["spec"];
    spec["clusterIP"] = address.as_str().into();
    if !spec["clusterIPs"].is_array() {
        spec["clusterIPs"] = json!([address]);
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    if !spec["ipFamilies"].is_array() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    Ok(())
}

/// A free address above the band that is kept for who asks by name; in the band when that is full.
fn free_address(cidr: Cidr, taken: &Taken) -> Result<Ipv4Addr, Error> {
    let size = (1u64 << (32 - cidr.prefix)) as u32;
    let band = (size / 16).clamp(STATIC_BAND_MIN, STATIC_BAND_MAX).min(size / 2);
    // The network's own address and the broadcast address are nobody's.
    let upper = band.max(1)..size - 1;
    let start = u32::from_le_bytes(ids::random_bytes()) % (upper.end - upper.start).max(1);
    let ring = (upper.start + start..upper.end).chain(upper.start..upper.start + start);
    ring.chain(1..upper.start)
        .filter_map(|index| cidr.nth(index))
        .find(|ip| !taken.addresses.contains(ip))
        .ok_or_else(|| Error::Internal("failed to allocate a serviceIP: range is full".to_owned()))
}

fn give_ports(service: &mut Value, taken: &Taken) -> Result<(), Error> {
    let mut own: HashSet<(u32, String)> = HashSet::new();
    let ports: Vec<Value> = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        let path = format!("spec.ports[{index}].nodePort");
        if !NODE_PORTS.contains(&number) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            );
            return Err(invalid(service, &path, number, detail));
        }
        if !taken.port_is_free(number, &protocol(port)) {
            return Err(invalid(service, &path, number, "provided port is already allocated".to_owned()));
        }
        own.insert((number, protocol(port)));
    }
    for (index, port) in ports.iter().enumerate() {
        if node_port(port).is_none() {
            let protocol = protocol(port);
            // One number for TCP and UDP of the same port, as upstream gives it.
            let twin = ports[..index].iter().enumerate().find(|(_, p)| p["port"] == port["port"]);
            let twin = twin.and_then(|(i, _)| node_port(&service["spec"]["ports"][i]));
            let twin =
                twin.filter(|p| taken.port_is_free(*p, &protocol) && !own.contains(&(*p, protocol.clone())));
            let number = match twin {
                Some(number) => number,
                None => free_port(&own, taken, &protocol)?,
            };
            own.insert((number, protocol));
            service["spec"]["ports"][index]["nodePort"] = number.into();
        }
    }
    Ok(())
}

fn free_port(own: &HashSet<(u32, String)>, taken: &Taken, protocol: &str) -> Result<u32, Error> {
    let count = NODE_PORTS.end() - NODE_PORTS.start() + 1;
    let start = u32::from_le_bytes(ids::random_bytes()) % count;
    (0..count)
        .map(|i| NODE_PORTS.start() + (start + i) % count)
        .find(|port| taken.port_is_free(*port, protocol) && !own.contains(&(*port, protocol.to_owned())))
        .ok_or_else(|| Error::Internal("failed to allocate a nodePort: range is full".to_owned()))
}

fn invalid(service: &Value, path: &str, value: impl Into<Value>, detail: String) -> Error {
    Error::Invalid {
        kind: "Service".to_owned(),
        name: service["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        errors: vec![FieldError::invalid(path, value, detail)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr() -> Cidr {
        "10.43.0.0/24".parse().unwrap()
    }

    #[test]
    fn services_get_addresses_and_ports_that_nobody_has() {
        let mut taken = Taken::default();
        for _ in 0..100 {
            let mut service = json!({"spec": {"type": "NodePort",
                "ports": [{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
            give(&mut service, cidr(), &taken).unwrap();
            let ip = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
            assert!(cidr().contains(ip) && taken.addresses.insert(ip));
            assert_eq!(service["spec"]["clusterIPs"], json!([ip.to_string()]));
            let ports = &service["spec"]["ports"];
            assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"]);
            assert!(taken.ports.insert((node_port(&ports[0]).unwrap(), "TCP".to_owned())));
        }
        let mut all = Taken::default();
        all.addresses.extend((0..256).filter_map(|i| cidr().nth(i)));
        assert!(give(&mut json!({"spec": {}}), cidr(), &all).is_err());
    }

    #[test]
    fn what_is_taken_or_out_of_range_is_refused() {
        let mut taken = Taken::default();
        taken.addresses.insert("10.43.0.9".parse().unwrap());
        taken.ports.insert((30_080, "TCP".to_owned()));
        for spec in [
            json!({"clusterIP": "10.43.0.9"}),
            json!({"clusterIP": "10.99.0.1"}),
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]}),
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilies": ["IPv6"]}),
        ] {
            assert!(give(&mut json!({"spec": spec}), cidr(), &taken).is_err(), "{spec}");
        }
        let mut headless = json!({"spec": {"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
        give(&mut headless, cidr(), &taken).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn an_update_keeps_and_drops_by_type() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30_080}]}});
        let mut same = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep(&mut same, &old);
        assert_eq!(same, old);
        let mut internal = old.clone();
        internal["spec"]["type"] = "ClusterIP".into();
        keep(&mut internal, &old);
        assert!(internal["spec"]["ports"][0].get("nodePort").is_none());
        let mut external = old.clone();
        external["spec"]["type"] = "ExternalName".into();
        keep(&mut external, &old);
        assert!(external["spec"].get("clusterIP").is_none());
    }
}
