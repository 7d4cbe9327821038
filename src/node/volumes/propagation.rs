//! Whether mounts can spread: between a container and its host only through a mount that does.
//!
//! Source of the rules and the words: containerd's `WithMounts` and `ensureShared`.

use std::path::Path;

use super::unescape;
use crate::runtime::{Mount, Propagation};

/// Refuses mounts that are to spread and cannot.
///
/// # Errors
/// The first of them.
pub fn check(mounts: &[Mount]) -> Result<(), String> {
    if mounts.iter().all(|mount| mount.propagation == Propagation::Private) {
        return Ok(());
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    mounts.iter().try_for_each(|mount| {
        let source = mount.source.canonicalize().unwrap_or_else(|_| mount.source.clone());
        spreads(&table, &source, mount.propagation)
    })
}

/// Asks the mount table (proc_pid_mountinfo(5)).
fn spreads(table: &str, source: &Path, propagation: Propagation) -> Result<(), String> {
    let parse = |line: &str| {
        let mut fields = line.split_once(" - ")?.0.split(' ').skip(4);
        let place = unescape(fields.next()?);
        Some((place, fields.skip(1).map(str::to_owned).collect::<Vec<_>>()))
    };
    let above = table.lines().filter_map(parse).filter(|(place, _)| source.starts_with(place));
    // The one that was mounted last is seen.
    let Some((place, options)) = above.max_by_key(|(place, _)| place.len()) else { return Ok(()) };
    let is = |kind: &str| options.iter().any(|option| option.starts_with(kind));
    let (right, what) = match propagation {
        Propagation::Private => return Ok(()),
        Propagation::Bidirectional => (is("shared:"), "shared"),
        Propagation::HostToContainer => (is("shared:") || is("master:"), "shared or slave"),
    };
    if right {
        return Ok(());
    }
    let source = source.display().to_string();
    Err(format!("path {source:?} is mounted on {place:?} but it is not a {what} mount"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_spread_needs_a_mount_that_does() {
        let table = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n\
                     30 22 0:25 / /run rw,nosuid shared:5 - tmpfs tmpfs rw\n\
                     31 22 0:26 / /a\\040b rw master:7 - tmpfs tmpfs rw\n\
                     32 30 0:27 / /run rw - tmpfs tmpfs rw\n\
                     33 30 0:28 / /run/s rw shared:6 master:1 - tmpfs tmpfs rw\n";
        let told = |path: &str, propagation| spreads(table, Path::new(path), propagation);
        let refused = |path: &str, place: &str, what: &str| {
            Err(format!("path {path:?} is mounted on {place:?} but it is not a {what} mount"))
        };
        use Propagation::{Bidirectional, HostToContainer, Private};
        assert_eq!(told("/srv/x", Private), Ok(()));
        assert_eq!(told("/srv/x", Bidirectional), refused("/srv/x", "/", "shared"));
        assert_eq!(told("/srv/x", HostToContainer), refused("/srv/x", "/", "shared or slave"));
        assert_eq!(told("/a b/x", HostToContainer), Ok(()));
        assert_eq!(told("/a b/x", Bidirectional), refused("/a b/x", "/a b", "shared"));
        assert_eq!(told("/run/x", HostToContainer), refused("/run/x", "/run", "shared or slave"));
        assert_eq!((told("/run/s", Bidirectional), told("/run/s", HostToContainer)), (Ok(()), Ok(())));
    }
}
