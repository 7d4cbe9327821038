//! The chain of admission: what a cluster adds to objects and refuses, whoever writes them.
//!
//! Every plugin is a function over the request and the object, reading the store's view. Order and
//! names are upstream's. Deliberately absent: webhooks (they will be one more link).

mod certificates;
mod defaults;
mod limits;
mod namespace;
mod node;
mod service_account;

pub use node::restrict_token;
use serde_json::Value;

use super::{Error, Objects, WriteOptions, quota};
use crate::kinds::{Durability, Kind, Subresource};

/// A write on its way.
pub struct Request<'a> {
    pub objects: &'a Objects,
    pub kind: &'a Kind,
    pub subresource: Option<Subresource>,
    pub namespace: &'a str,
    /// `None`: a create.
    pub old: Option<&'a Value>,
    pub options: &'a WriteOptions,
}

impl Request<'_> {
    fn is(&self, group: &str, kind: &str) -> bool {
        self.kind.kind == kind && self.kind.group == group
    }

    fn is_create_of(&self, group: &str, kind: &str) -> bool {
        self.old.is_none() && self.subresource.is_none() && self.is(group, kind)
    }

    /// Whether a pod is given other resources.
    pub fn is_resize(&self) -> bool {
        self.is("", "Pod") && self.subresource == Some(Subresource::Other("resize"))
    }

    fn forbidden(&self, name: &str, message: impl Into<String>) -> Error {
        Error::Forbidden { resource: self.kind.resource(), name: name.to_owned(), message: message.into() }
    }

    fn is_cluster(&self) -> bool {
        self.objects.settings().is_some() && self.kind.durability != Durability::Virtual
    }
}

/// The name that an error tells: the object's, or the prefix it will be made of.
fn name_of(value: &Value) -> &str {
    let meta = &value["metadata"];
    meta["name"].as_str().filter(|n| !n.is_empty()).or(meta["generateName"].as_str()).unwrap_or_default()
}

/// Changes an object before it is validated.
pub fn mutate(request: &Request<'_>, value: &mut Value) -> Result<(), Error> {
    if !request.is_cluster() {
        return Ok(());
    }
    namespace::admit(request, value)?;
    limits::default(request, value);
    service_account::admit(request, value)?;
    certificates::write_down(request, value);
    defaults::priority(request, value)?;
    defaults::tolerations(request, value);
    defaults::storage_class(request, value);
    defaults::ingress_class(request, value);
    defaults::place(request, value);
    defaults::runtime_class(request, value)
}

/// Refuses an object that is valid by itself.
pub fn validate(request: &Request<'_>, value: &Value) -> Result<(), Error> {
    if !request.is_cluster() {
        return Ok(());
    }
    limits::check(request, value)?;
    node::restrict(request, value)?;
    certificates::restrict_subject(request, value)?;
    quota::check(request, value)
}

/// Refuses a delete.
pub fn delete(request: &Request<'_>, name: &str) -> Result<(), Error> {
    if !request.is_cluster() {
        return Ok(());
    }
    namespace::delete(request, name)?;
    node::restrict_delete(request, name)
}

/// Whether the write must be the only one of its kind while it is checked.
pub fn is_counted(request: &Request<'_>) -> bool {
    request.is_cluster() && quota::is_counted(request)
}
