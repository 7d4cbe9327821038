//! HTTP/1.1 as backends are spoken to: bytes of heads and bodies. Pure.
//!
//! In: a request's head; bytes that a backend has sent. Out: the bytes of the head; the answer's head
//! and pieces of its body. Source: RFC 9112.
//! Invariants: a body's length is understood in one way or the answer is refused; heads, sizes of
//! chunks and trailers are bounded.
//! Deliberately absent: what stands in heads (`head`), sockets (`exchange`).

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::{
    HeaderMap, StatusCode,
    body::Frame,
    header::{self, HeaderName, HeaderValue},
};

use super::head;

/// Bytes of an answer's head, or of its trailers.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Headers of an answer.
const HEADERS_MAX: usize = 100;
/// Bytes of the line that a chunk begins with, extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 4096;

/// What is wrong with what a backend says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    #[error("the answer's head is not understood: {0}")]
    Head(#[from] httparse::Error),
    #[error("the answer's head or trailers are too long")]
    TooLong,
    #[error("the answer's length can be understood in several ways")]
    Length,
    #[error("a chunk of the answer is not understood")]
    Chunk,
    #[error("the answer ends before its end")]
    Short,
}

/// How long a message's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// Until the connection ends.
    ToEnd,
}

/// An answer's head.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// Those that are for the client, and the body's length if it is known and there is a body.
    pub headers: HeaderMap,
    /// The protocol that is switched to.
    pub upgrade: Option<HeaderValue>,
    pub framing: Framing,
    /// The connection can be used again after the body.
    pub keeps: bool,
}

/// Ends a request's head with what tells of its body.
pub fn end_head(out: &mut BytesMut, framing: Option<Framing>) {
    match framing {
        Some(Framing::Length(length)) => {
            out.extend_from_slice(format!("content-length: {length}\r\n\r\n").as_bytes());
        }
        Some(Framing::Chunked) => out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
        Some(Framing::ToEnd) | None => out.extend_from_slice(b"\r\n"),
    }
}

/// Takes an answer's head from what was read; `None` when it is not there yet. `bare`: to a request
/// whose answer has no body (HEAD).
///
/// # Errors
/// It is not HTTP/1, too long, or of two lengths.
pub fn answer(read: &mut BytesMut, bare: bool) -> Result<Option<Answer>, WireError> {
    let mut slots = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        read,
        &mut slots,
    )?;
    let httparse::Status::Complete(length) = status else {
        return if read.len() < HEAD_BYTES_MAX { Ok(None) } else { Err(WireError::TooLong) };
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(httparse::Error::Status)?;
    let is_old = parsed.version != Some(1);
    // One copy that all values are parts of.
    let head = Bytes::copy_from_slice(&read[..length]);
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut said = Said::default();
    for found in &*parsed.headers {
        let name = HeaderName::from_bytes(found.name.as_bytes()).map_err(|_| httparse::Error::HeaderName)?;
        if name == header::CONTENT_LENGTH {
            said.length(found.value)?;
            continue;
        }
        if name == header::TRANSFER_ENCODING {
            said.chunked = Some(tokens(found.value).last().is_some_and(|coding| coding == b"chunked"));
            continue;
        }
        if name == header::CONNECTION {
            said.connection(found.value);
            continue;
        }
        let is_upgrade = name == header::UPGRADE;
        if !is_upgrade && head::is_hop_by_hop(name.as_str()) {
            continue;
        }
        let at = found.value.as_ptr().addr() - read.as_ptr().addr();
        let value = HeaderValue::from_maybe_shared(head.slice(at..at + found.value.len()));
        let value = value.map_err(|_| httparse::Error::HeaderValue)?;
        if is_upgrade {
            said.upgrade = Some(value);
        } else {
            headers.append(name, value);
        }
    }
    read.advance(length);
    for name in &said.named {
        headers.remove(name);
    }
    let bodiless = bare || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    // How long the body is: RFC 9112 section 6.3.
    let framing = match (said.chunked, said.length) {
        _ if bodiless => Framing::Length(0),
        (Some(true), _) => Framing::Chunked,
        (None, Some(length)) => Framing::Length(length),
        (Some(false), _) | (None, None) => Framing::ToEnd,
    };
    if let (None, Some(length)) = (said.chunked, said.length) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    // Two lengths could be understood in two ways: nothing is read after the one.
    let is_doubtful = said.chunked.is_some() && said.length.is_some();
    let stays = if is_old { said.keep_alive } else { !said.close };
    let keeps = stays && !is_doubtful && framing != Framing::ToEnd;
    Ok(Some(Answer { status, headers, upgrade: said.upgrade, framing, keeps }))
}

