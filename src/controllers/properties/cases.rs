//! The cases, a few lines each.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, DnType, KeyPair};

use super::{super::*, *};
use crate::{
    kinds::volumes::SELECTED_NODE,
    usage::{ContainerUse, PodUse},
};

fn run(_: &Pod) -> Fate {
    Fate::Run
}

fn leave(_: &Pod) -> Fate {
    Fate::Leave
}

/// Pods run once, and then have done their work.
fn finish(pod: &Pod) -> Fate {
    if pods::phase(pod) == "Running" { Fate::Succeed } else { Fate::Run }
}

fn workload(kind: &str, spec: Value) -> Value {
    let version = if kind == "ReplicationController" { "v1" } else { "apps/v1" };
    let labels = json!({"app": "web"});
    let selector = if version == "v1" { labels.clone() } else { json!({ "matchLabels": labels }) };
    let base = json!({"selector": selector, "template": sim::template(labels, "a:1")});
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "web"}, "spec": crate::patch::merge_patch(&base, &spec)})
}

fn job(kind: &str, spec: Value) -> Value {
    let pod = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}});
    let spec = if kind == "CronJob" {
        crate::patch::merge_patch(
            &json!({"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": pod}}}),
            &spec,
        )
    } else {
        let base =
            json!({"manualSelector": true, "selector": {"matchLabels": {"app": "web"}}, "template": pod});
        let labelled = json!({"template": {"metadata": {"labels": {"app": "web"}}}});
        crate::patch::merge_patch(&crate::patch::merge_patch(&base, &labelled), &spec)
    };
    json!({"apiVersion": "batch/v1", "kind": kind, "metadata": {"name": "web"}, "spec": spec})
}

fn pod(name: &str, spec: Value) -> Value {
    let base = json!({"containers": [{"name": "c", "image": "a", "ports": [{"containerPort": 8080}]}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": crate::patch::merge_patch(&base, &spec)})
}

fn object(api_version: &str, kind: &str, name: &str, more: Value) -> Value {
    let base = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    crate::patch::merge_patch(&base, &more)
}

fn node(name: &str) -> Value {
    object("v1", "Node", name, json!({}))
}

fn ready(name: &'static str, state: &str) -> Change {
    Change::Status(
        "nodes",
        name,
        json!({"conditions": [{"type": "Ready", "status": state}],
        "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}),
    )
}

fn image(tag: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": tag}]}}}})
}

fn replicas(count: i32) -> Value {
    json!({"spec": {"replicas": count}})
}

fn bound(least: usize, most: usize) -> Change {
    Change::Bound(Bound { app: "web", least, most })
}

/// A field (JSON pointer) of an object.
fn field(resource: &'static str, name: &'static str, pointer: &'static str) -> End {
    Box::new(move |objects| {
        let row = registry::by_resource(resource).unwrap();
        let found = objects.get(row, if row.namespaced { "default" } else { "" }, name);
        found.map_or(Value::Null, |o| o.value().pointer(pointer).cloned().unwrap_or_default())
    })
}

/// How many objects there are.
fn count(resources: &'static [&'static str]) -> End {
    Box::new(move |objects| resources.iter().map(|r| objects.store().list(r, None).items.len()).collect())
}

/// The images of the pods that are available.
fn images() -> End {
    Box::new(|objects| {
        let running = of(objects, "web").filter(|p| pods::is_active(p) && pods::is_ready(p));
        let mut all: Vec<String> =
            running.filter_map(|p| p.spec.as_ref()?.containers[0].image.clone()).collect();
        all.sort();
        all.into()
    })
}

#[tokio::test]
async fn deployments_roll() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    holds(Case {
        controllers: || {
            vec![Arc::new(deployment::DeploymentController), Arc::new(replica_set::ReplicaSetController)]
        },
        objects: vec![workload("Deployment", json!({"replicas": 4, "strategy": rolling}))],
        changes: vec![
            bound(3, 5),
            Change::Merge("deployments.apps", "web", image("a:2")),
            bound(2, 5),
            Change::Merge("deployments.apps", "web", replicas(2)),
        ],
        fate: run,
        deletes: &[("pods", 4 + 2)],
        end: (images(), json!(["a:2", "a:2"])),
    })
    .await;
}

#[tokio::test]
async fn deployments_recreate() {
    holds(Case {
        controllers: || {
            vec![Arc::new(deployment::DeploymentController), Arc::new(replica_set::ReplicaSetController)]
        },
        objects: vec![workload(
            "Deployment",
            json!({"replicas": 2, "revisionHistoryLimit": 0, "strategy": {"type": "Recreate"}}),
        )],
        changes: vec![bound(0, 2), Change::Merge("deployments.apps", "web", image("a:2"))],
        fate: run,
        deletes: &[("pods", 2), ("replicasets.apps", 1)],
        end: (images(), json!(["a:2", "a:2"])),
    })
    .await;
}

#[tokio::test]
async fn replica_sets_have_as_many_as_wanted() {
    let orphan = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orphan", "labels": {"app": "web"},
        "annotations": {"controller.kubernetes.io/pod-deletion-cost": "1"}},
        "spec": {"containers": [{"name": "c", "image": "a:0"}]}});
    holds(Case {
        controllers: || vec![Arc::new(replica_set::ReplicaSetController)],
        objects: vec![orphan, workload("ReplicaSet", json!({"replicas": 4}))],
        changes: vec![bound(1, 4), Change::Merge("replicasets.apps", "web", replicas(1))],
        fate: run,
        deletes: &[("pods", 3)],
        end: (field("replicasets.apps", "web", "/status/availableReplicas"), json!(1)),
    })
    .await;
}

