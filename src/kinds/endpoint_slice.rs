//! EndpointSlices: the addresses behind a Service.

use super::{Kind, registry::row};

pub const ENDPOINT_SLICE: Kind = Kind {
    ..row(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
        "io.k8s.api.discovery.v1.EndpointSlice",
    )
};
