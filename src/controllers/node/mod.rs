//! The life cycle of nodes: what a node's conditions mean for the pods on it.
//!
//! [`lifecycle`] turns conditions into taints and silence into `Unknown`; [`eviction`] makes pods
//! go that do not tolerate a `NoExecute` taint (long enough); [`collector`] removes pods that
//! nobody else can remove; [`stranded`] moves pods off boards that their image has no build for.

mod collector;
mod eviction;
mod lifecycle;
mod stranded;

pub use collector::PodCollector;
pub use eviction::TaintEvictionController;
pub use lifecycle::NodeLifecycleController;
pub use stranded::StrandedPodController;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

use crate::{
    kinds::registry,
    objects::Objects,
    store::{Key, Object},
};

/// The pods on a node.
fn pods_on(objects: &Objects, node: &Object) -> Vec<Key> {
    let pods = objects.list(registry::of::<Pod>(), None);
    let on = |pod: &&std::sync::Arc<Object>| super::pods::node_name(&pod.typed()) == &*node.key.name;
    pods.items.iter().filter(on).map(|pod| pod.key.clone()).collect()
}

/// `status.conditions` with one condition put in place, as a merge patch of the status.
fn with_condition(pod: &Pod, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let mut all = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let old = all.iter().position(|c| c.type_ == kind).map(|index| all.remove(index));
    let since = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time);
    all.push(PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()).filter(|r: &String| !r.is_empty()),
        message: Some(message.into()).filter(|m: &String| !m.is_empty()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        observed_generation: pod.metadata.generation,
        last_probe_time: None,
    });
    json!({ "status": { "conditions": all } })
}

#[cfg(test)]
mod tests;
