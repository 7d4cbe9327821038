//! A bounded reader of tar streams.
//!
//! In: bytes of a stranger. Out: entries, one at a time, with names and PAX records resolved. Formats: ustar, GNU
//! long names, PAX (POSIX.1-2001), as Docker's and BuildKit's writers make them; headers are decoded by `tar`.
//! Deliberately absent: sparse files (no image builder writes them), and anything that touches a file system.

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK_BYTES: usize = 512;
/// Longest name (bytes); Linux' `PATH_MAX`.
const NAME_BYTES_MAX: u64 = 4096;
/// Longest body (bytes); file systems have none longer.
const BODY_BYTES_MAX: u64 = i64::MAX as u64;
/// Longest set of PAX records of one entry (bytes); holds the largest extended attributes.
const PAX_BYTES_MAX: u64 = 1 << 20;

/// A stream that can be skipped faster than read.
pub trait Source: Read {
    /// Moves `bytes` forward.
    fn skip(&mut self, bytes: u64) -> io::Result<()>
    where
        Self: Sized,
    {
        let skipped = io::copy(&mut self.by_ref().take(bytes), &mut io::sink())?;
        if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// What stands in a header, PAX records applied.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    pub kind: EntryType,
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Major and minor of a device node.
    pub device: (u32, u32),
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Entries of a tar; reading from it gives the body of the entry that came last.
pub struct TarStream<S> {
    source: S,
    /// Bytes of the current body not read yet.
    body: u64,
    /// Zero bytes after the body.
    padding: u64,
}

/// Long names and PAX records that precede an entry.
#[derive(Default)]
struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<(String, Vec<u8>)>,
}

impl<S: Source> TarStream<S> {
    pub fn new(source: S) -> Self {
        Self { source, body: 0, padding: 0 }
    }

    pub fn into_inner(self) -> S {
        self.source
    }

