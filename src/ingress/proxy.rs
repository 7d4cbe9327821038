//! One request: its rule, the backend's answer, or why there is none.

use std::{
    error::Error as _,
    net::{IpAddr, SocketAddr},
    sync::{Arc, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;

use super::{
    body::{Download, Progress, Upload},
    head,
    pool::{Body, Lease, Pool, SendError},
    record::{Entry, Record},
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

/// The connection that a request came by.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub client: SocketAddr,
    pub tls: bool,
    pub port: u16,
}

impl Proxy {
    /// Answers a request, and writes down that it did.
    pub async fn handle(&self, request: Request<Incoming>, arrival: Arrival) -> Response<Body> {
        let begin = std::time::Instant::now();
        let (method, target, version) = (request.method().clone(), request.uri().clone(), request.version());
        let agent = request.headers().get(header::USER_AGENT).cloned();
        let authority = head::authority(&request);
        let table = Arc::clone(&self.table.read().expect("no holder panics"));
        let (rule, response) = self.route(&table, request, authority.as_deref(), arrival).await;
        self.record.note(&Entry {
            client: arrival.client.ip().to_canonical(),
            method: method.as_str(),
            target: target.path_and_query().map_or("/", |target| target.as_str()),
            host: authority.as_deref().unwrap_or("-"),
            version,
            status: response.status().as_u16(),
            ingress: rule.map_or("", |rule| &rule.ingress),
            agent: agent.as_ref().and_then(|agent| agent.to_str().ok()).unwrap_or("-"),
            took: begin.elapsed(),
        });
        response
    }

    async fn route<'a>(
        &self,
        table: &'a IngressTable,
        request: Request<Incoming>,
        authority: Option<&str>,
        arrival: Arrival,
    ) -> (Option<&'a IngressRule>, Response<Body>) {
        let Some(authority) = authority else {
            return (None, text(StatusCode::BAD_REQUEST, "bad host"));
        };
        let Some(path) = head::decoded(request.uri().path()) else {
            return (None, text(StatusCode::BAD_REQUEST, "bad path"));
        };
        if request.method() == Method::CONNECT {
            return (None, text(StatusCode::METHOD_NOT_ALLOWED, "this is no forward proxy"));
        }
        let host = head::host_of(authority);
        let Some(rule) = table.find(&host, &path) else {
            return (None, text(StatusCode::NOT_FOUND, "default backend - 404"));
        };
        (Some(rule), self.serve(rule, request, (authority, &host, &path), arrival).await)
    }

    async fn serve(
        &self,
        rule: &IngressRule,
        mut request: Request<Incoming>,
        (authority, host, path): (&str, &str, &str),
        arrival: Arrival,
    ) -> Response<Body> {
        let options = &rule.options;
        let client = arrival.client.ip().to_canonical();
        let admitted = match client {
            IpAddr::V4(client) => options.admits(client),
            IpAddr::V6(_) => options.source_ranges.is_empty(),
        };
        if !admitted {
            return text(StatusCode::FORBIDDEN, "forbidden");
        }
        if options.redirect_to_tls && !arrival.tls && !host.is_empty() {
            let mut response = text(StatusCode::PERMANENT_REDIRECT, "");
            let location = head::tls_location(host, self.https_port, request.uri());
            if let Ok(location) = HeaderValue::try_from(location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            return response;
        }
        if rule.endpoints.is_empty() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "no endpoint is ready");
        }
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok());
        if let (Some(length), Some(max)) = (length, options.body_bytes_max)
            && max < length
        {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        }
        let http2 = options.protocol.is_http2();
        let upgrade = head::upgrade(request.headers()).filter(|_| !http2);
        let upgraded = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let seconds = |given: Option<u32>| given.map_or(BACKEND_TIMEOUT, |s| Duration::from_secs(s.into()));
        let read_timeout = seconds(options.read_timeout_seconds);

        let progress = Progress::new();
        let (mut parts, body) = request.into_parts();
        let scheme = if options.protocol.is_tls() { "https" } else { "http" };
        let rewritten = rule.rewritten(path);
        let absolute = http2.then_some((scheme, authority));
        let Some(uri) = head::target(&parts.uri, rewritten.as_deref(), absolute) else {
            return text(StatusCode::BAD_REQUEST, "bad target");
        };
        let trailers = head::takes_trailers(&parts.headers);
        head::strip(&mut parts.headers);
        head::set_forwarded(&mut parts.headers, client, authority, arrival.tls, arrival.port);
        if http2 {
            parts.headers.remove(header::HOST);
            if trailers {
                parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
            }
        } else if let Ok(value) = HeaderValue::from_str(authority) {
            parts.headers.insert(header::HOST, value);
        }
        if let Some(protocol) = upgrade {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, protocol);
        }
        let upload = Upload::new(body, options.body_bytes_max, Arc::clone(&progress));
        let mut onward = Request::new(Body::new(upload));
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = uri;
        *onward.headers_mut() = parts.headers;
        if http2 {
            *onward.version_mut() = hyper::Version::HTTP_2;
        }

        // The send timeout counts while the body moves, the read timeout after it; one clock for both.
        let limit = read_timeout.max(seconds(options.send_timeout_seconds));
        let sent = tokio::select! {
            sent = self.pool.send(&rule.endpoints, options.protocol, onward) => sent,
            () = progress.stalled(limit) => {
                return text(StatusCode::GATEWAY_TIMEOUT, "the backend did not answer in time");
            }
        };
        match sent {
            Ok((response, lease)) => self.answer(response, lease, upgraded, read_timeout),
            Err(error) => refusal(rule, &error),
        }
    }

    /// Passes the backend's answer on.
    fn answer(
        &self,
        mut response: Response<Incoming>,
        lease: Option<Lease>,
        upgraded: Option<OnUpgrade>,
        timeout: Duration,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgraded else {
                return text(StatusCode::BAD_GATEWAY, "the backend switched protocols unasked");
            };
            let protocol = response.headers().get(header::UPGRADE).cloned();
            self.join(client, hyper::upgrade::on(&mut response));
            let (mut parts, _) = response.into_parts();
            head::strip(&mut parts.headers);
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                parts.headers.insert(header::UPGRADE, protocol);
            }
            return Response::from_parts(parts, empty());
        }
        let (parts, body) = response.into_parts();
        let mut answer = Response::new(Body::new(Download::new(body, lease, timeout)));
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = parts.headers;
        head::strip(answer.headers_mut());
        answer
    }

    /// Joins two connections that have left HTTP, until one ends.
    fn join(&self, client: OnUpgrade, backend: OnUpgrade) {
        let stop = self.pool.stop.clone();
        let joined = async move {
            let (client, backend) = tokio::try_join!(client, backend)?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            // How an upgraded connection ends is its protocol's business.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
            Ok::<_, hyper::Error>(())
        };
        self.pool.tasks.spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(joined).await {
                tracing::debug!(%error, "an upgrade failed");
            }
        });
    }
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

fn empty() -> Body {
    text_body("")
}

fn text_body(text: &'static str) -> Body {
    Body::new(Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}))
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(text_body(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::BAD_REQUEST {
        // Whatever else comes from there is not worth understanding.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
