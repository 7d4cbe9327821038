//! ControllerRevisions: the versions of a DaemonSet's or StatefulSet's template.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    Metadata,
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use serde_json::{Value, json};

use super::{
    deployment::hash,
    owner::{self, controller_reference},
    plan::Plan,
};
use crate::{kinds::labels::Selector, objects::Objects};

/// The label of pods and revisions that names the version.
pub const HASH_LABEL: &str = "controller-revision-hash";
const REVISION_HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// The revisions that a set owns, the oldest first.
pub fn owned<S: Metadata<Ty = ObjectMeta>>(objects: &Objects, set: &S) -> Vec<Arc<ControllerRevision>> {
    let meta = set.metadata();
    let uid = owner::uid(meta);
    let mut all: Vec<Arc<ControllerRevision>> =
        owner::candidates(objects, owner::namespace(meta), uid, &Selector::NOTHING);
    all.retain(|r| owner::is_controlled_by(&r.metadata, uid));
    all.sort_by_key(|r| r.revision);
    all
}

/// The version of a template as upstream keeps it: a patch of the set.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({ "spec": { "template": template } })
}

/// The template that a revision keeps.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_slice(&serde_json::to_vec(&template).ok()?).ok()
}

/// Finds or plans the revision of the present template. Returns its name, which is also the hash
/// label's value (`web-5d4f…`), and its hash.
pub fn sync<S: Metadata<Ty = ObjectMeta>>(
    set: &S,
    current: &PodTemplateSpec,
    revisions: &[Arc<ControllerRevision>],
    collisions: Option<i32>,
    plan: &mut Plan,
) -> String {
    let data = data(current);
    let newest = revisions.last().map_or(0, |r| r.revision);
    let same = revisions.iter().rev().find(|r| r.data.as_ref().is_some_and(|d| d.0 == data));
    if let Some(revision) = same {
        if revision.revision != newest {
            plan.merge(&**revision, json!({ "revision": newest + 1 }));
        }
        return owner::name(&revision.metadata).to_owned();
    }
    let hash = hash(&data, collisions);
    let name = format!("{}-{hash}", owner::name(set.metadata()));
    let mut labels = current.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(REVISION_HASH_LABEL.into(), hash.clone());
    labels.insert(HASH_LABEL.into(), hash);
    plan.create(
        &ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: set.metadata().namespace.clone(),
                labels: Some(labels),
                annotations: set.metadata().annotations.clone(),
                owner_references: Some(vec![controller_reference(set)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data)),
            revision: newest + 1,
        },
        None,
        None,
    );
    name
}

/// Deletes the oldest revisions beyond the limit that nobody uses.
pub fn truncate(
    revisions: &[Arc<ControllerRevision>],
    in_use: impl Fn(&str) -> bool,
    limit: Option<i32>,
    plan: &mut Plan,
) {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let unused: Vec<_> = revisions.iter().filter(|r| !in_use(owner::name(&r.metadata))).collect();
    for revision in unused.iter().take(unused.len().saturating_sub(limit)) {
        plan.delete(&***revision, None, None);
    }
}

/// The labels of a template with one more.
pub fn with_label(meta: &mut ObjectMeta, key: &str, value: &str) {
    meta.labels.get_or_insert_with(BTreeMap::new).insert(key.to_owned(), value.to_owned());
}
