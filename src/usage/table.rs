//! The latest measurement of every node, in memory, and whether anybody wants to know.
//!
//! Nodes are asked only while somebody has asked here within [`INTEREST`]: an idle cluster measures
//! nothing and says nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{ContainerUse, PodUsage, PodUse};

/// How long after a question measurements go on.
const INTEREST: Duration = Duration::from_mins(5);
/// A measurement older than this is none (four of metrics-server's periods).
const STALE: Duration = Duration::from_mins(1);

/// One node's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUse {
    pub at: Timestamp,
    pub window: SignedDuration,
    pub cpu_nanocores: u64,
    pub memory_bytes: u64,
    /// By namespace and name.
    pub pods: BTreeMap<(String, String), Vec<ContainerUse>>,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: BTreeMap<String, (Instant, NodeUse)>,
    asked: Option<Instant>,
}

/// What nodes have measured. Share it in an `Arc`.
#[derive(Debug)]
pub struct Table {
    inner: Mutex<Inner>,
    wanted: Notify,
    /// Counts the rounds of measurements.
    rounds: watch::Sender<u64>,
}

impl Default for Table {
    fn default() -> Self {
        Self { inner: Mutex::default(), wanted: Notify::new(), rounds: watch::Sender::new(0) }
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the table's lock panics")
    }

    /// Somebody wants to know.
    pub fn ask(&self) {
        self.lock().asked = Some(Instant::now());
        self.wanted.notify_one();
    }

    /// Whether somebody has asked lately.
    pub fn is_wanted(&self) -> bool {
        self.lock().asked.is_some_and(|asked| asked.elapsed() < INTEREST)
    }

    /// Resolves when somebody asks.
    pub async fn wanted(&self) {
        while !self.is_wanted() {
            self.wanted.notified().await;
        }
    }

    /// One node's measurement, in place of its last.
    pub fn put(&self, node: &str, usage: NodeUse) {
        self.lock().nodes.insert(node.to_owned(), (Instant::now(), usage));
    }

    /// All nodes that are there have been asked once more; others are forgotten.
    pub fn round(&self, there: &[String]) {
        self.lock().nodes.retain(|node, _| there.contains(node));
        self.rounds.send_modify(|rounds| *rounds += 1);
    }

    /// Asks, and waits for measurements when there are none: at most `patience`.
    pub async fn fresh(&self, patience: Duration) {
        let mut rounds = self.rounds.subscribe();
        self.ask();
        if !self.lock().nodes.values().any(|(at, _)| at.elapsed() < STALE) {
            // Given up after a while: the answer then says that there is nothing yet.
            let _ = tokio::time::timeout(patience, rounds.changed()).await;
        }
    }

    /// The measurements that are not old, by node.
    pub fn nodes(&self) -> BTreeMap<String, NodeUse> {
        let inner = self.lock();
        let fresh = inner.nodes.iter().filter(|(_, (at, _))| at.elapsed() < STALE);
        fresh.map(|(node, (_, usage))| (node.clone(), usage.clone())).collect()
    }

    /// The latest measurement of a pod, whoever asks.
    pub fn of_pod(&self, namespace: &str, name: &str) -> Option<PodUse> {
        let key = (namespace.to_owned(), name.to_owned());
        let inner = self.lock();
        let mut fresh = inner.nodes.values().filter(|(at, _)| at.elapsed() < STALE);
        fresh.find_map(|(_, node)| {
            let containers = node.pods.get(&key)?.clone();
            Some(PodUse { at: node.at, window: node.window, containers })
        })
    }
}

impl PodUsage for Table {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodUse> {
        self.ask();
        self.of_pod(namespace, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn measurements_age_and_so_does_interest() {
        let table = Table::default();
        assert!(!table.is_wanted());
        table.fresh(Duration::from_secs(1)).await;
        assert!(table.is_wanted());
        let containers = vec![ContainerUse { name: "c".into(), cpu_nanocores: 5, memory_bytes: 7 }];
        let usage = NodeUse {
            at: Timestamp::UNIX_EPOCH,
            window: SignedDuration::from_secs(15),
            cpu_nanocores: 1,
            memory_bytes: 2,
            pods: [(("ns".to_owned(), "p".to_owned()), containers)].into(),
        };
        table.put("n", usage);
        assert_eq!(table.pod("ns", "p").unwrap().containers[0].memory_bytes, 7);
        assert_eq!(table.pod("ns", "q"), None);
        tokio::time::advance(STALE).await;
        assert_eq!(table.of_pod("ns", "p"), None);
        tokio::time::advance(INTEREST).await;
        assert!(!table.is_wanted());
        table.round(&[]);
        assert!(table.nodes().is_empty());
    }
}
