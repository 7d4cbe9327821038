//! DaemonSets: one pod on every node that suits.
//!
//! Watches: the sets, pods, nodes. Observes: the nodes, the pods it owns, revisions. The scheduler
//! places the pods; each is tied to its node by a node affinity on the node's name.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus},
        core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    backoff::{Backoff, Waits},
    history::{self, HASH_LABEL},
    owner::{self, controller_reference},
    plan::{Note, Plan},
    pods::{self, non_zero},
    replica_set::{CREATE_FAILED, CREATED, DELETE_FAILED, DELETED, orphan_keys},
    runner::{Controller, Round, Source, owner_keys},
};
use crate::{
    kinds::placement::{
        self, NO_EXECUTE, NO_SCHEDULE, TAINT_DISK_PRESSURE, TAINT_MEMORY_PRESSURE, TAINT_NETWORK_UNAVAILABLE,
        TAINT_NOT_READY, TAINT_PID_PRESSURE, TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE,
    },
    objects::Objects,
    store::Key,
};

#[derive(Default)]
pub struct DaemonSetController {
    /// Failed daemons are not made anew at once, again and again.
    backoff: Backoff,
}

impl Controller for DaemonSetController {
    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    fn primary(&self) -> &'static str {
        "daemonsets.apps"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("pods", owner_keys::<Pod>("daemonsets.apps")),
            Source::new("controllerrevisions.apps", owner_keys::<ControllerRevision>("daemonsets.apps")),
            Source::new("pods", |objects, pod| {
                orphan_keys::<DaemonSet>(objects, pod, |set| {
                    set.spec.as_ref().map(|s| owner::selector(&s.selector))
                })
            }),
            Source::new("nodes", |objects, _| {
                objects
                    .store()
                    .list("daemonsets.apps", None)
                    .items
                    .iter()
                    .map(|set| set.key.clone())
                    .collect()
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(set) = objects.get_typed::<DaemonSet>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let Some(spec) = set.spec.as_ref() else { return Plan::default() };
        let selector = owner::selector(&spec.selector);
        let observed = Observed {
            nodes: objects.list_typed(None),
            pods: owner::candidates(objects, &key.namespace, owner::uid(&set.metadata), &selector),
            revisions: history::owned(objects, &*set),
            waits: self.backoff.of(&version(&set), round.now),
        };
        let (plan, failed) = reconcile(&set, spec, &observed, round.now);
        self.backoff.failed(&version(&set), failed, round.now);
        plan
    }
}

#[derive(Default)]
struct Observed {
    nodes: Vec<Arc<Node>>,
    pods: Vec<Arc<Pod>>,
    revisions: Vec<Arc<ControllerRevision>>,
    /// Nodes where the last daemon failed a moment ago.
    waits: Waits,
}

/// What failures are counted of: a new generation is tried at once.
fn version(set: &DaemonSet) -> String {
    format!("{}/{}", owner::uid(&set.metadata), set.metadata.generation.unwrap_or(0))
}

/// What daemons tolerate without being told to.
fn tolerations(host_network: bool) -> Vec<Toleration> {
    let mut all = vec![
        (TAINT_NOT_READY, NO_EXECUTE),
        (TAINT_UNREACHABLE, NO_EXECUTE),
        (TAINT_DISK_PRESSURE, NO_SCHEDULE),
        (TAINT_MEMORY_PRESSURE, NO_SCHEDULE),
        (TAINT_PID_PRESSURE, NO_SCHEDULE),
        (TAINT_UNSCHEDULABLE, NO_SCHEDULE),
    ];
    if host_network {
        all.push((TAINT_NETWORK_UNAVAILABLE, NO_SCHEDULE));
    }
    let toleration = |(key, effect): (&str, &str)| Toleration {
        key: Some(key.into()),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Toleration::default()
    };
    all.into_iter().map(toleration).collect()
}

/// The template's spec as daemons run it, on whichever node.
fn daemon_spec(spec: &DaemonSetSpec) -> PodSpec {
    let mut pod = spec.template.spec.clone().unwrap_or_default();
    let all = pod.tolerations.get_or_insert_default();
    for toleration in tolerations(pod.host_network == Some(true)) {
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    pod
}

/// Whether a daemon should be on a node, and whether one that is there may stay.
fn suits(pod: &PodSpec, node: &Node) -> (bool, bool) {
    let named = pod.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|name| name != placement::node_name(node)) || !placement::affinity_allows(pod, node)
    {
        return (false, false);
    }
    let untolerated = |effects: &[&str]| {
        placement::untolerated(placement::taints(node), pod.tolerations.as_ref(), effects).is_some()
    };
    (!untolerated(&[NO_SCHEDULE, NO_EXECUTE]), !untolerated(&[NO_EXECUTE]))
}

/// The node a daemon is on or meant for.
pub fn target_node(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &required.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first()).map(String::as_str)
}

