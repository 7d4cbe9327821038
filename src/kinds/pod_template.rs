//! PodTemplates, and what all kinds with a pod template share.

use super::{Kind, registry::row};

pub const POD_TEMPLATE: Kind =
    Kind { ..row("", "v1", "PodTemplate", "podtemplates", "podtemplate", "io.k8s.api.core.v1.PodTemplate") };
