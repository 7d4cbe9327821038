//! The Scale of a workload (`autoscaling/v1`).

use serde_json::{Value, json};

use super::Error;
use crate::kinds::{FieldError, Kind, labels};

/// The Scale of an object.
pub fn of(object: &Value) -> Value {
    let meta = &object["metadata"];
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = json!({});
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas != 0 {
        spec["replicas"] = replicas.into();
    }
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    let selector = selector(&object["spec"]["selector"]);
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector's text: a LabelSelector, or the plain map of a ReplicationController.
fn selector(selector: &Value) -> String {
    let typed = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let parsed = if typed {
        labels::Selector::from_json(selector).ok()
    } else {
        let map = selector.as_object().into_iter().flatten();
        Some(labels::Selector::from_map(map.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))))
    };
    parsed.map(|s| s.to_string()).unwrap_or_default()
}

/// Makes an object be as a Scale wants it.
pub fn apply(kind: &Kind, object: &mut Value, scale: &Value) -> Result<(), Error> {
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        Value::Number(number) if number.is_i64() => number.as_i64().unwrap_or(0),
        other => return Err(Error::BadRequest(format!("spec.replicas: {other} is not an integer"))),
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        let detail = "must be greater than or equal to 0";
        let errors = vec![FieldError::invalid("spec.replicas", replicas, detail)];
        return Err(Error::Invalid { kind: "Scale.autoscaling".to_owned(), name, errors });
    }
    let given = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !given.is_empty() {
        object["metadata"]["resourceVersion"] = given.into();
    }
    let uid = scale["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && object["metadata"]["uid"] != uid {
        return Err(Error::Conflict {
            resource: kind.resource(),
            name,
            message: format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object["metadata"]["uid"].as_str().unwrap_or_default()
            ),
        });
    }
    object["spec"]["replicas"] = replicas.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::registry;

    #[test]
    fn a_scale_shows_and_sets_replicas() {
        let mut web = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "7"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 1}});
        let scale = of(&web);
        assert_eq!(scale["spec"]["replicas"], 2);
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "app=web"}));
        let kind = registry::by_type("apps/v1", "Deployment").unwrap();
        apply(kind, &mut web, &json!({"spec": {"replicas": 5}})).unwrap();
        assert_eq!(web["spec"]["replicas"], 5);
        assert!(apply(kind, &mut web, &json!({"spec": {"replicas": -1}})).is_err());
        assert!(apply(kind, &mut web, &json!({"spec": {"replicas": "x"}})).is_err());
    }
}
