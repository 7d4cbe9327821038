//! Strategic merge patch: lists of structs merge by their key, directives in the patch say more.
//!
//! Source: the "strategic merge patch" page of the Kubernetes community's API machinery documents, and
//! what kubectl sends (`$setElementOrder`, `$retainKeys`, `$deleteFromPrimitiveList`, `$patch`).

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::kinds::schema::{Field, Merge, PatchKind, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// `live` with `patch` merged in, both of type `ty`.
pub fn strategic_merge(live: &Value, patch: &Value, ty: &'static Type) -> Result<Value, PatchError> {
    let (Value::Object(live), Value::Object(patch)) = (live, patch) else {
        return Err(PatchError::BadRequest(
            "json: cannot unmarshal a patch that is no object into Go value of type map[string]interface {}"
                .to_owned(),
        ));
    };
    merge_objects(live.clone(), patch.clone(), Schema::Struct(ty)).map(Value::Object)
}

/// What is known of an object's fields.
#[derive(Clone, Copy)]
enum Schema {
    Struct(&'static Type),
    /// A map with values like this field's.
    MapOf(&'static Field),
    Unknown,
}

impl Schema {
    fn field(self, name: &str) -> Option<&'static Field> {
        match self {
            Self::Struct(ty) => ty.field(name),
            Self::MapOf(_) | Self::Unknown => None,
        }
    }

    /// The schema of the value, or of the items, of the field `name`.
    fn inside(self, name: &str) -> Self {
        let (field, is_value) = match self {
            Self::Struct(ty) => match ty.field(name) {
                Some(field) => (field, matches!(field.shape, Shape::Map | Shape::MapOfLists)),
                None => return Self::Unknown,
            },
            Self::MapOf(field) => (field, false),
            Self::Unknown => return Self::Unknown,
        };
        match field.elem.as_type() {
            _ if is_value => Self::MapOf(field),
            Some(ty) => Self::Struct(ty),
            None => Self::Unknown,
        }
    }

    fn merge(self, name: &str) -> Option<&'static Merge> {
        self.field(name).map(Field::merge)
    }
}

fn merge_objects(mut original: Object, mut patch: Object, schema: Schema) -> Result<Object, PatchError> {
    match patch.remove(DIRECTIVE).as_ref().map(|directive| (directive.as_str(), directive)) {
        None => {}
        Some((Some("replace"), _)) => return Ok(patch),
        Some((Some("delete"), _)) => return Ok(Object::new()),
        Some((_, other)) => return Err(bad_directive(other, &patch)),
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, schema)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_PRIMITIVES) {
            Some(field) => (field.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (Some(Value::Array(old)), Value::Array(value)) => {
                Some(Value::Array(merge_lists(old, value, schema, &key, deletes)?))
            }
            (Some(old), _) if deletes => Some(old),
            (None, _) if deletes => None,
            (Some(Value::Object(old)), Value::Object(value)) => {
                let replaced = schema.merge(&key).is_some_and(|merge| merge.patch == PatchKind::Replace);
                Some(Value::Object(if replaced {
                    value
                } else {
                    merge_objects(old, value, schema.inside(&key))?
                }))
            }
            (_, value) => without_directives(value),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// `$retainKeys`: everything else leaves the original.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys: HashSet<&str> = match keys.as_array() {
        Some(keys) => keys.iter().filter_map(Value::as_str).collect(),
        None => return Err(bad_request("invalid patch format of retainKeys")),
    };
    if patch.keys().any(|key| !keys.contains(key.as_str())) {
        return Err(bad_request("invalid patch format of retainKeys"));
    }
    original.retain(|key, _| keys.contains(key.as_str()));
    Ok(())
}

/// Merges the lists that have a `$setElementOrder`, and puts their items into that order.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, schema: Schema) -> Result<(), PatchError> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let name = &directive[SET_ORDER.len()..];
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(bad_request("invalid patch format of setElementOrder list"));
        };
        let key = schema.merge(name).map_or("", |merge| merge.patch_key);
        let old = match original.remove(name) {
            Some(Value::Array(old)) => Some(old),
            Some(_) => return Err(bad_request("invalid patch format of setElementOrder list")),
            None => None,
        };
        let new = match patch.remove(name) {
            Some(Value::Array(new)) => Some(new),
            // A null deletes the list, whatever its order.
            Some(Value::Null) => continue,
            Some(_) => return Err(bad_request("invalid patch format of setElementOrder list")),
            None => None,
        };
        check_order(new.as_deref().unwrap_or_default(), &order, key, name)?;
        let old_order = Order::new(old.as_deref().unwrap_or_default(), key);
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(without_directives).collect(),
            (Some(old), Some(new)) => merge_lists(old, new, schema, name, false)?,
        };
        original.insert(
            name.to_owned(),
            Value::Array(in_order(merged, &Order::new(&order, key), &old_order, key)),
        );
    }
    Ok(())
}

