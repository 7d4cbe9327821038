//! Connection tracking entries that a change of services has made wrong.
//!
//! The kernel translates a connection as its first packet was; UDP has no end, so a client that
//! keeps its port would talk to a dead endpoint, or past a new service, for as long as it talks.
//!
//! In: the ruleset before and after. Out: the UDP entries that lead elsewhere than the new one would
//! are deleted. Invariant: entries that did not come through our frontends stay.
//! Format: `linux/netfilter/nfnetlink_conntrack.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    Error, Protocol,
    netlink::Socket,
    plan::differing,
    ruleset::{Frontend, Key, Ruleset, Set, Value, protocol_number},
    wire::{Batch, Message, be_u16},
};

const SUBSYSTEM: u16 = 1;
const NEW_ENTRY: u16 = SUBSYSTEM << 8;
const GET_ENTRY: u16 = NEW_ENTRY | 1;
const DELETE_ENTRY: u16 = NEW_ENTRY | 2;
/// `struct nfgenmsg` for IPv4.
const HEADER: [u8; 4] = [2, 0, 0, 0];
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_ZONE`
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const NESTED: u16 = 1 << 15;

/// The sets of pods' ports.
const HOST_PORTS: [Set; 2] = [Set::HostPorts, Set::HostAddressPorts];

type Socket4 = (Ipv4Addr, u16);

/// Where UDP entries of changed frontends may lead.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed(BTreeMap<Frontend, Targets>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Targets {
    before: BTreeSet<Socket4>,
    now: BTreeSet<Socket4>,
}

/// The endpoints of a frontend; `None` where there is no such frontend.
fn targets(ruleset: &Ruleset, frontend: Frontend) -> Option<BTreeSet<Socket4>> {
    let front = ruleset.fronts.get(&frontend).into_iter().flat_map(|front| front.elements());
    let host_port = HOST_PORTS.map(|set| (set, Key::Frontend(frontend)));
    let host_port = host_port.iter().filter_map(|key| ruleset.others.get_key_value(key));
    let mut found = None;
    for ((_, key), value) in front.chain(host_port) {
        if !matches!(key, Key::Frontend(_) | Key::Slot(..)) || *value == Value::Nothing {
            continue;
        }
        let targets: &mut BTreeSet<Socket4> = found.get_or_insert_default();
        if let Value::Target(address, port) = value {
            targets.insert((*address, *port));
        }
    }
    found
}

/// The UDP ports of pods.
fn host_ports(ruleset: &Ruleset) -> impl Iterator<Item = (Frontend, &Value)> {
    ruleset.others.iter().filter_map(|((set, key), value)| match key {
        Key::Frontend(frontend) if HOST_PORTS.contains(set) => Some((*frontend, value)),
        _ => None,
    })
}

impl Changed {
    /// Between what was (nothing is known of an earlier process's) and what is wanted.
    pub fn between(old: Option<&Ruleset>, new: &Ruleset) -> Self {
        let (before, now): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (old.into_iter().flat_map(host_ports).collect(), host_ports(new).collect());
        let ports = before.keys().chain(now.keys()).filter(|port| before.get(port) != now.get(port));
        let fronts = differing(old, new).into_iter().map(|(frontend, ..)| frontend);
        let mut changed = BTreeMap::new();
        for frontend in fronts.chain(ports.copied()).filter(|front| front.protocol == Protocol::Udp) {
            let before = old.and_then(|old| targets(old, frontend));
            let now = targets(new, frontend);
            if before != now {
                let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
                changed.insert(frontend, Targets { before, now });
            }
        }
        Self(changed)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this entry leads elsewhere than a new one would.
    fn is_stale(&self, flow: &Flow) -> bool {
        let frontend = |address| Frontend { address, protocol: Protocol::Udp, port: flow.to.1 };
        if let Some(targets) = self.0.get(&frontend(Some(flow.to.0))) {
            return !targets.now.contains(&flow.answered_by);
        }
        self.0.get(&frontend(None)).is_some_and(|targets| {
            // Any address may be one of the node's: only what was ours, or was not translated.
            let untouched = flow.answered_by == flow.to && flow.answered_to == flow.from;
            !targets.now.contains(&flow.answered_by)
                && (untouched || targets.before.contains(&flow.answered_by))
        })
    }
}

/// One tracked exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flow {
    from: Socket4,
    to: Socket4,
    answered_by: Socket4,
    answered_to: Socket4,
    /// What tells the kernel which entry is meant.
    identity: Vec<(u16, Vec<u8>)>,
}

fn flow(message: Message<'_>) -> Option<Flow> {
    let attributes = message.attributes(HEADER.len());
    let tuple = |kind| {
        let tuple = attributes.nested(kind);
        let (ip, proto) = (tuple.nested(1), tuple.nested(2));
        if proto.get(1)? != [protocol_number(Protocol::Udp)] {
            return None;
        }
        let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(kind)?).ok()?));
        let port = |kind| proto.get(kind).and_then(be_u16);
        Some(((address(1)?, port(2)?), (address(2)?, port(3)?)))
    };
    let ((from, to), (answered_by, answered_to)) = (tuple(TUPLE_ORIGINAL)?, tuple(TUPLE_REPLY)?);
    let copy = |kind: u16, flag: u16| attributes.get(kind).map(|value| (kind | flag, value.to_vec()));
    let identity = [copy(TUPLE_ORIGINAL, NESTED), copy(ID, 0), copy(ZONE, 0)];
    Some(Flow { from, to, answered_by, answered_to, identity: identity.into_iter().flatten().collect() })
}

/// Deletes the entries that the change has made wrong.
pub fn delete_stale(socket: &mut Socket, changed: &Changed) -> Result<(), Error> {
    if changed.is_empty() {
        return Ok(());
    }
    let mut request = Batch::new();
    request.push("list tracked connections", GET_ENTRY, 0, &[], |w| w.fixed(&HEADER));
    let stale = socket.dump(&request, |message| {
        if message.kind != NEW_ENTRY {
            return None;
        }
        flow(message).filter(|flow| changed.is_stale(flow))
    })?;
    let mut batch = Batch::new();
    for flow in stale {
        batch.push("delete a tracked connection", DELETE_ENTRY, 0, &[libc::ENOENT], |w| {
            w.fixed(&HEADER);
            for (kind, value) in &flow.identity {
                w.raw(*kind, value);
            }
        });
    }
    Ok(socket.apply(&batch)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Backend, HostPort, ServicePort, plan, ruleset::Scope};

    fn ruleset(endpoints: &[u8]) -> Ruleset {
        let scope = Scope {
            cluster: "10.42.0.0/16".parse().unwrap(),
            service: "10.43.0.0/16".parse().unwrap(),
            pods: "10.42.0.0/24".parse().unwrap(),
            dns: None,
        };
        let backend = |last: &u8| Backend::new(Ipv4Addr::new(10, 42, 0, *last), 53, true);
        let vip = Ipv4Addr::new(10, 43, 0, 7);
        let backends = endpoints.iter().map(backend).collect();
        let service = ServicePort {
            node_port: Some(30053),
            ..ServicePort::new("default/dns:dns".to_owned(), Protocol::Udp, 5353, vip, backends)
        };
        let other = HostPort {
            protocol: Protocol::Udp,
            host_ip: None,
            host_port: 4000,
            pod_ip: Ipv4Addr::new(10, 42, 0, 9),
            pod_port: 4000,
        };
        plan::tests::ruleset(scope, &[service], &[other])
    }

    fn flow(to: (Ipv4Addr, u16), answered_by: (Ipv4Addr, u16)) -> Flow {
        let from = (Ipv4Addr::new(10, 42, 0, 50), 1234);
        Flow { from, to, answered_by, answered_to: from, identity: Vec::new() }
    }

    #[test]
    fn entries_that_lead_to_gone_endpoints_are_stale() {
        let vip = (Ipv4Addr::new(10, 43, 0, 7), 5353);
        let node = (Ipv4Addr::new(192, 0, 2, 1), 30053);
        let pod = |last| (Ipv4Addr::new(10, 42, 0, last), 53);
        let changed = Changed::between(Some(&ruleset(&[2, 3])), &ruleset(&[3, 4]));
        let cases = [
            (vip, pod(2), true),
            (vip, pod(3), false),
            (vip, vip, true),
            (node, pod(2), true),
            (node, pod(3), false),
            // Came before the service.
            (node, node, true),
            // Translated by somebody else.
            (node, (Ipv4Addr::new(172, 17, 0, 2), 53), false),
            ((Ipv4Addr::new(8, 8, 8, 8), 53), (Ipv4Addr::new(8, 8, 8, 8), 53), false),
            // Unchanged.
            ((Ipv4Addr::new(192, 0, 2, 1), 4000), (Ipv4Addr::new(192, 0, 2, 1), 4000), false),
        ];
        for (to, answered_by, stale) in cases {
            assert_eq!(changed.is_stale(&flow(to, answered_by)), stale, "{to:?} {answered_by:?}");
        }
        assert!(Changed::between(Some(&ruleset(&[2])), &ruleset(&[2])).is_empty());
    }

    #[test]
    fn without_a_past_only_the_certain_is_stale() {
        let changed = Changed::between(None, &ruleset(&[2]));
        let vip = (Ipv4Addr::new(10, 43, 0, 7), 5353);
        let pod = |last| (Ipv4Addr::new(10, 42, 0, last), 53);
        assert!(changed.is_stale(&flow(vip, pod(3))));
        assert!(!changed.is_stale(&flow(vip, pod(2))));
        assert!(!changed.is_stale(&flow((Ipv4Addr::new(192, 0, 2, 1), 30053), pod(3))));
    }
}
