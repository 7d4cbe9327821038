//! Claims: from Pending to Bound.
//!
//! Watches: claims, volumes, classes. Observes: all volumes, the claim's class. Both sides of a
//! binding are written before either counts: the volume's reference first, then the claim's
//! volume name with the `bind-completed` mark, so that no volume is ever given twice.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition,
            PersistentVolumeClaimStatus, Pod,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use serde_json::json;

use super::{
    super::{
        owner,
        plan::{Note, Plan},
        runner::{Controller, Round, Source},
    },
    claim_reference, local_path,
    protection::claims_of,
};
use crate::{
    kinds::{
        placement,
        volumes::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE},
    },
    objects::Objects,
    store::{Key, Object},
};

const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// The condition of a claim that could not grow (`PersistentVolumeClaimControllerResizeError`).
const RESIZE_FAILED: &str = "ControllerResizeError";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

pub struct ClaimController {
    /// Where the built-in provisioner has its folders; `None`: it is off.
    pub local_path: Option<String>,
}

impl Controller for ClaimController {
    fn name(&self) -> &'static str {
        "persistentvolume-controller"
    }

    fn primary(&self) -> &'static str {
        "persistentvolumeclaims"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("persistentvolumes", |objects, volume: &Object| {
                let volume = volume.typed::<PersistentVolume>();
                let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
                match reference.and_then(|r| Some((r.namespace?, r.name?))) {
                    Some((namespace, name)) => vec![Key::new("persistentvolumeclaims", &namespace, &name)],
                    None => unbound(objects),
                }
            }),
            Source::new("storageclasses.storage.k8s.io", |objects, _| unbound(objects)),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(claim) = objects.get_typed::<PersistentVolumeClaim>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let class_name = volumes::claim_class(&claim);
        let volumes: Vec<Arc<PersistentVolume>> = objects.list_typed(None);
        let bound_to = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        let holder = volumes.iter().find(|v| v.metadata.name.as_deref() == bound_to);
        let holder = holder.and_then(|v| volumes::local_path_node(v)).filter(|_| is_bound(&claim));
        let selected = owner::annotation(&claim.metadata, SELECTED_NODE);
        let node = holder.or(selected).and_then(|name| objects.get_typed("", name));
        let observed = Observed {
            class: objects.get_typed("", class_name),
            default_class: default_class(objects),
            node,
            waiting_pods: if selected.is_none() && !is_bound(&claim) {
                waiting_pods(objects, key)
            } else {
                Vec::new()
            },
            local_path: self.local_path.clone(),
            volumes,
            now: round.now,
        };
        reconcile(&claim, &observed)
    }
}

/// The class that claims without one get; the newest of several.
fn default_class(objects: &Objects) -> Option<String> {
    let classes = objects.list_typed::<StorageClass>(None);
    let is_default = |class: &&Arc<StorageClass>| owner::annotation(&class.metadata, DEFAULT) == Some("true");
    let newest = classes.iter().filter(is_default).max_by_key(|class| {
        (class.metadata.creation_timestamp.as_ref().map(|t| t.0), std::cmp::Reverse(&class.metadata.name))
    });
    newest.and_then(|class| class.metadata.name.clone())
}

/// Pods without a node that use the claim.
fn waiting_pods(objects: &Objects, claim: &Key) -> Vec<String> {
    let waits = |pod: &&Arc<Pod>| {
        let unbound =
            pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().unwrap_or_default().is_empty());
        unbound && claims_of(pod).iter().any(|name| **name == *claim.name)
    };
    let pods = objects.list_typed::<Pod>(Some(&claim.namespace));
    pods.iter().filter(waits).map(|pod| owner::name(&pod.metadata).to_owned()).collect()
}

/// The claims that wait for a volume.
fn unbound(objects: &Objects) -> Vec<Key> {
    let claims = objects.store().list("persistentvolumeclaims", None).items;
    let waits = |claim: &&Arc<Object>| !is_bound(&claim.typed());
    claims.iter().filter(waits).map(|claim| claim.key.clone()).collect()
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    owner::annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

pub struct Observed {
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub class: Option<Arc<StorageClass>>,
    /// The cluster's default class.
    pub default_class: Option<String>,
    /// The node that has the claim's folder, or that the scheduler has chosen for it.
    pub node: Option<Arc<Node>>,
    /// Pods that use the claim and have no node yet.
    pub waiting_pods: Vec<String>,
    pub local_path: Option<String>,
    pub now: Timestamp,
}

/// Upstream's `syncClaim` (`pkg/controller/volume/persistentvolume/pv_controller.go`).
pub fn reconcile(claim: &PersistentVolumeClaim, observed: &Observed) -> Plan {
    let mut plan = Plan::about(claim);
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let volume = observed.volumes.iter().find(|v| owner::name(&v.metadata) == named).map(Arc::as_ref);
    if is_bound(claim) {
        bound(claim, named, volume, observed, &mut plan);
    } else if !named.is_empty() {
        requested(claim, named, volume, observed, &mut plan);
    } else if claim.metadata.deletion_timestamp.is_none() {
        search(claim, observed, &mut plan);
    }
    // Events are said once a state, not once a look.
    if plan.actions.is_empty() && claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Pending") {
        plan.events.clear();
    }
    plan
}

