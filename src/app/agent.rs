//! A worker alone: it joins once over MQTT, and is a member from its disk ever after.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::{Deserialize, Serialize};

use super::{App, link, worker};
use crate::{
    api::pki::{self, Credential},
    clock::SystemClock,
    config,
    mqtt::{
        Bus, Event, Events, Priority,
        join::{JoinAnswer, JoinRequest, Token, Welcome},
        messages,
        session::Address,
        topics,
    },
    tasks::Tasks,
};

/// How long after a request it is sent again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The parts of the identity. The membership is written last: with it the rest is there.
const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const AUTHORITY: &str = "ca.crt";
const MEMBERSHIP: &str = "membership.json";

/// What a board knows of its cluster.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Membership {
    cluster: String,
    node: String,
    /// The URL of the broker.
    broker: String,
    cluster_cidr: String,
    service_cidr: String,
    /// Empty when the cluster has no DNS.
    cluster_dns: String,
    cluster_domain: String,
}

pub async fn build(config: config::Agent) -> anyhow::Result<App> {
    let common = &config.common;
    let folder = common.data_dir.join("agent/identity");
    let member = match read(&folder)? {
        Some(known) => known_member(known, &config, &folder)?,
        None => join(&config, &folder).await?,
    };
    let part = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let credential = Credential { certificate: part(CERTIFICATE)?, key: part(KEY)? };
    let wrong = |e: String| anyhow::anyhow!("{}: {e}", folder.join(MEMBERSHIP).display());
    let membership = worker::Membership {
        broker: member.broker.parse()?,
        tls: link::client_tls(&part(AUTHORITY)?, &credential)?,
        cluster_cidr: member.cluster_cidr.parse().map_err(wrong)?,
        service_cidr: member.service_cidr.parse().map_err(wrong)?,
        dns_address: Some(&member.cluster_dns).filter(|a| !a.is_empty()).map(|a| a.parse()).transpose()?,
        cluster: member.cluster,
        node: member.node,
    };
    let tasks = Arc::new(Tasks::new());
    worker::start(&tasks, common, membership, Arc::new(SystemClock))?;
    Ok(App { store: None, tasks, claims: Vec::new() })
}

fn read(folder: &Path) -> anyhow::Result<Option<Membership>> {
    let path = folder.join(MEMBERSHIP);
    match fs::read(&path) {
        Ok(text) => {
            Ok(Some(serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn write(folder: &Path, member: &Membership) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(member)?;
    Ok(pki::write_file(&folder.join(MEMBERSHIP), &text, 0o600)?)
}

/// A board that has joined before: a new address of the master is taken, a new name is not.
fn known_member(mut known: Membership, config: &config::Agent, folder: &Path) -> anyhow::Result<Membership> {
    if let Some(url) = config.join.as_ref().filter(|url| **url != known.broker) {
        url.parse::<Address>()?;
        tracing::info!(from = known.broker, to = url, "the master has a new address");
        known.broker.clone_from(url);
        write(folder, &known)?;
    }
    if let Some(name) = config.common.node_name.as_ref().filter(|name| **name != known.node) {
        bail!(
            "this board is the node {:?}; to join as {name:?}, remove {} and start with a new token",
            known.node,
            folder.display()
        );
    }
    Ok(known)
}

/// Makes a key, gets its certificate and writes everything down.
async fn join(config: &config::Agent, folder: &Path) -> anyhow::Result<Membership> {
    let (Some(url), Some(token)) = (&config.join, &config.token) else {
        bail!(
            "this board is in no cluster yet: start it as `sampan token create` on the master prints it, \
             `sampan agent --join mqtts://HOST:8883 --token TOKEN`"
        );
    };
    let address: Address = url.parse()?;
    if !address.tls {
        bail!("--join {url}: joining needs TLS, mqtts://…");
    }
    let token: Token = token.parse()?;
    let node = config.common.node_name();
    let (key, csr) = pki::client_request()?;
    let request = JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        node: node.clone(),
        csr,
    };
    tracing::info!(node, master = url, "joining");
    let Welcome { certificate, ca, cluster_cidr, service_cidr, cluster_dns, cluster_domain } =
        ask(&address, &token, &request).await?;
    let cluster = token.cluster;
    let broker = url.clone();
    let member =
        Membership { cluster, node, broker, cluster_cidr, service_cidr, cluster_dns, cluster_domain };
    pki::write_file(&folder.join(KEY), key.as_bytes(), 0o600)?;
    pki::write_file(&folder.join(CERTIFICATE), certificate.as_bytes(), 0o644)?;
    pki::write_file(&folder.join(AUTHORITY), ca.as_bytes(), 0o644)?;
    write(folder, &member)?;
    tracing::info!(node = member.node, cluster = member.cluster, "joined; flags are no longer needed");
    Ok(member)
}

/// Asks until there is an answer.
async fn ask(address: &Address, token: &Token, request: &JoinRequest) -> anyhow::Result<Welcome> {
    let id = topics::new_join_id();
    let client = link::Client {
        id: topics::join_client_id(&token.cluster, &id),
        filters: vec![topics::join_down(&token.cluster, &id)],
        will: None,
    };
    let tasks = Tasks::new();
    let (bus, events) = link::connect(&tasks, "joining", address, pinned_tls(&token.pin)?, client);
    let answer = converse(&*bus, events, &topics::join_up(&token.cluster, &id), request).await;
    tasks.stop().await;
    match answer? {
        JoinAnswer::Welcome(welcome) => Ok(*welcome),
        JoinAnswer::Refused(reason) => bail!("the master refused this board: {reason}"),
    }
}

async fn converse(
    bus: &dyn Bus,
    mut events: Events,
    topic: &str,
    request: &JoinRequest,
) -> anyhow::Result<JoinAnswer> {
    let payload = messages::encode(request)?;
    let mut again = tokio::time::interval(ANSWER_TIMEOUT);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Connected) => again.reset_immediately(),
                Some(Event::Message { payload, .. }) => return Ok(messages::decode(&payload)?),
                Some(Event::Disconnected { reason }) => {
                    tracing::warn!(reason, "the master cannot be reached, trying again");
                }
                None => bail!("the connection to the master ended"),
            },
            _ = again.tick() => {
                if bus.connected() {
                    bus.publish(topic, payload.clone(), Priority::Control).await?;
                }
            }
        }
    }
}

/// TLS that trusts the authority with this digest, which the master sends along.
fn pinned_tls(pin: &str) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned { pin: pin.to_owned(), provider: Arc::clone(&provider) });
    let config = rustls::ClientConfig::builder_with_details(provider, Arc::new(link::time()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned {
    pin: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = rest.iter().find(|certificate| pki::pin(certificate) == self.pin) else {
            let text = "the server's certificate authority is not the one that the token names";
            return Err(rustls::Error::General(text.to_owned()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?
            .verify_server_cert(own, rest, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
