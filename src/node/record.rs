//! What a node remembers of one pod: durably in [`Record`], for the life of the process in [`Live`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceRequirements, Volume};
use serde::{Deserialize, Serialize};

use crate::{
    ids,
    kinds::pod,
    runtime::{ContainerState, Exit},
    tasks::CancellationToken,
};

/// The first pause before a container is started again, or an image pulled again (kubelet's
/// `containerBackOffPeriod`).
const BACKOFF_FIRST: SignedDuration = SignedDuration::from_secs(10);
/// The longest pause (kubelet's `MaxContainerBackOff`).
const BACKOFF_MAX: SignedDuration = SignedDuration::from_mins(5);
/// Without a failure for so long, pauses begin anew.
const BACKOFF_FORGET: SignedDuration = SignedDuration::from_mins(10);
/// A pod of at least this priority is needed by the node or the cluster (`IsCriticalPod`).
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// The exit code of a container whose end nobody saw (the machine went down).
pub const LOST_EXIT_CODE: i32 = 255;

/// What part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, stays.
    Sidecar,
    Main,
    /// Added while the pod runs; never started again.
    Ephemeral,
}

/// A pod as it is wanted on this node.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub pod: Pod,
    pub spec: PodSpec,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Cancelled when the pod has to end: what only its start needs is not waited for then.
    pub ending: CancellationToken,
    /// `spec.ephemeralContainers` as containers.
    ephemeral: Vec<Container>,
}

impl Wanted {
    pub fn new(pod: Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let ephemeral = spec
            .ephemeral_containers
            .iter()
            .flatten()
            .filter_map(|c| serde_json::from_slice(&serde_json::to_vec(c).ok()?).ok())
            .collect();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            ending: CancellationToken::new(),
            ephemeral,
            spec,
            pod,
        }
    }

    /// Lets the pod have what was allocated to it, instead of what it asks for.
    pub fn allocate(&mut self, allocated: &BTreeMap<String, ResourceRequirements>) {
        if let Some(given) = allocated.get(WHOLE_POD) {
            self.spec.resources = Some(given.clone());
        }
        let init = self.spec.init_containers.iter_mut().flatten();
        for container in init.chain(&mut self.spec.containers) {
            if let Some(given) = allocated.get(&container.name) {
                container.resources = Some(given.clone());
            }
        }
    }

    /// What the pod asks for its containers, by name: those that may be resized; and for itself.
    pub fn asked(&self) -> BTreeMap<String, ResourceRequirements> {
        let Some(spec) = &self.pod.spec else { return BTreeMap::new() };
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
        spec.containers
            .iter()
            .chain(sidecars)
            .map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()))
            .chain(spec.resources.clone().map(|own| (WHOLE_POD.to_owned(), own)))
            .collect()
    }

    /// Whose processes an ephemeral container wants to see.
    pub fn target_of(&self, ephemeral: &str) -> Option<&str> {
        let all = self.spec.ephemeral_containers.iter().flatten();
        let target = all.filter(|e| e.name == ephemeral).find_map(|e| e.target_container_name.as_deref());
        target.filter(|t| !t.is_empty())
    }

    /// All containers with their roles, in the order of their start.
    pub fn containers(&self) -> impl DoubleEndedIterator<Item = (Role, &Container)> {
        let init = self.spec.init_containers.iter().flatten().map(|c| {
            let sidecar = c.restart_policy.as_deref() == Some("Always");
            (if sidecar { Role::Sidecar } else { Role::Init }, c)
        });
        let main = self.spec.containers.iter().map(|c| (Role::Main, c));
        init.chain(main).chain(self.ephemeral.iter().map(|c| (Role::Ephemeral, c)))
    }

    pub fn container(&self, name: &str) -> Option<(Role, &Container)> {
        self.containers().find(|(_, c)| c.name == name)
    }

    /// The volumes that a container uses; nobody misses the others (upstream's `GetPodVolumeNames`).
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        let used: BTreeSet<&str> = self
            .containers()
            .flat_map(|(_, c)| {
                let mounts = c.volume_mounts.iter().flatten().map(|mount| mount.name.as_str());
                let devices = c.volume_devices.iter().flatten().map(|device| device.name.as_str());
                let sources = c.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
                let files =
                    sources.filter_map(|source| Some(source.file_key_ref.as_ref()?.volume_name.as_str()));
                mounts.chain(devices).chain(files)
            })
            .collect();
        let own = |volume: &&Volume| volume.image.is_none();
        self.spec
            .volumes
            .iter()
            .flatten()
            .filter(own)
            .filter(move |volume| used.contains(volume.name.as_str()))
    }

    pub fn deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    pub fn restart_policy(&self) -> &str {
        self.spec.restart_policy.as_deref().unwrap_or("Always")
    }

    /// Seconds between SIGTERM and SIGKILL.
    pub fn grace_seconds(&self) -> i64 {
        let asked = self.pod.metadata.deletion_grace_period_seconds.filter(|_| self.deleting());
        asked.or(self.spec.termination_grace_period_seconds).unwrap_or(30).max(1)
    }

    pub fn critical(&self) -> bool {
        self.spec.priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY)
    }

    pub fn host_network(&self) -> bool {
        self.spec.host_network.unwrap_or(false)
    }

    /// `p_ns(uid)`, as kubelet names a pod in messages.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    /// Whether an end with `code` makes the whole pod begin anew, in place.
    pub fn restarts_all(container: &Container, code: i32) -> bool {
        pod::restart_action(container, code) == Some(pod::RESTART_ALL)
    }

    /// Whether a container that ended with `code` runs again
    /// (`restartPolicy`, and the container's own policy and rules).
    pub fn restarts(&self, role: Role, container: &Container, code: i32) -> bool {
        match role {
            Role::Ephemeral => false,
            Role::Sidecar => true,
            Role::Init if code == 0 => pod::restart_action(container, code).is_some(),
            Role::Init | Role::Main => pod::restarts(container, self.restart_policy(), code),
        }
    }
}

