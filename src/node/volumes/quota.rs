//! The size of a `local-path` volume, enforced by a project quota where the file system has one.
//!
//! In: a folder and its size. The folder gets a project of its own, which what is made inside
//! inherits; the project's blocks are limited (ext4 and XFS mounted with `prjquota`).

use std::{fs::File, io, path::Path};

use super::sys;

/// Projects of ours begin here, away from those that people number by hand.
const PROJECT_FIRST: u32 = 0x5a00_0000;
const PROJECTS: u32 = 0x0100_0000;
/// What is made inside belongs to the project too (`FS_XFLAG_PROJINHERIT`).
const INHERIT: u32 = 0x200;

/// Holds a folder to so many bytes.
///
/// # Errors
/// Why the size is not enforced, for people.
pub fn hold(dir: &Path, bytes: u64) -> Result<(), String> {
    let set = || -> io::Result<()> {
        let folder = File::open(dir)?;
        let mut attributes = sys::attributes(&folder)?;
        if !is_ours(attributes.project) {
            attributes.project = free_project(dir)?;
            attributes.xflags |= INHERIT;
            // The limit first: a folder without one is better than a project without one.
            sys::limit_project(&folder, attributes.project, bytes)?;
            return sys::set_attributes(&folder, &attributes);
        }
        sys::limit_project(&folder, attributes.project, bytes)
    };
    set().map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) => {
            "the file system has no project quota (ext4 and XFS have it when mounted with prjquota)"
                .to_owned()
        }
        _ => format!("setting a project quota on {}: {error}", dir.display()),
    })
}

fn is_ours(project: u32) -> bool {
    (PROJECT_FIRST..PROJECT_FIRST + PROJECTS).contains(&project)
}

/// A project that no other volume beside this one has.
fn free_project(dir: &Path) -> io::Result<u32> {
    let mut taken = std::collections::BTreeSet::new();
    if let Some(parent) = dir.parent() {
        for entry in std::fs::read_dir(parent)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        {
            if let Ok(found) = File::open(entry.path()).and_then(|f| sys::attributes(&f)) {
                taken.insert(found.project);
            }
        }
    }
    (PROJECT_FIRST..PROJECT_FIRST + PROJECTS)
        .find(|project| !taken.contains(project))
        .ok_or_else(|| io::Error::other("all projects are taken"))
}
