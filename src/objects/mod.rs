//! What the verbs of the Kubernetes API do to objects, whoever asks: a client through `api`, a
//! controller, the scheduler or a node through `dispatch`.
//!
//! In: a kind's row, a key, a JSON tree. Out: the stored object or an [`Error`] in upstream's words.
//! Invariants: everything written has been defaulted, admitted and validated; `uid`,
//! `creationTimestamp`, `generation` and `deletionTimestamp` are set here and nowhere else; a change
//! that changes nothing writes nothing; updates are compare-and-swap.
//! Deliberately absent: HTTP, authentication and authorisation (they are `api`'s).

mod admission;
pub mod allocate;
mod binding;
mod bootstrap;
mod correlator;
pub mod credentials;
mod delete;
mod error;
mod events;
mod eviction;
mod follow;
mod node_authorizer;
pub mod quota;
pub mod rbac;
mod roles;
pub mod scale;
pub mod token;
mod verbs;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

pub use binding::Binding;
pub use error::Error;
pub use events::Said;
use k8s_openapi::{NamespaceResourceScope, Resource};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    clock::SharedClock,
    config::{Cidr, PortRange},
    kinds::{Kind, registry},
    store::{Key, Listing, Object, Store},
};

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
    /// Whether the write is noted in `metadata.managedFields` under the manager's name.
    pub tracked: bool,
    /// `dryRun=All`: everything happens but the write.
    pub dry_run: bool,
}

impl WriteOptions {
    /// A part of the system as the writer: `deployment-controller`.
    pub fn system(manager: &str) -> Self {
        let user = User { name: format!("system:{manager}"), ..User::default() };
        Self { user, manager: manager.to_owned(), ..Self::default() }
    }

    /// The same, noted in managed fields under the name of upstream's program.
    #[must_use]
    pub fn tracked_as(self, manager: &str) -> Self {
        Self { manager: manager.to_owned(), tracked: true, ..self }
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

/// What a cluster sets about its objects.
#[derive(Clone)]
pub struct Settings {
    /// Addresses that Services get.
    pub service_cidr: Cidr,
    /// Ports of the nodes that Services get.
    pub node_ports: PortRange,
    /// Signs the tokens of ServiceAccounts.
    pub tokens: Arc<token::Signer>,
    /// How long pods tolerate a node that is lost or not ready (seconds).
    pub toleration_seconds: u32,
}

/// Upstream's default of [`Settings::node_ports`].
pub const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };
/// Upstream's default of [`Settings::toleration_seconds`].
pub const TOLERATION_SECONDS: u32 = 300;

/// The verbs over one store.
#[derive(Clone)]
pub struct Objects {
    store: Store,
    clock: SharedClock,
    /// `None`: bare verbs without admission and allocation.
    settings: Option<Arc<Settings>>,
    /// Held over what has to be counted and written at once: addresses, ports, quotas, budgets.
    counted: Arc<tokio::sync::Mutex<()>>,
    /// What Events were said, by whoever speaks through this.
    said: Arc<Mutex<correlator::Correlator>>,
}

impl Objects {
    /// Bare verbs: nothing is admitted, no address is given (tests, simulations).
    pub fn new(store: Store, clock: SharedClock) -> Self {
        Self { store, clock, settings: None, counted: Arc::default(), said: Arc::default() }
    }

    /// The verbs of a cluster, with admission and allocation.
    pub fn of_cluster(store: Store, clock: SharedClock, settings: Settings) -> Self {
        let settings = Some(Arc::new(settings));
        Self { store, clock, settings, counted: Arc::default(), said: Arc::default() }
    }

    /// What the cluster sets; `None` for bare verbs.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_deref()
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
