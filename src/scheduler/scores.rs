//! Which of the nodes that a pod fits on it fits best; upstream's plugins and weights.
//!
//! Every part scores 0 to 100.

use k8s_openapi::api::core::v1::Node;

use super::{
    affinity::{Attraction, Spread},
    snapshot::{NodeInfo, PodInfo, Snapshot},
};
use crate::{
    kinds::placement::{self, PREFER_NO_SCHEDULE},
    oci::Reference,
};

/// The best score of a part.
const SCORE_MAX: i64 = 100;
/// Images smaller than this count for nothing (bytes).
const IMAGE_SIZE_MIN: i64 = 23 << 20;
/// Images larger than this, a container, count no more (bytes).
const IMAGE_SIZE_MAX: i64 = 1000 << 20;

/// Scores the nodes, in their order.
pub fn score(snapshot: &Snapshot, pod: &PodInfo, nodes: &[(&Node, &NodeInfo)]) -> Vec<i64> {
    let mut totals: Vec<i64> =
        nodes.iter().map(|(_, info)| least_allocated(pod, info) + balanced(pod, info)).collect();
    let mut add = |weight: i64, part: Vec<i64>| {
        for (total, score) in totals.iter_mut().zip(part) {
            *total += weight * score;
        }
    };
    add(3, taints(pod, nodes));
    add(2, node_affinity(pod, nodes));
    add(2, spread(&Spread::preferred(snapshot, pod), nodes));
    add(2, attraction(&Attraction::new(snapshot, pod), nodes));
    add(1, image_locality(pod, nodes));
    totals
}

/// The more of CPU and memory stays free, the better.
fn least_allocated(pod: &PodInfo, info: &NodeInfo) -> i64 {
    let free = |total: i64, used: i64| {
        if total <= 0 || used > total { 0 } else { (total - used) * SCORE_MAX / total }
    };
    let cpu = free(info.allocatable.cpu_milli, info.weight.0 + pod.weight.0);
    let memory = free(info.allocatable.memory_bytes, info.weight.1 + pod.weight.1);
    i64::midpoint(cpu, memory)
}

/// The more alike the used fractions of CPU and memory, the better.
fn balanced(pod: &PodInfo, info: &NodeInfo) -> i64 {
    let fraction =
        |total: i64, used: i64| if total <= 0 { 1.0 } else { (used as f64 / total as f64).min(1.0) };
    let cpu = fraction(info.allocatable.cpu_milli, info.requested.cpu_milli + pod.requests.cpu_milli);
    let memory =
        fraction(info.allocatable.memory_bytes, info.requested.memory_bytes + pod.requests.memory_bytes);
    // The standard deviation of two values is half their distance.
    ((1.0 - (cpu - memory).abs() / 2.0) * SCORE_MAX as f64) as i64
}

/// The fewer taints only put up with, the better.
fn taints(pod: &PodInfo, nodes: &[(&Node, &NodeInfo)]) -> Vec<i64> {
    let tolerations = pod.spec().and_then(|s| s.tolerations.as_ref());
    let count = |node: &Node| {
        let taints = placement::taints(node).into_iter().flatten();
        taints
            .filter(|t| t.effect == PREFER_NO_SCHEDULE)
            .filter(|t| {
                !tolerations.into_iter().flatten().any(|toleration| placement::tolerates(toleration, t))
            })
            .count() as i64
    };
    let counts: Vec<i64> = nodes.iter().map(|(node, _)| count(node)).collect();
    scale(&counts).into_iter().map(|score| SCORE_MAX - score).collect()
}

/// The more preferred terms (by weight) select the node, the better.
fn node_affinity(pod: &PodInfo, nodes: &[(&Node, &NodeInfo)]) -> Vec<i64> {
    let preferred = pod
        .spec()
        .and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    if preferred.is_none() {
        return vec![0; nodes.len()];
    }
    let weigh = |node: &Node| {
        let terms = preferred.into_iter().flatten();
        terms.filter(|p| placement::term_selects(&p.preference, node)).map(|p| i64::from(p.weight)).sum()
    };
    scale(&nodes.iter().map(|(node, _)| weigh(node)).collect::<Vec<i64>>())
}

/// The emptier of pods of the same kind, the better.
fn spread(spread: &Spread, nodes: &[(&Node, &NodeInfo)]) -> Vec<i64> {
    if spread.is_empty() {
        return vec![0; nodes.len()];
    }
    let crowds: Vec<Option<f64>> = nodes.iter().map(|(node, _)| spread.crowd(node)).collect();
    let known = || crowds.iter().flatten().copied();
    let (least, most) = (known().fold(f64::INFINITY, f64::min), known().fold(0.0, f64::max));
    let one = |crowd: &Option<f64>| match crowd {
        None => 0,
        Some(_) if most == 0.0 => SCORE_MAX,
        Some(crowd) => (SCORE_MAX as f64 * (most + least - crowd) / most) as i64,
    };
    crowds.iter().map(one).collect()
}

fn attraction(attraction: &Attraction, nodes: &[(&Node, &NodeInfo)]) -> Vec<i64> {
    if attraction.is_empty() {
        return vec![0; nodes.len()];
    }
    let sums: Vec<i64> = nodes.iter().map(|(node, _)| attraction.of(node)).collect();
    let least = sums.iter().copied().min().unwrap_or(0);
    let range = sums.iter().copied().max().unwrap_or(0) - least;
    sums.iter().map(|sum| if range > 0 { SCORE_MAX * (sum - least) / range } else { 0 }).collect()
}

/// The more of the pod's images (by size) a node has, the better; an image that few nodes have
/// counts less, so that pods do not heap on them.
fn image_locality(pod: &PodInfo, nodes: &[(&Node, &NodeInfo)]) -> Vec<i64> {
    let none = Vec::new();
    let containers = pod.spec().map_or(&none, |s| &s.containers);
    // Nodes know images by their full names.
    let full = |image: &String| image.parse::<Reference>().map_or_else(|_| image.clone(), |r| r.to_string());
    let wanted: Vec<String> = containers.iter().filter_map(|c| c.image.as_ref()).map(full).collect();
    let size = |info: &NodeInfo, image: &String| info.images.get(image.as_str()).copied().unwrap_or(0);
    let holders: Vec<i64> = wanted
        .iter()
        .map(|image| nodes.iter().filter(|(_, info)| size(info, image) > 0).count() as i64)
        .collect();
    if holders.iter().all(|count| *count == 0) {
        return vec![0; nodes.len()];
    }
    let total = nodes.len().max(1) as i64;
    let upper = IMAGE_SIZE_MAX * wanted.len().max(1) as i64;
    let one = |(_, info): &(&Node, &NodeInfo)| {
        let shares = wanted.iter().zip(&holders);
        let sum: i64 = shares.map(|(image, holders)| size(info, image) * holders / total).sum();
        SCORE_MAX * (sum.clamp(IMAGE_SIZE_MIN, upper) - IMAGE_SIZE_MIN) / (upper - IMAGE_SIZE_MIN)
    };
    nodes.iter().map(one).collect()
}

/// Scales to 0..=100 by the greatest.
fn scale(values: &[i64]) -> Vec<i64> {
    let most = values.iter().copied().max().unwrap_or(0);
    values.iter().map(|value| if most > 0 { SCORE_MAX * value / most } else { 0 }).collect()
}
