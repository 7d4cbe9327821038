//! A small client of the Kubernetes API: one kubeconfig, and one connection for what is answered in a piece.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where a server on this machine leaves its kubeconfig.
const SERVER_KUBECONFIG: &str = "/var/lib/sampan/kubeconfig";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<Named>,
    users: Vec<Named>,
    contexts: Vec<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    cluster: Cluster,
    user: User,
    context: Context_,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Context_ {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

type Sender = http1::SendRequest<Full<Bytes>>;

/// The API server and who we are to it.
pub struct Client {
    host: String,
    port: u16,
    token: Option<String>,
    tls: TlsConnector,
    /// The connection whose last answer was read to its end: a handshake costs more than most answers.
    idle: Mutex<Option<Sender>>,
    /// The context's namespace.
    pub namespace: String,
}

/// An answer that is not a success: the server's Status message.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub code: u16,
    pub reason: String,
    pub message: String,
}

impl Client {
    /// Reads the kubeconfig: as given, `$KUBECONFIG`, the local server's, `~/.kube/config`.
    pub fn load(given: Option<&Path>, context: Option<&str>) -> anyhow::Result<Self> {
        let path = find(given)?;
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let config: Kubeconfig =
            serde_yaml::from_str(&text).with_context(|| format!("kubeconfig {}", path.display()))?;
        let wanted = context.unwrap_or(&config.current_context);
        let pick = |list: &[Named], name: &str, what: &str| -> anyhow::Result<usize> {
            list.iter()
                .position(|n| n.name == name)
                .with_context(|| format!("kubeconfig {}: no {what} {name:?}", path.display()))
        };
        let context = config.contexts[pick(&config.contexts, wanted, "context")?].context.clone();
        let cluster = config.clusters[pick(&config.clusters, &context.cluster, "cluster")?].cluster.clone();
        let user = config.users[pick(&config.users, &context.user, "user")?].user.clone();
        let folder = path.parent().unwrap_or(Path::new("."));
        let (host, port) = address(&cluster.server)?;
        Ok(Self {
            host,
            port,
            token: user.token.clone(),
            tls: TlsConnector::from(Arc::new(tls(&cluster, &user, folder)?)),
            idle: Mutex::default(),
            namespace: context.namespace.unwrap_or_else(|| "default".to_owned()),
        })
    }

    /// Sends a request and returns the answer whatever its status. `path` starts with `/`.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        Ok(self.exchange(request).await?.0)
    }

    /// As [`Self::send`], with the connection, which is free again when the answer was read to its end.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(Response<Incoming>, Sender)> {
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(header::HOST, format!("{}:{}", self.host, self.port).parse()?);
        parts.headers.insert(header::USER_AGENT, concat!("sampan/", env!("CARGO_PKG_VERSION")).parse()?);
        if let Some(token) = &self.token {
            parts.headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse()?);
        }
        let mut request = Request::from_parts(parts, body);
        let idle = self.idle.lock().expect("no holder of the connection's lock panics").take();
        if let Some(mut sender) = idle {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                // The server has closed it meanwhile, and has not seen the request.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await?;
        Ok((response, sender))
    }

    async fn connect(&self) -> anyhow::Result<Sender> {
        let at = format!("{}:{}", self.host, self.port);
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .with_context(|| format!("connect to the server {at} - is `sampan server` running?"))?;
        tcp.set_nodelay(true)?;
        let name =
            ServerName::try_from(self.host.clone()).with_context(|| format!("server name {}", self.host))?;
        let tls = self.tls.connect(name, tcp).await.with_context(|| format!("TLS with {at}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        // The connection ends with its sender and its last response; the process is short-lived.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    /// Sends and wants a success; anything else becomes [`Refused`].
    pub async fn expect(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        let (response, sender) = self.exchange(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        Err(refused(code, &self.read(response, sender).await?).into())
    }

    /// Reads an answer to its end and keeps the connection.
    async fn read(&self, response: Response<Incoming>, sender: Sender) -> anyhow::Result<Bytes> {
        let body = response.into_body().collect().await?.to_bytes();
        *self.idle.lock().expect("no holder of the connection's lock panics") = Some(sender);
        Ok(body)
    }

    /// A request with a JSON answer.
    pub async fn json(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(u16, Value)> {
        let (response, sender) = self.exchange(request).await?;
        let (status, body) = (response.status(), self.read(response, sender).await?);
        if !status.is_success() {
            return Err(refused(status.as_u16(), &body).into());
        }
        Ok((status.as_u16(), serde_json::from_slice(&body).context("the server's answer is not JSON")?))
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.json(request(Method::GET, path, "application/json", None)?).await?.1)
    }
}

/// What the server says in an answer that is no success.
fn refused(code: u16, body: &[u8]) -> Refused {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |field: &str| status[field].as_str().map(str::to_owned);
    Refused {
        code,
        reason: text("reason").unwrap_or_default(),
        message: text("message").unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned()),
    }
}

/// A request; a body comes with its content type.
pub fn request(
    method: Method,
    path: &str,
    accept: &str,
    body: Option<(&str, Vec<u8>)>,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let mut builder = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
    let mut bytes = Bytes::new();
    if let Some((kind, content)) = body {
        builder = builder.header(header::CONTENT_TYPE, kind);
        bytes = content.into();
    }
    Ok(builder.body(Full::new(bytes))?)
}

/// `text` as a query value (RFC 3986, section 2.3).
pub fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

fn find(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("KUBECONFIG").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
    [Some(PathBuf::from(SERVER_KUBECONFIG)), home]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
        .context("no kubeconfig: give --kubeconfig FILE (a server writes one into its data directory)")
}

fn address(server: &str) -> anyhow::Result<(String, u16)> {
    let uri: hyper::Uri = server.parse().with_context(|| format!("server {server:?}"))?;
    if uri.scheme_str() != Some("https") {
        bail!("server {server:?}: only https is supported");
    }
    let host = uri.host().with_context(|| format!("server {server:?} has no host"))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443)))
}

fn tls(cluster: &Cluster, user: &User, folder: &Path) -> anyhow::Result<rustls::ClientConfig> {
    if cluster.insecure_skip_tls_verify {
        bail!(
            "insecure-skip-tls-verify is not supported: put the cluster's certificate authority into the kubeconfig"
        );
    }
    let ca =
        pem(cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref(), folder)?
            .context("the kubeconfig's cluster has no certificate authority")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&ca) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let chain = pem(user.client_certificate_data.as_deref(), user.client_certificate.as_deref(), folder)?;
    let key = pem(user.client_key_data.as_deref(), user.client_key.as_deref(), folder)?;
    Ok(match (chain, key) {
        (Some(chain), Some(key)) => {
            let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?
        }
        _ => builder.with_no_client_auth(),
    })
}

/// PEM text from base64 in the kubeconfig or a file named there.
fn pem(data: Option<&str>, file: Option<&Path>, folder: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(data) = data {
        return Ok(Some(BASE64_STANDARD.decode(data.trim()).context("base64 in the kubeconfig")?));
    }
    file.map(|file| {
        let path = folder.join(file);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    })
    .transpose()
}
