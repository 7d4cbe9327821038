//! Ingresses and IngressClasses.

use super::{Kind, Strategy, Subresource, registry::row};

pub const INGRESS: Kind = Kind {
    short_names: &["ing"],
    subresources: &[Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress", "io.k8s.api.networking.v1.Ingress")
};

pub const INGRESS_CLASS: Kind = Kind {
    namespaced: false,
    strategy: Strategy::SPEC_ONLY,
    ..row(
        "networking.k8s.io",
        "v1",
        "IngressClass",
        "ingressclasses",
        "ingressclass",
        "io.k8s.api.networking.v1.IngressClass",
    )
};
