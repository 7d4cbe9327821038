//! The contract between the API's streaming subresources and whatever carries them to a node.
//!
//! The API speaks HTTP and WebSocket to a client and this to a node; `dispatch` implements it over
//! MQTT, tests in memory. Streams are bounded pipes: who reads slowly slows the other end down.

use std::{future::Future, pin::Pin};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};

/// A future that can be stored.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StreamError>> + Send + 'a>>;
/// One direction of a stream.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The container of a pod on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub node: String,
    pub namespace: String,
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    pub container: String,
}

/// What a client wants of a log (`v1` PodLogOptions).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// Of the container's former life.
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    /// Lines of this time or later.
    pub since: Option<jiff::Timestamp>,
    /// `Stdout` or `Stderr`; `None`: all.
    pub stream: Option<String>,
}

/// Which streams an exec or attach has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// It could not be run, or the session broke.
    Failed(String),
}

/// A running exec or attach, seen from the API. Dropping it ends the session.
pub struct Session {
    /// Present when wanted.
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    pub resize: mpsc::Sender<TerminalSize>,
    /// Sent once, after the last byte of output.
    pub exit: oneshot::Receiver<Exit>,
}

/// A connection to a port of a pod, or of the node itself.
pub struct Connection {
    pub read: Reader,
    pub write: Writer,
}

/// Why a stream did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The node is away; the API answers 503 at once.
    #[error("node {0:?} is not connected")]
    NodeAway(String),
    /// There is no such pod or container on the node, or it does not run.
    #[error("{0}")]
    NotFound(String),
    /// The node refused; its words.
    #[error("{0}")]
    Refused(String),
    /// The node took too long.
    #[error("node {0:?} did not answer in time")]
    Timeout(String),
}

/// Streams to nodes.
pub trait NodeStreams: Send + Sync + 'static {
    /// Whether the node can be reached now: asked before a client's connection is upgraded.
    fn is_connected(&self, _node: &str) -> bool {
        true
    }

    /// The lines of a container's log.
    fn logs<'a>(&'a self, target: &'a Target, options: &'a LogOptions) -> Answer<'a, Reader>;

    /// Runs a command in a container.
    fn exec<'a>(&'a self, target: &'a Target, command: &'a [String], wanted: Wanted) -> Answer<'a, Session>;

    /// Joins a container's streams.
    fn attach<'a>(&'a self, target: &'a Target, wanted: Wanted) -> Answer<'a, Session>;

    /// Connects to a port inside the pod's network namespace (`target.container` is empty).
    fn connect<'a>(&'a self, target: &'a Target, port: u16) -> Answer<'a, Connection>;

    /// What a node's kubelet tells over HTTP under this path and query.
    fn ask_node<'a>(&'a self, node: &'a str, path: &'a str) -> Answer<'a, Vec<u8>>;
}
