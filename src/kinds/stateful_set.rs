//! StatefulSets.

use super::{Kind, Strategy, Subresource, registry::row};

pub const STATEFUL_SET: Kind = Kind {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("apps", "v1", "StatefulSet", "statefulsets", "statefulset", "io.k8s.api.apps.v1.StatefulSet")
};
