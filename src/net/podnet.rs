//! The [`Network`] of a real node: one thread that talks to the kernel, one that deletes links.
//!
//! In: the calls of [`Network`]. Out: kernel state in the network namespace of the thread that
//! called [`PodNet::new`]. Invariants: calls are worked off one at a time, in order; the slow
//! deletion of links (tens of milliseconds in the kernel) holds up nobody; state that an earlier
//! process has left is taken over, not torn down.

use std::{
    collections::BTreeSet,
    fs::File,
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::{
    ClosedChains, Error, HostPort, Network, Peer, Protocol, ServicePort,
    beyond::Beyond,
    cidr::Cidr,
    conntrack::{self, Changed},
    mtu::Mtu,
    netlink::{Family, Socket},
    nftables::{self, Table},
    peers,
    plan::Plans,
    pod::{self, Attach},
    policy::PodPolicy,
    route::{self, LOOPBACK_INDEX},
    ruleset::Scope,
    wire::Batch,
};

/// The stack of our threads (bytes); they do not recurse.
const STACK_BYTES: usize = 256 << 10;

/// What a node's network needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// All pods of the cluster: `10.42.0.0/16`.
    pub cluster_cidr: Cidr,
    /// All cluster addresses of services: `10.43.0.0/16`.
    pub service_cidr: Cidr,
    /// The address of the cluster's DNS, which every node has itself.
    pub dns_address: Option<Ipv4Addr>,
}

/// Between two looks whether somebody has changed our table: `nft flush ruleset`, as a restart of
/// Debian's `nftables.service` does it, takes Services and NetworkPolicies away.
const TABLE_PERIOD: Duration = Duration::from_secs(5);

/// A setting that is there when connection tracking knows SCTP.
const CONNTRACK_SCTP: &str = "/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established";

type Job = Box<dyn FnOnce(&mut Kernel) + Send>;

/// The network of this node. See the module's header.
pub struct PodNet {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    silent: Arc<Mutex<BTreeSet<String>>>,
}

impl PodNet {
    /// Opens the sockets in the calling thread's network namespace and starts the threads.
    pub fn new(options: Options) -> Result<Self, Error> {
        let home = File::open("/proc/thread-self/ns/net").map_err(|source| Error::Kernel {
            operation: "open the node's network namespace".to_owned(),
            source,
        })?;
        let (wake_reaper, reaper_jobs) = mpsc::channel();
        let mut reaper_socket = Socket::open(Family::Route)?;
        let mut kernel = Kernel {
            options,
            home,
            route: Socket::open(Family::Route)?,
            mtu: Mtu::open()?,
            table: Table::open()?,
            plans: Plans::default(),
            node: None,
            policies: Vec::new(),
            local_networks: None,
            beyond: Beyond::default(),
            said: Instant::now(),
            looked: Instant::now(),
            silent: Arc::default(),
            reaper: wake_reaper,
        };
        let silent = Arc::clone(&kernel.silent);
        let (jobs, queue) = mpsc::channel::<Job>();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_owned())
                .stack_size(STACK_BYTES)
                .spawn(run)
                .map_err(|source| Error::Kernel { operation: format!("start the thread {name}"), source })
        };
        let threads = vec![
            spawn(
                "net",
                Box::new(move || {
                    loop {
                        let job = match kernel.pause() {
                            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                            Some(pause) => queue.recv_timeout(pause),
                        };
                        match job {
                            Ok(job) => job(&mut kernel),
                            Err(RecvTimeoutError::Timeout) => kernel.do_what_is_due(),
                            Err(RecvTimeoutError::Disconnected) => break,
                        }
                    }
                }),
            )?,
            spawn("net-reaper", Box::new(move || reap(&mut reaper_socket, &reaper_jobs)))?,
        ];
        Ok(Self { jobs: Some(jobs), threads, silent })
    }

    /// Runs `job` on the network thread.
    fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Kernel) -> Result<T, Error> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |kernel| {
            // Nobody waits any more when the caller was cancelled; the work is done all the same.
            let _ = answer.send(job(kernel));
        });
        let queued = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        Box::pin(async move {
            let ended = || Error::Invalid("the network thread has ended".to_owned());
            if queued { answered.await.map_err(|_| ended())? } else { Err(ended()) }
        })
    }
}

impl Drop for PodNet {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a network thread has panicked");
            }
        }
    }
}

