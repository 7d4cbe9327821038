//! Descriptors over a unix socket, and the one way a helper process is started.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    os::unix::{ffi::OsStrExt, net::UnixStream, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg},
};

use super::sys;

/// The name helpers go by in a list of processes.
pub const HELPER_NAME: &str = "sampan-shim";
/// Descriptors in one message.
const DESCRIPTORS_MAX: usize = 8;
/// Bytes received at once: a handover, of which a monitor keeps as little as it can.
const CHUNK_BYTES: usize = 1024;

/// Sends `bytes` (not none) with descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// What has come: bytes (none at the end of the stream) and descriptors.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; CHUNK_BYTES];
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut fds = Vec::new();
    let received = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(raw.into_iter().map(sys::own));
            }
        }
        message.bytes
    };
    bytes.truncate(received);
    Ok((bytes, fds))
}

/// Starts a helper (this binary in a hidden mode) whose standard input is the far end of a socket. Of the
/// environment it gets only what tests say.
pub fn spawn_helper(exe: &Path, mode: &str, args: &[&Path]) -> io::Result<(Child, UnixStream)> {
    let (near, far) = UnixStream::pair()?;
    let for_tests = |(name, _): &(OsString, _)| name.as_bytes().starts_with(b"SAMPAN_TEST_");
    let child = Command::new(exe)
        .arg0(HELPER_NAME)
        .arg(mode)
        .args(args)
        .env_clear()
        .envs(std::env::vars_os().filter(for_tests))
        .stdin(OwnedFd::from(far))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((child, near))
}