#[tokio::test]
async fn replication_controllers_have_as_many_as_wanted() {
    holds(Case {
        controllers: || vec![Arc::new(replication_controller::ReplicationManager)],
        objects: vec![workload("ReplicationController", json!({"replicas": 4}))],
        changes: vec![bound(1, 4), Change::Merge("replicationcontrollers", "web", replicas(1))],
        fate: run,
        deletes: &[("pods", 3)],
        end: (field("replicationcontrollers", "web", "/status/availableReplicas"), json!(1)),
    })
    .await;
}

#[tokio::test]
async fn stateful_sets_go_in_order() {
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    holds(Case {
        controllers: || vec![Arc::new(stateful_set::StatefulSetController::default())],
        objects: vec![workload(
            "StatefulSet",
            json!({"replicas": 3, "serviceName": "web", "volumeClaimTemplates": [claim]}),
        )],
        changes: vec![
            bound(2, 3),
            Change::Merge("statefulsets.apps", "web", image("a:2")),
            bound(1, 3),
            Change::Merge("statefulsets.apps", "web", replicas(1)),
        ],
        fate: run,
        deletes: &[("pods", 3 + 2)],
        end: (images(), json!(["a:2"])),
    })
    .await;
}

#[tokio::test]
async fn stateful_sets_go_side_by_side() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}});
    holds(Case {
        controllers: || vec![Arc::new(stateful_set::StatefulSetController::default())],
        objects: vec![workload("StatefulSet", json!({"replicas": 4, "serviceName": "web", "podManagementPolicy": "Parallel", "updateStrategy": rolling}))],
        changes: vec![bound(2, 4), Change::Merge("statefulsets.apps", "web", image("a:2"))],
        fate: run,
        deletes: &[("pods", 4)],
        end: (images(), json!(["a:2", "a:2", "a:2", "a:2"])),
    })
    .await;
}

async fn daemons(rolling: Value, least: usize, most: usize) {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
    holds(Case {
        controllers: || vec![Arc::new(daemon_set::DaemonSetController::default())],
        objects: vec![
            node("a"),
            node("b"),
            node("c"),
            workload("DaemonSet", json!({"updateStrategy": strategy})),
        ],
        changes: vec![
            bound(least, most),
            Change::Merge("daemonsets.apps", "web", image("a:2")),
            bound(2, 3),
            Change::Merge("nodes", "c", json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})),
        ],
        fate: run,
        deletes: &[("pods", 3 + 1)],
        end: (images(), json!(["a:2", "a:2"])),
    })
    .await;
}

#[tokio::test]
async fn daemon_sets_replace_one_by_one() {
    daemons(json!({"maxUnavailable": 1, "maxSurge": 0}), 2, 3).await;
}

#[tokio::test]
async fn daemon_sets_surge() {
    daemons(json!({"maxUnavailable": 0, "maxSurge": 1}), 3, 4).await;
}

