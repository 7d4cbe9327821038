//! Containers: their order, what they are told, how they end and begin again.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use super::{board_with_busybox, container, log_of_ended, pod, wait_ready};
use crate::common::Node;

/// A field of the pod.
fn field(node: &Node, pod: &str, path: &str) -> String {
    node.k(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")])
}

fn wait_field(node: &Node, pod: &str, path: &str, want: &str) {
    let path = format!("jsonpath={{{path}}}");
    node.wait_output(&["get", "pod", pod, "-o", &path], want, |text| text == want);
}

#[test]
fn a_container_is_asked_to_end_by_the_signal_that_is_named() {
    let node = board_with_busybox("signal");
    let script =
        |trap: &str| format!("trap 'echo {trap}; exit 0' {trap}; echo up; while :; do sleep 0.1; done");
    let named = "    lifecycle: {stopSignal: SIGUSR1}";
    let spec = format!(
        "  os: {{name: linux}}\n  containers:\n{}{}",
        container("named", &script("USR1"), named),
        container("plain", &script("TERM"), ""),
    );
    node.apply(&pod("p", &spec).replace("PeriodSeconds: 1", "PeriodSeconds: 30"));
    wait_ready(&node, &["p"]);
    assert_eq!(field(&node, "p", ".status.containerStatuses[?(@.name==\"named\")].stopSignal"), "SIGUSR1");
    let mut follow = node.kubectl();
    follow.args(["logs", "-f", "p", "--all-containers", "--prefix"]).stdout(Stdio::piped());
    let mut following = follow.spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut up = 0;
    while up < 2 {
        up += usize::from(lines.next().expect("both have begun").ends_with(" up"));
    }
    // Well before the grace period is over, or this fails.
    node.k(&["delete", "pod", "p", "--timeout=25s"]);
    let mut rest: Vec<String> = lines.collect();
    rest.sort();
    let _ = following.wait();
    assert_eq!(rest, ["[pod/p/named] USR1", "[pod/p/plain] TERM"]);
}

#[test]
fn rules_of_exit_codes_restart_a_container_or_all_of_the_pod() {
    let node = board_with_busybox("rules");
    // Ends with 3 at first, and stays the second time: the folder outlives the container.
    let once = |code: u8| {
        format!("if [ -e /s/{code} ]; then sleep 3600; fi; touch /s/{code}; sleep 0.5; exit {code}")
    };
    let rule = |action: &str, code: u8| {
        format!(
            "    volumeMounts: [{{name: s, mountPath: /s}}]\n    restartPolicy: Never\n    restartPolicyRules:\n    - action: {action}\n      exitCodes: {{operator: In, values: [{code}]}}"
        )
    };
    let spec = |main: &str, action: &str, code: u8| {
        format!(
            "  restartPolicy: Never\n  initContainers:\n{}  containers:\n{}{}  volumes: [{{name: s, emptyDir: {{}}}}]",
            container("init", "echo x >> /s/inits", "    volumeMounts: [{name: s, mountPath: /s}]"),
            container("main", main, &rule(action, code)),
            container("other", "sleep 3600", ""),
        )
    };
    node.apply(&pod("one", &spec(&once(3), "Restart", 3)));
    node.apply(&pod("all", &spec(&once(4), "RestartAllContainers", 4)));
    node.apply(&pod("other", &spec("exit 5", "Restart", 3)));
    let restarts = |name: &str| format!(".status.containerStatuses[?(@.name==\"{name}\")].restartCount");
    wait_field(&node, "one", &restarts("main"), "1");
    wait_field(&node, "all", &restarts("main"), "1");
    wait_field(&node, "all", &restarts("other"), "1");
    wait_ready(&node, &["one", "all"]);
    assert_eq!(field(&node, "one", &restarts("other")), "0");
    let inits = |pod: &str| node.k(&["exec", pod, "-c", "main", "--", "cat", "/s/inits"]);
    assert_eq!((inits("one"), inits("all")), ("x\n".to_owned(), "x\nx\n".to_owned()));
    // Another code ends it for good.
    wait_field(
        &node,
        "other",
        ".status.containerStatuses[?(@.name==\"main\")].state.terminated.exitCode",
        "5",
    );
    assert_eq!(field(&node, "other", &restarts("main")), "0");
}

#[test]
fn containers_start_and_stop_in_their_order() {
    let node = board_with_busybox("order");
    let note = "    volumeMounts: [{name: s, mountPath: /s}]";
    let sidecar = format!("{note}\n    restartPolicy: Always");
    let stays = |name: &str| {
        format!(
            "trap 'echo {name} ends >> /s/log; exit 0' TERM; echo {name} begins >> /s/log; while :; do sleep 0.1; done"
        )
    };
    let spec = format!(
        "  initContainers:\n{}{}{}  containers:\n{}  volumes: [{{name: s, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]",
        container("first", "echo first >> /s/log", note),
        container("side", &stays("side"), &sidecar),
        container("second", "echo second >> /s/log", note),
        container("main", &stays("main"), note),
        node.dir.path().join("notes").display(),
    );
    node.apply(&pod("p", &spec).replace("PeriodSeconds: 1", "PeriodSeconds: 30"));
    wait_ready(&node, &["p"]);
    let log = || std::fs::read_to_string(node.dir.path().join("notes/log")).unwrap();
    crate::common::wait_for("main to have begun", || {
        if log().contains("main begins") { Ok(()) } else { Err(log()) }
    });
    node.k(&["delete", "pod", "p", "--timeout=25s"]);
    let order: Vec<String> = log().lines().map(str::to_owned).collect();
    assert_eq!(order, ["first", "side begins", "second", "main begins", "main ends", "side ends"]);
}

#[test]
fn what_a_pod_is_told_comes_from_everywhere() {
    let node = board_with_busybox("told");
    node.apply(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\ndata: {A: one, B: two}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: sec}\nstringData: {TOKEN: hidden}\n",
    );
    let env = r#"    workingDir: /made/for/me
    args: [--, $(GREETING), $$(GREETING), $(MISSING)]
    resources: {requests: {cpu: 250m, memory: 32Mi}, limits: {memory: 64Mi}}
    envFrom:
    - {prefix: M_, configMapRef: {name: map}}
    - {secretRef: {name: sec}}
    - {configMapRef: {name: absent, optional: true}}
    env:
    - {name: GREETING, value: hello $(M_A)}
    - {name: ONE, valueFrom: {configMapKeyRef: {name: map, key: A}}}
    - {name: NONE, valueFrom: {secretKeyRef: {name: sec, key: absent, optional: true}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: MILLI, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MIB, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: FILE, valueFrom: {fileKeyRef: {volumeName: e, path: env, key: FROM_FILE}}}
    volumeMounts: [{name: e, mountPath: /e}]"#;
    let script = "echo \"$@\"; pwd; hostname; for v in M_A M_B TOKEN ONE NAME LABEL MILLI MIB FILE; do env | grep ^$v=; done; env | grep -c ^NONE=; cat /etc/hosts /etc/resolv.conf";
    let spec = format!(
        r#"  restartPolicy: Never
  hostname: web
  subdomain: sub
  hostAliases: [{{ip: 192.0.2.77, hostnames: [alias.one, alias.two]}}]
  dnsPolicy: None
  dnsConfig: {{nameservers: [192.0.2.53], searches: [my.search], options: [{{name: ndots, value: "2"}}]}}
  volumes: [{{name: e, emptyDir: {{}}}}]
  initContainers:
{}  containers:
{}"#,
        container(
            "write",
            "echo \"FROM_FILE='written'\" > /e/env",
            "    volumeMounts: [{name: e, mountPath: /e}]"
        ),
        container("c", script, env),
    );
    node.apply(&pod("p", &spec).replace("{name: p}", "{name: p, labels: {app: told}}"));
    let log = log_of_ended(&node, "p");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(
        lines[..13],
        [
            "hello one $(GREETING) $(MISSING)",
            "/made/for/me",
            "web",
            "M_A=one",
            "M_B=two",
            "TOKEN=hidden",
            "ONE=one",
            "NAME=p",
            "LABEL=told",
            "MILLI=250",
            "MIB=64",
            "FILE=written",
            "0",
        ],
        "{log}"
    );
    let ip = field(&node, "p", ".status.podIP");
    for line in [
        format!("{ip}\tweb.sub.default.svc.cluster.local\tweb"),
        "192.0.2.77\talias.one\talias.two".to_owned(),
        "nameserver 192.0.2.53".to_owned(),
        "search my.search".to_owned(),
        "options ndots:2".to_owned(),
    ] {
        assert!(lines.contains(&line.as_str()), "{line} is not in {log}");
    }
}

#[test]
fn pods_share_namespaces_as_they_say() {
    let node = board_with_busybox("spaces");
    let look =
        "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; ps | grep -c 'sleep 4711'; hostname";
    let spec = |flags: &str| {
        format!(
            "{flags}  containers:\n{}{}",
            container("a", "sleep 4711 & wait", ""),
            container("b", "sleep 3600", "")
        )
    };
    node.apply(&pod("own", &spec("")));
    node.apply(&pod("processes", &spec("  shareProcessNamespace: true\n")));
    node.apply(&pod("host", &spec("  hostNetwork: true\n  hostPID: true\n  hostIPC: true\n")));
    node.apply(&pod("fqdn", &spec("  hostname: web\n  subdomain: sub\n  setHostnameAsFQDN: true\n")));
    wait_ready(&node, &["own", "processes", "host", "fqdn"]);
    let see = |pod: &str, container: &str| -> Vec<String> {
        let out = node.k(&["exec", pod, "-c", container, "--", "/bin/sh", "-c", look]);
        out.lines().map(str::to_owned).collect()
    };
    let own = [see("own", "a"), see("own", "b")];
    assert_eq!(own[0][..3], own[1][..3], "network, ipc and uts are the pod's");
    assert_ne!(own[0][3], own[1][3], "processes are the container's");
    // The last but one counts `grep` and the shell of this look where they are seen, and the sleeper.
    let sleepers = |seen: &[String]| seen[4].parse::<u32>().unwrap();
    assert!(sleepers(&own[0]) > sleepers(&own[1]), "{own:?}");
    let shared = [see("processes", "a"), see("processes", "b")];
    assert_eq!(shared[0][..4], shared[1][..4]);
    assert!(sleepers(&shared[1]) > sleepers(&own[1]), "{shared:?}");
    assert_ne!(shared[0][0], own[0][0], "two pods share nothing");
    let host = see("host", "a");
    let here =
        |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let link = std::fs::read_link(format!("/proc/{}/ns/net", node.pid())).unwrap().display().to_string();
    assert_eq!(host[..4], [link, here("ipc"), here("uts"), here("pid")]);
    assert_eq!(see("fqdn", "a")[5], "web.sub.default.svc.cluster.local");
    assert_eq!(field(&node, "host", ".status.podIP"), field(&node, "host", ".status.hostIP"));
    // Its reaper is in no group, by which the rest is ended.
    node.k(&["delete", "pod", "processes", "--now"]);
}

#[test]
fn hooks_probes_and_ends_are_told_in_upstreams_words() {
    let node = board_with_busybox("words");
    let hooks = r#"    lifecycle:
      postStart: {exec: {command: [/bin/sh, -c, "echo after > /s/post"]}}
      preStop: {exec: {command: [/bin/sh, -c, "echo before > /s/pre"]}}
    volumeMounts: [{name: s, mountPath: /s}]"#;
    let spec = format!(
        "  containers:\n{}  volumes: [{{name: s, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]",
        container("c", "while :; do sleep 0.1; done", hooks),
        node.dir.path().join("hooks").display(),
    );
    node.apply(&pod("hooked", &spec));
    let probe = |kind: &str, action: &str, more: &str| {
        format!("    {kind}: {{{action}, periodSeconds: 1, failureThreshold: 1{more}}}")
    };
    let stays = "while :; do sleep 0.1; done";
    let one =
        |name: &str, more: String| pod(name, &format!("  containers:\n{}", container("c", stays, &more)));
    node.apply(&one(
        "dying",
        probe("livenessProbe", "exec: {command: [/bin/sh, -c, 'echo sick; exit 1']}", ""),
    ));
    node.apply(&one("unready", probe("readinessProbe", "httpGet: {port: 81, path: /x}", "")));
    node.apply(&one("closed", probe("startupProbe", "tcpSocket: {port: 82}", ", initialDelaySeconds: 1")));
    node.apply(&one(
        "unasked",
        probe("livenessProbe", "exec: {command: [/no/such/probe]}", ", timeoutSeconds: 60"),
    ));
    node.apply(&one("nameless", probe("startupProbe", "httpGet: {port: web}", "")));
    let bad_hook = "    lifecycle: {postStart: {exec: {command: [/bin/sh, -c, 'echo no; exit 7']}}}";
    node.apply(&one("badhook", bad_hook.to_owned()));
    let spoken = "    terminationMessagePath: /dev/said\n";
    let spec = format!(
        "  restartPolicy: Never\n  containers:\n{}{}",
        container("says", "echo -n last words > /dev/said; exit 3", spoken),
        container("logs", "echo from the log; exit 4", "    terminationMessagePolicy: FallbackToLogsOnError"),
    );
    node.apply(&pod("ended", &spec));
    let with_image = |name: &str, image: &str, policy: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers: [{{name: c, image: {image:?}, imagePullPolicy: {policy}}}]\n"
        )
    };
    node.apply(&with_image("never", "test.local/absent:1", "Never"));
    node.apply(&with_image("unreachable", "127.0.0.1:1/absent:1", "Always"));
    node.apply(&with_image("malformed", "test.local/UPPER", "Always"));
    let missing = "    env: [{name: X, valueFrom: {configMapKeyRef: {name: absent, key: k}}}]";
    node.apply(&one("unset", missing.to_owned()));
    let unfiltered =
        "    securityContext: {seccompProfile: {type: Localhost, localhostProfile: absent.json}}";
    node.apply(&one("unfiltered", unfiltered.to_owned()));
    node.apply(&one("notthere", String::new()).replace("/bin/sh", "/no/such/program"));
    wait_ready(&node, &["hooked"]);
    node.k(&["delete", "pod", "hooked"]);
    let wrote = |name: &str| std::fs::read_to_string(node.dir.path().join("hooks").join(name)).unwrap();
    assert_eq!((wrote("post"), wrote("pre")), ("after\n".to_owned(), "before\n".to_owned()));

    let ip = |pod: &str| field(&node, pod, ".status.podIP");
    let message =
        |name: &str| format!(".status.containerStatuses[?(@.name==\"{name}\")].state.terminated.message");
    wait_field(&node, "ended", ".status.phase", "Failed");
    assert_eq!(field(&node, "ended", &message("says")), "last words");
    assert_eq!(field(&node, "ended", &message("logs")), "from the log\n");
    let dial = |pod: &str, port: u16| format!("dial tcp {}:{port}: connect: connection refused", ip(pod));
    for (pod, reason, words) in [
        ("dying", "Unhealthy", "Liveness probe failed: sick\n".to_owned()),
        ("dying", "Killing", "Container c failed liveness probe, will be restarted".to_owned()),
        (
            "unready",
            "Unhealthy",
            format!("Readiness probe failed: Get \"http://{}:81/x\": {}", ip("unready"), dial("unready", 81)),
        ),
        ("closed", "Unhealthy", format!("Startup probe failed: {}", dial("closed", 82))),
        ("closed", "Killing", "Container c failed startup probe, will be restarted".to_owned()),
        ("badhook", "FailedPostStartHook", "PostStartHook failed".to_owned()),
        ("badhook", "Killing", "FailedPostStartHook".to_owned()),
        (
            "unasked",
            "Unhealthy",
            "Liveness probe errored and resulted in unknown state: OCI runtime exec failed: exec failed: unable to start container process: exec: \"/no/such/probe\": stat /no/such/probe: no such file or directory".to_owned(),
        ),
        (
            "nameless",
            "Unhealthy",
            "Startup probe errored and resulted in unknown state: strconv.Atoi: parsing \"web\": invalid syntax"
                .to_owned(),
        ),
        (
            "never",
            "ErrImageNeverPull",
            "Container image \"test.local/absent:1\" is not present with pull policy of Never".to_owned(),
        ),
        ("never", "Failed", "Error: ErrImageNeverPull".to_owned()),
        ("unreachable", "Pulling", "Pulling image \"127.0.0.1:1/absent:1\"".to_owned()),
        ("unreachable", "Failed", "Failed to pull image \"127.0.0.1:1/absent:1\": ".to_owned()),
        ("unreachable", "Failed", "Error: ErrImagePull".to_owned()),
        ("unreachable", "BackOff", "Back-off pulling image \"127.0.0.1:1/absent:1\"".to_owned()),
        ("unreachable", "Failed", "Error: ImagePullBackOff".to_owned()),
        (
            "malformed",
            "InspectFailed",
            "Failed to apply default image tag \"test.local/UPPER\": couldn't parse image name \"test.local/UPPER\": invalid reference format: repository name (UPPER) must be lowercase".to_owned(),
        ),
        ("malformed", "Failed", "Error: InvalidImageName".to_owned()),
        ("unset", "Failed", "Error: configmap \"absent\" not found".to_owned()),
        ("unfiltered", "Failed", "Error: failed to create containerd container: cannot load seccomp profile".to_owned()),
        ("notthere", "Failed", "exec: \"/no/such/program\": stat /no/such/program: no such file or directory".to_owned()),
    ] {
        let selector = format!("involvedObject.name={pod},reason={reason}");
        let args = ["get", "events", "--field-selector", &selector, "-o", "jsonpath={range .items[*]}{.message}{\"\\u0000\"}{end}"];
        node.wait_output(&args, &format!("{pod}: {reason}: {words}"), |text| {
            text.split('\0').any(|message| message.contains(&words))
        });
    }
    // Who could not be asked is none the worse for it, and what a hook says is nobody's business.
    for pod in ["unasked", "nameless"] {
        assert_eq!(field(&node, pod, ".status.containerStatuses[0].restartCount"), "0");
    }
    let told = node.k(&["get", "events", "--field-selector", "involvedObject.name=badhook"]);
    assert!(!told.contains("exited with 7"), "{told}");
    let told = node.k(&["get", "events", "--field-selector", "involvedObject.name=malformed"]);
    assert!(!told.contains("Pulling"), "{told}");
    // What comes again and again is one event that counts.
    let selector = "involvedObject.name=unready,reason=Unhealthy";
    let count = ["get", "events", "--field-selector", selector, "-o", "jsonpath={.items[*].count}"];
    node.wait_output(&count, "one event of several failures", |text| {
        text.parse::<u32>().is_ok_and(|n| n > 1)
    });
    let waiting = ".status.containerStatuses[0].state.waiting.reason";
    for (pod, reason) in [
        ("never", "ErrImageNeverPull"),
        ("malformed", "InvalidImageName"),
        ("unset", "CreateContainerConfigError"),
        ("unfiltered", "CreateContainerError"),
        ("notthere", "CrashLoopBackOff"),
    ] {
        wait_field(&node, pod, waiting, reason);
    }
    let last = ".status.containerStatuses[0].lastState.terminated";
    assert_eq!(field(&node, "notthere", &format!("{last}.reason")), "StartError");
    assert_eq!(field(&node, "notthere", &format!("{last}.exitCode")), "128");
}

