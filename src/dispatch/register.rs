//! A node that says hello becomes a Node object.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard},
};

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::work::Context;
use crate::{
    config::Cidr,
    kinds::{Subresource, registry},
    mqtt::messages::NodeInfo,
    objects::{Error, Objects},
};

/// The prefix of one node's pod network: 254 pods.
const NODE_PREFIX: u8 = 24;
const NODE_ADDRESSES: u32 = 1 << (32 - NODE_PREFIX as u32);
/// The domains of annotations that a node gives itself.
const OWN_DOMAINS: [&str; 2] = ["sampan.dev", "sampan.io"];
/// Notes which board is the node.
const HARDWARE: &str = "sampan.dev/hardware";
/// Marks the master's node (kubeadm's label).
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// What we call our runtime in `nodeInfo`.
const RUNTIME: &str = concat!("sampan://", env!("CARGO_PKG_VERSION"));

/// Creates the Node or brings it up to what the board says of itself.
pub async fn register(context: &Context, name: &str, info: &NodeInfo, hardware: &str) -> Result<(), Error> {
    let Context { objects, options, writer, networks, .. } = context;
    let kind = registry::of::<Node>();
    let is_master = options.own_node.as_deref() == Some(name);
    let labels = labels(name, info, is_master);
    if objects.get_typed::<Node>("", name).is_none() {
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {}});
        match objects.create(kind, "", node, writer).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
    }
    let has_network = objects
        .get_typed::<Node>("", name)
        .is_some_and(|n| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()));
    let network = if has_network { None } else { Some(networks.choose(objects, options.cluster_cidr)?) };
    objects
        .modify(kind, None, "", name, writer, |node| {
            for (key, value) in &labels {
                node["metadata"]["labels"][key] = value.as_str().into();
            }
            for (key, value) in info.annotations.iter().filter(|(key, _)| is_ours(key)) {
                node["metadata"]["annotations"][key] = value.as_str().into();
            }
            node["metadata"]["annotations"][HARDWARE] = hardware.into();
            if let Some(Chosen { cidr, .. }) = &network
                && node["spec"]["podCIDR"].as_str().unwrap_or_default().is_empty()
            {
                node["spec"]["podCIDR"] = cidr.as_str().into();
                node["spec"]["podCIDRs"] = json!([cidr]);
            }
            Ok(())
        })
        .await?;
    drop(network);
    objects
        .modify(kind, Some(Subresource::Status), "", name, writer, |node| {
            describe(&mut node["status"], info);
            Ok(())
        })
        .await?;
    Ok(())
}

/// Whether an annotation is one that a node may give itself: others are the user's, or controllers'.
fn is_ours(annotation: &str) -> bool {
    OWN_DOMAINS.iter().any(|domain| annotation.split_once('/').is_some_and(|(d, _)| d == *domain))
}

/// The board that was this node last.
pub fn hardware(objects: &Objects, node: &str) -> Option<String> {
    objects.get_typed::<Node>("", node)?.metadata.annotations.as_ref()?.get(HARDWARE).cloned()
}

/// Upstream's well-known labels, and those the board gives itself, as far as a node may do that:
/// roles and what upstream's NodeRestriction guards come from nobody but the master.
fn labels(name: &str, info: &NodeInfo, is_master: bool) -> BTreeMap<String, String> {
    let own = |key: &String| {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        !["kubernetes.io", "k8s.io"].iter().any(|d| domain == *d || domain.ends_with(&format!(".{d}")))
    };
    let mut labels: BTreeMap<_, _> =
        info.labels.iter().filter(|(key, _)| own(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/arch"), info.architecture.clone());
        labels.insert(format!("{prefix}/os"), "linux".to_owned());
    }
    labels.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
    if is_master {
        labels.insert(CONTROL_PLANE.to_owned(), String::new());
    }
    labels
}

/// Networks that were chosen for nodes and are not written yet. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Networks(Arc<Mutex<BTreeSet<Ipv4Addr>>>);

/// A network that nobody else is given.
struct Chosen {
    cidr: String,
    address: Ipv4Addr,
    among: Networks,
}

impl Networks {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.0.lock().expect("no holder of the networks' lock panics")
    }

    fn choose(&self, objects: &Objects, cluster: Cidr) -> Result<Chosen, Error> {
        // Locked first: what is written meanwhile is in one of the two.
        let mut chosen = self.lock();
        let (address, cidr) = free_cidr(cluster, &(&taken(objects) | &chosen)).ok_or_else(|| {
            Error::Internal(format!("no /{NODE_PREFIX} of {cluster} is left for another node"))
        })?;
        chosen.insert(address);
        drop(chosen);
        Ok(Chosen { cidr, address, among: self.clone() })
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.among.lock().remove(&self.address);
    }
}

