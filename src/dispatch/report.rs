//! What nodes say about themselves, and the events they tell of.

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, ObjectReference, PersistentVolume},
};
use serde_json::{Value, json};

use super::work::Loss;
use crate::{
    clock,
    kinds::{Subresource, builds, lease, registry, volumes},
    mqtt::messages::{NodeEvent, NodeState},
    objects::{Error, Objects, Said, WriteOptions},
};

/// The component events come from, as kubectl shows it.
const COMPONENT: &str = "kubelet";
/// How long a node counts as alive after its Lease was renewed, for whoever reads it (kubelet's default).
const LEASE_SECONDS: u32 = 40;
/// Images named in a node's status.
const IMAGES_MAX: usize = 50;

/// Stores the state of a node as its conditions.
pub async fn node_state(
    objects: &Objects,
    node: &str,
    state: &NodeState,
    writer: &WriteOptions,
) -> Result<(), Error> {
    let ready = if state.not_ready.is_empty() {
        ("True", "KubeletReady", "kubelet is posting ready status")
    } else {
        ("False", "KubeletNotReady", state.not_ready.as_str())
    };
    let pressure = |under: bool, yes: [&'static str; 2], no: [&'static str; 2]| {
        if under { ("True", yes[0], yes[1]) } else { ("False", no[0], no[1]) }
    };
    let wanted = [
        (
            "MemoryPressure",
            pressure(
                state.memory_pressure,
                ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
                ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
            ),
        ),
        (
            "DiskPressure",
            pressure(
                state.disk_pressure,
                ["KubeletHasDiskPressure", "kubelet has disk pressure"],
                ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
            ),
        ),
        (
            "PIDPressure",
            pressure(
                state.pid_pressure,
                ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
                ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
            ),
        ),
        ("Ready", ready),
    ];
    let images: Vec<Value> = state
        .images
        .iter()
        .take(IMAGES_MAX)
        .map(|(names, bytes)| json!({"names": names, "sizeBytes": bytes}))
        .collect();
    let now = clock::rfc3339_seconds(objects.clock().now());
    let kind = registry::of::<Node>();
    objects
        .modify(kind, Some(Subresource::Status), "", node, writer, |node| {
            for (name, (status, reason, message)) in &wanted {
                set_condition(&mut node["status"], name, status, reason, message, &now);
            }
            node["status"]["images"] = images.clone().into();
            Ok(())
        })
        .await?;
    tell_platforms(objects, node, state, writer).await
}

/// Writes down what the node learned about images, for whoever places pods.
async fn tell_platforms(
    objects: &Objects,
    name: &str,
    state: &NodeState,
    writer: &WriteOptions,
) -> Result<(), Error> {
    let known = objects.get_typed::<Node>("", name).map(|node| builds::learned(&node)).unwrap_or_default();
    let told: builds::Learned =
        state.platforms.iter().map(|(image, all)| (image.clone(), all.iter().cloned().collect())).collect();
    if known == told {
        return Ok(());
    }
    let text = if told.is_empty() { Value::Null } else { json!(told).to_string().into() };
    let change = |node: &mut Value| {
        let annotations = &mut node["metadata"]["annotations"];
        match (&text, annotations.as_object_mut()) {
            (Value::Null, Some(annotations)) => {
                annotations.remove(builds::IMAGES);
            }
            (Value::Null, None) => {}
            _ => annotations[builds::IMAGES] = text.clone(),
        }
        Ok(())
    };
    objects.modify(registry::of::<Node>(), None, "", name, writer, change).await.map(drop)
}

/// A node that is gone: nothing is known of it any more, or it is known to have been stopped.
pub async fn lost(objects: &Objects, node: &str, loss: Loss, writer: &WriteOptions) {
    let now = clock::rfc3339_seconds(objects.clock().now());
    let kind = registry::of::<Node>();
    let done = objects.modify(kind, Some(Subresource::Status), "", node, writer, |node| {
        for name in ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"] {
            let (value, reason, message) = match loss {
                Loss::Clean if name == "Ready" => ("False", "KubeletNotReady", "node is shutting down"),
                Loss::Clean => continue,
                Loss::Silent => ("Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status."),
            };
            set_condition(&mut node["status"], name, value, reason, message, &now);
        }
        Ok(())
    });
    if let Err(error) = done.await
        && !error.is_not_found()
    {
        tracing::error!(node, %error, "the node could not be marked as lost");
    }
}

