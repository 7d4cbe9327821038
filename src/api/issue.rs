//! Certificates for requests: the subject, the key and the alternative names are the request's,
//! byte for byte; everything else is ours (RFC 5280 section 4).

use rcgen::SigningKey as _;
use x509_parser::{
    certificate::X509Certificate,
    certification_request::X509CertificationRequest,
    extensions::ParsedExtension,
    oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME,
    prelude::{FromDer as _, ParsedCriAttribute},
};

use super::pki::{Pki, PkiError};
use crate::{ids, kinds::certificate_request::CertificateRequest};

/// How far before now a certificate begins (seconds), as upstream.
const BACKDATE_SECONDS: i64 = 300;
/// The life of a certificate that asks for none, and the longest there is (seconds): a year.
const LIFE_SECONDS_MAX: i64 = 365 * 24 * 3600;
const LIFE_SECONDS_MIN: i64 = 600;
const SERIAL_BYTES: usize = 16;
/// From this year on times are written with four digits (RFC 5280 section 4.1.2.5).
const GENERALIZED_FROM_YEAR: i16 = 2050;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const EXPLICIT_0: u8 = 0xa0;
const EXPLICIT_3: u8 = 0xa3;
const CONTEXT_0: u8 = 0x80;
/// `ecdsa-with-SHA256`
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
const DIGITAL_SIGNATURE_BIT: u8 = 0x80;
const KEY_ENCIPHERMENT_BIT: u8 = 0x20;

/// A DER element of pieces.
fn der(tag: u8, pieces: &[&[u8]]) -> Vec<u8> {
    let length: usize = pieces.iter().map(|p| p.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        out.push(0x80 | (bytes.len() - zeros) as u8);
        out.extend_from_slice(&bytes[zeros..]);
    }
    out.extend(pieces.concat());
    out
}

fn time(at: jiff::Timestamp) -> Vec<u8> {
    let at = at.to_zoned(jiff::tz::TimeZone::UTC);
    let (tag, format) = if at.year() < GENERALIZED_FROM_YEAR {
        (UTC_TIME, "%y%m%d%H%M%SZ")
    } else {
        (GENERALIZED_TIME, "%Y%m%d%H%M%SZ")
    };
    der(tag, &[at.strftime(format).to_string().as_bytes()])
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let flag: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    der(SEQUENCE, &[&der(OBJECT_ID, &[id]), flag, &der(OCTET_STRING, &[value])])
}

/// The request's alternative names, as it wrote them.
fn alternative_names<'a>(request: &'a X509CertificationRequest<'_>) -> Option<&'a [u8]> {
    request.certification_request_info.iter_attributes().find_map(|attribute| {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else { return None };
        asked.extensions.iter().find(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME).map(|e| e.value)
    })
}

