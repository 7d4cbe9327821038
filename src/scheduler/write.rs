//! Writing decisions down.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::{NAME, preempt::Preemption, snapshot::PodInfo, volumes::Step};
use crate::{
    clock,
    kinds::{Subresource, registry, volumes},
    objects::{Binding, DeleteOptions, Error, Objects, WriteOptions},
};

/// What became of a decision.
pub struct Written {
    pub pod: Arc<PodInfo>,
    pub outcome: Outcome,
}

pub enum Outcome {
    Bound,
    /// The pod's claims are being bound; it waits for them.
    ClaimsPrepared,
    Refused,
    /// The pod is gone, or another's.
    Gone,
    Failed(Error),
}

impl Outcome {
    fn of(result: Result<(), Error>, good: Self) -> Self {
        match result {
            Ok(()) => good,
            Err(error) if error.is_not_found() => Self::Gone,
            Err(error) => Self::Failed(error),
        }
    }
}

fn options() -> WriteOptions {
    WriteOptions::system(NAME).tracked_as("kube-scheduler")
}

pub async fn bind(objects: Objects, pod: Arc<PodInfo>, node: String) -> Written {
    let binding = Binding { node: &node, uid: Some(pod.uid()), ..Binding::default() };
    let result = objects.bind(pod.namespace(), pod.name(), &binding, &options()).await;
    if result.is_ok() {
        let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
        event(&objects, &pod, false, "Scheduled", &message).await;
    }
    Written { outcome: Outcome::of(result.map(drop), Outcome::Bound), pod }
}

pub async fn claims(objects: Objects, pod: Arc<PodInfo>, node: String, steps: Vec<Step>) -> Written {
    let mut result = Ok(());
    for step in steps {
        result = match step {
            Step::Reserve { claim, volume } => reserve(&objects, &claim, &volume).await,
            Step::Provision { claim } => mark(&objects, &claim, &node).await,
        };
        if result.is_err() {
            break;
        }
    }
    Written { outcome: Outcome::of(result, Outcome::ClaimsPrepared), pod }
}

async fn reserve(
    objects: &Objects,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<(), Error> {
    let reference = json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim.metadata.namespace,
        "name": claim.metadata.name, "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
    });
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let row = registry::of::<PersistentVolume>();
    let change = |object: &mut Value| {
        if object["spec"]["claimRef"]["uid"].is_string() {
            let message = "the volume has a claim already".to_owned();
            return Err(Error::Conflict { resource: row.resource(), name: name.to_owned(), message });
        }
        object["spec"]["claimRef"] = reference.clone();
        object["metadata"]["annotations"][volumes::BOUND_BY_CONTROLLER] = "yes".into();
        Ok(())
    };
    objects.modify(row, None, "", name, &options(), change).await.map(drop)
}

async fn mark(objects: &Objects, claim: &PersistentVolumeClaim, node: &str) -> Result<(), Error> {
    let (namespace, name) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
    let row = registry::of::<PersistentVolumeClaim>();
    let change = |object: &mut Value| {
        object["metadata"]["annotations"][volumes::SELECTED_NODE] = node.into();
        Ok(())
    };
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    objects.modify(row, None, namespace, name, &options(), change).await.map(drop)
}

pub async fn refuse(
    objects: Objects,
    pod: Arc<PodInfo>,
    message: String,
    preemption: Option<Preemption>,
) -> Written {
    event(&objects, &pod, true, "FailedScheduling", &message).await;
    let node = preemption.as_ref().map(|p| p.node.clone());
    let result = condition(&objects, &pod, &message, node.as_deref()).await;
    if let (Ok(()), Some(preemption)) = (&result, preemption) {
        for victim in &preemption.victims {
            evict(&objects, &pod, victim, &preemption.node).await;
        }
    }
    Written { outcome: Outcome::of(result, Outcome::Refused), pod }
}

/// Says in the pod why it waits, and where room is being made for it.
async fn condition(objects: &Objects, pod: &PodInfo, message: &str, node: Option<&str>) -> Result<(), Error> {
    let now = clock::rfc3339_seconds(objects.clock().now());
    set_condition(objects, pod, "PodScheduled", "False", "Unschedulable", message, &now, |status| {
        if let Some(node) = node {
            status["nominatedNodeName"] = node.into();
        }
    })
    .await
}

#[expect(clippy::too_many_arguments, reason = "a condition has that many fields")]
async fn set_condition(
    objects: &Objects,
    pod: &PodInfo,
    kind: &str,
    state: &str,
    reason: &str,
    message: &str,
    now: &str,
    more: impl Fn(&mut Value),
) -> Result<(), Error> {
    let row = registry::of::<Pod>();
    let change = |object: &mut Value| {
        if object["metadata"]["uid"].as_str() != Some(pod.uid()) {
            return Err(Error::NotFound { resource: row.resource(), name: pod.name().to_owned() });
        }
        let generation = object["metadata"]["generation"].clone();
        let status = &mut object["status"];
        let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let old = conditions.iter().position(|c| c["type"] == kind).map(|index| conditions.remove(index));
        let since = old
            .as_ref()
            .filter(|c| c["status"] == state)
            .map_or(Value::Null, |c| c["lastTransitionTime"].clone());
        conditions.push(json!({
            "type": kind, "status": state, "reason": reason, "message": message, "lastProbeTime": null,
            "lastTransitionTime": if since.is_null() { now.into() } else { since },
            "observedGeneration": generation,
        }));
        status["conditions"] = conditions.into();
        more(status);
        Ok(())
    };
    objects
        .modify(row, Some(Subresource::Status), pod.namespace(), pod.name(), &options(), change)
        .await
        .map(drop)
}

/// Makes a victim go.
async fn evict(objects: &Objects, pod: &PodInfo, victim: &PodInfo, node: &str) {
    let now = clock::rfc3339_seconds(objects.clock().now());
    let message = format!("{NAME}: preempting to accommodate a higher priority pod");
    let marked = set_condition(
        objects,
        victim,
        "DisruptionTarget",
        "True",
        "PreemptionByScheduler",
        &message,
        &now,
        |_| {},
    );
    let delete = DeleteOptions { uid: Some(victim.uid().to_owned()), ..DeleteOptions::default() };
    let outcome = match marked.await {
        Ok(()) => objects
            .delete(registry::of::<Pod>(), victim.namespace(), victim.name(), &delete, &options())
            .await
            .map(drop),
        refused => refused,
    };
    match outcome {
        Ok(()) => {
            let message = format!("Preempted by pod {} on node {node}", pod.uid());
            event(objects, victim, false, "Preempted", &message).await;
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => tracing::warn!(pod = victim.name(), %error, "preempting"),
    }
}

async fn event(objects: &Objects, pod: &PodInfo, warning: bool, reason: &str, message: &str) {
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace().to_owned()),
        name: Some(pod.name().to_owned()),
        uid: Some(pod.uid().to_owned()),
        resource_version: pod.pod.metadata.resource_version.clone(),
        field_path: None,
    };
    objects.event(&about, warning, reason, message, NAME).await;
}
