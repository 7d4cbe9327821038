//! What nodes say that has to be written or answered: one thing at a time for each node, in order, and
//! many nodes at once, so that their writes share the store's syncs.
//!
//! Invariants: of what waits the newest replaces the older (a pod's status, a hello, a loss), so that a
//! node's inbox is as large as what it speaks of; what is beyond its bounds is dropped, and the node is
//! asked to say hello when its inbox is empty, upon which it says again what was not acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem::discriminant,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    IssueToken, Options, TokenRequest,
    outgoing::Outgoing,
    pods,
    register::{self, Networks},
    report,
};
use crate::{
    mqtt::{
        messages::{self, Answer, Ask, Down, Hello, NodeEvent, PodReport, Status},
        topics::{self, Leaf},
    },
    objects::{Objects, WriteOptions},
};

/// Pods whose statuses wait for one node, and what they may weigh (bytes).
const REPORTS_MAX: usize = 1024;
const REPORTS_BYTES_MAX: usize = 8 << 20;
/// Messages with statuses that wait to be acknowledged.
const ACKS_MAX: usize = 256;
/// Events that wait: as many as a node keeps. The oldest go first.
const EVENTS_MAX: usize = 256;
/// Questions that wait: as many as a node may have open. One that is dropped holds up a pod until the
/// node asks again.
const QUESTIONS_MAX: usize = 1024;

/// One thing to do for a node.
#[derive(Debug)]
pub enum Work {
    Hello(Box<Hello>),
    Statuses(Statuses),
    /// Their times are the master's.
    Events(Vec<NodeEvent>),
    Ask(u64, Ask),
    /// The node is connected: its Lease is renewed.
    Alive,
    /// The node is gone: how.
    Lost(Loss),
}

/// What a node has said of itself and its pods and nobody has written yet: the newest of each.
#[derive(Debug, Default)]
pub struct Statuses {
    /// The messages it came with.
    seqs: BTreeSet<u64>,
    /// By uid.
    pods: BTreeMap<String, PodReport>,
    bytes: usize,
    node: Option<messages::NodeState>,
}

impl From<Status> for Statuses {
    fn from(Status { seq, pods, node }: Status) -> Self {
        let pods: BTreeMap<_, _> = pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let bytes = pods.values().map(size).sum();
        Self { seqs: [seq].into(), pods, bytes, node }
    }
}

impl Statuses {
    /// Takes newer ones in, in place of those that are there; whether there was room.
    fn take(&mut self, newer: Self) -> bool {
        let fresh = newer.pods.keys().filter(|uid| !self.pods.contains_key(*uid)).count();
        if self.pods.len() + fresh > REPORTS_MAX
            || self.bytes + newer.bytes > REPORTS_BYTES_MAX
            || self.seqs.len() >= ACKS_MAX
        {
            return false;
        }
        self.seqs.extend(newer.seqs);
        self.bytes += newer.bytes;
        for (uid, pod) in newer.pods {
            self.bytes -= self.pods.insert(uid, pod).as_ref().map_or(0, size);
        }
        self.node = newer.node.or(self.node.take());
        true
    }
}

fn size(report: &PodReport) -> usize {
    report.status.get().len()
}

/// How a node went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nobody knows.
    Silent,
    /// It said goodbye.
    Clean,
}

/// What is done with a hello that was worked on: whether the node is registered.
pub type Worked = (String, Option<Box<Hello>>);

/// What all work needs. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub objects: Objects,
    pub options: Arc<Options>,
    pub outgoing: Arc<Outgoing>,
    pub tokens: IssueToken,
    pub writer: WriteOptions,
    pub networks: Networks,
}

impl Context {
    pub fn say(&self, node: &str, message: &Down) {
        match messages::encode(message) {
            Ok(payload) => self.publish(&self.topic(node), payload),
            Err(error) => tracing::error!(node, %error, "a message cannot be sent"),
        }
    }

    /// Where a node is told things.
    pub fn topic(&self, node: &str) -> String {
        topics::down(&self.options.cluster, node, Leaf::Control)
    }

    /// Queues a message. Never waits: who reads what nodes say must not wait for them to listen, or
    /// both ends wait for each other.
    pub fn publish(&self, topic: &str, payload: Bytes) {
        self.outgoing.put(topic, payload);
    }

