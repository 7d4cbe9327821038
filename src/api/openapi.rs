//! `/openapi/v2` and `/openapi/v3`: the documents are written from the schema as they are asked for
//! and kept by nobody; clients keep them by their entity tags.

use hyper::{
    StatusCode,
    header::{ACCEPT, CACHE_CONTROL, ETAG, EXPIRES, HeaderMap, HeaderValue, IF_NONE_MATCH, LOCATION},
};
use jiff::SignedDuration;

use super::{
    Api,
    reply::{self, Reply},
    request::Query,
    status::Refusal,
    usage::served,
};
use crate::{
    clock::Clock as _,
    kinds::schema::openapi::{self, V2_PROTOBUF, V2_PROTOBUF_OLD},
};

const JSON: &str = "application/json";
/// How long a document with its hash in its address may be kept, as upstream.
const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);

/// A document below `/openapi`.
pub enum Document {
    V2,
    Index,
    /// One that the index names.
    Part(String),
}

impl Document {
    /// The document of a path below `/openapi`, given as its parts.
    pub fn at(parts: &[&str]) -> Option<Self> {
        match *parts {
            ["v2"] => Some(Self::V2),
            ["v3"] => Some(Self::Index),
            ["v3", ref name @ ..] => {
                Some(name.join("/")).filter(|name| openapi::has_v3(served(), name)).map(Self::Part)
            }
            _ => None,
        }
    }

    pub fn answer(self, api: &Api, headers: &HeaderMap, query: &Query) -> Result<Reply, Refusal> {
        match self {
            Self::V2 => v2(headers),
            Self::Index => Ok(reply::json(StatusCode::OK, &openapi::v3_index(served()))),
            Self::Part(name) => v3(api, headers, query, &name),
        }
    }
}

fn failed(error: std::io::Error) -> Refusal {
    Refusal::from(crate::objects::Error::Internal(error.to_string()))
}

fn v2(headers: &HeaderMap) -> Result<Reply, Refusal> {
    let protobuf = accepts(headers, V2_PROTOBUF) || accepts(headers, V2_PROTOBUF_OLD);
    answer(headers, if protobuf { V2_PROTOBUF } else { JSON }, &openapi::hash(served()), || {
        if protobuf {
            return openapi::v2_protobuf(served()).map_err(failed);
        }
        let mut text = Vec::new();
        openapi::v2_json(served(), &mut text).map_err(failed)?;
        Ok(text)
    })
}

fn v3(api: &Api, headers: &HeaderMap, query: &Query, name: &str) -> Result<Reply, Refusal> {
    let hash = openapi::v3_hash(served(), name);
    let asked = query.filled("hash");
    if asked.is_some_and(|asked| asked != hash) {
        let mut moved = reply::reply(StatusCode::MOVED_PERMANENTLY, JSON, reply::full(""));
        if let Ok(place) = HeaderValue::from_str(&format!("/openapi/v3/{name}?hash={hash}")) {
            moved.headers_mut().insert(LOCATION, place);
        }
        return Ok(moved);
    }
    let mut document = answer(headers, JSON, &hash, || {
        let mut text = Vec::new();
        openapi::v3(served(), name, &mut text).map_err(failed)?;
        Ok(text)
    })?;
    if asked.is_some() {
        // Under this address it never changes.
        let expires = (api.time.now() + LIFE).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let headers = document.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        if let Ok(expires) = HeaderValue::from_str(&expires) {
            headers.insert(EXPIRES, expires);
        }
    }
    Ok(document)
}

fn accepts(headers: &HeaderMap, content_type: &str) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| one.split(';').next().unwrap_or_default().trim() == content_type)
}

fn answer(
    headers: &HeaderMap,
    content_type: &str,
    hash: &str,
    write: impl FnOnce() -> Result<Vec<u8>, Refusal>,
) -> Result<Reply, Refusal> {
    let tag = format!("\"{hash}\"");
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut answer = if known.is_some_and(|value| value.split(',').any(|one| one.trim() == tag)) {
        reply::reply(StatusCode::NOT_MODIFIED, content_type, reply::full(""))
    } else {
        reply::pieces(headers, content_type, vec![write()?.into()])
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    Ok(answer)
}
