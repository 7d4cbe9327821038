//! Signs of life to nodes beyond a router that translates this node's address.
//!
//! In: their addresses in the pod network. Out: a datagram to each, often enough that the router lets
//! what they send in; and who of them does not answer. What answers is the other node's kernel: nobody
//! listens at the port, and that is what it says (ICMP), through the tunnel.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

/// Between two signs of life: Linux routers forget a one-sided exchange after 30 seconds (RFC 4787
/// asks for 120).
pub const PERIOD: Duration = Duration::from_secs(20);
/// Between the first ones, while nothing has answered yet.
pub const PERIOD_FIRST: Duration = Duration::from_secs(1);
/// Signs without an answer, the last one included, at which a node is called silent.
const UNANSWERED_MAX: u32 = 4;
/// `discard` (RFC 863).
const DISCARD: u16 = 9;

#[derive(Debug)]
struct Way {
    socket: UdpSocket,
    /// Signs since the last answer.
    unanswered: u32,
    /// Has ever answered.
    answered: bool,
}

/// The nodes beyond.
#[derive(Debug, Default)]
pub struct Beyond(BTreeMap<(String, Ipv4Addr), Way>);

impl Beyond {
    /// Makes it be exactly these nodes. `own` is this node's address in the pod network.
    pub fn set(&mut self, own: Ipv4Addr, nodes: Vec<(String, Ipv4Addr)>) {
        self.0.retain(|node, _| nodes.contains(node));
        for node in nodes {
            if self.0.contains_key(&node) {
                continue;
            }
            let open = || -> io::Result<UdpSocket> {
                let socket = UdpSocket::bind((own, 0))?;
                socket.set_nonblocking(true)?;
                socket.connect((node.1, DISCARD))?;
                Ok(socket)
            };
            match open() {
                Ok(socket) => drop(self.0.insert(node, Way { socket, unanswered: 0, answered: false })),
                Err(error) => {
                    tracing::warn!(node = node.0, %error, "a node beyond a router is not kept reached");
                }
            }
        }
    }

    /// How long until the next signs; `None` when there is nobody.
    pub fn pause(&self) -> Option<Duration> {
        let open = self.0.values().any(|way| !way.answered && way.unanswered < UNANSWERED_MAX);
        (!self.0.is_empty()).then_some(if open { PERIOD_FIRST } else { PERIOD })
    }

    /// Sends to all.
    pub fn send(&mut self) {
        for way in self.0.values_mut() {
            let refused = |result: io::Result<usize>| {
                result.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            };
            // The answer to the last one waits at the socket; it would be told instead of sending.
            if refused(way.socket.recv(&mut [0])) {
                way.unanswered = 0;
                way.answered = true;
            }
            // What cannot be sent is not answered either.
            let _ = way.socket.send(&[]);
            way.unanswered = way.unanswered.saturating_add(1);
        }
    }

    /// Who does not answer.
    pub fn silent(&self) -> BTreeSet<String> {
        let silent = self.0.iter().filter(|(_, way)| way.unanswered >= UNANSWERED_MAX);
        silent.map(|((node, _), _)| node.clone()).collect()
    }
}
