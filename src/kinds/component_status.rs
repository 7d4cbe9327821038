//! ComponentStatuses: computed, never stored.

use serde_json::Value;

use super::{
    Durability, Kind, Strategy,
    columns::{self, NAME, text, text_or},
    registry::row,
};

pub const COMPONENT_STATUS: Kind = Kind {
    short_names: &["cs"],
    namespaced: false,
    verbs: &["get", "list"],
    durability: Durability::Virtual,
    deprecated: Some("v1 ComponentStatus is deprecated in v1.19+"),
    columns: &[
        NAME,
        text("Status", "Status of the component conditions"),
        text("Message", "Message of the component conditions"),
        text("Error", "Error of the component conditions"),
    ],
    strategy: Strategy { cells, ..Strategy::PLAIN },
    ..row(
        "",
        "v1",
        "ComponentStatus",
        "componentstatuses",
        "componentstatus",
        "io.k8s.api.core.v1.ComponentStatus",
    )
};

fn cells(object: &Value, _: jiff::Timestamp) -> Vec<Value> {
    let mut conditions = object["conditions"].as_array().into_iter().flatten();
    let name = columns::name(object);
    let Some(healthy) = conditions.find(|c| c["type"] == "Healthy") else {
        return vec![name, "Unknown".into(), "".into(), "".into()];
    };
    let status = if healthy["status"] == "True" { "Healthy" } else { "Unhealthy" };
    vec![name, status.into(), text_or(&healthy["message"], ""), text_or(&healthy["error"], "")]
}
