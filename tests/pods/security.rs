//! Security contexts, as the processes see them.

use super::{board_with_busybox, container, log_of_ended, pod, wait_ready};
use crate::common::{Node, output};

/// What the kernel says of a process.
const LOOK: &str = "id -u; id -g; id -G; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; touch /x 2>/dev/null && echo written || echo refused";

#[test]
fn processes_have_the_rights_that_the_manifest_gives() {
    let node = board_with_busybox("rights");
    let once = |name: &str, whole: &str, own: &str| {
        let own = format!("    securityContext: {{{own}}}");
        let spec = format!("  restartPolicy: Never\n{whole}\n  containers:\n{}", container("c", LOOK, &own));
        pod(name, &spec)
    };
    node.apply(&once("plain", "", ""));
    node.apply(&once(
        "lean",
        "  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000], seccompProfile: {type: RuntimeDefault}}",
        "allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}",
    ));
    node.apply(&once("mighty", "", "privileged: true"));
    node.apply(&once(
        "weaker",
        "  securityContext: {runAsUser: 7}",
        "runAsUser: 8, capabilities: {drop: [CHOWN]}",
    ));
    // What the kernel gives root of itself; a container's default set has 14 of it.
    let of = |log: &str, key: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{log}"));
        line.trim().to_owned()
    };
    let bits = |log: &str, key: &str| u64::from_str_radix(&of(log, key), 16).unwrap();
    let log = log_of_ended(&node, "plain");
    assert!(log.starts_with("0\n0\n") && log.ends_with("written\n"), "{log}");
    assert_eq!(bits(&log, "CapEff:").count_ones(), 14);
    assert_eq!((of(&log, "NoNewPrivs:"), of(&log, "Seccomp:")), ("0".to_owned(), "0".to_owned()));
    let log = log_of_ended(&node, "lean");
    assert!(log.starts_with("1000\n3000\n3000 2000 4000\n") && log.ends_with("refused\n"), "{log}");
    assert_eq!(bits(&log, "CapBnd:"), 1 << 10);
    assert_eq!((of(&log, "NoNewPrivs:"), of(&log, "Seccomp:")), ("1".to_owned(), "2".to_owned()));
    let log = log_of_ended(&node, "mighty");
    assert_eq!(bits(&log, "CapEff:"), bits(&log, "CapBnd:"));
    assert!(bits(&log, "CapEff:").count_ones() > 30, "{log}");
    let log = log_of_ended(&node, "weaker");
    assert!(log.starts_with("8\n0\n"), "{log}");
    assert_eq!(bits(&log, "CapBnd:").count_ones(), 13);
}

