//! What to do next with one pod: a pure function of what is wanted, remembered and seen.
//!
//! In: [`Wanted`], [`Record`], [`Live`], `now`. Out: a [`Plan`]: actions that may run side by side,
//! the reasons why containers wait, and when to look again.
//! Invariants: no action is planned for a container that a job works on; init containers run one
//! after the other; sidecars start before and stop after the main containers.
//! Deliberately absent: I/O, the status (see `status`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

use super::{
    qos,
    record::{
        Backoff, ContainerRecord, Job, Live, LiveContainer, Now, Past, Record, Role, Setup, Verdict,
        WHOLE_POD, Wanted, is_ahead,
    },
};

/// How long after a failure of its configuration a container is tried again.
const CONFIG_RETRY: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);
/// The longest pause between tries of a pod's set-up.
pub const SETUP_RETRY_MAX: jiff::SignedDuration = jiff::SignedDuration::from_secs(120);
/// Between two tries to bring new limits into force.
pub const RESIZE_RETRY: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);
/// How long a failed pull is shown as such, before the back-off is.
const ERROR_SHOWN: jiff::SignedDuration = jiff::SignedDuration::from_secs(1);
/// What a sidecar is given at least, however long the main containers took (seconds).
const SIDECAR_GRACE_SECONDS_MIN: i64 = 2;

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Volumes, sandbox, address.
    Setup,
    /// Image, environment, files; then the start.
    Prepare { container: String },
    /// preStop, stop signal, the grace period, SIGKILL.
    Kill { container: String, message: String, grace_seconds: i64 },
    /// The start of a container that does not come to its end.
    GiveUp { container: String },
    /// New limits for containers that run, and for the pod.
    Resize { containers: BTreeMap<String, ResourceRequirements> },
    /// Containers, sandbox, network and volumes.
    Teardown,
}

/// What to do, and when to look again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Reason and message of containers that wait for their next try.
    pub waiting: BTreeMap<String, (String, String)>,
    pub wake: Option<Timestamp>,
    /// The pod has to end, for this reason.
    pub verdict: Option<Verdict>,
    /// Containers whose next start follows a failure: their back-off grows.
    pub crashed: Vec<String>,
    /// All containers have ended, and the pod begins anew in its sandbox.
    pub anew: bool,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Whether the pod has come to its end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Going,
    /// An init container failed for good, or all main containers ended for good.
    Over,
}

/// Whether anything of the pod will run again by its policy.
pub fn outcome(wanted: &Wanted, record: &Record, live: &Live) -> Outcome {
    let mut init_done = true;
    for (role, container) in wanted.containers().filter(|(role, _)| *role == Role::Init) {
        match live.now(&container.name, record) {
            Now::Ended(past) if past.exit.code == 0 => {}
            Now::Ended(past) if !wanted.restarts(role, container, past.exit.code) => return Outcome::Over,
            _ => init_done = false,
        }
    }
    let mut any = false;
    for (role, container) in wanted.containers().filter(|(role, _)| *role == Role::Main) {
        any = true;
        match live.now(&container.name, record) {
            Now::Ended(past)
                if record.container(&container.name).epoch >= record.anew
                    && !wanted.restarts(role, container, past.exit.code) => {}
            _ => return Outcome::Going,
        }
    }
    if any && init_done { Outcome::Over } else { Outcome::Going }
}

/// Decides. `removed` says that the pod is wanted no longer at all.
pub fn plan(wanted: &Wanted, record: &Record, live: &Live, removed: bool, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if let Some(verdict) = deadline(wanted, record, &mut plan, now) {
        plan.verdict = Some(verdict);
    }
    let over = outcome(wanted, record, live) == Outcome::Over;
    if removed || wanted.deleting() || record.verdict.is_some() || plan.verdict.is_some() || over {
        end(wanted, record, live, &mut plan, now);
        return plan;
    }
    match &live.setup {
        Setup::Done => start(Context { wanted, record, live, now }, &mut plan),
        Setup::Doing => {}
        Setup::Failed { retry_at } if is_ahead(*retry_at, SETUP_RETRY_MAX, now) => {
            plan.wake_at(*retry_at);
        }
        Setup::No | Setup::Failed { .. } => plan.actions.push(Action::Setup),
    }
    plan
}