#[test]
fn what_does_not_fit_or_is_not_there_is_told() {
    let node = board_with_busybox("short");
    let stays = "while :; do sleep 0.1; done";
    let spec = format!(
        "  dnsConfig: {{nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3]}}\n  imagePullSecrets: [{{name: nobody}}, {{name: none}}]\n  containers:\n{}",
        container("c", stays, "")
    );
    node.apply(&pod("p", &spec));
    wait_ready(&node, &["p"]);
    let resolv = node.k(&["exec", "p", "--", "cat", "/etc/resolv.conf"]);
    let servers: Vec<&str> = resolv.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
    assert_eq!(servers[1..], ["192.0.2.1", "192.0.2.2"]);
    for (reason, words) in [
        (
            "DNSConfigForming",
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                servers.join(" ")
            ),
        ),
        (
            "FailedToRetrieveImagePullSecret",
            "Unable to retrieve some image pull secrets (nobody, none); attempting to pull the image may not succeed."
                .to_owned(),
        ),
    ] {
        let selector = format!("involvedObject.name=p,reason={reason}");
        let told = ["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].type}: {.items[*].message}"];
        node.wait_output(&told, &words, |text| text == format!("Warning: {words}"));
    }
}

#[test]
fn a_pod_comes_back_after_a_power_cut() {
    let mut node = board_with_busybox("cut");
    node.apply(&pod("p", &format!("  containers:\n{}", container("c", "while :; do sleep 0.1; done", ""))));
    wait_ready(&node, &["p"]);
    let uid = field(&node, "p", ".metadata.uid");
    let token = field(&node, "p", ".spec.volumes[0].name");
    let since = field(&node, "p", ".status.containerStatuses[0].state.running.startedAt");
    // As daemons once left it.
    let folders = node.dir.path().join(format!("data/agent/pods/{uid}/volumes/kubernetes.io~projected"));
    node.power_off();
    std::fs::create_dir_all(folders.join(&token)).unwrap();
    node.spawn();
    node.wait_ready();
    wait_field(&node, "p", ".status.containerStatuses[0].restartCount", "1");
    wait_ready(&node, &["p"]);
    assert_eq!(field(&node, "p", ".metadata.uid"), uid);
    assert!(!folders.join(&token).exists());
    assert!(node.dir.path().join(format!("run/volumes/{uid}/projected/{token}/token")).exists());
    let last = ".status.containerStatuses[0].lastState.terminated";
    let ended =
        [field(&node, "p", &format!("{last}.reason")), field(&node, "p", &format!("{last}.exitCode"))];
    assert_eq!(ended, ["Unknown", "255"]);
    assert_eq!(field(&node, "p", &format!("{last}.startedAt")), since);
    let image = field(&node, "p", ".status.containerStatuses[0].image");
    assert_eq!(image, "test.local/busybox:1");
    let selector = "involvedObject.name=p,reason=SandboxChanged";
    let told = [
        "get",
        "events",
        "--field-selector",
        selector,
        "-o",
        "jsonpath={.items[*].type}: {.items[*].message}",
    ];
    node.wait_output(&told, "its event", |text| {
        text == "Normal: Pod sandbox changed, it will be killed and re-created."
    });
}

