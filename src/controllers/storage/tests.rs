use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use serde_json::{Value, json};

use super::*;
use crate::{
    controllers::sim::{Fate, Sim},
    kinds::volumes::{self, SELECTED_NODE},
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
    assert_eq!(volumes::local_path_node(&volume), Some("n"));

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
        Some(&[volumes::LOCAL_PATH_CLEANUP.to_owned()][..]),
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

#[tokio::test]
async fn an_ephemeral_volume_has_a_claim_of_its_pod() {
    let mut sim = Sim::new(vec![Arc::new(EphemeralVolumeController)]);
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "a"}], "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}]}})
    };
    sim.create(pod("p")).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    let claim = sim.get::<PersistentVolumeClaim>("p-v");
    assert_eq!(claim.metadata.labels.as_ref().unwrap()["a"], "b");
    let pod = sim.get::<Pod>("p");
    assert_eq!(claim.metadata.owner_references.as_ref().unwrap()[0].uid, pod.metadata.uid.clone().unwrap());
    let foreign = ephemeral::reconcile(&pod, |_| Some(false));
    assert!(foreign.actions.is_empty());
    assert_eq!(
        foreign.events[0].message,
        "ephemeral volume v: PVC default/p-v was not created for pod default/p (pod is not owner)"
    );
}

/// What is said of a claim, and the phase it gets.
fn said(claim: &Value, volumes: &[Value], class: Option<Value>) -> (String, String) {
    let observed = claims::Observed {
        volumes: volumes.iter().map(|v| Arc::new(serde_json::from_value(v.clone()).unwrap())).collect(),
        class: class.map(|c| Arc::new(serde_json::from_value(c).unwrap())),
        default_class: None,
        node: None,
        waiting_pods: vec!["p".to_owned()],
        local_path: Some("/data".into()),
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let claim: PersistentVolumeClaim = serde_json::from_value(claim.clone()).unwrap();
    let plan = claims::reconcile(&claim, &observed);
    let phase = plan.actions.iter().find_map(|action| match action {
        crate::controllers::plan::Action::Status { status, .. } => {
            status["phase"].as_str().map(str::to_owned)
        }
        _ => None,
    });
    let events: Vec<_> = plan.events.iter().map(|e| format!("{}: {}", e.reason, e.message)).collect();
    (phase.unwrap_or_default(), events.join("; "))
}

#[test]
fn the_binder_speaks_upstreams_words() {
    let claim = |extra: Value| {
        merge_patch(
            &json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "v",
                "resources": {"requests": {"storage": "1Gi"}}}}),
            &extra,
        )
    };
    let volume = |extra: Value| {
        let base = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        vec![merge_patch(&base, &json!({ "spec": extra }))]
    };
    let completed = json!({"metadata": {"annotations": {volumes::BIND_COMPLETED: "yes"}}});
    let class = |mode: &str, provisioner: &str| {
        Some(json!({"metadata": {"name": "k"}, "provisioner": provisioner, "volumeBindingMode": mode}))
    };
    let unnamed = json!({"spec": {"volumeName": null, "storageClassName": "k"}});
    let cannot = |why: &str| format!("VolumeMismatch: Cannot bind to requested volume \"v\": {why}");
    let other = json!({"claimRef": {"name": "other", "namespace": "ns", "uid": "x"}});
    for (claim, volumes, class, phase, want) in [
        (claim(json!({})), vec![], None, "Pending", String::new()),
        (claim(json!({})), volume(json!({})), None, "Bound", String::new()),
        (
            claim(json!({})),
            volume(json!({"capacity": {"storage": "1Mi"}})),
            None,
            "Pending",
            cannot("requested PV is too small"),
        ),
        (
            claim(json!({})),
            volume(json!({"storageClassName": "x"})),
            None,
            "Pending",
            cannot("storageClassName does not match"),
        ),
        (
            claim(json!({})),
            volume(json!({"volumeMode": "Block"})),
            None,
            "Pending",
            cannot("incompatible volumeMode"),
        ),
        (
            claim(json!({})),
            volume(json!({"accessModes": ["ReadOnlyMany"]})),
            None,
            "Pending",
            cannot("incompatible accessMode"),
        ),
        (
            claim(json!({})),
            volume(other.clone()),
            None,
            "Pending",
            "FailedBinding: volume \"v\" already bound to a different claim.".to_owned(),
        ),
        (
            claim(completed.clone()),
            vec![],
            None,
            "Lost",
            "ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned(),
        ),
        (
            claim(completed.clone()),
            volume(other),
            None,
            "Lost",
            "ClaimMisbound: Two claims are bound to the same volume, this one is bound incorrectly"
                .to_owned(),
        ),
        (
            claim(merge_patch(&completed, &json!({"spec": {"volumeName": ""}}))),
            vec![],
            None,
            "Lost",
            "ClaimLost: Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"
                .to_owned(),
        ),
        (
            claim(unnamed.clone()),
            vec![],
            None,
            "Pending",
            "ProvisioningFailed: storageclass.storage.k8s.io \"k\" not found".to_owned(),
        ),
        (
            claim(unnamed.clone()),
            vec![],
            class("WaitForFirstConsumer", "x/y"),
            "Pending",
            "WaitForPodScheduled: waiting for pod p to be scheduled".to_owned(),
        ),
        (
            claim(unnamed),
            vec![],
            class("Immediate", "kubernetes.io/no-provisioner"),
            "Pending",
            "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner".to_owned(),
        ),
    ] {
        assert_eq!(said(&claim, &volumes, class), (phase.to_owned(), want), "{claim}");
    }
}

