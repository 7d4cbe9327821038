//! DaemonSets.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, TEMPLATE, integer, number, template_cells, text},
    deployment::REVISION_HISTORY_LIMIT,
    edit::{child, drop_empty, set_default, set_default_empty},
    labels, meta, names,
    pod_template::default_template,
    pod_warnings,
    registry::row,
    workload::{
        check_at_most_all, check_int_or_percent, check_numbers, check_selector_and_template,
        check_selector_unchanged, int_or_percent,
    },
};

pub const DAEMON_SET: Kind = Kind {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |new| {
            new["status"] = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
            new["metadata"]["generation"] = 1.into();
        },
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                check_spec(&object.get("spec"), errors);
            })
        },
        validate_update: |new, old| meta::check_update(new, old, check_selector_unchanged),
        warnings: pod_warnings::of_workload,
        cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("apps", "v1", "DaemonSet", "daemonsets", "daemonset", "io.k8s.api.apps.v1.DaemonSet")
};

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    drop_empty(spec, &["minReadySeconds"]);
    set_default(spec, "revisionHistoryLimit", REVISION_HISTORY_LIMIT);
    let strategy = child(spec, "updateStrategy");
    set_default_empty(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", 1);
        set_default(rolling, "maxSurge", 0);
    }
    default_template(child(spec, "template"));
}

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    check_selector_and_template(
        spec,
        "empty selector is invalid for daemonset",
        "activeDeadlineSeconds in DaemonSet is not Supported",
        &[],
        errors,
    );
    check_numbers(spec, &["minReadySeconds", "revisionHistoryLimit"], errors);
    let strategy = spec.get("updateStrategy");
    match strategy.get("type").str() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.get("rollingUpdate");
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            for at in [&unavailable, &surge] {
                check_int_or_percent(at, errors);
                check_at_most_all(at, errors);
            }
            match (int_or_percent(unavailable.value) != 0, int_or_percent(surge.value) != 0) {
                (true, true) => {
                    errors.push(surge.invalid("may not be set when maxUnavailable is non-zero"));
                }
                (false, false) => errors.push(unavailable.required("cannot be 0 when maxSurge is 0")),
                _ => {}
            }
        }
        _ => {
            let error = strategy.not_supported(&["RollingUpdate", "OnDelete"]);
            errors.push(error.as_struct("Type= RollingUpdate"));
        }
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    integer("Desired", "status.desiredNumberScheduled"),
    integer("Current", "status.currentNumberScheduled"),
    integer("Ready", "status.numberReady"),
    integer("Up-to-date", "status.updatedNumberScheduled"),
    integer("Available", "status.numberAvailable"),
    text("Node Selector", "spec.template.spec.nodeSelector"),
    AGE,
    TEMPLATE[0],
    TEMPLATE[1],
    TEMPLATE[2],
];

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut cells = vec![columns::name(object)];
    let counts = [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ];
    cells.extend(counts.iter().map(|field| Value::from(number(&status[field]))));
    cells.push(columns::labels(&spec["template"]["spec"]["nodeSelector"]).into());
    cells.push(columns::age(object, now).into());
    cells.extend(template_cells(spec, labels::format_json(&spec["selector"])));
    cells
}
