//! `get`: the server's tables, or objects as YAML, JSON or names; `-w` follows.

use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;

use super::{
    client::{Client, escape, request},
    discovery::{self, Resource},
    targets,
};
use crate::manifest;

/// What the server is asked for when a table is wanted (upstream's TableConvert negotiation).
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[derive(Debug, Clone, Args)]
pub struct Get {
    /// TYPE, TYPE NAME… or TYPE/NAME…; several types with commas
    #[arg(required = true)]
    targets: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_parser = ["wide", "yaml", "json", "name"])]
    output: Option<String>,
    /// Objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Objects with these field values
    #[arg(long, value_name = "FIELDS")]
    field_selector: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on with what changes
    #[arg(short, long)]
    watch: bool,
    /// Leave the headings out
    #[arg(long)]
    no_headers: bool,
    /// Show the labels as a last column
    #[arg(long)]
    show_labels: bool,
    /// It is no error when the object is not there
    #[arg(long)]
    ignore_not_found: bool,
}

pub async fn run(client: &Client, args: &Get) -> anyhow::Result<()> {
    let resources = discovery::resources(client).await?;
    let (kind, names) = targets(&args.targets)?;
    let kinds: Vec<_> = discovery::named(&resources, &kind)?
        .into_iter()
        .filter(|r| r.verbs.iter().any(|v| v == "list"))
        .collect();
    let several = kinds.len() > 1;
    let mut shown = false;
    let mut objects = Vec::new();
    for resource in &kinds {
        for (path, name) in paths(client, args, resource, &names) {
            match args.output.as_deref() {
                None | Some("wide") => {
                    let table = client.json(request(Method::GET, &path, TABLE, None)?).await;
                    let Some((_, table)) = allowed(table, args)? else { continue };
                    let prefix = several.then(|| format!("{}/", resource.shown()));
                    let text = render(&table, args, prefix.as_deref(), true);
                    if !text.is_empty() {
                        if shown {
                            println!();
                        }
                        print!("{text}");
                        shown = true;
                    }
                    if args.watch {
                        watch(client, args, &path, name, &table).await?;
                    }
                }
                Some(_) => {
                    let answer = client.get(&path).await.map(|v| (200, v));
                    let Some((_, answer)) = allowed(answer, args)? else { continue };
                    match answer["items"].as_array() {
                        Some(items) if names.is_empty() => {
                            objects.extend(items.iter().map(|i| typed(resource, i.clone())));
                        }
                        _ => objects.push(answer),
                    }
                }
            }
        }
    }
    match args.output.as_deref() {
        None | Some("wide") if !shown && !args.ignore_not_found => {
            let all_cluster_scoped = kinds.iter().all(|k| !k.namespaced);
            if args.all_namespaces || all_cluster_scoped {
                eprintln!("No resources found");
            } else {
                eprintln!("No resources found in {} namespace.", client.namespace);
            }
        }
        Some("name") => {
            for object in &objects {
                let resource = discovery::of_manifest(&resources, object)?;
                println!("{}/{}", resource.shown(), object["metadata"]["name"].as_str().unwrap_or_default());
            }
        }
        Some(form @ ("yaml" | "json")) => {
            let one = match <[Value; 1]>::try_from(objects) {
                Ok([one]) if !names.is_empty() => one,
                Ok([one]) => list(vec![one]),
                Err(many) => list(many),
            };
            if form == "yaml" {
                print!("{}", manifest::to_yaml(&without_managed_fields(one)));
            } else {
                println!("{}", serde_json::to_string_pretty(&without_managed_fields(one))?);
            }
        }
        _ => {}
    }
    Ok(())
}

fn allowed(answer: anyhow::Result<(u16, Value)>, args: &Get) -> anyhow::Result<Option<(u16, Value)>> {
    match answer {
        Err(error)
            if args.ignore_not_found
                && error.downcast_ref::<super::Refused>().is_some_and(|r| r.code == 404) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The paths to ask for, each with the name when it is one object's.
fn paths<'a>(
    client: &Client,
    args: &Get,
    resource: &Resource,
    names: &'a [String],
) -> Vec<(String, Option<&'a str>)> {
    let namespace = (!args.all_namespaces).then_some(client.namespace.as_str());
    let collection = resource.path(namespace);
    let mut query = Vec::new();
    if let Some(selector) = &args.selector {
        query.push(format!("labelSelector={}", escape(selector)));
    }
    if let Some(selector) = &args.field_selector {
        query.push(format!("fieldSelector={}", escape(selector)));
    }
    if names.is_empty() {
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        return vec![(format!("{collection}{query}"), None)];
    }
    names.iter().map(|name| (format!("{collection}/{name}"), Some(name.as_str()))).collect()
}

/// An item of a list, which carries no type of its own, with its type.
fn typed(resource: &Resource, mut item: Value) -> Value {
    let version = if resource.group.is_empty() {
        resource.version.clone()
    } else {
        format!("{}/{}", resource.group, resource.version)
    };
    item["apiVersion"] = version.into();
    item["kind"] = resource.kind.clone().into();
    item
}

fn list(items: Vec<Value>) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
}

