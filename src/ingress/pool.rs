//! Connections to backends: opened when needed, kept for a while, shared where HTTP/2 allows it.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    net::SocketAddrV4,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{crypto::CryptoProvider, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::{
    Error,
    body::{BoxError, Upload},
    exchange::{self, Connection, Exchange, Io, Outgoing},
    wire::Answer,
};
use crate::{net::routes::BackendProtocol, tasks::CancellationToken, trust};

/// How long a backend may take to accept a connection, and for its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Endpoints that are tried for one request.
const ENDPOINTS_MAX: usize = 3;
/// Connections that wait for the next request: in all, and for how long.
const IDLE_MAX: usize = 64;
const IDLE_TIME: Duration = Duration::from_secs(30);
/// How often those that have waited too long, or were ended by the backend, are looked for.
const IDLE_LOOK: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    address: SocketAddrV4,
    protocol: BackendProtocol,
}

struct Waiting {
    since: Instant,
    connection: Connection,
}

/// Connections that wait for the next request, the youngest last.
#[derive(Default)]
struct Idle {
    by_key: BTreeMap<Key, Vec<Waiting>>,
    count: usize,
    /// Somebody looks for those that are of no more use.
    is_watched: bool,
}

impl Idle {
    /// The youngest: the others may then grow old and go.
    fn take(&mut self, key: Key) -> Option<Connection> {
        let waiting = self.by_key.get_mut(&key)?.pop()?;
        self.count -= 1;
        Some(waiting.connection)
    }

    fn keep(&mut self, key: Key, mut connection: Connection) {
        if self.count < IDLE_MAX {
            connection.rest();
            self.by_key.entry(key).or_default().push(Waiting { since: Instant::now(), connection });
            self.count += 1;
        }
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        for waiting in self.by_key.values_mut() {
            waiting
                .retain_mut(|kept| now.duration_since(kept.since) < IDLE_TIME && kept.connection.is_quiet());
        }
        self.by_key.retain(|_, waiting| !waiting.is_empty());
        self.count = self.by_key.values().map(Vec::len).sum();
    }
}

/// The connections of one server.
pub struct Pool {
    idle: Mutex<Idle>,
    shared: Mutex<HashMap<Key, http2::SendRequest<Upload>>>,
    next: AtomicUsize,
    http1: TlsConnector,
    http2: TlsConnector,
    /// Everything that runs beside a client's connection.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// The place that a connection in use came from.
pub struct Lease {
    pool: Arc<Pool>,
    key: Key,
}

impl Lease {
    /// The connection waits for the next request, if it can.
    pub fn give_back(self, exchange: Exchange) {
        if let Some(connection) = exchange.into_connection() {
            self.pool.keep(self.key, connection);
        }
    }
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("no connection to {address}: {source}")]
    Connect { address: SocketAddrV4, source: BoxError },
    #[error("{address}: {source}")]
    Exchange { address: SocketAddrV4, source: BoxError },
    #[error("no endpoints")]
    NoEndpoints,
}

/// A request, as its backend is spoken to.
pub enum Sent {
    Own(Box<Outgoing>),
    Shared(Box<Request<Upload>>),
}

