//! Aggregated ClusterRoles: `admin`, `edit`, `view` and users' own have the rules of the roles that
//! they select.
//!
//! Watches: ClusterRoles. Observes: the roles that an aggregation rule selects.

use serde_json::{Value, json};

use super::{
    plan::{Action, Plan, Target},
    runner::{Controller, Round, Source},
};
use crate::{
    kinds::{labels::Selector, registry},
    objects::Objects,
    store::{Key, Object},
};

const RESOURCE: &str = "clusterroles.rbac.authorization.k8s.io";

pub struct ClusterRoleAggregation;

impl Controller for ClusterRoleAggregation {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn primary(&self) -> &'static str {
        RESOURCE
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(RESOURCE, |objects, _| {
            let all = objects.store().list(RESOURCE, None).items;
            all.iter().filter(|o| !selectors(&o.value()).is_empty()).map(|o| o.key.clone()).collect()
        })]
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let mut plan = Plan::default();
        let (Some(role), Some(kind)) = (objects.store().get(key), registry::by_resource(RESOURCE)) else {
            return plan;
        };
        let value = role.value();
        let selectors = selectors(&value);
        if selectors.is_empty() {
            return plan;
        }
        let others = objects.store().list(RESOURCE, None).items;
        let selected = others.iter().filter(|o| o.key.name != role.key.name && selects(&selectors, o));
        let rules = reconcile(selected.map(|o| o.value()["rules"].clone()));
        if value["rules"] != rules {
            let target = Target {
                kind,
                namespace: String::new(),
                name: key.name.to_string(),
                uid: role.meta.uid.to_string(),
            };
            let patch = json!({"rules": rules});
            plan.actions.push(Action::Merge { target, subresource: None, at: None, patch });
        }
        plan
    }
}

fn selectors(role: &Value) -> Vec<Selector> {
    let all = role["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten();
    all.filter_map(|s| Selector::from_json(s).ok()).collect()
}

fn selects(selectors: &[Selector], role: &Object) -> bool {
    selectors.iter().any(|s| s.matches(|key| role.meta.label(key)))
}

/// All rules of the parts, each once.
fn reconcile(parts: impl Iterator<Item = Value>) -> Value {
    let mut rules: Vec<Value> = Vec::new();
    for rule in parts.flat_map(|p| p.as_array().cloned().unwrap_or_default()) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rules_are_kept_once() {
        let one = json!([{"verbs": ["get"]}, {"verbs": ["list"]}]);
        let two = json!([{"verbs": ["list"]}, {"verbs": ["watch"]}]);
        let rules = reconcile([one, two, Value::Null].into_iter());
        assert_eq!(rules.as_array().unwrap().len(), 3);
    }
}
