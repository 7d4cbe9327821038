//! The status of a pod as kubelet reports it: a pure function.
//!
//! In: [`Wanted`], [`Record`], [`Live`], the waiting reasons of the plan, `now`. Out: a `PodStatus`.
//! Sources: `pkg/kubelet/kubelet_pods.go` (`getPhase`), `pkg/kubelet/status/generate.go`.
//! Deliberately absent: `PodScheduled`, which the scheduler owns, and conditions of others; the
//! master merges them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, PodCondition, PodIP, PodStatus,
        ResourceRequirements, VolumeMount, VolumeMountStatus,
    },
    apimachinery::pkg::{api::resource::Quantity as ApiQuantity, apis::meta::v1::Time},
};

use super::{
    preempt, qos,
    record::{ContainerRecord, LOST_EXIT_CODE, Live, Now, Past, Record, Role, Wanted, told_id},
};
use crate::kinds::resources;

/// Conditions that the node writes; the others of a pod belong to somebody else.
pub const OWN_CONDITIONS: [&str; 4] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// The reasons why containers wait, by name.
pub type Waiting = BTreeMap<String, (String, String)>;

/// The status now. `host_ip` is the node's address.
pub fn compute(
    wanted: &Wanted,
    record: &Record,
    live: &Live,
    waiting: &Waiting,
    host_ip: &str,
    now: Timestamp,
) -> PodStatus {
    if let Some(verdict) = record.verdict.as_ref().filter(|v| v.rejected) {
        return PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some(verdict.reason.clone()),
            message: Some(verdict.message.clone()),
            start_time: record.status.start_time.clone().or(Some(Time(now))),
            qos_class: Some(qos::class(&wanted.spec).name().to_owned()),
            observed_generation: wanted.pod.metadata.generation,
            ..PodStatus::default()
        };
    }
    let statuses = |role: fn(Role) -> bool| -> Vec<ContainerStatus> {
        wanted
            .containers()
            .filter(|(r, _)| role(*r))
            .map(|(r, c)| container(wanted, record, live, waiting, r, c))
            .collect()
    };
    let init = statuses(|r| matches!(r, Role::Init | Role::Sidecar));
    let main = statuses(|r| r == Role::Main);
    let ephemeral = statuses(|r| r == Role::Ephemeral);
    let (phase, reason, message) = match &record.verdict {
        Some(verdict) if !running(&main) && !running(&init) => {
            ("Failed", Some(verdict.reason.clone()), Some(verdict.message.clone()))
        }
        _ => (phase(wanted, &init, &main), None, None),
    };
    let old = &record.status;
    let generation = wanted.pod.metadata.generation;
    let mut conditions = conditions(wanted, record, live, phase, &init, &main);
    for condition in &mut conditions {
        condition.observed_generation = generation;
    }
    conditions.extend(resizing(record));
    if let Some(verdict) = record.verdict.as_ref().filter(|v| v.disrupted) {
        conditions.push(PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("TerminationByKubelet".to_owned()),
            message: Some(match verdict.reason.as_str() {
                preempt::REASON => preempt::CONDITION.to_owned(),
                _ => verdict.message.clone(),
            }),
            observed_generation: generation,
            ..PodCondition::default()
        });
    }
    for condition in &mut conditions {
        let before = old
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == condition.type_ && c.status == condition.status);
        condition.last_transition_time =
            before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now)));
    }
    let list = |v: Vec<ContainerStatus>| (!v.is_empty()).then_some(v);
    let pod_ip = if wanted.host_network() {
        Some(host_ip.to_owned()).filter(|ip| !ip.is_empty())
    } else {
        // It has none before there is a sandbox that has it.
        record.ip.filter(|_| record.epoch > 0).map(|ip| ip.to_string()).or_else(|| old.pod_ip.clone())
    };
    // Amounts of the whole pod are told where the pod has any of its own.
    let own = wanted.spec.resources.as_ref().filter(|own| own.requests.is_some() || own.limits.is_some());
    let total =
        || resources::pod_requests(&wanted.spec).into_iter().map(|(n, q)| (n, ApiQuantity(q.to_string())));
    PodStatus {
        allocated_resources: own.map(|_| total().collect()),
        resources: own.map(|own| {
            let in_force = record.resources.as_ref().unwrap_or(own);
            ResourceRequirements { claims: None, ..in_force.clone() }
        }),
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        host_ip: Some(host_ip.to_owned()).filter(|ip| !ip.is_empty()),
        host_ips: (!host_ip.is_empty()).then(|| vec![HostIP { ip: host_ip.to_owned() }]),
        pod_ips: pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip,
        start_time: old.start_time.clone().or(Some(Time(now))),
        init_container_statuses: list(init),
        container_statuses: list(main),
        ephemeral_container_statuses: list(ephemeral),
        qos_class: Some(qos::class(&wanted.spec).name().to_owned()),
        observed_generation: generation,
        ..PodStatus::default()
    }
}

