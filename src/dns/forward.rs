//! Names outside the cluster: which server to ask, and what is remembered.
//!
//! In: questions; the configuration; the host's resolv.conf, read anew when it changes. Out: answers,
//! or at once a failure while no server answers. Invariants: never asks an address we listen on;
//! everything kept is bounded.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, RecordType},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::upstream::{Question, Resolved, exchange};

/// Answers kept.
const CACHE_ENTRIES_MAX: usize = 1024;
/// How long an answer is kept, whatever it says (seconds).
const CACHE_TTL_SECONDS_MAX: u32 = 3600;
/// How long it is kept that there is none (seconds).
const CACHE_NEGATIVE_TTL_SECONDS_MAX: u32 = 30;
/// How long a server that did not answer is left alone while another does, and how long all
/// questions fail at once when none does.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How often resolv.conf is looked at.
const HOST_CONFIG_PERIOD: Duration = Duration::from_secs(1);
/// Servers asked for one question.
const SERVERS_MAX: usize = 3;
const DNS_PORT: u16 = 53;

/// Where names outside the cluster are resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardOptions {
    /// Asked in this order; empty for those of `resolv_conf`.
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
    /// The host's file; `None` for `/etc/resolv.conf`.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    #[serde(default)]
    pub stub_domains: Vec<StubDomain>,
}

/// A domain with servers of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StubDomain {
    /// `corp.example`
    pub domain: String,
    pub servers: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Cached {
    resolved: Arc<Resolved>,
    stored: Instant,
    ttl: u32,
}

