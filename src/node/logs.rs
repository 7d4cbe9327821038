//! Reading CRI logs: `<RFC3339Nano> stdout|stderr P|F <text>`, across rotation.
//!
//! In: the path of a container's log and what is asked for. Out: lines, in order, without end when
//! followed. The runtime rotates `n.log` to `n.log.1`, that to `n.log.2`, and so on.
//! Source: `pkg/kubelet/kuberuntime/logs/logs.go`.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, VecDeque},
    fs::File,
    io::Seek,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::{io::AsyncReadExt, sync::mpsc};

use super::memory;
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
    files.sort_by_key(|file| Reverse(number_of(file)));
    files.push(log.to_owned());
    files
}

/// The number that rotation gave to a file: 1 is the youngest.
fn number_of(file: &Path) -> u64 {
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = name.strip_suffix(".gz").unwrap_or(name);
    name.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX)
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

/// Puts the logs below `root` into memory: a tmpfs of `bytes`, unless there is one already. Blocks.
///
/// # Errors
/// The folder or the mount cannot be made.
pub fn keep_in_memory(root: &Path, bytes: u64) -> std::io::Result<()> {
    use nix::mount::MsFlags;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=755,size={bytes}");
    memory::keep(root, || memory::tmpfs("sampan-logs", root, flags, &options))
}

/// Removes rotated files of all logs below `root`, the oldest first, until they take at most `max` bytes
/// (0: any). The file that a container writes stays. Blocks.
pub fn keep_within(root: &Path, max: u64) {
    use std::os::unix::fs::MetadataExt;
    if max == 0 {
        return;
    }
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let (mut total, mut old) = (0, Vec::new());
    for file in entries(root)
        .flat_map(|pod| entries(&pod).collect::<Vec<_>>())
        .flat_map(|c| entries(&c).collect::<Vec<_>>())
    {
        let Ok(meta) = std::fs::symlink_metadata(&file) else { continue };
        total += meta.blocks() * 512;
        if file.extension().is_some_and(|e| e != "log") {
            old.push((meta.mtime(), Reverse(number_of(&file)), file, meta.blocks() * 512));
        }
    }
    old.sort();
    for (_, _, file, bytes) in old {
        if total <= max {
            return;
        }
        if std::fs::remove_file(&file).is_ok() {
            total -= bytes;
        }
    }
}

