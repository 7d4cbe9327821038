//! ReplicaSets and ReplicationControllers: as many pods as wanted, no more, no fewer.
//!
//! Watches: the sets and pods. Observes: the pods that the set owns or selects. Both kinds share
//! one `reconcile`, through [`Desired`]; ReplicationController's file adds its own form.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    Metadata,
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    owner::{self, controller_reference},
    plan::{Note, Plan},
    pods::{self, non_zero},
    runner::{Controller, Round, Source, owner_keys},
};
use crate::{
    kinds::labels::Selector,
    objects::Objects,
    store::{Key, Object},
};

/// How many pods one plan creates or deletes at most (upstream's `BurstReplicas`).
const BURST_MAX: usize = 500;
/// How long nodes that refuse the pods of a set keep new ones off: after the first time, doubled
/// with each further one, and at most. Upstream makes new ones as fast as it can, which would fill a
/// board with failed pods.
const REFUSED_MIN: SignedDuration = SignedDuration::from_secs(1);
const REFUSED_MAX: SignedDuration = SignedDuration::from_mins(5);

pub struct ReplicaSetController;

impl Controller for ReplicaSetController {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn primary(&self) -> &'static str {
        "replicasets.apps"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("pods", owner_keys::<Pod>("replicasets.apps")),
            Source::new("pods", |objects, pod| {
                orphan_keys::<ReplicaSet>(objects, pod, |rs| {
                    rs.spec.as_ref().map(|s| owner::selector(&s.selector))
                })
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(rs) = objects.get_typed::<ReplicaSet>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let Some(spec) = rs.spec.as_ref() else { return Plan::default() };
        let selector = owner::selector(&spec.selector);
        let desired = Desired {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: &selector,
            template: spec.template.as_ref(),
        };
        let observed = observe(objects, &*rs, &desired, round);
        let mut plan = Plan::about(&*rs);
        let old = rs.status.clone().unwrap_or_default();
        let status = reconcile(&*rs, &desired, &observed, &old, round.now, &mut plan);
        plan.status_first(&*rs, rs.status.as_ref(), &status);
        plan
    }
}

/// The sets that an orphan could belong to.
pub fn orphan_keys<T>(
    objects: &Objects,
    orphan: &Object,
    selector: impl Fn(&T) -> Option<Selector>,
) -> Vec<Key>
where
    T: Metadata<Ty = ObjectMeta> + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    if !orphan.meta.owners.is_empty() {
        return Vec::new();
    }
    let sets = objects.list(crate::kinds::registry::of::<T>(), Some(&orphan.key.namespace));
    let selects = |set: &&Arc<Object>| {
        selector(&set.typed::<T>()).is_some_and(|s| s.matches(|key| orphan.meta.label(key)))
    };
    sets.items.iter().filter(selects).map(|set| set.key.clone()).collect()
}

/// What a set wants, whichever kind it is.
pub struct Desired<'a> {
    pub replicas: i32,
    pub min_ready_seconds: i32,
    pub selector: &'a Selector,
    pub template: Option<&'a PodTemplateSpec>,
}

/// What there is.
#[derive(Default)]
pub struct Observed {
    /// Pods the set owns or selects.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of all sets that have the same owner, by which a pod's neighbours are counted.
    pub related: Vec<Arc<Pod>>,
    /// Why the last plan failed.
    pub failure: Option<String>,
}

