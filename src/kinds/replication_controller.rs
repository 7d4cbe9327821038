//! ReplicationControllers.

use serde_json::{Value, json};

use super::{
    ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, number},
    edit::{child, drop_empty, set_default},
    labels::Selector,
    meta, names, pod_spec,
    pod_template::default_template,
    pod_warnings,
    registry::row,
    replica_set::{COLUMNS, replica_cells},
    workload::check_numbers,
};

pub const REPLICATION_CONTROLLER: Kind = Kind {
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |new| {
            new["status"] = json!({"replicas": 0});
            new["metadata"]["generation"] = 1.into();
        },
        validate: |object| {
            meta::check(object, true, names::dns_subdomain, |object, errors| {
                check_spec(&object.get("spec"), errors);
            })
        },
        warnings: pod_warnings::of_workload,
        selectable: |object| vec![("status.replicas", number(&object["status"]["replicas"]).to_string())],
        cells: |object, now| replica_cells(object, now, columns::labels(&object["spec"]["selector"])),
        ..Strategy::SPEC_AND_STATUS
    },
    ..row(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        "replicationcontroller",
        "io.k8s.api.core.v1.ReplicationController",
    )
};

fn default(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if labels.is_object() {
        let metadata = child(object, "metadata");
        drop_empty(metadata, &["labels"]);
        set_default(metadata, "labels", labels.clone());
    }
    let spec = child(object, "spec");
    drop_empty(spec, &["minReadySeconds", "selector"]);
    set_default(spec, "replicas", 1);
    if labels.is_object() {
        set_default(spec, "selector", labels);
    }
    if let Some(template) = spec.get_mut("template") {
        default_template(template);
    }
}

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    check_numbers(spec, &["minReadySeconds"], errors);
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    selector.check_required(errors);
    check_numbers(spec, &["replicas"], errors);
    if !template.is_set() {
        errors.push(template.required(""));
        return;
    }
    let selector = Selector::from_map(selector.entries().map(|(k, v)| (k, v.as_str().unwrap_or_default())));
    pod_spec::check_workload_template(
        &template,
        &selector,
        &[],
        "activeDeadlineSeconds in ReplicationController is not Supported",
        errors,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selector_and_labels_come_from_the_template() {
        let mut object = json!({"metadata": {"name": "r", "namespace": "n"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        default(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!((REPLICATION_CONTROLLER.strategy.validate)(&object), []);
    }
}
