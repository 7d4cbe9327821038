//! The ways to the pods of other nodes.
//!
//! In: peers, and what the node's own links reach. Out: a plain route through the peer's address
//! where both share an Ethernet segment, a VXLAN tunnel (RFC 7348) otherwise.
//!
//! A node behind a router that translates addresses is reached at the router's address and at a port
//! that is the node's own: the router leaves a source port as it is while it is free, and lets answers
//! in. Such a node sends first, and often enough ([`super::beyond`]); two behind different routers
//! both do, which opens the way between them.
//! Invariants: what the kernel has is made to be exactly the wanted set; a way that stays is not
//! interrupted; nothing is learned or flooded, every entry is permanent.
//! Deliberately absent: ways through routers that choose source ports at random, and relays.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{
    Error, Peer,
    cidr::Cidr,
    netlink::Socket,
    pod::{RP_FILTER_LOOSE, mac_of},
    route::{self, Link, Neighbour, Route},
    wire::Batch,
};

/// The tunnel's device.
pub const DEVICE: &str = "sampan-vxlan";
/// Our VXLAN network identifier, unlike that of other overlays on the same hosts (flannel: 1).
const NETWORK_ID: u32 = 7341;
/// UDP; what Linux has always used, and what firewalls of clusters let through.
const PORT: u16 = 8472;
/// Where nodes behind routers listen, each at a port of its own: below what the kernel gives to
/// programs (32768) and beside the ports of Services.
const OUTER_PORTS: (u16, u16) = (24_576, 4096);
/// Outer IPv4, UDP and VXLAN headers and the inner Ethernet header (bytes).
const OVERHEAD_BYTES: u32 = 50;

/// What the node's own links reach.
#[derive(Debug, Clone, Default)]
pub struct Underlay {
    /// Networks on a link itself, and that link.
    pub segments: Vec<(Cidr, u32)>,
    /// Bytes.
    pub mtu: u32,
}

impl Underlay {
    /// Of these links and routes (as from [`route::underlay_routes`]).
    pub fn new(links: &[Link], routes: &[Route]) -> Self {
        /// What a link carries where nothing else is known (bytes, Ethernet).
        const MTU_DEFAULT: u32 = 1500;
        /// Bytes of an Ethernet address; tunnels such as WireGuard have none and carry only the
        /// addresses they were told.
        const MAC_BYTES: usize = 6;
        let outer = |link: &&Link| {
            link.up && !link.loopback && link.kind != "veth" && !link.name.starts_with("sampan")
        };
        let by_index = |index| links.iter().find(|link: &&Link| link.index == index);
        let mtu = routes
            .iter()
            .find(|route| route.to.prefix() == 0)
            .and_then(|route| by_index(route.index))
            .or_else(|| links.iter().filter(outer).min_by_key(|link| link.index))
            .map_or(MTU_DEFAULT, |link| link.mtu);
        let segments = routes
            .iter()
            .filter(|route| route.to.prefix() > 0)
            .filter(|route| {
                by_index(route.index).is_some_and(|link| {
                    link.up && !link.loopback && link.mac.len() == MAC_BYTES && link.name != DEVICE
                })
            })
            .map(|route| (route.to, route.index))
            .collect();
        Self { segments, mtu }
    }
}

/// The wanted routes and tunnel entries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    direct: BTreeSet<Route>,
    /// Each peer behind the tunnel.
    tunnelled: BTreeSet<Tunnelled>,
    /// Where this node itself listens.
    port: u16,
}

/// A peer behind the tunnel: its pods, and where it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tunnelled {
    to: Cidr,
    address: Ipv4Addr,
    port: u16,
}

/// Where a node listens for the tunnel.
fn port_of(pods: Cidr, outer: Option<Ipv4Addr>) -> u16 {
    let (first, count) = OUTER_PORTS;
    if outer.is_none() {
        return PORT;
    }
    let number = pods.first().to_bits().checked_shr(32 - u32::from(pods.prefix())).unwrap_or(0);
    first + (number % u32::from(count)) as u16
}

