use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use serde_json::{Value, json};

use super::*;
use crate::{
    controllers::sim::{Fate, Sim},
    kinds::volumes::SELECTED_NODE,
    patch::merge_patch,
};

fn sim() -> Sim {
    Sim::new(vec![
        Arc::new(ClaimController { local_path: Some("/data".into()) }),
        Arc::new(VolumeController),
        Arc::new(ClaimProtectionController),
        Arc::new(VolumeProtectionController),
    ])
}

async fn claim(sim: &Sim, spec: Value) {
    let base = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}});
    sim.create(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": merge_patch(&base, &spec)})).await;
}

async fn volume(sim: &Sim, name: &str, size: &str) {
    sim.create(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}, "persistentVolumeReclaimPolicy": "Retain"}}))
        .await;
}

fn phases(sim: &Sim) -> (String, Vec<String>) {
    let claim = sim.get::<PersistentVolumeClaim>("c");
    let volumes = sim.list::<PersistentVolume>();
    let phase = |v: &Arc<PersistentVolume>| {
        format!(
            "{} {}",
            v.metadata.name.as_deref().unwrap(),
            v.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
        )
    };
    (
        claim.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default(),
        volumes.iter().map(phase).collect(),
    )
}

#[tokio::test]
async fn a_claim_takes_the_smallest_volume_that_suits_and_leaves_it_released() {
    let mut sim = sim();
    claim(&sim, json!({})).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(phases(&sim).0, "Pending");
    for (name, size) in [("big", "10Gi"), ("fit", "2Gi"), ("tiny", "1Mi")] {
        volume(&sim, name, size).await;
    }
    sim.settle(|_| Fate::Leave, |_| {}).await;
    let expected = ["big Available", "fit Bound", "tiny Available"].map(str::to_owned);
    assert_eq!(phases(&sim), ("Bound".to_owned(), expected.to_vec()));
    sim.delete::<PersistentVolumeClaim>("c", None).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert!(sim.list::<PersistentVolumeClaim>().is_empty());
    let fit = sim.get::<PersistentVolume>("fit");
    assert_eq!(fit.status.as_ref().unwrap().phase.as_deref(), Some("Released"));
}

#[tokio::test]
async fn the_built_in_class_makes_a_folder_on_the_chosen_node_and_takes_it_back() {
    let mut sim = sim();
    sim.create(local_path::default_class()).await;
    sim.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).await;
    claim(&sim, json!({"storageClassName": "local-path"})).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(phases(&sim), ("Pending".to_owned(), vec![]), "it waits for its first consumer");
    sim.change::<PersistentVolumeClaim>("c", json!({"metadata": {"annotations": {SELECTED_NODE: "n"}}}))
        .await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(phases(&sim).0, "Bound");
    let volume = sim.list::<PersistentVolume>().remove(0);
    let path = &volume.spec.as_ref().unwrap().host_path.as_ref().unwrap().path;
    assert_eq!(*path, format!("/data/{}_default_c", volume.metadata.name.as_ref().unwrap()));
    assert_eq!(local_path::node(&volume), Some("n"));

    // In use, the claim stays although it is deleted.
    sim.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "a"}], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}))
        .await;
    sim.delete::<PersistentVolumeClaim>("c", None).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(sim.names::<PersistentVolumeClaim>(), ["c"]);
    sim.delete::<Pod>("p", Some(0)).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert!(sim.list::<PersistentVolumeClaim>().is_empty());
    let volume = sim.list::<PersistentVolume>().remove(0);
    assert_eq!(
        volume.metadata.finalizers.as_deref(),
        Some(&[local_path::CLEANUP.to_owned()][..]),
        "its node removes the folder"
    );
    sim.delete::<Node>("n", None).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert!(sim.list::<PersistentVolume>().is_empty());
}

#[tokio::test]
async fn a_bound_claim_that_loses_its_volume_is_lost() {
    let mut sim = sim();
    claim(&sim, json!({})).await;
    volume(&sim, "v", "1Gi").await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    sim.change::<PersistentVolume>("v", json!({"metadata": {"finalizers": null}})).await;
    sim.delete::<PersistentVolume>("v", None).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    assert_eq!(phases(&sim).0, "Lost");
}
