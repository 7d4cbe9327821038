//! Ingresses and IngressClasses.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, text, text_or},
    edit::{present, set_default},
    endpoints::SHOWN_MAX,
    meta, names,
    registry::row,
    service::balancer_addresses,
};

pub const INGRESS: Kind = Kind {
    short_names: &["ing"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        prepare_create: |new| {
            new["status"] = json!({"loadBalancer": {}});
            new["metadata"]["generation"] = 1.into();
        },
        validate: |ingress| {
            let is_new = meta::is_new(ingress);
            meta::check(ingress, true, names::dns_subdomain, |ingress, errors| {
                check_spec(&ingress.get("spec"), errors);
                let class = ingress.get("spec").get("ingressClassName");
                let annotation = ingress.get("metadata").get("annotations").key(CLASS_ANNOTATION);
                if is_new && class.is_set() && annotation.is_set() && annotation.str() != class.str() {
                    let at = annotation.with_path(format!("annotations.{CLASS_ANNOTATION}"));
                    errors.push(at.invalid("must match `ingressClassName` when both are specified"));
                }
            })
        },
        warnings: |ingress| {
            let annotation = &ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"];
            if annotation.is_null() {
                return Vec::new();
            }
            vec!["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead".to_owned()]
        },
        cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress", "io.k8s.api.networking.v1.Ingress")
};

pub const INGRESS_CLASS: Kind = Kind {
    namespaced: false,
    columns: &[
        NAME,
        text("Controller", "Controller that is responsible for handling this class"),
        text("Parameters", "A reference to a resource with additional parameters"),
        AGE,
    ],
    strategy: Strategy {
        default: |class| {
            if let Some(parameters) = present(class, "spec").and_then(|s| present(s, "parameters")) {
                set_default(parameters, "scope", "Cluster");
            }
        },
        validate: |class| meta::check(class, false, names::dns_subdomain, check_class),
        validate_update: |new, old| {
            meta::check_update(new, old, |new, old, errors| {
                let [now, then] = [new, old].map(|class| class.get("spec").get("controller"));
                now.check_immutable(&then, errors);
            })
        },
        cells: class_cells,
        ..Strategy::SPEC_ONLY
    },
    ..row(
        "networking.k8s.io",
        "v1",
        "IngressClass",
        "ingressclasses",
        "ingressclass",
        "io.k8s.api.networking.v1.IngressClass",
    )
};

/// The controller that an IngressClass names to mean ours, and a class that does without an object.
const CONTROLLER: &str = "sampan.dev/ingress";
const OWN_CLASS: &str = "sampan";
/// The way to name a class before there were classes.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// The family of annotations of ingress-nginx.
pub const ANNOTATIONS: &str = "nginx.ingress.kubernetes.io/";
/// Those of the family that are understood.
const UNDERSTOOD: &[&str] = &[
    "allowlist-source-range",
    "backend-protocol",
    "force-ssl-redirect",
    "proxy-body-size",
    "proxy-read-timeout",
    "proxy-send-timeout",
    "rewrite-target",
    "ssl-redirect",
    "use-regex",
    "whitelist-source-range",
];

/// Whether an Ingress is for the built-in server: of one of its classes, or of none.
pub fn is_ours(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    let annotation = ingress.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    let Some(class) = annotation.or(named).filter(|class| !class.is_empty()) else { return true };
    match classes.iter().find(|c| c.metadata.name.as_ref() == Some(class)) {
        Some(class) => class.spec.as_ref().and_then(|s| s.controller.as_deref()) == Some(CONTROLLER),
        None => class == OWN_CLASS,
    }
}

/// The annotations of ingress-nginx's family that have no effect here.
pub fn not_understood(ingress: &Ingress) -> Vec<&str> {
    let annotations = ingress.metadata.annotations.iter().flatten();
    let of_family = annotations.filter_map(|(key, _)| Some((key.as_str(), key.strip_prefix(ANNOTATIONS)?)));
    of_family.filter(|(_, name)| !UNDERSTOOD.contains(name)).map(|(key, _)| key).collect()
}

fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    let (backend, rules, class) =
        (spec.get("defaultBackend"), spec.get("rules"), spec.get("ingressClassName"));
    if rules.is_empty() && !backend.is_set() {
        errors.push(
            rules.with_path(&spec.path).invalid("either `defaultBackend` or `rules` must be specified"),
        );
    }
    if backend.is_set() {
        check_backend(&backend, errors);
    }
    for rule in rules.items() {
        let host = rule.get("host");
        if !host.is_empty() {
            check_host(&host, errors);
        }
        let http = rule.get("http");
        if http.is_set() && http.get("paths").check_required(errors) {
            http.get("paths").items().for_each(|path| check_path(&path, errors));
        }
    }
    for tls in spec.get("tls").items() {
        tls.get("hosts").items().for_each(|host| {
            let rule =
                if host.str().contains('*') { names::wildcard_subdomain } else { names::dns_subdomain };
            host.check(rule, errors);
        });
        let secret = tls.get("secretName");
        if !secret.is_empty() {
            secret.check(names::dns_subdomain, errors);
        }
    }
    if class.is_set() {
        class.check(names::dns_subdomain, errors);
    }
}

