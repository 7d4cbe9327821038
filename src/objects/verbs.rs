//! Create, update and modify.

use std::sync::Arc;

use serde_json::Value;

use super::{Error, Objects, WriteOptions, admission, allocate};
use crate::{
    clock, ids,
    kinds::{Durability, ErrorList, Kind, Subresource, remove, schema},
    patch,
    store::{Change, CommitError, Expect, Key, Object, Write},
};

/// How often a modify is tried again when others write the same object.
const MODIFY_TRIES_MAX: u32 = 16;
/// How often another generated name is tried, as upstream.
const GENERATE_TRIES_MAX: u32 = 8;
/// Characters of a generated name: a label's length, minus the suffix.
const GENERATE_PREFIX_MAX: usize = 63 - GENERATE_SUFFIX;
const GENERATE_SUFFIX: usize = 5;

impl Objects {
    /// Creates an object; its name may come from `generateName`.
    pub async fn create(
        &self,
        kind: &Kind,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error> {
        if !value["metadata"]["resourceVersion"].as_str().unwrap_or_default().is_empty() {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Error::BadRequest(message.to_owned()));
        }
        value["apiVersion"] = kind.api_version().into();
        value["kind"] = kind.kind.into();
        let meta = &mut value["metadata"];
        for field in
            ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
        {
            remove(meta, field);
        }
        if kind.namespaced {
            meta["namespace"] = namespace.into();
        } else {
            remove(meta, "namespace");
        }
        meta["uid"] = ids::new_uid().into();
        meta["creationTimestamp"] = clock::rfc3339_seconds(self.clock().now()).into();
        let given = !meta["name"].as_str().unwrap_or_default().is_empty();
        let prefix = meta["generateName"].as_str().unwrap_or_default().to_owned();
        let mut tries = 0;
        loop {
            let mut attempt = value.clone();
            // The name stands before anything is derived from it (a Job's labels).
            if !given && !prefix.is_empty() {
                attempt["metadata"]["name"] = generated(&prefix).into();
            }
            tries += 1;
            match self.create_named(kind, namespace, attempt, options).await {
                Err(Error::AlreadyExists { .. }) if !given && tries < GENERATE_TRIES_MAX => {}
                done => return done,
            }
        }
    }

