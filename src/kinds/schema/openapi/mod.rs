//! OpenAPI documents of the rows of the table of kinds, written from the schema while they are served.
//!
//! In: rows. Out: `/openapi/v3` (index), `/openapi/v3/…` (one group version) and `/openapi/v2` as JSON or
//! as the protobuf form that clients up to 1.31 ask for. Descriptions are unpacked for the time of one
//! document; a document is written definition by definition.
//! Deliberately absent: caching (`hash` lets clients and the server do without the document).

mod gnostic;
mod paths;
mod schemas;

use std::io::{self, Write};

use serde_json::{Value, json};

use self::{paths::Operations, schemas::Schemas};
use super::table::FINGERPRINT;
use crate::{ids::hex, kinds::Kind};

/// The media type of the protobuf form of `/openapi/v2` (kube-openapi's `handler.go`).
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// How older clients ask for it; as the type of an answer it is none, a client cannot parse the `@`.
pub const V2_PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Which of the two dialects is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// Where types are found.
    fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

/// The ETag and `hash` of a document over these rows: upper-case hexadecimal SHA-512.
pub fn hash<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> String {
    let mut text = format!("{FINGERPRINT} {}", env!("CARGO_PKG_VERSION"));
    for kind in kinds {
        text += &[kind.schema, kind.plural, &kind.verbs.concat()].join(" ");
        for subresource in kind.subresources {
            text += subresource.name();
        }
    }
    hex(ring::digest::digest(&ring::digest::SHA512, text.as_bytes()).as_ref()).to_uppercase()
}

/// `api/v1` or `apis/apps/v1`.
fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the documents of the group versions are.
pub fn v3_index<'a>(kinds: impl IntoIterator<Item = &'a Kind> + Clone) -> Value {
    let rows: Vec<_> = kinds.clone().into_iter().collect();
    let documents = paths::documents(&Operations::new(Dialect::V3), &rows);
    let paths: serde_json::Map<_, _> = documents
        .iter()
        .map(|(path, _)| {
            let name = path.trim_matches('/');
            let url = format!("/openapi/v3/{name}?hash={}", v3_hash(kinds.clone(), name));
            (name.to_owned(), json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The group and version that a document of version 3 is about, if it is about one.
fn group_version(name: &str) -> Option<(&str, &str)> {
    match *name.split('/').collect::<Vec<_>>() {
        ["api", version] => Some(("", version)),
        ["apis", group, version] => Some((group, version)),
        _ => None,
    }
}

/// The `hash` of the document of that name.
pub fn v3_hash<'a>(kinds: impl IntoIterator<Item = &'a Kind>, name: &str) -> String {
    match group_version(name) {
        Some((group, version)) => hash(rows_of(kinds, group, version)),
        None => hash([]),
    }
}

/// Whether there is a document of that name: `api/v1`, `apis/apps`, `version`, …
pub fn has_v3<'a>(kinds: impl IntoIterator<Item = &'a Kind>, name: &str) -> bool {
    let mut kinds = kinds.into_iter();
    match (group_version(name), name.strip_prefix("apis/")) {
        (Some((group, version)), _) => rows_of(kinds, group, version).next().is_some(),
        (None, Some(group)) => !group.is_empty() && kinds.any(|kind| kind.group == group),
        (None, None) => paths::ROOTS.contains(&name),
    }
}

fn rows_of<'a>(
    kinds: impl IntoIterator<Item = &'a Kind>,
    group: &str,
    version: &str,
) -> impl Iterator<Item = &'a Kind> {
    kinds.into_iter().filter(move |kind| kind.group == group && kind.version == version)
}

