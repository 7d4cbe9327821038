//! HorizontalPodAutoscalers: as many replicas as the load asks for.
//!
//! Watches: the autoscalers. Observes, every [`PERIOD`]: the target's Scale, its pods, and what
//! those use ([`PodUsage`]). Metrics of objects, pods of custom kinds and outside systems need an
//! adapter that is not there: such a metric fails with upstream's reason and text.
//! What was recommended and changed before is remembered in memory only ([`limits::Past`]).

mod calculate;
mod limits;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, HPAScalingRules, HorizontalPodAutoscaler,
            HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus,
            MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ResourceMetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::{api::resource::Quantity as ApiQuantity, apis::meta::v1::Time},
};
use serde_json::json;

use super::{
    owner,
    plan::{Action, Note, Plan, Target},
    runner::{Controller, Round},
};
use crate::{
    kinds::{Kind, Subresource, labels::Selector, quantity::Quantity, registry},
    objects::{Objects, scale},
    store::Key,
    usage::{PodUsage, PodUse},
};
use calculate::{Proposal, Sample, Tolerances};
use limits::{Bounds, Past};

/// How often an autoscaler is looked at (upstream's `horizontal-pod-autoscaler-sync-period`).
const PERIOD: SignedDuration = SignedDuration::from_secs(15);
/// How far from the target is near enough (upstream's `horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;

pub struct AutoscalerController {
    usage: Arc<dyn PodUsage>,
    memory: Mutex<HashMap<Key, Memory>>,
}

impl AutoscalerController {
    pub fn new(usage: Arc<dyn PodUsage>) -> Self {
        Self { usage, memory: Mutex::default() }
    }
}

/// What is remembered of one autoscaler.
#[derive(Debug, Default)]
struct Memory {
    /// When it was looked at last, and at which generation.
    looked: Option<(Timestamp, Option<i64>)>,
    past: Past,
    /// The change under way.
    change: Option<Change>,
}

#[derive(Debug)]
struct Change {
    from: i32,
    to: i32,
    reason: String,
}

impl Controller for AutoscalerController {
    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn primary(&self) -> &'static str {
        "horizontalpodautoscalers.autoscaling"
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let mut all = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hpa) = objects.get_typed::<HorizontalPodAutoscaler>(&key.namespace, &key.name) else {
            all.remove(key);
            return Plan::default();
        };
        let memory = all.entry(key.clone()).or_default();
        let failed = round.failure.clone().filter(|_| memory.change.is_some());
        let early = memory.looked.filter(|(then, generation)| {
            failed.is_none() && *generation == hpa.metadata.generation && *then + PERIOD > round.now
        });
        if let Some((then, _)) = early {
            let mut plan = Plan::about(&*hpa);
            plan.requeue_at(then + PERIOD, round.now);
            return plan;
        }
        memory.looked = Some((round.now, hpa.metadata.generation));
        let observed = observe(objects, &hpa, &*self.usage, failed);
        let mut plan = reconcile(&hpa, &observed, memory, round.now);
        plan.requeue_in(PERIOD);
        plan
    }
}

/// The target's Scale.
struct Scale {
    target: Target,
    wanted: i32,
    selector: String,
}

struct Observed {
    /// Or why there is none.
    scale: Result<Scale, String>,
    /// The pods that the Scale selects.
    pods: Vec<Arc<Pod>>,
    /// By pod name.
    usage: BTreeMap<String, PodUse>,
    /// Autoscalers (this one included) that share a pod, when there are several.
    rivals: Vec<String>,
    /// Why the last change could not be made.
    failure: Option<String>,
}

