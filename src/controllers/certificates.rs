//! CertificateSigningRequests: approved by themselves where RBAC says so, signed once approved,
//! taken away once done with (`pkg/controller/certificates`).
//!
//! Watches: CertificateSigningRequests. Deliberately absent: `kubernetes.io/legacy-unknown`, which
//! `v1` does not take, and the publishing of trust bundles.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::{Value, json};

use super::{
    plan::{Action, Plan, Target, json},
    runner::{Controller, Round},
};
use crate::{
    clock::rfc3339_seconds,
    kinds::{
        Subresource,
        certificate_request::{CertificateRequest, KUBELET_CLIENT, judge},
        certificate_signing_request::{conditions, request_of},
    },
    objects::{
        Objects, User,
        rbac::{self, Attributes},
    },
    store::Key,
};

const RESOURCE: &str = "certificatesigningrequests.certificates.k8s.io";
/// How long a request stays that has been answered, and one that waits.
const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const WAITING: SignedDuration = SignedDuration::from_hours(24);

type Sign =
    dyn Fn(&CertificateRequest, &[&str], Option<i64>, Timestamp) -> Result<String, String> + Send + Sync;

/// What signs: request, usages, seconds of life, now; the certificate in PEM.
#[derive(Clone)]
pub struct Authority(Arc<Sign>);

impl Authority {
    pub fn new(
        sign: impl Fn(&CertificateRequest, &[&str], Option<i64>, Timestamp) -> Result<String, String>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(sign))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

fn read(objects: &Objects, key: &Key) -> Option<Arc<CertificateSigningRequest>> {
    objects.get_typed::<CertificateSigningRequest>(&key.namespace, &key.name)
}

fn is_true(csr: &Value, kind: &str) -> bool {
    conditions(csr, kind).iter().any(|c| c["status"] == "True")
}

fn usages_of(csr: &Value) -> Vec<&str> {
    csr["spec"]["usages"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn with_condition(csr: &Value, condition: Value) -> Value {
    let mut list = csr["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.push(condition);
    json!({"status": {"conditions": list}})
}

/// Signs what has been approved.
pub struct Signer {
    pub authority: Option<Authority>,
}

impl Controller for Signer {
    fn name(&self) -> &'static str {
        "csrsigning-controller"
    }

    fn primary(&self) -> &'static str {
        RESOURCE
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        match (&self.authority, read(objects, key)) {
            (Some(authority), Some(csr)) => sign(authority, &csr, round.now),
            _ => Plan::default(),
        }
    }
}

fn sign(authority: &Authority, object: &CertificateSigningRequest, now: Timestamp) -> Plan {
    let mut plan = Plan::about(object);
    let csr = json(object);
    let signed = csr["status"]["certificate"].as_str().is_some_and(|c| !c.is_empty());
    if !is_true(&csr, "Approved") || is_true(&csr, "Denied") || is_true(&csr, "Failed") || signed {
        return plan;
    }
    let usages = usages_of(&csr);
    let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
    let Ok(request) = request_of(&csr) else { return plan };
    let refused = match judge(signer, &request, &usages) {
        None => return plan,
        Some(Err(objection)) => Some(objection),
        Some(Ok(())) => None,
    };
    let life = csr["spec"]["expirationSeconds"].as_i64();
    let outcome = match refused {
        Some(objection) => Err(("SignerValidationFailure", objection)),
        None => (authority.0)(&request, &usages, life, now).map_err(|error| ("SigningError", error)),
    };
    plan.merge_status_at(
        object,
        match outcome {
            Ok(certificate) => json!({"status": {"certificate": STANDARD.encode(certificate)}}),
            Err((reason, message)) => with_condition(
                &csr,
                json!({"type": "Failed", "status": "True", "reason": reason, "message": message,
                    "lastUpdateTime": rfc3339_seconds(now)}),
            ),
        },
    );
    plan
}

/// Approves nodes' client certificates for those who may have them.
pub struct Approver;

impl Controller for Approver {
    fn name(&self) -> &'static str {
        "csrapproving-controller"
    }

    fn primary(&self) -> &'static str {
        RESOURCE
    }

    fn plan(&self, objects: &Objects, key: &Key, _round: &Round) -> Plan {
        let Some(csr) = read(objects, key) else { return Plan::default() };
        approve(&csr, |user, subresource| {
            let what = Attributes {
                verb: "create",
                group: "certificates.k8s.io",
                resource: format!("certificatesigningrequests/{subresource}"),
                ..Attributes::default()
            };
            rbac::allowed(objects, user, &what)
        })
    }
}

