//! `pods/proxy` and `services/proxy`: a request passed on to what a pod serves, over the same streams
//! that port-forward uses.
//!
//! In: any method, any path behind `proxy`. Out: the backend's answer, its links led back through
//! here; an upgraded connection when both sides want one.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, BodyStream, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri, Version,
    body::Incoming,
    client::conn::http1,
    header::{
        self, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
        HeaderValue, LOCATION, UPGRADE,
    },
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{links, target, way_to};
use crate::{
    api::{
        reply::{self, Reply},
        status::Refusal,
        verbs::Call,
    },
    ids,
    kinds::registry,
    objects,
    streams::Target,
    trust,
};

/// Bytes of a page whose links are rewritten; a longer one is passed on as it is.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Headers between neighbours (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

type Io = Pin<Box<dyn Duplex>>;

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// `[scheme:]name[:port]`, as the name of a proxied object is written.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https");
        (known && !name.is_empty()).then_some(Self { tls: scheme == "https", name, port })
    }
}

/// What serves: a port of a pod on a node, or an address that no pod has.
enum Backend {
    Pod(Target, u16),
    Address(String, u16),
}

pub async fn serve(call: &Call, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let (prefix, path) = split_path(request.uri().path());
    let (prefix, path) = (prefix.to_owned(), path.map(str::to_owned));
    let what = call.kind.singular;
    let invalid = || Refusal::bad_request(format!("invalid {what} request {:?}", call.path.name));
    let named = Named::parse(&call.path.name).ok_or_else(invalid)?;
    let backend = match call.kind.kind {
        "Pod" => of_pod(call, &named)?,
        _ => of_service(call, &named)?,
    };
    let Some(path) = path else {
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return Ok(with_slash(request.uri()));
        }
        return pass_on(call, request, &named, backend, &prefix, "").await;
    };
    pass_on(call, request, &named, backend, &prefix, &path).await
}

/// The path up to `proxy`, and what stands behind the slash that follows it, if one does.
fn split_path(path: &str) -> (&str, Option<&str>) {
    // "/api/v1/namespaces/<ns>/pods/<name>/proxy" has seven slashes.
    match path.match_indices('/').nth(7) {
        Some((at, _)) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    }
}

/// A backend's root is a folder, so that its relative links work.
fn with_slash(uri: &Uri) -> Reply {
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut answer = reply::reply(StatusCode::MOVED_PERMANENTLY, "text/plain", reply::full(""));
    if let Ok(to) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        answer.headers_mut().insert(LOCATION, to);
    }
    answer
}

fn unavailable(message: String) -> Refusal {
    objects::Error::Unavailable(message).into()
}

fn unreachable(error: &dyn std::fmt::Display) -> Refusal {
    unavailable(format!("error trying to reach service: {error}"))
}

fn of_pod(call: &Call, named: &Named<'_>) -> Result<Backend, Refusal> {
    let kind = registry::of::<k8s_openapi::api::core::v1::Pod>();
    let pod = call.api.objects.get(kind, call.namespace(), named.name)?.value();
    let containers = || pod["spec"]["containers"].as_array().into_iter().flatten();
    let port = if named.port.is_empty() {
        containers().find_map(|c| c["ports"][0]["containerPort"].as_u64()).unwrap_or(80)
    } else {
        named
            .port
            .parse()
            .map_err(|_| Refusal::bad_request(format!("invalid pod request {:?}", call.path.name)))?
    };
    let port = u16::try_from(port).map_err(|_| Refusal::bad_request("invalid port"))?;
    let first = containers().next().and_then(|c| c["name"].as_str()).unwrap_or_default().to_owned();
    let mut target =
        target(call, &pod, &first)?.ok_or_else(|| Refusal::bad_request("address not allowed"))?;
    named.name.clone_into(&mut target.pod);
    target.container = String::new();
    Ok(Backend::Pod(target, port))
}

