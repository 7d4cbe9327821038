//! What a node has to know: the items of its set, from the store's view.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec, Secret};
use serde_json::{Value, json};

use super::{Options, services, shared::Part};
use crate::{
    kinds::{self, placement, registry, resource_names, volumes},
    mqtt::messages::{Item, ItemKey, ItemKind, NodeConfig},
    objects::Objects,
    store::{self, Object},
};

/// Whose sets a change reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The node the pod names.
    Pod,
    /// The node that has the folder of this deleted volume.
    Folder,
    /// The nodes that hold it as an item of this kind.
    Holders(ItemKind),
    /// The node itself, and all others as their peer.
    Node,
    /// Every node, by these parts.
    All(&'static [Part]),
    /// Nodes with pods that a NetworkPolicy selects.
    Policies,
}

/// The resources that sets are made of.
pub const SOURCES: &[(&str, Reach)] = &[
    ("pods", Reach::Pod),
    ("configmaps", Reach::Holders(ItemKind::ConfigMap)),
    ("secrets", Reach::Holders(ItemKind::Secret)),
    ("persistentvolumeclaims", Reach::Holders(ItemKind::PersistentVolumeClaim)),
    ("persistentvolumes", Reach::Holders(ItemKind::PersistentVolume)),
    ("persistentvolumes", Reach::Folder),
    ("runtimeclasses.node.k8s.io", Reach::Holders(ItemKind::RuntimeClass)),
    ("nodes", Reach::Node),
    ("namespaces", Reach::All(&[Part::Environment, Part::Names])),
    ("services", Reach::All(&Part::ALL)),
    ("endpointslices.discovery.k8s.io", Reach::All(&[Part::Services, Part::Names, Part::Ingresses])),
    ("ingresses.networking.k8s.io", Reach::All(&[Part::Ingresses])),
    ("ingressclasses.networking.k8s.io", Reach::All(&[Part::Ingresses])),
    ("networkpolicies.networking.k8s.io", Reach::Policies),
    ("pods", Reach::Policies),
];

/// The node that a pod belongs to.
pub fn node_of(pod: &Object) -> Option<String> {
    pod.typed::<Pod>().spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty())
}

/// The node that has to remove the folder of a deleted volume.
pub fn folder_of(object: &Object) -> Option<String> {
    let volume = object.typed::<PersistentVolume>();
    volumes::local_path_node(&volume).filter(|_| volumes::local_path_doomed(&volume)).map(str::to_owned)
}

/// The services that a change belongs to; `None` when that cannot be told.
pub fn services_of(event: &store::Event) -> Option<services::Names> {
    let key = &event.object.key;
    match &*key.resource {
        "services" => Some([(key.namespace.to_string(), key.name.to_string())].into()),
        "namespaces" => Some([(key.name.to_string(), String::new())].into()),
        "endpointslices.discovery.k8s.io" => {
            let states = std::iter::once(&event.object).chain(&event.previous);
            Some(states.filter_map(|slice| services::service_of(slice)).collect())
        }
        _ => None,
    }
}

/// Whether a Secret may be an Ingress's certificate.
pub fn is_certificate(secret: &Object) -> bool {
    secret.typed::<Secret>().data.as_ref().is_some_and(|data| data.contains_key("tls.crt"))
}

/// An item with this body.
pub fn item(kind: ItemKind, namespace: &str, name: &str, body: &impl serde::Serialize) -> Item {
    let body = serde_json::to_string(body).expect("plain data can be written as JSON");
    Item::new(ItemKey::new(kind, namespace, name), body)
}

/// The taints that a node's pods have to go for, but for those that say that the node is not heard of.
fn expelling_taints(node: &Node) -> Vec<(String, String)> {
    let all = placement::taints(node).into_iter().flatten();
    all.filter(|taint| taint.effect == placement::NO_EXECUTE)
        .filter(|taint| {
            ![placement::TAINT_NOT_READY, placement::TAINT_UNREACHABLE].contains(&taint.key.as_str())
        })
        .map(|taint| (taint.key.clone(), taint.value.clone().unwrap_or_default()))
        .collect()
}

