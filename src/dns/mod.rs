//! The cluster's DNS on every node.
//!
//! In: a [`DnsTable`] that arrives, queries over UDP and TCP. Out: answers of the cluster's zone from
//! memory; everything else from upstream servers, cached. Invariants: cluster names are answered
//! without any network; no query waits long for a dead upstream; the server never asks itself.
//! Deliberately absent: queries of the API, DNSSEC of the zone, zone transfers.
//! Formats: RFC 1035, 2782 (SRV), 6891 (EDNS); names: Kubernetes' DNS-Based Service Discovery 1.1.0.

mod forward;
mod server;
mod upstream;
mod zone;

use std::net::SocketAddr;

pub use crate::net::names::{DnsEndpoint, DnsPort, DnsService, DnsTable, DnsTarget};
pub use forward::{ForwardOptions, StubDomain};
pub use server::Server;
pub use zone::{Answer, Zone};

/// Why the DNS does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen on {address} ({transport})")]
    Listen { address: SocketAddr, transport: &'static str, source: std::io::Error },
    #[error("the table's {field} {value:?} is not a DNS name")]
    Name { field: &'static str, value: String },
    #[error("the table's network {0:?} is not a CIDR")]
    Network(String),
}