/// What the reaper is told.
enum Reap {
    /// Links wait for their deletion.
    Links,
    /// Tells when all that was asked for before is done.
    Barrier(mpsc::Sender<()>),
}

/// Deletes retired links, as many at once as have gathered.
fn reap(socket: &mut Socket, jobs: &mpsc::Receiver<Reap>) {
    while let Ok(first) = jobs.recv() {
        let mut barriers = Vec::new();
        for job in std::iter::once(first).chain(jobs.try_iter()) {
            if let Reap::Barrier(done) = job {
                barriers.push(done);
            }
        }
        let mut batch = Batch::new();
        route::delete_group(&mut batch, pod::GROUP_DEAD);
        if let Err(refusal) = socket.apply(&batch) {
            tracing::warn!(error = %Error::from(refusal), "cannot delete links of gone pods");
        }
        for done in barriers {
            let _ = done.send(());
        }
    }
}

/// What [`Network::start`] has told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub pod_cidr: Cidr,
}

impl Node {
    /// The node's own address in the pod network: the first of its CIDR, given to no pod. Packets
    /// from the host to pods and services carry it, so that they need no other address and no
    /// default route, and find back from every node.
    pub fn address(self) -> Ipv4Addr {
        self.pod_cidr.first()
    }
}

/// The network thread's state.
struct Kernel {
    options: Options,
    home: File,
    route: Socket,
    mtu: Mtu,
    table: Table,
    plans: Plans,
    node: Option<Node>,
    policies: Vec<PodPolicy>,
    /// What [`Kernel::set_local_networks`] has made.
    local_networks: Option<BTreeSet<Cidr>>,
    beyond: Beyond,
    /// When the nodes beyond were last sent to.
    said: Instant,
    /// When the table was last looked at.
    looked: Instant,
    silent: Arc<Mutex<BTreeSet<String>>>,
    reaper: mpsc::Sender<Reap>,
}

impl Kernel {
    fn node(&self) -> Result<Node, Error> {
        self.node.ok_or_else(|| Error::Invalid("the network was not started".to_owned()))
    }

    fn start(&mut self, pod_cidr: Cidr) -> Result<(), Error> {
        let node = Node { pod_cidr };
        // Routers of packets that are not for themselves; and 127.0.0.1 reaches node ports, as
        // kube-proxy has it (the ruleset keeps others from reaching it).
        set_sysctl("net/ipv4/ip_forward", "1")?;
        set_sysctl("net/ipv4/conf/all/route_localnet", "1")?;
        let mut batch = Batch::new();
        route::set_up(&mut batch, LOOPBACK_INDEX);
        self.route.apply(&batch)?;
        let wanted: Vec<_> = std::iter::once(node.address()).chain(self.options.dns_address).collect();
        let mut batch = Batch::new();
        for address in &wanted {
            route::add_address(&mut batch, LOOPBACK_INDEX, *address, route::SCOPE_HOST);
        }
        for address in self.own_addresses()? {
            if !wanted.contains(&address) {
                route::delete_address(&mut batch, LOOPBACK_INDEX, address);
            }
        }
        // All service addresses are the node's own: without a default route the kernel would give up
        // before an address is translated, and only for its own it answers with an ICMP error.
        route::set_local_network(&mut batch, self.options.service_cidr, node.address());
        self.route.apply(&batch)?;
        // An earlier process's services serve on until the first new ones come.
        if !self.table.exists()? {
            let empty = self.plans.ruleset(self.scope(node), &[], &[]);
            self.table.apply(empty)?;
        }
        let ClosedChains { forward, input } = nftables::closed_chains(self.table.socket())?;
        if !forward.is_empty() || !input.is_empty() {
            let cluster = self.options.cluster_cidr;
            tracing::warn!(
                ?forward,
                ?input,
                %cluster,
                "another program's firewall drops what it does not know: it has to let pods pass, and nodes; \
                 `sampan check` says how"
            );
        }
        self.node = Some(node);
        self.local_networks = None;
        let _ = self.reaper.send(Reap::Links);
        Ok(())
    }

    fn scope(&self, node: Node) -> Scope {
        Scope {
            cluster: self.options.cluster_cidr,
            service: self.options.service_cidr,
            pods: node.pod_cidr,
            dns: self.options.dns_address,
        }
    }

