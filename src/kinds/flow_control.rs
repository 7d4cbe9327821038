//! FlowSchemas and PriorityLevelConfigurations: kept and checked for clients that write them. The API
//! bounds its work by connections and body sizes, not by these.

use serde_json::{Value, json};

use super::{
    ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, text, text_or},
    edit::{child, present, set_default, set_default_empty},
    meta, names,
    registry::row,
};

pub const FLOW_SCHEMA: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        text("PriorityLevel", "spec.priorityLevelConfiguration.name"),
        text("MatchingPrecedence", "spec.matchingPrecedence"),
        text("DistinguisherMethod", "spec.distinguisherMethod"),
        AGE,
        text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
    ],
    strategy: Strategy {
        default: |schema| set_default_empty(child(schema, "spec"), "matchingPrecedence", PRECEDENCE_DEFAULT),
        validate: |schema| meta::check(schema, false, names::dns_subdomain, check_schema),
        table_rank: Some(|schema| columns::number(&schema["spec"]["matchingPrecedence"])),
        cells: |schema, now| {
            let spec = &schema["spec"];
            let dangling = schema["status"]["conditions"].as_array().into_iter().flatten();
            let missing = dangling.filter(|c| c["type"] == "Dangling").map(|c| c["status"].clone()).next();
            vec![
                columns::name(schema),
                spec["priorityLevelConfiguration"]["name"].clone(),
                columns::number(&spec["matchingPrecedence"]).into(),
                text_or(&spec["distinguisherMethod"]["type"], "<none>"),
                columns::age(schema, now).into(),
                missing.unwrap_or_else(|| "?".into()),
            ]
        },
        ..Strategy::SPEC_AND_STATUS
    },
    ..row(GROUP, "v1", "FlowSchema", "flowschemas", "flowschema", "io.k8s.api.flowcontrol.v1.FlowSchema")
};

