//! Addresses and node ports of Services.
//!
//! There is no table of what is given out: the Services are the table, read under a lock that is
//! held until the write. Deleting a Service is releasing. Beside the Services, IPAddresses that
//! somebody made himself hold addresses; those that tell of Services' follow from these
//! (`controllers::service_addresses`). Addresses come from the server's own network first, then from
//! the ServiceCIDRs that are ready, the oldest first.

use std::{collections::HashSet, net::Ipv4Addr};

use serde_json::{Value, json};

use super::{Error, Objects};
use crate::{
    config::{Cidr, PortRange},
    ids,
    kinds::{FieldError, Kind, registry, remove},
};

/// Ports at the beginning of their range that are only given to who asks for them (KEP-3668).
const STATIC_PORTS_MIN: u32 = 16;
const STATIC_PORTS_MAX: u32 = 128;
/// Addresses at the beginning of the range that are only given to who asks for them by name.
const STATIC_BAND_MIN: u32 = 16;
const STATIC_BAND_MAX: u32 = 256;

/// The ServiceCIDR of the server's own network.
pub const DEFAULT_CIDR: &str = "kubernetes";
/// Marks IPAddresses that follow from Services.
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub const MANAGER: &str = "ipallocator.k8s.io";
const NETWORKING: &str = "networking.k8s.io/v1";

/// Whether objects of this kind get something out of a common pool.
pub fn is_allocated(kind: &Kind) -> bool {
    kind.kind == "Service" && kind.group.is_empty()
}

/// Gives a new Service what it needs.
pub fn create(objects: &Objects, kind: &Kind, service: &mut Value) -> Result<(), Error> {
    let Some(settings) = objects.settings().filter(|_| is_allocated(kind)) else { return Ok(()) };
    let name = ["namespace", "name"].map(|f| service["metadata"][f].as_str().unwrap_or_default().to_owned());
    let taken = Taken::read(objects, kind, (&name[0], &name[1]), false);
    give(service, &networks(objects, settings.service_cidr), settings.node_ports, &taken)
}

/// Gives, keeps and takes away what a changed Service needs.
pub fn update(objects: &Objects, kind: &Kind, service: &mut Value, old: &Value) -> Result<(), Error> {
    let Some(settings) = objects.settings().filter(|_| is_allocated(kind)) else { return Ok(()) };
    keep(service, old);
    let name = ["namespace", "name"].map(|f| old["metadata"][f].as_str().unwrap_or_default());
    let mut taken = Taken::read(objects, kind, (name[0], name[1]), true);
    taken.had = node_ports(old).collect();
    give(service, &networks(objects, settings.service_cidr), settings.node_ports, &taken)
}

/// The networks that addresses are given from.
fn networks(objects: &Objects, own: Cidr) -> Vec<Cidr> {
    let Some(kind) = registry::by_type(NETWORKING, "ServiceCIDR") else { return vec![own] };
    let cidrs: Vec<Value> = objects.list(kind, None).items.iter().map(|object| object.value()).collect();
    networks_of(own, cidrs)
}

fn networks_of(own: Cidr, mut cidrs: Vec<Value>) -> Vec<Cidr> {
    let age = |cidr: &Value| {
        ["creationTimestamp", "name"].map(|f| cidr["metadata"][f].as_str().unwrap_or_default().to_owned())
    };
    cidrs.sort_by_key(age);
    let mut found = vec![own];
    for cidr in cidrs {
        let refused = |condition: &Value| condition["type"] == "Ready" && condition["status"] != "True";
        let conditions = cidr["status"]["conditions"].as_array();
        if conditions.into_iter().flatten().any(refused) || !cidr["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let texts = cidr["spec"]["cidrs"].as_array().into_iter().flatten();
        for network in texts.filter_map(|text| text.as_str()?.parse::<Cidr>().ok()) {
            if !found.contains(&network) {
                found.push(network);
            }
        }
    }
    found
}

/// What other Services have.
#[derive(Default)]
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    /// Port and protocol.
    ports: HashSet<(u32, String)>,
    /// Those that the Service itself has: they stay, whatever the range is now.
    had: HashSet<u32>,
}

