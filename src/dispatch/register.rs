//! A node that says hello becomes a Node object.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard},
};

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::{report, work::Context};
use crate::{
    config::Cidr,
    kinds::{Subresource, lease::HARDWARE, registry, remove},
    mqtt::messages::{NodeEvent, NodeInfo},
    objects::{Error, Objects},
};

/// The domain of annotations that a node gives itself.
const OWN_DOMAIN: &str = "sampan.dev";
/// The address that the node is seen under, where a router translates its own.
pub const NAT_ADDRESS: &str = "sampan.dev/nat-address";
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
    let network = if has_network {
        None
    } else {
        Some(networks.choose(objects, options.cluster_cidr, options.node_prefix)?)
    };
    objects
        .modify(kind, None, "", name, writer, |node| {
            for (key, value) in &labels {
                node["metadata"]["labels"][key] = value.as_str().into();
            }
            for (key, value) in info.annotations.iter().filter(|(key, _)| is_ours(key)) {
                node["metadata"]["annotations"][key] = value.as_str().into();
            }
            node["metadata"]["annotations"][HARDWARE] = hardware.into();
            match nat_address(info, options.origins.as_ref().and_then(|origins| origins.get(name))) {
                Some(address) => node["metadata"]["annotations"][NAT_ADDRESS] = address.to_string().into(),
                None => remove(&mut node["metadata"]["annotations"], NAT_ADDRESS),
            }
            if let Some(Chosen { cidr, .. }) = &network
                && node["spec"]["podCIDR"].as_str().unwrap_or_default().is_empty()
            {
                let cidr = cidr.to_string();
                node["spec"]["podCIDR"] = cidr.as_str().into();
                node["spec"]["podCIDRs"] = json!([cidr]);
            }
            Ok(())
        })
        .await?;
    drop(network);
    let mut rebooted = false;
    objects
        .modify(kind, Some(Subresource::Status), "", name, writer, |node| {
            let ids =
                [node["status"]["nodeInfo"]["bootID"].as_str().unwrap_or_default(), &info.kernel_boot_id];
            rebooted = ids[0] != ids[1] && ids.iter().all(|id| !id.is_empty());
            describe(&mut node["status"], info);
            Ok(())
        })
        .await?;
    if rebooted {
        let event = NodeEvent {
            namespace: String::new(),
            name: name.to_owned(),
            uid: name.to_owned(),
            field_path: String::new(),
            warning: true,
            reason: "Rebooted".to_owned(),
            message: format!("Node {name} has been rebooted, boot id: {}", info.kernel_boot_id),
            time: objects.clock().now(),
        };
        report::events(objects, name, vec![event]).await;
    }
    Ok(())
}

/// Whether an annotation is one that a node may give itself: others are the user's, or controllers'.
fn is_ours(annotation: &str) -> bool {
    annotation.split_once('/').is_some_and(|(domain, _)| domain == OWN_DOMAIN)
}

/// The address that a node was seen under, unless that is one of its own.
fn nat_address(info: &NodeInfo, seen: Option<IpAddr>) -> Option<Ipv4Addr> {
    let Some(IpAddr::V4(seen)) = seen else { return None };
    (!seen.is_loopback() && !info.own_addresses.contains(&seen)).then_some(seen)
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
pub struct Networks(Arc<Mutex<Vec<Cidr>>>);

/// A network that nobody else is given.
struct Chosen {
    cidr: Cidr,
    among: Networks,
}

impl Networks {
    fn lock(&self) -> MutexGuard<'_, Vec<Cidr>> {
        self.0.lock().expect("no holder of the networks' lock panics")
    }

    fn choose(&self, objects: &Objects, cluster: Cidr, prefix: u8) -> Result<Chosen, Error> {
        // Locked first: what is written meanwhile is in one of the two.
        let mut chosen = self.lock();
        let taken = [taken(objects), chosen.clone()].concat();
        let cidr = free_cidr(cluster, prefix, &taken)
            .ok_or_else(|| Error::Internal(format!("no /{prefix} of {cluster} is left for another node")))?;
        chosen.push(cidr);
        drop(chosen);
        Ok(Chosen { cidr, among: self.clone() })
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.among.lock().retain(|cidr| *cidr != self.cidr);
    }
}

/// The networks that nodes have.
fn taken(objects: &Objects) -> Vec<Cidr> {
    let cidr = |node: &Node| node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok();
    objects.list_typed::<Node>(None).iter().filter_map(|node| cidr(node)).collect()
}

/// The first free network of a node; the cluster's whole one when it is not larger.
fn free_cidr(cluster: Cidr, prefix: u8, taken: &[Cidr]) -> Option<Cidr> {
    let prefix = cluster.prefix.max(prefix);
    (0..)
        .map_while(|index: u32| cluster.nth(index.checked_mul(1 << (32 - prefix))?))
        .map(|address| Cidr { address, prefix })
        .find(|network| !taken.iter().any(|t| t.contains(network.address) || network.contains(t.address)))
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
    fn a_node_that_comes_from_anothers_address_is_behind_a_router() {
        let own = Ipv4Addr::new(192, 168, 1, 2);
        let info = NodeInfo { own_addresses: vec![own], ..NodeInfo::default() };
        let router = Ipv4Addr::new(203, 0, 113, 1);
        for (seen, expected) in [
            (Some(router.into()), Some(router)),
            (Some(own.into()), None),
            (Some(Ipv4Addr::LOCALHOST.into()), None),
            (None, None),
        ] {
            assert_eq!(nat_address(&info, seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn nodes_get_the_first_free_network() {
        let cluster: Cidr = "10.42.0.0/16".parse().unwrap();
        let taken = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<Cidr>>();
        let free = |prefix, list: &[&str]| free_cidr(cluster, prefix, &taken(list)).unwrap().to_string();
        assert_eq!(free(24, &[]), "10.42.0.0/24");
        assert_eq!(free(24, &["10.42.0.0/24", "10.42.2.0/24"]), "10.42.1.0/24");
        // Nodes of another size are there already.
        assert_eq!(free(22, &["10.42.1.0/24"]), "10.42.4.0/22");
        assert_eq!(free(24, &["10.42.0.0/22"]), "10.42.4.0/24");
        let small: Cidr = "10.42.0.0/25".parse().unwrap();
        assert_eq!(free_cidr(small, 24, &taken(&[])), Some(small));
        assert_eq!(free_cidr(small, 24, &taken(&["10.42.0.0/25"])), None);
    }

    #[test]
    fn a_node_annotates_itself_with_our_words_only() {
        for (key, ours) in [
            ("sampan.dev/platform", true),
            ("sampan.dev/local-path-root", true),
            ("sampan.dev", false),
            ("evil.sampan.dev/x", false),
            ("kubectl.kubernetes.io/last-applied-configuration", false),
            ("note", false),
        ] {
            assert_eq!(is_ours(key), ours, "{key}");
        }
    }
}
