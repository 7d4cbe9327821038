//! A small HTTPS client for one pull: connections that are kept, redirects, limits in time and size.
//!
//! In: URLs. Out: responses whose bodies are read chunk by chunk. Invariants: no wait is without a limit; credentials
//! never follow a redirect to another host; trusted roots live as long as the client, which is one pull.
//! Deliberately absent: HTTP/2, proxies, cookies, compression.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;

use crate::trust;

/// Time for name, TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(15);
const REDIRECTS_MAX: usize = 5;
const AGENT: &str = concat!("sampan/", env!("CARGO_PKG_VERSION"));

/// Why a request has no answer. Worded as Go's client, for the texts that people search for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("failed to do request: {} \"{url}\": {message}", title(method))]
pub struct Error {
    method: Method,
    url: String,
    message: String,
}

/// A method as Go's client writes it in errors.
fn title(method: &Method) -> String {
    let (first, rest) = method.as_str().split_at(1);
    first.to_owned() + &rest.to_lowercase()
}

/// How a host is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust {
    /// Certificates are checked.
    pub verify: bool,
    /// A host that does not speak TLS is spoken to without.
    pub plain_fallback: bool,
}

type Connection = SendRequest<Empty<Bytes>>;

/// See the module.
pub struct Client {
    /// Folder of additional trusted certificates: `*.crt`, `*.pem` for all hosts, `<host>/*.crt` for one.
    certificates: Option<PathBuf>,
    /// Files of such certificates, by host.
    authorities: BTreeMap<String, PathBuf>,
    /// The longest time without a byte.
    pub stall: Duration,
    roots: OnceLock<Arc<RootCertStore>>,
    idle: Mutex<HashMap<(String, bool), Vec<Connection>>>,
    /// Hosts found not to speak TLS.
    plain: Mutex<Vec<String>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Client {
    pub fn new(
        certificates: Option<PathBuf>,
        authorities: BTreeMap<String, PathBuf>,
        stall: Duration,
    ) -> Self {
        Self {
            certificates,
            authorities,
            stall,
            roots: OnceLock::new(),
            idle: Mutex::default(),
            plain: Mutex::default(),
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// Sends a request without a body and follows redirects. Any status is an answer.
    pub async fn send(
        &self,
        method: &Method,
        url: &str,
        fields: &[(HeaderName, String)],
        trust: Trust,
    ) -> Result<Response<Incoming>, Error> {
        let failed =
            |url: &str, message: String| Error { method: method.clone(), url: url.to_owned(), message };
        let mut url: Uri = url.parse().map_err(|error| failed(url, format!("malformed URL: {error}")))?;
        let (first_host, first_tls) = (url.authority().cloned(), url.scheme_str() == Some("https"));
        for _ in 0..=REDIRECTS_MAX {
            let same_host = url.authority() == first_host.as_ref();
            // Elsewhere, only what the first host was allowed goes without TLS.
            let mut request = Request::new(Empty::new());
            *request.method_mut() = method.clone();
            for (name, value) in fields {
                if *name == AUTHORIZATION && !same_host {
                    continue;
                }
                let value =
                    HeaderValue::from_str(value).map_err(|e| failed(&url.to_string(), e.to_string()))?;
                request.headers_mut().append(name, value);
            }
            let answer = timeout(self.stall + CONNECT, self.send_one(&url, request, trust));
            let answer = match answer.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(message)) => return Err(failed(&url.to_string(), message)),
                Err(_) => {
                    return Err(failed(&url.to_string(), "timeout awaiting response headers".to_owned()));
                }
            };
            let Some(location) = redirection(&answer) else { return Ok(answer) };
            url = resolve(&url, &location)
                .ok_or_else(|| failed(&url.to_string(), format!("malformed redirection to {location:?}")))?;
            if first_tls && url.scheme_str() == Some("http") && !trust.plain_fallback {
                return Err(failed(&url.to_string(), "refusing a redirection from https to http".to_owned()));
            }
        }
        Err(failed(&url.to_string(), format!("stopped after {REDIRECTS_MAX} redirects")))
    }

    async fn send_one(
        &self,
        url: &Uri,
        mut request: Request<Empty<Bytes>>,
        trust: Trust,
    ) -> Result<Response<Incoming>, String> {
        let authority = url.authority().ok_or("the URL has no host")?.as_str().to_owned();
        let host = authority.rsplit_once('@').map_or(authority.as_str(), |(_, host)| host).to_owned();
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|error| format!("malformed path: {error}"))?;
        request.headers_mut().insert(HOST, HeaderValue::from_str(&host).map_err(|error| error.to_string())?);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let wants_tls = url.scheme_str() != Some("http")
            && !self.plain.lock().expect("no panic with the lock").contains(&host);
        // A kept connection may have been closed meanwhile; then a new one is made.
        if let Some(mut kept) = self.take_idle(&host, wants_tls)
            && let Ok(answer) = kept.send_request(request.clone()).await
        {
            self.keep(host, wants_tls, kept);
            return Ok(answer);
        }
        let (mut connection, tls) = self.connect(&host, wants_tls, trust).await?;
        let answer = connection.send_request(request).await.map_err(|error| chain(&error))?;
        self.keep(host, tls, connection);
        Ok(answer)
    }

