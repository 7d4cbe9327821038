//! The agent against a master of this test's making: fake runtime, fake network, bus in memory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::core::v1::PodStatus;

use super::{Agent, Ground, Link, Options};
use crate::{
    clock::{Clock, SystemClock},
    ids::Generation,
    image::fake::AnyImages,
    mqtt::{
        Bus, Event, Events, Priority,
        memory::MemoryBroker,
        messages::{self, Desired, Down, Item, ItemKey, ItemKind, NodeConfig, NodeEvent, PodReport, Up},
        stream::{Incoming, LogOptions, Mux, Outcome, Place, Request, STDOUT, Stream},
        topics::{self, Leaf},
    },
    net::fake::FakeNetwork,
    runtime::{
        Runtime as _,
        fake::{FakeRuntime, Script},
    },
    tasks::CancellationToken,
};

/// The machine's clock, set forwards or back.
#[derive(Default)]
struct Skewed(Mutex<jiff::SignedDuration>);

impl Skewed {
    fn advance(&self, by: jiff::SignedDuration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for Skewed {
    fn now(&self) -> jiff::Timestamp {
        SystemClock.now() + *self.0.lock().unwrap()
    }
}

/// A node and the master's end of its line.
struct World {
    dir: tempfile::TempDir,
    broker: MemoryBroker,
    runtime: Arc<FakeRuntime>,
    network: Arc<FakeNetwork>,
    clock: Arc<Skewed>,
    bus: Arc<dyn Bus>,
    events: Events,
    items: std::collections::BTreeMap<ItemKey, Item>,
    generation: u64,
    told: Vec<NodeEvent>,
    /// Answers hellos and statuses; off, the master is deaf.
    answering: bool,
    hellos: usize,
    running: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl World {
    async fn new() -> Self {
        let broker = MemoryBroker::new();
        let (bus, events) = broker.connect("master", topics::master_filters("c"), None);
        let clock = Arc::new(Skewed::default());
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            broker,
            runtime: Arc::new(FakeRuntime::new(clock.clone())),
            network: Arc::new(FakeNetwork::new()),
            clock,
            bus,
            events,
            items: std::collections::BTreeMap::new(),
            generation: 0,
            told: Vec::new(),
            answering: true,
            hellos: 0,
            running: None,
        };
        let config = Self::config();
        world.set(ItemKind::Config, "", "n", &serde_json::to_value(config).unwrap());
        world.start();
        world
    }

    fn config() -> NodeConfig {
        NodeConfig {
            pod_cidr: "10.42.1.0/24".into(),
            cluster_dns: "10.43.0.10".into(),
            ..NodeConfig::default()
        }
    }

    fn start(&mut self) {
        let link = Link::new("c", "n", "h".to_owned()).unwrap();
        let mut options = Options::new("c", "n", self.dir.path().join("data"), self.dir.path().join("log"));
        options.beat = Duration::from_secs(5);
        // The disk and the memory of the machine that runs this are nobody's business.
        options.limits.eviction_hard.clear();
        let (bus, events) = self.broker.connect(&link.client_id, link.filters, Some(link.will));
        let agent = Agent::new(
            options,
            (link.session, link.hardware),
            (bus, events),
            Ground {
                runtime: self.runtime.clone(),
                images: Arc::new(AnyImages),
                network: self.network.clone(),
                clock: self.clock.clone(),
            },
            None,
        )
        .unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { agent.run(token).await.unwrap() });
        self.running = Some((stop, task));
    }

    async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    fn set(&mut self, kind: ItemKind, namespace: &str, name: &str, body: &serde_json::Value) {
        let item = Item::new(ItemKey::new(kind, namespace, name), body.to_string());
        self.items.insert(item.key.clone(), item);
        self.generation += 1;
    }

    fn pod(&mut self, name: &str, spec: &str) {
        let spec: serde_json::Value = serde_json::from_str(spec).unwrap();
        let pod = serde_json::json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("u-{name}")}, "spec": spec,
        });
        self.set(ItemKind::Pod, "ns", name, &pod);
    }

    fn delete(&mut self, name: &str, grace: i64) {
        let key = ItemKey::new(ItemKind::Pod, "ns", name);
        let mut pod: serde_json::Value = self.items[&key].read().unwrap();
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        self.set(ItemKind::Pod, "ns", name, &pod);
    }

    async fn say(&self, message: &Down) {
        let topic = topics::down("c", "n", Leaf::Control);
        let payload = messages::encode(message).unwrap();
        self.bus.publish(&topic, payload, Priority::Control).await.unwrap();
    }

    /// Sends the whole set; the node takes what differs.
    async fn push(&self) {
        let digest =
            messages::SetDigest::of(self.items.iter().map(|(k, i)| (k, i.hash.as_str()))).to_string();
        self.say(&Down::Desired(Desired {
            generation: Generation(self.generation),
            put: self.items.values().cloned().collect(),
            delete: vec![],
            digest: Some(digest),
            ..Desired::default()
        }))
        .await;
    }

    /// Serves the node once; the reports that came with that.
    async fn serve(&mut self) -> Vec<(PodReport, PodStatus)> {
        let Some(Event::Message { topic, payload }) = self.events.recv().await else { return Vec::new() };
        if topics::parse_up(&topic).unwrap().1 != Leaf::Control || !self.answering {
            return Vec::new();
        }
        match messages::decode(&payload).unwrap() {
            Up::Hello(hello) => {
                self.hellos += 1;
                let have = hello.hashes.unwrap_or_default();
                let delete: Vec<_> =
                    have.into_iter().map(|(k, _)| k).filter(|k| !self.items.contains_key(k)).collect();
                let digest =
                    messages::SetDigest::of(self.items.iter().map(|(k, i)| (k, i.hash.as_str()))).to_string();
                self.say(&Down::Desired(Desired {
                    generation: Generation(self.generation.max(hello.generation.0)),
                    put: self.items.values().cloned().collect(),
                    delete,
                    digest: Some(digest),
                    ..Desired::default()
                }))
                .await;
            }
            Up::Status(status) => {
                self.say(&Down::StatusAck { seq: status.seq }).await;
                let read = |report: PodReport| {
                    let status = serde_json::from_str(report.status.get()).unwrap();
                    (report, status)
                };
                return status.pods.into_iter().map(read).collect();
            }
            Up::Events(events) => {
                self.told.extend(events);
            }
            _ => {}
        }
        Vec::new()
    }

    /// Serves the node until a report for which `wanted` holds has come.
    async fn until(&mut self, wanted: impl Fn(&PodReport, &PodStatus) -> bool) -> PodStatus {
        let wait = async {
            loop {
                let reports = self.serve().await;
                if let Some((_, status)) = reports.into_iter().find(|(report, status)| wanted(report, status))
                {
                    return status;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the state never came")
    }

    /// Serves the node until it has told of something for this reason.
    async fn until_told(&mut self, reason: &str) -> NodeEvent {
        let wait = async {
            loop {
                if let Some(event) = self.told.iter().find(|event| event.reason == reason) {
                    return event.clone();
                }
                self.serve().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it was never told")
    }

    /// Serves the node until it has told this of a pod, or of a part of it.
    async fn until_said(&mut self, pod: &str, part: &str, text: &str) {
        let wait = async {
            let said = |e: &NodeEvent| e.name == pod && e.field_path == part && e.message.starts_with(text);
            while !self.told.iter().any(said) {
                self.serve().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it was never said");
    }

    /// Makes the pod's worker look again.
    async fn nudge(&mut self, name: &str) {
        let key = ItemKey::new(ItemKind::Pod, "ns", name);
        let mut pod: serde_json::Value = self.items[&key].read().unwrap();
        pod["metadata"]["annotations"]["nudged"] = self.generation.to_string().into();
        self.set(ItemKind::Pod, "ns", name, &pod);
        self.push().await;
    }

    fn starts(&self) -> Vec<String> {
        self.runtime.calls().into_iter().filter(|c| c.starts_with("start ")).collect()
    }
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

const SIMPLE: &str = r#"{"containers": [{"name": "a", "image": "x:1"}], "terminationGracePeriodSeconds": 1}"#;

#[tokio::test]
async fn a_pod_starts_is_adopted_and_goes() {
    let mut world = World::new().await;
    world.pod("p", SIMPLE);
    let status = world.until(|_, s| is_ready(s)).await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.pod_ip.unwrap().starts_with("10.42.1."));
    assert!(world.dir.path().join("data/pods/u-p/etc-hosts").exists());

    world.stop().await;
    world.answering = false;
    world.start();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.starts(), ["start u-p_a_0"], "the container was to be adopted");

    world.answering = true;
    world.delete("p", 1);
    world.push().await;
    world.until(|report, _| report.gone).await;
    assert!(world.runtime.calls().contains(&"signal u-p_a_0 15".to_owned()));
    assert!(world.runtime.calls().contains(&"remove_sandbox u-p".to_owned()));
    assert!(!world.dir.path().join("data/pods/u-p").exists());
    let of_pods = world.told.iter().filter(|e| !e.namespace.is_empty());
    let reasons: Vec<_> = of_pods.map(|e| e.reason.as_str()).collect();
    assert_eq!(reasons[..3], ["Pulled", "Created", "Started"]);
    world.stop().await;
}

#[tokio::test]
async fn a_resize_comes_into_force_without_a_restart() {
    let asks = |cpu: &str| {
        format!(
            r#"{{"containers": [{{"name": "a", "image": "x", "resources": {{"requests": {{"cpu": "{cpu}"}}}}}}]}}"#
        )
    };
    let cpu = |s: &PodStatus| {
        let status = s.container_statuses.as_ref()?.first()?;
        Some((status.resources.as_ref()?.requests.as_ref()?.get("cpu")?.0.clone(), status.restart_count))
    };
    let condition = |s: &PodStatus, kind: &str| {
        s.conditions.iter().flatten().find(|c| c.type_ == kind).and_then(|c| c.reason.clone())
    };
    let mut world = World::new().await;
    world.pod("p", &asks("100m"));
    world.until(|_, s| is_ready(s)).await;
    world.pod("p", &asks("200m"));
    world.push().await;
    let status = world.until(|_, s| cpu(s) == Some(("200m".to_owned(), 0))).await;
    assert!(status.conditions.iter().flatten().all(|c| c.type_ != "PodResizePending"));
    assert!(world.runtime.calls().contains(&"update u-p_a_0".to_owned()));
    world.pod("p", &asks("10000"));
    world.push().await;
    let status = world.until(|_, s| condition(s, "PodResizePending").as_deref() == Some("Infeasible")).await;
    assert_eq!(cpu(&status), Some(("200m".to_owned(), 0)));
    let reasons: Vec<_> = world.told.iter().map(|e| e.reason.as_str()).collect();
    assert!(reasons.contains(&"ResizeStarted") && reasons.contains(&"ResizeCompleted"), "{reasons:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_pods_own_resources_are_resized_and_those_who_share_them() {
    let asks = |cpu: &str| {
        format!(
            r#"{{"resources": {{"requests": {{"cpu": "100m"}}, "limits": {{"cpu": "{cpu}"}}}}, "containers": [
            {{"name": "a", "image": "x"}},
            {{"name": "b", "image": "x", "resources": {{"limits": {{"cpu": "50m"}}}}}},
            {{"name": "c", "image": "x", "resizePolicy": [{{"resourceName": "cpu", "restartPolicy": "RestartContainer"}}]}}]}}"#
        )
    };
    let told = |s: &PodStatus| {
        let limit = s.resources.as_ref()?.limits.as_ref()?.get("cpu")?.0.clone();
        let restarts = s.container_statuses.as_ref()?.iter().map(|c| c.restart_count).collect::<Vec<_>>();
        Some((limit, restarts))
    };
    let mut world = World::new().await;
    world.pod("p", &asks("200m"));
    let status = world.until(|_, s| is_ready(s)).await;
    assert_eq!(told(&status), Some(("200m".to_owned(), vec![0, 0, 0])));
    world.pod("p", &asks("300m"));
    world.push().await;
    world.until(|_, s| is_ready(s) && told(s) == Some(("300m".to_owned(), vec![0, 0, 1]))).await;
    let calls = world.runtime.calls();
    assert!(calls.contains(&"update u-p_a_0".to_owned()), "{calls:?}");
    assert!(!calls.iter().any(|call| call.starts_with("update u-p_b")), "{calls:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_does_not_fit_fails_at_once() {
    let mut world = World::new().await;
    world.pod(
        "p",
        r#"{"containers": [{"name": "a", "image": "x", "resources": {"requests": {"cpu": "10000"}}}]}"#,
    );
    let status = world.until(|_, s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(status.message.unwrap().starts_with("Pod was rejected: Node didn't have enough resource: cpu"));
    assert!(world.starts().is_empty());
    world.stop().await;
}

/// Thousandths of the processors of the machine that runs this, which is the node's.
fn all_cpus() -> usize {
    std::thread::available_parallelism().unwrap().get() * 1000
}

/// A pod that asks for so many thousandths of a processor.
fn asks(milli: usize, more: &str) -> String {
    format!(
        r#"{{{more}"terminationGracePeriodSeconds": 1, "containers": [{{"name": "a", "image": "x", "resources": {{"requests": {{"cpu": "{milli}m"}}}}}}]}}"#
    )
}

const CRITICAL: &str = r#""priority": 2000000000, "#;

fn failed_for(status: &PodStatus) -> (Option<&str>, Option<&str>) {
    let failed = status.phase.as_deref() == Some("Failed");
    (status.reason.as_deref().filter(|_| failed), status.message.as_deref())
}

#[tokio::test]
async fn a_critical_pod_has_lesser_ones_go() {
    let mut world = World::new().await;
    world.pod("idle", SIMPLE);
    world.until(|r, s| r.name == "idle" && is_ready(s)).await;
    world.pod("large", &asks(all_cpus() - 100, ""));
    world.push().await;
    world.until(|r, s| r.name == "large" && is_ready(s)).await;
    world.pod("needed", &asks(500, CRITICAL));
    world.push().await;
    let status = world.until(|r, s| r.name == "large" && failed_for(s).0 == Some("Preempting")).await;
    assert_eq!(failed_for(&status).1, Some("Preempted in order to admit critical pod"));
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(
        (condition.reason.as_deref(), condition.message.as_deref()),
        (Some("TerminationByKubelet"), Some("Pod was preempted by Kubelet to accommodate a critical pod."))
    );
    world.until(|r, s| r.name == "needed" && is_ready(s)).await;
    let calls = world.runtime.calls();
    let at = |what: &str| calls.iter().position(|call| call == what);
    assert!(at("signal u-large_a_0 15").unwrap() < at("start u-needed_a_0").unwrap(), "{calls:?}");
    assert_eq!(at("signal u-idle_a_0 15"), None, "it has nothing that is needed");
    let told: Vec<_> = world.told.iter().filter(|event| event.reason == "Preempting").collect();
    assert_eq!((told.len(), told[0].name.as_str(), told[0].warning), (1, "large", true));

    // Nobody can make room for a second one of this size.
    world.pod("too-large", &asks(all_cpus(), CRITICAL));
    world.push().await;
    let status = world
        .until(|r, s| r.name == "too-large" && failed_for(s).0 == Some("UnexpectedAdmissionError"))
        .await;
    assert!(
        failed_for(&status).1.unwrap().contains(
            "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 500), ]"
        ),
        "{status:?}"
    );
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_does_not_go_when_it_is_told_to_is_not_waited_for() {
    let mut world = World::new().await;
    let script = Script { ignores_signals: true, kill_delay: Duration::from_hours(1), ..Script::default() };
    world.runtime.script("u-stuck", script);
    world.pod("stuck", &asks(all_cpus(), ""));
    world.until(|_, s| is_ready(s)).await;
    world.pod("needed", &asks(500, CRITICAL));
    world.push().await;
    world.until_told("Killing").await;
    assert!(!world.starts().contains(&"start u-needed_a_0".to_owned()));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    world.until(|r, s| r.name == "needed" && is_ready(s)).await;
    let late = world.until_told("ExceededGracePeriod").await;
    assert_eq!(
        (late.name.as_str(), late.message.as_str()),
        ("stuck", "Container runtime did not terminate the pod within specified grace period.")
    );
    world.stop().await;
}

#[tokio::test]
async fn what_a_pod_has_counts_until_its_smaller_size_is_in_force() {
    let resized = |s: &PodStatus, milli: &str| {
        let statuses = s.container_statuses.as_ref();
        let requests = statuses.and_then(|c| c[0].resources.as_ref()?.requests.clone()).unwrap_or_default();
        requests.get("cpu").is_some_and(|cpu| cpu.0 == milli)
    };
    let condition = |s: &PodStatus, kind: &str, reason: &str| {
        s.conditions.iter().flatten().any(|c| c.type_ == kind && c.reason.as_deref() == Some(reason))
    };
    let mut world = World::new().await;
    let large = all_cpus() - 100;
    world.pod("p", &asks(large, ""));
    world.until(|_, s| is_ready(s)).await;
    world.runtime.script("u-p", Script { update_failure: Some("not now".to_owned()), ..Script::default() });
    world.pod("p", &asks(100, ""));
    world.push().await;
    world.until(|_, s| condition(s, "PodResizeInProgress", "Error")).await;
    world.pod("q", &asks(500, ""));
    world.push().await;
    let status = world.until(|r, s| r.name == "q" && failed_for(s).0 == Some("OutOfcpu")).await;
    assert_eq!(
        failed_for(&status).1.unwrap(),
        format!(
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: {large}, capacity: {}",
            all_cpus()
        )
    );
    world.runtime.script("u-p", Script::default());
    world.pod("p", &asks(200, ""));
    world.push().await;
    world.until(|r, s| r.name == "p" && resized(s, "200m")).await;
    world.pod("r", &asks(500, ""));
    world.push().await;
    world.until(|r, s| r.name == "r" && is_ready(s)).await;
    // What it wants more is there as soon as the other is gone.
    let more = all_cpus() - 100;
    world.pod("r", &asks(more, ""));
    world.push().await;
    world.until(|r, s| r.name == "r" && condition(s, "PodResizePending", "Deferred")).await;
    world.delete("p", 1);
    world.push().await;
    world.until(|r, s| r.name == "r" && resized(s, &format!("{more}m"))).await;
    world.stop().await;
}

#[tokio::test]
async fn who_was_here_before_a_restart_is_counted_before_anybody_is_let_in() {
    let mut world = World::new().await;
    world.pod("z", &asks(all_cpus(), ""));
    world.until(|_, s| is_ready(s)).await;
    world.stop().await;
    // It comes with the others when the agent begins, and its name is the first.
    world.pod("a", &asks(100, ""));
    let ledger = super::ledger::Ledger::open(&world.dir.path().join("data/ledger.db")).unwrap();
    ledger
        .apply(Generation(world.generation), world.items.values().cloned().collect(), vec![])
        .await
        .unwrap();
    drop(ledger);
    world.start();
    let status = world.until(|r, s| r.name == "a" && s.phase.as_deref() != Some("Pending")).await;
    assert_eq!(failed_for(&status).0, Some("OutOfcpu"));
    world.stop().await;
}

#[tokio::test]
async fn pods_wait_for_a_network_that_could_not_be_started() {
    let mut world = World::new().await;
    world.stop().await;
    world.network.set_failure(Some("no such module".to_owned()));
    world.start();
    world.pod("p", SIMPLE);
    world.pod("host", r#"{"hostNetwork": true, "containers": [{"name": "a", "image": "x:1"}]}"#);
    world.until(|r, s| r.name == "host" && is_ready(s)).await;
    let event = world.until_told("NetworkNotReady").await;
    assert_eq!((event.name.as_str(), event.warning), ("p", true));
    assert!(event.message.starts_with("network is not ready: ") && event.message.contains("no such module"));
    assert_eq!(world.starts(), ["start u-host_a_0"]);
    // It is tried again at a beat.
    world.network.set_failure(None);
    world.until(|r, s| r.name == "p" && is_ready(s)).await;
    world.stop().await;
}

#[tokio::test]
async fn a_node_tells_that_it_is_closed_and_opened() {
    let mut world = World::new().await;
    for (unschedulable, reason) in [(true, "NodeNotSchedulable"), (false, "NodeSchedulable")] {
        let config = NodeConfig { unschedulable, ..World::config() };
        world.set(ItemKind::Config, "", "n", &serde_json::to_value(config).unwrap());
        world.push().await;
        let event = world.until_told(reason).await;
        assert_eq!((event.name.as_str(), event.warning), ("n", false));
        assert_eq!(event.message, format!("Node n status is now: {reason}"));
    }
    world.stop().await;
}

#[tokio::test]
async fn a_probe_that_is_led_elsewhere_succeeds_with_a_warning() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut guest, _)) = server.accept().await {
            let _ = guest.read(&mut [0; 1024]).await;
            let answer = b"HTTP/1.1 302 Found\r\nlocation: http://0.0.0.0/\r\ncontent-length: 5\r\n\r\nFound";
            let _ = guest.write_all(answer).await;
        }
    });
    let mut world = World::new().await;
    world.pod(
        "p",
        &format!(
            r#"{{"containers": [{{"name": "a", "image": "x", "readinessProbe": {{"httpGet": {{"host": "127.0.0.1", "port": {port}}}}}}}]}}"#
        ),
    );
    world.until(|_, s| is_ready(s)).await;
    let event = world.until_told("ProbeWarning").await;
    assert_eq!(
        (event.warning, event.message.as_str()),
        (true, "Readiness probe warning: Probe terminated redirects, Response body: Found")
    );
    world.stop().await;
}

#[tokio::test]
async fn a_debugger_sees_the_processes_of_its_target() {
    let mut world = World::new().await;
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    let mut spec: serde_json::Value = serde_json::from_str(SIMPLE).unwrap();
    spec["ephemeralContainers"] =
        serde_json::json!([{"name": "debug", "image": "x", "targetContainerName": "a"}]);
    world.pod("p", &spec.to_string());
    world.push().await;
    world
        .until(|_, s| {
            let debugger = s.ephemeral_container_statuses.as_ref().and_then(|c| c[0].state.clone());
            debugger.is_some_and(|s| s.running.is_some())
        })
        .await;
    let containers = world.runtime.containers().await.unwrap();
    let debugger = containers.iter().find(|(spec, _)| spec.id == "u-p_debug_0").unwrap();
    assert_eq!(debugger.0.processes_of.as_deref(), Some("u-p_a_0"));
    world.stop().await;
}

#[tokio::test]
async fn a_stubborn_container_is_killed_after_its_grace_period() {
    let mut world = World::new().await;
    world.runtime.script("", Script { ignores_signals: true, ..Script::default() });
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    world.delete("p", 1);
    world.push().await;
    let status = world.until(|report, _| report.gone).await;
    let state = status.container_statuses.unwrap().remove(0).state.unwrap();
    assert_eq!(state.terminated.unwrap().exit_code, 137);
    world.stop().await;
}

#[tokio::test]
async fn a_shorter_grace_period_hurries_what_is_ending() {
    let mut world = World::new().await;
    world.runtime.script("", Script { ignores_signals: true, ..Script::default() });
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    world.delete("p", 600);
    world.push().await;
    world.until_told("Killing").await;
    world.delete("p", 1);
    world.push().await;
    world.until(|report, _| report.gone).await;
    assert!(world.runtime.calls().contains(&"kill u-p_a_0".to_owned()));
    world.stop().await;
}

#[tokio::test]
async fn a_container_ends_by_the_signal_it_asks_for() {
    let mut world = World::new().await;
    let spec = r#"{"os": {"name": "linux"}, "containers": [
        {"name": "a", "image": "x", "lifecycle": {"stopSignal": "SIGUSR1"}}, {"name": "b", "image": "x"}]}"#;
    world.pod("p", spec);
    world.until(|_, s| is_ready(s)).await;
    world.delete("p", 30);
    world.push().await;
    world.until(|report, _| report.gone).await;
    let calls = world.runtime.calls();
    for call in ["signal u-p_a_0 10", "signal u-p_b_0 15"] {
        assert!(calls.contains(&call.to_owned()), "{calls:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn an_exit_code_begins_the_whole_pod_anew() {
    let mut world = World::new().await;
    let rules = r#"[{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]"#;
    world.runtime.script("_i_", Script { exit: Some((Duration::ZERO, 0)), ..Script::default() });
    world.pod(
        "p",
        &format!(
            r#"{{"restartPolicy": "Never", "initContainers": [{{"name": "i", "image": "x"}}], "containers": [
            {{"name": "a", "image": "x", "restartPolicyRules": {rules}}}, {{"name": "b", "image": "x"}}]}}"#
        ),
    );
    world.until(|_, s| is_ready(s)).await;
    world.runtime.exit("u-p_a_0", 42);
    let counts = |s: &PodStatus| -> Vec<i32> {
        let all = s.init_container_statuses.iter().chain(&s.container_statuses).flatten();
        all.map(|c| c.restart_count).collect()
    };
    let status = world.until(|_, s| is_ready(s) && counts(s) == [1, 1, 1]).await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let starts = world.starts();
    assert_eq!(starts[3], "start u-p_i_1", "{starts:?}");
    assert!(world.runtime.calls().contains(&"signal u-p_b_0 15".to_owned()), "the other one ends as well");
    // Any other code is an end.
    world.runtime.exit("u-p_a_1", 1);
    world.runtime.exit("u-p_b_1", 0);
    world.until(|_, s| s.phase.as_deref() == Some("Failed")).await;
    world.stop().await;
}

