//! Trees with their types: the set of paths of an object, comparison, merge and removal by set.
//!
//! What is one value to server-side apply (a scalar, an atomic struct, map or list) is a leaf; the rest
//! is walked. Duplicate items of a list count as the first of them.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    fieldset::{FieldSet, Node, field_element, key_element, value_element},
    go,
};
use crate::kinds::schema::{Elem, Field, ListKind, Shape, Type, decode};

/// How apply sees a value.
#[derive(Clone, Copy)]
pub enum Form {
    Scalar,
    /// A whole struct, map or list.
    Atomic,
    Struct(&'static Type),
    /// A map whose values have this element.
    Map(Elem),
    /// A map of atomic lists.
    MapOfLists,
    /// A set of scalars.
    Set,
    /// A list of structs with keys.
    Keyed(&'static [&'static str], Elem),
    /// No schema: maps are walked, lists are whole.
    Untyped,
}

impl Form {
    fn of_elem(elem: Elem) -> Self {
        match elem {
            Elem::Type(_) => match elem.as_type() {
                Some(ty) if !ty.atomic => Self::Struct(ty),
                _ => Self::Atomic,
            },
            Elem::Raw | Elem::FieldsV1 | Elem::Json => Self::Untyped,
            _ => Self::Scalar,
        }
    }

    fn of_field(field: &'static Field) -> Self {
        let merge = field.merge();
        match field.shape {
            Shape::List => match merge.list {
                ListKind::Set => Self::Set,
                ListKind::Map => Self::Keyed(merge.keys, field.elem),
                ListKind::None | ListKind::Atomic => Self::Atomic,
            },
            _ if field.is_atomic() => Self::Atomic,
            Shape::Map => Self::Map(field.elem),
            Shape::MapOfLists => Self::MapOfLists,
            // The field may say more than the type.
            Shape::One => field.elem.as_type().map_or_else(|| Self::of_elem(field.elem), Self::Struct),
        }
    }

    /// The form of the value under `key`, and whether the key is a declared field.
    fn child(self, key: &str) -> (Self, bool) {
        match self {
            Self::Struct(ty) => match ty.field(key) {
                Some(field) => (Self::of_field(field), true),
                None => (Self::Untyped, false),
            },
            Self::Map(elem) => (Self::of_elem(elem), false),
            Self::MapOfLists => (Self::Atomic, false),
            _ => (Self::Untyped, false),
        }
    }

    fn item(self) -> Self {
        match self {
            Self::Keyed(_, elem) => Self::of_elem(elem),
            _ => Self::Scalar,
        }
    }

    /// How to walk these two values.
    fn walk(self, a: Option<&Value>, b: Option<&Value>) -> Walk {
        let holds = |test: fn(&Value) -> bool| [a, b].into_iter().flatten().all(|v| test(v) || v.is_null());
        match self {
            Self::Struct(_) | Self::Map(_) | Self::MapOfLists if holds(Value::is_object) => Walk::Map,
            Self::Untyped
                if holds(Value::is_object) && [a, b].into_iter().flatten().any(Value::is_object) =>
            {
                Walk::Map
            }
            Self::Set | Self::Keyed(..) if holds(Value::is_array) => Walk::List,
            _ => Walk::Leaf,
        }
    }

    /// The path elements of a list's items.
    fn elements(self, items: &[Value]) -> Vec<String> {
        let element = |item: &Value| match self {
            Self::Keyed(keys, _) => key_element(
                keys.iter().filter_map(|key| Some(((*key).to_owned(), key_value(item, key)?))).collect(),
            ),
            _ => value_element(item),
        };
        items.iter().map(element).collect()
    }
}

/// The value of a list key; `protocol` has a default in the schema of ports.
fn key_value(item: &Value, key: &str) -> Option<Value> {
    match item.get(key) {
        Some(value) if !value.is_null() => Some(value.clone()),
        _ if key == "protocol" => Some(Value::from("TCP")),
        _ => None,
    }
}

enum Walk {
    Leaf,
    Map,
    List,
}

