//! Names and amounts of resources (`pkg/apis/core/helper`, `ValidateResourceQuantityValue`).

use super::{ErrorList, FieldError, at::At, names, quantity::Quantity};

const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

const COMPUTE: &[&str] = &["cpu", "ephemeral-storage", "memory"];

pub fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether the name is Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether the name is that of a device or the like: `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified(&format!("requests.{name}")).is_empty()
}

/// Whether more may be used than is requested.
pub fn overcommits(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

/// Whether a ResourceQuota can count the resource.
pub fn is_quota(name: &str) -> bool {
    let base = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits."));
    COUNTED.contains(&name)
        || COMPUTE.contains(&name)
        || base.is_some_and(|b| COMPUTE.contains(&b))
        || name == "requests.storage"
        || is_huge_pages(name)
        || name.strip_prefix("requests.").is_some_and(is_huge_pages)
}

fn invalid(at: &At<'_>, name: &str, detail: &str) -> FieldError {
    FieldError::invalid(&at.path, name, detail)
}

/// Refuses what is no resource at all; says whether it is one.
pub fn check_name(name: &str, at: &At<'_>, errors: &mut ErrorList) -> bool {
    let before = errors.len();
    errors.extend(names::qualified(name).iter().map(|detail| invalid(at, name, detail)));
    if errors.len() == before && !name.contains('/') && !is_quota(name) && name != "storage" {
        errors.push(invalid(at, name, "must be a standard resource type or fully qualified"));
    }
    errors.len() == before
}

/// Refuses what a container cannot ask for.
pub fn check_container_name(name: &str, at: &At<'_>, errors: &mut ErrorList) {
    check_name(name, at, errors);
    if !name.contains('/') {
        if !COMPUTE.contains(&name) && !is_huge_pages(name) {
            errors.push(invalid(at, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(invalid(at, name, "doesn't follow extended resource name standard"));
    }
}

/// Refuses what a ResourceQuota cannot count.
pub fn check_quota_name(name: &str, at: &At<'_>, errors: &mut ErrorList) {
    check_name(name, at, errors);
    if !name.contains('/') && !is_quota(name) {
        errors.push(invalid(at, name, "must be a standard resource for quota"));
    }
}

/// The amount at a place, or an error where there is none.
pub fn read(at: &At<'_>, errors: &mut ErrorList) -> Option<Quantity> {
    match Quantity::from_json(at.value) {
        Ok(quantity) => Some(quantity),
        Err(error) => {
            errors.push(at.invalid(error.to_string()));
            None
        }
    }
}

/// Refuses an amount that is no quantity, negative, or a part of what cannot be divided.
pub fn check_amount(name: &str, at: &At<'_>, errors: &mut ErrorList) -> Option<Quantity> {
    let quantity = read(at, errors)?;
    if quantity.is_negative() {
        errors.push(invalid(at, &quantity.to_string(), "must be greater than or equal to 0"));
    }
    if (COUNTED.contains(&name) || is_extended(name)) && quantity.milli_value() % 1000 != 0 {
        errors.push(invalid(at, &quantity.to_string(), "must be an integer"));
    }
    Some(quantity)
}

/// Refuses an amount that is not more than zero.
pub fn check_positive(at: &At<'_>, errors: &mut ErrorList) -> Option<Quantity> {
    let quantity = read(at, errors)?;
    if quantity <= Quantity::ZERO {
        errors.push(invalid(at, &quantity.to_string(), "must be greater than zero"));
        return None;
    }
    Some(quantity)
}

type NameCheck = fn(&str, &At<'_>, &mut ErrorList);

/// Refuses bad `requests` and `limits`.
pub fn check_requirements(
    resources: &At<'_>,
    check_name: NameCheck,
    claims: &[&str],
    errors: &mut ErrorList,
) {
    let (limits, requests) = (resources.get("limits"), resources.get("requests"));
    let (mut compute, mut huge) = (false, false);
    let mut note = |name: &str| {
        compute |= matches!(name, "cpu" | "memory");
        huge |= is_huge_pages(name);
    };
    for (name, _) in limits.entries() {
        let at = limits.key(name);
        check_name(name, &at, errors);
        if let Some(quantity) = check_amount(name, &at, errors) {
            check_huge_pages(name, quantity, &at, errors);
        }
        note(name);
    }
    for (name, _) in requests.entries() {
        let at = requests.key(name);
        check_name(name, &at, errors);
        let Some(quantity) = check_amount(name, &at, errors) else { continue };
        match Quantity::from_json(limits.key(name).value) {
            Ok(limit) if quantity != limit && !overcommits(name) => errors.push(invalid(
                &requests,
                &quantity.to_string(),
                &format!("must be equal to {name} limit of {limit}"),
            )),
            Ok(limit) if quantity > limit => errors.push(invalid(
                &requests,
                &quantity.to_string(),
                &format!("must be less than or equal to {name} limit of {limit}"),
            )),
            Err(_) if !overcommits(name) => {
                errors.push(limits.required("Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
        check_huge_pages(name, quantity, &at, errors);
        note(name);
    }
    if huge && !compute {
        errors.push(resources.forbidden("HugePages require cpu or memory"));
    }
    for claim in resources.get("claims").items() {
        let name = claim.get("name").str();
        if name.is_empty() {
            errors.push(claim.required(""));
        } else if !claims.contains(&name) {
            let names = if claims.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", claims.join(", "))
            };
            let mut error = FieldError::not_found(&claim.path, name);
            error.detail = format!("must be one of the names in pod.spec.resourceClaims{names}");
            errors.push(error);
        }
    }
}

fn check_huge_pages(name: &str, quantity: Quantity, at: &At<'_>, errors: &mut ErrorList) {
    let Some(size) = name.strip_prefix("hugepages-") else { return };
    let page = size.parse::<Quantity>().map_or(0, Quantity::value);
    if page <= 0 || quantity.value() % page != 0 {
        let detail = format!("{quantity} is not positive integer multiple of {name}");
        errors.push(invalid(at, &quantity.to_string(), &detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(resources: serde_json::Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        let at = At { value: &resources, path: "r".to_owned() };
        check_requirements(&at, check_container_name, &[], &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn requests_stay_within_limits() {
        let good = json!({"requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"cpu": "2", "example.com/gpu": "2", "memory": "1Gi"}});
        assert_eq!(texts(good), Vec::<String>::new());
        let cases = [
            (
                json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
                "r.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                json!({"requests": {"memory": "-1Ki"}}),
                "r.requests[memory]: Invalid value: \"-1Ki\": must be greater than or equal to 0",
            ),
            (
                json!({"limits": {"gpu": "1"}}),
                "r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
            ),
            (
                json!({"limits": {"example.com/gpu": "0.5"}}),
                "r.limits[example.com/gpu]: Invalid value: \"500m\": must be an integer",
            ),
            (
                json!({"requests": {"example.com/gpu": "1"}}),
                "r.limits: Required value: Limit must be set for non overcommitable resources",
            ),
            (json!({"limits": {"hugepages-2Mi": "2Mi"}}), "r: Forbidden: HugePages require cpu or memory"),
            (
                json!({"limits": {"cpu": "1", "hugepages-2Mi": "3Mi"}}),
                "r.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
            ),
            (
                json!({"limits": {"cpu": "x"}}),
                "r.limits[cpu]: Invalid value: \"x\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ];
        for (resources, text) in cases {
            assert_eq!(texts(resources).first().map(String::as_str), Some(text));
        }
    }
}