/// The end of a log, for a termination message.
pub async fn last_lines(log: &Path, lines: usize, bytes: usize) -> String {
    let content = tokio::fs::read(log).await.unwrap_or_default();
    let mut last: VecDeque<u8> = VecDeque::new();
    for entry in content.split(|b| *b == b'\n').rev().filter_map(parse).take(lines) {
        let mut text = entry.text.to_vec();
        if !entry.partial {
            text.push(b'\n');
        }
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
        if !self.options.wants(&entry) {
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

    /// Whether anything more is wanted.
    fn more(&self) -> bool {
        self.left != Some(0) && !self.out.is_closed()
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

/// Sends a log. Ends at its end; a followed one when `ended` says that the container has ended and all was read.
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
    let mut files = opened(log).await?;
    while files.is_empty() {
        if !options.follow || ended().await {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW_PERIOD).await;
        files = opened(log).await?;
    }
    if let Some(tail) = options.tail_lines {
        let options = options.clone();
        let found = tokio::task::spawn_blocking(move || start_of_tail(files, &options, tail));
        files = found.await.map_err(std::io::Error::other)??;
    }
    while let Some(file) = files.pop_front() {
        let mut file = tokio::fs::File::from_std(file);
        let mut rest = Vec::new();
        loop {
            // Asked before reading: what was written before the end is read after it.
            let over = !options.follow || ended().await;
            while copy(&mut file, &mut rest, &mut writer).await? {}
            if !writer.more() {
                return Ok(());
            }
            if files.is_empty() && options.follow {
                files = younger(&file, log).await?;
                // What was written until the log was rotated.
                while copy(&mut file, &mut rest, &mut writer).await? {}
            }
            if !writer.more() || !writer.flush().await {
                return Ok(());
            }
            if over || !files.is_empty() {
                break;
            }
            tokio::time::sleep(FOLLOW_PERIOD).await;
        }
    }
    Ok(())
}

/// The files of a log, the oldest first. What rotation renames or removes from now on is read all the same.
async fn opened(log: &Path) -> std::io::Result<VecDeque<File>> {
    let log = log.to_owned();
    let all = tokio::task::spawn_blocking(move || open_all(&log));
    all.await.map_err(std::io::Error::other)?
}

fn open_all(log: &Path) -> std::io::Result<VecDeque<File>> {
    let (mut files, mut known) = (VecDeque::new(), BTreeSet::new());
    // The youngest first: one that rotation moves meanwhile is met twice, and none is missed.
    for path in files_of(log).iter().rev() {
        let file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if known.insert(file.metadata()?.ino()) {
            files.push_front(file);
        }
    }
    Ok(files)
}

/// The files of a log that rotation has begun after this one.
async fn younger(file: &tokio::fs::File, log: &Path) -> std::io::Result<VecDeque<File>> {
    let mine = file.metadata().await?.ino();
    match tokio::fs::metadata(log).await {
        Ok(named) if named.ino() != mine => {}
        _ => return Ok(VecDeque::new()),
    }
    let mut files = opened(log).await?;
    let inodes = files.iter().map(|f| f.metadata().map(|m| m.ino()));
    let position = inodes.collect::<Result<Vec<_>, _>>()?.iter().position(|inode| *inode == mine);
    // Who is not among them is older than all.
    files.drain(..position.map_or(0, |at| at + 1));
    Ok(files)
}

/// Passes one chunk of a file on; `false` at its end. `rest` is an incomplete line.
async fn copy(
    file: &mut tokio::fs::File,
    rest: &mut Vec<u8>,
    writer: &mut Writer<'_>,
) -> std::io::Result<bool> {
    let begun = rest.len();
    rest.resize(begun + CHUNK_BYTES, 0);
    let count = file.read(&mut rest[begun..]).await?;
    rest.truncate(begun + count);
    let mut taken = 0;
    while let Some(at) = rest[taken..].iter().position(|b| *b == b'\n') {
        if !writer.take(&rest[taken..taken + at]).await {
            return Ok(false);
        }
        taken += at + 1;
    }
    rest.drain(..taken);
    if rest.len() > LINE_BYTES_MAX {
        rest.clear();
    }
    Ok(count > 0)
}

/// The files that hold the last `tail` wanted lines of a log, the first where they begin. Files are read from
/// their ends, and no further than needed. Blocks.
fn start_of_tail(
    mut files: VecDeque<File>,
    options: &LogOptions,
    tail: u64,
) -> std::io::Result<VecDeque<File>> {
    let (first, offset) = tail_start(&files, options, tail)?;
    files.drain(..first);
    if let Some(mut file) = files.front() {
        file.seek(std::io::SeekFrom::Start(offset))?;
    }
    Ok(files)
}

/// The index of a file and an offset in it.
fn tail_start(files: &VecDeque<File>, options: &LogOptions, tail: u64) -> std::io::Result<(usize, u64)> {
    let mut left = tail;
    let mut begin = None;
    for (index, file) in files.iter().enumerate().rev() {
        let mut end = file.metadata()?.len();
        begin.get_or_insert((index, end));
        // The beginning of the lines after `end`, whose own beginning is before it.
        let mut tail_of_line: Vec<u8> = Vec::new();
        while end > 0 {
            let from = end.saturating_sub(CHUNK_BYTES as u64);
            let mut chunk = vec![0; usize::try_from(end - from).unwrap_or(CHUNK_BYTES)];
            file.read_exact_at(&mut chunk, from)?;
            chunk.append(&mut tail_of_line);
            // Whole lines from the last one back; what is before the first line feed waits, unless it
            // is the beginning of the file.
            let mut stop = chunk.len();
            loop {
                let body = &chunk[..stop.saturating_sub(usize::from(chunk[..stop].ends_with(b"\n")))];
                let line_feed = body.iter().rposition(|b| *b == b'\n');
                let start = match line_feed {
                    Some(at) => at + 1,
                    None if from == 0 => 0,
                    None => break,
                };
                if let Some(entry) = parse(&body[start..])
                    && options.wants(&entry)
                    && !entry.partial
                {
                    if left == 0 {
                        // The line before the first wanted one: what follows it is the tail.
                        return Ok((index, from + stop as u64));
                    }
                    left -= 1;
                }
                begin = Some((index, from + start as u64));
                stop = start;
                if start == 0 {
                    break;
                }
            }
            chunk.truncate(stop);
            tail_of_line = chunk;
            end = from;
        }
    }
    Ok(begin.unwrap_or((0, 0)))
}

/// Which entries somebody wants.
trait Wants {
    fn wants(&self, entry: &Entry<'_>) -> bool;
}

impl Wants for LogOptions {
    fn wants(&self, entry: &Entry<'_>) -> bool {
        let stream = self.stream.as_deref();
        stream.is_none_or(|s| s.eq_ignore_ascii_case("all") || s.eq_ignore_ascii_case(entry.stream))
            && self.since.is_none_or(|since| entry.time.parse::<Timestamp>().is_ok_and(|t| t >= since))
    }
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
        std::fs::write(dir.path().join("0.log.1"), "2026-01-01T00:00:00.000000001Z stdout F one\n").unwrap();
        std::fs::write(dir.path().join("0.log.10"), "2025-12-01T00:00:00Z stdout F oldest\n").unwrap();
        std::fs::write(dir.path().join("0.log.2"), "2025-12-02T00:00:00Z stdout F older\n").unwrap();
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
            (default(), "oldest\nolder\none\ntwo\nthree\n\n"),
            (LogOptions { tail_lines: Some(2), ..default() }, "three\n\n"),
            (LogOptions { tail_lines: Some(0), ..default() }, ""),
            (LogOptions { limit_bytes: Some(8), ..default() }, "oldest\no"),
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

    #[test]
    fn old_files_go_when_all_logs_are_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ns_p_u/c");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["0.log", "0.log.1", "0.log.2"] {
            std::fs::write(folder.join(name), [b'x'; 8192]).unwrap();
        }
        let left = |max| {
            keep_within(dir.path(), max);
            std::fs::read_dir(&folder).unwrap().count()
        };
        assert_eq!((left(0), left(1 << 20), left(20_000), left(1)), (3, 3, 2, 1));
        assert!(folder.join("0.log").exists());
    }

    /// Puts a line into the log after one rotation, as the monitor does it.
    fn rotate(log: &Path, text: &str) {
        let numbered = |n: u32| log.with_extension(format!("log.{n}"));
        for n in (1..20).rev() {
            let _ = std::fs::rename(numbered(n), numbered(n + 1));
        }
        let _ = std::fs::rename(log, numbered(1));
        std::fs::write(log, format!("2026-01-02T00:00:00Z stdout F {text}\n")).unwrap();
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_after_rotation() {
        let (dir, log) = example();
        let (sender, mut receiver) = mpsc::channel(64);
        let path = log.clone();
        let (end, ended) = tokio::sync::watch::channel(false);
        let options = LogOptions { follow: true, tail_lines: Some(1), ..LogOptions::default() };
        let task = tokio::spawn(async move {
            let ended = move || Box::pin(std::future::ready(*ended.borrow())) as BoxFuture<'static, bool>;
            send(&path, &options, &sender, &ended).await
        });
        assert_eq!(receiver.recv().await.unwrap(), b"\n");
        let mut heard = Vec::new();
        // Once, then more than once between two looks, then once more with the container's end.
        for lines in [&["one"][..], &["two", "three", "four"], &["five", "last"]] {
            for line in lines {
                rotate(&log, line);
            }
            if lines.contains(&"last") {
                // With the file that is read all older ones are gone.
                for n in 2..30 {
                    let _ = std::fs::remove_file(dir.path().join(format!("0.log.{n}")));
                }
                end.send(true).unwrap();
            }
            let expected = lines.join("\n") + "\n";
            while heard != expected.as_bytes() {
                heard.extend(receiver.recv().await.expect(&expected));
            }
            heard.clear();
        }
        assert_eq!(receiver.recv().await, None);
        task.await.unwrap().unwrap();
    }

    #[test]
    fn the_files_of_a_log_are_opened_once_each_the_oldest_first() {
        let (_dir, log) = example();
        // A rotation between two opens shows one file under two names.
        std::fs::hard_link(&log, log.with_extension("log.3")).unwrap();
        let sizes: Vec<u64> =
            open_all(&log).unwrap().iter().map(|file| file.metadata().unwrap().len()).collect();
        let size = |name: &str| std::fs::metadata(log.with_file_name(name)).unwrap().len();
        assert_eq!(sizes, ["0.log.10", "0.log.2", "0.log.1", "0.log"].map(size));
    }
}
