//! The configuration of a daemon: flags, `SAMPAN_*` variables and a YAML file, in that order of
//! precedence.
//!
//! The file's keys are the flags' names (`node-name: kitchen`). An unknown key or a wrong value is
//! refused with the key's name.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, Args, Command, ValueEnum};

mod limits;

pub use limits::{Least, Limits, Threshold};

/// Where the configuration file is looked for.
pub const DEFAULT_FILE: &str = "/etc/sampan/config.yaml";

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A part of the daemon that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The worker: this board runs no pods.
    Agent,
    /// Controllers (Deployments and so on do nothing).
    Controllers,
    /// The scheduler (pods stay Pending unless bound by hand).
    Scheduler,
    /// The pod network and Services.
    Network,
    /// The cluster DNS server.
    Dns,
    /// The Ingress server on 80 and 443.
    Ingress,
    /// The built-in `local-path` storage.
    LocalStorage,
}

/// What the way to the broker is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LinkClass {
    /// A cable: a silent cut is noticed within 10 to 15 seconds
    #[default]
    Lan,
    /// Radio in the house: within 20 to 30 seconds
    Wifi,
    /// A mobile network that bills bytes: within 60 to 90 seconds
    Lte,
}

impl LinkClass {
    /// Between two signs of life on an idle connection (MQTT's keep-alive). The broker calls a
    /// client lost after one and a half of it.
    pub fn keep_alive(self) -> Duration {
        Duration::from_secs(match self {
            Self::Lan => 10,
            Self::Wifi => 20,
            Self::Lte => 60,
        })
    }

    /// Between two beats of a node, which check that both sides agree.
    pub fn beat(self) -> Duration {
        Duration::from_secs(match self {
            Self::Lan | Self::Wifi => 60,
            Self::Lte => 300,
        })
    }
}

/// What a broker that is not the master's own is spoken to with.
#[derive(Debug, Clone, Default, Args)]
#[allow(clippy::struct_field_names, reason = "they are the names of the flags")]
pub struct BrokerFiles {
    /// Authority of an external broker's certificate (PEM) [default: the system's]
    #[arg(long, env = "SAMPAN_MQTT_CA", value_name = "FILE")]
    pub mqtt_ca: Option<PathBuf>,
    /// Certificate shown to an external broker (PEM)
    #[arg(long, env = "SAMPAN_MQTT_CERT", value_name = "FILE", requires = "mqtt_key")]
    pub mqtt_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "SAMPAN_MQTT_KEY", value_name = "FILE", requires = "mqtt_cert")]
    pub mqtt_key: Option<PathBuf>,
}

