//! As much HTTP/1.1 as the demo needs (RFC 9112): small requests with a known length.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read, Write},
};

/// Largest head of a message (bytes).
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Largest body of a request (bytes).
const BODY_BYTES_MAX: u64 = 1 << 20;

/// A message: its start line, header fields (names in lower case) and, for requests, its body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub start: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Reads start line and fields; `None` when the peer closed.
    pub fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = stream.take(HEAD_BYTES_MAX);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut message = Self { start: line.trim_end().to_owned(), ..Self::default() };
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Err(invalid("the head of the message is too long or cut off"));
            }
            let text = line.trim_end();
            if text.is_empty() {
                return Ok(Some(message));
            }
            let (name, value) = text.split_once(':').ok_or_else(|| invalid("malformed header field"))?;
            message.fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads a whole request.
    pub fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(mut message) = Self::read_head(stream)? else { return Ok(None) };
        if message.field("transfer-encoding").is_some() {
            return Err(invalid("requests need a Content-Length"));
        }
        let length: u64 =
            message.field("content-length").map_or(Ok(0), str::parse).map_err(|_| invalid("bad length"))?;
        if length > BODY_BYTES_MAX {
            return Err(invalid("the request's body is too large"));
        }
        stream.take(length).read_to_end(&mut message.body)?;
        Ok(Some(message))
    }

    /// Copies the body of a response, of known length, in chunks or until the peer closes.
    pub fn copy_body(&self, stream: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
        if self.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return copy_chunks(stream, to);
        }
        match self.field("content-length").map(str::parse::<u64>) {
            Some(Ok(length)) => {
                if io::copy(&mut stream.take(length), to)? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Some(Err(_)) => return Err(invalid("bad length")),
            None => drop(io::copy(stream, to)?),
        }
        Ok(())
    }
}

fn copy_chunks(stream: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
    loop {
        let mut line = String::new();
        stream.take(HEAD_BYTES_MAX).read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| invalid("malformed chunk"))?;
        if size == 0 {
            return Ok(());
        }
        if io::copy(&mut stream.take(size), to)? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.take(HEAD_BYTES_MAX).read_line(&mut line)?;
    }
}

/// The path and the decoded query of a request target.
pub fn target(target: &str) -> (&str, BTreeMap<String, String>) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    });
    (path, query.collect())
}

/// Undoes percent encoding; what is malformed stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_targets_are_read() {
        let mut bytes: &[u8] =
            b"POST /a?x=1&y=%41%zz+b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET";
        let message = Message::read_request(&mut bytes).unwrap().unwrap();
        assert_eq!(
            (message.field("host"), message.body.as_slice(), bytes),
            (Some("h"), b"abc".as_slice(), &b"GET"[..])
        );
        let (path, query) = target("/a?x=1&y=%41%zz+b");
        assert_eq!((path, query["x"].as_str(), query["y"].as_str()), ("/a", "1", "A%zz b"));
        assert!(
            Message::read_request(&mut &b"GET / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n"[..]).is_err()
        );
        assert!(Message::read_request(&mut &b""[..]).unwrap().is_none());
    }

    #[test]
    fn bodies_come_in_three_ways() {
        for (field, bytes, want) in [
            (Some(("transfer-encoding", "chunked")), "3\r\nabc\r\n1;x\r\nd\r\n0\r\n\r\n", "abcd"),
            (Some(("content-length", "2")), "abcd", "ab"),
            (None, "abcd", "abcd"),
        ] {
            let fields = field.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
            let mut out = Vec::new();
            Message { fields, ..Message::default() }.copy_body(&mut bytes.as_bytes(), &mut out).unwrap();
            assert_eq!(out, want.as_bytes());
        }
    }
}
