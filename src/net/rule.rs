//! One nf_tables rule: its text as `nft` would print it, and the expressions of the kernel's
//! register machine, built together so that they cannot differ.
//!
//! Registers are 32 bits wide and numbered from [`KEY`]; every field of a concatenated key takes a
//! whole number of them, padded with zeros (`linux/netfilter/nf_tables.h`).

use std::{fmt::Write as _, net::Ipv4Addr};

use super::{cidr::Cidr, ruleset::Set};

/// The first 32-bit register (`NFT_REG32_00`), where keys begin.
pub const KEY: u32 = 8;
/// A register that no key reaches.
const SCRATCH: u32 = 20;
/// So that all nodes choose the same endpoint for the same client.
const AFFINITY_SEED: u32 = 0x7361_6d70;
/// `IPS_DST_NAT` of `nf_conntrack_common.h`.
const STATUS_DNAT: u32 = 0x20;

/// Which header a field is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    Network,
    Transport,
}

/// What a packet's metadata is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    InputName,
    OutputName,
    Protocol,
}

/// A part of a connection's original destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Original {
    Address,
    Port,
}

/// Where a packet goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    /// The chain that answers with an ICMP error.
    GotoReject,
}

/// One expression. `to` and `from` are registers, lengths are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Payload {
        header: Header,
        offset: u32,
        len: u32,
        to: u32,
    },
    Meta {
        key: Meta,
        to: u32,
    },
    ConntrackStatus {
        to: u32,
    },
    ConntrackState {
        to: u32,
    },
    /// Where the connection's first packet was sent, before anybody translated it.
    ConntrackOriginal {
        field: Original,
        to: u32,
    },
    Compare {
        from: u32,
        equal: bool,
        data: Vec<u8>,
    },
    Mask {
        register: u32,
        mask: [u8; 4],
    },
    /// Goes on only if the key is (or is not) in the set.
    Contains {
        set: Set,
        from: u32,
        inverted: bool,
    },
    /// Loads what the map has for the key; goes on only if it has.
    Map {
        set: Set,
        from: u32,
        to: u32,
    },
    /// Takes the verdict that the map has for the key, if any.
    VerdictMap {
        set: Set,
        from: u32,
    },
    /// Adds an element to a map, or gives it its time anew.
    Remember {
        set: Set,
        key: u32,
        data: u32,
        milliseconds: u64,
    },
    Random {
        modulus: u32,
        to: u32,
    },
    Hash {
        from: u32,
        len: u32,
        modulus: u32,
        seed: u32,
        to: u32,
    },
    /// The kind of an address as the routing table sees it.
    AddressType {
        destination: bool,
        to: u32,
    },
    Load {
        to: u32,
        data: [u8; 4],
    },
    Verdict(Verdict),
    DestinationNat {
        address: u32,
        port: u32,
    },
    SourceNat {
        address: u32,
    },
    Masquerade,
    Reject,
}

/// One field of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Source,
    Destination,
    Protocol,
    DestinationPort,
    /// Where the connection was sent before it was translated.
    OriginalDestination,
    OriginalPort,
    /// A random number below this.
    Random(u32),
    /// A number below this that stays the same for one client.
    Sticky(u32),
}

/// The key of a service's address.
pub const FRONTEND: &[Field] = &[Field::Destination, Field::Protocol, Field::DestinationPort];
/// The key of a port of the node.
pub const PORT: &[Field] = &[Field::Protocol, Field::DestinationPort];
/// The same two of a connection that was translated.
pub const ORIGINAL_FRONTEND: &[Field] = &[Field::OriginalDestination, Field::Protocol, Field::OriginalPort];
pub const ORIGINAL_PORT: &[Field] = &[Field::Protocol, Field::OriginalPort];

