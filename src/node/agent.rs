//! The link to the master, and the set of pod workers.
//!
//! On every connection: hello with the ledger's generation and digest; the master answers with what
//! differs; what arrives is verified against its digest, written, then handed to the workers.

mod served;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use services::Services;
use tokio::{
    sync::{Notify, broadcast::error::RecvError, mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until, timeout_at},
};

use super::{
    address::Addresses,
    asks::Asks,
    eviction::{self, Manager},
    folders, images, info,
    isolation::Isolation,
    jobs,
    ledger::{Ledger, LedgerError},
    local::{Command, Local},
    logs,
    parts::Parts,
    record::{Record, Wanted, parse_container_id},
    shared::{Options, Outbox, Pressure, Shared, Victims},
    streams,
    usage::Looks,
    worker::{Mail, Mailbox, Worker},
};
use crate::{
    clock::{Jumps, SharedClock},
    ids::{self, Generation},
    image::Images,
    mqtt::{
        self, Bus, Event, Events, Priority, Will,
        messages::{
            self, Desired, Down, Hello, Item, ItemKey, ItemKind, NodeConfig, NodeEvent, NodeState, PROTOCOL,
            SharedChange, Status, Up,
        },
        stream::Mux,
        topics::{self, Leaf},
    },
    net::{AddressWatch, HostPort, Network, Peer, ServicePort, policy::PodPolicy},
    runtime::{Kill, Runtime, SystemOoms},
    tasks::CancellationToken,
};

/// Pod statuses of one message.
const REPORTS_MAX: usize = 128;
/// How long the first answer to a hello is waited for before it is said again, and the last.
const HELLO_AGAIN_FIRST: Duration = Duration::from_secs(4);
const HELLO_AGAIN_LAST: Duration = Duration::from_secs(30);
/// How long the pods of a removed node may take to end.
const REMOVAL_MAX: Duration = Duration::from_secs(45);
/// Commands of users of this board that wait.
const COMMANDS_MAX: usize = 8;
/// The one peer of a node's streams.
const MASTER: &str = "";

/// How a node introduces itself to a broker.
#[derive(Debug, Clone)]
pub struct Link {
    pub client_id: String,
    pub filters: Vec<String>,
    pub will: Will,
    /// Names this start of the agent.
    pub session: String,
    /// The board, as [`info::hardware`] has it.
    pub hardware: String,
}

impl Link {
    /// A new session of a node.
    ///
    /// # Errors
    /// Never in practice: the will is small.
    pub fn new(cluster: &str, node: &str, hardware: String) -> Result<Self, mqtt::Error> {
        let session = ids::hex(&ids::random_bytes::<8>());
        let bye = Up::Bye { session: session.clone(), clean: false };
        let will = Will { topic: topics::up(cluster, node, Leaf::Will), payload: messages::encode(&bye)? };
        let client_id = topics::board_client_id(cluster, node, &hardware);
        Ok(Self { client_id, filters: topics::node_filters(cluster, node), will, session, hardware })
    }
}

/// The parts of the desired set that others on this node serve.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    pub config: NodeConfig,
    /// Items of [`ItemKind::Dns`].
    pub dns: Vec<Arc<Item>>,
    /// Items of [`ItemKind::Ingress`].
    pub ingress: Vec<Arc<Item>>,
    pub health: Vec<ServiceHealth>,
}

/// What a load balancer is told about a service on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHealth {
    /// `healthCheckNodePort`.
    pub port: u16,
    /// `namespace/name`.
    pub service: String,
    /// The ready endpoints on this node.
    pub endpoints: usize,
}

fn health(services: &[Arc<ServicePort>]) -> Vec<ServiceHealth> {
    let mut found: BTreeMap<(u16, &str), BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for service in services {
        let Some(port) = service.health_check_port else { continue };
        let name = service.name.split(':').next().unwrap_or_default();
        let local = service.backends.iter().filter(|b| b.local && !b.ending).map(|b| b.address);
        found.entry((port, name)).or_default().extend(local);
    }
    let health = found.into_iter().map(|((port, service), endpoints)| ServiceHealth {
        port,
        service: service.to_owned(),
        endpoints: endpoints.len(),
    });
    health.collect()
}

