//! Random trees that fit a type, for property tests.

use serde_json::{Map, Value, json};

use super::{Elem, Field, Shape, Type};

/// A small generator (xorshift): one seed, one tree.
pub struct Sample(u64);

impl Sample {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    pub fn object(&mut self, ty: &'static Type, depth: usize) -> Value {
        let mut object = Map::new();
        for field in ty.fields.iter().filter(|f| !matches!(f.name, "apiVersion" | "kind")) {
            if depth < 7 && field.number != 0 && self.below(3) == 0 {
                object.insert(field.name.to_owned(), self.field(field, depth));
            }
        }
        Value::Object(object)
    }

    fn field(&mut self, field: &'static Field, depth: usize) -> Value {
        match field.shape {
            Shape::One => self.elem(field.elem, depth),
            // An empty list and none are the same in protobuf.
            Shape::List => self.list(field.elem, depth, field.is_required()),
            Shape::Map => {
                let count = self.below(3).max(u64::from(field.is_required()));
                (0..count).map(|i| (format!("k{i}"), self.elem(field.elem, depth))).collect()
            }
            Shape::MapOfLists => {
                (0..self.below(3)).map(|i| (format!("k{i}"), self.list(field.elem, depth, false))).collect()
            }
        }
    }

    fn list(&mut self, elem: Elem, depth: usize, filled: bool) -> Value {
        (0..self.below(3).max(u64::from(filled))).map(|_| self.elem(elem, depth)).collect()
    }

    fn elem(&mut self, elem: Elem, depth: usize) -> Value {
        let n = self.below(4);
        match elem {
            Elem::String => json!(["", "a", "ä/b", "x y"][n as usize]),
            Elem::Bool => json!(n > 1),
            Elem::Int32 => json!([0, -1, 80, i32::MAX][n as usize]),
            Elem::Int64 => json!([0, -1, 5_000_000_000, i64::MIN][n as usize]),
            Elem::Double => json!([0.5, -1.25, 2.0, 1e9][n as usize]),
            Elem::Bytes => json!(["", "YQ==", "AP8=", "YWJj"][n as usize]),
            Elem::Quantity => json!(["0", "100m", "1Gi", "12e6"][n as usize]),
            Elem::IntOrString => [json!(8080), json!("25%"), json!("http"), json!(1)][n as usize].clone(),
            Elem::Time => json!(["2026-01-02T03:04:05Z", "1969-12-31T23:59:59Z"][n as usize % 2]),
            Elem::MicroTime => {
                json!(["2026-01-02T03:04:05.000001Z", "2026-01-02T03:04:05.999999Z"][n as usize % 2])
            }
            Elem::Raw | Elem::FieldsV1 | Elem::Json => json!({"f:a": {".": n}}),
            Elem::SchemaOrArray => json!([{}, {"type": "object"}]),
            Elem::SchemaOrBool => {
                [json!(true), json!(false), json!({"type": "x"}), json!({})][n as usize].clone()
            }
            Elem::SchemaOrStrings => [json!(["a", ""]), json!({"type": "x"})][n as usize % 2].clone(),
            Elem::Type(_) => self.object(elem.as_type().unwrap(), depth + 1),
        }
    }
}
