//! Real packets to services: who reaches what, from where, and with which source address.
//! Needs root; leaves nothing behind, for no namespace has a name.

#[path = "net_lab/mod.rs"]
mod lab;

use std::{collections::BTreeSet, io::ErrorKind, net::Ipv4Addr};

use lab::{
    Node, Ns, Server, ask_over,
    two::{NODE_A, NODE_B, NODE_PORT, OUTSIDER, POD_A, POD_A2, POD_B, VIP, ip, lab, service},
    wait,
};
use sampan::net::{
    Backend, HostPort, Network, Protocol, ServicePort, Viewpoint,
    policy::{Flow, PodPolicy},
};

/// A service whose address is of another ServiceCIDR than the node's own.
#[test]
fn addresses_of_further_networks_are_reached_without_a_default_route() {
    let lab = lab();
    let further = ip(10, 99, 0, 7);
    lab.serve(&[POD_A], |service| service.cluster_ips.push(further));
    for ns in [&lab.a.ns, &lab.b.ns, &lab.pod_a2, &lab.pod_b] {
        assert_eq!(ns.ask((further, 80)).unwrap().server, "a");
    }
    lab.serve(&[POD_A], |_| {});
    assert!(!lab.a.ns.ip("route show table local").contains("10.99"));
    wait(lab.a.net.stop()).unwrap();
    assert!(!lab.a.ns.ip("route show table local").contains("10.43"));
}

/// SCTP packets as they are on the wire: the kernel of the test has no SCTP sockets, only its
/// connection tracking.
const SCTP: &str = r#"
import socket, struct, sys
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82f63b78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xffffffff)
def packet(source, to, tag, chunk):
    head = struct.pack("!HHI", source, to, tag)
    return head + crc32c(head + bytes(4) + chunk) + chunk
init = lambda kind, tag: struct.pack("!BBHIIHHI", kind, 0, 20, tag, 65536, 1, 1, 7)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
raw.settimeout(5)
if sys.argv[1] == "serve":
    print("ready", flush=True)
    data, (address, _) = raw.recvfrom(2048)
    source, to, _, _ = struct.unpack("!HHII", data[20:32])
    tag, = struct.unpack("!I", data[36:40])
    raw.sendto(packet(to, source, tag, init(2, 99)), (address, 0))
    print(address, to)
else:
    raw.sendto(packet(4711, int(sys.argv[3]), 0, init(1, 5)), (sys.argv[2], 0))
    data, (address, _) = raw.recvfrom(2048)
    print(address, *struct.unpack("!HH", data[20:24]), data[32])
"#;

#[test]
fn sctp_is_translated_where_the_kernel_tracks_it() {
    use std::{io::Read as _, process::Stdio};
    let lab = lab();
    for (node, third) in [(&lab.a, 0), (&lab.b, 1)] {
        let services = [Protocol::Sctp, Protocol::Tcp].map(|p| service(p, &[POD_A], third));
        let shortfalls = node.set_services(&services, &[]);
        let tracked = node
            .ns
            .run(|| std::fs::exists("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established"))
            .unwrap();
        assert_eq!(shortfalls.is_empty(), tracked, "{shortfalls:?}");
        // The rest does not suffer.
        assert_eq!(node.ns.ask((VIP, 80)).unwrap().server, "a");
        if !tracked {
            return;
        }
    }
    for (ns, to, port) in [(&lab.pod_b, VIP, 80), (&lab.outside, NODE_B, NODE_PORT)] {
        let mut server = lab.pod_a.run(|| {
            let mut command = std::process::Command::new("python3");
            command.args(["-c", SCTP, "serve"]).stdout(Stdio::piped()).spawn().unwrap()
        });
        let mut said = server.stdout.take().unwrap();
        said.read_exact(&mut [0; 6]).unwrap();
        let answer = ns.command("python3", &["-c", SCTP, "ask", &to.to_string(), &port.to_string()]);
        assert_eq!(answer.trim(), format!("{to} {port} 4711 2"));
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(rest.trim().ends_with(" 8080"), "{rest}");
        server.wait().unwrap();
    }
}

