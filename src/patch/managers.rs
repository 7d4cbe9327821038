//! `metadata.managedFields`: which manager owns which fields.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use super::fieldset::FieldSet;

/// Managers of ordinary updates that are told apart; older ones are merged.
pub const UPDATE_MANAGERS_MAX: usize = 10;
/// The manager that stands for the merged ones.
const ANCIENT: &str = "ancient-changes";

/// Who owns a set: an entry without its fields and time. Appliers are the same manager in every version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    /// `Apply` or `Update`.
    pub operation: String,
    pub name: String,
    pub subresource: String,
    /// Empty for appliers.
    api_version: String,
}

impl Manager {
    pub fn applier(name: &str, subresource: &str) -> Self {
        let (operation, api_version) = ("Apply".to_owned(), String::new());
        Self { operation, name: name.to_owned(), subresource: subresource.to_owned(), api_version }
    }

    pub fn updater(name: &str, subresource: &str, api_version: &str) -> Self {
        Self {
            operation: "Update".to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
            api_version: api_version.to_owned(),
        }
    }

    fn is_updater(&self) -> bool {
        self.operation == "Update"
    }

    /// As conflicts name it.
    pub fn shown(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            let _ = write!(text, " with subresource {:?}", self.subresource);
        }
        if self.is_updater() {
            let _ = write!(text, " using {}", self.api_version);
        }
        text
    }
}

/// What a manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub fields: FieldSet,
    pub api_version: String,
    /// RFC 3339 in whole seconds; empty when the entry had none.
    pub time: String,
}

/// All entries of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managers(pub BTreeMap<Manager, Owned>);

impl Managers {
    /// Reads `metadata.managedFields`; none when an entry is malformed.
    pub fn of(object: &Value) -> Option<Self> {
        let mut managers = Self::default();
        let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        for entry in entries.into_iter().flatten() {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            if text("fieldsType") != "FieldsV1" {
                return None;
            }
            let fields = match entry.get("fieldsV1") {
                Some(json) => FieldSet::from_json(json)?,
                None => FieldSet::default(),
            };
            let (operation, api_version) = (text("operation"), text("apiVersion"));
            let manager = Manager {
                api_version: if operation == "Apply" { String::new() } else { api_version.clone() },
                operation,
                name: text("manager"),
                subresource: text("subresource"),
            };
            managers.0.insert(manager, Owned { fields, api_version, time: text("time") });
        }
        Some(managers)
    }

    /// Writes them into an object, in upstream's order.
    pub fn write(self, object: &mut Value) {
        let mut entries: Vec<_> = self.0.into_iter().collect();
        // Times of one form: their texts order as the times do.
        entries.sort_by(|(a, x), (b, y)| {
            (&a.operation, &x.time, &a.name, &x.api_version, &a.subresource).cmp(&(
                &b.operation,
                &y.time,
                &b.name,
                &y.api_version,
                &b.subresource,
            ))
        });
        let entries: Vec<Value> = entries
            .into_iter()
            .map(|(manager, owned)| {
                let mut entry = json!({
                    "manager": manager.name,
                    "operation": manager.operation,
                    "apiVersion": owned.api_version,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": owned.fields.to_json(),
                });
                if !owned.time.is_empty() {
                    entry["time"] = Value::from(owned.time);
                }
                if !manager.subresource.is_empty() {
                    entry["subresource"] = Value::from(manager.subresource);
                }
                entry
            })
            .collect();
        strip(object);
        if !entries.is_empty()
            && let Some(object) = object.as_object_mut()
            && let Some(metadata) = object.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
        {
            metadata.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }

    /// Drops managers that own nothing.
    pub fn prune(&mut self) {
        self.0.retain(|_, owned| !owned.fields.is_empty());
    }

    /// All owned fields.
    pub fn all_fields(&self) -> FieldSet {
        self.0.values().fold(FieldSet::default(), |all, owned| all.union(&owned.fields))
    }

    /// Merges the oldest updaters of a version until there are at most [`UPDATE_MANAGERS_MAX`].
    pub fn cap(&mut self) {
        let mut updaters: Vec<(String, Manager)> = self
            .0
            .iter()
            .filter(|(manager, _)| manager.is_updater())
            .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
            .collect();
        let mut excess = updaters.len().saturating_sub(UPDATE_MANAGERS_MAX);
        updaters.sort();
        let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
        for (_, manager) in updaters {
            if excess == 0 {
                break;
            }
            let version = manager.api_version.clone();
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, manager);
                continue;
            };
            let bucket = Manager::updater(ANCIENT, "", &version);
            if !self.0.contains_key(&bucket)
                && let Some(owned) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), owned);
            }
            if let Some(owned) = self.0.remove(&manager)
                && let Some(ancient) = self.0.get_mut(&bucket)
            {
                ancient.fields = ancient.fields.union(&owned.fields);
                ancient.time = owned.time;
                excess -= 1;
            }
        }
    }
}

/// Takes `metadata.managedFields` off an object.
pub fn strip(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

/// Whether a client asks for all entries to be dropped: one empty entry.
pub fn is_reset(object: &Value) -> bool {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.is_some_and(|entries| {
        matches!(entries.as_slice(), [Value::Object(entry)] if entry.is_empty())
            || matches!(entries.as_slice(), [Value::Null])
    })
}
