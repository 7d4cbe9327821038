//! Deletion: preconditions, finalizers, grace (`k8s.io/apiserver/pkg/registry/rest.BeforeDelete` and
//! `registry/generic/registry.Store.Delete`).

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    DeleteOptions, Error, Objects, Propagation, Removal, WriteOptions, admission,
    verbs::{has_items, is_finished},
};
use crate::{
    clock,
    kinds::{Durability, Kind, remove},
    store::{Change, Expect, Object, Write},
};

/// The garbage collector takes this away once dependents no longer name their owner.
pub const ORPHAN: &str = "orphan";
/// The garbage collector takes this away once the dependents that block are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// How often a delete without preconditions is tried again.
const DELETE_TRIES_MAX: u32 = 16;

impl Objects {
    /// Deletes an object, or marks it for deletion while finalizers or a grace period hold it.
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        delete: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<std::sync::Arc<Object>, Error> {
        self.remove(kind, namespace, name, delete, options).await.map(|removal| removal.object)
    }

    /// [`Objects::delete`] that also says whether the object is gone.
    pub async fn remove(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        delete: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<Removal, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.remove_once(kind, namespace, name, delete, options).await {
                Err(Step::Again(_)) if tries < DELETE_TRIES_MAX => {}
                Err(Step::Again(error) | Step::Refused(error)) => return Err(error),
                Ok(removal) => return Ok(removal),
            }
        }
    }

    async fn remove_once(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        delete: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<Removal, Step> {
        let current = self.get(kind, namespace, name)?;
        preconditions(kind, &current, delete)?;
        let old = current.value();
        let request = admission::Request {
            objects: self,
            kind,
            subresource: None,
            namespace,
            old: Some(&old),
            options,
        };
        admission::delete(&request, name)?;
        let Some((value, gone)) = decide(kind, &old, delete, self.clock().now())? else {
            return Ok(Removal { object: current, gone: false });
        };
        let change = if gone {
            Change::Delete { last: value }
        } else {
            Change::Put { value, durable: kind.durability == Durability::Disk }
        };
        let write = Write { key: current.key.clone(), expect: Expect::At(current.revision), change };
        match self.commit(write, options).await {
            Ok(object) => Ok(Removal { object, gone }),
            Err(error @ Error::Conflict { .. }) => Err(Step::Again(error)),
            Err(error) => Err(Step::Refused(error)),
        }
    }
}

enum Step {
    Again(Error),
    Refused(Error),
}

impl From<Error> for Step {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

fn preconditions(kind: &Kind, current: &Object, delete: &DeleteOptions) -> Result<(), Error> {
    let refuse = |message: String| {
        Err(Error::Conflict { resource: kind.resource(), name: current.key.name.to_string(), message })
    };
    if let Some(uid) = delete.uid.as_deref().filter(|uid| **uid != *current.meta.uid) {
        return refuse(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            current.meta.uid
        ));
    }
    let revision = current.revision.to_string();
    if let Some(asked) = delete.resource_version.as_deref().filter(|asked| **asked != *revision) {
        return refuse(format!(
            "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: {revision}"
        ));
    }
    Ok(())
}

