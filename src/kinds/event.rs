//! Events, in their two forms: core/v1 (stored) and events.k8s.io/v1.

use super::{Durability, Kind, registry::row};

pub const EVENT: Kind = Kind {
    short_names: &["ev"],
    durability: Durability::Memory,
    ..row("", "v1", "Event", "events", "event", "io.k8s.api.core.v1.Event")
};

pub const EVENT_V1: Kind = Kind {
    short_names: &["ev"],
    durability: Durability::Memory,
    ..row("events.k8s.io", "v1", "Event", "events", "event", "io.k8s.api.events.v1.Event")
};
