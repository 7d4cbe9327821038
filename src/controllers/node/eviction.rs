//! Pods leave a node with a `NoExecute` taint: those that do not tolerate it at once, those that
//! tolerate it for a while when that is over. A pod whose data lies on a node that is lost stays: it
//! could not run anywhere else, and the node, which may well be alive behind a broken link, keeps it
//! running.
//!
//! Watches: pods, and nodes for their taints. The key is a pod.
//!
//! How long a node has been tainted is measured, not read from a clock: a board that boots with a wrong
//! one and is told the time a minute later must not lose its pods by that.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, Taint,
};

use super::{
    super::{
        owner,
        plan::{Note, Plan},
        pods,
        runner::{Controller, Round, Source},
    },
    pods_on, with_condition,
};
use crate::{
    kinds::placement::{self, NO_EXECUTE, TAINT_NOT_READY, TAINT_UNREACHABLE},
    objects::Objects,
    store::Key,
};

/// How long after its time the reason for staying is said.
const STAYS_SAID_WITHIN: SignedDuration = SignedDuration::from_secs(10);

/// How far the time since a taint may be from what was measured: its stamp has whole seconds, and the
/// clock is steered.
const CLOCK_ERROR_MAX: SignedDuration = SignedDuration::from_secs(10);

#[derive(Default)]
pub struct TaintEvictionController {
    /// Pods (uids) that will have to leave when their tolerations end.
    planned: Mutex<HashMap<Key, String>>,
    /// By node: the oldest taint's time, and when it was seen first, as [`Clock::steady`].
    ///
    /// [`Clock::steady`]: crate::clock::Clock::steady
    seen: Mutex<BTreeMap<String, (Timestamp, Duration)>>,
}

impl TaintEvictionController {
    /// The time to judge a node's taints by: `now`, when no more has passed on the clock since the
    /// oldest of them than has really passed since it was seen.
    fn judged_at(&self, node: &Node, now: Timestamp, steady: Duration) -> Timestamp {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let name = placement::node_name(node);
        let taints = placement::taints(node).into_iter().flatten().filter(|taint| is_no_execute(taint));
        let Some(oldest) = taints.filter_map(|taint| taint.time_added.as_ref()).map(|time| time.0).min()
        else {
            seen.remove(name);
            return now;
        };
        let (since, first) = *seen
            .entry(name.to_owned())
            .and_modify(|entry| {
                if entry.0 != oldest {
                    *entry = (oldest, steady);
                }
            })
            .or_insert((oldest, steady));
        let passed = SignedDuration::try_from(steady.saturating_sub(first)).unwrap_or_default();
        let measured = since.checked_add(passed).unwrap_or(now);
        if now.duration_since(measured).abs() > CLOCK_ERROR_MAX { measured } else { now }
    }
}

impl Controller for TaintEvictionController {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn primary(&self) -> &'static str {
        "pods"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("nodes", |objects, node| {
            let tainted =
                placement::taints(&node.typed::<Node>()).is_some_and(|t| t.iter().any(is_no_execute));
            if tainted { pods_on(objects, node) } else { Vec::new() }
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let pod = objects.get_typed::<Pod>(&key.namespace, &key.name);
        let node = pod.as_ref().and_then(|pod| objects.get_typed::<Node>("", pods::node_name(pod)));
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let was_planned = planned.remove(key);
        let (Some(pod), Some(node)) = (pod, node) else {
            return was_planned.map_or_else(Plan::default, |uid| cancelled(Plan::default(), key, uid));
        };
        let uid = owner::uid(&pod.metadata).to_owned();
        let now = self.judged_at(&node, round.now, objects.clock().steady());
        let plan = reconcile(&pod, &node, local_volume(objects, &pod).as_deref(), now);
        if plan.requeue_after.is_some() {
            planned.insert(key.clone(), uid);
        } else if let Some(uid) = was_planned.filter(|_| plan.is_empty() && pods::is_active(&pod)) {
            return cancelled(plan, key, uid);
        }
        plan
    }
}

/// Says that a pod need not leave after all.
fn cancelled(mut plan: Plan, key: &Key, uid: String) -> Plan {
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: Some(uid),
        ..ObjectReference::default()
    };
    let message = format!("Cancelling deletion of Pod {}/{}", key.namespace, key.name);
    plan.event(Note::normal("TaintManagerEviction", message).about(about));
    plan
}

