//! Streams inside of the link: logs, terminals, forwarded ports; many at once, each with credit.
//!
//! A frame on the wire is binary: kind (1 byte), stream id (8, big-endian), number (4, big-endian,
//! counted by stream and direction from 0), then the kind's own bytes:
//!
//! ```text
//! 1 open    a JSON Request                     4 close   channel (1): no more data on it
//! 2 data    channel (1), bytes                 5 resize  columns (2), rows (2)
//! 3 credit  bytes (4) that may follow          6 end     a JSON Outcome; the stream is over
//! 7 opened  what was asked for is under way
//! ```
//! Invariants: a sender has never more than [`WINDOW_BYTES`] on the way that the reader has not
//! taken; a gap in the numbers ends the stream with an error, since what was lost cannot be made up;
//! a peer that sends more than it may is cut off.
//! Deliberately absent: what a request means (`node` serves it), the end of a connection (its owner
//! calls [`Mux::lost`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

use super::{Bus, Error, Priority};
use crate::ids;

/// Bytes of one stream and direction that may be on the way.
pub const WINDOW_BYTES: u32 = 128 * 1024;
/// Credit is given back in pieces of this size.
const CREDIT_BYTES: u32 = WINDOW_BYTES / 4;
/// The data of one frame: small, so that streams take turns.
const FRAME_BYTES_MAX: usize = 16 * 1024;
/// Streams at once, over all peers.
const STREAMS_MAX: usize = 1024;
const HEAD_BYTES: usize = 13;

/// The channels of exec and attach; logs use [`STDOUT`], a forwarded port [`STDIN`] both ways.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;

/// What is asked for when logs are read (`PodLogOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub since: Option<jiff::Timestamp>,
    /// `Stdout` or `Stderr`; both when `None`.
    pub stream: Option<String>,
}

/// Which container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Place {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Empty for a forwarded port.
    pub container: String,
}

/// What a stream is opened for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    Logs {
        place: Place,
        options: LogOptions,
    },
    Exec {
        place: Place,
        command: Vec<String>,
        stdin: bool,
        tty: bool,
    },
    Attach {
        place: Place,
        stdin: bool,
    },
    PortForward {
        place: Place,
        port: u16,
    },
    /// What a kubelet tells over HTTP: `metrics`, `stats/summary?…`.
    Node {
        path: String,
    },
}

/// How a stream has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome {
    /// The exit code of a command.
    pub code: Option<i32>,
    /// Why it failed, for the user.
    pub error: Option<String>,
    /// The failure is the asker's: no such container, nothing to attach to.
    pub refused: bool,
}

impl Outcome {
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    pub fn refused(error: impl Into<String>) -> Self {
        Self { refused: true, ..Self::failed(error) }
    }
}

/// What comes out of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    Data {
        channel: u8,
        bytes: Bytes,
    },
    Close {
        channel: u8,
    },
    Resize {
        columns: u16,
        rows: u16,
    },
    /// What was asked for is under way: it is not refused any more.
    Opened,
    End(Outcome),
}

struct Entry {
    peer: String,
    incoming: mpsc::UnboundedSender<Incoming>,
    credit: Arc<Semaphore>,
    /// The number of the next frame that is to come.
    expected: u32,
    /// The number of the next frame that goes out.
    next: u32,
    /// Bytes received that the reader has not taken.
    untaken: u32,
}

type TopicOf = Box<dyn Fn(&str) -> String + Send + Sync>;

/// The streams of one end of the link. Cheap to clone.
#[derive(Clone)]
pub struct Mux(Arc<Inner>);

struct Inner {
    bus: Arc<dyn Bus>,
    topic_of: TopicOf,
    streams: Mutex<HashMap<u64, Entry>>,
}

/// The reading and writing end of one stream. Dropping it ends the stream.
pub struct Stream {
    sender: StreamSender,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    taken: u32,
    ended: bool,
}

/// The writing end of one stream.
#[derive(Clone)]
pub struct StreamSender {
    mux: Mux,
    id: u64,
    peer: String,
    credit: Arc<Semaphore>,
}

fn frame(kind: u8, id: u64, number: u32, body: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD_BYTES + body.iter().map(|b| b.len()).sum::<usize>());
    out.put_u8(kind);
    out.put_u64(id);
    out.put_u32(number);
    for part in body {
        out.put_slice(part);
    }
    out.freeze()
}