fn deadline(wanted: &Wanted, record: &Record, plan: &mut Plan, now: Timestamp) -> Option<Verdict> {
    if record.verdict.is_some() {
        return None;
    }
    let seconds = wanted.spec.active_deadline_seconds?;
    let until = record.status.start_time.as_ref()?.0 + jiff::SignedDuration::from_secs(seconds);
    if now < until {
        plan.wake_at(until);
        return None;
    }
    Some(Verdict {
        reason: "DeadlineExceeded".to_owned(),
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
        ..Verdict::default()
    })
}

/// Stops main containers side by side, then sidecars one after the other, then takes all away.
fn end(wanted: &Wanted, record: &Record, live: &Live, plan: &mut Plan, now: Timestamp) {
    let grace = wanted.grace_seconds();
    let left = live.ending.map_or(grace, |until| until.duration_since(now).as_secs()).clamp(0, grace);
    let alive = |c: &Container| {
        let busy = matches!(live.container(&c.name).job, Some(Job::Starting | Job::Stopping));
        busy || matches!(live.now(&c.name, record), Now::Running { .. } | Now::Starting)
    };
    let mut kill = |container: &Container, grace_seconds: i64| {
        let LiveContainer { job, given_up, .. } = live.container(&container.name);
        if let (Some(Job::Starting), false, Some(until)) = (job, given_up, live.ending) {
            // A volume may be silent: its container would never be there to be stopped.
            if is_ahead(until, jiff::SignedDuration::from_secs(grace.max(1)), now) {
                plan.wake_at(until);
            } else {
                plan.actions.push(Action::GiveUp { container: container.name.clone() });
            }
        }
        let running = matches!(live.now(&container.name, record), Now::Running { .. });
        if job.is_none() && running {
            plan.actions.push(Action::Kill {
                container: container.name.clone(),
                message: format!("Stopping container {}", container.name),
                grace_seconds,
            });
        }
    };
    let mut main_alive = false;
    for (role, container) in wanted.containers() {
        if role != Role::Sidecar && alive(container) {
            main_alive = true;
            kill(container, left.max(1));
        }
    }
    if main_alive {
        return;
    }
    for (_, sidecar) in wanted.containers().rev().filter(|(role, _)| *role == Role::Sidecar) {
        if alive(sidecar) {
            kill(sidecar, left.max(SIDECAR_GRACE_SECONDS_MIN));
            return;
        }
    }
    let preparing = live.containers.values().any(|c| c.job.is_some());
    if !live.torn_down && !live.tearing && !preparing && live.setup != Setup::Doing {
        plan.actions.push(Action::Teardown);
    }
}

/// What every decision about a container looks at.
#[derive(Clone, Copy)]
struct Context<'a> {
    wanted: &'a Wanted,
    record: &'a Record,
    live: &'a Live,
    now: Timestamp,
}

/// A container has ended in a way that makes the whole pod begin anew: first everything ends. `true`
/// while that goes on.
fn begin_anew(context: Context<'_>, plan: &mut Plan) -> bool {
    let Context { wanted, record, live, now } = context;
    let cause = wanted.containers().find_map(|(_, c)| match live.now(&c.name, record) {
        Now::Ended(past)
            if record.container(&c.name).epoch == record.epoch && Wanted::restarts_all(c, past.exit.code) =>
        {
            Some((c, past))
        }
        _ => None,
    });
    let Some((cause, past)) = cause else { return false };
    let mut alive = false;
    for (_, container) in wanted.containers() {
        let mine = live.container(&container.name);
        let running = matches!(live.now(&container.name, record), Now::Running { .. });
        alive |= running || mine.job.is_some();
        if running && mine.job.is_none() {
            plan.actions.push(Action::Kill {
                container: container.name.clone(),
                message: format!("Stopping container {}", container.name),
                grace_seconds: wanted.grace_seconds(),
            });
        }
    }
    if alive {
        return true;
    }
    let crash = live.container(&cause.name).crash;
    if let Some(until) = crash.until(past.exit.finished_at, now) {
        let text = back_off_text(&crash, cause, wanted);
        plan.waiting.insert(cause.name.clone(), ("CrashLoopBackOff".to_owned(), text));
        plan.wake_at(until);
    } else {
        plan.crashed.push(cause.name.clone());
        plan.anew = true;
    }
    true
}

