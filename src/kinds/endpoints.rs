//! Endpoints: the older form of EndpointSlices.

use serde_json::Value;

use super::{
    ErrorList, Kind, Strategy, addresses,
    at::At,
    columns::{self, AGE, NAME, text},
    containers::PROTOCOLS,
    edit::{each, set_default_empty},
    meta, names,
    registry::row,
};

pub const ENDPOINTS: Kind = Kind {
    short_names: &["ep"],
    created_by_put: true,
    deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    columns: &[NAME, text("Endpoints", "subsets"), AGE],
    strategy: Strategy {
        default: |object| {
            for port in each(object, "subsets").flat_map(|s| each(s, "ports")) {
                set_default_empty(port, "protocol", "TCP");
            }
        },
        validate: |object| meta::check(object, true, names::dns_subdomain, check),
        cells: |object, now| {
            vec![columns::name(object), endpoints(object).into(), columns::age(object, now).into()]
        },
        ..Strategy::PLAIN
    },
    ..row("", "v1", "Endpoints", "endpoints", "endpoints", "io.k8s.api.core.v1.Endpoints")
};

/// So many are shown in a row; of the others, how many they are.
pub const SHOWN_MAX: usize = 3;

/// The first items by comma, and how many more there are.
pub fn shortened(items: &[String], none: &str) -> String {
    if items.is_empty() {
        return none.to_owned();
    }
    let shown = items[..items.len().min(SHOWN_MAX)].join(",");
    match items.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn endpoints(object: &Value) -> String {
    let list = |v: &Value, field: &str| v[field].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for subset in list(object, "subsets") {
        let ips = list(&subset, "addresses");
        let ips = ips.iter().map(|a| a["ip"].as_str().unwrap_or_default());
        let ports = list(&subset, "ports");
        if ports.is_empty() {
            all.extend(ips.map(str::to_owned));
            continue;
        }
        for port in ports {
            let host = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            all.extend(ips.clone().map(|ip| format!("{}:{}", host(ip), port["port"])));
        }
    }
    shortened(&all, "<none>")
}

fn check(object: &At<'_>, errors: &mut ErrorList) {
    for subset in object.get("subsets").items() {
        let lists = ["addresses", "notReadyAddresses"].map(|f| subset.get(f));
        if lists.iter().all(At::is_empty) {
            errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for address in lists.iter().flat_map(At::items) {
            let ip = address.get("ip");
            ip.check(addresses::ip, errors);
            if !address.get("hostname").is_empty() {
                address.get("hostname").check(names::dns_label, errors);
            }
            if address.get("nodeName").is_set() {
                address.get("nodeName").check(names::dns_subdomain, errors);
            }
            ip.check(addresses::non_special_ip, errors);
        }
        let ports = subset.get("ports");
        for port in ports.items() {
            check_port(&port, ports.len() > 1, errors);
        }
    }
}

fn check_port(port: &At<'_>, name_required: bool, errors: &mut ErrorList) {
    let name = port.get("name");
    if !name.is_empty() {
        name.check(names::dns_label, errors);
    } else if name_required {
        errors.push(name.required(""));
    }
    port.get("port").check_port(errors);
    port.get("protocol").check_required_one_of(PROTOCOLS, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_shows_the_first_few() {
        let ips = |n: usize| (0..n).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect::<Vec<_>>();
        let object = |n: usize| json!({"subsets": [{"addresses": ips(n), "ports": [{"port": 80}]}]});
        assert_eq!(endpoints(&object(2)), "10.0.0.0:80,10.0.0.1:80");
        assert_eq!(endpoints(&object(5)), "10.0.0.0:80,10.0.0.1:80,10.0.0.2:80 + 2 more...");
        assert_eq!(endpoints(&json!({})), "<none>");
    }
}
