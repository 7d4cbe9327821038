//! Faults of a board as its user sees them.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use sampan::crash;

use crate::{
    common::{self, Namespace, Node, board, mounts_below, output, processes_of, unique, wait_for},
    images,
};

/// A pod of the demo image that sleeps.
fn sleeper(name: &str, rest: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: sampan.dev/demo
    command: [/sampan, demo, sleep, "3600"]
{rest}
"#
    )
}

/// A file system whose server never answers.
struct Silent {
    at: PathBuf,
    server: Option<File>,
}

impl Silent {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        mount(Some("silent"), at, Some("fuse"), MsFlags::MS_NOSUID, Some(data.as_str())).unwrap();
        Self { at: at.to_owned(), server: Some(server) }
    }

    /// Who waits for it hears that there is nobody.
    fn give_up(&mut self) {
        self.server = None;
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.give_up();
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_file_system_that_is_silent_stalls_no_other_pod() {
    let mut node = board("silent");
    let mut silent = Silent::mount(&node.dir.path().join("silent"));
    let volumes = format!(
        "    volumeMounts: [{{name: v, mountPath: /v}}]\n  volumes: [{{name: v, hostPath: {{path: {}, type: Directory}}}}]",
        silent.at.display()
    );
    // More than the daemon has threads.
    for n in 0..5 {
        node.apply(&sleeper(&format!("stuck{n}"), &volumes));
    }
    node.wait_output(&["get", "pods", "--no-headers"], "all to wait", |text| {
        text.matches("ContainerCreating").count() == 5
    });
    node.apply(&sleeper("free", ""));
    node.k(&["wait", "--for=condition=Ready", "pod/free", "--timeout=60s"]);
    assert_eq!(node.k(&["exec", "free", "--", "/sampan", "demo", "echo", "hi"]), "hi\n");
    node.k(&["delete", "pod", "free"]);
    node.wait_output(&["get", "events"], "the reason to be told", |text| {
        text.contains("FailedMount") && text.contains("the file system is silent")
    });
    // The daemon ends and comes back with all of them waiting.
    let begun = Instant::now();
    node.stop();
    assert!(begun.elapsed() < Duration::from_secs(45), "a waiting thread holds the daemon");
    node.spawn();
    node.wait_ready();
    node.apply(&sleeper("later", ""));
    node.k(&["wait", "--for=condition=Ready", "pod/later", "--timeout=60s"]);
    silent.give_up();
    node.k(&["delete", "pods", "--all"]);
}

/// What the kernel says when it has killed a process for the whole machine, and for a group of processes; the
/// words are put into its log as any process of root may do.
#[test]
fn a_kill_for_want_of_memory_in_the_whole_machine_is_told_of_the_node() {
    let node = board("oom");
    let events = |reason: &str| {
        let selector = format!("involvedObject.kind=Node,involvedObject.name={},reason={reason}", node.name);
        let format = "jsonpath={range .items[*]}{.type} {.message}{\"\\n\"}{end}";
        ["get", "events", "--field-selector", &selector, "-o", format].map(str::to_owned)
    };
    let wait = |reason: &str, expect: &str| {
        let args = events(reason);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        node.wait_output(&args, expect, |text| text == expect);
    };
    let say = |text: &str| File::options().write(true).open("/dev/kmsg")?.write_all(text.as_bytes());
    let group = "constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=dd,pid=41,uid=0";
    let lines = [
        "dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=1000".to_owned(),
        format!("oom-kill:{group}"),
        "Memory cgroup out of memory: Killed process 41 (dd) total-vm:9000kB".to_owned(),
        "sampan-test invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0".to_owned(),
        "Out of memory: Killed process 42 (sampan test) total-vm:9000kB, anon-rss:4000kB".to_owned(),
    ];
    if let Some(error) = lines.iter().find_map(|line| say(line).err()) {
        eprintln!("the kernel's log cannot be written here: {error}");
        return;
    }
    wait("SystemOOM", "Warning System OOM encountered, victim process: sampan test, pid: 42\n");
    // What else a node tells of itself, and its master has to tell it.
    node.k(&["cordon", &node.name]);
    wait("NodeNotSchedulable", &format!("Normal Node {} status is now: NodeNotSchedulable\n", node.name));
}

/// Answers what the root folder itself is asked for, until told to stop.
fn answer_for_the_root(server: &File, stop: &AtomicBool) {
    const GETATTR: u32 = 3;
    const STATFS: u32 = 17;
    const INIT: u32 = 26;
    /// Forget and interrupt want no answer.
    const UNANSWERED: [u32; 2] = [2, 36];
    let mut server = server.try_clone().unwrap();
    let mut request = vec![0; 1 << 17];
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50u8)).unwrap_or(0) == 0 {
            continue;
        }
        // Gone with its mount.
        let Ok(_) = server.read(&mut request) else { return };
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        // linux/fuse.h: `fuse_init_out`, `fuse_attr_out` of a folder, `fuse_statfs_out`.
        let (error, body) = match word(4) {
            INIT => {
                let mut body = vec![0; 64];
                body[..12].copy_from_slice(&request[40..52]);
                body[20..24].copy_from_slice(&4096u32.to_le_bytes());
                (0, body)
            }
            GETATTR => {
                let mut body = vec![0; 104];
                body[0] = 1;
                body[16] = 1;
                body[76..80].copy_from_slice(&(libc::S_IFDIR | 0o755).to_le_bytes());
                body[80] = 2;
                (0, body)
            }
            STATFS => (0, vec![0; 80]),
            other if UNANSWERED.contains(&other) => continue,
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut answer = (16 + body.len() as u32).to_le_bytes().to_vec();
        answer.extend(i32::to_le_bytes(error));
        answer.extend_from_slice(&request[8..16]);
        answer.extend(body);
        server.write_all(&answer).unwrap();
    }
}

