//! Events go an hour after they were last written; what they say of their own time does not count,
//! as upstream's lease does not know it.
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
        // Parsed for this look only: a cluster has more Events than all else.
        let event = objects.store().get(key).and_then(|o| serde_json::from_slice::<Event>(o.body()).ok());
        event.map_or_else(Plan::default, |event| reconcile(&event, round.now))
    }
}

fn reconcile(event: &Event, now: Timestamp) -> Plan {
    let mut plan = Plan::about(event);
    let created = event.metadata.creation_timestamp.as_ref();
    let written = event.metadata.managed_fields.iter().flatten().filter_map(|entry| entry.time.as_ref());
    let told = event.last_timestamp.as_ref().map(|t| t.0).filter(|told| *told <= now);
    let Some(last) = created.into_iter().chain(written).map(|t| t.0).chain(told).max() else { return plan };
    if last + TTL > now {
        plan.requeue_at(last + TTL, now);
    } else {
        plan.delete(event, None, None);
    }
    plan
}
