//! PodDisruptionBudgets.

use super::{Kind, Strategy, Subresource, registry::row};

pub const POD_DISRUPTION_BUDGET: Kind = Kind {
    short_names: &["pdb"],
    subresources: &[Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        "poddisruptionbudget",
        "io.k8s.api.policy.v1.PodDisruptionBudget",
    )
};
