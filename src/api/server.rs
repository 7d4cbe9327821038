//! Connections: accept, TLS, HTTP/1.1 and 2, limits, an end.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::{
    Api, ApiError, Config, handler,
    health::Metrics,
    pki::Pki,
    tls::{ClientCertificates, ServingCertificate, TrustedTime, server_config},
};
use crate::{
    clock::Clock as _,
    http::{self, Limits, Speaks},
    objects::Objects,
    streams::NodeStreams,
    tasks::CancellationToken,
    usage::Table,
};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Connections at once of one address; more are closed at once, so that one neighbour cannot take
/// all of them.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 1500;
/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    headers: Duration::from_secs(20),
    streams: 1000,
    keep_alive: Duration::from_secs(30),
    keep_alive_timeout: Duration::from_secs(15),
};
/// How long running requests may take after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// How many connections each address has.
#[derive(Debug, Clone, Default)]
struct Neighbours(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address.
struct Counted(Neighbours, IpAddr);

impl Neighbours {
    /// Counts one more connection; `None` when the address has as many as it may.
    fn count(&self, address: IpAddr) -> Option<Counted> {
        let mut all = self.0.lock().expect("no holder panics");
        let own = all.entry(address).or_default();
        if *own >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *own += 1;
        Some(Counted(self.clone(), address))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.0.0.lock().expect("no holder panics");
        if let Some(own) = all.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                all.remove(&self.1);
            }
        }
    }
}

/// The API server, bound and not yet serving.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    serving: Arc<ServingCertificate>,
    certificates: ClientCertificates,
    api: Arc<Api>,
}

impl Server {
    /// Opens the authority, prepares TLS and binds the socket (port 0 picks one).
    pub async fn bind(config: Config, objects: Objects, pki: Arc<Pki>) -> Result<Self, ApiError> {
        let witness = pki.folder().join("ca.crt");
        let store = objects.store().path().to_owned();
        let time = TrustedTime::new(Arc::clone(objects.clock()), &[&witness, &store]);
        let first_service = config.service_cidr.nth(1).map(IpAddr::from);
        let mut names = config.tls_san.clone();
        names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
        let extra: Vec<_> = first_service.into_iter().collect();
        let serving = Arc::new(ServingCertificate::new(Arc::clone(&pki), &names, &extra)?);
        let (tls, certificates) = server_config(&pki, Arc::clone(&serving), time.clone())?;
        let bind_failed = |source| ApiError::Bind { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(bind_failed)?;
        let address = listener.local_addr().map_err(bind_failed)?;
        let api = Arc::new(Api {
            metrics: Metrics::new(time.now()),
            objects,
            time,
            stop: CancellationToken::new(),
            streams: OnceLock::new(),
            usage: Arc::default(),
            sessions: TaskTracker::new(),
            address,
        });
        Ok(Self { listener, acceptor: TlsAcceptor::from(tls), serving, certificates, api })
    }

    /// Where what nodes and pods use is looked up; somebody has to fill it.
    pub fn usage(&self) -> Arc<Table> {
        Arc::clone(&self.api.usage)
    }

    /// Gives the server its way to nodes, for logs, exec, attach and port-forward.
    #[must_use]
    pub fn with_streams(self, streams: Arc<dyn NodeStreams>) -> Self {
        let _ = self.api.streams.set(streams);
        self
    }

    /// The time by which certificates and tokens are judged, whatever the board's clock says.
    pub fn time(&self) -> TrustedTime {
        self.api.time.clone()
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.api.address
    }

    /// Serves until `stop`, then lets running requests end.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ApiError> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let neighbours = Neighbours::default();
        let mut connections = JoinSet::new();
        while let Some((stream, peer, permit)) = http::accept(&self.listener, &permits, &stop).await {
            while connections.try_join_next().is_some() {}
            let peer = peer.ip().to_canonical();
            let Some(counted) = neighbours.count(peer) else {
                tracing::debug!(%peer, "too many connections of one address");
                continue;
            };
            let connection = Connection {
                acceptor: self.acceptor.clone(),
                serving: Arc::clone(&self.serving),
                certificates: self.certificates.clone(),
                api: Arc::clone(&self.api),
            };
            connections.spawn(async move {
                connection.serve(stream).await;
                drop((permit, counted));
            });
        }
        self.api.stop.cancel();
        self.api.sessions.close();
        let drained = async {
            while connections.join_next().await.is_some() {}
            self.api.sessions.wait().await;
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::debug!("some requests did not end in time");
        }
        connections.shutdown().await;
        Ok(())
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    serving: Arc<ServingCertificate>,
    certificates: ClientCertificates,
    api: Arc<Api>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        if let Ok(local) = stream.local_addr() {
            self.serving.cover(local.ip());
        }
        let peer = stream.peer_addr().ok();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream));
        // Large, and soon over.
        let tls = match Box::pin(handshake).await {
            Ok(Ok(tls)) => Box::new(tls),
            Ok(Err(error)) => return tracing::debug!(%error, ?peer, "TLS handshake"),
            Err(_) => return tracing::debug!(?peer, "TLS handshake took too long"),
        };
        let presented = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = match presented {
            [] => handler::Presented::Nothing,
            chain => self
                .certificates
                .identify(chain)
                .map_or(handler::Presented::Unknown, handler::Presented::Certificate),
        };
        let certificate = Arc::new(certificate);
        let api = Arc::clone(&self.api);
        let handle = |request| {
            let (api, certificate) = (Arc::clone(&api), Arc::clone(&certificate));
            // In a place of its own, which goes when the answer begins: a watch keeps its connection's.
            Box::pin(async move { handler::handle(api, &certificate, request).await })
        };
        let speaks = Speaks::agreed(tls.get_ref().1.alpn_protocol());
        let ended = http::serve(tls, speaks, LIMITS, &self.api.stop, handle).await;
        if let Err(error) = ended {
            tracing::trace!(%error, ?peer, "connection ended");
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.api.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_connections() {
        let neighbours = Neighbours::default();
        let (greedy, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut held: Vec<_> =
            (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| neighbours.count(greedy).unwrap()).collect();
        assert!(neighbours.count(greedy).is_none() && neighbours.count(other).is_some());
        held.pop();
        assert!(neighbours.count(greedy).is_some());
        drop(held);
        assert!(neighbours.0.lock().unwrap().is_empty());
    }
}
