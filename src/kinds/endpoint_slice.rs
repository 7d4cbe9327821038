//! EndpointSlices: the addresses behind a Service.

use serde_json::Value;

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, addresses,
    at::At,
    columns::{self, AGE, NAME, text},
    containers::PROTOCOLS,
    edit::{each, set_default, set_default_empty},
    endpoints::shortened,
    meta, names,
    registry::row,
};

pub const ENDPOINT_SLICE: Kind = Kind {
    columns: COLUMNS,
    strategy: Strategy {
        default: |slice| {
            for port in each(slice, "ports") {
                set_default(port, "name", "");
                set_default_empty(port, "protocol", "TCP");
            }
        },
        validate: |slice| meta::check(slice, true, names::dns_subdomain, check),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                new.get("addressType").check_immutable(&old.get("addressType"), errors);
            })
        },
        cells,
        ..Strategy::SPEC_ONLY
    },
    ..row(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
        "io.k8s.api.discovery.v1.EndpointSlice",
    )
};

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const HINTS_MAX: usize = 8;
const TOPOLOGY_LABELS_MAX: usize = 16;

fn check(slice: &At<'_>, errors: &mut ErrorList) {
    let kind = slice.get("addressType");
    kind.check_required_one_of(&["FQDN", "IPv4", "IPv6"], errors);
    let endpoints = slice.get("endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(&endpoints.path, endpoints.len(), ENDPOINTS_MAX));
        return;
    }
    for endpoint in endpoints.items() {
        check_endpoint(&endpoint, kind.str(), errors);
    }
    let ports = slice.get("ports");
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many(&ports.path, ports.len(), PORTS_MAX));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for port in ports.items() {
        let name = port.get("name");
        if !name.is_empty() {
            name.check(names::dns_label, errors);
        }
        if seen.contains(&name.str()) {
            errors.push(FieldError::duplicate(&name.path, name.str()));
        }
        seen.push(name.str());
        port.get("protocol").check_required_one_of(PROTOCOLS, errors);
        if port.get("port").is_set() {
            port.get("port").check_port(errors);
        }
        if !port.get("appProtocol").is_empty() {
            port.get("appProtocol").check(names::qualified, errors);
        }
    }
}

fn check_endpoint(endpoint: &At<'_>, kind: &str, errors: &mut ErrorList) {
    let list = endpoint.get("addresses");
    if list.is_empty() {
        errors.push(list.required("must contain at least 1 address"));
    } else if list.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(&list.path, list.len(), ADDRESSES_MAX));
    }
    for address in list.items() {
        if kind == "FQDN" {
            address.check(names::dns_subdomain, errors);
            continue;
        }
        let before = errors.len();
        address.check(addresses::ip, errors);
        if errors.len() > before {
            continue;
        }
        if (kind == "IPv6") != address.str().contains(':') {
            let detail = if kind == "IPv6" { "must be an IPv6 address" } else { "must be an IPv4 address" };
            errors.push(address.invalid(detail));
        }
        address.check(addresses::non_special_ip, errors);
    }
    if endpoint.get("nodeName").is_set() {
        endpoint.get("nodeName").check(names::dns_subdomain, errors);
    }
    if endpoint.get("hostname").is_set() {
        endpoint.get("hostname").check(names::dns_label, errors);
    }
    for (list, rule) in [("forZones", names::label_value as names::Rule), ("forNodes", names::dns_subdomain)]
    {
        let hints = endpoint.get("hints").get(list);
        if hints.len() > HINTS_MAX {
            errors.push(FieldError::too_many(&hints.path, hints.len(), HINTS_MAX));
            continue;
        }
        let mut seen: Vec<&str> = Vec::new();
        for name in hints.items().map(|hint| hint.get("name")) {
            if seen.contains(&name.str()) {
                errors.push(name.duplicate());
            }
            seen.push(name.str());
            name.check(rule, errors);
        }
    }
    let topology = endpoint.get("deprecatedTopology");
    if topology.len() > TOPOLOGY_LABELS_MAX {
        errors.push(FieldError::too_many(&topology.path, topology.len(), TOPOLOGY_LABELS_MAX));
    }
}

const COLUMNS: &[Column] =
    &[NAME, text("AddressType", "addressType"), text("Ports", "ports"), text("Endpoints", "endpoints"), AGE];

fn cells(slice: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let list = |field: &str| slice[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let port = |port: &Value| match (&port["port"], port["name"].as_str()) {
        (Value::Number(number), _) => number.to_string(),
        (_, Some(name)) => name.to_owned(),
        _ => "*".to_owned(),
    };
    let ports: Vec<String> = list("ports").iter().map(port).collect();
    let addresses = list("endpoints").iter().filter_map(|e| e["addresses"].as_array()).flatten();
    let addresses: Vec<String> = addresses.filter_map(|a| a.as_str().map(str::to_owned)).collect();
    vec![
        columns::name(slice),
        slice["addressType"].clone(),
        shortened(&ports, "<unset>").into(),
        shortened(&addresses, "<unset>").into(),
        columns::age(slice, now).into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_of_the_slices_type() {
        let slice = |kind: &str, ip: &str| {
            json!({"metadata": {"name": "s", "namespace": "n"}, "addressType": kind, "endpoints": [{"addresses": [ip]}],
                "ports": [{"name": "", "port": 80, "protocol": "TCP"}]})
        };
        let errors = |kind: &str, ip: &str| (ENDPOINT_SLICE.strategy.validate)(&slice(kind, ip)).len();
        assert_eq!([errors("IPv4", "10.0.0.1"), errors("IPv6", "fd00::1"), errors("FQDN", "a.b")], [0; 3]);
        assert_eq!(
            [
                errors("IPv4", "fd00::1"),
                errors("IPv6", "10.0.0.1"),
                errors("IPv4", "127.0.0.1"),
                errors("X", "10.0.0.1")
            ],
            [1; 4]
        );
        assert_eq!(
            cells(&slice("IPv4", "10.0.0.1"), jiff::Timestamp::UNIX_EPOCH)[1..4],
            ["IPv4", "80", "10.0.0.1"].map(Value::from)
        );
    }
}
