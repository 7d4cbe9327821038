//! The master's end of the link to its nodes: desired sets out, statuses in.
//!
//! In: the store's view and its events; messages of nodes. Out: for every node one versioned set of
//! everything it has to know; statuses of pods and nodes, and events, written through `objects`.
//! Invariants: a node's set is computed from the view alone and sent as the difference from what
//! the node has said it holds; nothing is remembered that a hello would not restore; a heartbeat
//! writes nothing; writes for many nodes go on at once, for one node in order.
//! Deliberately absent: what nodes do with it (`node`), HTTP (`api`).

mod ingress;
mod items;
pub mod join;
mod link;
mod losses;
mod names;
mod outgoing;
mod pods;
mod policies;
mod register;
mod report;
mod services;
mod shared;
mod streams;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, SelectAll},
};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Node;
use link::{Link, Own};
use losses::Losses;
use shared::Shared;
pub use streams::{StreamError, Streams};
use tokio::time::{Instant, sleep_until};
use work::{Context, Desk, Loss, Work};

use crate::{
    clock::Jumps,
    config::Cidr,
    ids,
    mqtt::{
        Bus, Event, Events,
        broker::Origins,
        messages::{self, Down, Hello, Item, ItemKey, NodeEvent, PROTOCOL, PROTOCOL_MIN, Up},
        topics::{self, Leaf},
    },
    objects::{
        Objects, WriteOptions,
        credentials::{NAME as CREDENTIALS, NAMESPACE as CREDENTIALS_NAMESPACE},
    },
    store,
    tasks::CancellationToken,
};

/// How long changes are collected before they are sent.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// How much longer what goes to all nodes is collected, for each node; and ways to other nodes, which
/// change with every node that joins.
const DEBOUNCE_PER_NODE: Duration = Duration::from_micros(100);
const DEBOUNCE_PEERS_PER_NODE: Duration = Duration::from_millis(1);
const DEBOUNCE_MAX: Duration = Duration::from_secs(2);
/// How long after it has connected a master waits for a node it knows before it calls it lost.
const FIRST_HELLO: Duration = Duration::from_secs(15);
/// How often everything is looked at again, whatever events there were.
const RESYNC: Duration = Duration::from_mins(10);
/// How often the Leases of connected nodes are renewed (kubelet's period), and how much longer that is
/// for each node. They are kept in memory: nothing is written to the disk.
const RENEW: Duration = Duration::from_secs(10);
const RENEW_PER_NODE: Duration = Duration::from_millis(20);
/// A node's clock may be so far off before the times it tells are corrected.
const CLOCK_OFFSET_MIN: SignedDuration = SignedDuration::from_secs(10);

/// What a token is asked for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    pub node: String,
    pub namespace: String,
    pub service_account: String,
    pub pod: String,
    pub pod_uid: String,
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
}

/// Makes service account tokens for pods; the API's business, joined in by `app`. Gives the token
/// and when it expires, or why not.
pub type IssueToken =
    Arc<dyn Fn(TokenRequest) -> BoxFuture<'static, Result<(String, jiff::Timestamp), String>> + Send + Sync>;

/// What a cluster is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cluster's id, in every topic.
    pub cluster: String,
    /// How often the cluster was restored from a backup.
    pub epoch: u64,
    pub cluster_cidr: Cidr,
    /// How large the part of it is that a node gets: the length of its prefix.
    pub node_prefix: u8,
    pub service_cidr: Cidr,
    /// The address of the cluster's DNS; empty when that part is off.
    pub cluster_dns: String,
    pub cluster_domain: String,
    /// Where nodes find the broker; empty: where they joined.
    pub endpoints: Vec<String>,
    /// The master's own node; `None` when it runs no pods.
    pub own_node: Option<String>,
    /// Where nodes come from, if the broker is ours.
    pub origins: Option<Origins>,
}

