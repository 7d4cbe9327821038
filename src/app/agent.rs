//! A worker alone: it joins once over MQTT, and is a member from its disk ever after.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use rustls::{
    CertificateError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
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
        session::{Address, Endpoints, Tls},
        topics,
    },
    tasks::Tasks,
    trust::{Judge, Verdict},
};

/// How long after a request it is sent again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The parts of the identity. The membership is written last: with it the rest is there.
const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const AUTHORITY: &str = "ca.crt";
const MEMBERSHIP: &str = "membership.json";

/// What a board knows of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Membership {
    cluster: String,
    node: String,
    /// The URLs of the broker that the user gave.
    brokers: Vec<String>,
    /// Those that the master has named since.
    #[serde(default)]
    named: Vec<String>,
    /// The broker is not the master's own.
    #[serde(default)]
    external: bool,
    cluster_cidr: String,
    service_cidr: String,
    /// Empty when the cluster has no DNS.
    cluster_dns: String,
    cluster_domain: String,
}

impl Membership {
    /// Where the broker may be, the user's word first.
    fn addresses(&self) -> anyhow::Result<Vec<Address>> {
        let mut urls = self.brokers.clone();
        urls.extend(self.named.iter().filter(|url| !self.brokers.contains(url)).cloned());
        link::addresses(&urls)
    }
}

pub async fn build(config: config::Agent) -> anyhow::Result<App> {
    let common = &config.common;
    let folder = folder(common);
    let member = match read(&folder)? {
        Some(known) => known_member(known, &config, &folder)?,
        None => join(&config, &folder).await?,
    };
    let part = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let wrong = |e: String| anyhow::anyhow!("{}: {e}", folder.join(MEMBERSHIP).display());
    let tls = if member.external {
        link::external_tls(&link::known_files(&folder))?
    } else {
        let credential = Credential { certificate: part(CERTIFICATE)?, key: part(KEY)? };
        link::client_tls(&part(AUTHORITY)?, &credential)?
    };
    let endpoints = Endpoints::new(member.addresses()?);
    let keeper =
        Keeper { folder: folder.clone(), endpoints: endpoints.clone(), member: Mutex::new(member.clone()) };
    let membership = worker::Membership {
        way: link::Way { endpoints, tls, link: common.link },
        cluster_cidr: member.cluster_cidr.parse().map_err(wrong)?,
        service_cidr: member.service_cidr.parse().map_err(wrong)?,
        dns_address: Some(&member.cluster_dns).filter(|a| !a.is_empty()).map(|a| a.parse()).transpose()?,
        cluster: member.cluster,
        node: member.node,
        keeper: Some(Arc::new(keeper)),
    };
    let tasks = Arc::new(Tasks::new());
    worker::start(&tasks, common, membership, Arc::new(SystemClock))?;
    Ok(App { store: None, tasks, claims: Vec::new() })
}

/// Writes down what the master says of where it is.
struct Keeper {
    folder: PathBuf,
    endpoints: Endpoints,
    member: Mutex<Membership>,
}

impl worker::Keeper for Keeper {
    fn endpoints(&self, urls: &[String]) {
        let mut member = self.member.lock().expect("no holder of the membership's lock panics");
        if member.named == urls {
            return;
        }
        let fresh = Membership { named: urls.to_vec(), ..member.clone() };
        match fresh.addresses().and_then(|list| write(&self.folder, &fresh).map(|()| list)) {
            Ok(addresses) => {
                tracing::info!(?urls, "the master names where it is found");
                self.endpoints.set(addresses);
                *member = fresh;
            }
            Err(error) => tracing::error!(%error, "what the master says of where it is found was not kept"),
        }
    }

    fn removed(&self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::error!(%error, folder = %self.folder.display(), "the identity could not be removed");
        }
    }
}

/// The networks of pods and Services of the cluster this board is in; `None` when in none.
pub fn networks(common: &config::Common) -> anyhow::Result<Option<(config::Cidr, config::Cidr)>> {
    let folder = folder(common);
    let Some(member) = read(&folder)? else { return Ok(None) };
    let wrong = |e: String| anyhow::anyhow!("{}: {e}", folder.join(MEMBERSHIP).display());
    Ok(Some((member.cluster_cidr.parse().map_err(wrong)?, member.service_cidr.parse().map_err(wrong)?)))
}

