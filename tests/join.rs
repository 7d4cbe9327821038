//! Several boards: they join with tokens, live without their master, leave, and follow it when it moves.

mod common;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{
    Namespace, Node, Running, SAMPAN, Switch, must, output,
    several::{agent, pod_processes, sampan, server, token, two_ready},
    unique, wait_for,
};

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

/// Runs the pod `web` on a node until it is Running; its processes.
fn run_web(master: &Node, board: &Node) -> String {
    let manifest = master.dir.path().join("pod.yaml");
    std::fs::write(&manifest, POD.replace("NODE", &board.name)).unwrap();
    master.k(&["apply", "--validate=false", "-f", &manifest.display().to_string()]);
    let phase = ["get", "pod", "web", "-o", "jsonpath={.status.phase}"];
    master.wait_output(&phase, "the pod to run on the board", |text| text == "Running");
    pod_processes(board)
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

    let before = run_web(&master, &board);
    assert!(!before.is_empty());
    let csr = master.k(&["get", "csr"]);
    assert!(csr.contains("Approved,Issued") && csr.contains("system:bootstrap:"), "{csr}");
    let roles = master.k(&["get", "nodes", "-l", "node-role.kubernetes.io/control-plane", "-o", "name"]);
    assert_eq!(roles, format!("node/{}\n", master.name));

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
    master.kill();
    board.kill();
    board.spawn();
    wait_for("the daemon to be back", || {
        let socket = board.dir.path().join("run/control.sock");
        std::os::unix::net::UnixStream::connect(socket).map_err(|e| e.to_string())
    });
    assert_eq!(pod_processes(&board), before);

    // Its own verbs work on it meanwhile.
    let local = |args: &[&str]| must(&mut sampan(&board, args));
    let pods = local(&["get", "pods", "--local"]);
    assert!(pods.contains("web") && pods.contains("Running"), "{pods}");
    assert!(local(&["logs", "--local", "web"]).contains("serves http"), "logs");
    let said = local(&["exec", "--local", "web", "--", "/bin/sh", "-c", "echo here"]);
    assert_eq!(said, "here\n");
    let code =
        output(&mut sampan(&board, &["exec", "--local", "web", "--", "/bin/sh", "-c", "exit 3"])).status;
    assert_eq!(code.code(), Some(3));
    assert_eq!(local(&["restart", "web"]), "pod/web restarted\n");
    wait_for("the container to be another one", || {
        let now = pod_processes(&board);
        (!now.is_empty() && now != before).then_some(()).ok_or(now)
    });
    let before = pod_processes(&board);

    master.spawn();
    master.wait_output(&["get", "nodes"], "two nodes to be Ready", ready);
    let restarts = ["get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"];
    master.wait_output(&restarts, "the restart to be told", |text| text == "1");
    assert_eq!(pod_processes(&board), before);

    // A crash is noticed by the Last Will, a clean stop by its word.
    let ready = ["get", "node", &name, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"];
    for (clean, state) in [(false, "Unknown"), (true, "False")] {
        let start = Instant::now();
        if clean {
            board.stop();
        } else {
            board.kill();
        }
        master.wait_output(&ready, "the node to be away", |text| text == state);
        assert!(start.elapsed() < Duration::from_secs(30), "noticed after {:?}", start.elapsed());
        board.spawn();
        master.wait_output(&ready, "the node to be back", |text| text == "True");
    }
    assert_eq!(pod_processes(&board), before);

    // A copied memory card: the second board is refused, the first one stays what it is.
    let space = Namespace::on_switch(&unique("jc"), &switch, "192.0.2.6/24");
    let copy = tempfile::tempdir().unwrap();
    let identity = copy.path().join("agent/identity");
    must(Command::new("mkdir").arg("-p").arg(&identity));
    must(Command::new("cp").arg("-a").arg(board.dir.path().join("data/agent/identity/.")).arg(&identity));
    let clone = Daemon::start(&space, copy.path(), &["agent", "--hardware-id", "another"]);
    wait_for("the copy to be refused", || {
        let log = clone.log();
        log.contains("another board is the node").then_some(()).ok_or(log)
    });
    drop(clone);
    assert_eq!(master.k(&ready), "True");

    // Cordon, drain and taint are kubectl's.
    master.k(&["taint", "node", &name, "a=b:NoSchedule"]);
    master.k(&["drain", &name, "--force", "--ignore-daemonsets"]);
    assert!(master.k(&["get", "node", &name]).contains("SchedulingDisabled"));
    wait_for("the drained pod's processes to end", || {
        let left = pod_processes(&board);
        left.is_empty().then_some(()).ok_or(left)
    });
    master.k(&["uncordon", &name]);
    run_web(&master, &board);

    // Removed: its pods end, its certificate is worth nothing, and it may join again.
    let removed = output(&mut sampan(&master, &["node", "remove", &name, "--force"]));
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    wait_for("the removed board to end its pods and itself", || {
        let log = board.log();
        let forgotten = !board.dir.path().join("data/agent/identity").exists();
        (forgotten && log.contains("removed this board from the cluster") && pod_processes(&board).is_empty())
            .then_some(())
            .ok_or(log)
    });
    assert_eq!(master.k(&["get", "nodes", "-o", "name"]), format!("node/{}\n", master.name));
    let again = token(&master, &["--node", &name]);
    drop(board);
    let _board = agent(&name, &switch, "192.0.2.2/24", &again[..4]);
    master.wait_output(&["get", "nodes"], "the board to be back", two_ready);
}

/// A daemon without a cluster of its own; it is killed when dropped.
struct Daemon {
    _process: Running,
    log: std::path::PathBuf,
}

impl Daemon {
    fn start(space: &Namespace, dir: &Path, args: &[&str]) -> Self {
        let log = dir.join("daemon.log");
        let out = std::fs::File::create(&log).unwrap();
        let mut command = space.command(SAMPAN);
        command.args(args).arg("--data-dir").arg(dir).arg("--run-dir").arg(dir.join("run"));
        command.arg("--log-dir").arg(dir.join("log")).arg("--cgroup-root").arg(format!("/{}", unique("jd")));
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        Self { _process: Running(command.spawn().unwrap()), log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

#[test]
fn what_a_board_is_told_and_keeps_is_nobody_elses() {
    use std::os::unix::fs::PermissionsExt as _;

    let switch = Switch::new(&unique("jw"));
    let master = server(&unique("jm"), &switch, "192.0.2.1/24", &[]);
    master.wait_ready();

    // A token of another cluster's authority: the board tells it nothing.
    let mut words = token(&master, &[]);
    let parts: Vec<_> = words[3].split('.').map(str::to_owned).collect();
    let other: String = parts[1].chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
    words[3] = [&parts[0], &other, &parts[2], &parts[3]].map(String::as_str).join(".");
    let space = Namespace::on_switch(&unique("js"), &switch, "192.0.2.3/24");
    let dir = tempfile::tempdir().unwrap();
    let args: Vec<_> = std::iter::once("agent").chain(words.iter().map(String::as_str)).collect();
    let stranger = Daemon::start(&space, dir.path(), &args);
    wait_for("the authority to be seen through", || {
        let log = stranger.log();
        log.contains("is not the one that the token names").then_some(()).ok_or(log)
    });
    drop(stranger);
    assert!(
        master.k(&["get", "secrets", "-n", "kube-system", "-o", "name"]).contains(&parts[2]),
        "not spent"
    );

    // Who listens sees what passes, but no secret.
    let heard = master.dir.path().join("heard");
    let out = std::fs::File::create(&heard).unwrap();
    let mut tap = sampan(&master, &["mqtt", "tap"]).stdout(out).spawn().unwrap();
    let board = agent(&unique("ja"), &switch, "192.0.2.2/24", &token(&master, &[]));
    master.wait_output(&["get", "nodes"], "two nodes to be Ready", two_ready);
    master.k(&["create", "secret", "generic", "words", "--from-literal=word=hush"]);
    let pod = POD.replace("NODE", &board.name).replace(
        "image: sampan.dev/demo",
        "image: sampan.dev/demo\n    envFrom: [{secretRef: {name: words}}]",
    );
    master.apply(&pod);
    let phase = ["get", "pod", "web", "-o", "jsonpath={.status.phase}"];
    master.wait_output(&phase, "the pod to run", |text| text == "Running");
    let seen = wait_for("the messages to be shown", || {
        let text = std::fs::read_to_string(&heard).unwrap();
        let all = ["\"hello\"", "\"desired\"", "\"status\"", "\"name\":\"words\""];
        all.iter().all(|word| text.contains(word)).then_some(text.clone()).ok_or(text)
    });
    // In base64, as Secrets are.
    assert!(!seen.contains("aHVzaA=="), "{seen}");
    tap.kill().unwrap();
    tap.wait().unwrap();

    // What is on its disk is its user's alone, and so are the verbs that need no master.
    let mode =
        |path: &str| std::fs::metadata(board.dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    for secret in ["data/agent/identity/node.key", "data/agent/identity/membership.json", "run/control.sock"]
    {
        assert_eq!(mode(secret), 0o600, "{secret}");
    }
    let mut nobody = board.space.command("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", SAMPAN, "get", "pods", "--local"]);
    let refused = output(nobody.env("SAMPAN_RUN_DIR", board.dir.path().join("run")));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("ermission denied"), "{said}");
}

#[test]
fn a_cluster_is_restored_on_another_board_and_its_nodes_find_it() {
    let switch = Switch::new(&unique("jw"));
    let endpoints = "mqtts://192.0.2.1:8883,mqtts://192.0.2.9:8883";
    let mut old = server(&unique("jm"), &switch, "192.0.2.1/24", &["--endpoints", endpoints]);
    old.wait_ready();
    let board = agent(&unique("ja"), &switch, "192.0.2.2/24", &token(&old, &[]));
    old.wait_output(&["get", "nodes"], "two nodes to be Ready", two_ready);
    let before = run_web(&old, &board);
    let file = old.dir.path().join("cluster.backup");
    let said = must(&mut sampan(&old, &["backup", &file.display().to_string()]));
    assert!(said.contains("--restore"), "{said}");
    old.kill();

    let restore = ["--restore", &file.display().to_string()].map(str::to_owned);
    let args: Vec<_> = restore.iter().map(String::as_str).chain(["--endpoints", endpoints]).collect();
    let mut new = server(&unique("jo"), &switch, "192.0.2.9/24", &args);
    new.wait_ready();
    let ready =
        ["get", "node", &board.name, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"];
    new.wait_output(&ready, "the board to find the new master", |text| text == "True");
    assert_eq!(pod_processes(&board), before, "its pod went on");

    // The old master comes back: the board does not obey it any more, wherever it connects first.
    old.spawn();
    old.wait_output(&["get", "nodes"], "the old master to know only itself", |text| {
        text.matches(" Ready").count() == 1
    });
    new.kill();
    wait_for("the board to turn away from the old master", || {
        let log = board.log();
        log.contains("left behind").then_some(()).ok_or(log)
    });
    new.spawn();
    new.wait_output(&ready, "the board to be back at the new master", |text| text == "True");
    assert_eq!(pod_processes(&board), before);
}

#[test]
fn a_name_that_leads_to_another_board_is_followed() {
    let switch = Switch::new(&unique("jw"));
    let url = "mqtts://master.home:8883";
    let mut old = server(&unique("jm"), &switch, "192.0.2.1/24", &["--endpoints", url]);
    old.wait_ready();
    let words = token(&old, &[]);
    assert_eq!(words[1], url);
    let names = old.dir.path().join("hosts");
    std::fs::write(&names, "127.0.0.1 localhost\n").unwrap();
    let mut space = Namespace::on_switch(&unique("js"), &switch, "192.0.2.2/24");
    space.set_file("/etc/hosts", &names);
    let args: Vec<_> = words.iter().map(String::as_str).collect();
    let board = Node::start("agent", &unique("ja"), space, &args);
    wait_for("the name to be asked for in vain", || {
        let log = board.log();
        log.contains("the master cannot be reached").then_some(()).ok_or(log)
    });
    std::fs::write(&names, "192.0.2.1 master.home\n").unwrap();
    old.wait_output(&["get", "nodes"], "the board to find the name", two_ready);
    let before = run_web(&old, &board);
    let file = old.dir.path().join("cluster.backup");
    must(&mut sampan(&old, &["backup", &file.display().to_string()]));
    old.kill();

    let args = ["--restore", &file.display().to_string(), "--endpoints", url];
    let new = server(&unique("jo"), &switch, "192.0.2.9/24", &args);
    new.wait_ready();
    let reached = || {
        let out = output(new.kubectl().args(["exec", "web", "--", "/bin/echo", "here"]));
        (out.stdout == b"here\n")
            .then_some(())
            .ok_or_else(|| String::from_utf8_lossy(&out.stderr).into_owned())
    };
    assert!(reached().is_err(), "the name still leads to the old board");
    // The name leads to two boards now. The nearer one is silent.
    let silent = Namespace::on_switch(&unique("jq"), &switch, "192.0.2.3/24");
    let rules = old.dir.path().join("rules");
    let drop_all =
        "add table ip hole\nadd chain ip hole in { type filter hook input priority 0; policy drop; }\n";
    std::fs::write(&rules, drop_all).unwrap();
    must(silent.command("nft").arg("-f").arg(&rules));
    std::fs::write(&names, "192.0.2.3 master.home\n192.0.2.9 master.home\n").unwrap();
    wait_for("the board to follow the name", reached);
    assert_eq!(pod_processes(&board), before, "its pod went on");
    new.wait_output(&["get", "nodes"], "the board to be Ready", |text| {
        text.lines().any(|line| line.starts_with(&board.name) && line.contains(" Ready"))
    });
}

/// Debian's Mosquitto in a folder of its own.
struct Mosquitto {
    _child: Running,
    _dir: tempfile::TempDir,
}

impl Mosquitto {
    fn start(space: &Namespace, dir: tempfile::TempDir, config: &str) -> Self {
        // It gives root up for its own user.
        must(Command::new("chmod").args(["-R", "a+rX"]).arg(dir.path()));
        let path = dir.path().join("mosquitto.conf");
        std::fs::write(&path, config.replace("DIR", &dir.path().display().to_string())).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = space.command("mosquitto");
        command.arg("-c").arg(&path).stdout(log.try_clone().unwrap()).stderr(log);
        Self { _child: Running(command.spawn().unwrap()), _dir: dir }
    }
}

#[test]
fn two_clusters_share_mosquitto_one_by_passwords_one_by_certificates() {
    let switch = Switch::new(&unique("jw"));
    let broker_space = Namespace::on_switch(&unique("jb"), &switch, "192.0.2.20/24");
    let dir = tempfile::tempdir().unwrap();
    // The clusters exist before their broker: a first start makes authority and id.
    let by_password = "mqtt://boss:secret@192.0.2.20:1883";
    let first = server(&unique("jm"), &switch, "192.0.2.1/24", &["--mqtt-url", by_password]);
    let name = unique("jm");
    let second_dir = tempfile::tempdir().unwrap();
    let path = |file: &str| second_dir.path().join(file).display().to_string();
    // Certificates come from the cluster's own authority.
    let mut second = server(&name, &switch, "192.0.2.2/24", &[]);
    for node in [&first, &second] {
        wait_for("the kubeconfig", || node.kubeconfig().exists().then_some(()).ok_or_else(|| node.log()));
        node.wait_output(&["get", "--raw", "/readyz"], "the API", |text| text == "ok");
    }
    let board_names = [unique("ja"), unique("ja")];
    let make = |args: &[&str]| must(&mut sampan(&second, &[&["mqtt", "certificate"], args].concat()));
    make(&["--broker", "192.0.2.20", "--out", &path("broker")]);
    make(&["--master", "--out", &path("master")]);
    make(&["--node", &board_names[1], "--out", &path("board")]);
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        std::fs::copy(path(&format!("broker/{file}")), dir.path().join(file)).unwrap();
    }
    must(Command::new("chmod").arg("a+r").arg(dir.path().join("tls.key")));
    let passwords = dir.path().join("passwords");
    for (user, password) in [("boss", "secret"), ("kitchen", "word")] {
        let mut command = Command::new("mosquitto_passwd");
        if !passwords.exists() {
            command.arg("-c");
        }
        must(command.arg("-b").arg(&passwords).args([user, password]));
    }
    let rules = [
        sampan(&first, &["mqtt", "acl", "--node", &board_names[0], "--master", "boss", "--user", "kitchen"]),
        sampan(&second, &["mqtt", "acl", "--node", &board_names[1]]),
    ];
    let acl: String = rules.map(|mut command| must(&mut command)).concat();
    std::fs::write(dir.path().join("acl"), acl).unwrap();
    let config = "per_listener_settings true\nlistener 1883\nallow_anonymous false\npassword_file DIR/passwords\n\
                  acl_file DIR/acl\nlistener 8883\ncafile DIR/ca.crt\ncertfile DIR/tls.crt\nkeyfile DIR/tls.key\n\
                  require_certificate true\nuse_identity_as_username true\nacl_file DIR/acl\n";
    let broker = Mosquitto::start(&broker_space, dir, config);
    let external = |who: &str| {
        let files = ["--mqtt-ca", "--mqtt-cert", "--mqtt-key"];
        let paths = ["ca.crt", "tls.crt", "tls.key"].map(|file| path(&format!("{who}/{file}")));
        files.into_iter().map(str::to_owned).zip(paths).flat_map(|(f, p)| [f, p]).collect::<Vec<_>>()
    };
    second.stop();
    let mut args = external("master");
    args.extend(["--mqtt-url", "mqtts://192.0.2.20:8883"].map(str::to_owned));
    second.add_args(&args);
    second.spawn();
    // The master's own node speaks with the master's name.
    for node in [&first, &second] {
        node.wait_ready();
    }
    let join = |node: &Node, url: &str| {
        let words = token(node, &["--url", url]);
        assert_eq!(words[1], url);
        words
    };
    let words = join(&first, "mqtt://kitchen:word@192.0.2.20:1883");
    let board = agent(&board_names[0], &switch, "192.0.2.3/24", &words);
    first.wait_output(&["get", "nodes"], "a board to join with a password", two_ready);
    run_web(&first, &board);
    let mut words = join(&second, "mqtts://192.0.2.20:8883");
    words.extend(external("board"));
    let other = agent(&board_names[1], &switch, "192.0.2.4/24", &words);
    second.wait_output(&["get", "nodes"], "a board to join with a certificate", two_ready);
    run_web(&second, &other);
    let log = first.k(&["logs", "web"]);
    assert!(log.contains("serves http"), "{log}");

    // The broker's Last Will works as ours, and a lost broker heals.
    let lost = Instant::now();
    drop(board);
    let ready =
        ["get", "node", &board_names[0], "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"];
    first.wait_output(&ready, "the node to be away", |text| text == "Unknown");
    assert!(lost.elapsed() < Duration::from_secs(30), "{:?}", lost.elapsed());
    drop(broker);
    drop(other);
}

#[test]
fn boards_that_change_their_addresses_are_followed() {
    let switch = Switch::new(&unique("jw"));
    let master = server(&unique("jm"), &switch, "192.0.2.1/24", &[]);
    master.wait_ready();
    let board = agent(&unique("ja"), &switch, "192.0.2.2/24", &token(&master, &[]));
    master.wait_output(&["get", "nodes"], "two nodes to be Ready", two_ready);
    run_web(&master, &board);
    let address = master.k(&["get", "pod", "web", "-o", "jsonpath={.status.podIP}"]);
    let reached = |what: &str| {
        wait_for(what, || {
            let mut command = master.space.command("curl");
            let out = output(command.args([
                "-s",
                "-m",
                "2",
                "-o",
                "/dev/null",
                &format!("http://{address}:8080/"),
            ]));
            out.status.success().then_some(()).ok_or_else(|| format!("{out:?}"))
        });
    };
    reached("the pod on the board");
    let move_to = |node: &Node, from: &str, to: &str| {
        // In this order: with the first address of a network the kernel takes the others of it.
        must(node.space.command("ip").args(["addr", "del", &format!("{from}/24"), "dev", "lan0"]));
        must(node.space.command("ip").args(["addr", "add", &format!("{to}/24"), "dev", "lan0"]));
    };
    let internal = |name: &str| {
        let path = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
        ["get", "node", name, "-o", path].map(str::to_owned)
    };
    let is = |wanted: &'static str| move |text: &str| text == wanted;
    let ask = |args: [String; 5], what: &str, wanted| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        master.wait_output(&args, what, is(wanted));
    };
    move_to(&board, "192.0.2.2", "192.0.2.12");
    ask(internal(&board.name), "the board's new address", "192.0.2.12");
    reached("the pod at the board's new address");
    // The master's own: what leads to the API follows.
    move_to(&master, "192.0.2.1", "192.0.2.11");
    ask(internal(&master.name), "the master's new address", "192.0.2.11");
    let endpoint = ["get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[0].addresses[0]}"];
    master.wait_output(&endpoint, "the API's endpoint", is("192.0.2.11"));
    let mut command = master.space.command("curl");
    wait_for("the API through its Service", || {
        let out = output(command.args(["-sk", "-m", "2", "https://10.43.0.1/readyz"]));
        (out.stdout == b"ok").then_some(()).ok_or_else(|| format!("{out:?}"))
    });
}

const TWENTY: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 20
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      nodeName: NODE
      containers:
      - name: c
        image: sampan.dev/demo
        env: [{name: WORD, valueFrom: {secretKeyRef: {name: words, key: word}}}]
";

#[test]
fn a_lone_board_boots_cold_with_its_twenty_pods() {
    let switch = Switch::new(&unique("jw"));
    let mut master = server(&unique("jm"), &switch, "192.0.2.1/24", &[]);
    master.wait_ready();
    let mut board = agent(&unique("ja"), &switch, "192.0.2.2/24", &token(&master, &[]));
    master.wait_output(&["get", "nodes"], "two nodes to be Ready", two_ready);
    master.k(&["create", "secret", "generic", "words", "--from-literal=word=ahoy"]);
    master.apply(&TWENTY.replace("NODE", &board.name));
    let available = ["get", "deployment", "many", "-o", "jsonpath={.status.availableReplicas}"];
    master.wait_output(&available, "twenty pods", |text| text == "20");
    let uids = ["get", "pods", "-l", "app=many", "-o", "jsonpath={.items[*].metadata.uid}"];
    let before = master.k(&uids);

    // Master and board lose power; the board comes back alone.
    master.kill();
    board.power_off();
    assert_eq!(pod_processes(&board), "");
    let start = Instant::now();
    board.spawn();
    wait_for("the twenty pods to run again", || {
        let out = output(&mut sampan(&board, &["get", "pods", "--local", "-o", "json"])).stdout;
        let pods: serde_json::Value = serde_json::from_slice(&out).unwrap_or_default();
        // What they were before is known as well: those count that were started again.
        let again = |pod: &&serde_json::Value| {
            let container = &pod["status"]["containerStatuses"][0];
            container["restartCount"] == 1 && container["ready"] == true
        };
        let running = pods["items"].as_array().into_iter().flatten().filter(again).count();
        (running == 20).then_some(()).ok_or(format!("{running} run"))
    });
    println!("cold boot to twenty pods Running: {:?}", start.elapsed());
    let pods = must(&mut sampan(&board, &["get", "pods", "--local", "-o", "name"]));
    let pod = pods.lines().next().unwrap();
    let word = must(&mut sampan(&board, &["exec", "--local", pod, "--", "/bin/sh", "-c", "echo $WORD"]));
    assert_eq!(word, "ahoy\n");

    // Adopted: the master finds the same pods, each started once more.
    master.spawn();
    master.wait_output(&available, "twenty pods", |text| text == "20");
    assert_eq!(master.k(&uids), before);
}