#[tokio::test]
async fn a_retained_folder_stays_and_a_deleted_volume_waits_for_its_claim() {
    for (policy, finalizers) in [("Retain", 0), ("Delete", 1)] {
        let mut sim = sim();
        sim.create(json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "k"},
            "provisioner": volumes::LOCAL_PATH, "reclaimPolicy": policy, "volumeBindingMode": "WaitForFirstConsumer"})).await;
        sim.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).await;
        claim(&sim, json!({"storageClassName": "k"})).await;
        sim.change::<PersistentVolumeClaim>("c", json!({"metadata": {"annotations": {SELECTED_NODE: "n"}}}))
            .await;
        sim.settle(|_| Fate::Leave, |_| {}).await;
        let name = sim.list::<PersistentVolume>()[0].metadata.name.clone().unwrap();
        sim.delete::<PersistentVolume>(&name, None).await;
        sim.settle(|_| Fate::Leave, |_| {}).await;
        let volume = sim.get::<PersistentVolume>(&name);
        assert!(!volumes::local_path_doomed(&volume), "its claim is still there");
        sim.delete::<PersistentVolumeClaim>("c", None).await;
        sim.settle(|_| Fate::Leave, |_| {}).await;
        let left = sim.list::<PersistentVolume>();
        assert_eq!(left.len(), finalizers, "{policy}");
        assert!(left.iter().all(|volume| volumes::local_path_doomed(volume)));
    }
}

#[tokio::test]
async fn a_folder_grows_as_far_as_its_node_has_room() {
    let mut sim = sim();
    sim.create(local_path::default_class()).await;
    sim.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n",
        "annotations": {volumes::LOCAL_PATH_CAPACITY: "3221225472"}}}))
        .await;
    claim(&sim, json!({"storageClassName": "local-path"})).await;
    sim.change::<PersistentVolumeClaim>("c", json!({"metadata": {"annotations": {SELECTED_NODE: "n"}}}))
        .await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    for (asked, capacity, failed) in [("4Gi", "1Gi", true), ("2Gi", "2Gi", false)] {
        let size = json!({"spec": {"resources": {"requests": {"storage": asked}}}});
        sim.change::<PersistentVolumeClaim>("c", size).await;
        sim.settle(|_| Fate::Leave, |_| {}).await;
        let status = sim.get::<PersistentVolumeClaim>("c").status.clone().unwrap();
        assert_eq!(status.capacity.unwrap()["storage"].0, capacity);
        assert_eq!(status.conditions.is_some_and(|c| c[0].type_ == "ControllerResizeError"), failed);
    }
    let events = sim.list::<k8s_openapi::api::core::v1::Event>();
    let mut said: Vec<_> =
        events.iter().filter_map(|e| e.reason.clone()).filter(|r| r.contains("Resize")).collect();
    said.sort();
    assert_eq!(said, ["VolumeResizeFailed", "VolumeResizeSuccessful"]);
}
