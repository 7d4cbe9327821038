//! Printer columns that kinds share, and the pieces of cells
//! (`pkg/printers/internalversion/printers.go`).

use serde_json::Value;

use super::Column;
pub use super::age;

/// Descriptions are paths of the fields that describe them, or else texts of several words.
pub const NAME: Column = Column { format: "name", ..text("Name", "metadata.name") };

pub const AGE: Column = text("Age", "metadata.creationTimestamp");

/// A column of texts.
pub const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

/// A column of whole numbers.
pub const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { kind: "integer", ..text(name, description) }
}

/// A column of `true` and `false`.
pub const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column { kind: "boolean", ..text(name, description) }
}

/// A column that only `-o wide` shows.
pub const fn wide(column: Column) -> Column {
    Column { priority: 1, ..column }
}

/// The object's name.
pub fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// A text, or something else where there is none.
pub fn text_or(value: &Value, otherwise: &str) -> Value {
    match value.as_str() {
        Some(text) if !text.is_empty() => text.into(),
        _ => otherwise.into(),
    }
}

/// A number, 0 where there is none.
pub fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// How long ago an RFC 3339 time was, or `<unknown>`.
pub fn since(time: &Value, now: jiff::Timestamp) -> String {
    super::human_since(time, now)
}

/// A map of labels as `a=b,c=d`, or `<none>`.
pub fn labels(map: &Value) -> String {
    let pairs: Vec<_> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// The names, images and selector of a workload's template, as wide columns.
pub fn template_cells(spec: &Value, selector: String) -> [Value; 3] {
    let list = |field: &str| -> Value {
        let containers = spec["template"]["spec"]["containers"].as_array().into_iter().flatten();
        containers.map(|c| c[field].as_str().unwrap_or_default()).collect::<Vec<_>>().join(",").into()
    };
    [list("name"), list("image"), selector.into()]
}

/// [`template_cells`]' columns.
pub const TEMPLATE: [Column; 3] = [
    wide(text("Containers", "Names of each container in the template.")),
    wide(text("Images", "Images referenced by each container in the template.")),
    wide(text("Selector", "spec.selector")),
];

/// A number or a percentage as text, or `<none>`.
pub fn int_or_string(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => "N/A".to_owned(),
    }
}

/// `RWO,ROX` for a list of access modes.
pub fn access_modes(modes: &Value) -> String {
    let has = |mode: &str| modes.as_array().is_some_and(|list| list.iter().any(|m| m == mode));
    let all = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    all.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// The columns of kinds that upstream prints without a printer of their own.
pub const CREATED_COLUMNS: &[Column] =
    &[NAME, Column { kind: "date", ..text("Created At", "metadata.creationTimestamp") }];

/// The cells of [`CREATED_COLUMNS`].
pub fn created_cells(object: &Value, _: jiff::Timestamp) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}