/// What a server and an agent have in common.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Configuration file; its keys are these flags' names
    #[arg(long, env = "SAMPAN_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State that outlives a reboot
    #[arg(long, env = "SAMPAN_DATA_DIR", default_value = "/var/lib/sampan", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// State of this boot (on a tmpfs)
    #[arg(long, env = "SAMPAN_RUN_DIR", default_value = "/run/sampan", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Logs of pods
    #[arg(long, env = "SAMPAN_LOG_DIR", default_value = "/var/log", value_name = "DIR")]
    pub log_dir: PathBuf,
    /// Name of this node [default: the host's name]
    #[arg(long, env = "SAMPAN_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node as other nodes reach it [default: found by the routes]
    #[arg(long, env = "SAMPAN_NODE_IP", value_name = "IP")]
    pub node_ip: Option<Ipv4Addr>,
    /// Address at which a router passes this node's tunnel port on to it (docs/network.md)
    #[arg(long, env = "SAMPAN_NODE_EXTERNAL_IP", value_name = "IP")]
    pub node_external_ip: Option<Ipv4Addr>,
    /// cgroup under which all pods live
    #[arg(long, env = "SAMPAN_CGROUP_ROOT", default_value = "/sampan", value_name = "PATH")]
    pub cgroup_root: String,
    /// Registries spoken to without TLS or without checking it (`host:port`)
    #[arg(long, env = "SAMPAN_INSECURE_REGISTRIES", value_delimiter = ',', value_name = "HOSTS")]
    pub insecure_registries: Vec<String>,
    /// Mirrors, credentials and certificates of registries: a file as k3s' registries.yaml (in the
    /// configuration file also its contents) [default: /etc/sampan/registries.yaml]
    #[arg(long, env = "SAMPAN_REGISTRIES", value_name = "FILE")]
    pub registries: Option<String>,
    /// Percent of the disk above which unused images are removed (100: never)
    #[arg(long, env = "SAMPAN_IMAGE_GC_HIGH_THRESHOLD", default_value_t = 85, value_name = "PERCENT",
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_high_threshold: u8,
    /// Percent of the disk down to which they are
    #[arg(long, env = "SAMPAN_IMAGE_GC_LOW_THRESHOLD", default_value_t = 80, value_name = "PERCENT",
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_low_threshold: u8,
    /// Ports of this node that Ingresses are served on
    #[arg(long, env = "SAMPAN_INGRESS_HTTP_PORT", default_value_t = 80, value_name = "PORT")]
    pub ingress_http_port: u16,
    #[arg(
        long,
        env = "SAMPAN_INGRESS_HTTPS_PORT",
        default_value_t = 443,
        value_name = "PORT",
        help = "The same for HTTPS"
    )]
    pub ingress_https_port: u16,
    /// Load balancers in front of Ingresses, whose connections begin with a PROXY protocol header
    #[arg(
        long,
        env = "SAMPAN_INGRESS_PROXY_PROTOCOL_FROM",
        value_delimiter = ',',
        value_name = "CIDRS",
        value_parser = parse_network
    )]
    pub ingress_proxy_protocol_from: Vec<String>,
    /// File for a line a request to Ingresses [default: none is written]
    #[arg(long, env = "SAMPAN_INGRESS_ACCESS_LOG", value_name = "FILE")]
    pub ingress_access_log: Option<PathBuf>,
    /// Address where Prometheus reads counters of Ingresses [default: nowhere]
    #[arg(long, env = "SAMPAN_INGRESS_METRICS_LISTEN", value_name = "IP:PORT")]
    pub ingress_metrics_listen: Option<SocketAddr>,
    /// Name servers for names outside the cluster (`9.9.9.9` or `9.9.9.9:53`) [default: the host's]
    #[arg(
        long,
        env = "SAMPAN_DNS_UPSTREAMS",
        value_delimiter = ',',
        value_name = "SERVERS",
        value_parser = parse_name_server
    )]
    pub dns_upstreams: Vec<SocketAddr>,
    /// Domains with name servers of their own (`corp.example=10.0.0.1`; several servers: several times)
    #[arg(
        long,
        env = "SAMPAN_DNS_STUB_DOMAINS",
        value_delimiter = ',',
        value_name = "ENTRIES",
        value_parser = parse_stub_domain
    )]
    pub dns_stub_domains: Vec<(String, SocketAddr)>,
    #[command(flatten)]
    pub limits: Limits,
    /// What the way to the broker is like
    #[arg(long, env = "SAMPAN_LINK", value_enum, default_value_t, value_name = "CLASS")]
    pub link: LinkClass,
    #[command(flatten)]
    pub broker: BrokerFiles,
    /// What tells this board from others [default: its serial number or the like]
    #[arg(long, env = "SAMPAN_HARDWARE_ID", value_name = "TEXT", hide = true)]
    pub hardware_id: Option<String>,
    /// Parts to leave out
    #[arg(long, env = "SAMPAN_DISABLE", value_delimiter = ',', value_name = "PARTS")]
    pub disable: Vec<Part>,
    /// Form of the log lines
    #[arg(long, env = "SAMPAN_LOG_FORMAT", value_enum, default_value_t, value_name = "FORM")]
    pub log_format: LogFormat,
    /// What is logged: `info`, `debug`, `sampan::node=trace,warn`, …
    #[arg(long, env = "SAMPAN_LOG", default_value = "info,mqtt5=warn,rumqttc=warn", value_name = "FILTER")]
    pub log: String,
}

