//! What the kernel's table `ip sampan` shall be: a pure function of the services.
//!
//! In: [`Scope`], service ports, host ports. Out: a [`Ruleset`] of fixed chains, one chain for each
//! number of endpoints, and the elements of maps; its text form is `nft` syntax.
//!
//! A service is elements, never a chain of its own: the map `services` says which `lbN` chain a
//! frontend has; that chain draws a number below N and looks up `daddr . protocol . port . number`
//! in `endpoints`. So a change of a service is a few elements, and a packet's way is as long with
//! ten thousand services as with one.
//!
//! Four views hold the four ways in: cluster addresses from everywhere; external addresses from
//! outside under `externalTrafficPolicy: Local`; and the same two for ports of the node.
//!
//! Invariants: the same services give the same ruleset, in whatever order they come; where two
//! services claim one frontend, the first by name has it.
//! Deliberately absent: kernel state; IPv6.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use super::{
    Backend, HostPort, Protocol, ServicePort,
    cidr::Cidr,
    policy::{Direction, Flow, PodPolicy},
    rule::{FRONTEND, Field, ORIGINAL_FRONTEND, ORIGINAL_PORT, PORT, Rule, Verdict},
};

/// The name of our table.
pub const TABLE: &str = "sampan";
/// Clients that are remembered for session affinity; more are served by their address's hash.
pub const CLIENTS_MAX: u32 = 65_536;

/// The addresses that the fixed rules speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// All pods of the cluster.
    pub cluster: Cidr,
    /// All cluster addresses of services.
    pub service: Cidr,
    /// The pods of this node; its first address is the node's own.
    pub pods: Cidr,
    /// The cluster's DNS, which is this node itself.
    pub dns: Option<Ipv4Addr>,
}

/// How a packet came to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    /// By an address, from anywhere.
    Address,
    /// By an address, from outside the cluster, to endpoints of this node only.
    OutsideAddress,
    /// By a port of the node, from anywhere.
    Node,
    /// By a port of the node, from outside the cluster, to endpoints of this node only.
    OutsideNode,
}

impl View {
    /// The map from a frontend to its chain.
    fn frontends(self) -> Set {
        match self {
            Self::Address => Set::Services,
            Self::OutsideAddress => Set::OutsideServices,
            Self::Node => Set::NodePorts,
            Self::OutsideNode => Set::OutsideNodePorts,
        }
    }

    /// The map from a frontend and a number to an endpoint.
    fn endpoints(self) -> Set {
        match self {
            Self::Address => Set::Endpoints,
            Self::OutsideAddress => Set::OutsideEndpoints,
            Self::Node => Set::NodeEndpoints,
            Self::OutsideNode => Set::OutsideNodeEndpoints,
        }
    }

    /// The map from a frontend to the chain that remembers its clients.
    fn sticky(self) -> Set {
        match self {
            Self::Address | Self::OutsideAddress => Set::Sticky,
            Self::Node | Self::OutsideNode => Set::StickyPorts,
        }
    }

    fn key(self) -> &'static [Field] {
        match self {
            Self::Address | Self::OutsideAddress => FRONTEND,
            Self::Node | Self::OutsideNode => PORT,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Address => "",
            Self::OutsideAddress => "outside-",
            Self::Node => "node-",
            Self::OutsideNode => "outside-node-",
        }
    }
}

/// The sets and maps of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    Services,
    Endpoints,
    OutsideServices,
    OutsideEndpoints,
    NodePorts,
    NodeEndpoints,
    OutsideNodePorts,
    OutsideNodeEndpoints,
    /// Ports of all the node's addresses that lead to a pod.
    HostPorts,
    /// Ports of one of the node's addresses that lead to a pod.
    HostAddressPorts,
    /// Frontends that only some sources may reach.
    Restricted,
    /// Those sources.
    Allowed,
    /// Pods of this node, which may reach themselves through a service.
    Hairpin,
    /// Endpoints that are not pods.
    Foreign,
    /// Which endpoint a client had last; filled by the kernel, forgotten after a time.
    Affinity,
    /// Frontends whose clients come back to the endpoint they had.
    Sticky,
    StickyPorts,
    /// Pods of this node that are isolated in one direction, and what they may do all the same.
    Isolated(Direction),
    Permitted(Direction),
    /// Isolated pods, which may always reach themselves.
    Selves,
}

