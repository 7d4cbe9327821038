//! What a request asks for, read from its method, path and query.
//!
//! The reading is that of `k8s.io/apiserver/pkg/endpoints/request.RequestInfoFactory`; audit,
//! authorisation and routing all use this one.

use hyper::Method;

/// A request as authorisation and routing see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, … for resources; the method in lower case for other paths.
    pub verb: &'static str,
    pub path: String,
    /// Whether the path names a collection: a list of a single name by field selector still does,
    /// though authorisation judges it by the name.
    pub collection: bool,
    /// The node whose pods are asked for (`fieldSelector=spec.nodeName=…`); empty for none.
    pub of_node: String,
    pub resource: Option<ResourcePath>,
}

/// The parts of a resource's path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    /// Empty for cluster-scoped objects and for all namespaces.
    pub namespace: String,
    pub plural: String,
    /// Empty for collections.
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
    /// What stands behind the subresource (`proxy/a/b`).
    pub rest: String,
}

impl ResourcePath {
    /// `deployments.apps`.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// The query of a request, decoded, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        Self(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value of a parameter that is not empty.
    pub fn filled(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether a boolean parameter is set: upstream reads everything but `0` and `false` as true,
    /// also the bare name.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value, "0" | "false" | "False" | "FALSE"))
    }
}

/// Undoes percent-encoding; what is not UTF-8 afterwards is replaced.
pub fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match bytes[at] {
            b'%' => match (hex(at + 1), hex(at + 2)) {
                (Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

impl RequestInfo {
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let raw: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let plain = || Self {
            verb: lower(method),
            path: path.to_owned(),
            collection: false,
            of_node: String::new(),
            resource: None,
        };
        let mut parts = raw.iter().map(|part| decode(part, false));
        let (group, version) = match raw.first() {
            Some(&"api") if raw.len() >= 3 => {
                let version = parts.nth(1).unwrap_or_default();
                (String::new(), version)
            }
            Some(&"apis") if raw.len() >= 4 => {
                let group = parts.nth(1).unwrap_or_default();
                (group, parts.next().unwrap_or_default())
            }
            _ => return plain(),
        };
        let mut rest: Vec<String> = parts.collect();
        let mut verb = resource_verb(method);
        if rest[0] == "watch" && rest.len() > 1 {
            verb = "watch";
            rest.remove(0);
        }
        let mut found = ResourcePath { group, version, ..ResourcePath::default() };
        if rest[0] == "namespaces" && rest.len() > 1 {
            found.namespace.clone_from(&rest[1]);
            if rest.get(2).is_some_and(|part| !matches!(part.as_str(), "status" | "finalize")) {
                rest.drain(..2);
            }
        }
        let mut rest = rest.into_iter();
        found.plural = rest.next().unwrap_or_default();
        found.name = rest.next().unwrap_or_default();
        found.subresource = rest.next().unwrap_or_default();
        found.rest = rest.collect::<Vec<_>>().join("/");
        let collection = found.name.is_empty();
        if collection {
            verb = match verb {
                "get" => "list",
                "delete" => "deletecollection",
                other => other,
            };
        }
        let mut of_node = String::new();
        if verb == "list" || (verb == "get" && found.subresource.is_empty()) {
            if query.flag("watch") {
                verb = "watch";
            }
            if collection && let Some(selector) = query.get("fieldSelector") {
                let selected = |field: &str| {
                    let value = |term: &str| {
                        let value = term.strip_prefix(field)?.strip_prefix('=')?;
                        Some(value.strip_prefix('=').unwrap_or(value).to_owned())
                    };
                    selector.split(',').find_map(value).unwrap_or_default()
                };
                found.name = selected("metadata.name");
                of_node = selected("spec.nodeName");
            }
        }
        Self { verb, path: path.to_owned(), collection, of_node, resource: Some(found) }
    }
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

fn lower(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &Method, path: &str, query: &str) -> (String, String) {
        let info = RequestInfo::parse(method, path, &Query::parse(query));
        let text = info.resource.map_or_else(String::new, |r| {
            format!(
                "{}|{}|{}|{}|{}|{}|{}",
                r.group, r.version, r.namespace, r.plural, r.name, r.subresource, r.rest
            )
        });
        (info.verb.to_owned(), text)
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
        let cases = [
            (&get, "/api/v1/namespaces", "", "list", "|v1||namespaces|||"),
            (&get, "/api/v1/namespaces/a", "", "get", "|v1|a|namespaces|a||"),
            (&get, "/api/v1/namespaces/a/status", "", "get", "|v1|a|namespaces|a|status|"),
            (&get, "/api/v1/namespaces/a/pods", "", "list", "|v1|a|pods|||"),
            (&get, "/api/v1/namespaces/a/pods", "watch=true", "watch", "|v1|a|pods|||"),
            (&get, "/api/v1/watch/pods", "", "watch", "|v1||pods|||"),
            (&get, "/api/v1/namespaces/a/pods/p/log", "", "get", "|v1|a|pods|p|log|"),
            (&get, "/api/v1/namespaces/a/services/s/proxy/x/y", "", "get", "|v1|a|services|s|proxy|x/y"),
            (&post, "/apis/apps/v1/namespaces/a/deployments", "", "create", "apps|v1|a|deployments|||"),
            (&delete, "/apis/apps/v1/deployments", "", "deletecollection", "apps|v1||deployments|||"),
            (&get, "/api/v1/pods", "fieldSelector=metadata.name%3Dx", "list", "|v1||pods|x||"),
            (&get, "/apis/apps/v1", "", "get", ""),
            (&get, "/healthz", "", "get", ""),
        ];
        for (method, path, query, verb, resource) in cases {
            assert_eq!(info(method, path, query), (verb.to_owned(), resource.to_owned()), "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("a=1&b=x%3Dy+z&command=ls&command=-l&watch&bad=%zz");
        assert_eq!(query.get("b"), Some("x=y z"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["ls", "-l"]);
        assert_eq!(query.get("bad"), Some("%zz"));
        assert!(query.flag("watch") && !query.flag("dryRun"));
    }

    proptest::proptest! {
        #[test]
        fn any_path_and_query_are_read(path in "(/(api|apis|v1|watch|namespaces|a|%2|%zz|))*|\\PC{0,32}", query in "\\PC{0,48}") {
            let query = Query::parse(&query);
            for method in [Method::GET, Method::DELETE, Method::OPTIONS] {
                let _ = RequestInfo::parse(&method, &path, &query);
            }
        }
    }
}