#[cfg(test)]
impl Options {
    /// Of a small cluster without names and without a node of the master's own.
    fn sample() -> Self {
        Self {
            cluster: "c".to_owned(),
            epoch: 0,
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            node_prefix: 24,
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_dns: String::new(),
            cluster_domain: String::new(),
            endpoints: Vec::new(),
            own_node: None,
            origins: None,
        }
    }
}

/// The pods of every node, by namespace and name; follows the store's events.
type PodsOf = HashMap<String, BTreeSet<(Arc<str>, Arc<str>)>>;

/// The dispatcher.
pub struct Dispatch {
    context: Context,
    bus: Arc<dyn Bus>,
    events: Events,
    /// Answers boards that join; without it they wait in vain.
    desk: Option<join::Desk>,
    /// Of this start of the master; nodes that hear a new one say hello.
    boot: String,
    clock: Jumps,
    started: Instant,
    links: BTreeMap<String, Link>,
    /// Nodes that have said hello since the master connected last, and when the others are lost.
    present: BTreeSet<String>,
    roll_call: Option<Instant>,
    /// The session of each node that was the last to end.
    ended: BTreeMap<String, String>,
    work: Desk,
    losses: Losses,
    /// When Leases are renewed next.
    renewal: Instant,
    streams: Streams,
    shared: Shared,
    pods_of: PodsOf,
    /// The NetworkPolicies of every node.
    policies: BTreeMap<String, Vec<Item>>,
    policies_are_stale: bool,
    all_dirty: bool,
    due: Due,
}

/// When what is stale is looked at.
#[derive(Default)]
struct Due {
    own: Option<Instant>,
    shared: Option<Instant>,
    peers: Option<Instant>,
}

impl Due {
    fn next(&self) -> Option<Instant> {
        [self.own, self.shared, self.peers].into_iter().flatten().min()
    }
}

/// Takes a time that has come.
fn take_due(at: &mut Option<Instant>, now: Instant) -> bool {
    at.take_if(|at| *at <= now).is_some()
}

/// A change in the store, or that changes were lost.
struct Seen {
    source: usize,
    event: Option<Arc<store::Event>>,
}

impl Dispatch {
    pub fn new(
        objects: Objects,
        options: Options,
        (bus, events): (Arc<dyn Bus>, Events),
        tokens: IssueToken,
    ) -> Self {
        let streams = Streams::new(Arc::clone(&bus), options.cluster.clone());
        let writer = WriteOptions::system("node").tracked_as("kubelet");
        let clock = Jumps::new(&**objects.clock());
        Self {
            context: Context {
                objects,
                options: Arc::new(options),
                outgoing: Arc::default(),
                tokens,
                writer,
                networks: register::Networks::default(),
            },
            bus,
            streams,
            events,
            desk: None,
            boot: ids::hex(&ids::random_bytes::<8>()),
            clock,
            started: Instant::now(),
            links: BTreeMap::new(),
            present: BTreeSet::new(),
            roll_call: None,
            ended: BTreeMap::new(),
            work: Desk::default(),
            losses: Losses::default(),
            renewal: Instant::now(),
            shared: Shared::new(),
            pods_of: PodsOf::new(),
            policies: BTreeMap::new(),
            policies_are_stale: true,
            all_dirty: false,
            due: Due::default(),
        }
    }

    /// Lets boards join.
    #[must_use]
    pub fn with_desk(self, desk: join::Desk) -> Self {
        Self { desk: Some(desk), ..self }
    }

