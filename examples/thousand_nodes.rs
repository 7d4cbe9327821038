//! A thousand nodes on one master: real MQTT connections with TLS on loopback, real protocol, pods that
//! run in words only. Prints the figures of docs/performance.md.
//!
//! `cargo run --example thousand_nodes [nodes] [idle seconds]`; the server is the `sampan` built beside
//! it (or `$SAMPAN`), in a process of its own.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sampan::{
    api::pki::Pki,
    ids::Generation,
    mqtt::{
        Bus, Event, Events, Priority, Will,
        messages::{
            self, Desired, Down, Hello, Item, ItemKey, ItemKind, NodeInfo, NodeState, PROTOCOL, PodReport,
            SetDigest, SharedChange, Status, Up,
        },
        session::{Address, Options, session},
        topics::{self, Leaf},
    },
    tasks::Tasks,
};
use serde_json::{json, value::RawValue};

const DEPLOYMENT: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: many, namespace: default}
spec:
  replicas: COUNT
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: sampan.dev/demo}]
";

#[derive(Default)]
struct Counts {
    in_sync: AtomicUsize,
    pods: AtomicUsize,
    items: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

struct Node {
    name: String,
    session: String,
    bus: Arc<dyn Bus>,
    counts: Arc<Counts>,
    cluster: String,
    held: BTreeMap<ItemKey, String>,
    digest: SetDigest,
    shared: SetDigest,
    generation: Generation,
    welcome: bool,
    seq: u64,
}

impl Node {
    async fn say(&self, message: &Up) {
        let payload = messages::encode(message).expect("a message");
        self.counts.up_bytes.fetch_add(payload.len() as u64, Relaxed);
        let topic = topics::up(&self.cluster, &self.name, Leaf::Control);
        let _ = self.bus.publish(&topic, payload, Priority::Control).await;
    }

    async fn hello(&self, hashes: bool) {
        let quantity = |text: &str| text.to_owned();
        let capacity: BTreeMap<String, String> = [("cpu", "4"), ("memory", "4Gi"), ("pods", "110")]
            .map(|(k, v)| (quantity(k), quantity(v)))
            .into();
        let number: u32 = self.name.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let info = NodeInfo {
            machine_id: self.name.clone(),
            architecture: "arm64".to_owned(),
            addresses: vec![("InternalIP".to_owned(), format!("10.0.{}.{}", number / 250, number % 250 + 1))],
            allocatable: capacity.clone(),
            capacity,
            ..NodeInfo::default()
        };
        let hello = Hello {
            protocol: PROTOCOL,
            session: self.session.clone(),
            hardware: self.name.clone(),
            info,
            generation: self.generation,
            digest: self.digest.to_string(),
            shared: self.shared.to_string(),
            hashes: hashes.then(|| self.held.clone().into_iter().collect()),
            ..Hello::default()
        };
        self.say(&Up::Hello(Box::new(hello))).await;
    }

    /// Takes items in; what pods among them have to say.
    fn take(&mut self, put: Vec<Item>, delete: &[ItemKey]) -> Vec<PodReport> {
        self.counts.items.fetch_add(put.len() as u64, Relaxed);
        for key in delete {
            if let Some(hash) = self.held.remove(key) {
                self.digest_of(key).remove(key, &hash);
                self.counts.pods.fetch_sub(usize::from(key.kind == ItemKind::Pod), Relaxed);
            }
        }
        let mut reports = Vec::new();
        for item in put {
            self.digest_of(&item.key).add(&item.key, &item.hash);
            let old = self.held.insert(item.key.clone(), item.hash.clone());
            if let Some(old) = &old {
                self.digest_of(&item.key).remove(&item.key, old);
            }
            if item.key.kind == ItemKind::Pod {
                self.counts.pods.fetch_add(usize::from(old.is_none()), Relaxed);
                reports.push(report(&item));
            }
        }
        reports
    }

    fn digest_of(&mut self, key: &ItemKey) -> &mut SetDigest {
        if key.kind.is_shared() { &mut self.shared } else { &mut self.digest }
    }

    async fn shared(&mut self, change: SharedChange) {
        if change.digest.as_ref().is_some_and(|digest| *digest == self.shared.to_string()) {
            return;
        }
        self.take(change.put, &change.delete);
        if self.welcome && change.digest.is_some_and(|digest| digest != self.shared.to_string()) {
            self.hello(true).await;
        }
    }

