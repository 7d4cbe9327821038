//! Warnings about pods and pod templates (`pkg/api/pod/warnings.go`), and about what is accepted
//! here but has no effect.

use serde_json::Value;

use super::{at::At, meta, names, quantity::Quantity};

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// Node labels that have newer names.
const RENAMED_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
];

/// Volumes that no board has a driver for.
const UNSUPPORTED_VOLUMES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "iscsi",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Parts of projected volumes that nobody here makes.
const UNSUPPORTED_PROJECTIONS: &[&str] = &["clusterTrustBundle", "podCertificate"];

/// Warnings about a pod.
pub fn of_pod(pod: &Value) -> Vec<String> {
    let mut warnings =
        name_warning(pod, "the Pod's hostname, which can result in surprising behavior; a DNS label is");
    of_metadata(&At::root(pod).get("metadata"), &mut warnings);
    of_spec(&At::root(pod).get("spec"), &mut warnings);
    warnings
}

/// Warnings about a workload's name and its pod template.
pub fn of_workload(object: &Value) -> Vec<String> {
    let mut warnings = name_warning(
        object,
        "Pod names and hostnames, which can result in surprising behavior; a DNS label is",
    );
    of_template(&At::root(object).get("spec").get("template"), &mut warnings);
    warnings
}

/// Warnings about a pod template.
pub fn of_template(template: &At<'_>, warnings: &mut Vec<String>) {
    of_metadata(&template.get("metadata"), warnings);
    of_spec(&template.get("spec"), warnings);
}

fn name_warning(object: &Value, used_in: &str) -> Vec<String> {
    let wrong = names::dns_label(object["metadata"]["name"].as_str().unwrap_or_default());
    if wrong.is_empty() || !meta::is_new(object) {
        return Vec::new();
    }
    vec![format!("metadata.name: this is used in {used_in} recommended: [{}]", wrong.join(" "))]
}

fn of_metadata(metadata: &At<'_>, warnings: &mut Vec<String>) {
    let annotations = metadata.get("annotations");
    for (key, _) in annotations.entries() {
        let pod = key == "seccomp.security.alpha.kubernetes.io/pod";
        if pod || key.starts_with("container.seccomp.security.alpha.kubernetes.io/") {
            warnings.push(format!(
                "{}[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead",
                annotations.path
            ));
        }
    }
}

fn of_spec(spec: &At<'_>, warnings: &mut Vec<String>) {
    let selector = spec.get("nodeSelector");
    for (label, detail) in RENAMED_LABELS {
        if selector.key(label).is_set() {
            warnings.push(format!("{}[{label}]: {detail}", selector.path));
        }
    }
    of_lists(spec, warnings);
    for volume in spec.get("volumes").items() {
        for source in UNSUPPORTED_VOLUMES.iter().filter(|s| volume.get(s).is_set()) {
            warnings.push(format!(
                "{}.{source}: not supported by this cluster; the pod will not start",
                volume.path
            ));
        }
    }
    for volume in spec.get("volumes").items() {
        for source in volume.get("projected").get("sources").items() {
            for kind in UNSUPPORTED_PROJECTIONS.iter().filter(|kind| source.get(kind).is_set()) {
                warnings.push(format!(
                    "{}.{kind}: not supported by this cluster; the pod will not start",
                    source.path
                ));
            }
        }
    }
    if spec.get("schedulingGroup").is_set() {
        let path = spec.get("schedulingGroup").path;
        warnings.push(format!("{path}: not supported by this cluster; the pod is scheduled by itself"));
    }
    if !spec.get("resourceClaims").is_empty() {
        let path = spec.get("resourceClaims").path;
        warnings.push(format!("{path}: not supported by this cluster; no device will be allocated"));
    }
    if spec.get("hostUsers").value == &Value::Bool(false) {
        let path = spec.get("hostUsers").path;
        warnings.push(format!(
            "{path}: user namespaces are not supported by this cluster; the pod will not start"
        ));
    }
    if spec.get("os").get("name").str() == "windows" {
        warnings.push(format!("{}.os.name: windows pods are not supported by this cluster", spec.path));
    }
    let grace = spec.get("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|s| s < 0) {
        warnings.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            grace.path
        ));
    }
    for constraint in spec.get("topologySpreadConstraints").items() {
        let selector = constraint.get("labelSelector");
        if !selector.is_set() {
            warnings.push(format!("{}: a null labelSelector results in matching no pod", selector.path));
        }
    }
    for list in CONTAINER_LISTS {
        spec.get(list).items().for_each(|container| of_container(&container, warnings));
    }
}

