//! Services of a running cluster: what they are given from the ranges there are, and how soon every
//! node serves and names what is ready.

mod common;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use common::{
    Namespace, Node, SAMPAN, Switch, output,
    several::{agent, server, token, two_ready},
    unique, wait_for,
};
use nix::sched::{CloneFlags, setns};

const WEB: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
    "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
    "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "sampan.dev/demo",
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}}]}}}}"#;

fn service(name: &str, more: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}"}}, "spec": {{{more}
        "selector": {{"app": "web"}}, "ports": [{{"port": 80, "targetPort": 8080}}]}}}}"#
    )
}

fn field(node: &Node, what: &[&str], path: &str) -> String {
    node.k(&[&["get"], what, &["-o", &format!("jsonpath={{{path}}}")]].concat())
}

/// What the API says to a manifest that it refuses; `None` when it takes it.
fn refused(node: &Node, manifest: &str) -> Option<String> {
    let file = node.dir.path().join(unique("refused"));
    std::fs::write(&file, manifest).unwrap();
    let out = output(node.kubectl().args(["create", "-f"]).arg(file));
    (!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).into_owned())
}

fn wait_answer(node: &Node, address: &str) {
    let url = format!("http://{address}/");
    wait_for(&format!("an answer of {url}"), || {
        let out = output(node.space.command(SAMPAN).args([
            "demo",
            "wget",
            "-q",
            "-O",
            "/dev/null",
            "-T",
            "5",
            &url,
        ]));
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
}

#[test]
fn addresses_and_ports_come_from_the_ranges_there_are() {
    let name = unique("ranges");
    let space = Namespace::new(&unique("rg"), "192.0.2.10/24");
    let ranges = ["--service-cidr", "10.43.0.0/28", "--service-node-port-range", "20000-20003"];
    let node = Node::start("server", &name, space, &ranges);
    node.wait_ready();
    node.apply(WEB);

    node.apply(&service("port", r#""type": "NodePort","#));
    let port: u16 = field(&node, &["service", "port"], ".spec.ports[0].nodePort").parse().unwrap();
    assert!((20_000..=20_003).contains(&port), "{port}");
    wait_answer(&node, &format!("192.0.2.10:{port}"));
    let asked = service("asked", r#""type": "NodePort","#)
        .replace(r#""port": 80"#, r#""port": 80, "nodePort": 30080"#);
    let said = refused(&node, &asked).expect("a port outside of the range");
    assert!(
        said.contains(
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is not in the valid range. \
             The range of valid ports is 20000-20003"
        ),
        "{said}"
    );

    // Fourteen addresses, of which the API, the names and the first Service have three.
    let full = (0..12).find_map(|number| refused(&node, &service(&format!("s{number}"), "")));
    assert!(full.expect("the range has an end").contains("range is full"));
    let more = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.99.0.0/28"]}}"#;
    node.apply(more);
    node.wait_output(&["get", "servicecidr", "more", "-o", "yaml"], "the range to be ready", |text| {
        text.contains("Kubernetes Service CIDR is ready")
    });
    node.apply(&service("further", ""));
    let address = field(&node, &["service", "further"], ".spec.clusterIP");
    assert!(address.starts_with("10.99.0."), "{address}");
    wait_answer(&node, &address);
    node.wait_output(&["get", "ipaddress", &address, "-o", "yaml"], "the address as an object", |text| {
        text.contains("ipaddress.kubernetes.io/managed-by: ipallocator.k8s.io")
            && text.contains("name: further\n    namespace: default\n    resource: services")
    });

    node.k(&["delete", "servicecidr", "more", "--wait=false"]);
    let held =
        node.wait_output(&["get", "servicecidr", "more", "-o", "yaml"], "the range to be held", |text| {
            text.contains("There are still IPAddresses referencing the ServiceCIDR")
        });
    assert!(held.contains("networking.k8s.io/service-cidr-finalizer"), "{held}");
    assert!(held.contains("reason: Terminating\n    status: \"False\"\n    type: Ready"), "{held}");
    assert!(refused(&node, &service("late", "")).is_some_and(|said| said.contains("range is full")));
    wait_answer(&node, &address);
    node.k(&["delete", "service", "further"]);
    node.wait_output(&["get", "servicecidr", "-o", "name"], "the range to go", |text| {
        text.trim() == "servicecidr.networking.k8s.io/kubernetes"
    });
}

/// Runs `probe` in a node's network until it holds, on a thread; when that was.
fn when(node: &Node, probe: impl Fn() -> bool + Send + 'static) -> mpsc::Receiver<Instant> {
    let space = File::open(format!("/run/netns/{}", node.space.name)).unwrap();
    let (found, when) = mpsc::channel();
    thread::spawn(move || {
        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
        let begin = Instant::now();
        while begin.elapsed() < common::PATIENCE {
            if probe() {
                // Nobody waits any more when the test has failed.
                let _ = found.send(Instant::now());
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    });
    when
}

/// The addresses that the cluster's DNS has for a name, asked on this thread's node.
fn resolve(name: &str) -> Vec<Ipv4Addr> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answer = [0; 512];
    let answered = socket.send_to(&query, "10.43.0.10:53").and_then(|_| socket.recv(&mut answer));
    let Ok(length) = answered else { return Vec::new() };
    // Each record is the last sixteen bytes of what is before the next: a pointer, and an address.
    let count = usize::from(answer[7]);
    let records = answer[length.saturating_sub(count * 16)..length].chunks_exact(16);
    records.map(|record| Ipv4Addr::new(record[12], record[13], record[14], record[15])).collect()
}

/// A watch of pods; each line is an event, with the time it came.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl Watch {
    fn start(node: &Node) -> Self {
        let mut command = node.kubectl();
        command.args(["get", "--raw", "/api/v1/namespaces/default/pods?watch=1"]);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if told.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// When a pod is seen ready, and its address.
    fn ready(&self) -> (Instant, Ipv4Addr) {
        loop {
            let (at, line) = self.lines.recv_timeout(common::PATIENCE).expect("a pod gets ready");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            let (status, meta) = (&event["object"]["status"], &event["object"]["metadata"]);
            let ready = status["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            if ready && meta["deletionTimestamp"].is_null() {
                return (at, status["podIP"].as_str().unwrap().parse().unwrap());
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints how long it took (`--nocapture`).
#[test]
fn every_node_serves_and_names_what_is_ready() {
    let switch = Switch::new(&unique("sw"));
    let master = server(&unique("served"), &switch, "192.0.2.1/24", &[]);
    master.wait_ready();
    let board = agent(&unique("board"), &switch, "192.0.2.2/24", &token(&master, &[]));
    master.wait_output(&["get", "nodes"], "both nodes to be ready", two_ready);
    master.apply(&service("web", ""));
    master.apply(&service("named", r#""clusterIP": "None","#));
    let vip: Ipv4Addr = field(&master, &["service", "web"], ".spec.clusterIP").parse().unwrap();
    let vip = SocketAddr::from((vip, 80));
    let name = "named.default.svc.cluster.local";
    let serves = move || TcpStream::connect_timeout(&vip, Duration::from_secs(1)).is_ok();
    master.apply(&WEB.replace("\"replicas\": 1", "\"replicas\": 0"));
    for round in 0..4 {
        for (what, node) in [("master", &master), ("board", &board)] {
            let silent = when(node, move || !serves() && resolve(name).is_empty());
            silent.recv_timeout(common::PATIENCE).unwrap_or_else(|_| panic!("{what} serves what is gone"));
        }
        let watch = Watch::start(&master);
        master.k(&["scale", "deployment", "web", "--replicas=1"]);
        let waiting: Vec<_> = [("master", &master), ("board", &board)]
            .into_iter()
            .flat_map(|(what, node)| {
                [
                    (format!("{what} serves"), when(node, serves)),
                    (format!("{what} names"), when(node, move || !resolve(name).is_empty())),
                ]
            })
            .collect();
        let (ready, address) = watch.ready();
        for (what, at) in waiting {
            let at = at.recv_timeout(common::PATIENCE).unwrap_or_else(|_| panic!("{what}: never"));
            let took = at.saturating_duration_since(ready).as_secs_f64() * 1e3;
            println!("round {round}: {what} after {took:.0} ms");
        }
        let named = when(&board, move || resolve(name) == [address]);
        named.recv_timeout(common::PATIENCE).expect("the name is the pod's address");
        master.k(&["scale", "deployment", "web", "--replicas=0"]);
    }
}
