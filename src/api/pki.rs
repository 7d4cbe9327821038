//! The cluster's own certificate authority, and what it signs.
//!
//! In: a folder (`<data-dir>/pki`). Out: client and serving certificates, the key of
//! ServiceAccount tokens, kubeconfig files.
//! Invariants: private keys are readable by their owner alone; certificates are valid from long
//! before any board's clock can stand, and the authority outlives the board; serving certificates
//! live in memory only and are made anew when an address appears.
//! Deliberately absent: revocation (a leaked client certificate is answered by a new authority).

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

/// First year in which certificates are valid: before any clock a board may wake up with after
/// its floor is applied.
const VALID_FROM_YEAR: i32 = 2000;
/// Last year of the authority and of everything it signs.
const VALID_UNTIL_YEAR: i32 = 2120;

/// The common name of the certificates that masters serve with.
pub const SERVER_NAME: &str = "kube-apiserver";

/// Why a certificate or key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a usable key or certificate: {detail}")]
    Malformed { path: PathBuf, detail: String },
    #[error("make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate with its key, in PEM.
pub struct Credential {
    pub certificate: String,
    pub key: String,
}

/// The authority.
pub struct Pki {
    folder: PathBuf,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    service_account_key: Vec<u8>,
}

impl Pki {
    /// Opens the authority in `folder`, or makes a new one there.
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        fs::create_dir_all(folder).map_err(|source| PkiError::Write { path: folder.into(), source })?;
        let key_path = folder.join("ca.key");
        let key = read_or_make_key(&key_path)?;
        let certificate_path = folder.join("ca.crt");
        let ca_pem = if let Some(pem) = read(&certificate_path)? {
            pem
        } else {
            let pem = ca_params().self_signed(&key)?.pem();
            write_file(&certificate_path, pem.as_bytes(), 0o644)?;
            pem
        };
        let malformed = |detail: String| PkiError::Malformed { path: certificate_path.clone(), detail };
        let ca_der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| malformed(e.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&ca_der, key).map_err(|e| malformed(e.to_string()))?;
        let account_path = folder.join("sa.key");
        let service_account_key = read_or_make_key(&account_path)?.serialize_der();
        Ok(Self { folder: folder.into(), ca_pem, ca_der, issuer, service_account_key })
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's certificate, DER.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// The P-256 key that signs ServiceAccount tokens, PKCS #8 DER.
    pub fn service_account_key(&self) -> &[u8] {
        &self.service_account_key
    }

    /// A client certificate: `user` is the common name, `group` the organisation.
    pub fn issue_client(&self, user: &str, group: &str) -> Result<Credential, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = leaf_params(ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name = distinguished(user, Some(group));
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Credential { certificate, key: key.serialize_pem() })
    }

    /// A client certificate (PEM) for the key of a request (PKCS #10, PEM), which has to be signed
    /// with that key. Whatever else the request claims is not looked at.
    pub fn sign_client(&self, request: &str, user: &str, group: &str) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request)?;
        let mut params = leaf_params(ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name = distinguished(user, Some(group));
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// A serving certificate for names and addresses, with the key, DER.
    pub fn issue_serving(
        &self,
        names: &BTreeSet<String>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = leaf_params(ExtendedKeyUsagePurpose::ServerAuth);
        params.distinguished_name = distinguished(SERVER_NAME, None);
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok((certificate, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
    }

    /// A certificate for somebody else's server (an external broker) at a host name or address. It is
    /// no certificate of a master: its common name is the host.
    pub fn issue_server(&self, host: &str) -> Result<Credential, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = leaf_params(ExtendedKeyUsagePurpose::ServerAuth);
        params.distinguished_name = distinguished(host, None);
        params.subject_alt_names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.try_into()?),
        });
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Credential { certificate, key: key.serialize_pem() })
    }

    /// Writes a kubeconfig with a fresh administrator's certificate (`kubernetes-admin` of
    /// `system:masters`), readable by its owner alone, unless the one there already trusts this
    /// authority and names this server (a start then writes nothing).
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), PkiError> {
        let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
        let authority = encode(&self.ca_pem);
        if let Some(text) = read(path)?
            && text.contains(&format!("certificate-authority-data: {authority}\n"))
            && text.contains(&format!("server: {server}\n"))
        {
            return Ok(());
        }
        let admin = self.issue_client("kubernetes-admin", "system:masters")?;
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: sampan\n  cluster:\n    \
             certificate-authority-data: {authority}\n    server: {server}\ncontexts:\n- name: sampan\n  \
             context:\n    cluster: sampan\n    user: kubernetes-admin\ncurrent-context: sampan\nusers:\n\
             - name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            encode(&admin.certificate),
            encode(&admin.key),
        );
        write_file(path, text.as_bytes(), 0o600)
    }

    /// The key that signs certificates.
    pub(super) fn authority_key(&self) -> &KeyPair {
        self.issuer.key()
    }

    /// Where the authority lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A fresh key and the request for its certificate, both PEM.
pub fn client_request() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok((key.serialize_pem(), params.serialize_request(&key)?.pem()?))
}

/// How an authority is named in short: the SHA-256 of its certificate (DER), in hexadecimal.
pub fn pin(certificate: &CertificateDer<'_>) -> String {
    crate::ids::hex(ring::digest::digest(&ring::digest::SHA256, certificate).as_ref())
}

/// The common name of a certificate's subject.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

fn distinguished(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(VALID_FROM_YEAR, 1, 1);
    params.not_after = date_time_ymd(VALID_UNTIL_YEAR, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    params.distinguished_name = distinguished("sampan-ca", None);
    params
}

fn leaf_params(usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(VALID_FROM_YEAR, 1, 1);
    params.not_after = date_time_ymd(VALID_UNTIL_YEAR, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Read { path: path.into(), source }),
    }
}

fn read_or_make_key(path: &Path) -> Result<KeyPair, PkiError> {
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem)
            .map_err(|e| PkiError::Malformed { path: path.into(), detail: e.to_string() });
    }
    let key = KeyPair::generate()?;
    write_file(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Writes a file whole or not at all: beside it, synced, renamed over it.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let mut options = fs::OpenOptions::new();
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = options.write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    write().map_err(|source| PkiError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_request_is_signed_for_the_name_we_say() {
        use x509_parser::prelude::{FromDer as _, X509Certificate};

        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(folder.path()).unwrap();
        let (key, _) = client_request().unwrap();
        let mut claims = CertificateParams::default();
        claims.distinguished_name = distinguished("kubernetes-admin", Some("system:masters"));
        let csr = claims.serialize_request(&KeyPair::from_pem(&key).unwrap()).unwrap().pem().unwrap();
        let signed = pki.sign_client(&csr, "system:node:a", "system:nodes").unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(parsed.subject().to_string(), "CN=system:node:a, O=system:nodes");
        assert!(pki.sign_client("no request", "a", "b").is_err());
    }

    #[test]
    fn an_authority_is_kept_and_its_secrets_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = Pki::open(folder.path()).unwrap();
        let again = Pki::open(folder.path()).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.service_account_key(), again.service_account_key());
        let config = folder.path().join("admin.conf");
        first.write_kubeconfig(&config, "https://127.0.0.1:6443").unwrap();
        let text = fs::read_to_string(&config).unwrap();
        again.write_kubeconfig(&config, "https://127.0.0.1:6443").unwrap();
        assert_eq!(text, fs::read_to_string(&config).unwrap(), "an unchanged kubeconfig is left alone");
        for secret in ["ca.key", "sa.key", "admin.conf"] {
            let mode = fs::metadata(folder.path().join(secret)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{secret}");
        }
    }
}
