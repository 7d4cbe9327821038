//! ResourceQuotas.

use super::{Kind, Strategy, Subresource, registry::row};

pub const RESOURCE_QUOTA: Kind = Kind {
    short_names: &["quota"],
    subresources: &[Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row("", "v1", "ResourceQuota", "resourcequotas", "resourcequota", "io.k8s.api.core.v1.ResourceQuota")
};
