//! Bodies of requests: read with a limit, decoded to a tree of the expected kind.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::{negotiate::Encoding, status::Refusal};
use crate::kinds::Kind;

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

/// Parses a tree.
pub fn parse(bytes: &[u8], encoding: Encoding) -> Result<Value, Refusal> {
    match encoding {
        Encoding::Json => serde_json::from_slice(bytes).map_err(|e| Refusal::bad_request(e.to_string())),
        Encoding::Yaml => serde_yaml::from_slice(bytes).map_err(|e| Refusal::bad_request(e.to_string())),
        Encoding::Protobuf => {
            Err(Refusal::UnsupportedMediaType("protobuf bodies are not supported".to_owned()))
        }
    }
}

/// Decodes an object that must be of `kind`, or name no kind.
pub fn object(bytes: &[u8], encoding: Encoding, kind: &Kind) -> Result<Value, Refusal> {
    let mut value = parse(bytes, encoding)?;
    if !value.is_object() {
        return Err(Refusal::bad_request("the object provided is unrecognized (must be of type object)"));
    }
    let given = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (api_version, name) = (given("apiVersion"), given("kind"));
    let expected = kind.api_version();
    if !api_version.is_empty() && api_version != expected {
        return Err(Refusal::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    if !name.is_empty() && name != kind.kind {
        return Err(Refusal::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): expected kind {}, got {name}",
            kind.kind, kind.kind
        )));
    }
    value["apiVersion"] = expected.into();
    value["kind"] = kind.kind.into();
    if !value["metadata"].is_object() {
        value["metadata"] = Value::Object(serde_json::Map::new());
    }
    Ok(value)
}
