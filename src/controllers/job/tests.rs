use serde_json::Value;

use super::*;
use crate::{
    controllers::sim::{Fate, Sim},
    patch::merge_patch,
};

fn sim() -> Sim {
    Sim::new(vec![Arc::new(JobController), Arc::new(TtlController)])
}

/// The API makes selector and label; so that this test does not rest on it, they are given.
async fn create(sim: &Sim, spec: Value) {
    let base = json!({"manualSelector": true, "selector": {"matchLabels": {"j": "j"}},
        "template": {"metadata": {"labels": {"j": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}}});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": merge_patch(&base, &spec)});
    sim.create(job).await;
}

fn status(sim: &Sim) -> JobStatus {
    sim.get::<Job>("j").status.clone().unwrap()
}

fn state(sim: &Sim) -> String {
    let status = status(sim);
    let conditions = status.conditions.unwrap_or_default();
    ["Complete", "Failed", "Suspended"]
        .iter()
        .filter_map(|kind| condition(&conditions, kind))
        .map(|c| format!("{} {}", c.type_, c.reason.as_deref().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(", ")
}

async fn end(sim: &Sim, phase: &str, which: impl Fn(&Pod) -> bool) {
    for pod in sim.list::<Pod>() {
        if pods::is_active(&pod) && which(&pod) {
            let then = crate::clock::rfc3339_seconds(sim.objects.clock().now());
            let exit = i32::from(phase == "Failed");
            let state = json!({"terminated": {"exitCode": exit, "finishedAt": then}});
            let containers = json!([{"name": "c", "image": "a", "imageID": "a", "ready": false, "restartCount": 0, "state": state}]);
            sim.change_status::<Pod>(
                owner::name(&pod.metadata),
                json!({"phase": phase, "containerStatuses": containers}),
            )
            .await;
        }
    }
}

#[tokio::test]
async fn a_job_runs_to_completion_and_counts_every_pod_once() {
    let mut sim = sim();
    create(&sim, json!({"completions": 5, "parallelism": 2})).await;
    for _ in 0..30 {
        sim.settle(
            |_| Fate::Run,
            |objects| {
                let active = objects.list_typed::<Pod>(None).iter().filter(|p| pods::is_active(p)).count();
                assert!(active <= 2, "{active} active");
            },
        )
        .await;
        end(&sim, "Succeeded", |_| true).await;
    }
    assert_eq!(state(&sim), "Complete CompletionsReached");
    assert_eq!((status(&sim).succeeded, status(&sim).failed, sim.list::<Pod>().len()), (Some(5), None, 5));
    assert!(sim.list::<Pod>().iter().all(|p| !has_finalizer(p)));
}

#[tokio::test]
async fn pods_of_a_job_that_is_gone_or_let_them_go_can_be_deleted() {
    let mut sim = Sim::new(vec![Arc::new(JobController), Arc::new(OrphanController)]);
    create(&sim, json!({"completions": 2, "parallelism": 2})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    let names = sim.names::<Pod>();
    sim.change::<Pod>(&names[0], json!({"metadata": {"labels": {"j": "other"}}})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    let released = sim.get::<Pod>(&names[0]);
    assert!(owner::controller_of(&released.metadata).is_none() && !has_finalizer(&released));
    assert!(has_finalizer(&sim.get::<Pod>(&names[1])));
    sim.delete::<Job>("j", None).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert!(sim.list::<Pod>().iter().all(|p| !has_finalizer(p)));
}

#[tokio::test]
async fn failures_back_off_and_end_at_the_limit() {
    let mut sim = sim();
    create(&sim, json!({"backoffLimit": 2})).await;
    for seconds in [0, 11, 21] {
        sim.pass(seconds);
        sim.settle(|_| Fate::Run, |_| {}).await;
        assert_eq!(sim.list::<Pod>().iter().filter(|p| pods::is_active(p)).count(), 1, "after {seconds} s");
        end(&sim, "Failed", |_| true).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
    }
    assert_eq!(state(&sim), "Failed BackoffLimitExceeded");
    assert_eq!(status(&sim).failed, Some(3));
}

#[tokio::test]
async fn indexes_are_tracked_one_by_one() {
    let mut sim = sim();
    create(&sim, json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "backoffLimit": 100})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(sim.list::<Pod>().len(), 4);
    end(&sim, "Succeeded", |p| index(p) != Some(2)).await;
    end(&sim, "Failed", |p| index(p) == Some(2)).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    let status = status(&sim);
    assert_eq!(
        (status.completed_indexes.as_deref(), status.failed_indexes.as_deref()),
        (Some("0,1,3"), Some("2"))
    );
    assert_eq!(state(&sim), "Failed FailedIndexes");
}

#[tokio::test]
async fn policies_decide_early() {
    let mut sim = sim();
    let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}]});
    create(&sim, json!({"backoffLimit": 6, "podFailurePolicy": policy})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    end(&sim, "Failed", |_| true).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(state(&sim), "Failed PodFailurePolicy");

    let mut sim = self::sim();
    let policy = json!({"rules": [{"succeededIndexes": "1"}]});
    create(
        &sim,
        json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "successPolicy": policy}),
    )
    .await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    end(&sim, "Succeeded", |p| index(p) == Some(1)).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(state(&sim), "Complete SuccessPolicy");
    assert!(sim.list::<Pod>().iter().all(|p| !pods::is_active(p)));
}

