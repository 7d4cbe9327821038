//! CronJobs.

use super::{Kind, Strategy, Subresource, registry::row};

pub const CRON_JOB: Kind = Kind {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("batch", "v1", "CronJob", "cronjobs", "cronjob", "io.k8s.api.batch.v1.CronJob")
};
