//! Which ReplicaSet carries which version: template hash, names, revision annotations.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::owner;
use crate::ids;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
pub const HASH_LABEL: &str = "pod-template-hash";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The longest `revision-history` annotation (characters).
const REVISION_HISTORY_LEN_MAX: usize = 2000;

/// Annotations of a Deployment that do not go to its ReplicaSets.
fn is_own(key: &str) -> bool {
    matches!(
        key,
        LAST_APPLIED
            | REVISION
            | REVISION_HISTORY
            | DESIRED_REPLICAS
            | MAX_REPLICAS
            | "deprecated.deployment.rollback.to"
    )
}

/// FNV-1a, 32 bits: what upstream hashes templates with.
fn fnv32a(parts: &[&[u8]]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in parts.iter().copied().flatten() {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash
}

/// A short name for a value: the hash of its JSON form and of how often it has collided, in the
/// alphabet of generated names. `serde_json` writes maps in key order, so equal values hash equal.
pub fn hash<T: serde::Serialize>(value: &T, collisions: Option<i32>) -> String {
    let text = super::super::plan::json(value).to_string();
    let count = collisions.map(|n| u64::from(n.unsigned_abs()).to_le_bytes());
    let sum = fnv32a(&[text.as_bytes(), count.as_ref().map_or(&[], |c| c.as_slice())]);
    ids::safe_encode(&sum.to_string())
}

pub fn template_hash(deployment: &Deployment) -> String {
    let template = deployment.spec.as_ref().map(|s| &s.template);
    hash(&template, deployment.status.as_ref().and_then(|s| s.collision_count))
}

/// The name that the ReplicaSet of the present template gets.
pub fn replica_set_name(deployment: &Deployment) -> String {
    format!("{}-{}", owner::name(&deployment.metadata), template_hash(deployment))
}

/// Whether two templates are the same but for the hash label.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    fn labels(meta: Option<&ObjectMeta>) -> impl Iterator<Item = (&String, &String)> {
        meta.and_then(|m| m.labels.as_ref()).into_iter().flatten().filter(|(k, _)| *k != HASH_LABEL)
    }
    let (a_meta, b_meta) = (a.metadata.as_ref(), b.metadata.as_ref());
    if a.spec != b.spec || !labels(a_meta).eq(labels(b_meta)) {
        return false;
    }
    let rest = |meta: Option<&ObjectMeta>| {
        let mut meta = meta.cloned().unwrap_or_default();
        meta.labels = None;
        meta
    };
    rest(a_meta) == rest(b_meta)
}

pub fn revision(rs: &ReplicaSet) -> i64 {
    number(&rs.metadata, REVISION).unwrap_or(0)
}

pub fn number(meta: &ObjectMeta, annotation: &str) -> Option<i64> {
    owner::annotation(meta, annotation)?.parse().ok()
}

/// The annotations of the ReplicaSet of the present template: those of the Deployment, and the
/// revision, with the earlier revisions that it served as.
pub fn annotations(
    deployment: &Deployment,
    current: Option<&BTreeMap<String, String>>,
    new_revision: i64,
) -> BTreeMap<String, String> {
    let mut all = current.cloned().unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !is_own(key) {
            all.insert(key.clone(), value.clone());
        }
    }
    let old = current.and_then(|c| c.get(REVISION)).cloned();
    let old_number = old.as_deref().map_or(0, |text| text.parse().unwrap_or(0));
    if old_number < new_revision {
        all.insert(REVISION.into(), new_revision.to_string());
        if let Some(old) = old {
            let mut history: Vec<&str> = all
                .get(REVISION_HISTORY)
                .map(|h| h.split(',').filter(|r| !r.is_empty()).collect())
                .unwrap_or_default();
            history.push(&old);
            let mut text = history.join(",");
            while text.len() > REVISION_HISTORY_LEN_MAX {
                history.remove(0);
                text = history.join(",");
            }
            all.insert(REVISION_HISTORY.into(), text);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_is_the_published_one() {
        // http://www.isthe.com/chongo/tech/comp/fnv: test vectors of FNV-1a.
        assert_eq!(fnv32a(&[b""]), 0x811c_9dc5);
        assert_eq!(fnv32a(&[b"foobar"]), 0xbf9c_f968);
    }

    #[test]
    fn a_collision_changes_the_hash() {
        assert_eq!(hash(&"a", None), hash(&"a", None));
        assert_ne!(hash(&"a", None), hash(&"a", Some(1)));
    }

    #[test]
    fn coming_back_to_a_revision_keeps_the_history() {
        let current = [(REVISION.to_owned(), "1".to_owned())].into();
        let now = annotations(&Deployment::default(), Some(&current), 3);
        assert_eq!(now[REVISION], "3");
        assert_eq!(now[REVISION_HISTORY], "1");
    }
}
