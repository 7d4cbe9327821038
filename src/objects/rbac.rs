//! Who may do what: RBAC, after the node authoriser (`node_authorizer`).
//!
//! In: a user and what they want. Out: whether they may. Rules are read from the store's view at
//! each question; nothing is cached beside it, so that a change holds at once.
//! Deliberately absent: webhooks and ABAC.

use std::fmt;

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};

use super::{Objects, User, node_authorizer};

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";
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
    /// The node whose pods a list or watch is restricted to by its field selector.
    pub of_node: &'a str,
}

/// Whether `user` may do it.
pub fn allowed(objects: &Objects, user: &User, what: &Attributes<'_>) -> bool {
    decide(objects, user, what).is_ok()
}

/// Why `user` may do it, or why not; upstream's words, often none.
pub fn decide(objects: &Objects, user: &User, what: &Attributes<'_>) -> Result<String, String> {
    if user.groups.iter().any(|group| group == MASTERS) {
        return Ok(String::new());
    }
    let mut reasons = Vec::new();
    match node_authorizer::decide(objects, user, what) {
        Some(Ok(())) => return Ok(String::new()),
        Some(Err(why)) => reasons.push(why),
        None => {}
    }
    let mut missing = Vec::new();
    let mut grant = None;
    visit(objects, user, what.namespace, &mut |granting| {
        match &granting.rules {
            Some(rules) if rules.iter().any(|rule| rule_allows(rule, what)) => {
                grant = Some(granting.to_string());
            }
            Some(_) => {}
            None => missing.push(format!("{} not found", granting.role_named())),
        }
        grant.is_none()
    });
    if let Some(grant) = grant {
        return Ok(format!("RBAC: allowed by {grant}"));
    }
    match missing.as_slice() {
        [] => {}
        [one] => reasons.push(format!("RBAC: {one}")),
        many => reasons.push(format!("RBAC: [{}]", many.join(", "))),
    }
    reasons.retain(|reason| !reason.is_empty());
    Err(reasons.join("\n"))
}

/// A binding that names the user, and what it gives.
struct Granting<'a> {
    /// Its name; `name/namespace` of a RoleBinding.
    binding: String,
    role: &'a RoleRef,
    subject: &'a Subject,
    namespace: &'a str,
    /// `None`: there is no such role.
    rules: Option<Vec<PolicyRule>>,
}

impl Granting<'_> {
    /// `clusterrole.rbac.authorization.k8s.io "view"`.
    fn role_named(&self) -> String {
        format!("{}.rbac.authorization.k8s.io {:?}", self.role.kind.to_lowercase(), self.role.name)
    }
}

impl fmt::Display for Granting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { binding, role, subject, namespace, .. } = self;
        let kind = if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
        let name = match subject.kind.as_str() {
            "ServiceAccount" => {
                format!("{}/{}", subject.name, subject.namespace.as_deref().unwrap_or(namespace))
            }
            _ => subject.name.clone(),
        };
        write!(f, "{kind} {binding:?} of {} {:?} to {} {name:?}", role.kind, role.name, subject.kind)
    }
}

/// Shows every binding that names `user`, in the cluster and (unless empty) in a namespace, until
/// `see` has seen enough.
fn visit(objects: &Objects, user: &User, namespace: &str, see: &mut dyn FnMut(&Granting<'_>) -> bool) {
    for binding in objects.list_typed::<ClusterRoleBinding>(None) {
        let Some(subject) = binding.subjects.iter().flatten().find(|s| is_subject(s, user, "")) else {
            continue;
        };
        let role = &binding.role_ref;
        let name = binding.metadata.name.clone().unwrap_or_default();
        let rules = role_rules(objects, role, "");
        if !see(&Granting { binding: name, role, subject, namespace: "", rules }) {
            return;
        }
    }
    if namespace.is_empty() {
        return;
    }
    for binding in objects.list_typed::<RoleBinding>(Some(namespace)) {
        let Some(subject) = binding.subjects.iter().flatten().find(|s| is_subject(s, user, namespace)) else {
            continue;
        };
        let role = &binding.role_ref;
        let name = format!("{}/{namespace}", binding.metadata.name.as_deref().unwrap_or_default());
        let rules = role_rules(objects, role, namespace);
        if !see(&Granting { binding: name, role, subject, namespace, rules }) {
            return;
        }
    }
}

/// Every rule that holds for `user`, in the cluster and (unless empty) in a namespace.
pub fn rules(objects: &Objects, user: &User, namespace: &str) -> Vec<PolicyRule> {
    let mut all = Vec::new();
    visit(objects, user, namespace, &mut |granting| {
        all.extend(granting.rules.iter().flatten().cloned());
        true
    });
    all
}

/// The rules of the role that a binding refers to; `None` when there is no such role.
pub fn role_rules(objects: &Objects, role: &RoleRef, namespace: &str) -> Option<Vec<PolicyRule>> {
    let rules = if role.kind == "ClusterRole" {
        objects.get_typed::<ClusterRole>("", &role.name)?.rules.clone()
    } else {
        objects.get_typed::<Role>(namespace, &role.name)?.rules.clone()
    };
    Some(rules.unwrap_or_default())
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