    async fn desired(&mut self, part: Desired) {
        let reports = self.take(part.put, &part.delete);
        self.generation = part.generation;
        let Some(digest) = part.digest else { return };
        if digest != self.digest.to_string() {
            return self.hello(true).await;
        }
        self.say(&Up::Ack { generation: self.generation }).await;
        if !std::mem::replace(&mut self.welcome, true) {
            self.counts.in_sync.fetch_add(1, Relaxed);
            self.seq += 1;
            let node = Some(NodeState::default());
            self.say(&Up::Status(Status { seq: self.seq, pods: Vec::new(), node })).await;
        }
        if !reports.is_empty() {
            self.seq += 1;
            self.say(&Up::Status(Status { seq: self.seq, pods: reports, node: None })).await;
        }
    }

    fn part(&mut self) {
        if std::mem::replace(&mut self.welcome, false) {
            self.counts.in_sync.fetch_sub(1, Relaxed);
        }
    }

    async fn run(mut self, mut events: Events) -> Result<(), std::convert::Infallible> {
        let mut beat = tokio::time::interval(Duration::from_mins(1));
        let mut again = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Connected) => self.hello(false).await,
                    Some(Event::Disconnected { .. }) => self.part(),
                    Some(Event::Message { topic, payload }) => {
                        self.counts.down_bytes.fetch_add(payload.len() as u64, Relaxed);
                        if topics::parse_down(&topic).is_none() {
                            self.hello(false).await;
                        } else {
                            match messages::decode(&payload) {
                                Ok(Down::Desired(part)) => self.desired(part).await,
                                Ok(Down::Shared(change)) => self.shared(change).await,
                                Ok(Down::SayHello { hashes }) => {
                                    self.part();
                                    self.hello(hashes).await;
                                }
                                _ => {}
                            }
                        }
                    }
                    None => return Ok(()),
                },
                _ = beat.tick() => {
                    if self.welcome {
                        let (session, shared) = (self.session.clone(), self.shared.brief());
                        self.say(&Up::Beat { session, generation: self.generation, shared }).await;
                    }
                }
                _ = again.tick() => {
                    if !self.welcome && self.bus.connected() {
                        self.hello(false).await;
                    }
                }
            }
        }
    }
}

/// A pod that runs, or one that is gone when that is wanted.
fn report(item: &Item) -> PodReport {
    let pod: serde_json::Value = item.read().expect("a pod");
    let deleting = !pod["metadata"]["deletionTimestamp"].is_null();
    let status = json!({
        "phase": if deleting { "Succeeded" } else { "Running" },
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
        "podIP": "10.42.0.9", "podIPs": [{"ip": "10.42.0.9"}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
            "started": true, "state": {"running": {"startedAt": "2026-11-27T12:00:00Z"}}}],
    });
    PodReport {
        namespace: item.key.namespace.clone(),
        name: item.key.name.clone(),
        uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        status: RawValue::from_string(status.to_string()).expect("JSON"),
        gone: deleting,
    }
}

struct Server {
    child: Child,
    dir: PathBuf,
    binary: PathBuf,
    api: u16,
    mqtt: u16,
}

impl Server {
    fn start(binary: &Path, dir: &Path) -> Self {
        let port = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let (api, mqtt) = (port(), port());
        let child = spawn(binary, dir, api, mqtt);
        Self { child, dir: dir.to_owned(), binary: binary.to_owned(), api, mqtt }
    }

    fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(&self.binary, &self.dir, self.api, self.mqtt);
    }

    fn sampan(&self, args: &[&str]) -> String {
        let out = Command::new(&self.binary)
            .args(args)
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .output()
            .expect("sampan runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Seconds of processor time so far.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        // utime and stime, in hundredths (proc(5)).
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Megabytes.
    fn pss(&self) -> f64 {
        let text =
            std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &Path, dir: &Path, api: u16, mqtt: u16) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    Command::new(binary)
        .args(["server", "--disable", "agent,network,dns,ingress,local-storage"])
        .args(["--listen", &format!("127.0.0.1:{api}"), "--mqtt-listen", &format!("127.0.0.1:{mqtt}")])
        // A /24 for each node.
        .args(["--cluster-cidr", "10.64.0.0/10"])
        .arg("--data-dir")
        .arg(dir)
        .arg("--run-dir")
        .arg(dir.join("run"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("the server starts")
}

async fn until(what: &str, limit: Duration, wanted: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < limit, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

fn own_binary() -> PathBuf {
    if let Some(given) = std::env::var_os("SAMPAN") {
        return given.into();
    }
    let own = std::env::current_exe().expect("own path");
    own.parent().and_then(Path::parent).expect("target folder").join("sampan")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (count, idle) = (args.next().unwrap_or(1_000), args.next().unwrap_or(60) as u64);
    let minute = Duration::from_mins(3);
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(&own_binary(), dir.path());
    let pki_dir = dir.path().join("server/pki");
    until("the server", minute, || dir.path().join("kubeconfig").exists()).await;
    until("the API", minute, || server.sampan(&["get", "namespaces"]).contains("default")).await;
    let pki = Pki::open(&pki_dir).expect("the authority");
    let cluster = std::fs::read_to_string(dir.path().join("server/cluster-id")).expect("the cluster's id");
    let counts = Arc::new(Counts::default());
    let tasks = Tasks::new();
    let mut sessions = BTreeMap::new();
    let begin = Instant::now();
    for n in 0..count {
        let name = format!("sim-{n}");
        let credential =
            pki.issue_client(&format!("system:node:{name}"), "system:nodes").expect("certificate");
        let mut roots = RootCertStore::empty();
        roots.add(pki.ca_der().clone()).expect("root");
        let chain: Vec<_> = CertificateDer::pem_slice_iter(credential.certificate.as_bytes())
            .map(|c| c.expect("PEM"))
            .collect();
        let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes()).expect("key");
        let tls =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .expect("client");
        let session_name = format!("{n}");
        let bye = Up::Bye { session: session_name.clone(), clean: false };
        let will = Will {
            topic: topics::up(&cluster, &name, Leaf::Will),
            payload: messages::encode(&bye).expect("message"),
        };
        let (bus, events, connection) = session(Options {
            endpoints: Address { host: "127.0.0.1".to_owned(), port: server.mqtt, tls: true, login: None }
                .into(),
            tls: Arc::new(tls).into(),
            client_id: topics::node_client_id(&cluster, &name),
            keep_alive: Duration::from_secs(10),
            filters: topics::node_filters(&cluster, &name),
            will: Some(will),
        });
        let node = Node {
            name: name.clone(),
            session: session_name,
            bus,
            counts: Arc::clone(&counts),
            cluster: cluster.clone(),
            held: BTreeMap::new(),
            digest: SetDigest::default(),
            shared: SetDigest::default(),
            generation: Generation(0),
            welcome: false,
            seq: 0,
        };
        tasks.spawn(name.clone(), |stop| connection.run(stop));
        let task = tokio::spawn(node.run(events));
        sessions.insert(name, task);
    }
    until("all nodes to be in sync", minute, || counts.in_sync.load(Relaxed) == count).await;
    println!("{count} new nodes joined and in sync: {:.1} s", begin.elapsed().as_secs_f64());
    until("all nodes to be Ready", minute, || {
        server.sampan(&["get", "nodes"]).matches(" Ready").count() == count
    })
    .await;
    println!("{count} new nodes Ready: {:.1} s", begin.elapsed().as_secs_f64());

    tokio::time::sleep(Duration::from_secs(5)).await;
    let (cpu, up) = (server.cpu(), counts.up_bytes.load(Relaxed));
    tokio::time::sleep(Duration::from_secs(idle)).await;
    println!("idle: {:.1}% of a core", (server.cpu() - cpu) / idle as f64 * 100.0);
    println!("idle: PSS {:.0} MB", server.pss());
    let said = (counts.up_bytes.load(Relaxed) - up) as f64 / count as f64 / idle as f64;
    println!("idle: {said:.2} bytes a second of payload up a node, and a PINGREQ every 10 s");

    let manifest = dir.path().join("many.yaml");
    std::fs::write(&manifest, DEPLOYMENT.replace("COUNT", &count.to_string())).expect("manifest");
    let begin = Instant::now();
    server.sampan(&["apply", "-f", &manifest.display().to_string()]);
    until("all pods to reach their nodes", minute, || counts.pods.load(Relaxed) >= count).await;
    println!("rollout of {count} pods has reached the nodes: {:.1} s", begin.elapsed().as_secs_f64());
    until("all pods to be Running", minute, || {
        server.sampan(&["get", "deployment", "many"]).contains(&format!("{count}/{count}"))
    })
    .await;
    println!("rollout of {count} pods is ready in the API: {:.1} s", begin.elapsed().as_secs_f64());
    println!("after it: PSS {:.0} MB", server.pss());

    let items = counts.items.load(Relaxed);
    let begin = Instant::now();
    server.restart();
    until("the nodes to notice", minute, || counts.in_sync.load(Relaxed) < count).await;
    until("all nodes to be in sync again", minute, || counts.in_sync.load(Relaxed) == count).await;
    println!(
        "master killed and started: all {count} in sync after {:.1} s, {} items sent again",
        begin.elapsed().as_secs_f64(),
        counts.items.load(Relaxed) - items
    );
    drop(sessions);
    tasks.stop().await;
}
