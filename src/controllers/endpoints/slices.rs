//! EndpointSlices of services, and the part that mirrors share: from wanted endpoints to the
//! fewest changes of the slices there are.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    Metadata,
    api::{
        core::v1::{Node, Service},
        discovery::v1::{
            Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use super::{
    super::{
        owner::{self, controller_reference},
        plan::Plan,
        pods,
        runner::{Controller, Round, Source, owner_keys},
    },
    HEADLESS, MANAGED_BY, SERVICE_NAME,
    addresses::{self, Backend, Family, Port},
    is_headless, services_of,
};
use crate::{
    kinds::placement,
    objects::Objects,
    store::{Key, Object},
};

/// How many endpoints one slice holds at most (upstream's default).
const SLICE_ENDPOINTS_MAX: usize = 100;
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

pub struct SliceController;

impl Controller for SliceController {
    fn name(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    fn primary(&self) -> &'static str {
        "services"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("pods", services_of),
            Source::new("endpointslices.discovery.k8s.io", owner_keys::<EndpointSlice>("services")),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(service) = objects.get_typed::<Service>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        if super::selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Plan::default();
        }
        let backends = addresses::backends(&service, &addresses::selected(objects, &service));
        let zone = |node: &str| {
            let node = objects.get_typed::<Node>("", node)?;
            placement::node_label(&node, ZONE).map(str::to_owned)
        };
        let existing = managed(objects, &key.namespace, &key.name, MANAGER);
        reconcile(&service, &backends, &existing, zone)
    }
}

/// The slices of a service that one manager keeps.
pub fn managed(objects: &Objects, namespace: &str, service: &str, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let slices = objects.list(crate::kinds::registry::of::<EndpointSlice>(), Some(namespace));
    let is_own = |slice: &&Arc<Object>| {
        slice.meta.label(SERVICE_NAME) == Some(service) && slice.meta.label(MANAGED_BY) == Some(manager)
    };
    slices.items.iter().filter(is_own).map(|slice| slice.typed()).collect()
}

fn reconcile(
    service: &Service,
    backends: &[Backend],
    existing: &[Arc<EndpointSlice>],
    zone: impl Fn(&str) -> Option<String>,
) -> Plan {
    let mut groups: Groups = BTreeMap::new();
    let near = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
    for family in addresses::families(service) {
        let mut any = false;
        for backend in backends {
            let Some(address) = backend.address(family) else { continue };
            any = true;
            let mut endpoint = endpoint(backend, address, backend.node.as_deref().and_then(&zone));
            endpoint.hints = near.filter(|_| backend.ready).and_then(|near| hints(near, &endpoint));
            groups.entry((family, backend.ports.clone())).or_default().push(endpoint);
        }
        if !any {
            // An empty slice says that the service is known and has nobody.
            groups.insert((family, Vec::new()), Vec::new());
        }
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    update(service, MANAGER, owner::name(&service.metadata), labels, groups, existing)
}

fn endpoint(backend: &Backend, address: &str, zone: Option<String>) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        target_ref: Some(backend.target.clone()),
        zone,
        ..Endpoint::default()
    }
}