#[tokio::test]
async fn suspension_deadline_and_ttl() {
    let mut sim = sim();
    create(&sim, json!({"suspend": true, "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 10})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!((state(&sim).as_str(), sim.list::<Pod>().len()), ("Suspended JobSuspended", 0));
    sim.pass(100);
    sim.change::<Job>("j", json!({"spec": {"suspend": false}})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(sim.list::<Pod>().len(), 1);
    sim.pass(61);
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(state(&sim), "Failed DeadlineExceeded");
    sim.pass(11);
    sim.step(&mut |_| {}).await;
    assert!(
        sim.objects.get_typed::<Job>("default", "j").is_none_or(|j| j.metadata.deletion_timestamp.is_some())
    );
}

#[tokio::test]
async fn rules_let_failures_pass_or_end_an_index() {
    let mut sim = sim();
    let policy = json!({"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}]});
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimit": 1,
        "backoffLimitPerIndex": 5, "podFailurePolicy": policy});
    create(&sim, spec).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    let disturbed = sim.list::<Pod>().into_iter().find(|p| index(p) == Some(0)).unwrap();
    let name = owner::name(&disturbed.metadata).to_owned();
    let conditions = json!([{"type": "DisruptionTarget", "status": "True"}]);
    sim.change_status::<Pod>(&name, json!({"phase": "Failed", "conditions": conditions})).await;
    sim.settle(|p| if owner::name(&p.metadata) == name { Fate::Fail } else { Fate::Run }, |_| {}).await;
    sim.pass(60);
    sim.settle(|p| if owner::name(&p.metadata) == name { Fate::Fail } else { Fate::Run }, |_| {}).await;
    assert_eq!((status(&sim).failed, status(&sim).active), (None, Some(2)), "a disruption is no failure");
    end(&sim, "Failed", |p| index(p) == Some(1)).await;
    sim.settle(|_| Fate::Leave, |_| {}).await;
    let status = status(&sim);
    assert_eq!(status.failed_indexes.as_deref(), Some("1"), "although it had five tries left");
    assert_eq!(status.active, Some(1));
}

#[tokio::test]
async fn a_pod_that_is_leaving_is_replaced_at_once_or_when_it_has_ended() {
    for (policy, beside) in [("TerminatingOrFailed", 2), ("Failed", 1)] {
        let mut sim = sim();
        create(&sim, json!({"podReplacementPolicy": policy})).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
        let first = sim.names::<Pod>().remove(0);
        sim.delete::<Pod>(&first, None).await;
        for seconds in [0, 30, 30] {
            sim.pass(seconds);
            sim.step(&mut |_| {}).await;
        }
        assert_eq!(sim.list::<Pod>().len(), beside, "{policy}");
        assert_eq!(status(&sim).terminating, Some(1), "{policy}");
    }
}

#[tokio::test]
async fn a_job_of_another_controller_is_left_alone() {
    let mut sim = sim();
    create(&sim, json!({"managedBy": "example.com/other"})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert!(sim.list::<Pod>().is_empty());
    assert!(sim.get::<Job>("j").status.clone().unwrap_or_default().start_time.is_none());
}
