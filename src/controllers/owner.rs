//! Who owns an object: owner references, adoption and release.

use std::sync::Arc;

use k8s_openapi::{
    Metadata, Resource,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plan::{Plan, list};
use crate::{
    kinds::{labels::Selector, registry},
    objects::Objects,
    store::Meta,
};

/// The owner reference with `controller: true`.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object's controller has this uid.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The reference by which `owner` controls what it creates.
pub fn controller_reference<T: Metadata<Ty = ObjectMeta>>(owner: &T) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: <T as Resource>::API_VERSION.to_owned(),
        kind: <T as Resource>::KIND.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// A label selector, compiled. One that is invalid (validation refuses it) selects nothing.
pub fn selector(selector: &LabelSelector) -> Selector {
    Selector::from_label_selector(Some(selector)).unwrap_or(Selector::NOTHING)
}

/// The objects of a namespace that `owner` (a uid) owns or that its selector selects; which of
/// them it may have is decided by [`claim`].
pub fn candidates<T>(objects: &Objects, namespace: &str, owner: &str, selector: &Selector) -> Vec<Arc<T>>
where
    T: Resource + DeserializeOwned + Send + Sync + 'static,
{
    let listing = objects.list(registry::of::<T>(), Some(namespace));
    let wanted = |meta: &Meta| {
        meta.owners.iter().any(|uid| **uid == *owner) || selector.matches(|key| meta.label(key))
    };
    listing.items.iter().filter(|o| wanted(&o.meta)).map(|o| o.typed()).collect()
}

/// Sorts out which `candidates` belong to `owner`: keeps its own that still match, plans the
/// release of those that no longer do and the adoption of matching orphans.
///
/// An owner that is being deleted neither adopts nor releases; an object that is being deleted is
/// not adopted.
pub fn claim<O, T>(owner: &O, candidates: &[Arc<T>], selector: &Selector, plan: &mut Plan) -> Vec<Arc<T>>
where
    O: Metadata<Ty = ObjectMeta>,
    T: Metadata<Ty = ObjectMeta>,
{
    claim_held(owner, candidates, selector, None, plan)
}

/// [`claim`], where the owner's objects carry a finalizer: it comes with adoption and goes with
/// release.
pub fn claim_held<O, T>(
    owner: &O,
    candidates: &[Arc<T>],
    selector: &Selector,
    finalizer: Option<&str>,
    plan: &mut Plan,
) -> Vec<Arc<T>>
where
    O: Metadata<Ty = ObjectMeta>,
    T: Metadata<Ty = ObjectMeta>,
{
    let with_finalizer = |meta: &ObjectMeta, mut patch: Value, held: bool| {
        if let Some(finalizer) = finalizer {
            let others = meta.finalizers.iter().flatten().map(String::as_str).filter(|f| *f != finalizer);
            patch["metadata"]["finalizers"] = list(others.chain(held.then_some(finalizer)));
        }
        patch
    };
    let own = uid(owner.metadata());
    let deleting = owner.metadata().deletion_timestamp.is_some();
    let mut kept = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let meta = candidate.metadata();
        let matches = selector.matches_map(meta.labels.as_ref());
        let references = meta.owner_references.as_deref().unwrap_or_default();
        match controller_of(meta) {
            Some(controller) if controller.uid != own => {}
            Some(_) if matches => kept.push(Arc::clone(candidate)),
            Some(_) if deleting => {}
            Some(_) => {
                let rest = list(references.iter().filter(|o| o.uid != own));
                let patch = json!({ "metadata": { "ownerReferences": rest } });
                plan.merge_at(&**candidate, with_finalizer(meta, patch, false));
            }
            None if deleting || meta.deletion_timestamp.is_some() || !matches => {}
            None => {
                let mut all: Vec<_> = references.iter().filter(|o| o.uid != own).cloned().collect();
                all.push(controller_reference(owner));
                let patch = json!({ "metadata": { "ownerReferences": all } });
                plan.merge_at(&**candidate, with_finalizer(meta, patch, true));
                kept.push(Arc::clone(candidate));
            }
        }
    }
    kept
}