/// Exports whose server has fallen silent after they were mounted: one before a container has begun, one before
/// it reads. The kernel of most machines that run tests has no NFS, so a file system without a server lies
/// where the export would. `tests/boot.sh` has the real one, with a server that accepts and never answers.
#[test]
fn exports_that_fall_silent_stall_neither_their_pods_end_nor_anybody_else() {
    let node = board("hung");
    let container = r"  - name: reader
    image: sampan.dev/demo
    command: [/sampan, demo, sleep, infinity]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, nfs: {server: 127.0.0.1, path: /export}}]";
    let names = ["stuck", "hung"];
    let silent = names.map(|name| {
        node.apply(&sleeper(name, container));
        // Whatever the kernel says of an export that is not there, the pod waits for it.
        let selector = format!("involvedObject.name={name}");
        node.wait_output(&["get", "events", "--field-selector", &selector], "the mount to fail", |text| {
            text.contains("FailedMount")
        });
        let uid = node.k(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"]);
        Silent::mount(&node.dir.path().join(format!("data/agent/pods/{uid}/volumes/kubernetes.io~nfs/v")))
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| answer_for_the_root(silent[1].server.as_ref().unwrap(), &stop));
        // Also when something fails below.
        let _end = Ending(&stop);
        node.wait_output(&["get", "pod", "hung"], "the reader to run", |text| text.contains("2/2"));
        node.wait_output(&["get", "pod", "stuck"], "the other container to run", |text| text.contains("1/2"));
        // What was not taken by its server can be given up, as a request to an NFS server can.
        stop.store(true, Ordering::Relaxed);
        let cat = ["exec", "hung", "-c", "reader", "--", "/sampan", "demo", "cat", "/v/file"];
        let mut reading =
            node.kubectl().args(cat).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // What looks at pods does not look into it: usage, the node's state, a command beside, another pod.
        for name in names {
            assert_eq!(node.k(&["exec", name, "-c", "c", "--", "/sampan", "demo", "echo", "hi"]), "hi\n");
        }
        node.apply(&sleeper("free", ""));
        node.k(&["wait", "--for=condition=Ready", "pod/free", "--timeout=60s"]);
        let summary = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name);
        let summary = node.k(&["get", "--raw", &summary]);
        node.wait_output(&["top", "pods"], "usage", |text| text.contains("free"));
        assert!(names.iter().all(|name| summary.contains(name)), "{summary}");
        assert!(node.k(&["get", "node", &node.name]).contains(" Ready"));
        assert!(reading.try_wait().unwrap().is_none(), "the reader waits for an answer that never comes");
        node.k(&["delete", "pods", "--all", "--timeout=60s"]);
        let _ = reading.wait();
        wait_for_nothing(&node);
    });
}

