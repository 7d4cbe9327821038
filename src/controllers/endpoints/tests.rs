use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{Endpoints, Pod},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

use super::*;
use crate::controllers::sim::{Fate, Sim};

fn sim() -> Sim {
    Sim::new(vec![Arc::new(SliceController), Arc::new(EndpointsController), Arc::new(MirroringController)])
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
}

async fn pod(sim: &Sim, name: &str, ip: &str, ready: bool) {
    sim.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "a", "ports": [{"name": "http", "containerPort": 8080}]}]}}))
        .await;
    let state = if ready { "True" } else { "False" };
    sim.change_status::<Pod>(
        name,
        json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": state}]}),
    )
    .await;
}

fn endpoints(sim: &Sim) -> Vec<(String, bool)> {
    let mut all: Vec<(String, bool)> = sim
        .list::<EndpointSlice>()
        .iter()
        .flat_map(|s| s.endpoints.clone().unwrap_or_default())
        .map(|e| (e.addresses[0].clone(), e.conditions.and_then(|c| c.ready).unwrap_or(false)))
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn slices_and_endpoints_follow_the_pods() {
    let mut sim = sim();
    sim.create(service(json!({"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80, "targetPort": "http"}]})))
        .await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(sim.list::<EndpointSlice>().len(), 1, "an empty slice says that there is nobody");
    pod(&sim, "a", "10.1.0.1", true).await;
    pod(&sim, "b", "10.1.0.2", false).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(endpoints(&sim), [("10.1.0.1".to_owned(), true), ("10.1.0.2".to_owned(), false)]);
    let slices = sim.list::<EndpointSlice>();
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    let legacy = sim.get::<Endpoints>("web");
    let subset = &legacy.subsets.as_ref().unwrap()[0];
    assert_eq!(subset.addresses.as_ref().unwrap()[0].ip, "10.1.0.1");
    assert_eq!(subset.not_ready_addresses.as_ref().unwrap()[0].ip, "10.1.0.2");

    sim.delete::<Pod>("a", None).await;
    sim.step(&mut |_| {}).await;
    assert_eq!(endpoints(&sim)[0], ("10.1.0.1".to_owned(), false), "terminating");
    sim.delete::<Pod>("a", Some(0)).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(endpoints(&sim), [("10.1.0.2".to_owned(), false)]);
    let before = sim.objects.store().revision();
    sim.step(&mut |_| {}).await;
    assert_eq!(sim.objects.store().revision(), before, "nothing changes, nothing is written");
}

#[tokio::test]
async fn endpoints_written_by_hand_are_mirrored() {
    let mut sim = sim();
    sim.create(service(json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}))).await;
    sim.create(json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}))
        .await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(endpoints(&sim), [("192.0.2.1".to_owned(), true)]);
}
