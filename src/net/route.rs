//! rtnetlink messages: links, addresses, routes and neighbours, as far as pods and peers need them.
//!
//! In: plain values. Out: messages in a [`Batch`], and what the kernel has, read back.
//! Formats: `linux/rtnetlink.h`, `if_link.h`, `if_addr.h`, `neighbour.h`.

use std::net::Ipv4Addr;

use libc::{
    AF_BRIDGE, AF_INET, AF_UNSPEC, ENOENT, ESRCH, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RTM_DELADDR,
    RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE,
};

use super::{
    cidr::Cidr,
    netlink::{Refusal, Socket},
    wire::{Batch, Message, Writer, be_u16, ne_u32, text},
};

/// A hardware address.
pub type Mac = [u8; 6];

/// Bytes of `struct ifinfomsg`, `ifaddrmsg`, `rtmsg` and `ndmsg`.
const LINK_HEADER_BYTES: usize = 16;
const ADDRESS_HEADER_BYTES: usize = 8;
const ROUTE_HEADER_BYTES: usize = 12;
const NEIGHBOUR_HEADER_BYTES: usize = 12;

const IFF_UP: u32 = libc::IFF_UP as u32;
const IFF_LOOPBACK: u32 = libc::IFF_LOOPBACK as u32;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT_RANGE: u16 = 10;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// The loopback device is the first of every namespace.
pub const LOOPBACK_INDEX: u32 = 1;
/// `IPV4_DEVCONF_*` of `linux/ip.h`.
pub const DEVCONF_RP_FILTER: u16 = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTNH_F_ONLINK: u32 = 4;
const TABLE_LOCAL: u8 = 255;
const TYPE_LOCAL: u8 = 2;
const TABLE_MAIN: u8 = 254;
const TYPE_UNICAST: u8 = 1;
/// Our routes' origin, so that they are told from others' (a value free in `rtnetlink.h`).
pub const PROTOCOL: u8 = 0x53;
const PROTOCOL_KERNEL: u8 = 2;
/// How far something is visible.
pub const SCOPE_UNIVERSE: u8 = 0;
pub const SCOPE_LINK: u8 = 253;
pub const SCOPE_HOST: u8 = 254;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;

const CREATE: i32 = NLM_F_CREATE | NLM_F_EXCL;
const SET: i32 = NLM_F_CREATE | NLM_F_REPLACE;

fn link_header(family: i32, index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER_BYTES] {
    let mut header = [0; LINK_HEADER_BYTES];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// One network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Vec<u8>,
    pub mtu: u32,
    pub up: bool,
    pub loopback: bool,
    pub group: u32,
    /// The index of the other end of a pair, in its namespace.
    pub peer: Option<u32>,
    /// `veth`, `vxlan`; empty for hardware.
    pub kind: String,
    /// Of a `vxlan`: its network and its port.
    pub vxlan_id: Option<u32>,
    pub vxlan_port: Option<u16>,
}

fn link(message: Message<'_>) -> Option<Link> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let attributes = message.attributes(LINK_HEADER_BYTES);
    let number = |kind| attributes.get(kind).and_then(|value| ne_u32(value, 0));
    let info = attributes.nested(IFLA_LINKINFO);
    let flags = ne_u32(message.body, 8)?;
    Some(Link {
        index: ne_u32(message.body, 4)?,
        name: text(attributes.get(IFLA_IFNAME)?),
        mac: attributes.get(IFLA_ADDRESS).unwrap_or(&[]).to_vec(),
        mtu: number(IFLA_MTU).unwrap_or(0),
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        group: number(IFLA_GROUP).unwrap_or(0),
        peer: number(IFLA_LINK),
        kind: info.get(IFLA_INFO_KIND).map(text).unwrap_or_default(),
        vxlan_id: info.nested(IFLA_INFO_DATA).get(IFLA_VXLAN_ID).and_then(|value| ne_u32(value, 0)),
        vxlan_port: info.nested(IFLA_INFO_DATA).get(IFLA_VXLAN_PORT).and_then(be_u16),
    })
}

/// The group of a link that this is news of; `None` when it is news of something else.
pub fn group_of(news: Message<'_>) -> Option<u32> {
    let is_link = news.kind == RTM_NEWLINK || news.kind == RTM_DELLINK;
    let group = || news.attributes(LINK_HEADER_BYTES).get(IFLA_GROUP).and_then(|value| ne_u32(value, 0));
    is_link.then(|| group().unwrap_or(0))
}

