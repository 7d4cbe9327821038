//! Cases of server-side apply, after upstream's behaviour.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kinds::schema::{self, Mode, lookup, sample::Sample};

fn ty(name: &str) -> &'static Type {
    lookup(&format!("io.k8s.api.{name}")).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::new(1_700_000_000 + seconds, 0).unwrap()
}

fn writer(manager: &str, seconds: i64) -> Writer<'_> {
    Writer { manager, subresource: "", now: at(seconds) }
}

/// As the API stores it.
fn stored(value: Value, ty: &'static Type) -> Value {
    schema::decode(value, ty, Mode::Drop).unwrap().0
}

fn deployment(spec: Value) -> Value {
    let mut object =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"}});
    object["spec"] = spec;
    object
}

fn applied(live: Option<&Value>, patch: &Value, manager: &str, seconds: i64) -> Value {
    let ty = ty("apps.v1.Deployment");
    stored(apply(live, patch, ty, false, writer(manager, seconds)).unwrap(), ty)
}

fn entries(object: &Value) -> Vec<(&str, &str, &Value)> {
    let entries = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries
        .iter()
        .map(|e| (e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap(), &e["fieldsV1"]))
        .collect()
}

#[test]
fn an_applied_object_records_what_was_applied() {
    let patch = deployment(json!({
        "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 80}], "args": ["x"], "resources": {}},
        ]}},
    }));
    let object = applied(None, &patch, "me", 0);
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "time": "2023-11-14T22:13:20Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {
                "f:replicas": {}, "f:selector": {},
                "f:template": {
                    "f:metadata": {"f:labels": {"f:a": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:name": {}, "f:image": {}, "f:args": {}, "f:resources": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                    }}},
                },
            }},
        }])
    );
    // Applying the same again changes nothing, not even the time.
    assert_eq!(applied(Some(&object), &patch, "me", 60), object);
}

