//! The one thread that writes, with group commit.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{
    Change, CommitError, Event, EventKind, Expect, Key, Meta, Object, Write, sqlite::Database, view::View,
};
use crate::ids::Revision;

/// How many commits may wait for the writer; more wait in their callers.
const QUEUE_MAX: usize = 256;
/// How many commits share one sync at most.
const GROUP_MAX: usize = 128;

type Reply = oneshot::Sender<Result<Vec<Arc<Object>>, CommitError>>;

enum Request {
    Commit { writes: Vec<Write>, reply: Reply },
    Close(oneshot::Sender<()>),
}

/// The way to the writer thread.
#[derive(Clone)]
pub(super) struct Handle(mpsc::Sender<Request>);

impl Handle {
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Arc<Object>>, CommitError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Commit { writes, reply };
        self.0.send(request).await.map_err(|_| CommitError::Closed)?;
        answer.await.map_err(|_| CommitError::Closed)?
    }

    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.0.send(Request::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

/// Starts the thread; it ends with the last [`Handle`] or at [`Handle::close`].
pub(super) fn start(database: Database, view: Arc<View>) -> Handle {
    let (send, receive) = mpsc::channel(QUEUE_MAX);
    std::thread::Builder::new()
        .name("store-writer".into())
        .stack_size(1 << 20)
        .spawn(move || run(database, &view, receive))
        .expect("a thread can be started");
    Handle(send)
}

fn run(mut database: Database, view: &View, mut requests: mpsc::Receiver<Request>) {
    let mut closing = None;
    while closing.is_none() {
        let Some(first) = requests.blocking_recv() else {
            break;
        };
        let mut group = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit { writes, reply } => group.push((writes, reply)),
                Request::Close(done) => closing = Some(done),
            }
            next = if group.len() < GROUP_MAX && closing.is_none() { requests.try_recv().ok() } else { None };
        }
        commit_group(&mut database, view, group);
    }
    if let Err(error) = database.close(view.revision()) {
        tracing::warn!(%error, "closing the store");
    }
    if let Some(done) = closing {
        let _ = done.send(());
    }
}

/// The state of the objects that this group has touched so far.
struct Pending<'a> {
    view: &'a View,
    changed: HashMap<Key, Option<Arc<Object>>>,
    revision: Revision,
    events: Vec<Event>,
}

impl Pending<'_> {
    fn current(&self, key: &Key) -> Option<Arc<Object>> {
        self.changed.get(key).cloned().unwrap_or_else(|| self.view.get(key))
    }
}

fn commit_group(database: &mut Database, view: &View, group: Vec<(Vec<Write>, Reply)>) {
    let mut pending =
        Pending { view, changed: HashMap::new(), revision: view.revision(), events: Vec::new() };
    let mut answers = Vec::new();
    let mut broken: Option<String> = None;
    for (writes, reply) in group {
        let answer = match &broken {
            Some(reason) => Err(CommitError::Disk(reason.clone())),
            None => commit_one(database, &mut pending, writes),
        };
        if let Err(CommitError::Disk(reason)) = &answer {
            broken = Some(reason.clone());
        }
        answers.push((reply, answer));
    }
    let finished = match broken {
        Some(reason) => Err(reason),
        None => database.finish(pending.revision).map_err(|e| e.to_string()),
    };
    if let Err(reason) = finished {
        database.rollback();
        tracing::error!(reason, "store write failed, nothing of it was acknowledged");
        for (reply, answer) in answers {
            let refused = match answer {
                Err(error @ CommitError::Conflict { .. }) => error,
                _ => CommitError::Disk(reason.clone()),
            };
            let _ = reply.send(Err(refused));
        }
        return;
    }
    if !pending.events.is_empty() {
        view.apply(pending.events);
    }
    for (reply, answer) in answers {
        let _ = reply.send(answer);
    }
}

fn commit_one(
    database: &mut Database,
    pending: &mut Pending<'_>,
    writes: Vec<Write>,
) -> Result<Vec<Arc<Object>>, CommitError> {
    for (index, write) in writes.iter().enumerate() {
        let current = pending.current(&write.key);
        let holds = match (write.expect, &current) {
            (Expect::Absent, None) => true,
            (Expect::At(revision), Some(object)) => object.revision == revision,
            _ => false,
        };
        if !holds {
            return Err(CommitError::Conflict { index, key: write.key.clone(), current });
        }
    }
    let mut written = Vec::with_capacity(writes.len());
    for Write { key, change, .. } in writes {
        let previous = pending.current(&key);
        pending.revision.0 += 1;
        let revision = pending.revision;
        let (kind, object) = match change {
            Change::Put { value, durable } => {
                let kind = if previous.is_some() { EventKind::Updated } else { EventKind::Created };
                let mut object = build(key.clone(), revision, value);
                if durable {
                    let row = previous.as_ref().and_then(|p| p.row);
                    let stored = database.put(row, &object);
                    object.row = Some(stored.map_err(|e| CommitError::Disk(e.to_string()))?);
                }
                (kind, object)
            }
            Change::Delete { last } => {
                if let Some(row) = previous.as_ref().and_then(|p| p.row) {
                    database.delete(row).map_err(|e| CommitError::Disk(e.to_string()))?;
                }
                (EventKind::Deleted, build(key.clone(), revision, last))
            }
        };
        let object = Arc::new(object);
        pending.changed.insert(key, (kind != EventKind::Deleted).then(|| Arc::clone(&object)));
        pending.events.push(Event { kind, object: Arc::clone(&object), previous });
        written.push(object);
    }
    Ok(written)
}

fn build(key: Key, revision: Revision, mut value: Value) -> Object {
    value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
    let meta = Meta::of(&value);
    let body = serde_json::to_vec(&value).expect("a JSON tree can be written").into();
    Object { key, revision, meta, body, row: None, typed: OnceLock::new() }
}
