//! Every workload kind and strategy with real containers, as kubectl sees them; and a rolling
//! update under load.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use common::{Node, SAMPAN, board, output, wait_for};

/// A workload whose pods are the demo's web page; `spec` is JSON without its braces.
fn workload(kind: &str, name: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion": "apps/v1", "kind": "{kind}", "metadata": {{"name": "{name}"}}, "spec": {{{spec},
        "selector": {{"matchLabels": {{"app": "{name}"}}}}, "template": {{"metadata": {{"labels": {{"app": "{name}"}}}},
        "spec": {{"terminationGracePeriodSeconds": 1, "containers": [{{"name": "c", "image": "sampan.dev/demo",
            "readinessProbe": {{"httpGet": {{"path": "/", "port": 8080}}, "periodSeconds": 1}}}}]}}}}}}}}"#
    )
}

/// A Job (or the template of one) that runs an applet.
fn job(name: &str, spec: &str, command: &str) -> String {
    format!(
        r#"{{"apiVersion": "batch/v1", "kind": "Job", "metadata": {{"name": "{name}"}}, "spec": {{{spec}
        "template": {{"spec": {{"restartPolicy": "Never", "containers": [{{"name": "c", "image": "sampan.dev/demo",
            "command": ["/sampan", "demo", "sh", "-c", "{command}"]}}]}}}}}}}}"#
    )
}

fn rolled_out(node: &Node, what: &str) -> String {
    node.k(&["rollout", "status", what, "--timeout=60s"])
}

/// A field of an object.
fn field(node: &Node, what: &str, path: &str) -> String {
    node.k(&["get", what, "-o", &format!("jsonpath={{{path}}}")])
}

