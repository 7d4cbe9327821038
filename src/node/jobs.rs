//! The actions of a plan, carried out over the runtime, the images, the network and the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::ResourceRequirements, node::v1::RuntimeClass};
use tokio::{sync::watch, time::Instant};

use super::{
    admit, files,
    hooks::{self, Target},
    launch::{self, Prepared, Refusal},
    logs, qos,
    record::{ContainerRecord, Record, Wanted, container_id},
    security,
    shared::Shared,
    volumes::{self, Mounted, Token},
};
use crate::{
    crash,
    mqtt::messages::{Answer, Ask, ItemKind},
    net::{HostPort, Protocol},
    runtime::{self, ContainerSpec, ContainerState, Exit, SandboxSpec},
};

/// Between two tries to take a pod away.
pub const TEARDOWN_RETRY: Duration = Duration::from_secs(2);
/// How long a pod that begins waits for tokens where it has old ones: a board that boots alone starts its pods
/// with these.
const OLD_TOKEN_WAIT: Duration = Duration::from_secs(2);
/// Between two tries to refresh volumes.
pub const REFRESH_RETRY: Duration = Duration::from_mins(1);
/// What a container gets after its preStop hook at least (kubelet's `minimumGracePeriodInSeconds`).
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a killed process before we try again.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// What RuntimeClasses may name: our own, and the names that other nodes give to the like.
const HANDLERS: [&str; 3] = ["sampan", "runc", "crun"];
/// The longest host name that the kernel takes (bytes).
const HOSTNAME_BYTES_MAX: usize = 64;
/// The longest termination message (bytes).
const MESSAGE_BYTES_MAX: usize = 4096;
/// What is taken from the log instead (lines, bytes).
const FALLBACK_LINES: usize = 80;
const FALLBACK_BYTES: usize = 2048;

