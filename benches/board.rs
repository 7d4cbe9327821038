//! What one board costs and how fast it is, as its user sees it: memory at rest, readiness, apply to Running, bytes
//! written at rest.
//!
//! Needs root and kubectl; prints a table:
//! `cargo bench --bench board` (release), `cargo test --bench board` (development build).
//! How a container starts beside crun is in `benches/runtime.rs`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Namespace, Node, SAMPAN, must, unique};

/// Pods that are started one after the other.
const STARTS: usize = 30;
/// Pods of the board at rest.
const RESTING_PODS: usize = 10;
/// How long a board is left alone before its memory is read, and while its writes are counted.
const SETTLE: Duration = Duration::from_secs(10);
const REST: Duration = Duration::from_mins(1);

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let name = unique("bench");
    let space = Namespace::new(&name, "192.0.2.10/24");
    let started = Instant::now();
    let node =
        Node::start_with("server", &name, space, &[], &[("NOTIFY_SOCKET", &path.display().to_string())]);
    socket.recv(&mut [0; 64]).unwrap();
    row("exec to API ready", &millis(started.elapsed()));
    Lines::of(&node, &["get", "nodes", "-w"]).wait_for(" Ready");
    row("exec to node Ready", &millis(started.elapsed()));

    thread::sleep(SETTLE);
    row("idle PSS, no pods", &mib(pss(node.pid())));
    let mut pods = Lines::of(&node, &["get", "pods", "-w"]);
    let mut times: Vec<_> =
        (0..STARTS).map(|index| start(&node, &mut pods, &format!("start-{index}"))).collect();
    times.sort();
    row("apply to Running, p50", &millis(times[STARTS / 2]));
    row("apply to Running, p99", &millis(times[STARTS * 99 / 100]));
    for index in RESTING_PODS..STARTS {
        node.k(&["delete", "pod", &format!("start-{index}"), "--grace-period=0", "--force", "--wait=false"]);
    }
    node.wait_output(&["get", "pods", "--no-headers"], "the resting pods", |text| {
        text.lines().count() == RESTING_PODS
    });
    drop(pods);

    thread::sleep(SETTLE);
    let shims = shims(&node);
    let shim_pss: Vec<u64> = shims.iter().map(|pid| pss(*pid)).collect();
    let private: u64 = shims.iter().map(|pid| private(*pid)).sum();
    row(&format!("idle PSS, {RESTING_PODS} pods: daemon"), &mib(pss(node.pid())));
    row(&format!("idle PSS, {RESTING_PODS} pods: {} monitors", shims.len()), &mib(shim_pss.iter().sum()));
    row("private memory of a monitor", &format!("{} KiB", private / shims.len().max(1) as u64));
    let before = (written(node.pid()), cpu(node.pid()));
    thread::sleep(REST);
    let after = (written(node.pid()), cpu(node.pid()));
    row("written in an idle minute", &format!("{} bytes", after.0 - before.0));
    row("CPU in an idle minute", &format!("{} ms", (after.1 - before.1) * 10));
    row("binary", &mib(fs::metadata(SAMPAN).unwrap().len() / 1024));
}

fn row(what: &str, reading: &str) {
    println!("{what:42} {reading}");
}

fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

/// The time from the command to the pod's Running, as a watcher sees it.
fn start(node: &Node, pods: &mut Lines, name: &str) -> Duration {
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: sampan.dev/demo, command: [sleep, infinity]}}\n"
    );
    let file = node.dir.path().join("pod.yaml");
    fs::write(&file, manifest).unwrap();
    let from = Instant::now();
    must(
        node.space
            .command(SAMPAN)
            .arg("apply")
            .arg("--kubeconfig")
            .arg(node.kubeconfig())
            .arg("-f")
            .arg(&file),
    );
    pods.wait_for_all(&[name, "1/1", "Running"]);
    from.elapsed()
}

/// The lines of a verb that watches.
struct Lines {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Lines {
    fn of(node: &Node, verb: &[&str]) -> Self {
        let mut command = node.space.command(SAMPAN);
        command
            .args(verb)
            .arg("--kubeconfig")
            .arg(node.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn wait_for(&mut self, word: &str) {
        self.wait_for_all(&[word]);
    }

    fn wait_for_all(&mut self, words: &[&str]) {
        let found = |line: &str| words.iter().all(|word| line.contains(word));
        assert!(self.lines.by_ref().map(Result::unwrap).any(|line| found(&line)), "the watch ended");
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of a field of `smaps_rollup` (KiB).
fn memory(pid: u32, fields: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let value = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        fields.contains(&name).then(|| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())?
    };
    text.lines().filter_map(value).sum()
}

fn pss(pid: u32) -> u64 {
    memory(pid, &["Pss"])
}

fn private(pid: u32) -> u64 {
    memory(pid, &["Private_Clean", "Private_Dirty"])
}

/// The monitors of the board's containers: processes of this binary that carry the board's folder.
fn shims(node: &Node) -> Vec<u32> {
    let run = node.dir.path().join("run").display().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != node.pid() && node_process(*pid, &run)).collect()
}

fn node_process(pid: u32, run: &str) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    read("cmdline").contains(run) && !read("cmdline").contains("--data-dir")
}

/// Bytes the process has had written to disks (`write_bytes` of `/proc/PID/io`).
fn written(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap()
}

/// CPU time of the process (hundredths of a second, `utime` and `stime` of `/proc/PID/stat`).
fn cpu(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
