//! Leases; in memory only (they would wear the flash out).

use super::{Durability, Kind, registry::row};

pub const LEASE: Kind = Kind {
    durability: Durability::Memory,
    ..row("coordination.k8s.io", "v1", "Lease", "leases", "lease", "io.k8s.api.coordination.v1.Lease")
};
