//! RuntimeClasses.

use super::{Kind, registry::row};

pub const RUNTIME_CLASS: Kind = Kind {
    namespaced: false,
    ..row(
        "node.k8s.io",
        "v1",
        "RuntimeClass",
        "runtimeclasses",
        "runtimeclass",
        "io.k8s.api.node.v1.RuntimeClass",
    )
};
