//! EndpointSlices for Endpoints that users write themselves, for services without a selector.

use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointPort as SubsetPort, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointSlice},
};

use super::{
    super::{
        owner,
        plan::Plan,
        runner::{Controller, Round, Source, owner_keys},
    },
    addresses::{Family, Port},
    legacy,
    slices::{Groups, managed, update},
};
use crate::{
    objects::Objects,
    store::{Key, Object},
};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

pub struct MirroringController;

impl Controller for MirroringController {
    fn name(&self) -> &'static str {
        "endpoint-slice-mirroring-controller"
    }

    fn primary(&self) -> &'static str {
        "endpoints"
    }

    fn sources(&self) -> Vec<Source> {
        let same_name = |_: &Objects, object: &Object| {
            vec![Key::new("endpoints", &object.key.namespace, &object.key.name)]
        };
        vec![
            Source::new("services", same_name),
            Source::new("endpointslices.discovery.k8s.io", owner_keys::<EndpointSlice>("endpoints")),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let endpoints = objects.get_typed::<Endpoints>(&key.namespace, &key.name);
        let service = objects.get_typed::<Service>(&key.namespace, &key.name);
        let existing = managed(objects, &key.namespace, &key.name, MANAGER);
        let wanted = endpoints.as_deref().filter(|e| is_mirrored(e, service.as_deref()));
        if let Some(endpoints) = wanted {
            let labels = endpoints.metadata.labels.clone().unwrap_or_default();
            return update(endpoints, MANAGER, &key.name, labels, groups(endpoints), &existing);
        }
        let mut plan = Plan::default();
        for slice in &existing {
            plan.delete(&**slice, None, None);
        }
        plan
    }
}

fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let meta = &endpoints.metadata;
    let without_selector = |s: &Service| {
        s.spec.as_ref().is_none_or(|s| s.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty))
    };
    owner::label(meta, SKIP) != Some("true")
        && owner::label(meta, legacy::MANAGED_BY) != Some(legacy::MANAGER)
        && owner::annotation(meta, LEADER).is_none()
        && meta.deletion_timestamp.is_none()
        && service.is_some_and(without_selector)
}

fn groups(endpoints: &Endpoints) -> Groups {
    let mut groups = Groups::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready) {
            groups
                .entry((Family::of(&address.ip), ports.clone()))
                .or_default()
                .push(endpoint(address, ready));
        }
    }
    groups
}

fn port(port: &SubsetPort) -> Port {
    Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: port.port,
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}