/// The types of a set's key fields and of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Address,
    Protocol,
    Port,
    /// A number; `nft` knows no plain integer as a type, `mark` comes nearest.
    Number,
}

/// What a set gives for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    Nothing,
    Verdict,
    /// An address and a port.
    Target,
}

impl Set {
    pub const ALL: [Self; 22] = [
        Self::Services,
        Self::Endpoints,
        Self::OutsideServices,
        Self::OutsideEndpoints,
        Self::NodePorts,
        Self::NodeEndpoints,
        Self::OutsideNodePorts,
        Self::OutsideNodeEndpoints,
        Self::HostPorts,
        Self::HostAddressPorts,
        Self::Restricted,
        Self::Allowed,
        Self::Hairpin,
        Self::Foreign,
        Self::Affinity,
        Self::Sticky,
        Self::StickyPorts,
        Self::Isolated(Direction::Ingress),
        Self::Isolated(Direction::Egress),
        Self::Permitted(Direction::Ingress),
        Self::Permitted(Direction::Egress),
        Self::Selves,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::OutsideServices => "outside-services",
            Self::OutsideEndpoints => "outside-endpoints",
            Self::NodePorts => "node-ports",
            Self::NodeEndpoints => "node-endpoints",
            Self::OutsideNodePorts => "outside-node-ports",
            Self::OutsideNodeEndpoints => "outside-node-endpoints",
            Self::HostPorts => "host-ports",
            Self::HostAddressPorts => "host-address-ports",
            Self::Restricted => "restricted",
            Self::Allowed => "allowed",
            Self::Hairpin => "hairpin",
            Self::Foreign => "foreign",
            Self::Affinity => "affinity",
            Self::Sticky => "sticky",
            Self::StickyPorts => "sticky-ports",
            Self::Isolated(Direction::Ingress) => "isolated-ingress",
            Self::Isolated(Direction::Egress) => "isolated-egress",
            Self::Permitted(Direction::Ingress) => "permitted-ingress",
            Self::Permitted(Direction::Egress) => "permitted-egress",
            Self::Selves => "selves",
        }
    }

    /// The fields of a key.
    pub fn key(self) -> &'static [Type] {
        use Type::{Address, Number, Port, Protocol};
        match self {
            Self::Services
            | Self::OutsideServices
            | Self::HostAddressPorts
            | Self::Restricted
            | Self::Foreign
            | Self::Sticky => &[Address, Protocol, Port],
            Self::Endpoints | Self::OutsideEndpoints => &[Address, Protocol, Port, Number],
            Self::NodePorts | Self::OutsideNodePorts | Self::HostPorts | Self::StickyPorts => {
                &[Protocol, Port]
            }
            Self::NodeEndpoints | Self::OutsideNodeEndpoints => &[Protocol, Port, Number],
            Self::Allowed => &[Address, Protocol, Port, Address],
            Self::Hairpin | Self::Selves => &[Address, Address],
            Self::Isolated(_) => &[Address],
            Self::Affinity | Self::Permitted(_) => &[Address, Address, Protocol, Port],
        }
    }

    pub fn gives(self) -> Gives {
        match self {
            Self::Services
            | Self::OutsideServices
            | Self::NodePorts
            | Self::OutsideNodePorts
            | Self::Sticky
            | Self::StickyPorts => Gives::Verdict,
            Self::Endpoints
            | Self::OutsideEndpoints
            | Self::NodeEndpoints
            | Self::OutsideNodeEndpoints
            | Self::Affinity
            | Self::HostPorts
            | Self::HostAddressPorts => Gives::Target,
            Self::Restricted
            | Self::Allowed
            | Self::Hairpin
            | Self::Foreign
            | Self::Isolated(_)
            | Self::Permitted(_)
            | Self::Selves => Gives::Nothing,
        }
    }

    /// Whether the kernel itself adds elements, which end after a time.
    pub fn dynamic(self) -> bool {
        self == Self::Affinity
    }

    /// Whether fields of a key are ranges.
    pub fn ranged(self) -> bool {
        matches!(self, Self::Allowed | Self::Permitted(_))
    }
}

