//! The mounts that the shim makes in its own mount namespace: the overlay and the staged volumes.
//!
//! Invariants: the host's mount table is never touched; all of it ends with the last process that
//! lives in the namespace. Volumes are staged, not bound by libcontainer from their source, because
//! libcontainer knows one propagation only: a stage carries the one that was asked for.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    Propagation,
    state::{Folder, Record},
    sys,
};

/// Leaves the host's mount namespace: what is mounted from here on is ours, and what the host
/// unmounts goes here too. Returns a stage for each of the spec's mounts, in their order.
pub fn enter_and_stage(folder: &Folder, record: &Record) -> Result<Vec<PathBuf>, String> {
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
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|error| format!("make mounts slaves of the host's: {error}"))?;
    let stages = folder.file("m");
    let stage = |n: usize, tree: &OwnedFd| -> io::Result<PathBuf> {
        let target = stages.join(n.to_string());
        if fs::metadata(&record.spec.mounts[n].source)?.is_dir() {
            fs::create_dir_all(&target)?;
        } else {
            fs::create_dir_all(&stages)?;
            fs::write(&target, "")?;
        }
        sys::attach_mounts(tree.as_fd(), &target)?;
        Ok(target)
    };
    trees
        .iter()
        .enumerate()
        .map(|(n, tree)| {
            let source = record.spec.mounts[n].source.display();
            stage(n, tree).map_err(|error| format!("error mounting {source:?}: {}", reason(&error)))
        })
        .collect()
}

fn detach(source: &Path, propagation: Propagation) -> io::Result<OwnedFd> {
    let tree = sys::clone_mounts(source)?;
    match propagation {
        Propagation::Private => sys::set_propagation(tree.as_fd(), sys::PROPAGATION_PRIVATE)?,
        Propagation::HostToContainer => sys::set_propagation(tree.as_fd(), sys::PROPAGATION_SLAVE)?,
        Propagation::Bidirectional => {}
    }
    Ok(tree)
}

/// Mounts the root file system. The layers are named by short links, so that any number of them fits
/// into the one page that `mount(2)` takes, and no character of a path needs escaping.
pub fn mount_root(folder: &Folder, record: &Record) -> io::Result<PathBuf> {
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
    let back = std::env::current_dir()?;
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
    std::env::set_current_dir(back)?;
    mounted?;
    Ok(root)
}

/// An error in the words people know, without Rust's `(os error 2)`.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::Error::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
