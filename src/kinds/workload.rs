//! What workloads with a pod template share: selectors, rolling updates, scale.

use serde_json::Value;

use super::{
    ErrorList,
    at::At,
    columns::number,
    labels::Selector,
    meta::{check_label_selector, is_empty_selector},
    names, pod_spec,
};

/// Refuses a bad selector of a workload, and a template that it does not select.
pub fn check_selector_and_template(
    spec: &At<'_>,
    empty_detail: &str,
    deadline_detail: &str,
    claims: &[&str],
    errors: &mut ErrorList,
) {
    let selector = spec.get("selector");
    if selector.is_set() {
        check_label_selector(&selector, errors);
        if is_empty_selector(&selector) {
            errors.push(selector.invalid(empty_detail));
        }
    } else {
        errors.push(selector.required(""));
    }
    let template = spec.get("template");
    match Selector::from_json(selector.value) {
        Err(_) => errors.push(selector.invalid("invalid label selector")),
        Ok(selector) => {
            pod_spec::check_workload_template(&template, &selector, claims, deadline_detail, errors);
        }
    }
}

/// Refuses negative numbers of a spec.
pub fn check_numbers(spec: &At<'_>, fields: &[&str], errors: &mut ErrorList) {
    for field in fields {
        spec.get(field).check_not_negative(errors);
    }
}

/// Refuses what is neither a number of at least 0 nor a percentage.
pub fn check_int_or_percent(at: &At<'_>, errors: &mut ErrorList) {
    match at.value {
        Value::String(_) => at.check(names::percent, errors),
        Value::Number(_) => at.check_not_negative(errors),
        _ => errors.push(at.invalid("must be an integer or percentage (e.g '5%%')")),
    }
}

/// Refuses more than 100%.
pub fn check_at_most_all(at: &At<'_>, errors: &mut ErrorList) {
    if at.value.is_string() && int_or_percent(at.value) > 100 {
        errors.push(at.invalid("must not be greater than 100%"));
    }
}

/// The number, also of a percentage.
pub fn int_or_percent(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
        other => number(other),
    }
}

/// The selector is what the workload is; it never changes.
pub fn check_selector_unchanged(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    new.get("spec").get("selector").check_immutable(&old.get("spec").get("selector"), errors);
}

/// `ready/desired` of a workload.
pub fn ready_cell(object: &Value) -> Value {
    let ready = number(&object["status"]["readyReplicas"]);
    format!("{ready}/{}", number(&object["spec"]["replicas"])).into()
}