fn without_managed_fields(mut object: Value) -> Value {
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        for item in items {
            crate::kinds::remove(&mut item["metadata"], "managedFields");
        }
    } else {
        crate::kinds::remove(&mut object["metadata"], "managedFields");
    }
    object
}

/// The table as text: columns padded to their widest cell, three spaces between them.
fn render(table: &Value, args: &Get, prefix: Option<&str>, headings: bool) -> String {
    let wide = args.output.as_deref() == Some("wide");
    let columns: Vec<(usize, String)> = table["columnDefinitions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|(_, c)| wide || c["priority"].as_i64().unwrap_or(0) == 0)
        .map(|(i, c)| (i, c["name"].as_str().unwrap_or_default().to_uppercase()))
        .collect();
    let mut lines: Vec<Vec<String>> = Vec::new();
    for row in table["rows"].as_array().into_iter().flatten() {
        let meta = &row["object"]["metadata"];
        let mut line = Vec::new();
        if args.all_namespaces {
            line.push(meta["namespace"].as_str().unwrap_or_default().to_owned());
        }
        for (n, (i, _)) in columns.iter().enumerate() {
            let cell = cell(&row["cells"][*i]);
            line.push(if n == 0 { format!("{}{cell}", prefix.unwrap_or_default()) } else { cell });
        }
        if args.show_labels {
            let labels = meta["labels"].as_object().into_iter().flatten();
            let text: Vec<_> =
                labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
            line.push(if text.is_empty() { "<none>".to_owned() } else { text.join(",") });
        }
        lines.push(line);
    }
    if lines.is_empty() {
        return String::new();
    }
    if headings && !args.no_headers {
        let mut heads: Vec<String> = columns.into_iter().map(|(_, name)| name).collect();
        if args.all_namespaces {
            heads.insert(0, "NAMESPACE".to_owned());
        }
        if args.show_labels {
            heads.push("LABELS".to_owned());
        }
        lines.insert(0, heads);
    }
    align(&lines)
}

/// Lines of cells as padded text.
pub fn align(lines: &[Vec<String>]) -> String {
    let mut widths = Vec::new();
    for line in lines {
        widths.resize(widths.len().max(line.len()), 0);
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(cell);
            row.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".to_owned(),
        other => other.to_string(),
    }
}

/// Prints what changes; a single object is watched through its collection.
async fn watch(
    client: &Client,
    args: &Get,
    path: &str,
    name: Option<&str>,
    table: &Value,
) -> anyhow::Result<()> {
    let revision = table["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let follow = format!("watch=true&resourceVersion={revision}");
    let query = match name {
        Some(name) => {
            let collection = path.strip_suffix(name).unwrap_or(path).trim_end_matches('/');
            let field = escape(&format!("metadata.name={name}"));
            format!("{collection}?{follow}&fieldSelector={field}")
        }
        None if path.contains('?') => format!("{path}&{follow}"),
        None => format!("{path}?{follow}"),
    };
    let mut body = client.expect(request(Method::GET, &query, TABLE, None)?).await?.into_body();
    let mut buffer: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line)?;
            if event["type"] == "ERROR" {
                anyhow::bail!("{}", event["object"]["message"].as_str().unwrap_or("the watch ended"));
            }
            print!("{}", render(&with_columns(&event["object"], table), args, None, false));
        }
    }
    Ok(())
}

/// Only the first table of a watch carries the column definitions.
fn with_columns(event: &Value, first: &Value) -> Value {
    let mut table = event.clone();
    if table["columnDefinitions"].as_array().is_none_or(Vec::is_empty) {
        table["columnDefinitions"] = first["columnDefinitions"].clone();
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_padded_to_their_widest_cell() {
        let lines =
            vec![vec!["NAME".to_owned(), "AGE".to_owned()], vec!["a-long-name".to_owned(), "5s".to_owned()]];
        assert_eq!(align(&lines), "NAME          AGE\na-long-name   5s\n");
    }
}
