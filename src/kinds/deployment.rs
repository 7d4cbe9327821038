//! Deployments.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, TEMPLATE, number, template_cells, text},
    edit::{child, drop_empty, set_default, set_default_empty},
    labels, meta, names,
    pod_template::default_template,
    pod_warnings,
    registry::row,
    workload::{
        check_at_most_all, check_int_or_percent, check_numbers, check_selector_and_template,
        check_selector_unchanged, int_or_percent, ready_cell,
    },
};

pub const DEPLOYMENT: Kind = Kind {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |new| {
            new["status"] = json!({});
            new["metadata"]["generation"] = 1.into();
        },
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                check_spec(&object.get("spec"), errors);
            })
        },
        validate_update: |new, old| meta::check_update(new, old, check_selector_unchanged),
        warnings: pod_warnings::of_workload,
        cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("apps", "v1", "Deployment", "deployments", "deployment", "io.k8s.api.apps.v1.Deployment")
};

/// Old ReplicaSets that are kept for a rollback.
pub const REVISION_HISTORY_LIMIT: i64 = 10;
/// How long a rollout may stand still (seconds).
const PROGRESS_DEADLINE_SECONDS: i64 = 600;

fn default(deployment: &mut Value) {
    let spec = child(deployment, "spec");
    drop_empty(spec, &["minReadySeconds", "paused"]);
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", REVISION_HISTORY_LIMIT);
    set_default(spec, "progressDeadlineSeconds", PROGRESS_DEADLINE_SECONDS);
    let strategy = child(spec, "strategy");
    set_default_empty(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", "25%");
        set_default(rolling, "maxSurge", "25%");
    }
    default_template(child(spec, "template"));
}

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    check_numbers(spec, &["replicas"], errors);
    check_selector_and_template(
        spec,
        "empty selector is invalid for deployment",
        "activeDeadlineSeconds in ReplicaSet is not Supported",
        &[],
        errors,
    );
    check_strategy(&spec.get("strategy"), errors);
    check_numbers(spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], errors);
    let deadline = spec.get("progressDeadlineSeconds");
    if deadline.int().is_some_and(|s| s <= number(spec.get("minReadySeconds").value)) {
        errors.push(deadline.invalid("must be greater than minReadySeconds"));
    }
}

fn check_strategy(strategy: &At<'_>, errors: &mut ErrorList) {
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").str() {
        "Recreate" => {
            if rolling.is_set() {
                errors.push(rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"));
            }
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            check_int_or_percent(&unavailable, errors);
            check_int_or_percent(&surge, errors);
            if int_or_percent(unavailable.value) == 0 && int_or_percent(surge.value) == 0 {
                errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
            }
            check_at_most_all(&unavailable, errors);
        }
        _ => {
            let error = strategy.not_supported(&["Recreate", "RollingUpdate"]);
            errors.push(error.as_struct("Type= RollingUpdate"));
        }
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Number of the pod with ready state"),
    text("Up-to-date", "status.updatedReplicas"),
    text("Available", "status.availableReplicas"),
    AGE,
    TEMPLATE[0],
    TEMPLATE[1],
    TEMPLATE[2],
];

fn cells(deployment: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let mut cells = vec![
        columns::name(deployment),
        ready_cell(deployment),
        number(&status["updatedReplicas"]).into(),
        number(&status["availableReplicas"]).into(),
        columns::age(deployment, now).into(),
    ];
    cells.extend(template_cells(spec, labels::format_json(&spec["selector"])));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        let mut object = json!({
            "metadata": {"name": "d", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j:1"}]}}},
        });
        default(&mut object);
        object
    }

    fn errors(object: &Value) -> Vec<String> {
        (DEPLOYMENT.strategy.validate)(object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let object = deployment();
        let spec = &object["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            (&spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
            (&json!(10), &json!(600))
        );
        assert_eq!(errors(&object), Vec::<String>::new());
    }

    #[test]
    fn bad_ones_are_refused_in_upstreams_words() {
        let mut wrong = deployment();
        wrong["spec"]["template"]["metadata"]["labels"] = json!({"a": "c"});
        wrong["spec"]["replicas"] = (-1).into();
        wrong["spec"]["strategy"]["rollingUpdate"] = json!({"maxUnavailable": 0, "maxSurge": "0%"});
        wrong["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        assert_eq!(
            errors(&wrong),
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ]
        );
        let mut other = deployment();
        other["spec"]["selector"] = json!({"matchLabels": {"a": "c"}});
        let texts: Vec<_> = (DEPLOYMENT.strategy.validate_update)(&other, &deployment())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"]
        );
    }

    #[test]
    fn a_row_shows_what_kubectl_shows() {
        let mut object = deployment();
        object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        object["status"] = json!({"readyReplicas": 1, "updatedReplicas": 2});
        let now = "2026-01-01T00:05:00Z".parse().expect("time");
        assert_eq!(
            cells(&object, now),
            [
                json!("d"),
                json!("1/1"),
                json!(2),
                json!(0),
                json!("5m"),
                json!("c,d"),
                json!("i,j:1"),
                json!("a=b")
            ]
        );
    }
}