#[derive(Debug, Default)]
struct HostConfig {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

/// Resolves names outside the cluster.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    resolv_conf: PathBuf,
    stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Where we listen ourselves.
    own: Vec<SocketAddr>,
    cache: Mutex<HashMap<Question, Cached>>,
    host: Mutex<HostConfig>,
    failed: Mutex<HashMap<SocketAddr, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwarder {
    /// `own` are the addresses we listen on.
    pub fn new(options: ForwardOptions, own: Vec<SocketAddr>) -> Result<Self, super::Error> {
        let mut stubs = Vec::new();
        for stub in options.stub_domains {
            let mut name = Name::from_utf8(stub.domain.trim_end_matches('.'))
                .map_err(|_| super::Error::Name { field: "stub domain", value: stub.domain.clone() })?;
            name.set_fqdn(true);
            stubs.push((name, stub.servers));
        }
        Ok(Self {
            upstreams: options.upstreams,
            resolv_conf: options.resolv_conf.unwrap_or_else(|| PathBuf::from("/etc/resolv.conf")),
            stubs,
            own,
            cache: Mutex::default(),
            host: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// The answer to a question, from memory or from a server; `None` when there is none to be had.
    pub async fn resolve(&self, question: &Question) -> Option<Arc<Resolved>> {
        if let Some(resolved) = self.remembered(question) {
            return Some(resolved);
        }
        for server in self.servers(question.query.name()) {
            match exchange(server, question).await {
                Ok(resolved) => {
                    lock(&self.failed).remove(&server);
                    if matches!(resolved.code, ResponseCode::ServFail | ResponseCode::Refused) {
                        continue;
                    }
                    let resolved = Arc::new(resolved);
                    self.remember(question, &resolved);
                    return Some(resolved);
                }
                Err(error) => {
                    tracing::debug!(%server, %error, "a DNS server did not answer");
                    let mut failed = lock(&self.failed);
                    failed.retain(|_, at| at.elapsed() < RETRY_AFTER);
                    failed.insert(server, Instant::now());
                }
            }
        }
        None
    }

    /// The servers to ask for a name, the best first; none while none of them answers.
    fn servers(&self, name: &Name) -> Vec<SocketAddr> {
        let stub = self.stubs.iter().filter(|(domain, _)| domain.zone_of(name));
        let mut servers = match stub.max_by_key(|(domain, _)| domain.num_labels()) {
            Some((_, servers)) => servers.clone(),
            None if self.upstreams.is_empty() => self.host_servers(),
            None => self.upstreams.clone(),
        };
        servers.retain(|server| !self.own.contains(server));
        let failed = lock(&self.failed);
        servers.retain(|server| failed.get(server).is_none_or(|at| at.elapsed() >= RETRY_AFTER));
        servers.truncate(SERVERS_MAX);
        servers
    }

    fn host_servers(&self) -> Vec<SocketAddr> {
        let mut host = lock(&self.host);
        if host.looked.is_none_or(|at| at.elapsed() >= HOST_CONFIG_PERIOD) {
            host.looked = Some(Instant::now());
            let modified = std::fs::metadata(&self.resolv_conf).and_then(|meta| meta.modified()).ok();
            if modified.is_none() || modified != host.modified {
                host.modified = modified;
                host.servers = read_resolv_conf(&self.resolv_conf);
            }
        }
        host.servers.clone()
    }

    fn remembered(&self, question: &Question) -> Option<Arc<Resolved>> {
        let mut cache = lock(&self.cache);
        let cached = cache.get(question)?;
        let age = cached.stored.elapsed().as_secs() as u32;
        if age >= cached.ttl {
            cache.remove(question);
            return None;
        }
        if age == 0 {
            return Some(cached.resolved.clone());
        }
        let mut resolved = (*cached.resolved).clone();
        for record in resolved.answers.iter_mut().chain(&mut resolved.authorities) {
            record.decrement_ttl(age);
        }
        Some(Arc::new(resolved))
    }

    fn remember(&self, question: &Question, resolved: &Arc<Resolved>) {
        let ttl = lifetime(resolved);
        if ttl == 0 {
            return;
        }
        let mut cache = lock(&self.cache);
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.retain(|_, cached| cached.stored.elapsed().as_secs() < u64::from(cached.ttl));
        }
        if cache.len() >= CACHE_ENTRIES_MAX {
            // Which ones go does not matter much; half at once, so that this is rare.
            let mut keep = false;
            cache.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        let cached = Cached { resolved: resolved.clone(), stored: Instant::now(), ttl };
        cache.insert(question.clone(), cached);
    }
}

/// How long an answer may be kept (seconds; RFC 2308 for negative ones).
fn lifetime(resolved: &Resolved) -> u32 {
    match resolved.code {
        ResponseCode::NoError if !resolved.answers.is_empty() => {
            let ttl = resolved.answers.iter().map(|record| record.ttl).min().unwrap_or(0);
            ttl.min(CACHE_TTL_SECONDS_MAX)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => resolved
            .authorities
            .iter()
            .filter(|record| record.record_type() == RecordType::SOA)
            .map(|record| match &record.data {
                RData::SOA(soa) => record.ttl.min(soa.minimum),
                _ => 0,
            })
            .next()
            .unwrap_or(0)
            .min(CACHE_NEGATIVE_TTL_SECONDS_MAX),
        _ => 0,
    }
}

/// The name servers of a resolv.conf; none when it cannot be read.
fn read_resolv_conf(path: &Path) -> Vec<SocketAddr> {
    match std::fs::read_to_string(path) {
        Ok(text) => nameservers(&text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "names outside the cluster cannot be resolved");
            Vec::new()
        }
    }
}

/// The `nameserver` lines of a resolv.conf (`resolv.conf(5)`); link-local IPv6 ones with a scope are
/// left out.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(|word| word.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, DNS_PORT))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{
        op::Query,
        rr::{
            Record,
            rdata::{A, SOA},
        },
    };

    use super::*;

    fn question(name: &str) -> Question {
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        Question { query, dnssec: false, checking_disabled: false }
    }

    fn resolved(ttl: u32) -> Arc<Resolved> {
        let name = Name::from_ascii("example.org.").unwrap();
        let record = Record::from_rdata(name, ttl, RData::A(A(Ipv4Addr::LOCALHOST)));
        Arc::new(Resolved {
            code: ResponseCode::NoError,
            answers: vec![record],
            authorities: Vec::new(),
            authentic: false,
        })
    }

    #[test]
    fn resolv_conf_is_read() {
        let text =
            "# comment\nsearch lan\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n  nameserver ::1\n";
        let expected: Vec<SocketAddr> = vec!["192.0.2.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(nameservers(text), expected);
    }

    #[tokio::test]
    async fn servers_are_chosen_and_never_ourselves() {
        let own: SocketAddr = "10.43.0.10:53".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.43.0.10\nnameserver 192.0.2.1\n").unwrap();
        let stub =
            StubDomain { domain: "corp.example".into(), servers: vec!["192.0.2.9:53".parse().unwrap()] };
        let options =
            ForwardOptions { upstreams: Vec::new(), resolv_conf: Some(path), stub_domains: vec![stub] };
        let forwarder = Forwarder::new(options, vec![own]).unwrap();
        let servers = |name: &str| {
            let servers = forwarder.servers(&Name::from_ascii(name).unwrap());
            servers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(servers("example.org."), ["192.0.2.1:53"]);
        assert_eq!(servers("www.CORP.example."), ["192.0.2.9:53"]);
        lock(&forwarder.failed).insert("192.0.2.1:53".parse().unwrap(), Instant::now());
        assert!(servers("example.org.").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_as_long_as_they_say() {
        let forwarder = Forwarder::new(ForwardOptions::default(), Vec::new()).unwrap();
        let question = question("example.org.");
        forwarder.remember(&question, &resolved(10));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(forwarder.remembered(&question).unwrap().answers[0].ttl, 6);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(forwarder.remembered(&question).is_none());
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let forwarder = Forwarder::new(ForwardOptions::default(), Vec::new()).unwrap();
        for number in 0..2 * CACHE_ENTRIES_MAX {
            forwarder.remember(&question(&format!("n{number}.example.")), &resolved(60));
        }
        assert!(lock(&forwarder.cache).len() <= CACHE_ENTRIES_MAX);
    }

    #[test]
    fn negative_answers_are_kept_shortly() {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 3600);
        let negative = |authorities| Resolved {
            code: ResponseCode::NXDomain,
            answers: Vec::new(),
            authorities,
            authentic: false,
        };
        assert_eq!(lifetime(&negative(vec![Record::from_rdata(name, 900, RData::SOA(soa))])), 30);
        assert_eq!(lifetime(&negative(Vec::new())), 0);
    }
}
