//! The master's end of the link to its nodes: desired sets out, statuses in.
//!
//! In: the store's view and its events; messages of nodes. Out: for every node one versioned set of
//! everything it has to know; statuses of pods and nodes, and events, written through `objects`.
//! Invariants: a node's set is computed from the view alone and sent as the difference from what
//! the node has said it holds; nothing is remembered that a hello would not restore; a heartbeat
//! writes nothing.
//! Deliberately absent: what nodes do with it (`node`), HTTP (`api`).

mod ingress;
mod items;
pub mod join;
mod names;
mod pods;
mod policies;
mod register;
mod report;
mod services;
mod streams;

use std::{
    collections::{BTreeMap, BTreeSet},
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
use k8s_openapi::api::core::v1::Node;
use tokio::time::{Instant, sleep_until};

pub use streams::{StreamError, Streams};

use crate::{
    config::Cidr,
    ids::{self, Generation},
    mqtt::{
        self, Bus, Event, Events, Priority,
        messages::{
            self, Answer, Ask, Desired, Down, Hello, ITEMS_BYTES_MAX, Item, ItemKey, ItemKind, PROTOCOL,
            Status, Up,
        },
        topics::{self, Leaf},
    },
    objects::{Objects, WriteOptions},
    store,
    tasks::CancellationToken,
};

/// How long changes are collected before they are sent.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// How long after its start a master waits for a node it knows before it calls it lost.
const FIRST_HELLO: Duration = Duration::from_secs(15);
/// How often everything is looked at again, whatever events there were.
const RESYNC: Duration = Duration::from_mins(10);

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
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    /// The address of the cluster's DNS; empty when that part is off.
    pub cluster_dns: String,
    pub cluster_domain: String,
}

/// One node that has said hello.
struct Link {
    session: String,
    machine: String,
    generation: Generation,
    /// The hash of every item the node holds, or will when it has what was sent.
    held: BTreeMap<ItemKey, String>,
    serves_ingress: bool,
    dirty: bool,
}