    async fn create_named(
        &self,
        kind: &Kind,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error> {
        (kind.strategy.default)(&mut value);
        // What admission and allocation add is nobody's.
        let mut value = self.tracked(kind, None, value, None, options);
        let request =
            &admission::Request { objects: self, kind, subresource: None, namespace, old: None, options };
        admission::mutate(request, &mut value)?;
        (kind.strategy.prepare_create)(&mut value);
        (kind.strategy.default)(&mut value);
        let counted = allocate::is_allocated(kind) || admission::is_counted(request);
        let _held = if counted { Some(self.counted.lock().await) } else { None };
        allocate::create(self, kind, &mut value)?;
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        refuse_invalid(kind, &name, (kind.strategy.validate)(&value))?;
        let key = Key::new(&kind.resource(), namespace, &name);
        if self.store().get(&key).is_some() {
            return Err(Error::AlreadyExists { resource: kind.resource(), name });
        }
        admission::validate(request, &value)?;
        let durable = kind.durability == Durability::Disk;
        let write = Write { key, expect: Expect::Absent, change: Change::Put { value, durable } };
        self.commit(write, options).await.map_err(|error| match error {
            Error::Conflict { resource, name, .. } => Error::AlreadyExists { resource, name },
            other => other,
        })
    }

    /// Replaces an object or one subresource of it. `metadata.resourceVersion`, when given, must
    /// be the current one.
    pub async fn update(
        &self,
        kind: &Kind,
        subresource: Option<Subresource>,
        namespace: &str,
        name: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error> {
        let current = self.get(kind, namespace, name)?;
        let old = current.value();
        let given = value["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !given.is_empty() && given != "0" && given != current.revision.to_string() {
            return Err(modified(&current.key));
        }
        let uid = value["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && *uid != *current.meta.uid {
            return Err(Error::Conflict {
                resource: kind.resource(),
                name: name.to_owned(),
                message: format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    current.meta.uid
                ),
            });
        }
        for field in [
            "name",
            "namespace",
            "generateName",
            "generation",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
        ] {
            crate::kinds::replace(&mut value["metadata"], field, &old["metadata"]);
        }
        value["apiVersion"] = kind.api_version().into();
        value["kind"] = kind.kind.into();
        value["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        (kind.strategy.default)(&mut value);
        if subresource.is_none() {
            value = self.tracked(kind, None, value, Some(&old), options);
        }
        let request =
            admission::Request { objects: self, kind, subresource, namespace, old: Some(&old), options };
        admission::mutate(&request, &mut value)?;
        match subresource {
            None => (kind.strategy.prepare_update)(&mut value, &old),
            Some(Subresource::Status) => (kind.strategy.prepare_status)(&mut value, &old),
            Some(Subresource::Scale | Subresource::Other(_)) => {
                prepare_other(kind, subresource, &mut value, &old);
            }
        }
        let counted =
            subresource.is_none() && allocate::is_allocated(kind) || admission::is_counted(&request);
        let _held = if counted { Some(self.counted.lock().await) } else { None };
        if subresource.is_none() {
            allocate::update(self, kind, &mut value, &old)?;
        }
        (kind.strategy.default)(&mut value);
        value["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if subresource.is_some() {
            value = self.tracked(kind, subresource, value, Some(&old), options);
        }
        if value == old {
            return Ok(current);
        }
        let mut errors = (kind.strategy.validate)(&value);
        let of_change = match (subresource, kind.strategy.validate_part) {
            (Some(part), Some(validate)) => validate(part, &value, &old),
            _ => (kind.strategy.validate_update)(&value, &old),
        };
        for error in of_change {
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
        refuse_invalid(kind, name, errors)?;
        admission::validate(&request, &value)?;
        let durable = kind.durability == Durability::Disk;
        let change = if is_finished(kind, &value) {
            Change::Delete { last: value }
        } else {
            Change::Put { value, durable }
        };
        self.commit(Write { key: current.key.clone(), expect: Expect::At(current.revision), change }, options)
            .await
    }

    /// Reads, changes and writes an object; again when somebody else was faster, unless `change`
    /// itself names a revision.
    pub async fn modify(
        &self,
        kind: &Kind,
        subresource: Option<Subresource>,
        namespace: &str,
        name: &str,
        options: &WriteOptions,
        mut change: impl FnMut(&mut Value) -> Result<(), Error>,
    ) -> Result<Arc<Object>, Error> {
        let mut tries = 0;
        loop {
            let current = self.get(kind, namespace, name)?;
            let mut value = current.value();
            change(&mut value)?;
            let read = value["metadata"]["resourceVersion"] == current.revision.to_string();
            tries += 1;
            match self.update(kind, subresource, namespace, name, value, options).await {
                Err(Error::Conflict { .. }) if read && tries < MODIFY_TRIES_MAX => {}
                done => return done,
            }
        }
    }

    /// `value` with the writer noted in its managed fields, where the writer wants that.
    fn tracked(
        &self,
        kind: &Kind,
        subresource: Option<Subresource>,
        value: Value,
        old: Option<&Value>,
        options: &WriteOptions,
    ) -> Value {
        let Some(schema) = schema::lookup(kind.schema).filter(|_| options.tracked) else { return value };
        let subresource = subresource.map(Subresource::name).unwrap_or_default();
        let writer = patch::Writer { manager: &options.manager, subresource, now: self.clock().now() };
        let mut tracked = patch::track_update(old, &value, schema, writer);
        if let Some(old) = old {
            patch::keep_times(&mut tracked, old);
        }
        tracked
    }

    pub(super) async fn commit(&self, write: Write, options: &WriteOptions) -> Result<Arc<Object>, Error> {
        if options.dry_run {
            let (Change::Put { value, .. } | Change::Delete { last: value }) = write.change;
            return match (write.expect, self.store().get(&write.key)) {
                (Expect::Absent, Some(_)) => Err(modified(&write.key)),
                _ => Ok(Arc::new(Object::unsaved(write.key, &value))),
            };
        }
        match self.store().commit(vec![write]).await {
            Ok(mut written) => Ok(written.swap_remove(0)),
            Err(CommitError::Conflict { key, .. }) => Err(modified(&key)),
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }
}

/// A name from a prefix.
fn generated(prefix: &str) -> String {
    let cut = prefix.char_indices().map(|(i, _)| i).take_while(|i| *i <= GENERATE_PREFIX_MAX).last();
    let prefix = if prefix.len() > GENERATE_PREFIX_MAX { &prefix[..cut.unwrap_or(0)] } else { prefix };
    format!("{prefix}{}", ids::name_suffix(GENERATE_SUFFIX))
}

/// What a request for one of the smaller subresources may change.
fn prepare_other(kind: &Kind, subresource: Option<Subresource>, value: &mut Value, old: &Value) {
    let wanted = std::mem::replace(value, old.clone());
    let fields: &[&str] = match (kind.kind, subresource.map(Subresource::name)) {
        ("Namespace", Some("finalize")) => &["/spec/finalizers"],
        ("Pod", Some("ephemeralcontainers")) => &["/spec/ephemeralContainers"],
        ("Pod", Some("resize")) => &["/spec/containers", "/spec/initContainers", "/spec/resources"],
        ("CertificateSigningRequest", Some("approval")) => {
            &["/status/conditions", "/metadata/labels", "/metadata/annotations"]
        }
        ("Pod", Some("binding")) => &["/spec/nodeName", "/status/conditions", "/metadata/annotations"],
        (_, Some("scale")) => &["/spec/replicas"],
        _ => &[],
    };
    for field in fields {
        let (parent, last) = field.rsplit_once('/').unwrap_or(("", field));
        let new = wanted.pointer(field).cloned();
        if value.pointer(parent).is_none_or(|p| !p.is_object())
            && let Some((outer, name)) = parent.rsplit_once('/')
            && let Some(outer) = value.pointer_mut(outer)
        {
            outer[name] = Value::Object(serde_json::Map::new());
        }
        if let Some(parent) = value.pointer_mut(parent) {
            match new {
                Some(new) => parent[last] = new,
                None => remove(parent, last),
            }
        }
    }
    if let Some(managed) = wanted["metadata"].get("managedFields") {
        value["metadata"]["managedFields"] = managed.clone();
    }
    let generation = &old["metadata"]["generation"];
    if let Some(generation) = generation.as_i64()
        && value["spec"] != old["spec"]
    {
        value["metadata"]["generation"] = (generation + 1).into();
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(super) fn is_finished(kind: &Kind, value: &Value) -> bool {
    let meta = &value["metadata"];
    let held = kind.kind == "Namespace" && kind.group.is_empty() && has_items(&value["spec"]["finalizers"]);
    !meta["deletionTimestamp"].is_null()
        && !has_items(&meta["finalizers"])
        && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !held
}

pub(super) fn has_items(list: &Value) -> bool {
    list.as_array().is_some_and(|items| !items.is_empty())
}

/// Somebody else was faster.
pub(super) fn modified(key: &Key) -> Error {
    Error::Conflict {
        resource: key.resource.to_string(),
        name: key.name.to_string(),
        message:
            "the object has been modified; please apply your changes to the latest version and try again"
                .to_owned(),
    }
}

pub(super) fn refuse_invalid(kind: &Kind, name: &str, errors: ErrorList) -> Result<(), Error> {
    if errors.is_empty() {
        return Ok(());
    }
    let full =
        if kind.group.is_empty() { kind.kind.to_owned() } else { format!("{}.{}", kind.kind, kind.group) };
    Err(Error::Invalid { kind: full, name: name.to_owned(), errors })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_name_is_never_longer_than_a_label() {
        assert_eq!(generated("web-").len(), 9);
        assert_eq!(generated(&"x".repeat(100)).len(), 63);
        assert!(generated(&"é".repeat(40)).len() <= 63);
    }
}