fn taken(objects: &Objects) -> BTreeSet<Ipv4Addr> {
    let cidr = |node: &Node| node.spec.as_ref()?.pod_cidr.as_ref()?.split('/').next()?.parse().ok();
    objects.list_typed::<Node>(None).iter().filter_map(|node| cidr(node)).collect()
}

/// The first free network for a node; the cluster's whole one when it is not larger.
fn free_cidr(cluster: Cidr, taken: &BTreeSet<Ipv4Addr>) -> Option<(Ipv4Addr, String)> {
    let prefix = cluster.prefix.max(NODE_PREFIX);
    (0..)
        .map_while(|index| cluster.nth(index * NODE_ADDRESSES))
        .find(|network| !taken.contains(network))
        .map(|network| (network, format!("{network}/{prefix}")))
}

fn describe(status: &mut Value, info: &NodeInfo) {
    status["addresses"] =
        info.addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
    for (list, said) in [("capacity", &info.capacity), ("allocatable", &info.allocatable)] {
        let mut all = json!(said);
        // Extended resources are somebody else's: an administrator's or a device plugin's.
        for (name, amount) in status[list].as_object().into_iter().flatten() {
            if name.contains('/') && !said.contains_key(name) {
                all[name] = amount.clone();
            }
        }
        status[list] = all;
    }
    status["features"] = json!({"supplementalGroupsPolicy": true});
    status["runtimeHandlers"] =
        json!([{"name": "", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": false}}]);
    status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": 10250}});
    status["nodeInfo"] = json!({
        "machineID": info.machine_id,
        "systemUUID": info.system_uuid,
        "bootID": info.kernel_boot_id,
        "kernelVersion": info.kernel_version,
        "osImage": info.os_image,
        "containerRuntimeVersion": RUNTIME,
        "kubeletVersion": info.agent_version,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": info.architecture,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_the_first_free_network() {
        let cluster: Cidr = "10.42.0.0/16".parse().unwrap();
        let taken = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<_>>();
        let free_cidr = |all, taken: &BTreeSet<_>| free_cidr(all, taken).map(|(_, cidr)| cidr);
        assert_eq!(free_cidr(cluster, &taken(&[])).as_deref(), Some("10.42.0.0/24"));
        let two = taken(&["10.42.0.0", "10.42.2.0"]);
        assert_eq!(free_cidr(cluster, &two).as_deref(), Some("10.42.1.0/24"));
        let small: Cidr = "10.42.0.0/25".parse().unwrap();
        assert_eq!(free_cidr(small, &taken(&[])).as_deref(), Some("10.42.0.0/25"));
        assert_eq!(free_cidr(small, &taken(&["10.42.0.0"])), None);
    }

    #[test]
    fn a_node_annotates_itself_with_our_words_only() {
        for (key, ours) in [
            ("sampan.dev/platform", true),
            ("sampan.io/local-path-root", true),
            ("sampan.dev", false),
            ("evil.sampan.dev/x", false),
            ("kubectl.kubernetes.io/last-applied-configuration", false),
            ("note", false),
        ] {
            assert_eq!(is_ours(key), ours, "{key}");
        }
    }
}
