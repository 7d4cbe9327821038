//! One request: authenticated, authorised, routed.

use std::{sync::Arc, time::Instant};

use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, VARY},
};
use k8s_openapi::api::core::v1::Endpoints;
use serde_json::{Value, json};

use super::{
    Api, authn, authz, discovery, health,
    negotiate::{self, Discovery, Encoding},
    openapi,
    reply::{self, Reply},
    request::{Query, RequestInfo},
    status::Refusal,
    tls::CertificateIdentity,
    usage, verbs,
};
use crate::{
    ids,
    kinds::registry::{self, KINDS},
    objects::token,
};

/// Names a request; taken over from clients that name theirs.
const AUDIT_ID: &str = "audit-id";

/// The certificate of a connection.
pub enum Presented {
    Nothing,
    /// One that our authority does not vouch for.
    Unknown,
    Certificate(CertificateIdentity),
}

/// Answers a request; every refusal is a Status.
pub async fn handle(api: Arc<Api>, presented: &Presented, request: Request<Incoming>) -> Reply {
    let began = Instant::now();
    api.metrics.begin();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let kind = info.resource.as_ref().and_then(|r| registry::by_path(&r.group, &r.version, &r.plural));
    let verb = info.verb;
    let path = info.path.clone();
    let audit = request.headers().get(AUDIT_ID).cloned();
    let encoding = negotiate::resource(request.headers(), true, true).map_or(Encoding::Json, |a| a.encoding);
    let answer = route(&api, presented, request, query, info).await;
    let mut answer = answer.unwrap_or_else(|refusal| {
        let nobodys = matches!(refusal, Refusal::NoSuchPath) && !is_served(&path);
        reply::refused(if nobodys { &Refusal::NoSuchPage } else { &refusal }, encoding)
    });
    let headers = answer.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    if let Some(id) = audit.or_else(|| HeaderValue::from_str(&ids::new_uid()).ok()) {
        headers.insert(AUDIT_ID, id);
    }
    let (group, resource) = kind.map_or(("", ""), |k| (k.group, k.plural));
    api.metrics.end(verb, group, resource, answer.status().as_u16(), began.elapsed());
    answer
}

async fn route(
    api: &Arc<Api>,
    presented: &Presented,
    request: Request<Incoming>,
    query: Query,
    info: RequestInfo,
) -> Result<Reply, Refusal> {
    let user = authn::authenticate(api, presented, request.headers())?;
    authz::authorize(&api.objects, &user, &info)?;
    if info.resource.as_ref().is_some_and(|path| path.group == usage::GROUP) {
        return usage::serve(api, request.headers(), &query, &info).await;
    }
    if info.resource.is_some() {
        return verbs::handle(api, user, request, query, info).await;
    }
    let parts: Vec<&str> = info.path.split('/').filter(|p| !p.is_empty()).collect();
    let document = Document::at(&parts).ok_or(Refusal::NoSuchPath)?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::NoSuchMethod);
    }
    document.answer(api, request.headers(), &query).await
}

/// Whether a path belongs to the core group, or to another group that there is.
fn is_served(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next()) {
        (Some("api"), _) => true,
        (Some("apis"), Some(group)) => is_group(group, None),
        _ => false,
    }
}

/// Whether there is a group, in a version if one is asked for.
fn is_group(group: &str, version: Option<&str>) -> bool {
    let mut kinds = usage::served().filter(|kind| !kind.group.is_empty());
    kinds.any(|kind| kind.group == group && version.is_none_or(|version| kind.version == version))
}