/// Writes `/openapi/v3/<name>`: what is about one group version, or about one document that names others;
/// whether there is one.
pub fn v3<'a>(
    kinds: impl IntoIterator<Item = &'a Kind> + Clone,
    name: &str,
    out: &mut dyn Write,
) -> io::Result<bool> {
    if !has_v3(kinds.clone(), name) {
        return Ok(false);
    }
    let all: Vec<_> = kinds.clone().into_iter().collect();
    let rows: Vec<_> = group_version(name)
        .map(|(group, version)| rows_of(kinds.clone(), group, version).collect())
        .unwrap_or_default();
    let schemas = Schemas::load(Dialect::V3, kinds)?;
    let operations = Operations::new(Dialect::V3);
    write!(out, r#"{{"openapi":"3.0.0","info":{INFO},"components":{{"schemas":"#)?;
    write_definitions(&schemas, &schemas::used_by(&rows), out)?;
    write!(
        out,
        r#","securitySchemes":{{"BearerToken":{{"type":"apiKey","description":"Bearer Token authentication","name":"authorization","in":"header"}}}}}},"paths":"#
    )?;
    let documents = paths::documents(&operations, &all).into_iter();
    let own = documents.filter(|(path, _)| path.trim_matches('/') == name);
    write_object(&mut own.chain(rows.iter().flat_map(|row| operations.of(row))), out)?;
    write!(out, "}}")?;
    Ok(true)
}

/// Writes `/openapi/v2` as JSON.
pub fn v2_json<'a>(kinds: impl IntoIterator<Item = &'a Kind> + Clone, out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<_> = kinds.clone().into_iter().collect();
    let schemas = Schemas::load(Dialect::V2, kinds)?;
    let operations = Operations::new(Dialect::V2);
    write!(out, r#"{{"swagger":"2.0","info":{INFO},"definitions":"#)?;
    write_definitions(&schemas, &schemas::used_by(&rows), out)?;
    write!(
        out,
        r#","securityDefinitions":{{"BearerToken":{{"description":"Bearer Token authentication","type":"apiKey","name":"authorization","in":"header"}}}},"security":[{{"BearerToken":[]}}],"paths":"#
    )?;
    let documents = paths::documents(&operations, &rows).into_iter();
    write_object(&mut documents.chain(rows.iter().flat_map(|row| operations.of(row))), out)?;
    write!(out, "}}")
}

/// `/openapi/v2` as a gnostic `openapi.v2.Document`.
pub fn v2_protobuf<'a>(kinds: impl IntoIterator<Item = &'a Kind> + Clone) -> io::Result<Vec<u8>> {
    let rows: Vec<_> = kinds.clone().into_iter().collect();
    let schemas = Schemas::load(Dialect::V2, kinds)?;
    let operations = Operations::new(Dialect::V2);
    let mut document = gnostic::Document::new(TITLE, VERSION);
    for index in schemas::used_by(&rows) {
        let (name, schema) = schemas.definition(index);
        document.definition(name, &schema);
    }
    let documents = paths::documents(&operations, &rows);
    for (path, item) in documents.into_iter().chain(rows.iter().flat_map(|row| operations.of(row))) {
        document.path(&path, &item);
    }
    Ok(document.finish())
}

/// What the documents say of fields of a type, by their paths (`spec.replicas`); empty where nothing is said.
pub fn descriptions<'a>(schema: &str, paths: impl IntoIterator<Item = &'a str>) -> io::Result<Vec<String>> {
    let schemas = Schemas::load(Dialect::V2, [])?;
    Ok(paths
        .into_iter()
        .map(|path| schemas.description(schema, path).unwrap_or_default().to_owned())
        .collect())
}

const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.36.0";
const INFO: &str = r#"{"title":"Kubernetes","version":"v1.36.0"}"#;

fn write_definitions(schemas: &Schemas, indices: &[usize], out: &mut dyn Write) -> io::Result<()> {
    let mut entries = indices.iter().map(|&index| schemas.definition(index));
    write_object(&mut entries, out)
}