#[test]
fn a_deadline_and_a_gate_decide_about_the_pod() {
    let node = board_with_busybox("deadline");
    let spec = format!("  activeDeadlineSeconds: 1\n  containers:\n{}", container("c", "sleep 3600", ""));
    node.apply(&pod("late", &spec));
    let spec = format!(
        "  readinessGates: [{{conditionType: example.org/gate}}]\n  containers:\n{}",
        container("c", "sleep 3600", "")
    );
    node.apply(&pod("gated", &spec));
    wait_field(&node, "late", ".status.reason", "DeadlineExceeded");
    assert_eq!(
        field(&node, "late", ".status.message"),
        "Pod was active on the node longer than the specified deadline"
    );
    let ready = ".status.conditions[?(@.type==\"Ready\")]";
    wait_field(&node, "gated", &format!("{ready}.reason"), "ReadinessGatesNotReady");
    assert_eq!(
        field(&node, "gated", &format!("{ready}.message")),
        "corresponding condition of pod readiness gate \"example.org/gate\" does not exist."
    );
    let open = r#"{"status": {"conditions": [{"type": "example.org/gate", "status": "True"}]}}"#;
    node.k(&["patch", "pod", "gated", "--subresource=status", "--type=strategic", "--patch", open]);
    wait_ready(&node, &["gated"]);
}

