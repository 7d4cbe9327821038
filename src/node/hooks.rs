//! What is asked of a running container from outside: probes and lifecycle hooks by exec, HTTP,
//! TCP and gRPC.
//!
//! Sources: `pkg/probe`, `pkg/kubelet/lifecycle/handlers.go`. Probes are small state-free calls; who
//! counts thresholds is `probes`.
//! TLS is spoken without verification, as kubelet does.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    runtime::{ExecSpec, Runtime},
    trust,
};

/// What of a command's output or a response's body is kept (bytes; kubelet's `maxRespBodyLength`).
const OUTPUT_BYTES_MAX: usize = 10 * 1024;
/// Redirects that are followed (net/http's bound).
const REDIRECTS_MAX: usize = 10;
/// Between two tries to reach a gRPC server.
const GRPC_DIAL_PAUSE: Duration = Duration::from_millis(100);
/// `ServingStatus` of health.proto, by number.
const SERVING_NAMES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: usize = 1;
/// The names of gRPC's status codes, by number.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// How long a connection without its own timeout may take.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a container is reached.
#[derive(Debug, Clone)]
pub struct Target {
    pub container_id: String,
    pub pod_ip: String,
    pub ports: Vec<(String, i32)>,
}

impl Target {
    pub fn new(container: &Container, container_id: String, pod_ip: String) -> Self {
        let ports = container.ports.iter().flatten();
        let ports = ports.filter_map(|p| Some((p.name.clone()?, p.container_port))).collect();
        Self { container_id, pod_ip, ports }
    }

    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => {
                self.ports.iter().find(|(n, _)| n == name).map(|(_, p)| *p).or_else(|| name.parse().ok())
            }
        };
        let number = number.ok_or_else(|| match port {
            IntOrString::String(name) => format!("strconv.Atoi: parsing {name:?}: invalid syntax"),
            IntOrString::Int(number) => format!("invalid port number: {number}"),
        })?;
        u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
    }
}

/// Why a probe did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// What was asked is not well, or not there.
    Failed(String),
    /// Nothing could be asked: that tells nothing of the container.
    Unknown(String),
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

/// One probe. What is well may still be worth a warning.
///
/// # Errors
/// What was found wrong.
pub async fn probe(
    runtime: &Arc<dyn Runtime>,
    target: &Target,
    probe: &Probe,
) -> Result<Option<String>, Fault> {
    let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
    let named = probe.http_get.as_ref().map(|http| &http.port);
    if let Some(port) = named.or(probe.tcp_socket.as_ref().map(|tcp| &tcp.port)) {
        target.port(port).map_err(Fault::Unknown)?;
    }
    let work = async {
        if let Some(exec) = &probe.exec {
            let done = run(runtime, target, exec).await.map_err(Fault::Unknown)?;
            return if done.code == 0 { Ok(None) } else { Err(Fault::Failed(done.output())) };
        }
        if let Some(http) = &probe.http_get {
            return match get(target, http, "probe").await? {
                Answer { code: code @ 400.., .. } => {
                    Err(format!("HTTP probe failed with statuscode: {code}").into())
                }
                Answer { code: 300.., body, .. } => {
                    Ok(Some(format!("Probe terminated redirects, Response body: {body}")))
                }
                Answer { .. } => Ok(None),
            };
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.pod_ip.clone());
            let port = target.port(&tcp.port)?;
            return dial(&host, port).await.map(|_| None).map_err(Into::into);
        }
        Ok(None)
    };
    if let Some(grpc) = &probe.grpc {
        return grpc_health(target, grpc, timeout).await.map(|()| None).map_err(Fault::Failed);
    }
    if let Ok(result) = tokio::time::timeout(timeout, work).await {
        return result;
    }
    Err(Fault::Failed(match (&probe.exec, &probe.http_get, &probe.tcp_socket) {
        (Some(exec), ..) => {
            let command = exec.command.as_deref().unwrap_or_default().join(" ");
            format!("command timed out: {command:?} timed out after {}s", timeout.as_secs())
        }
        (_, Some(http), _) => {
            let url = Place::of(target, http).map(|place| place.url()).unwrap_or_default();
            format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
        }
        (_, _, Some(tcp)) => {
            let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.pod_ip);
            format!("dial tcp {host}:{}: i/o timeout", target.port(&tcp.port).unwrap_or_default())
        }
        _ => "i/o timeout".to_owned(),
    }))
}