fn check_host(host: &At<'_>, errors: &mut ErrorList) {
    if host.str().parse::<std::net::IpAddr>().is_ok() {
        errors.push(host.invalid("must be a DNS name, not an IP address"));
    } else if host.str().contains('*') {
        host.check(names::wildcard_subdomain, errors);
    } else {
        host.check(names::dns_subdomain, errors);
    }
}

fn check_path(path: &At<'_>, errors: &mut ErrorList) {
    let (text, kind) = (path.get("path"), path.get("pathType"));
    if kind.is_empty() {
        errors.push(kind.required("pathType must be specified"));
        return;
    }
    match kind.str() {
        "Exact" | "Prefix" => {
            if !text.str().starts_with('/') {
                errors.push(FieldError::invalid(&text.path, text.str(), "must be an absolute path"));
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|p| text.str().contains(**p)) {
                errors.push(text.invalid(format!("must not contain '{part}'")));
            }
            for end in ["/..", "/."].iter().filter(|e| text.str().ends_with(**e)) {
                errors.push(text.invalid(format!("cannot end with '{end}'")));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.str().starts_with('/') {
                errors.push(text.invalid("must be an absolute path"));
            }
        }
        _ => errors.push(kind.not_supported(&["Exact", "ImplementationSpecific", "Prefix"])),
    }
    check_backend(&path.get("backend"), errors);
}

fn check_backend(backend: &At<'_>, errors: &mut ErrorList) {
    let (service, resource) = (backend.get("service"), backend.get("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => {
            let detail = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(&backend.path, "", detail));
        }
        (false, false) => {
            let detail = "resource or service backend is required";
            errors.push(FieldError::invalid(&backend.path, "", detail));
        }
        (false, true) => check_reference(&resource, errors),
        (true, false) => {
            let (name, port) = (service.get("name"), service.get("port"));
            name.check_required_name(names::dns_label, errors);
            let number = port.get("number").int().unwrap_or(0);
            match (!port.get("name").is_empty(), number != 0) {
                (true, true) => {
                    let detail = "cannot set both port name & port number";
                    errors.push(FieldError::invalid(&backend.path, "", detail));
                }
                (true, false) => port.get("name").check(names::port_name, errors),
                (false, true) => port.get("number").check_port(errors),
                (false, false) => errors.push(backend.required("port name or number is required")),
            }
        }
    }
}

/// A reference to an object of any kind.
fn check_reference(reference: &At<'_>, errors: &mut ErrorList) {
    if reference.get("apiGroup").is_set() {
        reference.get("apiGroup").check(names::dns_subdomain, errors);
    }
    for field in ["kind", "name"] {
        reference.get(field).check_required_name(names::path_segment, errors);
    }
}

/// The name of an IngressClass' controller (bytes).
const CONTROLLER_BYTES_MAX: usize = 250;