#[tokio::test]
async fn a_rule_restarts_one_container_of_a_pod_that_never_restarts() {
    let mut world = World::new().await;
    let rules = r#"[{"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 1]}}]"#;
    world.pod(
        "p",
        &format!(
            r#"{{"restartPolicy": "Never", "containers": [
            {{"name": "a", "image": "x", "restartPolicyRules": {rules}}}, {{"name": "b", "image": "x"}}]}}"#
        ),
    );
    world.until(|_, s| is_ready(s)).await;
    world.runtime.exit("u-p_a_0", 7);
    world.until(|_, s| is_ready(s) && s.container_statuses.as_ref().unwrap()[0].restart_count == 1).await;
    let mut starts = world.starts();
    starts.sort();
    assert_eq!(starts, ["start u-p_a_0", "start u-p_a_1", "start u-p_b_0"]);
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_names_its_node_is_refused_a_port_that_is_taken() {
    let mut world = World::new().await;
    let spec =
        r#"{"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80, "hostPort": 80}]}]}"#;
    world.pod("p", spec);
    world.until(|_, s| is_ready(s)).await;
    world.pod("q", spec);
    world.push().await;
    let status = world.until(|report, s| report.name == "q" && s.reason.is_some()).await;
    assert_eq!(status.reason.as_deref(), Some("NodePorts"));
    // Who has gone has given it back.
    world.delete("p", 1);
    world.push().await;
    world.until(|report, _| report.name == "p" && report.gone).await;
    world.pod("r", spec);
    world.push().await;
    world.until(|report, s| report.name == "r" && is_ready(s)).await;
    world.stop().await;
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_told() {
    let mut world = World::new().await;
    let class = |handler: &str| serde_json::json!({"metadata": {"name": "special"}, "handler": handler});
    world.set(ItemKind::RuntimeClass, "", "special", &class("kata"));
    world.pod("p", r#"{"runtimeClassName": "special", "containers": [{"name": "a", "image": "x"}]}"#);
    world.push().await;
    let told = |world: &World| {
        let event = world.told.iter().find(|event| event.reason == "FailedCreatePodSandBox");
        event.map(|event| event.message.clone())
    };
    while told(&world).is_none() {
        // Anything that the node says brings the events along.
        world.pod("other", SIMPLE);
        world.push().await;
        world.until(|_, _| true).await;
        world.clock.advance(jiff::SignedDuration::from_secs(1));
    }
    assert_eq!(
        told(&world).unwrap(),
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get sandbox runtime: no runtime for \"kata\" is configured"
    );
    world.set(ItemKind::RuntimeClass, "", "special", &class("runc"));
    world.push().await;
    world.until(|report, s| report.name == "p" && is_ready(s)).await;
    world.stop().await;
}

#[tokio::test]
async fn a_clock_that_jumps_ten_years_stops_no_pod() {
    let mut world = World::new().await;
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    let years = jiff::SignedDuration::from_hours(10 * 365 * 24);
    for (n, jump) in [years, -years, -years, years].into_iter().enumerate() {
        let n = i32::try_from(n).unwrap();
        world.clock.advance(jump);
        world.runtime.exit(&format!("u-p_a_{n}"), 1);
        let restarted = |s: &PodStatus| {
            let of = s.container_statuses.as_ref().map(|c| (c[0].restart_count, c[0].ready));
            of == Some((n + 1, true))
        };
        // The pause that a crash loop makes is over by the clock alone.
        while !restarted(&world.until(|report, s| report.name == "p" && (restarted(s) || waits(s))).await) {
            world.clock.advance(jiff::SignedDuration::from_mins(6));
            world.nudge("p").await;
        }
    }
    world.delete("p", 30);
    world.push().await;
    world.until(|report, _| report.gone).await;
    world.stop().await;
}

fn waits(status: &PodStatus) -> bool {
    let state = status.container_statuses.as_ref().and_then(|c| c[0].state.as_ref());
    state.is_some_and(|state| state.waiting.is_some())
}

#[tokio::test]
async fn a_crash_is_restarted_once_and_then_waits() {
    let mut world = World::new().await;
    world.runtime.script("", Script { exit: Some((Duration::from_millis(20), 3)), ..Script::default() });
    world.pod("p", SIMPLE);
    let status = world
        .until(|_, s| {
            let state = s.container_statuses.as_ref().and_then(|c| c[0].state.clone()?.waiting);
            state.is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff"))
        })
        .await;
    let container = &status.container_statuses.unwrap()[0];
    assert_eq!(container.restart_count, 1);
    assert_eq!(container.last_state.clone().unwrap().terminated.unwrap().exit_code, 3);
    assert_eq!(world.starts().len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn a_job_runs_once_also_over_a_restart_of_the_board() {
    let mut world = World::new().await;
    world.runtime.script("", Script { exit: Some((Duration::from_millis(10), 0)), ..Script::default() });
    world.pod("p", r#"{"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}"#);
    let status = world.until(|_, s| s.phase.as_deref() == Some("Succeeded")).await;
    let state = status.container_statuses.unwrap().remove(0).state.unwrap();
    assert_eq!(state.terminated.unwrap().reason.as_deref(), Some("Completed"));
    world.stop().await;
    // The board was switched off: the runtime's state is gone.
    world.runtime = Arc::new(FakeRuntime::new(Arc::new(SystemClock)));
    world.start();
    world.until(|_, s| s.phase.as_deref() == Some("Succeeded")).await;
    assert!(world.starts().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_cold_boot_without_a_master_restores_the_pods() {
    let mut world = World::new().await;
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    world.stop().await;
    world.answering = false;
    world.runtime = Arc::new(FakeRuntime::new(Arc::new(SystemClock)));
    world.start();
    let started = async {
        while world.starts().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), started).await.expect("the pod was not restored");
    assert_eq!(world.starts(), ["start u-p_a_1"]);
    world.stop().await;
    world.answering = true;
    world.start();
    let status = world.until(|_, s| is_ready(s)).await;
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 1);
    world.stop().await;
}

#[tokio::test]
async fn missing_images_and_secrets_are_told_as_kubelet_does() {
    let mut world = World::new().await;
    world.pod(
        "p",
        r#"{"containers": [{"name": "a", "image": "missing"},
        {"name": "b", "image": "x", "envFrom": [{"secretRef": {"name": "s"}}]}]}"#,
    );
    let reason = |s: &PodStatus, at: usize| {
        s.container_statuses.as_ref().and_then(|c| c[at].state.clone()?.waiting?.reason).unwrap_or_default()
    };
    world.until(|_, s| reason(s, 0) == "ErrImagePull" && reason(s, 1) == "CreateContainerConfigError").await;
    world.until(|_, s| reason(s, 0) == "ImagePullBackOff").await;
    // The image of a volume keeps only those that mount it.
    world.pod(
        "v",
        r#"{"volumes": [{"name": "i", "image": {"reference": "missing:1"}}, {"name": "n", "image": {"reference": "missing:2", "pullPolicy": "Never"}}],
        "containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "i", "mountPath": "/i"}]}, {"name": "b", "image": "x"},
        {"name": "c", "image": "x", "volumeMounts": [{"name": "n", "mountPath": "/i"}]}]}"#,
    );
    world.push().await;
    world
        .until(|_, s| {
            let runs = s.container_statuses.as_ref().is_some_and(|c| c.len() == 3 && c[1].ready);
            runs && reason(s, 0) == "ImagePullBackOff" && reason(s, 2) == "ErrImageNeverPull"
        })
        .await;
    for (place, text) in [
        ("", "Failed to pull image \"missing:1\": "),
        ("spec.containers{a}", "Error: ErrImagePull"),
        ("", "Back-off pulling image \"missing:1\""),
        ("spec.containers{c}", "Error: ErrImageNeverPull"),
    ] {
        world.until_said("v", place, text).await;
    }
    world.set(
        ItemKind::Secret,
        "ns",
        "s",
        &serde_json::json!({"metadata": {"name": "s"}, "data": {"K": "dg=="}}),
    );
    world.push().await;
    world.until(|_, s| s.container_statuses.as_ref().is_some_and(|c| c[1].ready)).await;
    assert!(world.told.iter().any(|e| e.message == "Error: secret \"s\" not found"));
    world.stop().await;
}

#[tokio::test]
async fn a_pod_serves_until_it_has_ended_and_not_before_its_hook_is_through() {
    let mut world = World::new().await;
    world.runtime.script("", Script { ignores_signals: true, ..Script::default() });
    world.pod(
        "p",
        r#"{"containers": [{"name": "a", "image": "x", "lifecycle": {"postStart": {"sleep": {"seconds": 1}}}}], "terminationGracePeriodSeconds": 2}"#,
    );
    world.push().await;
    let runs = |s: &PodStatus| {
        s.container_statuses.iter().flatten().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
    };
    let honest = |s: &PodStatus| assert_eq!(runs(s), is_ready(s), "{s:?}");
    world
        .until(|_, s| {
            honest(s);
            is_ready(s)
        })
        .await;
    world.delete("p", 2);
    world.push().await;
    world
        .until(|report, s| {
            honest(s);
            report.gone
        })
        .await;
    world.stop().await;
}

#[tokio::test]
async fn a_running_pod_is_told_what_its_volumes_lack() {
    let mut world = World::new().await;
    let map = |key: &str| serde_json::json!({"metadata": {"name": "m"}, "data": {key: "v"}});
    world.set(ItemKind::ConfigMap, "ns", "m", &map("k"));
    world.pod(
        "p",
        r#"{"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "c", "mountPath": "/c"}]}],
        "volumes": [{"name": "c", "configMap": {"name": "m", "items": [{"key": "k", "path": "k"}]}}]}"#,
    );
    world.push().await;
    world.until(|_, s| is_ready(s)).await;
    world.set(ItemKind::ConfigMap, "ns", "m", &map("other"));
    world.push().await;
    let lacks = "MountVolume.SetUp failed for volume \"c\" : configmap references non-existent config key: k";
    world.until_said("p", "", lacks).await;
    world.stop().await;
}

