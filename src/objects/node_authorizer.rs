//! What a node may ask of the API: what its pods use, and its own Node, Lease and pods' statuses
//! (`plugin/pkg/auth/authorizer/node/node_authorizer.go`; admission's NodeRestriction narrows writes further).

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::VolumeAttachment,
};
use serde_json::Value;

use super::{Objects, User, rbac::Attributes};
use crate::kinds::lease;

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// Whether a node may do it, else why not; `None` for who is no node.
pub fn decide(objects: &Objects, user: &User, what: &Attributes<'_>) -> Option<Result<(), String>> {
    if !user.groups.iter().any(|group| group == NODES) {
        return None;
    }
    let node = user.name.strip_prefix(NODE_PREFIX)?;
    if node.is_empty() {
        return Some(Err(format!("unknown node for user {:?}", user.name)));
    }
    Some(of_node(objects, node, what).map_err(str::to_owned).map_err(|why| why.replace("NODE", node)))
}

/// As [`decide`]; `NODE` in a reason stands for the node's name.
fn of_node(objects: &Objects, node: &str, what: &Attributes<'_>) -> Result<(), &'static str> {
    let (resource, subresource) = what.resource.split_once('/').unwrap_or((&what.resource, ""));
    let rest = Request { objects, node, what, resource, subresource };
    match (what.group, resource) {
        ("", "secrets" | "configmaps") => rest.reads_used(),
        ("", "persistentvolumeclaims") if subresource == "status" => match what.verb {
            "get" | "update" | "patch" => rest.is_related(),
            _ => Err("can only get/update/patch this type"),
        },
        ("", "persistentvolumeclaims" | "persistentvolumes") | ("storage.k8s.io", "volumeattachments") => {
            rest.gets_used()
        }
        ("", "serviceaccounts") => match (what.verb, subresource) {
            ("create", "token") | ("get", "") => rest.is_related(),
            _ => Err("can only create tokens for individual service accounts"),
        },
        ("coordination.k8s.io", "leases") => match what.verb {
            _ if what.namespace != lease::NODES => {
                Err("can only access leases in the \"kube-node-lease\" system namespace")
            }
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" if what.name == node => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                Err("can only access node lease with the same name as the requesting node")
            }
            _ => Err("can only get, create, update, patch, or delete a node lease"),
        },
        ("storage.k8s.io", "csinodes") => match what.verb {
            _ if !subresource.is_empty() => Err("cannot authorize CSINode subresources"),
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" if what.name == node => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                Err("can only access CSINode with the same name as the requesting node")
            }
            _ => Err("can only get, create, update, patch, or delete a CSINode"),
        },
        ("", "nodes") => rest.own_node(),
        ("", "pods") => rest.pods(),
        _ => rest.by_rules(),
    }
}

struct Request<'a> {
    objects: &'a Objects,
    node: &'a str,
    what: &'a Attributes<'a>,
    resource: &'a str,
    subresource: &'a str,
}

