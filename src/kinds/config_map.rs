//! ConfigMaps: plain configuration data.

use serde_json::Value;

use super::{
    ErrorList, FieldError, Kind, Strategy,
    at::At,
    columns::{self, AGE, NAME, text},
    meta, names,
    registry::row,
};

pub const CONFIG_MAP: Kind = Kind {
    short_names: &["cm"],
    columns: &[NAME, text("Data", "data"), AGE],
    strategy: Strategy {
        validate: |object| meta::check(object, true, names::dns_subdomain, check),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                check_immutable(new, old, &["data", "binaryData"], errors);
            })
        },
        cells: |object, now| {
            let count = entries(&object["data"]) + entries(&object["binaryData"]);
            vec![columns::name(object), count.into(), columns::age(object, now).into()]
        },
        ..Strategy::PLAIN
    },
    ..row("", "v1", "ConfigMap", "configmaps", "configmap", "io.k8s.api.core.v1.ConfigMap")
};

/// All values of a ConfigMap or Secret together (bytes).
pub const DATA_BYTES_MAX: usize = 1024 * 1024;

/// How many entries a map has.
pub fn entries(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

/// Refuses keys that could not be file names.
pub fn check_keys(data: &At<'_>, errors: &mut ErrorList) {
    for (key, _) in data.entries() {
        let path = data.key(key).path;
        errors.extend(names::config_key(key).into_iter().map(|m| FieldError::invalid(&path, key, m)));
    }
}

/// How long a base64 text's bytes are.
pub fn base64_bytes(text: &str) -> usize {
    let text = text.trim_end_matches('=');
    text.len() / 4 * 3 + (text.len() % 4).saturating_sub(1)
}

/// What is marked `immutable` stays so, and stays as it is.
pub fn check_immutable(new: &At<'_>, old: &At<'_>, data: &[&str], errors: &mut ErrorList) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !old.get("immutable").is_true() {
        return;
    }
    if !new.get("immutable").is_true() {
        errors.push(new.get("immutable").forbidden(DETAIL));
    }
    for field in data {
        let (now, then) = (new.get(field), old.get(field));
        if now.value != then.value && !(now.is_empty() && then.is_empty()) {
            errors.push(now.forbidden(DETAIL));
        }
    }
}

fn check(object: &At<'_>, errors: &mut ErrorList) {
    let (data, binary) = (object.get("data"), object.get("binaryData"));
    check_keys(&data, errors);
    let mut bytes = 0;
    for (key, value) in data.entries() {
        if binary.key(key).is_set() {
            let detail = "duplicate of key present in binaryData";
            errors.push(FieldError::invalid(data.key(key).path, key, detail));
        }
        bytes += value.as_str().map_or(0, str::len);
    }
    check_keys(&binary, errors);
    bytes += binary.entries().map(|(_, v)| base64_bytes(v.as_str().unwrap_or_default())).sum::<usize>();
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("", DATA_BYTES_MAX));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_and_size_are_checked() {
        let object = |data: Value| json!({"metadata": {"name": "c", "namespace": "n"}, "data": data, "binaryData": {"both": "AAAA"}});
        let errors = |data| texts((CONFIG_MAP.strategy.validate)(&object(data)));
        assert_eq!(errors(json!({"a.txt": "b"})), Vec::<String>::new());
        assert!(
            errors(json!({"a/b": ""}))[0]
                .starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key")
        );
        assert_eq!(
            errors(json!({"both": ""})),
            ["data[both]: Invalid value: \"both\": duplicate of key present in binaryData"]
        );
        assert_eq!(
            errors(json!({"a": "x".repeat(DATA_BYTES_MAX)})),
            [": Too long: may not be more than 1048576 bytes"]
        );
        assert_eq!(["", "AA==", "AAA=", "AAAA"].map(base64_bytes), [0, 1, 2, 3]);
    }

    #[test]
    fn immutable_data_does_not_change() {
        let old = json!({"metadata": {"name": "c"}, "immutable": true, "data": {"a": "b"}});
        let new = json!({"metadata": {"name": "c"}, "data": {"a": "c"}});
        assert_eq!(
            texts((CONFIG_MAP.strategy.validate_update)(&new, &old)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }
}
