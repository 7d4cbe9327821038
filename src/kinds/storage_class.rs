//! StorageClasses and VolumeAttributesClasses.

use super::{Kind, registry::row};

pub const STORAGE_CLASS: Kind = Kind {
    short_names: &["sc"],
    namespaced: false,
    ..row(
        "storage.k8s.io",
        "v1",
        "StorageClass",
        "storageclasses",
        "storageclass",
        "io.k8s.api.storage.v1.StorageClass",
    )
};

pub const VOLUME_ATTRIBUTES_CLASS: Kind = Kind {
    short_names: &["vac"],
    namespaced: false,
    ..row(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
        "io.k8s.api.storage.v1.VolumeAttributesClass",
    )
};
