//! The end of a Namespace: its pods first, then all else in it, then the Namespace.
//!
//! Watches: Namespaces and pods. Observes: what is left in a terminating Namespace, and which
//! finalizers hold it.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    plan::{Action, Plan, Target},
    runner::{Controller, Round, Source},
};
use crate::{
    clock,
    kinds::{Kind, Subresource, registry},
    objects::Objects,
    store::Key,
};

/// How soon a Namespace that is not empty yet is looked at again.
const RECHECK: SignedDuration = SignedDuration::from_millis(500);

pub struct NamespaceController;

impl Controller for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn primary(&self) -> &'static str {
        "namespaces"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("pods", |objects, pod| {
            let key = Key::new("namespaces", "", &pod.key.namespace);
            let ends = objects.store().get(&key).is_some_and(|n| n.meta.deleting);
            if ends { vec![key] } else { Vec::new() }
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(namespace) = objects.store().get(key).filter(|n| n.meta.deleting) else {
            return Plan::default();
        };
        let Some(kind) = registry::by_resource("namespaces") else { return Plan::default() };
        let value = namespace.value();
        let own = Target {
            kind,
            namespace: String::new(),
            name: key.name.to_string(),
            uid: namespace.meta.uid.to_string(),
        };
        reconcile(&own, &value, &observe(objects, &key.name), round.now)
    }
}

/// What is left of one kind.
struct Remains {
    kind: &'static Kind,
    items: Vec<Item>,
}

struct Item {
    name: String,
    uid: String,
    deleting: bool,
    finalizers: Vec<String>,
}

fn observe(objects: &Objects, namespace: &str) -> Vec<Remains> {
    let kinds = registry::KINDS.iter().filter(|k| k.namespaced && k.stored_as.is_none());
    kinds
        .filter_map(|kind| {
            let listing = objects.list(kind, Some(namespace)).items;
            let items: Vec<Item> = listing
                .iter()
                .map(|object| Item {
                    name: object.key.name.to_string(),
                    uid: object.meta.uid.to_string(),
                    deleting: object.meta.deleting,
                    finalizers: object.value()["metadata"]["finalizers"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|f| f.as_str().map(str::to_owned))
                        .collect(),
                })
                .collect();
            (!items.is_empty()).then_some(Remains { kind, items })
        })
        .collect()
}

fn reconcile(own: &Target, namespace: &Value, remains: &[Remains], now: jiff::Timestamp) -> Plan {
    let mut plan = Plan::default();
    if remains.is_empty() {
        let patch = json!({"spec": {"finalizers": []}});
        let subresource = Some(Subresource::Other("finalize"));
        plan.actions.push(Action::Merge { target: own.clone(), subresource, at: None, patch });
        return plan;
    }
    let pods_left = remains.iter().any(|r| r.kind.kind == "Pod");
    for Remains { kind, items } in remains.iter().filter(|r| !pods_left || r.kind.kind == "Pod") {
        for item in items.iter().filter(|i| !i.deleting) {
            let target =
                Target { kind, namespace: own.name.clone(), name: item.name.clone(), uid: item.uid.clone() };
            plan.actions.push(Action::Delete {
                target,
                grace_seconds: None,
                propagation: None,
                done: None,
                failed: None,
            });
        }
    }
    let conditions = conditions(namespace, remains, now);
    if namespace["status"]["conditions"] != conditions {
        let status = json!({"phase": "Terminating", "conditions": conditions});
        plan.actions.push(Action::Status { target: own.clone(), at: None, status });
    }
    plan.requeue_in(RECHECK);
    plan
}

/// Upstream's five conditions.
fn conditions(namespace: &Value, remains: &[Remains], now: jiff::Timestamp) -> Value {
    let counted: Vec<String> = remains
        .iter()
        .map(|r| format!("{} has {} resource instances", r.kind.resource(), r.items.len()))
        .collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for name in remains.iter().flat_map(|r| &r.items).flat_map(|i| &i.finalizers) {
        *finalizers.entry(name).or_default() += 1;
    }
    let held: Vec<String> =
        finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        (
            "NamespaceDeletionContentFailure",
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".to_owned(),
        ),
        (
            "NamespaceContentRemaining",
            true,
            "SomeResourcesRemain",
            format!("Some resources are remaining: {}", counted.join(", ")),
        ),
        if held.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {}", held.join(", ")),
            )
        },
    ];
    let before = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let now = clock::rfc3339_seconds(now);
    rows.into_iter()
        .map(|(name, status, reason, message)| {
            let status = if status { "True" } else { "False" };
            let old = before.iter().find(|c| c["type"] == name && c["status"] == status);
            let since = old.map_or_else(|| Value::from(now.as_str()), |c| c["lastTransitionTime"].clone());
            json!({"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(deleting: bool) -> Item {
        Item { name: "x".into(), uid: "u".into(), deleting, finalizers: vec!["a/b".into()] }
    }

    #[test]
    fn pods_go_first_and_the_namespace_last() {
        let kind = registry::by_type("v1", "Namespace").unwrap();
        let own = Target { kind, namespace: String::new(), name: "ns".into(), uid: "n".into() };
        let remains = |kinds: &[&str]| -> Vec<Remains> {
            let of = |name: &&str| Remains {
                kind: registry::by_type("v1", name).unwrap(),
                items: vec![item(false), item(true)],
            };
            kinds.iter().map(of).collect()
        };
        let now = jiff::Timestamp::UNIX_EPOCH;
        let deleted = |kinds: &[&str]| -> Vec<String> {
            let plan = reconcile(&own, &json!({}), &remains(kinds), now);
            let of = |a: &Action| match a {
                Action::Delete { target, .. } => Some(target.kind.kind.to_owned()),
                _ => None,
            };
            plan.actions.iter().filter_map(of).collect()
        };
        assert_eq!(deleted(&["ConfigMap", "Pod"]), ["Pod"]);
        assert_eq!(deleted(&["ConfigMap"]), ["ConfigMap"]);
        let last = reconcile(&own, &json!({}), &[], now);
        assert!(matches!(&last.actions[..], [Action::Merge { subresource: Some(_), .. }]));
    }
}
