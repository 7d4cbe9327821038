//! What nodes and pods use (`metrics.k8s.io`): measured, never stored.

use super::{Durability, Kind, registry::row};

/// The verbs of what is only looked at.
const VERBS: &[&str] = &["get", "list"];

pub const NODE_METRICS: Kind = Kind {
    namespaced: false,
    verbs: VERBS,
    durability: Durability::Virtual,
    ..row(
        "metrics.k8s.io",
        "v1beta1",
        "NodeMetrics",
        "nodes",
        "",
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics",
    )
};

pub const POD_METRICS: Kind = Kind {
    verbs: VERBS,
    durability: Durability::Virtual,
    ..row(
        "metrics.k8s.io",
        "v1beta1",
        "PodMetrics",
        "pods",
        "",
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics",
    )
};
