//! `--local`: the same verbs against this node's own daemon, with the master or without it.
//!
//! The node answers from its ledger; what is wanted comes from the master and cannot be changed here.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};

use super::{exec, get, logs, targets};
use crate::{
    clock::{Clock as _, SystemClock},
    control,
    kinds::registry,
    mqtt::stream::{Incoming, LogOptions, Outcome, Place, Request, STDERR, STDIN, STDOUT, Stream},
};

/// Names the container that is meant when none is (kubectl's annotation).
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// `restart`: starts containers of this node anew.
#[derive(Debug, Clone, Args)]
pub struct Restart {
    /// POD
    target: String,
    /// Container [default: all that run]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
}

/// This node, for one namespace.
pub struct Here<'a> {
    pub run_dir: &'a Path,
    pub namespace: &'a str,
}

impl Here<'_> {
    async fn pods(&self) -> anyhow::Result<Vec<Value>> {
        let answer = control::ask_node(self.run_dir, &control::Request::ListPods).await?;
        answer.map_err(anyhow::Error::msg)
    }

    async fn pod(&self, target: &str) -> anyhow::Result<Value> {
        let name = match target.split_once('/') {
            None => target,
            Some(("pod" | "pods" | "po", name)) => name,
            Some((kind, _)) => bail!("{kind} is not known on a node: it has pods only"),
        };
        let is_it =
            |pod: &Value| pod["metadata"]["name"] == name && pod["metadata"]["namespace"] == self.namespace;
        self.pods()
            .await?
            .into_iter()
            .find(is_it)
            .with_context(|| format!("pod {name:?} of namespace {:?} is not on this node", self.namespace))
    }

    async fn place(&self, target: &str, container: Option<&String>) -> anyhow::Result<Place> {
        let pod = self.pod(target).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names: Vec<String> = pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| text(&container["name"]))
            .collect();
        let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str().map(str::to_owned);
        let container = container.cloned().or(annotated).unwrap_or_else(|| {
            let first = names.first().cloned().unwrap_or_default();
            if names.len() > 1 {
                eprintln!("Defaulted container {first:?} out of: {}", names.join(", "));
            }
            first
        });
        let meta = &pod["metadata"];
        let (namespace, pod, uid) = (text(&meta["namespace"]), text(&meta["name"]), text(&meta["uid"]));
        Ok(Place { namespace, pod, uid, container })
    }

    async fn open(&self, request: &Request) -> anyhow::Result<Stream> {
        let mux = control::streams(self.run_dir).await?;
        Ok(mux.open("", request).await?)
    }
}

/// `get pods --local`.
pub async fn get(here: &Here<'_>, args: &get::Get) -> anyhow::Result<()> {
    let (kind, names) = targets(&args.which.targets)?;
    if !matches!(kind.as_str(), "pod" | "pods" | "po") {
        bail!("{kind} is not known on a node: it has pods only");
    }
    let mut pods = here.pods().await?;
    let name_of = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if !args.which.all_namespaces {
        pods.retain(|pod| pod["metadata"]["namespace"] == here.namespace);
    }
    if let Some(missing) = names.iter().find(|name| !pods.iter().any(|pod| name_of(pod) == **name)) {
        bail!("pod {missing:?} of namespace {:?} is not on this node", here.namespace);
    }
    pods.retain(|pod| names.is_empty() || names.contains(&name_of(pod)));
    let one = !names.is_empty() && pods.len() == 1;
    match &args.output {
        None | Some(get::Form::Wide) => {
            let kind = registry::of::<Pod>();
            let columns: Vec<Value> =
                kind.columns.iter().map(|c| json!({"name": c.name, "priority": c.priority})).collect();
            let now = SystemClock.now();
            let row = |pod: &Value| json!({"cells": (kind.strategy.cells)(pod, now), "object": pod});
            let rows: Vec<Value> = pods.iter().map(row).collect();
            let table = json!({"columnDefinitions": columns, "rows": rows});
            let text = get::render(&table, args, None, true);
            if text.is_empty() {
                eprintln!("No pods on this node");
            }
            print!("{text}");
        }
        Some(get::Form::Name) => pods.iter().for_each(|pod| println!("pod/{}", name_of(pod))),
        Some(form @ (get::Form::Yaml | get::Form::Json)) => {
            let shown = match <[Value; 1]>::try_from(pods) {
                Ok([pod]) if one => pod,
                Ok(one) => json!({"apiVersion": "v1", "kind": "List", "items": one}),
                Err(many) => json!({"apiVersion": "v1", "kind": "List", "items": many}),
            };
            match form {
                get::Form::Json => println!("{}", serde_json::to_string_pretty(&shown)?),
                _ => print!("{}", serde_yaml::to_string(&shown)?),
            }
        }
        Some(_) => bail!("--local knows the forms wide, yaml, json and name"),
    }
    Ok(())
}