#[tokio::test]
async fn jobs_count_every_pod_once() {
    for mode in ["NonIndexed", "Indexed"] {
        let spec = json!({"completions": 5, "parallelism": 2, "completionMode": mode});
        holds(Case {
            controllers: || vec![Arc::new(job::JobController)],
            objects: vec![job("Job", spec)],
            changes: vec![bound(0, 2)],
            fate: finish,
            deletes: &[],
            end: (field("jobs.batch", "web", "/status/succeeded"), json!(5)),
        })
        .await;
    }
}

#[tokio::test]
async fn suspended_jobs_stop_and_go_on() {
    holds(Case {
        controllers: || vec![Arc::new(job::JobController)],
        objects: vec![job("Job", json!({"completions": 3, "parallelism": 3}))],
        changes: vec![
            bound(0, 3),
            Change::Merge("jobs.batch", "web", json!({"spec": {"suspend": true}})),
            Change::Merge("jobs.batch", "web", json!({"spec": {"suspend": false, "parallelism": 1}})),
        ],
        fate: run,
        deletes: &[("pods", 3)],
        end: (field("jobs.batch", "web", "/status/active"), json!(1)),
    })
    .await;
}

#[tokio::test]
async fn finished_jobs_go_in_time_with_all_they_had() {
    holds(Case {
        controllers: || {
            vec![
                Arc::new(job::JobController),
                Arc::new(job::TtlController),
                Arc::new(job::OrphanController),
                Arc::new(garbage::GarbageCollector),
            ]
        },
        objects: vec![
            object("v1", "Namespace", "default", json!({})),
            job("Job", json!({"completions": 2, "ttlSecondsAfterFinished": 100})),
        ],
        changes: vec![Change::Pass(200)],
        fate: finish,
        deletes: &[("jobs.batch", 1), ("pods", 2)],
        end: (count(&["jobs.batch", "pods"]), json!([0, 0])),
    })
    .await;
}

#[tokio::test]
async fn jobs_that_are_deleted_leave_no_pod_behind() {
    holds(Case {
        controllers: || {
            vec![
                Arc::new(job::JobController),
                Arc::new(job::OrphanController),
                Arc::new(garbage::GarbageCollector),
            ]
        },
        objects: vec![
            object("v1", "Namespace", "default", json!({})),
            job("Job", json!({"completions": 2, "parallelism": 2})),
        ],
        changes: vec![Change::Delete("jobs.batch", "web", Some(Propagation::Background))],
        fate: run,
        deletes: &[("pods", 2)],
        end: (count(&["jobs.batch", "pods"]), json!([0, 0])),
    })
    .await;
}

#[tokio::test]
async fn cron_jobs_start_one_run_a_time() {
    // What is left after three runs of which each ends at once: the history; or of which none ends.
    for (policy, fate, left, deletes) in [
        ("Forbid", finish as fn(&Pod) -> Fate, json!([2]), &[("jobs.batch", 1), ("pods", 1)][..]),
        ("Forbid", run, json!([1]), &[]),
        ("Replace", run, json!([1]), &[("jobs.batch", 2), ("pods", 2)]),
        ("Allow", run, json!([3]), &[]),
    ] {
        holds(Case {
            controllers: || {
                vec![
                    Arc::new(cron_job::CronJobController),
                    Arc::new(job::JobController),
                    Arc::new(job::OrphanController),
                    Arc::new(garbage::GarbageCollector),
                ]
            },
            objects: vec![
                object("v1", "Namespace", "default", json!({})),
                job("CronJob", json!({"concurrencyPolicy": policy, "successfulJobsHistoryLimit": 2})),
            ],
            changes: vec![Change::Pass(400), Change::Pass(300), Change::Pass(300)],
            fate,
            deletes: Box::leak(deletes.to_vec().into_boxed_slice()),
            end: (count(&["jobs.batch"]), left),
        })
        .await;
    }
}

#[tokio::test]
async fn budgets_allow_what_may_go() {
    holds(Case {
        controllers: || {
            vec![Arc::new(replica_set::ReplicaSetController), Arc::new(disruption::DisruptionController)]
        },
        objects: vec![
            workload("ReplicaSet", json!({"replicas": 3})),
            object(
                "policy/v1",
                "PodDisruptionBudget",
                "pdb",
                json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}}),
            ),
        ],
        changes: vec![Change::Merge("replicasets.apps", "web", replicas(4))],
        fate: run,
        deletes: &[],
        end: (field("poddisruptionbudgets.policy", "pdb", "/status/disruptionsAllowed"), json!(1)),
    })
    .await;
}