    /// The addresses of pods and services that loopback has: ours, also of an earlier run.
    fn own_addresses(&mut self) -> Result<Vec<Ipv4Addr>, Error> {
        let Options { cluster_cidr, service_cidr, .. } = self.options;
        Ok(route::addresses(&mut self.route)?
            .into_iter()
            .filter(|a| a.index == LOOPBACK_INDEX && a.prefix == 32)
            .map(|a| a.ip)
            .filter(|address| cluster_cidr.contains(*address) || service_cidr.contains(*address))
            .collect())
    }

    fn attach(&mut self, pod_uid: &str, netns: &Path, address: Ipv4Addr) -> Result<(), Error> {
        let node = self.node()?;
        let mtu = self.mtu.get(&mut self.route)?;
        let wanted = Attach { pod_uid, netns, address, node_source: node.address(), mtu };
        pod::attach(&mut self.route, &self.home, &wanted)
    }

    fn detach(&mut self, pod_uid: &str) -> Result<(), Error> {
        if pod::retire(&mut self.route, pod_uid)? {
            let _ = self.reaper.send(Reap::Links);
        }
        Ok(())
    }

    fn set_peers(&mut self, peers: &[Peer]) -> Result<(), Error> {
        let node = self.node()?;
        peers::apply(&mut self.route, node.pod_cidr, peers)?;
        self.beyond.set(node.address(), peers::beyond(node.pod_cidr, peers));
        self.say_alive();
        Ok(())
    }

    /// How long until something is due that nobody asks for.
    fn pause(&self) -> Option<Duration> {
        let left = |since: Instant, period: Duration| period.saturating_sub(since.elapsed());
        let say = self.beyond.pause().map(|pause| left(self.said, pause));
        let look = self.table.applied().map(|_| left(self.looked, TABLE_PERIOD));
        say.into_iter().chain(look).min()
    }

    fn do_what_is_due(&mut self) {
        if self.beyond.pause().is_some_and(|pause| self.said.elapsed() >= pause) {
            self.say_alive();
        }
        if self.looked.elapsed() >= TABLE_PERIOD {
            self.looked = Instant::now();
            match self.table.repair() {
                Ok(true) => self.cut_stale(None),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "looking after the service table"),
            }
        }
    }

    fn say_alive(&mut self) {
        self.said = Instant::now();
        self.beyond.send();
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = self.beyond.silent();
    }

    fn set_services(
        &mut self,
        services: &[Arc<ServicePort>],
        host_ports: &[HostPort],
    ) -> Result<Vec<String>, Error> {
        let scope = self.scope(self.node()?);
        let mut wanted = self.plans.ruleset(scope, services, host_ports);
        wanted.set_policies(&self.policies);
        let changed = Changed::between(self.table.applied(), &wanted);
        let anew = self.table.apply(wanted)?;
        self.set_local_networks(services)?;
        self.cut_stale((!anew).then_some(&changed));
        let sctp = services.iter().any(|service| service.protocol == Protocol::Sctp)
            || host_ports.iter().any(|port| port.protocol == Protocol::Sctp);
        let mut shortfalls = self.table.shortfalls();
        if sctp && !Path::new(CONNTRACK_SCTP).exists() {
            shortfalls.push(
                "SCTP ports are not translated (the kernel's nf_conntrack does not know SCTP)".to_owned(),
            );
        }
        Ok(shortfalls)
    }

    /// Ends UDP connections that a change has made wrong; after a time without our table any may be.
    fn cut_stale(&mut self, changed: Option<&Changed>) {
        let all = changed.is_none().then(|| self.table.applied().map(|now| Changed::between(None, now)));
        let Some(changed) = changed.or(all.as_ref().and_then(Option::as_ref)) else { return };
        if let Err(error) = conntrack::delete_stale(self.table.socket(), changed) {
            // Services work all the same; long-lived UDP clients of gone endpoints do not.
            tracing::warn!(%error, "UDP connections of gone endpoints are not cut");
        }
    }

    /// Makes addresses of services the node's own, so that they are reached without a default route:
    /// all of the cluster's first network, and single ones of further ServiceCIDRs.
    fn set_local_networks(&mut self, services: &[Arc<ServicePort>]) -> Result<(), Error> {
        let node = self.node()?;
        let Options { cluster_cidr, service_cidr, .. } = self.options;
        let further = services
            .iter()
            .flat_map(|service| &service.cluster_ips)
            .filter(|ip| !service_cidr.contains(**ip) && !cluster_cidr.contains(**ip))
            .map(|ip| Cidr::new(*ip, 32));
        let wanted: BTreeSet<Cidr> = further.chain([service_cidr]).collect();
        if self.local_networks.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let existing = route::local_networks(&mut self.route)?;
        let mut batch = Batch::new();
        for network in wanted.iter().filter(|network| !existing.contains(network)) {
            route::set_local_network(&mut batch, *network, node.address());
        }
        for network in existing.into_iter().filter(|network| !wanted.contains(network)) {
            route::delete_local_network(&mut batch, network);
        }
        self.route.apply(&batch)?;
        self.local_networks = Some(wanted);
        Ok(())
    }

    fn set_policies(&mut self, policies: Vec<PodPolicy>) -> Result<(), Error> {
        self.node()?;
        self.policies = policies;
        // An earlier process's table is left as it is until the first services come, and these with them.
        let Some(applied) = self.table.applied() else { return Ok(()) };
        let mut wanted = applied.clone();
        wanted.set_policies(&self.policies);
        if self.table.apply(wanted)? {
            self.cut_stale(None);
        }
        Ok(())
    }

    /// Tears everything down as far as it goes; the first failure is returned, all are logged.
    fn stop(&mut self) -> Result<(), Error> {
        let results = [self.table.remove(), self.remove_routes_and_links()];
        let (done, wait) = mpsc::channel();
        if self.reaper.send(Reap::Barrier(done)).is_ok() {
            let _ = wait.recv();
        }
        self.node = None;
        self.beyond = Beyond::default();
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            tracing::warn!(%error, "the network is not wholly taken down");
        }
        results.into_iter().collect()
    }

    fn remove_routes_and_links(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        for address in self.own_addresses()? {
            route::delete_address(&mut batch, LOOPBACK_INDEX, address);
        }
        self.local_networks = None;
        for network in route::local_networks(&mut self.route)? {
            route::delete_local_network(&mut batch, network);
        }
        for route in route::own_routes(&mut self.route)? {
            route::delete_route(&mut batch, &route);
        }
        for link in route::links(&mut self.route)? {
            if link.group == pod::GROUP_LIVE && link.name.starts_with(pod::DEVICE_PREFIX) {
                route::set_group(&mut batch, link.index, pod::GROUP_DEAD);
            } else if link.name == peers::DEVICE {
                route::delete_link(&mut batch, link.index);
            }
        }
        Ok(self.route.apply(&batch)?)
    }
}

