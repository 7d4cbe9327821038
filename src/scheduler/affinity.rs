//! Pod affinity, anti-affinity and topology spread: how pods look for or avoid each other.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Node, PodSpec, TopologySpreadConstraint};

use super::{
    filters::{Cause, Refusal},
    snapshot::{PodInfo, Snapshot, Term},
};
use crate::kinds::{
    labels::Selector,
    placement::{self, NO_EXECUTE, NO_SCHEDULE},
};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A topology: label key and value.
type Place = (String, String);

fn place(key: &str, node: &Node) -> Option<Place> {
    Some((key.to_owned(), placement::node_label(node, key)?.to_owned()))
}

/// Required affinity and anti-affinity of one pod against the placed ones.
#[derive(Debug, Default)]
pub struct Affinity {
    /// Where placed pods do not want this one.
    unwelcome: HashSet<Place>,
    /// The keys of required affinity, and where pods are that satisfy all its terms.
    keys: Vec<String>,
    friends: HashSet<Place>,
    /// The pod satisfies its own terms, so it may be the first of its group.
    is_own_friend: bool,
    /// Where pods are that this one avoids.
    avoided: HashSet<Place>,
}

impl Affinity {
    pub fn new(snapshot: &Snapshot, pod: &PodInfo, gone: &dyn Fn(&PodInfo) -> bool) -> Self {
        let required = pod
            .spec()
            .and_then(|s| s.affinity.as_ref()?.pod_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let terms: Vec<Term> = required.into_iter().flatten().map(|t| Term::new(&pod.pod, t)).collect();
        let names = &snapshot.namespaces;
        let mut affinity = Self {
            is_own_friend: terms.iter().all(|t| t.selects(pod, names)),
            keys: terms.iter().map(|t| t.topology_key.clone()).collect(),
            ..Self::default()
        };
        if !pod.is_sociable() && !snapshot.has_sociable() {
            return affinity;
        }
        for (node, placed) in snapshot.pods().filter(|(_, placed)| !gone(placed)) {
            for term in placed.anti_affinity.iter().filter(|t| t.selects(pod, names)) {
                affinity.unwelcome.extend(place(&term.topology_key, node));
            }
            if !terms.is_empty() && terms.iter().all(|t| t.selects(placed, names)) {
                affinity.friends.extend(terms.iter().filter_map(|t| place(&t.topology_key, node)));
            }
            for term in pod.anti_affinity.iter().filter(|t| t.selects(placed, names)) {
                affinity.avoided.extend(place(&term.topology_key, node));
            }
        }
        affinity
    }

    pub fn refusal(&self, node: &Node) -> Option<Refusal> {
        let has_all = self.keys.iter().all(|key| placement::node_label(node, key).is_some());
        let joined = self.keys.iter().all(|key| place(key, node).is_some_and(|p| self.friends.contains(&p)));
        let first = self.friends.is_empty() && self.is_own_friend;
        if !has_all || !(joined || first) {
            return Some(Refusal::hard("node(s) didn't match pod affinity rules", Cause::Pods));
        }
        let at = |places: &HashSet<Place>| {
            places.iter().any(|(key, value)| placement::node_label(node, key) == Some(value))
        };
        if at(&self.avoided) {
            return Some(Refusal::soft("node(s) didn't match pod anti-affinity rules", Cause::Pods));
        }
        at(&self.unwelcome)
            .then(|| Refusal::soft("node(s) didn't satisfy existing pods anti-affinity rules", Cause::Pods))
    }
}

/// Topology spread constraints of one kind (required, or wished for), with the pods counted.
#[derive(Debug, Default)]
pub struct Spread {
    constraints: Vec<Constraint>,
}

#[derive(Debug)]
struct Constraint {
    key: String,
    max_skew: i32,
    min_domains: usize,
    /// Whether the pod itself counts.
    counts_itself: bool,
    /// Pods by domain; only domains of nodes that are eligible.
    domains: HashMap<String, i32>,
    /// What a pod counts in scores: the more domains there are, the more (upstream's
    /// `podtopologyspread/scoring.go`).
    weight: f64,
}

fn weight(domains: usize) -> f64 {
    (domains as f64 + 2.0).ln()
}

impl Spread {
    /// The constraints that must hold (`DoNotSchedule`).
    pub fn required(snapshot: &Snapshot, pod: &PodInfo, gone: &dyn Fn(&PodInfo) -> bool) -> Self {
        let constraints = pod.spec().and_then(|s| s.topology_spread_constraints.as_ref());
        let required: Vec<_> =
            constraints.into_iter().flatten().filter(|c| c.when_unsatisfiable == "DoNotSchedule").collect();
        Self::count(snapshot, pod, required, gone)
    }