fn with_address(name: &'static str, ip: &str) -> Change {
    Change::Status(
        "pods",
        name,
        json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}]}),
    )
}

#[tokio::test]
async fn services_lead_to_their_pods() {
    let endpoints: End = Box::new(|objects| {
        let mut all: Vec<Value> = Vec::new();
        for slice in objects.store().list("endpointslices.discovery.k8s.io", None).items {
            all.extend(
                slice.value()["endpoints"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|e| e["addresses"][0].clone()),
            );
        }
        let legacy = field("endpoints", "web", "/subsets/0/addresses/0/ip")(objects);
        json!([all, legacy])
    });
    holds(Case {
        controllers: || vec![Arc::new(endpoints::SliceController), Arc::new(endpoints::EndpointsController)],
        objects: vec![
            object("v1", "Service", "web", json!({"spec": {"clusterIP": "10.0.0.1", "selector": {"app": "web"}, "ports": [{"port": 80}]}})),
            pod("one", json!({"nodeName": "a"})),
            pod("two", json!({"nodeName": "a"})),
        ],
        changes: vec![with_address("one", "10.1.0.1"), with_address("two", "10.1.0.2"), Change::Delete("pods", "one", None)],
        fate: |pod| if pods::is_deleting(pod) { Fate::Run } else { Fate::Leave },
        deletes: &[],
        end: (endpoints, json!([["10.1.0.2"], "10.1.0.2"])),
    })
    .await;
}

