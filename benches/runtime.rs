//! How long a container takes to start and to end, beside crun on the same bundle, in turn.
//!
//! Needs root and `/bin/busybox`; prints medians in milliseconds:
//! `cargo test --bench runtime` (development build) or `cargo bench --bench runtime` (release).

use std::{
    fs,
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

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

async fn exit_of(runtime: &ShimRuntime, id: &str) {
    let mut changes = runtime.watch();
    while !matches!(runtime.state(id).await, Ok(ContainerState::Exited(_))) {
        let _ = changes.recv().await;
    }
}

/// The bundle that the shim made, for crun: the root file system is the bare layer.
fn crun_bundle(dir: &Path, made: &Path) -> PathBuf {
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(made).unwrap()).unwrap();
    config["root"]["path"] = dir.join("layer").to_string_lossy().into();
    config["process"]["args"] = ["/bin/true"].as_slice().into();
    config["linux"]["cgroupsPath"] = format!("/sampan-bench-{}/crun", std::process::id()).into();
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/sys/fs/cgroup"));
    let bundle = dir.join("bundle");
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

fn main() {
    // crun does not work with a hybrid hierarchy whose second version has a controller: hidden for all.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("run as root");
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .expect("mounts are made private");
    let _ = nix::mount::umount("/sys/fs/cgroup/unified");
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(run());
}

async fn run() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS_DEFAULT);
    let dir = tempfile::tempdir().unwrap();
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
    let bundle = crun_bundle(dir.path(), &dir.path().join("run/containers/idle/config.json"));
    let with_crun = run_crun(&bundle, "first");

    let (mut start, mut end, mut filtered, mut crun, mut exec, mut remove) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
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
        }
        let before = Instant::now();
        let command = ExecSpec { args: vec!["/bin/true".into()], ..ExecSpec::default() };
        runtime.exec("idle", &command).await.unwrap().exit.await.unwrap();
        exec.push(before.elapsed());
    }
    for (name, times) in [
        ("start to running", start),
        ("start to end", end),
        ("start to end, seccomp", filtered),
        ("crun run", crun),
        ("exec to end", exec),
        ("remove", remove),
    ] {
        if !times.is_empty() {
            println!("{name:26} {:7.2}", median(times));
        }
    }
    let monitor = monitor_of(dir.path());
    println!("monitor's private memory   {} KiB, of it dirty {} KiB", monitor.0, monitor.1);
    runtime.kill("idle").await.unwrap();
    exit_of(&runtime, "idle").await;
    runtime.remove("idle").await.unwrap();
    runtime.remove_sandbox("pod").await.unwrap();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let root = hierarchy.path().join(format!("sampan-bench-{}", std::process::id()));
        // crun's parent, which it leaves, and ours.
        let _ = fs::remove_dir(root.join("crun"));
        let _ = fs::remove_dir(root);
    }
}

/// Private and private dirty memory (KiB) of the one monitor that works in `dir`.
fn monitor_of(dir: &Path) -> (u64, u64) {
    let dir = dir.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with("sampan-shim\0monitor") && line.contains(&dir) {
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
