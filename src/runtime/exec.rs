//! Commands beside a container's process, the daemon's half: streams, sizes, the exit code.
//!
//! In: a running container and an [`ExecSpec`](super::ExecSpec). Out: a [`Session`] whose streams are
//! pipes (or a terminal) straight to the command; the other half is [`super::exec_helper`].
//! Invariants: when the session's `exit` is dropped, or the daemon dies, the command is killed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::{
        UnixStream,
        unix::pipe::{Receiver, Sender},
    },
    sync::{mpsc, oneshot},
};

use super::{Error, Session, sys, wire};

/// Terminal sizes waiting to be set.
pub const RESIZES_MAX: usize = 8;
/// Code of a command that was killed with its container.
const CODE_KILLED: i32 = 137;

/// What the helper is told, as JSON and a newline; descriptors follow: the container's pidfd, then
/// (without a terminal) standard input, output and error.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Request {
    pub cgroup: String,
    /// Where the groups are.
    pub cgroups: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub capabilities: u64,
    pub no_new_privileges: bool,
    /// The container's, for the filter.
    pub seccomp: super::Seccomp,
    pub apparmor_profile: Option<String>,
    pub oom_score_adj: i32,
    pub tty: bool,
}

/// The helper's answers: a byte, and what the byte is followed by.
pub mod answer {
    /// The terminal; its descriptor comes along.
    pub const TERMINAL: u8 = b'T';
    /// The command runs.
    pub const STARTED: u8 = b'S';
    /// An exit code as of a shell (126, 127), then the message up to the end of the stream.
    pub const FAILED: u8 = b'E';
    /// An exit code.
    pub const EXITED: u8 = b'X';
}

/// Both ends of the three pipes of a command.
struct Pipes {
    near: (Option<Sender>, Receiver, Receiver),
    far: [OwnedFd; 3],
}

fn pipes(uid: u32, stdin: bool) -> io::Result<Pipes> {
    let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        for end in [&read, &write] {
            nix::unistd::fchown(end.as_raw_fd(), Some(nix::unistd::Uid::from_raw(uid)), None)?;
        }
        Ok((read, write))
    };
    let (stdin_far, stdin_near) = if stdin {
        let (read, write) = pipe()?;
        (read, Some(Sender::from_owned_fd(write)?))
    } else {
        (std::fs::File::open("/dev/null")?.into(), None)
    };
    let ((stdout_near, stdout_far), (stderr_near, stderr_far)) = (pipe()?, pipe()?);
    let near = (stdin_near, Receiver::from_owned_fd(stdout_near)?, Receiver::from_owned_fd(stderr_near)?);
    Ok(Pipes { near, far: [stdin_far, stdout_far, stderr_far] })
}

