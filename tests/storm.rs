//! Real daemons while everything goes wrong: crashes, power cuts, pulled cables, lost packets, killed
//! containers, clocks that jump by years. Whatever happens, every acknowledged object stays, every pod runs once, and nothing is left
//! behind.
//!
//! Half an hour of it: `SAMPAN_STORM_SECONDS=1800 cargo test --test storm`; the same again:
//! `SAMPAN_STORM_SEED=…`.

mod common;
#[path = "common/dice.rs"]
mod dice;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::{Duration, Instant},
};

use common::{
    Namespace, Node, Switch, must, output,
    several::{FakeClock, cable, pod_processes, token, two_ready},
    unique,
};
use dice::Dice;
use serde_json::Value;

const SECONDS: u64 = 40;
const PODS_MAX: usize = 8;
/// How long the cluster may take to come to rest: a container that was killed again and again waits for
/// five minutes.
const PATIENCE: Duration = Duration::from_secs(400);
/// How far a clock jumps, either way: ten years.
const CLOCK_SECONDS: u64 = 315_360_000;
/// The longest time between two rests (seconds).
const BETWEEN_RESTS: u64 = 120;

/// What is known of something that was asked of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    There,
    Gone,
    /// The answer was lost.
    Perhaps,
}

struct World {
    switch: Switch,
    nodes: Vec<Node>,
    addresses: Vec<&'static str>,
    clocks: Vec<FakeClock>,
    _dir: tempfile::TempDir,
    /// Pods and the index of their node.
    pods: BTreeMap<String, (usize, Known)>,
    /// Values that a ConfigMap may have.
    maps: BTreeMap<String, BTreeSet<u64>>,
    count: u64,
    done: Vec<String>,
}

impl World {
    fn new() -> Self {
        let switch = Switch::new(&unique("sw"));
        let addresses = vec!["192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"];
        let dir = tempfile::tempdir().unwrap();
        let clocks: Vec<_> = addresses.iter().map(|_| FakeClock::new(dir.path())).collect();
        let start = |n: usize, mode: &str, args: &[String]| {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let space = Namespace::on_switch(&unique("sn"), &switch, addresses[n]);
            Node::start_with(mode, &unique("sd"), space, &args, &clocks[n].env())
        };
        let master = start(0, "server", &[]);
        master.wait_ready();
        let first = start(1, "agent", &token(&master, &[]));
        master.wait_output(&["get", "nodes"], "two nodes to be Ready", two_ready);
        let second = start(2, "agent", &token(&master, &[]));
        let nodes = vec![master, first, second];
        let (pods, maps, done) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { switch, nodes, addresses, clocks, _dir: dir, pods, maps, count: 0, done }
    }

    /// Whether the API has said yes; `None` when the answer is not known.
    fn ask(&self, args: &[&str]) -> Option<bool> {
        let out = output(self.nodes[0].kubectl().args(["--request-timeout=5s"]).args(args));
        if out.status.success() {
            return Some(true);
        }
        let error = String::from_utf8_lossy(&out.stderr);
        // What was never connected was never asked.
        error.contains("refused").then_some(false)
    }

    fn create_pod(&mut self, node: usize) {
        self.count += 1;
        let name = format!("p{}", self.count);
        let manifest = format!(
            "# YAML\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {}, \
             terminationGracePeriodSeconds: 1, containers: [{{name: c, image: sampan.dev/demo}}]}}}}",
            self.nodes[node].name
        );
        let file = self.nodes[0].dir.path().join("pod.yaml");
        fs::write(&file, manifest).unwrap();
        let known = match self.ask(&["create", "--validate=false", "-f", &file.display().to_string()]) {
            Some(true) => Known::There,
            Some(false) => return,
            None => Known::Perhaps,
        };
        self.pods.insert(name, (node, known));
    }

    fn delete_pod(&mut self, which: u64) {
        let there: Vec<_> = self.pods.iter().filter(|(_, (_, known))| *known != Known::Gone).collect();
        let Some((name, (node, known))) = there.get(which as usize % there.len().max(1)) else { return };
        let (name, node, known) = ((*name).clone(), *node, *known);
        let known = match self.ask(&["delete", "pod", &name, "--wait=false", "--ignore-not-found"]) {
            Some(true) if known == Known::There => Known::Gone,
            Some(false) => known,
            _ => Known::Perhaps,
        };
        self.pods.insert(name, (node, known));
    }