/// Sets a kernel setting below `/proc/sys`, unless it is so already.
fn set_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name);
    let result = match std::fs::read_to_string(&path) {
        Ok(old) if old.trim() == value => Ok(()),
        _ => std::fs::write(&path, value),
    };
    result.map_err(|source| Error::Kernel { operation: format!("set {} to {value}", path.display()), source })
}

impl Network for PodNet {
    fn start<'a>(&'a self, pod_cidr: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let pod_cidr = pod_cidr.to_owned();
        self.call(move |kernel| kernel.start(pod_cidr.parse()?))
    }

    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        netns: &'a Path,
        address: Ipv4Addr,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let (pod_uid, netns) = (pod_uid.to_owned(), netns.to_owned());
        self.call(move |kernel| kernel.attach(&pod_uid, &netns, address))
    }

    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let pod_uid = pod_uid.to_owned();
        self.call(move |kernel| kernel.detach(&pod_uid))
    }

    fn set_peers<'a>(&'a self, peers: &'a [Peer]) -> BoxFuture<'a, Result<(), Error>> {
        let peers = peers.to_vec();
        self.call(move |kernel| kernel.set_peers(&peers))
    }

    fn set_services<'a>(
        &'a self,
        services: &'a [Arc<ServicePort>],
        host_ports: &'a [HostPort],
    ) -> BoxFuture<'a, Result<Vec<String>, Error>> {
        let (services, host_ports) = (services.to_vec(), host_ports.to_vec());
        self.call(move |kernel| kernel.set_services(&services, &host_ports))
    }

    fn set_policies<'a>(&'a self, policies: &'a [PodPolicy]) -> BoxFuture<'a, Result<(), Error>> {
        let policies = policies.to_vec();
        self.call(move |kernel| kernel.set_policies(policies))
    }

    fn silent_peers(&self) -> BTreeSet<String> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.call(Kernel::stop)
    }
}
