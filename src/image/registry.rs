//! One registry as one pull sees it: manifests and blobs of a repository.
//!
//! Source: OCI distribution spec 1.1, "Pull". Error texts are containerd's, because people search for them.

use std::{sync::Mutex, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{
    Method, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, HeaderName, RANGE, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use tokio::{sync::mpsc, time::sleep};

use super::{
    Credentials,
    auth::{Challenge, encode},
    digest::{hex_part, sha256},
    http::{Client, Trust, field, next_chunk, read_body},
    manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, MANIFEST_BYTES_MAX, OCI_INDEX, OCI_MANIFEST},
};
use crate::oci::Reference;

/// Largest answer of a token server (bytes).
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// Largest error body that is looked at (bytes).
const ERROR_BYTES_MAX: u64 = 64 * 1024;
/// Tries of a blob without progress in between.
const TRIES_MAX: u32 = 5;
/// What counts as progress (bytes).
const PROGRESS_BYTES: u64 = 1 << 20;
/// First pause before the next try; it doubles.
const RETRY: Duration = Duration::from_millis(500);

/// Another place to get a registry's images from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirror {
    /// `http://board:5000`, or with a path that takes the place of `/v2`: `https://host/v2/hub`.
    pub url: String,
    /// Prefixes of repositories and what replaces them: `("library/", "mirrored/")`.
    pub rewrite: Vec<(String, String)>,
    pub credentials: Option<Credentials>,
}

/// Where a pull asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://registry-1.docker.io/v2`
    pub base: String,
    pub repository: String,
    pub trust: Trust,
    /// The registry that a mirror is asked for; sent as `ns`.
    pub namespace: Option<String>,
    /// Of a mirror; the pull's own are for the registry itself.
    pub credentials: Option<Credentials>,
}

impl Endpoint {
    /// The mirrors of a reference's registry and then the registry itself.
    pub fn of<'a>(
        reference: &Reference,
        mirrors: impl IntoIterator<Item = &'a Mirror>,
        insecure: impl Fn(&str) -> bool,
    ) -> Vec<Self> {
        let trust = |host: &str| {
            let insecure = insecure(host);
            Trust { verify: !insecure, plain_fallback: insecure || is_loopback(host) }
        };
        let mut endpoints: Vec<Self> = mirrors
            .into_iter()
            .map(|mirror| {
                let url = mirror.url.trim_end_matches('/');
                let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
                let authority = url.split("://").nth(1).unwrap_or_default();
                let host = authority.split('/').next().unwrap_or_default();
                let base = if authority.contains('/') { url.clone() } else { format!("{url}/v2") };
                let rewritten = mirror.rewrite.iter().find_map(|(from, to)| {
                    reference.path.strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}"))
                });
                Self {
                    base,
                    repository: rewritten.unwrap_or_else(|| reference.path.clone()),
                    trust: trust(host),
                    namespace: Some(reference.domain.clone()),
                    credentials: mirror.credentials.clone(),
                }
            })
            .collect();
        let host = if reference.domain == "docker.io" { "registry-1.docker.io" } else { &reference.domain };
        endpoints.push(Self {
            base: format!("https://{host}/v2"),
            repository: reference.path.clone(),
            trust: trust(&reference.domain),
            namespace: None,
            credentials: None,
        });
        endpoints
    }

    fn url(&self, kind: &str, object: &str) -> String {
        let mut url = format!("{}/{}/{kind}/{object}", self.base, self.repository);
        if let Some(namespace) = &self.namespace {
            url.push_str("?ns=");
            encode(&mut url, namespace);
        }
        url
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Why the registry did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not found")]
    NotFound,
    /// Other credentials may do.
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Denied(String),
    #[error("{0}")]
    Other(String),
    /// Worth another try.
    #[error("{0}")]
    Broken(String),
}

/// A repository reached with one set of credentials.
pub struct Repository<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    credentials: Option<&'a Credentials>,
    /// The value of `Authorization` that worked.
    authorization: Mutex<Option<String>>,
}

#[derive(Debug, Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

/// The errors a registry explains itself with.
#[derive(Debug, Deserialize)]
struct Explanation {
    errors: Vec<ExplainedError>,
}

#[derive(Debug, Deserialize)]
struct ExplainedError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl<'a> Repository<'a> {
    pub fn new(client: &'a Client, endpoint: &'a Endpoint, credentials: Option<&'a Credentials>) -> Self {
        Self { client, endpoint, credentials, authorization: Mutex::new(None) }
    }

    /// The digest that a tag has now, when the registry says it without the manifest.
    pub async fn head(&self, object: &str) -> Result<Option<String>, Error> {
        let answer = self.request(&Method::HEAD, "manifests", object, &accept()).await?;
        let digest = field(answer.headers(), &HeaderName::from_static("docker-content-digest"));
        Ok(digest.filter(|digest| hex_part(digest).is_some()).map(str::to_owned))
    }

