//! What every Namespace has: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.
//!
//! Watches: Namespaces, and the two objects, which come back when they are deleted.

use serde_json::{Value, json};

use super::{
    plan::{Action, KindRef, Plan, Target},
    runner::{Controller, Round, Source},
};
use crate::{
    kinds::registry,
    objects::Objects,
    store::{Key, Object},
};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

fn namespace_of(name: &'static str) -> impl Fn(&Objects, &Object) -> Vec<Key> {
    move |_, object| {
        if *object.key.name == *name {
            vec![Key::new("namespaces", "", &object.key.namespace)]
        } else {
            Vec::new()
        }
    }
}

/// Whether a namespace is there and stays.
fn lives(objects: &Objects, key: &Key) -> bool {
    objects.store().get(key).is_some_and(|n| !n.meta.deleting)
}

fn create(api_version: &str, kind: &str, namespace: &str, object: Value) -> Option<Action> {
    let kind = KindRef(registry::by_type(api_version, kind)?);
    Some(Action::Create { kind, namespace: namespace.to_owned(), object, done: None, failed: None })
}

pub struct ServiceAccountsController;

impl Controller for ServiceAccountsController {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn primary(&self) -> &'static str {
        "namespaces"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("serviceaccounts", namespace_of(ACCOUNT))]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let mut plan = Plan::default();
        let there = objects.store().get(&Key::new("serviceaccounts", &key.name, ACCOUNT)).is_some();
        if lives(objects, key) && !there {
            let account = json!({"metadata": {"name": ACCOUNT}});
            plan.actions.extend(create("v1", "ServiceAccount", &key.name, account));
        }
        plan
    }
}

/// Publishes the authority's certificate, PEM.
pub struct RootCaPublisher {
    pub certificate: String,
}

impl Controller for RootCaPublisher {
    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher"
    }

    fn primary(&self) -> &'static str {
        "namespaces"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("configmaps", namespace_of(ROOT_CA))]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let mut plan = Plan::default();
        if !lives(objects, key) {
            return plan;
        }
        let data = json!({"ca.crt": self.certificate});
        match objects.store().get(&Key::new("configmaps", &key.name, ROOT_CA)) {
            None => {
                let map = json!({"data": data, "metadata": {"name": ROOT_CA, "annotations": {
                    "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."}}});
                plan.actions.extend(create("v1", "ConfigMap", &key.name, map));
            }
            Some(map) if map.value()["data"] != data => {
                let Some(kind) = registry::by_resource("configmaps") else { return plan };
                let target = Target {
                    kind,
                    namespace: key.name.to_string(),
                    name: ROOT_CA.to_owned(),
                    uid: map.meta.uid.to_string(),
                };
                let patch = json!({"data": data});
                plan.actions.push(Action::Merge { target, subresource: None, at: None, patch });
            }
            Some(_) => {}
        }
        plan
    }
}
