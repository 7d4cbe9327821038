//! The garbage collector: dependents go with their owners, in the background, before them
//! (foreground) or not at all (orphan).
//!
//! Watches: everything that can own or be owned. Observes: an object's owners and dependents in the
//! view. A namespace's key stands for a sweep over all that is in it, so that nothing is left behind
//! by a crash between an owner's deletion and its dependents'.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
};

use serde_json::{Value, json};

use super::{
    plan::{Action, Plan, Target},
    runner::{Controller, Round, Source},
};
use crate::{
    kinds::{Durability, Kind, registry},
    objects::{Objects, Propagation},
    store::{Key, Object},
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// The resources that the collector watches: all that live on disk.
static RESOURCES: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let stored = registry::KINDS.iter().filter(|k| k.stored_as.is_none() && k.durability == Durability::Disk);
    // Made once, for the life of the process.
    stored.map(|k| &*k.resource().leak()).collect()
});

pub struct GarbageCollector;

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbage-collector-controller"
    }

    fn primary(&self) -> &'static str {
        "namespaces"
    }

    fn sources(&self) -> Vec<Source> {
        RESOURCES.iter().map(|resource| Source::new(resource, concerned)).collect()
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let mut plan = Plan::default();
        if let Some(object) = objects.store().get(key) {
            plan.actions.extend(collect(objects, &object));
        }
        if &*key.resource == "namespaces" {
            let owned = objects.store().find(|o| *o.key.namespace == *key.name && !o.meta.owners.is_empty());
            for object in owned {
                plan.actions.extend(collect(objects, &object));
            }
        }
        plan
    }
}

/// The object itself and, when it goes, those that it owns or that own it.
fn concerned(objects: &Objects, object: &Object) -> Vec<Key> {
    let mut keys = Vec::new();
    let gone = objects.store().get(&object.key).is_none_or(|now| now.meta.uid != object.meta.uid);
    if !object.meta.owners.is_empty() || object.meta.deleting {
        keys.push(object.key.clone());
    }
    if gone || object.meta.deleting {
        keys.extend(objects.store().owned_by(&object.meta.uid).iter().map(|o| o.key.clone()));
        let value = object.value();
        for reference in references(&value) {
            keys.extend(owner_of(objects, object, reference).ok().flatten().map(|o| o.key.clone()));
        }
    }
    keys
}

fn references(value: &Value) -> impl Iterator<Item = &Value> {
    value["metadata"]["ownerReferences"].as_array().into_iter().flatten()
}

/// The owner that a reference means; `None` when there is none, an error when nobody can tell.
fn owner_of(objects: &Objects, object: &Object, reference: &Value) -> Result<Option<Arc<Object>>, ()> {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let kind = registry::by_type(text("apiVersion"), text("kind")).ok_or(())?;
    let kind = match kind.stored_as {
        Some(stored) => registry::by_path(stored.group, stored.version, stored.plural).ok_or(())?,
        None => kind,
    };
    if kind.namespaced && object.key.namespace.is_empty() {
        // A cluster-scoped object cannot have an owner in a namespace; upstream leaves it alone.
        return Err(());
    }
    let namespace = if kind.namespaced { &*object.key.namespace } else { "" };
    let found = objects.get(kind, namespace, text("name")).ok();
    Ok(found.filter(|owner| *owner.meta.uid == *text("uid")))
}

fn has_finalizer(value: &Value, name: &str) -> bool {
    value["metadata"]["finalizers"].as_array().is_some_and(|all| all.iter().any(|f| f == name))
}

