//! `/healthz`, `/livez`, `/readyz`, `/version` and `/metrics`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use hyper::StatusCode;
use serde_json::{Value, json};

use super::{
    Api,
    reply::{self, Reply},
    request::Query,
};
use crate::kinds::{Durability, VERSION, registry};

/// The Kubernetes version whose behaviour this is.
const MAJOR: &str = "1";
const MINOR: &str = "36";

/// Upper ends of the latency buckets (seconds).
const BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.0, 10.0, 60.0];
/// Different (verb, resource, code) that are counted; more go to none.
const SERIES_MAX: usize = 2048;

#[derive(Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

type SeriesKey = (&'static str, &'static str, &'static str, u16);

/// Counters of the API server.
pub struct Metrics {
    started: jiff::Timestamp,
    requests: Mutex<BTreeMap<SeriesKey, Series>>,
    inflight: AtomicI64,
    watches: Arc<AtomicI64>,
}

/// A running watch.
pub struct Watched(Arc<AtomicI64>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn new(started: jiff::Timestamp) -> Self {
        Self { started, requests: Mutex::default(), inflight: AtomicI64::new(0), watches: Arc::default() }
    }

    pub fn begin(&self) {
        self.inflight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a running watch for as long as the answer lives.
    pub fn watch(&self) -> Watched {
        self.watches.fetch_add(1, Ordering::Relaxed);
        Watched(Arc::clone(&self.watches))
    }

    /// Counts a request; `group` and `resource` are those of a row, or empty.
    pub fn end(
        &self,
        verb: &'static str,
        group: &'static str,
        resource: &'static str,
        code: u16,
        took: Duration,
    ) {
        self.inflight.fetch_sub(1, Ordering::Relaxed);
        let mut requests = self.requests.lock().expect("no holder panics");
        let key = (verb, group, resource, code);
        if requests.len() >= SERIES_MAX && !requests.contains_key(&key) {
            return;
        }
        let series = requests.entry(key).or_default();
        let seconds = took.as_secs_f64();
        series.count += 1;
        series.seconds += seconds;
        for (bucket, end) in series.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= end);
        }
    }

    fn text(&self, api: &Api) -> String {
        let mut out = String::new();
        let _ = self.write(&mut out, api);
        out
    }

    fn write(&self, out: &mut String, api: &Api) -> std::fmt::Result {
        let requests = self.requests.lock().expect("no holder panics");
        writeln!(
            out,
            "# HELP apiserver_request_total Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code."
        )?;
        writeln!(out, "# TYPE apiserver_request_total counter")?;
        for ((verb, group, resource, code), series) in requests.iter() {
            writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",group=\"{group}\",resource=\"{resource}\",verb=\"{}\"}} {}",
                verb.to_ascii_uppercase(),
                series.count
            )?;
        }
        writeln!(
            out,
            "# HELP apiserver_request_duration_seconds Response latency distribution in seconds for each verb, group, version, resource, subresource, scope and component."
        )?;
        writeln!(out, "# TYPE apiserver_request_duration_seconds histogram")?;
        for ((verb, group, resource, code), series) in requests.iter() {
            if *code >= 400 || *verb == "watch" {
                continue;
            }
            let labels = format!(
                "component=\"apiserver\",group=\"{group}\",resource=\"{resource}\",verb=\"{}\",code=\"{code}\"",
                verb.to_ascii_uppercase()
            );
            for (count, end) in series.buckets.iter().zip(BUCKETS) {
                writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{end}\"}} {count}")?;
            }
            writeln!(
                out,
                "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}",
                series.count
            )?;
            writeln!(out, "apiserver_request_duration_seconds_sum{{{labels}}} {}", series.seconds)?;
            writeln!(out, "apiserver_request_duration_seconds_count{{{labels}}} {}", series.count)?;
        }
        drop(requests);
        writeln!(
            out,
            "# HELP apiserver_current_inflight_requests Maximal number of currently used inflight request limit of this apiserver per request kind in last second."
        )?;
        writeln!(out, "# TYPE apiserver_current_inflight_requests gauge")?;
        writeln!(out, "apiserver_current_inflight_requests {}", self.inflight.load(Ordering::Relaxed))?;
        writeln!(
            out,
            "# HELP apiserver_longrunning_requests Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component."
        )?;
        writeln!(out, "# TYPE apiserver_longrunning_requests gauge")?;
        writeln!(
            out,
            "apiserver_longrunning_requests{{verb=\"WATCH\"}} {}",
            self.watches.load(Ordering::Relaxed)
        )?;
        writeln!(
            out,
            "# HELP apiserver_storage_objects Number of stored objects at the time of last check split by kind."
        )?;
        writeln!(out, "# TYPE apiserver_storage_objects gauge")?;
        for kind in
            registry::KINDS.iter().filter(|k| k.stored_as.is_none() && k.durability != Durability::Virtual)
        {
            let resource = kind.resource();
            let count = api.objects.store().list(&resource, None).items.len();
            writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {count}")?;
        }
        writeln!(
            out,
            "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds."
        )?;
        writeln!(out, "# TYPE process_start_time_seconds gauge")?;
        writeln!(out, "process_start_time_seconds {}", self.started.as_second())?;
        writeln!(
            out,
            "# HELP kubernetes_build_info A metric with a constant '1' value labeled by major, minor, git version."
        )?;
        writeln!(out, "# TYPE kubernetes_build_info gauge")?;
        writeln!(
            out,
            "kubernetes_build_info{{major=\"{MAJOR}\",minor=\"{MINOR}\",git_version=\"{VERSION}\"}} 1"
        )
    }
}