/// One lifecycle hook of a container (`container` of `pod`, in messages), run to its end. Whatever an HTTP
/// server answers is fine, as upstream has it.
///
/// # Errors
/// Why the container waits after it.
pub async fn hook(
    runtime: &Arc<dyn Runtime>,
    target: &Target,
    (container, pod): (&str, &str),
    hook: &LifecycleHandler,
) -> Result<(), String> {
    let whose = format!("for Container {container:?} in Pod {pod:?} failed - error");
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default().join(" ");
        let (error, output) = match run(runtime, target, exec).await {
            Ok(done) if done.code == 0 => return Ok(()),
            Ok(done) => {
                let error = format!("command '{command}' exited with {}: {}", done.code, done.stderr);
                (error, done.output())
            }
            Err(error) => (error, String::new()),
        };
        return Err(format!("Exec lifecycle hook ([{command}]) {whose}: {error}, message: {output:?}"));
    }
    if let Some(http) = &hook.http_get {
        let asked = tokio::time::timeout(HOOK_TIMEOUT, get(target, http, "lifecycle")).await;
        let path = http.path.as_deref().unwrap_or_default();
        return match asked.unwrap_or_else(|_| Err("request timed out".to_owned())) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("HTTP lifecycle hook ({path}) {whose}: {error}")),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    // A tcpSocket may be written down, and was never carried out by anybody.
    Err("Cannot run handler: invalid handler: a hook is one of exec, httpGet and sleep".to_owned())
}

fn plain(error: &std::io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// A command that has ended.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn output(self) -> String {
        let mut output = self.stdout + &self.stderr;
        output.truncate(output.floor_char_boundary(OUTPUT_BYTES_MAX));
        output
    }
}

async fn run(runtime: &Arc<dyn Runtime>, target: &Target, exec: &ExecAction) -> Result<Ran, String> {
    let spec = ExecSpec { args: exec.command.clone().unwrap_or_default(), tty: false, stdin: false };
    let session = runtime.exec(&target.container_id, &spec).await.map_err(|e| e.to_string())?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ((), (), code) =
        tokio::join!(drain(session.stdout, &mut out), drain(session.stderr, &mut err), session.exit);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { code: code.map_err(|e| e.to_string())?, stdout: text(&out), stderr: text(&err) })
}

/// Reads to the end and keeps the beginning.
async fn drain(from: Option<Box<dyn AsyncRead + Send + Unpin>>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// Asks, and follows redirects on the same host; one that leads elsewhere is an answer as well
/// (kubelet's `RedirectChecker`). `why` it asks is told to the server.
async fn get(target: &Target, action: &HTTPGetAction, why: &str) -> Result<Answer, String> {
    let mut place = Place::of(target, action)?;
    for _ in 0..REDIRECTS_MAX {
        let answer = ask(&place, action, why).await?;
        match answer.location.as_ref().and_then(|to| place.after(to)) {
            Some(next) => place = next,
            None => return Ok(answer),
        }
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

/// Where an HTTP request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    scheme: String,
    host: String,
    port: u16,
    path: String,
}

impl Place {
    fn of(target: &Target, action: &HTTPGetAction) -> Result<Self, String> {
        let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.pod_ip.clone());
        let path = action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned());
        Ok(Self {
            scheme: action.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase(),
            port: target.port(&action.port)?,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            host,
        })
    }

    fn url(&self) -> String {
        let Self { scheme, host, port, path } = self;
        format!("{scheme}://{host}:{port}{path}")
    }

    /// Where a `Location` leads, when that is on the same host.
    fn after(&self, location: &str) -> Option<Self> {
        let Some((scheme, rest)) = location.split_once("://") else {
            let path = if location.starts_with('/') {
                location.to_owned()
            } else {
                let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
                format!("{folder}/{location}")
            };
            return Some(Self { path, ..self.clone() });
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let default = if scheme == "https" { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, default),
        };
        (host == self.host).then(|| Self {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            port,
            path: format!("/{path}"),
        })
    }
}

/// What a server has answered.
#[derive(Debug, Default)]
struct Answer {
    code: u16,
    /// Where it leads instead.
    location: Option<String>,
    /// The beginning of what else a redirection has.
    body: String,
}