/// All links of the socket's namespace.
pub fn links(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let mut request = Batch::new();
    request.push("list links", RTM_GETLINK, 0, &[], |w| w.fixed(&link_header(AF_UNSPEC, 0, 0, 0)));
    socket.dump(&request, link)
}

/// The link of this name.
pub fn link_by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    let mut request = Batch::new();
    request.push(format!("look up link {name}"), RTM_GETLINK, 0, &[libc::ENODEV], |w| {
        w.fixed(&link_header(AF_UNSPEC, 0, 0, 0));
        w.text(IFLA_IFNAME, name);
    });
    let mut found = None;
    socket.query(&request, false, |message| found = link(message))?;
    Ok(found)
}

/// One end of a new veth pair.
pub struct VethEnd<'a> {
    pub name: &'a str,
    pub mac: Mac,
}

/// Creates a veth pair; `host` is up, `peer` is born in the namespace behind `peer_netns`, and down
/// (the kernel refuses to bring it up before it is paired).
pub fn add_veth(
    batch: &mut Batch,
    host: &VethEnd<'_>,
    peer: &VethEnd<'_>,
    peer_netns: i32,
    mtu: u32,
    group: u32,
) {
    batch.push(format!("create link {}", host.name), RTM_NEWLINK, CREATE, &[], |w| {
        w.fixed(&link_header(AF_UNSPEC, 0, IFF_UP, IFF_UP));
        w.text(IFLA_IFNAME, host.name);
        w.u32(IFLA_MTU, mtu);
        w.raw(IFLA_ADDRESS, &host.mac);
        w.u32(IFLA_GROUP, group);
        w.nest(IFLA_LINKINFO, |w| {
            w.text(IFLA_INFO_KIND, "veth");
            w.nest(IFLA_INFO_DATA, |w| {
                w.nest(VETH_INFO_PEER, |w| {
                    w.fixed(&link_header(AF_UNSPEC, 0, 0, 0));
                    w.text(IFLA_IFNAME, peer.name);
                    w.u32(IFLA_MTU, mtu);
                    w.raw(IFLA_ADDRESS, &peer.mac);
                    w.u32(IFLA_NET_NS_FD, peer_netns as u32);
                });
            });
        });
    });
}

/// Creates a VXLAN device that learns nothing by itself (RFC 7348) and sends from the port it listens
/// on, so that answers find back through routers that translate addresses.
pub fn add_vxlan(batch: &mut Batch, name: &str, mac: Mac, id: u32, port: u16, mtu: u32) {
    batch.push(format!("create VXLAN link {name}"), RTM_NEWLINK, CREATE, &[], |w| {
        w.fixed(&link_header(AF_UNSPEC, 0, IFF_UP, IFF_UP));
        w.text(IFLA_IFNAME, name);
        w.u32(IFLA_MTU, mtu);
        w.raw(IFLA_ADDRESS, &mac);
        w.nest(IFLA_LINKINFO, |w| {
            w.text(IFLA_INFO_KIND, "vxlan");
            w.nest(IFLA_INFO_DATA, |w| {
                w.u32(IFLA_VXLAN_ID, id);
                w.u8(IFLA_VXLAN_LEARNING, 0);
                w.be16(IFLA_VXLAN_PORT, port);
                // None, as the RFC has it: routers between virtual machines would get it wrong.
                w.u8(IFLA_VXLAN_UDP_CSUM, 0);
                // `struct ifla_vxlan_port_range`: the end is not in it.
                let [from, to] = [port, port + 1].map(u16::to_be_bytes);
                w.raw(IFLA_VXLAN_PORT_RANGE, &[from, to].concat());
            });
        });
    });
}

/// Brings a link up.
pub fn set_up(batch: &mut Batch, index: u32) {
    batch.push("bring a link up", RTM_NEWLINK, 0, &[], |w| {
        w.fixed(&link_header(AF_UNSPEC, index, IFF_UP, IFF_UP));
    });
}

/// Sets a link's MTU (bytes).
pub fn set_mtu(batch: &mut Batch, index: u32, mtu: u32) {
    batch.push("set a link's MTU", RTM_NEWLINK, 0, &[], |w| {
        w.fixed(&link_header(AF_UNSPEC, index, 0, 0));
        w.u32(IFLA_MTU, mtu);
    });
}

