//! Namespaces.

use serde_json::{Value, json};

use super::{
    Kind, Strategy, Subresource,
    columns::{self, AGE, NAME, text, text_or},
    edit::{child, set_default_empty},
    meta, names,
    registry::row,
};

pub const NAMESPACE: Kind = Kind {
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[Subresource::Other("finalize"), Subresource::Status],
    columns: &[NAME, text("Status", "The status of the namespace"), AGE],
    strategy: Strategy {
        default,
        prepare_create: |namespace| {
            namespace["status"] = json!({"phase": "Active"});
            let finalizers = child(child(namespace, "spec"), "finalizers");
            if !finalizers.as_array().is_some_and(|list| list.iter().any(|f| f == "kubernetes")) {
                let mut list = finalizers.as_array().cloned().unwrap_or_default();
                list.push("kubernetes".into());
                *finalizers = list.into();
            }
        },
        prepare_update: |new, old| {
            super::replace(new, "status", old);
            super::replace(new, "spec", old);
        },
        validate: |namespace| {
            meta::check(namespace, false, names::dns_label, |namespace, errors| {
                let finalizers = namespace.get("spec").get("finalizers");
                for finalizer in finalizers.items() {
                    meta::check_finalizer(&finalizer.with_path(&finalizers.path), &finalizers.path, errors);
                }
            })
        },
        validate_update: |new, old| {
            meta::check_update(new, old, |new, _, errors| {
                let phase = new.get("status").get("phase");
                let dying = new.get("metadata").get("deletionTimestamp").is_set();
                let (must, not) = if dying { ("Terminating", "not empty") } else { ("Active", "empty") };
                if phase.str() != must {
                    let shown = phase.with_path("status.Phase");
                    errors
                        .push(shown.invalid(format!("may only be '{must}' if `deletionTimestamp` is {not}")));
                }
            })
        },
        selectable: |namespace| {
            let phase = namespace["status"]["phase"].as_str().unwrap_or_default();
            vec![("status.phase", phase.to_owned()), ("name", text_of_name(namespace))]
        },
        cells: |namespace, now| {
            vec![
                columns::name(namespace),
                text_or(&namespace["status"]["phase"], ""),
                columns::age(namespace, now).into(),
            ]
        },
        ..Strategy::WITH_STATUS
    },
    ..row("", "v1", "Namespace", "namespaces", "namespace", "io.k8s.api.core.v1.Namespace")
};

fn text_of_name(namespace: &Value) -> String {
    namespace["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The label by which NetworkPolicies and the like select a namespace by its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn default(namespace: &mut Value) {
    child(namespace, "spec");
    let phase = if namespace["metadata"]["deletionTimestamp"].is_null() { "Active" } else { "Terminating" };
    let status = child(namespace, "status");
    set_default_empty(status, "phase", "Active");
    status["phase"] = phase.into();
    let name = namespace["metadata"]["name"].clone();
    if name.as_str().is_some_and(|n| !n.is_empty()) {
        child(child(namespace, "metadata"), "labels")[NAME_LABEL] = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_active_and_labelled() {
        let mut namespace = json!({"metadata": {"name": "shop"}});
        (NAMESPACE.strategy.prepare_create)(&mut namespace);
        default(&mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "shop", "labels": {"kubernetes.io/metadata.name": "shop"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        assert_eq!((NAMESPACE.strategy.validate)(&namespace), []);
        assert_eq!((NAMESPACE.strategy.validate)(&json!({"metadata": {"name": "a.b"}})).len(), 1);
    }
}