/// Where a service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// `None` for a port of the node.
    pub address: Option<Ipv4Addr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// An element's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Frontend(Frontend),
    Slot(Frontend, u32),
    /// Sources of this network.
    Source(Frontend, Cidr),
    Pair(Ipv4Addr, Ipv4Addr),
    Pod(Ipv4Addr),
    /// A pod and what it may do.
    Flow(Ipv4Addr, Flow),
}

/// What an element gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Nothing,
    Balance(Balancer),
    Remember(Memory),
    /// No endpoint at all.
    Reject,
    /// Endpoints, but none that the policy allows.
    Drop,
    Target(Ipv4Addr, u16),
}

/// A chain that chooses one of `count` endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Balancer {
    pub view: View,
    /// The same endpoint for the same client.
    pub sticky: bool,
    pub count: u32,
}

impl Balancer {
    pub fn chain(self) -> String {
        let sticky = if self.sticky { "-sticky" } else { "" };
        format!("{}lb{}{sticky}", self.view.prefix(), self.count)
    }

    /// The chain's rules.
    pub fn rules(self) -> Vec<Rule> {
        let Self { view, sticky, count } = self;
        let number = if sticky { Field::Sticky(count) } else { Field::Random(count) };
        let slot: Vec<_> = view.key().iter().copied().chain([number]).collect();
        let any = Rule::new().translate_to(&slot, view.endpoints());
        if !sticky {
            return vec![any];
        }
        let client: Vec<_> = std::iter::once(Field::Source).chain(FRONTEND.iter().copied()).collect();
        vec![Rule::new().translate_to(&client, Set::Affinity), any]
    }
}

/// A chain that remembers where a connection was led, until its client has not come for so long
/// (seconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory(pub u32);

impl Memory {
    pub fn chain(self) -> String {
        format!("remember-{}", self.0)
    }

    /// The chain's rules.
    pub fn rules(self) -> Vec<Rule> {
        vec![Rule::new().remember(Set::Affinity, self.0)]
    }
}

/// A place in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `type filter hook prerouting priority raw`
    RawPrerouting,
    /// `type filter hook forward priority filter`
    Forward,
    /// `type nat hook prerouting priority dstnat`
    Prerouting,
    /// `type nat hook output priority -100`
    Output,
    /// `type nat hook postrouting priority srcnat`
    Postrouting,
}

/// A chain that is there whatever the services are.
#[derive(Debug, Clone)]
pub struct Chain {
    pub name: &'static str,
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// The wanted table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub scope: Scope,
    pub balancers: BTreeSet<Balancer>,
    pub memories: BTreeSet<Memory>,
    pub elements: BTreeMap<(Set, Key), Value>,
    /// Texts of fixed rules that this kernel does not have.
    pub left_out: BTreeSet<String>,
}

/// One client's way, as the kernel remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub client: Ipv4Addr,
    /// Where it asked.
    pub address: Ipv4Addr,
    pub protocol: u8,
    pub port: u16,
    /// Where it was led.
    pub target: (Ipv4Addr, u16),
}

/// Endpoints by the address, the protocol and the port of their frontend.
type TargetsOf = BTreeMap<(Option<Ipv4Addr>, u8, u16), BTreeSet<(Ipv4Addr, u16)>>;

/// Where the clients of each frontend that remembers them may be led.
#[derive(Debug, PartialEq, Eq)]
pub struct Stickiness {
    cluster: Cidr,
    inside: TargetsOf,
    /// Of the views that only outsiders have.
    outside: TargetsOf,
}

impl Stickiness {
    fn of(ruleset: &Ruleset) -> Self {
        let id = |f: &Frontend| (f.address, protocol_number(f.protocol), f.port);
        let mut found =
            Self { cluster: ruleset.scope.cluster, inside: BTreeMap::new(), outside: BTreeMap::new() };
        let sticky: BTreeSet<_> = ruleset
            .elements
            .keys()
            .filter_map(|(set, key)| match key {
                Key::Frontend(frontend) if matches!(set, Set::Sticky | Set::StickyPorts) => {
                    Some(id(frontend))
                }
                _ => None,
            })
            .collect();
        for ((set, key), value) in &ruleset.elements {
            let (Key::Slot(frontend, _), Value::Target(address, port)) = (key, value) else { continue };
            let by_view = match set {
                Set::Endpoints | Set::NodeEndpoints => &mut found.inside,
                _ => &mut found.outside,
            };
            if sticky.contains(&id(frontend)) {
                by_view.entry(id(frontend)).or_default().insert((*address, *port));
            }
        }
        found
    }

