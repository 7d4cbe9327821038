use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{controllers::sim::Sim, usage::ContainerUse};

fn at(text: &str) -> Timestamp {
    format!("2026-11-23T{text}Z").parse().unwrap()
}

fn hpa(spec: Value) -> HorizontalPodAutoscaler {
    let base = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 10,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]});
    serde_json::from_value(
        json!({"metadata": {"name": "h", "namespace": "default", "uid": "h", "generation": 1},
        "spec": crate::patch::merge_patch(&base, &spec)}),
    )
    .unwrap()
}

fn pod(name: &str, more: Value) -> Arc<Pod> {
    let base = json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]},
        "status": {"phase": "Running", "startTime": "2026-11-23T10:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-23T10:00:10Z"}]},
    });
    Arc::new(serde_json::from_value(crate::patch::merge_patch(&base, &more)).unwrap())
}

fn used(milli: u64) -> PodUse {
    let container =
        ContainerUse { name: "c".into(), cpu_nanocores: milli * 1_000_000, memory_bytes: 50 << 20 };
    PodUse { at: at("12:00:00"), window: SignedDuration::from_secs(15), containers: vec![container] }
}

/// Pods with what each uses (milli-cores; `None`: unknown).
fn observed(wanted: i32, uses: &[Option<u64>]) -> Observed {
    let names: Vec<String> = (0..uses.len()).map(|n| format!("p{n}")).collect();
    Observed {
        scale: Ok(Scale {
            target: Target {
                kind: registry::by_type("apps/v1", "Deployment").unwrap(),
                namespace: "default".into(),
                name: "web".into(),
                uid: "d".into(),
            },
            wanted,
            selector: "app=web".into(),
        }),
        pods: names.iter().map(|n| pod(n, json!({}))).collect(),
        usage: names.iter().zip(uses).filter_map(|(n, u)| Some((n.clone(), used((*u)?)))).collect(),
        rivals: Vec::new(),
        failure: None,
    }
}

fn size(plan: &Plan) -> Option<i64> {
    plan.actions.iter().find_map(|a| match a {
        Action::Merge { patch, .. } => patch["spec"]["replicas"].as_i64(),
        _ => None,
    })
}

fn status(plan: &Plan) -> HorizontalPodAutoscalerStatus {
    let status = plan.actions.iter().find_map(|a| match a {
        Action::Status { status, .. } => Some(status.clone()),
        _ => None,
    });
    serde_json::from_value(status.unwrap()).unwrap()
}

fn conditions(plan: &Plan) -> Vec<String> {
    let all = status(plan).conditions.unwrap();
    all.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap())).collect()
}

fn events(plan: &Plan) -> Vec<String> {
    plan.events.iter().map(|n| format!("{}: {}", n.reason, n.message)).collect()
}

