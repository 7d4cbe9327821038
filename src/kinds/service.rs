//! Services.

use super::{Kind, Strategy, Subresource, registry::row};

pub const SERVICE: Kind = Kind {
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Other("proxy"), Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row("", "v1", "Service", "services", "service", "io.k8s.api.core.v1.Service")
};
