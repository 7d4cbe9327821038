//! Pod sandboxes: namespaces that live without a process, pinned by bind mounts.
//!
//! In: a [`SandboxSpec`]. Out: `<run_dir>/ns/<id>/{net,ipc,uts,pid}` and the shared memory. A short
//! thread makes the namespaces; only a shared pid namespace needs a process, a tiny reaper as its
//! pid 1. Invariants: every step may be repeated; half of a sandbox is made anew.

use std::{
    fs, io,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, Signal},
        statfs::{FsType, statfs},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid},
};

use super::{SandboxSpec, state, sys, wire};
use crate::crash;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// `/dev/shm` of a pod (bytes), unless a container asks for more.
pub const SHM_BYTES_DEFAULT: u64 = 64 << 20;

/// The name of the shared memory beside the namespaces.
pub const SHM: &str = "shm";

/// The names of the namespaces that a sandbox pins by a thread.
fn pinned(spec: &SandboxSpec) -> Vec<(&'static str, CloneFlags)> {
    let mut names = Vec::new();
    if !spec.host_network {
        names.push(("net", CloneFlags::CLONE_NEWNET));
        names.push(("uts", CloneFlags::CLONE_NEWUTS));
    }
    if !spec.host_ipc {
        names.push(("ipc", CloneFlags::CLONE_NEWIPC));
    }
    names
}

fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|data| data.filesystem_type() == FsType(NSFS_MAGIC as _))
}

/// Makes what is missing of the sandbox. `folder` is its own, `exe` this binary. Blocks.
pub fn ensure(spec: &SandboxSpec, folder: &Path, exe: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let names = pinned(spec);
    if !names.iter().all(|(name, _)| is_pinned(&folder.join(name))) {
        for (name, _) in &names {
            unpin(&folder.join(name))?;
        }
        let (spec, folder) = (spec.clone(), folder.to_owned());
        // Its own thread, ended after this: what it unshares must not come back to a pool.
        std::thread::Builder::new()
            .name("namespaces".into())
            .spawn(move || make(&spec, &names, &folder))?
            .join()
            .map_err(|_| io::Error::other("the thread that makes namespaces panicked"))??;
    }
    if !spec.host_ipc {
        ensure_shm(&folder.join(SHM))?;
    }
    if spec.share_pid && !spec.host_pid {
        ensure_reaper(folder, exe)?;
    }
    Ok(())
}

fn make(spec: &SandboxSpec, names: &[(&'static str, CloneFlags)], folder: &Path) -> io::Result<()> {
    let flags = names.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    if !flags.is_empty() {
        unshare(flags)?;
    }
    if flags.contains(CloneFlags::CLONE_NEWUTS) && !spec.hostname.is_empty() {
        nix::unistd::sethostname(&spec.hostname)?;
    }
    for (name, value) in &spec.sysctls {
        // A slash in a name is a dot in a part of the path: `net.ipv4.conf.eth0/1.rp_filter`.
        let swap = |c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        };
        let path = Path::new("/proc/sys").join(name.chars().map(swap).collect::<String>());
        fs::write(&path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("write sysctl {name}={value}: {error}")))?;
    }
    for (name, _) in names {
        pin(&Path::new("/proc/thread-self/ns").join(name), &folder.join(name))?;
        crash::point(crash::DAEMON);
    }
    Ok(())
}

fn pin(namespace: &Path, target: &Path) -> io::Result<()> {
    fs::write(target, "")?;
    Ok(mount(Some(namespace), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Takes every mount off the file and removes it.
fn unpin(path: &Path) -> io::Result<()> {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn ensure_shm(path: &Path) -> io::Result<()> {
    use nix::sys::statfs::TMPFS_MAGIC;
    use std::os::unix::fs::MetadataExt;
    fs::create_dir_all(path)?;
    let parent = path.parent().unwrap_or(path);
    let mounted = fs::metadata(path)?.dev() != fs::metadata(parent)?.dev()
        && statfs(path)?.filesystem_type() == TMPFS_MAGIC;
    if !mounted {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let data = format!("mode=1777,size={SHM_BYTES_DEFAULT}");
        mount(Some("shm"), path, Some("tmpfs"), flags, Some(data.as_str()))?;
    }
    Ok(())
}

/// Gives the sandbox's shared memory another size.
pub fn resize_shm(folder: &Path, bytes: u64) -> io::Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let data = format!("mode=1777,size={bytes}");
    Ok(mount(Some("shm"), &folder.join(SHM), Some("tmpfs"), flags, Some(data.as_str()))?)
}

fn ensure_reaper(folder: &Path, exe: &Path) -> io::Result<()> {
    let pid_file = folder.join("pid");
    if is_pinned(&pid_file) && state::holder(&folder.join("reaper")).is_some() {
        return Ok(());
    }
    end_reaper(folder);
    unpin(&pid_file)?;
    fs::write(folder.join("reaper"), "")?;
    let (mut child, _control) = wire::spawn_helper(exe, "reaper", &[folder])?;
    // The helper itself ends at once; its child, pid 1 of the new namespace, stays.
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("the pod's reaper does not start")) }
}

/// Ends the reaper of the sandbox whose namespaces are in `folder`; it is in no group.
pub fn end_reaper(folder: &Path) {
    if let Some(pid) = state::holder(&folder.join("reaper")) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Removes all of it; silent about what is gone. Blocks.
pub fn remove(folder: &Path) -> io::Result<()> {
    end_reaper(folder);
    let mut failed = Ok(());
    for name in ["net", "uts", "ipc", "pid"] {
        failed = failed.and(unpin(&folder.join(name)));
    }
    crash::point(crash::DAEMON);
    let shm: PathBuf = folder.join(SHM);
    while umount2(&shm, MntFlags::MNT_DETACH).is_ok() {}
    failed.and(state::remove_folder(folder))
}

/// The helper that makes a pid namespace with a reaper in it.
pub fn run_reaper(mut args: impl Iterator<Item = String>) -> ExitCode {
    let Some(folder) = args.next().map(PathBuf::from) else { return ExitCode::FAILURE };
    match make_reaper(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn make_reaper(folder: &Path) -> io::Result<()> {
    let (mut near, far) = UnixStream::pair()?;
    let _ = nix::unistd::setsid();
    // Other processes of the pod must not look into this one.
    nix::sys::prctl::set_dumpable(false)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let lock = folder.join("reaper");
    match sys::fork()? {
        ForkResult::Child => {
            drop(near);
            sys::exit_now(i32::from(reap(&lock, far).is_err()));
        }
        ForkResult::Parent { child } => {
            drop(far);
            let mut ready = [0];
            io::Read::read_exact(&mut near, &mut ready)?;
            pin(Path::new(&format!("/proc/{child}/ns/pid")), &folder.join("pid"))
        }
    }
}

/// Collects orphans for ever.
fn reap(lock: &Path, mut ready: UnixStream) -> io::Result<()> {
    let _lock = state::lock(lock)?.ok_or_else(|| io::Error::other("there is a reaper already"))?;
    let _ = nix::sys::prctl::set_name(c"sampan-reaper");
    std::env::set_current_dir("/")?;
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..3 {
        sys::place(std::os::fd::AsFd::as_fd(&null), standard)?;
    }
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    wanted.thread_block()?;
    ready.write_all(b"R")?;
    drop(ready);
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        let _ = wanted.wait();
    }
}