fn object(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The live object of a create: what a zero struct of Go has, lists that are always written as null.
pub fn empty_live(ty: &'static Type) -> Value {
    fn lists(object: &mut Map<String, Value>, ty: &'static Type) {
        for field in ty.fields {
            if field.shape != Shape::One {
                if field.is_required() {
                    object.insert(field.name.to_owned(), Value::Null);
                }
            } else if let (Some(inner), Some(Value::Object(value))) =
                (field.elem.as_type(), object.get_mut(field.name))
            {
                lists(value, inner);
            }
        }
    }
    let mut live = decode::zero(ty);
    if let Value::Object(live) = &mut live {
        lists(live, ty);
    }
    live
}

/// The paths that an applied configuration names.
pub fn to_set(value: &Value, form: Form) -> Node {
    match form.walk(Some(value), None) {
        Walk::Leaf => Node::LEAF,
        Walk::Map => {
            let mut node = Node::default();
            for (key, value) in object(Some(value)).into_iter().flatten() {
                let (form, declared) = form.child(key);
                let mut child = to_set(value, form);
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                child.member |= is_empty || !declared;
                node.children.put(field_element(key), child);
            }
            node
        }
        Walk::List => {
            let mut node = Node::default();
            let values = items(Some(value));
            for (element, value) in form.elements(values).into_iter().zip(values) {
                let mut child = to_set(value, form.item());
                child.member = true;
                node.children.put(element, child);
            }
            node
        }
    }
}

/// What distinguishes two objects.
#[derive(Debug, Default)]
pub struct Comparison {
    pub added: FieldSet,
    pub removed: FieldSet,
    pub modified: FieldSet,
}

impl Comparison {
    pub fn between(old: &Value, new: &Value, ty: &'static Type) -> Self {
        let difference = compare(Some(old), Some(new), Form::Struct(ty));
        Self {
            added: difference.added.children,
            removed: difference.removed.children,
            modified: difference.modified.children,
        }
    }

    /// Without what is in or below `ignored`.
    pub fn without(&self, ignored: &FieldSet) -> Self {
        Self {
            added: self.added.recursive_difference(ignored),
            removed: self.removed.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
        }
    }
}

#[derive(Default)]
struct Difference {
    added: Node,
    removed: Node,
    modified: Node,
}

impl Difference {
    fn put(&mut self, element: &str, inner: Self) {
        self.added.children.put(element.to_owned(), inner.added);
        self.removed.children.put(element.to_owned(), inner.removed);
        self.modified.children.put(element.to_owned(), inner.modified);
    }
}

fn compare(old: Option<&Value>, new: Option<&Value>, form: Form) -> Difference {
    let mut difference = Difference::default();
    let is_empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(object)) => object.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => false,
    };
    let leaf = is_empty(old) && is_empty(new);
    match form.walk(old, new) {
        Walk::Map if !leaf => {
            let (old, new) = (object(old), object(new));
            for (key, value) in old.into_iter().flatten() {
                let inner = compare(Some(value), new.and_then(|new| new.get(key)), form.child(key).0);
                difference.put(&field_element(key), inner);
            }
            for (key, value) in new.into_iter().flatten() {
                if old.is_none_or(|old| !old.contains_key(key)) {
                    difference.put(&field_element(key), compare(None, Some(value), form.child(key).0));
                }
            }
        }
        Walk::List if !leaf => {
            let (old, new) = (Index::new(items(old), form), Index::new(items(new), form));
            for (element, item) in old.iter() {
                difference.put(element, compare(Some(item), new.get(element), form.item()));
            }
            for (element, item) in new.iter().filter(|(element, _)| old.get(element).is_none()) {
                difference.put(element, compare(None, Some(item), form.item()));
            }
        }
        _ => {
            difference.modified.member = old.is_some() && new.is_some() && old != new;
        }
    }
    difference.added.member = old.is_none();
    difference.removed.member = new.is_none();
    difference
}

/// A list's items by path element.
struct Index<'a> {
    elements: Vec<String>,
    items: &'a [Value],
    places: HashMap<String, usize>,
}

impl<'a> Index<'a> {
    fn new(items: &'a [Value], form: Form) -> Self {
        let elements = form.elements(items);
        let mut places = HashMap::with_capacity(items.len());
        for (i, element) in elements.iter().enumerate() {
            places.entry(element.clone()).or_insert(i);
        }
        Self { elements, items, places }
    }

