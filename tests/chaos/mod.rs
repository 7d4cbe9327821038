//! Everything goes wrong, by a seed: links are cut and lose messages, agents and masters stop and crash,
//! pods come and go, containers die. When it is over, what was acknowledged must be there, and every
//! wanted pod must run exactly once.
//!
//! Real store, dispatcher, agents and ledgers; a broker in memory; a runtime that runs in words. Longer:
//! `SAMPAN_CHAOS_STEPS=20000`; the same again: `SAMPAN_CHAOS_SEED=…`.

#[path = "../common/dice.rs"]
mod dice;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use dice::Dice;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use sampan::{
    clock::{Clock, SystemClock},
    dispatch::{self, Dispatch, IssueToken},
    image::fake::AnyImages,
    kinds::registry,
    mqtt::{memory::MemoryBroker, topics},
    net::fake::FakeNetwork,
    node::{Agent, Ground, Link, Options},
    objects::{DeleteOptions, Objects, WriteOptions},
    runtime::{ContainerState, Runtime, fake::FakeRuntime},
    store::Store,
    tasks::CancellationToken,
};
use serde_json::json;
use tokio::{task::JoinHandle, time::timeout};

const BOARDS: usize = 3;
const STEPS: u64 = 120;
const PODS_MAX: usize = 12;
/// How long the world may take to come to rest.
const PATIENCE: Duration = Duration::from_mins(1);

/// The machine's clock as somebody has set it.
#[derive(Default)]
struct WrongClock(Mutex<SignedDuration>);

impl WrongClock {
    /// Up to ten years off, either way.
    fn set(&self, dice: &mut Dice) {
        let hours = dice.roll(2 * 87_600) as i64 - 87_600;
        *self.0.lock().unwrap() = SignedDuration::from_hours(hours);
    }
}

impl Clock for WrongClock {
    fn now(&self) -> Timestamp {
        SystemClock.now() + *self.0.lock().unwrap()
    }
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn end(self, clean: bool) {
        if clean {
            self.stop.cancel();
        } else {
            self.task.abort();
        }
        // An aborted task says so.
        let _ = self.task.await;
    }
}

struct Master {
    objects: Objects,
    dispatch: Running,
}

struct Board {
    name: String,
    runtime: Arc<FakeRuntime>,
    clock: Arc<WrongClock>,
    client: String,
    agent: Option<Running>,
}