async fn ask(place: &Place, action: &HTTPGetAction, why: &str) -> Result<Answer, String> {
    let Place { scheme, host, port, path } = place;
    let port = *port;
    let url = place.url();
    let mut request = Request::get(path);
    let mut named: Vec<String> = Vec::new();
    for header in action.http_headers.iter().flatten() {
        named.push(header.name.to_ascii_lowercase());
        request = request.header(&header.name, &header.value);
    }
    for (name, value) in [
        ("host", format!("{host}:{port}")),
        ("user-agent", format!("kube-{why}/1.36")),
        ("accept", "*/*".to_owned()),
        ("connection", "close".to_owned()),
    ] {
        if !named.iter().any(|n| n == name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let failed = |e: &dyn std::fmt::Display| format!("Get {url:?}: {e}");
    let stream = dial(host, port).await.map_err(|e| failed(&e))?;
    if scheme == "https" {
        let stream = tls(stream, host).await.map_err(|e| failed(&e))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    }
    .map_err(|e| failed(&e))
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Some servers know the usual capitals only.
    let shaken = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = shaken.map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let code = response.status().as_u16();
        if !response.status().is_redirection() {
            return Ok(Answer { code, ..Answer::default() });
        }
        let location = response.headers().get("location").and_then(|l| l.to_str().ok());
        let (location, mut body, mut text) = (location.map(str::to_owned), response.into_body(), Vec::new());
        while text.len() < OUTPUT_BYTES_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
        text.truncate(OUTPUT_BYTES_MAX);
        Ok(Answer { code, location, body: String::from_utf8_lossy(&text).into_owned() })
    };
    until_closed(answer, connection).await
}

/// The answer that comes over a connection; why there is none, else. Who closes at once may have answered
/// before.
async fn until_closed<T>(
    answer: impl Future<Output = Result<T, hyper::Error>>,
    connection: impl Future<Output = Result<(), hyper::Error>>,
) -> Result<T, String> {
    let mut answer = pin!(answer);
    let words = |error: hyper::Error| {
        let ended = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
        if ended { "EOF".to_owned() } else { error.to_string() }
    };
    tokio::select! {
        answered = &mut answer => answered.map_err(words),
        ended = connection => answer.await.map_err(|error| words(ended.err().unwrap_or(error))),
    }
}

async fn tls(stream: TcpStream, host: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    // Probes do not verify certificates: they ask whether somebody answers.
    let config = trust::client_config(Arc::new(rustls::crypto::ring::default_provider()), &[])
        .map_err(|e| e.to_string())?;
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())
}

/// Connects, failing in the words of Go's dialer.
async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let unknown = |why: &str| format!("dial tcp: lookup {host}: {why}");
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|error| {
        let text = error.to_string().to_lowercase();
        let busy = ["try again", "temporary failure"].iter().any(|words| text.contains(words));
        unknown(if busy { "server misbehaving" } else { "no such host" })
    })?;
    let mut last = unknown("no such host");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("dial tcp {address}: connect: {}", plain(&error)),
        }
    }
    Err(last)
}

/// `grpc.health.v1.Health/Check` over plain HTTP/2 (the gRPC health checking protocol), in the words
/// of `pkg/probe/grpc`.
async fn grpc_health(target: &Target, action: &GRPCAction, timeout: Duration) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|e| e.to_string())?;
    let address = format!("{}:{port}", target.pod_ip);
    let within = format!("{}s", timeout.as_secs());
    let deadline = Instant::now() + timeout;
    // One that is about to listen is waited for, as gRPC's dialing does.
    let connecting = async {
        loop {
            match TcpStream::connect(&address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(GRPC_DIAL_PAUSE).await,
            }
        }
    };
    let stream = timeout_at(deadline, connecting).await.map_err(|_| {
        format!("timeout: failed to connect service {address:?} within {within}: context deadline exceeded")
    })?;
    let check = grpc_check(stream, &address, action.service.as_deref().unwrap_or_default());
    match timeout_at(deadline, check).await {
        Ok(result) => result,
        Err(_) => Err(format!("timeout: health rpc did not complete within {within}")),
    }
}

async fn grpc_check(stream: TcpStream, address: &str, service: &str) -> Result<(), String> {
    let failed = |code: &str, what: &dyn std::fmt::Display| {
        Err(format!("error: health rpc probe failed: rpc error: code = {code} desc = {what}"))
    };
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(grpc_request(service)))
        .map_err(|e| e.to_string())?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let shaken = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await;
    let (mut sender, connection) = match shaken {
        Ok(both) => both,
        Err(error) => return failed("Unavailable", &error),
    };
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let of = |name: &str| {
            let value = trailers.get(name).or(head.headers.get(name))?;
            value.to_str().ok().map(str::to_owned)
        };
        Ok::<_, hyper::Error>((of("grpc-status"), of("grpc-message"), collected.to_bytes()))
    };
    let (status, message, body) = match until_closed(answer, connection).await {
        Ok(answered) => answered,
        Err(error) => return failed("Unavailable", &error),
    };
    let message = message.unwrap_or_default();
    match status.as_deref() {
        Some("0") => match grpc_serving(&body) {
            SERVING => Ok(()),
            other => Err(format!(
                "service unhealthy (responded with {:?})",
                SERVING_NAMES.get(other).copied().unwrap_or("UNKNOWN")
            )),
        },
        Some("12") => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        code => {
            let code = code.and_then(|code| code.parse::<usize>().ok()).unwrap_or(2);
            failed(GRPC_CODES.get(code).copied().unwrap_or("Unknown"), &message)
        }
    }
}

