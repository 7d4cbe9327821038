//! A master: store, API, controllers, scheduler, broker, dispatch; and the local worker.

use std::{
    convert::Infallible,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, bail};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::sync::watch;

use super::{App, backup, link, streams, usage, worker};
use crate::{
    api::{
        self,
        pki::{self, Pki},
        tls,
    },
    clock::{Clock as _, SharedClock, SystemClock},
    config::{self, Part},
    controllers,
    dispatch::{
        self, Dispatch, IssueToken,
        join::{Desk, Signed},
    },
    ids,
    mqtt::{
        broker::{Broker, Identify, Origins, Peer, Review},
        session::{Address, Endpoints},
        topics,
    },
    net::AddressWatch,
    node,
    objects::{
        Objects, Settings, User,
        credentials::{self, NODE_USER_PREFIX},
        token::{Bound, Signer, TokenSpec},
    },
    scheduler,
    store::Store,
    tasks::Tasks,
};

/// The place of the cluster's DNS among the service addresses, by Kubernetes' custom.
const DNS_INDEX: u32 = 10;
/// A file of the server's state that says where boards find the broker: URLs, the port of the embedded
/// one, or [`BROKER_EXTERNAL`]; for `sampan token create`.
pub const BROKER_NOTE: &str = "broker";
pub const BROKER_EXTERNAL: &str = "external";
/// The names in certificates.
pub(super) const MASTER_USER: &str = "system:sampan-master";
pub(super) const MASTER_GROUP: &str = "system:masters";
const NODE_GROUP: &str = "system:nodes";

pub async fn build(config: config::Server) -> anyhow::Result<App> {
    let common = &config.common;
    let state = common.data_dir.join("server");
    if let Some(file) = &config.restore {
        backup::restore(&common.data_dir, file)?;
    }
    let clock: SharedClock = Arc::new(SystemClock);
    let store = Store::open(&state.join("state.db"))?;
    let pki = Arc::new(Pki::open(&state.join("pki"))?);
    let settings = Settings {
        service_cidr: config.service_cidr,
        node_ports: config.service_node_port_range,
        tokens: Arc::new(Signer::new(pki.service_account_key())?),
        toleration_seconds: config.eviction_seconds,
    };
    let objects = Objects::of_cluster(store.clone(), Arc::clone(&clock), settings);
    let cluster = cluster_id(&state.join("cluster-id"))?;
    let dns = common.enabled(Part::Dns).then(|| config.service_cidr.nth(DNS_INDEX)).flatten();

    let api = api::Server::bind(
        api::Config {
            data_dir: state.clone(),
            listen: config.listen,
            tls_san: config.tls_san.clone(),
            service_cidr: config.service_cidr,
            cluster_domain: config.cluster_domain.clone(),
        },
        objects.clone(),
        Arc::clone(&pki),
    )
    .await?;
    let here = reachable(api.local_addr());
    let (moved, inside) = watch::channel(SocketAddr::from((inside(&config), here.port())));
    let first = *inside.borrow();
    objects.bootstrap(first).await?;
    if let Some(address) = dns {
        objects.bootstrap_dns(address).await?;
    }
    pki.write_kubeconfig(&common.data_dir.join("kubeconfig"), &format!("https://{here}"))?;

    let tasks = Arc::new(Tasks::new());
    tasks.spawn("own address", {
        let config = config.clone();
        move |stop| async move {
            stop.run_until_cancelled(follow_address(&config, moved)).await;
            Ok::<_, Infallible>(())
        }
    });
    let way = |user: &str, group: &str, here: &Option<Address>| -> anyhow::Result<link::Way> {
        let (endpoints, tls) = match here {
            Some(address) => {
                (address.clone().into(), link::client_tls(pki.ca_pem(), &pki.issue_client(user, group)?)?)
            }
            None => (Endpoints::new(link::addresses(&config.mqtt_url)?), link::external_tls(&common.broker)?),
        };
        Ok(link::Way { endpoints, tls, link: common.link })
    };
    let (here_broker, origins) = if config.mqtt_url.is_empty() {
        let (address, origins) = start_broker(&tasks, &config, &cluster, &objects, &pki).await?;
        (Some(address), Some(origins))
    } else {
        (None, None)
    };
    link::addresses(&config.endpoints)?;
    let note = match &here_broker {
        _ if !config.endpoints.is_empty() => config.endpoints.join(","),
        Some(address) => address.port.to_string(),
        None => BROKER_EXTERNAL.to_owned(),
    };
    let note_path = state.join(BROKER_NOTE);
    if fs::read_to_string(&note_path).ok().as_deref() != Some(note.as_str()) {
        pki::write_file(&note_path, note.as_bytes(), 0o600)?;
    }
    let master = link::Client {
        id: format!("sampan-{cluster}-master"),
        filters: topics::master_filters(&cluster),
        will: None,
    };
    let bus = link::connect(&tasks, "master's link", &way(MASTER_USER, MASTER_GROUP, &here_broker)?, master);
    let own_node = common.enabled(Part::Agent).then(|| own_name(common, &state)).transpose()?;
    let options = dispatch::Options {
        cluster: cluster.clone(),
        epoch: backup::epoch(&state)?,
        cluster_cidr: config.cluster_cidr,
        node_prefix: config.node_cidr_mask_size,
        service_cidr: config.service_cidr,
        cluster_dns: dns.map(|address| address.to_string()).unwrap_or_default(),
        cluster_domain: config.cluster_domain.clone(),
        endpoints: config.endpoints.clone(),
        own_node: own_node.clone(),
        origins,
    };
    let dispatch =
        Dispatch::new(objects.clone(), options, bus, tokens(&objects, api.time())).with_desk(desk(&pki));
    let links = streams::node_streams(dispatch.streams());
    let measured = api.usage();
    tasks.spawn("usage", {
        let (objects, links, measured) = (objects.clone(), Arc::clone(&links), Arc::clone(&measured));
        move |stop| usage::run(objects, links, measured, stop)
    });
    let api = api.with_streams(links);
    tasks.spawn("api", |stop| api.run(stop));
    tasks.spawn("what every cluster has", |stop| objects.clone().keep(inside, dns, stop));
    tasks.spawn("dispatch", |stop| dispatch.run(stop));
    if common.enabled(Part::Controllers) {
        let volumes = common.data_dir.join("volumes");
        let options = controllers::Options {
            local_path: common.enabled(Part::LocalStorage).then(|| volumes.display().to_string()),
            root_ca: pki.ca_pem().to_owned(),
            usage: measured,
            authority: Some(authority(&pki)),
            ..controllers::Options::default()
        };
        controllers::start(&tasks, &objects, &options);
    }
    if common.enabled(Part::Scheduler) {
        scheduler::start(&tasks, objects.clone());
    }
    if let Some(node) = own_node {
        let membership = worker::Membership {
            way: way(&format!("{NODE_USER_PREFIX}{node}"), NODE_GROUP, &here_broker)?,
            cluster,
            node,
            cluster_cidr: config.cluster_cidr,
            service_cidr: config.service_cidr,
            dns_address: dns,
            keeper: None,
        };
        worker::start(&tasks, common, membership, clock)?;
    }
    tracing::info!(api = %here, kubeconfig = %common.data_dir.join("kubeconfig").display(), "the cluster is up");
    Ok(App { store: Some(store), tasks, claims: Vec::new() })
}

