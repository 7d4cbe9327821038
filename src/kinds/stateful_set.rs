//! StatefulSets.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, TEMPLATE, template_cells, text},
    deployment::REVISION_HISTORY_LIMIT,
    edit::{child, drop_empty, each, set_default, set_default_empty},
    meta, names, persistent_volume_claim,
    pod_template::{default_claim_spec, default_template},
    pod_warnings,
    registry::row,
    replace,
    workload::{
        check_at_most_all, check_int_or_percent, check_numbers, check_selector_and_template, ready_cell,
    },
};

pub const STATEFUL_SET: Kind = Kind {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |new| {
            new["status"] = json!({"availableReplicas": 0, "replicas": 0});
            new["metadata"]["generation"] = 1.into();
        },
        validate: |object| {
            meta::check(object, true, names::dns_label, |object, errors| {
                check_spec(&object.get("spec"), errors);
            })
        },
        validate_update: |new, old| meta::check_update(new, old, check_change),
        warnings: pod_warnings::of_workload,
        cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("apps", "v1", "StatefulSet", "statefulsets", "statefulset", "io.k8s.api.apps.v1.StatefulSet")
};

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    drop_empty(spec, &["minReadySeconds"]);
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", REVISION_HISTORY_LIMIT);
    set_default_empty(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    set_default_empty(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        set_default(child(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    set_default_empty(retention, "whenDeleted", "Retain");
    set_default_empty(retention, "whenScaled", "Retain");
    default_template(child(spec, "template"));
    for claim in each(spec, "volumeClaimTemplates") {
        set_default_empty(claim, "apiVersion", "v1");
        set_default_empty(claim, "kind", "PersistentVolumeClaim");
        default_claim_spec(child(claim, "spec"));
        set_default_empty(child(claim, "status"), "phase", "Pending");
    }
}

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    let policy = spec.get("podManagementPolicy");
    if !matches!(policy.str(), "OrderedReady" | "Parallel") {
        errors.push(policy.invalid("must be 'OrderedReady' or 'Parallel'"));
    }
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").str() {
        "OnDelete" => {
            if rolling.is_set() {
                let error = rolling.invalid("only allowed for updateStrategy 'RollingUpdate'");
                errors.push(error.as_struct("Partition0 MaxUnavailable"));
            }
        }
        "RollingUpdate" => {
            rolling.get("partition").check_not_negative(errors);
            let unavailable = rolling.get("maxUnavailable");
            if unavailable.is_set() {
                check_int_or_percent(&unavailable, errors);
                check_at_most_all(&unavailable, errors);
            }
        }
        _ => {
            let error = strategy.invalid("must be 'RollingUpdate' or 'OnDelete'");
            errors.push(error.as_struct("Type= RollingUpdate"));
        }
    }
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    for when in ["whenDeleted", "whenScaled"] {
        retention.get(when).check_one_of(&["Retain", "Delete"], errors);
    }
    check_numbers(spec, &["replicas", "minReadySeconds"], errors);
    spec.get("ordinals").get("start").check_not_negative(errors);
    let templates = spec.get("volumeClaimTemplates");
    for claim in templates.items() {
        persistent_volume_claim::check_spec(&claim.get("spec"), errors);
    }
    let claims: Vec<String> =
        templates.items().map(|t| t.get("metadata").get("name").str().to_owned()).collect();
    check_selector_and_template(
        spec,
        "empty selector is invalid for statefulset",
        "activeDeadlineSeconds in StatefulSet is not Supported",
        &claims.iter().map(String::as_str).collect::<Vec<_>>(),
        errors,
    );
}

fn check_change(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (spec, old_spec) = (new.get("spec"), old.get("spec"));
    let mut same = spec.value.clone();
    for field in [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ] {
        replace(&mut same, field, old_spec.value);
    }
    if same != *old_spec.value {
        errors.push(spec.forbidden(
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

const COLUMNS: &[Column] =
    &[NAME, text("Ready", "Number of the pod with ready state"), AGE, TEMPLATE[0], TEMPLATE[1]];

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let [names, images, _] = template_cells(&object["spec"], String::new());
    vec![columns::name(object), ready_cell(object), columns::age(object, now).into(), names, images]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_templates_are_defaulted_and_can_be_mounted() {
        let mut object = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "serviceName": "s",
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
                {"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}}]}});
        default(&mut object);
        let claim = &object["spec"]["volumeClaimTemplates"][0];
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "1Gi");
        assert_eq!(
            (&claim["kind"], &claim["status"]),
            (&json!("PersistentVolumeClaim"), &json!({"phase": "Pending"}))
        );
        assert_eq!((STATEFUL_SET.strategy.validate)(&object), []);
        let mut other = object.clone();
        other["spec"]["replicas"] = 3.into();
        assert_eq!((STATEFUL_SET.strategy.validate_update)(&other, &object), []);
        other["spec"]["serviceName"] = "t".into();
        assert_eq!((STATEFUL_SET.strategy.validate_update)(&other, &object).len(), 1);
    }
}
