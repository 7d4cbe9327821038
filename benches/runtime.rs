//! How long a container takes to start and to end, beside crun on the same bundle, in turn.
//!
//! Needs root and `/bin/busybox`; prints medians in milliseconds, what the fastest tenth stays below, and
//! the median of the pairs' ratios, since what runs one after the other meets the same load:
//! `cargo test --bench runtime` (development build) or `cargo bench --bench runtime` (release).

use std::{
    fs, iter,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use sampan::runtime::{
    ContainerSpec, ContainerState, ExecSpec, Options, Runtime, SandboxSpec, Seccomp, ShimRuntime,
};

/// Of each kind.
const ROUNDS_DEFAULT: usize = 40;

/// The median and the first decile in milliseconds.
fn middle_and_best(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort();
    [times.len() / 2, times.len() / 10].map(|n| times[n].as_secs_f64() * 1000.0)
}

/// The lower quartile, the median and the upper quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|n| values[values.len() * n / 4])
}

/// How much longer the first takes, pair by pair.
fn ratios(ours: &[Duration], theirs: &[Duration]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours.as_secs_f64() / theirs.as_secs_f64()).collect()
}

async fn exit_of(runtime: &ShimRuntime, id: &str) {
    let mut changes = runtime.watch();
    while !matches!(runtime.state(id).await, Ok(ContainerState::Exited(_))) {
        let _ = changes.recv().await;
    }
}

/// The calls that RuntimeDefault allows whatever the capabilities, as an OCI profile.
fn default_profile() -> serde_json::Value {
    let source = include_str!("../src/runtime/seccomp/profile.rs");
    let names = source.split("pub const ALWAYS: &str = \"").nth(1).unwrap().split('"').next().unwrap();
    serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": names.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW"}],
    })
}

/// The bundle that the shim made, for crun: the root file system is the bare layer.
fn crun_bundle(dir: &Path, made: &Path, seccomp: bool) -> PathBuf {
    // Paths are as the shim sees them.
    let namespaces = format!("\"{}/", dir.join("run/ns/pod").display());
    let text = fs::read_to_string(made).unwrap().replace("\"/n/", &namespaces);
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["root"]["path"] = dir.join("layer").to_string_lossy().into();
    config["process"]["args"] = ["/bin/true"].as_slice().into();
    config["linux"]["cgroupsPath"] = format!("/sampan-bench-{}/crun", std::process::id()).into();
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/sys/fs/cgroup"));
    if seccomp && cfg!(target_arch = "x86_64") {
        config["linux"]["seccomp"] = default_profile();
    }
    let bundle = dir.join(format!("bundle-{seccomp}"));
    fs::create_dir_all(&bundle).unwrap();
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    bundle
}

/// Runs the bundle to its end.
fn run_crun(bundle: &Path, name: &str) -> bool {
    let id = format!("sampan-bench-{name}-{}", std::process::id());
    let output =
        Command::new("crun").args(["--cgroup-manager=cgroupfs", "run", "-b"]).arg(bundle).arg(id).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("crun: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(_) => false,
    }
}

/// Makes shims keep the bundles that they have made.
const KEEP_BUNDLE: &str = "SAMPAN_TEST_KEEP_BUNDLE";

fn main() {
    if std::env::var_os(KEEP_BUNDLE).is_none() {
        let status = Command::new(std::env::current_exe().unwrap()).env(KEEP_BUNDLE, "1").status();
        std::process::exit(i32::from(!status.is_ok_and(|status| status.success())));
    }
    // crun does not work with a hybrid hierarchy whose second version has a controller: hidden for all.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("run as root");
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .expect("mounts are made private");
    let _ = nix::mount::umount("/sys/fs/cgroup/unified");
    // State lies in memory, as on a board.
    on_tmpfs(Path::new("/run/crun"));
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(run());
}

