//! Jobs: pods that run to an end, as often as wanted.
//!
//! Watches: Jobs and their pods. Observes: the pods the Job owns. Every ended pod is counted
//! exactly once: it holds a finalizer until the Job's status has it (first by uid in
//! `uncountedTerminatedPods`, then, when the finalizer is gone, in the counters), so neither a
//! restart nor a deletion loses or doubles a result.

mod indexes;
mod orphans;
mod policy;
mod ttl;

pub use orphans::OrphanController;
pub use ttl::TtlController;

use std::{collections::BTreeSet, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
        core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;

use super::{
    owner::{self, controller_reference},
    plan::{Note, Plan, list},
    pods::{self, non_zero},
    replica_set::{CREATE_FAILED, CREATED, DELETE_FAILED, DELETED, orphan_keys},
    runner::{Controller, Round, Source, owner_keys},
};
use crate::{objects::Objects, store::Key};
use indexes::Indexes;
use policy::Verdict;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The controller that a Job belongs to when it names none.
const OWN_NAME: &str = "kubernetes.io/job-controller";
/// The delay after the first failure, doubled with each further one.
const BACKOFF_MIN: SignedDuration = SignedDuration::from_secs(10);
const BACKOFF_MAX: SignedDuration = SignedDuration::from_mins(10);
/// How many pods one plan creates at most.
const CREATES_MAX: i32 = 500;

pub struct JobController;

impl Controller for JobController {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn primary(&self) -> &'static str {
        "jobs.batch"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("pods", owner_keys::<Pod>("jobs.batch")),
            Source::new("pods", |objects, pod| {
                orphan_keys::<Job>(objects, pod, |job| {
                    job.spec.as_ref()?.selector.as_ref().map(owner::selector)
                })
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(job) = objects.get_typed::<Job>(&key.namespace, &key.name) else { return Plan::default() };
        let Some(spec) = job.spec.as_ref() else { return Plan::default() };
        let Some(selector) = spec.selector.as_ref().map(owner::selector) else { return Plan::default() };
        if spec.managed_by.as_deref().is_some_and(|name| name != OWN_NAME) {
            return Plan::default();
        }
        let candidates = owner::candidates(objects, &key.namespace, owner::uid(&job.metadata), &selector);
        let mut plan = Plan::about(&*job);
        let pods = owner::claim_held(&*job, &candidates, &selector, Some(FINALIZER), &mut plan);
        reconcile(&job, spec, &pods, round.now, plan)
    }
}

fn condition<'a>(conditions: &'a [JobCondition], kind: &str) -> Option<&'a JobCondition> {
    conditions.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// When a finished Job finished.
pub fn finished_at(job: &Job) -> Option<Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let condition = condition(conditions, "Complete").or_else(|| condition(conditions, "Failed"))?;
    condition.last_transition_time.as_ref().map(|t| t.0)
}

pub fn is_finished(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    condition(conditions, "Complete").or_else(|| condition(conditions, "Failed")).is_some()
}

/// Whether a finished Job succeeded.
pub fn is_complete(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    condition(conditions, "Complete").is_some()
}

fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

fn index(pod: &Pod) -> Option<i32> {
    owner::annotation(&pod.metadata, INDEX)?.parse().ok()
}

/// Whether a pod that is going away without an end counts as failed.
fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    let replaced_late =
        spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some();
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pods::is_deleting(pod) && !replaced_late,
    }
}

fn reconcile(job: &Job, spec: &JobSpec, pods: &[Arc<Pod>], now: Timestamp, plan: Plan) -> Plan {
    let status = job.status.clone().unwrap_or_default();
    let mut work = Work {
        job,
        spec,
        pods,
        now,
        plan,
        conditions: status.conditions.clone().unwrap_or_default(),
        status,
    };
    if is_finished(job) {
        for pod in pods {
            work.release(pod);
            if pods::is_active(pod) {
                work.delete(pod);
            }
        }
        return work.plan;
    }
    work.run();
    work.plan
}

struct Work<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    plan: Plan,
    status: JobStatus,
    conditions: Vec<JobCondition>,
}

