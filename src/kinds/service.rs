//! Services.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, Subresource, addresses,
    at::At,
    columns::{self, AGE, NAME, number, text, text_or, wide},
    containers::{PROTOCOLS, check_port_or_name},
    edit::{child, drop_empty, each, present, set_default, set_default_empty},
    meta::{self, check_labels},
    names,
    registry::row,
    remove, replace,
};

pub const SERVICE: Kind = Kind {
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Other("proxy"), Subresource::Status],
    created_by_put: true,
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |service| service["status"] = json!({"loadBalancer": {}}),
        prepare_update,
        validate: |service| meta::check(service, true, names::dns_label, check),
        validate_update: |new, old| meta::check_update(new, old, check_change),
        warnings,
        selectable: |service| {
            let text = |field: &str| service["spec"][field].as_str().unwrap_or_default().to_owned();
            vec![("spec.clusterIP", text("clusterIP")), ("spec.type", text("type"))]
        },
        cells,
        ..Strategy::WITH_STATUS
    },
    ..row("", "v1", "Service", "services", "service", "io.k8s.api.core.v1.Service")
};

/// No load balancer leads to it.
const KUBELET_PORT: i64 = 10250;
/// How long a client stays with its endpoint (seconds).
const AFFINITY_SECONDS: i64 = 10_800;
const AFFINITY_SECONDS_MAX: i64 = 86_400;

fn is(spec: &Value, kind: &str) -> bool {
    spec["type"] == kind
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None"
}

/// Whether the outside can reach it.
fn is_external(spec: &Value) -> bool {
    is(spec, "LoadBalancer")
        || is(spec, "NodePort")
        || (is(spec, "ClusterIP") && spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty()))
}

fn default(service: &mut Value) {
    let spec = child(service, "spec");
    drop_empty(spec, &["clusterIP", "clusterIPs", "externalIPs", "externalName", "externalTrafficPolicy"]);
    drop_empty(spec, &["healthCheckNodePort", "loadBalancerIP", "loadBalancerSourceRanges"]);
    drop_empty(spec, &["publishNotReadyAddresses", "selector"]);
    set_default_empty(spec, "sessionAffinity", "None");
    set_default_empty(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP" {
        if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}});
        }
    } else if spec["sessionAffinity"] == "None" {
        remove(spec, "sessionAffinityConfig");
    }
    for port in each(spec, "ports") {
        drop_empty(port, &["name", "nodePort"]);
        set_default_empty(port, "protocol", "TCP");
        let same = port["port"].clone();
        set_default_empty(port, "targetPort", same);
    }
    if is_external(spec) {
        set_default_empty(spec, "externalTrafficPolicy", "Cluster");
    }
    if !is(spec, "ExternalName") {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if is(spec, "LoadBalancer") {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
    default_addresses(spec);
    if is(&service["spec"], "LoadBalancer")
        && let Some(balancer) = present(service, "status").and_then(|s| present(s, "loadBalancer"))
    {
        for ingress in each(balancer, "ingress").filter(|i| i["ip"].is_string()) {
            set_default(ingress, "ipMode", "VIP");
        }
    }
}

/// `clusterIP` and `clusterIPs` say the same; the families are those of the addresses.
fn default_addresses(spec: &mut Value) {
    if is(spec, "ExternalName") {
        return;
    }
    match (present(spec, "clusterIP").cloned(), present(spec, "clusterIPs").is_some()) {
        (Some(ip), false) => spec["clusterIPs"] = json!([ip]),
        (None, true) => spec["clusterIP"] = spec["clusterIPs"][0].clone(),
        _ => {}
    }
    let selects = spec["selector"].as_object().is_some_and(|s| !s.is_empty());
    if is_headless(spec) && !selects {
        set_default(spec, "ipFamilyPolicy", "RequireDualStack");
        set_default(spec, "ipFamilies", json!(["IPv4", "IPv6"]));
        return;
    }
    set_default(spec, "ipFamilyPolicy", "SingleStack");
    if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
        let family = |ip: &Value| {
            if ip.as_str().is_some_and(|text| text.contains(':')) { "IPv6" } else { "IPv4" }
        };
        let families: Vec<Value> = match spec["clusterIPs"].as_array() {
            Some(ips) if !is_headless(spec) && !ips.is_empty() => {
                ips.iter().map(|ip| family(ip).into()).collect()
            }
            _ => vec!["IPv4".into()],
        };
        spec["ipFamilies"] = families.into();
    }
}

