//! StatefulSets: pods with names, volumes and an order.
//!
//! Watches: the sets, pods, their claims. Observes: the pods it owns, revisions, claims. An
//! ordinal's pod is only made when no other of its name exists, whatever state that is in: there
//! are never two pods of one identity.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus},
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde_json::json;

use super::{
    backoff::{Backoff, Waits},
    history::{self, HASH_LABEL},
    owner::{self, controller_reference},
    plan::{Note, Plan, list},
    pods::{self, non_zero},
    runner::{Controller, Round, Source, owner_keys},
};
use crate::{
    objects::Objects,
    store::{Key, Meta},
};

const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

#[derive(Default)]
pub struct StatefulSetController {
    /// Failed pods are not made anew at once, again and again: upstream does, and a node that
    /// refuses a pod would do nothing else. A board has its card to spare.
    backoff: Backoff,
}

impl Controller for StatefulSetController {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn primary(&self) -> &'static str {
        "statefulsets.apps"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("pods", owner_keys::<Pod>("statefulsets.apps")),
            Source::new("controllerrevisions.apps", owner_keys::<ControllerRevision>("statefulsets.apps")),
            Source::new("pods", |objects, pod| {
                super::replica_set::orphan_keys::<StatefulSet>(objects, pod, |set| {
                    set.spec.as_ref().map(|s| owner::selector(&s.selector))
                })
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(set) = objects.get_typed::<StatefulSet>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let Some(spec) = set.spec.as_ref() else { return Plan::default() };
        let version = format!("{}/{}", owner::uid(&set.metadata), set.metadata.generation.unwrap_or(0));
        let observed =
            Observed { waits: self.backoff.of(&version, round.now), ..observe(objects, &set, spec) };
        let (plan, failed) = reconcile(&set, spec, &observed, round.now);
        self.backoff.failed(&version, failed, round.now);
        plan
    }
}

#[derive(Default)]
struct Observed {
    pods: Vec<Arc<Pod>>,
    revisions: Vec<Arc<ControllerRevision>>,
    /// The claims of the set's pods, by name.
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// Names that pods of somebody else have.
    taken: Vec<String>,
    /// Pods (names) whose last failure was a moment ago.
    waits: Waits,
}

fn observe(objects: &Objects, set: &StatefulSet, spec: &StatefulSetSpec) -> Observed {
    let (namespace, uid) = (owner::namespace(&set.metadata), owner::uid(&set.metadata));
    let selector = owner::selector(&spec.selector);
    let name = owner::name(&set.metadata);
    let mut observed = Observed {
        pods: owner::candidates(objects, namespace, uid, &selector),
        revisions: history::owned(objects, set),
        ..Observed::default()
    };
    let is_foreign = |meta: &Meta| !meta.owners.iter().any(|o| **o == *uid);
    for pod in objects.list(crate::kinds::registry::of::<Pod>(), Some(namespace)).items {
        if is_foreign(&pod.meta) && ordinal(name, &pod.key.name).is_some() {
            observed.taken.push(pod.key.name.to_string());
        }
    }
    if spec.volume_claim_templates.as_ref().is_some_and(|t| !t.is_empty()) {
        for claim in objects.list_typed::<PersistentVolumeClaim>(Some(namespace)) {
            observed.claims.insert(owner::name(&claim.metadata).to_owned(), claim);
        }
    }
    observed
}

/// The ordinal in `web-3`.
fn ordinal(set: &str, pod: &str) -> Option<i32> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok().filter(|n| *n >= 0)
}

