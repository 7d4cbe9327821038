//! VolumeAttachments.

use super::{
    Column, FieldError, Kind, Strategy, Subresource,
    columns::{self, AGE, NAME, boolean, text, text_or},
    meta, names,
    registry::row,
    volume_sources::check_csi_driver_name,
};

pub const VOLUME_ATTACHMENT: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::Status],
    updated_with_revision: true,
    columns: &[
        NAME,
        Column { format: "name", ..text("Attacher", "spec.attacher") },
        text("PV", "spec.source.persistentVolumeName"),
        text("Node", "spec.nodeName"),
        boolean("Attached", "status.attached"),
        AGE,
    ],
    strategy: Strategy {
        validate: |object| {
            meta::check(object, false, names::dns_subdomain, |object, errors| {
                let (spec, source) = (object.get("spec"), object.get("spec").get("source"));
                check_csi_driver_name(&spec.get("attacher"), errors);
                let (inline, volume) = (source.get("inlineVolumeSpec"), source.get("persistentVolumeName"));
                match (inline.is_set(), volume.is_set()) {
                    (false, false) => {
                        errors.push(source.required(
                            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                        ));
                    }
                    (true, true) => errors.push(FieldError::forbidden(
                        &source.path,
                        "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                    )),
                    _ => {}
                }
                spec.get("nodeName").check_required_name(names::dns_subdomain, errors);
            })
        },
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                new.get("spec").check_immutable(&old.get("spec"), errors);
            })
        },
        cells: |object, now| {
            let spec = &object["spec"];
            vec![
                columns::name(object),
                spec["attacher"].clone(),
                text_or(&spec["source"]["persistentVolumeName"], ""),
                spec["nodeName"].clone(),
                object["status"]["attached"].as_bool().unwrap_or(false).into(),
                columns::age(object, now).into(),
            ]
        },
        ..Strategy::WITH_STATUS
    },
    ..row(
        "storage.k8s.io",
        "v1",
        "VolumeAttachment",
        "volumeattachments",
        "volumeattachment",
        "io.k8s.api.storage.v1.VolumeAttachment",
    )
};
