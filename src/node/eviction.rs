//! What the node runs short of, and which pod has to go for it.
//!
//! In: thresholds, what is left, what pods use. Out: pressure; pods over limits of their own, or else
//! at most one pod a look.
//! Source: `pkg/kubelet/eviction` (signals, ranking, words). Memory left is the kernel's
//! `MemAvailable`; what upstream computes from cgroups calls a board with a full page cache starved.
//! Deliberately absent: minimum reclaims; images are collected by the room of images.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Write as _, fs, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{PodSpec, Volume};
use tokio::time::Instant;

use super::{
    info,
    record::{Record, Verdict, Wanted},
    shared::{Pressure, Shared},
    usage,
};
use crate::{
    config::{Limits, Threshold},
    kinds::{
        quantity::Quantity,
        resources::{self, ResourceList},
    },
    mqtt::messages::ItemKind,
};

/// Between two looks (kubelet's `evictionMonitoringPeriod`).
pub const PERIOD: Duration = Duration::from_secs(10);
/// What a pod gets to end when there is no time (kubelet's `immediateEvictionGracePeriodSeconds`).
const IMMEDIATE_GRACE_SECONDS: i64 = 1;

/// What is there of one signal, and the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub available: u64,
    pub capacity: u64,
}

/// A threshold that is not held.
#[derive(Debug, Clone, PartialEq)]
pub struct Met {
    pub threshold: Threshold,
    pub available: u64,
    /// A soft threshold: pods go when it was not held for so long.
    pub grace: Option<Duration>,
}

/// The resource of a signal, as messages name it.
fn resource_of(signal: &str) -> &'static str {
    match signal {
        "memory.available" => "memory",
        "pid.available" => "pids",
        "nodefs.inodesFree" | "imagefs.inodesFree" => "inodes",
        _ => "ephemeral-storage",
    }
}

/// The thresholds that are not held, memory first: it runs out fastest.
pub fn met(limits: &Limits, level: impl Fn(&str) -> Option<Level>) -> Vec<Met> {
    let hard = limits.eviction_hard.iter().map(|threshold| (threshold, None));
    let soft = limits.eviction_soft.iter().map(|soft| (soft, limits.grace_of(soft.signal)));
    let mut met: Vec<Met> = hard
        .chain(soft)
        .filter_map(|(threshold, grace)| {
            let level = level(threshold.signal)?;
            let short = level.capacity > 0 && level.available < threshold.least.of(level.capacity);
            short.then(|| Met { threshold: threshold.clone(), available: level.available, grace })
        })
        .collect();
    met.sort_by_key(|met| met.threshold.signal != "memory.available");
    met
}

/// What a met threshold does to the node.
pub fn pressure(met: &[Met]) -> Pressure {
    let any = |test: fn(&str) -> bool| met.iter().any(|m| test(m.threshold.signal));
    Pressure {
        memory: any(|s| s.starts_with("memory")),
        disk: any(|s| s.starts_with("nodefs") || s.starts_with("imagefs")),
        pid: any(|s| s.starts_with("pid")),
    }
}

/// One pod as the ranking sees it.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    pub usage: u64,
    pub request: u64,
    /// (name, usage, request) of its containers.
    pub containers: Vec<(String, u64, u64)>,
}

/// The pod that goes first: over its request, then of the lowest priority, then the one that is most
/// over.
pub fn rank(mut candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.sort_by_key(|c| {
        let over = c.usage > c.request;
        (!over, c.priority, Reverse(c.usage.saturating_sub(c.request)))
    });
    candidates.into_iter().next()
}

