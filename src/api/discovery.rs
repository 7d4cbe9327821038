//! Discovery: which groups, versions, resources and verbs there are. Made from the table of kinds.

use std::{cmp::Reverse, collections::BTreeMap};

use serde_json::{Value, json};

use super::{negotiate::Discovery, usage};
use crate::kinds::{Durability, Kind, Subresource};

/// Upstream's order of groups: what kubectl prefers when a name is in several groups.
const GROUP_ORDER: &[&str] = &[
    "",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
];

/// The rows of a group by version.
type Versions = Vec<(&'static str, Vec<&'static Kind>)>;

/// Rows by group and version, groups in upstream's order, the preferred version first.
fn groups(kinds: &'static [Kind]) -> Vec<(&'static str, Versions)> {
    type Newest<'a> = BTreeMap<Reverse<&'a str>, Vec<&'static Kind>>;
    let mut by_group: BTreeMap<(usize, &str), Newest<'_>> = BTreeMap::new();
    for kind in kinds.iter().chain(usage::KINDS) {
        let rank = GROUP_ORDER.iter().position(|g| *g == kind.group).unwrap_or(GROUP_ORDER.len());
        let versions = by_group.entry((rank, kind.group)).or_default();
        versions.entry(Reverse(kind.version)).or_default().push(kind);
    }
    by_group
        .into_iter()
        .map(|((_, group), versions)| (group, versions.into_iter().map(|(v, k)| (v.0, k)).collect()))
        .collect()
}

/// Group, version, kind and verbs of a subresource's own objects.
struct SubresourceType {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
}

fn subresource_type(kind: &Kind, subresource: Subresource) -> SubresourceType {
    let own = |verbs| SubresourceType { group: kind.group, version: kind.version, kind: kind.kind, verbs };
    let of = |group, version, kind, verbs| SubresourceType { group, version, kind, verbs };
    match subresource {
        Subresource::Status => own(&["get", "patch", "update"]),
        Subresource::Scale => of("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        Subresource::Other(name) => match name {
            "approval" | "ephemeralcontainers" | "resize" => own(&["get", "patch", "update"]),
            "finalize" => own(&["update"]),
            "binding" => of("", "v1", "Binding", &["create"]),
            "eviction" => of("policy", "v1", "Eviction", &["create"]),
            "token" => of("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
            "exec" => of("", "v1", "PodExecOptions", &["create", "get"]),
            "attach" => of("", "v1", "PodAttachOptions", &["create", "get"]),
            "portforward" => of("", "v1", "PodPortForwardOptions", &["create", "get"]),
            "proxy" => of("", "v1", proxy_kind(kind), &["create", "delete", "get", "patch", "update"]),
            _ => own(&["get"]),
        },
    }
}

fn proxy_kind(kind: &Kind) -> &'static str {
    match kind.kind {
        "Node" => "NodeProxyOptions",
        "Service" => "ServiceProxyOptions",
        _ => "PodProxyOptions",
    }
}

/// `GET /api`.
pub fn core_versions(server: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}]})
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn group_object(group: &str, versions: &[(&str, Vec<&Kind>)]) -> Value {
    let named = |version: &str| json!({"groupVersion": group_version(group, version), "version": version});
    json!({"name": group, "versions": versions.iter().map(|(v, _)| named(v)).collect::<Vec<_>>(),
        "preferredVersion": named(versions[0].0)})
}

