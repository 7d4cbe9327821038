//! Faults of the runtime alone.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use sampan::{
    crash,
    runtime::{ContainerState, Exit, Runtime, rotated_log},
};

use crate::ground::{Ground, entries, eventually, exit_of, run};

/// Where a daemon that is a process of its own works.
const GROUND: &str = "SAMPAN_TEST_GROUND";
/// What such a daemon exits with when its container did not end as it was told to.
const ENDED_OTHERWISE: i32 = 7;

/// A container from nothing to nothing.
async fn life(ground: &Ground) -> Exit {
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let spec = ground.container("c", &["sleep", "1000"]);
    runtime.start(&spec).await.unwrap();
    runtime.kill(&spec.id).await.unwrap();
    let exit = exit_of(&runtime, &spec.id).await;
    runtime.remove(&spec.id).await.unwrap();
    runtime.remove_sandbox("pod").await.unwrap();
    exit
}

#[tokio::test]
#[ignore = "a process that the tests of crashes start"]
async fn daemon() {
    let Ok(place) = std::env::var(GROUND) else { return };
    let (dir, cgroup) = place.split_once(':').unwrap();
    let exit = life(&Ground::shared(dir.into(), cgroup.to_owned())).await;
    let as_told = exit.code == 137 && exit.error.is_none();
    std::process::exit(if as_told { 0 } else { ENDED_OTHERWISE });
}

/// Runs a daemon that lives through [`life`], with the place where it or its shim dies.
fn daemon_that_dies(ground: &Ground, whose: &str, at: u32) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "runtime::daemon", "--ignored"])
        .env(GROUND, format!("{}:{}", ground.path("").display(), ground.cgroup))
        .env(whose, at.to_string())
        .stdout(Stdio::null())
        .status()
        .unwrap()
}

#[tokio::test]
async fn a_daemon_may_die_at_every_step_of_a_start_and_a_stop() {
    let ground = Ground::new("steps");
    let mut deaths = 0;
    while daemon_that_dies(&ground, crash::DAEMON, deaths + 1).signal() == Some(libc::SIGKILL) {
        deaths += 1;
        // What was begun is finished or gone; then the same goes through from the beginning.
        let runtime = ground.runtime();
        for (spec, _) in runtime.containers().await.unwrap() {
            let mut changes = runtime.watch();
            while runtime.state(&spec.id).await.unwrap() == ContainerState::Starting {
                let _ = changes.recv().await;
            }
        }
        ground.assert_nothing_left(&runtime).await;
        drop(runtime);
        assert_eq!(life(&ground).await.code, 137, "after a death at {deaths}");
    }
    assert!(deaths >= 15, "only {deaths} steps");
    ground.assert_nothing_left(&ground.runtime()).await;
}

#[tokio::test]
async fn a_shim_may_die_at_every_step_of_a_start_and_a_stop() {
    let ground = Ground::new("shimsteps");
    let mut deaths = 0;
    while daemon_that_dies(&ground, crash::SHIM, deaths + 1).code() == Some(ENDED_OTHERWISE) {
        deaths += 1;
        ground.assert_nothing_left(&ground.runtime()).await;
    }
    assert!(deaths >= 11, "only {deaths} steps");
    ground.assert_nothing_left(&ground.runtime()).await;
    assert_eq!(life(&ground).await.code, 137);
}

#[tokio::test]
async fn a_child_that_runs_out_of_memory_is_told_of() {
    let ground = Ground::new("childoom");
    let runtime = ground.runtime();
    let script = "dd if=/dev/zero of=/dev/null bs=64M count=1; echo child $?; exit 3";
    let mut spec = ground.container("c", &["sh", "-c", script]);
    spec.resources.memory_bytes = Some(16 << 20);
    let exit = run(&runtime, &spec).await;
    assert!(exit.oom_killed, "{exit:?}");
    // Version 2 kills all of the container together, as Kubernetes has it; version 1 cannot.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert_eq!(exit.code, 137);
    } else {
        assert_eq!(exit.code, 3);
        assert!(entries(&ground.log("c")).contains(&"stdout F child 137"), "{}", ground.log("c"));
    }
    ground.assert_nothing_left(&runtime).await;
}

/// A group for memory beside the pods'.
fn memory_group(ground: &Ground, bytes: u64) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let (root, file) = if root.join("cgroup.controllers").exists() {
        (root.to_owned(), "memory.max")
    } else {
        (root.join("memory"), "memory.limit_in_bytes")
    };
    let group = root.join(&ground.cgroup[1..]).join("beside");
    fs::create_dir_all(&group).unwrap();
    fs::write(group.join(file), bytes.to_string()).unwrap();
    group
}

