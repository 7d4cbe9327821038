//! Which of the remembered clients have to forget their endpoint after a change of services.
//!
//! In: the table before and after. Out: whether anything may be wrong now, and which entries are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    cidr::Cidr,
    plan::{Differing, Front, differing},
    ruleset::{Frontend, Key, Ruleset, Set, Value, protocol_number},
};

/// One client's way, as the kernel remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub client: Ipv4Addr,
    /// Where it asked.
    pub address: Ipv4Addr,
    pub protocol: u8,
    pub port: u16,
    /// Where it was led.
    pub target: (Ipv4Addr, u16),
}

/// Endpoints by the address, the protocol and the port of their frontend.
type TargetsOf = BTreeMap<(Option<Ipv4Addr>, u8, u16), BTreeSet<(Ipv4Addr, u16)>>;

/// Where the clients of each frontend that remembers them may be led.
#[derive(Debug, PartialEq, Eq)]
pub struct Stickiness {
    cluster: Cidr,
    inside: TargetsOf,
    /// Of the views that only outsiders have.
    outside: TargetsOf,
}

impl Stickiness {
    fn of(ruleset: &Ruleset) -> Self {
        let mut found =
            Self { cluster: ruleset.scope.cluster, inside: BTreeMap::new(), outside: BTreeMap::new() };
        for (Frontend { address, protocol, port }, front) in &ruleset.fronts {
            if front.memory().is_none() {
                continue;
            }
            let id = (*address, protocol_number(*protocol), *port);
            for ((set, key), value) in front.elements() {
                let (Key::Slot(..), Value::Target(address, port)) = (key, value) else { continue };
                let by_view = match set {
                    Set::Endpoints | Set::NodeEndpoints => &mut found.inside,
                    _ => &mut found.outside,
                };
                by_view.entry(id).or_default().insert((*address, *port));
            }
        }
        found
    }

    /// What holds after a change by which something remembered may have become wrong; `None` when
    /// nothing can have.
    pub fn lost(old: Option<&Ruleset>, new: &Ruleset) -> Option<Self> {
        let old = old?;
        let remembers = |front: Option<&Front>| front.is_some_and(|front| front.memory().is_some());
        let touched = |(_, before, now): &Differing<'_>| remembers(*before) || remembers(*now);
        if !differing(Some(old), new).iter().any(touched) {
            return None;
        }
        let (before, now) = (Self::of(old), Self::of(new));
        let kept = |before: &BTreeMap<_, BTreeSet<_>>, now: &BTreeMap<_, BTreeSet<_>>| {
            before.iter().all(|(frontend, targets)| now.get(frontend).is_some_and(|n| n.is_superset(targets)))
        };
        let narrower = now.outside.keys().any(|frontend| !before.outside.contains_key(frontend));
        let all_kept = kept(&before.inside, &now.inside) && kept(&before.outside, &now.outside) && !narrower;
        (!all_kept).then_some(now)
    }

    /// Whether a client may be led there.
    pub fn is_valid(&self, known: Remembered) -> bool {
        let targets = |address| {
            let id = (address, known.protocol, known.port);
            let outside = self.outside.get(&id).filter(|_| !self.cluster.contains(known.client));
            outside.or_else(|| self.inside.get(&id))
        };
        targets(Some(known.address)).or_else(|| targets(None)).is_some_and(|t| t.contains(&known.target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{
        ServicePort,
        plan::tests::{address, ruleset, scope, service},
    };

    #[test]
    fn clients_forget_only_what_their_service_has_lost() {
        let with = |endpoints: &[&str], local| ServicePort {
            affinity_seconds: Some(60),
            node_port: Some(30000),
            external_local: local,
            ..service("a/a:x", "10.43.0.1", 80, endpoints)
        };
        let table = |port: &ServicePort| ruleset(scope(), std::slice::from_ref(port), &[]);
        let both = with(&["10.42.0.2:1", "10.42.1.2:1"], false);
        let (two, one) = (table(&both), table(&with(&["10.42.1.2:1"], false)));
        assert_eq!(Stickiness::lost(None, &two), None);
        assert_eq!(Stickiness::lost(Some(&one), &two), None, "one more is no loss");
        let known = |client, to: &str, port, target| Remembered {
            client: address(client),
            address: address(to),
            protocol: 6,
            port,
            target: (address(target), 1),
        };
        let cases = |client, target| {
            [known(client, "10.43.0.1", 80, target), known(client, "192.0.2.1", 30000, target)]
        };
        let fewer = Stickiness::lost(Some(&two), &one).unwrap();
        assert_eq!(cases("10.42.0.9", "10.42.0.2").map(|k| fewer.is_valid(k)), [false, false]);
        assert_eq!(cases("10.42.0.9", "10.42.1.2").map(|k| fewer.is_valid(k)), [true, true]);
        let gone = Stickiness::lost(Some(&two), &ruleset(scope(), &[], &[])).unwrap();
        assert_eq!(cases("10.42.0.9", "10.42.1.2").map(|k| gone.is_valid(k)), [false, false]);
        // Outsiders are led to this node's endpoints only, from now on.
        let local = table(&ServicePort { external_local: true, ..both });
        let local = Stickiness::lost(Some(&two), &local).unwrap();
        assert!(!local.is_valid(known("192.0.2.9", "192.0.2.1", 30000, "10.42.1.2")));
        assert!(local.is_valid(known("10.42.1.9", "192.0.2.1", 30000, "10.42.1.2")));
    }
}