type Ready = (BTreeMap<String, Mounted>, Vec<Token>);
/// The reason of events, and their messages.
pub type Hindrance = (&'static str, Vec<String>);

/// The end of a job.
pub enum Done {
    /// Volumes and tokens, or the reason and messages of events.
    Setup(Result<Ready, Hindrance>),
    Prepared {
        container: String,
        result: Result<Box<Prepared>, Refusal>,
    },
    Started {
        container: String,
        attempt: u32,
        result: Result<ContainerState, runtime::Error>,
    },
    Hooked {
        container: String,
        attempt: u32,
        result: Result<(), String>,
    },
    Killed {
        container: String,
    },
    GivenUp {
        container: String,
        result: Result<(), runtime::Error>,
    },
    TornDown {
        result: Result<(), String>,
        forever: bool,
    },
    TeardownAgain,
    Refreshed(Result<Vec<Token>, Vec<String>>),
    /// New limits are in force for these containers, or not.
    Resized {
        containers: BTreeMap<String, ResourceRequirements>,
        /// With the limits that they have of the pod.
        limited: BTreeMap<String, ResourceRequirements>,
        result: Result<(), String>,
    },
}

/// Volumes, namespaces, address: volumes beside the rest, for tokens come from the master. `runs`: the
/// pod is there already.
pub async fn set_up(
    shared: &Shared,
    wanted: &Wanted,
    ip: Option<Ipv4Addr>,
    runs: bool,
) -> Result<Ready, Hindrance> {
    if let Some(message) = security::unsupported(wanted) {
        return Err(("FailedCreatePodSandBox", vec![message]));
    }
    let volumes = async {
        let tokens = tokens(shared, wanted, OLD_TOKEN_WAIT).await;
        let mounted = volumes::set_up(shared, wanted, ip, &tokens, runs).await;
        Ok((mounted.map_err(|messages| ("FailedMount", messages))?, tokens))
    };
    // Both to their end: what is half made must not be made a second time beside it.
    let (ready, joined) = tokio::join!(volumes, join_network(shared, wanted, ip));
    ready.and_then(|ready| joined.map(|()| ready))
}

/// The pod's namespaces, and its address in them.
async fn join_network(shared: &Shared, wanted: &Wanted, ip: Option<Ipv4Addr>) -> Result<(), Hindrance> {
    let failed = |e: &dyn std::fmt::Display| {
        ("FailedCreatePodSandBox", vec![format!("Failed to create pod sandbox: {e}")])
    };
    crash::point(crash::DAEMON);
    let spec = sandbox(shared, wanted).map_err(|e| failed(&e))?;
    let netns = shared.runtime.ensure_sandbox(&spec).await.map_err(|e| failed(&e))?;
    if let (Some(ip), false) = (ip, wanted.host_network()) {
        let change = shared.isolation.set(&wanted.uid, Some(ip));
        if !shared.ledger.items(ItemKind::Policy).is_empty() {
            // Nothing of the pod runs before it is isolated.
            shared.isolation.wait(change).await.map_err(|e| failed(&format!("network policies: {e}")))?;
        }
        shared.network.attach(&wanted.uid, &netns, ip).await.map_err(|e| failed(&e))?;
    }
    crash::point(crash::DAEMON);
    Ok(())
}

/// Refuses a pod whose RuntimeClass wants another runtime than there is.
pub fn runtime_handler(shared: &Shared, wanted: &Wanted) -> Result<(), String> {
    let failed = |text: String| Err(format!("Failed to create pod sandbox: {text}"));
    let Some(name) = wanted.spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let class: Option<RuntimeClass> = shared.ledger.object(ItemKind::RuntimeClass, "", name);
    match class.map(|class| class.handler) {
        None => failed(format!(
            "failed to get RuntimeClass {name:?}: runtimeclass.node.k8s.io {name:?} not found"
        )),
        Some(handler) if HANDLERS.contains(&handler.as_str()) => Ok(()),
        Some(handler) => failed(format!(
            "rpc error: code = Unknown desc = failed to get sandbox runtime: no runtime for {handler:?} is configured"
        )),
    }
}

/// What containerd 2 allows in every pod's own network: low ports without a capability, and ping to all groups.
fn sysctls_of_everyone() -> BTreeMap<String, String> {
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn sandbox(shared: &Shared, wanted: &Wanted) -> Result<SandboxSpec, String> {
    let spec = &wanted.spec;
    let config = shared.config();
    let mut sysctls = if wanted.host_network() { BTreeMap::new() } else { sysctls_of_everyone() };
    for sysctl in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        sysctls.insert(admit::sysctl_name(&sysctl.name), sysctl.value.clone());
    }
    let hostname = files::uts_name(wanted, &config.cluster_domain);
    if hostname.len() > HOSTNAME_BYTES_MAX {
        return Err(format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {hostname} is too long ({HOSTNAME_BYTES_MAX} characters is the max, {} characters requested)",
            hostname.len()
        ));
    }
    Ok(SandboxSpec {
        id: wanted.uid.clone(),
        hostname,
        host_network: wanted.host_network(),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_pid: spec.share_process_namespace == Some(true),
        sysctls,
        cgroup: qos::class(spec).cgroup(&wanted.uid),
        resources: shared.without_other_pages(qos::pod(spec, shared.options.pids_max())),
    })
}

/// Brings new limits into force: the pod's group first makes room for both old and new ones.
pub async fn resize(
    shared: &Shared,
    wanted: &Wanted,
    record: &Record,
    containers: &BTreeMap<String, ResourceRequirements>,
) -> Result<(), String> {
    let mut spec = sandbox(shared, wanted)?;
    let after = spec.resources.clone();
    let mut before = wanted.clone();
    let in_force = record.containers.iter().filter_map(|(n, c)| Some((n.clone(), c.resources.clone()?)));
    before.allocate(&in_force.collect());
    if record.resources.is_some() {
        before.spec.resources.clone_from(&record.resources);
    }
    let before = qos::pod(&before.spec, shared.options.pids_max());
    for name in containers.keys() {
        let Some((_, container)) = wanted.container(name) else { continue };
        let id = container_id(&wanted.uid, name, record.container(name).attempts.saturating_sub(1));
        let limits = qos::container(&wanted.spec, container, None);
        if let Some(bytes) = limits.memory_bytes {
            let used = shared.runtime.stats(&id).await.map_err(|e| e.to_string())?.memory_working_set_bytes;
            if u64::try_from(bytes).is_ok_and(|bytes| bytes < used) {
                return Err(format!(
                    "attempting to set container {name:?} memory limit ({bytes}) below current usage ({used})"
                ));
            }
        }
    }
    if let Some(bytes) = after.memory_bytes.filter(|bytes| before.memory_bytes.is_none_or(|b| *bytes < b)) {
        let used = shared.runtime.stats(&spec.id).await.map_err(|e| e.to_string())?.memory_working_set_bytes;
        if u64::try_from(bytes).is_ok_and(|bytes| bytes < used) {
            return Err(format!("attempting to set pod memory limit ({bytes}) below current usage ({used})"));
        }
    }
    spec.resources = qos::roomier(&before, &after);
    shared.runtime.ensure_sandbox(&spec).await.map_err(|e| e.to_string())?;
    for name in containers.keys() {
        let Some((_, container)) = wanted.container(name) else { continue };
        let id = container_id(&wanted.uid, name, record.container(name).attempts.saturating_sub(1));
        let limits = qos::container(&wanted.spec, container, None);
        shared.runtime.update(&id, &limits).await.map_err(|e| e.to_string())?;
    }
    spec.resources = after;
    shared.runtime.ensure_sandbox(&spec).await.map_err(|e| e.to_string())?;
    Ok(())
}