#[test]
fn profiles_sysctls_and_refusals_are_the_nodes_business() {
    let node = board_with_busybox("refusals");
    let profiles = node.dir.path().join("data/agent/seccomp");
    std::fs::create_dir_all(&profiles).unwrap();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]}"#;
    std::fs::write(profiles.join("no-folders.json"), profile).unwrap();
    let localhost = |file: &str| {
        format!("    securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: {file}}}}}")
    };
    let once = |whole: &str, script: &str, own: &str| {
        format!("  restartPolicy: Never\n{whole}\n  containers:\n{}", container("c", script, own))
    };
    let script = "mkdir /x 2>&1; touch /y && echo fine";
    node.apply(&pod("confined", &once("", script, &localhost("no-folders.json"))));
    let sysctl = |name: &str| format!("  securityContext: {{sysctls: [{{name: {name}, value: \"81\"}}]}}");
    let read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    node.apply(&pod("safe", &once(&sysctl("net.ipv4.ip_unprivileged_port_start"), read, "")));
    let humble = "    securityContext: {runAsUser: 1000, capabilities: {drop: [ALL]}}";
    node.apply(&pod("humble", &once("", "httpd -p 80 && cat /proc/sys/net/ipv4/ping_group_range", humble)));
    node.apply(&pod("unsafe", &once(&sysctl("net.core.somaxconn"), read, "")));
    node.apply(&pod("noroot", &once("", "true", "    securityContext: {runAsNonRoot: true}")));
    let said = node.apply_said(&pod("users", &once("  hostUsers: false", "true", "")));
    assert!(
        said.contains("Warning: spec.hostUsers: user namespaces are not supported by this cluster"),
        "{said}"
    );
    let selinux = "  securityContext: {seLinuxOptions: {level: \"s0:c1\"}}";
    node.apply(&pod("labelled", &once(selinux, "true", "")));
    let unmasked = "    securityContext: {procMount: Unmasked}";
    let file = node.dir.path().join("bare.yaml");
    std::fs::write(&file, pod("bare", &once("", "true", unmasked))).unwrap();
    let refused = output(node.kubectl().arg("apply").arg("-f").arg(&file));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let why = "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`";
    assert!(!refused.status.success() && said.contains(why), "{said}");
    node.apply(&pod("unmasked", &once("  hostUsers: false", "true", unmasked)));
    node.apply(&pod(
        "armoured",
        &once(
            "  securityContext: {appArmorProfile: {type: Localhost, localhostProfile: none-such}}",
            "true",
            "",
        ),
    ));
    assert_eq!(log_of_ended(&node, "confined"), "mkdir: can't create directory '/x': Protocol error\nfine\n");
    assert_eq!(log_of_ended(&node, "safe"), "81\n");
    assert_eq!(log_of_ended(&node, "humble"), "0\t2147483647\n");
    let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let apparmor = apparmor.is_ok_and(|enabled| enabled.starts_with('Y'));
    for (pod, reason, words) in [
        ("unsafe", "SysctlForbidden", "forbidden sysctl: \"net.core.somaxconn\" not allowlisted"),
        ("noroot", "Failed", "Error: container has runAsNonRoot and image will run as root"),
        ("users", "FailedCreatePodSandBox", "hostUsers: false (user namespaces) is not supported by Sampan"),
        (
            "unmasked",
            "FailedCreatePodSandBox",
            "hostUsers: false (user namespaces) is not supported by Sampan",
        ),
        (
            "armoured",
            if apparmor { "Failed" } else { "AppArmor" },
            if apparmor {
                "none-such"
            } else {
                "Cannot enforce AppArmor: AppArmor is not enabled on the host"
            },
        ),
        ("labelled", "SELinux", "Cannot enforce SELinux: SELinux is not enabled on the host"),
    ] {
        let selector = format!("involvedObject.name={pod},reason={reason}");
        node.wait_output(&["get", "events", "--field-selector", &selector], words, |text| {
            text.contains(words)
        });
    }
}