    /// Opens logs, commands and ports of pods on nodes; for the API.
    pub fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// Works until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let (bus, outgoing) = (Arc::clone(&self.bus), Arc::clone(&self.context.outgoing));
        tokio::select! {
            done = self.work(stop) => done,
            _ = outgoing.send_all(&*bus) => Ok(()),
        }
    }

    async fn work(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let objects = self.context.objects.clone();
        let context = self.context.clone();
        let mut changes: SelectAll<BoxStream<'_, Seen>> = SelectAll::new();
        for source in 0..items::SOURCES.len() {
            changes.push(follow(&objects, source));
        }
        self.index_pods();
        // Before anybody is welcomed: a node that holds all of it is told nothing.
        self.shared.refresh(&self.context.objects, &self.context.options, true);
        let mut resync = tokio::time::interval(RESYNC);
        self.started = Instant::now();
        let start = self.started;
        self.roll_call = Some(start + FIRST_HELLO);
        loop {
            let held = self.losses.next();
            let due = self.due.next();
            let roll_call = self.roll_call;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                (node, hello) = self.work.done(&context) => {
                    if let Some(hello) = hello {
                        self.welcome(&node, *hello);
                    }
                }
                event = self.events.recv() => match event {
                    Some(event) => self.heard(event).await,
                    None => return Ok(()),
                },
                Some(seen) = changes.next() => {
                    if let Some(event) = seen.event {
                        self.changed(seen.source, &event);
                    } else {
                        changes.push(follow(&objects, seen.source));
                        self.index_pods();
                        self.everything_may_have_changed();
                    }
                }
                () = sleep_until(due.unwrap_or(start)), if due.is_some() => self.flush(Instant::now()),
                () = sleep_until(held.unwrap_or(start)), if held.is_some() => {
                    for node in self.losses.due(Instant::now()) {
                        self.work.put(&context, &node, Work::Lost(Loss::Silent));
                    }
                }
                () = sleep_until(roll_call.unwrap_or(start)), if roll_call.is_some() => {
                    self.roll_call = None;
                    self.call_absent_nodes_lost();
                }
                () = sleep_until(self.renewal) => self.renew_leases(),
                _ = resync.tick() => self.everything_may_have_changed(),
            }
            self.plan_flush(Instant::now());
        }
    }

    /// The broker would have told that a node is lost: who is connected is alive.
    fn renew_leases(&mut self) {
        for node in self.links.keys() {
            self.work.put(&self.context, node, Work::Alive);
        }
        let nodes = u32::try_from(self.links.len()).unwrap_or(u32::MAX);
        self.renewal = Instant::now() + RENEW + RENEW_PER_NODE.saturating_mul(nodes);
    }

    /// Sets a time for everything that is stale.
    fn plan_flush(&mut self, now: Instant) {
        let nodes = u32::try_from(self.links.len()).unwrap_or(u32::MAX);
        let after = |per_node: Duration| now + DEBOUNCE + per_node.saturating_mul(nodes).min(DEBOUNCE_MAX);
        if self.due.own.is_none() && self.links.values().any(|link| link.dirty) {
            self.due.own = Some(now + DEBOUNCE);
        }
        if self.shared.is_stale() || self.policies_are_stale || self.all_dirty {
            self.due.shared.get_or_insert_with(|| after(DEBOUNCE_PER_NODE));
        }
        if self.shared.peers_are_stale() {
            self.due.peers.get_or_insert_with(|| after(DEBOUNCE_PEERS_PER_NODE));
        }
    }

    async fn heard(&mut self, event: Event) {
        match event {
            Event::Connected => {
                // Nodes that were connected before may not have noticed: all say hello again. Who does
                // not was lost while nobody heard of it.
                self.present.clear();
                self.roll_call = Some(Instant::now() + FIRST_HELLO);
                let topic = topics::master(&self.context.options.cluster);
                self.context.publish(&topic, Bytes::from(self.boot.clone()));
            }
            Event::Disconnected { reason } => {
                tracing::warn!(reason, "the link to the broker is lost");
                self.streams.all_lost();
            }
            Event::Message { topic, payload } => {
                if let Some(id) = topics::parse_join_up(&topic) {
                    return self.join(id, payload).await;
                }
                let Some((node, leaf)) = topics::parse_up(&topic) else { return };
                if leaf == Leaf::Stream {
                    return self.streams.heard(node, &payload);
                }
                match messages::decode::<Up>(&payload) {
                    Ok(Up::Bye { session, clean }) => self.bye(node, &session, clean),
                    Ok(message) if leaf == Leaf::Control => self.listen(node, message),
                    Ok(_) => tracing::warn!(node, "a last will that is no goodbye was ignored"),
                    Err(error) => tracing::warn!(node, %error, "a message is not understood"),
                }
            }
        }
    }

    fn listen(&mut self, node: &str, message: Up) {
        self.follow_clock();
        if let Up::Hello(hello) = message {
            return self.hello(node, *hello);
        }
        let Some(link) = self.links.get_mut(node) else {
            return self.context.say(node, &Down::SayHello { hashes: false });
        };
        let work = match message {
            Up::Beat { session, generation, shared } => {
                // A lost message shows as a generation or a digest that lags behind. A second board of
                // this name, which was refused, is not answered.
                let lags = (link.generation != generation && !link.dirty)
                    || (!shared.is_empty() && shared != self.shared.digest().brief());
                if link.session == session && lags {
                    self.context.say(node, &Down::SayHello { hashes: false });
                }
                return;
            }
            Up::Status(status) => Work::Statuses(status.into()),
            Up::Events(mut events) => {
                for event in &mut events {
                    event.time = event.time.checked_add(link.offset).unwrap_or(event.time);
                }
                Work::Events(events)
            }
            Up::Ask { id, ask } => Work::Ask(id, ask),
            Up::Ack { .. } | Up::Hello(_) | Up::Bye { .. } => return,
        };
        self.work.put(&self.context, node, work);
    }

    /// The master's own clock may have been set: nodes are as far from it as before, less that.
    fn follow_clock(&mut self) {
        let by = self.clock.since_last(&**self.context.objects.clock());
        if by.is_zero() {
            return;
        }
        tracing::info!(seconds = by.as_secs(), "the clock was set");
        for link in self.links.values_mut() {
            link.offset = significant(link.offset + by);
        }
        // Tokens of pods may be over: every answer to a hello says what time it is.
        for node in self.links.keys() {
            self.context.say(node, &Down::SayHello { hashes: false });
        }
    }

    /// Refuses a hello, or has its node registered; [`Self::welcome`] comes after that.
    fn hello(&mut self, node: &str, mut hello: Hello) {
        if self.context.objects.is_node_removed(node) {
            tracing::info!(node, "a board that was removed is told so");
            return self.context.say(node, &Down::Removed { session: hello.session });
        }
        let refused = |reason: String| Down::Refused { session: hello.session.clone(), reason };
        // A newer node speaks our version, as we would with an older one.
        if hello.protocol < PROTOCOL_MIN || hello.protocol > PROTOCOL + 1 {
            let reason = format!(
                "the node speaks version {} of the protocol, the master {PROTOCOL_MIN} to {PROTOCOL}: bring \
                 both to the same release",
                hello.protocol
            );
            return self.context.say(node, &refused(reason));
        }
        if hello.hardware.is_empty() {
            hello.hardware.clone_from(&hello.info.machine_id);
        }
        let other_is_here = match self.links.get(node) {
            Some(link) => link.session != hello.session && link.hardware != hello.hardware,
            // The board that was here last has the first right, until it had time to come back.
            None => {
                self.started.elapsed() < FIRST_HELLO
                    && register::hardware(&self.context.objects, node)
                        .is_some_and(|known| known != hello.hardware)
            }
        };
        if other_is_here {
            let reason = format!(
                "another board is the node {node:?} (was its memory card copied?); remove \
                 <data-dir>/agent/identity on this one and join with a new token under its own name"
            );
            tracing::error!(node, "a second board under this node's name was refused");
            return self.context.say(node, &refused(reason));
        }
        self.losses.back(node);
        self.ended.remove(node);
        self.present.insert(node.to_owned());
        self.work.put(&self.context, node, Work::Hello(Box::new(hello)));
    }

    fn welcome(&mut self, node: &str, hello: Hello) {
        if self.ended.get(node) == Some(&hello.session) {
            // It was lost while its hello was worked on.
            return self.work.put(&self.context, node, Work::Lost(Loss::Silent));
        }
        let own = self.own_of(node, hello.info.serves_ingress);
        let protocol = hello.protocol.min(PROTOCOL);
        let now = self.context.objects.clock().now();
        let offset = significant(hello.now.map_or(SignedDuration::ZERO, |theirs| now.duration_since(theirs)));
        if !offset.is_zero() && self.links.get(node).is_none_or(|link| link.offset.is_zero()) {
            tracing::warn!(
                node,
                seconds = offset.as_secs(),
                "the node's clock is wrong; its times are corrected"
            );
        }
        let Some(link) = Link::new(hello, &own, &self.shared, protocol, offset) else {
            return self.context.say(node, &Down::SayHello { hashes: true });
        };
        if self.links.get(node).is_some_and(|old| old.session != link.session) {
            self.streams.lost(node);
        }
        self.streams.joined(node);
        let fresh = self.links.insert(node.to_owned(), link).is_none();
        if fresh {
            tracing::info!(node, "the node is connected");
        }
        self.work.put(&self.context, node, Work::Alive);
        self.bring_up_shared(node);
        // Also an empty difference is sent: it is the master's answer to the hello.
        self.bring_up(node, own, true);
    }

    async fn join(&mut self, id: &str, payload: Bytes) {
        let Some(desk) = &mut self.desk else { return };
        let connected = |node: &str| self.links.contains_key(node);
        let answer = desk.answer(&self.context, connected, payload).await;
        match messages::encode(&answer) {
            Ok(payload) => {
                self.context.publish(&topics::join_down(&self.context.options.cluster, id), payload);
            }
            Err(error) => tracing::error!(%error, "an answer cannot be sent"),
        }
    }

    fn bye(&mut self, node: &str, session: &str, clean: bool) {
        self.ended.insert(node.to_owned(), session.to_owned());
        if self.links.get(node).is_none_or(|link| link.session != session) {
            return;
        }
        self.links.remove(node);
        self.streams.lost(node);
        tracing::warn!(node, clean, "the node is gone");
        if clean {
            return self.work.put(&self.context, node, Work::Lost(Loss::Clean));
        }
        // The will of a connection that was given up may come after the hello of the next one: who is
        // there after all says so.
        self.context.say(node, &Down::SayHello { hashes: false });
        match self.losses.count(node, Instant::now()) {
            None => self.work.put(&self.context, node, Work::Lost(Loss::Silent)),
            Some(number) => {
                let event = NodeEvent {
                    namespace: String::new(),
                    name: node.to_owned(),
                    uid: node.to_owned(),
                    field_path: String::new(),
                    warning: true,
                    reason: "NodeFlapping".to_owned(),
                    message: format!(
                        "The connection of node {node} was lost {number} times within 10 minutes; it is called \
                         NotReady only when it stays away"
                    ),
                    time: self.context.objects.clock().now(),
                };
                self.work.put(&self.context, node, Work::Events(vec![event]));
            }
        }
    }

    fn everything_may_have_changed(&mut self) {
        self.shared.touch_all();
        self.policies_are_stale = true;
        self.all_dirty = true;
    }

    fn index_pods(&mut self) {
        self.pods_of.clear();
        for pod in self.context.objects.store().list("pods", None).items {
            self.index(&pod, true);
        }
    }

    fn index(&mut self, pod: &store::Object, present: bool) {
        let Some(node) = items::node_of(pod) else { return };
        let key = (Arc::clone(&pod.key.namespace), Arc::clone(&pod.key.name));
        if present {
            self.pods_of.entry(node).or_default().insert(key);
        } else if let Some(pods) = self.pods_of.get_mut(&node) {
            pods.remove(&key);
            if pods.is_empty() {
                self.pods_of.remove(&node);
            }
        }
    }

    fn mark(&mut self, node: &str) {
        if let Some(link) = self.links.get_mut(node) {
            link.dirty = true;
        }
    }

    /// Notes whose set an event of the store changes.
    fn changed(&mut self, source: usize, event: &store::Event) {
        let key = &event.object.key;
        match items::SOURCES[source].1 {
            items::Reach::Pod => {
                if let Some(previous) = &event.previous {
                    self.index(previous, false);
                }
                self.index(&event.object, event.kind != store::EventKind::Deleted);
                let states = std::iter::once(&event.object).chain(&event.previous);
                let nodes: BTreeSet<String> = states.filter_map(|object| items::node_of(object)).collect();
                for node in nodes {
                    self.mark(&node);
                }
            }
            items::Reach::Folder => {
                if let Some(node) = items::folder_of(&event.object) {
                    self.mark(&node);
                }
            }
            items::Reach::Holders(kind) => {
                if *key.name == *CREDENTIALS && *key.namespace == *CREDENTIALS_NAMESPACE {
                    self.part_from_removed();
                }
                if &*key.resource == "secrets"
                    && std::iter::once(&event.object).chain(&event.previous).any(|o| items::is_certificate(o))
                {
                    self.shared.touch(&[shared::Part::Ingresses], None);
                }
                let key = ItemKey::new(kind, &key.namespace, &key.name);
                // Who refers to an object that was not there holds it as absent.
                for link in self.links.values_mut().filter(|link| link.holds(&key)) {
                    link.dirty = true;
                }
            }
            items::Reach::Node => {
                let peer = |object: &store::Object| shared::peer(&object.typed());
                let now = (event.kind != store::EventKind::Deleted).then(|| peer(&event.object)).flatten();
                if event.previous.as_deref().and_then(peer) != now {
                    self.shared.touch_peers();
                }
                self.mark(&key.name);
                // A node whose object was deleted is registered anew.
                if event.kind == store::EventKind::Deleted && self.links.contains_key(&*key.name) {
                    self.context.say(&key.name, &Down::SayHello { hashes: false });
                }
            }
            items::Reach::All(parts) => {
                self.shared.touch(parts, items::services_of(event).as_ref());
                self.policies_are_stale |= &*key.resource == "namespaces";
            }
            items::Reach::Policies => self.policies_are_stale = true,
        }
    }

    /// Tells nodes that were removed, and knows them no more.
    fn part_from_removed(&mut self) {
        let gone: Vec<String> =
            self.links.keys().filter(|node| self.context.objects.is_node_removed(node)).cloned().collect();
        for node in gone {
            if let Some(link) = self.links.remove(&node) {
                tracing::info!(node, "the node was removed");
                self.streams.lost(&node);
                self.context.say(&node, &Down::Removed { session: link.session });
            }
        }
    }

    /// Policies are made of pods and namespaces too; without any there is nothing to do.
    fn refresh_policies(&mut self) {
        if !std::mem::take(&mut self.policies_are_stale) {
            return;
        }
        let fresh = policies::by_node(&self.context.objects);
        let hashes = |items: Option<&Vec<Item>>| -> Vec<(ItemKey, String)> {
            items.into_iter().flatten().map(|item| (item.key.clone(), item.hash.clone())).collect()
        };
        for (node, link) in &mut self.links {
            link.dirty |= hashes(fresh.get(node)) != hashes(self.policies.get(node));
        }
        self.policies = fresh;
    }

    fn flush(&mut self, now: Instant) {
        let for_all = take_due(&mut self.due.shared, now);
        let peers = take_due(&mut self.due.peers, now);
        if for_all || peers {
            self.flush_shared(peers);
        }
        if for_all {
            self.refresh_policies();
        }
        let all = for_all && std::mem::take(&mut self.all_dirty);
        if take_due(&mut self.due.own, now) || for_all {
            let due = self.links.iter().filter(|(_, link)| all || link.dirty);
            let due: Vec<_> = due.map(|(node, link)| (node.clone(), link.serves_ingress)).collect();
            for (node, serves_ingress) in due {
                let own = self.own_of(&node, serves_ingress);
                self.bring_up(&node, own, false);
            }
        }
    }

    /// Makes the parts anew that all nodes share, and tells them: one message for all that held the
    /// version before.
    fn flush_shared(&mut self, peers: bool) {
        let before = Arc::clone(self.shared.hashes());
        let changed = self.shared.refresh(&self.context.objects, &self.context.options, peers);
        if self.shared.take_ingress_changed() {
            self.links.values_mut().filter(|link| link.serves_ingress).for_each(|link| link.dirty = true);
        }
        if !changed || self.links.is_empty() {
            return;
        }
        let topic = topics::shared(&self.context.options.cluster);
        for payload in self.shared.bring_up(&before, self.context.options.epoch).iter() {
            self.context.publish(&topic, payload.clone());
        }
        for link in self.links.values_mut().filter(|link| Arc::ptr_eq(&link.shared, &before)) {
            link.shared = Arc::clone(self.shared.hashes());
        }
    }

    /// The set of a node without what all share. Certificates' keys go only where Ingresses are served.
    fn own_of(&self, node: &str, serves_ingress: bool) -> Own {
        let pods = self.pods_of.get(node).into_iter().flatten();
        let own = items::of_node(&self.context.objects, &self.context.options, node, pods);
        let policies = self.policies.get(node).into_iter().flatten();
        let rules = self.shared.ingress().iter().filter(|_| serves_ingress);
        own.into_iter().chain(policies.chain(rules).cloned()).map(|item| (item.key.clone(), item)).collect()
    }

    /// Sends what a node lacks of its own items.
    fn bring_up(&mut self, node: &str, own: Own, always: bool) {
        let Some(link) = self.links.get_mut(node) else { return };
        link.dirty = false;
        let mut parts = link.bring_up(own, self.context.options.epoch, always).unwrap_or_default();
        if let Some(last) = parts.last_mut().filter(|_| always) {
            last.now = Some(self.context.objects.clock().now());
        }
        for part in parts {
            self.context.say(node, &Down::Desired(part));
        }
    }

    /// Sends what a node lacks of what all share.
    fn bring_up_shared(&mut self, node: &str) {
        let Some(link) = self.links.get_mut(node) else { return };
        let messages = self.shared.bring_up(&link.shared, self.context.options.epoch);
        link.shared = Arc::clone(self.shared.hashes());
        let topic = self.context.topic(node);
        for payload in messages.iter() {
            self.context.publish(&topic, payload.clone());
        }
    }

    fn call_absent_nodes_lost(&mut self) {
        let absent = |node: &String| !self.present.contains(node);
        let silent: Vec<String> = self.links.keys().filter(|node| absent(node)).cloned().collect();
        for node in silent {
            self.links.remove(&node);
            self.streams.lost(&node);
        }
        for node in self.context.objects.list_typed::<Node>(None) {
            let name = node.metadata.name.clone().unwrap_or_default();
            if !self.present.contains(&name) {
                self.work.put(&self.context, &name, Work::Lost(Loss::Silent));
            }
        }
    }
}

/// A clock's offset, when it is more than a message's time on its way.
fn significant(offset: SignedDuration) -> SignedDuration {
    if offset.abs() < CLOCK_OFFSET_MIN { SignedDuration::ZERO } else { offset }
}

/// The nodes' names, for logs and tests.
impl std::fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes: BTreeSet<_> = self.links.keys().collect();
        f.debug_struct("Dispatch").field("nodes", &nodes).finish_non_exhaustive()
    }
}

/// The events of one source from now on; ends with `None` when some were lost.
fn follow(objects: &Objects, source: usize) -> BoxStream<'_, Seen> {
    let store = objects.store();
    let watch = store.watch(items::SOURCES[source].0, store.revision()).ok();
    stream::unfold(watch, move |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(event) => Some((Seen { source, event: Some(event) }, Some(watch))),
            Err(_) => Some((Seen { source, event: None }, None)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests;
