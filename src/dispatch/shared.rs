//! The part of every node's set that is the same for all: services, names, Ingresses, peers.
//!
//! It is kept up to date by parts, of which what belongs to a changed service is made anew; what nodes
//! hold of it is one shared map a version. The difference of two versions is computed and written once for all
//! nodes: a change is one message that the broker multiplies, whatever the number of nodes. Peers go in
//! blocks of neighbouring pod networks, so that a thousand nodes are a few items.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
    sync::Arc,
};

use bytes::Bytes;
use k8s_openapi::api::core::v1::Node;

use super::{
    Options, ingress,
    items::item,
    link, names,
    register::NAT_ADDRESS,
    services::{self, Which},
};
use crate::{
    mqtt::messages::{self, Down, Item, ItemKey, ItemKind, SetDigest, SharedChange},
    net::Peer,
    objects::Objects,
};

/// Networks of one block of peers, as the bits of the third byte of a pod network's address that are
/// the same in it: 64 networks of /24.
const BLOCK_MASK: u32 = 0xffff_c000;
/// Older versions whose nodes can be told the difference without a list of what they hold.
const VERSIONS_MAX: usize = 8;
/// Differences kept for nodes that lack the same.
const DIFFERENCES_MAX: usize = 16;

/// A piece of the shared part with its own sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Services,
    Environment,
    Names,
    Ingresses,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Services, Self::Environment, Self::Names, Self::Ingresses];

    fn kind(self) -> ItemKind {
        match self {
            Self::Services => ItemKind::Service,
            Self::Environment => ItemKind::ServiceEnv,
            Self::Names => ItemKind::Dns,
            Self::Ingresses => ItemKind::Ingress,
        }
    }

    fn items(self, objects: &Objects, options: &Options, which: Which<'_>) -> Vec<Item> {
        match self {
            Self::Services => services::ports(objects, &options.cluster_dns, which)
                .into_iter()
                .map(|(namespace, name, ports)| item(ItemKind::Service, &namespace, &name, &ports))
                .collect(),
            Self::Environment => services::environment(objects, which)
                .into_iter()
                .map(|(namespace, env)| item(ItemKind::ServiceEnv, &namespace, "env", &env))
                .collect(),
            Self::Names => names::by_namespace(objects, which)
                .into_iter()
                .map(|(namespace, names)| item(ItemKind::Dns, &namespace, "names", &names))
                .collect(),
            Self::Ingresses => ingress::tables(objects)
                .into_iter()
                .map(|(namespace, table)| item(ItemKind::Ingress, &namespace, "rules", &table))
                .collect(),
        }
    }
}

/// What of a part has to be made anew.
#[derive(Debug)]
enum Stale {
    Whole,
    Of(services::Names),
}

/// The hash of every item of a version.
pub type Hashes = Arc<BTreeMap<ItemKey, String>>;

/// The shared part as of now, and what has to be looked at again.
pub struct Shared {
    items: BTreeMap<ItemKey, Arc<Item>>,
    hashes: Hashes,
    digest: SetDigest,
    stale: BTreeMap<Part, Stale>,
    peers_are_stale: bool,
    /// Rules of Ingresses: not for all, only for nodes that serve them.
    ingress: Vec<Item>,
    ingress_changed: bool,
    /// The version of who holds nothing.
    nothing: Hashes,
    /// Versions before this one, the newest first.
    versions: VecDeque<(String, Hashes)>,
    /// What leads from other versions to the present one, ready to be sent.
    differences: VecDeque<(Hashes, Arc<Vec<Bytes>>)>,
}

impl Shared {
    /// Empty, and everything stale.
    pub fn new() -> Self {
        Self {
            items: BTreeMap::new(),
            hashes: Hashes::default(),
            digest: SetDigest::default(),
            stale: Part::ALL.map(|part| (part, Stale::Whole)).into(),
            peers_are_stale: true,
            ingress: Vec::new(),
            ingress_changed: false,
            nothing: Hashes::default(),
            versions: VecDeque::new(),
            differences: VecDeque::new(),
        }
    }

