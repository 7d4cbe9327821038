//! CertificateSigningRequests (`pkg/apis/certificates/validation`, `pkg/registry/certificates`).
//!
//! Who may approve and who may sign is the API's to judge; who asked is admission's to write down.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Column, ErrorList, Kind, Strategy, Subresource,
    at::At,
    certificate_request::{CertificateRequest, LEGACY_UNKNOWN, RequestError},
    columns::{self, AGE, NAME, text, text_or},
    human_duration, meta, names,
    registry::row,
};

pub const CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    short_names: &["csr"],
    namespaced: false,
    subresources: &[APPROVAL, Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        prepare_create: |new| new["status"] = json!({}),
        prepare_update: |new, old| {
            super::replace(new, "status", old);
            super::replace(new, "spec", old);
        },
        prepare_status,
        validate: |csr| meta::check(csr, false, names::path_segment, check),
        validate_update: |new, old| check_update(None, new, old),
        validate_part: Some(|part, new, old| check_update(Some(part), new, old)),
        selectable: |csr| {
            vec![("spec.signerName", csr["spec"]["signerName"].as_str().unwrap_or_default().to_owned())]
        },
        cells,
        ..Strategy::WITH_STATUS
    },
    ..row(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        "io.k8s.api.certificates.v1.CertificateSigningRequest",
    )
};

const APPROVAL: Subresource = Subresource::Other("approval");
/// The conditions of an approver, …
const OF_APPROVERS: [&str; 2] = ["Approved", "Denied"];
/// … and those that can only be true and are never taken away.
const LASTING: [&str; 3] = ["Approved", "Denied", "Failed"];
/// The shortest life of a certificate that may be asked for (seconds).
const EXPIRATION_SECONDS_MIN: i64 = 600;
/// Characters of a signer's domain and path.
const DOMAIN_LEN_MAX: usize = 253;
const PATH_LEN_MAX: usize = 253 + 63 + 1;
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The request that an object carries.
pub fn request_of(csr: &Value) -> Result<CertificateRequest, RequestError> {
    let text = csr["spec"]["request"].as_str().unwrap_or_default();
    CertificateRequest::parse(&STANDARD.decode(text).map_err(|_| RequestError::Pem)?)
}

/// The conditions of one type, in order.
pub fn conditions<'a>(csr: &'a Value, kind: &str) -> Vec<&'a Value> {
    csr["status"]["conditions"].as_array().into_iter().flatten().filter(|c| c["type"] == kind).collect()
}

/// A status update says neither who approves nor who denies: those conditions stay as they were,
/// as long as it names them.
fn prepare_status(new: &mut Value, old: &Value) {
    (Strategy::SPEC_AND_STATUS.prepare_status)(new, old);
    for kind in OF_APPROVERS {
        let had: Vec<Value> = conditions(old, kind).into_iter().cloned().collect();
        if conditions(new, kind).len() != had.len() {
            continue;
        }
        let list = new["status"]["conditions"].as_array_mut().into_iter().flatten();
        for (condition, had) in list.filter(|c| c["type"] == kind).zip(had) {
            *condition = had;
        }
    }
}

/// Gives conditions the times that a client has left to the server.
pub fn stamp_conditions(new: &mut Value, old: &Value, now: &str) {
    for condition in new["status"]["conditions"].as_array_mut().into_iter().flatten() {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now.into();
        }
        if condition["lastTransitionTime"].is_null() {
            let before = old["status"]["conditions"].as_array().into_iter().flatten().find(|c| {
                c["type"] == condition["type"]
                    && c["status"] == condition["status"]
                    && !c["lastTransitionTime"].is_null()
            });
            condition["lastTransitionTime"] =
                before.map_or_else(|| now.into(), |c| c["lastTransitionTime"].clone());
        }
    }
}