/// `HealthCheckRequest { string service = 1 }` in a gRPC frame: flag, length, message.
fn grpc_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// The status of a framed `HealthCheckResponse { ServingStatus status = 1 }`; 0 when it is not said.
fn grpc_serving(body: &[u8]) -> usize {
    match body.get(5..) {
        Some([0x08, status, ..]) => usize::from(*status),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use hyper::{HeaderMap, Response, body::Frame, service::service_fn};
    use k8s_openapi::api::core::v1::TCPSocketAction;
    use tokio::net::TcpListener;

    use super::*;
    use crate::runtime::fake::FakeRuntime;

    async fn asked(probe: &Probe) -> Result<Option<String>, String> {
        let runtime: Arc<dyn Runtime> = Arc::new(FakeRuntime::new(Arc::new(crate::clock::SystemClock)));
        let target =
            Target { container_id: "c".into(), pod_ip: "127.0.0.1".into(), ports: vec![("web".into(), 1)] };
        super::probe(&runtime, &target, probe).await.map_err(|fault| match fault {
            Fault::Failed(text) => text,
            Fault::Unknown(text) => format!("unknown: {text}"),
        })
    }

    fn over_http(port: u16, scheme: &str) -> Probe {
        let action: HTTPGetAction = serde_json::from_value(serde_json::json!({
            "port": port, "path": "healthz", "scheme": scheme, "httpHeaders": [{"name": "X-Ask", "value": "1"}],
        }))
        .unwrap();
        Probe { http_get: Some(action), ..Probe::default() }
    }

    /// Answers with the code that stands for what was asked, to as many connections as come.
    async fn web(tls: Option<tokio_rustls::TlsAcceptor>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|request: Request<hyper::body::Incoming>| {
                    let right = request.uri().path() == "/healthz"
                        && request.headers().get("x-ask").is_some_and(|v| v == "1")
                        && request.headers()["user-agent"].to_str().unwrap().starts_with("kube-probe/");
                    let answer = Response::builder();
                    let answer = match request.uri().path() {
                        "/away" => answer.status(302).header("location", "http://example.com/"),
                        "/there" => answer.status(302).header("location", "/healthz"),
                        "/nowhere" => answer.status(304),
                        _ => answer.status(if right { 200 } else { 500 }),
                    };
                    ready(answer.body(Full::new(Bytes::from_static(b"<a>Found</a>"))))
                });
                let http = hyper::server::conn::http1::Builder::new();
                match &tls {
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { continue };
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                    None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                }
            }
        });
        port
    }

    fn acceptor() -> tokio_rustls::TlsAcceptor {
        let own = rcgen::generate_simple_self_signed(vec!["somebody.else".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        Arc::new(config).into()
    }

    #[tokio::test]
    async fn http_and_https_are_probed() {
        let (plain, secure) = (web(None).await, web(Some(acceptor())).await);
        assert_eq!(asked(&over_http(plain, "HTTP")).await, Ok(None));
        assert_eq!(asked(&over_http(secure, "HTTPS")).await, Ok(None), "a certificate of another name");
        let mut other = over_http(secure, "HTTPS");
        other.http_get.as_mut().unwrap().path = Some("/other".into());
        assert_eq!(asked(&other).await, Err("HTTP probe failed with statuscode: 500".into()));
        for (path, warning) in [
            ("/there", None),
            ("/away", Some("Probe terminated redirects, Response body: <a>Found</a>")),
            ("/nowhere", Some("Probe terminated redirects, Response body: ")),
        ] {
            let mut redirected = over_http(plain, "HTTP");
            redirected.http_get.as_mut().unwrap().path = Some(path.into());
            assert_eq!(asked(&redirected).await, Ok(warning.map(str::to_owned)), "{path}");
        }
        let mut nameless = over_http(plain, "HTTP");
        nameless.http_get.as_mut().unwrap().port = IntOrString::String("absent".into());
        let unknown = "unknown: strconv.Atoi: parsing \"absent\": invalid syntax";
        assert_eq!(asked(&nameless).await, Err(unknown.to_owned()));
        let wrong = asked(&over_http(plain, "HTTPS")).await.unwrap_err();
        assert!(wrong.starts_with(&format!("Get \"https://127.0.0.1:{plain}/healthz\": ")), "{wrong}");
    }

    #[tokio::test]
    async fn who_closes_as_soon_as_it_has_answered_has_answered() {
        use tokio::io::AsyncWriteExt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut guest, _)) = listener.accept().await {
                let _ = guest.read(&mut [0; 1024]).await;
                let _ = guest.write_all(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        });
        for _ in 0..20 {
            assert_eq!(asked(&over_http(port, "HTTP")).await, Ok(None));
        }
    }

    #[tokio::test]
    async fn who_is_deaf_or_silent_fails_in_gos_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = listener.local_addr().unwrap().port();
        let gone = {
            let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
            closed.local_addr().unwrap().port()
        };
        let tcp = |port: u16| Probe {
            tcp_socket: Some(TCPSocketAction { host: None, port: IntOrString::Int(port.into()) }),
            ..Probe::default()
        };
        let grpc = |port: u16| Probe {
            grpc: Some(GRPCAction { port: port.into(), service: None }),
            ..Probe::default()
        };
        assert_eq!(asked(&tcp(silent)).await, Ok(None));
        let refused = "connect: connection refused";
        assert_eq!(asked(&tcp(gone)).await, Err(format!("dial tcp 127.0.0.1:{gone}: {refused}")));
        let url = |port: u16| format!("Get \"http://127.0.0.1:{port}/healthz\": ");
        let http = asked(&over_http(gone, "HTTP")).await;
        assert_eq!(http, Err(format!("{}dial tcp 127.0.0.1:{gone}: {refused}", url(gone))));
        tokio::time::pause();
        let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
        assert_eq!(asked(&over_http(silent, "HTTP")).await, Err(format!("{}{late}", url(silent))));
        assert_eq!(
            asked(&grpc(gone)).await,
            Err(format!(
                "timeout: failed to connect service \"127.0.0.1:{gone}\" within 1s: context deadline exceeded"
            ))
        );
        assert_eq!(
            asked(&grpc(silent)).await,
            Err("timeout: health rpc did not complete within 1s".to_owned())
        );
    }

    /// Speaks the health protocol: each service's name says how it is.
    async fn health() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let message = request.into_body().collect().await.unwrap().to_bytes();
                    let name = String::from_utf8(message.get(7..).unwrap_or_default().to_vec()).unwrap();
                    let (status, words, serving) = match &*name {
                        "" => ("0", "", 1),
                        "down" => ("0", "", 2),
                        "old" => ("12", "unknown service grpc.health.v1.Health", 0),
                        _ => ("5", "unknown service", 0),
                    };
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    trailers.insert("grpc-message", words.parse().unwrap());
                    let frame = Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]);
                    let frames = [Frame::data(frame), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
                    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
                    Response::builder().header("content-type", "application/grpc").body(body)
                });
                let executor = hyper_util::rt::TokioExecutor::new();
                let http = hyper::server::conn::http2::Builder::new(executor);
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn grpc_services_are_probed() {
        let port = health().await;
        let ask = async |service: &str| {
            let action = GRPCAction { port: port.into(), service: Some(service.to_owned()) };
            asked(&Probe { grpc: Some(action), ..Probe::default() }).await
        };
        assert_eq!(ask("").await, Ok(None));
        for (service, text) in [
            ("down", "service unhealthy (responded with \"NOT_SERVING\")"),
            (
                "old",
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown service grpc.health.v1.Health",
            ),
            ("nobody", "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"),
        ] {
            assert_eq!(ask(service).await, Err(text.to_owned()), "{service}");
        }
    }

    #[test]
    fn long_names_of_services_are_framed() {
        let frame = grpc_request(&"s".repeat(300));
        assert_eq!(frame[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
        assert_eq!(frame.len(), 8 + 300);
    }

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        let here = Place { scheme: "http".into(), host: "10.42.0.5".into(), port: 8080, path: "/a/b".into() };
        for (location, expect) in [
            ("/x", Some("http 8080 /x")),
            ("c", Some("http 8080 /a/c")),
            ("http://10.42.0.5:9090/y", Some("http 9090 /y")),
            ("https://10.42.0.5", Some("https 443 /")),
            ("http://example.com/", None),
        ] {
            let next = here.after(location).map(|p| format!("{} {} {}", p.scheme, p.port, p.path));
            assert_eq!(next.as_deref(), expect, "{location}");
        }
    }
}
