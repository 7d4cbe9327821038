//! ReplicationControllers: what ReplicaSets are, with a plain map as selector.
//!
//! Watches: the controllers and pods. Decides through [`replica_set::reconcile`].

use k8s_openapi::api::{
    apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
    core::v1::{
        Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerSpec,
        ReplicationControllerStatus,
    },
};

use super::{
    plan::Plan,
    replica_set::{self, Desired, orphan_keys},
    runner::{Controller, Round, Source, owner_keys},
};
use crate::{kinds::labels::Selector, objects::Objects, store::Key};

pub struct ReplicationManager;

impl Controller for ReplicationManager {
    fn name(&self) -> &'static str {
        "replication-controller"
    }

    fn primary(&self) -> &'static str {
        "replicationcontrollers"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("pods", owner_keys::<Pod>("replicationcontrollers")),
            Source::new("pods", |objects, pod| {
                orphan_keys::<ReplicationController>(objects, pod, |rc| rc.spec.as_ref().map(selector))
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(rc) = objects.get_typed::<ReplicationController>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let Some(spec) = rc.spec.as_ref() else { return Plan::default() };
        let selector = selector(spec);
        let desired = Desired {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: &selector,
            template: spec.template.as_ref(),
        };
        let observed = replica_set::observe(objects, &*rc, &desired, round);
        let mut plan = Plan::about(&*rc);
        let old = rc.status.clone().map(from_own).unwrap_or_default();
        let status = replica_set::reconcile(&*rc, &desired, &observed, &old, round.now, &mut plan);
        plan.status_first(&*rc, rc.status.as_ref(), &into_own(status));
        plan
    }
}

fn selector(spec: &ReplicationControllerSpec) -> Selector {
    match &spec.selector {
        Some(labels) if !labels.is_empty() => {
            Selector::from_map(labels.iter().map(|(k, v)| (k.as_str(), v.as_str())))
        }
        _ => Selector::NOTHING,
    }
}

fn from_own(status: ReplicationControllerStatus) -> ReplicaSetStatus {
    let condition = |c: ReplicationControllerCondition| ReplicaSetCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    };
    ReplicaSetStatus {
        conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        ..ReplicaSetStatus::default()
    }
}

fn into_own(status: ReplicaSetStatus) -> ReplicationControllerStatus {
    let condition = |c: ReplicaSetCondition| ReplicationControllerCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    };
    ReplicationControllerStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas,
        ready_replicas: status.ready_replicas,
        available_replicas: status.available_replicas,
        observed_generation: status.observed_generation,
        conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::controllers::sim::{Fate, Sim, template};

    #[tokio::test]
    async fn it_keeps_its_pods() {
        let mut sim = Sim::new(vec![Arc::new(ReplicationManager)]);
        sim.create(json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web"},
            "spec": {"replicas": 2, "selector": {"app": "web"}, "template": template(json!({"app": "web"}), "a")}}))
            .await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        let status = sim.get::<ReplicationController>("web").status.clone().unwrap();
        assert_eq!((status.replicas, status.available_replicas), (2, Some(2)));
    }
}
