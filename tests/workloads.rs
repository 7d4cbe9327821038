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

use common::{
    Node, SAMPAN, Switch, board, output,
    several::{agent, server, token},
    unique, wait_for,
};

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

/// The pods of a workload: name, image, whether ready, uid.
fn pods(node: &Node, app: &str) -> Vec<[String; 4]> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.containers[0].image} \
                {.status.containerStatuses[0].ready} {.metadata.uid}{\"\\n\"}{end}";
    let text = node.k(&["get", "pods", "-l", &format!("app={app}"), "-o", path]);
    let line = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
    text.lines().map(line).collect()
}

#[test]
fn a_version_that_never_gets_ready_takes_down_no_more_than_it_may() {
    let switch = Switch::new(&unique("ww"));
    let node = server(&unique("wm"), &switch, "192.0.2.1/24", &[]);
    node.wait_ready();
    let _boards = ["192.0.2.2/24", "192.0.2.3/24"]
        .map(|address| agent(&unique("wa"), &switch, address, &token(&node, &[])));
    node.wait_output(&["get", "nodes"], "three nodes", |t| t.matches(" Ready").count() == 3);
    let rolling =
        r#""updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}}"#;
    // Half of three daemons is two, rounded up; of five ordinals two, rounded down.
    node.apply(&workload("DaemonSet", "ds", rolling));
    let parallel =
        format!(r#""replicas": 5, "serviceName": "p", "podManagementPolicy": "Parallel", {rolling}"#);
    node.apply(&workload("StatefulSet", "p", &parallel));
    let sets = [("daemonset/ds", "ds", 3), ("statefulset/p", "p", 5)];
    for (set, app, count) in sets {
        rolled_out(&node, set);
        assert_eq!(pods(&node, app).len(), count);
        let before = pods(&node, app);
        node.k(&["set", "image", set, "c=127.0.0.1:1/none:1"]);
        let stuck = ["get", "pods", "-l", &format!("app={app}")];
        let stuck = node.wait_output(&stuck, "two pods that cannot start", |t| {
            t.lines()
                .filter(|line| line.contains("ErrImagePull") || line.contains("ImagePullBackOff"))
                .count()
                == 2
        });
        let now = pods(&node, app);
        let (new, old): (Vec<_>, Vec<_>) = now.into_iter().partition(|[_, image, ..]| image.contains("none"));
        assert_eq!(new.len(), 2, "{stuck}");
        assert_eq!(old.len(), count - 2, "{stuck}");
        assert!(old.iter().all(|pod| pod[2] == "true" && before.contains(pod)), "{old:?}, before {before:?}");
        if app == "p" {
            let names: Vec<_> = new.iter().map(|[name, ..]| name.as_str()).collect();
            assert_eq!(names, ["p-3", "p-4"], "the highest ordinals go first");
        }
        // What never got ready goes first, and takes nobody along.
        node.k(&["rollout", "undo", set]);
        rolled_out(&node, set);
        let now = pods(&node, app);
        assert!(
            now.iter().all(|[_, image, ready, _]| image == "sampan.dev/demo" && ready == "true"),
            "{now:?}"
        );
        assert!(old.iter().all(|pod| now.contains(pod)), "{old:?}, now {now:?}");
    }
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
    let per_index = r#""completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "maxFailedIndexes": 2, "parallelism": 2,"#;
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
fn plain_sets_adopt_replace_and_let_go() {
    let node = board("plain");
    let short = r#"--overrides={"spec": {"terminationGracePeriodSeconds": 1}}"#;
    node.k(&["run", "orphan", "--image=sampan.dev/demo", "--labels=app=rs", short]);
    node.apply(&workload("ReplicaSet", "rs", r#""replicas": 3"#));
    node.wait_output(&["get", "rs", "rs"], "three pods", |t| words(t, 1) == ["rs", "3", "3", "3"]);
    assert_eq!(field(&node, "pod/orphan", ".metadata.ownerReferences[0].name"), "rs");
    // The cheapest goes first.
    node.k(&["annotate", "pod", "orphan", "controller.kubernetes.io/pod-deletion-cost=-1"]);
    node.k(&["scale", "rs/rs", "--replicas=2"]);
    node.wait_output(&["get", "pods", "-l", "app=rs", "-o", "name"], "the orphan to go", |t| {
        !t.contains("orphan")
    });
    // A relabelled pod is let go and replaced; a deleted one is replaced.
    let before = uids(&node, "rs");
    let name = node.k(&["get", "pods", "-l", "app=rs", "-o", "jsonpath={.items[0].metadata.name}"]);
    node.k(&["label", "pod", &name, "app=free", "--overwrite"]);
    node.wait_output(&["get", "pod", &name, "-o", "yaml"], "the pod to be free", |t| {
        !t.contains("ownerReferences")
    });
    node.wait_output(&["get", "rs", "rs"], "two pods", |t| words(t, 1) == ["rs", "2", "2", "2"]);
    assert_eq!(uids(&node, "rs").iter().filter(|uid| before.contains(uid)).count(), 1);

    let rc = workload("ReplicationController", "rc", r#""replicas": 2"#)
        .replace("apps/v1", "v1")
        .replace(r#"{"matchLabels": {"app": "rc"}}"#, r#"{"app": "rc"}"#);
    node.apply(&rc);
    node.wait_output(&["get", "rc", "rc"], "two pods", |t| words(t, 1) == ["rc", "2", "2", "2"]);
    let before = uids(&node, "rc");
    node.k(&["delete", "pod", "-l", "app=rc"]);
    node.wait_output(&["get", "rc", "rc"], "two new pods", |t| words(t, 1) == ["rc", "2", "2", "2"]);
    assert!(uids(&node, "rc").iter().all(|uid| !before.contains(uid)));
    node.k(&["delete", "rc", "rc", "--cascade=orphan"]);
    node.wait_output(&["get", "pods", "-l", "app=rc", "-o", "yaml"], "orphans", |t| {
        !t.contains("ownerReferences")
    });
    assert_eq!(uids(&node, "rc").len(), 2);
}

/// The first words of a line of a table.
fn words(table: &str, line: usize) -> Vec<&str> {
    table.lines().nth(line).unwrap_or_default().split_whitespace().take(4).collect()
}

#[test]
fn what_a_node_refuses_is_made_anew_ever_later() {
    let node = board("refused");
    let unsafe_sysctl = |kind: &str, name: &str, spec: &str| {
        workload(kind, name, spec).replace(
            r#""terminationGracePeriodSeconds""#,
            r#""securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}, "terminationGracePeriodSeconds""#,
        )
    };
    node.apply(&unsafe_sysctl("ReplicaSet", "rs", r#""replicas": 1"#));
    node.apply(&unsafe_sysctl("DaemonSet", "ds", r#""minReadySeconds": 0"#));
    let times = ["get", "pods", "-l", "app=rs", "-o", "jsonpath={.items[*].metadata.creationTimestamp}"];
    let times = node.wait_output(&times, "four refused pods", |t| t.split_whitespace().count() >= 4);
    let mut times: Vec<jiff::Timestamp> = times.split_whitespace().map(|t| t.parse().unwrap()).collect();
    times.sort();
    // After one second, two and four, by clocks that tell whole seconds.
    assert!(times[3].duration_since(times[0]).as_secs() >= 6, "{times:?}");
    let reason = ["get", "pods", "-l", "app=rs", "-o", "jsonpath={.items[0].status.reason}"];
    assert_eq!(node.k(&reason), "SysctlForbidden");
    node.wait_output(
        &["get", "events", "--field-selector=reason=FailedDaemonPod"],
        "the daemon to be told of",
        |t| t.contains("Found failed daemon pod default/ds-") && t.contains("will try to kill it"),
    );
    let daemons = node.k(&["get", "pods", "-l", "app=ds", "-o", "name"]);
    assert!(daemons.lines().count() <= 1, "{daemons}");
}

#[test]
fn cron_jobs_run_by_the_clock_as_their_policies_say() {
    let node = board("cron");
    let policies = ["Allow", "Forbid", "Replace"];
    for policy in policies {
        let name = policy.to_lowercase();
        let run = job(&name, "", "sleep 1000")
            .replace(r#""restartPolicy""#, r#""terminationGracePeriodSeconds": 1, "restartPolicy""#);
        let (_, spec) = run.split_once(r#""spec": "#).unwrap();
        let spec = spec.strip_suffix('}').unwrap();
        node.apply(&format!(
            r#"{{"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {{"name": "{name}"}}, "spec": {{"schedule": "* * * * *",
            "timeZone": "Asia/Tokyo", "concurrencyPolicy": "{policy}", "jobTemplate": {{"spec": {spec}}}}}}}"#
        ));
    }
    // As after a downtime: the last run was an hour ago, and one is made up for.
    let last = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    let status =
        format!(r#"{{"status": {{"lastScheduleTime": "{}"}}}}"#, last.strftime("%Y-%m-%dT%H:%M:%SZ"));
    for policy in policies {
        node.k(&[
            "patch",
            "cronjob",
            &policy.to_lowercase(),
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    }
    let runs = |node: &Node, name: &str| {
        let all = node.k(&["get", "jobs", "-o", "jsonpath={.items[*].metadata.name}"]);
        all.split_whitespace().filter(|job| job.starts_with(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    node.wait_output(&["get", "jobs"], "a run of each", |t| {
        policies.iter().all(|p| t.contains(&p.to_lowercase()))
    });
    let first = policies.map(|p| runs(&node, &p.to_lowercase()));
    // Another minute may have begun since.
    assert!(first.iter().all(|runs| runs.len() <= 2), "one missed run is made up for, not sixty: {first:?}");
    // The next minute.
    node.wait_output(&["get", "jobs", "-o", "name"], "a second run", |t| t.matches("allow-").count() >= 2);
    node.wait_output(
        &["get", "events", "--field-selector=reason=JobAlreadyActive"],
        "what is forbidden to be told",
        |t| {
            t.contains("Not starting job because prior execution is running and concurrency policy is Forbid")
        },
    );
    assert_eq!(runs(&node, "forbid"), first[1]);
    node.wait_output(&["get", "jobs", "-o", "name"], "the first run to be replaced", |t| {
        t.matches("replace-").count() == 1 && !first[2].iter().any(|run| t.contains(run))
    });
    node.k(&["patch", "cronjob", "allow", "-p", r#"{"spec": {"suspend": true}}"#]);
    assert!(field(&node, "cronjob/allow", ".status.active").matches("allow-").count() >= 2);
}

#[test]
fn folders_grow_and_what_their_file_system_cannot_hold_them_to_is_said() {
    let node = board("folder");
    node.apply(
        r#"{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}}}}"#,
    );
    let volume = r#"{"spec": {"terminationGracePeriodSeconds": 1, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}"#;
    node.k(&["run", "p", "--image=sampan.dev/demo", &format!("--overrides={volume}")]);
    node.k(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"]);
    node.k(&["patch", "pvc", "c", "-p", r#"{"spec": {"resources": {"requests": {"storage": "16Mi"}}}}"#]);
    node.wait_output(&["get", "pvc", "c"], "the claim to grow", |t| t.contains("16Mi"));
    let events = node.k(&["get", "events"]);
    assert!(events.contains("VolumeResizeSuccessful"), "{events}");
    // Where the kernel or the mount has project quotas, the size holds; else that is said.
    let held = !events.contains("VolumeSizeNotEnforced");
    let folder = node.k(&["get", "pv", "-o", "jsonpath={.items[0].spec.hostPath.path}"]);
    let full = std::fs::write(std::path::Path::new(&folder).join("much"), vec![0; 17 << 20]).is_err();
    assert_eq!(held, full, "{events}");
    node.k(&["patch", "pvc", "c", "-p", r#"{"spec": {"resources": {"requests": {"storage": "100Ti"}}}}"#]);
    node.wait_output(&["get", "events", "--field-selector=reason=VolumeResizeFailed"], "the refusal", |t| {
        t.contains("does not have enough free storage")
    });
    assert_eq!(field(&node, "pvc/c", ".status.capacity.storage"), "16Mi");
    // While a pod has it, nobody takes it away.
    node.k(&["delete", "pvc", "c", "--wait=false"]);
    node.wait_output(&["get", "pvc", "c"], "the claim to wait for its pod", |t| t.contains("Terminating"));
    assert_eq!(field(&node, "pvc/c", ".metadata.finalizers"), r#"["kubernetes.io/pvc-protection"]"#);
    assert_eq!(node.k(&["exec", "p", "--", "/bin/echo", "here"]), "here\n");
    node.k(&["delete", "pod", "p"]);
    node.wait_output(&["get", "pvc", "-o", "name"], "the claim to go", str::is_empty);
    node.wait_output(&["get", "pv", "-o", "name"], "the volume to go", str::is_empty);
    assert!(!std::path::Path::new(&folder).exists());
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
