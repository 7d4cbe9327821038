//! Eviction of pods against disruption budgets (`pods/eviction`).

use serde_json::{Value, json};

use super::{DeleteOptions, Error, Objects, Removal, WriteOptions};
use crate::{
    clock,
    kinds::{Kind, Subresource, labels::Selector, registry},
    store::Object,
};

/// Evictions that a budget remembers until their pods are seen to be gone, as upstream.
const DISRUPTED_PODS_MAX: usize = 2000;

fn pods() -> &'static Kind {
    registry::of::<k8s_openapi::api::core::v1::Pod>()
}

impl Objects {
    /// Evicts a pod (`pods/eviction`) when the budgets that select it allow it.
    pub async fn evict(
        &self,
        namespace: &str,
        name: &str,
        delete: &DeleteOptions,
        options: &WriteOptions,
    ) -> Result<Removal, Error> {
        let pod = self.get(pods(), namespace, name)?;
        let value = pod.value();
        let phase = value["status"]["phase"].as_str().unwrap_or_default();
        let free = matches!(phase, "Succeeded" | "Failed" | "Pending") || pod.meta.deleting;
        if !free {
            self.spend_budget(namespace, name, &pod, &value, options).await?;
        }
        if !options.dry_run && !pod.meta.deleting {
            let now = clock::rfc3339_seconds(self.clock().now());
            let target = json!({"status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting"});
            let marked = self
                .modify(pods(), Some(Subresource::Status), namespace, name, options, |pod| {
                    set_condition(pod, "DisruptionTarget", target.clone(), &now);
                    Ok(())
                })
                .await;
            match marked {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        self.remove(pods(), namespace, name, delete, options).await
    }

    async fn spend_budget(
        &self,
        namespace: &str,
        name: &str,
        pod: &Object,
        value: &Value,
        options: &WriteOptions,
    ) -> Result<(), Error> {
        let kind = registry::of::<k8s_openapi::api::policy::v1::PodDisruptionBudget>();
        let selects = |budget: &Value| {
            Selector::from_json(&budget["spec"]["selector"])
                .is_ok_and(|s| s.matches(|key| pod.meta.label(key)))
        };
        let all = self.list(kind, Some(namespace)).items;
        let budgets: Vec<_> = all.iter().filter(|b| selects(&b.value())).collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => *one,
            _ => {
                return Err(Error::Internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.".to_owned(),
                ));
            }
        };
        let ready = value["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
        let before = budget.value();
        let healthy = before["status"]["currentHealthy"].as_i64().unwrap_or(0)
            >= before["status"]["desiredHealthy"].as_i64().unwrap_or(0);
        let enough = healthy && before["status"]["desiredHealthy"].as_i64().unwrap_or(0) > 0;
        if !ready && (before["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || enough) {
            return Ok(());
        }
        let _held = self.counted.lock().await;
        let name_of_budget = budget.key.name.to_string();
        let now = clock::rfc3339_seconds(self.clock().now());
        let spent = self.modify(kind, Some(Subresource::Status), namespace, &name_of_budget, options, |budget| {
            let refuse = |message: String, seconds| {
                Err(Error::TooManyRequests {
                    message: "Cannot evict pod as it would violate the pod's disruption budget.".to_owned(),
                    retry_after_seconds: seconds,
                    causes: vec![("DisruptionBudget".to_owned(), message)],
                })
            };
            let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
            let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
            if number("observedGeneration") < generation {
                return refuse(
                    format!("The disruption budget {name_of_budget} is still being processed by the server."),
                    10,
                );
            }
            let allowed = number("disruptionsAllowed");
            if allowed <= 0 {
                return refuse(
                    format!(
                        "The disruption budget {name_of_budget} needs {} healthy pods and has {} currently",
                        number("desiredHealthy"),
                        number("currentHealthy")
                    ),
                    0,
                );
            }
            if budget["status"]["disruptedPods"].as_object().is_some_and(|d| d.len() > DISRUPTED_PODS_MAX) {
                return refuse("too many evictions are being processed".to_owned(), 10);
            }
            budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
            budget["status"]["disruptedPods"][name] = now.as_str().into();
            Ok(())
        });
        spent.await.map(drop)
    }
}

/// Sets a condition of a pod; the time moves when the status does.
fn set_condition(pod: &mut Value, name: &str, mut condition: Value, now: &str) {
    condition["type"] = name.into();
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = now.into();
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|c| c["type"] == name) {
        Some(existing) => {
            if existing["status"] == condition["status"] {
                condition["lastTransitionTime"] = existing["lastTransitionTime"].clone();
            }
            *existing = condition;
        }
        None => conditions.push(condition),
    }
}
