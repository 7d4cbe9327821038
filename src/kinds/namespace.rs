//! Namespaces.

use super::{Kind, Strategy, Subresource, registry::row};

pub const NAMESPACE: Kind = Kind {
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[Subresource::Other("finalize"), Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row("", "v1", "Namespace", "namespaces", "namespace", "io.k8s.api.core.v1.Namespace")
};