/// A rule under construction, and when done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub text: String,
    pub exprs: Vec<Expr>,
}

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    fn say(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(text);
    }

    fn push(&mut self, expr: Expr) {
        self.exprs.push(expr);
    }

    /// Loads a key from [`KEY`] on; returns its text.
    fn load(&mut self, fields: &[Field]) -> String {
        self.load_at(KEY, fields)
    }

    fn load_at(&mut self, first: u32, fields: &[Field]) -> String {
        let mut text = String::new();
        for (to, field) in (first..).zip(fields) {
            let network = |offset| Expr::Payload { header: Header::Network, offset, len: 4, to };
            let separator = if text.is_empty() { "" } else { " . " };
            let _ = match field {
                Field::Source => {
                    self.push(network(12));
                    write!(text, "{separator}ip saddr")
                }
                Field::Destination => {
                    self.push(network(16));
                    write!(text, "{separator}ip daddr")
                }
                Field::Protocol => {
                    self.push(Expr::Meta { key: Meta::Protocol, to });
                    write!(text, "{separator}meta l4proto")
                }
                Field::DestinationPort => {
                    self.push(Expr::Payload { header: Header::Transport, offset: 2, len: 2, to });
                    write!(text, "{separator}th dport")
                }
                Field::OriginalDestination => {
                    self.push(Expr::ConntrackOriginal { field: Original::Address, to });
                    write!(text, "{separator}ct original ip daddr")
                }
                Field::OriginalPort => {
                    self.push(Expr::ConntrackOriginal { field: Original::Port, to });
                    write!(text, "{separator}ct original proto-dst")
                }
                Field::Random(modulus) => {
                    self.push(Expr::Random { modulus: *modulus, to });
                    write!(text, "{separator}numgen random mod {modulus}")
                }
                Field::Sticky(modulus) => {
                    let header = Header::Network;
                    self.push(Expr::Payload { header, offset: 12, len: 4, to: SCRATCH });
                    let (modulus, seed) = (*modulus, AFFINITY_SEED);
                    self.push(Expr::Hash { from: SCRATCH, len: 4, modulus, seed, to });
                    write!(text, "{separator}jhash ip saddr mod {modulus} seed {seed:#x}")
                }
            };
        }
        text
    }

    /// Goes on if the source (or destination) is in (or not in) the network.
    fn address(mut self, field: Field, name: &str, equal: bool, network: Cidr) -> Self {
        self.load(&[field]);
        if network.prefix() < 32 {
            self.push(Expr::Mask { register: KEY, mask: network.mask().octets() });
        }
        self.push(Expr::Compare { from: KEY, equal, data: network.first().octets().to_vec() });
        let not = if equal { "" } else { "!= " };
        match network.prefix() {
            32 => self.say(&format!("ip {name} {not}{}", network.first())),
            _ => self.say(&format!("ip {name} {not}{network}")),
        }
        self
    }

    pub fn source_in(self, network: Cidr) -> Self {
        self.address(Field::Source, "saddr", true, network)
    }

    pub fn source_not_in(self, network: Cidr) -> Self {
        self.address(Field::Source, "saddr", false, network)
    }

    pub fn destination_in(self, network: Cidr) -> Self {
        self.address(Field::Destination, "daddr", true, network)
    }

    pub fn destination_not_in(self, network: Cidr) -> Self {
        self.address(Field::Destination, "daddr", false, network)
    }

    /// Goes on if the destination is an address of this node.
    pub fn destination_local(mut self) -> Self {
        /// `RTN_LOCAL` of `linux/rtnetlink.h`.
        const LOCAL: u32 = 2;
        self.push(Expr::AddressType { destination: true, to: KEY });
        self.push(Expr::Compare { from: KEY, equal: true, data: LOCAL.to_ne_bytes().to_vec() });
        self.say("fib daddr type local");
        self
    }

    fn not_loopback(mut self, key: Meta, name: &str) -> Self {
        /// `IFNAMSIZ`: a device's name with its padding.
        const NAME_BYTES: usize = 16;
        let mut data = b"lo".to_vec();
        data.resize(NAME_BYTES, 0);
        self.push(Expr::Meta { key, to: KEY });
        self.push(Expr::Compare { from: KEY, equal: false, data });
        self.say(&format!("{name} != \"lo\""));
        self
    }

    /// Goes on if the packet did not come from this node itself.
    pub fn input_not_loopback(self) -> Self {
        self.not_loopback(Meta::InputName, "iifname")
    }

    /// Goes on if the packet leaves this node's own loopback device alone.
    pub fn output_not_loopback(self) -> Self {
        self.not_loopback(Meta::OutputName, "oifname")
    }

    /// Goes on if the connection's destination was translated.
    pub fn translated(mut self) -> Self {
        self.push(Expr::ConntrackStatus { to: KEY });
        self.push(Expr::Mask { register: KEY, mask: STATUS_DNAT.to_ne_bytes() });
        self.push(Expr::Compare { from: KEY, equal: false, data: vec![0; 4] });
        self.say("ct status dnat");
        self
    }

    /// Goes on if the packet belongs to a connection that is known, or is about one.
    pub fn established(mut self) -> Self {
        /// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`.
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        self.push(Expr::ConntrackState { to: KEY });
        self.push(Expr::Mask { register: KEY, mask: ESTABLISHED_OR_RELATED.to_ne_bytes() });
        self.push(Expr::Compare { from: KEY, equal: false, data: vec![0; 4] });
        self.say("ct state established,related");
        self
    }

    /// Goes on if the key is in the set.
    pub fn contained(mut self, key: &[Field], set: Set) -> Self {
        let text = self.load(key);
        self.push(Expr::Contains { set, from: KEY, inverted: false });
        self.say(&format!("{text} @{}", set.name()));
        self
    }

    /// Goes on if the key is not in the set.
    pub fn not_contained(mut self, key: &[Field], set: Set) -> Self {
        let text = self.load(key);
        self.push(Expr::Contains { set, from: KEY, inverted: true });
        self.say(&format!("{text} != @{}", set.name()));
        self
    }

    /// Ends with the verdict that the map has for the key.
    pub fn verdict_of(mut self, key: &[Field], set: Set) -> Self {
        let text = self.load(key);
        self.push(Expr::VerdictMap { set, from: KEY });
        self.say(&format!("{text} vmap @{}", set.name()));
        self
    }

    /// Ends with the destination that the map has for the key.
    pub fn translate_to(mut self, key: &[Field], set: Set) -> Self {
        let text = self.load(key);
        self.push(Expr::Map { set, from: KEY, to: KEY });
        self.push(Expr::DestinationNat { address: KEY, port: KEY + 1 });
        self.say(&format!("dnat ip to {text} map @{}", set.name()));
        self
    }

    /// Remembers in the map where a translated connection's client was led, or gives that its time anew.
    pub fn remember(mut self, known: Set, seconds: u32) -> Self {
        let client: Vec<_> =
            std::iter::once(Field::Source).chain(ORIGINAL_FRONTEND.iter().copied()).collect();
        let key = self.load(&client);
        let data = KEY + client.len() as u32;
        let target = self.load_at(data, &[Field::Destination, Field::DestinationPort]);
        let milliseconds = u64::from(seconds) * 1000;
        self.push(Expr::Remember { set: known, key: KEY, data, milliseconds });
        self.say(&format!("update @{} {{ {key} timeout {seconds}s : {target} }}", known.name()));
        self
    }

    /// Ends with this source.
    pub fn translate_source(mut self, address: Ipv4Addr) -> Self {
        self.push(Expr::Load { to: KEY, data: address.octets() });
        self.push(Expr::SourceNat { address: KEY });
        self.say(&format!("snat to {address}"));
        self
    }

    /// Ends with the source that the outgoing device has.
    pub fn masquerade(mut self) -> Self {
        self.push(Expr::Masquerade);
        self.say("masquerade");
        self
    }

    /// Ends with an ICMP error (port unreachable).
    pub fn reject(mut self) -> Self {
        self.push(Expr::Reject);
        self.say("reject");
        self
    }

    /// Ends with a verdict.
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.push(Expr::Verdict(verdict));
        self.say(match verdict {
            Verdict::Accept => "accept",
            Verdict::Drop => "drop",
            Verdict::GotoReject => "goto reject",
        });
        self
    }
}