/// Where the server of health says that it is well.
const SERVING: &str = "/serving";

#[test]
#[ignore = "the program of a container"]
fn grpc_server() {
    use http_body_util::{BodyExt, Full};
    use hyper::{HeaderMap, Response, body::Bytes, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:9000").await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let health = service_fn(async |_| {
                let state = if std::path::Path::new(SERVING).exists() { 1 } else { 2 };
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, state]));
                let body = body.with_trailers(async { Some(Ok(trailers)) });
                Response::builder().header("content-type", "application/grpc").body(body)
            });
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), health)
                .await;
        }
    });
}

#[test]
fn a_grpc_server_in_a_container_is_probed() {
    let node = board_with_busybox("grpc");
    let program = std::env::current_exe().unwrap();
    let own = "    volumeMounts: [{name: server, mountPath: /server}]\n    readinessProbe: {periodSeconds: 1, grpc: {port: 9000, service: app}}";
    let script = "exec /server --exact containers::grpc_server --ignored --nocapture";
    let spec = format!(
        "  containers:\n{}  volumes: [{{name: server, hostPath: {{path: {:?}, type: File}}}}]",
        container("c", script, own),
        program.display().to_string(),
    );
    node.apply(&pod("p", &spec));
    let selector = "involvedObject.name=p,reason=Unhealthy";
    let said = "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")";
    node.wait_output(&["get", "events", "--field-selector", selector], said, |text| text.contains(said));
    assert_eq!(field(&node, "p", ".status.containerStatuses[0].ready"), "false");
    node.k(&["exec", "p", "--", "touch", SERVING]);
    wait_ready(&node, &["p"]);
}

