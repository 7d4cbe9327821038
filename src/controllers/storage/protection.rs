//! Claims and volumes in use do not go: a finalizer holds them.
//!
//! Watches: claims and the pods that use them; volumes.

use k8s_openapi::{
    Metadata,
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use super::super::{
    owner,
    plan::{Plan, list},
    pods,
    runner::{Controller, Round, Source},
};
use crate::{
    objects::Objects,
    store::{Key, Object},
};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

pub struct ClaimProtectionController;

impl Controller for ClaimProtectionController {
    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    fn primary(&self) -> &'static str {
        "persistentvolumeclaims"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("pods", |_, pod: &Object| {
            let claims = claims_of(&pod.typed());
            claims.iter().map(|name| Key::new("persistentvolumeclaims", &pod.key.namespace, name)).collect()
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(claim) = objects.get_typed::<PersistentVolumeClaim>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let uses =
            |pod: &Pod| !pods::is_terminal(pod) && claims_of(pod).iter().any(|name| **name == *key.name);
        let used = claim.metadata.deletion_timestamp.is_some()
            && objects.list_typed::<Pod>(Some(&key.namespace)).iter().any(|pod| uses(pod));
        hold(&*claim, CLAIM_FINALIZER, used)
    }
}

/// The claims that a pod uses, ephemeral volumes' included.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| match (
        &volume.persistent_volume_claim,
        &volume.ephemeral,
    ) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", owner::name(&pod.metadata), volume.name)),
        (None, None) => None,
    };
    volumes.into_iter().flatten().filter_map(claim).collect()
}

pub struct VolumeProtectionController;

impl Controller for VolumeProtectionController {
    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    fn primary(&self) -> &'static str {
        "persistentvolumes"
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(volume) = objects.get_typed::<PersistentVolume>("", &key.name) else {
            return Plan::default();
        };
        let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        hold(&*volume, VOLUME_FINALIZER, bound)
    }
}

/// Has the finalizer on an object that is not being deleted, and takes it away from one that is
/// as soon as it is not in use.
fn hold<T: Metadata<Ty = ObjectMeta>>(object: &T, finalizer: &str, in_use: bool) -> Plan {
    let mut plan = Plan::about(object);
    let meta = object.metadata();
    let mut all = meta.finalizers.clone().unwrap_or_default();
    let held = all.iter().any(|f| f == finalizer);
    if meta.deletion_timestamp.is_none() && !held {
        all.push(finalizer.to_owned());
        plan.merge_at(object, json!({ "metadata": { "finalizers": all } }));
    } else if meta.deletion_timestamp.is_some() && held && !in_use {
        let rest = list(all.iter().filter(|f| *f != finalizer));
        plan.merge_at(object, json!({ "metadata": { "finalizers": rest } }));
    }
    plan
}
