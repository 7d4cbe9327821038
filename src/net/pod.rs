//! A pod's link: a veth pair with the pod's /32 at one end and a route to it at the other.
//!
//! ```text
//! pod: eth0 10.42.0.5/32, default via 169.254.1.1 (never asked for: permanent neighbour)
//!        ║
//! host: smp<hash of the uid>, no address; 10.42.0.5/32 dev smp…, permanent neighbour
//! ```
//!
//! No bridge: a bridge breaks pod → service → pod on the same node without br_netfilter.
//! Invariants: attaching twice changes nothing; a link of an earlier attempt that does not fit is
//! replaced; nothing asks with ARP.

use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use nix::sched::{CloneFlags, setns};

use super::{
    Error,
    cidr::Cidr,
    netlink::{Family, Socket},
    route::{self, Link, Mac, Neighbour, Route, VethEnd},
    wire::Batch,
};
use crate::{crash, ids};

/// The pod's gateway; nobody has it, and nobody needs to.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The host's end of every pair.
const HOST_MAC: Mac = [0xee; 6];
/// The device inside a pod.
const POD_DEVICE: &str = "eth0";
/// Host devices of pods begin so.
pub const DEVICE_PREFIX: &str = "smp";
/// The group of links in use.
pub const GROUP_LIVE: u32 = 0x736d_7001;
/// The group of links that wait for their deletion.
pub const GROUP_DEAD: u32 = 0x736d_7002;
/// Reverse path filtering that only asks for some route back (`rp_filter`, RFC 3704 section 2.4).
pub const RP_FILTER_LOOSE: u32 = 2;

/// The host's device of a pod: `smp` and 11 hexadecimal digits (`IFNAMSIZ` allows 15 characters).
pub fn device_name(pod_uid: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, pod_uid.as_bytes());
    format!("{DEVICE_PREFIX}{}", &ids::hex(&digest.as_ref()[..6])[..11])
}

/// A locally administered hardware address that no other device of the cluster has.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x53, a, b, c, d]
}

/// Opens a route socket in another network namespace; the thread returns to `home`.
fn open_in(home: &File, netns: &File, path: &Path) -> Result<Socket, Error> {
    let enter = |file: &File, what: String| {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::Kernel { operation: what, source: errno.into() })
    };
    enter(netns, format!("enter the network namespace {}", path.display()))?;
    let socket = Socket::open(Family::Route);
    enter(home, "return to the node's network namespace".to_owned())?;
    Ok(socket?)
}

/// What [`attach`] needs of the node.
pub struct Attach<'a> {
    pub pod_uid: &'a str,
    pub netns: &'a Path,
    pub address: Ipv4Addr,
    /// The node's own address in the pod network, which the host's packets to pods carry.
    pub node_source: Ipv4Addr,
    /// Bytes.
    pub mtu: u32,
}

/// Gives the pod its link. `home` is the namespace `host` is in.
pub fn attach(host: &mut Socket, home: &File, wanted: &Attach<'_>) -> Result<(), Error> {
    let netns = File::open(wanted.netns).map_err(|source| Error::Kernel {
        operation: format!("open the network namespace {}", wanted.netns.display()),
        source,
    })?;
    let mut pod = open_in(home, &netns, wanted.netns)?;
    let name = device_name(wanted.pod_uid);
    let existing = route::link_by_name(host, &name)?;
    let inside = route::link_by_name(&mut pod, POD_DEVICE)?;
    let (outside, inside) = match (existing, inside) {
        (Some(outside), Some(inside)) if paired(&outside, &inside, wanted) => (outside, inside),
        (outside, inside) => {
            let mut batch = Batch::new();
            if let Some(outside) = &outside {
                route::delete_link(&mut batch, outside.index);
                host.apply(&batch)?;
            }
            if let Some(left) = inside.filter(|link| Some(link.index) != outside.and_then(|o| o.peer)) {
                let mut batch = Batch::new();
                route::delete_link(&mut batch, left.index);
                pod.apply(&batch)?;
            }
            let mut batch = Batch::new();
            route::add_veth(
                &mut batch,
                &VethEnd { name: &name, mac: HOST_MAC },
                &VethEnd { name: POD_DEVICE, mac: mac_of(wanted.address) },
                netns.as_raw_fd(),
                wanted.mtu,
                GROUP_LIVE,
            );
            host.apply(&batch)?;
            crash::point(crash::DAEMON);
            let gone = |device: &str| {
                Error::Invalid(format!("link {device} of pod {} vanished while made", wanted.pod_uid))
            };
            (
                route::link_by_name(host, &name)?.ok_or_else(|| gone(&name))?,
                route::link_by_name(&mut pod, POD_DEVICE)?.ok_or_else(|| gone(POD_DEVICE))?,
            )
        }
    };
    pod.apply(&inside_batch(inside.index, wanted.address))?;
    crash::point(crash::DAEMON);
    host.apply(&outside_batch(outside.index, wanted))?;
    Ok(())
}