/// The pod's tokens, those that are missing or old asked for anew. One that cannot be had now keeps
/// what is there: after `old_wait` at the latest.
async fn tokens(shared: &Shared, wanted: &Wanted, old_wait: Duration) -> Vec<Token> {
    let mut tokens = volumes::tokens_needed(shared, wanted);
    let now = shared.masters_time();
    for token in &mut tokens {
        if token.refresh_in(now).is_some_and(|left| !left.is_zero()) {
            continue;
        }
        let ask = Ask::Token {
            namespace: wanted.namespace.clone(),
            service_account: wanted.spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            pod: wanted.name.clone(),
            pod_uid: wanted.uid.clone(),
            audiences: token.audiences.clone(),
            expiration_seconds: token.expiration_seconds,
        };
        let answer = match &token.current {
            Some(_) => shared.asks.ask_for(ask, old_wait).await,
            None => shared.asks.ask(ask).await,
        };
        match answer {
            Ok(Answer::Token { token: text, expires }) => {
                (token.current, token.fresh) = (Some((text, expires)), true);
            }
            Ok(Answer::Done) => {}
            Ok(Answer::Refused(error)) | Err(error) => {
                tracing::warn!(pod = wanted.full_name(), error, "asking for a service account token");
            }
        }
    }
    tokens
}

/// Brings volumes up to date, if they are there: while tokens were waited for, the pod may have ended.
pub async fn refresh(
    shared: &Shared,
    wanted: &Wanted,
    ip: Option<Ipv4Addr>,
    volumes: &tokio::sync::Mutex<bool>,
) -> Result<Vec<Token>, Vec<String>> {
    let tokens = tokens(shared, wanted, Duration::MAX).await;
    let there = volumes.lock().await;
    if *there {
        volumes::refresh(shared, wanted, ip, &tokens).await?;
    }
    Ok(tokens)
}

/// Takes the attempt before away and starts this one.
pub async fn start(
    shared: &Shared,
    wanted: &Wanted,
    name: &str,
    attempt: u32,
    spec: &ContainerSpec,
) -> Result<ContainerState, runtime::Error> {
    if let Some(before) = attempt.checked_sub(1) {
        shared.runtime.remove(&container_id(&wanted.uid, name, before)).await?;
    }
    if let Some(old) = attempt.checked_sub(2) {
        // Logs of the attempt before the last are of no use to anybody; a missing one is fine.
        let _ = tokio::fs::remove_file(launch::log_link(shared, wanted, name, old)).await;
        logs::remove(&launch::log_path(shared, wanted, name, old)).await;
        let _ = tokio::fs::remove_file(launch::termination_file(shared, &wanted.uid, name, old)).await;
    }
    shared.runtime.start(spec).await
}

/// An exit of a container that never ran.
pub fn never_ran(message: String, now: Timestamp) -> Exit {
    Exit {
        code: 128,
        signal: None,
        oom_killed: false,
        started_at: None,
        finished_at: now,
        error: Some(message),
    }
}

/// When a container that is to end is killed: after its own grace period, or earlier when its pod is.
pub struct Deadline {
    own: Instant,
    pod: watch::Receiver<Option<Instant>>,
}

impl Deadline {
    /// Begins now. `pod` tells when the whole pod is to be killed, which may still change.
    pub fn new(grace_seconds: i64, pod: watch::Receiver<Option<Instant>>) -> Self {
        let own = Instant::now() + Duration::from_secs(grace_seconds.max(0).unsigned_abs());
        Self { own, pod }
    }

    fn at(&self) -> Instant {
        self.pod.borrow().map_or(self.own, |pod| pod.min(self.own))
    }

