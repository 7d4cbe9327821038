//! The container runtime: pod sandboxes and containers, from OCI terms to processes.
//!
//! In: [`SandboxSpec`] and [`ContainerSpec`]. Out: running processes, their exits, their logs.
//! Invariants: the daemon never calls libcontainer, a shim process does; everything about a
//! container that a restarted daemon needs is in the state folder; every removal is idempotent.
//! Deliberately absent: Pods, images by name, restart policies, the network inside a namespace.

pub mod apparmor;
mod cgroup;
mod daemon;
mod devices;
mod erase;
mod exec;
mod exec_helper;
pub mod fake;
mod helper;
mod log;
mod monitor;
mod mounts;
mod oci;
mod oom;
mod process;
mod sandbox;
mod seccomp;
mod shim;
mod state;
#[allow(unsafe_code, reason = "system calls without a safe form")]
mod sys;
mod wire;

pub use daemon::{Options, ShimRuntime};
pub use erase::erase;
pub use helper::dispatch as dispatch_helper;
pub use log::numbered as rotated_log;
pub use mounts::reason;
pub use oci::groups;
pub use oom::{Kill, SystemOoms};
pub use process::CAPABILITIES;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

/// The state of namespaces that containers of one pod share.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SandboxSpec {
    /// The pod's uid.
    pub id: String,
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// One pid namespace for all containers, with a reaper as pid 1.
    pub share_pid: bool,
    /// `net.*`, `kernel.shm*`, … applied in the new namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// The pod's cgroup below the cgroup root: `besteffort/pod<uid>`, `burstable/pod<uid>`, `pod<uid>`.
    pub cgroup: String,
    /// Limits of the whole pod.
    pub resources: Resources,
}

/// cgroup limits; `None` is unlimited.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    pub memory_bytes: Option<i64>,
    /// Microseconds of CPU time per 100 ms period.
    pub cpu_quota_us: Option<i64>,
    /// cgroup v1 shares (2..=262144), converted for v2.
    pub cpu_shares: Option<u64>,
    pub pids: Option<i64>,
    /// `(page size, bytes)`: `("2MB", …)`.
    pub hugepages: Vec<(String, i64)>,
}

/// A file system tree shown inside a container.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// What seccomp filter a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// An OCI seccomp profile on this node.
    Localhost(PathBuf),
}

/// Everything about one container; all names are resolved, all files are there.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ContainerSpec {
    /// Unique on the node: `<pod uid>_<container name>_<attempt>`.
    pub id: String,
    pub sandbox: String,
    /// The container of the same sandbox whose processes this one sees, instead of only its own.
    #[serde(default)]
    pub processes_of: Option<String>,
    /// Read-only layers, the lowest first; the overlay's upper folder is the runtime's.
    pub layers: Vec<PathBuf>,
    pub read_only_root: bool,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// `CAP_NET_ADMIN`, …: the bounding, effective and permitted set.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub privileged: bool,
    pub seccomp: Seccomp,
    /// `/proc` without masked and read-only paths.
    pub unmasked_proc: bool,
    pub apparmor_profile: Option<String>,
    pub mounts: Vec<Mount>,
    /// Folders that can be written to, also with a read-only root; made where the layers have none.
    #[serde(default)]
    pub volumes: Vec<PathBuf>,
    /// Host device nodes shown inside: (host path, container path, `rwm`).
    pub devices: Vec<(PathBuf, PathBuf, String)>,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
    pub resources: Resources,
    pub oom_score_adj: i32,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// The CRI log file to append to; older ones are [`rotated_log`]s of it.
    pub log_path: PathBuf,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ContainerState {
    /// The shim was started and has not reported the process yet.
    Starting,
    Running {
        pid: i32,
        started_at: jiff::Timestamp,
    },
    Exited(Exit),
}

/// A container and where it is in its life.
pub type Container = (Arc<ContainerSpec>, ContainerState);

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// 0..=255; 128 + signal for a killed process.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub started_at: Option<jiff::Timestamp>,
    pub finished_at: jiff::Timestamp,
    /// Why it never ran (bad entrypoint, mount failed); Kubernetes' `message`.
    pub error: Option<String>,
}

/// A command run beside a container's process.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ExecSpec {
    pub args: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

/// The near ends of a running exec or attach.
pub struct Session {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// `None` with a terminal: both streams are one.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal sizes (columns, rows) go in here.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    /// The exit code of the command; for attach, of the container. Dropping it kills the command.
    pub exit: BoxFuture<'static, Result<i32, Error>>,
}