fn check(csr: &At<'_>, errors: &mut ErrorList) {
    let spec = csr.get("spec");
    if let Err(error) = request_of(csr.value) {
        errors.push(spec.get("request").invalid(error.to_string()));
    }
    let usages = spec.get("usages");
    if usages.is_empty() {
        errors.push(usages.required("usages must be provided"));
    }
    for (index, usage) in usages.items().enumerate() {
        usage.check_one_of(USAGES, errors);
        if usages.items().take(index).any(|u| u.str() == usage.str()) {
            errors.push(usage.duplicate());
        }
    }
    let signer = spec.get("signerName");
    if signer.str() == LEGACY_UNKNOWN {
        errors.push(signer.invalid("the legacy signerName is not allowed via this API version"));
    } else {
        check_signer(&signer, errors);
    }
    let seconds = spec.get("expirationSeconds");
    if seconds.int().is_some_and(|s| s < EXPIRATION_SECONDS_MIN) {
        errors.push(seconds.invalid(format!(
            "may not specify a duration less than {EXPIRATION_SECONDS_MIN} seconds (10 minutes)"
        )));
    }
    check_conditions(&csr.get("status").get("conditions"), errors);
    let certificate = csr.get("status").get("certificate");
    if let Err(detail) = check_certificate(certificate.str()) {
        errors.push(super::FieldError::invalid(certificate.path, "<certificate data>", detail));
    }
}

fn check_signer(signer: &At<'_>, errors: &mut ErrorList) {
    if !signer.check_required(errors) {
        return;
    }
    let segments: Vec<&str> = signer.str().split('/').collect();
    let [domain, path] = segments.as_slice() else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.push(signer.invalid(detail));
    };
    let mut refuse = |segment: &str, detail: String| {
        errors.push(super::FieldError::invalid(signer.path.clone(), segment, detail));
    };
    for label in domain.split('.') {
        for detail in names::dns_label(label) {
            refuse(domain, format!("validating label {label:?}: {detail}"));
        }
    }
    if !domain.contains('.') {
        refuse(domain, "should be a domain with at least two segments separated by dots".to_owned());
    }
    for label in path.split('.') {
        for detail in names::dns_subdomain(label) {
            refuse(path, format!("validating label {label:?}: {detail}"));
        }
    }
    for (segment, longest) in [(domain, DOMAIN_LEN_MAX), (path, PATH_LEN_MAX)] {
        if segment.len() > longest {
            errors.push(super::FieldError::too_long(signer.path.clone(), longest));
        }
    }
}

fn check_conditions(list: &At<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for condition in list.items() {
        let kind = condition.get("type").str();
        condition.get("type").check_required(errors);
        let possible: &[&str] =
            if LASTING.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        condition.get("status").check_required_one_of(possible, errors);
        let other = OF_APPROVERS.iter().find(|k| OF_APPROVERS.contains(&kind) && **k != kind);
        if other.is_some_and(|other| seen.contains(other)) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.push(super::FieldError::invalid(list.path.clone(), kind, detail));
        }
        if seen.contains(&kind) {
            errors.push(condition.get("type").duplicate());
        }
        seen.push(kind);
    }
}

