//! The composition root: builds every part from the configuration, then runs them until told to
//! stop. Sockets are bound while building, served while running.

mod notify;

use std::sync::Arc;

use anyhow::Context;

use crate::{
    clock::{SharedClock, SystemClock},
    config,
    objects::Objects,
    store::Store,
    tasks::Tasks,
};

/// A daemon, built and not yet running.
pub struct App {
    store: Store,
    tasks: Arc<Tasks>,
}

impl App {
    /// A master that is also a worker.
    ///
    /// # Errors
    /// Whatever keeps the daemon from starting: directories, the store, ports, kernel features.
    pub async fn server(config: config::Server) -> anyhow::Result<Self> {
        let common = &config.common;
        for dir in [&common.data_dir, &common.run_dir] {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let clock: SharedClock = Arc::new(SystemClock);
        let store = Store::open(&common.data_dir.join("server/state.db"))?;
        let _objects = Objects::new(store.clone(), clock);
        Ok(Self { store, tasks: Arc::new(Tasks::new()) })
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
        self.store.close().await;
        anyhow::ensure!(!failed, "a part of the daemon failed, see the log above");
        Ok(())
    }
}
