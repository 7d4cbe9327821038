//! The steps of a rollout on a working copy of the ReplicaSets; every change becomes an action.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{
            Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
        },
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde_json::{Map, Value, json};

use super::{
    super::{
        owner::{self, controller_reference},
        plan::{Note, Plan, annotate},
        pods,
    },
    Observed, revision, status,
};

/// The history limit that stands for none.
const NO_LIMIT: i32 = i32::MAX;

/// The state of one plan.
pub struct Rollout<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    observed: &'a Observed,
    now: Timestamp,
    plan: Plan,
    /// All but the one of the present template, the oldest first.
    old: Vec<ReplicaSet>,
    /// The one of the present template.
    new: Option<ReplicaSet>,
    conditions: Vec<DeploymentCondition>,
    collision_count: Option<i32>,
}

impl<'a> Rollout<'a> {
    pub fn new(
        deployment: &'a Deployment,
        spec: &'a DeploymentSpec,
        owned: Vec<Arc<ReplicaSet>>,
        observed: &'a Observed,
        now: Timestamp,
        plan: Plan,
    ) -> Self {
        let mut old: Vec<ReplicaSet> = owned.into_iter().map(|rs| (*rs).clone()).collect();
        old.sort_by(|a, b| age_key(a).cmp(&age_key(b)));
        let status = deployment.status.as_ref();
        Self {
            deployment,
            spec,
            observed,
            now,
            plan,
            old,
            new: None,
            conditions: status.and_then(|s| s.conditions.clone()).unwrap_or_default(),
            collision_count: status.and_then(|s| s.collision_count),
        }
    }

    pub fn into_plan(self) -> Plan {
        self.plan
    }

    fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    /// The most pods there may be.
    fn max_total(&self) -> i32 {
        self.wanted() + max_surge(self.spec)
    }

