//! Boards on links that fall silent, change their addresses and carry little.

mod common;

use common::{
    Namespace, Node, Switch, must, output,
    several::{agent, cable, pod_processes, sampan, server, token, two_ready},
    unique, wait_for,
};

/// The state of a node's condition `Ready`; empty for one that is not known yet.
fn ready(master: &Node, node: &Node) -> String {
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    master.k(&["get", "node", &node.name, "--ignore-not-found", "-o", path])
}

fn wait_ready(master: &Node, node: &Node, state: &str) {
    wait_for(&format!("{} to be {state}", node.name), || {
        let now = ready(master, node);
        (now == state).then_some(()).ok_or(now)
    });
}

/// Pods on the lost board: one that moves, one that tolerates the loss for an hour, one with its data there.
const PODS: &str = r"# YAML
{apiVersion: apps/v1, kind: Deployment, metadata: {name: roams}, spec: {replicas: 1,
  selector: {matchLabels: {app: roams}}, template: {metadata: {labels: {app: roams}},
  spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: sampan.dev/demo}]}}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: waits}, spec: {
  tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 3600}],
  containers: [{name: c, image: sampan.dev/demo}]}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data},
  spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: keeps}, spec: {
  containers: [{name: c, image: sampan.dev/demo, volumeMounts: [{name: d, mountPath: /data}]}],
  volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}}
";

#[test]
fn boards_that_fall_silent_are_missed_and_their_pods_move_or_stay() {
    let switch = Switch::new(&unique("bw"));
    let master = server(&unique("bm"), &switch, "192.0.2.1/24", &["--eviction-seconds", "3"]);
    master.wait_ready();
    let wired = agent(&unique("ba"), &switch, "192.0.2.2/24", &token(&master, &[]));
    master.wait_output(&["get", "nodes"], "two nodes to be Ready", two_ready);
    master.k(&["cordon", &master.name]);
    master.apply(PODS);
    let running = ["get", "pods", "-o", "jsonpath={.items[*].status.phase}"];
    master.wait_output(&running, "the pods to run", |text| text == "Running Running Running");
    let nodes = master.k(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"]);
    assert_eq!(nodes, [wired.name.as_str(); 3].join(" "));
    master.k(&["uncordon", &master.name]);
    let mut wireless = token(&master, &[]);
    wireless.extend(["--link", "wifi"].map(str::to_owned));
    let wireless = agent(&unique("ba"), &switch, "192.0.2.3/24", &wireless);
    wait_ready(&master, &wireless, "True");
    let uids = ["get", "pods", "waits", "keeps", "-o", "jsonpath={.items[*].metadata.uid}"];
    let before = (master.k(&uids), pod_processes(&wired));

    for address in ["192.0.2.2/24", "192.0.2.3/24"] {
        cable(&switch, address, "down");
    }
    // Its pods say something while nobody hears it.
    let said = "echo said while cut off > /proc/1/fd/1";
    must(&mut sampan(&wired, &["exec", "--local", "waits", "--", "/bin/sh", "-c", said]));
    wait_ready(&master, &wired, "Unknown");
    wait_ready(&master, &wireless, "Unknown");
    let roams = [
        "get",
        "pods",
        "-l",
        "app=roams",
        "-o",
        "jsonpath={range .items[*]}{.spec.nodeName}={.status.phase} {end}",
    ];
    let here = format!("{}=Running", master.name);
    master.wait_output(&roams, "the pod to run elsewhere", |text| text.contains(&here));
    master.wait_output(&["get", "events"], "why the pod with data stays", |text| {
        text.contains("StaysOnLostNode") && text.contains("claim \"data\"")
    });
    let leaving = ["get", "pods", "waits", "keeps", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}"];
    assert_eq!(master.k(&leaving), "");
    assert_eq!(pod_processes(&wired), before.1, "the board itself goes on");

    for address in ["192.0.2.2/24", "192.0.2.3/24"] {
        cable(&switch, address, "up");
    }
    wait_ready(&master, &wired, "True");
    wait_ready(&master, &wireless, "True");
    master.wait_output(&roams, "the moved pod to leave the board", |text| text.trim() == here);
    assert_eq!(master.k(&uids), before.0);
    // One container each is left of the two that stayed; they were never started anew.
    wait_for("the moved pod's processes to end", || {
        let now = pod_processes(&wired);
        let all = now.lines().all(|pid| before.1.lines().any(|old| old == pid));
        (all && now.lines().count() < before.1.lines().count()).then_some(()).ok_or(now)
    });
    let restarts = [
        "get",
        "pods",
        "waits",
        "keeps",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
    ];
    assert_eq!(master.k(&restarts), "0 0");
    assert!(master.k(&["logs", "waits"]).contains("said while cut off"));
}

#[test]
fn a_board_changes_its_address_on_a_link_with_small_packets() {
    let switch = Switch::new(&unique("bw"));
    let master = server(&unique("bm"), &switch, "192.0.2.1/24", &[]);
    let narrow = |node: &Node| must(node.space.command("ip").args(["link", "set", "lan0", "mtu", "1280"]));
    narrow(&master);
    master.wait_ready();
    let space = Namespace::on_switch(&unique("bs"), &switch, "192.0.2.2/24");
    must(space.command("ip").args(["link", "set", "lan0", "mtu", "1280"]));
    let words = token(&master, &[]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let board = Node::start("agent", &unique("ba"), space, &words);
    wait_ready(&master, &board, "True");

    // A large ConfigMap finds its way, and its end is there.
    let large = master.dir.path().join("large");
    std::fs::write(&large, format!("{}the end", "0123456789abcdef".repeat(50_000))).unwrap();
    master.k(&["create", "configmap", "large", &format!("--from-file={}", large.display())]);
    master.apply(&format!(
        "# YAML\n{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{nodeName: {}, containers: [{{name: c, \
         image: sampan.dev/demo, volumeMounts: [{{name: m, mountPath: /m}}]}}], volumes: [{{name: m, \
         configMap: {{name: large}}}}]}}}}",
        board.name
    ));
    master
        .wait_output(&["get", "pod", "web", "-o", "jsonpath={.status.phase}"], "the pod", |t| t == "Running");
    let read = master.k(&["exec", "web", "--", "/bin/cat", "/m/large"]);
    assert!(read.len() == 800_007 && read.ends_with("the end"), "{} bytes", read.len());
    let ip = master.k(&["get", "pod", "web", "-o", "jsonpath={.status.podIP}"]);
    let page = || output(master.space.command("curl").args(["-s", "-m", "5", &format!("http://{ip}:8080/")]));
    wait_for("the pod to be reached", || page().status.success().then_some(()).ok_or(String::new()));
    let before = pod_processes(&board);

    // Another network's DHCP server.
    for change in [["del", "192.0.2.2/24"], ["add", "192.0.2.77/24"]] {
        must(board.space.command("ip").args(["addr"]).args(change).args(["dev", "lan0"]));
    }
    let address =
        ["get", "node", &board.name, "-o", "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}"];
    master.wait_output(&address, "the new address to be told", |text| text == "192.0.2.77");
    wait_ready(&master, &board, "True");
    assert_eq!(pod_processes(&board), before, "its pod went on");
    assert_eq!(master.k(&["exec", "web", "--", "/bin/echo", "here"]), "here\n");
    // The master's way to its pods leads to the new address.
    wait_for("the pod to be reached there", || {
        let out = page();
        out.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&out.stderr).into_owned())
    });
}