/// The uids of pods, by label.
fn uids(node: &Node, app: &str) -> Vec<String> {
    let text =
        node.k(&["get", "pods", "-l", &format!("app={app}"), "-o", "jsonpath={.items[*].metadata.uid}"]);
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn deployments_roll_forward_and_back_in_both_strategies() {
    let node = board("deploy");
    node.apply(&workload("Deployment", "roll", r#""replicas": 2"#));
    node.apply(&workload("Deployment", "swap", r#""replicas": 2, "strategy": {"type": "Recreate"}"#));
    rolled_out(&node, "deployment/roll");
    rolled_out(&node, "deployment/swap");
    for name in ["deployment/roll", "deployment/swap"] {
        node.k(&["set", "env", name, "VERSION=2"]);
        rolled_out(&node, name);
        node.k(&["rollout", "undo", name]);
        rolled_out(&node, name);
        let history = node.k(&["rollout", "history", name]);
        assert!(
            history.contains("\n2 ") && history.contains("\n3 ") && !history.contains("\n1 "),
            "{history}"
        );
    }
    node.k(&["rollout", "pause", "deployment/roll"]);
    node.k(&["set", "env", "deployment/roll", "VERSION=3"]);
    node.k(&["scale", "deployment/roll", "--replicas=3"]);
    node.wait_output(&["get", "deployment", "roll"], "three replicas of the old version", |t| {
        t.contains("3/3")
    });
    assert_eq!(field(&node, "deployment/roll", ".status.updatedReplicas"), "");
    node.k(&["rollout", "resume", "deployment/roll"]);
    rolled_out(&node, "deployment/roll");
    node.k(&["rollout", "restart", "deployment/swap"]);
    rolled_out(&node, "deployment/swap");
    // Nobody comes up: the old pods stay, and the deadline is told.
    node.k(&[
        "patch",
        "deployment",
        "roll",
        "-p",
        r#"{"spec": {"progressDeadlineSeconds": 5, "minReadySeconds": 0}}"#,
    ]);
    node.k(&["set", "image", "deployment/roll", "c=127.0.0.1:1/none:1"]);
    let failed = output(node.kubectl().args(["rollout", "status", "deployment/roll", "--timeout=60s"]));
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(text.contains("deployment \"roll\" exceeded its progress deadline"), "{text}");
    assert_eq!(field(&node, "deployment/roll", ".status.availableReplicas"), "3");
}

#[test]
fn sets_keep_names_places_and_strategies() {
    let node = board("sets");
    let more = r#""replicas": 2, "serviceName": "db", "ordinals": {"start": 3}, "updateStrategy": {"type": "OnDelete"},
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Delete"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}}}}]"#;
    node.apply(&workload("StatefulSet", "db", more));
    let parallel = r#""replicas": 3, "serviceName": "p", "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}"#;
    node.apply(&workload("StatefulSet", "p", parallel));
    let surge = r#""updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}"#;
    node.apply(&workload("DaemonSet", "surge", surge));
    node.apply(&workload("DaemonSet", "manual", r#""updateStrategy": {"type": "OnDelete"}"#));
    node.wait_output(&["get", "statefulset"], "all replicas", |t| t.contains("2/2") && t.contains("3/3"));
    rolled_out(&node, "daemonset/surge");
    node.wait_output(&["get", "pods", "-l", "app=manual"], "the manual daemon", |t| t.contains("1/1"));
    let claims = node.k(&["get", "pvc", "-o", "name"]);
    assert_eq!(claims, "persistentvolumeclaim/data-db-3\npersistentvolumeclaim/data-db-4\n");

    let (before, kept) = (uids(&node, "db"), uids(&node, "p"));
    for name in ["statefulset/db", "statefulset/p", "daemonset/surge", "daemonset/manual"] {
        node.k(&["set", "env", name, "VERSION=2"]);
    }
    rolled_out(&node, "daemonset/surge");
    rolled_out(&node, "statefulset/p");
    let now = uids(&node, "p");
    assert_eq!(now.iter().filter(|uid| kept.contains(uid)).count(), 2, "only p-2 is above the partition");
    assert_eq!(uids(&node, "db"), before, "OnDelete waits for a deletion");
    let manual = uids(&node, "manual");
    node.k(&["delete", "pod", "db-4"]);
    node.k(&["delete", "pod", "-l", "app=manual"]);
    node.wait_output(&["get", "statefulset", "db"], "db-4 to be back", |t| t.contains("2/2"));
    let version = |pod: &str| field(&node, pod, ".spec.containers[0].env[0].value");
    assert_eq!((version("pod/db-3"), version("pod/db-4")), (String::new(), "2".to_owned()));
    node.wait_output(&["get", "pods", "-l", "app=manual"], "the new daemon", |t| t.contains("1/1"));
    assert_ne!(uids(&node, "manual"), manual);

    node.k(&["scale", "statefulset/db", "--replicas=1"]);
    node.wait_output(&["get", "pvc", "-o", "name"], "the claim of db-4 to go", |t| {
        t == "persistentvolumeclaim/data-db-3\n"
    });
    node.k(&["delete", "statefulset", "db"]);
    node.wait_output(&["get", "pvc", "-o", "name"], "no claims", str::is_empty);
}

#[test]
fn jobs_end_as_their_policies_say_and_budgets_hold() {
    let node = board("jobs");
    let indexed = r#""completions": 3, "parallelism": 2, "completionMode": "Indexed","#;
    node.apply(&job("indexed", indexed, "echo $JOB_COMPLETION_INDEX"));
    let policy = r#""podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]},"#;
    node.apply(&job("policy", policy, "exit 42"));
    node.apply(&job("limit", r#""backoffLimit": 0,"#, "exit 1"));
    node.apply(&job("late", r#""activeDeadlineSeconds": 1,"#, "sleep 60"));
    node.apply(&job("short", r#""ttlSecondsAfterFinished": 1,"#, "true"));
    node.apply(&job("held", r#""suspend": true,"#, "true"));
    let per_index = r#""completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "maxFailedIndexes": 5, "parallelism": 2,"#;
    node.apply(&job("each", per_index, "test $JOB_COMPLETION_INDEX = 1"));
    node.k(&["wait", "--for=condition=Complete", "job/indexed", "--timeout=60s"]);
    assert_eq!(field(&node, "job/indexed", ".status.completedIndexes"), "0-2");
    let logs = node.k(&["logs", "-l", "job-name=indexed", "--tail=-1"]);
    let mut lines: Vec<_> = logs.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["0", "1", "2"]);
    let reason = ".status.conditions[?(@.type==\"Failed\")].reason";
    for (name, expected) in [
        ("policy", "PodFailurePolicy"),
        ("limit", "BackoffLimitExceeded"),
        ("late", "DeadlineExceeded"),
        ("each", "FailedIndexes"),
    ] {
        node.k(&["wait", "--for=condition=Failed", &format!("job/{name}"), "--timeout=60s"]);
        assert_eq!(field(&node, &format!("job/{name}"), reason), expected);
    }
    assert_eq!(field(&node, "job/each", ".status.completedIndexes"), "1");
    node.wait_output(&["get", "jobs", "-o", "name"], "the short one to go", |t| !t.contains("short"));
    assert_eq!(node.k(&["get", "pods", "-l", "job-name=held", "-o", "name"]), "");
    node.k(&["patch", "job", "held", "-p", r#"{"spec": {"suspend": false}}"#]);
    node.k(&["wait", "--for=condition=Complete", "job/held", "--timeout=60s"]);

    node.k(&[
        "create",
        "cronjob",
        "c",
        "--image=sampan.dev/demo",
        "--schedule=0 0 1 1 *",
        "--",
        "/sampan",
        "demo",
        "true",
    ]);
    node.k(&["create", "job", "by-hand", "--from=cronjob/c"]);
    node.k(&["wait", "--for=condition=Complete", "job/by-hand", "--timeout=60s"]);
    assert_eq!(field(&node, "cronjob/c", ".status.active"), "");

    node.apply(&workload("Deployment", "web", r#""replicas": 2"#));
    rolled_out(&node, "deployment/web");
    node.k(&["create", "pdb", "web", "--selector=app=web", "--min-available=2"]);
    node.wait_output(&["get", "pdb", "web"], "the budget to be counted", |t| t.contains(" 0 "));
    let name = node.name.clone();
    let drain = ["drain", &name, "--ignore-daemonsets", "--force", "--timeout=3s", "--pod-selector=app=web"];
    let refused = output(node.kubectl().args(drain));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{text}");
    assert_eq!(uids(&node, "web").len(), 2);
    node.k(&["delete", "pdb", "web"]);
    node.k(&["drain", &name, "--ignore-daemonsets", "--force", "--timeout=60s", "--pod-selector=app=web"]);
    node.wait_output(&["get", "events", "--field-selector=reason=FailedScheduling"], "the pods to wait", |t| {
        t.contains("0/1 nodes are available: 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
    });
    node.k(&["uncordon", &name]);
    rolled_out(&node, "deployment/web");
}

#[test]
fn a_rolling_update_under_load_loses_no_request() {
    let node = board("load");
    // The demo ends at once when told to, also in the middle of an answer. As everywhere, its pods
    // leave the Service first and are told a moment later.
    let spec = r#""replicas": 3, "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}"#;
    let patient = workload("Deployment", "web", spec)
        .replace("GracePeriodSeconds\": 1", "GracePeriodSeconds\": 10")
        .replace(
            r#""readinessProbe""#,
            r#""lifecycle": {"preStop": {"sleep": {"seconds": 2}}}, "readinessProbe""#,
        );
    node.apply(&patient);
    node.k(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    rolled_out(&node, "deployment/web");
    let url = format!("http://{}/", field(&node, "service/web", ".spec.clusterIP"));
    let ask = |node: &Node| {
        let mut command = node.space.command(SAMPAN);
        command.args(["demo", "wget", "-q", "-O", "/dev/null", "-T", "5", &url]);
        command
    };
    wait_for("the service to answer", || {
        let out = output(&mut ask(&node));
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let loaders: Vec<_> = (0..2)
        .map(|_| {
            let (stop, asked, mut command) = (Arc::clone(&stop), Arc::clone(&asked), ask(&node));
            thread::spawn(move || {
                let mut lost = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let out = output(&mut command);
                    asked.fetch_add(1, Ordering::Relaxed);
                    if !out.status.success() {
                        lost.push(String::from_utf8_lossy(&out.stderr).into_owned());
                    }
                }
                lost
            })
        })
        .collect();
    for round in 0..2 {
        node.k(&["set", "env", "deployment/web", &format!("ROUND={round}")]);
        rolled_out(&node, "deployment/web");
    }
    stop.store(true, Ordering::Relaxed);
    let lost: Vec<String> = loaders.into_iter().flat_map(|l| l.join().unwrap()).collect();
    let asked = asked.load(Ordering::Relaxed);
    assert!(lost.is_empty() && asked > 50, "{} of {asked} lost: {lost:?}", lost.len());
}
