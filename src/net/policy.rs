//! NetworkPolicies as a node needs them, and what they come to for its pods. Pure.
//!
//! In: [`Policy`]s of the desired set, in which pods are named by uid, and the addresses of this
//! node's pods. Out: for each isolated pod and direction the [`Flow`]s that are allowed: ranges of
//! addresses, protocols and ports, none of which overlap.
//! Source of the meaning: `networking.k8s.io/v1` NetworkPolicy. Policies add up; a pod that no policy
//! selects for a direction is open in it.
//! Deliberately absent: labels and selectors (the master has resolved them); IPv6 blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

use super::{Protocol, cidr::Cidr};

/// One NetworkPolicy, as far as it concerns pods of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// The pods of the node that it selects.
    pub subjects: Vec<PolicyPod>,
    /// What may come in; `None` when the policy is not about that.
    pub ingress: Option<Vec<PolicyRule>>,
    /// What may go out.
    pub egress: Option<Vec<PolicyRule>>,
}

/// A pod, as a subject or a peer of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPod {
    pub uid: String,
    /// As the master knows it; a node knows its own pods' better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The ports with names: `TCP/http` and the number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
}

/// Peers that may be talked to at ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// `None`: everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<PolicyPeers>,
    /// Empty: all ports of all protocols.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PolicyPort>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPeers {
    pub pods: Vec<PolicyPod>,
    pub blocks: Vec<PolicyBlock>,
}

/// A network without parts of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyBlock {
    pub cidr: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

/// Ports of one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyPort {
    pub protocol: Protocol,
    #[serde(flatten)]
    pub ports: Ports,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ports {
    /// First and last.
    Range(u16, u16),
    /// The port that the pod which is spoken to calls so.
    Name(String),
}

/// Whether a policy is about what comes in or what goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

/// A pod of this node and what it may do; `None` for a direction in which it is not isolated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPolicy {
    pub address: Ipv4Addr,
    pub ingress: Option<Vec<Flow>>,
    pub egress: Option<Vec<Flow>>,
}

/// What is allowed: the other side's addresses, protocols and destination ports, each from first to
/// last. Ports of protocols that have none are whatever stands in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub peers: (Ipv4Addr, Ipv4Addr),
    pub protocols: (u8, u8),
    pub ports: (u16, u16),
}

/// What the policies come to for the pods of this node, by their addresses.
pub fn of_pods(policies: &[Policy], local: &BTreeMap<String, Ipv4Addr>) -> Vec<PodPolicy> {
    let mut subjects: BTreeMap<&str, (&PolicyPod, Vec<&Policy>)> = BTreeMap::new();
    for policy in policies {
        for subject in &policy.subjects {
            subjects.entry(&subject.uid).or_insert_with(|| (subject, Vec::new())).1.push(policy);
        }
    }
    let mut pods = Vec::new();
    for (uid, (subject, policies)) in subjects {
        let Some(address) = local.get(uid) else { continue };
        let of = |direction| {
            let rules: Vec<&Vec<PolicyRule>> = policies
                .iter()
                .filter_map(|policy| match direction {
                    Direction::Ingress => policy.ingress.as_ref(),
                    Direction::Egress => policy.egress.as_ref(),
                })
                .collect();
            (!rules.is_empty()).then(|| {
                let mut allowed = Vec::new();
                for rule in rules.into_iter().flatten() {
                    allow(rule, subject, direction, local, &mut allowed);
                }
                disjoint(allowed)
            })
        };
        let (ingress, egress) = (of(Direction::Ingress), of(Direction::Egress));
        pods.push(PodPolicy { address: *address, ingress, egress });
    }
    pods
}

/// Addresses, first and last.
type Span = (u32, u32);
/// The ports of one protocol; all of all protocols when there is none.
type PortSet = BTreeSet<Option<(u8, u16, u16)>>;

const EVERYBODY: Span = (0, u32::MAX);

/// Adds what a rule allows a pod.
fn allow(
    rule: &PolicyRule,
    subject: &PolicyPod,
    direction: Direction,
    local: &BTreeMap<String, Ipv4Addr>,
    allowed: &mut Vec<(Vec<Span>, PortSet)>,
) {
    let named = rule.ports.iter().any(|port| matches!(port.ports, Ports::Name(_)));
    let Some(peers) = &rule.peers else {
        // Of everybody outside no port has a name.
        let destination = (direction == Direction::Ingress).then_some(subject);
        return allowed.push((vec![EVERYBODY], numbered(&rule.ports, destination)));
    };
    let address_of = |pod: &PolicyPod| {
        let address = local.get(&pod.uid).copied().or(pod.address)?.to_bits();
        Some((address, address))
    };
    let blocks = peers.blocks.iter().flat_map(spans).collect::<Vec<_>>();
    if direction == Direction::Egress && named {
        for pod in &peers.pods {
            allowed.push((address_of(pod).into_iter().collect(), numbered(&rule.ports, Some(pod))));
        }
        return allowed.push((blocks, numbered(&rule.ports, None)));
    }
    let all = peers.pods.iter().filter_map(address_of).chain(blocks).collect();
    allowed.push((all, numbered(&rule.ports, Some(subject))));
}