/// A session, and what has to be run for it until it ends.
pub struct Started {
    pub session: Session,
    pub drive: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Starts the command through a helper whose control socket is `control`.
pub async fn start(
    id: &str,
    control: std::os::unix::net::UnixStream,
    request: &Request,
    container: OwnedFd,
    stdin: bool,
) -> Result<Started, Error> {
    let fail = |operation| move |source| Error::Io { operation, id: id.to_owned(), source };
    let pipes = if request.tty { None } else { Some(pipes(request.uid, stdin).map_err(fail("exec in"))?) };
    send_request(&control, request, &container, pipes.as_ref()).map_err(fail("exec in"))?;
    drop(container);
    control.set_nonblocking(true).map_err(fail("exec in"))?;
    let control = UnixStream::from_std(control).map_err(fail("exec in"))?;
    let near = pipes.map(|pipes| pipes.near);

    let mut terminal = None;
    let mut bytes = Vec::new();
    loop {
        let (more, mut fds) = receive(&control).await.map_err(fail("exec in"))?;
        if more.is_empty() && !matches!(bytes.first(), Some(&answer::FAILED)) {
            return Err(Error::NotRunning(id.to_owned()));
        }
        let ended = more.is_empty();
        bytes.extend(more);
        terminal = fds.pop().or(terminal);
        if bytes.first() == Some(&answer::TERMINAL) {
            bytes.remove(0);
        }
        match bytes.first() {
            Some(&answer::STARTED) => break,
            Some(&answer::FAILED) if ended => {
                let code = bytes.get(1).map_or(super::process::CODE_NOT_EXECUTABLE, |code| i32::from(*code));
                let text = String::from_utf8_lossy(bytes.get(2..).unwrap_or_default());
                let message = format!(
                    "OCI runtime exec failed: exec failed: unable to start container process: {text}"
                );
                return Err(Error::ExecFailed { code, message });
            }
            _ => {}
        }
    }
    bytes.remove(0);

    let (exit_sender, exit) = oneshot::channel();
    let name = id.to_owned();
    let exit = Box::pin(async move { exit.await.map_err(|_| Error::NotRunning(name)) });
    let session = match (near, terminal) {
        (Some((stdin, stdout, stderr)), _) => Session {
            stdin: stdin.map(|stdin| Box::new(stdin) as _),
            stdout: Some(Box::new(stdout)),
            stderr: Some(Box::new(stderr)),
            resize: None,
            exit,
        },
        (None, Some(terminal)) => {
            let (resize, sizes) = mpsc::channel(RESIZES_MAX);
            let copy = || terminal.try_clone().map_err(fail("exec in"));
            let (input, sizing) = (copy()?, copy()?);
            let session = Session {
                stdin: stdin
                    .then(|| Terminal::new(input).map(|t| Box::new(t) as _))
                    .transpose()
                    .map_err(fail("exec in"))?,
                stdout: Some(Box::new(Terminal::new(terminal).map_err(fail("exec in"))?)),
                stderr: None,
                resize: Some(resize),
                exit,
            };
            let drive = Box::pin(drive(control, bytes, exit_sender, Some((sizing, sizes))));
            return Ok(Started { session, drive });
        }
        (None, None) => return Err(Error::NotRunning(id.to_owned())),
    };
    Ok(Started { session, drive: Box::pin(drive(control, bytes, exit_sender, None)) })
}

fn send_request(
    control: &std::os::unix::net::UnixStream,
    request: &Request,
    container: &OwnedFd,
    pipes: Option<&Pipes>,
) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(request)?;
    bytes.push(b'\n');
    let mut fds = vec![container.as_raw_fd()];
    fds.extend(pipes.iter().flat_map(|pipes| &pipes.far).map(AsRawFd::as_raw_fd));
    let mut sent = wire::send(control.as_fd(), &bytes, &fds)?;
    while sent < bytes.len() {
        sent += wire::send(control.as_fd(), &bytes[sent..], &[])?;
    }
    Ok(())
}

async fn receive(control: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let received = control.async_io(Interest::READABLE, || wire::receive(control.as_fd())).await;
    match received {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok((Vec::new(), Vec::new())),
        other => other,
    }
}

/// Waits for the exit code and sets sizes meanwhile. Ends early, and with it the command, when
/// nobody waits for the code any more.
async fn drive(
    control: UnixStream,
    mut bytes: Vec<u8>,
    mut exit: oneshot::Sender<i32>,
    sizes: Option<(OwnedFd, mpsc::Receiver<(u16, u16)>)>,
) {
    let (terminal, mut sizes) = sizes.unzip();
    loop {
        if let [answer::EXITED, code, ..] = bytes[..] {
            let _ = exit.send(i32::from(code));
            return;
        }
        tokio::select! {
            () = exit.closed() => return,
            received = receive(&control) => match received {
                Ok((more, _)) if !more.is_empty() => bytes.extend(more),
                _ => {
                    let _ = exit.send(CODE_KILLED);
                    return;
                }
            },
            size = async { sizes.as_mut().expect("guarded").recv().await }, if sizes.is_some() => match size {
                Some((columns, rows)) => {
                    if let Some(terminal) = &terminal {
                        let _ = sys::set_window_size(terminal.as_fd(), columns, rows);
                    }
                }
                None => sizes = None,
            },
        }
    }
}

/// The master of a pseudo terminal as a stream.
pub struct Terminal(AsyncFd<std::fs::File>);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(fd.as_raw_fd(), flags)?;
        Ok(Self(sys::pollable(fd.into())?))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            let ended = |error: &io::Error| error.raw_os_error() == Some(libc::EIO);
            match guard.try_io(|file| match io::Read::read(&mut file.get_ref(), room) {
                // The kernel looks for bytes first and for the closing then: what was written in
                // between is seen by a second look.
                Err(error) if ended(&error) => io::Read::read(&mut file.get_ref(), room),
                read => read,
            }) {
                Ok(Ok(read)) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // What a terminal says when its last user has closed it: the end.
                Ok(Err(error)) if ended(&error) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|file| io::Write::write(&mut file.get_ref(), buf)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
