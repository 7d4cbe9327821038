//! ResourceQuotas: what their namespace uses.
//!
//! Watches: quotas and what is most often counted; the rest is seen at the periodic look. The
//! admission of the API refuses what exceeds; this keeps `status` true.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ResourceQuota, ResourceQuotaStatus},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    plan::{Plan, json},
    runner::{Controller, Round, Source},
};
use crate::{
    objects::{Objects, quota},
    store::{Key, Object},
};

pub struct QuotaController;

const COUNTED: [&str; 10] = [
    "pods",
    "services",
    "persistentvolumeclaims",
    "configmaps",
    "secrets",
    "replicationcontrollers",
    "deployments.apps",
    "statefulsets.apps",
    "jobs.batch",
    "cronjobs.batch",
];

impl Controller for QuotaController {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn primary(&self) -> &'static str {
        "resourcequotas"
    }

    fn sources(&self) -> Vec<Source> {
        let of_namespace = |objects: &Objects, object: &Object| {
            let quotas = objects.store().list("resourcequotas", Some(&object.key.namespace)).items;
            quotas.iter().map(|quota| quota.key.clone()).collect()
        };
        COUNTED.iter().map(|resource| Source::new(resource, of_namespace)).collect()
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(quota) = objects.get_typed::<ResourceQuota>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let used = quota::used(objects, &key.namespace, &json(&*quota));
        let used: BTreeMap<String, Quantity> =
            used.into_iter().map(|(name, amount)| (name, Quantity(amount.to_string()))).collect();
        reconcile(&quota, used)
    }
}

fn reconcile(quota: &ResourceQuota, used: BTreeMap<String, Quantity>) -> Plan {
    let mut plan = Plan::about(quota);
    let hard = quota.spec.as_ref().and_then(|s| s.hard.clone());
    let status = ResourceQuotaStatus { hard, used: Some(used) };
    plan.status(quota, quota.status.as_ref(), &status);
    plan
}
