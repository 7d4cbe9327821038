//! The pod network and the service dataplane of one node.
//!
//! In: a pod's namespace and address; a table of services and of peers. Out: kernel state.
//! Invariants: everything is made over raw netlink sockets, no host tool is called; only objects
//! named `sampan*` and links named `smp*` are touched; applying the same table twice changes nothing.
//! Deliberately absent: Pods, Services as API objects, DNS.

mod affinity;
mod beyond;
pub mod cidr;
mod conntrack;
pub mod fake;
mod mtu;
pub mod names;
mod netlink;
mod nftables;
mod peers;
mod plan;
mod pod;
mod podnet;
pub mod policy;
mod route;
pub mod routes;
mod rule;
mod ruleset;
mod sys;
mod watch;
mod wire;

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use podnet::{Options, PodNet};
pub use watch::AddressWatch;

/// Another node, and how its pods are reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    pub node: String,
    /// `10.42.1.0/24`.
    pub pod_cidr: String,
    /// The node's own address.
    pub address: Ipv4Addr,
    /// The address it has beyond the router that it is behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<Ipv4Addr>,
    /// That router passes on what others begin (a port is forwarded), not answers only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub forwarded: bool,
}

impl Peer {
    /// A node that is reached at its own address.
    pub fn new(node: &str, pod_cidr: &str, address: Ipv4Addr) -> Self {
        Self { node: node.to_owned(), pod_cidr: pod_cidr.to_owned(), address, outer: None, forwarded: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// One endpoint of a service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    pub address: Ipv4Addr,
    pub port: u16,
    /// On this node (for the `Local` traffic policies); only the node itself knows.
    #[serde(skip)]
    pub local: bool,
    /// Not ready any more: it ends, and serves until then. Used when there is no other.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ending: bool,
    /// The nodes, and the zones, that its EndpointSlice says it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub for_nodes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub for_zones: Vec<String>,
}

impl Backend {
    /// A ready one.
    pub fn new(address: Ipv4Addr, port: u16, local: bool) -> Self {
        Self { address, port, local, ending: false, for_nodes: Vec::new(), for_zones: Vec::new() }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// One port of one service, as the dataplane needs it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    /// `namespace/name:port`, for messages.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// The cluster address.
    pub cluster_ips: Vec<Ipv4Addr>,
    pub external_ips: Vec<Ipv4Addr>,
    /// The load balancer's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub balancer_ips: Vec<Ipv4Addr>,
    pub node_port: Option<u16>,
    pub affinity_seconds: Option<u32>,
    pub external_local: bool,
    pub internal_local: bool,
    /// CIDRs that may reach `balancer_ips`; empty for all.
    pub source_ranges: Vec<String>,
    /// Where a load balancer asks whether this node has endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_port: Option<u16>,
    pub backends: Vec<Backend>,
}

/// Which node it is that services are seen from.
#[derive(Debug, Clone, Copy)]
pub struct Viewpoint<'a> {
    pub node: &'a str,
    pub zone: &'a str,
    pub pods: cidr::Cidr,
}

impl ServicePort {
    /// A port with a cluster address and nothing more.
    pub fn new(
        name: String,
        protocol: Protocol,
        port: u16,
        cluster_ip: Ipv4Addr,
        backends: Vec<Backend>,
    ) -> Self {
        Self {
            name,
            protocol,
            port,
            cluster_ips: vec![cluster_ip],
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            node_port: None,
            affinity_seconds: None,
            external_local: false,
            internal_local: false,
            source_ranges: Vec::new(),
            health_check_port: None,
            backends,
        }
    }

    /// Says which backends are on the node, and leaves out those that are meant for others, as
    /// kube-proxy does (KEP-2433, KEP-3015): by node if all ready ones say for which nodes they are and
    /// one is for this, otherwise by zone in the same way. The `Local` policies look at all that are
    /// on the node: those stay.
    pub fn see_from(&mut self, here: Viewpoint<'_>) {
        for backend in &mut self.backends {
            backend.local = here.pods.contains(backend.address);
        }
        let chosen = |hints: fn(&Backend) -> &Vec<String>, own: &str| {
            let is_for = |backend: &&Backend| hints(backend).iter().any(|name| name == own);
            let ready = || self.backends.iter().filter(|backend| !backend.ending);
            ready().all(|backend| !hints(backend).is_empty()) && ready().any(|b| is_for(&b))
        };
        let by_node = chosen(|b| &b.for_nodes, here.node);
        let by_zone = !by_node && !here.zone.is_empty() && chosen(|b| &b.for_zones, here.zone);
        if by_node {
            self.backends.retain(|b| b.ending || b.for_nodes.iter().any(|n| n == here.node));
        } else if by_zone {
            self.backends.retain(|b| b.ending || b.local || b.for_zones.iter().any(|z| z == here.zone));
        }
        for backend in &mut self.backends {
            backend.for_nodes.clear();
            backend.for_zones.clear();
        }
    }
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub pod_ip: Ipv4Addr,
    pub pod_port: u16,
}

/// Why kernel state could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation}: {source}")]
    Kernel { operation: String, source: std::io::Error },
    #[error("{0}")]
    Invalid(String),
}

/// Chains of other programs that drop or reject what no rule of theirs lets pass: `ip filter FORWARD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClosedChains {
    /// Of packets on their way through this node.
    pub forward: Vec<String>,
    /// Of packets to this node itself.
    pub input: Vec<String>,
}

/// The closed chains of others in the calling thread's network namespace.
///
/// # Errors
/// The kernel has no nf_tables, or the caller may not ask.
pub fn closed_chains() -> Result<ClosedChains, Error> {
    let mut socket = netlink::Socket::open(netlink::Family::Netfilter)?;
    Ok(nftables::closed_chains(&mut socket)?)
}

/// The network as the node sees it. All calls may be repeated.
pub trait Network: Send + Sync + 'static {
    /// Node-wide set-up: forwarding, routes of the service CIDR, tables, masquerade.
    fn start<'a>(&'a self, pod_cidr: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// Gives the pod behind `netns` the address; brings up its loopback.
    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        netns: &'a Path,
        address: Ipv4Addr,
    ) -> BoxFuture<'a, Result<(), Error>>;
    /// Takes the pod's link and routes away.
    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// Makes the routes to other nodes' pods be exactly these. This node itself may be among them, and
    /// has to be when it is behind a router that translates its address.
    fn set_peers<'a>(&'a self, peers: &'a [Peer]) -> BoxFuture<'a, Result<(), Error>>;
    /// Makes the dataplane be exactly this; returns what of it this kernel cannot do.
    fn set_services<'a>(
        &'a self,
        services: &'a [Arc<ServicePort>],
        host_ports: &'a [HostPort],
    ) -> BoxFuture<'a, Result<Vec<String>, Error>>;
    /// Makes the pods of this node be isolated exactly so, before it returns.
    fn set_policies<'a>(&'a self, policies: &'a [policy::PodPolicy]) -> BoxFuture<'a, Result<(), Error>>;
    /// Nodes beyond a router's address translation that do not answer.
    fn silent_peers(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }
    /// Removes everything [`Network::start`] and the rest have made.
    fn stop(&self) -> BoxFuture<'_, Result<(), Error>>;
}
