//! The workload controllers: from what is wanted and what there is to what has to be done.
//!
//! Every kind's file reads: what it watches → `observe` (from the store's view) → `reconcile`
//! (pure) → tests. One [`runner`] watches, plans, acts and tries again. Everything is written
//! through [`Objects`]; nothing else is seen.

pub mod deployment;
pub mod owner;
pub mod plan;
pub mod pods;
mod queue;
pub mod replica_set;
pub mod runner;
#[cfg(test)]
mod sim;

use std::sync::Arc;

use runner::Controller;

use crate::{objects::Objects, tasks::Tasks};

/// What a cluster sets about its controllers.
#[derive(Debug, Clone, Default)]
pub struct Options {}

/// Starts all controllers, each as a task of its own.
pub fn start(tasks: &Tasks, objects: &Objects, options: &Options) {
    for controller in all(options) {
        runner::start(tasks, objects.clone(), controller);
    }
}

fn all(_options: &Options) -> Vec<Arc<dyn Controller>> {
    vec![Arc::new(deployment::DeploymentController), Arc::new(replica_set::ReplicaSetController)]
}
