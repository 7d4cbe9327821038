//! Metadata of every object (`k8s.io/apimachinery/pkg/api/validation/objectmeta.go`).

use serde_json::Value;

use super::{ErrorList, FieldError, at::At, names};

/// All annotations of an object together (bytes).
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Whether the object is being created: it has no revision yet.
pub fn is_new(object: &Value) -> bool {
    object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty)
}

/// Errors of an object: its metadata's, and what `body` finds.
pub fn check(
    object: &Value,
    namespaced: bool,
    name_rule: names::Rule,
    body: impl FnOnce(&At<'_>, &mut ErrorList),
) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = At::root(object);
    check_metadata(&root.get("metadata"), namespaced, name_rule, &mut errors);
    body(&root, &mut errors);
    errors
}

/// Errors of a change: its metadata's, and what `body` finds in new and old.
pub fn check_update(
    new: &Value,
    old: &Value,
    body: impl FnOnce(&At<'_>, &At<'_>, &mut ErrorList),
) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new, old) = (At::root(new), At::root(old));
    let (new_meta, old_meta) = (new.get("metadata"), old.get("metadata"));
    if old_meta.get("deletionTimestamp").is_set() {
        let had = old_meta.get("finalizers");
        let had: Vec<_> = had.items().map(|f| f.str()).collect();
        let finalizers = new_meta.get("finalizers");
        let added: Vec<_> = finalizers
            .items()
            .map(|f| f.str())
            .filter(|f| !had.contains(f))
            .map(|f| format!("{f:?}"))
            .collect();
        if !added.is_empty() {
            errors.push(finalizers.forbidden(format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            )));
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"] {
        new_meta.get(field).check_immutable(&old_meta.get(field), &mut errors);
    }
    body(&new, &old, &mut errors);
    errors
}

fn check_metadata(meta: &At<'_>, namespaced: bool, name_rule: names::Rule, errors: &mut ErrorList) {
    let (generate, name, namespace) = (meta.get("generateName"), meta.get("name"), meta.get("namespace"));
    if !generate.is_empty() {
        errors.extend(names::as_prefix(generate.str(), name_rule).into_iter().map(|m| generate.invalid(m)));
    }
    if name.is_empty() {
        errors.push(name.required("name or generateName is required"));
    } else {
        name.check(name_rule, errors);
    }
    if namespaced {
        namespace.check_required_name(names::dns_label, errors);
    } else if !namespace.is_empty() {
        errors.push(namespace.forbidden("not allowed on this type"));
    }
    check_labels(&meta.get("labels"), errors);
    check_annotations(&meta.get("annotations"), errors);
    check_owners(&meta.get("ownerReferences"), errors);
    check_finalizers(&meta.get("finalizers"), errors);
}

/// Refuses bad keys and values of a map of labels.
pub fn check_labels(labels: &At<'_>, errors: &mut ErrorList) {
    for (key, value) in labels.entries() {
        check_label_key(key, labels, errors);
        let value = value.as_str().unwrap_or_default();
        errors.extend(
            names::label_value(value).into_iter().map(|m| FieldError::invalid(&labels.path, value, m)),
        );
    }
}

fn check_label_key(key: &str, at: &At<'_>, errors: &mut ErrorList) {
    errors.extend(names::qualified(key).into_iter().map(|m| FieldError::invalid(&at.path, key, m)));
}

/// Refuses bad keys of annotations, and too many of them.
pub fn check_annotations(annotations: &At<'_>, errors: &mut ErrorList) {
    let mut bytes = 0;
    for (key, value) in annotations.entries() {
        let wrong = names::qualified(&key.to_lowercase());
        errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&annotations.path, key, m)));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(&annotations.path, ANNOTATIONS_BYTES_MAX));
    }
}

