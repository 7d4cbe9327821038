//! Ingresses as the nodes' servers need them, from Ingresses, Services, EndpointSlices and Secrets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Secret, Service},
    discovery::v1::EndpointSlice,
    networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressClass},
};

use super::services::{self, Which};
use crate::{
    kinds::ingress::{ANNOTATIONS, is_ours},
    net::routes::{BackendProtocol, Captures, IngressCertificate, IngressOptions, IngressRule, IngressTable},
    objects::Objects,
};

/// The table of every namespace that has Ingresses of ours.
pub fn tables(objects: &Objects) -> BTreeMap<String, IngressTable> {
    let classes = objects.list_typed::<IngressClass>(None);
    let mut ingresses = objects.list_typed::<Ingress>(None);
    ingresses.retain(|ingress| is_ours(ingress, &classes));
    if ingresses.is_empty() {
        return BTreeMap::new();
    }
    // The oldest first: of equal rules it has the right.
    ingresses.sort_by(|a, b| {
        let age = |i: &Ingress| (i.metadata.creation_timestamp.clone(), i.metadata.name.clone());
        age(a).cmp(&age(b))
    });
    let world = World { objects, slices: Which::All.slices(objects) };
    let mut tables: BTreeMap<String, IngressTable> = BTreeMap::new();
    for ingress in &ingresses {
        let namespace = ingress.metadata.namespace.clone().unwrap_or_default();
        tables.entry(namespace).or_default().extend(world.table(ingress));
    }
    tables
}

struct World<'a> {
    objects: &'a Objects,
    slices: BTreeMap<(String, String), Vec<Arc<EndpointSlice>>>,
}

impl World<'_> {
    fn table(&self, ingress: &Ingress) -> IngressTable {
        let Some(spec) = &ingress.spec else { return IngressTable::default() };
        let meta = &ingress.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let id = format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default());
        let annotations = Annotations(meta.annotations.as_ref());
        let hosts: BTreeSet<String> = spec
            .rules
            .iter()
            .flatten()
            .map(|rule| rule.host.as_deref().unwrap_or_default().to_lowercase())
            .collect();
        let mut secured = BTreeSet::new();
        let mut table = IngressTable::default();
        for tls in spec.tls.iter().flatten() {
            let mut names: Vec<String> = tls.hosts.iter().flatten().map(|h| h.to_lowercase()).collect();
            if names.is_empty() {
                names.extend(hosts.iter().filter(|host| !host.is_empty()).cloned());
            }
            secured.extend(names.iter().cloned());
            if let Some(secret) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) {
                table.certificates.extend(self.certificate(namespace, secret, names));
            }
        }
        let rule = |host: &str, path: &HTTPIngressPath, fallback: bool| {
            let (literal, captures) = pattern(path.path.as_deref().unwrap_or_default());
            IngressRule {
                ingress: id.clone(),
                host: host.to_owned(),
                path: literal.to_owned(),
                exact: path.path_type == "Exact",
                fallback,
                captures,
                endpoints: self.endpoints(namespace, &path.backend),
                options: annotations.options(secured.contains(host)),
            }
        };
        for given in spec.rules.iter().flatten() {
            let host = given.host.as_deref().unwrap_or_default().to_lowercase();
            for path in given.http.iter().flat_map(|http| &http.paths) {
                table.rules.push(rule(&host, path, false));
            }
        }
        if let Some(backend) = &spec.default_backend {
            let path = HTTPIngressPath {
                path: Some("/".into()),
                backend: backend.clone(),
                path_type: "Prefix".into(),
            };
            let everywhere = hosts.iter().map(String::as_str).filter(|host| !host.is_empty()).chain([""]);
            table.rules.extend(everywhere.map(|host| rule(host, &path, true)));
        }
        table
    }

    fn certificate(&self, namespace: &str, name: &str, hosts: Vec<String>) -> Option<IngressCertificate> {
        let secret = self.objects.get_typed::<Secret>(namespace, name)?;
        let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
        Some(IngressCertificate {
            secret: format!("{namespace}/{name}"),
            hosts,
            certificate: text("tls.crt")?,
            key: text("tls.key")?,
        })
    }

    fn endpoints(&self, namespace: &str, backend: &IngressBackend) -> Vec<SocketAddrV4> {
        let Some(wanted) = &backend.service else { return Vec::new() };
        let Some(service) = self.objects.get_typed::<Service>(namespace, &wanted.name) else {
            return Vec::new();
        };
        let key = (namespace.to_owned(), wanted.name.clone());
        let slices: Vec<&EndpointSlice> =
            self.slices.get(&key).into_iter().flatten().map(AsRef::as_ref).collect();
        let Some(spec) = &service.spec else { return Vec::new() };
        let port = spec.ports.iter().flatten().find(|port| {
            wanted.port.as_ref().is_some_and(|w| match w.name.as_deref().filter(|name| !name.is_empty()) {
                Some(name) => port.name.as_deref() == Some(name),
                None => w.number == Some(port.port),
            })
        });
        let Some(port) = port else { return Vec::new() };
        let all = spec.publish_not_ready_addresses.unwrap_or(false);
        let mut backends = services::backends(&slices, port.name.as_deref().unwrap_or_default(), all);
        if backends.iter().any(|backend| !backend.ending) {
            backends.retain(|backend| !backend.ending);
        }
        backends.into_iter().map(|backend| SocketAddrV4::new(backend.address, backend.port)).collect()
    }
}

