//! VolumeAttachments.

use super::{Kind, Strategy, Subresource, registry::row};

pub const VOLUME_ATTACHMENT: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row(
        "storage.k8s.io",
        "v1",
        "VolumeAttachment",
        "volumeattachments",
        "volumeattachment",
        "io.k8s.api.storage.v1.VolumeAttachment",
    )
};
