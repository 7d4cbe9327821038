//! Pods whose Job is gone, or has let them go, lose the finalizer that nobody else would take.
//!
//! Watches: pods, and Jobs for their end.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::json;

use super::{
    super::{
        owner,
        plan::{Plan, list},
        runner::{Controller, Round, Source},
    },
    FINALIZER, has_finalizer,
};
use crate::{kinds::registry, objects::Objects, store::Key};

pub struct OrphanController;

impl Controller for OrphanController {
    fn name(&self) -> &'static str {
        "job-orphan-controller"
    }

    fn primary(&self) -> &'static str {
        "pods"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("jobs.batch", |objects, job| {
            if objects.store().get(&job.key).is_some() {
                return Vec::new();
            }
            let pods = objects.list(registry::of::<Pod>(), Some(&job.key.namespace)).items;
            let of = |pod: &&std::sync::Arc<_>| {
                let pod: &crate::store::Object = pod;
                pod.meta.owners.contains(&job.meta.uid)
            };
            pods.iter().filter(of).map(|pod| pod.key.clone()).collect()
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(pod) = objects.get_typed::<Pod>(&key.namespace, &key.name) else { return Plan::default() };
        if !has_finalizer(&pod) {
            return Plan::default();
        }
        let job = owner::controller_of(&pod.metadata)
            .filter(|o| o.kind == "Job")
            .and_then(|o| objects.get_typed::<Job>(&key.namespace, &o.name))
            .filter(|job| owner::is_controlled_by(&pod.metadata, owner::uid(&job.metadata)));
        reconcile(&pod, job.as_deref())
    }
}

fn reconcile(pod: &Pod, job: Option<&Job>) -> Plan {
    let mut plan = Plan::about(pod);
    if job.is_some() {
        return plan;
    }
    let rest = list(pod.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER));
    plan.merge_at(pod, json!({ "metadata": { "finalizers": rest } }));
    plan
}
