//! The pod network and the service dataplane of one node.
//!
//! In: a pod's namespace and address; a table of services and of peers. Out: kernel state.
//! Invariants: everything is made over raw netlink sockets, no host tool is called; only objects
//! named `sampan*` and links named `smp*` are touched; applying the same table twice changes nothing.
//! Deliberately absent: Pods, Services as API objects, DNS.

pub mod cidr;
mod conntrack;
pub mod fake;
pub mod names;
mod netlink;
mod nftables;
mod peers;
mod pod;
mod podnet;
mod route;
pub mod routes;
mod rule;
mod ruleset;
mod sys;
mod wire;

use std::{net::Ipv4Addr, path::Path};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use podnet::{Options, PodNet};

/// Another node, and how its pods are reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    pub node: String,
    /// `10.42.1.0/24`.
    pub pod_cidr: String,
    /// The node's own address.
    pub address: Ipv4Addr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// One endpoint of a service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    pub address: Ipv4Addr,
    pub port: u16,
    /// On this node (for the `Local` traffic policies).
    pub local: bool,
}

/// One port of one service, as the dataplane needs it. Backends are the ready ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    /// `namespace/name:port`, for messages.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// The cluster address.
    pub cluster_ips: Vec<Ipv4Addr>,
    /// Load balancer and external addresses.
    pub external_ips: Vec<Ipv4Addr>,
    pub node_port: Option<u16>,
    pub affinity_seconds: Option<u32>,
    pub external_local: bool,
    pub internal_local: bool,
    /// CIDRs that may reach `external_ips`; empty for all.
    pub source_ranges: Vec<String>,
    pub backends: Vec<Backend>,
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
    /// Makes the routes to other nodes' pods be exactly these.
    fn set_peers<'a>(&'a self, peers: &'a [Peer]) -> BoxFuture<'a, Result<(), Error>>;
    /// Makes the dataplane be exactly this.
    fn set_services<'a>(
        &'a self,
        services: &'a [ServicePort],
        host_ports: &'a [HostPort],
    ) -> BoxFuture<'a, Result<(), Error>>;
    /// Removes everything [`Network::start`] and the rest have made.
    fn stop(&self) -> BoxFuture<'_, Result<(), Error>>;
}