struct World {
    dir: tempfile::TempDir,
    broker: MemoryBroker,
    clock: Arc<WrongClock>,
    master: Option<Master>,
    boards: Vec<Board>,
    /// Acknowledged: pods by name, with their board.
    pods: BTreeMap<String, usize>,
    /// Acknowledged: the value of the ConfigMap of each name.
    maps: BTreeMap<String, u64>,
    count: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            broker: MemoryBroker::new(),
            clock: Arc::default(),
            master: None,
            boards: Vec::new(),
            pods: BTreeMap::new(),
            maps: BTreeMap::new(),
            count: 0,
        };
        world.start_master();
        for n in 0..BOARDS {
            let clock = Arc::<WrongClock>::default();
            world.boards.push(Board {
                name: format!("b{n}"),
                runtime: Arc::new(FakeRuntime::new(clock.clone())),
                clock,
                client: String::new(),
                agent: None,
            });
            world.start_board(n);
        }
        world
    }

    fn start_master(&mut self) {
        let store = Store::open(&self.dir.path().join("state.db")).unwrap();
        let objects = Objects::new(store, self.clock.clone());
        let (bus, events) = self.broker.connect("master", topics::master_filters("c"), None);
        let options = dispatch::Options {
            cluster: "c".to_owned(),
            epoch: 0,
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            node_prefix: 24,
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_dns: String::new(),
            cluster_domain: "cluster.local".to_owned(),
            endpoints: Vec::new(),
            own_node: None,
            origins: None,
        };
        let tokens: IssueToken = Arc::new(|_| Box::pin(async { Err("no tokens here".to_owned()) }));
        let dispatch = Dispatch::new(objects.clone(), options, (bus, events), tokens);
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { dispatch.run(token).await.unwrap() });
        self.master = Some(Master { objects, dispatch: Running { stop, task } });
    }

    async fn stop_master(&mut self) {
        let Some(Master { objects, dispatch }) = self.master.take() else { return };
        self.broker.cut("master");
        dispatch.end(false).await;
        objects.store().close().await;
    }

    fn start_board(&mut self, n: usize) {
        let dir = self.dir.path().join(format!("board{n}"));
        let board = &mut self.boards[n];
        let link = Link::new("c", &board.name, format!("{n:016x}")).unwrap();
        let mut options = Options::new("c", &board.name, dir.join("data"), dir.join("log"));
        options.beat = Duration::from_millis(300);
        let (bus, events) = self.broker.connect(&link.client_id, link.filters, Some(link.will));
        board.client = link.client_id;
        let ground = Ground {
            runtime: board.runtime.clone(),
            images: Arc::new(AnyImages),
            network: Arc::new(FakeNetwork::new()),
            clock: board.clock.clone(),
        };
        let agent = Agent::new(options, (link.session, link.hardware), (bus, events), ground, None).unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { agent.run(token).await.unwrap() });
        board.agent = Some(Running { stop, task });
    }

    async fn stop_board(&mut self, n: usize, clean: bool) {
        let Some(agent) = self.boards[n].agent.take() else { return };
        if clean {
            agent.end(true).await;
        } else {
            self.broker.cut(&self.boards[n].client.clone());
            agent.end(false).await;
        }
    }

    fn writer() -> WriteOptions {
        WriteOptions::system("chaos")
    }

    async fn create_pod(&mut self, board: usize) {
        let Some(master) = &self.master else { return };
        self.count += 1;
        let name = format!("p{}", self.count);
        let pod = json!({"metadata": {"name": name}, "spec": {
            "nodeName": self.boards[board].name, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "i"}],
        }});
        let kind = registry::of::<Pod>();
        if master.objects.create(kind, "default", pod, &Self::writer()).await.is_ok() {
            self.pods.insert(name, board);
        }
    }

    async fn delete_pod(&mut self, which: u64) {
        let (Some(master), Some(name)) =
            (&self.master, self.pods.keys().nth(which as usize % self.pods.len().max(1)).cloned())
        else {
            return;
        };
        let kind = registry::of::<Pod>();
        let options = DeleteOptions { grace_seconds: Some(1), ..DeleteOptions::default() };
        if master.objects.delete(kind, "default", &name, &options, &Self::writer()).await.is_ok() {
            self.pods.remove(&name);
        }
    }

    async fn write_map(&mut self, which: u64) {
        let Some(master) = &self.master else { return };
        self.count += 1;
        let (name, value) = (format!("m{which}"), self.count);
        let kind = registry::of::<ConfigMap>();
        let map = json!({"metadata": {"name": name}, "data": {"v": value.to_string()}});
        let written = if self.maps.contains_key(&name) {
            master.objects.update(kind, None, "default", &name, map, &Self::writer()).await
        } else {
            master.objects.create(kind, "default", map, &Self::writer()).await
        };
        if written.is_ok() {
            self.maps.insert(name, value);
        }
    }

    async fn kill_container(&self, board: usize, which: u64) {
        let runtime = &self.boards[board].runtime;
        let all = runtime.containers().await.unwrap();
        if let Some((spec, _)) = all.get(which as usize % all.len().max(1)) {
            runtime.exit(&spec.id, 1);
        }
    }

    /// One thing that happens.
    async fn step(&mut self, dice: &mut Dice) {
        let board = dice.roll(BOARDS as u64) as usize;
        let client = self.boards[board].client.clone();
        match dice.roll(22) {
            0..=4 if self.pods.len() < PODS_MAX => self.create_pod(board).await,
            5..=6 => {
                let which = dice.roll(100);
                self.delete_pod(which).await;
            }
            7..=8 => {
                let which = dice.roll(4);
                self.write_map(which).await;
            }
            9 => self.broker.cut(&client),
            10 | 11 => self.broker.reconnect(&client),
            12 => {
                let lost = dice.roll(4) as usize + 1;
                self.broker.lose(&client, lost);
            }
            13 => {
                let lost = dice.roll(4) as usize + 1;
                self.broker.lose("master", lost);
            }
            14 => self.broker.cut("master"),
            15 => self.broker.reconnect("master"),
            16 => {
                let clean = dice.roll(2) == 0;
                self.stop_board(board, clean).await;
                self.start_board(board);
            }
            17 => {
                self.stop_master().await;
                self.start_master();
            }
            18 => {
                let which = dice.roll(100);
                self.kill_container(board, which).await;
            }
            19 => self.boards[board].clock.set(dice),
            20 => self.clock.set(dice),
            _ => tokio::time::sleep(Duration::from_millis(dice.roll(60))).await,
        }
        tokio::time::sleep(Duration::from_millis(dice.roll(12))).await;
    }

    /// What is not as it should be.
    async fn complaints(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let objects = &self.master.as_ref().unwrap().objects;
        let there: BTreeSet<String> = objects
            .list_typed::<Pod>(None)
            .iter()
            .map(|pod| pod.metadata.name.clone().unwrap_or_default())
            .collect();
        let wanted: BTreeSet<String> = self.pods.keys().cloned().collect();
        if there != wanted {
            wrong.push(format!("pods are {there:?}, acknowledged were {wanted:?}"));
        }
        for (name, value) in &self.maps {
            let map = objects.get_typed::<ConfigMap>("default", name);
            let found = map.and_then(|map| map.data.as_ref()?.get("v").cloned());
            if found != Some(value.to_string()) {
                wrong.push(format!("ConfigMap {name} is {found:?}, acknowledged was {value}"));
            }
        }
        for (n, board) in self.boards.iter().enumerate() {
            let ready = objects.get_typed::<Node>("", &board.name).is_some_and(|node| {
                let conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
                conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
            });
            if !ready {
                wrong.push(format!("{} is not Ready", board.name));
            }
            let mut running: BTreeMap<String, usize> = BTreeMap::new();
            for (spec, state) in board.runtime.containers().await.unwrap() {
                if matches!(state, ContainerState::Running { .. }) {
                    *running.entry(spec.sandbox.clone()).or_default() += 1;
                }
            }
            for (name, _) in self.pods.iter().filter(|(_, on)| **on == n) {
                let Some(pod) = objects.get_typed::<Pod>("default", name) else { continue };
                let count = running.remove(&pod.metadata.uid.clone().unwrap_or_default()).unwrap_or(0);
                let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
                if count != 1 || phase != "Running" {
                    wrong.push(format!("{name} on {} runs {count} times and is {phase}", board.name));
                }
            }
            if !running.is_empty() {
                wrong.push(format!("{} runs what nobody wants: {running:?}", board.name));
            }
        }
        wrong
    }

    /// Heals everything and waits until all is as it should be.
    async fn rest(&mut self) -> Result<(), Vec<String>> {
        self.broker.lose("master", 0);
        self.broker.reconnect("master");
        for board in &self.boards {
            self.broker.lose(&board.client, 0);
            self.broker.reconnect(&board.client);
        }
        let mut last = Vec::new();
        let rested = timeout(PATIENCE, async {
            loop {
                last = self.complaints().await;
                if last.is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let rested = rested.await;
        rested.map_err(|_| last)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_every_pod_runs_once_and_nothing_acknowledged_is_lost() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let steps = number("SAMPAN_CHAOS_STEPS").unwrap_or(STEPS);
    let seed = number("SAMPAN_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut dice = Dice(seed);
    let mut world = World::new();
    let mut done = 0;
    while done < steps {
        // Comes to rest now and then, so that a failure is not far from its cause.
        for _ in 0..60.min(steps - done) {
            world.step(&mut dice).await;
            done += 1;
        }
        if let Err(wrong) = world.rest().await {
            panic!("seed {seed}, after {done} steps:\n{}", wrong.join("\n"));
        }
    }
    for n in 0..BOARDS {
        world.stop_board(n, true).await;
    }
    world.stop_master().await;
}
