//! A master: store, API, controllers, scheduler, broker, dispatch; and the local worker.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, bail};
use rustls::pki_types::CertificateDer;

use super::{App, link, streams, usage, worker};
use crate::{
    api::{self, pki::Pki, tls},
    clock::{SharedClock, SystemClock},
    config::{self, Part},
    controllers,
    dispatch::{self, Dispatch, IssueToken, join::Desk},
    ids,
    mqtt::{
        broker::{Broker, Identify, Peer},
        session::Address,
        topics,
    },
    node,
    objects::{
        Objects, Settings,
        token::{Bound, Signer, TokenSpec},
    },
    scheduler,
    store::Store,
    tasks::Tasks,
};

/// The place of the cluster's DNS among the service addresses, by Kubernetes' custom.
const DNS_INDEX: u32 = 10;
/// The names in certificates.
const MASTER_USER: &str = "system:sampan-master";
const MASTER_GROUP: &str = "system:masters";
const NODE_USER_PREFIX: &str = "system:node:";
const NODE_GROUP: &str = "system:nodes";

pub async fn build(config: config::Server) -> anyhow::Result<App> {
    let common = &config.common;
    let state = common.data_dir.join("server");
    let clock: SharedClock = Arc::new(SystemClock);
    let store = Store::open(&state.join("state.db"))?;
    let pki = Arc::new(Pki::open(&state.join("pki"))?);
    let settings = Settings {
        service_cidr: config.service_cidr,
        tokens: Arc::new(Signer::new(pki.service_account_key())?),
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
    // A board without any network of its own is reached at the first address of its pods' network,
    // which it has itself.
    let inside = common
        .node_ip
        .or_else(node::outward_address)
        .filter(|address| !address.is_loopback())
        .unwrap_or(config.cluster_cidr.address);
    objects.bootstrap(SocketAddr::from((inside, here.port()))).await?;
    if let Some(address) = dns {
        objects.bootstrap_dns(address).await?;
    }
    pki.write_kubeconfig(&common.data_dir.join("kubeconfig"), &format!("https://{here}"))?;

    let tasks = Arc::new(Tasks::new());
    let broker_address = match &config.mqtt_url {
        Some(url) => url.parse()?,
        None => start_broker(&tasks, &config, &cluster, &clock, &pki).await?,
    };
    let master = link::Client {
        id: format!("sampan-{cluster}-master"),
        filters: topics::master_filters(&cluster),
        will: None,
    };
    let credential = pki.issue_client(MASTER_USER, MASTER_GROUP)?;
    let tls = link::client_tls(pki.ca_pem(), &credential)?;
    let bus = link::connect(&tasks, "master's link", &broker_address, tls, master);
    let options = dispatch::Options {
        cluster: cluster.clone(),
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
        cluster_dns: dns.map(|address| address.to_string()).unwrap_or_default(),
        cluster_domain: config.cluster_domain.clone(),
    };
    let dispatch = Dispatch::new(objects.clone(), options, bus, tokens(&objects)).with_desk(desk(&pki));
    let links = streams::node_streams(dispatch.streams());
    let measured = api.usage();
    tasks.spawn("usage", {
        let (objects, links, measured) = (objects.clone(), Arc::clone(&links), Arc::clone(&measured));
        move |stop| usage::run(objects, links, measured, stop)
    });
    let api = api.with_streams(links);
    tasks.spawn("api", |stop| api.run(stop));
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
    if common.enabled(Part::Agent) {
        let node = common.node_name();
        let credential = pki.issue_client(&format!("{NODE_USER_PREFIX}{node}"), NODE_GROUP)?;
        let membership = worker::Membership {
            cluster,
            node,
            broker: broker_address,
            tls: link::client_tls(pki.ca_pem(), &credential)?,
            cluster_cidr: config.cluster_cidr,
            service_cidr: config.service_cidr,
            dns_address: dns,
        };
        worker::start(&tasks, common, membership, clock)?;
    }
    tracing::info!(api = %here, kubeconfig = %common.data_dir.join("kubeconfig").display(), "the cluster is up");
    Ok(App { store: Some(store), tasks, claims: Vec::new() })
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

/// Starts the embedded broker; the address under which this machine reaches it.
async fn start_broker(
    tasks: &Tasks,
    config: &config::Server,
    cluster: &str,
    clock: &SharedClock,
    pki: &Arc<Pki>,
) -> anyhow::Result<Address> {
    let serving = Arc::new(tls::ServingCertificate::new(Arc::clone(pki), &config.tls_san, &[])?);
    let witness = pki.folder().join("ca.crt");
    let time = tls::TrustedTime::new(Arc::clone(clock), &[&witness]);
    let (tls, certificates) = tls::server_config(pki, Arc::clone(&serving), time)?;
    let identify: Identify = Arc::new(move |chain: &[CertificateDer<'_>]| {
        let identity = certificates.identify(chain)?;
        let in_group = |group: &str| identity.groups.iter().any(|g| g == group);
        match identity.user.strip_prefix(NODE_USER_PREFIX) {
            Some(node) if in_group(NODE_GROUP) => Some(Peer::Node(node.to_owned())),
            None if identity.user == MASTER_USER && in_group(MASTER_GROUP) => Some(Peer::Master),
            _ => None,
        }
    });
    let broker = Broker::bind(config.mqtt_listen, cluster, tls, identify)
        .await?
        .on_arrival(Arc::new(move |address| serving.cover(address)));
    let here = reachable(broker.local_addr()?);
    tasks.spawn("broker", |stop| broker.run(stop));
    Ok(Address { host: here.ip().to_string(), port: here.port(), tls: true, login: None })
}

/// Lets boards join with certificates of this cluster's authority.
fn desk(pki: &Arc<Pki>) -> Desk {
    let signer = Arc::clone(pki);
    let sign = move |request: &str, node: &str| {
        signer
            .sign_client(request, &format!("{NODE_USER_PREFIX}{node}"), NODE_GROUP)
            .map_err(|error| error.to_string())
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
fn tokens(objects: &Objects) -> IssueToken {
    let objects = objects.clone();
    Arc::new(move |request| {
        let objects = objects.clone();
        Box::pin(async move {
            let spec = TokenSpec {
                audiences: request.audiences,
                expiration_seconds: Some(request.expiration_seconds),
                bound: Some(Bound { kind: "Pod".to_owned(), name: request.pod, uid: request.pod_uid }),
            };
            let now = objects.clock().now();
            let issued = objects.issue_token(&request.namespace, &request.service_account, &spec, now);
            issued.map(|t| (t.token, t.expires)).map_err(|e| e.to_string())
        })
    })
}
