//! What is asked of a running container from outside: probes and lifecycle hooks by exec, HTTP,
//! TCP and gRPC.
//!
//! Sources: `pkg/probe`, `pkg/kubelet/lifecycle/handlers.go`. Probes are small state-free calls; who
//! counts thresholds is `probes`.
//! TLS is spoken without verification, as kubelet does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
};

use crate::{
    runtime::{ExecSpec, Runtime},
    trust,
};

/// What of a command's output or a response's body is kept (bytes; kubelet's `maxRespBodyLength`).
const OUTPUT_BYTES_MAX: usize = 10 * 1024;
/// Redirects that are followed (net/http's bound).
const REDIRECTS_MAX: usize = 10;
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
        number
            .and_then(|n| u16::try_from(n).ok())
            .filter(|n| *n > 0)
            .ok_or_else(|| format!("couldn't find port: {port:?}"))
    }
}

/// One probe. `Ok` is success (with what was answered), `Err` failure and its text.
pub async fn probe(runtime: &Arc<dyn Runtime>, target: &Target, probe: &Probe) -> Result<(), String> {
    let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
    let work = async {
        if let Some(exec) = &probe.exec {
            return run(runtime, target, exec).await.and_then(|(code, output)| match code {
                0 => Ok(()),
                _ => Err(output),
            });
        }
        if let Some(http) = &probe.http_get {
            return get(target, http).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.pod_ip.clone());
            let port = target.port(&tcp.port)?;
            return TcpStream::connect((host.as_str(), port))
                .await
                .map(drop)
                .map_err(|e| format!("dial tcp {host}:{port}: connect: {}", plain(&e)));
        }
        if let Some(grpc) = &probe.grpc {
            return grpc_health(target, grpc.port, grpc.service.as_deref().unwrap_or_default()).await;
        }
        Ok(())
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) if probe.exec.is_some() => {
            let command = probe.exec.as_ref().and_then(|e| e.command.as_ref()).map(|c| c.join(" "));
            Err(format!(
                "command timed out: {:?} timed out after {}s",
                command.unwrap_or_default(),
                timeout.as_secs()
            ))
        }
        Err(_) if probe.http_get.is_some() => {
            Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())
        }
        Err(_) => Err("i/o timeout".to_owned()),
    }
}

/// One lifecycle hook, run to its end.
///
/// # Errors
/// Its failure, as the event tells it.
pub async fn hook(
    runtime: &Arc<dyn Runtime>,
    target: &Target,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let (code, output) = run(runtime, target, exec).await?;
        let command = exec.command.clone().unwrap_or_default().join(" ");
        return match code {
            0 => Ok(()),
            _ => Err(format!("command '{command}' exited with {code}: {output}")),
        };
    }
    if let Some(http) = &hook.http_get {
        return tokio::time::timeout(HOOK_TIMEOUT, get(target, http))
            .await
            .map_err(|_| "request timed out".to_owned())?;
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    if let Some(tcp) = &hook.tcp_socket {
        let host = tcp.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.pod_ip.clone());
        let port = target.port(&tcp.port)?;
        return TcpStream::connect((host.as_str(), port)).await.map(drop).map_err(|e| e.to_string());
    }
    Ok(())
}

