//! PersistentVolumes.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, text, text_or, wide},
    edit::{child, present, set_default, set_default_empty},
    meta, names,
    persistent_volume_claim::check_access_modes,
    pod_template::default_network_volume,
    quantity::canonicalize_list,
    registry::row,
    resource_names,
    scheduling::check_node_selector,
    volume_sources::{check_csi_driver_name, check_initiator, check_shared_source, one_source_only},
};

pub const PERSISTENT_VOLUME: Kind = Kind {
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |volume| volume["status"] = json!({"phase": "Pending"}),
        validate: |volume| {
            meta::check(volume, false, names::dns_subdomain, |volume, errors| {
                check_spec(&volume.get("spec"), volume.get("metadata").get("name").str(), errors);
            })
        },
        validate_update: |new, old| meta::check_update(new, old, check_change),
        cells,
        ..Strategy::WITH_STATUS
    },
    ..row(
        "",
        "v1",
        "PersistentVolume",
        "persistentvolumes",
        "persistentvolume",
        "io.k8s.api.core.v1.PersistentVolume",
    )
};

/// Where the data may be.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

fn default(volume: &mut Value) {
    set_default_empty(child(volume, "status"), "phase", "Pending");
    let spec = child(volume, "spec");
    set_default_empty(spec, "persistentVolumeReclaimPolicy", "Retain");
    set_default(spec, "volumeMode", "Filesystem");
    if let Some(path) = present(spec, "hostPath") {
        set_default(path, "type", "");
    }
    if let Some(capacity) = present(spec, "capacity") {
        canonicalize_list(capacity);
    }
    default_network_volume(spec);
}