/// The claim of the pod whose volume lies on its node.
fn local_volume(objects: &Objects, pod: &Pod) -> Option<String> {
    let namespace = owner::namespace(&pod.metadata);
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let mut claims = volumes.iter().filter_map(|v| Some(&v.persistent_volume_claim.as_ref()?.claim_name));
    let is_local = |claim: &&String| {
        let volume = objects
            .get_typed::<PersistentVolumeClaim>(namespace, claim)
            .and_then(|claim| claim.spec.as_ref()?.volume_name.clone())
            .and_then(|name| objects.get_typed::<PersistentVolume>("", &name));
        volume.is_some_and(|v| v.spec.as_ref().is_some_and(|s| s.local.is_some() || s.host_path.is_some()))
    };
    claims.find(is_local).cloned()
}

/// Whether a taint says that the node is lost, rather than that somebody wants it empty.
fn is_of_loss(taint: &Taint) -> bool {
    matches!(taint.key.as_str(), TAINT_UNREACHABLE | TAINT_NOT_READY)
}

fn is_no_execute(taint: &Taint) -> bool {
    taint.effect == NO_EXECUTE
}

/// When a pod has to leave; `None`: never, by these taints.
fn leaves_at(pod: &Pod, taints: &[&Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_ref());
    let mut earliest: Option<Timestamp> = None;
    let mut used: Vec<i64> = Vec::new();
    for taint in taints {
        let tolerating: Vec<_> =
            tolerations.into_iter().flatten().filter(|t| placement::tolerates(t, taint)).collect();
        if tolerating.is_empty() {
            return Some(now);
        }
        used.extend(tolerating.iter().filter_map(|t| t.toleration_seconds));
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        earliest = Some(earliest.map_or(since, |e| e.min(since)));
    }
    // The shortest of all tolerations in use counts from the first taint.
    let shortest = used.into_iter().min()?;
    Some(earliest? + SignedDuration::from_secs(shortest.max(0)))
}

/// `local` is a claim of the pod whose volume lies on the node.
pub(super) fn reconcile(pod: &Pod, node: &Node, local: Option<&str>, now: Timestamp) -> Plan {
    let mut plan = Plan::about(pod);
    let taints: Vec<&Taint> =
        placement::taints(node).into_iter().flatten().filter(|t| is_no_execute(t)).collect();
    if taints.is_empty() || pods::is_deleting(pod) || pods::is_terminal(pod) {
        return plan;
    }
    let Some(then) = leaves_at(pod, &taints, now) else { return plan };
    if then > now {
        plan.requeue_at(then, now);
        return plan;
    }
    if let Some(claim) = local {
        let others: Vec<&Taint> = taints.iter().copied().filter(|t| !is_of_loss(t)).collect();
        if leaves_at(pod, &others, now).is_none_or(|then| then > now) {
            // Said when it would have left, not at every later look.
            if now.duration_since(then) < STAYS_SAID_WITHIN {
                plan.event(Note::warning(
                    "StaysOnLostNode",
                    format!(
                        "Pod is not moved: the volume of its claim {claim:?} is on node {}, which is not ready; \
                         to give the data up, delete pod and claim",
                        placement::node_name(node)
                    ),
                ));
            }
            return plan;
        }
    }
    let message = "Taint manager: deleting due to NoExecute taint";
    plan.merge_status_at(
        pod,
        with_condition(pod, "DisruptionTarget", "True", "DeletionByTaintManager", message, now),
    );
    let (namespace, name) = (owner::namespace(&pod.metadata), owner::name(&pod.metadata));
    let note = Note::normal("TaintManagerEviction", format!("Marking for deletion Pod {namespace}/{name}"));
    plan.delete(pod, Some(note), None);
    plan
}
