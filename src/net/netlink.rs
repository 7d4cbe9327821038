//! A netlink socket: batches with acknowledgement, atomic nf_tables transactions, dumps.
//!
//! In: [`Batch`]es. Out: success, or which operation failed with the kernel's own words (extended
//! acknowledgement). Invariants: calls block, briefly, and never forever; a socket stays in the
//! network namespace it was opened in.
//! Deliberately absent: the meaning of any message.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

use super::{
    Error, sys,
    wire::{Batch, HEADER_BYTES, Message, Messages, add_flags, ne_u32, text},
};

/// How long an answer of the kernel may take (seconds).
const ANSWER_SECONDS_MAX: i64 = 10;
/// Room for answers (bytes).
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Room for news that nobody has asked for yet (bytes).
const NEWS_BUFFER_BYTES: usize = 256 << 10;
/// One `recv` (bytes); the kernel never sends longer datagrams in a dump.
const DATAGRAM_BYTES: usize = 32 << 10;
/// Acknowledged messages in one `send`.
const ACKNOWLEDGED_MAX: usize = 128;
/// How often a dump that changed under way is repeated.
const DUMP_ATTEMPTS_MAX: usize = 8;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;
const NETLINK_CAP_ACK: i32 = 10;
const NETLINK_EXT_ACK: i32 = 11;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// Which kernel part a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nf_tables and connection tracking.
    Netfilter,
}

/// A refused message.
#[derive(Debug)]
pub struct Refusal {
    pub operation: String,
    pub errno: Errno,
    /// The kernel's explanation; often empty.
    pub detail: String,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let os = io::Error::from_raw_os_error(refusal.errno as i32);
        let source = match refusal.detail.as_str() {
            "" => os,
            detail => io::Error::new(os.kind(), format!("{detail} ({os})")),
        };
        Error::Kernel { operation: refusal.operation, source }
    }
}

/// A bound netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    send_buffer_bytes: usize,
}

