//! Unpacks one layer from a stream: decompress, hash, write below a folder.
//!
//! In: the bytes of a layer, plain, gzip or zstd (found by content). Out: a folder for overlayfs and a list of
//! checksums for the check after a power cut. Invariants: the caller sees `Ok` only when the whole stream was read
//! and its hash is the wanted one; on `Err` the folder is rubbish for the caller to remove.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use bytes::{Buf, Bytes};
use nix::sys::statvfs::fstatvfs;

use super::{
    digest::Hasher,
    sys,
    tar::{Source, TarStream},
    tree::{Tree, Written},
};
use crate::{config::Least, crash};

/// Files in one layer.
const ENTRIES_MAX: u64 = 2_000_000;
/// Unpacked bytes of one layer, archive overhead included.
const LAYER_BYTES_MAX: u64 = 64 << 30;
/// Zeros and the like that may follow the end of a layer's archive (bytes); writers fill up records of 10 KiB.
const TRAILER_BYTES_MAX: u64 = 1 << 20;
/// Free space that images never take from the node (bytes), whatever else it keeps.
const RESERVE_BYTES: u64 = 32 << 20;
/// The free space is looked at after so many unpacked bytes.
const SPACE_CHECK_BYTES: u64 = 8 << 20;
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("refused entry {path:?}: {reason}")]
    Hostile { path: PathBuf, reason: &'static str },
    #[error("{operation} {path:?}: {source}")]
    Write { operation: &'static str, path: PathBuf, source: io::Error },
    /// The stream broke, or is no layer.
    #[error("{0}")]
    Stream(#[source] io::Error),
    #[error("the layer has more than {max} {what}")]
    TooMuch { what: &'static str, max: u64 },
    #[error("no space left: {free} bytes are free and {kept} are kept for the node")]
    NoSpace { free: u64, kept: u64 },
    #[error("unexpected content: its digest is {found}, expected {expected}")]
    Digest { expected: String, found: String },
}

/// An unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The digest of the uncompressed archive.
    pub diff_id: String,
    /// The sum of its files' bytes.
    pub size_bytes: u64,
}

/// Unpacks `stream` into the empty folder `root` and writes the checksums to the new file `sums`. With
/// `expected`, refuses a stream whose uncompressed digest is another. It leaves `reserve` of the disk free.
pub fn unpack(
    root: &Path,
    sums: &Path,
    mut stream: impl Read,
    expected: Option<&str>,
    reserve: Least,
) -> Result<Unpacked, Error> {
    let mut list = SumsWriter::create(sums)?;
    let unpacked = decompress(BufReader::with_capacity(CHUNK_BYTES, &mut stream))
        .map_err(Error::Stream)
        .and_then(|plain| unpack_plain(root, &mut list, Hashing::new(plain), reserve));
    if matches!(unpacked, Err(Error::Stream(_))) {
        // A stream that has the wrong digest explains why it made no sense.
        io::copy(&mut stream, &mut io::sink()).map_err(Error::Stream)?;
    }
    let (diff_id, size_bytes) = unpacked?;
    // What follows the compressed stream belongs to the blob's digest.
    io::copy(&mut stream, &mut io::sink()).map_err(Error::Stream)?;
    list.finish()?;
    crash::point(crash::IMAGES);
    match expected {
        Some(expected) if expected != diff_id => {
            Err(Error::Digest { expected: expected.to_owned(), found: diff_id })
        }
        _ => Ok(Unpacked { diff_id, size_bytes }),
    }
}

fn unpack_plain(
    root: &Path,
    sums: &mut SumsWriter,
    plain: Hashing<Box<dyn Read + '_>>,
    reserve: Least,
) -> Result<(String, u64), Error> {
    let mut tree = Tree::new(root).map_err(|source| write("open", root, source))?;
    let mut tar = TarStream::new(plain);
    let (mut entries, mut size_bytes, mut unchecked) = (0_u64, 0_u64, SPACE_CHECK_BYTES);
    while let Some(entry) = tar.next_entry().map_err(Error::Stream)? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(Error::TooMuch { what: "entries", max: ENTRIES_MAX });
        }
        // An entry costs an inode and a name even when it is empty.
        unchecked = unchecked.saturating_add(entry.size).saturating_add(512);
        if unchecked >= SPACE_CHECK_BYTES {
            unchecked = 0;
            check_space(&tree, entry.size, reserve)?;
        }
        crash::point(crash::IMAGES);
        if let Written::File { bytes, crc } = tree.write(&entry, &mut tar)? {
            size_bytes += bytes;
            sums.push(&super::tree::relative(&entry.path)?, bytes, crc)?;
        }
    }
    for path in tree.finish()? {
        sums.retract(&path)?;
    }
    let mut plain = tar.into_inner();
    let trailer = io::copy(&mut plain.by_ref().take(TRAILER_BYTES_MAX + 1), &mut io::sink());
    if trailer.map_err(Error::Stream)? > TRAILER_BYTES_MAX {
        return Err(Error::TooMuch { what: "bytes after its end", max: TRAILER_BYTES_MAX });
    }
    Ok((plain.hasher.finish(), size_bytes))
}