fn on_tmpfs(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    nix::mount::mount(Some("t"), folder, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
}

async fn run() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS_DEFAULT);
    let dir = tempfile::tempdir().unwrap();
    on_tmpfs(&dir.path().join("run"));
    let bin = dir.path().join("layer/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["true", "sleep"] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let runtime = ShimRuntime::new(Options {
        run_dir: dir.path().join("run"),
        data_dir: dir.path().join("data"),
        cgroup_root: format!("/sampan-bench-{}", std::process::id()),
        self_exe: env!("CARGO_BIN_EXE_sampan").into(),
    })
    .unwrap();
    let sandbox = SandboxSpec { id: "pod".into(), cgroup: "pod".into(), ..SandboxSpec::default() };
    let before = Instant::now();
    runtime.ensure_sandbox(&sandbox).await.unwrap();
    println!("sandbox                    {:7.2}", before.elapsed().as_secs_f64() * 1000.0);
    println!("                            median  decile");
    let spec = |id: &str, program: &str, seccomp| ContainerSpec {
        id: id.into(),
        sandbox: "pod".into(),
        layers: vec![dir.path().join("layer")],
        args: vec![format!("/bin/{program}"), "1000".into()],
        log_path: dir.path().join("log"),
        seccomp,
        ..ContainerSpec::default()
    };
    let idle = spec("idle", "sleep", Seccomp::Unconfined);
    runtime.start(&idle).await.unwrap();
    let made = dir.path().join("run/containers/idle/config.json");
    let [bundle, confined] = [false, true].map(|seccomp| crun_bundle(dir.path(), &made, seccomp));
    let with_crun = run_crun(&bundle, "first") && run_crun(&confined, "second");

    let (mut start, mut end, mut filtered, mut crun, mut crun_filtered, mut exec, mut remove) =
        (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
    for n in 0..rounds {
        for seccomp in [Seccomp::Unconfined, Seccomp::RuntimeDefault] {
            let with_filter = seccomp == Seccomp::RuntimeDefault;
            let spec = spec(&format!("c{n}-{with_filter}"), "true", seccomp);
            let before = Instant::now();
            runtime.start(&spec).await.unwrap();
            let started = before.elapsed();
            exit_of(&runtime, &spec.id).await;
            let ended = before.elapsed();
            if with_filter {
                filtered.push(ended);
            } else {
                start.push(started);
                end.push(ended);
            }
            let before = Instant::now();
            runtime.remove(&spec.id).await.unwrap();
            remove.push(before.elapsed());
        }
        if with_crun {
            let before = Instant::now();
            run_crun(&bundle, &n.to_string());
            crun.push(before.elapsed());
            let before = Instant::now();
            run_crun(&confined, &n.to_string());
            crun_filtered.push(before.elapsed());
        }
        let before = Instant::now();
        let command = ExecSpec { args: vec!["/bin/true".into()], ..ExecSpec::default() };
        runtime.exec("idle", &command).await.unwrap().exit.await.unwrap();
        exec.push(before.elapsed());
    }
    let (plain_ratios, filtered_ratios) = (ratios(&end, &crun), ratios(&filtered, &crun_filtered));
    for (name, times) in [
        ("start to running", start),
        ("start to end", end),
        ("crun run", crun),
        ("start to end, seccomp", filtered),
        ("crun run, seccomp", crun_filtered),
        ("exec to end", exec),
        ("remove", remove),
    ] {
        if !times.is_empty() {
            let [middle, best] = middle_and_best(times);
            println!("{name:26} {middle:7.2} {best:7.2}");
        }
    }
    for (name, ratios) in [("start / crun", plain_ratios), ("start / crun, seccomp", filtered_ratios)] {
        if !ratios.is_empty() {
            let [low, middle, high] = quartiles(ratios);
            println!("{name:26} {middle:7.2} (half of the pairs between {low:.2} and {high:.2})");
        }
    }
    let monitor = monitor_of(dir.path());
    println!("monitor's private memory   {} KiB, of it dirty {} KiB", monitor.0, monitor.1);
    runtime.kill("idle").await.unwrap();
    exit_of(&runtime, "idle").await;
    runtime.remove("idle").await.unwrap();
    crowd(dir.path(), &runtime, |n| spec(&format!("idle{n}"), "sleep", Seccomp::Unconfined)).await;
    runtime.remove_sandbox("pod").await.unwrap();
    let v2 = iter::once(PathBuf::from("/sys/fs/cgroup"));
    let v1 = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|hierarchy| hierarchy.path());
    for hierarchy in v2.chain(v1) {
        let root = hierarchy.join(format!("sampan-bench-{}", std::process::id()));
        // crun's parent, which it leaves, and ours.
        let _ = fs::remove_dir(root.join("crun"));
        let _ = fs::remove_dir(root);
    }
}

/// What each of many idle containers costs the group that the daemon is in: the monitor with its kernel
/// memory. The containers themselves are in groups of their own.
async fn crowd(dir: &Path, runtime: &ShimRuntime, spec: impl Fn(usize) -> ContainerSpec) {
    let hierarchy = Path::new("/sys/fs/cgroup/memory");
    if !hierarchy.join("memory.usage_in_bytes").exists() {
        println!("an idle container, all in   only read where cgroup v1 counts memory");
        return;
    }
    let group = hierarchy.join(format!("sampan-bench-{}/daemon", std::process::id()));
    fs::create_dir_all(&group).unwrap();
    let join = |group: &Path| fs::write(group.join("cgroup.procs"), std::process::id().to_string());
    join(&group).unwrap();
    let usage = || -> i64 {
        // What can be reclaimed is not needed.
        let _ = fs::write(group.join("memory.force_empty"), "0");
        fs::read_to_string(group.join("memory.usage_in_bytes")).unwrap().trim().parse().unwrap()
    };
    // The first ones warm up what all share.
    let (warm, all) = (10, 60);
    let mut before = 0;
    for n in 0..all {
        if n == warm {
            tokio::time::sleep(Duration::from_secs(11)).await;
            before = usage();
        }
        runtime.start(&spec(n)).await.unwrap();
        // Only here it is kept.
        fs::remove_file(dir.join(format!("run/containers/{}/config.json", spec(n).id))).unwrap();
    }
    // Monitors give memory back when nothing has happened for ten seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let each = (usage() - before) / (all - warm) as i64;
    println!("an idle container, all in   {} KiB", each / 1024);
    for n in 0..all {
        let id = spec(n).id;
        runtime.kill(&id).await.unwrap();
        exit_of(runtime, &id).await;
        runtime.remove(&id).await.unwrap();
    }
    join(hierarchy).unwrap();
    let _ = fs::remove_dir(&group);
}

/// Private and private dirty memory (KiB) of the one monitor that works in `dir`.
fn monitor_of(dir: &Path) -> (u64, u64) {
    let dir = dir.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with("sampan-shim\0shim") && line.contains(&dir) {
            let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap();
            let of = |key: &str| -> u64 {
                let line = rollup.lines().find(|line| line.starts_with(key)).unwrap();
                line.split_whitespace().nth(1).unwrap().parse().unwrap()
            };
            return (of("Private_Clean") + of("Private_Dirty"), of("Private_Dirty"));
        }
    }
    (0, 0)
}
