//! News of the node's own IPv4 addresses, so that a change of one is followed at once.
//!
//! In: the kernel's multicast group `RTMGRP_IPV4_IFADDR` (`linux/rtnetlink.h`). Out: that something
//! has changed, not what: whoever hears it looks for himself.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use tokio::io::unix::AsyncFd;

use super::sys;

const ADDRESSES: u32 = 0x10;
/// One message (bytes); what does not fit is cut, and not read anyway.
const MESSAGE_BYTES: usize = 4096;

/// A socket that hears of address changes in the network namespace it was opened in.
#[derive(Debug)]
pub struct AddressWatch(AsyncFd<OwnedFd>);

impl AddressWatch {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refuses the socket. Panics outside of a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, ADDRESSES))?;
        Ok(Self(sys::readable(fd)?))
    }

    /// Returns when addresses have changed since the last call; at most once for what is there.
    pub async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            let mut buffer = [0; MESSAGE_BYTES];
            let mut any = false;
            loop {
                match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    // The second: the kernel has dropped news, so there were some.
                    Ok(_) | Err(Errno::ENOBUFS) => any = true,
                    Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
            ready.clear_ready();
            if any {
                return;
            }
        }
    }
}