/// The object as the delete leaves it and whether it is gone then; `None` when it stays as it is.
fn decide(
    kind: &Kind,
    old: &Value,
    delete: &DeleteOptions,
    now: Timestamp,
) -> Result<Option<(Value, bool)>, Error> {
    let mut value = old.clone();
    let deleting = !old["metadata"]["deletionTimestamp"].is_null();
    if kind.kind == "Namespace" && kind.group.is_empty() {
        if deleting && has_items(&old["spec"]["finalizers"]) {
            return Err(Error::Conflict {
                resource: kind.resource(),
                name: old["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                message: "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace will automatically be purged by the system.".to_owned(),
            });
        }
        value["status"]["phase"] = "Terminating".into();
    }
    let finalizers = garbage_finalizers(old, delete.propagation);
    if has_items(&finalizers) {
        value["metadata"]["finalizers"] = finalizers;
    } else {
        remove(&mut value["metadata"], "finalizers");
    }
    let held = has_items(&value["metadata"]["finalizers"])
        || kind.kind == "Namespace" && has_items(&value["spec"]["finalizers"]);
    match grace(kind, old, delete, deleting) {
        Grace::Pending if value == *old => return Ok(None),
        Grace::Shorten(seconds) => {
            let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
            let stamp = old["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse().ok());
            let stamp: Timestamp = stamp.unwrap_or(now);
            mark(&mut value, stamp + SignedDuration::from_secs(seconds - before), seconds);
        }
        Grace::Begin(seconds) if seconds > 0 || held => {
            mark(&mut value, now + SignedDuration::from_secs(seconds), seconds);
            count_generation(&mut value);
        }
        Grace::None if held && deleting => value["metadata"]["deletionGracePeriodSeconds"] = 0.into(),
        Grace::None if held => {
            mark(&mut value, now, 0);
            count_generation(&mut value);
        }
        Grace::Pending | Grace::Begin(_) | Grace::None => {}
    }
    if !held && value["metadata"]["deletionTimestamp"].is_null() {
        return Ok(Some((value, true)));
    }
    let gone = is_finished(kind, &value);
    if !gone && value == *old {
        return Ok(None);
    }
    Ok(Some((value, gone)))
}

enum Grace {
    /// The kind has no grace.
    None,
    /// Deletion is under way, and this request does not shorten it.
    Pending,
    Shorten(i64),
    Begin(i64),
}

fn grace(kind: &Kind, old: &Value, delete: &DeleteOptions, deleting: bool) -> Grace {
    if kind.kind != "Pod" || !kind.group.is_empty() {
        return Grace::None;
    }
    if deleting {
        let Some(before) = old["metadata"]["deletionGracePeriodSeconds"].as_i64() else {
            return Grace::None;
        };
        return match delete.grace_seconds {
            Some(seconds) if seconds < before => Grace::Shorten(seconds.max(0)),
            _ => Grace::Pending,
        };
    }
    let terminal = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let unbound = old["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let own = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let asked = delete.grace_seconds.unwrap_or(own);
    Grace::Begin(match asked {
        _ if terminal || unbound => 0,
        ..0 => 1,
        seconds => seconds,
    })
}

fn mark(value: &mut Value, stamp: Timestamp, grace_seconds: i64) {
    value["metadata"]["deletionTimestamp"] = clock::rfc3339_seconds(stamp).into();
    value["metadata"]["deletionGracePeriodSeconds"] = grace_seconds.into();
}

fn count_generation(value: &mut Value) {
    if let Some(generation) = value["metadata"]["generation"].as_i64().filter(|g| *g > 0) {
        value["metadata"]["generation"] = (generation + 1).into();
    }
}

/// The finalizers with those of the garbage collector that the propagation policy wants.
fn garbage_finalizers(old: &Value, propagation: Option<Propagation>) -> Value {
    let existing: Vec<&str> =
        old["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let Some(propagation) = propagation else { return json!(existing) };
    let mut finalizers: Vec<&str> =
        existing.into_iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND),
        Propagation::Orphan => finalizers.push(ORPHAN),
    }
    json!(finalizers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::registry;

    fn pod(extra: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "generation": 1}, "spec": {"terminationGracePeriodSeconds": 30},
            "status": {"phase": "Running"}});
        json_patch::merge(&mut pod, &extra);
        pod
    }

    fn of(value: &Value, delete: &DeleteOptions) -> Option<(Value, bool)> {
        let kind = registry::by_type("v1", "Pod").unwrap();
        decide(kind, value, delete, "2026-11-23T00:00:00Z".parse().unwrap()).unwrap()
    }

    fn seconds(grace: i64) -> DeleteOptions {
        DeleteOptions { grace_seconds: Some(grace), ..DeleteOptions::default() }
    }

    #[test]
    fn pods_leave_with_grace() {
        let none = DeleteOptions::default();
        assert!(of(&pod(json!({})), &none).unwrap().1, "no node has it");
        let bound = pod(json!({"spec": {"nodeName": "n"}}));
        let (marked, gone) = of(&bound, &none).unwrap();
        assert!(!gone);
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-11-23T00:00:30Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(marked["metadata"]["generation"], 2);
        assert!(of(&marked, &none).is_none() && of(&marked, &seconds(60)).is_none());
        let (shorter, gone) = of(&marked, &seconds(5)).unwrap();
        assert!(!gone && shorter["metadata"]["deletionTimestamp"] == "2026-11-23T00:00:05Z");
        assert!(of(&marked, &seconds(0)).unwrap().1, "the node has confirmed");
        assert!(of(&bound, &seconds(0)).unwrap().1, "forced");
        assert!(
            of(&pod(json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}})), &none).unwrap().1
        );
        let held = pod(json!({"metadata": {"finalizers": ["x/y"]}}));
        let (marked, gone) = of(&held, &none).unwrap();
        assert!(!gone && marked["metadata"]["deletionGracePeriodSeconds"] == 0);
    }

    #[test]
    fn propagation_is_kept_as_a_finalizer() {
        let kind = registry::by_type("v1", "ConfigMap").unwrap();
        let now = "2026-11-23T00:00:00Z".parse().unwrap();
        let object = json!({"metadata": {"name": "c"}});
        for (propagation, finalizer) in [(Propagation::Foreground, FOREGROUND), (Propagation::Orphan, ORPHAN)]
        {
            let delete = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
            let (value, gone) = decide(kind, &object, &delete, now).unwrap().unwrap();
            assert!(!gone && value["metadata"]["finalizers"] == json!([finalizer]));
        }
        let delete = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        assert!(decide(kind, &object, &delete, now).unwrap().unwrap().1);
    }
}