/// Ports as numbers. A name that the pod does not have is no port.
fn numbered(ports: &[PolicyPort], destination: Option<&PolicyPod>) -> PortSet {
    if ports.is_empty() {
        return BTreeSet::from([None]);
    }
    let number = |port: &PolicyPort| {
        let protocol = super::ruleset::protocol_number(port.protocol);
        match &port.ports {
            Ports::Range(first, last) => Some(Some((protocol, *first, *last))),
            Ports::Name(name) => {
                let key = format!("{}/{name}", port.protocol.name());
                destination?.ports.get(&key).map(|number| Some((protocol, *number, *number)))
            }
        }
    };
    ports.iter().filter_map(number).collect()
}

/// The addresses of a block. One that is no IPv4 network has none.
fn spans(block: &PolicyBlock) -> Vec<Span> {
    let span = |text: &str| {
        let network: Cidr = text.parse().ok()?;
        Some((network.first().to_bits(), network.last().to_bits()))
    };
    let Some((mut first, last)) = span(&block.cidr) else { return Vec::new() };
    let mut holes: Vec<Span> = block.except.iter().filter_map(|text| span(text)).collect();
    holes.sort_unstable();
    let mut found = Vec::new();
    for (from, to) in holes {
        if from > first {
            found.push((first, from - 1));
        }
        match to.checked_add(1) {
            Some(next) => first = first.max(next),
            None => return found,
        }
    }
    if first <= last {
        found.push((first, last));
    }
    found
}

/// The same in pieces that do not overlap, which is what the kernel's sets of ranges take.
fn disjoint(allowed: Vec<(Vec<Span>, PortSet)>) -> Vec<Flow> {
    // At every address where something begins or ends, who begins (+1) and who ends (−1).
    let mut turns: BTreeMap<u64, Vec<(usize, i32)>> = BTreeMap::new();
    for (index, (spans, ports)) in allowed.iter().enumerate() {
        for (first, last) in spans.iter().filter(|_| !ports.is_empty()) {
            turns.entry(u64::from(*first)).or_default().push((index, 1));
            turns.entry(u64::from(*last) + 1).or_default().push((index, -1));
        }
    }
    let mut open: BTreeMap<usize, i32> = BTreeMap::new();
    let mut pieces: Vec<(Span, BTreeSet<usize>)> = Vec::new();
    let mut since = 0;
    for (at, changes) in turns {
        if !open.is_empty() {
            let span = (since as u32, (at - 1) as u32);
            let who: BTreeSet<usize> = open.keys().copied().collect();
            match pieces.last_mut() {
                Some((before, same)) if *same == who && before.1.checked_add(1) == Some(span.0) => {
                    before.1 = span.1;
                }
                _ => pieces.push((span, who)),
            }
        }
        for (index, change) in changes {
            *open.entry(index).or_default() += change;
        }
        open.retain(|_, count| *count > 0);
        since = at;
    }
    let mut flows = Vec::new();
    for ((first, last), who) in pieces {
        let ports = who.iter().flat_map(|index| &allowed[*index].1);
        for (protocols, ports) in joined(ports) {
            let peers = (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last));
            flows.push(Flow { peers, protocols, ports });
        }
    }
    flows
}

