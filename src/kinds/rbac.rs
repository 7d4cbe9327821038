//! Roles, ClusterRoles and their bindings.

use serde_json::Value;

use super::{
    Column, ErrorList, FieldError, Kind, Strategy,
    at::At,
    columns::{self, AGE, NAME, text, wide},
    edit::{child, each, set_default_empty},
    meta::{self, check_label_selector},
    names,
    registry::row,
};

const GROUP: &str = "rbac.authorization.k8s.io";

pub const CLUSTER_ROLE: Kind =
    Kind {
        namespaced: false,
        created_by_put: true,
        strategy: Strategy {
            validate: |role| {
                meta::check(role, false, names::path_segment, |role, errors| {
                    role.get("rules").items().for_each(|rule| check_rule(&rule, false, errors));
                    let aggregation = role.get("aggregationRule");
                    let selectors = aggregation.get("clusterRoleSelectors");
                    if aggregation.is_set() && selectors.is_empty() {
                        errors.push(selectors.required(
                            "at least one clusterRoleSelector required if aggregationRule is non-nil",
                        ));
                    }
                    selectors.items().for_each(|selector| check_label_selector(&selector, errors));
                })
            },
            ..Strategy::PLAIN
        },
        ..row(GROUP, "v1", "ClusterRole", "clusterroles", "clusterrole", "io.k8s.api.rbac.v1.ClusterRole")
    };

pub const ROLE: Kind = Kind {
    created_by_put: true,
    strategy: Strategy {
        validate: |role| {
            meta::check(role, true, names::path_segment, |role, errors| {
                role.get("rules").items().for_each(|rule| check_rule(&rule, true, errors));
            })
        },
        ..Strategy::PLAIN
    },
    ..row(GROUP, "v1", "Role", "roles", "role", "io.k8s.api.rbac.v1.Role")
};

const BINDING: Strategy = Strategy {
    default: default_binding,
    validate_update: |new, old| {
        meta::check_update(new, old, |new, old, errors| {
            if new.get("roleRef").value != old.get("roleRef").value {
                let error = new.get("roleRef").invalid("cannot change roleRef");
                errors.push(error.as_struct("APIGroup= Kind= Name="));
            }
        })
    },
    cells: binding_cells,
    ..Strategy::PLAIN
};

pub const CLUSTER_ROLE_BINDING: Kind = Kind {
    namespaced: false,
    created_by_put: true,
    columns: CLUSTER_BINDING_COLUMNS,
    strategy: Strategy {
        validate: |binding| {
            meta::check(binding, false, names::path_segment, |binding, errors| {
                check_binding(binding, &["ClusterRole"], errors);
            })
        },
        ..BINDING
    },
    ..row(
        GROUP,
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
        "io.k8s.api.rbac.v1.ClusterRoleBinding",
    )
};

pub const ROLE_BINDING: Kind = Kind {
    created_by_put: true,
    columns: BINDING_COLUMNS,
    strategy: Strategy {
        validate: |binding| {
            meta::check(binding, true, names::path_segment, |binding, errors| {
                check_binding(binding, &["Role", "ClusterRole"], errors);
            })
        },
        ..BINDING
    },
    ..row(GROUP, "v1", "RoleBinding", "rolebindings", "rolebinding", "io.k8s.api.rbac.v1.RoleBinding")
};

fn check_rule(rule: &At<'_>, namespaced: bool, errors: &mut ErrorList) {
    let [verbs, groups, resources, urls] =
        ["verbs", "apiGroups", "resources", "nonResourceURLs"].map(|field| rule.get(field));
    if verbs.is_empty() {
        errors.push(verbs.required("verbs must contain at least one value"));
    }
    if !urls.is_empty() {
        if namespaced {
            errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
        }
        if !groups.is_empty() || !resources.is_empty() || !rule.get("resourceNames").is_empty() {
            errors.push(urls.invalid("rules cannot apply to both regular resources and non-resource URLs"));
        }
        return;
    }
    if groups.is_empty() {
        errors.push(groups.required("resource rules must supply at least one api group"));
    }
    if resources.is_empty() {
        errors.push(resources.required("resource rules must supply at least one resource"));
    }
}