    /// Old ones and the new one.
    fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }

    /// Time spent paused does not count towards the deadline.
    pub fn check_paused(&mut self) {
        if !status::has_deadline(self.spec) {
            return;
        }
        let current =
            self.conditions.iter().find(|c| c.type_ == "Progressing").and_then(|c| c.reason.as_deref());
        let paused = self.spec.paused == Some(true);
        let (reason, message) = match current {
            Some("DeploymentPaused") if !paused => ("DeploymentResumed", "Deployment is resumed"),
            Some("ProgressDeadlineExceeded" | "DeploymentPaused") => return,
            _ if paused => ("DeploymentPaused", "Deployment is paused"),
            _ => return,
        };
        let new = status::new_condition("Progressing", "Unknown", reason, message.to_owned(), self.now);
        status::set(&mut self.conditions, new);
    }

    /// Finds the ReplicaSet of the present template and brings its annotations up to date.
    pub fn find_new(&mut self) {
        let same = |rs: &ReplicaSet| {
            rs.spec
                .as_ref()
                .and_then(|s| s.template.as_ref())
                .is_some_and(|t| revision::same_template(t, &self.spec.template))
        };
        let Some(index) = self.old.iter().position(same) else { return };
        let mut rs = self.old.remove(index);
        let annotations =
            revision::annotations(self.deployment, rs.metadata.annotations.as_ref(), self.new_revision());
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        let outdated = rs.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0) != min_ready;
        if rs.metadata.annotations.as_ref() != Some(&annotations) || outdated {
            let mut patch = json!({ "metadata": { "annotations": annotations } });
            if outdated {
                patch["spec"] = json!({ "minReadySeconds": min_ready });
                rs.spec.get_or_insert_default().min_ready_seconds = Some(min_ready);
            }
            self.plan.merge(&rs, patch);
            rs.metadata.annotations = Some(annotations);
        }
        self.note_revision(revision::revision(&rs));
        if status::has_deadline(self.spec) && !self.conditions.iter().any(|c| c.type_ == "Progressing") {
            let message = format!("Found new replica set {:?}", owner::name(&rs.metadata));
            let condition =
                status::new_condition("Progressing", "True", "FoundNewReplicaSet", message, self.now);
            status::set(&mut self.conditions, condition);
        }
        self.new = Some(rs);
    }

    fn new_revision(&self) -> i64 {
        self.old.iter().map(revision::revision).max().unwrap_or(0) + 1
    }

    /// Writes the revision to the Deployment.
    fn note_revision(&mut self, revision: i64) {
        let revision = revision.to_string();
        if owner::annotation(&self.deployment.metadata, revision::REVISION) != Some(&revision) {
            self.plan.merge(self.deployment, annotate(revision::REVISION, &revision));
        }
    }

    /// Plans the ReplicaSet of the present template when there is none; false when its name is in
    /// use, and another one has to be tried.
    fn create_new(&mut self) -> bool {
        if self.new.is_some() {
            return true;
        }
        let name = revision::replica_set_name(self.deployment);
        if let Some(failure) = &self.observed.failure {
            let message = format!("Failed to create new replica set {name:?}: {failure}");
            let condition =
                status::new_condition("Progressing", "False", "ReplicaSetCreateError", message, self.now);
            status::set(&mut self.conditions, condition);
        }
        if self.observed.name_taken {
            self.collision_count = Some(self.collision_count.unwrap_or(0) + 1);
            return false;
        }
        let new_revision = self.new_revision();
        let hash = revision::template_hash(self.deployment);
        let template = with_label(&self.spec.template, &hash);
        let mut selector: LabelSelector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(revision::HASH_LABEL.into(), hash);
        let replicas = self.new_replicas(0);
        let mut annotations = revision::annotations(self.deployment, None, new_revision);
        self.size_annotations(&mut annotations);
        let rs = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(self.deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let scaled = (replicas > 0).then(|| scaling_note("up", &name, 0, replicas));
        self.plan.create(&rs, scaled, None);
        self.note_revision(new_revision);
        if status::has_deadline(self.spec) && self.observed.failure.is_none() {
            let message = format!("Created new replica set {name:?}");
            let condition =
                status::new_condition("Progressing", "True", "NewReplicaSetCreated", message, self.now);
            status::set(&mut self.conditions, condition);
        }
        self.new = Some(rs);
        true
    }

    fn size_annotations(&self, annotations: &mut BTreeMap<String, String>) {
        annotations.insert(revision::DESIRED_REPLICAS.into(), self.wanted().to_string());
        annotations.insert(revision::MAX_REPLICAS.into(), self.max_total().to_string());
    }

    /// Whether somebody changed `spec.replicas` since the ReplicaSets were sized.
    pub fn is_scaling(&self) -> bool {
        self.all().into_iter().filter(|rs| replicas(rs) > 0).any(|rs| {
            revision::number(&rs.metadata, revision::DESIRED_REPLICAS)
                .is_some_and(|desired| desired != i64::from(self.wanted()))
        })
    }

    /// Sizes one ReplicaSet.
    fn resize(&mut self, which: Which, to: i32) {
        let wanted = self.wanted().to_string();
        let max = self.max_total().to_string();
        let Some(rs) = (match which {
            Which::New => self.new.as_mut(),
            Which::Old(index) => self.old.get_mut(index),
        }) else {
            return;
        };
        let from = replicas(rs);
        let annotations = rs.metadata.annotations.get_or_insert_default();
        let mut patch = Map::new();
        if annotations.get(revision::DESIRED_REPLICAS) != Some(&wanted)
            || annotations.get(revision::MAX_REPLICAS) != Some(&max)
        {
            let sizes = json!({ revision::DESIRED_REPLICAS: wanted, revision::MAX_REPLICAS: max });
            patch.insert("metadata".into(), json!({ "annotations": sizes }));
            annotations.insert(revision::DESIRED_REPLICAS.into(), wanted);
            annotations.insert(revision::MAX_REPLICAS.into(), max);
        }
        if from != to {
            patch.insert("spec".into(), json!({ "replicas": to }));
            let direction = if to > from { "up" } else { "down" };
            self.plan.event(scaling_note(direction, owner::name(&rs.metadata), from, to));
            rs.spec.get_or_insert_default().replicas = Some(to);
        }
        if !patch.is_empty() {
            self.plan.merge(&*rs, Value::Object(patch));
        }
    }

    /// The same, when it changes the size.
    fn resize_if(&mut self, which: Which, to: i32) -> bool {
        let rs = match which {
            Which::New => self.new.as_ref(),
            Which::Old(index) => self.old.get(index),
        };
        let differs = rs.is_some_and(|rs| replicas(rs) != to);
        if differs {
            self.resize(which, to);
        }
        differs
    }

    /// Follows a change of `spec.replicas`, in proportion when a rollout is under way.
    pub fn scale(&mut self) {
        if let Some(which) = self.active_or_latest() {
            self.resize_if(which, self.wanted());
            return;
        }
        if self.is_saturated() {
            for index in 0..self.old.len() {
                self.resize_if(Which::Old(index), 0);
            }
            return;
        }
        if super::is_recreate(self.deployment) {
            return;
        }
        let mut active: Vec<(Which, &ReplicaSet)> = self
            .old
            .iter()
            .enumerate()
            .map(|(index, rs)| (Which::Old(index), rs))
            .chain(self.new.iter().map(|rs| (Which::New, rs)))
            .filter(|(_, rs)| replicas(rs) > 0)
            .collect();
        let total: i32 = active.iter().map(|(_, rs)| replicas(rs)).sum();
        let allowed = if self.wanted() > 0 { self.max_total() } else { 0 };
        let to_add = allowed - total;
        // The largest first; of equal ones the newest gets more and the oldest loses more.
        active.sort_by(|(_, a), (_, b)| {
            let by_age = age_key(a).cmp(&age_key(b));
            replicas(b).cmp(&replicas(a)).then(if to_add > 0 { by_age.reverse() } else { by_age })
        });
        let mut added = 0;
        let mut sizes: Vec<(Which, i32)> = Vec::with_capacity(active.len());
        for (which, rs) in &active {
            let share = self.share(rs, to_add, added);
            added += share;
            sizes.push((*which, replicas(rs) + share));
        }
        if let Some((_, first)) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (which, size) in sizes {
            self.resize(which, size);
        }
    }

    /// How many of `to_add` pods go to one ReplicaSet, in proportion to its size.
    fn share(&self, rs: &ReplicaSet, to_add: i32, added: i32) -> i32 {
        if to_add == 0 || to_add == added {
            return 0;
        }
        let size = replicas(rs);
        let fraction = if self.wanted() == 0 {
            -size
        } else {
            let before = revision::number(&rs.metadata, revision::MAX_REPLICAS)
                .filter(|n| *n > 0)
                .or_else(|| self.deployment.status.as_ref()?.replicas.map(i64::from))
                .filter(|n| *n > 0);
            let Some(before) = before else { return 0 };
            let scaled = f64::from(size) * f64::from(self.max_total()) / before as f64;
            scaled.round() as i32 - size
        };
        if to_add > 0 { fraction.min(to_add - added) } else { fraction.max(to_add - added) }
    }

    /// The only active ReplicaSet, or the latest when none is; `None` when several are.
    fn active_or_latest(&self) -> Option<Which> {
        let is_active = |rs: &ReplicaSet| replicas(rs) > 0;
        let old = self.old.iter().enumerate().filter(|(_, rs)| is_active(rs)).map(|(i, _)| Which::Old(i));
        let active: Vec<Which> =
            old.chain(self.new.iter().filter(|rs| is_active(rs)).map(|_| Which::New)).collect();
        match active.as_slice() {
            [] if self.new.is_some() => Some(Which::New),
            [] => self.old.len().checked_sub(1).map(Which::Old),
            [only] => Some(*only),
            _ => None,
        }
    }

    fn is_saturated(&self) -> bool {
        let wanted = self.wanted();
        self.new.as_ref().is_some_and(|rs| {
            replicas(rs) == wanted
                && revision::number(&rs.metadata, revision::DESIRED_REPLICAS) == Some(wanted.into())
                && available(rs) == wanted
        })
    }

    /// `RollingUpdate`: up as far as the surge allows, else down as far as availability allows.
    pub fn roll(&mut self) {
        if !self.create_new() || self.grow_new() {
            return;
        }
        if !self.shrink_old() && self.is_complete() {
            self.clean_up();
        }
    }

    fn grow_new(&mut self) -> bool {
        let Some(size) = self.new.as_ref().map(replicas) else { return false };
        let to = if size > self.wanted() { self.wanted() } else { self.new_replicas(size) };
        self.resize_if(Which::New, to)
    }

    /// How many replicas the new ReplicaSet may have now.
    fn new_replicas(&self, current: i32) -> i32 {
        if super::is_recreate(self.deployment) {
            return self.wanted();
        }
        // Upstream counts what is wanted. What is still there counts too: a ReplicaSet that has not
        // come down yet (the master ended in between) would else make it too many.
        if self.all().into_iter().any(|rs| !is_observed(rs)) {
            return current;
        }
        let total: i32 = self.all().into_iter().map(|rs| replicas(rs).max(actual(rs))).sum();
        let room = self.max_total() - total;
        if room <= 0 { current } else { current + room.min(self.wanted() - current).max(0) }
    }

    fn shrink_old(&mut self) -> bool {
        let old_total: i32 = self.old.iter().map(replicas).sum();
        if old_total == 0 {
            return false;
        }
        let minimum = self.wanted() - max_unavailable(self.spec);
        let new_unavailable = self.new.as_ref().map_or(0, |rs| replicas(rs) - available(rs));
        let total: i32 = self.all().into_iter().map(replicas).sum();
        let may_go = total - minimum - new_unavailable;
        if may_go <= 0 {
            return false;
        }
        // Unhealthy ones first: they hold the rollout up and their going costs nothing.
        let mut cleaned = 0;
        for index in 0..self.old.len() {
            let (size, healthy) = (replicas(&self.old[index]), available(&self.old[index]));
            let unhealthy = (size - healthy).min(may_go - cleaned);
            if size > 0 && unhealthy > 0 {
                self.resize_if(Which::Old(index), size - unhealthy);
                cleaned += unhealthy;
            }
        }
        // Of what is available, what is to go already is not there to be counted on.
        let lasting = |rs: &ReplicaSet| available(rs).min(replicas(rs));
        let mut spare = self.all().into_iter().map(lasting).sum::<i32>() - minimum;
        let mut shrunk = 0;
        for index in 0..self.old.len() {
            let size = replicas(&self.old[index]);
            let go = size.min(spare);
            if go > 0 {
                self.resize_if(Which::Old(index), size - go);
                spare -= go;
                shrunk += go;
            }
        }
        cleaned + shrunk > 0
    }

    /// `Recreate`: everything down, wait until it is gone, everything up.
    pub fn recreate(&mut self) {
        let mut scaled = false;
        for index in 0..self.old.len() {
            scaled |= self.resize_if(Which::Old(index), 0);
        }
        if scaled || self.old_pods_run() || !self.create_new() {
            return;
        }
        self.resize_if(Which::New, self.wanted());
        if self.is_complete() {
            self.clean_up();
        }
    }

    fn old_pods_run(&self) -> bool {
        let new = self.new.as_ref().map_or("", |rs| owner::uid(&rs.metadata));
        let of_old = |controller: &str| self.old.iter().any(|rs| owner::uid(&rs.metadata) == controller);
        self.old.iter().map(actual).sum::<i32>() > 0
            || self.observed.pods.iter().filter(|pod| !pods::is_terminal(pod)).any(|pod| {
                owner::controller_of(&pod.metadata).is_some_and(|o| o.uid != new && of_old(&o.uid))
            })
    }

    fn is_complete(&self) -> bool {
        self.deployment.status.as_ref().is_some_and(|s| status::is_complete(self.deployment, self.spec, s))
    }

    /// Deletes the oldest ReplicaSets beyond the history limit.
    pub fn clean_up(&mut self) {
        let Some(limit) = self.spec.revision_history_limit.filter(|limit| *limit != NO_LIMIT) else { return };
        let mut old: Vec<&ReplicaSet> =
            self.old.iter().filter(|rs| rs.metadata.deletion_timestamp.is_none()).collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|rs| revision::revision(rs));
        for rs in old.into_iter().take(surplus) {
            let observed = rs.status.as_ref().and_then(|s| s.observed_generation);
            if actual(rs) == 0 && replicas(rs) == 0 && rs.metadata.generation <= observed {
                self.plan.delete(rs, None, None);
            }
        }
    }

    pub fn plain_status(&self) -> DeploymentStatus {
        status::calculate(
            self.deployment,
            self.spec,
            &self.all(),
            self.new.as_ref(),
            self.conditions.clone(),
            self.collision_count,
            self.now,
        )
    }

    pub fn rollout_status(&self) -> DeploymentStatus {
        let mut new = self.plain_status();
        status::progress(self.deployment, self.spec, &self.all(), self.new.as_ref(), &mut new, self.now);
        new
    }
}

