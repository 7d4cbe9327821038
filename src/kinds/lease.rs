//! Leases; in memory only (they would wear the flash out).

use k8s_openapi::api::core::v1::Node;

use super::{
    Durability, Kind, Strategy,
    columns::{self, AGE, NAME, text, text_or},
    meta, names,
    registry::row,
};

/// Where nodes' Leases are.
pub const NODES: &str = "kube-node-lease";

/// Notes on a Node which board it is; only the master of boards does.
pub const HARDWARE: &str = "sampan.dev/hardware";

/// Whether a node's Lease is renewed by its master (and not by a kubelet of its own).
pub fn is_masters(node: &Node) -> bool {
    node.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(HARDWARE))
}

/// Upstream's only strategy for who gets a Lease.
const OLDEST_EMULATION_VERSION: &str = "OldestEmulationVersion";

pub const LEASE: Kind = Kind {
    durability: Durability::Memory,
    created_by_put: true,
    updated_with_revision: true,
    columns: &[NAME, text("Holder", "spec.holderIdentity"), AGE],
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
                let (strategy, preferred) = (spec.get("strategy"), spec.get("preferredHolder"));
                let of_strategy = strategy.get("strategy");
                if strategy.is_set() && !strategy.str().contains('/') {
                    let at = strategy.with_path(of_strategy.path);
                    if at.str() != OLDEST_EMULATION_VERSION {
                        errors.push(at.not_supported(&[OLDEST_EMULATION_VERSION]));
                    }
                } else if strategy.is_set() {
                    strategy.with_path(of_strategy.path).check(names::qualified, errors);
                }
                if !preferred.is_empty() && strategy.is_empty() {
                    errors.push(preferred.forbidden("may only be specified if `strategy` is defined"));
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