impl Mux {
    /// An end of the link. `topic_of` gives the topic that a peer listens to.
    pub fn new(bus: Arc<dyn Bus>, topic_of: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { bus, topic_of: Box::new(topic_of), streams: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.0.streams.lock().expect("no holder of the streams' lock panics")
    }

    fn enter(&self, id: u64, peer: &str, expected: u32) -> Option<Stream> {
        let mut streams = self.lock();
        if streams.len() >= STREAMS_MAX || streams.contains_key(&id) {
            return None;
        }
        let (sender, incoming) = mpsc::unbounded_channel();
        let credit = Arc::new(Semaphore::new(WINDOW_BYTES as usize));
        let entry = Entry {
            peer: peer.to_owned(),
            incoming: sender,
            credit: Arc::clone(&credit),
            expected,
            next: 0,
            untaken: 0,
        };
        streams.insert(id, entry);
        let sender = StreamSender { mux: self.clone(), id, peer: peer.to_owned(), credit };
        Some(Stream { sender, incoming, taken: 0, ended: false })
    }

    /// Opens a stream to a peer.
    ///
    /// # Errors
    /// The link is down, or too many streams are open.
    pub async fn open(&self, peer: &str, request: &Request) -> Result<Stream, Error> {
        let id = u64::from_be_bytes(ids::random_bytes());
        let stream =
            self.enter(id, peer, 0).ok_or_else(|| Error::Broker("too many streams are open".to_owned()))?;
        let body = serde_json::to_vec(request).map_err(|e| Error::Decode(e.to_string()))?;
        stream.sender.put(1, &[&body]).await?;
        Ok(stream)
    }

    /// Takes a frame of a peer; gives the stream when it opens one.
    pub fn heard(&self, peer: &str, payload: &Bytes) -> Option<(Stream, Request)> {
        let (kind, id, number) = head(payload)?;
        let body = payload.slice(HEAD_BYTES..);
        if kind == 1 {
            let request = serde_json::from_slice(&body).ok()?;
            return self.enter(id, peer, 1).map(|stream| (stream, request));
        }
        let mut streams = self.lock();
        let Some(entry) = streams.get_mut(&id).filter(|e| e.peer == peer) else {
            drop(streams);
            // The other end does not know yet that this one is gone.
            if kind != 6 {
                let body = serde_json::to_vec(&Outcome::failed("the stream is gone")).ok()?;
                let _ = self.0.bus.try_publish(
                    &(self.0.topic_of)(peer),
                    frame(6, id, 0, &[&body]),
                    Priority::Bulk,
                );
            }
            return None;
        };
        let verdict = if number == entry.expected || kind == 6 && number == 0 {
            entry.expected = number.wrapping_add(1);
            accept(entry, kind, &body)
        } else {
            Err("a part of the stream was lost on its way".to_owned())
        };
        let event = match verdict {
            Ok(Some(event)) => event,
            Ok(None) => return None,
            Err(error) => Incoming::End(Outcome::failed(error)),
        };
        let over = matches!(event, Incoming::End(_));
        // The reader is gone when this fails; its end tells the peer.
        let _ = entry.incoming.send(event);
        if over && let Some(entry) = streams.remove(&id) {
            entry.credit.close();
        }
        None
    }

    /// The connection to a peer was lost: its streams are over.
    pub fn lost(&self, peer: &str) {
        self.lock().retain(|_, entry| {
            let stays = entry.peer != peer;
            if !stays {
                let _ = entry
                    .incoming
                    .send(Incoming::End(Outcome::failed("the connection to the node was lost")));
                entry.credit.close();
            }
            stays
        });
    }
}

/// A frame in words, without what it carries.
pub fn describe(payload: &[u8]) -> String {
    let Some((kind, id, number)) = head(payload) else { return "a broken frame".to_owned() };
    let body = &payload[HEAD_BYTES..];
    let name = match kind {
        1 => "open",
        2 => "data",
        3 => "credit",
        4 => "close",
        5 => "resize",
        6 => "end",
        7 => "opened",
        _ => "unknown",
    };
    let rest = match (kind, body.split_first()) {
        (2, Some((channel, bytes))) => format!(" channel={channel} {} bytes", bytes.len()),
        (1 | 6, _) => format!(" {}", String::from_utf8_lossy(body)),
        _ => String::new(),
    };
    format!("{name} stream={id:016x} number={number}{rest}")
}

fn head(payload: &[u8]) -> Option<(u8, u64, u32)> {
    let kind = *payload.first()?;
    let id = u64::from_be_bytes(payload.get(1..9)?.try_into().ok()?);
    let number = u32::from_be_bytes(payload.get(9..13)?.try_into().ok()?);
    Some((kind, id, number))
}

fn accept(entry: &mut Entry, kind: u8, body: &Bytes) -> Result<Option<Incoming>, String> {
    let broken = || "a broken frame came".to_owned();
    Ok(Some(match kind {
        2 => {
            let channel = *body.first().ok_or_else(broken)?;
            let bytes = body.slice(1..);
            entry.untaken = entry.untaken.saturating_add(bytes.len() as u32);
            if entry.untaken > WINDOW_BYTES {
                return Err("the peer sent more than it may".to_owned());
            }
            Incoming::Data { channel, bytes }
        }
        3 => {
            let bytes: [u8; 4] = body.as_ref().try_into().map_err(|_| broken())?;
            let given = u32::from_be_bytes(bytes).min(WINDOW_BYTES) as usize;
            if entry.credit.available_permits() + given <= WINDOW_BYTES as usize {
                entry.credit.add_permits(given);
            }
            return Ok(None);
        }
        4 => Incoming::Close { channel: *body.first().ok_or_else(broken)? },
        5 => {
            let size: [u8; 4] = body.as_ref().try_into().map_err(|_| broken())?;
            Incoming::Resize {
                columns: u16::from_be_bytes([size[0], size[1]]),
                rows: u16::from_be_bytes([size[2], size[3]]),
            }
        }
        6 => Incoming::End(serde_json::from_slice(body).map_err(|_| broken())?),
        7 => Incoming::Opened,
        _ => return Err(broken()),
    }))
}

impl StreamSender {
    /// Numbers a frame and queues it.
    async fn put(&self, kind: u8, body: &[&[u8]]) -> Result<(), Error> {
        let topic = (self.mux.0.topic_of)(&self.peer);
        // The slot comes first: between number and queue there must be no wait.
        let slot = self.mux.0.bus.reserve(Priority::Bulk).await?;
        {
            // The lock is held from the number to the queue, so that frames are in order.
            let mut streams = self.mux.lock();
            let entry = streams.get_mut(&self.id).ok_or(Error::Offline)?;
            let number = entry.next;
            entry.next = number.wrapping_add(1);
            slot(topic, frame(kind, self.id, number, body));
        }
        Ok(())
    }