/// The conditions of a resize that is not in force.
fn resizing(record: &Record) -> Vec<PodCondition> {
    let condition = |kind: &str, reason: &str, message: &str, generation: i64| PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
        message: Some(message.to_owned()).filter(|m| !m.is_empty()),
        observed_generation: Some(generation).filter(|g| *g > 0),
        ..PodCondition::default()
    };
    let pending = record
        .resize
        .pending
        .as_ref()
        .map(|(reason, message, generation)| condition("PodResizePending", reason, message, *generation));
    let in_progress = record.resize.in_progress.as_ref().map(|(error, generation)| {
        let reason = if error.is_empty() { "" } else { "Error" };
        condition("PodResizeInProgress", reason, error, *generation)
    });
    pending.into_iter().chain(in_progress).collect()
}

fn running(statuses: &[ContainerStatus]) -> bool {
    statuses.iter().any(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()))
}

/// What a pod's status says of one of its containers, whatever its role.
pub fn of_container<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

fn container(
    wanted: &Wanted,
    record: &Record,
    live: &Live,
    waiting: &Waiting,
    role: Role,
    spec: &Container,
) -> ContainerStatus {
    let known = record.container(&spec.name);
    let mine = live.container(&spec.name);
    let here = live.now(&spec.name, record);
    let id = |past_or_now: u32| format!("sampan://{}", told_id(&wanted.uid, &spec.name, past_or_now));
    let wait = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let ended = |past: &Past| ContainerState {
        terminated: Some(terminated(past, id(past.attempt))),
        ..ContainerState::default()
    };
    let told = waiting.get(&spec.name);
    let has_init = wanted.spec.init_containers.as_ref().is_some_and(|i| !i.is_empty());
    let not_yet = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let (state, last_state) = match (&here, told) {
        (Now::Never, Some((reason, message))) => {
            (wait(reason, Some(message.clone()).filter(|m| !m.is_empty())), None)
        }
        (Now::Never, None) => (wait(not_yet, None), None),
        (Now::Starting, _) => (wait(not_yet, None), known.previous.as_ref().map(ended)),
        (Now::Running { .. }, _) if mine.hooking && !wanted.deleting() => {
            (wait(not_yet, None), known.previous.as_ref().map(ended))
        }
        (Now::Running { since }, _) => (
            ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..ContainerState::default()
            },
            known.previous.as_ref().map(ended),
        ),
        (Now::Ended(past), Some((reason, message))) => {
            (wait(reason, Some(message.clone())), Some(ended(past)))
        }
        (Now::Ended(past), None) => (ended(past), known.previous.as_ref().map(ended)),
    };
    let is_running = state.running.is_some();
    let done = matches!(&here, Now::Ended(past) if past.exit.code == 0);
    let ready = match role {
        Role::Init => done,
        Role::Ephemeral => false,
        Role::Main | Role::Sidecar => is_running && mine.started && mine.ready,
    };
    // In force is what the attempt was started or resized with; allocated is what it was given.
    let in_force = known.resources.as_ref().or(spec.resources.as_ref()).filter(|_| is_running);
    let resources = in_force.map(|given| ResourceRequirements {
        limits: given.limits.clone(),
        requests: given.requests.clone(),
        claims: None,
    });
    ContainerStatus {
        name: spec.name.clone(),
        container_id: (known.attempts > 0).then(|| id(known.attempts - 1)),
        image: if known.image.is_empty() {
            spec.image.clone().unwrap_or_default()
        } else {
            known.image.clone()
        },
        image_id: known.image_id.clone(),
        ready,
        restart_count: restarts(&known),
        started: Some(is_running && mine.started),
        allocated_resources: spec
            .resources
            .as_ref()
            .and_then(|r| r.requests.clone())
            .filter(|requests| is_running && role != Role::Ephemeral && !requests.is_empty()),
        resources,
        user: known.user.as_ref().filter(|_| known.attempts > 0).map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: i64::from(user.uid),
                gid: i64::from(user.gid),
                supplemental_groups: Some(user.groups.iter().map(|g| i64::from(*g)).collect()),
            }),
        }),
        volume_mounts: spec.volume_mounts.as_ref().filter(|m| !m.is_empty()).map(|mounts| {
            let one = |mount: &VolumeMount| VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: mount.read_only,
                recursive_read_only: mount
                    .read_only
                    .filter(|read_only| *read_only)
                    .map(|_| recursive(mount.recursive_read_only.as_deref()).to_owned()),
                ..VolumeMountStatus::default()
            };
            mounts.iter().map(one).collect()
        }),
        stop_signal: spec
            .lifecycle
            .as_ref()
            .and_then(|l| l.stop_signal.clone())
            .filter(|_| known.attempts > 0),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

