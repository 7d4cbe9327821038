//! What the verbs of the Kubernetes API do to objects, whoever asks: a client through `api`, a
//! controller, the scheduler or a node through `dispatch`.
//!
//! In: a kind's row, a key, a JSON tree. Out: the stored object or an [`Error`] in upstream's words.
//! Invariants: everything written has been defaulted, admitted and validated; `uid`,
//! `creationTimestamp`, `generation` and `deletionTimestamp` are set here and nowhere else; a change
//! that changes nothing writes nothing; updates are compare-and-swap.
//! Deliberately absent: HTTP, authentication and authorisation (they are `api`'s).

mod binding;
mod error;
mod follow;

use std::{collections::BTreeMap, sync::Arc};

pub use error::Error;
use k8s_openapi::{NamespaceResourceScope, Resource};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    clock::{self, SharedClock},
    ids,
    kinds::{Durability, Kind, Subresource, registry},
    store::{Change, CommitError, Expect, Key, Listing, Object, Store, Write},
};

/// How often a modify is tried again when others write the same object.
const MODIFY_TRIES_MAX: u32 = 16;

/// Who asks (`authentication.k8s.io/v1` UserInfo).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Who writes, and how.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// For admission and defaults that depend on the writer.
    pub user: User,
    /// `fieldManager`, recorded in managedFields.
    pub manager: String,
    /// `dryRun=All`: everything happens but the write.
    pub dry_run: bool,
}

impl WriteOptions {
    /// A part of the system as the writer: `deployment-controller`.
    pub fn system(manager: &str) -> Self {
        let user = User { name: format!("system:{manager}"), ..User::default() };
        Self { user, manager: manager.to_owned(), dry_run: false }
    }
}

/// What to do with the objects that a deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// The body and query of a delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// Preconditions.
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What a delete did.
#[derive(Debug, Clone)]
pub struct Removal {
    /// The object as it was left, or its last state.
    pub object: Arc<Object>,
    /// Whether it is no longer there.
    pub gone: bool,
}

/// The verbs over one store.
#[derive(Clone)]
pub struct Objects {
    store: Store,
    clock: SharedClock,
}

