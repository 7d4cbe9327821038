//! Where services lead: EndpointSlices, the older Endpoints, and the mirror from one to the other.
//!
//! Watches: Services, pods, nodes' zones, and what is made. [`addresses`] says once which pods of
//! a service answer where; [`slices`] and [`legacy`] write that in two forms.

mod addresses;
mod legacy;
mod mirror;
mod slices;

pub use legacy::EndpointsController;
pub use mirror::MirroringController;
pub use slices::SliceController;

use k8s_openapi::api::core::v1::Service;

use crate::{
    kinds::{labels::Selector, registry},
    objects::Objects,
    store::{Key, Object},
};

/// The label of a slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The selector of a service that has one.
fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName"))
        .then(|| Selector::from_map(labels.iter().map(|(k, v)| (k.as_str(), v.as_str()))))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The services that select a pod.
fn services_of(objects: &Objects, pod: &Object) -> Vec<Key> {
    let services = objects.list(registry::of::<Service>(), Some(&pod.key.namespace));
    let selects = |service: &&std::sync::Arc<Object>| {
        selector(&service.typed::<Service>()).is_some_and(|s| s.matches(|key| pod.meta.label(key)))
    };
    services.items.iter().filter(selects).map(|service| service.key.clone()).collect()
}

#[cfg(test)]
mod tests;
