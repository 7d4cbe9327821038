//! Reading CRI logs: `<RFC3339Nano> stdout|stderr P|F <text>`, across rotation.
//!
//! In: the path of a container's log and what is asked for. Out: lines, in order, without end when
//! followed. The runtime rotates `n.log` to `n.log.<time>`, and may compress older ones to `.gz`.
//! Source: `pkg/kubelet/kuberuntime/logs/logs.go`.

use std::{
    collections::VecDeque,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::mpsc,
};

use crate::mqtt::stream::LogOptions;

/// Between two looks at a followed log.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);
/// What is read at once (bytes).
const CHUNK_BYTES: usize = 16 * 1024;
/// A line longer than this is passed on in pieces (bytes).
const LINE_BYTES_MAX: usize = 64 * 1024;

/// One entry of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    /// The line goes on in the next entry.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads one line of the file (without its line feed).
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    Some(Entry { time, stream, partial: tag == b"P", text: parts.next().unwrap_or_default() })
}

/// The files of one log, the oldest first: what rotation has put aside, then the log itself.
pub fn files_of(log: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = rotated(log);
    files.sort();
    files.push(log.to_owned());
    files
}

fn rotated(log: &Path) -> Vec<PathBuf> {
    let Some((dir, name)) = log.parent().zip(log.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let prefix = format!("{name}.");
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).map(|e| e.path()).collect()
}

/// Removes a log with what rotation has put aside.
pub async fn remove(log: &Path) {
    for file in rotated(log) {
        let _ = tokio::fs::remove_file(file).await;
    }
    let _ = tokio::fs::remove_file(log).await;
}

/// The end of a log, for a termination message.
pub async fn last_lines(log: &Path, lines: usize, bytes: usize) -> String {
    let content = tokio::fs::read(log).await.unwrap_or_default();
    let mut last: VecDeque<u8> = VecDeque::new();
    for entry in content.split(|b| *b == b'\n').rev().filter_map(parse).take(lines) {
        let mut text = entry.text.to_vec();
        text.push(b'\n');
        if last.len() + text.len() > bytes {
            break;
        }
        text.into_iter().rev().for_each(|b| last.push_front(b));
    }
    String::from_utf8_lossy(last.make_contiguous()).into_owned()
}

/// Asks whether a container has ended.
pub type Ended = dyn Fn() -> BoxFuture<'static, bool> + Send + Sync;

/// Turns entries into what a client sees, within its limits.
struct Writer<'a> {
    options: &'a LogOptions,
    left: Option<u64>,
    out: &'a mpsc::Sender<Vec<u8>>,
    buffer: Vec<u8>,
    /// The next entry begins a line.
    fresh: bool,
}

impl Writer<'_> {
    /// `false` when nothing more is wanted.
    async fn take(&mut self, line: &[u8]) -> bool {
        let Some(entry) = parse(line) else { return true };
        if !self.wanted(&entry) {
            return true;
        }
        if self.options.timestamps && self.fresh {
            self.buffer.extend_from_slice(entry.time.as_bytes());
            self.buffer.push(b' ');
        }
        self.buffer.extend_from_slice(entry.text);
        self.fresh = !entry.partial;
        if self.fresh {
            self.buffer.push(b'\n');
        }
        self.buffer.len() < CHUNK_BYTES || self.flush().await
    }

    fn wanted(&self, entry: &Entry<'_>) -> bool {
        let asked = self.options.stream.as_deref().map(str::to_ascii_lowercase);
        let since = self.options.since;
        asked.is_none_or(|s| s == "all" || s == entry.stream)
            && since.is_none_or(|since| entry.time.parse::<Timestamp>().is_ok_and(|t| t >= since))
    }

    async fn flush(&mut self) -> bool {
        if self.buffer.is_empty() {
            return true;
        }
        let mut chunk = std::mem::take(&mut self.buffer);
        if let Some(left) = &mut self.left {
            chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= chunk.len() as u64;
        }
        let more = self.left != Some(0);
        (chunk.is_empty() || self.out.send(chunk).await.is_ok()) && more
    }
}

/// Sends a log. Ends at its end, or when `ended` says that the container has ended and all was read.
///
/// # Errors
/// The log cannot be read.
pub async fn send(
    log: &Path,
    options: &LogOptions,
    out: &mpsc::Sender<Vec<u8>>,
    ended: &Ended,
) -> std::io::Result<()> {
    let mut writer = Writer { options, left: options.limit_bytes, out, buffer: Vec::new(), fresh: true };
    let mut skip = match options.tail_lines {
        Some(tail) => count_lines(log, options).await?.saturating_sub(tail),
        None => 0,
    };
    let files = files_of(log);
    let (last, older) = files.split_last().map_or((log, &[][..]), |(l, o)| (l.as_path(), o));
    for file in older {
        let content = read_whole(file).await?;
        let mut rest = &content[..];
        while let Some(line) = cut_line(&mut rest) {
            if pass(&writer, line, &mut skip) && !writer.take(line).await {
                return Ok(());
            }
        }
    }
    let mut file = open(last, options.follow, ended).await?;
    let mut rest: Vec<u8> = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        // Asked before reading: what was written before the end is read after it.
        let over = !options.follow || ended().await;
        let count = file.read(&mut chunk).await?;
        if count > 0 {
            rest.extend_from_slice(&chunk[..count]);
            while let Some(at) = rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = rest.drain(..=at).collect();
                let line = &line[..at];
                if pass(&writer, line, &mut skip) && !writer.take(line).await {
                    return Ok(());
                }
            }
            if rest.len() > LINE_BYTES_MAX {
                rest.clear();
            }
            continue;
        }
        if !writer.flush().await || over || out.is_closed() {
            return Ok(());
        }
        // The log was rotated when another file has its name now.
        if renewed(&file, last).await {
            file = open(last, true, ended).await?;
            rest.clear();
        } else {
            tokio::time::sleep(FOLLOW_PERIOD).await;
        }
    }
}