    /// The constraints that are wished for (`ScheduleAnyway`); for the pod of a controller that
    /// has no constraints at all, upstream's defaults: siblings over hosts and zones.
    pub fn preferred(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let none = Vec::new();
        let constraints = pod.spec().and_then(|s| s.topology_spread_constraints.as_ref()).unwrap_or(&none);
        if !constraints.is_empty() {
            let wished = constraints.iter().filter(|c| c.when_unsatisfiable == "ScheduleAnyway").collect();
            return Self::count(snapshot, pod, wished, &|_| false);
        }
        let Some(controller) = pod.controller() else { return Self::default() };
        let mut constraints = Vec::new();
        for (key, max_skew) in [(HOSTNAME, 3), (ZONE, 5)] {
            // Every node is a host of its own; zones have to be counted.
            let count = if key == HOSTNAME {
                snapshot.node_count()
            } else {
                let zones = snapshot.nodes().filter_map(|(node, _)| placement::node_label(node, key));
                zones.collect::<HashSet<&str>>().len()
            };
            if count == 0 {
                continue;
            }
            // Where there is none of them is not told: that counts as zero.
            let mut domains: HashMap<String, i32> = HashMap::new();
            for (node, here) in snapshot.siblings(controller) {
                let node = snapshot.node(node).and_then(|info| info.node.as_ref());
                if let Some(domain) = node.and_then(|node| placement::node_label(node, key)) {
                    *domains.entry(domain.to_owned()).or_default() += here;
                }
            }
            constraints.push(Constraint {
                key: key.to_owned(),
                max_skew,
                min_domains: 1,
                counts_itself: true,
                domains,
                weight: weight(count),
            });
        }
        Self { constraints }
    }

    fn count(
        snapshot: &Snapshot,
        pod: &PodInfo,
        wanted: Vec<&TopologySpreadConstraint>,
        gone: &dyn Fn(&PodInfo) -> bool,
    ) -> Self {
        let none = PodSpec::default();
        let spec = pod.spec().unwrap_or(&none);
        let keys: Vec<&str> = wanted.iter().map(|c| c.topology_key.as_str()).collect();
        let build = |c: &TopologySpreadConstraint| {
            let mut selector = c.label_selector.clone().unwrap_or_default();
            for key in c.match_label_keys.iter().flatten() {
                if let Some(value) = pod.label(key) {
                    selector.match_labels.get_or_insert_default().insert(key.clone(), value.to_owned());
                }
            }
            let selector = match &c.label_selector {
                Some(_) => Selector::from_label_selector(Some(&selector)).unwrap_or(Selector::NOTHING),
                None => Selector::NOTHING,
            };
            let honors = |policy: &Option<String>, default: bool| match policy.as_deref() {
                Some(policy) => policy == "Honor",
                None => default,
            };
            let affinity = honors(&c.node_affinity_policy, true);
            let taints = honors(&c.node_taints_policy, false);
            let eligible = |node: &Node| {
                keys.iter().all(|key| placement::node_label(node, key).is_some())
                    && (!affinity || placement::affinity_allows(spec, node))
                    && (!taints
                        || placement::untolerated(
                            placement::taints(node),
                            spec.tolerations.as_ref(),
                            &[NO_SCHEDULE, NO_EXECUTE],
                        )
                        .is_none())
            };
            let counts =
                |of: &PodInfo| of.namespace() == pod.namespace() && selector.matches(|key| of.label(key));
            let mut constraint = Constraint {
                key: c.topology_key.clone(),
                max_skew: c.max_skew,
                min_domains: c.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
                counts_itself: counts(pod),
                domains: HashMap::new(),
                weight: 0.0,
            };
            constraint.fill(snapshot, &counts, &eligible, gone);
            constraint.weight = weight(constraint.domains.len());
            constraint
        };
        Self { constraints: wanted.into_iter().map(build).collect() }
    }