#[tokio::test]
async fn endpoints_by_hand_are_mirrored() {
    holds(Case {
        controllers: || vec![Arc::new(endpoints::MirroringController)],
        objects: vec![
            object(
                "v1",
                "Service",
                "web",
                json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
            ),
            object(
                "v1",
                "Endpoints",
                "web",
                json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}),
            ),
        ],
        changes: vec![
            Change::Merge(
                "endpoints",
                "web",
                json!({"subsets": [{"addresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 80}]}]}),
            ),
            Change::Delete("endpoints", "web", None),
        ],
        fate: leave,
        deletes: &[("endpointslices.discovery.k8s.io", 1)],
        end: (count(&["endpointslices.discovery.k8s.io"]), json!([0])),
    })
    .await;
}

#[tokio::test]
async fn lost_nodes_let_their_pods_go() {
    let tolerant = |seconds: i64| {
        json!({"nodeName": "a", "tolerations": [
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]})
    };
    holds(Case {
        controllers: || {
            vec![
                Arc::new(node::NodeLifecycleController { grace: SignedDuration::from_secs(40) }),
                Arc::new(node::TaintEvictionController::default()),
                Arc::new(node::PodCollector),
            ]
        },
        objects: vec![node("a"), node("b")],
        changes: vec![
            ready("a", "True"),
            ready("b", "True"),
            Change::Create(pod("short", tolerant(10))),
            Change::Create(pod("long", tolerant(10_000))),
            Change::Create(pod("other", json!({"nodeName": "b"}))),
            Change::Down("a"),
            ready("a", "Unknown"),
            // A master that begins anew counts the tolerated time anew, as upstream's does.
            Change::Pass(60),
            Change::Pass(60),
            ready("a", "True"),
            Change::Down(""),
            Change::Delete("nodes", "b", None),
            Change::Pass(100),
        ],
        fate: run,
        // The collector's deletions of a pod that is going already are none.
        deletes: &[("pods", 2)],
        end: (count(&["pods"]), json!([1])),
    })
    .await;
}

#[tokio::test]
async fn pods_leave_boards_that_cannot_run_them() {
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "o", "controller": true}]);
    let mut stranded =
        pod("stranded", json!({"nodeName": "a", "containers": [{"name": "c", "image": "web:1"}]}));
    stranded["metadata"]["ownerReferences"] = owner;
    let waiting = json!({"phase": "Pending", "containerStatuses": [{"name": "c", "image": "web:1", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
    let learned = json!({"metadata": {"annotations": {"sampan.dev/platform": "linux/amd64",
        "sampan.dev/image-platforms": r#"{"docker.io/library/web:1": ["linux/arm64"]}"#}}});
    holds(Case {
        controllers: || vec![Arc::new(node::StrandedPodController)],
        objects: vec![object("v1", "Node", "a", learned), stranded],
        changes: vec![Change::Status("pods", "stranded", waiting)],
        fate: leave,
        deletes: &[("pods", 1)],
        end: (count(&["pods"]), json!([0])),
    })
    .await;
}

fn storage_controllers() -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(storage::ClaimController { local_path: Some("/data".into()) }),
        Arc::new(storage::VolumeController),
        Arc::new(storage::ClaimProtectionController),
        Arc::new(storage::VolumeProtectionController),
        Arc::new(storage::EphemeralVolumeController),
    ]
}

#[tokio::test]
async fn claims_get_one_volume_each() {
    let claim = |name: &str| {
        object(
            "v1",
            "PersistentVolumeClaim",
            name,
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}}),
        )
    };
    let volume = |name: &str| {
        object(
            "v1",
            "PersistentVolume",
            name,
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/x"}, "persistentVolumeReclaimPolicy": "Retain"}}),
        )
    };
    let phases: End = Box::new(|objects| {
        let phase = |resource| -> Vec<Value> {
            objects
                .store()
                .list(resource, None)
                .items
                .iter()
                .map(|o| o.value()["status"]["phase"].clone())
                .collect()
        };
        let mut volumes: Vec<String> =
            phase("persistentvolumes").iter().filter_map(|p| p.as_str().map(str::to_owned)).collect();
        volumes.sort();
        json!([phase("persistentvolumeclaims"), volumes])
    });
    holds(Case {
        controllers: storage_controllers,
        objects: vec![claim("one"), claim("two"), volume("v1"), volume("v2"), volume("v3")],
        changes: vec![Change::Delete("persistentvolumeclaims", "two", None)],
        fate: leave,
        deletes: &[],
        end: (phases, json!([["Bound"], ["Available", "Bound", "Released"]])),
    })
    .await;
}

#[tokio::test]
async fn folders_are_made_grow_and_go() {
    let volume = json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "local-path", "resources": {"requests": {"storage": "1Gi"}}}}}}]);
    holds(Case {
        controllers: || {
            let mut all = storage_controllers();
            all.push(Arc::new(garbage::GarbageCollector));
            all
        },
        objects: vec![
            object("v1", "Namespace", "default", json!({})),
            storage::local_path::default_class(),
            node("a"),
            pod("p", json!({ "volumes": volume })),
        ],
        changes: vec![
            Change::Merge(
                "persistentvolumeclaims",
                "p-v",
                json!({"metadata": {"annotations": {SELECTED_NODE: "a"}}}),
            ),
            Change::Merge(
                "persistentvolumeclaims",
                "p-v",
                json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}),
            ),
            Change::Delete("pods", "p", None),
            // What the node does with the folder, its end does too.
            Change::Delete("nodes", "a", None),
        ],
        fate: run,
        deletes: &[("persistentvolumeclaims", 1), ("persistentvolumes", 1)],
        end: (count(&["pods", "persistentvolumeclaims", "persistentvolumes"]), json!([0, 0, 0])),
    })
    .await;
}

#[tokio::test]
async fn quotas_say_what_is_used() {
    holds(Case {
        controllers: || vec![Arc::new(quota::QuotaController)],
        objects: vec![
            pod("one", json!({})),
            object("v1", "ResourceQuota", "q", json!({"spec": {"hard": {"pods": "5"}}})),
        ],
        changes: vec![Change::Create(pod("two", json!({})))],
        fate: leave,
        deletes: &[],
        end: (field("resourcequotas", "q", "/status/used/pods"), json!("2")),
    })
    .await;
}

