//! CertificateSigningRequests.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, text, text_or},
    human_duration, meta, names,
    registry::row,
};

pub const CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    short_names: &["csr"],
    namespaced: false,
    subresources: &[Subresource::Other("approval"), Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        prepare_create: |new| new["status"] = json!({}),
        prepare_update: |new, old| {
            super::replace(new, "status", old);
            super::replace(new, "spec", old);
        },
        validate: |csr| meta::check(csr, false, names::dns_subdomain, check),
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

/// The shortest life of a certificate that may be asked for (seconds).
const EXPIRATION_SECONDS_MIN: i64 = 600;

fn check(csr: &At<'_>, errors: &mut ErrorList) {
    let spec = csr.get("spec");
    spec.get("request").check_required(errors);
    let usages = spec.get("usages");
    if usages.is_empty() {
        errors.push(usages.required("usages must be specified"));
    }
    let signer = spec.get("signerName");
    if signer.check_required(errors) {
        let good = signer.str().split_once('/').is_some_and(|(domain, path)| {
            !path.is_empty() && domain.contains('.') && names::dns_subdomain(domain).is_empty()
        });
        if !good {
            errors.push(
                signer.invalid(
                    "must be a fully qualified domain and path of the form 'example.com/signer-name'",
                ),
            );
        }
    }
    let seconds = spec.get("expirationSeconds");
    if seconds.int().is_some_and(|s| s < EXPIRATION_SECONDS_MIN) {
        errors.push(seconds.invalid(format!(
            "may not specify a duration less than {EXPIRATION_SECONDS_MIN} seconds (10 minutes)"
        )));
    }
}

const COLUMNS: &[Column] =
    &[NAME, AGE, text("SignerName"), text("Requestor"), text("RequestedDuration"), text("Condition")];

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
