//! Volumes, as containers see them.

use std::{fs, path::PathBuf};

use nix::mount::{MntFlags, MsFlags};

use super::{board_with_busybox, container, log_of_ended, pod, wait_ready};
use crate::common::{Node, mounts_below, wait_for};

const SLEEP: &str = "while :; do sleep 0.1; done";

fn cat(node: &Node, pod: &str, container: &str, file: &str) -> String {
    node.k(&["exec", pod, "-c", container, "--", "cat", file])
}

#[test]
fn contents_follow_their_sources_as_one() {
    let node = board_with_busybox("contents");
    let sources = |a: &str, b: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map}}\ndata: {{a: {a:?}, b: {b:?}, c: left-out}}\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: sec}}\nstringData: {{key: {a:?}}}\n"
        )
    };
    node.apply(&sources("1", "1"));
    let mounts = "    volumeMounts:\n    - {name: map, mountPath: /map}\n    - {name: map, mountPath: /part, subPath: a}\n    - {name: all, mountPath: /all}\n    - {name: down, mountPath: /down}\n    - {name: none, mountPath: /none}";
    let volumes = r"  volumes:
  - {name: map, configMap: {name: map, defaultMode: 0440, items: [{key: a, path: a}, {key: b, path: deep/b, mode: 0400}]}}
  - {name: none, secret: {secretName: absent, optional: true}}
  - name: down
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
  - name: all
    projected:
      sources:
      - {secret: {name: sec, items: [{key: key, path: from/secret}]}}
      - {configMap: {name: map, items: [{key: c, path: from/map}]}}
      - {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
      - {serviceAccountToken: {path: token, audience: somebody, expirationSeconds: 600}}
";
    let spec = format!("  containers:\n{}{volumes}", container("c", SLEEP, mounts));
    node.apply(&pod("p", &spec).replace("{name: p}", "{name: p, labels: {stage: first}}"));
    wait_ready(&node, &["p"]);
    let read = |file: &str| cat(&node, "p", "c", file);
    assert_eq!((read("/map/a"), read("/map/deep/b"), read("/part")), ("1".into(), "1".into(), "1".into()));
    assert_eq!(
        (read("/all/from/secret"), read("/all/from/map"), read("/all/name")),
        ("1".into(), "left-out".into(), "p".into())
    );
    assert_eq!(read("/all/token").split('.').count(), 3, "a signed token");
    let shell = |line: &str| node.k(&["exec", "p", "-c", "c", "--", "/bin/sh", "-c", line]);
    assert_eq!(
        shell("stat -L -c %a /map/a /map/deep/b; ls /map /none"),
        "440\n400\n/map:\na\ndeep\n\n/none:\n"
    );
    // A reader that holds on to one state of the folder sees both values of it, whatever comes.
    let state = shell("readlink /map/..data");
    node.apply(&sources("2", "2"));
    node.k(&["label", "pod", "p", "stage=second", "--overwrite"]);
    let changed = |file: &str, want: &str| {
        wait_for(&format!("{file} to be {want}"), || {
            let now = read(file);
            if now.contains(want) { Ok(()) } else { Err(now) }
        });
    };
    changed("/map/a", "2");
    assert_eq!(read("/map/deep/b"), "2", "both change at once");
    assert_ne!(shell("readlink /map/..data"), state);
    changed("/all/from/secret", "2");
    changed("/down/labels", "stage=\"second\"");
    assert_eq!(read("/part"), "1", "a part stays what it was");
    let kinds =
        shell("for v in all down none map; do grep -q \" /$v tmpfs \" /proc/mounts && echo $v; done; true");
    assert_eq!(kinds, "all\ndown\nnone\n", "what may be secret is in memory alone");

    // All of it is the group's, and the token the user's.
    let mounts = "    volumeMounts: [{name: map, mountPath: /map}, {name: token, mountPath: /token}]";
    let look = "cd /token; stat -c '%u %g %a' /map . ..data/token; stat -c %g ..data token; stat -L -c '%g %a' /map/a";
    let volumes = r"  volumes:
  - {name: map, configMap: {name: map}}
  - {name: token, projected: {sources: [{serviceAccountToken: {path: token}}]}}
";
    let spec = format!(
        "  restartPolicy: Never\n  securityContext: {{fsGroup: 1234, runAsUser: 77}}\n  containers:\n{}{volumes}",
        container("c", look, mounts)
    );
    node.apply(&pod("q", &spec));
    assert_eq!(log_of_ended(&node, "q"), "0 1234 2777\n0 1234 3777\n77 1234 640\n1234\n1234\n1234 644\n");
    let memory = node.dir.path().join("run/volumes");
    let pods = || fs::read_dir(&memory).unwrap().count();
    assert_eq!(pods(), 1, "what has ended has nothing there");
    node.k(&["delete", "pods", "--all"]);
    assert_eq!(pods(), 0);
}