fn check_class(class: &At<'_>, errors: &mut ErrorList) {
    let spec = class.get("spec");
    let controller = spec.get("controller");
    if controller.len() > CONTROLLER_BYTES_MAX {
        errors.push(FieldError::too_long(&controller.path, CONTROLLER_BYTES_MAX));
    }
    controller.check_domain_prefixed(errors);
    let parameters = spec.get("parameters");
    if !parameters.is_set() {
        return;
    }
    check_reference(&parameters, errors);
    let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
    scope.check_required_one_of(&["Cluster", "Namespace"], errors);
    match scope.str() {
        "Namespace" if !namespace.is_set() => {
            errors.push(namespace.required("`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => namespace.check(names::dns_label, errors),
        "Cluster" if namespace.is_set() => {
            errors.push(namespace.forbidden("`parameters.scope` is set to 'Cluster'"));
        }
        _ => {}
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Class", "The name of the IngressClass resource that should be used for additional configuration"),
    text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
    text("Address", "Address is a list containing ingress points for the load-balancer"),
    text("Ports", "Ports of TLS configurations that open"),
    AGE,
];

fn cells(ingress: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let spec = &ingress["spec"];
    let rules = spec["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = rules.iter().enumerate().filter_map(|(i, r)| Some((i, r["host"].as_str()?)));
    let shown: Vec<(usize, &str)> = named.filter(|(_, h)| !h.is_empty()).take(SHOWN_MAX).collect();
    let hosts = shown.iter().map(|(_, host)| *host).collect::<Vec<_>>().join(",");
    let hosts = match shown.last() {
        None => "*".to_owned(),
        Some((i, _)) if shown.len() == SHOWN_MAX && i + 1 < rules.len() => {
            format!("{hosts} + {} more...", rules.len() - SHOWN_MAX)
        }
        Some(_) => hosts,
    };
    let secure = spec["tls"].as_array().is_some_and(|tls| !tls.is_empty());
    vec![
        columns::name(ingress),
        text_or(&spec["ingressClassName"], "<none>"),
        hosts.into(),
        balancer_addresses(&ingress["status"]).into(),
        if secure { "80, 443" } else { "80" }.into(),
        columns::age(ingress, now).into(),
    ]
}

fn class_cells(class: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, parameters) = (&class["spec"], &class["spec"]["parameters"]);
    let part = |field: &str| parameters[field].as_str().unwrap_or_default();
    let shown = match (parameters.is_null(), part("apiGroup")) {
        (true, _) => "<none>".to_owned(),
        (false, "") => format!("{}/{}", part("kind"), part("name")),
        (false, group) => format!("{}.{group}/{}", part("kind"), part("name")),
    };
    let mut name = class["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"] == "true" {
        name.push_str(" (default)");
    }
    vec![name.into(), spec["controller"].clone(), shown.into(), columns::age(class, now).into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_backends_are_checked() {
        let errors = |path: Value| -> Vec<String> {
            let ingress = json!({"metadata": {"name": "i", "namespace": "n"}, "spec": {"rules": [{"host": "a.b", "http": {"paths": [path]}}]}});
            (INGRESS.strategy.validate)(&ingress).iter().map(ToString::to_string).collect()
        };
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        assert_eq!(
            errors(json!({"path": "/", "pathType": "Prefix", "backend": backend})),
            Vec::<String>::new()
        );
        let at = "spec.rules[0].http.paths[0]";
        assert_eq!(
            errors(json!({"path": "/", "backend": backend})),
            [format!("{at}.pathType: Required value: pathType must be specified")]
        );
        assert_eq!(
            errors(json!({"path": "a//b", "pathType": "Exact", "backend": {"service": {"name": "s"}}})),
            [
                format!("{at}.path: Invalid value: \"a//b\": must be an absolute path"),
                format!("{at}.path: Invalid value: \"a//b\": must not contain '//'"),
                format!("{at}.backend: Required value: port name or number is required"),
            ]
        );
    }

    #[test]
    fn classes_decide_whose_an_ingress_is() {
        let class = |name: &str, controller: &str| -> Arc<IngressClass> {
            let class = json!({"metadata": {"name": name}, "spec": {"controller": controller}});
            Arc::new(serde_json::from_value(class).unwrap())
        };
        let classes = [class("mine", CONTROLLER), class("nginx", "k8s.io/ingress-nginx")];
        for (class, want) in [
            (None, true),
            (Some("sampan"), true),
            (Some("mine"), true),
            (Some("nginx"), false),
            (Some("x"), false),
        ] {
            let by_field: Ingress =
                serde_json::from_value(json!({"metadata": {}, "spec": {"ingressClassName": class}})).unwrap();
            assert_eq!(is_ours(&by_field, &classes), want, "{class:?}");
        }
    }

    #[test]
    fn annotations_without_effect_are_found() {
        let of = |names: &[&str]| -> Ingress {
            let all: serde_json::Map<String, Value> =
                names.iter().map(|name| ((*name).to_owned(), json!("x"))).collect();
            serde_json::from_value(json!({"metadata": {"annotations": all}})).unwrap()
        };
        let ingress = of(&[
            "nginx.ingress.kubernetes.io/rewrite-target",
            "nginx.ingress.kubernetes.io/auth-url",
            "example.com/auth-url",
        ]);
        assert_eq!(not_understood(&ingress), ["nginx.ingress.kubernetes.io/auth-url"]);
    }
}
