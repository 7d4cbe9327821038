//! The paths and operations of a kind.

use serde_json::{Map, Value, json};

use super::{Dialect, prefix, schemas::subresource_type};
use crate::kinds::{Kind, Subresource};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const BODY_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH_TYPES: &[&str] =
    &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', then the output is pretty printed.");
const DRY_RUN: Parameter =
    ("dryRun", "string", "When present, indicates that modifications should not be persisted.");
const MANAGER: Parameter = ("fieldManager", "string", "The name of the actor that is making these changes.");
const VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "How the server handles unknown or duplicate fields: Ignore, Warn or Strict.",
);
const WRITE: &[Parameter] = &[PRETTY, DRY_RUN, MANAGER, VALIDATION];
const PATCH: &[Parameter] = &[
    PRETTY,
    DRY_RUN,
    MANAGER,
    VALIDATION,
    ("force", "boolean", "Take fields over from other managers. Only for apply patches."),
];
const READ: &[Parameter] = &[PRETTY];
const SHARD: Parameter = (
    "shardSelector",
    "string",
    "Restricts the returned objects to a shard. Alpha upstream, and not served here.",
);
const CONTINUE: Parameter = ("continue", "string", "Continues an earlier list.");
const FIELDS: Parameter = ("fieldSelector", "string", "Restricts the returned objects by their fields.");
const LABELS: Parameter = ("labelSelector", "string", "Restricts the returned objects by their labels.");
const LIMIT: Parameter = ("limit", "integer", "The most objects to return.");
const REVISION: Parameter =
    ("resourceVersion", "string", "A constraint on the versions that may be returned.");
const REVISION_MATCH: Parameter =
    ("resourceVersionMatch", "string", "How resourceVersion is applied to lists.");
const INITIAL_EVENTS: Parameter = ("sendInitialEvents", "boolean", "Begins a watch with what exists.");
const TIMEOUT: Parameter = ("timeoutSeconds", "integer", "Limits the duration of the call.");
const LIST: &[Parameter] = &[
    PRETTY,
    SHARD,
    ("allowWatchBookmarks", "boolean", "Requests watch events of type BOOKMARK."),
    CONTINUE,
    FIELDS,
    LABELS,
    LIMIT,
    REVISION,
    REVISION_MATCH,
    INITIAL_EVENTS,
    TIMEOUT,
    ("watch", "boolean", "Watch for changes instead of returning a list."),
];
const GRACE: Parameter =
    ("gracePeriodSeconds", "integer", "The time in seconds before the object should be deleted.");
const ORPHAN: Parameter = ("orphanDependents", "boolean", "Deprecated: use propagationPolicy.");
const PROPAGATION: Parameter =
    ("propagationPolicy", "string", "Whether and how garbage collection will be performed.");
