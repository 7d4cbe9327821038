//! Bodies on their way through: requests that show progress, responses that must not stall.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Limited;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::{exchange::Exchange, pool::Lease};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(#[source] pub BoxError);

/// When something of a request's body last moved.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    last_millis: AtomicU64,
}

impl Progress {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), last_millis: AtomicU64::new(0) })
    }

    fn touch(&self) {
        self.last_millis.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for `limit`.
    pub async fn stalled(&self, limit: Duration) {
        loop {
            let last = self.start + Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
            let end = last + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// A request's body, with a limit; empty by default.
#[derive(Default)]
pub struct Upload {
    inner: Option<Limited<Incoming>>,
    progress: Option<Arc<Progress>>,
}

impl Upload {
    /// Tells of its progress, unless there is nothing that could move.
    pub fn new(body: Incoming, bytes_max: Option<u64>) -> (Self, Option<Arc<Progress>>) {
        if body.is_end_stream() {
            return (Self::default(), None);
        }
        let max = bytes_max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
        let progress = Progress::new();
        let upload = Self { inner: Some(Limited::new(body, max)), progress: Some(Arc::clone(&progress)) };
        (upload, Some(progress))
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if let Some(progress) = &self.progress {
            progress.touch();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), hyper::body::Body::size_hint)
    }
}

/// A response's body.
pub enum Body {
    /// All of it.
    Whole(Bytes),
    Download(Box<Download>),
}

impl Body {
    /// What the server itself says.
    pub fn said(text: &'static str) -> Self {
        Self::Whole(Bytes::from_static(text.as_bytes()))
    }

    /// The rest of an exchange; its connection is given back as soon as all of it was read.
    pub fn own(mut exchange: Exchange, lease: Lease, limit: Duration) -> Self {
        if let Some(rest) = exchange.rest() {
            lease.give_back(exchange);
            return Self::Whole(rest);
        }
        let source = Source::Own(exchange, lease);
        Self::Download(Box::new(Download { source, limit, timer: None, waiting: false }))
    }

    /// A stream of a connection that is shared.
    pub fn shared(body: Incoming, limit: Duration) -> Self {
        let source = Source::Shared(body);
        Self::Download(Box::new(Download { source, limit, timer: None, waiting: false }))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Download(download) => download.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Download(download) => download.source.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Download(download) => download.source.size_hint(),
        }
    }
}

/// Where a response comes from.
enum Source {
    Own(Exchange, Lease),
    Shared(Incoming),
    /// It has come to its end.
    End,
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Own(exchange, _) => {
                let frame = ready!(exchange.poll_frame(cx));
                if (frame.is_none() || exchange.is_done())
                    && let Self::Own(exchange, lease) = std::mem::replace(self, Self::End)
                {
                    lease.give_back(exchange);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError(error.into()))))
            }
            Self::Shared(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError(error.into()))))
            }
            Self::End => Poll::Ready(None),
        }
    }

    fn is_end(&self) -> bool {
        match self {
            Self::Own(exchange, _) => exchange.is_done(),
            Self::Shared(body) => body.is_end_stream(),
            Self::End => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(exchange, _) => exchange.left().map_or_else(SizeHint::new, SizeHint::with_exact),
            Self::Shared(body) => body.size_hint(),
            Self::End => SizeHint::with_exact(0),
        }
    }
}

/// A response's body as it comes; ends when its backend is silent for too long.
pub struct Download {
    source: Source,
    limit: Duration,
    /// Made when the backend is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Download {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = self.source.poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(frame);
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(Instant::now() + self.limit);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError("the backend stalled".into()))))
    }
}
