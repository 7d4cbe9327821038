//! Server-side apply, and the upkeep of `metadata.managedFields` on every other write.
//!
//! Source: `k8s.io/apimachinery/pkg/util/managedfields` and structured-merge-diff, whose order of steps
//! this keeps: merge, remove what the manager no longer applies and nobody else owns, compare, find
//! conflicts, write the entries.
//! Deliberately absent: conversion of sets between versions of a kind; fields that several versions have
//! have the same names.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    PatchError,
    fieldset::FieldSet,
    managers::{Manager, Managers, Owned, is_reset, strip},
    typed::{Comparison, Form, empty_live, merge, remove, to_set, validate, with_named_fields},
};
use crate::{clock::rfc3339_seconds, kinds::schema::Type};

/// Owns the fields of an object that was written without entries, once it is applied to.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The default manager of `kubectl apply --server-side`: takes over from client-side apply.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes, and through what.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The field manager's name.
    pub manager: &'a str,
    /// `status`, `scale`, …; empty for the object itself.
    pub subresource: &'a str,
    pub now: Timestamp,
}

/// Fields that others own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Conflicts {
    pub message: String,
    /// For the Status: (path, message), reason `FieldManagerConflict`.
    pub causes: Vec<(String, String)>,
}

/// Why an object was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Conflicts(#[from] Conflicts),
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// The object with `patch` applied and its managed fields, not yet decoded against `ty`.
///
/// `live` is none when the object does not exist.
pub fn apply(
    live: Option<&Value>,
    patch: &Value,
    ty: &'static Type,
    force: bool,
    writer: Writer<'_>,
) -> Result<Value, ApplyError> {
    let version = api_version(ty);
    check(patch, ty, &version)?;
    let mut managers = match live {
        Some(live) => Managers::of(live).ok_or_else(|| {
            PatchError::Unprocessable("failed to decode managed fields: malformed entry".to_owned())
        })?,
        None => Managers::default(),
    };
    let zero = empty_live(ty);
    let mut base = live.unwrap_or(&zero).clone();
    strip(&mut base);
    if managers.0.is_empty() {
        let before = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..writer };
        track(&mut managers, &zero, &base, ty, before);
    }
    let attempt = |force| lay_over(&base, patch, ty, &managers, force, writer);
    let (mut object, managers) = match attempt(force) {
        Err(conflicts) if writer.manager == KUBECTL => {
            let allowed = last_applied(&base, ty);
            let left: Vec<_> = conflicts
                .into_iter()
                .map(|(manager, fields)| (manager, fields.difference(&allowed)))
                .filter(|(_, fields)| !fields.is_empty())
                .collect();
            if left.is_empty() { attempt(true) } else { Err(left) }
        }
        answer => answer,
    }
    .map_err(|conflicts| conflict_error(&conflicts))?;
    if writer.manager == KUBECTL {
        renew_last_applied(&mut object, patch);
    }
    managers.write(&mut object);
    Ok(object)
}

/// `new` with the managed fields of an ordinary create (`old` is none), update or patch.
///
/// A client that changes `managedFields` itself is heard; one that omits them keeps what was.
pub fn track_update(old: Option<&Value>, new: &Value, ty: &'static Type, writer: Writer<'_>) -> Value {
    let zero = empty_live(ty);
    let mut before = old.unwrap_or(&zero).clone();
    let kept = || old.and_then(Managers::of).unwrap_or_default();
    let mut managers = if !writer.subresource.is_empty() {
        kept()
    } else if is_reset(new) {
        Managers::default()
    } else {
        Managers::of(new).filter(|managers| !managers.0.is_empty()).unwrap_or_else(kept)
    };
    let mut object = new.clone();
    strip(&mut before);
    strip(&mut object);
    track(&mut managers, &before, &object, ty, writer);
    managers.cap();
    managers.write(&mut object);
    object
}

