//! Certificates by the name that a client asks for, exchanged while connections run.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::Error;
use crate::net::routes::IngressCertificate;

/// The name in the certificate that is shown when no other fits.
const DEFAULT_NAME: &str = "sampan.local";

#[derive(Debug, Default)]
struct Known {
    /// What was parsed, so that a table with the same certificates costs nothing.
    parsed: HashMap<IngressCertificate, Arc<CertifiedKey>>,
    by_host: HashMap<String, Arc<CertifiedKey>>,
}

/// The certificates of a server.
#[derive(Debug)]
pub struct Certificates {
    provider: Arc<CryptoProvider>,
    default: Arc<CertifiedKey>,
    known: RwLock<Known>,
}

impl Certificates {
    /// With nothing but a self-signed certificate.
    pub fn new(provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let made = rcgen::generate_simple_self_signed([DEFAULT_NAME.to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let default = CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider)?;
        Ok(Self { provider, default: Arc::new(default), known: RwLock::default() })
    }

    /// Exchanges the certificates; one that is of no use is left out and said.
    pub fn set(&self, certificates: &[IngressCertificate]) {
        let mut next = Known::default();
        for certificate in certificates {
            let before = self.known.read().expect("no holder panics").parsed.get(certificate).cloned();
            let key = match before.map_or_else(|| self.parse(certificate), Ok) {
                Ok(key) => key,
                Err(error) => {
                    tracing::warn!(secret = certificate.secret, %error, "a certificate cannot be used");
                    continue;
                }
            };
            for host in &certificate.hosts {
                next.by_host.entry(host.to_ascii_lowercase()).or_insert_with(|| Arc::clone(&key));
            }
            next.parsed.insert(certificate.clone(), key);
        }
        *self.known.write().expect("no holder panics") = next;
    }

    fn parse(&self, certificate: &IngressCertificate) -> Result<Arc<CertifiedKey>, Error> {
        let chain = CertificateDer::pem_slice_iter(certificate.certificate.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())?;
        Ok(Arc::new(CertifiedKey::from_der(chain, key, &self.provider)?))
    }

    fn of(&self, name: &str) -> Arc<CertifiedKey> {
        let name = name.to_ascii_lowercase();
        let known = self.known.read().expect("no holder panics");
        let wildcard = || known.by_host.get(&format!("*.{}", name.split_once('.')?.1));
        Arc::clone(known.by_host.get(&name).or_else(wildcard).unwrap_or(&self.default))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(hello.server_name().map_or_else(|| Arc::clone(&self.default), |name| self.of(name)))
    }
}

/// TLS for clients: HTTP/2 and HTTP/1.1.
pub fn server_config(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&certificates.provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
