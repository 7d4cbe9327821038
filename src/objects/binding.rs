//! Binding a pod to a node: what `POST pods/<name>/binding` does, whoever asks.

use std::sync::Arc;

use serde_json::json;

use super::{Error, Objects, WriteOptions};
use crate::{
    clock,
    kinds::registry,
    store::{Change, Expect, Object, Write},
};

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
            let row = registry::of::<k8s_openapi::api::core::v1::Pod>();
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
}