#[test]
fn servers_with_a_certificate_are_probed() {
    let node = board_with_busybox("https");
    // The API of the board has a certificate that the probe does not know, as it should not.
    let one = |name: &str, path: &str| {
        let probe = format!(
            "    readinessProbe: {{periodSeconds: 1, httpGet: {{scheme: HTTPS, host: 127.0.0.1, port: 6443, path: {path}}}}}"
        );
        pod(name, &format!("  containers:\n{}", container("c", "while :; do sleep 0.1; done", &probe)))
    };
    node.apply(&one("well", "/readyz"));
    node.apply(&one("ill", "/no/such/place"));
    wait_ready(&node, &["well"]);
    let selector = "involvedObject.name=ill,reason=Unhealthy";
    let said = "Readiness probe failed: HTTP probe failed with statuscode: 403";
    node.wait_output(&["get", "events", "--field-selector", selector], said, |text| text.contains(said));
    assert_eq!(field(&node, "ill", ".status.containerStatuses[0].ready"), "false");
}

#[test]
fn links_graces_programs_and_local_volumes_are_as_said() {
    let node = board_with_busybox("said");
    let disk = node.dir.path().join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    node.apply(&format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{ports: [{{port: 81}}], selector: {{app: none}}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: disk}}
spec:
  capacity: {{storage: 1Mi}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: by-hand
  local: {{path: {disk}}}
  nodeAffinity:
    required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: claim}}
