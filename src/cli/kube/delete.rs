//! `delete`: by name, by label or as manifests say; waits until the objects are gone.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::{
    client::{Client, Refused, escape, request},
    discovery::{self, Resource},
    files, targets,
};

/// How often it is looked whether an object is gone.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Args)]
pub struct Delete {
    /// TYPE NAME… or TYPE/NAME…
    targets: Vec<String>,
    /// Manifest file, folder, or - for standard input
    #[arg(short, long = "filename", value_delimiter = ',', value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Also read folders below the given ones
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// It is no error when the object is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Seconds the object has to end by itself
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<i64>,
    /// With --grace-period=0: do not wait for the node's word
    #[arg(long)]
    force: bool,
    /// `background`, `foreground` or `orphan`
    #[arg(long, value_parser = ["background", "foreground", "orphan"], default_value = "background")]
    cascade: String,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    wait: bool,
}

pub async fn run(client: &Client, args: &Delete) -> anyhow::Result<()> {
    let resources = discovery::resources(client).await?;
    let objects = if args.filename.is_empty() {
        by_name(client, &resources, args).await?
    } else {
        by_manifest(client, &resources, args)?
    };
    if objects.is_empty() {
        println!("No resources found");
    }
    let mut gone = Vec::new();
    for (resource, namespace, name) in &objects {
        let path = format!("{}/{name}", resource.path(Some(namespace)));
        let body = Some(("application/json", serde_json::to_vec(&options(args))?));
        match client.json(request(Method::DELETE, &path, "application/json", body)?).await {
            Ok((_, answer)) => {
                println!("{} {name:?} deleted", resource.shown());
                gone.push((path, answer));
            }
            Err(error) if args.ignore_not_found && is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    if args.wait {
        for (path, answer) in gone {
            wait_gone(client, &path, &answer).await?;
        }
    }
    Ok(())
}

/// Resource, namespace and name of what is to go.
type Doomed = (Resource, String, String);

async fn by_name(client: &Client, resources: &[Resource], args: &Delete) -> anyhow::Result<Vec<Doomed>> {
    let (kind, names) = targets(&args.targets)?;
    let namespace = &client.namespace;
    let mut objects = Vec::new();
    for resource in discovery::named(resources, &kind)? {
        if !names.is_empty() {
            objects.extend(names.iter().map(|n| (resource.clone(), namespace.clone(), n.clone())));
            continue;
        }
        if args.selector.is_none() && !args.all {
            bail!("resource(s) were provided, but no name was specified; give names, a --selector or --all");
        }
        let selector = args.selector.as_deref().map(|s| format!("?labelSelector={}", escape(s)));
        let path = format!("{}{}", resource.path(Some(namespace)), selector.unwrap_or_default());
        for item in client.get(&path).await?["items"].as_array().into_iter().flatten() {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            objects.push((resource.clone(), namespace.clone(), name.to_owned()));
        }
    }
    Ok(objects)
}

/// In reverse: what was created last goes first, as dependencies point backwards.
fn by_manifest(client: &Client, resources: &[Resource], args: &Delete) -> anyhow::Result<Vec<Doomed>> {
    let mut objects = Vec::new();
    for source in files::read(&args.filename, args.recursive)?.iter().rev() {
        let value = &source.document.value;
        let resource = discovery::of_manifest(resources, value).with_context(|| source.place())?;
        let text = |field: &str| value["metadata"][field].as_str().map(str::to_owned);
        let namespace = text("namespace").unwrap_or_else(|| client.namespace.clone());
        objects.push((resource.clone(), namespace, text("name").unwrap_or_default()));
    }
    Ok(objects)
}

fn options(args: &Delete) -> Value {
    let policy = match args.cascade.as_str() {
        "foreground" => "Foreground",
        "orphan" => "Orphan",
        _ => "Background",
    };
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
    let grace = args.grace_period.or(args.force.then_some(0));
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = grace.into();
    }
    options
}

fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|r| r.code == 404)
}

/// Waits until the object, or the one of that uid, is no longer there.
async fn wait_gone(client: &Client, path: &str, answer: &Value) -> anyhow::Result<()> {
    let uid = answer["metadata"]["uid"].as_str().or_else(|| answer["details"]["uid"].as_str());
    loop {
        match client.get(path).await {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(now) if uid.is_some() && now["metadata"]["uid"].as_str() != uid => return Ok(()),
            Ok(_) => tokio::time::sleep(POLL).await,
        }
    }
}
