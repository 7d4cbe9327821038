//! PersistentVolumes.

use super::{Kind, Strategy, Subresource, registry::row};

pub const PERSISTENT_VOLUME: Kind = Kind {
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row(
        "",
        "v1",
        "PersistentVolume",
        "persistentvolumes",
        "persistentvolume",
        "io.k8s.api.core.v1.PersistentVolume",
    )
};
