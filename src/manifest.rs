//! Manifests: YAML and JSON documents as people write them, one or several a file.
//!
//! In: text. Out: JSON trees, each with the place it came from, so that every later error can name
//! file, document and line. The one place that knows serde_yaml.

use serde::Deserialize;
use serde_json::Value;

/// The largest manifest that is read (bytes): the API's request bound.
pub const MANIFEST_BYTES_MAX: usize = 3 << 20;

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Counted from 1.
    pub index: usize,
    pub value: Value,
}

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// serde_yaml's message names line and column.
    #[error("document {index}: {source}")]
    Syntax { index: usize, source: serde_yaml::Error },
    #[error("document {index}: expected an object with apiVersion and kind")]
    NotAnObject { index: usize },
    #[error("the manifest is larger than {MANIFEST_BYTES_MAX} bytes")]
    TooLarge,
}

/// One document as settings of a type.
///
/// # Errors
/// serde_yaml's message, which names key, line and column.
pub fn parse_yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_yaml::from_str(text).map_err(|error| error.to_string())
}

/// The documents of a text, empty ones left out. JSON is YAML, so both are read the same way; a
/// `List` is taken apart into its items.
pub fn documents(text: &str) -> Result<Vec<Document>, ManifestError> {
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let mut found = Vec::new();
    for (i, part) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let index = i + 1;
        // serde_yaml's own tree refuses duplicate keys, JSON's keeps the last of them.
        let tree = serde_yaml::Value::deserialize(part);
        let value = tree
            .and_then(serde_yaml::from_value::<Value>)
            .map_err(|source| ManifestError::Syntax { index, source })?;
        match value {
            Value::Null => {}
            Value::Object(mut object) if object_is_list(&object) => {
                if let Some(Value::Array(items)) = object.remove("items") {
                    found.extend(items.into_iter().map(|value| Document { index, value }));
                }
            }
            Value::Object(object) => found.push(Document { index, value: Value::Object(object) }),
            _ => return Err(ManifestError::NotAnObject { index }),
        }
    }
    Ok(found)
}

fn object_is_list(object: &serde_json::Map<String, Value>) -> bool {
    object.get("kind").and_then(Value::as_str).is_some_and(|kind| kind == "List")
}

/// A tree as YAML, keys in order.
pub fn to_yaml(value: &Value) -> String {
    serde_yaml::to_string(value).unwrap_or_else(|error| format!("# {error}\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn several_documents_and_json_are_read() {
        let text = "---\nkind: A\n---\n# nothing\n---\n{\"kind\": \"B\"}\n---\nkind: List\nitems:\n- kind: C\n- kind: D\n";
        let kinds: Vec<_> = documents(text).unwrap().into_iter().map(|d| d.value["kind"].clone()).collect();
        assert_eq!(kinds, [json!("A"), json!("B"), json!("C"), json!("D")]);
    }

    #[test]
    fn errors_name_document_and_line() {
        let error = documents("kind: A\n---\nkind: B\n  bad: [\n").unwrap_err().to_string();
        assert!(error.starts_with("document 2: ") && error.contains("line 4"), "{error}");
        let error = documents("kind: A\nkind: B\n").unwrap_err().to_string();
        assert!(error.contains("duplicate entry with key \"kind\""), "{error}");
        assert!(matches!(documents("- a\n"), Err(ManifestError::NotAnObject { index: 1 })));
    }
}
