//! Events, in their two forms: core/v1 (stored) and events.k8s.io/v1.

use serde_json::{Value, json};

use super::{
    Column, Durability, ErrorList, FieldError, Kind, StoredAs, Strategy,
    at::At,
    columns::{self, NAME, number, text, text_or, wide},
    edit::child,
    meta, names,
    registry::row,
};

pub const EVENT: Kind = Kind {
    short_names: &["ev"],
    durability: Durability::Memory,
    created_by_put: true,
    columns: COLUMNS,
    strategy: Strategy {
        default: |event| {
            // Fields without a pointer: absent and empty are one, and always written.
            for field in ["involvedObject", "source"] {
                child(event, field);
            }
            for field in ["reportingComponent", "reportingInstance"] {
                super::edit::set_default(event, field, "");
            }
        },
        validate: |event| meta::check(event, true, names::dns_subdomain, check),
        selectable,
        cells,
        ..Strategy::PLAIN
    },
    ..row("", "v1", "Event", "events", "event", "io.k8s.api.core.v1.Event")
};

/// Its strategy works on the stored form.
pub const EVENT_V1: Kind = Kind {
    group: "events.k8s.io",
    schema: "io.k8s.api.events.v1.Event",
    stored_as: Some(StoredAs { group: "", version: "v1", plural: "events", to_stored, from_stored }),
    strategy: Strategy { selectable: selectable_v1, ..EVENT.strategy },
    ..EVENT
};

/// Bytes of an event's reason, action and reporter, and of its note.
const WORD_BYTES_MAX: usize = 128;
const NOTE_BYTES_MAX: usize = 1024;

/// What the fields are called in events.k8s.io/v1, and in core/v1.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(mut event: Value, api_version: &str, to_core: bool) -> Value {
    if let Some(fields) = event.as_object_mut() {
        for (v1, core) in RENAMED {
            let (from, to) = if to_core { (v1, core) } else { (core, v1) };
            if let Some(value) = fields.remove(*from) {
                fields.insert((*to).to_owned(), value);
            }
        }
        fields.insert("apiVersion".to_owned(), api_version.into());
        fields.insert("kind".to_owned(), "Event".into());
    }
    event
}

fn to_stored(event: Value) -> Value {
    rename(event, "v1", true)
}

fn from_stored(event: Value) -> Value {
    rename(event, "events.k8s.io/v1", false)
}

fn check(event: &At<'_>, errors: &mut ErrorList) {
    let namespace = event.get("metadata").get("namespace").str();
    let involved = event.get("involvedObject").get("namespace");
    let good =
        if involved.is_empty() { matches!(namespace, "" | "default") } else { involved.str() == namespace };
    if !good {
        errors.push(
            At { value: &json!(involved.str()), path: involved.path.clone() }
                .invalid("does not match event.namespace"),
        );
    }
    let controller = event.get("reportingComponent");
    if event.get("eventTime").is_set() {
        controller.with_path("reportingController").check_required_name(names::qualified, errors);
        let mut bounded = |field: &At<'_>, max: usize| {
            if field.len() > max {
                let why = format!("can have at most {max} characters");
                errors.push(FieldError::invalid(&field.path, "", why));
            }
        };
        for field in ["reportingInstance", "action", "reason"] {
            bounded(&event.get(field), WORD_BYTES_MAX);
        }
        bounded(&event.get("message"), NOTE_BYTES_MAX);
        for field in ["reportingInstance", "action", "reason"] {
            event.get(field).check_required(errors);
        }
        event.get("type").check_one_of(&["Normal", "Warning"], errors);
    }
}

fn fields(event: &Value) -> [String; 11] {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let object = &event["involvedObject"];
    let source = &event["source"]["component"];
    let source = if text(source).is_empty() { &event["reportingComponent"] } else { source };
    [
        text(&object["kind"]),
        text(&object["namespace"]),
        text(&object["name"]),
        text(&object["uid"]),
        text(&object["apiVersion"]),
        text(&object["resourceVersion"]),
        text(&object["fieldPath"]),
        text(&event["reason"]),
        text(&event["reportingComponent"]),
        text(source),
        text(&event["type"]),
    ]
}