/// An end of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub attempt: u32,
    pub exit: Exit,
    /// What the container left in its termination message.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when one that was lost ran, as it was told before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// As whom a container's first process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// What is remembered of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRecord {
    /// How often it was started; the newest attempt is one less.
    pub attempts: u32,
    /// The sandbox in which the newest attempt ran.
    pub epoch: u32,
    /// The hash of the container's specification at the newest attempt.
    pub spec_hash: String,
    pub image: String,
    pub image_id: String,
    /// What the newest attempt may use, as it is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// The same with the limits that it has of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited: Option<ResourceRequirements>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Identity>,
    /// The end of the newest attempt.
    pub last: Option<Past>,
    /// The end of the one before it.
    pub previous: Option<Past>,
}

/// Why a pod was ended by the node itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `DeadlineExceeded`, `Evicted`, …
    pub reason: String,
    pub message: String,
    /// The node has not taken the pod at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rejected: bool,
    /// The node needed what the pod had: the pod itself did nothing wrong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disrupted: bool,
    /// What its containers get to end instead of the pod's grace period, at most (seconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<i64>,
}

/// How long a pod that was told to go within a grace period (seconds) may take before that is told
/// (`TerminatePodAbnormallyAndWait`).
pub fn patience(grace_seconds: i64) -> Duration {
    let grace = grace_seconds.max(0).unsigned_abs();
    Duration::from_secs((grace + grace / 2).max(10))
}

/// The pod itself among the names of its containers, none of which is empty.
pub const WHOLE_POD: &str = "";

/// How far a resize is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resize {
    /// It does not fit now (`Deferred`) or never (`Infeasible`): reason, message, generation.
    pub pending: Option<(String, String, i64)>,
    /// It is allocated and not in force yet: what went wrong (or nothing), generation.
    pub in_progress: Option<(String, i64)>,
}

