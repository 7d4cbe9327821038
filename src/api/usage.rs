//! `metrics.k8s.io/v1beta1`: what nodes and pods use, as metrics-server serves it.
//!
//! In: the table of measurements. Out: `NodeMetrics` and `PodMetrics`. The first question after a
//! quiet time waits until the nodes have measured.

use std::{collections::BTreeMap, time::Duration};

use hyper::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::{
    Api,
    negotiate::{self, Accepted, Shape},
    render::IncludeObject,
    reply::{self, Reply},
    request::{Query, RequestInfo},
    status::Refusal,
};
use crate::{
    clock::rfc3339_seconds,
    kinds::{Kind, labels::Selector, metrics, quantity::Quantity, registry},
    objects::Error,
    usage::ContainerUse,
};

/// The rows that discovery shows.
pub static KINDS: &[Kind] = &[metrics::NODE_METRICS, metrics::POD_METRICS];
/// All rows that are served: the table's and these.
pub fn served() -> impl Iterator<Item = &'static Kind> + Clone {
    registry::KINDS.iter().chain(KINDS)
}

/// The group of [`KINDS`].
pub const GROUP: &str = "metrics.k8s.io";
/// How long a first question waits for the nodes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers a request for a resource of the group.
pub async fn serve(
    api: &Api,
    headers: &HeaderMap,
    query: &Query,
    info: &RequestInfo,
) -> Result<Reply, Refusal> {
    let path = info.resource.as_ref().ok_or(Refusal::NoSuchPath)?;
    let row = KINDS.iter().find(|k| k.plural == path.plural && k.version == path.version);
    let row = row.ok_or(Refusal::NoSuchPath)?;
    if !path.subresource.is_empty() || !row.namespaced && !path.namespace.is_empty() {
        return Err(Refusal::NoSuchPath);
    }
    if !row.verbs.contains(&info.verb) {
        return Err(Refusal::NoSuchMethod);
    }
    let selector = Selector::parse(query.get("labelSelector").unwrap_or_default())
        .map_err(|e| Refusal::bad_request(e.to_string()))?;
    api.usage.fresh(PATIENCE).await;
    let single = info.verb == "get";
    let mut items = match row.kind {
        "NodeMetrics" => nodes(api, &path.name, &selector),
        _ => pods(api, &path.namespace, &path.name, &selector),
    };
    let value = if single {
        let missing =
            || Error::NotFound { resource: path.resource(), name: named(&path.namespace, &path.name) };
        items.pop().ok_or_else(missing)?
    } else {
        json!({"kind": format!("{}List", row.kind), "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items})
    };
    let accepted = negotiate::resource(headers, single, !single)?;
    let value = match accepted.shape {
        Shape::Table => table(&value, accepted.version, IncludeObject::asked(query)?),
        Shape::Whole | Shape::Metadata | Shape::MetadataList => value,
    };
    let accepted =
        if matches!(accepted.shape, Shape::Whole | Shape::Table) { accepted } else { Accepted::JSON };
    Ok(reply::value(StatusCode::OK, accepted.encoding, query.flag("pretty"), &value))
}

/// One measurement or a list of them as metrics-server's Table: the columns are those of the first row.
fn table(value: &Value, version: &str, include: IncludeObject) -> Value {
    let items = value["items"].as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let columns = items.first().map(|_| {
        [
            column("Name", "name", "Name of the resource"),
            column("cpu", "quantity", ""),
            column("memory", "quantity", ""),
            column("Window", "duration", ""),
        ]
    });
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let sum = |resource: &str| {
                let containers = item["containers"].as_array().into_iter().flatten();
                let amounts = containers.map(|c| &c["usage"]).chain(item.get("usage"));
                amounts
                    .filter_map(|usage| Quantity::from_json(&usage[resource]).ok())
                    .sum::<Quantity>()
                    .to_string()
            };
            let object = match include {
                IncludeObject::None => Value::Null,
                IncludeObject::Object => item.clone(),
                IncludeObject::Metadata => json!({"kind": "PartialObjectMetadata",
                    "apiVersion": format!("meta.k8s.io/{version}"), "metadata": item["metadata"]}),
            };
            json!({"cells": [item["metadata"]["name"], sum("cpu"), sum("memory"), item["window"]],
                "object": object})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {},
        "columnDefinitions": columns, "rows": rows})
}

