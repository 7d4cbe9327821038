//! CertificateSigningRequests.

use super::{Kind, Strategy, Subresource, registry::row};

pub const CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    short_names: &["csr"],
    namespaced: false,
    subresources: &[Subresource::Other("approval"), Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        "io.k8s.api.certificates.v1.CertificateSigningRequest",
    )
};
