//! Subresources that stream: log, exec, attach, portforward, proxy.
//!
//! In: a request and the way to nodes ([`NodeStreams`]). Out: a chunked body, or an upgraded
//! connection. Invariants: the node is reached before the client is answered, so that every failure
//! is a Status; sessions end with the server and with either side.

mod links;
mod log;
mod node;
mod pipe;
mod port_forward;
mod proxy;
mod session;
mod spdy;
mod spdy_front;
mod upgrade;
mod web_front;
mod web_ports;
mod websocket;

use std::sync::Arc;

use hyper::{Request, body::Incoming};
use serde_json::Value;

use super::{reply::Reply, status::Refusal, verbs::Call};
use crate::{
    kinds::registry,
    objects,
    streams::{NodeStreams, StreamError, Target},
};

/// Serves a streaming subresource.
pub async fn serve(call: &Call, name: &str, request: Request<Incoming>) -> Result<Reply, Refusal> {
    match name {
        "log" => log::serve(call, request).await,
        "exec" | "attach" => session::serve(call, name == "exec", request).await,
        "portforward" => port_forward::serve(call, request).await,
        "proxy" if call.kind.kind == "Node" => node::serve(call, request).await,
        "proxy" => proxy::serve(call, request).await,
        _ => Err(Refusal::NoSuchMethod),
    }
}

/// Whether a subresource is served here, for a verb (empty for methods that are none).
pub fn is_stream(name: &str, verb: &str) -> bool {
    match name {
        "log" => verb == "get",
        "exec" | "attach" | "portforward" => matches!(verb, "get" | "create"),
        "proxy" => true,
        _ => false,
    }
}

fn nodes(call: &Call) -> Result<Arc<dyn NodeStreams>, Refusal> {
    call.api
        .streams
        .get()
        .cloned()
        .ok_or_else(|| objects::Error::Unavailable("this server has no way to its nodes".to_owned()).into())
}

/// The way to a node that is there. Told before an upgrade is looked at: clients that fail to
/// upgrade try another protocol, and show that one's refusal.
fn way_to(call: &Call, node: &str) -> Result<Arc<dyn NodeStreams>, Refusal> {
    let nodes = nodes(call)?;
    if nodes.is_connected(node) { Ok(nodes) } else { Err(refused(StreamError::NodeAway(node.to_owned()))) }
}

fn refused(error: StreamError) -> Refusal {
    let text = error.to_string();
    match error {
        StreamError::NodeAway(_) => objects::Error::Unavailable(text).into(),
        StreamError::Timeout(_) => objects::Error::Timeout(text).into(),
        StreamError::NotFound(_) => Refusal::bad_request(text),
        StreamError::Refused(_) => Refusal::internal(text),
    }
}

/// The pod of the request.
fn pod(call: &Call) -> Result<Value, Refusal> {
    let kind = registry::of::<k8s_openapi::api::core::v1::Pod>();
    Ok(call.api.objects.get(kind, call.namespace(), &call.path.name)?.value())
}

/// The container that the request names, or the only one there is; `None` when the pod has no node.
fn target(call: &Call, pod: &Value, container: &str) -> Result<Option<Target>, Refusal> {
    let name = &call.path.name;
    let names = |list: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
    };
    let main = names("containers");
    let container = match (container, main.as_slice()) {
        ("", [only]) => only.clone(),
        ("", all) => {
            let choice = format!("choose one of: [{}]", all.join(" "));
            let init = names("initContainers");
            let init = if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            };
            return Err(Refusal::bad_request(format!(
                "a container name must be specified for pod {name}, {choice}{init}"
            )));
        }
        (given, all) => {
            let known = all
                .iter()
                .chain(&names("initContainers"))
                .chain(&names("ephemeralContainers"))
                .any(|c| c == given);
            if !known {
                return Err(Refusal::bad_request(format!("container {given} is not valid for pod {name}")));
            }
            given.to_owned()
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = text(&pod["spec"]["nodeName"]);
    if node.is_empty() {
        return Ok(None);
    }
    let uid = text(&pod["metadata"]["uid"]);
    Ok(Some(Target { node, namespace: call.namespace().to_owned(), pod: name.clone(), uid, container }))
}
