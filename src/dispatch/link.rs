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
    /// The same for the part that all nodes share.
    shared: Hashes,
    pub dirty: bool,
}

/// The node's own items, by key.
pub type Own = BTreeMap<ItemKey, Item>;

fn hashes(items: &Own) -> BTreeMap<ItemKey, String> {
    items.iter().map(|(key, item)| (key.clone(), item.hash.clone())).collect()
}

/// The digest of a whole set.
pub fn digest(own: &Own, shared: &Shared) -> SetDigest {
    SetDigest::of(own.iter().map(|(key, item)| (key, item.hash.as_str()))).with(shared.digest())
}

impl Link {
    /// Of a hello whose node holds what it says; `None` when the digest does not tell what that is.
    pub fn new(
        hello: Hello,
        own: &Own,
        shared: &Shared,
        protocol: u32,
        offset: SignedDuration,
    ) -> Option<Self> {
        let serves_ingress = hello.info.serves_ingress;
        let (own, shared) = if digest(own, shared).to_string() == hello.digest {
            (hashes(own), Arc::clone(shared.hashes()))
        } else {
            let (of_all, own) = hello.hashes?.into_iter().partition(|(key, _)| key.kind.is_shared());
            (own, Arc::new(of_all))
        };
        Some(Self {
            session: hello.session,
            hardware: hello.hardware,
            protocol,
            generation: hello.generation,
            offset,
            serves_ingress,
            own,
            shared,
            dirty: false,
        })
    }

    pub fn holds(&self, key: &ItemKey) -> bool {
        self.own.contains_key(key)
    }

    /// Whether the node holds an older version of the shared part.
    pub fn is_behind(&self, shared: &Shared) -> bool {
        !Arc::ptr_eq(&self.shared, shared.hashes())
    }

    /// What the node lacks, in parts that fit a message; the last one has the digest. `None` when it
    /// lacks nothing and `always` does not ask for an answer.
    pub fn bring_up(
        &mut self,
        own: Own,
        shared: &mut Shared,
        epoch: u64,
        always: bool,
    ) -> Option<Vec<Desired>> {
        let digest = digest(&own, shared);
        let mut put = Vec::new();
        let mut delete: Vec<ItemKey> =
            self.own.keys().filter(|key| !own.contains_key(*key)).cloned().collect();
        if self.is_behind(shared) {
            let difference = shared.difference(&self.shared);
            put.extend(difference.put.iter().map(|item| (**item).clone()));
            delete.extend(difference.delete.iter().cloned());
            self.shared = Arc::clone(shared.hashes());
        }
        let held = hashes(&own);
        put.extend(own.into_values().filter(|item| self.own.get(&item.key) != Some(&item.hash)));
        self.own = held;
        if put.is_empty() && delete.is_empty() && !always {
            return None;
        }
        if !put.is_empty() || !delete.is_empty() {
            self.generation.0 += 1;
        }
        let part = |delete| Desired {
            session: self.session.clone(),
            epoch,
            protocol: self.protocol,
            generation: self.generation,
            put: Vec::new(),
            delete,
            digest: None,
        };
        let mut parts = vec![part(delete)];
        let mut bytes = 0;
        for item in put {
            if bytes > 0 && bytes + item.body.len() > ITEMS_BYTES_MAX {
                parts.push(part(Vec::new()));
                bytes = 0;
            }
            bytes += item.body.len();
            if let Some(part) = parts.last_mut() {
                part.put.push(item);
            }
        }
        if let Some(last) = parts.last_mut() {
            last.digest = Some(digest.to_string());
        }
        Some(parts)
    }
}
