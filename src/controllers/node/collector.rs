//! The pod collector: removes pods that nobody else can remove.
//!
//! Watches: pods and nodes. The key is a pod. It goes by force when its node is gone, when it was
//! deleted before it had a node, or when its node is declared out of service; and when there are
//! too many ended pods, the oldest go.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::{
    super::{
        plan::{Action, Plan, Target},
        pods,
        runner::{Controller, Round, Source},
    },
    pods_on, with_condition,
};
use crate::{
    kinds::placement::{self, NO_EXECUTE, NO_SCHEDULE, TAINT_OUT_OF_SERVICE},
    objects::Objects,
    store::Key,
};

/// How many ended pods are kept (upstream's `terminated-pod-gc-threshold` is 12,500 for clusters
/// of thousands of nodes).
const ENDED_MAX: usize = 12_500;
/// How long a node must have been gone before its pods go (upstream's quarantine).
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);

pub struct PodCollector;

impl Controller for PodCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn primary(&self) -> &'static str {
        "pods"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("nodes", |objects, node| {
            let gone = objects.store().get(&node.key).is_none();
            let out = placement::has_taint(&node.typed(), TAINT_OUT_OF_SERVICE, NO_EXECUTE)
                || placement::has_taint(&node.typed(), TAINT_OUT_OF_SERVICE, NO_SCHEDULE);
            if gone || out { pods_on(objects, node) } else { Vec::new() }
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(pod) = objects.get_typed::<Pod>(&key.namespace, &key.name) else { return Plan::default() };
        let node_name = pods::node_name(&pod);
        let node = (!node_name.is_empty()).then(|| objects.get_typed::<Node>("", node_name)).flatten();
        let surplus = pods::is_terminal(&pod) && is_surplus(objects, &pod);
        reconcile(&pod, node.as_deref(), surplus, round.now)
    }
}

/// Whether so many pods have ended later than this one that it is too many.
fn is_surplus(objects: &Objects, pod: &Pod) -> bool {
    let all = objects.store().list("pods", None).items;
    if all.len() <= ENDED_MAX {
        return false;
    }
    let created = |pod: &Pod| pod.metadata.creation_timestamp.clone();
    let later = |other: &Pod| pods::is_terminal(other) && created(other) > created(pod);
    all.iter().filter(|other| later(&other.typed())).count() >= ENDED_MAX
}

pub(super) fn reconcile(pod: &Pod, node: Option<&Node>, surplus: bool, now: Timestamp) -> Plan {
    let mut plan = Plan::about(pod);
    let scheduled = !pods::node_name(pod).is_empty();
    let orphan = scheduled && node.is_none();
    let out_of_service = node.is_some_and(|node| {
        !placement::is_node_ready(node)
            && placement::taints(node).into_iter().flatten().any(|t| t.key == TAINT_OUT_OF_SERVICE)
    });
    if orphan && !pods::is_deleting(pod) {
        // The node may be coming back: wait as long as it could have been gone unnoticed.
        let seen = pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let since = seen.max(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)).unwrap_or(now);
        if since + QUARANTINE > now {
            plan.requeue_at(since + QUARANTINE, now);
            return plan;
        }
    }
    let force = orphan || (pods::is_deleting(pod) && (!scheduled || out_of_service));
    if !force && !surplus {
        return plan;
    }
    if orphan && !pods::is_terminal(pod) {
        let message = "PodGC: node no longer exists";
        let mut patch = with_condition(pod, "DisruptionTarget", "True", "DeletionByPodGC", message, now);
        patch["status"]["phase"] = "Failed".into();
        plan.merge_status_at(pod, patch);
    }
    plan.actions.push(Action::Delete {
        target: Target::of(pod),
        grace_seconds: Some(0),
        propagation: None,
        done: None,
        failed: None,
    });
    plan
}
