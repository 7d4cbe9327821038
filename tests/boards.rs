//! Boards on links that fall silent, change their addresses and carry little; boards with wrong clocks,
//! that are renamed, or away for a month.

mod common;

use std::{fs, time::Duration};

use common::{
    Namespace, Node, Switch, must, output,
    several::{FakeClock, agent, cable, pod_processes, sampan, server, token, two_ready},
    unique, wait_at_most, wait_for,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// A daemon looks at its clock once a minute, and asks for tokens again after a minute.
const MINUTES: Duration = Duration::from_secs(150);

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
    fs::write(&large, format!("{}the end", "0123456789abcdef".repeat(50_000))).unwrap();
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
    fs::write(&file, rules).unwrap();
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

fn labels(master: &Node, node: &Node) -> Value {
    let text = master.k(&["get", "node", &node.name, "-o", "json"]);
    serde_json::from_str::<Value>(&text).unwrap()["metadata"]["labels"].clone()
}

#[test]
fn a_board_says_what_it_is_and_stays_it_when_its_host_is_renamed() {
    let switch = Switch::new(&unique("bw"));
    let mut master = server(&unique("bm"), &switch, "192.0.2.1/24", &[]);
    master.wait_ready();
    let firmware = tempfile::tempdir().unwrap();
    let tree = firmware.path().join("devicetree/base");
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("model"), "Raspberry Pi 4 Model B Rev 1.4\0").unwrap();
    let mut space = Namespace::on_switch(&unique("bs"), &switch, "192.0.2.2/24");
    space.set_file("/sys/firmware", firmware.path());
    let words = token(&master, &[]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let berry = Node::start("agent", &unique("ba"), space, &words);
    let mut plain = agent(&unique("ba"), &switch, "192.0.2.3/24", &token(&master, &[]));
    for node in [&berry, &plain] {
        wait_ready(&master, node, "True");
        let labels = labels(&master, node);
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        assert_eq!(labels["kubernetes.io/arch"], architecture);
        assert_eq!(labels["kubernetes.io/os"], "linux");
        assert_eq!(labels["kubernetes.io/hostname"], node.name);
    }
    assert_eq!(labels(&master, &berry)["sampan.dev/board"], "Raspberry-Pi-4-Model-B-Rev-1.4");
    master.apply(
        "# YAML\n{apiVersion: v1, kind: Pod, metadata: {name: chosen}, spec: {containers: [{name: c, image: \
         sampan.dev/demo}], nodeSelector: {sampan.dev/board: Raspberry-Pi-4-Model-B-Rev-1.4}}}",
    );
    let place = ["get", "pod", "chosen", "-o", "jsonpath={.status.phase} {.spec.nodeName}"];
    let there = format!("Running {}", berry.name);
    master.wait_output(&place, "the pod to run on that board", |text| text == there);

    // Somebody renames the hosts. The nodes are the same ones, and so are their pods.
    for (name, node) in [("stays", &plain), ("stays-too", &master)] {
        master.apply(&format!(
            "# YAML\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {}, containers: \
             [{{name: c, image: sampan.dev/demo}}]}}}}",
            node.name
        ));
    }
    let phases = ["get", "pods", "-o", "jsonpath={.items[*].status.phase}"];
    master.wait_output(&phases, "the pods to run", |text| text == "Running Running Running");
    let before = [pod_processes(&plain), pod_processes(&master)];
    let nodes = master.k(&["get", "nodes", "-o", "name"]);
    for node in [&mut plain, &mut master] {
        node.stop();
        node.forget_name();
        node.space.set_own("--uts", "hostname another");
        node.spawn();
    }
    for node in [&master, &berry, &plain] {
        wait_ready(&master, node, "True");
    }
    assert_eq!(master.k(&["get", "nodes", "-o", "name"]), nodes);
    assert_eq!([pod_processes(&plain), pod_processes(&master)], before);
    for pod in ["stays", "stays-too"] {
        assert_eq!(master.k(&["exec", pod, "--", "/bin/echo", "here"]), "here\n");
    }
}

/// Whether the API knows the token that a pod has.
fn knows_token(master: &Node, pod: &str) -> Result<(), String> {
    let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let token = output(master.kubectl().args(["exec", pod, "--", "/bin/cat", path])).stdout;
    let review = format!(
        r#"{{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {{"token": "{}"}}}}"#,
        String::from_utf8_lossy(&token)
    );
    let file = master.dir.path().join("review.json");
    fs::write(&file, review).unwrap();
    let said = master.k(&[
        "create",
        "--validate=false",
        "-o",
        "jsonpath={.status}",
        "-f",
        &file.display().to_string(),
    ]);
    said.contains(r#""authenticated":true"#).then_some(()).ok_or(said)
}

/// A pod of a node that no loss of it moves.
fn loyal(master: &Node, name: &str, node: &Node) {
    master.apply(&format!(
        "# YAML\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {}, \
         terminationGracePeriodSeconds: 1, containers: [{{name: c, image: sampan.dev/demo, volumeMounts: [{{name: m, \
         mountPath: /m}}]}}], volumes: [{{name: m, configMap: {{name: words}}}}], tolerations: [{{operator: Exists}}]}}}}",
        node.name
    ));
}

fn wait_running(master: &Node, pods: &[&str]) {
    for pod in pods {
        let phase = ["get", "pod", pod, "-o", "jsonpath={.status.phase}"];
        master.wait_output(&phase, &format!("{pod} to run"), |text| text == "Running");
    }
}

/// Uid and restarts of a pod.
fn life(master: &Node, pod: &str) -> String {
    let path = "jsonpath={.metadata.uid} {.status.containerStatuses[0].restartCount}";
    master.k(&["get", "pod", pod, "-o", path])
}

/// Waits until a daemon has seen that its clock was set.
fn wait_notices(node: &Node) {
    wait_at_most(MINUTES, "the clock to be looked at", || {
        let log = node.log();
        log.contains("the clock was set").then_some(()).ok_or(log)
    });
}

#[test]
fn boards_whose_clocks_are_wrong_join_run_pods_and_are_set_right() {
    let clocks = tempfile::tempdir().unwrap();
    let (here, there) = (FakeClock::new(clocks.path()), FakeClock::new(clocks.path()));
    // As if neither had a battery: one woke up in the seventies, one was set by somebody to ten years from now.
    let (long_ago, ahead) = (-1_500_000_000, 315_000_000);
    here.set(long_ago);
    there.set(ahead);
    let switch = Switch::new(&unique("bw"));
    let start = |mode: &str, name: &str, address: &str, args: &[&str], clock: &FakeClock| {
        let space = Namespace::on_switch(&unique("bs"), &switch, address);
        Node::start_with(mode, name, space, args, &clock.env())
    };
    let master = start("server", &unique("bm"), "192.0.2.1/24", &["--eviction-seconds", "3"], &here);
    master.wait_ready();
    let mut command = sampan(&master, &["token", "create"]);
    let words = must(command.envs(here.env()));
    let words: Vec<_> = words.split_whitespace().skip(2).collect();
    let board = start("agent", &unique("ba"), "192.0.2.2/24", &words, &there);
    wait_ready(&master, &board, "True");
    master.k(&["create", "configmap", "words", "--from-literal=word=ahoy"]);
    loyal(&master, "near", &master);
    loyal(&master, "far", &board);
    wait_running(&master, &["near", "far"]);
    let lives = || ["near", "far"].map(|pod| life(&master, pod));
    let before = lives();
    for pod in ["near", "far"] {
        knows_token(&master, pod).unwrap();
    }
    // The board's word of when something was is corrected to the master's time.
    let events = ["get", "events", "--field-selector=involvedObject.name=far", "-o", "json"];
    let events: Value = serde_json::from_str(&master.k(&events)).unwrap();
    let of_the_board = |event: &&Value| event["source"]["component"] == "kubelet";
    let times: Vec<Timestamp> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(of_the_board)
        .map(|event| event["lastTimestamp"].as_str().unwrap().parse().unwrap())
        .collect();
    let now = Timestamp::now() + SignedDuration::from_secs(long_ago);
    assert!(!times.is_empty());
    for time in times {
        assert!(now.duration_since(time).abs() < SignedDuration::from_mins(5), "{time}, and it is {now}");
    }

    // A network comes, and with it the right time: first at the master, then at the board.
    here.set(0);
    wait_at_most(MINUTES, "the master's pod to have a token that is good now", || {
        knows_token(&master, "near")
    });
    there.set(0);
    wait_notices(&board);
    wait_ready(&master, &board, "True");
    assert_eq!(lives(), before, "nothing was restarted, nothing was evicted");
    let nodes = master.k(&["get", "events", "-A"]);
    assert!(!nodes.contains("NodeNotReady"), "{nodes}");
}

#[test]
fn boards_that_were_away_for_a_month_come_back_by_themselves() {
    const MONTH: i64 = 31 * 86_400;
    let clocks = tempfile::tempdir().unwrap();
    let [of_master, of_cut, of_off] = [(); 3].map(|()| FakeClock::new(clocks.path()));
    let switch = Switch::new(&unique("bw"));
    let start = |mode: &str, name: &str, address: &str, args: &[&str], clock: &FakeClock| {
        let space = Namespace::on_switch(&unique("bs"), &switch, address);
        Node::start_with(mode, name, space, args, &clock.env())
    };
    let join = |master: &Node, address: &str, clock: &FakeClock| {
        let words = token(master, &[]);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let board = start("agent", &unique("ba"), address, &words, clock);
        wait_ready(master, &board, "True");
        board
    };
    let master = start("server", &unique("bm"), "192.0.2.1/24", &[], &of_master);
    master.wait_ready();
    let cut = join(&master, "192.0.2.2/24", &of_cut);
    let mut off = join(&master, "192.0.2.3/24", &of_off);
    master.k(&["create", "configmap", "words", "--from-literal=word=before"]);
    for (pod, node) in [("runs", &cut), ("unwanted", &cut), ("sleeps", &off)] {
        loyal(&master, pod, node);
    }
    wait_running(&master, &["runs", "unwanted", "sleeps"]);
    let uid = |pod: &str| life(&master, pod).split(' ').next().unwrap().to_owned();
    let before = ["runs", "sleeps"].map(uid);

    // One board is cut off and goes on, one lies in a drawer.
    cable(&switch, "192.0.2.2/24", "down");
    off.power_off();
    wait_ready(&master, &cut, "Unknown");
    wait_ready(&master, &off, "Unknown");
    // What happens meanwhile, on both sides.
    master.k(&["create", "configmap", "more", "--from-literal=word=since"]);
    master.k(&["patch", "configmap", "words", "-p", r#"{"data": {"word": "since"}}"#]);
    master.k(&["delete", "pod", "unwanted", "--wait=false"]);
    loyal(&master, "new", &cut);
    assert_eq!(must(&mut sampan(&cut, &["restart", "runs"])), "pod/runs restarted\n");
    let said = "echo said meanwhile > /proc/1/fd/1";
    wait_for("the restarted pod to speak", || {
        let out = output(&mut sampan(&cut, &["exec", "--local", "runs", "--", "/bin/sh", "-c", said]));
        let restarts = output(&mut sampan(&cut, &["get", "pods", "--local", "-o", "json"])).stdout;
        let again = String::from_utf8_lossy(&restarts).contains(r#""restartCount": 1"#);
        (out.status.success() && again)
            .then_some(())
            .ok_or_else(|| String::from_utf8_lossy(&out.stderr).into_owned())
    });
    of_master.set(MONTH);
    of_cut.set(MONTH);
    wait_notices(&master);
    wait_notices(&cut);

    // The clock of the board in the drawer stands where it stood.
    cable(&switch, "192.0.2.2/24", "up");
    off.spawn();
    wait_ready(&master, &cut, "True");
    wait_ready(&master, &off, "True");
    wait_running(&master, &["runs", "new", "sleeps"]);
    for (pod, uid) in ["runs", "sleeps"].into_iter().zip(before) {
        let once_more = format!("{uid} 1");
        wait_for(&format!("{pod} to be what it was"), || {
            let now = life(&master, pod);
            (now == once_more).then_some(()).ok_or(now)
        });
    }
    master.wait_output(&["get", "pods", "-o", "name"], "the unwanted pod to go", |t| !t.contains("unwanted"));
    assert!(master.k(&["logs", "runs"]).contains("said meanwhile"));
    for pod in ["runs", "new", "sleeps"] {
        wait_at_most(MINUTES, &format!("{pod} to have a good token"), || knows_token(&master, pod));
        let word = ["exec", pod, "--", "/bin/cat", "/m/word"];
        master.wait_output(&word, "the new word", |text| text == "since");
    }
}

const SET: &str = r"# YAML
{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, selector: {app: db}}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}, spec: {replicas: 1, serviceName: db,
  selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}},
  spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: sampan.dev/demo,
  readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]}}}}
