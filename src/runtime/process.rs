//! What the first process of a container and a command beside it have in common: capabilities by
//! name, the search for the executable, and the last steps before `execve`.
//!
//! Invariants: a failure is told in the words that runc and Go's `os/exec` use, which is what people
//! search for.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use super::sys;

/// `PATH` of containers whose image has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of a container's process, as cluster nodes commonly have it.
const OPEN_FILES_MAX: u64 = 1_048_576;
/// Exit codes of shells for a command that cannot be run, and that is not there.
pub const CODE_NOT_EXECUTABLE: i32 = 126;
pub const CODE_NOT_FOUND: i32 = 127;

/// Every capability of Linux 5.9 and later by its number (linux/capability.h).
pub const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];
pub const CAP_SETPCAP: u64 = 1 << 8;
pub const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// The capabilities as a bit set; names that are not known here are left out, as runc does.
pub fn capability_bits(names: &[String]) -> u64 {
    names.iter().fold(0, |bits, name| {
        let upper = name.to_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        match CAPABILITIES.iter().position(|known| *known == full) {
            Some(number) => bits | 1 << number,
            None if full == "CAP_ALL" => all_capabilities(),
            None => bits,
        }
    })
}

/// The names of a bit set.
pub fn capability_names(bits: u64) -> impl Iterator<Item = &'static str> {
    CAPABILITIES.iter().enumerate().filter(move |(number, _)| bits >> number & 1 == 1).map(|(_, name)| *name)
}

/// Every capability that this table knows and this process may hand on.
pub fn all_capabilities() -> u64 {
    sys::bounding_capabilities() & ((1 << CAPABILITIES.len()) - 1)
}

/// The lowest out-of-memory score that this process may give to another: its own, where it lacks
/// CAP_SYS_RESOURCE (a daemon inside of a container); else there is no bound.
pub fn oom_score_min() -> Option<i32> {
    if all_capabilities() & CAP_SYS_RESOURCE != 0 {
        return None;
    }
    std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// How many files a container's process may have open: [`OPEN_FILES_MAX`], or our own limit.
pub fn open_files_max() -> u64 {
    let own = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    own.map_or(OPEN_FILES_MAX, |(_, hard)| hard.min(OPEN_FILES_MAX))
}

/// Why a command cannot be run.
#[derive(Debug, PartialEq, Eq)]
pub struct Unrunnable {
    pub code: i32,
    /// `exec: "foo": executable file not found in $PATH`.
    pub message: String,
}

impl Unrunnable {
    fn new(code: i32, name: &str, reason: impl std::fmt::Display) -> Self {
        Self { code, message: format!("exec: {name:?}: {reason}") }
    }

    /// An error of `execve` itself.
    pub fn from_exec(path: &Path, error: nix::Error) -> Self {
        let code = if error == nix::Error::ENOENT { CODE_NOT_FOUND } else { CODE_NOT_EXECUTABLE };
        Self { code, message: format!("exec {}: {}", path.display(), describe(error)) }
    }
}

/// An error number in Go's words.
fn describe(error: nix::Error) -> String {
    error.desc().to_lowercase()
}

/// The file that `name` stands for, for the user that this process is, as Go's `exec.LookPath`.
pub fn find_executable(name: &str, path_variable: &str) -> Result<PathBuf, Unrunnable> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match std::fs::metadata(&path) {
            Err(error) => {
                let reason = nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
                Err(Unrunnable::new(CODE_NOT_FOUND, name, format!("stat {name}: {}", describe(reason))))
            }
            Ok(data) if data.is_dir() => Err(Unrunnable::new(CODE_NOT_EXECUTABLE, name, "is a directory")),
            Ok(_) if access(&path, AccessFlags::X_OK).is_err() => {
                Err(Unrunnable::new(CODE_NOT_EXECUTABLE, name, "permission denied"))
            }
            Ok(_) => Ok(path),
        };
    }
    for folder in path_variable.split(':') {
        let path = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        let runnable = std::fs::metadata(&path).is_ok_and(|data| !data.is_dir())
            && access(&path, AccessFlags::X_OK).is_ok();
        if !name.is_empty() && runnable {
            return Ok(path);
        }
    }
    Err(Unrunnable::new(CODE_NOT_FOUND, name, "executable file not found in $PATH"))
}