const UNREADABLE: Parameter = (
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "boolean",
    "Delete also what cannot be read from the store. It can always be read here.",
);
const DELETE: &[Parameter] = &[PRETTY, DRY_RUN, GRACE, UNREADABLE, ORPHAN, PROPAGATION];
const DELETE_COLLECTION: &[Parameter] = &[
    PRETTY,
    SHARD,
    CONTINUE,
    DRY_RUN,
    FIELDS,
    GRACE,
    UNREADABLE,
    LABELS,
    LIMIT,
    ORPHAN,
    PROPAGATION,
    REVISION,
    REVISION_MATCH,
    INITIAL_EVENTS,
    TIMEOUT,
];
const LOG: &[Parameter] = &[
    ("container", "string", "The container for which to stream logs."),
    ("follow", "boolean", "Follow the log stream of the pod."),
    ("insecureSkipTLSVerifyBackend", "boolean", "Nodes are known by their own certificates here; ignored."),
    ("limitBytes", "integer", "The number of bytes to read before the log ends."),
    PRETTY,
    ("previous", "boolean", "Return the logs of the previous terminated container."),
    ("sinceSeconds", "integer", "A relative time in seconds before now from which to show logs."),
    ("stream", "string", "Which container log stream to return: All, Stdout or Stderr."),
    ("tailLines", "integer", "The number of lines from the end of the logs to show."),
    ("timestamps", "boolean", "Add an RFC 3339 timestamp at the beginning of every line."),
];
const ATTACH: &[Parameter] = &[
    ("container", "string", "The container in which to execute the command or to attach to."),
    ("stderr", "boolean", "Redirect the standard error stream."),
    ("stdin", "boolean", "Redirect the standard input stream."),
    ("stdout", "boolean", "Redirect the standard output stream."),
    ("tty", "boolean", "Allocate a terminal."),
];
const EXEC: &[Parameter] = &[
    ("command", "string", "The command line to execute, not in a shell."),
    ATTACH[0],
    ATTACH[1],
    ATTACH[2],
    ATTACH[3],
    ATTACH[4],
];
const PORT_FORWARD: &[Parameter] = &[("ports", "integer", "List of ports to forward.")];
const PROXY: &[Parameter] = &[("path", "string", "The part of URLs to use for the current proxy request.")];
/// The methods of `proxy`, with the first word of their operations.
const PROXY_METHODS: &[(&str, &str)] = &[
    ("get", "connectGet"),
    ("put", "connectPut"),
    ("post", "connectPost"),
    ("delete", "connectDelete"),
    ("options", "connectOptions"),
    ("head", "connectHead"),
    ("patch", "connectPatch"),
];

/// Writes operations in one dialect.
pub struct Operations {
    dialect: Dialect,
}

/// One operation before it is written.
struct Operation<'a> {
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    id: String,
    parameters: &'a [Parameter],
    /// The type of the request's body.
    body: Option<String>,
    /// The type of the answer; none is a plain string.
    answer: Option<String>,
    /// Group, version and kind.
    kind: (&'a str, &'a str, &'a str),
}

