//! NodeRestriction: a node writes its own Node object and its own pods, nothing else.

use serde_json::Value;

use super::{Request, name_of};
use crate::objects::Error;

const NODES_GROUP: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// Labels that a node may not give itself.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

/// The node that writes, if it is one.
fn node_of<'a>(request: &Request<'a>) -> Option<&'a str> {
    let user = &request.options.user;
    user.groups.iter().any(|g| g == NODES_GROUP).then(|| user.name.strip_prefix(NODE_PREFIX)).flatten()
}

pub fn restrict(request: &Request<'_>, value: &Value) -> Result<(), Error> {
    let Some(node) = node_of(request) else { return Ok(()) };
    let name = name_of(value);
    if request.is("", "Node") {
        if name != node {
            return Err(
                request.forbidden(name, format!("node {node:?} is not allowed to modify node {name:?}"))
            );
        }
        let empty = Value::Null;
        let old = request.old.unwrap_or(&empty);
        let restricted = |object: &Value| -> Vec<(String, Value)> {
            let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
            labels
                .filter(|(k, _)| k.contains(RESTRICTED_LABELS))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        };
        if restricted(value) != restricted(old) {
            let message = format!("is not allowed to modify labels: {RESTRICTED_LABELS}*");
            return Err(request.forbidden(name, message));
        }
        if request.old.is_some() && value["spec"]["taints"] != old["spec"]["taints"] {
            return Err(request.forbidden(name, format!("node {node:?} is not allowed to modify taints")));
        }
        return Ok(());
    }
    if request.is("", "Pod") {
        let own = request.old.unwrap_or(value)["spec"]["nodeName"].as_str().unwrap_or_default();
        if own != node {
            let message =
                format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself");
            return Err(request.forbidden(name, message));
        }
        if request.old.is_none()
            && value["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_none()
        {
            let message = format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            );
            return Err(request.forbidden(name, message));
        }
        return Ok(());
    }
    if request.is("coordination.k8s.io", "Lease") && (request.namespace != "kube-node-lease" || name != node)
    {
        let message = "can only access node lease with the same name as the requesting node";
        return Err(request.forbidden(name, message));
    }
    Ok(())
}

pub fn restrict_delete(request: &Request<'_>, name: &str) -> Result<(), Error> {
    let Some(node) = node_of(request) else { return Ok(()) };
    if request.is("", "Node") {
        return Err(request.forbidden(name, format!("node {node:?} is not allowed to delete node {name:?}")));
    }
    let own = request.old.map(|o| o["spec"]["nodeName"].as_str().unwrap_or_default());
    if request.is("", "Pod") && own != Some(node) {
        let message = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
        return Err(request.forbidden(name, message));
    }
    Ok(())
}