    /// Waits until it has come.
    async fn passed(&mut self) {
        loop {
            let at = self.at();
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                Ok(()) = self.pod.changed() => {}
            }
        }
    }

    /// Whatever was said: not before this.
    fn extend(&mut self, until: Instant) {
        if self.at() < until {
            self.own = until;
            self.pod = watch::Sender::new(None).subscribe();
        }
    }
}

/// preStop hook, stop signal, the rest of the grace period, SIGKILL.
pub async fn kill(
    shared: &Arc<Shared>,
    wanted: &Wanted,
    name: &str,
    known: &ContainerRecord,
    pod_ip: &str,
    mut deadline: Deadline,
) {
    let Some(attempt) = known.attempts.checked_sub(1) else { return };
    let id = container_id(&wanted.uid, name, attempt);
    let container = wanted.container(name).map(|(_, c)| c);
    if let Some((container, hook)) =
        container.and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)))
    {
        let target = Target::new(container, id.clone(), pod_ip.to_owned());
        let pod = wanted.full_name();
        let failed = tokio::select! {
            result = hooks::hook(&shared.runtime, &target, (name, &pod), hook) => result.err(),
            () = deadline.passed() => None,
        };
        if let Some(error) = failed {
            tracing::warn!(pod, container = name, error, "a preStop hook failed");
            shared.event(wanted, Some(name), true, "FailedPreStopHook", "PreStopHook failed".to_owned());
        }
        deadline.extend(Instant::now() + GRACE_AFTER_HOOK);
    }
    let signal = stop_signal(shared, wanted, name, &known.image);
    let mut changes = shared.runtime.watch();
    if let Err(error) = shared.runtime.signal(&id, signal).await {
        tracing::warn!(id, %error, "signalling a container");
    }
    let mut killed: Option<Instant> = None;
    loop {
        match shared.runtime.state(&id).await {
            Ok(ContainerState::Exited(_)) | Err(runtime::Error::NotFound(_)) => return,
            _ => {}
        }
        let now = Instant::now();
        if killed.is_none_or(|at| now >= at + KILL_WAIT) && now >= deadline.at() {
            killed = Some(now);
            if let Err(error) = shared.runtime.kill(&id).await {
                tracing::warn!(id, %error, "killing a container");
            }
        }
        loop {
            let next = async {
                match killed {
                    Some(at) => tokio::time::sleep_until(at + KILL_WAIT).await,
                    None => deadline.passed().await,
                }
            };
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(changed) if changed != id => {}
                    _ => break,
                },
                () = next => break,
            }
        }
        if killed.is_some() && changes.is_closed() {
            return;
        }
    }
}

/// The signal that asks a container to end: its own, its image's, or SIGTERM.
fn stop_signal(shared: &Shared, wanted: &Wanted, name: &str, image: &str) -> i32 {
    let own = wanted.container(name).and_then(|(_, c)| c.lifecycle.as_ref()?.stop_signal.clone());
    let of_image = || shared.images.find(image)?.config.config().as_ref()?.stop_signal().clone();
    own.or_else(of_image).and_then(|text| signal_number(&text)).unwrap_or(libc::SIGTERM)
}

/// `SIGUSR1`, `USR1`, `10` or `SIGRTMIN+3` as a number.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    // The C library keeps two real-time signals for itself; the kernel's first is 32.
    let (first, last) = (34, 64);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return Some(first + offset).filter(|n| *n <= last);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<i32>().ok()? };
        return Some(last - offset).filter(|n| *n >= first);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    Some(signal as i32)
}

/// Takes containers, sandbox, network and volumes away; `forever` the files and logs as well. Goes
/// on past failures and tells all of them.
pub async fn tear_down(
    shared: &Shared,
    wanted: &Wanted,
    record: &Record,
    forever: bool,
) -> Result<(), String> {
    let mut failures: Vec<String> = Vec::new();
    let mut note = |result: Result<(), String>| failures.extend(result.err());
    for (name, known) in &record.containers {
        for attempt in known.attempts.saturating_sub(2)..known.attempts {
            let id = container_id(&wanted.uid, name, attempt);
            note(match shared.runtime.remove(&id).await {
                Err(runtime::Error::NotFound(_)) => Ok(()),
                other => other.map_err(|e| e.to_string()),
            });
        }
    }
    crash::point(crash::DAEMON);
    note(shared.network.detach(&wanted.uid).await.map_err(|e| e.to_string()));
    crash::point(crash::DAEMON);
    note(shared.runtime.remove_sandbox(&wanted.uid).await.map_err(|e| e.to_string()));
    crash::point(crash::DAEMON);
    note(volumes::tear_down(shared, &wanted.uid, forever).await);
    if forever {
        for (name, attempt) in linked(wanted, record) {
            let _ = tokio::fs::remove_file(launch::log_link(shared, wanted, name, attempt)).await;
        }
        note(remove_all(&shared.log_dir(wanted)).await);
    }
    crash::point(crash::DAEMON);
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// The attempts that may have a link to their log: also one that was made ready and never begun.
fn linked<'a>(wanted: &'a Wanted, record: &'a Record) -> BTreeSet<(&'a str, u32)> {
    let known = record.containers.iter().map(|(name, known)| (name.as_str(), known.attempts));
    let others = wanted.containers().map(|(_, container)| (container.name.as_str(), 0));
    let attempts = |(name, next): (_, u32)| (next.saturating_sub(2)..=next).map(move |n| (name, n));
    known.chain(others).flat_map(attempts).collect()
}

