//! Roles, ClusterRoles and their bindings.

use super::{Kind, registry::row};

pub const CLUSTER_ROLE_BINDING: Kind = Kind {
    namespaced: false,
    ..row(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
        "io.k8s.api.rbac.v1.ClusterRoleBinding",
    )
};

pub const CLUSTER_ROLE: Kind = Kind {
    namespaced: false,
    ..row(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRole",
        "clusterroles",
        "clusterrole",
        "io.k8s.api.rbac.v1.ClusterRole",
    )
};

pub const ROLE_BINDING: Kind = Kind {
    ..row(
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "rolebindings",
        "rolebinding",
        "io.k8s.api.rbac.v1.RoleBinding",
    )
};

pub const ROLE: Kind =
    Kind { ..row("rbac.authorization.k8s.io", "v1", "Role", "roles", "role", "io.k8s.api.rbac.v1.Role") };
