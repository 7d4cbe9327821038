//! The little of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00, version 3 framing) that port forwarding
//! needs: streams with headers, data, ends and resets, pings.
//!
//! Pure: bytes in, frames out, and back. Bounded: frames and header blocks have limits, and a
//! malformed byte ends the connection. Absent: flow control (client-go's side has none), pushes,
//! settings.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Bytes of one frame.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Bytes of an unpacked header block, and headers in it.
const HEADER_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;
const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// `RST_STREAM` because the stream was refused.
pub const REFUSED_STREAM: u32 = 3;

/// The names of the header dictionary (section 2.6.10.1), each with its length before it …
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// … and what follows them.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.extend((word.len() as u32).to_be_bytes());
        dictionary.extend(word.as_bytes());
    }
    dictionary.extend(TAIL.as_bytes());
    dictionary
}

/// A frame that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Open {
        stream: u32,
        headers: Vec<(String, String)>,
        fin: bool,
    },
    Data {
        stream: u32,
        bytes: Vec<u8>,
        fin: bool,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway,
    /// Of a kind that changes nothing.
    Other,
}

/// The peer does not speak SPDY/3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed SPDY frame: {0}")]
pub struct SpdyError(&'static str);

/// Reads frames from bytes as they come.
pub struct Decoder {
    buffer: Vec<u8>,
    unpack: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: Vec::new(), unpack: Decompress::new(true) }
    }
}

fn number(bytes: &[u8], at: usize) -> Result<u32, SpdyError> {
    let four = bytes.get(at..at + 4).ok_or(SpdyError("too short"))?;
    Ok(u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        if self.buffer.len() < 8 {
            return Ok(None);
        }
        let (first, second) = (number(&self.buffer, 0)?, number(&self.buffer, 4)?);
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if length > FRAME_BYTES_MAX {
            return Err(SpdyError("too long"));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        let body: Vec<u8> = self.buffer.drain(..8 + length).skip(8).collect();
        let fin = flags & FLAG_FIN != 0;
        if first >> 31 == 0 {
            return Ok(Some(Frame::Data { stream: first, bytes: body, fin }));
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(SpdyError("not version 3"));
        }
        let stream = || number(&body, 0).map(|s| s & 0x7fff_ffff);
        Ok(Some(match first as u16 {
            SYN_STREAM => {
                let packed = body.get(10..).ok_or(SpdyError("too short"))?;
                let headers = self.headers(packed)?;
                Frame::Open { stream: stream()?, headers, fin }
            }
            RST_STREAM => Frame::Reset { stream: stream()?, status: number(&body, 4)? },
            PING => Frame::Ping(number(&body, 0)?),
            GO_AWAY => Frame::GoAway,
            _ => Frame::Other,
        }))
    }

    /// A header block; all blocks of a direction are one zlib stream.
    fn headers(&mut self, packed: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
        let broken = SpdyError("header block");
        let start = self.unpack.total_in();
        let mut plain: Vec<u8> = Vec::with_capacity(1024);
        loop {
            let used = (self.unpack.total_in() - start) as usize;
            if used >= packed.len() && plain.len() < plain.capacity() {
                break;
            }
            if plain.len() >= HEADER_BYTES_MAX {
                return Err(broken);
            }
            plain.reserve(1024);
            match self.unpack.decompress_vec(&packed[used..], &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => break,
                Ok(Status::BufError) if used >= packed.len() => break,
                Ok(Status::Ok) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.unpack.set_dictionary(&dictionary()).map_err(|_| broken)?;
                }
                Ok(Status::BufError) | Err(_) => return Err(broken),
            }
        }
        let count = number(&plain, 0)? as usize;
        if count > HEADERS_MAX {
            return Err(broken);
        }
        let mut at = 4;
        let mut text = || -> Result<String, SpdyError> {
            let length = number(&plain, at)? as usize;
            let bytes = plain.get(at + 4..(at + 4).saturating_add(length)).ok_or(broken)?;
            at += 4 + length;
            String::from_utf8(bytes.to_vec()).map_err(|_| broken)
        };
        (0..count).map(|_| Ok((text()?.to_ascii_lowercase(), text()?))).collect()
    }
}

