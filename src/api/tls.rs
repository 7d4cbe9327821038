//! How the API server speaks TLS.
//!
//! In: the authority, extra names. Out: a rustls configuration that resolves its certificate at
//! each handshake, and the identity of a client's certificate.
//! Invariants: a client without a certificate may connect (it may carry a token); a certificate
//! that our authority has not signed, or that is out of date, identifies nobody and makes the
//! request `401` as upstream does, not the handshake fail; time never runs behind the floor.
//! Deliberately absent: files (`pki` has them) and authorisation.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, RwLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pki::{Pki, PkiError};
use crate::clock::{Clock, SharedClock};

/// No release is older than this (seconds since 1970: 2026-11-01): a clock that says less is unset.
const RELEASE_FLOOR_SECONDS: i64 = 1_793_491_200;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("set up client certificates: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// Wall-clock time that trust decisions use: the later of the clock and everything known to lie
/// in the past. Boards have no clock battery.
#[derive(Clone)]
pub struct TrustedTime {
    clock: SharedClock,
    floor: Arc<AtomicI64>,
}

impl TrustedTime {
    /// `witnesses` are files that were written in the past: their modification times are a floor.
    pub fn new(clock: SharedClock, witnesses: &[&Path]) -> Self {
        let floor = witnesses
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok()?.modified().ok())
            .filter_map(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map(|since| since.as_secs() as i64)
            .fold(RELEASE_FLOOR_SECONDS, i64::max);
        Self { clock, floor: Arc::new(AtomicI64::new(floor)) }
    }
}

impl Clock for TrustedTime {
    fn now(&self) -> jiff::Timestamp {
        let now = self.clock.now();
        let floor = self.floor.load(Ordering::Relaxed);
        jiff::Timestamp::from_second(floor).map_or(now, |floor| now.max(floor))
    }

    fn steady(&self) -> Duration {
        self.clock.steady()
    }
}

impl std::fmt::Debug for TrustedTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrustedTime")
    }
}

impl TimeProvider for TrustedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.now()))
    }
}

fn unix_time(now: jiff::Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().max(0) as u64))
}

/// The serving certificate as of now.
struct Current {
    addresses: BTreeSet<IpAddr>,
    key: Arc<CertifiedKey>,
}

/// Resolves the serving certificate; a connection that arrives at a new address makes it anew.
pub struct ServingCertificate {
    pki: Arc<Pki>,
    names: BTreeSet<String>,
    extra_addresses: BTreeSet<IpAddr>,
    current: RwLock<Current>,
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServingCertificate({:?})", self.names)
    }
}

impl ServingCertificate {
    /// `names` are host names or addresses to be served under beside this machine's own.
    pub fn new(pki: Arc<Pki>, names: &[String], addresses: &[IpAddr]) -> Result<Self, TlsError> {
        let mut dns: BTreeSet<String> = ["localhost", "kubernetes", "kubernetes.default"]
            .into_iter()
            .chain(["kubernetes.default.svc", "kubernetes.default.svc.cluster.local"])
            .map(str::to_owned)
            .collect();
        let mut extra_addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        extra_addresses.insert(IpAddr::from([127, 0, 0, 1]));
        extra_addresses.insert(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]));
        if let Ok(name) = nix::unistd::gethostname() {
            dns.insert(name.to_string_lossy().to_ascii_lowercase());
        }
        for name in names {
            match name.parse() {
                Ok(address) => extra_addresses.insert(address),
                Err(_) => dns.insert(name.clone()),
            };
        }
        let current = make(&pki, &dns, &extra_addresses)?;
        Ok(Self { pki, names: dns, extra_addresses, current: RwLock::new(current) })
    }

    /// Makes sure that the certificate names `address`, at which a client has reached us.
    pub fn cover(&self, address: IpAddr) {
        let address = address.to_canonical();
        let covered = self.current.read().expect("no holder panics").addresses.contains(&address);
        if covered {
            return;
        }
        let mut addresses = self.extra_addresses.clone();
        addresses.insert(address);
        match make(&self.pki, &self.names, &addresses) {
            Ok(current) => *self.current.write().expect("no holder panics") = current,
            Err(error) => tracing::warn!(%error, %address, "no certificate for a new address"),
        }
    }
}

