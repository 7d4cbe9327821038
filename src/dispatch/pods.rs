//! What nodes say about their pods, written into the pods.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::{
    kinds::{Subresource, registry},
    mqtt::messages::{PASSING_CONDITIONS, PodReport},
    objects::{DeleteOptions, Error, Objects, WriteOptions},
};

/// Stores one report. A pod that is not there, is another one by now, or is not this node's, is no
/// error: the report is late.
pub async fn report(
    objects: &Objects,
    node: &str,
    report: PodReport,
    writer: &WriteOptions,
) -> Result<(), Error> {
    let kind = registry::of::<Pod>();
    let Ok(current) = objects.get(kind, &report.namespace, &report.name) else { return Ok(()) };
    if *current.meta.uid != report.uid || node_name(&current.typed()) != Some(node) {
        return Ok(());
    }
    let status: Value = serde_json::from_str(report.status.get())
        .map_err(|e| Error::BadRequest(format!("status of pod {}: {e}", report.name)))?;
    let stored = objects
        .modify(kind, Some(Subresource::Status), &report.namespace, &report.name, writer, |pod| {
            if pod["metadata"]["uid"] == report.uid.as_str() {
                merge(pod, &status);
            }
            Ok(())
        })
        .await;
    match stored {
        Ok(_) => {}
        Err(error) if error.is_not_found() => return Ok(()),
        // What the node says was refused as invalid: saying it again would not help.
        Err(error @ Error::Invalid { .. }) => tracing::error!(node, %error, "a pod's status was refused"),
        Err(error) => return Err(error),
    }
    if report.gone && current.meta.deleting {
        let delete = DeleteOptions {
            grace_seconds: Some(0),
            uid: Some(report.uid.clone()),
            ..DeleteOptions::default()
        };
        match objects.delete(kind, &report.namespace, &report.name, &delete, writer).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The node's status over the stored one: conditions of others, and what the master keeps there,
/// stay (`k8s.io/kubernetes/pkg/kubelet/status.mergePodStatus`).
fn merge(pod: &mut Value, said: &Value) {
    let old = std::mem::replace(&mut pod["status"], said.clone());
    let new = &mut pod["status"];
    let conditions_of = |status: &Value| status["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions = conditions_of(new);
    for kept in conditions_of(&old) {
        let taken_back = kept["type"].as_str().is_some_and(|t| PASSING_CONDITIONS.contains(&t));
        if !taken_back && !conditions.iter().any(|c| c["type"] == kept["type"]) {
            conditions.push(kept);
        }
    }
    new["conditions"] = conditions.into();
    for field in ["nominatedNodeName", "qosClass", "resourceClaimStatuses"] {
        if new.get(field).is_none_or(Value::is_null)
            && let Some(kept) = old.get(field)
        {
            new[field] = kept.clone();
        }
    }
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_of_others_stay() {
        let mut pod = json!({"status": {
            "phase": "Pending",
            "qosClass": "Burstable",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "False"},
                {"type": "example.com/gate", "status": "True"},
            ],
        }});
        merge(&mut pod, &json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        assert_eq!(
            pod["status"],
            json!({"phase": "Running", "qosClass": "Burstable", "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "PodScheduled", "status": "True"},
                {"type": "example.com/gate", "status": "True"},
            ]})
        );
    }
}
