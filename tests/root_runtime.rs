//! The runtime with real namespaces, cgroups and mounts. Needs root; each test has folders, a cgroup
//! and names of its own and leaves nothing behind, also when it fails.

mod ground;

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use ground::{Ground, PATIENCE, entries, eventually, exit_of, run, text};
use sampan::runtime::{
    ContainerState, Error, ExecSpec, Mount, Propagation, Resources, Runtime, SandboxSpec, Seccomp,
    rotated_log,
};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_container_runs_logs_and_ends_with_its_code() {
    let ground = Ground::new("run");
    let runtime = ground.runtime();
    let mut spec =
        ground.container("c", &["sh", "-c", "echo out; echo err >&2; hostname; id; pwd; printf end; exit 7"]);
    spec.uid = 1000;
    spec.gid = 1000;
    spec.additional_gids = vec![2000];
    spec.cwd = "/not/there/yet".into();
    let exit = run(&runtime, &spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.error), (7, None, false, None));
    assert!(exit.started_at.unwrap() <= exit.finished_at);
    let log = ground.log("c");
    let mut lines = entries(&log);
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "stderr F err",
            "stdout F /not/there/yet",
            "stdout F out",
            "stdout F uid=1000(u) gid=1000 groups=1000,2000",
            "stdout F web-0",
            "stdout P end"
        ]
    );
    let mut stranger = ground.container("s", &["sh", "-c", "echo $HOME"]);
    stranger.uid = 4242;
    assert_eq!(run(&runtime, &stranger).await.code, 0);
    assert_eq!(entries(&ground.log("s")), ["stdout F /"]);
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let ground = Ground::new("bad");
    let runtime = ground.runtime();
    let cases = [
        ("a", "nonesuch", "exec: \"nonesuch\": executable file not found in $PATH"),
        ("b", "/bin/nonesuch", "exec: \"/bin/nonesuch\": stat /bin/nonesuch: no such file or directory"),
        ("c", "/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("d", "/bin/not-a-program", "exec /bin/not-a-program: exec format error"),
    ];
    for (name, program, message) in cases {
        let exit = run(&runtime, &ground.container(name, &[program])).await;
        let error = exit.error.unwrap();
        assert!(error.ends_with(message), "{error}");
        assert_eq!(exit.code, 128);
    }
    let mut spec = ground.container("e", &["true"]);
    spec.mounts = vec![Mount { source: "/no/such".into(), target: "/x".into(), ..Mount::default() }];
    let error = run(&runtime, &spec).await.error.unwrap();
    assert!(error.contains("error mounting \"/no/such\" to rootfs at \"/x\": no such file"), "{error}");
    ground.assert_nothing_left(&runtime).await;
}

