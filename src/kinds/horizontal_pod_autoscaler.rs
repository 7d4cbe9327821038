//! HorizontalPodAutoscalers, in their two forms: autoscaling/v2 (stored) and v1.

use serde_json::{Map, Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, StoredAs, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, number, text},
    edit::{child, drop_empty, each, present, set_default},
    meta, names,
    quantity::{Quantity, canonicalize},
    registry::row,
    resource_names,
};

pub const HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |new| new["status"] = json!({"currentMetrics": null, "desiredReplicas": 0}),
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                check_spec(&object.get("spec"), errors);
            })
        },
        cells,
        ..Strategy::WITH_STATUS
    },
    ..row(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    )
};

/// Its strategy works on the stored form.
pub const HORIZONTAL_POD_AUTOSCALER_V1: Kind = Kind {
    version: "v1",
    schema: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
    stored_as: Some(StoredAs {
        group: "autoscaling",
        version: "v2",
        plural: "horizontalpodautoscalers",
        to_stored,
        from_stored,
    }),
    ..HORIZONTAL_POD_AUTOSCALER
};

/// The CPU use to aim at when no metric is named (percent of what is requested).
const CPU_PERCENT: i64 = 80;

fn cpu_metric(percent: i64) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    set_default(spec, "minReplicas", 1);
    drop_empty(spec, &["metrics"]);
    set_default(spec, "metrics", json!([cpu_metric(CPU_PERCENT)]));
    for metric in each(spec, "metrics") {
        let Some(source) = source_field(metric) else { continue };
        if let Some(target) = present(metric, source).and_then(|s| present(s, "target")) {
            for amount in ["value", "averageValue"] {
                if let Some(amount) = present(target, amount) {
                    canonicalize(amount);
                }
            }
        }
    }
    if let Some(behavior) = present(spec, "behavior") {
        let policy = |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
        let up = child(behavior, "scaleUp");
        set_default(up, "stabilizationWindowSeconds", 0);
        set_default(up, "selectPolicy", "Max");
        set_default(up, "policies", json!([policy("Pods", 4), policy("Percent", 100)]));
        let down = child(behavior, "scaleDown");
        set_default(down, "selectPolicy", "Max");
        set_default(down, "policies", json!([policy("Percent", 100)]));
    }
}

/// The field that holds what a metric's type names.
fn source_field(metric: &Value) -> Option<&'static str> {
    match metric["type"].as_str()? {
        "Resource" => Some("resource"),
        "ContainerResource" => Some("containerResource"),
        "Pods" => Some("pods"),
        "Object" => Some("object"),
        "External" => Some("external"),
        _ => None,
    }
}

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    let (min, max) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    let (low, high) = (number(min.value), number(max.value));
    if min.is_set() && low < 1 {
        errors.push(min.invalid("must be greater than or equal to 1"));
    }
    if high < 1 {
        errors.push(At { value: &high.into(), path: max.path.clone() }.invalid("must be greater than 0"));
    }
    if min.is_set() && high < low {
        let at = At { value: &high.into(), path: max.path };
        errors.push(at.invalid("must be greater than or equal to `minReplicas`"));
    }
    let target = spec.get("scaleTargetRef");
    for field in ["kind", "name"] {
        target.get(field).check_required_name(names::path_segment, errors);
    }
    for metric in spec.get("metrics").items() {
        check_metric(&metric, errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.get("behavior").get(direction);
        if rules.is_set() {
            check_rules(&rules, errors);
        }
    }
}

/// How long a recommendation is remembered, and the period of a policy (seconds).
const STABILIZATION_SECONDS_MAX: i64 = 3600;
const PERIOD_SECONDS_MAX: i64 = 1800;

