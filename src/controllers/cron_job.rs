//! CronJobs: Jobs by the clock.
//!
//! Watches: CronJobs and their Jobs. Observes: the Jobs it owns. After a downtime or a jump of the
//! clock only the latest missed run is made up for, and only within the starting deadline. A run
//! is named after its minute, so that none is started twice.

use std::sync::Arc;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    job,
    owner::{self, controller_reference},
    plan::{Action, Note, Plan, Target, reference},
    runner::{Controller, Round, Source, owner_keys},
};
use crate::{
    objects::{Objects, Propagation},
    store::Key,
};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed runs than this are worth a warning.
const MISSED_MAX: usize = 100;
/// Added to every wake-up, so that the clock has surely passed the minute.
const WAKE_SLACK: SignedDuration = SignedDuration::from_millis(100);

pub struct CronJobController;

impl Controller for CronJobController {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn primary(&self) -> &'static str {
        "cronjobs.batch"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("jobs.batch", owner_keys::<Job>("cronjobs.batch"))]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(cron_job) = objects.get_typed::<CronJob>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let uid = owner::uid(&cron_job.metadata);
        let mut jobs: Vec<Arc<Job>> = objects.list_typed(Some(&key.namespace));
        jobs.retain(|job| owner::is_controlled_by(&job.metadata, uid));
        reconcile(&cron_job, &jobs, round.now)
    }
}

/// When a CronJob runs.
enum Schedule {
    /// In a time zone.
    Cron(Box<Cron>, TimeZone),
    /// `@every 90s`: counted from the last run.
    Every(SignedDuration),
}

/// Why there is no schedule; the reason of an event and its message.
type Unusable = (&'static str, String);

impl Schedule {
    fn of(spec: &CronJobSpec) -> Result<Self, Unusable> {
        let zone = match spec.time_zone.as_deref().filter(|name| !name.is_empty()) {
            None => TimeZone::system(),
            Some(name) => TimeZone::get(name)
                .map_err(|e| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: {e}")))?,
        };
        if let Some(every) = spec.schedule.strip_prefix("@every ") {
            let period = every.parse::<SignedDuration>().ok().filter(|d| *d >= SignedDuration::from_secs(1));
            let wrong = || ("UnparseableSchedule", format!("unparseable schedule: {:?}", spec.schedule));
            return period.map(Self::Every).ok_or_else(wrong);
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(&spec.schedule).map_err(|e| {
            ("UnparseableSchedule", format!("unparseable schedule: {:?} : {e}", spec.schedule))
        })?;
        Ok(Self::Cron(Box::new(cron), zone))
    }

    /// The next run after an instant.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron, zone) => {
                let after = after.to_zoned(zone.clone());
                cron.find_next_occurrence(&after, false).ok().map(|then| then.timestamp())
            }
            Self::Every(period) => Some(after + *period),
        }
    }

    /// The latest run after `earliest` and not after `now`.
    fn latest(&self, earliest: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron, zone) => {
                let now = now.to_zoned(zone.clone());
                let then = cron.find_previous_occurrence(&now, true).ok()?.timestamp();
                (then > earliest).then_some(then)
            }
            Self::Every(period) => {
                let runs = now.duration_since(earliest).as_secs() / period.as_secs();
                (runs > 0).then(|| earliest + SignedDuration::from_secs(runs * period.as_secs()))
            }
        }
    }

    /// How many runs there are in between, counted no further than one too many.
    fn count(&self, earliest: Timestamp, now: Timestamp) -> usize {
        let mut count = 0;
        let mut then = earliest;
        while let Some(next) = self.next(then).filter(|next| *next <= now && count <= MISSED_MAX) {
            count += 1;
            then = next;
        }
        count
    }
}

fn reconcile(cron_job: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan::about(cron_job);
    let spec = &cron_job.spec;
    let mut status = cron_job.status.clone().unwrap_or_default();
    track(jobs, &mut status, &mut plan);
    clean_up(spec, jobs, &mut plan);
    if cron_job.metadata.deletion_timestamp.is_none() && spec.suspend != Some(true) {
        run(cron_job, spec, jobs, &mut status, now, &mut plan);
    }
    status.active = status.active.filter(|active| !active.is_empty());
    plan.status(cron_job, cron_job.status.as_ref(), &status);
    plan
}

