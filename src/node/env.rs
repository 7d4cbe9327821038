//! The environment and the arguments of a container.
//!
//! Source: `pkg/kubelet/kubelet_pods.go` (`makeEnvironmentVariables`) and the expansion rules of
//! `$(NAME)` in the API's documentation of `command`, `args` and `env`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Secret};

use super::{
    downward::{self, Facts},
    record::Wanted,
};

/// Where ConfigMaps and Secrets are looked up.
pub trait Lookup: Sync {
    fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap>;
    fn secret(&self, namespace: &str, name: &str) -> Option<Secret>;
    /// A file of a volume of the pod, or why it cannot be read; `None` when it is not there.
    ///
    /// # Errors
    /// No such volume.
    fn file(&self, volume: &str, _path: &str) -> Result<Option<Result<String, String>>, String> {
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
        // What the file is like is told on the node alone: there may be secrets in it.
        let refused = |why: &str| {
            tracing::warn!(pod = wanted.full_name(), path = key.path, why, "reading an environment file");
            Err("couldn't parse env file".to_owned())
        };
        let text = match lookup.file(&key.volume_name, &key.path)? {
            None if optional => return Ok(None),
            None => return refused("it is not there"),
            Some(Err(why)) => return refused(&why),
            Some(Ok(text)) => text,
        };
        let found = match of_file(&text, &key.key) {
            Err(why) => return refused(&why),
            Ok(found) => found,
        };
        return match found {
            None if !optional => {
                Err(format!("environment variable key {:?} not found in file {:?}", key.key, key.path))
            }
            found => Ok(found),
        };
    }
    Err("env valueFrom: this source is not supported by Sampan".to_owned())
}

/// The value of a variable in a file of `NAME='value'` lines, as upstream reads a part of the shell's
/// language (`pkg/kubelet/util/env`): what is between single quotes is taken as it is, line feeds included;
/// a blank after `=` ends an empty value; `#` begins a comment.
fn of_file(text: &str, key: &str) -> Result<Option<String>, String> {
    const BLANKS: [char; 2] = [' ', '\t'];
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let invalid = |number: i32, what: &str| {
            Err(format!("invalid environment variable format at line {number}: {what}"))
        };
        let Some((name, value)) = line.split_once('=') else { return invalid(number, "missing '='") };
        if name.trim_end_matches(BLANKS).is_empty() {
            return invalid(number, "empty variable name");
        }
        if name.ends_with(BLANKS) {
            return invalid(number, "whitespace before '=' is not allowed");
        }
        if value.starts_with(BLANKS) {
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let Some(mut rest) = value.strip_prefix('\'') else {
            return invalid(number, "value must be enclosed in single quotes");
        };
        let (mut whole, mut last) = (String::new(), number);
        let tail = loop {
            if let Some((end, tail)) = rest.split_once('\'') {
                whole.push_str(end);
                break tail.trim_start_matches(BLANKS);
            }
            whole.push_str(rest);
            whole.push('\n');
            let Some((number_of_next, next)) = lines.next() else {
                return Err(format!(
                    "invalid environment variable format starting at line {number}: unclosed single quote"
                ));
            };
            (last, rest) = (number_of_next, next);
        };
        if !tail.is_empty() && !tail.starts_with('#') {
            return invalid(last, "unexpected content after closing quote");
        }
        if name == key {
            return Ok(Some(whole));
        }
    }
    Ok(None)
}

/// Replaces `$(NAME)` where `lookup` knows it; `$$` is a dollar sign; what is unknown stays.
pub fn expand(input: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
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

/// Replaces `$(NAME)` in a path, where each name must have a value.
///
/// # Errors
/// The names that have none, in upstream's words (`ExpandContainerVolumeMounts`).
pub fn expand_path(input: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut missing = BTreeSet::new();
    let path = expand(input, |name| {
        let value = lookup(name).filter(|value| !value.is_empty());
        if value.is_none() {
            missing.insert(name.to_owned());
        }
        value
    });
    let missing: Vec<String> = missing.into_iter().collect();
    if missing.is_empty() { Ok(path) } else { Err(format!("missing value for {}", missing.join(", "))) }
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
    fn values_are_read_from_files_as_upstream_does() {
        let file = "# made by init\n \tA='one' # the first\r\n\nB='two\n # lines'\nC= 'no'\nE=''\n";
        for (key, value) in
            [("A", Some("one")), ("B", Some("two\n # lines")), ("C", Some("")), ("D", None), ("E", Some(""))]
        {
            assert_eq!(of_file(file, key).unwrap().as_deref(), value, "{key}");
        }
        for (file, error) in [
            ("nonsense", "at line 1: missing '='"),
            ("A='1'\n='x'\nK='2'", "at line 2: empty variable name"),
            ("A ='1'\nK='2'", "at line 1: whitespace before '=' is not allowed"),
            ("K=bar", "at line 1: value must be enclosed in single quotes"),
            ("K=\"bar\"", "at line 1: value must be enclosed in single quotes"),
            ("K='foo''bar'", "at line 1: unexpected content after closing quote"),
            ("A='1\n2'baz\nK='2'", "at line 2: unexpected content after closing quote"),
            ("\nK='bar\n", "starting at line 2: unclosed single quote"),
        ] {
            let error = format!("invalid environment variable format {error}");
            assert_eq!(of_file(file, "K"), Err(error), "{file}");
        }
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
    fn a_path_needs_every_value() {
        let lookup =
            |name: &str| ["A", "E"].contains(&name).then(|| if name == "A" { "1" } else { "" }.to_owned());
        assert_eq!(expand_path("x/$(A)/$$(B)", lookup), Ok("x/1/$(B)".to_owned()));
        assert_eq!(expand_path("$(Z)/$(E)/$(A)/$(Z)", lookup), Err("missing value for E, Z".to_owned()));
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