    /// What holds after a change by which something remembered may have become wrong; `None` when
    /// nothing can have.
    pub fn lost(old: Option<&Ruleset>, new: &Ruleset) -> Option<Self> {
        let old = old.filter(|old| old.remembers())?;
        let (before, now) = (Self::of(old), Self::of(new));
        let kept = |before: &BTreeMap<_, BTreeSet<_>>, now: &BTreeMap<_, BTreeSet<_>>| {
            before.iter().all(|(frontend, targets)| now.get(frontend).is_some_and(|n| n.is_superset(targets)))
        };
        let narrower = now.outside.keys().any(|frontend| !before.outside.contains_key(frontend));
        let all_kept = kept(&before.inside, &now.inside) && kept(&before.outside, &now.outside) && !narrower;
        (!all_kept).then_some(now)
    }

    /// Whether a client may be led there.
    pub fn is_valid(&self, known: Remembered) -> bool {
        let targets = |address| {
            let id = (address, known.protocol, known.port);
            let outside = self.outside.get(&id).filter(|_| !self.cluster.contains(known.client));
            outside.or_else(|| self.inside.get(&id))
        };
        targets(Some(known.address)).or_else(|| targets(None)).is_some_and(|t| t.contains(&known.target))
    }
}

impl Ruleset {
    /// The table for these services.
    pub fn new(scope: Scope, services: &[ServicePort], host_ports: &[HostPort]) -> Self {
        let mut ruleset = Self {
            scope,
            balancers: BTreeSet::new(),
            memories: BTreeSet::new(),
            elements: BTreeMap::new(),
            left_out: BTreeSet::new(),
        };
        let mut services: Vec<_> = services.iter().collect();
        services.sort();
        for service in services {
            ruleset.add_service(service);
        }
        let mut host_ports: Vec<_> = host_ports.iter().collect();
        host_ports.sort();
        for port in host_ports {
            ruleset.add_host_port(port);
        }
        ruleset
    }

    fn add(&mut self, set: Set, key: Key, value: Value) -> bool {
        let vacant = !self.elements.contains_key(&(set, key));
        if vacant {
            self.elements.insert((set, key), value);
        }
        vacant
    }

    fn add_service(&mut self, service: &ServicePort) {
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
        let frontend = |address| Frontend { address, protocol: service.protocol, port: service.port };
        let sticky = service.affinity_seconds;
        let inside = if service.internal_local { &local } else { &all };
        let dns = self.scope.dns;
        for address in service.cluster_ips.iter().filter(|address| Some(**address) != dns) {
            self.add_frontend(View::Address, frontend(Some(*address)), sticky, inside, &all);
        }
        let addresses = service.external_ips.iter().map(|address| (address, false));
        let addresses = addresses.chain(service.balancer_ips.iter().map(|address| (address, true)));
        for (address, balancer) in addresses {
            let frontend = frontend(Some(*address));
            if !self.add_frontend(View::Address, frontend, sticky, &all, &all) {
                continue;
            }
            if service.external_local && !all.is_empty() {
                self.add_frontend(View::OutsideAddress, frontend, sticky, &local, &all);
            }
            if balancer && !service.source_ranges.is_empty() {
                self.add(Set::Restricted, Key::Frontend(frontend), Value::Nothing);
                for network in disjoint(&service.name, &service.source_ranges) {
                    self.add(Set::Allowed, Key::Source(frontend, network), Value::Nothing);
                }
            }
        }
        if let Some(port) = service.node_port {
            let frontend = Frontend { address: None, protocol: service.protocol, port };
            if self.add_frontend(View::Node, frontend, sticky, &all, &all)
                && service.external_local
                && !all.is_empty()
            {
                self.add_frontend(View::OutsideNode, frontend, sticky, &local, &all);
            }
        }
        for backend in &service.backends {
            if !self.scope.cluster.contains(backend.address) {
                let (address, protocol, port) = (Some(backend.address), service.protocol, backend.port);
                let key = Key::Frontend(Frontend { address, protocol, port });
                self.add(Set::Foreign, key, Value::Nothing);
            } else if backend.local {
                self.add(Set::Hairpin, Key::Pair(backend.address, backend.address), Value::Nothing);
            }
        }
    }