    fn take_idle(&self, host: &str, tls: bool) -> Option<Connection> {
        let mut idle = self.idle.lock().expect("no panic with the lock");
        let kept = idle.get_mut(&(host.to_owned(), tls))?;
        kept.retain(|connection| !connection.is_closed());
        let ready = kept.iter().position(SendRequest::is_ready)?;
        Some(kept.swap_remove(ready))
    }

    fn keep(&self, host: String, tls: bool, connection: Connection) {
        self.idle.lock().expect("no panic with the lock").entry((host, tls)).or_default().push(connection);
    }

    /// Connects; the flag tells whether TLS is spoken.
    async fn connect(&self, host: &str, tls: bool, trust: Trust) -> Result<(Connection, bool), String> {
        if tls {
            let attempt = async {
                let stream = tcp(host, 443).await?;
                let name =
                    ServerName::try_from(bare_host(host).to_owned()).map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(Arc::new(self.tls(host, trust.verify)?));
                connector.connect(name, stream).await.map_err(|error| format!("tls: {error}"))
            };
            match timeout(CONNECT, attempt)
                .await
                .unwrap_or_else(|_| Err("timeout while connecting".to_owned()))
            {
                Ok(stream) => return Ok((self.start(TokioIo::new(stream)).await?, true)),
                // A server that answers in plain text, or has nothing on the port of TLS.
                Err(message)
                    if trust.plain_fallback
                        && !message.contains("certificate")
                        && (message.starts_with("tls: ") || !host_has_port(host)) => {}
                Err(message) => return Err(message),
            }
        }
        let stream = timeout(CONNECT, tcp(host, 80))
            .await
            .unwrap_or_else(|_| Err("dial tcp: i/o timeout".to_owned()))?;
        let connection = self.start(TokioIo::new(stream)).await?;
        if tls {
            self.plain.lock().expect("no panic with the lock").push(host.to_owned());
        }
        Ok((connection, false))
    }

    async fn start<T>(&self, stream: TokioIo<T>) -> Result<Connection, String>
    where
        TokioIo<T>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(stream).await.map_err(|error| chain(&error))?;
        let mut tasks = self.tasks.lock().expect("no panic with the lock");
        while tasks.try_join_next().is_some() {}
        // Ends with the peer, the sender, or this client. Its error is seen by the request.
        tasks.spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn tls(&self, host: &str, verify: bool) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        if !verify {
            return trust::client_config(provider, &[]).map_err(|error| error.to_string());
        }
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        Ok(builder.with_root_certificates(self.roots(host)).with_no_client_auth())
    }

    fn roots(&self, host: &str) -> Arc<RootCertStore> {
        let system = self.roots.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            }
            add_folder(&mut roots, self.certificates.as_deref());
            Arc::new(roots)
        });
        let own = self.certificates.as_ref().map(|folder| folder.join(host)).filter(|folder| folder.is_dir());
        let authority = self.authorities.get(host);
        if own.is_none() && authority.is_none() {
            return system.clone();
        }
        let mut roots = RootCertStore::clone(system);
        add_folder(&mut roots, own.as_deref());
        if let Some(file) = authority {
            add_file(&mut roots, file);
        }
        Arc::new(roots)
    }
}

