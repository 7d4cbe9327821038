//! Services of a running cluster: every kind of them on two boards, what they are given from the ranges
//! there are, and how soon every node serves and names what is ready.

mod common;

use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use common::{
    Namespace, Node, Running, SAMPAN, Switch, output,
    several::{agent, server, token, two_ready},
    unique, wait_for,
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
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
    _kubectl: Running,
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
        Self { _kubectl: Running(child), lines }
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

/// Asks a node's DNS from its network; the answers as text, in order.
fn ask_dns(node: &Node, name: &str, kind: RecordType) -> Vec<String> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let query = message.to_vec().unwrap();
    let space = File::open(format!("/run/netns/{}", node.space.name)).unwrap();
    let answered = thread::spawn(move || {
        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut answer = [0; 2048];
        let length = socket.send_to(&query, "10.43.0.10:53").and_then(|_| socket.recv(&mut answer));
        length.map(|length| Message::from_vec(&answer[..length]).unwrap())
    });
    let Ok(answer) = answered.join().unwrap() else { return Vec::new() };
    let mut all: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    all.sort();
    all
}

/// What `curl` gets in a node's network.
fn curl(node: &Node, args: &[&str]) -> String {
    let out = output(node.space.command("curl").args(["-s", "-m", "5"]).args(args));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

const PODS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: here, labels: {app: all, at: here}}
spec:
  nodeName: MASTER
  hostname: one
  subdomain: named
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: sampan.dev/demo, ports: [{name: web, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: there, labels: {app: all, at: there}}
spec:
  nodeName: BOARD
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: sampan.dev/demo, ports: [{name: web, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: never, labels: {app: never}}
spec:
  nodeName: BOARD
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: sampan.dev/demo, readinessProbe: {httpGet: {path: /nothing, port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: all}
spec: {selector: {app: all}, ports: [{name: http, port: 80, targetPort: web}, {name: more, port: 81, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: named}
spec: {clusterIP: None, selector: {at: here}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: unready}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: never}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ready}
spec: {selector: {app: never}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: inside}
spec: {internalTrafficPolicy: Local, selector: {at: there}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {at: there}, ports: [{port: 8888, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: foreign}
spec: {type: LoadBalancer, loadBalancerClass: example.com/other, selector: {at: there}, ports: [{port: 8889, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: portless}
spec: {type: LoadBalancer, allocateLoadBalancerNodePorts: false, selector: {at: there}, ports: [{port: 8890, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {trafficDistribution: PreferSameNode, selector: {app: all}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: all.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: manual}
spec: {externalIPs: [192.0.2.77], ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: manual-1, labels: {kubernetes.io/service-name: manual}}
addressType: IPv4
ports: [{port: 9090}]
endpoints: [{addresses: [192.0.2.2]}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: all, annotations: {nginx.ingress.kubernetes.io/rewrite-target: /$1}}
spec:
  rules:
  - host: web.test
    http:
      paths:
      - {path: /to/(.*), pathType: ImplementationSpecific, backend: {service: {name: all, port: {name: http}}}}
";

#[test]
fn every_kind_of_service_works_on_two_boards_and_over_a_crash() {
    let switch = Switch::new(&unique("sw"));
    let master = server(&unique("kinds"), &switch, "192.0.2.1/24", &[]);
    master.wait_ready();
    let mut board = agent(&unique("kindb"), &switch, "192.0.2.2/24", &token(&master, &[]));
    master.wait_output(&["get", "nodes"], "both nodes to be ready", two_ready);
    master.apply(&PODS.replace("MASTER", &master.name).replace("BOARD", &board.name));
    master.k(&["wait", "--for=condition=Ready", "pod/here", "pod/there", "--timeout=60s"]);
    let ip = |pod: &str| field(&master, &["pod", pod], ".status.podIP");
    let vip = |service: &str| field(&master, &["service", service], ".spec.clusterIP");
    let (here, there, never, all) = (ip("here"), ip("there"), ip("never"), vip("all"));
    let both = [("master", &master), ("board", &board)];

    // By address and port, named or not, on both nodes; both endpoints answer.
    for (what, node) in both {
        for port in ["80", "81"] {
            let mut heard = std::collections::BTreeSet::new();
            wait_for(&format!("both endpoints on {what}"), || {
                heard.insert(curl(node, &[&format!("http://{all}:{port}/hostname")]));
                if heard.contains("one\n") && heard.contains("there\n") {
                    Ok(())
                } else {
                    Err(format!("{heard:?}"))
                }
            });
        }
    }
    // By name, from a pod, the short way.
    let short =
        master.k(&["exec", "here", "--", "/sampan", "demo", "wget", "-q", "-O", "-", "http://all/hostname"]);
    assert!(short == "one\n" || short == "there\n", "{short}");
    // Names of every kind, on both nodes.
    let domain = "default.svc.cluster.local.";
    let reversed: Vec<&str> = here.rsplit('.').collect();
    let names: [(String, RecordType, Vec<String>); 8] = [
        (format!("all.{domain}"), RecordType::A, vec![all.clone()]),
        (format!("named.{domain}"), RecordType::A, vec![here.clone()]),
        (format!("one.named.{domain}"), RecordType::A, vec![here.clone()]),
        (
            format!("_http._tcp.named.{domain}"),
            RecordType::SRV,
            vec![format!("0 100 8080 one.named.{domain}")],
        ),
        (
            format!("{}.in-addr.arpa.", reversed.join(".")),
            RecordType::PTR,
            vec![format!("one.named.{domain}")],
        ),
        (format!("unready.{domain}"), RecordType::A, vec![never]),
        (format!("elsewhere.{domain}"), RecordType::A, vec![all.clone(), format!("all.{domain}")]),
        (format!("{}.default.pod.cluster.local.", there.replace('.', "-")), RecordType::A, vec![there]),
    ];
    for (what, node) in both {
        for (name, kind, wanted) in &names {
            wait_for(&format!("{name} on {what}"), || {
                let found = ask_dns(node, name, *kind);
                if found == *wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
            });
        }
    }
    // Nobody is ready: refused at once. To endpoints of one's own node only: nowhere on the master.
    let code =
        |node: &Node, url: &str| curl(node, &["-o", "/dev/null", "-w", "%{http_code} %{exitcode}", url]);
    assert_eq!(code(&master, &format!("http://{}/", vip("ready"))), "000 7");
    assert_eq!(curl(&board, &[&format!("http://{}/hostname", vip("inside"))]), "there\n");
    assert_eq!(code(&master, &format!("http://{}/", vip("inside"))), "000 28");
    // A load balancer's address, and what it is told of the nodes.
    let balancer = master.wait_output(&["get", "service", "outside", "-o", "yaml"], "addresses", |text| {
        text.contains("ip: 192.0.2.2")
    });
    assert!(balancer.contains("ip: 192.0.2.1"), "{balancer}");
    let health: u16 = field(&master, &["service", "outside"], ".spec.healthCheckNodePort").parse().unwrap();
    for (address, want) in [("192.0.2.1", "503 0"), ("192.0.2.2", "200 0")] {
        wait_for(&format!("the health of {address}"), || {
            let said = code(&master, &format!("http://{address}:{health}/"));
            if said == want { Ok(()) } else { Err(said) }
        });
    }
    assert_eq!(curl(&master, &["http://192.0.2.2:8888/hostname"]), "there\n");
    // One without ports of the nodes, and one that is another's business.
    master.wait_output(&["get", "service", "portless", "-o", "yaml"], "addresses", |text| {
        text.contains("ip: 192.0.2.2") && !text.contains("nodePort")
    });
    assert_eq!(curl(&board, &["http://192.0.2.1:8890/hostname"]), "there\n");
    assert_eq!(field(&master, &["service", "foreign"], ".status.loadBalancer"), "{}");
    assert_eq!(code(&board, "http://192.0.2.1:8889/"), "000 7");
    let port = field(&master, &["service", "foreign"], ".spec.ports[0].nodePort");
    assert_eq!(curl(&board, &[&format!("http://192.0.2.1:{port}/hostname")]), "there\n");
    // Each node prefers its own endpoint.
    for ((what, node), own) in both.into_iter().zip(["one\n", "there\n"]) {
        wait_for(&format!("{what} to prefer its own"), || {
            let heard: Vec<_> =
                (0..12).map(|_| curl(node, &[&format!("http://{}/hostname", vip("near"))])).collect();
            if heard.iter().all(|name| name == own) { Ok(()) } else { Err(format!("{heard:?}")) }
        });
    }
    // Endpoints that somebody wrote down: a program of the other node, also by an external address.
    let mut program = board.space.command(SAMPAN);
    let program = Running(program.args(["demo", "web", "9090"]).stdout(Stdio::null()).spawn().unwrap());
    for (what, node) in both {
        for address in [vip("manual"), "192.0.2.77".to_owned()] {
            wait_for(&format!("the program by {address} on {what}"), || {
                let said = code(node, &format!("http://{address}/hostname"));
                if said == "200 0" { Ok(()) } else { Err(said) }
            });
        }
    }
    drop(program);
    // The Ingress server of either node, and its addresses in the status.
    for address in ["192.0.2.1", "192.0.2.2"] {
        let heard = curl(&master, &["-H", "Host: web.test", &format!("http://{address}/to/hostname")]);
        assert!(heard == "one\n" || heard == "there\n", "{address}: {heard}");
    }
    master.wait_output(&["get", "ingress", "all", "-o", "yaml"], "the status", |text| {
        text.contains("ip: 192.0.2.1") && text.contains("ip: 192.0.2.2")
    });

    // The board's daemon dies and comes back: a connection through a Service is none the wiser.
    let space = File::open(format!("/run/netns/{}", board.space.name)).unwrap();
    let inside: Ipv4Addr = vip("inside").parse().unwrap();
    let stream = thread::spawn(move || {
        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
        TcpStream::connect((inside, 80)).unwrap()
    });
    let mut stream = stream.join().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut again = |when: &str| {
        stream.write_all(b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut heard = String::new();
        while !heard.ends_with("there\n") {
            let mut bytes = [0; 512];
            let length = stream.read(&mut bytes).unwrap_or_else(|error| panic!("{when}: {error}"));
            assert_ne!(length, 0, "{when}: {heard}");
            heard.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
    };
    again("before");
    board.kill();
    again("without the daemon");
    assert_eq!(curl(&master, &["http://192.0.2.2:8888/hostname"]), "there\n");
    board.spawn();
    master.wait_output(&["get", "nodes"], "both nodes to be ready again", two_ready);
    wait_for("the daemon's DNS", || {
        let found = ask_dns(&board, &format!("all.{domain}"), RecordType::A);
        if found == [all.as_str()] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    again("with the daemon back");
    assert_eq!(curl(&board, &[&format!("http://{}/hostname", vip("inside"))]), "there\n");
    assert_eq!(field(&master, &["pod", "there"], ".status.containerStatuses[0].restartCount"), "0");
}
