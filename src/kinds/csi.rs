//! What CSI drivers publish: CSIDrivers, CSINodes, CSIStorageCapacities.

use serde_json::{Value, json};

use super::{
    ErrorList, FieldError, Kind, Strategy,
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
    updated_with_revision: true,
    columns: &[
        NAME,
        boolean("AttachRequired", "spec.attachRequired"),
        boolean("PodInfoOnMount", "spec.podInfoOnMount"),
        boolean("StorageCapacity", "spec.storageCapacity"),
        text("TokenRequests", "spec.tokenRequests"),
        boolean("RequiresRepublish", "spec.requiresRepublish"),
        text("Modes", "spec.volumeLifecycleModes"),
        AGE,
    ],
    strategy: Strategy {
        default: default_driver,
        validate: |driver| meta::check(driver, false, names::dns_subdomain, check_driver),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                // The path is upstream's, letter by letter.
                for (field, shown) in
                    [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
                {
                    let [now, then] = [new, old].map(|driver| driver.get("spec").get(field));
                    now.with_path(format!("spec.{shown}")).check_immutable(&then, errors);
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
    updated_with_revision: true,
    columns: &[
        NAME,
        integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node"),
        AGE,
    ],
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
                    check_node_driver(&driver, errors);
                }
            })
        },
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                let [now, then] = [new, old].map(|node| node.get("spec").get("drivers"));
                for driver in then.items() {
                    let same = now.items().find(|d| d.get("name").str() == driver.get("name").str());
                    if let Some(same) = same {
                        for field in ["nodeID", "topologyKeys"] {
                            same.get(field).check_immutable(&driver.get(field), errors);
                        }
                    }
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
    updated_with_revision: true,
    columns: &[NAME, text("StorageClassName", "storageClassName"), text("Capacity", "capacity")],
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

/// The id that a driver has for a node (bytes).
const NODE_ID_BYTES_MAX: usize = 192;

fn check_node_driver(driver: &At<'_>, errors: &mut ErrorList) {
    let (id, count) = (driver.get("nodeID"), driver.get("allocatable").get("count"));
    id.check_required(errors);
    if id.len() > NODE_ID_BYTES_MAX {
        errors.push(id.invalid(format!("must be {NODE_ID_BYTES_MAX} characters or less")));
    }
    count.check_not_negative(errors);
    let mut seen: Vec<&str> = Vec::new();
    for key in driver.get("topologyKeys").items() {
        if key.check_required(errors) && seen.contains(&key.str()) {
            errors.push(key.duplicate());
        }
        seen.push(key.str());
        if !key.is_empty() {
            key.check(names::qualified, errors);
        }
    }
}

/// How long the tokens for a driver live (seconds).
const TOKEN_SECONDS_MIN: i64 = 10 * 60;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

fn check_tokens(requests: &At<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for request in requests.items() {
        let (audience, seconds) = (request.get("audience"), request.get("expirationSeconds"));
        if seen.contains(&audience.str()) {
            errors.push(FieldError::duplicate(&audience.path, audience.str()));
            continue;
        }
        seen.push(audience.str());
        if seconds.int().is_some_and(|s| s < TOKEN_SECONDS_MIN) {
            errors.push(seconds.invalid("may not specify a duration less than 10 minutes"));
        }
        if seconds.int().is_some_and(|s| s > TOKEN_SECONDS_MAX) {
            errors.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
        }
    }
}

fn check_driver(driver: &At<'_>, errors: &mut ErrorList) {
    check_csi_driver_name(&driver.get("metadata").get("name"), errors);
    let spec = driver.get("spec");
    spec.get("fsGroupPolicy").check_one_of(&["File", "None", "ReadWriteOnceWithFSType"], errors);
    for mode in spec.get("volumeLifecycleModes").items() {
        mode.check_one_of(&["Ephemeral", "Persistent"], errors);
    }
    check_tokens(&spec.get("tokenRequests"), errors);
    let in_secrets = spec.get("serviceAccountTokenInSecrets");
    if in_secrets.is_set() && spec.get("tokenRequests").is_empty() {
        errors.push(
            in_secrets.invalid("serviceAccountTokenInSecrets is set but no tokenRequests are specified"),
        );
    }
}

fn driver_cells(driver: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let spec = &driver["spec"];
    let list = |field: &str, inner: Option<&str>| -> Vec<&str> {
        let items = spec[field].as_array().into_iter().flatten();
        items.filter_map(|i| inner.map_or(i, |f| &i[f]).as_str()).collect()
    };
    let audiences = if spec["tokenRequests"].is_null() {
        "<unset>".to_owned()
    } else {
        list("tokenRequests", Some("audience")).join(",")
    };
    let modes = list("volumeLifecycleModes", None).join(",");
    let flag = |field: &str, unset: bool| Value::from(spec[field].as_bool().unwrap_or(unset));
    vec![
        columns::name(driver),
        flag("attachRequired", true),
        flag("podInfoOnMount", false),
        flag("storageCapacity", false),
        audiences.into(),
        flag("requiresRepublish", false),
        if modes.is_empty() { "<none>".into() } else { modes.into() },
        columns::age(driver, now).into(),
    ]
}
