//! The system calls that neither std nor nix has in a safe form. Each function is safe to call;
//! what they do to the process is said where it surprises.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use super::devices::Instruction;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag},
    poll::PollFd,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal},
    unistd::{ForkResult, Pid},
};
use tokio::io::{Interest, unix::AsyncFd};

/// How mounts made elsewhere are seen below a mount (`mount_setattr(2)`).
#[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
pub const PROPAGATION_PRIVATE: u64 = libc::MS_PRIVATE as u64;
#[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
pub const PROPAGATION_SLAVE: u64 = libc::MS_SLAVE as u64;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    Ok(Errno::result(result)?)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Takes over a descriptor that a system call or a parent process has handed to us.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass descriptors that were just made for them (by the kernel in a control
    // message, or by the process that executed us) and that nothing else in this process owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Splits a single-threaded process in two.
pub fn fork() -> io::Result<ForkResult> {
    // SAFETY: only helpers call this, and they never start a thread: no lock can be held across.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Ends the process at once, without running what a forked copy must not run twice.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any value and does not return.
    unsafe { libc::_exit(code) }
}

/// A descriptor that names a process for as long as it is open, and is readable when it has ended.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the result is a new descriptor.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    Ok(own(fd as RawFd))
}

/// A descriptor for tokio's loop, to be read when there is something.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor names one open file for as long as the AsyncFd holds it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// A descriptor for tokio's loop, to be read and written.
pub fn pollable(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: as in `readable`.
    Ok(unsafe { AsyncFd::register(file) }?)
}

/// Sends a signal to exactly the process behind the descriptor.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open; no siginfo is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// A detached copy of the mount at `path`, and of those below it when `with_inner`.
pub fn clone_mounts(path: &Path, with_inner: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let inner = if with_inner { libc::AT_RECURSIVE as libc::c_uint } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | inner;
    // SAFETY: the path is a valid C string; the result is a new descriptor.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    Ok(own(fd as RawFd))
}

/// Changes the propagation of a detached tree of mounts.
pub fn set_propagation(tree: BorrowedFd<'_>, propagation: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 };
    set_attributes(tree, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, attributes)
}

/// Makes one mount read-only; those on it stay as they are.
pub fn set_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(mount, libc::AT_EMPTY_PATH, attributes)
}

fn set_attributes(tree: BorrowedFd<'_>, flags: libc::c_int, attributes: libc::mount_attr) -> io::Result<()> {
    // SAFETY: the structure outlives the call and its size is passed; the path is an empty C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Whether the descriptor is of a folder.
pub fn is_folder(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let data = nix::sys::stat::fstat(fd.as_raw_fd())?;
    Ok(data.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Attaches a detached tree of mounts at `target`.
pub fn attach_mounts(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    let target = c_path(target)?;
    // SAFETY: both paths are valid C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Opens `path` as if `root` were `/`: links and `..` cannot lead out of it.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(own(nix::fcntl::openat2(root.as_raw_fd(), path, how)?))
}

/// Gives every signal its default action and lets all through, as a new program expects it.
pub fn reset_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SAFETY: the default action runs no code of ours. SIGKILL and SIGSTOP refuse, as they should.
        let _ = unsafe { nix::sys::signal::sigaction(signal, &default) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// Makes `bits` the effective and permitted capabilities, and empties the inheritable ones.
pub fn set_capabilities(bits: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let data = [bits as u32, (bits >> 32) as u32].map(|half| Data {
        effective: half,
        permitted: half,
        inheritable: 0,
    });
    // SAFETY: version 3 takes exactly one header and two data structures, which outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// The capabilities that this process could ever hand to a program.
pub fn bounding_capabilities() -> u64 {
    // SAFETY: plain numbers; unknown ones give an error, which is not 1.
    (0..64)
        .filter(|n| unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(*n), 0, 0, 0) } == 1)
        .fold(0, |bits, n: u32| bits | 1 << n)
}

/// Takes every capability out of the bounding set that is not in `bits`.
pub fn drop_bounding(bits: u64) -> io::Result<()> {
    for capability in 0..64 {
        if bits >> capability & 1 == 1 {
            continue;
        }
        // SAFETY: plain numbers.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) };
        match Errno::result(done) {
            // The kernel knows no capability of this number, and so none above it.
            Err(Errno::EINVAL) => break,
            other => other?,
        };
    }
    Ok(())
}

/// Loads a seccomp filter for this thread and what it executes.
pub fn load_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let program =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call; the kernel only reads it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) })?;
    Ok(())
}

/// Calls `bpf(2)`.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the structure outlives the call, and its size tells the kernel how far to read.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) })
}

/// Hands a device filter to the kernel.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let fd = bpf(
        BPF_PROG_LOAD,
        &Load {
            kind: BPF_PROG_TYPE_CGROUP_DEVICE,
            instruction_count: program.len() as u32,
            instructions: program.as_ptr().addr() as u64,
            license: c"Apache-2.0".as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
        },
    )?;
    Ok(own(fd as RawFd))
}

/// Puts a device filter on a group, beside those of the groups above it.
pub fn attach_device_program(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    bpf(
        BPF_PROG_ATTACH,
        &Attach {
            target: group.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            kind: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI,
        },
    )?;
    Ok(())
}

