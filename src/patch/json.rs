//! JSON patch (RFC 6902) and JSON merge patch (RFC 7386).

use json_patch::{PatchErrorKind, PatchOperation};
use serde_json::Value;

use super::PatchError;

/// Operations in one JSON patch.
pub const OPERATIONS_MAX: usize = 10_000;
/// What all `copy` operations of one patch may add, in bytes of JSON.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// `live` with the operations of `patch` (a JSON array) done, or none of them.
pub fn json_patch(live: &Value, patch: &Value) -> Result<Value, PatchError> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > OPERATIONS_MAX {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
        )));
    }
    let operations: Vec<PatchOperation> = serde::Deserialize::deserialize(patch)
        .map_err(|e: serde_json::Error| PatchError::BadRequest(e.to_string()))?;
    let mut object = live.clone();
    let mut copied = 0;
    for operation in &operations {
        if let PatchOperation::Copy(copy) = operation {
            copied += object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied > COPIED_BYTES_MAX {
                return Err(PatchError::Unprocessable(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, \
                     exceeding the limit {COPIED_BYTES_MAX}"
                )));
            }
        }
        json_patch::patch_unsafe(&mut object, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Unprocessable(failure(operation, &error.kind)))?;
    }
    Ok(object)
}

/// An operation's failure in the words of upstream's library.
fn failure(operation: &PatchOperation, kind: &PatchErrorKind) -> String {
    let path = operation.path().as_str();
    let key = path.rsplit('/').next().unwrap_or_default();
    match (operation, kind) {
        (PatchOperation::Test(_), PatchErrorKind::TestFailed) => {
            format!("testing value {path} failed: test failed")
        }
        (PatchOperation::Test(_), _) => format!("error in test for path: '{path}': missing value"),
        (PatchOperation::Remove(_), _) => {
            format!(
                "error in remove for path: '{path}': Unable to remove nonexistent key: {key}: missing value"
            )
        }
        (PatchOperation::Replace(_), _) => {
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        }
        (PatchOperation::Add(_), _) => {
            format!("add operation does not apply: doc is missing path: \"{path}\": missing value")
        }
        (PatchOperation::Move(from), PatchErrorKind::InvalidFromPointer) => {
            format!(
                "move operation does not apply: doc is missing from path: {}: missing value",
                from.from.as_str()
            )
        }
        (PatchOperation::Copy(from), PatchErrorKind::InvalidFromPointer) => {
            format!(
                "copy operation does not apply: doc is missing from path: {}: missing value",
                from.from.as_str()
            )
        }
        (PatchOperation::Move(_), PatchErrorKind::CannotMoveInsideItself) => {
            format!("error in move for path: '{path}': cannot move the value inside itself")
        }
        (PatchOperation::Move(_), _) => format!("error in move for path: '{path}': missing value"),
        (PatchOperation::Copy(_), _) => {
            format!("copy operation does not apply: doc is missing destination path: {path}: missing value")
        }
    }
}

/// `live` with `patch` merged in: null removes, lists are replaced.
pub fn merge_patch(live: &Value, patch: &Value) -> Value {
    let mut object = live.clone();
    json_patch::merge(&mut object, patch);
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_apply_in_order_or_not_at_all() {
        let live = json!({"a": {"b": 1}, "l": [1, 2]});
        let patch = json!([
            {"op": "test", "path": "/a/b", "value": 1},
            {"op": "replace", "path": "/a/b", "value": 2},
            {"op": "add", "path": "/l/-", "value": 3},
            {"op": "add", "path": "/x~1y", "value": {}},
            {"op": "copy", "from": "/a", "path": "/c"},
            {"op": "move", "from": "/c/b", "path": "/d"},
            {"op": "remove", "path": "/l/0"},
        ]);
        assert_eq!(
            json_patch(&live, &patch).unwrap(),
            json!({"a": {"b": 2}, "c": {}, "d": 2, "l": [2, 3], "x/y": {}})
        );
    }

    #[test]
    fn failures_have_upstreams_words() {
        let live = json!({"a": 1});
        let unprocessable = [
            (json!([{"op": "test", "path": "/a", "value": 2}]), "testing value /a failed: test failed"),
            (
                json!([{"op": "remove", "path": "/b"}]),
                "error in remove for path: '/b': Unable to remove nonexistent key: b: missing value",
            ),
            (
                json!([{"op": "replace", "path": "/b", "value": 1}]),
                "replace operation does not apply: doc is missing key: /b: missing value",
            ),
            (
                json!([{"op": "add", "path": "/b/c", "value": 1}]),
                "add operation does not apply: doc is missing path: \"/b/c\": missing value",
            ),
        ];
        for (patch, text) in unprocessable {
            assert_eq!(json_patch(&live, &patch), Err(PatchError::Unprocessable(text.to_owned())));
        }
        assert!(matches!(json_patch(&live, &json!({})), Err(PatchError::BadRequest(_))));
        assert!(matches!(json_patch(&live, &json!([{"op": "x"}])), Err(PatchError::BadRequest(_))));
    }

    #[test]
    fn a_patch_is_bounded() {
        let operation = json!({"op": "test", "path": "/a", "value": 1});
        let many = Value::Array(vec![operation; OPERATIONS_MAX + 1]);
        assert_eq!(
            json_patch(&json!({"a": 1}), &many).unwrap_err().to_string(),
            "The allowed maximum operations in a JSON patch is 10000, got 10001"
        );
        let doubling: Vec<_> =
            (0..64).map(|i| json!({"op": "copy", "from": "", "path": format!("/{i}")})).collect();
        assert!(matches!(
            json_patch(&json!({"a": "x"}), &doubling.into()),
            Err(PatchError::Unprocessable(_))
        ));
    }

    #[test]
    fn a_merge_patch_removes_with_null() {
        let live = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        assert_eq!(
            merge_patch(&live, &json!({"a": {"b": null, "d": {"e": null}}, "l": [2]})),
            json!({"a": {"c": 2, "d": {}}, "l": [2]})
        );
    }
}
