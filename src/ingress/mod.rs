//! The Ingress server of a node: HTTP and HTTPS in, requests to ready pods out.
//!
//! In: two sockets and a table of rules ([`IngressTable`]), exchanged while it serves. Out: requests
//! to the endpoints of the rules, their answers streamed back.
//! Invariants: bodies are streamed, never held; connections, heads and waiting are bounded; a new
//! table touches no request that is under way.
//! Deliberately absent: Ingress objects (`dispatch` makes tables of them), certificates' issue.

mod body;
mod certificates;
mod exchange;
mod head;
mod pool;
mod proxied;
mod proxy;
mod record;
mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use self::{
    certificates::Certificates,
    pool::Pool,
    proxy::{Arrival, Proxy},
    record::Record,
};
use crate::{
    http::{self, Limits, Speaks},
    net::{cidr::Cidr, routes::IngressTable},
    tasks::CancellationToken,
};

/// Connections of clients at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 2048;
/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    headers: Duration::from_mins(1),
    streams: 128,
    keep_alive: Duration::from_mins(1),
    keep_alive_timeout: Duration::from_secs(20),
};
/// Requests that a connection may take back before they are answered, if these are most of its requests.
const ABANDONED_MAX: usize = 100;
/// How long running requests may take after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen on {address}: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("open the access log {path}: {source}")]
    Log { path: PathBuf, source: std::io::Error },
    #[error("make the default certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// What may be asked of a server beyond serving.
#[derive(Debug, Clone)]
pub struct Options {
    /// Load balancers in front: their connections begin with a PROXY protocol header, and only
    /// theirs.
    pub proxied_from: Vec<Cidr>,
    /// A line a request.
    pub access_log: Option<PathBuf>,
    /// How long a client may take for the head of a request.
    pub head_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { proxied_from: Vec::new(), access_log: None, head_timeout: LIMITS.headers }
    }
}

impl Options {
    fn is_proxied(&self, client: SocketAddr) -> bool {
        let IpAddr::V4(client) = client.ip().to_canonical() else { return false };
        self.proxied_from.iter().any(|network| network.contains(client))
    }
}

/// An Ingress server.
pub struct Server {
    http: TcpListener,
    https: TcpListener,
    addresses: (SocketAddr, SocketAddr),
    acceptor: TlsAcceptor,
    certificates: Arc<Certificates>,
    proxy: Arc<Proxy>,
    options: Arc<Options>,
    permits: Arc<Semaphore>,
}