/// The plan, and the names of pods that have failed and go.
fn reconcile(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    observed: &Observed,
    now: Timestamp,
) -> (Plan, Vec<String>) {
    let mut plan = Plan::about(set);
    let selector = owner::selector(&spec.selector);
    let name = owner::name(&set.metadata);
    let mut claimed = owner::claim(set, &observed.pods, &selector, &mut plan);
    claimed.retain(|pod| ordinal(name, owner::name(&pod.metadata)).is_some());
    if set.metadata.deletion_timestamp.is_some() {
        return (plan, Vec::new());
    }
    let old = set.status.clone().unwrap_or_default();
    let update = history::sync(set, &spec.template, &observed.revisions, old.collision_count, &mut plan);
    let current = old
        .current_revision
        .clone()
        .filter(|name| observed.revisions.iter().any(|r| r.metadata.name.as_ref() == Some(name)))
        .unwrap_or_else(|| update.clone());
    let mut work = Work { set, spec, observed, now, update, current, plan, failed: Vec::new() };
    let status = work.status(&claimed, &old);
    work.act(claimed.clone(), &old);
    let Work { mut plan, update, current, failed, .. } = work;
    plan.status_first(set, set.status.as_ref(), &status);
    let in_use = |revision: &str| {
        revision == update
            || revision == current
            || claimed.iter().any(|pod| owner::label(&pod.metadata, HASH_LABEL) == Some(revision))
    };
    history::truncate(&observed.revisions, in_use, spec.revision_history_limit, &mut plan);
    (plan, failed)
}

struct Work<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    observed: &'a Observed,
    now: Timestamp,
    update: String,
    current: String,
    plan: Plan,
    /// Pods that have failed and go now.
    failed: Vec<String>,
}