    /// Makes the pods of this node be isolated exactly so.
    pub fn set_policies(&mut self, policies: &[PodPolicy]) {
        let own = |set: Set| matches!(set, Set::Isolated(_) | Set::Permitted(_) | Set::Selves);
        self.elements.retain(|(set, _), _| !own(*set));
        for pod in policies {
            for (direction, flows) in [(Direction::Ingress, &pod.ingress), (Direction::Egress, &pod.egress)] {
                let Some(flows) = flows else { continue };
                self.add(Set::Isolated(direction), Key::Pod(pod.address), Value::Nothing);
                self.add(Set::Selves, Key::Pair(pod.address, pod.address), Value::Nothing);
                for flow in flows {
                    self.add(Set::Permitted(direction), Key::Flow(pod.address, *flow), Value::Nothing);
                }
            }
        }
    }

    /// Returns whether the frontend was free.
    fn add_frontend(
        &mut self,
        view: View,
        frontend: Frontend,
        sticky: Option<u32>,
        endpoints: &[(Ipv4Addr, u16)],
        all: &[(Ipv4Addr, u16)],
    ) -> bool {
        let value = match endpoints.len() {
            0 if all.is_empty() => Value::Reject,
            0 => Value::Drop,
            count => Value::Balance(Balancer { view, sticky: sticky.is_some(), count: count as u32 }),
        };
        if !self.add(view.frontends(), Key::Frontend(frontend), value) {
            return false;
        }
        if let Value::Balance(balancer) = value {
            self.balancers.insert(balancer);
            if let Some(memory) = sticky.map(Memory) {
                self.memories.insert(memory);
                self.add(view.sticky(), Key::Frontend(frontend), Value::Remember(memory));
            }
        }
        for (slot, (address, port)) in (0..).zip(endpoints) {
            self.add(view.endpoints(), Key::Slot(frontend, slot), Value::Target(*address, *port));
        }
        true
    }

    fn add_host_port(&mut self, host: &HostPort) {
        let address = host.host_ip.filter(|address| !address.is_unspecified());
        let set = if address.is_some() { Set::HostAddressPorts } else { Set::HostPorts };
        let frontend = Frontend { address, protocol: host.protocol, port: host.host_port };
        self.add(set, Key::Frontend(frontend), Value::Target(host.pod_ip, host.pod_port));
        self.add(Set::Hairpin, Key::Pair(host.pod_ip, host.pod_ip), Value::Nothing);
    }

    /// Everything but the memory of clients, for a kernel that refuses this.
    pub fn without_memory(mut self) -> Self {
        let unsticky = |balancer: Balancer| Balancer { sticky: false, ..balancer };
        self.memories.clear();
        self.elements.retain(|(set, _), _| !matches!(set, Set::Sticky | Set::StickyPorts));
        for value in self.elements.values_mut() {
            if let Value::Balance(balancer) = value {
                *balancer = unsticky(*balancer);
            }
        }
        self.balancers = self.balancers.into_iter().map(unsticky).collect();
        self
    }

    /// Everything but a fixed rule, for a kernel that refuses this.
    pub fn without_rule(mut self, text: &str) -> Self {
        self.left_out.insert(text.to_owned());
        self
    }

    /// Whether clients are remembered.
    pub fn remembers(&self) -> bool {
        !self.memories.is_empty()
    }

    /// The chains that these services need.
    pub fn own_chains(&self) -> Vec<(String, Vec<Rule>)> {
        let memories = self.memories.iter().map(|memory| (memory.chain(), memory.rules()));
        memories.chain(self.balancers.iter().map(|b| (b.chain(), b.rules()))).collect()
    }