    /// The next entry; `None` at the end mark or the end of the stream.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut pending = Pending::default();
        loop {
            self.source.skip(self.body + self.padding)?;
            (self.body, self.padding) = (0, 0);
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            self.set_body(header.entry_size()?);
            match header.entry_type() {
                EntryType::GNULongName => pending.path = Some(trimmed(self.meta(NAME_BYTES_MAX)?)),
                EntryType::GNULongLink => pending.link = Some(trimmed(self.meta(NAME_BYTES_MAX)?)),
                EntryType::XHeader => pending.pax = pax_records(&self.meta(PAX_BYTES_MAX)?)?,
                EntryType::XGlobalHeader => drop(self.meta(PAX_BYTES_MAX)?),
                EntryType::GNUSparse => return Err(invalid("sparse files in archives are not supported")),
                _ => {
                    let entry = entry(header, pending)?;
                    self.set_body(if has_body(entry.kind) { entry.size } else { 0 });
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn set_body(&mut self, size: u64) {
        self.body = size;
        self.padding = (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
    }

    fn header_block(&mut self) -> io::Result<Option<[u8; BLOCK_BYTES]>> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((block != [0; BLOCK_BYTES]).then_some(block))
    }

    fn meta(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        if self.body > limit {
            return Err(invalid(format!("a name or attribute of {} bytes (at most {limit})", self.body)));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl<S: Source> Read for TarStream<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = out.len().min(usize::try_from(self.body).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut out[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.body -= read as u64;
        Ok(read)
    }
}

fn has_body(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

fn check_sum(header: &Header) -> io::Result<()> {
    let bytes = header.as_bytes();
    // The checksum field itself (bytes 148..156) counts as spaces.
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
    if header.cksum().is_ok_and(|written| written == sum) {
        Ok(())
    } else {
        Err(invalid("not a tar archive (wrong header checksum)"))
    }
}

fn entry(header: &Header, pending: Pending) -> io::Result<Entry> {
    let mut entry = Entry {
        path: pending.path.unwrap_or_else(|| header.path_bytes().into_owned()),
        link: pending
            .link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default(),
        kind: header.entry_type(),
        size: header.entry_size()?,
        mode: or_zero(&header.as_old().mode, header.mode())? & 0o7777,
        uid: id(or_zero(&header.as_old().uid, header.uid())?)?,
        gid: id(or_zero(&header.as_old().gid, header.gid())?)?,
        mtime: (or_zero(&header.as_old().mtime, header.mtime())? as i64, 0),
        device: (
            header.device_major().ok().flatten().unwrap_or(0),
            header.device_minor().ok().flatten().unwrap_or(0),
        ),
        xattrs: Vec::new(),
    };
    for (key, value) in pending.pax {
        match key.as_str() {
            "path" => entry.path = value,
            "linkpath" => entry.link = value,
            "size" => entry.size = number(&value)?,
            "uid" => entry.uid = id(number(&value)?)?,
            "gid" => entry.gid = id(number(&value)?)?,
            "mtime" => entry.mtime = time(&value)?,
            _ if key.starts_with("GNU.sparse.") => {
                return Err(invalid("sparse files in archives are not supported"));
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    entry.xattrs.push((name.to_owned(), value));
                }
            }
        }
    }
    if entry.size > BODY_BYTES_MAX {
        return Err(invalid(format!("a file of {} bytes", entry.size)));
    }
    if entry.path.len() as u64 > NAME_BYTES_MAX || entry.link.len() as u64 > NAME_BYTES_MAX {
        return Err(invalid(format!("a name longer than {NAME_BYTES_MAX} bytes")));
    }
    Ok(entry)
}

/// Some writers leave fields empty; that is zero.
fn or_zero<T: Default>(field: &[u8], parsed: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) { Ok(T::default()) } else { parsed }
}

/// `LENGTH KEY=VALUE\n` records, LENGTH counting itself (POSIX pax, "Extended Header").
fn pax_records(mut bytes: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
    let bad = || invalid("malformed PAX record");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length = usize::try_from(number(&bytes[..space])?).map_err(|_| bad())?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &bytes[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let key = String::from_utf8_lossy(&record[..equals]).into_owned();
        records.push((key, record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn number(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("malformed number in a PAX record"))
}

fn id(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| invalid(format!("owner {value} is not a user or group id")))
}

/// Decimal seconds with an optional fraction and sign.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let bad = || invalid("malformed time in a PAX record");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: i64 = whole.parse().map_err(|_| bad())?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let mut nanoseconds: u32 = digits.parse().map_err(|_| bad())?;
    if whole.starts_with('-') && nanoseconds > 0 {
        seconds -= 1;
        nanoseconds = 1_000_000_000 - nanoseconds;
    }
    Ok((seconds, nanoseconds))
}

fn trimmed(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Source for &[u8] {}

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, path: &str, body: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        builder.append_data(&mut header, path, body).unwrap();
    }

    #[test]
    fn entries_long_names_and_pax_records_are_read() {
        let long = "d/".repeat(120) + "file";
        let bytes = archive(|b| {
            file(b, "short", b"body");
            file(b, &long, &[1; 1000]);
            let capability = b"\x01\0\0\x02\0\n=\n\0".as_slice();
            b.append_pax_extensions([
                ("SCHILY.xattr.security.capability", capability),
                ("mtime", b"12.5".as_slice()),
                ("uid", b"70000".as_slice()),
                ("path", b"other".as_slice()),
            ])
            .unwrap();
            file(b, "x", b"");
        });
        let mut tar = TarStream::new(bytes.as_slice());
        let first = tar.next_entry().unwrap().unwrap();
        assert_eq!(
            (first.path.as_slice(), first.mode, first.uid, first.gid),
            (b"short".as_slice(), 0o4755, 7, 8)
        );
        let mut body = String::new();
        tar.read_to_string(&mut body).unwrap();
        assert_eq!(body, "body");
        // The second body is skipped unread.
        assert_eq!(tar.next_entry().unwrap().unwrap().path, long.as_bytes());
        let third = tar.next_entry().unwrap().unwrap();
        assert_eq!(
            (third.path.as_slice(), third.uid, third.mtime),
            (b"other".as_slice(), 70000, (12, 500_000_000))
        );
        assert_eq!(third.xattrs, [("security.capability".to_owned(), b"\x01\0\0\x02\0\n=\n\0".to_vec())]);
        assert!(tar.next_entry().unwrap().is_none());
    }

    #[test]
    fn broken_archives_are_refused() {
        let good = archive(|b| file(b, "a", &[1; 600]));
        let mut wrong_sum = good.clone();
        wrong_sum[0] ^= 1;
        let mut huge_name = Header::new_gnu();
        huge_name.set_entry_type(EntryType::GNULongName);
        huge_name.set_size(1 << 40);
        huge_name.set_cksum();
        for (bytes, want) in [
            (wrong_sum.as_slice(), "checksum"),
            (&good[..300], "end of file"),
            (&good[..700], "end of file"),
            (huge_name.as_bytes().as_slice(), "at most"),
        ] {
            let mut tar = TarStream::new(bytes);
            let error = loop {
                match tar.next_entry() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("accepted, wanted {want}"),
                    Err(error) => break error,
                }
            };
            assert!(error.to_string().contains(want), "{error} has no {want}");
        }
        assert!(
            pax_records(b"5 a=").is_err()
                && pax_records(b"0 a=b\n").is_err()
                && pax_records(b"6 a=b\n").is_ok()
        );
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        for (text, want) in [
            ("0", (0, 0)),
            ("1.25", (1, 250_000_000)),
            ("-1.25", (-2, 750_000_000)),
            ("3.1234567891", (3, 123_456_789)),
        ] {
            assert_eq!(time(text.as_bytes()).unwrap(), want, "{text}");
        }
    }
}