/// The parts of a header's value between commas, in lower case.
fn tokens(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    value.split(|byte| *byte == b',').map(|token| token.trim_ascii().to_ascii_lowercase())
}

/// What a head says of its message's body and of its connection.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    /// There are codings, and whether the last of them is this one.
    chunked: Option<bool>,
    close: bool,
    keep_alive: bool,
    /// Headers that mean the connection only.
    named: Vec<HeaderName>,
    upgrade: Option<HeaderValue>,
}

impl Said {
    /// A length may be said several times, but only one.
    fn length(&mut self, value: &[u8]) -> Result<(), WireError> {
        for text in value.split(|byte| *byte == b',') {
            let text = std::str::from_utf8(text.trim_ascii()).map_err(|_| WireError::Length)?;
            if !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(WireError::Length);
            }
            let length = text.parse().map_err(|_| WireError::Length)?;
            if self.length.is_some_and(|before| before != length) {
                return Err(WireError::Length);
            }
            self.length = Some(length);
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for token in tokens(value) {
            match &*token {
                b"close" => self.close = true,
                b"keep-alive" => self.keep_alive = true,
                other => self.named.extend(HeaderName::from_bytes(other)),
            }
        }
    }
}

/// Where in an answer's body its reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    Length(u64),
    ToEnd,
    /// At the line before a chunk.
    Size,
    /// Within a chunk, with so many bytes to come.
    Data(u64),
    /// At the end of a chunk's line.
    Line,
    Trailers,
    Done,
}

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Size,
            Framing::ToEnd => Self::ToEnd,
        }
    }

    /// The next piece in what was read; `None` when the body is done or more has to be read.
    ///
    /// # Errors
    /// Chunks or trailers that are none.
    pub fn next(&mut self, read: &mut BytesMut) -> Result<Option<Frame<Bytes>>, WireError> {
        loop {
            match *self {
                Self::Done => return Ok(None),
                Self::ToEnd => return Ok(piece(read, u64::MAX).map(|(piece, _)| Frame::data(piece))),
                Self::Length(left) => {
                    let Some((piece, left)) = piece(read, left) else { return Ok(None) };
                    *self = if left == 0 { Self::Done } else { Self::Length(left) };
                    return Ok(Some(Frame::data(piece)));
                }
                Self::Data(left) => {
                    let Some((piece, left)) = piece(read, left) else { return Ok(None) };
                    *self = if left == 0 { Self::Line } else { Self::Data(left) };
                    return Ok(Some(Frame::data(piece)));
                }
                Self::Line => match **read {
                    [b'\r', b'\n', ..] => {
                        read.advance(2);
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(WireError::Chunk),
                },
                Self::Size => match httparse::parse_chunk_size(read).map_err(|_| WireError::Chunk)? {
                    httparse::Status::Complete((length, size)) => {
                        read.advance(length);
                        *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                    }
                    httparse::Status::Partial if read.len() > CHUNK_LINE_BYTES_MAX => {
                        return Err(WireError::Chunk);
                    }
                    httparse::Status::Partial => return Ok(None),
                },
                Self::Trailers => {
                    let Some(trailers) = trailers(read)? else { return Ok(None) };
                    *self = Self::Done;
                    return Ok((!trailers.is_empty()).then(|| Frame::trailers(trailers)));
                }
            }
        }
    }

    pub fn is_done(self) -> bool {
        self == Self::Done
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// The body has not.
    pub fn end(&mut self) -> Result<(), WireError> {
        match *self {
            Self::Done | Self::ToEnd => {
                *self = Self::Done;
                Ok(())
            }
            _ => Err(WireError::Short),
        }
    }

    /// Bytes that are still to come, where that is known.
    pub fn left(self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(left),
            Self::Done => Some(0),
            _ => None,
        }
    }
}

