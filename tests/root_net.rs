//! Real packets through the pod network and the services of nodes that are network namespaces.
//! Needs root; leaves nothing behind, for no namespace has a name.

#[path = "net_lab/mod.rs"]
mod lab;

use std::net::Ipv4Addr;

use lab::{Node, Ns, Server, wait, wait_until};
use sampan::net::{Network, Peer};

const fn ip(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

/// A pod that serves port 8080 under its name.
fn serving_pod(node: &Node, name: &str, address: Ipv4Addr) -> (Ns, Server) {
    let pod = node.pod(name, address);
    let server = Server::new(&pod, name, 8080);
    (pod, server)
}

#[test]
fn pods_and_host_reach_each_other() {
    let node = Node::start(Ns::new(), 0);
    let (a, _a) = serving_pod(&node, "a", ip(10, 42, 0, 2));
    let (b, _b) = serving_pod(&node, "b", ip(10, 42, 0, 3));
    assert_eq!(a.ask((ip(10, 42, 0, 3), 8080)).unwrap().source, ip(10, 42, 0, 2));
    assert_eq!(b.ask((ip(10, 42, 0, 2), 8080)).unwrap().server, "a");
    assert_eq!(a.ask((ip(127, 0, 0, 1), 8080)).unwrap().server, "a");
    // The host has no other address here, and no default route.
    assert_eq!(node.ns.ask((ip(10, 42, 0, 2), 8080)).unwrap().source, ip(10, 42, 0, 0));
    let _host = Server::new(&node.ns, "host", 9090);
    assert_eq!(a.ask((ip(10, 42, 0, 0), 9090)).unwrap().source, ip(10, 42, 0, 2));
}

#[test]
fn attach_is_idempotent_and_repairs() {
    let node = Node::start(Ns::new(), 0);
    let (pod, _server) = serving_pod(&node, "a", ip(10, 42, 0, 2));
    // Of the links the index only: that they are up becomes visible a little later.
    let links = |ns: &Ns| ns.ip("-br link").lines().map(|l| l[..16].to_owned()).collect::<Vec<_>>();
    let state = |ns: &Ns| (links(ns), ns.ip("route"), ns.ip("neigh"), ns.ip("-o -4 addr"));
    let before = (state(&node.ns), state(&pod));
    wait(node.net.attach("a", &pod.path(), ip(10, 42, 0, 2))).unwrap();
    wait(node.net.start(&node.pod_cidr)).unwrap();
    assert_eq!(before, (state(&node.ns), state(&pod)));
    // Another address, as after the loss of the node's state: the link is made anew.
    wait(node.net.attach("a", &pod.path(), ip(10, 42, 0, 7))).unwrap();
    assert_eq!(node.ns.ask((ip(10, 42, 0, 7), 8080)).unwrap().server, "a");
    assert!(!node.ns.ip("route").contains("10.42.0.2"));
    // Somebody took the route away.
    node.ns.ip("route del 10.42.0.7");
    wait(node.net.attach("a", &pod.path(), ip(10, 42, 0, 7))).unwrap();
    assert_eq!(node.ns.ask((ip(10, 42, 0, 7), 8080)).unwrap().server, "a");
    // The pod's namespace is another one now.
    let moved = node.pod("a", ip(10, 42, 0, 7));
    let _server = Server::new(&moved, "moved", 8080);
    assert_eq!(node.ns.ask((ip(10, 42, 0, 7), 8080)).unwrap().server, "moved");
}

#[test]
fn links_of_pods_carry_what_the_nodes_own_does() {
    let (outer, ns) = (Ns::new(), Ns::new());
    outer.cable("port-a", &ns, "eth0");
    outer.cable("port-b", &ns, "eth1");
    ns.ip("addr add 192.0.2.1/24 dev eth0");
    ns.ip("addr add 198.51.100.1/24 dev eth1");
    ns.ip("link set eth0 mtu 1400");
    ns.ip("route add default via 192.0.2.9");
    let node = Node::start(ns, 0);
    let mut last = 1;
    let mut is_now = |mtu: &str| {
        last += 1;
        let pod = node.pod(&format!("pod-{last}"), ip(10, 42, 0, last));
        let link = pod.ip("-o link show eth0");
        assert!(link.contains(&format!("mtu {mtu} ")), "{mtu}: {link}");
    };
    is_now("1400");
    is_now("1400");
    node.ns.ip("link set eth0 mtu 1380");
    is_now("1380");
    node.ns.ip("link set eth1 mtu 1300");
    node.ns.ip("route replace default via 198.51.100.9");
    is_now("1300");
    // More news than anybody keeps.
    for _ in 0..100 {
        node.ns.ip("link set eth0 mtu 1379 alias some-other-name");
        node.ns.ip("link set eth0 mtu 1380");
    }
    node.ns.ip("link set eth1 mtu 1290");
    is_now("1290");
}

#[test]
fn detach_and_stop_leave_nothing() {
    let node = Node::start(Ns::new(), 0);
    let pods: Vec<_> = (2..6).map(|n| node.pod(&format!("pod-{n}"), ip(10, 42, 0, n))).collect();
    wait(node.net.detach("pod-2")).unwrap();
    wait(node.net.detach("pod-2")).unwrap();
    wait(node.net.detach("never-was")).unwrap();
    assert!(!node.ns.ip("route").contains("10.42.0.2"));
    // The address may be given away at once, and the same pod may come again.
    let again = node.pod("pod-2", ip(10, 42, 0, 2));
    let _server = Server::new(&again, "again", 8080);
    assert_eq!(pods[2].ask((ip(10, 42, 0, 2), 8080)).unwrap().server, "again");
    wait(node.net.stop()).unwrap();
    assert_eq!(node.ns.ip("-o link").lines().count(), 1, "{}", node.ns.ip("-o link"));
    assert_eq!(node.ns.ip("route"), "");
    assert!(!node.ns.ip("-4 addr").contains("10.4"));
    wait(node.net.stop()).unwrap();
}

fn peer(number: u8, address: Ipv4Addr) -> Peer {
    Peer::new(&format!("node-{number}"), &format!("10.42.{number}.0/24"), address)
}

/// Two nodes on one switch: 192.0.2.1 and 192.0.2.2, and an outsider 192.0.2.9. No default routes.
fn switched() -> (Ns, Node, Node, Ns) {
    let (switch, a, b, outside) = (Ns::new(), Ns::new(), Ns::new(), Ns::new());
    switch.ip("link add bridge0 type bridge");
    switch.ip("link set bridge0 up");
    for (ns, port, address) in [(&a, "port-a", 1), (&b, "port-b", 2), (&outside, "port-o", 9)] {
        switch.cable(port, ns, "eth0");
        switch.ip(&format!("link set {port} master bridge0"));
        ns.ip(&format!("addr add 192.0.2.{address}/24 dev eth0"));
    }
    (switch, Node::start(a, 0), Node::start(b, 1), outside)
}

/// Two nodes in different networks with a router between: 192.0.2.1 and 198.51.100.1.
fn routed() -> (Ns, Node, Node) {
    let (router, a, b) = (Ns::new(), Ns::new(), Ns::new());
    for (ns, port, network) in [(&a, "port-a", "192.0.2"), (&b, "port-b", "198.51.100")] {
        router.cable(port, ns, "eth0");
        router.ip(&format!("addr add {network}.254/24 dev {port}"));
        ns.ip(&format!("addr add {network}.1/24 dev eth0"));
        ns.ip(&format!("route add default via {network}.254"));
    }
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
    (router, Node::start(a, 0), Node::start(b, 1))
}

#[test]
fn nodes_on_one_segment_use_plain_routes() {
    let (_switch, a, b, _) = switched();
    wait(a.net.set_peers(&[peer(0, ip(192, 0, 2, 1)), peer(1, ip(192, 0, 2, 2))])).unwrap();
    wait(b.net.set_peers(&[peer(0, ip(192, 0, 2, 1))])).unwrap();
    let (pod_a, _a) = serving_pod(&a, "a", ip(10, 42, 0, 2));
    let (pod_b, _b) = serving_pod(&b, "b", ip(10, 42, 1, 2));
    let answer = pod_a.ask((ip(10, 42, 1, 2), 8080)).unwrap();
    assert_eq!((answer.server.as_str(), answer.source), ("b", ip(10, 42, 0, 2)));
    assert_eq!(pod_b.ask_udp((ip(10, 42, 0, 2), 8080)).unwrap().source, ip(10, 42, 1, 2));
    assert_eq!(a.ns.ask((ip(10, 42, 1, 2), 8080)).unwrap().source, ip(10, 42, 0, 0));
    assert!(!a.ns.ip("-o link").contains("vxlan"));
    wait(a.net.set_peers(&[])).unwrap();
    assert!(!a.ns.ip("route").contains("10.42.1.0/24"), "{}", a.ns.ip("route"));
}

#[test]
fn nodes_behind_a_router_use_the_tunnel() {
    let (router, a, b) = routed();
    let peers = [peer(0, ip(192, 0, 2, 1)), peer(1, ip(198, 51, 100, 1))];
    wait(a.net.set_peers(&peers)).unwrap();
    wait(b.net.set_peers(&peers)).unwrap();
    let (pod_a, _a) = serving_pod(&a, "a", ip(10, 42, 0, 2));
    let (pod_b, _b) = serving_pod(&b, "b", ip(10, 42, 1, 2));
    assert_eq!(pod_a.ask((ip(10, 42, 1, 2), 8080)).unwrap().source, ip(10, 42, 0, 2));
    assert_eq!(b.ns.ask_udp((ip(10, 42, 0, 2), 8080)).unwrap().source, ip(10, 42, 1, 0));
    assert!(a.ns.ip("link show sampan-vxlan").contains("mtu 1450"));
    // A packet that does not fit is answered, and the pod learns what does.
    let big = pod_b.udp();
    big.connect((ip(10, 42, 0, 2), 8080)).unwrap();
    wait_until("the pod knows the tunnel's MTU", || {
        let _ = big.send(&[0; 1472]);
        pod_b.ip("route get 10.42.0.2").contains("mtu 1450")
    });
    // The other node moves.
    let entries = |ns: &Ns| (ns.ip("route"), ns.ip("neigh"), ns.command("bridge", &["fdb"]));
    let before = entries(&a.ns);
    wait(a.net.set_peers(&peers)).unwrap();
    assert_eq!(before, entries(&a.ns));
    b.ns.ip("addr del 198.51.100.1/24 dev eth0");
    b.ns.ip("addr add 198.51.100.7/24 dev eth0");
    b.ns.ip("route replace default via 198.51.100.254");
    wait(a.net.set_peers(&[peer(1, ip(198, 51, 100, 7))])).unwrap();
    assert_eq!(pod_a.ask((ip(10, 42, 1, 2), 8080)).unwrap().server, "b");
    assert!(!a.ns.command("bridge", &["fdb"]).contains("198.51.100.1 "));
    wait(a.net.set_peers(&[])).unwrap();
    assert!(!a.ns.ip("-o link").contains("vxlan"));
    drop(router);
}

/// A router between an inner network 192.168.1.0/24 and a switch: it translates addresses, and lets
/// nothing in but answers, as those in homes do.
fn home(switch: &Ns, number: u8) -> Ns {
    let router = Ns::new();
    switch.cable(&format!("home-{number}"), &router, "wan");
    switch.ip(&format!("link set home-{number} master bridge0"));
    router.ip(&format!("addr add 203.0.113.{number}/24 dev wan"));
    router.ip("link add lan type bridge");
    router.ip("link set lan up");
    router.ip("addr add 192.168.1.1/24 dev lan");
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
    let rules = "table ip home { \
        chain in { type filter hook input priority 0; iifname \"wan\" ct state new drop; }; \
        chain through { type filter hook forward priority 0; iifname \"wan\" ct state new drop; }; \
        chain out { type nat hook postrouting priority 100; oifname \"wan\" masquerade; }; }";
    router.command("nft", &[rules]);
    router
}

/// A machine in a home's inner network.
fn at_home(router: &Ns, last: u8) -> Ns {
    let ns = Ns::new();
    router.cable(&format!("lan-{last}"), &ns, "eth0");
    router.ip(&format!("link set lan-{last} master lan"));
    ns.ip(&format!("addr add 192.168.1.{last}/24 dev eth0"));
    ns.ip("route add default via 192.168.1.1");
    ns
}

#[test]
fn nodes_behind_routers_that_translate_addresses_reach_each_other() {
    let switch = Ns::new();
    switch.ip("link add bridge0 type bridge");
    switch.ip("link set bridge0 up");
    let (public, first, second) = (Ns::new(), home(&switch, 1), home(&switch, 2));
    switch.cable("public", &public, "eth0");
    switch.ip("link set public master bridge0");
    public.ip("addr add 203.0.113.9/24 dev eth0");
    // Two in the first home; one in the second has the same address as one of these.
    let spaces = [public, at_home(&first, 2), at_home(&first, 3), at_home(&second, 2)];
    let nodes: Vec<_> = (0..).zip(spaces).map(|(number, ns)| Node::start(ns, number)).collect();
    let behind = |number, last, home| Peer {
        outer: Some(ip(203, 0, 113, home)),
        ..peer(number, ip(192, 168, 1, last))
    };
    let peers = [peer(0, ip(203, 0, 113, 9)), behind(1, 2, 1), behind(2, 3, 1), behind(3, 2, 2)];
    for node in &nodes {
        wait(node.net.set_peers(&peers)).unwrap();
    }
    let pods: Vec<_> = (0..)
        .zip(&nodes)
        .map(|(number, node)| serving_pod(node, &format!("pod-{number}"), ip(10, 42, number, 2)))
        .collect();
    for (from, (pod, _)) in (0u8..).zip(&pods) {
        for to in (0u8..4).filter(|to| *to != from) {
            // The first signs of life open the way.
            wait_until(&format!("pod {from} reaches pod {to}"), || {
                pod.ask((ip(10, 42, to, 2), 8080)).is_ok_and(|answer| answer.source == ip(10, 42, from, 2))
            });
        }
    }
    assert!(nodes[1].ns.ip("route get 10.42.2.2").contains("dev eth0"), "a shared segment");
    assert!(nodes[1].ns.ip("route get 10.42.3.2").contains("dev sampan-vxlan"));
    assert!(nodes.iter().all(|node| node.net.silent_peers().is_empty()));
    // One moves to the other home: its way is another one.
    let moved = [peers[0].clone(), peers[1].clone(), behind(2, 3, 2), peers[3].clone()];
    wait(nodes[1].net.set_peers(&moved)).unwrap();
    assert!(nodes[1].ns.ip("route get 10.42.2.2").contains("dev sampan-vxlan"));
    // Who does not answer is named.
    let gone = [peers[1].clone(), peer(7, ip(203, 0, 113, 77))];
    wait(nodes[1].net.set_peers(&gone)).unwrap();
    wait_until("the node that does not answer is named", || {
        nodes[1].net.silent_peers().into_iter().eq(["node-7".to_owned()])
    });
}