/// Writes frames.
pub struct Encoder {
    pack: Compress,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { pack: Compress::new(Compression::fast(), true) }
    }
}

impl Encoder {
    fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(8 + body.len());
        frame.extend((0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind)).to_be_bytes());
        frame.extend((u32::from(flags) << 24 | body.len() as u32).to_be_bytes());
        frame.extend(body);
        frame
    }

    /// Accepts a stream, without headers.
    pub fn reply(&mut self, stream: u32) -> Result<Vec<u8>, SpdyError> {
        let mut body = stream.to_be_bytes().to_vec();
        let mut packed = Vec::with_capacity(64);
        self.pack
            .compress_vec(&0u32.to_be_bytes(), &mut packed, FlushCompress::Sync)
            .map_err(|_| SpdyError("header block"))?;
        body.extend(packed);
        Ok(Self::control(SYN_REPLY, 0, &body))
    }

    /// Bytes of a stream; with `fin` the last ones.
    pub fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
        let mut frame = Vec::with_capacity(8 + bytes.len());
        frame.extend((stream & 0x7fff_ffff).to_be_bytes());
        let flags = if fin { u32::from(FLAG_FIN) } else { 0 };
        frame.extend((flags << 24 | bytes.len() as u32).to_be_bytes());
        frame.extend(bytes);
        frame
    }

    pub fn reset(stream: u32, status: u32) -> Vec<u8> {
        Self::control(RST_STREAM, 0, &[stream.to_be_bytes(), status.to_be_bytes()].concat())
    }

    pub fn ping(id: u32) -> Vec<u8> {
        Self::control(PING, 0, &id.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client's SYN_STREAM, packed with the dictionary as client-go packs it.
    fn open(pack: &mut Compress, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(k, v)| [k, v]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(4096);
        pack.compress_vec(&plain, &mut packed, FlushCompress::Sync).unwrap();
        let mut body = stream.to_be_bytes().to_vec();
        body.extend([0; 6]);
        body.extend(packed);
        Encoder::control(SYN_STREAM, 0, &body)
    }

    #[test]
    fn streams_are_opened_by_headers_packed_with_the_dictionary() {
        let mut pack = Compress::new(Compression::default(), true);
        assert_eq!(
            pack.set_dictionary(&dictionary()).unwrap(),
            0xe3c6_a7c2,
            "the checksum that clients expect"
        );
        let mut decoder = Decoder::default();
        for (stream, kind) in [(1, "error"), (3, "data")] {
            let headers = [("Port", "80"), ("Requestid", "0"), ("Streamtype", kind)];
            for byte in open(&mut pack, stream, &headers) {
                decoder.push(&[byte]);
            }
            let Some(Frame::Open { stream: got, headers, fin: false }) = decoder.next().unwrap() else {
                panic!("no stream")
            };
            assert_eq!(got, stream);
            assert_eq!(headers[2], ("streamtype".to_owned(), kind.to_owned()));
        }
        decoder.push(&Encoder::data(3, b"hello", true));
        let data = Frame::Data { stream: 3, bytes: b"hello".to_vec(), fin: true };
        assert_eq!(decoder.next().unwrap(), Some(data));
        decoder.push(&Encoder::ping(7));
        assert_eq!(decoder.next().unwrap(), Some(Frame::Ping(7)));
        decoder.push(&Encoder::reset(3, REFUSED_STREAM));
        assert_eq!(decoder.next().unwrap(), Some(Frame::Reset { stream: 3, status: REFUSED_STREAM }));
        assert_eq!(decoder.next().unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16)) {
            let mut decoder = Decoder::default();
            for chunk in chunks {
                decoder.push(&chunk);
                while let Ok(Some(_)) = decoder.next() {}
            }
        }
    }
}
