//! The mounts that the shim makes in its own mount namespace: the overlay and the staged volumes.
//!
//! Invariants: the host's mount table is never touched; all of it ends with the last process that
//! lives in the namespace. The namespace holds only what the making of the container needs, at fixed
//! places on a skeleton that all containers share: every process that libcontainer starts would copy
//! the host's table, and libcontainer reads all of it again and again. Volumes are staged, not bound by libcontainer
//! from their source, because libcontainer knows one propagation only: a stage carries the one that
//! was asked for.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};

use super::{
    Mount, Propagation, process,
    sandbox::SHM,
    state::{Folder, Record},
    sys,
};

/// The skeleton below the runtime's folder.
const SKELETON: &str = "skeleton";
/// What is bound onto it: the container's state folder, its sandbox's namespaces.
const STATE: &str = "/c";
const NAMESPACES: &str = "/n";
const CGROUPS: &str = "/sys/fs/cgroup";
const FOLDERS: [&str; 5] = ["proc", "sys/fs/cgroup", "dev/shm", "c", "n"];
const NULL: &str = "dev/null";

/// Makes the skeleton.
pub fn make_skeleton(run_dir: &Path) -> io::Result<()> {
    let skeleton = run_dir.join(SKELETON);
    for folder in FOLDERS {
        fs::create_dir_all(skeleton.join(folder))?;
    }
    fs::write(skeleton.join(NULL), "")
}

/// Where things are in the shim's namespace.
pub struct Ready {
    pub folder: Folder,
    /// The record with the paths that hold here.
    pub record: Record,
    /// The mounted root file system.
    pub root: PathBuf,
    /// A stage for each of the spec's mounts, in their order.
    pub staged: Vec<PathBuf>,
    /// One for each group that the container is shown.
    pub groups: Vec<(String, PathBuf)>,
}