#[test]
fn a_board_behind_a_router_whose_address_changes_comes_back() {
    let switch = Switch::new(&unique("bw"));
    let master = server(&unique("bm"), &switch, "192.0.2.1/24", &[]);
    master.wait_ready();
    let router = Namespace::on_switch(&unique("br"), &switch, "192.0.2.50/24");
    let home = Namespace::new(&unique("bh"), "10.9.9.2/24");
    let ip = |args: &[&str]| drop(must(std::process::Command::new("ip").args(args)));
    ip(&[
        "-n",
        &home.name,
        "link",
        "add",
        "up0",
        "type",
        "veth",
        "peer",
        "name",
        "in0",
        "netns",
        &router.name,
    ]);
    ip(&["-n", &home.name, "link", "set", "up0", "master", "lan0", "up"]);
    ip(&["-n", &router.name, "addr", "add", "10.9.9.1/24", "dev", "in0"]);
    ip(&["-n", &router.name, "link", "set", "in0", "up"]);
    ip(&["-n", &home.name, "route", "add", "default", "via", "10.9.9.1"]);
    must(router.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
    let rules = "add table ip nat\nadd chain ip nat out { type nat hook postrouting priority 100; }\n\
                 add rule ip nat out oifname lan0 masquerade\n";
    let file = master.dir.path().join("nat");
    std::fs::write(&file, rules).unwrap();
    must(router.command("nft").arg("-f").arg(&file));

    let words = token(&master, &[]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let board = Node::start("agent", &unique("ba"), home, &words);
    wait_ready(&master, &board, "True");
    master.apply(&format!(
        "# YAML\n{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{nodeName: {}, containers: [{{name: c, \
         image: sampan.dev/demo}}]}}}}",
        board.name
    ));
    master
        .wait_output(&["get", "pod", "web", "-o", "jsonpath={.status.phase}"], "the pod", |t| t == "Running");
    let before = pod_processes(&board);

    // The provider gives the router another address: what it had translated is forgotten.
    for change in [["del", "192.0.2.50/24"], ["add", "192.0.2.51/24"]] {
        must(router.command("ip").args(["addr"]).args(change).args(["dev", "lan0"]));
    }
    let connections = || must(master.space.command("ss").args(["-Htn", "sport", "=", ":8883"]));
    wait_for("a connection from the new address", || {
        let now = connections();
        now.contains("192.0.2.51:").then_some(()).ok_or(now)
    });
    wait_ready(&master, &board, "True");
    wait_for("a command to run on the board", || {
        let out = output(master.kubectl().args(["exec", "web", "--", "/bin/echo", "here"]));
        (out.stdout == b"here\n")
            .then_some(())
            .ok_or_else(|| String::from_utf8_lossy(&out.stderr).into_owned())
    });
    assert_eq!(pod_processes(&board), before);
}
