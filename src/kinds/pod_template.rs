//! PodTemplates, and the defaults of everything with a pod spec
//! (`pkg/apis/core/v1/defaults.go`).

use serde_json::{Value, json};

use super::{
    Kind, Strategy,
    columns::{self, NAME, template_cells, text},
    edit::{child, drop_empty, each, present, set_default, set_default_empty},
    meta, names, pod_spec,
    quantity::{canonicalize, canonicalize_list},
    registry::row,
};

/// Files of secrets, config maps and projections: 0644.
const FILE_MODE: i64 = 0o644;
/// A projected service account token lives an hour (seconds).
const TOKEN_SECONDS: i64 = 3600;
/// `terminationGracePeriodSeconds`.
const GRACE_PERIOD_SECONDS: i64 = 30;

pub const POD_TEMPLATE: Kind = Kind {
    columns: &[
        NAME,
        text("Containers", "Names of each container in the template."),
        text("Images", "Images referenced by each container in the template."),
        text("Pod Labels", "The labels for the pod template."),
    ],
    strategy: Strategy {
        default: |object| default_template(child(object, "template")),
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                pod_spec::check_template(&object.get("template"), &[], errors);
            })
        },
        cells: |object, _| {
            let labels = columns::labels(&object["template"]["metadata"]["labels"]);
            std::iter::once(columns::name(object)).chain(template_cells(object, labels)).collect()
        },
        ..Strategy::PLAIN
    },
    ..row("", "v1", "PodTemplate", "podtemplates", "podtemplate", "io.k8s.api.core.v1.PodTemplate")
};

/// Defaults of a pod template (`spec.template` of workloads).
pub fn default_template(template: &mut Value) {
    default_spec(child(template, "spec"));
}

/// Defaults of a pod spec wherever it stands; a Pod has some more of its own.
pub fn default_spec(spec: &mut Value) {
    drop_empty(spec, &["hostNetwork", "hostPID", "hostIPC", "nodeName", "nodeSelector", "tolerations"]);
    drop_empty(
        spec,
        &["initContainers", "ephemeralContainers", "volumes", "imagePullSecrets", "hostAliases"],
    );
    drop_empty(spec, &["hostname", "subdomain", "priorityClassName", "serviceAccountName", "serviceAccount"]);
    drop_empty(spec, &["schedulingGates", "readinessGates", "topologySpreadConstraints"]);
    set_default_empty(spec, "dnsPolicy", "ClusterFirst");
    set_default_empty(spec, "restartPolicy", "Always");
    set_default(spec, "securityContext", json!({}));
    set_default(spec, "terminationGracePeriodSeconds", GRACE_PERIOD_SECONDS);
    set_default_empty(spec, "schedulerName", "default-scheduler");
    // The older name of the same field follows the newer one.
    if let Some(name) = present(spec, "serviceAccountName").cloned() {
        spec["serviceAccount"] = name;
    } else if let Some(name) = present(spec, "serviceAccount").cloned() {
        spec["serviceAccountName"] = name;
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list).for_each(default_container);
    }
    each(spec, "volumes").for_each(default_volume);
    if let Some(overhead) = present(spec, "overhead") {
        canonicalize_list(overhead);
    }
    if let Some(resources) = present(spec, "resources") {
        default_resources(resources);
    }
}

/// Writes the amounts of `requests` and `limits` in their canonical form.
pub fn default_resources(resources: &mut Value) {
    for list in ["requests", "limits"] {
        if let Some(list) = present(resources, list) {
            canonicalize_list(list);
        }
    }
}

fn default_container(container: &mut Value) {
    drop_empty(container, &["stdin", "stdinOnce", "tty", "command", "args", "workingDir", "env", "envFrom"]);
    drop_empty(container, &["ports", "volumeMounts", "volumeDevices"]);
    if container["imagePullPolicy"].as_str().unwrap_or_default().is_empty() {
        let policy = pull_policy(container["image"].as_str().unwrap_or_default());
        container["imagePullPolicy"] = policy.into();
    }
    set_default_empty(container, "terminationMessagePath", "/dev/termination-log");
    set_default_empty(container, "terminationMessagePolicy", "File");
    default_resources(child(container, "resources"));
    for port in each(container, "ports") {
        drop_empty(port, &["hostPort", "hostIP", "name"]);
        set_default_empty(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        drop_empty(variable, &["value"]);
        let Some(from) = present(variable, "valueFrom") else { continue };
        if let Some(field) = present(from, "fieldRef") {
            set_default_empty(field, "apiVersion", "v1");
        }
        if let Some(resource) = present(from, "resourceFieldRef") {
            default_divisor(resource);
        }
        if let Some(file) = present(from, "fileKeyRef") {
            set_default(file, "optional", false);
        }
    }
    for mount in each(container, "volumeMounts") {
        drop_empty(mount, &["readOnly", "subPath", "subPathExpr"]);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = present(container, probe) else { continue };
        default_handler(probe);
        drop_empty(probe, &["initialDelaySeconds"]);
        set_default_empty(probe, "timeoutSeconds", 1);
        set_default_empty(probe, "periodSeconds", 10);
        set_default_empty(probe, "successThreshold", 1);
        set_default_empty(probe, "failureThreshold", 3);
    }
    if let Some(lifecycle) = present(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = present(lifecycle, hook) {
                default_handler(hook);
            }
        }
    }
}

