//! PodDisruptionBudgets: how many pods may go of their own accord right now.
//!
//! Watches: budgets and pods. Observes: the budget's pods and how many of them their controllers
//! want. The eviction API counts `status.disruptionsAllowed` down; this counts it anew.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};

use super::{
    owner,
    plan::{Action, Note, Plan, Target, json},
    pods,
    runner::{Controller, Round, Source},
};
use crate::{
    kinds::{labels::Selector, registry},
    objects::Objects,
    store::{Key, Object},
};

/// How long an evicted pod may take to show that it is being deleted.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

pub struct DisruptionController;

impl Controller for DisruptionController {
    fn name(&self) -> &'static str {
        "controllermanager"
    }

    fn primary(&self) -> &'static str {
        "poddisruptionbudgets.policy"
    }

    fn sources(&self) -> Vec<Source> {
        let scaled = |objects: &Objects, object: &Object| {
            let budgets = objects.list(registry::of::<PodDisruptionBudget>(), Some(&object.key.namespace));
            budgets.items.iter().map(|b| b.key.clone()).collect()
        };
        vec![
            Source::new("pods", budgets_of),
            Source::new("deployments.apps", scaled),
            Source::new("replicasets.apps", scaled),
            Source::new("statefulsets.apps", scaled),
            Source::new("replicationcontrollers", scaled),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(budget) = objects.get_typed::<PodDisruptionBudget>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let pods = objects.list(registry::of::<Pod>(), Some(&key.namespace));
        let selector = selector(&budget);
        let selected: Vec<Arc<Pod>> =
            pods.items.iter().filter(|p| selector.matches(|k| p.meta.label(k))).map(|p| p.typed()).collect();
        let scales = scales(objects, &key.namespace, &selected);
        reconcile(&budget, &Observed { pods: selected, scales }, round.now)
    }
}

fn selector(budget: &PodDisruptionBudget) -> Selector {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    Selector::from_label_selector(selector).unwrap_or(Selector::NOTHING)
}

fn budgets_of(objects: &Objects, pod: &Object) -> Vec<Key> {
    let budgets = objects.list(registry::of::<PodDisruptionBudget>(), Some(&pod.key.namespace));
    let selects = |b: &&Arc<Object>| selector(&b.typed()).matches(|key| pod.meta.label(key));
    budgets.items.iter().filter(selects).map(|b| b.key.clone()).collect()
}

struct Observed {
    pods: Vec<Arc<Pod>>,
    /// How many pods the controllers of these pods want together, or why that cannot be said.
    scales: Result<i32, String>,
}

/// The wanted replicas of all controllers of the pods, each counted once.
fn scales(objects: &Objects, namespace: &str, pods: &[Arc<Pod>]) -> Result<i32, String> {
    let mut found: BTreeMap<String, i32> = BTreeMap::new();
    for pod in pods {
        let name = owner::name(&pod.metadata);
        let Some(reference) = owner::controller_of(&pod.metadata) else {
            return Err(format!("found no controller ref for pod {name:?}"));
        };
        let scale = match reference.kind.as_str() {
            "ReplicaSet" => objects.get_typed::<ReplicaSet>(namespace, &reference.name).map(|rs| {
                let deployment = owner::controller_of(&rs.metadata)
                    .filter(|o| o.kind == "Deployment")
                    .and_then(|o| objects.get_typed::<Deployment>(namespace, &o.name));
                match deployment {
                    Some(d) => (owner::uid(&d.metadata).to_owned(), d.spec.as_ref().and_then(|s| s.replicas)),
                    None => (reference.uid.clone(), rs.spec.as_ref().and_then(|s| s.replicas)),
                }
            }),
            "StatefulSet" => objects
                .get_typed::<StatefulSet>(namespace, &reference.name)
                .map(|set| (reference.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas))),
            "ReplicationController" => objects
                .get_typed::<ReplicationController>(namespace, &reference.name)
                .map(|rc| (reference.uid.clone(), rc.spec.as_ref().and_then(|s| s.replicas))),
            other => {
                return Err(format!("found unsupported controller kind {other:?} for pod {name:?}"));
            }
        };
        if let Some((uid, replicas)) = scale {
            found.insert(uid, replicas.unwrap_or(1));
        }
    }
    Ok(found.values().sum())
}

