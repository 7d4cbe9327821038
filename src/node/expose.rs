//! What a kubelet tells over HTTP, as texts: `metrics`, `metrics/cadvisor`, `metrics/resource`,
//! `stats/summary`, `pods`, `configz`, `healthz`. Asked through the link, never through a port.
//!
//! Sources: `pkg/kubelet/metrics/collectors`, cadvisor's `metrics/prometheus.go`,
//! `k8s.io/kubelet/pkg/apis/stats/v1alpha1`; the Prometheus text format 0.0.4.

use std::{collections::BTreeMap, fmt::Write as _, sync::Mutex};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    shared::Shared,
    usage::{self, ContainerUsage, Interface, NodeUsage, PodUsage},
};
use crate::{clock::rfc3339_seconds, mqtt::messages::ItemKind, runtime::Pressure};

/// Answers one path (with its query); `None` when there is no such place.
pub async fn answer(shared: &Shared, path: &str) -> Option<String> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let quick = query.split('&').any(|p| p == "only_cpu_and_memory=true");
    Some(match path.trim_matches('/') {
        "healthz" | "healthz/ping" => "ok".to_owned(),
        "metrics" => own(shared).await,
        "metrics/resource" => resource(&usage::measure(shared, false).await),
        "metrics/cadvisor" => cadvisor(&usage::measure(shared, true).await),
        "stats/summary" => summary(shared, &usage::measure(shared, !quick).await).to_string(),
        "pods" => pods(shared).to_string(),
        "configz" => configz(shared).to_string(),
        _ => return None,
    })
}

/// Lines of one metric.
struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        // Writing into a String does not fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Self { out, name }
    }

    fn line(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.out.push_str(self.name);
        for (n, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{}{label}=\"{text}\"", if n == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// The agent's own figures.
async fn own(shared: &Shared) -> String {
    let mut out = String::new();
    let containers = shared.runtime.containers().await.unwrap_or_default();
    let count = |state: &str| {
        use crate::runtime::ContainerState as S;
        let is = |s: &S| match s {
            S::Starting => "created",
            S::Running { .. } => "running",
            S::Exited(_) => "exited",
        };
        containers.iter().filter(|(_, s)| is(s) == state).count()
    };
    let mut family = Family::new(
        &mut out,
        "kubelet_running_containers",
        "gauge",
        "[ALPHA] Number of containers currently running",
    );
    for state in ["created", "exited", "running"] {
        family.line(&[("container_state", state)], count(state));
    }
    let sandboxes = shared.runtime.sandboxes().await.unwrap_or_default().len();
    Family::new(
        &mut out,
        "kubelet_running_pods",
        "gauge",
        "[ALPHA] Number of pods that have a running pod sandbox",
    )
    .line(&[], sandboxes);
    Family::new(&mut out, "kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.")
        .line(&[("node", &shared.options.node)], 1);
    let evictions = "[ALPHA] Cumulative number of pod evictions by eviction signal";
    count_by(&mut out, ("kubelet_evictions", evictions), "eviction_signal", &shared.evictions);
    let preemptions = "[ALPHA] Cumulative number of pod preemptions by preemption resource";
    count_by(&mut out, ("kubelet_preemptions", preemptions), "preemption_signal", &shared.preemptions);
    if let Some((cpu, resident)) = own_process() {
        Family::new(
            &mut out,
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
        )
        .line(&[], cpu);
        Family::new(&mut out, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.")
            .line(&[], resident);
    }
    out
}

fn count_by<K: AsRef<str>>(
    out: &mut String,
    (name, help): (&'static str, &str),
    label: &str,
    counts: &Mutex<BTreeMap<K, u64>>,
) {
    let mut family = Family::new(out, name, "counter", help);
    for (key, times) in counts.lock().expect("no holder of a count's lock panics").iter() {
        family.line(&[(label, key.as_ref())], times);
    }
}

/// CPU seconds and resident bytes of this process (`/proc/self/stat`, proc(5)).
fn own_process() -> Option<(f64, u64)> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let words: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    Some(((number(11)? + number(12)?) as f64 / 100.0, number(21)? * 4096))
}

fn resource(node: &NodeUsage) -> String {
    let mut out = String::new();
    let at = node.at.as_millisecond();
    let mut family = |name, kind, help, lines: &mut dyn FnMut(&mut Family<'_>)| {
        lines(&mut Family::new(&mut out, name, kind, help));
    };
    let each = |of: &dyn Fn(&ContainerUsage) -> String, family: &mut Family<'_>| {
        for pod in &node.pods {
            for c in &pod.containers {
                family.line(
                    &[("container", &c.name), ("namespace", &pod.namespace), ("pod", &pod.name)],
                    of(c),
                );
            }
        }
    };
    let each_pod = |of: &dyn Fn(&PodUsage) -> String, family: &mut Family<'_>| {
        for pod in &node.pods {
            family.line(&[("namespace", &pod.namespace), ("pod", &pod.name)], of(pod));
        }
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        &mut |f| each(&|c| format!("{} {at}", seconds(c.stats.cpu_usage_ns)), f),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the container in bytes",
        &mut |f| each(&|c| format!("{} {at}", c.stats.memory_working_set_bytes), f),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "[STABLE] Start time of the container since unix epoch in seconds",
        &mut |f| each(&|c| c.started.map_or(0, Timestamp::as_second).to_string(), f),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        &mut |f| f.line(&[], format!("{} {at}", seconds(node.cpu_ns))),
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the node in bytes",
        &mut |f| f.line(&[], format!("{} {at}", node.memory_bytes)),
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        &mut |f| each_pod(&|p| format!("{} {at}", seconds(p.stats.cpu_usage_ns)), f),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the pod in bytes",
        &mut |f| each_pod(&|p| format!("{} {at}", p.stats.memory_working_set_bytes), f),
    );
    family(
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        &mut |f| {
            f.line(&[], 0);
        },
    );
    out
}

type Of<T> = fn(&T) -> Option<String>;

/// Metrics of containers, in cadvisor's names.
const OF_CONTAINERS: &[(&str, &str, &str, Of<ContainerUsage>)] = &[
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |c| {
        Some(seconds(c.stats.cpu_usage_ns).to_string())
    }),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |c| Some(c.stats.memory_usage_bytes.to_string()),
    ),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |c| {
        Some(c.stats.memory_working_set_bytes.to_string())
    }),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |c| {
        Some(c.stats.memory_rss_bytes.to_string())
    }),
    ("container_threads", "gauge", "Number of threads running inside the container", |c| {
        Some(c.stats.pids.to_string())
    }),
    (
        "container_oom_events_total",
        "counter",
        "Count of out of memory events observed for the container",
        |c| Some(c.stats.oom_kills.to_string()),
    ),
    (
        "container_fs_usage_bytes",
        "gauge",
        "Number of bytes that are consumed by the container on this filesystem.",
        |c| Some((c.layer_bytes + c.log_bytes).to_string()),
    ),
    (
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds.",
        |c| c.started.map(|t| t.as_second().to_string()),
    ),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |c| {
        Some(c.memory_limit.unwrap_or(0).to_string())
    }),
    (
        "container_pressure_cpu_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        |c| c.stats.cpu_pressure.map(|p| p.some_seconds().to_string()),
    ),
    (
        "container_pressure_cpu_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        |c| c.stats.cpu_pressure.map(|p| p.full_seconds().to_string()),
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to memory congestion.",
        |c| c.stats.memory_pressure.map(|p| p.some_seconds().to_string()),
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        |c| c.stats.memory_pressure.map(|p| p.full_seconds().to_string()),
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        "counter",
        "Total time duration tasks in the container have waited due to IO congestion.",
        |c| c.stats.io_pressure.map(|p| p.some_seconds().to_string()),
    ),
    (
        "container_pressure_io_stalled_seconds_total",
        "counter",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        |c| c.stats.io_pressure.map(|p| p.full_seconds().to_string()),
    ),
];

