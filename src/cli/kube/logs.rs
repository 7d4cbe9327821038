//! `logs`: a container's output; `-f` follows.

use anyhow::bail;
use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{
    client::{Client, escape, request},
    discovery,
};

#[derive(Debug, Clone, Args)]
pub struct Logs {
    /// POD, or TYPE/NAME of a workload
    target: String,
    /// Container [default: the only one, or the default of the pod]
    container_name: Option<String>,
    /// Container [default: the only one, or the default of the pod]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// Of the container's previous run
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<i64>,
    /// Only lines younger than this (`5s`, `2m`, `3h`)
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
    /// At most this many bytes
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<u64>,
}

pub async fn run(client: &Client, args: &Logs) -> anyhow::Result<()> {
    let pod = pod_of(client, &args.target).await?;
    let mut query = vec![format!("follow={}", args.follow), format!("previous={}", args.previous)];
    if let Some(container) = args.container.as_ref().or(args.container_name.as_ref()) {
        query.push(format!("container={}", escape(container)));
    }
    if let Some(lines) = args.tail.filter(|n| *n >= 0) {
        query.push(format!("tailLines={lines}"));
    }
    if let Some(since) = &args.since {
        query.push(format!("sinceSeconds={}", seconds(since)?));
    }
    if let Some(bytes) = args.limit_bytes {
        query.push(format!("limitBytes={bytes}"));
    }
    query.push(format!("timestamps={}", args.timestamps));
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/log?{}", client.namespace, query.join("&"));
    let mut body = client.expect(request(Method::GET, &path, "*/*", None)?).await?.into_body();
    let mut out = tokio::io::stdout();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            out.write_all(&data).await?;
            out.flush().await?;
        }
    }
    Ok(())
}

/// The pod itself, or the first pod of a workload (by its selector).
pub async fn pod_of(client: &Client, target: &str) -> anyhow::Result<String> {
    let Some((kind, name)) = target.split_once('/') else {
        return Ok(target.to_owned());
    };
    let resources = discovery::resources(client).await?;
    let found = discovery::named(&resources, kind)?;
    let resource = &found[0];
    if resource.kind == "Pod" {
        return Ok(name.to_owned());
    }
    let object = client.get(&format!("{}/{name}", resource.path(Some(&client.namespace)))).await?;
    let selector = &object["spec"]["selector"];
    let labels = if selector["matchLabels"].is_object() { &selector["matchLabels"] } else { selector };
    let Some(labels) = labels.as_object().filter(|l| !l.is_empty()) else {
        bail!("{target} does not select pods by labels");
    };
    let text: Vec<_> =
        labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    let list = client
        .get(&format!(
            "/api/v1/namespaces/{}/pods?labelSelector={}",
            client.namespace,
            escape(&text.join(","))
        ))
        .await?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let running = |pod: &&Value| pod["status"]["phase"] == "Running";
    match pods.iter().find(running).or(pods.first()) {
        Some(pod) => Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()),
        None => bail!("no pods found for {target}"),
    }
}

/// `90s`, `2m`, `3h`, `1h30m` in seconds.
fn seconds(text: &str) -> anyhow::Result<i64> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|e| anyhow::anyhow!("--since {text:?}: expected a duration such as 5s, 2m or 3h: {e}"))?;
    Ok(span.as_secs())
}
