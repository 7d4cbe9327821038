//! Binding a pod to a node: what `POST pods/<name>/binding` does, whoever asks.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::{Error, Objects, WriteOptions};
use crate::{
    clock,
    kinds::registry,
    store::{Change, Expect, Object, Write},
};

/// The labels of a node that its pods take on (upstream's PodTopologyLabels).
const PLACES: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

impl Objects {
    /// Assigns a pod to a node and says so in its `PodScheduled` condition.
    ///
    /// A conflict when the pod is being deleted, has a node already or, with `uid` given, is
    /// another pod.
    pub async fn bind(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        node: &str,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error> {
        loop {
            let row = registry::of::<Pod>();
            let current = self.get(row, namespace, name)?;
            let mut pod = current.value();
            let refused = |message: String| Error::Conflict {
                resource: "pods/binding".to_owned(),
                name: name.to_owned(),
                message,
            };
            if uid.is_some_and(|uid| *uid != *current.meta.uid) {
                return Err(refused(format!(
                    "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                    uid.unwrap_or_default(),
                    current.meta.uid
                )));
            }
            if current.meta.deleting {
                return Err(refused(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            let assigned = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            if !assigned.is_empty() {
                return Err(refused(format!("pod {name} is already assigned to node {assigned:?}")));
            }
            if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                return Err(refused(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            pod["spec"]["nodeName"] = node.into();
            self.label_with_place(&mut pod, node);
            let now = clock::rfc3339_seconds(self.clock.now());
            let scheduled = json!({
                "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
                "observedGeneration": pod["metadata"]["generation"],
            });
            let conditions = &mut pod["status"]["conditions"];
            let mut all = conditions.as_array().cloned().unwrap_or_default();
            all.retain(|c| c["type"] != "PodScheduled");
            all.push(scheduled);
            *conditions = all.into();
            let write = Write {
                key: current.key.clone(),
                expect: Expect::At(current.revision),
                change: Change::Put { value: pod, durable: true },
            };
            match self.commit(write, options).await {
                Err(Error::Conflict { .. }) => {}
                done => return done,
            }
        }
    }
    /// Gives a pod the labels that say where its node is, where it has no such labels of its own.
    fn label_with_place(&self, pod: &mut Value, node: &str) {
        let Ok(node) = self.get(registry::of::<Node>(), "", node) else { return };
        for key in PLACES {
            if let Some(place) = node.meta.label(key)
                && pod["metadata"]["labels"][key].is_null()
            {
                pod["metadata"]["labels"][key] = place.into();
            }
        }
    }
}