fn plain(error: &std::io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

async fn run(
    runtime: &Arc<dyn Runtime>,
    target: &Target,
    exec: &ExecAction,
) -> Result<(i32, String), String> {
    let spec = ExecSpec { args: exec.command.clone().unwrap_or_default(), tty: false, stdin: false };
    let session = runtime.exec(&target.container_id, &spec).await.map_err(|e| e.to_string())?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ((), (), code) =
        tokio::join!(drain(session.stdout, &mut out), drain(session.stderr, &mut err), session.exit);
    out.extend(err);
    out.truncate(OUTPUT_BYTES_MAX);
    Ok((code.map_err(|e| e.to_string())?, String::from_utf8_lossy(&out).into_owned()))
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
/// (kubelet's `RedirectChecker`).
async fn get(target: &Target, action: &HTTPGetAction) -> Result<(), String> {
    let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.pod_ip.clone());
    let path = action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned());
    let mut place = Place {
        scheme: action.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase(),
        port: target.port(&action.port)?,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        host,
    };
    for _ in 0..REDIRECTS_MAX {
        match ask(&place, action).await? {
            (200..300, _) => return Ok(()),
            (300..400, location) => match location.and_then(|to| place.after(&to)) {
                Some(next) => place = next,
                None => return Ok(()),
            },
            (code, _) => return Err(format!("HTTP probe failed with statuscode: {code}")),
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

/// One request: its status, and where it is redirected to.
async fn ask(place: &Place, action: &HTTPGetAction) -> Result<(u16, Option<String>), String> {
    let Place { scheme, host, port, path } = place;
    let port = *port;
    let url = format!("{scheme}://{host}:{port}{path}");
    let mut request = Request::get(path);
    let mut named: Vec<String> = Vec::new();
    for header in action.http_headers.iter().flatten() {
        named.push(header.name.to_ascii_lowercase());
        request = request.header(&header.name, &header.value);
    }
    for (name, value) in [
        ("host", format!("{host}:{port}")),
        ("user-agent", "kube-probe/1.36".to_owned()),
        ("accept", "*/*".to_owned()),
    ] {
        if !named.iter().any(|n| n == name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let failed = |e: &dyn std::fmt::Display| format!("Get {url:?}: {e}");
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|e| failed(&format!("dial tcp {host}:{port}: connect: {}", plain(&e))))?;
    if scheme == "https" {
        let stream = tls(stream, host).await.map_err(|e| failed(&e))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    }
    .map_err(|e| failed(&e))
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(u16, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let location = response.headers().get("location").and_then(|l| l.to_str().ok());
        Ok((response.status().as_u16(), location.map(str::to_owned)))
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => Err(ended.err().map_or_else(|| "EOF".to_owned(), |e| e.to_string())),
    }
}

async fn tls(stream: TcpStream, host: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    // Probes do not verify certificates: they ask whether somebody answers.
    let config = trust::client_config(Arc::new(rustls::crypto::ring::default_provider()), &[])
        .map_err(|e| e.to_string())?;
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())
}

/// `grpc.health.v1.Health/Check` over plain HTTP/2 (the gRPC health checking protocol).
async fn grpc_health(target: &Target, port: i32, service: &str) -> Result<(), String> {
    let port = u16::try_from(port).map_err(|e| e.to_string())?;
    let failed = |e: &dyn std::fmt::Display| {
        format!("timeout: failed to connect service \"{}:{port}\" within 1s: {e}", target.pod_ip)
    };
    let stream = TcpStream::connect((target.pod_ip.as_str(), port)).await.map_err(|e| failed(&e))?;
    // HealthCheckRequest { string service = 1 } in a gRPC frame: flag, length, message.
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        message.push(u8::try_from(service.len()).map_err(|_| "service name is too long".to_owned())?);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend(message);
    let request = Request::post(format!("http://{}:{port}/grpc.health.v1.Health/Check", target.pod_ip))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(frame)))
        .map_err(|e| e.to_string())?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let header = response.headers().get("grpc-status").cloned();
        let collected = response.into_body().collect().await.map_err(|e| failed(&e))?;
        let status = header.or_else(|| collected.trailers().and_then(|t| t.get("grpc-status").cloned()));
        let status = status.and_then(|s| s.to_str().ok().map(str::to_owned)).unwrap_or_default();
        Ok::<_, String>((status, collected.to_bytes()))
    };
    let (status, body) = tokio::select! {
        answer = answer => answer?,
        _ = connection => return Err(failed(&"connection closed")),
    };
    match (status.as_str(), body.get(5..)) {
        ("0", Some([0x08, 1, ..])) => Ok(()),
        ("0", _) => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
        ("12", _) => {
            Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                .to_owned())
        }
        (code, _) => Err(format!("error: health rpc probe failed with status {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