/// Ports in ranges that do not overlap.
fn joined<'a>(ports: impl Iterator<Item = &'a Option<(u8, u16, u16)>>) -> Vec<((u8, u8), (u16, u16))> {
    let mut ranges = Vec::new();
    for range in ports {
        let Some(range) = range else { return vec![((0, u8::MAX), (0, u16::MAX))] };
        ranges.push(*range);
    }
    ranges.sort_unstable();
    let mut found: Vec<((u8, u8), (u16, u16))> = Vec::new();
    for (protocol, first, last) in ranges {
        match found.last_mut() {
            Some(((same, _), (_, end))) if *same == protocol && first <= end.saturating_add(1) => {
                *end = last.max(*end);
            }
            _ => found.push(((protocol, protocol), (first, last))),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, address: Option<&str>, ports: &[(&str, u16)]) -> PolicyPod {
        PolicyPod {
            uid: uid.to_owned(),
            address: address.map(|a| a.parse().unwrap()),
            ports: ports.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect(),
        }
    }

    fn tcp(ports: Ports) -> PolicyPort {
        PolicyPort { protocol: Protocol::Tcp, ports }
    }

    fn texts(flows: &[Flow]) -> Vec<String> {
        let text = |f: &Flow| {
            let (a, b) = f.peers;
            format!("{a}-{b} {}-{} {}-{}", f.protocols.0, f.protocols.1, f.ports.0, f.ports.1)
        };
        flows.iter().map(text).collect()
    }

    fn local() -> BTreeMap<String, Ipv4Addr> {
        BTreeMap::from([("s".to_owned(), Ipv4Addr::new(10, 42, 0, 2))])
    }

    #[test]
    fn policies_add_up_and_pieces_do_not_overlap() {
        let rule = |peers, ports: &[PolicyPort]| PolicyRule { peers, ports: ports.to_vec() };
        let block = |cidr: &str, except: &[&str]| PolicyPeers {
            blocks: vec![PolicyBlock {
                cidr: cidr.to_owned(),
                except: except.iter().map(|e| (*e).to_owned()).collect(),
            }],
            ..PolicyPeers::default()
        };
        let policy = |ingress: Vec<PolicyRule>| Policy {
            subjects: vec![pod("s", None, &[("TCP/http", 8080)]), pod("not-here", None, &[])],
            ingress: Some(ingress),
            egress: None,
        };
        let policies = [
            policy(vec![
                rule(Some(block("10.0.0.0/8", &["10.1.0.0/16"])), &[tcp(Ports::Range(80, 90))]),
                rule(
                    Some(block("10.0.0.0/30", &[])),
                    &[tcp(Ports::Range(85, 95)), tcp(Ports::Name("http".into()))],
                ),
            ]),
            policy(vec![rule(Some(block("10.0.0.2/32", &[])), &[])]),
        ];
        let pods = of_pods(&policies, &local());
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].egress, None);
        let want = [
            "10.0.0.0-10.0.0.1 6-6 80-95",
            "10.0.0.0-10.0.0.1 6-6 8080-8080",
            "10.0.0.2-10.0.0.2 0-255 0-65535",
            "10.0.0.3-10.0.0.3 6-6 80-95",
            "10.0.0.3-10.0.0.3 6-6 8080-8080",
            "10.0.0.4-10.0.255.255 6-6 80-90",
            "10.2.0.0-10.255.255.255 6-6 80-90",
        ];
        assert_eq!(texts(pods[0].ingress.as_ref().unwrap()), want);
    }

    #[test]
    fn names_of_ports_are_those_of_the_pod_that_is_spoken_to() {
        let peers = PolicyPeers {
            pods: vec![
                pod("a", Some("10.42.1.2"), &[("TCP/http", 80)]),
                pod("b", Some("10.42.1.3"), &[("TCP/http", 81)]),
                pod("c", Some("10.42.1.4"), &[]),
                pod("s", Some("10.9.9.9"), &[("TCP/http", 82)]),
            ],
            blocks: Vec::new(),
        };
        let rules = vec![PolicyRule { peers: Some(peers), ports: vec![tcp(Ports::Name("http".into()))] }];
        let policy = Policy {
            subjects: vec![pod("s", None, &[("TCP/http", 8080)])],
            ingress: Some(rules.clone()),
            egress: Some(rules),
        };
        let pods = of_pods(&[policy], &local());
        // A pod of this node has the address that it has here.
        let out = [
            "10.42.0.2-10.42.0.2 6-6 82-82",
            "10.42.1.2-10.42.1.2 6-6 80-80",
            "10.42.1.3-10.42.1.3 6-6 81-81",
        ];
        assert_eq!(texts(pods[0].egress.as_ref().unwrap()), out);
        let come = ["10.42.0.2-10.42.0.2 6-6 8080-8080", "10.42.1.2-10.42.1.4 6-6 8080-8080"];
        assert_eq!(texts(pods[0].ingress.as_ref().unwrap()), come);
    }

    #[test]
    fn no_rule_is_nobody_and_an_empty_one_everybody() {
        let policy = |ingress: Vec<PolicyRule>| Policy {
            subjects: vec![pod("s", None, &[])],
            ingress: Some(ingress),
            egress: Some(Vec::new()),
        };
        let pods = of_pods(&[policy(Vec::new())], &local());
        assert_eq!((pods[0].ingress.as_deref(), pods[0].egress.as_deref()), (Some(&[][..]), Some(&[][..])));
        let pods = of_pods(&[policy(vec![PolicyRule::default()])], &local());
        assert_eq!(texts(pods[0].ingress.as_ref().unwrap()), ["0.0.0.0-255.255.255.255 0-255 0-65535"]);
        // Peers that are nobody (a selector that matches no pod) are not everybody.
        let nobody = PolicyRule { peers: Some(PolicyPeers::default()), ports: Vec::new() };
        let pods = of_pods(&[policy(vec![nobody])], &local());
        assert_eq!(pods[0].ingress.as_deref(), Some(&[][..]));
    }

    #[test]
    fn the_wire_form_reads_as_written() {
        let port = PolicyPort { protocol: Protocol::Udp, ports: Ports::Range(1, 2) };
        let text = serde_json::to_string(&port).unwrap();
        assert_eq!(text, r#"{"protocol":"Udp","range":[1,2]}"#);
        assert_eq!(serde_json::from_str::<PolicyPort>(&text).unwrap(), port);
    }
}
