//! `pods/log`: a chunked body.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{Request, StatusCode, body::Incoming, header::UPGRADE};
use jiff::{SignedDuration, Timestamp};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::io::ReaderStream;

use super::{
    nodes, pod, refused, target,
    websocket::{Offer, Socket},
};
use crate::{
    api::{
        reply::{self, Reply},
        request::Query,
        status::Refusal,
        verbs::Call,
    },
    clock::Clock as _,
    kinds::FieldError,
    objects,
    streams::{LogOptions, Reader},
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// What `stream` may name.
const STREAMS: &[&str] = &["All", "Stderr", "Stdout"];
/// What a client that wants a WebSocket may ask for: each message is a piece of the log.
const PROTOCOLS: &[&str] = &["binary.k8s.io", "base64.binary.k8s.io", ""];

pub async fn serve(call: &Call, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let options = options(&call.query, &call.path.name, call.api.time.now())?;
    let pod = pod(call)?;
    let container = call.query.get("container").unwrap_or_default();
    let Some(target) = target(call, &pod, container)? else {
        // Not on a node yet: there is nothing to read, as upstream says it.
        return Ok(reply::text(StatusCode::OK, ""));
    };
    let offer = match request.headers().get(UPGRADE) {
        Some(_) => Some(Offer::of(request, PROTOCOLS)?),
        None => None,
    };
    let lines = nodes(call)?.logs(&target, &options).await.map_err(refused)?;
    let stop = call.api.stop.clone();
    if let Some(offer) = offer {
        let base64 = offer.protocol.starts_with("base64");
        let (answer, socket) = offer.accept();
        call.api.sessions.spawn(async move {
            match socket.await {
                Ok(socket) => drop(stop.run_until_cancelled(carry(socket, lines, base64)).await),
                Err(error) => tracing::debug!(%error, "a log's upgrade"),
            }
        });
        return Ok(answer);
    }
    let pieces = ReaderStream::with_capacity(lines, CHUNK_BYTES)
        .take_while(|piece| std::future::ready(piece.is_ok()))
        .filter_map(|piece| std::future::ready(piece.ok()))
        .take_until(async move { stop.cancelled().await });
    Ok(reply::reply(StatusCode::OK, "text/plain", reply::streamed(pieces)))
}

/// Sends a log in messages, and closes.
async fn carry(mut socket: Socket, lines: Reader, base64: bool) {
    let mut pieces = ReaderStream::with_capacity(lines, CHUNK_BYTES);
    while let Some(Ok(piece)) = pieces.next().await {
        let message =
            if base64 { Message::Text(STANDARD.encode(&piece).into()) } else { Message::Binary(piece) };
        // The client is gone when this fails.
        if socket.send(message).await.is_err() {
            return;
        }
    }
    let _ = socket.close(None).await;
}

/// What the query asks for (`v1` PodLogOptions, `ValidatePodLogOptions`).
fn options(query: &Query, pod: &str, now: Timestamp) -> Result<LogOptions, Refusal> {
    let number = |key: &str| -> Result<Option<i64>, Refusal> {
        let Some(text) = query.filled(key) else { return Ok(None) };
        let parsed = text.parse();
        parsed
            .map(Some)
            .map_err(|_| Refusal::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    };
    let (tail_lines, limit_bytes) = (number("tailLines")?, number("limitBytes")?);
    let since_seconds = number("sinceSeconds")?;
    let since_time: Option<Timestamp> = query
        .filled("sinceTime")
        .map(|text| {
            text.parse().map_err(|_| Refusal::bad_request(format!("sinceTime: {text:?} is no RFC 3339 time")))
        })
        .transpose()?;
    let stream = query.filled("stream").unwrap_or("All");

    let mut errors = Vec::new();
    let mut at_least = |path: &str, value: Option<i64>, least: i64, words: &str| {
        let bad = value.filter(|value| *value < least);
        errors.extend(bad.map(|value| FieldError::invalid(path, value, words)));
    };
    at_least("tailLines", tail_lines, 0, "must be greater than or equal to 0");
    at_least("limitBytes", limit_bytes, 1, "must be greater than 0");
    if since_time.is_some() && since_seconds.is_some() {
        let words = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(FieldError::forbidden("", words));
    } else {
        at_least("sinceSeconds", since_seconds, 1, "must be greater than 0");
    }
    if !STREAMS.contains(&stream) {
        errors.push(FieldError::not_supported("stream", stream, STREAMS));
    }
    if stream != "All" && tail_lines.is_some() {
        let words = "`tailLines` and specific `stream` are mutually exclusive for now";
        errors.push(FieldError::forbidden("", words));
    }
    if !errors.is_empty() {
        let kind = "PodLogOptions".to_owned();
        return Err(objects::Error::Invalid { kind, name: pod.to_owned(), errors }.into());
    }
    let ago = since_seconds.and_then(|s| now.saturating_sub(SignedDuration::from_secs(s)).ok());
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: tail_lines.map(i64::cast_unsigned),
        limit_bytes: limit_bytes.map(i64::cast_unsigned),
        since: since_time.or(ago),
        stream: Some(stream).filter(|s| *s != "All").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_checked_as_upstream_does() {
        let now = Timestamp::UNIX_EPOCH;
        let told = |query: &str| match options(&Query::parse(query), "p", now) {
            Ok(options) => format!("{options:?}"),
            Err(refusal) => format!("{} {refusal}", refusal.code().as_u16()),
        };
        let invalid = |words: &str| format!("422 PodLogOptions \"p\" is invalid: {words}");
        for (query, expected) in [
            ("tailLines=-1", invalid("tailLines: Invalid value: -1: must be greater than or equal to 0")),
            ("limitBytes=0", invalid("limitBytes: Invalid value: 0: must be greater than 0")),
            ("sinceSeconds=0", invalid("sinceSeconds: Invalid value: 0: must be greater than 0")),
            (
                "sinceSeconds=0&sinceTime=2026-01-01T00:00:00Z",
                invalid(": Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"),
            ),
            (
                "stream=stderr",
                invalid(
                    "stream: Unsupported value: \"stderr\": supported values: \"All\", \"Stderr\", \"Stdout\"",
                ),
            ),
            (
                "stream=Stderr&tailLines=1",
                invalid(": Forbidden: `tailLines` and specific `stream` are mutually exclusive for now"),
            ),
            ("tailLines=x", "400 strconv.ParseInt: parsing \"x\": invalid syntax".to_owned()),
            ("", format!("{:?}", LogOptions::default())),
            (
                "stream=All&tailLines=2",
                format!("{:?}", LogOptions { tail_lines: Some(2), ..Default::default() }),
            ),
        ] {
            assert_eq!(told(query), expected, "{query}");
        }
        let ago = options(&Query::parse("sinceSeconds=9223372036854775807"), "p", now).unwrap();
        assert_eq!(ago.since, Some(Timestamp::MIN), "further back than time goes");
    }
}
