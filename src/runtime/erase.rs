//! The end of everything that the runtime has made on a board, when no daemon is to come after.
//!
//! In: where it worked. Out: no process, no group, no mount, no profile of it. Every call may be repeated.

use std::{fs, io, path::Path};

use nix::mount::{MntFlags, umount2};

use super::{Error, apparmor, cgroup::Cgroups, daemon::Options, sandbox};

/// Kills all containers, and removes their groups, the mounts below the daemon's folders and the AppArmor
/// profile. The folders themselves stay. Goes on after a failure; what failed.
pub fn erase(options: &Options, folders: &[&Path]) -> Vec<Error> {
    let fail = |operation, path: &Path| {
        let id = path.display().to_string();
        move |source: io::Error| Error::Io { operation, id, source }
    };
    let root = Path::new(&options.cgroup_root);
    let killed = Cgroups::detect().and_then(|cgroups| {
        cgroups.kill(&options.cgroup_root)?;
        cgroups.delete(&options.cgroup_root)
    });
    let mut failed: Vec<Error> =
        killed.map_err(fail("remove the groups of", root)).err().into_iter().collect();
    for namespaces in fs::read_dir(options.run_dir.join("ns")).into_iter().flatten().flatten() {
        sandbox::end_reaper(&namespaces.path());
    }
    for folder in folders {
        failed.extend(unmount_below(folder).map_err(fail("unmount", folder)).err());
    }
    failed.extend(apparmor::remove().map_err(fail("remove profile", Path::new(apparmor::DEFAULT))).err());
    failed
}

/// Unmounts what is mounted at and below a folder, the innermost first.
fn unmount_below(folder: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut result = Ok(());
    for line in mounts.lines().rev() {
        let Some(point) = line.split(' ').nth(1).map(unescape) else { continue };
        if Path::new(&point).starts_with(folder) {
            result = result.and(umount2(point.as_str(), MntFlags::MNT_DETACH).map_err(io::Error::from));
        }
    }
    result
}

/// `\040` and the like of `/proc/self/mounts` (`fstab(5)`).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}