/// What was allocated is kept where the client leaves it out, and dropped with the type that had it.
fn prepare_update(new: &mut Value, old: &Value) {
    replace(new, "status", old);
    let (spec, had) = (child(new, "spec"), &old["spec"]);
    let has_ip = |spec: &Value| !is(spec, "ExternalName");
    let has_ports = |spec: &Value| is(spec, "NodePort") || is(spec, "LoadBalancer");
    let ip_absent = |spec: &Value| spec["clusterIP"].as_str().unwrap_or_default().is_empty();
    if has_ip(spec) && has_ip(had) && ip_absent(spec) && spec["clusterIPs"].is_null() {
        replace(spec, "clusterIP", had);
        replace(spec, "clusterIPs", had);
    }
    // A client that knows only the older field means both. Defaults are there already.
    if spec["clusterIP"] != had["clusterIP"] && spec["clusterIPs"] == had["clusterIPs"] {
        match present(spec, "clusterIP").cloned() {
            Some(ip) => spec["clusterIPs"] = json!([ip]),
            None => remove(spec, "clusterIPs"),
        }
    }
    let old_port = |port: &Value| {
        let ports = had["ports"].as_array().into_iter().flatten();
        let same = |p: &&Value| p["port"] == port["port"] && p["protocol"] == port["protocol"];
        ports.into_iter().find(same).map(|p| p["nodePort"].clone()).filter(Value::is_number)
    };
    let keeps_ports = has_ports(spec) && has_ports(had);
    let loses_ports = !has_ports(spec) && has_ports(had);
    for port in each(spec, "ports") {
        let Some(node_port) = old_port(port) else { continue };
        if keeps_ports && number(&port["nodePort"]) == 0 {
            port["nodePort"] = node_port;
        } else if loses_ports && port["nodePort"] == node_port {
            remove(port, "nodePort");
        }
    }
    let now = spec.clone();
    let mut drop_lost = |kept: fn(&Value) -> bool, fields: &[&str]| {
        if !kept(&now) && kept(had) {
            for field in fields.iter().filter(|f| now[**f] == had[**f]) {
                remove(spec, field);
            }
        }
    };
    drop_lost(|s| !is(s, "ExternalName"), &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    drop_lost(|s| !is(s, "ExternalName"), &["internalTrafficPolicy"]);
    drop_lost(|s| is(s, "ExternalName"), &["externalName"]);
    drop_lost(is_external, &["externalTrafficPolicy"]);
    drop_lost(needs_health_check, &["healthCheckNodePort"]);
    drop_lost(|s| is(s, "LoadBalancer"), &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    if needs_health_check(&now) && needs_health_check(had) && number(&now["healthCheckNodePort"]) == 0 {
        replace(spec, "healthCheckNodePort", had);
    }
}

/// Whether a load balancer asks the nodes whether they have endpoints.
fn needs_health_check(spec: &Value) -> bool {
    is(spec, "LoadBalancer") && spec["externalTrafficPolicy"] == "Local"
}

fn check(service: &At<'_>, errors: &mut ErrorList) {
    let spec = service.get("spec");
    let (kind, ports) = (spec.get("type"), spec.get("ports"));
    let headless = is_headless(spec.value);
    if ports.is_empty() && !headless && kind.str() != "ExternalName" {
        errors.push(ports.required(""));
    }
    if kind.str() == "LoadBalancer" {
        for port in ports.items().filter(|port| port.get("port").int() == Some(KUBELET_PORT)) {
            let detail = format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
            errors.push(FieldError::invalid(port.path, KUBELET_PORT, detail));
        }
    }
    match kind.str() {
        "LoadBalancer" | "NodePort" if headless => errors.push(FieldError::invalid(
            format!("{}.clusterIPs[0]", spec.path),
            "None",
            format!("may not be set to 'None' for {} services", kind.str()),
        )),
        "ExternalName" => check_external_name(&spec, errors),
        _ => {}
    }
    check_ports(&ports, kind.str(), errors);
    check_labels(&spec.get("selector"), errors);
    let affinity = spec.get("sessionAffinity");
    affinity.check_required_one_of(&["ClientIP", "None"], errors);
    let seconds = spec.get("sessionAffinityConfig").get("clientIP").get("timeoutSeconds");
    if affinity.str() == "ClientIP" && seconds.int().is_none_or(|s| !(1..=AFFINITY_SECONDS_MAX).contains(&s))
    {
        let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        errors.push(seconds.invalid(detail));
    }
    check_cluster_ips(&spec, errors);
    for ip in spec.get("externalIPs").items() {
        let before = errors.len();
        ip.check(addresses::ip, errors);
        if errors.len() == before {
            ip.check(addresses::non_special_ip, errors);
        }
    }
    kind.check_required_one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    check_balancer(&spec, kind.str(), errors);
    let external = spec.get("externalTrafficPolicy");
    if is_external(spec.value) {
        external.check_required_one_of(&["Cluster", "Local"], errors);
    } else if !external.is_empty() {
        errors.push(external.invalid("may only be set for externally-accessible services"));
    }
    let health = spec.get("healthCheckNodePort");
    if health.int().is_some_and(|p| p != 0) {
        if needs_health_check(spec.value) {
            health.check_port(errors);
        } else {
            errors.push(health.invalid(
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ));
        }
    }
    spec.get("internalTrafficPolicy").check_one_of(&["Cluster", "Local"], errors);
    spec.get("trafficDistribution")
        .check_one_of(&["PreferClose", "PreferSameNode", "PreferSameZone"], errors);
}

fn check_external_name(spec: &At<'_>, errors: &mut ErrorList) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"].map(|f| spec.get(f)) {
        if !field.is_empty() {
            errors.push(field.forbidden("may not be set for ExternalName services"));
        }
    }
    let name = spec.get("externalName");
    let cname = name.str().strip_suffix('.').unwrap_or(name.str());
    if cname.is_empty() {
        errors.push(name.required(""));
    }
    if !cname.is_empty() {
        errors.extend(
            names::dns_subdomain(cname).into_iter().map(|m| FieldError::invalid(&name.path, cname, m)),
        );
    }
}

fn check_ports(ports: &At<'_>, kind: &str, errors: &mut ErrorList) {
    let many = ports.len() > 1;
    let mut names: Vec<&str> = Vec::new();
    let (mut node_ports, mut pairs) = (Vec::new(), Vec::new());
    for port in ports.items() {
        let name = port.get("name");
        if many && name.is_empty() {
            errors.push(name.required(""));
        } else if !name.is_empty() {
            name.check(names::dns_label, errors);
            if names.contains(&name.str()) {
                errors.push(name.duplicate());
            }
            names.push(name.str());
        }
        port.get("port").check_port(errors);
        let protocol = port.get("protocol");
        protocol.check_required_one_of(PROTOCOLS, errors);
        check_port_or_name(&port.get("targetPort"), errors);
        let application = port.get("appProtocol");
        if application.is_set() {
            application.check(names::qualified, errors);
        }
    }
    for port in ports.items() {
        let (protocol, node_port) = (port.get("protocol").str(), port.get("nodePort"));
        if let Some(n) = node_port.int().filter(|n| *n != 0) {
            if kind == "ClusterIP" {
                errors.push(node_port.forbidden("may not be used when `type` is 'ClusterIP'"));
            }
            if node_ports.contains(&(protocol, n)) {
                errors.push(node_port.duplicate());
            }
            node_ports.push((protocol, n));
        }
        let pair = (protocol, port.get("port").int());
        if pairs.contains(&pair) {
            let key = json!({"protocol": pair.0, "port": pair.1});
            let error = FieldError::duplicate(&port.path, key);
            errors.push(error.as_struct("Name= Protocol= AppProtocol Port0 TargetPort0 NodePort0"));
        }
        pairs.push(pair);
    }
}

fn check_cluster_ips(spec: &At<'_>, errors: &mut ErrorList) {
    if is(spec.value, "ExternalName") {
        return;
    }
    let (ip, ips, families) = (spec.get("clusterIP"), spec.get("clusterIPs"), spec.get("ipFamilies"));
    match (ip.is_empty(), ips.items().next()) {
        (false, None) => errors.push(ips.required("")),
        (false, Some(first)) if first.str() != ip.str() => {
            errors.push(ips.invalid("first value must match `clusterIP`"));
        }
        (true, Some(_)) => errors.push(ips.invalid("must be empty when `clusterIP` is not specified")),
        _ => {}
    }
    let mut seen: Vec<&str> = Vec::new();
    for family in families.items() {
        family.check_one_of(&["IPv4", "IPv6"], errors);
        if seen.contains(&family.str()) {
            errors.push(family.duplicate());
        }
        seen.push(family.str());
    }
    spec.get("ipFamilyPolicy").check_one_of(&["PreferDualStack", "RequireDualStack", "SingleStack"], errors);
    let before = errors.len();
    for (i, ip) in ips.items().enumerate() {
        if i == 0 && ip.str() == "None" {
            if ips.len() > 1 {
                errors.push(ips.invalid("'None' must be the first and only value"));
            }
        } else {
            ip.check(addresses::ip, errors);
        }
    }
    if ips.len() > 2 {
        errors.push(ips.invalid("may only hold up to 2 values"));
    }
    if errors.len() > before || is_headless(spec.value) {
        return;
    }
    if !addresses::one_of_each_family(ips.items().map(|ip| ip.str())) {
        errors.push(ips.invalid("may specify no more than one IP for each IP family"));
    }
    for (i, (ip, family)) in ips.items().zip(families.items()).enumerate() {
        let is_six = ip.str().parse::<IpAddr>().is_ok_and(|a| a.is_ipv6());
        if (family.str() == "IPv6") != is_six {
            let expected = family.str();
            let article = format!("expected an {expected} value as indicated by `ipFamilies[{i}]`");
            errors.push(ip.invalid(article));
        }
    }
}

fn check_balancer(spec: &At<'_>, kind: &str, errors: &mut ErrorList) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges =
        spec.get("loadBalancerSourceRanges").with_path(format!("{}.LoadBalancerSourceRanges", spec.path));
    if !ranges.is_empty() && kind != "LoadBalancer" {
        errors.push(ranges.forbidden(ONLY));
    }
    for range in ranges.items() {
        let text = range.str().trim();
        errors.extend(addresses::cidr(text).into_iter().map(|m| FieldError::invalid(&range.path, text, m)));
    }
    let (ports, class) = (spec.get("allocateLoadBalancerNodePorts"), spec.get("loadBalancerClass"));
    if ports.is_set() && kind != "LoadBalancer" {
        errors.push(ports.forbidden(ONLY));
    }
    if class.is_set() {
        if kind == "LoadBalancer" {
            class.check(names::qualified, errors);
        } else {
            errors.push(class.forbidden(ONLY));
        }
    }
}

fn check_change(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (spec, had) = (new.get("spec"), old.get("spec"));
    if is(spec.value, "ExternalName") || is(had.value, "ExternalName") {
        return;
    }
    let both_headless = is_headless(spec.value) && is_headless(had.value);
    for field in ["clusterIPs", "ipFamilies"] {
        let (now, then) = (spec.get(field), had.get(field));
        let headless_changes = is_headless(spec.value) != is_headless(had.value);
        if both_headless || (field == "ipFamilies" && headless_changes) {
            continue;
        }
        if now.is_empty() && !then.is_empty() {
            let what = if field == "clusterIPs" { "primary clusterIP" } else { "primary ipFamily" };
            errors.push(FieldError::invalid(
                format!("{}[0]", now.path),
                now.value.clone(),
                format!("{what} can not be unset"),
            ));
            continue;
        }
        for (i, (a, b)) in now.items().zip(then.items()).enumerate() {
            if a.str() != b.str() {
                let path = format!("{}[{i}]", now.path);
                errors.push(FieldError::invalid(path, now.value.clone(), "may not change once set"));
            }
        }
        if now.len() < then.len() && spec.get("ipFamilyPolicy").str() != "SingleStack" {
            let what = if field == "clusterIPs" { "clusterIP" } else { "ipFamily" };
            let policy = spec.get("ipFamilyPolicy");
            errors.push(
                policy.invalid(format!("must be set to 'SingleStack' when releasing the secondary {what}")),
            );
        }
    }
    let class = spec.get("loadBalancerClass");
    if is(spec.value, "LoadBalancer")
        && is(had.value, "LoadBalancer")
        && class.value != had.get("loadBalancerClass").value
    {
        errors.push(class.invalid("may not change once set"));
    }
    if needs_health_check(spec.value)
        && needs_health_check(had.value)
        && number(had.get("healthCheckNodePort").value) != 0
        && spec.get("healthCheckNodePort").value != had.get("healthCheckNodePort").value
    {
        errors.push(spec.get("healthCheckNodePort").forbidden("field is immutable"));
    }
}

fn warnings(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    let mut warnings = Vec::new();
    let external = is(spec, "ExternalName");
    if external && spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty()) {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external && spec["externalName"].is_string() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if is_headless(spec) && spec["sessionAffinity"] == "ClientIP" {
        warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
    }
    warnings
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Type", "spec.type"),
    text("Cluster-IP", "spec.clusterIP"),
    text("External-IP", "spec.externalIPs"),
    text("Port(s)", "spec.ports"),
    AGE,
    wide(text("Selector", "spec.selector")),
];

/// The addresses of a load balancer's status, by comma.
pub fn balancer_addresses(status: &Value) -> String {
    let ingress = status["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let mut list: Vec<&str> = ingress
        .filter_map(|i| i["ip"].as_str().filter(|ip| !ip.is_empty()).or_else(|| i["hostname"].as_str()))
        .collect();
    list.sort_unstable();
    list.dedup();
    list.join(",")
}

fn external_address(service: &Value) -> String {
    let spec = &service["spec"];
    let own: Vec<&str> =
        spec["externalIPs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match spec["type"].as_str() {
        Some("ExternalName") => spec["externalName"].as_str().unwrap_or_default().to_owned(),
        Some("LoadBalancer") => {
            let balancer = balancer_addresses(&service["status"]);
            let all: Vec<&str> =
                std::iter::once(balancer.as_str()).filter(|b| !b.is_empty()).chain(own).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ if own.is_empty() => "<none>".to_owned(),
        _ => own.join(","),
    }
}

fn cells(service: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let ports: Vec<String> = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let (number, protocol) = (&port["port"], port["protocol"].as_str().unwrap_or_default());
            match port["nodePort"].as_i64() {
                Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    let ports = if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") };
    vec![
        columns::name(service),
        spec["type"].clone(),
        text_or(&spec["clusterIP"], "<none>"),
        external_address(service).into(),
        ports.into(),
        columns::age(service, now).into(),
        columns::labels(&spec["selector"]).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec});
        default(&mut service);
        service
    }

    fn errors(spec: Value) -> Vec<String> {
        (SERVICE.strategy.validate)(&service(spec)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        assert_eq!(
            service(json!({"ports": [{"port": 80}], "selector": {"a": "b"}}))["spec"],
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "selector": {"a": "b"}, "sessionAffinity": "None",
                "type": "ClusterIP", "internalTrafficPolicy": "Cluster", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]})
        );
        let balancer = service(
            json!({"ports": [{"port": 80}], "type": "LoadBalancer", "clusterIP": "fd00::1", "selector": {"a": "b"}}),
        );
        let spec = &balancer["spec"];
        assert_eq!(
            (&spec["externalTrafficPolicy"], &spec["allocateLoadBalancerNodePorts"]),
            (&json!("Cluster"), &json!(true))
        );
        assert_eq!((&spec["clusterIPs"], &spec["ipFamilies"]), (&json!(["fd00::1"]), &json!(["IPv6"])));
        let headless = service(json!({"clusterIP": "None"}));
        assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!((SERVICE.strategy.validate)(&headless), []);
    }

    #[test]
    fn bad_services_are_refused_in_upstreams_words() {
        let cases = [
            (json!({}), "spec.ports: Required value"),
            (
                json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
                "spec.ports[0].name: Required value",
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
            (
                json!({"type": "Cluster", "ports": [{"port": 80}]}),
                "spec.type: Unsupported value: \"Cluster\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (
                json!({"clusterIP": "10.0.0.999", "ports": [{"port": 80}]}),
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.999\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        ];
        for (spec, text) in cases {
            assert_eq!(errors(spec), [text]);
        }
    }

    #[test]
    fn an_update_keeps_what_was_allocated() {
        let old = service(
            json!({"type": "NodePort", "clusterIP": "10.0.0.1", "selector": {"a": "b"}, "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let mut new = service(json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]}));
        prepare_update(&mut new, &old);
        assert_eq!(
            (&new["spec"]["clusterIP"], &new["spec"]["ports"][0]["nodePort"]),
            (&json!("10.0.0.1"), &json!(30080))
        );
        new["spec"]["type"] = "ClusterIP".into();
        prepare_update(&mut new, &old);
        assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(new["spec"].get("externalTrafficPolicy"), None);
        let mut moved = old.clone();
        moved["spec"]["clusterIP"] = "10.0.0.2".into();
        default(&mut moved);
        prepare_update(&mut moved, &old);
        let texts: Vec<_> =
            (SERVICE.strategy.validate_update)(&moved, &old).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]);
        let mut external = service(
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}),
        );
        prepare_update(&mut external, &old);
        assert_eq!((external["spec"].get("clusterIP"), external["spec"].get("clusterIPs")), (None, None));
    }

    #[test]
    fn a_row_shows_addresses_and_ports() {
        let mut balancer = service(
            json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let now = jiff::Timestamp::UNIX_EPOCH;
        assert_eq!(
            cells(&balancer, now)[1..5],
            ["LoadBalancer", "10.0.0.1", "<pending>", "80:30080/TCP"].map(Value::from)
        );
        balancer["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
        assert_eq!(cells(&balancer, now)[3], "192.0.2.1");
    }
}
