//! How many replicas a metric asks for (`podautoscaler/replica_calculator.go`).
//!
//! Pods without a measurement, and pods that have not come up yet, are counted so that they slow
//! a change down and never turn it around.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::super::pods;
use crate::{kinds::resources, usage::PodUse};

/// How long CPU measurements of a new pod count only while it is ready.
const INITIALIZATION: SignedDuration = SignedDuration::from_mins(5);
/// A pod that became unready so soon after its start has never been ready.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What a metric asks of one resource.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// Percent of what the pods request.
    Utilization(i32),
    /// Milli-units a pod.
    Average(i64),
}

/// The pods of a scale target and what they use.
pub struct Sample<'a> {
    pub pods: &'a [Arc<Pod>],
    /// By pod name.
    pub usage: &'a BTreeMap<String, PodUse>,
    pub resource: &'a str,
    /// Only this container counts.
    pub container: Option<&'a str>,
    pub now: Timestamp,
}

/// What a metric says.
#[derive(Debug, PartialEq)]
pub struct Proposal {
    pub replicas: i32,
    /// Percent of what is requested; only for [`Target::Utilization`].
    pub utilization: Option<i32>,
    /// Milli-units a pod.
    pub average: i64,
}

/// The ratios between use and target that are left alone: down, up.
pub type Tolerances = (f64, f64);

fn is_tolerable(ratio: f64, (down, up): Tolerances) -> bool {
    (1.0 - down..=1.0 + up).contains(&ratio)
}

/// Pods sorted by what their measurements are worth.
#[derive(Default)]
struct Groups {
    ready: usize,
    unready: Vec<String>,
    missing: Vec<String>,
    ignored: Vec<String>,
}