/// Whether these two are the wanted pair already.
fn paired(outside: &Link, inside: &Link, wanted: &Attach<'_>) -> bool {
    outside.peer == Some(inside.index)
        && inside.peer == Some(outside.index)
        && outside.group == GROUP_LIVE
        && outside.up
        && inside.mac == mac_of(wanted.address)
}

/// Loopback, address and routes inside the pod.
fn inside_batch(index: u32, address: Ipv4Addr) -> Batch {
    let mut batch = Batch::new();
    route::set_up(&mut batch, route::LOOPBACK_INDEX);
    route::set_no_ipv6_address(&mut batch, index);
    route::set_up(&mut batch, index);
    route::add_address(&mut batch, index, address, route::SCOPE_UNIVERSE);
    let gateway = Neighbour { index, address: GATEWAY, mac: HOST_MAC, forwarding: false, port: None };
    route::set_neighbour(&mut batch, &gateway);
    let everywhere = Cidr::new(Ipv4Addr::UNSPECIFIED, 0);
    route::set_route(&mut batch, &Route { to: everywhere, via: Some(GATEWAY), index, source: None });
    batch
}

/// The way to the pod from the host.
fn outside_batch(index: u32, wanted: &Attach<'_>) -> Batch {
    let mut batch = Batch::new();
    route::set_no_ipv6_address(&mut batch, index);
    route::set_devconf(&mut batch, index, route::DEVCONF_RP_FILTER, RP_FILTER_LOOSE);
    let address = wanted.address;
    let pod = Neighbour { index, address, mac: mac_of(address), forwarding: false, port: None };
    route::set_neighbour(&mut batch, &pod);
    let to = Cidr::new(address, 32);
    route::set_route(&mut batch, &Route { to, via: None, index, source: Some(wanted.node_source) });
    batch
}

/// Takes the pod's route away and marks its link for deletion. Returns whether there was a link.
pub fn retire(host: &mut Socket, pod_uid: &str) -> Result<bool, Error> {
    let Some(link) = route::link_by_name(host, &device_name(pod_uid))? else { return Ok(false) };
    let mut batch = Batch::new();
    for route in route::own_routes(host)?.iter().filter(|route| route.index == link.index) {
        route::delete_route(&mut batch, route);
    }
    route::set_group(&mut batch, link.index, GROUP_DEAD);
    host.apply(&batch)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_and_differ() {
        let name = device_name("8f9e0c3a-0000-4000-8000-000000000001");
        assert_eq!(name.len(), 14);
        assert!(name.starts_with(DEVICE_PREFIX));
        assert_ne!(name, device_name("8f9e0c3a-0000-4000-8000-000000000002"));
    }

    #[test]
    fn hardware_addresses_are_local_and_individual() {
        let mac = mac_of(Ipv4Addr::new(10, 42, 0, 5));
        assert_eq!(mac, [0x0a, 0x53, 10, 42, 0, 5]);
        assert_eq!(mac[0] & 3, 2);
    }
}
