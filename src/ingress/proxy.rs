//! One request: its rule, the backend's answer, or why there is none.

use std::{
    error::Error as _,
    net::{IpAddr, SocketAddr},
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use http_body_util::LengthLimitError;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use super::{
    body::{Body, Progress, Upload},
    exchange::{Io, Outgoing},
    head::{self, Forwarded},
    pool::{Answered as Come, Pool, SendError, Sent},
    record::{Answered, Entry, Record},
};
use crate::net::routes::{IngressRule, IngressTable};

/// How long a backend may be silent, and a request's body may stand still (as ingress-nginx).
const BACKEND_TIMEOUT: Duration = Duration::from_mins(1);

/// What all connections of a server have in common.
pub struct Proxy {
    pub table: RwLock<Arc<IngressTable>>,
    pub pool: Arc<Pool>,
    /// Where redirects to TLS lead.
    pub https_port: u16,
    pub record: Record,
}

/// What becomes of a request, and by which rule.
enum Decided<'a> {
    Answered(Option<&'a IngressRule>, Response<Body>),
    GoesOn(&'a IngressRule, Onward),
}

/// What a line of the access log says of a request.
struct Line {
    method: Method,
    target: Uri,
    version: hyper::Version,
    host: Option<HeaderValue>,
    agent: Option<HeaderValue>,
}

impl Line {
    fn of(request: &Request<Incoming>) -> Self {
        Self {
            method: request.method().clone(),
            target: request.uri().clone(),
            version: request.version(),
            host: head::authority(request),
            agent: request.headers().get(header::USER_AGENT).cloned(),
        }
    }

    fn entry(&self, client: IpAddr) -> Entry<'_> {
        fn said(value: Option<&HeaderValue>) -> &str {
            value.and_then(|value| value.to_str().ok()).unwrap_or("-")
        }
        Entry {
            client,
            method: self.method.as_str(),
            target: self.target.path_and_query().map_or("/", |target| target.as_str()),
            host: said(self.host.as_ref()),
            version: self.version,
            agent: said(self.agent.as_ref()),
        }
    }
}

/// The connection that a request came by.
#[derive(Debug)]
pub struct Arrival {
    /// Without a port.
    pub client: IpAddr,
    pub tls: bool,
    pub forwarded: Forwarded,
}

impl Arrival {
    /// By a connection to `port`.
    pub fn new(client: SocketAddr, tls: bool, port: u16) -> Self {
        let client = client.ip().to_canonical();
        Self { client, tls, forwarded: Forwarded::new(client, tls, port) }
    }
}

/// A request as its backend gets it.
struct Onward {
    request: Sent,
    upgraded: Option<OnUpgrade>,
    /// Tells whether the request's body moves; `None` when it has none.
    progress: Option<Arc<Progress>>,
}

/// Seconds as they are set, or the default.
fn time_of(seconds: Option<u32>) -> Duration {
    seconds.map_or(BACKEND_TIMEOUT, |seconds| Duration::from_secs(seconds.into()))
}

impl Proxy {
    /// Answers a request, and writes down that it did.
    pub async fn handle(&self, request: Request<Incoming>, arrival: &Arrival) -> Response<Body> {
        let begin = Instant::now();
        let line = self.record.is_logging().then(|| Box::new(Line::of(&request)));
        let table = Arc::clone(&self.table.read().expect("no holder panics"));
        // What there is to decide is decided at once: little is kept while the backend is waited for.
        let (rule, response) = match self.decide(&table, request, arrival) {
            Decided::Answered(rule, response) => (rule, response),
            // In a place of its own: a connection keeps room for what waits here even when nothing is asked.
            Decided::GoesOn(rule, onward) => (Some(rule), Box::pin(self.pass(rule, onward)).await),
        };
        let answered = Answered {
            status: response.status().as_u16(),
            ingress: rule.map_or("", |rule| &rule.ingress),
            took: begin.elapsed(),
        };
        self.record.count(answered);
        if let Some(line) = line {
            self.record.note(&line.entry(arrival.client), answered);
        }
        response
    }

    fn decide<'a>(
        &self,
        table: &'a IngressTable,
        request: Request<Incoming>,
        arrival: &Arrival,
    ) -> Decided<'a> {
        let here = |status, said| Decided::Answered(None, text(status, said));
        let Some(authority) = head::authority(&request) else {
            return here(StatusCode::BAD_REQUEST, "bad host");
        };
        let Ok(said) = authority.to_str() else { return here(StatusCode::BAD_REQUEST, "bad host") };
        // It goes on and is looked into at once.
        let uri = request.uri().clone();
        let Some(path) = head::decoded(uri.path()) else {
            return here(StatusCode::BAD_REQUEST, "bad path");
        };
        if request.method() == Method::CONNECT {
            return here(StatusCode::METHOD_NOT_ALLOWED, "this is no forward proxy");
        }
        let host = head::host_of(said);
        match table.find(&host, &path) {
            Some(rule) => self.prepare(rule, request, (&authority, &host, &path), arrival),
            None => here(StatusCode::NOT_FOUND, "default backend - 404"),
        }
    }

    /// The request as the backend gets it, or why it does not.
    fn prepare<'a>(
        &self,
        rule: &'a IngressRule,
        mut request: Request<Incoming>,
        (authority, host, path): (&HeaderValue, &str, &str),
        arrival: &Arrival,
    ) -> Decided<'a> {
        let answer = |response| Decided::Answered(Some(rule), response);
        let options = &rule.options;
        let admitted = match arrival.client {
            IpAddr::V4(client) => options.admits(client),
            IpAddr::V6(_) => options.source_ranges.is_empty(),
        };
        if !admitted {
            return answer(text(StatusCode::FORBIDDEN, "forbidden"));
        }
        if options.redirect_to_tls && !arrival.tls && !host.is_empty() {
            let mut response = text(StatusCode::PERMANENT_REDIRECT, "");
            let location = head::tls_location(host, self.https_port, request.uri());
            if let Ok(location) = HeaderValue::try_from(location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            return answer(response);
        }
        if rule.endpoints.is_empty() {
            return answer(text(StatusCode::SERVICE_UNAVAILABLE, "no endpoint is ready"));
        }
        let told = request.headers().get(header::CONTENT_LENGTH);
        let length = told.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if let (Some(length), Some(max)) = (length, options.body_bytes_max)
            && max < length
        {
            return answer(text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
        }
        // Of two lengths the chunks count, and only they go on: so requests are not smuggled.
        let told = told.is_some() && !request.headers().contains_key(header::TRANSFER_ENCODING);
        let rewritten = rule.rewritten(path);
        let forwarded = &arrival.forwarded;
        if options.protocol.is_http2() {
            let (parts, body) = request.into_parts();
            let scheme = if options.protocol.is_tls() { "https" } else { "http" };
            let (upload, progress) = Upload::new(body, options.body_bytes_max);
            let mut onward = Request::new(upload);
            let said = authority.to_str().unwrap_or_default();
            let target = head::target(&parts.uri, rewritten.as_deref());
            let Ok(target) = format!("{scheme}://{said}{target}").parse() else {
                return answer(text(StatusCode::BAD_REQUEST, "bad target"));
            };
            *onward.uri_mut() = target;
            *onward.headers_mut() = head::onward(&parts.headers, authority, forwarded);
            *onward.method_mut() = parts.method;
            *onward.version_mut() = hyper::Version::HTTP_2;
            let request = Sent::Shared(Box::new(onward));
            return Decided::GoesOn(rule, Onward { request, upgraded: None, progress });
        }
        let upgrade = head::upgrade(request.headers());
        let upgraded = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let target = head::target(request.uri(), rewritten.as_deref());
        let method = request.method();
        let head = head::encode((method, &target), authority, request.headers(), forwarded, upgrade.as_ref());
        let method = method.clone();
        let (upload, progress) = Upload::new(request.into_body(), options.body_bytes_max);
        let request = Sent::Own(Box::new(Outgoing::new(&method, head, told, upload)));
        Decided::GoesOn(rule, Onward { request, upgraded, progress })
    }

    /// Sends a request to a backend, and passes its answer on.
    async fn pass(&self, rule: &IngressRule, onward: Onward) -> Response<Body> {
        let options = &rule.options;
        let (protocol, read_timeout) = (options.protocol, time_of(options.read_timeout_seconds));
        // The send timeout counts while the body moves, the read timeout after it; one clock for both.
        let limit = read_timeout.max(time_of(options.send_timeout_seconds));
        let Onward { request, upgraded, progress } = onward;
        let stalled = async {
            match &progress {
                Some(progress) => progress.stalled(limit).await,
                None => tokio::time::sleep(limit).await,
            }
        };
        let sent = tokio::select! {
            sent = self.pool.send(&rule.endpoints, protocol, request) => sent,
            () = stalled => {
                return text(StatusCode::GATEWAY_TIMEOUT, "the backend did not answer in time");
            }
        };
        match sent {
            Ok(Come::Own(answer, exchange, lease)) => {
                response(answer.status, answer.headers, Body::own(exchange, lease, read_timeout))
            }
            Ok(Come::Shared(answer)) => {
                let (mut parts, body) = answer.into_parts();
                head::strip(&mut parts.headers);
                response(parts.status, parts.headers, Body::shared(body, read_timeout))
            }
            Ok(Come::Switched(answer, connection)) => {
                let (Some(client), Some(protocol)) = (upgraded, answer.upgrade) else {
                    return text(StatusCode::BAD_GATEWAY, "the backend switched protocols unasked");
                };
                self.join(client, connection.into_parts());
                let mut response = response(answer.status, answer.headers, Body::said(""));
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, protocol);
                response
            }
            Err(error) => refusal(rule, &error),
        }
    }

    /// Joins two connections that have left HTTP, until one ends. The backend may have said something
    /// already.
    fn join(&self, client: OnUpgrade, (said, mut backend): (BytesMut, Io)) {
        let stop = self.pool.stop.clone();
        let joined = async move {
            let mut client = TokioIo::new(client.await?);
            // How an upgraded connection ends is its protocol's business.
            if client.write_all(&said).await.is_ok() {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
            }
            Ok::<_, hyper::Error>(())
        };
        self.pool.tasks.spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(joined).await {
                tracing::debug!(%error, "an upgrade failed");
            }
        });
    }
}