fn check_rules(rules: &At<'_>, errors: &mut ErrorList) {
    let window = rules.get("stabilizationWindowSeconds");
    if window.int().is_some_and(|s| s < 0) {
        errors.push(window.invalid("must be greater than or equal to zero"));
    }
    if window.int().is_some_and(|s| s > STABILIZATION_SECONDS_MAX) {
        errors.push(window.invalid(format!("must be less than or equal to {STABILIZATION_SECONDS_MAX}")));
    }
    rules.get("selectPolicy").check_one_of(&["Disabled", "Max", "Min"], errors);
    let policies = rules.get("policies");
    if policies.is_empty() {
        errors.push(policies.required("must specify at least one Policy"));
    }
    for policy in policies.items() {
        let kind = policy.get("type");
        if !["Percent", "Pods"].contains(&kind.str()) {
            errors.push(kind.not_supported(&["Percent", "Pods"]));
        }
        for field in ["value", "periodSeconds"] {
            if number(policy.get(field).value) <= 0 {
                errors.push(policy.get(field).invalid("must be greater than zero"));
            }
        }
        let period = policy.get("periodSeconds");
        if period.int().is_some_and(|s| s > PERIOD_SECONDS_MAX) {
            errors.push(period.invalid(format!("must be less than or equal to {PERIOD_SECONDS_MAX}")));
        }
    }
    let tolerance = rules.get("tolerance");
    if Quantity::from_json(tolerance.value).is_ok_and(Quantity::is_negative) {
        errors.push(tolerance.invalid("must be greater or equal to zero"));
    }
}

/// The fields of a metric in the order in which they are looked at, and the types that they are for.
const METRIC_SOURCES: [(&str, &str); 5] = [
    ("object", "Object"),
    ("external", "External"),
    ("pods", "Pods"),
    ("resource", "Resource"),
    ("containerResource", "ContainerResource"),
];

fn check_metric(metric: &At<'_>, errors: &mut ErrorList) {
    let kind = metric.get("type");
    if kind.is_empty() {
        errors.push(kind.required("must specify a metric source type"));
    }
    let expected = METRIC_SOURCES.iter().find(|(_, own)| *own == kind.str()).map(|(field, _)| *field);
    if expected.is_none() {
        let mut types = METRIC_SOURCES.map(|(_, kind)| kind);
        types.sort_unstable();
        errors.push(At { value: &kind.str().into(), path: kind.path.clone() }.not_supported(&types));
    }
    let present: Vec<&str> =
        METRIC_SOURCES.iter().map(|(f, _)| *f).filter(|f| metric.get(f).is_set()).collect();
    if let Some(first) = present.first() {
        check_source(first, &metric.get(first), errors);
    }
    if let Some(expected) = expected.filter(|field| !metric.get(field).is_set()) {
        let detail = "must populate information for the given metric source";
        errors.push(metric.get(expected).required(detail));
    }
    if present.len() != 1 {
        for other in present.iter().filter(|field| Some(**field) != expected) {
            errors.push(metric.get(other).forbidden("must populate the given metric source only"));
        }
    }
}

fn check_source(field: &str, source: &At<'_>, errors: &mut ErrorList) {
    let named = |at: &At<'_>, what: &str, rule: names::Rule, errors: &mut ErrorList| {
        if at.is_empty() {
            errors.push(at.required(&format!("must specify a {what}")));
        } else {
            at.check(rule, errors);
        }
    };
    let of_resource = matches!(field, "resource" | "containerResource");
    if field == "object" {
        for part in ["kind", "name"] {
            source.get("describedObject").get(part).check_required_name(names::path_segment, errors);
        }
    }
    if of_resource {
        let name = source.get("name");
        if name.is_empty() {
            errors.push(name.required("must specify a resource name"));
        } else if field == "containerResource" {
            resource_names::check_container_name(name.str(), &name, errors);
        }
    } else {
        named(&source.get("metric").get("name"), "metric name", names::path_segment, errors);
    }
    if field == "containerResource" {
        named(&source.get("container"), "container", names::dns_label, errors);
    }
    let target = source.get("target");
    check_target(&target, errors);
    let [value, average, percent] =
        ["value", "averageValue", "averageUtilization"].map(|amount| target.get(amount));
    match field {
        "object" if !value.is_set() && !average.is_set() => {
            errors.push(average.required("must set either a target value or averageValue"));
        }
        "external" if !value.is_set() && !average.is_set() => {
            errors.push(average.required("must set either a target value for metric or a per-pod target"));
        }
        "external" if value.is_set() && average.is_set() => {
            errors.push(value.forbidden("may not set both a target value for metric and a per-pod target"));
        }
        "pods" if !average.is_set() => {
            errors.push(average.required("must specify a positive target averageValue"));
        }
        _ if of_resource && !percent.is_set() && !average.is_set() => {
            errors.push(percent.required("must set either a target raw value or a target utilization"));
        }
        _ if of_resource && percent.is_set() && average.is_set() => {
            errors.push(average.forbidden("may not set both a target raw value and a target utilization"));
        }
        _ => {}
    }
}