/// Ends and removes what belongs to no pod that is known: containers of a pod that was taken away
/// while the agent did not run, with everything of it. Its grace period is not known any more.
pub async fn remove_orphan(shared: &Shared, uid: &str, containers: &[String]) -> Result<(), String> {
    let mut changes = shared.runtime.watch();
    for id in containers {
        shared.runtime.kill(id).await.map_err(|e| e.to_string())?;
        let until = Instant::now() + KILL_WAIT;
        while !matches!(
            shared.runtime.state(id).await,
            Ok(ContainerState::Exited(_)) | Err(runtime::Error::NotFound(_))
        ) {
            // A change of any container is reason enough to look again.
            if tokio::time::timeout_at(until, changes.recv()).await.is_err() {
                return Err(format!("container {id} does not end"));
            }
        }
        shared.runtime.remove(id).await.map_err(|e| e.to_string())?;
    }
    shared.network.detach(uid).await.map_err(|e| e.to_string())?;
    shared.runtime.remove_sandbox(uid).await.map_err(|e| e.to_string())?;
    volumes::tear_down(shared, uid, true).await
}

async fn remove_all(dir: &Path) -> Result<(), String> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {e}", dir.display())),
        _ => Ok(()),
    }
}

/// What a container wanted to be known of its end.
pub async fn termination_message(
    shared: &Shared,
    wanted: &Wanted,
    name: &str,
    attempt: u32,
    exit: &Exit,
) -> String {
    let file = launch::termination_file(shared, &wanted.uid, name, attempt);
    let text = tokio::fs::read(&file).await.unwrap_or_default();
    let text = &text[..text.len().min(MESSAGE_BYTES_MAX)];
    if !text.is_empty() {
        return String::from_utf8_lossy(text).into_owned();
    }
    let policy = wanted.container(name).and_then(|(_, c)| c.termination_message_policy.as_deref());
    if policy == Some("FallbackToLogsOnError") && exit.code != 0 {
        let path = launch::log_path(shared, wanted, name, attempt);
        return logs::last_lines(&path, FALLBACK_LINES, FALLBACK_BYTES).await;
    }
    String::new()
}

/// Makes the pod's `hostPort`s lead to it.
pub fn publish_host_ports(shared: &Shared, wanted: &Wanted, ip: Option<Ipv4Addr>) {
    let Some(pod_ip) = ip.filter(|_| !wanted.host_network()) else { return };
    let ports: Vec<HostPort> = wanted
        .containers()
        .flat_map(|(_, c)| c.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: port.host_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)?,
                pod_ip,
                pod_port: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect();
    if ports.is_empty() {
        return;
    }
    shared.host_ports.lock().expect("no holder of the ports' lock panics").insert(wanted.uid.clone(), ports);
    shared.host_ports_changed.notify_one();
}

pub fn withdraw_host_ports(shared: &Shared, uid: &str) {
    let had = shared.host_ports.lock().expect("no holder of the ports' lock panics").remove(uid);
    if had.is_some() {
        shared.host_ports_changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_ready_and_never_begun_has_a_link_too() {
        let pod = serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let wanted = Wanted::new(serde_json::from_value(pod).unwrap());
        let mut record = Record::default();
        record.containers.insert("a".into(), ContainerRecord { attempts: 3, ..ContainerRecord::default() });
        let all = linked(&wanted, &record).into_iter().collect::<Vec<_>>();
        assert_eq!(all, [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0)]);
    }

    #[test]
    fn signals_are_read_as_docker_writes_them() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("10", Some(10)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX", Some(64)),
            ("nonsense", None),
            ("0", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