/// Brings the list of running Jobs up to date.
fn track(jobs: &[Arc<Job>], status: &mut CronJobStatus, plan: &mut Plan) {
    let mut active = status.active.take().unwrap_or_default();
    active.retain(|entry| {
        let Some(found) = jobs.iter().find(|job| job.metadata.uid == entry.uid) else {
            let name = entry.name.as_deref().unwrap_or_default();
            plan.event(Note::normal("MissingJob", format!("Active job went missing: {name}")));
            return false;
        };
        if !job::is_finished(found) {
            return true;
        }
        let condition = if job::is_complete(found) { "Complete" } else { "Failed" };
        let name = owner::name(&found.metadata);
        plan.event(Note::normal(
            "SawCompletedJob",
            format!("Saw completed job: {name}, condition: {condition}"),
        ));
        false
    });
    for job in jobs.iter().filter(|job| !job::is_finished(job)) {
        if active.iter().any(|entry| entry.uid == job.metadata.uid) {
            continue;
        }
        if owner::annotation(&job.metadata, SCHEDULED).is_some() {
            active.push(entry(job));
        } else {
            // Somebody started it by hand; it is no run of the schedule.
            let name = owner::name(&job.metadata);
            let message = format!("Saw a job that the controller did not create or forgot: {name}");
            plan.event(Note::warning("UnexpectedJob", message));
        }
    }
    let succeeded = jobs.iter().filter(|j| job::is_complete(j));
    let latest = succeeded.filter_map(|j| j.status.as_ref()?.completion_time.clone()).max();
    if latest > status.last_successful_time {
        status.last_successful_time = latest;
    }
    status.active = Some(active);
}

fn entry(job: &Job) -> ObjectReference {
    reference(job)
}

/// Deletes finished Jobs beyond the history limits, the oldest first.
fn clean_up(spec: &CronJobSpec, jobs: &[Arc<Job>], plan: &mut Plan) {
    let limits = [
        (true, spec.successful_jobs_history_limit.unwrap_or(3)),
        (false, spec.failed_jobs_history_limit.unwrap_or(1)),
    ];
    for (complete, limit) in limits {
        let mut finished: Vec<&Arc<Job>> = jobs
            .iter()
            .filter(|j| job::is_finished(j) && job::is_complete(j) == complete)
            .filter(|j| j.metadata.deletion_timestamp.is_none())
            .collect();
        finished
            .sort_by_key(|j| (j.status.as_ref().and_then(|s| s.start_time.clone()), j.metadata.name.clone()));
        let surplus = finished.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for job in finished.into_iter().take(surplus) {
            delete(job, plan);
        }
    }
}

fn delete(job: &Job, plan: &mut Plan) {
    plan.actions.push(Action::Delete {
        target: Target::of(job),
        grace_seconds: None,
        propagation: Some(Propagation::Background),
        done: Some(Note::normal("SuccessfulDelete", format!("Deleted job {}", owner::name(&job.metadata)))),
        failed: Some(Note::warning("FailedDelete", "Deleted job: {error}")),
    });
}

/// Starts the run that is due, and plans the next look.
fn run(
    cron_job: &CronJob,
    spec: &CronJobSpec,
    jobs: &[Arc<Job>],
    status: &mut CronJobStatus,
    now: Timestamp,
    plan: &mut Plan,
) {
    let schedule = match Schedule::of(spec) {
        Ok(schedule) => schedule,
        Err((reason, message)) => {
            plan.event(Note::warning(reason, message));
            return;
        }
    };
    let created = cron_job.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let last = status.last_schedule_time.as_ref().map_or(created, |t| t.0);
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    let earliest = deadline.map_or(last, |deadline| last.max(now - deadline));
    if let Some(next) = match &schedule {
        Schedule::Cron(..) => schedule.next(now),
        Schedule::Every(_) => schedule.next(schedule.latest(last, now).unwrap_or(last)),
    } {
        plan.requeue_in(next.duration_since(now) + WAKE_SLACK);
    }
    let Some(then) = schedule.latest(earliest, now) else { return };
    if schedule.count(earliest, now) > MISSED_MAX {
        plan.event(Note::warning(
            "TooManyMissedTimes",
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew",
        ));
    }
    if deadline.is_some_and(|deadline| then + deadline < now) {
        let text = then.strftime("%a, %d %b %Y %H:%M:%S +0000");
        plan.event(Note::warning("MissSchedule", format!("Missed scheduled time to start a job: {text}")));
        return;
    }
    let name = format!("{}-{}", owner::name(&cron_job.metadata), then.as_second() / 60);
    if jobs.iter().any(|job| job.metadata.name.as_ref() == Some(&name)) {
        // It was started, and the process ended before that was written down.
        status.last_schedule_time = Some(Time(then));
        return;
    }
    let running = status.active.as_ref().is_some_and(|active| !active.is_empty());
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if running => {
            plan.event(Note::normal(
                "JobAlreadyActive",
                "Not starting job because prior execution is running and concurrency policy is Forbid",
            ));
            return;
        }
        Some("Replace") => {
            for job in jobs.iter().filter(|job| !job::is_finished(job)) {
                delete(job, plan);
            }
            status.active = None;
        }
        _ => {}
    }
    let template = &spec.job_template;
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.into(), scheduled_text(&schedule, then));
    let job = Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron_job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    let done = Note::normal("SuccessfulCreate", "Created job {name}");
    plan.create(&job, Some(done), Some(Note::warning("FailedCreate", "Error creating job: {error}")));
    status.last_schedule_time = Some(Time(then));
}

