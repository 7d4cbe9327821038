//! Finished Jobs go `ttlSecondsAfterFinished` after their end.
//!
//! Watches: Jobs.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use super::{
    super::{
        plan::{Action, Plan, Target},
        runner::{Controller, Round},
    },
    finished_at,
};
use crate::{
    objects::{Objects, Propagation},
    store::Key,
};

pub struct TtlController;

impl Controller for TtlController {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn primary(&self) -> &'static str {
        "jobs.batch"
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        objects
            .get_typed::<Job>(&key.namespace, &key.name)
            .map_or_else(Plan::default, |job| reconcile(&job, round.now))
    }
}

fn reconcile(job: &Job, now: Timestamp) -> Plan {
    let mut plan = Plan::about(job);
    let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
    let (Some(end), Some(ttl)) = (finished_at(job), ttl) else { return plan };
    let then = end + SignedDuration::from_secs(ttl.into());
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    if then > now {
        plan.requeue_at(then, now);
    } else {
        plan.actions.push(Action::Delete {
            target: Target::of(job),
            grace_seconds: None,
            propagation: Some(Propagation::Foreground),
            done: None,
            failed: None,
        });
    }
    plan
}
