//! What cluster names mean: the whole table, as it arrives at the DNS of a node.
//!
//! Plain data in canonical form (sorted lists compare equal), made by whoever knows Services and
//! EndpointSlices. Only names are in it that exist; readiness is decided by the maker.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Everything that is answered with authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsTable {
    /// `cluster.local`, without a dot at the end.
    pub domain: String,
    /// The address of the cluster's DNS Service; the name server that the zone itself names.
    #[serde(default)]
    pub dns_address: Option<Ipv4Addr>,
    /// Networks whose addresses nobody else can know names of: pods and services. `10.42.0.0/16`.
    #[serde(default)]
    pub networks: Vec<String>,
    /// All namespaces; pods' names (`1-2-3-4.ns.pod`) exist in these.
    #[serde(default)]
    pub namespaces: Vec<String>,
    #[serde(default)]
    pub services: Vec<DnsService>,
}

/// One Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsService {
    pub namespace: String,
    pub name: String,
    pub target: DnsTarget,
}

/// What a Service's name leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DnsTarget {
    /// Cluster addresses, and the Service's ports.
    Cluster { addresses: Vec<Ipv4Addr>, ports: Vec<DnsPort> },
    /// The endpoints themselves; a name without endpoints does not exist.
    Headless { endpoints: Vec<DnsEndpoint> },
    /// Another name, which may be outside the cluster.
    External { name: String },
}

/// A named port; SRV records need it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsPort {
    /// Empty for an unnamed port.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub port: u16,
}

/// An endpoint of a headless Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsEndpoint {
    pub address: Ipv4Addr,
    /// The pod's `hostname`, if it has one; else its address with dashes is its name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The endpoint's own ports.
    #[serde(default)]
    pub ports: Vec<DnsPort>,
}