/// Moves a link into a group.
pub fn set_group(batch: &mut Batch, index: u32, group: u32) {
    batch.push("set a link's group", RTM_NEWLINK, 0, &[libc::ENODEV], |w| {
        w.fixed(&link_header(AF_UNSPEC, index, 0, 0));
        w.u32(IFLA_GROUP, group);
    });
}

/// Sets an IPv4 setting of one device, as `/proc/sys/net/ipv4/conf/<device>/…` would.
pub fn set_devconf(batch: &mut Batch, index: u32, setting: u16, value: u32) {
    batch.push("configure a link for IPv4", RTM_NEWLINK, 0, &[], |w| {
        w.fixed(&link_header(AF_UNSPEC, index, 0, 0));
        w.nest(IFLA_AF_SPEC, |w| {
            w.nest(AF_INET as u16, |w| w.nest(IFLA_INET_CONF, |w| w.u32(setting, value)));
        });
    });
}

/// Keeps IPv6 from giving a link an address by itself; nothing to do where IPv6 is off.
pub fn set_no_ipv6_address(batch: &mut Batch, index: u32) {
    const OFF: &[i32] = &[libc::EAFNOSUPPORT, libc::EINVAL, libc::EOPNOTSUPP];
    batch.push("configure a link for IPv6", RTM_NEWLINK, 0, OFF, |w| {
        w.fixed(&link_header(AF_UNSPEC, index, 0, 0));
        w.nest(IFLA_AF_SPEC, |w| {
            w.nest(libc::AF_INET6 as u16, |w| w.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE));
        });
    });
}

/// Deletes a link.
pub fn delete_link(batch: &mut Batch, index: u32) {
    batch.push("delete a link", RTM_DELLINK, 0, &[libc::ENODEV], |w| {
        w.fixed(&link_header(AF_UNSPEC, index, 0, 0));
    });
}

/// Deletes all links of a group at once; the kernel waits only once for all of them.
pub fn delete_group(batch: &mut Batch, group: u32) {
    batch.push("delete links", RTM_DELLINK, 0, &[libc::ENODEV], |w| {
        w.fixed(&link_header(AF_UNSPEC, 0, 0, 0));
        w.u32(IFLA_GROUP, group);
    });
}

/// One IPv4 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub ip: Ipv4Addr,
    pub prefix: u8,
}

/// All IPv4 addresses of the socket's namespace.
pub fn addresses(socket: &mut Socket) -> Result<Vec<Address>, Refusal> {
    let mut request = Batch::new();
    request.push("list addresses", RTM_GETADDR, 0, &[], |w| w.fixed(&[AF_INET as u8, 0, 0, 0, 0, 0, 0, 0]));
    socket.dump(&request, |message| {
        let attributes = message.attributes(ADDRESS_HEADER_BYTES);
        Some(Address {
            index: ne_u32(message.body, 4)?,
            ip: ipv4(attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?)?,
            prefix: *message.body.get(1)?,
        })
    })
}

