//! The cluster's DNS on this node: the server, fed with what the agent's tables say.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    dns::{self, ForwardOptions, Server},
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
    mut tables: watch::Receiver<Tables>,
    stop: CancellationToken,
) -> Result<(), dns::Error> {
    let at = [SocketAddr::from((address, PORT))];
    let mut said = String::new();
    let server = loop {
        match Server::bind(&at, ForwardOptions::default()).await {
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