/// Drops to `capabilities`, loads the filter (none when empty) and becomes the program; returns only
/// an error. Without `no_new_privileges` the caller holds CAP_SYS_ADMIN and CAP_SETPCAP until here.
pub fn become_program(
    path: &Path,
    args: &[String],
    env: &[CString],
    capabilities: u64,
    no_new_privileges: bool,
    filter: &[libc::sock_filter],
) -> Unrunnable {
    let early = |what: &str, error: io::Error| Unrunnable {
        code: CODE_NOT_EXECUTABLE,
        message: format!("{what}: {error}"),
    };
    let Ok(program) = CString::new(path.as_os_str().as_bytes()) else {
        return Unrunnable::new(CODE_NOT_FOUND, "", "invalid argument");
    };
    let Ok(args) = args.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<Vec<_>, _>>() else {
        return Unrunnable::new(CODE_NOT_EXECUTABLE, &path.to_string_lossy(), "invalid argument");
    };
    sys::reset_signals();
    if let Err(error) = sys::drop_bounding(capabilities) {
        return early("unable to drop capabilities", error);
    }
    if filter.is_empty() {
        if let Err(error) = sys::set_capabilities(capabilities) {
            return early("unable to apply caps", error);
        }
    } else {
        let until_loaded = if no_new_privileges { capabilities } else { capabilities | CAP_SYS_ADMIN };
        let loaded = sys::set_capabilities(until_loaded).and_then(|()| sys::load_filter(filter));
        if let Err(error) = loaded {
            return early("unable to init seccomp", error);
        }
        if until_loaded != capabilities
            && let Err(error) = sys::set_capabilities(capabilities)
        {
            return early("unable to apply caps", error);
        }
    }
    let Err(error) = nix::unistd::execve(&program, &args, env);
    Unrunnable::from_exec(path, error)
}

/// Makes the folder in the tree at `root` as `mkdir -p` does, without following links out of it.
pub fn make_folder(root: &Path, path: &Path) -> io::Result<()> {
    use nix::fcntl::OFlag;
    let root = OwnedFd::from(std::fs::File::open(root)?);
    let mut so_far = PathBuf::from("/");
    for part in path.components().skip(1) {
        so_far.push(part);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match sys::open_in_root(root.as_fd(), &so_far, flags) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = so_far.parent().unwrap_or(Path::new("/"));
                let parent = sys::open_in_root(root.as_fd(), parent, flags)?;
                let mode = nix::sys::stat::Mode::from_bits_truncate(0o755);
                let name = Path::new(part.as_os_str());
                match nix::sys::stat::mkdirat(Some(std::os::fd::AsRawFd::as_raw_fd(&parent)), name, mode) {
                    Ok(()) | Err(nix::Error::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn capabilities_have_their_numbers() {
        let bits =
            |names: &[&str]| capability_bits(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(bits(&["CAP_CHOWN", "sys_admin", "NET_ADMIN"]), 1 | CAP_SYS_ADMIN | 1 << 12);
        assert_eq!(bits(&["CAP_SETPCAP", "CAP_FLY"]), CAP_SETPCAP);
        assert_eq!(
            capability_names(1 | 1 << 40).collect::<Vec<_>>(),
            ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]
        );
    }

    #[test]
    fn executables_are_found_and_missed_in_runcs_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        file("run", 0o755);
        file("plain", 0o644);
        let path = format!("/nowhere:{}", dir.path().display());
        assert_eq!(find_executable("run", &path).unwrap(), dir.path().join("run"));
        let message = |name: &str| find_executable(name, &path).unwrap_err().message;
        assert_eq!(message("plain"), "exec: \"plain\": executable file not found in $PATH");
        assert_eq!(message("/no/x"), "exec: \"/no/x\": stat /no/x: no such file or directory");
        let full = dir.path().join("plain").display().to_string();
        assert_eq!(message(&full), format!("exec: {full:?}: permission denied"));
        assert_eq!(find_executable("/tmp", &path).unwrap_err().code, CODE_NOT_EXECUTABLE);
        assert_eq!(find_executable("", &path).unwrap_err().code, CODE_NOT_FOUND);
    }

    #[test]
    fn folders_are_made_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("inner")).unwrap();
        symlink("/inner", root.join("link")).unwrap();
        symlink("../../..", root.join("out")).unwrap();
        make_folder(&root, Path::new("/link/a/b")).unwrap();
        assert!(root.join("inner/a/b").is_dir());
        make_folder(&root, Path::new("/out/c")).unwrap();
        assert!(root.join("c").is_dir());
        make_folder(&root, Path::new("/")).unwrap();
    }
}