impl Request<'_> {
    fn reads_used(&self) -> Result<(), &'static str> {
        match self.what.verb {
            "get" | "list" | "watch" if !self.subresource.is_empty() => Err("cannot read subresource"),
            "get" | "list" | "watch" if self.what.namespace.is_empty() => {
                Err("can only read namespaced object of this type")
            }
            "get" | "list" | "watch" => self.is_related(),
            _ => Err("can only read resources of this type"),
        }
    }

    fn gets_used(&self) -> Result<(), &'static str> {
        match (self.what.verb, self.subresource) {
            ("get", "") => self.is_related(),
            ("get", _) => Err("cannot get subresource"),
            _ => Err("can only get individual resources of this type"),
        }
    }

    fn own_node(&self) -> Result<(), &'static str> {
        match (self.subresource, self.what.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            ("", "get" | "list" | "watch") => match self.what.name {
                "" => Err("node 'NODE' cannot read all nodes, only its own Node object"),
                name if name == self.node => Ok(()),
                _ => Err("node 'NODE' cannot read other nodes, only its own Node object"),
            },
            _ => Err(""),
        }
    }

    fn pods(&self) -> Result<(), &'static str> {
        match (self.subresource, self.what.verb) {
            ("", "get") => self.is_related(),
            ("", "list" | "watch") if self.what.of_node == self.node => Ok(()),
            ("", "list" | "watch") => Err("can only list/watch pods with spec.nodeName field selector"),
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(""),
        }
    }

    /// The rules that hold for every node, whatever the object (`bootstrappolicy.NodeRules`).
    fn by_rules(&self) -> Result<(), &'static str> {
        let verb = self.what.verb;
        let reads = matches!(verb, "get" | "list" | "watch");
        let may = match (self.what.group, self.resource, self.subresource) {
            ("", "services", "")
            | ("node.k8s.io", "runtimeclasses", "")
            | ("storage.k8s.io", "csidrivers", "") => reads,
            ("" | "events.k8s.io", "events", "") => matches!(verb, "create" | "update" | "patch"),
            ("certificates.k8s.io", "certificatesigningrequests", "") => reads || verb == "create",
            ("authentication.k8s.io", "tokenreviews", "")
            | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
                verb == "create"
            }
            _ => false,
        };
        if may { Ok(()) } else { Err("") }
    }

    fn is_related(&self) -> Result<(), &'static str> {
        if self.what.name.is_empty() {
            Err("No Object name found")
        } else if self.used() {
            Ok(())
        } else {
            Err("no relationship found between node 'NODE' and this object")
        }
    }

    /// Whether the object is one of the node's pods, or something that they use.
    fn used(&self) -> bool {
        let Attributes { namespace, name, .. } = *self.what;
        match self.resource {
            "pods" => self.objects.get_typed::<Pod>(namespace, name).is_some_and(|p| on_node(&p, self.node)),
            "volumeattachments" => self
                .objects
                .get_typed::<VolumeAttachment>("", name)
                .is_some_and(|attachment| attachment.spec.node_name == self.node),
            "persistentvolumes" => self
                .objects
                .get_typed::<PersistentVolume>("", name)
                .is_some_and(|volume| self.is_mounted(&volume)),
            "secrets" => {
                self.a_pod_names(namespace, "secrets", name)
                    || self
                        .objects
                        .list_typed::<PersistentVolume>(None)
                        .iter()
                        .any(|volume| needs_secret(volume, namespace, name) && self.is_mounted(volume))
            }
            resource => self.a_pod_names(namespace, resource, name),
        }
    }

    /// Whether a pod of the node uses the claim that the volume is bound to.
    fn is_mounted(&self, volume: &PersistentVolume) -> bool {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        claim.is_some_and(|claim| {
            let (namespace, claim) = (part(&claim.namespace), part(&claim.name));
            self.objects.get_typed::<PersistentVolumeClaim>(&namespace, &claim).is_some_and(|c| {
                c.spec.as_ref().and_then(|s| s.volume_name.as_ref()) == volume.metadata.name.as_ref()
            }) && self.a_pod_names(&namespace, "persistentvolumeclaims", &claim)
        })
    }

    /// Whether a pod of the node names the object in its spec.
    fn a_pod_names(&self, namespace: &str, resource: &str, name: &str) -> bool {
        let pods = self.objects.list_typed::<Pod>(Some(namespace));
        pods.iter().filter(|pod| on_node(pod, self.node)).any(|pod| {
            let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
            match resource {
                "secrets" => names(&spec, SECRETS, name),
                "configmaps" => names(&spec, &["configMap", "configMapRef", "configMapKeyRef"], name),
                "persistentvolumeclaims" => {
                    names(&spec, &["claimName"], name)
                        || generic_claims(pod, &spec).any(|claim| claim == name)
                }
                _ => spec["serviceAccountName"] == name,
            }
        })
    }
}

/// Fields of a pod's spec that name Secrets.
const SECRETS: &[&str] =
    &["secretName", "secretRef", "secretKeyRef", "imagePullSecrets", "secret", "nodePublishSecretRef"];

/// Fields of a volume's source that name a Secret which the node reads to mount it
/// (`pkg/api/v1/persistentvolume`: `VisitPVSecretNames`).
const VOLUME_SECRETS: &[&str] =
    &["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef", "secretRef"];

/// Whether a node needs the Secret to mount the volume.
fn needs_secret(volume: &PersistentVolume, namespace: &str, name: &str) -> bool {
    let spec = serde_json::to_value(&volume.spec).unwrap_or_default();
    // Without a namespace the Secret is where the claim is.
    let is = |space: &Value, own: &Value| {
        let space =
            space.as_str().filter(|s| !s.is_empty()).or_else(|| spec["claimRef"]["namespace"].as_str());
        own == name && space == Some(namespace)
    };
    let azure = &spec["azureFile"];
    is(&azure["secretNamespace"], &azure["secretName"])
        || spec.as_object().into_iter().flatten().any(|(_, source)| {
            VOLUME_SECRETS.iter().any(|field| is(&source[field]["namespace"], &source[field]["name"]))
        })
}

/// The claims made for a pod's generic ephemeral volumes.
fn generic_claims<'a>(pod: &'a Pod, spec: &'a Value) -> impl Iterator<Item = String> + 'a {
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = spec["volumes"].as_array().into_iter().flatten().filter(|v| v.get("ephemeral").is_some());
    volumes.map(move |volume| format!("{pod}-{}", volume["name"].as_str().unwrap_or_default()))
}

fn on_node(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)
}

/// Whether one of the fields, anywhere in the tree, holds the name or an object with it.
fn names(tree: &Value, fields: &[&str], name: &str) -> bool {
    match tree {
        Value::Object(map) => map.iter().any(|(key, value)| {
            let here = fields.contains(&key.as_str())
                && (value == name
                    || value["name"] == name
                    || value.as_array().is_some_and(|all| all.iter().any(|v| v["name"] == name)));
            here || names(value, fields, name)
        }),
        Value::Array(items) => items.iter().any(|item| names(item, fields, name)),
        _ => false,
    }
}
