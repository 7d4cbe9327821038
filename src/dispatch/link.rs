//! One node that has said hello: what it holds, and the messages that bring it up to date.

use std::{collections::BTreeMap, sync::Arc};

use jiff::SignedDuration;

use super::shared::{Hashes, Shared};
use crate::{
    ids::Generation,
    mqtt::messages::{Desired, Hello, ITEMS_BYTES_MAX, Item, ItemKey, SetDigest},
};

/// A node's session.
pub struct Link {
    pub session: String,
    pub hardware: String,
    /// The version of the protocol that both sides speak.
    pub protocol: u32,
    pub generation: Generation,
    /// What has to be added to the node's clock.
    pub offset: SignedDuration,
    pub serves_ingress: bool,
    /// The hash of every item of its own that the node holds, or will when it has what was sent.
    own: BTreeMap<ItemKey, String>,
    /// The version of the part that all nodes share.
    pub shared: Hashes,
    pub dirty: bool,
}

/// The node's own items, by key.
pub type Own = BTreeMap<ItemKey, Item>;

fn hashes(items: &Own) -> BTreeMap<ItemKey, String> {
    items.iter().map(|(key, item)| (key.clone(), item.hash.clone())).collect()
}

/// The digest of a node's own items.
fn digest(own: &Own) -> String {
    SetDigest::of(own.iter().map(|(key, item)| (key, item.hash.as_str()))).to_string()
}

impl Link {
    /// Of a hello whose node holds what it says; `None` when its digests do not tell what that is.
    pub fn new(
        hello: Hello,
        own: &Own,
        shared: &Shared,
        protocol: u32,
        offset: SignedDuration,
    ) -> Option<Self> {
        let (said_shared, said_own): (BTreeMap<_, _>, BTreeMap<_, _>) =
            hello.hashes.iter().flatten().cloned().partition(|(key, _)| key.kind.is_shared());
        let listed = hello.hashes.is_some();
        let held = if digest(own) == hello.digest {
            hashes(own)
        } else if listed || hello.digest == SetDigest::default().to_string() {
            said_own
        } else {
            return None;
        };
        let shared = match shared.version(&hello.shared) {
            Some(version) => version,
            None if listed => Arc::new(said_shared),
            None => return None,
        };
        Some(Self {
            session: hello.session,
            hardware: hello.hardware,
            protocol,
            generation: hello.generation,
            offset,
            serves_ingress: hello.info.serves_ingress,
            own: held,
            shared,
            dirty: false,
        })
    }

    pub fn holds(&self, key: &ItemKey) -> bool {
        self.own.contains_key(key)
    }

    /// What the node lacks of its own items, in parts that fit a message; the last one has the digest.
    /// `None` when it lacks nothing and `always` does not ask for an answer.
    pub fn bring_up(&mut self, own: Own, epoch: u64, always: bool) -> Option<Vec<Desired>> {
        let digest = digest(&own);
        let delete: Vec<ItemKey> = self.own.keys().filter(|key| !own.contains_key(*key)).cloned().collect();
        let held = hashes(&own);
        let put: Vec<Item> =
            own.into_values().filter(|item| self.own.get(&item.key) != Some(&item.hash)).collect();
        self.own = held;
        if put.is_empty() && delete.is_empty() && !always {
            return None;
        }
        if !put.is_empty() || !delete.is_empty() {
            self.generation.0 += 1;
        }
        let mut parts: Vec<Desired> = parts(put)
            .map(|put| Desired {
                session: self.session.clone(),
                epoch,
                protocol: self.protocol,
                generation: self.generation,
                put,
                ..Desired::default()
            })
            .collect();
        if let Some(first) = parts.first_mut() {
            first.delete = delete;
        }
        if let Some(last) = parts.last_mut() {
            last.digest = Some(digest);
        }
        Some(parts)
    }
}

/// Items in parts that fit a message each; at least one part.
pub fn parts(items: impl IntoIterator<Item = Item>) -> impl Iterator<Item = Vec<Item>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for item in items {
        if bytes > 0 && bytes + item.body.len() > ITEMS_BYTES_MAX {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += item.body.len();
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    parts.into_iter()
}
