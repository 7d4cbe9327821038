//! What a pod may know of itself: `fieldRef` and `resourceFieldRef`.
//!
//! Source: `pkg/fieldpath`, `pkg/api/v1/resource/helpers.go` (`ExtractContainerResourceValue`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::record::Wanted;
use crate::kinds::quantity::Quantity;

/// What of the node shows through.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub node_name: String,
    pub host_ip: String,
    pub pod_ip: String,
    /// The node's allocatable amounts: what a missing limit stands for.
    pub allocatable: BTreeMap<String, String>,
}

/// The value of a field path.
///
/// # Errors
/// The path is not supported.
pub fn field(wanted: &Wanted, path: &str, facts: &Facts) -> Result<String, String> {
    let meta = &wanted.pod.metadata;
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => return Ok(annotations(wanted).remove(key).unwrap_or_default()),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => wanted.name.clone(),
        "metadata.namespace" => wanted.namespace.clone(),
        "metadata.uid" => wanted.uid.clone(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(Some(&annotations(wanted))),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => wanted.spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// A pod's annotations, and where it is from and since when, as kubelet adds it. We know no better when than its
/// creation, which is the same after each boot.
fn annotations(wanted: &Wanted) -> BTreeMap<String, String> {
    let meta = &wanted.pod.metadata;
    let seen = meta.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
    let mut all = meta.annotations.clone().unwrap_or_default();
    all.insert("kubernetes.io/config.seen".to_owned(), seen);
    all.insert("kubernetes.io/config.source".to_owned(), "api".to_owned());
    all
}

/// A map as the downward API writes it into a file: `key="escaped value"`, a line each, by key.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The value of `limits.cpu` and the like, divided and rounded up.
///
/// # Errors
/// The container or the resource is not known.
pub fn resource(
    wanted: &Wanted,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match named {
        Some(name) => wanted.container(name).map(|(_, c)| c),
        None => container,
    };
    let container = container.ok_or_else(|| "container of resourceFieldRef not found".to_owned())?;
    let Some((list, name)) = selector.resource.split_once('.') else {
        return Err(format!("unsupported container resource : {}", selector.resource));
    };
    let resources = container.resources.clone().unwrap_or_default();
    let get = |list: &Option<BTreeMap<String, ApiQuantity>>| {
        list.as_ref().and_then(|l| l.get(name)).map(|q| q.0.clone())
    };
    let limit = get(&resources.limits).or_else(|| facts.allocatable.get(name).cloned());
    let text = match list {
        "limits" => limit,
        "requests" => get(&resources.requests),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let amount: Quantity = text.as_deref().unwrap_or("0").parse().unwrap_or(Quantity::from_value(0));
    let divisor = selector.divisor.as_ref().map_or("0", |d| d.0.as_str());
    let divisor: Quantity = divisor.parse().unwrap_or(Quantity::from_value(1));
    let (amount, divisor) = if name == "cpu" {
        (amount.milli_value(), if divisor.is_zero() { 1000 } else { divisor.milli_value() })
    } else {
        (amount.value(), if divisor.is_zero() { 1 } else { divisor.value() })
    };
    Ok(amount
        .div_euclid(divisor.max(1))
        .saturating_add(i64::from(amount.rem_euclid(divisor.max(1)) > 0))
        .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources_are_read() {
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": "2026-11-28T10:00:00Z", "annotations": {"a": "x\"y"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}]},
        });
        let wanted = Wanted::new(serde_json::from_value(pod).unwrap());
        let facts = Facts {
            pod_ip: "10.42.0.9".into(),
            allocatable: [("memory".to_owned(), "1Gi".to_owned())].into(),
            ..Facts::default()
        };
        assert_eq!(field(&wanted, "status.podIP", &facts).unwrap(), "10.42.0.9");
        assert_eq!(
            field(&wanted, "metadata.annotations", &facts).unwrap(),
            "a=\"x\\\"y\"\nkubernetes.io/config.seen=\"2026-11-28T10:00:00Z\"\nkubernetes.io/config.source=\"api\""
        );
        let source = field(&wanted, "metadata.annotations['kubernetes.io/config.source']", &facts);
        assert_eq!(source.unwrap(), "api");
        assert!(field(&wanted, "spec.hostname", &facts).is_err());
        let resource = |name: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                resource: name.into(),
                divisor: divisor.map(|d| ApiQuantity(d.into())),
                container_name: Some("c".into()),
            };
            resource(&wanted, None, &selector, &facts).unwrap()
        };
        assert_eq!(resource("limits.cpu", None), "2");
        assert_eq!(resource("limits.cpu", Some("1m")), "1500");
        assert_eq!(resource("requests.memory", Some("1Mi")), "64");
        assert_eq!(resource("limits.memory", Some("1Mi")), "1024");
    }
}
