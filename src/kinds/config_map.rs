//! ConfigMaps: plain configuration data.

use super::{Kind, registry::row};

pub const CONFIG_MAP: Kind = Kind {
    short_names: &["cm"],
    ..row("", "v1", "ConfigMap", "configmaps", "configmap", "io.k8s.api.core.v1.ConfigMap")
};