fn start(context: Context<'_>, plan: &mut Plan) {
    let Context { wanted, record, live, .. } = context;
    if begin_anew(context, plan) {
        return;
    }
    let initialized = wanted.containers().any(|(role, c)| {
        role == Role::Main && record.containers.get(&c.name).is_some_and(|known| known.epoch == record.epoch)
    });
    for (role, container) in wanted.containers() {
        let here = live.now(&container.name, record);
        let known = record.container(&container.name);
        match role {
            Role::Init if initialized => {}
            Role::Init => {
                match here {
                    Now::Ended(past) if past.exit.code == 0 && known.epoch == record.epoch => continue,
                    Now::Ended(past) if past.exit.code == 0 => again(context, container, plan),
                    here => step(context, role, container, here, plan),
                }
                return;
            }
            Role::Sidecar => {
                let up = matches!(here, Now::Running { .. }) && live.container(&container.name).started;
                step(context, role, container, here, plan);
                if !up && !initialized {
                    return;
                }
            }
            Role::Main | Role::Ephemeral => step(context, role, container, here, plan),
        }
    }
    resize(context, plan);
}

/// What has to happen to a running container for its limits to be those that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resized {
    No,
    InPlace,
    Restart,
}

/// By the container's `resizePolicy`; limits that it has of the pod count as its own.
fn resized(spec: &PodSpec, container: &Container, known: &ContainerRecord) -> Resized {
    let own = container.resources.clone().unwrap_or_default();
    let (before, after) = match (&known.limited, &known.resources) {
        (Some(before), _) => (before, qos::limited(spec, &own)),
        (None, Some(before)) => (before, own),
        (None, None) => return Resized::No,
    };
    if *before == after {
        return Resized::No;
    }
    let amount = |r: &ResourceRequirements, name: &str| {
        [&r.requests, &r.limits].map(|list| list.as_ref().and_then(|l| l.get(name)).cloned())
    };
    let restart = container.resize_policy.iter().flatten().any(|policy| {
        policy.restart_policy == "RestartContainer"
            && amount(before, &policy.resource_name) != amount(&after, &policy.resource_name)
    });
    if restart { Resized::Restart } else { Resized::InPlace }
}

fn resize(context: Context<'_>, plan: &mut Plan) {
    let Context { wanted, record, live, now } = context;
    if live.resizing {
        return;
    }
    let due = wanted.containers().filter(|(role, c)| {
        matches!(role, Role::Main | Role::Sidecar)
            && live.container(&c.name).job.is_none()
            && matches!(live.now(&c.name, record), Now::Running { .. })
            && resized(&wanted.spec, c, &record.container(&c.name)) == Resized::InPlace
    });
    let pod = wanted.spec.resources.iter().filter(|_| !pod_in_force(wanted, record));
    let containers: BTreeMap<_, _> = due
        .map(|(_, c)| (c.name.clone(), c.resources.clone().unwrap_or_default()))
        .chain(pod.map(|own| (WHOLE_POD.to_owned(), own.clone())))
        .collect();
    match live.resize_retry.filter(|at| is_ahead(*at, RESIZE_RETRY, now)) {
        _ if containers.is_empty() => {}
        Some(at) => plan.wake_at(at),
        None => plan.actions.push(Action::Resize { containers }),
    }
}

/// Whether the pod and all containers that run have the limits that they were given.
pub fn in_force(wanted: &Wanted, record: &Record, live: &Live) -> bool {
    let all = wanted.containers().all(|(role, c)| {
        !matches!(role, Role::Main | Role::Sidecar)
            || !matches!(live.now(&c.name, record), Now::Running { .. } | Now::Starting)
            || resized(&wanted.spec, c, &record.container(&c.name)) == Resized::No
    });
    all && pod_in_force(wanted, record)
}