/// Gives `new` the managed fields of `old` when nothing but their times has changed, so that a write that
/// changes nothing is seen as such.
pub fn keep_times(new: &mut Value, old: &Value) {
    let bare = |object: &Value| {
        let mut object = object.clone();
        strip(&mut object);
        object
    };
    let timeless = |object: &Value| {
        Managers::of(object).map(|mut managers| {
            managers.0.values_mut().for_each(|owned| owned.time.clear());
            managers
        })
    };
    if bare(new) == bare(old)
        && timeless(new) == timeless(old)
        && let Some(fields) = old.pointer("/metadata/managedFields")
        && let Some(place) = new.pointer_mut("/metadata/managedFields")
    {
        place.clone_from(fields);
    }
}

fn api_version(ty: &Type) -> String {
    if ty.group.is_empty() { ty.version.to_owned() } else { format!("{}/{}", ty.group, ty.version) }
}

/// What is not an applied configuration of `ty`.
fn check(patch: &Value, ty: &'static Type, version: &str) -> Result<(), PatchError> {
    let text = |pointer: &str| patch.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let patch_version = text("/apiVersion");
    if patch_version != version {
        return Err(PatchError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {patch_version}, expected: {version}"
        )));
    }
    if patch.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(PatchError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let errors = validate(patch, Form::Struct(ty));
    let problem = match errors.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    Err(PatchError::Untyped(format!(
        "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {problem}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        ty.group,
        ty.version,
        text("/kind"),
    )))
}

/// Fields that a request through this endpoint never owns.
fn ignored(subresource: &str) -> FieldSet {
    let mut set = FieldSet::default();
    match subresource {
        "" => set.insert_fields(&["status"]),
        "status" => set.insert_fields(&["spec"]),
        _ => {}
    }
    set
}

/// What identifies an object or is the server's: no one owns it.
fn never_owned() -> FieldSet {
    let mut set = FieldSet::default();
    for top in ["apiVersion", "kind", "metadata"] {
        set.insert_fields(&[top]);
    }
    for field in [
        "clusterName",
        "creationTimestamp",
        "generation",
        "managedFields",
        "name",
        "namespace",
        "resourceVersion",
        "selfLink",
        "uid",
    ] {
        set.insert_fields(&["metadata", field]);
    }
    set
}

type Disputes = Vec<(Manager, FieldSet)>;

