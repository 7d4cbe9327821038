use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::{
    kinds::registry,
    objects::WriteOptions,
    store::{Key, Store},
};

/// Objects merge, everything else is replaced.
fn merge(target: &mut Value, patch: &Value) {
    match (target.as_object_mut(), patch.as_object()) {
        (Some(fields), Some(changes)) => {
            for (key, change) in changes {
                merge(fields.entry(key.clone()).or_insert(Value::Null), change);
            }
        }
        _ => target.clone_from(patch),
    }
}

fn node(name: &str, cpu: &str, memory: &str, more: Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": "10"}},
    });
    merge(&mut node, &more);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, cpu: &str, more: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": cpu}}}]},
    });
    merge(&mut pod, &more);
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
}

fn cluster(nodes: Vec<Arc<Node>>, placed: Vec<(Arc<PodInfo>, &str)>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    for (pod, node) in placed {
        snapshot.place(pod, node);
    }
    snapshot
}

fn decide(snapshot: &Snapshot, pod: &PodInfo) -> Result<String, String> {
    match plan::schedule(snapshot, pod, &Claims::default(), &[]) {
        Decision::Bind { node, .. } => Ok(node),
        Decision::Refuse { message, .. } => Err(message),
    }
}

fn taint(key: &str, effect: &str) -> Value {
    json!({"spec": {"taints": [{"key": key, "effect": effect}]}})
}

#[test]
fn refusals_are_said_in_upstreams_words() {
    let snapshot = cluster(
        vec![
            node("a", "1", "1Gi", json!({})),
            node("b", "4", "1Gi", taint("k", "NoSchedule")),
            node("c", "2", "1Gi", json!({"spec": {"unschedulable": true}})),
            node("d", "4", "1Gi", json!({})),
        ],
        vec![(pod("busy", "3", json!({})), "d")],
    );
    assert_eq!(
        decide(&snapshot, &pod("p", "2", json!({}))).unwrap_err(),
        "0/4 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 Insufficient cpu. \
         no new claims to deallocate, preemption: 0/4 nodes are available: 1 No preemption victims found for incoming pod, \
         3 Preemption is not helpful for scheduling."
    );
    assert_eq!(
        decide(&Snapshot::default(), &pod("p", "1", json!({}))).unwrap_err(),
        "no nodes available to schedule pods"
    );
}

#[test]
fn one_filter_each() {
    let web = |name: &str, more: Value| {
        let mut all = json!({"metadata": {"labels": {"app": "web"}}});
        merge(&mut all, &more);
        pod(name, "100m", all)
    };
    let port = json!({"spec": {"containers": [{"name": "c", "image": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let term =
        json!({"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"});
    let required = |kind: &str| json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
    let spread = json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let snapshot = cluster(
        vec![node("a", "4", "4Gi", json!({})), node("b", "4", "4Gi", taint("k", "NoExecute"))],
        vec![(web("first", port.clone()), "a")],
    );
    let tolerant = json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}});
    let both = |mut a: Value| {
        merge(&mut a, &tolerant);
        a
    };
    let cases = [
        (
            json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}}),
            Err("1 node(s) didn't match Pod's node affinity/selector"),
        ),
        (both(json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "b"}}})), Ok("b")),
        (port.clone(), Err("1 node(s) didn't have free ports for the requested pod ports")),
        (both(port.clone()), Ok("b")),
        (required("podAntiAffinity"), Err("1 node(s) didn't match pod anti-affinity rules")),
        (both(required("podAntiAffinity")), Ok("b")),
        (both(required("podAffinity")), Ok("a")),
        (both(spread.clone()), Ok("b")),
        (spread, Err("1 node(s) didn't match pod topology spread constraints")),
    ];
    for (more, expected) in cases {
        let outcome = decide(&snapshot, &web("p", more.clone()));
        match expected {
            Ok(node) => assert_eq!(outcome.as_deref(), Ok(node), "{more}"),
            Err(reason) => assert!(outcome.unwrap_err().contains(reason), "{more}"),
        }
    }
}

#[test]
fn the_first_of_a_group_may_be_alone_and_existing_pods_are_respected() {
    let term =
        json!({"labelSelector": {"matchLabels": {"app": "p"}}, "topologyKey": "kubernetes.io/hostname"});
    let affinity = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
    let anti = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
    let empty = cluster(vec![node("a", "4", "4Gi", json!({}))], vec![]);
    assert_eq!(decide(&empty, &pod("p", "1", affinity.clone())).unwrap(), "a");
    assert!(
        decide(&empty, &pod("q", "1", affinity))
            .unwrap_err()
            .contains("1 node(s) didn't match pod affinity rules")
    );
    let hostile = cluster(vec![node("a", "4", "4Gi", json!({}))], vec![(pod("x", "1", anti), "a")]);
    let refused = decide(&hostile, &pod("p", "1", json!({}))).unwrap_err();
    assert!(refused.contains("1 node(s) didn't satisfy existing pods anti-affinity rules"), "{refused}");
}

