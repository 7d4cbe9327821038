//! What a reconcile decides, as plain data: the [`runner`](super::runner) acts on it.
//!
//! Invariants: a plan is computed from what was observed alone; every action on an existing object
//! names its uid, so that it never hits a successor of the same name.

use std::{borrow::Cow, fmt};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    Metadata, Resource, api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    kinds::{Kind, Subresource, registry},
    objects::Propagation,
};

/// An object that exists, by everything that identifies it.
#[derive(Clone)]
pub struct Target {
    pub kind: &'static Kind,
    pub namespace: String,
    pub name: String,
    /// Empty: whichever object has the name.
    pub uid: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.resource(), self.namespace, self.name)
    }
}

impl Target {
    pub fn of<T: Metadata<Ty = ObjectMeta>>(object: &T) -> Self {
        let meta = object.metadata();
        Self {
            kind: registry::of::<T>(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

/// An Event to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// `Warning` rather than `Normal`.
    pub warning: bool,
    pub reason: &'static str,
    /// `{name}` stands for the name of the object acted on, `{error}` for why the action failed.
    pub message: Cow<'static, str>,
    /// `None`: the plan's own object.
    pub about: Option<ObjectReference>,
}

impl Note {
    pub fn normal(reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { warning: false, reason, message: message.into(), about: None }
    }

    pub fn warning(reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { warning: true, reason, message: message.into(), about: None }
    }

    #[must_use]
    pub fn about(mut self, object: ObjectReference) -> Self {
        self.about = Some(object);
        self
    }
}

/// One write.
#[derive(Debug, Clone)]
pub enum Action {
    /// Creates an object. A run of creates goes out in growing batches (upstream's slow start).
    Create { kind: KindRef, namespace: String, object: Value, done: Option<Note>, failed: Option<Note> },
    /// Deletes an object; one that is gone already is a success.
    Delete {
        target: Target,
        grace_seconds: Option<i64>,
        propagation: Option<Propagation>,
        done: Option<Note>,
        failed: Option<Note>,
    },
    /// Replaces the status. With `at`, only when the object is still at this resource version.
    Status { target: Target, at: Option<String>, status: Value },
    /// Applies a JSON merge patch (RFC 7386) to the object or a subresource of it.
    Merge { target: Target, subresource: Option<Subresource>, at: Option<String>, patch: Value },
}

/// A row of the table of kinds that can be printed.
#[derive(Clone, Copy)]
pub struct KindRef(pub &'static Kind);

impl fmt::Debug for KindRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.resource())
    }
}

/// The outcome of one reconcile.
#[derive(Debug, Default, Clone)]
pub struct Plan {
    /// What notes without an own object are about.
    pub about: Option<ObjectReference>,
    /// In order; the first failure ends the execution.
    pub actions: Vec<Action>,
    /// Recorded once all actions have succeeded.
    pub events: Vec<Note>,
    /// When to look again although nothing may have changed.
    pub requeue_after: Option<SignedDuration>,
}

impl Plan {
    /// A plan about one object.
    pub fn about<T: Metadata<Ty = ObjectMeta>>(object: &T) -> Self {
        Self { about: Some(reference(object)), ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.events.is_empty()
    }

    pub fn event(&mut self, note: Note) {
        self.events.push(note);
    }

    /// Plans the creation of `object` in its own namespace.
    pub fn create<T>(&mut self, object: &T, done: Option<Note>, failed: Option<Note>)
    where
        T: Metadata<Ty = ObjectMeta> + Serialize,
    {
        self.actions.push(Action::Create {
            kind: KindRef(registry::of::<T>()),
            namespace: object.metadata().namespace.clone().unwrap_or_default(),
            object: json(object),
            done,
            failed,
        });
    }

    pub fn delete<T: Metadata<Ty = ObjectMeta>>(
        &mut self,
        object: &T,
        done: Option<Note>,
        failed: Option<Note>,
    ) {
        let target = Target::of(object);
        self.actions.push(Action::Delete { target, grace_seconds: None, propagation: None, done, failed });
    }

    /// [`Plan::status`] before everything else: it says what was observed, also when what follows
    /// fails.
    pub fn status_first<T, S>(&mut self, object: &T, current: Option<&S>, new: &S)
    where
        T: Metadata<Ty = ObjectMeta>,
        S: Serialize + PartialEq,
    {
        let rest = std::mem::take(&mut self.actions);
        self.status(object, current, new);
        self.actions.extend(rest);
    }

    /// Plans the replacement of the status, unless it is what is there.
    pub fn status<T, S>(&mut self, object: &T, current: Option<&S>, new: &S)
    where
        T: Metadata<Ty = ObjectMeta>,
        S: Serialize + PartialEq,
    {
        if current != Some(new) {
            self.actions.push(Action::Status { target: Target::of(object), at: None, status: json(new) });
        }
    }

    /// Plans a merge patch of the object itself.
    pub fn merge<T: Metadata<Ty = ObjectMeta>>(&mut self, object: &T, patch: Value) {
        let target = Target::of(object);
        self.actions.push(Action::Merge { target, subresource: None, at: None, patch });
    }

    /// The same, only when the object has not changed since it was observed (lists are replaced
    /// whole by a merge patch).
    pub fn merge_at<T: Metadata<Ty = ObjectMeta>>(&mut self, object: &T, patch: Value) {
        let at = object.metadata().resource_version.clone();
        let target = Target::of(object);
        self.actions.push(Action::Merge { target, subresource: None, at, patch });
    }

    /// [`Plan::merge_at`] of the status subresource.
    pub fn merge_status_at<T: Metadata<Ty = ObjectMeta>>(&mut self, object: &T, patch: Value) {
        let at = object.metadata().resource_version.clone();
        let target = Target::of(object);
        self.actions.push(Action::Merge { target, subresource: Some(Subresource::Status), at, patch });
    }

    /// Looks again after `delay`, or earlier when an earlier look is planned already.
    pub fn requeue_in(&mut self, delay: SignedDuration) {
        let delay = delay.max(SignedDuration::ZERO);
        self.requeue_after = Some(self.requeue_after.map_or(delay, |planned| planned.min(delay)));
    }

    /// Looks again at `then`.
    pub fn requeue_at(&mut self, then: Timestamp, now: Timestamp) {
        self.requeue_in(then.duration_since(now));
    }
}

/// The JSON form of an API object.
pub fn json<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("an API object has a JSON form")
}

/// A list in a merge patch as `omitempty` has it: none rather than an empty one.
pub fn list<T: Serialize>(items: impl IntoIterator<Item = T>) -> Value {
    let items: Vec<Value> = items.into_iter().map(|item| json(&item)).collect();
    if items.is_empty() { Value::Null } else { items.into() }
}

/// How Events refer to an object.
pub fn reference<T: Metadata<Ty = ObjectMeta>>(object: &T) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(<T as Resource>::API_VERSION.to_owned()),
        kind: Some(<T as Resource>::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// `metadata.annotations` with one entry set, as a merge patch.
pub fn annotate(key: &str, value: &str) -> Value {
    json!({ "metadata": { "annotations": { key: value } } })
}