type Count = fn(&Interface) -> u64;

/// Metrics of pods' interfaces.
const OF_INTERFACES: &[(&str, &str, Count)] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |i| i.rx_errors,
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |i| i.tx_errors,
    ),
];

fn cadvisor(node: &NodeUsage) -> String {
    let mut out = String::new();
    for (name, kind, help, of) in OF_CONTAINERS {
        let mut family = Family::new(&mut out, name, kind, help);
        for pod in &node.pods {
            for c in &pod.containers {
                let labels = [
                    ("container", c.name.as_str()),
                    ("id", &c.id),
                    ("image", &c.image),
                    ("namespace", &pod.namespace),
                    ("pod", &pod.name),
                ];
                if let Some(value) = of(c) {
                    family.line(&labels, value);
                }
            }
        }
    }
    for (name, help, of) in OF_INTERFACES {
        let mut family = Family::new(&mut out, name, "counter", help);
        for pod in &node.pods {
            for i in &pod.interfaces {
                let labels =
                    [("interface", i.name.as_str()), ("namespace", &pod.namespace), ("pod", &pod.name)];
                family.line(&labels, of(i));
            }
        }
    }
    Family::new(&mut out, "machine_cpu_cores", "gauge", "Number of logical CPU cores.").line(&[], node.cores);
    Family::new(&mut out, "machine_memory_bytes", "gauge", "Amount of memory installed on the machine.")
        .line(&[], node.memory_bytes + node.memory_available_bytes);
    out
}

fn cpu(time: &str, nanocores: u64, nanos: u64, pressure: Option<Pressure>) -> Value {
    let mut cpu = json!({"time": time, "usageNanoCores": nanocores, "usageCoreNanoSeconds": nanos});
    add_pressure(&mut cpu, pressure);
    cpu
}

fn add_pressure(to: &mut Value, pressure: Option<Pressure>) {
    if let Some(p) = pressure {
        let one = |[avg10, avg60, avg300]: [f64; 3], total: u64| json!({"total": total * 1000, "avg10": avg10, "avg60": avg60, "avg300": avg300});
        to["psi"] = json!({"some": one(p.some, p.some_us), "full": one(p.full, p.full_us)});
    }
}

