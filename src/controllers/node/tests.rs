use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, Node};
use serde_json::{Value, json};

use super::*;
use crate::{
    controllers::{
        pods,
        sim::{Fate, Sim},
    },
    kinds::placement::{self, NO_EXECUTE, TAINT_NOT_READY, TAINT_UNREACHABLE},
};

fn sim() -> Sim {
    Sim::new(vec![
        Arc::new(NodeLifecycleController { grace: jiff::SignedDuration::from_secs(40) }),
        Arc::new(TaintEvictionController::default()),
        Arc::new(PodCollector),
    ])
}

async fn node(sim: &Sim) {
    sim.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).await;
    ready(sim, "True").await;
}

async fn ready(sim: &Sim, state: &str) {
    sim.change_status::<Node>("n", json!({"conditions": [{"type": "Ready", "status": state}]})).await;
}

async fn pod(sim: &Sim, name: &str, tolerations: Value) {
    sim.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "a"}], "tolerations": tolerations}}))
        .await;
}

fn names(sim: &Sim) -> Vec<String> {
    sim.list::<Pod>()
        .iter()
        .filter(|p| !pods::is_deleting(p))
        .map(|p| p.metadata.name.clone().unwrap())
        .collect()
}

#[tokio::test]
async fn a_lost_node_is_tainted_and_its_pods_leave_when_their_tolerations_end() {
    let mut sim = sim();
    node(&sim).await;
    let tolerate = |seconds: i64| {
        json!([
        {"key": TAINT_NOT_READY, "operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": seconds},
        {"key": TAINT_UNREACHABLE, "operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": seconds}])
    };
    pod(&sim, "long", tolerate(300)).await;
    pod(&sim, "short", tolerate(10)).await;
    pod(&sim, "never", json!([{"operator": "Exists"}])).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert!(placement::taints(&sim.get::<Node>("n")).is_none_or(Vec::is_empty));

    ready(&sim, "Unknown").await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    let taints = placement::taints(&sim.get::<Node>("n")).cloned().unwrap();
    assert_eq!(taints.iter().map(|t| t.key.as_str()).collect::<Vec<_>>(), [TAINT_UNREACHABLE; 2]);
    assert!(sim.list::<Pod>().iter().all(|p| !pods::is_ready(p)));
    assert_eq!(names(&sim), ["long", "never", "short"]);
    sim.pass(11);
    sim.step(&mut |_| {}).await;
    assert_eq!(names(&sim), ["long", "never"]);
    let short = sim.get::<Pod>("short");
    assert_eq!(
        pods::condition(&short, "DisruptionTarget").unwrap().reason.as_deref(),
        Some("DeletionByTaintManager")
    );
    ready(&sim, "True").await;
    sim.pass(400);
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(names(&sim), ["long", "never"], "it came back in time");
    let mut said: Vec<String> = sim.list::<Event>().iter().filter_map(|e| e.message.clone()).collect();
    said.retain(|text| text.contains("eletion of") || text.contains("for deletion"));
    said.sort();
    assert_eq!(
        said,
        ["Cancelling deletion of Pod default/long", "Marking for deletion Pod default/short"],
        "a pod that never has to leave is not spoken of"
    );
}

#[tokio::test]
async fn a_clock_that_is_set_neither_hastens_nor_delays_a_pods_leaving() {
    for years in [10, -10] {
        let mut sim = sim();
        node(&sim).await;
        let tolerations = json!([{"key": TAINT_UNREACHABLE, "operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": 60}]);
        pod(&sim, "p", tolerations).await;
        ready(&sim, "Unknown").await;
        sim.settle(|_| Fate::Leave, |_| {}).await;
        sim.pass(20);
        sim.clock.jump(jiff::SignedDuration::from_hours(24 * 365 * years));
        sim.step(&mut |_| {}).await;
        sim.pass(35);
        sim.step(&mut |_| {}).await;
        assert_eq!(names(&sim), ["p"], "it left before its time when the clock was set by {years} years");
        sim.pass(10);
        sim.step(&mut |_| {}).await;
        assert!(names(&sim).is_empty(), "it did not leave when the clock was set by {years} years");
    }
}

#[tokio::test]
async fn a_pod_whose_data_is_on_the_lost_node_stays_and_says_why() {
    let mut sim = sim();
    node(&sim).await;
    sim.create(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}}}))
        .await;
    sim.create(
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}, "spec": {
        "volumeName": "v", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
    )
    .await;
    sim.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db"}, "spec": {
        "nodeName": "n", "containers": [{"name": "c", "image": "a"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}]}}))
        .await;
    pod(&sim, "other", json!([])).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    ready(&sim, "Unknown").await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(names(&sim), ["db"]);
    // Who wants the node empty gets it empty.
    let mut taints = json!(placement::taints(&sim.get::<Node>("n")));
    taints.as_array_mut().unwrap().push(json!({"key": "mine", "effect": NO_EXECUTE}));
    sim.change::<Node>("n", json!({"spec": {"taints": taints}})).await;
    sim.step(&mut |_| {}).await;
    assert!(names(&sim).is_empty());
}

#[tokio::test]
async fn a_silent_node_becomes_unknown() {
    let mut sim = sim();
    node(&sim).await;
    let row = registry::by_resource("leases.coordination.k8s.io").unwrap();
    let lease = json!({"metadata": {"name": "n"}, "spec": {"holderIdentity": "n", "renewTime": "2026-11-23T12:00:00.000000Z"}});
    sim.objects
        .create(row, "kube-node-lease", lease, &crate::objects::WriteOptions::default())
        .await
        .unwrap();
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert!(placement::is_node_ready(&sim.get("n")));
    sim.pass(41);
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(placement::node_condition(&sim.get("n"), "Ready"), Some("Unknown"));
    assert!(placement::has_taint(&sim.get("n"), TAINT_UNREACHABLE, NO_EXECUTE));
}

#[tokio::test]
async fn pods_that_nobody_can_remove_are_collected() {
    let mut sim = sim();
    node(&sim).await;
    pod(&sim, "orphan", json!([])).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    sim.delete::<Node>("n", None).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(names(&sim), ["orphan"]);
    sim.pass(41);
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert!(names(&sim).is_empty());
}

#[tokio::test]
async fn a_node_out_of_service_lets_go_of_its_pods() {
    let mut sim = sim();
    node(&sim).await;
    pod(&sim, "p", json!([{"operator": "Exists"}])).await;
    ready(&sim, "Unknown").await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    sim.delete::<Pod>("p", None).await;
    sim.step(&mut |_| {}).await;
    assert_eq!(sim.names::<Pod>(), ["p"]);
    let mut taints = json!(placement::taints(&sim.get::<Node>("n")));
    taints
        .as_array_mut()
        .unwrap()
        .push(json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}));
    sim.change::<Node>("n", json!({"spec": {"taints": taints}})).await;
    sim.step(&mut |_| {}).await;
    assert!(sim.names::<Pod>().is_empty());
}
