//! Endpoints, the form before slices.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use super::{
    super::{
        owner,
        plan::Plan,
        runner::{Controller, Round, Source},
    },
    HEADLESS,
    addresses::{self, Backend, Port},
    is_headless, services_of,
};
use crate::{
    objects::Objects,
    store::{Key, Object},
};

/// How many addresses an Endpoints holds at most; more are cut off, with an annotation.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpoint-controller";

pub struct EndpointsController;

impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        MANAGER
    }

    fn primary(&self) -> &'static str {
        "services"
    }

    fn sources(&self) -> Vec<Source> {
        let same_name = |_: &Objects, object: &Object| {
            vec![Key::new("services", &object.key.namespace, &object.key.name)]
        };
        vec![Source::new("pods", services_of), Source::new("endpoints", same_name)]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let current = objects.get_typed::<Endpoints>(&key.namespace, &key.name);
        let Some(service) = objects.get_typed::<Service>(&key.namespace, &key.name) else {
            let mut plan = Plan::default();
            if let Some(left) = current.filter(|e| owner::label(&e.metadata, MANAGED_BY) == Some(MANAGER)) {
                plan.delete(&*left, None, None);
            }
            return plan;
        };
        if super::selector(&service).is_none() {
            return Plan::default();
        }
        let backends = addresses::backends(&service, &addresses::selected(objects, &service));
        reconcile(&service, &backends, current.as_deref())
    }
}

fn reconcile(service: &Service, backends: &[Backend], current: Option<&Endpoints>) -> Plan {
    let mut plan = Plan::about(service);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    let cut = backends.len() > ADDRESSES_MAX;
    let subsets = subsets(service, &backends[..backends.len().min(ADDRESSES_MAX)]);
    let subsets = (!subsets.is_empty()).then_some(subsets);
    match current {
        None => {
            let annotations =
                cut.then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
            plan.create(
                &Endpoints {
                    metadata: ObjectMeta {
                        name: service.metadata.name.clone(),
                        namespace: service.metadata.namespace.clone(),
                        labels: Some(labels),
                        annotations,
                        ..ObjectMeta::default()
                    },
                    subsets,
                },
                None,
                None,
            );
        }
        Some(current) => {
            let marked = owner::annotation(&current.metadata, OVER_CAPACITY).is_some();
            let same = current.subsets.as_ref().filter(|s| !s.is_empty()) == subsets.as_ref();
            if !same || current.metadata.labels.as_ref() != Some(&labels) || marked != cut {
                let mut label_patch = json!(labels);
                for key in current
                    .metadata
                    .labels
                    .iter()
                    .flatten()
                    .map(|(k, _)| k)
                    .filter(|k| !labels.contains_key(*k))
                {
                    label_patch[key] = serde_json::Value::Null;
                }
                let mark = if cut { json!("truncated") } else { serde_json::Value::Null };
                plan.merge_at(
                    current,
                    json!({ "metadata": { "labels": label_patch, "annotations": { OVER_CAPACITY: mark } }, "subsets": subsets }),
                );
            }
        }
    }
    plan
}

/// One subset a set of ports; only the service's first family.
fn subsets(service: &Service, backends: &[Backend]) -> Vec<EndpointSubset> {
    let family = addresses::families(service)[0];
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for backend in backends {
        let Some(address) = backend.address(family) else { continue };
        // A pod on its way out is not listed; one without any of the ports only if there are none.
        if backend.terminating && !backend.ready {
            continue;
        }
        let address = EndpointAddress {
            ip: address.to_owned(),
            hostname: backend.hostname.clone(),
            node_name: backend.node.clone(),
            target_ref: Some(backend.target.clone()),
        };
        let (ready, not_ready) = groups.entry(backend.ports.clone()).or_default();
        if backend.ready { ready.push(address) } else { not_ready.push(address) }
    }
    let has_ports = service.spec.as_ref().and_then(|s| s.ports.as_ref()).is_some_and(|p| !p.is_empty());
    let filled = |addresses: Vec<EndpointAddress>| (!addresses.is_empty()).then_some(addresses);
    groups
        .into_iter()
        .filter(|(ports, _)| !(has_ports && ports.is_empty()))
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: filled(ready),
            not_ready_addresses: filled(not_ready),
            ports: (!ports.is_empty()).then(|| ports.into_iter().map(endpoint_port).collect()),
        })
        .collect()
}

fn endpoint_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name).filter(|n| !n.is_empty()),
        protocol: Some(port.protocol),
        port: port.number,
        app_protocol: port.app_protocol,
    }
}
