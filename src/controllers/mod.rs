//! The workload controllers: from what is wanted and what there is to what has to be done.
//!
//! Every kind's file reads: what it watches → `observe` (from the store's view) → `reconcile`
//! (pure) → tests. One [`runner`] watches, plans, acts and tries again. Everything is written
//! through [`Objects`]; nothing else is seen.

pub mod autoscaler;
mod backoff;
pub mod certificates;
#[cfg(test)]
mod chaos;
pub mod cluster_role;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
mod event_collector;
pub mod garbage;
#[cfg(test)]
mod goldens;
mod history;
pub mod job;
pub mod load_balancer;
pub mod namespace;
pub mod node;
pub mod owner;
pub mod plan;
pub mod pods;
#[cfg(test)]
mod properties;
mod queue;
pub mod quota;
pub mod replica_set;
pub mod replication_controller;
pub mod runner;
pub mod service_addresses;
pub mod serviceaccount;
#[cfg(test)]
mod sim;
pub mod stateful_set;
pub mod storage;

use std::sync::Arc;

use jiff::SignedDuration;
use runner::Controller;

use crate::{
    objects::Objects,
    tasks::Tasks,
    usage::{PodUsage, Unmeasured},
};

/// How long a node may be silent before it counts as lost (upstream's
/// `node-monitor-grace-period` is 40 s); nodes with a Last Will are noticed at once.
const NODE_GRACE: SignedDuration = SignedDuration::from_secs(40);

/// Where the class `local-path` has its folders, unless said otherwise.
const LOCAL_PATH: &str = "/var/lib/sampan/volumes";

/// What a cluster sets about its controllers.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a node may be silent before its conditions become `Unknown`.
    pub node_grace: SignedDuration,
    /// Where the class `local-path` has its folders on the nodes; `None`: there is no such class.
    pub local_path: Option<String>,
    /// The certificate of the cluster's authority (PEM), published in every namespace.
    pub root_ca: String,
    /// Who knows what pods use.
    pub usage: Arc<dyn PodUsage>,
    /// Signs certificates for requests; `None`: this cluster signs none.
    pub authority: Option<certificates::Authority>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_grace: NODE_GRACE,
            local_path: Some(LOCAL_PATH.to_owned()),
            root_ca: String::new(),
            usage: Arc::new(Unmeasured),
            authority: None,
        }
    }
}

/// Starts all controllers, each as a task of its own.
pub fn start(tasks: &Tasks, objects: &Objects, options: &Options) {
    for controller in all(options) {
        runner::start(tasks, objects.clone(), controller);
    }
    if options.local_path.is_some() {
        let objects = objects.clone();
        tasks.spawn("local-path-class", |_| async move { storage::local_path::ensure_class(&objects).await });
    }
}

fn all(options: &Options) -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(deployment::DeploymentController),
        Arc::new(replica_set::ReplicaSetController),
        Arc::new(replication_controller::ReplicationManager),
        Arc::new(stateful_set::StatefulSetController::default()),
        Arc::new(daemon_set::DaemonSetController::default()),
        Arc::new(endpoints::SliceController),
        Arc::new(endpoints::EndpointsController),
        Arc::new(endpoints::MirroringController),
        Arc::new(node::NodeLifecycleController { grace: options.node_grace }),
        Arc::new(node::TaintEvictionController::default()),
        Arc::new(node::PodCollector),
        Arc::new(node::StrandedPodController),
        Arc::new(disruption::DisruptionController),
        Arc::new(job::JobController),
        Arc::new(job::TtlController),
        Arc::new(job::OrphanController),
        Arc::new(cron_job::CronJobController),
        Arc::new(autoscaler::AutoscalerController::new(Arc::clone(&options.usage))),
        Arc::new(storage::ClaimController { local_path: options.local_path.clone() }),
        Arc::new(storage::VolumeController),
        Arc::new(storage::EphemeralVolumeController),
        Arc::new(storage::ClaimProtectionController),
        Arc::new(storage::VolumeProtectionController),
        Arc::new(quota::QuotaController),
        Arc::new(load_balancer::LoadBalancerController),
        Arc::new(load_balancer::IngressController),
        Arc::new(service_addresses::IpAddressController),
        Arc::new(service_addresses::ServiceCidrController),
        Arc::new(event_collector::EventCollector),
        Arc::new(certificates::Signer { authority: options.authority.clone() }),
        Arc::new(certificates::Approver),
        Arc::new(certificates::Cleaner),
        Arc::new(cluster_role::ClusterRoleAggregation),
        Arc::new(garbage::GarbageCollector),
        Arc::new(namespace::NamespaceController),
        Arc::new(serviceaccount::ServiceAccountsController),
        Arc::new(serviceaccount::RootCaPublisher { certificate: options.root_ca.clone() }),
    ]
}