/// The dispatcher.
pub struct Dispatch {
    objects: Objects,
    options: Options,
    bus: Arc<dyn Bus>,
    events: Events,
    tokens: IssueToken,
    /// Answers boards that join; without it they wait in vain.
    desk: Option<join::Desk>,
    writer: WriteOptions,
    /// Of this start of the master; nodes that hear a new one say hello.
    boot: String,
    links: BTreeMap<String, Link>,
    streams: Streams,
    /// The part of every node's set that is the same for all.
    shared: BTreeMap<ItemKey, Item>,
    shared_is_stale: bool,
    /// The NetworkPolicies of every node.
    policies: BTreeMap<String, Vec<Item>>,
    policies_are_stale: bool,
    all_dirty: bool,
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
        Self {
            objects,
            streams: Streams::new(Arc::clone(&bus), options.cluster.clone()),
            options,
            bus,
            events,
            tokens,
            desk: None,
            writer: WriteOptions::system("node").tracked_as("kubelet"),
            boot: ids::hex(&ids::random_bytes::<8>()),
            links: BTreeMap::new(),
            shared: BTreeMap::new(),
            shared_is_stale: true,
            policies: BTreeMap::new(),
            policies_are_stale: true,
            all_dirty: false,
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
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let objects = self.objects.clone();
        let mut changes: SelectAll<BoxStream<'_, Seen>> = SelectAll::new();
        for source in 0..items::SOURCES.len() {
            changes.push(follow(&objects, source));
        }
        let mut flush_at: Option<Instant> = None;
        let mut resync = tokio::time::interval(RESYNC);
        let start = Instant::now();
        let mut absent_checked = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                event = self.events.recv() => match event {
                    Some(event) => self.heard(event).await,
                    None => return Ok(()),
                },
                Some(seen) = changes.next() => {
                    if let Some(event) = seen.event {
                        self.changed(seen.source, &event);
                    } else {
                        changes.push(follow(&objects, seen.source));
                        self.everything_may_have_changed();
                    }
                }
                () = sleep_until(flush_at.unwrap_or(start)), if flush_at.is_some() => {
                    flush_at = None;
                    self.flush().await;
                }
                () = sleep_until(start + FIRST_HELLO), if !absent_checked => {
                    absent_checked = true;
                    self.call_absent_nodes_lost().await;
                }
                _ = resync.tick() => self.everything_may_have_changed(),
            }
            let work = self.shared_is_stale
                || self.policies_are_stale
                || self.all_dirty
                || self.links.values().any(|link| link.dirty);
            if work && flush_at.is_none() {
                flush_at = Some(Instant::now() + DEBOUNCE);
            }
        }
    }

    async fn heard(&mut self, event: Event) {
        match event {
            Event::Connected => {
                // Nodes that were connected before may not have noticed: all say hello again.
                let topic = topics::master(&self.options.cluster);
                self.publish(&topic, Bytes::from(self.boot.clone())).await;
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
                    Ok(Up::Bye { session, clean }) => self.bye(node, &session, clean).await,
                    Ok(message) if leaf == Leaf::Control => self.listen(node, message).await,
                    Ok(_) => tracing::warn!(node, "a last will that is no goodbye was ignored"),
                    Err(error) => tracing::warn!(node, %error, "a message is not understood"),
                }
            }
        }
    }

    async fn listen(&mut self, node: &str, message: Up) {
        if let Up::Hello(hello) = message {
            return self.hello(node, *hello).await;
        }
        let Some(link) = self.links.get_mut(node) else {
            return self.say(node, &Down::SayHello { hashes: false }).await;
        };
        match message {
            Up::Beat { session, generation } => {
                // A lost message shows as a generation that lags behind.
                if link.session != session || link.generation != generation && !link.dirty {
                    self.say(node, &Down::SayHello { hashes: false }).await;
                }
            }
            Up::Status(status) => self.status(node, status).await,
            Up::Events(events) => report::events(&self.objects, node, events, &self.writer).await,
            Up::Ask { id, ask } => self.answer(node, id, ask).await,
            Up::Ack { .. } | Up::Hello(_) | Up::Bye { .. } => {}
        }
    }

    async fn hello(&mut self, node: &str, hello: Hello) {
        let refused = |reason: String| Down::Refused { session: hello.session.clone(), reason };
        if hello.protocol.abs_diff(PROTOCOL) > 1 {
            let reason = format!("protocol {} is too far from the master's {PROTOCOL}", hello.protocol);
            return self.say(node, &refused(reason)).await;
        }
        if let Some(link) = self.links.get(node)
            && link.session != hello.session
            && link.machine != hello.info.machine_id
        {
            let reason =
                format!("another board with the name {node:?} is connected; give this one its own name");
            tracing::error!(node, "a second board under this node's name was refused");
            return self.say(node, &refused(reason)).await;
        }
        if let Err(error) =
            register::register(&self.objects, &self.options, node, &hello.info, &self.writer).await
        {
            tracing::error!(node, %error, "the node could not be registered");
            return;
        }
        self.refresh_shared();
        let items = self.items_of(node, hello.info.serves_ingress);
        let digest = digest(&items);
        let known = if digest == hello.digest {
            hashes(&items)
        } else if let Some(hashes) = hello.hashes {
            hashes.into_iter().collect()
        } else {
            return self.say(node, &Down::SayHello { hashes: true }).await;
        };
        let link = Link {
            session: hello.session,
            machine: hello.info.machine_id,
            generation: hello.generation,
            held: known,
            serves_ingress: hello.info.serves_ingress,
            dirty: false,
        };
        if self.links.get(node).is_some_and(|old| old.session != link.session) {
            self.streams.lost(node);
        }
        self.streams.joined(node);
        let fresh = self.links.insert(node.to_owned(), link).is_none();
        if fresh {
            tracing::info!(node, "the node is connected");
        }
        // Also an empty difference is sent: it is the master's answer to the hello.
        self.send(node, items).await;
    }

    async fn join(&mut self, id: &str, payload: Bytes) {
        let Some(desk) = &mut self.desk else { return };
        let connected = |node: &str| self.links.contains_key(node);
        let answer = desk.answer(&self.objects, &self.options, &self.writer, connected, payload).await;
        match messages::encode(&answer) {
            Ok(payload) => self.publish(&topics::join_down(&self.options.cluster, id), payload).await,
            Err(error) => tracing::error!(%error, "an answer cannot be sent"),
        }
    }

    async fn bye(&mut self, node: &str, session: &str, clean: bool) {
        if self.links.get(node).is_none_or(|link| link.session != session) {
            return;
        }
        self.links.remove(node);
        self.streams.lost(node);
        tracing::warn!(node, clean, "the node is gone");
        report::lost(&self.objects, node, &self.writer).await;
    }

    async fn status(&mut self, node: &str, status: Status) {
        // What the node learned first: a pod's failure may be judged by it.
        if let Some(state) = status.node
            && let Err(error) = report::node_state(&self.objects, node, &state, &self.writer).await
        {
            tracing::warn!(node, %error, "the node's status could not be stored");
            return;
        }
        for report in status.pods {
            if let Err(error) = pods::report(&self.objects, node, report, &self.writer).await {
                // Not acknowledged: the node says it again.
                tracing::warn!(node, %error, "a pod's status could not be stored");
                return;
            }
        }
        self.say(node, &Down::StatusAck { seq: status.seq }).await;
    }

    async fn answer(&self, node: &str, id: u64, ask: Ask) {
        let (namespace, service_account, pod, pod_uid, audiences, expiration_seconds) = match ask {
            Ask::Token { namespace, service_account, pod, pod_uid, audiences, expiration_seconds } => {
                (namespace, service_account, pod, pod_uid, audiences, expiration_seconds)
            }
            Ask::FolderRemoved { volume, uid } => {
                let done = report::folder_removed(&self.objects, node, &volume, &uid, &self.writer).await;
                let answer = done.map_or_else(|e| Answer::Refused(e.to_string()), |()| Answer::Done);
                return self.say(node, &Down::Answer { id, answer }).await;
            }
        };
        let allowed = pods::runs_on(&self.objects, node, &namespace, &pod, &pod_uid, &service_account);
        let answer = if allowed {
            let request = TokenRequest {
                node: node.to_owned(),
                namespace,
                service_account,
                pod,
                pod_uid,
                audiences,
                expiration_seconds,
            };
            match (self.tokens)(request).await {
                Ok((token, expires)) => Answer::Token { token, expires },
                Err(reason) => Answer::Refused(reason),
            }
        } else {
            Answer::Refused(format!("no pod {namespace}/{pod} of that service account is on this node"))
        };
        self.say(node, &Down::Answer { id, answer }).await;
    }

    fn everything_may_have_changed(&mut self) {
        self.shared_is_stale = true;
        self.all_dirty = true;
    }

    /// Notes whose set an event of the store changes.
    fn changed(&mut self, source: usize, event: &store::Event) {
        let states = std::iter::once(&event.object).chain(&event.previous);
        match items::SOURCES[source].1 {
            items::Reach::Node => {
                for node in states.filter_map(|object| items::node_of(object)) {
                    if let Some(link) = self.links.get_mut(&node) {
                        link.dirty = true;
                    }
                }
            }
            items::Reach::Folder => {
                if let Some(link) = items::folder_of(&event.object).and_then(|node| self.links.get_mut(&node))
                {
                    link.dirty = true;
                }
            }
            items::Reach::Holders(kind) => {
                let key = ItemKey::new(kind, &event.object.key.namespace, &event.object.key.name);
                // Who refers to an object that was not there holds it as absent.
                for link in self.links.values_mut().filter(|link| link.held.contains_key(&key)) {
                    link.dirty = true;
                }
            }
            items::Reach::All => self.shared_is_stale = true,
            items::Reach::Policies => self.policies_are_stale = true,
        }
    }

    /// Policies are made of pods and namespaces too; without any there is nothing to do.
    fn refresh_policies(&mut self) {
        if !std::mem::take(&mut self.policies_are_stale) {
            return;
        }
        let fresh = policies::by_node(&self.objects);
        let hashes = |items: Option<&Vec<Item>>| -> Vec<(ItemKey, String)> {
            items.into_iter().flatten().map(|item| (item.key.clone(), item.hash.clone())).collect()
        };
        for (node, link) in &mut self.links {
            link.dirty |= hashes(fresh.get(node)) != hashes(self.policies.get(node));
        }
        self.policies = fresh;
    }

    fn refresh_shared(&mut self) {
        let stale = std::mem::take(&mut self.shared_is_stale);
        self.policies_are_stale |= stale;
        self.refresh_policies();
        if !stale {
            return;
        }
        let fresh: BTreeMap<_, _> = items::shared(&self.objects, &self.options)
            .into_iter()
            .map(|item| (item.key.clone(), item))
            .collect();
        let same = fresh.len() == self.shared.len()
            && fresh.iter().zip(&self.shared).all(|((k, a), (l, b))| k == l && a.hash == b.hash);
        if !same {
            self.shared = fresh;
            self.all_dirty = true;
        }
    }

    async fn flush(&mut self) {
        self.refresh_shared();
        let all = std::mem::take(&mut self.all_dirty);
        let due: Vec<_> =
            self.links.iter().filter(|(_, l)| all || l.dirty).map(|(node, _)| node.clone()).collect();
        for node in due {
            let serves = self.links.get(&node).is_some_and(|link| link.serves_ingress);
            let items = self.items_of(&node, serves);
            let same = self.links.get_mut(&node).is_some_and(|link| {
                link.dirty = false;
                link.held.len() == items.len()
                    && link.held.iter().zip(&items).all(|((k, h), (l, i))| k == l && *h == i.hash)
            });
            if !same {
                self.send(&node, items).await;
            }
        }
    }

    /// The set of a node. Certificates' keys go only where Ingresses are served.
    fn items_of(&self, node: &str, serves_ingress: bool) -> BTreeMap<ItemKey, Item> {
        let own = items::of_node(&self.objects, &self.options, node);
        let mut all: BTreeMap<_, _> = self
            .shared
            .iter()
            .filter(|(key, _)| !items::is_about_itself(key, node))
            .filter(|(key, _)| serves_ingress || key.kind != ItemKind::Ingress)
            .map(|(key, item)| (key.clone(), item.clone()))
            .collect();
        let policies = self.policies.get(node).into_iter().flatten().cloned();
        all.extend(own.into_iter().chain(policies).map(|item| (item.key.clone(), item)));
        all
    }

    /// Sends what a node lacks of its set, in parts that fit a message.
    async fn send(&mut self, node: &str, items: BTreeMap<ItemKey, Item>) {
        let Some(link) = self.links.get_mut(node) else { return };
        let digest = digest(&items);
        let held = hashes(&items);
        let put: Vec<Item> =
            items.into_values().filter(|item| link.held.get(&item.key) != Some(&item.hash)).collect();
        let delete: Vec<ItemKey> = link.held.keys().filter(|key| !held.contains_key(*key)).cloned().collect();
        if !put.is_empty() || !delete.is_empty() {
            link.generation.0 += 1;
        }
        link.held = held;
        let generation = link.generation;
        let mut parts = vec![Desired { generation, put: Vec::new(), delete, digest: None }];
        let mut bytes = 0;
        for item in put {
            if bytes > 0 && bytes + item.body.len() > ITEMS_BYTES_MAX {
                parts.push(Desired { generation, ..Desired::default() });
                bytes = 0;
            }
            bytes += item.body.len();
            if let Some(part) = parts.last_mut() {
                part.put.push(item);
            }
        }
        if let Some(last) = parts.last_mut() {
            last.digest = Some(digest);
        }
        for part in parts {
            self.say(node, &Down::Desired(part)).await;
        }
    }

    async fn call_absent_nodes_lost(&self) {
        for node in self.objects.list_typed::<Node>(None) {
            let name = node.metadata.name.clone().unwrap_or_default();
            if !self.links.contains_key(&name) {
                report::lost(&self.objects, &name, &self.writer).await;
            }
        }
    }

    async fn say(&self, node: &str, message: &Down) {
        match messages::encode(message) {
            Ok(payload) => {
                let topic = topics::down(&self.options.cluster, node, Leaf::Control);
                self.publish(&topic, payload).await;
            }
            Err(error) => tracing::error!(node, %error, "a message cannot be sent"),
        }
    }

    async fn publish(&self, topic: &str, payload: Bytes) {
        match self.bus.publish(topic, payload, Priority::Control).await {
            // The hello of the next connection heals what was not sent.
            Ok(()) | Err(mqtt::Error::Offline) => {}
            Err(error) => tracing::error!(topic, %error, "a message was not taken"),
        }
    }
}

fn digest(items: &BTreeMap<ItemKey, Item>) -> String {
    messages::digest_of(items.iter().map(|(key, item)| (key, item.hash.as_str())))
}

fn hashes(items: &BTreeMap<ItemKey, Item>) -> BTreeMap<ItemKey, String> {
    items.iter().map(|(key, item)| (key.clone(), item.hash.clone())).collect()
}

/// The nodes' names in a set, for logs and tests.
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
