//! What nodes say that has to be written or answered: one thing at a time for each node, in order, and
//! many nodes at once, so that their writes share the store's syncs.
//!
//! Invariants: a node's queue is bounded; what does not fit is dropped, and the node is asked to say
//! hello when its queue is empty, upon which it says again what was not acknowledged.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::SignedDuration;
use tokio::sync::mpsc;

use super::{IssueToken, Options, TokenRequest, pods, register, report};
use crate::{
    mqtt::{
        self, Bus, Priority,
        messages::{self, Answer, Ask, Down, Hello, NodeEvent, Status},
        topics::{self, Leaf},
    },
    objects::{Objects, WriteOptions},
};

/// Things that wait for one node, its questions apart.
const WAITING_MAX: usize = 1024;
/// Questions that wait: as many as a node may have open. One that is dropped holds up a pod until the
/// node asks again.
const QUESTIONS_MAX: usize = 1024;

/// Messages to nodes that wait to be sent: topic and payload.
pub type Queued = mpsc::UnboundedReceiver<(String, Bytes)>;

/// Hands queued messages to the bus, one after the other.
pub async fn send_all(bus: Arc<dyn Bus>, mut outgoing: Queued) {
    while let Some((topic, payload)) = outgoing.recv().await {
        match bus.publish(&topic, payload, Priority::Control).await {
            // The hello of the next connection heals what was not sent.
            Ok(()) | Err(mqtt::Error::Offline) => {}
            Err(error) => tracing::error!(topic, %error, "a message was not taken"),
        }
    }
}

/// One thing to do for a node.
#[derive(Debug)]
pub enum Work {
    Hello(Box<Hello>),
    Status(Status),
    Events(Vec<NodeEvent>, SignedDuration),
    Ask(u64, Ask),
    /// The node is gone: how.
    Lost(Loss),
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
    pub outgoing: mpsc::UnboundedSender<(String, Bytes)>,
    pub tokens: IssueToken,
    pub writer: WriteOptions,
    /// Held while a node is given its pods' network.
    pub networks: Arc<tokio::sync::Mutex<()>>,
}

impl Context {
    pub async fn say(&self, node: &str, message: &Down) {
        match messages::encode(message) {
            Ok(payload) => {
                let topic = topics::down(&self.options.cluster, node, Leaf::Control);
                self.publish(&topic, payload).await;
            }
            Err(error) => tracing::error!(node, %error, "a message cannot be sent"),
        }
    }

    /// Queues a message. Never waits: who reads what nodes say must not wait for them to listen, or
    /// both ends wait for each other.
    pub async fn publish(&self, topic: &str, payload: Bytes) {
        // Nobody sends any more when this fails: the dispatcher has ended.
        let _ = self.outgoing.send((topic.to_owned(), payload));
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
            Work::Status(status) => self.status(&node, status).await,
            Work::Events(mut events, offset) => {
                for event in &mut events {
                    event.time = event.time.checked_add(offset).unwrap_or(event.time);
                }
                report::events(&self.objects, &node, events, &self.writer).await;
            }
            Work::Ask(id, ask) => self.answer(&node, id, ask).await,
            Work::Lost(loss) => report::lost(&self.objects, &node, loss, &self.writer).await,
        }
        (node, None)
    }

    async fn status(&self, node: &str, status: Status) {
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
}

#[derive(Default)]
struct Inbox {
    waiting: VecDeque<Work>,
    overflowed: bool,
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
        let questions = inbox.waiting.iter().filter(|work| matches!(work, Work::Ask(..))).count();
        let has_room = match work {
            Work::Ask(..) => questions < QUESTIONS_MAX,
            Work::Lost(_) => true,
            _ => inbox.waiting.len() - questions < WAITING_MAX,
        };
        if has_room {
            inbox.waiting.push_back(work);
        } else if !std::mem::replace(&mut inbox.overflowed, true) {
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
                context.say(&node, &Down::SayHello { hashes: false }).await;
            }
        }
        (node, hello)
    }
}