/// A path without the pattern at its end that rewrites are used with, and what that captures.
fn pattern(path: &str) -> (&str, Captures) {
    if let Some(literal) = path.strip_suffix("(/|$)(.*)") {
        return (literal, Captures::SlashRest);
    }
    if let Some(literal) = path.strip_suffix("/(.*)").or_else(|| path.strip_suffix("/?(.*)")) {
        return (literal, Captures::Rest);
    }
    (path, Captures::None)
}

struct Annotations<'a>(Option<&'a BTreeMap<String, String>>);

impl Annotations<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0?.get(&format!("{ANNOTATIONS}{name}")).map(|value| value.trim())
    }

    fn is(&self, name: &str, default: bool) -> bool {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    fn options(&self, host_has_tls: bool) -> IngressOptions {
        let seconds = |name| self.get(name).and_then(|value| value.trim_end_matches('s').parse().ok());
        let list = self.get("whitelist-source-range").or_else(|| self.get("allowlist-source-range"));
        let ranges = list.unwrap_or_default().split(',').map(str::trim).filter(|range| !range.is_empty());
        let redirect = self.is("force-ssl-redirect", false) || host_has_tls && self.is("ssl-redirect", true);
        IngressOptions {
            rewrite_target: self.get("rewrite-target").filter(|t| !t.is_empty()).map(str::to_owned),
            redirect_to_tls: redirect,
            protocol: match self.get("backend-protocol").unwrap_or_default().to_uppercase().as_str() {
                "HTTPS" => BackendProtocol::Https,
                "GRPC" => BackendProtocol::Grpc,
                "GRPCS" => BackendProtocol::Grpcs,
                _ => BackendProtocol::Http,
            },
            body_bytes_max: self.get("proxy-body-size").and_then(bytes).filter(|max| *max > 0),
            read_timeout_seconds: seconds("proxy-read-timeout"),
            send_timeout_seconds: seconds("proxy-send-timeout"),
            source_ranges: ranges.map(str::to_owned).collect(),
        }
    }
}

/// nginx's sizes: `512`, `10k`, `8m`, `1g`.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.to_ascii_lowercase().chars().last()? {
        'k' => (&text[..text.len() - 1], 1 << 10),
        'm' => (&text[..text.len() - 1], 1 << 20),
        'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_options() {
        let given: BTreeMap<String, String> = [
            ("proxy-body-size", "8m"),
            ("backend-protocol", "GRPC"),
            ("proxy-read-timeout", "90"),
            ("whitelist-source-range", "10.0.0.0/8, 192.0.2.1"),
        ]
        .into_iter()
        .map(|(name, value)| (format!("{ANNOTATIONS}{name}"), value.to_owned()))
        .collect();
        let options = Annotations(Some(&given)).options(true);
        assert_eq!(options.body_bytes_max, Some(8 << 20));
        assert_eq!(options.protocol, BackendProtocol::Grpc);
        assert_eq!(options.read_timeout_seconds, Some(90));
        assert_eq!(options.source_ranges, ["10.0.0.0/8", "192.0.2.1"]);
        assert!(options.redirect_to_tls, "a host with TLS redirects by default");
        assert!(!Annotations(None).options(false).redirect_to_tls);
        assert_eq!(pattern("/a(/|$)(.*)"), ("/a", Captures::SlashRest));
    }
}
