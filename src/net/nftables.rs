//! The table `ip sampan` in the kernel: made whole in one transaction, then changed by elements.
//!
//! In: a wanted [`Ruleset`]. Out: the kernel has it. Format: `linux/netfilter/nf_tables.h`.
//! Invariants: every change is one transaction, a packet sees the old table or the new one; a table
//! that somebody else has touched is noticed by the generation number, compared element by element
//! and, where it differs, replaced; no other table is looked at or touched.

use std::collections::{BTreeMap, BTreeSet};

use libc::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::{
    ClosedChains, Error,
    affinity::{Remembered, Stickiness},
    netlink::{Family, Refusal, Socket},
    plan::{Front, differing},
    rule::{Expr, Header, Meta, Original, Rule, Verdict},
    ruleset::{CLIENTS_MAX, Frontend, Gives, Hook, Key, Ruleset, Set, TABLE, Type, Value, protocol_number},
    wire::{Attributes, Batch, Message, Writer, be_u16, be_u32, text},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = NEW_TABLE | 1;
const DELETE_TABLE: u16 = NEW_TABLE | 2;
const NEW_CHAIN: u16 = NEW_TABLE | 3;
const GET_CHAIN: u16 = NEW_TABLE | 4;
const DELETE_CHAIN: u16 = NEW_TABLE | 5;
const NEW_RULE: u16 = NEW_TABLE | 6;
const GET_RULE: u16 = NEW_TABLE | 7;
const NEW_SET: u16 = NEW_TABLE | 9;
const NEW_ELEMENTS: u16 = NEW_TABLE | 0xc;
const GET_ELEMENTS: u16 = NEW_TABLE | 0xd;
const DELETE_ELEMENTS: u16 = NEW_TABLE | 0xe;
const NEW_GENERATION: u16 = NEW_TABLE | 0xf;
const GET_GENERATION: u16 = NEW_TABLE | 0x10;

/// Bytes of `struct nfgenmsg`.
const HEADER_BYTES: usize = 4;
/// `NFPROTO_IPV4`
const IPV4: u8 = 2;
/// `NFTA_LIST_ELEM`
const LIST_ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFT_GOTO`, `NFT_JUMP`, `NF_DROP` and `NF_ACCEPT`.
const VERDICT_GOTO: u32 = -4i32 as u32;
const VERDICT_JUMP: u32 = -3i32 as u32;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
/// `NFT_REG_VERDICT`
const REGISTER_VERDICT: u32 = 0;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_DYNAMIC: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
const TYPE_VERDICT: u32 = 0xffff_ff00;
/// `nft` packs the types of a concatenation so.
const TYPE_BITS: u32 = 6;
/// Elements in one message, whose list must stay below 64 KiB.
const ELEMENTS_MAX: usize = 400;
/// How often a transaction is tried while others change their tables.
const ATTEMPTS_MAX: usize = 5;

fn generic_header(family: u8, resource: u16) -> [u8; HEADER_BYTES] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Writes one message about our table.
fn push(batch: &mut Batch, what: String, kind: u16, flags: i32, body: impl FnOnce(&mut Writer<'_>)) {
    batch.push(what, kind, flags, &[], |w| {
        w.fixed(&generic_header(IPV4, 0));
        // Every message about a table, chain, rule, set or element has the table as attribute 1.
        w.text(1, TABLE);
        body(w);
    });
}

/// A transaction that the kernel refuses unless the generation is this; 0 for any.
fn transaction(generation: u32, body: impl FnOnce(&mut Batch)) -> Batch {
    const GENERATION: u16 = 1;
    let mut batch = Batch::new();
    batch.push("change nf_tables", BATCH_BEGIN, 0, &[], |w| {
        w.fixed(&generic_header(0, SUBSYSTEM));
        if generation > 0 {
            w.be32(GENERATION, generation);
        }
    });
    body(&mut batch);
    batch.flag_last(NLM_F_ACK);
    batch.push("end the change of nf_tables", BATCH_END, 0, &[], |w| {
        w.fixed(&generic_header(0, SUBSYSTEM));
    });
    batch
}

fn write_verdict(w: &mut Writer<'_>, code: u32, chain: Option<&str>) {
    const CODE: u16 = 1;
    const CHAIN: u16 = 2;
    w.nest(DATA_VERDICT, |w| {
        w.be32(CODE, code);
        if let Some(chain) = chain {
            w.text(CHAIN, chain);
        }
    });
}

fn write_expr(w: &mut Writer<'_>, expr: &Expr) {
    let mut put = |name: &str, body: &mut dyn FnMut(&mut Writer<'_>)| {
        w.nest(LIST_ELEMENT, |w| {
            w.text(1, name);
            w.nest(2, |w| body(w));
        });
    };
    match expr {
        Expr::Payload { header, offset, len, to } => put("payload", &mut |w| {
            w.be32(1, *to);
            w.be32(2, if *header == Header::Network { 1 } else { 2 });
            w.be32(3, *offset);
            w.be32(4, *len);
        }),
        Expr::Meta { key, to } => put("meta", &mut |w| {
            w.be32(1, *to);
            w.be32(
                2,
                match key {
                    Meta::InputName => 6,
                    Meta::OutputName => 7,
                    Meta::Protocol => 16,
                },
            );
        }),
        Expr::ConntrackStatus { to } => put("ct", &mut |w| {
            const STATUS: u32 = 2;
            w.be32(1, *to);
            w.be32(2, STATUS);
        }),
        Expr::ConntrackState { to } => put("ct", &mut |w| {
            const STATE: u32 = 0;
            w.be32(1, *to);
            w.be32(2, STATE);
        }),
        Expr::ConntrackOriginal { field, to } => put("ct", &mut |w| {
            const ADDRESS: u32 = 20;
            const PORT: u32 = 12;
            const DIRECTION_ORIGINAL: u8 = 0;
            w.be32(1, *to);
            w.be32(
                2,
                match field {
                    Original::Address => ADDRESS,
                    Original::Port => PORT,
                },
            );
            w.u8(3, DIRECTION_ORIGINAL);
        }),
        Expr::Compare { from, equal, data } => put("cmp", &mut |w| {
            w.be32(1, *from);
            w.be32(2, u32::from(!*equal));
            w.nest(3, |w| w.raw(DATA_VALUE, data));
        }),
        Expr::Mask { register, mask } => put("bitwise", &mut |w| {
            w.be32(1, *register);
            w.be32(2, *register);
            w.be32(3, mask.len() as u32);
            w.nest(4, |w| w.raw(DATA_VALUE, mask));
            w.nest(5, |w| w.raw(DATA_VALUE, &[0; 4]));
        }),
        Expr::Contains { set, from, inverted } => put("lookup", &mut |w| {
            w.text(1, set.name());
            w.be32(2, *from);
            w.be32(5, u32::from(*inverted));
        }),
        Expr::Map { set, from, to } => put("lookup", &mut |w| {
            w.text(1, set.name());
            w.be32(2, *from);
            w.be32(3, *to);
        }),
        Expr::VerdictMap { set, from } => put("lookup", &mut |w| {
            w.text(1, set.name());
            w.be32(2, *from);
            w.be32(3, REGISTER_VERDICT);
        }),
        Expr::Remember { set, key, data, milliseconds } => put("dynset", &mut |w| {
            const UPDATE: u32 = 1;
            w.text(1, set.name());
            w.be32(3, UPDATE);
            w.be32(4, *key);
            w.be32(5, *data);
            w.raw(6, &milliseconds.to_be_bytes());
        }),
        Expr::Random { modulus, to } => put("numgen", &mut |w| {
            const RANDOM: u32 = 1;
            w.be32(1, *to);
            w.be32(2, *modulus);
            w.be32(3, RANDOM);
            w.be32(4, 0);
        }),
        Expr::Hash { from, len, modulus, seed, to } => put("hash", &mut |w| {
            const JENKINS: u32 = 0;
            w.be32(1, *from);
            w.be32(2, *to);
            w.be32(3, *len);
            w.be32(4, *modulus);
            w.be32(5, *seed);
            w.be32(7, JENKINS);
        }),
        Expr::AddressType { destination, to } => put("fib", &mut |w| {
            const ADDRESS_TYPE: u32 = 3;
            const BY_SOURCE: u32 = 1;
            const BY_DESTINATION: u32 = 2;
            w.be32(1, *to);
            w.be32(2, ADDRESS_TYPE);
            w.be32(3, if *destination { BY_DESTINATION } else { BY_SOURCE });
        }),
        Expr::Load { to, data } => put("immediate", &mut |w| {
            w.be32(1, *to);
            w.nest(2, |w| w.raw(DATA_VALUE, data));
        }),
        Expr::Verdict(verdict) => put("immediate", &mut |w| {
            w.be32(1, REGISTER_VERDICT);
            w.nest(2, |w| match verdict {
                Verdict::Accept => write_verdict(w, VERDICT_ACCEPT, None),
                Verdict::Drop => write_verdict(w, VERDICT_DROP, None),
                Verdict::GotoReject => write_verdict(w, VERDICT_GOTO, Some("reject")),
            });
        }),
        Expr::DestinationNat { address, port } => put("nat", &mut |w| {
            w.be32(1, 1);
            w.be32(2, u32::from(IPV4));
            w.be32(3, *address);
            w.be32(5, *port);
        }),
        Expr::SourceNat { address } => put("nat", &mut |w| {
            w.be32(1, 0);
            w.be32(2, u32::from(IPV4));
            w.be32(3, *address);
        }),
        Expr::Masquerade => put("masq", &mut |_| {}),
        Expr::Reject => put("reject", &mut |w| {
            const ICMP_UNREACHABLE: u32 = 0;
            const PORT_UNREACHABLE: u8 = 3;
            w.be32(1, ICMP_UNREACHABLE);
            w.u8(2, PORT_UNREACHABLE);
        }),
    }
}

fn add_chain(batch: &mut Batch, name: &str, hook: Option<Hook>) {
    push(batch, format!("add chain {name}"), NEW_CHAIN, NLM_F_CREATE, |w| {
        w.text(3, name);
        if let Some(hook) = hook {
            // Hook numbers and priorities of `linux/netfilter_ipv4.h`.
            let (kind, number, priority) = match hook {
                Hook::RawPrerouting => ("filter", 0, -300i32),
                Hook::Forward => ("filter", 2, 0),
                Hook::Prerouting => ("nat", 0, -100),
                Hook::Output => ("nat", 3, -100),
                Hook::Postrouting => ("nat", 4, 100),
            };
            w.nest(4, |w| {
                w.be32(1, number);
                w.be32(2, priority as u32);
            });
            w.text(7, kind);
        }
    });
}

fn add_rule(batch: &mut Batch, chain: &str, rule: &Rule) {
    push(batch, adding(chain, rule), NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |w| {
        w.text(2, chain);
        w.nest(4, |w| {
            for expr in &rule.exprs {
                write_expr(w, expr);
            }
        });
    });
}

fn add_own_chain(batch: &mut Batch, name: &str, rules: &[Rule]) {
    add_chain(batch, name, None);
    for rule in rules {
        add_rule(batch, name, rule);
    }
}

/// The number of a type in `nft` and its bytes in a packet; in a key every field takes four.
fn type_number(kind: Type) -> (u32, u32) {
    match kind {
        Type::Address => (7, 4),
        Type::Protocol => (12, 1),
        Type::Port => (13, 2),
        Type::Number => (19, 4),
    }
}

fn add_set(batch: &mut Batch, id: u32, set: Set) {
    const FIELD_BYTES: u32 = 4;
    let pack = |types: &[Type]| types.iter().fold(0, |all, kind| all << TYPE_BITS | type_number(*kind).0);
    push(batch, format!("add set {}", set.name()), NEW_SET, NLM_F_CREATE, |w| {
        let map = if set.gives() == Gives::Nothing { 0 } else { SET_MAP };
        let ranged = if set.ranged() { SET_INTERVAL | SET_CONCAT } else { 0 };
        w.text(2, set.name());
        let dynamic = if set.dynamic() { SET_TIMEOUT | SET_DYNAMIC } else { 0 };
        w.be32(3, map | ranged | dynamic);
        w.be32(4, pack(set.key()));
        w.be32(5, set.key().len() as u32 * FIELD_BYTES);
        match set.gives() {
            Gives::Nothing => {}
            Gives::Verdict => {
                w.be32(6, TYPE_VERDICT);
                w.be32(7, 0);
            }
            Gives::Target => {
                w.be32(6, pack(&[Type::Address, Type::Port]));
                w.be32(7, 2 * FIELD_BYTES);
            }
        }
        const DESCRIPTION: u16 = 9;
        if set.dynamic() {
            const SIZE: u16 = 1;
            w.nest(DESCRIPTION, |w| w.be32(SIZE, CLIENTS_MAX));
        }
        if set.ranged() {
            const CONCATENATION: u16 = 2;
            const FIELD_LENGTH: u16 = 1;
            w.nest(DESCRIPTION, |w| {
                w.nest(CONCATENATION, |w| {
                    for kind in set.key() {
                        w.nest(LIST_ELEMENT, |w| w.be32(FIELD_LENGTH, type_number(*kind).1));
                    }
                });
            });
        }
        w.be32(10, id);
    });
}

fn frontend_bytes(out: &mut Vec<u8>, frontend: Frontend) {
    if let Some(address) = frontend.address {
        out.extend_from_slice(&address.octets());
    }
    out.extend_from_slice(&[protocol_number(frontend.protocol), 0, 0, 0]);
    out.extend_from_slice(&frontend.port.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
}

/// A key as the registers hold it, and the end of its range.
fn key_bytes(key: &Key) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut from = Vec::with_capacity(16);
    match key {
        Key::Frontend(frontend) => frontend_bytes(&mut from, *frontend),
        Key::Slot(frontend, slot) => {
            frontend_bytes(&mut from, *frontend);
            from.extend_from_slice(&slot.to_ne_bytes());
        }
        Key::Source(frontend, network) => {
            frontend_bytes(&mut from, *frontend);
            let mut to = from.clone();
            from.extend_from_slice(&network.first().octets());
            to.extend_from_slice(&network.last().octets());
            return (from, Some(to));
        }
        Key::Pair(one, other) => {
            from.extend_from_slice(&one.octets());
            from.extend_from_slice(&other.octets());
        }
        Key::Pod(address) => from.extend_from_slice(&address.octets()),
        Key::Flow(pod, flow) => {
            let bytes = |peer: std::net::Ipv4Addr, protocol: u8, port: u16| {
                let [high, low] = port.to_be_bytes();
                [&pod.octets()[..], &peer.octets(), &[protocol, 0, 0, 0, high, low, 0, 0]].concat()
            };
            let (peers, protocols, ports) = (flow.peers, flow.protocols, flow.ports);
            return (bytes(peers.0, protocols.0, ports.0), Some(bytes(peers.1, protocols.1, ports.1)));
        }
    }
    (from, None)
}

fn target_bytes(address: std::net::Ipv4Addr, port: u16) -> [u8; 8] {
    let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
    [a, b, c, d, high, low, 0, 0]
}

fn write_element(w: &mut Writer<'_>, key: &Key, value: Value) {
    const KEY_FROM: u16 = 1;
    const DATA: u16 = 2;
    const KEY_TO: u16 = 10;
    w.nest(LIST_ELEMENT, |w| {
        let (from, to) = key_bytes(key);
        w.nest(KEY_FROM, |w| w.raw(DATA_VALUE, &from));
        if let Some(to) = to {
            w.nest(KEY_TO, |w| w.raw(DATA_VALUE, &to));
        }
        match value {
            Value::Nothing => {}
            Value::Balance(balancer) => w.nest(DATA, |w| {
                write_verdict(w, VERDICT_GOTO, Some(&balancer.chain()));
            }),
            Value::Remember(memory) => w.nest(DATA, |w| {
                write_verdict(w, VERDICT_JUMP, Some(&memory.chain()));
            }),
            Value::Reject => w.nest(DATA, |w| write_verdict(w, VERDICT_GOTO, Some("reject"))),
            Value::Drop => w.nest(DATA, |w| write_verdict(w, VERDICT_DROP, None)),
            Value::Target(address, port) => {
                w.nest(DATA, |w| w.raw(DATA_VALUE, &target_bytes(address, port)));
            }
        }
    });
}

type Element<'a> = (&'a (Set, Key), &'a Value);

/// Adds or deletes elements, which are in the order of their sets.
fn push_elements(batch: &mut Batch, kind: u16, elements: &[Element<'_>]) {
    let (verb, flags) = match kind {
        NEW_ELEMENTS => ("add to", NLM_F_CREATE | NLM_F_EXCL),
        _ => ("delete from", 0),
    };
    for same_set in elements.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
        for chunk in same_set.chunks(ELEMENTS_MAX) {
            let set = chunk[0].0.0;
            push(batch, format!("{verb} set {}", set.name()), kind, flags, |w| {
                w.text(2, set.name());
                w.nest(3, |w| {
                    for ((_, key), value) in chunk {
                        write_element(w, key, **value);
                    }
                });
            });
        }
    }
}

/// The transaction that makes the table anew, whatever was there.
fn replace(generation: u32, wanted: &Ruleset) -> Batch {
    transaction(generation, |batch| {
        // A table that may not be there can only be deleted after it was surely made.
        push(batch, format!("add table {TABLE}"), NEW_TABLE, NLM_F_CREATE, |_| {});
        push(batch, format!("delete table {TABLE}"), DELETE_TABLE, 0, |_| {});
        push(batch, format!("add table {TABLE}"), NEW_TABLE, NLM_F_CREATE, |_| {});
        for (id, set) in (1..).zip(Set::ALL) {
            add_set(batch, id, set);
        }
        for chain in wanted.chains() {
            add_chain(batch, chain.name, chain.hook);
            for rule in &chain.rules {
                add_rule(batch, chain.name, rule);
            }
        }
        for (name, rules) in wanted.own_chains() {
            add_own_chain(batch, &name, &rules);
        }
        push_elements(batch, NEW_ELEMENTS, &wanted.elements().into_iter().collect::<Vec<_>>());
    })
}

/// What a change of elements consists of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change<'a> {
    chains_added: Vec<(String, Vec<Rule>)>,
    chains_gone: Vec<String>,
    added: Vec<Element<'a>>,
    gone: Vec<Element<'a>>,
}

impl<'a> Change<'a> {
    /// From `old` to `new`, which have the same scope.
    fn between(old: &'a Ruleset, new: &'a Ruleset) -> Self {
        let mut change = Self::default();
        for (_, before, now) in differing(Some(old), new) {
            let lacks = |front: Option<&Front>, (key, value): &Element<'a>| {
                front.and_then(|front| front.get(key)) != Some(*value)
            };
            let elements = |front: Option<&'a Front>| front.into_iter().flat_map(Front::elements);
            change.added.extend(elements(now).filter(|element| lacks(before, element)));
            change.gone.extend(elements(before).filter(|element| lacks(now, element)));
        }
        let differs = |from: &'a Ruleset, to: &'a Ruleset| {
            from.others.iter().filter(|(key, value)| to.others.get(key) != Some(*value))
        };
        change.added.extend(differs(new, old));
        change.gone.extend(differs(old, new));
        change.added.sort_unstable();
        change.gone.sort_unstable();
        let leads = |(_, value): &Element<'_>| matches!(value, Value::Balance(_) | Value::Remember(_));
        if change.added.iter().chain(&change.gone).any(leads) {
            // A chain's name says all that is in it.
            let (stay, were) = (new.own_chains(), old.own_chains());
            let is_in = |name: &str, chains: &[(String, _)]| chains.iter().any(|(other, _)| other == name);
            change.chains_gone =
                were.iter().map(|(name, _)| name).filter(|name| !is_in(name, &stay)).cloned().collect();
            change.chains_added = stay.into_iter().filter(|(name, _)| !is_in(name, &were)).collect();
        }
        change
    }

    fn transaction(&self, generation: u32) -> Batch {
        transaction(generation, |batch| {
            for (name, rules) in &self.chains_added {
                add_own_chain(batch, name, rules);
            }
            push_elements(batch, DELETE_ELEMENTS, &self.gone);
            push_elements(batch, NEW_ELEMENTS, &self.added);
            for chain in &self.chains_gone {
                push(batch, format!("delete chain {chain}"), DELETE_CHAIN, 0, |w| w.text(3, chain));
            }
        })
    }
}

/// Our table in the kernel, and what we know of it.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    /// What we have made, and the kernel's generation number right after that.
    applied: Option<(Ruleset, u32)>,
    /// What of it this kernel has refused and is left out since: what, and why.
    refused: BTreeMap<Optional, String>,
}

/// A part of the table that the rest can do without.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Optional {
    /// That clients come back to their endpoint.
    Memory,
    /// The rule with this text.
    Rule(String),
}

impl Optional {
    /// What may be left out so that a refused transaction is taken the next time. What only drops
    /// packets is never left out: better no change than an open door.
    fn of(refusal: &Refusal, wanted: &Ruleset) -> Option<Self> {
        if !matches!(refusal.errno, Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EAFNOSUPPORT) {
            return None;
        }
        let is_refused = |chain: &str, rule: &Rule| refusal.operation == adding(chain, rule);
        for chain in wanted.chains() {
            if let Some(rule) = chain.rules.iter().find(|rule| is_refused(chain.name, rule)) {
                let guards = rule.exprs.contains(&Expr::Verdict(Verdict::Drop));
                return (!guards).then(|| Self::Rule(rule.text.clone()));
            }
        }
        let memory = |rule: &Rule| {
            rule.exprs.iter().any(|expr| matches!(expr, Expr::Hash { .. } | Expr::Remember { .. }))
        };
        let own = wanted.own_chains();
        let refused =
            own.iter().any(|(chain, rules)| rules.iter().any(|r| memory(r) && is_refused(chain, r)));
        refused.then_some(Self::Memory)
    }

    fn leave_out(&self, wanted: Ruleset) -> Ruleset {
        match self {
            Self::Memory => wanted.without_memory(),
            Self::Rule(text) => wanted.without_rule(text),
        }
    }

    /// What does not work without it.
    fn loss(&self) -> String {
        match self {
            Self::Memory => "sessionAffinity is ignored".to_owned(),
            Self::Rule(text) => format!("the rule `{text}` is left out"),
        }
    }
}

/// What the kernel names when it refuses a rule.
fn adding(chain: &str, rule: &Rule) -> String {
    format!("add rule `{}` to chain {chain}", rule.text)
}

impl Table {
    /// Opens the socket in the calling thread's network namespace; changes nothing.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(Family::Netfilter)?, applied: None, refused: BTreeMap::new() })
    }

    /// What this process has made the table be.
    pub fn applied(&self) -> Option<&Ruleset> {
        self.applied.as_ref().map(|(ruleset, _)| ruleset)
    }

    /// The socket, which serves every netfilter subsystem.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// What this kernel cannot do of what was wanted last.
    pub fn shortfalls(&self) -> Vec<String> {
        self.refused.iter().map(|(what, why)| format!("{} ({why})", what.loss())).collect()
    }

    /// Looks whether somebody else has changed or deleted our table, and makes it anew then; whether it
    /// was. One question to the kernel where nobody has changed any table.
    pub fn repair(&mut self) -> Result<bool, Error> {
        let Some(seen) = self.applied.as_ref().map(|(_, seen)| *seen) else { return Ok(false) };
        if self.generation()? == seen {
            return Ok(false);
        }
        let Some(wanted) = self.applied().cloned() else { return Ok(false) };
        self.apply(wanted)
    }

    /// Makes the kernel's table be the wanted one, as far as this kernel has it; whether it was made
    /// anew, and not changed by elements.
    pub fn apply(&mut self, wanted: Ruleset) -> Result<bool, Error> {
        let mut anew = false;
        let mut wanted = self.refused.keys().fold(wanted, |wanted, what| what.leave_out(wanted));
        for attempt in 1.. {
            let result = self.try_apply(&wanted, &mut anew);
            match result {
                Ok(generation) => {
                    let before = self.applied.replace((wanted, generation)).map(|(before, _)| before);
                    self.forget_stale(before)?;
                    return Ok(anew);
                }
                // Somebody else's transaction came between ours and the look at the generation.
                Err(refusal) if refusal.errno == Errno::ERESTART && attempt < ATTEMPTS_MAX => {}
                Err(refusal)
                    if let Some(what) = Optional::of(&refusal, &wanted)
                        && !self.refused.contains_key(&what) =>
                {
                    let error = Error::from(refusal).to_string();
                    tracing::warn!(%error, loss = what.loss(), "this kernel lacks something for Services");
                    wanted = what.leave_out(wanted);
                    self.refused.insert(what, error);
                }
                // What we believe of the table is wrong: make it anew.
                Err(refusal) if self.applied.take().is_some() && attempt < ATTEMPTS_MAX => {
                    tracing::warn!(error = %Error::from(refusal), "resynchronising the service table");
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Ok(anew)
    }

    /// Makes clients forget endpoints that their service has lost, so that they get others.
    fn forget_stale(&mut self, before: Option<Ruleset>) -> Result<(), Refusal> {
        let Some((applied, generation)) = &mut self.applied else { return Ok(()) };
        let Some(stickiness) = Stickiness::lost(before.as_ref(), applied) else { return Ok(()) };
        for attempt in 1.. {
            let mut request = Batch::new();
            push(&mut request, "list remembered clients".to_owned(), GET_ELEMENTS, 0, |w| {
                w.text(2, Set::Affinity.name());
            });
            let known = self.socket.dump(&request, |message| Some(elements(&message)))?;
            let stale: Vec<Vec<u8>> = known
                .into_iter()
                .flatten()
                .filter(|(key, target)| !remembered(key, target).is_some_and(|r| stickiness.is_valid(r)))
                .map(|(key, _)| key)
                .collect();
            if stale.is_empty() {
                break;
            }
            let batch = transaction(0, |batch| {
                for chunk in stale.chunks(ELEMENTS_MAX) {
                    push(batch, "forget clients".to_owned(), DELETE_ELEMENTS, 0, |w| {
                        w.text(2, Set::Affinity.name());
                        w.nest(3, |w| {
                            for key in chunk {
                                w.nest(LIST_ELEMENT, |w| w.nest(1, |w| w.raw(DATA_VALUE, key)));
                            }
                        });
                    });
                }
            });
            match self.socket.commit(&batch) {
                Ok(()) => {
                    // Zero is left out when the number wraps.
                    *generation = generation.checked_add(1).unwrap_or(1);
                    break;
                }
                // The time of one of them ended between the look and the change.
                Err(refusal) if refusal.errno == Errno::ENOENT && attempt < ATTEMPTS_MAX => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(())
    }

    /// Returns the generation that the table is from; tells in `anew` when it was made whole.
    fn try_apply(&mut self, wanted: &Ruleset, anew: &mut bool) -> Result<u32, Refusal> {
        let generation = self.generation()?;
        if let Some((applied, seen)) = &self.applied
            && *seen != generation
            && !is_intact(&mut self.socket, applied)?
        {
            tracing::warn!("somebody has changed the service table; making it anew");
            self.applied = None;
        }
        let batch = match &self.applied {
            Some((applied, _)) if applied.scope == wanted.scope => {
                let change = Change::between(applied, wanted);
                if change == Change::default() {
                    return Ok(generation);
                }
                change.transaction(generation)
            }
            _ => {
                *anew = true;
                replace(generation, wanted)
            }
        };
        self.socket.commit(&batch)?;
        // Zero is left out when the number wraps.
        Ok(generation.checked_add(1).unwrap_or(1))
    }

    /// Takes the table away; it need not be there.
    pub fn remove(&mut self) -> Result<(), Error> {
        let generation = self.generation()?;
        let batch = transaction(generation, |batch| {
            push(batch, format!("add table {TABLE}"), NEW_TABLE, NLM_F_CREATE, |_| {});
            push(batch, format!("delete table {TABLE}"), DELETE_TABLE, 0, |_| {});
        });
        self.applied = None;
        Ok(self.socket.commit(&batch)?)
    }

    /// Whether the kernel has our table, of this process or of an earlier one.
    pub fn exists(&mut self) -> Result<bool, Error> {
        let mut request = Batch::new();
        request.push("look up the service table", GET_TABLE, 0, &[libc::ENOENT], |w| {
            w.fixed(&generic_header(IPV4, 0));
            w.text(1, TABLE);
        });
        let mut exists = false;
        self.socket.query(&request, false, |message| exists |= message.kind == NEW_TABLE)?;
        Ok(exists)
    }

    /// The number of the kernel's last transaction, whoever made it.
    fn generation(&mut self) -> Result<u32, Refusal> {
        let mut request = Batch::new();
        request.push("ask nf_tables for its generation", GET_GENERATION, 0, &[], |w| {
            w.fixed(&generic_header(0, 0));
        });
        let mut generation = 0;
        self.socket.query(&request, false, |message| {
            if message.kind == NEW_GENERATION {
                generation = message.attributes(HEADER_BYTES).get(1).and_then(be_u32).unwrap_or(0);
            }
        })?;
        Ok(generation)
    }
}

/// Chains of others that let an IPv4 packet pass only when a rule of theirs says so: their policy is to
/// drop, or their last rule drops or rejects all. What our rules accept they drop all the same.
pub fn closed_chains(socket: &mut Socket) -> Result<ClosedChains, Refusal> {
    /// `NFPROTO_INET`, `NF_INET_LOCAL_IN`, `NF_INET_FORWARD`
    const INET: u8 = 1;
    const LOCAL_IN: u32 = 1;
    const FORWARD: u32 = 2;
    let family = |message: &Message<'_>| match *message.body.first()? {
        IPV4 => Some("ip"),
        INET => Some("inet"),
        _ => None,
    };
    let mut request = Batch::new();
    request.push("list rules", GET_RULE, 0, &[], |w| w.fixed(&generic_header(0, 0)));
    let ends = socket.dump(&request, |message| {
        let rule = message.attributes(HEADER_BYTES);
        let name = format!("{} {} {}", family(&message)?, text(rule.get(1)?), text(rule.get(2)?));
        (message.kind == NEW_RULE).then(|| (name, stops_all(&rule)))
    })?;
    // The last rule of each: they come in their order.
    let ends: BTreeMap<String, bool> = ends.into_iter().collect();
    let mut request = Batch::new();
    request.push("list chains", GET_CHAIN, 0, &[], |w| w.fixed(&generic_header(0, 0)));
    let chains = socket.dump(&request, |message| {
        let chain = message.attributes(HEADER_BYTES);
        let (table, name) = (chain.get(1).map(text)?, chain.get(3).map(text)?);
        let hook = chain.nested(4).get(1).and_then(be_u32)?;
        let drops = chain.get(5).and_then(be_u32) == Some(VERDICT_DROP);
        let full = format!("{} {table} {name}", family(&message)?);
        let closed = drops || ends.get(&full) == Some(&true);
        (message.kind == NEW_CHAIN && closed && table != TABLE).then_some((hook, full))
    })?;
    let at = |wanted: u32| -> Vec<String> {
        chains.iter().filter(|(hook, _)| *hook == wanted).map(|(_, name)| name.clone()).collect()
    };
    Ok(ClosedChains { forward: at(FORWARD), input: at(LOCAL_IN) })
}

/// Whether a rule without any condition ends a packet's way.
fn stops_all(rule: &Attributes<'_>) -> bool {
    let mut stops = false;
    for (_, expr) in rule.nested(4) {
        let expr = Attributes(expr);
        let data = expr.nested(2);
        match expr.get(1).map(text).as_deref() {
            Some("counter" | "log") => {}
            Some("reject") => stops = true,
            // As `iptables` has it.
            Some("target") if data.get(1).map(text).as_deref() == Some("REJECT") => stops = true,
            Some("immediate") => {
                let code = data.nested(2).nested(DATA_VERDICT).get(1).and_then(be_u32);
                if code != Some(VERDICT_DROP) {
                    return false;
                }
                stops = true;
            }
            _ => return false,
        }
    }
    stops
}

/// Whether the kernel has all elements and as many rules as `ruleset`.
fn is_intact(socket: &mut Socket, ruleset: &Ruleset) -> Result<bool, Refusal> {
    let fixed: usize = ruleset.chains().iter().map(|chain| chain.rules.len()).sum();
    let mut request = Batch::new();
    push(&mut request, "list rules".to_owned(), GET_RULE, 0, |_| {});
    let ours = |message: Message<'_>| {
        let table = message.attributes(HEADER_BYTES).get(1).map(text);
        (message.kind == NEW_RULE && table.as_deref() == Some(TABLE)).then_some(())
    };
    let own: usize = ruleset.own_chains().iter().map(|(_, rules)| rules.len()).sum();
    if socket.dump(&request, ours)?.len() != fixed + own {
        return Ok(false);
    }
    let wanted = ruleset.elements();
    for set in Set::ALL.into_iter().filter(|set| !set.dynamic()) {
        let mut request = Batch::new();
        push(&mut request, format!("list set {}", set.name()), GET_ELEMENTS, 0, |w| {
            w.text(2, set.name());
        });
        let mut found = BTreeSet::new();
        let result = socket.dump(&request, |message| Some(elements(&message)));
        match result {
            Ok(lists) => found.extend(lists.into_iter().flatten()),
            Err(refusal) if refusal.errno == Errno::ENOENT => return Ok(false),
            Err(refusal) => return Err(refusal),
        }
        let wanted = wanted.iter().filter(|((of, _), _)| *of == set);
        let wanted: BTreeSet<_> =
            wanted.map(|((_, key), value)| (key_bytes(key).0, value_bytes(**value))).collect();
        if found != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A value in the form that [`elements`] reads.
fn value_bytes(value: Value) -> Vec<u8> {
    let goto = |chain: &str| [&VERDICT_GOTO.to_be_bytes(), chain.as_bytes()].concat();
    match value {
        Value::Remember(memory) => [&VERDICT_JUMP.to_be_bytes(), memory.chain().as_bytes()].concat(),
        Value::Nothing => Vec::new(),
        Value::Balance(balancer) => goto(&balancer.chain()),
        Value::Reject => goto("reject"),
        Value::Drop => VERDICT_DROP.to_be_bytes().to_vec(),
        Value::Target(address, port) => target_bytes(address, port).to_vec(),
    }
}

/// A client, where it asked and where it was led, from an element of [`Set::Affinity`].
fn remembered(key: &[u8], target: &[u8]) -> Option<Remembered> {
    let address = |bytes: &[u8], at: usize| {
        Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?))
    };
    let port = |bytes: &[u8], at: usize| bytes.get(at..at + 2).and_then(be_u16);
    Some(Remembered {
        client: address(key, 0)?,
        address: address(key, 4)?,
        protocol: *key.get(8)?,
        port: port(key, 12)?,
        target: (address(target, 0)?, port(target, 4)?),
    })
}

/// The keys and values of a listed set's message.
fn elements(message: &Message<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    const ELEMENTS: u16 = 3;
    if message.kind != NEW_ELEMENTS {
        return Vec::new();
    }
    message
        .attributes(HEADER_BYTES)
        .nested(ELEMENTS)
        .map(|(_, element)| {
            let element = Attributes(element);
            let key = element.nested(1).get(DATA_VALUE).unwrap_or(&[]).to_vec();
            let data = element.nested(2);
            let value = if let Some(value) = data.get(DATA_VALUE) {
                value.to_vec()
            } else {
                let verdict = data.nested(DATA_VERDICT);
                let mut value = verdict.get(1).unwrap_or(&[]).to_vec();
                value.extend(verdict.get(2).map(text).unwrap_or_default().as_bytes());
                value
            };
            (key, value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use super::*;
    use crate::net::{
        Backend, Protocol, ServicePort,
        plan::{self, Plans},
        ruleset::{Balancer, Memory, Scope, View},
        wire::Messages,
    };

    fn ruleset(elements: &[(Key, Value)]) -> Ruleset {
        let scope = Scope {
            cluster: "10.42.0.0/16".parse().unwrap(),
            service: "10.43.0.0/16".parse().unwrap(),
            pods: "10.42.0.0/24".parse().unwrap(),
            dns: None,
        };
        let set = |key: &Key, value: &Value| match (key, value) {
            (Key::Slot(..), _) => Set::Endpoints,
            (_, Value::Remember(_)) => Set::Sticky,
            _ => Set::Services,
        };
        let mut by_front: BTreeMap<Frontend, Vec<_>> = BTreeMap::new();
        for (key, value) in elements {
            let (Key::Frontend(frontend) | Key::Slot(frontend, _)) = key else { panic!("{key:?}") };
            by_front.entry(*frontend).or_default().push(((set(key, value), *key), *value));
        }
        let front = |(frontend, elements): (_, Vec<_>)| (frontend, Arc::new(Front::of(elements)));
        let fronts = by_front.into_iter().map(front).collect();
        Ruleset { scope, fronts, others: BTreeMap::new(), left_out: BTreeSet::new() }
    }

    fn kinds(batch: &Batch) -> Vec<u16> {
        Messages(&batch.bytes).map(|message| message.kind).collect()
    }

    #[test]
    fn a_change_is_made_of_what_differs() {
        let frontend =
            Frontend { address: Some(Ipv4Addr::new(10, 43, 0, 1)), protocol: Protocol::Tcp, port: 80 };
        let chain = |count| Value::Balance(Balancer { view: View::Address, sticky: false, count });
        let target = |last| Value::Target(Ipv4Addr::new(10, 42, 0, last), 80);
        let one = ruleset(&[(Key::Frontend(frontend), chain(1)), (Key::Slot(frontend, 0), target(2))]);
        let moved = ruleset(&[(Key::Frontend(frontend), chain(1)), (Key::Slot(frontend, 0), target(3))]);
        let two = ruleset(&[
            (Key::Frontend(frontend), chain(2)),
            (Key::Slot(frontend, 0), target(2)),
            (Key::Slot(frontend, 1), target(3)),
        ]);
        assert_eq!(Change::between(&one, &one), Change::default());
        let batch = Change::between(&one, &moved).transaction(1);
        assert_eq!(kinds(&batch), [BATCH_BEGIN, DELETE_ELEMENTS, NEW_ELEMENTS, BATCH_END]);
        let batch = Change::between(&one, &two).transaction(1);
        let expected = [
            BATCH_BEGIN,
            NEW_CHAIN,
            NEW_RULE,
            DELETE_ELEMENTS,
            NEW_ELEMENTS,
            NEW_ELEMENTS,
            DELETE_CHAIN,
            BATCH_END,
        ];
        assert_eq!(kinds(&batch), expected);
    }

    #[test]
    fn one_endpoint_among_many_services_is_two_elements() {
        let service = |number: u32, endpoint| {
            let number = number.to_be_bytes();
            Arc::new(ServicePort {
                cluster_ips: vec![Ipv4Addr::new(10, 43, number[2], number[3])],
                backends: vec![Backend::new(Ipv4Addr::new(10, 42, 1, endpoint), 80, false)],
                ..plan::tests::service(
                    &format!("default/s{}", u32::from_be_bytes(number)),
                    "10.43.0.1",
                    80,
                    &[],
                )
            })
        };
        let mut services: Vec<_> = (256..756).map(|number| service(number, 2)).collect();
        let mut plans = Plans::default();
        let scope = plan::tests::scope();
        let before = plans.ruleset(scope, &services, &[]);
        services[123] = service(256 + 123, 3);
        let after = plans.ruleset(scope, &services, &[]);
        let shared = before.fronts.iter().filter(|(key, front)| Arc::ptr_eq(front, &after.fronts[key]));
        assert_eq!(shared.count(), 499);
        let change = Change::between(&before, &after);
        assert_eq!((change.added.len(), change.gone.len()), (1, 1));
        assert!(change.chains_added.is_empty() && change.chains_gone.is_empty());
        // A service less, in whatever order the others come.
        services.swap_remove(7);
        let fewer = plans.ruleset(scope, &services, &[]);
        let change = Change::between(&after, &fewer);
        assert_eq!((change.added.len(), change.gone.len()), (0, 2));
        let plan_anew = Plans::default().ruleset(scope, &services, &[]);
        assert_eq!(plan_anew, fewer);
    }

    #[test]
    fn what_a_kernel_lacks_is_left_out_but_never_a_guard() {
        let frontend = Frontend { address: Some(Ipv4Addr::LOCALHOST), protocol: Protocol::Tcp, port: 80 };
        let balancer = Balancer { view: View::Address, sticky: true, count: 2 };
        let key = Key::Frontend(frontend);
        let wanted = ruleset(&[(key, Value::Balance(balancer)), (key, Value::Remember(Memory(60)))]);
        let refuse = |chain: &str, rule: &Rule, errno| {
            let refusal = Refusal { operation: adding(chain, rule), errno, detail: String::new() };
            Optional::of(&refusal, &wanted)
        };
        for (chain, rules) in wanted.own_chains() {
            let last = rules.last().unwrap();
            assert_eq!(refuse(&chain, last, Errno::ENOENT), Some(Optional::Memory), "{chain}");
            assert_eq!(refuse(&chain, last, Errno::ENOMEM), None, "nothing is lacking");
        }
        let plain = Optional::Memory.leave_out(wanted.clone());
        let chains: Vec<_> = plain.own_chains().into_iter().map(|(name, _)| name).collect();
        assert_eq!(chains, ["lb2"]);
        assert!(plain.to_string().contains("127.0.0.1 . tcp . 80 : goto lb2,"), "{plain}");
        for chain in wanted.chains() {
            for rule in &chain.rules {
                let left_out = refuse(chain.name, rule, Errno::ENOENT);
                assert_eq!(left_out.is_none(), rule.text.ends_with(" drop"), "{}", rule.text);
                let Some(left_out) = left_out else { continue };
                let rest = left_out.leave_out(wanted.clone());
                let rules = |ruleset: &Ruleset| ruleset.chains().iter().map(|c| c.rules.len()).sum::<usize>();
                assert!(rules(&rest) < rules(&wanted), "{}", rule.text);
                assert!(left_out.loss().contains(&rule.text));
            }
        }
    }

    #[test]
    fn long_lists_are_split_below_the_attributes_limit() {
        let elements: Vec<_> = (0..5000u16)
            .map(|port| {
                let frontend = Frontend { address: Some(Ipv4Addr::LOCALHOST), protocol: Protocol::Udp, port };
                let value = Value::Balance(Balancer { view: View::Address, sticky: true, count: 4_000_000 });
                (Key::Frontend(frontend), value)
            })
            .collect();
        let batch = replace(1, &ruleset(&elements));
        let mut count = 0;
        for message in Messages(&batch.bytes) {
            assert!(message.body.len() < usize::from(u16::MAX));
            count += super::elements(&message).len();
        }
        assert_eq!(count, elements.len());
    }
}