/// `sampan server`.
#[derive(Debug, Clone, Args)]
pub struct Server {
    #[command(flatten)]
    pub common: Common,
    /// Address of the Kubernetes API
    #[arg(long, env = "SAMPAN_LISTEN", default_value = "0.0.0.0:6443", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Address of the MQTT broker that nodes connect to
    #[arg(long, env = "SAMPAN_MQTT_LISTEN", default_value = "0.0.0.0:8883", value_name = "IP:PORT")]
    pub mqtt_listen: SocketAddr,
    /// Use these brokers, tried in turn, instead of the embedded one (`mqtt://user:password@host:1883`)
    #[arg(long, env = "SAMPAN_MQTT_URL", value_delimiter = ',', value_name = "URLS", hide_env_values = true)]
    pub mqtt_url: Vec<String>,
    /// Where nodes find the broker (`mqtts://host:8883,…`); told to all of them, and remembered
    #[arg(long, env = "SAMPAN_ENDPOINTS", value_delimiter = ',', value_name = "URLS")]
    pub endpoints: Vec<String>,
    /// Begin with the cluster in this file of `sampan backup`, if there is none here yet
    #[arg(long, env = "SAMPAN_RESTORE", value_name = "FILE")]
    pub restore: Option<PathBuf>,
    /// How long pods stay on a node that is lost or not ready, unless they say so themselves
    #[arg(long, env = "SAMPAN_EVICTION_SECONDS", default_value_t = 300, value_name = "SECONDS")]
    pub eviction_seconds: u32,
    /// Addresses of pods; each node gets a part of it
    #[arg(long, env = "SAMPAN_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_name = "CIDR")]
    pub cluster_cidr: Cidr,
    /// How large a new node's part is: /24 has room for 253 pods, /22 for 1,021
    #[arg(
        long,
        env = "SAMPAN_NODE_CIDR_MASK_SIZE",
        default_value_t = 24,
        value_parser = clap::value_parser!(u8).range(16..=30),
        value_name = "BITS"
    )]
    pub node_cidr_mask_size: u8,
    /// Addresses of Services
    #[arg(long, env = "SAMPAN_SERVICE_CIDR", default_value = "10.43.0.0/16", value_name = "CIDR")]
    pub service_cidr: Cidr,
    /// Ports of the nodes that Services of type NodePort and LoadBalancer get
    #[arg(
        long,
        env = "SAMPAN_SERVICE_NODE_PORT_RANGE",
        default_value = "30000-32767",
        value_name = "FIRST-LAST"
    )]
    pub service_node_port_range: PortRange,
    /// DNS domain of the cluster
    #[arg(long, env = "SAMPAN_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
    /// Further names and addresses that the API's certificate is good for
    #[arg(long, env = "SAMPAN_TLS_SAN", value_delimiter = ',', value_name = "NAMES")]
    pub tls_san: Vec<String>,
}

/// `sampan agent`.
#[derive(Debug, Clone, Args)]
pub struct Agent {
    #[command(flatten)]
    pub common: Common,
    /// The master's broker (`mqtts://host:8883`), several are tried in turn; needed once, then remembered
    #[arg(long, env = "SAMPAN_JOIN", value_delimiter = ',', value_name = "URLS", hide_env_values = true)]
    pub join: Vec<String>,
    /// The token that `sampan token create` printed; needed once
    #[arg(long, env = "SAMPAN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// A network of load balancers: an address or a CIDR, of any size.
fn parse_network(text: &str) -> Result<String, String> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    let right = address.parse::<Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|p| p <= 32);
    if right { Ok(format!("{address}/{prefix}")) } else { Err("not an IPv4 network".to_owned()) }
}

/// A name server: an address, and a port if it is not 53.
fn parse_name_server(text: &str) -> Result<SocketAddr, String> {
    const PORT: u16 = 53;
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    address.or_else(|_| text.parse()).map_err(|_| "not the address of a name server".to_owned())
}

/// `corp.example=10.0.0.1`.
fn parse_stub_domain(text: &str) -> Result<(String, SocketAddr), String> {
    let (domain, server) = text.split_once('=').ok_or("not DOMAIN=SERVER")?;
    let labels = domain.trim_end_matches('.').split('.');
    if !labels.into_iter().all(|label| (1..=63).contains(&label.len()) && label.is_ascii()) {
        return Err(format!("{domain:?} is not a domain"));
    }
    Ok((domain.to_owned(), parse_name_server(server)?))
}

