//! The monitor: what a shim is once its container runs. One a container, for as long as that lives.
//!
//! In: the container's pipes or terminal, its pid, clients on a unix socket. Out: the log, copies of
//! the streams, and at last the `exit` record. Invariants: single-threaded, no large buffer is kept
//! while idle (a few private pages in all); the process is not reaped before the record is written,
//! so its pid means the container for as long as the lock is held; a client that does not read is
//! dropped after [`CLIENT_PATIENCE_SECONDS`].
//! Deliberately absent: tokio, the specification, restarts.
//!
//! A client's first byte says what it wants (see [`Role`]); after it the bytes are raw.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    os::unix::{
        ffi::OsStrExt,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};

use super::{
    Exit,
    cgroup::Cgroups,
    log::{Lines, Log},
    state::Folder,
    sys,
};
use crate::{
    clock::{Clock as _, SystemClock},
    crash,
};

/// How long a client may refuse what it is sent before it is dropped (seconds).
const CLIENT_PATIENCE_SECONDS: u64 = 5;
/// Clients at a time; more are turned away.
const CLIENTS_MAX: usize = 32;
/// Bytes read at once.
const CHUNK_BYTES: usize = 4096;
/// How long nothing has to happen before memory is given back: it costs as much as some lines of a log.
const QUIET_MS: u16 = 10_000;
/// How long output is awaited after the process has ended, when something still holds its pipes.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// What a client of the socket wants, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `o`: gets standard output (or the terminal's).
    Output,
    /// `e`: gets standard error.
    Errors,
    /// `i`: what it sends goes to standard input.
    Input,
    /// `c`: sends window sizes (columns, rows; two little-endian u16), gets the exit code (an i32).
    Control,
}

impl Role {
    pub fn byte(self) -> u8 {
        match self {
            Self::Output => b'o',
            Self::Errors => b'e',
            Self::Input => b'i',
            Self::Control => b'c',
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Output, Self::Errors, Self::Input, Self::Control].into_iter().find(|role| role.byte() == byte)
    }
}

/// What the process that has made the container tells about it, apart from descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    pub cgroups: Cgroups,
    pub cgroup: String,
    /// The container's processes may outlive its first one: they have no pid namespace of their own.
    pub outlived: bool,
    pub log_path: PathBuf,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
    pub pid: i32,
    pub started_at: Timestamp,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
}

/// The ends of the container's streams that are the monitor's.
pub struct Streams {
    pub listener: UnixListener,
    /// The terminal, when there is one.
    pub stdout: OwnedFd,
    pub stderr: Option<OwnedFd>,
    pub stdin: Option<OwnedFd>,
}

impl Handover {
    /// Its parts, each ended by a zero: parsed by a process that wants to stay small.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |part: &[u8]| {
            bytes.extend_from_slice(part);
            bytes.push(0);
        };
        add(self.cgroups.to_word().as_bytes());
        add(self.cgroup.as_bytes());
        add(self.log_path.as_os_str().as_bytes());
        add(self.log_bytes_max.to_string().as_bytes());
        add(self.log_files_max.to_string().as_bytes());
        add(self.pid.to_string().as_bytes());
        add(self.started_at.to_string().as_bytes());
        for flag in [self.outlived, self.tty, self.stdin, self.stdin_once] {
            add(if flag { b"1" } else { b"0" });
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.split(|byte| *byte == 0);
        let mut next = || parts.next();
        let text = |bytes| std::str::from_utf8(bytes).ok();
        Some(Self {
            cgroups: Cgroups::from_word(text(next()?)?),
            cgroup: text(next()?)?.to_owned(),
            log_path: OsStr::from_bytes(next()?).into(),
            log_bytes_max: text(next()?)?.parse().ok()?,
            log_files_max: text(next()?)?.parse().ok()?,
            pid: text(next()?)?.parse().ok()?,
            started_at: text(next()?)?.parse().ok()?,
            outlived: next()? == b"1",
            tty: next()? == b"1",
            stdin: next()? == b"1",
            stdin_once: next()? == b"1",
        })
    }
}

impl Streams {
    /// The descriptors in the order that [`Streams::from_descriptors`] takes them.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut fds = vec![self.listener.as_raw_fd(), self.stdout.as_raw_fd()];
        fds.extend([&self.stderr, &self.stdin].into_iter().flatten().map(AsRawFd::as_raw_fd));
        fds
    }

    pub fn from_descriptors(fds: Vec<OwnedFd>, handover: &Handover) -> Option<Self> {
        let mut fds = fds.into_iter();
        Some(Self {
            listener: fds.next()?.into(),
            stdout: fds.next()?,
            stderr: if handover.tty { None } else { Some(fds.next()?) },
            stdin: if handover.stdin { Some(fds.next()?) } else { None },
        })
    }
}

struct Client {
    stream: UnixStream,
    role: Option<Role>,
}

/// One of the container's output streams.
struct Output {
    name: &'static str,
    role: Role,
    file: Option<File>,
    lines: Lines,
}