/// The patch's list has to follow the order it sets.
fn check_order(patch: &[Value], order: &[Value], key: &str, name: &str) -> Result<(), PatchError> {
    let mut wanted = order.iter().map(|item| identity(item, key));
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let id = identity(item, key);
        if !wanted.any(|other| other == id) {
            let (patch, order) = (Value::from(patch), Value::from(order));
            return Err(PatchError::Unprocessable(format!(
                "The order in patch list:\n{patch}\n doesn't match {SET_ORDER}{name} list:\n{order}\n"
            )));
        }
    }
    Ok(())
}

fn merge_lists(
    old: Vec<Value>,
    patch: Vec<Value>,
    schema: Schema,
    name: &str,
    deletes: bool,
) -> Result<Vec<Value>, PatchError> {
    let merge = schema.merge(name);
    if !deletes && merge.is_none_or(|merge| merge.patch != PatchKind::Merge) {
        return Ok(patch);
    }
    let is_object = old.first().or(patch.first()).is_some_and(Value::is_object);
    if old.iter().chain(&patch).any(|item| item.is_object() != is_object || item.is_array()) {
        return Err(PatchError::Unprocessable(format!("list element types are not identical: {name}")));
    }
    if !is_object {
        if deletes {
            let gone: HashSet<String> = patch.iter().map(|item| identity(item, "")).collect();
            return Ok(old.into_iter().filter(|item| !gone.contains(&identity(item, ""))).collect());
        }
        let (patch_order, old_order) = (Order::new(&patch, ""), Order::new(&old, ""));
        let mut seen = HashSet::new();
        let merged = old.into_iter().chain(patch).filter(|item| seen.insert(identity(item, ""))).collect();
        return Ok(in_order(merged, &patch_order, &old_order, ""));
    }
    let key = merge.map_or("", |merge| merge.patch_key);
    if key.is_empty() {
        return Err(PatchError::Unprocessable(format!("cannot merge lists without merge key for {name}")));
    }
    merge_structs(old, patch, schema.inside(name), key)
}

/// Merges lists of structs by `key`.
fn merge_structs(
    mut old: Vec<Value>,
    patch: Vec<Value>,
    schema: Schema,
    key: &str,
) -> Result<Vec<Value>, PatchError> {
    let mut replaces = false;
    let mut deleted = HashSet::new();
    let mut items = Vec::with_capacity(patch.len());
    for item in patch {
        match item.get(DIRECTIVE) {
            None => items.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") if item.get(key).is_some() => {
                    deleted.insert(identity(&item, key));
                }
                Some("delete") => return Err(no_merge_key(&item, key)),
                Some("replace") => replaces = true,
                Some("merge") => {
                    return Err(PatchError::Unprocessable(
                        "merging lists cannot yet be specified in the patch".to_owned(),
                    ));
                }
                _ => return Err(bad_directive(directive, &item)),
            },
        }
    }
    if replaces {
        old.clear();
    }
    old.retain(|item| !deleted.contains(&identity(item, key)));
    let (patch_order, old_order) = (Order::new(&items, key), Order::new(&old, key));
    let mut places = old_order.0.clone();
    for item in items {
        if item.get(key).is_none() {
            return Err(no_merge_key(&item, key));
        }
        let id = identity(&item, key);
        if let Some(&at) = places.get(&id) {
            if let (Value::Object(existing), Value::Object(item)) = (old[at].take(), item) {
                old[at] = Value::Object(merge_objects(existing, item, schema)?);
            }
        } else {
            places.insert(id, old.len());
            old.push(item);
        }
    }
    Ok(in_order(old, &patch_order, &old_order, key))
}

/// The places of a list's items by identity.
struct Order(HashMap<String, usize>);

impl Order {
    fn new(items: &[Value], key: &str) -> Self {
        let mut places = HashMap::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            places.entry(identity(item, key)).or_insert(i);
        }
        Self(places)
    }
}