fn check_target(target: &At<'_>, errors: &mut ErrorList) {
    let kind = target.get("type");
    if kind.is_empty() {
        errors.push(kind.required("must specify a metric target type"));
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind.str()) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(&kind.path, kind.str(), detail));
    }
    for amount in ["value", "averageValue"].map(|field| target.get(field)) {
        if amount.is_set() && Quantity::from_json(amount.value).is_ok_and(|q| q <= Quantity::ZERO) {
            errors.push(amount.invalid("must be positive"));
        }
    }
    let percent = target.get("averageUtilization");
    if percent.int().is_some_and(|p| p < 1) {
        errors.push(percent.invalid("must be greater than 0"));
    }
}

/// Where autoscaling/v1 keeps what it has no field for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn set_type(object: &mut Value, api_version: &str) {
    object["apiVersion"] = api_version.into();
    object["kind"] = "HorizontalPodAutoscaler".into();
}

fn is_cpu(metric: &Value) -> bool {
    metric["resource"]["name"] == "cpu" && metric["resource"]["target"]["averageUtilization"].is_number()
}

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?;
    let text = metadata.get_mut("annotations")?.as_object_mut()?.remove(key)?;
    drop_empty(metadata, &["annotations"]);
    serde_json::from_str(text.as_str()?).ok()
}

fn to_stored(mut object: Value) -> Value {
    set_type(&mut object, "autoscaling/v2");
    let others = take_annotation(&mut object, METRICS);
    let behavior = take_annotation(&mut object, BEHAVIOR);
    if let Some(spec) = present(&mut object, "spec") {
        let percent = spec.get("targetCPUUtilizationPercentage").and_then(Value::as_i64);
        super::remove(spec, "targetCPUUtilizationPercentage");
        let mut metrics: Vec<Value> = percent.map(cpu_metric).into_iter().collect();
        metrics.extend(others.as_ref().and_then(Value::as_array).cloned().unwrap_or_default());
        if !metrics.is_empty() {
            spec["metrics"] = metrics.into();
        }
        if let Some(behavior) = behavior {
            spec["behavior"] = behavior;
        }
    }
    if let Some(status) = present(&mut object, "status") {
        let percent = status.get("currentCPUUtilizationPercentage").cloned();
        super::remove(status, "currentCPUUtilizationPercentage");
        if let Some(percent) = percent {
            let current = json!({"averageUtilization": percent, "averageValue": "0"});
            status["currentMetrics"] =
                json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}]);
        }
    }
    object
}

fn from_stored(mut object: Value) -> Value {
    set_type(&mut object, "autoscaling/v1");
    let mut annotations = Map::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics = match spec.remove("metrics") {
            Some(Value::Array(metrics)) => metrics,
            _ => Vec::new(),
        };
        if let Some(i) = metrics.iter().position(is_cpu) {
            let percent = metrics.remove(i)["resource"]["target"]["averageUtilization"].take();
            spec.insert("targetCPUUtilizationPercentage".to_owned(), percent);
        }
        if !metrics.is_empty() {
            annotations.insert(METRICS.to_owned(), Value::from(metrics).to_string().into());
        }
        if let Some(behavior) = spec.remove("behavior") {
            annotations.insert(BEHAVIOR.to_owned(), behavior.to_string().into());
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let metrics = status.remove("currentMetrics");
        status.remove("conditions");
        let cpu = metrics.as_ref().and_then(Value::as_array).into_iter().flatten();
        let mut cpu = cpu.filter(|m| m["resource"]["name"] == "cpu");
        if let Some(percent) = cpu.next().map(|m| &m["resource"]["current"]["averageUtilization"])
            && percent.is_number()
        {
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent.clone());
        }
        for count in ["currentReplicas", "desiredReplicas"] {
            status.entry(count).or_insert_with(|| 0.into());
        }
    }
    if !annotations.is_empty()
        && let Some(own) = child(child(&mut object, "metadata"), "annotations").as_object_mut()
    {
        own.extend(annotations);
    }
    object
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Reference", "spec.scaleTargetRef"),
    text("Targets", "spec.metrics"),
    text("MinPods", "spec.minReplicas"),
    text("MaxPods", "spec.maxReplicas"),
    text("Replicas", "status.currentReplicas"),
    AGE,
];