impl Taken {
    /// `own` is the Service itself, which is among those there are if `exists`.
    fn read(objects: &Objects, kind: &Kind, own: (&str, &str), exists: bool) -> Self {
        let mut taken = Self::default();
        if let Some(kind) = registry::by_type(NETWORKING, "IPAddress") {
            for object in objects.list(kind, None).items {
                taken.reserve(&object.value(), own);
            }
        }
        for object in objects.list(kind, None).items {
            if exists && own == (&object.key.namespace, &object.key.name) {
                continue;
            }
            let value = object.value();
            let addresses = value["spec"]["clusterIPs"].as_array().into_iter().flatten();
            taken.addresses.extend(addresses.filter_map(|ip| ip.as_str()?.parse::<Ipv4Addr>().ok()));
            let ports = value["spec"]["ports"].as_array().into_iter().flatten();
            taken.ports.extend(ports.filter_map(|port| Some((node_port(port)?, protocol(port)))));
            taken.ports.extend(health_port(&value).map(|port| (port, "TCP".to_owned())));
        }
        taken
    }

    /// Notes an IPAddress that somebody made.
    fn reserve(&mut self, address: &Value, own: (&str, &str)) {
        let parent = &address["spec"]["parentRef"];
        let of_own = parent["resource"] == "services"
            && parent["group"].as_str().unwrap_or_default().is_empty()
            && (
                parent["namespace"].as_str().unwrap_or_default(),
                parent["name"].as_str().unwrap_or_default(),
            ) == own;
        if !of_own && address["metadata"]["labels"][MANAGED_BY] != MANAGER {
            let name = address["metadata"]["name"].as_str();
            self.addresses.extend(name.and_then(|name| name.parse::<Ipv4Addr>().ok()));
        }
    }

    fn port_is_free(&self, port: u32, protocol: &str) -> bool {
        !self.ports.contains(&(port, protocol.to_owned()))
    }
}

fn node_port(port: &Value) -> Option<u32> {
    port["nodePort"].as_u64().filter(|p| *p > 0).map(|p| p as u32)
}

fn health_port(service: &Value) -> Option<u32> {
    service["spec"]["healthCheckNodePort"].as_u64().filter(|p| *p > 0).map(|p| p as u32)
}

fn node_ports(service: &Value) -> impl Iterator<Item = u32> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports.filter_map(node_port).chain(health_port(service))
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

