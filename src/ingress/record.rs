//! What is written down of requests: counters for Prometheus, and lines of an access log.
//!
//! Invariants: no request waits for either; a log that cannot be written as fast as requests come
//! loses lines, which are counted.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use super::Error;

/// Lines that wait to be written.
const LINES_MAX: usize = 1024;
/// A log of this size is set aside (bytes): `FILE.1`, one is kept.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// Different (Ingress, status) that are counted; more go to none.
const SERIES_MAX: usize = 2048;

#[derive(Default)]
struct Series {
    count: u64,
    seconds: f64,
}

/// By Ingress, then by status.
#[derive(Default)]
struct Counted {
    by_ingress: BTreeMap<String, BTreeMap<u16, Series>>,
    series: usize,
}

impl Counted {
    /// The series to count in; `None` when there are too many.
    fn series(&mut self, ingress: &str, status: u16) -> Option<&mut Series> {
        let is_known = self.by_ingress.get(ingress).is_some_and(|by_status| by_status.contains_key(&status));
        if !is_known {
            if self.series == SERIES_MAX {
                return None;
            }
            self.series += 1;
            self.by_ingress.entry(ingress.to_owned()).or_default().insert(status, Series::default());
        }
        self.by_ingress.get_mut(ingress)?.get_mut(&status)
    }
}

/// The record of one server.
#[derive(Default)]
pub struct Record {
    pub connections: AtomicI64,
    pub handshakes_failed: AtomicU64,
    lines_lost: AtomicU64,
    requests: Mutex<Counted>,
    log: Option<SyncSender<String>>,
}

/// One request, as a line says it.
pub struct Entry<'a> {
    pub client: std::net::IpAddr,
    pub method: &'a str,
    /// As the client wrote it.
    pub target: &'a str,
    pub host: &'a str,
    pub version: hyper::Version,
    pub agent: &'a str,
}

/// How a request was answered.
#[derive(Clone, Copy)]
pub struct Answered<'a> {
    pub status: u16,
    /// `namespace/name`; empty when no rule fits.
    pub ingress: &'a str,
    pub took: Duration,
}

impl Record {
    /// With an access log in this file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn logging_to(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Log { path: path.to_owned(), source };
        let log = Log::open(path.to_owned()).map_err(failed)?;
        let (sender, lines) = sync_channel(LINES_MAX);
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(move || log.write(&lines)).map_err(failed)?;
        Ok(Self { log: Some(sender), ..Self::default() })
    }

    /// Whether lines are wanted.
    pub fn is_logging(&self) -> bool {
        self.log.is_some()
    }

    /// Counts a request.
    pub fn count(&self, answered: Answered<'_>) {
        let mut requests = self.requests.lock().expect("no holder panics");
        if let Some(series) = requests.series(answered.ingress, answered.status) {
            series.count += 1;
            series.seconds += answered.took.as_secs_f64();
        }
    }

    /// Writes its line.
    pub fn note(&self, entry: &Entry<'_>, answered: Answered<'_>) {
        let Some(log) = &self.log else { return };
        if log.try_send(line(entry, answered)).is_err() {
            self.lines_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// In Prometheus' text format.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, value: String| {
            let _ = writeln!(text, "# TYPE sampan_ingress_{name} {kind}\nsampan_ingress_{name} {value}");
        };
        one("connections", "gauge", self.connections.load(Ordering::Relaxed).to_string());
        let failed = self.handshakes_failed.load(Ordering::Relaxed);
        one("tls_handshakes_failed_total", "counter", failed.to_string());
        one("access_log_lines_lost_total", "counter", self.lines_lost.load(Ordering::Relaxed).to_string());
        text.push_str("# TYPE sampan_ingress_request_duration_seconds summary\n");
        let requests = self.requests.lock().expect("no holder panics");
        let all = requests.by_ingress.iter();
        let all =
            all.flat_map(|(ingress, by)| by.iter().map(move |(status, series)| (ingress, status, series)));
        for (ingress, status, series) in all {
            let labels = format!("{{ingress=\"{ingress}\",code=\"{status}\"}}");
            let name = "sampan_ingress_request_duration_seconds";
            let _ = writeln!(text, "{name}_sum{labels} {}", series.seconds);
            let _ = writeln!(text, "{name}_count{labels} {}", series.count);
        }
        text
    }
}