#[test]
fn groups_come_from_the_image_unless_the_pod_is_strict() {
    let node = board_with_busybox("groups");
    let once = |policy: &str| {
        let context = format!(
            "  securityContext: {{runAsUser: 1500, fsGroup: 2000, supplementalGroups: [4000]{policy}}}\n  restartPolicy: Never\n"
        );
        format!("{context}  containers:\n{}", container("c", "id -g; id -G", ""))
    };
    let told = "jsonpath={.status.containerStatuses[0].user.linux}";
    for (name, policy, groups) in [
        ("plain", "", [1500, 2000, 4000, 5000].as_slice()),
        ("merged", ", supplementalGroupsPolicy: Merge", &[1500, 2000, 4000, 5000]),
        ("strict", ", supplementalGroupsPolicy: Strict", &[1500, 2000, 4000]),
    ] {
        node.apply(&pod(name, &once(policy)));
        let log = log_of_ended(&node, name);
        let (primary, all) = log.trim().split_once('\n').unwrap();
        let mut seen: Vec<u32> = all.split(' ').map(|id| id.parse().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!((primary, seen.as_slice()), ("1500", groups), "{name}");
        let user: serde_json::Value =
            serde_json::from_str(&node.k(&["get", "pod", name, "-o", told])).unwrap();
        let expected = serde_json::json!({"uid": 1500, "gid": 1500, "supplementalGroups": groups});
        assert_eq!(user, expected, "{name}");
    }
}

#[test]
fn a_pods_limits_are_the_kernels() {
    let node = board_with_busybox("limits");
    let own = "    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}";
    let script = "while :; do sleep 0.1; done";
    node.apply(&pod("burstable", &format!("  containers:\n{}", container("c", script, own))));
    let same = "    resources: {limits: {cpu: 200m, memory: 32Mi}}";
    node.apply(&pod("guaranteed", &format!("  containers:\n{}", container("c", script, same))));
    node.apply(&pod("besteffort", &format!("  containers:\n{}", container("c", script, ""))));
    let whole = "  resources: {requests: {memory: 48Mi}, limits: {cpu: 300m, memory: 96Mi}}";
    node.apply(&pod("whole", &format!("{whole}\n  containers:\n{}", container("c", script, ""))));
    wait_ready(&node, &["burstable", "guaranteed", "besteffort", "whole"]);
    let get = |pod: &str, path: &str| node.k(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")]);
    assert_eq!(get("whole", ".status.allocatedResources.memory"), "48Mi");
    assert_eq!(get("whole", ".status.resources.limits"), r#"{"cpu":"300m","memory":"96Mi"}"#);
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (controllers, memory) =
        if v2 { (["", ""], "memory.max") } else { (["memory/", "cpu/"], "memory.limit_in_bytes") };
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    for (pod, class, folder, memory_bytes, score) in [
        ("burstable", "Burstable", "burstable/", 64u64 << 20, None),
        ("guaranteed", "Guaranteed", "", 32 << 20, Some("-997")),
        ("besteffort", "BestEffort", "besteffort/", 0, Some("1000")),
        ("whole", "Burstable", "burstable/", 96 << 20, None),
    ] {
        assert_eq!(get(pod, ".status.qosClass"), class);
        let uid = get(pod, ".metadata.uid");
        let group =
            |controller: &str| format!("/sys/fs/cgroup/{controller}sampan-{}/{folder}pod{uid}", node.name);
        let limit = std::fs::read_to_string(format!("{}/{memory}", group(controllers[0]))).unwrap();
        if memory_bytes > 0 {
            assert_eq!(limit.trim(), memory_bytes.to_string(), "{pod}");
        }
        assert!(std::path::Path::new(&group(controllers[1])).exists(), "{pod}");
        let adjusted = node.k(&["exec", pod, "--", "cat", "/proc/1/oom_score_adj"]);
        match score {
            // Less than its own is not a daemon's to give where it lacks the right (inside of a container).
            Some(score) => assert!([score, own.trim()].contains(&adjusted.trim()), "{pod}: {adjusted}"),
            None => {
                assert!((3..1000).contains(&adjusted.trim().parse::<i32>().unwrap()), "{pod}: {adjusted}");
            }
        }
    }
    // The pod's own amounts grow in place, and with them the limits of those that have none.
    let larger = r#"{"spec": {"resources": {"limits": {"cpu": "400m", "memory": "128Mi"}}}}"#;
    node.k(&["patch", "pod", "whole", "--subresource=resize", "--patch", larger]);
    let told = "jsonpath={.status.resources.limits}{.status.containerStatuses[0].restartCount}";
    node.wait_output(&["get", "pod", "whole", "-o", told], "the new limits", |text| {
        text == r#"{"cpu":"400m","memory":"128Mi"}0"#
    });
    let uid = get("whole", ".metadata.uid");
    let group = format!("/sys/fs/cgroup/{}sampan-{}/burstable/pod{uid}", controllers[0], node.name);
    let mut groups: Vec<_> = std::fs::read_dir(&group).unwrap().flatten().map(|e| e.path()).collect();
    groups.retain(|path| path.is_dir());
    assert_eq!(groups.len(), 1, "the container's");
    for group in [group.into(), groups.remove(0)] {
        let limit = std::fs::read_to_string(group.join(memory)).unwrap();
        assert_eq!(limit.trim(), (128 << 20).to_string(), "{}", group.display());
    }
}

/// Pages of 2 MiB that the kernel keeps for whoever asks, more than before as long as this lives.
struct HugePages(u64);

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

impl HugePages {
    fn number(file: &str) -> u64 {
        std::fs::read_to_string(format!("{HUGE_PAGES}/{file}")).unwrap().trim().parse().unwrap()
    }

    /// `None` where the kernel has none to give.
    fn add(pages: u64) -> Option<Self> {
        std::fs::metadata(HUGE_PAGES).ok()?;
        let before = Self(Self::number("nr_hugepages"));
        std::fs::write(format!("{HUGE_PAGES}/nr_hugepages"), (before.0 + pages).to_string()).ok()?;
        (Self::number("nr_hugepages") == before.0 + pages).then_some(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(format!("{HUGE_PAGES}/nr_hugepages"), self.0.to_string());
    }
}

#[test]
fn huge_pages_are_given_to_who_asks_for_them() {
    let Some(before) = HugePages::add(4) else {
        eprintln!("this kernel has no huge pages to give");
        return;
    };
    let node = board_with_busybox("hugepages");
    let has = node.k(&["get", "node", &node.name, "-o", r"jsonpath={.status.allocatable.hugepages-2Mi}"]);
    assert_eq!(has, format!("{}Mi", (before.0 + 4) * 2));
    let own = |pages: &str| {
        format!(
            "    resources: {{limits: {{memory: 16Mi{pages}}}}}\n    volumeMounts: [{{name: huge, mountPath: /huge}}]"
        )
    };
    let spec = |script: &str, pages: &str, medium: &str| {
        format!(
            "  restartPolicy: Never\n  containers:\n{}  volumes: [{{name: huge, emptyDir: {{medium: {medium}}}}}]",
            container("c", script, &own(pages))
        )
    };
    let four = ", hugepages-2Mi: 4Mi";
    let script = "/bin/busybox fallocate -l 4194304 /huge/file; grep ' /huge ' /proc/mounts; until [ -e /end ]; do sleep 0.1; done";
    let free = || HugePages::number("free_hugepages");
    let unused = free();
    node.apply(&pod("uses", &spec(script, four, "HugePages-2Mi")));
    wait_ready(&node, &["uses"]);
    node.wait_output(&["logs", "uses"], "its mount", |log| {
        log.contains(" /huge hugetlbfs ") && log.contains("pagesize=2M")
    });
    assert_eq!(free(), unused - 2, "the volume is made of them");
    let all = format!(", hugepages-2Mi: {}Mi", (before.0 + 3) * 2);
    node.apply(&pod("waits", &spec("true", &all, "HugePages")));
    let why = r#"jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}"#;
    node.wait_output(&["get", "pod", "waits", "-o", why], "its reason", |text| {
        text.contains("Insufficient hugepages-2Mi")
    });
    node.apply(&pod("asks-for-none", &spec("true", "", "HugePages")));
    let words = "MountVolume.SetUp failed for volume \"huge\" : medium HugePages: hugePages storage requested, but there is no resource request for huge pages";
    let selector = "involvedObject.name=asks-for-none,reason=FailedMount";
    node.wait_output(&["get", "events", "--field-selector", selector], words, |text| text.contains(words));
    node.k(&["delete", "pod", "uses", "asks-for-none"]);
    log_of_ended(&node, "waits");
    assert_eq!(free(), unused, "given back");
}

#[test]
fn what_a_node_advertises_is_given_out_once() {
    let mut node = board_with_busybox("devices");
    let say = |node: &Node, op: &str| {
        let patch = format!(r#"[{{"op": {op}, "path": "/status/capacity/example.com~1dongle"}}]"#);
        node.k(&["patch", "node", &node.name, "--subresource=status", "--type=json", "-p", &patch]);
    };
    say(&node, r#""add", "value": "2""#);
    let allocatable = |node: &Node| {
        node.k(&["get", "node", &node.name, "-o", r"jsonpath={.status.allocatable.example\.com/dongle}"])
    };
    assert_eq!(allocatable(&node), "2");
    let user = |name: &str, amount: u8| {
        let own = format!("    resources: {{limits: {{example.com/dongle: {amount}}}}}");
        pod(name, &format!("  containers:\n{}", container("c", "while :; do sleep 0.1; done", &own)))
    };
    node.apply(&user("has", 2));
    wait_ready(&node, &["has"]);
    node.apply(&user("waits", 1));
    let why = r#"jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}"#;
    node.wait_output(&["get", "pod", "waits", "-o", why], "its reason", |text| {
        text.contains("Insufficient example.com/dongle")
    });
    // Who has not asked the scheduler asks the node.
    let forced = user("forced", 1).replace("spec:\n", &format!("spec:\n  nodeName: {}\n", node.name));
    node.apply(&forced);
    let verdict = "jsonpath={.status.phase} {.status.reason}: {.status.message}";
    node.wait_output(&["get", "pod", "forced", "-o", verdict], "the node's refusal", |text| {
        text == "Failed OutOfexample.com/dongle: Pod was rejected: Node didn't have enough resource: \
                 example.com/dongle, requested: 1, used: 2, capacity: 2"
    });
    let events = ["get", "events", "--field-selector", "involvedObject.name=forced", "-o"];
    let told = [&events[..], &["jsonpath={.items[0].type} {.items[0].reason}: {.items[0].message}"]].concat();
    node.wait_output(&told, "its event", |text| {
        text == "Warning OutOfexample.com/dongle: Node didn't have enough resource: example.com/dongle, \
                 requested: 1, used: 2, capacity: 2"
    });
    // A node that comes again knows of it.
    node.stop();
    node.spawn();
    node.wait_ready();
    assert_eq!(allocatable(&node), "2");
    node.k(&["delete", "pod", "has"]);
    wait_ready(&node, &["waits"]);
    say(&node, r#""remove""#);
    assert_eq!(allocatable(&node), "");
}
