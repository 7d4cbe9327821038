//! Which resources the server has, by every name people call them.

use anyhow::bail;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, request};

/// All of the server's resources in two answers (every server since Kubernetes 1.30 can).
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A resource of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Resource {
    /// The collection's path; `namespace` is ignored for cluster-scoped resources.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) if self.namespaced => format!("{root}/namespaces/{namespace}/{}", self.plural),
            _ => format!("{root}/{}", self.plural),
        }
    }

    /// `pod`, `deployment.apps`: how kubectl names an object's resource in its messages.
    pub fn shown(&self) -> String {
        if self.group.is_empty() {
            self.singular.clone()
        } else {
            format!("{}.{}", self.singular, self.group)
        }
    }

    fn answers_to(&self, name: &str) -> bool {
        let (plain, group) = name.split_once('.').unwrap_or((name, ""));
        let by_name = |n: &str| {
            n == self.plural
                || n == self.singular
                || self.short_names.iter().any(|s| s == n)
                || n == self.kind.to_lowercase()
        };
        by_name(name)
            || by_name(plain) && (group == self.group || group == format!("{}.{}", self.version, self.group))
    }
}

/// All resources, preferred versions first.
pub async fn resources(client: &Client) -> anyhow::Result<Vec<Resource>> {
    let mut found = Vec::new();
    for path in ["/api", "/apis"] {
        let (_, groups) = client.json(request(Method::GET, path, AGGREGATED, None)?).await?;
        collect(&groups, &mut found);
    }
    Ok(found)
}

/// The resources of an `APIGroupDiscoveryList`.
fn collect(groups: &Value, found: &mut Vec<Resource>) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let texts = |v: &Value| list(v).iter().map(text).collect::<Vec<_>>();
    for group in list(&groups["items"]) {
        for version in list(&group["versions"]) {
            found.extend(list(&version["resources"]).iter().map(|r| {
                let kind = text(&r["responseKind"]["kind"]);
                let singular = Some(text(&r["singularResource"])).filter(|s| !s.is_empty());
                Resource {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    singular: singular.unwrap_or_else(|| kind.to_lowercase()),
                    kind,
                    plural: text(&r["resource"]),
                    short_names: texts(&r["shortNames"]),
                    categories: texts(&r["categories"]),
                    namespaced: r["scope"] == "Namespaced",
                    verbs: texts(&r["verbs"]),
                }
            }));
        }
    }
}

/// The resources a word means: one by its names, or all of a category (`all`), or several with
/// commas.
pub fn named(all: &[Resource], words: &str) -> anyhow::Result<Vec<Resource>> {
    let mut found = Vec::new();
    for word in words.split(',') {
        let word = word.to_lowercase();
        if let Some(resource) = all.iter().find(|r| r.answers_to(&word)) {
            found.push(resource.clone());
            continue;
        }
        let members: Vec<_> = all.iter().filter(|r| r.categories.contains(&word)).cloned().collect();
        if members.is_empty() {
            bail!("the server doesn't have a resource type {word:?}");
        }
        for member in members {
            if !found.iter().any(|f: &Resource| f.plural == member.plural && f.group == member.group) {
                found.push(member);
            }
        }
    }
    Ok(found)
}

/// The resource of a manifest's `apiVersion` and `kind`.
pub fn of_manifest<'a>(all: &'a [Resource], value: &Value) -> anyhow::Result<&'a Resource> {
    let api_version = value["apiVersion"].as_str().unwrap_or_default();
    let kind = value["kind"].as_str().unwrap_or_default();
    if api_version.is_empty() {
        bail!("apiVersion: Required value");
    }
    if kind.is_empty() {
        bail!("kind: Required value");
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    match all.iter().find(|r| r.group == group && r.version == version && r.kind == kind) {
        Some(resource) => Ok(resource),
        None => bail!("no matches for kind {kind:?} in version {api_version:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployments() -> Resource {
        Resource {
            group: "apps".into(),
            version: "v1".into(),
            kind: "Deployment".into(),
            plural: "deployments".into(),
            singular: "deployment".into(),
            short_names: vec!["deploy".into()],
            categories: vec!["all".into()],
            namespaced: true,
            verbs: Vec::new(),
        }
    }

    #[test]
    fn a_resource_answers_to_all_its_names() {
        for name in
            ["deployments", "deployment", "deploy", "Deployment", "deployments.apps", "deploy.v1.apps", "all"]
        {
            assert_eq!(named(&[deployments()], name).unwrap(), [deployments()], "{name}");
        }
        let error = named(&[deployments()], "deployments.extensions").unwrap_err();
        assert!(error.to_string().contains("doesn't have a resource type"));
    }

    #[test]
    fn paths_have_a_namespace_only_where_there_is_one() {
        let mut resource = deployments();
        assert_eq!(resource.path(Some("web")), "/apis/apps/v1/namespaces/web/deployments");
        assert_eq!(resource.path(None), "/apis/apps/v1/deployments");
        resource.namespaced = false;
        resource.group = String::new();
        assert_eq!(resource.path(Some("web")), "/api/v1/deployments");
    }
}