#[test]
fn pods_spread_and_prefer_what_they_are_told_to() {
    let owned = |name: &str| {
        pod(
            name,
            "100m",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]}}),
        )
    };
    let nodes = || {
        vec![
            node("a", "4", "4Gi", json!({})),
            node("b", "4", "4Gi", json!({})),
            node("c", "4", "4Gi", taint("k", "PreferNoSchedule")),
        ]
    };
    let snapshot = cluster(nodes(), vec![(owned("1"), "a")]);
    assert_eq!(decide(&snapshot, &owned("2")).unwrap(), "b");
    let wish = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}}]}}}});
    assert_eq!(decide(&cluster(nodes(), vec![]), &pod("p", "1", wish)).unwrap(), "a");
}

#[test]
fn of_many_nodes_a_part_is_enough() {
    assert_eq!([1, 100, 250, 1000, 10_000].map(plan::enough), [1, 100, 120, 420, 500]);
    let many: Vec<_> = (0..300).map(|n| node(&format!("n{n:03}"), "4", "4Gi", json!({}))).collect();
    let snapshot = cluster(many, vec![]);
    let only = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n299"}}});
    assert_eq!(
        decide(&snapshot, &pod("p", "1", only)).unwrap(),
        "n299",
        "the only one is found wherever it is"
    );
    let refused = decide(&snapshot, &pod("p", "9", json!({}))).unwrap_err();
    assert!(refused.starts_with("0/300 nodes are available: 300 Insufficient cpu."), "{refused}");
    let places: std::collections::BTreeSet<String> =
        (0..50).map(|n| decide(&snapshot, &pod(&format!("p{n}"), "1", json!({}))).unwrap()).collect();
    assert!(places.len() > 25, "{places:?}");
}

#[test]
fn siblings_are_counted_through_all_that_happens() {
    let owned = |name: u32, owner: u32, leaves: bool| {
        let mut more = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r",
            "uid": format!("r{owner}"), "controller": true}]}});
        if leaves {
            more["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z".into();
        }
        pod(&format!("p{name}"), "1m", more)
    };
    let mut snapshot =
        cluster((0..4).map(|n| node(&format!("n{n}"), "4", "4Gi", json!({}))).collect(), vec![]);
    let mut dice = 1_u32;
    for _ in 0..500 {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (what, name, place) = (dice >> 28, (dice >> 20) % 12, (dice >> 16) % 4);
        if what < 4 {
            snapshot.remove_pod(&format!("p{name}"));
        } else {
            snapshot.place(owned(name, name % 3, what == 15), &format!("n{place}"));
        }
        for owner in ["r0", "r1", "r2"] {
            let mut there: HashMap<&str, i32> = HashMap::new();
            for (node, _) in
                snapshot.pods().filter(|(_, p)| p.controller() == Some(owner) && !p.is_deleting())
            {
                *there.entry(placement::node_name(node)).or_default() += 1;
            }
            assert_eq!(snapshot.siblings(owner).collect::<HashMap<&str, i32>>(), there);
        }
    }
}

#[test]
fn a_pod_stays_off_boards_that_its_image_has_no_build_for() {
    let on = |platform: &str| json!({"metadata": {"annotations": {"sampan.dev/platform": platform}}});
    let mut told = on("linux/amd64");
    told["metadata"]["annotations"]["sampan.dev/image-platforms"] =
        r#"{"docker.io/library/a:latest": ["linux/arm64"]}"#.into();
    let mut snapshot =
        cluster(vec![node("a", "4", "4Gi", told), node("b", "4", "4Gi", on("linux/arm64/v8"))], vec![]);
    for n in 0..8 {
        assert_eq!(decide(&snapshot, &pod(&format!("p{n}"), "1", json!({}))).unwrap(), "b");
    }
    snapshot.remove_node("b");
    let refused = decide(&snapshot, &pod("p", "1", json!({}))).unwrap_err();
    let expected = "0/1 nodes are available: 1 node(s) can't run the image docker.io/library/a:latest (it has linux/arm64). ";
    assert!(refused.starts_with(expected), "{refused}");
}