    /// Something has changed that these parts are made of: of these services, or nobody knows of which.
    pub fn touch(&mut self, parts: &[Part], of: Option<&services::Names>) {
        for part in parts {
            let whole = match part {
                Part::Services | Part::Names => false,
                Part::Environment => of.is_some_and(services::are_in_all_environments),
                Part::Ingresses => true,
            };
            match (of.filter(|_| !whole), self.stale.get_mut(part)) {
                (_, Some(Stale::Whole)) => {}
                (Some(of), Some(Stale::Of(known))) => known.extend(of.iter().cloned()),
                (Some(of), None) => drop(self.stale.insert(*part, Stale::Of(of.clone()))),
                (None, _) => drop(self.stale.insert(*part, Stale::Whole)),
            }
        }
    }

    pub fn touch_peers(&mut self) {
        self.peers_are_stale = true;
    }

    pub fn touch_all(&mut self) {
        self.touch(&Part::ALL, None);
        self.peers_are_stale = true;
    }

    /// Whether anything but peers has to be looked at.
    pub fn is_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    pub fn peers_are_stale(&self) -> bool {
        self.peers_are_stale
    }

    pub fn hashes(&self) -> &Hashes {
        &self.hashes
    }

    pub fn digest(&self) -> SetDigest {
        self.digest
    }

    /// The rules of Ingresses, for nodes that serve them.
    pub fn ingress(&self) -> &[Item] {
        &self.ingress
    }

    /// Whether these have changed since the last call.
    pub fn take_ingress_changed(&mut self) -> bool {
        std::mem::take(&mut self.ingress_changed)
    }

    /// The version with this digest, when it is not too old.
    pub fn version(&self, digest: &str) -> Option<Hashes> {
        if digest == self.digest.to_string() {
            return Some(Arc::clone(&self.hashes));
        }
        if digest == SetDigest::default().to_string() {
            return Some(Arc::clone(&self.nothing));
        }
        self.versions.iter().find(|(of, _)| of == digest).map(|(_, version)| Arc::clone(version))
    }

    /// Makes stale parts anew, peers only when `peers`; whether anything is different now.
    pub fn refresh(&mut self, objects: &Objects, options: &Options, peers: bool) -> bool {
        let before = self.digest;
        let mut changed = false;
        for (part, stale) in std::mem::take(&mut self.stale) {
            let which = match &stale {
                Stale::Whole => Which::All,
                Stale::Of(names) => Which::Of(names),
            };
            let fresh = part.items(objects, options, which);
            if part == Part::Ingresses {
                let same = |(a, b): (&Item, &Item)| a.key == b.key && a.hash == b.hash;
                if fresh.len() != self.ingress.len() || !fresh.iter().zip(&self.ingress).all(same) {
                    self.ingress = fresh;
                    self.ingress_changed = true;
                }
                continue;
            }
            changed |= self.replace(part.kind(), which, fresh);
        }
        if peers && std::mem::take(&mut self.peers_are_stale) {
            changed |= self.replace(ItemKind::Peers, Which::All, peers_of(objects));
        }
        if changed {
            let hashes = Arc::new(self.items.iter().map(|(k, i)| (k.clone(), i.hash.clone())).collect());
            let old = std::mem::replace(&mut self.hashes, hashes);
            self.versions.truncate(VERSIONS_MAX - 1);
            self.versions.push_front((before.to_string(), old));
            self.differences.clear();
        }
        changed
    }

    /// Makes the items of a kind that belong to these services be exactly `fresh`.
    fn replace(&mut self, kind: ItemKind, which: Which<'_>, fresh: Vec<Item>) -> bool {
        let keys: BTreeSet<ItemKey> = fresh.iter().map(|item| item.key.clone()).collect();
        let belongs = |key: &ItemKey| match which {
            Which::All => true,
            Which::Of(names) => names.iter().any(|(namespace, name)| {
                *namespace == key.namespace && (kind != ItemKind::Service || *name == key.name)
            }),
        };
        let gone: Vec<ItemKey> = self
            .items
            .keys()
            .filter(|key| key.kind == kind && !keys.contains(*key) && belongs(key))
            .cloned()
            .collect();
        let mut changed = false;
        for key in gone {
            changed |= self.delete(&key);
        }
        for item in fresh {
            changed |= self.put(item);
        }
        changed
    }

    fn put(&mut self, item: Item) -> bool {
        if self.items.get(&item.key).is_some_and(|old| old.hash == item.hash) {
            return false;
        }
        self.digest.add(&item.key, &item.hash);
        if let Some(old) = self.items.insert(item.key.clone(), Arc::new(item)) {
            self.digest.remove(&old.key, &old.hash);
        }
        true
    }