impl Operations {
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect }
    }

    /// All paths of a kind with their items.
    pub fn of(&self, row: &Kind) -> Vec<(String, Value)> {
        let root = format!("/{}", prefix(row.group, row.version));
        let collection = if row.namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", row.plural)
        } else {
            format!("{root}/{}", row.plural)
        };
        let has = |verb: &str| row.verbs.contains(&verb);
        let kind = (row.group, row.version, row.kind);
        let (own, list) = (row.schema.to_owned(), format!("{}List", row.schema));
        let status = format!("{META}Status");
        let deleted = if row.returns_deleted() { own.clone() } else { status.clone() };
        let id = |verb: &str, suffix: &str| operation_id(verb, row, suffix);
        let operation = |method, action, id, parameters, body: Option<&String>, answer: &String| Operation {
            method,
            action,
            id,
            parameters,
            body: body.cloned(),
            answer: Some(answer.clone()),
            kind,
        };
        let options = format!("{META}DeleteOptions");
        let mut on_collection = Vec::new();
        if has("list") {
            on_collection.push(operation("get", "list", id("list", ""), LIST, None, &list));
        }
        if has("create") {
            on_collection.push(operation("post", "post", id("create", ""), WRITE, Some(&own), &own));
        }
        if has("deletecollection") {
            let id = operation_id("deleteCollection", row, "");
            on_collection.push(operation(
                "delete",
                "deletecollection",
                id,
                DELETE_COLLECTION,
                Some(&options),
                &status,
            ));
        }
        let mut on_item = Vec::new();
        if has("get") {
            on_item.push(operation("get", "get", id("read", ""), READ, None, &own));
        }
        if has("update") {
            on_item.push(operation("put", "put", id("replace", ""), WRITE, Some(&own), &own));
        }
        if has("patch") {
            on_item.push(operation(
                "patch",
                "patch",
                id("patch", ""),
                PATCH,
                Some(&format!("{META}Patch")),
                &own,
            ));
        }
        if has("delete") {
            on_item.push(operation("delete", "delete", id("delete", ""), DELETE, Some(&options), &deleted));
        }
        let scope: &[&str] = if row.namespaced { &["namespace"] } else { &[] };
        let named: &[&str] = if row.namespaced { &["name", "namespace"] } else { &["name"] };
        let mut paths = vec![(collection.clone(), self.item(&on_collection, scope))];
        let item = format!("{collection}/{{name}}");
        if !on_item.is_empty() {
            paths.push((item.clone(), self.item(&on_item, named)));
        }
        if row.namespaced && has("list") {
            let id = format!("{}ForAllNamespaces", operation_id_of("list", row, "", row.kind));
            let all = [operation("get", "list", id, LIST, None, &list)];
            paths.push((format!("{root}/{}", row.plural), self.item(&all, &[])));
        }
        if has("watch") {
            paths.extend(self.watches(row));
        }
        for subresource in row.subresources {
            let operations = subresource_operations(row, *subresource);
            let path = format!("{item}/{}", subresource.name());
            paths.push((path.clone(), self.item(&operations, named)));
            if subresource.name() == "proxy" {
                let below: Vec<_> = operations
                    .into_iter()
                    .map(|operation| Operation { id: format!("{}WithPath", operation.id), ..operation })
                    .collect();
                let named = [named, &["path"]].concat();
                paths.push((format!("{path}/{{path}}"), self.item(&below, &named)));
            }
        }
        paths.retain(|(_, item)| item.as_object().is_some_and(|item| !item.is_empty()));
        paths
    }

    /// The paths below `/watch`: deprecated for `?watch=true`, and served still.
    fn watches(&self, row: &Kind) -> Vec<(String, Value)> {
        let root = format!("/{}/watch", prefix(row.group, row.version));
        let kind = (row.group, row.version, row.kind);
        let one = |action, id, path: String, named: &[&str]| {
            let operation = Operation {
                method: "get",
                action,
                id,
                parameters: LIST,
                body: None,
                answer: Some(format!("{META}WatchEvent")),
                kind,
            };
            (path, self.item(&[operation], named))
        };
        let id = |suffix| operation_id("watch", row, suffix);
        if !row.namespaced {
            let list = format!("{root}/{}", row.plural);
            return vec![
                one("watchlist", id("List"), list.clone(), &[]),
                one("watch", id(""), format!("{list}/{{name}}"), &["name"]),
            ];
        }
        let list = format!("{root}/namespaces/{{namespace}}/{}", row.plural);
        let everywhere = operation_id_of("watch", row, "ListForAllNamespaces", row.kind);
        vec![
            one("watchlist", everywhere, format!("{root}/{}", row.plural), &[]),
            one("watchlist", id("List"), list.clone(), &["namespace"]),
            one("watch", id(""), format!("{list}/{{name}}"), &["name", "namespace"]),
        ]
    }

    fn item(&self, operations: &[Operation<'_>], path_parameters: &[&str]) -> Value {
        let mut item = Map::new();
        for operation in operations {
            item.insert(operation.method.to_owned(), self.operation(operation));
        }
        if !item.is_empty() && !path_parameters.is_empty() {
            let parameters: Vec<_> =
                path_parameters.iter().map(|name| self.parameter(name, "string", "", "path")).collect();
            item.insert("parameters".to_owned(), Value::Array(parameters));
        }
        Value::Object(item)
    }

    fn operation(&self, operation: &Operation<'_>) -> Value {
        let (group, version, kind) = operation.kind;
        let mut parameters: Vec<Value> = operation
            .parameters
            .iter()
            .map(|(name, ty, text)| self.parameter(name, ty, text, "query"))
            .collect();
        let answer = match &operation.answer {
            Some(name) => json!({"$ref": self.dialect.reference(name)}),
            None => json!({"type": "string"}),
        };
        let mut produces = BODY_TYPES.to_vec();
        if matches!(operation.action, "list" | "watch" | "watchlist") {
            produces.extend(WATCH_TYPES);
        }
        let codes: &[(&str, &str)] = match operation.action {
            "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "put" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let mut responses = Map::new();
        for (code, text) in codes {
            let response = match self.dialect {
                Dialect::V2 => json!({"description": text, "schema": answer}),
                Dialect::V3 => {
                    let content: Map<String, Value> =
                        produces.iter().map(|ty| ((*ty).to_owned(), json!({"schema": answer}))).collect();
                    json!({"description": text, "content": content})
                }
            };
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let consumes: &[&str] = if operation.action == "patch" { PATCH_TYPES } else { BODY_TYPES };
        let mut out = json!({
            "operationId": operation.id,
            "tags": [tag(group, version)],
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let body = operation.body.as_ref().map(|name| json!({"$ref": self.dialect.reference(name)}));
        let required = operation.method != "delete";
        match (self.dialect, body) {
            (Dialect::V2, body) => {
                if let Some(body) = body {
                    parameters
                        .push(json!({"name": "body", "in": "body", "required": required, "schema": body}));
                    out["consumes"] = json!(consumes);
                }
                out["produces"] = json!(produces);
                out["schemes"] = json!(["https"]);
            }
            (Dialect::V3, Some(body)) => {
                let types: &[&str] = if operation.action == "patch" { PATCH_TYPES } else { &["*/*"] };
                let content: Map<String, Value> =
                    types.iter().map(|ty| ((*ty).to_owned(), json!({"schema": body}))).collect();
                out["requestBody"] = json!({"required": required, "content": content});
            }
            (Dialect::V3, None) => {}
        }
        out["parameters"] = Value::Array(parameters);
        out["responses"] = Value::Object(responses);
        out
    }

    fn parameter(&self, name: &str, ty: &str, text: &str, place: &str) -> Value {
        let text = match (name, place) {
            ("name", "path") => "name of the object",
            ("path", "path") => "path to the resource",
            ("namespace", "path") => "object name and auth scope, such as for teams and projects",
            _ => text,
        };
        let mut parameter = json!({"name": name, "in": place, "description": text});
        if place == "path" {
            parameter["required"] = json!(true);
        }
        match self.dialect {
            Dialect::V2 => {
                parameter["type"] = json!(ty);
                parameter["uniqueItems"] = json!(true);
            }
            Dialect::V3 => parameter["schema"] = json!({"type": ty, "uniqueItems": true}),
        }
        parameter
    }
}

/// The documents that belong to no group.
pub const ROOTS: [&str; 5] = ["api", "apis", "version", ".well-known/openid-configuration", "openid/v1/jwks"];

/// The paths that tell which groups, versions and resources there are, and what else is a document.
pub fn documents(operations: &Operations, rows: &[&Kind]) -> Vec<(String, Value)> {
    let read = |path: String, id: String, tags: &str, answer: Option<&str>| {
        let mut item = operations.item(
            &[Operation {
                method: "get",
                action: "get",
                id,
                parameters: &[],
                body: None,
                answer: answer.map(str::to_owned),
                kind: ("", "", ""),
            }],
            &[],
        );
        if let Some(get) = item["get"].as_object_mut() {
            get.remove("x-kubernetes-action");
            get.remove("x-kubernetes-group-version-kind");
            get.insert("tags".to_owned(), json!([tags]));
        }
        (path, item)
    };
    let meta = |name: &str| format!("{META}{name}");
    let mut paths = vec![
        read("/api/".into(), "getCoreAPIVersions".into(), "core", Some(&meta("APIVersions"))),
        read("/apis/".into(), "getAPIVersions".into(), "apis", Some(&meta("APIGroupList"))),
        read("/version/".into(), "getCodeVersion".into(), "version", Some(VERSION_INFO)),
        read(
            "/.well-known/openid-configuration".into(),
            "getServiceAccountIssuerOpenIDConfiguration".into(),
            "WellKnown",
            None,
        ),
        read("/openid/v1/jwks".into(), "getServiceAccountIssuerOpenIDKeyset".into(), "openid", None),
    ];
    for row in rows {
        let title_of = group_title(row.group);
        let root = format!("/{}/", prefix(row.group, row.version));
        if paths.iter().all(|(path, _)| *path != root) {
            let id = format!("get{title_of}{}APIResources", title(row.version));
            let list = meta("APIResourceList");
            paths.push(read(root, id, &tag(row.group, row.version), Some(&list)));
        }
        let root = format!("/apis/{}/", row.group);
        if !row.group.is_empty() && paths.iter().all(|(path, _)| *path != root) {
            let mut tags = title_of.clone();
            tags[..1].make_ascii_lowercase();
            paths.push(read(root, format!("get{title_of}APIGroup"), &tags, Some(&meta("APIGroup"))));
        }
    }
    paths
}

/// The types that [`documents`] answer.
pub const DOCUMENT_TYPES: &[&str] = &[
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
    VERSION_INFO,
];
const VERSION_INFO: &str = "io.k8s.apimachinery.pkg.version.Info";

fn subresource_operations(row: &Kind, subresource: Subresource) -> Vec<Operation<'_>> {
    let suffix = title(subresource.name());
    let ty = subresource_type(subresource).unwrap_or(row.schema);
    let kind = match subresource {
        Subresource::Scale => ("autoscaling", "v1", "Scale"),
        Subresource::Other("eviction") => ("policy", "v1", "Eviction"),
        Subresource::Other("token") => ("authentication.k8s.io", "v1", "TokenRequest"),
        Subresource::Other("binding") => ("", "v1", "Binding"),
        _ => (row.group, row.version, row.kind),
    };
    let operation =
        |method, action, verb: &str, parameters, body: Option<&str>, answer: Option<&str>| Operation {
            method,
            action,
            id: operation_id(verb, row, &suffix),
            parameters,
            body: body.map(str::to_owned),
            answer: answer.map(str::to_owned),
            kind,
        };
    let patch = format!("{META}Patch");
    match subresource {
        Subresource::Other("binding" | "eviction" | "token") => {
            vec![operation("post", "post", "create", WRITE, Some(ty), Some(ty))]
        }
        Subresource::Other("finalize") => vec![operation("put", "put", "replace", WRITE, Some(ty), Some(ty))],
        Subresource::Other("log") => vec![operation("get", "get", "read", LOG, None, None)],
        Subresource::Other(name @ ("exec" | "attach" | "portforward")) => {
            let parameters = match name {
                "exec" => EXEC,
                "attach" => ATTACH,
                _ => PORT_FORWARD,
            };
            vec![
                operation("get", "connect", "connectGet", parameters, None, None),
                operation("post", "connect", "connectPost", parameters, None, None),
            ]
        }
        Subresource::Other("proxy") => PROXY_METHODS
            .iter()
            .map(|(method, verb)| operation(method, "connect", verb, PROXY, None, None))
            .collect(),
        _ => vec![
            operation("get", "get", "read", READ, None, Some(ty)),
            operation("put", "put", "replace", WRITE, Some(ty), Some(ty)),
            operation("patch", "patch", "patch", PATCH, Some(&patch), Some(ty)),
        ],
    }
}

/// `createAppsV1NamespacedDeployment`, `readCoreV1NamespacedPodStatus`.
fn operation_id(verb: &str, row: &Kind, suffix: &str) -> String {
    let scope = if row.namespaced { "Namespaced" } else { "" };
    operation_id_of(verb, row, suffix, &format!("{scope}{}", row.kind))
}

fn operation_id_of(verb: &str, row: &Kind, suffix: &str, noun: &str) -> String {
    format!("{verb}{}{}{noun}{suffix}", group_title(row.group), title(row.version))
}

/// `apps` → `Apps`, `rbac.authorization.k8s.io` → `RbacAuthorization`, the empty group → `Core`.
fn group_title(group: &str) -> String {
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    if group.is_empty() { "Core".to_owned() } else { group.split('.').map(title).collect() }
}

fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn tag(group: &str, version: &str) -> String {
    let group = group_title(group);
    let mut letters = group.chars();
    let first = letters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(letters).chain(['_']).chain(version.chars()).collect()
}