fn pod_in_force(wanted: &Wanted, record: &Record) -> bool {
    record.resources.as_ref().is_none_or(|before| Some(before) == wanted.spec.resources.as_ref())
}

/// Starts a container that waits for nothing but failures of its preparation.
fn again(context: Context<'_>, container: &Container, plan: &mut Plan) {
    let now = context.now;
    let live = context.live.container(&container.name);
    if live.job.is_some() {
        return;
    }
    let prepare = Action::Prepare { container: container.name.clone() };
    let Some(failure) = &live.failure else {
        plan.actions.push(prepare);
        return;
    };
    let image = matches!(failure.reason.as_str(), "ErrImagePull" | "InvalidImageName");
    let until = if image {
        live.pull.until(failure.at, now)
    } else {
        Some(failure.at + CONFIG_RETRY).filter(|until| is_ahead(*until, CONFIG_RETRY, now))
    };
    let mut told = (failure.reason.clone(), failure.message.clone());
    if let Some(until) = until {
        plan.wake_at(until);
        let shown = failure.at + ERROR_SHOWN;
        if failure.reason == "ErrImagePull" {
            if is_ahead(shown, ERROR_SHOWN, now) {
                plan.wake_at(shown);
            } else {
                let image = failure.image.as_ref().or(container.image.as_ref()).map_or("", String::as_str);
                let message = format!("Back-off pulling image {image:?}: ErrImagePull: {}", failure.message);
                told = ("ImagePullBackOff".to_owned(), message);
            }
        }
    } else {
        plan.actions.push(prepare);
    }
    plan.waiting.insert(container.name.clone(), told);
}

fn step(context: Context<'_>, role: Role, container: &Container, here: Now, plan: &mut Plan) {
    let Context { wanted, record, live, now } = context;
    let mine = live.container(&container.name);
    match here {
        Now::Never => again(context, container, plan),
        Now::Starting => {}
        Now::Running { .. } => {
            if mine.job.is_none()
                && let Some((message, grace)) = doom(&wanted.spec, container, record, &mine)
            {
                let grace_seconds = grace.unwrap_or_else(|| wanted.grace_seconds());
                plan.actions.push(Action::Kill { container: container.name.clone(), message, grace_seconds });
            }
        }
        Now::Ended(past) => {
            let known = record.container(&container.name);
            let new_sandbox = known.epoch != record.epoch;
            let changed = known.spec_hash != spec_hash(container)
                || resized(&wanted.spec, container, &known) == Resized::Restart && role != Role::Init;
            let anew = known.epoch < record.anew && role != Role::Ephemeral;
            if !changed && !anew && !wanted.restarts(role, container, past.exit.code) {
                return;
            }
            if mine.failure.is_some() || mine.job.is_some() {
                again(context, container, plan);
                return;
            }
            let until = mine.crash.until(past.exit.finished_at, now).filter(|_| !new_sandbox && !changed);
            if let Some(until) = until {
                let text = back_off_text(&mine.crash, container, wanted);
                plan.waiting.insert(container.name.clone(), ("CrashLoopBackOff".to_owned(), text));
                plan.wake_at(until);
                return;
            }
            if !new_sandbox && !changed {
                plan.crashed.push(container.name.clone());
            }
            if let Some(error) = start_error(&past, &mine) {
                plan.waiting.insert(container.name.clone(), error);
            }
            again(context, container, plan);
        }
    }
}

fn doom(
    spec: &PodSpec,
    container: &Container,
    record: &Record,
    mine: &LiveContainer,
) -> Option<(String, Option<i64>)> {
    if let Some(doomed) = &mine.doomed {
        return Some(doomed.clone());
    }
    let known = record.container(&container.name);
    if known.spec_hash != spec_hash(container) {
        return Some((format!("Container {} definition changed, will be restarted", container.name), None));
    }
    (resized(spec, container, &known) == Resized::Restart)
        .then(|| (format!("Container {} resize requires restart", container.name), None))
}