/// Refuses when writing `bytes` would take the node's reserve.
fn check_space(tree: &Tree, bytes: u64, reserve: Least) -> Result<(), Error> {
    let stat = fstatvfs(tree.root()).map_err(|errno| write("statvfs", Path::new("."), errno.into()))?;
    let bytes_of = |blocks: u64| blocks * stat.fragment_size() as u64;
    let free = bytes_of(stat.blocks_available() as u64);
    // Blocks that are kept for root are nobody's, as for the node's own thresholds.
    let used = bytes_of(stat.blocks() as u64 - stat.blocks_free() as u64);
    let kept = reserve.of(used + free).max(RESERVE_BYTES);
    if free < bytes.saturating_add(kept) { Err(Error::NoSpace { free, kept }) } else { Ok(()) }
}

fn write(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Write { operation, path: path.to_owned(), source }
}

/// The uncompressed bytes of a plain, gzip or zstd stream, told apart by their first bytes.
pub fn decompress<'a>(mut stream: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let start = stream.fill_buf()?;
    match start {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(stream))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(stream)?)),
        [b'B', b'Z', b'h', ..] => Err(unsupported("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(unsupported("xz")),
        _ => Ok(Box::new(stream)),
    }
}

fn unsupported(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{name} compression is not supported (gzip and zstd are)"),
    )
}

/// Passes a stream on and hashes it.
struct Hashing<R> {
    inner: R,
    chunk: Bytes,
    hasher: Hasher,
    total: u64,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, chunk: Bytes::new(), hasher: Hasher::beside(), total: 0 }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = self.inner.read(&mut chunk)?;
            chunk.truncate(read);
            self.chunk = chunk.into();
            self.hasher.update(&self.chunk);
            self.total += read as u64;
            if self.total > LAYER_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("the layer unpacks to more than {LAYER_BYTES_MAX} bytes"),
                ));
            }
        }
        let read = out.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut out[..read]);
        Ok(read)
    }
}

impl<R: Read> Source for Hashing<R> {}

/// The checksums of a layer's regular files: zstd over records of path, NUL, size and CRC-32 (both little
/// endian). A record with [`RETRACTED`] takes back an earlier one of that path.
struct SumsWriter {
    out: zstd::stream::write::Encoder<'static, File>,
    path: PathBuf,
}

/// The size in a record that takes back another.
const RETRACTED: u64 = u64::MAX;

impl SumsWriter {
    fn create(path: &Path) -> Result<Self, Error> {
        let out = File::create(path).and_then(|file| zstd::stream::write::Encoder::new(file, 1));
        Ok(Self { out: out.map_err(|source| write("create", path, source))?, path: path.to_owned() })
    }

    fn push(&mut self, path: &Path, size: u64, crc: u32) -> Result<(), Error> {
        let mut record = path.as_os_str().as_bytes().to_vec();
        record.push(0);
        record.extend(size.to_le_bytes());
        record.extend(crc.to_le_bytes());
        self.out.write_all(&record).map_err(|source| write("write", &self.path, source))
    }

    fn retract(&mut self, path: &Path) -> Result<(), Error> {
        self.push(path, RETRACTED, 0)
    }

    fn finish(self) -> Result<(), Error> {
        self.out.finish().map(drop).map_err(|source| write("write", &self.path, source))
    }
}

fn read_sums(path: &Path, mut each: impl FnMut(&Path, u64, u32) -> io::Result<()>) -> io::Result<()> {
    let mut list = BufReader::new(zstd::stream::read::Decoder::new(File::open(path)?)?);
    let mut name = Vec::new();
    loop {
        name.clear();
        if list.read_until(0, &mut name)? == 0 {
            return Ok(());
        }
        name.pop();
        let (mut size, mut crc) = ([0; 8], [0; 4]);
        list.read_exact(&mut size)?;
        list.read_exact(&mut crc)?;
        each(
            Path::new(std::ffi::OsStr::from_bytes(&name)),
            u64::from_le_bytes(size),
            u32::from_le_bytes(crc),
        )?;
    }
}

/// How closely a layer is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every file is there with its size.
    Sizes,
    /// Every file has the bytes that were unpacked.
    Contents,
}

/// Whether the folder still holds what was unpacked; `Err` says what is wrong.
pub fn verify(root: &Path, sums: &Path, depth: Depth) -> Result<(), String> {
    let folder = File::open(root).map_err(|error| format!("open {}: {error}", root.display()))?.into();
    let mut retracted = std::collections::BTreeSet::new();
    let mut check = |path: &Path, size: u64, crc: u32, first: bool| -> io::Result<()> {
        if first {
            if size == RETRACTED {
                retracted.insert(path.to_owned());
            }
            return Ok(());
        }
        if size == RETRACTED || retracted.contains(path) {
            return Ok(());
        }
        check_file(&folder, path, size, crc, depth)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    read_sums(sums, |path, size, crc| check(path, size, crc, true))
        .and_then(|()| read_sums(sums, |path, size, crc| check(path, size, crc, false)))
        .map_err(|error| error.to_string())
}

fn check_file(
    folder: &std::os::fd::OwnedFd,
    path: &Path,
    size: u64,
    crc: u32,
    depth: Depth,
) -> io::Result<()> {
    let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    // The path may go through links of the layer itself, as it did when it was unpacked.
    let parent =
        sys::open_folder(folder, path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new(".")))?;
    let mut file = sys::open_file(&parent, Path::new(path.file_name().unwrap_or_default()))?;
    let found = file.metadata()?.len();
    if found != size {
        return Err(damaged(format!("has {found} bytes instead of {size}")));
    }
    if depth == Depth::Contents {
        let mut sum = flate2::Crc::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => sum.update(&buffer[..read]),
            }
        }
        if sum.sum() != crc {
            return Err(damaged("has other bytes than were unpacked".to_owned()));
        }
    }
    Ok(())
}
