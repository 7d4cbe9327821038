//! ResourceQuotas.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, text},
    edit::{child, present},
    meta, names,
    quantity::{Quantity, canonicalize_list},
    registry::row,
    resource_names::{check_amount, check_quota_name},
};

pub const RESOURCE_QUOTA: Kind = Kind {
    short_names: &["quota"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |quota| quota["status"] = json!({}),
        validate: |quota| meta::check(quota, true, names::dns_subdomain, check),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                let [scopes, had] = [new, old].map(|q| q.get("spec").get("scopes"));
                let sorted = |at: &At<'_>| {
                    let mut list: Vec<String> = at.items().map(|s| s.str().to_owned()).collect();
                    list.sort();
                    list
                };
                if sorted(&scopes) != sorted(&had) {
                    errors.push(scopes.invalid("field is immutable"));
                }
            })
        },
        cells,
        ..Strategy::WITH_STATUS
    },
    ..row("", "v1", "ResourceQuota", "resourcequotas", "resourcequota", "io.k8s.api.core.v1.ResourceQuota")
};

fn default(quota: &mut Value) {
    if let Some(hard) = present(child(quota, "spec"), "hard") {
        canonicalize_list(hard);
    }
    if let Some(status) = present(quota, "status") {
        for list in ["hard", "used"] {
            if let Some(list) = present(status, list) {
                canonicalize_list(list);
            }
        }
    }
}

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
const CONFLICTS: &[(&str, &str)] = &[("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")];

/// Whether a scope can narrow what is counted of a resource.
fn goes_with(scope: &str, resource: &str) -> bool {
    let of_pods = || {
        let base = resource.strip_prefix("requests.").or_else(|| resource.strip_prefix("limits."));
        resource == "pods" || matches!(base.unwrap_or(resource), "cpu" | "memory" | "ephemeral-storage")
    };
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => of_pods() || resource.contains("hugepages-"),
    }
}

fn check(quota: &At<'_>, errors: &mut ErrorList) {
    let (spec, status) = (quota.get("spec"), quota.get("status"));
    for list in [spec.get("hard"), status.get("hard"), status.get("used")] {
        for (name, _) in list.entries() {
            let at = list.key(name);
            check_quota_name(name, &at, errors);
            check_amount(name, &at, errors);
        }
    }
    let scopes = spec.get("scopes");
    let hard = spec.get("hard");
    let conflicting = |names: &[&str]| CONFLICTS.iter().any(|(a, b)| names.contains(a) && names.contains(b));
    for scope in scopes.items() {
        if !SCOPES.contains(&scope.str()) {
            errors.push(scopes.invalid("unsupported scope"));
        } else if hard
            .entries()
            .any(|(r, _)| super::resource_names::is_quota(r) && !goes_with(scope.str(), r))
        {
            errors.push(scopes.invalid("unsupported scope applied to resource"));
        }
    }
    if conflicting(&scopes.items().map(|s| s.str()).collect::<Vec<_>>()) {
        errors.push(scopes.invalid("conflicting scopes"));
    }
    let expressions = spec.get("scopeSelector").get("matchExpressions");
    let mut named = Vec::new();
    for expression in expressions.items() {
        let [scope, operator, values] = ["scopeName", "operator", "values"].map(|f| expression.get(f));
        let at = |field: &str| format!("{}.{field}", expressions.path);
        if !SCOPES.contains(&scope.str()) {
            errors.push(FieldError::invalid(at("scopeName"), scope.str(), "unsupported scope"));
        }
        if !matches!(scope.str(), "PriorityClass" | "VolumeAttributesClass") && operator.str() != "Exists" {
            errors.push(FieldError::invalid(at("operator"), operator.str(), "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"));
        }
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                at("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::invalid(
                at("values"),
                values.value.clone(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(at("operator"), other, "not a valid selector operator"));
            }
        }
        named.push(scope.str());
    }
    if conflicting(&named) {
        errors.push(scopes.invalid("conflicting scopes"));
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
    text(
        "Limit",
        "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
    ),
    AGE,
];

fn cells(quota: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let status = &quota["status"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in status["hard"].as_object().into_iter().flatten() {
        let used = Quantity::from_json(&status["used"][name]).unwrap_or(Quantity::ZERO);
        let text = format!("{name}: {used}/{}", hard.as_str().unwrap_or_default());
        if name.starts_with("limits") { limits.push(text) } else { requests.push(text) }
    }
    vec![
        columns::name(quota),
        requests.join(", ").into(),
        limits.join(", ").into(),
        columns::age(quota, now).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_with_some_resources_only() {
        let errors = |spec: Value| -> Vec<String> {
            let quota = json!({"metadata": {"name": "q", "namespace": "n"}, "spec": spec});
            (RESOURCE_QUOTA.strategy.validate)(&quota).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            errors(json!({"hard": {"pods": "3", "requests.cpu": "1", "count/widgets.example.com": "1"}})),
            Vec::<String>::new()
        );
        assert_eq!(errors(json!({"hard": {"pods": "3"}, "scopes": ["BestEffort"]})), Vec::<String>::new());
        assert_eq!(
            errors(json!({"hard": {"services": "3"}, "scopes": ["BestEffort"]})),
            ["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"]
        );
        assert_eq!(
            errors(json!({"hard": {"pods": "1.5"}})),
            ["spec.hard[pods]: Invalid value: \"1500m\": must be an integer"]
        );
    }

    #[test]
    fn a_row_shows_use_and_bounds() {
        let quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "3", "limits.cpu": "2"}, "used": {"pods": "1"}}});
        assert_eq!(
            cells(&quota, jiff::Timestamp::UNIX_EPOCH)[1..3],
            [json!("pods: 1/3"), json!("limits.cpu: 0/2")]
        );
    }
}
