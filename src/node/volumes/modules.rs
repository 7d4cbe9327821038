//! Loading a kernel module with what it depends on, as modprobe(8) would.
//!
//! In: a name. Source: `modules.dep` (modules.dep(5)), finit_module(2).
//! Deliberately absent: aliases, options, blacklists.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::sys;

/// Loads a module of the running kernel; one that is loaded already is fine.
///
/// # Errors
/// It is not installed, or the kernel refuses it.
pub fn load(name: &str) -> io::Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let root = Path::new("/lib/modules").join(release.trim());
    let list = std::fs::read_to_string(root.join("modules.dep")).map_err(|e| {
        io::Error::new(e.kind(), format!("no modules are installed for kernel {}", release.trim()))
    })?;
    let files = chain(&list, name)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("not in {}", root.display())))?;
    for file in files {
        let file = root.join(file);
        let compressed = file.extension().is_some_and(|e| e != "ko");
        match sys::load_module(&File::open(&file)?, compressed) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", file.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The files of a module and what it needs, in the order of loading.
fn chain(list: &str, name: &str) -> Option<Vec<PathBuf>> {
    let of = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split(".ko").next().unwrap_or_default().replace('-', "_")
    };
    let (file, needs) = list.lines().filter_map(|l| l.split_once(':')).find(|(file, _)| of(file) == name)?;
    // The list has the nearest first: what those need in turn comes after them.
    Some(needs.split_whitespace().rev().chain([file]).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let list = "kernel/fs/nfs/nfsv4.ko.xz: kernel/fs/nfs/nfs.ko.xz kernel/net/sunrpc/sunrpc.ko.xz\n\
                    kernel/fs/nfs/nfs.ko.xz: kernel/net/sunrpc/sunrpc.ko.xz\n\
                    kernel/drivers/nf-x.ko:\n";
        let names = |name| {
            chain(list, name).map(|files| files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>())
        };
        assert_eq!(
            names("nfsv4").unwrap(),
            ["kernel/net/sunrpc/sunrpc.ko.xz", "kernel/fs/nfs/nfs.ko.xz", "kernel/fs/nfs/nfsv4.ko.xz"]
        );
        assert_eq!(names("nf_x").unwrap(), ["kernel/drivers/nf-x.ko"]);
        assert_eq!(names("ext4"), None);
    }
}