    async fn perform(self, node: String, work: Work) -> Worked {
        match work {
            Work::Hello(hello) => {
                let registered = register::register(&self, &node, &hello.info, &hello.hardware);
                match registered.await {
                    Ok(()) => return (node, Some(hello)),
                    Err(error) => tracing::error!(node, %error, "the node could not be registered"),
                }
            }
            Work::Statuses(statuses) => self.statuses(&node, statuses).await,
            Work::Events(events) => report::events(&self.objects, &node, events).await,
            Work::Ask(id, ask) => self.answer(&node, id, ask).await,
            Work::Alive => {
                if let Err(error) = report::alive(&self.objects, &node, &self.writer).await {
                    tracing::debug!(node, %error, "the node's Lease could not be renewed");
                }
            }
            Work::Lost(loss) => report::lost(&self.objects, &node, loss, &self.writer).await,
        }
        (node, None)
    }

    async fn statuses(&self, node: &str, statuses: Statuses) {
        // What the node learned first: a pod's failure may be judged by it.
        if let Some(state) = statuses.node
            && let Err(error) = report::node_state(&self.objects, node, &state, &self.writer).await
        {
            tracing::warn!(node, %error, "the node's status could not be stored");
            return;
        }
        let mut writes: FuturesUnordered<_> = statuses
            .pods
            .into_values()
            .map(|report| pods::report(&self.objects, node, report, &self.writer))
            .collect();
        let mut all = true;
        while let Some(written) = writes.next().await {
            if let Err(error) = written {
                tracing::warn!(node, %error, "a pod's status could not be stored");
                all = false;
            }
        }
        // Without an acknowledgement the node says it again.
        for seq in statuses.seqs.into_iter().filter(|_| all) {
            self.say(node, &Down::StatusAck { seq });
        }
    }

    async fn answer(&self, node: &str, id: u64, ask: Ask) {
        let (namespace, service_account, pod, pod_uid, audiences, expiration_seconds) = match ask {
            Ask::Token { namespace, service_account, pod, pod_uid, audiences, expiration_seconds } => {
                (namespace, service_account, pod, pod_uid, audiences, expiration_seconds)
            }
            Ask::FolderRemoved { volume, uid } => {
                let done = report::folder_removed(&self.objects, node, &volume, &uid, &self.writer).await;
                let answer = done.map_or_else(|e| Answer::Refused(e.to_string()), |()| Answer::Done);
                return self.say(node, &Down::Answer { id, answer });
            }
        };
        let request = TokenRequest {
            node: node.to_owned(),
            namespace,
            service_account,
            pod,
            pod_uid,
            audiences,
            expiration_seconds,
        };
        let answer = match (self.tokens)(request).await {
            Ok((token, expires)) => Answer::Token { token, expires },
            Err(reason) => Answer::Refused(reason),
        };
        self.say(node, &Down::Answer { id, answer });
    }
}

#[derive(Default)]
struct Inbox {
    waiting: VecDeque<Work>,
    overflowed: bool,
}

impl Inbox {
    /// Takes something in, in place of what it makes out of date; whether there was room.
    fn put(&mut self, work: Work) -> bool {
        match work {
            Work::Statuses(newer) => {
                let waiting = self.waiting.iter_mut().find_map(|work| match work {
                    Work::Statuses(older) => Some(older),
                    _ => None,
                });
                match waiting {
                    Some(older) => return older.take(newer),
                    None => self.waiting.push_back(Work::Statuses(newer)),
                }
            }
            Work::Events(newer) => {
                let waiting = self.waiting.iter_mut().find_map(|work| match work {
                    Work::Events(older) => Some(older),
                    _ => None,
                });
                match waiting {
                    Some(older) => {
                        older.extend(newer);
                        older.drain(..older.len().saturating_sub(EVENTS_MAX));
                    }
                    None => self.waiting.push_back(Work::Events(newer)),
                }
            }
            Work::Ask(..) => {
                let questions = self.waiting.iter().filter(|work| matches!(work, Work::Ask(..))).count();
                if questions >= QUESTIONS_MAX {
                    return false;
                }
                self.waiting.push_back(work);
            }
            Work::Hello(_) | Work::Lost(_) | Work::Alive => {
                let kind = discriminant(&work);
                self.waiting.retain(|other| discriminant(other) != kind);
                self.waiting.push_back(work);
            }
        }
        true
    }
}

/// The work of all nodes.
#[derive(Default)]
pub struct Desk {
    /// A node is here while something of it is being worked on.
    inboxes: BTreeMap<String, Inbox>,
    running: FuturesUnordered<BoxFuture<'static, Worked>>,
}