/// A backend's answer.
pub enum Answered {
    Own(Answer, Exchange, Lease),
    /// The connection goes on in another protocol.
    Switched(Answer, Connection),
    Shared(Response<Incoming>),
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
        request: Sent,
    ) -> Result<Answered, SendError> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let keys = (0..endpoints.len().min(ENDPOINTS_MAX)).map(|index| {
            let address = endpoints[first.wrapping_add(index) % endpoints.len()];
            Key { address, protocol }
        });
        match request {
            Sent::Own(outgoing) => self.send_own(keys, outgoing).await,
            // Large.
            Sent::Shared(request) => Box::pin(self.send_shared(keys, *request)).await.map(Answered::Shared),
        }
    }

    async fn send_own(
        self: &Arc<Self>,
        keys: impl Iterator<Item = Key>,
        mut outgoing: Box<Outgoing>,
    ) -> Result<Answered, SendError> {
        let mut failed = SendError::NoEndpoints;
        for key in keys {
            loop {
                let kept = self.take(key);
                let reused = kept.is_some();
                let mut connection = match kept {
                    Some(connection) => connection,
                    // Rare, and large.
                    None => match Box::pin(self.connect(key)).await {
                        Ok(io) => Connection::new(io),
                        Err(source) => {
                            failed = SendError::Connect { address: key.address, source };
                            break;
                        }
                    },
                };
                match exchange::answer(&mut connection, &mut outgoing).await {
                    Ok(answer) if answer.status == StatusCode::SWITCHING_PROTOCOLS => {
                        return Ok(Answered::Switched(answer, connection));
                    }
                    Ok(answer) => {
                        let exchange = Exchange::new(connection, outgoing, &answer);
                        return Ok(Answered::Own(answer, exchange, Lease { pool: Arc::clone(self), key }));
                    }
                    // The backend may have ended it just now.
                    Err(error) if reused && outgoing.can_go_again(&error) => {}
                    Err(error) => {
                        return Err(SendError::Exchange { address: key.address, source: error.into() });
                    }
                }
            }
        }
        Err(failed)
    }

    async fn send_shared(
        &self,
        keys: impl Iterator<Item = Key>,
        mut request: Request<Upload>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut failed = SendError::NoEndpoints;
        for key in keys {
            loop {
                let kept = self.take_shared(key);
                let reused = kept.is_some();
                let mut sender = match kept {
                    Some(sender) => sender,
                    None => match self.open_shared(key).await {
                        Ok(sender) => sender,
                        Err(source) => {
                            failed = SendError::Connect { address: key.address, source };
                            break;
                        }
                    },
                };
                let mut error = match sender.try_send_request(request).await {
                    Ok(response) => return Ok(response),
                    Err(error) => error,
                };
                let message = error.take_message();
                let source = error.into_error().into();
                failed = SendError::Exchange { address: key.address, source };
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

    /// The youngest connection that waits.
    fn take(&self, key: Key) -> Option<Connection> {
        loop {
            let mut connection = lock(&self.idle).take(key)?;
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self, key: Key) -> Result<Io, BoxError> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(key.address)).await??;
        stream.set_nodelay(true)?;
        if !key.protocol.is_tls() {
            return Ok(Io::Plain(stream));
        }
        let name = ServerName::IpAddress(std::net::IpAddr::from(*key.address.ip()).into());
        let connector = if key.protocol.is_http2() { &self.http2 } else { &self.http1 };
        let stream = timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await??;
        Ok(Io::Tls(Box::new(stream)))
    }

    fn take_shared(&self, key: Key) -> Option<http2::SendRequest<Upload>> {
        let mut shared = lock(&self.shared);
        shared.retain(|_, sender| !sender.is_closed());
        shared.get(&key).cloned()
    }

    async fn open_shared(&self, key: Key) -> Result<http2::SendRequest<Upload>, BoxError> {
        let io = TokioIo::new(self.connect(key).await?);
        // Its own, for it is looked at whenever something happens on the connection.
        let stop = self.stop.child_token();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.timer(TokioTimer::new()).handshake(io).await?;
        self.tasks.spawn(async move { stop.run_until_cancelled(connection).await });
        lock(&self.shared).insert(key, sender.clone());
        Ok(sender)
    }

    fn keep(self: &Arc<Self>, key: Key, connection: Connection) {
        let mut idle = lock(&self.idle);
        idle.keep(key, connection);
        if !mem::replace(&mut idle.is_watched, true) {
            self.tasks.spawn(watch(Arc::clone(self)));
        }
    }
}

/// Ends connections that wait in vain, until there are none.
async fn watch(pool: Arc<Pool>) {
    loop {
        let stopped = pool.stop.run_until_cancelled(sleep(IDLE_LOOK)).await.is_none();
        let mut idle = lock(&pool.idle);
        if stopped {
            *idle = Idle { is_watched: true, ..Idle::default() };
            return;
        }
        idle.sweep();
        if idle.count == 0 {
            idle.is_watched = false;
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of a pool's lock panics")
}
