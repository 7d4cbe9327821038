//! How much the links of pods carry: what the node's own link does.
//!
//! In: the kernel's links and routes, and its news of them (`RTMGRP_LINK`, `RTMGRP_IPV4_ROUTE` of
//! `linux/rtnetlink.h`). Out: bytes. Tunnelled packets that do not fit are answered by the kernel, and
//! the sender learns (RFC 1191).
//! Invariant: links are listed only after news of one that is not a pod's: a node with hundreds of
//! pods would list hundreds of links for each new one.

use super::{
    netlink::{Refusal, Socket},
    peers::Underlay,
    pod, route,
};

const LINKS: u32 = 0x1;
const ROUTES: u32 = 0x40;

/// What is known of it.
#[derive(Debug)]
pub struct Mtu {
    news: Socket,
    known: Option<u32>,
}

impl Mtu {
    /// Begins to hear news in the calling thread's network namespace.
    pub fn open() -> Result<Self, Refusal> {
        Ok(Self { news: Socket::hearing(LINKS | ROUTES)?, known: None })
    }

    /// As it is now (bytes); `socket` is of the same namespace.
    pub fn get(&mut self, socket: &mut Socket) -> Result<u32, Refusal> {
        let is_pods = |group| group == pod::GROUP_LIVE || group == pod::GROUP_DEAD;
        let mut changed = false;
        let all_heard = self.news.heard(|message| {
            let ours = match route::group_of(message) {
                Some(group) => is_pods(group),
                None => route::is_own_route(message),
            };
            changed |= !ours;
        });
        if let Some(known) = self.known.filter(|_| all_heard && !changed) {
            return Ok(known);
        }
        let links = route::links(socket)?;
        let mtu = Underlay::new(&links, &route::underlay_routes(socket)?).mtu;
        self.known = Some(mtu);
        Ok(mtu)
    }
}
