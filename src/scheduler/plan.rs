//! The decision: where a pod goes, or why it goes nowhere and who would have to make room.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Node;

use super::{
    filters::{Cause, Cycle, Refusal},
    preempt::{self, Budget, Preemption},
    scores,
    snapshot::{NodeInfo, PodInfo, Snapshot},
    volumes::{Claims, Step},
};

/// So many nodes are all looked at; of more nodes only a part, once enough fit (upstream's
/// `minFeasibleNodesToFind`, and `percentageOfNodesToScore` left to the scheduler).
const NODES_ENOUGH_MIN: usize = 100;
const PERCENT_ENOUGH_MIN: usize = 5;

/// How many nodes that fit are enough to choose among.
pub(super) fn enough(nodes: usize) -> usize {
    let percent = 50_usize.saturating_sub(nodes / 125).max(PERCENT_ENOUGH_MIN);
    (nodes * percent / 100).max(NODES_ENOUGH_MIN).min(nodes)
}

/// What is to be done with a pod.
#[derive(Debug)]
pub enum Decision {
    /// Bind it to the node. With `steps`, take those first and look at the pod again when its
    /// claims are bound.
    Bind { node: String, steps: Vec<Step> },
    /// It cannot run now.
    Refuse {
        /// The message of the FailedScheduling event and the `PodScheduled` condition.
        message: String,
        /// What has to change for another try to be worth it.
        causes: Vec<Cause>,
        preemption: Option<Preemption>,
    },
}

/// Decides on one pod. Pure: the same arguments give the same decision.
pub fn schedule(snapshot: &Snapshot, pod: &PodInfo, claims: &Claims, budgets: &[Budget]) -> Decision {
    let total = snapshot.node_count();
    if total == 0 {
        let message = "no nodes available to schedule pods".to_owned();
        return Decision::Refuse { message, causes: vec![Cause::Node], preemption: None };
    }
    if let Some(problem) = &claims.problem {
        let message = format!("0/{total} nodes are available: {problem}. {}", preempt::nobody(total));
        return Decision::Refuse { message, causes: vec![Cause::Volumes], preemption: None };
    }
    let cycle = Cycle::new(snapshot, pod, claims, &|_| false);
    // A node that preemption made room on is taken when it fits.
    let nominated = snapshot.nominated.get(pod.uid()).and_then(|(name, _)| snapshot.node(name));
    if let Some((info, node)) = nominated.and_then(|info| Some((info, info.node.as_ref()?)))
        && cycle.refusal(node, info, &beside(snapshot, pod, node)).is_none()
    {
        let name = crate::kinds::placement::node_name(node).to_owned();
        return Decision::Bind { node: name, steps: claims.steps(node) };
    }
    let (enough, first) = (enough(total), dice(pod) % total);
    let mut fitting: Vec<(&Node, &NodeInfo)> = Vec::with_capacity(enough);
    let mut refused: Vec<(&Arc<Node>, Refusal)> = Vec::new();
    // Each pod begins elsewhere, so that all nodes have their turn.
    for (node, info) in snapshot.nodes().skip(first).chain(snapshot.nodes().take(first)) {
        if fitting.len() >= enough {
            break;
        }
        match cycle.refusal(node, info, &beside(snapshot, pod, node)) {
            None => fitting.push((node, info)),
            Some(refusal) => refused.push((node, refusal)),
        }
    }
    if let Some(node) = best(snapshot, pod, &fitting) {
        let name = crate::kinds::placement::node_name(node).to_owned();
        return Decision::Bind { node: name, steps: claims.steps(node) };
    }
    let reasons = histogram(refused.iter().flat_map(|(_, r)| r.reasons.iter().map(|reason| &**reason)));
    let (preemption, outcome) = preempt::find(snapshot, pod, claims, budgets, &refused);
    // A preemption speaks for itself.
    let outcome = if preemption.is_some() { String::new() } else { format!(" {outcome}") };
    let message = format!("0/{total} nodes are available: {reasons}.{outcome}");
    let mut causes: Vec<Cause> = Vec::new();
    for (_, refusal) in &refused {
        if !causes.contains(&refusal.cause) {
            causes.push(refusal.cause);
        }
    }
    Decision::Refuse { message, causes, preemption }
}

/// The pods that preemption has made room for on a node and that this pod must not push aside.
pub fn beside<'a>(snapshot: &'a Snapshot, pod: &PodInfo, node: &Node) -> Vec<&'a PodInfo> {
    let name = crate::kinds::placement::node_name(node);
    snapshot
        .nominated
        .values()
        .filter(|(on, other)| on == name && other.uid() != pod.uid() && other.priority() >= pod.priority())
        .map(|(_, other)| &**other)
        .collect()
}

/// The node with the best score; of equal ones, one that depends on the pod, so that pods spread.
fn best<'a>(snapshot: &Snapshot, pod: &PodInfo, fitting: &[(&'a Node, &NodeInfo)]) -> Option<&'a Node> {
    if let [(only, _)] = fitting {
        return Some(only);
    }
    let scores = scores::score(snapshot, pod, fitting);
    let most = scores.iter().copied().max()?;
    let ties: Vec<&Node> =
        fitting.iter().zip(&scores).filter(|(_, s)| **s == most).map(|((n, _), _)| *n).collect();
    ties.get(dice(pod) % ties.len()).copied()
}

/// A number that depends on the pod.
fn dice(pod: &PodInfo) -> usize {
    pod.uid().bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}

/// `1 Insufficient cpu, 2 Too many pods`: counted and sorted as text.
pub fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    lines.join(", ")
}
