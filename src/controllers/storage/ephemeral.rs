//! Claims of generic ephemeral volumes: made with their pod, gone with it.
//!
//! Watches: pods, and claims that are gone. Source: `pkg/controller/volume/ephemeral/controller.go`.

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::super::{
    owner,
    plan::{Note, Plan},
    runner::{Controller, Round, Source},
};
use crate::{
    objects::Objects,
    store::{Key, Object},
};

pub struct EphemeralVolumeController;

impl Controller for EphemeralVolumeController {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn primary(&self) -> &'static str {
        "pods"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("persistentvolumeclaims", |_, claim: &Object| {
            let claim = claim.typed::<PersistentVolumeClaim>();
            let pod = owner::controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
            pod.map(|pod| Key::new("pods", owner::namespace(&claim.metadata), &pod.name))
                .into_iter()
                .collect()
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(pod) = objects.get_typed::<Pod>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        reconcile(&pod, |name| {
            objects
                .get_typed::<PersistentVolumeClaim>(&key.namespace, name)
                .map(|claim| owner::is_controlled_by(&claim.metadata, owner::uid(&pod.metadata)))
        })
    }
}

/// Plans the claims that a pod lacks. `existing` says of a name whether there is a claim, and
/// whether it is the pod's.
pub fn reconcile(pod: &Pod, existing: impl Fn(&str) -> Option<bool>) -> Plan {
    let mut plan = Plan::about(pod);
    if pod.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) else {
            continue;
        };
        let name = format!("{}-{}", owner::name(&pod.metadata), volume.name);
        match existing(&name) {
            Some(true) => {}
            Some(false) => {
                let (namespace, pod) = (owner::namespace(&pod.metadata), owner::name(&pod.metadata));
                plan.event(Note::warning(
                    "FailedBinding",
                    format!(
                        "ephemeral volume {}: PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)",
                        volume.name
                    ),
                ));
            }
            None => {
                let given = template.metadata.clone().unwrap_or_default();
                let claim = PersistentVolumeClaim {
                    metadata: ObjectMeta {
                        name: Some(name),
                        namespace: pod.metadata.namespace.clone(),
                        annotations: given.annotations,
                        labels: given.labels,
                        owner_references: Some(vec![owner::controller_reference(pod)]),
                        ..ObjectMeta::default()
                    },
                    spec: Some(template.spec.clone()),
                    status: None,
                };
                let text = format!("ephemeral volume {}: create PVC: {{error}}", volume.name);
                plan.create(&claim, None, Some(Note::warning("FailedBinding", text)));
            }
        }
    }
    plan
}
