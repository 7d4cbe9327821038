//! Endpoints: the older form of EndpointSlices.

use super::{Kind, registry::row};

pub const ENDPOINTS: Kind = Kind {
    short_names: &["ep"],
    ..row("", "v1", "Endpoints", "endpoints", "endpoints", "io.k8s.api.core.v1.Endpoints")
};