/// A claim that was bound keeps its volume or is lost for good.
fn bound(
    claim: &PersistentVolumeClaim,
    named: &str,
    volume: Option<&PersistentVolume>,
    observed: &Observed,
    plan: &mut Plan,
) {
    let reference = volume.and_then(|v| v.spec.as_ref()?.claim_ref.as_ref());
    match (volume, reference) {
        _ if named.is_empty() => lose(
            claim,
            plan,
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        ),
        (None, _) => lose(
            claim,
            plan,
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        ),
        (Some(volume), None) => bind(claim, volume, observed, plan),
        (Some(volume), Some(reference)) if reference.uid == claim.metadata.uid => {
            bind(claim, volume, observed, plan);
        }
        (Some(_), Some(_)) => lose(
            claim,
            plan,
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        ),
    }
}

/// An unbound claim whose user has named the volume.
fn requested(
    claim: &PersistentVolumeClaim,
    named: &str,
    volume: Option<&PersistentVolume>,
    observed: &Observed,
    plan: &mut Plan,
) {
    let Some(volume) = volume else { return phase(claim, "Pending", plan) };
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if reference.is_none() {
        if let Some(why) = volumes::mismatch(volume, claim) {
            let message = format!("Cannot bind to requested volume {named:?}: {why}");
            plan.event(Note::warning("VolumeMismatch", message));
            return phase(claim, "Pending", plan);
        }
        bind(claim, volume, observed, plan);
    } else if volumes::refers_to(volume, claim) {
        bind(claim, volume, observed, plan);
    } else {
        let message = format!("volume {named:?} already bound to a different claim.");
        plan.event(Note::warning("FailedBinding", message));
        phase(claim, "Pending", plan);
    }
}

/// An unbound claim that names no volume looks for one, or has one made.
fn search(claim: &PersistentVolumeClaim, observed: &Observed, plan: &mut Plan) {
    let class = observed.class.as_deref();
    let delayed = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let selected = owner::annotation(&claim.metadata, SELECTED_NODE);
    // The scheduler chooses among free volumes for a delayed claim, and reserves one.
    let found = volumes::find(observed.volumes.iter(), claim, |_| !delayed)
        .filter(|volume| !delayed || volumes::refers_to(volume, claim));
    if let Some(volume) = found {
        return bind(claim, volume, observed, plan);
    }
    let unset = claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_none());
    if let Some(default) = observed.default_class.as_deref().filter(|_| unset)
        && volumes::claim_class(claim).is_empty()
    {
        // The default class came after the claim (upstream's retroactive assignment).
        plan.merge_at(claim, json!({ "spec": { "storageClassName": default } }));
        return;
    }
    phase(claim, "Pending", plan);
    let class_name = volumes::claim_class(claim);
    let Some(class) = class else {
        plan.event(if class_name.is_empty() {
            Note::normal(
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            )
        } else {
            Note::warning(
                "ProvisioningFailed",
                format!("storageclass.storage.k8s.io {class_name:?} not found"),
            )
        });
        return;
    };
    if delayed && selected.is_none() {
        plan.event(match observed.waiting_pods.as_slice() {
            [] => Note::normal(
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding",
            ),
            [pod] => Note::normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            pods => Note::normal(
                "WaitForPodScheduled",
                format!("waiting for pods {} to be scheduled", pods.join(",")),
            ),
        });
        return;
    }
    if class.provisioner == NO_PROVISIONER {
        let message = format!("no volume plugin matched name: {NO_PROVISIONER}");
        plan.event(Note::warning("ProvisioningFailed", message));
        return;
    }
    if class.provisioner == volumes::LOCAL_PATH {
        match (observed.local_path.as_deref(), selected, &observed.node) {
            (None, ..) => plan.event(Note::warning(
                "ProvisioningFailed",
                "failed to provision volume: the built-in local-path storage is disabled in this cluster",
            )),
            (Some(root), Some(_), Some(node)) => local_path::provision(claim, class, node, root, plan),
            (Some(_), Some(_), None) => {
                // The node is gone: let the scheduler choose another one.
                plan.merge(claim, json!({ "metadata": { "annotations": { SELECTED_NODE: null } } }));
            }
            (Some(_), None, _) => plan.event(Note::warning(
                "ProvisioningFailed",
                "failed to provision volume: the class must bind with WaitForFirstConsumer, no node was chosen",
            )),
        }
        return;
    }
    let provisioner = &class.provisioner;
    if owner::annotation(&claim.metadata, STORAGE_PROVISIONER) != Some(provisioner) {
        plan.merge(claim, json!({ "metadata": { "annotations": { STORAGE_PROVISIONER: provisioner } } }));
    }
    plan.event(Note::normal(
        "ExternalProvisioning",
        format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        ),
    ));
    plan.requeue_in(jiff::SignedDuration::from_mins(1));
}

