//! The files that every container of a pod sees: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
//!
//! Sources: `pkg/kubelet/kubelet_pods.go` (`ensureHostsFile`, `GeneratePodHostNameAndDomain`),
//! `pkg/kubelet/network/dns/dns.go`.

use super::record::Wanted;
use crate::mqtt::messages::NodeConfig;

/// Limits of resolvers (`resolv.conf(5)`, and Kubernetes' own for searches).
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
/// All searches with the blanks between them.
const SEARCH_BYTES_MAX: usize = 2048;
/// The reason of events about what did not fit.
const DNS_CONFIG_FORMING: &str = "DNSConfigForming";
/// The longest host name Linux takes (bytes).
const HOSTNAME_BYTES_MAX: usize = 63;

/// The pod's host name and, with a subdomain, its domain.
pub fn host_name(wanted: &Wanted, cluster_domain: &str) -> (String, Option<String>) {
    let spec = &wanted.spec;
    let given = spec.hostname_override.as_deref().or(spec.hostname.as_deref()).filter(|h| !h.is_empty());
    let mut host = given.unwrap_or(&wanted.name).to_owned();
    host.truncate(HOSTNAME_BYTES_MAX);
    let host = host.trim_end_matches(['-', '.']).to_owned();
    let domain = spec
        .subdomain
        .as_deref()
        .filter(|s| !s.is_empty())
        .map(|sub| format!("{sub}.{}.svc.{cluster_domain}", wanted.namespace));
    (host, domain)
}

/// The name that `hostname` prints.
pub fn uts_name(wanted: &Wanted, cluster_domain: &str) -> String {
    match host_name(wanted, cluster_domain) {
        (host, Some(domain)) if wanted.spec.set_hostname_as_fqdn == Some(true) => format!("{host}.{domain}"),
        (host, _) => host,
    }
}

/// `/etc/hosts`. `own` is the host's file, for pods in the host's network.
pub fn hosts(wanted: &Wanted, cluster_domain: &str, pod_ip: &str, own: &str) -> String {
    let mut text = if wanted.host_network() {
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        let (host, domain) = host_name(wanted, cluster_domain);
        let names = match domain {
            Some(domain) => format!("{host}.{domain}\t{host}"),
            None => host,
        };
        format!(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
             {pod_ip}\t{names}\n"
        )
    };
    let aliases = wanted.spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        text.extend(aliases.iter().map(|alias| {
            format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"))
        }));
    }
    text
}

#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                Some("search") => out.searches = words.map(str::to_owned).collect(),
                Some("options") => out.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        out
    }
}

