//! ReplicationControllers.

use super::{Kind, Strategy, Subresource, registry::row};

pub const REPLICATION_CONTROLLER: Kind = Kind {
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        "replicationcontroller",
        "io.k8s.api.core.v1.ReplicationController",
    )
};