/// So much of what was read as belongs to a piece of this length, and what is to come of it.
fn piece(read: &mut BytesMut, left: u64) -> Option<(Bytes, u64)> {
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
    (length > 0).then(|| (read.split_to(length).freeze(), left - length as u64))
}

fn trailers(read: &mut BytesMut) -> Result<Option<HeaderMap>, WireError> {
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let (length, trailers) = match httparse::parse_headers(read, &mut slots)? {
        httparse::Status::Complete((length, found)) => {
            let mut trailers = HeaderMap::with_capacity(found.len());
            for found in found {
                let name = HeaderName::from_bytes(found.name.as_bytes());
                let value = HeaderValue::from_bytes(found.value).map_err(|_| httparse::Error::HeaderValue)?;
                trailers.append(name.map_err(|_| httparse::Error::HeaderName)?, value);
            }
            (length, trailers)
        }
        httparse::Status::Partial if read.len() < HEAD_BYTES_MAX => return Ok(None),
        httparse::Status::Partial => return Err(WireError::TooLong),
    };
    read.advance(length);
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> BytesMut {
        BytesMut::from(text)
    }

    #[test]
    fn lengths_are_understood_in_one_way() {
        const LEFT: Framing = Framing::ToEnd;
        for (head, bare, want) in [
            ("200 OK\r\ncontent-length: 5", false, Some((Framing::Length(5), true))),
            ("200 OK\r\ncontent-length: 5", true, Some((Framing::Length(0), true))),
            ("200 OK\r\ncontent-length: 5\r\ncontent-length: 5", false, Some((Framing::Length(5), true))),
            ("200 OK\r\ncontent-length: 5, 5", false, Some((Framing::Length(5), true))),
            ("200 OK\r\ncontent-length: 5\r\ncontent-length: 6", false, None),
            ("200 OK\r\ncontent-length: +5", false, None),
            ("200 OK\r\ncontent-length: -5", false, None),
            ("200 OK\r\ncontent-length:", false, None),
            ("200 OK\r\ncontent-length: 99999999999999999999", false, None),
            ("200 OK\r\ntransfer-encoding: chunked", false, Some((Framing::Chunked, true))),
            ("200 OK\r\ntransfer-encoding: gzip, Chunked", false, Some((Framing::Chunked, true))),
            ("200 OK\r\ntransfer-encoding: gzip", false, Some((LEFT, false))),
            // Two lengths: the chunks count (RFC 9112 section 6.3), and nothing follows.
            (
                "200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5",
                false,
                Some((Framing::Chunked, false)),
            ),
            ("200 OK\r\nx: y", false, Some((LEFT, false))),
            ("204 No Content\r\nx: y", false, Some((Framing::Length(0), true))),
            ("304 Not Modified\r\ncontent-length: 5", false, Some((Framing::Length(0), true))),
            ("200 OK\r\ncontent-length: 5\r\nconnection: x, Close", false, Some((Framing::Length(5), false))),
            ("200 OK\r\nx: a\r\n folded", false, None),
            ("999\r\nx: y", false, Some((LEFT, false))),
            ("20 OK\r\nx: y", false, None),
            ("200 OK\r\nx y: z", false, None),
        ] {
            let text = format!("HTTP/1.1 {head}\r\n\r\nrest");
            let mut bytes = read(text.as_bytes());
            let got = answer(&mut bytes, bare).ok().map(|answer| {
                let answer = answer.expect("all of it");
                assert_eq!(&*bytes, b"rest");
                assert!(answer.headers.get_all(header::CONTENT_LENGTH).iter().count() <= 1);
                (answer.framing, answer.keeps)
            });
            assert_eq!(got, want, "{head}");
        }
        let old = |head: &str| answer(&mut read(format!("HTTP/1.0 {head}\r\n\r\n").as_bytes()), false);
        assert!(!old("200 OK\r\ncontent-length: 0").unwrap().unwrap().keeps);
        assert!(old("200 OK\r\ncontent-length: 0\r\nconnection: Keep-Alive").unwrap().unwrap().keeps);
    }

    #[test]
    fn heads_are_bounded_and_may_come_in_parts() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        for length in 0..whole.len() {
            assert!(answer(&mut read(&whole[..length]), false).unwrap().is_none(), "{length}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(answer(&mut read(long.as_bytes()), false).unwrap_err(), WireError::TooLong);
        let many: Vec<String> = (0..=HEADERS_MAX).map(|n| format!("x-{n}: y\r\n")).collect();
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", many.concat());
        assert!(answer(&mut read(many.as_bytes()), false).is_err());
    }

    #[test]
    fn what_is_for_the_neighbour_stays_with_it() {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Secret\r\nUpgrade: echo\r\n\
                    Keep-Alive: 5\r\nX-Secret: 1\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n";
        let answer = answer(&mut read(head.as_bytes()), false).unwrap().unwrap();
        let headers: Vec<_> = answer.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(headers, [("set-cookie", "a"), ("set-cookie", "b")]);
        assert_eq!(answer.upgrade.unwrap(), "echo");
    }

    #[test]
    fn heads_end_with_what_tells_of_the_body() {
        for (framing, want) in [
            (None, "\r\n"),
            (Some(Framing::Length(7)), "content-length: 7\r\n\r\n"),
            (Some(Framing::Chunked), "transfer-encoding: chunked\r\n\r\n"),
        ] {
            let mut out = BytesMut::new();
            end_head(&mut out, framing);
            assert_eq!(out, want);
        }
    }

    /// All of a body that comes in parts of these lengths, its trailers, and whether it is done.
    fn body(framing: Framing, bytes: &[u8], part: usize) -> Result<(Vec<u8>, HeaderMap, bool), WireError> {
        let (mut decoder, mut read) = (Decoder::new(framing), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        for part in bytes.chunks(part) {
            read.extend_from_slice(part);
            while let Some(frame) = decoder.next(&mut read)? {
                match frame.into_data() {
                    Ok(piece) => data.extend_from_slice(&piece),
                    Err(frame) => trailers = frame.into_trailers().unwrap(),
                }
            }
        }
        Ok((data, trailers, decoder.is_done()))
    }

    #[test]
    fn chunks_are_strict() {
        let whole = b"3;a=b\r\nabc\r\n1\r\nd\r\n0\r\nx-sum: 7\r\n\r\n";
        for part in 1..whole.len() {
            let (data, trailers, done) = body(Framing::Chunked, whole, part).unwrap();
            assert_eq!((&*data, done), (&b"abcd"[..], true), "{part}");
            assert_eq!(trailers["x-sum"], "7");
        }
        assert_eq!(body(Framing::Chunked, b"0\r\n\r\n", 9).unwrap(), (vec![], HeaderMap::new(), true));
        for wrong in [
            &b"-1\r\n"[..],
            b"x\r\n",
            b"5x\r\n",
            b"FFFFFFFFFFFFFFFFFF\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"0\r\nx y: z\r\n\r\n",
        ] {
            assert!(body(Framing::Chunked, wrong, 99).is_err(), "{wrong:?}");
        }
        let endless = [b"1;", &[b'x'; CHUNK_LINE_BYTES_MAX][..]].concat();
        assert!(body(Framing::Chunked, &endless, 99).is_err());
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        assert_eq!(body(Framing::Length(3), b"abc", 2).unwrap(), (b"abc".to_vec(), HeaderMap::new(), true));
        assert!(!body(Framing::Length(4), b"abc", 2).unwrap().2);
        let mut short = Decoder::new(Framing::Length(4));
        assert_eq!(short.end(), Err(WireError::Short));
        let mut endless = Decoder::new(Framing::ToEnd);
        assert_eq!((endless.end(), endless.is_done()), (Ok(()), true));
        assert_eq!(Decoder::new(Framing::Chunked).end(), Err(WireError::Short));
    }

    proptest! {
        #[test]
        fn chunks_give_what_was_put_in(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8), part in 1..99usize,
        ) {
            let mut bytes = Vec::new();
            for piece in &pieces {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            let (data, _, done) = body(Framing::Chunked, &bytes, part).unwrap();
            prop_assert_eq!(data, pieces.concat());
            prop_assert!(done);
        }

        #[test]
        fn nothing_that_comes_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..200), part in 1..50usize) {
            let _ = answer(&mut BytesMut::from(&*bytes), false);
            for framing in [Framing::Chunked, Framing::Length(50), Framing::ToEnd] {
                let _ = body(framing, &bytes, part);
            }
        }
    }
}
