//! The one runner of all controllers: watches, maps events to keys, plans, acts, tries again.
//!
//! In: a [`Controller`]. Out: writes through [`Objects`]. Invariants: one key is worked on once at
//! a time; all writes of a plan are acknowledged before the key is planned again, and the view
//! shows them, so no controller needs a cache of what it expects; every key is looked at again on
//! a period; a plan that fails is made anew after a delay that grows.
//! Deliberately absent: informer caches (the store's view is the cache), detached tasks.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::join_all,
    stream::{BoxStream, FuturesUnordered, SelectAll},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{Metadata, api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    owner::controller_of,
    plan::{Action, Note, Plan, Target},
    queue::Queue,
};
use crate::{
    kinds::{Subresource, registry},
    objects::{DeleteOptions, Error, Objects, WriteOptions},
    patch::merge_patch,
    store::{Event, Key, Object, StoreError},
    tasks::{CancellationToken, Tasks},
};

/// How many keys of one controller are worked on at the same time.
const CONCURRENT_KEYS_MAX: usize = 8;
/// How many writes of one plan wait for the store at the same time.
const BATCH_MAX: usize = 128;
/// How often every key is looked at although nothing happened.
const RESYNC: Duration = Duration::from_mins(5);

/// The manager of fields that controllers write, as upstream's.
const FIELD_MANAGER: &str = "kube-controller-manager";

/// Which keys an event of one object concerns.
pub type Mapper = Box<dyn Fn(&Objects, &Object) -> Vec<Key> + Send + Sync>;

/// A resource that is watched beside the primary one.
pub struct Source {
    /// `Kind::resource()`: `pods`, `replicasets.apps`.
    pub resource: &'static str,
    /// Called with the object as it is and, on an update, as it was.
    pub keys: Mapper,
}

impl Source {
    pub fn new(
        resource: &'static str,
        keys: impl Fn(&Objects, &Object) -> Vec<Key> + Send + Sync + 'static,
    ) -> Self {
        Self { resource, keys: Box::new(keys) }
    }
}

/// The circumstances of one reconcile.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// In whole seconds, as the API writes times.
    pub now: Timestamp,
    /// Why the previous plan for this key could not be executed.
    pub failure: Option<String>,
}

/// One controller. Its file reads: what it watches, observe, reconcile.
pub trait Controller: Send + Sync + 'static {
    /// The writer's name in Events and field managers: `replicaset-controller`.
    fn name(&self) -> &'static str;

    /// The resource whose objects are the keys. Its events are watched too.
    fn primary(&self) -> &'static str;

    /// The other resources to watch.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Observes what concerns `key` and decides. Must not block; a key whose object is gone is
    /// planned too.
    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan;
}

/// Starts a controller as a task.
pub fn start(tasks: &Tasks, objects: Objects, controller: Arc<dyn Controller>) {
    let name = controller.name();
    tasks.spawn(name, |stop| async move {
        run(&objects, controller.as_ref(), stop).await;
        Ok::<(), Infallible>(())
    });
}

/// An event of one source, or that events were lost.
type Seen = (usize, Result<Arc<Event>, StoreError>);