    fn get(&self, element: &str) -> Option<&'a Value> {
        self.places.get(element).map(|&i| &self.items[i])
    }

    fn iter(&self) -> impl Iterator<Item = (&String, &'a Value)> {
        let first = |i: &usize| self.places[&self.elements[*i]] == *i;
        (0..self.items.len()).filter(first).map(|i| (&self.elements[i], &self.items[i]))
    }
}

/// `new` laid over `old`.
pub fn merge(old: Option<&Value>, new: Option<&Value>, form: Form) -> Option<Value> {
    let (Some(a), Some(b)) = (old, new) else { return new.or(old).cloned() };
    match form.walk(old, new) {
        Walk::Leaf => Some(b.clone()),
        Walk::Map => {
            let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
                return Some(if b.is_null() { a.clone() } else { b.clone() });
            };
            let mut merged = a.clone();
            for (key, value) in b {
                let value = merge(a.get(key), Some(value), form.child(key).0);
                merged.insert(key.clone(), value.unwrap_or_default());
            }
            Some(Value::Object(merged))
        }
        Walk::List => {
            if b.is_null() {
                return Some(a.clone());
            }
            Some(Value::Array(merge_lists(items(old), items(new), form)))
        }
    }
}

/// Items both have keep the order of `new`; items only `old` has stay around them.
fn merge_lists(old: &[Value], new: &[Value], form: Form) -> Vec<Value> {
    let (left, right) = (Index::new(old, form), Index::new(new, form));
    let mut shared = right.elements.iter().filter(|e| left.get(e).is_some()).peekable();
    let mut merged = Vec::with_capacity(old.len().max(new.len()));
    let mut done = HashSet::new();
    let take = |element: &str| merge(left.get(element), right.get(element), form.item()).unwrap_or_default();
    let (mut l, mut r) = (0, 0);
    while l < old.len() || r < new.len() {
        if l < old.len() && r < new.len() {
            let element = &left.elements[l];
            if *element == right.elements[r] {
                done.insert(element.as_str());
                merged.push(take(element));
                (l, r) = (l + 1, r + 1);
                shared.next();
                continue;
            }
            if right.get(element).is_some() && shared.peek().is_some_and(|next| *next != element) {
                l += 1;
                continue;
            }
        }
        if l < old.len() {
            let element = &left.elements[l];
            if right.get(element).is_none() {
                merged.push(old[l].clone());
                l += 1;
                continue;
            }
            if done.contains(element.as_str()) {
                l += 1;
            }
        }
        if r < new.len() {
            let element = &right.elements[r];
            done.insert(element.as_str());
            merged.push(take(element));
            r += 1;
            if shared.peek().is_some_and(|next| *next == element) {
                shared.next();
            }
        }
    }
    merged
}