/// Marks every descriptor above the standard three as closed by the next `execve`.
pub fn close_others_on_exec() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: only sets a flag on descriptors, closes none.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Tells a terminal how large its window is.
pub fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads one winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// The other end of a pseudo terminal whose master is `master`, unlocked.
pub fn terminal_of(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: the request reads one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    // SAFETY: takes plain flags; the result is a new descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    Ok(own(fd))
}

/// Makes `terminal` the controlling one of this session.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a plain number.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Sends a signal to a whole process group.
pub fn kill_group(leader: Pid, signal: Signal) {
    let _ = nix::sys::signal::killpg(leader, signal);
}

/// Puts `fd` at the number `target` and keeps it there across `execve`.
pub fn place(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    nix::unistd::dup2(fd.as_raw_fd(), target)?;
    Ok(())
}

/// Waits without a bound of time for one of `fds`, after giving back what this process has touched and can
/// do without: the page tables of its program (the pages are the file's, and shared), and the stack below.
/// Both come again as they are needed. For a process without threads.
///
/// It lies with what it calls then in a section of its own, which linkers put after all other code: beside the
/// system's library and the data, whose page table is needed anyhow.
#[inline(never)]
#[unsafe(link_section = "rest")]
pub fn poll_at_rest(fds: &mut [PollFd<'_>]) -> nix::Result<libc::c_int> {
    // Everything else is done before, and freed after: each function that runs between the program's being
    // mapped again and the wait has a page table of its own.
    // SAFETY: takes a plain number.
    let page_bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    let program = File::open("/proc/self/exe").and_then(|file| Ok((read_only_parts()?, file)));
    if let Ok((parts, file)) = &program {
        for part in parts {
            part.map_again(file);
        }
    }
    if let Ok(page_bytes) = page_bytes {
        drop_stack_below(page_bytes);
    }
    // Not nix's, which lies elsewhere.
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or_default();
    // SAFETY: a `PollFd` is a `pollfd`, and there are so many.
    Errno::result(unsafe { libc::poll(fds.as_mut_ptr().cast(), count, -1) })
}

/// A read-only part of the program as it is mapped.
struct ProgramPart {
    start: *mut libc::c_void,
    bytes: usize,
    protection: libc::c_int,
    offset: libc::off_t,
}

impl ProgramPart {
    /// Maps the same bytes of `program` over themselves. What the kernel refuses stays as it is.
    #[inline(never)]
    #[unsafe(link_section = "rest")]
    fn map_again(&self, program: &File) {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: the kernel has said that this file lies here with these rights, and none of its pages was
        // ever writable: what is read and executed there is the same before and after.
        let _ = unsafe {
            libc::mmap(self.start, self.bytes, self.protection, flags, program.as_raw_fd(), self.offset)
        };
    }
}

/// The constants and the code of the program that runs. Never inlined, for its buffer.
#[inline(never)]
fn read_only_parts() -> io::Result<Vec<ProgramPart>> {
    // On the stack: who waits is to keep nothing of it. The program comes first, a few lines.
    let mut maps = [0; 1024];
    let length = File::open("/proc/self/maps")?.read(&mut maps)?;
    let maps = String::from_utf8_lossy(&maps[..length]);
    let number = |text| usize::from_str_radix(text, 16).map_err(io::Error::other);
    let mut parts = Vec::with_capacity(4);
    let mut first = None;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let [range, access, offset, device, inode] =
            std::array::from_fn(|_| words.next().unwrap_or_default());
        // After its code come pages that were written before they became read-only.
        if *first.get_or_insert((device, inode)) != (device, inode) || inode == "0" {
            break;
        }
        let protection = match access {
            "r--p" => libc::PROT_READ,
            "r-xp" => libc::PROT_READ | libc::PROT_EXEC,
            _ => break,
        };
        let (start, end) = range.split_once('-').unwrap_or_default();
        let (start, end) = (number(start)?, number(end)?);
        parts.push(ProgramPart {
            start: std::ptr::with_exposed_provenance_mut(start),
            bytes: end - start,
            protection,
            offset: number(offset)? as libc::off_t,
        });
        if access == "r-xp" {
            break;
        }
    }
    Ok(parts)
}

/// Forgets the pages of the stack that only calls which have returned have used.
#[inline(never)]
#[unsafe(link_section = "rest")]
fn drop_stack_below(page_bytes: usize) {
    /// How deep such calls have been at most (bytes), and the part next to here that is left alone: more
    /// than this call and the one it makes use.
    const DEPTH_BYTES: usize = 256 << 10;
    const NEAR_BYTES: usize = 2 << 10;
    let here = 0_u8;
    let end = (std::ptr::from_ref(&here).addr() - NEAR_BYTES) / page_bytes * page_bytes;
    let start = std::ptr::with_exposed_provenance_mut(end - DEPTH_BYTES);
    // SAFETY: no frame is alive below this one but that of the call itself, which is within the part that
    // is left alone; what is not mapped there is skipped.
    let _ = unsafe { libc::madvise(start, DEPTH_BYTES, libc::MADV_DONTNEED) };
}