/// What a node has beside what it says itself.
fn extended(node: &Node) -> BTreeMap<String, String> {
    let all = node.status.as_ref().and_then(|s| s.allocatable.as_ref()).into_iter().flatten();
    all.filter(|(name, _)| resource_names::is_extended(name))
        .map(|(name, amount)| (name.clone(), amount.0.clone()))
        .collect()
}

/// What one node alone knows: its configuration, its pods (by namespace and name), and what they
/// refer to.
pub fn of_node<'a>(
    objects: &Objects,
    options: &Options,
    name: &str,
    pods: impl Iterator<Item = &'a (Arc<str>, Arc<str>)>,
) -> Vec<Item> {
    let mut items = Vec::new();
    let node = objects.get_typed::<Node>("", name);
    let config = NodeConfig {
        pod_cidr: node.as_ref().and_then(|n| n.spec.as_ref()?.pod_cidr.clone()).unwrap_or_default(),
        cluster_cidr: options.cluster_cidr.to_string(),
        service_cidr: options.service_cidr.to_string(),
        cluster_dns: options.cluster_dns.clone(),
        cluster_domain: options.cluster_domain.clone(),
        labels: node.as_ref().and_then(|n| n.metadata.labels.clone()).unwrap_or_default(),
        taints: node.as_deref().map(expelling_taints).unwrap_or_default(),
        unschedulable: node.as_ref().and_then(|n| n.spec.as_ref()?.unschedulable).unwrap_or_default(),
        extended: node.as_deref().map(extended).unwrap_or_default(),
        endpoints: options.endpoints.clone(),
    };
    items.push(item(ItemKind::Config, "", name, &config));
    let mut referred = BTreeSet::new();
    let kind = registry::of::<Pod>();
    for object in pods.filter_map(|(namespace, name)| objects.get(kind, namespace, name).ok()) {
        let pod = object.typed::<Pod>();
        let Some(spec) = pod.spec.as_ref().filter(|spec| spec.node_name.as_deref() == Some(name)) else {
            continue;
        };
        let namespace = &*object.key.namespace;
        items.push(item(ItemKind::Pod, namespace, &object.key.name, &pod_body(&object.value())));
        references(namespace, &object.key.name, spec, &mut referred);
    }
    for claim in referred.clone().into_iter().filter(|key| key.kind == ItemKind::PersistentVolumeClaim) {
        let volume = objects
            .get_typed::<PersistentVolumeClaim>(&claim.namespace, &claim.name)
            .and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
        referred.extend(volume.map(|volume| ItemKey::new(ItemKind::PersistentVolume, "", &volume)));
    }
    for volume in objects.list(registry::of::<PersistentVolume>(), None).items {
        if volume.meta.deleting && folder_of(&volume).as_deref() == Some(name) {
            referred.insert(ItemKey::new(ItemKind::PersistentVolume, "", &volume.key.name));
        }
    }
    items.extend(referred.into_iter().map(|key| referred_item(objects, key)));
    items
}

/// An object that a pod refers to; one that is not there is an item too (`null`), so that its
/// appearance is noticed.
fn referred_item(objects: &Objects, key: ItemKey) -> Item {
    let resource = match key.kind {
        ItemKind::ConfigMap => "configmaps",
        ItemKind::Secret => "secrets",
        ItemKind::PersistentVolumeClaim => "persistentvolumeclaims",
        ItemKind::RuntimeClass => "runtimeclasses.node.k8s.io",
        _ => "persistentvolumes",
    };
    let object = registry::by_resource(resource)
        .and_then(|kind| objects.get(kind, &key.namespace, &key.name).ok())
        .map_or(Value::Null, |object| without_bookkeeping(object.value()));
    item(key.kind, &key.namespace, &key.name, &object)
}

fn without_bookkeeping(mut object: Value) -> Value {
    for field in ["managedFields", "resourceVersion"] {
        kinds::remove(&mut object["metadata"], field);
    }
    object
}