fn approve(object: &CertificateSigningRequest, may: impl Fn(&User, &str) -> bool) -> Plan {
    let mut plan = Plan::about(object);
    let csr = json(object);
    let decided = !conditions(&csr, "Approved").is_empty() || !conditions(&csr, "Denied").is_empty();
    if decided || csr["spec"]["signerName"] != KUBELET_CLIENT {
        return plan;
    }
    let Ok(request) = request_of(&csr) else { return plan };
    if !matches!(judge(KUBELET_CLIENT, &request, &usages_of(&csr)), Some(Ok(()))) {
        return plan;
    }
    let spec = &object.spec;
    let user = User {
        name: spec.username.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    };
    let message = if user.name == request.common_name && may(&user, "selfnodeclient") {
        "Auto approving self kubelet client certificate after SubjectAccessReview."
    } else if may(&user, "nodeclient") {
        "Auto approving kubelet client certificate after SubjectAccessReview."
    } else {
        return plan;
    };
    let approved =
        json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message});
    plan.actions.push(Action::Merge {
        target: Target::of(object),
        subresource: Some(Subresource::Other("approval")),
        at: object.metadata.resource_version.clone(),
        patch: with_condition(&csr, approved),
    });
    plan
}

/// Takes requests away that have been answered or forgotten.
pub struct Cleaner;

impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "csrcleaner-controller"
    }

    fn primary(&self) -> &'static str {
        RESOURCE
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        read(objects, key).map_or_else(Plan::default, |csr| clean(&csr, round.now))
    }
}

fn clean(object: &CertificateSigningRequest, now: Timestamp) -> Plan {
    let mut plan = Plan::about(object);
    let csr = json(object);
    let updated = |kind: &str| {
        let told = conditions(&csr, kind);
        told.iter().filter_map(|c| c["lastUpdateTime"].as_str()?.parse::<Timestamp>().ok()).max()
    };
    let answered = ["Approved", "Denied", "Failed"].into_iter().filter_map(updated).min();
    let created = object.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let Some(end) = answered.map(|t| t + ANSWERED).or(created.map(|t| t + WAITING)) else { return plan };
    if end > now {
        plan.requeue_at(end, now);
    } else {
        plan.delete(object, None, None);
    }
    plan
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn csr(signer: &str, conditions: &Value) -> CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "system:node:a");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        serde_json::from_value(json!({"metadata": {"name": "c", "creationTimestamp": "2027-01-01T00:00:00Z"},
            "spec": {"request": STANDARD.encode(request), "signerName": signer, "username": "system:node:a",
                "usages": ["client auth", "digital signature"]},
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn patch(plan: &Plan) -> Option<&Value> {
        plan.actions.iter().find_map(|a| match a {
            Action::Merge { patch, .. } => Some(patch),
            _ => None,
        })
    }

    #[test]
    fn what_is_approved_is_signed_or_fails_with_a_reason() {
        let authority = Authority::new(|request, _, _, _| Ok(request.common_name.clone()));
        let now = "2027-01-01T00:00:00Z".parse().unwrap();
        let approved = json!([{"type": "Approved", "status": "True"}]);
        let signed = sign(&authority, &csr(KUBELET_CLIENT, &approved), now);
        assert_eq!(patch(&signed).unwrap()["status"]["certificate"], STANDARD.encode("system:node:a"));
        let serving = sign(&authority, &csr("kubernetes.io/kubelet-serving", &approved), now);
        let failed = &patch(&serving).unwrap()["status"]["conditions"][1];
        assert_eq!(
            (&failed["type"], &failed["reason"]),
            (&json!("Failed"), &json!("SignerValidationFailure"))
        );
        for (signer, conditions) in [(KUBELET_CLIENT, &json!([])), ("example.com/own", &approved)] {
            assert!(sign(&authority, &csr(signer, conditions), now).is_empty());
        }
    }

    #[test]
    fn nodes_certificates_are_approved_for_whom_rbac_allows() {
        let waiting = csr(KUBELET_CLIENT, &json!([]));
        let approved =
            approve(&waiting, |user, part| user.name == "system:node:a" && part == "selfnodeclient");
        let condition = &patch(&approved).unwrap()["status"]["conditions"][0];
        assert_eq!(condition["reason"], "AutoApproved");
        assert!(approve(&waiting, |_, _| false).is_empty());
        assert!(approve(&csr("kubernetes.io/kube-apiserver-client", &json!([])), |_, _| true).is_empty());
    }

    #[test]
    fn a_request_goes_when_it_is_done_with() {
        let at = |text: &str| text.parse().unwrap();
        let answered =
            json!([{"type": "Denied", "status": "True", "lastUpdateTime": "2027-01-01T01:00:00Z"}]);
        for (conditions, now, goes) in [
            (&json!([]), "2027-01-01T23:59:59Z", false),
            (&json!([]), "2027-01-02T00:00:00Z", true),
            (&answered, "2027-01-01T01:59:59Z", false),
            (&answered, "2027-01-01T02:00:00Z", true),
        ] {
            let plan = clean(&csr(KUBELET_CLIENT, conditions), at(now));
            assert_eq!(plan.actions.len(), usize::from(goes), "{now}");
        }
    }
}