impl Common {
    /// Whether a part is to run.
    pub fn enabled(&self, part: Part) -> bool {
        !self.disable.contains(&part)
    }

    /// The node's name: as given, or the host's, in lower case as Kubernetes wants it.
    pub fn node_name(&self) -> String {
        self.node_name.clone().unwrap_or_else(|| {
            nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_else(|| "localhost".to_owned())
                .to_ascii_lowercase()
        })
    }
}

/// An IPv4 network: `10.42.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Cidr {
    /// The address `index` places after the network's own; `None` outside the network.
    pub fn nth(self, index: u32) -> Option<Ipv4Addr> {
        let size = 1u64 << (32 - self.prefix);
        (u64::from(index) < size).then(|| Ipv4Addr::from(u32::from(self.address) + index))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        u32::from(address) & mask == u32::from(self.address)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an IPv4 network such as 10.42.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = match address.parse() {
            Ok(IpAddr::V4(address)) => address,
            Ok(IpAddr::V6(_)) => return Err(format!("{text:?}: IPv6 networks are not supported yet")),
            Err(_) => return Err(wrong()),
        };
        let prefix: u8 = prefix.parse().ok().filter(|p| (1..=30).contains(p)).ok_or_else(wrong)?;
        let network = Self { address, prefix };
        let first = u32::from(address) & (u32::MAX << (32 - u32::from(prefix)));
        if first != u32::from(address) {
            return Err(format!("{text:?}: the network is {}/{prefix}", Ipv4Addr::from(first)));
        }
        Ok(network)
    }
}

/// Ports from the first to the last, both included: `30000-32767`, `30000+2767` or one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn contains(self, port: u32) -> bool {
        (u32::from(self.first)..=u32::from(self.last)).contains(&port)
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl std::str::FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| -> Result<u16, String> {
            text.parse().map_err(|_| format!("{text:?} is not a port, in a range such as 30000-32767"))
        };
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (port(first)?, port(last)?)
        } else if let Some((first, more)) = text.split_once('+') {
            let first = port(first)?;
            (first, first.checked_add(port(more)?).ok_or("the last port is above 65535")?)
        } else {
            (port(text)?, port(text)?)
        };
        match (first, last) {
            (0, _) => Err("port 0 is no port".to_owned()),
            _ if last < first => Err(format!("end port cannot be less than start port: {text}")),
            _ => Ok(Self { first, last }),
        }
    }
}

/// Why a configuration file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration {path}: {source}")]
    Parse { path: PathBuf, source: serde_yaml::Error },
    #[error(
        "configuration {path}: {key}: unknown key; the keys are the flags of `sampan {command}`: {known}"
    )]
    UnknownKey { path: PathBuf, key: String, command: String, known: String },
    #[error("configuration {path}: {key}: expected a string, number, boolean or a list of these")]
    Shape { path: PathBuf, key: String },
}

/// Makes what the file at `path` says the defaults of `command`'s flags.
///
/// # Errors
/// Unreadable file, wrong YAML, unknown keys. Values are checked by clap like flags.
pub fn with_file(command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    with_text(command, &text, path)
}

/// The same for a text that is, or is to be, in the file at `path`.
///
/// # Errors
/// As [`with_file`].
pub fn with_text(mut command: Command, text: &str, path: &Path) -> Result<Command, ConfigError> {
    let entries: Option<BTreeMap<String, serde_yaml::Value>> =
        serde_yaml::from_str(text).map_err(|source| ConfigError::Parse { path: path.into(), source })?;
    for (key, value) in entries.unwrap_or_default() {
        let whole = (key == "registries" && value.is_mapping())
            .then(|| serde_json::to_string(&value).ok().map(|text| vec![text]))
            .flatten();
        let values = whole
            .or_else(|| scalars(&value))
            .ok_or_else(|| ConfigError::Shape { path: path.into(), key: key.clone() })?;
        let known: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
        if !known.contains(&key.as_str()) || key == "config" {
            return Err(ConfigError::UnknownKey {
                path: path.into(),
                key,
                command: command.get_name().to_owned(),
                known: known.join(", "),
            });
        }
        let id = key.replace('-', "_");
        command = command.mut_arg(id, |arg| arg.default_values(values));
    }
    Ok(command)
}

