//! What controllers ask of pods, and how a template becomes one.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    Metadata,
    api::core::v1::{Pod, PodCondition, PodTemplateSpec},
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use super::owner;
pub use crate::kinds::pod::{is_ready, is_terminal};

/// The longest prefix to which a generated suffix can be added (`maxGeneratedNameLength`).
const GENERATED_PREFIX_LEN_MAX: usize = 58;

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod counts as a replica.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(pod)
}

/// Whether the pod is on its way out but has not ended.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && is_deleting(pod)
}

/// Whether a node has refused the pod: it failed, and none of its containers was ever made.
pub fn is_refused(pod: &Pod) -> bool {
    let statuses = || pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let init = || pod.status.iter().flat_map(|s| s.init_container_statuses.iter().flatten());
    let made = statuses().chain(init()).any(|c| c.container_id.as_ref().is_some_and(|id| !id.is_empty()));
    phase(pod) == "Failed" && !node_name(pod).is_empty() && !made
}

pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Since when the pod is ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

/// Whether the pod has been ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod)
        && (min_ready_seconds <= 0 || available_in(pod, min_ready_seconds, now).is_some_and(|d| d.is_zero()))
}

/// How long until a ready pod counts as available (zero when it does); `None` when it is not ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    let since = ready_since(pod)?;
    let then = since + SignedDuration::from_secs(min_ready_seconds.into());
    Some(then.duration_since(now).max(SignedDuration::ZERO))
}

/// The restarts of all containers.
pub fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten().map(|c| c.restart_count).sum()
}

/// A pod as its controller creates it: labels, annotations, finalizers and spec of the template,
/// a generated name, and the controller's reference.
pub fn from_template<O>(template: &PodTemplateSpec, owner: &O, reference: OwnerReference) -> Pod
where
    O: Metadata<Ty = ObjectMeta>,
{
    let meta = template.metadata.as_ref();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.metadata().namespace.clone(),
            generate_name: Some(generate_name(owner::name(owner.metadata()))),
            labels: meta.and_then(|m| m.labels.clone()),
            annotations: meta.and_then(|m| m.annotations.clone()),
            finalizers: meta.and_then(|m| m.finalizers.clone()),
            owner_references: Some(vec![reference]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// `name-`, or a shorter prefix where that leaves no room for the suffix.
pub fn generate_name(name: &str) -> String {
    let mut prefix = format!("{name}-");
    prefix.truncate(GENERATED_PREFIX_LEN_MAX);
    prefix
}

/// `intstr.GetScaledValueFromIntOrPercent`: an absolute number or a percentage of `total`.
/// What is neither counts as 0 (validation refuses it).
pub fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let Some(percent) = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()) else { return 0 };
            let product = percent * i64::from(total);
            let quotient = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            quotient as i32
        }
    }
}

/// A number as `omitempty` writes it: zero is absent.
pub fn non_zero<N: Default + PartialEq>(number: N) -> Option<N> {
    (number != N::default()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let percent = IntOrString::String("25%".into());
        assert_eq!(scaled(&percent, 10, true), 3);
        assert_eq!(scaled(&percent, 10, false), 2);
        assert_eq!(scaled(&IntOrString::Int(4), 10, true), 4);
        assert_eq!(scaled(&IntOrString::String("100%".into()), 3, false), 3);
    }
}