/// Reads the view.
pub fn observe<S>(objects: &Objects, set: &S, desired: &Desired<'_>, round: &Round) -> Observed
where
    S: Metadata<Ty = ObjectMeta>,
{
    let meta = set.metadata();
    let (namespace, uid) = (owner::namespace(meta), owner::uid(meta));
    let pods = owner::candidates(objects, namespace, uid, desired.selector);
    let related = match owner::controller_of(meta) {
        // Neighbours only matter when there are pods to choose from.
        _ if pods.len() <= usize::try_from(desired.replicas).unwrap_or(0) => Vec::new(),
        Some(controller) => objects
            .list_typed::<ReplicaSet>(Some(namespace))
            .iter()
            .filter(|rs| owner::is_controlled_by(&rs.metadata, &controller.uid))
            .filter_map(|rs| rs.spec.as_ref())
            .flat_map(|spec| {
                owner::candidates::<Pod>(objects, namespace, "-", &owner::selector(&spec.selector))
            })
            .collect(),
        None => pods.clone(),
    };
    Observed { pods, related, failure: round.failure.clone() }
}

/// Plans the creation or deletion of pods; returns the status of what was observed.
pub fn reconcile<S>(
    set: &S,
    desired: &Desired<'_>,
    observed: &Observed,
    old: &ReplicaSetStatus,
    now: Timestamp,
    plan: &mut Plan,
) -> ReplicaSetStatus
where
    S: Metadata<Ty = ObjectMeta>,
{
    let alive: Vec<_> = observed.pods.iter().filter(|pod| !pods::is_terminal(pod)).cloned().collect();
    let claimed = owner::claim(set, &alive, desired.selector, plan);
    let (mut active, terminating): (Vec<_>, Vec<_>) =
        claimed.into_iter().partition(|pod| pods::is_active(pod));
    let status = status(set, desired, &active, terminating.len(), observed.failure.as_deref(), old, now);
    for delay in active.iter().filter_map(|pod| pods::available_in(pod, desired.min_ready_seconds, now)) {
        if desired.min_ready_seconds > 0 && delay.is_positive() {
            plan.requeue_in(delay);
        }
    }
    if set.metadata().deletion_timestamp.is_some() {
        return status;
    }
    let wanted = usize::try_from(desired.replicas).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Less => {
            let Some(template) = desired.template else { return status };
            let missing = wanted - active.len();
            if let Some(then) = refused_until(set, observed, &active, missing, now) {
                plan.requeue_at(then, now);
                return status;
            }
            let pod = pods::from_template(template, set, controller_reference(set));
            for _ in 0..missing.min(BURST_MAX) {
                plan.create(&pod, Some(CREATED), Some(CREATE_FAILED));
            }
        }
        Ordering::Greater => {
            let surplus = active.len() - wanted;
            rank_for_deletion(&mut active, &observed.related, now);
            for pod in active.iter().take(surplus.min(BURST_MAX)) {
                plan.delete(&**pod, Some(DELETED), Some(DELETE_FAILED));
            }
        }
        Ordering::Equal => {}
    }
    status
}

/// Until when no pod is to be made, because nodes have refused the last ones. `missing` are refused
/// at a time; a pod that came up ends the count.
fn refused_until<S: Metadata<Ty = ObjectMeta>>(
    set: &S,
    observed: &Observed,
    active: &[Arc<Pod>],
    missing: usize,
    now: Timestamp,
) -> Option<Timestamp> {
    let uid = owner::uid(set.metadata());
    let last_good = active.iter().filter(|p| pods::is_ready(p)).filter_map(|p| created(p)).max();
    let refused: Vec<Timestamp> = observed
        .pods
        .iter()
        .filter(|p| owner::is_controlled_by(&p.metadata, uid) && pods::is_refused(p))
        .filter_map(|p| created(p))
        // A clock that was set back must not keep anything off.
        .filter(|then| *then <= now && last_good.is_none_or(|good| *then > good))
        .collect();
    let last = refused.iter().max()?;
    let doublings = u32::try_from(refused.len().div_ceil(missing.max(1)) - 1).unwrap_or(u32::MAX).min(16);
    Some(*last + (REFUSED_MIN * (1 << doublings)).min(REFUSED_MAX)).filter(|then| *then > now)
}

/// The Events of `PodControl`, which most controllers create pods through.
pub const CREATED: Note = note(false, "SuccessfulCreate", "Created pod: {name}");
pub const CREATE_FAILED: Note = note(true, "FailedCreate", "Error creating: {error}");
pub const DELETED: Note = note(false, "SuccessfulDelete", "Deleted pod: {name}");
pub const DELETE_FAILED: Note = note(true, "FailedDelete", "Error deleting: {error}");

const fn note(warning: bool, reason: &'static str, message: &'static str) -> Note {
    Note { warning, reason, message: std::borrow::Cow::Borrowed(message), about: None }
}

