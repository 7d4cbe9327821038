//! Sampan: Kubernetes for a board you can hold in your hand.
//!
//! The modules are rooms on floors; imports go down only (see ARCHITECTURE.md, held by
//! `tests/architecture.rs`).
//!
//! ```text
//! cli, app
//! api  controllers  scheduler  dispatch  node  dns  ingress
//! objects
//! store  mqtt  runtime  image  net
//! kinds  patch  config  ids  clock  tasks  demo
//! ```

pub mod api;
pub mod app;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod controllers;
pub mod crash;
pub mod demo;
pub mod dispatch;
pub mod dns;
pub mod http;
pub mod ids;
pub mod image;
pub mod ingress;
pub mod install;
pub mod kinds;
pub mod manifest;
pub mod memory;
pub mod mqtt;
pub mod net;
pub mod node;
pub mod objects;
pub mod oci;
pub mod patch;
pub mod runtime;
pub mod scheduler;
pub mod store;
pub mod streams;
pub mod tasks;
pub mod trust;
pub mod usage;
