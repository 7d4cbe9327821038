//! The link between a master and its nodes: topics, messages, client, embedded broker.
//!
//! In: typed messages for a topic. Out: events of a connection. A [`Bus`] is one client's side of a
//! broker; it is the same whether the broker is embedded, external, or in the test's memory.
//! Invariants: nothing rests on the memory of broker or client library: what is queued when a
//! connection ends is dropped, and the next hello heals it; every queue and payload is bounded.
//! Deliberately absent: objects, pods, the meaning of a message (it is `dispatch`'s and `node`'s).

pub mod broker;
pub mod join;
pub mod memory;
pub mod messages;
pub mod session;
pub mod stream;
mod throttle;
pub mod topics;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

/// Events of one connection that wait for their reader.
pub const EVENTS_MAX: usize = 64;
/// The largest payload on the wire (bytes).
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;

/// How urgent a message is: all control messages that wait go before any bulk message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Desired state, status, calls.
    Control,
    /// Log lines, terminals, forwarded ports.
    Bulk,
}

/// What happens on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Connected, and all subscriptions are in force.
    Connected,
    Disconnected {
        reason: String,
    },
    Message {
        topic: String,
        payload: Bytes,
    },
}

/// A message that the broker publishes when this client is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    pub topic: String,
    pub payload: Bytes,
}

/// Why a message was not taken, or a connection could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not connected to the broker")]
    Offline,
    #[error("a payload of {0} bytes is larger than the {PAYLOAD_BYTES_MAX} that are allowed")]
    TooLarge(usize),
    #[error("this is no join token; `sampan token create` on the master prints one")]
    Token,
    #[error("decode message: {0}")]
    Decode(String),
    #[error("broker address {url:?}: {message}")]
    Url { url: String, message: String },
    #[error("broker: {0}")]
    Broker(String),
    #[error("{operation}: {source}")]
    Io { operation: String, source: std::io::Error },
}

/// One client's side of a broker. Events come on the channel that is made with it.
pub trait Bus: Send + Sync + 'static {
    /// Queues a message (at-least-once while the connection lasts). Waits while the queue is full.
    fn publish<'a>(
        &'a self,
        topic: &'a str,
        payload: Bytes,
        priority: Priority,
    ) -> BoxFuture<'a, Result<(), Error>>;
    /// Waits for a place in the queue, to be filled at once: who numbers his messages gives the
    /// number and takes the place in one step.
    fn reserve(&self, priority: Priority) -> BoxFuture<'_, Result<Place, Error>>;
    /// Queues a message if there is room.
    fn try_publish(&self, topic: &str, payload: Bytes, priority: Priority) -> Result<(), Error>;
    /// Whether the broker can be reached now.
    fn connected(&self) -> bool;
    /// Leaves the present broker for the next one, when there are several.
    fn leave(&self) {}
    /// Makes the connection anew: the address that the present one is from is gone.
    fn renew(&self) {}
}

/// A reserved place in a bus's queue: takes topic and payload.
pub type Place = Box<dyn FnOnce(String, Bytes) + Send>;

/// Where a bus tells what happens.
pub type Events = mpsc::Receiver<Event>;