/// Why an agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Its pods are gone; who it was has to be forgotten.
    #[error("the master has removed this board from the cluster")]
    Removed,
}

/// What the node's state speaks of: the pressure, the ids of images, what is known of others' builds.
type Looked = (Pressure, Vec<String>, BTreeMap<String, Vec<String>>);

struct Entry {
    hash: String,
    namespace: String,
    mailbox: Mailbox,
}

/// What an agent stands on.
#[derive(Clone)]
pub struct Ground {
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn Network>,
    pub clock: SharedClock,
}

/// The agent of one node.
pub struct Agent {
    shared: Arc<Shared>,
    bus: Arc<dyn Bus>,
    events: Events,
    session: String,
    hardware: String,
    boot: String,
    clock: Jumps,
    address: Option<Ipv4Addr>,
    /// The master has answered on this connection.
    welcome: bool,
    /// The master has asked for a hello: its answer to that is followed by the node's state.
    asked: bool,
    /// When a hello without an answer is said again.
    hello_again: Option<Instant>,
    hello_pause: Duration,
    /// The master has taken this board out of the cluster.
    removed: bool,
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    seq: u64,
    /// What [`Self::seq`] was at the last beat: what has no acknowledgement since is said again.
    seq_of_beat: u64,
    parts: Parts,
    shared_parts: Parts,
    pods: BTreeMap<String, Entry>,
    workers: JoinSet<String>,
    mux: Mux,
    streams: JoinSet<()>,
    stop_workers: CancellationToken,
    sandboxes: BTreeSet<String>,
    tables: watch::Sender<Tables>,
    /// What the network was told last.
    network_start: String,
    /// The state of the node that the master was told last on this connection.
    state: Option<NodeState>,
    /// What events have told last: no new pods come here.
    unschedulable: bool,
    /// What events have told: memory, disk, processes, readiness are as they should be.
    told: Option<[bool; 4]>,
    looked: Option<Looked>,
    /// The message that told it, while it is not acknowledged.
    state_seq: Option<u64>,
    /// A newer one that waits to be told.
    state_to_tell: Option<NodeState>,
    services: Option<(Vec<Arc<ServicePort>>, Vec<HostPort>)>,
    services_read: Services,
    /// What the kernel cannot do of Services, as told.
    shortfalls: Vec<String>,
    peers: Option<Vec<Peer>>,
    /// Nodes that did not answer, as told.
    silent: BTreeSet<String>,
    policies: Option<Vec<PodPolicy>>,
}

impl Agent {
    /// Opens the ledger. `bus` and `events` are a connection made with [`Link`]; `address` is the
    /// node's own when the user has set it.
    ///
    /// # Errors
    /// The ledger cannot be opened.
    pub fn new(
        options: Options,
        (session, hardware): (String, String),
        (bus, events): (Arc<dyn Bus>, Events),
        ground: Ground,
        address: Option<Ipv4Addr>,
    ) -> Result<Self, LedgerError> {
        let Ground { runtime, images, network, clock } = ground;
        let ledger = Ledger::open(&options.data_dir.join("ledger.db"))?;
        let info = info::gather(&options, address);
        let shared = Shared {
            options,
            runtime,
            images,
            network,
            clock,
            masters_lead: Mutex::default(),
            ledger,
            outbox: Outbox::default(),
            asks: Asks::default(),
            addresses: Mutex::new(Addresses::default()),
            allocations: Mutex::default(),
            pressure: Mutex::default(),
            looks: Looks::default(),
            evictions: Mutex::default(),
            preemptions: Mutex::default(),
            network_error: Mutex::default(),
            admitting: Mutex::default(),
            room: watch::Sender::default(),
            victims: Victims::default(),
            info: Mutex::new(info),
            host_ports: Mutex::default(),
            host_ports_changed: Notify::new(),
            volumes_in_use: Mutex::default(),
            mounting: Arc::default(),
            images_used: Notify::new(),
            folders_changed: Notify::new(),
            isolation: Isolation::default(),
        };
        let topic = topics::up(&shared.options.cluster, &shared.options.node, Leaf::Stream);
        Ok(Self {
            clock: Jumps::new(&*shared.clock),
            shared: Arc::new(shared),
            mux: Mux::new(Arc::clone(&bus), move |_| topic.clone()),
            streams: JoinSet::new(),
            bus,
            events,
            session,
            hardware,
            boot: ids::hex(&ids::random_bytes::<8>()),
            address,
            welcome: false,
            asked: false,
            hello_again: None,
            hello_pause: HELLO_AGAIN_FIRST,
            removed: false,
            commands: mpsc::channel(COMMANDS_MAX),
            seq: 0,
            seq_of_beat: 0,
            parts: Parts::default(),
            shared_parts: Parts::default(),
            pods: BTreeMap::new(),
            workers: JoinSet::new(),
            stop_workers: CancellationToken::new(),
            sandboxes: BTreeSet::new(),
            tables: watch::Sender::new(Tables::default()),
            network_start: String::new(),
            state: None,
            unschedulable: false,
            told: None,
            looked: None,
            state_seq: None,
            state_to_tell: None,
            services: None,
            services_read: Services::default(),
            shortfalls: Vec::new(),
            peers: None,
            silent: BTreeSet::new(),
            policies: None,
        })
    }