spec: {{accessModes: [ReadWriteOnce], storageClassName: by-hand, resources: {{requests: {{storage: 1Mi}}}}}}
",
        disk = disk.display(),
        node = node.name,
    ));
    let once = |flag: &str, script: &str| {
        format!("  restartPolicy: Never\n{flag}  containers:\n{}", container("c", script, ""))
    };
    let links = "env | grep -E '^(WEB|KUBERNETES)_SERVICE_PORT=' | sort";
    node.apply(&pod("links", &once("", links)));
    node.apply(&pod("none", &once("  enableServiceLinks: false\n", links)));
    // It does not hear, and the pod's own patience would outlast this test.
    let probe = "    livenessProbe: {periodSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 1, exec: {command: [/bin/sh, -c, exit 1]}}";
    let deaf = container("c", "trap '' TERM; while :; do sleep 0.1; done", probe);
    let patient =
        pod("deaf", &format!("  containers:\n{deaf}")).replace("PeriodSeconds: 1\n", "PeriodSeconds: 600\n");
    assert!(patient.contains("PeriodSeconds: 600"), "{patient}");
    node.apply(&patient);
    let absent = container("c", "", "").replace("[/bin/sh, -c, \"\"]", "[/nope]");
    node.apply(&pod("absent", &format!("  containers:\n{absent}")));
    let mount = "    volumeMounts: [{name: v, mountPath: /v}]";
    let writes = container("c", "echo kept > /v/file", mount);
    node.apply(&pod(
        "local",
        &format!(
            "  restartPolicy: Never\n  containers:\n{writes}  volumes: [{{name: v, persistentVolumeClaim: {{claimName: claim}}}}]"
        ),
    ));
    assert_eq!(log_of_ended(&node, "links"), "KUBERNETES_SERVICE_PORT=443\nWEB_SERVICE_PORT=81\n");
    assert_eq!(log_of_ended(&node, "none"), "KUBERNETES_SERVICE_PORT=443\n");
    log_of_ended(&node, "local");
    assert_eq!(std::fs::read_to_string(disk.join("file")).unwrap(), "kept\n");
    let last = ".status.containerStatuses[0].lastState.terminated";
    wait_field(&node, "absent", &format!("{last}.reason"), "StartError");
    assert_eq!(field(&node, "absent", &format!("{last}.exitCode")), "128");
    let message = field(&node, "absent", &format!("{last}.message"));
    assert!(message.ends_with("exec: \"/nope\": stat /nope: no such file or directory"), "{message}");
    let waits = field(&node, "absent", ".status.containerStatuses[0].state.waiting.reason");
    assert!(["RunContainerError", "CrashLoopBackOff"].contains(&waits.as_str()), "{waits}");
    wait_field(&node, "deaf", ".status.containerStatuses[0].lastState.terminated.exitCode", "137");
    // Whoever takes the board down must not wait for it.
    node.k(&["delete", "pod", "deaf", "--force", "--grace-period=0"]);
}
