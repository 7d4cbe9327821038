//! NodeRestriction: a node writes its own Node object and its own pods, nothing else.

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount},
    storage::v1::CSIDriver,
};
use serde_json::Value;

use super::{Request, name_of};
use crate::{
    kinds::registry,
    objects::{
        Error, Objects, User,
        rbac::{self, Attributes},
        token::TokenSpec,
    },
};

const NODES_GROUP: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// Labels that a node may not give itself.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

/// May ask for tokens of an audience that no volume of the pod names.
const ANY_AUDIENCE: &str = "request-serviceaccounts-token-audience";

/// The node that writes, if it is one.
fn node_of<'a>(request: &Request<'a>) -> Option<&'a str> {
    node_behind(&request.options.user)
}

fn node_behind(user: &User) -> Option<&str> {
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

/// Refuses a node a token that is not for one of its pods, or for an audience that the pod does not use.
pub fn restrict_token(
    objects: &Objects,
    user: &User,
    namespace: &str,
    account: &str,
    spec: &TokenSpec,
) -> Result<(), Error> {
    let Some(node) = node_behind(user) else { return Ok(()) };
    let forbidden = |message: String| {
        let resource = registry::of::<ServiceAccount>().resource();
        Err(Error::Forbidden { resource, name: account.to_owned(), message })
    };
    let bound = spec.bound.as_ref().filter(|bound| bound.kind == "Pod" && !bound.name.is_empty());
    let Some(bound) = bound else {
        return forbidden("node requested token not bound to a pod".to_owned());
    };
    if bound.uid.is_empty() {
        return forbidden("node requested token with a pod binding without a uid".to_owned());
    }
    let pod = objects.get(registry::of::<Pod>(), namespace, &bound.name)?.typed::<Pod>();
    if pod.metadata.uid.as_ref() != Some(&bound.uid) {
        return forbidden(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            bound.uid
        ));
    }
    if pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) != Some(node) {
        return forbidden("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    let audience = match &spec.audiences[..] {
        [] => "",
        [one] => one,
        _ => return forbidden("node may only request 0 or 1 audiences".to_owned()),
    };
    let any = Attributes {
        verb: ANY_AUDIENCE,
        group: "",
        resource: audience.to_owned(),
        name: account,
        namespace,
        path: "",
        of_node: "",
    };
    if uses_audience(objects, namespace, &pod, audience) || rbac::allowed(objects, user, &any) {
        return Ok(());
    }
    forbidden(format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        user.name
    ))
}

/// Whether a volume of the pod, or the driver of one, takes tokens for the audience; the empty one is the API's.
fn uses_audience(objects: &Objects, namespace: &str, pod: &Pod, audience: &str) -> bool {
    let driver_takes = |driver: &str| {
        let driver = objects.get_typed::<CSIDriver>("", driver);
        let requests = driver.as_ref().and_then(|driver| driver.spec.token_requests.as_ref());
        requests.into_iter().flatten().any(|request| request.audience == audience)
    };
    let claim_takes = |claim: &str| {
        let volume = objects
            .get_typed::<PersistentVolumeClaim>(namespace, claim)
            .and_then(|claim| claim.spec.as_ref()?.volume_name.clone())
            .and_then(|name| objects.get_typed::<PersistentVolume>("", &name));
        let driver = volume.as_ref().and_then(|volume| Some(&volume.spec.as_ref()?.csi.as_ref()?.driver));
        driver.is_some_and(|driver| driver_takes(driver))
    };
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let mut tokens = sources.filter_map(|source| source.service_account_token.as_ref());
        tokens.any(|token| token.audience.as_deref().unwrap_or_default() == audience)
            || volume.csi.as_ref().is_some_and(|csi| driver_takes(&csi.driver))
            || volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim_takes(&claim.claim_name))
            || volume.ephemeral.is_some() && claim_takes(&format!("{pod_name}-{}", volume.name))
    })
}