/// Why a pod is evicted, in upstream's words.
pub fn words(met: &Met, candidate: &Candidate) -> String {
    let resource = resource_of(met.threshold.signal);
    let amount = |value: u64| {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        match resource {
            "memory" | "ephemeral-storage" => Quantity::from_bytes(value / 1024 * 1024).to_string(),
            _ => value.to_string(),
        }
    };
    // Writing into a String does not fail.
    let mut text = format!("The node was low on resource: {resource}. ");
    let _ =
        write!(text, "Threshold quantity: {}, available: {}. ", met.threshold.least, amount(met.available));
    for (name, usage, request) in candidate.containers.iter().filter(|(_, usage, request)| usage > request) {
        let _ = write!(
            text,
            "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
            amount(*usage),
            amount(*request)
        );
    }
    text
}

fn evicted(message: String) -> Verdict {
    Verdict {
        reason: "Evicted".to_owned(),
        message,
        grace_seconds: Some(IMMEDIATE_GRACE_SECONDS),
        ..Verdict::default()
    }
}

/// A pod of this node that may be evicted.
struct Pod {
    wanted: Wanted,
    record: Record,
}

/// Looks after the node's resources.
#[derive(Debug, Default)]
pub struct Manager {
    /// When each kind of pressure was last seen: memory, disk, pid.
    seen: [Option<Instant>; 3],
    /// Since when each soft threshold is not held, by signal.
    since: BTreeMap<&'static str, Instant>,
}

impl Manager {
    /// One look. Says whom to evict and why; sets the node's pressure.
    pub async fn look(&mut self, shared: &Arc<Shared>) -> Vec<(String, Verdict)> {
        let limits = &shared.options.limits;
        let met = met(limits, |signal| level(shared, signal));
        self.note(shared, pressure(&met));
        let due = self.due(&met, Instant::now());
        let over = over_limits(shared).await;
        if !over.is_empty() {
            return over;
        }
        let Some(first) = due else { return Vec::new() };
        let resource = resource_of(first.threshold.signal);
        shared.node_event(true, "EvictionThresholdMet", format!("Attempting to reclaim {resource}"));
        let pods = pods(shared);
        let mut candidates = Vec::new();
        for pod in &pods {
            candidates.push(candidate(shared, pod, resource).await);
        }
        let Some(chosen) = rank(candidates) else { return Vec::new() };
        count(shared, first.threshold.signal);
        let own = pods.iter().find(|pod| pod.wanted.uid == chosen.uid).map(|pod| pod.wanted.grace_seconds());
        let grace = match first.grace {
            None => IMMEDIATE_GRACE_SECONDS,
            Some(_) => i64::from(limits.eviction_max_pod_grace_period).min(own.unwrap_or(i64::MAX)),
        };
        let verdict =
            Verdict { disrupted: true, grace_seconds: Some(grace), ..evicted(words(first, &chosen)) };
        vec![(chosen.uid, verdict)]
    }

    /// The first threshold that pods have to go for: a hard one at once, a soft one after its grace
    /// period.
    fn due<'a>(&mut self, met: &'a [Met], now: Instant) -> Option<&'a Met> {
        let soft = |signal: &str| met.iter().any(|m| m.grace.is_some() && m.threshold.signal == signal);
        self.since.retain(|signal, _| soft(signal));
        for met in met.iter().filter(|met| met.grace.is_some()) {
            self.since.entry(met.threshold.signal).or_insert(now);
        }
        met.iter().find(|met| match met.grace {
            None => true,
            Some(grace) => self.since.get(met.threshold.signal).is_some_and(|since| now - *since >= grace),
        })
    }

    /// Pressure lasts for a while after the last sign of it.
    fn note(&mut self, shared: &Shared, now: Pressure) {
        let after = Duration::from_secs(u64::from(shared.options.limits.eviction_pressure_transition_period));
        for (seen, under) in self.seen.iter_mut().zip([now.memory, now.disk, now.pid]) {
            if under {
                *seen = Some(Instant::now());
            }
        }
        let lasts = self.seen.map(|seen| seen.is_some_and(|at| at.elapsed() < after));
        let fresh = Pressure { memory: lasts[0], disk: lasts[1], pid: lasts[2] };
        let mut pressure = shared.pressure.lock().expect("no holder of the pressure's lock panics");
        if *pressure != fresh {
            *pressure = fresh;
            drop(pressure);
            shared.outbox.changed.notify_one();
        }
    }
}

