//! ReplicaSets.

use serde_json::{Value, json};

use super::{
    Column, Kind, Strategy, Subresource,
    columns::{self, AGE, NAME, TEMPLATE, integer, number, template_cells},
    edit::{child, drop_empty, set_default},
    labels, meta, names,
    pod_template::default_template,
    pod_warnings,
    registry::row,
    workload::{check_numbers, check_selector_and_template, check_selector_unchanged},
};

pub const REPLICA_SET: Kind = Kind {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |new| {
            new["status"] = json!({"replicas": 0});
            new["metadata"]["generation"] = 1.into();
        },
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                let spec = object.get("spec");
                check_numbers(&spec, &["replicas", "minReadySeconds"], errors);
                check_selector_and_template(
                    &spec,
                    "empty selector is invalid for deployment",
                    "activeDeadlineSeconds in ReplicaSet is not Supported",
                    &[],
                    errors,
                );
            })
        },
        validate_update: |new, old| meta::check_update(new, old, check_selector_unchanged),
        warnings: pod_warnings::of_workload,
        selectable: |object| vec![("status.replicas", number(&object["status"]["replicas"]).to_string())],
        cells: |object, now| replica_cells(object, now, labels::format_json(&object["spec"]["selector"])),
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("apps", "v1", "ReplicaSet", "replicasets", "replicaset", "io.k8s.api.apps.v1.ReplicaSet")
};

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    drop_empty(spec, &["minReadySeconds"]);
    set_default(spec, "replicas", 1);
    default_template(child(spec, "template"));
}

/// ReplicaSets and ReplicationControllers look the same.
pub const COLUMNS: &[Column] = &[
    NAME,
    integer("Desired", "spec.replicas"),
    integer("Current", "status.replicas"),
    integer("Ready", "status.readyReplicas"),
    AGE,
    TEMPLATE[0],
    TEMPLATE[1],
    TEMPLATE[2],
];

/// The cells of [`COLUMNS`].
pub fn replica_cells(object: &Value, now: jiff::Timestamp, selector: String) -> Vec<Value> {
    let status = &object["status"];
    let mut cells = vec![
        columns::name(object),
        number(&object["spec"]["replicas"]).into(),
        number(&status["replicas"]).into(),
        number(&status["readyReplicas"]).into(),
        columns::age(object, now).into(),
    ];
    cells.extend(template_cells(&object["spec"], selector));
    cells
}