impl Objects {
    pub fn new(store: Store, clock: SharedClock) -> Self {
        Self { store, clock }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    pub fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Arc<Object>, Error> {
        self.store
            .get(&Key::new(&kind.resource(), namespace, name))
            .ok_or_else(|| Error::NotFound { resource: kind.resource(), name: name.to_owned() })
    }

    /// All objects of a kind, in one namespace or all.
    pub fn list(&self, kind: &Kind, namespace: Option<&str>) -> Listing {
        self.store.list(&kind.resource(), namespace)
    }

    /// Creates an object; its name may come from `generateName`.
    pub async fn create(
        &self,
        kind: &Kind,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error> {
        value["apiVersion"] = kind.api_version().into();
        value["kind"] = kind.kind.into();
        let meta = &mut value["metadata"];
        if meta["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = meta["generateName"].as_str().unwrap_or_default();
            meta["name"] = format!("{prefix}{}", ids::name_suffix(5)).into();
        }
        if kind.namespaced {
            meta["namespace"] = namespace.into();
        }
        meta["uid"] = ids::new_uid().into();
        meta["creationTimestamp"] = clock::rfc3339_seconds(self.clock.now()).into();
        (kind.strategy.prepare_create)(&mut value);
        (kind.strategy.default)(&mut value);
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        refuse_invalid(kind, &name, (kind.strategy.validate)(&value))?;
        let key = Key::new(&kind.resource(), namespace, &name);
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
        if !given.is_empty() && given != current.revision.to_string() {
            return Err(Error::Conflict {
                resource: kind.resource(),
                name: name.to_owned(),
                message: "the object has been modified; please apply your changes to the latest version and try again".to_owned(),
            });
        }
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            match old["metadata"].get(field) {
                Some(kept) => value["metadata"][field] = kept.clone(),
                None => crate::kinds::remove(&mut value["metadata"], field),
            }
        }
        match subresource {
            Some(Subresource::Status) => (kind.strategy.prepare_status)(&mut value, &old),
            _ => (kind.strategy.prepare_update)(&mut value, &old),
        }
        (kind.strategy.default)(&mut value);
        value["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if value == old {
            return Ok(current);
        }
        refuse_invalid(kind, name, (kind.strategy.validate)(&value))?;
        refuse_invalid(kind, name, (kind.strategy.validate_update)(&value, &old))?;
        let durable = kind.durability == Durability::Disk;
        let gone = current.meta.deleting && !has_finalizers(&value);
        let change = if gone { Change::Delete { last: value } } else { Change::Put { value, durable } };
        self.commit(Write { key: current.key.clone(), expect: Expect::At(current.revision), change }, options)
            .await
    }

    /// Reads, changes and writes an object; again when somebody else was faster.
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
            let mut value = self.get(kind, namespace, name)?.value();
            change(&mut value)?;
            tries += 1;
            match self.update(kind, subresource, namespace, name, value, options).await {
                Err(Error::Conflict { .. }) if tries < MODIFY_TRIES_MAX => {}
                done => return done,
            }
        }
    }

    /// Deletes an object, or marks it for deletion while finalizers or a grace period hold it.
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        delete: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error> {
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
        let current = self.get(kind, namespace, name)?;
        if delete.uid.as_deref().is_some_and(|uid| *uid != *current.meta.uid) {
            return Err(Error::Conflict {
                resource: kind.resource(),
                name: name.to_owned(),
                message: format!(
                    "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                    delete.uid.as_deref().unwrap_or_default(),
                    current.meta.uid
                ),
            });
        }
        let mut value = current.value();
        let grace = if kind.kind == "Pod" { pod_grace(&value, delete) } else { 0 };
        let change = if grace == 0 && !has_finalizers(&value) {
            Change::Delete { last: value }
        } else {
            let now = self.clock.now() + jiff::SignedDuration::from_secs(grace);
            value["metadata"]["deletionTimestamp"] = clock::rfc3339_seconds(now).into();
            value["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            Change::Put { value, durable: kind.durability == Durability::Disk }
        };
        let gone = matches!(change, Change::Delete { .. });
        let write = Write { key: current.key.clone(), expect: Expect::At(current.revision), change };
        let object = self.commit(write, options).await?;
        Ok(Removal { object, gone })
    }

    async fn commit(&self, write: Write, options: &WriteOptions) -> Result<Arc<Object>, Error> {
        if options.dry_run {
            let (Change::Put { value, .. } | Change::Delete { last: value }) = write.change;
            return match (write.expect, self.store.get(&write.key)) {
                (Expect::Absent, Some(_)) => Err(modified(&write.key)),
                _ => Ok(Arc::new(Object::unsaved(write.key, &value))),
            };
        }
        match self.store.commit(vec![write]).await {
            Ok(mut written) => Ok(written.swap_remove(0)),
            Err(CommitError::Conflict { key, .. }) => Err(modified(&key)),
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }

    /// [`Objects::list`] as typed objects.
    pub fn list_typed<T>(&self, namespace: Option<&str>) -> Vec<Arc<T>>
    where
        T: Resource + DeserializeOwned + Send + Sync + 'static,
    {
        self.list(registry::of::<T>(), namespace).items.iter().map(|o| o.typed()).collect()
    }

    /// [`Objects::get`] as a typed object; `None` when it is not there.
    pub fn get_typed<T>(&self, namespace: &str, name: &str) -> Option<Arc<T>>
    where
        T: Resource + DeserializeOwned + Send + Sync + 'static,
    {
        self.get(registry::of::<T>(), namespace, name).ok().map(|o| o.typed())
    }

    /// [`Objects::create`] of a typed object in a namespace.
    pub async fn create_typed<T>(
        &self,
        namespace: &str,
        object: &T,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, Error>
    where
        T: Resource<Scope = NamespaceResourceScope> + Serialize,
    {
        let value = serde_json::to_value(object).map_err(|e| Error::Internal(e.to_string()))?;
        self.create(registry::of::<T>(), namespace, value, options).await
    }
}

/// Somebody else was faster.
fn modified(key: &Key) -> Error {
    Error::Conflict {
        resource: key.resource.to_string(),
        name: key.name.to_string(),
        message:
            "the object has been modified; please apply your changes to the latest version and try again"
                .to_owned(),
    }
}

fn has_finalizers(value: &Value) -> bool {
    value["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
}

/// A pod's grace period (seconds): none while no node has it.
fn pod_grace(pod: &Value, delete: &DeleteOptions) -> i64 {
    if pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
        return 0;
    }
    delete.grace_seconds.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30)
}

fn refuse_invalid(kind: &Kind, name: &str, errors: crate::kinds::ErrorList) -> Result<(), Error> {
    if errors.is_empty() {
        return Ok(());
    }
    let full =
        if kind.group.is_empty() { kind.kind.to_owned() } else { format!("{}.{}", kind.kind, kind.group) };
    Err(Error::Invalid { kind: full, name: name.to_owned(), errors })
}