/// A probe or life cycle hook.
fn default_handler(handler: &mut Value) {
    if let Some(http) = present(handler, "httpGet") {
        set_default_empty(http, "path", "/");
        set_default_empty(http, "scheme", "HTTP");
    }
    if let Some(grpc) = present(handler, "grpc") {
        set_default(grpc, "service", "");
    }
}

/// The divisor of a resource field reference is a quantity that prints as `0` when unset.
fn default_divisor(selector: &mut Value) {
    set_default(selector, "divisor", "0");
    canonicalize(&mut selector["divisor"]);
}

fn default_downward_items(source: &mut Value) {
    for file in each(source, "items") {
        if let Some(field) = present(file, "fieldRef") {
            set_default_empty(field, "apiVersion", "v1");
        }
        if let Some(resource) = present(file, "resourceFieldRef") {
            default_divisor(resource);
        }
    }
}

fn default_volume(volume: &mut Value) {
    let has_source =
        volume.as_object().is_some_and(|v| v.iter().any(|(k, source)| k != "name" && !source.is_null()));
    if !has_source {
        volume["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = present(volume, source) {
            set_default(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(limit) = present(volume, "emptyDir").and_then(|dir| present(dir, "sizeLimit")) {
        canonicalize(limit);
    }
    if let Some(path) = present(volume, "hostPath") {
        set_default(path, "type", "");
    }
    if let Some(image) = present(volume, "image")
        && image["pullPolicy"].as_str().unwrap_or_default().is_empty()
    {
        image["pullPolicy"] = pull_policy(image["reference"].as_str().unwrap_or_default()).into();
    }
    if let Some(source) = present(volume, "downwardAPI") {
        default_downward_items(source);
    }
    if let Some(projected) = present(volume, "projected") {
        for source in each(projected, "sources") {
            if let Some(token) = present(source, "serviceAccountToken") {
                set_default(token, "expirationSeconds", TOKEN_SECONDS);
            }
            if let Some(downward) = present(source, "downwardAPI") {
                default_downward_items(downward);
            }
        }
    }
    if let Some(ephemeral) = present(volume, "ephemeral")
        && let Some(template) = present(ephemeral, "volumeClaimTemplate")
    {
        default_claim_spec(child(template, "spec"));
    }
    default_network_volume(volume);
}

/// Sources that pods and PersistentVolumes share.
pub fn default_network_volume(volume: &mut Value) {
    let defaults: &[(&str, &[(&str, &str)])] = &[
        ("iscsi", &[("iscsiInterface", "default")]),
        ("rbd", &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")]),
        ("azureDisk", &[("cachingMode", "ReadWrite"), ("fsType", "ext4"), ("kind", "Shared")]),
        ("scaleIO", &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")]),
    ];
    for (source, fields) in defaults {
        if let Some(source) = present(volume, source) {
            fields.iter().for_each(|(field, value)| set_default_empty(source, field, *value));
        }
    }
    if let Some(disk) = present(volume, "azureDisk") {
        set_default(disk, "readOnly", false);
    }
}

/// The spec of a PersistentVolumeClaim, also in templates.
pub fn default_claim_spec(spec: &mut Value) {
    set_default(spec, "volumeMode", "Filesystem");
    default_resources(child(spec, "resources"));
}

/// `Always` for the tag `latest` (also when it is implied), else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or_default();
    let latest = match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none() && !name.is_empty(),
    };
    if latest { "Always" } else { "IfNotPresent" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_spec_gets_upstreams_defaults() {
        let mut template = json!({"spec": {
            "hostNetwork": false,
            "serviceAccountName": "sa",
            "containers": [{
                "name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"memory": "1024Mi", "cpu": 1}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            }],
            "volumes": [{"name": "a"}, {"name": "b", "secret": {"secretName": "s"}}, {"name": "c", "hostPath": {"path": "/"}},
                {"name": "d", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
        }});
        default_template(&mut template);
        let once = template.clone();
        assert_eq!(
            template["spec"],
            json!({
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
                "serviceAccountName": "sa", "serviceAccount": "sa",
                "containers": [{
                    "name": "c", "image": "nginx", "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"memory": "1Gi", "cpu": "1"}},
                    "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "s", "defaultMode": 420}},
                    {"name": "c", "hostPath": {"path": "/", "type": ""}},
                    {"name": "d", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}],
            })
        );
        default_template(&mut template);
        assert_eq!(template, once, "defaults are idempotent");
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        let cases = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("reg:5000/nginx", "Always"),
            ("reg:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "Always"),
            ("", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
