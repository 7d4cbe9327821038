//! The built-in provisioner of the class `local-path`: a volume is a folder on the node that the
//! scheduler chose, made when the first pod mounts it.
//!
//! A volume that is deleted keeps the finalizer [`CLEANUP`] until its node has removed the folder
//! and says so by taking the finalizer away; when the node is gone for good, the finalizer goes
//! with it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde_json::{Value, json};

use super::{
    super::{
        owner,
        plan::{Note, Plan, list},
    },
    claim_reference,
};
use crate::{
    kinds::{
        placement, registry,
        volumes::{self, LOCAL_PATH as PROVISIONER, LOCAL_PATH_CLEANUP as CLEANUP},
    },
    objects::{Error, Objects, WriteOptions},
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The class as the cluster starts with it: the default one.
pub fn default_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": "local-path",
            "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

/// Creates the class where there is none of its name.
pub async fn ensure_class(objects: &Objects) -> Result<(), Error> {
    let options = WriteOptions::system("local-path-provisioner");
    match objects.create(registry::of::<StorageClass>(), "", default_class(), &options).await {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// Plans a volume for a claim on a node.
pub fn provision(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    root: &str,
    plan: &mut Plan,
) {
    let Some(spec) = claim.spec.as_ref() else { return };
    let modes = spec.access_modes.clone().unwrap_or_default();
    let refused = if spec.volume_mode.as_deref() == Some("Block") {
        Some("a folder cannot be a block device")
    } else if modes.iter().any(|m| matches!(m.as_str(), "ReadWriteMany" | "ReadOnlyMany")) {
        Some("a folder is on one node: only ReadWriteOnce and ReadWriteOncePod are possible")
    } else if spec.selector.is_some() {
        Some("claim.Spec.Selector is not supported")
    } else if spec.volume_attributes_class_name.as_deref().is_some_and(|name| !name.is_empty()) {
        Some("a folder has no attributes: VolumeAttributesClass is not supported")
    } else if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        Some("a folder is made empty: dataSource is not supported")
    } else {
        None
    };
    if let Some(why) = refused {
        let name = owner::name(&class.metadata);
        let message = format!("failed to provision volume with StorageClass {name:?}: {why}");
        plan.event(Note::warning("ProvisioningFailed", message));
        return;
    }
    let name = format!("pvc-{}", owner::uid(&claim.metadata));
    let root = owner::annotation(&node.metadata, volumes::LOCAL_PATH_ROOT).unwrap_or(root);
    let folder = format!("{name}_{}_{}", owner::namespace(&claim.metadata), owner::name(&claim.metadata));
    let by_name = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![placement::node_name(node).to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![by_name]), match_expressions: None };
    let size = Quantity(volumes::claim_size(claim).to_string());
    let hostname = placement::node_label(node, HOSTNAME).unwrap_or_else(|| placement::node_name(node));
    let volume = PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(HOSTNAME.to_owned(), hostname.to_owned())])),
            annotations: Some(BTreeMap::from([
                (volumes::PROVISIONED_BY.to_owned(), PROVISIONER.to_owned()),
                (volumes::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned()),
            ])),
            finalizers: Some(vec![CLEANUP.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(modes),
            capacity: Some([("storage".to_owned(), size)].into()),
            claim_ref: Some(claim_reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: format!("{}/{folder}", root.trim_end_matches('/')),
                type_: Some("DirectoryOrCreate".into()),
            }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into()),
            ),
            storage_class_name: Some(owner::name(&class.metadata).to_owned()),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    };
    let done = Note::normal("ProvisioningSucceeded", format!("Successfully provisioned volume {name}"));
    let failed = Note::warning("ProvisioningFailed", "failed to provision volume: {error}");
    plan.create(&volume, Some(done), Some(failed));
}

/// Takes the cleanup finalizer away.
pub fn forget(volume: &PersistentVolume, plan: &mut Plan) {
    let all = volume.metadata.finalizers.as_deref().unwrap_or_default();
    if all.iter().any(|f| f == CLEANUP) {
        let rest = list(all.iter().filter(|f| *f != CLEANUP));
        plan.merge_at(volume, json!({ "metadata": { "finalizers": rest } }));
    }
}
