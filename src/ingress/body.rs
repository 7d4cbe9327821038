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
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::pool::{BodyError, Lease};

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

/// A request's body, with a limit.
pub struct Upload {
    inner: Limited<Incoming>,
    /// `None` when there is nothing that could move.
    progress: Option<Arc<Progress>>,
}

impl Upload {
    pub fn new(body: Incoming, bytes_max: Option<u64>, progress: Option<Arc<Progress>>) -> Self {
        let max = bytes_max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
        Self { inner: Limited::new(body, max), progress }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(progress) = &self.progress {
            progress.touch();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response's body; gives its connection back at its end.
pub struct Download {
    inner: Incoming,
    lease: Option<Lease>,
    limit: Duration,
    /// Made when the backend is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Download {
    pub fn new(body: Incoming, lease: Option<Lease>, limit: Duration) -> Self {
        let mut download = Self { inner: body, lease, limit, timer: None, waiting: false };
        download.release_at_end();
        download
    }

    fn release_at_end(&mut self) {
        if self.inner.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.waiting = false;
                if frame.is_none()
                    && let Some(lease) = this.lease.take()
                {
                    lease.give_back();
                }
                this.release_at_end();
                Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError(error.into()))))
            }
            Poll::Pending => {
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(this.limit)));
                if !this.waiting {
                    this.waiting = true;
                    timer.as_mut().reset(Instant::now() + this.limit);
                }
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(BodyError("the backend stalled".into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
