//! What is told of upstream's known cases, event by event and in order.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{Event, Pod},
};
use serde_json::{Value, json};

use super::{
    deployment::DeploymentController,
    job::JobController,
    pods,
    replica_set::ReplicaSetController,
    sim::{Fate, Sim, template},
    stateful_set::StatefulSetController,
};

/// The messages about objects of a kind in the order of their first telling, with ReplicaSets
/// called by their number and pods of generated names `*`.
fn told(sim: &Sim, kind: &str) -> Vec<String> {
    let mut events = sim.list::<Event>();
    events.retain(|e| e.involved_object.kind.as_deref() == Some(kind));
    events.sort_by_key(|e| e.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok()));
    let mut sets: Vec<String> = Vec::new();
    let mut word = |word: &str| {
        let generated = word.strip_prefix("w-").filter(|rest| rest.len() > 3 || kind == "Job");
        match generated {
            Some(_) if kind == "Job" => "*".to_owned(),
            Some(set) => {
                if !sets.iter().any(|s| s == set) {
                    sets.push(set.to_owned());
                }
                format!("#{}", sets.iter().position(|s| s == set).unwrap() + 1)
            }
            None => word.to_owned(),
        }
    };
    let line = |e: &Arc<Event>| {
        let message = e.message.clone().unwrap_or_default();
        let words: Vec<String> = message.split(' ').map(&mut word).collect();
        format!("{}: {}", e.reason.as_deref().unwrap_or_default(), words.join(" "))
    };
    events.iter().map(line).collect()
}

fn workload(kind: &str, spec: &Value) -> Value {
    let base = json!({"replicas": 3, "selector": {"matchLabels": {"app": "w"}}, "template": template(json!({"app": "w"}), "a:1")});
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "w"}, "spec": crate::patch::merge_patch(&base, spec)})
}

fn second() -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "a:2"}]}}}})
}

#[tokio::test]
async fn rollouts_are_told_step_by_step() {
    let rolling =
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}});
    let recreate = json!({"strategy": {"type": "Recreate"}});
    let cases: [(Value, &[&str]); 2] = [
        (
            rolling,
            &[
                "Scaled up replica set #1 from 0 to 3",
                "Scaled up replica set #2 from 0 to 1",
                "Scaled down replica set #1 from 3 to 2",
                "Scaled up replica set #2 from 1 to 2",
                "Scaled down replica set #1 from 2 to 1",
                "Scaled up replica set #2 from 2 to 3",
                "Scaled down replica set #1 from 1 to 0",
            ],
        ),
        (
            recreate,
            &[
                "Scaled up replica set #1 from 0 to 3",
                "Scaled down replica set #1 from 3 to 0",
                "Scaled up replica set #2 from 0 to 3",
            ],
        ),
    ];
    for (spec, expected) in cases {
        let mut sim = Sim::new(vec![Arc::new(DeploymentController), Arc::new(ReplicaSetController)]);
        sim.create(workload("Deployment", &spec)).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        sim.change::<Deployment>("w", second()).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        let expected: Vec<String> = expected.iter().map(|m| format!("ScalingReplicaSet: {m}")).collect();
        assert_eq!(told(&sim, "Deployment"), expected);
    }
}

#[tokio::test]
async fn stateful_sets_are_told_pod_by_pod() {
    let mut sim = Sim::new(vec![Arc::new(StatefulSetController::default())]);
    sim.create(workload("StatefulSet", &json!({"serviceName": "w", "replicas": 2}))).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    let created =
        ["w-0", "w-1"].map(|p| format!("SuccessfulCreate: create Pod {p} in StatefulSet w successful"));
    assert_eq!(told(&sim, "StatefulSet"), created);
    sim.change::<StatefulSet>("w", second()).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    let mut all = told(&sim, "StatefulSet");
    all.sort();
    let deleted =
        ["w-0", "w-1"].map(|p| format!("SuccessfulDelete: delete Pod {p} in StatefulSet w successful"));
    assert_eq!(all, [created, deleted].concat());
}

#[tokio::test]
async fn jobs_are_told_from_the_first_pod_to_the_end() {
    let ends = |fate: Fate| move |pod: &Pod| if pods::phase(pod) == "Running" { fate } else { Fate::Run };
    for (fate, expected) in [
        (Fate::Succeed, vec!["SuccessfulCreate: Created pod: *", "Completed: Job completed"]),
        (
            Fate::Fail,
            vec![
                "SuccessfulCreate: Created pod: *",
                "BackoffLimitExceeded: Job has reached the specified backoff limit",
            ],
        ),
    ] {
        let mut sim = Sim::new(vec![Arc::new(JobController)]);
        let spec = json!({"manualSelector": true, "selector": {"matchLabels": {"app": "w"}}, "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": "w"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}}});
        sim.create(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "w"}, "spec": spec}))
            .await;
        sim.settle(ends(fate), |_| {}).await;
        assert_eq!(told(&sim, "Job"), expected);
    }
}
