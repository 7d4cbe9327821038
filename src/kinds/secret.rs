//! Secrets: data that is shown to few.

use super::{Kind, registry::row};

pub const SECRET: Kind = Kind { ..row("", "v1", "Secret", "secrets", "secret", "io.k8s.api.core.v1.Secret") };
