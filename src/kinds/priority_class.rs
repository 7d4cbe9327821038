//! PriorityClasses.

use super::{
    ErrorList, Kind, Strategy,
    at::At,
    columns::{self, AGE, NAME, boolean, integer, number, text, text_or},
    edit::set_default,
    meta, names,
    registry::row,
};

pub const PRIORITY_CLASS: Kind = Kind {
    short_names: &["pc"],
    namespaced: false,
    columns: &[
        NAME,
        integer("Value", "value"),
        boolean("Global-Default", "globalDefault"),
        AGE,
        text("PreemptionPolicy", "preemptionPolicy"),
    ],
    strategy: Strategy {
        default: |class| set_default(class, "preemptionPolicy", "PreemptLowerPriority"),
        validate: |class| meta::check(class, false, names::dns_subdomain, check),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                let value = new.get("value");
                if number(value.value) != number(old.get("value").value) {
                    errors.push(value.forbidden("may not be changed in an update."));
                }
                new.get("preemptionPolicy").check_immutable(&old.get("preemptionPolicy"), errors);
            })
        },
        cells: |class, now| {
            vec![
                columns::name(class),
                number(&class["value"]).into(),
                class["globalDefault"].as_bool().unwrap_or(false).into(),
                columns::age(class, now).into(),
                text_or(&class["preemptionPolicy"], ""),
            ]
        },
        // Upstream's never counts up.
        prepare_create: |class| class["metadata"]["generation"] = 1.into(),
        ..Strategy::PLAIN
    },
    ..row(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        "priorityclass",
        "io.k8s.api.scheduling.v1.PriorityClass",
    )
};

/// What users may give; above are the system's own classes.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

/// The system's classes.
pub const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

fn check(class: &At<'_>, errors: &mut ErrorList) {
    let (name, value) = (class.get("metadata").get("name"), class.get("value"));
    if name.str().starts_with("system-") {
        let known = SYSTEM_CLASSES.iter().find(|(n, _)| *n == name.str());
        if known.is_none_or(|(_, v)| *v != number(value.value)) {
            let why = match known {
                None => format!("{} is not a known system priority class", name.str()),
                Some((_, v)) => format!("value of {} PriorityClass must be {v}", name.str()),
            };
            errors.push(name.forbidden(format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            )));
        }
    } else if number(value.value) > USER_PRIORITY_MAX {
        errors.push(
            value.forbidden(format!(
                "maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"
            )),
        );
    }
    class.get("preemptionPolicy").check_one_of(&["PreemptLowerPriority", "Never"], errors);
}