/// The name of the master's own node: as given, else the one it has had. A board whose host is renamed
/// stays the node it was, with its pods.
fn own_name(common: &config::Common, state: &Path) -> anyhow::Result<String> {
    let path = state.join("node-name");
    let known = match fs::read_to_string(&path) {
        Ok(name) => Some(name.trim().to_owned()).filter(|name| !name.is_empty()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    if let (None, Some(known)) = (&common.node_name, &known) {
        return Ok(known.clone());
    }
    let name = common.node_name();
    if known.as_ref() != Some(&name) {
        pki::write_file(&path, name.as_bytes(), 0o644)?;
    }
    Ok(name)
}

/// Where pods and nodes reach the API. A board without any network of its own is reached at the first
/// address of its pods' network, which it has itself.
fn inside(config: &config::Server) -> Ipv4Addr {
    let set = config.common.node_ip;
    set.or_else(node::outward_address)
        .filter(|address| !address.is_loopback())
        .unwrap_or(config.cluster_cidr.address)
}

/// Tells when the API has to be reached at another address of this board.
async fn follow_address(config: &config::Server, known: watch::Sender<SocketAddr>) {
    let watch = match AddressWatch::open() {
        Ok(watch) => watch,
        Err(error) => return tracing::warn!(%error, "a change of this board's address is not followed"),
    };
    loop {
        watch.changed().await;
        let now = inside(config);
        // Between two addresses there may be none.
        if now != config.cluster_cidr.address {
            known.send_if_modified(|known| {
                let changed = known.ip() != IpAddr::V4(now);
                known.set_ip(now.into());
                changed
            });
        }
    }
}

/// The cluster's name among others on one broker: made once, random.
fn cluster_id(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => bail!("{} is empty", path.display()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("read {}", path.display()));
        }
        Err(_) => {}
    }
    let id = ids::hex(&ids::random_bytes::<6>());
    fs::write(path, &id)
        .and_then(|()| fs::File::open(path)?.sync_all())
        .with_context(|| format!("write {}", path.display()))?;
    Ok(id)
}

