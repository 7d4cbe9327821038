//! Connections to backends: opened when needed, kept for a while, shared where HTTP/2 allows it.

use std::{
    collections::HashMap,
    net::SocketAddrV4,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{crypto::CryptoProvider, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::Error;
use crate::{net::routes::BackendProtocol, tasks::CancellationToken, trust};

/// How long a backend may take to accept a connection, and for its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Endpoints that are tried for one request.
const ENDPOINTS_MAX: usize = 3;
/// Connections that wait for the next request: in all, and for how long.
const IDLE_MAX: usize = 64;
const IDLE_TIME: Duration = Duration::from_secs(30);
/// How often those that have waited too long are looked for.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Bodies as they are passed on.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(#[source] pub BoxError);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddrV4,
    protocol: BackendProtocol,
}

struct Waiting {
    since: Instant,
    sender: http1::SendRequest<Body>,
}

impl Waiting {
    fn is_good(&self, now: Instant) -> bool {
        now.duration_since(self.since) < IDLE_TIME && !self.sender.is_closed()
    }
}

/// Connections that wait for the next request, the youngest last.
#[derive(Default)]
struct Idle {
    by_key: HashMap<Key, Vec<Waiting>>,
    count: usize,
    looked: Option<Instant>,
}

impl Idle {
    fn take(&mut self, key: Key) -> Option<http1::SendRequest<Body>> {
        let waiting = self.by_key.get_mut(&key)?;
        let now = Instant::now();
        // The youngest: the others may then grow old and go.
        while let Some(last) = waiting.pop() {
            self.count -= 1;
            if last.is_good(now) && last.sender.is_ready() {
                return Some(last.sender);
            }
        }
        None
    }

    fn keep(&mut self, key: Key, sender: http1::SendRequest<Body>) {
        let now = Instant::now();
        let due = self.looked.is_none_or(|at| now.duration_since(at) >= IDLE_LOOK);
        if due || self.count >= IDLE_MAX {
            self.looked = Some(now);
            for waiting in self.by_key.values_mut() {
                waiting.retain(|kept| kept.is_good(now));
            }
            self.by_key.retain(|_, waiting| !waiting.is_empty());
            self.count = self.by_key.values().map(Vec::len).sum();
        }
        if self.count < IDLE_MAX {
            self.by_key.entry(key).or_default().push(Waiting { since: now, sender });
            self.count += 1;
        }
    }
}

/// The connections of one server.
pub struct Pool {
    idle: Mutex<Idle>,
    shared: Mutex<HashMap<Key, http2::SendRequest<Body>>>,
    next: AtomicUsize,
    http1: TlsConnector,
    http2: TlsConnector,
    /// Everything that runs beside a client's connection.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// A connection in use; given back when the response has been read to its end.
pub struct Lease {
    pool: Arc<Pool>,
    key: Key,
    sender: http1::SendRequest<Body>,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("no connection to {address}: {source}")]
    Connect { address: SocketAddrV4, source: BoxError },
    #[error("{address}: {source}")]
    Exchange { address: SocketAddrV4, source: hyper::Error },
    #[error("no endpoints")]
    NoEndpoints,
}

enum Sender {
    Own(http1::SendRequest<Body>),
    Shared(http2::SendRequest<Body>),
}

impl Pool {
    pub fn new(provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let connector = |alpn: &[u8]| {
            trust::client_config(Arc::clone(provider), &[alpn]).map(|c| TlsConnector::from(Arc::new(c)))
        };
        Ok(Self {
            idle: Mutex::default(),
            shared: Mutex::default(),
            next: AtomicUsize::new(0),
            http1: connector(b"http/1.1")?,
            http2: connector(b"h2")?,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Sends a request to one of the endpoints, in turn; to the next when one takes no connection.
    pub async fn send(
        self: &Arc<Self>,
        endpoints: &[SocketAddrV4],
        protocol: BackendProtocol,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Option<Lease>), SendError> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut failed = SendError::NoEndpoints;
        for index in 0..endpoints.len().min(ENDPOINTS_MAX) {
            let address = endpoints[(first.wrapping_add(index)) % endpoints.len()];
            let key = Key { address, protocol };
            loop {
                let kept = self.take(key);
                let reused = kept.is_some();
                let sender = match kept {
                    Some(sender) => sender,
                    // Rare, and large.
                    None => match Box::pin(self.open(key)).await {
                        Ok(sender) => sender,
                        Err(source) => {
                            failed = SendError::Connect { address, source };
                            break;
                        }
                    },
                };
                let sent = match sender {
                    Sender::Own(mut sender) => sender
                        .try_send_request(request)
                        .await
                        .map(|response| (response, Some(Lease { pool: Arc::clone(self), key, sender }))),
                    Sender::Shared(mut sender) => {
                        sender.try_send_request(request).await.map(|response| (response, None))
                    }
                };
                let mut error = match sent {
                    Ok(answered) => return Ok(answered),
                    Err(error) => error,
                };
                let message = error.take_message();
                failed = SendError::Exchange { address, source: error.into_error() };
                // What was not sent can be sent again; what was may have had its effect.
                let Some(unsent) = message else { return Err(failed) };
                request = unsent;
                if !reused {
                    break;
                }
            }
        }
        Err(failed)
    }

    fn take(&self, key: Key) -> Option<Sender> {
        if key.protocol.is_http2() {
            let mut shared = lock(&self.shared);
            shared.retain(|_, sender| !sender.is_closed());
            return shared.get(&key).cloned().map(Sender::Shared);
        }
        lock(&self.idle).take(key).map(Sender::Own)
    }

    async fn open(&self, key: Key) -> Result<Sender, BoxError> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(key.address)).await??;
        stream.set_nodelay(true)?;
        if !key.protocol.is_tls() {
            return self.handshake(key, stream).await;
        }
        let name = ServerName::IpAddress(std::net::IpAddr::from(*key.address.ip()).into());
        let connector = if key.protocol.is_http2() { &self.http2 } else { &self.http1 };
        let stream = timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await??;
        self.handshake(key, stream).await
    }

    async fn handshake<S>(&self, key: Key, stream: S) -> Result<Sender, BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        // Its own, for it is looked at whenever something happens on the connection.
        let stop = self.stop.child_token();
        if key.protocol.is_http2() {
            let (sender, connection) =
                http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).handshake(io).await?;
            self.tasks.spawn(async move { stop.run_until_cancelled(connection).await });
            lock(&self.shared).insert(key, sender.clone());
            return Ok(Sender::Shared(sender));
        }
        let (mut sender, connection) = http1::handshake(io).await?;
        self.tasks.spawn(async move { stop.run_until_cancelled(connection.with_upgrades()).await });
        sender.ready().await?;
        Ok(Sender::Own(sender))
    }
}

impl Lease {
    /// The connection waits for the next request.
    pub fn give_back(self) {
        let Self { pool, key, mut sender } = self;
        if sender.is_ready() {
            return pool.keep(key, sender);
        }
        let (tasks, stop) = (pool.tasks.clone(), pool.stop.clone());
        tasks.spawn(async move {
            if let Some(Ok(())) = stop.run_until_cancelled(sender.ready()).await {
                pool.keep(key, sender);
            }
        });
    }
}

impl Pool {
    fn keep(&self, key: Key, sender: http1::SendRequest<Body>) {
        lock(&self.idle).keep(key, sender);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of a pool's lock panics")
}
