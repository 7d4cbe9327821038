//! One board as its user sees it: the real binary, the real kubectl, real containers.

mod common;

use common::{Namespace, Node, mounts_below, must, output, processes_of, unique, wait_for};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: sampan.dev/demo
        ports:
        - containerPort: 8080
---
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": "blue"}}
"#;

fn board(test: &str) -> Node {
    let name = unique(test);
    let space = Namespace::new(&name, "192.0.2.10/24");
    let node = Node::start("server", &name, space, &[]);
    node.wait_ready();
    node
}

#[test]
fn a_deployment_lives_from_apply_to_delete() {
    let node = board("life");
    let applied = node.apply(WEB);
    assert!(
        applied.contains("deployment.apps/web created") && applied.contains("configmap/settings created")
    );
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(node.apply(WEB).contains("deployment.apps/web unchanged"));

    let pods = node.k(&["get", "pods", "-o", "wide"]);
    assert_eq!(pods.matches("1/1     Running").count(), 2, "{pods}");
    assert!(pods.contains("10.42."), "{pods}");

    node.k(&["scale", "deployment/web", "--replicas=3"]);
    node.wait_output(&["get", "deployment", "web"], "three replicas", |text| text.contains("3/3"));

    node.k(&["set", "env", "deployment/web", "COLOUR=red"]);
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let sets = node.k(&["get", "rs", "--no-headers"]);
    assert_eq!(sets.lines().count(), 2, "{sets}");

    node.k(&["delete", "deployment", "web", "--wait=true"]);
    node.wait_output(&["get", "pods", "--no-headers"], "no pods", |text| text.trim().is_empty());
    let dir = node.dir.path().to_owned();
    wait_for("no container process to be left", || {
        let left: Vec<_> = processes_of(&dir).into_iter().filter(|p| !p.contains("--data-dir")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    wait_for("no mount to be left", || {
        let left: Vec<_> =
            mounts_below(&dir).into_iter().filter(|m| m.contains("/pods/") || m.contains("/ns/")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn containers_outlive_a_killed_daemon_and_are_adopted() {
    let mut node = board("adopt");
    node.apply(WEB);
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let query = [
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}",
    ];
    let before = node.k(&query);
    node.kill();
    node.spawn();
    node.wait_ready();
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(node.k(&query), before);
    assert!(node.k(&["get", "configmap", "settings", "-o", "jsonpath={.data.colour}"]) == "blue");
}

#[test]
fn exec_logs_and_exit_codes_come_through() {
    let node = board("exec");
    node.apply(WEB);
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(node.k(&["exec", "deploy/web", "--", "/sampan", "demo", "echo", "hello"]), "hello\n");
    let failed = output(node.kubectl().args(["exec", "deploy/web", "--", "/sampan", "demo", "exit", "7"]));
    assert_eq!(failed.status.code(), Some(7));

    node.k(&[
        "run",
        "talker",
        "--image=sampan.dev/demo",
        "--restart=Never",
        "--command",
        "--",
        "/sampan",
        "demo",
        "echo",
        "one line",
    ]);
    node.wait_output(&["get", "pod", "talker"], "the pod to complete", |text| text.contains("Completed"));
    assert_eq!(node.k(&["logs", "talker"]), "one line\n");

    node.k(&[
        "run",
        "failer",
        "--image=sampan.dev/demo",
        "--restart=Never",
        "--command",
        "--",
        "/sampan",
        "demo",
        "exit",
        "3",
    ]);
    node.wait_output(
        &["get", "pod", "failer", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.reason}"],
        "the exit code",
        |text| text == "Failed 3 Error",
    );
}

#[test]
fn a_container_over_its_memory_limit_is_oom_killed() {
    let node = board("oom");
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  restartPolicy: Never
  containers:
  - name: hog
    image: sampan.dev/demo
    args: [memhog, "200"]
    resources: {limits: {memory: 32Mi}}
"#,
    );
    node.wait_output(
        &["get", "pod", "hog", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason}"],
        "OOMKilled",
        |text| text == "OOMKilled",
    );
}

#[test]
fn the_built_in_verbs_do_what_kubectl_does() {
    let node = board("verbs");
    let file = node.dir.path().join("web.yaml");
    std::fs::write(&file, WEB).unwrap();
    let sampan = |args: &[&str]| {
        let mut command = node.space.command(common::SAMPAN);
        command.args(args).arg("--kubeconfig").arg(node.kubeconfig());
        must(&mut command)
    };
    let file = file.display().to_string();
    assert_eq!(sampan(&["apply", "-f", &file]), "deployment.apps/web created\nconfigmap/settings created\n");
    assert_eq!(
        sampan(&["apply", "-f", &file]),
        "deployment.apps/web unchanged\nconfigmap/settings unchanged\n"
    );
    node.k(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(sampan(&["get", "pods"]).contains("Running"));
    assert!(sampan(&["get", "deploy/web", "-o", "yaml"]).contains("progressDeadlineSeconds: 600"));
    assert!(sampan(&["describe", "deployment", "web"]).contains("ScalingReplicaSet"));
    sampan(&["delete", "-f", &file]);
    assert!(sampan(&["get", "deployments"]).is_empty());
}
