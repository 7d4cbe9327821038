//! Writes a layer's files below one folder and never outside of it.
//!
//! In: entries with names chosen by a stranger. Out: a folder usable as an overlayfs lower layer: whiteouts are
//! character devices 0:0, opaque folders carry `trusted.overlay.opaque=y` (Linux
//! `Documentation/filesystems/overlayfs.rst`; layer format: OCI image spec, "Image Layer Filesystem Changeset").
//! Invariants: every parent is opened with `openat2(RESOLVE_IN_ROOT)`, so links of the layer resolve inside it as
//! they will in the container; the last component is never followed. Folders' times are set at the end.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat,
            mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};
use tar::EntryType;

use super::{sys, tar::Entry, unpack::Error};

/// Deepest path of an entry (components); keeps removal within the limit of open files.
const DEPTH_MAX: usize = 256;
const COPY_BUFFER_BYTES: usize = 64 * 1024;
const OPAQUE: &str = "trusted.overlay.opaque";

/// What was done with an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// A regular file of so many bytes with this CRC-32.
    File { bytes: u64, crc: u32 },
    /// Anything else.
    Other,
}

/// A folder being filled.
pub struct Tree {
    root: OwnedFd,
    /// The folder of the last entry; entries come folder by folder.
    last_parent: Option<(PathBuf, OwnedFd)>,
    folder_times: Vec<(PathBuf, (i64, u32))>,
    /// Regular files that a later entry replaced.
    replaced: Vec<PathBuf>,
    buffer: Vec<u8>,
}