/// `logs --local`.
pub async fn logs(here: &Here<'_>, args: &logs::Logs) -> anyhow::Result<()> {
    let container = args.container.as_ref().or(args.container_name.as_ref());
    let target = args.target.as_deref().context("--local: name a pod")?;
    let place = here.place(target, container).await?;
    let since = args.since.as_deref().map(logs::seconds).transpose()?;
    let options = LogOptions {
        follow: args.follow,
        previous: args.previous,
        timestamps: args.timestamps,
        tail_lines: args.tail.and_then(|lines| u64::try_from(lines).ok()),
        limit_bytes: args.limit_bytes,
        since: since.map(|seconds| SystemClock.now() - jiff::SignedDuration::from_secs(seconds)),
        stream: None,
    };
    let stream = here.open(&Request::Logs { place, options }).await?;
    finish(converse(stream, false, false).await?)?;
    Ok(())
}

/// `exec --local`.
pub async fn exec(here: &Here<'_>, args: &exec::Exec) -> anyhow::Result<ExitCode> {
    let place = here.place(&args.target, args.container.as_ref()).await?;
    let request = Request::Exec { place, command: args.command.clone(), stdin: args.stdin, tty: args.tty };
    let stream = here.open(&request).await?;
    let raw = (args.tty && args.stdin).then(exec::Raw::enter).transpose()?;
    let outcome = converse(stream, args.stdin, args.tty).await;
    drop(raw);
    let code = finish(outcome?)?;
    if code != 0 {
        eprintln!("command terminated with exit code {code}");
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// `restart`.
pub async fn restart(here: &Here<'_>, args: &Restart) -> anyhow::Result<()> {
    let pod = here.pod(&args.target).await?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let request = control::Request::RestartPod {
        namespace: here.namespace.to_owned(),
        pod: name.clone(),
        container: args.container.clone(),
    };
    control::ask_node(here.run_dir, &request).await?.map_err(anyhow::Error::msg)?;
    println!("pod/{name} restarted");
    Ok(())
}

fn finish(outcome: Outcome) -> anyhow::Result<i32> {
    match outcome {
        Outcome { error: Some(error), .. } => bail!("{error}"),
        Outcome { code, .. } => Ok(code.unwrap_or(0)),
    }
}

async fn converse(mut stream: Stream, input: bool, tty: bool) -> anyhow::Result<Outcome> {
    let sender = stream.sender();
    let mut resized = signal(SignalKind::window_change())?;
    let (mut stdin, mut stdout, mut stderr) = (tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr());
    let mut buffer = vec![0; 16 << 10];
    let mut reading = input;
    let size = || crate::cli::sys::terminal_size().unwrap_or((80, 24));
    if tty {
        let (columns, rows) = size();
        sender.resize(columns, rows).await?;
    }
    loop {
        tokio::select! {
            event = stream.next() => match event {
                Some(Incoming::Data { channel: STDOUT, bytes }) => {
                    stdout.write_all(&bytes).await?;
                    stdout.flush().await?;
                }
                Some(Incoming::Data { channel: STDERR, bytes }) => {
                    stderr.write_all(&bytes).await?;
                    stderr.flush().await?;
                }
                Some(Incoming::End(outcome)) => return Ok(outcome),
                Some(_) => {}
                None => bail!("the daemon broke off"),
            },
            read = stdin.read(&mut buffer), if reading => match read? {
                0 => {
                    reading = false;
                    sender.close(STDIN).await?;
                }
                count => sender.send(STDIN, Bytes::copy_from_slice(&buffer[..count])).await?,
            },
            _ = resized.recv(), if tty => {
                let (columns, rows) = size();
                sender.resize(columns, rows).await?;
            }
        }
    }
}
