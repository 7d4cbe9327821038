//! The Kubernetes API over HTTPS.
//!
//! In: requests. Out: the answers that upstream's API server gives, from `objects`.
//! Invariants: every refusal is a Status object; bodies, headers, connections and watches are
//! bounded; a request is authenticated, authorised, then routed by the table of kinds.
//! Deliberately absent: what the verbs do to objects (`objects`), admission webhooks and aggregation.

mod authn;
mod authz;
mod body;
mod discovery;
mod escalation;
mod handler;
mod health;
mod issue;
mod negotiate;
mod openapi;
mod patching;
pub mod pki;
mod render;
mod reply;
mod request;
mod reviews;
mod select;
mod server;
mod status;
mod streaming;
mod subresources;
pub mod tls;
mod usage;
mod verbs;
mod watching;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

pub use server::Server;
use tokio_util::task::TaskTracker;

use crate::{config::Cidr, objects::Objects, streams::NodeStreams, tasks::CancellationToken, usage::Table};

/// What the API server is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `pki/`.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Further names and addresses of the serving certificate.
    pub tls_san: Vec<String>,
    /// Addresses of Services; the first is `default/kubernetes`.
    pub service_cidr: Cidr,
    /// `cluster.local`
    pub cluster_domain: String,
}

/// Why the API server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// What all requests share.
struct Api {
    pub objects: Objects,
    pub time: tls::TrustedTime,
    pub metrics: health::Metrics,
    /// Ends watches and streams when the server stops.
    pub stop: CancellationToken,
    /// The way to nodes, once there is one.
    pub streams: OnceLock<Arc<dyn NodeStreams>>,
    /// What nodes and pods use.
    pub usage: Arc<Table>,
    /// Upgraded connections.
    pub sessions: TaskTracker,
    /// `host:port` that clients are told to use.
    pub address: SocketAddr,
}
