//! StorageClasses and VolumeAttributesClasses.

use serde_json::Value;

use super::{
    ErrorList, FieldError, Kind, Strategy,
    at::At,
    columns::{self, AGE, NAME, boolean, text},
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
        text("Provisioner"),
        text("ReclaimPolicy"),
        text("VolumeBindingMode"),
        boolean("AllowVolumeExpansion"),
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
    columns: &[NAME, text("DriverName"), AGE],
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
