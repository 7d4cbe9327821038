//! The OCI runtime specification of a container, from its [`Record`]. Pure.
//!
//! In: the record and what was found out about the machine. Out: a [`Spec`] for libcontainer.
//! Invariants: what Kubernetes' defaults with containerd give; cgroups of version 1 are never
//! writable; limits, devices' rules and seccomp are not in here (the shim and the executor apply them).

use std::path::{Path, PathBuf};

use oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType,
        LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, PosixRlimitBuilder,
        PosixRlimitType, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    },
};

use super::{
    ContainerSpec, Propagation, Seccomp, mounts,
    process::{self, DEFAULT_PATH},
    state::Record,
};

/// What containers do not see of `/proc` and `/sys` (containerd's defaults).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Controllers of version 1 that programs look at to learn their limits.
pub const V1_SHOWN: [&str; 5] = ["memory", "cpu", "cpuacct", "cpuset", "pids"];

/// A device node of the host that the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub path: PathBuf,
    pub block: bool,
    pub major: u64,
    pub minor: u64,
    /// Permission bits, owner and group.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// `rwm`.
    pub access: String,
}

/// What was found out about the machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub cgroup_v2: bool,
    /// The lowest score that may be given out: of a shim that may not lower its own.
    pub oom_score_min: Option<i32>,
    /// Files that a process may have open.
    pub open_files_max: u64,
    /// The container's groups of version 1 that it is shown, by controller.
    pub groups: Vec<(String, PathBuf)>,
    /// Resolved from the spec, or all of the host's for a privileged container.
    pub devices: Vec<Device>,
    /// The folders that stand for the spec's mounts, one each, with their propagation set.
    pub staged: Vec<PathBuf>,
}

/// The environment of the container: TERM, HOSTNAME, then the spec's; PATH when nobody set it.
pub fn environment(record: &Record, tty: bool) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::new();
    if tty {
        env.push(("TERM".into(), "xterm".into()));
    }
    if !record.sandbox.hostname.is_empty() {
        env.push(("HOSTNAME".into(), record.sandbox.hostname.clone()));
    }
    for (name, value) in &record.spec.env {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The capabilities that the container ends up with.
pub fn capabilities(record: &Record) -> u64 {
    let all = process::all_capabilities();
    if record.spec.privileged { all } else { process::capability_bits(&record.spec.capabilities) & all }
}

/// The working folder, `/` when none is given.
pub fn cwd(record: &Record) -> &Path {
    if record.spec.cwd.is_empty() { Path::new("/") } else { Path::new(&record.spec.cwd) }
}

/// The main group and the others, as `setgroups` wants them.
pub fn groups(spec: &ContainerSpec) -> Vec<u32> {
    let mut groups = vec![spec.gid];
    for group in &spec.additional_gids {
        if !groups.contains(group) {
            groups.push(*group);
        }
    }
    groups
}

/// Builds the specification; `bits` are the container's capabilities.
pub fn spec(record: &Record, machine: &Machine, rootfs: &Path, bits: u64) -> Result<Spec, OciSpecError> {
    let c = &record.spec;
    // A seccomp filter without no_new_privileges needs these two until it is loaded.
    let until_exec = if c.seccomp != Seccomp::Unconfined && !c.privileged && !c.no_new_privileges {
        bits | process::CAP_SYS_ADMIN | process::CAP_SETPCAP
    } else {
        bits | process::CAP_SETPCAP
    };
    let set: std::collections::HashSet<Capability> = process::capability_names(until_exec)
        .filter_map(|name| name.trim_start_matches("CAP_").parse().ok())
        .collect();
    let mut process = ProcessBuilder::default()
        .args(c.args.clone())
        .env(environment(record, c.tty))
        .cwd(cwd(record))
        .terminal(c.tty)
        .no_new_privileges(c.no_new_privileges)
        .user(
            UserBuilder::default()
                .uid(c.uid)
                .gid(c.gid)
                .umask(0o022u32)
                .additional_gids(groups(c))
                .build()?,
        )
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(set.clone())
                .effective(set.clone())
                .permitted(set)
                .inheritable(std::collections::HashSet::new())
                .ambient(std::collections::HashSet::new())
                .build()?,
        )
        .rlimits(vec![
            PosixRlimitBuilder::default()
                .typ(PosixRlimitType::RlimitNofile)
                .soft(machine.open_files_max)
                .hard(machine.open_files_max)
                .build()?,
        ])
        .oom_score_adj(machine.oom_score_min.map_or(c.oom_score_adj, |min| c.oom_score_adj.max(min)));
    if let Some(profile) = &c.apparmor_profile {
        process = process.apparmor_profile(profile.clone());
    }
    let masked = !c.privileged && !c.unmasked_proc;
    let mut read_only: Vec<String> =
        if masked { READ_ONLY.iter().map(ToString::to_string).collect() } else { Vec::new() };
    if !machine.cgroup_v2 {
        // The folder that holds the controllers; they are read-only by themselves.
        read_only.push("/sys/fs/cgroup".into());
    }
    let bidirectional = c.mounts.iter().any(|mount| mount.propagation == Propagation::Bidirectional);
    let mut linux = LinuxBuilder::default()
        .cgroups_path(PathBuf::from(&record.cgroup))
        .namespaces(namespaces(record, machine)?)
        .devices(machine.devices.iter().map(device).collect::<Result<Vec<_>, _>>()?)
        .masked_paths(if masked { MASKED.iter().map(ToString::to_string).collect() } else { Vec::new() })
        .readonly_paths(read_only);
    if bidirectional {
        linux = linux.rootfs_propagation("shared".to_owned());
    }
    let mut linux = linux.build()?;
    // The shim has limited it.
    linux.set_resources(None);
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(rootfs).readonly(c.read_only_root).build()?)
        .process(process.build()?)
        .mounts(all_mounts(record, machine)?)
        .linux(linux)
        .build()
        .map(|mut spec| {
            // The hostname is the sandbox's; the builder's default is somebody else's.
            spec.set_hostname(None);
            spec
        })
}

