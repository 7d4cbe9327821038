//! A broker in memory, for simulations: the same behaviour, with switches to cut and to lose.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Bus, Error, Event, Events, PAYLOAD_BYTES_MAX, Place, Priority, Will};

struct Client {
    filters: Vec<String>,
    will: Option<Will>,
    events: mpsc::UnboundedSender<Event>,
    connected: bool,
}

#[derive(Default)]
struct State {
    clients: BTreeMap<String, Client>,
    /// How many of the next messages to a client are lost.
    losing: BTreeMap<String, usize>,
}

/// The broker. Cheap to clone.
#[derive(Clone, Default)]
pub struct MemoryBroker(Arc<Mutex<State>>);

/// One client's side.
pub struct MemoryBus {
    broker: MemoryBroker,
    client: String,
}

impl MemoryBroker {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of the broker's lock panics")
    }

    /// Registers a client and connects it.
    pub fn connect(
        &self,
        client: &str,
        filters: Vec<String>,
        will: Option<Will>,
    ) -> (Arc<MemoryBus>, Events) {
        // The test's end is bounded like the real one; what does not fit waits in the broker.
        let (sender, receiver) = mpsc::channel(super::EVENTS_MAX);
        let (events, mut waiting) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(event) = waiting.recv().await {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        let entry = Client { filters, will, events, connected: false };
        self.lock().clients.insert(client.to_owned(), entry);
        self.reconnect(client);
        (Arc::new(MemoryBus { broker: self.clone(), client: client.to_owned() }), receiver)
    }

    /// Cuts a client off; its Last Will is published.
    pub fn cut(&self, client: &str) {
        let will = {
            let mut state = self.lock();
            let Some(entry) = state.clients.get_mut(client).filter(|c| c.connected) else { return };
            entry.connected = false;
            let _ = entry.events.send(Event::Disconnected { reason: "cut".to_owned() });
            entry.will.clone()
        };
        if let Some(will) = will {
            self.deliver(&will.topic, &will.payload);
        }
    }

    /// Connects a client that was cut off.
    pub fn reconnect(&self, client: &str) {
        if let Some(entry) = self.lock().clients.get_mut(client).filter(|c| !c.connected) {
            entry.connected = true;
            let _ = entry.events.send(Event::Connected);
        }
    }

    /// Loses the next `count` messages to a client.
    pub fn lose(&self, client: &str, count: usize) {
        self.lock().losing.insert(client.to_owned(), count);
    }

    fn deliver(&self, topic: &str, payload: &Bytes) {
        let mut state = self.lock();
        let State { clients, losing } = &mut *state;
        for (name, client) in clients.iter().filter(|(_, c)| c.connected) {
            if !client.filters.iter().any(|filter| matches(filter, topic)) {
                continue;
            }
            if let Some(left) = losing.get_mut(name).filter(|left| **left > 0) {
                *left -= 1;
                continue;
            }
            let _ = client.events.send(Event::Message { topic: topic.to_owned(), payload: payload.clone() });
        }
    }
}

impl Bus for MemoryBus {
    fn publish<'a>(
        &'a self,
        topic: &'a str,
        payload: Bytes,
        _priority: Priority,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if payload.len() > PAYLOAD_BYTES_MAX {
                return Err(Error::TooLarge(payload.len()));
            }
            if !self.connected() {
                return Err(Error::Offline);
            }
            self.broker.deliver(topic, &payload);
            Ok(())
        })
    }

    fn reserve(&self, _priority: Priority) -> BoxFuture<'_, Result<Place, Error>> {
        let broker = self.broker.clone();
        let place: Place = Box::new(move |topic, payload| broker.deliver(&topic, &payload));
        let connected = self.connected();
        Box::pin(async move { if connected { Ok(place) } else { Err(Error::Offline) } })
    }

    fn try_publish(&self, topic: &str, payload: Bytes, _priority: Priority) -> Result<(), Error> {
        if !self.connected() {
            return Err(Error::Offline);
        }
        self.broker.deliver(topic, &payload);
        Ok(())
    }

    fn connected(&self) -> bool {
        self.broker.lock().clients.get(&self.client).is_some_and(|c| c.connected)
    }
}

/// Whether a filter with `+` and a trailing `#` covers a topic (MQTT 5.0, section 4.7).
fn matches(filter: &str, topic: &str) -> bool {
    let mut topics = topic.split('/');
    for part in filter.split('/') {
        match (part, topics.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (part, Some(level)) if part == level => {}
            _ => return false,
        }
    }
    topics.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_cover_what_the_standard_says() {
        for (filter, topic, covers) in [
            ("a/b", "a/b", true),
            ("a/+/c", "a/b/c", true),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/+", "a/b/c", false),
            ("a/b", "a/b/c", false),
        ] {
            assert_eq!(matches(filter, topic), covers, "{filter} {topic}");
        }
    }

    #[tokio::test]
    async fn a_cut_client_leaves_its_will() {
        let broker = MemoryBroker::new();
        let (_master, mut events) = broker.connect("master", vec!["up/#".into()], None);
        let will = Will { topic: "up/will".into(), payload: Bytes::from_static(b"gone") };
        let (node, _events) = broker.connect("node", vec![], Some(will));
        assert_eq!(events.recv().await, Some(Event::Connected));
        broker.cut("node");
        let Some(Event::Message { topic, .. }) = events.recv().await else { panic!("no will") };
        assert_eq!(topic, "up/will");
        assert!(matches!(node.publish("up/x", Bytes::new(), Priority::Control).await, Err(Error::Offline)));
    }
}