/// Who answers when asked many times.
fn answering(ns: &Ns, to: (Ipv4Addr, u16)) -> BTreeSet<String> {
    (0..24).map(|_| ns.ask(to).unwrap().server).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn every_asker_reaches_every_endpoint() {
    let lab = lab();
    lab.serve(&[POD_A, POD_B], |_| {});
    let vip = (VIP, 80);
    for (asker, ns) in [("pod", &lab.pod_a), ("host", &lab.a.ns), ("other host", &lab.b.ns)] {
        assert_eq!(answering(ns, vip), names(["a", "b"]), "{asker}");
        assert!(ns.ask_udp(vip).is_ok(), "{asker}");
    }
    for node in [NODE_A, NODE_B] {
        assert_eq!(answering(&lab.outside, (node, NODE_PORT)), names(["a", "b"]));
        assert_eq!(answering(&lab.pod_a, (node, NODE_PORT)), names(["a", "b"]));
        assert_eq!(answering(&lab.a.ns, (node, NODE_PORT)), names(["a", "b"]));
        assert!(lab.outside.ask_udp((node, NODE_PORT)).is_ok());
    }
    // The node's own port by its loopback address, also to the other node.
    assert_eq!(answering(&lab.a.ns, (Ipv4Addr::LOCALHOST, NODE_PORT)), names(["a", "b"]));
}

#[test]
fn sources_are_kept_where_answers_find_back() {
    let lab = lab();
    lab.serve(&[POD_A], |_| {});
    // Pod to pod: untouched. A pod to itself through its service: by the node.
    assert_eq!(lab.pod_b.ask((VIP, 80)).unwrap().source, POD_B);
    assert_eq!(lab.pod_a.ask((VIP, 80)).unwrap().source, ip(10, 42, 0, 0));
    assert_eq!(lab.pod_a.ask_udp((VIP, 80)).unwrap().source, ip(10, 42, 0, 0));
    assert_eq!(lab.pod_a.ask((NODE_A, NODE_PORT)).unwrap().source, ip(10, 42, 0, 0));
    // From outside to an endpoint of the node that was asked: untouched. Of another node: by it.
    assert_eq!(lab.outside.ask((NODE_A, NODE_PORT)).unwrap().source, OUTSIDER);
    assert_eq!(lab.outside.ask((NODE_B, NODE_PORT)).unwrap().source, ip(10, 42, 1, 0));
    // Pods outside the cluster: by their node's address.
    let _server = Server::new(&lab.outside, "outside", 9090);
    assert_eq!(lab.pod_a.ask((OUTSIDER, 9090)).unwrap().source, NODE_A);
    assert_eq!(lab.pod_b.ask_udp((OUTSIDER, 9090)).unwrap().source, NODE_B);
    let _host = Server::new(&lab.b.ns, "host-b", 9090);
    assert_eq!(lab.pod_a.ask((NODE_B, 9090)).unwrap().source, NODE_A);
}

#[test]
fn endpoints_that_are_not_pods_are_reached() {
    let lab = lab();
    let _server = Server::new(&lab.b.ns, "host-b", 8080);
    lab.serve(&[NODE_B], |_| {});
    for ns in [&lab.pod_a, &lab.a.ns, &lab.pod_b, &lab.b.ns] {
        assert_eq!(ns.ask((VIP, 80)).unwrap().server, "host-b");
    }
    for node in [NODE_A, NODE_B] {
        assert_eq!(lab.outside.ask((node, NODE_PORT)).unwrap().server, "host-b");
    }
    assert_eq!(lab.a.ns.ask((Ipv4Addr::LOCALHOST, NODE_PORT)).unwrap().server, "host-b");
}

#[test]
fn nothing_behind_a_service_is_refused_at_once() {
    let lab = lab();
    lab.serve(&[], |_| {});
    let refused = |ns: &Ns, to| assert_eq!(ns.ask(to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    for ns in [&lab.pod_a, &lab.a.ns] {
        refused(ns, (VIP, 80));
        // No such port, no such service.
        refused(ns, (VIP, 81));
        refused(ns, (ip(10, 43, 99, 99), 80));
        // A refused datagram of the host itself is not even sent.
        let error = ns.ask_udp((VIP, 80)).unwrap_err().kind();
        assert!(matches!(error, ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied), "{error}");
    }
    refused(&lab.outside, (NODE_A, NODE_PORT));
    lab.serve(&[POD_A], |_| {});
    assert_eq!(lab.pod_a.ask((VIP, 80)).unwrap().server, "a");
}

#[test]
fn a_client_sticks_to_its_endpoint() {
    let lab = lab();
    lab.serve(&[POD_A, POD_A2, POD_B], |service| service.affinity_seconds = Some(10800));
    let chosen = answering(&lab.outside, (NODE_A, NODE_PORT));
    assert_eq!(chosen.len(), 1);
    // Any node chooses the same for the same client and frontend.
    assert_eq!(answering(&lab.outside, (NODE_B, NODE_PORT)), chosen);
    assert_eq!(answering(&lab.pod_a, (VIP, 80)).len(), 1);
    // Clients differ.
    let mut all = BTreeSet::new();
    for last in 20..60 {
        lab.outside.ip(&format!("addr add 192.0.2.{last}/24 dev eth0"));
        all.insert(lab.outside.ask_from(ip(192, 0, 2, last), (NODE_A, NODE_PORT)).unwrap().server);
    }
    assert_eq!(all, names(["a", "a2", "b"]));
    // Who has an endpoint keeps it when others come, and gets another when it goes.
    let sticky = |service: &mut ServicePort| service.affinity_seconds = Some(10800);
    let asked = || lab.pod_b.ask((VIP, 80)).unwrap().server;
    for (first, second, name) in [(POD_A, POD_A2, "a"), (POD_A2, POD_B, "a2"), (POD_B, POD_A, "b")] {
        lab.serve(&[first], sticky);
        assert_eq!(asked(), name);
        lab.serve(&[first, second, POD_A, POD_A2, POD_B], sticky);
        assert_eq!(answering(&lab.pod_b, (VIP, 80)), names([name]));
    }
    // Its time: a second after the last connection it may be anybody again.
    lab.serve(&[POD_A, POD_A2, POD_B], |service| service.affinity_seconds = Some(1));
    let listed = || lab.b.ns.command("nft", &["list ruleset"]);
    assert!(!asked().is_empty());
    let known = format!("{POD_B} . {VIP} . tcp . 80 timeout");
    assert!(listed().contains(&known), "{}", listed());
    lab::wait_until("the client is forgotten", || !listed().contains(&known));
    // A service that ends takes what its clients had with it.
    lab.serve(&[POD_A, POD_A2], sticky);
    assert!(!asked().is_empty());
    assert!(listed().contains(&known), "{}", listed());
    for node in [&lab.a, &lab.b] {
        node.set_services(&[], &[]);
    }
    assert!(!listed().contains(&format!("{VIP} . tcp")), "{}", listed());
}

#[test]
fn local_policies_use_local_endpoints_only() {
    let lab = lab();
    let external = ip(192, 0, 2, 200);
    for ns in [&lab.outside, &lab.b.ns] {
        ns.ip(&format!("route add {external} via {NODE_A}"));
    }
    lab.serve(&[POD_A, POD_B], |service| {
        service.external_local = true;
        service.external_ips = vec![external];
    });
    assert_eq!(answering(&lab.outside, (NODE_A, NODE_PORT)), names(["a"]));
    assert_eq!(answering(&lab.outside, (NODE_B, NODE_PORT)), names(["b"]));
    assert_eq!(answering(&lab.outside, (external, 80)), names(["a"]));
    assert_eq!(lab.outside.ask((external, 80)).unwrap().source, OUTSIDER);
    // Inside the cluster the policy for outsiders does not hold.
    assert_eq!(answering(&lab.pod_a, (external, 80)), names(["a", "b"]));
    assert_eq!(answering(&lab.a.ns, (NODE_A, NODE_PORT)), names(["a", "b"]));
    lab.serve(&[POD_B], |service| {
        service.external_local = true;
        service.internal_local = true;
    });
    assert_eq!(lab.outside.ask((NODE_B, NODE_PORT)).unwrap().server, "b");
    assert_eq!(lab.pod_b.ask((VIP, 80)).unwrap().server, "b");
    // Dropped, not refused: the answer is nobody's.
    for (ns, to) in [(&lab.outside, (NODE_A, NODE_PORT)), (&lab.pod_a, (VIP, 80))] {
        assert_ne!(ns.ask(to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn only_allowed_sources_reach_a_restricted_address() {
    let lab = lab();
    let external = ip(192, 0, 2, 200);
    lab.outside.ip(&format!("route add {external} via {NODE_A}"));
    lab.outside.ip("addr add 192.0.2.130/24 dev eth0");
    lab.serve(&[POD_A], |service| {
        service.balancer_ips = vec![external];
        service.source_ranges = vec!["192.0.2.128/25".to_owned(), "192.0.2.130/32".to_owned()];
    });
    assert_eq!(lab.outside.ask_from(ip(192, 0, 2, 130), (external, 80)).unwrap().server, "a");
    assert!(lab.outside.ask_from(OUTSIDER, (external, 80)).is_err());
    assert_eq!(lab.outside.ask_from(OUTSIDER, (NODE_A, NODE_PORT)).unwrap().server, "a");
    // A node and its pods are no exception.
    for ns in [&lab.a.ns, &lab.pod_a2] {
        assert!(ns.ask((external, 80)).is_err());
    }
    lab.serve(&[POD_A], |service| {
        service.balancer_ips = vec![external];
        service.source_ranges = vec![format!("{NODE_A}/32"), format!("{POD_A2}/32")];
    });
    for ns in [&lab.a.ns, &lab.pod_a2] {
        assert_eq!(ns.ask((external, 80)).unwrap().server, "a");
    }
}

#[test]
fn host_ports_lead_to_their_pod() {
    let lab = lab();
    let port = |host_ip, host_port| HostPort {
        protocol: Protocol::Tcp,
        host_ip,
        host_port,
        pod_ip: POD_A,
        pod_port: 8080,
    };
    let ports = [port(None, 8000), port(Some(NODE_A), 8001), port(Some(Ipv4Addr::LOCALHOST), 8002)];
    lab.a.set_services(&[], &ports);
    for ns in [&lab.outside, &lab.b.ns, &lab.a.ns, &lab.pod_a, &lab.pod_b] {
        assert_eq!(ns.ask((NODE_A, 8000)).unwrap().server, "a");
        assert_eq!(ns.ask((NODE_A, 8001)).unwrap().server, "a");
    }
    assert_eq!(lab.outside.ask((NODE_A, 8000)).unwrap().source, OUTSIDER);
    assert_eq!(lab.a.ns.ask((Ipv4Addr::LOCALHOST, 8000)).unwrap().server, "a");
    assert_eq!(lab.a.ns.ask((Ipv4Addr::LOCALHOST, 8002)).unwrap().server, "a");
    assert!(lab.a.ns.ask((Ipv4Addr::LOCALHOST, 8001)).is_err());
    assert!(lab.outside.ask((NODE_A, 8002)).is_err());
}

#[test]
fn foreign_tables_stay_and_our_own_is_repaired() {
    let node = Node::start(Ns::new(), 0);
    let nft = |script: &str| node.ns.command("nft", &[script]);
    nft(
        "table inet theirs { set s { type ipv4_addr; elements = { 192.0.2.1 } }; chain c { type filter hook input priority 0; }; }",
    );
    let theirs = nft("list table inet theirs");
    let ours = || nft("list table ip sampan");
    let services = |endpoints: &[Ipv4Addr]| vec![service(Protocol::Tcp, endpoints, 0)];
    let set = |endpoints: &[Ipv4Addr]| node.set_services(&services(endpoints), &[]);
    set(&[POD_A]);
    let one = ours();
    assert!(one.contains("10.43.7.1 . tcp . 80 : goto lb1"), "{one}");
    set(&[POD_A, POD_B]);
    set(&[POD_B]);
    assert!(!ours().contains("lb2"));
    set(&[]);
    set(&[POD_A]);
    assert_eq!(ours(), one);
    // Nothing changed: no transaction at all.
    let handle = || node.ns.command("nft", &["-a", "list table ip sampan"]);
    let before = handle();
    set(&[POD_A]);
    wait(node.net.start(&node.pod_cidr)).unwrap();
    assert_eq!(handle(), before);
    // Others' changes of their tables do not matter to ours; of ours, they are undone.
    nft("add element inet theirs s { 192.0.2.2 }");
    set(&[POD_A]);
    assert_eq!(handle(), before);
    for damage in [
        "delete element ip sampan services { 10.43.7.1 . tcp . 80 }",
        "add element ip sampan foreign { 1.2.3.4 . tcp . 80 }",
        "flush chain ip sampan postrouting",
        "delete table ip sampan",
    ] {
        nft(damage);
        set(&[POD_A]);
        assert_eq!(ours(), one, "after {damage}");
    }
    // A firewall that would drop the pods' packets is found.
    let blockers = || node.ns.run(|| sampan::net::closed_chains().unwrap().forward);
    assert!(blockers().is_empty());
    nft("add chain inet theirs ways { type filter hook forward priority 0; policy drop; }");
    assert_eq!(blockers(), ["inet theirs ways"]);
    nft("add chain inet theirs ways { type filter hook forward priority 0; policy accept; }");
    for (rule, stops) in [
        ("ip saddr 10.42.0.0/16 reject", false),
        ("counter drop", true),
        ("ip saddr 10.42.0.0/16 accept", false),
        ("log prefix \"no\" reject with icmpx admin-prohibited", true),
    ] {
        nft(&format!("add rule inet theirs ways {rule}"));
        assert_eq!(blockers().len(), usize::from(stops), "{rule}");
    }
    nft("delete chain inet theirs ways");
    nft("delete element inet theirs s { 192.0.2.2 }");
    assert_eq!(nft("list table inet theirs"), theirs);
    wait(node.net.stop()).unwrap();
    assert_eq!(nft("list ruleset"), theirs);
}

/// `trafficDistribution`: endpoints that are meant for this node or zone, as long as there is one.
#[test]
fn endpoints_near_by_are_preferred() {
    let lab = lab();
    let all = [POD_A, POD_A2, POD_B];
    let near = |hints: fn(&mut Backend)| {
        for (node, third, name, zone) in [(&lab.a, 0, "node-0", "z0"), (&lab.b, 1, "node-1", "z1")] {
            let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
                let mut service = service(protocol, &all, third);
                service.backends.iter_mut().for_each(hints);
                service.see_from(Viewpoint { node: name, zone, pods: node.pod_cidr.parse().unwrap() });
                service
            });
            node.set_services(&services, &[]);
        }
    };
    near(|backend| backend.for_nodes = vec![format!("node-{}", backend.address.octets()[2])]);
    assert_eq!(answering(&lab.pod_a, (VIP, 80)), names(["a", "a2"]));
    assert_eq!(answering(&lab.pod_b, (VIP, 80)), names(["b"]));
    assert_eq!(answering(&lab.outside, (NODE_B, NODE_PORT)), names(["b"]));
    near(|backend| backend.for_zones = vec![format!("z{}", backend.address.octets()[2])]);
    assert_eq!(answering(&lab.a.ns, (VIP, 80)), names(["a", "a2"]));
    // One without a hint: all are for all.
    near(|backend| {
        if backend.address != POD_A2 {
            backend.for_zones = vec![format!("z{}", backend.address.octets()[2])];
        }
    });
    assert_eq!(answering(&lab.pod_b, (VIP, 80)), names(["a", "a2", "b"]));
}

/// Endpoints that end serve while there is no other, and outsiders by the policy `Local` on their node.
#[test]
fn ending_endpoints_serve_alone() {
    let lab = lab();
    let ending = |gone: &'static [Ipv4Addr], local| {
        lab.serve(&[POD_A, POD_B], move |service| {
            service.external_local = local;
            for backend in &mut service.backends {
                backend.ending = gone.contains(&backend.address);
            }
        });
    };
    ending(&[POD_A], false);
    for ns in [&lab.pod_a2, &lab.pod_b, &lab.a.ns] {
        assert_eq!(answering(ns, (VIP, 80)), names(["b"]));
    }
    ending(&[POD_A], true);
    assert_eq!(answering(&lab.outside, (NODE_A, NODE_PORT)), names(["a"]));
    assert_eq!(answering(&lab.pod_a2, (VIP, 80)), names(["b"]));
    ending(&[POD_A, POD_B], false);
    assert_eq!(answering(&lab.pod_a2, (VIP, 80)), names(["a", "b"]));
}

/// Firewalls of other programs that drop what is forwarded: Docker's, ufw's, and one of the host's own.
#[test]
fn firewalls_that_drop_are_named_with_what_lets_pods_pass() {
    let docker = "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; \
        iptables -A DOCKER-USER -j RETURN";
    let own = "nft 'table inet own { chain ways { type filter hook forward priority 0; policy drop; }; }'";
    let ufw = "iptables -P FORWARD DROP; iptables -N ufw-before-forward; iptables -N ufw-reject-forward; \
        iptables -A FORWARD -j ufw-before-forward; iptables -A FORWARD -j ufw-reject-forward; \
        iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
        iptables -A ufw-before-forward -m conntrack --ctstate INVALID -j DROP; \
        iptables -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT; \
        iptables -A ufw-reject-forward -j REJECT";
    for (name, set_up) in [("ip filter FORWARD", docker), ("ip filter FORWARD", ufw), ("inet own ways", own)]
    {
        let lab = lab();
        lab.serve(&[POD_A], |_| {});
        let ways = [
            ("pod", &lab.pod_a2, (POD_A, 8080)),
            ("pod by a Service", &lab.pod_a2, (VIP, 80)),
            ("pod of another node", &lab.pod_b, (VIP, 80)),
            ("outside", &lab.outside, (NODE_A, NODE_PORT)),
        ];
        lab.a.ns.command("sh", &["-ec", set_up]);
        assert!(lab.pod_a2.ask((POD_A, 8080)).is_err(), "{name} drops");
        let said = lab.a.ns.run(|| {
            let check = std::process::Command::new(env!("CARGO_BIN_EXE_sampan")).arg("check").output();
            String::from_utf8(check.unwrap().stdout).unwrap()
        });
        let (_, remedy) =
            said.split_once(&format!("{name} stops forwarded packets by default")).expect(&said);
        let (_, commands) = remedy.split_once("let pods pass: ").unwrap();
        let commands = commands.lines().next().unwrap().split(" (").next().unwrap();
        // As it is told where Docker runs.
        let chain = if set_up == docker { "-I DOCKER-USER" } else { "-I FORWARD" };
        for command in commands.replace("-I FORWARD", chain).split("; ") {
            lab.a.ns.command("sh", &["-c", command]);
        }
        for (from, ns, to) in ways {
            assert_eq!(ns.ask(to).unwrap().server, "a", "{name}: {from}");
        }
        assert!(lab.pod_a.ask((POD_B, 8080)).is_ok() && lab.a.ns.ask((VIP, 80)).is_ok());
    }
}

#[test]
fn connections_and_services_outlive_the_daemon() {
    let node = Node::start(Ns::new(), 0);
    let pod = node.pod("a", POD_A);
    let _server = Server::new(&pod, "a", 8080);
    node.set_services(&[service(Protocol::Tcp, &[POD_A], 0)], &[]);
    // Connections that are there: by the cluster address and by the node's port.
    let listener = pod.run(|| std::net::TcpListener::bind((POD_A, 8081))).unwrap();
    let echo = ServicePort {
        name: "default/echo:x".to_owned(),
        cluster_ips: vec![ip(10, 43, 7, 2)],
        node_port: Some(30081),
        backends: vec![Backend::new(POD_A, 8081, true)],
        ..service(Protocol::Tcp, &[POD_A], 0)
    };
    let services = [service(Protocol::Tcp, &[POD_A], 0), echo];
    node.set_services(&services, &[]);
    let open = |to: (Ipv4Addr, u16)| {
        let client = node.ns.run(|| std::net::TcpStream::connect(to)).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let connections =
        [open((ip(10, 43, 7, 2), 80)), open((ip(10, 42, 0, 0), 30081)), open((Ipv4Addr::LOCALHOST, 30081))];
    let talk = || {
        use std::io::{Read as _, Write as _};
        for (client, server) in &connections {
            for (mut from, mut to) in [(client, server), (server, client)] {
                from.write_all(b"still there").unwrap();
                to.set_read_timeout(Some(lab::PATIENCE)).unwrap();
                to.read_exact(&mut [0; 11]).unwrap();
            }
        }
    };
    talk();
    let Node { net, ns, .. } = node;
    drop(net);
    talk();
    assert_eq!(pod.ask((VIP, 80)).unwrap().server, "a");
    let node = Node::start(ns, 0);
    talk();
    assert_eq!(pod.ask((VIP, 80)).unwrap().server, "a");
    wait(node.net.attach("a", &pod.path(), POD_A)).unwrap();
    node.set_services(&services, &[]);
    assert_eq!(node.ns.ask((VIP, 80)).unwrap().server, "a");
    talk();
    // Nor does a table that somebody has damaged, and that is made anew. (Not emptied: without any rule
    // that asks for it the kernel tracks nothing, and an acknowledgement under way, untranslated, would
    // be answered with a reset.)
    node.ns.command("nft", &["flush chain ip sampan prerouting; flush chain ip sampan output"]);
    talk();
    node.set_services(&services, &[]);
    assert_eq!(pod.ask((VIP, 80)).unwrap().server, "a");
    talk();
}

/// As a restart of Debian's `nftables.service` does it.
#[test]
fn a_table_that_somebody_deletes_comes_back_by_itself() {
    let lab = lab();
    lab.serve(&[POD_A], |_| {});
    let pod = lab.pod_b.udp();
    assert_eq!(ask_over(&pod, (VIP, 80)).unwrap().server, "a");
    let policy = PodPolicy { address: POD_A2, ingress: Some(Vec::new()), egress: None };
    wait(lab.a.net.set_policies(&[policy])).unwrap();
    assert!(lab.pod_b.ask((POD_A2, 8080)).is_err());
    for node in [&lab.a, &lab.b] {
        node.ns.command("nft", &["flush ruleset"]);
    }
    let _ = pod.send(b"?");
    lab::wait_until("the service is there again", || lab.pod_a2.ask((VIP, 80)).is_ok());
    lab::wait_until("the pod is isolated again", || lab.pod_b.ask((POD_A2, 8080)).is_err());
    // What the same socket sent meanwhile was tracked as it was, untranslated.
    lab::wait_until("the other node has it as well", || lab.b.ns.ask((VIP, 80)).is_ok());
    let _ = pod.take_error();
    assert_eq!(ask_over(&pod, (VIP, 80)).unwrap().server, "a");
}

#[test]
fn udp_clients_follow_their_service() {
    let lab = lab();
    lab.serve(&[POD_A], |_| {});
    let (pod, outside) = (lab.pod_b.udp(), lab.outside.udp());
    // The same socket, so the same tracked connection, all the time.
    let answers = |name: &str| {
        assert_eq!(ask_over(&pod, (VIP, 80)).unwrap().server, name);
        assert_eq!(ask_over(&outside, (NODE_A, NODE_PORT)).unwrap().server, name);
    };
    answers("a");
    lab.serve(&[POD_A2], |_| {});
    answers("a2");
    lab.serve(&[POD_A2, POD_B], |_| {});
    answers("a2");
    lab.serve(&[POD_B], |_| {});
    answers("b");
}

/// Asks the cluster's DNS for one address, from inside a namespace.
fn resolve(ns: &Ns, name: &str) -> Ipv4Addr {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = ns.udp();
    socket.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    socket.send_to(&query, (lab::DNS, 53)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!((answer[3] & 15, answer[7]), (0, 1), "one answer for {name}");
    // The only record is the last thing in the message, and its address the last of it.
    Ipv4Addr::from(<[u8; 4]>::try_from(&answer[length - 4..length]).unwrap())
}

/// Every way to a pod, from everywhere, by TCP and UDP.
#[test]
fn every_way_leads_to_the_pod_from_everywhere() {
    use sampan::{
        dns,
        net::names::{DnsEndpoint, DnsService, DnsTable, DnsTarget},
        tasks::CancellationToken,
    };
    let lab = lab();
    let external = ip(192, 0, 2, 200);
    for ns in [&lab.outside, &lab.b.ns] {
        ns.ip(&format!("route add {external} via {NODE_A}"));
    }
    for (node, third) in [(&lab.a, 0), (&lab.b, 1)] {
        let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| ServicePort {
            external_ips: vec![external],
            balancer_ips: vec![NODE_A, NODE_B],
            ..service(protocol, &[POD_A], third)
        });
        let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| HostPort {
            protocol,
            host_ip: None,
            host_port: 8000,
            pod_ip: POD_A,
            pod_port: 8080,
        });
        node.set_services(&services, if third == 0 { &ports } else { &[] });
    }
    let table = DnsTable {
        domain: "cluster.local".into(),
        dns_address: Some(lab::DNS),
        networks: vec!["10.42.0.0/16".into()],
        namespaces: vec!["default".into()],
        services: vec![DnsService {
            namespace: "default".into(),
            name: "headless".into(),
            target: DnsTarget::Headless {
                endpoints: vec![DnsEndpoint { address: POD_A, hostname: None, ports: Vec::new() }],
            },
        }],
    };
    let stop = CancellationToken::new();
    let dns: Vec<_> = [&lab.a, &lab.b]
        .map(|node| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let server = node.ns.run(|| {
                let at = [(lab::DNS, 53).into()];
                runtime.block_on(dns::Server::bind(&at, dns::ForwardOptions::default())).unwrap()
            });
            server.set_table(&table).unwrap();
            let stop = stop.clone();
            std::thread::spawn(move || runtime.block_on(server.run(stop)).unwrap())
        })
        .into();
    let sources = [
        ("host", &lab.a.ns),
        ("other host", &lab.b.ns),
        ("pod on the same node", &lab.pod_a2),
        ("pod on another node", &lab.pod_b),
        ("the pod itself", &lab.pod_a),
        ("outside", &lab.outside),
    ];
    let ways = [
        ("ClusterIP", (VIP, 80)),
        ("NodePort", (NODE_A, NODE_PORT)),
        ("NodePort of another node", (NODE_B, NODE_PORT)),
        ("LoadBalancer", (NODE_A, 80)),
        ("LoadBalancer on another node", (NODE_B, 80)),
        ("externalIP", (external, 80)),
        ("hostPort", (NODE_A, 8000)),
        ("headless", (Ipv4Addr::UNSPECIFIED, 8080)),
    ];
    let mut failed = Vec::new();
    for (source, ns) in sources {
        for (way, (address, port)) in ways {
            // Cluster addresses and names are for the cluster.
            if source == "outside" && matches!(way, "ClusterIP" | "headless") {
                continue;
            }
            let address =
                if way == "headless" { resolve(ns, "headless.default.svc.cluster.local") } else { address };
            for (protocol, answer) in [("TCP", ns.ask((address, port))), ("UDP", ns.ask_udp((address, port)))]
            {
                match answer {
                    Ok(answer) if answer.server == "a" => {}
                    other => failed.push(format!("{source} → {way} over {protocol}: {other:?}")),
                }
            }
        }
    }
    stop.cancel();
    for thread in dns {
        thread.join().unwrap();
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// What a pod may do with these addresses: everything, or one TCP port.
fn flow(first: Ipv4Addr, last: Ipv4Addr, port: Option<u16>) -> Flow {
    let (protocols, ports) = port.map_or(((0, 255), (0, u16::MAX)), |p| ((6, 6), (p, p)));
    Flow { peers: (first, last), protocols, ports }
}

#[test]
fn isolated_pods_talk_to_whom_they_may() {
    let lab = lab();
    lab.serve(&[POD_A], |_| {});
    let set = |ingress: Option<Vec<Flow>>, egress: Option<Vec<Flow>>| {
        let pod = PodPolicy { address: POD_A, ingress, egress };
        wait(lab.a.net.set_policies(&[pod])).unwrap();
    };
    let reaches = |ns: &Ns, to| ns.ask(to).is_ok();
    // What is dropped takes seconds to be seen so: all at once.
    let reached = |asked: &[(&Ns, (Ipv4Addr, u16))]| -> Vec<bool> {
        std::thread::scope(|scope| {
            let asking: Vec<_> = asked.iter().map(|(ns, to)| scope.spawn(|| ns.ask(*to).is_ok())).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        })
    };
    let (direct, vip, port) = ((POD_A, 8080), (VIP, 80), (NODE_A, NODE_PORT));
    // Nobody may come but the node itself and the pod itself; what the pod begins is answered.
    set(Some(Vec::new()), None);
    let strangers = [(&lab.pod_b, direct), (&lab.pod_b, vip), (&lab.pod_a2, direct), (&lab.outside, port)];
    assert_eq!(reached(&strangers), [false; 4]);
    for (ns, to) in [(&lab.a.ns, direct), (&lab.a.ns, vip), (&lab.pod_a, vip), (&lab.pod_a, (POD_B, 8080))] {
        assert!(reaches(ns, to), "{to:?}");
    }
    // One pod, one port, also through a service; the outside by its own address.
    set(Some(vec![flow(POD_B, POD_B, Some(8080)), flow(OUTSIDER, OUTSIDER, None)]), None);
    for (ns, to) in [(&lab.pod_b, direct), (&lab.pod_b, vip), (&lab.outside, port)] {
        assert!(reaches(ns, to), "{to:?}");
    }
    let _other = Server::new(&lab.pod_a, "a-other", 8081);
    assert_eq!(reached(&[(&lab.pod_a2, direct), (&lab.pod_b, (POD_A, 8081))]), [false; 2]);
    assert!(lab.pod_b.ask_udp(direct).is_err(), "another protocol");
    // A connection that is there stays when it would not be let in any more (UDP, the same socket).
    set(Some(vec![flow(POD_B, POD_B, None)]), None);
    let socket = lab.pod_b.udp();
    assert!(ask_over(&socket, direct).is_ok());
    set(Some(Vec::new()), None);
    assert!(ask_over(&socket, direct).is_ok());
    // Outward: to one network only, but always to its own node.
    set(None, Some(vec![flow(ip(10, 42, 1, 0), ip(10, 42, 1, 255), None)]));
    let _host = Server::new(&lab.a.ns, "host-a", 9090);
    let ways = [(POD_B, 8080), (POD_A2, 8080), (NODE_B, 9090), (NODE_A, 9090)].map(|to| (&lab.pod_a, to));
    assert_eq!(reached(&ways), [true, false, false, true]);
    assert!(reaches(&lab.pod_b, direct), "who comes in is not its business");
    wait(lab.a.net.set_policies(&[])).unwrap();
    assert!(reaches(&lab.pod_a, (POD_A2, 8080)));
}