#[tokio::test]
async fn the_claim_of_an_ephemeral_volume_is_waited_for_and_is_the_pod_s() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    let objects = Objects::new(store, Arc::new(crate::clock::SystemClock));
    let volumes = json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {}}},
        {"name": "w", "persistentVolumeClaim": {"claimName": "p-w"}}]);
    let problem = |only: usize| {
        let pod = pod("p", "1", json!({"spec": {"volumes": [volumes[only]]}}));
        Claims::of(&objects, &Snapshot::default(), &pod).problem.unwrap_or_default()
    };
    let waiting = "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"";
    assert_eq!(problem(0), waiting);
    assert_eq!(problem(1), "persistentvolumeclaim \"p-w\" not found");
    let claim = json!({"metadata": {"name": "p-v"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}}});
    let kind = registry::of::<k8s_openapi::api::core::v1::PersistentVolumeClaim>();
    objects.create(kind, "default", claim, &WriteOptions::default()).await.unwrap();
    assert_eq!(problem(0), "PVC default/p-v was not created for pod default/p (pod is not owner)");
}

#[test]
fn preemption_takes_the_least() {
    let prio = |name: &str, cpu: &str, priority: i32| pod(name, cpu, json!({"spec": {"priority": priority}}));
    let snapshot = cluster(
        vec![node("a", "4", "4Gi", json!({})), node("b", "4", "4Gi", json!({}))],
        vec![
            (prio("a1", "2", 5), "a"),
            (prio("a2", "2", 1), "a"),
            (prio("b1", "3", 3), "b"),
            (prio("b2", "1", 20), "b"),
        ],
    );
    let Decision::Refuse { preemption: Some(preemption), .. } =
        plan::schedule(&snapshot, &prio("p", "2", 10), &Claims::default(), &[])
    else {
        panic!("no preemption");
    };
    assert_eq!(preemption.node, "a");
    assert_eq!(preemption.victims.iter().map(|v| v.name()).collect::<Vec<_>>(), ["a2"]);
    let never = pod("p", "2", json!({"spec": {"priority": 10, "preemptionPolicy": "Never"}}));
    assert!(decide(&snapshot, &never).unwrap_err().ends_with("not eligible due to preemptionPolicy=Never."));
}

#[tokio::test]
async fn pods_are_bound_and_refused_ones_tried_again_when_it_helps() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    let objects = Objects::new(store.clone(), Arc::new(crate::clock::SystemClock));
    let tasks = Tasks::new();
    start(&tasks, objects.clone());
    let options = WriteOptions::default();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": "1"}}}]}});
    let mut events = store.watch("pods", store.revision()).unwrap();
    objects.create(registry::of::<Pod>(), "default", pod, &options).await.unwrap();
    let condition = |pod: &Pod| {
        crate::kinds::pod::is_ready(pod) || pod.status.as_ref().is_some_and(|s| s.conditions.is_some())
    };
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap();
        if condition(&event.object.typed()) {
            break;
        }
    }
    let node = json!({"metadata": {"name": "n"}});
    objects.create(registry::of::<Node>(), "", node, &options).await.unwrap();
    objects
        .modify(registry::of::<Node>(), Some(crate::kinds::Subresource::Status), "", "n", &options, |node| {
            node["status"] = json!({"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "10"}});
            Ok(())
        })
        .await
        .unwrap();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap();
        let pod = event.object.typed::<Pod>();
        if let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) {
            assert_eq!(node, "n");
            let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
            assert_eq!((conditions.len(), conditions[0].status.as_str()), (1, "True"));
            break;
        }
    }
    assert!(store.get(&Key::new("pods", "default", "p")).is_some());

    // A pod that is made smaller makes room once its node has taken back what it had.
    let has = async |amount: &str| {
        let status = Some(crate::kinds::Subresource::Status);
        let told = json!([{"name": "c", "image": "a", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": amount}, "resources": {"requests": {"cpu": amount}}}]);
        let tell = |pod: &mut Value| {
            pod["status"]["containerStatuses"] = told.clone();
            Ok(())
        };
        objects.modify(registry::of::<Pod>(), status, "default", "p", &options, tell).await.unwrap();
    };
    has("2").await;
    let next = json!({"metadata": {"name": "q"}, "spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": "2500m"}}}]}});
    objects.create(registry::of::<Pod>(), "default", next, &options).await.unwrap();
    let mut refused = false;
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap();
        let pod = event.object.typed::<Pod>();
        if pod.metadata.name.as_deref() != Some("q") {
            continue;
        }
        if pod.spec.as_ref().unwrap().node_name.is_some() {
            break;
        }
        if condition(&pod) && !refused {
            refused = true;
            has("1").await;
        }
    }
    assert!(refused, "there was no room at first");
    tasks.stop().await;
}
