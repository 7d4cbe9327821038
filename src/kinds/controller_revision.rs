//! ControllerRevisions: snapshots of a StatefulSet's or DaemonSet's template.

use serde_json::Value;

use super::{
    Kind, Strategy,
    columns::{self, AGE, NAME, number, text},
    meta, names,
    registry::row,
};

pub const CONTROLLER_REVISION: Kind = Kind {
    columns: &[NAME, text("Controller", "Controller of the object"), text("Revision", "revision"), AGE],
    strategy: Strategy {
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                let data = object.get("data");
                if !data.is_set() {
                    errors.push(data.required("data is mandatory"));
                }
                object.get("revision").check_not_negative(errors);
            })
        },
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                new.get("data").check_immutable(&old.get("data"), errors);
            })
        },
        cells,
        ..Strategy::PLAIN
    },
    ..row(
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
        "io.k8s.api.apps.v1.ControllerRevision",
    )
};

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let mut controller = owners.filter(|o| o["controller"] == true).map(|owner| {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let group = text("apiVersion").split_once('/').map(|(group, _)| format!(".{group}"));
        format!("{}{}/{}", text("kind").to_lowercase(), group.unwrap_or_default(), text("name"))
    });
    vec![
        columns::name(object),
        controller.next().unwrap_or_else(|| "<none>".to_owned()).into(),
        number(&object["revision"]).into(),
        columns::age(object, now).into(),
    ]
}