/// What makes an item the same in two lists: its merge key, or itself.
fn identity(item: &Value, key: &str) -> String {
    if key.is_empty() { item.to_string() } else { item.get(key).map(Value::to_string).unwrap_or_default() }
}

/// Items the patch names in its order, mixed with those only the server knows: a server item stands
/// before a patch item when it did so before, else behind.
fn in_order(items: Vec<Value>, patch_order: &Order, old_order: &Order, key: &str) -> Vec<Value> {
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in items {
        let id = identity(&item, key);
        let old = old_order.0.get(&id).copied();
        match patch_order.0.get(&id) {
            Some(&at) => named.push((at, old, item)),
            None => others.push((old.unwrap_or(usize::MAX), old, item)),
        }
    }
    named.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(at, ..)| *at);
    let mut merged = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return merged,
            (Some((_, Some(other), _)), Some((_, Some(named), _))) => other < named,
            (_, named) => named.is_none(),
        };
        let next = if other_first { others.next() } else { named.next() };
        merged.extend(next.map(|(.., item)| item));
    }
}

/// A value that is new to the object: without directives and nulls. None when it says to delete.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) => {
            if object.get(DIRECTIVE).is_some_and(|directive| directive != "replace") {
                return None;
            }
            let is_directive = |key: &str| {
                [DIRECTIVE, RETAIN_KEYS].contains(&key)
                    || key.starts_with(SET_ORDER)
                    || key.starts_with(DELETE_PRIMITIVES)
            };
            let kept = object.into_iter().filter(|(key, value)| !is_directive(key) && !value.is_null());
            Some(Value::Object(kept.filter_map(|(k, v)| without_directives(v).map(|v| (k, v))).collect()))
        }
        Value::Array(items) => Some(items.into_iter().filter_map(without_directives).collect()),
        other => Some(other),
    }
}

fn bad_request(text: &str) -> PatchError {
    PatchError::BadRequest(text.to_owned())
}