/// Leaves the host's mount namespace for one with the container's mounts and little else. `groups` are
/// the container's groups of version 1, whose hierarchies stay behind: libcontainer would make more of them.
pub fn enter(folder: &Folder, record: &Record, groups: &[(String, PathBuf)]) -> Result<Ready, String> {
    let say = |what: &'static str| move |error: io::Error| format!("{what}: {}", reason(&error));
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare mount namespace: {error}"))?;
    // Copied while the mounts are still the host's peers, which only Bidirectional stays.
    let trees = record
        .spec
        .mounts
        .iter()
        .map(|wanted| {
            detach(&wanted.source, wanted.propagation).map_err(|error| {
                let (source, target) = (wanted.source.display(), wanted.target.display());
                format!("error mounting {source:?} to rootfs at {target:?}: {}", reason(&error))
            })
        })
        .collect::<Result<Vec<OwnedFd>, String>>()?;
    let group_trees = groups
        .iter()
        .map(|(_, group)| sys::clone_mounts(group, false))
        .collect::<io::Result<Vec<_>>>()
        .map_err(say("prepare cgroups"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|error| format!("make mounts slaves of the host's: {error}"))?;
    mount_root(folder, record).map_err(say("mount root file system"))?;
    let parts = parts(folder, record).map_err(say("prepare mounts"))?;
    move_in(folder, parts).map_err(say("leave the host's mounts"))?;

    let here = Folder(STATE.into());
    let mut staged = trees
        .iter()
        .zip(&record.spec.mounts)
        .enumerate()
        .map(|(n, (tree, wanted))| {
            stage(&here, &n.to_string(), tree)
                .map_err(|error| format!("error mounting {:?}: {}", wanted.source.display(), reason(&error)))
        })
        .collect::<Result<Vec<_>, String>>()?;
    // Their names must not be a controller's, by which libcontainer looks for hierarchies.
    let groups = groups
        .iter()
        .zip(&group_trees)
        .map(|((name, _), tree)| {
            let staged = stage(&here, &format!("group-of-{name}-"), tree).map_err(say("mount cgroups"))?;
            Ok((name.clone(), staged))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let mut record = record.clone();
    record.namespaces = NAMESPACES.into();
    let root = here.file("rootfs");
    check_targets(&root, &record.spec.mounts, &trees)?;
    for volume in &record.spec.volumes {
        let failed =
            |error: io::Error| format!("make volume {} of the image: {}", volume.display(), reason(&error));
        process::make_folder(&root, volume).map_err(failed)?;
        if record.spec.read_only_root {
            // A mount of its own does not become read-only with the root.
            let tree = part_of(&root, volume).map_err(failed)?;
            staged.push(stage(&here, &staged.len().to_string(), &tree).map_err(failed)?);
            record.spec.mounts.push(Mount { target: volume.clone(), ..Mount::default() });
        }
    }
    Ok(Ready { root, folder: here, record, staged, groups })
}

/// A detached copy of a part of the root file system, whose links cannot lead out of it.
fn part_of(root: &Path, folder: &Path) -> io::Result<OwnedFd> {
    let root = fs::File::open(root)?;
    let part = sys::open_in_root(root.as_fd(), folder, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    sys::clone_mounts(Path::new(&format!("/proc/self/fd/{}", part.as_raw_fd())), false)
}

/// Refuses to mount a folder on a file, and the other way round, in runc's words: libcontainer only says that
/// something failed.
fn check_targets(root: &Path, mounts: &[Mount], trees: &[OwnedFd]) -> Result<(), String> {
    let root = fs::File::open(root).map_err(|error| format!("open the root: {error}"))?;
    for (mount, tree) in mounts.iter().zip(trees) {
        let is_inside =
            |other: &Mount| mount.target != other.target && mount.target.starts_with(&other.target);
        if mounts.iter().any(is_inside) {
            continue;
        }
        let fits = match sys::open_in_root(root.as_fd(), &mount.target, OFlag::O_PATH) {
            Ok(there) => sys::is_folder(there.as_fd()).ok() == sys::is_folder(tree.as_fd()).ok(),
            Err(error) => error.kind() != io::ErrorKind::NotADirectory,
        };
        if !fits {
            return Err(format!(
                "unable to start container process: error during container init: error mounting {:?} to rootfs at {:?}: not a directory: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type",
                mount.source.display(),
                mount.target.display()
            ));
        }
    }
    Ok(())
}

/// A detached mount, and its place below the new root.
type Part = (OwnedFd, &'static str);

fn parts(folder: &Folder, record: &Record) -> io::Result<Vec<Part>> {
    let alone = |path: &Path| sys::clone_mounts(path, false);
    let with_inner = |path: &Path| sys::clone_mounts(path, true);
    let mut parts = vec![(alone(Path::new("/proc"))?, "/proc")];
    if record.spec.apparmor_profile.is_some() {
        parts.push((alone(Path::new("/sys"))?, "/sys"));
    }
    // Of version 1 only the folder that the hierarchies are mounted in.
    parts.push((alone(Path::new(CGROUPS))?, CGROUPS));
    parts.push((alone(Path::new("/dev/null"))?, "/dev/null"));
    if record.sandbox.host_ipc {
        parts.push((alone(Path::new("/dev/shm"))?, "/dev/shm"));
    }
    if record.namespaces.exists() {
        parts.push((with_inner(&record.namespaces)?, NAMESPACES));
    }
    parts.push((alone(&folder.0)?, STATE));
    parts.push((with_inner(&folder.file("rootfs"))?, "/c/rootfs"));
    Ok(parts)
}

/// Makes the skeleton the root, with the parts on it, and forgets all other mounts.
fn move_in(folder: &Folder, parts: Vec<Part>) -> io::Result<()> {
    let skeleton = folder.0.ancestors().nth(2).unwrap_or(Path::new("/")).join(SKELETON);
    let tree = sys::clone_mounts(&skeleton, false)?;
    sys::attach_mounts(tree.as_fd(), &skeleton)?;
    for (part, place) in parts {
        sys::set_propagation(part.as_fd(), sys::PROPAGATION_PRIVATE)?;
        sys::attach_mounts(part.as_fd(), &skeleton.join(&place[1..]))?;
    }
    sys::set_propagation(tree.as_fd(), sys::PROPAGATION_PRIVATE)?;
    sys::set_read_only(tree.as_fd())?;
    chdir(&skeleton)?;
    match pivot_root(".", ".") {
        // The old root lies over the new one.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // An initial RAM disk cannot be left; what is below the new root stays.
        Err(nix::Error::EINVAL) => {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
            nix::unistd::chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(chdir(STATE)?)
}

fn stage(folder: &Folder, name: &str, tree: &OwnedFd) -> io::Result<PathBuf> {
    let stages = folder.file("m");
    let target = stages.join(name);
    fs::create_dir_all(&stages)?;
    if sys::is_folder(tree.as_fd())? {
        fs::create_dir(&target)?;
    } else {
        fs::write(&target, "")?;
    }
    sys::attach_mounts(tree.as_fd(), &target)?;
    Ok(target)
}

fn detach(source: &Path, propagation: Propagation) -> io::Result<OwnedFd> {
    let tree = sys::clone_mounts(source, true)?;
    match propagation {
        Propagation::Private => sys::set_propagation(tree.as_fd(), sys::PROPAGATION_PRIVATE)?,
        Propagation::HostToContainer => sys::set_propagation(tree.as_fd(), sys::PROPAGATION_SLAVE)?,
        Propagation::Bidirectional => {}
    }
    Ok(tree)
}

/// Mounts the root file system. The layers are named by short links, so that any number of them fits
/// into the one page that `mount(2)` takes, and no character of a path needs escaping.
fn mount_root(folder: &Folder, record: &Record) -> io::Result<()> {
    let links = folder.file("l");
    fs::create_dir_all(&links)?;
    let mut lower = String::new();
    // The overlay wants the topmost layer first.
    for (n, layer) in record.spec.layers.iter().rev().enumerate() {
        symlink(layer, links.join(n.to_string()))?;
        if n > 0 {
            lower.push(':');
        }
        lower.push_str(&n.to_string());
    }
    if record.spec.layers.is_empty() {
        fs::create_dir_all(links.join("0"))?;
        lower.push('0');
    }
    for (link, name) in [("u", "upper"), ("w", "work")] {
        let target = record.data.join(name);
        fs::create_dir_all(&target)?;
        symlink(target, links.join(link))?;
    }
    let root = folder.file("rootfs");
    fs::create_dir_all(&root)?;
    std::env::set_current_dir(&links)?;
    let overlay = |options: &str| {
        let data = format!("lowerdir={lower},upperdir=u,workdir=w{options}");
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
    };
    // A writable layer ends with its container, and never outlives a boot: syncing it would only
    // wear the flash.
    let mounted = match overlay(",volatile") {
        Err(nix::Error::EINVAL) => overlay(""),
        other => other,
    };
    std::env::set_current_dir(&folder.0)?;
    Ok(mounted?)
}

/// The shared memory of the container's pod.
pub fn shared_memory(record: &Record) -> PathBuf {
    if record.sandbox.host_ipc { "/dev/shm".into() } else { record.namespaces.join(SHM) }
}

/// An error in the words people know, without Rust's `(os error 2)`.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::Error::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