fn memory(time: &str, stats: &crate::runtime::Stats) -> Value {
    let mut memory = json!({
        "time": time,
        "usageBytes": stats.memory_usage_bytes,
        "workingSetBytes": stats.memory_working_set_bytes,
        "rssBytes": stats.memory_rss_bytes,
    });
    add_pressure(&mut memory, stats.memory_pressure);
    memory
}

fn network(time: &str, interfaces: &[Interface]) -> Value {
    let one = |i: &Interface| json!({"name": i.name, "rxBytes": i.rx_bytes, "rxErrors": i.rx_errors, "txBytes": i.tx_bytes, "txErrors": i.tx_errors});
    let mut network = interfaces.first().map_or_else(|| json!({}), one);
    network["time"] = time.into();
    network["interfaces"] = interfaces.iter().map(one).collect();
    network
}

/// `stats/v1alpha1` Summary, and the window that rates were taken over.
fn summary(shared: &Shared, node: &NodeUsage) -> Value {
    let time = rfc3339_seconds(node.at);
    let when = |t: Option<Timestamp>| t.map(rfc3339_seconds);
    let disk = |used: u64| {
        json!({"time": time, "availableBytes": node.disk.available_bytes, "capacityBytes": node.disk.capacity_bytes,
            "usedBytes": used, "inodesFree": node.disk.inodes_free, "inodes": node.disk.inodes})
    };
    let pods: Vec<Value> = node
        .pods
        .iter()
        .map(|pod| {
            let containers: Vec<Value> = pod
                .containers
                .iter()
                .map(|c| {
                    json!({
                        "name": c.name,
                        "startTime": when(c.started),
                        "cpu": cpu(&time, c.nanocores, c.stats.cpu_usage_ns, c.stats.cpu_pressure),
                        "memory": memory(&time, &c.stats),
                        "rootfs": disk(c.layer_bytes),
                        "logs": disk(c.log_bytes),
                    })
                })
                .collect();
            let written: u64 = pod.containers.iter().map(|c| c.layer_bytes + c.log_bytes).sum();
            json!({
                "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "startTime": when(pod.started),
                "containers": containers,
                "cpu": cpu(&time, pod.nanocores, pod.stats.cpu_usage_ns, pod.stats.cpu_pressure),
                "memory": memory(&time, &pod.stats),
                "network": network(&time, &pod.interfaces),
                "ephemeral-storage": disk(written + pod.volume_bytes),
                "process_stats": {"process_count": pod.stats.pids},
            })
        })
        .collect();
    let mut node_memory = json!({
        "time": time,
        "availableBytes": node.memory_available_bytes,
        "usageBytes": node.memory_bytes,
        "workingSetBytes": node.memory_bytes,
    });
    add_pressure(&mut node_memory, node.pressure[1]);
    let mut io = json!({"time": time});
    add_pressure(&mut io, node.pressure[2]);
    json!({
        "windowMilliseconds": u64::try_from(node.window.as_millis()).unwrap_or(0),
        "node": {
            "nodeName": shared.options.node,
            "startTime": when(node.started),
            "cpu": cpu(&time, node.nanocores, node.cpu_ns, node.pressure[0]),
            "memory": node_memory,
            "io": io,
            "network": network(&time, &node.interfaces),
            "fs": disk(node.disk.used_bytes),
        },
        "pods": pods,
    })
}

/// The pods of this node with their statuses, as a PodList.
fn pods(shared: &Shared) -> Value {
    let one = |item: &std::sync::Arc<crate::mqtt::messages::Item>| -> Option<Value> {
        let mut pod: Value = item.read().ok()?;
        let uid = pod["metadata"]["uid"].as_str()?.to_owned();
        if let Some(record) = shared.ledger.record(&uid) {
            pod["status"] = serde_json::to_value(&record.status).ok()?;
        }
        Some(pod)
    };
    let items: Vec<Value> = shared.ledger.items(ItemKind::Pod).iter().filter_map(one).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// The node's limits under kubelet's names.
fn configz(shared: &Shared) -> Value {
    let limits = &shared.options.limits;
    let amounts = |list: &[(String, crate::kinds::quantity::Quantity)]| -> Value {
        list.iter()
            .map(|(name, q)| (name.clone(), Value::from(q.to_string())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let hard: serde_json::Map<String, Value> = limits
        .eviction_hard
        .iter()
        .map(|t| (t.signal.to_owned(), Value::from(t.least.to_string())))
        .collect();
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "maxPods": limits.max_pods,
        "podPidsLimit": limits.pod_max_pids,
        "kubeReserved": amounts(&limits.kube_reserved),
        "systemReserved": amounts(&limits.system_reserved),
        "evictionHard": hard,
        "evictionPressureTransitionPeriod": format!("{}s", limits.eviction_pressure_transition_period),
        "allowedUnsafeSysctls": limits.allowed_unsafe_sysctls,
        "containerLogMaxSize": limits.container_log_max_size.to_string(),
        "containerLogMaxFiles": limits.container_log_max_files,
        "clusterDomain": shared.config().cluster_domain,
        "clusterDNS": [shared.config().cluster_dns],
    }})
}