/// What survives a restart of the agent and of the board.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub namespace: String,
    pub name: String,
    pub ip: Option<Ipv4Addr>,
    /// Counts the sandboxes the pod had.
    pub epoch: u32,
    /// The epoch in which the whole pod began anew by a rule: what ended before runs again, whatever
    /// its policy.
    pub anew: u32,
    pub containers: BTreeMap<String, ContainerRecord>,
    pub verdict: Option<Verdict>,
    /// The node has taken the pod.
    pub admitted: bool,
    /// What of the node its containers (and [`WHOLE_POD`]) have been given, by name: a resize that does
    /// not fit waits.
    pub allocated: BTreeMap<String, ResourceRequirements>,
    /// What of it is in force for the whole pod, since it was resized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    pub resize: Resize,
    /// Nothing of the pod is left but this record.
    pub gone: bool,
    /// As last computed; carries times of transition.
    pub status: PodStatus,
}

impl Record {
    /// What is in force of what was given, by name: it differs while a resize is under way.
    pub fn in_force(&self) -> BTreeMap<String, ResourceRequirements> {
        if self.resize.in_progress.is_none() {
            return BTreeMap::new();
        }
        let own = self.resources.clone().map(|own| (WHOLE_POD.to_owned(), own));
        let of_containers =
            self.containers.iter().filter_map(|(n, c)| Some((n.clone(), c.resources.clone()?)));
        of_containers.chain(own).collect()
    }

    pub fn container(&self, name: &str) -> ContainerRecord {
        self.containers.get(name).cloned().unwrap_or_default()
    }
}

/// Where a container is, record and runtime taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Now {
    Never,
    Starting,
    Running { since: Timestamp },
    Ended(Past),
}

/// Growing pauses between tries (client-go's `flowcontrol.Backoff`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backoff {
    delay: SignedDuration,
    last: Timestamp,
}

impl Backoff {
    /// The pause in force.
    pub fn delay(&self) -> SignedDuration {
        self.delay
    }

    /// When the pause that began at `since` is over; `None` when nothing is to be waited for.
    /// A clock that was set back does not make it longer than it is.
    pub fn until(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if self.delay.is_zero() || since.duration_since(self.last) > BACKOFF_FORGET {
            return None;
        }
        let until = since + self.delay;
        (now < until && until.duration_since(now) <= self.delay).then_some(until)
    }

    /// Notes a try: the next pause is twice as long.
    pub fn note(&mut self, now: Timestamp) {
        self.delay = if self.delay.is_zero() || now.duration_since(self.last) > BACKOFF_FORGET {
            BACKOFF_FIRST
        } else {
            (self.delay * 2).min(BACKOFF_MAX)
        };
        self.last = now;
    }
}

/// Whether a time that was set at most `longest` ahead is still to be waited for. A clock that was set
/// back meanwhile does not make the wait longer.
pub fn is_ahead(at: Timestamp, longest: SignedDuration, now: Timestamp) -> bool {
    let left = at.duration_since(now);
    left.is_positive() && left <= longest
}

/// What is going on with a container right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Image, environment and files are being made ready.
    Preparing,
    /// The runtime starts it; afterwards its postStart hook runs.
    Starting,
    Stopping,
}

/// Why the last try to start a container came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `ErrImagePull`, `CreateContainerConfigError`, …
    pub reason: String,
    pub message: String,
    /// The image that it is about, where that is a volume's.
    pub image: Option<String>,
    pub at: Timestamp,
}

/// What is known of a container while the agent runs.
#[derive(Debug, Clone, Default)]
pub struct LiveContainer {
    /// The newest attempt's state, as the runtime has it.
    pub state: Option<ContainerState>,
    pub job: Option<Job>,
    /// Its start took too long, and was told to end.
    pub given_up: bool,
    pub failure: Option<Failure>,
    pub crash: Backoff,
    pub pull: Backoff,
    /// The startup probe, if any, and the postStart hook have succeeded.
    pub started: bool,
    /// The readiness probe's verdict, or that there is none.
    pub ready: bool,
    /// Its postStart hook is not through.
    pub hooking: bool,
    /// Why it has to be stopped: event message, and the grace period when it is not the pod's.
    pub doomed: Option<(String, Option<i64>)>,
    /// How the newest attempt's postStart hook failed.
    pub hook_error: Option<String>,
}

/// How far the pod's volumes, namespaces and network are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Setup {
    #[default]
    No,
    Doing,
    Done,
    Failed {
        retry_at: Timestamp,
    },
}