fn of_service(call: &Call, named: &Named<'_>) -> Result<Backend, Refusal> {
    let objects = &call.api.objects;
    let namespace = call.namespace();
    let kind = registry::of::<Service>();
    let service = objects.get(kind, namespace, named.name)?.typed::<Service>();
    let ports = service.spec.as_ref().and_then(|s| s.ports.clone()).unwrap_or_default();
    let name = match named.port.parse::<i32>() {
        Ok(number) => {
            ports.iter().find(|p| p.port == number).map(|p| p.name.clone().unwrap_or_default()).ok_or_else(
                || unavailable(format!("no service port {number} found for service {:?}", named.name)),
            )?
        }
        Err(_) => named.port.to_owned(),
    };
    let mut candidates = Vec::new();
    for slice in objects.list_typed::<EndpointSlice>(Some(namespace)) {
        let labels = slice.metadata.labels.as_ref();
        if labels.and_then(|l| l.get("kubernetes.io/service-name")).map(String::as_str) != Some(named.name) {
            continue;
        }
        let port = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or_default() == name);
        let Some(port) = port.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let Some(address) = endpoint.addresses.first().filter(|_| ready) else { continue };
            let pod = endpoint.target_ref.as_ref().filter(|r| r.kind.as_deref() == Some("Pod"));
            candidates.push(match (pod, &endpoint.node_name) {
                (Some(pod), Some(node)) => Backend::Pod(
                    Target {
                        node: node.clone(),
                        namespace: namespace.to_owned(),
                        pod: pod.name.clone().unwrap_or_default(),
                        uid: pod.uid.clone().unwrap_or_default(),
                        container: String::new(),
                    },
                    port,
                ),
                _ => Backend::Address(address.clone(), port),
            });
        }
    }
    if candidates.is_empty() {
        return Err(unavailable(format!("no endpoints available for service {:?}", call.path.name)));
    }
    let [random] = ids::random_bytes::<1>();
    let chosen = usize::from(random) % candidates.len();
    Ok(candidates.swap_remove(chosen))
}