fn scale_of(objects: &Objects, hpa: &HorizontalPodAutoscaler) -> Result<Scale, String> {
    let reference = &hpa.spec.scale_target_ref;
    let api_version = reference.api_version.as_deref().unwrap_or("v1");
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let unknown = || format!("no matches for kind {:?} in group {group:?}", reference.kind);
    let kind: &'static Kind = registry::by_type(api_version, &reference.kind).ok_or_else(unknown)?;
    if !kind.subresources.contains(&Subresource::Scale) {
        return Err("the server could not find the requested resource".to_owned());
    }
    let namespace = owner::namespace(&hpa.metadata);
    let object = objects.get(kind, namespace, &reference.name).map_err(|_| {
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        format!("{}/scale{group} {:?} not found", kind.plural, reference.name)
    })?;
    let scale = scale::of(&object.value());
    let number = |part: &str| {
        let replicas = scale[part]["replicas"].as_i64().unwrap_or(0);
        i32::try_from(replicas).unwrap_or(i32::MAX)
    };
    Ok(Scale {
        target: Target {
            kind,
            namespace: namespace.to_owned(),
            name: reference.name.clone(),
            uid: object.meta.uid.to_string(),
        },
        wanted: number("spec"),
        selector: scale["status"]["selector"].as_str().unwrap_or_default().to_owned(),
    })
}

/// Reads the view and the measurements.
fn observe(
    objects: &Objects,
    hpa: &HorizontalPodAutoscaler,
    usage: &dyn PodUsage,
    failure: Option<String>,
) -> Observed {
    let namespace = owner::namespace(&hpa.metadata);
    let scale = scale_of(objects, hpa);
    let mut observed =
        Observed { pods: Vec::new(), usage: BTreeMap::new(), rivals: Vec::new(), scale, failure };
    let Ok(scale) = &observed.scale else { return observed };
    let Some(selector) = Selector::parse(&scale.selector).ok().filter(|_| !scale.selector.is_empty()) else {
        return observed;
    };
    let all = objects.list(registry::of::<Pod>(), Some(namespace)).items;
    let selected: Vec<_> = all.iter().filter(|p| selector.matches(|key| p.meta.label(key))).collect();
    for other in objects.list_typed::<HorizontalPodAutoscaler>(Some(namespace)) {
        let shares = other.metadata.uid == hpa.metadata.uid
            || scale_of(objects, &other).is_ok_and(|scale| {
                let theirs = Selector::parse(&scale.selector).ok().filter(|s| !s.is_everything());
                theirs.is_some_and(|s| selected.iter().any(|p| s.matches(|key| p.meta.label(key))))
            });
        if shares {
            observed.rivals.push(format!("{namespace}/{}", owner::name(&other.metadata)));
        }
    }
    if observed.rivals.len() < 2 {
        observed.rivals.clear();
    }
    observed.pods = selected.into_iter().map(|p| p.typed()).collect();
    for pod in &observed.pods {
        let name = owner::name(&pod.metadata);
        observed.usage.extend(usage.pod(namespace, name).map(|used| (name.to_owned(), used)));
    }
    observed
}

/// What all metrics together ask for.
struct Computed {
    replicas: i32,
    metric: String,
    /// Why the metrics that failed did, when the others still decide.
    trouble: Option<String>,
}

struct Work<'a> {
    hpa: &'a HorizontalPodAutoscaler,
    spec: &'a HorizontalPodAutoscalerSpec,
    observed: &'a Observed,
    now: Timestamp,
    plan: Plan,
    status: HorizontalPodAutoscalerStatus,
}

fn reconcile(
    hpa: &HorizontalPodAutoscaler,
    observed: &Observed,
    memory: &mut Memory,
    now: Timestamp,
) -> Plan {
    let plan = Plan::about(hpa);
    let spec = &hpa.spec;
    let status = hpa.status.clone().unwrap_or_default();
    let mut work = Work { hpa, spec, observed, now, plan, status };
    work.run(memory);
    let Work { mut plan, status, .. } = work;
    if !is_same(hpa.status.as_ref(), &status) {
        plan.status(hpa, hpa.status.as_ref(), &status);
    }
    plan
}

