//! How a daemon reaches the broker: certificates, TLS, and the session as a task.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use rustls::{
    CertificateError, RootCertStore,
    client::{
        WebPkiServerVerifier,
        danger::{ServerCertVerified, ServerCertVerifier as _},
    },
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{
    api::{
        pki::{self, Credential},
        tls::TrustedTime,
    },
    clock::SystemClock,
    config::{BrokerFiles, LinkClass},
    mqtt::{
        Bus, Events, Will,
        session::{Address, Endpoints, Options, Tls, session},
    },
    tasks::Tasks,
    trust::{Judge, Verdict},
};

/// Who a client is to the broker, and what it listens to.
pub struct Client {
    pub id: String,
    pub filters: Vec<String>,
    pub will: Option<Will>,
}

/// The way to the broker.
#[derive(Clone)]
pub struct Way {
    pub endpoints: Endpoints,
    pub tls: Tls,
    pub link: LinkClass,
}

/// The time by which certificates are judged, whatever the board's clock says.
pub fn time() -> TrustedTime {
    TrustedTime::new(Arc::new(SystemClock), &[])
}

fn builder() -> anyhow::Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_details(provider, Arc::new(time()))
        .with_safe_default_protocol_versions()?)
}

fn roots(pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

fn chain_and_key(
    certificate: &[u8],
    key: &[u8],
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .context("the client's certificate")?;
    Ok((chain, PrivateKeyDer::from_pem_slice(key).context("the client's key")?))
}

/// TLS for a client of a master's own broker: trusts one authority, shows one certificate.
pub fn client_tls(ca_pem: &str, credential: &Credential) -> anyhow::Result<Tls> {
    let (chain, key) = chain_and_key(credential.certificate.as_bytes(), credential.key.as_bytes())?;
    let verifier = master_verifier(roots(ca_pem.as_bytes())?)?;
    let config = builder()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    Ok(Tls { config: Arc::new(config), any_name: true })
}

/// TLS for a client of somebody else's broker: its authority as given (or the public ones), its
/// name as in the URL, and our certificate if we were given one.
pub fn external_tls(files: &BrokerFiles) -> anyhow::Result<Tls> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("read {}", path.display()));
    let roots = match &files.mqtt_ca {
        Some(path) => roots(&read(path)?).with_context(|| format!("--mqtt-ca {}", path.display()))?,
        None => public_roots(),
    };
    let config = builder()?.with_root_certificates(roots);
    let config = match (&files.mqtt_cert, &files.mqtt_key) {
        (Some(certificate), Some(key)) => {
            let (chain, key) = chain_and_key(&read(certificate)?, &read(key)?)?;
            config.with_client_auth_cert(chain, key)?
        }
        (None, None) => config.with_no_client_auth(),
        _ => bail!("--mqtt-cert and --mqtt-key belong together"),
    };
    Ok(Arc::new(config).into())
}

fn public_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Whether URLs and files speak of a broker that is not the master's own.
pub fn is_external(addresses: &[Address], files: &BrokerFiles) -> bool {
    files.mqtt_ca.is_some()
        || files.mqtt_cert.is_some()
        || addresses.iter().any(|a| !a.tls || a.login.is_some())
}

/// Reads broker URLs.
pub fn addresses(urls: &[String]) -> anyhow::Result<Vec<Address>> {
    Ok(urls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?)
}

/// Copies the files a board needs for somebody else's broker to where they stay.
pub fn keep_files(files: &BrokerFiles, folder: &Path) -> anyhow::Result<()> {
    let kept = kept_files(folder);
    for (given, kept, mode) in
        [(&files.mqtt_ca, kept.0, 0o644), (&files.mqtt_cert, kept.1, 0o644), (&files.mqtt_key, kept.2, 0o600)]
    {
        if let Some(path) = given {
            let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            pki::write_file(&kept, &bytes, mode)?;
        }
    }
    Ok(())
}

fn kept_files(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    (folder.join("broker-ca.crt"), folder.join("broker.crt"), folder.join("broker.key"))
}

/// The files that were kept.
pub fn known_files(folder: &Path) -> BrokerFiles {
    let (ca, cert, key) = kept_files(folder);
    let there = |path: PathBuf| path.exists().then_some(path);
    BrokerFiles { mqtt_ca: there(ca), mqtt_cert: there(cert), mqtt_key: there(key) }
}

/// Starts a session; it reconnects by itself until the tasks stop.
pub fn connect(tasks: &Tasks, name: &str, way: &Way, client: Client) -> (Arc<dyn Bus>, Events) {
    let (bus, events, connection) = session(Options {
        endpoints: way.endpoints.clone(),
        tls: way.tls.clone(),
        client_id: client.id,
        keep_alive: way.link.keep_alive(),
        filters: client.filters,
        will: client.will,
    });
    tasks.spawn(name, |stop| connection.run(stop));
    (bus, events)
}

/// Knows a master by its authority and its role, whatever the name or address it is reached at: a
/// board that was moved, renamed or put behind a NAT is the same master.
fn master_verifier(roots: RootCertStore) -> anyhow::Result<Arc<Judge>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let usual =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let verdict: Box<Verdict> = Box::new(move |own, rest, name, ocsp, now| {
        whatever_the_name(usual.verify_server_cert(own, rest, name, ocsp, now), own)
    });
    Ok(Judge::new(provider, verdict))
}

/// What is left of a verdict when the name does not matter, but the role does: only the cluster's
/// masters have certificates for the API's server.
pub fn whatever_the_name(
    verdict: Result<ServerCertVerified, rustls::Error>,
    own: &CertificateDer<'_>,
) -> Result<ServerCertVerified, rustls::Error> {
    let wrong_name = matches!(
        &verdict,
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        ))
    );
    // The name is looked at last: the chain, the time and the usage are good.
    if wrong_name && pki::common_name(own).as_deref() == Some(pki::SERVER_NAME) {
        return Ok(ServerCertVerified::assertion());
    }
    verdict
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;
    use crate::api::pki::Pki;

    #[test]
    fn a_master_is_known_by_its_authority_and_role_not_by_its_name() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (Pki::open(ours.path()).unwrap(), Pki::open(theirs.path()).unwrap());
        let verifier = master_verifier(roots(ours.ca_pem().as_bytes()).unwrap()).unwrap();
        let judge = |own: &CertificateDer<'_>| {
            let name = ServerName::try_from("somewhere.else").unwrap();
            verifier.verify_server_cert(own, &[], &name, &[], UnixTime::now()).is_ok()
        };
        let serving =
            |pki: &Pki| pki.issue_serving(&["a.example".to_owned()].into(), &BTreeSet::new()).unwrap().0;
        assert!(judge(&serving(&ours)));
        assert!(!judge(&serving(&theirs)));
        let node = ours.issue_client("system:node:a", "system:nodes").unwrap();
        assert!(!judge(&CertificateDer::from_pem_slice(node.certificate.as_bytes()).unwrap()));
    }
}