    /// The chains that are there whatever the services are, in the order of their making.
    pub fn chains(&self) -> Vec<Chain> {
        let mut chains = chains(&self.scope);
        for chain in &mut chains {
            chain.rules.retain(|rule| !self.left_out.contains(&rule.text));
        }
        chains
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

/// The rules that do not depend on services.
fn chains(scope: &Scope) -> Vec<Chain> {
    const LOOPBACK: Cidr = Cidr::literal(Ipv4Addr::new(127, 0, 0, 0), 8);
    const MULTICAST: Cidr = Cidr::literal(Ipv4Addr::new(224, 0, 0, 0), 4);
    let Scope { cluster, service, pods, dns } = *scope;
    let own = pods.first();
    let rule = Rule::new;
    let unknown = |rule: Rule| {
        let rule = rule.destination_in(service);
        let rule = match dns {
            Some(dns) => rule.destination_not_in(Cidr::new(dns, 32)),
            None => rule,
        };
        rule.verdict(Verdict::GotoReject)
    };
    vec![
        Chain { name: "reject", hook: None, rules: vec![rule().reject()] },
        Chain {
            name: "raw-prerouting",
            hook: Some(Hook::RawPrerouting),
            // Loopback addresses are routed for the sake of node ports, but not for others.
            rules: vec![rule().input_not_loopback().destination_in(LOOPBACK).verdict(Verdict::Drop)],
        },
        Chain {
            name: "forward",
            hook: Some(Hook::Forward),
            // What the node itself sends or takes does not come this way: probes always arrive.
            rules: vec![
                rule().established().verdict(Verdict::Accept),
                rule().contained(&[Field::Source, Field::Destination], Set::Selves).verdict(Verdict::Accept),
                rule()
                    .contained(&[Field::Source], Set::Isolated(Direction::Egress))
                    .not_contained(
                        &[Field::Source, Field::Destination, Field::Protocol, Field::DestinationPort],
                        Set::Permitted(Direction::Egress),
                    )
                    .verdict(Verdict::Drop),
                rule()
                    .contained(&[Field::Destination], Set::Isolated(Direction::Ingress))
                    .not_contained(
                        &[Field::Destination, Field::Source, Field::Protocol, Field::DestinationPort],
                        Set::Permitted(Direction::Ingress),
                    )
                    .verdict(Verdict::Drop),
            ],
        },
        Chain {
            name: "prerouting",
            hook: Some(Hook::Prerouting),
            rules: vec![
                rule()
                    .contained(FRONTEND, Set::Restricted)
                    .not_contained(
                        &[Field::Destination, Field::Protocol, Field::DestinationPort, Field::Source],
                        Set::Allowed,
                    )
                    .verdict(Verdict::Drop),
                rule().source_not_in(cluster).verdict_of(FRONTEND, Set::OutsideServices),
                rule().verdict_of(FRONTEND, Set::Services),
                unknown(rule()),
                rule().translate_to(FRONTEND, Set::HostAddressPorts),
                rule().destination_local().translate_to(PORT, Set::HostPorts),
                rule().destination_local().source_not_in(cluster).verdict_of(PORT, Set::OutsideNodePorts),
                rule().destination_local().verdict_of(PORT, Set::NodePorts),
            ],
        },
        Chain {
            name: "output",
            hook: Some(Hook::Output),
            rules: vec![
                rule().verdict_of(FRONTEND, Set::Services),
                unknown(rule()),
                rule().translate_to(FRONTEND, Set::HostAddressPorts),
                rule().destination_local().translate_to(PORT, Set::HostPorts),
                rule().destination_local().verdict_of(PORT, Set::NodePorts),
            ],
        },
        Chain {
            name: "postrouting",
            hook: Some(Hook::Postrouting),
            rules: vec![
                rule().translated().verdict_of(ORIGINAL_FRONTEND, Set::Sticky),
                rule().translated().verdict_of(ORIGINAL_PORT, Set::StickyPorts),
                // A pod that reaches itself through a service must not see itself as the sender.
                rule().contained(&[Field::Source, Field::Destination], Set::Hairpin).translate_source(own),
                // Strangers on the way to pods of other nodes: the answers must come back here.
                rule()
                    .translated()
                    .source_not_in(cluster)
                    .destination_in(cluster)
                    .destination_not_in(pods)
                    .translate_source(own),
                rule().source_in(LOOPBACK).destination_in(cluster).translate_source(own),
                rule()
                    .output_not_loopback()
                    .translated()
                    .source_not_in(cluster)
                    .contained(FRONTEND, Set::Foreign)
                    .masquerade(),
                // Pods outside the cluster.
                rule()
                    .output_not_loopback()
                    .source_in(pods)
                    .destination_not_in(cluster)
                    .destination_not_in(MULTICAST)
                    .masquerade(),
            ],
        },
    ]
}

/// Protocol numbers of IANA.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address} . ")?;
        }
        write!(f, "{} . {}", protocol_name(self.protocol), self.port)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(frontend) => frontend.fmt(f),
            Self::Slot(frontend, slot) => write!(f, "{frontend} . {slot:#x}"),
            Self::Source(frontend, network) => write!(f, "{frontend} . {network}"),
            Self::Pair(from, to) => write!(f, "{from} . {to}"),
            Self::Pod(address) => address.fmt(f),
            Self::Flow(pod, flow) => {
                let (first, last) = flow.peers;
                write!(f, "{pod} . {first}-{last}")?;
                let ((first, last), ports) = (flow.protocols, flow.ports);
                write!(f, " . {first}-{last} . {}-{}", ports.0, ports.1)
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Balance(balancer) => write!(f, " : goto {}", balancer.chain()),
            Self::Remember(memory) => write!(f, " : jump {}", memory.chain()),
            Self::Reject => f.write_str(" : goto reject"),
            Self::Drop => f.write_str(" : drop"),
            Self::Target(address, port) => write!(f, " : {address} . {port}"),
        }
    }
}

