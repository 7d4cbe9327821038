//! Two nodes and an outsider on one switch, with pods that serve.

use std::net::Ipv4Addr;

use sampan::net::{Backend, Network, Peer, Protocol, ServicePort};

use super::{Node, Ns, Server, wait};

pub const fn ip(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

pub const NODE_A: Ipv4Addr = ip(192, 0, 2, 1);
pub const NODE_B: Ipv4Addr = ip(192, 0, 2, 2);
pub const OUTSIDER: Ipv4Addr = ip(192, 0, 2, 9);
pub const VIP: Ipv4Addr = ip(10, 43, 7, 1);
pub const POD_A: Ipv4Addr = ip(10, 42, 0, 2);
pub const POD_A2: Ipv4Addr = ip(10, 42, 0, 3);
pub const POD_B: Ipv4Addr = ip(10, 42, 1, 2);
pub const NODE_PORT: u16 = 30080;

/// Two nodes and an outsider on one switch, two serving pods on the first, one on the second.
pub struct Lab {
    pub a: Node,
    pub b: Node,
    pub outside: Ns,
    pub pod_a: Ns,
    pub pod_b: Ns,
    pub pod_a2: Ns,
    _switch: Ns,
    _servers: Vec<Server>,
}

pub fn lab() -> Lab {
    made(false)
}

/// The same, with the first node's address on a bridge of its own, as where virtual machines share its
/// cable.
pub fn bridged() -> Lab {
    made(true)
}

fn made(bridged: bool) -> Lab {
    let (switch, a, b, outside) = (Ns::new(), Ns::new(), Ns::new(), Ns::new());
    switch.ip("link add bridge0 type bridge");
    switch.ip("link set bridge0 up");
    for (ns, port, address) in
        [(&a, "port-a", NODE_A), (&b, "port-b", NODE_B), (&outside, "port-o", OUTSIDER)]
    {
        switch.cable(port, ns, "eth0");
        switch.ip(&format!("link set {port} master bridge0"));
        let device = if bridged && address == NODE_A { "br0" } else { "eth0" };
        if device == "br0" {
            ns.ip("link add br0 type bridge");
            ns.ip("link set eth0 master br0");
            ns.ip("link set br0 up");
        }
        ns.ip(&format!("addr add {address}/24 dev {device}"));
    }
    let (a, b) = (Node::start(a, 0), Node::start(b, 1));
    let peer =
        |number: u8, address| Peer::new(&format!("node-{number}"), &format!("10.42.{number}.0/24"), address);
    wait(a.net.set_peers(&[peer(1, NODE_B)])).unwrap();
    wait(b.net.set_peers(&[peer(0, NODE_A)])).unwrap();
    let (pod_a, pod_a2, pod_b) = (a.pod("a", POD_A), a.pod("a2", POD_A2), b.pod("b", POD_B));
    let servers = [(&pod_a, "a"), (&pod_a2, "a2"), (&pod_b, "b")];
    let servers = servers.map(|(ns, name)| Server::new(ns, name, 8080)).into();
    Lab { a, b, outside, pod_a, pod_b, pod_a2, _switch: switch, _servers: servers }
}

/// A service at [`VIP`]:80 and [`NODE_PORT`], as the node with these pods sees it.
pub fn service(protocol: Protocol, endpoints: &[Ipv4Addr], third: u8) -> ServicePort {
    let backend = |address: &Ipv4Addr| Backend::new(*address, 8080, address.octets()[2] == third);
    let backends = endpoints.iter().map(backend).collect();
    ServicePort {
        node_port: Some(NODE_PORT),
        ..ServicePort::new(format!("default/web:{protocol:?}"), protocol, 80, VIP, backends)
    }
}

impl Lab {
    /// TCP and UDP on both nodes, changed by `change`.
    pub fn serve(&self, endpoints: &[Ipv4Addr], change: impl Fn(&mut ServicePort)) {
        for (node, third) in [(&self.a, 0), (&self.b, 1)] {
            let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
                let mut service = service(protocol, endpoints, third);
                change(&mut service);
                service
            });
            node.set_services(&services, &[]);
        }
    }
}
