//! `nodes/<name>/proxy/…`: what a node's kubelet would tell over HTTP: `metrics`,
//! `metrics/cadvisor`, `metrics/resource`, `stats/summary`, `pods`, `healthz`, `configz`.
//!
//! Nothing listens on a node: the question goes through its link.

use hyper::{Method, Request, StatusCode, body::Incoming};
use k8s_openapi::api::core::v1::Node;

use super::{refused, way_to};
use crate::{
    api::{
        reply::{self, Reply},
        status::Refusal,
        verbs::Call,
    },
    kinds::registry,
    streams::StreamError,
};

pub async fn serve(call: &Call, request: Request<Incoming>) -> Result<Reply, Refusal> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::NoSuchMethod);
    }
    // `name`, `name:port`, `scheme:name:port`: there is only one place to ask.
    let parts: Vec<&str> = call.path.name.split(':').collect();
    let name = match parts.as_slice() {
        [name] | [name, _] | [_, name, _] => *name,
        _ => return Err(Refusal::bad_request(format!("invalid node request {:?}", call.path.name))),
    };
    call.api.objects.get(registry::of::<Node>(), "", name)?;
    let path = call.path.rest.trim_matches('/').to_owned();
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let body = way_to(call, name)?.ask_node(name, &format!("{path}{query}")).await;
    let body = match body {
        Err(StreamError::NotFound(text)) => return Ok(reply::text(StatusCode::NOT_FOUND, text)),
        body => body.map_err(refused)?,
    };
    let content_type = match path.as_str() {
        "pods" | "stats/summary" | "configz" => "application/json",
        path if path.starts_with("metrics") => "text/plain; version=0.0.4; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    Ok(reply::reply(StatusCode::OK, content_type, reply::full(body)))
}
