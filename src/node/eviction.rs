//! What the node runs short of, and which pod has to go for it.
//!
//! In: thresholds, what is left, what pods use. Out: pressure, and at most one pod a look.
//! Source: `pkg/kubelet/eviction` (signals, ranking, words). Memory left is the kernel's
//! `MemAvailable`; what upstream computes from cgroups calls a board with a full page cache starved.
//! Deliberately absent: soft thresholds; images are collected by the room of images.

use std::{cmp::Reverse, fmt::Write as _, fs, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    info,
    record::{Record, Verdict, Wanted},
    shared::{Pressure, Shared},
    usage,
};
use crate::{
    config::Threshold,
    kinds::{
        quantity::Quantity,
        resources::{self, ResourceList},
    },
    mqtt::messages::ItemKind,
};

/// Between two looks (kubelet's `evictionMonitoringPeriod`).
pub const PERIOD: Duration = Duration::from_secs(10);
/// A pod of at least this priority is not evicted (`IsCriticalPod`).
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

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
pub fn met(thresholds: &[Threshold], level: impl Fn(&str) -> Option<Level>) -> Vec<Met> {
    let mut met: Vec<Met> = thresholds
        .iter()
        .filter_map(|threshold| {
            let level = level(threshold.signal)?;
            let short = level.capacity > 0 && level.available < threshold.least.of(level.capacity);
            short.then(|| Met { threshold: threshold.clone(), available: level.available })
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

pub fn evicted(message: String) -> Verdict {
    Verdict { reason: "Evicted".to_owned(), message, rejected: false }
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
}

impl Manager {
    /// One look. Says whom to evict and why; sets the node's pressure.
    pub async fn look(&mut self, shared: &Arc<Shared>) -> Option<(String, Verdict)> {
        let limits = &shared.options.limits;
        let met = met(&limits.eviction_hard, |signal| level(shared, signal));
        self.note(shared, pressure(&met));
        if let Some(first) = met.first() {
            let pods = pods(shared);
            let mut candidates = Vec::new();
            for pod in &pods {
                candidates.push(candidate(shared, pod, resource_of(first.threshold.signal)).await);
            }
            if let Some(chosen) = rank(candidates) {
                *shared
                    .evictions
                    .lock()
                    .expect("no holder of the evictions' lock panics")
                    .entry(first.threshold.signal)
                    .or_default() += 1;
                return Some((chosen.uid.clone(), evicted(words(first, &chosen))));
            }
        }
        over_limit(shared).await
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
        let critical = pod.wanted.spec.priority.is_some_and(|p| p >= CRITICAL_PRIORITY);
        let over = matches!(pod.record.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        !critical && !over && !pod.wanted.deleting() && pod.record.verdict.is_none()
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

/// A pod that has written more than it may: an emptyDir over its size, a container or the pod over
/// its `ephemeral-storage` limit. Only pods with such limits are looked at.
async fn over_limit(shared: &Shared) -> Option<(String, Verdict)> {
    for pod in pods(shared) {
        let wanted = &pod.wanted;
        let uid = || wanted.uid.clone();
        for volume in wanted.spec.volumes.iter().flatten() {
            let Some(source) = &volume.empty_dir else { continue };
            let limit = source.size_limit.as_ref().and_then(|q| q.0.parse::<Quantity>().ok());
            let Some(limit) = limit.filter(|q| !q.is_zero() && source.medium.as_deref() != Some("Memory"))
            else {
                continue;
            };
            let path = shared.pod_dir(&wanted.uid).join("volumes/kubernetes.io~empty-dir").join(&volume.name);
            if usage::size_of(path).await > u64::try_from(limit.value()).unwrap_or(0) {
                let text =
                    format!("Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ", volume.name);
                return Some((uid(), evicted(text)));
            }
        }
        let limit_of = |list: &ResourceList| list.get("ephemeral-storage").copied().filter(|q| !q.is_zero());
        let bytes = |q: Quantity| u64::try_from(q.value()).unwrap_or(0);
        let total_limit = limit_of(&resources::pod_limits(&wanted.spec));
        if total_limit.is_none() {
            continue;
        }
        let mut total = volumes(shared, wanted).await;
        for (_, container) in wanted.containers() {
            let Some(attempt) = pod.record.container(&container.name).attempts.checked_sub(1) else {
                continue;
            };
            let id = super::record::container_id(&wanted.uid, &container.name, attempt);
            let used = written(shared, wanted, &container.name, &id).await;
            total += used;
            let limits = resources::parse(container.resources.as_ref().and_then(|r| r.limits.as_ref()));
            if let Some(limit) = limit_of(&limits).filter(|limit| used > bytes(*limit)) {
                let text = format!(
                    "Container {} exceeded its local ephemeral storage limit \"{limit}\". ",
                    container.name
                );
                return Some((uid(), evicted(text)));
            }
        }
        if let Some(limit) = total_limit.filter(|limit| total > bytes(*limit)) {
            let text =
                format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
            return Some((uid(), evicted(text)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    #[test]
    fn thresholds_are_held_against_what_is_left() {
        let limits = Limits::standard();
        let level = |signal: &str| match signal {
            "memory.available" => Some(Level { available: 50 << 20, capacity: 512 << 20 }),
            "nodefs.available" => Some(Level { available: 4, capacity: 100 }),
            "nodefs.inodesFree" => Some(Level { available: 0, capacity: 0 }),
            _ => None,
        };
        let met = met(&limits.eviction_hard, level);
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
