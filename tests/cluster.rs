//! One board as its user sees it: the real binary, the real kubectl, real containers.

mod common;
mod images;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Namespace, Node, board, mounts_below, must, output, processes_of, unique, wait_for};
use nix::pty::openpty;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: sampan.dev/demo
        ports:
        - containerPort: 8080
---
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": "blue"}}
"#;

#[test]
fn a_deployment_lives_from_apply_to_delete() {
    let node = board("life");
    let applied = node.apply(WEB);
    assert!(
        applied.contains("deployment.apps/web created") && applied.contains("configmap/settings created")
    );
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(node.apply(WEB).contains("deployment.apps/web unchanged"));
    // A List is checked against the older OpenAPI document.
    let list =
        "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: ConfigMap, metadata: {name: listed}}]}";
    assert_eq!(node.apply(&format!("# YAML\n{list}")), "configmap/listed created\n");

    let pods = node.k(&["get", "pods", "-o", "wide"]);
    assert_eq!(pods.matches("1/1     Running").count(), 2, "{pods}");
    assert!(pods.contains("10.42."), "{pods}");

    node.k(&["scale", "deployment/web", "--replicas=3"]);
    node.wait_output(&["get", "deployment", "web"], "three replicas", |text| text.contains("3/3"));

    node.k(&["set", "env", "deployment/web", "COLOUR=red"]);
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let sets = node.k(&["get", "rs", "--no-headers"]);
    assert_eq!(sets.lines().count(), 2, "{sets}");

    node.k(&["delete", "deployment", "web", "--wait=true"]);
    node.wait_output(&["get", "pods", "--no-headers"], "no pods", |text| text.trim().is_empty());
    let dir = node.dir.path().to_owned();
    wait_for("no container process to be left", || {
        let left: Vec<_> = processes_of(&dir).into_iter().filter(|p| !p.contains("--data-dir")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    wait_for("no mount to be left", || {
        let left: Vec<_> =
            mounts_below(&dir).into_iter().filter(|m| m.contains("/pods/") || m.contains("/ns/")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn containers_outlive_a_killed_daemon_and_are_adopted() {
    let mut node = board("adopt");
    node.apply(WEB);
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let query = [
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}",
    ];
    let before = node.k(&query);
    node.kill();
    node.spawn();
    node.wait_ready();
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(node.k(&query), before);
    assert!(node.k(&["get", "configmap", "settings", "-o", "jsonpath={.data.colour}"]) == "blue");
}

#[test]
fn exec_logs_and_exit_codes_come_through() {
    let node = board("exec");
    node.apply(WEB);
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(node.k(&["exec", "deploy/web", "--", "/sampan", "demo", "echo", "hello"]), "hello\n");
    let failed = output(node.kubectl().args(["exec", "deploy/web", "--", "/sampan", "demo", "exit", "7"]));
    assert_eq!(failed.status.code(), Some(7));

    node.k(&[
        "run",
        "talker",
        "--image=sampan.dev/demo",
        "--restart=Never",
        "--command",
        "--",
        "/sampan",
        "demo",
        "echo",
        "one line",
    ]);
    node.wait_output(&["get", "pod", "talker"], "the pod to complete", |text| text.contains("Completed"));
    assert_eq!(node.k(&["logs", "talker"]), "one line\n");

    node.k(&[
        "run",
        "failer",
        "--image=sampan.dev/demo",
        "--restart=Never",
        "--command",
        "--",
        "/sampan",
        "demo",
        "exit",
        "3",
    ]);
    node.wait_output(
        &["get", "pod", "failer", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.reason}"],
        "the exit code",
        |text| text == "Failed 3 Error",
    );
}

#[test]
fn a_container_over_its_memory_limit_is_oom_killed() {
    let node = board("oom");
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  restartPolicy: Never
  containers:
  - name: hog
    image: sampan.dev/demo
    args: [memhog, "200"]
    resources: {limits: {memory: 32Mi}}
"#,
    );
    node.wait_output(
        &["get", "pod", "hog", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason}"],
        "OOMKilled",
        |text| text == "OOMKilled",
    );
}

#[test]
fn the_built_in_verbs_do_what_kubectl_does() {
    let node = board("verbs");
    let file = node.dir.path().join("web.yaml");
    fs::write(&file, WEB).unwrap();
    let sampan = |args: &[&str]| {
        let mut command = node.space.command(common::SAMPAN);
        command.args(args).arg("--kubeconfig").arg(node.kubeconfig());
        must(&mut command)
    };
    let file = file.display().to_string();
    assert_eq!(sampan(&["apply", "-f", &file]), "deployment.apps/web created\nconfigmap/settings created\n");
    assert_eq!(
        sampan(&["apply", "-f", &file]),
        "deployment.apps/web unchanged\nconfigmap/settings unchanged\n"
    );
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let managed = node.k(&["get", "deployment/web", "-o", "yaml", "--show-managed-fields"]);
    assert!(managed.contains("manager: sampan") && !managed.contains("f:resourceVersion"), "{managed}");
    assert!(sampan(&["get", "pods"]).contains("Running"));
    assert!(sampan(&["get", "deploy/web", "-o", "yaml"]).contains("progressDeadlineSeconds: 600"));
    assert!(sampan(&["describe", "deployment", "web"]).contains("ScalingReplicaSet"));
    assert_eq!(sampan(&["get", "deploy/web", "-o", "jsonpath={.spec.replicas}"]), "2");
    assert_eq!(sampan(&["logs", "-l", "app=web", "--prefix"]).matches("[pod/web-").count(), 2);
    let head =
        format!("{} describe pods --kubeconfig {} | head -n 1", common::SAMPAN, node.kubeconfig().display());
    let first = output(node.space.command("sh").args(["-c", &head]));
    assert!(first.stdout.starts_with(b"Name:") && first.stderr.is_empty(), "{first:?}");
    sampan(&["delete", "-f", &file]);
    assert!(sampan(&["get", "deployments"]).is_empty());
}

/// busybox from the machine's package as an image of its own, imported through the running daemon.
fn import_busybox(node: &Node) {
    let file = node.dir.path().join("busybox.tar.zst");
    fs::write(&file, images::zstd(&images::busybox(&["sh", "stty"]))).unwrap();
    assert_eq!(must(&mut node.import(&file)), "test.local/busybox:1\n");
}

/// A program at a terminal of its own, what it shows, and the terminal's name for `stty`.
struct AtTerminal {
    child: Child,
    keys: fs::File,
    shown: Arc<Mutex<String>>,
    name: String,
}

impl AtTerminal {
    fn new(command: &Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let name = nix::unistd::ttyname(&pty.slave).unwrap().display().to_string();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        // setsid: the terminal becomes the program's own, so that it hears of a new size.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        let keys = fs::File::from(pty.master.try_clone().unwrap());
        let shown = Arc::new(Mutex::new(String::new()));
        let screen = Arc::clone(&shown);
        std::thread::spawn(move || read_all(pty.master, &screen));
        Self { child, keys, shown, name }
    }

    fn resize(&self, rows: u16, columns: u16) {
        let (rows, columns) = (rows.to_string(), columns.to_string());
        must(Command::new("stty").args(["-F", &self.name, "rows", &rows, "cols", &columns]));
    }

    /// Types a line until the answer is there: a new size takes its way to the container.
    fn ask(&mut self, line: &str, answer: &str) {
        wait_for(answer, || {
            self.keys.write_all(format!("{line}\r").as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let shown = self.shown.lock().unwrap();
            if shown.contains(answer) { Ok(()) } else { Err(shown.clone()) }
        });
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(terminal: OwnedFd, screen: &Mutex<String>) {
    let mut terminal = fs::File::from(terminal);
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = terminal.read(&mut bytes) {
        screen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

#[test]
fn a_terminal_in_a_container_works_and_follows_the_size() {
    let node = board("tty");
    import_busybox(&node);
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: box, image: "test.local/busybox:1", imagePullPolicy: Never, command: [/bin/busybox, sleep, "1000"]}
"#,
    );
    node.k(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    let mut sampan = node.space.command(common::SAMPAN);
    sampan.arg("exec").arg("--kubeconfig").arg(node.kubeconfig());
    let mut kubectl = node.kubectl();
    kubectl.arg("exec");
    for mut command in [kubectl, sampan] {
        command.args(["-it", "box", "--", "/bin/sh"]).env("TERM", "xterm");
        let mut terminal = AtTerminal::new(&command);
        terminal.resize(21, 77);
        terminal.ask("stty size", "21 77");
        terminal.resize(33, 101);
        terminal.ask("stty size", "33 101");
        terminal.keys.write_all(b"exit 5\r").unwrap();
        assert_eq!(terminal.child.wait().unwrap().code(), Some(5), "{}", terminal.shown.lock().unwrap());
    }
}

#[test]
fn systemd_hears_ready_when_the_api_answers() {
    let name = unique("notify");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let space = Namespace::new(&name, "192.0.2.10/24");
    let node =
        Node::start_with("server", &name, space, &[], &[("NOTIFY_SOCKET", &path.display().to_string())]);
    let mut message = [0; 64];
    let count = socket.recv(&mut message).unwrap();
    assert_eq!(&message[..count], b"READY=1");
    assert_eq!(node.k(&["get", "--raw", "/readyz"]), "ok");
}

#[test]
fn a_server_that_cannot_start_says_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let start = |data: &str, listen: &str| {
        let path = |part: &str| dir.path().join(part).display().to_string();
        let out =
            output(
                Command::new(common::SAMPAN).args(["server", "--disable", "agent", "--listen", listen]).args(
                    ["--mqtt-listen", "127.0.0.1:0", "--data-dir", &path(data), "--run-dir", &path("run")],
                ),
            );
        assert_eq!(out.status.code(), Some(1));
        let said = String::from_utf8(out.stderr).unwrap();
        said.lines().last().unwrap().to_owned()
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = start("data", &address);
    assert!(
        said.starts_with(&format!("Error: listen on {address}: Address ")) && said.contains(" in use"),
        "{said}"
    );
    assert!(said.contains("ss -ltnp"), "{said}");

    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let disk = Mounted::tmpfs(&small, "size=64k");
    let said = start("small/data", "127.0.0.1:0");
    assert!(said.contains("the disk is full: free some space"), "{said}");
    must(Command::new("mount").args(["-o", "remount,ro"]).arg(&small));
    let said = start("small/other", "127.0.0.1:0");
    assert!(said.contains("Read-only file system") && said.contains("remount it"), "{said}");
    drop(disk);
}

/// A tmpfs that goes with the value.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: &std::path::Path, options: &str) -> Self {
        must(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn logs_have_no_gap_over_a_killed_daemon() {
    let mut node = board("gap");
    import_busybox(&node);
    node.apply(
        r"
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: counter
    image: test.local/busybox:1
    command: [/bin/sh, -c, 'i=0; while true; do echo $i; i=$((i+1)); /bin/busybox usleep 5000; done']
",
    );
    let lines = |node: &Node| node.k(&["logs", "counter"]).lines().count();
    node.k(&["wait", "--for=condition=Ready", "pod/counter", "--timeout=60s"]);
    let before = wait_for("some lines", || Some(lines(&node)).filter(|n| *n > 20).ok_or_else(String::new));
    node.kill();
    // The container goes on without the daemon for a while that is worth many lines.
    std::thread::sleep(Duration::from_millis(500));
    node.spawn();
    node.wait_ready();
    // The node says hello a moment after the API is back; until then its logs cannot be had.
    let log = node.wait_output(&["logs", "counter"], "more lines", |log| log.lines().count() > before + 100);
    for (index, line) in log.lines().enumerate() {
        assert_eq!(line, index.to_string());
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let name = unique("kill");
    let space = Namespace::new(&name, "192.0.2.10/24");
    let mut node = Node::start("server", &name, space, &["--disable", "agent,ingress"]);
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        wait_for("the API", || {
            let out = output(node.kubectl().args(["get", "--raw", "/readyz"]));
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
        let kept = node.k(&["get", "configmaps", "-o", "name"]);
        for name in &acknowledged {
            assert!(kept.lines().any(|line| line == name), "round {round} lost {name}");
        }
        // Several at once, so that a kill meets commits of many writes.
        let many: Vec<_> = (0..8)
            .map(|n| {
                let names: Vec<_> = (0..30).map(|i| format!("r{round}-{n}-{i}")).collect();
                let objects: Vec<_> = names
                    .iter()
                    .map(|name| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n"))
                    .collect();
                let file = node.dir.path().join(format!("many-{round}-{n}.yaml"));
                fs::write(&file, objects.join("---\n")).unwrap();
                let mut create = node.kubectl();
                create.args(["create", "--validate=false", "-o", "name", "-f"]).arg(&file);
                create.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        let mut outputs: Vec<_> =
            many.into_iter().map(|mut child| (BufReader::new(child.stdout.take().unwrap()), child)).collect();
        // In the middle of it, each time at another place.
        let first = &mut outputs[0].0;
        acknowledged.extend(first.lines().take(3 * round + 2).map(Result::unwrap));
        node.kill();
        for (said, mut child) in outputs {
            acknowledged.extend(said.lines().map(Result::unwrap));
            child.wait().unwrap();
        }
        node.spawn();
    }
    assert!(acknowledged.len() > 50, "only {} writes were acknowledged", acknowledged.len());
}

#[test]
fn a_pod_is_measured_resized_and_debugged() {
    let node = board("figures");
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: sampan.dev/demo
    command: [/sampan, demo, sleep, "1000"]
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 100m, memory: 64Mi}}
"#,
    );
    node.wait_output(&["get", "pod", "p"], "the pod to run", |text| text.contains("1/1     Running"));

    let top = node.k(&["top", "pod", "p", "--containers"]);
    assert!(top.contains("MEMORY(bytes)") && top.contains("Mi"), "{top}");
    assert!(node.k(&["top", "node"]).contains('%'));
    let table = node.k(&["get", "pods.metrics.k8s.io", "p"]);
    assert!(
        table.starts_with("NAME   CPU") && table.contains("MEMORY") && table.contains("WINDOW"),
        "{table}"
    );
    assert!(node.k(&["get", "nodes.metrics.k8s.io"]).contains("WINDOW"));
    let described = node.k(&["describe", "node", &node.name]);
    let lease =
        format!("Lease:\n  HolderIdentity:  {}\n  AcquireTime:     <unset>\n  RenewTime:       ", node.name);
    assert!(described.contains(&lease), "{described}");
    let raw = format!("/api/v1/nodes/{}/proxy/metrics/resource", node.name);
    let metrics = node.k(&["get", "--raw", &raw]);
    assert!(
        metrics
            .contains("container_memory_working_set_bytes{container=\"c\",namespace=\"default\",pod=\"p\"}"),
        "{metrics}"
    );

    let larger = r#"{"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "200m", "memory": "96Mi"}}}]}}"#;
    node.k(&["patch", "pod", "p", "--subresource=resize", "--patch", larger]);
    let in_force = "jsonpath={.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].restartCount}";
    node.wait_output(&["get", "pod", "p", "-o", in_force], "the new limit", |text| text.trim() == "96Mi 0");

    let debug = [
        "debug",
        "p",
        "--image=sampan.dev/demo",
        "--target=c",
        "-c",
        "d",
        "--",
        "/sampan",
        "demo",
        "echo",
        "seen",
    ];
    node.k(&debug);
    let state = "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    node.wait_output(&["get", "pod", "p", "-o", state], "the debugger to end", |text| text.trim() == "0");
    assert_eq!(node.k(&["logs", "p", "-c", "d"]), "seen\n");
}

const VOLUMES: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 1234}
  containers:
  - name: c
    image: sampan.dev/demo
    command: [sh, -c, "echo kept > /data/file; sleep 3600"]
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: part, mountPath: /part, subPath: etc/passwd}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: part, image: {reference: sampan.dev/demo, pullPolicy: IfNotPresent}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: glutton}
spec:
  containers:
  - name: c
    image: sampan.dev/demo
    command: [sh, -c, "cat /sampan > /scratch/x; sleep 3600"]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes: [{name: scratch, emptyDir: {sizeLimit: 5Mi}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranded}
spec:
  containers: [{name: c, image: sampan.dev/demo, volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, csi: {driver: nobody.example}}]
"#;

#[test]
fn volumes_are_made_limited_refused_and_taken_away() {
    let node = board("volumes");
    node.apply(VOLUMES);
    node.k(&["wait", "--for=condition=Ready", "pod/keeper", "--timeout=60s"]);
    let volume = node.k(&["get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}"]);
    let folder = node.k(&["get", "pv", &volume, "-o", "jsonpath={.spec.hostPath.path}"]);
    let folder = std::path::PathBuf::from(folder);
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "kept\n");
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&fs::metadata(folder.join("file")).unwrap()), 1234);
    assert!(node.k(&["exec", "keeper", "--", "cat", "/part"]).starts_with("root:"));

    node.wait_output(&["get", "events"], "the refusal", |text| {
        text.contains("volumes of type \"csi\" are not supported by Sampan")
    });
    node.wait_output(
        &["get", "pod", "glutton", "-o", "jsonpath={.status.reason}: {.status.message}"],
        "the eviction",
        |text| text == "Evicted: Usage of EmptyDir volume \"scratch\" exceeds the limit \"5Mi\". ",
    );
    // The claim outlives its deletion while a pod has it; then folder and volume go.
    node.k(&["delete", "pvc", "data", "--wait=false"]);
    assert!(node.k(&["get", "pvc", "data"]).contains("Terminating"));
    node.k(&["delete", "pod", "keeper", "glutton", "stranded"]);
    node.wait_output(&["get", "pv", "--no-headers", "--ignore-not-found"], "no volume", str::is_empty);
    assert!(!folder.exists());
    let dir = node.dir.path().to_owned();
    wait_for("no mount to be left", || {
        let left: Vec<_> = mounts_below(&dir).into_iter().filter(|m| m.contains("/pods/")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}
