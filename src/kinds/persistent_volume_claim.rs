//! PersistentVolumeClaims.

use super::{Kind, Strategy, Subresource, registry::row};

pub const PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "persistentvolumeclaim",
        "io.k8s.api.core.v1.PersistentVolumeClaim",
    )
};