#[tokio::test]
async fn balancers_and_ingresses_have_the_nodes_addresses() {
    let addresses: End = Box::new(|objects| {
        let ip = "/status/loadBalancer/ingress/0/ip";
        json!([
            field("services", "web", ip)(objects),
            field("ingresses.networking.k8s.io", "web", ip)(objects)
        ])
    });
    let rule = json!({"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}});
    holds(Case {
        controllers: || {
            vec![Arc::new(load_balancer::LoadBalancerController), Arc::new(load_balancer::IngressController)]
        },
        objects: vec![
            node("a"),
            object(
                "v1",
                "Service",
                "web",
                json!({"spec": {"clusterIP": "10.0.0.1", "type": "LoadBalancer", "ports": [{"port": 80}]}}),
            ),
            object("networking.k8s.io/v1", "Ingress", "web", rule),
        ],
        changes: vec![ready("a", "True"), ready("a", "Unknown"), ready("a", "True")],
        fate: leave,
        deletes: &[],
        end: (addresses, json!(["192.0.2.1", "192.0.2.1"])),
    })
    .await;
}

#[tokio::test]
async fn old_events_go() {
    let about = json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "r", "message": "m"});
    holds(Case {
        controllers: || vec![Arc::new(event_collector::EventCollector)],
        objects: vec![object("v1", "Event", "old", about.clone())],
        changes: vec![
            Change::Pass(3000),
            Change::Create(object("v1", "Event", "new", about)),
            Change::Pass(700),
        ],
        fate: leave,
        deletes: &[("events", 1)],
        end: (count(&["events"]), json!([1])),
    })
    .await;
}

/// What the authority of the simulation signs, whatever it is asked for.
static CERTIFICATE: LazyLock<String> =
    LazyLock::new(|| rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem());

#[tokio::test]
async fn requests_are_approved_signed_and_cleaned() {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "system:node:a");
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let spec = json!({"spec": {"request": STANDARD.encode(request), "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
        "username": "system:node:a", "usages": ["client auth", "digital signature"]}});
    let csr = |name: &str| object("certificates.k8s.io/v1", "CertificateSigningRequest", name, spec.clone());
    let role = json!({"rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/nodeclient"], "verbs": ["create"]}]});
    let binding = json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:node:a"}]});
    holds(Case {
        controllers: || {
            let authority = certificates::Authority::new(|_, _, _, _| Ok(CERTIFICATE.clone()));
            vec![
                Arc::new(certificates::Approver),
                Arc::new(certificates::Signer { authority: Some(authority) }),
                Arc::new(certificates::Cleaner),
            ]
        },
        objects: vec![
            object("rbac.authorization.k8s.io/v1", "ClusterRole", "r", role),
            object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "b", binding),
            csr("first"),
        ],
        changes: vec![Change::Pass(7200), Change::Create(csr("second"))],
        fate: leave,
        deletes: &[("certificatesigningrequests.certificates.k8s.io", 1)],
        end: (
            field("certificatesigningrequests.certificates.k8s.io", "second", "/status/certificate"),
            STANDARD.encode(&*CERTIFICATE).into(),
        ),
    })
    .await;
}

#[tokio::test]
async fn roles_are_made_of_others() {
    let role = |name: &str, verb: &str| {
        object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            name,
            json!({"metadata": {"labels": {"part": "x"}},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]}),
        )
    };
    let whole =
        json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"part": "x"}}]}, "rules": []});
    holds(Case {
        controllers: || vec![Arc::new(cluster_role::ClusterRoleAggregation)],
        objects: vec![
            object("rbac.authorization.k8s.io/v1", "ClusterRole", "whole", whole),
            role("a", "get"),
        ],
        changes: vec![Change::Create(role("b", "list"))],
        fate: leave,
        deletes: &[],
        end: (field("clusterroles.rbac.authorization.k8s.io", "whole", "/rules/1/verbs"), json!(["list"])),
    })
    .await;
}

#[tokio::test]
async fn what_is_owned_goes_with_its_owner() {
    for (policy, left) in
        [(Propagation::Background, 0), (Propagation::Foreground, 0), (Propagation::Orphan, 2)]
    {
        holds(Case {
            controllers: || {
                vec![
                    Arc::new(deployment::DeploymentController),
                    Arc::new(replica_set::ReplicaSetController),
                    Arc::new(garbage::GarbageCollector),
                ]
            },
            objects: vec![
                object("v1", "Namespace", "default", json!({})),
                workload("Deployment", json!({"replicas": 2})),
            ],
            changes: vec![Change::Delete("deployments.apps", "web", Some(policy))],
            fate: run,
            deletes: if left > 0 { &[] } else { &[("pods", 2), ("replicasets.apps", 1)] },
            end: (count(&["deployments.apps", "pods"]), json!([0, left])),
        })
        .await;
    }
}

