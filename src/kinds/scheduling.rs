//! Where pods may run: affinity, tolerations, topology spread, node selectors
//! (`validateAffinity`, `ValidateTolerations`, `validateTopologySpreadConstraints`).

use super::{ErrorList, FieldError, at::At, meta::check_label_selector, names};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Refuses bad affinity of a pod.
pub fn check_affinity(affinity: &At<'_>, errors: &mut ErrorList) {
    let node = affinity.get("nodeAffinity");
    if node.get(REQUIRED).is_set() {
        check_node_selector(&node.get(REQUIRED), errors);
    }
    for term in node.get(PREFERRED).items() {
        check_weight(&term, errors);
        check_node_term(&term.get("preference"), false, errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.get(kind);
        pods.get(REQUIRED).items().for_each(|term| check_pod_term(&term, errors));
        for term in pods.get(PREFERRED).items() {
            check_weight(&term, errors);
            check_pod_term(&term.get("podAffinityTerm"), errors);
        }
    }
}

fn check_weight(term: &At<'_>, errors: &mut ErrorList) {
    let weight = term.get("weight");
    let number = weight.int().unwrap_or(0);
    if !(1..=100).contains(&number) {
        errors.push(FieldError::invalid(weight.path, number, "must be in the range 1-100"));
    }
}

/// Refuses a node selector without terms or with bad ones.
pub fn check_node_selector(selector: &At<'_>, errors: &mut ErrorList) {
    let terms = selector.get("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(terms.required("must have at least one node selector term"));
    }
    terms.items().for_each(|term| check_node_term(&term, true, errors));
}

fn check_node_term(term: &At<'_>, check_values: bool, errors: &mut ErrorList) {
    for requirement in term.get("matchExpressions").items() {
        let (operator, values) = (requirement.get("operator"), requirement.get("values"));
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(
                    values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
                );
            }
            "Gt" | "Lt" if values.len() != 1 => {
                errors
                    .push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
        }
        requirement.get("key").check(names::qualified, errors);
        if check_values {
            values.items().for_each(|value| value.check(names::label_value, errors));
        }
    }
    for requirement in term.get("matchFields").items() {
        let (operator, values, key) =
            (requirement.get("operator"), requirement.get("values"), requirement.get("key"));
        match operator.str() {
            "In" | "NotIn" if values.len() != 1 => errors.push(values.required(
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            )),
            "In" | "NotIn" => {}
            other => errors.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
        }
        if key.str() == "metadata.name" {
            values.items().for_each(|value| value.check(names::dns_subdomain, errors));
        } else {
            errors.push(FieldError::invalid(&key.path, key.str(), "not a valid field selector key"));
        }
    }
}

fn check_pod_term(term: &At<'_>, errors: &mut ErrorList) {
    let selector = term.get("labelSelector");
    check_label_selector(&selector, errors);
    check_label_selector(&term.get("namespaceSelector"), errors);
    for namespace in term.get("namespaces").items() {
        namespace.with_path(format!("{}.namespace", term.path)).check(names::dns_label, errors);
    }
    let (matching, mismatching) = (term.get("matchLabelKeys"), term.get("mismatchLabelKeys"));
    for keys in [&matching, &mismatching] {
        if keys.is_empty() {
            continue;
        }
        if !selector.is_set() {
            errors.push(keys.forbidden("must not be specified when labelSelector is not set"));
        }
        keys.items().for_each(|key| key.check(names::qualified, errors));
    }
    for key in matching.items().filter(|k| mismatching.items().any(|m| m.str() == k.str())) {
        errors.push(key.invalid("exists in both matchLabelKeys and mismatchLabelKeys"));
    }
    let topology = term.get("topologyKey");
    if topology.is_empty() {
        errors.push(topology.required("can not be empty"));
    }
    let wrong = names::qualified(topology.str());
    errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&topology.path, topology.str(), m)));
}

fn check_taint_effect(effect: &At<'_>, errors: &mut ErrorList) {
    effect.check_one_of(TAINT_EFFECTS, errors);
}

