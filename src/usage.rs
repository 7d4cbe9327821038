//! What pods use right now, as their nodes measured it: between who collects it and who decides
//! by it (HorizontalPodAutoscalers, `metrics.k8s.io`).
//!
//! Deliberately absent: history, and anything on disk.

use std::{collections::HashMap, fmt};

use jiff::{SignedDuration, Timestamp};

mod table;

pub use table::{NodeUse, Table};

/// One container's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUse {
    pub name: String,
    /// Billionths of a core, on average over the window.
    pub cpu_nanocores: u64,
    /// The working set (bytes).
    pub memory_bytes: u64,
}

/// One pod's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodUse {
    /// The end of the window, by the clock of the master.
    pub at: Timestamp,
    /// How long was measured.
    pub window: SignedDuration,
    pub containers: Vec<ContainerUse>,
}

/// Who knows what pods use.
pub trait PodUsage: Send + Sync + fmt::Debug {
    /// The latest measurement of a pod; `None`: there is none.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodUse>;
}

/// Nobody measures.
#[derive(Debug, Clone, Copy)]
pub struct Unmeasured;

impl PodUsage for Unmeasured {
    fn pod(&self, _namespace: &str, _name: &str) -> Option<PodUse> {
        None
    }
}

/// Measurements by namespace and name.
impl<S: std::hash::BuildHasher + Send + Sync> PodUsage for HashMap<(String, String), PodUse, S> {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodUse> {
        self.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}