/// As nginx's combined log, with host, seconds and Ingress behind. The length of the body is not
/// known yet.
fn line(entry: &Entry<'_>, answered: Answered<'_>) -> String {
    let quoted = |text: &str| text.replace(|c: char| c.is_control() || c == '"' || c == '\\', "?");
    format!(
        "{} - - [{}] \"{} {} {:?}\" {} - \"-\" \"{}\" {} {:.3} {}\n",
        entry.client,
        jiff::Timestamp::now().strftime("%d/%b/%Y:%H:%M:%S +0000"),
        entry.method,
        quoted(entry.target),
        entry.version,
        answered.status,
        quoted(entry.agent),
        quoted(entry.host),
        answered.took.as_secs_f64(),
        if answered.ingress.is_empty() { "-" } else { answered.ingress },
    )
}

struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, file, bytes })
    }

    /// Writes lines until the server is gone; lines that wait together are one write.
    fn write(mut self, lines: &Receiver<String>) {
        while let Ok(first) = lines.recv() {
            let block: String = std::iter::once(first).chain(lines.try_iter()).collect();
            if let Err(error) = self.append(&block) {
                tracing::warn!(path = %self.path.display(), %error, "the access log cannot be written");
            }
        }
    }

    fn append(&mut self, block: &str) -> io::Result<()> {
        if self.bytes >= FILE_BYTES_MAX {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".1");
            fs::rename(&self.path, aside)?;
            *self = Self::open(self.path.clone())?;
        }
        self.file.write_all(block.as_bytes())?;
        self.bytes += block.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(target: &str) -> Entry<'_> {
        Entry {
            client: [192, 0, 2, 7].into(),
            method: "GET",
            target,
            host: "web.test",
            version: hyper::Version::HTTP_11,
            agent: "curl",
        }
    }

    fn answered(ingress: &str, status: u16) -> Answered<'_> {
        Answered { status, ingress, took: Duration::from_millis(12) }
    }

    #[test]
    fn a_client_cannot_write_lines_of_its_own() {
        let text = line(&entry("/a\"b\nc"), answered("ns/web", 200));
        assert!(text.starts_with("192.0.2.7 - - ["), "{text}");
        assert!(
            text.ends_with("\"GET /a?b?c HTTP/1.1\" 200 - \"-\" \"curl\" web.test 0.012 ns/web\n"),
            "{text}"
        );
    }

    #[test]
    fn requests_are_counted_and_logged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let record = Record::logging_to(&path).unwrap();
        for target in ["/a", "/b"] {
            record.count(answered("ns/web", 200));
            record.note(&entry(target), answered("ns/web", 200));
        }
        let text = record.metrics();
        assert!(text.contains("_count{ingress=\"ns/web\",code=\"200\"} 2\n"), "{text}");
        let begin = std::time::Instant::now();
        while fs::read_to_string(&path).unwrap().lines().count() < 2 {
            assert!(begin.elapsed() < Duration::from_secs(5), "the lines are not written");
            std::thread::yield_now();
        }
    }

    #[test]
    fn series_are_bounded() {
        let record = Record::default();
        for status in 0..=u16::try_from(SERIES_MAX).unwrap() {
            record.count(answered("ns/web", status));
        }
        record.count(answered("ns/web", 0));
        let text = record.metrics();
        assert!(text.contains("_count{ingress=\"ns/web\",code=\"0\"} 2\n"), "{text}");
        assert_eq!(text.matches("_count{").count(), SERIES_MAX);
    }
}