/// This node among the peers.
fn own_of(own: Cidr, peers: &[Peer]) -> Option<&Peer> {
    peers.iter().find(|peer| peer.pod_cidr.parse().is_ok_and(|pods: Cidr| pods == own))
}

/// The nodes that this one has to send to, so that they can send to it: their names, and the address
/// in the pod network that each has.
pub fn beyond(own: Cidr, peers: &[Peer]) -> Vec<(String, Ipv4Addr)> {
    let Some(here) = own_of(own, peers).filter(|here| here.outer.is_some() && !here.forwarded) else {
        return Vec::new();
    };
    let there = |peer: &Peer| Some((peer.node.clone(), peer.pod_cidr.parse::<Cidr>().ok()?.first()));
    peers.iter().filter(|peer| peer.outer != here.outer).filter_map(there).collect()
}

/// Chooses the way to each peer.
fn plan(own: Cidr, peers: &[Peer], underlay: &Underlay) -> Result<Plan, Error> {
    let here = own_of(own, peers);
    let own_outer = here.and_then(|here| here.outer);
    let translated = own_outer.is_some() && !here.is_some_and(|here| here.forwarded);
    let mut plan = Plan { port: port_of(own, own_outer), ..Plan::default() };
    for peer in peers {
        let to: Cidr = peer.pod_cidr.parse()?;
        if to == own {
            continue;
        }
        // Private networks look alike: that its address could be on a link of ours says nothing of a
        // peer that is behind another router than we are.
        let near = match peer.outer {
            Some(_) if peer.forwarded && !translated => true,
            None if !translated => true,
            outer => outer == own_outer,
        };
        let segment = underlay
            .segments
            .iter()
            .filter(|(network, _)| near && network.contains(peer.address))
            .max_by_key(|(network, _)| network.prefix());
        if let Some((_, index)) = segment {
            let (via, source) = (Some(peer.address), Some(own.first()));
            plan.direct.insert(Route { to, via, index: *index, source });
        } else {
            let outer = peer.outer.filter(|outer| Some(*outer) != own_outer);
            let (address, port) = (outer.unwrap_or(peer.address), port_of(to, peer.outer));
            plan.tunnelled.insert(Tunnelled { to, address, port });
        }
    }
    Ok(plan)
}

/// Makes routes and tunnel be what `peers` need. `own` is this node's pod CIDR.
pub fn apply(socket: &mut Socket, own: Cidr, peers: &[Peer]) -> Result<(), Error> {
    let links = route::links(socket)?;
    let underlay = Underlay::new(&links, &route::underlay_routes(socket)?);
    let plan = plan(own, peers, &underlay)?;
    let mut wanted_routes = plan.direct;
    let mut batch = Batch::new();
    if plan.tunnelled.is_empty() {
        if let Some(link) = links.iter().find(|link| link.name == DEVICE) {
            route::delete_link(&mut batch, link.index);
        }
    } else {
        let existing = links.into_iter().find(|link| link.name == DEVICE);
        let mtu = underlay.mtu.saturating_sub(OVERHEAD_BYTES);
        let index = tunnel(socket, own, (plan.port, mtu), existing)?;
        let source = Some(own.first());
        let mut entries = BTreeSet::new();
        for Tunnelled { to, address, port } in plan.tunnelled {
            let (via, mac) = (to.first(), mac_of(to.first()));
            let port = Some(port).filter(|port| *port != plan.port);
            entries.insert(Neighbour { index, address, mac, forwarding: true, port });
            entries.insert(Neighbour { index, address: via, mac, forwarding: false, port: None });
            wanted_routes.insert(Route { to, via: Some(via), index, source });
        }
        for forwarding in [true, false] {
            for old in route::neighbours(socket, index, forwarding)? {
                if !entries.contains(&old) {
                    route::delete_neighbour(&mut batch, &old);
                }
            }
        }
        for entry in &entries {
            route::set_neighbour(&mut batch, entry);
        }
    }
    let existing = route::own_routes(socket)?;
    for route in wanted_routes.iter().filter(|route| !existing.contains(route)) {
        route::set_route(&mut batch, route);
    }
    // Of our routes, only those to peers have a gateway.
    for old in existing.iter().filter(|route| route.via.is_some() && !wanted_routes.contains(route)) {
        route::delete_route(&mut batch, old);
    }
    Ok(socket.apply(&batch)?)
}

