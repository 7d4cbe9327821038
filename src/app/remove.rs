//! The end of a node on its board: its pods, their network, their mounts.

use std::path::Path;

use crate::{
    config::{self, Cidr},
    net::{self, Network, PodNet},
    runtime,
};

/// Ends all pods of this board and takes down their network; the daemon must not run. Data stays.
/// Goes on after a failure; what failed, a line each.
pub async fn pods(common: &config::Common, cluster_cidr: Cidr, service_cidr: Cidr) -> Vec<String> {
    let options = super::worker::runtime_options(common);
    let folders: [&Path; 2] = [&common.run_dir, &common.data_dir.join("agent")];
    let mut failed: Vec<String> =
        runtime::erase(&options, &folders).iter().map(ToString::to_string).collect();
    failed.extend(network(cluster_cidr, service_cidr).await.err().map(|error| format!("{error:#}")));
    failed
}

async fn network(cluster_cidr: Cidr, service_cidr: Cidr) -> anyhow::Result<()> {
    let options = net::Options {
        cluster_cidr: cluster_cidr.to_string().parse()?,
        service_cidr: service_cidr.to_string().parse()?,
        dns_address: None,
    };
    Ok(PodNet::new(options)?.stop().await?)
}
