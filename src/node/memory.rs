//! File systems in memory that are the node's own, for what is not to be on a disk.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{TMPFS_MAGIC, statfs},
};

/// Held while it is looked whether there is one, and one is made: two would lie on each other.
static MOUNTING: Mutex<()> = Mutex::new(());
/// This kernel has refused what keeps a tmpfs out of the swap space.
static NOSWAP_UNKNOWN: AtomicBool = AtomicBool::new(false);

/// Makes a folder one in memory, unless it is already: `make` mounts the tmpfs.
///
/// # Errors
/// The folder or the mount cannot be made.
pub fn keep(root: &Path, make: impl FnOnce() -> nix::Result<()>) -> io::Result<()> {
    let _one = MOUNTING.lock().expect("no holder of the mounting lock panics");
    std::fs::create_dir_all(root)?;
    let parent = root.parent().unwrap_or(root);
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev());
    if statfs(root)?.filesystem_type() == TMPFS_MAGIC && device(root)? != device(parent)? {
        return Ok(());
    }
    Ok(make()?)
}

/// Mounts a tmpfs of the node's.
pub fn tmpfs(name: &str, root: &Path, flags: MsFlags, options: &str) -> nix::Result<()> {
    mount(Some(name), root, Some("tmpfs"), flags, Some(options))
}

/// Mounts a tmpfs of which nothing is swapped out, where the kernel can promise that (6.4, outside of user
/// namespaces); elsewhere one like any other.
pub fn unswapped(options: &str, mount: impl Fn(&str) -> nix::Result<()>) -> nix::Result<()> {
    in_memory_alone(options, &NOSWAP_UNKNOWN, mount)
}

/// `unknown` remembers that the kernel cannot.
fn in_memory_alone(
    options: &str,
    unknown: &AtomicBool,
    mount: impl Fn(&str) -> nix::Result<()>,
) -> nix::Result<()> {
    if !unknown.load(Ordering::Relaxed) {
        let alone = mount(&format!("{options},noswap"));
        if alone != Err(nix::Error::EINVAL) {
            return alone;
        }
    }
    mount(options).inspect(|()| unknown.store(true, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_out_of_the_swap_space_where_the_kernel_can() {
        let tried = std::cell::RefCell::new(Vec::new());
        let ask = |unknown: &AtomicBool, answers: fn(&str) -> nix::Result<()>| {
            let result = in_memory_alone("mode=777", unknown, |options| {
                tried.borrow_mut().push(options.to_owned());
                answers(options)
            });
            (result, tried.take(), unknown.load(Ordering::Relaxed))
        };
        let list = |options: &[&str]| options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        let old = |options: &str| if options.contains("noswap") { Err(nix::Error::EINVAL) } else { Ok(()) };
        let unknown = AtomicBool::new(false);
        assert_eq!(ask(&unknown, |_| Ok(())), (Ok(()), list(&["mode=777,noswap"]), false));
        let full = Err(nix::Error::ENOMEM);
        assert_eq!(ask(&unknown, |_| Err(nix::Error::ENOMEM)), (full, list(&["mode=777,noswap"]), false));
        let both = list(&["mode=777,noswap", "mode=777"]);
        let bad = Err(nix::Error::EINVAL);
        assert_eq!(ask(&unknown, |_| Err(nix::Error::EINVAL)), (bad, both.clone(), false), "it was not that");
        assert_eq!(ask(&unknown, old), (Ok(()), both, true));
        assert_eq!(ask(&unknown, old), (Ok(()), list(&["mode=777"]), true), "asked once");
    }
}
