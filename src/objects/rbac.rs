//! Who may do what: RBAC, and the node authoriser.
//!
//! In: a user and what they want. Out: whether they may. Rules are read from the store's view at
//! each question; nothing is cached beside it, so that a change holds at once.
//! Deliberately absent: webhooks and ABAC.

use k8s_openapi::api::{
    core::v1::Pod,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject},
};
use serde_json::Value;

use super::{Objects, User};

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// What somebody wants to do.
#[derive(Debug, Clone, Default)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// `pods`, `pods/log`; empty for a path.
    pub resource: String,
    pub name: &'a str,
    pub namespace: &'a str,
    pub path: &'a str,
}

/// Whether `user` may do it.
pub fn allowed(objects: &Objects, user: &User, what: &Attributes<'_>) -> bool {
    user.groups.iter().any(|group| group == MASTERS)
        || node_allowed(objects, user, what)
        || rules(objects, user, what.namespace).iter().any(|rule| rule_allows(rule, what))
}

/// Every rule that holds for `user`, in the cluster and (unless empty) in a namespace.
pub fn rules(objects: &Objects, user: &User, namespace: &str) -> Vec<PolicyRule> {
    let mut all = Vec::new();
    for binding in objects.list_typed::<ClusterRoleBinding>(None) {
        if binding.subjects.iter().flatten().any(|s| is_subject(s, user, "")) {
            all.extend(role_rules(objects, &binding.role_ref, ""));
        }
    }
    if !namespace.is_empty() {
        for binding in objects.list_typed::<RoleBinding>(Some(namespace)) {
            if binding.subjects.iter().flatten().any(|s| is_subject(s, user, namespace)) {
                all.extend(role_rules(objects, &binding.role_ref, namespace));
            }
        }
    }
    all
}

/// The rules of the role that a binding refers to.
pub fn role_rules(objects: &Objects, role: &RoleRef, namespace: &str) -> Vec<PolicyRule> {
    if role.kind == "ClusterRole" {
        objects.get_typed::<ClusterRole>("", &role.name).and_then(|r| r.rules.clone()).unwrap_or_default()
    } else {
        objects.get_typed::<Role>(namespace, &role.name).and_then(|r| r.rules.clone()).unwrap_or_default()
    }
}

fn is_subject(subject: &Subject, user: &User, namespace: &str) -> bool {
    match subject.kind.as_str() {
        "User" => subject.name == user.name,
        "Group" => user.groups.contains(&subject.name),
        "ServiceAccount" => {
            let namespace = subject.namespace.as_deref().unwrap_or(namespace);
            user.name.strip_prefix(ACCOUNT_PREFIX) == Some(&format!("{namespace}:{}", subject.name))
        }
        _ => false,
    }
}

fn has(list: Option<&Vec<String>>, wanted: &str) -> bool {
    list.is_some_and(|all| all.iter().any(|v| v == "*" || v == wanted))
}

fn rule_allows(rule: &PolicyRule, what: &Attributes<'_>) -> bool {
    if !rule.verbs.iter().any(|v| v == "*" || v == what.verb) {
        return false;
    }
    if what.resource.is_empty() {
        return rule.non_resource_urls.iter().flatten().any(|url| match url.strip_suffix('*') {
            Some(prefix) => what.path.starts_with(prefix),
            None => url == what.path,
        });
    }
    let of_any = what.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let resource = has(rule.resources.as_ref(), &what.resource)
        || of_any.is_some_and(|any| rule.resources.iter().flatten().any(|r| *r == any));
    let names = rule.resource_names.as_ref().is_none_or(|n| n.is_empty() || n.iter().any(|n| n == what.name));
    has(rule.api_groups.as_ref(), what.group) && resource && names
}

/// Upstream's node authoriser, for what a node of ours may ask of the API.
fn node_allowed(objects: &Objects, user: &User, what: &Attributes<'_>) -> bool {
    if !user.groups.iter().any(|g| g == NODES) {
        return false;
    }
    let Some(node) = user.name.strip_prefix(NODE_PREFIX) else { return false };
    let reads = matches!(what.verb, "get" | "list" | "watch");
    match (what.group, what.resource.as_str()) {
        ("", "nodes") => {
            what.name == node && matches!(what.verb, "get" | "patch" | "update") || what.verb == "create"
        }
        ("", "nodes/status") => what.name == node && matches!(what.verb, "patch" | "update"),
        ("coordination.k8s.io", "leases") => {
            what.namespace == "kube-node-lease" && (what.name == node || what.verb == "create")
        }
        ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts") => {
            what.verb == "get" && uses(objects, node, what)
        }
        ("", "serviceaccounts/token") => what.verb == "create" && uses(objects, node, what),
        ("", "pods") if !what.name.is_empty() => {
            matches!(what.verb, "get" | "delete")
                && objects.get_typed::<Pod>(what.namespace, what.name).is_some_and(|p| on_node(&p, node))
        }
        ("", "pods/status") => {
            objects.get_typed::<Pod>(what.namespace, what.name).is_some_and(|p| on_node(&p, node))
        }
        ("", "services") | ("discovery.k8s.io", "endpointslices") | ("node.k8s.io", "runtimeclasses") => {
            reads
        }
        ("" | "events.k8s.io", "events") => matches!(what.verb, "create" | "patch" | "update"),
        ("certificates.k8s.io", "certificatesigningrequests") => reads || what.verb == "create",
        _ => false,
    }
}

