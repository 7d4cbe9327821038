//! Which addresses Services have, and the networks these are taken from.
//!
//! Watches: Services and IPAddresses; ServiceCIDRs. The allocator (`objects::allocate`) looks at the
//! Services themselves: an IPAddress tells of one of their addresses, where somebody else's takes an
//! address away from it. A ServiceCIDR stays until none of its addresses is in use, or another one
//! has them too.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Service,
        networking::v1::{IPAddress, IPAddressSpec, ParentReference, ServiceCIDR, ServiceCIDRStatus},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
};

use super::{
    owner,
    plan::{Note, Plan, json},
    runner::{Controller, Round, Source},
};
use crate::{
    kinds::addresses::Cidr,
    objects::{
        Objects,
        allocate::{DEFAULT_CIDR, MANAGED_BY, MANAGER},
    },
    store::{Key, Object},
};

const IP_ADDRESSES: &str = "ipaddresses.networking.k8s.io";
const SERVICE_CIDRS: &str = "servicecidrs.networking.k8s.io";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Between a ServiceCIDR's deletion and its end.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// Has an IPAddress for every address of a Service.
pub struct IpAddressController;

impl Controller for IpAddressController {
    fn name(&self) -> &'static str {
        "ipallocator-repair-controller"
    }

    fn primary(&self) -> &'static str {
        "services"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(IP_ADDRESSES, |_, address: &Object| {
            let address: Arc<IPAddress> = address.typed();
            parent(&address)
                .map(|(namespace, name)| Key::new("services", namespace, name))
                .into_iter()
                .collect()
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let service = objects.get_typed::<Service>(&key.namespace, &key.name);
        let all = objects.list_typed::<IPAddress>(None);
        reconcile_addresses(service.as_deref(), (&key.namespace, &key.name), &all)
    }
}

/// The Service that an IPAddress is of.
fn parent(address: &IPAddress) -> Option<(&str, &str)> {
    let parent = &address.spec.parent_ref;
    let is_service = parent.resource == "services" && parent.group.as_deref().unwrap_or_default().is_empty();
    is_service.then(|| (parent.namespace.as_deref().unwrap_or_default(), parent.name.as_str()))
}

fn is_managed(address: &IPAddress) -> bool {
    let labels = address.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
}

fn reconcile_addresses(service: Option<&Service>, key: (&str, &str), all: &[Arc<IPAddress>]) -> Plan {
    let spec = service.and_then(|service| service.spec.as_ref());
    let wanted: BTreeSet<IpAddr> = spec
        .and_then(|s| s.cluster_ips.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let mut plan = service.map(Plan::about).unwrap_or_default();
    for address in all.iter().filter(|address| is_managed(address) && parent(address) == Some(key)) {
        let known = owner::name(&address.metadata).parse().is_ok_and(|ip| wanted.contains(&ip));
        if !known && address.metadata.deletion_timestamp.is_none() {
            plan.delete(&**address, None, None);
        }
    }
    for ip in wanted {
        let name = ip.to_string();
        match all.iter().find(|address| address.metadata.name.as_ref() == Some(&name)) {
            Some(address) if parent(address) == Some(key) => {}
            Some(_) => plan.event(Note::warning(
                "ClusterIPAlreadyAllocated",
                format!(
                    "Cluster IP [{}]:{name} was assigned to multiple services; please recreate service",
                    family(ip)
                ),
            )),
            None => plan.create(&address_of(ip, key), None, None),
        }
    }
    plan
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn address_of(ip: IpAddr, (namespace, name): (&str, &str)) -> IPAddress {
    let labels = [(FAMILY, family(ip)), (MANAGED_BY, MANAGER)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(ip.to_string()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: Some(String::new()),
                resource: "services".to_owned(),
                namespace: Some(namespace.to_owned()),
                name: name.to_owned(),
            },
        },
    }
}

/// Makes ServiceCIDRs ready, and lets them go when nothing of theirs is in use.
pub struct ServiceCidrController;

impl Controller for ServiceCidrController {
    fn name(&self) -> &'static str {
        "service-cidr-controller"
    }

    fn primary(&self) -> &'static str {
        SERVICE_CIDRS
    }

    fn sources(&self) -> Vec<Source> {
        let all = |objects: &Objects, _: &Object| {
            objects.store().list(SERVICE_CIDRS, None).items.iter().map(|o| o.key.clone()).collect()
        };
        vec![Source::new(IP_ADDRESSES, all), Source::new(SERVICE_CIDRS, all)]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(cidr) = objects.get_typed::<ServiceCIDR>("", &key.name) else { return Plan::default() };
        let addresses = objects.list_typed::<IPAddress>(None);
        let in_use = addresses.iter().filter(|address| is_managed(address));
        let in_use: Vec<IpAddr> = in_use.filter_map(|a| owner::name(&a.metadata).parse().ok()).collect();
        reconcile_cidr(&cidr, &objects.list_typed(None), &in_use, round.now)
    }
}

