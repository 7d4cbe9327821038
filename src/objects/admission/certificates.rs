//! CertificateSigningRequests: who asks is written down by us, and nobody asks for the
//! administrators' group (CertificateSubjectRestriction).

use serde_json::{Value, json};

use super::{Request, name_of};
use crate::{
    clock::rfc3339_seconds,
    kinds::{
        certificate_request,
        certificate_signing_request::{request_of, stamp_conditions},
        remove,
    },
    objects::{Error, rbac::MASTERS},
};

const GROUP: &str = "certificates.k8s.io";
const KIND: &str = "CertificateSigningRequest";

/// Of a new request: the user who asks; of a changed one: the times of its conditions.
pub fn write_down(request: &Request<'_>, csr: &mut Value) {
    if !request.is(GROUP, KIND) {
        return;
    }
    let Some(old) = request.old else {
        let user = &request.options.user;
        let spec = &mut csr["spec"];
        spec["username"] = user.name.as_str().into();
        spec["groups"] = json!(user.groups);
        for (field, value) in [("uid", json!(user.uid)), ("extra", json!(user.extra))] {
            let empty =
                value.as_str() == Some("") || value.as_object().is_some_and(serde_json::Map::is_empty);
            if empty {
                remove(spec, field);
            } else {
                spec[field] = value;
            }
        }
        return;
    };
    if request.subresource.is_some() {
        stamp_conditions(csr, old, &rfc3339_seconds(request.objects.clock().now()));
    }
}

pub fn restrict_subject(request: &Request<'_>, csr: &Value) -> Result<(), Error> {
    if !request.is_create_of(GROUP, KIND) || csr["spec"]["signerName"] != certificate_request::API_CLIENT {
        return Ok(());
    }
    let asked = request_of(csr).map_err(|error| request.forbidden(name_of(csr), error.to_string()))?;
    if asked.organizations.iter().any(|group| group == MASTERS) {
        let message =
            format!("use of {} signer with {MASTERS} group is not allowed", certificate_request::API_CLIENT);
        return Err(request.forbidden(name_of(csr), message));
    }
    Ok(())
}