/// Sets a flag at its end.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is left of pods on the board.
fn left(node: &Node) -> Vec<String> {
    let dir = node.dir.path();
    let mut left: Vec<String> = processes_of(dir).into_iter().filter(|p| !p.contains("--data-dir")).collect();
    left.extend(mounts_below(dir).into_iter().filter(|m| m.contains("/pods/") || m.contains("/ns/")));
    for folder in ["run/containers", "run/sandboxes", "run/ns", "run/volumes", "data/agent/pods", "log/pods"]
    {
        let entries = fs::read_dir(dir.join(folder)).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    let links = common::must(node.space.command("ip").args(["-o", "link", "show", "type", "veth"]));
    left.extend(links.lines().map(str::to_owned));
    left
}

fn wait_for_nothing(node: &Node) {
    wait_for("nothing to be left", || {
        let left = left(node);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

/// Waits until kubectl says what is wanted, or the daemon has ended; whether it was the former.
fn comes(node: &mut Node, args: &[&str], wanted: impl Fn(&str) -> bool) -> bool {
    wait_for("the pod or the end of the daemon", || {
        if node.has_ended() {
            return Ok(false);
        }
        let out = output(node.kubectl().args(args));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() && wanted(&said) { Ok(true) } else { Err(said) }
    })
}

/// A board where `who` dies at the place whose number is in a file, that file, and the manifest of a pod
/// with what is mounted and linked for it.
fn board_of_steps(name: &str, who: &str) -> (Node, PathBuf, String) {
    let mut node = board(name);
    let place = node.dir.path().join("place");
    node.stop();
    node.set_env(who, &place.display().to_string());
    node.spawn();
    node.wait_ready();
    let volume =
        "    volumeMounts: [{name: m, mountPath: /m}]\n  volumes: [{name: m, emptyDir: {medium: Memory}}]";
    let manifest = node.dir.path().join("pod.yaml");
    fs::write(&manifest, sleeper("p", volume)).unwrap();
    (node, place, manifest.display().to_string())
}

/// Lets the daemon die at every one of `who`'s steps of a pod's life, and the power with every second one where
/// `power` says so; how often it died.
fn die_through_a_life(name: &str, who: &str, power: bool) -> u32 {
    let (mut node, place, manifest) = board_of_steps(name, who);
    let mut deaths = 0;
    loop {
        fs::write(&place, (deaths + 1).to_string()).unwrap();
        let ready = "jsonpath={.status.containerStatuses[0].ready}";
        let lived = comes(&mut node, &["apply", "-f", &manifest], |_| true)
            && comes(&mut node, &["get", "pod", "p", "-o", ready], |text| text == "true")
            && comes(&mut node, &["delete", "pod", "p", "--wait=false"], |_| true)
            && comes(&mut node, &["get", "pods", "--no-headers"], str::is_empty);
        if node.has_ended() {
            deaths += 1;
            if power && deaths % 2 == 0 {
                node.power_off();
            }
            node.spawn();
            node.wait_ready();
            let known = "jsonpath={.metadata.name} {.metadata.deletionTimestamp}";
            let pod = node.k(&["get", "pod", "p", "--ignore-not-found", "-o", known]);
            if pod.trim() == "p" {
                node.k(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"]);
                node.k(&["delete", "pod", "p"]);
            }
            node.wait_output(&["get", "pods", "--no-headers"], "no pod", |text| text.trim().is_empty());
            wait_for_nothing(&node);
            continue;
        }
        assert!(lived, "neither dead nor done after {deaths} deaths: {}", node.log());
        break;
    }
    wait_for_nothing(&node);
    deaths
}

#[test]
fn a_daemon_may_die_at_every_step_of_a_pods_life() {
    let deaths = die_through_a_life("steps", crash::DAEMON, false);
    assert!(deaths >= 28, "only {deaths} steps");
}

#[test]
fn a_daemon_or_its_power_may_go_at_every_step_of_the_ledger() {
    let deaths = die_through_a_life("ledger", crash::LEDGER, true);
    assert!(deaths >= 12, "only {deaths} steps");
}

#[test]
fn a_shim_may_die_at_every_step_of_a_pods_life() {
    let (node, place, manifest) = board_of_steps("shims", crash::SHIM);
    let mut deaths = 0;
    loop {
        // The place takes itself away when it kills.
        fs::write(&place, (deaths + 1).to_string()).unwrap();
        node.k(&["apply", "-f", &manifest]);
        let restarts =
            "jsonpath={.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}";
        node.wait_output(&["get", "pod", "p", "-o", restarts], "the container to run", |text| {
            text == "true 0" || text.starts_with("true ") && !place.exists()
        });
        node.k(&["delete", "pod", "p"]);
        wait_for_nothing(&node);
        if place.exists() {
            break;
        }
        deaths += 1;
    }
    // What makes the container does not see the place from within: `runtime` kills it at its steps.
    assert!(deaths >= 8, "only {deaths} steps");
}

fn large_image() -> Vec<u8> {
    let file = images::File {
        path: "large",
        kind: tar::EntryType::Regular,
        body: &vec![7; 8 << 20],
        link: "",
        mode: 0o644,
    };
    let architecture = common::must(Command::new("dpkg").arg("--print-architecture"));
    images::docker_archive("test.local/large:1", &[images::layer(&[file])], architecture.trim())
}

#[test]
fn a_disk_that_fills_up_breaks_nothing_that_runs() {
    let name = unique("full");
    let space = Namespace::new(&name, "192.0.2.10/24");
    let small = |dir: &Path| {
        let data = dir.join("data");
        fs::create_dir(&data).unwrap();
        mount(Some("small"), &data, Some("tmpfs"), MsFlags::empty(), Some("size=512m")).unwrap();
    };
    let node = Node::start_on("server", &name, space, &["--eviction-hard", "pid.available<1"], small);
    let dir = node.dir.path().to_owned();
    node.wait_ready();
    node.apply(&sleeper("before", ""));
    node.k(&["wait", "--for=condition=Ready", "pod/before", "--timeout=60s"]);
    let filler = dir.join("data/filler");
    let full = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", filler.display()))
        .output()
        .unwrap();
    assert!(!full.status.success(), "the disk is full");
    // What cannot be stored is refused by name; what runs goes on.
    let large = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large"}, "data": {"k": "x".repeat(600_000)},
    });
    let file = dir.join("large.yaml");
    fs::write(&file, large.to_string()).unwrap();
    wait_for("a write to be refused", || {
        let out = output(node.kubectl().args(["create", "-f"]).arg(&file));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let _ = output(node.kubectl().args(["delete", "configmap", "large", "--ignore-not-found"]));
        if !out.status.success() && said.contains("full") { Ok(()) } else { Err(said) }
    });
    let archive = dir.join("image.tar");
    fs::write(&archive, large_image()).unwrap();
    let mut import = node.import(&archive);
    let out = output(&mut import);
    let said = String::from_utf8_lossy(&out.stderr).to_lowercase();
    assert!(!out.status.success() && said.contains("no space left"), "{said}");
    assert_eq!(node.k(&["exec", "before", "--", "/sampan", "demo", "echo", "hi"]), "hi\n");
    fs::remove_file(&filler).unwrap();
    common::must(&mut import);
    wait_for("writes to be taken", || {
        let out = output(node.kubectl().args(["create", "configmap", "small"]));
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    node.apply(&sleeper("after", ""));
    node.k(&["wait", "--for=condition=Ready", "pod/after", "pod/before", "--timeout=60s"]);
    assert_eq!(
        node.k(&["get", "pod", "before", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]),
        "0"
    );
    node.k(&["delete", "pods", "--all"]);
}
