//! ServiceCIDRs, and the IPAddresses taken from them.

use super::{Kind, Strategy, Subresource, registry::row};

pub const SERVICE_CIDR: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row(
        "networking.k8s.io",
        "v1",
        "ServiceCIDR",
        "servicecidrs",
        "servicecidr",
        "io.k8s.api.networking.v1.ServiceCIDR",
    )
};

pub const IP_ADDRESS: Kind = Kind {
    short_names: &["ip"],
    namespaced: false,
    ..row(
        "networking.k8s.io",
        "v1",
        "IPAddress",
        "ipaddresses",
        "ipaddress",
        "io.k8s.api.networking.v1.IPAddress",
    )
};
