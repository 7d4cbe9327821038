//! What this node, its pods and their containers use right now.
//!
//! In: cgroup files (through the runtime), `/proc`. Out: [`NodeUsage`]. Rates are taken against the
//! last look, when that is not too old; else two looks are taken, [`FIRST_WINDOW`] apart.
//! Invariants: nothing is looked at unless asked; nothing is written.
//! A node's working set is what it could not give away: total less available memory.

use std::{collections::BTreeMap, fs, path::Path, sync::Mutex, time::Duration};

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use tokio::time::Instant;

use super::{
    info,
    record::{Wanted, container_id},
    shared::Shared,
};
use crate::{
    mqtt::messages::ItemKind,
    runtime::{ContainerState, Pressure, Stats},
};

/// The window of a rate when there is no earlier look.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// An earlier look serves as the begin of a window of at least and at most this length.
const WINDOW_MIN: Duration = Duration::from_millis(900);
const WINDOW_MAX: Duration = Duration::from_mins(2);
/// Nanoseconds of a tick of `/proc/stat` (USER_HZ is 100 on every Linux that we know).
const TICK_NS: u64 = 10_000_000;
/// The key of the node itself among the looks.
const NODE: &str = "";

/// CPU time by container id (or pod uid), and when it was looked at.
type Look = (Instant, BTreeMap<String, u64>);

/// The last look.
#[derive(Debug, Default)]
pub struct Looks(Mutex<Option<Look>>);

/// Bytes of a file system.
#[derive(Debug, Clone, Default)]
pub struct FileSystem {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// Bytes and errors through one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// One container.
#[derive(Debug, Clone, Default)]
pub struct ContainerUsage {
    pub name: String,
    pub id: String,
    pub image: String,
    pub started: Option<Timestamp>,
    pub stats: Stats,
    pub nanocores: u64,
    pub memory_limit: Option<i64>,
    /// Of its writable layer and of its logs; only when asked for.
    pub layer_bytes: u64,
    pub log_bytes: u64,
}

/// One pod.
#[derive(Debug, Clone, Default)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub started: Option<Timestamp>,
    pub stats: Stats,
    pub nanocores: u64,
    pub interfaces: Vec<Interface>,
    pub containers: Vec<ContainerUsage>,
    /// Of its emptyDir volumes on disk; only when asked for.
    pub volume_bytes: u64,
}

/// The whole node.
#[derive(Debug, Clone, Default)]
pub struct NodeUsage {
    pub at: Timestamp,
    pub window: Duration,
    pub cpu_ns: u64,
    pub nanocores: u64,
    pub memory_bytes: u64,
    pub memory_available_bytes: u64,
    pub cores: usize,
    pub started: Option<Timestamp>,
    pub disk: FileSystem,
    pub interfaces: Vec<Interface>,
    /// Of cpu, memory, io.
    pub pressure: [Option<Pressure>; 3],
    pub pods: Vec<PodUsage>,
}

/// Looks at everything; with `disk` also at what pods have written, which takes longer.
pub async fn measure(shared: &Shared, disk: bool) -> NodeUsage {
    let mut now = look(shared).await;
    let mut before = shared.looks.0.lock().expect("no holder of the looks' lock panics").clone();
    let usable = |before: &Look, now: &NodeUsage| {
        (WINDOW_MIN..WINDOW_MAX).contains(&before.0.elapsed())
            && now.ids().all(|id| before.1.contains_key(&id))
    };
    if !before.as_ref().is_some_and(|before| usable(before, &now)) {
        before = Some(now.as_look());
        tokio::time::sleep(FIRST_WINDOW).await;
        now = look(shared).await;
    }
    if let Some((at, times)) = &before {
        now.rate(*at, times);
    }
    *shared.looks.0.lock().expect("no holder of the looks' lock panics") = Some(now.as_look());
    if disk {
        written(shared, &mut now).await;
    }
    now
}

impl NodeUsage {
    fn ids(&self) -> impl Iterator<Item = String> {
        let pods = self.pods.iter().map(|p| p.uid.clone());
        pods.chain(self.pods.iter().flat_map(|p| &p.containers).map(|c| c.id.clone()))
    }

    fn as_look(&self) -> Look {
        let mut times = BTreeMap::from([(NODE.to_owned(), self.cpu_ns)]);
        for pod in &self.pods {
            times.insert(pod.uid.clone(), pod.stats.cpu_usage_ns);
            times.extend(pod.containers.iter().map(|c| (c.id.clone(), c.stats.cpu_usage_ns)));
        }
        (Instant::now(), times)
    }

    fn rate(&mut self, since: Instant, before: &BTreeMap<String, u64>) {
        self.window = since.elapsed();
        let nanos = self.window.as_nanos().max(1);
        let rate = |id: &str, now: u64| {
            let used = now.saturating_sub(before.get(id).copied().unwrap_or(now));
            u64::try_from(u128::from(used) * 1_000_000_000 / nanos).unwrap_or(0)
        };
        self.nanocores = rate(NODE, self.cpu_ns);
        for pod in &mut self.pods {
            pod.nanocores = rate(&pod.uid, pod.stats.cpu_usage_ns);
            for container in &mut pod.containers {
                container.nanocores = rate(&container.id, container.stats.cpu_usage_ns);
            }
        }
    }
}

