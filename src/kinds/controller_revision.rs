//! ControllerRevisions: snapshots of a StatefulSet's or DaemonSet's template.

use super::{Kind, registry::row};

pub const CONTROLLER_REVISION: Kind = Kind {
    ..row(
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
        "io.k8s.api.apps.v1.ControllerRevision",
    )
};