/// A file system on a folder of the host, with one inside of it; both go with the value.
struct Nested(PathBuf);

impl Nested {
    fn mount(at: PathBuf) -> Self {
        for place in [at.clone(), at.join("inner")] {
            fs::create_dir_all(&place).unwrap();
            nix::mount::mount(Some("t"), &place, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        }
        let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
        nix::mount::mount(None::<&str>, &at, None::<&str>, shared, None::<&str>).unwrap();
        Self(at)
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        for place in [self.0.join("inner"), self.0.clone()] {
            while nix::mount::umount2(&place, MntFlags::MNT_DETACH).is_ok() {}
        }
    }
}

#[test]
fn mounts_are_read_only_and_spread_as_asked() {
    let node = board_with_busybox("spread");
    let nested = Nested::mount(node.dir.path().join("nested"));
    let volume =
        format!("  volumes: [{{name: v, hostPath: {{path: {}, type: Directory}}}}]\n", nested.0.display());
    let mount = |more: &str| format!("    volumeMounts: [{{name: v, mountPath: /v{more}}}]");
    let write = "for f in /v/x /v/inner/x; do touch $f 2>/dev/null && echo written || echo refused; done";
    let once = |more: &str| {
        format!("  restartPolicy: Never\n  containers:\n{}{volume}", container("c", write, &mount(more)))
    };
    node.apply(&pod("open", &once("")));
    node.apply(&pod("outer", &once(", readOnly: true")));
    node.apply(&pod("whole", &once(", readOnly: true, recursiveReadOnly: Enabled")));
    assert_eq!(log_of_ended(&node, "open"), "written\nwritten\n");
    assert_eq!(log_of_ended(&node, "outer"), "refused\nwritten\n");
    assert_eq!(log_of_ended(&node, "whole"), "refused\nrefused\n");

    let listens = |name: &str, more: &str| container(name, SLEEP, &mount(more));
    // Not before the others run: what is there when a container starts is its own in any case.
    let mounts = "until [ -e /v/go ]; do sleep 0.1; done; mkdir -p /v/new && mount -t tmpfs t /v/new && \
                  touch /v/new/here && while :; do sleep 0.1; done";
    let maker =
        format!("{}\n    securityContext: {{privileged: true}}", mount(", mountPropagation: Bidirectional"));
    let spec = format!(
        "  containers:\n{}{}{}{volume}",
        container("maker", mounts, &maker),
        listens("follows", ", mountPropagation: HostToContainer"),
        listens("alone", ""),
    );
    node.apply(&pod("p", &spec));
    wait_ready(&node, &["p"]);
    fs::write(nested.0.join("go"), "").unwrap();
    wait_for("the mount on the host", || {
        nested.0.join("new/here").exists().then_some(()).ok_or_else(|| "not there".to_owned())
    });
    let sees = |container: &str| node.k(&["exec", "p", "-c", container, "--", "ls", "/v/new"]);
    assert_eq!((sees("follows"), sees("alone")), ("here\n".to_owned(), String::new()));
    // The host's own mounts reach those who follow as well.
    let late = nested.0.join("late");
    fs::create_dir(&late).unwrap();
    nix::mount::mount(Some("t"), &late, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    fs::write(late.join("file"), "").unwrap();
    let sees = |container: &str| node.k(&["exec", "p", "-c", container, "--", "ls", "/v/late"]);
    assert_eq!((sees("follows"), sees("alone")), ("file\n".to_owned(), String::new()));
    node.k(&["delete", "pods", "--all"]);
    for place in ["late", "new"] {
        nix::mount::umount2(&nested.0.join(place), MntFlags::MNT_DETACH).unwrap();
    }
    let dir = node.dir.path().to_owned();
    wait_for("no mount to be left", || {
        let left: Vec<_> = mounts_below(&dir).into_iter().filter(|m| m.contains("/pods/")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn folders_are_shared_owned_and_checked() {
    let node = board_with_busybox("folders");
    let dir = node.dir.path().join("host");
    fs::create_dir_all(dir.join("folder")).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    std::os::unix::fs::symlink("/", dir.join("folder/out")).unwrap();
    let mount = "    volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}]";
    let write = container(
        "w",
        "echo shared > /v/f; dd if=/dev/zero of=/m/big bs=1k count=2000 2>/dev/null; stat -c %s /m/big > /v/size",
        mount,
    );
    let read =
        container("r", "cat /v/f /v/size; stat -c '%g %a' /v /m; grep ' /m tmpfs ' /proc/mounts", mount);
    let spec = format!(
        "  restartPolicy: Never\n  securityContext: {{fsGroup: 1234}}\n  initContainers:\n{write}  containers:\n{read}  volumes: [{{name: v, emptyDir: {{}}}}, {{name: m, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}]\n"
    );
    node.apply(&pod("shared", &spec));
    let log = log_of_ended(&node, "shared");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..4], ["shared", "1048576", "1234 2777", "1234 3777"], "{log}");
    assert!(lines[4].contains("size=1024k") && !lines[4].contains("nodev"), "as upstream mounts it: {log}");

    // A volume below one that is read-only, and a part of a volume that anybody may write.
    let below = "    volumeMounts: [{name: v, mountPath: /d/below, subPath: part}, {name: d, mountPath: /d}]";
    let script = "echo mine > /d/below/f && cat /d/name /d/below/f && stat -c '%g %a' /d/below";
    let spec = format!(
        "  restartPolicy: Never\n  securityContext: {{runAsUser: 1001, fsGroup: 1234}}\n  containers:\n{}  volumes: [{{name: v, emptyDir: {{}}}}, {{name: d, downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}}}]\n",
        container("c", script, below)
    );
    node.apply(&pod("below", &spec));
    assert_eq!(log_of_ended(&node, "below"), "belowmine\n1234 2777\n");

    // Parts: made where missing, by names from the environment, never outside.
    let parts = "    env: [{name: WHO, value: me}]\n    volumeMounts: [{name: v, mountPath: /a, subPathExpr: by/$(WHO)}]";
    let host = |kind: &str, path: &str| {
        format!("  volumes: [{{name: v, hostPath: {{path: {}, type: {kind}}}}}]\n", dir.join(path).display())
    };
    let once = |script: &str, mounts: &str, volumes: &str| {
        format!("  restartPolicy: Never\n  containers:\n{}{volumes}", container("c", script, mounts))
    };
    node.apply(&pod("parts", &once("echo mine > /a/file", parts, &host("Directory", "folder"))));
    log_of_ended(&node, "parts");
    assert_eq!(fs::read_to_string(dir.join("folder/by/me/file")).unwrap(), "mine\n");
    let unset = "    env: [{name: WHO, value: ''}]\n    volumeMounts: [{name: v, mountPath: /a, subPathExpr: by/$(WHO)/$(NO)}]";
    node.apply(&pod("unset", &once("true", unset, &host("Directory", "folder"))));
    let outside = "    volumeMounts: [{name: v, mountPath: /a, subPath: out/etc}]";
    node.apply(&pod("outside", &once("true", outside, &host("Directory", "folder"))));
    let plain = "    volumeMounts: [{name: v, mountPath: /a}]";
    node.apply(&pod("notfile", &once("true", plain, &host("File", "folder"))));
    node.apply(&pod("notfolder", &once("true", plain, &host("Directory", "file"))));
    node.apply(&pod("notthere", &once("true", plain, &host("Directory", "absent"))));
    node.apply(&pod("made", &once("echo new > /a/file", plain, &host("DirectoryOrCreate", "made/deep"))));
    node.apply(&pod(
        "device",
        &once(
            "stat -c %F /a",
            plain,
            "  volumes: [{name: v, hostPath: {path: /dev/null, type: CharDevice}}]\n",
        ),
    ));
    log_of_ended(&node, "made");
    assert_eq!(fs::read_to_string(dir.join("made/deep/file")).unwrap(), "new\n");
    assert_eq!(log_of_ended(&node, "device"), "character special file\n");
    let path = |name: &str| dir.join(name).display().to_string();
    for (pod, words) in [
        ("unset", "Error: missing value for NO, WHO".to_owned()),
        ("outside", "Error: failed to prepare subPath for volumeMount \"v\" of container \"c\"".to_owned()),
        (
            "notfile",
            format!(
                "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {} is not a file",
                path("folder")
            ),
        ),
        (
            "notfolder",
            format!(
                "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {} is not a directory",
                path("file")
            ),
        ),
        (
            "notthere",
            format!(
                "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {} is not a directory",
                path("absent")
            ),
        ),
    ] {
        let selector = format!("involvedObject.name={pod}");
        node.wait_output(&["get", "events", "--field-selector", &selector], &words, |text| {
            text.contains(&words)
        });
    }
}

#[test]
fn a_volume_is_given_to_its_group_always_or_where_its_root_is_another_s() {
    let node = board_with_busybox("owner");
    node.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n",
    );
    let look = |name: &str, policy: &str, script: &str| {
        let context = format!("  restartPolicy: Never\n  securityContext: {{fsGroup: 1234{policy}}}\n");
        let mount = "    volumeMounts: [{name: v, mountPath: /v}]";
        let spec = format!(
            "{context}  containers:\n{}  volumes: [{{name: v, persistentVolumeClaim: {{claimName: data}}}}]",
            container("c", script, mount)
        );
        node.apply(&pod(name, &spec));
        log_of_ended(&node, name)
    };
    let (mismatch, show) = (", fsGroupChangePolicy: OnRootMismatch", "stat -c %g /v /v/file");
    assert_eq!(look("first", mismatch, "touch /v/file; stat -c %g /v /v/file"), "1234\n1234\n");
    let volume = node.k(&["get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}"]);
    let folder = PathBuf::from(node.k(&["get", "pv", &volume, "-o", "jsonpath={.spec.hostPath.path}"]));
    std::os::unix::fs::chown(folder.join("file"), None, Some(77)).unwrap();
    assert_eq!(look("second", mismatch, show), "1234\n77\n");
    std::os::unix::fs::chown(&folder, None, Some(77)).unwrap();
    assert_eq!(look("third", mismatch, show), "1234\n1234\n");
    std::os::unix::fs::chown(folder.join("file"), None, Some(77)).unwrap();
    assert_eq!(look("fourth", ", fsGroupChangePolicy: Always", show), "1234\n1234\n");
}

#[test]
fn pods_that_write_more_than_they_may_have_to_go() {
    let node = board_with_busybox("gluttons");
    let limit =
        "    resources: {limits: {ephemeral-storage: 2Mi}}\n    volumeMounts: [{name: v, mountPath: /v}]";
    let writes = |file: &str, kib: u32| {
        format!("dd if=/dev/zero of={file} bs=1k count={kib} 2>/dev/null; while :; do sleep 0.1; done")
    };
    let spec = |first: &str| {
        format!(
            "  containers:\n{}{}  volumes: [{{name: v, emptyDir: {{}}}}]",
            container("first", first, limit),
            container("second", SLEEP, limit)
        )
    };
    node.apply(&pod("modest", &spec(&writes("/file", 1024))));
    node.apply(&pod("container", &spec(&writes("/file", 3072))));
    node.apply(&pod("whole", &spec(&writes("/v/file", 5120))));
    let verdict = "jsonpath={.status.phase} {.status.reason}: {.status.message}";
    for (name, words) in [
        ("container", "Container first exceeded its local ephemeral storage limit \"2Mi\". "),
        ("whole", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
    ] {
        node.wait_output(&["get", "pod", name, "-o", verdict], words, |text| {
            text == format!("Failed Evicted: {words}")
        });
        let selector = format!("involvedObject.name={name},reason=Evicted");
        let told = [
            "get",
            "events",
            "--field-selector",
            &selector,
            "-o",
            "jsonpath={.items[*].type}: {.items[*].message}",
        ];
        node.wait_output(&told, "its event", |text| text == format!("Warning: {words}"));
    }
    assert_eq!(node.k(&["get", "pod", "modest", "-o", "jsonpath={.status.phase}"]), "Running");
}

/// Whether a tmpfs of this kernel can be kept out of the swap space.
fn knows_noswap() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let mounted =
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("noswap"));
    mounted.is_ok_and(|()| nix::mount::umount2(dir.path(), MntFlags::MNT_DETACH).is_ok())
}

#[test]
fn volumes_are_told_of_until_they_are_there_and_missed_only_where_they_are_used() {
    let node = board_with_busybox("missing");
    let events = |pod: &str| format!("involvedObject.name={pod},reason=FailedMount");
    let told = "jsonpath={range .items[*]}{.type} {.message} ({.count} times){\"\\n\"}{end}";
    let wait_told = |pod: &str, words: &str| {
        let args = ["get", "events", "--field-selector", &events(pod), "-o", told];
        node.wait_output(&args, words, |text| text.contains(words));
    };
    let uses = |name: &str, node_name: &str, volumes: &str| {
        let mounts = "    volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}]";
        let spec = format!(
            "  nodeName: {node_name}\n  containers:\n{}  volumes: [{volumes}, {{name: m, emptyDir: {{medium: Memory}}}}]",
            container("c", SLEEP, mounts)
        );
        node.apply(&pod(name, &spec));
    };
    // Nobody asked the scheduler, which would not have let them come here.
    uses("claims", &node.name, "{name: v, persistentVolumeClaim: {claimName: data}}");
    let prefix = "Warning Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process volumes=[v]: error processing PVC default/data:";
    wait_told(
        "claims",
        &format!("{prefix} failed to fetch PVC from API server: persistentvolumeclaims \"data\" not found"),
    );
    let claim = |class: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data}}\nspec: {{storageClassName: {class}, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}\n"
        )
    };
    node.apply(&claim("nobodys"));
    // It is tried again and again, and told each time.
    let again = format!("{prefix} PVC is not bound (");
    let args = ["get", "events", "--field-selector", &events("claims"), "-o", told];
    node.wait_output(&args, "a second try", |text| {
        let times = text.split_once(&again).and_then(|(_, rest)| rest.split_once(' '));
        times.is_some_and(|(times, _)| times.parse::<u32>().unwrap() > 1)
    });
    let host = node.dir.path().join("host");
    fs::create_dir(&host).unwrap();
    node.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: own}}\nspec: {{storageClassName: nobodys, accessModes: [ReadWriteOnce], capacity: {{storage: 1Mi}}, hostPath: {{path: {}}}}}\n",
        host.display()
    ));
    wait_ready(&node, &["claims"]);
    let mounts = node.k(&["exec", "claims", "--", "/bin/busybox", "grep", " /m tmpfs ", "/proc/mounts"]);
    assert_eq!(mounts.contains("noswap"), knows_noswap(), "{mounts}");
    // A claim that goes is kept for who has it, and given to nobody else.
    node.k(&["delete", "pvc", "data", "--wait=false"]);
    uses("late", &node.name, "{name: v, persistentVolumeClaim: {claimName: data}}");
    wait_told("late", &format!("{prefix} PVC is being deleted"));
    // All that is missing is told, each for itself.
    uses("both", &node.name, "{name: v, secret: {secretName: absent}}, {name: w, configMap: {name: absent}}");
    wait_told("both", "Warning MountVolume.SetUp failed for volume \"v\" : secret \"absent\" not found");

    // Nobody uses `w`, until somebody looks into it.
    node.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: absent}\nstringData: {key: here}\n");
    wait_ready(&node, &["both"]);
    let debugger = r#"{"spec": {"ephemeralContainers": [{"name": "look", "image": "test.local/busybox:1", "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", "cat /w/key"], "volumeMounts": [{"name": "w", "mountPath": "/w"}]}]}}"#;
    node.k(&[
        "patch",
        "pod",
        "both",
        "--subresource=ephemeralcontainers",
        "--type=strategic",
        "-p",
        debugger,
    ]);
    wait_told("both", "Warning MountVolume.SetUp failed for volume \"w\" : configmap \"absent\" not found");
    node.k(&["create", "configmap", "absent", "--from-literal=key=seen"]);
    node.wait_output(&["logs", "both", "-c", "look"], "the volume", |text| text == "seen");
    assert_eq!(
        node.k(&["get", "pod", "both", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]),
        "0"
    );
}
