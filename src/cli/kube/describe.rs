//! `describe`: an object as indented text, and the events about it.

use clap::Args;
use serde_json::Value;

use super::{
    client::{Client, escape},
    discovery, get,
    which::Which,
};

#[derive(Debug, Clone, Args)]
pub struct Describe {
    #[command(flatten)]
    which: Which,
}

pub async fn run(client: &Client, args: &Describe) -> anyhow::Result<()> {
    let resources = discovery::resources(client).await?;
    for wanted in args.which.wanted(client, &resources)? {
        let answer = client.get(&wanted.path).await?;
        let objects = match (&wanted.name, &answer["items"]) {
            (None, Value::Array(items)) => items.clone(),
            _ => vec![answer],
        };
        for object in objects {
            let mut lines = Vec::new();
            let meta = &object["metadata"];
            for (title, field) in [
                ("Name", "name"),
                ("Namespace", "namespace"),
                ("Created", "creationTimestamp"),
                ("Deleted", "deletionTimestamp"),
            ] {
                if let Some(value) = meta[field].as_str() {
                    lines.push(entry(0, title, value));
                }
            }
            for (title, field) in [("Labels", "labels"), ("Annotations", "annotations")] {
                if !meta[field].is_null() {
                    section(&mut lines, title, &meta[field], 0);
                }
            }
            for owner in meta["ownerReferences"].as_array().into_iter().flatten() {
                let part = |f: &str| owner[f].as_str().unwrap_or_default();
                lines.push(entry(0, "Controlled By", &format!("{}/{}", part("kind"), part("name"))));
            }
            for (field, value) in object.as_object().into_iter().flatten() {
                if !matches!(field.as_str(), "metadata" | "apiVersion" | "kind") {
                    section(&mut lines, &title(field), value, 0);
                }
            }
            println!("{}", lines.join("\n"));
            events(client, &object).await?;
            println!();
        }
    }
    Ok(())
}

/// `restartPolicy` as `Restart Policy`.
fn title(field: &str) -> String {
    let mut out = String::new();
    for (i, c) in field.chars().enumerate() {
        if i == 0 {
            out.extend(c.to_uppercase());
        } else {
            if c.is_uppercase() {
                out.push(' ');
            }
            out.push(c);
        }
    }
    out
}

/// `Name:         value`, indented.
fn entry(depth: usize, name: &str, value: &str) -> String {
    let width = 14usize.saturating_sub(depth * 2);
    format!("{}{:<width$}{value}", "  ".repeat(depth), format!("{name}: "))
}

fn section(lines: &mut Vec<String>, name: &str, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            lines.push(format!("{indent}{name}:"));
            for (field, value) in fields {
                // Names inside labels, annotations and data are the user's own.
                let own = depth == 0 && matches!(name, "Labels" | "Annotations" | "Data");
                section(lines, &if own { field.clone() } else { title(field) }, value, depth + 1);
            }
        }
        Value::Array(items) => {
            lines.push(format!("{indent}{name}:"));
            for item in items {
                let Value::Object(fields) = item else {
                    lines.push(format!("{indent}  - {}", plain(item)));
                    continue;
                };
                let first = lines.len();
                for (field, value) in fields {
                    section(lines, &title(field), value, depth + 2);
                }
                if let Some(line) = lines.get_mut(first) {
                    line.replace_range(indent.len() + 2..=indent.len() + 2, "-");
                }
            }
        }
        other => lines.push(entry(depth, name, &plain(other))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn events(client: &Client, object: &Value) -> anyhow::Result<()> {
    let meta = &object["metadata"];
    let uid = meta["uid"].as_str().unwrap_or_default();
    let place = meta["namespace"].as_str().unwrap_or("default");
    let query = escape(&format!("involvedObject.uid={uid}"));
    let list = client.get(&format!("/api/v1/namespaces/{place}/events?fieldSelector={query}")).await?;
    let rows: Vec<Vec<String>> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| {
            let text = |f: &str| event[f].as_str().unwrap_or_default().to_owned();
            let from = event["source"]["component"].as_str().or(event["reportingComponent"].as_str());
            let times =
                event["count"].as_i64().filter(|n| *n > 1).map_or(String::new(), |n| format!(" (x{n})"));
            let when = event["lastTimestamp"].as_str().or(event["eventTime"].as_str()).unwrap_or("<unknown>");
            vec![
                format!("  {}", text("type")),
                text("reason"),
                format!("{when}{times}"),
                from.unwrap_or_default().to_owned(),
                text("message").trim().to_owned(),
            ]
        })
        .collect();
    if rows.is_empty() {
        println!("Events:       <none>");
        return Ok(());
    }
    let head = ["  Type", "Reason", "Last Seen", "From", "Message"].map(str::to_owned).to_vec();
    println!("Events:");
    print!("{}", get::align(&[vec![head], rows].concat()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_become_indented_text() {
        let mut lines = Vec::new();
        let spec = json!({"nodeName": "a", "ports": [{"name": "http", "port": 80}], "args": ["x"]});
        section(&mut lines, "Spec", &spec, 0);
        let want = [
            "Spec:",
            "  Args:",
            "    - x",
            "  Node Name: a",
            "  Ports:",
            "    - Name: http",
            "      Port: 80",
        ];
        let squeezed: Vec<String> = lines
            .iter()
            .map(|line| match line.split_once(": ") {
                Some((name, value)) => format!("{name}: {}", value.trim_start()),
                None => line.clone(),
            })
            .collect();
        assert_eq!(squeezed, want);
    }
}