/// Whether nothing a decision or a table shows has changed. The raw average beside a percentage
/// differs at every look; writing it each time would wear the memory card for nothing.
fn is_same(old: Option<&HorizontalPodAutoscalerStatus>, new: &HorizontalPodAutoscalerStatus) -> bool {
    let plain = |status: &HorizontalPodAutoscalerStatus| {
        let mut status = status.clone();
        for metric in status.current_metrics.iter_mut().flatten() {
            let current = match (&mut metric.resource, &mut metric.container_resource) {
                (Some(resource), _) => &mut resource.current,
                (None, Some(container)) => &mut container.current,
                (None, None) => continue,
            };
            if current.average_utilization.is_some() {
                current.average_value = None;
            }
        }
        status
    };
    old.is_some_and(|old| plain(old) == plain(new))
}

impl Work<'_> {
    fn set(&mut self, kind: &str, state: bool, reason: &str, message: impl Into<String>) {
        let state = if state { "True" } else { "False" };
        let conditions = self.status.conditions.get_or_insert_default();
        let new = |since| HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            status: state.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: since,
        };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(old) => {
                let since = old.last_transition_time.clone().filter(|_| old.status == state);
                *old = new(since.or(Some(Time(self.now))));
            }
            None => conditions.push(new(Some(Time(self.now)))),
        }
    }

    fn warn(&mut self, reason: &'static str, message: impl Into<String>) {
        self.plan.event(Note::warning(reason, message.into()));
    }

    fn run(&mut self, memory: &mut Memory) {
        self.status.observed_generation = self.hpa.metadata.generation;
        let scale = match &self.observed.scale {
            Ok(scale) => scale,
            Err(error) => {
                self.warn("FailedGetScale", error);
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {error}");
                self.set("AbleToScale", false, "FailedGetScale", message);
                return;
            }
        };
        let current = scale.wanted;
        let message = "the HPA controller was able to get the target's current scale";
        self.set("AbleToScale", true, "SucceededGetScale", message);
        memory.past.begin(current, self.now);
        if let Some(change) = memory.change.take() {
            match &self.observed.failure {
                Some(error) => {
                    let Change { to, reason, .. } = change;
                    self.warn("FailedRescale", format!("New size: {to}; reason: {reason}; error: {error}"));
                    let message =
                        format!("the HPA controller was unable to update the target scale: {error}");
                    self.set("AbleToScale", false, "FailedUpdateScale", message);
                    self.status.current_replicas = Some(current);
                    return;
                }
                None => memory.past.changed(change.from, change.to, self.now),
            }
        }
        let (min, max) = (self.spec.min_replicas.unwrap_or(1), self.spec.max_replicas);
        let (wanted, reason) = if current == 0 && min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set("ScalingActive", false, "ScalingDisabled", message);
            (0, String::new())
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.follow_metrics(scale, memory) {
                Some(decision) => decision,
                None => return,
            }
        };
        self.status.current_replicas = Some(current);
        self.status.desired_replicas = wanted;
        if wanted == current {
            return;
        }
        let message = format!("the HPA controller was able to update the target scale to {wanted}");
        self.set("AbleToScale", true, "SucceededRescale", message);
        self.status.last_scale_time = Some(Time(self.now));
        self.plan.actions.push(Action::Merge {
            target: scale.target.clone(),
            subresource: None,
            at: None,
            patch: json!({"spec": {"replicas": wanted}}),
        });
        self.plan.event(Note::normal("SuccessfulRescale", format!("New size: {wanted}; reason: {reason}")));
        memory.change = Some(Change { from: current, to: wanted, reason });
    }

    /// What the metrics ask for, within the bounds, and why; `None` when they say nothing.
    fn follow_metrics(&mut self, scale: &Scale, memory: &mut Memory) -> Option<(i32, String)> {
        let current = scale.wanted;
        let computed = match self.compute(scale) {
            Ok(computed) => computed,
            Err(error) => {
                self.status.current_replicas = Some(current);
                self.warn("FailedComputeMetricsReplicas", error);
                return None;
            }
        };
        if let Some(trouble) = &computed.trouble {
            self.warn("FailedComputeMetricsReplicas", trouble);
        }
        let reason = match computed.replicas.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{} above target", computed.metric),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let bounds = Bounds {
            min: self.spec.min_replicas.unwrap_or(1),
            max: self.spec.max_replicas,
            current,
            behavior: self.spec.behavior.as_ref(),
        };
        let limited = memory.past.limit(computed.replicas, &bounds, self.now);
        self.set("AbleToScale", true, limited.stable.0, limited.stable.1);
        self.set("ScalingLimited", limited.held, limited.limit.0, limited.limit.1);
        Some((limited.replicas, reason))
    }

    /// The highest proposal of all metrics.
    fn compute(&mut self, scale: &Scale) -> Result<Computed, String> {
        if scale.selector.is_empty() {
            self.warn("SelectorRequired", "selector is required");
            let message = "the HPA target's scale is missing a selector";
            self.set("ScalingActive", false, "InvalidSelector", message);
            return Err("selector is required".to_owned());
        }
        if let Err(error) = Selector::parse(&scale.selector) {
            let message =
                format!("couldn't convert selector into a corresponding internal selector object: {error}");
            self.warn("InvalidSelector", message.clone());
            self.set("ScalingActive", false, "InvalidSelector", message.clone());
            return Err(message);
        }
        if !self.observed.rivals.is_empty() {
            let message = format!(
                "pods by selector {} are controlled by multiple HPAs: [{}]",
                scale.selector,
                self.observed.rivals.join(" ")
            );
            self.warn("AmbiguousSelector", message.clone());
            self.set("ScalingActive", false, "AmbiguousSelector", message.clone());
            return Err(message);
        }
        let metrics = self.spec.metrics.as_deref().unwrap_or_default();
        let mut statuses = Vec::with_capacity(metrics.len());
        let mut best: Option<(i32, String)> = None;
        let mut refused: Vec<(&'static str, String, String)> = Vec::new();
        for metric in metrics {
            match self.compute_one(metric, scale.wanted) {
                Ok((proposal, name, status)) => {
                    if best.as_ref().is_none_or(|(replicas, _)| proposal > *replicas) {
                        best = Some((proposal, name));
                    }
                    statuses.push(status);
                }
                Err((reason, error, told)) => {
                    self.warn(reason, error.clone());
                    refused.push((reason, error, told));
                    statuses.push(MetricStatus::default());
                }
            }
        }
        self.status.current_metrics = Some(statuses);
        let trouble = refused.first().map(|(_, _, told)| {
            let (bad, all) = (refused.len(), metrics.len());
            format!("invalid metrics ({bad} invalid out of {all}), first error is: {told}")
        });
        // While a metric is unknown nothing is taken away.
        let decides = best.filter(|(replicas, _)| trouble.is_none() || *replicas >= scale.wanted);
        let Some((replicas, metric)) = decides else {
            if let Some((reason, error, _)) = refused.first() {
                let message = format!("the HPA was unable to compute the replica count: {error}");
                self.set("ScalingActive", false, reason, message);
            }
            return Err(trouble.unwrap_or_else(|| "no metrics".to_owned()));
        };
        let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
        self.set("ScalingActive", true, "ValidMetricFound", message);
        Ok(Computed { replicas, metric, trouble })
    }

    /// One metric's proposal, its name and its status; or the reason, the error, and the error as
    /// it is told among those of all metrics.
    fn compute_one(
        &self,
        metric: &MetricSpec,
        current: i32,
    ) -> Result<(i32, String, MetricStatus), (&'static str, String, String)> {
        if let Some(source) = &metric.resource {
            let reason = "FailedGetResourceMetric";
            return self.resource(&source.name, None, &source.target, current).map_err(|error| {
                let told = format!("failed to get {} resource metric value: {error}", source.name);
                (reason, error, told)
            });
        }
        if let Some(source) = &metric.container_resource {
            let reason = "FailedGetContainerResourceMetric";
            let found = self.resource(&source.name, Some(&source.container), &source.target, current);
            return found.map_err(|error| {
                let told = format!("failed to get {} container metric value: {error}", source.name);
                (reason, error, told)
            });
        }
        // The texts of a cluster without an adapter for these APIs.
        let custom = "unable to fetch metrics from custom metrics API: no custom metrics API \
                      (custom.metrics.k8s.io) registered";
        if let Some(source) = &metric.pods {
            let error = format!("unable to get metric {}: {custom}", source.metric.name);
            let told = format!("failed to get pods metric value: {error}");
            return Err(("FailedGetPodsMetric", error, told));
        }
        if let Some(source) = &metric.object {
            let of = &source.described_object;
            let namespace = owner::namespace(&self.hpa.metadata);
            let error = format!(
                "unable to get metric {}: {} on {namespace} {}/{custom}",
                source.metric.name, of.kind, of.name
            );
            let told = format!("failed to get object metric value: {error}");
            return Err(("FailedGetObjectMetric", error, told));
        }
        if let Some(source) = &metric.external {
            let (namespace, name) = (owner::namespace(&self.hpa.metadata), &source.metric.name);
            let error = format!(
                "unable to get external metric {namespace}/{name}/{}: unable to fetch metrics from external \
                 metrics API: the server could not find the requested resource (get {name}.external.metrics.k8s.io)",
                source.metric.selector.as_ref().map_or("nil", |_| "&LabelSelector{}"),
            );
            let told = format!("failed to get {name} external metric value: {error}");
            return Err(("FailedGetExternalMetric", error, told));
        }
        let error = format!("unknown metric source type {:?}", metric.type_);
        Err(("InvalidMetricSourceType", error.clone(), error))
    }

    fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
        current: i32,
    ) -> Result<(i32, String, MetricStatus), String> {
        let kind = if container.is_some() { "container resource" } else { "resource" };
        let average = target.average_value.as_ref().and_then(|q| q.0.parse::<Quantity>().ok());
        let (wanted, what, name) = match (average, target.average_utilization) {
            (Some(amount), _) => {
                (calculate::Target::Average(amount.milli_value()), "usage", format!("{resource} {kind}"))
            }
            (None, Some(percent)) => (
                calculate::Target::Utilization(percent),
                "utilization",
                format!("{resource} {kind} utilization (percentage of request)"),
            ),
            (None, None) => {
                return Err(format!(
                    "invalid {kind} metric source: neither an average utilization target nor an average value \
                     (usage) target was set"
                ));
            }
        };
        let Observed { pods, usage, .. } = self.observed;
        let sample = Sample { pods, usage, resource, container, now: self.now };
        let Proposal { replicas, utilization, average } = sample
            .propose(wanted, current, self.tolerances())
            .map_err(|error| format!("failed to get {resource} {what}: {error}"))?;
        let current = MetricValueStatus {
            average_utilization: utilization,
            average_value: Some(ApiQuantity(Quantity::from_milli(average).to_string())),
            value: None,
        };
        let name_of = resource.to_owned();
        let status = match container {
            None => MetricStatus {
                type_: "Resource".into(),
                resource: Some(ResourceMetricStatus { name: name_of, current }),
                ..MetricStatus::default()
            },
            Some(container) => MetricStatus {
                type_: "ContainerResource".into(),
                container_resource: Some(ContainerResourceMetricStatus {
                    name: name_of,
                    container: container.to_owned(),
                    current,
                }),
                ..MetricStatus::default()
            },
        };
        Ok((replicas, name, status))
    }

    fn tolerances(&self) -> Tolerances {
        let own = |rules: Option<&HPAScalingRules>| {
            let text = &rules?.tolerance.as_ref()?.0;
            Some(text.parse::<Quantity>().ok()?.milli_value() as f64 / 1000.0)
        };
        let behavior = self.spec.behavior.as_ref();
        (
            own(behavior.and_then(|b| b.scale_down.as_ref())).unwrap_or(TOLERANCE),
            own(behavior.and_then(|b| b.scale_up.as_ref())).unwrap_or(TOLERANCE),
        )
    }
}

#[cfg(test)]
mod tests;