impl Sample<'_> {
    /// Milli-units a pod uses, by pod.
    fn metrics(&self) -> Result<BTreeMap<String, i64>, String> {
        let mut all = BTreeMap::new();
        for pod in self.pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let Some(used) = self.usage.get(&name) else { continue };
            let counted = |c: &&crate::usage::ContainerUse| self.container.is_none_or(|n| n == c.name);
            let containers: Vec<_> = used.containers.iter().filter(counted).collect();
            if let Some(container) = self.container.filter(|_| containers.is_empty()) {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                return Err(format!(
                    "container {container} not present in metrics for pod {namespace}/{name}"
                ));
            }
            let amount = |c: &&crate::usage::ContainerUse| match self.resource {
                "cpu" => i64::try_from(c.cpu_nanocores.div_ceil(1_000_000)).unwrap_or(i64::MAX),
                _ => i64::try_from(c.memory_bytes).unwrap_or(i64::MAX).saturating_mul(1000),
            };
            all.insert(name, containers.iter().map(amount).sum());
        }
        let measured = matches!(self.resource, "cpu" | "memory");
        if all.is_empty() || !measured {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        Ok(all)
    }

    fn groups(&self, metrics: &BTreeMap<String, i64>) -> Groups {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            if pods::is_deleting(pod) || pods::phase(pod) == "Failed" {
                groups.ignored.push(name);
            } else if pods::phase(pod) == "Pending" {
                groups.unready.push(name);
            } else if !metrics.contains_key(&name) {
                groups.missing.push(name);
            } else if self.resource == "cpu" && self.is_starting(pod, &name) {
                groups.unready.push(name);
            } else {
                groups.ready += 1;
            }
        }
        groups
    }

    /// Whether a pod's CPU use still is that of its start.
    fn is_starting(&self, pod: &Pod, name: &str) -> bool {
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let (Some(started), Some(ready)) = (started, pods::condition(pod, "Ready")) else { return true };
        let changed = ready.last_transition_time.as_ref().map_or(started, |t| t.0);
        let is_unready = ready.status == "False";
        if started + INITIALIZATION > self.now {
            let measured = self.usage.get(name);
            is_unready || measured.is_some_and(|used| used.at < changed + used.window)
        } else {
            is_unready && started + INITIAL_READINESS > changed
        }
    }

    /// Milli-units each pod requests.
    fn requests(&self) -> Result<BTreeMap<String, i64>, String> {
        let mut all = BTreeMap::new();
        for pod in self.pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let Some(spec) = pod.spec.as_ref() else { continue };
            let whole = resources::parse(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
            if let Some(amount) = whole.get(self.resource).filter(|_| self.container.is_none()) {
                all.insert(name, amount.milli_value());
                continue;
            }
            let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
            let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
            let mut sum = 0;
            for container in spec.containers.iter().chain(sidecars) {
                if self.container.is_some_and(|n| n != container.name) {
                    continue;
                }
                let list = resources::parse(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
                let Some(amount) = list.get(self.resource) else {
                    return Err(format!(
                        "missing request for {} in container {} of Pod {name}",
                        self.resource, container.name
                    ));
                };
                sum += amount.milli_value();
            }
            all.insert(name, sum);
        }
        Ok(all)
    }

    /// How many replicas the target asks for, `current` being wanted now.
    ///
    /// # Errors
    /// Why that cannot be said, in upstream's words.
    pub fn propose(&self, target: Target, current: i32, tolerances: Tolerances) -> Result<Proposal, String> {
        let mut metrics = self
            .metrics()
            .map_err(|e| format!("unable to get metrics for resource {}: {e}", self.resource))?;
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".to_owned());
        }
        let groups = self.groups(&metrics);
        metrics.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
        if metrics.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
        }
        let requests = match target {
            Target::Utilization(_) => self.requests()?,
            Target::Average(_) => BTreeMap::new(),
        };
        let ratio_of = |metrics: &BTreeMap<String, i64>| ratio(metrics, &requests, target);
        let (ratio, utilization) = ratio_of(&metrics)?;
        let average = metrics.values().sum::<i64>() / i64::try_from(metrics.len()).unwrap_or(i64::MAX);
        let answer = |replicas: i32| Ok(Proposal { replicas, utilization, average });
        let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !up_with_unready && groups.missing.is_empty() {
            if is_tolerable(ratio, tolerances) {
                return answer(current);
            }
            return answer((ratio * groups.ready as f64).ceil() as i32);
        }
        for name in &groups.missing {
            // Down: as if it used what it may; up: as if it used nothing.
            let assumed = match target {
                _ if ratio > 1.0 => 0,
                Target::Utilization(percent) => {
                    requests.get(name).copied().unwrap_or(0) * i64::from(percent.max(100)) / 100
                }
                Target::Average(amount) => amount,
            };
            if (ratio - 1.0).abs() > f64::EPSILON {
                metrics.insert(name.clone(), assumed);
            }
        }
        if up_with_unready {
            metrics.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
        }
        let (new, _) = ratio_of(&metrics)?;
        if is_tolerable(new, tolerances) || (ratio < 1.0 && new > 1.0) || (ratio > 1.0 && new < 1.0) {
            return answer(current);
        }
        let replicas = (new * metrics.len() as f64).ceil() as i32;
        if (new < 1.0 && replicas > current) || (new > 1.0 && replicas < current) {
            return answer(current);
        }
        answer(replicas)
    }
}

/// Use to target, and the percentage of the requests where the target is one.
fn ratio(
    metrics: &BTreeMap<String, i64>,
    requests: &BTreeMap<String, i64>,
    target: Target,
) -> Result<(f64, Option<i32>), String> {
    match target {
        Target::Utilization(percent) => {
            let known = || metrics.iter().filter_map(|(name, used)| Some((*used, *requests.get(name)?)));
            let (used, requested) = known().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            Ok((f64::from(utilization) / f64::from(percent), Some(utilization)))
        }
        Target::Average(amount) => {
            let average = metrics.values().sum::<i64>() / i64::try_from(metrics.len()).unwrap_or(i64::MAX);
            Ok((average as f64 / amount as f64, None))
        }
    }
}
