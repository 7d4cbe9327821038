//! Nodes: conditions become taints, silence becomes `Unknown`, pods of a lost node stop being
//! ready.
//!
//! Watches: nodes and the Leases of foreign kubelets. A node of ours is marked by its master when its
//! Last Will arrives; its Lease tells clients that, and is no clock to judge by: a board's own clock
//! may jump by years.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition, Pod, Taint},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;

use super::{
    super::{
        plan::{Note, Plan, list, reference},
        pods,
        runner::{Controller, Round, Source},
    },
    with_condition,
};
use crate::{
    kinds::{
        lease,
        placement::{
            self, NO_EXECUTE, NO_SCHEDULE, TAINT_DISK_PRESSURE, TAINT_MEMORY_PRESSURE,
            TAINT_NETWORK_UNAVAILABLE, TAINT_NOT_READY, TAINT_PID_PRESSURE, TAINT_UNREACHABLE,
            TAINT_UNSCHEDULABLE,
        },
    },
    objects::Objects,
    store::{Key, Object},
};

pub struct NodeLifecycleController {
    /// How long a node may be silent (upstream's `node-monitor-grace-period`).
    pub grace: SignedDuration,
}

impl Controller for NodeLifecycleController {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn primary(&self) -> &'static str {
        "nodes"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("leases.coordination.k8s.io", |objects, lease: &Object| {
                let name = &lease.key.name;
                let foreign = |node: Arc<Node>| !lease::is_masters(&node);
                let judged = &*lease.key.namespace == lease::NODES
                    && objects.get_typed::<Node>("", name).is_some_and(foreign);
                judged.then(|| Key::new("nodes", "", name)).into_iter().collect()
            }),
            Source::new("pods", |objects, pod| {
                let pod = pod.typed::<Pod>();
                let node = objects.get_typed::<Node>("", pods::node_name(&pod));
                let lost = node.filter(|node| !placement::is_node_ready(node));
                lost.map(|node| Key::new("nodes", "", placement::node_name(&node))).into_iter().collect()
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(node) = objects.get_typed::<Node>("", &key.name) else { return Plan::default() };
        let foreign = !lease::is_masters(&node);
        let lease = if foreign { objects.get_typed::<Lease>(lease::NODES, &key.name) } else { None };
        let lost = !placement::is_node_ready(&node);
        let pods = if lost {
            let all = objects.list_typed::<Pod>(None);
            all.into_iter().filter(|pod| pods::node_name(pod) == &*key.name).collect()
        } else {
            Vec::new()
        };
        reconcile(&node, &Observed { lease, pods, grace: self.grace }, round.now)
    }
}

pub(super) struct Observed {
    pub lease: Option<Arc<Lease>>,
    /// The pods on the node; only when it is not ready.
    pub pods: Vec<Arc<Pod>>,
    pub grace: SignedDuration,
}

pub(super) fn reconcile(node: &Node, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::about(node);
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let renewed = observed.lease.as_ref().and_then(|l| l.spec.as_ref()?.renew_time.as_ref()).map(|t| t.0);
    if let Some(deadline) = renewed.map(|then| then + observed.grace) {
        if deadline > now {
            plan.requeue_at(deadline, now);
        } else if mark_unknown(&mut conditions, now) {
            plan.merge_status_at(node, json!({ "status": { "conditions": conditions } }));
            plan.event(Note::normal(
                "NodeNotReady",
                format!("Node {} status is now: NodeNotReady", placement::node_name(node)),
            ));
        }
    }
    let unschedulable = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    let old = placement::taints(node).cloned().unwrap_or_default();
    let new = taints(&conditions, unschedulable, &old, now);
    // One write of the node a round: a second one would be made on an old state.
    if old != new && plan.actions.is_empty() {
        plan.merge_at(node, json!({ "spec": { "taints": list(&new) } }));
    }
    let ready = conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str());
    if ready != Some("True") {
        for pod in observed.pods.iter().filter(|pod| pods::is_ready(pod)) {
            plan.merge_status_at(&**pod, with_condition(pod, "Ready", "False", "", "", now));
            plan.event(Note::warning("NodeNotReady", "Node is not ready").about(reference(&**pod)));
        }
    }
    plan
}

/// Marks what a silent node said last as not known any more; false when that is so already.
fn mark_unknown(conditions: &mut Vec<NodeCondition>, now: Timestamp) -> bool {
    let mut changed = false;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let (reason, message) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some(reason.into());
                condition.message = Some(message.into());
                condition.last_transition_time = Some(Time(now));
                changed = true;
            }
            Some(_) => {}
            None => {
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_transition_time: Some(Time(now)),
                    last_heartbeat_time: None,
                });
                changed = true;
            }
        }
    }
    changed
}

/// The taints of a node: those of others stay, those of conditions follow the conditions.
fn taints(conditions: &[NodeCondition], unschedulable: bool, old: &[Taint], now: Timestamp) -> Vec<Taint> {
    let status = |kind: &str| conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str());
    let (not_ready, unreachable) = match status("Ready") {
        Some("False") | None => (true, false),
        Some("Unknown") => (false, true),
        Some(_) => (false, false),
    };
    let wanted = [
        (TAINT_NOT_READY, NO_SCHEDULE, not_ready),
        (TAINT_NOT_READY, NO_EXECUTE, not_ready),
        (TAINT_UNREACHABLE, NO_SCHEDULE, unreachable),
        (TAINT_UNREACHABLE, NO_EXECUTE, unreachable),
        (TAINT_MEMORY_PRESSURE, NO_SCHEDULE, status("MemoryPressure") == Some("True")),
        (TAINT_DISK_PRESSURE, NO_SCHEDULE, status("DiskPressure") == Some("True")),
        (TAINT_PID_PRESSURE, NO_SCHEDULE, status("PIDPressure") == Some("True")),
        (TAINT_NETWORK_UNAVAILABLE, NO_SCHEDULE, status("NetworkUnavailable") == Some("True")),
        (TAINT_UNSCHEDULABLE, NO_SCHEDULE, unschedulable),
    ];
    let is = |taint: &Taint, key: &str, effect: &str| taint.key == key && taint.effect == effect;
    let mut taints: Vec<Taint> =
        old.iter().filter(|t| !wanted.iter().any(|(k, e, on)| !on && is(t, k, e))).cloned().collect();
    for (key, effect, _) in wanted.iter().filter(|(_, _, on)| *on) {
        if !taints.iter().any(|t| is(t, key, effect)) {
            taints.push(Taint {
                key: (*key).into(),
                effect: (*effect).into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    taints
}