    pub fn refusal(&self, node: &Node) -> Option<Refusal> {
        for constraint in &self.constraints {
            let Some(domain) = placement::node_label(node, &constraint.key) else {
                return Some(Refusal::hard(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                    Cause::Node,
                ));
            };
            let least = if constraint.domains.len() < constraint.min_domains {
                0
            } else {
                constraint.domains.values().copied().min().unwrap_or(0)
            };
            let here = constraint.domains.get(domain).copied().unwrap_or(0);
            if here + i32::from(constraint.counts_itself) - least > constraint.max_skew {
                return Some(Refusal::soft(
                    "node(s) didn't match pod topology spread constraints",
                    Cause::Pods,
                ));
            }
        }
        None
    }

    pub fn is_empty(&self) -> bool {
        self.constraints.is_empty()
    }

    /// How crowded a node is; less is better. `None` where a constraint's label is missing.
    pub fn crowd(&self, node: &Node) -> Option<f64> {
        self.constraints.iter().try_fold(0.0, |sum, constraint| {
            let domain = placement::node_label(node, &constraint.key)?;
            let here = f64::from(constraint.domains.get(domain).copied().unwrap_or(0));
            Some(sum + here * constraint.weight + f64::from(constraint.max_skew - 1))
        })
    }
}

impl Constraint {
    fn fill(
        &mut self,
        snapshot: &Snapshot,
        counts: &dyn Fn(&PodInfo) -> bool,
        eligible: &dyn Fn(&Node) -> bool,
        gone: &dyn Fn(&PodInfo) -> bool,
    ) {
        for (node, info) in snapshot.nodes() {
            let Some(domain) = placement::node_label(node, &self.key) else { continue };
            if !eligible(node) {
                continue;
            }
            let here = info.pods.iter().filter(|p| !p.is_deleting() && !gone(p) && counts(p)).count();
            *self.domains.entry(domain.to_owned()).or_default() += i32::try_from(here).unwrap_or(i32::MAX);
        }
    }
}

/// How much wished-for affinity draws a pod to a node, or drives it away.
#[derive(Debug, Default)]
pub struct Attraction(HashMap<Place, i64>);

impl Attraction {
    pub fn new(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        /// What a required affinity of a placed pod is worth (`hardPodAffinityWeight`).
        const REQUIRED_WEIGHT: i64 = 1;
        let names = &snapshot.namespaces;
        let mut all = Self::default();
        if !pod.is_sociable() && !snapshot.has_sociable() {
            return all;
        }
        let own = wishes(pod, 0);
        for (node, placed) in snapshot.pods() {
            for (term, weight) in own.iter().filter(|(t, _)| t.selects(placed, names)) {
                all.add(term, node, *weight);
            }
            if placed.spec().is_some_and(|s| s.affinity.is_some()) {
                for (term, weight) in
                    wishes(placed, REQUIRED_WEIGHT).iter().filter(|(t, _)| t.selects(pod, names))
                {
                    all.add(term, node, *weight);
                }
            }
        }
        all
    }

    fn add(&mut self, term: &Term, node: &Node, weight: i64) {
        if let Some(place) = place(&term.topology_key, node) {
            *self.0.entry(place).or_default() += weight;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn of(&self, node: &Node) -> i64 {
        let here = |(key, value): &Place| placement::node_label(node, key) == Some(value);
        self.0.iter().filter(|(place, _)| here(place)).map(|(_, weight)| weight).sum()
    }
}

/// The preferred terms of a pod with their weights, anti-affinity's being negative.
fn wishes(pod: &PodInfo, required: i64) -> Vec<(Term, i64)> {
    let Some(affinity) = pod.spec().and_then(|s| s.affinity.as_ref()) else { return Vec::new() };
    let mut all = Vec::new();
    if let Some(with) = &affinity.pod_affinity {
        for wish in with.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
            all.push((Term::new(&pod.pod, &wish.pod_affinity_term), wish.weight.into()));
        }
        if required > 0 {
            let terms = with.required_during_scheduling_ignored_during_execution.iter().flatten();
            all.extend(terms.map(|term| (Term::new(&pod.pod, term), required)));
        }
    }
    if let Some(without) = &affinity.pod_anti_affinity {
        for wish in without.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
            all.push((Term::new(&pod.pod, &wish.pod_affinity_term), -i64::from(wish.weight)));
        }
    }
    all
}
