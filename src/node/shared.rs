//! What all parts of one node have in common: options, the traits it stands on, what goes out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Node, NodeSpec, PodStatus, Taint},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};

use super::{
    address::Addresses,
    admit::{self, Allocations},
    asks::Asks,
    downward::Facts,
    info,
    isolation::Isolation,
    ledger::Ledger,
    qos,
    record::{Verdict, Wanted},
    usage::Looks,
};
use crate::{
    clock::SharedClock,
    config::Limits,
    image::Images,
    kinds::placement,
    mqtt::messages::{ItemKey, ItemKind, NodeConfig, NodeEvent, NodeInfo, PodReport},
    net::Network,
    runtime::{Resources, Runtime, apparmor},
};

/// What the master says of the time is on its way so long that less means nothing.
const TIME_ERROR_MAX: SignedDuration = SignedDuration::from_secs(10);
/// Events that wait for the master; the oldest go first.
const EVENTS_MAX: usize = 256;

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct Options {
    pub cluster: String,
    pub node: String,
    /// The node's own state: the ledger, pods' volumes.
    pub data_dir: PathBuf,
    /// Above this part of the disk unused images go, until the lower one is reached (percent).
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
    /// Where the folders of `local-path` volumes are.
    pub local_volumes: PathBuf,
    /// Where a tmpfs is made for what must not be on a disk: secret, projected and downwardAPI volumes.
    /// Without one they are beside the others.
    pub memory_volumes: Option<PathBuf>,
    /// `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// `/var/log/containers`: links into it.
    pub container_logs: PathBuf,
    /// Where `Localhost` seccomp profiles are.
    pub seccomp_profiles: PathBuf,
    pub limits: Limits,
    /// Between two signs of life.
    pub beat: Duration,
    /// Ingresses are served on this node.
    pub serves_ingress: bool,
    /// The address at which a router passes the tunnel's port on to this node.
    pub external_ip: Option<Ipv4Addr>,
    /// The host's `/etc/resolv.conf` and `/etc/hosts`, for pods that use them.
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
}

impl Options {
    /// The defaults of a node with its state below `data_dir` and logs below `log_dir`.
    pub fn new(cluster: &str, node: &str, data_dir: PathBuf, log_dir: PathBuf) -> Self {
        Self {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            seccomp_profiles: data_dir.join("seccomp"),
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            local_volumes: data_dir.join("volumes"),
            memory_volumes: None,
            data_dir,
            pod_logs: log_dir.join("pods"),
            container_logs: log_dir.join("containers"),
            limits: Limits::standard(),
            beat: Duration::from_mins(1),
            serves_ingress: false,
            external_ip: None,
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
        }
    }
}

impl Options {
    /// Processes of one pod; `None` for no limit.
    pub fn pids_max(&self) -> Option<i64> {
        Some(self.limits.pod_max_pids).filter(|max| *max > 0)
    }
}

/// Statuses and events that the master does not have yet.
#[derive(Default)]
pub struct Outbox {
    pods: Mutex<BTreeMap<String, Waiting>>,
    events: Mutex<VecDeque<NodeEvent>>,
    /// Something new waits.
    pub changed: Notify,
}

struct Waiting {
    report: PodReport,
    /// The sequence number it was last sent with; `None` when it was not.
    sent: Option<u64>,
}

impl Outbox {
    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no holder of an outbox lock panics")
    }

    /// The latest state of a pod, in place of an older one.
    pub fn report(&self, report: PodReport) {
        Self::lock(&self.pods).insert(report.uid.clone(), Waiting { report, sent: None });
        self.changed.notify_one();
    }

    pub fn event(&self, event: NodeEvent) {
        let mut events = Self::lock(&self.events);
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
        drop(events);
        self.changed.notify_one();
    }

    /// The reports that were not sent on this connection, now sent with `seq`; at most `max`.
    pub fn take_reports(&self, seq: u64, max: usize) -> Vec<PodReport> {
        let mut pods = Self::lock(&self.pods);
        let fresh = pods.values_mut().filter(|w| w.sent.is_none()).take(max);
        fresh
            .map(|w| {
                w.sent = Some(seq);
                w.report.clone()
            })
            .collect()
    }

    /// The master has stored what was sent with `seq`; what was sent before may have been lost.
    pub fn acknowledged(&self, seq: u64) {
        Self::lock(&self.pods).retain(|_, w| w.sent != Some(seq));
    }

    /// The connection was lost: what was not acknowledged goes again.
    pub fn unsend(&self) {
        Self::lock(&self.pods).values_mut().for_each(|w| w.sent = None);
    }

    /// What was sent with `seq` or before and is not acknowledged yet was lost: it goes again.
    pub fn unsend_up_to(&self, seq: u64) {
        Self::lock(&self.pods)
            .values_mut()
            .filter(|w| w.sent.is_some_and(|sent| sent <= seq))
            .for_each(|w| w.sent = None);
    }

    pub fn take_events(&self) -> Vec<NodeEvent> {
        Self::lock(&self.events).drain(..).collect()
    }

    /// Puts events back that could not be sent.
    pub fn return_events(&self, events: Vec<NodeEvent>) {
        let mut waiting = Self::lock(&self.events);
        for event in events.into_iter().rev() {
            if waiting.len() < EVENTS_MAX {
                waiting.push_front(event);
            }
        }
    }
}

