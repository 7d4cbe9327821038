//! Control groups, version 1 (or hybrid) and version 2, straight through their files.
//!
//! In: a path below the root of the hierarchy and [`Resources`]. Out: limits, usage, an empty group.
//! Invariants: every call may be repeated; deletion takes a whole subtree and is silent about what is
//! gone. Deliberately absent: systemd's D-Bus interface (paths are absolute), device filters.
//! Source: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

use std::{
    fs,
    io::{self, Write},
    os::{fd::IntoRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::{
    signal::{Signal, kill},
    statfs::{CGROUP2_SUPER_MAGIC, statfs},
};

use super::{Pressure, Resources, Stats};

const MOUNT: &str = "/sys/fs/cgroup";
/// Length of the period that quotas are given for (µs).
const PERIOD_US: u64 = 100_000;
/// Controllers of version 1 that containers have groups of: what is limited, counted, shown or frozen.
const V1_USED: [&str; 8] = ["memory", "cpu", "cpuacct", "cpuset", "pids", "hugetlb", "devices", "freezer"];
/// What a controller takes for "no limit" in version 1.
const UNLIMITED: i64 = -1;
const SHARES_DEFAULT: u64 = 1024;
/// How long a group may take to get empty after its processes were killed.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// What this machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// Mount points by controller name.
    V1(Vec<(String, PathBuf)>),
    V2(PathBuf),
}

/// What this process takes is charged to another group than its own. In version 2 it is a member of that
/// group, and ends with it.
pub struct Charge {
    /// The members of the group that it has left.
    before: Option<fs::File>,
}

impl Charge {
    /// Goes back to where this process was a member. What it has taken stays charged as it is.
    pub fn end(self) -> io::Result<()> {
        self.before.map_or(Ok(()), |mut members| members.write_all(b"0"))
    }
}

/// One file to write: (controller, file, value).
type Setting = (&'static str, String, String);

impl Cgroups {
    /// Looks at what is mounted.
    pub fn detect() -> io::Result<Self> {
        if statfs(MOUNT)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
            return Ok(Self::V2(MOUNT.into()));
        }
        Ok(Self::V1(v1_mounts(&fs::read_to_string("/proc/self/mounts")?)))
    }

    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }

    /// The group's folder as `controller` sees it; `None` when there is no such controller.
    pub fn folder(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let relative = path.trim_start_matches('/');
        match self {
            Self::V2(root) => Some(root.join(relative)),
            Self::V1(mounts) => {
                mounts.iter().find(|(name, _)| name == controller).map(|(_, mount)| mount.join(relative))
            }
        }
    }

    /// The group's folders, one a hierarchy.
    fn folders(&self, path: &str) -> Vec<PathBuf> {
        let relative = path.trim_start_matches('/');
        match self {
            Self::V2(root) => vec![root.join(relative)],
            Self::V1(mounts) => {
                let mut folders: Vec<_> = mounts.iter().map(|(_, mount)| mount.join(relative)).collect();
                folders.sort();
                folders.dedup();
                folders
            }
        }
    }

    /// Makes the group with its limits; what is unlimited is left as a new group has it.
    pub fn create(&self, path: &str, resources: &Resources) -> io::Result<()> {
        let relative = path.trim_start_matches('/');
        match self {
            Self::V2(root) => create_v2(root, relative)?,
            Self::V1(mounts) => {
                let mut made: Vec<&Path> = Vec::new();
                for (controller, mount) in mounts {
                    // Some are mounted together.
                    if V1_USED.contains(&controller.as_str()) && !made.contains(&mount.as_path()) {
                        create_v1(mount, relative, controller == "cpuset")?;
                        made.push(mount);
                    }
                }
            }
        }
        self.limit(path, resources)
    }

    /// Sets what is limited; the rest stays as it is.
    pub fn limit(&self, path: &str, resources: &Resources) -> io::Result<()> {
        self.write(path, self.settings(resources, false))
    }

    /// The same machine as far as containers have to do with it.
    pub fn used(&self) -> Self {
        self.only(|name| V1_USED.contains(&name))
    }

    /// The same machine as far as the end of a container has to do with it: where memory and processes
    /// are counted.
    pub fn for_ending(&self) -> Self {
        self.only(|name| matches!(name, "memory" | "freezer"))
    }

    fn only(&self, needed: impl Fn(&str) -> bool) -> Self {
        match self {
            Self::V1(mounts) => Self::V1(mounts.iter().filter(|(name, _)| needed(name)).cloned().collect()),
            v2 @ Self::V2(_) => v2.clone(),
        }
    }

    /// As one word, for another process.
    pub fn to_word(&self) -> String {
        match self {
            Self::V1(mounts) => {
                let mounts = mounts.iter().map(|(name, mount)| format!("{name}={}", mount.display()));
                mounts.collect::<Vec<_>>().join(" ")
            }
            Self::V2(root) => root.display().to_string(),
        }
    }

    /// From [`Cgroups::to_word`].
    pub fn from_word(word: &str) -> Self {
        if word.starts_with('/') {
            return Self::V2(word.into());
        }
        let mounts = word.split(' ').filter_map(|part| part.split_once('='));
        Self::V1(mounts.map(|(name, mount)| (name.to_owned(), mount.into())).collect())
    }

    /// The same through open descriptors, for this process where it cannot see the hierarchies.
    pub fn kept_open(&self) -> io::Result<Self> {
        let Self::V1(mounts) = self else { return Ok(self.clone()) };
        let open = |(name, mount): &(String, PathBuf)| {
            let folder =
                fs::File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(mount)?;
            Ok((name.clone(), format!("/proc/self/fd/{}", folder.into_raw_fd()).into()))
        };
        Ok(Self::V1(mounts.iter().map(open).collect::<io::Result<_>>()?))
    }

    /// Charges what this process takes from now on to the group, until [`Charge::end`] where that matters.
    pub fn charge(&self, path: &str) -> io::Result<Charge> {
        let before = match self {
            Self::V1(_) => None,
            Self::V2(root) => {
                let groups = fs::read_to_string("/proc/self/cgroup")?;
                let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
                Some(fs::File::options().write(true).open(root.join(own).join("cgroup.procs"))?)
            }
        };
        if let Some(folder) = self.folder("memory", path) {
            fs::write(folder.join("cgroup.procs"), std::process::id().to_string())?;
        }
        Ok(Charge { before })
    }

    /// Sets all limits of an existing group; what is `None` becomes unlimited.
    pub fn update(&self, path: &str, resources: &Resources) -> io::Result<()> {
        self.write(path, self.settings(resources, true))
    }

    /// Kills all processes of the group together when memory runs out, as Kubernetes wants it
    /// (version 2 only: version 1 cannot).
    pub fn kill_together_on_oom(&self, path: &str) {
        if let Self::V2(root) = self {
            let _ = fs::write(root.join(path.trim_start_matches('/')).join("memory.oom.group"), "1");
        }
    }

    fn settings(&self, resources: &Resources, all: bool) -> Vec<Setting> {
        if self.is_v2() { settings_v2(resources, all) } else { settings_v1(resources, all) }
    }

    fn write(&self, path: &str, settings: Vec<Setting>) -> io::Result<()> {
        let mut again = Vec::new();
        for (controller, file, value) in settings {
            let Some(folder) = self.folder(controller, path) else { continue };
            match fs::write(folder.join(&file), &value) {
                Ok(()) => {}
                // No swap accounting, no huge pages of that size: there is nothing to limit.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A limit that depends on one that is written later (memory and memory + swap).
                Err(_) => again.push((folder.join(file), value)),
            }
        }
        for (file, value) in again {
            fs::write(&file, &value).map_err(|error| {
                io::Error::new(error.kind(), format!("write {value:?} to {}: {error}", file.display()))
            })?;
        }
        Ok(())
    }

    /// Puts a process into the group, in every hierarchy that has it.
    pub fn join(&self, path: &str, pid: u32) -> io::Result<()> {
        for folder in self.folders(path) {
            match fs::write(folder.join("cgroup.procs"), pid.to_string()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Usage of the group and everything below it.
    pub fn stats(&self, path: &str) -> io::Result<Stats> {
        let file = |controller: &str, file: &str| -> io::Result<String> {
            let folder = self.folder(controller, path);
            let folder = folder.ok_or_else(|| io::Error::other(format!("no {controller} controller")))?;
            fs::read_to_string(folder.join(file))
        };
        let number = |controller: &str, name: &str| -> io::Result<u64> {
            file(controller, name)?.trim().parse().map_err(io::Error::other)
        };
        let (cpu_usage_ns, usage, inactive, rss);
        match self {
            Self::V2(_) => {
                cpu_usage_ns = keyed(&file("cpu", "cpu.stat")?, "usage_usec") * 1000;
                usage = number("memory", "memory.current")?;
                let stat = file("memory", "memory.stat")?;
                (inactive, rss) = (keyed(&stat, "inactive_file"), keyed(&stat, "anon"));
            }
            Self::V1(_) => {
                cpu_usage_ns = number("cpuacct", "cpuacct.usage").unwrap_or(0);
                usage = number("memory", "memory.usage_in_bytes")?;
                let stat = file("memory", "memory.stat")?;
                (inactive, rss) = (keyed(&stat, "total_inactive_file"), keyed(&stat, "total_rss"));
            }
        }
        Ok(Stats {
            cpu_usage_ns,
            memory_working_set_bytes: usage.saturating_sub(inactive),
            memory_usage_bytes: usage,
            memory_rss_bytes: rss,
            pids: number("pids", "pids.current").unwrap_or(0),
            oom_kills: self.oom_kills(path),
            cpu_pressure: self.pressure(path, "cpu.pressure"),
            memory_pressure: self.pressure(path, "memory.pressure"),
            io_pressure: self.pressure(path, "io.pressure"),
        })
    }

    /// How long the group's processes have waited (version 2 only).
    fn pressure(&self, path: &str, file: &str) -> Option<Pressure> {
        let Self::V2(root) = self else { return None };
        let text = fs::read_to_string(root.join(path.trim_start_matches('/')).join(file)).ok()?;
        Pressure::parse(&text)
    }

    /// How many processes of the group were killed because memory ran out.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let name = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        let text = self.folder("memory", path).and_then(|folder| fs::read_to_string(folder.join(name)).ok());
        text.map_or(0, |text| keyed(&text, "oom_kill"))
    }

    /// Kills every process in the group and below, and waits until they are gone.
    pub fn kill(&self, path: &str) -> io::Result<()> {
        let until = std::time::Instant::now() + EMPTY_WITHIN;
        loop {
            let mut found = false;
            for folder in self.folders(path) {
                found |= kill_tree(&folder, self.is_v2());
            }
            if !found {
                return Ok(());
            }
            if std::time::Instant::now() > until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("processes in {path} do not die"),
                ));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Removes the group and everything below it; it must be empty of processes.
    pub fn delete(&self, path: &str) -> io::Result<()> {
        for folder in self.folders(path) {
            delete_tree(&folder)?;
        }
        Ok(())
    }

    /// Makes moving processes between groups cheap (kernel 6.0); without it each start waits for a grace
    /// period of the kernel. One lock guards all hierarchies, those of version 1 too, and only a mount of
    /// version 2 can tell the kernel how to keep it.
    pub fn favor_dynamic_moves() {
        let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return };
        let of_version_2 = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, root, "cgroup2", options, ..] = words[..] else { return None };
            Some((root, options))
        });
        let Some((root, options)) = of_version_2 else { return };
        if options.split(',').any(|option| option == "favordynmods") {
            return;
        }
        let kept = options
            .split(',')
            .filter(|o| matches!(*o, "nsdelegate" | "memory_recursiveprot" | "memory_localevents"));
        let data: Vec<_> = kept.chain(["favordynmods"]).collect();
        let mut flags = nix::mount::MsFlags::MS_REMOUNT;
        for (name, flag) in [
            ("nosuid", nix::mount::MsFlags::MS_NOSUID),
            ("nodev", nix::mount::MsFlags::MS_NODEV),
            ("noexec", nix::mount::MsFlags::MS_NOEXEC),
        ] {
            flags.set(flag, options.split(',').any(|option| option == name));
        }
        if let Err(error) =
            nix::mount::mount(None::<&str>, root, None::<&str>, flags, Some(data.join(",").as_str()))
        {
            tracing::debug!(%error, "the cgroup file system keeps its slow moves");
        }
    }
}

