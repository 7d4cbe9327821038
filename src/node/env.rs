//! The environment and the arguments of a container.
//!
//! Source: `pkg/kubelet/kubelet_pods.go` (`makeEnvironmentVariables`) and the expansion rules of
//! `$(NAME)` in the API's documentation of `command`, `args` and `env`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Secret};

use super::{
    downward::{self, Facts},
    record::Wanted,
};

/// Where ConfigMaps and Secrets are looked up.
pub trait Lookup: Sync {
    fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap>;
    fn secret(&self, namespace: &str, name: &str) -> Option<Secret>;
    /// A file of a volume of the pod; `None` when it is not there.
    ///
    /// # Errors
    /// No such volume, or the file cannot be read.
    fn file(&self, volume: &str, _path: &str) -> Result<Option<String>, String> {
        Err(format!("cannot find the volume {volume:?} referenced by FileKeyRef"))
    }
}

/// The declared environment of a container, later entries in place of earlier ones.
///
/// # Errors
/// The text of a `CreateContainerConfigError`.
pub fn declared(
    wanted: &Wanted,
    container: &Container,
    lookup: &dyn Lookup,
    facts: &Facts,
    services: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, String> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        if known.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut pairs = BTreeMap::new();
        if let Some(reference) = &from.config_map_ref {
            match lookup.config_map(&wanted.namespace, &reference.name) {
                Some(map) => pairs.extend(map.data.unwrap_or_default()),
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        } else if let Some(reference) = &from.secret_ref {
            match lookup.secret(&wanted.namespace, &reference.name) {
                Some(secret) => {
                    pairs.extend(secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, text(v.0))));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
        for (name, value) in pairs {
            set(&mut known, format!("{prefix}{name}"), value);
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(source)) => match from_source(wanted, container, source, lookup, facts)? {
                Some(value) => value,
                None => continue,
            },
            (value, None) => expand(value.as_deref().unwrap_or_default(), |name| {
                known.get(name).or_else(|| services.get(name)).cloned()
            }),
        };
        set(&mut known, var.name.clone(), value);
    }
    let mut all: Vec<(String, String)> = services
        .iter()
        .filter(|(n, _)| !known.contains_key(*n))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    all.extend(order.into_iter().map(|name| {
        let value = known.remove(&name).unwrap_or_default();
        (name, value)
    }));
    Ok(all)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn from_source(
    wanted: &Wanted,
    container: &Container,
    source: &EnvVarSource,
    lookup: &dyn Lookup,
    facts: &Facts,
) -> Result<Option<String>, String> {
    let namespace = &wanted.namespace;
    if let Some(field) = &source.field_ref {
        return downward::field(wanted, &field.field_path, facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return downward::resource(wanted, Some(container), resource, facts).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = lookup.config_map(namespace, &key.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", key.name)) };
        };
        return match map.data.unwrap_or_default().remove(&key.key) {
            None if !optional => {
                Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name))
            }
            found => Ok(found),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = lookup.secret(namespace, &key.name) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", key.name)) };
        };
        return match secret.data.unwrap_or_default().remove(&key.key) {
            None if !optional => {
                Err(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name))
            }
            found => Ok(found.map(|bytes| text(bytes.0))),
        };
    }
    if let Some(key) = &source.file_key_ref {
        let optional = key.optional == Some(true);
        let text = lookup.file(&key.volume_name, &key.path)?;
        let missing =
            || format!("environment variable file {:?} not found in volume {:?}", key.path, key.volume_name);
        let Some(text) = text else { return if optional { Ok(None) } else { Err(missing()) } };
        return match of_file(&text, &key.key)? {
            None if !optional => {
                Err(format!("environment variable key {:?} not found in file {:?}", key.key, key.path))
            }
            found => Ok(found),
        };
    }
    Err("env valueFrom: this source is not supported by Sampan".to_owned())
}

