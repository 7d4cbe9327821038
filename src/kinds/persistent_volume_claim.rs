//! PersistentVolumeClaims.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, text, text_or, wide},
    edit::child,
    meta::{self, check_label_selector},
    names,
    pod_template::default_claim_spec,
    quantity::{Quantity, canonicalize_list},
    registry::row,
    resource_names,
};

pub const PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |claim| claim["status"] = json!({"phase": "Pending"}),
        validate: |claim| {
            meta::check(claim, true, names::dns_subdomain, |claim, errors| {
                check_spec(&claim.get("spec"), errors);
            })
        },
        validate_update: |new, old| meta::check_update(new, old, check_change),
        cells,
        ..Strategy::WITH_STATUS
    },
    ..row(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "persistentvolumeclaim",
        "io.k8s.api.core.v1.PersistentVolumeClaim",
    )
};

fn default(claim: &mut Value) {
    default_claim_spec(child(claim, "spec"));
    let status = child(claim, "status");
    super::edit::set_default_empty(status, "phase", "Pending");
    for list in ["capacity", "allocatedResources"] {
        if let Some(list) = status.get_mut(list) {
            canonicalize_list(list);
        }
    }
}

pub const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Refuses access modes that are unknown or do not go together.
pub fn check_access_modes(modes: &At<'_>, errors: &mut ErrorList) {
    for mode in modes.items() {
        mode.with_path(&modes.path).check_one_of(ACCESS_MODES, errors);
    }
    let alone = modes.items().any(|m| m.str() == "ReadWriteOncePod");
    if alone && modes.items().any(|m| m.str() != "ReadWriteOncePod" && ACCESS_MODES.contains(&m.str())) {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
}

/// Refuses a bad spec of a claim, also in templates.
pub fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        errors.push(modes.required("at least 1 access mode is required"));
    }
    check_label_selector(&spec.get("selector"), errors);
    check_access_modes(&modes, errors);
    let resources = spec.get("resources");
    let storage = resources.get("requests").key("storage").with_path(format!("{}[storage]", resources.path));
    if storage.is_set() {
        resource_names::check_positive(&storage, errors);
    } else {
        errors.push(storage.required(""));
    }
    for class in ["storageClassName", "volumeAttributesClassName"] {
        if !spec.get(class).is_empty() {
            spec.get(class).check(names::dns_subdomain, errors);
        }
    }
    spec.get("volumeMode").check_one_of(&["Block", "Filesystem"], errors);
    for source in ["dataSource", "dataSourceRef"] {
        let source = spec.get(source);
        if !source.is_set() {
            continue;
        }
        source.get("name").check_required(errors);
        let (kind, group) = (source.get("kind"), source.get("apiGroup"));
        kind.check_required(errors);
        if group.is_empty() && kind.str() != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(FieldError::invalid(&source.path, kind.str(), detail));
        } else if !group.is_empty() {
            group.check(names::dns_subdomain, errors);
        }
    }
}

fn check_change(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (spec, old_spec) = (new.get("spec"), old.get("spec"));
    let bound = new.get("status").get("phase").str() == "Bound";
    let mut allowed = spec.value.clone();
    let mut keep = |field: &str, when: bool| {
        if when {
            super::replace(&mut allowed, field, old_spec.value);
        }
    };
    // The binder names the volume once; a class may be given to a claim that has none.
    keep("volumeName", old_spec.get("volumeName").is_empty());
    keep("storageClassName", !old_spec.get("storageClassName").is_set());
    keep("volumeAttributesClassName", bound && spec.get("volumeAttributesClassName").is_set());
    if bound && spec.get("resources").get("requests").is_set() {
        allowed["resources"]["requests"]["storage"] =
            old_spec.value["resources"]["requests"]["storage"].clone();
    }
    if allowed != *old_spec.value {
        errors.push(spec.forbidden(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let size = |at: &At<'_>, path: [&str; 3]| {
        let at = path.iter().fold(at.clone(), |at, field| at.get(field));
        Quantity::from_json(at.get("storage").value).unwrap_or(Quantity::ZERO)
    };
    let path = ["spec", "resources", "requests"];
    let (wanted, had) = (size(new, path), size(old, path));
    let real = Quantity::from_json(old.get("status").get("capacity").get("storage").value);
    if wanted < had && wanted <= real.unwrap_or(Quantity::ZERO) {
        errors.push(FieldError::forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        ));
    }
    let (class, old_class) =
        (spec.get("volumeAttributesClassName"), old_spec.get("volumeAttributesClassName"));
    if old_class.is_set() && !class.is_set() {
        errors.push(class.forbidden("update from non-nil value to nil is forbidden"));
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "status.phase"),
    text("Volume", "spec.volumeName"),
    text("Capacity", "status.capacity"),
    text("Access Modes", "status.accessModes"),
    text("StorageClass", "StorageClass of the pvc"),
    text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
    AGE,
    wide(text("VolumeMode", "spec.volumeMode")),
];

fn cells(claim: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let phase = if claim["metadata"]["deletionTimestamp"].is_null() {
        text_or(&status["phase"], "")
    } else {
        "Terminating".into()
    };
    let bound = !spec["volumeName"].as_str().unwrap_or_default().is_empty();
    let (capacity, modes) = if bound {
        (text_or(&status["capacity"]["storage"], "0"), columns::access_modes(&status["accessModes"]))
    } else {
        ("".into(), String::new())
    };
    let annotation = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = if annotation.is_string() { annotation } else { &spec["storageClassName"] };
    vec![
        columns::name(claim),
        phase,
        text_or(&spec["volumeName"], ""),
        capacity,
        modes.into(),
        text_or(class, ""),
        text_or(&spec["volumeAttributesClassName"], "<unset>"),
        columns::age(claim, now).into(),
        text_or(&spec["volumeMode"], "<unset>"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(size: &str, phase: &str) -> Value {
        json!({"metadata": {"name": "c", "namespace": "n"}, "status": {"phase": phase, "capacity": {"storage": "1Gi"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "volumeName": "v",
                "resources": {"requests": {"storage": size}}}})
    }

    #[test]
    fn a_bound_claim_may_only_grow() {
        let texts = |new: &Value, old: &Value| -> Vec<String> {
            (PERSISTENT_VOLUME_CLAIM.strategy.validate_update)(new, old)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(texts(&claim("2Gi", "Bound"), &claim("1Gi", "Bound")), Vec::<String>::new());
        assert_eq!(
            texts(&claim("2Gi", "Pending"), &claim("1Gi", "Pending")),
            [
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
            ]
        );
        assert_eq!(
            texts(&claim("512Mi", "Bound"), &claim("1Gi", "Bound")),
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
    }

    #[test]
    fn a_claim_needs_modes_and_a_size() {
        let mut bad = claim("0", "Pending");
        bad["spec"]["accessModes"] = json!([]);
        let texts: Vec<_> =
            (PERSISTENT_VOLUME_CLAIM.strategy.validate)(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
            ]
        );
    }
}
