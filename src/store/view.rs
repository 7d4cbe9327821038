//! The live objects in memory, and the bounded history of each resource.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::{Arc, RwLock},
};

use tokio::sync::watch;

use super::{Key, Object, StoreError};
use crate::ids::Revision;

/// How many events of one resource are kept for watches and old lists.
const HISTORY_EVENTS_MAX: usize = 1024;
/// How many bytes of superseded objects of one resource are kept.
const HISTORY_BYTES_MAX: usize = 2 << 20;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Updated,
    Deleted,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    /// The object after the change; for a delete its last state, with the revision of the delete.
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
}

impl Event {
    pub fn revision(&self) -> Revision {
        self.object.revision
    }

    fn cost(&self) -> usize {
        self.previous.as_ref().map_or(0, |p| p.body().len())
    }
}

/// Objects in key order, all as of `revision`.
#[derive(Debug)]
pub struct Listing {
    pub revision: Revision,
    pub items: Vec<Arc<Object>>,
}

struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// A watch can resume from this revision or a later one.
    floor: Revision,
    changed: watch::Sender<Revision>,
}

impl History {
    fn new(floor: Revision) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor, changed: watch::Sender::new(floor) }
    }

    fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.cost();
        self.events.push_back(event);
        while self.events.len() > HISTORY_EVENTS_MAX || self.bytes > HISTORY_BYTES_MAX {
            let Some(old) = self.events.pop_front() else {
                break;
            };
            self.bytes -= old.cost();
            self.floor = old.revision();
        }
    }

    fn after(&self, from: Revision) -> Result<Vec<Arc<Event>>, StoreError> {
        if from < self.floor {
            return Err(StoreError::Expired { asked: from, oldest: self.floor });
        }
        let start = self.events.partition_point(|e| e.revision() <= from);
        Ok(self.events.range(start..).cloned().collect())
    }
}

struct State {
    revision: Revision,
    /// The revision at start: no history is older.
    boot: Revision,
    live: BTreeMap<Key, Arc<Object>>,
    histories: HashMap<Arc<str>, History>,
}

/// The view; written by the writer thread alone.
pub(super) struct View(RwLock<State>);

impl View {
    pub fn new(objects: Vec<Arc<Object>>, revision: Revision) -> Self {
        let live = objects.into_iter().map(|o| (o.key.clone(), o)).collect();
        Self(RwLock::new(State { revision, boot: revision, live, histories: HashMap::new() }))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.0.read().expect("no holder of the view's lock panics")
    }

    pub fn revision(&self) -> Revision {
        self.read().revision
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.read().live.get(key).cloned()
    }

    pub fn list(&self, resource: &str, namespace: Option<&str>) -> Listing {
        let state = self.read();
        let items = state.range(resource, namespace).map(|(_, o)| Arc::clone(o)).collect();
        Listing { revision: state.revision, items }
    }

    pub fn list_at(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: Revision,
    ) -> Result<Listing, StoreError> {
        let state = self.read();
        let mut items: BTreeMap<Key, Arc<Object>> =
            state.range(resource, namespace).map(|(k, o)| (k.clone(), Arc::clone(o))).collect();
        let undo = match state.histories.get(resource) {
            Some(history) => history.after(at)?,
            None if at < state.boot => {
                return Err(StoreError::Expired { asked: at, oldest: state.boot });
            }
            None => Vec::new(),
        };
        for event in undo.iter().rev() {
            let key = &event.object.key;
            if namespace.is_some_and(|ns| *ns != *key.namespace) {
                continue;
            }
            match &event.previous {
                Some(previous) => items.insert(key.clone(), Arc::clone(previous)),
                None => items.remove(key),
            };
        }
        Ok(Listing { revision: at, items: items.into_values().collect() })
    }

    pub fn find(&self, wanted: impl Fn(&Object) -> bool) -> Vec<Arc<Object>> {
        self.read().live.values().filter(|o| wanted(o)).cloned().collect()
    }

    pub fn watch(this: &Arc<Self>, resource: &str, from: Revision) -> Result<Watch, StoreError> {
        let mut state = this.0.write().expect("no holder of the view's lock panics");
        let boot = state.boot;
        let history = state.histories.entry(resource.into()).or_insert_with(|| History::new(boot));
        if from < history.floor {
            return Err(StoreError::Expired { asked: from, oldest: history.floor });
        }
        let changed = history.changed.subscribe();
        Ok(Watch {
            view: Arc::clone(this),
            resource: resource.into(),
            cursor: from,
            changed,
            ready: VecDeque::new(),
        })
    }

    /// Makes `events` visible, all at once. The last one's revision becomes the view's.
    pub fn apply(&self, events: Vec<Event>) {
        let mut state = self.0.write().expect("no holder of the view's lock panics");
        let boot = state.boot;
        let mut touched: Vec<Arc<str>> = Vec::new();
        for event in events {
            state.revision = event.revision();
            let key = event.object.key.clone();
            match event.kind {
                EventKind::Deleted => state.live.remove(&key),
                EventKind::Created | EventKind::Updated => {
                    state.live.insert(key.clone(), Arc::clone(&event.object))
                }
            };
            state
                .histories
                .entry(Arc::clone(&key.resource))
                .or_insert_with(|| History::new(boot))
                .push(Arc::new(event));
            if !touched.contains(&key.resource) {
                touched.push(key.resource);
            }
        }
        let revision = state.revision;
        for resource in touched {
            state.histories[&resource].changed.send_replace(revision);
        }
    }
}

impl State {
    fn range<'a>(
        &'a self,
        resource: &'a str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Object>)> {
        let start = Key::new(resource, namespace.unwrap_or(""), "");
        self.live.range((Bound::Included(start), Bound::Unbounded)).take_while(move |(k, _)| {
            *k.resource == *resource && namespace.is_none_or(|ns| *ns == *k.namespace)
        })
    }
}

/// A place in the history of one resource. Costs a cursor, not a buffer: who reads too slowly
/// gets [`StoreError::Expired`].
pub struct Watch {
    view: Arc<View>,
    resource: Arc<str>,
    cursor: Revision,
    changed: watch::Receiver<Revision>,
    ready: VecDeque<Arc<Event>>,
}

impl Watch {
    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> Result<Arc<Event>, StoreError> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            // The view, which owns the sender, lives as long as this watch.
            let _ = self.changed.changed().await;
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, StoreError> {
        if self.ready.is_empty() {
            self.changed.mark_unchanged();
            let state = self.view.read();
            let history = &state.histories[&self.resource];
            self.ready.extend(history.after(self.cursor)?);
        }
        let event = self.ready.pop_front();
        if let Some(event) = &event {
            self.cursor = event.revision();
        }
        Ok(event)
    }

    /// The revision up to which this watch has been read; for bookmarks. When nothing is pending
    /// this is the view's revision.
    pub fn revision(&mut self) -> Result<Revision, StoreError> {
        if self.ready.is_empty() {
            let state = self.view.read();
            let pending = state.histories[&self.resource].after(self.cursor)?;
            if pending.is_empty() {
                self.cursor = state.revision;
            } else {
                self.ready.extend(pending);
            }
        }
        Ok(self.cursor)
    }
}
