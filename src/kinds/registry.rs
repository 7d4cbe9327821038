//! The table itself, and the ways to find a row.

use super::{
    Durability, Kind, Strategy, certificate_signing_request as csr, component_status, config_map,
    controller_revision, cron_job, csi, daemon_set, deployment, endpoint_slice, endpoints, event,
    flow_control, horizontal_pod_autoscaler as hpa, ingress, job, lease, limit_range, namespace,
    network_policy, node, persistent_volume, persistent_volume_claim, pod, pod_disruption_budget,
    pod_template, priority_class, rbac, replica_set, replication_controller, resource_quota, reviews,
    runtime_class, secret, service, service_account, service_cidr, stateful_set, storage_class,
    volume_attachment,
};

/// Every verb a stored kind has.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// All rows: groups in the order of discovery, the preferred version of a group first, kinds by
/// their plural.
pub static KINDS: &[Kind] = &[
    pod::BINDING,
    component_status::COMPONENT_STATUS,
    config_map::CONFIG_MAP,
    endpoints::ENDPOINTS,
    event::EVENT,
    limit_range::LIMIT_RANGE,
    namespace::NAMESPACE,
    node::NODE,
    persistent_volume_claim::PERSISTENT_VOLUME_CLAIM,
    persistent_volume::PERSISTENT_VOLUME,
    pod::POD,
    pod_template::POD_TEMPLATE,
    replication_controller::REPLICATION_CONTROLLER,
    resource_quota::RESOURCE_QUOTA,
    secret::SECRET,
    service_account::SERVICE_ACCOUNT,
    service::SERVICE,
    controller_revision::CONTROLLER_REVISION,
    daemon_set::DAEMON_SET,
    deployment::DEPLOYMENT,
    replica_set::REPLICA_SET,
    stateful_set::STATEFUL_SET,
    event::EVENT_V1,
    reviews::SELF_SUBJECT_REVIEW,
    reviews::TOKEN_REVIEW,
    reviews::LOCAL_SUBJECT_ACCESS_REVIEW,
    reviews::SELF_SUBJECT_ACCESS_REVIEW,
    reviews::SELF_SUBJECT_RULES_REVIEW,
    reviews::SUBJECT_ACCESS_REVIEW,
    hpa::HORIZONTAL_POD_AUTOSCALER,
    hpa::HORIZONTAL_POD_AUTOSCALER_V1,
    cron_job::CRON_JOB,
    job::JOB,
    csr::CERTIFICATE_SIGNING_REQUEST,
    ingress::INGRESS_CLASS,
    ingress::INGRESS,
    service_cidr::IP_ADDRESS,
    network_policy::NETWORK_POLICY,
    service_cidr::SERVICE_CIDR,
    pod_disruption_budget::POD_DISRUPTION_BUDGET,
    rbac::CLUSTER_ROLE_BINDING,
    rbac::CLUSTER_ROLE,
    rbac::ROLE_BINDING,
    rbac::ROLE,
    csi::CSI_DRIVER,
    csi::CSI_NODE,
    csi::CSI_STORAGE_CAPACITY,
    storage_class::STORAGE_CLASS,
    volume_attachment::VOLUME_ATTACHMENT,
    storage_class::VOLUME_ATTRIBUTES_CLASS,
    priority_class::PRIORITY_CLASS,
    lease::LEASE,
    runtime_class::RUNTIME_CLASS,
    endpoint_slice::ENDPOINT_SLICE,
    flow_control::FLOW_SCHEMA,
    flow_control::PRIORITY_LEVEL_CONFIGURATION,
];

/// A namespaced kind on disk with every verb; rows say how they differ.
pub(super) const fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    schema: &'static str,
) -> Kind {
    Kind {
        group,
        version,
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        schema,
        durability: Durability::Disk,
        stored_as: None,
        columns: &[],
        strategy: Strategy::PLAIN,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_one_place() {
        for (i, kind) in KINDS.iter().enumerate() {
            let same = |k: &Kind| {
                k.group == kind.group
                    && k.version == kind.version
                    && (k.plural == kind.plural || k.kind == kind.kind)
            };
            assert_eq!(KINDS.iter().position(same), Some(i), "{}", kind.resource());
            assert!(kind.singular.eq_ignore_ascii_case(kind.kind));
            assert!(kind.schema.ends_with(&format!(".{}.{}", kind.version, kind.kind)), "{}", kind.schema);
        }
    }

    #[test]
    fn another_form_names_a_stored_row() {
        for stored in KINDS.iter().filter_map(|k| k.stored_as) {
            let row = by_path(stored.group, stored.version, stored.plural).expect("stored row");
            assert!(row.stored_as.is_none());
        }
        assert_eq!(by_resource("events").map(|k| k.group), Some(""));
        assert_eq!(by_resource("horizontalpodautoscalers.autoscaling").map(|k| k.version), Some("v2"));
    }
}