fn default_binding(binding: &mut Value) {
    set_default_empty(child(binding, "roleRef"), "apiGroup", GROUP);
    for subject in each(binding, "subjects").filter(|s| s["kind"] == "User" || s["kind"] == "Group") {
        set_default_empty(subject, "apiGroup", GROUP);
    }
}

fn check_binding(binding: &At<'_>, kinds: &[&str], errors: &mut ErrorList) {
    let role = binding.get("roleRef");
    role.get("apiGroup").check_one_of(&[GROUP], errors);
    let kind = role.get("kind");
    if !kinds.contains(&kind.str()) {
        errors.push(At { value: &kind.str().into(), path: kind.path.clone() }.not_supported(kinds));
    }
    role.get("name").check_required_name(names::path_segment, errors);
    for subject in binding.get("subjects").items() {
        let [kind, group, name, namespace] =
            ["kind", "apiGroup", "name", "namespace"].map(|field| subject.get(field));
        name.check_required(errors);
        match kind.str() {
            "ServiceAccount" => {
                if !name.is_empty() {
                    name.check(names::dns_subdomain, errors);
                }
                group.check_one_of(&[""], errors);
                namespace.check_required(errors);
            }
            "User" | "Group" => {
                group.check_one_of(&[GROUP], errors);
            }
            other => errors.push(FieldError::not_supported(
                &kind.path,
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    text("Role", "roleRef"),
    AGE,
    wide(text("Users", "Users in the roleBinding")),
    wide(text("Groups", "Groups in the roleBinding")),
    wide(text("ServiceAccounts", "ServiceAccounts in the roleBinding")),
];

const CLUSTER_BINDING_COLUMNS: &[Column] = &[
    NAME,
    text("Role", "roleRef"),
    AGE,
    wide(text("Users", "Users in the clusterRoleBinding")),
    wide(text("Groups", "Groups in the clusterRoleBinding")),
    wide(text("ServiceAccounts", "ServiceAccounts in the clusterRoleBinding")),
];

fn binding_cells(binding: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let part = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let role = &binding["roleRef"];
    let of = |kind: &str| -> Value {
        let subjects = binding["subjects"].as_array().into_iter().flatten().filter(|s| s["kind"] == kind);
        let names = subjects.map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", part(&s["namespace"]), part(&s["name"])),
            _ => part(&s["name"]),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    vec![
        columns::name(binding),
        format!("{}/{}", part(&role["kind"]), part(&role["name"])).into(),
        columns::age(binding, now).into(),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_name_groups_resources_and_verbs() {
        let role = |rule: Value| json!({"metadata": {"name": "a:b", "namespace": "n"}, "rules": [rule]});
        let errors = |rule| texts((ROLE.strategy.validate)(&role(rule)));
        assert_eq!(
            errors(json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]})),
            Vec::<String>::new()
        );
        assert_eq!(
            errors(json!({"nonResourceURLs": ["/x"]})),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ]
        );
    }

    #[test]
    fn a_binding_keeps_its_role() {
        let mut old = json!({"metadata": {"name": "b", "namespace": "n"}, "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        default_binding(&mut old);
        assert_eq!(
            (&old["roleRef"]["apiGroup"], &old["subjects"][0]["apiGroup"]),
            (&json!(GROUP), &json!(GROUP))
        );
        assert_eq!((ROLE_BINDING.strategy.validate)(&old), []);
        let mut new = old.clone();
        new["roleRef"]["name"] = "other".into();
        assert_eq!((ROLE_BINDING.strategy.validate_update)(&new, &old).len(), 1);
        assert_eq!(binding_cells(&old, jiff::Timestamp::UNIX_EPOCH)[3..], ["u", "", "n/s"].map(Value::from));
    }
}