";

#[test]
fn a_set_has_one_pod_of_each_name_also_when_its_board_is_lost() {
    let switch = Switch::new(&unique("bw"));
    let master = server(&unique("bm"), &switch, "192.0.2.1/24", &["--eviction-seconds", "2"]);
    master.wait_ready();
    let lost = agent(&unique("ba"), &switch, "192.0.2.2/24", &token(&master, &[]));
    let other = agent(&unique("ba"), &switch, "192.0.2.3/24", &token(&master, &[]));
    for node in [&lost, &other] {
        wait_ready(&master, node, "True");
    }
    for node in [&master, &other] {
        master.k(&["cordon", &node.name]);
    }
    master.apply(SET);
    let place = ["get", "pod", "db-0", "-o", "jsonpath={.spec.nodeName} {.status.phase}"];
    let on = |node: &Node| format!("{} Running", node.name);
    master.wait_output(&place, "the pod to run", |text| text == on(&lost));
    master.k(&["uncordon", &other.name]);
    master.k(&["create", "configmap", "words", "--from-literal=word=ahoy"]);
    loyal(&master, "asker", &master);
    wait_running(&master, &["asker"]);
    let asked = ["exec", "asker", "--", "/bin/wget", "-q", "-T", "2", "-O", "-", "http://db-0.db:8080/"];
    master.wait_output(&asked, "the pod to answer by its name", |text| text.contains("pod: db-0"));

    cable(&switch, "192.0.2.2/24", "down");
    let leaving = ["get", "pod", "db-0", "-o", "jsonpath={.metadata.deletionTimestamp}"];
    let uid = ["get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}"];
    let before = master.k(&uid);
    master.wait_output(&leaving, "the pod to be told to leave", |text| !text.is_empty());
    // Nobody knows whether it still runs there, and it does: there is no second one.
    assert!(!pod_processes(&lost).is_empty());
    assert_eq!((master.k(&uid), pod_processes(&other)), (before.clone(), String::new()));

    // Somebody says that the board is gone for good.
    master.k(&["taint", "node", &lost.name, "node.kubernetes.io/out-of-service=lost:NoExecute"]);
    master.wait_output(&place, "the pod to run elsewhere", |text| text == on(&other));
    assert_ne!(master.k(&uid), before);
    master.wait_output(&asked, "the new pod to answer by the name", |text| text.contains("pod: db-0"));

    // It is not gone after all: what is no longer wanted there ends.
    cable(&switch, "192.0.2.2/24", "up");
    wait_ready(&master, &lost, "True");
    wait_for("the old pod to end", || {
        let left = pod_processes(&lost);
        left.is_empty().then_some(()).ok_or(left)
    });
    master.wait_output(&place, "the new pod to stay", |text| text == on(&other));
}