fn networks(cidr: &ServiceCIDR) -> impl Iterator<Item = Cidr> + '_ {
    let cidrs = cidr.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    cidrs.into_iter().flatten().filter_map(|text| Cidr::parse(text))
}

fn can_go(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], in_use: &[IpAddr]) -> bool {
    let others: Vec<Cidr> =
        all.iter().filter(|o| o.metadata.name != cidr.metadata.name).flat_map(|o| networks(o)).collect();
    let covered = |network: Cidr| {
        others.iter().any(|other| other.prefix <= network.prefix && other.contains(network.address))
    };
    networks(cidr).all(covered)
        || !in_use.iter().any(|ip| {
            networks(cidr).any(|network| network.contains(*ip)) && !others.iter().any(|o| o.contains(*ip))
        })
}

fn reconcile_cidr(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], in_use: &[IpAddr], now: Timestamp) -> Plan {
    let mut plan = Plan::about(cidr);
    let finalizers = cidr.metadata.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    let ready = |status: &str, reason: &str, message: &str| Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    };
    if let Some(deleted) = &cidr.metadata.deletion_timestamp {
        if !can_go(cidr, all, in_use) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, \
                           please remove them or create a new ServiceCIDR";
            set_ready(&mut plan, cidr, ready("False", "Terminating", message));
        } else if held {
            let end = deleted.0 + GRACE;
            if now < end {
                plan.requeue_at(end, now);
            } else {
                let rest: Vec<_> = finalizers.iter().filter(|f| *f != FINALIZER).collect();
                plan.merge_at(cidr, serde_json::json!({ "metadata": { "finalizers": rest } }));
            }
        }
        return plan;
    }
    if !held {
        let all: Vec<_> = finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
        plan.merge_at(cidr, serde_json::json!({ "metadata": { "finalizers": all } }));
        return plan;
    }
    // Upstream's API server says this of its own.
    if cidr.metadata.name.as_deref() != Some(DEFAULT_CIDR) {
        set_ready(&mut plan, cidr, ready("True", "", "Kubernetes Service CIDR is ready"));
    }
    plan
}

