//! Typed decoding of an untyped tree: what Go's structs do to a body.
//!
//! In: a tree and its type. Out: the tree as upstream would write it back (unknown fields gone, zero
//! values that Go omits gone, plain structs present, times, quantities and base64 in their canonical
//! form), the unknown fields by path, or an error in the words of Go's `encoding/json`.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value};

use super::{Elem, Field, Shape, Type, lookup};
use crate::{
    clock::{rfc3339_micros, rfc3339_seconds},
    kinds::quantity::Quantity,
};

/// Structs within structs. The deepest of Kubernetes' own is a CRD's schema, two JSON levels a struct, and
/// the parsers stop at 128 levels.
pub const DEPTH_MAX: usize = 64;
/// Problems told of one body, as upstream.
const PROBLEMS_MAX: usize = 100;

/// Whether unknown fields are told or only dropped (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `Strict` and `Warn`.
    Tell,
    /// `Ignore`.
    Drop,
}

/// What strict decoding objects to, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The path of a field that the type does not have.
    Unknown(String),
    /// The path of a key that stands twice.
    Duplicate(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(path) => write!(f, "unknown field {path:?}"),
            Self::Duplicate(path) => write!(f, "duplicate field {path:?}"),
        }
    }
}

/// Why a tree does not fit its type; the texts are Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("json: cannot unmarshal {found} into Go struct field {go_struct}.{path} of type {go_type}")]
    Type { found: String, go_struct: &'static str, path: String, go_type: String },
    #[error("json: cannot unmarshal {found} into Go value of type {go_type}")]
    Root { found: String, go_type: String },
    /// A value with a form of its own: time, quantity, base64.
    #[error("{0}")]
    Form(String),
    #[error("exceeded max depth")]
    TooDeep,
}

/// Fits `value` to `ty`.
pub fn decode(mut value: Value, ty: &'static Type, mode: Mode) -> Result<(Value, Vec<Problem>), DecodeError> {
    let mut decoder = Decoder { tell: mode == Mode::Tell, unknown: Vec::new() };
    decoder.object(&mut value, ty, 0).map_err(|refused| match refused {
        Refused::Kind { found, .. } => DecodeError::Root { found, go_type: ty.go_name().to_owned() },
        Refused::Error(error) => error,
    })?;
    let problems = decoder
        .unknown
        .into_iter()
        .map(|path| Problem::Unknown(path.trim_start_matches('.').to_owned()))
        .collect();
    Ok((value, problems))
}

/// The JSON form of a zero value of `ty`, as Go writes it: `{}` with its plain structs and numbers.
pub fn zero(ty: &'static Type) -> Value {
    let mut object = Map::new();
    fill(&mut object, ty);
    Value::Object(object)
}

struct Decoder {
    tell: bool,
    /// Paths from the level that is being read downwards; each level puts its own segment before.
    unknown: Vec<String>,
}

enum Refused {
    /// The wrong kind of JSON value, here; the field around it makes the error.
    Kind {
        found: String,
        /// It was an item of the field's list or map, not the field.
        item: bool,
    },
    Error(DecodeError),
}

impl Decoder {
    fn object(&mut self, value: &mut Value, ty: &'static Type, depth: usize) -> Result<(), Refused> {
        if depth > DEPTH_MAX {
            return Err(Refused::Error(DecodeError::TooDeep));
        }
        let Value::Object(object) = value else { return Err(refuse(value)) };
        let mut failed = None;
        object.retain(|name, value| {
            if failed.is_some() {
                return true;
            }
            let Some(field) = ty.field(name) else {
                if self.tell && self.unknown.len() < PROBLEMS_MAX {
                    self.unknown.push(format!(".{name}"));
                }
                return false;
            };
            let before = self.unknown.len();
            if let Err(refused) = self.field(value, field, depth) {
                failed = Some(place(refused, ty, field));
                return true;
            }
            self.prefix(before, || format!(".{name}"));
            is_written(value, field)
        });
        if let Some(error) = failed {
            return Err(Refused::Error(error));
        }
        fill(object, ty);
        Ok(())
    }

    fn prefix(&mut self, from: usize, segment: impl FnOnce() -> String) {
        if self.unknown.len() > from {
            let segment = segment();
            for path in &mut self.unknown[from..] {
                path.insert_str(0, &segment);
            }
        }
    }

    fn field(&mut self, value: &mut Value, field: &'static Field, depth: usize) -> Result<(), Refused> {
        if value.is_null() {
            return Ok(());
        }
        match field.shape {
            Shape::One => self.elem(value, field.elem, depth),
            Shape::List => self.list(value, field.elem, depth),
            Shape::Map | Shape::MapOfLists => {
                let Value::Object(map) = value else { return Err(refuse(value)) };
                for (key, value) in map.iter_mut() {
                    let before = self.unknown.len();
                    if field.shape == Shape::MapOfLists {
                        self.list(value, field.elem, depth)?;
                    } else {
                        self.item(value, field.elem, depth).map_err(as_item)?;
                    }
                    self.prefix(before, || format!(".{key}"));
                }
                Ok(())
            }
        }
    }

