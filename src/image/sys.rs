//! Files opened relative to a folder, and extended attributes of a path itself (xattr(7)).

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::Mode,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Opens the folder `path` with all links resolved as if `root` were `/` (openat2(2)), for `*at` calls only.
pub fn open_folder(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd = openat2(root.as_raw_fd(), path, how)?;
    // SAFETY: the descriptor was opened just now and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the regular file `path` for reading, no component of it being a link.
pub fn open_file(root: &OwnedFd, path: &Path) -> Result<File, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let fd = openat2(root.as_raw_fd(), path, how)?;
    // SAFETY: the descriptor was opened just now and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes a new file for writing; fails when the name exists, be it as a link.
pub fn create_file(folder: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(Some(folder.as_raw_fd()), name, flags, Mode::from_bits_truncate(0o600))?;
    // SAFETY: the descriptor was opened just now and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Waits for what owns a descriptor; `owner` has the same one for as long as it lives.
pub fn pollable<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: this room passes owners of one descriptor only, which the value holds to its end.
    Ok(unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }?)
}

/// All extended attributes of a path itself; none where the file system has none.
pub fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let path = c_path(path)?;
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: the path ends in NUL, the buffer has the length that is told.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(match check(length as isize) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
        other => other?,
    });
    let mut all = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let key = CString::new(name)?;
        let mut value = vec![0_u8; 64 << 10];
        // SAFETY: both strings end in NUL, the buffer has the length that is told.
        let length =
            unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(check(length as isize)?);
        all.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    Ok(all)
}

/// Sets one attribute, replacing it.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: both strings end in NUL and live through the call; the value's length is its own.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check(result as isize).map(drop)
}
