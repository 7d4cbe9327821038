//! The cluster's zone: a table made ready for questions, and the pure answer to one.
//!
//! In: [`DnsTable`]; a question. Out: [`Answer`]. Invariants: a name that exists without the asked
//! type is NODATA, never NXDOMAIN (musl gives up on a name for the latter); names compare without
//! regard to case and are answered as they were asked.

use std::{collections::HashMap, net::Ipv4Addr};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT},
};

use super::{DnsEndpoint, DnsPort, DnsTable, DnsTarget, Error};

/// How long clients may keep an answer (seconds).
const TTL_SECONDS: u32 = 5;
/// How long they may keep the answer that there is none (seconds).
const NEGATIVE_TTL_SECONDS: u32 = 5;
/// The version of the name schema.
const SCHEMA_VERSION: &str = "1.1.0";
/// The weight of all SRV records of one name together.
const WEIGHT_SUM: u16 = 100;

/// What the zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Records for the name, and the addresses of names in them.
    Records { answers: Vec<Record>, additionals: Vec<Record> },
    /// The name exists, but has no such record.
    NoData,
    /// The name does not exist.
    NoName,
    /// The name is another one, which is not in the zone.
    Alias { record: Box<Record>, target: Name },
    /// The zone has nothing to do with this name.
    NotOurs,
}

#[derive(Debug, Default)]
struct Entry {
    addresses: Vec<Ipv4Addr>,
    /// Port, and the target below the zone.
    services: Vec<(u16, Box<str>)>,
    alias: Option<Name>,
    text: Option<&'static str>,
}

/// The table, ready for questions.
#[derive(Debug)]
pub struct Zone {
    apex: Name,
    server: Name,
    /// By the name below the apex in lower case: `web.default.svc`.
    entries: HashMap<Box<str>, Entry>,
    /// Names below the apex, by address.
    reverse: HashMap<Ipv4Addr, Vec<Box<str>>>,
    /// First and last address of the networks that are ours.
    networks: Vec<(u32, u32)>,
}

fn parse(field: &'static str, value: &str) -> Result<Name, Error> {
    let mut name = Name::from_utf8(value.trim_end_matches('.'))
        .map_err(|_| Error::Name { field, value: value.to_owned() })?;
    name.set_fqdn(true);
    Ok(name)
}

