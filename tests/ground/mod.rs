//! Folders, a cgroup and names of one test of the runtime; nothing of it is left, also when it fails.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Once,
    time::{Duration, Instant},
};

use sampan::runtime::{ContainerSpec, ContainerState, Exit, Options, Runtime, SandboxSpec, ShimRuntime};
use tokio::io::AsyncReadExt;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Folders and a cgroup root of one test.
pub struct Ground {
    dir: PathBuf,
    pub cgroup: String,
    /// Whose it is, and who takes it away; not that of a process that only works there.
    owned: Option<tempfile::TempDir>,
}

impl Ground {
    pub fn new(name: &str) -> Self {
        static ONCE: Once = Once::new();
        // Tests start the real binary as their shims.
        ONCE.call_once(|| assert!(Path::new(env!("CARGO_BIN_EXE_sampan")).exists()));
        let dir = tempfile::Builder::new().prefix(&format!("sampan-{name}-")).tempdir().unwrap();
        let cgroup = format!("/sampan-test-{name}-{}", std::process::id());
        let rootfs = dir.path().join("layer/bin");
        fs::create_dir_all(&rootfs).unwrap();
        fs::copy("/bin/busybox", rootfs.join("busybox")).unwrap();
        for applet in
            ["sh", "cat", "echo", "sleep", "env", "id", "tty", "stty", "hostname", "ps", "true", "dd", "ls"]
        {
            symlink("busybox", rootfs.join(applet)).unwrap();
        }
        fs::create_dir_all(dir.path().join("layer/etc")).unwrap();
        fs::write(
            dir.path().join("layer/etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n",
        )
        .unwrap();
        fs::write(dir.path().join("layer/bin/not-a-program"), [0, 1, 2]).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path().join("layer/bin/not-a-program"), mode).unwrap();
        Self { dir: dir.path().to_owned(), cgroup, owned: Some(dir) }
    }

    /// The same ground, in another process.
    pub fn shared(dir: PathBuf, cgroup: String) -> Self {
        Self { dir, cgroup, owned: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn runtime(&self) -> ShimRuntime {
        ShimRuntime::new(self.options()).unwrap()
    }

    pub fn options(&self) -> Options {
        Options {
            run_dir: self.path("run"),
            data_dir: self.path("data"),
            cgroup_root: self.cgroup.clone(),
            self_exe: env!("CARGO_BIN_EXE_sampan").into(),
        }
    }

    pub fn sandbox() -> SandboxSpec {
        SandboxSpec {
            id: "pod".into(),
            hostname: "web-0".into(),
            cgroup: "podpod".into(),
            ..SandboxSpec::default()
        }
    }

    pub fn container(&self, name: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: format!("pod_{name}_0"),
            sandbox: "pod".into(),
            layers: vec![self.path("layer")],
            args: args.iter().map(ToString::to_string).collect(),
            capabilities: vec!["CAP_CHOWN".into(), "CAP_KILL".into(), "CAP_SETUID".into()],
            log_path: self.path(&format!("logs/{name}.log")),
            log_bytes_max: 1 << 20,
            log_files_max: 3,
            ..ContainerSpec::default()
        }
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("logs/{name}.log"))).unwrap_or_default()
    }

    /// The cgroup folders of this test, in every hierarchy.
    pub fn groups(&self) -> Vec<PathBuf> {
        let mut found = vec![PathBuf::from("/sys/fs/cgroup").join(&self.cgroup[1..])];
        for entry in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            found.push(entry.path().join(&self.cgroup[1..]));
        }
        found.retain(|path| path.exists());
        found
    }

    pub fn mounts(&self) -> Vec<String> {
        let here = self.dir.to_string_lossy().into_owned();
        let all = fs::read_to_string("/proc/self/mounts").unwrap();
        all.lines().filter(|line| line.contains(&here)).map(ToOwned::to_owned).collect()
    }

    /// Processes whose command line names this test's folder.
    pub fn processes(&self) -> Vec<String> {
        let here = self.dir.to_string_lossy().into_owned();
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| {
            let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            line.contains(&here)
                .then(|| format!("{}: {}", entry.file_name().display(), line.replace('\0', " ")))
        })
        .collect()
    }

    pub async fn assert_nothing_left(&self, runtime: &ShimRuntime) {
        for (spec, _) in runtime.containers().await.unwrap() {
            runtime.kill(&spec.id).await.unwrap();
            exit_of(runtime, &spec.id).await;
            runtime.remove(&spec.id).await.unwrap();
        }
        for sandbox in runtime.sandboxes().await.unwrap() {
            runtime.remove_sandbox(&sandbox.id).await.unwrap();
        }
        assert_eq!(self.mounts(), Vec::<String>::new());
        eventually("processes are gone", || self.processes().is_empty()).await;
        for folder in ["run/containers", "run/sandboxes", "run/ns", "data/containers"] {
            let left: Vec<_> =
                fs::read_dir(self.path(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
            let inside: Vec<_> =
                left.iter().flat_map(|path| fs::read_dir(path).into_iter().flatten()).collect();
            assert!(left.is_empty(), "{left:?} {inside:?}");
        }
        for group in self.groups() {
            let inside = fs::read_dir(&group).unwrap().flatten().filter(|e| e.file_type().unwrap().is_dir());
            assert_eq!(inside.count(), 0, "{} is not empty", group.display());
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        fn clear(group: &Path) {
            for entry in fs::read_dir(group).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    clear(&entry.path());
                }
            }
            for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid.parse().unwrap()),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            for _ in 0..100 {
                if fs::remove_dir(group).is_ok() || !group.exists() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        for line in self.processes() {
            let pid = line.split(':').next().unwrap().parse().unwrap();
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for group in self.groups() {
            clear(&group);
        }
        for line in self.mounts().iter().rev() {
            let target = line.split(' ').nth(1).unwrap();
            let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits, by the runtime's own changes, for the end of a container.
pub async fn exit_of(runtime: &ShimRuntime, id: &str) -> Exit {
    let wait = async {
        let mut changes = runtime.watch();
        loop {
            if let ContainerState::Exited(exit) = runtime.state(id).await.unwrap() {
                return exit;
            }
            let _ = changes.recv().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the container ends in time")
}

pub async fn run(runtime: &ShimRuntime, spec: &ContainerSpec) -> Exit {
    runtime.ensure_sandbox(&Ground::sandbox()).await.unwrap();
    runtime.start(spec).await.unwrap();
    exit_of(runtime, &spec.id).await
}

/// The text of a log's lines, with stream and tag: `stdout F hi`.
pub fn entries(log: &str) -> Vec<&str> {
    log.lines().filter_map(|line| line.split_once(' ')).map(|(_, entry)| entry).collect()
}

pub async fn text(stream: &mut Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>) -> String {
    let mut bytes = Vec::new();
    let mut stream = stream.take().unwrap();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}
