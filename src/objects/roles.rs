//! Upstream's default ClusterRoles and bindings
//! (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`), without those of upstream's own components
//! that do not exist here.

use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

/// A rule for resources.
fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources})
}

fn paths(paths: &[&str]) -> Value {
    json!({"verbs": ["get"], "nonResourceURLs": paths})
}

fn labelled(name: &str, extra: &Value) -> Value {
    let mut labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    for (key, value) in extra.as_object().into_iter().flatten() {
        labels[key] = value.clone();
    }
    json!({"name": name, "labels": labels, "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"metadata": labelled(name, &Value::Null), "rules": rules})
}

/// A role that is part of `admin`, `edit` or `view`.
fn part(name: &str, of: &str, rules: Vec<Value>) -> Value {
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{of}");
    json!({"metadata": labelled(name, &json!({label: "true"})), "rules": rules})
}

/// A role whose rules are those of its parts.
fn whole(name: &str, labels: &Value) -> Value {
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    json!({"metadata": labelled(name, labels), "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}})
}

/// A role that approves for one signer.
fn approver(name: &str, signer: &str) -> Value {
    let mut signers = rule(&["approve"], "certificates.k8s.io", &["signers"]);
    signers["resourceNames"] = json!([signer]);
    role(&format!("system:certificates.k8s.io:{name}"), vec![signers])
}

/// The ClusterRoles.
pub fn cluster_roles() -> Vec<Value> {
    let discovery = &[
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let core = &[
        "configmaps",
        "endpoints",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    let core_more = &[
        "bindings",
        "events",
        "limitranges",
        "namespaces/status",
        "pods/log",
        "pods/status",
        "replicationcontrollers/status",
        "resourcequotas",
        "resourcequotas/status",
    ];
    let apps = &[
        "controllerrevisions",
        "daemonsets",
        "daemonsets/status",
        "deployments",
        "deployments/scale",
        "deployments/status",
        "replicasets",
        "replicasets/scale",
        "replicasets/status",
        "statefulsets",
        "statefulsets/scale",
        "statefulsets/status",
    ];
    let apps_write = &[
        "daemonsets",
        "deployments",
        "deployments/rollback",
        "deployments/scale",
        "replicasets",
        "replicasets/scale",
        "statefulsets",
        "statefulsets/scale",
    ];
    let networking = &["ingresses", "ingresses/status", "networkpolicies"];
    vec![
        json!({"metadata": labelled("cluster-admin", &Value::Null), "rules": [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}]}),
        role("system:discovery", vec![paths(discovery)]),
        role(
            "system:public-info-viewer",
            vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])],
        ),
        role(
            "system:basic-user",
            vec![
                rule(
                    &["create"],
                    "authorization.k8s.io",
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                ),
                rule(&["create"], "authentication.k8s.io", &["selfsubjectreviews"]),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![paths(&[
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ])],
        ),
        role(
            "system:monitoring",
            vec![paths(&[
                "/healthz",
                "/healthz/*",
                "/livez",
                "/livez/*",
                "/metrics",
                "/metrics/slis",
                "/readyz",
                "/readyz/*",
            ])],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
                rule(&["create"], "authorization.k8s.io", &["subjectaccessreviews"]),
            ],
        ),
        role("system:kube-dns", vec![rule(&["list", "watch"], "", &["endpoints", "services"])]),
        role(
            "system:node-bootstrapper",
            vec![rule(
                &["create", "get", "list", "watch"],
                "certificates.k8s.io",
                &["certificatesigningrequests"],
            )],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            vec![rule(&["create"], "certificates.k8s.io", &["certificatesigningrequests/nodeclient"])],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            vec![rule(&["create"], "certificates.k8s.io", &["certificatesigningrequests/selfnodeclient"])],
        ),
        approver("kube-apiserver-client-approver", "kubernetes.io/kube-apiserver-client"),
        approver("kube-apiserver-client-kubelet-approver", "kubernetes.io/kube-apiserver-client-kubelet"),
        approver("kubelet-serving-approver", "kubernetes.io/kubelet-serving"),
        approver("legacy-unknown-approver", "kubernetes.io/legacy-unknown"),
        role(
            "system:persistent-volume-provisioner",
            vec![
                rule(&["create", "delete", "get", "list", "watch"], "", &["persistentvolumes"]),
                rule(&["get", "list", "update", "watch"], "", &["persistentvolumeclaims"]),
                rule(READ, "storage.k8s.io", &["storageclasses"]),
                rule(&["watch"], "", &["events"]),
                rule(&["create", "list", "patch", "update", "watch"], "", &["events"]),
            ],
        ),
        json!({
            "metadata": labelled("system:aggregated-metrics-reader", &json!({
                "rbac.authorization.k8s.io/aggregate-to-admin": "true",
                "rbac.authorization.k8s.io/aggregate-to-edit": "true",
                "rbac.authorization.k8s.io/aggregate-to-view": "true",
            })),
            "rules": [rule(READ, "metrics.k8s.io", &["nodes", "pods"])],
        }),
        whole("admin", &Value::Null),
        whole("edit", &json!({"rbac.authorization.k8s.io/aggregate-to-admin": "true"})),
        whole("view", &json!({"rbac.authorization.k8s.io/aggregate-to-edit": "true"})),
        part(
            "system:aggregate-to-admin",
            "admin",
            vec![
                rule(&["create"], "authorization.k8s.io", &["localsubjectaccessreviews"]),
                rule(&[READ, WRITE].concat(), "rbac.authorization.k8s.io", &["rolebindings", "roles"]),
            ],
        ),
        part(
            "system:aggregate-to-edit",
            "edit",
            vec![
                rule(
                    READ,
                    "",
                    &[
                        "pods/attach",
                        "pods/exec",
                        "pods/portforward",
                        "pods/proxy",
                        "secrets",
                        "services/proxy",
                    ],
                ),
                rule(&["impersonate"], "", &["serviceaccounts"]),
                rule(WRITE, "", &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"]),
                rule(&["create"], "", &["pods/eviction", "serviceaccounts/token"]),
                rule(
                    WRITE,
                    "",
                    &[
                        "configmaps",
                        "events",
                        "persistentvolumeclaims",
                        "replicationcontrollers",
                        "replicationcontrollers/scale",
                        "secrets",
                        "serviceaccounts",
                        "services",
                        "services/proxy",
                    ],
                ),
                rule(WRITE, "apps", apps_write),
                rule(WRITE, "autoscaling", &["horizontalpodautoscalers"]),
                rule(WRITE, "batch", &["cronjobs", "jobs"]),
                rule(WRITE, "policy", &["poddisruptionbudgets"]),
                rule(WRITE, "networking.k8s.io", &["ingresses", "networkpolicies"]),
                rule(&[READ, WRITE].concat(), "coordination.k8s.io", &["leases"]),
            ],
        ),
        part(
            "system:aggregate-to-view",
            "view",
            vec![
                rule(READ, "", core),
                rule(READ, "", core_more),
                rule(READ, "", &["namespaces"]),
                rule(READ, "discovery.k8s.io", &["endpointslices"]),
                rule(READ, "apps", apps),
                rule(READ, "autoscaling", &["horizontalpodautoscalers", "horizontalpodautoscalers/status"]),
                rule(READ, "batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
                rule(READ, "policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
                rule(READ, "networking.k8s.io", networking),
            ],
        ),
    ]
}

/// The ClusterRoleBindings: role, and the groups that have it.
pub fn cluster_role_bindings() -> Vec<Value> {
    let rows: [(&str, &str, &[&str]); 6] = [
        ("cluster-admin", "cluster-admin", &["system:masters"]),
        ("system:discovery", "system:discovery", &["system:authenticated"]),
        ("system:basic-user", "system:basic-user", &["system:authenticated"]),
        (
            "system:public-info-viewer",
            "system:public-info-viewer",
            &["system:authenticated", "system:unauthenticated"],
        ),
        (
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &["system:serviceaccounts"],
        ),
        ("system:monitoring", "system:monitoring", &["system:monitoring"]),
    ];
    rows.into_iter()
        .map(|(name, role, groups)| {
            let subjects: Vec<Value> = groups
                .iter()
                .map(|group| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": group}))
                .collect();
            json!({"metadata": labelled(name, &Value::Null), "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
        })
        .collect()
}