#[tokio::test]
async fn namespaces_have_what_all_have_and_end_empty() {
    holds(Case {
        controllers: || {
            vec![
                Arc::new(namespace::NamespaceController),
                Arc::new(serviceaccount::ServiceAccountsController),
                Arc::new(serviceaccount::RootCaPublisher { certificate: "pem".into() }),
            ]
        },
        objects: vec![
            object("v1", "Namespace", "team", json!({})),
            object("v1", "Secret", "s", json!({"metadata": {"namespace": "team"}})),
            object("v1", "Namespace", "stays", json!({})),
        ],
        changes: vec![Change::Delete("namespaces", "team", None)],
        fate: leave,
        deletes: &[("secrets", 1), ("configmaps", 1), ("serviceaccounts", 1)],
        end: (count(&["namespaces", "configmaps", "serviceaccounts"]), json!([1, 1, 1])),
    })
    .await;
}

#[tokio::test]
async fn autoscalers_follow_the_load_within_their_limits() {
    #[derive(Debug)]
    struct Busy;
    impl PodUsage for Busy {
        fn pod(&self, _: &str, _: &str) -> Option<PodUse> {
            let container = ContainerUse { name: "c".into(), cpu_nanocores: 0, memory_bytes: 100 << 20 };
            let window = SignedDuration::from_secs(15);
            Some(PodUse { at: jiff::Timestamp::UNIX_EPOCH, window, containers: vec![container] })
        }
    }
    let busy = json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"memory": "100Mi"}}}]}}});
    let spec = json!({"spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web"}, "minReplicas": 1, "maxReplicas": 3,
        "metrics": [{"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
    holds(Case {
        controllers: || {
            vec![
                Arc::new(replica_set::ReplicaSetController),
                Arc::new(autoscaler::AutoscalerController::new(Arc::new(Busy))),
            ]
        },
        objects: vec![
            workload("ReplicaSet", busy),
            object("autoscaling/v2", "HorizontalPodAutoscaler", "h", spec),
        ],
        changes: vec![
            bound(1, 3),
            Change::Pass(400),
            Change::Pass(400),
            Change::Pass(400),
            Change::Pass(400),
        ],
        fate: run,
        deletes: &[],
        end: (field("replicasets.apps", "web", "/status/availableReplicas"), json!(3)),
    })
    .await;
}

#[tokio::test]
async fn networks_of_services_stay_while_their_addresses_are_used() {
    let spec =
        json!({"spec": {"clusterIP": "10.44.0.9", "clusterIPs": ["10.44.0.9"], "ports": [{"port": 80}]}});
    holds(Case {
        controllers: || {
            vec![
                Arc::new(service_addresses::IpAddressController),
                Arc::new(service_addresses::ServiceCidrController),
            ]
        },
        objects: vec![
            object(
                "networking.k8s.io/v1",
                "ServiceCIDR",
                "more",
                json!({"spec": {"cidrs": ["10.44.0.0/24"]}}),
            ),
            object("v1", "Service", "web", spec),
        ],
        changes: vec![
            Change::Delete("servicecidrs.networking.k8s.io", "more", None),
            Change::Delete("services", "web", None),
            Change::Pass(20),
        ],
        fate: leave,
        deletes: &[("ipaddresses.networking.k8s.io", 1)],
        end: (
            count(&["services", "ipaddresses.networking.k8s.io", "servicecidrs.networking.k8s.io"]),
            json!([0, 0, 0]),
        ),
    })
    .await;
}

/// A controller that none of the cases above has is forgotten.
#[test]
fn no_controller_is_left_out() {
    let cases = include_str!("cases.rs");
    let rows = include_str!("../mod.rs");
    let (_, rows) = rows.split_once("fn all(").unwrap();
    let types = rows.split("Arc::new(").skip(1).map(|row| {
        let path = row.split([')', '{', '(']).next().unwrap().trim();
        path.split("::").find(|part| part.starts_with(char::is_uppercase)).unwrap()
    });
    let left_out: Vec<&str> = types.filter(|name| !cases.contains(&format!("::{name}"))).collect();
    assert!(left_out.is_empty(), "{left_out:?}");
}
