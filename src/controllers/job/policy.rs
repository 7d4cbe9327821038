//! What a Job's failure and success policies make of its pods.

use k8s_openapi::api::{
    batch::v1::{JobSpec, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};

use super::{
    super::{owner, pods},
    indexes::Indexes,
};

/// How a Job ends.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    pub success: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Verdict {
    pub fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self { success: false, reason, message: message.into() }
    }

    pub fn succeeded(reason: &'static str, message: impl Into<String>) -> Self {
        Self { success: true, reason, message: message.into() }
    }
}

/// The first rule that a failed pod matches.
pub struct Matched {
    pub name: String,
    message: String,
}

/// What the failure policy says about a failed pod; `None`: nothing.
pub fn action(spec: &JobSpec, pod: &Pod) -> Option<Matched> {
    let rules = spec.pod_failure_policy.as_ref().map_or(&[][..], |p| p.rules.as_slice());
    rules.iter().enumerate().find_map(|(number, rule)| {
        let why = by_exit_code(rule, pod).or_else(|| by_condition(rule, pod))?;
        Some(Matched {
            name: rule.action.clone(),
            message: format!("{why} matching {} rule at index {number}", rule.action),
        })
    })
}

/// Why a failed pod fails the whole Job, if it does.
pub fn fails_job(spec: &JobSpec, pod: &Pod) -> Option<String> {
    action(spec, pod).filter(|matched| matched.name == "FailJob").map(|matched| matched.message)
}

fn by_exit_code(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let codes = rule.on_exit_codes.as_ref()?;
    let status = pod.status.as_ref()?;
    let matches = |container: &&ContainerStatus| {
        let named = codes.container_name.as_ref().is_none_or(|name| *name == container.name);
        let code = container.state.as_ref().and_then(|s| s.terminated.as_ref()).map_or(0, |t| t.exit_code);
        let listed = codes.values.contains(&code);
        named && code != 0 && (codes.operator == "In") == listed
    };
    let mut containers =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let container = containers.find(matches)?;
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let (namespace, name) = (owner::namespace(&pod.metadata), owner::name(&pod.metadata));
    Some(format!("Container {} for pod {namespace}/{name} failed with exit code {code}", container.name))
}

fn by_condition(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let matched = rule.on_pod_conditions.iter().flatten().find(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        pods::condition(pod, &pattern.type_).is_some_and(|c| c.status == wanted)
    })?;
    let (namespace, name) = (owner::namespace(&pod.metadata), owner::name(&pod.metadata));
    Some(format!("Pod {namespace}/{name} has condition {}", matched.type_))
}

/// Why the success policy is met, if it is.
pub fn success(spec: &JobSpec, completed: &Indexes) -> Option<String> {
    let rules = &spec.success_policy.as_ref()?.rules;
    let met = |(_, rule): &(usize, &k8s_openapi::api::batch::v1::SuccessPolicyRule)| {
        let of = rule.succeeded_indexes.as_deref().map(Indexes::parse);
        let have = of.as_ref().map_or(completed.len(), |of| completed.common(of));
        let wanted = rule.succeeded_count.or_else(|| of.map(|of| of.len()));
        wanted.is_some_and(|wanted| have >= wanted)
    };
    let (number, _) = rules.iter().enumerate().find(met)?;
    Some(format!("Matched rules at index {number}"))
}

/// The reason of an event for the reason of a condition.
pub fn known_reason(reason: &str) -> &'static str {
    ["PodFailurePolicy", "DeadlineExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"]
        .into_iter()
        .find(|known| *known == reason)
        .unwrap_or("BackoffLimitExceeded")
}
