//! Binding a pod to a node: what `POST pods/<name>/binding` does, whoever asks.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Map, Value, json};

use super::{Error, Objects, WriteOptions};
use crate::{
    clock,
    kinds::{registry, remove},
    store::{Change, Expect, Object, Write},
};

/// The labels of a node that its pods take on (upstream's PodTopologyLabels).
const PLACES: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// What a Binding asks for a pod.
#[derive(Debug, Clone, Default)]
pub struct Binding<'a> {
    pub node: &'a str,
    /// Preconditions.
    pub uid: Option<&'a str>,
    pub resource_version: Option<&'a str>,
    /// Annotations and labels for the pod, over those that it has.
    pub annotations: Option<&'a Map<String, Value>>,
    pub labels: Option<&'a Map<String, Value>>,
}

impl<'a> Binding<'a> {
    /// Of the API's object.
    pub fn of(binding: &'a Value) -> Self {
        let meta = &binding["metadata"];
        let text = |field: &str| meta[field].as_str().filter(|text| !text.is_empty());
        Self {
            node: binding["target"]["name"].as_str().unwrap_or_default(),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            annotations: meta["annotations"].as_object(),
            labels: meta["labels"].as_object(),
        }
    }
}

impl Objects {
    /// Assigns a pod to a node and says so in its `PodScheduled` condition.
    ///
    /// A conflict when the pod is being deleted, has a node already or is not the pod that was meant.
    pub async fn bind(
        &self,
        namespace: &str,
        name: &str,
        binding: &Binding<'_>,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error> {
        loop {
            let row = registry::of::<Pod>();
            let current = self.get(row, namespace, name)?;
            let mut pod = current.value();
            let conflict = |resource: &str, message: String| Error::Conflict {
                resource: resource.to_owned(),
                name: name.to_owned(),
                message,
            };
            let refused = |message: String| conflict("pods/binding", message);
            let revision = current.revision.to_string();
            for (what, asked, is) in [
                ("UID", binding.uid, &*current.meta.uid),
                ("ResourceVersion", binding.resource_version, &revision),
            ] {
                if let Some(asked) = asked.filter(|asked| *asked != is) {
                    return Err(conflict(
                        "pods",
                        format!(
                            "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}"
                        ),
                    ));
                }
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
            pod["spec"]["nodeName"] = binding.node.into();
            remove(&mut pod["status"], "nominatedNodeName");
            for (field, given) in [("annotations", binding.annotations), ("labels", binding.labels)] {
                for (key, value) in given.into_iter().flatten() {
                    pod["metadata"][field][key] = value.clone();
                }
            }
            self.label_with_place(&mut pod);
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

    /// Gives a pod that has a node the labels that say where the node is, over its own ones.
    pub(super) fn label_with_place(&self, pod: &mut Value) {
        let Some(node) = pod["spec"]["nodeName"].as_str() else { return };
        let Ok(node) = self.get(registry::of::<Node>(), "", node) else { return };
        for key in PLACES {
            if let Some(place) = node.meta.label(key) {
                pod["metadata"]["labels"][key] = place.into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_binding_brings_its_labels_and_the_place_of_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        let objects = Objects::new(store, Arc::new(clock::SystemClock));
        let options = WriteOptions::system("test");
        let node =
            json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "east", "x": "y"}}});
        objects.create(registry::of::<Node>(), "", node, &options).await.unwrap();
        let pod = json!({"metadata": {"name": "p", "labels": {"topology.kubernetes.io/zone": "mine", "a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let pod = objects.create(registry::of::<Pod>(), "d", pod, &options).await.unwrap();
        let binding = json!({"metadata": {"name": "p", "resourceVersion": "1", "annotations": {"note": "1"}, "labels": {"a": "c"}},
            "target": {"kind": "Node", "name": "n"}});
        let mut binding = Binding::of(&binding);
        let refused = objects.bind("d", "p", &binding, &options).await.unwrap_err().to_string();
        let start = "Operation cannot be fulfilled on pods \"p\": Precondition failed: ResourceVersion";
        assert!(refused.starts_with(start), "{refused}");
        let revision = pod.revision.to_string();
        binding.resource_version = Some(&revision);
        let bound = objects.bind("d", "p", &binding, &options).await.unwrap().value();
        assert_eq!(bound["spec"]["nodeName"], "n");
        assert_eq!(bound["metadata"]["annotations"], json!({"note": "1"}));
        assert_eq!(bound["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "east", "a": "c"}));
    }
}
