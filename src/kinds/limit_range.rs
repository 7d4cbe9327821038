//! LimitRanges.

use serde_json::Value;

use super::{
    ErrorList, FieldError, Kind, Strategy,
    at::At,
    edit::{child, each, present, set_default},
    meta, names,
    quantity::{Quantity, canonicalize_list},
    registry::row,
    resource_names::{check_container_name, check_name, overcommits, read},
};

pub const LIMIT_RANGE: Kind = Kind {
    short_names: &["limits"],
    strategy: Strategy {
        default,
        validate: |object| meta::check(object, true, names::dns_subdomain, check),
        ..Strategy::PLAIN
    },
    created_by_put: true,
    ..row("", "v1", "LimitRange", "limitranges", "limitrange", "io.k8s.api.core.v1.LimitRange")
};

const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

/// For containers: a limit is the maximum where none is given, a request the limit or minimum.
fn default(object: &mut Value) {
    for limit in each(child(object, "spec"), "limits") {
        for list in LISTS {
            if let Some(list) = present(limit, list) {
                canonicalize_list(list);
            }
        }
        if limit["type"] != "Container" {
            continue;
        }
        for (target, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")]
        {
            let from = limit[source].as_object().cloned().unwrap_or_default();
            for (name, amount) in from {
                set_default(child(limit, target), &name, amount);
            }
        }
    }
}

fn check(object: &At<'_>, errors: &mut ErrorList) {
    let mut types: Vec<&str> = Vec::new();
    for limit in object.get("spec").get("limits").items() {
        let kind = limit.get("type");
        let before = errors.len();
        kind.check(names::qualified, errors);
        let standard = matches!(kind.str(), "Pod" | "Container" | "PersistentVolumeClaim");
        if errors.len() == before && !kind.str().contains('/') && !standard {
            errors.push(kind.invalid("must be a standard limit type or fully qualified"));
        }
        if types.contains(&kind.str()) {
            errors.push(kind.duplicate());
        }
        types.push(kind.str());
        check_limit(&limit, kind.str(), errors);
    }
}

fn check_limit(limit: &At<'_>, kind: &str, errors: &mut ErrorList) {
    let mut resources: Vec<&str> = Vec::new();
    for list in LISTS {
        let at = limit.get(list);
        if kind == "Pod" && list.starts_with("default") {
            if !at.is_empty() {
                errors.push(at.forbidden("may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for (name, _) in at.entries() {
            if matches!(kind, "Pod" | "Container") {
                check_container_name(name, &at.key(name), errors);
            } else {
                check_name(name, &at.key(name), errors);
            }
            if !resources.contains(&name) {
                resources.push(name);
            }
        }
    }
    if kind == "PersistentVolumeClaim" && ["min", "max"].iter().all(|l| !limit.get(l).key("storage").is_set())
    {
        errors.push(
            limit
                .get("limits")
                .required("either minimum or maximum storage value is required, but neither was provided"),
        );
    }
    for name in resources {
        let mut amount = |list: &str| {
            let at = limit.get(list).key(name);
            if at.is_set() { read(&at, errors) } else { None }
        };
        let [max, min, default, request, ratio] = LISTS.map(&mut amount);
        let mut order = |low: Option<Quantity>, high: Option<Quantity>, list: &str, words: (&str, &str)| {
            if let (Some(low), Some(high)) = (low, high)
                && low > high
            {
                let at = limit.get(list).key(name);
                let detail = format!("{} value {low} is greater than {} value {high}", words.0, words.1);
                errors.push(FieldError::invalid(at.path, at.value.clone(), detail));
            }
        };
        order(min, max, "min", ("min", "max"));
        order(min, request, "defaultRequest", ("min", "default request"));
        order(request, max, "defaultRequest", ("default request", "max"));
        order(request, default, "defaultRequest", ("default request", "default limit"));
        order(min, default, "default", ("min", "default"));
        order(default, max, "default", ("default", "max"));
        let ratio_at = limit.get("maxLimitRequestRatio").key(name);
        if let Some(ratio) = ratio.filter(|r| *r < Quantity::from_value(1)) {
            errors.push(ratio_at.invalid(format!("ratio {ratio} is less than 1")));
        }
        if let (Some(default), Some(request)) = (default, request)
            && !overcommits(name)
            && default != request
        {
            let detail =
                format!("default value {default} must equal to defaultRequest value {request} in {name}");
            errors.push(limit.get("defaultRequest").key(name).invalid(detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_come_from_the_bounds_and_must_fit_them() {
        let mut object = json!({"metadata": {"name": "l", "namespace": "n"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        default(&mut object);
        let limit = &object["spec"]["limits"][0];
        assert_eq!(
            (&limit["default"], &limit["defaultRequest"]),
            (&json!({"cpu": "2"}), &json!({"cpu": "2", "memory": "1Mi"}))
        );
        assert_eq!((LIMIT_RANGE.strategy.validate)(&object), []);
        object["spec"]["limits"][0]["default"]["cpu"] = "3".into();
        let texts: Vec<_> =
            (LIMIT_RANGE.strategy.validate)(&object).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.limits[0].default[cpu]: Invalid value: \"3\": default value 3 is greater than max value 2"
            ]
        );
    }
}