    /// A manifest or index and its digest. `object` is a tag, or a digest that is checked.
    pub async fn manifest(&self, object: &str) -> Result<(Bytes, String), Error> {
        let answer = self.request(&Method::GET, "manifests", object, &accept()).await?;
        let said =
            field(answer.headers(), &HeaderName::from_static("docker-content-digest")).map(str::to_owned);
        let bytes = read_body(answer.into_body(), MANIFEST_BYTES_MAX, self.client.stall)
            .await
            .map_err(Error::Broken)?;
        let digest = sha256(&bytes);
        let wanted = if object.contains(':') { Some(object.to_owned()) } else { said };
        match wanted {
            Some(wanted) if wanted != digest && hex_part(&wanted).is_some() => {
                Err(Error::Other(format!("manifest has unexpected digest: {digest}, expected {wanted}")))
            }
            _ => Ok((bytes, digest)),
        }
    }

    /// A small blob, checked.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let answer = self.request(&Method::GET, "blobs", &descriptor.digest, &[]).await?;
        let bytes =
            read_body(answer.into_body(), descriptor.size, self.client.stall).await.map_err(Error::Broken)?;
        let found = sha256(&bytes);
        if found == descriptor.digest {
            Ok(bytes)
        } else {
            Err(Error::Other(format!("unexpected digest: {found}, expected {}", descriptor.digest)))
        }
    }

    /// Sends a blob's bytes, `descriptor.size` of them, in order to `to`; goes on where a broken connection
    /// stopped. `done` hears how many there are. Ends early without error when nobody receives.
    pub async fn stream(
        &self,
        descriptor: &Descriptor,
        to: &mpsc::Sender<Bytes>,
        done: impl Fn(u64),
    ) -> Result<(), Error> {
        let (mut sent, mut tries, mut last_progress) = (0, 0, 0);
        loop {
            let result = self.stream_from(descriptor, &mut sent, to, &done).await;
            let Err(Error::Broken(message)) = result else { return result };
            if sent >= last_progress + PROGRESS_BYTES {
                (tries, last_progress) = (0, sent);
            }
            tries += 1;
            if tries >= TRIES_MAX {
                return Err(Error::Other(format!(
                    "{message} ({sent} of {} bytes, {tries} tries)",
                    descriptor.size
                )));
            }
            tracing::debug!(blob = descriptor.digest, sent, message, "blob broken off, going on");
            sleep((RETRY * 2_u32.pow(tries - 1)).min(self.client.stall)).await;
        }
    }

    async fn stream_from(
        &self,
        descriptor: &Descriptor,
        sent: &mut u64,
        to: &mpsc::Sender<Bytes>,
        done: impl Fn(u64),
    ) -> Result<(), Error> {
        let size = descriptor.size;
        let range = (*sent > 0).then(|| (RANGE, format!("bytes={sent}-")));
        let answer = self.request(&Method::GET, "blobs", &descriptor.digest, range.as_slice()).await?;
        // A server without ranges sends all again.
        let mut skip = 0;
        let expected = if answer.status() == StatusCode::PARTIAL_CONTENT {
            let start = field(answer.headers(), &CONTENT_RANGE).and_then(range_start);
            if start != Some(*sent) {
                return Err(Error::Other(format!("unexpected range from byte {start:?}, asked for {sent}")));
            }
            size - *sent
        } else {
            skip = *sent;
            size
        };
        let length = field(answer.headers(), &CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length != expected) {
            return Err(Error::Other(format!(
                "unexpected size: the registry sends {length} bytes of {expected} promised"
            )));
        }
        let mut body = answer.into_body();
        while let Some(mut chunk) = next_chunk(&mut body, self.client.stall).await.map_err(Error::Broken)? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(skipped as usize);
            *sent += chunk.len() as u64;
            if *sent > size {
                return Err(Error::Other(format!("unexpected size: more than {size} bytes promised")));
            }
            if !chunk.is_empty() && to.send(chunk).await.is_err() {
                return Ok(());
            }
            done(*sent);
        }
        if *sent < size {
            return Err(Error::Broken("unexpected end of the blob".to_owned()));
        }
        Ok(())
    }

    /// An answered request; other than 2xx is an error.
    async fn request(
        &self,
        method: &Method,
        kind: &str,
        object: &str,
        fields: &[(HeaderName, String)],
    ) -> Result<Response<Incoming>, Error> {
        let url = self.endpoint.url(kind, object);
        let mut challenged = false;
        loop {
            let mut fields = fields.to_vec();
            let authorization = self.authorization.lock().expect("no panic with the lock").clone();
            fields.extend(authorization.map(|value| (AUTHORIZATION, value)));
            let answer = self.client.send(method, &url, &fields, self.endpoint.trust).await;
            let answer = answer.map_err(|error| Error::Broken(error.to_string()))?;
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                let challenges = answer.headers().get_all(WWW_AUTHENTICATE);
                let challenge = Challenge::parse(challenges.iter().filter_map(|value| value.to_str().ok()));
                let authorization = self.answer(challenge).await?;
                *self.authorization.lock().expect("no panic with the lock") = Some(authorization);
                continue;
            }
            if status.is_success() {
                return Ok(answer);
            }
            let explained = self.explanation(answer).await;
            return Err(match status.as_u16() {
                401 | 403 => Error::Denied(format!(
                    "server message: {}",
                    explained.unwrap_or_else(|| status.to_string())
                )),
                404 => Error::NotFound,
                429 => Error::Broken(format!(
                    "429 Too Many Requests - Server message: {}",
                    explained.unwrap_or_else(|| "toomanyrequests".to_owned())
                )),
                code => {
                    let message = format!("unexpected status from {method} request to {url}: {status}");
                    if code >= 500 { Error::Broken(message) } else { Error::Other(message) }
                }
            });
        }
    }

    async fn explanation(&self, answer: Response<Incoming>) -> Option<String> {
        let body = read_body(answer.into_body(), ERROR_BYTES_MAX, self.client.stall).await.ok()?;
        let explanation: Explanation = serde_json::from_slice(&body).ok()?;
        let error = explanation.errors.into_iter().next()?;
        Some(format!("{}: {}", error.code.to_lowercase(), error.message))
    }

    /// The `Authorization` that answers a challenge.
    async fn answer(&self, challenge: Option<Challenge>) -> Result<String, Error> {
        let basic = self
            .credentials
            .map(|c| format!("Basic {}", STANDARD.encode(format!("{}:{}", c.username, c.password))));
        match challenge {
            None => Err(Error::Denied("server message: no authentication that is supported".to_owned())),
            Some(Challenge::Basic) => basic.ok_or_else(|| {
                Error::Denied("server message: authorization failed: no basic auth credentials".to_owned())
            }),
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.endpoint.repository));
                let account = self.credentials.map(|credentials| credentials.username.as_str());
                let url = Challenge::token_url(&realm, service.as_deref(), &scope, account);
                let secure = url.starts_with("https://")
                    || self.endpoint.trust.plain_fallback
                    || self.endpoint.base.starts_with("http://");
                let fields: Vec<_> =
                    basic.filter(|_| secure).map(|basic| (AUTHORIZATION, basic)).into_iter().collect();
                self.token(&url, &fields).await
            }
        }
    }

    async fn token(&self, url: &str, fields: &[(HeaderName, String)]) -> Result<String, Error> {
        let kind = if fields.is_empty() { "anonymous" } else { "oauth" };
        let failed =
            |message: String| format!("failed to authorize: failed to fetch {kind} token: {message}");
        let answer = self.client.send(&Method::GET, url, fields, self.endpoint.trust).await;
        let answer = answer.map_err(|error| Error::Broken(failed(error.to_string())))?;
        let status = answer.status();
        if !status.is_success() {
            let message = failed(format!("unexpected status from GET request to {url}: {status}"));
            return Err(match status.as_u16() {
                401 | 403 => Error::Denied(message),
                500.. | 429 => Error::Broken(message),
                _ => Error::Other(message),
            });
        }
        let body = read_body(answer.into_body(), TOKEN_BYTES_MAX, self.client.stall).await;
        let token: Token = serde_json::from_slice(&body.map_err(|error| Error::Broken(failed(error)))?)
            .map_err(|error| Error::Other(failed(error.to_string())))?;
        Ok(format!("Bearer {}", token.token))
    }
}