/// `GET /apis`, the older form.
pub fn group_list(kinds: &'static [Kind]) -> Value {
    let groups: Vec<_> =
        groups(kinds).iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group_object(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<group>`.
pub fn group(kinds: &'static [Kind], name: &str) -> Option<Value> {
    let groups = groups(kinds);
    let (group, versions) = groups.iter().find(|(g, _)| !g.is_empty() && *g == name)?;
    let mut object = group_object(group, versions);
    object["kind"] = "APIGroup".into();
    object["apiVersion"] = "v1".into();
    Some(object)
}

/// `GET /api/v1` and `GET /apis/<group>/<version>`.
pub fn resource_list(kinds: &'static [Kind], group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    let all = kinds.iter().chain(usage::KINDS);
    for kind in all.filter(|k| k.group == group && k.version == version) {
        let mut own = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs});
        if !kind.short_names.is_empty() {
            own["shortNames"] = kind.short_names.into();
        }
        if !kind.categories.is_empty() {
            own["categories"] = kind.categories.into();
        }
        if kind.verbs.contains(&"list") && kind.durability != Durability::Virtual {
            own["storageVersionHash"] = storage_version_hash(kind).into();
        }
        resources.push(own);
        for subresource in kind.subresources {
            let of = subresource_type(kind, *subresource);
            let mut own = json!({"name": format!("{}/{}", kind.plural, subresource.name()), "singularName": "",
                "namespaced": kind.namespaced, "kind": of.kind, "verbs": of.verbs});
            if (of.group, of.version) != (kind.group, kind.version) {
                own["group"] = of.group.into();
                own["version"] = of.version.into();
            }
            resources.push(own);
        }
    }
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version),
        "resources": resources}))
}

/// The first eight bytes of the digest of `group/version/kind`, base64.
fn storage_version_hash(kind: &Kind) -> String {
    use base64::Engine as _;
    let (group, version) = kind.stored_as.map_or((kind.group, kind.version), |s| (s.group, s.version));
    let text = format!("{group}/{version}/{}", kind.kind);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8])
}

/// `GET /api` (`core`) and `GET /apis`, the aggregated form.
pub fn aggregated(kinds: &'static [Kind], core: bool, version: &str) -> Value {
    let items: Vec<_> = groups(kinds)
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<_> = versions
                .iter()
                .map(|(version, kinds)| {
                    let mut resources: Vec<_> = kinds.iter().map(|kind| aggregated_resource(kind)).collect();
                    resources.sort_by(|a, b| a["resource"].as_str().cmp(&b["resource"].as_str()));
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let mut metadata = json!({});
            if !group.is_empty() {
                metadata["name"] = (*group).into();
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut resource = json!({"resource": kind.plural, "singularResource": kind.singular, "verbs": kind.verbs,
        "responseKind": response(kind.group, kind.version, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }});
    if !kind.short_names.is_empty() {
        resource["shortNames"] = kind.short_names.into();
    }
    if !kind.categories.is_empty() {
        resource["categories"] = kind.categories.into();
    }
    if !kind.subresources.is_empty() {
        resource["subresources"] = kind
            .subresources
            .iter()
            .map(|s| {
                let of = subresource_type(kind, *s);
                json!({"subresource": s.name(), "verbs": of.verbs, "responseKind": response(of.group, of.version, of.kind)})
            })
            .collect();
    }
    resource
}

/// The `Content-Type` of a discovery document.
pub fn content_type(form: Discovery) -> String {
    match form {
        Discovery::Legacy => "application/json".to_owned(),
        Discovery::Aggregated(version) => {
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::registry::KINDS;

    #[test]
    fn both_forms_name_the_same_resources() {
        let aggregated = aggregated(KINDS, false, "v2");
        for group in aggregated["items"].as_array().unwrap() {
            let name = group["metadata"]["name"].as_str().unwrap();
            for version in group["versions"].as_array().unwrap() {
                let list = resource_list(KINDS, name, version["version"].as_str().unwrap()).unwrap();
                let own = list["resources"].as_array().unwrap().iter();
                let own = own.filter(|r| !r["name"].as_str().unwrap().contains('/')).count();
                assert_eq!(own, version["resources"].as_array().unwrap().len(), "{name}");
            }
        }
        assert!(group(KINDS, "nope").is_none() && resource_list(KINDS, "nope", "v1").is_none());
        assert_eq!(group_list(KINDS)["groups"][0]["name"], "apps");
    }
}