/// A backend's answer, as it is passed on.
fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn refusal(rule: &IngressRule, error: &SendError) -> Response<Body> {
    let mut cause = error.source();
    while let Some(source) = cause {
        if source.is::<LengthLimitError>() {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        }
        cause = source.source();
    }
    tracing::debug!(ingress = rule.ingress, %error, "no answer of a backend");
    match error {
        SendError::NoEndpoints => text(StatusCode::SERVICE_UNAVAILABLE, "no endpoint is ready"),
        SendError::Connect { .. } | SendError::Exchange { .. } => {
            text(StatusCode::BAD_GATEWAY, "the backend did not answer")
        }
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::said(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::BAD_REQUEST {
        // Whatever else comes from there is not worth understanding.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is moved more than once, for each request.
    #[tokio::test]
    async fn little_is_kept_while_a_backend_is_waited_for() {
        const BYTES_MAX: usize = 2048;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pool = Arc::new(Pool::new(&provider).unwrap());
        let proxy = Proxy { table: RwLock::default(), pool, https_port: 443, record: Record::default() };
        let outgoing = Outgoing::new(&Method::GET, BytesMut::new(), false, Upload::default());
        let onward = Onward { request: Sent::Own(Box::new(outgoing)), upgraded: None, progress: None };
        let size = size_of_val(&proxy.pass(&IngressRule::default(), onward));
        assert!(size <= BYTES_MAX, "{size}");
    }
}