pub const PRIORITY_LEVEL_CONFIGURATION: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        text("Type", "spec.type"),
        text("NominalConcurrencyShares", "spec.limited.nominalConcurrencyShares"),
        text("Queues", "spec.limited.limitResponse.queuing.queues"),
        text("HandSize", "spec.limited.limitResponse.queuing.handSize"),
        text("QueueLengthLimit", "spec.limited.limitResponse.queuing.queueLengthLimit"),
        AGE,
    ],
    strategy: Strategy {
        default: default_level,
        validate: |level| meta::check(level, false, names::dns_subdomain, check_level),
        cells: level_cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row(
        GROUP,
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
    )
};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const PRECEDENCE_DEFAULT: i64 = 1000;
const PRECEDENCE_MAX: i64 = 10_000;
/// The schema and level that are never queued.
const EXEMPT: &str = "exempt";
const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// The configurations that upstream makes mandatory, as (version and kind, object).
pub fn mandatory() -> [(&'static str, &'static str, Value); 4] {
    const VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let everything = |subjects: Value| {
        json!([{"subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
                "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}])
    };
    let meta =
        |name: &str| json!({"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}});
    let level = |name: &str, spec: Value| json!({"metadata": meta(name), "spec": spec});
    let schema = |name: &str, precedence: i64, rules: Value| {
        json!({"metadata": meta(name), "spec": {"priorityLevelConfiguration": {"name": name},
            "matchingPrecedence": precedence, "rules": rules}})
    };
    let mut catch_all = schema(
        "catch-all",
        PRECEDENCE_MAX,
        everything(json!([group("system:unauthenticated"), group("system:authenticated")])),
    );
    catch_all["spec"]["distinguisherMethod"] = json!({"type": "ByUser"});
    let limited =
        json!({"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
    [
        (
            VERSION,
            "PriorityLevelConfiguration",
            level(
                EXEMPT,
                json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}),
            ),
        ),
        (
            VERSION,
            "PriorityLevelConfiguration",
            level("catch-all", json!({"type": "Limited", "limited": limited})),
        ),
        (VERSION, "FlowSchema", schema(EXEMPT, 1, everything(json!([group("system:masters")])))),
        (VERSION, "FlowSchema", catch_all),
    ]
}

fn default_level(level: &mut Value) {
    let spec = child(level, "spec");
    if spec["type"] == "Exempt" {
        let exempt = child(spec, "exempt");
        set_default(exempt, "nominalConcurrencyShares", 0);
        set_default(exempt, "lendablePercent", 0);
    }
    if let Some(limited) = present(spec, "limited") {
        set_default(limited, "nominalConcurrencyShares", 30);
        set_default(limited, "lendablePercent", 0);
        if let Some(queuing) = present(limited, "limitResponse").and_then(|r| present(r, "queuing")) {
            set_default_empty(queuing, "handSize", 8);
            set_default_empty(queuing, "queues", 64);
            set_default_empty(queuing, "queueLengthLimit", 50);
        }
    }
}

fn level_cells(level: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let spec = &level["spec"];
    let limited = &spec["limited"];
    let queuing = &limited["limitResponse"]["queuing"];
    let shown = |value: &Value| if value.is_null() { "<none>".into() } else { value.clone() };
    vec![
        columns::name(level),
        spec["type"].clone(),
        shown(&limited["nominalConcurrencyShares"]),
        shown(&queuing["queues"]),
        shown(&queuing["handSize"]),
        shown(&queuing["queueLengthLimit"]),
        columns::age(level, now).into(),
    ]
}

fn check_schema(schema: &At<'_>, errors: &mut ErrorList) {
    let (spec, name) = (schema.get("spec"), schema.get("metadata").get("name"));
    let precedence = spec.get("matchingPrecedence");
    match precedence.int().unwrap_or(0) {
        ..=0 => errors.push(precedence.invalid("must be a positive value")),
        1 if name.str() != EXEMPT => {
            errors.push(precedence.invalid("only the schema named 'exempt' may have matchingPrecedence 1"));
        }
        PRECEDENCE_MAX.. if precedence.int() != Some(PRECEDENCE_MAX) => {
            errors.push(precedence.invalid(format!("must not be greater than {PRECEDENCE_MAX}")));
        }
        _ => {}
    }
    let method = spec.get("distinguisherMethod");
    if method.is_set() && !["ByNamespace", "ByUser"].contains(&method.get("type").str()) {
        errors.push(method.get("type").not_supported(&["ByNamespace", "ByUser"]));
    }
    let level = spec.get("priorityLevelConfiguration").get("name");
    if level.is_empty() {
        errors.push(level.required("must reference a priority level"));
    } else {
        level.check(names::dns_subdomain, errors);
    }
    for rule in spec.get("rules").items() {
        check_rule(&rule, errors);
    }
}

fn check_rule(rule: &At<'_>, errors: &mut ErrorList) {
    let [subjects, resources, others] =
        ["subjects", "resourceRules", "nonResourceRules"].map(|f| rule.get(f));
    if subjects.is_empty() {
        errors.push(subjects.required("subjects must contain at least one value"));
    }
    subjects.items().for_each(|subject| check_subject(&subject, errors));
    if resources.is_empty() && others.is_empty() {
        errors.push(rule.required("at least one of resourceRules and nonResourceRules has to be non-empty"));
    }
    for resource in resources.items() {
        check_verbs(&resource.get("verbs"), errors);
        for (field, words) in [("apiGroups", "api group"), ("resources", "resource")] {
            let list = resource.get(field);
            if list.is_empty() {
                errors.push(list.required(&format!("resource rules must supply at least one {words}")));
            } else {
                check_wildcard(&list, &format!("{words}s"), errors);
            }
        }
        let namespaces = resource.get("namespaces");
        if namespaces.is_empty() && !resource.get("clusterScope").is_true() {
            errors.push(
                namespaces.required(
                    "resource rules that are not cluster scoped must supply at least one namespace",
                ),
            );
        } else if has_wildcard(&namespaces) {
            check_wildcard(&namespaces, "namespaces", errors);
        } else {
            for namespace in namespaces.items() {
                let wrong = names::dns_label(namespace.str());
                errors.extend(wrong.into_iter().map(|why| {
                    namespace
                        .invalid(format!("each member of this list must be '*' or a DNS-1123 label; {why}"))
                }));
            }
        }
    }
    for other in others.items() {
        check_verbs(&other.get("verbs"), errors);
        let urls = other.get("nonResourceURLs");
        if urls.is_empty() {
            errors.push(urls.required("nonResourceURLs must contain at least one value"));
        } else if has_wildcard(&urls) {
            check_wildcard(&urls, "non-resource URLs", errors);
        } else {
            for url in urls.items().filter(|url| !url.str().starts_with('/')) {
                errors.push(url.invalid("must start with slash"));
            }
        }
    }
}

fn check_subject(subject: &At<'_>, errors: &mut ErrorList) {
    const PARTS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = subject.get("kind");
    let Some((_, own)) = PARTS.iter().find(|(k, _)| *k == kind.str()) else {
        errors.push(kind.not_supported(&["Group", "ServiceAccount", "User"]));
        return;
    };
    let part = subject.get(own);
    if part.is_set() {
        part.get("name").check_required(errors);
        let namespace = part.get("namespace");
        if *own == "serviceAccount" && namespace.is_empty() {
            errors.push(namespace.required("must specify namespace for service account"));
        }
    } else {
        errors.push(part.required(&format!("{own} is required when subject kind is '{}'", kind.str())));
    }
    for (kind, other) in PARTS.iter().filter(|(_, field)| field != own && subject.get(field).is_set()) {
        let why = format!("{other} is forbidden when subject kind is not '{kind}'");
        errors.push(subject.get(other).forbidden(why));
    }
}

fn check_verbs(verbs: &At<'_>, errors: &mut ErrorList) {
    if verbs.is_empty() {
        errors.push(verbs.required("verbs must contain at least one value"));
    } else if has_wildcard(verbs) {
        check_wildcard(verbs, "verbs", errors);
    } else if verbs.items().any(|verb| !VERBS.contains(&verb.str())) {
        errors.push(verbs.not_supported(VERBS));
    }
}

fn has_wildcard(list: &At<'_>) -> bool {
    list.items().any(|item| item.str() == "*")
}

fn check_wildcard(list: &At<'_>, what: &str, errors: &mut ErrorList) {
    if list.len() > 1 && has_wildcard(list) {
        errors.push(list.invalid(format!("if '*' is present, must not specify other {what}")));
    }
}

fn check_level(level: &At<'_>, errors: &mut ErrorList) {
    let (spec, name) = (level.get("spec"), level.get("metadata").get("name"));
    let kind = spec.get("type");
    if (name.str() == EXEMPT) != (kind.str() == "Exempt") {
        errors.push(kind.invalid("type must be 'Exempt' if and only if name is 'exempt'"));
    }
    let (exempt, limited) = (spec.get("exempt"), spec.get("limited"));
    match kind.str() {
        "Exempt" => {
            if limited.is_set() {
                errors.push(limited.forbidden("must be nil if the type is not Limited"));
            }
            check_shares(&exempt, errors);
        }
        "Limited" => {
            if exempt.is_set() {
                errors.push(exempt.forbidden("must be nil if the type is Limited"));
            }
            if limited.is_set() {
                check_limited(&limited, errors);
            } else {
                errors.push(limited.required("must not be empty when type is Limited"));
            }
        }
        _ => errors.push(kind.not_supported(&["Exempt", "Limited"])),
    }
}

fn check_shares(part: &At<'_>, errors: &mut ErrorList) {
    let (shares, lendable) = (part.get("nominalConcurrencyShares"), part.get("lendablePercent"));
    if shares.int().is_some_and(|n| n < 0) {
        errors.push(shares.invalid("must be a non-negative integer"));
    }
    if lendable.int().is_some_and(|n| !(0..=100).contains(&n)) {
        errors.push(lendable.invalid("must be between 0 and 100, inclusive"));
    }
}

fn check_limited(limited: &At<'_>, errors: &mut ErrorList) {
    check_shares(limited, errors);
    let borrowing = limited.get("borrowingLimitPercent");
    if borrowing.int().is_some_and(|n| n < 0) {
        errors.push(borrowing.invalid("if specified, must be a non-negative integer"));
    }
    let response = limited.get("limitResponse");
    let (kind, queuing) = (response.get("type"), response.get("queuing"));
    match kind.str() {
        "Reject" if queuing.is_set() => {
            errors.push(queuing.forbidden("must be nil if limited.limitResponse.type is not Limited"));
        }
        "Reject" => {}
        "Queue" if !queuing.is_set() => {
            errors.push(queuing.required("must not be empty if limited.limitResponse.type is Limited"));
        }
        "Queue" => {
            let [length, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(|f| queuing.get(f));
            for number in [&length, &queues, &hand] {
                if number.int().unwrap_or(0) <= 0 {
                    errors.push(number.invalid("must be positive"));
                }
            }
            if hand.int() > queues.int() {
                let queues = queues.int().unwrap_or(0);
                errors.push(hand.invalid(format!("should not be greater than queues ({queues})")));
            }
        }
        _ => errors.push(kind.not_supported(&["Queue", "Reject"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: &Kind, mut object: Value) -> Vec<String> {
        (kind.strategy.default)(&mut object);
        (kind.strategy.validate)(&object).iter().map(ToString::to_string).collect()
    }

    fn made(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
    }

    #[test]
    fn the_mandatory_ones_are_valid_and_need_no_defaults() {
        for (_, kind, object) in mandatory() {
            let row = if kind == "FlowSchema" { &FLOW_SCHEMA } else { &PRIORITY_LEVEL_CONFIGURATION };
            let name = object["metadata"]["name"].as_str().unwrap();
            assert_eq!(texts(row, made(name, object["spec"].clone())), [""; 0], "{kind} {name}");
            let mut defaulted = object.clone();
            (row.strategy.default)(&mut defaulted);
            assert_eq!(defaulted, object);
        }
    }

    #[test]
    fn wrong_ones_are_refused_in_upstreams_words() {
        let subject = json!({"kind": "User", "group": {"name": "g"}});
        let rule = json!({"subjects": [subject], "resourceRules": [{"verbs": ["fly"], "apiGroups": ["*", "apps"],
            "resources": ["pods"], "namespaces": ["A"]}]});
        let schema = made(
            "a",
            json!({"matchingPrecedence": 1, "rules": [rule], "distinguisherMethod": {"type": "X"}}),
        );
        let rules = "spec.rules[0]";
        assert_eq!(
            texts(&FLOW_SCHEMA, schema),
            [
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1".to_owned(),
                "spec.distinguisherMethod.type: Unsupported value: \"X\": supported values: \"ByNamespace\", \"ByUser\"".to_owned(),
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level".to_owned(),
                format!("{rules}.subjects[0].user: Required value: user is required when subject kind is 'User'"),
                format!("{rules}.subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'"),
                format!("{rules}.resourceRules[0].verbs: Unsupported value: [\"fly\"]: supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\""),
                format!("{rules}.resourceRules[0].apiGroups: Invalid value: [\"*\",\"apps\"]: if '*' is present, must not specify other api groups"),
                format!("{rules}.resourceRules[0].namespaces[0]: Invalid value: \"A\": each member of this list must be '*' or a DNS-1123 label; a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"),
            ]
        );
        let level = |spec: Value| texts(&PRIORITY_LEVEL_CONFIGURATION, made("a", spec));
        assert_eq!(
            level(json!({"type": "Exempt"})),
            ["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'"]
        );
        let queue = json!({"type": "Queue", "queuing": {"handSize": 9, "queues": 2}});
        assert_eq!(
            level(json!({"type": "Limited", "limited": {"lendablePercent": 101, "limitResponse": queue}})),
            [
                "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 9: should not be greater than queues (2)",
            ]
        );
        let reject = json!({"limitResponse": {"type": "Reject"}});
        assert_eq!(level(json!({"type": "Limited", "limited": reject})), [""; 0]);
    }
}