/// The time of a run as RFC 3339 in the CronJob's time zone.
fn scheduled_text(schedule: &Schedule, then: Timestamp) -> String {
    match schedule {
        Schedule::Cron(_, zone) => {
            let zoned = then.to_zoned(zone.clone());
            if zoned.offset().is_zero() {
                crate::clock::rfc3339_seconds(then)
            } else {
                zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
            }
        }
        Schedule::Every(_) => crate::clock::rfc3339_seconds(then),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-23T{text}Z").parse().unwrap()
    }

    fn cron_job(spec: Value, status: Value) -> CronJob {
        let base = json!({"schedule": "*/5 * * * *", "timeZone": "UTC", "jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}});
        serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "default", "uid": "u", "creationTimestamp": "2026-11-23T11:58:00Z"},
            "spec": crate::patch::merge_patch(&base, &spec), "status": status,
        }))
        .unwrap()
    }

    fn running(name: &str) -> Arc<Job> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default", "uid": name}}))
                .unwrap(),
        )
    }

    fn created(plan: &Plan) -> Vec<String> {
        let name = |action: &Action| match action {
            Action::Create { object, .. } => Some(object["metadata"]["name"].as_str()?.to_owned()),
            _ => None,
        };
        plan.actions.iter().filter_map(name).collect()
    }

    fn reasons(plan: &Plan) -> Vec<&'static str> {
        plan.events.iter().map(|n| n.reason).collect()
    }

    #[test]
    fn a_run_starts_when_it_is_due_and_once() {
        let c = cron_job(json!({}), json!({}));
        let plan = reconcile(&c, &[], at("11:59:30"));
        assert!(created(&plan).is_empty());
        assert_eq!(plan.requeue_after.unwrap().as_secs(), 30);
        let name = format!("c-{}", at("12:00:00").as_second() / 60);
        assert_eq!(created(&reconcile(&c, &[], at("12:00:01"))), std::slice::from_ref(&name));
        assert!(created(&reconcile(&c, &[running(&name)], at("12:00:01"))).is_empty());
    }

    #[test]
    fn after_a_downtime_only_the_latest_run_is_made_up_for() {
        let c = cron_job(json!({}), json!({"lastScheduleTime": "2026-11-23T02:00:00Z"}));
        let plan = reconcile(&c, &[], at("12:02:00"));
        assert_eq!(created(&plan), [format!("c-{}", at("12:00:00").as_second() / 60)]);
        assert_eq!(reasons(&plan), ["TooManyMissedTimes"]);
        let c = cron_job(
            json!({"startingDeadlineSeconds": 60}),
            json!({"lastScheduleTime": "2026-11-23T02:00:00Z"}),
        );
        assert!(created(&reconcile(&c, &[], at("12:02:00"))).is_empty());
    }

    #[test]
    fn policies_suspension_and_zones() {
        let active = json!({"active": [{"uid": "old", "name": "old"}]});
        let forbid = cron_job(json!({"concurrencyPolicy": "Forbid"}), active.clone());
        let plan = reconcile(&forbid, &[running("old")], at("12:00:01"));
        assert_eq!((created(&plan).len(), reasons(&plan)), (0, vec!["JobAlreadyActive"]));
        let replace = cron_job(json!({"concurrencyPolicy": "Replace"}), active);
        let plan = reconcile(&replace, &[running("old")], at("12:00:01"));
        assert!(matches!(&plan.actions[0], Action::Delete { target, .. } if target.name == "old"));
        assert_eq!(created(&plan).len(), 1);
        let suspended = cron_job(json!({"suspend": true}), json!({}));
        assert!(created(&reconcile(&suspended, &[], at("12:00:01"))).is_empty());
        let zoned = cron_job(json!({"schedule": "0 13 * * *", "timeZone": "Europe/Berlin"}), json!({}));
        let plan = reconcile(&zoned, &[], at("12:00:01"));
        let Action::Create { object, .. } = &plan.actions[0] else { panic!("{plan:?}") };
        assert_eq!(object["metadata"]["annotations"][SCHEDULED], "2026-11-23T13:00:00+01:00");
        let wrong = cron_job(json!({"timeZone": "Nowhere/Land"}), json!({}));
        assert_eq!(reasons(&reconcile(&wrong, &[], at("12:00:01"))), ["UnknownTimeZone"]);
    }
}
