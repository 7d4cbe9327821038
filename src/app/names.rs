//! The cluster's DNS on this node: the server, fed with what the agent's tables say.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    config::Common,
    dns::{self, ForwardOptions, Server, StubDomain},
    net::names::{DnsService, DnsTable},
    node::Tables,
    tasks::CancellationToken,
};

const PORT: u16 = 53;
/// Between two tries to listen: whoever has the port may go.
const RETRY: Duration = Duration::from_millis(200);

/// Serves until told to stop. Whoever else listens on the port is waited for.
///
/// # Errors
/// The socket breaks while it serves.
pub async fn run(
    address: Ipv4Addr,
    options: ForwardOptions,
    mut tables: watch::Receiver<Tables>,
    stop: CancellationToken,
) -> Result<(), dns::Error> {
    let at = [SocketAddr::from((address, PORT))];
    let mut said = String::new();
    let server = loop {
        match Server::bind(&at, options.clone()).await {
            Ok(server) => break server,
            Err(error) => {
                let error = error.to_string();
                if said != error {
                    tracing::warn!(error, "pods have no DNS: its address cannot be listened on");
                    said = error;
                }
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            return Ok(());
        }
    };
    let feed = async {
        loop {
            let table = table(&tables.borrow_and_update(), address);
            if let Err(error) = server.set_table(&table) {
                tracing::error!(%error, "the table of names was refused");
            }
            if tables.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        served = server.run(stop.clone()) => served,
        never = feed => never,
    }
}

/// Whom the flags name for names outside the cluster.
pub fn forwarding(common: &Common) -> ForwardOptions {
    let mut stubs: BTreeMap<&str, Vec<SocketAddr>> = BTreeMap::new();
    for (domain, server) in &common.dns_stub_domains {
        stubs.entry(domain).or_default().push(*server);
    }
    let stub = |(domain, servers): (&str, _)| StubDomain { domain: domain.to_owned(), servers };
    ForwardOptions {
        upstreams: common.dns_upstreams.clone(),
        resolv_conf: None,
        stub_domains: stubs.into_iter().map(stub).collect(),
    }
}

/// The whole table out of its namespaces' items.
fn table(tables: &Tables, address: Ipv4Addr) -> DnsTable {
    let config = &tables.config;
    let mut services = Vec::new();
    for item in &tables.dns {
        match item.read::<Vec<DnsService>>() {
            Ok(more) => services.extend(more),
            Err(error) => tracing::error!(%error, "names of a namespace cannot be read"),
        }
    }
    DnsTable {
        domain: config.cluster_domain.clone(),
        dns_address: Some(address),
        networks: [&config.cluster_cidr, &config.service_cidr]
            .into_iter()
            .filter(|network| !network.is_empty())
            .cloned()
            .collect(),
        namespaces: tables.dns.iter().map(|item| item.key.namespace.clone()).collect(),
        services,
    }
}