/// A pod as its node sees it: without its status, which the node itself makes, but for what others
/// say about its readiness gates.
fn pod_body(pod: &Value) -> Value {
    let mut body = without_bookkeeping(pod.clone());
    let gates = pod["spec"]["readinessGates"].as_array();
    let said: Vec<&Value> = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| gates.is_some_and(|gates| gates.iter().any(|g| g["conditionType"] == c["type"])))
        .collect();
    if said.is_empty() {
        kinds::remove(&mut body, "status");
    } else {
        body["status"] = json!({ "conditions": said });
    }
    body
}

/// The ConfigMaps, Secrets, claims and the RuntimeClass that a pod names.
fn references(namespace: &str, pod: &str, spec: &PodSpec, found: &mut BTreeSet<ItemKey>) {
    if let Some(class) = spec.runtime_class_name.as_deref().filter(|class| !class.is_empty()) {
        found.insert(ItemKey::new(ItemKind::RuntimeClass, "", class));
    }
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            found.insert(ItemKey::new(kind, namespace, name));
        }
    };
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(ItemKind::ConfigMap, &source.name);
        }
        if let Some(source) = &volume.secret {
            add(ItemKind::Secret, source.secret_name.as_deref().unwrap_or_default());
        }
        if let Some(source) = &volume.persistent_volume_claim {
            add(ItemKind::PersistentVolumeClaim, &source.claim_name);
        }
        if volume.ephemeral.is_some() {
            add(ItemKind::PersistentVolumeClaim, &format!("{pod}-{}", volume.name));
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(source) = &source.config_map {
                add(ItemKind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret {
                add(ItemKind::Secret, &source.name);
            }
        }
    }
    for secret in spec.image_pull_secrets.iter().flatten() {
        add(ItemKind::Secret, &secret.name);
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let environments = containers.map(|c| (&c.env, &c.env_from));
    let debuggers = spec.ephemeral_containers.iter().flatten().map(|c| (&c.env, &c.env_from));
    for (env, env_from) in environments.chain(debuggers) {
        for source in env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            if let Some(key) = &source.config_map_key_ref {
                add(ItemKind::ConfigMap, &key.name);
            }
            if let Some(key) = &source.secret_key_ref {
                add(ItemKind::Secret, &key.name);
            }
        }
        for source in env_from.iter().flatten() {
            if let Some(map) = &source.config_map_ref {
                add(ItemKind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret_ref {
                add(ItemKind::Secret, &secret.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_a_pod_names_is_referred_to() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{
                "name": "c",
                "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm-env", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k"}}},
                ],
                "envFrom": [{"configMapRef": {"name": "cm-from"}}, {"secretRef": {"name": "s-from"}}],
            }],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "cm-init"}}]}],
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "configMap": {"name": "cm-vol"}},
                {"name": "b", "secret": {"secretName": "s-vol"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                {"name": "d", "projected": {"sources": [
                    {"configMap": {"name": "cm-proj"}}, {"secret": {"name": "s-proj"}},
                ]}},
            ],
        }))
        .unwrap();
        let mut found = BTreeSet::new();
        references("ns", "p", &spec, &mut found);
        let names: Vec<_> = found.iter().map(|k| k.name.as_str()).collect();
        let want = [
            "cm-env", "cm-from", "cm-init", "cm-proj", "cm-vol", "pull", "s-env", "s-from", "s-proj",
            "s-vol", "claim", "p-e",
        ];
        assert_eq!(names, want);
        assert!(found.iter().all(|k| k.namespace == "ns"));
    }

    #[test]
    fn a_pods_own_status_does_not_change_its_item() {
        let mut pod = json!({
            "metadata": {"name": "p", "resourceVersion": "1", "managedFields": []},
            "spec": {"readinessGates": [{"conditionType": "example.com/ok"}]},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "example.com/ok", "status": "True"},
            ]},
        });
        let body = pod_body(&pod);
        assert_eq!(body["status"], json!({"conditions": [{"type": "example.com/ok", "status": "True"}]}));
        pod["status"]["phase"] = "Failed".into();
        pod["metadata"]["resourceVersion"] = "2".into();
        assert_eq!(pod_body(&pod), body);
    }
}