#[test]
fn another_managers_value_is_a_conflict_unless_it_is_the_same() {
    let ty = ty("apps.v1.Deployment");
    let created = deployment(json!({"replicas": 3, "paused": true}));
    let live = track_update(None, &created, ty, writer("kubectl-client-side-apply", 0));
    let live = stored(live, ty);
    let patch = deployment(json!({"replicas": 5}));
    let ApplyError::Conflicts(conflicts) =
        apply(Some(&live), &patch, ty, false, writer("me", 1)).unwrap_err()
    else {
        panic!("no conflict")
    };
    assert_eq!(
        conflicts.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    assert_eq!(
        conflicts.causes,
        [(
            ".spec.replicas".to_owned(),
            "conflict with \"kubectl-client-side-apply\" using apps/v1".to_owned()
        )]
    );
    let forced = apply(Some(&live), &patch, ty, true, writer("me", 1)).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    let owners: Vec<_> = entries(&forced).into_iter().map(|(m, _, f)| (m, f.to_string())).collect();
    assert_eq!(
        owners,
        [
            ("me", r#"{"f:spec":{"f:replicas":{}}}"#.to_owned()),
            ("kubectl-client-side-apply", r#"{"f:spec":{"f:paused":{}}}"#.to_owned()),
        ]
    );
    let shared = apply(Some(&live), &deployment(json!({"replicas": 3})), ty, false, writer("me", 1)).unwrap();
    assert_eq!(entries(&shared).len(), 2);
    let two = deployment(json!({"replicas": 5, "paused": false}));
    assert_eq!(
        apply(Some(&live), &two, ty, false, writer("me", 1)).unwrap_err().to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n\
         - .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn what_is_no_longer_applied_goes_unless_someone_else_has_it() {
    let spec = |labels: Value, containers: Value| {
        let mut object = deployment(json!({"template": {"spec": {"containers": containers}}}));
        object["metadata"]["labels"] = labels;
        object
    };
    let both = spec(
        json!({"a": "1", "b": "1"}),
        json!([{"name": "x", "image": "x", "tty": true}, {"name": "y", "image": "y"}]),
    );
    let live = applied(None, &both, "one", 0);
    let live = applied(Some(&live), &spec(json!({"b": "1"}), json!([{"name": "x", "image": "x"}])), "two", 1);
    let less = spec(json!({}), json!([]));
    let object = applied(Some(&live), &less, "one", 2);
    assert_eq!(object["metadata"]["labels"], json!({"b": "1"}));
    let containers = &object["spec"]["template"]["spec"]["containers"];
    assert_eq!(*containers, json!([{"name": "x", "image": "x", "resources": {}}]));
    let object = applied(Some(&object), &deployment(json!({})), "two", 3);
    assert!(object["metadata"].get("labels").is_none());
    // Of the last configurations only the empty maps are left.
    assert_eq!(
        entries(&object),
        [
            ("one", "Apply", &json!({"f:metadata": {"f:labels": {}}})),
            ("two", "Apply", &json!({"f:spec": {}})),
        ]
    );
}

#[test]
fn lists_keep_the_order_of_the_applied_configuration() {
    let containers = |names: &[&str]| -> Value {
        let list: Vec<_> = names.iter().map(|n| json!({"name": n, "image": n})).collect();
        deployment(json!({"template": {"spec": {"containers": list}}}))
    };
    let live = applied(None, &containers(&["s", "a", "b", "t"]), "one", 0);
    let object = applied(Some(&live), &containers(&["b", "n", "a"]), "two", 1);
    let names: Vec<_> = object["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["s", "b", "t", "n", "a"]);
}

#[test]
fn a_create_is_tracked_as_upstream_tracks_it() {
    let ty = ty("apps.v1.Deployment");
    // With the defaults of a `kubectl create deployment`.
    let object = stored(
        deployment(json!({
            "replicas": 1, "selector": {"matchLabels": {"app": "d"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {
                "containers": [{"name": "c", "image": "i"}], "securityContext": {}, "restartPolicy": "Always",
            }},
        })),
        ty,
    );
    let tracked = track_update(None, &object, ty, writer("kubectl-create", 0));
    assert_eq!(
        entries(&tracked),
        [(
            "kubectl-create",
            "Update",
            &json!({"f:spec": {
                "f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {
                        "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}},
                        "f:restartPolicy": {}, "f:securityContext": {},
                    },
                },
            }})
        )]
    );
}

#[test]
fn an_update_takes_what_it_changes_and_only_then_renews_its_time() {
    let ty = ty("apps.v1.Deployment");
    let live = track_update(None, &deployment(json!({"replicas": 1, "paused": true})), ty, writer("a", 0));
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(2);
    new["metadata"].as_object_mut().unwrap().remove("managedFields");
    let live = track_update(Some(&live), &new, ty, writer("b", 5));
    assert_eq!(
        entries(&live),
        [
            ("a", "Update", &json!({"f:spec": {"f:paused": {}}})),
            ("b", "Update", &json!({"f:spec": {"f:replicas": {}}})),
        ]
    );
    assert_eq!(track_update(Some(&live), &live.clone(), ty, writer("b", 9)), live);
    let mut without = live.clone();
    without["spec"].as_object_mut().unwrap().remove("paused");
    let live = track_update(Some(&live), &without, ty, writer("b", 9));
    assert_eq!(entries(&live), [("b", "Update", &json!({"f:spec": {"f:replicas": {}}}))]);
    assert_eq!(live["metadata"]["managedFields"][0]["time"], "2023-11-14T22:13:25Z");
}

#[test]
fn subresources_have_entries_of_their_own() {
    let ty = ty("apps.v1.Deployment");
    let live = stored(track_update(None, &deployment(json!({"replicas": 1})), ty, writer("a", 0)), ty);
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    let main = track_update(Some(&live), &new, ty, writer("a", 1));
    assert_eq!(entries(&main).len(), 1, "status is not the main resource's");
    let live = track_update(Some(&live), &new, ty, Writer { subresource: "status", ..writer("a", 1) });
    assert_eq!(live["metadata"]["managedFields"][1]["subresource"], "status");
    assert_eq!(
        entries(&live)[1].2,
        &json!({"f:status": {
            "f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}},
            "f:replicas": {},
        }})
    );
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(4);
    let live = track_update(Some(&live), &scaled, ty, Writer { subresource: "scale", ..writer("s", 2) });
    assert_eq!(
        apply(Some(&live), &deployment(json!({"replicas": 2})), ty, false, writer("me", 3))
            .unwrap_err()
            .to_string(),
        "Apply failed with 1 conflict: conflict with \"s\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn objects_without_entries_belong_to_before_first_apply() {
    let ty = ty("apps.v1.Deployment");
    let live = stored(deployment(json!({"replicas": 1})), ty);
    assert_eq!(
        apply(Some(&live), &deployment(json!({"replicas": 2})), ty, false, writer("me", 0))
            .unwrap_err()
            .to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let ty = ty("apps.v1.Deployment");
    let mut created = deployment(json!({"replicas": 1}));
    created["metadata"]["annotations"] =
        json!({LAST_APPLIED: deployment(json!({"replicas": 1})).to_string()});
    let live = stored(track_update(None, &created, ty, writer("kubectl-client-side-apply", 0)), ty);
    let patch = deployment(json!({"replicas": 2}));
    assert!(apply(Some(&live), &patch, ty, false, writer("other", 1)).is_err());
    let object = apply(Some(&live), &patch, ty, false, writer("kubectl", 1)).unwrap();
    assert_eq!(object["spec"]["replicas"], 2);
    assert_eq!(object["metadata"]["annotations"][LAST_APPLIED], format!("{patch}\n"));
}

#[test]
fn old_updaters_are_merged() {
    let ty = ty("core.v1.ConfigMap");
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {}});
    for i in 0..12 {
        let mut new = live.clone();
        new["data"][format!("k{i}")] = json!("v");
        live = track_update(Some(&live), &new, ty, writer(&format!("m{i:02}"), i));
    }
    let names: Vec<_> = entries(&live).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["ancient-changes", "m03", "m04", "m05", "m06", "m07", "m08", "m09", "m10", "m11"]);
    assert_eq!(entries(&live)[0].2, &json!({"f:data": {"f:k0": {}, "f:k1": {}, "f:k2": {}}}));
}

#[test]
fn a_client_may_reset_or_keep_entries() {
    let ty = ty("apps.v1.Deployment");
    let live = track_update(None, &deployment(json!({"replicas": 1})), ty, writer("a", 0));
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    assert!(entries(&track_update(Some(&live), &reset, ty, writer("b", 1))).is_empty());
    let mut broken = live.clone();
    broken["metadata"]["managedFields"] = json!([{"manager": "x", "fieldsType": "y"}]);
    assert_eq!(track_update(Some(&live), &broken, ty, writer("b", 1)), live);
}

#[test]
fn times_alone_are_no_change() {
    let ty = ty("apps.v1.Deployment");
    let live = track_update(None, &deployment(json!({"replicas": 1})), ty, writer("a", 0));
    let mut later = track_update(None, &deployment(json!({"replicas": 1})), ty, writer("a", 9));
    keep_times(&mut later, &live);
    assert_eq!(later, live);
}

#[test]
fn what_does_not_fit_is_refused_in_upstreams_words() {
    let ty = ty("apps.v1.Deployment");
    let text = |patch: Value| apply(None, &patch, ty, false, writer("me", 0)).unwrap_err().to_string();
    let typed = "failed to create typed patch object (n/d; apps/v1, Kind=Deployment): ";
    assert_eq!(
        text(deployment(json!({"foo": 1}))),
        format!("{typed}.spec.foo: field not declared in schema")
    );
    assert_eq!(
        text(deployment(
            json!({"replicas": "1", "template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}})
        )),
        format!(
            "{typed}errors:\n  .spec.replicas: expected numeric (int or float), got string\n  \
             .spec.template.spec.containers: duplicate entries for key [name=\"a\"]"
        )
    );
    let wrong = json!({"template": {"spec": {"nodeSelector": {"a": true}, "tolerations": [{"x": 1}], "containers": [
        {"name": "a", "args": [1], "resources": {"limits": {"cpu": []}}}]}}});
    let spec = ".spec.template.spec";
    assert_eq!(
        text(deployment(wrong)),
        format!(
            "{typed}errors:\n  {spec}.containers[name=\"a\"].args[0]: expected string, got &value.valueUnstructured{{Value:1}}\n  \
             {spec}.containers[name=\"a\"].resources.limits.cpu: expected any scalar, got &{{[]}}\n  \
             {spec}.nodeSelector.a: expected string, got &value.valueUnstructured{{Value:true}}\n  \
             {spec}.tolerations[0].x: field not declared in schema"
        )
    );
    let mut patch = deployment(json!({}));
    patch["apiVersion"] = json!("apps/v1beta1");
    assert!(text(patch).starts_with("Incorrect version specified in apply patch."));
    let mut patch = deployment(json!({}));
    patch["metadata"]["managedFields"] = json!([]);
    assert_eq!(text(patch), "metadata.managedFields must be nil");
}

proptest! {
    /// Applying twice is applying once; what was applied is there; giving it up removes it.
    #[test]
    fn apply_is_idempotent(seed: u64, other: u64) {
        let ty = ty(["core.v1.Pod", "core.v1.Service", "apps.v1.StatefulSet"][(seed % 3) as usize]);
        let head = |mut object: Value| {
            object["apiVersion"] = json!(api_version(ty));
            object["kind"] = json!(ty.short_name());
            object["metadata"] = json!({"name": "a"});
            object
        };
        let sample = |seed| head(stored(Sample::new(seed).object(ty, 0), ty));
        let (patch, live) = (sample(seed), sample(other));
        // Lists with equal keys are refused.
        if let Ok(once) = apply(None, &patch, ty, false, writer("a", 0)) {
            prop_assert_eq!(&apply(Some(&once), &patch, ty, false, writer("a", 1)).unwrap(), &once);
            let tracked = track_update(None, &live, ty, writer("b", 0));
            if validate(&live, Form::Struct(ty)).is_empty() {
                let forced = apply(Some(&tracked), &patch, ty, true, writer("a", 1)).unwrap();
                let mut bare = forced.clone();
                strip(&mut bare);
                let difference = Comparison::between(&bare, &patch, ty).without(&ignored(""));
                prop_assert!(difference.added.is_empty() && difference.modified.is_empty(), "{:?}", difference);
                apply(Some(&forced), &head(json!({})), ty, false, writer("a", 2)).unwrap();
            }
        }
    }

    #[test]
    fn any_patch_is_answered(seed: u64, text in "[\\PC{}\\[\\]:,\"]{0,40}") {
        let ty = ty("core.v1.Pod");
        let live = Sample::new(seed).object(ty, 0);
        let patch: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!({"metadata": text, "spec": [text]}));
        let _ = apply(Some(&live), &patch, ty, true, writer("a", 0));
        let _ = track_update(Some(&live), &patch, ty, writer("a", 0));
        let _ = super::super::strategic_merge(&live, &patch, ty);
        let _ = super::super::merge_patch(&live, &patch);
        let operation = json!({"op": (["add", "move", "test", "x"][(seed % 4) as usize]), "path": text, "from": text, "value": patch});
        let _ = super::super::json_patch(&live, &json!([operation]));
    }
}
