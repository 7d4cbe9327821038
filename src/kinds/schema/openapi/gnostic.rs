//! The protobuf form of an OpenAPI 2 document (`openapi.v2.Document` of google/gnostic).
//!
//! Built from the same JSON trees as the JSON form: only the messages and fields that the documents
//! here have. Extensions are YAML texts; JSON is YAML.

use serde_json::Value;

use super::super::proto::{write_bytes, write_number};

/// A document under construction.
pub struct Document {
    head: Vec<u8>,
    paths: Vec<u8>,
    definitions: Vec<u8>,
}

impl Document {
    pub fn new(title: &str, version: &str) -> Self {
        let mut head = Vec::new();
        write_bytes(&mut head, 1, b"2.0");
        let mut info = Vec::new();
        write_bytes(&mut info, 1, title.as_bytes());
        write_bytes(&mut info, 2, version.as_bytes());
        write_bytes(&mut head, 2, &info);
        Self { head, paths: Vec::new(), definitions: Vec::new() }
    }

    pub fn definition(&mut self, name: &str, schema_tree: &Value) {
        write_bytes(&mut self.definitions, 1, &named(name, &schema(schema_tree)));
    }

    pub fn path(&mut self, path: &str, item: &Value) {
        let mut out = Vec::new();
        for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
            if let Some(tree) = item.get(method) {
                write_bytes(&mut out, number, &operation(tree));
            }
        }
        for tree in list(item, "parameters") {
            write_bytes(&mut out, 9, &parameter(tree));
        }
        write_bytes(&mut self.paths, 2, &named(path, &out));
    }

    pub fn finish(self) -> Vec<u8> {
        let mut out = self.head;
        write_bytes(&mut out, 8, &self.paths);
        write_bytes(&mut out, 9, &self.definitions);
        out
    }
}

/// A `Named…`: name = 1, value = 2.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + value.len() + 8);
    write_bytes(&mut out, 1, name.as_bytes());
    write_bytes(&mut out, 2, value);
    out
}

/// A message with one field of bytes.
fn one(number: u16, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    write_bytes(&mut out, number, bytes);
    out
}

fn list<'a>(tree: &'a Value, name: &str) -> &'a [Value] {
    tree.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text(out: &mut Vec<u8>, number: u16, tree: &Value, name: &str) {
    if let Some(text) = tree.get(name).and_then(Value::as_str) {
        write_bytes(out, number, text.as_bytes());
    }
}

fn texts(out: &mut Vec<u8>, number: u16, tree: &Value, name: &str) {
    for item in list(tree, name).iter().filter_map(Value::as_str) {
        write_bytes(out, number, item.as_bytes());
    }
}

fn flag(out: &mut Vec<u8>, number: u16, tree: &Value, name: &str) {
    if tree.get(name) == Some(&Value::Bool(true)) {
        write_number(out, number, 1);
    }
}

/// The `x-…` entries of a tree as `NamedAny`.
fn extensions(out: &mut Vec<u8>, number: u16, tree: &Value) {
    for (name, value) in tree.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        let any = one(2, value.to_string().as_bytes());
        write_bytes(out, number, &named(name, &any));
    }
}

fn schema(tree: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, tree, "$ref");
    text(&mut out, 2, tree, "format");
    text(&mut out, 4, tree, "description");
    if let Some(default) = tree.get("default") {
        write_bytes(&mut out, 5, &one(2, default.to_string().as_bytes()));
    }
    texts(&mut out, 19, tree, "required");
    if let Some(values) = tree.get("additionalProperties") {
        write_bytes(&mut out, 21, &one(1, &schema(values)));
    }
    if let Some(ty) = tree.get("type").and_then(Value::as_str) {
        write_bytes(&mut out, 22, &one(1, ty.as_bytes()));
    }
    if let Some(items) = tree.get("items") {
        write_bytes(&mut out, 23, &one(1, &schema(items)));
    }
    if let Some(properties) = tree.get("properties").and_then(Value::as_object) {
        let mut all = Vec::new();
        for (name, property) in properties {
            write_bytes(&mut all, 1, &named(name, &schema(property)));
        }
        write_bytes(&mut out, 25, &all);
    }
    extensions(&mut out, 31, tree);
    out
}

fn operation(tree: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    texts(&mut out, 1, tree, "tags");
    text(&mut out, 5, tree, "operationId");
    texts(&mut out, 6, tree, "produces");
    texts(&mut out, 7, tree, "consumes");
    for tree in list(tree, "parameters") {
        write_bytes(&mut out, 8, &parameter(tree));
    }
    let mut responses = Vec::new();
    for (code, tree) in tree.get("responses").and_then(Value::as_object).into_iter().flatten() {
        let mut response = Vec::new();
        text(&mut response, 1, tree, "description");
        if let Some(tree) = tree.get("schema") {
            write_bytes(&mut response, 2, &one(1, &schema(tree)));
        }
        write_bytes(&mut responses, 1, &named(code, &one(1, &response)));
    }
    write_bytes(&mut out, 9, &responses);
    texts(&mut out, 10, tree, "schemes");
    extensions(&mut out, 13, tree);
    out
}

/// A `ParametersItem`: a body, a query or a path parameter.
fn parameter(tree: &Value) -> Vec<u8> {
    let place = tree.get("in").and_then(Value::as_str).unwrap_or_default();
    let mut out = Vec::new();
    let parameter = if place == "body" {
        text(&mut out, 2, tree, "name");
        text(&mut out, 3, tree, "in");
        flag(&mut out, 4, tree, "required");
        if let Some(tree) = tree.get("schema") {
            write_bytes(&mut out, 5, &schema(tree));
        }
        one(1, &out)
    } else {
        let is_query = place == "query";
        flag(&mut out, 1, tree, "required");
        text(&mut out, 2, tree, "in");
        text(&mut out, 3, tree, "description");
        text(&mut out, 4, tree, "name");
        text(&mut out, if is_query { 6 } else { 5 }, tree, "type");
        flag(&mut out, if is_query { 20 } else { 19 }, tree, "uniqueItems");
        one(2, &one(if is_query { 3 } else { 4 }, &out))
    };
    one(1, &parameter)
}

/// The names of a document's definitions.
#[cfg(test)]
pub fn definition_names(document: &[u8]) -> Vec<String> {
    use super::super::proto::Reader;
    let mut names = Vec::new();
    let mut document = Reader(document);
    while let Some((number, wire)) = document.tag().unwrap() {
        let mut definitions = Reader(document.bytes(wire, "document").unwrap());
        while number == 9
            && let Some((_, wire)) = definitions.tag().unwrap()
        {
            let mut named = Reader(definitions.bytes(wire, "definitions").unwrap());
            let (_, wire) = named.tag().unwrap().unwrap();
            names.push(named.text(wire, "name").unwrap().to_owned());
        }
    }
    names
}