struct Monitor {
    log: Log,
    outputs: Vec<Output>,
    stdin: Option<File>,
    /// Taken from a client and not yet by the container.
    pending: Vec<u8>,
    clients: Vec<Client>,
    tty: bool,
    stdin_once: bool,
    /// The last round has waited in vain.
    quiet: bool,
}

/// What a descriptor of one round of `poll` stands for.
#[derive(Clone, Copy)]
enum Source {
    Process,
    Listener,
    Output(usize),
    Stdin,
    Client(usize),
}

/// Runs until the container has ended, and records that in `folder`.
pub fn watch_over(folder: &Folder, handover: Handover, streams: Streams) -> io::Result<()> {
    let process = sys::pidfd_open(handover.pid)?;
    let listener = streams.listener;
    let output =
        |name, role, fd: OwnedFd| Output { name, role, file: Some(fd.into()), lines: Lines::default() };
    let mut outputs = vec![output("stdout", Role::Output, streams.stdout)];
    outputs.extend(streams.stderr.map(|fd| output("stderr", Role::Errors, fd)));
    let mut monitor = Monitor {
        log: Log::new(handover.log_path, handover.log_bytes_max, handover.log_files_max),
        outputs,
        stdin: streams.stdin.map(File::from),
        pending: Vec::new(),
        clients: Vec::new(),
        tty: handover.tty,
        stdin_once: handover.stdin_once,
        quiet: false,
    };
    if let Some(stdin) = &monitor.stdin {
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(stdin.as_raw_fd(), nix::fcntl::FcntlArg::F_SETFL(flags))?;
    }
    crash::point(crash::SHIM);
    let alive = Some((&process, &listener));
    loop {
        let timeout = if monitor.quiet { PollTimeout::NONE } else { PollTimeout::from(QUIET_MS) };
        if monitor.round(alive, timeout)? {
            break;
        }
    }

    crash::point(crash::SHIM);
    let finished_at = SystemClock.now();
    // Not reaped: the pid stays ours until this process has ended.
    let status = waitid(Id::Pid(Pid::from_raw(handover.pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    if handover.outlived {
        let _ = handover.cgroups.kill(&handover.cgroup);
    }
    let until = Instant::now() + DRAIN_WITHIN;
    while monitor.outputs.iter().any(|output| output.file.is_some()) {
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        if left == 0 || monitor.round(None, PollTimeout::from(left as u16))? {
            break;
        }
    }
    monitor.finish();
    crash::point(crash::SHIM);
    let (code, signal) = match status {
        Ok(WaitStatus::Exited(_, code)) => (code, None),
        Ok(WaitStatus::Signaled(_, signal, _)) => (128 + signal as i32, Some(signal as i32)),
        _ => (255, None),
    };
    folder.write_exit(&Exit {
        code,
        signal,
        oom_killed: handover.cgroups.oom_kills(&handover.cgroup) > 0,
        started_at: Some(handover.started_at),
        finished_at,
        error: None,
    })?;
    crash::point(crash::SHIM);
    for client in monitor.clients.iter_mut().filter(|client| client.role == Some(Role::Control)) {
        let _ = client.stream.write_all(&code.to_le_bytes());
    }
    Ok(())
}

impl Monitor {
    /// Waits for one round of events and handles them; `true` when the process has ended (or, without
    /// `alive`, when nothing came in time).
    fn round(&mut self, alive: Option<(&OwnedFd, &UnixListener)>, timeout: PollTimeout) -> io::Result<bool> {
        let ready = match self.wait(alive, timeout) {
            Ok(ready) => ready,
            Err(nix::Error::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        self.quiet = ready.is_empty();
        // Clients are removed by number: the highest first, and all before an output drops one.
        for source in ready.iter().rev() {
            if let Source::Client(n) = *source {
                self.client(n);
            }
        }
        // Standard output before errors: what came together was mostly written so.
        for source in &ready {
            match *source {
                Source::Process | Source::Client(_) => {}
                Source::Listener => {
                    if let Some((_, listener)) = alive {
                        self.accept(listener);
                    }
                }
                Source::Output(n) => self.output(n),
                Source::Stdin => self.feed(),
            }
        }
        self.log.flush();
        Ok(match alive {
            Some(_) => ready.iter().any(|source| matches!(source, Source::Process)),
            None => ready.is_empty(),
        })
    }

    /// The sources that have something.
    fn wait(
        &self,
        alive: Option<(&OwnedFd, &UnixListener)>,
        timeout: PollTimeout,
    ) -> nix::Result<Vec<Source>> {
        let mut sources = Vec::with_capacity(8);
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(8);
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        if let Some((process, listener)) = alive {
            add(Source::Process, process.as_fd(), PollFlags::POLLIN);
            add(Source::Listener, listener.as_fd(), PollFlags::POLLIN);
        }
        for (n, output) in self.outputs.iter().enumerate() {
            if let Some(file) = &output.file {
                add(Source::Output(n), file.as_fd(), PollFlags::POLLIN);
            }
        }
        if let (Some(stdin), false) = (&self.stdin, self.pending.is_empty()) {
            add(Source::Stdin, stdin.as_fd(), PollFlags::POLLOUT);
        }
        if alive.is_some() {
            for (n, client) in self.clients.iter().enumerate() {
                if client.role != Some(Role::Input) || self.pending.is_empty() {
                    add(Source::Client(n), client.stream.as_fd(), PollFlags::POLLIN);
                }
            }
        }
        if timeout.is_none() {
            sys::poll_at_rest(&mut fds)?;
        } else {
            poll(&mut fds, timeout)?;
        }
        let ready = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        Ok(sources.iter().zip(ready).filter(|(_, ready)| *ready).map(|(source, _)| *source).collect())
    }

    fn accept(&mut self, listener: &UnixListener) {
        let Ok((stream, _)) = listener.accept() else { return };
        if self.clients.len() < CLIENTS_MAX {
            let patience = Some(Duration::from_secs(CLIENT_PATIENCE_SECONDS));
            if stream.set_write_timeout(patience).is_ok() {
                self.clients.push(Client { stream, role: None });
            }
        }
    }

    /// Reads one chunk of the container's output. Never inlined: the chunk would lie on the stack of who waits.
    #[inline(never)]
    fn output(&mut self, n: usize) {
        let mut chunk = [0; CHUNK_BYTES];
        let output = &mut self.outputs[n];
        let Some(file) = &mut output.file else { return };
        let read = match file.read(&mut chunk) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return;
            }
            // A terminal says EIO when its last user has closed it.
            Err(_) => 0,
        };
        let (log, name, role) = (&mut self.log, output.name, output.role);
        let now = SystemClock.now();
        if read == 0 {
            output.lines.finish(|text, whole| log.entry(now, name, text, whole));
            output.file = None;
            self.clients.retain(|client| client.role != Some(role));
            return;
        }
        let tty = self.tty;
        output.lines.push(&chunk[..read], |text, whole| {
            // A terminal ends its lines with carriage return and line feed.
            let text = if tty && whole { text.strip_suffix(b"\r").unwrap_or(text) } else { text };
            log.entry(now, name, text, whole);
        });
        self.clients.retain_mut(|client| {
            client.role != Some(role) || client.stream.write_all(&chunk[..read]).is_ok()
        });
    }

    /// Hands what clients sent to the container.
    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return self.pending.clear() };
        match stdin.write(&self.pending) {
            Ok(written) if written == self.pending.len() => self.pending = Vec::new(),
            Ok(written) => drop(self.pending.drain(..written)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => {
                self.pending = Vec::new();
                self.stdin = None;
            }
        }
    }

    #[inline(never)]
    fn client(&mut self, n: usize) {
        // Only one chunk of input may wait for the container.
        if self.clients[n].role == Some(Role::Input) && !self.pending.is_empty() {
            return;
        }
        let Some(role) = self.clients[n].role else {
            let mut role = [0];
            self.clients[n].role = match self.clients[n].stream.read(&mut role) {
                Ok(1) => Role::from_byte(role[0]),
                _ => None,
            };
            let gone = |role| self.outputs.iter().any(|output| output.role == role && output.file.is_none());
            match self.clients[n].role {
                None => drop(self.clients.remove(n)),
                Some(role) if gone(role) => drop(self.clients.remove(n)),
                Some(_) => {}
            }
            return;
        };
        let mut chunk = [0; CHUNK_BYTES];
        let wanted = if role == Role::Control { 4 } else { CHUNK_BYTES };
        let read = self.clients[n].stream.read(&mut chunk[..wanted]).unwrap_or(0);
        if read == 0 {
            self.clients.remove(n);
            if role == Role::Input && self.stdin_once && !self.tty {
                self.stdin = None;
            }
            return;
        }
        match role {
            Role::Input if self.stdin.is_some() => {
                self.pending.extend_from_slice(&chunk[..read]);
                self.feed();
            }
            Role::Control if self.tty => {
                if let (Some(terminal), [a, b, c, d]) = (&self.stdin, &chunk[..read]) {
                    let (columns, rows) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                    let _ = sys::set_window_size(terminal.as_fd(), columns, rows);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self) {
        let now = SystemClock.now();
        for output in &mut self.outputs {
            let (log, name) = (&mut self.log, output.name);
            output.lines.finish(|text, whole| log.entry(now, name, text, whole));
        }
        self.log.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handover_survives_its_way() {
        let handover = Handover {
            cgroups: Cgroups::V2("/sys/fs/cgroup".into()),
            cgroup: "/c/p".into(),
            outlived: true,
            log_path: "/l g".into(),
            log_bytes_max: 10,
            log_files_max: 2,
            pid: 7,
            started_at: "2026-01-02T03:04:05.6Z".parse().unwrap(),
            tty: true,
            stdin: true,
            stdin_once: false,
        };
        assert_eq!(Handover::from_bytes(&handover.to_bytes()), Some(handover));
        assert_eq!(Handover::from_bytes(b""), None);
    }
}
