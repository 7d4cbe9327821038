//! ReplicaSets.

use super::{Kind, Strategy, Subresource, registry::row};

pub const REPLICA_SET: Kind = Kind {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("apps", "v1", "ReplicaSet", "replicasets", "replicaset", "io.k8s.api.apps.v1.ReplicaSet")
};