fn address_body(w: &mut Writer<'_>, index: u32, address: Ipv4Addr, scope: u8) {
    let mut header = [AF_INET as u8, 32, 0, scope, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    w.fixed(&header);
    w.raw(IFA_LOCAL, &address.octets());
    w.raw(IFA_ADDRESS, &address.octets());
}

/// Gives a link a /32.
pub fn add_address(batch: &mut Batch, index: u32, address: Ipv4Addr, scope: u8) {
    batch.push(format!("add address {address}"), RTM_NEWADDR, SET, &[], |w| {
        address_body(w, index, address, scope);
    });
}

/// Takes a /32 away.
pub fn delete_address(batch: &mut Batch, index: u32, address: Ipv4Addr) {
    const GONE: &[i32] = &[libc::EADDRNOTAVAIL, libc::ENODEV];
    batch.push(format!("delete address {address}"), RTM_DELADDR, 0, GONE, |w| {
        address_body(w, index, address, SCOPE_HOST);
    });
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub to: Cidr,
    pub via: Option<Ipv4Addr>,
    pub index: u32,
    pub source: Option<Ipv4Addr>,
}

fn route_body(w: &mut Writer<'_>, route: &Route) {
    let scope = if route.via.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
    let flags = if route.via.is_some() { RTNH_F_ONLINK } else { 0 };
    let mut header = [0; ROUTE_HEADER_BYTES];
    header[..8].copy_from_slice(&[
        AF_INET as u8,
        route.to.prefix(),
        0,
        0,
        TABLE_MAIN,
        PROTOCOL,
        scope,
        TYPE_UNICAST,
    ]);
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    w.fixed(&header);
    w.raw(RTA_DST, &route.to.first().octets());
    w.u32(RTA_OIF, route.index);
    if let Some(via) = route.via {
        w.raw(RTA_GATEWAY, &via.octets());
    }
    if let Some(source) = route.source {
        w.raw(RTA_PREFSRC, &source.octets());
    }
}

/// A network that is all this node's own, as a route of type local of the local table.
fn local_network_body(w: &mut Writer<'_>, network: Cidr, source: Option<Ipv4Addr>) {
    let mut header = [0; ROUTE_HEADER_BYTES];
    header[..8].copy_from_slice(&[
        AF_INET as u8,
        network.prefix(),
        0,
        0,
        TABLE_LOCAL,
        PROTOCOL,
        SCOPE_HOST,
        TYPE_LOCAL,
    ]);
    w.fixed(&header);
    w.raw(RTA_DST, &network.first().octets());
    w.u32(RTA_OIF, LOOPBACK_INDEX);
    if let Some(source) = source {
        w.raw(RTA_PREFSRC, &source.octets());
    }
}

/// Makes every address of the network this node's own; what goes there carries `source`.
pub fn set_local_network(batch: &mut Batch, network: Cidr, source: Ipv4Addr) {
    batch.push(format!("set the local network {network}"), RTM_NEWROUTE, SET, &[], |w| {
        local_network_body(w, network, Some(source));
    });
}

/// Takes a local network away.
pub fn delete_local_network(batch: &mut Batch, network: Cidr) {
    let what = format!("delete the local network {network}");
    batch.push(what, RTM_DELROUTE, 0, &[ESRCH, ENOENT, libc::ENODEV], |w| {
        local_network_body(w, network, None);
    });
}

/// Makes the route to its destination be this one.
pub fn set_route(batch: &mut Batch, route: &Route) {
    batch.push(format!("set the route to {}", route.to), RTM_NEWROUTE, SET, &[], |w| route_body(w, route));
}

/// Takes a route away.
pub fn delete_route(batch: &mut Batch, route: &Route) {
    let what = format!("delete the route to {}", route.to);
    batch.push(what, RTM_DELROUTE, 0, &[ESRCH, ENOENT, libc::ENODEV], |w| route_body(w, route));
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn route(message: Message<'_>, local: bool) -> Option<(u8, Route)> {
    let header = message.body.get(..ROUTE_HEADER_BYTES)?;
    let attributes = message.attributes(ROUTE_HEADER_BYTES);
    let table =
        attributes.get(RTA_TABLE).and_then(|value| ne_u32(value, 0)).unwrap_or_else(|| u32::from(header[4]));
    let (wanted, kind) = if local { (TABLE_LOCAL, TYPE_LOCAL) } else { (TABLE_MAIN, TYPE_UNICAST) };
    if message.kind != RTM_NEWROUTE
        || header[0] != AF_INET as u8
        || header[7] != kind
        || table != u32::from(wanted)
    {
        return None;
    }
    Some((
        header[5],
        Route {
            to: Cidr::new(attributes.get(RTA_DST).and_then(ipv4).unwrap_or(Ipv4Addr::UNSPECIFIED), header[1]),
            via: attributes.get(RTA_GATEWAY).and_then(ipv4),
            index: ne_u32(attributes.get(RTA_OIF)?, 0)?,
            source: attributes.get(RTA_PREFSRC).and_then(ipv4),
        },
    ))
}

/// Of the main table, or of the one with what is this node's own.
fn all_routes(socket: &mut Socket, local: bool) -> Result<Vec<(u8, Route)>, Refusal> {
    let mut request = Batch::new();
    let mut header = [0; ROUTE_HEADER_BYTES];
    header[0] = AF_INET as u8;
    request.push("list routes", RTM_GETROUTE, 0, &[], |w| w.fixed(&header));
    socket.dump(&request, |message| route(message, local))
}

/// The routes of the main table that we have made.
pub fn own_routes(socket: &mut Socket) -> Result<Vec<Route>, Refusal> {
    let routes = all_routes(socket, false)?.into_iter();
    Ok(routes.filter(|(protocol, _)| *protocol == PROTOCOL).map(|(_, route)| route).collect())
}

/// Whether this is news of a route that we have made.
pub fn is_own_route(news: Message<'_>) -> bool {
    (news.kind == RTM_NEWROUTE || news.kind == RTM_DELROUTE) && news.body.get(5) == Some(&PROTOCOL)
}

/// The networks that we have made this node's own.
pub fn local_networks(socket: &mut Socket) -> Result<Vec<Cidr>, Refusal> {
    let routes = all_routes(socket, true)?.into_iter();
    Ok(routes.filter(|(protocol, _)| *protocol == PROTOCOL).map(|(_, route)| route.to).collect())
}

/// The networks that are on a link itself (routes that the kernel made for addresses), and the
/// default route, which has the prefix length 0.
pub fn underlay_routes(socket: &mut Socket) -> Result<Vec<Route>, Refusal> {
    let routes = all_routes(socket, false)?.into_iter();
    Ok(routes
        .filter(|(protocol, route)| {
            *protocol != PROTOCOL
                && (route.to.prefix() == 0 || *protocol == PROTOCOL_KERNEL && route.via.is_none())
        })
        .map(|(_, route)| route)
        .collect())
}

fn neighbour_header(family: i32, index: u32, flags: u8) -> [u8; NEIGHBOUR_HEADER_BYTES] {
    let mut header = [0; NEIGHBOUR_HEADER_BYTES];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header[10] = flags;
    header
}

/// An address whose hardware address is known for good, on a link (`NUD_PERMANENT`), or a VXLAN
/// forwarding entry (then `address` is the tunnel's other end).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub index: u32,
    pub address: Ipv4Addr,
    pub mac: Mac,
    /// An entry of a VXLAN device's forwarding table.
    pub forwarding: bool,
    /// Of such an entry: where the other end listens, if not where the device itself does.
    pub port: Option<u16>,
}

impl Neighbour {
    fn body(&self, w: &mut Writer<'_>) {
        let (family, flags) = if self.forwarding { (AF_BRIDGE, NTF_SELF) } else { (AF_INET, 0) };
        w.fixed(&neighbour_header(family, self.index, flags));
        w.raw(NDA_DST, &self.address.octets());
        w.raw(NDA_LLADDR, &self.mac);
        if let Some(port) = self.port {
            w.be16(NDA_PORT, port);
        }
    }
}

/// Makes the neighbour entry be this one.
pub fn set_neighbour(batch: &mut Batch, neighbour: &Neighbour) {
    let what = format!("set the neighbour {}", neighbour.address);
    batch.push(what, RTM_NEWNEIGH, SET, &[], |w| neighbour.body(w));
}

/// Takes a neighbour entry away.
pub fn delete_neighbour(batch: &mut Batch, neighbour: &Neighbour) {
    let what = format!("delete the neighbour {}", neighbour.address);
    batch.push(what, RTM_DELNEIGH, 0, &[ENOENT, ESRCH, libc::ENODEV], |w| neighbour.body(w));
}

/// The permanent neighbours, or the forwarding entries, of one link.
pub fn neighbours(socket: &mut Socket, index: u32, forwarding: bool) -> Result<Vec<Neighbour>, Refusal> {
    let family = if forwarding { AF_BRIDGE } else { AF_INET };
    let mut request = Batch::new();
    request.push("list neighbours", RTM_GETNEIGH, 0, &[], |w| w.fixed(&neighbour_header(family, 0, 0)));
    socket.dump(&request, |message| {
        let attributes = message.attributes(NEIGHBOUR_HEADER_BYTES);
        let state = u16::from_ne_bytes([*message.body.get(8)?, *message.body.get(9)?]);
        if message.kind != RTM_NEWNEIGH
            || ne_u32(message.body, 4)? != index
            || state & NUD_PERMANENT == 0
            || *message.body.first()? != family as u8
        {
            return None;
        }
        Some(Neighbour {
            index,
            address: ipv4(attributes.get(NDA_DST)?)?,
            mac: attributes.get(NDA_LLADDR)?.try_into().ok()?,
            forwarding,
            port: attributes.get(NDA_PORT).and_then(be_u16),
        })
    })
}