/// The tests of this file that need no controller, where cgroups of version 2 are all there is. This
/// machine may have its controllers in version 1.
#[test]
fn containers_run_with_cgroups_of_version_2() {
    const ONLY_V2: &str = "mount --make-rprivate / && umount -R /sys/fs/cgroup && \
                           mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" \"$@\"";
    let tests = [
        "a_container_runs_logs_and_ends_with_its_code",
        "what_cannot_run_says_why",
        "signals_come_in_order_and_kill_ends_all",
        "commands_run_beside_a_container",
        "filters_and_capabilities_are_the_containers",
        "a_dead_monitor_takes_its_container_along",
    ];
    let status = Command::new("unshare")
        .args(["-m", "sh", "-c", ONLY_V2])
        .arg(std::env::current_exe().unwrap())
        .arg("--exact")
        .args(tests)
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn signals_come_in_order_and_kill_ends_all() {
    let ground = Ground::new("signal");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let polite = ground
        .container("polite", &["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done"]);
    let deaf = ground.container("deaf", &["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done"]);
    for spec in [&polite, &deaf] {
        runtime.start(spec).await.unwrap();
        let name = spec.id.split('_').nth(1).unwrap().to_owned();
        eventually("the trap is set", || ground.log(&name).contains("up")).await;
        runtime.signal(&spec.id, 15).await.unwrap();
    }
    assert_eq!(exit_of(&runtime, &polite.id).await.code, 3);
    assert!(matches!(runtime.state(&deaf.id).await.unwrap(), ContainerState::Running { .. }));
    runtime.kill(&deaf.id).await.unwrap();
    let exit = exit_of(&runtime, &deaf.id).await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    runtime.signal(&deaf.id, 15).await.unwrap();
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn logs_are_rotated_and_long_lines_split() {
    let ground = Ground::new("logs");
    let runtime = ground.runtime();
    let script = "i=0; while [ $i -lt 600 ]; do echo \"line $i ...................................\"; i=$((i+1)); done; \
                  dd if=/dev/zero bs=20000 count=1 2>/dev/null; echo";
    let mut spec = ground.container("c", &["sh", "-c", script]);
    spec.log_bytes_max = 40_000;
    let exit = run(&runtime, &spec).await;
    assert_eq!(exit.code, 0);
    let path = ground.path("logs/c.log");
    let all: String = [2, 1]
        .iter()
        .map(|n| fs::read_to_string(rotated_log(&path, *n)).unwrap_or_default())
        .chain([ground.log("c")])
        .collect();
    let lines = entries(&all);
    assert!(lines.iter().any(|line| line.starts_with("stdout F line 599 ")));
    let tail: Vec<_> = lines[lines.len() - 2..].iter().map(|line| (&line[..8], line.len())).collect();
    assert_eq!(tail, [("stdout P", 9 + 16384), ("stdout F", 9 + 20000 - 16384)]);
    assert!(rotated_log(&path, 1).exists() && !rotated_log(&path, 3).exists());
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_should() {
    let ground = Ground::new("share");
    let runtime = ground.runtime();
    let mut sandbox = Ground::sandbox();
    sandbox.share_pid = true;
    sandbox.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
    let netns = runtime.ensure_sandbox(&sandbox).await.unwrap();
    assert!(netns.exists());
    assert_eq!(runtime.ensure_sandbox(&sandbox).await.unwrap(), netns);
    let show = "for n in net ipc uts pid mnt; do ls -l /proc/self/ns/$n; done; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ";
    let first = ground.container("a", &["sh", "-c", &format!("{show} echo x > /dev/shm/f; exec sleep 1000")]);
    let second = ground.container(
        "b",
        &["sh", "-c", &format!("while [ ! -f /dev/shm/f ]; do sleep 0.01; done; {show} ps -o pid,args")],
    );
    runtime.start(&first).await.unwrap();
    runtime.start(&second).await.unwrap();
    assert_eq!(exit_of(&runtime, &second.id).await.code, 0);
    let (a, b) = (ground.log("a"), ground.log("b"));
    let namespaces = |log: &str| -> Vec<String> {
        log.lines().filter_map(|line| line.split("-> ").nth(1)).map(ToOwned::to_owned).collect()
    };
    let (a, spaces) = (namespaces(&a), namespaces(&b));
    assert_eq!(a.len(), 5, "{a:?}");
    assert_eq!(a[..4], spaces[..4]);
    assert_ne!(a[4], spaces[4]);
    assert!(b.contains("sleep 1000") && b.contains("stdout F 77"), "{b}");
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_sandbox_that_could_not_be_made_leaves_nothing() {
    let ground = Ground::new("unmade");
    let runtime = ground.runtime();
    let mut sandbox = Ground::sandbox();
    sandbox.sysctls.insert("net.ipv4.tcp_syncookies".into(), "no number".into());
    let error = runtime.ensure_sandbox(&sandbox).await.unwrap_err().to_string();
    assert!(error.contains("net.ipv4.tcp_syncookies"), "{error}");
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn what_is_erased_has_no_process_left() {
    let ground = Ground::new("erase");
    let runtime = ground.runtime();
    let sandbox = SandboxSpec { share_pid: true, ..Ground::sandbox() };
    runtime.ensure_sandbox(&sandbox).await.unwrap();
    runtime.start(&ground.container("c", &["sleep", "1000"])).await.unwrap();
    drop(runtime);
    assert!(ground.processes().len() > 1, "a monitor and a reaper");
    let (run, data) = (ground.path("run"), ground.path("data"));
    let failed = sampan::runtime::erase(&ground.options(), &[&run, &data]);
    assert!(failed.is_empty(), "{failed:?}");
    eventually("processes are gone", || ground.processes().is_empty()).await;
    assert_eq!(ground.mounts(), Vec::<String>::new());
}

#[tokio::test]
async fn a_new_daemon_adopts_what_runs() {
    let ground = Ground::new("adopt");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let long = ground.container(
        "long",
        &["sh", "-c", "i=0; while [ ! -f /stop ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"],
    );
    let short =
        ground.container("short", &["sh", "-c", "while [ ! -f /dev/shm/go ]; do sleep 0.01; done; exit 6"]);
    let before = runtime.start(&long).await.unwrap();
    runtime.start(&short).await.unwrap();
    drop(runtime);
    fs::write(ground.path("run/ns/pod/shm/go"), "").unwrap();
    eventually("the monitor records the exit", || ground.path("run/containers/pod_short_0/exit").exists())
        .await;
    // What a daemon that died at its first steps leaves behind.
    fs::create_dir_all(ground.path("run/containers/.pod_half_0")).unwrap();
    fs::create_dir_all(ground.path("data/containers/pod_gone_0/upper")).unwrap();
    fs::create_dir_all(ground.path("run/ns/other")).unwrap();

    let runtime = ground.runtime();
    assert_eq!(runtime.state(&long.id).await.unwrap(), before);
    assert_eq!(exit_of(&runtime, &short.id).await.code, 6);
    assert_eq!(runtime.sandboxes().await.unwrap(), [Ground::sandbox()]);
    let known: Vec<_> =
        runtime.containers().await.unwrap().iter().map(|(spec, _)| (**spec).clone()).collect();
    assert_eq!(known, [long.clone(), short]);
    let exec = ExecSpec { args: vec!["sh".into(), "-c".into(), "> /stop".into()], ..ExecSpec::default() };
    // The command may be killed with the container that it ends.
    runtime.exec(&long.id, &exec).await.unwrap().exit.await.unwrap();
    assert_eq!(exit_of(&runtime, &long.id).await.code, 5);
    let log = ground.log("long");
    let numbers: Vec<usize> =
        entries(&log).iter().map(|line| line["stdout F ".len()..].parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_dead_monitor_takes_its_container_along() {
    let ground = Ground::new("monitor");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let spec = ground.container("c", &["sleep", "1000"]);
    runtime.start(&spec).await.unwrap();
    // The one that has made the container goes.
    eventually("the monitor is alone", || ground.processes().len() == 1).await;
    let monitor = ground.processes();
    let pid = monitor[0].split(':').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    let exit = exit_of(&runtime, &spec.id).await;
    assert_eq!(exit.code, 255);
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn memory_limits_kill_and_are_told() {
    let ground = Ground::new("oom");
    let runtime = ground.runtime();
    let mut spec = ground.container("c", &["sh", "-c", "x=0123456789; while :; do x=$x$x; done"]);
    spec.resources = Resources { memory_bytes: Some(32 << 20), ..Resources::default() };
    let exit = run(&runtime, &spec).await;
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn usage_is_told_and_limits_change() {
    let ground = Ground::new("stats");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let mut spec = ground.container("c", &["sh", "-c", "while :; do :; done"]);
    spec.resources = Resources { memory_bytes: Some(64 << 20), ..Resources::default() };
    runtime.start(&spec).await.unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let (own, pod) = (runtime.stats(&spec.id).await.unwrap(), runtime.stats("pod").await.unwrap());
        if own.cpu_usage_ns > 20_000_000 && pod.cpu_usage_ns >= own.cpu_usage_ns {
            assert!(own.memory_working_set_bytes > 0 && own.memory_usage_bytes < 64 << 20);
            assert_eq!(own.pids, 1);
            break;
        }
        assert!(Instant::now() < until, "{own:?} {pod:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let resources =
        Resources { memory_bytes: Some(128 << 20), cpu_quota_us: Some(20_000), ..Resources::default() };
    runtime.update(&spec.id, &resources).await.unwrap();
    let (spec, _) = runtime.containers().await.unwrap().pop().unwrap();
    assert_eq!(spec.resources, resources);
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn commands_run_beside_a_container() {
    let ground = Ground::new("exec");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let mut spec = ground.container("c", &["sleep", "1000"]);
    spec.uid = 1000;
    spec.gid = 1000;
    spec.env = vec![("A".into(), "b c".into())];
    runtime.start(&spec).await.unwrap();
    let command = |args: &[&str], stdin| ExecSpec {
        args: args.iter().map(ToString::to_string).collect(),
        stdin,
        tty: false,
    };

    let spec_of =
        command(&["sh", "-c", "cat; id -u; echo $A $HOME; cat /proc/1/cmdline; echo e >&2; exit 9"], true);
    let mut session = runtime.exec(&spec.id, &spec_of).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"in\n").await.unwrap();
    drop(stdin);
    assert_eq!(text(&mut session.stdout).await, "in\n1000\nb c /home/u\nsleep\x001000\0");
    assert_eq!(text(&mut session.stderr).await, "e\n");
    assert_eq!(session.exit.await.unwrap(), 9);

    let Err(error) = runtime.exec(&spec.id, &command(&["nope"], false)).await else { panic!("it ran") };
    assert!(matches!(&error, Error::ExecFailed { code: 127, .. }), "{error:?}");
    assert!(error.to_string().ends_with("exec: \"nope\": executable file not found in $PATH"), "{error}");

    let session = runtime
        .exec(&spec.id, &command(&["sh", "-c", "> /dev/shm/up; exec sleep 999"], false))
        .await
        .unwrap();
    eventually("the command runs", || ground.path("run/ns/pod/shm/up").exists()).await;
    drop(session);
    let groups = ground.groups();
    let commands = || -> usize {
        let group = groups[0].join("podpod").join(&spec.id).join("cgroup.procs");
        fs::read_to_string(group).unwrap().lines().count()
    };
    eventually("an abandoned command is killed", || commands() == 1).await;

    let session = runtime.exec(&spec.id, &command(&["sleep", "998"], false)).await.unwrap();
    runtime.kill(&spec.id).await.unwrap();
    assert_eq!(session.exit.await.unwrap(), 137);
    exit_of(&runtime, &spec.id).await;
    assert!(matches!(runtime.exec(&spec.id, &command(&["true"], false)).await, Err(Error::NotRunning(_))));
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_a_name() {
    let ground = Ground::new("tty");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let spec = ground.container("c", &["sleep", "1000"]);
    runtime.start(&spec).await.unwrap();
    let exec = ExecSpec { args: vec!["sh".into()], tty: true, stdin: true };
    let mut session = runtime.exec(&spec.id, &exec).await.unwrap();
    let resize = session.resize.take().unwrap();
    resize.send((101, 33)).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin
        .write_all(b"while [ \"$(stty size)\" != '33 101' ]; do sleep 0.01; done; stty size; tty; exit 4\n")
        .await
        .unwrap();
    let output = text(&mut session.stdout).await;
    let code = session.exit.await.unwrap();
    assert!(output.contains("33 101\r\n/dev/pts/0\r\n"), "{code} {output:?}");
    assert_eq!(code, 4);
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_container_is_attached_to() {
    let ground = Ground::new("attach");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let mut plain =
        ground.container("plain", &["sh", "-c", "read x; echo got $x; read y || echo end; exit 2"]);
    plain.stdin = true;
    plain.stdin_once = true;
    runtime.start(&plain).await.unwrap();
    let mut session = runtime.attach(&plain.id).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(text(&mut session.stdout).await, "got hello\nend\n");
    assert_eq!(session.exit.await.unwrap(), 2);

    let mut terminal = ground.container("terminal", &["sh"]);
    (terminal.stdin, terminal.tty) = (true, true);
    runtime.start(&terminal).await.unwrap();
    let mut session = runtime.attach(&terminal.id).await.unwrap();
    session.resize.as_ref().unwrap().send((90, 30)).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin
        .write_all(b"while [ \"$(stty size)\" != '30 90' ]; do sleep 0.01; done; tty; echo $TERM; exit 3\n")
        .await
        .unwrap();
    let output = text(&mut session.stdout).await;
    assert!(output.contains("/dev/pts/0\r\nxterm\r\n"), "{output:?}");
    assert_eq!(session.exit.await.unwrap(), 3);
    exit_of(&runtime, &terminal.id).await;
    assert!(ground.log("terminal").contains("stdout F xterm\n"));
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_monitor_at_rest_gives_memory_back_and_wakes_up() {
    let ground = Ground::new("rest");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let mut spec = ground.container("c", &["sh", "-c", "read x; echo got $x; exit 2"]);
    spec.stdin = true;
    runtime.start(&spec).await.unwrap();
    let line = ground.processes().into_iter().find(|line| line.contains("sampan-shim shim ")).unwrap();
    let pid = line.split(':').next().unwrap().to_owned();
    // KiB of the program's pages and of page tables.
    let size = |key: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (pages, tables) = (size("RssFile"), size("VmPTE"));
    eventually("memory is given back", || size("RssFile") < pages / 2 && size("VmPTE") < tables).await;
    let mut session = runtime.attach(&spec.id).await.unwrap();
    session.stdin.take().unwrap().write_all(b"it\n").await.unwrap();
    assert_eq!(text(&mut session.stdout).await, "got it\n");
    assert_eq!(exit_of(&runtime, &spec.id).await.code, 2);
    assert_eq!(entries(&ground.log("c")), ["stdout F got it"]);
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn volumes_are_mounted_as_asked() {
    let ground = Ground::new("mounts");
    let runtime = ground.runtime();
    fs::create_dir_all(ground.path("volume/sub")).unwrap();
    fs::write(ground.path("volume/file"), "content").unwrap();
    let script = "cat /data/file; echo; echo w > /data/sub/new && echo written; (echo x > /ro/y) 2>/dev/null || echo denied; \
                  cat /etc/one; echo; (echo x > /sys/fs/cgroup/x) 2>/dev/null || echo denied; (echo 1 > /top) 2>/dev/null || echo denied; \
                  echo kept > /of/the/image/f && cat /of/the/image/f";
    let mut spec = ground.container("c", &["sh", "-c", script]);
    let mount = |source: &str, target: &str| Mount {
        source: ground.path(source),
        target: target.into(),
        ..Mount::default()
    };
    spec.mounts = vec![
        mount("volume", "/data"),
        Mount { read_only: true, recursive_read_only: true, ..mount("volume", "/ro") },
        Mount { propagation: Propagation::HostToContainer, ..mount("volume/file", "/etc/one") },
    ];
    spec.read_only_root = true;
    spec.volumes = vec!["/of/the/image".into()];
    let exit = run(&runtime, &spec).await;
    let log = ground.log("c");
    assert_eq!(exit.code, 0, "{log}");
    let text: Vec<_> = entries(&log).iter().map(|line| &line[9..]).collect();
    assert_eq!(text, ["content", "written", "denied", "content", "denied", "denied", "kept"]);
    assert!(ground.path("volume/sub/new").exists());
    for (name, source, target, words) in [
        ("d", "volume", "/etc/passwd", "not a directory: Are you trying to mount a directory onto a file"),
        ("f", "volume/file", "/bin", "not a directory: Are you trying to mount a directory onto a file"),
        ("p", "volume", "/proc/x", "/proc/x"),
    ] {
        let mut spec = ground.container(name, &["true"]);
        spec.mounts = vec![mount(source, target)];
        let error = run(&runtime, &spec).await.error.unwrap();
        assert!(error.contains(words), "{error}");
    }
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn filters_and_capabilities_are_the_containers() {
    let ground = Ground::new("seccomp");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    fs::write(
        ground.path("profile.json"),
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}]}"#,
    )
    .unwrap();
    let chown = 1;
    let cases = [
        ("plain", Seccomp::Unconfined, false, 0, false, (0, chown, 0)),
        ("filter", Seccomp::RuntimeDefault, false, 0, false, (2, chown, 0)),
        ("nnp", Seccomp::RuntimeDefault, true, 0, false, (2, chown, 1)),
        ("user", Seccomp::RuntimeDefault, false, 1000, false, (2, 0, 0)),
        ("user-nnp", Seccomp::RuntimeDefault, true, 1000, false, (2, 0, 1)),
        ("local", Seccomp::Localhost(ground.path("profile.json")), false, 0, false, (2, chown, 0)),
        ("privileged", Seccomp::RuntimeDefault, false, 0, true, (0, u64::MAX, 0)),
    ];
    for (name, seccomp, no_new_privileges, uid, privileged, (mode, effective, nnp)) in cases {
        let script = "while read k v; do case $k in Cap*|Seccomp:|NoNew*) echo $k $v;; esac; done < /proc/self/status; \
                      hostname other 2>/dev/null && echo renamed; echo told; ";
        let mut spec = ground.container(name, &["sh", "-c", &format!("{script} exec sleep 1000")]);
        (spec.seccomp, spec.no_new_privileges, spec.privileged, spec.uid) =
            (seccomp, no_new_privileges, privileged, uid);
        spec.capabilities = vec!["CAP_CHOWN".into()];
        runtime.start(&spec).await.unwrap();
        let exec = ExecSpec { args: vec!["sh".into(), "-c".into(), script.into()], ..ExecSpec::default() };
        let mut session = runtime.exec(&spec.id, &exec).await.unwrap();
        let command = text(&mut session.stdout).await;
        eventually("the container has told", || ground.log(name).contains(" told")).await;
        let own = ground.log(name);
        for told in [&command, &own] {
            let number = |key: &str| -> u64 {
                let value =
                    told.lines().find_map(|line| line.split(key).nth(1)).unwrap_or_else(|| panic!("{told}"));
                u64::from_str_radix(value.trim(), if key.starts_with("Cap") { 16 } else { 10 }).unwrap()
            };
            assert_eq!((number("Seccomp: "), number("NoNewPrivs: ")), (mode, nnp), "{name}: {told}");
            if privileged {
                assert!(number("CapEff: ") > 1 << 21 && told.contains("renamed"), "{told}");
            } else {
                let all = [number("CapEff: "), number("CapPrm: "), number("CapBnd: "), number("CapInh: ")];
                assert_eq!(all, [effective, effective, chown, 0], "{name}: {told}");
                assert!(!told.contains("renamed"), "{name}");
            }
        }
    }
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_daemon_may_die_at_any_moment_of_a_start() {
    let ground = Ground::new("crash");
    for step in 0..24 {
        let spec = ground.container(&format!("c{step}"), &["sleep", "1000"]);
        let (first, ground) = (spec.clone(), &ground);
        // With an executor of its own: its threads end before the next daemon comes, as in a death.
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                executor.block_on(async {
                    let runtime = ground.runtime();
                    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
                    let _ = tokio::time::timeout(Duration::from_millis(step), runtime.start(&first)).await;
                });
            });
        });
        let runtime = ground.runtime();
        // Either it was not begun, or it is finished by whom it was begun.
        let until = Instant::now() + PATIENCE;
        loop {
            match runtime.state(&spec.id).await {
                Err(Error::NotFound(_)) | Ok(ContainerState::Running { .. }) => break,
                Ok(ContainerState::Exited(exit)) => {
                    assert_eq!(exit.code, 255, "{exit:?}");
                    break;
                }
                other => assert!(Instant::now() < until, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        ground.assert_nothing_left(&runtime).await;
    }
}

#[tokio::test]
async fn a_shim_may_die_at_any_moment_of_a_start() {
    let ground = Ground::new("shimkill");
    let runtime = ground.runtime();
    for step in 0..24 {
        runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
        let spec = ground.container(&format!("c{step}"), &["sleep", "1000"]);
        let (state, ()) = tokio::join!(runtime.start(&spec), async {
            tokio::time::sleep(Duration::from_millis(step)).await;
            // The first is the shim; what it has forked must end by itself.
            if let Some(line) = ground.processes().first() {
                let pid = line.split(':').next().unwrap().parse().unwrap();
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        });
        state.unwrap();
        ground.assert_nothing_left(&runtime).await;
    }
}
