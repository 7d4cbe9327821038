//! Container logs in the CRI format: `<RFC 3339, nanoseconds> <stream> <F|P> <text>`.
//!
//! In: the bytes a container writes, as they come. Out: whole lines in a file, split after
//! [`LINE_BYTES_MAX`] (`P` marks a piece that goes on), rotated by size: `name`, `name.1` (younger) …
//! Invariants: a line reaches the file whole or not at all; a full disk never stops a container.
//! Source: Kubernetes' design proposal "kubelet-cri-logging".

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

/// Longest piece of a line in one log entry (bytes), as containerd has it.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// Entries are gathered up to this size before they are written (bytes).
const BATCH_BYTES: usize = 16 * 1024;

/// One stream's bytes that are not yet a whole line.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Cuts `chunk` into lines; `emit` gets each with whether it is complete.
    pub fn push(&mut self, mut chunk: &[u8], mut emit: impl FnMut(&[u8], bool)) {
        while !chunk.is_empty() {
            let room = LINE_BYTES_MAX - self.rest.len();
            let window = &chunk[..chunk.len().min(room)];
            let end = window.iter().position(|byte| *byte == b'\n');
            let (piece, taken) = match end {
                Some(end) => (&chunk[..end], end + 1),
                None => (window, window.len()),
            };
            chunk = &chunk[taken..];
            let whole = end.is_some();
            if !whole && self.rest.len() + piece.len() < LINE_BYTES_MAX {
                self.rest.extend_from_slice(piece);
                return;
            }
            if self.rest.is_empty() {
                emit(piece, whole);
            } else {
                self.rest.extend_from_slice(piece);
                emit(&self.rest, whole);
                // Given back: an idle monitor holds no buffer.
                self.rest = Vec::new();
            }
        }
    }

    /// The rest at the end of the stream, an incomplete line.
    pub fn finish(&mut self, mut emit: impl FnMut(&[u8], bool)) {
        if !self.rest.is_empty() {
            emit(&std::mem::take(&mut self.rest), false);
        }
    }
}

/// The log file of one container.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    bytes_max: u64,
    files_max: u32,
    batch: Vec<u8>,
}

impl Log {
    /// Opens the file to append to; it is made, with its folder, when it is not there. A log that
    /// cannot be opened is tried again with each batch.
    pub fn new(path: PathBuf, bytes_max: u64, files_max: u32) -> Self {
        let mut log = Self { path, file: None, size: 0, bytes_max, files_max, batch: Vec::new() };
        let _ = log.open();
        log
    }

    fn open(&mut self) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = fs::OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Adds one entry to the batch; [`Log::flush`] brings it to the file.
    pub fn entry(&mut self, now: Timestamp, stream: &str, text: &[u8], whole: bool) {
        let tag = if whole { "F" } else { "P" };
        let _ = write!(self.batch, "{} {stream} {tag} ", now.strftime("%Y-%m-%dT%H:%M:%S.%9fZ"));
        self.batch.extend_from_slice(text);
        self.batch.push(b'\n');
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Writes the batch. What the disk has no room for is dropped.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if self.bytes_max > 0 && self.size > 0 && self.size + batch.len() as u64 > self.bytes_max {
            self.rotate();
        }
        if self.file.is_none() && self.open().is_err() {
            return;
        }
        let Some(file) = &mut self.file else { return };
        match file.write_all(&batch) {
            Ok(()) => self.size += batch.len() as u64,
            Err(_) => {
                // Half a line must not stand before the next one.
                let _ = file.set_len(self.size);
            }
        }
    }

    /// `name` becomes `name.1`, `name.1` becomes `name.2` …; at most `files_max` files are kept.
    fn rotate(&mut self) {
        self.file = None;
        let old = self.files_max.saturating_sub(1);
        if old == 0 {
            let _ = fs::remove_file(&self.path);
        } else {
            for n in (1..old).rev() {
                let _ = fs::rename(numbered(&self.path, n), numbered(&self.path, n + 1));
            }
            let _ = fs::rename(&self.path, numbered(&self.path, 1));
        }
        self.size = 0;
    }
}

/// The `n`th rotated file of a log, 1 the youngest.
pub fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<(usize, bool)> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |text, whole| out.push((text.len(), whole)));
        }
        lines.finish(|text, whole| out.push((text.len(), whole)));
        out
    }

    #[test]
    fn lines_are_cut_however_the_bytes_come() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        type Case<'a> = (&'a [&'a [u8]], &'a [(usize, bool)]);
        let cases: &[Case] = &[
            (&[b"a\nbc\n"], &[(1, true), (2, true)]),
            (&[b"a", b"b", b"\n\n"], &[(2, true), (0, true)]),
            (&[b"no end"], &[(6, false)]),
            (&[&long, b"y\n"], &[(LINE_BYTES_MAX, false), (1, true)]),
            (&[b"z", &long, b"\n"], &[(LINE_BYTES_MAX, false), (1, true)]),
            (&[&long[1..], b"\nq"], &[(LINE_BYTES_MAX - 1, true), (1, false)]),
        ];
        for (chunks, expected) in cases {
            assert_eq!(cut(chunks), *expected);
        }
    }

    #[test]
    fn entries_are_rotated_by_size_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod/0.log");
        let mut log = Log::new(path.clone(), 100, 3);
        let now = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        for text in ["one", "two", "three", "four", "five"] {
            log.entry(now, "stdout", text.as_bytes(), true);
            log.entry(now, "stderr", text.as_bytes(), false);
            log.flush();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(
            read(&path),
            "2026-01-02T03:04:05.000000006Z stdout F five\n2026-01-02T03:04:05.000000006Z stderr P five\n"
        );
        assert!(read(&numbered(&path, 1)).contains("four"));
        assert!(read(&numbered(&path, 2)).contains("three"));
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn a_log_without_a_folder_does_not_stop_anyone() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let mut log = Log::new(blocked.join("0.log"), 100, 2);
        log.entry(Timestamp::UNIX_EPOCH, "stdout", b"x", true);
        log.flush();
    }
}