/// What is to be done about one object.
fn collect(objects: &Objects, object: &Object) -> Vec<Action> {
    let Some(kind) = registry::by_resource(&object.key.resource) else { return Vec::new() };
    let value = object.value();
    if object.meta.deleting {
        if has_finalizer(&value, ORPHAN) {
            return orphan(objects, kind, object, &value);
        }
        if has_finalizer(&value, FOREGROUND) {
            return foreground(objects, kind, object, &value);
        }
        return Vec::new();
    }
    let (mut solid, mut rest, mut waiting) = (0, Vec::new(), 0);
    for reference in references(&value) {
        match owner_of(objects, object, reference) {
            Err(()) => solid += 1,
            Ok(Some(owner)) => {
                let ends = owner.meta.deleting && has_finalizer(&owner.value(), FOREGROUND);
                if ends && reference["blockOwnerDeletion"] == true {
                    waiting += 1;
                    rest.push(reference["uid"].clone());
                } else {
                    solid += 1;
                }
            }
            Ok(None) => rest.push(reference["uid"].clone()),
        }
    }
    if rest.is_empty() {
        return Vec::new();
    }
    if solid > 0 {
        return vec![without_owners(kind, object, &value, &rest)];
    }
    let has_dependents = !objects.store().owned_by(&object.meta.uid).is_empty();
    let propagation = if waiting > 0 && has_dependents || has_finalizer(&value, FOREGROUND) {
        Propagation::Foreground
    } else if has_finalizer(&value, ORPHAN) {
        Propagation::Orphan
    } else {
        Propagation::Background
    };
    vec![delete(kind, object, propagation)]
}

fn target(kind: &'static Kind, object: &Object) -> Target {
    Target {
        kind,
        namespace: object.key.namespace.to_string(),
        name: object.key.name.to_string(),
        uid: object.meta.uid.to_string(),
    }
}

fn delete(kind: &'static Kind, object: &Object, propagation: Propagation) -> Action {
    Action::Delete {
        target: target(kind, object),
        grace_seconds: None,
        propagation: Some(propagation),
        done: None,
        failed: None,
    }
}

/// Takes references to some owners away.
fn without_owners(kind: &'static Kind, object: &Object, value: &Value, uids: &[Value]) -> Action {
    let kept: Vec<&Value> = references(value).filter(|r| !uids.contains(&r["uid"])).collect();
    let kept = if kept.is_empty() { Value::Null } else { json!(kept) };
    merge(kind, object, json!({"metadata": {"ownerReferences": kept}}))
}

/// A merge patch of the object as it was observed: lists are replaced whole.
fn merge(kind: &'static Kind, object: &Object, patch: Value) -> Action {
    let at = Some(object.revision.to_string());
    Action::Merge { target: target(kind, object), subresource: None, at, patch }
}

fn without_finalizer(kind: &'static Kind, object: &Object, value: &Value, name: &str) -> Action {
    let all = value["metadata"]["finalizers"].as_array().into_iter().flatten();
    let kept: Vec<&Value> = all.filter(|f| *f != name).collect();
    let kept = if kept.is_empty() { Value::Null } else { json!(kept) };
    merge(kind, object, json!({"metadata": {"finalizers": kept}}))
}

/// Dependents forget their owner, then the owner may go.
fn orphan(objects: &Objects, kind: &'static Kind, owner: &Object, value: &Value) -> Vec<Action> {
    let uid = Value::from(&*owner.meta.uid);
    let mut actions: Vec<Action> = dependents(objects, owner)
        .iter()
        .filter_map(|dependent| {
            let kind = registry::by_resource(&dependent.key.resource)?;
            Some(without_owners(kind, dependent, &dependent.value(), std::slice::from_ref(&uid)))
        })
        .collect();
    actions.push(without_finalizer(kind, owner, value, ORPHAN));
    actions
}

/// Dependents go first; the owner once none blocks it.
fn foreground(objects: &Objects, kind: &'static Kind, owner: &Object, value: &Value) -> Vec<Action> {
    let all = dependents(objects, owner);
    let blocks = |dependent: &&Arc<Object>| {
        references(&dependent.value()).any(|r| r["uid"] == *owner.meta.uid && r["blockOwnerDeletion"] == true)
    };
    // What waits for its own dependents, the owner among them, would wait for ever.
    if !all.iter().any(|d| blocks(&d) && !waits_for(objects, d, owner)) {
        return vec![without_finalizer(kind, owner, value, FOREGROUND)];
    }
    all.iter().filter(|d| !d.meta.deleting).flat_map(|d| collect(objects, d)).collect()
}

