//! A watch as a stream of JSON lines.
//!
//! Costs a cursor and one chunk, no task and no queue: it is polled by the connection, and a client
//! that reads too slowly falls out of the store's history and is told so (410 in an ERROR event).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{
    health::Watched,
    negotiate::{Encoding, Shape},
    render::Renderer,
    reply,
    select::{Filter, WatchOptions},
    status::Refusal,
};
use crate::{
    clock::SharedClock,
    kinds::{registry, schema::proto},
    objects,
    store::{Event, EventKind, Object, Store, StoreError, Watch},
    tasks::CancellationToken,
};

/// How often a quiet watch hears its revision.
const BOOKMARK_PERIOD: Duration = Duration::from_mins(1);
/// How long a watch lasts that does not say; upstream picks between 30 and 60 minutes.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(45);
/// Events are gathered into chunks of about this size (bytes).
const CHUNK_BYTES: usize = 32 * 1024;

/// A running watch.
pub struct Watching {
    watch: Watch,
    filter: Filter,
    renderer: Renderer,
    clock: SharedClock,
    initial: VecDeque<Arc<Object>>,
    /// What to say once the initial events are out.
    end_of_initial: Option<String>,
    bookmarks: Option<Interval>,
    deadline: Instant,
    stop: CancellationToken,
    headers_sent: bool,
    failed: Option<Refusal>,
    done: bool,
    _counted: Watched,
}

impl Watching {
    /// Begins a watch. A revision that is too old is told within the stream, as upstream does.
    pub fn start(
        store: &Store,
        clock: SharedClock,
        filter: Filter,
        renderer: Renderer,
        options: &WatchOptions,
        stop: CancellationToken,
        counted: Watched,
    ) -> Result<Self, Refusal> {
        let stored = registry::stored(filter.kind).resource();
        let mut initial = VecDeque::new();
        let mut failed = None;
        let from = if let Some(from) = options.from {
            from
        } else {
            let listing = store.list(&stored, filter.namespace());
            initial = listing.items.into_iter().filter(|o| filter.matches(o)).collect();
            listing.revision
        };
        let watch = match store.watch(&stored, from) {
            Ok(watch) => watch,
            Err(error) => {
                failed = Some(expired(&error));
                store.watch(&stored, store.revision()).map_err(|e| Refusal::internal(e.to_string()))?
            }
        };
        let timeout = options.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
        let bookmarks = options.bookmarks.then(|| {
            let mut interval = tokio::time::interval_at(Instant::now() + BOOKMARK_PERIOD, BOOKMARK_PERIOD);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Ok(Self {
            watch,
            filter,
            renderer,
            clock,
            initial,
            end_of_initial: options.initial_events_end.then(|| from.to_string()),
            bookmarks,
            deadline: Instant::now() + timeout,
            stop,
            headers_sent: false,
            failed,
            done: false,
            _counted: counted,
        })
    }

    /// The watch as the body of an answer.
    pub fn into_stream(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures_util::stream::unfold(self, |mut watching| async move {
            let chunk = watching.next_chunk().await?;
            Some((chunk, watching))
        })
    }

    async fn next_chunk(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut chunk = Vec::new();
        let encoding = self.renderer.accepted.encoding;
        if let Some(refusal) = self.failed.take() {
            self.done = true;
            event(&mut chunk, encoding, "ERROR", &refusal.to_status());
            return Some(chunk.into());
        }
        self.renderer.now = self.clock.now();
        while let Some(object) = self.initial.pop_front() {
            self.object(&mut chunk, "ADDED", &object);
            if chunk.len() >= CHUNK_BYTES {
                return Some(chunk.into());
            }
        }
        if let Some(revision) = self.end_of_initial.take() {
            event(&mut chunk, encoding, "BOOKMARK", &self.renderer.bookmark(&revision, true));
        }
        if !chunk.is_empty() {
            return Some(chunk.into());
        }
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                () = tokio::time::sleep_until(self.deadline) => None,
                event = self.watch.next() => Some(event),
                () = tick(&mut self.bookmarks) => {
                    match self.watch.revision() {
                        Ok(revision) => {
                            event(&mut chunk, encoding, "BOOKMARK", &self.renderer.bookmark(&revision.to_string(), false));
                            return Some(chunk.into());
                        }
                        Err(error) => Some(Err(error)),
                    }
                }
            };
            let Some(mut found) = next.map(|e| e.map(Some)) else {
                self.done = true;
                return None;
            };
            self.renderer.now = self.clock.now();
            loop {
                match found {
                    Ok(Some(change)) => self.change(&mut chunk, &change),
                    Ok(None) => break,
                    Err(error) => {
                        self.done = true;
                        event(&mut chunk, encoding, "ERROR", &expired(&error).to_status());
                        return Some(chunk.into());
                    }
                }
                if chunk.len() >= CHUNK_BYTES {
                    break;
                }
                found = self.watch.try_next();
            }
            if !chunk.is_empty() {
                return Some(chunk.into());
            }
        }
    }

    /// What an event is for this watch's selection: an object may enter or leave it.
    fn change(&mut self, chunk: &mut Vec<u8>, event: &Event) {
        let before = event.previous.as_ref().is_some_and(|o| self.filter.matches(o));
        let after = event.kind != EventKind::Deleted && self.filter.matches(&event.object);
        match (before, after) {
            (false, false) => {}
            (false, true) => self.object(chunk, "ADDED", &event.object),
            (true, true) => self.object(chunk, "MODIFIED", &event.object),
            (true, false) if event.kind == EventKind::Deleted => self.object(chunk, "DELETED", &event.object),
            (true, false) => {
                if let Some(previous) = &event.previous {
                    let mut value = self.renderer.tree(previous);
                    value["metadata"]["resourceVersion"] = event.revision().to_string().into();
                    self.tree(chunk, "DELETED", value);
                }
            }
        }
    }

    fn object(&mut self, chunk: &mut Vec<u8>, kind: &str, object: &Object) {
        if self.renderer.accepted.shape == Shape::Whole
            && self.renderer.accepted.encoding != Encoding::Protobuf
        {
            text(chunk, kind, &self.renderer.one(object));
        } else {
            self.tree(chunk, kind, self.renderer.tree(object));
        }
    }

    fn tree(&mut self, chunk: &mut Vec<u8>, kind: &str, value: Value) {
        let headers = !std::mem::replace(&mut self.headers_sent, true);
        event(chunk, self.renderer.accepted.encoding, kind, &self.renderer.shaped(value, headers));
    }
}

fn expired(error: &StoreError) -> Refusal {
    match error {
        StoreError::Expired { .. } => objects::Error::Expired(error.to_string()).into(),
        other => Refusal::internal(other.to_string()),
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// One event in the encoding of the watch.
fn event(chunk: &mut Vec<u8>, encoding: Encoding, kind: &str, object: &Value) {
    if encoding == Encoding::Protobuf
        && let Some(bytes) = reply::protobuf(object)
    {
        return chunk.extend(proto::encode_watch_event(kind, &bytes));
    }
    chunk.extend_from_slice(json!({"type": kind, "object": object}).to_string().as_bytes());
    chunk.push(b'\n');
}

fn text(chunk: &mut Vec<u8>, kind: &str, object: &[u8]) {
    chunk.extend_from_slice(b"{\"type\":\"");
    chunk.extend_from_slice(kind.as_bytes());
    chunk.extend_from_slice(b"\",\"object\":");
    chunk.extend_from_slice(object);
    chunk.extend_from_slice(b"}\n");
}