/// Pods that the node ends, until their workers are told.
#[derive(Default)]
pub struct Victims {
    all: Mutex<Vec<(String, Verdict)>>,
    pub changed: Notify,
}

impl Victims {
    pub fn add(&self, uid: String, verdict: Verdict) {
        self.all.lock().expect("no holder of the victims' lock panics").push((uid, verdict));
        self.changed.notify_one();
    }

    pub fn take(&self) -> Vec<(String, Verdict)> {
        std::mem::take(&mut *self.all.lock().expect("no holder of the victims' lock panics"))
    }
}

/// Shared by the agent and its pod workers.
pub struct Shared {
    pub options: Options,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    pub clock: SharedClock,
    /// How far the master's clock is ahead of this one, as it last said.
    pub masters_lead: Mutex<SignedDuration>,
    pub ledger: Ledger,
    pub outbox: Outbox,
    pub asks: Asks,
    pub addresses: Mutex<Addresses>,
    /// What pods have been given of this node, by uid.
    pub allocations: Mutex<Allocations>,
    /// Why the pod network could not be started.
    pub network_error: Mutex<String>,
    /// Held while it is decided on a pod that comes.
    pub admitting: Mutex<()>,
    /// Pods have given something of the node back.
    pub room: watch::Sender<()>,
    /// Pods that have to go, and why.
    pub victims: Victims,
    /// Pods that had to go for critical ones, by resource.
    pub preemptions: Mutex<BTreeMap<String, u64>>,
    /// What the node runs short of.
    pub pressure: Mutex<Pressure>,
    /// The begin of the window that rates are taken over.
    pub looks: Looks,
    /// Pods evicted, by signal.
    pub evictions: Mutex<BTreeMap<&'static str, u64>>,
    /// What this board is, as last looked at.
    pub info: Mutex<NodeInfo>,
    /// Ports of the node that lead to pods, by pod uid; told through `host_ports_changed`.
    pub host_ports: Mutex<BTreeMap<String, Vec<crate::net::HostPort>>>,
    pub host_ports_changed: Notify,
    /// The PersistentVolumes that pods have, by pod uid, each with its claim's namespace and name.
    pub volumes_in_use: Mutex<VolumesInUse>,
    /// Images may be in use that were not before, or the other way round.
    pub images_used: Notify,
    /// Where mounts of network file systems are under way.
    pub mounting: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Volumes or pods have changed: folders may have to go.
    pub folders_changed: Notify,
    pub isolation: Isolation,
}

type VolumesInUse = BTreeMap<String, BTreeMap<String, (String, String)>>;

/// What a node runs short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

impl Shared {
    /// The node as labels, taints and selectors see it; without labels when the master has not told them yet.
    pub fn node(&self) -> Node {
        let config = self.config();
        let labels = Some(config.labels).filter(|labels| !labels.is_empty());
        let taints = config.taints.into_iter().map(|(key, value)| Taint {
            key,
            value: Some(value),
            effect: placement::NO_EXECUTE.to_owned(),
            time_added: None,
        });
        let spec = NodeSpec { taints: Some(taints.collect()), ..NodeSpec::default() };
        let metadata = ObjectMeta { name: Some(self.options.node.clone()), labels, ..ObjectMeta::default() };
        Node { metadata, spec: Some(spec), ..Node::default() }
    }

    /// What this node is to a pod that comes, or that wants more.
    pub fn ground(&self, uid: &str) -> admit::Ground {
        let info = self.info();
        let pressure = self.pressure();
        let parse = |(name, text): (&String, &String)| Some((name.clone(), text.parse().ok()?));
        let (used, used_ports) = admit::used_by_others(&self.allocations(), uid);
        let extended = self.config().extended;
        admit::Ground {
            allocatable: info.allocatable.iter().chain(&extended).filter_map(parse).collect(),
            used,
            used_ports,
            node: self.node(),
            apparmor: apparmor::is_enabled(),
            selinux: info::selinux(),
            allowed_unsafe_sysctls: self.options.limits.allowed_unsafe_sysctls.clone(),
            memory_pressure: pressure.memory,
            disk_pressure: pressure.disk,
            pid_pressure: pressure.pid,
        }
    }

    /// What time it is for the master, by whom tokens are judged. As long as it has said nothing, this
    /// board's clock is all there is.
    pub fn masters_time(&self) -> Timestamp {
        self.clock.now() + *self.masters_lead.lock().expect("no holder of the lead's lock panics")
    }

    /// Hears what time it is for the master; whether it is another one than was thought.
    pub fn hear_time(&self, now: Timestamp) -> bool {
        let error = now.duration_since(self.masters_time());
        let mut lead = self.masters_lead.lock().expect("no holder of the lead's lock panics");
        *lead += error;
        error.abs() > TIME_ERROR_MAX
    }

