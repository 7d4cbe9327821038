//! Leases; in memory only (they would wear the flash out).

use super::{
    Durability, Kind, Strategy,
    columns::{self, AGE, NAME, text, text_or},
    meta, names,
    registry::row,
};

pub const LEASE: Kind = Kind {
    durability: Durability::Memory,
    columns: &[NAME, text("Holder"), AGE],
    strategy: Strategy {
        validate: |lease| {
            meta::check(lease, true, names::dns_subdomain, |lease, errors| {
                let spec = lease.get("spec");
                let duration = spec.get("leaseDurationSeconds");
                if duration.int().is_some_and(|s| s <= 0) {
                    errors.push(duration.invalid("must be greater than 0"));
                }
                let transitions = spec.get("leaseTransitions");
                if transitions.int().is_some_and(|n| n < 0) {
                    errors.push(transitions.invalid("must be greater than or equal to 0"));
                }
            })
        },
        cells: |lease, now| {
            let holder = text_or(&lease["spec"]["holderIdentity"], "");
            vec![columns::name(lease), holder, columns::age(lease, now).into()]
        },
        ..Strategy::PLAIN
    },
    ..row("coordination.k8s.io", "v1", "Lease", "leases", "lease", "io.k8s.api.coordination.v1.Lease")
};
