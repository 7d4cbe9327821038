//! PriorityClasses.

use super::{Kind, registry::row};

pub const PRIORITY_CLASS: Kind = Kind {
    short_names: &["pc"],
    namespaced: false,
    ..row(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        "priorityclass",
        "io.k8s.api.scheduling.v1.PriorityClass",
    )
};