/// As metrics-server names a pod that it knows nothing of: `ns/name`.
fn named(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

fn nodes(api: &Api, name: &str, selector: &Selector) -> Vec<Value> {
    let measured = api.usage.nodes();
    let all = api.objects.list_typed::<Node>(None);
    let wanted = all.iter().filter(|n| selector.matches_map(n.metadata.labels.as_ref()));
    wanted
        .filter_map(|node| {
            let own = node.metadata.name.as_deref()?;
            let usage = measured.get(own).filter(|_| name.is_empty() || name == own)?;
            let mut item =
                item("NodeMetrics", "", own, node.metadata.labels.as_ref(), usage.at, usage.window);
            item["usage"] = amounts(usage.cpu_nanocores, usage.memory_bytes);
            Some(item)
        })
        .collect()
}

fn pods(api: &Api, namespace: &str, name: &str, selector: &Selector) -> Vec<Value> {
    let all = api.objects.list_typed::<Pod>((!namespace.is_empty()).then_some(namespace));
    let wanted = all.iter().filter(|p| selector.matches_map(p.metadata.labels.as_ref()));
    wanted
        .filter_map(|pod| {
            let (space, own) = (pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
            if !name.is_empty() && name != own {
                return None;
            }
            // Where nothing runs there is nothing to tell, as metrics-server has it.
            let usage = api.usage.of_pod(space, own).filter(|usage| !usage.containers.is_empty())?;
            let mut item =
                item("PodMetrics", space, own, pod.metadata.labels.as_ref(), usage.at, usage.window);
            let container =
                |c: &ContainerUse| json!({"name": c.name, "usage": amounts(c.cpu_nanocores, c.memory_bytes)});
            item["containers"] = usage.containers.iter().map(container).collect();
            Some(item)
        })
        .collect()
}

fn item(
    kind: &str,
    namespace: &str,
    name: &str,
    labels: Option<&BTreeMap<String, String>>,
    at: Timestamp,
    window: SignedDuration,
) -> Value {
    let mut metadata = json!({"name": name, "creationTimestamp": rfc3339_seconds(at)});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    if let Some(labels) = labels.filter(|l| !l.is_empty()) {
        metadata["labels"] = json!(labels);
    }
    let millis = window.as_millis();
    let window = if millis % 1000 == 0 {
        format!("{}s", millis / 1000)
    } else {
        format!("{}.{:03}s", millis / 1000, millis % 1000)
    };
    json!({"kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata,
        "timestamp": rfc3339_seconds(at), "window": window})
}

fn amounts(cpu_nanocores: u64, memory_bytes: u64) -> Value {
    let memory = Quantity::from_bytes(i64::try_from(memory_bytes / 1024 * 1024).unwrap_or(i64::MAX));
    json!({"cpu": format!("{cpu_nanocores}n"), "memory": memory.to_string()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_metrics_server() {
        let at = Timestamp::UNIX_EPOCH;
        let window = SignedDuration::from_millis(15_500);
        let mut pod = item("PodMetrics", "ns", "p", None, at, window);
        pod["containers"] = [(3_000_000, 1 << 20), (2_500_000, 3 << 20)]
            .map(|(cpu, memory)| json!({"name": "c", "usage": amounts(cpu, memory)}))
            .into_iter()
            .collect();
        let list = json!({"items": [pod]});
        let table = table(&list, "v1", IncludeObject::Metadata);
        let names: Vec<&Value> =
            table["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        assert_eq!(names, ["Name", "cpu", "memory", "Window"]);
        assert_eq!(table["rows"][0]["cells"], json!(["p", "5500u", "4Mi", "15.500s"]));
        assert_eq!(table["rows"][0]["object"]["metadata"]["namespace"], "ns");
        let node = item("NodeMetrics", "", "n", None, at, SignedDuration::from_secs(10));
        let mut node = node;
        node["usage"] = amounts(7, 2048);
        let one = super::table(&node, "v1", IncludeObject::None);
        assert_eq!(one["rows"], json!([{"cells": ["n", "7n", "2Ki", "10s"], "object": null}]));
        assert_eq!(super::table(&json!({"items": []}), "v1", IncludeObject::None)["rows"], json!([]));
    }
}