/// The words of the event and of the waiting message.
pub fn back_off_text(crash: &Backoff, container: &Container, wanted: &Wanted) -> String {
    format!(
        "back-off {} restarting failed container={} pod={}",
        go_duration(crash.delay().as_secs()),
        container.name,
        wanted.full_name()
    )
}

/// The waiting state of a container that could not be started at all, or not as it was to be.
fn start_error(past: &Past, mine: &LiveContainer) -> Option<(String, String)> {
    let error = past.exit.error.clone().map(|error| ("RunContainerError".to_owned(), error));
    error.or_else(|| mine.hook_error.clone().map(|error| ("PostStartHookError".to_owned(), error)))
}

/// Whole seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(seconds: i64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m{}s", seconds / 3600, seconds % 3600 / 60, seconds % 60),
    }
}

/// What makes a running container be another one: its image (the only field of a running
/// container that a client may change without a resize).
pub fn spec_hash(container: &Container) -> String {
    container.image.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::record::Failure,
        runtime::{ContainerState, Exit},
    };
    use jiff::SignedDuration;

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn wanted(text: &str) -> Wanted {
        let spec: serde_json::Value = serde_json::from_str(text).unwrap();
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec,
        });
        Wanted::new(serde_json::from_value(pod).unwrap())
    }

    struct Case {
        wanted: Wanted,
        record: Record,
        live: Live,
    }

    impl Case {
        fn new(spec: &str) -> Self {
            let live = Live { setup: Setup::Done, ..Live::default() };
            Self { wanted: wanted(spec), record: Record::default(), live }
        }

        fn running(mut self, name: &str) -> Self {
            let image = self.wanted.container(name).map(|(_, c)| spec_hash(c)).unwrap_or_default();
            self.record
                .containers
                .insert(name.into(), ContainerRecord { attempts: 1, spec_hash: image, ..Default::default() });
            self.live.containers.insert(
                name.into(),
                LiveContainer {
                    state: Some(ContainerState::Running { pid: 1, started_at: t(0) }),
                    started: true,
                    ready: true,
                    ..Default::default()
                },
            );
            self
        }

        fn ended(mut self, name: &str, code: i32) -> Self {
            self = self.running(name);
            let exit = Exit {
                code,
                signal: None,
                oom_killed: false,
                started_at: Some(t(0)),
                finished_at: t(5),
                error: None,
            };
            self.record.containers.get_mut(name).unwrap().last =
                Some(Past { attempt: 0, exit, message: String::new(), since: None });
            self
        }

        fn actions(&self) -> Vec<String> {
            self.plan(false).actions.iter().map(short).collect()
        }

        fn plan(&self, removed: bool) -> Plan {
            plan(&self.wanted, &self.record, &self.live, removed, t(6))
        }
    }

    fn short(action: &Action) -> String {
        match action {
            Action::Setup => "setup".into(),
            Action::Prepare { container } => format!("prepare {container}"),
            Action::Kill { container, grace_seconds, .. } => format!("kill {container} {grace_seconds}"),
            Action::GiveUp { container } => format!("give up {container}"),
            Action::Resize { containers } => format!("resize {}", containers.len()),
            Action::Teardown => "teardown".into(),
        }
    }

    const ALL: &str = r#"{"initContainers": [{"name": "i1"}, {"name": "s", "restartPolicy": "Always"}, {"name": "i2"}],
        "containers": [{"name": "a"}, {"name": "b"}], "terminationGracePeriodSeconds": 7}"#;

    #[test]
    fn containers_start_in_upstreams_order() {
        let mut fresh = Case::new(ALL);
        fresh.live.setup = Setup::No;
        assert_eq!(fresh.actions(), ["setup"]);
        let case = Case::new(ALL);
        assert_eq!(case.actions(), ["prepare i1"]);
        let case = case.running("i1");
        assert!(case.actions().is_empty());
        let case = case.ended("i1", 0);
        assert_eq!(case.actions(), ["prepare s"]);
        let mut case = case.running("s");
        case.live.containers.get_mut("s").unwrap().started = false;
        assert!(case.actions().is_empty(), "i2 waits for the sidecar");
        let case = case.running("s");
        assert_eq!(case.actions(), ["prepare i2"]);
        let case = case.ended("i2", 0);
        assert_eq!(case.actions(), ["prepare a", "prepare b"]);
        let case = case.running("a").running("b");
        assert!(case.actions().is_empty());
    }

    #[test]
    fn containers_stop_before_their_sidecars() {
        let mut case = Case::new(ALL).ended("i1", 0).running("s").ended("i2", 0).running("a").running("b");
        let kills = |case: &Case| case.plan(true).actions.iter().map(short).collect::<Vec<_>>();
        assert_eq!(kills(&case), ["kill a 7", "kill b 7"]);
        case.live.ending = Some(t(9));
        let mut case = case.ended("a", 0);
        assert_eq!(kills(&case), ["kill b 3"]);
        // Its start may hang: it has its time like a container that runs, and no more.
        case.live.containers.get_mut("b").unwrap().job = Some(Job::Starting);
        assert!(kills(&case).is_empty());
        assert_eq!(case.plan(true).wake, Some(t(9)));
        case.live.ending = Some(t(5));
        assert_eq!(kills(&case), ["give up b"]);
        case.live.containers.get_mut("b").unwrap().given_up = true;
        assert!(kills(&case).is_empty());
        case.live.ending = Some(t(9));
        case.live.containers.get_mut("b").unwrap().job = Some(Job::Stopping);
        assert!(kills(&case).is_empty());
        let case = case.ended("b", 0);
        assert_eq!(kills(&case), ["kill s 3"]);
        let mut case = case.ended("s", 0);
        assert_eq!(kills(&case), ["teardown"]);
        case.live.torn_down = true;
        assert!(kills(&case).is_empty());
    }

    #[test]
    fn policies_decide_about_another_start() {
        for (policy, code, expect) in [
            ("Always", 0, "prepare a"),
            ("Always", 1, "prepare a"),
            ("OnFailure", 0, "teardown"),
            ("OnFailure", 1, "prepare a"),
            ("Never", 0, "teardown"),
            ("Never", 1, "teardown"),
        ] {
            let spec = format!(r#"{{"restartPolicy": "{policy}", "containers": [{{"name": "a"}}]}}"#);
            assert_eq!(Case::new(&spec).ended("a", code).actions(), [expect], "{policy} {code}");
        }
    }

    #[test]
    fn a_container_that_did_not_start_as_it_was_to_be_says_why_it_waits() {
        let mut case = Case::new(r#"{"containers": [{"name": "a"}]}"#).ended("a", 137);
        assert!(!case.plan(false).waiting.contains_key("a"), "it ended by itself");
        let words = |reason: &str, text: &str| (reason.to_owned(), text.to_owned());
        case.live.containers.get_mut("a").unwrap().hook_error = Some("exit 7".into());
        assert_eq!(case.plan(false).waiting["a"], words("PostStartHookError", "exit 7"));
        case.record.containers.get_mut("a").unwrap().last.as_mut().unwrap().exit.error =
            Some("no such file".into());
        assert_eq!(case.plan(false).waiting["a"], words("RunContainerError", "no such file"));
    }

    #[test]
    fn a_crash_loop_waits_longer_each_time() {
        let mut case = Case::new(r#"{"containers": [{"name": "a"}]}"#).ended("a", 1);
        let first = case.plan(false);
        assert_eq!(first.crashed, ["a"]);
        case.live.containers.get_mut("a").unwrap().crash.note(t(5));
        let second = case.plan(false);
        assert!(second.actions.is_empty());
        assert_eq!(second.wake, Some(t(15)));
        assert_eq!(
            second.waiting["a"],
            (
                "CrashLoopBackOff".to_owned(),
                "back-off 10s restarting failed container=a pod=p_ns(u)".to_owned()
            )
        );
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nothing_up() {
        let years = SignedDuration::from_hours(10 * 365 * 24);
        let mut case = Case::new(r#"{"containers": [{"name": "a"}]}"#);
        let failure =
            |reason: &str| Failure { reason: reason.into(), message: String::new(), image: None, at: t(5) };
        for (reason, back, expect) in [
            ("CreateContainerConfigError", SignedDuration::ZERO, &[][..]),
            ("CreateContainerConfigError", years, &["prepare a"]),
            ("ErrImagePull", SignedDuration::ZERO, &[]),
            ("ErrImagePull", years, &["prepare a"]),
        ] {
            let live = case.live.containers.entry("a".into()).or_default();
            live.failure = Some(failure(reason));
            live.pull = Backoff::default();
            live.pull.note(t(5));
            let plan = plan(&case.wanted, &case.record, &case.live, false, t(6) - back);
            assert_eq!(plan.actions.iter().map(short).collect::<Vec<_>>(), expect, "{reason} {back}");
        }
        case.live.setup = Setup::Failed { retry_at: t(66) };
        assert!(case.plan(false).actions.is_empty());
        let plan = plan(&case.wanted, &case.record, &case.live, false, t(6) - years);
        assert_eq!(plan.actions, [Action::Setup]);
    }

    #[test]
    fn a_failed_init_container_ends_a_pod_that_never_restarts() {
        let spec =
            r#"{"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}"#;
        assert_eq!(Case::new(spec).ended("i", 1).actions(), ["teardown"]);
        let spec = spec.replace("Never", "Always");
        assert_eq!(Case::new(&spec).ended("i", 1).actions(), ["prepare i"]);
    }

    #[test]
    fn another_image_replaces_a_running_container() {
        let mut case = Case::new(r#"{"containers": [{"name": "a", "image": "x:1"}]}"#).running("a");
        assert!(case.actions().is_empty());
        case.record.containers.get_mut("a").unwrap().spec_hash = "x:0".into();
        assert_eq!(case.actions(), ["kill a 30"]);
    }

    #[test]
    fn a_new_sandbox_runs_everything_anew_without_a_pause() {
        let mut case = Case::new(ALL).ended("i1", 0).ended("s", 255).ended("i2", 0).ended("a", 255);
        case.record.epoch = 1;
        case.live.containers.get_mut("s").unwrap().crash.note(t(5));
        assert_eq!(case.actions(), ["prepare i1"]);
        case.record.containers.get_mut("i1").unwrap().epoch = 1;
        assert_eq!(case.actions(), ["prepare s"]);
    }

    #[test]
    fn an_exit_code_makes_the_whole_pod_begin_anew() {
        let spec = r#"{"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [
            {"name": "a", "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]},
            {"name": "b"}]}"#;
        let case = Case::new(spec).ended("i", 0).running("b");
        assert_eq!(case.ended("a", 7).actions(), ["kill b 30"]);
        let mut case = Case::new(spec).ended("i", 0).ended("a", 7).ended("b", 143);
        let plan = case.plan(false);
        assert!(plan.anew && plan.crashed == ["a"] && plan.actions.is_empty());
        case.record.epoch = 1;
        case.record.anew = 1;
        assert_eq!(case.actions(), ["prepare i"]);
        case.record.containers.get_mut("i").unwrap().epoch = 1;
        assert_eq!(case.actions(), ["prepare a", "prepare b"]);
        let case = Case::new(spec).ended("i", 0).running("b");
        assert!(!case.ended("a", 1).plan(false).anew);
    }

    #[test]
    fn a_deadline_ends_the_pod() {
        let mut case =
            Case::new(r#"{"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}"#).running("a");
        case.record.status.start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(t(2)));
        assert_eq!(case.plan(false).wake, Some(t(7)));
        case.record.status.start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(t(1)));
        let plan = case.plan(false);
        assert_eq!(plan.verdict.unwrap().reason, "DeadlineExceeded");
        assert_eq!(plan.actions.iter().map(short).collect::<Vec<_>>(), ["kill a 30"]);
    }
}