fn reconcile(budget: &PodDisruptionBudget, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::about(budget);
    let Some(spec) = budget.spec.as_ref() else { return plan };
    let old = budget.status.clone().unwrap_or_default();
    if observed.pods.is_empty() {
        plan.event(Note::normal("NoPods", "No matching pods found"));
    }
    let count = i32::try_from(observed.pods.len()).unwrap_or(i32::MAX);
    let expected = match (&spec.max_unavailable, &spec.min_available) {
        (Some(bound), _) => observed
            .scales
            .clone()
            .map(|expected| (expected, (expected - pods::scaled(bound, expected, true)).max(0))),
        (None, Some(IntOrString::Int(healthy))) => Ok((count, *healthy)),
        (None, Some(percent)) => {
            observed.scales.clone().map(|expected| (expected, pods::scaled(percent, expected, true)))
        }
        (None, None) => Ok((count, count)),
    };
    let mut disrupted = old.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, evicted| {
        let left = observed.pods.iter().any(|p| owner::name(&p.metadata) == name && !pods::is_deleting(p));
        let then = evicted.0 + DELETION_TIMEOUT;
        if left && then > now {
            plan.requeue_at(then, now);
        }
        left && then > now
    });
    let healthy = |pod: &&Arc<Pod>| {
        pods::is_ready(pod) && !pods::is_deleting(pod) && !disrupted.contains_key(owner::name(&pod.metadata))
    };
    let current = i32::try_from(observed.pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let generation = budget.metadata.generation;
    let (status, condition) = match expected {
        Ok((expected, desired)) => {
            let allowed = if expected <= 0 { 0 } else { (current - desired).max(0) };
            let condition = if allowed > 0 {
                ("True", "SufficientPods", String::new())
            } else {
                ("False", "InsufficientPods", String::new())
            };
            let status = PodDisruptionBudgetStatus {
                current_healthy: Some(current),
                desired_healthy: Some(desired),
                expected_pods: Some(expected),
                disruptions_allowed: Some(allowed),
                disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
                observed_generation: generation,
                conditions: old.conditions.clone(),
            };
            (status, condition)
        }
        Err(reason) => {
            plan.event(Note::warning(
                "CalculateExpectedPodCountFailed",
                format!("Failed to calculate the number of expected pods: {reason}"),
            ));
            // Nothing may go while nobody knows how many there should be.
            let status = PodDisruptionBudgetStatus {
                disruptions_allowed: Some(0),
                observed_generation: generation,
                ..old.clone()
            };
            (status, ("False", "SyncFailed", reason))
        }
    };
    let mut status = status;
    set_condition(&mut status, condition, generation, now);
    if budget.status.as_ref() == Some(&status) {
        // What was said when this was written need not be said again.
        plan.events.clear();
    } else {
        plan.actions.push(Action::Status {
            target: Target::of(budget),
            at: budget.metadata.resource_version.clone(),
            status: json(&status),
        });
    }
    plan
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    (state, reason, message): (&str, &str, String),
    generation: Option<i64>,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|c| c.type_ == "DisruptionAllowed" && c.status == state);
    let since = old.map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".into(),
        status: state.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    conditions.retain(|c| c.type_ != "DisruptionAllowed");
    conditions.push(new);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let state = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": state}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn the_allowance_follows_what_is_healthy() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let pods = vec![pod("a", true), pod("b", true), pod("c", false), pod("d", true)];
        let cases = [
            (json!({"minAvailable": 2}), Ok(4), (2, 4, 1)),
            (json!({"minAvailable": "50%"}), Ok(5), (3, 5, 0)),
            (json!({"maxUnavailable": 1}), Ok(4), (3, 4, 0)),
            (json!({"maxUnavailable": "50%"}), Ok(4), (2, 4, 1)),
            (json!({"maxUnavailable": 0}), Ok(4), (4, 4, 0)),
        ];
        for (spec, scales, (desired, expected, allowed)) in cases {
            let budget: PodDisruptionBudget =
                serde_json::from_value(json!({"metadata": {"name": "b", "generation": 1}, "spec": spec}))
                    .unwrap();
            let plan = reconcile(&budget, &Observed { pods: pods.clone(), scales }, now);
            let Action::Status { status, .. } = &plan.actions[0] else { panic!("{plan:?}") };
            assert_eq!(status["desiredHealthy"], desired, "{spec}");
            assert_eq!(status["expectedPods"], expected, "{spec}");
            assert_eq!(status["disruptionsAllowed"], allowed, "{spec}");
        }
    }

    #[test]
    fn without_a_controller_a_percentage_allows_nothing() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let budget: PodDisruptionBudget =
            serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1}}))
                .unwrap();
        let observed = Observed {
            pods: vec![pod("a", true)],
            scales: Err("found no controller ref for pod \"a\"".into()),
        };
        let plan = reconcile(&budget, &observed, now);
        let Action::Status { status, .. } = &plan.actions[0] else { panic!("{plan:?}") };
        assert_eq!(
            (&status["disruptionsAllowed"], &status["conditions"][0]["reason"]),
            (&json!(0), &json!("SyncFailed"))
        );
        assert_eq!(plan.events[0].reason, "CalculateExpectedPodCountFailed");
    }
}
