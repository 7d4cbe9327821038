//! The node agent: makes the pods that are wanted here run, and tells how they are.
//!
//! ```text
//! desired items ─ MQTT → ledger → worker (one a pod): observe → plan → jobs → runtime, net, images
//!                                   └ status, events → outbox ─ MQTT → master
//! ```
//! In: the desired set of this node. Out: running containers; statuses and events.
//! Invariants: what is acted upon is in the ledger first; an older generation is refused; with no
//! master at all everything goes on from the ledger, also after a cold boot; containers outlive the
//! agent and are adopted.
//! Deliberately absent: the store, API objects of other nodes, DNS and ingress servers (their tables
//! leave through [`Agent::tables`]).

mod address;
mod admit;
mod agent;
mod asks;
mod downward;
mod env;
mod eviction;
mod expose;
mod files;
mod folders;
mod hooks;
mod images;
mod info;
mod isolation;
mod jobs;
mod launch;
mod ledger;
mod local;
mod logs;
mod memory;
mod parts;
mod plan;
mod preempt;
mod probes;
mod qos;
mod record;
mod resize;
mod security;
mod shared;
mod status;
mod streams;
mod usage;
mod volumes;
mod worker;

pub use agent::{Agent, Ended, Ground, Link, ServiceHealth, Tables};
pub use info::{gather, hardware, outward_address};
pub use ledger::LedgerError;
pub use local::Local;
pub use shared::Options;
pub use status::OWN_CONDITIONS;

#[cfg(test)]
mod simulation;
