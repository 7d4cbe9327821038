//! The embedded broker: `mqtt5` behind a TLS front of our own.
//!
//! mqtt5 does not tell its authoriser whose certificate a client showed. So the front terminates
//! TLS, learns the name from the certificate, and passes the bytes on over loopback; the broker
//! knows the passed connection by its source address, and refuses every other one.
//! Invariants: who shows no certificate may ask to join and nothing else, a few at a time and not
//! for long; who shows a wrong one speaks to nobody; a node publishes and
//! subscribes under its own topics only; a client's queue, packets and rate are bounded.

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use mqtt5::broker::{
    AuthProvider, AuthResult, BrokerConfig, MqttBroker,
    config::{AuthConfig, RateLimitConfig, StorageBackend, StorageConfig},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Error, PAYLOAD_BYTES_MAX, topics};
use crate::tasks::CancellationToken;

/// Clients at a time.
const CLIENTS_MAX: usize = 4096;
/// What one client may send a second.
const MESSAGES_PER_SECOND_MAX: u32 = 2_000;
const BYTES_PER_SECOND_MAX: u64 = 64 << 20;
/// Messages and bytes that wait for a slow client.
const QUEUED_MESSAGES_MAX: usize = 512;
const QUEUED_BYTES_MAX: usize = 4 << 20;
const CHANNEL_MESSAGES: usize = 64;
/// Clients that join at a time, and how long one may take.
const JOINING_MAX: usize = 32;
const JOINING_TIMEOUT: Duration = Duration::from_mins(2);
/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Buffers of a passed connection, a direction (bytes).
const PASS_BUFFER: usize = 4 << 10;
/// Head of a packet around its payload: topic and properties (bytes).
const PACKET_HEAD_MAX: usize = 1 << 10;

/// Who is at the other end of a connection, by certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A master: all topics of the cluster.
    Master,
    /// A node: its own topics.
    Node(String),
    /// A board without a certificate: asks for one.
    Joining,
}