/// The plan, and the nodes whose daemons have failed and go.
fn reconcile(
    set: &DaemonSet,
    spec: &DaemonSetSpec,
    observed: &Observed,
    now: Timestamp,
) -> (Plan, Vec<String>) {
    let mut plan = Plan::about(set);
    let selector = owner::selector(&spec.selector);
    if selector.is_everything() {
        plan.event(Note::warning(
            "SelectingAll",
            "This daemon set is selecting all pods. A non-empty selector is required.",
        ));
        return (plan, Vec::new());
    }
    let claimed = owner::claim(set, &observed.pods, &selector, &mut plan);
    if set.metadata.deletion_timestamp.is_some() {
        return (plan, Vec::new());
    }
    let collisions = set.status.as_ref().and_then(|s| s.collision_count);
    let revision = history::sync(set, &spec.template, &observed.revisions, collisions, &mut plan);
    let prefix = format!("{}-", owner::name(&set.metadata));
    let hash = revision.strip_prefix(&prefix).unwrap_or(&revision).to_owned();
    let pod_spec = daemon_spec(spec);
    let waits = &observed.waits;
    let nodes = BTreeMap::new();
    let mut work =
        Work { set, spec, pod_spec, hash, now, waits, nodes, plan, failed: Vec::new(), lost: Vec::new() };
    for node in &observed.nodes {
        work.nodes.insert(placement::node_name(node), (node, Vec::new()));
    }
    // What has ended and is going only has to go.
    for pod in claimed.iter().filter(|p| !(pods::is_terminal(p) && pods::is_deleting(p))) {
        match target_node(pod).and_then(|node| work.nodes.get_mut(node)) {
            Some(place) => place.1.push(pod),
            // It will never have a node, so that nobody else would collect it.
            None if pods::node_name(pod).is_empty() && !pods::is_deleting(pod) => work.lost.push(pod),
            None => {}
        }
    }
    for (_, pods) in work.nodes.values_mut() {
        pods.sort_by_key(|p| (pods::node_name(p).is_empty(), created(p), p.metadata.name.clone()));
    }
    let status = work.status();
    work.manage();
    work.update();
    let Work { mut plan, failed, .. } = work;
    plan.status_first(set, set.status.as_ref(), &status);
    let in_use = |name: &str| {
        name == revision
            || claimed.iter().any(|pod| {
                owner::label(&pod.metadata, HASH_LABEL)
                    .is_some_and(|hash| name.strip_prefix(&prefix) == Some(hash))
            })
    };
    history::truncate(&observed.revisions, in_use, spec.revision_history_limit, &mut plan);
    (plan, failed)
}

struct Work<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    pod_spec: PodSpec,
    hash: String,
    now: Timestamp,
    waits: &'a Waits,
    /// Nodes with the set's pods on or for them, those with a node and the oldest first.
    nodes: BTreeMap<&'a str, (&'a Arc<Node>, Vec<&'a Arc<Pod>>)>,
    /// Pods for nodes that there are not.
    lost: Vec<&'a Arc<Pod>>,
    plan: Plan,
    /// Nodes whose daemons have failed and go now.
    failed: Vec<String>,
}