/// `value` without the paths of `set`; null where nothing is left.
pub fn remove(value: &Value, set: &FieldSet, form: Form) -> Value {
    let keep = |element: &str, value: &Value, form: Form| match set.get(element) {
        Some(node) if node.member => None,
        Some(node) => Some(remove(value, &node.children, form)),
        None => Some(value.clone()),
    };
    match form.walk(Some(value), None) {
        Walk::Leaf => value.clone(),
        Walk::Map => {
            let kept: Map<_, _> = object(Some(value))
                .into_iter()
                .flatten()
                .filter_map(|(key, value)| {
                    Some((key.clone(), keep(&field_element(key), value, form.child(key).0)?))
                })
                .collect();
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        Walk::List => {
            let values = items(Some(value));
            let elements = form.elements(values);
            let kept: Vec<_> = elements
                .iter()
                .zip(values)
                .filter_map(|(element, value)| keep(element, value, form.item()))
                .collect();
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
    }
}

/// `set` with every declared field on the way to a member as a member itself.
pub fn with_named_fields(set: &FieldSet, form: Form) -> FieldSet {
    let mut out = FieldSet::default();
    for (element, node) in set.iter() {
        let (inner, declared) = match element.strip_prefix("f:") {
            Some(name) => form.child(name),
            None => (form.item(), false),
        };
        let member = node.member || declared && !node.children.is_empty();
        out.put(element.clone(), Node { member, children: with_named_fields(&node.children, inner) });
    }
    out
}

/// What in an applied configuration does not fit its type, in upstream's words.
pub fn validate(value: &Value, form: Form) -> Vec<String> {
    let mut errors = Vec::new();
    check(value, form, "", &mut errors);
    errors
}

fn check(value: &Value, form: Form, path: &str, errors: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let shown = if path.is_empty() { "." } else { path };
    match form {
        Form::Struct(ty) => {
            let Some(object) = value.as_object() else { return errors.push(mismatch(shown, "map", value)) };
            for (key, value) in object {
                let path = format!("{path}.{key}");
                match ty.field(key) {
                    Some(field) => check_field(value, field, &path, errors),
                    None => errors.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        Form::Set | Form::Keyed(..) => {
            let Some(items) = value.as_array() else { return errors.push(mismatch(shown, "list", value)) };
            let mut seen = HashSet::new();
            for (element, item) in form.elements(items).into_iter().zip(items) {
                if element == "k:{}" {
                    errors.push(format!(
                        "{path}: element {}: associative list with keys has an element that omits all key \
                         fields (and doesn't have default values for any key fields)",
                        seen.len()
                    ));
                    continue;
                }
                let mut set = FieldSet::default();
                set.put(element.clone(), Node::LEAF);
                let shown = set.paths().concat();
                if let Form::Keyed(_, elem) = form {
                    check_elem(item, elem, &format!("{path}{shown}"), errors);
                }
                if !seen.insert(element) {
                    errors.push(format!("{path}: duplicate entries for key {shown}"));
                }
            }
        }
        Form::Scalar | Form::Atomic | Form::Map(_) | Form::MapOfLists | Form::Untyped => {}
    }
}

fn check_field(value: &Value, field: &'static Field, path: &str, errors: &mut Vec<String>) {
    let is_whole = matches!(Form::of_field(field), Form::Atomic);
    match (field.shape, value) {
        (_, Value::Null) => {}
        (Shape::One, _) => check_elem(value, field.elem, path, errors),
        (Shape::List, Value::Array(items)) if is_whole => {
            for (i, item) in items.iter().enumerate() {
                check_elem(item, field.elem, &format!("{path}[{i}]"), errors);
            }
        }
        (Shape::List, _) if is_whole => errors.push(mismatch(path, "list", value)),
        (Shape::List, _) => check(value, Form::of_field(field), path, errors),
        (Shape::Map, Value::Object(map)) => {
            for (key, value) in map {
                check_elem(value, field.elem, &format!("{path}.{key}"), errors);
            }
        }
        (Shape::MapOfLists, Value::Object(map)) => {
            for (key, value) in map.iter().filter(|(_, value)| !value.is_array() && !value.is_null()) {
                errors.push(mismatch(&format!("{path}.{key}"), "list", value));
            }
        }
        (Shape::Map | Shape::MapOfLists, _) => errors.push(mismatch(path, "map", value)),
    }
}

fn check_elem(value: &Value, elem: Elem, path: &str, errors: &mut Vec<String>) {
    let wanted = match elem {
        _ if value.is_null() => return,
        Elem::String | Elem::Time | Elem::MicroTime | Elem::Bytes if !value.is_string() => "string",
        Elem::Bool if !value.is_boolean() => "boolean",
        Elem::Int32 | Elem::Int64 | Elem::Double if !value.is_number() => "numeric (int or float)",
        Elem::Quantity | Elem::IntOrString if value.is_object() || value.is_array() => "any scalar",
        Elem::Type(_) => {
            if let Some(ty) = elem.as_type() {
                check(value, Form::Struct(ty), path, errors);
            }
            return;
        }
        _ => return,
    };
    errors.push(mismatch(path, wanted, value));
}

/// Each check of structured-merge-diff prints what it got in another way.
fn mismatch(path: &str, wanted: &str, value: &Value) -> String {
    let got = match wanted {
        "string" | "boolean" => format!("&value.valueUnstructured{{Value:{}}}", go::literal(value)),
        "numeric (int or float)" => go::type_of(value).to_owned(),
        _ => format!("&{{{}}}", go::plain(value)),
    };
    format!("{path}: expected {wanted}, got {got}")
}
