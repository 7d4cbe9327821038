//! Bodies of requests: read with a limit, decoded to a tree that fits its kind.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
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

/// Reads a body whole.
pub async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge(BODY_BYTES_MAX)),
        Ok(Err(error)) => Err(Refusal::bad_request(format!("reading the body: {error}"))),
        Err(_) => Err(Refusal::bad_request("the body took too long to arrive")),
    }
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
    let parsed = match encoding {
        Encoding::Json => json::parse(bytes),
        Encoding::Yaml => json::parse_yaml(bytes),
        Encoding::Protobuf => {
            return Err(Refusal::UnsupportedMediaType("this body cannot be protobuf".to_owned()));
        }
    };
    parsed.map_err(|e| Refusal::bad_request(e.to_string()))
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
    let parsed = parse(bytes, encoding)?;
    let given = |field: &str| parsed.value[field].as_str().unwrap_or_default();
    check_type(given("apiVersion"), given("kind"), expected)?;
    let mut problems: Vec<Problem> = parsed.duplicates.into_iter().map(Problem::Duplicate).collect();
    let (mut value, unknown) = fit(parsed.value, expected.schema, validation)?;
    problems.extend(unknown);
    validation.judge(&problems, warnings)?;
    name_type(&mut value, expected);
    Ok(value)
}

/// Fits a tree (the result of a patch) to its type.
pub fn fit(
    value: Value,
    schema: &'static Type,
    validation: FieldValidation,
) -> Result<(Value, Vec<Problem>), Refusal> {
    let mode = if validation == FieldValidation::Ignore { Mode::Drop } else { Mode::Tell };
    schema::decode(value, schema, mode).map_err(|e| {
        Refusal::bad_request(format!(
            "{} in version cannot be handled as a {}: {e}",
            schema.short_name(),
            schema.short_name()
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
