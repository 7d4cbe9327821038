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
    #[arg(required_unless_present = "selector")]
    pub(super) target: Option<String>,
    /// Container [default: the only one, or the default of the pod]
    pub(super) container_name: Option<String>,
    /// Container [default: the only one, or the default of the pod]
    #[arg(short, long, value_name = "NAME")]
    pub(super) container: Option<String>,
    /// Of the pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "target")]
    selector: Option<String>,
    /// Every container of the pod
    #[arg(long, conflicts_with_all = ["container", "container_name"])]
    all_containers: bool,
    /// Of every pod of the workload
    #[arg(long)]
    all_pods: bool,
    /// Put pod and container before each line
    #[arg(long)]
    prefix: bool,
    /// Go on as lines come
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Of the container's previous run
    #[arg(short, long)]
    pub(super) previous: bool,
    /// Only the last lines [default: all; 10 with -l]
    #[arg(long, value_name = "LINES")]
    pub(super) tail: Option<i64>,
    /// Only lines younger than this (`5s`, `2m`, `3h`)
    #[arg(long, value_name = "DURATION")]
    pub(super) since: Option<String>,
    /// Only lines younger than this moment (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with = "since")]
    since_time: Option<String>,
    /// Put the time before each line
    #[arg(long)]
    pub(super) timestamps: bool,
    /// At most this many bytes
    #[arg(long, value_name = "BYTES")]
    pub(super) limit_bytes: Option<u64>,
    /// At most so many logs followed at once
    #[arg(long, value_name = "COUNT", default_value_t = REQUESTS_MAX)]
    max_log_requests: usize,
}

/// What kubectl follows at once unless told otherwise, and the last lines it shows with a selector.
const REQUESTS_MAX: usize = 5;
const SELECTED_LINES: i64 = 10;

/// One container's log.
struct Log {
    pod: String,
    /// `None`: the server chooses.
    pub(super) container: Option<String>,
}

pub async fn run(client: &Client, args: &Logs) -> anyhow::Result<()> {
    let logs = logs(client, args).await?;
    if args.follow && logs.len() > args.max_log_requests {
        bail!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {}, use --max-log-requests to increase the limit",
            logs.len(),
            args.max_log_requests
        );
    }
    let query = query(args)?;
    let prefix = |log: &Log| match (args.prefix, &log.container) {
        (false, _) => String::new(),
        (true, Some(container)) => format!("[pod/{}/{container}] ", log.pod),
        (true, None) => format!("[pod/{}] ", log.pod),
    };
    if args.follow {
        let all = logs.iter().map(|log| copy(client, log, &query, prefix(log)));
        futures_util::future::try_join_all(all).await?;
    } else {
        for log in &logs {
            copy(client, log, &query, prefix(log)).await?;
        }
    }
    Ok(())
}

fn query(args: &Logs) -> anyhow::Result<String> {
    let mut query = vec![format!("follow={}&previous={}", args.follow, args.previous)];
    if let Some(lines) = args.tail.or(args.selector.is_some().then_some(SELECTED_LINES)).filter(|n| *n >= 0) {
        query.push(format!("tailLines={lines}"));
    }
    if let Some(since) = &args.since {
        query.push(format!("sinceSeconds={}", seconds(since)?));
    }
    if let Some(time) = &args.since_time {
        query.push(format!("sinceTime={}", escape(time)));
    }
    if let Some(bytes) = args.limit_bytes {
        query.push(format!("limitBytes={bytes}"));
    }
    query.push(format!("timestamps={}", args.timestamps));
    Ok(query.join("&"))
}

/// The logs that are asked for.
async fn logs(client: &Client, args: &Logs) -> anyhow::Result<Vec<Log>> {
    let pods = match (&args.selector, &args.target) {
        (Some(selector), _) => selected(client, selector).await?,
        (None, Some(target)) if args.all_pods => pods_of(client, target).await?,
        (None, Some(target)) => vec![client.get(&pod_path(client, &pod_of(client, target).await?)).await?],
        (None, None) => bail!("name a pod, or select some with -l"),
    };
    if pods.is_empty() {
        eprintln!("No resources found in {} namespace.", client.namespace);
    }
    let mut logs = Vec::new();
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if !args.all_containers {
            let container = args.container.clone().or_else(|| args.container_name.clone());
            logs.push(Log { pod: name, container });
            continue;
        }
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let container = container["name"].as_str().map(str::to_owned);
                logs.push(Log { pod: name.clone(), container });
            }
        }
    }
    Ok(logs)
}

fn pod_path(client: &Client, pod: &str) -> String {
    format!("/api/v1/namespaces/{}/pods/{pod}", client.namespace)
}

/// Copies one log to standard output, whole lines at a time when lines have a prefix.
async fn copy(client: &Client, log: &Log, query: &str, prefix: String) -> anyhow::Result<()> {
    let container = log.container.as_ref().map(|c| format!("&container={}", escape(c))).unwrap_or_default();
    let path = format!("{}/log?{query}{container}", pod_path(client, &log.pod));
    let mut body = client.expect(request(Method::GET, &path, "*/*", None)?).await?.into_body();
    let mut out = tokio::io::stdout();
    let mut line: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if prefix.is_empty() {
            out.write_all(&data).await?;
        } else {
            for piece in data.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    out.write_all(&[prefix.as_bytes(), &line].concat()).await?;
                    line.clear();
                }
            }
        }
        out.flush().await?;
    }
    if !line.is_empty() {
        out.write_all(&[prefix.as_bytes(), &line].concat()).await?;
        out.flush().await?;
    }
    Ok(())
}

async fn selected(client: &Client, selector: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector={}", client.namespace, escape(selector));
    Ok(client.get(&path).await?["items"].as_array().cloned().unwrap_or_default())
}

/// The pods that a workload selects.
async fn pods_of(client: &Client, target: &str) -> anyhow::Result<Vec<Value>> {
    let Some((kind, name)) = target.split_once('/') else {
        return Ok(vec![client.get(&pod_path(client, target)).await?]);
    };
    let resources = discovery::resources(client).await?;
    let found = discovery::named(&resources, kind)?;
    let resource = &found[0];
    let object = client.get(&format!("{}/{name}", resource.path(Some(&client.namespace)))).await?;
    if resource.kind == "Pod" {
        return Ok(vec![object]);
    }
    let selector = &object["spec"]["selector"];
    let labels = if selector["matchLabels"].is_object() { &selector["matchLabels"] } else { selector };
    let Some(labels) = labels.as_object().filter(|l| !l.is_empty()) else {
        bail!("{target} does not select pods by labels");
    };
    let text: Vec<_> =
        labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    selected(client, &text.join(",")).await
}

/// The pod itself, or the first pod of a workload (by its selector).
pub async fn pod_of(client: &Client, target: &str) -> anyhow::Result<String> {
    let Some((kind, name)) = target.split_once('/') else {
        return Ok(target.to_owned());
    };
    if matches!(kind, "pod" | "pods" | "po") {
        return Ok(name.to_owned());
    }
    let pods = pods_of(client, target).await?;
    let running = |pod: &&Value| pod["status"]["phase"] == "Running";
    match pods.iter().find(running).or(pods.first()) {
        Some(pod) => Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()),
        None => bail!("no pods found for {target}"),
    }
}

/// `90s`, `2m`, `3h`, `1h30m` in seconds.
pub(super) fn seconds(text: &str) -> anyhow::Result<i64> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|e| anyhow::anyhow!("--since {text:?}: expected a duration such as 5s, 2m or 3h: {e}"))?;
    Ok(span.as_secs())
}
