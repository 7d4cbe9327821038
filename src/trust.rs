//! Whom a TLS client believes besides the well-known authorities: a judge of one's own, or anybody.
//! [`client_config`] is encrypted, the peer not verified. Ingress speaks so to
//! backends of the `backend-protocol: HTTPS` annotation, the API's proxy and the probes to what pods
//! serve (pods have certificates of their own making), the image client to registries that the user
//! has called insecure.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What becomes of a server's certificate: its own and the rest of its chain, the name it was reached
/// by, the OCSP response, the time.
pub type Verdict = dyn Fn(
        &CertificateDer<'_>,
        &[CertificateDer<'_>],
        &ServerName<'_>,
        &[u8],
        UnixTime,
    ) -> Result<ServerCertVerified, Error>
    + Send
    + Sync;

/// Asks a function about a server's certificate. That the server has its key is always verified.
pub struct Judge {
    provider: Arc<CryptoProvider>,
    verdict: Box<Verdict>,
}

impl Judge {
    pub fn new(provider: Arc<CryptoProvider>, verdict: Box<Verdict>) -> Arc<Self> {
        Arc::new(Self { provider, verdict })
    }
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Judge")
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.verdict)(own, rest, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A client that believes anybody; `alpn` are the protocols offered, the preferred one first.
pub fn client_config(provider: Arc<CryptoProvider>, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Judge::new(
            provider,
            Box::new(|_, _, _, _, _| Ok(ServerCertVerified::assertion())),
        ))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}