impl Pki {
    /// The certificate (PEM) that a request asks for, for the given usages (`client auth`,
    /// `server auth`, `digital signature`, `key encipherment`; others are not granted).
    pub fn sign_request(
        &self,
        request: &CertificateRequest,
        usages: &[&str],
        life_seconds: Option<i64>,
        now: jiff::Timestamp,
    ) -> Result<String, PkiError> {
        let malformed = |detail: String| PkiError::Malformed { path: self.folder().join("ca.crt"), detail };
        let (_, asked) =
            X509CertificationRequest::from_der(&request.der).map_err(|e| malformed(e.to_string()))?;
        let (_, authority) =
            X509Certificate::from_der(self.ca_der()).map_err(|e| malformed(e.to_string()))?;
        let life = life_seconds.unwrap_or(LIFE_SECONDS_MAX).clamp(LIFE_SECONDS_MIN, LIFE_SECONDS_MAX);
        let end = (now.as_second() + life).min(authority.validity().not_after.timestamp());
        let at = |second: i64| jiff::Timestamp::from_second(second).map_err(|e| malformed(e.to_string()));

        let bit = |usage: &str, bit: u8| if usages.contains(&usage) { bit } else { 0 };
        let bits =
            bit("digital signature", DIGITAL_SIGNATURE_BIT) | bit("key encipherment", KEY_ENCIPHERMENT_BIT);
        let purposes: Vec<Vec<u8>> = [("server auth", SERVER_AUTH), ("client auth", CLIENT_AUTH)]
            .into_iter()
            .filter(|(usage, _)| usages.contains(usage))
            .map(|(_, id)| der(OBJECT_ID, &[id]))
            .collect();
        let mut extensions = Vec::new();
        if bits != 0 {
            let unused = bits.trailing_zeros() as u8;
            extensions.push(extension(KEY_USAGE, true, &der(BIT_STRING, &[&[unused, bits]])));
        }
        extensions.push(extension(EXTENDED_KEY_USAGE, false, &der(SEQUENCE, &[&purposes.concat()])));
        extensions.push(extension(BASIC_CONSTRAINTS, true, &der(SEQUENCE, &[])));
        let own_key = authority.iter_extensions().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
        if let Some(id) = own_key {
            let value = der(SEQUENCE, &[&der(CONTEXT_0, &[id])]);
            extensions.push(extension(AUTHORITY_KEY_ID, false, &value));
        }
        if let Some(names) = alternative_names(&asked) {
            extensions.push(extension(SUBJECT_ALT_NAME, false, names));
        }

        let mut serial = ids::random_bytes::<SERIAL_BYTES>();
        // Positive, and of this length.
        serial[0] = serial[0] & 0x7f | 0x40;
        let algorithm = der(SEQUENCE, &[&der(OBJECT_ID, &[ECDSA_SHA256])]);
        let subject = &asked.certification_request_info;
        let body = der(
            SEQUENCE,
            &[
                &der(EXPLICIT_0, &[&der(INTEGER, &[&[2]])]),
                &der(INTEGER, &[&serial]),
                &algorithm,
                authority.subject().as_raw(),
                &der(SEQUENCE, &[&time(at(now.as_second() - BACKDATE_SECONDS)?), &time(at(end)?)]),
                subject.subject.as_raw(),
                subject.subject_pki.raw,
                &der(EXPLICIT_3, &[&der(SEQUENCE, &[&extensions.concat()])]),
            ],
        );
        let signature = self.authority_key().sign(&body)?;
        let whole = der(SEQUENCE, &[&body, &algorithm, &der(BIT_STRING, &[&[0], &signature])]);
        Ok(pem(&whole))
    }
}

/// A certificate as text (RFC 7468).
fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    use super::*;

    #[test]
    fn a_certificate_is_what_was_asked_for_and_vouched_for_by_us() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(folder.path()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "jane");
        params.distinguished_name.push(DnType::OrganizationName, "ops");
        params.subject_alt_names.push(SanType::DnsName("a.example".try_into().unwrap()));
        let text = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let request = CertificateRequest::parse(text.as_bytes()).unwrap();
        let now: jiff::Timestamp = "2027-01-02T03:04:05Z".parse().unwrap();
        for (usages, seconds, life) in [
            (&["client auth", "digital signature"][..], Some(3600), 3600),
            (&["server auth", "key encipherment"][..], Some(1), LIFE_SECONDS_MIN),
            (&["client auth"][..], None, LIFE_SECONDS_MAX),
        ] {
            let signed = pki.sign_request(&request, usages, seconds, now).unwrap();
            let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
            let (rest, parsed) = X509Certificate::from_der(&der).unwrap();
            assert!(rest.is_empty());
            let (_, authority) = X509Certificate::from_der(pki.ca_der()).unwrap();
            parsed.verify_signature(Some(authority.public_key())).unwrap();
            assert!(parsed.subject().to_string().contains("CN=jane"));
            assert_eq!(parsed.validity().not_before.timestamp(), now.as_second() - BACKDATE_SECONDS);
            assert_eq!(parsed.validity().not_after.timestamp(), now.as_second() + life);
            assert!(!parsed.is_ca() && parsed.subject_alternative_name().unwrap().is_some());
            let purposes = parsed.extended_key_usage().unwrap().unwrap().value;
            assert_eq!(purposes.client_auth, usages.contains(&"client auth"));
            assert_eq!(purposes.server_auth, usages.contains(&"server auth"));
        }
    }
}
