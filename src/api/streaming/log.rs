//! `pods/log`: a chunked body.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{Request, StatusCode, body::Incoming, header::UPGRADE};
use jiff::SignedDuration;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::io::ReaderStream;

use super::{
    nodes, pod, refused, target,
    websocket::{Offer, Socket},
};
use crate::{
    api::{
        reply::{self, Reply},
        status::Refusal,
        verbs::Call,
    },
    clock::Clock as _,
    streams::{LogOptions, Reader},
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// What a client that wants a WebSocket may ask for: each message is a piece of the log.
const PROTOCOLS: &[&str] = &["binary.k8s.io", "base64.binary.k8s.io", ""];

pub async fn serve(call: &Call, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let options = options(call)?;
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

fn options(call: &Call) -> Result<LogOptions, Refusal> {
    let query = &call.query;
    let number = |key: &str| -> Result<Option<i64>, Refusal> {
        let Some(text) = query.filled(key) else { return Ok(None) };
        let parsed = text.parse();
        parsed
            .map(Some)
            .map_err(|_| Refusal::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    };
    let unsigned = |key: &str, least: i64| -> Result<Option<u64>, Refusal> {
        match number(key)? {
            Some(value) if value < least => Err(Refusal::bad_request(format!(
                "{key}: Invalid value: {value}: must be greater than or equal to {least}"
            ))),
            value => Ok(value.map(|v| v as u64)),
        }
    };
    let since_time = query
        .filled("sinceTime")
        .map(|text| {
            text.parse().map_err(|_| Refusal::bad_request(format!("sinceTime: {text:?} is no RFC 3339 time")))
        })
        .transpose()?;
    let since_seconds = unsigned("sinceSeconds", 1)?;
    if since_time.is_some() && since_seconds.is_some() {
        return Err(Refusal::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    let ago = since_seconds.map(|s| call.api.time.now() - SignedDuration::from_secs(s as i64));
    let stream = query.filled("stream").filter(|s| *s != "All").map(str::to_owned);
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: unsigned("tailLines", 0)?,
        limit_bytes: unsigned("limitBytes", 1)?,
        since: since_time.or(ago),
        stream,
    })
}