fn status<S: Metadata<Ty = ObjectMeta>>(
    set: &S,
    desired: &Desired<'_>,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&str>,
    old: &ReplicaSetStatus,
    now: Timestamp,
) -> ReplicaSetStatus {
    let template = desired.template.and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let fully_labeled = |pod: &&Arc<Pod>| {
        template.into_iter().flatten().all(|(k, v)| owner::label(&pod.metadata, k) == Some(v))
    };
    let count = |n: usize| non_zero(i32::try_from(n).unwrap_or(i32::MAX));
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let existing = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(message) if !existing => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(
                if active.len() < usize::try_from(desired.replicas).unwrap_or(0) {
                    "FailedCreate"
                } else {
                    "FailedDelete"
                }
                .into(),
            ),
            message: Some(message.into()),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: count(active.iter().filter(fully_labeled).count()),
        ready_replicas: count(active.iter().filter(|p| pods::is_ready(p)).count()),
        available_replicas: count(
            active.iter().filter(|p| pods::is_available(p, desired.min_ready_seconds, now)).count(),
        ),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: set.metadata().generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

/// Sorts pods so that those that are missed least come first: not assigned, pending, not ready,
/// cheap (`pod-deletion-cost`), many on one node, young, restarting.
///
/// Ages are compared by magnitude (powers of two), so that the choice is spread.
pub fn rank_for_deletion(active: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        *on_node.entry(pods::node_name(pod)).or_default() += 1;
    }
    let neighbours = |pod: &Pod| on_node.get(pods::node_name(pod)).copied().unwrap_or(0);
    active.sort_by(|a, b| {
        let assigned = |pod: &Pod| !pods::node_name(pod).is_empty();
        assigned(a)
            .cmp(&assigned(b))
            .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
            .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
            .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
            .then_with(|| neighbours(b).cmp(&neighbours(a)))
            .then_with(|| younger_first(pods::ready_since(a), pods::ready_since(b), now))
            .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
            .then_with(|| younger_first(created(a), created(b), now))
            // Last, where upstream has it within an age: between pods of one age and of nearly one age
            // it would be no order at all.
            .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
    });
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

fn phase_rank(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    owner::annotation(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost")
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => magnitude(a, now).cmp(&magnitude(b, now)),
    }
}

/// The power of two of an age in nanoseconds; -1 for none.
fn magnitude(since: Timestamp, now: Timestamp) -> i32 {
    let age = now.duration_since(since).as_nanos();
    if age <= 0 { -1 } else { age.ilog2() as i32 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::{
        plan::Action,
        sim::{Fate, Sim, template},
    };

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "rs", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .unwrap()
    }

    fn pod(name: &str, owner: Option<&str>, app: &str, ready: bool, node: &str) -> Arc<Pod> {
        let owners: Vec<_> = owner
            .iter()
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}))
            .collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": app}, "ownerReferences": owners},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
                    "lastTransitionTime": "2026-11-23T11:00:00Z"}]},
            }))
            .unwrap(),
        )
    }

    fn plan(replicas: i32, pods: Vec<Arc<Pod>>) -> (Plan, ReplicaSetStatus) {
        let rs = set(replicas);
        let spec = rs.spec.as_ref().unwrap();
        let selector = owner::selector(&spec.selector);
        let desired =
            Desired { replicas, min_ready_seconds: 0, selector: &selector, template: spec.template.as_ref() };
        let mut plan = Plan::about(&rs);
        let observed = Observed { related: pods.clone(), pods, failure: None };
        let status = reconcile(&rs, &desired, &observed, &ReplicaSetStatus::default(), now(), &mut plan);
        (plan, status)
    }

    fn deleted(plan: &Plan) -> Vec<&str> {
        plan.actions
            .iter()
            .filter_map(|a| match a {
                Action::Delete { target, .. } => Some(target.name.as_str()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn missing_pods_are_created_from_the_template() {
        let (plan, status) = plan(3, vec![pod("a", Some("rs"), "web", true, "n")]);
        assert_eq!(plan.actions.len(), 2);
        let Action::Create { object, .. } = &plan.actions[0] else { panic!("{plan:?}") };
        assert_eq!(object["metadata"]["generateName"], "web-");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "rs");
        assert_eq!((status.replicas, status.ready_replicas), (1, Some(1)));
    }

    #[test]
    fn a_matching_orphan_is_adopted_and_a_relabelled_pod_released() {
        let (plan, status) = plan(
            1,
            vec![
                pod("orphan", None, "web", true, "n"),
                pod("other", Some("rs"), "db", true, "n"),
                pod("foreign", Some("x"), "web", true, "n"),
            ],
        );
        assert_eq!(plan.actions.len(), 2);
        let Action::Merge { patch, target, .. } = &plan.actions[0] else { panic!("{plan:?}") };
        assert_eq!(target.name, "orphan");
        assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "rs");
        let Action::Merge { patch, target, .. } = &plan.actions[1] else { panic!("{plan:?}") };
        assert_eq!(target.name, "other");
        assert!(patch["metadata"]["ownerReferences"].is_null(), "no empty list is left");
        assert_eq!(status.replicas, 1);
    }

    #[test]
    fn the_least_missed_pods_go_first() {
        let crowded = [pod("c1", Some("rs"), "web", true, "n1"), pod("c2", Some("rs"), "web", true, "n1")];
        let pods = vec![
            pod("alone", Some("rs"), "web", true, "n2"),
            crowded[0].clone(),
            crowded[1].clone(),
            pod("unready", Some("rs"), "web", false, "n3"),
            pod("unassigned", Some("rs"), "web", false, ""),
        ];
        let (plan, _) = plan(2, pods);
        assert_eq!(deleted(&plan), ["unassigned", "unready", "c1"]);
    }

    #[test]
    fn a_cheap_pod_goes_before_an_expensive_one() {
        let mut cheap = (*pod("z", Some("rs"), "web", true, "n")).clone();
        cheap.metadata.annotations =
            Some([("controller.kubernetes.io/pod-deletion-cost".to_owned(), "-1".to_owned())].into());
        let (plan, _) = plan(1, vec![pod("a", Some("rs"), "web", true, "n"), Arc::new(cheap)]);
        assert_eq!(deleted(&plan), ["z"]);
    }

    #[tokio::test]
    async fn ended_and_vanished_pods_are_replaced() {
        let mut sim = Sim::new(vec![Arc::new(ReplicaSetController)]);
        sim.create(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template(json!({"app": "web"}), "a")}}))
            .await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        let first = sim.names::<Pod>();
        assert_eq!(first.len(), 3);
        sim.delete::<Pod>(&first[0], Some(0)).await;
        let doomed = first[1].clone();
        sim.change_status::<Pod>(&doomed, json!({"phase": "Failed"})).await;
        sim.settle(
            |pod| if pod.metadata.name.as_ref() == Some(&doomed) { Fate::Fail } else { Fate::Run },
            |_| {},
        )
        .await;
        let status = sim.get::<ReplicaSet>("web").status.clone().unwrap();
        assert_eq!((status.replicas, status.ready_replicas), (3, Some(3)));
        assert_eq!(sim.names::<Pod>().len(), 4, "the failed one is left to the collector");
    }

    #[test]
    fn a_crowd_of_pods_of_nearly_one_age_is_ranked() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let pod = |n: u32| {
            let since = format!("2026-01-01T00:00:{:02}Z", 28 + n % 3);
            let pod = serde_json::json!({
                "metadata": {"name": format!("p{n}"), "uid": format!("{:08x}", n.wrapping_mul(2_654_435_761)),
                    "creationTimestamp": since},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": since}]},
            });
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let mut active: Vec<_> = (0..100).map(pod).collect();
        let related = active.clone();
        // The standard library panics at an order that is none.
        rank_for_deletion(&mut active, &related, now);
        let uids: Vec<_> = active.iter().map(|p| p.metadata.uid.clone()).collect();
        assert!(uids.is_sorted());
    }

    #[test]
    fn pods_that_nodes_refuse_are_made_anew_ever_later() {
        let at = |seconds: i64| Timestamp::from_second(now().as_second() - seconds).unwrap().to_string();
        let aged = |name: &str, phase: &str, ready: bool, seconds: i64| {
            let mut pod = (*pod(name, Some("rs"), "web", ready, "n")).clone();
            pod.metadata.creation_timestamp = Some(Time(at(seconds).parse().unwrap()));
            pod.status.as_mut().unwrap().phase = Some(phase.into());
            Arc::new(pod)
        };
        let refused = |name: &str, seconds: i64| aged(name, "Failed", false, seconds);
        let creates = |wanted: i32, pods: Vec<Arc<Pod>>| {
            let (plan, _) = plan(wanted, pods);
            (plan.actions.len(), plan.requeue_after.map(|wait| wait.as_secs()))
        };
        assert_eq!(creates(1, vec![refused("a", 0)]), (0, Some(1)));
        assert_eq!(creates(1, vec![refused("a", 1)]), (1, None));
        assert_eq!(creates(1, vec![refused("a", 9), refused("b", 1), refused("c", 3)]), (0, Some(3)));
        // Of several at a time each time counts once.
        assert_eq!(creates(2, vec![refused("a", 1), refused("b", 1)]), (2, None));
        // One that came up ends the count, one that came up before does not.
        let good = |seconds| aged("good", "Running", true, seconds);
        assert_eq!(creates(2, vec![refused("a", 2), refused("b", 1), good(0)]), (1, None));
        assert_eq!(creates(2, vec![good(9), refused("a", 2), refused("b", 1)]), (0, Some(1)));
        // A container that ended is another matter, and so is a clock that was set back.
        let mut ended = (*refused("a", 0)).clone();
        ended.status.as_mut().unwrap().container_statuses = serde_json::from_value(json!([{"name": "c",
            "image": "a", "imageID": "", "ready": false, "restartCount": 0, "containerID": "sampan://x"}]))
        .unwrap();
        assert_eq!(creates(1, vec![Arc::new(ended)]), (1, None));
        assert_eq!(creates(1, vec![refused("a", -60)]), (1, None));
        let many: Vec<_> = (0..40).map(|n| refused(&format!("p{n}"), n)).collect();
        assert_eq!(creates(1, many), (0, Some(300)));
    }
}
