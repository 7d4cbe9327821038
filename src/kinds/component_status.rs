//! ComponentStatuses: computed, never stored.

use super::{Durability, Kind, registry::row};

pub const COMPONENT_STATUS: Kind = Kind {
    short_names: &["cs"],
    namespaced: false,
    verbs: &["get", "list"],
    durability: Durability::Virtual,
    ..row(
        "",
        "v1",
        "ComponentStatus",
        "componentstatuses",
        "componentstatus",
        "io.k8s.api.core.v1.ComponentStatus",
    )
};
