//! What each service asks of the table, planned alone and kept while the service stays as it is.
//!
//! In: service ports. Out: for each a [`Front`] a frontend, and from all of them a [`Ruleset`], in which
//! what did not change is shared with the one before: two tables are compared by pointers, so that a
//! change costs as much as what changed, and a few steps a service.
//! Invariants: a frontend is whole: of two services that claim one, the first by name has it with
//! all that belongs to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use super::{
    Backend, HostPort, ServicePort,
    cidr::Cidr,
    ruleset::{Balancer, Frontend, Key, Memory, Ruleset, Scope, Set, Value, View},
};

/// An element of a set.
pub type Element = ((Set, Key), Value);

/// Everything that one frontend is, in all views: elements in the order of their sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Front(Vec<Element>);

impl Front {
    /// Of these elements; of two with one key the first counts.
    pub fn of(elements: impl IntoIterator<Item = Element>) -> Self {
        let mut found = BTreeMap::new();
        for (key, value) in elements {
            found.entry(key).or_insert(value);
        }
        Self(found.into_iter().collect())
    }

    pub fn elements(&self) -> impl Iterator<Item = (&(Set, Key), &Value)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn get(&self, key: &(Set, Key)) -> Option<&Value> {
        self.0.binary_search_by(|(known, _)| known.cmp(key)).ok().map(|at| &self.0[at].1)
    }

    /// How its clients are remembered.
    pub fn memory(&self) -> Option<Memory> {
        self.0.iter().find_map(|(_, value)| match value {
            Value::Remember(memory) => Some(*memory),
            _ => None,
        })
    }

    /// The same without that.
    pub fn without_memory(&self) -> Self {
        let kept = self.0.iter().filter(|((set, _), _)| !matches!(set, Set::Sticky | Set::StickyPorts));
        let unsticky = |value: Value| match value {
            Value::Balance(balancer) => Value::Balance(Balancer { sticky: false, ..balancer }),
            other => other,
        };
        Self(kept.map(|(key, value)| (*key, unsticky(*value))).collect())
    }
}

/// A frontend that two tables have differently, in both of them.
pub type Differing<'a> = (Frontend, Option<&'a Front>, Option<&'a Front>);

/// Where `old` and `new` differ; everything when there is no old one.
pub fn differing<'a>(old: Option<&'a Ruleset>, new: &'a Ruleset) -> Vec<Differing<'a>> {
    let mut found = Vec::new();
    let mut old = old.into_iter().flat_map(|old| &old.fronts).peekable();
    for (frontend, front) in &new.fronts {
        while let Some((gone, was)) = old.next_if(|(known, _)| *known < frontend) {
            found.push((*gone, Some(&**was), None));
        }
        match old.next_if(|(known, _)| *known == frontend) {
            Some((_, was)) if was == front => {}
            was => found.push((*frontend, was.map(|(_, was)| &**was), Some(&**front))),
        }
    }
    found.extend(old.map(|(gone, was)| (*gone, Some(&**was), None)));
    found
}

/// What one service port asks for.
#[derive(Debug, Default)]
struct Plan {
    fronts: Vec<(Frontend, Arc<Front>)>,
    /// Elements that other services may ask for as well.
    shared: Vec<(Set, Key)>,
}

impl Plan {
    fn of(scope: &Scope, service: &ServicePort) -> Self {
        // Those that end serve only where there is no ready one (KEP-1669).
        let choose = |fits: fn(&Backend) -> bool| -> Vec<(Ipv4Addr, u16)> {
            let those = |ending: bool| -> BTreeSet<(Ipv4Addr, u16)> {
                let found = service.backends.iter().filter(|b| fits(b) && b.ending == ending);
                found.map(|b| (b.address, b.port)).collect()
            };
            let ready = those(false);
            (if ready.is_empty() { those(true) } else { ready }).into_iter().collect()
        };
        let (all, local) = (choose(|_| true), choose(|backend| backend.local));
        let sticky = service.affinity_seconds;
        let outside = (service.external_local && !all.is_empty()).then_some(&local[..]);
        let mut plan = Self::default();
        let frontend = |address| Frontend { address, protocol: service.protocol, port: service.port };
        let mut add = |frontend, elements: Vec<Element>| {
            plan.fronts.push((frontend, Arc::new(Front::of(elements))));
        };
        let inside = if service.internal_local { &local } else { &all };
        for address in service.cluster_ips.iter().filter(|address| Some(**address) != scope.dns) {
            let frontend = frontend(Some(*address));
            add(frontend, view(View::Address, frontend, sticky, inside, &all));
        }
        let addresses = service.external_ips.iter().map(|address| (address, false));
        let addresses = addresses.chain(service.balancer_ips.iter().map(|address| (address, true)));
        for (address, balancer) in addresses {
            let frontend = frontend(Some(*address));
            let mut elements = view(View::Address, frontend, sticky, &all, &all);
            if let Some(local) = outside {
                elements.extend(view(View::OutsideAddress, frontend, sticky, local, &all));
            }
            if balancer && !service.source_ranges.is_empty() {
                elements.push(((Set::Restricted, Key::Frontend(frontend)), Value::Nothing));
                for network in disjoint(&service.name, &service.source_ranges) {
                    elements.push(((Set::Allowed, Key::Source(frontend, network)), Value::Nothing));
                }
            }
            add(frontend, elements);
        }
        if let Some(port) = service.node_port {
            let frontend = Frontend { address: None, protocol: service.protocol, port };
            let mut elements = view(View::Node, frontend, sticky, &all, &all);
            if let Some(local) = outside {
                elements.extend(view(View::OutsideNode, frontend, sticky, local, &all));
            }
            add(frontend, elements);
        }
        for backend in &service.backends {
            if !scope.cluster.contains(backend.address) {
                let (address, protocol, port) = (Some(backend.address), service.protocol, backend.port);
                plan.shared.push((Set::Foreign, Key::Frontend(Frontend { address, protocol, port })));
            } else if backend.local {
                plan.shared.push((Set::Hairpin, Key::Pair(backend.address, backend.address)));
            }
        }
        plan
    }
}