impl Tree {
    /// Fills `root`, an existing folder.
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: File::open(root)?.into(),
            last_parent: None,
            folder_times: Vec::new(),
            replaced: Vec::new(),
            buffer: vec![0; COPY_BUFFER_BYTES],
        })
    }

    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Writes one entry; `body` gives a regular file's bytes.
    pub fn write(&mut self, entry: &Entry, body: &mut impl Read) -> Result<Written, Error> {
        let path = relative(&entry.path)?;
        let Some(name) = path.file_name() else { return self.write_root(entry) };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.write_whiteout(parent_path, OsStr::from_bytes(hidden), &path);
        }
        let parent = self.parent(parent_path)?;
        let at = At { folder: &parent, name, path: &path };
        let written = self.write_entry(&at, entry, body)?;
        self.last_parent = Some((parent_path.to_owned(), parent));
        Ok(written)
    }

    /// Sets folders' times, the last thing to do. Returns the regular files that were replaced.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, Error> {
        for (path, time) in std::mem::take(&mut self.folder_times).into_iter().rev() {
            // A folder that was replaced since has no time to set.
            if let Ok(folder) = self.open_folder(&path) {
                let at = At { folder: &folder, name: OsStr::new("."), path: &path };
                at.set_time(time)?;
            }
        }
        Ok(self.replaced)
    }

    /// The layer's `./`: the attributes of the root folder.
    fn write_root(&mut self, entry: &Entry) -> Result<Written, Error> {
        if entry.kind != EntryType::Directory {
            return Err(hostile(Path::new("."), "the root of a layer must be a folder"));
        }
        let root = self.root.try_clone().map_err(|source| write("open", Path::new("."), source))?;
        let at = At { folder: &root, name: OsStr::new("."), path: Path::new(".") };
        at.set_attributes(entry)?;
        self.folder_times.push((PathBuf::new(), entry.mtime));
        Ok(Written::Other)
    }

    fn write_whiteout(&mut self, parent_path: &Path, hidden: &OsStr, path: &Path) -> Result<Written, Error> {
        let parent = self.parent(parent_path)?;
        if hidden == ".wh..opq" {
            At { folder: &parent, name: OsStr::new("."), path: parent_path }.set_opaque()?;
        } else if hidden.as_bytes().starts_with(b".wh.") {
            // AUFS' own bookkeeping (`.wh..wh.plnk`), nothing of the image.
        } else if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(hostile(path, "a whiteout of nothing"));
        } else {
            let at = At { folder: &parent, name: hidden, path };
            match at.stat()? {
                // What this layer itself brings stays; only what is below is hidden.
                Some(stat) if is_kind(&stat, SFlag::S_IFDIR) => at.set_opaque()?,
                Some(_) => {}
                None => at.make_node(SFlag::S_IFCHR, (0, 0))?,
            }
        }
        self.last_parent = Some((parent_path.to_owned(), parent));
        Ok(Written::Other)
    }

    fn write_entry(&mut self, at: &At, entry: &Entry, body: &mut impl Read) -> Result<Written, Error> {
        if entry.kind == EntryType::Directory {
            self.ensure_folder(at)?;
            at.set_attributes(entry)?;
            self.folder_times.push((at.path.to_owned(), entry.mtime));
            return Ok(Written::Other);
        }
        if let Some(stat) = at.stat()? {
            if is_kind(&stat, SFlag::S_IFREG) {
                self.replaced.push(at.path.to_owned());
            }
            at.remove(&stat)?;
        }
        match entry.kind {
            EntryType::Regular | EntryType::Continuous => return self.write_file(at, entry, body),
            EntryType::Link => return self.write_link(at, entry),
            EntryType::Symlink => {
                let target = OsStr::from_bytes(&entry.link);
                at.check("symlink", symlinkat(target, Some(at.folder.as_raw_fd()), at.name))?;
            }
            EntryType::Char => at.make_node(SFlag::S_IFCHR, entry.device)?,
            EntryType::Block => at.make_node(SFlag::S_IFBLK, entry.device)?,
            EntryType::Fifo => at.make_node(SFlag::S_IFIFO, (0, 0))?,
            _ => return Err(hostile(at.path, "an entry of unknown type")),
        }
        at.set_attributes(entry)?;
        at.set_time(entry.mtime)?;
        Ok(Written::Other)
    }

    fn ensure_folder(&mut self, at: &At) -> Result<(), Error> {
        match at.stat()? {
            Some(stat) if is_kind(&stat, SFlag::S_IFDIR) => return Ok(()),
            Some(stat) => {
                at.remove(&stat)?;
                at.make_folder()?;
                if is_whiteout(&stat) {
                    at.set_opaque()?;
                } else if is_kind(&stat, SFlag::S_IFREG) {
                    self.replaced.push(at.path.to_owned());
                }
            }
            None => at.make_folder()?,
        }
        Ok(())
    }

    fn write_file(&mut self, at: &At, entry: &Entry, body: &mut impl Read) -> Result<Written, Error> {
        let mut file = at.check("create", sys::create_file(at.folder, at.name))?;
        let mut crc = flate2::Crc::new();
        let mut bytes = 0;
        loop {
            let read = match body.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Stream(error)),
            };
            file.write_all(&self.buffer[..read]).map_err(|source| write("write", at.path, source))?;
            crc.update(&self.buffer[..read]);
            bytes += read as u64;
        }
        at.set_attributes(entry)?;
        at.set_time(entry.mtime)?;
        Ok(Written::File { bytes, crc: crc.sum() })
    }

    fn write_link(&mut self, at: &At, entry: &Entry) -> Result<Written, Error> {
        let target = relative(&entry.link)?;
        let Some(name) = target.file_name() else {
            return Err(hostile(at.path, "a hard link to the root"));
        };
        let folder = self
            .open_folder(target.parent().unwrap_or(Path::new("")))
            .map_err(|_| hostile(at.path, "a hard link to a file that the layer does not have"))?;
        let from = At { folder: &folder, name, path: &target };
        match from.stat()? {
            None => return Err(hostile(at.path, "a hard link to a file that the layer does not have")),
            Some(stat) if is_kind(&stat, SFlag::S_IFDIR) => {
                return Err(hostile(at.path, "a hard link to a folder"));
            }
            Some(_) => {}
        }
        let linked =
            linkat(Some(folder.as_raw_fd()), name, Some(at.folder.as_raw_fd()), at.name, AtFlags::empty());
        at.check("link", linked)?;
        Ok(Written::Other)
    }

    /// The folder that an entry lies in, made when the layer does not name it.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd, Error> {
        if let Some((last, folder)) = self.last_parent.take()
            && last == path
        {
            return Ok(folder);
        }
        let mut existing = path;
        let mut folder = loop {
            match self.open_folder(existing) {
                Ok(folder) => break folder,
                Err(Errno::ENOENT | Errno::ENOTDIR) if existing != Path::new("") => {
                    existing = existing.parent().unwrap_or(Path::new(""));
                }
                Err(errno) => return Err(write("open", existing, errno.into())),
            }
        };
        let missing = path.strip_prefix(existing).unwrap_or(Path::new(""));
        let mut made = existing.to_owned();
        for name in missing {
            made.push(name);
            let at = At { folder: &folder, name, path: &made };
            if at.stat()?.is_some_and(|stat| !is_whiteout(&stat)) {
                return Err(hostile(path, "lies below something that is no folder"));
            }
            self.ensure_folder(&at)?;
            folder = self.open_folder(&made).map_err(|errno| write("open", &made, errno.into()))?;
        }
        Ok(folder)
    }

    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        sys::open_folder(&self.root, path)
    }
}

/// A name in an open folder.
struct At<'a> {
    folder: &'a OwnedFd,
    name: &'a OsStr,
    /// For messages: the path in the layer.
    path: &'a Path,
}