/// Usage read from cgroup files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    pub cpu_usage_ns: u64,
    /// Usage less inactive file pages, as Kubernetes counts it.
    pub memory_working_set_bytes: u64,
    pub memory_usage_bytes: u64,
    pub memory_rss_bytes: u64,
    pub pids: u64,
    /// Processes killed because memory ran out.
    pub oom_kills: u64,
    /// Version 2 with PSI only.
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// Pressure stall information (Documentation/accounting/psi.rst): hundredths of time over 10, 60 and
/// 300 seconds, and microseconds in all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    pub some: [f64; 3],
    pub some_us: u64,
    pub full: [f64; 3],
    pub full_us: u64,
}

impl Pressure {
    /// Reads a file of it; `None` when it is empty.
    pub fn parse(text: &str) -> Option<Self> {
        let mut out = Self::default();
        let mut any = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let kind = words.next();
            let mut number = |key: &str| words.next().and_then(|w| w.strip_prefix(key)).map(str::to_owned);
            let averages = ["avg10=", "avg60=", "avg300="]
                .map(|key| number(key).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0));
            let total = number("total=").and_then(|t| t.parse().ok()).unwrap_or(0);
            match kind {
                Some("some") => (out.some, out.some_us) = (averages, total),
                Some("full") => (out.full, out.full_us) = (averages, total),
                _ => continue,
            }
            any = true;
        }
        any.then_some(out)
    }

    pub fn some_seconds(self) -> f64 {
        self.some_us as f64 / 1e6
    }

    pub fn full_seconds(self) -> f64 {
        self.full_us as f64 / 1e6
    }
}

/// The bytes that a tree takes on the file system of its root; what cannot be read counts nothing.
pub fn disk_usage(root: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(top) = std::fs::symlink_metadata(root) else { return 0 };
    let mut total = top.blocks() * 512;
    let mut folders = if top.is_dir() { vec![root.to_owned()] } else { Vec::new() };
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            // Each name of a file with several counts its part.
            total +=
                if meta.is_dir() { meta.blocks() * 512 } else { meta.blocks() * 512 / meta.nlink().max(1) };
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    total
}

/// Why the runtime could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {id}: {source}")]
    Io { operation: &'static str, id: String, source: std::io::Error },
    #[error("container {0} not found")]
    NotFound(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    /// A command could not be run; `code` is a shell's: 127 not found, 126 not executable.
    #[error("{message}")]
    ExecFailed { code: i32, message: String },
    /// The container could not be created; the text is what a user needs.
    #[error("{0}")]
    Create(String),
    #[error("this node cannot do that: {0}")]
    Unsupported(String),
}

/// The runtime as the node sees it. All calls may be repeated; ends are found by [`Runtime::watch`].
pub trait Runtime: Send + Sync + 'static {
    /// Makes the pod's cgroup and namespaces, or finds them as they are. Returns the path of the
    /// network namespace (`/proc/1/ns/net`-like for host network).
    fn ensure_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<PathBuf, Error>>;
    /// Removes namespaces, cgroup and state. All containers must be gone.
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// The sandboxes that exist.
    fn sandboxes(&self) -> BoxFuture<'_, Result<Vec<SandboxSpec>, Error>>;

    /// Starts a container and returns when its process runs. A container that could not be made
    /// (bad entrypoint, mount failed) is [`ContainerState::Exited`] with code 128 and an error; `Err`
    /// is for what was not begun and may be tried again. An id that exists gives its state.
    fn start<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<ContainerState, Error>>;
    /// Sends a signal to the container's first process; `Ok` when it is gone already.
    fn signal<'a>(&'a self, id: &'a str, signal: i32) -> BoxFuture<'a, Result<(), Error>>;
    /// Kills every process of the container.
    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// Removes a container that has ended: its writable layer, cgroup and state; logs stay.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// All containers, with the spec they were started with.
    fn containers(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>>;
    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<ContainerState, Error>>;
    fn update<'a>(&'a self, id: &'a str, resources: &'a Resources) -> BoxFuture<'a, Result<(), Error>>;
    /// Usage of a container or, by its id, of a whole sandbox.
    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats, Error>>;
    /// The bytes of a container's writable layer.
    fn written<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<u64, Error>>;

    fn exec<'a>(&'a self, id: &'a str, spec: &'a ExecSpec) -> BoxFuture<'a, Result<Session, Error>>;
    /// The container's own streams.
    fn attach<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Session, Error>>;

    /// Ids of containers whose state has changed. Ids may repeat; a lagging reader asks
    /// [`Runtime::containers`].
    fn watch(&self) -> tokio::sync::broadcast::Receiver<String>;
}
