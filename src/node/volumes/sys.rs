//! System calls of volumes that have no safe wrapper: opening below a folder, modules, quotas.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Opens a path as a place (`O_PATH`), resolved without ever leaving `dir`.
///
/// # Errors
/// The kernel's refusal; `EXDEV` when the path leads outside.
pub fn open_beneath(dir: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd = openat2(dir.as_raw_fd(), path, how)?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// finit_module(2); `compressed` files are unpacked by the kernel.
pub fn load_module(file: &File, compressed: bool) -> io::Result<()> {
    const COMPRESSED_FILE: libc::c_int = 4;
    let flags = if compressed { COMPRESSED_FILE } else { 0 };
    // SAFETY: the descriptor is open for the time of the call, the parameters are an empty C string.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct FileAttributes {
    pub xflags: u32,
    pub extent_size: u32,
    pub extents: u32,
    pub project: u32,
    pub cow_extent_size: u32,
    pub pad: [u8; 8],
}

mod ioctl {
    use super::FileAttributes;
    nix::ioctl_read!(get_attributes, b'X', 31, FileAttributes);
    nix::ioctl_write_ptr!(set_attributes, b'X', 32, FileAttributes);
}

/// The extended attributes of a folder (`FS_IOC_FSGETXATTR`).
pub fn attributes(dir: &File) -> io::Result<FileAttributes> {
    let mut found = FileAttributes::default();
    // SAFETY: the structure has the kernel's layout and lives through the call.
    unsafe { ioctl::get_attributes(dir.as_raw_fd(), &raw mut found)? };
    Ok(found)
}

/// Sets them (`FS_IOC_FSSETXATTR`).
pub fn set_attributes(dir: &File, wanted: &FileAttributes) -> io::Result<()> {
    // SAFETY: the structure has the kernel's layout and lives through the call.
    unsafe { ioctl::set_attributes(dir.as_raw_fd(), wanted)? };
    Ok(())
}

/// `struct if_dqblk` of `linux/quota.h`.
#[repr(C)]
#[derive(Default)]
struct Limits {
    blocks_hard: u64,
    blocks_soft: u64,
    space: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    blocks_time: u64,
    inodes_time: u64,
    valid: u32,
}

/// Limits the bytes of a project on the file system of `dir` (quotactl_fd(2), Linux 5.14).
///
/// # Errors
/// `ENOSYS`, `ENOTSUP`: no quota here; `ESRCH`: project quota is not switched on.
pub fn limit_project(dir: &File, project: u32, bytes: u64) -> io::Result<()> {
    const QUOTACTL_FD: libc::c_long = 443;
    const SET_QUOTA: u32 = 0x0080_0008;
    const PROJECT: u32 = 2;
    const BLOCK_LIMITS: u32 = 1;
    const BLOCK_BYTES: u64 = 1024;
    let blocks = bytes.div_ceil(BLOCK_BYTES);
    let limits =
        Limits { blocks_hard: blocks, blocks_soft: blocks, valid: BLOCK_LIMITS, ..Limits::default() };
    let command = (SET_QUOTA << 8) | PROJECT;
    // SAFETY: the structure has the kernel's layout and lives through the call.
    let done = unsafe { libc::syscall(QUOTACTL_FD, dir.as_raw_fd(), command, project, &raw const limits) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
