//! ServiceAccount: a pod runs as an account, and finds its token, the cluster's authority and its
//! namespace in a projected volume.

use serde_json::{Value, json};

use super::{Request, name_of};
use crate::{
    ids,
    kinds::{registry, remove},
    objects::Error,
};

/// Where containers find the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Life of the projected token (seconds): an hour and the slack that upstream adds.
const TOKEN_SECONDS: i64 = 3607;
/// Pods that a node made by itself; they get nothing of the API.
const MIRROR: &str = "kubernetes.io/config.mirror";

pub fn admit(request: &Request<'_>, pod: &mut Value) -> Result<(), Error> {
    if !request.is_create_of("", "Pod") {
        return Ok(());
    }
    if pod["metadata"]["annotations"].get(MIRROR).is_some() {
        if !pod["spec"]["serviceAccountName"].is_null() {
            return Err(request.forbidden(name_of(pod), "a mirror pod may not reference service accounts"));
        }
        return Ok(());
    }
    let named = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|f| pod["spec"][f].as_str().filter(|n| !n.is_empty()))
        .unwrap_or("default")
        .to_owned();
    pod["spec"]["serviceAccountName"] = named.as_str().into();
    pod["spec"]["serviceAccount"] = named.as_str().into();
    let kind = registry::of::<k8s_openapi::api::core::v1::ServiceAccount>();
    let account = request.objects.get(kind, request.namespace, &named).map_err(|_| {
        let message = format!(
            "error looking up service account {}/{named}: serviceaccount {named:?} not found",
            request.namespace
        );
        request.forbidden(name_of(pod), message)
    })?;
    let account = account.value();
    let wanted = pod["spec"]["automountServiceAccountToken"].as_bool();
    if wanted.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount(pod);
    }
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty) {
        match account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|s| !s.is_empty())) {
            Some(secrets) => pod["spec"]["imagePullSecrets"] = secrets.clone(),
            None => remove(&mut pod["spec"], "imagePullSecrets"),
        }
    }
    Ok(())
}

fn mount(pod: &mut Value) {
    let existing = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", ids::name_suffix(5)));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array();
            if mounts.is_some_and(|all| all.iter().any(|m| m["mountPath"] == MOUNT_PATH)) {
                continue;
            }
            used = true;
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
        }
    }
    if !used || existing.is_some() {
        return;
    }
    let projected = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match pod["spec"]["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(projected),
        None => pod["spec"]["volumes"] = json!([projected]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_without_its_own_gets_the_token() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}});
        mount(&mut pod);
        let volume = pod["spec"]["volumes"][0]["name"].as_str().unwrap();
        assert!(volume.starts_with(VOLUME_PREFIX));
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    }
}
