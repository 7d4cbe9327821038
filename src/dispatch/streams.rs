//! The master's end of streams: logs, exec, attach and forwarded ports of pods on nodes.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::mqtt::{
    self, Bus,
    stream::{Mux, Request, Stream},
    topics::{self, Leaf},
};

/// Why a stream was not opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("node {0:?} is not connected")]
    Away(String),
    #[error("open a stream to node {node:?}: {source}")]
    Link { node: String, source: mqtt::Error },
}

/// Opens streams to nodes. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    mux: Mux,
    nodes: Arc<Mutex<BTreeSet<String>>>,
}

impl Streams {
    pub(super) fn new(bus: Arc<dyn Bus>, cluster: String) -> Self {
        let mux = Mux::new(bus, move |node| topics::down(&cluster, node, Leaf::Stream));
        Self { mux, nodes: Arc::default() }
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.nodes.lock().expect("no holder of the nodes' lock panics")
    }

    /// Opens a stream to a node. The node checks the request against its own pods; a refusal comes
    /// as the stream's outcome.
    ///
    /// # Errors
    /// The node is not connected, or the link is down.
    pub async fn open(&self, node: &str, request: &Request) -> Result<Stream, StreamError> {
        if !self.nodes().contains(node) {
            return Err(StreamError::Away(node.to_owned()));
        }
        let opened = self.mux.open(node, request).await;
        opened.map_err(|source| StreamError::Link { node: node.to_owned(), source })
    }

    /// Whether a node is connected now.
    pub fn is_connected(&self, node: &str) -> bool {
        self.nodes().contains(node)
    }

    pub(super) fn joined(&self, node: &str) {
        self.nodes().insert(node.to_owned());
    }

    /// The node, or its session, is gone.
    pub(super) fn lost(&self, node: &str) {
        self.nodes().remove(node);
        self.mux.lost(node);
    }

    /// The master itself was cut off.
    pub(super) fn all_lost(&self) {
        let nodes = std::mem::take(&mut *self.nodes());
        for node in nodes {
            self.mux.lost(&node);
        }
    }

    pub(super) fn heard(&self, node: &str, payload: &Bytes) {
        // Streams are opened by masters only; what a node would open is dropped, and so ended.
        drop(self.mux.heard(node, payload));
    }
}
