//! Answers: bodies, headers, compression.

use std::{
    convert::Infallible,
    io::{self, Write as _},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Frame,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY, WARNING},
};
use serde_json::Value;

use super::{negotiate::Encoding, status::Refusal};
use crate::kinds::schema::{self, proto};

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
pub type Reply = Response<Body>;

/// Answers smaller than this are not compressed (bytes), as upstream.
const GZIP_BYTES_MIN: usize = 128 * 1024;
/// Chunks of a long answer (bytes).
const CHUNK_BYTES: usize = 64 * 1024;

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body that comes in pieces.
pub fn streamed(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync()
}

/// A body that somebody else sends; its failure ends the connection, so that nobody takes a part
/// for the whole.
pub fn frames(frames: impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

/// An answer with a media type.
pub fn reply(code: StatusCode, content_type: &str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    let content_type = HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static("text/plain"));
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

/// A plain text.
pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Reply {
    reply(code, "text/plain; charset=utf-8", full(text))
}

/// A JSON document that is no resource (discovery, version).
pub fn json(code: StatusCode, value: &Value) -> Reply {
    reply(code, "application/json", full(line(value)))
}

fn line(value: &Value) -> Vec<u8> {
    let mut text = value.to_string().into_bytes();
    text.push(b'\n');
    text
}

/// The bytes of an object, list or Status in protobuf; `None` when its type has no such form.
pub fn protobuf(value: &Value) -> Option<Vec<u8>> {
    let (api_version, kind) = (value["apiVersion"].as_str()?, value["kind"].as_str()?);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let of_meta = || schema::lookup(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"));
    let ty = schema::lookup_kind(group, version, kind).or_else(of_meta)?;
    ty.fields.iter().find(|field| field.number != 0)?;
    match proto::encode_object(value, ty) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::warn!(kind, %error, "no protobuf of an object");
            None
        }
    }
}

/// An object or Status in an encoding. What has no protobuf form is JSON.
pub fn value(code: StatusCode, encoding: Encoding, pretty: bool, value: &Value) -> Reply {
    if encoding == Encoding::Protobuf
        && let Some(bytes) = protobuf(value)
    {
        return reply(code, Encoding::Protobuf.content_type(), full(bytes));
    }
    match encoding {
        Encoding::Yaml => reply(code, Encoding::Yaml.content_type(), full(crate::manifest::to_yaml(value))),
        _ if pretty => {
            let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
            text.push(b'\n');
            reply(code, Encoding::Json.content_type(), full(text))
        }
        _ => json(code, value),
    }
}

/// A refusal as a Status.
pub fn refused(refusal: &Refusal, encoding: Encoding) -> Reply {
    if matches!(refusal, Refusal::NoSuchPage) {
        return text(refusal.code(), format!("{refusal}\n"));
    }
    let mut answer = value(refusal.code(), encoding, false, &refusal.to_status());
    if let Some(seconds) = refusal.retry_after() {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}

/// Adds `Warning` headers (RFC 7234 section 5.5, code 299).
pub fn warn(reply: &mut Reply, warnings: &[String]) {
    for text in warnings {
        let quoted: String = text
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| (c == '"' || c == '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        if let Ok(header) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            reply.headers_mut().append(WARNING, header);
        }
    }
}

/// A long JSON answer made of pieces, compressed when the client takes that and it is worth it.
pub fn pieces(headers: &HeaderMap, content_type: &str, pieces: Vec<Bytes>) -> Reply {
    let size: usize = pieces.iter().map(Bytes::len).sum();
    let gzip = headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|v| v.split(';').next().unwrap_or_default().trim() == "gzip");
    if gzip && size >= GZIP_BYTES_MIN {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let written = pieces.iter().try_for_each(|piece| encoder.write_all(piece));
        if let Ok(packed) = written.and_then(|()| encoder.finish()) {
            let mut answer = reply(StatusCode::OK, content_type, full(packed));
            answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            return answer;
        }
    }
    if size <= CHUNK_BYTES {
        return reply(StatusCode::OK, content_type, full(pieces.concat()));
    }
    let mut pieces = pieces.into_iter().peekable();
    let chunks = std::iter::from_fn(move || {
        let mut chunk = Vec::from(pieces.next()?);
        while let Some(piece) = pieces.next_if(|piece| chunk.len() + piece.len() <= CHUNK_BYTES) {
            chunk.extend_from_slice(&piece);
        }
        Some(Bytes::from(chunk))
    });
    reply(StatusCode::OK, content_type, streamed(futures_util::stream::iter(chunks)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        let mut answer = text(StatusCode::OK, "");
        warn(&mut answer, &["unknown field \"spec.x\"".to_owned()]);
        assert_eq!(answer.headers()[WARNING], r#"299 - "unknown field \"spec.x\"""#);
    }

    #[tokio::test]
    async fn a_long_answer_is_compressed_for_who_takes_it() {
        let many = vec![Bytes::from_static(&[b'x'; 1024]); 200];
        let mut headers = HeaderMap::new();
        let plain = pieces(&headers, "application/json", many.clone());
        assert!(!plain.headers().contains_key(CONTENT_ENCODING));
        assert_eq!(plain.into_body().collect().await.unwrap().to_bytes().len(), 200 * 1024);
        headers.insert(ACCEPT_ENCODING, "gzip, deflate".parse().unwrap());
        let packed = pieces(&headers, "application/json", many);
        assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
        assert!(packed.into_body().collect().await.unwrap().to_bytes().len() < 10 * 1024);
    }
}
