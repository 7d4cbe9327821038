//! Parsing of JSON and YAML bodies into trees, with the duplicate keys that plain parsers swallow.
//!
//! The last of several equal keys wins, as in Go. Bounded in depth (the parsers' own 128 levels) and in
//! the number of values.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Values in one body, so that a small body cannot become a large tree.
pub const VALUES_MAX: usize = 1_000_000;
/// Duplicate keys told of one body (upstream tells 100).
const DUPLICATES_MAX: usize = 100;

/// Why a body is no tree.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("error converting YAML to JSON: yaml: {0}")]
    Yaml(#[from] serde_yaml::Error),
}

/// A parsed body.
#[derive(Debug, PartialEq)]
pub struct Parsed {
    pub value: Value,
    /// Paths of keys that stood more than once (`spec.replicas`).
    pub duplicates: Vec<String>,
}

/// Parses one JSON value.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ParseError> {
    let state = State::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(&state).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(state.finish(value))
}

/// Parses one YAML document. Keys that are numbers or booleans become strings.
pub fn parse_yaml(bytes: &[u8]) -> Result<Parsed, ParseError> {
    let state = State::default();
    let value = Seed(&state).deserialize(serde_yaml::Deserializer::from_slice(bytes))?;
    Ok(state.finish(value))
}

#[derive(Default)]
struct State {
    values: Cell<usize>,
    /// Paths from the level that is being read downwards; each level puts its own segment before.
    duplicates: std::cell::RefCell<Vec<String>>,
}

impl State {
    fn finish(self, value: Value) -> Parsed {
        let mut duplicates = self.duplicates.into_inner();
        for path in &mut duplicates {
            if path.starts_with('.') {
                path.remove(0);
            }
        }
        Parsed { value, duplicates }
    }

    fn found(&self) -> usize {
        self.duplicates.borrow().len()
    }

    /// Puts `segment` before every path found since `from`.
    fn prefix(&self, from: usize, segment: impl FnOnce() -> String) {
        let mut duplicates = self.duplicates.borrow_mut();
        if duplicates.len() > from {
            let segment = segment();
            for path in &mut duplicates[from..] {
                path.insert_str(0, &segment);
            }
        }
    }

    fn add(&self, key: &str) {
        let mut duplicates = self.duplicates.borrow_mut();
        if duplicates.len() < DUPLICATES_MAX {
            duplicates.push(format!(".{key}"));
        }
    }
}

struct Seed<'a>(&'a State);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let count = self.0.values.get() + 1;
        if count > VALUES_MAX {
            return Err(D::Error::custom(format_args!("more than {VALUES_MAX} values")));
        }
        self.0.values.set(count);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that is not finite"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let before = self.0.found();
            let Some(item) = seq.next_element_seed(Seed(self.0))? else { break };
            self.0.prefix(before, || format!("[{}]", items.len()));
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let before = self.0.found();
            let value = map.next_value_seed(Seed(self.0))?;
            self.0.prefix(before, || format!(".{key}"));
            if object.contains_key(&key) {
                self.0.add(&key);
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// A key; YAML has some that are not strings.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = String;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_string<E>(self, value: String) -> Result<String, E> {
        Ok(value)
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicate_keys_are_told_by_path_and_the_last_wins() {
        let text = r#"{"a":1,"a":2,"spec":{"list":[{"x":1},{"n":{"y":1,"y":{"z":1,"z":2}}}]},"spec2":{}}"#;
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.value["a"], 2);
        assert_eq!(parsed.duplicates, ["a", "spec.list[1].n.y.z", "spec.list[1].n.y"]);
        assert!(parse(b"{\"a\":{}}").unwrap().duplicates.is_empty());
    }

    #[test]
    fn yaml_gives_the_same_tree_as_json() {
        let parsed = parse_yaml(b"a: 1\nb: [x, true, null, 1.5]\n1: one\na: 3\n").unwrap();
        assert_eq!(parsed.value, json!({"a": 3, "b": ["x", true, null, 1.5], "1": "one"}));
        assert_eq!(parsed.duplicates, ["a"]);
    }

    #[test]
    fn bad_input_is_an_error() {
        let deep = "[".repeat(100_000);
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n\
                    f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        for text in ["", "{", "{} x", deep.as_str()] {
            assert!(parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(10)]);
        }
        for text in [bomb, "a: [", "? [a]\n: b", "--- a\n--- b\n", deep.as_str()] {
            assert!(parse_yaml(text.as_bytes()).is_err(), "{}", &text[..text.len().min(10)]);
        }
        let many = format!("[{}0]", "0,".repeat(VALUES_MAX));
        assert!(parse(many.as_bytes()).unwrap_err().to_string().starts_with("more than 1000000 values"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse_yaml(&bytes);
        }
    }
}