/// Refuses bad tolerations of a pod.
pub fn check_tolerations(tolerations: &At<'_>, errors: &mut ErrorList) {
    for toleration in tolerations.items() {
        let [key, operator, value, effect] =
            ["key", "operator", "value", "effect"].map(|field| toleration.get(field));
        if !key.is_empty() {
            key.check(names::qualified, errors);
        }
        if key.is_empty() && operator.str() != "Exists" {
            errors.push(FieldError::invalid(
                &operator.path,
                operator.str(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if toleration.get("tolerationSeconds").is_set() && effect.str() != "NoExecute" {
            errors.push(FieldError::invalid(
                &effect.path,
                effect.str(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator.str() {
            "" | "Equal" => {
                let wrong = names::label_value(value.str());
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(&operator.path, value.str(), wrong.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let at = toleration.with_path(&operator.path);
                let error = at.invalid("value must be empty when `operator` is 'Exists'");
                errors.push(error.as_struct("Key= Operator= Value= Effect= TolerationSeconds"));
            }
            "Exists" => {}
            _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
        }
        check_taint_effect(&effect, errors);
    }
}

/// Refuses bad taints of a node.
pub fn check_taints(taints: &At<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for taint in taints.items() {
        let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
        let wrong = names::qualified(key.str());
        errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&key.path, key.str(), m)));
        let wrong = names::label_value(value.str());
        if !wrong.is_empty() {
            errors.push(value.invalid(wrong.join(";")));
        }
        effect.check_required_one_of(TAINT_EFFECTS, errors);
        let pair = (key.str(), effect.str());
        if seen.contains(&pair) {
            let mut error = taint.duplicate().as_struct("Key= Value= Effect= TimeAdded");
            "taints must be unique by key and effect pair".clone_into(&mut error.detail);
            errors.push(error);
        }
        seen.push(pair);
    }
}

/// Refuses bad topology spread constraints of a pod.
pub fn check_topology_spread(constraints: &At<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for constraint in constraints.items() {
        let (skew, key) = (constraint.get("maxSkew"), constraint.get("topologyKey"));
        let (action, domains) = (constraint.get("whenUnsatisfiable"), constraint.get("minDomains"));
        if skew.int().unwrap_or(0) <= 0 {
            let number = skew.int().unwrap_or(0);
            errors.push(FieldError::invalid(&skew.path, number, "must be greater than zero"));
        }
        if key.is_empty() {
            errors.push(key.required("can not be empty"));
        }
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action.str()) {
            let at = At { value: &action.str().into(), path: action.path.clone() };
            errors.push(at.not_supported(&["DoNotSchedule", "ScheduleAnyway"]));
        }
        let pair = (key.str(), action.str());
        if seen.contains(&pair) {
            let path = format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path);
            errors.push(FieldError::duplicate(path, format!("{{{}, {}}}", pair.0, pair.1)));
        }
        seen.push(pair);
        if let Some(number) = domains.int() {
            if number <= 0 {
                errors.push(domains.invalid("must be greater than zero"));
            }
            if action.str() != "DoNotSchedule" {
                errors.push(domains.invalid(format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    action.str()
                )));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint.get(policy).check_one_of(&["Honor", "Ignore"], errors);
        }
        let (keys, selector) = (constraint.get("matchLabelKeys"), constraint.get("labelSelector"));
        if !keys.is_empty() && !selector.is_set() {
            errors.push(keys.forbidden("must not be specified when labelSelector is not set"));
        }
        for key in keys.items() {
            key.check(names::qualified, errors);
            let in_labels = selector.get("matchLabels").entries().any(|(k, _)| k == key.str());
            let mut expressions = selector.get("matchExpressions").items();
            if in_labels || expressions.any(|e| e.get("key").str() == key.str()) {
                errors.push(key.invalid("exists in both matchLabelKeys and labelSelector"));
            }
        }
        check_label_selector(&selector, errors);
    }
}