/// Takes what a change touches from everyone but `own`; without `force` only when nobody minds.
fn give_way(
    managers: &mut Managers,
    comparison: &Comparison,
    own: &Manager,
    force: bool,
) -> Result<(), Disputes> {
    let touched = comparison.modified.union(&comparison.added);
    let disputes: Disputes = managers
        .0
        .iter()
        .filter(|(manager, _)| *manager != own)
        .map(|(manager, owned)| (manager.clone(), owned.fields.intersection(&touched)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    if !force && !disputes.is_empty() {
        return Err(disputes);
    }
    let gone = touched.union(&comparison.removed);
    for (manager, owned) in &mut managers.0 {
        if manager != own {
            owned.fields = owned.fields.difference(&gone);
        }
    }
    managers.prune();
    Ok(())
}

/// Upkeep for a change that is no apply: the writer owns what it added and changed.
fn track(managers: &mut Managers, old: &Value, new: &Value, ty: &'static Type, writer: Writer<'_>) {
    let version = api_version(ty);
    let comparison = Comparison::between(old, new, ty).without(&ignored(writer.subresource));
    let own = Manager::updater(writer.manager, writer.subresource, &version);
    // The writer's own entry also loses what is gone; a set it has from before is joined below.
    let nobody = Manager::updater("", "", "");
    if give_way(managers, &comparison, &nobody, true).is_err() {
        return;
    }
    let taken = comparison.modified.union(&comparison.added).difference(&never_owned());
    if taken.is_empty() {
        return;
    }
    let time = rfc3339_seconds(writer.now);
    let owned = managers.0.entry(own).or_insert_with(|| Owned {
        fields: FieldSet::default(),
        api_version: version,
        time: String::new(),
    });
    owned.fields = owned.fields.union(&taken);
    owned.time = time;
}

/// One attempt to apply: the new object without entries, and the entries.
fn lay_over(
    base: &Value,
    patch: &Value,
    ty: &'static Type,
    managers: &Managers,
    force: bool,
    writer: Writer<'_>,
) -> Result<(Value, Managers), Disputes> {
    let form = Form::Struct(ty);
    let mut managers = managers.clone();
    let before = managers.clone();
    let own = Manager::applier(writer.manager, writer.subresource);
    let merged = merge(Some(base), Some(patch), form).unwrap_or_default();
    let last = managers.0.get(&own).map(|owned| owned.fields.clone()).unwrap_or_default();
    let ignored = ignored(writer.subresource);
    let applied = to_set(patch, form).children.recursive_difference(&ignored);
    let old_time = managers.0.get(&own).map(|owned| owned.time.clone()).unwrap_or_default();
    let entry = Owned { fields: applied.clone(), api_version: api_version(ty), time: old_time };
    managers.0.insert(own.clone(), entry);
    let object = drop_abandoned(merged, &last, &managers.all_fields(), form);

    let comparison = Comparison::between(base, &object, ty).without(&ignored);
    give_way(&mut managers, &comparison, &own, force)?;
    if let Some(owned) = managers.0.get_mut(&own) {
        owned.fields = owned.fields.difference(&never_owned());
    }
    managers.prune();
    if (object != *base || managers != before)
        && let Some(owned) = managers.0.get_mut(&own)
    {
        owned.time = rfc3339_seconds(writer.now);
    }
    Ok((object, managers))
}

/// `merged` without what its manager applied `last` time, does not apply now, and nobody owns.
fn drop_abandoned(merged: Value, last: &FieldSet, owned: &FieldSet, form: Form) -> Value {
    if last.is_empty() {
        return merged;
    }
    let named = |set: &FieldSet| with_named_fields(set, form);
    let set_of = |value: &Value| named(&to_set(value, form).children);
    let (all, last) = (set_of(&merged), named(last));
    let pruned = remove(&merged, &last, form);
    // What went with it but is owned by someone comes back …
    let kept = set_of(&pruned).union(&named(owned));
    let pruned = remove(&merged, &all.difference(&kept), form);
    // … and what nobody owns and this manager never had.
    let gone = all.difference(&set_of(&pruned)).intersection(&last);
    remove(&merged, &gone, form)
}

/// The fields that client-side apply wrote and that still have its values.
fn last_applied(live: &Value, ty: &'static Type) -> FieldSet {
    let annotation = live.pointer("/metadata/annotations").and_then(|map| map.get(LAST_APPLIED));
    let Some(applied) =
        annotation.and_then(Value::as_str).and_then(|text| serde_json::from_str::<Value>(text).ok())
    else {
        return FieldSet::default();
    };
    let form = Form::Struct(ty);
    if !validate(&applied, form).is_empty() {
        return FieldSet::default();
    }
    let comparison = Comparison::between(live, &applied, ty);
    to_set(&applied, form)
        .children
        .difference(&comparison.modified)
        .difference(&comparison.added)
        .difference(&comparison.removed)
}

/// Keeps the annotation of client-side apply in step, when there is one.
fn renew_last_applied(object: &mut Value, patch: &Value) {
    let Some(annotation) =
        object.pointer_mut("/metadata/annotations").and_then(|map| map.get_mut(LAST_APPLIED))
    else {
        return;
    };
    let mut applied = patch.clone();
    strip(&mut applied);
    if let Some(annotations) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    *annotation = json!(format!("{applied}\n"));
}

fn conflict_error(disputes: &Disputes) -> Conflicts {
    let mut causes = Vec::new();
    let mut by_manager = Vec::new();
    for (manager, fields) in disputes {
        let paths = fields.paths();
        for path in &paths {
            causes.push((path.clone(), format!("conflict with {}", manager.shown())));
        }
        by_manager.push((manager.shown(), paths));
    }
    by_manager.sort();
    let message = if let [(path, conflict)] = causes.as_slice() {
        format!("Apply failed with 1 conflict: {conflict}: {path}")
    } else {
        let mut lines = Vec::new();
        for (manager, paths) in by_manager {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(paths.into_iter().map(|path| format!("- {path}")));
        }
        format!("Apply failed with {} conflicts: {}", causes.len(), lines.join("\n"))
    };
    Conflicts { message, causes }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
