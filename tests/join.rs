//! Two boards: one joins the other with a token.

mod common;

use std::process::Command;

use common::{Namespace, Node, SAMPAN, Switch, must, output, unique, wait_for};

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeName: NODE
  containers:
  - name: web
    image: sampan.dev/demo
";

fn token(master: &Node, args: &[&str]) -> Vec<String> {
    let mut command = master.space.command(SAMPAN);
    command.args(["token", "create", "--data-dir"]).arg(master.dir.path().join("data")).args(args);
    let line = must(&mut command);
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[..3], ["sampan", "agent", "--join"], "{line}");
    words[2..].to_vec()
}

fn agent(name: &str, switch: &Switch, address: &str, args: &[String]) -> Node {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Node::start("agent", name, Namespace::on_switch(&unique("js"), switch, address), &args)
}

/// Starts an agent that is refused; what it says.
fn refusal(name: &str, switch: &Switch, address: &str, args: &[String]) -> String {
    let space = Namespace::on_switch(&unique("jr"), switch, address);
    let dir = tempfile::tempdir().unwrap();
    let mut command = space.command(SAMPAN);
    command.args(["agent", "--node-name", name, "--data-dir"]).arg(dir.path());
    let out = output(command.arg("--run-dir").arg(dir.path().join("run")).args(args));
    assert_eq!(out.status.code(), Some(1));
    String::from_utf8(out.stderr).unwrap()
}

/// The processes of a node's pods.
fn pod_processes(node: &Node) -> String {
    let script = "find /sys/fs/cgroup -path \"*/sampan-$0/*\" -name cgroup.procs -exec cat {} + | sort -u";
    must(Command::new("sh").args(["-c", script, &node.name]))
}

#[test]
fn a_board_joins_with_a_token_and_lives_on_without_the_master() {
    let switch = Switch::new(&unique("jw"));
    let name = unique("jm");
    let mut master = Node::start("server", &name, Namespace::on_switch(&name, &switch, "192.0.2.1/24"), &[]);
    master.wait_ready();

    let first = token(&master, &[]);
    assert_eq!(first[1], "mqtts://192.0.2.1:8883");
    let name = unique("ja");
    let mut board = agent(&name, &switch, "192.0.2.2/24", &first);
    let ready = |text: &str| text.matches(" Ready").count() == 2;
    master.wait_output(&["get", "nodes"], "two nodes to be Ready", ready);
    assert_eq!(
        master.k(&["get", "secrets", "-n", "kube-system", "-o", "name"]).matches("bootstrap").count(),
        0
    );

    let manifest = master.dir.path().join("pod.yaml");
    std::fs::write(&manifest, POD.replace("NODE", &name)).unwrap();
    master.k(&["apply", "--validate=false", "-f", &manifest.display().to_string()]);
    let phase = ["get", "pod", "web", "-o", "jsonpath={.status.phase}"];
    master.wait_output(&phase, "the pod to run on the board", |text| text == "Running");

    // The token is spent; one for another board and one without a name take nobody's place.
    let refused = |name: &str, address: &str, args: &[String], why: &str| {
        let said = refusal(name, &switch, address, args);
        assert!(said.contains(why), "{said}");
    };
    refused("late", "192.0.2.3/24", &first, "wrong, spent or deleted");
    refused(&name, "192.0.2.4/24", &token(&master, &[]), "is connected; give this one its own");
    let named = token(&master, &["--node", "kitchen"]);
    assert_eq!(named[4..], ["--node-name", "kitchen"]);
    refused("cellar", "192.0.2.5/24", &named[..4], "--node-name kitchen");

    // The board starts again without a master, and keeps its pod.
    let before = pod_processes(&board);
    assert!(!before.is_empty());
    master.kill();
    board.kill();
    board.spawn();
    wait_for("the daemon to be back", || {
        let socket = board.dir.path().join("run/control.sock");
        std::os::unix::net::UnixStream::connect(socket).map_err(|e| e.to_string())
    });
    assert_eq!(pod_processes(&board), before);

    master.spawn();
    master.wait_output(&["get", "nodes"], "two nodes to be Ready", ready);
    let restarts = ["get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"];
    assert_eq!(master.k(&restarts), "0");
    assert_eq!(pod_processes(&board), before);
}