/// Adds the certificates of `*.crt` and `*.pem` files.
fn add_folder(roots: &mut RootCertStore, folder: Option<&Path>) {
    let Some(entries) = folder.and_then(|folder| std::fs::read_dir(folder).ok()) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == "crt" || extension == "pem") {
            add_file(roots, &path);
        }
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) {
    let loaded = rustls_native_certs::load_certs_from_paths(Some(path), None);
    for error in loaded.errors {
        tracing::warn!(%error, path = %path.display(), "certificate not loaded");
    }
    roots.add_parsable_certificates(loaded.certs);
}

/// Reads a body whole; the error says that it is longer than `limit` bytes or stopped coming.
pub async fn read_body(mut body: Incoming, limit: u64, stall: Duration) -> Result<Bytes, String> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut body, stall).await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// The next bytes of a body; `None` at its end.
pub async fn next_chunk(body: &mut Incoming, stall: Duration) -> Result<Option<Bytes>, String> {
    loop {
        match timeout(stall, body.frame()).await {
            Err(_) => return Err(format!("no data for {} s", stall.as_secs_f32())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(chain(&error)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The text of a header field.
pub fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn redirection<B>(answer: &Response<B>) -> Option<String> {
    matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308)
        .then(|| field(answer.headers(), &LOCATION).map(str::to_owned))
        .flatten()
}

/// The absolute form of a `Location` (RFC 3986, section 5; paths that start with `/` only).
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().ok();
    }
    let scheme = base.scheme_str()?;
    if location.starts_with("//") {
        return format!("{scheme}:{location}").parse().ok();
    }
    location
        .starts_with('/')
        .then(|| format!("{scheme}://{}{location}", base.authority()?).parse().ok())
        .flatten()
}

/// The host without port and brackets.
fn bare_host(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => host.split(':').next().unwrap_or(host),
    }
}

fn host_has_port(host: &str) -> bool {
    host.rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
        && !host.ends_with(']')
}

async fn tcp(host: &str, default_port: u16) -> Result<TcpStream, String> {
    let port = if host_has_port(host) {
        host.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).ok_or("malformed port")?
    } else {
        default_port
    };
    let name = bare_host(host);
    let addresses = tokio::net::lookup_host((name, port))
        .await
        .map_err(|error| format!("dial tcp: lookup {name}: {error}"))?;
    let mut last = format!("dial tcp: lookup {name}: no such host");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            Err(error) => last = format!("dial tcp {address}: connect: {}", plain(&error)),
        }
    }
    Err(last)
}

/// The system's words without Rust's error number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_made_absolute() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?y=z".parse().unwrap();
        for (location, want) in [
            ("https://cdn.example/b?s=1", Some("https://cdn.example/b?s=1")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/b", Some("https://r.example:5000/b")),
            ("ftp://x/", None),
            ("", None),
        ] {
            assert_eq!(resolve(&base, location).map(|uri| uri.to_string()).as_deref(), want, "{location}");
        }
    }

    #[test]
    fn hosts_have_ports_or_not() {
        for (host, bare, port) in [
            ("a.b", "a.b", false),
            ("a.b:5000", "a.b", true),
            ("[::1]", "::1", false),
            ("[::1]:5000", "::1", true),
        ] {
            assert_eq!((bare_host(host), host_has_port(host)), (bare, port), "{host}");
        }
    }
}