/// Reads a peer from the certificate chain it showed; `None` refuses it.
pub type Identify = Arc<dyn Fn(&[CertificateDer<'_>]) -> Option<Peer> + Send + Sync>;

/// Told at which of our addresses a client arrives, before its handshake.
pub type OnArrival = Arc<dyn Fn(IpAddr) + Send + Sync>;

type Passed = Arc<Mutex<HashMap<SocketAddr, Peer>>>;

/// The bound broker.
pub struct Broker {
    listener: TcpListener,
    tls: TlsAcceptor,
    identify: Identify,
    on_arrival: OnArrival,
    inner: MqttBroker,
    inner_address: SocketAddr,
    passed: Passed,
}

impl Broker {
    /// Binds `address`. `tls` has to ask for client certificates.
    pub async fn bind(
        address: SocketAddr,
        cluster: &str,
        tls: Arc<rustls::ServerConfig>,
        identify: Identify,
    ) -> Result<Self, Error> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Io { operation: format!("listen on {address} (MQTT)"), source })?;
        let passed = Passed::default();
        let authoriser = Authoriser { cluster: cluster.to_owned(), passed: Arc::clone(&passed) };
        let inner = MqttBroker::with_config(config())
            .await
            .map_err(|e| Error::Broker(e.to_string()))?
            .with_auth_provider(Arc::new(authoriser));
        let inner_address =
            inner.local_addr().ok_or_else(|| Error::Broker("has no address on loopback".to_owned()))?;
        let on_arrival: OnArrival = Arc::new(|_| {});
        Ok(Self { listener, tls: TlsAcceptor::from(tls), identify, on_arrival, inner, inner_address, passed })
    }

    /// Calls `hook` for every connection, before its handshake.
    #[must_use]
    pub fn on_arrival(self, hook: OnArrival) -> Self {
        Self { on_arrival: hook, ..self }
    }

    /// The address clients connect to.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.listener
            .local_addr()
            .map_err(|source| Error::Io { operation: "MQTT listener's address".to_owned(), source })
    }

    /// Serves until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { listener, tls, identify, on_arrival, mut inner, inner_address, passed } = self;
        let front = Arc::new(Front {
            tls,
            identify,
            on_arrival,
            inner: inner_address,
            passed,
            joining: Semaphore::new(JOINING_MAX),
        });
        let shutdown = inner.shutdown_handle();
        let mut serving = tokio::spawn(async move { inner.run().await });
        let mut connections = JoinSet::new();
        let outcome = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                ended = &mut serving => break Err(Error::Broker(match ended {
                    Ok(Ok(())) => "ended by itself".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                })),
                accepted = listener.accept(), if connections.len() < CLIENTS_MAX => match accepted {
                    Ok((stream, from)) => {
                        let front = Arc::clone(&front);
                        connections.spawn(async move {
                            if let Err(error) = front.pass(stream).await {
                                tracing::debug!(%from, %error, "MQTT connection ended");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting MQTT connections");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        };
        shutdown.shutdown();
        if outcome.is_ok() {
            let _ = serving.await;
        }
        outcome
    }
}

fn config() -> BrokerConfig {
    let limits = RateLimitConfig { enabled: false, ..RateLimitConfig::default() };
    BrokerConfig {
        bind_addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        max_clients: CLIENTS_MAX,
        session_expiry_interval: Duration::ZERO,
        max_packet_size: PAYLOAD_BYTES_MAX + PACKET_HEAD_MAX,
        maximum_qos: 1,
        shared_subscription_available: false,
        max_subscriptions_per_client: 8,
        max_retained_messages: 64,
        max_retained_message_size: 4 << 10,
        client_channel_capacity: CHANNEL_MESSAGES,
        max_message_rate_per_client: MESSAGES_PER_SECOND_MAX,
        max_bandwidth_per_client: BYTES_PER_SECOND_MAX,
        sys_topics_enabled: false,
        auth_config: AuthConfig { allow_anonymous: true, rate_limit: limits, ..AuthConfig::default() },
        storage_config: StorageConfig {
            backend: StorageBackend::Memory,
            enable_persistence: false,
            max_queued_messages_per_client: QUEUED_MESSAGES_MAX,
            max_queued_bytes_per_client: QUEUED_BYTES_MAX,
            ..StorageConfig::default()
        },
        ..BrokerConfig::default()
    }
}

/// What every connection needs.
struct Front {
    tls: TlsAcceptor,
    identify: Identify,
    on_arrival: OnArrival,
    inner: SocketAddr,
    passed: Passed,
    joining: Semaphore,
}

impl Front {
    /// One client from its handshake to its end.
    async fn pass(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        (self.on_arrival)(stream.local_addr()?.ip());
        let mut outer = timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await??;
        let peer = match outer.get_ref().1.peer_certificates() {
            Some(chain) => (self.identify)(chain),
            None => Some(Peer::Joining),
        };
        match peer {
            None => outer.shutdown().await,
            Some(Peer::Joining) => match self.joining.try_acquire() {
                Ok(_place) => timeout(JOINING_TIMEOUT, self.copy(outer, Peer::Joining)).await?,
                Err(_) => outer.shutdown().await,
            },
            Some(peer) => self.copy(outer, peer).await,
        }
    }

    async fn copy(&self, mut outer: TlsStream<TcpStream>, peer: Peer) -> std::io::Result<()> {
        let mut plain = TcpStream::connect(self.inner).await?;
        plain.set_nodelay(true)?;
        let _known = Known::new(&self.passed, plain.local_addr()?, peer);
        copy_bidirectional_with_sizes(&mut outer, &mut plain, PASS_BUFFER, PASS_BUFFER).await.map(|_| ())
    }
}

/// A passed connection's entry, for as long as it lasts, however it ends.
struct Known<'a> {
    passed: &'a Passed,
    address: SocketAddr,
}

impl<'a> Known<'a> {
    fn new(passed: &'a Passed, address: SocketAddr, peer: Peer) -> Self {
        passed.lock().expect("no holder of the lock panics").insert(address, peer);
        Self { passed, address }
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.passed.lock().expect("no holder of the lock panics").remove(&self.address);
    }
}

/// Says who may connect, publish and subscribe. A user is `master`, `node:<name>` or `joining:<id>`.
struct Authoriser {
    cluster: String,
    passed: Passed,
}

const MASTER: &str = "master";
const NODE_PREFIX: &str = "node:";
const JOINING_PREFIX: &str = "joining:";

impl Authoriser {
    fn user(&self, address: SocketAddr) -> Option<String> {
        let passed = self.passed.lock().expect("no holder of the lock panics");
        passed.get(&address).map(|peer| match peer {
            Peer::Master => MASTER.to_owned(),
            Peer::Node(name) => format!("{NODE_PREFIX}{name}"),
            Peer::Joining => JOINING_PREFIX.to_owned(),
        })
    }

    /// `node` and `joining` are the rules for a node's name and for the id of a board that joins.
    fn allows(
        &self,
        user: Option<&str>,
        topic: &str,
        node: impl Fn(&str) -> bool,
        joining: impl Fn(&str) -> bool,
    ) -> bool {
        match user {
            Some(MASTER) => topic.starts_with(&format!("sampan/{}/", self.cluster)),
            Some(user) => match (user.strip_prefix(NODE_PREFIX), user.strip_prefix(JOINING_PREFIX)) {
                (Some(name), _) => node(name),
                (None, Some(id)) => joining(id),
                (None, None) => false,
            },
            None => false,
        }
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl AuthProvider for Authoriser {
    fn authenticate<'a>(
        &'a self,
        connect: &'a mqtt5::packet::connect::ConnectPacket,
        client_addr: SocketAddr,
    ) -> Answer<'a, mqtt5::error::Result<AuthResult>> {
        let refused = || AuthResult::fail(mqtt5::types::ReasonCode::NotAuthorized);
        let result = match self.user(client_addr) {
            // A node's client id is its own, so that nobody takes another one's connection over.
            Some(user) if user == MASTER => AuthResult::success_with_user(user),
            Some(user) if user == JOINING_PREFIX => topics::join_id(&self.cluster, &connect.client_id)
                .map_or_else(refused, |id| AuthResult::success_with_user(format!("{JOINING_PREFIX}{id}"))),
            Some(user)
                if user
                    .strip_prefix(NODE_PREFIX)
                    .is_some_and(|node| connect.client_id == topics::node_client_id(&self.cluster, node)) =>
            {
                AuthResult::success_with_user(user)
            }
            Some(user) => {
                tracing::warn!(user, client_id = connect.client_id, "a client under a wrong id was refused");
                refused()
            }
            None => refused(),
        };
        Box::pin(std::future::ready(Ok(result)))
    }

    fn authorize_publish<'a>(&'a self, _: &str, user: Option<&'a str>, topic: &'a str) -> Answer<'a, bool> {
        let node = |name: &str| topics::node_may_publish(&self.cluster, name, topic);
        let joining = |id: &str| topics::join_up(&self.cluster, id) == topic;
        Box::pin(std::future::ready(self.allows(user, topic, node, joining)))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _: &str,
        user: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        let node = |name: &str| topics::node_may_subscribe(&self.cluster, name, filter);
        let joining = |id: &str| topics::join_down(&self.cluster, id) == filter;
        Box::pin(std::future::ready(self.allows(user, filter, node, joining)))
    }
}
