//! Pods, and the Binding of a pod to a node.

use super::{Durability, Kind, Strategy, Subresource, registry::row};

pub const POD: Kind = Kind {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Other("attach"),
        Subresource::Other("binding"),
        Subresource::Other("ephemeralcontainers"),
        Subresource::Other("eviction"),
        Subresource::Other("exec"),
        Subresource::Other("log"),
        Subresource::Other("portforward"),
        Subresource::Other("proxy"),
        Subresource::Other("resize"),
        Subresource::Status,
    ],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("", "v1", "Pod", "pods", "pod", "io.k8s.api.core.v1.Pod")
};

pub const BINDING: Kind = Kind {
    verbs: &["create"],
    durability: Durability::Virtual,
    ..row("", "v1", "Binding", "bindings", "binding", "io.k8s.api.core.v1.Binding")
};