    fn write_map(&mut self, which: u64) {
        self.count += 1;
        let (name, value) = (format!("m{which}"), self.count);
        let manifest = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{v: \"{value}\"}}}}"
        );
        let file = self.nodes[0].dir.path().join("map.yaml");
        fs::write(&file, manifest).unwrap();
        let answer = self.ask(&["apply", "--validate=false", "-f", &file.display().to_string()]);
        let values = self.maps.entry(name).or_default();
        match answer {
            Some(true) => *values = [value].into(),
            Some(false) => {}
            None => {
                // Zero: there may be none at all.
                if values.is_empty() {
                    values.insert(0);
                }
                values.insert(value);
            }
        }
    }

    /// Of a hundred packets between any two, so many are lost.
    fn lose(&self, percent: u64) {
        let space = &self.switch.0;
        let _ = output(space.command("nft").args(["delete", "table", "bridge", "storm"]));
        if percent > 0 {
            let rules = format!(
                "add table bridge storm\nadd chain bridge storm f {{ type filter hook forward priority 0; }}\n\
                 add rule bridge storm f numgen random mod 100 < {percent} drop\n"
            );
            let file = self.nodes[0].dir.path().join("rules");
            fs::write(&file, rules).unwrap();
            must(space.command("nft").arg("-f").arg(file));
        }
    }

    /// One thing that happens.
    fn step(&mut self, dice: &mut Dice) {
        let node = dice.roll(self.nodes.len() as u64) as usize;
        let board = 1 + dice.roll(self.nodes.len() as u64 - 1) as usize;
        let deed = dice.roll(21);
        self.done.push(format!("{deed} node={node} board={board}"));
        match deed {
            0..=5 if self.pods.len() < PODS_MAX => self.create_pod(node),
            6..=7 => {
                let which = dice.roll(100);
                self.delete_pod(which);
            }
            8..=9 => {
                let which = dice.roll(3);
                self.write_map(which);
            }
            10 => cable(&self.switch, self.addresses[board], "down"),
            11..=12 => cable(&self.switch, self.addresses[board], "up"),
            13 => self.lose(5 + dice.roll(20)),
            14 => self.lose(0),
            15 => {
                self.nodes[node].kill();
                self.nodes[node].spawn();
            }
            16 => {
                self.nodes[node].stop();
                self.nodes[node].spawn();
            }
            17 => {
                self.nodes[board].power_off();
                self.nodes[board].spawn();
            }
            18 => {
                let all = pod_processes(&self.nodes[node]);
                let all: Vec<&str> = all.lines().collect();
                if let Some(pid) = all.get(dice.roll(100) as usize % all.len().max(1)) {
                    let _ = Command::new("kill").args(["-KILL", pid]).status();
                }
            }
            19 => self.clocks[node].set(dice.roll(2 * CLOCK_SECONDS) as i64 - CLOCK_SECONDS as i64),
            _ => std::thread::sleep(Duration::from_millis(dice.roll(3_000))),
        }
        std::thread::sleep(Duration::from_millis(dice.roll(400)));
    }

    fn get(&self, what: &str) -> Value {
        let out = output(self.nodes[0].kubectl().args(["get", what, "-o", "json"]));
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    }