/// The mount points of version 1 controllers in the text of `/proc/self/mounts`.
fn v1_mounts(mounts: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [_, mount, "cgroup", options, ..] = words[..] else { continue };
        for option in options.split(',') {
            let known = matches!(
                option,
                "cpu"
                    | "cpuacct"
                    | "cpuset"
                    | "memory"
                    | "devices"
                    | "freezer"
                    | "blkio"
                    | "pids"
                    | "hugetlb"
                    | "perf_event"
                    | "net_cls"
                    | "net_prio"
                    | "rdma"
                    | "misc"
            );
            if known {
                found.push((option.to_owned(), PathBuf::from(mount)));
            }
        }
    }
    found
}

fn settings_v1(r: &Resources, all: bool) -> Vec<Setting> {
    let mut out = Vec::new();
    let mut set = |controller, file: &str, value: Option<String>, unlimited: &dyn ToString| {
        if let Some(value) = value.or_else(|| all.then(|| unlimited.to_string())) {
            out.push((controller, file.to_owned(), value));
        }
    };
    let text = |value: Option<i64>| value.map(|value| value.to_string());
    set("memory", "memory.limit_in_bytes", text(r.memory_bytes), &UNLIMITED);
    // Memory and swap together: a container never swaps past its limit.
    set("memory", "memory.memsw.limit_in_bytes", text(r.memory_bytes), &UNLIMITED);
    set("cpu", "cpu.shares", r.cpu_shares.map(|s| s.to_string()), &SHARES_DEFAULT);
    if r.cpu_quota_us.is_some() {
        set("cpu", "cpu.cfs_period_us", Some(PERIOD_US.to_string()), &"");
    }
    set("cpu", "cpu.cfs_quota_us", text(r.cpu_quota_us), &UNLIMITED);
    set("pids", "pids.max", text(r.pids), &"max");
    for (size, bytes) in &r.hugepages {
        set("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), Some(bytes.to_string()), &"");
    }
    out
}

fn settings_v2(r: &Resources, all: bool) -> Vec<Setting> {
    let mut out = Vec::new();
    let mut set = |controller, file: &str, value: Option<String>, unlimited: &dyn ToString| {
        if let Some(value) = value.or_else(|| all.then(|| unlimited.to_string())) {
            out.push((controller, file.to_owned(), value));
        }
    };
    let text = |value: Option<i64>| value.map(|value| value.to_string());
    set("memory", "memory.max", text(r.memory_bytes), &"max");
    set("memory", "memory.swap.max", r.memory_bytes.map(|_| "0".to_owned()), &"max");
    set("cpu", "cpu.weight", r.cpu_shares.map(|s| weight_of(s).to_string()), &weight_of(SHARES_DEFAULT));
    set("cpu", "cpu.max", r.cpu_quota_us.map(|q| format!("{q} {PERIOD_US}")), &format!("max {PERIOD_US}"));
    set("pids", "pids.max", text(r.pids), &"max");
    for (size, bytes) in &r.hugepages {
        set("hugetlb", &format!("hugetlb.{size}.max"), Some(bytes.to_string()), &"");
    }
    out
}

/// Shares of version 1 (2..=262144, 1024 by default) as weight of version 2 (1..=10000, 100 by
/// default). Source: the fit that runc 1.3 and crun use, which keeps both ends and the default.
fn weight_of(shares: u64) -> u64 {
    let l = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// Makes the folders down to `relative` and hands all controllers down to the last but one.
fn create_v2(root: &Path, relative: &str) -> io::Result<()> {
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let enable = |folder: &Path| {
        for controller in controllers.split_whitespace() {
            // One that the parent does not hand down fails alone; its limit then fails by name.
            let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    };
    let mut folder = root.to_owned();
    for part in relative.split('/').filter(|part| !part.is_empty()) {
        let child = folder.join(part);
        if !child.exists() || folder == root {
            enable(&folder);
        }
        match fs::create_dir(&child) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => folder = child,
        }
    }
    Ok(())
}

/// Makes the folders down to `relative`. A group for CPUs takes nobody before it has some: its parent's.
fn create_v1(mount: &Path, relative: &str, cpuset: bool) -> io::Result<()> {
    let folder = mount.join(relative);
    let parent = relative.rsplit_once('/').map_or("", |(parent, _)| parent);
    match fs::create_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !relative.is_empty() => {
            create_v1(mount, parent, cpuset)?;
            return create_v1(mount, relative, cpuset);
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| cpuset) {
        let own = folder.join(file);
        if fs::read_to_string(&own)?.trim().is_empty() {
            fs::write(own, fs::read_to_string(mount.join(parent).join(file))?.trim())?;
        }
    }
    Ok(())
}

/// The number after `key` in a file of `key value` lines; 0 when it is not there.
fn keyed(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Kills what is in the folder's group and below it; `true` when there was something.
fn kill_tree(folder: &Path, v2: bool) -> bool {
    let mut found = false;
    if let Ok(entries) = fs::read_dir(folder) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            found |= kill_tree(&entry.path(), v2);
        }
    }
    let Ok(processes) = fs::read_to_string(folder.join("cgroup.procs")) else { return found };
    if processes.is_empty() {
        return found;
    }
    if v2 && fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return true;
    }
    // Frozen, a fork bomb cannot outrun the loop; killed, the processes die when thawed.
    let freezer = folder.join("freezer.state");
    let frozen = fs::write(&freezer, "FROZEN").is_ok();
    let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or(processes);
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
        let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    }
    if frozen {
        let _ = fs::write(&freezer, "THAWED");
    }
    true
}

