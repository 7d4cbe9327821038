//! What CSI drivers publish: CSIDrivers, CSINodes, CSIStorageCapacities.

use serde_json::{Value, json};

use super::{
    ErrorList, Kind, Strategy,
    at::At,
    columns::{self, AGE, NAME, boolean, integer, text, text_or},
    edit::{child, present, set_default},
    meta::{self, check_label_selector},
    names,
    quantity::canonicalize,
    registry::row,
    volume_sources::check_csi_driver_name,
};

pub const CSI_DRIVER: Kind = Kind {
    namespaced: false,
    columns: &[
        NAME,
        boolean("AttachRequired"),
        boolean("PodInfoOnMount"),
        boolean("StorageCapacity"),
        text("TokenRequests"),
        boolean("RequiresRepublish"),
        text("Modes"),
        AGE,
    ],
    strategy: Strategy {
        default: default_driver,
        validate: |driver| meta::check(driver, false, names::dns_subdomain, check_driver),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                for field in ["attachRequired", "volumeLifecycleModes"] {
                    new.get("spec").get(field).check_immutable(&old.get("spec").get(field), errors);
                }
            })
        },
        cells: driver_cells,
        ..Strategy::SPEC_ONLY
    },
    ..row("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver", "io.k8s.api.storage.v1.CSIDriver")
};

pub const CSI_NODE: Kind = Kind {
    namespaced: false,
    columns: &[NAME, integer("Drivers"), AGE],
    strategy: Strategy {
        validate: |node| {
            meta::check(node, false, names::dns_subdomain, |node, errors| {
                let mut seen: Vec<&str> = Vec::new();
                for driver in node.get("spec").get("drivers").items() {
                    let name = driver.get("name");
                    check_csi_driver_name(&name, errors);
                    if seen.contains(&name.str()) {
                        errors.push(name.duplicate());
                    }
                    seen.push(name.str());
                    driver.get("nodeID").check_required(errors);
                }
            })
        },
        cells: |node, now| {
            let drivers = node["spec"]["drivers"].as_array().map_or(0, Vec::len);
            vec![columns::name(node), drivers.into(), columns::age(node, now).into()]
        },
        ..Strategy::PLAIN
    },
    ..row("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode", "io.k8s.api.storage.v1.CSINode")
};

pub const CSI_STORAGE_CAPACITY: Kind = Kind {
    columns: &[NAME, text("StorageClassName"), text("Capacity")],
    strategy: Strategy {
        default: |object| {
            for field in ["capacity", "maximumVolumeSize"] {
                if let Some(amount) = present(object, field) {
                    canonicalize(amount);
                }
            }
        },
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                check_label_selector(&object.get("nodeTopology"), errors);
                object.get("storageClassName").check_required_name(names::dns_subdomain, errors);
            })
        },
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                for field in ["nodeTopology", "storageClassName"] {
                    new.get(field).check_immutable(&old.get(field), errors);
                }
            })
        },
        cells: |object, _| {
            let capacity = text_or(&object["capacity"], "<unset>");
            vec![columns::name(object), object["storageClassName"].clone(), capacity]
        },
        ..Strategy::PLAIN
    },
    ..row(
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
        "io.k8s.api.storage.v1.CSIStorageCapacity",
    )
};

fn default_driver(driver: &mut Value) {
    let spec = child(driver, "spec");
    set_default(spec, "attachRequired", true);
    set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    for field in ["podInfoOnMount", "requiresRepublish", "seLinuxMount", "storageCapacity"] {
        set_default(spec, field, false);
    }
    if spec["volumeLifecycleModes"].as_array().is_none_or(Vec::is_empty) {
        spec["volumeLifecycleModes"] = json!(["Persistent"]);
    }
}

fn check_driver(driver: &At<'_>, errors: &mut ErrorList) {
    check_csi_driver_name(&driver.get("metadata").get("name"), errors);
    let spec = driver.get("spec");
    spec.get("fsGroupPolicy").check_one_of(&["File", "None", "ReadWriteOnceWithFSType"], errors);
    for mode in spec.get("volumeLifecycleModes").items() {
        mode.check_one_of(&["Ephemeral", "Persistent"], errors);
    }
}

fn driver_cells(driver: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let spec = &driver["spec"];
    let list = |field: &str, inner: Option<&str>| -> Vec<&str> {
        let items = spec[field].as_array().into_iter().flatten();
        items.filter_map(|i| inner.map_or(i, |f| &i[f]).as_str()).collect()
    };
    let audiences = list("tokenRequests", Some("audience"));
    let audiences = if audiences.is_empty() { "<unset>".to_owned() } else { audiences.join(",") };
    let flag = |field: &str| Value::from(spec[field].as_bool().unwrap_or(false));
    vec![
        columns::name(driver),
        flag("attachRequired"),
        flag("podInfoOnMount"),
        flag("storageCapacity"),
        audiences.into(),
        flag("requiresRepublish"),
        list("volumeLifecycleModes", None).join(",").into(),
        columns::age(driver, now).into(),
    ]
}