/// The process of the only monitor.
async fn monitor(ground: &Ground) -> String {
    let find = || ground.processes().into_iter().filter(|line| line.contains("sampan-shim shim "));
    // The one that has made the container goes.
    eventually("the shim is alone", || find().count() == 1).await;
    find().next().unwrap().split(':').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_monitor_outlives_its_group_running_out_of_memory() {
    let ground = Ground::new("shimoom");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let spec = ground.container("c", &["sleep", "1000"]);
    runtime.start(&spec).await.unwrap();
    let monitor = monitor(&ground).await;
    let group = memory_group(&ground, 16 << 20);
    fs::write(group.join("cgroup.procs"), &monitor).unwrap();
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec /bin/busybox dd if=/dev/zero of=/dev/null bs=64M count=1",
        group.display()
    );
    let hog = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap();
    assert_eq!(hog.signal(), Some(libc::SIGKILL), "the hog goes first");
    assert!(matches!(runtime.state(&spec.id).await, Ok(ContainerState::Running { .. })));
    runtime.kill(&spec.id).await.unwrap();
    let exit = exit_of(&runtime, &spec.id).await;
    assert_eq!((exit.code, exit.error), (137, None), "the monitor has told it");
    eventually("the group is empty", || fs::remove_dir(&group).is_ok()).await;
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_fork_bomb_stays_in_its_pod() {
    const PIDS: u64 = 64;
    let ground = Ground::new("bomb");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    // The shells of the bomb end when a fork is refused, so it may burn out: that it was refused is what stays.
    let mut spec = ground.container("bomb", &["sh", "-c", "f() { f | f & }; f & exec sleep 1000"]);
    spec.resources.pids = Some(PIDS.cast_signed());
    runtime.start(&spec).await.unwrap();
    let groups = ground.groups();
    let refusals = || {
        let file = |group: &PathBuf| group.join("podpod").join(&spec.id).join("pids.events");
        let told = groups.iter().find_map(|group| fs::read_to_string(file(group)).ok());
        let told = told.expect("a group that counts forks");
        told.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok()).unwrap_or(0)
    };
    eventually("a fork is refused", || refusals() > 0).await;
    assert!(runtime.stats(&spec.id).await.unwrap().pids <= PIDS);
    let beside = ground.container("beside", &["sh", "-c", "true | true; echo fine"]);
    assert_eq!(run(&runtime, &beside).await.code, 0);
    assert_eq!(entries(&ground.log("beside")), ["stdout F fine"]);
    runtime.kill(&spec.id).await.unwrap();
    assert_eq!(exit_of(&runtime, &spec.id).await.code, 137);
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_gibibyte_of_log_keeps_its_bounds() {
    let ground = Ground::new("burst");
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let burst = "dd if=/dev/zero bs=64k count=16384 2>/dev/null; echo; echo last";
    let spec = ground.container("c", &["sh", "-c", burst]);
    runtime.start(&spec).await.unwrap();
    let monitor = monitor(&ground).await;
    let status = format!("/proc/{monitor}/status");
    let log = ground.path("logs/c.log");
    let mut files = vec![log.clone()];
    files.extend((1..5).map(|n| rotated_log(&log, n)));
    let (mut most_kib, mut most_bytes) = (0, 0);
    let wait = async {
        while !matches!(runtime.state(&spec.id).await, Ok(ContainerState::Exited(_))) {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0");
            let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
            let bytes: u64 = files.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum();
            (most_kib, most_bytes) = (most_kib.max(kib), most_bytes.max(bytes));
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_mins(3), wait).await.expect("the burst ends");
    assert_eq!(exit_of(&runtime, &spec.id).await.code, 0);
    assert!(entries(&ground.log("c")).last().is_some_and(|line| *line == "stdout F last"));
    assert!(most_bytes <= (3 << 20) + (64 << 10), "{most_bytes} bytes of log");
    assert!(most_kib < 1024, "{most_kib} KiB in the monitor");
    assert!(!rotated_log(&log, 3).exists());
    ground.assert_nothing_left(&runtime).await;
}

#[tokio::test]
async fn a_full_disk_stops_no_container_and_tears_no_line() {
    let ground = Ground::new("full");
    let logs = ground.path("logs");
    fs::create_dir_all(&logs).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("t"), &logs, Some("tmpfs"), flags, Some("size=256k")).unwrap();
    let runtime = ground.runtime();
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    let spec =
        ground.container("c", &["sh", "-c", "while :; do echo a line of some length; sleep 0.01; done"]);
    runtime.start(&spec).await.unwrap();
    eventually("it logs", || ground.log("c").contains("length\n")).await;
    fs::write(logs.join("filler"), vec![0; 1 << 20]).unwrap_err();
    let mut size = 0;
    eventually("the disk is full", || std::mem::replace(&mut size, ground.log("c").len()) == size).await;
    assert!(matches!(runtime.state(&spec.id).await, Ok(ContainerState::Running { .. })));
    fs::remove_file(logs.join("filler")).unwrap();
    eventually("it logs again", || ground.log("c").len() > size + 100).await;
    runtime.kill(&spec.id).await.unwrap();
    exit_of(&runtime, &spec.id).await;
    let log = ground.log("c");
    assert!(entries(&log).iter().all(|line| *line == "stdout F a line of some length"), "{log}");
    runtime.remove(&spec.id).await.unwrap();
    nix::mount::umount(&logs).unwrap();
    ground.assert_nothing_left(&runtime).await;
}
