//! Parsing of JSON and YAML bodies into trees, with the duplicate keys that plain parsers swallow.
//!
//! The last of several equal keys wins, as in Go. Bounded in depth (the parsers' own 128 levels) and in
//! the number of values.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

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

/// A parse error in the words of Go's `encoding/json`.
pub fn in_gos_words(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let text = error.to_string();
    let place = [
        ("expected value", "looking for beginning of value"),
        ("expected ident", "looking for beginning of value"),
        ("key must be a string", "looking for beginning of object key string"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing comma", "looking for beginning of value"),
        ("trailing characters", "after top-level value"),
        ("invalid escape", "in string escape code"),
        ("control character", "in string literal"),
        ("invalid number", "in numeric literal"),
    ]
    .iter()
    .find_map(|(serde, go)| text.starts_with(serde).then_some(*go));
    let line = bytes.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    match (place, line.get(error.column().saturating_sub(1))) {
        (Some(place), Some(byte)) => {
            let shown = match char::from(*byte) {
                '\'' => r"\'".to_owned(),
                '"' => "\"".to_owned(),
                other => other.escape_debug().to_string(),
            };
            format!("invalid character '{shown}' {place}")
        }
        _ => text,
    }
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

/// The paths of all keys, in the order in which they stand in a body.
pub fn order(bytes: &[u8], yaml: bool) -> Result<Vec<String>, ParseError> {
    let mut state = State { order: Some(RefCell::default()), ..State::default() };
    if yaml {
        Seed(&state).deserialize(serde_yaml::Deserializer::from_slice(bytes))?;
    } else {
        Seed(&state).deserialize(&mut serde_json::Deserializer::from_slice(bytes))?;
    }
    let paths = state.order.take().map(RefCell::into_inner).unwrap_or_default();
    Ok(paths.into_iter().map(|path| path.trim_start_matches('.').to_owned()).collect())
}

#[derive(Default)]
struct State {
    values: Cell<usize>,
    /// Paths from the level that is being read downwards; each level puts its own segment before.
    duplicates: RefCell<Vec<String>>,
    /// All paths, where they are wanted.
    order: Option<RefCell<Vec<String>>>,
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

    /// How many paths are noted.
    fn noted(&self) -> usize {
        self.order.as_ref().map_or(0, |order| order.borrow().len())
    }

    /// Notes a key, and puts it before what is noted below it, which begins at `from`.
    fn note(&self, from: usize, segment: &str, key: bool) {
        let Some(order) = &self.order else { return };
        let mut order = order.borrow_mut();
        for path in &mut order[from..] {
            path.insert_str(0, segment);
        }
        if key {
            order.insert(from, segment.to_owned());
        }
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
            let (before, noted) = (self.0.found(), self.0.noted());
            let Some(item) = seq.next_element_seed(Seed(self.0))? else { break };
            self.0.prefix(before, || format!("[{}]", items.len()));
            if self.0.order.is_some() {
                self.0.note(noted, &format!("[{}]", items.len()), false);
            }
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let (before, noted) = (self.0.found(), self.0.noted());
            let value = map.next_value_seed(Seed(self.0))?;
            self.0.prefix(before, || format!(".{key}"));
            if self.0.order.is_some() {
                self.0.note(noted, &format!(".{key}"), true);
            }
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
    fn parse_errors_read_as_gos() {
        for (text, words) in [
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{\n 'a': 1}", "invalid character '\\'' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b":2}"#, "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("{", "unexpected end of JSON input"),
        ] {
            let Err(ParseError::Json(error)) = parse(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(in_gos_words(text.as_bytes(), &error), words, "{text}");
        }
    }

    #[test]
    fn keys_are_told_in_their_order() {
        let text = r#"{"b":{"z":[{"y":1},2],"a":0},"a":1}"#;
        for yaml in [false, true] {
            assert_eq!(order(text.as_bytes(), yaml).unwrap(), ["b", "b.z", "b.z[0].y", "b.a", "a"]);
        }
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
