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
    sync::Arc,
};

use super::{
    HostPort, Protocol,
    cidr::Cidr,
    plan::Front,
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
    pub fn frontends(self) -> Set {
        match self {
            Self::Address => Set::Services,
            Self::OutsideAddress => Set::OutsideServices,
            Self::Node => Set::NodePorts,
            Self::OutsideNode => Set::OutsideNodePorts,
        }
    }

    /// The map from a frontend and a number to an endpoint.
    pub fn endpoints(self) -> Set {
        match self {
            Self::Address => Set::Endpoints,
            Self::OutsideAddress => Set::OutsideEndpoints,
            Self::Node => Set::NodeEndpoints,
            Self::OutsideNode => Set::OutsideNodeEndpoints,
        }
    }

    /// The map from a frontend to the chain that remembers its clients.
    pub fn sticky(self) -> Set {
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
    /// Who has each frontend.
    pub fronts: BTreeMap<Frontend, Arc<Front>>,
    /// Elements that belong to no frontend alone, or to a port of a pod.
    pub others: BTreeMap<(Set, Key), Value>,
    /// Texts of fixed rules that this kernel does not have.
    pub left_out: BTreeSet<String>,
}

impl Ruleset {
    pub fn add_host_port(&mut self, host: &HostPort) {
        let address = host.host_ip.filter(|address| !address.is_unspecified());
        let set = if address.is_some() { Set::HostAddressPorts } else { Set::HostPorts };
        let frontend = Frontend { address, protocol: host.protocol, port: host.host_port };
        let target = Value::Target(host.pod_ip, host.pod_port);
        self.others.entry((set, Key::Frontend(frontend))).or_insert(target);
        self.add(Set::Hairpin, Key::Pair(host.pod_ip, host.pod_ip));
    }

    fn add(&mut self, set: Set, key: Key) {
        self.others.insert((set, key), Value::Nothing);
    }

    /// Makes the pods of this node be isolated exactly so.
    pub fn set_policies(&mut self, policies: &[PodPolicy]) {
        let own = |set: Set| matches!(set, Set::Isolated(_) | Set::Permitted(_) | Set::Selves);
        self.others.retain(|(set, _), _| !own(*set));
        for pod in policies {
            for (direction, flows) in [(Direction::Ingress, &pod.ingress), (Direction::Egress, &pod.egress)] {
                let Some(flows) = flows else { continue };
                self.add(Set::Isolated(direction), Key::Pod(pod.address));
                self.add(Set::Selves, Key::Pair(pod.address, pod.address));
                for flow in flows {
                    self.add(Set::Permitted(direction), Key::Flow(pod.address, *flow));
                }
            }
        }
    }

    /// All elements, in the order of their sets.
    pub fn elements(&self) -> BTreeMap<&(Set, Key), &Value> {
        let own = self.fronts.values().flat_map(|front| front.elements());
        own.chain(&self.others).collect()
    }

    fn balancers(&self) -> BTreeSet<Balancer> {
        let values = self.fronts.values().flat_map(|front| front.elements());
        let balancers = values.filter_map(|(_, value)| match value {
            Value::Balance(balancer) => Some(*balancer),
            _ => None,
        });
        balancers.collect()
    }

    fn memories(&self) -> BTreeSet<Memory> {
        self.fronts.values().filter_map(|front| front.memory()).collect()
    }

    /// Everything but the memory of clients, for a kernel that refuses this.
    pub fn without_memory(mut self) -> Self {
        for front in self.fronts.values_mut() {
            *front = Arc::new(front.without_memory());
        }
        self
    }

    /// Everything but a fixed rule, for a kernel that refuses this.
    pub fn without_rule(mut self, text: &str) -> Self {
        self.left_out.insert(text.to_owned());
        self
    }

    /// The chains that these services need.
    pub fn own_chains(&self) -> Vec<(String, Vec<Rule>)> {
        let memories = self.memories().into_iter().map(|memory| (memory.chain(), memory.rules()));
        memories.chain(self.balancers().into_iter().map(|b| (b.chain(), b.rules()))).collect()
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
    let unwanted = || {
        rule()
            .contained(FRONTEND, Set::Restricted)
            .not_contained(
                &[Field::Destination, Field::Protocol, Field::DestinationPort, Field::Source],
                Set::Allowed,
            )
            .verdict(Verdict::Drop)
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
                unwanted(),
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
                // The node itself is as much a source as others are, as kube-proxy has it.
                unwanted(),
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
        let all = self.elements();
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
            let mut elements = all.iter().filter(|((of, _), _)| *of == set).peekable();
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