    /// Sends bytes on a channel, as far as the reader has room; waits for the rest.
    ///
    /// # Errors
    /// The stream or the link is over.
    pub async fn send(&self, channel: u8, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(FRAME_BYTES_MAX));
            let permits = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let credit = self.credit.acquire_many(permits).await.map_err(|_| Error::Offline)?;
            credit.forget();
            self.put(2, &[&[channel], &part]).await?;
        }
        Ok(())
    }

    /// Says that what was asked for is under way.
    ///
    /// # Errors
    /// The stream or the link is over.
    pub async fn opened(&self) -> Result<(), Error> {
        self.put(7, &[]).await
    }

    /// Says that nothing more comes on a channel.
    ///
    /// # Errors
    /// The stream or the link is over.
    pub async fn close(&self, channel: u8) -> Result<(), Error> {
        self.put(4, &[&[channel]]).await
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    /// The stream or the link is over.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        self.put(5, &[&columns.to_be_bytes(), &rows.to_be_bytes()]).await
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// The stream or the link is over already.
    pub async fn end(&self, outcome: &Outcome) -> Result<(), Error> {
        let body = serde_json::to_vec(outcome).map_err(|e| Error::Decode(e.to_string()))?;
        let result = self.put(6, &[&body]).await;
        self.mux.lock().remove(&self.id);
        self.credit.close();
        result
    }
}

impl Stream {
    /// The writing end, for another task.
    pub fn sender(&self) -> StreamSender {
        self.sender.clone()
    }