impl Work<'_> {
    fn start(&self) -> i32 {
        self.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
    }

    fn end(&self) -> i32 {
        self.start().saturating_add(self.spec.replicas.unwrap_or(1))
    }

    fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn is_rolling(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
    }

    /// The first ordinal that a rolling update touches.
    fn partition(&self) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        self.start() + rolling.and_then(|r| r.partition).unwrap_or(0)
    }

    fn ordinal(&self, pod: &Pod) -> i32 {
        ordinal(owner::name(&self.set.metadata), owner::name(&pod.metadata)).unwrap_or(-1)
    }

    fn is_ready(pod: &Pod) -> bool {
        pods::phase(pod) == "Running" && pods::is_ready(pod)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        Self::is_ready(pod) && pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !pods::is_deleting(pod)
    }

    fn revision(pod: &Pod) -> &str {
        owner::label(&pod.metadata, HASH_LABEL).unwrap_or_default()
    }

    fn status(&mut self, pods: &[Arc<Pod>], old: &StatefulSetStatus) -> StatefulSetStatus {
        let count = |wanted: &dyn Fn(&Pod) -> bool| {
            i32::try_from(pods.iter().filter(|p| wanted(p)).count()).unwrap_or(i32::MAX)
        };
        let replicas = count(&|_| true);
        let ready = count(&|p| Self::is_ready(p));
        let updated = count(&|p| Self::revision(p) == self.update && !pods::is_deleting(p));
        let mut on_current = count(&|p| Self::revision(p) == self.current && !pods::is_deleting(p));
        let wanted = self.spec.replicas.unwrap_or(1);
        if self.is_rolling() && updated == wanted && ready == wanted && replicas == wanted {
            self.current.clone_from(&self.update);
            on_current = updated;
        }
        for delay in pods.iter().filter_map(|p| {
            pods::available_in(p, self.spec.min_ready_seconds.unwrap_or(0), self.now)
                .filter(SignedDuration::is_positive)
        }) {
            self.plan.requeue_in(delay);
        }
        StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas,
            ready_replicas: non_zero(ready),
            available_replicas: Some(count(&|p| self.is_available(p))),
            current_replicas: non_zero(on_current),
            updated_replicas: non_zero(updated),
            current_revision: Some(self.current.clone()),
            update_revision: Some(self.update.clone()),
            collision_count: Some(old.collision_count.unwrap_or(0)),
            conditions: old.conditions.clone(),
        }
    }

    fn act(&mut self, mut pods: Vec<Arc<Pod>>, old: &StatefulSetStatus) {
        pods.sort_by_key(|pod| self.ordinal(pod));
        let (start, end) = (self.start(), self.end());
        let (replicas, condemned): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| (start..end).contains(&self.ordinal(pod)));
        let by_ordinal: BTreeMap<i32, Arc<Pod>> =
            replicas.iter().map(|pod| (self.ordinal(pod), Arc::clone(pod))).collect();
        let first_unhealthy = replicas
            .iter()
            .find(|p| !self.is_healthy(p))
            .or_else(|| condemned.iter().rev().find(|p| !self.is_healthy(p)));
        let first_unhealthy = first_unhealthy.and_then(|p| p.metadata.uid.clone());
        self.claim_owners(&replicas, false);
        self.claim_owners(&condemned, true);
        for ordinal in start..end {
            let go_on = if let Some(pod) = by_ordinal.get(&ordinal) {
                self.tend(pod)
            } else {
                self.create(ordinal, old);
                false
            };
            if !go_on && self.is_ordered() {
                return;
            }
        }
        for pod in condemned.iter().rev() {
            if pods::is_deleting(pod) {
                if self.is_ordered() {
                    return;
                }
                continue;
            }
            if self.is_ordered() && !self.is_healthy(pod) && pod.metadata.uid != first_unhealthy {
                return;
            }
            self.delete(pod);
            if self.is_ordered() {
                return;
            }
        }
        if self.is_rolling() {
            self.roll(&by_ordinal);
        }
    }

    /// Looks after one wanted pod; false when the next has to wait for it.
    fn tend(&mut self, pod: &Arc<Pod>) -> bool {
        let (namespace, name) = (owner::namespace(&self.set.metadata), owner::name(&self.set.metadata));
        if pods::is_terminal(pod) {
            if !pods::is_deleting(pod) {
                let pod_name = owner::name(&pod.metadata);
                if let Some(wait) = self.observed.waits.get(pod_name) {
                    self.plan.requeue_in(*wait);
                    return false;
                }
                if pods::phase(pod) == "Failed" {
                    self.failed.push(pod_name.to_owned());
                }
                let message =
                    |what| format!("StatefulSet {namespace}/{name} is recreating {what} Pod {pod_name}");
                self.plan.event(if pods::phase(pod) == "Failed" {
                    Note::warning("RecreatingFailedPod", message("failed"))
                } else {
                    Note::normal("RecreatingTerminatedPod", message("terminated"))
                });
                self.delete(pod);
            }
            return false;
        }
        if pods::phase(pod) == "Pending" && !pods::is_deleting(pod) {
            self.create_claims(self.ordinal(pod));
        }
        // One that was adopted is called by its name, as all are.
        let name = owner::name(&pod.metadata);
        if owner::label(&pod.metadata, POD_NAME_LABEL) != Some(name) && !pods::is_deleting(pod) {
            let labels = json!({ POD_NAME_LABEL: name, POD_INDEX_LABEL: self.ordinal(pod).to_string() });
            self.plan.merge(&**pod, json!({ "metadata": { "labels": labels } }));
        }
        self.is_healthy(pod)
    }

    /// Replaces pods of old revisions, the highest ordinal first, as many as may be unavailable.
    fn roll(&mut self, pods: &BTreeMap<i32, Arc<Pod>>) {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let allowed = rolling
            .and_then(|r| r.max_unavailable.as_ref())
            .map_or(1, |bound| pods::scaled(bound, self.spec.replicas.unwrap_or(1), false).max(1));
        let mut unavailable =
            (self.start()..self.end()).filter(|n| !pods.get(n).is_some_and(|p| self.is_healthy(p))).count();
        for (_, pod) in pods.range(self.partition()..).rev() {
            if Self::revision(pod) == self.update || pods::is_deleting(pod) {
                continue;
            }
            if self.is_healthy(pod) {
                if unavailable >= usize::try_from(allowed).unwrap_or(1) {
                    continue;
                }
                unavailable += 1;
            }
            self.delete(pod);
        }
    }

    fn delete(&mut self, pod: &Pod) {
        let (name, set) = (owner::name(&pod.metadata), owner::name(&self.set.metadata));
        let done =
            Note::normal("SuccessfulDelete", format!("delete Pod {name} in StatefulSet {set} successful"));
        let failed = Note::warning(
            "FailedDelete",
            format!("delete Pod {name} in StatefulSet {set} failed error: {{error}}"),
        );
        self.plan.delete(pod, Some(done), Some(failed));
    }

    fn create(&mut self, ordinal: i32, old: &StatefulSetStatus) {
        let set_name = owner::name(&self.set.metadata);
        let name = format!("{set_name}-{ordinal}");
        if self.observed.taken.contains(&name) || !self.create_claims(ordinal) {
            return;
        }
        let on_current = self.is_rolling() && self.update != self.current && {
            let has_rolling = self.spec.update_strategy.as_ref().is_some_and(|s| s.rolling_update.is_some());
            let below =
                if has_rolling { self.partition() } else { self.start() + old.current_replicas.unwrap_or(0) };
            ordinal < below
        };
        let kept = |revision: &String| {
            let found = self.observed.revisions.iter().find(|r| r.metadata.name.as_ref() == Some(revision));
            found.and_then(|r| history::template(r))
        };
        let (template, revision) = match on_current.then(|| kept(&self.current)).flatten() {
            Some(template) => (template, self.current.clone()),
            None => (self.spec.template.clone(), self.update.clone()),
        };
        let pod = self.pod(&template, &name, ordinal, &revision);
        let done = Note::normal(
            "SuccessfulCreate",
            format!("create Pod {name} in StatefulSet {set_name} successful"),
        );
        let failed = Note::warning(
            "FailedCreate",
            format!("create Pod {name} in StatefulSet {set_name} failed error: {{error}}"),
        );
        self.plan.create(&pod, Some(done), Some(failed));
    }

    fn pod(&self, template: &PodTemplateSpec, name: &str, ordinal: i32, revision: &str) -> Pod {
        let mut pod = pods::from_template(template, self.set, controller_reference(self.set));
        pod.metadata.generate_name = None;
        pod.metadata.name = Some(name.to_owned());
        history::with_label(&mut pod.metadata, POD_NAME_LABEL, name);
        history::with_label(&mut pod.metadata, POD_INDEX_LABEL, &ordinal.to_string());
        history::with_label(&mut pod.metadata, HASH_LABEL, revision);
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(name.to_owned());
        spec.subdomain = self.spec.service_name.clone().filter(|s| !s.is_empty());
        for (volume, claim) in self.claim_names(ordinal) {
            let volumes = spec.volumes.get_or_insert_default();
            volumes.retain(|v| v.name != volume);
            volumes.push(Volume {
                name: volume,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim,
                    read_only: None,
                }),
                ..Volume::default()
            });
        }
        pod
    }

    /// Volume and claim names of one ordinal.
    fn claim_names(&self, ordinal: i32) -> Vec<(String, String)> {
        let set = owner::name(&self.set.metadata);
        let templates = self.spec.volume_claim_templates.iter().flatten();
        templates
            .map(|t| {
                let volume = owner::name(&t.metadata);
                (volume.to_owned(), format!("{volume}-{set}-{ordinal}"))
            })
            .collect()
    }

    /// Plans the claims that an ordinal lacks; false when one is on its way out and has to be
    /// waited for.
    fn create_claims(&mut self, ordinal: i32) -> bool {
        let set_name = owner::name(&self.set.metadata);
        let names = self.claim_names(ordinal);
        for (template, (_, name)) in self.spec.volume_claim_templates.iter().flatten().zip(names) {
            match self.observed.claims.get(&name) {
                Some(claim) if claim.metadata.deletion_timestamp.is_some() => return false,
                Some(_) => continue,
                None => {}
            }
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(self.spec.selector.match_labels.clone().unwrap_or_default());
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: self.set.metadata.namespace.clone(),
                    labels: Some(labels),
                    annotations: template.metadata.annotations.clone(),
                    owner_references: self.deletes_claims().then(|| vec![self.plain_reference()]),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            };
            let pod = format!("{set_name}-{ordinal}");
            let done = Note::normal(
                "SuccessfulCreate",
                format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success"),
            );
            let failed = Note::warning(
                "FailedCreate",
                format!(
                    "create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {{error}}"
                ),
            );
            self.plan.create(&claim, Some(done), Some(failed));
        }
        true
    }

    fn policy(
        &self,
        of: impl Fn(
            &k8s_openapi::api::apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy,
        ) -> Option<&String>,
    ) -> bool {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        policy.and_then(of).is_some_and(|what| what == "Delete")
    }

    fn deletes_claims(&self) -> bool {
        self.policy(|p| p.when_deleted.as_ref())
    }

    /// A reference to the set that does not say that it controls.
    fn plain_reference(&self) -> OwnerReference {
        OwnerReference { controller: None, block_owner_deletion: None, ..controller_reference(self.set) }
    }

    /// Has claims belong to whom the retention policy says: the set, a condemned pod, or nobody.
    fn claim_owners(&mut self, pods: &[Arc<Pod>], condemned: bool) {
        let scales = self.policy(|p| p.when_scaled.as_ref());
        for pod in pods {
            for (_, name) in self.claim_names(self.ordinal(pod)) {
                let Some(claim) = self.observed.claims.get(&name) else { continue };
                let old = claim.metadata.owner_references.clone().unwrap_or_default();
                let (set, own) = (owner::uid(&self.set.metadata), owner::uid(&pod.metadata));
                let mut new: Vec<OwnerReference> =
                    old.iter().filter(|o| o.uid != set && o.uid != own).cloned().collect();
                if condemned && scales {
                    new.push(OwnerReference {
                        controller: None,
                        block_owner_deletion: None,
                        ..controller_reference(&**pod)
                    });
                } else if self.deletes_claims() {
                    new.push(self.plain_reference());
                }
                let key = |all: &[OwnerReference]| {
                    let mut uids: Vec<String> = all.iter().map(|o| o.uid.clone()).collect();
                    uids.sort();
                    uids
                };
                if key(&old) != key(&new) {
                    self.plan.merge_at(&**claim, json!({ "metadata": { "ownerReferences": list(&new) } }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::sim::{Fate, Sim, template};

    fn set(replicas: i32, more: &serde_json::Value) -> serde_json::Value {
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {"replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": template(json!({"app": "db"}), "a:1"),
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}}}}]}});
        crate::patch::merge_patch(&set, more)
    }

    fn sim() -> Sim {
        Sim::new(vec![Arc::new(StatefulSetController::default())])
    }

    fn image(tag: &str) -> serde_json::Value {
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": tag}]}}}})
    }

    fn images(sim: &Sim) -> Vec<String> {
        sim.list::<Pod>().iter().filter_map(|p| p.spec.as_ref()?.containers[0].image.clone()).collect()
    }

    /// The ordinals are without gaps from below, whatever step the set is at.
    fn in_order(objects: &Objects) {
        let mut ordinals: Vec<i32> = objects
            .list_typed::<Pod>(None)
            .iter()
            .filter_map(|p| ordinal("db", owner::name(&p.metadata)))
            .collect();
        ordinals.sort_unstable();
        assert_eq!(ordinals, (0..ordinals.len() as i32).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn pods_come_and_go_in_order_and_keep_their_claims() {
        let mut sim = sim();
        sim.create(set(3, &json!({}))).await;
        sim.step(&mut |_| {}).await;
        sim.step(&mut |_| {}).await;
        assert_eq!(sim.names::<Pod>(), ["db-0"], "the second waits for the first");
        sim.settle(|_| Fate::Run, in_order).await;
        assert_eq!(sim.names::<Pod>(), ["db-0", "db-1", "db-2"]);
        assert_eq!(sim.names::<PersistentVolumeClaim>(), ["data-db-0", "data-db-1", "data-db-2"]);
        let pod = sim.get::<Pod>("db-1");
        assert_eq!(pod.spec.as_ref().unwrap().hostname.as_deref(), Some("db-1"));
        sim.change::<StatefulSet>("db", json!({"spec": {"replicas": 1}})).await;
        sim.settle(|_| Fate::Run, in_order).await;
        assert_eq!(sim.names::<Pod>(), ["db-0"]);
        assert_eq!(sim.names::<PersistentVolumeClaim>().len(), 3);
    }

    #[tokio::test]
    async fn a_rolling_update_stops_at_the_partition_and_keeps_history() {
        let mut sim = sim();
        sim.create(set(3, &json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}}))).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        sim.change::<StatefulSet>("db", image("a:2")).await;
        let at_most_one_is_missing = |objects: &Objects| {
            let healthy = objects
                .list_typed::<Pod>(None)
                .iter()
                .filter(|p| pods::is_ready(p) && !pods::is_deleting(p))
                .count();
            assert!(healthy >= 2, "{healthy} healthy");
        };
        sim.settle(|_| Fate::Run, at_most_one_is_missing).await;
        assert_eq!(images(&sim), ["a:1", "a:2", "a:2"]);
        sim.delete::<Pod>("db-0", None).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        assert_eq!(images(&sim), ["a:1", "a:2", "a:2"], "below the partition the old revision is kept");
        sim.change::<StatefulSet>(
            "db",
            json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}),
        )
        .await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        let status = sim.get::<StatefulSet>("db").status.clone().unwrap();
        assert_eq!(status.current_revision, status.update_revision);
        assert_eq!((status.updated_replicas, sim.list::<ControllerRevision>().len()), (Some(3), 2));
    }

    #[tokio::test]
    async fn parallel_sets_do_not_wait_and_failed_pods_are_made_anew() {
        let mut sim = sim();
        sim.create(set(3, &json!({"spec": {"podManagementPolicy": "Parallel", "ordinals": {"start": 5}}})))
            .await;
        sim.step(&mut |_| {}).await;
        sim.step(&mut |_| {}).await;
        assert_eq!(sim.names::<Pod>(), ["db-5", "db-6", "db-7"]);
        sim.settle(|_| Fate::Run, |_| {}).await;
        let before = sim.get::<Pod>("db-6").metadata.uid.clone();
        sim.change_status::<Pod>("db-6", json!({"phase": "Failed"})).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        assert_ne!(sim.get::<Pod>("db-6").metadata.uid, before);
    }

    #[tokio::test]
    async fn an_adopted_pod_is_called_by_its_name() {
        let mut sim = sim();
        sim.create(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db-0", "labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": "a"}]}}),
        )
        .await;
        sim.create(set(1, &json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}))).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        let pod = sim.get::<Pod>("db-0");
        assert_eq!(owner::controller_of(&pod.metadata).unwrap().name, "db");
        assert_eq!(owner::label(&pod.metadata, POD_NAME_LABEL), Some("db-0"));
    }

    #[tokio::test]
    async fn what_a_node_refuses_is_made_anew_ever_later() {
        let mut sim = sim();
        sim.create(set(1, &json!({}))).await;
        let fails = |_: &Pod| Fate::Fail;
        sim.settle(fails, |_| {}).await;
        for waits in [1, 2, 4] {
            let before = sim.get::<Pod>("db-0").metadata.uid.clone();
            sim.pass(waits - 1);
            sim.settle(fails, |_| {}).await;
            assert_eq!(sim.get::<Pod>("db-0").metadata.uid, before, "{waits} s are not over");
            sim.pass(1);
            sim.settle(fails, |_| {}).await;
            assert_ne!(sim.get::<Pod>("db-0").metadata.uid, before);
        }
    }
}