fn make(pki: &Pki, names: &BTreeSet<String>, extra: &BTreeSet<IpAddr>) -> Result<Current, TlsError> {
    let mut addresses = extra.clone();
    addresses.extend(local_addresses());
    let (certificate, key) = pki.issue_serving(names, &addresses)?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let chain = vec![certificate, pki.ca_der().clone()];
    Ok(Current { addresses, key: Arc::new(CertifiedKey::new(chain, key)) })
}

/// The addresses of this machine's interfaces.
fn local_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::from(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect()
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().expect("no holder panics").key))
    }
}

/// What a client's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// The common name.
    pub user: String,
    /// The organisations.
    pub groups: Vec<String>,
    /// The certificate's digest, for the user's extra fields (`X509SHA256=<hex>`).
    pub credential_id: String,
    /// When the certificate ends (seconds since 1970).
    pub not_after: i64,
}

/// Verifies clients' certificates after the handshake.
#[derive(Debug, Clone)]
pub struct ClientCertificates {
    inner: Arc<dyn ClientCertVerifier>,
    time: TrustedTime,
}

impl ClientCertificates {
    /// Who the chain (the client's own certificate first) stands for; `None` when our authority
    /// does not vouch for it.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Option<CertificateIdentity> {
        let (own, rest) = chain.split_first()?;
        self.inner.verify_client_cert(own, rest, unix_time(self.time.now())).ok()?;
        let (_, parsed) = X509Certificate::from_der(own).ok()?;
        let subject = parsed.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        let digest = ring::digest::digest(&ring::digest::SHA256, own);
        let credential_id = format!("X509SHA256={}", crate::ids::hex(digest.as_ref()));
        let not_after = parsed.validity().not_after.timestamp();
        Some(CertificateIdentity { user, groups, credential_id, not_after })
    }
}

/// Lets every certificate through the handshake whose key the client holds; who it stands for is
/// decided by [`ClientCertificates::identify`].
#[derive(Debug)]
struct Deferred(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Deferred {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _own: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The server's TLS configuration (HTTP/2 and HTTP/1.1 by ALPN), and the judge of certificates.
pub fn server_config(
    pki: &Pki,
    serving: Arc<ServingCertificate>,
    time: TrustedTime,
) -> Result<(Arc<ServerConfig>, ClientCertificates), TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca_der().clone())?;
    let inner =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let deferred = Arc::new(Deferred(Arc::clone(&inner)));
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(time.clone()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(deferred)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(config), ClientCertificates { inner, time }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::clock::ManualClock;

    fn certificates(pki: &Arc<Pki>) -> ClientCertificates {
        let clock = Arc::new(ManualClock::new("1970-01-01T00:00:00Z".parse().unwrap()));
        let serving = Arc::new(ServingCertificate::new(Arc::clone(pki), &[], &[]).unwrap());
        server_config(pki, serving, TrustedTime::new(clock, &[])).unwrap().1
    }

    #[test]
    fn only_our_authority_identifies_even_when_the_clock_is_unset() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = Arc::new(Pki::open(ours.path()).unwrap());
        let theirs = Arc::new(Pki::open(theirs.path()).unwrap());
        let judge = certificates(&ours);
        let der = |pki: &Pki| {
            let client = pki.issue_client("jane", "ops").unwrap();
            CertificateDer::from_pem_slice(client.certificate.as_bytes()).unwrap()
        };
        let jane = judge.identify(&[der(&ours)]).unwrap();
        assert_eq!((jane.user.as_str(), jane.groups.as_slice()), ("jane", &["ops".to_owned()][..]));
        assert_eq!(judge.identify(&[der(&theirs)]), None);
        assert_eq!(judge.identify(&[]), None);
    }

    #[test]
    fn a_new_address_makes_a_new_certificate_once() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(folder.path()).unwrap());
        let serving = ServingCertificate::new(pki, &["board.local".into()], &[]).unwrap();
        let before = Arc::clone(&serving.current.read().unwrap().key);
        serving.cover("127.0.0.1".parse().unwrap());
        assert!(Arc::ptr_eq(&before, &serving.current.read().unwrap().key));
        serving.cover("203.0.113.7".parse().unwrap());
        assert!(!Arc::ptr_eq(&before, &serving.current.read().unwrap().key));
    }
}