fn namespaces(record: &Record, machine: &Machine) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let sandbox = &record.sandbox;
    let pinned = |name: &str| Some(record.namespaces.join(name));
    let mut wanted = vec![(LinuxNamespaceType::Mount, None)];
    if !sandbox.host_network {
        wanted.push((LinuxNamespaceType::Network, pinned("net")));
        wanted.push((LinuxNamespaceType::Uts, pinned("uts")));
    }
    if !sandbox.host_ipc {
        wanted.push((LinuxNamespaceType::Ipc, pinned("ipc")));
    }
    if let (Some(other), false, false) = (&record.pid_namespace, sandbox.share_pid, sandbox.host_pid) {
        wanted.push((LinuxNamespaceType::Pid, Some(other.clone())));
    } else if sandbox.share_pid && !sandbox.host_pid {
        wanted.push((LinuxNamespaceType::Pid, pinned("pid")));
    } else if !sandbox.host_pid {
        wanted.push((LinuxNamespaceType::Pid, None));
    }
    if machine.cgroup_v2 && !record.spec.privileged {
        wanted.push((LinuxNamespaceType::Cgroup, None));
    }
    let build = |(typ, path): (LinuxNamespaceType, Option<PathBuf>)| {
        let builder = LinuxNamespaceBuilder::default().typ(typ);
        match path {
            Some(path) => builder.path(path).build(),
            None => builder.build(),
        }
    };
    wanted.into_iter().map(build).collect()
}

fn all_mounts(record: &Record, machine: &Machine) -> Result<Vec<Mount>, OciSpecError> {
    let c = &record.spec;
    let mount = |target: &str, typ: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(target)
            .typ(typ)
            .source(source)
            .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
            .build()
    };
    let sys_access = if c.privileged { "rw" } else { "ro" };
    let mut out = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_access])?,
    ];
    if machine.cgroup_v2 {
        let options = ["nosuid", "noexec", "nodev", "relatime", sys_access];
        out.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options)?);
    } else {
        let options = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"];
        out.push(mount("/sys/fs/cgroup", "tmpfs", "tmpfs", &options)?);
        for (name, group) in &machine.groups {
            let target = format!("/sys/fs/cgroup/{name}");
            out.push(mount(
                &target,
                "bind",
                &group.to_string_lossy(),
                &["bind", "ro", "nosuid", "noexec", "nodev"],
            )?);
        }
    }
    let shm = mounts::shared_memory(record).to_string_lossy().into_owned();
    if !c.mounts.iter().any(|m| m.target == Path::new("/dev/shm")) {
        out.push(mount("/dev/shm", "bind", &shm, &["rbind", "nosuid", "noexec", "nodev"])?);
    }
    // A parent before what is mounted inside it, whatever the order of the manifest.
    let mut own: Vec<_> = c.mounts.iter().zip(&machine.staged).collect();
    own.sort_by_key(|(mount, _)| mount.target.components().count());
    for (wanted, staged) in own {
        let access = match (wanted.read_only, wanted.recursive_read_only) {
            (_, true) => "rro",
            (true, false) => "ro",
            (false, false) => "rw",
        };
        out.push(mount(
            &wanted.target.to_string_lossy(),
            "bind",
            &staged.to_string_lossy(),
            &["rbind", access],
        )?);
    }
    Ok(out)
}

