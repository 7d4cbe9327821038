//! Objects in the form a client asked for: whole, as a Table, as metadata only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    negotiate::{Accepted, Encoding, Shape},
    request::Query,
    status::Refusal,
};
use crate::{
    kinds::{Kind, registry, schema::openapi},
    store::Object,
};

/// The heads of Tables by the name of the kind's type, once they were asked for: their descriptions lie
/// packed among the documents'.
static HEADS: Mutex<BTreeMap<&str, Arc<Value>>> = Mutex::new(BTreeMap::new());

/// How much of an object a Table's rows carry (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl IncludeObject {
    /// What a request says.
    pub fn asked(query: &Query) -> Result<Self, Refusal> {
        match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(Refusal::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }
}

/// Turns objects of one kind into the negotiated form.
#[derive(Clone)]
pub struct Renderer {
    pub kind: &'static Kind,
    pub accepted: Accepted,
    pub include: IncludeObject,
    pub now: jiff::Timestamp,
}

impl Renderer {
    /// The object in the version that was asked for, as a tree.
    pub fn tree(&self, object: &Object) -> Value {
        let value = object.value();
        match &self.kind.stored_as {
            Some(stored) => (stored.from_stored)(value),
            None => value,
        }
    }

    /// The object in the version that was asked for, as JSON text.
    fn whole(&self, object: &Object) -> Bytes {
        if self.kind.stored_as.is_none() {
            return object.body().clone();
        }
        self.tree(object).to_string().into()
    }

    /// One object as JSON text in the negotiated shape, without a newline.
    pub fn one(&self, object: &Object) -> Bytes {
        match self.accepted.shape {
            Shape::Whole => self.whole(object),
            _ => self.shaped(self.tree(object), true).to_string().into(),
        }
    }

    /// One tree in the negotiated shape; `headers` says whether a Table names its columns.
    pub fn shaped(&self, value: Value, headers: bool) -> Value {
        match self.accepted.shape {
            Shape::Whole => value,
            Shape::Metadata | Shape::MetadataList => self.metadata(value),
            Shape::Table => {
                let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let columns = if headers { (*self.columns()).clone() } else { Value::Null };
                json!({"kind": "Table", "apiVersion": self.meta_version(), "metadata": metadata,
                    "columnDefinitions": columns, "rows": [self.row(value)]})
            }
        }
    }

    /// A bookmark's object: nothing but a revision.
    pub fn bookmark(&self, revision: &str, initial_events_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.accepted.shape {
            Shape::Whole => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Shape::Metadata | Shape::MetadataList => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": self.meta_version(), "metadata": metadata})
            }
            Shape::Table => json!({"kind": "Table", "apiVersion": self.meta_version(),
                "metadata": {"resourceVersion": revision}, "columnDefinitions": null,
                "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata",
                    "apiVersion": self.meta_version(), "metadata": metadata}}]}),
        }
    }

    fn meta_version(&self) -> String {
        format!("meta.k8s.io/{}", self.accepted.version)
    }

    fn metadata(&self, mut value: Value) -> Value {
        json!({"kind": "PartialObjectMetadata", "apiVersion": self.meta_version(), "metadata": value["metadata"].take()})
    }

    fn columns(&self) -> Arc<Value> {
        let mut heads = HEADS.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(heads.entry(self.kind.schema).or_insert_with(|| Arc::new(head(self.kind))))
    }

    fn row(&self, value: Value) -> Value {
        let mut row = json!({"cells": (self.kind.strategy.cells)(&value, self.now)});
        if let Some(conditions) = completed(&value) {
            row["conditions"] = conditions;
        }
        row["object"] = match self.include {
            IncludeObject::None => Value::Null,
            IncludeObject::Object => value,
            IncludeObject::Metadata => self.metadata(value),
        };
        row
    }

    /// A list as pieces of JSON text, so that a long one is never in memory twice.
    pub fn list(&self, metadata: &Value, items: &[Arc<Object>]) -> Vec<Bytes> {
        let comma = Bytes::from_static(b",");
        let mut pieces = Vec::with_capacity(items.len() * 2 + 2);
        let (head, tail) = match self.accepted.shape {
            Shape::Table => (
                format!(
                    "{{\"kind\":\"Table\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"columnDefinitions\":{},\"rows\":[",
                    self.meta_version(),
                    self.columns()
                ),
                "]}\n",
            ),
            Shape::MetadataList | Shape::Metadata => (
                format!(
                    "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    self.meta_version()
                ),
                "]}\n",
            ),
            Shape::Whole => (
                format!(
                    "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    self.kind.kind,
                    self.kind.api_version()
                ),
                "]}\n",
            ),
        };
        pieces.push(head.into());
        let mut items: Vec<&Arc<Object>> = items.iter().collect();
        if let (Some(rank), Shape::Table) = (self.kind.strategy.table_rank, self.accepted.shape) {
            items.sort_by_cached_key(|object| rank(&object.value()));
        }
        for (index, object) in items.into_iter().enumerate() {
            if index > 0 {
                pieces.push(comma.clone());
            }
            match self.accepted.shape {
                Shape::Table => pieces.push(self.row(self.tree(object)).to_string().into()),
                Shape::Metadata | Shape::MetadataList => {
                    pieces.push(self.metadata(self.tree(object)).to_string().into());
                }
                Shape::Whole => pieces.extend(untyped(&self.whole(object))),
            }
        }
        pieces.push(Bytes::from_static(tail.as_bytes()));
        pieces
    }

    /// The list as one tree (YAML, pretty printing).
    pub fn list_tree(&self, metadata: &Value, items: &[Arc<Object>]) -> Value {
        serde_json::from_slice(&self.list(metadata, items).concat()).unwrap_or_default()
    }

    /// Whether an answer can be made of stored text without a tree.
    pub fn is_text(&self, pretty: bool) -> bool {
        self.accepted.encoding == Encoding::Json && !pretty
    }
}