    /// How many processes of each pod run on a node.
    fn running(node: &Node) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for pid in pod_processes(node).lines() {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut words = environment.split(|byte| *byte == 0);
            if let Some(name) = words.find_map(|word| word.strip_prefix(b"HOSTNAME=")) {
                *found.entry(String::from_utf8_lossy(name).into_owned()).or_default() += 1;
            }
        }
        found
    }

    /// What is not as it should be.
    fn complaints(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        let nodes = output(self.nodes[0].kubectl().args(["get", "nodes"])).stdout;
        let ready = String::from_utf8_lossy(&nodes).matches(" Ready").count();
        if ready != self.nodes.len() {
            return vec![format!("{ready} nodes are Ready")];
        }
        let pods = self.get("pods");
        let mut there: BTreeMap<String, &Value> = BTreeMap::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            there.insert(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), pod);
        }
        let running: Vec<_> = self.nodes.iter().map(Self::running).collect();
        for (name, (node, known)) in &mut self.pods {
            let pod = there.remove(name);
            match (pod, *known) {
                (None, Known::There) => wrong.push(format!("{name} was acknowledged and is gone")),
                (Some(_), Known::Gone) => wrong.push(format!("{name} was deleted and is there")),
                (None, Known::Perhaps) => *known = Known::Gone,
                (Some(pod), Known::Perhaps) if pod["metadata"]["deletionTimestamp"].is_null() => {
                    *known = Known::There;
                }
                _ => {}
            }
            let wanted = usize::from(*known == Known::There);
            for (n, running) in running.iter().enumerate() {
                let count = running.get(name).copied().unwrap_or(0);
                if count != if n == *node { wanted } else { 0 } {
                    wrong.push(format!("{name}, of node {node}, runs {count} times on node {n}"));
                }
            }
            let ready = pod.is_some_and(|pod| pod["status"]["containerStatuses"][0]["ready"] == true);
            if *known == Known::There && !ready {
                wrong.push(format!("{name} is not ready"));
            }
        }
        wrong.extend(there.keys().map(|name| format!("{name} is there and nobody asked for it")));
        let maps = self.get("configmaps");
        let mut found: BTreeMap<&str, u64> = BTreeMap::new();
        for map in maps["items"].as_array().into_iter().flatten() {
            let name = map["metadata"]["name"].as_str().unwrap_or_default();
            found.insert(name, map["data"]["v"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0));
        }
        for (name, values) in &mut self.maps {
            let value = found.get(name.as_str()).copied().unwrap_or(0);
            if values.is_empty() && value == 0 {
                continue;
            }
            if values.contains(&value) {
                *values = [value].into();
            } else {
                wrong.push(format!("ConfigMap {name} is {value}, and should be of {values:?}"));
            }
        }
        wrong
    }

    /// Heals everything and waits until all is as it should be; what is not, otherwise.
    fn rest(&mut self) -> Result<(), Vec<String>> {
        self.lose(0);
        for address in &self.addresses[1..] {
            cable(&self.switch, address, "up");
        }
        let start = Instant::now();
        loop {
            let wrong = self.complaints();
            if wrong.is_empty() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(wrong);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What is left of pods on the nodes.
    fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for node in &self.nodes {
            let links = must(node.space.command("ip").args(["-o", "link", "show", "type", "veth"]));
            left.extend(links.lines().filter(|line| line.contains("smp")).map(str::to_owned));
            left.extend(Self::running(node).into_keys());
            let folders =
                fs::read_dir(node.dir.path().join("data/agent/pods")).into_iter().flatten().flatten();
            left.extend(folders.map(|entry| entry.path().display().to_string()));
            left.extend(common::mounts_below(&node.dir.path().join("data/agent/pods")));
        }
        left
    }
}

#[test]
fn a_storm_loses_nothing_and_leaves_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("SAMPAN_STORM_SECONDS").unwrap_or(SECONDS);
    let seed = number("SAMPAN_STORM_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut world = World::new();
    let storm = Instant::now();
    let mut steps = 0;
    while storm.elapsed() < Duration::from_secs(seconds) {
        let begin = Instant::now();
        let until = Duration::from_secs(seconds).saturating_sub(storm.elapsed());
        while begin.elapsed() < until.min(Duration::from_secs(BETWEEN_RESTS)) {
            world.step(&mut dice);
            steps += 1;
        }
        if let Err(wrong) = world.rest() {
            let logs: Vec<_> = world.nodes.iter().map(Node::log).collect();
            panic!(
                "seed {seed}, after {steps} steps:\n{}\ndone:\n{}\nlogs:\n{}",
                wrong.join("\n"),
                world.done.join("\n"),
                logs.join("\n----\n")
            );
        }
        println!("{steps} steps, {} pods, {:?}", world.pods.len(), storm.elapsed());
        world.done.clear();
        world.pods.retain(|_, (_, known)| *known != Known::Gone);
    }
    let names: Vec<String> = world.pods.keys().cloned().collect();
    for name in names {
        assert_eq!(world.ask(&["delete", "pod", &name, "--wait=false"]), Some(true), "{name}");
        world.pods.remove(&name);
    }
    assert_eq!(world.rest(), Ok(()), "seed {seed}");
    common::wait_for("nothing of the pods to be left", || {
        let left = world.leftovers();
        left.is_empty().then_some(()).ok_or(left.join("\n"))
    });
}