/// The elements of a frontend in one view.
fn view(
    view: View,
    frontend: Frontend,
    sticky: Option<u32>,
    endpoints: &[(Ipv4Addr, u16)],
    all: &[(Ipv4Addr, u16)],
) -> Vec<Element> {
    let value = match endpoints.len() {
        0 if all.is_empty() => Value::Reject,
        0 => Value::Drop,
        count => Value::Balance(Balancer { view, sticky: sticky.is_some(), count: count as u32 }),
    };
    let mut elements = vec![((view.frontends(), Key::Frontend(frontend)), value)];
    if let (Value::Balance(_), Some(seconds)) = (value, sticky) {
        let remember = Value::Remember(Memory(seconds));
        elements.push(((view.sticky(), Key::Frontend(frontend)), remember));
    }
    for (slot, (address, port)) in (0..).zip(endpoints) {
        elements.push(((view.endpoints(), Key::Slot(frontend, slot)), Value::Target(*address, *port)));
    }
    elements
}

/// The plans of the services there are.
#[derive(Debug, Default)]
pub struct Plans {
    scope: Option<Scope>,
    /// In the order of the services.
    known: Vec<(Arc<ServicePort>, Plan)>,
}

impl Plans {
    /// The table for these services; only those that are new or different are planned.
    pub fn ruleset(
        &mut self,
        scope: Scope,
        services: &[Arc<ServicePort>],
        host_ports: &[HostPort],
    ) -> Ruleset {
        let mut known = std::mem::take(&mut self.known);
        if self.scope.replace(scope) != Some(scope) {
            known.clear();
        }
        let mut known = known.into_iter().peekable();
        let mut services = services.to_vec();
        services.sort();
        for service in services {
            let is_same = |(of, _): &(Arc<ServicePort>, Plan)| *of == service;
            while known.next_if(|other| !is_same(other) && other.0 < service).is_some() {}
            let plan = known.next_if(is_same).map(|(_, plan)| plan);
            let plan = plan.unwrap_or_else(|| Plan::of(&scope, &service));
            self.known.push((service, plan));
        }
        // Of equal keys the last one stays: the first service by name comes last.
        let plans = || self.known.iter().rev().map(|(_, plan)| plan);
        let fronts = plans().flat_map(|plan| plan.fronts.iter().rev().cloned()).collect();
        let shared = plans().flat_map(|plan| &plan.shared).map(|key| (*key, Value::Nothing)).collect();
        let mut ruleset = Ruleset { scope, fronts, others: shared, left_out: BTreeSet::new() };
        let mut host_ports: Vec<_> = host_ports.iter().collect();
        host_ports.sort();
        for port in host_ports {
            ruleset.add_host_port(port);
        }
        ruleset
    }
}

