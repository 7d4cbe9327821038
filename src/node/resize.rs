//! Resizes of pods that run: what is said and decided, purely.
//!
//! Source: `pkg/kubelet/allocation`, `pkg/kubelet/events` (`podResizeMessage`).

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

use super::{
    admit::{self, Ground, Lack},
    record::Wanted,
};
use crate::kinds::resources::ResourceList;

/// Whether a pod may have what it asks for now.
///
/// # Errors
/// The reason (`Infeasible`: the node is too small; `Deferred`: others have it now) and its words.
pub fn decide(requests: &ResourceList, ground: &Ground) -> Result<(), (&'static str, String)> {
    let alone = Ground { used: ResourceList::new(), ..ground.clone() };
    if let Err(Lack { resource, requested, capacity, .. }) = admit::fit(requests, &alone) {
        let message = format!(
            "Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}"
        );
        return Err(("Infeasible", message));
    }
    admit::fit(requests, ground).map_err(|Lack { resource, requested, used, capacity }| {
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        ("Deferred", message)
    })
}

/// The words of an event: `what`, and the pod's resources as JSON.
pub fn message(what: &str, wanted: &Wanted, generation: i64, error: &str) -> String {
    let list = |containers: Option<&Vec<Container>>, sidecars: bool| -> Vec<Value> {
        let all = containers.into_iter().flatten();
        let ours = all.filter(|c| !sidecars || c.restart_policy.as_deref() == Some("Always"));
        ours.map(|c| json!({"name": c.name, "resources": c.resources.clone().unwrap_or_default()})).collect()
    };
    let mut parts = Vec::new();
    let mut add = |key: &str, value: &Value| parts.push(format!("{key:?}:{value}"));
    if let Some(own) = &wanted.spec.resources {
        add("resources", &json!(own));
    }
    let init = list(wanted.spec.init_containers.as_ref(), true);
    if !init.is_empty() {
        add("initContainers", &init.into());
    }
    add("containers", &list(Some(&wanted.spec.containers), false).into());
    add("generation", &generation.into());
    if !error.is_empty() {
        add("error", &error.into());
    }
    format!("{what}: {{{}}}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_is_told_as_upstream_does() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c1", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
        });
        let wanted = Wanted::new(serde_json::from_value(pod).unwrap());
        assert_eq!(
            message("Pod resize started", &wanted, 1, ""),
            r#"Pod resize started: {"containers":[{"name":"c1","resources":{"requests":{"cpu":"1","memory":"1Gi"}}}],"generation":1}"#
        );
        let list = |cpu: &str| ResourceList::from([("cpu".to_owned(), cpu.parse().unwrap())]);
        let ground = Ground { allocatable: list("2"), used: list("1"), ..Ground::default() };
        assert_eq!(decide(&list("1"), &ground), Ok(()));
        assert_eq!(
            decide(&list("5"), &ground).unwrap_err(),
            (
                "Infeasible",
                "Node didn't have enough capacity: cpu, requested: 5000, capacity: 2000".to_owned()
            )
        );
        assert_eq!(decide(&list("1500m"), &ground).unwrap_err().0, "Deferred");
    }
}