/// Where the identity of this board is.
fn folder(common: &config::Common) -> PathBuf {
    common.data_dir.join("agent/identity")
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

/// A board that has joined before: new addresses of the master are taken, a new name is not.
fn known_member(mut known: Membership, config: &config::Agent, folder: &Path) -> anyhow::Result<Membership> {
    if !config.join.is_empty() && config.join != known.brokers {
        let addresses = link::addresses(&config.join)?;
        tracing::info!(count = addresses.len(), "the master has new addresses");
        known.brokers.clone_from(&config.join);
        write(folder, &known)?;
    }
    if known.external {
        link::keep_files(&config.common.broker, folder)?;
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
    let Some(token) = config.token.as_ref().filter(|_| !config.join.is_empty()) else {
        bail!(
            "this board is in no cluster yet: start it as `sampan token create` on the master prints it, \
             `sampan agent --join mqtts://HOST:8883 --token TOKEN`"
        );
    };
    let addresses = link::addresses(&config.join)?;
    let files = &config.common.broker;
    let external = link::is_external(&addresses, files);
    let token: Token = token.parse()?;
    let tls = if external {
        if addresses.iter().any(|address| !address.tls) {
            tracing::warn!("the broker is spoken to without TLS: who listens hears the cluster's secrets");
        }
        link::external_tls(files)?
    } else {
        pinned_tls(&token.pin)?
    };
    let way = link::Way { endpoints: Endpoints::new(addresses), tls, link: config.common.link };
    let node = config.common.node_name();
    let (key, csr) = pki::client_request()?;
    let request = JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        node: node.clone(),
        csr,
    };
    tracing::info!(node, "joining");
    let Welcome { certificate, ca, cluster_cidr, service_cidr, cluster_dns, cluster_domain } =
        ask(&way, &token, &request).await?;
    let member = Membership {
        cluster: token.cluster,
        node,
        brokers: config.join.clone(),
        named: Vec::new(),
        external,
        cluster_cidr,
        service_cidr,
        cluster_dns,
        cluster_domain,
    };
    pki::write_file(&folder.join(KEY), key.as_bytes(), 0o600)?;
    pki::write_file(&folder.join(CERTIFICATE), certificate.as_bytes(), 0o644)?;
    pki::write_file(&folder.join(AUTHORITY), ca.as_bytes(), 0o644)?;
    link::keep_files(files, folder)?;
    write(folder, &member)?;
    tracing::info!(node = member.node, cluster = member.cluster, "joined; flags are no longer needed");
    Ok(member)
}

/// Asks until there is an answer.
async fn ask(way: &link::Way, token: &Token, request: &JoinRequest) -> anyhow::Result<Welcome> {
    let id = topics::new_join_id();
    let client = link::Client {
        id: topics::join_client_id(&token.cluster, &id),
        filters: vec![topics::join_down(&token.cluster, &id)],
        will: None,
    };
    let tasks = Tasks::new();
    let (bus, events) = link::connect(&tasks, "joining", way, client);
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
fn pinned_tls(pin: &str) -> anyhow::Result<Tls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (pin, algorithms) = (pin.to_owned(), Arc::clone(&provider));
    let verdict: Box<Verdict> = Box::new(move |own, rest, name, ocsp, now| {
        let Some(authority) = rest.iter().find(|certificate| pki::pin(certificate) == pin) else {
            let text = "the server's certificate authority is not the one that the token names";
            return Err(rustls::Error::General(text.to_owned()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verdict = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&algorithms))
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?
            .verify_server_cert(own, rest, name, ocsp, now);
        link::whatever_the_name(verdict, own)
    });
    let verifier = Judge::new(Arc::clone(&provider), verdict);
    let config = rustls::ClientConfig::builder_with_details(provider, Arc::new(link::time()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Tls { config: Arc::new(config), any_name: true })
}
