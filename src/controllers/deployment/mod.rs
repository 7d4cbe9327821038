//! Deployments: a ReplicaSet for each version of the template, and the way from one to the next.
//!
//! Watches: Deployments, ReplicaSets, pods (for `Recreate`). Observes: the ReplicaSets that the
//! Deployment owns or selects, and the pods of those. The plan is made on a copy of the
//! ReplicaSets ([`rollout::Rollout`]), whose changes are the actions.

mod revision;
pub use revision::hash;
mod rollout;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};

use super::{
    owner,
    plan::{Note, Plan},
    runner::{Controller, Round, Source, owner_keys},
};
use crate::{
    objects::Objects,
    store::{Key, Object},
};
use rollout::Rollout;

pub struct DeploymentController;

impl Controller for DeploymentController {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn primary(&self) -> &'static str {
        "deployments.apps"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("replicasets.apps", owner_keys::<ReplicaSet>("deployments.apps")),
            Source::new("replicasets.apps", |objects, rs| {
                super::replica_set::orphan_keys::<Deployment>(objects, rs, |d| {
                    d.spec.as_ref().map(|s| owner::selector(&s.selector))
                })
            }),
            Source::new("pods", recreated),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(deployment) = objects.get_typed::<Deployment>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let observed = observe(objects, &deployment, round);
        reconcile(&deployment, &observed, round.now)
    }
}

/// The Deployment of a pod, if it waits for pods to go.
fn recreated(objects: &Objects, pod: &Object) -> Vec<Key> {
    let sets = owner_keys::<Pod>("replicasets.apps")(objects, pod);
    let deployment = |set: &Key| {
        let set = objects.get_typed::<ReplicaSet>(&set.namespace, &set.name)?;
        let owner = owner::controller_of(&set.metadata).filter(|o| o.kind == "Deployment")?;
        let deployment = objects.get_typed::<Deployment>(&pod.key.namespace, &owner.name)?;
        is_recreate(&deployment).then(|| Key::new("deployments.apps", &pod.key.namespace, &owner.name))
    };
    sets.iter().filter_map(deployment).collect()
}

fn is_recreate(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref())
        == Some("Recreate")
}

/// What there is.
#[derive(Default)]
struct Observed {
    /// ReplicaSets that the Deployment owns or selects.
    replica_sets: Vec<Arc<ReplicaSet>>,
    /// The pods of the Deployment; only for `Recreate`, which waits for them.
    pods: Vec<Arc<Pod>>,
    /// Whether the name of the ReplicaSet to be made is in use.
    name_taken: bool,
    failure: Option<String>,
}

fn observe(objects: &Objects, deployment: &Deployment, round: &Round) -> Observed {
    let meta = &deployment.metadata;
    let (namespace, uid) = (owner::namespace(meta), owner::uid(meta));
    let Some(spec) = deployment.spec.as_ref() else { return Observed::default() };
    let selector = owner::selector(&spec.selector);
    let replica_sets = owner::candidates::<ReplicaSet>(objects, namespace, uid, &selector);
    let pods = if is_recreate(deployment) {
        owner::candidates::<Pod>(objects, namespace, "-", &selector)
    } else {
        Vec::new()
    };
    let name = revision::replica_set_name(deployment);
    let name_taken = objects.get_typed::<ReplicaSet>(namespace, &name).is_some();
    Observed { replica_sets, pods, name_taken, failure: round.failure.clone() }
}

fn reconcile(deployment: &Deployment, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::about(deployment);
    let Some(spec) = deployment.spec.as_ref() else { return plan };
    let selector = owner::selector(&spec.selector);
    if selector.is_everything() {
        plan.event(Note::warning(
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.",
        ));
        let mut status = deployment.status.clone().unwrap_or_default();
        status.observed_generation = deployment.metadata.generation;
        plan.status(deployment, deployment.status.as_ref(), &status);
        return plan;
    }
    let owned = owner::claim(deployment, &observed.replica_sets, &selector, &mut plan);
    let mut rollout = Rollout::new(deployment, spec, owned, observed, now, plan);
    let finished = if deployment.metadata.deletion_timestamp.is_some() {
        rollout.find_new();
        rollout.plain_status()
    } else if spec.paused == Some(true) {
        rollout.check_paused();
        rollout.find_new();
        rollout.scale();
        rollout.clean_up();
        rollout.plain_status()
    } else {
        rollout.check_paused();
        rollout.find_new();
        if rollout.is_scaling() {
            rollout.scale();
            rollout.plain_status()
        } else if is_recreate(deployment) {
            rollout.recreate();
            rollout.rollout_status()
        } else {
            rollout.roll();
            rollout.rollout_status()
        }
    };
    let mut plan = rollout.into_plan();
    plan.status_first(deployment, deployment.status.as_ref(), &finished);
    status::requeue_for_deadline(deployment, &finished, now, &mut plan);
    plan
}

#[cfg(test)]
mod tests;
