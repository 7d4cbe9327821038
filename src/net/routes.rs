//! What an Ingress server serves: rules, where they lead, certificates. Plain data, one pure look-up.
//!
//! In: JSON of the desired set, one table a namespace. Out: the rule for a host and a path. Host and
//! path decide as in `networking.k8s.io/v1`: an exact host before a wildcard before none, then an
//! exact path before the longest prefix, prefixes by whole path elements.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use super::cidr::Cidr;

/// All rules and certificates; tables of namespaces add up with [`IngressTable::extend`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressTable {
    pub rules: Vec<IngressRule>,
    pub certificates: Vec<IngressCertificate>,
}

/// One path of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressRule {
    /// `namespace/name` of the Ingress, for messages.
    pub ingress: String,
    /// `a.example.com`, `*.example.com`, or empty for every host; in lower case.
    pub host: String,
    pub path: String,
    /// The whole path has to be equal; otherwise it is a prefix.
    pub exact: bool,
    /// A default backend: only when no other rule of the host fits.
    pub fallback: bool,
    /// What `$1` and `$2` of the rewrite target stand for.
    pub captures: Captures,
    /// The ready endpoints.
    pub endpoints: Vec<SocketAddrV4>,
    pub options: IngressOptions,
}

/// The groups of the path patterns that rewrites are used with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Captures {
    #[default]
    None,
    /// `/x/(.*)`: `$1` is what follows the prefix.
    Rest,
    /// `/x(/|$)(.*)`: `$1` is the slash, `$2` what follows it.
    SlashRest,
}

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BackendProtocol {
    #[default]
    Http,
    Https,
    Grpc,
    Grpcs,
}

impl BackendProtocol {
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }

    /// HTTP/2 without asking.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }
}

/// What the annotations of an Ingress ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressOptions {
    pub rewrite_target: Option<String>,
    /// Plain requests are sent to HTTPS.
    pub redirect_to_tls: bool,
    pub protocol: BackendProtocol,
    /// Bytes of a request's body; `None` for no limit.
    pub body_bytes_max: Option<u64>,
    /// Seconds between two reads from, and two writes to, the backend; `None` for the defaults.
    pub read_timeout_seconds: Option<u32>,
    pub send_timeout_seconds: Option<u32>,
    /// Who may come: `10.0.0.0/8` or single addresses; empty for all.
    pub source_ranges: Vec<String>,
}

impl IngressOptions {
    /// Whether a client may come. A range that is none lets nobody in.
    pub fn admits(&self, client: Ipv4Addr) -> bool {
        let within = |range: &String| {
            range.parse().is_ok_and(|network: Cidr| network.contains(client))
                || range.parse().is_ok_and(|address: Ipv4Addr| address == client)
        };
        self.source_ranges.is_empty() || self.source_ranges.iter().any(within)
    }
}

/// A certificate with its key, and the hosts it is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressCertificate {
    /// `namespace/name` of the Secret, for messages.
    pub secret: String,
    pub hosts: Vec<String>,
    /// PEM, the server's own certificate first.
    pub certificate: String,
    /// PEM.
    pub key: String,
}

impl IngressTable {
    pub fn extend(&mut self, other: Self) {
        self.rules.extend(other.rules);
        self.certificates.extend(other.certificates);
    }

    /// The rule for a host (lower case, no port) and a path (decoded).
    pub fn find(&self, host: &str, path: &str) -> Option<&IngressRule> {
        let rank = self.rules.iter().filter_map(|rule| host_rank(&rule.host, host)).max()?;
        let of_host = |rank| self.rules.iter().filter(move |rule| host_rank(&rule.host, host) == Some(rank));
        best(of_host(rank), path).or_else(|| best(of_host(0).filter(|rule| rule.fallback), path))
    }
}

fn best<'a>(rules: impl Iterator<Item = &'a IngressRule>, path: &str) -> Option<&'a IngressRule> {
    let mut found: Option<(_, &IngressRule)> = None;
    for rule in rules {
        let fits = if rule.exact { rule.path == path } else { rest_of(&rule.path, path).is_some() };
        let rank = (!rule.fallback, rule.exact, elements(&rule.path).count());
        // The first of equals wins: the order of the table is that of age.
        if fits && found.is_none_or(|(best, _)| rank > best) {
            found = Some((rank, rule));
        }
    }
    found.map(|(_, rule)| rule)
}

/// How well a rule's host fits: longer is closer, exact is closest; `None` when it does not.
fn host_rank(pattern: &str, host: &str) -> Option<usize> {
    if pattern.is_empty() {
        return Some(0);
    }
    if let Some(parent) = pattern.strip_prefix('*') {
        // A wildcard stands for one label.
        let label = host.strip_suffix(parent)?;
        return (!label.is_empty() && !label.contains('.')).then_some(pattern.len());
    }
    (pattern == host).then_some(usize::MAX)
}

