//! Pods on a board that their image has no build for leave it, so that they are placed anew.
//!
//! Watches: pods, and nodes for what they learned about images. Only the first pod of an image can
//! be stranded: the board that cannot pull it learns what it is built for, and the scheduler
//! knows from then on. A pod without a controller would not come back, and a daemon belongs to its
//! node: those stay, and their status says why they do not start.

use k8s_openapi::api::core::v1::{Node, Pod};

use super::{
    super::{
        owner,
        plan::{Note, Plan},
        pods,
        runner::{Controller, Round, Source},
    },
    pods_on, with_condition,
};
use crate::{
    kinds::builds::{self, Learned, Wanted},
    objects::Objects,
    store::Key,
};

pub struct StrandedPodController;

impl Controller for StrandedPodController {
    fn name(&self) -> &'static str {
        "stranded-pod-controller"
    }

    fn primary(&self) -> &'static str {
        "pods"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("nodes", |objects, node| {
            if builds::learned(&node.typed()).is_empty() { Vec::new() } else { pods_on(objects, node) }
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(pod) = objects.get_typed::<Pod>(&key.namespace, &key.name) else { return Plan::default() };
        if !is_stranded(&pod) {
            return Plan::default();
        }
        let Some(node) = objects.get_typed::<Node>("", pods::node_name(&pod)) else { return Plan::default() };
        reconcile(&pod, &node, &builds::learned(&node), round)
    }
}

/// Whether the pod waits for an image and may go elsewhere.
fn is_stranded(pod: &Pod) -> bool {
    let Some(status) = pod.status.as_ref() else { return false };
    let all = || status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let waits = all().any(|c| {
        let reason = c.state.as_ref().and_then(|s| s.waiting.as_ref()?.reason.as_deref());
        matches!(reason, Some("ErrImagePull" | "ImagePullBackOff"))
    });
    let runs = all().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    let movable = owner::controller_of(&pod.metadata).is_some_and(|o| o.kind != "DaemonSet");
    waits && !runs && movable && pods::is_active(pod)
}

fn reconcile(pod: &Pod, node: &Node, learned: &Learned, round: &Round) -> Plan {
    let mut plan = Plan::about(pod);
    let Some(spec) = pod.spec.as_ref() else { return plan };
    let wanted = Wanted::of(spec, learned);
    let Some((image, has)) = wanted.misfit(node) else { return plan };
    let own = builds::platform(node).map(|p| p.to_string()).unwrap_or_default();
    let message = format!(
        "Node {} is {own}, and the image {image} has only {has}: the pod is placed anew",
        pods::node_name(pod)
    );
    let reason = "ImagePlatformMismatch";
    plan.merge_status_at(pod, with_condition(pod, "DisruptionTarget", "True", reason, &message, round.now));
    plan.delete(pod, Some(Note::warning(reason, message)), None);
    plan
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::plan::Action;

    #[test]
    fn only_a_pod_that_can_come_back_leaves_the_wrong_board() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "annotations": {
            builds::PLATFORM: "linux/amd64", builds::IMAGES: r#"{"docker.io/library/web:1": ["linux/arm64"]}"#}}}))
        .unwrap();
        let pod = |kind: &str, state: Value, image: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "default", "uid": "p",
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": true}]},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "image": image}]},
                "status": {"phase": "Pending", "containerStatuses": [
                    {"name": "c", "image": image, "imageID": "", "ready": false, "restartCount": 0, "state": state}]},
            }))
            .unwrap()
        };
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff"}});
        let cases = [
            (pod("ReplicaSet", waiting.clone(), "web:1"), true),
            (pod("DaemonSet", waiting.clone(), "web:1"), false),
            (pod("ReplicaSet", waiting, "other"), false),
            (pod("ReplicaSet", json!({"running": {}}), "web:1"), false),
        ];
        for (pod, leaves) in cases {
            let plan = if is_stranded(&pod) {
                reconcile(&pod, &node, &builds::learned(&node), &Round::default())
            } else {
                Plan::default()
            };
            assert_eq!(plan.actions.iter().any(|a| matches!(a, Action::Delete { .. })), leaves, "{pod:?}");
        }
    }
}
