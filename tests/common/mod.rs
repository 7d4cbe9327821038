//! A cluster for tests: real daemons, each in a network namespace, a folder and a cgroup of its
//! own, all of which are gone when the value is dropped, also after a failed test.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod several;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// How long a test waits for a state before it fails.
pub const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

pub const SAMPAN: &str = env!("CARGO_BIN_EXE_sampan");

/// The binary of a daemon: of another release, when `SAMPAN_TEST_AGENT` or `SAMPAN_TEST_SERVER` names one.
fn daemon(mode: &str) -> String {
    let variable = format!("SAMPAN_TEST_{}", mode.to_ascii_uppercase());
    std::env::var(variable).unwrap_or_else(|_| SAMPAN.to_owned())
}

/// Waits until `probe` gives something; panics with `what` and the last word of `why` otherwise.
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    wait_at_most(PATIENCE, what, probe)
}

/// As [`wait_for`], for what takes longer.
pub fn wait_at_most<T>(patience: Duration, what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > patience => panic!("waited in vain for {what}: {why}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Runs a command to its end; its output with it.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a command that has to succeed; its standard output.
pub fn must(command: &mut Command) -> String {
    let out = output(command);
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn ip(args: &[&str]) {
    must(Command::new("ip").args(args));
}

/// A network namespace with loopback up and one address of its own.
pub struct Namespace {
    pub name: String,
    /// What else its commands have to themselves: flags of unshare(1), and the shell's words that set it up.
    /// Every command has it anew: a daemon that is started again finds nothing that it has mounted before.
    own: Option<[String; 2]>,
}

impl Namespace {
    /// `address` is put on a link, `192.0.2.10/24`-like.
    pub fn new(name: &str, address: &str) -> Self {
        ip(&["netns", "add", name]);
        let space = Self { name: name.to_owned(), own: None };
        ip(&["-n", name, "link", "set", "lo", "up"]);
        ip(&["-n", name, "link", "add", "lan0", "type", "bridge"]);
        ip(&["-n", name, "addr", "add", address, "dev", "lan0"]);
        ip(&["-n", name, "link", "set", "lan0", "up"]);
        space
    }

    /// A namespace joined to a switch by a veth pair.
    pub fn on_switch(name: &str, switch: &Switch, address: &str) -> Self {
        ip(&["netns", "add", name]);
        let space = Self { name: name.to_owned(), own: None };
        ip(&["-n", name, "link", "set", "lo", "up"]);
        let port = format!("p{}", address.replace(['.', '/'], ""));
        let port = &port[port.len().saturating_sub(14)..];
        ip(&[
            "-n",
            name,
            "link",
            "add",
            "lan0",
            "type",
            "veth",
            "peer",
            "name",
            port,
            "netns",
            &switch.0.name,
        ]);
        ip(&["-n", &switch.0.name, "link", "set", port, "master", "sw0", "up"]);
        ip(&["-n", name, "addr", "add", address, "dev", "lan0"]);
        ip(&["-n", name, "link", "set", "lan0", "up"]);
        space
    }

    /// A command that runs inside. `nsenter` and not `ip netns exec`, which hides the cgroup mounts.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name));
        if let Some([flags, script]) = &self.own {
            command.arg("unshare").args(flags.split(' '));
            command.args(["sh", "-c", &format!("{script} && exec \"$0\" \"$@\"")]);
        }
        command.arg(program.as_ref());
        command
    }

    /// Gives commands from now on a file of their own in place of the machine's.
    pub fn set_file(&mut self, path: &str, own: &Path) {
        self.set_own("--mount --propagation slave", &format!("mount --bind {} {path}", own.display()));
    }

    /// Gives commands from now on something to themselves.
    pub fn set_own(&mut self, flags: &str, script: &str) {
        self.own = Some([flags.to_owned(), script.to_owned()]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A bridge in a namespace of its own.
pub struct Switch(pub Namespace);

impl Switch {
    pub fn new(name: &str) -> Self {
        ip(&["netns", "add", name]);
        let space = Namespace { name: name.to_owned(), own: None };
        ip(&["-n", name, "link", "add", "sw0", "type", "bridge"]);
        ip(&["-n", name, "link", "set", "sw0", "up"]);
        Self(space)
    }
}

/// A name no other test of this machine uses.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A process that ends with the value.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon (server or agent) with everything that belongs to it.
pub struct Node {
    pub name: String,
    pub dir: tempfile::TempDir,
    pub space: Namespace,
    args: Vec<String>,
    env: Vec<(String, String)>,
    child: Option<Child>,
}

impl Node {
    /// `mode` is `server` or `agent`; `args` come after the directories.
    pub fn start(mode: &str, name: &str, space: Namespace, args: &[&str]) -> Self {
        Self::start_with(mode, name, space, args, &[])
    }

    /// The same with environment variables.
    pub fn start_with(mode: &str, name: &str, space: Namespace, args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::make(mode, name, space, args, env, |_| ())
    }

    /// The same in a folder that `prepare` has seen before the daemon starts.
    pub fn start_on(
        mode: &str,
        name: &str,
        space: Namespace,
        args: &[&str],
        prepare: impl FnOnce(&Path),
    ) -> Self {
        Self::make(mode, name, space, args, &[], prepare)
    }

    fn make(
        mode: &str,
        name: &str,
        space: Namespace,
        args: &[&str],
        env: &[(&str, &str)],
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("sampan-test-").tempdir().unwrap();
        let path = |part: &str| dir.path().join(part).display().to_string();
        let mut all = vec![mode.to_owned()];
        for (flag, value) in [
            ("--data-dir", path("data")),
            ("--run-dir", path("run")),
            ("--log-dir", path("log")),
            ("--cgroup-root", format!("/sampan-{name}")),
            ("--node-name", name.to_owned()),
        ] {
            all.extend([flag.to_owned(), value]);
        }
        all.extend(args.iter().map(ToString::to_string));
        let mut node = Self { name: name.to_owned(), dir, space, args: all, env: Vec::new(), child: None };
        node.env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        prepare(node.dir.path());
        node.spawn();
        node
    }

    /// A variable of the daemon's environment, from its next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Whether the daemon has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// From its next start on the daemon is not told its name.
    pub fn forget_name(&mut self) {
        if let Some(at) = self.args.iter().position(|arg| arg == "--node-name") {
            self.args.drain(at..at + 2);
        }
    }

    /// Flags for the next start.
    pub fn add_args(&mut self, args: &[String]) {
        self.args.extend(args.iter().cloned());
    }

    /// Starts the daemon again after [`Node::kill`] or [`Node::stop`].
    pub fn spawn(&mut self) {
        let log =
            fs::File::options().create(true).append(true).open(self.dir.path().join("daemon.log")).unwrap();
        let child = self
            .space
            .command(daemon(&self.args[0]))
            .args(&self.args)
            .env("RUST_BACKTRACE", "1")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// SIGKILL: as a crash.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As when the power goes: every process is gone, and all that a tmpfs holds. Start it again with
    /// [`Node::spawn`].
    pub fn power_off(&mut self) {
        self.kill();
        let root = format!("sampan-{}", self.name);
        kill_cgroups(&root);
        unmount_below(self.dir.path());
        remove_cgroups(&root);
        let _ = fs::remove_dir_all(self.dir.path().join("run"));
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let start = Instant::now();
            while child.try_wait().ok().flatten().is_none() {
                if start.elapsed() > Duration::from_mins(1) {
                    let _ = child.kill();
                }
                std::thread::sleep(POLL);
            }
        }
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("data/kubeconfig")
    }

    /// The machine's kubectl against this server.
    pub fn kubectl(&self) -> Command {
        let mut command = self.space.command("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).env("HOME", self.dir.path());
        command
    }

    /// The command that imports an archive of images through the running daemon.
    pub fn import(&self, archive: &Path) -> Command {
        let mut command = self.space.command(SAMPAN);
        command.args(["image", "import", "--run-dir"]).arg(self.dir.path().join("run")).arg(archive);
        command
    }

    /// Runs kubectl, which has to succeed.
    pub fn k(&self, args: &[&str]) -> String {
        let out = output(self.kubectl().args(args));
        assert!(
            out.status.success(),
            "kubectl {args:?}: {}\n--- daemon log ---\n{}",
            String::from_utf8_lossy(&out.stderr),
            tail(&self.log(), 60)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Applies a manifest given as text.
    pub fn apply(&self, manifest: &str) -> String {
        let file = self.dir.path().join(unique("manifest"));
        fs::write(&file, manifest).unwrap();
        self.k(&["apply", "-f", &file.display().to_string()])
    }

    /// As [`Node::apply`], with what kubectl says beside it: warnings.
    pub fn apply_said(&self, manifest: &str) -> String {
        let file = self.dir.path().join(unique("manifest"));
        fs::write(&file, manifest).unwrap();
        let out = output(self.kubectl().args(["apply", "-f", &file.display().to_string()]));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        said
    }

    /// Waits until kubectl's output satisfies `wanted`.
    pub fn wait_output(&self, args: &[&str], what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let out = output(self.kubectl().args(args));
            last = String::from_utf8_lossy(&out.stdout).into_owned();
            if out.status.success() && wanted(&last) {
                return last;
            }
            std::thread::sleep(POLL * 2);
        }
        panic!(
            "kubectl {args:?}: waited in vain for {what}; last:\n{last}\n--- pods ---\n{}\n--- events ---\n{}\n--- daemon log ---\n{}",
            String::from_utf8_lossy(&output(self.kubectl().args(["get", "pods", "-A", "-o", "wide"])).stdout),
            String::from_utf8_lossy(&output(self.kubectl().args(["get", "events", "-A"])).stdout),
            tail(&self.log(), 60)
        )
    }

    /// Waits until the API answers and the node is Ready.
    pub fn wait_ready(&self) {
        wait_for("the kubeconfig", || {
            self.kubeconfig().exists().then_some(()).ok_or_else(|| tail(&self.log(), 20))
        });
        self.wait_output(&["get", "node", &self.name], "the node to be Ready", |text| {
            text.contains(" Ready")
        });
    }
}

/// A server alone in a namespace of its own, ready.
pub fn board(test: &str) -> Node {
    let name = unique(test);
    let space = Namespace::new(&name, "192.0.2.10/24");
    let node = Node::start("server", &name, space, &[]);
    node.wait_ready();
    node
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let root = format!("sampan-{}", self.name);
        kill_cgroups(&root);
        unmount_below(self.dir.path());
        remove_cgroups(&root);
    }
}

fn cgroup_trees(root: &str) -> Vec<PathBuf> {
    let mut trees: Vec<_> = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
        .map(|controller| controller.path().join(root))
        .collect();
    trees.push(Path::new("/sys/fs/cgroup").join(root));
    trees.retain(|tree| tree.is_dir());
    trees
}

fn folders_deepest_first(tree: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(tree).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(folders_deepest_first(&entry.path()));
        }
    }
    found.push(tree.to_owned());
    found
}

fn kill_cgroups(root: &str) {
    for _ in 0..40 {
        let mut any = false;
        for tree in cgroup_trees(root) {
            for folder in folders_deepest_first(&tree) {
                let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                for pid in procs.lines() {
                    any = true;
                    let _ = Command::new("kill").args(["-KILL", pid]).stderr(Stdio::null()).status();
                }
            }
        }
        if !any {
            return;
        }
        std::thread::sleep(POLL);
    }
}

fn remove_cgroups(root: &str) {
    for tree in cgroup_trees(root) {
        for folder in folders_deepest_first(&tree) {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The mount points below a folder, the deepest first.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|target| Path::new(target).starts_with(dir))
        .map(str::to_owned)
        .collect();
    found.reverse();
    found
}

fn unmount_below(dir: &Path) {
    for target in mounts_below(dir) {
        let _ = Command::new("umount").args(["-l", &target]).stderr(Stdio::null()).status();
    }
}

/// Processes whose command line names the folder.
pub fn processes_of(dir: &Path) -> Vec<String> {
    let needle = dir.display().to_string();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.contains(&needle))
        .collect()
}
