//! What CSI drivers publish: CSIDrivers, CSINodes, CSIStorageCapacities.

use super::{Kind, Strategy, registry::row};

pub const CSI_DRIVER: Kind = Kind {
    namespaced: false,
    strategy: Strategy::SPEC_ONLY,
    ..row("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver", "io.k8s.api.storage.v1.CSIDriver")
};

pub const CSI_NODE: Kind = Kind {
    namespaced: false,
    ..row("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode", "io.k8s.api.storage.v1.CSINode")
};

pub const CSI_STORAGE_CAPACITY: Kind = Kind {
    ..row(
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
        "io.k8s.api.storage.v1.CSIStorageCapacity",
    )
};