fn on_node(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)
}

/// Whether a pod of the node names the object in its spec.
fn uses(objects: &Objects, node: &str, what: &Attributes<'_>) -> bool {
    objects.list_typed::<Pod>(Some(what.namespace)).iter().filter(|p| on_node(p, node)).any(|pod| {
        let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
        match what.resource.as_str() {
            "secrets" => names(
                &spec,
                &["secretName", "secretRef", "secretKeyRef", "imagePullSecrets", "secret"],
                what.name,
            ),
            "configmaps" => names(&spec, &["configMap", "configMapRef", "configMapKeyRef"], what.name),
            "persistentvolumeclaims" => names(&spec, &["claimName"], what.name),
            _ => spec["serviceAccountName"] == what.name,
        }
    })
}

/// Whether one of the fields, anywhere in the tree, holds the name or an object with it.
fn names(tree: &Value, fields: &[&str], name: &str) -> bool {
    match tree {
        Value::Object(map) => map.iter().any(|(key, value)| {
            let here = fields.contains(&key.as_str())
                && (value == name
                    || value["name"] == name
                    || value.as_array().is_some_and(|all| all.iter().any(|v| v["name"] == name)));
            here || names(value, fields, name)
        }),
        Value::Array(items) => items.iter().any(|item| names(item, fields, name)),
        _ => false,
    }
}

/// The rules of `wanted` that `held` do not cover, one by one.
pub fn uncovered<'a>(held: &[PolicyRule], wanted: &'a [PolicyRule]) -> Vec<&'a PolicyRule> {
    wanted.iter().filter(|rule| !covers(held, rule)).collect()
}

fn covers(held: &[PolicyRule], rule: &PolicyRule) -> bool {
    let empty = Vec::new();
    let list = |l: &'_ Option<Vec<String>>| l.clone().unwrap_or_default();
    for verb in &rule.verbs {
        for path in rule.non_resource_urls.as_ref().unwrap_or(&empty) {
            let what = Attributes { verb, path, ..Attributes::default() };
            let covered = held.iter().any(|r| {
                r.verbs.iter().any(|v| v == "*" || v == verb)
                    && (rule_allows(r, &what) || r.non_resource_urls.iter().flatten().any(|u| u == path))
            });
            if !covered {
                return false;
            }
        }
        for group in &list(&rule.api_groups) {
            for resource in &list(&rule.resources) {
                let mut targets = list(&rule.resource_names);
                if targets.is_empty() {
                    targets.push(String::new());
                }
                for name in &targets {
                    let what =
                        Attributes { verb, group, resource: resource.clone(), name, ..Attributes::default() };
                    if !held.iter().any(|r| rule_allows(r, &what)) {
                        return false;
                    }
                }
            }
        }
    }
    true
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`, as upstream prints a rule.
pub fn shown(rule: &PolicyRule) -> String {
    let parts = [
        ("APIGroups", rule.api_groups.clone()),
        ("Resources", rule.resources.clone()),
        ("ResourceNames", rule.resource_names.clone()),
        ("NonResourceURLs", rule.non_resource_urls.clone()),
        ("Verbs", Some(rule.verbs.clone())),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter_map(|(name, list)| {
            let list: Vec<String> = list?.iter().map(|v| format!("{v:?}")).collect();
            (!list.is_empty()).then(|| format!("{name}:[{}]", list.join(" ")))
        })
        .collect();
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> PolicyRule {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        PolicyRule {
            verbs: own(verbs),
            api_groups: Some(own(groups)),
            resources: Some(own(resources)),
            ..PolicyRule::default()
        }
    }

    #[test]
    fn a_rule_allows_what_it_names() {
        let what = |verb: &'static str, resource: &str| Attributes {
            verb,
            resource: resource.to_owned(),
            ..Attributes::default()
        };
        let pods = rule(&["get"], &[""], &["pods", "*/scale"]);
        assert!(rule_allows(&pods, &what("get", "pods")));
        assert!(!rule_allows(&pods, &what("list", "pods")));
        assert!(!rule_allows(&pods, &what("get", "pods/log")));
        assert!(rule_allows(&pods, &what("get", "deployments/scale")));
        assert!(rule_allows(&rule(&["*"], &["*"], &["*"]), &what("get", "pods/log")));
        let named = PolicyRule { resource_names: Some(vec!["a".into()]), ..pods.clone() };
        assert!(!rule_allows(&named, &what("get", "pods")));
        let path = PolicyRule {
            verbs: vec!["get".into()],
            non_resource_urls: Some(vec!["/healthz/*".into()]),
            ..PolicyRule::default()
        };
        assert!(rule_allows(
            &path,
            &Attributes { verb: "get", path: "/healthz/ping", ..Attributes::default() }
        ));
    }

    #[test]
    fn nobody_grants_more_than_they_hold() {
        let held = [rule(&["get", "list"], &[""], &["pods", "secrets"])];
        assert!(uncovered(&held, &[rule(&["get"], &[""], &["pods"])]).is_empty());
        let more = [rule(&["get", "delete"], &[""], &["pods"])];
        assert_eq!(
            shown(uncovered(&held, &more)[0]),
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["get" "delete"]}"#
        );
        assert_eq!(uncovered(&held, &[rule(&["get"], &["*"], &["pods"])]).len(), 1);
    }
}
