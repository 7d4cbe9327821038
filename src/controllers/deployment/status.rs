//! The status of a Deployment: counts, conditions, the progress deadline.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    super::{owner, plan::Plan, pods::non_zero},
    rollout,
};

/// The deadline that stands for none.
const NO_DEADLINE: i32 = i32::MAX;

pub fn condition<'a>(
    conditions: Option<&'a Vec<DeploymentCondition>>,
    kind: &str,
) -> Option<&'a DeploymentCondition> {
    conditions?.iter().find(|c| c.type_ == kind)
}

pub fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts a condition in place. One of the same status and reason stays as it is; the transition
/// time only changes with the status.
pub fn set(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    let old = conditions.iter().find(|c| c.type_ == new.type_ && c.status == new.status);
    if let Some(old) = old {
        if old.reason == new.reason {
            return;
        }
        new.last_transition_time.clone_from(&old.last_transition_time);
    }
    conditions.retain(|c| c.type_ != new.type_);
    conditions.push(new);
}

pub fn has_deadline(spec: &DeploymentSpec) -> bool {
    spec.progress_deadline_seconds.is_some_and(|seconds| seconds != NO_DEADLINE)
}

/// Counts and the `Available` condition, from the ReplicaSets' statuses.
pub fn calculate(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    conditions: Vec<DeploymentCondition>,
    collision_count: Option<i32>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> i32| all.iter().map(|rs| count(rs)).sum::<i32>();
    let total = sum(rollout::actual);
    let available = sum(rollout::available);
    let mut conditions = conditions;
    let minimum = spec.replicas.unwrap_or(1) - rollout::max_unavailable(spec);
    let available_condition = if available >= minimum {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let (state, reason, message) = available_condition;
    set(&mut conditions, new_condition("Available", state, reason, message.to_owned(), now));
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: non_zero(total),
        updated_replicas: non_zero(new.map_or(0, rollout::actual)),
        ready_replicas: non_zero(sum(rollout::ready)),
        available_replicas: non_zero(available),
        unavailable_replicas: non_zero((total - available).max(0)),
        terminating_replicas: Some(sum(rollout::terminating)),
        collision_count,
        conditions: Some(conditions),
    }
}

/// The `Progressing` condition of a rollout, and failures of the ReplicaSets.
pub fn progress(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let snapshot = status.clone();
    let conditions = status.conditions.get_or_insert_default();
    let current = condition(snapshot.conditions.as_ref(), "Progressing");
    if !has_deadline(spec) {
        conditions.retain(|c| c.type_ != "Progressing");
    }
    let was_complete = snapshot.replicas == snapshot.updated_replicas
        && current.is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    if has_deadline(spec) && !was_complete {
        let subject = match new {
            Some(rs) => format!("ReplicaSet {:?}", owner::name(&rs.metadata)),
            None => format!("Deployment {:?}", owner::name(&deployment.metadata)),
        };
        if is_complete(deployment, spec, &snapshot) {
            let message = format!("{subject} has successfully progressed.");
            set(conditions, new_condition("Progressing", "True", "NewReplicaSetAvailable", message, now));
        } else if has_progressed(deployment, &snapshot) {
            let message = format!("{subject} is progressing.");
            let mut new = new_condition("Progressing", "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.filter(|c| c.status == "True") {
                new.last_transition_time.clone_from(&current.last_transition_time);
            }
            // Progress moves the update time also when nothing else of the condition changes.
            conditions.retain(|c| c.type_ != "Progressing");
            conditions.push(new);
        } else if has_timed_out(spec, current, now) {
            let message = format!("{subject} has timed out progressing.");
            set(conditions, new_condition("Progressing", "False", "ProgressDeadlineExceeded", message, now));
        }
    }
    let failure = new
        .into_iter()
        .chain(all.iter().copied())
        .find_map(|rs| rs.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "ReplicaFailure"));
    match failure {
        Some(c) => set(
            conditions,
            DeploymentCondition {
                type_: c.type_.clone(),
                status: c.status.clone(),
                reason: c.reason.clone(),
                message: c.message.clone(),
                last_update_time: c.last_transition_time.clone(),
                last_transition_time: c.last_transition_time.clone(),
            },
        ),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
}

/// Whether every pod is of the present template and available.
pub fn is_complete(deployment: &Deployment, spec: &DeploymentSpec, status: &DeploymentStatus) -> bool {
    let wanted = spec.replicas.unwrap_or(1);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let none = DeploymentStatus::default();
    let old = deployment.status.as_ref().unwrap_or(&none);
    let outdated = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    new.updated_replicas.unwrap_or(0) > old.updated_replicas.unwrap_or(0)
        || outdated(new) < outdated(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

fn deadline(spec: &DeploymentSpec, condition: &DeploymentCondition) -> Option<Timestamp> {
    let seconds = spec.progress_deadline_seconds?;
    Some(condition.last_update_time.as_ref()?.0 + SignedDuration::from_secs(seconds.into()))
}

fn has_timed_out(spec: &DeploymentSpec, current: Option<&DeploymentCondition>, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => deadline(spec, current).is_some_and(|deadline| deadline < now),
    }
}

/// Looks again when the rollout could have run out of time.
pub fn requeue_for_deadline(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
    plan: &mut Plan,
) {
    let Some(spec) = deployment.spec.as_ref() else { return };
    let Some(current) = condition(status.conditions.as_ref(), "Progressing") else { return };
    let waiting = has_deadline(spec)
        && spec.paused != Some(true)
        && !is_complete(deployment, spec, status)
        && current.reason.as_deref() != Some("ProgressDeadlineExceeded");
    if let Some(deadline) = deadline(spec, current).filter(|_| waiting) {
        plan.requeue_at(deadline + SignedDuration::from_secs(1), now);
    }
}
