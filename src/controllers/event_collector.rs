//! Events go an hour after they were last said.
//!
//! Watches: Events.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;

use super::{
    plan::Plan,
    runner::{Controller, Round},
};
use crate::{objects::Objects, store::Key};

/// How long an Event is kept (upstream's `event-ttl`).
const TTL: SignedDuration = SignedDuration::from_hours(1);

pub struct EventCollector;

impl Controller for EventCollector {
    fn name(&self) -> &'static str {
        "event-collector"
    }

    fn primary(&self) -> &'static str {
        "events"
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        objects
            .get_typed::<Event>(&key.namespace, &key.name)
            .map_or_else(Plan::default, |event| reconcile(&event, round.now))
    }
}

fn reconcile(event: &Event, now: Timestamp) -> Plan {
    let mut plan = Plan::about(event);
    let seen = event.last_timestamp.as_ref().map(|t| t.0);
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
    let first = event.event_time.as_ref().map(|t| t.0);
    let created = event.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let Some(last) = seen.max(series).max(first).or(created) else { return plan };
    if last + TTL > now {
        plan.requeue_at(last + TTL, now);
    } else {
        plan.delete(event, None, None);
    }
    plan
}
