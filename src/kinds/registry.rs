//! The table itself, and the ways to find a row.

use super::{
    Durability, Kind, Strategy, certificate_signing_request as csr, columns::CREATED_COLUMNS,
    component_status, config_map, controller_revision, cron_job, csi, daemon_set, deployment, endpoint_slice,
    endpoints, event, flow_control, horizontal_pod_autoscaler as hpa, ingress, job, lease, limit_range,
    namespace, network_policy, node, persistent_volume, persistent_volume_claim, pod, pod_disruption_budget,
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
        created_by_put: false,
        updated_with_revision: false,
        deprecated: None,
        columns: CREATED_COLUMNS,
        strategy: Strategy::PLAIN,
    }
}

/// The row of a path (`apps`, `v1`, `deployments`).
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.plural == plural && k.version == version && k.group == group)
}

/// The row under which a kind's objects are stored.
pub fn stored(kind: &'static Kind) -> &'static Kind {
    kind.stored_as.and_then(|s| by_path(s.group, s.version, s.plural)).unwrap_or(kind)
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

    /// Every printer of upstream 1.36 (`pkg/printers/internalversion/printers.go`): `*` has the format
    /// `name`, `#` counts, `?` is true or false, `@` is a date, `+` is shown by `-o wide` only.
    const PRINTED: &str = "\
pods: Name*, Ready, Status, Restarts, Age, IP+, Node+, Nominated Node+, Readiness Gates+\n\
podtemplates: Name*, Containers, Images, Pod Labels\n\
poddisruptionbudgets.policy: Name*, Min Available, Max Unavailable, Allowed Disruptions#, Age\n\
replicationcontrollers: Name*, Desired#, Current#, Ready#, Age, Containers+, Images+, Selector+\n\
replicasets.apps: Name*, Desired#, Current#, Ready#, Age, Containers+, Images+, Selector+\n\
daemonsets.apps: Name*, Desired#, Current#, Ready#, Up-to-date#, Available#, Node Selector, Age, Containers+, Images+, Selector+\n\
jobs.batch: Name*, Status, Completions, Duration, Age, Containers+, Images+, Selector+\n\
cronjobs.batch: Name*, Schedule, Timezone, Suspend?, Active#, Last Schedule, Age, Containers+, Images+, Selector+\n\
services: Name*, Type, Cluster-IP, External-IP, Port(s), Age, Selector+\n\
ingresses.networking.k8s.io: Name*, Class, Hosts, Address, Ports, Age\n\
ingressclasses.networking.k8s.io: Name*, Controller, Parameters, Age\n\
statefulsets.apps: Name*, Ready, Age, Containers+, Images+\n\
endpoints: Name*, Endpoints, Age\n\
nodes: Name*, Status, Roles, Age, Version, Internal-IP+, External-IP+, OS-Image+, Kernel-Version+, Container-Runtime+\n\
events: Last Seen, Type, Reason, Object, Subobject+, Source+, Message, First Seen+, Count+, Name*+\n\
namespaces: Name*, Status, Age\n\
secrets: Name*, Type, Data, Age\n\
serviceaccounts: Name*, Age\n\
persistentvolumes: Name*, Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, Reason, Age, VolumeMode+\n\
persistentvolumeclaims: Name*, Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass, Age, VolumeMode+\n\
componentstatuses: Name*, Status, Message, Error\n\
deployments.apps: Name*, Ready, Up-to-date, Available, Age, Containers+, Images+, Selector+\n\
horizontalpodautoscalers.autoscaling: Name*, Reference, Targets, MinPods, MaxPods, Replicas, Age\n\
configmaps: Name*, Data, Age\n\
networkpolicies.networking.k8s.io: Name*, Pod-Selector, Age\n\
rolebindings.rbac.authorization.k8s.io: Name*, Role, Age, Users+, Groups+, ServiceAccounts+\n\
clusterrolebindings.rbac.authorization.k8s.io: Name*, Role, Age, Users+, Groups+, ServiceAccounts+\n\
certificatesigningrequests.certificates.k8s.io: Name*, Age, SignerName, Requestor, RequestedDuration, Condition\n\
leases.coordination.k8s.io: Name*, Holder, Age\n\
storageclasses.storage.k8s.io: Name*, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age\n\
volumeattributesclasses.storage.k8s.io: Name*, DriverName, Age\n\
controllerrevisions.apps: Name*, Controller, Revision, Age\n\
resourcequotas: Name*, Request, Limit, Age\n\
priorityclasses.scheduling.k8s.io: Name*, Value#, Global-Default?, Age, PreemptionPolicy\n\
runtimeclasses.node.k8s.io: Name*, Handler, Age\n\
volumeattachments.storage.k8s.io: Name*, Attacher*, PV, Node, Attached?, Age\n\
endpointslices.discovery.k8s.io: Name*, AddressType, Ports, Endpoints, Age\n\
csinodes.storage.k8s.io: Name*, Drivers#, Age\n\
csidrivers.storage.k8s.io: Name*, AttachRequired?, PodInfoOnMount?, StorageCapacity?, TokenRequests, RequiresRepublish?, Modes, Age\n\
csistoragecapacities.storage.k8s.io: Name*, StorageClassName, Capacity\n\
flowschemas.flowcontrol.apiserver.k8s.io: Name*, PriorityLevel, MatchingPrecedence, DistinguisherMethod, Age, MissingPL\n\
prioritylevelconfigurations.flowcontrol.apiserver.k8s.io: Name*, Type, NominalConcurrencyShares, Queues, HandSize, QueueLengthLimit, Age\n\
servicecidrs.networking.k8s.io: Name*, CIDRs, Age\n\
ipaddresses.networking.k8s.io: Name*, ParentRef\n\
limitranges: Name*, Created At@\n\
roles.rbac.authorization.k8s.io: Name*, Created At@\n\
clusterroles.rbac.authorization.k8s.io: Name*, Created At@\n\
";

    #[test]
    fn tables_have_upstreams_columns() {
        let mut printed = std::collections::BTreeMap::new();
        for line in PRINTED.lines() {
            let (resource, columns) = line.split_once(": ").expect("a resource and its columns");
            printed.insert(resource, columns);
        }
        let shown = |kind: &Kind| {
            let column = |c: &crate::kinds::Column| {
                let mark = match (c.format, c.kind) {
                    ("name", _) => "*",
                    (_, "integer") => "#",
                    (_, "boolean") => "?",
                    (_, "date") => "@",
                    _ => "",
                };
                format!("{}{mark}{}", c.name, if c.priority > 0 { "+" } else { "" })
            };
            kind.columns.iter().map(column).collect::<Vec<_>>().join(", ")
        };
        let now = jiff::Timestamp::from_second(120).expect("a time");
        for kind in KINDS.iter().filter(|k| k.verbs.contains(&"list")) {
            let stored = kind.stored_as.map_or((kind.plural, kind.group), |s| (s.plural, s.group));
            let resource =
                if stored.1.is_empty() { stored.0.to_owned() } else { format!("{}.{}", stored.0, stored.1) };
            assert_eq!(Some(shown(kind).as_str()), printed.get(resource.as_str()).copied(), "{resource}");
            let metadata = serde_json::json!({"name": "x", "creationTimestamp": "1970-01-01T00:00:00Z"});
            let empty = serde_json::json!({"metadata": metadata, "spec": {}, "status": {}});
            let cells = (kind.strategy.cells)(&empty, now);
            assert_eq!(cells.len(), kind.columns.len(), "{resource}");
            for (column, cell) in kind.columns.iter().zip(cells).filter(|(c, _)| c.name == "Age") {
                assert_eq!(cell, "2m", "{resource} {}", column.name);
            }
        }
    }
}