impl Server {
    /// Binds both sockets (port 0 picks one). Every request is answered with 404 until the first
    /// table comes.
    pub async fn bind(http: SocketAddr, https: SocketAddr, options: Options) -> Result<Self, Error> {
        let record = match &options.access_log {
            Some(path) => Record::logging_to(path)?,
            None => Record::default(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pool = Arc::new(Pool::new(&provider)?);
        let certificates = Arc::new(Certificates::new(provider)?);
        let acceptor = TlsAcceptor::from(certificates::server_config(Arc::clone(&certificates))?);
        let (http, http_address) = listen(http).await?;
        let (https, https_address) = listen(https).await?;
        let proxy = Proxy { table: RwLock::default(), pool, https_port: https_address.port(), record };
        Ok(Self {
            http,
            https,
            addresses: (http_address, https_address),
            acceptor,
            certificates,
            proxy: Arc::new(proxy),
            options: Arc::new(options),
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }

    /// The addresses for HTTP and HTTPS.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.addresses
    }

    /// Counters in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.proxy.record.metrics()
    }

    /// Exchanges the rules and certificates for requests and handshakes to come.
    pub fn set_table(&self, table: Arc<IngressTable>) {
        self.certificates.set(&table.certificates);
        *self.proxy.table.write().expect("no holder panics") = table;
    }

    /// Serves until `stop`, then lets running requests end.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.accept(&self.http, false, &stop), self.accept(&self.https, true, &stop));
        let pool = &self.proxy.pool;
        pool.tasks.close();
        // Connections to backends, and those that left HTTP, do not end by themselves.
        let _ = timeout(DRAIN, async {
            let _all = self.permits.acquire_many(CONNECTIONS_MAX as u32).await;
        })
        .await;
        pool.stop.cancel();
        pool.tasks.wait().await;
    }

    async fn accept(&self, listener: &TcpListener, tls: bool, stop: &CancellationToken) {
        let port = if tls { self.addresses.1.port() } else { self.addresses.0.port() };
        while let Some((stream, client, permit)) = http::accept(listener, &self.permits, stop).await {
            let _ = stream.set_nodelay(true);
            // Tokens of its own: they are looked at whenever something happens on the connection.
            let (proxy, stop) = (Arc::clone(&self.proxy), stop.child_token());
            let acceptor = tls.then(|| self.acceptor.clone());
            let kill = self.proxy.pool.stop.child_token();
            let options = Arc::clone(&self.options);
            self.proxy.pool.tasks.spawn(async move {
                proxy.record.connections.fetch_add(1, Ordering::Relaxed);
                let patience = Arc::new(Patience { lost: kill.clone(), ..Patience::default() });
                let served = connection(&proxy, stream, acceptor, (client, port), stop, &patience, &options);
                let ended = kill.run_until_cancelled(served).await;
                if ended.is_none() && !proxy.pool.stop.is_cancelled() {
                    tracing::debug!(%client, "too many requests were taken back");
                }
                proxy.record.connections.fetch_sub(1, Ordering::Relaxed);
                drop(permit);
            });
        }
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn connection(
    proxy: &Arc<Proxy>,
    mut stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    (mut client, port): (SocketAddr, u16),
    stop: CancellationToken,
    patience: &Arc<Patience>,
    options: &Options,
) {
    if options.is_proxied(client) {
        match timeout(HANDSHAKE_TIMEOUT, proxied::client(&mut stream)).await {
            Ok(Ok(told)) => client = told.unwrap_or(client),
            Ok(Err(error)) => {
                return tracing::debug!(%error, balancer = %client, "a connection is refused");
            }
            Err(_) => return tracing::debug!(balancer = %client, "no PROXY header in time"),
        }
    }
    let arrival = Arc::new(Arrival::new(client, acceptor.is_some(), port));
    let limits = Limits { headers: options.head_timeout, ..LIMITS };
    let Some(acceptor) = acceptor else {
        return match stop.run_until_cancelled(Speaks::heard(&stream, limits.headers)).await {
            Some(Ok(speaks)) => Box::pin(serve(proxy, stream, speaks, limits, arrival, stop, patience)).await,
            Some(Err(error)) => tracing::debug!(%error, %client, "nothing was asked"),
            None => {}
        };
    };
    // Large, and soon over.
    match Box::pin(timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))).await {
        Ok(Ok(stream)) => {
            let speaks = Speaks::agreed(stream.get_ref().1.alpn_protocol());
            let stream = Box::new(stream);
            return Box::pin(serve(proxy, stream, speaks, limits, arrival, stop, patience)).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, %client, "TLS handshake"),
        Err(_) => tracing::debug!(%client, "TLS handshake took too long"),
    }
    proxy.record.handshakes_failed.fetch_add(1, Ordering::Relaxed);
}

/// What one connection has asked, and taken back unanswered (HTTP/2 resets, CVE-2023-44487).
#[derive(Default)]
struct Patience {
    asked: AtomicUsize,
    abandoned: AtomicUsize,
    /// Ends the connection: it was most of it, again and again.
    lost: CancellationToken,
}

/// A request under way.
struct Asked(Option<Arc<Patience>>);

impl Asked {
    fn new(patience: &Arc<Patience>) -> Self {
        patience.asked.fetch_add(1, Ordering::Relaxed);
        Self(Some(Arc::clone(patience)))
    }

    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(patience) = &self.0 else { return };
        let abandoned = patience.abandoned.fetch_add(1, Ordering::Relaxed) + 1;
        if abandoned >= ABANDONED_MAX && abandoned * 2 > patience.asked.load(Ordering::Relaxed) {
            patience.lost.cancel();
        }
    }
}

async fn serve<S>(
    proxy: &Arc<Proxy>,
    stream: S,
    speaks: Speaks,
    limits: Limits,
    arrival: Arc<Arrival>,
    stop: CancellationToken,
    patience: &Arc<Patience>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handle = |request| {
        let (proxy, arrival, asked) = (Arc::clone(proxy), Arc::clone(&arrival), Asked::new(patience));
        async move {
            let response = proxy.handle(request, &arrival).await;
            asked.answered();
            response
        }
    };
    if let Err(error) = http::serve(stream, speaks, limits, &stop, handle).await {
        tracing::trace!(%error, client = %arrival.client, "connection ended");
    }
}
