//! PodDisruptionBudgets.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, int_or_string, integer, number, text},
    meta::{self, check_label_selector},
    names,
    registry::row,
    workload::{check_at_most_all, check_int_or_percent},
};

pub const POD_DISRUPTION_BUDGET: Kind = Kind {
    short_names: &["pdb"],
    subresources: &[Subresource::Status],
    updated_with_revision: true,
    columns: COLUMNS,
    strategy: Strategy {
        prepare_create: |new| {
            new["status"] =
                json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
            new["metadata"]["generation"] = 1.into();
        },
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                check_spec(&object.get("spec"), errors);
            })
        },
        cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        "poddisruptionbudget",
        "io.k8s.api.policy.v1.PodDisruptionBudget",
    )
};

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    let bounds = ["minAvailable", "maxUnavailable"].map(|field| spec.get(field));
    if bounds.iter().all(At::is_set) {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(
            spec.invalid(detail).as_struct("MinAvailable Selector MaxUnavailable UnhealthyPodEvictionPolicy"),
        );
    }
    for bound in bounds.iter().filter(|b| b.is_set()) {
        check_int_or_percent(bound, errors);
        check_at_most_all(bound, errors);
    }
    check_label_selector(&spec.get("selector"), errors);
    spec.get("unhealthyPodEvictionPolicy").check_one_of(&["AlwaysAllow", "IfHealthyBudget"], errors);
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Min Available", "The minimum number of pods that must be available."),
    text("Max Unavailable", "The maximum number of pods that may be unavailable."),
    integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
    AGE,
];

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![
        columns::name(object),
        int_or_string(&object["spec"]["minAvailable"]).into(),
        int_or_string(&object["spec"]["maxUnavailable"]).into(),
        number(&object["status"]["disruptionsAllowed"]).into(),
        columns::age(object, now).into(),
    ]
}