impl<'a> Work<'a> {
    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now) && !pods::is_deleting(pod)
    }

    fn is_new(&self, pod: &Pod) -> bool {
        owner::label(&pod.metadata, HASH_LABEL) == Some(&self.hash)
    }

    fn wanted_nodes(&self) -> i32 {
        let wanted = self.nodes.values().filter(|(node, _)| suits(&self.pod_spec, node).0).count();
        i32::try_from(wanted).unwrap_or(i32::MAX)
    }

    fn is_rolling(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    /// How many pods more and how many fewer there may be during an update.
    fn bounds(&self) -> (usize, usize) {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let wanted = self.wanted_nodes();
        let count = |bound: Option<&IntOrString>, default: i32| {
            let count = bound.map_or(default, |b| pods::scaled(b, wanted, true));
            usize::try_from(count).unwrap_or(0)
        };
        let surge = if self.is_rolling() { count(rolling.and_then(|r| r.max_surge.as_ref()), 0) } else { 0 };
        let unavailable = count(rolling.and_then(|r| r.max_unavailable.as_ref()), 1);
        (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable })
    }

    fn status(&mut self) -> DaemonSetStatus {
        let mut status = DaemonSetStatus::default();
        let (mut updated, mut available) = (0, 0);
        let mut waits = Vec::new();
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        for (node, pods) in self.nodes.values() {
            if !suits(&self.pod_spec, node).0 {
                status.number_misscheduled += i32::from(!pods.is_empty());
                continue;
            }
            status.desired_number_scheduled += 1;
            // Of several the oldest counts, as upstream.
            let Some(pod) = pods.first() else { continue };
            status.current_number_scheduled += 1;
            updated += i32::from(self.is_new(pod));
            if pods::is_ready(pod) {
                status.number_ready += 1;
                available += i32::from(pods::is_available(pod, min_ready, self.now));
                waits.extend(pods::available_in(pod, min_ready, self.now));
            }
        }
        for delay in waits.into_iter().filter(SignedDuration::is_positive) {
            self.plan.requeue_in(delay);
        }
        let old = self.set.status.as_ref();
        DaemonSetStatus {
            observed_generation: self.set.metadata.generation,
            updated_number_scheduled: non_zero(updated),
            number_available: non_zero(available),
            number_unavailable: non_zero(status.desired_number_scheduled - available),
            collision_count: old.and_then(|s| s.collision_count),
            conditions: old.and_then(|s| s.conditions.clone()),
            ..status
        }
    }

    /// One pod where one should be, none where none should.
    fn manage(&mut self) {
        let surge = self.bounds().0 > 0;
        let mut missing: Vec<&'a str> = Vec::new();
        let mut surplus: Vec<&'a Arc<Pod>> = std::mem::take(&mut self.lost);
        for (name, (node, pods)) in std::mem::take(&mut self.nodes) {
            let (should_run, may_stay) = suits(&self.pod_spec, node);
            if may_stay {
                let alive = self.alive(name, &pods, &mut surplus);
                // Without a surge, what is going has to be gone first.
                if should_run && if surge { alive.is_empty() } else { pods.is_empty() } {
                    missing.push(name);
                }
                if surge {
                    self.keep_two(&alive, &mut surplus);
                } else {
                    surplus.extend(alive.into_iter().skip(1));
                }
            } else {
                surplus.extend(pods.iter().filter(|p| !pods::is_deleting(p)));
            }
            self.nodes.insert(name, (node, pods));
        }
        for pod in surplus {
            self.plan.delete(&**pod, Some(DELETED), Some(DELETE_FAILED));
        }
        for node in missing {
            self.create(node);
        }
    }

    /// The pods of a node that run or will; those that have ended go, a failed one not at once every
    /// time.
    fn alive(
        &mut self,
        node: &str,
        pods: &[&'a Arc<Pod>],
        surplus: &mut Vec<&'a Arc<Pod>>,
    ) -> Vec<&'a Arc<Pod>> {
        let mut alive = Vec::new();
        for pod in pods.iter().copied().filter(|p| !pods::is_deleting(p)) {
            let found = |what: &str, will: &str| {
                let (namespace, name) = (owner::namespace(&pod.metadata), owner::name(&pod.metadata));
                format!("Found {what} daemon pod {namespace}/{name} on node {node}, will try to {will} it")
            };
            match pods::phase(pod) {
                "Failed" => {
                    if let Some(wait) = self.waits.get(node) {
                        self.plan.requeue_in(*wait);
                        continue;
                    }
                    self.failed.push(node.to_owned());
                    self.plan.event(Note::warning("FailedDaemonPod", found("failed", "kill")));
                    surplus.push(pod);
                }
                "Succeeded" => {
                    self.plan.event(Note::normal("SucceededDaemonPod", found("succeeded", "delete")));
                    surplus.push(pod);
                }
                _ => alive.push(pod),
            }
        }
        alive
    }

    /// With a surge there may be two: the oldest old one, ready, beside the oldest new one until
    /// that is available ([`Work::update`] sees to it).
    fn keep_two(&self, alive: &[&'a Arc<Pod>], surplus: &mut Vec<&'a Arc<Pod>>) {
        let (new, old): (Vec<_>, Vec<_>) = alive.iter().copied().partition(|p| self.is_new(p));
        let stale = old.first().filter(|old| !new.is_empty() && !pods::is_ready(old));
        surplus.extend(stale.copied());
        surplus.extend(new.into_iter().skip(1).chain(old.into_iter().skip(1)));
    }

    fn create(&mut self, node: &str) {
        let mut pod = pods::from_template(&self.spec.template, self.set, controller_reference(self.set));
        history::with_label(&mut pod.metadata, HASH_LABEL, &self.hash);
        if let Some(generation) =
            owner::annotation(&self.set.metadata, "deprecated.daemonset.template.generation")
        {
            history::with_label(&mut pod.metadata, "pod-template-generation", generation);
        }
        let mut spec = self.pod_spec.clone();
        let by_name = NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        };
        let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
        match &mut affinity.required_during_scheduling_ignored_during_execution {
            Some(selector) => {
                for term in &mut selector.node_selector_terms {
                    term.match_fields = Some(vec![by_name.clone()]);
                }
            }
            required => {
                let term = NodeSelectorTerm { match_fields: Some(vec![by_name]), match_expressions: None };
                *required = Some(NodeSelector { node_selector_terms: vec![term] });
            }
        }
        pod.spec = Some(spec);
        self.plan.create(&pod, Some(CREATED), Some(CREATE_FAILED));
    }

    /// `RollingUpdate`: old pods go as many at a time as may be unavailable, or get successors as
    /// many at a time as may be too many.
    fn update(&mut self) {
        if !self.is_rolling() {
            return;
        }
        let (surge, unavailable_max) = self.bounds();
        let (mut unavailable, mut surging) = (0, 0);
        let mut free: Vec<(&'a str, &'a Arc<Pod>)> = Vec::new();
        let mut candidates: Vec<(&'a str, &'a Arc<Pod>)> = Vec::new();
        let mut finished: Vec<&'a Arc<Pod>> = Vec::new();
        for (name, (node, pods)) in &self.nodes {
            if !suits(&self.pod_spec, node).0 {
                continue;
            }
            let alive = || pods.iter().copied().filter(|p| !pods::is_terminal(p));
            let new = alive().find(|p| self.is_new(p));
            let old = alive().find(|p| !self.is_new(p));
            match (old, new) {
                (Some(old), Some(new)) if surge > 0 => {
                    surging += 1;
                    if self.is_available(new) && pods::is_ready(old) && !pods::is_deleting(old) {
                        finished.push(old);
                    }
                }
                (None | Some(_), None | Some(_)) if old.is_none() == new.is_none() => unavailable += 1,
                (None, Some(new)) => unavailable += usize::from(!self.is_available(new)),
                (Some(old), _) if pods::is_deleting(old) => unavailable += 1,
                (Some(old), _) if self.is_available(old) => candidates.push((name, old)),
                (Some(old), _) => {
                    unavailable += 1;
                    free.push((name, old));
                }
                (None, None) => {}
            }
        }
        for pod in finished {
            self.plan.delete(&**pod, Some(DELETED), Some(DELETE_FAILED));
        }
        let room = if surge > 0 {
            surge.saturating_sub(surging)
        } else {
            unavailable_max.saturating_sub(unavailable)
        };
        let chosen: Vec<_> = if surge > 0 {
            free.into_iter().chain(candidates).take(room).collect()
        } else {
            free.into_iter().chain(candidates.into_iter().take(room)).collect()
        };
        for (node, old) in chosen {
            if surge > 0 {
                self.create(node);
            } else {
                self.plan.delete(&**old, Some(DELETED), Some(DELETE_FAILED));
            }
        }
    }
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::sim::{Fate, Sim, template};

    async fn sim(nodes: &[&str], strategy: serde_json::Value) -> Sim {
        let sim = Sim::new(vec![Arc::new(DaemonSetController::default())]);
        for name in nodes {
            sim.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"disk": "ssd"}}})).await;
        }
        sim.create(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "log"},
            "spec": {"selector": {"matchLabels": {"app": "log"}}, "updateStrategy": strategy, "template": template(json!({"app": "log"}), "a:1")}}))
            .await;
        sim
    }

    fn places(sim: &Sim) -> Vec<String> {
        let mut all: Vec<String> =
            sim.list::<Pod>().iter().filter_map(|p| target_node(p).map(str::to_owned)).collect();
        all.sort();
        all
    }

    fn image(tag: &str) -> serde_json::Value {
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": tag}]}}}})
    }

    fn available(objects: &Objects) -> usize {
        objects.list_typed::<Pod>(None).iter().filter(|p| pods::is_ready(p) && !pods::is_deleting(p)).count()
    }

    #[tokio::test]
    async fn every_node_that_suits_has_one() {
        let mut sim = sim(&["a", "b", "c"], json!({"type": "RollingUpdate"})).await;
        sim.change::<Node>("b", json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        assert_eq!(places(&sim), ["a", "c"]);
        sim.change::<Node>("b", json!({"spec": {"taints": null}})).await;
        sim.change::<Node>("c", json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        assert_eq!(places(&sim), ["a", "b"]);
        let status = sim.get::<DaemonSet>("log").status.clone().unwrap();
        assert_eq!((status.desired_number_scheduled, status.number_available), (2, Some(2)));
    }

    #[tokio::test]
    async fn updates_keep_their_bounds() {
        let nodes = ["a", "b", "c", "d"];
        for (bounds, least, most) in
            [(json!({"maxUnavailable": 2}), 2, 4), (json!({"maxSurge": 1, "maxUnavailable": 0}), 4, 5)]
        {
            let mut sim = sim(&nodes, json!({"type": "RollingUpdate", "rollingUpdate": bounds})).await;
            sim.settle(|_| Fate::Run, |_| {}).await;
            sim.change::<DaemonSet>("log", image("a:2")).await;
            for _ in 0..40 {
                sim.step(&mut |objects: &Objects| {
                    let count =
                        objects.list_typed::<Pod>(None).iter().filter(|p| !pods::is_deleting(p)).count();
                    assert!(
                        available(objects) >= least && count <= most,
                        "{} of {count}",
                        available(objects)
                    );
                })
                .await;
                sim.kubelet(&|_: &Pod| Fate::Run).await;
            }
            assert_eq!(places(&sim), nodes);
            assert_eq!(
                sim.get::<DaemonSet>("log").status.as_ref().unwrap().updated_number_scheduled,
                Some(4),
                "{bounds}"
            );
        }
    }

    #[tokio::test]
    async fn what_fails_again_and_again_is_made_anew_ever_later() {
        let mut sim = sim(&["a"], json!({"type": "RollingUpdate"})).await;
        let fails = |_: &Pod| Fate::Fail;
        sim.settle(fails, |_| {}).await;
        // The first failure is answered at once, the next after one second, then two.
        for waits in [1, 2, 4] {
            let before = sim.names::<Pod>();
            sim.pass(waits - 1);
            sim.settle(fails, |_| {}).await;
            assert_eq!(sim.names::<Pod>(), before, "{waits} s are not over");
            sim.pass(1);
            sim.settle(fails, |_| {}).await;
            assert_ne!(sim.names::<Pod>(), before);
        }
        let events = sim.list::<k8s_openapi::api::core::v1::Event>();
        let found = events.iter().filter(|e| e.reason.as_deref() == Some("FailedDaemonPod")).count();
        assert_eq!(found, 4);
        sim.change::<DaemonSet>("log", image("a:2")).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        assert_eq!(available(&sim.objects), 1, "what is new is tried at once");
    }

    #[tokio::test]
    async fn a_daemon_for_a_node_that_went_goes_too() {
        let mut sim = sim(&["a", "b"], json!({"type": "RollingUpdate"})).await;
        sim.step(&mut |_| {}).await;
        sim.step(&mut |_| {}).await;
        assert_eq!(places(&sim), ["a", "b"]);
        sim.delete::<Node>("b", None).await;
        sim.step(&mut |_| {}).await;
        assert_eq!(places(&sim), ["a"]);
    }

    #[tokio::test]
    async fn an_old_daemon_that_is_not_ready_does_not_stay_beside_the_new_one() {
        let bounds = json!({"maxSurge": 1, "maxUnavailable": 0});
        let mut sim = sim(&["a"], json!({"type": "RollingUpdate", "rollingUpdate": bounds})).await;
        sim.settle(|_| Fate::RunUnready, |_| {}).await;
        let old = sim.names::<Pod>();
        sim.change::<DaemonSet>("log", image("a:2")).await;
        sim.settle(|_| Fate::RunUnready, |_| {}).await;
        let now = sim.names::<Pod>();
        assert!(now.len() == 1 && now != old, "{old:?} {now:?}");
    }
}