/// One of the ReplicaSets of a [`Rollout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    New,
    Old(usize),
}

fn scaling_note(direction: &str, name: &str, from: i32, to: i32) -> Note {
    Note::normal("ScalingReplicaSet", format!("Scaled {direction} replica set {name} from {from} to {to}"))
}

fn with_label(template: &PodTemplateSpec, hash: &str) -> PodTemplateSpec {
    let mut template = template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(revision::HASH_LABEL.into(), hash.into());
    template
}

fn age_key(rs: &ReplicaSet) -> (Option<Timestamp>, &str) {
    (rs.metadata.creation_timestamp.as_ref().map(|t| t.0), owner::name(&rs.metadata))
}

pub fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The pods that the ReplicaSet has.
pub fn actual(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map_or(0, |s| s.replicas)
}

/// Whether a ReplicaSet's status speaks of its present spec; one that is only planned has nothing.
fn is_observed(rs: &ReplicaSet) -> bool {
    let observed = rs.status.as_ref().and_then(|s| s.observed_generation);
    rs.metadata.generation.is_none() || observed >= rs.metadata.generation
}

pub fn ready(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)
}

pub fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub fn terminating(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0)
}

/// Surge and unavailability of a rolling update in pods. Both zero would never move, so then one
/// pod may be unavailable.
fn fenceposts(spec: &DeploymentSpec) -> (i32, i32) {
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, 0);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let wanted = spec.replicas.unwrap_or(1);
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
    let surge = pods::scaled(surge, wanted, true);
    let unavailable = pods::scaled(unavailable, wanted, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub fn max_surge(spec: &DeploymentSpec) -> i32 {
    fenceposts(spec).0
}

pub fn max_unavailable(spec: &DeploymentSpec) -> i32 {
    let wanted = spec.replicas.unwrap_or(1);
    if wanted == 0 { 0 } else { fenceposts(spec).1.min(wanted) }
}