impl At<'_> {
    fn check<T>(&self, operation: &'static str, result: Result<T, Errno>) -> Result<T, Error> {
        result.map_err(|errno| write(operation, self.path, errno.into()))
    }

    fn stat(&self) -> Result<Option<FileStat>, Error> {
        match fstatat(Some(self.folder.as_raw_fd()), self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            result => self.check("stat", result.map(Some)),
        }
    }

    fn remove(&self, stat: &FileStat) -> Result<(), Error> {
        if is_kind(stat, SFlag::S_IFDIR) {
            std::fs::remove_dir_all(self.proc_path()).map_err(|source| write("replace", self.path, source))
        } else {
            let removed = unlinkat(Some(self.folder.as_raw_fd()), self.name, UnlinkatFlags::NoRemoveDir);
            self.check("replace", removed)
        }
    }

    fn make_folder(&self) -> Result<(), Error> {
        let folder = Some(self.folder.as_raw_fd());
        self.check("mkdir", mkdirat(folder, self.name, Mode::from_bits_truncate(0o755)))?;
        // The daemon's umask does not shape images.
        let mode = Mode::from_bits_truncate(0o755);
        self.check("chmod", fchmodat(folder, self.name, mode, FchmodatFlags::FollowSymlink))
    }

    fn make_node(&self, kind: SFlag, device: (u32, u32)) -> Result<(), Error> {
        let device = makedev(u64::from(device.0), u64::from(device.1));
        self.check("mknod", mknodat(Some(self.folder.as_raw_fd()), self.name, kind, Mode::empty(), device))
    }

    fn set_opaque(&self) -> Result<(), Error> {
        sys::set_xattr(&self.proc_path(), OPAQUE, b"y")
            .map_err(|source| write("mark opaque", self.path, source))
    }

    /// Owner, mode and extended attributes, in the order in which one does not undo another.
    fn set_attributes(&self, entry: &Entry) -> Result<(), Error> {
        let folder = Some(self.folder.as_raw_fd());
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        let owned = fchownat(folder, self.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW);
        self.check("chown", owned)?;
        if entry.kind != EntryType::Symlink {
            // Not followed: the name is no link, it was made or looked at just now.
            let mode = Mode::from_bits_truncate(entry.mode);
            self.check("chmod", fchmodat(folder, self.name, mode, FchmodatFlags::FollowSymlink))?;
        }
        for (name, value) in &entry.xattrs {
            // overlayfs' own attributes are ours to set; labels are the host policy's.
            if name.starts_with("trusted.") || name.starts_with("user.overlay.") || name == "security.selinux"
            {
                continue;
            }
            match sys::set_xattr(&self.proc_path(), name, value) {
                // A file system without them, as every unpacker accepts it.
                Err(error) if error.raw_os_error() == Some(Errno::ENOTSUP as i32) => {}
                result => result.map_err(|source| write("set attribute of", self.path, source))?,
            }
        }
        Ok(())
    }

    #[allow(clippy::cast_lossless, reason = "the types differ between targets")]
    fn set_time(&self, (seconds, nanoseconds): (i64, u32)) -> Result<(), Error> {
        let time = TimeSpec::new(seconds as _, nanoseconds as _);
        let folder = Some(self.folder.as_raw_fd());
        let set = utimensat(folder, self.name, &time, &time, UtimensatFlags::NoFollowSymlink);
        self.check("set time of", set)
    }

    fn proc_path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.folder.as_raw_fd().to_string()).join(self.name)
    }
}

fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == kind
}

fn is_whiteout(stat: &FileStat) -> bool {
    is_kind(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

/// The path below the root, without `.` and `..`; refuses one that leaves the root.
pub fn relative(path: &[u8]) -> Result<PathBuf, Error> {
    let mut clean = PathBuf::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if !clean.pop() {
                    return Err(hostile(Path::new(OsStr::from_bytes(path)), "leaves the image"));
                }
            }
            _ => clean.push(OsStr::from_bytes(part)),
        }
    }
    if clean.components().count() > DEPTH_MAX {
        return Err(hostile(&clean, "is nested too deep"));
    }
    Ok(clean)
}

fn hostile(path: &Path, reason: &'static str) -> Error {
    Error::Hostile { path: path.to_owned(), reason }
}

fn write(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Write { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        for (written, want) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a/../b", Some("b")),
            ("./", Some("")),
            ("../a", None),
            ("a/../../b", None),
            ("/..", None),
        ] {
            assert_eq!(relative(written.as_bytes()).ok().as_deref(), want.map(Path::new), "{written}");
        }
        assert!(relative("d/".repeat(DEPTH_MAX + 1).as_bytes()).is_err());
    }
}