fn selectable(event: &Value) -> Vec<(&'static str, String)> {
    const NAMES: [&str; 11] = [
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];
    NAMES.into_iter().zip(fields(event)).collect()
}

fn selectable_v1(event: &Value) -> Vec<(&'static str, String)> {
    const NAMES: [&str; 11] = [
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "source",
        "type",
    ];
    NAMES.into_iter().zip(fields(event)).collect()
}

const COLUMNS: &[Column] = &[
    text("Last Seen", "lastTimestamp"),
    text("Type", "type"),
    text("Reason", "reason"),
    text("Object", "involvedObject"),
    wide(text("Subobject", "involvedObject.fieldPath")),
    wide(text("Source", "source")),
    text("Message", "message"),
    wide(text("First Seen", "firstTimestamp")),
    wide(text("Count", "count")),
    wide(NAME),
];

fn cells(event: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let object = &event["involvedObject"];
    let set = |time: &'_ Value| time.as_str().is_some_and(|t| !t.is_empty());
    let first = if set(&event["firstTimestamp"]) { &event["firstTimestamp"] } else { &event["eventTime"] };
    let series = &event["series"];
    let last = if !series.is_null() {
        &series["lastObservedTime"]
    } else if set(&event["lastTimestamp"]) {
        &event["lastTimestamp"]
    } else {
        first
    };
    let count = if series.is_null() { number(&event["count"]).max(1) } else { number(&series["count"]) };
    let part = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let target = match (part(&object["kind"]).to_lowercase(), part(&object["name"])) {
        (kind, name) if name.is_empty() => kind,
        (kind, name) => format!("{kind}/{name}"),
    };
    let first_of = |from: &str, or: &str| {
        let given = part(&event["source"][from]);
        if given.is_empty() { part(&event[or]) } else { given }
    };
    let mut source = first_of("component", "reportingComponent");
    let host = first_of("host", "reportingInstance");
    if !host.is_empty() {
        source = format!("{source}, {host}");
    }
    vec![
        columns::since(last, now).into(),
        text_or(&event["type"], ""),
        text_or(&event["reason"], ""),
        target.into(),
        text_or(&object["fieldPath"], ""),
        source.into(),
        part(&event["message"]).trim().into(),
        columns::since(first, now).into(),
        count.into(),
        columns::name(event),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Value {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "n"}, "message": "Pulled ", "reason": "Pulled", "type": "Normal",
            "source": {"component": "kubelet", "host": "node"}, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z", "count": 3})
    }

    #[test]
    fn the_two_forms_say_the_same() {
        let other = from_stored(event());
        assert_eq!(other["regarding"]["name"], "p");
        assert_eq!((&other["note"], &other["deprecatedCount"]), (&json!("Pulled "), &json!(3)));
        assert_eq!(to_stored(other), event());
    }

    #[test]
    fn a_row_shows_what_happened_to_what() {
        let now = "2026-01-01T00:02:00Z".parse().expect("time");
        assert_eq!(
            cells(&event(), now),
            [
                json!("60s"),
                json!("Normal"),
                json!("Pulled"),
                json!("pod/p"),
                json!(""),
                json!("kubelet, node"),
                json!("Pulled"),
                json!("2m"),
                json!(3),
                json!("e")
            ]
        );
        assert_eq!((EVENT.strategy.validate)(&event()), []);
        let mut wrong = event();
        wrong["involvedObject"]["namespace"] = "m".into();
        assert_eq!((EVENT.strategy.validate)(&wrong).len(), 1);
        let mut long = event();
        long["eventTime"] = "2026-01-01T00:00:00.000000Z".into();
        for (field, text) in [("reportingComponent", "a"), ("reportingInstance", "a"), ("action", "a")] {
            long[field] = text.into();
        }
        long["message"] = "x".repeat(1025).into();
        assert_eq!(
            (EVENT.strategy.validate)(&long)[0].to_string(),
            "message: Invalid value: \"\": can have at most 1024 characters"
        );
    }
}