    /// What comes next; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Incoming> {
        if self.taken >= CREDIT_BYTES {
            let given = self.taken;
            if let Some(entry) = self.sender.mux.lock().get_mut(&self.sender.id) {
                entry.untaken = entry.untaken.saturating_sub(given);
            }
            self.taken = 0;
            // Over when this fails, which the channel below tells.
            let _ = self.sender.put(3, &[&given.to_be_bytes()]).await;
        }
        if self.ended {
            return None;
        }
        let next = self.incoming.recv().await;
        match &next {
            Some(Incoming::Data { bytes, .. }) => self.taken += bytes.len() as u32,
            Some(Incoming::End(_)) | None => self.ended = true,
            Some(_) => {}
        }
        next
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(entry) = self.sender.mux.lock().remove(&self.sender.id) else { return };
        entry.credit.close();
        let body = serde_json::to_vec(&Outcome::failed("the stream was closed")).unwrap_or_default();
        let topic = (self.sender.mux.0.topic_of)(&self.sender.peer);
        // When the queue is full, the peer learns it by the answer to its next frame.
        let _ = self.sender.mux.0.bus.try_publish(
            &topic,
            frame(6, self.sender.id, entry.next, &[&body]),
            Priority::Bulk,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{Event, Events, memory::MemoryBroker};

    struct Side {
        mux: Mux,
        events: Events,
    }

    fn pair() -> (Side, Side, MemoryBroker) {
        let broker = MemoryBroker::new();
        let (bus, events) = broker.connect("m", vec!["up".into()], None);
        let master = Side { mux: Mux::new(bus, |_| "down".to_owned()), events };
        let (bus, events) = broker.connect("n", vec!["down".into()], None);
        let node = Side { mux: Mux::new(bus, |_| "up".to_owned()), events };
        (master, node, broker)
    }

    fn request() -> Request {
        Request::PortForward { place: Place::default(), port: 80 }
    }

    /// Passes frames on until one opens a stream.
    async fn opened(side: &mut Side) -> (Stream, Request) {
        loop {
            if let Some(Event::Message { payload, .. }) = side.events.recv().await
                && let Some(opened) = side.mux.heard("", &payload)
            {
                return opened;
            }
        }
    }

    fn pump(mut side: Side) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            while let Some(event) = side.events.recv().await {
                if let Event::Message { payload, .. } = event {
                    side.mux.heard("", &payload);
                }
            }
        })
    }

    #[tokio::test]
    async fn bytes_flow_both_ways_and_wait_for_their_reader() {
        let (master, mut node, _broker) = pair();
        let mut near = master.mux.open("", &request()).await.unwrap();
        let (mut far, asked) = opened(&mut node).await;
        assert_eq!(asked, request());
        let _pumps = (pump(master), pump(node));
        let sender = near.sender();
        let written = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&written);
        let writer = tokio::spawn(async move {
            for n in 0..64u8 {
                sender.send(STDIN, Bytes::from(vec![n; 16 * 1024])).await.unwrap();
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            sender.close(STDIN).await.unwrap();
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(written.load(std::sync::atomic::Ordering::SeqCst), 8, "the window holds back the rest");
        let mut total = 0;
        loop {
            match far.next().await.unwrap() {
                Incoming::Data { bytes, .. } => {
                    assert!(bytes.iter().all(|b| usize::from(*b) == total / (16 * 1024)));
                    total += bytes.len();
                }
                Incoming::Close { channel: STDIN } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(total, 64 * 16 * 1024);
        writer.await.unwrap();
        near.sender().resize(80, 24).await.unwrap();
        assert_eq!(far.next().await, Some(Incoming::Resize { columns: 80, rows: 24 }));
        let outcome = Outcome { code: Some(3), ..Outcome::default() };
        far.sender().end(&outcome).await.unwrap();
        assert_eq!(near.next().await, Some(Incoming::End(outcome)));
        assert_eq!(near.next().await, None);
    }

    #[tokio::test]
    async fn a_dropped_end_and_a_lost_frame_end_the_stream() {
        let (master, mut node, broker) = pair();
        let near = master.mux.open("", &request()).await.unwrap();
        let (mut far, _) = opened(&mut node).await;
        let mut second = master.mux.open("", &request()).await.unwrap();
        let (other, _) = opened(&mut node).await;
        let _pumps = (pump(master), pump(node));
        drop(near);
        assert!(matches!(far.next().await, Some(Incoming::End(_))));
        broker.lose("m", 1);
        other.sender().send(STDOUT, Bytes::from_static(b"lost")).await.unwrap();
        other.sender().send(STDOUT, Bytes::from_static(b"late")).await.unwrap();
        let Some(Incoming::End(outcome)) = second.next().await else { panic!("it goes on") };
        assert!(outcome.error.unwrap().contains("lost"));
    }
}