/// Whether an object, being deleted in the foreground, waits for `other`, itself or through what it owns.
fn waits_for(objects: &Objects, object: &Arc<Object>, other: &Object) -> bool {
    let (mut open, mut seen) = (vec![Arc::clone(object)], HashSet::new());
    while let Some(next) = open.pop() {
        let waits = next.meta.deleting && has_finalizer(&next.value(), FOREGROUND);
        if !waits || !seen.insert(next.meta.uid.to_string()) {
            continue;
        }
        let owned = dependents(objects, &next);
        if owned.iter().any(|o| o.meta.uid == other.meta.uid) {
            return true;
        }
        open.extend(owned);
    }
    false
}

/// What an object owns: in its own namespace, or anywhere when it has none.
fn dependents(objects: &Objects, owner: &Object) -> Vec<Arc<Object>> {
    let mut all = objects.store().owned_by(&owner.meta.uid);
    all.retain(|d| owner.key.namespace.is_empty() || d.key.namespace == owner.key.namespace);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        objects::{DeleteOptions, WriteOptions},
        store::Store,
    };

    async fn world() -> (tempfile::TempDir, Objects) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("s.db")).unwrap();
        (folder, Objects::new(store, Arc::new(SystemClock)))
    }

    async fn map(objects: &Objects, name: &str, owner: Option<&Object>) -> Arc<Object> {
        let kind = registry::by_type("v1", "ConfigMap").unwrap();
        let owners: Vec<Value> = owner
            .iter()
            .map(|o| {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "name": &*o.key.name, "uid": &*o.meta.uid,
                "blockOwnerDeletion": true})
            })
            .collect();
        let value = json!({"metadata": {"name": name, "ownerReferences": owners}});
        objects.create(kind, "a", value, &WriteOptions::default()).await.unwrap()
    }

    async fn settle(objects: &Objects) {
        let collector = GarbageCollector;
        for _ in 0..8 {
            for object in objects.store().find(|_| true) {
                let plan = collector.plan(objects, &object.key, &Round::default());
                super::super::runner::execute(objects, "test", &plan).await.unwrap();
            }
        }
    }

    async fn left(propagation: Propagation) -> Vec<String> {
        let (_folder, objects) = world().await;
        let top = map(&objects, "top", None).await;
        let middle = map(&objects, "middle", Some(&top)).await;
        map(&objects, "leaf", Some(&middle)).await;
        map(&objects, "other", None).await;
        settle(&objects).await;
        assert_eq!(objects.store().find(|_| true).len(), 4, "nothing goes while its owner lives");
        let kind = registry::by_type("v1", "ConfigMap").unwrap();
        let delete = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        objects.delete(kind, "a", "top", &delete, &WriteOptions::default()).await.unwrap();
        settle(&objects).await;
        objects.store().find(|_| true).iter().map(|o| o.key.name.to_string()).collect()
    }

    #[tokio::test]
    async fn a_circle_of_owners_is_no_obstacle() {
        let (_folder, objects) = world().await;
        let first = map(&objects, "a", None).await;
        let second = map(&objects, "b", Some(&first)).await;
        let third = map(&objects, "c", Some(&second)).await;
        map(&objects, "hanger-on", Some(&third)).await;
        let kind = registry::by_type("v1", "ConfigMap").unwrap();
        let options = WriteOptions::default();
        let close = |value: &mut Value| {
            value["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "c",
                "uid": &*third.meta.uid, "blockOwnerDeletion": true}]);
            Ok(())
        };
        objects.modify(kind, None, "a", "a", &options, close).await.unwrap();
        settle(&objects).await;
        assert_eq!(objects.store().find(|_| true).len(), 4);
        let delete = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
        objects.delete(kind, "a", "a", &delete, &options).await.unwrap();
        settle(&objects).await;
        assert!(objects.store().find(|_| true).is_empty());
    }

    #[tokio::test]
    async fn dependents_follow_the_policy() {
        assert_eq!(left(Propagation::Background).await, ["other"]);
        assert_eq!(left(Propagation::Foreground).await, ["other"]);
        assert_eq!(left(Propagation::Orphan).await, ["leaf", "middle", "other"]);
    }
}
