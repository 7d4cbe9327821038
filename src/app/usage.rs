//! Asks the nodes what they use, while somebody wants to know.

use std::{convert::Infallible, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use crate::{
    objects::Objects,
    streams::NodeStreams,
    tasks::CancellationToken,
    usage::{ContainerUse, NodeUse, Table},
};

/// Between two measurements (metrics-server's resolution).
const PERIOD: Duration = Duration::from_secs(15);
/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const QUESTION: &str = "stats/summary?only_cpu_and_memory=true";

/// Runs until told to stop.
pub async fn run(
    objects: Objects,
    nodes: Arc<dyn NodeStreams>,
    table: Arc<Table>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let work = async {
        loop {
            table.wanted().await;
            let names: Vec<String> = objects
                .list_typed::<Node>(None)
                .iter()
                .filter_map(|node| node.metadata.name.clone())
                .filter(|name| nodes.is_connected(name))
                .collect();
            let asks = names.iter().map(async |name| {
                match tokio::time::timeout(ANSWER_TIMEOUT, nodes.ask_node(name, QUESTION)).await {
                    Ok(Ok(body)) => match serde_json::from_slice(&body) {
                        Ok(summary) => table.put(name, read(&summary, objects.clock().now())),
                        Err(error) => tracing::warn!(node = name, %error, "a node's usage is not understood"),
                    },
                    Ok(Err(error)) => tracing::debug!(node = name, %error, "asking for usage"),
                    Err(_) => tracing::debug!(node = name, "a node does not tell what it uses"),
                }
            });
            futures_util::future::join_all(asks).await;
            table.round(&names);
            tokio::time::sleep(PERIOD).await;
        }
    };
    stop.run_until_cancelled(work).await;
    Ok(())
}

/// A node's summary as a measurement of `now`, by the master's clock.
fn read(summary: &Value, now: Timestamp) -> NodeUse {
    let cpu = |of: &Value| of["cpu"]["usageNanoCores"].as_u64().unwrap_or(0);
    let memory = |of: &Value| of["memory"]["workingSetBytes"].as_u64().unwrap_or(0);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = summary["pods"].as_array().into_iter().flatten().map(|pod| {
        let containers = pod["containers"].as_array().into_iter().flatten();
        let containers = containers.map(|c| ContainerUse {
            name: text(&c["name"]),
            cpu_nanocores: cpu(c),
            memory_bytes: memory(c),
        });
        let key = (text(&pod["podRef"]["namespace"]), text(&pod["podRef"]["name"]));
        (key, containers.collect())
    });
    NodeUse {
        at: now,
        window: SignedDuration::from_millis(summary["windowMilliseconds"].as_i64().unwrap_or(15_000)),
        cpu_nanocores: cpu(&summary["node"]),
        memory_bytes: memory(&summary["node"]),
        pods: pods.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read() {
        let amount = |cpu: u64, memory: u64| serde_json::json!({"cpu": {"usageNanoCores": cpu}, "memory": {"workingSetBytes": memory}});
        let mut container = amount(3, 4);
        container["name"] = "c".into();
        let summary = serde_json::json!({
            "windowMilliseconds": 1000,
            "node": amount(1, 2),
            "pods": [{"podRef": {"name": "p", "namespace": "ns"}, "containers": [container]}],
        });
        let usage = read(&summary, Timestamp::UNIX_EPOCH);
        assert_eq!((usage.cpu_nanocores, usage.memory_bytes, usage.window.as_secs()), (1, 2, 1));
        let pod = &usage.pods[&("ns".to_owned(), "p".to_owned())];
        assert_eq!((pod[0].cpu_nanocores, pod[0].memory_bytes), (3, 4));
    }
}