fn bad_directive(directive: &Value, around: &(impl serde::Serialize + ?Sized)) -> PatchError {
    let around = serde_json::to_string(around).unwrap_or_default();
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    PatchError::Untyped(format!("unknown patch type: {directive} in map: {around}"))
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::Untyped(format!("map: {item} does not contain declared merge key: {key}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::schema::lookup;

    fn ty(name: &str) -> &'static Type {
        lookup(&format!("io.k8s.api.{name}")).unwrap()
    }

    fn pod_spec(live: Value, patch: Value) -> Result<Value, PatchError> {
        strategic_merge(&live, &patch, ty("core.v1.PodSpec"))
    }

    #[test]
    fn lists_of_structs_merge_by_their_key() {
        let live = json!({"containers": [
            {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}], "args": ["x", "y"]},
            {"name": "b", "image": "b:1"},
        ]});
        let patch = json!({"containers": [
            {"name": "b", "image": "b:2"},
            {"name": "c", "image": "c:1"},
            {"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": null, "valueFrom": {}}], "args": ["z"]},
        ]});
        // The order is the patch's.
        assert_eq!(
            pod_spec(live, patch).unwrap(),
            json!({"containers": [
                {"name": "b", "image": "b:2"},
                {"name": "c", "image": "c:1"},
                {"name": "a", "image": "a:1", "args": ["z"], "env": [{"name": "Y", "value": "2"}, {"name": "X", "valueFrom": {}}]},
            ]})
        );
    }

    #[test]
    fn directives_delete_and_replace() {
        let live = json!({
            "containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1", "y": "2"},
            "securityContext": {"runAsUser": 1}, "volumes": [{"name": "v", "emptyDir": {}}],
        });
        let patch = json!({
            "containers": [{"$patch": "delete", "name": "a"}, {"name": "c", "image": "i"}],
            "nodeSelector": {"$patch": "replace", "z": "3"},
            "securityContext": {"$patch": "delete"},
            "volumes": [{"$patch": "replace"}, {"name": "w", "hostPath": {"path": "/"}}],
        });
        assert_eq!(
            pod_spec(live, patch).unwrap(),
            json!({
                "containers": [{"name": "c", "image": "i"}, {"name": "b"}],
                "nodeSelector": {"z": "3"}, "securityContext": {},
                "volumes": [{"name": "w", "hostPath": {"path": "/"}}],
            })
        );
    }

    #[test]
    fn an_order_is_kept_around_items_of_the_server() {
        let live =
            json!({"containers": [{"name": "sidecar"}, {"name": "a"}, {"name": "b"}, {"name": "last"}]});
        let patch = json!({
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "new"}],
            "containers": [{"name": "new", "image": "i"}],
        });
        let merged = pod_spec(live.clone(), patch).unwrap();
        let names: Vec<_> =
            merged["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["sidecar", "b", "a", "new", "last"]);
        let only_order = json!({"$setElementOrder/containers": [{"name": "last"}, {"name": "sidecar"}]});
        let merged = pod_spec(live, only_order).unwrap();
        let names: Vec<_> =
            merged["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "last", "sidecar"]);
    }

    #[test]
    fn retained_keys_drop_the_others() {
        let live = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let patch = json!({
            "$setElementOrder/volumes": [{"name": "v"}],
            "volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}],
        });
        assert_eq!(
            pod_spec(live, patch).unwrap(),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})
        );
        let live = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}});
        let patch = json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}});
        assert_eq!(
            strategic_merge(&live, &patch, ty("apps.v1.DeploymentSpec")).unwrap(),
            json!({"strategy": {"type": "Recreate"}})
        );
    }

    #[test]
    fn primitive_lists_merge_as_sets_where_the_type_says_so() {
        let live = json!({"finalizers": ["a", "b", "c"]});
        let meta = lookup("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
        let patch = json!({
            "$deleteFromPrimitiveList/finalizers": ["b"],
            "$setElementOrder/finalizers": ["c", "d"],
            "finalizers": ["d"],
        });
        assert_eq!(strategic_merge(&live, &patch, meta).unwrap(), json!({"finalizers": ["a", "c", "d"]}));
        assert_eq!(
            pod_spec(json!({"tolerations": [{"key": "a"}]}), json!({"tolerations": [{"key": "b"}]})).unwrap()
                ["tolerations"],
            json!([{"key": "b"}])
        );
    }

    #[test]
    fn null_removes_and_new_values_lose_their_nulls() {
        let live = json!({"hostname": "a", "dnsConfig": {"nameservers": ["1.1.1.1"]}});
        let patch = json!({"hostname": null, "affinity": {"nodeAffinity": null, "podAffinity": {}}, "subdomain": null});
        assert_eq!(
            pod_spec(live, patch).unwrap(),
            json!({"dnsConfig": {"nameservers": ["1.1.1.1"]}, "affinity": {"podAffinity": {}}})
        );
        let budget = strategic_merge(
            &json!({"selector": {"matchLabels": {"a": "1"}}}),
            &json!({"selector": {"matchLabels": {"b": "2"}}}),
            ty("policy.v1.PodDisruptionBudgetSpec"),
        );
        assert_eq!(budget.unwrap(), json!({"selector": {"matchLabels": {"b": "2"}}}));
    }

    #[test]
    fn malformed_patches_are_errors() {
        let live = json!({"containers": [{"name": "a"}]});
        let cases = [
            (
                json!({"containers": [{"image": "x"}]}),
                "map: {\"image\":\"x\"} does not contain declared merge key: name",
            ),
            (
                json!({"securityContext": {"$patch": "x"}, "containers": [{"$patch": "x", "name": "a"}]}),
                "unknown patch type: x in map: {\"$patch\":\"x\",\"name\":\"a\"}",
            ),
            (
                json!({"containers": [{"$patch": "delete"}]}),
                "map: {\"$patch\":\"delete\"} does not contain declared merge key: name",
            ),
            (json!({"$retainKeys": ["a"], "containers": []}), "invalid patch format of retainKeys"),
        ];
        for (patch, text) in cases {
            assert_eq!(pod_spec(live.clone(), patch).unwrap_err().to_string(), text);
        }
        let patch = json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]});
        assert!(
            pod_spec(live.clone(), patch).unwrap_err().to_string().starts_with("The order in patch list:")
        );
        assert!(pod_spec(live, json!({"containers": [1]})).is_err());
    }

    #[test]
    fn maps_without_schema_merge_key_by_key() {
        let live = json!({"metadata": {"annotations": {"a": "1", "b": "2"}}});
        let patch = json!({"metadata": {"annotations": {"a": null, "c": "3"}}});
        assert_eq!(
            strategic_merge(&live, &patch, ty("core.v1.Pod")).unwrap(),
            json!({"metadata": {"annotations": {"b": "2", "c": "3"}}})
        );
    }
}