/// An address of this machine for what listens on all of them.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = if listening.ip().is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { listening.ip() };
    SocketAddr::new(ip, listening.port())
}

/// Starts the embedded broker; the address under which this machine reaches it, and where nodes come from.
async fn start_broker(
    tasks: &Tasks,
    config: &config::Server,
    cluster: &str,
    objects: &Objects,
    pki: &Arc<Pki>,
) -> anyhow::Result<(Address, Origins)> {
    let mut names = config.tls_san.clone();
    names.extend(link::addresses(&config.endpoints)?.into_iter().map(|address| address.host));
    let serving = Arc::new(tls::ServingCertificate::new(Arc::clone(pki), &names, &[])?);
    let witness = pki.folder().join("ca.crt");
    let time = tls::TrustedTime::new(Arc::clone(objects.clock()), &[&witness]);
    let (tls, certificates) = tls::server_config(pki, Arc::clone(&serving), time)?;
    let known = objects.clone();
    let identify: Identify = Arc::new(move |chain: &[CertificateDer<'_>]| {
        let identity = certificates.identify(chain)?;
        let in_group = |group: &str| identity.groups.iter().any(|g| g == group);
        match identity.user.strip_prefix(NODE_USER_PREFIX) {
            // A node that was removed may come to be told so.
            Some(node)
                if in_group(NODE_GROUP)
                    && (known.is_node_removed(node)
                        || known.is_credential_good(&identity.user, &identity.credential_id)) =>
            {
                Some(Peer::Node(node.to_owned()))
            }
            None if identity.user == MASTER_USER && in_group(MASTER_GROUP) => Some(Peer::Master),
            _ => None,
        }
    });
    let broker = Broker::bind(config.mqtt_listen, cluster, tls, identify)
        .await?
        .on_arrival(Arc::new(move |address| serving.cover(address)));
    let here = reachable(broker.local_addr()?);
    let review = broker.review();
    let objects = objects.clone();
    tasks.spawn("credentials", |stop| async move {
        stop.run_until_cancelled(review_credentials(&objects, &review)).await;
        Ok::<_, Infallible>(())
    });
    let origins = broker.origins();
    tasks.spawn("broker", |stop| broker.run(stop));
    Ok((Address { host: here.ip().to_string(), port: here.port(), tls: true, login: None }, origins))
}

/// Cuts connections whose certificates have lost their force, whenever the list of these changes.
async fn review_credentials(objects: &Objects, review: &Review) {
    loop {
        let from = objects.store().revision();
        review.run();
        let Ok(mut watch) = objects.store().watch("configmaps", from) else { continue };
        // The loop begins anew when events were lost.
        while let Ok(event) = watch.next().await {
            if *event.object.key.name == *credentials::NAME {
                break;
            }
        }
    }
}

/// Lets boards join with certificates of this cluster's authority.
fn desk(pki: &Arc<Pki>) -> Desk {
    let signer = Arc::clone(pki);
    let sign = move |request: &str, node: &str| {
        let user = format!("{NODE_USER_PREFIX}{node}");
        let certificate =
            signer.sign_client(request, &user, NODE_GROUP).map_err(|error| error.to_string())?;
        let der =
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Signed { digest: pki::pin(&der), certificate })
    };
    Desk::new(Box::new(sign), pki.ca_pem().to_owned())
}

/// Signs approved CertificateSigningRequests.
fn authority(pki: &Arc<Pki>) -> controllers::certificates::Authority {
    let pki = Arc::clone(pki);
    controllers::certificates::Authority::new(move |request, usages, life_seconds, now| {
        pki.sign_request(request, usages, life_seconds, now).map_err(|error| error.to_string())
    })
}

/// Service account tokens for pods.
fn tokens(objects: &Objects, time: tls::TrustedTime) -> IssueToken {
    let objects = objects.clone();
    Arc::new(move |request| {
        let (objects, now) = (objects.clone(), time.now());
        Box::pin(async move {
            let spec = TokenSpec {
                audiences: request.audiences,
                expiration_seconds: Some(request.expiration_seconds),
                bound: Some(Bound { kind: "Pod".to_owned(), name: request.pod, uid: request.pod_uid }),
            };
            let node = User {
                name: format!("{NODE_USER_PREFIX}{}", request.node),
                groups: vec![NODE_GROUP.to_owned()],
                ..User::default()
            };
            let issued = objects.issue_token(&node, &request.namespace, &request.service_account, &spec, now);
            issued.map(|t| (t.token, t.expires)).map_err(|e| e.to_string())
        })
    })
}
