//! Processes that the kernel has killed because the whole machine was out of memory, from its log.
//!
//! In: the records of `/dev/kmsg` from now on (Documentation/ABI/testing/dev-kmsg). Out: who was killed.
//! Kills within a memory cgroup are their containers' business and not told here.
//! Source of the rules: cadvisor's `utils/oomparser`, kubelet's `pkg/kubelet/oom`.
//! Invariant: nothing happens while the kernel says nothing.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::sys;

const LOG: &str = "/dev/kmsg";
/// One record (bytes; the kernel's lines have at most half of that). A longer one is passed over.
const RECORD_BYTES: usize = 2048;

/// A process that was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub process: String,
    pub pid: u32,
}

/// Hears of kills.
#[derive(Debug)]
pub struct SystemOoms {
    log: AsyncFd<OwnedFd>,
    reader: Reader,
}

impl SystemOoms {
    /// Opens the kernel's log at its end.
    ///
    /// # Errors
    /// It is not there, or not to be read or waited for. Panics outside of a tokio runtime.
    pub fn open() -> io::Result<Self> {
        Self::open_at(Path::new(LOG))
    }

    fn open_at(path: &Path) -> io::Result<Self> {
        let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self { log: sys::readable(log.into())?, reader: Reader::default() })
    }

    /// Waits for the next kill.
    pub async fn next(&mut self) -> Kill {
        loop {
            if let Some(kill) = self.read() {
                return kill;
            }
            let Ok(mut ready) = self.log.readable().await else { return std::future::pending().await };
            ready.clear_ready();
        }
    }

    /// Reads what is there, until a kill.
    fn read(&mut self) -> Option<Kill> {
        let mut record = [0; RECORD_BYTES];
        loop {
            match nix::unistd::read(self.log.as_raw_fd(), &mut record) {
                Ok(0) => return None,
                Ok(length) => {
                    let kill = self.reader.record(&String::from_utf8_lossy(&record[..length]));
                    if kill.is_some() {
                        return kill;
                    }
                }
                // Overwritten before it was read; too long; disturbed.
                Err(Errno::EPIPE | Errno::EINVAL | Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// What the last records were about.
#[derive(Debug, Default)]
struct Reader {
    /// A kill is being told, and it is not clear yet whose.
    telling: bool,
}

impl Reader {
    /// `priority,number,microseconds,flags;text`, a line feed, and what else is known of it.
    fn record(&mut self, record: &str) -> Option<Kill> {
        let text = record.split_once(';')?.1.lines().next()?;
        if text.contains("invoked oom-killer:") {
            self.telling = true;
            return None;
        }
        if !self.telling {
            return None;
        }
        if text.starts_with("oom-kill:") && text.contains(",oom_memcg=/") {
            self.telling = false;
            return None;
        }
        let rest = text.split_once("Killed process ")?.1;
        self.telling = false;
        let (pid, rest) = rest.split_once(" (")?;
        Some(Kill { process: rest.rsplit_once(')')?.0.to_owned(), pid: pid.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_of_the_whole_machine_are_told_and_those_of_a_group_are_not() {
        let text = "\
6,1,10,-;usb 1-1: new device
4,2,20,-;python3 invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0
4,3,21,c;CPU: 1 UID: 0 PID: 4242 Comm: python3 Not tainted 6.18.44 #1 PREEMPT(voluntary)
6,4,22,-;Tasks state (memory values in pages):
6,5,23,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/user.slice,task=python3,pid=4242,uid=0
3,6,24,-;Out of memory: Killed process 4242 (python3 (main)) total-vm:8388608kB, anon-rss:4000000kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:7916kB oom_score_adj:0
3,7,25,-;Out of memory: Killed process 4243 (python3) total-vm:8388608kB, anon-rss:4000000kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:7916kB oom_score_adj:0
4,8,30,-;dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=1000
6,9,31,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/kubepods/poda,task_memcg=/kubepods/poda/c,task=dd,pid=77,uid=0
3,10,32,-;Memory cgroup out of memory: Killed process 77 (dd) total-vm:9000kB, anon-rss:4000kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:48kB oom_score_adj:1000
";
        let mut reader = Reader::default();
        let kills: Vec<_> =
            text.lines().filter_map(|line| reader.record(&format!("{line}\n SUBSYSTEM=x\n"))).collect();
        assert_eq!(kills, [Kill { process: "python3 (main)".to_owned(), pid: 4242 }]);
        assert!(!reader.telling);
        assert_eq!(reader.record("4,11,40,-;x invoked oom-killer:\n"), None);
        assert_eq!(reader.record("not a record"), None);
        assert_eq!(reader.record("4,12,41,-;Out of memory: Killed process many (x)\n"), None);
    }

    #[tokio::test]
    async fn a_machine_whose_log_is_not_there_does_without() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SystemOoms::open_at(&dir.path().join("none")).is_err());
        // What a container may find in its place.
        assert!(SystemOoms::open_at(Path::new("/dev/null")).is_err());
    }
}
