//! DaemonSets.

use super::{Kind, Strategy, Subresource, registry::row};

pub const DAEMON_SET: Kind = Kind {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("apps", "v1", "DaemonSet", "daemonsets", "daemonset", "io.k8s.api.apps.v1.DaemonSet")
};