async fn connect(call: &Call, named: &Named<'_>, backend: Backend) -> Result<Io, Refusal> {
    let io: Io = match backend {
        Backend::Pod(target, port) => {
            let nodes = way_to(call, &target.node)?;
            let connection = nodes.connect(&target, port).await.map_err(|e| unreachable(&e))?;
            Box::pin(tokio::io::join(connection.read, connection.write))
        }
        Backend::Address(host, port) => {
            let stream = tokio::net::TcpStream::connect((host.as_str(), port)).await;
            Box::pin(stream.map_err(|e| unreachable(&e))?)
        }
    };
    if !named.tls {
        return Ok(io);
    }
    let name = ServerName::try_from(named.name.to_owned()).map_err(|e| unreachable(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        trust::client_config(provider, &[b"http/1.1"]).map_err(|e| Refusal::internal(e.to_string()))?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, io)
        .await
        .map_err(|e| unreachable(&e))?;
    Ok(Box::pin(tls))
}

/// Takes from a head what is for the neighbour alone; whether it wants to upgrade.
fn strip(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let upgrade = headers.get(UPGRADE).cloned().filter(|_| named.contains(&UPGRADE));
    for name in named.iter().chain(&HOP_BY_HOP).chain([&UPGRADE]) {
        headers.remove(name);
    }
    if let Some(protocol) = &upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    upgrade
}

/// The head as the backend gets it: without the client's credentials.
fn forwarded(headers: &mut HeaderMap, host: Option<HeaderValue>, prefix: &str, path: &str) {
    headers.remove(AUTHORIZATION);
    let secret: Vec<HeaderName> =
        headers.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    for name in secret {
        headers.remove(name);
    }
    let protocols: Vec<String> = headers
        .get_all("sec-websocket-protocol")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_owned())
        .filter(|v| !v.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    headers.remove("sec-websocket-protocol");
    if let (false, Ok(value)) = (protocols.is_empty(), HeaderValue::from_str(&protocols.join(", "))) {
        headers.insert("sec-websocket-protocol", value);
    }
    if let Some(host) = host {
        headers.insert("x-forwarded-host", host.clone());
        headers.insert(HOST, host);
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    if let Ok(uri) = HeaderValue::from_str(&format!("{prefix}/{path}")) {
        headers.insert("x-forwarded-uri", uri);
    }
}

async fn pass_on(
    call: &Call,
    mut request: Request<Incoming>,
    named: &Named<'_>,
    backend: Backend,
    prefix: &str,
    path: &str,
) -> Result<Reply, Refusal> {
    let io = connect(call, named, backend).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|e| unreachable(&e))?;
    let stop = call.api.stop.clone();
    call.api.sessions.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a proxied connection");
                }
            }
        }
    });
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let host = request.headers().get(HOST).cloned().or_else(|| {
        let authority = request.uri().authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    });
    let upgrade = strip(request.headers_mut());
    let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    *request.uri_mut() = format!("/{path}{query}")
        .parse()
        .map_err(|e: hyper::http::uri::InvalidUri| Refusal::bad_request(e.to_string()))?;
    *request.version_mut() = Version::HTTP_11;
    forwarded(request.headers_mut(), host, prefix, path);
    let mut answer = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let server = hyper::upgrade::on(&mut answer);
        let stop = call.api.stop.clone();
        call.api.sessions.spawn(async move {
            let joined = async {
                let (client, server) = tokio::try_join!(client, server).ok()?;
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()
            };
            tokio::select! { () = stop.cancelled() => {} _ = joined => {} }
        });
        return Ok(answer.map(|_| reply::full("")));
    }
    let (mut head, body) = answer.into_parts();
    strip(&mut head.headers);
    let back = head.headers.get(LOCATION).and_then(|v| v.to_str().ok()).map(|l| links::location(l, prefix));
    if let Some(back) = back.and_then(|l| HeaderValue::from_str(&l).ok()) {
        head.headers.insert(LOCATION, back);
    }
    if is_page(&head.headers) {
        let whole =
            Limited::new(body, PAGE_BYTES_MAX).collect().await.map_err(|e| unreachable(&e))?.to_bytes();
        let page = match std::str::from_utf8(&whole) {
            Ok(html) => Bytes::from(links::page(html, prefix)),
            Err(_) => whole,
        };
        head.headers.insert(CONTENT_LENGTH, page.len().into());
        return Ok(Reply::from_parts(head, reply::full(page)));
    }
    let frames = BodyStream::new(body).map(|frame| frame.map_err(std::io::Error::other));
    // The request's sender keeps the connection open while the answer is read.
    let frames = frames.map(move |frame| {
        let _ = &sender;
        frame
    });
    Ok(Reply::from_parts(head, reply::frames(frames)))
}

/// Whether the answer is a page whose links can be read.
fn is_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let short = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<usize>().ok())
        .is_none_or(|length| length <= PAGE_BYTES_MAX);
    text(CONTENT_TYPE).starts_with("text/html") && !headers.contains_key(CONTENT_ENCODING) && short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        let named = |tls, name, port| Some(Named { tls, name, port });
        for (text, wanted) in [
            ("p", named(false, "p", "")),
            ("p:80", named(false, "p", "80")),
            ("https:p:web", named(true, "p", "web")),
            (":p:", named(false, "p", "")),
            ("ftp:p:1", None),
            ("a:b:c:d", None),
            (":80", None),
        ] {
            assert_eq!(Named::parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn the_path_behind_proxy_is_the_backends() {
        let pod = "/api/v1/namespaces/a/pods/p/proxy";
        assert_eq!(split_path(pod), (pod, None));
        assert_eq!(split_path(&format!("{pod}/")), (pod, Some("")));
        assert_eq!(split_path(&format!("{pod}/x%2F/y/")), (pod, Some("x%2F/y/")));
    }

    #[test]
    fn a_backend_sees_no_credentials() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("impersonate-user", "root"),
            ("connection", "close, x-own"),
            ("x-own", "1"),
            ("x-kept", "1"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.eA, chat"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        assert_eq!(strip(&mut headers), None);
        forwarded(&mut headers, Some("h:1".parse().unwrap()), "/p", "a");
        let mut left: Vec<String> =
            headers.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "host=h:1",
                "sec-websocket-protocol=chat",
                "x-forwarded-host=h:1",
                "x-forwarded-proto=https",
                "x-forwarded-uri=/p/a",
                "x-kept=1"
            ]
        );
    }
}
