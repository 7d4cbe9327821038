//! Types as OpenAPI definitions.

use std::{
    collections::BTreeSet,
    io::{self, Read as _},
};

use flate2::read::ZlibDecoder;
use serde_json::{Map, Value, json};

use super::{
    super::{Elem, Field, ListKind, PatchKind, Shape, TYPES, Type},
    Dialect,
};
use crate::kinds::{Kind, Subresource};

/// The descriptions of all types and fields, in the order of the table, zlib.
static DOCS: &[u8] = include_bytes!("../docs.z");
/// Starts a text that is the same as an earlier one; its number follows.
const SAME_AS: char = '\u{1}';

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Definitions in one dialect, with their descriptions unpacked.
pub struct Schemas {
    dialect: Dialect,
    text: String,
    /// Where each text starts and ends.
    spans: Vec<(u32, u32)>,
    /// The number of each type's own text.
    first: Vec<u32>,
    /// Group and version of every row: DeleteOptions and WatchEvent belong to all.
    group_versions: BTreeSet<(&'static str, &'static str)>,
}

impl Schemas {
    pub fn load<'a>(dialect: Dialect, kinds: impl IntoIterator<Item = &'a Kind>) -> io::Result<Self> {
        let mut text = String::new();
        ZlibDecoder::new(DOCS).read_to_string(&mut text)?;
        let mut spans = Vec::with_capacity(4096);
        let mut start = 0_u32;
        for part in text.split('\0') {
            let end = start + part.len() as u32;
            spans.push((start, end));
            start = end + 1;
        }
        let mut first = Vec::with_capacity(TYPES.len());
        let mut number = 0_u32;
        for ty in TYPES {
            first.push(number);
            number += 1 + ty.fields.len() as u32;
        }
        let group_versions = kinds.into_iter().map(|kind| (kind.group, kind.version)).collect();
        Ok(Self { dialect, text, spans, first, group_versions })
    }

    fn text(&self, number: u32) -> &str {
        let Some(&(start, end)) = self.spans.get(number as usize) else { return "" };
        let text = &self.text[start as usize..end as usize];
        match text.strip_prefix(SAME_AS).and_then(|number| number.parse().ok()) {
            // The generator lets a text refer only to one that is written out.
            Some(earlier) if earlier < number => self.text(earlier),
            _ => text,
        }
    }

    /// The description of the field at a path below a type.
    pub fn description(&self, name: &str, path: &str) -> Option<&str> {
        let mut index = position(name)?;
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            let fields = TYPES[index].fields;
            let at = fields.binary_search_by(|field| field.name.cmp(step)).ok()?;
            if steps.peek().is_none() {
                return Some(self.text(self.first[index] + 1 + at as u32));
            }
            index = target(fields[at].elem)?;
        }
        None
    }

    /// A type's name and definition.
    pub fn definition(&self, index: usize) -> (&'static str, Value) {
        let ty = &TYPES[index];
        let number = self.first[index];
        let mut schema = Map::new();
        describe(&mut schema, self.text(number));
        if let Some(special) = ty.special {
            self.special(&mut schema, special);
            return (ty.name, Value::Object(schema));
        }
        schema.insert("type".to_owned(), json!("object"));
        let mut properties = Map::new();
        for (field, number) in ty.fields.iter().zip(number + 1..) {
            properties.insert(field.name.to_owned(), self.property(ty, field, self.text(number)));
        }
        let required: Vec<_> = ty.fields.iter().filter(|f| f.is_required()).map(|f| f.name).collect();
        if !required.is_empty() {
            schema.insert("required".to_owned(), json!(required));
        }
        if !properties.is_empty() {
            schema.insert("properties".to_owned(), Value::Object(properties));
        }
        if ty.atomic {
            schema.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        }
        let kinds = self.kinds_of(ty);
        if !kinds.is_empty() {
            schema.insert("x-kubernetes-group-version-kind".to_owned(), Value::Array(kinds));
        }
        (ty.name, Value::Object(schema))
    }

    fn kinds_of(&self, ty: &Type) -> Vec<Value> {
        let kind = |(group, version): (&str, &str)| json!({"group": group, "version": version, "kind": ty.short_name()});
        match ty.name.strip_prefix(META) {
            Some("DeleteOptions" | "WatchEvent") => self.group_versions.iter().copied().map(kind).collect(),
            _ if ty.is_kind => vec![kind((ty.group, ty.version))],
            _ => Vec::new(),
        }
    }

    fn property(&self, ty: &Type, field: &'static Field, text: &str) -> Value {
        let item = || self.with_default(self.elem(field.elem), zero(field.elem));
        let mut schema = match field.shape {
            Shape::One => self.with_default(self.elem(field.elem), default_of(ty, field)),
            Shape::List => object(json!({"type": "array", "items": item()})),
            Shape::Map => object(json!({"type": "object", "additionalProperties": item()})),
            Shape::MapOfLists => object(json!({
                "type": "object",
                "additionalProperties": {"type": "array", "items": item()},
            })),
        };
        describe(&mut schema, text);
        let merge = field.merge();
        let mut extend = |name: &str, value: Value| schema.insert(format!("x-kubernetes-{name}"), value);
        match merge.list {
            ListKind::None => {}
            ListKind::Atomic => drop(extend("list-type", json!("atomic"))),
            ListKind::Set => drop(extend("list-type", json!("set"))),
            ListKind::Map => {
                extend("list-type", json!("map"));
                extend("list-map-keys", json!(merge.keys));
            }
        }
        if field.shape == Shape::Map && field.is_atomic() {
            extend("map-type", json!("atomic"));
        }
        let strategy = match (merge.patch, merge.retain_keys) {
            (PatchKind::None, false) => None,
            (PatchKind::None, true) => Some("retainKeys"),
            (PatchKind::Merge, false) => Some("merge"),
            (PatchKind::Merge, true) => Some("merge,retainKeys"),
            (PatchKind::Replace, _) => Some("replace"),
        };
        if let Some(strategy) = strategy {
            extend("patch-strategy", json!(strategy));
        }
        if !merge.patch_key.is_empty() {
            extend("patch-merge-key", json!(merge.patch_key));
        }
        Value::Object(schema)
    }

    /// Only version 3 names defaults (kube-openapi's `PruneDefaults`).
    fn with_default(&self, mut schema: Map<String, Value>, default: Option<Value>) -> Map<String, Value> {
        if let Some(default) = default.filter(|_| self.dialect == Dialect::V3) {
            schema.insert("default".to_owned(), default);
        }
        schema
    }

    /// The schema of one element. In version 3 a reference has no neighbours, so it stands in `allOf`.
    fn elem(&self, elem: Elem) -> Map<String, Value> {
        match elem {
            Elem::String => object(json!({"type": "string"})),
            Elem::Bool => object(json!({"type": "boolean"})),
            Elem::Int32 => object(json!({"type": "integer", "format": "int32"})),
            Elem::Int64 => object(json!({"type": "integer", "format": "int64"})),
            Elem::Double => object(json!({"type": "number", "format": "double"})),
            Elem::Bytes => object(json!({"type": "string", "format": "byte"})),
            _ => {
                let name = target(elem).map_or("", |index| TYPES[index].name);
                let reference = json!({"$ref": self.dialect.reference(name)});
                match self.dialect {
                    Dialect::V2 => object(reference),
                    Dialect::V3 => object(json!({"allOf": [reference]})),
                }
            }
        }
    }

    fn special(&self, schema: &mut Map<String, Value>, elem: Elem) {
        let value = match (elem, self.dialect) {
            (Elem::Quantity, Dialect::V2) => json!({"type": "string"}),
            (Elem::Quantity, Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (Elem::IntOrString, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
            (Elem::IntOrString, Dialect::V3) => {
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
            }
            (Elem::Time | Elem::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
            (Elem::Raw | Elem::FieldsV1, _) => json!({"type": "object"}),
            _ => json!({}),
        };
        schema.extend(object(value));
    }
}

/// The positions of all types that the documents of these rows name.
pub fn used_by(rows: &[&Kind]) -> Vec<usize> {
    let mut names = vec![
        format!("{META}DeleteOptions"),
        format!("{META}Status"),
        format!("{META}Patch"),
        format!("{META}WatchEvent"),
    ];
    names.extend(super::paths::DOCUMENT_TYPES.iter().map(|name| (*name).to_owned()));
    for row in rows {
        names.push(row.schema.to_owned());
        names.push(format!("{}List", row.schema));
        names.extend(row.subresources.iter().filter_map(|s| subresource_type(*s)).map(str::to_owned));
    }
    let mut open: Vec<usize> = names.iter().filter_map(|name| position(name)).collect();
    let mut used = BTreeSet::new();
    while let Some(index) = open.pop() {
        if used.insert(index) {
            open.extend(TYPES[index].fields.iter().filter_map(|field| target(field.elem)));
        }
    }
    used.into_iter().collect()
}

/// The type a subresource's requests carry when it is not the kind's own.
pub fn subresource_type(subresource: Subresource) -> Option<&'static str> {
    match subresource {
        Subresource::Scale => Some("io.k8s.api.autoscaling.v1.Scale"),
        Subresource::Other("binding") => Some("io.k8s.api.core.v1.Binding"),
        Subresource::Other("eviction") => Some("io.k8s.api.policy.v1.Eviction"),
        Subresource::Other("token") => Some("io.k8s.api.authentication.v1.TokenRequest"),
        Subresource::Status | Subresource::Other(_) => None,
    }
}

/// The value of an element that nobody has set, as Go has it; none where nothing is a value of its own.
fn zero(elem: Elem) -> Option<Value> {
    match elem {
        Elem::String => Some(json!("")),
        Elem::Bool => Some(json!(false)),
        Elem::Int32 | Elem::Int64 | Elem::Double => Some(json!(0)),
        Elem::Type(_) => Some(json!({})),
        _ => None,
    }
}

/// Upstream's `+default` markers that do not say the zero value.
const MARKED: &[(&str, &str, &str)] = &[
    ("AzureDiskVolumeSource", "cachingMode", "ReadWrite"),
    ("AzureDiskVolumeSource", "fsType", "ext4"),
    ("AzureDiskVolumeSource", "kind", "Shared"),
    ("ContainerPort", "protocol", "TCP"),
    ("ISCSIPersistentVolumeSource", "iscsiInterface", "default"),
    ("ISCSIVolumeSource", "iscsiInterface", "default"),
    ("RBDPersistentVolumeSource", "keyring", "/etc/ceph/keyring"),
    ("RBDPersistentVolumeSource", "pool", "rbd"),
    ("RBDPersistentVolumeSource", "user", "admin"),
    ("RBDVolumeSource", "keyring", "/etc/ceph/keyring"),
    ("RBDVolumeSource", "pool", "rbd"),
    ("RBDVolumeSource", "user", "admin"),
    ("ScaleIOPersistentVolumeSource", "fsType", "xfs"),
    ("ScaleIOPersistentVolumeSource", "storageMode", "ThinProvisioned"),
    ("ScaleIOVolumeSource", "fsType", "xfs"),
    ("ScaleIOVolumeSource", "storageMode", "ThinProvisioned"),
    ("ServicePort", "protocol", "TCP"),
];
/// Types with the name of an object in their own namespace, whose marker says the empty text.
const WITH_LOCAL_NAME: &[&str] = &[
    "ConfigMapEnvSource",
    "ConfigMapKeySelector",
    "ConfigMapProjection",
    "ConfigMapVolumeSource",
    "LocalObjectReference",
    "SecretEnvSource",
    "SecretKeySelector",
    "SecretProjection",
];

/// The default of a single field: that of its marker; of a struct the empty one; of a plain value that is
/// always written the zero one.
fn default_of(ty: &Type, field: &Field) -> Option<Value> {
    if let Some(own) = ty.name.strip_prefix("io.k8s.api.core.v1.") {
        let marked = MARKED.iter().find(|(of, name, _)| *of == own && *name == field.name);
        if let Some((.., value)) = marked {
            return Some(json!(value));
        }
        if field.name == "name" && WITH_LOCAL_NAME.contains(&own) {
            return Some(json!(""));
        }
        if own == "AzureDiskVolumeSource" && field.name == "readOnly" {
            return Some(json!(false));
        }
    }
    match field.elem {
        _ if field.is_pointer() => None,
        Elem::Type(_) => Some(json!({})),
        _ if field.is_required() || field.is_always_written() => zero(field.elem),
        _ => None,
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn describe(schema: &mut Map<String, Value>, text: &str) {
    if !text.is_empty() {
        schema.insert("description".to_owned(), Value::from(text));
    }
}

fn position(name: &str) -> Option<usize> {
    TYPES.binary_search_by(|ty| ty.name.cmp(name)).ok()
}

/// The type that an element refers to.
fn target(elem: Elem) -> Option<usize> {
    match elem {
        Elem::Type(index) => Some(usize::from(index)),
        Elem::String | Elem::Bool | Elem::Int32 | Elem::Int64 | Elem::Double | Elem::Bytes => None,
        special => TYPES.iter().position(|ty| ty.special == Some(special)),
    }
}