fn device(d: &Device) -> Result<LinuxDevice, OciSpecError> {
    LinuxDeviceBuilder::default()
        .path(d.path.clone())
        .typ(if d.block { LinuxDeviceType::B } else { LinuxDeviceType::C })
        .major(d.major as i64)
        .minor(d.minor as i64)
        .file_mode(d.mode)
        .uid(d.uid)
        .gid(d.gid)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{self, ContainerSpec, SandboxSpec};

    fn record() -> Record {
        Record {
            spec: ContainerSpec {
                id: "u_c_0".into(),
                args: vec!["sh".into()],
                env: vec![("A".into(), "1".into()), ("HOSTNAME".into(), "mine".into())],
                uid: 1000,
                gid: 1000,
                additional_gids: vec![2000],
                capabilities: vec!["CAP_CHOWN".into()],
                ..ContainerSpec::default()
            },
            sandbox: SandboxSpec { id: "u".into(), hostname: "pod".into(), ..SandboxSpec::default() },
            cgroup: "/sampan/podu/u_c_0".into(),
            namespaces: "/run/ns/u".into(),
            ..Record::default()
        }
    }

    fn built(record: &Record, machine: &Machine) -> Spec {
        spec(record, machine, Path::new("/rootfs"), capabilities(record)).unwrap()
    }

    fn kinds(spec: &Spec) -> Vec<(String, Option<String>)> {
        let linux = spec.linux().as_ref().unwrap();
        let show = |ns: &LinuxNamespace| {
            (ns.typ().to_string(), ns.path().as_ref().map(|path| path.display().to_string()))
        };
        linux.namespaces().as_ref().unwrap().iter().map(show).collect()
    }

    fn target<'a>(spec: &'a Spec, path: &str) -> Option<&'a Mount> {
        spec.mounts().as_ref().unwrap().iter().find(|m| m.destination() == Path::new(path))
    }

    #[test]
    fn the_environment_has_defaults_that_the_spec_overrides() {
        let mut record = record();
        assert_eq!(
            environment(&record, true),
            ["TERM=xterm", "HOSTNAME=mine", "A=1", &format!("PATH={DEFAULT_PATH}")]
        );
        record.spec.env = vec![("PATH".into(), "/x".into())];
        assert_eq!(environment(&record, false), ["HOSTNAME=pod", "PATH=/x"]);
    }

    #[test]
    fn namespaces_are_the_sandboxes() {
        let mut record = record();
        let pinned = |name: &str| Some(format!("/run/ns/u/{name}"));
        let machine = Machine::default();
        assert_eq!(
            kinds(&built(&record, &machine)),
            [
                ("mnt".to_owned(), None),
                ("net".to_owned(), pinned("net")),
                ("uts".to_owned(), pinned("uts")),
                ("ipc".to_owned(), pinned("ipc")),
                ("pid".to_owned(), None),
            ]
        );
        record.sandbox =
            SandboxSpec { host_network: true, host_ipc: true, share_pid: true, ..SandboxSpec::default() };
        let machine = Machine { cgroup_v2: true, ..Machine::default() };
        assert_eq!(
            kinds(&built(&record, &machine)),
            [("mnt".to_owned(), None), ("pid".to_owned(), pinned("pid")), ("cgroup".to_owned(), None)]
        );
    }

    #[test]
    fn groups_start_with_the_main_one() {
        assert_eq!(groups(&record().spec), [1000, 2000]);
    }

    #[test]
    fn seccomp_without_no_new_privileges_borrows_capabilities() {
        let mut record = record();
        let count = |record: &Record| {
            let spec = built(record, &Machine::default());
            let caps = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
            caps.permitted().as_ref().unwrap().len()
        };
        assert_eq!(count(&record), 2);
        record.spec.seccomp = Seccomp::RuntimeDefault;
        assert_eq!(count(&record), 3);
        record.spec.no_new_privileges = true;
        assert_eq!(count(&record), 2);
    }

    #[test]
    fn version_1_groups_are_bound_read_only() {
        let machine = Machine { groups: vec![("memory".into(), "/c/m/g0".into())], ..Machine::default() };
        let mut record = record();
        record.spec.privileged = true;
        let spec = built(&record, &machine);
        let memory = target(&spec, "/sys/fs/cgroup/memory").unwrap();
        assert_eq!(memory.source().as_deref(), Some(Path::new("/c/m/g0")));
        assert!(memory.options().as_ref().unwrap().contains(&"ro".to_owned()));
        assert!(
            spec.linux()
                .as_ref()
                .unwrap()
                .readonly_paths()
                .as_ref()
                .unwrap()
                .contains(&"/sys/fs/cgroup".into())
        );
    }

    #[test]
    fn mounts_come_parents_first_from_their_stage() {
        let mut record = record();
        let volume = |target: &str, read_only| runtime::Mount {
            target: target.into(),
            read_only,
            ..runtime::Mount::default()
        };
        record.spec.mounts = vec![volume("/data/inner", true), volume("/data", false)];
        let machine = Machine { staged: vec!["/s/0".into(), "/s/1".into()], ..Machine::default() };
        let spec = built(&record, &machine);
        let last: Vec<_> = spec.mounts().as_ref().unwrap().iter().rev().take(2).rev().collect();
        assert_eq!(last[0].source().as_deref(), Some(Path::new("/s/1")));
        assert_eq!(last[1].options().as_ref().unwrap(), &["rbind", "ro"]);
    }

    #[test]
    fn privileged_sees_all() {
        let mut record = record();
        record.spec.privileged = true;
        let spec = built(&record, &Machine::default());
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.masked_paths().as_ref().unwrap().is_empty());
        assert_eq!(capabilities(&record), process::all_capabilities());
    }
}
