//! Kubernetes' protobuf encoding (`application/vnd.kubernetes.protobuf`) of JSON trees.
//!
//! An object is `k8s\0` and a `runtime.Unknown` around the message of its type; numbers and wire types
//! come from the schema. Encoding leaves zero values out (readers of proto2 see the same object).
//! Bounded in depth and in the number of values; no input panics.
//! Source: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`, the protobuf encoding guide.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value};

use super::{
    DecodeError, Elem, Field, Mode, Shape, Type, decode::DEPTH_MAX, decode::decode as fit, json::VALUES_MAX,
    lookup,
};

/// What every object starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are no object, or an object has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum ProtoError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("proto: unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Varint,
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType { wire: u8, field: &'static str },
    #[error("proto: field {field} is no valid UTF-8")]
    Utf8 { field: &'static str },
    #[error("proto: field {field} holds no JSON: {source}")]
    Json { field: &'static str, source: serde_json::Error },
    #[error("proto: exceeded max depth")]
    TooDeep,
    #[error("proto: more than {VALUES_MAX} values")]
    TooMany,
    #[error("{0}")]
    Fit(#[from] DecodeError),
    /// The tree was not decoded against its type before.
    #[error("proto: field {field} does not fit its type")]
    Mismatch { field: &'static str },
}

/// An object's outer message.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    /// The message of the object's type.
    pub raw: &'a [u8],
    /// The media type of `raw`; empty is protobuf.
    pub content_type: String,
}

/// Opens the outer message.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, ProtoError> {
    let mut body = Reader(bytes.strip_prefix(MAGIC).ok_or(ProtoError::Magic)?);
    let mut envelope =
        Envelope { api_version: String::new(), kind: String::new(), raw: &[], content_type: String::new() };
    while let Some((number, wire)) = body.tag()? {
        match number {
            1 => {
                let mut meta = Reader(body.bytes(wire, "typeMeta")?);
                while let Some((number, wire)) = meta.tag()? {
                    match number {
                        1 => meta.text(wire, "apiVersion")?.clone_into(&mut envelope.api_version),
                        2 => meta.text(wire, "kind")?.clone_into(&mut envelope.kind),
                        _ => meta.skip(wire)?,
                    }
                }
            }
            2 => envelope.raw = body.bytes(wire, "raw")?,
            4 => body.text(wire, "contentType")?.clone_into(&mut envelope.content_type),
            _ => body.skip(wire)?,
        }
    }
    Ok(envelope)
}

/// The tree of a message of type `ty`, fitted to it, without `apiVersion` and `kind`.
pub fn decode(bytes: &[u8], ty: &'static Type) -> Result<Value, ProtoError> {
    let mut values = 0;
    let tree = Decoder { values: &mut values }.message(bytes, ty, 0)?;
    Ok(fit(tree, ty, Mode::Drop)?.0)
}

/// The message of a tree that fits `ty`.
pub fn encode(value: &Value, ty: &'static Type) -> Result<Vec<u8>, ProtoError> {
    let mut out = Vec::new();
    write_message(&mut out, value, ty, "")?;
    Ok(out)
}

/// The bytes of an object with its envelope; `apiVersion` and `kind` are the tree's.
pub fn encode_object(value: &Value, ty: &'static Type) -> Result<Vec<u8>, ProtoError> {
    let mut out = MAGIC.to_vec();
    message(&mut out, 1, |out| {
        for (number, name) in [(1, "apiVersion"), (2, "kind")] {
            write_bytes(out, number, value.get(name).and_then(Value::as_str).unwrap_or_default().as_bytes());
        }
        Ok(())
    })?;
    message(&mut out, 2, |out| write_message(out, value, ty, ""))?;
    write_bytes(&mut out, 3, b"");
    write_bytes(&mut out, 4, b"");
    Ok(out)
}

/// One frame of a watch: four bytes of length (big endian), then a `meta.v1.WatchEvent` without envelope
/// around an object with one.
pub fn encode_watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    write_bytes(&mut out, 1, kind.as_bytes());
    let inner = object.len() + varint_len(object.len() as u64) + 1;
    write_tag(&mut out, 2, LEN);
    write_varint(&mut out, inner as u64);
    write_bytes(&mut out, 1, object);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const FIXED32: u8 = 5;

// ---- reading

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field's number and wire type; none at the end.
    pub(super) fn tag(&mut self) -> Result<Option<(u16, u8)>, ProtoError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        // Numbers past 16 bits are no field of ours.
        let number = u16::try_from(tag >> 3).unwrap_or(u16::MAX);
        Ok(Some((number, (tag & 7) as u8)))
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(ProtoError::Truncated)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtoError::Varint)
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], ProtoError> {
        let count = usize::try_from(count).map_err(|_| ProtoError::Truncated)?;
        let (taken, rest) = self.0.split_at_checked(count).ok_or(ProtoError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn bytes(&mut self, wire: u8, field: &'static str) -> Result<&'a [u8], ProtoError> {
        expect(wire, LEN, field)?;
        let length = self.varint()?;
        self.take(length)
    }

    pub(super) fn text(&mut self, wire: u8, field: &'static str) -> Result<&'a str, ProtoError> {
        std::str::from_utf8(self.bytes(wire, field)?).map_err(|_| ProtoError::Utf8 { field })
    }

    fn number(&mut self, wire: u8, field: &'static str) -> Result<u64, ProtoError> {
        expect(wire, VARINT, field)?;
        self.varint()
    }

    fn skip(&mut self, wire: u8) -> Result<(), ProtoError> {
        match wire {
            VARINT => self.varint().map(drop),
            FIXED64 => self.take(8).map(drop),
            LEN => {
                let length = self.varint()?;
                self.take(length).map(drop)
            }
            FIXED32 => self.take(4).map(drop),
            _ => Err(ProtoError::WireType { wire, field: "unknown" }),
        }
    }
}

fn expect(wire: u8, wanted: u8, field: &'static str) -> Result<(), ProtoError> {
    if wire == wanted { Ok(()) } else { Err(ProtoError::WireType { wire, field }) }
}

struct Decoder<'a> {
    values: &'a mut usize,
}

impl Decoder<'_> {
    fn message(&mut self, bytes: &[u8], ty: &'static Type, depth: usize) -> Result<Value, ProtoError> {
        let mut object = Map::new();
        self.fields(bytes, ty, &[], &mut object, depth)?;
        Ok(Value::Object(object))
    }

    /// Reads the fields of `ty` that stand inside the embedded messages `outer` into `object`.
    fn fields(
        &mut self,
        bytes: &[u8],
        ty: &'static Type,
        outer: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtoError> {
        if depth > DEPTH_MAX {
            return Err(ProtoError::TooDeep);
        }
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.tag()? {
            let here = |field: &&'static Field| outer_of(field) == outer && field.number == number;
            if let Some(field) = ty.fields.iter().find(here) {
                self.count()?;
                self.field(&mut reader, wire, field, object, depth)?;
                continue;
            }
            let deeper = ty.fields.iter().map(outer_of).find(|path| {
                path.len() > outer.len() && path.starts_with(outer) && u16::from(path[outer.len()]) == number
            });
            match deeper {
                Some(path) => {
                    let inner = reader.bytes(wire, ty.short_name())?;
                    self.fields(inner, ty, &path[..=outer.len()], object, depth + 1)?;
                }
                None => reader.skip(wire)?,
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), ProtoError> {
        *self.values += 1;
        if *self.values > VALUES_MAX { Err(ProtoError::TooMany) } else { Ok(()) }
    }

    fn field(
        &mut self,
        reader: &mut Reader<'_>,
        wire: u8,
        field: &'static Field,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtoError> {
        match field.shape {
            Shape::One => {
                let value = self.elem(reader, wire, field, depth)?;
                object.insert(field.name.to_owned(), value);
            }
            Shape::List => {
                let mut items = Vec::new();
                let packed = wire == LEN && matches!(field.elem, Elem::Int32 | Elem::Int64 | Elem::Bool);
                if packed {
                    let mut packed = Reader(reader.bytes(wire, field.name)?);
                    while !packed.0.is_empty() {
                        self.count()?;
                        items.push(self.elem(&mut packed, VARINT, field, depth)?);
                    }
                } else {
                    items.push(self.elem(reader, wire, field, depth)?);
                }
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.append(&mut items);
                }
            }
            Shape::Map | Shape::MapOfLists => {
                let mut entry = Reader(reader.bytes(wire, field.name)?);
                let (mut key, mut value) = (String::new(), None);
                while let Some((number, wire)) = entry.tag()? {
                    match number {
                        1 => entry.text(wire, field.name)?.clone_into(&mut key),
                        2 if field.shape == Shape::MapOfLists => {
                            let mut items = Reader(entry.bytes(wire, field.name)?);
                            let mut list = Vec::new();
                            while let Some((number, wire)) = items.tag()? {
                                self.count()?;
                                if number == 1 {
                                    list.push(self.elem(&mut items, wire, field, depth)?);
                                } else {
                                    items.skip(wire)?;
                                }
                            }
                            value = Some(Value::Array(list));
                        }
                        2 => value = Some(self.elem(&mut entry, wire, field, depth)?),
                        _ => entry.skip(wire)?,
                    }
                }
                let value = value.unwrap_or(match (field.shape, field.elem) {
                    (Shape::MapOfLists, _) => Value::Array(Vec::new()),
                    (_, Elem::Type(_)) => Value::Object(Map::new()),
                    (_, Elem::Quantity) => Value::from("0"),
                    _ => Value::from(""),
                });
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
            }
        }
        Ok(())
    }

    fn elem(
        &mut self,
        reader: &mut Reader<'_>,
        wire: u8,
        field: &'static Field,
        depth: usize,
    ) -> Result<Value, ProtoError> {
        let name = field.name;
        Ok(match field.elem {
            Elem::String => Value::from(reader.text(wire, name)?),
            Elem::Bool => Value::from(reader.number(wire, name)? != 0),
            Elem::Int32 => Value::from(reader.number(wire, name)? as i32),
            Elem::Int64 => Value::from(reader.number(wire, name)? as i64),
            Elem::Double => {
                expect(wire, FIXED64, name)?;
                let bytes = reader.take(8)?.try_into().map_err(|_| ProtoError::Truncated)?;
                Value::from(f64::from_le_bytes(bytes))
            }
            Elem::Bytes => Value::from(BASE64.encode(reader.bytes(wire, name)?)),
            Elem::Quantity => match only_text(reader.bytes(wire, name)?, name)? {
                text if text.is_empty() => Value::from("0"),
                text => Value::from(text),
            },
            Elem::IntOrString => int_or_string(reader.bytes(wire, name)?, name)?,
            Elem::Time | Elem::MicroTime => time(reader.bytes(wire, name)?, name)?,
            Elem::Raw | Elem::FieldsV1 | Elem::Json => {
                let mut inner = Reader(reader.bytes(wire, name)?);
                let mut value = Value::Null;
                while let Some((number, wire)) = inner.tag()? {
                    match number {
                        1 => {
                            let raw = inner.bytes(wire, name)?;
                            value = serde_json::from_slice(raw)
                                .map_err(|source| ProtoError::Json { field: name, source })?;
                        }
                        _ => inner.skip(wire)?,
                    }
                }
                value
            }
            Elem::SchemaOrArray | Elem::SchemaOrBool | Elem::SchemaOrStrings => {
                self.schema_or(reader.bytes(wire, name)?, field, depth)?
            }
            Elem::Type(_) => {
                let ty = field.elem.as_type().expect("the table's references resolve (tested)");
                self.message(reader.bytes(wire, name)?, ty, depth + 1)?
            }
        })
    }

    fn schema_or(&mut self, bytes: &[u8], field: &'static Field, depth: usize) -> Result<Value, ProtoError> {
        let schema = if field.elem == Elem::SchemaOrBool { 2 } else { 1 };
        let (mut reader, mut value, mut list) = (Reader(bytes), Value::Null, Vec::new());
        while let Some((number, wire)) = reader.tag()? {
            self.count()?;
            match (number, field.elem) {
                (number, _) if number == schema => {
                    value = self.message(reader.bytes(wire, field.name)?, schema_props(), depth + 1)?;
                }
                (1, Elem::SchemaOrBool) => {
                    let allows = reader.number(wire, field.name)? != 0;
                    if value.is_null() {
                        value = Value::from(allows);
                    }
                }
                (2, Elem::SchemaOrArray) => {
                    list.push(self.message(reader.bytes(wire, field.name)?, schema_props(), depth + 1)?);
                }
                (2, Elem::SchemaOrStrings) => list.push(Value::from(reader.text(wire, field.name)?)),
                _ => reader.skip(wire)?,
            }
        }
        Ok(if list.is_empty() { value } else { Value::Array(list) })
    }
}

/// The string of a message that has only one.
fn only_text(bytes: &[u8], field: &'static str) -> Result<String, ProtoError> {
    let (mut reader, mut text) = (Reader(bytes), "");
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => text = reader.text(wire, field)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(text.to_owned())
}

fn schema_props() -> &'static Type {
    lookup("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .expect("the table has custom resource definitions (tested)")
}

/// The numbers of the embedded messages around a field.
fn outer_of(field: &'static Field) -> &'static [u8] {
    let depth = field.embedded.iter().take_while(|number| **number != 0).count();
    &field.embedded[..depth]
}

fn int_or_string(bytes: &[u8], field: &'static str) -> Result<Value, ProtoError> {
    let (mut reader, mut kind, mut int, mut text) = (Reader(bytes), 0, 0, "");
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => kind = reader.number(wire, field)?,
            2 => int = reader.number(wire, field)? as i32,
            3 => text = reader.text(wire, field)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(if kind == 0 { Value::from(int) } else { Value::from(text) })
}

/// A time as RFC 3339 with nanoseconds (fitting gives it its final form); the zero time is null.
fn time(bytes: &[u8], field: &'static str) -> Result<Value, ProtoError> {
    let (mut reader, mut seconds, mut nanos) = (Reader(bytes), 0_i64, 0_i32);
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => seconds = reader.number(wire, field)? as i64,
            2 => nanos = reader.number(wire, field)? as i32,
            _ => reader.skip(wire)?,
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| ProtoError::Mismatch { field })?;
    Ok(Value::from(time.to_string()))
}

// ---- writing

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn write_tag(out: &mut Vec<u8>, number: u16, wire: u8) {
    write_varint(out, u64::from(number) << 3 | u64::from(wire));
}

pub(super) fn write_number(out: &mut Vec<u8>, number: u16, value: u64) {
    write_tag(out, number, VARINT);
    write_varint(out, value);
}

pub(super) fn write_bytes(out: &mut Vec<u8>, number: u16, bytes: &[u8]) {
    write_tag(out, number, LEN);
    write_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Writes what `body` writes as a message.
fn message(
    out: &mut Vec<u8>,
    number: u16,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), ProtoError>,
) -> Result<(), ProtoError> {
    write_tag(out, number, LEN);
    let start = out.len();
    body(out)?;
    let mut length = Vec::with_capacity(5);
    write_varint(&mut length, (out.len() - start) as u64);
    out.splice(start..start, length);
    Ok(())
}

fn write_message(
    out: &mut Vec<u8>,
    value: &Value,
    ty: &'static Type,
    name: &'static str,
) -> Result<(), ProtoError> {
    let object = value.as_object().ok_or(ProtoError::Mismatch { field: name })?;
    let mut fields: Vec<_> = object
        .iter()
        .filter_map(|(name, value)| Some((ty.field(name)?, value)))
        .filter(|(field, value)| field.number != 0 && !value.is_null())
        .collect();
    write_fields(out, &mut fields, 0)
}

/// Writes fields in the order of their numbers; those with an embedded message at `level` inside it.
fn write_fields(
    out: &mut Vec<u8>,
    fields: &mut [(&'static Field, &Value)],
    level: usize,
) -> Result<(), ProtoError> {
    let at = |field: &'static Field| match outer_of(field).get(level) {
        Some(number) => u16::from(*number),
        None => field.number,
    };
    fields.sort_by_key(|(field, _)| at(field));
    for group in fields.chunk_by_mut(|a, b| at(a.0) == at(b.0)) {
        let (field, value) = group[0];
        if outer_of(field).len() > level {
            message(out, at(field), |out| write_fields(out, group, level + 1))?;
        } else {
            write_field(out, field, value)?;
        }
    }
    Ok(())
}

fn write_field(out: &mut Vec<u8>, field: &'static Field, value: &Value) -> Result<(), ProtoError> {
    let mismatch = ProtoError::Mismatch { field: field.name };
    match (field.shape, value) {
        (Shape::One, value) => write_elem(out, field.number, field, value),
        (Shape::List, Value::Array(items)) => {
            items.iter().try_for_each(|item| write_elem(out, field.number, field, item))
        }
        (Shape::Map | Shape::MapOfLists, Value::Object(map)) => map.iter().try_for_each(|(key, value)| {
            message(out, field.number, |out| {
                write_bytes(out, 1, key.as_bytes());
                if field.shape == Shape::Map {
                    return write_elem(out, 2, field, value);
                }
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                message(out, 2, |out| items.iter().try_for_each(|item| write_elem(out, 1, field, item)))
            })
        }),
        _ => Err(mismatch),
    }
}

fn write_elem(
    out: &mut Vec<u8>,
    number: u16,
    field: &'static Field,
    value: &Value,
) -> Result<(), ProtoError> {
    let mismatch = || ProtoError::Mismatch { field: field.name };
    let text = || value.as_str().ok_or_else(mismatch);
    let int = || value.as_i64().ok_or_else(mismatch);
    match field.elem {
        Elem::String => write_bytes(out, number, text()?.as_bytes()),
        Elem::Bool => write_number(out, number, u64::from(value.as_bool().ok_or_else(mismatch)?)),
        Elem::Int32 | Elem::Int64 => write_number(out, number, int()? as u64),
        Elem::Double => {
            write_tag(out, number, FIXED64);
            out.extend_from_slice(&value.as_f64().ok_or_else(mismatch)?.to_le_bytes());
        }
        Elem::Bytes => write_bytes(out, number, &BASE64.decode(text()?).map_err(|_| mismatch())?),
        Elem::Quantity => message(out, number, |out| {
            write_bytes(out, 1, text()?.as_bytes());
            Ok(())
        })?,
        Elem::IntOrString => message(out, number, |out| {
            if let Some(text) = value.as_str() {
                write_number(out, 1, 1);
                write_number(out, 2, 0);
                write_bytes(out, 3, text.as_bytes());
            } else {
                write_number(out, 1, 0);
                write_number(out, 2, int()? as u64);
                write_bytes(out, 3, b"");
            }
            Ok(())
        })?,
        Elem::Time | Elem::MicroTime => {
            let time: jiff::Timestamp = text()?.parse().map_err(|_| mismatch())?;
            let nanos = time.subsec_nanosecond();
            message(out, number, |out| {
                write_number(out, 1, time.as_second() as u64);
                write_number(out, 2, i64::from(nanos) as u64);
                Ok(())
            })?;
        }
        Elem::Raw | Elem::FieldsV1 | Elem::Json => message(out, number, |out| {
            let json =
                serde_json::to_vec(value).map_err(|source| ProtoError::Json { field: field.name, source })?;
            write_bytes(out, 1, &json);
            Ok(())
        })?,
        Elem::SchemaOrArray | Elem::SchemaOrBool | Elem::SchemaOrStrings => {
            message(out, number, |out| write_schema_or(out, field, value))?;
        }
        Elem::Type(_) => {
            let ty = field.elem.as_type().expect("the table's references resolve (tested)");
            message(out, number, |out| write_message(out, value, ty, field.name))?;
        }
    }
    Ok(())
}

fn write_schema_or(out: &mut Vec<u8>, field: &'static Field, value: &Value) -> Result<(), ProtoError> {
    let schema = |out: &mut Vec<u8>, number, value: &Value| {
        message(out, number, |out| write_message(out, value, schema_props(), field.name))
    };
    match (field.elem, value) {
        (Elem::SchemaOrBool, Value::Bool(allows)) => write_number(out, 1, u64::from(*allows)),
        (Elem::SchemaOrBool, Value::Object(_)) => {
            write_number(out, 1, 1);
            schema(out, 2, value)?;
        }
        (_, Value::Object(_)) => schema(out, 1, value)?,
        (Elem::SchemaOrArray, Value::Array(items)) => {
            items.iter().try_for_each(|item| schema(out, 2, item))?;
        }
        (Elem::SchemaOrStrings, Value::Array(items)) => {
            for item in items {
                let text = item.as_str().ok_or(ProtoError::Mismatch { field: field.name })?;
                write_bytes(out, 2, text.as_bytes());
            }
        }
        _ => return Err(ProtoError::Mismatch { field: field.name }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{
        super::{TYPES, sample::Sample},
        *,
    };

    fn ty(name: &str) -> &'static Type {
        lookup(&format!("io.k8s.{name}")).unwrap()
    }

    /// What client-go writes for a ConfigMap: plain strings and the zero time are always there.
    const CONFIG_MAP: &[u8] = b"k8s\0\
        \x0a\x0f\x0a\x02v1\x12\x09ConfigMap\
        \x12\x1b\
            \x0a\x11\x0a\x01a\x12\0\x1a\0\x22\0\x2a\0\x32\0\x38\0\x42\0\
            \x12\x06\x0a\x01k\x12\x01v\
        \x1a\0\x22\0";

    #[test]
    fn what_client_go_writes_is_read() {
        let envelope = open(CONFIG_MAP).unwrap();
        assert_eq!((envelope.api_version.as_str(), envelope.kind.as_str()), ("v1", "ConfigMap"));
        let value = decode(envelope.raw, ty("api.core.v1.ConfigMap")).unwrap();
        assert_eq!(value, json!({"metadata": {"name": "a"}, "data": {"k": "v"}}));
    }

    #[test]
    fn an_object_is_written_in_the_order_of_its_numbers() {
        let value =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"}, "metadata": {"name": "a"}});
        let bytes = encode_object(&value, ty("api.core.v1.ConfigMap")).unwrap();
        let expected: &[u8] = b"k8s\0\
            \x0a\x0f\x0a\x02v1\x12\x09ConfigMap\
            \x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v\
            \x1a\0\x22\0";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn embedded_structs_are_messages_of_their_own() {
        let volume = json!({"name": "v", "secret": {"secretName": "s"}});
        // name = 1, volumeSource = 2 { secret = 6 { secretName = 1 } }
        let bytes = b"\x0a\x01v\x12\x05\x32\x03\x0a\x01s";
        assert_eq!(encode(&volume, ty("api.core.v1.Volume")).unwrap(), bytes);
        assert_eq!(decode(bytes, ty("api.core.v1.Volume")).unwrap(), volume);
        let rule = json!({"resourceNames": ["n"], "operations": ["CREATE"], "resources": ["pods"]});
        // resourceNames = 1, ruleWithOperations = 2 { operations = 1, rule = 2 { resources = 3 } }
        let bytes = b"\x0a\x01n\x12\x10\x0a\x06CREATE\x12\x06\x1a\x04pods";
        let name = "api.admissionregistration.v1.NamedRuleWithOperations";
        assert_eq!(encode(&rule, ty(name)).unwrap(), bytes);
        assert_eq!(decode(bytes, ty(name)).unwrap(), rule);
    }

    #[test]
    fn a_watch_event_is_a_frame_around_an_object() {
        assert_eq!(encode_watch_event("ADDED", b"k8s\0"), b"\0\0\0\x0f\x0a\x05ADDED\x12\x06\x0a\x04k8s\0");
    }

    #[test]
    fn a_zero_that_is_a_pointer_is_kept_and_a_plain_one_is_not() {
        // DeploymentSpec: replicas = 1, minReadySeconds = 5, paused = 7
        let spec = decode(b"\x08\0\x28\0\x38\0", ty("api.apps.v1.DeploymentSpec")).unwrap();
        assert_eq!(spec["replicas"], 0);
        assert!(spec.get("paused").is_none() && spec.get("minReadySeconds").is_none());
    }

    #[test]
    fn malformed_bytes_are_errors() {
        let pod = ty("api.core.v1.Pod");
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x05a",
            b"\x08\x01",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\x03\x0a\x01\xff",
        ] {
            assert!(decode(bytes, pod).is_err(), "{bytes:?}");
        }
        assert!(open(b"{}").is_err());
        let props = ty("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
        let mut deep = Vec::new();
        for _ in 0..DEPTH_MAX * 2 {
            let inner = std::mem::take(&mut deep);
            write_bytes(&mut deep, props.field("not").unwrap().number, &inner);
        }
        assert!(matches!(decode(&deep, props), Err(ProtoError::TooDeep)));
    }

    proptest! {
        #[test]
        fn what_fits_survives_the_way_there_and_back(seed: u64) {
            let mut sample = Sample::new(seed);
            let ty = &TYPES[sample.below(TYPES.len() as u64) as usize];
            if ty.special.is_none() {
                let value = fit(sample.object(ty, 0), ty, Mode::Drop).unwrap().0;
                let bytes = encode(&value, ty).unwrap();
                prop_assert_eq!(decode(&bytes, ty).unwrap(), value, "{}", ty.name);
            }
        }

        #[test]
        fn any_bytes_are_answered(mut bytes: Vec<u8>, seed: u64) {
            let ty = ty("api.core.v1.Pod");
            let _ = decode(&bytes, ty);
            let mut sample = Sample::new(seed);
            let mut valid = encode(&fit(sample.object(ty, 0), ty, Mode::Drop).unwrap().0, ty).unwrap();
            if !valid.is_empty() {
                let at = sample.below(valid.len() as u64) as usize;
                valid[at] ^= sample.below(255) as u8 + 1;
                let _ = decode(&valid, ty);
            }
            bytes.splice(0..0, *MAGIC);
            let _ = open(&bytes);
        }
    }
}