fn scalars(value: &serde_yaml::Value) -> Option<Vec<String>> {
    use serde_yaml::Value;
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Number(number) => Some(vec![number.to_string()]),
        Value::Bool(flag) => Some(vec![flag.to_string()]),
        Value::Sequence(items) => {
            items.iter().map(|item| scalars(item).and_then(|mut one| one.pop())).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn parse(file: &str, args: &[&str]) -> Result<Server, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, file).unwrap();
        let command = Server::augment_args(Command::new("server"));
        let command = with_file(command, &path).map_err(|e| e.to_string())?;
        let matches =
            command.try_get_matches_from([&["server"], args].concat()).map_err(|e| e.to_string())?;
        Server::from_arg_matches(&matches).map_err(|e| e.to_string())
    }

    #[test]
    fn the_file_gives_defaults_and_flags_win() {
        let file = "node-name: kitchen\ndisable: [dns, ingress]\nlisten: 127.0.0.1:7443\n";
        let server = parse(file, &["--listen", "127.0.0.1:8443"]).unwrap();
        assert_eq!(server.common.node_name(), "kitchen");
        assert_eq!(server.common.disable, [Part::Dns, Part::Ingress]);
        assert_eq!(server.listen.port(), 8443);
        assert_eq!(server.cluster_cidr.to_string(), "10.42.0.0/16");
        let server = parse("registries: {mirrors: {a: {endpoint: [b]}}}\n", &[]).unwrap();
        assert_eq!(server.common.registries.as_deref(), Some(r#"{"mirrors":{"a":{"endpoint":["b"]}}}"#));
    }

    #[test]
    fn wrong_files_name_the_key() {
        assert!(parse("node-nam: x", &[]).unwrap_err().contains("node-nam: unknown key"));
        assert!(parse("listen: {a: b}", &[]).unwrap_err().contains("listen: expected"));
        assert!(parse("listen: nowhere", &[]).unwrap_err().contains("--listen"));
    }

    #[test]
    fn networks_are_checked() {
        let cidr: Cidr = "10.43.0.0/16".parse().unwrap();
        assert_eq!(cidr.nth(10), Some(Ipv4Addr::new(10, 43, 0, 10)));
        assert_eq!(cidr.nth(1 << 16), None);
        assert!(cidr.contains(Ipv4Addr::new(10, 43, 255, 1)));
        assert!(!cidr.contains(Ipv4Addr::new(10, 44, 0, 1)));
        assert!("10.43.0.1/16".parse::<Cidr>().unwrap_err().contains("10.43.0.0/16"));
        assert!("fd00::/64".parse::<Cidr>().unwrap_err().contains("not supported"));
        assert!("x".parse::<Cidr>().is_err());
    }

    #[test]
    fn a_link_class_says_how_often_there_is_a_sign_of_life() {
        let classes: Vec<_> = ["lan", "wifi", "lte"]
            .into_iter()
            .map(|class| parse("", &["--link", class]).unwrap().common.link)
            .map(|link| (link.keep_alive().as_secs(), link.beat().as_secs()))
            .collect();
        assert_eq!(classes, [(10, 60), (20, 60), (60, 300)]);
        assert_eq!(parse("link: wifi", &[]).unwrap().common.link, LinkClass::Wifi);
        assert_eq!(parse("", &[]).unwrap().common.link, LinkClass::Lan);
        assert!(parse("", &["--link", "string"]).is_err());
    }

    #[test]
    fn ranges_of_ports_are_written_as_for_upstream() {
        let range = |text: &str| text.parse::<PortRange>().map(|range| range.to_string());
        assert_eq!(range("30000-32767").unwrap(), "30000-32767");
        assert_eq!(range("80+8").unwrap(), "80-88");
        assert_eq!(range("443").unwrap(), "443-443");
        for wrong in ["", "a-b", "0-10", "10-9", "1-70000", "65535+1", "1-2-3"] {
            assert!(range(wrong).is_err(), "{wrong:?}");
        }
        let server = parse("service-node-port-range: 20000-20099\n", &[]).unwrap();
        assert_eq!(server.service_node_port_range.to_string(), "20000-20099");
        assert!(parse("", &["--service-node-port-range", "9-8"]).is_err());
    }
}