#[tokio::test]
async fn nothing_is_left_of_a_pod_that_ended_and_was_removed_later() {
    let mut world = World::new().await;
    world.runtime.script("", Script { exit: Some((Duration::from_millis(10), 0)), ..Script::default() });
    world.pod("p", r#"{"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}"#);
    world.until(|_, s| s.phase.as_deref() == Some("Succeeded")).await;
    let files = world.dir.path().join("data/pods/u-p");
    let logs = world.dir.path().join("log/pods/ns_p_u-p");
    assert!(files.exists() && logs.exists(), "the logs of a pod that ended were to stay");
    let key = ItemKey::new(ItemKind::Pod, "ns", "p");
    world.items.remove(&key);
    world.generation += 1;
    let digest = messages::SetDigest::of(world.items.iter().map(|(k, i)| (k, i.hash.as_str()))).to_string();
    world
        .say(&Down::Desired(Desired {
            generation: Generation(world.generation),
            put: vec![],
            delete: vec![key],
            digest: Some(digest),
            ..Desired::default()
        }))
        .await;
    let gone = async {
        while files.exists() || logs.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("files are left");
    world.stop().await;
}

#[tokio::test]
async fn a_lost_message_is_healed_by_the_next_exchange() {
    let mut world = World::new().await;
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    world.pod("q", SIMPLE);
    world.broker.lose("sampan-c-node-n", 1);
    world.push().await;
    world.broker.cut("sampan-c-node-n");
    world.broker.reconnect("sampan-c-node-n");
    world.until(|r, s| r.name == "q" && is_ready(s)).await;
    // An older generation changes nothing.
    let stale = Desired {
        generation: Generation(1),
        digest: Some(messages::SetDigest::default().to_string()),
        delete: world.items.keys().cloned().collect(),
        put: vec![],
        ..Desired::default()
    };
    world.say(&Down::Desired(stale)).await;
    world.delete("q", 1);
    world.push().await;
    world.until(|r, _| r.name == "q" && r.gone).await;
    assert!(!world.runtime.calls().contains(&"remove_sandbox u-p".to_owned()));
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_was_removed_while_the_agent_was_down_goes_as_an_orphan() {
    let mut world = World::new().await;
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    world.stop().await;
    let ledger = super::ledger::Ledger::open(&world.dir.path().join("data/ledger.db")).unwrap();
    ledger.apply(Generation(9), vec![], vec![ItemKey::new(ItemKind::Pod, "ns", "p")]).await.unwrap();
    drop(ledger);
    world.start();
    let gone = async {
        while !world.runtime.calls().contains(&"remove_sandbox u-p".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the orphan stays");
    world.stop().await;
}

impl World {
    /// Opens a stream to the node, and collects what comes on it until its end.
    async fn ask(&mut self, request: Request) -> (String, Outcome) {
        let mux = Mux::new(Arc::clone(&self.bus), |node| topics::down("c", node, Leaf::Stream));
        let mut stream: Stream = mux.open("n", &request).await.unwrap();
        let mut text = Vec::new();
        let all = async {
            loop {
                tokio::select! {
                    event = self.events.recv() => {
                        let Some(Event::Message { topic, payload }) = event else { continue };
                        if topics::parse_up(&topic) == Some(("n", Leaf::Stream)) {
                            mux.heard("n", &payload);
                        }
                    }
                    incoming = stream.next() => match incoming.unwrap() {
                        Incoming::Data { channel: STDOUT, bytes } => text.extend_from_slice(&bytes),
                        Incoming::End(outcome) => return outcome,
                        _ => {}
                    },
                }
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(10), all).await.expect("the stream hangs");
        (String::from_utf8(text).unwrap(), outcome)
    }
}

fn place(pod: &str, container: &str) -> Place {
    Place { namespace: "ns".into(), pod: pod.into(), uid: format!("u-{pod}"), container: container.into() }
}

#[tokio::test]
async fn logs_and_commands_come_through_streams() {
    let mut world = World::new().await;
    world.runtime.answer_exec(|_, spec| (4, spec.args.join(" ").into_bytes()));
    world.pod("p", SIMPLE);
    world.until(|_, s| is_ready(s)).await;
    let log = world.dir.path().join("log/pods/ns_p_u-p/a/0.log");
    std::fs::write(&log, "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
    let logs = |place| Request::Logs { place, options: LogOptions::default() };
    let (text, outcome) = world.ask(logs(place("p", "a"))).await;
    assert_eq!((text.as_str(), outcome), ("hello\n", Outcome::default()));

    let command = vec!["echo".to_owned(), "hi".to_owned()];
    let (text, outcome) =
        world.ask(Request::Exec { place: place("p", "a"), command, stdin: false, tty: false }).await;
    assert_eq!((text.as_str(), outcome.code), ("echo hi", Some(4)));

    let (_, outcome) = world.ask(logs(place("p", "other"))).await;
    assert!(outcome.refused);
    assert_eq!(outcome.error.unwrap(), "container other is not valid for pod p");
    let stranger = Place { uid: "another".into(), ..place("p", "a") };
    assert!(world.ask(logs(stranger)).await.1.refused);
    world.stop().await;
}

#[tokio::test]
async fn a_port_of_a_pod_is_forwarded() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut world = World::new().await;
    // In the host's network, so that no namespace has to be entered.
    world.pod("p", r#"{"hostNetwork": true, "containers": [{"name": "a", "image": "x"}]}"#);
    world.until(|_, s| is_ready(s)).await;
    let server = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (mut guest, _) = server.accept().await.unwrap();
        let mut word = [0; 4];
        guest.read_exact(&mut word).await.unwrap();
        guest.write_all(&word).await.unwrap();
    });
    let mux = Mux::new(Arc::clone(&world.bus), |node| topics::down("c", node, Leaf::Stream));
    let mut stream = mux.open("n", &Request::PortForward { place: place("p", ""), port }).await.unwrap();
    stream.sender().send(0, bytes::Bytes::from_static(b"ping")).await.unwrap();
    let answer = async {
        loop {
            tokio::select! {
                Some(Event::Message { topic, payload }) = world.events.recv() => {
                    if topics::parse_up(&topic) == Some(("n", Leaf::Stream)) {
                        mux.heard("n", &payload);
                    }
                }
                incoming = stream.next() => match incoming.unwrap() {
                    Incoming::Data { bytes, .. } => return bytes,
                    Incoming::Opened => {}
                    other => panic!("{other:?}"),
                },
            }
        }
    };
    let bytes = tokio::time::timeout(Duration::from_secs(10), answer).await.expect("no answer");
    assert_eq!(&bytes[..], b"ping");
    echo.await.unwrap();
    world.stop().await;
}
