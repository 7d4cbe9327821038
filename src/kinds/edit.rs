//! Small edits of an object's JSON form, for defaults.

use serde_json::{Map, Value};

/// Sets a field that is absent.
pub fn set_default(object: &mut Value, field: &str, value: impl Into<Value>) {
    if object.get(field).is_none_or(Value::is_null) {
        object[field] = value.into();
    }
}

/// Sets a text that is absent or empty, or a number that is absent or 0: fields that are no
/// pointers in upstream's types.
pub fn set_default_empty(object: &mut Value, field: &str, value: impl Into<Value>) {
    let empty = match object.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(number) => number.as_i64() == Some(0),
    };
    if empty {
        object[field] = value.into();
    }
}

/// The field as a map to edit, made when it is absent.
pub fn child<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    set_default(object, field, Map::new());
    &mut object[field]
}

/// The items of a list field to edit.
pub fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// A field to edit, when it is there.
pub fn present<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    object.get_mut(field).filter(|v| !v.is_null())
}

/// Takes away empty values (`false`, 0, `""`, `[]`, `{}`) of fields that upstream's types keep
/// without a pointer, so that absent and empty are one.
pub fn drop_empty(object: &mut Value, fields: &[&str]) {
    let Some(map) = object.as_object_mut() else { return };
    for field in fields {
        let empty = match map.get(*field) {
            Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(fields)) => fields.is_empty(),
            Some(Value::Number(number)) => number.as_i64() == Some(0),
            _ => false,
        };
        if empty {
            map.remove(*field);
        }
    }
}
