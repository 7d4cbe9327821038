//! `sampan node remove`: takes a board out of the cluster, with its pods and its credential.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::{Args, Subcommand};
use hyper::Method;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    State,
    kube::{
        Refused,
        client::{Client, request},
    },
};
use crate::objects::credentials::{NAME, NAMESPACE, REMOVED};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
/// Between two looks at the pods that are leaving.
const LOOK: Duration = Duration::from_millis(200);
/// Marks the master's own node.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

#[derive(Debug, Args)]
pub struct Node {
    #[command(flatten)]
    state: State,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Move a board's pods away, revoke its certificate and forget it
    #[command(visible_alias = "rm")]
    Remove {
        name: String,
        /// Do not wait for the pods to move, whatever disruption budgets say
        #[arg(long)]
        force: bool,
        /// How long the pods may take
        #[arg(long, default_value = "2m", value_name = "TIME")]
        timeout: SignedDuration,
    },
}

pub async fn run(args: Node) -> anyhow::Result<ExitCode> {
    let client = Client::load(Some(&args.state.data_dir.join("kubeconfig")), None)?;
    let Verb::Remove { name, force, timeout } = args.verb;
    let path = format!("/api/v1/nodes/{name}");
    let node = client.get(&path).await?;
    if node["metadata"]["labels"].get(CONTROL_PLANE).is_some_and(|_| is_ready(&node)) {
        bail!("{name} is the master's own node; start the server with --disable agent to have none");
    }
    patch(&client, &path, &json!({"spec": {"unschedulable": true}})).await?;
    if is_ready(&node) && !force {
        drain(&client, &name, timeout).await?;
    }
    revoke(&client, &name).await?;
    match client.json(request(Method::DELETE, &path, JSON, None)?).await {
        Err(error) if !is_not_found(&error) => return Err(error),
        _ => println!("node {name} removed; its certificate is no longer good"),
    }
    Ok(ExitCode::SUCCESS)
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 404)
}

async fn patch(client: &Client, path: &str, patch: &Value) -> anyhow::Result<Value> {
    let body = serde_json::to_vec(patch)?;
    Ok(client.json(request(Method::PATCH, path, JSON, Some((MERGE, body)))?).await?.1)
}

/// Evicts the node's pods until none is left but those of DaemonSets, as `kubectl drain` does.
async fn drain(client: &Client, node: &str, timeout: SignedDuration) -> anyhow::Result<()> {
    let pods = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    let deadline = Instant::now() + timeout.unsigned_abs();
    let mut waiting_for = String::new();
    loop {
        let list = client.get(&pods).await?;
        let left: Vec<&Value> =
            list["items"].as_array().into_iter().flatten().filter(|pod| !is_of_daemon_set(pod)).collect();
        if left.is_empty() {
            return Ok(());
        }
        for pod in &left {
            let meta = &pod["metadata"];
            let (namespace, name) = (meta["namespace"].as_str(), meta["name"].as_str());
            let (Some(namespace), Some(name)) = (namespace, name) else { continue };
            if !meta["deletionTimestamp"].is_null() {
                continue;
            }
            if let Err(error) = evict(client, namespace, name).await {
                let text = format!("pod {namespace}/{name}: {error}");
                if text != waiting_for {
                    eprintln!("{text}");
                }
                waiting_for = text;
            }
        }
        if Instant::now() > deadline {
            bail!("{} pods are still on {node}; --force does not wait for them", left.len());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_of_daemon_set(pod: &Value) -> bool {
    let owners = pod["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().any(|owner| owner["kind"] == "DaemonSet")
}

async fn evict(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()> {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace}});
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
    let body = serde_json::to_vec(&eviction)?;
    match client.json(request(Method::POST, &path, JSON, Some((JSON, body)))?).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Notes that no certificate of the node is good any more; a connected board hears it at once.
async fn revoke(client: &Client, node: &str) -> anyhow::Result<()> {
    let maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let data = json!({"data": {node: REMOVED}});
    match patch(client, &format!("{maps}/{NAME}"), &data).await {
        Err(error) if is_not_found(&error) => {}
        done => return done.map(drop),
    }
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {node: REMOVED}});
    let body = serde_json::to_vec(&map)?;
    client.json(request(Method::POST, &maps, JSON, Some((JSON, body)))?).await.map(drop)
}
