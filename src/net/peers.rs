//! The ways to the pods of other nodes.
//!
//! In: peers, and what the node's own links reach. Out: a plain route through the peer's address
//! where both share an Ethernet segment, a VXLAN tunnel (RFC 7348) otherwise.
//! Invariants: what the kernel has is made to be exactly the wanted set; a way that stays is not
//! interrupted; nothing is learned or flooded, every entry is permanent.
//! Deliberately absent: tunnels to nodes behind NAT.

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
    /// The pod CIDR and the node's address of each peer behind the tunnel.
    tunnelled: BTreeSet<(Cidr, Ipv4Addr)>,
}

/// Chooses the way to each peer.
fn plan(own: Cidr, peers: &[Peer], underlay: &Underlay) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    for peer in peers {
        let to: Cidr = peer.pod_cidr.parse()?;
        if to == own {
            continue;
        }
        let segment = underlay
            .segments
            .iter()
            .filter(|(network, _)| network.contains(peer.address))
            .max_by_key(|(network, _)| network.prefix());
        if let Some((_, index)) = segment {
            let (via, source) = (Some(peer.address), Some(own.first()));
            plan.direct.insert(Route { to, via, index: *index, source });
        } else {
            plan.tunnelled.insert((to, peer.address));
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
        let index = tunnel(socket, own, underlay.mtu.saturating_sub(OVERHEAD_BYTES), existing)?;
        let source = Some(own.first());
        let mut entries = BTreeSet::new();
        for (to, address) in plan.tunnelled {
            let (via, mac) = (to.first(), mac_of(to.first()));
            entries.insert(Neighbour { index, address, mac, forwarding: true });
            entries.insert(Neighbour { index, address: via, mac, forwarding: false });
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
fn tunnel(socket: &mut Socket, own: Cidr, mtu: u32, existing: Option<Link>) -> Result<u32, Error> {
    let mac = mac_of(own.first());
    let mut batch = Batch::new();
    if let Some(link) = existing {
        if link.vxlan_id == Some(NETWORK_ID) && link.mac == mac && link.up {
            if link.mtu != mtu {
                route::set_mtu(&mut batch, link.index, mtu);
                socket.apply(&batch)?;
            }
            return Ok(link.index);
        }
        route::delete_link(&mut batch, link.index);
    }
    route::add_vxlan(&mut batch, DEVICE, mac, NETWORK_ID, PORT, mtu);
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
        }
    }

    fn route(to: &str, index: u32) -> Route {
        Route { to: to.parse().unwrap(), via: None, index, source: None }
    }

    fn peer(node: &str, pod_cidr: &str, address: &str) -> Peer {
        Peer { node: node.into(), pod_cidr: pod_cidr.into(), address: address.parse().unwrap() }
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
        let tunnelled: Vec<_> = plan.tunnelled.iter().map(|(to, _)| to.to_string()).collect();
        assert_eq!(tunnelled, ["10.42.2.0/24", "10.42.3.0/24"]);
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
