//! Messages to nodes that wait to be sent: one queue in the order they were said, bounded for each
//! topic. What a topic has no room for is dropped, all that waits for it too, and its node is asked to
//! say hello instead: the answer to that is what it lacks then.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::mqtt::{
    self, Bus, Priority,
    messages::{self, Down},
};

/// Messages that may wait for one topic: more than the parts of the largest desired set.
const WAITING_MAX: usize = 128;
/// What they may weigh (bytes).
const WAITING_BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
struct Waiting {
    count: usize,
    bytes: usize,
    /// Messages at the front of the topic that are not sent any more.
    dropped: usize,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<(Arc<str>, Bytes)>,
    topics: HashMap<Arc<str>, Waiting>,
}

/// The queue.
#[derive(Default)]
pub struct Outgoing {
    queue: Mutex<Queue>,
    filled: Notify,
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of the queue's lock panics")
    }

    /// Takes a message; never waits.
    pub fn put(&self, topic: &str, payload: Bytes) {
        let mut queue = self.lock();
        let Queue { messages, topics } = &mut *queue;
        let topic: Arc<str> =
            topics.get_key_value(topic).map_or_else(|| topic.into(), |(t, _)| Arc::clone(t));
        let waiting = topics.entry(Arc::clone(&topic)).or_default();
        let payload = if waiting.count < WAITING_MAX && waiting.bytes + payload.len() <= WAITING_BYTES_MAX {
            payload
        } else if let Ok(hello) = messages::encode(&Down::SayHello { hashes: false }) {
            tracing::warn!(%topic, "too much waits for a node: it is asked to say hello");
            for (_, message) in messages.iter_mut().filter(|(of, _)| *of == topic) {
                message.clear();
            }
            waiting.dropped += std::mem::take(&mut waiting.count);
            waiting.bytes = 0;
            hello
        } else {
            return;
        };
        waiting.count += 1;
        waiting.bytes += payload.len();
        messages.push_back((topic, payload));
        drop(queue);
        self.filled.notify_one();
    }

    fn take(&self) -> Option<(Arc<str>, Bytes)> {
        let mut queue = self.lock();
        loop {
            let (topic, payload) = queue.messages.pop_front()?;
            let waiting = queue.topics.get_mut(&topic)?;
            let dropped = waiting.dropped > 0;
            if dropped {
                waiting.dropped -= 1;
            } else {
                waiting.count -= 1;
                waiting.bytes -= payload.len();
            }
            if waiting.count + waiting.dropped == 0 {
                queue.topics.remove(&topic);
            }
            if !dropped {
                return Some((topic, payload));
            }
        }
    }

    /// Hands what waits to the bus, one after the other, for ever.
    pub async fn send_all(&self, bus: &dyn Bus) -> ! {
        loop {
            while let Some((topic, payload)) = self.take() {
                match bus.publish(&topic, payload, Priority::Control).await {
                    // The hello of the next connection heals what was not sent.
                    Ok(()) | Err(mqtt::Error::Offline) => {}
                    Err(error) => tracing::error!(%topic, %error, "a message was not taken"),
                }
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_listen_is_asked_to_say_hello_and_nobody_else_waits() {
        let outgoing = Outgoing::default();
        let payload = |n: usize| Bytes::from(n.to_string());
        outgoing.put("other", payload(0));
        for n in 0..=WAITING_MAX {
            outgoing.put("deaf", payload(n));
        }
        outgoing.put("deaf", payload(7));
        outgoing.put("other", payload(1));
        let mut sent =
            std::iter::from_fn(|| outgoing.take()).map(|(topic, payload)| (topic.to_string(), payload));
        assert_eq!(sent.next(), Some(("other".to_owned(), payload(0))));
        let (topic, hello) = sent.next().unwrap();
        assert_eq!(topic, "deaf");
        assert!(matches!(messages::decode(&hello), Ok(Down::SayHello { hashes: false })));
        assert_eq!(sent.next(), Some(("deaf".to_owned(), payload(7))));
        assert_eq!(sent.next(), Some(("other".to_owned(), payload(1))));
        assert_eq!(sent.next(), None);
        drop(sent);
        assert!(outgoing.lock().topics.is_empty());
    }
}
