//! The state folder: everything about a container that a restarted daemon needs, as files.
//!
//! ```text
//! <run_dir>/containers/<id>/spec.json   the record; its folder appears whole, by a rename
//!                          /lock        held by the shim, then the monitor, for as long as it lives
//!                          /started     a link to the first process's pid and time; appears before that runs
//!                          /exit        the end; the last thing that happens to a container
//!                          /attach      the monitor's socket
//!                          /rootfs …    mount points, the bundle and libcontainer's own files
//! <data_dir>/containers/<id>/upper work the writable layer; never there without the folder above
//! <run_dir>/sandboxes/<id>/spec.json    a sandbox
//! <run_dir>/ns/<id>/net ipc uts pid shm its pinned namespaces and shared memory
//! <run_dir>/skeleton                    the root of every shim's mounts (see `mounts`)
//! ```
//! The lock is a POSIX record lock: it does not pass to children, survives `execve`, ends with the
//! process, and the kernel tells who holds it. "The lock is held" is therefore "the monitor lives".

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::symlink},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ContainerSpec, ContainerState, Exit, SandboxSpec};

/// What the daemon tells the shim, and a later daemon reads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    pub spec: ContainerSpec,
    pub sandbox: SandboxSpec,
    /// The container's cgroup, absolute in the hierarchy.
    pub cgroup: String,
    /// Where upper and work folder go.
    pub data: PathBuf,
    /// Where the sandbox's namespaces are pinned.
    pub namespaces: PathBuf,
    /// The pid namespace of another container, to be joined.
    #[serde(default)]
    pub pid_namespace: Option<PathBuf>,
    /// Where the groups are ([`Cgroups::to_word`](super::cgroup::Cgroups::to_word)): looking for them
    /// takes the longer the more is mounted.
    #[serde(default)]
    pub cgroups: String,
    /// The boot that the container belongs to; state folders may outlive one.
    pub boot: String,
}

/// The container's first process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    pub pid: i32,
    pub at: jiff::Timestamp,
}

/// One container's folder.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn record(&self) -> io::Result<Record> {
        read(&self.file("spec.json"))
    }

    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        write(&self.file("spec.json"), record)
    }

    pub fn started(&self) -> Option<Started> {
        let text = fs::read_link(self.file("started")).ok()?;
        serde_json::from_slice(text.as_os_str().as_bytes()).ok()
    }

    /// As the target of a link: it appears whole, and where state lies in memory takes no page of it.
    pub fn write_started(&self, started: &Started) -> io::Result<()> {
        symlink(serde_json::to_string(started)?, self.file("started"))
    }

    pub fn exit(&self) -> Option<Exit> {
        read(&self.file("exit")).ok()
    }

    pub fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        write(&self.file("exit"), exit)
    }

    /// The state that the files tell, when the monitor lives.
    pub fn state(&self) -> ContainerState {
        match (self.exit(), self.started()) {
            (Some(exit), _) => ContainerState::Exited(exit),
            (None, Some(started)) => ContainerState::Running { pid: started.pid, started_at: started.at },
            (None, None) => ContainerState::Starting,
        }
    }

    /// Takes the lock for this process; `None` when another has it. The lock ends when any
    /// descriptor of the file is closed in this process. The file was made with the folder, so that
    /// a late shim makes nothing in a folder that is being removed.
    pub fn lock(&self) -> io::Result<Option<OwnedFd>> {
        lock(&self.file("lock"))
    }

    /// The process that holds the lock.
    pub fn holder(&self) -> Option<i32> {
        holder(&self.file("lock"))
    }
}

/// Takes the record lock of a file.
pub fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let fd = OwnedFd::from(File::options().write(true).open(path)?);
    match fcntl(fd.as_raw_fd(), FcntlArg::F_SETLK(&whole_file())) {
        Ok(_) => Ok(Some(fd)),
        Err(nix::Error::EACCES | nix::Error::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The process that holds the record lock of a file.
pub fn holder(path: &Path) -> Option<i32> {
    let file = File::options().write(true).open(path).ok()?;
    let mut query = whole_file();
    fcntl(file.as_raw_fd(), FcntlArg::F_GETLK(&mut query)).ok()?;
    (i32::from(query.l_type) != libc::F_UNLCK && query.l_pid > 0).then_some(query.l_pid)
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Reads a JSON file.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes a JSON file that appears whole or not at all.
pub fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(&new, path)
}

/// The running kernel's boot.
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Removes a folder with all it holds; silent when it is gone.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_tell_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        assert_eq!(folder.state(), ContainerState::Starting);
        let at = jiff::Timestamp::UNIX_EPOCH;
        folder.write_started(&Started { pid: 7, at }).unwrap();
        assert_eq!(folder.state(), ContainerState::Running { pid: 7, started_at: at });
        let exit = Exit {
            code: 1,
            signal: None,
            oom_killed: false,
            started_at: Some(at),
            finished_at: at,
            error: None,
        };
        folder.write_exit(&exit).unwrap();
        assert_eq!(folder.state(), ContainerState::Exited(exit));
    }

    #[test]
    fn nobody_holds_a_new_lock() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        fs::write(folder.file("lock"), "").unwrap();
        assert_eq!(folder.holder(), None);
        let _held = folder.lock().unwrap().unwrap();
    }
}