fn check_owners(owners: &At<'_>, errors: &mut ErrorList) {
    let mut controller: Option<String> = None;
    for owner in owners.items() {
        let version = owner.get("apiVersion");
        if version.is_empty() {
            errors.push(version.required("must not be empty"));
        } else if version.str().split('/').count() > 2 || version.str().ends_with('/') {
            errors.push(version.invalid("must be <group>/<version> or <version>"));
        }
        for field in ["kind", "name", "uid"] {
            let field = owner.get(field);
            if field.is_empty() {
                errors.push(field.required("must not be empty"));
            }
        }
        if version.str() == "v1" && owner.get("kind").str() == "Event" {
            errors.push(owner.invalid("/v1, Kind=Event is disallowed from being an owner"));
        }
        if owner.get("controller").is_true() {
            let this = format!("{}/{}", owner.get("kind").str(), owner.get("name").str());
            if let Some(first) = &controller {
                errors.push(owners.invalid(format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                )));
            } else {
                controller = Some(this);
            }
        }
    }
}

/// Whether a finalizer without a domain is one that the system knows.
fn is_standard_finalizer(name: &str) -> bool {
    matches!(name, "kubernetes" | "orphan" | "foregroundDeletion")
}

/// Refuses a bad finalizer, at the path upstream names.
pub fn check_finalizer(finalizer: &At<'_>, list_path: &str, errors: &mut ErrorList) {
    finalizer.with_path(list_path).check(names::qualified, errors);
    if !finalizer.str().contains('/') && !is_standard_finalizer(finalizer.str()) {
        errors.push(finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified"));
    }
}

fn check_finalizers(finalizers: &At<'_>, errors: &mut ErrorList) {
    for finalizer in finalizers.items() {
        check_finalizer(&finalizer, &finalizers.path, errors);
    }
    let has = |name: &str| finalizers.items().any(|f| f.str() == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(finalizers.invalid("finalizer orphan and foregroundDeletion cannot be both set"));
    }
}

/// Refuses a bad LabelSelector; an absent one is good.
pub fn check_label_selector(selector: &At<'_>, errors: &mut ErrorList) {
    check_labels(&selector.get("matchLabels"), errors);
    for expression in selector.get("matchExpressions").items() {
        let (values, operator) = (expression.get("values"), expression.get("operator"));
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(
                    values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(FieldError::invalid(
                &operator.path,
                operator.str(),
                "not a valid selector operator",
            )),
        }
        let key = expression.get("key");
        check_label_key(key.str(), &key, errors);
        values.items().for_each(|value| value.check(names::label_value, errors));
    }
}

/// Whether a LabelSelector has no condition.
pub fn is_empty_selector(selector: &At<'_>) -> bool {
    selector.get("matchLabels").is_empty() && selector.get("matchExpressions").is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(metadata: Value, namespaced: bool) -> Vec<String> {
        let object = json!({"metadata": metadata});
        let errors = check(&object, namespaced, names::dns_subdomain, |_, _| {});
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn bad_metadata_is_refused_in_upstreams_words() {
        let good = json!({"name": "a", "namespace": "b", "labels": {"x.io/a": "b"}, "annotations": {"A": "any thing"},
            "finalizers": ["orphan", "x.io/y"], "ownerReferences": [{"apiVersion": "apps/v1", "kind": "X", "name": "n", "uid": "u"}]});
        assert_eq!(texts(good, true), Vec::<String>::new());
        let bad = json!({"labels": {"a b": "-"}, "finalizers": ["mine"], "ownerReferences": [{"kind": "X", "uid": "u"}]});
        let found = texts(bad, true);
        let starts = [
            "metadata.name: Required value: name or generateName is required",
            "metadata.namespace: Required value",
            "metadata.labels: Invalid value: \"a b\": name part must consist of",
            "metadata.labels: Invalid value: \"-\": a valid label must be an empty string or",
            "metadata.ownerReferences[0].apiVersion: Required value: must not be empty",
            "metadata.ownerReferences[0].name: Required value: must not be empty",
            "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        for (text, start) in found.iter().zip(starts) {
            assert!(text.starts_with(start), "{text}");
        }
        assert_eq!(
            texts(json!({"name": "a", "namespace": "b"}), false),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
    }

    #[test]
    fn names_and_finalizers_of_the_dying_do_not_change() {
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["x.io/a"]}});
        let new =
            json!({"metadata": {"name": "b", "deletionTimestamp": "t", "finalizers": ["x.io/a", "x.io/b"]}});
        let texts: Vec<_> = check_update(&new, &old, |_, _, _| {}).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x.io/b\"}",
                "metadata.name: Invalid value: \"b\": field is immutable",
            ]
        );
    }
}
