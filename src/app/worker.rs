//! A worker: runtime, images, network, agent; the same beside a master and alone.

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};

use anyhow::{Context, bail};
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{link, names, service_health};
use crate::{
    check,
    clock::SharedClock,
    config::{Cidr, Common, Part},
    control,
    image::{self, ImageStore, Registries},
    mqtt::stream::{Request, Stream},
    net::{self, PodNet},
    node::{self, Agent, Ground, Link},
    runtime::{self, ShimRuntime, apparmor},
    tasks::Tasks,
};

/// What a node is in its cluster.
pub struct Membership {
    pub cluster: String,
    pub node: String,
    pub way: link::Way,
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    pub dns_address: Option<Ipv4Addr>,
    /// Called with the endpoints that the master names, and when the board was removed.
    pub keeper: Option<Arc<dyn Keeper>>,
}

/// Keeps what a board knows of its cluster.
pub trait Keeper: Send + Sync {
    /// The master names other endpoints (URLs).
    fn endpoints(&self, urls: &[String]);
    /// The board is no longer of the cluster.
    fn removed(&self);
}

/// Builds the worker's parts and starts them.
pub fn start(tasks: &Tasks, common: &Common, member: Membership, clock: SharedClock) -> anyhow::Result<()> {
    if let Some(obstacle) = check::obstacles(&check::Host::default(), &common.data_dir).first() {
        bail!(
            "no node can run here: {}; {} (`sampan check` tells all there is)",
            obstacle.summary,
            obstacle.remedy
        );
    }
    common.limits.check().map_err(anyhow::Error::msg)?;
    let state = common.data_dir.join("agent");
    let runtime = ShimRuntime::new(runtime_options(common)).context("set up the container runtime")?;
    if apparmor::is_enabled()
        && let Err(error) = apparmor::load()
    {
        tracing::warn!(%error, "containers are not confined by AppArmor, which this host has");
    }
    let options = image::Options {
        insecure_registries: common.insecure_registries.clone(),
        reserve: common.limits.disk_kept(),
        ..image::Options::new(&common.data_dir)
    };
    let registries = Registries::load(common.registries.as_deref()).map_err(anyhow::Error::msg)?;
    let options = options.with_registries(registries);
    let images = ImageStore::open(options).context("open the images")?;
    let network = PodNet::new(net::Options {
        cluster_cidr: member.cluster_cidr.to_string().parse()?,
        service_cidr: member.service_cidr.to_string().parse()?,
        dns_address: member.dns_address,
    })
    .context("set up the pod network")?;
    let control = control::Server::bind(&common.run_dir, images.clone())?;
    let inbox = images.clone();
    tasks.spawn("image inbox", |stop| image::inbox::run(inbox, stop));

    let hardware = node::hardware(common.hardware_id.as_deref());
    let link = Link::new(&member.cluster, &member.node, hardware)?;
    let names = (link.session, link.hardware);
    let client = link::Client { id: link.client_id, filters: link.filters, will: Some(link.will) };
    let bus = link::connect(tasks, "node's link", &member.way, client);
    let options = node::Options {
        image_gc_high_percent: common.image_gc_high_threshold,
        image_gc_low_percent: common.image_gc_low_threshold.min(common.image_gc_high_threshold),
        beat: member.way.link.beat(),
        local_volumes: common.data_dir.join("volumes"),
        memory_volumes: Some(common.run_dir.join("volumes")),
        limits: common.limits.clone(),
        serves_ingress: common.enabled(Part::Ingress),
        external_ip: common.node_external_ip,
        ..node::Options::new(&member.cluster, &member.node, state, common.log_dir.clone())
    };
    let ground =
        Ground { runtime: Arc::new(runtime), images: Arc::new(images), network: Arc::new(network), clock };
    let agent = Agent::new(options, names, bus, ground, common.node_ip).context("open the node's ledger")?;
    let control = control.with_node(Arc::new(Local(agent.local())));
    tasks.spawn("control", |stop| control.run(stop));
    if let Some(address) = member.dns_address {
        let (tables, forwarding) = (agent.tables(), names::forwarding(common));
        tasks.spawn("dns", move |stop| names::run(address, forwarding, tables, stop));
    }
    let tables = agent.tables();
    tasks.spawn("services' health", |stop| service_health::run(tables, stop));
    super::ingress::start(tasks, common, agent.tables());
    if let Some(keeper) = member.keeper.clone() {
        let tables = agent.tables();
        tasks.spawn("endpoints", |stop| async move {
            stop.run_until_cancelled(follow_endpoints(tables, &*keeper)).await;
            Ok::<_, Infallible>(())
        });
    }
    let keeper = member.keeper;
    tasks.spawn("agent", |stop| async move {
        let ended = agent.run(stop).await;
        if let (Err(node::Ended::Removed), Some(keeper)) = (&ended, keeper) {
            keeper.removed();
        }
        ended
    });
    Ok(())
}

/// The node for the users of its board.
struct Local(node::Local);

impl control::LocalNode for Local {
    fn pods(&self) -> Vec<serde_json::Value> {
        self.0.pods()
    }

    fn restart<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        container: Option<String>,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.0.restart(namespace, pod, container))
    }

    fn serve(&self, stream: Stream, request: Request) -> BoxFuture<'static, ()> {
        let node = self.0.clone();
        Box::pin(async move { node.serve(stream, request).await })
    }
}

async fn follow_endpoints(mut tables: watch::Receiver<node::Tables>, keeper: &dyn Keeper) {
    let mut known = Vec::new();
    loop {
        let named = tables.borrow_and_update().config.endpoints.clone();
        if named != known {
            keeper.endpoints(&named);
            known = named;
        }
        if tables.changed().await.is_err() {
            return;
        }
    }
}

/// Where the runtime of this board works.
pub fn runtime_options(common: &Common) -> runtime::Options {
    runtime::Options {
        run_dir: common.run_dir.join("runtime"),
        data_dir: common.data_dir.join("agent/runtime"),
        cgroup_root: common.cgroup_root.clone(),
        self_exe: "/proc/self/exe".into(),
    }
}
