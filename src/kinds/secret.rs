//! Secrets: data that is shown to few.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    ErrorList, FieldError, Kind, Strategy,
    at::At,
    columns::{self, AGE, NAME, text},
    config_map::{DATA_BYTES_MAX, base64_bytes, check_immutable, check_keys, entries},
    edit::{child, set_default_empty},
    meta, names,
    registry::row,
};

pub const SECRET: Kind = Kind {
    columns: &[NAME, text("Type", "type"), text("Data", "data"), AGE],
    strategy: Strategy {
        default,
        validate: |object| meta::check(object, true, names::dns_subdomain, check),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                new.get("type").check_immutable(&old.get("type"), errors);
                check_immutable(new, old, &["data"], errors);
            })
        },
        selectable: |object| vec![("type", object["type"].as_str().unwrap_or_default().to_owned())],
        cells: |object, now| {
            vec![
                columns::name(object),
                object["type"].clone(),
                entries(&object["data"]).into(),
                columns::age(object, now).into(),
            ]
        },
        ..Strategy::PLAIN
    },
    ..row("", "v1", "Secret", "secrets", "secret", "io.k8s.api.core.v1.Secret")
};

fn default(secret: &mut Value) {
    set_default_empty(secret, "type", "Opaque");
    let Some(plain) = secret.as_object_mut().and_then(|s| s.remove("stringData")) else { return };
    for (key, value) in plain.as_object().into_iter().flatten() {
        let encoded = STANDARD.encode(value.as_str().unwrap_or_default());
        child(secret, "data")[key] = encoded.into();
    }
}

/// The keys that a type of Secret must have.
fn required_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    }
}

fn check(secret: &At<'_>, errors: &mut ErrorList) {
    let (data, kind) = (secret.get("data"), secret.get("type"));
    check_keys(&data, errors);
    if data.entries().map(|(_, v)| base64_bytes(v.as_str().unwrap_or_default())).sum::<usize>()
        > DATA_BYTES_MAX
    {
        errors.push(FieldError::too_long(&data.path, DATA_BYTES_MAX));
    }
    for key in required_keys(kind.str()).iter().map(|k| data.key(k)) {
        if !key.is_set() || (kind.str() == "kubernetes.io/ssh-auth" && key.is_empty()) {
            errors.push(key.required(""));
        } else if kind.str().starts_with("kubernetes.io/dockerc") {
            let bytes = STANDARD.decode(key.str()).unwrap_or_default();
            if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
                let why = super::schema::json::in_gos_words(&bytes, &error);
                errors.push(FieldError::invalid(key.path, "<secret contents redacted>", why));
            }
        }
    }
    match kind.str() {
        "kubernetes.io/service-account-token" => {
            let account = secret.get("metadata").get("annotations").key("kubernetes.io/service-account.name");
            account.check_required(errors);
        }
        "kubernetes.io/basic-auth" => {
            let fields = ["username", "password"].map(|k| data.key(k));
            if fields.iter().all(|f| !f.is_set()) {
                errors.extend(fields.iter().map(|f| f.required("")));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_texts_become_data() {
        let mut secret = json!({"stringData": {"a": "hello"}, "data": {"a": "eA==", "b": "eA=="}});
        default(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eA=="}}));
    }

    #[test]
    fn types_have_their_keys() {
        let errors = |kind: &str, data: Value| -> Vec<String> {
            let secret = json!({"metadata": {"name": "s", "namespace": "n"}, "type": kind, "data": data});
            (SECRET.strategy.validate)(&secret).iter().map(ToString::to_string).collect()
        };
        assert_eq!(errors("kubernetes.io/tls", json!({"tls.crt": ""})), ["data[tls.key]: Required value"]);
        assert_eq!(
            errors("kubernetes.io/basic-auth", Value::Null),
            ["data[username]: Required value", "data[password]: Required value"]
        );
        assert_eq!(
            errors("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e30="})),
            Vec::<String>::new()
        );
        assert_eq!(
            errors("kubernetes.io/service-account-token", Value::Null),
            ["metadata.annotations[kubernetes.io/service-account.name]: Required value"]
        );
    }
}