fn give(service: &mut Value, networks: &[Cidr], range: PortRange, taken: &Taken) -> Result<(), Error> {
    if needs_address(service) {
        give_address(service, networks, taken)?;
    }
    let mut own: HashSet<(u32, String)> = HashSet::new();
    if needs_node_ports(service) {
        give_ports(service, range, taken, &mut own)?;
    }
    if needs_health_port(service) {
        match health_port(service) {
            None => {
                service["spec"]["healthCheckNodePort"] = free_port(range, &own, taken, "TCP")?.into();
            }
            Some(port) => refuse_port(port, "TCP", range, taken).map_err(|why| {
                Error::Internal(format!("failed to allocate requested HealthCheck NodePort {port}: {why}"))
            })?,
        }
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

fn give_address(service: &mut Value, networks: &[Cidr], taken: &Taken) -> Result<(), Error> {
    refuse_families(service)?;
    let spec = &mut service["spec"];
    let listed = spec["clusterIPs"][0].as_str().unwrap_or_default();
    let given = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).unwrap_or(listed).to_owned();
    let address = if given == "None" {
        given
    } else if given.is_empty() {
        free_address(networks, taken)?.to_string()
    } else {
        let refuse = |detail: String| invalid(service, "spec.clusterIPs", json!([given]), detail);
        let parsed: Option<Ipv4Addr> = given.parse().ok();
        match parsed {
            Some(ip) if !networks.iter().any(|network| network.contains(ip)) => {
                return Err(refuse(format!(
                    "failed to allocate IP {ip}: the provided network does not match the current range"
                )));
            }
            Some(ip) if !networks.iter().any(|network| is_usable(*network, ip)) => {
                let range = networks.iter().find(|network| network.contains(ip)).map(Cidr::to_string);
                return Err(refuse(format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                    range.unwrap_or_default()
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

/// Whether an address of the network can be a Service's: its own and the broadcast address are
/// nobody's.
fn is_usable(network: Cidr, ip: Ipv4Addr) -> bool {
    let size = 1u64 << (32 - network.prefix);
    let index = u64::from(u32::from(ip).wrapping_sub(u32::from(network.address)));
    index > 0 && index < size - 1
}

/// A free address of the first network that has one.
fn free_address(networks: &[Cidr], taken: &Taken) -> Result<Ipv4Addr, Error> {
    let full = || Error::Internal("failed to allocate a serviceIP: range is full".to_owned());
    networks.iter().find_map(|network| free_address_of(*network, taken)).ok_or_else(full)
}

/// A free address above the band that is kept for who asks by name; in the band when that is full.
fn free_address_of(network: Cidr, taken: &Taken) -> Option<Ipv4Addr> {
    let size = (1u64 << (32 - network.prefix)) as u32;
    let band = (size / 16).clamp(STATIC_BAND_MIN, STATIC_BAND_MAX).min(size / 2);
    let upper = band.max(1)..size - 1;
    let start = u32::from_le_bytes(ids::random_bytes()) % (upper.end - upper.start).max(1);
    let ring = (upper.start + start..upper.end).chain(upper.start..upper.start + start);
    ring.chain(1..upper.start).filter_map(|index| network.nth(index)).find(|ip| !taken.addresses.contains(ip))
}

/// Why a Service cannot have the port.
fn refuse_port(port: u32, protocol: &str, range: PortRange, taken: &Taken) -> Result<(), String> {
    if taken.had.contains(&port) {
        return Ok(());
    }
    if !range.contains(port) {
        return Err(format!("provided port is not in the valid range. The range of valid ports is {range}"));
    }
    if !taken.port_is_free(port, protocol) {
        return Err("provided port is already allocated".to_owned());
    }
    Ok(())
}

fn give_ports(
    service: &mut Value,
    range: PortRange,
    taken: &Taken,
    own: &mut HashSet<(u32, String)>,
) -> Result<(), Error> {
    let ports: Vec<Value> = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        if let Err(why) = refuse_port(number, &protocol(port), range, taken) {
            return Err(invalid(service, &format!("spec.ports[{index}].nodePort"), number, why));
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
                None => free_port(range, own, taken, &protocol)?,
            };
            own.insert((number, protocol));
            service["spec"]["ports"][index]["nodePort"] = number.into();
        }
    }
    Ok(())
}

/// A free port above the band that is kept for who asks by number; in the band when that is full.
fn free_port(
    range: PortRange,
    own: &HashSet<(u32, String)>,
    taken: &Taken,
    protocol: &str,
) -> Result<u32, Error> {
    let (first, end) = (u32::from(range.first), u32::from(range.last) + 1);
    let size = end - first;
    let band =
        if size > STATIC_PORTS_MIN { (size / 32).clamp(STATIC_PORTS_MIN, STATIC_PORTS_MAX) } else { 0 };
    let start = first + band + u32::from_le_bytes(ids::random_bytes()) % (size - band);
    (start..end)
        .chain(first + band..start)
        .chain(first..first + band)
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
    use crate::objects::NODE_PORTS;

    fn cidr() -> Cidr {
        "10.43.0.0/24".parse().unwrap()
    }

    #[test]
    fn services_get_addresses_and_ports_that_nobody_has() {
        let mut taken = Taken::default();
        for _ in 0..100 {
            let mut service = json!({"spec": {"type": "NodePort",
                "ports": [{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
            give(&mut service, &[cidr()], NODE_PORTS, &taken).unwrap();
            let ip = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
            assert!(cidr().contains(ip) && taken.addresses.insert(ip));
            assert_eq!(service["spec"]["clusterIPs"], json!([ip.to_string()]));
            let ports = &service["spec"]["ports"];
            assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"]);
            assert!(taken.ports.insert((node_port(&ports[0]).unwrap(), "TCP".to_owned())));
        }
        let mut all = Taken::default();
        all.addresses.extend((0..256).filter_map(|i| cidr().nth(i)));
        assert!(give(&mut json!({"spec": {}}), &[cidr()], NODE_PORTS, &all).is_err());
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
            assert!(give(&mut json!({"spec": spec}), &[cidr()], NODE_PORTS, &taken).is_err(), "{spec}");
        }
        let mut headless = json!({"spec": {"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
        give(&mut headless, &[cidr()], NODE_PORTS, &taken).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn ports_come_from_the_range_its_beginning_last() {
        let range: PortRange = "20000-20047".parse().unwrap();
        let node_port_service = || json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let mut taken = Taken::default();
        let mut given = Vec::new();
        for _ in 0..48 {
            let mut service = node_port_service();
            give(&mut service, &[cidr()], range, &taken).unwrap();
            let port = node_port(&service["spec"]["ports"][0]).unwrap();
            assert!(range.contains(port) && taken.ports.insert((port, "TCP".to_owned())));
            given.push(port);
        }
        // The first sixteen are for who asks for them, until there is nothing else.
        assert!(given[..32].iter().all(|port| *port >= 20_016));
        let full = give(&mut node_port_service(), &[cidr()], range, &taken).unwrap_err().to_string();
        assert!(full.contains("failed to allocate a nodePort: range is full"), "{full}");
        let asked = |port: u32, taken: &Taken| {
            let mut service = node_port_service();
            service["spec"]["ports"][0]["nodePort"] = port.into();
            give(&mut service, &[cidr()], range, taken).map_err(|error| error.to_string())
        };
        for (port, why) in [
            (30_080, "provided port is not in the valid range. The range of valid ports is 20000-20047"),
            (20_000, "provided port is already allocated"),
        ] {
            let said = asked(port, &taken).unwrap_err();
            assert!(
                said.contains(&format!("spec.ports[0].nodePort: Invalid value: {port}: {why}")),
                "{said}"
            );
        }
        // What a Service has it keeps, though the range is another one now.
        taken.had.insert(30_080);
        asked(30_080, &taken).unwrap();
    }

    #[test]
    fn a_balancers_health_port_is_of_the_range() {
        let local = |port: u32| {
            json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": port, "ports": [{"port": 80}]}})
        };
        let mut service = local(0);
        give(&mut service, &[cidr()], NODE_PORTS, &Taken::default()).unwrap();
        let port = health_port(&service).unwrap();
        assert!(NODE_PORTS.contains(port) && node_port(&service["spec"]["ports"][0]) != Some(port));
        let said = give(&mut local(80), &[cidr()], NODE_PORTS, &Taken::default()).unwrap_err().to_string();
        assert!(
            said.contains("failed to allocate requested HealthCheck NodePort 80: provided port is not"),
            "{said}"
        );
    }

    #[test]
    fn further_networks_help_out_and_somebodys_own_addresses_are_theirs() {
        let more = |name: &str, network: &str, status: &str, extra: Value| {
            let mut meta = json!({"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"});
            meta.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"metadata": meta, "spec": {"cidrs": [network]},
                "status": {"conditions": [{"type": "Ready", "status": status}]}})
        };
        let cidrs = vec![
            more("kubernetes", "10.43.0.0/24", "True", json!({})),
            more("z", "10.46.0.0/28", "True", json!({})),
            more("a", "10.45.0.0/28", "False", json!({})),
            more("gone", "10.47.0.0/28", "True", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
            more("six", "fd00::/112", "True", json!({})),
        ];
        let networks = networks_of(cidr(), cidrs);
        let texts: Vec<_> = networks.iter().map(Cidr::to_string).collect();
        assert_eq!(texts, ["10.43.0.0/24", "10.46.0.0/28"]);
        let mut full = Taken::default();
        full.addresses.extend((0..256).filter_map(|i| cidr().nth(i)));
        let address = |service: &mut Value, taken: &Taken| -> Result<String, String> {
            give(service, &networks, NODE_PORTS, taken).map_err(|error| error.to_string())?;
            Ok(service["spec"]["clusterIP"].as_str().unwrap().to_owned())
        };
        assert!(address(&mut json!({"spec": {}}), &full).unwrap().starts_with("10.46.0."));
        let by_name = |ip: &str, taken: &Taken| address(&mut json!({"spec": {"clusterIP": ip}}), taken);
        assert_eq!(by_name("10.46.0.3", &full).unwrap(), "10.46.0.3");
        for (ip, why) in [
            ("10.45.0.3", "the provided network does not match the current range"),
            ("10.46.0.0", "is not in the valid range. The range of valid IPs is 10.46.0.0/28"),
            ("10.46.0.15", "is not in the valid range"),
            ("10.43.0.9", "provided IP is already allocated"),
        ] {
            let said = by_name(ip, &full).unwrap_err();
            assert!(said.contains(why), "{ip}: {said}");
        }
        let mut taken = Taken::default();
        let held = |name: &str, of: &str, labels: Value| {
            json!({"metadata": {"name": name, "labels": labels},
                "spec": {"parentRef": {"resource": "services", "namespace": "ns", "name": of}}})
        };
        taken.reserve(&held("10.43.0.20", "other", json!({})), ("ns", "web"));
        taken.reserve(&held("10.43.0.21", "web", json!({})), ("ns", "web"));
        taken.reserve(&held("10.43.0.22", "other", json!({MANAGED_BY: MANAGER})), ("ns", "web"));
        let held: Vec<_> =
            ["10.43.0.20", "10.43.0.21", "10.43.0.22"].map(|ip| by_name(ip, &taken).is_err()).into();
        assert_eq!(held, [true, false, false]);
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
