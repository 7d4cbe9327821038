//! How a daemon reaches the broker: certificates, TLS, and the session as a task.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{
    api::{pki::Credential, tls::TrustedTime},
    clock::SystemClock,
    mqtt::{
        Bus, Events, Will,
        session::{Address, Options, session},
    },
    tasks::Tasks,
};

/// How soon a silent cut is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Who a client is to the broker, and what it listens to.
pub struct Client {
    pub id: String,
    pub filters: Vec<String>,
    pub will: Option<Will>,
}

/// The time by which certificates are judged, whatever the board's clock says.
pub fn time() -> TrustedTime {
    TrustedTime::new(Arc::new(SystemClock), &[])
}

/// TLS for a client that trusts one authority and shows one certificate.
pub fn client_tls(ca_pem: &str, credential: &Credential) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(credential.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("the client's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes()).context("the client's key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_details(provider, Arc::new(time()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Starts a session; it reconnects by itself until the tasks stop.
pub fn connect(
    tasks: &Tasks,
    name: &str,
    address: &Address,
    tls: Arc<rustls::ClientConfig>,
    client: Client,
) -> (Arc<dyn Bus>, Events) {
    let (bus, events, connection) = session(Options {
        address: address.clone(),
        tls,
        client_id: client.id,
        keep_alive: KEEP_ALIVE,
        filters: client.filters,
        will: client.will,
    });
    tasks.spawn(name, |stop| connection.run(stop));
    (bus, events)
}