/// What is known of a pod while the agent runs.
#[derive(Debug, Clone, Default)]
pub struct Live {
    pub containers: BTreeMap<String, LiveContainer>,
    pub setup: Setup,
    /// New limits are being brought into force.
    pub resizing: bool,
    /// Before this they are not tried again.
    pub resize_retry: Option<Timestamp>,
    /// When the pod's grace period is over, once it has to end.
    pub ending: Option<Timestamp>,
    /// The grace period that this was worked out with (seconds).
    pub ending_grace: Option<i64>,
    pub tearing: bool,
    /// Namespaces, network and volumes are gone.
    pub torn_down: bool,
}

impl Live {
    /// The node's clock was set: what is waited for is as far away as before.
    pub fn clock_was_set(&mut self, by: SignedDuration) {
        let retry = match &mut self.setup {
            Setup::Failed { retry_at } => Some(retry_at),
            _ => None,
        };
        move_times([retry, self.resize_retry.as_mut(), self.ending.as_mut()].into_iter().flatten(), by);
    }
}

/// Moves times with a clock that was set.
pub fn move_times<'a>(times: impl IntoIterator<Item = &'a mut Timestamp>, by: SignedDuration) {
    for time in times {
        *time = time.checked_add(by).unwrap_or(*time);
    }
}

impl Live {
    pub fn container(&self, name: &str) -> LiveContainer {
        self.containers.get(name).cloned().unwrap_or_default()
    }

    /// Where a container is.
    pub fn now(&self, name: &str, record: &Record) -> Now {
        let Some(known) = record.containers.get(name).filter(|c| c.attempts > 0) else {
            return Now::Never;
        };
        let attempt = known.attempts - 1;
        if let Some(last) = known.last.as_ref().filter(|last| last.attempt == attempt) {
            return Now::Ended(last.clone());
        }
        let live = self.containers.get(name);
        match live.and_then(|l| l.state.as_ref()) {
            Some(ContainerState::Running { started_at, .. }) => Now::Running { since: *started_at },
            Some(ContainerState::Exited(exit)) => {
                Now::Ended(Past { attempt, exit: exit.clone(), message: String::new(), since: None })
            }
            Some(ContainerState::Starting) | None => Now::Starting,
        }
    }
}

/// The runtime's id of a container.
pub fn container_id(uid: &str, container: &str, attempt: u32) -> String {
    format!("{uid}_{container}_{attempt}")
}

/// A container's id as it is told: 64 hexadecimal digits, which shippers of logs look for.
pub fn told_id(uid: &str, container: &str, attempt: u32) -> String {
    let id = container_id(uid, container, attempt);
    ids::hex(ring::digest::digest(&ring::digest::SHA256, id.as_bytes()).as_ref())
}

/// The parts of [`container_id`].
pub fn parse_container_id(id: &str) -> Option<(&str, &str, u32)> {
    let (rest, attempt) = id.rsplit_once('_')?;
    let (uid, container) = rest.split_once('_')?;
    Some((uid, container, attempt.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        assert_eq!(parse_container_id(&container_id("u-1", "web", 3)), Some(("u-1", "web", 3)));
        assert_eq!(parse_container_id("x"), None);
        assert_eq!(parse_container_id("x_y"), None);
        let told = told_id("u-1", "web", 3);
        assert!(told.len() == 64 && told.bytes().all(|b| b.is_ascii_hexdigit()), "{told}");
        assert_ne!(told, told_id("u-1", "web", 4));
    }

    #[test]
    fn pauses_double_to_five_minutes_and_are_forgotten() {
        let mut backoff = Backoff::default();
        let mut now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(backoff.until(now, now), None);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            backoff.note(now);
            pauses.push(backoff.delay().as_secs());
            now = backoff.until(now, now).unwrap();
            assert_eq!(backoff.until(now - backoff.delay(), now), None);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        now += SignedDuration::from_mins(11);
        assert_eq!(backoff.until(now, now), None);
        backoff.note(now);
        assert_eq!(backoff.delay().as_secs(), 10);
        let back = now - SignedDuration::from_hours(10_000);
        assert_eq!(backoff.until(now, back), None, "a clock set back must not stop a pod");
    }
}