fn failed(operation: &str) -> impl FnOnce(Errno) -> Refusal {
    let operation = operation.to_owned();
    move |errno| Refusal { operation, errno, detail: String::new() }
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(family: Family) -> Result<Self, Refusal> {
        Self::open_with(family, 0, RECEIVE_BUFFER_BYTES)
    }

    /// Opens a route socket that hears what the kernel says to these multicast groups (a bit each).
    pub fn hearing(groups: u32) -> Result<Self, Refusal> {
        Self::open_with(Family::Route, groups, NEWS_BUFFER_BYTES)
    }

    fn open_with(family: Family, groups: u32, room: usize) -> Result<Self, Refusal> {
        let (protocol, name) = match family {
            Family::Route => (SockProtocol::NetlinkRoute, "open a route netlink socket"),
            Family::Netfilter => (SockProtocol::NetlinkNetFilter, "open a netfilter netlink socket"),
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(failed(name))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed(name))?;
        for option in [NETLINK_EXT_ACK, NETLINK_CAP_ACK] {
            sys::set_netlink_option(&fd, option, true)
                .map_err(|error| failed(name)(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
        }
        setsockopt(&fd, sockopt::RcvBufForce, &room).map_err(failed(name))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS_MAX))
            .map_err(failed(name))?;
        Ok(Self { fd, buffer: vec![0; DATAGRAM_BYTES], send_buffer_bytes: 0 })
    }

    /// Hands everything heard since the last call to `each`; whether nothing was lost.
    pub fn heard(&mut self, mut each: impl FnMut(Message<'_>)) -> bool {
        let mut all = true;
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(length) => Messages(&self.buffer[..length]).for_each(&mut each),
                Err(Errno::EAGAIN) => return all,
                Err(Errno::ENOBUFS) => all = false,
                Err(_) => return false,
            }
        }
    }

    /// Makes room for `bytes` in one `send` and sends them.
    fn send(&mut self, operation: &str, bytes: &[u8]) -> Result<(), Refusal> {
        // The kernel counts its bookkeeping too; twice is what SO_SNDBUF itself reserves.
        let needed = (bytes.len() * 2).max(DATAGRAM_BYTES * 4);
        if self.send_buffer_bytes < needed {
            setsockopt(&self.fd, sockopt::SndBufForce, &needed).map_err(failed(operation))?;
            self.send_buffer_bytes = needed;
        }
        let sent = send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map_err(failed(operation))?;
        if sent == bytes.len() { Ok(()) } else { Err(failed(operation)(Errno::EMSGSIZE)) }
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<usize, Errno> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Throws away what an earlier, failed exchange has left in the socket.
    fn drain(&mut self) {
        while self.receive(MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    /// Sends every message, each acknowledged on its own. All are tried; the first error that its
    /// message does not tolerate is returned.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), Refusal> {
        let mut first = Ok(());
        for (index, entries) in batch.entries.chunks(ACKNOWLEDGED_MAX).enumerate() {
            let from = entries[0].offset;
            let to = batch
                .entries
                .get((index + 1) * ACKNOWLEDGED_MAX)
                .map_or(batch.bytes.len(), |entry| entry.offset);
            let mut bytes = batch.bytes[from..to].to_vec();
            for entry in entries {
                add_flags(&mut bytes[entry.offset - from..], libc::NLM_F_ACK);
            }
            self.drain();
            self.send(&entries[0].what, &bytes)?;
            let base = index * ACKNOWLEDGED_MAX;
            let mut open = entries.len();
            while open > 0 {
                let length = self.receive(MsgFlags::empty()).map_err(failed(&entries[0].what))?;
                for message in Messages(&self.buffer[..length]) {
                    let Some(entry) = (message.sequence as usize)
                        .checked_sub(base)
                        .and_then(|at| entries.get(at))
                        .filter(|_| i32::from(message.kind) == libc::NLMSG_ERROR)
                    else {
                        continue;
                    };
                    open -= 1;
                    if let Err((errno, detail)) = verdict(&message)
                        && !entry.tolerated.contains(&(errno as i32))
                        && first.is_ok()
                    {
                        first = Err(Refusal { operation: entry.what.to_string(), errno, detail });
                    }
                }
            }
        }
        first
    }

    /// Sends an nfnetlink transaction: all messages take effect, or none. The batch's first and last
    /// messages are the transaction's begin and end; the last but one asks for acknowledgement.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Refusal> {
        let Some(first) = batch.entries.first() else { return Ok(()) };
        self.drain();
        self.send(&first.what, &batch.bytes)?;
        // The kernel has worked the transaction off when `send` returns: all answers are here.
        let mut acknowledged = false;
        loop {
            let length = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(failed(&first.what)(errno)),
            };
            for message in Messages(&self.buffer[..length]) {
                if i32::from(message.kind) != libc::NLMSG_ERROR {
                    continue;
                }
                if let Err((errno, detail)) = verdict(&message) {
                    let entry = batch.entries.get(message.sequence as usize).unwrap_or(first);
                    let operation = entry.what.to_string();
                    self.drain();
                    return Err(Refusal { operation, errno, detail });
                }
                acknowledged = true;
            }
        }
        if acknowledged { Ok(()) } else { Err(failed(&first.what)(Errno::EPROTO)) }
    }

    /// Sends one request and hands every answer to `each`, for dumps and for single answers.
    pub fn query(
        &mut self,
        request: &Batch,
        dump: bool,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), Refusal> {
        let Some(entry) = request.entries.first() else { return Ok(()) };
        let mut bytes = request.bytes.clone();
        add_flags(&mut bytes, if dump { libc::NLM_F_DUMP } else { 0 });
        self.drain();
        self.send(&entry.what, &bytes)?;
        loop {
            let length = self.receive(MsgFlags::empty()).map_err(failed(&entry.what))?;
            for message in Messages(&self.buffer[..length]) {
                if i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0 {
                    self.drain();
                    return Err(failed(&entry.what)(Errno::EINTR));
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        return match verdict(&message) {
                            Ok(()) => Ok(()),
                            Err((errno, _)) if entry.tolerated.contains(&(errno as i32)) => Ok(()),
                            Err((errno, detail)) => {
                                Err(Refusal { operation: entry.what.to_string(), errno, detail })
                            }
                        };
                    }
                    _ => each(message),
                }
                if !dump {
                    return Ok(());
                }
            }
        }
    }

    /// A dump collected with `map`, repeated while the kernel says that it changed under way.
    pub fn dump<T>(
        &mut self,
        request: &Batch,
        map: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        let mut attempt = 1;
        loop {
            let mut found = Vec::new();
            match self.query(request, true, |message| found.extend(map(message))) {
                Err(refusal) if refusal.errno == Errno::EINTR && attempt < DUMP_ATTEMPTS_MAX => attempt += 1,
                Err(refusal) => return Err(refusal),
                Ok(()) => return Ok(found),
            }
        }
    }
}

/// What an `NLMSG_ERROR` says.
fn verdict(message: &Message<'_>) -> Result<(), (Errno, String)> {
    let code = ne_u32(message.body, 0).unwrap_or(0) as i32;
    if code == 0 {
        return Ok(());
    }
    let detail = if message.flags & NLM_F_ACK_TLVS == 0 {
        String::new()
    } else {
        // Behind the code comes the refused header, and the whole message where it was not capped.
        let echoed = if message.flags & NLM_F_CAPPED == 0 {
            ne_u32(message.body, 4).unwrap_or(0) as usize
        } else {
            HEADER_BYTES
        };
        message.attributes(4 + echoed).get(ERROR_TEXT).map(text).unwrap_or_default()
    };
    Err((Errno::from_raw(-code), detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_in_the_error() {
        let mut body = (-17i32).to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; HEADER_BYTES]);
        body.extend_from_slice(&[8, 0, 1, 0]);
        body.extend_from_slice(b"dup\0");
        let message = Message { kind: 2, flags: NLM_F_CAPPED | NLM_F_ACK_TLVS, sequence: 0, body: &body };
        let (errno, detail) = verdict(&message).unwrap_err();
        let error = Error::from(Refusal { operation: "add a route".to_owned(), errno, detail });
        let Error::Kernel { operation, source } = error else { panic!("a kernel error") };
        assert_eq!(operation, "add a route");
        assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
        assert!(source.to_string().starts_with("dup ("), "{source}");
    }
}