#[test]
fn replicas_follow_the_use() {
    /// Wanted now, what each pod uses (of 100m requested, 50% wanted), what is asked for.
    type Case = (i32, &'static [Option<u64>], Option<i64>);
    let cases: [Case; 8] = [
        (2, &[Some(100), Some(100)], Some(4)),
        (2, &[Some(52), Some(52)], None),
        (4, &[Some(10), Some(10), Some(10), Some(10)], Some(1)),
        // Down with an unknown one: as if it used all it requested.
        (4, &[Some(10), Some(10), Some(10), None], Some(3)),
        // Up with an unknown one: as if it used nothing.
        (3, &[Some(100), Some(100), None], Some(4)),
        (3, &[Some(60), Some(60), None], None),
        // Not more than double, but up to four.
        (1, &[Some(500)], Some(4)),
        (4, &[Some(500), Some(500), Some(500), Some(500)], Some(8)),
    ];
    for (wanted, uses, expected) in cases {
        let mut memory = Memory::default();
        // What is there must not count as recommended lately.
        memory.past.begin(0, at("11:00:00"));
        let plan = reconcile(&hpa(json!({})), &observed(wanted, uses), &mut memory, at("12:00:00"));
        assert_eq!(size(&plan), expected, "{wanted} {uses:?} {:?}", conditions(&plan));
    }
}

#[test]
fn conditions_and_events_are_upstreams() {
    let mut memory = Memory::default();
    let plan = reconcile(&hpa(json!({})), &observed(2, &[Some(100), Some(100)]), &mut memory, at("12:00:00"));
    assert_eq!(
        events(&plan),
        [
            "SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target"
        ]
    );
    assert_eq!(
        conditions(&plan),
        [
            "AbleToScale=True SucceededRescale",
            "ScalingActive=True ValidMetricFound",
            "ScalingLimited=False DesiredWithinRange"
        ]
    );
    let now = status(&plan);
    let current = now.current_metrics.unwrap().remove(0).resource.unwrap().current;
    assert_eq!((current.average_utilization, current.average_value.unwrap().0.as_str()), (Some(100), "100m"));
    assert_eq!((now.current_replicas, now.desired_replicas), (Some(2), 4));

    let plan = reconcile(&hpa(json!({})), &observed(1, &[None]), &mut Memory::default(), at("12:00:00"));
    let error = "failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API";
    assert_eq!(
        events(&plan),
        [
            format!("FailedGetResourceMetric: {error}"),
            format!(
                "FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: {error}"
            )
        ]
    );
    assert_eq!(
        conditions(&plan),
        ["AbleToScale=True SucceededGetScale", "ScalingActive=False FailedGetResourceMetric"]
    );
    let message = status(&plan).conditions.unwrap()[1].message.clone();
    assert_eq!(message.unwrap(), format!("the HPA was unable to compute the replica count: {error}"));

    let missing =
        Observed { scale: Err("deployments/scale.apps \"web\" not found".into()), ..observed(1, &[]) };
    let plan = reconcile(&hpa(json!({})), &missing, &mut Memory::default(), at("12:00:00"));
    assert_eq!(events(&plan), ["FailedGetScale: deployments/scale.apps \"web\" not found"]);
    assert_eq!(conditions(&plan), ["AbleToScale=False FailedGetScale"]);

    let off = reconcile(&hpa(json!({})), &observed(0, &[]), &mut Memory::default(), at("12:00:00"));
    assert_eq!(conditions(&off)[1], "ScalingActive=False ScalingDisabled");
    let external = json!({"metrics": [{"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "Value", "value": "1"}}}]});
    let plan = reconcile(&hpa(external), &observed(1, &[Some(1)]), &mut Memory::default(), at("12:00:00"));
    assert_eq!(conditions(&plan)[1], "ScalingActive=False FailedGetExternalMetric");
}

#[test]
fn a_failed_change_is_told_and_an_unknown_metric_takes_nothing_away() {
    let mut memory = Memory::default();
    reconcile(&hpa(json!({})), &observed(2, &[Some(100), Some(100)]), &mut memory, at("12:00:00"));
    let failed = Observed { failure: Some("no".into()), ..observed(2, &[Some(100), Some(100)]) };
    let plan = reconcile(&hpa(json!({})), &failed, &mut memory, at("12:00:01"));
    assert_eq!(
        events(&plan),
        [
            "FailedRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target; error: no"
        ]
    );
    assert_eq!(conditions(&plan), ["AbleToScale=False FailedUpdateScale"]);
    let two = json!({"metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
        {"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "1"}}}]});
    for (milli, expected) in [(10, None), (100, Some(4))] {
        let uses = [Some(milli), Some(milli)];
        let plan = reconcile(&hpa(two.clone()), &observed(2, &uses), &mut Memory::default(), at("12:00:00"));
        assert_eq!(size(&plan), expected);
    }
}

#[test]
fn windows_and_policies_hold_a_change_back() {
    let mut memory = Memory::default();
    let plain = hpa(json!({}));
    let high = [Some(100), Some(100), Some(100), Some(100)];
    let low = [Some(10), Some(10), Some(10), Some(10)];
    reconcile(&plain, &observed(4, &high), &mut memory, at("12:00:00"));
    let plan = reconcile(&plain, &observed(4, &low), &mut memory, at("12:01:00"));
    assert_eq!(conditions(&plan)[0], "AbleToScale=True SucceededRescale", "up to the highest of late");
    let mut memory = Memory::default();
    reconcile(&plain, &observed(4, &[Some(50); 4]), &mut memory, at("12:00:00"));
    let plan = reconcile(&plain, &observed(4, &low), &mut memory, at("12:01:00"));
    assert_eq!((size(&plan), conditions(&plan)[0].as_str()), (None, "AbleToScale=True ScaleDownStabilized"));
    assert_eq!(size(&reconcile(&plain, &observed(4, &low), &mut memory, at("12:06:00"))), Some(1));

    let policy = |kind: &str, value: i32| json!({"type": kind, "value": value, "periodSeconds": 60});
    let slow = hpa(json!({"behavior": {
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy("Pods", 1), policy("Percent", 50)]},
        "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [policy("Pods", 3), policy("Percent", 50)]}}}));
    let mut memory = Memory::default();
    let plan = reconcile(&slow, &observed(4, &high), &mut memory, at("12:00:00"));
    assert_eq!((size(&plan), conditions(&plan)[2].as_str()), (Some(6), "ScalingLimited=True ScaleUpLimit"));
    let plan = reconcile(&slow, &observed(6, &[Some(100); 6]), &mut memory, at("12:00:15"));
    assert_eq!(size(&plan), None, "the minute's share is used up");
    let plan = reconcile(&slow, &observed(6, &[Some(100); 6]), &mut memory, at("12:01:30"));
    assert_eq!(size(&plan), Some(9));
    let mut memory = Memory::default();
    let plan = reconcile(&slow, &observed(8, &[Some(5); 8]), &mut memory, at("12:00:00"));
    assert_eq!((size(&plan), conditions(&plan)[2].as_str()), (Some(5), "ScalingLimited=True ScaleDownLimit"));
    let fixed =
        hpa(json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled"},
        "scaleUp": {"selectPolicy": "Max", "policies": [policy("Pods", 1)]}}}));
    assert_eq!(
        size(&reconcile(&fixed, &observed(8, &[Some(5); 8]), &mut Memory::default(), at("12:00:00"))),
        None
    );
}

#[test]
fn a_container_of_its_own_and_absolute_targets_count() {
    let one = json!({"metrics": [{"type": "ContainerResource", "containerResource":
        {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 50}}}]});
    let plan = reconcile(&hpa(one), &observed(1, &[Some(100)]), &mut Memory::default(), at("12:00:00"));
    assert_eq!(size(&plan), Some(2));
    let bytes = json!({"metrics": [{"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "25Mi"}}}]});
    let plan = reconcile(&hpa(bytes), &observed(2, &[Some(1); 2]), &mut Memory::default(), at("12:00:00"));
    assert_eq!(size(&plan), Some(4));
    let other = json!({"metrics": [{"type": "ContainerResource", "containerResource":
        {"name": "cpu", "container": "x", "target": {"type": "Utilization", "averageUtilization": 50}}}]});
    let plan = reconcile(&hpa(other), &observed(1, &[Some(100)]), &mut Memory::default(), at("12:00:00"));
    assert!(events(&plan)[0].contains("container x not present in metrics for pod default/p0"));
}

#[tokio::test]
async fn an_autoscaler_sizes_a_deployment_through_the_store() {
    let mut usage = HashMap::new();
    usage.insert(("default".to_owned(), "p0".to_owned()), used(400));
    let mut sim = Sim::new(vec![Arc::new(AutoscalerController::new(Arc::new(usage)))]);
    sim.create(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": crate::controllers::sim::template(json!({"app": "web"}), "a")}}))
        .await;
    sim.create(serde_json::to_value(&*pod("p0", json!({"spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": "100m"}}}]}}))).unwrap())
        .await;
    sim.change_status::<Pod>("p0", serde_json::to_value(pod("p0", json!({})).status.clone()).unwrap()).await;
    sim.create(json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 3}}))
        .await;
    sim.step(&mut |_| {}).await;
    let web = sim.get::<k8s_openapi::api::apps::v1::Deployment>("web");
    assert_eq!(web.spec.as_ref().unwrap().replicas, Some(3));
    let status = sim.get::<HorizontalPodAutoscaler>("h").status.clone().unwrap();
    assert_eq!(status.conditions.unwrap()[2].reason.as_deref(), Some("TooManyReplicas"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the load does, the size stays within its bounds, never more than doubles (beyond
    /// four), and comes to rest when the load does.
    #[test]
    fn the_size_keeps_its_bounds_and_comes_to_rest(min in 1..4i32, more in 0..8i32, loads in prop::collection::vec(0..4000u64, 1..20)) {
        let (max, mut replicas) = (min + more, min);
        let hpa = hpa(json!({"minReplicas": min, "maxReplicas": max}));
        let mut memory = Memory::default();
        let mut now = at("12:00:00");
        let mut step = |load: u64, replicas: &mut i32| {
            let uses = vec![Some(load / u64::from(replicas.unsigned_abs())); usize::try_from(*replicas).unwrap()];
            let plan = reconcile(&hpa, &observed(*replicas, &uses), &mut memory, now);
            now += SignedDuration::from_secs(15);
            let Some(to) = size(&plan).and_then(|n| i32::try_from(n).ok()) else { return false };
            assert!((min..=max).contains(&to) && to <= (*replicas * 2).max(4), "{replicas} to {to}");
            *replicas = to;
            true
        };
        for load in &loads {
            step(*load, &mut replicas);
        }
        let last = *loads.last().unwrap();
        let moved = (0..60).filter(|_| step(last, &mut replicas)).count();
        prop_assert!(moved <= 6);
        prop_assert!((0..4).all(|_| !step(last, &mut replicas)));
    }
}