fn accept() -> [(HeaderName, String); 1] {
    [(ACCEPT, [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, "*/*;q=0.1"].join(", "))]
}

/// The first byte of `bytes 5-9/10`.
fn range_start(text: &str) -> Option<u64> {
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_mirrors_then_the_registry() {
        let reference: Reference = "nginx".parse().unwrap();
        let mirrors = [
            Mirror { url: "http://board:5000/".to_owned(), ..Mirror::default() },
            Mirror {
                url: "https://cache.example/v2/hub".to_owned(),
                rewrite: vec![("library/".to_owned(), "official/".to_owned())],
                ..Mirror::default()
            },
        ];
        let endpoints = Endpoint::of(&reference, &mirrors, |host| host == "board:5000");
        let urls: Vec<String> =
            endpoints.iter().map(|endpoint| endpoint.url("manifests", "latest")).collect();
        assert_eq!(
            urls,
            [
                "http://board:5000/v2/library/nginx/manifests/latest?ns=docker.io",
                "https://cache.example/v2/hub/official/nginx/manifests/latest?ns=docker.io",
                "https://registry-1.docker.io/v2/library/nginx/manifests/latest",
            ]
        );
        let trusts: Vec<(bool, bool)> =
            endpoints.iter().map(|endpoint| (endpoint.trust.verify, endpoint.trust.plain_fallback)).collect();
        assert_eq!(trusts, [(false, true), (true, false), (true, false)]);
    }

    #[test]
    fn loopback_registries_may_be_plain() {
        for (host, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("::1", false),
            ("a.localhost", false),
        ] {
            assert_eq!(is_loopback(host), want, "{host}");
        }
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
    }
}
