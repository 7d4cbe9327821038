//! The part of every node's set that is the same for all: services, names, Ingresses, peers.
//!
//! It is kept up to date by parts, each made anew when one of its sources changed; what nodes hold of
//! it is one shared map a version, and the difference of two versions is computed once for all nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node;

use super::{Options, ingress, items::item, names, services};
use crate::{
    mqtt::messages::{Item, ItemKey, ItemKind, SetDigest},
    net::Peer,
    objects::Objects,
};

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

    fn items(self, objects: &Objects, options: &Options) -> Vec<Item> {
        match self {
            Self::Services => services::ports(objects, &options.cluster_dns)
                .into_iter()
                .map(|(namespace, name, ports)| item(ItemKind::Service, &namespace, &name, &ports))
                .collect(),
            Self::Environment => services::environment(objects)
                .into_iter()
                .map(|(namespace, env)| item(ItemKind::ServiceEnv, &namespace, "env", &env))
                .collect(),
            Self::Names => names::by_namespace(objects)
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

/// The hash of every item of a version.
pub type Hashes = Arc<BTreeMap<ItemKey, String>>;

/// What differs between two versions.
#[derive(Default)]
pub struct Difference {
    pub put: Vec<Arc<Item>>,
    pub delete: Vec<ItemKey>,
}

/// The shared part as of now, and what has to be looked at again.
pub struct Shared {
    items: BTreeMap<ItemKey, Arc<Item>>,
    hashes: Hashes,
    digest: SetDigest,
    stale: BTreeSet<Part>,
    stale_peers: BTreeSet<String>,
    all_peers_stale: bool,
    /// Rules of Ingresses: not for all, only for nodes that serve them.
    ingress: Vec<Item>,
    ingress_changed: bool,
    /// Differences to the present version from others.
    differences: Vec<(Hashes, Arc<Difference>)>,
}

impl Shared {
    /// Empty, and everything stale.
    pub fn new() -> Self {
        Self {
            items: BTreeMap::new(),
            hashes: Hashes::default(),
            digest: SetDigest::default(),
            stale: Part::ALL.into(),
            stale_peers: BTreeSet::new(),
            all_peers_stale: true,
            ingress: Vec::new(),
            ingress_changed: false,
            differences: Vec::new(),
        }
    }

    pub fn touch(&mut self, parts: &[Part]) {
        self.stale.extend(parts);
    }

    pub fn touch_peer(&mut self, node: &str) {
        self.stale_peers.insert(node.to_owned());
    }

    pub fn touch_all(&mut self) {
        self.stale = Part::ALL.into();
        self.all_peers_stale = true;
    }

    pub fn is_stale(&self) -> bool {
        !self.stale.is_empty() || !self.stale_peers.is_empty() || self.all_peers_stale
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

    /// Makes stale parts anew; whether anything is different now.
    pub fn refresh(&mut self, objects: &Objects, options: &Options) -> bool {
        let mut changed = false;
        for part in std::mem::take(&mut self.stale) {
            let fresh = part.items(objects, options);
            if part == Part::Ingresses {
                let same = |(a, b): (&Item, &Item)| a.key == b.key && a.hash == b.hash;
                if fresh.len() != self.ingress.len() || !fresh.iter().zip(&self.ingress).all(same) {
                    self.ingress = fresh;
                    self.ingress_changed = true;
                }
                continue;
            }
            changed |= self.replace(part.kind(), fresh);
        }
        if std::mem::take(&mut self.all_peers_stale) {
            self.stale_peers.clear();
            let fresh = objects.list_typed::<Node>(None).iter().filter_map(|node| peer_item(node)).collect();
            changed |= self.replace(ItemKind::Peer, fresh);
        }
        for name in std::mem::take(&mut self.stale_peers) {
            match objects.get_typed::<Node>("", &name).and_then(|node| peer_item(&node)) {
                Some(item) => changed |= self.put(item),
                None => changed |= self.delete(&ItemKey::new(ItemKind::Peer, "", &name)),
            }
        }
        if changed {
            self.hashes = Arc::new(self.items.iter().map(|(k, i)| (k.clone(), i.hash.clone())).collect());
            self.differences.clear();
        }
        changed
    }

    fn replace(&mut self, kind: ItemKind, fresh: Vec<Item>) -> bool {
        let keys: BTreeSet<ItemKey> = fresh.iter().map(|item| item.key.clone()).collect();
        let gone: Vec<ItemKey> =
            self.items.keys().filter(|key| key.kind == kind && !keys.contains(*key)).cloned().collect();
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

    /// What who holds `held` lacks of the present version.
    pub fn difference(&mut self, held: &Hashes) -> Arc<Difference> {
        if let Some((_, known)) = self.differences.iter().find(|(from, _)| Arc::ptr_eq(from, held)) {
            return Arc::clone(known);
        }
        let put = self.items.values().filter(|item| held.get(&item.key) != Some(&item.hash));
        let delete = held.keys().filter(|key| !self.items.contains_key(*key));
        let difference =
            Arc::new(Difference { put: put.cloned().collect(), delete: delete.cloned().collect() });
        self.differences.push((Arc::clone(held), Arc::clone(&difference)));
        difference
    }
}

fn peer_item(node: &Node) -> Option<Item> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let address = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
    let pod_cidr = node.spec.as_ref()?.pod_cidr.clone()?;
    let peer = Peer { node: node.metadata.name.clone()?, pod_cidr, address };
    Some(item(ItemKind::Peer, "", &peer.node, &peer))
}
