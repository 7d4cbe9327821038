//! What tests with several boards have in common.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Namespace, Node, SAMPAN, Switch, must, unique};

/// What to start a board with so that it joins.
pub fn token(master: &Node, args: &[&str]) -> Vec<String> {
    let mut command = master.space.command(SAMPAN);
    command.args(["token", "create", "--data-dir"]).arg(master.dir.path().join("data")).args(args);
    let line = must(&mut command);
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[..3], ["sampan", "agent", "--join"], "{line}");
    words[2..].to_vec()
}

/// The binary on a node's machine, with its data and run directories.
pub fn sampan(node: &Node, args: &[&str]) -> Command {
    let mut command = node.space.command(SAMPAN);
    command.args(args).env("SAMPAN_DATA_DIR", node.dir.path().join("data"));
    command.env("SAMPAN_RUN_DIR", node.dir.path().join("run"));
    command.env("KUBECONFIG", node.kubeconfig());
    command
}

/// A master at an address of the switch.
pub fn server(name: &str, switch: &Switch, address: &str, args: &[&str]) -> Node {
    Node::start("server", name, Namespace::on_switch(&unique("jn"), switch, address), args)
}

/// Whether `kubectl get nodes` shows two nodes that are Ready.
pub fn two_ready(text: &str) -> bool {
    text.matches(" Ready").count() == 2
}

/// A board at an address of the switch, with what [`token`] gave.
pub fn agent(name: &str, switch: &Switch, address: &str, args: &[String]) -> Node {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Node::start("agent", name, Namespace::on_switch(&unique("js"), switch, address), &args)
}

/// The processes of a node's pods.
pub fn pod_processes(node: &Node) -> String {
    let script = "find /sys/fs/cgroup -path \"*/sampan-$0/*\" -name cgroup.procs -exec cat {} + | sort -u";
    must(Command::new("sh").args(["-c", script, &node.name]))
}

/// Pulls a board's cable, or puts it in again: neither end is told by the other.
pub fn cable(switch: &Switch, address: &str, state: &str) {
    let port = format!("p{}", address.replace(['.', '/'], ""));
    let port = &port[port.len().saturating_sub(14)..];
    must(Command::new("ip").args(["-n", &switch.0.name, "link", "set", port, state]));
}

/// A wall clock that a test sets for a daemon while it runs. Time that passes is left alone.
pub struct FakeClock(PathBuf);

impl FakeClock {
    /// One that is right.
    pub fn new(dir: &Path) -> Self {
        let clock = Self(dir.join(unique("clock")));
        clock.set(0);
        clock
    }

    /// Sets it, by seconds from the right time.
    pub fn set(&self, seconds: i64) {
        // Whole at every moment.
        let fresh = self.0.with_extension("new");
        fs::write(&fresh, seconds.to_string()).unwrap();
        fs::rename(fresh, &self.0).unwrap();
    }

    /// The environment of its daemon.
    pub fn env(&self) -> [(&str, &str); 1] {
        [("SAMPAN_TEST_CLOCK", self.0.to_str().unwrap())]
    }
}