async fn run(objects: &Objects, controller: &dyn Controller, stop: CancellationToken) {
    let mut sources = controller.sources();
    sources.push(Source::new(controller.primary(), |_, object| vec![object.key.clone()]));
    let mut events: SelectAll<BoxStream<'_, Seen>> = SelectAll::new();
    for (index, source) in sources.iter().enumerate() {
        events.push(follow(objects, index, source.resource));
    }
    let mut queue: Queue<Key> = Queue::default();
    let mut failures: HashMap<Key, String> = HashMap::new();
    let mut working = FuturesUnordered::new();
    let mut resync = tokio::time::interval(RESYNC);
    loop {
        while working.len() < CONCURRENT_KEYS_MAX {
            let Some(key) = queue.next(Instant::now()) else { break };
            let round =
                Round { now: whole_second(objects.clock().now()), failure: failures.get(&key).cloned() };
            let plan = controller.plan(objects, &key, &round);
            working.push(async move {
                let outcome = execute(objects, controller.name(), &plan).await;
                (key, plan.requeue_after, outcome)
            });
        }
        let deadline = queue.next_deadline();
        tokio::select! {
            () = stop.cancelled() => return,
            Some((key, again, outcome)) = working.next() => {
                queue.done(&key);
                match outcome {
                    Ok(()) => {
                        queue.succeeded(&key);
                        if failures.remove(&key).is_some() {
                            // What the last plan said about the failure is to be taken back.
                            queue.add(key.clone());
                        }
                    }
                    Err(error) => {
                        if error.is_conflict() {
                            tracing::debug!(controller = controller.name(), %key, %error, "planned on an old state");
                        } else {
                            tracing::warn!(controller = controller.name(), %key, %error, "reconcile failed");
                            failures.insert(key.clone(), error.to_string());
                        }
                        queue.failed(&key, Instant::now());
                    }
                }
                if let Some(delay) = again {
                    queue.add_at(key, Instant::now() + to_std(delay));
                }
            }
            Some((index, seen)) = events.next() => match seen {
                Ok(event) => {
                    let source = &sources[index];
                    for object in std::iter::once(&event.object).chain(&event.previous) {
                        for key in (source.keys)(objects, object) {
                            queue.add(key);
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(controller = controller.name(), %error, "watching anew");
                    events.push(follow(objects, index, sources[index].resource));
                    resync.reset_immediately();
                }
            },
            _ = resync.tick() => {
                for object in objects.store().list(controller.primary(), None).items {
                    queue.add(object.key.clone());
                }
            }
            () = sleep_until(deadline) => {}
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn follow<'a>(objects: &Objects, index: usize, resource: &'static str) -> BoxStream<'a, Seen> {
    objects.follow(resource).map(move |seen| (index, seen)).boxed()
}

/// Acts on a plan: in order, and no further than the first failure.
pub async fn execute(objects: &Objects, writer: &str, plan: &Plan) -> Result<(), Error> {
    let options = WriteOptions::system(writer).tracked_as(FIELD_MANAGER);
    let act = Act { objects, writer, about: plan.about.as_ref(), options };
    let mut rest = plan.actions.as_slice();
    let mut batch = 1;
    while let Some(first) = rest.first() {
        let same =
            rest.iter().take_while(|a| is_create(a) == is_create(first) && is_delete(a) == is_delete(first));
        let size = match first {
            Action::Create { .. } => same.take(batch).count(),
            Action::Delete { .. } => same.take(BATCH_MAX).count(),
            Action::Status { .. } | Action::Merge { .. } => 1,
        };
        batch = if is_create(first) { (batch * 2).min(BATCH_MAX) } else { 1 };
        let (now, later) = rest.split_at(size);
        rest = later;
        for outcome in join_all(now.iter().map(|action| act.on(action))).await {
            outcome?;
        }
    }
    for note in &plan.events {
        act.record(note, "", "").await;
    }
    Ok(())
}

fn is_create(action: &Action) -> bool {
    matches!(action, Action::Create { .. })
}

fn is_delete(action: &Action) -> bool {
    matches!(action, Action::Delete { .. })
}

struct Act<'a> {
    objects: &'a Objects,
    writer: &'a str,
    about: Option<&'a ObjectReference>,
    options: WriteOptions,
}

impl Act<'_> {
    async fn on(&self, action: &Action) -> Result<(), Error> {
        match action {
            Action::Create { kind, namespace, object, done, failed } => {
                let outcome = self.objects.create(kind.0, namespace, object.clone(), &self.options).await;
                let name = outcome.as_ref().map(|o| o.key.name.to_string()).unwrap_or_default();
                self.report(outcome.map(drop), &name, done.as_ref(), failed.as_ref()).await
            }
            Action::Delete { target, grace_seconds, propagation, done, failed } => {
                let delete = DeleteOptions {
                    grace_seconds: *grace_seconds,
                    propagation: *propagation,
                    uid: (!target.uid.is_empty()).then(|| target.uid.clone()),
                    resource_version: None,
                };
                let Target { kind, namespace, name, .. } = target;
                let outcome = self.objects.delete(kind, namespace, name, &delete, &self.options).await;
                if outcome.as_ref().is_err_and(|e| e.is_not_found() || e.is_conflict()) {
                    // Gone, or succeeded by another object of the same name.
                    return Ok(());
                }
                self.report(outcome.map(drop), name, done.as_ref(), failed.as_ref()).await
            }
            Action::Status { target, at, status } => {
                let set = |object: &mut Value| object["status"] = status.clone();
                self.modify(target, Some(Subresource::Status), at.as_deref(), set).await
            }
            Action::Merge { target, subresource, at, patch } => {
                let merge = |object: &mut Value| *object = merge_patch(object, patch);
                self.modify(target, *subresource, at.as_deref(), merge).await
            }
        }
    }

    /// Changes an object that must still be the one that was observed; one that is gone needs no
    /// change.
    async fn modify(
        &self,
        target: &Target,
        subresource: Option<Subresource>,
        at: Option<&str>,
        change: impl Fn(&mut Value),
    ) -> Result<(), Error> {
        let Target { kind, namespace, name, uid } = target;
        let gone = || Error::NotFound { resource: kind.resource(), name: name.clone() };
        let moved = || Error::Conflict {
            resource: kind.resource(),
            name: name.clone(),
            message: "the object has been modified since it was observed".to_owned(),
        };
        let mut stale = false;
        let outcome = self
            .objects
            .modify(kind, subresource, namespace, name, &self.options, |object| {
                let meta = &object["metadata"];
                if !uid.is_empty() && meta["uid"].as_str() != Some(uid) {
                    return Err(gone());
                }
                if at.is_some_and(|at| meta["resourceVersion"].as_str() != Some(at)) {
                    stale = true;
                    return Err(gone());
                }
                change(object);
                Ok(())
            })
            .await;
        match outcome {
            Err(_) if stale => Err(moved()),
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn report(
        &self,
        outcome: Result<(), Error>,
        name: &str,
        done: Option<&Note>,
        failed: Option<&Note>,
    ) -> Result<(), Error> {
        match &outcome {
            Ok(()) => {
                if let Some(note) = done {
                    self.record(note, name, "").await;
                }
            }
            Err(error) => {
                if let Some(note) = failed {
                    self.record(note, name, &error.to_string()).await;
                }
            }
        }
        outcome
    }

    /// Records an Event. An Event that cannot be recorded stops nobody's work.
    async fn record(&self, note: &Note, name: &str, error: &str) {
        let Some(about) = note.about.as_ref().or(self.about) else { return };
        let message = note.message.replace("{name}", name).replace("{error}", error);
        self.objects.event(about, note.warning, note.reason, &message, self.writer).await;
    }
}

/// The duration, or nothing when it is negative.
fn to_std(delay: SignedDuration) -> Duration {
    Duration::try_from(delay).unwrap_or_default()
}

/// The last whole second.
pub fn whole_second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The key of the controller (`controller: true`) that owns an object, if it is one of `resource`.
pub fn owner_keys<T>(resource: &'static str) -> impl Fn(&Objects, &Object) -> Vec<Key> + Send + Sync
where
    T: Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static,
{
    move |_, object| {
        if object.meta.owners.is_empty() {
            return Vec::new();
        }
        let typed = object.typed::<T>();
        let kind = registry::by_resource(resource).map_or("", |row| row.kind);
        controller_of(typed.metadata())
            .filter(|owner| owner.kind == kind)
            .map(|owner| Key::new(resource, &object.key.namespace, &owner.name))
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::{
        controllers::{replica_set::ReplicaSetController, sim::template},
        store::Store,
    };

    #[tokio::test]
    async fn a_controller_follows_what_happens() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        let objects = Objects::new(store.clone(), Arc::new(crate::clock::SystemClock));
        let tasks = Tasks::new();
        let mut pods = store.watch("pods", store.revision()).unwrap();
        start(&tasks, objects.clone(), Arc::new(ReplicaSetController));
        let set = json!({"metadata": {"name": "web"},
            "spec": {"replicas": 5, "selector": {"matchLabels": {"app": "web"}}, "template": template(json!({"app": "web"}), "a")}});
        let row = registry::by_resource("replicasets.apps").unwrap();
        objects.create(row, "default", set, &WriteOptions::default()).await.unwrap();
        let mut last = None;
        for _ in 0..5 {
            last = Some(pods.next().await.unwrap());
        }
        let victim = &last.unwrap().object.key;
        let row = registry::of::<Pod>();
        let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        objects.delete(row, "default", &victim.name, &now, &WriteOptions::default()).await.unwrap();
        for _ in 0..2 {
            pods.next().await.unwrap();
        }
        assert_eq!(objects.list(row, None).items.len(), 5);
        tasks.stop().await;
    }
}