/// The columns of a kind's Tables.
fn head(kind: &'static Kind) -> Value {
    let paths = kind.columns.iter().map(|c| c.description);
    let described = openapi::descriptions(registry::stored(kind).schema, paths).unwrap_or_default();
    let columns = kind.columns.iter().zip(described.into_iter().chain(std::iter::repeat(String::new())));
    columns
        .map(|(c, said)| {
            let description = if c.description.contains(' ') { c.description } else { &said };
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": description,
                "priority": c.priority})
        })
        .collect()
}

/// The conditions of the row of a pod that has come to its end.
fn completed(value: &Value) -> Option<Value> {
    let message = match value["status"]["phase"].as_str() {
        Some("Succeeded") => "The pod has completed successfully.",
        Some("Failed") => "The pod failed.",
        _ => return None,
    };
    (value["kind"] == "Pod").then(|| {
        json!([{"type": "Completed", "status": "True", "reason": value["status"]["phase"], "message": message}])
    })
}

/// The slices of a compact object text that leave out its own `apiVersion` and `kind`: the items
/// of upstream's lists have neither.
fn untyped(text: &Bytes) -> Vec<Bytes> {
    let members = members(text);
    let close = members.last().map_or(1, |member| member.end);
    // Neighbours that stay are one slice.
    let mut runs: Vec<std::ops::Range<usize>> = Vec::with_capacity(3);
    for member in members {
        if matches!(&text[member.key.clone()], b"apiVersion" | b"kind") {
            continue;
        }
        let begin = member.key.start - 1;
        match runs.last_mut() {
            Some(run) if run.end + 1 == begin => run.end = member.end,
            _ => runs.push(begin..member.end),
        }
    }
    let mut kept = vec![text.slice(..1)];
    for (index, run) in runs.into_iter().enumerate() {
        if index > 0 {
            kept.push(Bytes::from_static(b","));
        }
        kept.push(text.slice(run));
    }
    kept.push(text.slice(close..));
    kept
}

/// A member of a JSON object's text: where its key stands (without quotes) and its value ends.
struct Member {
    key: std::ops::Range<usize>,
    end: usize,
}

/// The members of a compact JSON object, as serde_json writes it.
fn members(text: &[u8]) -> Vec<Member> {
    let mut found = Vec::new();
    let mut at = 1;
    while text.get(at) == Some(&b'"') {
        let key_end = string_end(text, at);
        let mut end = key_end + 2;
        let mut depth = 0_u32;
        while let Some(byte) = text.get(end) {
            match byte {
                b'"' => end = string_end(text, end),
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => depth -= 1,
                b',' | b'}' if depth == 0 => break,
                _ => {}
            }
            end += 1;
        }
        found.push(Member { key: at + 1..key_end, end });
        at = end + 1;
    }
    found
}

/// Where the string ends that begins at `at` (its closing quote).
fn string_end(text: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(byte) = text.get(end) {
        match byte {
            b'"' => break,
            b'\\' => end += 2,
            _ => end += 1,
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_lists_name_no_type() {
        let cases = [
            json!({"apiVersion": "v1", "data": {"kind": "x", "a\"}": "\\"}, "kind": "ConfigMap", "metadata": {}}),
            json!({"addressType": "IPv4", "apiVersion": "v1", "kind": "EndpointSlice"}),
            json!({"apiVersion": "v1", "kind": "Odd"}),
            json!({"a": [1, {"b": "]"}], "c": null}),
        ];
        for mut value in cases {
            let text = untyped(&value.to_string().into()).concat();
            for field in ["apiVersion", "kind"] {
                crate::kinds::remove(&mut value, field);
            }
            let text = String::from_utf8(text).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value), "{text}");
        }
    }
}