/// Writes both sides of a binding, as far as they are not written.
fn bind(claim: &PersistentVolumeClaim, volume: &PersistentVolume, observed: &Observed, plan: &mut Plan) {
    let name = owner::name(&volume.metadata);
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if reference.and_then(|r| r.uid.as_ref()) != claim.metadata.uid.as_ref() {
        let mut patch = json!({ "spec": { "claimRef": claim_reference(claim) } });
        if reference.is_none() {
            patch["metadata"] = json!({ "annotations": { BOUND_BY_CONTROLLER: "yes" } });
        }
        plan.merge_at(volume, patch);
    }
    let chosen = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) != Some(name);
    if chosen || !is_bound(claim) {
        let mut annotations = json!({ BIND_COMPLETED: "yes" });
        if chosen {
            annotations[BOUND_BY_CONTROLLER] = "yes".into();
        }
        plan.merge_at(
            claim,
            json!({ "metadata": { "annotations": annotations }, "spec": { "volumeName": name } }),
        );
    }
    let old = claim.status.clone().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    let (capacity, conditions) = expand(claim, volume, observed, plan);
    let new = PersistentVolumeClaimStatus {
        phase: Some("Bound".into()),
        access_modes: spec.access_modes,
        capacity,
        conditions,
        current_volume_attributes_class_name: spec.volume_attributes_class_name,
        ..old
    };
    plan.status(claim, claim.status.as_ref(), &new);
}

type Sizes = Option<BTreeMap<String, Quantity>>;

/// A bound claim that asks for more than its volume has. A `local-path` volume grows at once; what
/// others have is for their driver to grow. Returns the claim's capacity and conditions.
fn expand(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    observed: &Observed,
    plan: &mut Plan,
) -> (Sizes, Option<Vec<PersistentVolumeClaimCondition>>) {
    let spec = volume.spec.clone().unwrap_or_default();
    let mut conditions = claim.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let failed_before = conditions.iter().any(|c| c.type_ == RESIZE_FAILED);
    let asked = volumes::claim_size(claim);
    let before = claim.status.as_ref().and_then(|s| s.capacity.as_ref());
    // A claim may ask for less than its volume has from the start.
    let grown = is_bound(claim) && asked > volumes::volume_size(volume) && before.is_some();
    let some = |all: Vec<PersistentVolumeClaimCondition>| Some(all).filter(|all| !all.is_empty());
    if !grown {
        conditions.retain(|c| c.type_ != RESIZE_FAILED);
        return (spec.capacity, some(conditions));
    }
    if volumes::is_local_path(volume) {
        let others =
            observed.volumes.iter().map(Arc::as_ref).filter(|v| v.metadata.uid != volume.metadata.uid);
        let cramped = observed
            .node
            .as_deref()
            .filter(|node| !volumes::has_room(node, volumes::promised(node, others) + asked));
        if let Some(node) = cramped {
            if !failed_before {
                let (name, node) = (owner::name(&volume.metadata), placement::node_name(node));
                let message = format!(
                    "resize volume {name:?} by resizer {:?} failed: node {node:?} does not have enough free storage",
                    volumes::LOCAL_PATH
                );
                conditions.push(PersistentVolumeClaimCondition {
                    type_: RESIZE_FAILED.into(),
                    status: "True".into(),
                    message: Some(message.clone()),
                    last_transition_time: Some(Time(observed.now)),
                    ..PersistentVolumeClaimCondition::default()
                });
                plan.event(Note::warning("VolumeResizeFailed", message));
            }
            return (spec.capacity, some(conditions));
        }
        conditions.retain(|c| c.type_ != RESIZE_FAILED);
        let capacity: Sizes = Some([("storage".to_owned(), Quantity(asked.to_string()))].into());
        plan.merge(volume, json!({ "spec": { "capacity": capacity } }));
        plan.event(Note::normal("VolumeResizeSuccessful", "Resize volume succeeded"));
        return (capacity, some(conditions));
    }
    let message = "waiting for an external controller to expand this PVC";
    plan.event(if spec.csi.is_some() {
        Note::normal("ExternalExpanding", message)
    } else {
        Note::warning("ExternalExpanding", message)
    });
    (spec.capacity, some(conditions))
}

fn phase(claim: &PersistentVolumeClaim, phase: &str, plan: &mut Plan) {
    let old = claim.status.clone().unwrap_or_default();
    let new = PersistentVolumeClaimStatus { phase: Some(phase.into()), ..old };
    plan.status(claim, claim.status.as_ref(), &new);
}

fn lose(claim: &PersistentVolumeClaim, plan: &mut Plan, reason: &'static str, message: &'static str) {
    plan.event(Note::warning(reason, message));
    phase(claim, "Lost", plan);
}
