//! StorageClasses and VolumeAttributesClasses.

use serde_json::Value;

use super::{
    ErrorList, FieldError, Kind, Strategy,
    at::At,
    columns::{self, AGE, NAME, text},
    edit::set_default_empty,
    meta, names,
    registry::row,
    volume_sources::check_csi_driver_name,
};

pub const STORAGE_CLASS: Kind = Kind {
    short_names: &["sc"],
    namespaced: false,
    columns: &[
        NAME,
        text("Provisioner", "provisioner"),
        text("ReclaimPolicy", "reclaimPolicy"),
        text("VolumeBindingMode", "volumeBindingMode"),
        text("AllowVolumeExpansion", "allowVolumeExpansion"),
        AGE,
    ],
    strategy: Strategy {
        default: |class| {
            set_default_empty(class, "reclaimPolicy", "Delete");
            set_default_empty(class, "volumeBindingMode", "Immediate");
        },
        validate: |class| meta::check(class, false, names::dns_subdomain, check),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                for field in ["parameters", "provisioner", "reclaimPolicy"] {
                    if new.get(field).value != old.get(field).value {
                        errors.push(new.get(field).forbidden(format!("updates to {field} are forbidden.")));
                    }
                }
                new.get("volumeBindingMode").check_immutable(&old.get("volumeBindingMode"), errors);
            })
        },
        cells,
        ..Strategy::PLAIN
    },
    ..row(
        "storage.k8s.io",
        "v1",
        "StorageClass",
        "storageclasses",
        "storageclass",
        "io.k8s.api.storage.v1.StorageClass",
    )
};

pub const VOLUME_ATTRIBUTES_CLASS: Kind = Kind {
    short_names: &["vac"],
    namespaced: false,
    columns: &[NAME, text("DriverName", "driverName"), AGE],
    strategy: Strategy {
        validate: |class| {
            meta::check(class, false, names::dns_subdomain, |class, errors| {
                check_csi_driver_name(&class.get("driverName"), errors);
                let parameters = class.get("parameters");
                if parameters.is_empty() {
                    errors.push(parameters.required("must contain at least one key/value pair"));
                }
            })
        },
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                for field in ["driverName", "parameters"] {
                    new.get(field).check_immutable(&old.get(field), errors);
                }
            })
        },
        cells: |class, now| {
            vec![columns::name(class), class["driverName"].clone(), columns::age(class, now).into()]
        },
        ..Strategy::PLAIN
    },
    ..row(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
        "io.k8s.api.storage.v1.VolumeAttributesClass",
    )
};

/// Parameters of a class, and all of them together (bytes).
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;

fn check_topologies(topologies: &At<'_>, errors: &mut ErrorList) {
    for term in topologies.items() {
        let mut keys: Vec<&str> = Vec::new();
        for requirement in term.get("matchLabelExpressions").items() {
            let (key, values) = (requirement.get("key"), requirement.get("values"));
            if values.is_empty() {
                errors.push(values.required(""));
            }
            let mut seen: Vec<&str> = Vec::new();
            for value in values.items() {
                if seen.contains(&value.str()) {
                    errors.push(value.duplicate());
                }
                seen.push(value.str());
            }
            let wrong = names::qualified(key.str());
            errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&key.path, key.str(), m)));
            if keys.contains(&key.str()) {
                errors.push(key.duplicate());
            }
            keys.push(key.str());
        }
    }
}

fn check(class: &At<'_>, errors: &mut ErrorList) {
    let provisioner = class.get("provisioner");
    if provisioner.check_required(errors) {
        let lower = provisioner.str().to_lowercase();
        let wrong = names::qualified(&lower);
        errors
            .extend(wrong.into_iter().map(|m| FieldError::invalid(&provisioner.path, provisioner.str(), m)));
    }
    class.get("reclaimPolicy").check_required_one_of(&["Delete", "Retain"], errors);
    class.get("volumeBindingMode").check_required_one_of(&["Immediate", "WaitForFirstConsumer"], errors);
    let parameters = class.get("parameters");
    let bytes: usize = parameters.entries().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if parameters.len() > PARAMETERS_MAX {
        errors.push(FieldError::too_long(&parameters.path, PARAMETERS_MAX));
    } else if bytes > PARAMETERS_BYTES_MAX {
        errors.push(FieldError::too_long(&parameters.path, PARAMETERS_BYTES_MAX));
    }
    check_topologies(&class.get("allowedTopologies"), errors);
    for (key, _) in class.get("parameters").entries().filter(|(k, _)| k.is_empty()) {
        errors.push(FieldError::invalid("parameters", key, "field can not be empty"));
    }
}

fn cells(class: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let annotations = &class["metadata"]["annotations"];
    let marks =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    let is_default = marks.iter().any(|m| annotations[m] == "true");
    let name = class["metadata"]["name"].as_str().unwrap_or_default();
    vec![
        if is_default { format!("{name} (default)") } else { name.to_owned() }.into(),
        class["provisioner"].clone(),
        columns::text_or(&class["reclaimPolicy"], "Delete"),
        columns::text_or(&class["volumeBindingMode"], "Immediate"),
        class["allowVolumeExpansion"].as_bool().unwrap_or(false).into(),
        columns::age(class, now).into(),
    ]
}
