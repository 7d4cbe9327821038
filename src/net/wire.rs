//! Netlink messages as bytes: a writer for batches and a reader of messages and attributes.
//!
//! In: message kinds, fixed headers, attributes. Out: the bytes of RFC 3549 framing (4-byte
//! alignment, native byte order), and borrowed views of received ones.
//! Deliberately absent: sockets, and the meaning of any message.

use std::borrow::Cow;

/// Bytes of `struct nlmsghdr`.
pub const HEADER_BYTES: usize = 16;
/// Bytes of `struct nlattr`.
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The flag of an attribute that holds attributes.
const NESTED: u16 = 1 << 15;
/// The bits of an attribute's kind.
const KIND_MASK: u16 = 0x3fff;

/// Rounds up to netlink's alignment.
const fn aligned(len: usize) -> usize {
    (len + 3) & !3
}

/// Where one message of a batch begins, and what it is for.
#[derive(Debug, Clone)]
pub struct Entry {
    pub offset: usize,
    /// The operation, for errors: `create link smp0123`.
    pub what: Cow<'static, str>,
    /// Error numbers that mean "already so".
    pub tolerated: &'static [i32],
}

/// Messages that go out in one `send`. A message's sequence number is its index.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub entries: Vec<Entry>,
}

impl Batch {
    /// No messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a request; `body` writes the fixed header of its family and the attributes.
    pub fn push(
        &mut self,
        what: impl Into<Cow<'static, str>>,
        kind: u16,
        flags: i32,
        tolerated: &'static [i32],
        body: impl FnOnce(&mut Writer<'_>),
    ) {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        body(&mut Writer { bytes: &mut self.bytes });
        let length = (self.bytes.len() - offset) as u32;
        let header = &mut self.bytes[offset..offset + HEADER_BYTES];
        header[0..4].copy_from_slice(&length.to_ne_bytes());
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        header[8..12].copy_from_slice(&(self.entries.len() as u32).to_ne_bytes());
        self.entries.push(Entry { offset, what: what.into(), tolerated });
    }

    /// Sets flags on the last message.
    pub fn flag_last(&mut self, flags: i32) {
        if let Some(entry) = self.entries.last() {
            add_flags(&mut self.bytes[entry.offset..], flags);
        }
    }
}

/// Sets flags in the netlink header that `message` begins with.
pub fn add_flags(message: &mut [u8], flags: i32) {
    let old = u16::from_ne_bytes([message[6], message[7]]);
    message[6..8].copy_from_slice(&(old | flags as u16).to_ne_bytes());
}

/// Writes one message's body. Every method leaves the buffer aligned.
pub struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Writer<'_> {
    /// The fixed header of the message's family.
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// An attribute of raw bytes.
    pub fn raw(&mut self, kind: u16, value: &[u8]) {
        let length = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.fixed(value);
    }

    pub fn u8(&mut self, kind: u16, value: u8) {
        self.raw(kind, &[value]);
    }

    pub fn u32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order, as nfnetlink has all of them.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// A 16-bit number in network byte order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// A zero-terminated string.
    pub fn text(&mut self, kind: u16, value: &str) {
        let length = (ATTRIBUTE_HEADER_BYTES + value.len() + 1) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.fixed(&[0]);
    }

    /// An attribute that holds what `body` writes.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer<'_>)) {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(&mut Writer { bytes: self.bytes });
        let length = (self.bytes.len() - offset) as u16;
        self.bytes[offset..offset + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a fixed header of `fixed` bytes.
    pub fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes(self.body.get(aligned(fixed)..).unwrap_or(&[]))
    }
}

/// The messages of a datagram; ends at the first malformed one.
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let bytes = self.0;
        let length = ne_u32(bytes, 0)? as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            return None;
        }
        self.0 = bytes.get(aligned(length)..).unwrap_or(&[]);
        Some(Message {
            kind: ne_u16(bytes, 4)?,
            flags: ne_u16(bytes, 6)?,
            sequence: ne_u32(bytes, 8)?,
            body: &bytes[HEADER_BYTES..length],
        })
    }
}

/// The attributes of a message or of a nest; ends at the first malformed one.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of this kind.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// The attributes inside the first attribute of this kind; none if there is no such.
    pub fn nested(&self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or(&[]))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let bytes = self.0;
        let length = usize::from(ne_u16(bytes, 0)?);
        if length < ATTRIBUTE_HEADER_BYTES || length > bytes.len() {
            return None;
        }
        self.0 = bytes.get(aligned(length)..).unwrap_or(&[]);
        Some((ne_u16(bytes, 2)? & KIND_MASK, &bytes[ATTRIBUTE_HEADER_BYTES..length]))
    }
}

/// A 16-bit number in native order at `at`.
pub fn ne_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A 32-bit number in native order at `at`.
pub fn ne_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A 32-bit number in network order.
pub fn be_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// A 16-bit number in network order.
pub fn be_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

/// A string without its terminating zero.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut batch = Batch::new();
        batch.push("first", 7, 1, &[], |w| {
            w.fixed(&[1, 2, 3, 4]);
            w.text(3, "eth0");
            w.nest(4, |w| w.be16(1, 0x0102));
        });
        batch.push("second", 8, 1, &[], |w| w.u8(1, 9));
        batch.flag_last(4);
        let messages: Vec<_> = Messages(&batch.bytes).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].kind, messages[0].flags, messages[0].sequence), (7, 1, 0));
        let attributes = messages[0].attributes(4);
        assert_eq!(text(attributes.get(3).unwrap()), "eth0");
        assert_eq!(attributes.nested(4).get(1).and_then(be_u16), Some(0x0102));
        assert_eq!((messages[1].flags, messages[1].sequence), (5, 1));
        assert_eq!(batch.entries[1].offset % 4, 0);
    }

    #[test]
    fn malformed_input_ends_the_reading() {
        assert_eq!(Messages(&[5, 0, 0, 0, 1]).count(), 0);
        assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes(&[200, 0, 1, 0, 9]).count(), 0);
    }
}