fn set_ready(plan: &mut Plan, cidr: &ServiceCIDR, condition: Condition) {
    let conditions = cidr.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let same = |old: &Condition| {
        old.type_ == condition.type_ && (&old.status, &old.reason) == (&condition.status, &condition.reason)
    };
    if conditions.iter().any(same) {
        return;
    }
    let mut all: Vec<_> = conditions.iter().filter(|old| old.type_ != condition.type_).cloned().collect();
    all.push(condition);
    let status = json(&ServiceCIDRStatus { conditions: Some(all) });
    plan.merge_status_at(cidr, serde_json::json!({ "status": status }));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::plan::Action, *};

    fn service(ips: &[&str]) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "web", "uid": "u"},
            "spec": {"clusterIP": ips[0], "clusterIPs": ips}}))
        .unwrap()
    }

    fn texts(plan: &Plan) -> Vec<String> {
        let text = |action: &Action| match action {
            Action::Create { object, .. } => format!("create {}", object["metadata"]["name"]),
            Action::Delete { target, .. } => format!("delete {}", target.name),
            Action::Merge { patch, .. } => patch.to_string(),
            Action::Status { status, .. } => status.to_string(),
        };
        plan.actions.iter().map(text).chain(plan.events.iter().map(|note| note.reason.to_owned())).collect()
    }

    #[test]
    fn every_address_of_a_service_is_an_object() {
        let key = ("ns", "web");
        let made = address_of("10.43.0.7".parse().unwrap(), key);
        assert_eq!(parent(&made), Some(key));
        assert_eq!(
            json!(made)["metadata"]["labels"],
            json!({FAMILY: "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"})
        );
        let plan = |service: Option<&Service>, all: &[IPAddress]| {
            let all: Vec<_> = all.iter().cloned().map(Arc::new).collect();
            texts(&reconcile_addresses(service, key, &all))
        };
        let web = service(&["10.43.0.7"]);
        assert_eq!(plan(Some(&web), &[]), ["create \"10.43.0.7\""]);
        assert!(plan(Some(&web), std::slice::from_ref(&made)).is_empty());
        assert_eq!(plan(None, std::slice::from_ref(&made)), ["delete 10.43.0.7"]);
        assert!(plan(Some(&service(&["None"])), &[]).is_empty());
        // Somebody's own object is left alone, and a conflict is said.
        let mut foreign = address_of("10.43.0.7".parse().unwrap(), ("ns", "other"));
        foreign.metadata.labels = None;
        assert_eq!(plan(Some(&web), std::slice::from_ref(&foreign)), ["ClusterIPAlreadyAllocated"]);
        assert!(plan(None, &[foreign]).is_empty());
    }

    #[test]
    fn a_network_goes_when_nothing_of_it_is_in_use() {
        let cidr = |name: &str, network: &str, extra: Value| -> ServiceCIDR {
            let mut meta = json!({"name": name});
            meta.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            serde_json::from_value(json!({"metadata": meta, "spec": {"cidrs": [network]}})).unwrap()
        };
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let plan = |cidr: &ServiceCIDR, others: &[ServiceCIDR], in_use: &[&str]| {
            let all: Vec<_> = others.iter().chain([cidr]).cloned().map(Arc::new).collect();
            let in_use: Vec<_> = in_use.iter().map(|ip| ip.parse().unwrap()).collect();
            reconcile_cidr(cidr, &all, &in_use, now)
        };
        let said = |cidr: &ServiceCIDR| texts(&plan(cidr, &[], &[])).join(" ");
        assert!(said(&cidr("more", "10.44.0.0/24", json!({}))).contains(FINALIZER));
        let held = json!({"finalizers": [FINALIZER]});
        let ready = said(&cidr("more", "10.44.0.0/24", held.clone()));
        assert!(ready.contains("\"True\"") && ready.contains("Kubernetes Service CIDR is ready"), "{ready}");
        assert_eq!(said(&cidr(DEFAULT_CIDR, "10.43.0.0/16", held)), "");
        let deleted =
            json!({"finalizers": [FINALIZER, "theirs"], "deletionTimestamp": "2026-11-27T11:59:50Z"});
        let going = cidr("more", "10.44.0.0/24", deleted);
        let used = ["10.44.0.9"];
        let held = texts(&plan(&going, &[], &used)).join(" ");
        assert!(held.contains("\"Terminating\"") && held.contains("There are still IPAddresses"), "{held}");
        let free = json!({"metadata": {"finalizers": ["theirs"]}}).to_string();
        assert_eq!(texts(&plan(&going, &[], &["10.43.0.9"])), [free.as_str()]);
        assert_eq!(texts(&plan(&going, &[cidr("wide", "10.44.0.0/16", json!({}))], &used)), [free.as_str()]);
        assert_eq!(texts(&plan(&going, &[cidr("part", "10.44.0.8/29", json!({}))], &used)), [free.as_str()]);
        let recent = json!({"finalizers": [FINALIZER], "deletionTimestamp": "2026-11-27T11:59:57Z"});
        let waiting = plan(&cidr("more", "10.44.0.0/24", recent), &[], &[]);
        assert_eq!((waiting.actions.len(), waiting.requeue_after), (0, Some(SignedDuration::from_secs(7))));
    }
}
