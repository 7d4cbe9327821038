//! NetworkPolicies.

use super::{Kind, Strategy, registry::row};

pub const NETWORK_POLICY: Kind = Kind {
    short_names: &["netpol"],
    strategy: Strategy::SPEC_ONLY,
    ..row(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
        "io.k8s.api.networking.v1.NetworkPolicy",
    )
};
