//! Bodies of requests: read with a limit, decoded to a tree that fits its kind.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use super::{negotiate::Encoding, request::Query, status::Refusal};
use crate::{
    kinds::schema::{self, Mode, Problem, Type, json, proto},
    objects,
};

/// Bytes of a body, as upstream.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_mins(1);

/// Bytes of a body that is refused for its size which are still read, so that its sender hears why.
const DRAINED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of a body whose problems are told in its order; finding it out costs memory.
const ORDERED_BYTES_MAX: usize = 64 * 1024;

/// Reads a body whole.
pub async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(body)).await {
        Ok(read) => read,
        Err(_) => Err(Refusal::bad_request("the body took too long to arrive")),
    }
}

async fn collect(mut body: Incoming) -> Result<Bytes, Refusal> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::bad_request(format!("reading the body: {error}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        size += piece.len();
        if size > DRAINED_BYTES_MAX {
            break;
        }
        if size > BODY_BYTES_MAX {
            pieces.clear();
        } else {
            pieces.push(piece);
        }
    }
    if size > BODY_BYTES_MAX {
        return Err(Refusal::TooLarge(BODY_BYTES_MAX));
    }
    Ok(if pieces.len() == 1 { pieces.swap_remove(0) } else { pieces.concat().into() })
}

/// What to do about unknown and duplicate fields (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub fn parse(query: &Query, options: &str) -> Result<Self, Refusal> {
        match query.get("fieldValidation").unwrap_or_default() {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => Err(objects::Error::Invalid {
                kind: options.to_owned(),
                name: String::new(),
                errors: vec![crate::kinds::FieldError::not_supported(
                    "fieldValidation",
                    other,
                    &["Ignore", "Strict", "Warn"],
                )],
            }
            .into()),
        }
    }

    /// What the decoder does about unknown fields.
    pub fn mode(self) -> Mode {
        if self == Self::Ignore { Mode::Drop } else { Mode::Tell }
    }

    /// Refuses, warns of or ignores problems.
    pub fn judge(self, problems: &[Problem], warnings: &mut Vec<String>) -> Result<(), Refusal> {
        match self {
            Self::Ignore => Ok(()),
            Self::Warn => {
                warnings.extend(problems.iter().map(ToString::to_string));
                Ok(())
            }
            Self::Strict if problems.is_empty() => Ok(()),
            Self::Strict => {
                let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Err(Refusal::bad_request(format!("strict decoding error: {}", all.join(", "))))
            }
        }
    }
}

/// What a body is expected to be.
pub struct Expected<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub schema: &'static Type,
}

/// A tree as it stands in a body, with the keys that stood twice.
pub fn parse(bytes: &[u8], encoding: Encoding) -> Result<json::Parsed, Refusal> {
    parsed(bytes, encoding).map_err(Refusal::bad_request)
}

fn parsed(bytes: &[u8], encoding: Encoding) -> Result<json::Parsed, String> {
    let parsed = match encoding {
        Encoding::Json => json::parse(bytes),
        Encoding::Yaml => json::parse_yaml(bytes),
        Encoding::Protobuf => return Err("this body cannot be protobuf".to_owned()),
    };
    parsed.map_err(|error| match error {
        json::ParseError::Json(error) => json::in_gos_words(bytes, &error),
        error @ json::ParseError::Yaml(_) => error.to_string(),
    })
}

/// The beginning of a body, as refusals show it.
fn summary(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 30;
    let cut = |text: String| match text.char_indices().nth(SHOWN_MAX) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text,
    };
    match bytes {
        [] => "<empty>".to_owned(),
        [b'{', ..] => cut(String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN_MAX)]).into_owned()),
        _ => cut(crate::ids::hex(&bytes[..bytes.len().min(SHOWN_MAX)])),
    }
}

/// Decodes an object of the expected type; one that names no kind is taken for it.
pub fn object(
    bytes: &[u8],
    encoding: Encoding,
    expected: &Expected<'_>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, Refusal> {
    if encoding == Encoding::Protobuf {
        let envelope = proto::open(bytes).map_err(|e| Refusal::bad_request(e.to_string()))?;
        check_type(&envelope.api_version, &envelope.kind, expected)?;
        let mut value =
            proto::decode(envelope.raw, expected.schema).map_err(|e| Refusal::bad_request(e.to_string()))?;
        name_type(&mut value, expected);
        return Ok(value);
    }
    let parsed = parsed(bytes, encoding).map_err(|error| {
        Refusal::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {error} ({})",
            expected.kind,
            summary(bytes)
        ))
    })?;
    let given = |field: &str| parsed.value[field].as_str().unwrap_or_default();
    check_type(given("apiVersion"), given("kind"), expected)?;
    let mut problems: Vec<Problem> = parsed.duplicates.into_iter().map(Problem::Duplicate).collect();
    let (mut value, unknown) = fit(parsed.value, expected.schema, validation)?;
    problems.extend(unknown);
    if problems.len() > 1 && bytes.len() <= ORDERED_BYTES_MAX {
        problems = in_order(problems, bytes, encoding);
    }
    // A patch is refused without these words (`transformDecodeError` of upstream's handlers).
    validation.judge(&problems, warnings).map_err(|refusal| {
        let version = expected.api_version.rsplit('/').next().unwrap_or_default();
        Refusal::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {refusal}",
            kind = expected.kind
        ))
    })?;
    name_type(&mut value, expected);
    Ok(value)
}