    fn list(&mut self, value: &mut Value, elem: Elem, depth: usize) -> Result<(), Refused> {
        let items = match value {
            Value::Array(items) => items,
            Value::Null => return Ok(()),
            other => return Err(refuse(other)),
        };
        for (i, item) in items.iter_mut().enumerate() {
            let before = self.unknown.len();
            self.item(item, elem, depth).map_err(as_item)?;
            self.prefix(before, || format!("[{i}]"));
        }
        Ok(())
    }

    /// An item of a list or map: `null` is the zero value, where a field would be absent.
    fn item(&mut self, value: &mut Value, elem: Elem, depth: usize) -> Result<(), Refused> {
        if value.is_null()
            && let Some(zero) = zero_elem(elem)
        {
            *value = zero;
        }
        self.elem(value, elem, depth)
    }

    fn elem(&mut self, value: &mut Value, elem: Elem, depth: usize) -> Result<(), Refused> {
        let fits = match elem {
            Elem::String => value.is_string(),
            Elem::Bool => value.is_boolean(),
            Elem::Int32 => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Elem::Int64 => value.as_i64().is_some(),
            Elem::Double => value.is_number(),
            Elem::IntOrString => {
                value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            Elem::Bytes => return bytes(value),
            Elem::Quantity => return quantity(value),
            Elem::Time | Elem::MicroTime => return time(value, elem),
            Elem::Raw | Elem::FieldsV1 | Elem::Json => true,
            Elem::SchemaOrArray | Elem::SchemaOrBool | Elem::SchemaOrStrings => {
                return self.schema_or(value, depth);
            }
            Elem::Type(_) => {
                let ty = elem.as_type().expect("the table's references resolve (tested)");
                return self.object(value, ty, depth + 1);
            }
        };
        match value {
            _ if fits => Ok(()),
            Value::Number(number) if matches!(elem, Elem::Int32 | Elem::Int64 | Elem::IntOrString) => {
                Err(Refused::Kind { found: format!("number {number}"), item: false })
            }
            other => Err(refuse(other)),
        }
    }

    /// `JSONSchemaProps`, or what may stand in its place.
    fn schema_or(&mut self, value: &mut Value, depth: usize) -> Result<(), Refused> {
        let ty = lookup("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .expect("the table has custom resource definitions (tested)");
        match value {
            Value::Object(_) => self.object(value, ty, depth + 1),
            Value::Array(items) => {
                for item in items.iter_mut().filter(|item| item.is_object()) {
                    self.object(item, ty, depth + 1)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn refuse(value: &Value) -> Refused {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Refused::Kind { found: found.to_owned(), item: false }
}

fn as_item(refused: Refused) -> Refused {
    match refused {
        Refused::Kind { found, .. } => Refused::Kind { found, item: true },
        Refused::Error(error) => Refused::Error(error),
    }
}

/// Turns a refusal inside `field` of `ty` into Go's error; its path has no list positions.
fn place(refused: Refused, ty: &'static Type, field: &'static Field) -> DecodeError {
    match refused {
        Refused::Kind { found, item } => DecodeError::Type {
            go_type: go_type(field, item, &found),
            found,
            go_struct: ty.short_name(),
            path: field.name.to_owned(),
        },
        Refused::Error(DecodeError::Type { found, go_struct, path, go_type }) => {
            DecodeError::Type { found, go_struct, path: format!("{}.{path}", field.name), go_type }
        }
        Refused::Error(other) => other,
    }
}

/// The Go type of `field`, or of its items.
fn go_type(field: &Field, item: bool, found: &str) -> String {
    let elem = match field.elem {
        Elem::Bool => "bool",
        Elem::Int32 => "int32",
        Elem::Int64 => "int64",
        Elem::Double => "float64",
        Elem::Bytes => "[]uint8",
        // Its own UnmarshalJSON reads what does not start with a quote as a number.
        Elem::IntOrString if found != "string" => "int32",
        Elem::Type(_) => field.elem.as_type().map_or("", Type::go_name),
        _ => "string",
    };
    match field.shape {
        Shape::One => elem.to_owned(),
        _ if item => elem.to_owned(),
        Shape::List => format!("[]{elem}"),
        Shape::Map => format!("map[string]{elem}"),
        Shape::MapOfLists => format!("map[string][]{elem}"),
    }
}

fn form(error: impl fmt::Display) -> Refused {
    Refused::Error(DecodeError::Form(error.to_string()))
}

/// Base64; line breaks are dropped as Go does.
fn bytes(value: &mut Value) -> Result<(), Refused> {
    let Value::String(text) = value else { return Err(refuse(value)) };
    if text.contains(['\r', '\n']) {
        text.retain(|c| c != '\r' && c != '\n');
    }
    let position = match BASE64.decode(text.as_bytes()) {
        Ok(_) => return Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => at,
        Err(base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding) => {
            text.len() / 4 * 4
        }
    };
    Err(form(format_args!("illegal base64 data at input byte {position}")))
}

/// A quantity in its canonical form.
fn quantity(value: &mut Value) -> Result<(), Refused> {
    if !(value.is_string() || value.is_number()) {
        return Err(form(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ));
    }
    let canonical = Quantity::from_json(value).map_err(form)?.to_string();
    if value.as_str() != Some(&canonical) {
        *value = Value::String(canonical);
    }
    Ok(())
}

/// RFC 3339 in UTC, in whole seconds or with six decimals.
fn time(value: &mut Value, elem: Elem) -> Result<(), Refused> {
    let Value::String(text) = value else { return Err(refuse(value)) };
    let (layout, write): (_, fn(jiff::Timestamp) -> String) = match elem {
        Elem::MicroTime => ("2006-01-02T15:04:05.000000Z07:00", rfc3339_micros),
        _ => ("2006-01-02T15:04:05Z07:00", rfc3339_seconds),
    };
    let canonical = match text.parse::<jiff::Timestamp>() {
        Ok(time) => write(time),
        Err(_) => {
            return Err(form(format_args!(
                "parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""
            )));
        }
    };
    if *text != canonical {
        *text = canonical;
    }
    Ok(())
}

/// Whether Go would write the value back.
fn is_written(value: &Value, field: &Field) -> bool {
    match value {
        Value::Null => false,
        _ if field.is_required() || field.is_pointer() || field.is_always_written() => true,
        Value::Array(items) if field.shape == Shape::List => !items.is_empty(),
        Value::Object(map) => field.shape == Shape::One || !map.is_empty(),
        Value::Bool(on) => *on || field.elem != Elem::Bool,
        Value::Number(number) => {
            !matches!(field.elem, Elem::Int32 | Elem::Int64 | Elem::Double | Elem::IntOrString)
                || number.as_f64() != Some(0.0)
        }
        Value::String(text) => {
            !matches!(field.elem, Elem::String | Elem::Bytes | Elem::IntOrString) || !text.is_empty()
        }
        Value::Array(_) => true,
    }
}

/// Adds what Go always writes.
fn fill(object: &mut Map<String, Value>, ty: &'static Type) {
    for field in ty.fields.iter().filter(|field| field.is_always_written()) {
        if !object.contains_key(field.name)
            && let Some(zero) = zero_elem(field.elem)
        {
            object.insert(field.name.to_owned(), zero);
        }
    }
}

fn zero_elem(elem: Elem) -> Option<Value> {
    Some(match elem {
        Elem::String | Elem::Bytes => Value::String(String::new()),
        Elem::Bool => Value::Bool(false),
        Elem::Int32 | Elem::Int64 | Elem::Double => Value::from(0),
        Elem::Quantity => Value::String("0".to_owned()),
        Elem::Type(_) => zero(elem.as_type()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ty(name: &str) -> &'static Type {
        lookup(&format!("io.k8s.api.{name}")).unwrap()
    }

    fn decoded(value: Value, name: &str) -> Value {
        decode(value, ty(name), Mode::Drop).unwrap().0
    }

    #[test]
    fn unknown_fields_are_dropped_and_told_by_path() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "foo": 1,
            "metadata": {"name": "a", "labels": {"x": "y"}, "bar": {}},
            "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "Image": "i", "ports": [{"containerPort": 1, "x": 1}]}]},
        });
        let (value, problems) = decode(pod, ty("core.v1.Pod"), Mode::Tell).unwrap();
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "unknown field \"foo\"",
                "unknown field \"metadata.bar\"",
                "unknown field \"spec.containers[1].Image\"",
                "unknown field \"spec.containers[1].ports[0].x\"",
            ]
        );
        assert_eq!(
            value,
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "status": {},
                "spec": {"containers": [
                    {"name": "c", "image": "i", "resources": {}},
                    {"name": "d", "ports": [{"containerPort": 1}], "resources": {}},
                ]},
            })
        );
    }

    #[test]
    fn wrong_kinds_are_refused_in_gos_words() {
        let deployment = "apps.v1.Deployment";
        let pod = |container: Value| json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        let cases = [
            (
                deployment,
                json!({"spec": {"replicas": "3"}}),
                "string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                deployment,
                json!({"spec": {"replicas": 1.5}}),
                "number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                deployment,
                json!({"spec": {"replicas": 3_000_000_000_i64}}),
                "number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                deployment,
                pod(json!({"env": [{"name": "a", "value": 1}]})),
                "number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
            ),
            (
                deployment,
                pod(json!("x")),
                "string into Go struct field PodSpec.spec.template.spec.containers of type v1.Container",
            ),
            (
                deployment,
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                deployment,
                json!({"metadata": {"labels": {"a": true}}}),
                "bool into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                deployment,
                json!({"metadata": {"labels": "a"}}),
                "string into Go struct field ObjectMeta.metadata.labels of type map[string]string",
            ),
            (
                deployment,
                json!({"metadata": []}),
                "array into Go struct field Deployment.metadata of type v1.ObjectMeta",
            ),
            (deployment, json!([]), "array into Go value of type v1.Deployment"),
            (
                "core.v1.ConfigMap",
                json!({"data": {"a": 1}}),
                "number into Go struct field ConfigMap.data of type string",
            ),
        ];
        for (name, value, text) in cases {
            let error = decode(value, ty(name), Mode::Drop).unwrap_err();
            assert_eq!(error.to_string(), format!("json: cannot unmarshal {text}"));
        }
    }

    #[test]
    fn values_get_their_canonical_form() {
        let pod = json!({
            "metadata": {"creationTimestamp": "2026-01-02T03:04:05.6+01:00", "deletionTimestamp": null},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]},
        });
        let pod = decoded(pod, "core.v1.Pod");
        assert_eq!(pod["metadata"], json!({"creationTimestamp": "2026-01-02T02:04:05Z"}));
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["limits"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
        let lease = decoded(json!({"spec": {"renewTime": "2026-01-02T03:04:05Z"}}), "coordination.v1.Lease");
        assert_eq!(lease["spec"]["renewTime"], "2026-01-02T03:04:05.000000Z");
        let secret = decoded(json!({"data": {"a": "YWJj\nZGVm", "b": ""}}), "core.v1.Secret");
        assert_eq!(secret["data"], json!({"a": "YWJjZGVm", "b": ""}));
    }

    #[test]
    fn malformed_values_are_refused() {
        let cases = [
            ("core.v1.Secret", json!({"data": {"a": "!!!!"}}), "illegal base64 data at input byte 0"),
            (
                "core.v1.Pod",
                json!({"metadata": {"creationTimestamp": "now"}}),
                "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\"",
            ),
            (
                "core.v1.ResourceRequirements",
                json!({"limits": {"cpu": "x"}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ];
        for (name, value, text) in cases {
            assert_eq!(decode(value, ty(name), Mode::Drop).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn zero_values_are_written_as_go_writes_them() {
        let deployment = json!({
            "metadata": {"name": "a", "labels": {}, "annotations": null, "finalizers": []},
            "spec": {
                "replicas": 0, "paused": false, "minReadySeconds": 0, "selector": {}, "revisionHistoryLimit": null,
                "template": {"spec": {
                    "containers": [], "hostNetwork": false, "terminationGracePeriodSeconds": 0,
                    "volumes": [{"name": "v", "emptyDir": {}}], "nodeName": "",
                }},
            },
        });
        assert_eq!(
            decoded(deployment, "apps.v1.Deployment"),
            json!({
                "metadata": {"name": "a"},
                "spec": {
                    "replicas": 0, "selector": {}, "strategy": {},
                    "template": {"metadata": {}, "spec": {
                        "containers": [], "terminationGracePeriodSeconds": 0,
                        "volumes": [{"name": "v", "emptyDir": {}}],
                    }},
                },
                "status": {},
            })
        );
        assert_eq!(
            decoded(json!({}), "core.v1.Service"),
            json!({"metadata": {}, "spec": {}, "status": {"loadBalancer": {}}})
        );
        let set = decoded(json!({"spec": {"selector": null}}), "apps.v1.ReplicaSet");
        assert_eq!(set["status"], json!({"replicas": 0}));
    }

    #[test]
    fn json_values_are_left_as_they_are() {
        let schema = json!({"additionalProperties": false, "default": 0, "enum": ["", 0], "items": {"type": "string", "x": 1}});
        let ty = lookup("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
        let (value, problems) = decode(schema, ty, Mode::Tell).unwrap();
        assert_eq!(problems, [Problem::Unknown("items.x".to_owned())]);
        assert_eq!(
            value,
            json!({"additionalProperties": false, "default": 0, "enum": ["", 0], "items": {"type": "string"}})
        );
    }

    #[test]
    fn depth_is_bounded() {
        let mut schema = json!({});
        for _ in 0..DEPTH_MAX * 2 {
            schema = json!({"not": schema});
        }
        let ty = lookup("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
        assert_eq!(decode(schema, ty, Mode::Drop).unwrap_err(), DecodeError::TooDeep);
    }
}