    fn delete(&mut self, key: &ItemKey) -> bool {
        let Some(old) = self.items.remove(key) else { return false };
        self.digest.remove(key, &old.hash);
        true
    }

    /// The messages for who holds `held`; none when that is the present version.
    pub fn bring_up(&mut self, held: &Hashes, epoch: u64) -> Arc<Vec<Bytes>> {
        if let Some((_, known)) = self.differences.iter().find(|(from, _)| Arc::ptr_eq(from, held)) {
            return Arc::clone(known);
        }
        let put: Vec<Item> = self
            .items
            .values()
            .filter(|item| held.get(&item.key) != Some(&item.hash))
            .map(|item| (**item).clone())
            .collect();
        let delete: Vec<ItemKey> =
            held.keys().filter(|key| !self.items.contains_key(*key)).cloned().collect();
        let mut changes = Vec::new();
        if !put.is_empty() || !delete.is_empty() {
            changes.extend(link::parts(put).map(|put| SharedChange {
                epoch,
                put,
                ..SharedChange::default()
            }));
        }
        if let Some(first) = changes.first_mut() {
            first.delete = delete;
        }
        if let Some(last) = changes.last_mut() {
            last.digest = Some(self.digest.to_string());
        }
        let encode = |change| {
            messages::encode(&Down::Shared(change))
                .inspect_err(|error| tracing::error!(%error, "what all nodes share cannot be sent"))
                .ok()
        };
        let difference: Arc<Vec<Bytes>> = Arc::new(changes.into_iter().filter_map(encode).collect());
        self.differences.truncate(DIFFERENCES_MAX - 1);
        self.differences.push_front((Arc::clone(held), Arc::clone(&difference)));
        difference
    }
}

/// What of a node others have to know.
pub fn peer(node: &Node) -> Option<Peer> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let address = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
    let pod_cidr = node.spec.as_ref()?.pod_cidr.clone()?;
    let external = addresses.iter().find(|a| a.type_ == "ExternalIP").and_then(|a| a.address.parse().ok());
    let seen = || node.metadata.annotations.as_ref()?.get(NAT_ADDRESS)?.parse().ok();
    Some(Peer {
        outer: external.or_else(seen),
        forwarded: external.is_some(),
        ..Peer::new(node.metadata.name.as_ref()?, &pod_cidr, address)
    })
}

