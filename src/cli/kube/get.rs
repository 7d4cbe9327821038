//! `get`: the server's tables, or objects as YAML, JSON, names or by templates; `-w` follows. Or what the
//! server answers to a path, as it is.

use std::{io::Write, str::FromStr};

use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;

use super::{
    client::{Client, escape, request},
    discovery::{self, Resource},
    jsonpath::{self, Template},
    which::{Wanted, Which},
};
use crate::manifest;

/// The form of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    Wide,
    Yaml,
    Json,
    Name,
    /// A template over the object, or over the List of them.
    JsonPath(String),
    /// Heading and path of every column.
    Columns(Vec<(String, String)>),
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once('=') {
            None => match text {
                "wide" => Self::Wide,
                "yaml" => Self::Yaml,
                "json" => Self::Json,
                "name" => Self::Name,
                _ => {
                    return Err("allowed formats are: wide, yaml, json, name, jsonpath=…, custom-columns=…"
                        .to_owned());
                }
            },
            Some(("jsonpath", template)) => {
                Template::parse(template).map_err(|error| format!("{error:#}"))?;
                Self::JsonPath(template.to_owned())
            }
            Some(("custom-columns", columns)) => {
                let column = |column: &str| {
                    let (head, path) = column
                        .split_once(':')
                        .ok_or_else(|| format!("{column:?}: expected <header>:<json-path-expr>"))?;
                    Template::path(path).map_err(|error| format!("{error:#}"))?;
                    Ok::<_, String>((head.to_owned(), path.to_owned()))
                };
                Self::Columns(columns.split(',').map(column).collect::<Result<_, _>>()?)
            }
            Some((other, _)) => {
                return Err(format!("{other}=… is not supported; jsonpath= and custom-columns= are"));
            }
        })
    }
}

/// What the server is asked for when a table is wanted (upstream's TableConvert negotiation).
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[derive(Debug, Clone, Args)]
#[command(mut_arg("targets", |targets| targets.required_unless_present("raw")))]
pub struct Get {
    #[command(flatten)]
    pub(super) which: Which,
    /// Form of the output: wide, yaml, json, name, jsonpath=…, custom-columns=…
    #[arg(short, long, value_name = "FORM")]
    pub(super) output: Option<Form>,
    /// Objects ordered by the value at this path
    #[arg(long, value_name = "JSONPATH")]
    sort_by: Option<String>,
    /// Show these labels as columns of their own
    #[arg(short = 'L', long, value_delimiter = ',', value_name = "LABELS")]
    label_columns: Vec<String>,
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
    /// The answer to a request for this path, as the server gives it
    #[arg(long, value_name = "PATH", conflicts_with_all = ["targets", "filename", "output", "watch"])]
    raw: Option<String>,
}

pub async fn run(client: &Client, args: &Get) -> anyhow::Result<()> {
    if let Some(path) = &args.raw {
        return raw(client, path).await;
    }
    let resources = discovery::resources(client).await?;
    let wanted = args.which.wanted(client, &resources)?;
    match &args.output {
        None | Some(Form::Wide) => tables(client, args, &wanted).await,
        Some(form) => {
            let mut objects = Vec::new();
            for one in &wanted {
                let Some(answer) = allowed(client.get(&one.path).await, args)? else { continue };
                match answer["items"].as_array() {
                    Some(items) if one.name.is_none() => {
                        objects.extend(items.iter().map(|i| typed(&one.resource, i.clone())));
                    }
                    _ => objects.push(answer),
                }
            }
            let single = wanted.len() == 1 && wanted[0].name.is_some();
            print(&resources, args, form, objects, single)
        }
    }
}

/// Prints what comes while it comes.
async fn raw(client: &Client, path: &str) -> anyhow::Result<()> {
    let mut body =
        client.expect(request(Method::GET, path, "application/json, */*", None)?).await?.into_body();
    let mut out = std::io::stdout();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            out.write_all(data)?;
            out.flush()?;
        }
    }
    Ok(())
}

async fn tables(client: &Client, args: &Get, wanted: &[Wanted]) -> anyhow::Result<()> {
    let several = wanted.iter().any(|w| w.resource != wanted[0].resource);
    let mut shown = false;
    for one in wanted {
        let answer = client.json(request(Method::GET, &one.path, TABLE, None)?).await.map(|(_, table)| table);
        let Some(mut table) = allowed(answer, args)? else { continue };
        sort(&mut table["rows"], "object", args)?;
        let prefix = several.then(|| format!("{}/", one.resource.shown()));
        let text = render(&table, args, prefix.as_deref(), true);
        if !text.is_empty() {
            if shown {
                println!();
            }
            print!("{text}");
            shown = true;
        }
        if args.watch {
            watch(client, args, one, &table).await?;
        }
    }
    if !shown && !args.ignore_not_found {
        if args.which.all_namespaces || wanted.iter().all(|w| !w.resource.namespaced) {
            eprintln!("No resources found");
        } else {
            eprintln!("No resources found in {} namespace.", client.namespace);
        }
    }
    Ok(())
}