/// Takes the first line off, without its line feed.
fn cut_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    if rest.is_empty() {
        return None;
    }
    let at = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    let line = &rest[..at];
    *rest = rest.get(at + 1..).unwrap_or_default();
    Some(line)
}

/// Whether a line is beyond what `tailLines` skips.
fn pass(writer: &Writer<'_>, line: &[u8], skip: &mut u64) -> bool {
    if *skip == 0 {
        return true;
    }
    if let Some(entry) = parse(line)
        && writer.wanted(&entry)
        && !entry.partial
    {
        *skip -= 1;
    }
    false
}

async fn open(path: &Path, wait: bool, ended: &Ended) -> std::io::Result<tokio::fs::File> {
    loop {
        match tokio::fs::File::open(path).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && wait && !ended().await => {
                tokio::time::sleep(FOLLOW_PERIOD).await;
            }
            opened => return opened,
        }
    }
}

async fn renewed(file: &tokio::fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(mine), Ok(named)) = (file.metadata().await, tokio::fs::metadata(path).await) else {
        return false;
    };
    let Ok(mut cursor) = file.try_clone().await else { return false };
    let read_all = cursor.stream_position().await.is_ok_and(|at| at >= mine.len());
    read_all && mine.ino() != named.ino()
}

async fn read_whole(file: &Path) -> std::io::Result<Vec<u8>> {
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let bytes = std::fs::read(&file)?;
        if file.extension().is_none_or(|e| e != "gz") {
            return Ok(bytes);
        }
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain)?;
        Ok(plain)
    });
    read.await.map_err(std::io::Error::other)?
}

/// How many whole lines a log has that are wanted.
async fn count_lines(log: &Path, options: &LogOptions) -> std::io::Result<u64> {
    let (out, _unused) = mpsc::channel(1);
    let writer = Writer { options, left: None, out: &out, buffer: Vec::new(), fresh: true };
    let mut lines = 0;
    for file in files_of(log) {
        let content = match read_whole(&file).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            read => read?,
        };
        let entries = content.split(|b| *b == b'\n').filter_map(parse);
        lines += entries.filter(|e| !e.partial && writer.wanted(e)).count() as u64;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(log: &Path, options: LogOptions) -> String {
        let (sender, mut receiver) = mpsc::channel(64);
        send(log, &options, &sender, &|| Box::pin(async { true })).await.unwrap();
        drop(sender);
        let mut all = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            all.extend(chunk);
        }
        String::from_utf8(all).unwrap()
    }

    fn example() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(
            dir.path().join("0.log.20260101-000000"),
            "2026-01-01T00:00:00.000000001Z stdout F one\n",
        )
        .unwrap();
        std::fs::write(
            &log,
            "2026-01-01T00:00:01.5Z stdout P tw\n2026-01-01T00:00:01.5Z stdout F o\n\
             2026-01-01T00:00:02Z stderr F three\n2026-01-01T00:00:03Z stdout F \n",
        )
        .unwrap();
        (dir, log)
    }

    #[tokio::test]
    async fn logs_are_read_as_asked() {
        let (_dir, log) = example();
        let since = "2026-01-01T00:00:02Z".parse().ok();
        let default = LogOptions::default;
        for (options, expect) in [
            (default(), "one\ntwo\nthree\n\n"),
            (LogOptions { tail_lines: Some(2), ..default() }, "three\n\n"),
            (LogOptions { tail_lines: Some(0), ..default() }, ""),
            (LogOptions { limit_bytes: Some(5), ..default() }, "one\nt"),
            (LogOptions { since, ..default() }, "three\n\n"),
            (LogOptions { stream: Some("Stderr".into()), ..default() }, "three\n"),
            (
                LogOptions { timestamps: true, tail_lines: Some(3), ..default() },
                "2026-01-01T00:00:01.5Z two\n2026-01-01T00:00:02Z three\n2026-01-01T00:00:03Z \n",
            ),
        ] {
            assert_eq!(read(&log, options.clone()).await, expect, "{options:?}");
        }
        assert_eq!(last_lines(&log, 2, 100).await, "three\n\n");
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_after_rotation() {
        let (dir, log) = example();
        let (sender, mut receiver) = mpsc::channel(64);
        let path = log.clone();
        let options = LogOptions { follow: true, tail_lines: Some(0), ..LogOptions::default() };
        let task =
            tokio::spawn(async move { send(&path, &options, &sender, &|| Box::pin(async { false })).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::fs::rename(&log, dir.path().join("0.log.20260102-000000")).unwrap();
        std::fs::write(&log, "2026-01-02T00:00:00Z stdout F next\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap(), b"next\n");
        drop(receiver);
        task.await.unwrap().unwrap();
    }
}
