//! NamespaceLifecycle: objects need a namespace that is not on its way out.

use serde_json::Value;

use super::{Request, name_of};
use crate::{
    kinds::{FieldError, registry},
    objects::Error,
};

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub fn admit(request: &Request<'_>, value: &Value) -> Result<(), Error> {
    if !request.kind.namespaced || request.old.is_some() {
        return Ok(());
    }
    let kind = registry::of::<k8s_openapi::api::core::v1::Namespace>();
    let namespace = request.objects.get(kind, "", request.namespace)?;
    if namespace.meta.deleting {
        return Err(Error::Terminating {
            resource: request.kind.resource(),
            name: name_of(value).to_owned(),
            namespace: request.namespace.to_owned(),
        });
    }
    Ok(())
}

pub fn delete(request: &Request<'_>, name: &str) -> Result<(), Error> {
    if request.is("", "Namespace") && IMMORTAL.contains(&name) {
        return Err(request.forbidden(name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// A field error as a refusal of the object.
pub fn invalid(request: &Request<'_>, value: &Value, error: FieldError) -> Error {
    Error::Invalid {
        kind: request.kind.kind.to_owned(),
        name: name_of(value).to_owned(),
        errors: vec![error],
    }
}