/// `GET /metrics`.
pub fn metrics(api: &Api) -> Reply {
    reply::reply(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        reply::full(api.metrics.text(api)),
    )
}

/// `GET /version`.
pub fn version() -> Value {
    json!({
        "major": MAJOR, "minor": MINOR, "emulationMajor": MAJOR, "emulationMinor": MINOR,
        "minCompatibilityMajor": MAJOR, "minCompatibilityMinor": "35",
        "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

/// The architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The checks, and whether `/readyz` alone makes them.
const CHECKS: [(&str, bool); 4] = [("ping", false), ("log", false), ("etcd", false), ("shutdown", true)];

/// `/healthz`, `/livez`, `/readyz`, or a single check below them.
pub struct Asked<'a> {
    probe: &'a str,
    single: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// What a path asks for; `None`: there is no such check.
    pub fn of(probe: &'a str, single: &[&'a str]) -> Option<Self> {
        match *single {
            [] => Some(Self { probe, single: None }),
            [name]
                if CHECKS.iter().any(|(own, of_ready)| *own == name && (!of_ready || probe == "readyz")) =>
            {
                Some(Self { probe, single: Some(name) })
            }
            _ => None,
        }
    }
}

/// Makes the checks and says what they found.
pub async fn check(api: &Api, asked: &Asked<'_>, query: &Query) -> Reply {
    let Asked { probe, single } = *asked;
    let mut checks = Vec::with_capacity(CHECKS.len());
    for (name, of_ready) in CHECKS {
        if of_ready && probe != "readyz" || single.is_some_and(|single| single != name) {
            continue;
        }
        let good = match name {
            "etcd" => api.objects.store().check().await.is_ok(),
            "shutdown" => !api.stop.is_cancelled(),
            _ => true,
        };
        checks.push((name, good));
    }
    if single.is_some() {
        return if checks.iter().all(|(_, good)| *good) {
            reply::text(StatusCode::OK, "ok")
        } else {
            reply::text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: reason withheld\n")
        };
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut report = String::new();
    let mut failed = false;
    for (name, good) in &checks {
        let line = if excluded.contains(name) {
            format!("[+]{name} excluded: ok\n")
        } else if *good {
            format!("[+]{name} ok\n")
        } else {
            failed = true;
            format!("[-]{name} failed: reason withheld\n")
        };
        report.push_str(&line);
    }
    if failed {
        return reply::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{probe} check failed\n"));
    }
    if query.get("verbose").is_some() {
        return reply::text(StatusCode::OK, format!("{report}{probe} check passed\n"));
    }
    reply::text(StatusCode::OK, "ok")
}