    /// The tables for DNS and ingress; filled from the ledger at once when the agent runs.
    pub fn tables(&self) -> watch::Receiver<Tables> {
        self.tables.subscribe()
    }

    /// What a user of this board may see and do, with the master or without.
    pub fn local(&self) -> Local {
        Local::new(Arc::clone(&self.shared), self.commands.0.clone())
    }

    /// Runs until told to stop. Containers stay.
    ///
    /// # Errors
    /// The ledger cannot be written any more, or the master has removed this node.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Ended> {
        let shared = Arc::clone(&self.shared);
        let mut changes = shared.runtime.watch();
        let addresses = AddressWatch::open()
            .inspect_err(
                |error| tracing::warn!(%error, "changes of addresses are noticed once a minute only"),
            )
            .ok();
        let mut kills = SystemOoms::open()
            .inspect_err(|error| {
                tracing::info!(%error, "the kernel's log cannot be read: no SystemOOM is told");
            })
            .ok();
        self.boot().await;
        let folders = folders::run(Arc::clone(&shared), self.stop_workers.clone());
        let mut chores = JoinSet::new();
        chores.spawn(folders);
        chores.spawn(images::run(Arc::clone(&shared), self.stop_workers.clone()));
        let mut arrivals = shared.images.arrivals();
        let mut beat = tokio::time::interval_at(Instant::now() + shared.options.beat, shared.options.beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watching = tokio::spawn(watch_resources(Arc::clone(&shared)));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = self.events.recv() => match event {
                    Some(event) => self.heard(event).await?,
                    None => break,
                },
                change = changes.recv() => match change {
                    Ok(id) => self.look(&id).await,
                    Err(RecvError::Lagged(_)) => self.tell_all(Mail::Look).await,
                    Err(RecvError::Closed) => break,
                },
                Some(ended) = self.workers.join_next() => self.reap(ended).await,
                Some(Command::Restart { uid, container, reply }) = self.commands.1.recv() => {
                    let known = self.pods.get(&uid);
                    if let Some(pod) = known {
                        pod.mailbox.send(Mail::Restart(container)).await;
                    }
                    // Who asked does not wait any more when this fails.
                    let _ = reply.send(known.is_some());
                }
                () = shared.outbox.changed.notified() => self.send_news().await,
                () = shared.asks.changed.notified() => self.send_news().await,
                () = shared.host_ports_changed.notified() => self.apply_services().await,
                () = shared.victims.changed.notified() => {
                    for (uid, verdict) in shared.victims.take() {
                        if let Some(pod) = self.pods.get(&uid) {
                            pod.mailbox.send(Mail::Evict(verdict)).await;
                        }
                    }
                }
                () = shared.isolation.changed.notified() => self.apply_policies().await,
                true = arrived(&mut arrivals) => self.tell_all(Mail::Images).await,
                _ = beat.tick() => self.beat().await,
                () = addresses_changed(addresses.as_ref()) => self.addresses_changed().await,
                kill = next_kill(kills.as_mut()) => {
                    let Kill { process, pid } = kill;
                    let message = format!("System OOM encountered, victim process: {process}, pid: {pid}");
                    shared.node_event(true, "SystemOOM", message);
                }
                () = sleep_until(self.hello_again.unwrap_or_else(Instant::now)),
                    if self.hello_again.is_some() => self.hello(false).await,
            }
            if self.removed {
                watching.abort();
                self.take_everything_away().await?;
                return Err(Ended::Removed);
            }
        }
        watching.abort();
        self.stop_workers.cancel();
        while self.workers.join_next().await.is_some() {}
        while chores.join_next().await.is_some() {}
        self.say(&Up::Bye { session: self.session.clone(), clean: true }).await;
        Ok(())
    }

    /// The node is no longer of the cluster: its pods end, its ledger is emptied.
    async fn take_everything_away(&mut self) -> Result<(), LedgerError> {
        let generation = self.shared.ledger.generation();
        self.shared.ledger.apply(generation, Vec::new(), self.shared.ledger.keys()).await?;
        self.reconcile(&BTreeSet::new()).await;
        let deadline = Instant::now() + REMOVAL_MAX;
        while let Ok(Some(_)) = timeout_at(deadline, self.workers.join_next()).await {}
        self.stop_workers.cancel();
        while self.workers.join_next().await.is_some() {}
        Ok(())
    }

    /// Takes up everything as the ledger has it, before there is any master.
    async fn boot(&mut self) {
        let options = &self.shared.options;
        if let Some(bytes) = options.limits.pod_logs_tmpfs
            && let Err(error) = logs::keep_in_memory(&options.pod_logs, bytes)
        {
            tracing::error!(%error, "the logs of pods stay on disk");
        }
        let records = self.shared.ledger.records();
        {
            let mut addresses = self.shared.addresses();
            for (uid, ip) in records.iter().filter_map(|(uid, record)| Some((uid, record.ip?))) {
                addresses.take(ip);
                self.shared.isolation.set(uid, Some(ip));
            }
        }
        match self.shared.runtime.sandboxes().await {
            Ok(sandboxes) => self.sandboxes = sandboxes.into_iter().map(|s| s.id).collect(),
            Err(error) => tracing::error!(%error, "listing sandboxes"),
        }
        self.apply_config().await;
        let wanted: BTreeSet<String> =
            self.shared.ledger.items(ItemKind::Pod).iter().filter_map(|item| uid_of(item)).collect();
        self.remove_orphans(&wanted, &records).await;
        self.reconcile(&BTreeSet::new()).await;
        self.apply_policies().await;
        self.apply_services().await;
        self.apply_peers().await;
        self.publish_tables();
    }

    /// Takes away what belongs to no pod that is wanted.
    async fn remove_orphans(&mut self, wanted: &BTreeSet<String>, records: &BTreeMap<String, Record>) {
        let containers = self.shared.runtime.containers().await.unwrap_or_else(|error| {
            tracing::error!(%error, "listing containers");
            Vec::new()
        });
        let mut orphans: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (spec, _) in containers {
            if !wanted.contains(&spec.sandbox) {
                orphans.entry(spec.sandbox.clone()).or_default().push(spec.id.clone());
            }
        }
        for uid in self.sandboxes.iter().chain(records.keys()).filter(|uid| !wanted.contains(*uid)) {
            orphans.entry(uid.clone()).or_default();
        }
        for (uid, containers) in orphans {
            self.sandboxes.remove(&uid);
            self.shared.isolation.set(&uid, None);
            match jobs::remove_orphan(&self.shared, &uid, &containers).await {
                Ok(()) => {
                    if let Err(error) = self.shared.ledger.forget(&uid).await {
                        tracing::error!(%error, "writing the ledger");
                    }
                }
                Err(error) => tracing::error!(uid, error, "taking an orphan away"),
            }
        }
    }

    async fn heard(&mut self, event: Event) -> Result<(), LedgerError> {
        match event {
            Event::Connected => {
                self.hello(false).await;
            }
            Event::Disconnected { reason } => {
                tracing::debug!(reason, "cut off from the master");
                self.welcome = false;
                self.hello_again = None;
                self.hello_pause = HELLO_AGAIN_FIRST;
                self.state = None;
                (self.parts, self.shared_parts) = (Parts::default(), Parts::default());
                self.mux.lost(MASTER);
                self.shared.outbox.unsend();
                self.shared.asks.unsend();
            }
            Event::Message { topic, payload } => match topics::parse_down(&topic) {
                Some(Leaf::Control) => self.obey(&payload).await?,
                // Before the master's answer, what is heard may be meant for another board.
                Some(Leaf::Stream) if !self.welcome => {}
                Some(Leaf::Stream) => {
                    while self.streams.try_join_next().is_some() {}
                    if let Some((stream, request)) = self.mux.heard(MASTER, &payload) {
                        self.streams.spawn(streams::serve(Arc::clone(&self.shared), stream, request));
                    }
                }
                Some(Leaf::Will) => {}
                // The master's boot id: it may have been restarted behind an external broker.
                None => self.hello(false).await,
            },
        }
        Ok(())
    }

    async fn say(&self, message: &Up) -> bool {
        let topic = topics::up(&self.shared.options.cluster, &self.shared.options.node, Leaf::Control);
        let sent = match messages::encode(message) {
            Ok(payload) => self.bus.publish(&topic, payload, Priority::Control).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &sent
            && !matches!(error, mqtt::Error::Offline)
        {
            tracing::error!(%error, "a message could not be sent");
        }
        sent.is_ok()
    }

    async fn hello(&mut self, hashes: bool) {
        self.parts = Parts::default();
        let ledger = &self.shared.ledger;
        let hello = Hello {
            protocol: PROTOCOL,
            session: self.session.clone(),
            boot: self.boot.clone(),
            hardware: self.hardware.clone(),
            now: Some(self.shared.clock.now()),
            info: self.shared.info(),
            generation: ledger.generation(),
            digest: ledger.digest(),
            shared: ledger.shared_digest().to_string(),
            hashes: hashes.then(|| ledger.hashes()),
        };
        self.say(&Up::Hello(Box::new(hello))).await;
        // On a bad link the answer may take long; a lost hello must not wait for the next beat.
        self.hello_again = (!self.welcome && self.bus.connected()).then(|| Instant::now() + self.hello_pause);
        self.hello_pause = (self.hello_pause * 2).min(HELLO_AGAIN_LAST);
    }

    async fn beat(&mut self) {
        let address = self.address;
        let options = self.shared.options.clone();
        let fresh = tokio::task::spawn_blocking(move || info::gather(&options, address)).await;
        let changed = fresh.is_ok_and(|fresh| {
            let mut info = self.shared.info.lock().expect("no holder of the info's lock panics");
            let changed = *info != fresh;
            *info = fresh;
            changed
        });
        // The master judges the times that this node tells by the clock of its hello.
        let clock_was_set = !self.clock.since_last(&*self.shared.clock).is_zero();
        if changed || clock_was_set {
            self.hello(false).await;
            self.tell_all(Mail::Look).await;
        } else if self.bus.connected() {
            let ledger = &self.shared.ledger;
            let (generation, shared) = (ledger.generation(), ledger.shared_digest().brief());
            self.say(&Up::Beat { session: self.session.clone(), generation, shared }).await;
        }
        self.shared.outbox.unsend_up_to(self.seq_of_beat);
        if self.state_seq.is_some_and(|told| told <= self.seq_of_beat) {
            self.state = None;
        }
        self.seq_of_beat = self.seq;
        // What could not be set when it changed.
        if !self.shared.network_error().is_empty() {
            self.apply_config().await;
        }
        if self.peers.is_none() {
            self.apply_peers().await;
        }
        if self.policies.is_none() {
            self.apply_policies().await;
        }
        if self.services.is_none() {
            self.apply_services().await;
        }
        self.tell_silent_peers();
        self.look_at_state();
        self.send_news().await;
    }

    /// The node itself may have another address, and reach others in another way.
    async fn addresses_changed(&mut self) {
        tracing::debug!("addresses of this node have changed");
        let before = self.shared.info().own_addresses;
        self.beat().await;
        let now = self.shared.info().own_addresses;
        if before.iter().any(|address| !now.contains(address)) {
            // The kernel would keep trying from there until the connection's time is over.
            self.bus.renew();
        }
        self.peers = None;
        self.apply_peers().await;
    }

    async fn obey(&mut self, payload: &Bytes) -> Result<(), LedgerError> {
        let message: Down = match messages::decode(payload) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, "a message of the master is not understood");
                return Ok(());
            }
        };
        match message {
            Down::Desired(desired) => self.desired(desired).await?,
            Down::Shared(change) => self.shared_changed(change).await?,
            Down::StatusAck { seq } => {
                self.state_seq = self.state_seq.filter(|told| *told != seq);
                self.shared.outbox.acknowledged(seq);
            }
            Down::Answer { id, answer } => self.shared.asks.answer(id, answer),
            Down::SayHello { hashes } => {
                // The master may have dropped what it did not acknowledge, or have called this node lost.
                self.shared.outbox.unsend();
                self.asked = true;
                self.hello(hashes).await;
            }
            Down::Refused { session, reason } if session == self.session => {
                tracing::error!(reason, "the master refuses this node");
                self.welcome = false;
                self.hello_again = Some(Instant::now() + HELLO_AGAIN_LAST);
            }
            Down::Removed { session } if session == self.session => {
                tracing::error!("the master has removed this board from the cluster: its pods end");
                self.removed = true;
            }
            Down::Refused { .. } | Down::Removed { .. } => {}
        }
        Ok(())
    }

    /// Whether the master is not one of before the cluster was restored elsewhere; else it is left.
    async fn is_obeyed(&self, epoch: u64) -> Result<bool, LedgerError> {
        if epoch < self.shared.ledger.epoch() {
            tracing::error!(
                epoch,
                "a master that was left behind when the cluster was restored elsewhere is not obeyed"
            );
            self.bus.leave();
            return Ok(false);
        }
        self.shared.ledger.set_epoch(epoch).await?;
        Ok(true)
    }

    /// As [`Self::desired`], of what all nodes share. It may come before the master's answer to a hello,
    /// which then says whether something is missing.
    async fn shared_changed(&mut self, part: SharedChange) -> Result<(), LedgerError> {
        if !self.is_obeyed(part.epoch).await? {
            return Ok(());
        }
        let SharedChange { put, delete, digest, .. } = part;
        let Some((whole, digest)) = self.shared_parts.add(Generation::default(), put, delete, digest) else {
            return Ok(());
        };
        let ledger = &self.shared.ledger;
        if ledger.shared_digest().to_string() == digest {
            return Ok(());
        }
        if !whole.come_to(&digest, ledger, true) {
            if self.welcome {
                self.hello(true).await;
            }
            return Ok(());
        }
        let keys = whole.keys();
        ledger.apply(ledger.generation(), whole.put, whole.delete).await?;
        self.use_items(&keys).await;
        Ok(())
    }

    /// Collects the parts of a change of what is the node's own, and obeys the whole.
    async fn desired(&mut self, part: Desired) -> Result<(), LedgerError> {
        if !part.session.is_empty() && part.session != self.session {
            return Ok(());
        }
        if !self.is_obeyed(part.epoch).await? {
            return Ok(());
        }
        if part.generation < self.shared.ledger.generation() {
            tracing::debug!(generation = %part.generation, "an older generation is refused");
            return Ok(());
        }
        if part.now.is_some_and(|now| self.shared.hear_time(now)) {
            // Tokens that seemed good may be over.
            self.tell_all(Mail::Items).await;
        }
        let Desired { generation, put, delete, digest, .. } = part;
        let Some((whole, digest)) = self.parts.add(generation, put, delete, digest) else { return Ok(()) };
        if !whole.come_to(&digest, &self.shared.ledger, false) {
            self.hello(true).await;
            return Ok(());
        }
        let keys = whole.keys();
        self.shared.ledger.apply(generation, whole.put, whole.delete).await?;
        self.say(&Up::Ack { generation }).await;
        if std::mem::take(&mut self.asked) {
            self.state = None;
        }
        if !self.welcome || self.state.is_none() {
            self.welcome = true;
            self.hello_again = None;
            self.look_at_state();
            self.send_news().await;
        }
        self.use_items(&keys).await;
        Ok(())
    }

    /// Brings everything up to date that items serve.
    async fn use_items(&mut self, keys: &BTreeSet<ItemKey>) {
        let touches = |kinds: &[ItemKind]| keys.iter().any(|k| kinds.contains(&k.kind));
        if touches(&[ItemKind::Config]) {
            self.apply_config().await;
        }
        if touches(&[ItemKind::Peers]) {
            self.apply_peers().await;
        }
        if touches(&[ItemKind::Policy]) {
            self.apply_policies().await;
        }
        if touches(&[ItemKind::Service]) {
            self.apply_services().await;
        }
        if touches(&[ItemKind::Config, ItemKind::Dns, ItemKind::Ingress]) {
            self.publish_tables();
        }
        self.reconcile(keys).await;
    }

    /// Makes the workers be those of the wanted pods, and tells them of what has changed.
    async fn reconcile(&mut self, changed: &BTreeSet<ItemKey>) {
        let mut wanted = BTreeSet::new();
        let mut fresh = Vec::new();
        for item in self.shared.ledger.items(ItemKind::Pod) {
            let Some(uid) = uid_of(&item) else { continue };
            wanted.insert(uid.clone());
            match self.pods.get_mut(&uid) {
                Some(pod) if pod.hash != item.hash => {
                    pod.hash.clone_from(&item.hash);
                    pod.mailbox.send(Mail::Wanted(item)).await;
                }
                Some(_) => {}
                None => fresh.extend(self.begin(uid, &item)),
            }
        }
        // Only now: what all of them have is noted before it is decided on one that has come.
        for worker in fresh {
            self.workers.spawn(worker.run(self.stop_workers.clone()));
        }
        for (_, pod) in self.pods.iter().filter(|(uid, _)| !wanted.contains(*uid)) {
            pod.mailbox.send(Mail::Removed).await;
        }
        let sources = [
            ItemKind::ConfigMap,
            ItemKind::Secret,
            ItemKind::PersistentVolume,
            ItemKind::PersistentVolumeClaim,
            ItemKind::Config,
        ];
        let spaces: BTreeSet<&str> =
            changed.iter().filter(|k| sources.contains(&k.kind)).map(|k| k.namespace.as_str()).collect();
        self.shared.folders_changed.notify_one();
        self.shared.images_used.notify_one();
        for pod in self.pods.values() {
            if spaces.contains("") || spaces.contains(pod.namespace.as_str()) {
                pod.mailbox.send(Mail::Items).await;
            }
        }
    }

    /// The worker of a pod that is new here, to be run.
    fn begin(&mut self, uid: String, item: &Arc<Item>) -> Option<Worker> {
        let pod: Pod = match item.read() {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(%error, "a pod cannot be read");
                return None;
            }
        };
        let record = self.shared.ledger.record(&uid).unwrap_or_default();
        let exists = self.sandboxes.contains(&uid);
        let (worker, mailbox) =
            Worker::new(Arc::clone(&self.shared), Wanted::new(pod), record, exists, false);
        let entry = Entry { hash: item.hash.clone(), namespace: item.key.namespace.clone(), mailbox };
        self.pods.insert(uid, entry);
        Some(worker)
    }

    async fn reap(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.pods.remove(&uid);
                self.sandboxes.remove(&uid);
                // Wanted again meanwhile (which a uid never is in Kubernetes): begin anew.
                self.reconcile(&BTreeSet::new()).await;
            }
            Err(error) => tracing::error!(%error, "a pod's worker ended badly"),
        }
    }

    async fn look(&self, container: &str) {
        if let Some((uid, _, _)) = parse_container_id(container)
            && let Some(pod) = self.pods.get(uid)
        {
            pod.mailbox.send(Mail::Look).await;
        }
    }

    async fn tell_all(&self, mail: Mail) {
        for pod in self.pods.values() {
            pod.mailbox.send(mail.clone()).await;
        }
    }

    /// The node's own state first (pods are judged by it), then pods' statuses, questions, events.
    async fn send_news(&mut self) {
        if !self.welcome || !self.bus.connected() {
            return;
        }
        let images = self.shared.images.list().iter().map(|image| image.id.clone()).collect();
        let looked = (self.shared.pressure(), images, self.shared.images.platforms());
        if self.looked.as_ref() != Some(&looked) {
            self.looked = Some(looked);
            self.look_at_state();
        }
        if let Some(state) = self.state_to_tell.take() {
            self.seq += 1;
            let status = Status { seq: self.seq, pods: Vec::new(), node: Some(state.clone()) };
            if !self.say(&Up::Status(status)).await {
                self.state_to_tell = Some(state);
                return;
            }
            self.tell_state(&state);
            self.state = Some(state);
            self.state_seq = Some(self.seq);
        }
        loop {
            self.seq += 1;
            let pods = self.shared.outbox.take_reports(self.seq, REPORTS_MAX);
            if pods.is_empty() {
                break;
            }
            if !self.say(&Up::Status(Status { seq: self.seq, pods, node: None })).await {
                return;
            }
        }
        for (id, ask) in self.shared.asks.take() {
            self.say(&Up::Ask { id, ask }).await;
        }
        let events = self.shared.outbox.take_events();
        if !events.is_empty() && !self.say(&Up::Events(events.clone())).await {
            self.shared.outbox.return_events(events);
        }
    }

    /// Events of the node itself: its start, and what has changed of its conditions.
    fn tell_state(&mut self, state: &NodeState) {
        let node = self.shared.options.node.clone();
        let event = |warning: bool, reason: &str, message: String| NodeEvent {
            namespace: String::new(),
            name: node.clone(),
            // Upstream names a node by its name here, and clients look for that.
            uid: node.clone(),
            field_path: String::new(),
            warning,
            reason: reason.to_owned(),
            message,
            time: self.shared.clock.now(),
        };
        let mut events = Vec::new();
        if self.told.is_none() {
            if info::memory_may_be_swapped() {
                let message = "The tmpfs noswap option is not supported. Memory-backed volumes (e.g. secrets, emptyDirs, etc.) might be swapped to disk and should no longer be considered secure.";
                events.push(event(true, "PossibleMemoryBackedVolumesOnDisk", message.to_owned()));
            }
            events.push(event(false, "Starting", "Starting kubelet.".to_owned()));
        }
        let flags = |state: &NodeState| {
            let NodeState { memory_pressure, disk_pressure, pid_pressure, not_ready, .. } = state;
            [!memory_pressure, !disk_pressure, !pid_pressure, not_ready.is_empty()]
        };
        let before = self.told;
        let words = [
            ["NodeHasSufficientMemory", "NodeHasInsufficientMemory"],
            ["NodeHasNoDiskPressure", "NodeHasDiskPressure"],
            ["NodeHasSufficientPID", "NodeHasInsufficientPID"],
            ["NodeReady", "NodeNotReady"],
        ];
        let now = flags(state);
        for (n, [good, bad]) in words.into_iter().enumerate() {
            if before.is_none_or(|before| before[n] != now[n]) {
                let reason = if now[n] { good } else { bad };
                events.push(event(false, reason, format!("Node {node} status is now: {reason}")));
            }
        }
        self.told = Some(now);
        for event in events {
            self.shared.outbox.event(event);
        }
    }

    /// Looks at how the node is: at a beat, when pressure or images change, when its network starts.
    fn look_at_state(&mut self) {
        let not_ready = self.shared.network_error();
        let state = NodeState { not_ready, ..info::state(self.shared.pressure(), &*self.shared.images) };
        self.state_to_tell = (self.state.as_ref() != Some(&state)).then_some(state);
    }
}

/// Looks after what the node runs short of, for ever: evicts, and keeps the logs within their bound.
async fn watch_resources(shared: Arc<Shared>) {
    let mut manager = Manager::default();
    let mut period = tokio::time::interval(eviction::PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        for (uid, verdict) in manager.look(&shared).await {
            shared.victims.add(uid, verdict);
        }
        let (logs, max) = (shared.options.pod_logs.clone(), shared.options.limits.pod_logs_max_size);
        if tokio::task::spawn_blocking(move || logs::keep_within(&logs, max)).await.is_err() {
            return;
        }
    }
}

async fn addresses_changed(watch: Option<&AddressWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

async fn next_kill(kills: Option<&mut SystemOoms>) -> Kill {
    match kills {
        Some(kills) => kills.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for new images; `false`, once, when none will ever be told of.
async fn arrived(arrivals: &mut Option<watch::Receiver<u64>>) -> bool {
    let known = match arrivals {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => std::future::pending().await,
    };
    if !known {
        *arrivals = None;
    }
    known
}

fn uid_of(item: &Item) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Meta {
        uid: String,
    }
    #[derive(serde::Deserialize)]
    struct Head {
        metadata: Meta,
    }
    item.read::<Head>().ok().map(|head| head.metadata.uid)
}