/// The value of a variable in a file of `NAME='value'` lines: what is between single quotes is taken
/// as it is, line feeds included; a value without quotes ends with its line. `#` begins a comment.
fn of_file(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            rest = after;
            continue;
        }
        let invalid = || format!("invalid environment variable format: {line}");
        let (name, value) = rest.split_once('=').ok_or_else(invalid)?;
        if name.contains('\n') {
            return Err(invalid());
        }
        let (value, after) = match value.strip_prefix('\'') {
            Some(quoted) => {
                let (value, tail) = quoted.split_once('\'').ok_or_else(invalid)?;
                (value, tail.split_once('\n').map_or("", |(_, after)| after))
            }
            None => (line.split_once('=').map_or("", |(_, value)| value.trim()), after),
        };
        if name.trim() == key {
            return Ok(Some(value.to_owned()));
        }
        rest = after;
    }
    Ok(None)
}

/// Replaces `$(NAME)` where `lookup` knows it; `$$` is a dollar sign; what is unknown stays.
pub fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            if let Some(value) = lookup(name) {
                out.push_str(&value);
            } else {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Here;

    impl Lookup for Here {
        fn config_map(&self, _: &str, name: &str) -> Option<ConfigMap> {
            (name == "cm").then(|| ConfigMap {
                data: Some([("k".to_owned(), "v".to_owned())].into()),
                ..ConfigMap::default()
            })
        }

        fn secret(&self, _: &str, name: &str) -> Option<Secret> {
            let bytes = k8s_openapi::ByteString(b"s".to_vec());
            (name == "se")
                .then(|| Secret { data: Some([("p".to_owned(), bytes)].into()), ..Secret::default() })
        }
    }

    #[test]
    fn values_are_read_from_files() {
        let file = "# made by init\nA='one'\n\nB='two\nlines'\nC=plain \n";
        for (key, value) in [("A", Some("one")), ("B", Some("two\nlines")), ("C", Some("plain")), ("D", None)]
        {
            assert_eq!(of_file(file, key).unwrap().as_deref(), value, "{key}");
        }
        assert!(of_file("nonsense", "A").is_err());
    }

    fn env(text: &str) -> Result<Vec<String>, String> {
        let container: serde_json::Value = serde_json::from_str(text).unwrap();
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "x"}},
            "spec": {"containers": [container]},
        });
        let wanted = Wanted::new(serde_json::from_value(pod).unwrap());
        let services = [("SVC_HOST".to_owned(), "10.0.0.1".to_owned())].into();
        declared(&wanted, &wanted.spec.containers[0], &Here, &Facts::default(), &services)
            .map(|all| all.into_iter().map(|(n, v)| format!("{n}={v}")).collect())
    }

    #[test]
    fn expansion_follows_the_documented_rules() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (input, output) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("$$$$", "$$"),
        ] {
            assert_eq!(expand(input, lookup), output, "{input}");
        }
    }

    #[test]
    fn sources_are_merged_in_order() {
        let got = env(
            r#"{"name": "a", "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "C_"}, {"secretRef": {"name": "no", "optional": true}}],
            "env": [{"name": "X", "value": "$(C_k)-$(SVC_HOST)"}, {"name": "C_k", "value": "w"},
                    {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "S", "valueFrom": {"secretKeyRef": {"name": "se", "key": "p"}}},
                    {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}}]}"#,
        );
        assert_eq!(got.unwrap(), ["SVC_HOST=10.0.0.1", "C_k=w", "X=v-10.0.0.1", "L=x", "S=s"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, message) in [
            (r#"{"name": "a", "envFrom": [{"secretRef": {"name": "no"}}]}"#, "secret \"no\" not found"),
            (
                r#"{"name": "a", "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "z"}}}]}"#,
                "couldn't find key z in ConfigMap ns/cm",
            ),
        ] {
            assert_eq!(env(text).unwrap_err(), message);
        }
    }
}