impl Work<'_> {
    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn run(&mut self) {
        self.suspension();
        let (counted, released) = self.count();
        let active: Vec<Arc<Pod>> = self.pods.iter().filter(|p| pods::is_active(p)).cloned().collect();
        let terminating = self.pods.iter().filter(|p| pods::is_terminating(p)).count();
        let mut completed = Indexes::parse(self.status.completed_indexes.as_deref().unwrap_or_default());
        let mut failed_indexes = self.failed_indexes();
        if self.is_indexed() {
            completed.extend(
                self.pods
                    .iter()
                    .filter(|p| pods::phase(p) == "Succeeded")
                    .filter_map(|p| index(p))
                    .filter(|n| *n < self.spec.completions.unwrap_or(0)),
            );
            failed_indexes.remove_all(&completed);
        }
        let succeeded = if self.is_indexed() { completed.len() } else { counted.succeeded };
        let verdict = self.verdict(&counted, succeeded, &active, &completed, &failed_indexes);
        self.judge(verdict, &active, terminating, released, succeeded);
        let target = condition(&self.conditions, "FailureTarget")
            .or_else(|| condition(&self.conditions, "SuccessCriteriaMet"));
        let mut creates = Vec::new();
        let mut active_count = active.len();
        if target.is_some() || self.is_suspended() {
            active_count = 0;
            for pod in &active {
                self.delete(pod);
            }
        } else if self.job.metadata.deletion_timestamp.is_none() {
            creates = self.scale(
                &active,
                terminating,
                succeeded,
                counted.pending_succeeded.len(),
                &completed,
                &failed_indexes,
                &mut active_count,
            );
        }
        let ready = active.iter().filter(|p| pods::is_ready(p)).count();
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let mut status = self.status.clone();
        status.active = non_zero(count(active_count));
        status.ready = Some(if active_count == 0 { 0 } else { count(ready) });
        status.terminating = Some(count(terminating + active.len() - active_count.min(active.len())));
        status.succeeded = non_zero(succeeded);
        status.failed = non_zero(counted.failed);
        if self.is_indexed() {
            status.completed_indexes = Some(completed.to_string()).filter(|t| !t.is_empty());
            status.failed_indexes = self.spec.backoff_limit_per_index.map(|_| failed_indexes.to_string());
        }
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: (!counted.pending_succeeded.is_empty()).then_some(counted.pending_succeeded),
            failed: (!counted.pending_failed.is_empty()).then_some(counted.pending_failed),
        });
        status.conditions = (!self.conditions.is_empty()).then(|| self.conditions.clone());
        // First the status: a finalizer may only go when its pod is in it.
        self.plan.status_first(self.job, self.job.status.as_ref(), &status);
        for (pod, failures) in creates {
            self.create(pod, failures);
        }
    }

    /// `Suspended`, and the start of the clock.
    fn suspension(&mut self) {
        let was = condition(&self.conditions, "Suspended").is_some();
        if self.is_suspended() && !was {
            self.set("Suspended", "True", "JobSuspended", "Job suspended");
            self.plan.event(Note::normal("Suspended", "Job suspended"));
        } else if !self.is_suspended() && was {
            self.set("Suspended", "False", "JobResumed", "Job resumed");
            self.plan.event(Note::normal("Resumed", "Job resumed"));
            self.status.start_time = Some(Time(self.now));
        }
        if self.is_suspended() {
            self.status.start_time = None;
        } else if self.status.start_time.is_none() {
            self.status.start_time = Some(Time(self.now));
        }
    }

    fn set(&mut self, kind: &str, state: &str, reason: &str, message: &str) {
        if self.conditions.iter().any(|c| c.type_ == kind && c.status == state) {
            return;
        }
        self.conditions.retain(|c| c.type_ != kind);
        self.conditions.push(JobCondition {
            type_: kind.into(),
            status: state.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
        });
    }

    /// Moves ended pods into the status, and lets go of those that are in it. Returns the counts
    /// and whether every ended pod has been let go.
    fn count(&mut self) -> (Counted, bool) {
        let uncounted = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let holds =
            |uid: &String| self.pods.iter().any(|p| p.metadata.uid.as_ref() == Some(uid) && has_finalizer(p));
        let (pending_succeeded, done_succeeded): (Vec<_>, Vec<_>) =
            uncounted.succeeded.unwrap_or_default().into_iter().partition(holds);
        let (pending_failed, done_failed): (Vec<_>, Vec<_>) =
            uncounted.failed.unwrap_or_default().into_iter().partition(holds);
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let mut counted = Counted {
            succeeded: self.status.succeeded.unwrap_or(0) + count(done_succeeded.len()),
            failed: self.status.failed.unwrap_or(0) + count(done_failed.len()),
            pending_succeeded,
            pending_failed,
        };
        let mut release = Vec::new();
        for pod in self.pods.iter().filter(|p| has_finalizer(p)) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            if pods::phase(pod) == "Succeeded" {
                if !self.is_indexed() && !counted.pending_succeeded.contains(&uid) {
                    counted.pending_succeeded.push(uid);
                }
                release.push(Arc::clone(pod));
            } else if is_failed(self.spec, pod) || (pods::is_deleting(pod) && self.is_ending()) {
                let ignored = policy::action(self.spec, pod).is_some_and(|a| a.name == "Ignore");
                if !ignored && !counted.pending_failed.contains(&uid) {
                    counted.pending_failed.push(uid);
                }
                release.push(Arc::clone(pod));
            }
        }
        let released =
            release.is_empty() && counted.pending_failed.is_empty() && counted.pending_succeeded.is_empty();
        for pod in release {
            self.release(&pod);
        }
        (counted, released)
    }

    fn is_ending(&self) -> bool {
        condition(&self.conditions, "FailureTarget").is_some()
    }

    fn release(&mut self, pod: &Pod) {
        if has_finalizer(pod) {
            let rest = list(pod.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER));
            self.plan.merge_at(pod, json!({ "metadata": { "finalizers": rest } }));
        }
    }

    fn delete(&mut self, pod: &Pod) {
        self.plan.delete(pod, Some(DELETED), Some(DELETE_FAILED));
    }

    /// Indexes that have failed more often than each may.
    fn failed_indexes(&self) -> Indexes {
        let mut all = Indexes::parse(self.status.failed_indexes.as_deref().unwrap_or_default());
        let Some(limit) = self.spec.backoff_limit_per_index else { return Indexes::default() };
        for pod in self.pods.iter().filter(|p| is_failed(self.spec, p)) {
            let action = policy::action(self.spec, pod);
            let failures =
                index_failures(pod) + i32::from(action.as_ref().is_none_or(|a| a.name != "Ignore"));
            if failures > limit || action.is_some_and(|a| a.name == "FailIndex") {
                all.extend(index(pod));
            }
        }
        all
    }

    /// What the pods say about the Job as a whole.
    fn verdict(
        &self,
        counted: &Counted,
        succeeded: i32,
        active: &[Arc<Pod>],
        completed: &Indexes,
        failed_indexes: &Indexes,
    ) -> Option<Verdict> {
        let failed = counted.failed + i32::try_from(counted.pending_failed.len()).unwrap_or(0);
        let ended = succeeded + i32::try_from(counted.pending_succeeded.len()).unwrap_or(0);
        if condition(&self.conditions, "FailureTarget").is_some()
            || condition(&self.conditions, "SuccessCriteriaMet").is_some()
        {
            return None;
        }
        if let Some(message) =
            self.pods.iter().filter(|p| is_failed(self.spec, p)).find_map(|p| policy::fails_job(self.spec, p))
        {
            return Some(Verdict::failed("PodFailurePolicy", message));
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        let restarts: i32 = active.iter().map(|p| pods::restarts(p)).sum();
        let on_failure =
            self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
        let too_many_restarts = on_failure && if limit == 0 { restarts > 0 } else { restarts >= limit };
        if failed > limit || too_many_restarts {
            return Some(Verdict::failed(
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            ));
        }
        let late = self.deadline().is_some_and(|deadline| deadline <= self.now);
        if late && !self.is_suspended() {
            return Some(Verdict::failed(
                "DeadlineExceeded",
                "Job was active longer than specified deadline",
            ));
        }
        if self.is_indexed() {
            if let Some(message) = policy::success(self.spec, completed) {
                return Some(Verdict::succeeded("SuccessPolicy", message));
            }
            if self.spec.max_failed_indexes.is_some_and(|most| failed_indexes.len() > most) {
                let message = "Job has exceeded the specified maximal number of failed indexes";
                return Some(Verdict::failed("MaxFailedIndexesExceeded", message));
            }
            let all = failed_indexes.len() + completed.len() >= self.spec.completions.unwrap_or(0);
            if failed_indexes.len() > 0 && all {
                return Some(Verdict::failed("FailedIndexes", "Job has failed indexes"));
            }
        }
        let reached = match self.spec.completions {
            Some(wanted) => ended >= wanted && (wanted > 0 || active.is_empty()),
            // A work queue: done when one has succeeded and nobody runs any more.
            None => ended > 0 && active.is_empty(),
        };
        reached.then(|| Verdict::succeeded("CompletionsReached", "Reached expected number of succeeded pods"))
    }

    fn deadline(&self) -> Option<Timestamp> {
        let start = self.status.start_time.as_ref()?.0;
        Some(start + SignedDuration::from_secs(self.spec.active_deadline_seconds?))
    }

    /// Records the verdict, and the end once nobody runs and everything is counted.
    fn judge(
        &mut self,
        verdict: Option<Verdict>,
        active: &[Arc<Pod>],
        terminating: usize,
        released: bool,
        succeeded: i32,
    ) {
        if let Some(verdict) = verdict {
            let kind = if verdict.success { "SuccessCriteriaMet" } else { "FailureTarget" };
            self.set(kind, "True", verdict.reason, &verdict.message);
        }
        if let Some(deadline) =
            self.deadline().filter(|deadline| *deadline > self.now && !self.is_suspended())
        {
            self.plan.requeue_at(deadline, self.now);
        }
        let quiet = active.is_empty() && terminating == 0 && released;
        if !quiet {
            return;
        }
        if let Some(target) = condition(&self.conditions, "FailureTarget").cloned() {
            let (reason, message) = (target.reason.unwrap_or_default(), target.message.unwrap_or_default());
            self.set("Failed", "True", &reason, &message);
            let reason = policy::known_reason(&reason);
            self.plan.event(Note::warning(reason, message));
        } else if let Some(target) = condition(&self.conditions, "SuccessCriteriaMet").cloned() {
            // The pods that succeeded last may not be in the counters yet.
            let by_count = target.reason.as_deref() == Some("CompletionsReached");
            if by_count && self.spec.completions.is_some_and(|wanted| succeeded < wanted) {
                return;
            }
            let (reason, message) = (target.reason.unwrap_or_default(), target.message.unwrap_or_default());
            self.set("Complete", "True", &reason, &message);
            self.status.completion_time = Some(Time(self.now));
            self.plan.event(Note::normal("Completed", "Job completed"));
        }
    }

    /// Plans surplus pods away and returns those to be created: their index and its failures.
    /// `pending` pods have succeeded and are not in the counter yet.
    #[expect(clippy::too_many_arguments, reason = "what was counted, once")]
    fn scale(
        &mut self,
        active: &[Arc<Pod>],
        terminating: usize,
        succeeded: i32,
        pending: usize,
        completed: &Indexes,
        failed_indexes: &Indexes,
        active_count: &mut usize,
    ) -> Vec<(Option<i32>, i32)> {
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let running = i32::try_from(active.len()).unwrap_or(i32::MAX);
        let done = succeeded + i32::try_from(pending).unwrap_or(i32::MAX);
        let wanted = match self.spec.completions {
            None if done > 0 => running.min(parallelism),
            None => parallelism,
            Some(completions) => (completions - done - failed_indexes.len()).clamp(0, parallelism),
        };
        let mut surplus: Vec<Arc<Pod>> = Vec::new();
        let mut alive = active.to_vec();
        if self.is_indexed() {
            // One pod an index; none for indexes that are done.
            let mut seen = BTreeSet::new();
            alive.retain(|pod| {
                let own = index(pod).filter(|n| !completed.contains(*n) && !failed_indexes.contains(*n));
                let keep = own.is_some_and(|n| n < self.spec.completions.unwrap_or(0) && seen.insert(n));
                if !keep {
                    surplus.push(Arc::clone(pod));
                }
                keep
            });
        }
        super::replica_set::rank_for_deletion(&mut alive, &[], self.now);
        let extra = alive.len().saturating_sub(usize::try_from(wanted).unwrap_or(0));
        surplus.extend(alive.drain(..extra));
        for pod in &surplus {
            self.delete(pod);
        }
        let alive_count = i32::try_from(alive.len()).unwrap_or(i32::MAX);
        *active_count = alive.len();
        let late = self.spec.pod_replacement_policy.as_deref() == Some("Failed")
            || self.spec.pod_failure_policy.is_some();
        let leaving = if late { i32::try_from(terminating).unwrap_or(i32::MAX) } else { 0 };
        let missing = (wanted - alive_count - leaving).clamp(0, CREATES_MAX);
        if missing == 0 {
            return Vec::new();
        }
        let until = self.backoff_until(None).filter(|then| *then > self.now);
        if let Some(then) = until.filter(|_| self.spec.backoff_limit_per_index.is_none()) {
            self.plan.requeue_at(then, self.now);
            return Vec::new();
        }
        let creates: Vec<(Option<i32>, i32)> = if self.is_indexed() {
            let in_use: BTreeSet<i32> = alive
                .iter()
                .filter_map(|p| index(p))
                .chain(self.pods.iter().filter(|p| late && pods::is_terminating(p)).filter_map(|p| index(p)))
                .collect();
            let free = (0..self.spec.completions.unwrap_or(0))
                .filter(|n| !completed.contains(*n) && !failed_indexes.contains(*n) && !in_use.contains(n));
            let mut chosen = Vec::new();
            for n in free.take(usize::try_from(missing).unwrap_or(0)) {
                let failures = self.failures_of(n);
                match self.backoff_until(Some(n)).filter(|then| failures > 0 && *then > self.now) {
                    Some(then) if self.spec.backoff_limit_per_index.is_some() => {
                        self.plan.requeue_at(then, self.now);
                    }
                    _ => chosen.push((Some(n), failures)),
                }
            }
            chosen
        } else {
            (0..missing).map(|_| (None, 0)).collect()
        };
        *active_count += creates.len();
        creates
    }

    /// How often an index has failed, by the pods there are.
    fn failures_of(&self, wanted: i32) -> i32 {
        let failed = self.pods.iter().filter(|p| index(p) == Some(wanted) && is_failed(self.spec, p));
        failed.map(|p| index_failures(p) + 1).max().unwrap_or(0)
    }

    /// Until when no pod is to be made after the last failures (of one index, or of all).
    fn backoff_until(&self, of: Option<i32>) -> Option<Timestamp> {
        let ended = |pod: &&Arc<Pod>| of.is_none() || index(pod) == of;
        let last_success = self
            .pods
            .iter()
            .filter(ended)
            .filter(|p| pods::phase(p) == "Succeeded")
            .filter_map(|p| end(p))
            .max();
        let failures: Vec<Timestamp> = self
            .pods
            .iter()
            .filter(ended)
            .filter(|p| is_failed(self.spec, p))
            .map(|p| end(p).unwrap_or(self.now))
            // An end that is yet to come was told by a clock that was set back since.
            .filter(|then| *then <= self.now)
            .filter(|then| last_success.is_none_or(|success| *then > success))
            .collect();
        let last = failures.iter().max()?;
        let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
        let delay = SignedDuration::from_secs(BACKOFF_MIN.as_secs() << doublings).min(BACKOFF_MAX);
        Some(*last + delay)
    }

    fn create(&mut self, index: Option<i32>, failures: i32) {
        let mut pod = pods::from_template(&self.spec.template, self.job, controller_reference(self.job));
        let finalizers = pod.metadata.finalizers.get_or_insert_default();
        finalizers.push(FINALIZER.into());
        if let Some(index) = index {
            let name = owner::name(&self.job.metadata);
            pod.metadata.generate_name = Some(pods::generate_name(&format!("{name}-{index}")));
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(INDEX.into(), index.to_string());
            if self.spec.backoff_limit_per_index.is_some() {
                annotations.insert(INDEX_FAILURES.into(), failures.to_string());
            }
            pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
            let spec = pod.spec.get_or_insert_default();
            spec.hostname = Some(format!("{name}-{index}"));
            let variable = EnvVar {
                name: "JOB_COMPLETION_INDEX".into(),
                value: None,
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        api_version: None,
                        field_path: format!("metadata.labels['{INDEX}']"),
                    }),
                    ..EnvVarSource::default()
                }),
            };
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                let env = container.env.get_or_insert_default();
                if !env.iter().any(|e| e.name == variable.name) {
                    env.push(variable.clone());
                }
            }
        }
        self.plan.create(&pod, Some(CREATED), Some(CREATE_FAILED));
    }
}

/// What has ended, and what of it is in the counters only when its finalizer is gone.
struct Counted {
    succeeded: i32,
    failed: i32,
    pending_succeeded: Vec<String>,
    pending_failed: Vec<String>,
}

fn index_failures(pod: &Pod) -> i32 {
    owner::annotation(&pod.metadata, INDEX_FAILURES).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// When a pod's last container ended; one that never had any (a node refused it) ended as it began.
fn end(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let ended = status
        .container_statuses
        .iter()
        .flatten()
        .filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|t| t.0)
        .max();
    let unready = || pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|t| t.0);
    let deleted = || pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    let created = || pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    ended.or_else(unready).or_else(deleted).or_else(created)
}

#[cfg(test)]
mod tests;
