//! LimitRanges.

use super::{Kind, registry::row};

pub const LIMIT_RANGE: Kind = Kind {
    short_names: &["limits"],
    ..row("", "v1", "LimitRange", "limitranges", "limitrange", "io.k8s.api.core.v1.LimitRange")
};