fn elements(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|element| !element.is_empty())
}

/// What follows the elements of `prefix` in `path`, with its leading slash if there is one.
fn rest_of<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    let mut rest = path;
    for wanted in elements(prefix) {
        rest = rest.trim_start_matches('/').strip_prefix(wanted)?;
        if !rest.is_empty() && !rest.starts_with('/') {
            return None;
        }
    }
    Some(rest)
}

impl IngressRule {
    /// The path that the backend is asked for, when it is another than the client's.
    pub fn rewritten(&self, path: &str) -> Option<String> {
        let target = self.options.rewrite_target.as_deref()?;
        let rest = rest_of(&self.path, path).unwrap_or_default();
        let after = rest.strip_prefix('/').unwrap_or(rest);
        let (first, second) = match self.captures {
            Captures::None => ("", ""),
            Captures::Rest => (after, ""),
            Captures::SlashRest => (&rest[..rest.len() - after.len()], after),
        };
        let mut new = String::with_capacity(target.len() + rest.len());
        let mut parts = target.split('$');
        new.push_str(parts.next().unwrap_or_default());
        for part in parts {
            if let Some(tail) = part.strip_prefix('1') {
                new.push_str(first);
                new.push_str(tail);
            } else if let Some(tail) = part.strip_prefix('2') {
                new.push_str(second);
                new.push_str(tail);
            } else {
                new.push('$');
                new.push_str(part);
            }
        }
        if !new.starts_with('/') {
            new.insert(0, '/');
        }
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(host: &str, path: &str, exact: bool) -> IngressRule {
        IngressRule { host: host.into(), path: path.into(), exact, ..IngressRule::default() }
    }

    #[test]
    fn hosts_and_paths_decide() {
        let fallback = IngressRule { fallback: true, ..rule("", "/", false) };
        let table = IngressTable {
            rules: vec![
                rule("a.example.com", "/", false),
                rule("a.example.com", "/foo", false),
                rule("a.example.com", "/foo/bar", false),
                rule("a.example.com", "/foo/bar", true),
                rule("*.example.com", "/wild/", false),
                fallback,
            ],
            certificates: Vec::new(),
        };
        let cases = [
            ("a.example.com", "/", Some(0)),
            ("a.example.com", "/foobar", Some(0)),
            ("a.example.com", "/foo", Some(1)),
            ("a.example.com", "/foo/", Some(1)),
            ("a.example.com", "//foo/x", Some(1)),
            ("a.example.com", "/foo/bar", Some(3)),
            ("a.example.com", "/foo/bar/x", Some(2)),
            ("b.example.com", "/wild", Some(4)),
            ("b.example.com", "/wild/x", Some(4)),
            ("b.example.com", "/other", Some(5)),
            ("x.b.example.com", "/wild", Some(5)),
            ("example.com", "/wild", Some(5)),
        ];
        for (host, path, want) in cases {
            let found = table.find(host, path).map(|r| table.rules.iter().position(|x| x == r).unwrap());
            assert_eq!(found, want, "{host}{path}");
        }
        assert_eq!(IngressTable::default().find("a", "/"), None);
    }

    #[test]
    fn targets_replace_paths() {
        let cases = [
            ("/foo", Captures::None, "/", "/foo/x", "/"),
            ("/foo", Captures::SlashRest, "/$2", "/foo/x/y", "/x/y"),
            ("/foo", Captures::SlashRest, "/$2", "/foo", "/"),
            ("/foo", Captures::Rest, "/bar/$1", "/foo/x", "/bar/x"),
        ];
        for (path, captures, target, from, to) in cases {
            let mut rule = IngressRule { captures, ..rule("", path, false) };
            rule.options.rewrite_target = Some(target.into());
            assert_eq!(rule.rewritten(from).as_deref(), Some(to), "{path} {target} {from}");
        }
        assert_eq!(rule("", "/", false).rewritten("/x"), None);
    }

    #[test]
    fn ranges_admit() {
        let options = |ranges: &[&str]| IngressOptions {
            source_ranges: ranges.iter().map(|&r| r.into()).collect(),
            ..IngressOptions::default()
        };
        let client = Ipv4Addr::new(10, 1, 2, 3);
        for (ranges, want) in [
            (&[][..], true),
            (&["10.0.0.0/8"], true),
            (&["192.0.2.0/24"], false),
            (&["10.1.2.3"], true),
            (&["x"], false),
        ] {
            assert_eq!(options(ranges).admits(client), want, "{ranges:?}");
        }
    }
}