/// Whom an endpoint is for when its service distributes traffic so (KEP-3015).
fn hints(distribution: &str, endpoint: &Endpoint) -> Option<EndpointHints> {
    let by_node = match distribution {
        "PreferSameNode" => true,
        "PreferSameZone" | "PreferClose" => false,
        _ => return None,
    };
    let for_zones = endpoint.zone.as_ref().map(|zone| vec![ForZone { name: zone.clone() }]);
    let node = endpoint.node_name.as_ref().filter(|_| by_node);
    let for_nodes = node.map(|node| vec![ForNode { name: node.clone() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

/// What there shall be: endpoints by family and ports.
pub type Groups = BTreeMap<(Family, Vec<Port>), Vec<Endpoint>>;

/// Plans the fewest changes: an endpoint stays in the slice it is in; new ones fill what has room.
pub fn update<O>(
    owner: &O,
    manager: &str,
    service: &str,
    mut labels: BTreeMap<String, String>,
    groups: Groups,
    existing: &[Arc<EndpointSlice>],
) -> Plan
where
    O: Metadata<Ty = ObjectMeta>,
{
    let mut plan = Plan::about(owner);
    labels.insert(SERVICE_NAME.into(), service.to_owned());
    labels.insert(MANAGED_BY.into(), manager.to_owned());
    let mut unused: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    let (mut surplus, mut missing): (Vec<&Arc<EndpointSlice>>, Vec<EndpointSlice>) = Default::default();
    for ((family, ports), wanted) in groups {
        let ports: Vec<EndpointPort> = ports.into_iter().map(slice_port).collect();
        let fits = |slice: &EndpointSlice| {
            slice.address_type == family.address_type()
                && same_ports(slice.ports.as_deref().unwrap_or_default(), &ports)
                && slice.metadata.deletion_timestamp.is_none()
        };
        let (own, rest): (Vec<_>, Vec<_>) = unused.into_iter().partition(|slice| fits(slice));
        unused = rest;
        let mut bins: Vec<(Option<&Arc<EndpointSlice>>, Vec<Endpoint>)> =
            own.into_iter().map(|slice| (Some(slice), Vec::new())).collect();
        let mut homeless = Vec::new();
        for endpoint in wanted {
            let home = bins.iter().position(|(slice, _)| {
                let has = slice.and_then(|s| s.endpoints.as_ref());
                has.into_iter().flatten().any(|e| is_same(e, &endpoint))
            });
            match home {
                Some(index) if bins[index].1.len() < SLICE_ENDPOINTS_MAX => bins[index].1.push(endpoint),
                _ => homeless.push(endpoint),
            }
        }
        for endpoint in homeless {
            match bins.iter().position(|(_, endpoints)| endpoints.len() < SLICE_ENDPOINTS_MAX) {
                Some(index) => bins[index].1.push(endpoint),
                None => bins.push((None, vec![endpoint])),
            }
        }
        if bins.is_empty() {
            bins.push((None, Vec::new()));
        }
        // Empty slices go, but for one when the service has nobody.
        let kept = bins.iter().filter(|(_, endpoints)| !endpoints.is_empty()).count().max(1);
        bins.sort_by_key(|(_, endpoints)| endpoints.is_empty());
        for (index, (slice, endpoints)) in bins.into_iter().enumerate() {
            match slice {
                Some(slice) if index >= kept => surplus.push(slice),
                Some(slice) => {
                    let current = slice.endpoints.clone().unwrap_or_default();
                    if current != endpoints || slice.metadata.labels.as_ref() != Some(&labels) {
                        let metadata =
                            json!({ "labels": replace_labels(slice.metadata.labels.as_ref(), &labels) });
                        plan.merge_at(&**slice, json!({ "metadata": metadata, "endpoints": endpoints }));
                    }
                }
                None => missing.push(EndpointSlice {
                    address_type: family.address_type().to_owned(),
                    endpoints: Some(endpoints),
                    metadata: ObjectMeta {
                        generate_name: Some(pods::generate_name(service)),
                        namespace: owner.metadata().namespace.clone(),
                        labels: Some(labels.clone()),
                        owner_references: Some(vec![controller_reference(owner)]),
                        ..ObjectMeta::default()
                    },
                    ports: Some(ports.clone()),
                }),
            }
        }
    }
    surplus.extend(unused);
    // A slice that would go becomes the one that is missing, as upstream.
    for slice in missing {
        let becomes = |old: &&Arc<EndpointSlice>| {
            old.address_type == slice.address_type
                && old.metadata.deletion_timestamp.is_none()
                && owner::is_controlled_by(&old.metadata, owner::uid(owner.metadata()))
        };
        let Some(index) = surplus.iter().position(becomes) else {
            plan.create(&slice, None, None);
            continue;
        };
        let old = surplus.swap_remove(index);
        let labels = replace_labels(old.metadata.labels.as_ref(), &labels);
        let patch =
            json!({"metadata": {"labels": labels}, "endpoints": slice.endpoints, "ports": slice.ports});
        plan.merge_at(&**old, patch);
    }
    for slice in surplus {
        plan.delete(&**slice, None, None);
    }
    plan
}

/// A merge patch that makes labels be exactly `new`.
fn replace_labels(
    old: Option<&BTreeMap<String, String>>,
    new: &BTreeMap<String, String>,
) -> serde_json::Value {
    let mut patch = json!(new);
    for key in old.into_iter().flat_map(BTreeMap::keys).filter(|key| !new.contains_key(*key)) {
        patch[key] = serde_json::Value::Null;
    }
    patch
}

fn is_same(a: &Endpoint, b: &Endpoint) -> bool {
    let target = |e: &Endpoint| e.target_ref.as_ref().and_then(|t| t.uid.clone());
    a.addresses == b.addresses && target(a) == target(b)
}

fn slice_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name),
        protocol: Some(port.protocol),
        port: Some(port.number),
        app_protocol: port.app_protocol,
    }
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    let key = |p: &EndpointPort| {
        (p.name.clone().unwrap_or_default(), p.protocol.clone(), p.port, p.app_protocol.clone())
    };
    let sorted = |ports: &[EndpointPort]| {
        let mut keys: Vec<_> = ports.iter().map(key).collect();
        keys.sort();
        keys
    };
    sorted(a) == sorted(b)
}