/// One or more PEM blocks, all of them certificates.
fn check_certificate(data: &str) -> Result<(), String> {
    if data.is_empty() {
        return Ok(());
    }
    let text = STANDARD.decode(data).map_err(|e| e.to_string())?;
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(&text) {
        let block = block.map_err(|e| e.to_string())?;
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        block.parse_x509().map_err(|e| e.to_string())?;
        blocks += 1;
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}

fn check_update(part: Option<Subresource>, new: &Value, old: &Value) -> ErrorList {
    let list = "status.conditions";
    meta::check_update(new, old, |new, old, errors| {
        for kind in LASTING {
            let (now, before) = (conditions(new.value, kind), conditions(old.value, kind));
            if now.len() < before.len() {
                let detail = format!("updates may not remove a condition of type {kind:?}");
                errors.push(super::FieldError::forbidden(list, detail));
            } else if now != before && OF_APPROVERS.contains(&kind) && part != Some(APPROVAL) {
                let what = if now.len() > before.len() { "add" } else { "modify" };
                let detail = format!("updates may not {what} a condition of type {kind:?}");
                errors.push(super::FieldError::forbidden(list, detail));
            }
        }
        let certificate = new.get("status").get("certificate");
        let had = old.get("status").get("certificate");
        if certificate.str() != had.str() {
            if part != Some(Subresource::Status) {
                errors.push(certificate.forbidden("updates may not set certificate content"));
            } else if !had.str().is_empty() {
                errors.push(certificate.forbidden("updates may not modify existing certificate content"));
            }
        }
    })
}

const COLUMNS: &[Column] = &[
    NAME,
    AGE,
    text("SignerName", "spec.signerName"),
    text("Requestor", "spec.request"),
    text("RequestedDuration", "spec.expirationSeconds"),
    text("Condition", "status.conditions"),
];

fn cells(csr: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&csr["spec"], &csr["status"]);
    let has = |kind: &str| {
        status["conditions"].as_array().is_some_and(|list| list.iter().any(|c| c["type"] == kind))
    };
    let mut condition = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if status["certificate"].as_str().is_some_and(|c| !c.is_empty()) {
        condition.push_str(",Issued");
    }
    let duration = spec["expirationSeconds"]
        .as_i64()
        .map_or_else(|| "<none>".to_owned(), |s| human_duration(jiff::SignedDuration::from_secs(s)));
    vec![
        columns::name(csr),
        columns::age(csr, now).into(),
        text_or(&spec["signerName"], "<none>"),
        text_or(&spec["username"], ""),
        duration.into(),
        condition.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::certificate_request::tests::request;

    fn csr(change: impl Fn(&mut Value)) -> Value {
        let request = STANDARD.encode(request("jane", "ops", None));
        let mut csr = json!({"metadata": {"name": "any:name"}, "spec": {"request": request,
            "signerName": "example.com/own", "usages": ["client auth"]}});
        change(&mut csr);
        csr
    }

    fn errors(list: ErrorList) -> Vec<String> {
        list.into_iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn a_request_is_checked_whole() {
        let validate = CERTIFICATE_SIGNING_REQUEST.strategy.validate;
        assert_eq!(errors(validate(&csr(|_| {}))), Vec::<String>::new());
        type Change = fn(&mut Value);
        let cases: &[(Change, &str)] = &[
            (
                |c| c["spec"]["request"] = STANDARD.encode("x").into(),
                "PEM block type must be CERTIFICATE REQUEST",
            ),
            (|c| c["spec"]["usages"] = json!([]), "spec.usages: Required value: usages must be provided"),
            (|c| c["spec"]["usages"] = json!(["fun"]), "spec.usages[0]: Unsupported value: \"fun\""),
            (|c| c["spec"]["usages"] = json!(["any", "any"]), "spec.usages[1]: Duplicate value: \"any\""),
            (|c| c["spec"]["signerName"] = LEGACY_UNKNOWN.into(), "the legacy signerName is not allowed"),
            (|c| c["spec"]["signerName"] = "x/y".into(), "should be a domain with at least two segments"),
            (|c| c["spec"]["expirationSeconds"] = 599.into(), "less than 600 seconds (10 minutes)"),
            (
                |c| c["status"] = json!({"certificate": STANDARD.encode("x")}),
                "must contain at least one CERTIFICATE PEM block",
            ),
        ];
        for (change, text) in cases {
            let found = errors(validate(&csr(change)));
            assert!(found.len() == 1 && found[0].contains(text), "{text}: {found:?}");
        }
    }

    #[test]
    fn only_approvers_approve_and_only_signers_sign() {
        let with = |list: Value| csr(|c| c["status"] = json!({"conditions": list.clone()}));
        let approved = json!({"type": "Approved", "status": "True"});
        let (bare, given) = (csr(|_| {}), with(json!([approved])));
        assert_eq!(errors(check_update(Some(APPROVAL), &given, &bare)), Vec::<String>::new());
        for (part, new, old, text) in [
            (Some(Subresource::Status), &given, &bare, "may not add a condition of type \"Approved\""),
            (Some(APPROVAL), &bare, &given, "may not remove a condition of type \"Approved\""),
        ] {
            assert!(errors(check_update(part, new, old))[0].contains(text), "{text}");
        }
        let both = with(json!([approved, {"type": "Denied", "status": "True"}]));
        let found = errors((CERTIFICATE_SIGNING_REQUEST.strategy.validate)(&both));
        assert!(found[0].ends_with("Approved and Denied conditions are mutually exclusive"), "{found:?}");
        let signed = csr(|c| c["status"] = json!({"certificate": "QQ=="}));
        assert_eq!(errors(check_update(Some(Subresource::Status), &signed, &bare)), Vec::<String>::new());
        assert!(errors(check_update(Some(APPROVAL), &signed, &bare))[0].contains("may not set certificate"));
    }

    #[test]
    fn conditions_are_stamped_once() {
        let mut new = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        stamp_conditions(&mut new, &Value::Null, "2026-01-01T00:00:00Z");
        let old = new.clone();
        new["status"]["conditions"][0] = json!({"type": "Approved", "status": "True"});
        stamp_conditions(&mut new, &old, "2026-01-02T00:00:00Z");
        let condition = &new["status"]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(condition["lastUpdateTime"], "2026-01-02T00:00:00Z");
    }
}
