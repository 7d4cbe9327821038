//! HorizontalPodAutoscalers, in their two forms: autoscaling/v2 (stored) and v1.

use super::{Kind, Strategy, Subresource, registry::row};

pub const HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    )
};

pub const HORIZONTAL_POD_AUTOSCALER_V1: Kind = Kind {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    strategy: Strategy::WITH_STATUS,
    ..row(
        "autoscaling",
        "v1",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
    )
};