/// The networks of these texts without those that lie in another; what is not a network is left out.
fn disjoint(service: &str, texts: &[String]) -> Vec<Cidr> {
    let mut networks: Vec<Cidr> = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(network) => networks.push(network),
            Err(error) => tracing::warn!(service, %error, "a source range is ignored"),
        }
    }
    networks.sort_by_key(|network| (network.prefix(), *network));
    let mut result: Vec<Cidr> = Vec::new();
    for network in networks {
        if !result.iter().any(|wider| wider.contains(network.first())) {
            result.push(network);
        }
    }
    result
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::net::Protocol;

    /// The table that these services have when nothing is known before.
    pub fn ruleset(scope: Scope, services: &[ServicePort], host_ports: &[HostPort]) -> Ruleset {
        let services: Vec<_> = services.iter().cloned().map(Arc::new).collect();
        Plans::default().ruleset(scope, &services, host_ports)
    }

    pub fn scope() -> Scope {
        Scope {
            cluster: "10.42.0.0/16".parse().unwrap(),
            service: "10.43.0.0/16".parse().unwrap(),
            pods: "10.42.0.0/24".parse().unwrap(),
            dns: Some(Ipv4Addr::new(10, 43, 0, 10)),
        }
    }

    pub fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn backends(texts: &[&str]) -> Vec<Backend> {
        let one = |text: &&str| {
            let (ip, port) = text.split_once(':').unwrap();
            let (ip, port) = (address(ip), port.parse().unwrap());
            Backend::new(ip, port, scope().pods.contains(ip))
        };
        texts.iter().map(one).collect()
    }

    pub fn service(name: &str, ip: &str, port: u16, endpoints: &[&str]) -> ServicePort {
        ServicePort::new(name.to_owned(), Protocol::Tcp, port, address(ip), backends(endpoints))
    }

    fn lookup(ruleset: &Ruleset, set: Set, frontend: &str) -> Option<String> {
        let elements = ruleset.elements();
        let mut found = elements.iter().filter(|((of, _), _)| *of == set);
        found.find(|((_, key), _)| key.to_string() == frontend).map(|(_, value)| value.to_string())
    }

    /// `UPDATE_GOLDEN=1 cargo test` writes the file anew.
    fn assert_golden(name: &str, text: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/net/golden").join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{}", path.display());
    }

    #[test]
    fn the_table_of_every_kind_of_service() {
        let two = ["10.42.0.2:8080", "10.42.1.2:8080"];
        let services = [
            service("default/plain:http", "10.43.0.1", 80, &two),
            ServicePort {
                affinity_seconds: Some(10800),
                node_port: Some(30080),
                ..service("default/sticky:http", "10.43.0.2", 80, &two)
            },
            ServicePort {
                external_ips: vec![address("192.0.2.2")],
                balancer_ips: vec![address("192.0.2.1")],
                node_port: Some(30081),
                external_local: true,
                source_ranges: vec!["203.0.113.0/24".to_owned(), "203.0.113.7/32".to_owned()],
                ..service("default/balanced:https", "10.43.0.3", 443, &two)
            },
            ServicePort {
                protocol: Protocol::Udp,
                internal_local: true,
                ..service("default/away:dns", "10.43.0.4", 53, &["10.42.1.3:53"])
            },
            service("default/empty:http", "10.43.0.5", 80, &[]),
            ServicePort {
                protocol: Protocol::Sctp,
                node_port: Some(30132),
                ..service("default/stream:s", "10.43.0.7", 9899, &two)
            },
            service("default/kubernetes:https", "10.43.0.6", 443, &["192.0.2.1:6443"]),
            ServicePort { protocol: Protocol::Udp, ..service("kube-system/dns", "10.43.0.10", 53, &[]) },
        ];
        let pod_ip = address("10.42.0.9");
        let port = |host_ip, host_port| HostPort {
            protocol: Protocol::Tcp,
            host_ip,
            host_port,
            pod_ip,
            pod_port: 80,
        };
        let host_ports = [port(None, 8080), port(Some(address("192.0.2.1")), 8081)];
        let ruleset = ruleset(scope(), &services, &host_ports);
        assert_golden("services.nft", &ruleset.to_string());
    }

    #[test]
    fn the_order_of_services_and_endpoints_does_not_matter() {
        let one = service("a/a:x", "10.43.0.1", 80, &["10.42.0.2:1", "10.42.0.3:1"]);
        let other = service("a/b:x", "10.43.0.2", 80, &["10.42.0.3:1", "10.42.0.2:1", "10.42.0.3:1"]);
        let forth = ruleset(scope(), &[one.clone(), other.clone()], &[]);
        let back = ruleset(scope(), &[other, one], &[]);
        assert_eq!(forth, back);
        assert_eq!(forth.own_chains().len(), 1);
    }

    #[test]
    fn a_frontend_claimed_twice_stays_whole() {
        let first = service("a/a:x", "10.43.0.1", 80, &["10.42.0.2:1"]);
        let second = service("a/b:x", "10.43.0.1", 80, &["10.42.0.3:1", "10.42.0.4:1"]);
        let ruleset = ruleset(scope(), &[second, first], &[]);
        let chain = lookup(&ruleset, Set::Services, "10.43.0.1 . tcp . 80");
        assert_eq!(chain.as_deref(), Some(" : goto lb1"));
        let endpoint = |slot| lookup(&ruleset, Set::Endpoints, &format!("10.43.0.1 . tcp . 80 . {slot}"));
        assert_eq!(endpoint("0x0").as_deref(), Some(" : 10.42.0.2 . 1"));
        assert_eq!(endpoint("0x1"), None);
    }

    #[test]
    fn policies_choose_among_endpoints() {
        type Case<'a> = (&'a [&'a str], bool, bool, &'a str, Option<&'a str>);
        let cases: &[Case<'_>] = &[
            // endpoints, external_local, internal_local → cluster address, node port from outside
            (&[], true, true, " : goto reject", None),
            (&["10.42.1.2:1"], true, true, " : drop", Some(" : drop")),
            (&["10.42.1.2:1"], false, false, " : goto lb1", None),
            (&["10.42.1.2:1", "10.42.0.2:1"], true, true, " : goto lb1", Some(" : goto outside-node-lb1")),
            (&["10.42.1.2:1", "10.42.0.2:1"], true, false, " : goto lb2", Some(" : goto outside-node-lb1")),
        ];
        for (endpoints, external_local, internal_local, inside, outside) in cases {
            let service = ServicePort {
                external_local: *external_local,
                internal_local: *internal_local,
                node_port: Some(30000),
                ..service("a/a:x", "10.43.0.1", 80, endpoints)
            };
            let ruleset = ruleset(scope(), &[service], &[]);
            assert_eq!(lookup(&ruleset, Set::Services, "10.43.0.1 . tcp . 80").as_deref(), Some(*inside));
            assert_eq!(lookup(&ruleset, Set::OutsideNodePorts, "tcp . 30000").as_deref(), *outside);
        }
    }

    #[test]
    fn the_ending_serve_where_nobody_else_does() {
        let mut all = backends(&["10.42.1.2:1", "10.42.0.2:1"]);
        all[1].ending = true;
        let mut port = ServicePort {
            external_local: true,
            node_port: Some(30000),
            backends: all,
            ..service("a/a:x", "10.43.0.1", 80, &[])
        };
        let slot = |port: &ServicePort, set, key: &str| {
            lookup(&ruleset(scope(), std::slice::from_ref(port), &[]), set, key).unwrap_or_default()
        };
        // From inside the ready one far away, from outside the ending one here.
        assert_eq!(slot(&port, Set::Endpoints, "10.43.0.1 . tcp . 80 . 0x0"), " : 10.42.1.2 . 1");
        assert_eq!(slot(&port, Set::Endpoints, "10.43.0.1 . tcp . 80 . 0x1"), "");
        assert_eq!(slot(&port, Set::OutsideNodeEndpoints, "tcp . 30000 . 0x0"), " : 10.42.0.2 . 1");
        port.backends.remove(0);
        assert_eq!(slot(&port, Set::Endpoints, "10.43.0.1 . tcp . 80 . 0x0"), " : 10.42.0.2 . 1");
    }

    #[test]
    fn hints_choose_only_when_all_have_them_and_one_is_for_here() {
        use crate::net::Viewpoint;
        let here = |zone| Viewpoint { node: "n", zone, pods: scope().pods };
        let seen = |hints: [(&[&str], &[&str]); 2], zone| -> Vec<u8> {
            let mut port = service("a/a:x", "10.43.0.1", 80, &["10.42.1.2:1", "10.42.1.3:1"]);
            for (backend, (nodes, zones)) in port.backends.iter_mut().zip(hints) {
                backend.for_nodes = nodes.iter().map(|n| (*n).to_owned()).collect();
                backend.for_zones = zones.iter().map(|n| (*n).to_owned()).collect();
            }
            port.see_from(here(zone));
            port.backends.iter().map(|b| b.address.octets()[3]).collect()
        };
        assert_eq!(seen([(&[], &["a"]), (&[], &["b"])], "a"), [2]);
        assert_eq!(seen([(&[], &["a"]), (&[], &["b"])], "c"), [2, 3]);
        assert_eq!(seen([(&[], &["a"]), (&[], &[])], "a"), [2, 3]);
        assert_eq!(seen([(&["n"], &["a"]), (&["m"], &["a"])], "a"), [2]);
        assert_eq!(seen([(&["m"], &["a"]), (&["m"], &["b"])], "b"), [3]);
        assert_eq!(seen([(&[], &["a"]), (&[], &["b"])], ""), [2, 3]);
    }

    #[test]
    fn source_ranges_do_not_overlap() {
        let texts = ["10.1.0.0/16", "10.0.0.0/8", "192.0.2.0/24", "nonsense", "10.0.0.0/8"];
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        let networks: Vec<_> = disjoint("a/a:x", &texts).iter().map(Cidr::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "192.0.2.0/24"]);
    }
}
