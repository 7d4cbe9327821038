//! Which form of an answer a client wants (`Accept`), and which form a body has (`Content-Type`).

use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap};

use super::status::Refusal;

/// The encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// The `Content-Type` of an answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// What an object is turned into before it is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The object or list itself.
    Whole,
    /// `meta.k8s.io` Table.
    Table,
    /// `meta.k8s.io` PartialObjectMetadata, one.
    Metadata,
    /// PartialObjectMetadataList.
    MetadataList,
}

/// The negotiated answer. `version` is that of `meta.k8s.io` (`v1` or `v1beta1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub encoding: Encoding,
    pub shape: Shape,
    pub version: &'static str,
}

impl Accepted {
    pub const JSON: Self = Self { encoding: Encoding::Json, shape: Shape::Whole, version: "v1" };
}

/// What resources can be answered in.
pub const RESOURCE_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// A media range: its quality, its type, its parameters.
type Range<'a> = (f32, &'a str, Vec<(&'a str, &'a str)>);

/// The media ranges of an `Accept` header, the most wanted first.
fn ranges(headers: &HeaderMap) -> Vec<Range<'_>> {
    let mut ranges: Vec<_> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().filter(|m| !m.is_empty())?;
            let params: Vec<_> = parts.filter_map(|p| p.split_once('=')).collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok());
            Some((quality.unwrap_or(1.0_f32), media, params))
        })
        .collect();
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranges
}

/// The answer to give for a resource. `kinds` says which shapes this request can have.
pub fn resource(headers: &HeaderMap, single: bool, list: bool) -> Result<Accepted, Refusal> {
    let ranges = ranges(headers);
    if ranges.is_empty() {
        return Ok(Accepted::JSON);
    }
    for (_, media, params) in ranges {
        let encoding = match media {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            "application/vnd.kubernetes.protobuf" => Encoding::Protobuf,
            _ => continue,
        };
        let param = |key: &str| params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let version = match param("v") {
            None | Some("v1") => "v1",
            Some("v1beta1") => "v1beta1",
            Some(_) if param("as").is_some() => continue,
            Some(_) => "v1",
        };
        let shape = match (param("as"), param("g")) {
            (None, _) => Shape::Whole,
            (Some("Table"), Some("meta.k8s.io")) if single || list => Shape::Table,
            (Some("PartialObjectMetadata"), Some("meta.k8s.io")) if single => Shape::Metadata,
            (Some("PartialObjectMetadataList"), Some("meta.k8s.io")) if list => Shape::MetadataList,
            _ => continue,
        };
        // Tables have no protobuf form, upstream's neither; clients list JSON behind it.
        if encoding == Encoding::Protobuf && shape == Shape::Table {
            continue;
        }
        return Ok(Accepted { encoding, shape, version });
    }
    Err(Refusal::NotAcceptable(RESOURCE_TYPES))
}

/// Which discovery document a client prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// `APIGroupDiscoveryList` of the given version (`v2`, `v2beta1`).
    Aggregated(&'static str),
    Legacy,
}

pub fn discovery(headers: &HeaderMap) -> Discovery {
    for (_, media, params) in ranges(headers) {
        let has = |key: &str, value: &str| params.iter().any(|(k, v)| *k == key && *v == value);
        if media == "application/json"
            && has("as", "APIGroupDiscoveryList")
            && has("g", "apidiscovery.k8s.io")
        {
            if has("v", "v2") {
                return Discovery::Aggregated("v2");
            }
            if has("v", "v2beta1") {
                return Discovery::Aggregated("v2beta1");
            }
        } else if matches!(media, "application/json" | "*/*" | "application/*")
            && !params.iter().any(|(k, _)| *k == "as")
        {
            return Discovery::Legacy;
        }
    }
    Discovery::Legacy
}

/// The media type of a request's body, without parameters; empty when the client says nothing.
pub fn content_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// The encoding of an object in a request's body; JSON when nothing is said.
pub fn body_encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    match content_type(headers) {
        "" | "application/json" | "*/*" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(Refusal::UnsupportedMediaType(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(ACCEPT, accept.parse().unwrap());
        map
    }

    #[test]
    fn the_first_range_that_can_be_served_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        let cases = [
            (table, Encoding::Json, Shape::Table),
            (protobuf, Encoding::Protobuf, Shape::Whole),
            ("application/json, */*", Encoding::Json, Shape::Whole),
            ("text/html;q=0.5, */*;q=0.1", Encoding::Json, Shape::Whole),
            ("application/yaml;q=0.5, application/json;q=0.1", Encoding::Yaml, Shape::Whole),
            ("application/json;as=Unknown;g=meta.k8s.io,application/json", Encoding::Json, Shape::Whole),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
                Encoding::Protobuf,
                Shape::Metadata,
            ),
        ];
        for (accept, encoding, shape) in cases {
            let got = resource(&headers(accept), true, false).unwrap();
            assert_eq!((got.encoding, got.shape), (encoding, shape), "{accept}");
        }
        assert!(resource(&headers("text/html"), true, false).is_err());
    }

    #[test]
    fn discovery_prefers_what_the_client_prefers() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(discovery(&headers(kubectl)), Discovery::Aggregated("v2"));
        assert_eq!(discovery(&headers("application/json, */*")), Discovery::Legacy);
    }
}