    /// Why the pod network could not be started; empty when it was, or nobody has asked for it yet.
    pub fn network_error(&self) -> String {
        self.network_error.lock().expect("no holder of the network's lock panics").clone()
    }

    /// Notes it; what it was before.
    pub fn set_network_error(&self, error: String) -> String {
        let mut now = self.network_error.lock().expect("no holder of the network's lock panics");
        std::mem::replace(&mut *now, error)
    }

    pub fn allocations(&self) -> MutexGuard<'_, Allocations> {
        self.allocations.lock().expect("no holder of the allocations' lock panics")
    }

    pub fn pressure(&self) -> Pressure {
        *self.pressure.lock().expect("no holder of the pressure's lock panics")
    }

    pub fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().expect("no holder of the addresses' lock panics")
    }

    pub fn volumes_in_use(&self) -> MutexGuard<'_, VolumesInUse> {
        self.volumes_in_use.lock().expect("no holder of the volumes' lock panics")
    }

    pub fn mounting(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.mounting.lock().expect("no holder of the mounts' lock panics")
    }

    pub fn info(&self) -> NodeInfo {
        self.info.lock().expect("no holder of the info's lock panics").clone()
    }

    /// The configuration from the master, as last heard.
    pub fn config(&self) -> NodeConfig {
        let key = ItemKey::new(ItemKind::Config, "", &self.options.node);
        self.ledger.item(&key).and_then(|item| item.read().ok()).unwrap_or_default()
    }

    /// The node's first address; empty while it has none.
    pub fn host_ip(&self) -> String {
        let info = self.info.lock().expect("no holder of the info's lock panics");
        info.addresses
            .iter()
            .find(|(kind, _)| kind == "InternalIP")
            .map(|(_, a)| a.clone())
            .unwrap_or_default()
    }

    pub fn memory_capacity(&self) -> i64 {
        let info = self.info.lock().expect("no holder of the info's lock panics");
        let text = info.capacity.get("memory").map_or("0", String::as_str);
        text.parse().map_or(0, crate::kinds::quantity::Quantity::value)
    }

    /// The limits with none of the node's huge pages but those that are asked for.
    pub fn without_other_pages(&self, mut limits: Resources) -> Resources {
        let info = self.info.lock().expect("no holder of the info's lock panics");
        qos::no_other_pages(&mut limits, &info.capacity);
        limits
    }

    pub fn facts(&self, wanted: &Wanted, ip: Option<Ipv4Addr>) -> Facts {
        let host_ip = self.host_ip();
        let pod_ip = if wanted.host_network() {
            host_ip.clone()
        } else {
            ip.map(|ip| ip.to_string()).unwrap_or_default()
        };
        Facts { node_name: self.options.node.clone(), host_ip, pod_ip, allocatable: self.info().allocatable }
    }

    /// Where a pod's files are.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.options.data_dir.join("pods").join(uid)
    }

    /// Where a pod's logs are.
    pub fn log_dir(&self, wanted: &Wanted) -> PathBuf {
        self.options.pod_logs.join(format!("{}_{}_{}", wanted.namespace, wanted.name, wanted.uid))
    }

    /// Tells of something about a pod, or one container of it.
    pub fn event(
        &self,
        wanted: &Wanted,
        container: Option<&str>,
        warning: bool,
        reason: &str,
        message: String,
    ) {
        let field_path = container.map(|name| {
            let role = wanted.container(name).map(|(role, _)| role);
            use super::record::Role;
            let list = match role {
                Some(Role::Init | Role::Sidecar) => "initContainers",
                Some(Role::Ephemeral) => "ephemeralContainers",
                _ => "containers",
            };
            format!("spec.{list}{{{name}}}")
        });
        self.outbox.event(NodeEvent {
            namespace: wanted.namespace.clone(),
            name: wanted.name.clone(),
            uid: wanted.uid.clone(),
            field_path: field_path.unwrap_or_default(),
            warning,
            reason: reason.to_owned(),
            message,
            time: self.clock.now(),
        });
    }

    /// Tells of something about the node itself.
    pub fn node_event(&self, warning: bool, reason: &str, message: String) {
        self.outbox.event(NodeEvent {
            namespace: String::new(),
            name: self.options.node.clone(),
            // Upstream's kubelet has no uid of its node and says the name.
            uid: self.options.node.clone(),
            field_path: String::new(),
            warning,
            reason: reason.to_owned(),
            message,
            time: self.clock.now(),
        });
    }

    /// Tells the state of a pod.
    pub fn report(&self, wanted: &Wanted, status: &PodStatus, gone: bool) {
        let Ok(text) = serde_json::to_string(status) else { return };
        let Ok(status) = RawValue::from_string(text) else { return };
        self.outbox.report(PodReport {
            namespace: wanted.namespace.clone(),
            name: wanted.name.clone(),
            uid: wanted.uid.clone(),
            status,
            gone,
        });
    }
}
