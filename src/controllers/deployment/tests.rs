use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::controllers::{
    pods,
    replica_set::ReplicaSetController,
    sim::{Fate, Sim, template},
};

fn sim() -> Sim {
    Sim::new(vec![Arc::new(DeploymentController), Arc::new(ReplicaSetController)])
}

fn deployment(replicas: i32, strategy: serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
            "template": template(json!({"app": "web"}), "a:1")},
    })
}

fn rolling(surge: i32, unavailable: i32) -> serde_json::Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn image(tag: &str) -> serde_json::Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": tag}]}}}})
}

fn reason(d: &Deployment, kind: &str) -> String {
    let conditions = d.status.as_ref().and_then(|s| s.conditions.as_ref());
    status::condition(conditions, kind).and_then(|c| c.reason.clone()).unwrap_or_default()
}

fn live(objects: &Objects) -> (usize, usize) {
    let all = objects.list_typed::<Pod>(None);
    let active = all.iter().filter(|p| pods::is_active(p)).count();
    (active, all.iter().filter(|p| pods::is_active(p) && pods::is_ready(p)).count())
}

#[tokio::test]
async fn a_rollout_goes_forward_and_back_with_revisions() {
    let mut sim = sim();
    sim.create(deployment(3, rolling(1, 0))).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    let d = sim.get::<Deployment>("web");
    assert_eq!(reason(&d, "Progressing"), "NewReplicaSetAvailable");
    assert_eq!(reason(&d, "Available"), "MinimumReplicasAvailable");
    assert_eq!(d.status.as_ref().unwrap().available_replicas, Some(3));
    assert_eq!(owner::annotation(&d.metadata, revision::REVISION), Some("1"));

    for (tag, expected) in [("a:2", "2"), ("a:1", "3")] {
        sim.change::<Deployment>("web", image(tag)).await;
        sim.settle(
            |_| Fate::Run,
            |objects| {
                let (active, ready) = live(objects);
                assert!(active <= 4 && ready >= 3, "{active} active, {ready} ready");
            },
        )
        .await;
        let d = sim.get::<Deployment>("web");
        assert_eq!(owner::annotation(&d.metadata, revision::REVISION), Some(expected));
        assert_eq!(d.status.as_ref().unwrap().updated_replicas, Some(3));
    }
    let sets = sim.list::<ReplicaSet>();
    assert_eq!(sets.len(), 2, "going back uses the old ReplicaSet");
    let back = sets.iter().find(|rs| revision::revision(rs) == 3).unwrap();
    assert_eq!(owner::annotation(&back.metadata, revision::REVISION_HISTORY), Some("1"));
}

#[tokio::test]
async fn recreate_never_runs_two_versions() {
    let mut sim = sim();
    sim.create(deployment(3, json!({"type": "Recreate"}))).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    sim.change::<Deployment>("web", image("a:2")).await;
    sim.settle(
        |_| Fate::Run,
        |objects| {
            let images: std::collections::BTreeSet<_> = objects
                .list_typed::<Pod>(None)
                .iter()
                .filter_map(|p| p.spec.as_ref()?.containers[0].image.clone())
                .collect();
            assert!(images.len() <= 1, "{images:?}");
        },
    )
    .await;
    assert_eq!(sim.get::<Deployment>("web").status.as_ref().unwrap().updated_replicas, Some(3));
}

#[tokio::test]
async fn a_stuck_rollout_times_out_and_keeps_the_old_pods() {
    let mut sim = sim();
    sim.create(deployment(4, rolling(1, 1))).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    sim.change::<Deployment>("web", image("bad:1")).await;
    let bad_is_unready = |pod: &Pod| {
        let bad = pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("bad:1");
        if bad { Fate::RunUnready } else { Fate::Run }
    };
    sim.settle(bad_is_unready, |objects| assert!(live(objects).1 >= 3)).await;
    assert_eq!(reason(&sim.get("web"), "Progressing"), "ReplicaSetUpdated");
    sim.pass(700);
    sim.settle(bad_is_unready, |_| {}).await;
    assert_eq!(reason(&sim.get("web"), "Progressing"), "ProgressDeadlineExceeded");
}

