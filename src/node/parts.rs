//! Changes of the desired set that come in several messages.

use std::collections::BTreeSet;

use super::ledger::Ledger;
use crate::{
    ids::Generation,
    mqtt::messages::{self, Item, ItemKey},
};

/// Parts that may wait for their last one (bytes).
const PARTS_BYTES_MAX: usize = 64 << 20;

/// What has come of one change.
#[derive(Debug, Default)]
pub struct Parts {
    pub generation: Generation,
    pub put: Vec<Item>,
    pub delete: Vec<ItemKey>,
    bytes: usize,
}

impl Parts {
    /// Adds a part. With the last one, which has the digest that the node's set comes to, the whole is
    /// given out; one of another generation begins anew.
    pub fn add(
        &mut self,
        generation: Generation,
        put: Vec<Item>,
        delete: Vec<ItemKey>,
        digest: Option<String>,
    ) -> Option<(Self, String)> {
        let mut whole = std::mem::take(self);
        if whole.generation != generation {
            whole = Self { generation, ..Self::default() };
        }
        whole.bytes += put.iter().map(|item| item.body.len()).sum::<usize>();
        if whole.bytes > PARTS_BYTES_MAX {
            tracing::error!(bytes = whole.bytes, "the desired set is too large for this node");
            return None;
        }
        whole.put.extend(put);
        whole.delete.extend(delete);
        let Some(digest) = digest else {
            *self = whole;
            return None;
        };
        Some((whole, digest))
    }

    /// Whether the items belong to the part of the set that all nodes share (or all do not), have the
    /// bodies that their hashes say, and bring what the ledger holds to this digest.
    pub fn come_to(&self, digest: &str, ledger: &Ledger, shared: bool) -> bool {
        self.put.iter().all(|item| item.hash == messages::hash_of(&item.body))
            && self.all_keys().all(|key| key.kind.is_shared() == shared)
            && ledger.digest_with(&self.put, &self.delete, shared) == digest
    }

    /// What is changed.
    pub fn keys(&self) -> BTreeSet<ItemKey> {
        self.all_keys().cloned().collect()
    }

    fn all_keys(&self) -> impl Iterator<Item = &ItemKey> {
        self.put.iter().map(|item| &item.key).chain(&self.delete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::messages::{ItemKind, SetDigest};

    fn item(kind: ItemKind, name: &str, bytes: usize) -> Item {
        Item::new(ItemKey { kind, namespace: "default".into(), name: name.into() }, "x".repeat(bytes))
    }

    fn names(parts: &Parts) -> Vec<String> {
        parts.keys().into_iter().map(|key| key.name.clone()).collect()
    }

    #[test]
    fn a_change_is_whole_with_its_last_part_and_never_mixed_with_another() {
        let map = |name| vec![item(ItemKind::ConfigMap, name, 1)];
        let mut parts = Parts::default();
        assert!(parts.add(Generation(1), map("lost"), Vec::new(), None).is_none());
        assert!(parts.add(Generation(2), map("a"), Vec::new(), None).is_none());
        let gone = vec![item(ItemKind::ConfigMap, "b", 0).key];
        let (whole, digest) = parts.add(Generation(2), map("c"), gone, Some("d".to_owned())).unwrap();
        assert_eq!((names(&whole), digest.as_str()), (vec!["a".into(), "b".into(), "c".into()], "d"));
        // A second change of the same generation begins anew.
        let (whole, _) = parts.add(Generation(2), map("e"), Vec::new(), Some(String::new())).unwrap();
        assert_eq!(names(&whole), ["e"]);
    }

    #[test]
    fn what_is_too_large_is_dropped() {
        let mut parts = Parts::default();
        let half = || vec![item(ItemKind::ConfigMap, "m", PARTS_BYTES_MAX / 2 + 1)];
        assert!(parts.add(Generation(1), half(), Vec::new(), None).is_none());
        assert!(parts.add(Generation(1), half(), Vec::new(), Some("d".to_owned())).is_none());
        assert!(parts.put.is_empty());
    }

    #[tokio::test]
    async fn only_what_comes_to_its_digest_and_is_where_it_belongs_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        let good = item(ItemKind::ConfigMap, "m", 3);
        let digest = SetDigest::of([(&good.key, good.hash.as_str())].into_iter()).to_string();
        let parts = |item: &Item| Parts { put: vec![item.clone()], ..Parts::default() };
        assert!(parts(&good).come_to(&digest, &ledger, false));
        assert!(!parts(&good).come_to(&SetDigest::default().to_string(), &ledger, false));
        assert!(!parts(&good).come_to(&digest, &ledger, true), "it is not for all");
        let changed = Item { body: "y".to_owned(), ..good };
        assert!(!parts(&changed).come_to(&digest, &ledger, false), "the body is another one");
    }
}
