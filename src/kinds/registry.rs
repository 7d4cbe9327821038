//! The table itself, and the ways to find a row.

use super::{Durability, Kind, Strategy, Subresource};

/// Every verb a stored kind has.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// All rows, in the order of discovery.
pub static KINDS: &[Kind] = &[
    plain("", "v1", "ConfigMap", "configmaps", "configmap", &["cm"], true),
    plain("", "v1", "Namespace", "namespaces", "namespace", &["ns"], false),
    with_status("", "v1", "Node", "nodes", "node", &["no"], false),
    with_status("", "v1", "Pod", "pods", "pod", &["po"], true),
    plain("", "v1", "Secret", "secrets", "secret", &[], true),
    with_status("", "v1", "Service", "services", "service", &["svc"], true),
    with_status("apps", "v1", "Deployment", "deployments", "deployment", &["deploy"], true),
    with_status("apps", "v1", "ReplicaSet", "replicasets", "replicaset", &["rs"], true),
];

const fn plain(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    namespaced: bool,
) -> Kind {
    Kind {
        group,
        version,
        kind,
        plural,
        singular,
        short_names,
        categories: &[],
        namespaced,
        verbs: ALL_VERBS,
        subresources: &[],
        schema: "",
        durability: Durability::Disk,
        stored_as: None,
        columns: &[],
        strategy: Strategy::PLAIN,
    }
}

const fn with_status(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    namespaced: bool,
) -> Kind {
    Kind {
        subresources: &[Subresource::Status],
        strategy: Strategy::SPEC_AND_STATUS,
        ..plain(group, version, kind, plural, singular, short_names, namespaced)
    }
}

/// The row of a path (`apps`, `v1`, `deployments`).
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.plural == plural && k.version == version && k.group == group)
}

/// The row of an object (`apps/v1`, `Deployment`).
pub fn by_type(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    KINDS.iter().find(|k| k.kind == kind && k.version == version && k.group == group)
}

/// The stored row of a resource (`deployments.apps`, `pods`), as store keys name it.
pub fn by_resource(resource: &str) -> Option<&'static Kind> {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    KINDS.iter().find(|k| k.plural == plural && k.group == group && k.stored_as.is_none())
}

/// The stored row of a Kubernetes type.
///
/// # Panics
/// When the table lacks the type: a programming error.
pub fn of<T: k8s_openapi::Resource>() -> &'static Kind {
    by_type(T::API_VERSION, T::KIND).unwrap_or_else(|| panic!("{} {} has no row", T::API_VERSION, T::KIND))
}