/// Names that are empty or stand twice in lists where that is allowed.
fn of_lists(spec: &At<'_>, warnings: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for secret in spec.get("imagePullSecrets").items() {
        let name = secret.get("name").str();
        if name.is_empty() {
            warnings.push(format!("{}: invalid empty name \"\"", secret.path));
        } else if seen.contains(&name) {
            warnings.push(format!("{}: duplicate name {name:?}", secret.path));
        }
        seen.push(name);
    }
    let mut seen: Vec<(&str, String)> = Vec::new();
    for alias in spec.get("hostAliases").items() {
        let ip = alias.get("ip");
        if let Some((_, first)) = seen.iter().find(|(known, _)| *known == ip.str()) {
            warnings.push(format!("{}: duplicates {first}", ip.path));
        }
        seen.push((ip.str(), ip.path.clone()));
    }
}

fn of_container(container: &At<'_>, warnings: &mut Vec<String>) {
    if !container.get("volumeDevices").is_empty() {
        let path = container.get("volumeDevices").path;
        warnings.push(format!("{path}: not supported by this cluster; the pod will not start"));
    }
    for list in ["limits", "requests"] {
        let list = container.get("resources").get(list);
        for resource in ["memory", "ephemeral-storage"] {
            let at = list.key(resource);
            if let Ok(quantity) = Quantity::from_json(at.value)
                && !quantity.is_whole()
            {
                let text = quantity.to_string();
                warnings.push(format!(
                    "{}: fractional byte value {text:?} is invalid, must be an integer",
                    at.path
                ));
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for variable in container.get("env").items() {
        let name = variable.get("name").str();
        if seen.contains(&name) && !variable.get("value").str().contains("$(") {
            warnings.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                variable.path
            ));
        }
        seen.push(name);
    }
    let mut seen = Vec::new();
    for port in container.get("ports").items() {
        let number = |field: &str| port.get(field).int().unwrap_or(0);
        let key = (
            number("containerPort"),
            number("hostPort"),
            port.get("protocol").str(),
            port.get("hostIP").str(),
        );
        if let Some((_, first)) = seen.iter().find(|(known, _)| *known == key) {
            warnings.push(format!("{}: duplicate port definition with {first}", port.path));
        }
        seen.push((key, port.path));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_deprecated_or_without_effect_is_told() {
        let pod = json!({"metadata": {"name": "a.b"}, "spec": {
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "hostUsers": false,
            "schedulingGroup": {"podGroupName": "g"},
            "volumes": [
                {"name": "v", "csi": {"driver": "d"}},
                {"name": "p", "projected": {"sources": [{"secret": {}}, {"podCertificate": {"signerName": "s"}}]}},
            ],
            "containers": [{"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
                "resources": {"limits": {"memory": "100m"}}}],
        }});
        assert_eq!(
            of_pod(&pod),
            [
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.volumes[0].csi: not supported by this cluster; the pod will not start",
                "spec.volumes[1].projected.sources[1].podCertificate: not supported by this cluster; the pod will not start",
                "spec.schedulingGroup: not supported by this cluster; the pod is scheduled by itself",
                "spec.hostUsers: user namespaces are not supported by this cluster; the pod will not start",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
            ]
        );
        assert_eq!(
            of_pod(&json!({"metadata": {"name": "a"}, "spec": {"containers": [{}]}})),
            Vec::<String>::new()
        );
    }
}
