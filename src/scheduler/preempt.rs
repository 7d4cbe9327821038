//! Preemption: which pods of lower priority would have to go so that a pod fits.
//!
//! Of each node the fewest and least important pods are chosen; of the nodes the one where it
//! hurts least, in upstream's order: budgets broken, the highest priority, the sum of priorities,
//! the number of pods, the latest start.

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::api::core::v1::Node;

use super::{
    filters::{Cycle, Refusal},
    plan::{beside, histogram},
    snapshot::{NodeInfo, PodInfo, Snapshot},
    volumes::Claims,
};
use crate::kinds::{labels::Selector, placement};

/// A PodDisruptionBudget.
#[derive(Debug)]
pub struct Budget {
    pub namespace: String,
    pub selector: Selector,
    pub allowed: i32,
}

/// Who has to go, and where.
#[derive(Debug)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// What is said when no node could be helped.
pub fn nobody(total: usize) -> String {
    said(&format!("0/{total} nodes are available: {total} {NOT_HELPFUL}."))
}

fn said(preemption: &str) -> String {
    format!("no new claims to deallocate, preemption: {preemption}")
}

/// The least harmful preemption, and the end of the message.
pub fn find(
    snapshot: &Snapshot,
    pod: &PodInfo,
    claims: &Claims,
    budgets: &[Budget],
    refused: &[(&Arc<Node>, Refusal)],
) -> (Option<Preemption>, String) {
    if pod.spec().is_some_and(|s| s.preemption_policy.as_deref() == Some("Never")) {
        return (None, said("not eligible due to preemptionPolicy=Never."));
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    for (node, refusal) in refused {
        if !refusal.resolvable {
            reasons.push(NOT_HELPFUL.to_owned());
            continue;
        }
        let Some(info) = snapshot.node(placement::node_name(node)) else { continue };
        match victims(snapshot, pod, claims, budgets, node, info) {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => reasons.push(reason),
        }
    }
    let waiting = snapshot.nominated.get(pod.uid()).is_some_and(|(node, _)| {
        let leaving =
            |info: &NodeInfo| info.pods.iter().any(|p| p.is_deleting() && p.priority() < pod.priority());
        snapshot.node(node).is_some_and(leaving)
    });
    if waiting {
        return (None, said("not eligible due to terminating pod on the nominated node."));
    }
    let total = refused.len();
    let message =
        said(&format!("0/{total} nodes are available: {}.", histogram(reasons.iter().map(String::as_str))));
    candidates.sort_by_key(Candidate::harm);
    let best = candidates.into_iter().next().map(|c| Preemption { node: c.node, victims: c.victims });
    (best, message)
}

struct Candidate {
    node: String,
    /// The most important first.
    victims: Vec<Arc<PodInfo>>,
    broken: usize,
}

impl Candidate {
    fn harm(&self) -> (usize, i32, i64, usize, Reverse<Option<jiff::Timestamp>>, String) {
        let highest = self.victims.first().map_or(i32::MIN, |p| p.priority());
        // Priorities may be negative: each counts from the lowest there is.
        let sum = self.victims.iter().map(|p| i64::from(p.priority()) - i64::from(i32::MIN)).sum();
        let latest = self.victims.iter().filter(|p| p.priority() == highest).filter_map(|p| started(p)).min();
        (self.broken, highest, sum, self.victims.len(), Reverse(latest), self.node.clone())
    }
}

fn started(pod: &PodInfo) -> Option<jiff::Timestamp> {
    pod.pod.status.as_ref()?.start_time.as_ref().map(|t| t.0)
}

fn victims(
    snapshot: &Snapshot,
    pod: &PodInfo,
    claims: &Claims,
    budgets: &[Budget],
    node: &Node,
    info: &NodeInfo,
) -> Result<Candidate, String> {
    let (lower, kept): (Vec<_>, Vec<_>) =
        info.pods.iter().cloned().partition(|placed| placed.priority() < pod.priority());
    if lower.is_empty() {
        return Err(NO_VICTIMS.to_owned());
    }
    let beside = beside(snapshot, pod, node);
    // Refused with exactly `present` of the lower pods left.
    let refusal = |present: &[Arc<PodInfo>]| {
        let gone = |placed: &PodInfo| {
            lower.iter().any(|l| l.uid() == placed.uid()) && !present.iter().any(|p| p.uid() == placed.uid())
        };
        let other = info.with_pods(kept.iter().chain(present).cloned());
        Cycle::new(snapshot, pod, claims, &gone).refusal(node, &other, &beside)
    };
    if let Some(refusal) = refusal(&[]) {
        return Err(refusal.reasons.iter().map(|r| &**r).collect::<Vec<_>>().join(", "));
    }
    // Spared first: those whose budget would break, then the important, then the old.
    let mut left: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    let mut order: Vec<(bool, Arc<PodInfo>)> = Vec::new();
    let mut by_importance = lower.clone();
    by_importance.sort_by_key(|p| (Reverse(p.priority()), started(p)));
    for victim in by_importance {
        let mut breaks = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.namespace == victim.namespace() && budget.selector.matches(|key| victim.label(key)) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        order.push((breaks, victim));
    }
    order.sort_by_key(|(breaks, _)| !breaks);
    let mut spared: Vec<Arc<PodInfo>> = Vec::new();
    let mut gone: Vec<Arc<PodInfo>> = Vec::new();
    let mut broken = 0;
    for (breaks, victim) in order {
        spared.push(Arc::clone(&victim));
        if refusal(&spared).is_some() {
            spared.pop();
            broken += usize::from(breaks);
            gone.push(victim);
        }
    }
    gone.sort_by_key(|p| (Reverse(p.priority()), started(p)));
    Ok(Candidate { node: placement::node_name(node).to_owned(), victims: gone, broken })
}