/// Notes in a node's Lease that it was alive just now; a node that is not registered has none.
pub async fn alive(objects: &Objects, node: &str, writer: &WriteOptions) -> Result<(), Error> {
    let Some(owner) = objects.get_typed::<Node>("", node).and_then(|node| node.metadata.uid.clone()) else {
        return Ok(());
    };
    let now = clock::rfc3339_micros(objects.clock().now());
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner}]);
    let kind = registry::of::<Lease>();
    let renewed = objects
        .modify(kind, None, lease::NODES, node, writer, |lease| {
            lease["spec"]["renewTime"] = now.as_str().into();
            if lease["metadata"]["ownerReferences"] != owners {
                lease["metadata"]["ownerReferences"] = owners.clone();
                lease["spec"] = spec.clone();
            }
            Ok(())
        })
        .await;
    match renewed {
        Err(error) if error.is_not_found() => {
            let lease = json!({"metadata": {"name": node, "ownerReferences": owners}, "spec": spec});
            objects.create(kind, lease::NODES, lease, writer).await.map(drop)
        }
        renewed => renewed.map(drop),
    }
}

/// Sets a condition; its times move only when it changes, so that a heartbeat writes nothing.
fn set_condition(status: &mut Value, name: &str, value: &str, reason: &str, message: &str, now: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let fresh = json!({
        "type": name, "status": value, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    let Some(old) = conditions.iter_mut().find(|c| c["type"] == name) else {
        conditions.push(fresh);
        return;
    };
    if old["status"] == value && old["reason"] == reason && old["message"] == message {
        return;
    }
    let since = if old["status"] == value { old["lastTransitionTime"].clone() } else { now.into() };
    *old = fresh;
    old["lastTransitionTime"] = since;
}

/// The folder of a deleted volume is gone from its node: nothing of ours holds the volume any more.
/// A volume that is gone already, or is not this node's, is no error.
pub async fn folder_removed(
    objects: &Objects,
    node: &str,
    name: &str,
    uid: &str,
    writer: &WriteOptions,
) -> Result<(), Error> {
    let kind = registry::of::<PersistentVolume>();
    let ours = |volume: &PersistentVolume| {
        volume.metadata.uid.as_deref() == Some(uid)
            && volumes::local_path_node(volume) == Some(node)
            && volumes::local_path_doomed(volume)
    };
    if !objects.get_typed::<PersistentVolume>("", name).is_some_and(|volume| ours(&volume)) {
        return Ok(());
    }
    let released = objects
        .modify(kind, None, "", name, writer, |volume| {
            if let Some(finalizers) = volume["metadata"]["finalizers"].as_array_mut() {
                finalizers.retain(|f| f != volumes::LOCAL_PATH_CLEANUP);
            }
            Ok(())
        })
        .await;
    match released {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Records what nodes tell of; the same thing again is counted, not repeated.
pub async fn events(objects: &Objects, node: &str, events: Vec<NodeEvent>) {
    for event in events {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let about = ObjectReference {
            api_version: some("v1"),
            kind: some(if event.namespace.is_empty() { "Node" } else { "Pod" }),
            namespace: some(&event.namespace),
            name: some(&event.name),
            uid: some(&event.uid),
            field_path: some(&event.field_path),
            resource_version: None,
        };
        let said = Said {
            warning: event.warning,
            reason: &event.reason,
            message: &event.message,
            component: COMPONENT,
            host: node,
            time: Some(event.time),
        };
        objects.say(&about, said).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_stays_keeps_its_times() {
        let mut status = json!({});
        set_condition(&mut status, "Ready", "True", "KubeletReady", "ok", "2026-01-01T00:00:00Z");
        let before = status.clone();
        set_condition(&mut status, "Ready", "True", "KubeletReady", "ok", "2026-01-02T00:00:00Z");
        assert_eq!(status, before);
        set_condition(&mut status, "Ready", "Unknown", "NodeStatusUnknown", "gone", "2026-01-03T00:00:00Z");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-01-03T00:00:00Z");
        assert_eq!(status["conditions"].as_array().map(Vec::len), Some(1));
    }
}
