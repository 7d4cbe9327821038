//! Sets of field paths and their JSON form, FieldsV1.
//!
//! A path element is kept in its written form: `f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`; a member that
//! has children also has the key `.`. Source: `ManagedFieldsEntry.fieldsV1` in the Kubernetes API and the
//! structured-merge-diff format it points to.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Map, Value};

/// A set of paths below one point of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet(BTreeMap<String, Node>);

/// What a set knows of one path element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The path that ends here is in the set.
    pub member: bool,
    pub children: FieldSet,
}

impl Node {
    pub const LEAF: Self = Self { member: true, children: FieldSet(BTreeMap::new()) };

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

/// The path element of a struct's field or of a map's key.
pub fn field_element(name: &str) -> String {
    format!("f:{name}")
}

/// The path element of an item in a list of structs; `keys` are its key fields.
pub fn key_element(keys: Map<String, Value>) -> String {
    format!("k:{}", Value::Object(keys))
}

/// The path element of an item in a set of scalars.
pub fn value_element(value: &Value) -> String {
    format!("v:{value}")
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, element: &str) -> Option<&Node> {
        self.0.get(element)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.0.iter()
    }

    /// Puts a node in place of what was there; an empty one leaves the set as it is.
    pub fn put(&mut self, element: String, node: Node) {
        if !node.is_empty() {
            self.0.insert(element, node);
        }
    }

    /// Adds the path of struct fields `names`.
    pub fn insert_fields(&mut self, names: &[&str]) {
        if let Some((first, rest)) = names.split_first() {
            let node = self.0.entry(field_element(first)).or_default();
            if rest.is_empty() {
                node.member = true;
            } else {
                node.children.insert_fields(rest);
            }
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        for (element, node) in &other.0 {
            let mine = union.0.entry(element.clone()).or_default();
            mine.member |= node.member;
            mine.children = mine.children.union(&node.children);
        }
        union
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, false, |a, b| Node {
            member: a.member && b.member,
            children: a.children.intersection(&b.children),
        })
    }

    /// The paths of `self` that are not in `other`; children of what goes stay.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, true, |a, b| Node {
            member: a.member && !b.member,
            children: a.children.difference(&b.children),
        })
    }

    /// The paths of `self` that are neither in `other` nor below one that is.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.combine(other, true, |a, b| {
            if b.member {
                return Node::default();
            }
            Node { member: a.member, children: a.children.recursive_difference(&b.children) }
        })
    }

    fn combine(&self, other: &Self, keep: bool, both: impl Fn(&Node, &Node) -> Node) -> Self {
        let mut out = Self::default();
        for (element, node) in &self.0 {
            match other.0.get(element) {
                Some(theirs) => out.put(element.clone(), both(node, theirs)),
                None if keep => out.put(element.clone(), node.clone()),
                None => {}
            }
        }
        out
    }

    /// Every member as upstream writes paths: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        fn walk(set: &FieldSet, prefix: &str, out: &mut Vec<String>) {
            for (element, node) in &set.0 {
                let path = format!("{prefix}{}", shown(element));
                if node.member {
                    out.push(path.clone());
                }
                walk(&node.children, &path, out);
            }
        }
        let mut out = Vec::new();
        walk(self, "", &mut out);
        out
    }

    /// The JSON form.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        for (element, node) in &self.0 {
            let mut inner = node.children.to_json();
            if let Value::Object(inner) = &mut inner
                && node.member
                && !inner.is_empty()
            {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            object.insert(element.clone(), inner);
        }
        Value::Object(object)
    }

    /// Reads the JSON form; none when it is malformed.
    pub fn from_json(json: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (element, inner) in json.as_object()? {
            if element == "." {
                continue;
            }
            let inner_object = inner.as_object()?;
            let member = inner_object.is_empty() || inner_object.contains_key(".");
            set.0.insert(canonical(element)?, Node { member, children: Self::from_json(inner)? });
        }
        Some(set)
    }
}

/// An element with its JSON part written as we write it.
fn canonical(element: &str) -> Option<String> {
    let (kind, rest) = element.split_once(':')?;
    match kind {
        "f" => Some(element.to_owned()),
        "k" | "v" => Some(format!("{kind}:{}", serde_json::from_str::<Value>(rest).ok()?)),
        "i" => rest.parse::<i64>().ok().map(|_| element.to_owned()),
        _ => None,
    }
}

/// An element as paths in messages show it.
fn shown(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let mut text = "[".to_owned();
            for (i, (key, value)) in keys.iter().enumerate() {
                let _ = write!(text, "{}{key}={value}", if i == 0 { "" } else { "," });
            }
            text + "]"
        }
        "v" | "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn set(json: Value) -> FieldSet {
        FieldSet::from_json(&json).unwrap()
    }

    #[test]
    fn the_json_form_survives() {
        let json = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {".": {}, "v:\"x\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}},
        });
        assert_eq!(set(json.clone()).to_json(), json);
        assert_eq!(
            set(json).paths(),
            [
                ".metadata.finalizers",
                ".metadata.finalizers[\"x\"]",
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
            ]
        );
        let spaced = set(json!({"k:{ \"name\" : \"a\" }": {}}));
        assert_eq!(spaced.to_json(), json!({"k:{\"name\":\"a\"}": {}}));
        for bad in [json!([]), json!({"x": {}}), json!({"k:{": {}}), json!({"f:a": 1})] {
            assert!(FieldSet::from_json(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn set_algebra() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = set(json!({"f:a": {}, "f:d": {}}));
        assert_eq!(a.union(&b).to_json(), json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}, "f:d": {}}));
        assert_eq!(a.intersection(&b).to_json(), json!({"f:a": {}}));
        assert_eq!(a.difference(&b).to_json(), json!({"f:a": {"f:b": {}}, "f:c": {}}));
        assert_eq!(a.recursive_difference(&b).to_json(), json!({"f:c": {}}));
    }

    /// Sets over a few names, two levels deep.
    fn any_set() -> impl Strategy<Value = FieldSet> {
        proptest::collection::vec((0..3_usize, proptest::option::of(0..3_usize)), 0..6).prop_map(|paths| {
            let names = ["a", "b", "c"];
            let mut set = FieldSet::default();
            for (first, second) in paths {
                match second {
                    Some(second) => set.insert_fields(&[names[first], names[second]]),
                    None => set.insert_fields(&[names[first]]),
                }
            }
            set
        })
    }

    proptest! {
        #[test]
        fn algebra_holds(a in any_set(), b in any_set()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert_eq!(FieldSet::from_json(&a.to_json()).unwrap(), a);
        }
    }
}
