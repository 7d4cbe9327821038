//! Deployments.

use super::{Kind, Strategy, Subresource, registry::row};

pub const DEPLOYMENT: Kind = Kind {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    strategy: Strategy::SPEC_AND_STATUS,
    ..row("apps", "v1", "Deployment", "deployments", "deployment", "io.k8s.api.apps.v1.Deployment")
};
