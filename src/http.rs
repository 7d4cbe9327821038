//! A place for the next connection, and HTTP/1.1 and 2 on it until it ends or is told to.
//!
//! In: a stream and a handler. Invariants: heads are bounded in bytes and time; a silent HTTP/2 client
//! is asked whether it lives; an upgrade goes to the handler.
//! Deliberately absent: TLS, bodies' limits.

use std::{convert::Infallible, error::Error, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{memory, tasks::CancellationToken};

/// Bytes of a request's head.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// How long after a failure connections are accepted again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the head of a request.
    pub headers: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// How often a silent HTTP/2 connection is asked whether it lives.
    pub keep_alive: Duration,
    /// How long it may take to answer that.
    pub keep_alive_timeout: Duration,
}

/// The next connection, from whom, and its place among those at once; `None` after `stop`.
pub async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let next = async {
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, from)) => return Some((stream, from, place)),
                Err(error) => {
                    // Out of descriptors: wait for connections to end instead of spinning.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    };
    stop.run_until_cancelled(next).await.flatten()
}

/// Answers the requests of a connection; after `stop` those that run end, and no more are taken.
///
/// # Errors
/// Why the connection broke.
pub async fn serve<S, H, F, B>(
    stream: S,
    limits: Limits,
    stop: &CancellationToken,
    handle: H,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Whoever serves a connection is a worker: it lives as long as the process.
    memory::keep_blocks();
    let service = service_fn(|request| {
        let response = handle(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive_timeout);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}