fn print(
    resources: &[Resource],
    args: &Get,
    form: &Form,
    objects: Vec<Value>,
    single: bool,
) -> anyhow::Result<()> {
    let mut objects = Value::Array(objects);
    sort(&mut objects, "", args)?;
    let items = objects.as_array().map(Vec::as_slice).unwrap_or_default();
    match form {
        Form::Wide => {}
        Form::Name => {
            for object in items {
                let resource = discovery::of_manifest(resources, object)?;
                println!("{}/{}", resource.shown(), object["metadata"]["name"].as_str().unwrap_or_default());
            }
        }
        Form::Columns(columns) => print!("{}", align(&by_columns(columns, items, args.no_headers)?)),
        Form::Yaml | Form::Json | Form::JsonPath(_) => {
            let one = if single { objects[0].take() } else { list(items.to_vec()) };
            match form {
                Form::JsonPath(template) => print!("{}", Template::parse(template)?.render(&one)),
                Form::Yaml => print!("{}", manifest::to_yaml(&without_managed_fields(one))),
                _ => println!("{}", serde_json::to_string_pretty(&without_managed_fields(one))?),
            }
        }
    }
    Ok(())
}

fn by_columns(
    columns: &[(String, String)],
    items: &[Value],
    no_headers: bool,
) -> anyhow::Result<Vec<Vec<String>>> {
    let paths: Vec<_> = columns.iter().map(|(_, path)| Template::path(path)).collect::<Result<_, _>>()?;
    let mut lines: Vec<Vec<String>> = Vec::new();
    if !no_headers {
        lines.push(columns.iter().map(|(head, _)| head.clone()).collect());
    }
    for item in items {
        let cell = |path: &Template| {
            let found: Vec<_> = path.values(item).into_iter().map(jsonpath::text).collect();
            if found.is_empty() { "<none>".to_owned() } else { found.join(",") }
        };
        lines.push(paths.iter().map(cell).collect());
    }
    Ok(lines)
}

/// Orders an array by `--sort-by`; the path starts at `field` of an item when that is not empty.
fn sort(items: &mut Value, field: &str, args: &Get) -> anyhow::Result<()> {
    let (Some(path), Some(items)) = (&args.sort_by, items.as_array_mut()) else { return Ok(()) };
    let path = Template::path(path)?;
    let key = |item: &Value| {
        let object = if field.is_empty() { item } else { &item[field] };
        path.values(object).first().map(|value| (value.as_f64(), jsonpath::text(value)))
    };
    items.sort_by(|a, b| match (key(a), key(b)) {
        (Some((Some(a), _)), Some((Some(b), _))) => a.total_cmp(&b),
        (a, b) => a.map(|k| k.1).cmp(&b.map(|k| k.1)),
    });
    Ok(())
}

fn allowed(answer: anyhow::Result<Value>, args: &Get) -> anyhow::Result<Option<Value>> {
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
pub(super) fn render(table: &Value, args: &Get, prefix: Option<&str>, headings: bool) -> String {
    let wide = args.output == Some(Form::Wide);
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
        if args.which.all_namespaces {
            line.push(meta["namespace"].as_str().unwrap_or_default().to_owned());
        }
        for (n, (i, _)) in columns.iter().enumerate() {
            let cell = cell(&row["cells"][*i]);
            line.push(if n == 0 { format!("{}{cell}", prefix.unwrap_or_default()) } else { cell });
        }
        for label in &args.label_columns {
            line.push(meta["labels"][label.as_str()].as_str().unwrap_or_default().to_owned());
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
        if args.which.all_namespaces {
            heads.insert(0, "NAMESPACE".to_owned());
        }
        heads.extend(
            args.label_columns.iter().map(|label| label.rsplit('/').next().unwrap_or(label).to_uppercase()),
        );
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
async fn watch(client: &Client, args: &Get, wanted: &Wanted, table: &Value) -> anyhow::Result<()> {
    let path = &wanted.path;
    let revision = table["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let follow = format!("watch=true&resourceVersion={revision}");
    let query = match &wanted.name {
        Some(name) => {
            let collection = path.strip_suffix(name.as_str()).unwrap_or(path).trim_end_matches('/');
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
    fn forms_are_told_apart() {
        assert_eq!("wide".parse(), Ok(Form::Wide));
        assert_eq!(
            "custom-columns=A:.a,B:b.c".parse(),
            Ok(Form::Columns(vec![("A".into(), ".a".into()), ("B".into(), "b.c".into())]))
        );
        for wrong in ["xml", "jsonpath={.a", "custom-columns=A", "go-template={{.a}}"] {
            assert!(wrong.parse::<Form>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cells_of_columns_come_from_paths() {
        let items = [serde_json::json!({"a": 1, "b": ["x", "y"]}), serde_json::json!({})];
        let columns = [("A".to_owned(), ".a".to_owned()), ("B".to_owned(), ".b[*]".to_owned())];
        let lines = by_columns(&columns, &items, false).unwrap();
        assert_eq!(lines, [["A", "B"], ["1", "x,y"], ["<none>", "<none>"]]);
    }

    #[test]
    fn columns_are_padded_to_their_widest_cell() {
        let lines =
            vec![vec!["NAME".to_owned(), "AGE".to_owned()], vec!["a-long-name".to_owned(), "5s".to_owned()]];
        assert_eq!(align(&lines), "NAME          AGE\na-long-name   5s\n");
    }
}
