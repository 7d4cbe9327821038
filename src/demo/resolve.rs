//! Names to addresses by `/etc/hosts` and `/etc/resolv.conf`, without the C library: a static binary in an empty
//! image has no name service modules. Search rules: resolv.conf(5).

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

use super::Failure;

const TIMEOUT: Duration = Duration::from_secs(3);
/// Questions to each server before the next.
const ATTEMPTS: usize = 2;
const PORT: u16 = 53;

/// `/etc/resolv.conf`.
#[derive(Debug, PartialEq, Eq)]
struct Config {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Config {
    fn parse(text: &str) -> Self {
        let mut config = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    config.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    if let Some(ndots) = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok()) {
                        config.ndots = ndots;
                    }
                }
                _ => {}
            }
        }
        config
    }

    /// The full names to ask for, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let plain = format!("{name}.");
        let searched = self.search.iter().map(|domain| format!("{name}.{}.", domain.trim_end_matches('.')));
        if name.matches('.').count() >= self.ndots {
            std::iter::once(plain.clone()).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(plain.clone())).collect()
        }
    }
}

/// Addresses that `/etc/hosts` has for a name.
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect()
}

/// All addresses of a name; at least one.
pub fn resolve(name: &str) -> Result<Vec<IpAddr>, Failure> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let hosts = in_hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default(), name);
    if !hosts.is_empty() {
        return Ok(hosts);
    }
    lookup(name, &config(None)?).map(|(_, addresses)| addresses)
}

fn config(server: Option<IpAddr>) -> Result<Config, Failure> {
    let text = fs::read_to_string("/etc/resolv.conf").map_err(Failure::io("/etc/resolv.conf"))?;
    let mut config = Config::parse(&text);
    if let Some(server) = server {
        config.servers = vec![server];
    }
    if config.servers.is_empty() {
        config.servers.push(IpAddr::from([127, 0, 0, 1]));
    }
    Ok(config)
}

/// The full name that exists and its addresses.
fn lookup(name: &str, config: &Config) -> Result<(String, Vec<IpAddr>), Failure> {
    for candidate in config.candidates(name) {
        let mut addresses = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            addresses.extend(ask(&candidate, kind, config)?);
        }
        if !addresses.is_empty() {
            return Ok((candidate, addresses));
        }
    }
    Err(Failure::Other(format!("{name}: name does not resolve")))
}

/// One question; no addresses when the name has none of that kind.
fn ask(name: &str, kind: RecordType, config: &Config) -> Result<Vec<IpAddr>, Failure> {
    let malformed = |error: &dyn std::fmt::Display| Failure::Other(format!("{name}: {error}"));
    let full = Name::from_ascii(name).map_err(|error| malformed(&error))?;
    let id = u16::from_ne_bytes(crate::ids::random_bytes());
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(full, kind));
    let bytes = question.to_vec().map_err(|error| malformed(&error))?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for server in config.servers.iter().cycle().take(config.servers.len() * ATTEMPTS) {
        match exchange(*server, &bytes, id) {
            Ok(answer) => match answer.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => {
                    return Ok(answer.answers.iter().filter_map(|record| address(&record.data)).collect());
                }
                code => last = io::Error::other(format!("{server} answers {code}")),
            },
            Err(error) => last = error,
        }
    }
    Err(Failure::Io { what: format!("look up {name}"), source: last })
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(a) => Some(a.0.into()),
        _ => None,
    }
}

fn exchange(server: IpAddr, question: &[u8], id: u16) -> io::Result<Message> {
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(local)?;
    socket.connect((server, PORT))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(question)?;
    let mut buffer = vec![0; 4096];
    loop {
        let read = socket.recv(&mut buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer"))
            }
            _ => error,
        })?;
        if let Ok(message) = Message::from_vec(&buffer[..read])
            && message.metadata.id == id
        {
            return Ok(message);
        }
    }
}

pub fn nslookup(args: &[String]) -> Result<u8, Failure> {
    let (name, server) = match args {
        [name] => (name, None),
        [name, server] => (name, Some(resolve(server)?[0])),
        _ => return Err(Failure::Usage("nslookup NAME [SERVER]")),
    };
    let config = config(server)?;
    println!("Server:\t{}\n", config.servers[0]);
    let (full, addresses) = lookup(name, &config)?;
    for address in addresses {
        println!("Name:\t{}\nAddress: {address}", full.trim_end_matches('.'));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_searched_as_resolv_conf_says() {
        let config = Config::parse(
            "# made by the node\nsearch default.svc.cluster.local svc.cluster.local\nnameserver 10.43.0.10\n\
             nameserver bad\noptions edns0 ndots:5\n",
        );
        assert_eq!((config.servers.as_slice(), config.ndots), (&[IpAddr::from([10, 43, 0, 10])][..], 5));
        assert_eq!(
            config.candidates("web"),
            ["web.default.svc.cluster.local.", "web.svc.cluster.local.", "web."]
        );
        assert_eq!(config.candidates("a.b.c.d.e.f")[0], "a.b.c.d.e.f.");
        assert_eq!(config.candidates("web.x."), ["web.x."]);
    }

    #[test]
    fn hosts_lines_have_several_names() {
        let text =
            "127.0.0.1 localhost\n::1 localhost ip6-localhost # both\n#1.2.3.4 web\n10.0.0.2\tdb Web\n";
        assert_eq!(in_hosts(text, "localhost").len(), 2);
        assert_eq!(in_hosts(text, "web"), [IpAddr::from([10, 0, 0, 2])]);
        assert!(in_hosts(text, "both").is_empty());
    }
}