fn delete_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        delete_tree(&entry.path())?;
    }
    let until = std::time::Instant::now() + EMPTY_WITHIN;
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A process that has just died is still on its way out.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && std::time::Instant::now() < until => {
                std::thread::sleep(POLL);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_and_keep_ends_and_default() {
        let weights = [2, 1024, 262_144].map(weight_of);
        assert_eq!(weights, [1, 100, 10_000]);
    }

    #[test]
    fn limits_are_written_and_the_rest_only_in_an_update() {
        let resources =
            Resources { memory_bytes: Some(1 << 20), cpu_quota_us: Some(50_000), ..Resources::default() };
        let lines = |settings: Vec<Setting>| -> Vec<String> {
            settings.iter().map(|(_, file, value)| format!("{file}={value}")).collect()
        };
        assert_eq!(
            lines(settings_v1(&resources, false)),
            [
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=1048576",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000"
            ]
        );
        assert_eq!(
            lines(settings_v2(&resources, true)),
            [
                "memory.max=1048576",
                "memory.swap.max=0",
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "pids.max=max"
            ]
        );
    }

    #[test]
    fn controllers_are_found_also_when_mounted_together() {
        let text = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                    cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                    cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n";
        let names: Vec<_> = v1_mounts(text).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["cpu", "cpuacct"]);
    }

    #[test]
    fn what_an_end_needs_goes_over_as_a_word() {
        let mount = |name: &str| (name.to_owned(), PathBuf::from("/sys/fs/cgroup").join(name));
        let v1 = Cgroups::V1(vec![mount("cpu"), mount("memory"), mount("freezer")]).for_ending();
        assert_eq!(v1.to_word(), "memory=/sys/fs/cgroup/memory freezer=/sys/fs/cgroup/freezer");
        for cgroups in [v1, Cgroups::V2("/sys/fs/cgroup".into())] {
            assert_eq!(Cgroups::from_word(&cgroups.to_word()), cgroups);
        }
    }

    #[test]
    fn pressure_is_read() {
        let text = "some avg10=1.50 avg60=0.00 avg300=2.25 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let got = Pressure::parse(text).unwrap();
        assert_eq!((got.some, got.some_us, got.full_us), ([1.5, 0.0, 2.25], 1234, 7));
        assert_eq!(Pressure::parse(""), None);
    }

    #[test]
    fn keys_are_matched_whole() {
        assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), 3);
        assert_eq!(keyed("oom 1\n", "oom_kill"), 0);
    }
}