fn level(shared: &Shared, signal: &str) -> Option<Level> {
    let bytes = |kib: Option<u64>| kib.map(|kib| kib << 10);
    let disk = || usage::file_system(&shared.options.data_dir);
    Some(match signal {
        "memory.available" => Level {
            available: bytes(info::meminfo("MemAvailable:"))?,
            capacity: bytes(info::meminfo("MemTotal:"))?,
        },
        // Images and pods lie on one file system.
        "nodefs.available" | "imagefs.available" => {
            // Of what anybody may use: blocks that are kept for root are nobody's to run short of.
            let disk = disk();
            Level { available: disk.available_bytes, capacity: disk.used_bytes + disk.available_bytes }
        }
        "nodefs.inodesFree" | "imagefs.inodesFree" => {
            let disk = disk();
            Level { available: disk.inodes_free, capacity: disk.inodes }
        }
        "pid.available" => {
            let capacity: u64 = fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
            Level { available: capacity.saturating_sub(info::tasks()?), capacity }
        }
        _ => return None,
    })
}

fn pods(shared: &Shared) -> Vec<Pod> {
    let all = shared.ledger.items(ItemKind::Pod).into_iter().filter_map(|item| {
        let wanted = Wanted::new(item.read().ok()?);
        let record = shared.ledger.record(&wanted.uid)?;
        Some(Pod { wanted, record })
    });
    all.filter(|pod| {
        let over = matches!(pod.record.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        !pod.wanted.critical() && !over && !pod.wanted.deleting() && pod.record.verdict.is_none()
    })
    .collect()
}

async fn candidate(shared: &Shared, pod: &Pod, resource: &str) -> Candidate {
    let wanted = &pod.wanted;
    let number =
        |list: &ResourceList| list.get(resource).map_or(0, |q| u64::try_from(q.value()).unwrap_or(0));
    let mut containers = Vec::new();
    for (_, container) in wanted.containers() {
        let Some(attempt) = pod.record.container(&container.name).attempts.checked_sub(1) else { continue };
        let id = super::record::container_id(&wanted.uid, &container.name, attempt);
        let used = match resource {
            "memory" => shared.runtime.stats(&id).await.map_or(0, |s| s.memory_working_set_bytes),
            "pids" => shared.runtime.stats(&id).await.map_or(0, |s| s.pids),
            _ => written(shared, wanted, &container.name, &id).await,
        };
        let request = resources::parse(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
        containers.push((container.name.clone(), used, number(&request)));
    }
    let volumes = if matches!(resource, "memory" | "pids") { 0 } else { volumes(shared, wanted).await };
    Candidate {
        uid: wanted.uid.clone(),
        priority: wanted.spec.priority.unwrap_or(0),
        usage: containers.iter().map(|(_, used, _)| used).sum::<u64>() + volumes,
        request: number(&resources::pod_requests(&wanted.spec)),
        containers,
    }
}

/// What a container has written: its layer and its logs.
async fn written(shared: &Shared, wanted: &Wanted, name: &str, id: &str) -> u64 {
    let layer = shared.runtime.written(id).await.unwrap_or(0);
    layer + usage::size_of(shared.log_dir(wanted).join(name)).await
}

async fn volumes(shared: &Shared, wanted: &Wanted) -> u64 {
    usage::size_of(shared.pod_dir(&wanted.uid).join("volumes/kubernetes.io~empty-dir")).await
}

fn count(shared: &Shared, signal: &'static str) {
    let mut evictions = shared.evictions.lock().expect("no holder of the evictions' lock panics");
    *evictions.entry(signal).or_default() += 1;
}

/// The pods that have written more than they may.
async fn over_limits(shared: &Shared) -> Vec<(String, Verdict)> {
    let mut over = Vec::new();
    for pod in pods(shared) {
        let written = Written::of(shared, &pod).await;
        if let Some((signal, text)) = written.excess(&pod.wanted.spec) {
            count(shared, signal);
            over.push((pod.wanted.uid.clone(), evicted(text)));
        }
    }
    over
}

/// What a pod has written (bytes), by name. Only what has a limit is looked at.
#[derive(Debug, Default)]
struct Written {
    empty_dirs: BTreeMap<String, u64>,
    containers: BTreeMap<String, u64>,
    /// All of its emptyDirs.
    volumes: u64,
}

impl Written {
    async fn of(shared: &Shared, pod: &Pod) -> Self {
        let wanted = &pod.wanted;
        let mut found = Self::default();
        for volume in wanted.spec.volumes.iter().flatten().filter(|volume| size_limit(volume).is_some()) {
            let path = shared.pod_dir(&wanted.uid).join("volumes/kubernetes.io~empty-dir").join(&volume.name);
            found.empty_dirs.insert(volume.name.clone(), usage::size_of(path).await);
        }
        if storage_limit(&resources::pod_limits(&wanted.spec)).is_none() {
            return found;
        }
        found.volumes = volumes(shared, wanted).await;
        for (_, container) in wanted.containers() {
            let attempts = pod.record.container(&container.name).attempts;
            let Some(attempt) = attempts.checked_sub(1) else { continue };
            let id = super::record::container_id(&wanted.uid, &container.name, attempt);
            let bytes = written(shared, wanted, &container.name, &id).await;
            found.containers.insert(container.name.clone(), bytes);
        }
        found
    }

    /// The signal and the words of the limit that is broken: an emptyDir's size, the pod's, a
    /// container's, in the order of upstream's `localStorageEviction`.
    fn excess(&self, spec: &PodSpec) -> Option<(&'static str, String)> {
        let bytes = |q: Quantity| u64::try_from(q.value()).unwrap_or(0);
        for volume in spec.volumes.iter().flatten() {
            let Some(limit) = size_limit(volume) else { continue };
            if self.empty_dirs.get(&volume.name).is_some_and(|used| *used > bytes(limit)) {
                let text =
                    format!("Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ", volume.name);
                return Some(("emptydirfs.limit", text));
            }
        }
        let total = self.containers.values().sum::<u64>() + self.volumes;
        let whole = storage_limit(&resources::pod_limits(spec));
        if let Some(limit) = whole.filter(|limit| total > bytes(*limit)) {
            let text =
                format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
            return Some(("ephemeralpodfs.limit", text));
        }
        spec.containers.iter().find_map(|container| {
            let limits = resources::parse(container.resources.as_ref().and_then(|r| r.limits.as_ref()));
            let limit = storage_limit(&limits)?;
            let used = *self.containers.get(&container.name)?;
            let text = format!(
                "Container {} exceeded its local ephemeral storage limit \"{limit}\". ",
                container.name
            );
            (used > bytes(limit)).then_some(("ephemeralcontainerfs.limit", text))
        })
    }
}

/// The size that an emptyDir on disk may have.
fn size_limit(volume: &Volume) -> Option<Quantity> {
    let source =
        volume.empty_dir.as_ref().filter(|source| source.medium.as_deref().unwrap_or_default().is_empty())?;
    source.size_limit.as_ref()?.0.parse().ok().filter(|limit: &Quantity| !limit.is_zero())
}

fn storage_limit(list: &ResourceList) -> Option<Quantity> {
    list.get("ephemeral-storage").copied().filter(|limit| !limit.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Least;

    #[test]
    fn thresholds_are_held_against_what_is_left() {
        let limits = Limits::standard();
        let level = |signal: &str| match signal {
            "memory.available" => Some(Level { available: 50 << 20, capacity: 512 << 20 }),
            "nodefs.available" => Some(Level { available: 4, capacity: 100 }),
            "nodefs.inodesFree" => Some(Level { available: 0, capacity: 0 }),
            _ => None,
        };
        let met = met(&limits, level);
        let signals: Vec<_> = met.iter().map(|m| m.threshold.signal).collect();
        assert_eq!(signals, ["memory.available", "nodefs.available"]);
        assert_eq!(pressure(&met), Pressure { memory: true, disk: true, pid: false });
        let candidate = Candidate {
            containers: vec![("c".into(), 30 << 20, 10 << 20), ("d".into(), 1, 2)],
            ..Candidate::default()
        };
        assert_eq!(
            words(&met[0], &candidate),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 30Mi, request is 10Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn a_soft_threshold_is_due_after_its_grace_period() {
        let threshold = |least: &str| Threshold {
            signal: "memory.available",
            least: Least::Amount(least.parse().unwrap()),
        };
        let limits = Limits {
            eviction_hard: vec![threshold("100Mi")],
            eviction_soft: vec![threshold("200Mi")],
            eviction_soft_grace_period: vec![("memory.available", Duration::from_secs(30))],
            ..Limits::standard()
        };
        let mut manager = Manager::default();
        let begun = Instant::now();
        let mut due = |available_mi: u64, second: u64| {
            let level = |_: &str| Some(Level { available: available_mi << 20, capacity: 1 << 30 });
            let met = met(&limits, level);
            let due = manager.due(&met, begun + Duration::from_secs(second));
            (pressure(&met).memory, due.map(|met| met.grace.is_some()))
        };
        assert_eq!(due(300, 0), (false, None));
        assert_eq!(due(150, 10), (true, None), "pressure is told at once");
        assert_eq!(due(150, 39), (true, None));
        assert_eq!(due(150, 40), (true, Some(true)));
        assert_eq!(due(300, 50), (false, None));
        assert_eq!(due(150, 60), (true, None), "the period begins anew");
        assert_eq!(due(50, 61), (true, Some(false)), "a hard one does not wait");
    }

    #[test]
    fn limits_are_held_in_upstreams_order() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "10Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "20Mi"}}},
            ],
            "volumes": [
                {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "memory", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}},
            ],
        }))
        .unwrap();
        let excess = |small: u64, a: u64, b: u64, volumes: u64| {
            let of =
                |pairs: &[(&str, u64)]| pairs.iter().map(|(n, mi)| ((*n).to_owned(), mi << 20)).collect();
            let written = Written {
                empty_dirs: of(&[("small", small), ("memory", 5)]),
                containers: of(&[("a", a), ("b", b)]),
                volumes: volumes << 20,
            };
            written.excess(&spec).map(|(_, text)| text)
        };
        assert_eq!(excess(1, 10, 19, 1), None);
        let says = |text: &str| Some(text.to_owned());
        assert_eq!(
            excess(2, 40, 1, 1),
            says("Usage of EmptyDir volume \"small\" exceeds the limit \"1Mi\". ")
        );
        assert_eq!(
            excess(1, 31, 0, 0),
            says("Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. ")
        );
        assert_eq!(
            excess(1, 11, 0, 0),
            says("Container a exceeded its local ephemeral storage limit \"10Mi\". ")
        );
    }

    #[test]
    fn who_takes_more_than_asked_goes_first() {
        let pod = |uid: &str, priority, usage, request| Candidate {
            uid: uid.into(),
            priority,
            usage,
            request,
            containers: Vec::new(),
        };
        let first = |pods: Vec<Candidate>| rank(pods).map(|c| c.uid).unwrap_or_default();
        assert_eq!(first(vec![pod("a", 0, 100, 200), pod("b", 100, 50, 10)]), "b");
        assert_eq!(first(vec![pod("a", 0, 100, 10), pod("b", 100, 500, 10)]), "a");
        assert_eq!(first(vec![pod("a", 0, 100, 10), pod("b", 0, 500, 10)]), "b");
        assert_eq!(first(vec![]), "");
    }
}
