//! Why a pod cannot run on a node, in upstream's order and words.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

use super::{
    affinity::{Affinity, Spread},
    snapshot::{Amounts, NodeInfo, PodInfo, Snapshot},
    volumes::{Claims, VolumeFit},
};
use crate::kinds::{
    builds::Wanted,
    placement::{self, NO_EXECUTE, NO_SCHEDULE, TAINT_UNSCHEDULABLE},
};

/// What has to change so that a refused pod may fit; which events are worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Taints, labels, existence of nodes.
    Node,
    /// Room: resources, ports, the number of pods.
    Room,
    /// Other pods, by their labels.
    Pods,
    /// Claims and volumes.
    Volumes,
}

/// Why one node was refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether it could help that pods go.
    pub resolvable: bool,
    pub cause: Cause,
}

impl Refusal {
    pub fn hard(reason: impl Into<Cow<'static, str>>, cause: Cause) -> Self {
        Self { reasons: vec![reason.into()], resolvable: false, cause }
    }

    pub fn soft(reason: impl Into<Cow<'static, str>>, cause: Cause) -> Self {
        Self { reasons: vec![reason.into()], resolvable: true, cause }
    }
}

/// What is worked out once a pod, for all nodes.
pub struct Cycle<'a> {
    pub pod: &'a PodInfo,
    pub claims: &'a Claims,
    pub affinity: Affinity,
    pub spread: Spread,
    images: Wanted,
}

impl<'a> Cycle<'a> {
    /// `gone` says which placed pods are thought away.
    pub fn new(
        snapshot: &Snapshot,
        pod: &'a PodInfo,
        claims: &'a Claims,
        gone: &dyn Fn(&PodInfo) -> bool,
    ) -> Self {
        Self {
            affinity: Affinity::new(snapshot, pod, gone),
            spread: Spread::required(snapshot, pod, gone),
            images: pod.spec().map(|spec| Wanted::of(spec, &snapshot.learned)).unwrap_or_default(),
            pod,
            claims,
        }
    }

    /// The first thing that keeps the pod from the node. `beside` are pods that are to come there.
    pub fn refusal(&self, node: &Node, info: &NodeInfo, beside: &[&PodInfo]) -> Option<Refusal> {
        let spec = self.pod.spec()?;
        let tolerations = spec.tolerations.as_ref();
        if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) && !tolerates_cordon(tolerations)
        {
            return Some(Refusal::hard("node(s) were unschedulable", Cause::Node));
        }
        if spec
            .node_name
            .as_deref()
            .is_some_and(|name| !name.is_empty() && name != placement::node_name(node))
        {
            return Some(Refusal::hard("node(s) didn't match the requested node name", Cause::Node));
        }
        if placement::untolerated(placement::taints(node), tolerations, &[NO_SCHEDULE, NO_EXECUTE]).is_some()
        {
            return Some(Refusal::hard("node(s) had untolerated taint(s)", Cause::Node));
        }
        if !placement::affinity_allows(spec, node) {
            return Some(Refusal::hard("node(s) didn't match Pod's node affinity/selector", Cause::Node));
        }
        if let Some((image, has)) = self.images.misfit(node) {
            let reason = format!("node(s) can't run the image {image} (it has {has})");
            return Some(Refusal::hard(reason, Cause::Node));
        }
        let taken = info.pods.iter().map(|p| &**p).chain(beside.iter().copied()).flat_map(|p| &p.ports);
        if !self.pod.ports.is_empty()
            && taken.into_iter().any(|taken| self.pod.ports.iter().any(|wanted| wanted.collides(taken)))
        {
            return Some(Refusal::soft(
                "node(s) didn't have free ports for the requested pod ports",
                Cause::Room,
            ));
        }
        self.room(info, beside)
            .or_else(|| self.volumes(node))
            .or_else(|| self.spread.refusal(node))
            .or_else(|| self.affinity.refusal(node))
    }

    fn room(&self, info: &NodeInfo, beside: &[&PodInfo]) -> Option<Refusal> {
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        let mut resolvable = true;
        if (info.pods.len() + beside.len()) as i64 + 1 > info.pods_max {
            reasons.push("Too many pods".into());
        }
        let with_beside;
        let used = if beside.is_empty() {
            &info.requested
        } else {
            let mut sum = info.requested.clone();
            for pod in beside {
                sum.change(&pod.requests, 1);
            }
            with_beside = sum;
            &with_beside
        };
        let (wants, has): (&Amounts, &Amounts) = (&self.pod.requests, &info.allocatable);
        let mut check = |name: &str, wanted: i64, used: i64, total: i64| {
            if wanted > 0 && wanted > total - used {
                reasons.push(format!("Insufficient {name}").into());
                resolvable &= wanted <= total;
            }
        };
        check("cpu", wants.cpu_milli, used.cpu_milli, has.cpu_milli);
        check("memory", wants.memory_bytes, used.memory_bytes, has.memory_bytes);
        check("ephemeral-storage", wants.ephemeral_bytes, used.ephemeral_bytes, has.ephemeral_bytes);
        for (name, wanted) in &wants.others {
            check(name, *wanted, used.other(name), has.other(name));
        }
        (!reasons.is_empty()).then_some(Refusal { reasons, resolvable, cause: Cause::Room })
    }

    fn volumes(&self, node: &Node) -> Option<Refusal> {
        match self.claims.fit(node) {
            VolumeFit::Fits => None,
            VolumeFit::Refused(reason) => Some(Refusal::hard(reason, Cause::Volumes)),
            VolumeFit::InUse(reason) => Some(Refusal::soft(reason, Cause::Volumes)),
        }
    }
}

/// A cordoned node is tolerated through the taint that says the same.
fn tolerates_cordon(tolerations: Option<&Vec<Toleration>>) -> bool {
    let taint =
        Taint { key: TAINT_UNSCHEDULABLE.into(), effect: NO_SCHEDULE.into(), value: None, time_added: None };
    tolerations.into_iter().flatten().any(|toleration| placement::tolerates(toleration, &taint))
}