/// Writes entries as one JSON object, one at a time.
fn write_object<K: AsRef<str>>(
    entries: &mut dyn Iterator<Item = (K, Value)>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut separator = '{';
    for (name, value) in entries {
        write!(out, "{separator}")?;
        serde_json::to_writer(&mut *out, name.as_ref())?;
        write!(out, ":")?;
        serde_json::to_writer(&mut *out, &value)?;
        separator = ',';
    }
    write!(out, "{}}}", if separator == '{' { "{" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{metrics, registry::KINDS};

    static MEASURED: [Kind; 2] = [metrics::NODE_METRICS, metrics::POD_METRICS];

    fn group(group: &str, version: &str) -> Value {
        let mut out = Vec::new();
        assert!(v3(KINDS.iter().chain(&MEASURED), &prefix(group, version), &mut out).unwrap());
        serde_json::from_slice(&out).unwrap()
    }

    fn v2() -> Value {
        let mut out = Vec::new();
        v2_json(KINDS, &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    /// Every `$ref` below `value`.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_index_names_every_group_with_a_stable_hash() {
        let index = v3_index(KINDS);
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
        let hash = url.strip_prefix("/openapi/v3/apis/apps/v1?hash=").unwrap();
        assert_eq!(hash.len(), 128);
        assert_eq!(index, v3_index(KINDS));
        assert_ne!(index["paths"]["api/v1"]["serverRelativeURL"], url);
        assert!(!v3(KINDS, "apis/apps/v1beta1", &mut Vec::new()).unwrap());
        for (name, entry) in index["paths"].as_object().unwrap() {
            let mut out = Vec::new();
            assert!(v3(KINDS, name, &mut out).unwrap(), "{name}");
            let document: Value = serde_json::from_slice(&out).unwrap();
            let paths = document["paths"].as_object().unwrap();
            assert!(paths.keys().any(|path| path.trim_matches('/') == name), "{name}");
            let url = entry["serverRelativeURL"].as_str().unwrap();
            assert_eq!(url, format!("/openapi/v3/{name}?hash={}", v3_hash(KINDS, name)));
        }
        for name in
            [".well-known/openid-configuration", "api", "apis", "apis/apps", "openid/v1/jwks", "version"]
        {
            assert!(index["paths"].get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn defaults_are_said_where_upstream_says_them() {
        let core = group("", "v1");
        let of = |ty: &str, field: &str| {
            core["components"]["schemas"][format!("io.k8s.api.core.v1.{ty}")]["properties"][field].clone()
        };
        assert_eq!(of("ContainerPort", "protocol")["default"], "TCP");
        assert_eq!(of("ContainerPort", "containerPort")["default"], 0);
        assert_eq!(of("ContainerPort", "hostPort")["default"], Value::Null);
        assert_eq!(of("Container", "name")["default"], "");
        assert_eq!(of("Container", "resources")["default"], json!({}));
        assert_eq!(of("Container", "livenessProbe")["default"], Value::Null);
        assert_eq!(of("Container", "args")["items"], json!({"type": "string", "default": ""}));
        assert_eq!(of("PodSpec", "containers")["items"]["default"], json!({}));
        assert_eq!(of("ConfigMap", "data")["additionalProperties"], json!({"type": "string", "default": ""}));
        assert_eq!(of("LocalObjectReference", "name")["default"], "");
        assert_eq!(of("RBDVolumeSource", "pool")["default"], "rbd");
        let older = &v2()["definitions"]["io.k8s.api.core.v1.ContainerPort"]["properties"];
        assert_eq!(
            (&older["protocol"]["type"], &older["protocol"]["default"]),
            (&json!("string"), &Value::Null)
        );
    }

    #[test]
    fn the_older_way_to_watch_is_listed() {
        let core = group("", "v1");
        let get = |path: &str| &core["paths"][path]["get"];
        let all = get("/api/v1/watch/pods");
        assert_eq!(all["operationId"], "watchCoreV1PodListForAllNamespaces");
        assert_eq!(all["x-kubernetes-action"], "watchlist");
        let one = get("/api/v1/watch/namespaces/{namespace}/pods/{name}");
        assert_eq!(
            (&one["operationId"], &one["x-kubernetes-action"]),
            (&json!("watchCoreV1NamespacedPod"), &json!("watch"))
        );
        assert_eq!(get("/api/v1/watch/nodes")["operationId"], "watchCoreV1NodeList");
    }

    #[test]
    fn a_groups_document_is_what_explain_and_apply_read() {
        let apps = group("apps", "v1");
        let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        let path = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        assert_eq!(path["get"]["x-kubernetes-group-version-kind"], gvk);
        let parameters = path["patch"]["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"));
        let schemas = &apps["components"]["schemas"];
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([gvk]));
        assert_eq!(
            deployment["properties"]["spec"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
        );
        assert!(deployment["description"].as_str().unwrap().starts_with("Deployment enables declarative"));
        let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
        let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
    }

    #[test]
    fn every_reference_of_every_document_resolves() {
        for kind in KINDS.iter().chain(&MEASURED) {
            let document = group(kind.group, kind.version);
            // What `kubectl explain` looks for.
            let own = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
            let mut schemas = document["components"]["schemas"].as_object().unwrap().values();
            let is_own = |schema: &&Value| {
                schema["x-kubernetes-group-version-kind"].as_array().is_some_and(|all| all.contains(&own))
            };
            let schema = schemas.find(is_own).unwrap_or_else(|| panic!("no type of {own}"));
            let fields = schema["properties"].as_object().unwrap();
            assert!(schema["description"].is_string(), "{own}");
            assert!(fields["kind"]["description"].is_string(), "{own}");
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{reference}");
            }
            let path = format!("/{}/{}", prefix(kind.group, kind.version), kind.plural);
            let namespaced =
                format!("/{}/namespaces/{{namespace}}/{}", prefix(kind.group, kind.version), kind.plural);
            assert!(document["paths"].get(&path).or(document["paths"].get(&namespaced)).is_some(), "{path}");
        }
        let document = v2();
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in found {
            let name = reference.strip_prefix("#/definitions/").unwrap();
            assert!(document["definitions"].get(name).is_some(), "{reference}");
        }
    }

    #[test]
    fn the_whole_document_is_what_clients_are_generated_from() {
        let document = v2();
        let at = |path: &str, method: &str| document["paths"][path][method].clone();
        let id = |path: &str, method: &str| at(path, method)["operationId"].clone();
        assert_eq!(id("/apis/apps/v1/", "get"), "getAppsV1APIResources");
        assert_eq!(id("/apis/rbac.authorization.k8s.io/", "get"), "getRbacAuthorizationAPIGroup");
        assert_eq!(id("/version/", "get"), "getCodeVersion");
        let pod = "/api/v1/namespaces/{namespace}/pods/{name}";
        assert_eq!(
            id(&format!("{pod}/proxy/{{path}}"), "delete"),
            "connectDeleteCoreV1NamespacedPodProxyWithPath"
        );
        let names = |operation: &Value| -> Vec<String> {
            let all = operation["parameters"].as_array().unwrap();
            all.iter()
                .filter(|p| p["in"] == "query")
                .map(|p| p["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&at(&format!("{pod}/exec"), "get"))[0], "command");
        assert!(names(&at(&format!("{pod}/log"), "get")).contains(&"tailLines".to_owned()));
        let many = names(&at("/api/v1/namespaces/{namespace}/pods", "delete"));
        assert!(many.contains(&"propagationPolicy".to_owned()) && !many.contains(&"watch".to_owned()));
        let definitions = &document["definitions"];
        assert_eq!(definitions["io.k8s.api.core.v1.Pod"]["required"], Value::Null);
        assert_eq!(definitions["io.k8s.api.core.v1.Binding"]["required"], json!(["target"]));
        assert_eq!(definitions["io.k8s.api.core.v1.LocalObjectReference"]["required"], Value::Null);
        assert_eq!(definitions["io.k8s.api.events.v1.Event"]["required"], json!(["eventTime"]));
    }

    #[test]
    fn descriptions_belong_to_their_fields() {
        let document = v2();
        let spec = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        let text = |name: &str| spec[name]["description"].as_str().unwrap().to_lowercase();
        assert!(text("nodeName").starts_with("nodename"));
        assert!(text("hostNetwork").starts_with("host networking"));
        // A text that stands in several versions is kept once.
        let definitions = document["definitions"].as_object().unwrap();
        assert!(definitions.values().all(|d| !d.to_string().contains("\\u0001")));
    }

    #[test]
    fn the_columns_of_tables_are_described_by_their_fields() {
        let said =
            descriptions("io.k8s.api.core.v1.Pod", ["status.podIP", "metadata.name", "spec.none"]).unwrap();
        assert!(said[0].starts_with("podIP address allocated to the pod."), "{}", said[0]);
        assert!(said[1].starts_with("Name must be unique within a namespace."), "{}", said[1]);
        assert_eq!(said[2], "");
        let schemas = Schemas::load(Dialect::V2, []).unwrap();
        for kind in KINDS {
            let stored = crate::kinds::registry::stored(kind).schema;
            for path in kind.columns.iter().map(|c| c.description).filter(|text| !text.contains(' ')) {
                let said = schemas.description(stored, path);
                assert!(said.is_some_and(|text| !text.is_empty()), "{stored} {path}");
            }
        }
    }

    #[test]
    fn the_protobuf_form_holds_the_same_definitions() {
        let bytes = v2_protobuf(KINDS).unwrap();
        let definitions = gnostic::definition_names(&bytes);
        let mut expected: Vec<_> = v2()["definitions"].as_object().unwrap().keys().cloned().collect();
        expected.sort();
        assert_eq!(definitions, expected);
    }
}