impl Desk {
    /// Takes something in; it is begun at once when nothing of this node is being worked on.
    pub fn put(&mut self, context: &Context, node: &str, work: Work) {
        let Some(inbox) = self.inboxes.get_mut(node) else {
            self.inboxes.insert(node.to_owned(), Inbox::default());
            self.running.push(Box::pin(context.clone().perform(node.to_owned(), work)));
            return;
        };
        if !inbox.put(work) && !std::mem::replace(&mut inbox.overflowed, true) {
            tracing::warn!(node, "the node says more than can be worked on; some of it is dropped");
        }
    }

    /// Waits until something is done; never resolves while there is nothing to do. Cancel-safe.
    pub async fn done(&mut self, context: &Context) -> Worked {
        let Some((node, hello)) = self.running.next().await else {
            return std::future::pending().await;
        };
        if let Some(inbox) = self.inboxes.get_mut(&node) {
            if let Some(work) = inbox.waiting.pop_front() {
                self.running.push(Box::pin(context.clone().perform(node.clone(), work)));
            } else if self.inboxes.remove(&node).is_some_and(|inbox| inbox.overflowed) {
                context.say(&node, &Down::SayHello { hashes: false });
            }
        }
        (node, hello)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    fn status(seq: u64, pods: &[(&str, &str)]) -> Work {
        let report = |(uid, phase): &(&str, &str)| PodReport {
            namespace: "ns".to_owned(),
            name: (*uid).to_owned(),
            uid: (*uid).to_owned(),
            status: RawValue::from_string(format!("{{\"phase\":\"{phase}\"}}")).unwrap(),
            gone: false,
        };
        Work::Statuses(Status { seq, pods: pods.iter().map(report).collect(), node: None }.into())
    }

    fn hello(session: &str) -> Work {
        Work::Hello(Box::new(Hello { session: session.to_owned(), ..Hello::default() }))
    }

    #[test]
    fn the_newest_status_of_a_pod_replaces_the_one_that_waits() {
        let mut inbox = Inbox::default();
        for round in 1..=100 {
            let phase = format!("Phase{round}");
            assert!(inbox.put(status(round, &[("a", &phase), ("b", "Running")])));
        }
        assert_eq!(inbox.waiting.len(), 1);
        let Some(Work::Statuses(all)) = inbox.waiting.pop_front() else { panic!("no statuses") };
        assert_eq!(all.seqs.len(), 100, "all messages are acknowledged");
        assert!(all.pods["a"].status.get().contains("Phase100") && all.pods.len() == 2);
        assert_eq!(all.bytes, all.pods.values().map(size).sum::<usize>());
    }

    #[test]
    fn an_inbox_is_bounded_whatever_is_said() {
        let mut inbox = Inbox::default();
        let uids: Vec<String> = (0..=REPORTS_MAX).map(|n| n.to_string()).collect();
        let many: Vec<_> = uids.iter().map(|uid| (uid.as_str(), "x")).collect();
        assert!(inbox.put(status(1, &many[1..])));
        assert!(!inbox.put(status(2, &many[..1])), "one pod too many");
        assert!(inbox.put(status(3, &many[5..6])));
        let event = NodeEvent {
            namespace: String::new(),
            name: String::new(),
            uid: String::new(),
            field_path: String::new(),
            warning: false,
            reason: String::new(),
            message: String::new(),
            time: jiff::Timestamp::UNIX_EPOCH,
        };
        for n in 0..2 * EVENTS_MAX {
            let event = NodeEvent { message: n.to_string(), ..event.clone() };
            assert!(inbox.put(Work::Events(vec![event])));
            assert!(inbox.put(hello(&n.to_string())) && inbox.put(Work::Lost(Loss::Silent)));
        }
        let kinds: Vec<_> = inbox.waiting.iter().map(discriminant).collect();
        assert_eq!(kinds.len(), 4);
        assert!(matches!(&inbox.waiting[2], Work::Hello(hello) if hello.session == "511"));
        let Work::Events(events) = &inbox.waiting[1] else { panic!("no events") };
        assert_eq!((events.len(), events[EVENTS_MAX - 1].message.as_str()), (EVENTS_MAX, "511"));
        let ask = Ask::FolderRemoved { volume: String::new(), uid: String::new() };
        let taken = (0..2_000).filter(|n| inbox.put(Work::Ask(*n, ask.clone()))).count();
        assert_eq!(taken, QUESTIONS_MAX);
    }
}