/// What there is to read beside resources.
enum Document<'a> {
    Paths,
    Health(health::Asked<'a>),
    OpenApi(openapi::Document),
    Version,
    Metrics,
    /// `/api` or `/apis`.
    Roots {
        core: bool,
    },
    Group(&'a str),
    Resources(&'a str, &'a str),
    TokenIssuer,
    TokenKeys,
}

impl<'a> Document<'a> {
    /// The document at a path, given as its parts; nothing of it is built yet.
    fn at(parts: &[&'a str]) -> Option<Self> {
        Some(match *parts {
            [] => Self::Paths,
            [probe @ ("healthz" | "livez" | "readyz"), ref single @ ..] => {
                Self::Health(health::Asked::of(probe, single)?)
            }
            ["openapi", ref rest @ ..] => Self::OpenApi(openapi::Document::at(rest)?),
            ["version"] => Self::Version,
            ["metrics"] => Self::Metrics,
            [root @ ("api" | "apis")] => Self::Roots { core: root == "api" },
            ["api", "v1"] => Self::Resources("", "v1"),
            ["apis", group] if is_group(group, None) => Self::Group(group),
            ["apis", group, version] if is_group(group, Some(version)) => Self::Resources(group, version),
            [".well-known", "openid-configuration"] => Self::TokenIssuer,
            ["openid", "v1", "jwks"] => Self::TokenKeys,
            _ => return None,
        })
    }

    async fn answer(self, api: &Api, headers: &HeaderMap, query: &Query) -> Result<Reply, Refusal> {
        match self {
            Self::Paths => Ok(reply::json(StatusCode::OK, &json!({"paths": paths()}))),
            Self::Health(asked) => Ok(health::check(api, &asked, query).await),
            Self::OpenApi(document) => document.answer(api, headers, query),
            Self::Version => Ok(reply::json(StatusCode::OK, &health::version())),
            Self::Metrics => Ok(health::metrics(api)),
            Self::Roots { core } => Ok(roots(api, headers, core)),
            Self::Group(group) => discovery::group(KINDS, group)
                .map(|value| reply::json(StatusCode::OK, &value))
                .ok_or(Refusal::NoSuchPath),
            Self::Resources(group, version) => resources(headers, group, version),
            Self::TokenIssuer => {
                let document = json!({"issuer": token::ISSUER, "jwks_uri": format!("{}/openid/v1/jwks", token::ISSUER),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"]});
                Ok(reply::json(StatusCode::OK, &document))
            }
            Self::TokenKeys => {
                let settings = api.objects.settings().ok_or(Refusal::NoSuchPath)?;
                let keys = settings.tokens.key_set().to_string();
                Ok(reply::reply(StatusCode::OK, "application/jwk-set+json", reply::full(keys)))
            }
        }
    }
}

fn resources(headers: &HeaderMap, group: &str, version: &str) -> Result<Reply, Refusal> {
    let list = discovery::resource_list(KINDS, group, version).ok_or(Refusal::NoSuchPath)?;
    let accepted = negotiate::resource(headers, false, false).unwrap_or(negotiate::Accepted::JSON);
    Ok(reply::value(StatusCode::OK, accepted.encoding, false, &list))
}

/// `/api` and `/apis`, in the form the client prefers, with an entity tag.
fn roots(api: &Api, headers: &HeaderMap, core: bool) -> Reply {
    let form = negotiate::discovery(headers);
    let document = match form {
        Discovery::Aggregated(version) => discovery::aggregated(KINDS, core, version),
        Discovery::Legacy if core => discovery::core_versions(&reached_at(api)),
        Discovery::Legacy => discovery::group_list(KINDS),
    };
    let mut answer = tagged(headers, &discovery::content_type(form), &document);
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    answer
}

/// Where the API says it can be reached: at its own endpoint, when it listens everywhere.
fn reached_at(api: &Api) -> String {
    let own = || {
        let endpoints = api.objects.get_typed::<Endpoints>("default", "kubernetes")?;
        let address = endpoints.subsets.as_ref()?.first()?.addresses.as_ref()?.first()?;
        Some(format!("{}:{}", address.ip, api.address.port()))
    };
    let listening = api.address.to_string();
    if api.address.ip().is_unspecified() { own().unwrap_or(listening) } else { listening }
}

/// A document with its digest as entity tag; `304` when the client has it.
fn tagged(headers: &HeaderMap, content_type: &str, document: &Value) -> Reply {
    let text = document.to_string();
    let digest = ring::digest::digest(&ring::digest::SHA512, text.as_bytes());
    let tag = format!("\"{}\"", ids::hex(digest.as_ref()).to_ascii_uppercase());
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let known = known.is_some_and(|v| v.split(',').any(|t| t.trim().trim_start_matches("W/") == tag));
    let mut answer = if known {
        reply::reply(StatusCode::NOT_MODIFIED, content_type, reply::full(""))
    } else {
        reply::reply(StatusCode::OK, content_type, reply::full(text))
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    answer
}

/// All paths that are no resources (`GET /`).
fn paths() -> Vec<String> {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz"]
            .into_iter()
            .chain([
                "/livez",
                "/metrics",
                "/openapi/v2",
                "/openapi/v3",
                "/openid/v1/jwks",
                "/readyz",
                "/version",
            ])
            .map(str::to_owned)
            .collect();
    for kind in usage::served().filter(|k| !k.group.is_empty()) {
        paths.push(format!("/apis/{}", kind.group));
        paths.push(format!("/apis/{}/{}", kind.group, kind.version));
    }
    paths.sort();
    paths.dedup();
    paths
}
