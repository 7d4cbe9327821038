//! The composition root: builds every part from the configuration, then runs them until told to
//! stop. Sockets are bound while building, served while running.

mod agent;
mod backup;
mod claim;
mod ingress;
mod link;
mod names;
mod notify;
mod remove;
mod server;
mod service_health;
mod streams;
mod tap;
mod usage;
mod worker;

use std::sync::Arc;

use anyhow::Context;
use claim::Claim;

pub use backup::{Meta as BackupMeta, backup};
pub use server::{BROKER_EXTERNAL, BROKER_NOTE};
pub use tap::{Tap, tap};

use crate::{config, store::Store, tasks::Tasks};

/// A daemon, built; its parts are already at work.
pub struct App {
    /// The master's; an agent has none.
    store: Option<Store>,
    tasks: Arc<Tasks>,
    /// The folders are this daemon's for as long as it lives.
    claims: Vec<Claim>,
}

impl App {
    /// A master that is also a worker.
    ///
    /// # Errors
    /// Whatever keeps the daemon from starting: directories, the store, ports, kernel features.
    pub async fn server(config: config::Server) -> anyhow::Result<Self> {
        let claims = prepare(&config.common)?;
        Ok(Self { claims, ..server::build(config).await? })
    }

    /// A worker of another board's master; joins first when it is in no cluster yet.
    ///
    /// # Errors
    /// As [`App::server`]; and when the master refuses this board.
    pub async fn agent(config: config::Agent) -> anyhow::Result<Self> {
        let claims = prepare(&config.common)?;
        Ok(Self { claims, ..agent::build(config).await? })
    }

    /// Ends the pods of a master's board for good; no daemon runs. Data stays. What failed.
    pub async fn remove_server(config: &config::Server) -> Vec<String> {
        remove::pods(&config.common, config.cluster_cidr, config.service_cidr).await
    }

    /// The same on a worker's board, whose networks are its master's.
    ///
    /// # Errors
    /// When what the board knows of its cluster cannot be read.
    pub async fn remove_agent(config: &config::Agent) -> anyhow::Result<Vec<String>> {
        let Some((cluster_cidr, service_cidr)) = agent::networks(&config.common)? else {
            return Ok(Vec::new());
        };
        Ok(remove::pods(&config.common, cluster_cidr, service_cidr).await)
    }

    /// Runs until `stop` resolves or a part fails, then stops everything in order.
    ///
    /// # Errors
    /// When a part failed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        notify::ready();
        if let Some(interval) = notify::watchdog_interval() {
            self.tasks.spawn("watchdog", |stop| notify::watchdog(interval, stop));
        }
        let failed = tokio::select! {
            () = stop => false,
            () = self.tasks.failed() => true,
        };
        notify::stopping();
        self.tasks.stop().await;
        if let Some(store) = self.store {
            store.close().await;
        }
        drop(self.claims);
        anyhow::ensure!(!failed, "a part of the daemon failed, see the log above");
        Ok(())
    }
}

/// What every daemon needs before its parts are built.
fn prepare(common: &config::Common) -> anyhow::Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for dir in [&common.data_dir, &common.run_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        claims.push(Claim::of(dir)?);
    }
    // Libraries that make their own TLS configuration look for this one. A second start in one
    // process (tests) finds it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(claims)
}