#[tokio::test]
async fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut sim = sim();
    sim.create(deployment(10, rolling(3, 2))).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    sim.change::<Deployment>("web", image("bad:1")).await;
    let bad_is_unready = |pod: &Pod| {
        let bad = pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("bad:1");
        if bad { Fate::RunUnready } else { Fate::Run }
    };
    let sizes = |sim: &Sim| {
        let mut sizes: Vec<i32> = sim.list::<ReplicaSet>().iter().map(|rs| rollout::replicas(rs)).collect();
        sizes.sort_unstable();
        sizes
    };
    sim.settle(bad_is_unready, |_| {}).await;
    assert_eq!(sizes(&sim), [5, 8]);
    sim.change::<Deployment>("web", json!({"spec": {"replicas": 15}})).await;
    sim.settle(bad_is_unready, |_| {}).await;
    // The example of the Kubernetes documentation on proportional scaling.
    assert_eq!(sizes(&sim), [7, 11]);
}

#[tokio::test]
async fn a_paused_deployment_scales_but_does_not_roll() {
    let mut sim = sim();
    sim.create(deployment(2, rolling(1, 0))).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    sim.change::<Deployment>("web", json!({"spec": {"paused": true, "replicas": 3}})).await;
    sim.change::<Deployment>("web", image("a:2")).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(reason(&sim.get("web"), "Progressing"), "DeploymentPaused");
    assert_eq!((sim.list::<ReplicaSet>().len(), live(&sim.objects).0), (1, 3));
    sim.change::<Deployment>("web", json!({"spec": {"paused": false}})).await;
    sim.settle(|_| Fate::Run, |_| {}).await;
    assert_eq!(sim.list::<ReplicaSet>().len(), 2);
}

#[tokio::test]
async fn old_replica_sets_beyond_the_limit_go_and_a_taken_name_is_avoided() {
    let mut sim = sim();
    sim.create(deployment(1, rolling(1, 0))).await;
    let taken = revision::replica_set_name(&sim.get("web"));
    sim.create(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": taken},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"x": "y"}}, "template": template(json!({"x": "y"}), "x")}}))
        .await;
    for tag in ["a:1", "a:2", "a:3", "a:4", "a:5"] {
        sim.change::<Deployment>("web", image(tag)).await;
        sim.settle(|_| Fate::Run, |_| {}).await;
    }
    assert_eq!(sim.get::<Deployment>("web").status.as_ref().unwrap().collision_count, Some(1));
    assert_eq!(sim.list::<ReplicaSet>().len(), 1 + 3, "the foreign one, the new one and two of history");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the bounds and however pods come and go, the bounds hold and the rollout ends.
    #[test]
    fn bounds_hold(replicas in 1..6i32, surge in 0..3i32, unavailable in 0..3i32, seed in any::<u64>()) {
        // The API refuses a rollout that may neither add nor take a pod.
        prop_assume!(surge + unavailable > 0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if surge == 0 && unavailable == 0 {
                return;
            }
            let mut sim = sim();
            sim.create(deployment(replicas, rolling(surge, unavailable))).await;
            sim.settle(|_| Fate::Run, |_| {}).await;
            sim.change::<Deployment>("web", image("a:2")).await;
            let unavailable = unavailable.min(replicas);
            let slow = |pod: &Pod| {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let dice = uid.bytes().fold(seed, |h, b| h.rotate_left(7) ^ u64::from(b));
                if dice % 3 == 0 && !pods::is_ready(pod) { Fate::Leave } else { Fate::Run }
            };
            for _ in 0..20 {
                sim.step(&mut |objects: &Objects| {
                    let (active, ready) = live(objects);
                    assert!(active <= (replicas + surge) as usize, "{active} active");
                    assert!(ready >= (replicas - unavailable) as usize, "{ready} ready");
                }).await;
                sim.kubelet(&slow).await;
            }
            sim.settle(|_| Fate::Run, |_| {}).await;
            let d = sim.get::<Deployment>("web");
            assert_eq!(d.status.as_ref().unwrap().updated_replicas, Some(replicas));
            assert_eq!(live(&sim.objects), (replicas as usize, replicas as usize));
        });
    }
}