/// All nodes, an item a block.
fn peers_of(objects: &Objects) -> Vec<Item> {
    let mut blocks: BTreeMap<Ipv4Addr, Vec<Peer>> = BTreeMap::new();
    for peer in objects.list_typed::<Node>(None).iter().filter_map(|node| peer(node)) {
        let network = peer.pod_cidr.split('/').next().and_then(|network| network.parse::<Ipv4Addr>().ok());
        let block = Ipv4Addr::from(network.map_or(0, u32::from) & BLOCK_MASK);
        blocks.entry(block).or_default().push(peer);
    }
    let item = |(block, peers): (Ipv4Addr, Vec<Peer>)| item(ItemKind::Peers, "", &block.to_string(), &peers);
    blocks.into_iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        clock::SystemClock,
        dispatch::items,
        kinds::{Kind, registry},
        objects::{DeleteOptions, WriteOptions},
        store::Store,
    };

    #[tokio::test]
    async fn a_thousand_peers_are_few_items_and_a_change_is_one_message() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(Store::open(&dir.path().join("state.db")).unwrap(), Arc::new(SystemClock));
        let create = async |n: u32| {
            let node = json!({
                "metadata": {"name": format!("n{n}")}, "spec": {"podCIDR": format!("10.42.{n}.0/24")},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            });
            objects.create(registry::of::<Node>(), "", node, &WriteOptions::system("test")).await.unwrap();
        };
        for n in 0..130 {
            create(n).await;
        }
        let (options, mut shared) = (Options::sample(), Shared::new());
        assert!(shared.refresh(&objects, &options, true));
        let blocks = |shared: &Shared| shared.items.keys().filter(|k| k.kind == ItemKind::Peers).count();
        assert_eq!(blocks(&shared), 3);
        let first = shared.digest.to_string();
        let old = shared.version(&first).unwrap();
        create(130).await;
        shared.touch_peers();
        assert!(!shared.refresh(&objects, &options, false), "peers wait for their own time");
        assert!(shared.peers_are_stale() && shared.refresh(&objects, &options, true));
        let read = |payload: &Bytes| match messages::decode(payload) {
            Ok(Down::Shared(change)) => change,
            other => panic!("{other:?}"),
        };
        // Who holds the version before is known by its digest alone, and lacks one block.
        assert!(Arc::ptr_eq(&shared.version(&first).unwrap(), &old));
        let difference = shared.bring_up(&old, 7);
        let change = read(&difference[0]);
        assert_eq!((difference.len(), change.put.len(), change.delete.len()), (1, 1, 0));
        assert_eq!((change.epoch, change.digest), (7, Some(shared.digest.to_string())));
        assert!(Arc::ptr_eq(&difference, &shared.bring_up(&old, 7)), "written once");
        let nothing = shared.version(&SetDigest::default().to_string()).unwrap();
        assert!(read(&shared.bring_up(&nothing, 7)[0]).put.len() >= 3);
        let now = Arc::clone(shared.hashes());
        assert!(shared.bring_up(&now, 7).is_empty());
        assert!(shared.version("somebody's").is_none());
    }

    /// Every change of a service, followed by its own items alone, gives what making everything anew does.
    #[tokio::test]
    async fn a_change_of_one_service_remakes_what_is_of_that_service() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(Store::open(&dir.path().join("state.db")).unwrap(), Arc::new(SystemClock));
        let (options, mut shared) = (Options::sample(), Shared::new());
        shared.refresh(&objects, &options, true);
        let service = |name: &str, address: &str, port: u16| {
            let ports = json!([{"name": "http", "port": port, "protocol": "TCP"}]);
            json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports}})
        };
        let slice = |name: &str, of: &str, address: &str| {
            json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": of}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            })
        };
        let (services, slices) = (registry::of::<Service>(), registry::of::<EndpointSlice>());
        let namespaces = registry::of::<Namespace>();
        let named = |name: &str| json!({"metadata": {"name": name}});
        let headless = service("b", "None", 80);
        // Which object becomes what: nothing is there before its first time, and `null` is its end.
        let changes: Vec<(&'static Kind, &str, &str, Value)> = vec![
            (namespaces, "", "default", named("default")),
            (namespaces, "", "other", named("other")),
            (services, "default", "kubernetes", service("kubernetes", "10.43.0.1", 443)),
            (services, "default", "a", service("a", "10.43.0.2", 80)),
            (services, "other", "a", service("a", "10.43.0.3", 80)),
            (services, "other", "b", headless),
            (slices, "default", "a-1", slice("a-1", "a", "10.42.0.2")),
            (slices, "other", "b-1", slice("b-1", "b", "10.42.0.3")),
            (slices, "default", "a-1", slice("a-1", "a", "10.42.0.9")),
            (slices, "other", "b-1", slice("b-1", "a", "10.42.0.3")),
            (services, "default", "kubernetes", service("kubernetes", "10.43.0.1", 6443)),
            (slices, "default", "a-1", Value::Null),
            (services, "default", "a", Value::Null),
            (services, "other", "b", Value::Null),
            (services, "other", "a", Value::Null),
        ];
        for (kind, namespace, name, value) in changes {
            let system = WriteOptions::system("test");
            let mut watch = objects.store().watch(&kind.resource(), objects.store().revision()).unwrap();
            if value.is_null() {
                objects.delete(kind, namespace, name, &DeleteOptions::default(), &system).await.unwrap();
            } else if objects.get(kind, namespace, name).is_ok() {
                objects.update(kind, None, namespace, name, value, &system).await.unwrap();
            } else {
                objects.create(kind, namespace, value, &system).await.unwrap();
            }
            let event = watch.next().await.unwrap();
            let reach = items::SOURCES.iter().find(|(resource, _)| *resource == kind.resource()).unwrap().1;
            let items::Reach::All(parts) = reach else { panic!("{reach:?}") };
            let of = items::services_of(&event).unwrap();
            assert_eq!(
                of.len(),
                1 + usize::from(event.object.key.name == "b-1".into() && event.previous.is_some())
            );
            shared.touch(parts, Some(&of));
            assert!(shared.refresh(&objects, &options, true), "{namespace}/{name}");
            let mut anew = Shared::new();
            anew.refresh(&objects, &options, true);
            assert_eq!(shared.hashes, anew.hashes, "{namespace}/{name}");
            assert_eq!(shared.digest, anew.digest);
        }
        assert!(shared.items.keys().all(|key| key.kind != ItemKind::Service || key.name == "kubernetes"));
    }
}
