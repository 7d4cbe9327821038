//! Jobs.

use super::{Kind, Strategy, Subresource, registry::row};

pub const JOB: Kind = Kind {
    categories: &["all"],
    subresources: &[Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("batch", "v1", "Job", "jobs", "job", "io.k8s.api.batch.v1.Job")
};