/// Problems in the order in which they stand in the body; what stands twice and is unknown is only
/// unknown.
fn in_order(problems: Vec<Problem>, bytes: &[u8], encoding: Encoding) -> Vec<Problem> {
    let Ok(order) = json::order(bytes, encoding == Encoding::Yaml) else { return problems };
    let position = |problem: &Problem| {
        let (path, nth) = match problem {
            Problem::Unknown(path) => (path, 0),
            Problem::Duplicate(path) => (path, 1),
        };
        order.iter().enumerate().filter(|(_, key)| *key == path).map(|(at, _)| at).nth(nth)
    };
    let is_unknown = |path: &str| {
        problems.iter().any(|other| match other {
            Problem::Unknown(unknown) => path
                .strip_prefix(unknown.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])),
            Problem::Duplicate(_) => false,
        })
    };
    let mut placed: Vec<_> = problems
        .iter()
        .filter(|problem| !matches!(problem, Problem::Duplicate(path) if is_unknown(path)))
        .map(|problem| (position(problem), problem.clone()))
        .collect();
    placed.sort_by_key(|(at, _)| at.unwrap_or(usize::MAX));
    placed.into_iter().map(|(_, problem)| problem).collect()
}

/// Fits a tree (the result of a patch) to its type.
pub fn fit(
    value: Value,
    schema: &'static Type,
    validation: FieldValidation,
) -> Result<(Value, Vec<Problem>), Refusal> {
    schema::decode(value, schema, validation.mode()).map_err(|e| {
        let name = schema.short_name();
        Refusal::bad_request(format!(
            "{name} in version {:?} cannot be handled as a {name}: {e}",
            schema.version
        ))
    })
}

fn name_type(value: &mut Value, expected: &Expected<'_>) {
    value["apiVersion"] = expected.api_version.into();
    value["kind"] = expected.kind.into();
    if !value["metadata"].is_object() {
        value["metadata"] = Value::Object(serde_json::Map::new());
    }
}

fn check_type(api_version: &str, kind: &str, expected: &Expected<'_>) -> Result<(), Refusal> {
    if !api_version.is_empty() && api_version != expected.api_version {
        return Err(Refusal::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    if !kind.is_empty() && kind != expected.kind {
        return Err(Refusal::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: converting ({kind}) to ({}): unknown conversion",
            expected.api_version.rsplit('/').next().unwrap_or_default(),
            expected.kind,
            expected.kind
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config_map(bytes: &[u8], encoding: Encoding) -> Result<Value, Refusal> {
        let schema = schema::lookup("io.k8s.api.core.v1.ConfigMap").unwrap();
        let expected = Expected { api_version: "v1", kind: "ConfigMap", schema };
        object(bytes, encoding, &expected, FieldValidation::Warn, &mut Vec::new())
    }

    #[test]
    fn what_is_no_object_is_refused_in_upstreams_words() {
        let cases = [
            (
                &b""[..],
                "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
            ),
            (
                b"{\"a\"",
                "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({\"a\")",
            ),
            (
                b"[]",
                "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal array into Go value of type v1.ConfigMap",
            ),
            (
                b"{\"kind\":\"Pod\"}",
                "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (Pod) to (ConfigMap): unknown conversion",
            ),
        ];
        for (body, message) in cases {
            assert_eq!(config_map(body, Encoding::Json).unwrap_err().to_string(), message);
        }
        assert_eq!(summary(&[0xab; 99]), format!("{} ...", "ab".repeat(15)));
    }

    #[test]
    fn problems_are_told_in_the_bodys_order() {
        let schema = schema::lookup("io.k8s.api.core.v1.ConfigMap").unwrap();
        let expected = Expected { api_version: "v1", kind: "ConfigMap", schema };
        let body =
            br#"{"foo":1,"foo":2,"data":{"b":"","b":""},"bar":{"x":1,"x":2},"data":{},"metadata":{"a":1}}"#;
        let mut warnings = Vec::new();
        object(body, Encoding::Json, &expected, FieldValidation::Warn, &mut warnings).unwrap();
        assert_eq!(
            warnings,
            [
                "unknown field \"foo\"",
                "duplicate field \"data.b\"",
                "unknown field \"bar\"",
                "duplicate field \"data\"",
                "unknown field \"metadata.a\"",
            ]
        );
        let body = br#"{"foo":1}"#;
        let refused =
            object(body, Encoding::Json, &expected, FieldValidation::Strict, &mut warnings).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"foo\""
        );
    }

    proptest! {
        #[test]
        fn no_body_breaks_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..96), envelope in any::<bool>()) {
            let body = if envelope { [&b"k8s\0"[..], &bytes].concat() } else { bytes };
            for encoding in [Encoding::Json, Encoding::Yaml, Encoding::Protobuf] {
                let _ = config_map(&body, encoding);
            }
        }
    }
}