/// So many metrics are shown in a row.
const METRICS_SHOWN_MAX: usize = 2;

/// `cpu: 10%/80%`, `5/10 (avg)`.
fn metric_text(metric: &Value, current: Option<&Value>) -> String {
    let Some(field) = source_field(metric) else { return "<unknown type>".to_owned() };
    let target = &metric[field]["target"];
    let now = current.filter(|c| c["type"] == metric["type"]).map_or(&Value::Null, |c| &c[field]["current"]);
    let amount = |v: &Value, unset: &str| v.as_str().unwrap_or(unset).to_owned();
    let percent = |v: &Value, unset: &str| v.as_i64().map_or_else(|| unset.to_owned(), |p| format!("{p}%"));
    let is_resource = matches!(field, "resource" | "containerResource");
    let text = if !target["averageValue"].is_null() {
        let average = if is_resource || field == "pods" { "" } else { " (avg)" };
        format!(
            "{}/{}{average}",
            amount(&now["averageValue"], "<unknown>"),
            amount(&target["averageValue"], "")
        )
    } else if is_resource {
        format!(
            "{}/{}",
            percent(&now["averageUtilization"], "<unknown>"),
            percent(&target["averageUtilization"], "<auto>")
        )
    } else {
        format!("{}/{}", amount(&now["value"], "<unknown>"), amount(&target["value"], ""))
    };
    match metric[field]["name"].as_str() {
        Some(name) if is_resource => format!("{name}: {text}"),
        _ => text,
    }
}

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    let part = |field: &str| target[field].as_str().unwrap_or_default();
    let metrics = spec["metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all: Vec<String> =
        metrics.iter().enumerate().map(|(i, m)| metric_text(m, status["currentMetrics"].get(i))).collect();
    let shown = all[..all.len().min(METRICS_SHOWN_MAX)].join(", ");
    let targets = match all.len() {
        0 => "<none>".to_owned(),
        n if n > METRICS_SHOWN_MAX => format!("{shown} + {} more...", n - METRICS_SHOWN_MAX),
        _ => shown,
    };
    let min = spec["minReplicas"].as_i64().map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
    vec![
        columns::name(object),
        format!("{}/{}", part("kind"), part("name")).into(),
        targets.into(),
        min.into(),
        number(&spec["maxReplicas"]).into(),
        number(&status["currentReplicas"]).into(),
        columns::age(object, now).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1() -> Value {
        json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h", "namespace": "n"},
            "spec": {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": 50}})
    }

    #[test]
    fn the_older_form_survives_the_way_there_and_back() {
        let mut stored = to_stored(v1());
        default(&mut stored);
        assert_eq!(stored["spec"]["metrics"], json!([cpu_metric(50)]));
        assert_eq!((HORIZONTAL_POD_AUTOSCALER.strategy.validate)(&stored), []);
        assert_eq!(from_stored(stored.clone()), v1());
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
        stored["spec"]["metrics"] = json!([memory, cpu_metric(50)]);
        let mut back = to_stored(from_stored(stored.clone()));
        back["spec"]["metrics"].as_array_mut().expect("metrics").reverse();
        assert_eq!(back, stored);
        assert_eq!(
            cells(&stored, jiff::Timestamp::UNIX_EPOCH)[1..5],
            [json!("Deployment/d"), json!("memory: <unknown>/1Gi, cpu: <unknown>/50%"), json!("1"), json!(3)]
        );
    }

    #[test]
    fn bounds_and_metrics_are_checked() {
        let mut bad = to_stored(v1());
        bad["spec"]["maxReplicas"] = 0.into();
        bad["spec"]["metrics"] = json!([{"type": "Pods"}]);
        let texts: Vec<_> =
            (HORIZONTAL_POD_AUTOSCALER.strategy.validate)(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.maxReplicas: Invalid value: 0: must be greater than 0",
                "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
            ]
        );
    }
}