fn network(text: &str) -> Result<(u32, u32), Error> {
    let invalid = || Error::Network(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(invalid)?;
    let hosts = u32::MAX.checked_shr(prefix).unwrap_or(0);
    Ok((address.to_bits() & !hosts, address.to_bits() | hosts))
}

/// `10.42.0.5` as a label.
fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

impl Zone {
    /// Makes a table ready.
    pub fn new(table: &DnsTable) -> Result<Self, Error> {
        let apex = parse("domain", &table.domain)?;
        let server = parse("domain", &format!("ns.dns.{}", table.domain))?;
        let networks = table.networks.iter().map(|text| network(text)).collect::<Result<_, _>>()?;
        let mut zone = Self { apex, server, entries: HashMap::new(), reverse: HashMap::new(), networks };
        for name in ["", "svc", "pod"] {
            zone.entry(name);
        }
        zone.entry("dns-version").text = Some(SCHEMA_VERSION);
        zone.entry("ns.dns").addresses.extend(table.dns_address);
        zone.entry("dns");
        for namespace in &table.namespaces {
            zone.entry(&format!("{namespace}.svc"));
            zone.entry(&format!("{namespace}.pod"));
        }
        for service in &table.services {
            let name = format!("{}.{}.svc", service.name, service.namespace);
            match &service.target {
                DnsTarget::Cluster { addresses, ports } => zone.add_cluster(&name, addresses, ports),
                DnsTarget::Headless { endpoints } => zone.add_headless(&name, endpoints),
                DnsTarget::External { name: external } => match parse("externalName", external) {
                    Ok(target) => zone.entry(&name).alias = Some(target),
                    // One bad name must not take all the others away.
                    Err(error) => tracing::warn!(service = name, %error, "a service has no DNS name"),
                },
            }
        }
        Ok(zone)
    }

    /// The entry of this name below the apex.
    fn entry(&mut self, name: &str) -> &mut Entry {
        self.entries.entry(name.to_ascii_lowercase().into_boxed_str()).or_default()
    }

    /// A service record of `owner`, under its port's name and under the service's.
    fn add_port(&mut self, owner: &str, port: &DnsPort, target: &str) {
        self.entry(owner).services.push((port.port, target.into()));
        if !port.name.is_empty() {
            let protocol = format!("_{}.{owner}", port.protocol);
            self.entry(&format!("_{}.{protocol}", port.name)).services.push((port.port, target.into()));
            self.entry(&protocol);
        }
    }

    fn add_cluster(&mut self, name: &str, addresses: &[Ipv4Addr], ports: &[DnsPort]) {
        self.entry(name).addresses.extend_from_slice(addresses);
        for address in addresses {
            self.reverse.entry(*address).or_default().push(name.into());
        }
        for port in ports {
            self.add_port(name, port, name);
        }
    }

    fn add_headless(&mut self, name: &str, endpoints: &[DnsEndpoint]) {
        for endpoint in endpoints {
            let label = endpoint.hostname.clone().unwrap_or_else(|| dashed(endpoint.address));
            let own = format!("{label}.{name}");
            for name in [name, &own] {
                let addresses = &mut self.entry(name).addresses;
                if !addresses.contains(&endpoint.address) {
                    addresses.push(endpoint.address);
                }
            }
            let names = self.reverse.entry(endpoint.address).or_default();
            if !names.iter().any(|name| **name == *own) {
                names.push(own.clone().into());
            }
            for port in &endpoint.ports {
                self.add_port(name, port, &own);
            }
        }
    }

    /// The zone's start of authority, which a negative answer carries.
    pub fn authority(&self) -> Record {
        let mailbox = Name::from_ascii("hostmaster").and_then(|name| name.append_domain(&self.apex));
        let mailbox = mailbox.unwrap_or_else(|_| self.apex.clone());
        let data = SOA::new(self.server.clone(), mailbox, 1, 7200, 1800, 86400, NEGATIVE_TTL_SECONDS);
        Record::from_rdata(self.apex.clone(), NEGATIVE_TTL_SECONDS, RData::SOA(data))
    }

    /// The full name of one below the apex.
    fn absolute(&self, name: &str) -> Name {
        let full = Name::from_ascii(name).and_then(|name| name.append_domain(&self.apex));
        full.unwrap_or_else(|_| self.apex.clone())
    }

    /// Answers a question of class IN. `rotation` turns lists of addresses, so that clients that
    /// take the first spread over all.
    pub fn answer(&self, name: &Name, kind: RecordType, rotation: usize) -> Answer {
        if !self.apex.zone_of(name) {
            return self.answer_reverse(name, kind);
        }
        let labels = usize::from(name.num_labels() - self.apex.num_labels());
        let mut key = String::with_capacity(64);
        for label in name.iter().take(labels) {
            if !key.is_empty() {
                key.push('.');
            }
            let Ok(label) = std::str::from_utf8(label) else { return Answer::NoName };
            key.push_str(label);
        }
        key.make_ascii_lowercase();
        match self.entries.get(key.as_str()) {
            Some(entry) => self.answer_entry(name, kind, key.is_empty(), entry, rotation),
            None => self.answer_pod(name, kind, &key),
        }
    }

    fn answer_entry(
        &self,
        name: &Name,
        kind: RecordType,
        is_apex: bool,
        entry: &Entry,
        rotation: usize,
    ) -> Answer {
        let record = |data| Record::from_rdata(name.clone(), TTL_SECONDS, data);
        if let Some(target) = &entry.alias {
            let record = record(RData::CNAME(CNAME(target.clone())));
            return match kind {
                RecordType::CNAME => Answer::Records { answers: vec![record], additionals: Vec::new() },
                _ => Answer::Alias { record: Box::new(record), target: target.clone() },
            };
        }
        let mut additionals = Vec::new();
        let answers: Vec<Record> = match kind {
            RecordType::A => {
                let at = rotation.checked_rem(entry.addresses.len()).unwrap_or(0);
                let (tail, head) = entry.addresses.split_at(at);
                head.iter().chain(tail).map(|address| record(RData::A(A(*address)))).collect()
            }
            RecordType::SRV => {
                let weight = WEIGHT_SUM / u16::try_from(entry.services.len().max(1)).unwrap_or(WEIGHT_SUM);
                let mut answers = Vec::with_capacity(entry.services.len());
                let mut last = None;
                for (port, target) in &entry.services {
                    let absolute = self.absolute(target);
                    if last != Some(target)
                        && let Some(target) = self.entries.get(target)
                    {
                        additionals.extend(target.addresses.iter().map(|address| {
                            Record::from_rdata(absolute.clone(), TTL_SECONDS, RData::A(A(*address)))
                        }));
                    }
                    last = Some(target);
                    answers.push(record(RData::SRV(SRV::new(0, weight.max(1), *port, absolute))));
                }
                answers
            }
            RecordType::TXT => {
                entry.text.iter().map(|text| record(RData::TXT(TXT::new(vec![(*text).to_owned()])))).collect()
            }
            RecordType::SOA if is_apex => vec![self.authority()],
            RecordType::NS if is_apex => vec![record(RData::NS(NS(self.server.clone())))],
            _ => Vec::new(),
        };
        if answers.is_empty() { Answer::NoData } else { Answer::Records { answers, additionals } }
    }

    /// `1-2-3-4.namespace.pod` is the address it says, in every namespace there is.
    fn answer_pod(&self, name: &Name, kind: RecordType, key: &str) -> Answer {
        let address = key
            .split_once('.')
            .filter(|(_, rest)| rest.rsplit('.').next() == Some("pod") && self.entries.contains_key(*rest))
            .and_then(|(label, _)| label.replace('-', ".").parse::<Ipv4Addr>().ok());
        match (address, kind) {
            (None, _) => Answer::NoName,
            (Some(address), RecordType::A) => {
                let record = Record::from_rdata(name.clone(), TTL_SECONDS, RData::A(A(address)));
                Answer::Records { answers: vec![record], additionals: Vec::new() }
            }
            (Some(_), _) => Answer::NoData,
        }
    }

    /// `4.3.2.1.in-addr.arpa`
    fn answer_reverse(&self, name: &Name, kind: RecordType) -> Answer {
        let Some(address) = reverse_address(name) else { return Answer::NotOurs };
        let names = self.reverse.get(&address).map_or(&[][..], Vec::as_slice);
        let bits = address.to_bits();
        let ours = self.networks.iter().any(|(first, last)| (*first..=*last).contains(&bits));
        match (names.is_empty(), kind) {
            (true, _) if ours => Answer::NoName,
            (true, _) => Answer::NotOurs,
            (false, RecordType::PTR) => {
                let data = names.iter().map(|target| RData::PTR(PTR(self.absolute(target))));
                let record = |data| Record::from_rdata(name.clone(), TTL_SECONDS, data);
                Answer::Records { answers: data.map(record).collect(), additionals: Vec::new() }
            }
            (false, _) => Answer::NoData,
        }
    }
}

/// The address that a reverse name asks for.
fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    if name.num_labels() != 6 {
        return None;
    }
    let mut labels = name.iter();
    let mut octets = [0u8; 4];
    for octet in octets.iter_mut().rev() {
        *octet = std::str::from_utf8(labels.next()?).ok()?.parse().ok()?;
    }
    let is =
        |label: Option<&[u8]>, text: &str| label.is_some_and(|l| l.eq_ignore_ascii_case(text.as_bytes()));
    (is(labels.next(), "in-addr") && is(labels.next(), "arpa")).then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::dns::DnsService;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn port(name: &str, port: u16) -> DnsPort {
        DnsPort { name: name.to_owned(), protocol: "TCP".to_owned(), port }
    }

    fn service(name: &str, target: DnsTarget) -> DnsService {
        DnsService { namespace: "default".to_owned(), name: name.to_owned(), target }
    }

    fn zone() -> Zone {
        let endpoint = |address: &str, hostname: Option<&str>| DnsEndpoint {
            address: ip(address),
            hostname: hostname.map(str::to_owned),
            ports: vec![port("peer", 7000)],
        };
        let cluster = |address: &str, ports| DnsTarget::Cluster { addresses: vec![ip(address)], ports };
        let external = |name: &str| DnsTarget::External { name: name.to_owned() };
        Zone::new(&DnsTable {
            domain: "cluster.local".to_owned(),
            dns_address: Some(ip("10.43.0.10")),
            networks: vec!["10.42.0.0/16".to_owned(), "10.43.0.0/16".to_owned()],
            namespaces: vec!["default".to_owned(), "empty".to_owned()],
            services: vec![
                service("kubernetes", cluster("10.43.0.1", vec![port("https", 443)])),
                service("web", cluster("10.43.0.2", vec![port("", 80)])),
                service(
                    "db",
                    DnsTarget::Headless {
                        endpoints: vec![endpoint("10.42.0.5", Some("db-0")), endpoint("10.42.1.6", None)],
                    },
                ),
                service("gone", DnsTarget::Headless { endpoints: Vec::new() }),
                service("outside", external("www.example.org.")),
                service("inside", external("web.default.svc.cluster.local")),
                service("bad", external("a..b")),
            ],
        })
        .unwrap()
    }

    fn show(zone: &Zone, name: &str, kind: RecordType) -> String {
        let list = |records: &[Record]| {
            records.iter().fold(String::new(), |mut text, record| {
                let _ = writeln!(text, "  {record}");
                text
            })
        };
        match zone.answer(&Name::from_ascii(name).unwrap(), kind, 0) {
            Answer::Records { answers, additionals } if additionals.is_empty() => list(&answers),
            Answer::Records { answers, additionals } => {
                format!("{}  additional\n{}", list(&answers), list(&additionals))
            }
            Answer::Alias { record, target } => format!("  {record}\n  then {target}\n"),
            other => format!("  {other:?}\n"),
        }
    }

    /// `UPDATE_GOLDEN=1 cargo test` writes the file anew.
    #[test]
    fn answers_are_as_the_schema_says() {
        use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
        let zone = zone();
        let questions = [
            ("kubernetes.default.svc.cluster.local.", A),
            ("Kubernetes.DEFAULT.svc.Cluster.Local.", A),
            ("kubernetes.default.svc.cluster.local.", AAAA),
            ("_https._tcp.kubernetes.default.svc.cluster.local.", SRV),
            ("_https._tcp.kubernetes.default.svc.cluster.local.", A),
            ("_tcp.kubernetes.default.svc.cluster.local.", A),
            ("_http._tcp.kubernetes.default.svc.cluster.local.", SRV),
            ("web.default.svc.cluster.local.", SRV),
            ("db.default.svc.cluster.local.", A),
            ("db-0.db.default.svc.cluster.local.", A),
            ("10-42-1-6.db.default.svc.cluster.local.", A),
            ("10-42-1-7.db.default.svc.cluster.local.", A),
            ("_peer._tcp.db.default.svc.cluster.local.", SRV),
            ("gone.default.svc.cluster.local.", A),
            ("none.default.svc.cluster.local.", A),
            ("web.other.svc.cluster.local.", A),
            ("default.svc.cluster.local.", A),
            ("other.svc.cluster.local.", A),
            ("cluster.local.", A),
            ("cluster.local.", SOA),
            ("cluster.local.", NS),
            ("ns.dns.cluster.local.", A),
            ("dns-version.cluster.local.", TXT),
            ("10-42-0-5.empty.pod.cluster.local.", A),
            ("10-42-0-5.empty.pod.cluster.local.", AAAA),
            ("10-42-0.empty.pod.cluster.local.", A),
            ("10-42-0-5.other.pod.cluster.local.", A),
            ("outside.default.svc.cluster.local.", A),
            ("outside.default.svc.cluster.local.", CNAME),
            ("inside.default.svc.cluster.local.", AAAA),
            ("bad.default.svc.cluster.local.", A),
            ("1.0.43.10.in-addr.arpa.", PTR),
            ("5.0.42.10.in-addr.arpa.", PTR),
            ("5.0.42.10.IN-ADDR.arpa.", A),
            ("9.9.42.10.in-addr.arpa.", PTR),
            ("1.2.0.192.in-addr.arpa.", PTR),
            ("example.org.", A),
            ("local.", A),
        ];
        let mut text = String::new();
        for (name, kind) in questions {
            let _ = writeln!(text, "{name} {kind}\n{}", show(&zone, name, kind));
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dns/golden/answers.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn lists_are_turned() {
        let zone = zone();
        let name = Name::from_ascii("db.default.svc.cluster.local.").unwrap();
        let first = |rotation| match zone.answer(&name, RecordType::A, rotation) {
            Answer::Records { answers, .. } => answers[0].data.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!((first(0), first(1)), ("10.42.0.5".to_owned(), "10.42.1.6".to_owned()));
        assert_eq!(first(0), first(2));
    }

    #[test]
    fn impossible_tables_are_refused() {
        let table = |domain: &str, network: &str| DnsTable {
            domain: domain.to_owned(),
            networks: vec![network.to_owned()],
            ..DnsTable::default()
        };
        assert!(Zone::new(&table("cluster.local", "10.0.0.0/8")).is_ok());
        assert!(matches!(Zone::new(&table("a..b", "10.0.0.0/8")), Err(Error::Name { .. })));
        assert!(matches!(Zone::new(&table("cluster.local", "10.0.0.0/33")), Err(Error::Network(_))));
    }
}
