//! `apply`: server-side apply under the field manager `sampan`.
//!
//! As `kubectl apply` does, it takes fields over that others have set; with `--server-side` it does so
//! only when told to by `--force-conflicts`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::{
    client::{Client, Refused, escape, request},
    discovery::{self, Resource},
    files::{self, Source},
};
use crate::{kinds::labels::Selector, manifest};

/// The field manager under which our changes are recorded.
const MANAGER: &str = "sampan";

/// How often an object is looked at and changed anew because others wrote in between; then it is just changed.
const ATTEMPTS: usize = 5;

#[derive(Debug, Clone, Args)]
pub struct Apply {
    /// Manifest file, folder, or - for standard input
    #[arg(short, long = "filename", required = true, value_delimiter = ',', value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Also read folders below the given ones
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Stop at fields that other managers own
    #[arg(long)]
    server_side: bool,
    /// With --server-side: take such fields over
    #[arg(long, requires = "server_side")]
    force_conflicts: bool,
    /// Name under which the fields are recorded
    #[arg(long, value_name = "NAME", default_value = MANAGER)]
    field_manager: String,
    /// `server`: check and show, change nothing; `client`: do not even ask the server
    #[arg(long, value_name = "HOW", value_parser = ["none", "server", "client"], default_value = "none")]
    dry_run: String,
    /// What becomes of unknown fields
    #[arg(long, value_parser = ["strict", "warn", "ignore", "true", "false"], default_value = "strict")]
    validate: String,
    /// Print the objects, or their names
    #[arg(short, long, value_parser = ["name", "yaml", "json"])]
    output: Option<String>,
}

pub async fn run(client: &Client, args: &Apply) -> anyhow::Result<()> {
    let sources = files::read(&args.filename, args.recursive)?;
    let resources = discovery::resources(client).await?;
    let mut failed = 0;
    for source in &sources {
        match apply(client, &resources, args, source).await {
            Ok(Some(line)) => println!("{line}"),
            Ok(None) => {}
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
) -> anyhow::Result<Option<String>> {
    let mut value = source.document.value.clone();
    let resource = discovery::of_manifest(resources, &value)?;
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        bail!("metadata.name: Required value");
    }
    let selector = args.selector.as_deref().map(Selector::parse).transpose().context("--selector")?;
    if selector.is_some_and(|selector| !selector.matches_json(&value["metadata"]["labels"])) {
        return Ok(None);
    }
    let namespace = value["metadata"]["namespace"].as_str().unwrap_or(&client.namespace).to_owned();
    if resource.namespaced {
        value["metadata"]["namespace"] = namespace.clone().into();
    }
    let path = format!("{}/{name}", resource.path(Some(&namespace)));
    let mut answer = apply_once(client, &path, &value, args, true).await;
    for again in 1..ATTEMPTS {
        match &answer {
            Err(error) if error.downcast_ref::<Refused>().is_some_and(raced) => {
                answer = apply_once(client, &path, &value, args, again + 1 < ATTEMPTS).await;
            }
            _ => break,
        }
    }
    let (done, after) = answer.with_context(|| format!("{}/{name}", resource.shown()))?;
    let note = match args.dry_run.as_str() {
        "client" => " (dry run)",
        "server" => " (server dry run)",
        _ => "",
    };
    Ok(Some(match args.output.as_deref() {
        Some("yaml") => format!("---\n{}", manifest::to_yaml(&after).trim_end()),
        Some("json") => serde_json::to_string_pretty(&after)?,
        Some(_) => format!("{}/{name}", resource.shown()),
        None => {
            let applied = if args.server_side { "serverside-applied" } else { done };
            format!("{}/{name} {applied}{note}", resource.shown())
        }
    }))
}

/// Whether somebody wrote between the look at the object and the change of it (and no field belongs to another).
fn raced(refused: &Refused) -> bool {
    refused.code == 409 && refused.reason == "Conflict" && !refused.message.starts_with("Apply failed")
}

/// What was done, and the object as it is now. With `exact` the object that was looked at has to be the one that
/// is changed: a revision that a controller brought would look like a change of ours.
async fn apply_once(
    client: &Client,
    path: &str,
    manifest: &Value,
    args: &Apply,
    exact: bool,
) -> anyhow::Result<(&'static str, Value)> {
    let before = match client.get(path).await {
        Ok(object) => Some(object["metadata"]["resourceVersion"].clone()),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|r| r.code == 404) => None,
        Err(error) => return Err(error),
    };
    let mut value = manifest.clone();
    if args.dry_run != "client" {
        let metadata = &mut value["metadata"];
        if let Some(revision) = before.as_ref().filter(|_| exact && metadata["resourceVersion"].is_null()) {
            metadata["resourceVersion"] = revision.clone();
        }
        let force = args.force_conflicts || !args.server_side;
        let dry = if args.dry_run == "server" { "&dryRun=All" } else { "" };
        let validation = match args.validate.as_str() {
            "warn" => "Warn",
            "ignore" | "false" => "Ignore",
            _ => "Strict",
        };
        let query = format!(
            "{path}?fieldManager={}&fieldValidation={validation}&force={force}{dry}",
            escape(&args.field_manager)
        );
        let body = Some(("application/apply-patch+yaml", serde_json::to_vec(&value)?));
        value = client.json(request(Method::PATCH, &query, "application/json", body)?).await?.1;
    }
    let done = match before {
        None => "created",
        Some(revision) if revision == value["metadata"]["resourceVersion"] => "unchanged",
        Some(_) => "configured",
    };
    Ok((done, value))
}
