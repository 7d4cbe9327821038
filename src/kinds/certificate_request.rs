//! Certificate requests (PKCS #10, RFC 2986) as CertificateSigningRequests carry them, and what
//! upstream's own signers ask of them (`pkg/apis/certificates/helpers.go`).
//!
//! Pure. In: the PEM text. Out: whom and what it names, once its own signature has been verified.

use std::net::IpAddr;

use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
    prelude::FromDer as _,
};

/// The signers of every cluster.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

const NODE_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";

/// A request's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateRequest {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// The whole request, DER.
    pub der: Vec<u8>,
}

/// Why bytes are no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("x509: malformed certificate request: {0}")]
    Malformed(String),
    #[error("x509: the signature of the certificate request is wrong")]
    Signature,
}

impl CertificateRequest {
    /// Reads a request (PEM) and verifies that it is signed with its own key.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let (block, _) = Pem::read(std::io::Cursor::new(pem)).map_err(|_| RequestError::Pem)?;
        if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(RequestError::Pem);
        }
        let (_, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|e| RequestError::Malformed(e.to_string()))?;
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let subject = &request.certification_request_info.subject;
        let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            name.as_str().map(str::to_owned).map_err(|e| RequestError::Malformed(e.to_string()))
        };
        let mut found = Self {
            common_name: subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default(),
            organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
            ..Self::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => found.dns.push((*name).to_owned()),
                    GeneralName::RFC822Name(name) => found.emails.push((*name).to_owned()),
                    GeneralName::URI(name) => found.uris.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => found.addresses.push(address(bytes)?),
                    _ => {}
                }
            }
        }
        found.der.clone_from(&block.contents);
        Ok(found)
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, RequestError> {
    let malformed = || RequestError::Malformed("cannot parse IP address of length".to_owned());
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).map(IpAddr::from).map_err(|_| malformed()),
        16 => <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| malformed()),
        _ => Err(malformed()),
    }
}

/// Whether a signer of the cluster signs the request: `None` when it is none of the cluster's own,
/// else its objection, if it has one.
pub fn judge(signer: &str, request: &CertificateRequest, usages: &[&str]) -> Option<Result<(), String>> {
    match signer {
        API_CLIENT => Some(judge_client(usages)),
        KUBELET_CLIENT => Some(judge_kubelet(request, usages, false)),
        KUBELET_SERVING => Some(judge_kubelet(request, usages, true)),
        _ => None,
    }
}

fn judge_client(usages: &[&str]) -> Result<(), String> {
    for usage in usages {
        if !matches!(*usage, "digital signature" | "key encipherment" | "client auth") {
            return Err(format!("invalid usage for client certificate: {usage}"));
        }
    }
    if usages.contains(&"client auth") {
        Ok(())
    } else {
        Err("missing required usage for client certificate: client auth".to_owned())
    }
}

fn judge_kubelet(request: &CertificateRequest, usages: &[&str], serving: bool) -> Result<(), String> {
    let refuse = |text: &str| Err(text.to_owned());
    if request.organizations != [NODES_GROUP] {
        return refuse("subject organization is not system:nodes");
    }
    if serving && request.dns.is_empty() && request.addresses.is_empty() {
        return refuse("DNS or IP subjectAltName is required");
    }
    if !serving && !request.dns.is_empty() {
        return refuse("DNS subjectAltNames are not allowed");
    }
    if !request.emails.is_empty() {
        return refuse("Email subjectAltNames are not allowed");
    }
    if !serving && !request.addresses.is_empty() {
        return refuse("IP subjectAltNames are not allowed");
    }
    if !request.uris.is_empty() {
        return refuse("URI subjectAltNames are not allowed");
    }
    if !request.common_name.starts_with(NODE_PREFIX) {
        return refuse("subject common name does not begin with system:node:");
    }
    let own = if serving { "server auth" } else { "client auth" };
    let mut given = usages.to_vec();
    given.sort_unstable();
    let (mut without, mut with) =
        (vec!["digital signature", own], vec!["key encipherment", "digital signature", own]);
    without.sort_unstable();
    with.sort_unstable();
    if given == without || given == with {
        Ok(())
    } else {
        Err(format!("usages did not match [{}]", with.join(" ")))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    /// A request for a name of some groups, with a DNS name.
    pub fn request(common_name: &str, group: &str, dns: Option<&str>) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params
            .subject_alt_names
            .extend(dns.map(|name| SanType::DnsName(name.try_into().expect("a DNS name"))));
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_says_what_it_names_and_is_signed() {
        let pem = request("jane", "ops", Some("a.example"));
        let parsed = CertificateRequest::parse(pem.as_bytes()).unwrap();
        assert_eq!((parsed.common_name.as_str(), parsed.organizations.len()), ("jane", 1));
        assert_eq!(parsed.dns, ["a.example"]);
        let mut der = parsed.der;
        let last = der.len() - 1;
        der[last] ^= 1;
        let text = STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let (begin, end) = ("-----BEGIN CERTIFICATE REQUEST-----\n", "\n-----END CERTIFICATE REQUEST-----\n");
        let broken = format!("{begin}{}{end}", lines.join("\n"));
        assert_eq!(CertificateRequest::parse(broken.as_bytes()), Err(RequestError::Signature));
        assert_eq!(CertificateRequest::parse(b"no"), Err(RequestError::Pem));
    }

    #[test]
    fn signers_object_to_what_is_not_theirs() {
        let parse = |name: &str, group: &str, dns| {
            CertificateRequest::parse(request(name, group, dns).as_bytes()).unwrap()
        };
        let node = |dns| parse("system:node:a", "system:nodes", dns);
        let client = ["digital signature", "client auth"];
        let serving = ["server auth", "key encipherment", "digital signature"];
        type Verdict = Option<Result<(), &'static str>>;
        let cases: &[(&str, CertificateRequest, &[&str], Verdict)] = &[
            (API_CLIENT, parse("jane", "ops", None), &client, Some(Ok(()))),
            (
                API_CLIENT,
                parse("jane", "ops", None),
                &serving,
                Some(Err("invalid usage for client certificate: server auth")),
            ),
            (KUBELET_CLIENT, node(None), &client, Some(Ok(()))),
            (
                KUBELET_CLIENT,
                parse("jane", "ops", None),
                &client,
                Some(Err("subject organization is not system:nodes")),
            ),
            (KUBELET_CLIENT, node(Some("a")), &client, Some(Err("DNS subjectAltNames are not allowed"))),
            (KUBELET_SERVING, node(Some("a")), &serving, Some(Ok(()))),
            (KUBELET_SERVING, node(None), &serving, Some(Err("DNS or IP subjectAltName is required"))),
            ("example.com/own", node(None), &client, None),
        ];
        for (signer, request, usages, verdict) in cases {
            let got = judge(signer, request, usages);
            assert_eq!(got, verdict.map(|v| v.map_err(str::to_owned)), "{signer}");
        }
    }
}
