//! Scales: a subresource's form of a workload, never stored; here is how a Table shows one.

use super::{
    Kind, Strategy,
    columns::{self, AGE, NAME, integer, number},
    registry::row,
};

pub static SCALE: Kind = Kind {
    columns: &[NAME, integer("Desired", "spec.replicas"), integer("Available", "status.replicas"), AGE],
    strategy: Strategy {
        cells: |scale, now| {
            vec![
                columns::name(scale),
                number(&scale["spec"]["replicas"]).into(),
                number(&scale["status"]["replicas"]).into(),
                columns::age(scale, now).into(),
            ]
        },
        ..Strategy::PLAIN
    },
    ..row("autoscaling", "v1", "Scale", "scales", "scale", "io.k8s.api.autoscaling.v1.Scale")
};
