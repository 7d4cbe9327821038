//! One daemon a folder: two on one state would each think it alone writes it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

const FILE: &str = "daemon.lock";

/// A folder that is this process's; let go of with the value, or with the process.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Claim {
    /// # Errors
    /// When another daemon has the folder, or it cannot be written to.
    pub fn of(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.with_context(|| format!("write {}", path.display()))?;
        let mut holder = String::new();
        file.read_to_string(&mut holder).with_context(|| format!("read {}", path.display()))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "{} is in use by another sampan daemon (process {}): stop it, or give this one its own --data-dir and --run-dir",
                folder.display(),
                holder.trim()
            ),
            Err((_, error)) => return Err(anyhow!(error).context(format!("lock {}", path.display()))),
        };
        let id = std::process::id().to_string();
        if holder.trim() != id {
            lock.set_len(0)
                .and_then(|()| std::os::unix::fs::FileExt::write_all_at(&*lock, id.as_bytes(), 0))
                .and_then(|()| (&*lock).flush())
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(Self(lock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Claim::of(dir.path()).unwrap();
        let refused = Claim::of(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        Claim::of(dir.path()).unwrap();
    }
}