/// `/etc/resolv.conf` by `dnsPolicy` and `dnsConfig`, and what had to be left out: reasons and messages of
/// events. `own` is the host's file.
pub fn resolv_conf(wanted: &Wanted, config: &NodeConfig, own: &str) -> (String, Vec<(&'static str, String)>) {
    let spec = &wanted.spec;
    let mut short = Vec::new();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !wanted.host_network(),
        _ => false,
    };
    let mut resolver = if policy == "None" { Resolver::default() } else { Resolver::parse(own) };
    if cluster && !config.cluster_dns.is_empty() {
        let domain = &config.cluster_domain;
        let mut searches =
            vec![format!("{}.svc.{domain}", wanted.namespace), format!("svc.{domain}"), domain.clone()];
        searches.extend(resolver.searches);
        resolver = Resolver {
            servers: vec![config.cluster_dns.clone()],
            searches,
            options: vec!["ndots:5".to_owned()],
        };
    } else if cluster {
        let pod = wanted.full_name();
        let text = format!(
            "pod: {pod:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy."
        );
        short.push(("MissingClusterDNS", text));
    }
    if let Some(extra) = &spec.dns_config {
        resolver.servers.extend(extra.nameservers.iter().flatten().cloned());
        resolver.searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolver.options.retain(|o| o.split(':').next() != Some(name));
            resolver.options.push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    let mut seen = Vec::new();
    resolver.searches.retain(|s| {
        !seen.contains(s) && {
            seen.push(s.clone());
            true
        }
    });
    if resolver.servers.len() > NAMESERVERS_MAX {
        resolver.servers.truncate(NAMESERVERS_MAX);
        let line = resolver.servers.join(" ");
        let text = format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"
        );
        short.push((DNS_CONFIG_FORMING, text));
    }
    let asked = resolver.searches.len();
    resolver.searches.truncate(SEARCHES_MAX);
    while resolver.searches.join(" ").len() > SEARCH_BYTES_MAX {
        resolver.searches.pop();
    }
    if resolver.searches.len() < asked {
        let line = resolver.searches.join(" ");
        let text = format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"
        );
        short.push((DNS_CONFIG_FORMING, text));
    }
    let line = |name: &str, words: &[String]| {
        if words.is_empty() { String::new() } else { format!("{name} {}\n", words.join(" ")) }
    };
    let mut text = line("search", &resolver.searches);
    text.extend(resolver.servers.iter().map(|server| format!("nameserver {server}\n")));
    (text + &line("options", &resolver.options), short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(spec: &str) -> Wanted {
        let spec: serde_json::Value = serde_json::from_str(spec).unwrap();
        let pod = serde_json::json!({ "metadata": { "name": "web-0", "namespace": "ns" }, "spec": spec });
        Wanted::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn resolvers_follow_the_policy() {
        let config = NodeConfig {
            cluster_dns: "10.43.0.10".into(),
            cluster_domain: "cluster.local".into(),
            ..NodeConfig::default()
        };
        let own = "nameserver 192.0.2.53\nsearch lan\noptions timeout:1\n";
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5\n";
        let host = "search lan\nnameserver 192.0.2.53\noptions timeout:1\n";
        for (spec, expect) in [
            (r#"{"containers": []}"#, cluster),
            (r#"{"containers": [], "hostNetwork": true}"#, host),
            (r#"{"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}"#, cluster),
            (r#"{"containers": [], "dnsPolicy": "Default"}"#, host),
            (
                r#"{"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["a", "a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}"#,
                "search a\nnameserver 192.0.2.1\noptions ndots:2 edns0\n",
            ),
        ] {
            assert_eq!(resolv_conf(&wanted(spec), &config, own), (expect.to_owned(), vec![]), "{spec}");
        }
        let many: Vec<String> = (0..40).map(|n| format!("{n}.example.com")).collect();
        let spec = serde_json::json!({"containers": [], "dnsConfig": {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"], "searches": many}});
        let (text, short) = resolv_conf(&wanted(&spec.to_string()), &config, own);
        assert!(text.contains(" 27.example.com\n") && !text.contains("192.0.2.3"), "{text}");
        let line = text.lines().next().unwrap().trim_start_matches("search ");
        assert_eq!(
            short,
            [
                ("DNSConfigForming", "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 10.43.0.10 192.0.2.1 192.0.2.2".to_owned()),
                ("DNSConfigForming", format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}")),
            ]
        );
        let (text, short) = resolv_conf(&wanted(r#"{"containers": []}"#), &NodeConfig::default(), own);
        assert_eq!((text.as_str(), short[0].0), (host, "MissingClusterDNS"));
    }

    #[test]
    fn hosts_name_the_pod() {
        let text = hosts(&wanted(r#"{"containers": []}"#), "cluster.local", "10.42.0.5", "");
        assert!(text.ends_with("10.42.0.5\tweb-0\n"));
        let spec = r#"{"containers": [], "subdomain": "db", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["x", "y"]}]}"#;
        let text = hosts(&wanted(spec), "cluster.local", "10.42.0.5", "");
        assert!(text.contains("10.42.0.5\tweb-0.db.ns.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("192.0.2.9\tx\ty\n"));
    }
}
