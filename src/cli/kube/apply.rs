//! `apply`: server-side apply under the field manager `sampan`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use hyper::Method;

use super::{
    client::{Client, Refused, request},
    discovery::{self, Resource},
    files::{self, Source},
};

/// The field manager under which our changes are recorded.
const MANAGER: &str = "sampan";

#[derive(Debug, Clone, Args)]
pub struct Apply {
    /// Manifest file, folder, or - for standard input
    #[arg(short, long = "filename", required = true, value_delimiter = ',', value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Also read folders below the given ones
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Take fields over that other managers own
    #[arg(long)]
    force_conflicts: bool,
    /// `server`: check and show, change nothing
    #[arg(long, value_name = "HOW", value_parser = ["none", "server"], default_value = "none")]
    dry_run: String,
}

pub async fn run(client: &Client, args: &Apply) -> anyhow::Result<()> {
    let sources = files::read(&args.filename, args.recursive)?;
    let resources = discovery::resources(client).await?;
    let mut failed = 0;
    for source in &sources {
        match apply(client, &resources, args, source).await {
            Ok(line) => println!("{line}"),
            Err(error) => {
                failed += 1;
                eprintln!("Error: {}: {error:#}", source.place());
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} objects were not applied", sources.len());
    }
    Ok(())
}

async fn apply(
    client: &Client,
    resources: &[Resource],
    args: &Apply,
    source: &Source,
) -> anyhow::Result<String> {
    let mut value = source.document.value.clone();
    let resource = discovery::of_manifest(resources, &value)?;
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        bail!("metadata.name: Required value");
    }
    let namespace = value["metadata"]["namespace"].as_str().unwrap_or(&client.namespace).to_owned();
    if resource.namespaced {
        value["metadata"]["namespace"] = namespace.clone().into();
    }
    let path = format!("{}/{name}", resource.path(Some(&namespace)));
    let before = match client.get(&path).await {
        Ok(object) => Some(object["metadata"]["resourceVersion"].clone()),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|r| r.code == 404) => None,
        Err(error) => return Err(error),
    };
    let dry = if args.dry_run == "server" { "&dryRun=All" } else { "" };
    let query =
        format!("{path}?fieldManager={MANAGER}&fieldValidation=Strict&force={}{dry}", args.force_conflicts);
    let body = Some(("application/apply-patch+yaml", serde_json::to_vec(&value)?));
    let (_, after) = client
        .json(request(Method::PATCH, &query, "application/json", body)?)
        .await
        .with_context(|| format!("{}/{name}", resource.shown()))?;
    let done = match before {
        None => "created",
        Some(revision) if revision == after["metadata"]["resourceVersion"] => "unchanged",
        Some(_) => "configured",
    };
    let note = if dry.is_empty() { "" } else { " (server dry run)" };
    Ok(format!("{}/{name} {done}{note}", resource.shown()))
}