/// Every kernel that we run on can make mounts read-only recursively.
fn recursive(asked: Option<&str>) -> &'static str {
    match asked {
        Some("Enabled" | "IfPossible") => "Enabled",
        _ => "Disabled",
    }
}

fn restarts(known: &ContainerRecord) -> i32 {
    known.attempts.saturating_sub(1) as i32
}

/// How an end is told.
pub fn terminated(past: &Past, id: String) -> ContainerStateTerminated {
    let exit = &past.exit;
    let reason = match exit {
        exit if exit.oom_killed => "OOMKilled",
        exit if exit.error.is_some() => "StartError",
        exit if exit.code == 0 => "Completed",
        exit if exit.code == LOST_EXIT_CODE && exit.started_at.is_none() => "Unknown",
        _ => "Error",
    };
    let message = exit.error.clone().unwrap_or_else(|| past.message.clone());
    ContainerStateTerminated {
        container_id: Some(id),
        exit_code: exit.code,
        signal: None,
        reason: Some(reason.to_owned()),
        message: Some(message).filter(|m| !m.is_empty()),
        started_at: Some(Time(exit.started_at.or(past.since).unwrap_or(Timestamp::UNIX_EPOCH))),
        finished_at: Some(Time(exit.finished_at)),
    }
}

fn phase(wanted: &Wanted, init: &[ContainerStatus], main: &[ContainerStatus]) -> &'static str {
    let never = wanted.restart_policy() == "Never";
    let mut pending_init = 0;
    let mut failed_init = 0;
    let specs = wanted.containers().filter(|(r, _)| matches!(r, Role::Init | Role::Sidecar));
    let mut sidecar_running = false;
    for ((role, _), status) in specs.zip(init) {
        let state = status.state.clone().unwrap_or_default();
        if role == Role::Sidecar {
            sidecar_running |= state.running.is_some();
            if status.started != Some(true) && state.terminated.is_none() {
                pending_init += 1;
            }
            continue;
        }
        if let Some(t) = state.terminated {
            failed_init += i32::from(t.exit_code != 0);
        } else if let Some(last) = status.last_state.as_ref().and_then(|s| s.terminated.as_ref())
            && state.waiting.is_some()
        {
            if last.exit_code == 0 { pending_init += 1 } else { failed_init += 1 }
        } else {
            pending_init += 1;
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in main {
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(t) = state.terminated {
            stopped += 1;
            succeeded += i32::from(t.exit_code == 0);
        } else if status.last_state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if failed_init > 0 && never {
        return "Failed";
    }
    let initialized = running + stopped > 0;
    if (pending_init > 0 || failed_init > 0) && !initialized {
        return "Pending";
    }
    if waiting > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    if stopped == 0 {
        return "Pending";
    }
    // A container whose own policy or rules start it again keeps its pod going.
    let specs = wanted.containers().filter(|(role, _)| *role == Role::Main);
    let again = specs.zip(main).any(|((role, container), status)| {
        let now = status.state.as_ref().and_then(|s| s.terminated.as_ref());
        let before = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        now.or(before).is_some_and(|t| wanted.restarts(role, container, t.exit_code))
    });
    if again && !wanted.deleting() && wanted.restart_policy() == "Never" {
        return "Running";
    }
    let policy = wanted.restart_policy();
    if policy == "Always" && !wanted.deleting() || sidecar_running {
        return "Running";
    }
    if stopped == succeeded {
        return "Succeeded";
    }
    if never || wanted.deleting() { "Failed" } else { "Running" }
}

fn condition(kind: &str, problem: Option<(&str, String)>) -> PodCondition {
    let (reason, message) = problem.map_or((None, None), |(r, m)| (Some(r.to_owned()), Some(m)));
    PodCondition {
        type_: kind.to_owned(),
        status: if reason.is_none() { "True" } else { "False" }.to_owned(),
        message: message.filter(|m| !m.is_empty()),
        reason,
        ..PodCondition::default()
    }
}

fn conditions(
    wanted: &Wanted,
    record: &Record,
    live: &Live,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let list = |names: Vec<&str>| format!("[{}]", names.join(" "));
    let sandbox = (record.ip.is_some() || wanted.host_network()) && !live.torn_down && record.epoch > 0;
    let mut to_start = condition("PodReadyToStartContainers", None);
    if !sandbox {
        "False".clone_into(&mut to_start.status);
    }

    let started_main = main.iter().any(|s| s.container_id.is_some());
    let incomplete: Vec<_> = wanted
        .containers()
        .filter(|(r, _)| matches!(r, Role::Init | Role::Sidecar))
        .zip(init)
        .filter(|((role, _), s)| match role {
            Role::Sidecar => s.started != Some(true),
            _ => !s.ready,
        })
        .map(|(_, s)| s.name.as_str())
        .collect();
    let initialized = if incomplete.is_empty() || started_main {
        condition("Initialized", None)
    } else {
        condition(
            "Initialized",
            Some((
                "ContainersNotInitialized",
                format!("containers with incomplete status: {}", list(incomplete)),
            )),
        )
    };
    let initialized = match phase {
        "Succeeded" => {
            PodCondition { reason: Some("PodCompleted".to_owned()), ..condition("Initialized", None) }
        }
        _ => initialized,
    };

    let sidecars = wanted
        .containers()
        .filter(|(r, _)| matches!(r, Role::Init | Role::Sidecar))
        .zip(init)
        .filter(|((role, _), _)| *role == Role::Sidecar)
        .map(|(_, s)| s);
    let unready: Vec<_> = sidecars.chain(main).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let problem = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ if !unready.is_empty() => {
            Some(("ContainersNotReady", format!("containers with unready status: {}", list(unready))))
        }
        _ => None,
    };
    let containers_ready = condition("ContainersReady", problem.clone());
    let gates: Vec<_> = wanted
        .spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let given = wanted.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
            let found = given.into_iter().flatten().find(|c| c.type_ == gate.condition_type);
            match found {
                None => Some(format!(
                    "corresponding condition of pod readiness gate {:?} does not exist.",
                    gate.condition_type
                )),
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate {:?} is not \"True\", but {}",
                    gate.condition_type, c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    let ready = match problem {
        Some(problem) => condition("Ready", Some(problem)),
        None if !gates.is_empty() => condition("Ready", Some(("ReadinessGatesNotReady", gates.join(", ")))),
        None => condition("Ready", None),
    };
    vec![to_start, initialized, ready, containers_ready]
}

#[cfg(test)]
mod tests {
    use super::{
        super::record::{LiveContainer, Setup},
        *,
    };
    use crate::runtime::{self, Exit};

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            signal: None,
            oom_killed: code == 137,
            started_at: Some(t(0)),
            finished_at: t(5),
            error: (code == 128).then(|| "no such file".to_owned()),
        }
    }

    struct Case(Wanted, Record, Live, Waiting);

    impl Case {
        fn new(policy: &str) -> Self {
            let pod = serde_json::json!({
                "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3},
                "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "x"}]},
            });
            let record = Record { ip: Some([10, 42, 0, 5].into()), epoch: 1, ..Record::default() };
            let live = Live { setup: Setup::Done, ..Live::default() };
            Self(Wanted::new(serde_json::from_value(pod).unwrap()), record, live, Waiting::new())
        }

        fn running(mut self) -> Self {
            self.1.containers.insert("a".into(), ContainerRecord { attempts: 1, ..Default::default() });
            let state = Some(runtime::ContainerState::Running { pid: 1, started_at: t(1) });
            let live = LiveContainer { state, started: true, ready: true, ..Default::default() };
            self.2.containers.insert("a".into(), live);
            self
        }

        fn ended(mut self, code: i32) -> Self {
            self = self.running();
            self.1.containers.get_mut("a").unwrap().last =
                Some(Past { attempt: 0, exit: exit(code), message: String::new(), since: None });
            self
        }

        fn status(&self) -> PodStatus {
            compute(&self.0, &self.1, &self.2, &self.3, "192.0.2.1", t(9))
        }
    }

    fn reason(status: &PodStatus) -> String {
        let state = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
        match (state.waiting, state.terminated) {
            (Some(w), _) => format!("waiting {}", w.reason.unwrap()),
            (_, Some(t)) => format!("terminated {} {}", t.reason.unwrap(), t.exit_code),
            _ => "running".to_owned(),
        }
    }

    #[test]
    fn phases_and_reasons_are_kubelets() {
        let crash = |mut case: Case| {
            case.3.insert("a".into(), ("CrashLoopBackOff".into(), "back-off".into()));
            case
        };
        let cases = vec![
            (Case::new("Always"), "Pending", "waiting ContainerCreating"),
            (Case::new("Always").running(), "Running", "running"),
            (Case::new("Always").ended(1), "Running", "terminated Error 1"),
            (crash(Case::new("Always").ended(1)), "Running", "waiting CrashLoopBackOff"),
            (Case::new("Always").ended(137), "Running", "terminated OOMKilled 137"),
            (Case::new("OnFailure").ended(0), "Succeeded", "terminated Completed 0"),
            (Case::new("OnFailure").ended(1), "Running", "terminated Error 1"),
            (Case::new("Never").ended(1), "Failed", "terminated Error 1"),
            (Case::new("Never").ended(128), "Failed", "terminated StartError 128"),
        ];
        for (case, phase, text) in cases {
            let status = case.status();
            assert_eq!((status.phase.as_deref(), reason(&status).as_str()), (Some(phase), text));
        }
    }

    #[test]
    fn conditions_tell_what_is_missing() {
        let texts = |status: &PodStatus| -> Vec<String> {
            status
                .conditions
                .iter()
                .flatten()
                .map(|c| format!("{} {} {}", c.type_, c.status, c.reason.clone().unwrap_or_default()))
                .collect()
        };
        assert_eq!(
            texts(&Case::new("Always").status()),
            [
                "PodReadyToStartContainers True ",
                "Initialized True ",
                "Ready False ContainersNotReady",
                "ContainersReady False ContainersNotReady"
            ]
        );
        assert_eq!(
            texts(&Case::new("Always").running().status())[2..],
            ["Ready True ", "ContainersReady True "]
        );
        assert_eq!(
            texts(&Case::new("Never").ended(0).status())[1..],
            [
                "Initialized True PodCompleted",
                "Ready False PodCompleted",
                "ContainersReady False PodCompleted"
            ]
        );
    }

    #[test]
    fn transition_times_stay_while_nothing_changes() {
        let mut case = Case::new("Always").running();
        case.1.status = case.status();
        let later = compute(&case.0, &case.1, &case.2, &case.3, "192.0.2.1", t(90));
        assert_eq!(later, case.1.status);
    }

    #[test]
    fn amounts_of_the_pod_and_the_stop_signal_are_told() {
        let mut case = Case::new("Always").running();
        assert_eq!(case.status().allocated_resources, None);
        let own = serde_json::json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "64Mi"}});
        case.0.spec.resources = serde_json::from_value(own).unwrap();
        case.0.spec.containers[0].lifecycle =
            serde_json::from_value(serde_json::json!({"stopSignal": "SIGUSR1"})).unwrap();
        let status = case.status();
        let told = serde_json::to_value(&status).unwrap();
        assert_eq!(told["allocatedResources"], serde_json::json!({"cpu": "500m"}));
        assert_eq!(told["resources"]["limits"]["memory"], "64Mi");
        assert_eq!(told["containerStatuses"][0]["stopSignal"], "SIGUSR1");
    }

    #[test]
    fn a_crashed_container_shows_its_last_end() {
        let mut case = Case::new("Always").running();
        let known = case.1.containers.get_mut("a").unwrap();
        known.attempts = 2;
        known.previous = Some(Past { attempt: 0, exit: exit(3), message: "why".into(), since: None });
        let status = case.status();
        let status = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!(status.restart_count, 1);
        assert_eq!(status.container_id, Some(format!("sampan://{}", told_id("u", "a", 1))));
        let last = status.last_state.clone().unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, last.message.as_deref()), (3, Some("why")));
        assert_eq!(last.container_id, Some(format!("sampan://{}", told_id("u", "a", 0))));
    }
}
