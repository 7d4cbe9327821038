//! Objects on disk, and a consistent view of them in memory.
//!
//! In: writes with a precondition each, committed together. Out: the live objects, and watches
//! that replay from a revision.
//! Invariants: an acknowledged write survives a power cut (WAL, `synchronous=FULL`, one sync for
//! all writes that wait: group commit); revisions only grow, also across restarts and across
//! memory-only objects; the view shows a write before the write is acknowledged, so a writer
//! reads its own writes; the history of a resource is bounded, and who is slower than it is told so.
//! Deliberately absent: HTTP, Kubernetes semantics (they are `objects`'), a log on disk (it would
//! double what a memory card is worn by, and only serve watches across a restart, for which
//! clients list again).

mod sqlite;
mod view;
mod writer;

use std::{
    any::Any,
    borrow::Cow,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ids::Revision;
pub use view::{Event, EventKind, Listing, Watch};

/// Where an object lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `Kind::resource()`: `pods`, `deployments.apps`.
    pub resource: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.resource, self.name)
        } else {
            write!(f, "{} {}/{}", self.resource, self.namespace, self.name)
        }
    }
}

/// What selectors, owners and deletion ask of an object, read out once.
#[derive(Debug, Default, PartialEq)]
pub struct Meta {
    pub uid: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The uids of `metadata.ownerReferences`.
    pub owners: Box<[Box<str>]>,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}

impl Meta {
    /// Reads `value.metadata`.
    pub fn of(value: &Value) -> Self {
        let meta = &value["metadata"];
        let text = |v: &Value| v.as_str().unwrap_or_default().into();
        Self {
            uid: text(&meta["uid"]),
            labels: meta["labels"]
                .as_object()
                .map(|labels| labels.iter().map(|(k, v)| (k.as_str().into(), text(v))).collect())
                .unwrap_or_default(),
            owners: meta["ownerReferences"]
                .as_array()
                .map(|owners| owners.iter().map(|o| text(&o["uid"])).collect())
                .unwrap_or_default(),
            deleting: !meta["deletionTimestamp"].is_null(),
        }
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }
}

/// One revision of one object: its JSON form, with `metadata.resourceVersion` set.
pub struct Object {
    pub key: Key,
    pub revision: Revision,
    pub meta: Meta,
    body: Bytes,
    /// The row in SQLite; `None` for a memory-only object.
    row: Option<i64>,
    typed: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Object {
    /// The object as JSON text.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The object as a JSON tree, parsed anew.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the store wrote this JSON itself")
    }

    /// The object as its Kubernetes type, without managed fields (whose trees would be the larger part
    /// of it in memory); parsed once a revision.
    ///
    /// # Panics
    /// When the stored object does not have the shape of `T`: the API let a wrong type in.
    pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(&self) -> Arc<T> {
        let parse = || {
            Arc::new(
                serde_json::from_slice::<T>(&without_managed_fields(&self.body))
                    .unwrap_or_else(|error| panic!("{} is not of its type: {error}", self.key)),
            )
        };
        let any = self.typed.get_or_init(|| parse());
        Arc::clone(any).downcast().unwrap_or_else(|_| parse())
    }

    /// An object as it would be if it were written (`dryRun`): its revision is what `value` says.
    pub fn unsaved(key: Key, value: &Value) -> Self {
        let revision = value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok());
        Self {
            key,
            revision: revision.unwrap_or_default(),
            meta: Meta::of(value),
            body: value.to_string().into(),
            row: None,
            typed: OnceLock::new(),
        }
    }

    /// Whether the object is on disk.
    pub fn is_durable(&self) -> bool {
        self.row.is_some()
    }
}

/// JSON as the store writes it, without the first `managedFields`, which are the metadata's.
fn without_managed_fields(text: &[u8]) -> Cow<'_, [u8]> {
    const KEY: &[u8] = b"\"managedFields\":[";
    let Some(start) = text.windows(KEY.len()).position(|window| window == KEY) else {
        return text.into();
    };
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let closes = |byte: &u8| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' if !in_string => depth += 1,
            b']' if !in_string => depth -= 1,
            _ => {}
        }
        depth == 0
    };
    let list = start + KEY.len() - 1;
    let Some(length) = text[list..].iter().position(closes) else { return text.into() };
    let (mut before, mut after) = (&text[..start], &text[list + length + 1..]);
    // One comma goes with it: the one that follows, or the one before where it was the last.
    match (before.strip_suffix(b","), after.strip_prefix(b",")) {
        (_, Some(rest)) => after = rest,
        (Some(rest), None) => before = rest,
        (None, None) => {}
    }
    [before, after].concat().into()
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.key, self.revision)
    }
}