/// Makes the tunnel's device; returns its index.
fn tunnel(
    socket: &mut Socket,
    own: Cidr,
    (port, mtu): (u16, u32),
    existing: Option<Link>,
) -> Result<u32, Error> {
    let mac = mac_of(own.first());
    let mut batch = Batch::new();
    if let Some(link) = existing {
        let same = link.vxlan_id == Some(NETWORK_ID) && link.vxlan_port == Some(port);
        if same && link.mac == mac && link.up {
            if link.mtu != mtu {
                route::set_mtu(&mut batch, link.index, mtu);
                socket.apply(&batch)?;
            }
            return Ok(link.index);
        }
        route::delete_link(&mut batch, link.index);
    }
    route::add_vxlan(&mut batch, DEVICE, mac, NETWORK_ID, port, mtu);
    socket.apply(&batch)?;
    let link = route::link_by_name(socket, DEVICE)?
        .ok_or_else(|| Error::Invalid(format!("link {DEVICE} vanished while made")))?;
    let mut batch = Batch::new();
    route::set_no_ipv6_address(&mut batch, link.index);
    route::set_devconf(&mut batch, link.index, route::DEVCONF_RP_FILTER, RP_FILTER_LOOSE);
    socket.apply(&batch)?;
    Ok(link.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, mac: bool, mtu: u32) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: if mac { vec![2, 0, 0, 0, 0, index as u8] } else { Vec::new() },
            mtu,
            up: true,
            loopback: name == "lo",
            group: 0,
            peer: None,
            kind: String::new(),
            vxlan_id: None,
            vxlan_port: None,
        }
    }

    fn route(to: &str, index: u32) -> Route {
        Route { to: to.parse().unwrap(), via: None, index, source: None }
    }

    fn peer(node: &str, pod_cidr: &str, address: &str) -> Peer {
        Peer::new(node, pod_cidr, address.parse().unwrap())
    }

    #[test]
    fn shared_segments_get_routes_and_others_the_tunnel() {
        let links = [link(1, "lo", true, 65536), link(2, "eth0", true, 1400), link(3, "wg0", false, 1420)];
        let routes = [route("0.0.0.0/0", 2), route("192.168.7.0/24", 2), route("10.9.0.0/24", 3)];
        let underlay = Underlay::new(&links, &routes);
        assert_eq!(underlay.mtu, 1400);
        let peers = [
            peer("self", "10.42.0.0/24", "192.168.7.1"),
            peer("near", "10.42.1.0/24", "192.168.7.2"),
            peer("far", "10.42.2.0/24", "172.16.0.9"),
            peer("wireguard", "10.42.3.0/24", "10.9.0.2"),
        ];
        let plan = plan("10.42.0.0/24".parse().unwrap(), &peers, &underlay).unwrap();
        let direct: Vec<_> = plan.direct.iter().map(|r| (r.to.to_string(), r.via, r.index)).collect();
        assert_eq!(direct, [("10.42.1.0/24".to_owned(), Some(Ipv4Addr::new(192, 168, 7, 2)), 2)]);
        let tunnelled: Vec<_> = plan.tunnelled.iter().map(|t| (t.to.to_string(), t.port)).collect();
        assert_eq!(tunnelled, [("10.42.2.0/24".to_owned(), PORT), ("10.42.3.0/24".to_owned(), PORT)]);
    }

    /// Two homes with the same private network, a node with an address of the internet, and one behind
    /// a router that forwards its port.
    #[test]
    fn nodes_behind_routers_are_reached_at_the_routers() {
        let behind = |name, cidr, address, outer: &str, forwarded| Peer {
            outer: Some(outer.parse().unwrap()),
            forwarded,
            ..peer(name, cidr, address)
        };
        let peers = [
            peer("public", "10.42.0.0/24", "203.0.113.9"),
            behind("home", "10.42.1.0/24", "192.168.1.2", "198.51.100.1", false),
            behind("beside", "10.42.2.0/24", "192.168.1.3", "198.51.100.1", false),
            behind("away", "10.42.3.0/24", "192.168.1.2", "198.51.100.2", false),
            behind("master", "10.42.4.0/24", "192.168.1.2", "198.51.100.3", true),
            peer("masters", "10.42.5.0/24", "192.168.1.3"),
        ];
        let links = [link(2, "eth0", true, 1500)];
        let private = Underlay::new(&links, &[route("192.168.1.0/24", 2)]);
        let public = Underlay::new(&links, &[route("203.0.113.0/24", 2)]);
        let ways = |own: &str, underlay: &Underlay| -> Vec<String> {
            let plan = plan(own.parse().unwrap(), &peers, underlay).unwrap();
            let direct = plan.direct.iter().map(|route| format!("{} direct", route.to));
            let tunnelled = plan.tunnelled.iter().map(|t| format!("{} {}:{}", t.to, t.address, t.port));
            let mut all: Vec<_> = direct.chain(tunnelled).collect();
            all.sort();
            all.iter().map(|way| way.trim_start_matches("10.42.").replace(".0/24", "")).collect()
        };
        let seen = ways("10.42.0.0/24", &public);
        assert!(seen[0].starts_with("1 198.51.100.1:") && seen[2].starts_with("3 198.51.100.2:"), "{seen:?}");
        assert!(seen[3].starts_with("4 198.51.100.3:") && seen[4] == "5 192.168.1.3:8472", "{seen:?}");
        let seen = ways("10.42.1.0/24", &private);
        assert_eq!((seen[0].as_str(), seen[1].as_str()), ("0 203.0.113.9:8472", "2 direct"));
        assert!(seen[2].starts_with("3 198.51.100.2:") && seen[3].starts_with("4 198.51.100.3:"), "{seen:?}");
        let seen = ways("10.42.5.0/24", &private);
        assert!(seen[1].starts_with("1 198.51.100.1:") && seen[4] == "4 direct", "{seen:?}");
        let seen = ways("10.42.4.0/24", &private);
        assert!(seen[4] == "5 direct", "{seen:?}");
        // Ports of nodes behind one router differ, and are nobody else's.
        let ports: BTreeSet<_> = (0..=255u8)
            .map(|third| {
                let pods = Cidr::new(Ipv4Addr::new(10, 42, third, 0), 24);
                port_of(pods, Some(Ipv4Addr::LOCALHOST))
            })
            .collect();
        assert!(ports.len() == 256 && ports.iter().all(|port| (24_576..28_672).contains(port)));
        let names = |own: &str| -> Vec<String> {
            beyond(own.parse().unwrap(), &peers).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names("10.42.1.0/24"), ["public", "away", "master", "masters"]);
        assert!(names("10.42.0.0/24").is_empty() && names("10.42.4.0/24").is_empty());
    }

    #[test]
    fn without_a_default_route_the_first_outer_link_gives_the_mtu() {
        let mut veth = link(2, "smp0", true, 9000);
        veth.kind = "veth".to_owned();
        let links = [link(1, "lo", true, 65536), veth, link(3, "eth0", true, 1492)];
        assert_eq!(Underlay::new(&links, &[]).mtu, 1492);
        assert_eq!(Underlay::new(&links[..2], &[]).mtu, 1500);
    }
}
