//! A place for the next connection, and HTTP/1.1 and 2 on it until it ends or is told to.
//!
//! In: a stream and a handler. Invariants: heads are bounded in bytes and time; a silent HTTP/2 client
//! is asked whether it lives; an upgrade goes to the handler.
//! Deliberately absent: TLS, bodies' limits.

use std::{
    convert::Infallible, error::Error, future::Future, io, net::SocketAddr, sync::Arc, time::Duration,
};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{memory, tasks::CancellationToken};

/// Bytes of a request's head. Of HTTP/1.1 hyper counts what it has before it reads on, so that up to twice
/// as much may pass.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// What HTTP/2 begins with, and nothing else does.
const PREFACE: &[u8; 3] = b"PRI";
/// How long the rest of these bytes is waited for, again and again.
const PREFACE_WAIT: Duration = Duration::from_millis(10);
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

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
}

impl Speaks {
    /// What was agreed on by ALPN: without it a TLS client speaks HTTP/1.1 (RFC 9113 section 3.2).
    pub fn agreed(protocol: Option<&[u8]>) -> Self {
        if protocol == Some(b"h2") { Self::Http2 } else { Self::Http1 }
    }

    /// What a client without TLS begins with; nothing is taken of it.
    ///
    /// # Errors
    /// It says nothing in time, or its connection broke.
    pub async fn heard(stream: &TcpStream, limit: Duration) -> io::Result<Self> {
        let heard = async {
            let mut start = [0; PREFACE.len()];
            loop {
                let length = stream.peek(&mut start).await?;
                if length == 0 || start[..length] != PREFACE[..length] {
                    return Ok(Self::Http1);
                }
                if length == PREFACE.len() {
                    return Ok(Self::Http2);
                }
                tokio::time::sleep(PREFACE_WAIT).await;
            }
        };
        tokio::time::timeout(limit, heard).await?
    }
}

/// Answers the requests of a connection; after `stop` those that run end, and no more are taken.
///
/// # Errors
/// Why the connection broke.
pub async fn serve<S, H, F, B>(
    stream: S,
    speaks: Speaks,
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
    let io = TokioIo::new(stream);
    // Each kind of connection takes as much memory as it needs.
    match speaks {
        Speaks::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(limits.headers)
                .max_buf_size(HEADER_BYTES_MAX);
            let mut connection = Box::pin(builder.serve_connection(io, service).with_upgrades());
            if let Some(ended) = stop.run_until_cancelled(&mut connection).await {
                return Ok(ended?);
            }
            connection.as_mut().graceful_shutdown();
            Ok(connection.await?)
        }
        Speaks::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.streams)
                .max_header_list_size(HEADER_BYTES_MAX as u32)
                .keep_alive_interval(limits.keep_alive)
                .keep_alive_timeout(limits.keep_alive_timeout);
            let mut connection = Box::pin(builder.serve_connection(io, service));
            if let Some(ended) = stop.run_until_cancelled(&mut connection).await {
                return Ok(ended?);
            }
            connection.as_mut().graceful_shutdown();
            Ok(connection.await?)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn what_a_client_speaks_is_heard_by_its_first_bytes() {
        for (parts, want) in [
            (&["PRI * HTTP/2.0\r\n"][..], Speaks::Http2),
            (&["P", "RI"], Speaks::Http2),
            (&["P", "OST / HTTP/1.1\r\n"], Speaks::Http1),
            (&["GET / HTTP/1.1\r\n"], Speaks::Http1),
            (&[""], Speaks::Http1),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let saying = async {
                for part in parts {
                    client.write_all(part.as_bytes()).await.unwrap();
                    tokio::time::sleep(PREFACE_WAIT / 2).await;
                }
                client.shutdown().await.unwrap();
            };
            let (heard, ()) = tokio::join!(Speaks::heard(&stream, Duration::from_secs(10)), saying);
            assert_eq!(heard.unwrap(), want, "{parts:?}");
        }
        assert_eq!(Speaks::agreed(Some(b"h2")), Speaks::Http2);
        assert_eq!(Speaks::agreed(None), Speaks::Http1);
    }
}