/// What must be true of the stored object for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It does not exist.
    Absent,
    /// It exists at this revision.
    At(Revision),
}

/// What happens to the object.
#[derive(Debug, Clone)]
pub enum Change {
    /// It becomes `value` (whose `metadata.resourceVersion` the store sets).
    Put { value: Value, durable: bool },
    /// It is removed; its watchers see this last state.
    Delete { last: Value },
}

/// One write of a commit.
#[derive(Debug, Clone)]
pub struct Write {
    pub key: Key,
    pub expect: Expect,
    pub change: Change,
}

/// Why nothing of a commit was written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A precondition did not hold; `current` is what is there.
    #[error("write {index}: {key} is not as expected")]
    Conflict { index: usize, key: Key, current: Option<Arc<Object>> },
    /// The disk refused; the store goes on with what it had.
    #[error("store write failed, nothing was changed: {0}")]
    Disk(String),
    /// The store is shut.
    #[error("store is closed")]
    Closed,
}

/// Why the store could not be opened, copied or watched.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("open {path}: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("{path} is damaged ({detail}) and there is no good snapshot beside it")]
    Damaged { path: PathBuf, detail: String },
    #[error("{path} was written by a newer version (schema {found}, this is {known})")]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("create {path}: {source}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error("backup to {path}: {source}")]
    Backup { path: PathBuf, source: rusqlite::Error },
    /// History no longer holds this revision; `oldest` is the oldest that can be resumed from.
    #[error("too old resource version: {asked} ({oldest})")]
    Expired { asked: Revision, oldest: Revision },
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    view: Arc<view::View>,
    writer: writer::Handle,
    path: Arc<Path>,
}

impl Store {
    /// Opens or creates the store at `path` (a file; its `-wal` and snapshot lie beside it).
    ///
    /// A damaged file is replaced by the last good snapshot, with a loud log line.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (database, objects, revision) = sqlite::open(path)?;
        let view = Arc::new(view::View::new(objects, revision));
        let writer = writer::start(database, Arc::clone(&view));
        Ok(Self { view, writer, path: path.into() })
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.view.revision()
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.view.get(key)
    }

    /// The live objects of a resource, in key order, all of one revision.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> Listing {
        self.view.list(resource, namespace)
    }

    /// The same as it was at an earlier revision.
    pub fn list_at(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: Revision,
    ) -> Result<Listing, StoreError> {
        self.view.list_at(resource, namespace, at)
    }

    /// The objects of every resource that `owner` (a uid) owns.
    pub fn owned_by(&self, owner: &str) -> Vec<Arc<Object>> {
        self.view.find(|object| object.meta.owners.iter().any(|uid| **uid == *owner))
    }

    /// All objects for which `wanted` holds, over every resource.
    pub fn find(&self, wanted: impl Fn(&Object) -> bool) -> Vec<Arc<Object>> {
        self.view.find(wanted)
    }

    /// The events of a resource after `from`, without end.
    pub fn watch(&self, resource: &str, from: Revision) -> Result<Watch, StoreError> {
        view::View::watch(&self.view, resource, from)
    }

    /// Writes all or nothing. Returns the objects as they are now, in the order of `writes`
    /// (for a delete, the last state).
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Arc<Object>>, CommitError> {
        self.writer.commit(writes).await
    }

    /// Whether the writer answers: an empty commit passes through it.
    pub async fn check(&self) -> Result<(), CommitError> {
        self.commit(Vec::new()).await.map(drop)
    }

    /// The file on disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the store to `target` while it is in use; the copy is consistent.
    pub fn backup(&self, target: &Path) -> Result<(), StoreError> {
        sqlite::backup(&self.path, target)
    }

    /// Ends the writer: what was acknowledged is on disk, further commits are refused.
    pub async fn close(&self) {
        self.writer.close().await;
    }
}

/// Copies the store at `path` to `target` while another process uses it; the copy is consistent.
pub fn copy(path: &Path, target: &Path) -> Result<(), StoreError> {
    sqlite::backup(path, target)
}

/// Whether the file at `path` is a sound store of a version that is understood.
pub fn verify(path: &Path) -> Result<(), StoreError> {
    sqlite::verify(path)
}

#[cfg(test)]
mod tests;
