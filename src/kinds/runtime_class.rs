//! RuntimeClasses.

use super::{
    Kind, Strategy,
    columns::{self, AGE, NAME, text},
    edit::present,
    meta::{self, check_labels},
    names,
    quantity::canonicalize_list,
    registry::row,
    resource_names,
    scheduling::check_tolerations,
};

pub const RUNTIME_CLASS: Kind = Kind {
    namespaced: false,
    created_by_put: true,
    updated_with_revision: true,
    columns: &[NAME, text("Handler", "handler"), AGE],
    strategy: Strategy {
        default: |class| {
            if let Some(fixed) = present(class, "overhead").and_then(|o| present(o, "podFixed")) {
                canonicalize_list(fixed);
            }
        },
        validate: |class| {
            meta::check(class, false, names::dns_subdomain, |class, errors| {
                class.get("handler").check_required_name(names::dns_label, errors);
                let fixed = class.get("overhead").get("podFixed").with_path("overhead.limits");
                for (name, _) in fixed.entries() {
                    let at = fixed.key(name);
                    resource_names::check_container_name(name, &at, errors);
                    resource_names::check_amount(name, &at, errors);
                }
                let scheduling = class.get("scheduling");
                check_labels(&scheduling.get("nodeSelector"), errors);
                check_tolerations(&scheduling.get("tolerations"), errors);
            })
        },
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                new.get("handler").check_immutable(&old.get("handler"), errors);
            })
        },
        cells: |class, now| {
            vec![columns::name(class), class["handler"].clone(), columns::age(class, now).into()]
        },
        ..Strategy::PLAIN
    },
    ..row(
        "node.k8s.io",
        "v1",
        "RuntimeClass",
        "runtimeclasses",
        "runtimeclass",
        "io.k8s.api.node.v1.RuntimeClass",
    )
};
