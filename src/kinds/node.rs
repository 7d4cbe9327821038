//! Nodes.

use super::{Kind, Strategy, Subresource, registry::row};

pub const NODE: Kind = Kind {
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Other("proxy"), Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row("", "v1", "Node", "nodes", "node", "io.k8s.api.core.v1.Node")
};
