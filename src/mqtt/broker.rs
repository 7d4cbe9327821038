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
    io::{AsyncReadExt, AsyncWriteExt, BufReader, copy_buf, split},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Error, PAYLOAD_BYTES_MAX, throttle::Allowance, topics};
use crate::tasks::CancellationToken;

/// Clients at a time.
const CLIENTS_MAX: usize = 4096;
/// Messages and bytes that wait for a slow client.
const QUEUED_MESSAGES_MAX: usize = 4_096;
const QUEUED_BYTES_MAX: usize = 16 << 20;
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

/// The address that each node came from last, as seen here. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Origins(Arc<Mutex<HashMap<String, IpAddr>>>);

impl Origins {
    pub fn get(&self, node: &str) -> Option<IpAddr> {
        self.0.lock().expect("no holder of the lock panics").get(node).copied()
    }

    fn note(&self, peer: Option<&Peer>, from: IpAddr) {
        if let Some(Peer::Node(node)) = peer {
            self.0.lock().expect("no holder of the lock panics").insert(node.clone(), from.to_canonical());
        }
    }
}

type Passed = Arc<Mutex<HashMap<SocketAddr, Entry>>>;

/// A connection that was let in.
struct Entry {
    peer: Peer,
    /// The certificates it showed.
    chain: Vec<CertificateDer<'static>>,
    end: CancellationToken,
}

/// Looks again at who is connected. Cheap to clone.
#[derive(Clone)]
pub struct Review {
    passed: Passed,
    identify: Identify,
}

impl Review {
    /// Cuts every connection whose certificate does not stand for the same peer any more.
    pub fn run(&self) {
        let passed = self.passed.lock().expect("no holder of the lock panics");
        for entry in passed.values().filter(|entry| !entry.chain.is_empty()) {
            if (self.identify)(&entry.chain).as_ref() != Some(&entry.peer) {
                tracing::warn!(peer = ?entry.peer, "a connection is cut: its certificate is no longer good");
                entry.end.cancel();
            }
        }
    }
}

/// The bound broker.
pub struct Broker {
    listener: TcpListener,
    tls: TlsAcceptor,
    identify: Identify,
    on_arrival: OnArrival,
    inner: MqttBroker,
    inner_address: SocketAddr,
    passed: Passed,
    origins: Origins,
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
        let (tls, origins) = (TlsAcceptor::from(tls), Origins::default());
        Ok(Self { listener, tls, identify, on_arrival, inner, inner_address, passed, origins })
    }

    /// Calls `hook` for every connection, before its handshake.
    #[must_use]
    pub fn on_arrival(self, hook: OnArrival) -> Self {
        Self { on_arrival: hook, ..self }
    }

    /// For when certificates lose their force.
    pub fn review(&self) -> Review {
        Review { passed: Arc::clone(&self.passed), identify: Arc::clone(&self.identify) }
    }

    /// Where nodes come from.
    pub fn origins(&self) -> Origins {
        self.origins.clone()
    }

    /// The address clients connect to.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.listener
            .local_addr()
            .map_err(|source| Error::Io { operation: "MQTT listener's address".to_owned(), source })
    }

    /// Serves until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { listener, tls, identify, on_arrival, mut inner, inner_address, passed, origins } = self;
        let front = Arc::new(Front {
            tls,
            identify,
            on_arrival,
            inner: inner_address,
            passed,
            origins,
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
                        sleep(Duration::from_millis(100)).await;
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
        // What is over a limit of these is dropped; the front slows down instead.
        max_message_rate_per_client: 0,
        max_bandwidth_per_client: 0,
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
    origins: Origins,
    joining: Semaphore,
}

impl Front {
    /// One client from its handshake to its end.
    async fn pass(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        (self.on_arrival)(stream.local_addr()?.ip());
        let from = stream.peer_addr()?.ip();
        let mut outer = timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await??;
        let chain: Vec<_> = outer
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect())
            .unwrap_or_default();
        let peer = if chain.is_empty() { Some(Peer::Joining) } else { (self.identify)(&chain) };
        self.origins.note(peer.as_ref(), from);
        match peer {
            None => outer.shutdown().await,
            Some(Peer::Joining) => match self.joining.try_acquire() {
                Ok(_place) => timeout(JOINING_TIMEOUT, self.copy(outer, Peer::Joining, chain)).await?,
                Err(_) => outer.shutdown().await,
            },
            Some(peer) => self.copy(outer, peer, chain).await,
        }
    }

    async fn copy(
        &self,
        mut outer: TlsStream<TcpStream>,
        peer: Peer,
        chain: Vec<CertificateDer<'static>>,
    ) -> std::io::Result<()> {
        let mut plain = TcpStream::connect(self.inner).await?;
        plain.set_nodelay(true)?;
        let end = CancellationToken::new();
        // The master speaks for everybody.
        let mut allowance = (peer != Peer::Master).then(|| Allowance::new(Instant::now()));
        let entry = Entry { peer, chain, end: end.clone() };
        let _known = Known::new(&self.passed, plain.local_addr()?, entry);
        let (mut from_client, mut to_client) = split(&mut outer);
        let (mut from_broker, mut to_broker) = plain.split();
        let up = async {
            let mut buffer = vec![0; PASS_BUFFER];
            loop {
                let count = from_client.read(&mut buffer).await?;
                if count == 0 {
                    return std::io::Result::Ok(());
                }
                to_broker.write_all(&buffer[..count]).await?;
                if let Some(pause) = allowance.as_mut().and_then(|a| a.take(&buffer[..count], Instant::now()))
                {
                    sleep(pause).await;
                }
            }
        };
        let down = async {
            copy_buf(&mut BufReader::with_capacity(PASS_BUFFER, &mut from_broker), &mut to_client).await
        };
        tokio::select! {
            ended = up => ended,
            ended = down => ended.map(drop),
            () = end.cancelled() => Ok(()),
        }?;
        outer.shutdown().await
    }
}

/// A passed connection's entry, for as long as it lasts, however it ends.
struct Known<'a> {
    passed: &'a Passed,
    address: SocketAddr,
}

impl<'a> Known<'a> {
    fn new(passed: &'a Passed, address: SocketAddr, entry: Entry) -> Self {
        passed.lock().expect("no holder of the lock panics").insert(address, entry);
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
        passed.get(&address).map(|entry| match &entry.peer {
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
                    .is_some_and(|node| topics::is_client_id_of(&self.cluster, node, &connect.client_id)) =>
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