impl Type {
    /// The type's name in `nft`.
    fn name(self) -> &'static str {
        match self {
            Self::Address => "ipv4_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Number => "mark",
        }
    }
}

impl fmt::Display for Ruleset {
    /// The table as `nft` would print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table ip {TABLE} {{")?;
        for set in Set::ALL {
            let key: Vec<_> = set.key().iter().map(|field| field.name()).collect();
            let (word, value) = match set.gives() {
                Gives::Nothing => ("set", ""),
                Gives::Verdict => ("map", " : verdict"),
                Gives::Target => ("map", " : ipv4_addr . inet_service"),
            };
            writeln!(f, "\t{word} {} {{\n\t\ttype {}{value}", set.name(), key.join(" . "))?;
            if set.ranged() {
                writeln!(f, "\t\tflags interval")?;
            }
            if set.dynamic() {
                writeln!(f, "\t\tsize {CLIENTS_MAX}\n\t\tflags dynamic,timeout")?;
            }
            let mut elements = self.elements.iter().filter(|((of, _), _)| *of == set).peekable();
            if elements.peek().is_some() {
                writeln!(f, "\t\telements = {{")?;
                for ((_, key), value) in elements {
                    writeln!(f, "\t\t\t{key}{value},")?;
                }
                writeln!(f, "\t\t}}")?;
            }
            writeln!(f, "\t}}")?;
        }
        for chain in self.chains() {
            writeln!(f, "\tchain {} {{", chain.name)?;
            match chain.hook {
                None => {}
                Some(Hook::RawPrerouting) => {
                    writeln!(f, "\t\ttype filter hook prerouting priority raw; policy accept;")?;
                }
                Some(Hook::Forward) => {
                    writeln!(f, "\t\ttype filter hook forward priority filter; policy accept;")?;
                }
                Some(Hook::Prerouting) => {
                    writeln!(f, "\t\ttype nat hook prerouting priority dstnat; policy accept;")?;
                }
                Some(Hook::Output) => {
                    writeln!(f, "\t\ttype nat hook output priority -100; policy accept;")?;
                }
                Some(Hook::Postrouting) => {
                    writeln!(f, "\t\ttype nat hook postrouting priority srcnat; policy accept;")?;
                }
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{}", rule.text)?;
            }
            writeln!(f, "\t}}")?;
        }
        for (name, rules) in self.own_chains() {
            writeln!(f, "\tchain {name} {{")?;
            for rule in rules {
                writeln!(f, "\t\t{}", rule.text)?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        Scope {
            cluster: "10.42.0.0/16".parse().unwrap(),
            service: "10.43.0.0/16".parse().unwrap(),
            pods: "10.42.0.0/24".parse().unwrap(),
            dns: Some(Ipv4Addr::new(10, 43, 0, 10)),
        }
    }

    fn address(text: &str) -> Ipv4Addr {
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

    fn service(name: &str, ip: &str, port: u16, endpoints: &[&str]) -> ServicePort {
        ServicePort {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            port,
            cluster_ips: vec![address(ip)],
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            node_port: None,
            affinity_seconds: None,
            external_local: false,
            internal_local: false,
            source_ranges: Vec::new(),
            health_check_port: None,
            backends: backends(endpoints),
        }
    }

    fn lookup(ruleset: &Ruleset, set: Set, frontend: &str) -> Option<String> {
        let mut found = ruleset.elements.iter().filter(|((of, _), _)| *of == set);
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
        let ruleset = Ruleset::new(scope(), &services, &host_ports);
        assert_golden("services.nft", &ruleset.to_string());
    }

    #[test]
    fn the_order_of_services_and_endpoints_does_not_matter() {
        let one = service("a/a:x", "10.43.0.1", 80, &["10.42.0.2:1", "10.42.0.3:1"]);
        let other = service("a/b:x", "10.43.0.2", 80, &["10.42.0.3:1", "10.42.0.2:1", "10.42.0.3:1"]);
        let forth = Ruleset::new(scope(), &[one.clone(), other.clone()], &[]);
        let back = Ruleset::new(scope(), &[other, one], &[]);
        assert_eq!(forth, back);
        assert_eq!(forth.balancers.len(), 1);
    }

    #[test]
    fn a_frontend_claimed_twice_stays_whole() {
        let first = service("a/a:x", "10.43.0.1", 80, &["10.42.0.2:1"]);
        let second = service("a/b:x", "10.43.0.1", 80, &["10.42.0.3:1", "10.42.0.4:1"]);
        let ruleset = Ruleset::new(scope(), &[second, first], &[]);
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
            let ruleset = Ruleset::new(scope(), &[service], &[]);
            assert_eq!(lookup(&ruleset, Set::Services, "10.43.0.1 . tcp . 80").as_deref(), Some(*inside));
            assert_eq!(lookup(&ruleset, Set::OutsideNodePorts, "tcp . 30000").as_deref(), *outside);
        }
    }

    #[test]
    fn clients_forget_only_what_their_service_has_lost() {
        let with = |endpoints: &[&str], local| ServicePort {
            affinity_seconds: Some(60),
            node_port: Some(30000),
            external_local: local,
            ..service("a/a:x", "10.43.0.1", 80, endpoints)
        };
        let ruleset = |port: &ServicePort| Ruleset::new(scope(), std::slice::from_ref(port), &[]);
        let both = with(&["10.42.0.2:1", "10.42.1.2:1"], false);
        let (two, one) = (ruleset(&both), ruleset(&with(&["10.42.1.2:1"], false)));
        assert_eq!(Stickiness::lost(None, &two), None);
        assert_eq!(Stickiness::lost(Some(&one), &two), None, "one more is no loss");
        let known = |client, to: &str, port, target| Remembered {
            client: address(client),
            address: address(to),
            protocol: 6,
            port,
            target: (address(target), 1),
        };
        let cases = |client, target| {
            [known(client, "10.43.0.1", 80, target), known(client, "192.0.2.1", 30000, target)]
        };
        let fewer = Stickiness::lost(Some(&two), &one).unwrap();
        assert_eq!(cases("10.42.0.9", "10.42.0.2").map(|k| fewer.is_valid(k)), [false, false]);
        assert_eq!(cases("10.42.0.9", "10.42.1.2").map(|k| fewer.is_valid(k)), [true, true]);
        let gone = Stickiness::lost(Some(&two), &Ruleset::new(scope(), &[], &[])).unwrap();
        assert_eq!(cases("10.42.0.9", "10.42.1.2").map(|k| gone.is_valid(k)), [false, false]);
        // Outsiders are led to this node's endpoints only, from now on.
        let local = ruleset(&ServicePort { external_local: true, ..both });
        let local = Stickiness::lost(Some(&two), &local).unwrap();
        assert!(!local.is_valid(known("192.0.2.9", "192.0.2.1", 30000, "10.42.1.2")));
        assert!(local.is_valid(known("10.42.1.9", "192.0.2.1", 30000, "10.42.1.2")));
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
            lookup(&Ruleset::new(scope(), std::slice::from_ref(port), &[]), set, key).unwrap_or_default()
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