fn check_spec(spec: &At<'_>, name: &str, errors: &mut ErrorList) {
    let (modes, capacity) = (spec.get("accessModes"), spec.get("capacity"));
    modes.check_required(errors);
    check_access_modes(&modes, errors);
    capacity.check_required(errors);
    if capacity.len() > 1 || !capacity.key("storage").is_set() {
        errors.push(capacity.not_supported(&["storage"]));
    }
    for (name, _) in capacity.entries() {
        resource_names::check_positive(&capacity.key(name), errors);
    }
    let policy = spec.get("persistentVolumeReclaimPolicy");
    policy.check_one_of(&["Delete", "Recycle", "Retain"], errors);
    let affinity = spec.get("nodeAffinity");
    if affinity.get("required").is_set() {
        check_node_selector(&affinity.get("required"), errors);
    } else if affinity.is_set() {
        errors.push(affinity.get("required").required("must specify required node constraints"));
    }
    let mut found = false;
    for source in SOURCES.iter().map(|s| (s, spec.get(s))).filter(|(_, at)| at.is_set()) {
        let (kind, at) = source;
        if found {
            errors.push(one_source_only(kind, &at));
            continue;
        }
        found = true;
        // Upstream has another name in this path.
        let shown =
            if *kind == "gcePersistentDisk" { at.with_path("spec.persistentDisk") } else { at.clone() };
        check_shared_source(kind, &shown, errors);
        check_own_source(kind, &at, name, errors);
        if *kind == "local" && !affinity.is_set() {
            errors.push(affinity.required("Local volume requires node affinity"));
        }
    }
    if !found {
        errors.push(spec.required("must specify a volume type"));
    }
    if policy.str() == "Recycle" && spec.get("hostPath").get("path").str() == "/" {
        errors.push(policy.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
    }
    let attributes = spec.get("volumeAttributesClassName");
    if attributes.is_set() && attributes.is_empty() {
        errors.push(attributes.required("an empty string is disallowed"));
    }
    for class in ["storageClassName", "volumeAttributesClassName"] {
        if !spec.get(class).is_empty() {
            spec.get(class).check(names::dns_subdomain, errors);
        }
    }
    spec.get("volumeMode").check_one_of(&["Block", "Filesystem"], errors);
}

/// What a source has in a PersistentVolume and not in a pod.
fn check_own_source(kind: &str, at: &At<'_>, name: &str, errors: &mut ErrorList) {
    match kind {
        "csi" => {
            check_csi_driver_name(&at.get("driver"), errors);
            at.get("volumeHandle").check_required(errors);
            for field in CSI_SECRETS.map(|field| at.get(field)).iter().filter(|secret| secret.is_set()) {
                field.get("name").check_required_name(names::dns_subdomain, errors);
                field.get("namespace").check_required_name(names::dns_label, errors);
            }
        }
        "cinder" | "storageos" => {
            let secret = at.get("secretRef");
            if secret.is_set() {
                secret.get("namespace").check_required(errors);
            }
        }
        "azureFile" if at.get("secretNamespace").is_set() => {
            at.get("secretNamespace").check_required(errors);
        }
        "glusterfs" if at.get("endpointsNamespace").is_set() => {
            let namespace = at.get("endpointsNamespace");
            if namespace.is_empty() {
                let detail = "if the endpointnamespace is set, it must be a valid namespace name";
                errors.push(namespace.invalid(detail));
            } else {
                namespace.check(names::dns_label, errors);
            }
        }
        "iscsi" => {
            let portal = at.get("targetPortal").with_path(format!("{}.targetportal", at.path));
            check_initiator(at, name, &portal, errors);
            let secret = at.get("secretRef");
            if secret.is_set() {
                secret.get("name").check_required(errors);
            }
        }
        _ => {}
    }
}

/// The Secrets of a CSI volume that upstream looks at.
const CSI_SECRETS: [&str; 4] = [
    "controllerPublishSecretRef",
    "controllerExpandSecretRef",
    "nodePublishSecretRef",
    "nodeExpandSecretRef",
];

fn check_change(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (spec, had) = (new.get("spec"), old.get("spec"));
    if SOURCES.iter().any(|source| spec.get(source).value != had.get(source).value) {
        errors.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    spec.get("volumeMode").with_path("volumeMode").check_immutable(&had.get("volumeMode"), errors);
    if had.get("nodeAffinity").is_set() {
        spec.get("nodeAffinity").with_path("nodeAffinity").check_immutable(&had.get("nodeAffinity"), errors);
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Capacity", "spec.capacity"),
    text("Access Modes", "spec.accessModes"),
    text("Reclaim Policy", "spec.persistentVolumeReclaimPolicy"),
    text("Status", "status.phase"),
    text("Claim", "spec.claimRef"),
    text("StorageClass", "StorageClass of the pv"),
    text("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
    text("Reason", "status.reason"),
    AGE,
    wide(text("VolumeMode", "spec.volumeMode")),
];

fn cells(volume: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&volume["spec"], &volume["status"]);
    let part = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let claim = match &spec["claimRef"] {
        Value::Null => String::new(),
        claim => format!("{}/{}", part(&claim["namespace"]), part(&claim["name"])),
    };
    let annotation = &volume["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = if annotation.is_string() { annotation } else { &spec["storageClassName"] };
    let dying = !volume["metadata"]["deletionTimestamp"].is_null();
    vec![
        columns::name(volume),
        text_or(&spec["capacity"]["storage"], "0"),
        columns::access_modes(&spec["accessModes"]).into(),
        text_or(&spec["persistentVolumeReclaimPolicy"], ""),
        if dying { "Terminating".into() } else { text_or(&status["phase"], "") },
        claim.into(),
        text_or(class, ""),
        text_or(&spec["volumeAttributesClassName"], "<unset>"),
        text_or(&status["reason"], ""),
        columns::age(volume, now).into(),
        text_or(&spec["volumeMode"], "<unset>"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_source_that_stays() {
        let mut volume = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1024Mi"},
            "hostPath": {"path": "/data"}}});
        default(&mut volume);
        assert_eq!(volume["spec"]["capacity"]["storage"], "1Gi");
        assert_eq!((PERSISTENT_VOLUME.strategy.validate)(&volume), []);
        let mut two = volume.clone();
        two["spec"]["local"] = json!({"path": "/x"});
        let texts: Vec<_> =
            (PERSISTENT_VOLUME.strategy.validate)(&two).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.local: Forbidden: may not specify more than 1 volume type"]);
        assert_eq!((PERSISTENT_VOLUME.strategy.validate_update)(&two, &volume).len(), 1);
    }
}