async fn look(shared: &Shared) -> NodeUsage {
    let total = info::meminfo("MemTotal:").unwrap_or(0) << 10;
    let available = info::meminfo("MemAvailable:").unwrap_or(0) << 10;
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut node = NodeUsage {
        at: shared.clock.now(),
        started: boot_time(&stat),
        cpu_ns: cpu_time(&stat),
        memory_bytes: total.saturating_sub(available),
        memory_available_bytes: available,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        disk: file_system(&shared.options.data_dir),
        interfaces: interfaces(&fs::read_to_string("/proc/net/dev").unwrap_or_default()),
        pressure: ["cpu", "memory", "io"].map(|what| {
            Pressure::parse(&fs::read_to_string(format!("/proc/pressure/{what}")).unwrap_or_default())
        }),
        ..NodeUsage::default()
    };
    for item in shared.ledger.items(ItemKind::Pod) {
        let Ok(pod) = item.read() else { continue };
        let wanted = Wanted::new(pod);
        if let Some(usage) = pod_usage(shared, &wanted).await {
            node.pods.push(usage);
        }
    }
    node
}

async fn pod_usage(shared: &Shared, wanted: &Wanted) -> Option<PodUsage> {
    let record = shared.ledger.record(&wanted.uid)?;
    let stats = shared.runtime.stats(&wanted.uid).await.ok()?;
    let mut usage = PodUsage {
        namespace: wanted.namespace.clone(),
        name: wanted.name.clone(),
        uid: wanted.uid.clone(),
        started: record.status.start_time.as_ref().map(|t| t.0),
        stats,
        ..PodUsage::default()
    };
    for (_, container) in wanted.containers() {
        let known = record.container(&container.name);
        let Some(attempt) = known.attempts.checked_sub(1) else { continue };
        let id = container_id(&wanted.uid, &container.name, attempt);
        let Ok(ContainerState::Running { pid, started_at }) = shared.runtime.state(&id).await else {
            continue;
        };
        let Ok(stats) = shared.runtime.stats(&id).await else { continue };
        if usage.interfaces.is_empty() && !wanted.host_network() {
            let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
            usage.interfaces = interfaces(&text);
        }
        usage.containers.push(ContainerUsage {
            name: container.name.clone(),
            id,
            image: known.image.clone(),
            started: Some(started_at),
            stats,
            memory_limit: super::qos::container(&wanted.spec, container, None).memory_bytes,
            ..ContainerUsage::default()
        });
    }
    Some(usage)
}

/// Adds what pods have written to the disk.
async fn written(shared: &Shared, node: &mut NodeUsage) {
    for pod in &mut node.pods {
        let volumes = shared.pod_dir(&pod.uid).join("volumes/kubernetes.io~empty-dir");
        pod.volume_bytes = size_of(volumes).await;
        for container in &mut pod.containers {
            container.layer_bytes = shared.runtime.written(&container.id).await.unwrap_or(0);
            let logs = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
            container.log_bytes = size_of(shared.options.pod_logs.join(logs).join(&container.name)).await;
        }
    }
}

/// The bytes that a folder takes on its own file system.
pub async fn size_of(path: std::path::PathBuf) -> u64 {
    tokio::task::spawn_blocking(move || crate::runtime::disk_usage(&path)).await.unwrap_or(0)
}

/// Bytes and inodes of the file system of `path`.
pub fn file_system(path: &Path) -> FileSystem {
    let Ok(stat) = statvfs(path) else { return FileSystem::default() };
    // The C types differ in width between processors.
    #[allow(clippy::useless_conversion)]
    let (block, blocks, free, available, inodes, inodes_free) = (
        u64::from(stat.fragment_size()),
        u64::from(stat.blocks()),
        u64::from(stat.blocks_free()),
        u64::from(stat.blocks_available()),
        u64::from(stat.files()),
        u64::from(stat.files_free()),
    );
    FileSystem {
        capacity_bytes: blocks.saturating_mul(block),
        available_bytes: available.saturating_mul(block),
        used_bytes: blocks.saturating_sub(free).saturating_mul(block),
        inodes,
        inodes_free,
    }
}

/// The time that all processors were busy (`/proc/stat`, proc(5)): user, nice, system, irq, softirq,
/// steal; nanoseconds.
fn cpu_time(stat: &str) -> u64 {
    let line = stat.lines().find_map(|l| l.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    [0, 1, 2, 5, 6, 7].iter().filter_map(|i| ticks.get(*i)).sum::<u64>() * TICK_NS
}

/// When the machine was started, by its clock of now (`/proc/stat`).
fn boot_time(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|l| l.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

/// `/proc/net/dev` without the loopback.
fn interfaces(text: &str) -> Vec<Interface> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let n: Vec<u64> = rest.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let name = name.trim();
        (name != "lo" && n.len() >= 11).then(|| Interface {
            name: name.to_owned(),
            rx_bytes: n[0],
            rx_errors: n[2],
            tx_bytes: n[8],
            tx_errors: n[10],
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(cpu_time("cpu  1 2 3 100 50 4 5 6 0 0\ncpu0 1\n"), (1 + 2 + 3 + 4 + 5 + 6) * TICK_NS);
        assert_eq!(boot_time("cpu  1\nbtime 1795000000\n"), Timestamp::from_second(1_795_000_000).ok());
        assert_eq!(boot_time("cpu  1\n"), None);
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n";
        assert_eq!(
            interfaces(text),
            [Interface { name: "eth0".into(), rx_bytes: 10, rx_errors: 2, tx_bytes: 20, tx_errors: 3 }]
        );
    }

    #[test]
    fn rates_are_taken_against_the_look_before() {
        let mut node = NodeUsage { cpu_ns: 3_000_000_000, ..NodeUsage::default() };
        let since = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        node.rate(since, &BTreeMap::from([(NODE.to_owned(), 1_000_000_000)]));
        assert!((900_000_000..=1_000_000_000).contains(&node.nanocores), "{}", node.nanocores);
    }
}
