//! One client's connection to a broker over rumqttc (MQTT 5).
//!
//! Every connection gets a fresh client, so that nothing waits in the library from one connection
//! to the next; what is queued when a connection ends is dropped, as [`Bus`] says. Messages of
//! [`Priority::Control`] that wait go before those of [`Priority::Bulk`]. A message is acknowledged when
//! its reader has it: so the broker itself bounds what waits here, and a reader that waits to publish
//! does not keep the library from hearing what that waits for. With several addresses the one that
//! answered last is tried first, then the others in turn; a name is looked up each time, and all that it
//! stands for is tried.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rumqttc::{
    NetworkOptions, TlsConfiguration, Transport,
    v5::{
        AsyncClient, Event as Polled, EventLoop, Incoming, MqttOptions,
        mqttbytes::{
            QoS,
            v5::{Filter, LastWill, Publish, SubscribeReasonCode},
        },
    },
};
use tokio::sync::{Notify, mpsc};

use super::{Bus, EVENTS_MAX, Error, Event, Events, PAYLOAD_BYTES_MAX, Place, Priority, Will, topics};
use crate::tasks::CancellationToken;

/// Messages of one priority that wait for the connection; more wait in their senders.
const QUEUE_MAX: usize = 64;
/// Messages between our queue and the library's socket.
const LIBRARY_QUEUE: usize = 4;
/// Unacknowledged messages at a time, each way.
const INFLIGHT_MAX: u16 = 32;
/// Events that wait for their reader before nothing more is taken from the library: more than a broker
/// sends without an acknowledgement.
const WAITING_MAX: usize = INFLIGHT_MAX as usize + 8;
/// The pause before the first and before the last of many attempts to connect.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);
/// How long connecting may take (seconds).
const CONNECT_TIMEOUT_SECONDS: u64 = 10;
/// How long a clean goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const PACKET_HEAD_MAX: usize = 1 << 10;

/// Where a broker is: `mqtts://host:8883`, `mqtt://user:password@host:1883`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub login: Option<(String, String)>,
}

impl std::str::FromStr for Address {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let wrong = |message: &str| Error::Url { url: hide_password(url), message: message.to_owned() };
        let (tls, rest) = match url.split_once("://") {
            Some(("mqtts", rest)) => (true, rest),
            Some(("mqtt", rest)) => (false, rest),
            _ => return Err(wrong("expected mqtt://host:port or mqtts://host:port")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                (Some((user.to_owned(), password.to_owned())), place)
            }
            None => (None, rest),
        };
        let default = if tls { 8883 } else { 1883 };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !host.ends_with(':') => {
                (host, port.parse().map_err(|_| wrong("the port is not a number from 1 to 65535"))?)
            }
            _ => (place, default),
        };
        if host.is_empty() || host.contains('/') {
            return Err(wrong("there is no host, or a path behind it"));
        }
        Ok(Self { host: host.to_owned(), port, tls, login })
    }
}

/// An address that can be shown.
fn hide_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://…@{place}"),
        _ => url.to_owned(),
    }
}

impl std::fmt::Display for Address {
    /// Without the login: for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mqtt{}://{}:{}", if self.tls { "s" } else { "" }, self.host, self.port)
    }
}

/// Where a broker may be found: tried in turn; may change while a session lasts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Endpoints(Arc<Mutex<Vec<Address>>>);

impl Endpoints {
    pub fn new(addresses: Vec<Address>) -> Self {
        Self(Arc::new(Mutex::new(addresses)))
    }

    /// What is tried from the next attempt on.
    pub fn set(&self, addresses: Vec<Address>) {
        *self.0.lock().expect("no holder of the endpoints' lock panics") = addresses;
    }

    pub fn list(&self) -> Vec<Address> {
        self.0.lock().expect("no holder of the endpoints' lock panics").clone()
    }
}

impl From<Address> for Endpoints {
    fn from(address: Address) -> Self {
        Self::new(vec![address])
    }
}

/// How a broker proves who it is.
#[derive(Clone)]
pub struct Tls {
    pub config: Arc<rustls::ClientConfig>,
    /// By its authority alone, whatever the name or address it is reached at.
    pub any_name: bool,
}

impl From<Arc<rustls::ClientConfig>> for Tls {
    fn from(config: Arc<rustls::ClientConfig>) -> Self {
        Self { config, any_name: false }
    }
}

/// What a connection is made with.
#[derive(Clone)]
pub struct Options {
    pub endpoints: Endpoints,
    /// Used when an address says TLS.
    pub tls: Tls,
    pub client_id: String,
    pub keep_alive: Duration,
    pub filters: Vec<String>,
    pub will: Option<Will>,
}

/// The sending side.
pub struct Session {
    control: mpsc::Sender<Outgoing>,
    bulk: mpsc::Sender<Outgoing>,
    connected: Arc<AtomicBool>,
    leave: Arc<Notify>,
    renew: Arc<Notify>,
}

struct Outgoing {
    topic: String,
    payload: Bytes,
}

/// The task behind a [`Session`].
pub struct Connection {
    options: Options,
    control: mpsc::Receiver<Outgoing>,
    bulk: mpsc::Receiver<Outgoing>,
    events: mpsc::Sender<Event>,
    connected: Arc<AtomicBool>,
    leave: Arc<Notify>,
    renew: Arc<Notify>,
    /// The present connection, or the last one, came about.
    was_up: bool,
}

/// A session, the events of its connection, and the task that has to run.
pub fn session(options: Options) -> (Arc<Session>, Events, Connection) {
    let (control, control_queue) = mpsc::channel(QUEUE_MAX);
    let (bulk, bulk_queue) = mpsc::channel(QUEUE_MAX);
    let (events, received) = mpsc::channel(EVENTS_MAX);
    let connected = Arc::new(AtomicBool::new(false));
    let (leave, renew) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let session = Session {
        control,
        bulk,
        connected: Arc::clone(&connected),
        leave: Arc::clone(&leave),
        renew: Arc::clone(&renew),
    };
    let connection = Connection {
        options,
        control: control_queue,
        bulk: bulk_queue,
        events,
        connected,
        leave,
        renew,
        was_up: false,
    };
    (Arc::new(session), received, connection)
}

impl Session {
    fn queue(&self, priority: Priority) -> &mpsc::Sender<Outgoing> {
        match priority {
            Priority::Control => &self.control,
            Priority::Bulk => &self.bulk,
        }
    }
}

impl Bus for Session {
    fn publish<'a>(
        &'a self,
        topic: &'a str,
        payload: Bytes,
        priority: Priority,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if payload.len() > PAYLOAD_BYTES_MAX {
                return Err(Error::TooLarge(payload.len()));
            }
            if !self.connected() {
                return Err(Error::Offline);
            }
            let message = Outgoing { topic: topic.to_owned(), payload };
            self.queue(priority).send(message).await.map_err(|_| Error::Offline)
        })
    }

    fn reserve(&self, priority: Priority) -> BoxFuture<'_, Result<Place, Error>> {
        Box::pin(async move {
            if !self.connected() {
                return Err(Error::Offline);
            }
            let permit = self.queue(priority).clone().reserve_owned().await.map_err(|_| Error::Offline)?;
            let place: Place = Box::new(move |topic, payload| drop(permit.send(Outgoing { topic, payload })));
            Ok(place)
        })
    }

    fn try_publish(&self, topic: &str, payload: Bytes, priority: Priority) -> Result<(), Error> {
        if !self.connected() {
            return Err(Error::Offline);
        }
        let message = Outgoing { topic: topic.to_owned(), payload };
        self.queue(priority).try_send(message).map_err(|_| Error::Offline)
    }

    fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    fn leave(&self) {
        self.leave.notify_waiters();
    }

    fn renew(&self) {
        self.renew.notify_waiters();
    }
}

impl Connection {
    /// Keeps the connection until told to stop, or until nobody reads its events.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut pause = RETRY_FIRST;
        // Which address is next, what of it is left to try, and how many were tried in vain since one answered.
        let (mut turn, mut places, mut vain) = (0usize, VecDeque::new(), 0usize);
        while !stop.is_cancelled() && !self.events.is_closed() {
            let addresses = self.options.endpoints.list();
            let Some(address) = addresses.get(turn % addresses.len().max(1)) else {
                let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY_LAST)).await;
                continue;
            };
            self.was_up = false;
            if places.is_empty() {
                places = stop.run_until_cancelled(self.places(address)).await.unwrap_or_default();
            }
            let reason = match places.pop_front() {
                Some(place) => self.connection(&place, &stop).await,
                None => Some(format!("{} has no address", address.host)),
            };
            self.connected.store(false, Ordering::Release);
            while self.control.try_recv().is_ok() || self.bulk.try_recv().is_ok() {}
            if let Some(reason) = reason {
                tracing::debug!(reason, %address, client = self.options.client_id, "MQTT connection ended");
                let was_up = self.was_up;
                if self.events.send(Event::Disconnected { reason }).await.is_err() {
                    break;
                }
                if was_up {
                    (pause, vain) = (RETRY_FIRST, 0);
                    places.clear();
                } else if places.is_empty() {
                    (turn, vain) = (turn.wrapping_add(1), vain + 1);
                } else {
                    continue;
                }
                let _ = stop.run_until_cancelled(tokio::time::sleep(jittered(pause))).await;
                // Longer only when every address was tried.
                if vain > 0 && vain.is_multiple_of(addresses.len()) {
                    pause = (pause * 2).min(RETRY_LAST);
                }
            }
        }
        Ok(())
    }

    /// What an address stands for now. The library would give all of them the time of one, and one that is
    /// silent takes it whole. A broker that has to prove its name is left to the library.
    async fn places(&self, address: &Address) -> VecDeque<Address> {
        if address.host.parse::<IpAddr>().is_ok() || (address.tls && !self.options.tls.any_name) {
            return [address.clone()].into();
        }
        let lookup = tokio::net::lookup_host((address.host.as_str(), address.port));
        let found = tokio::time::timeout(Duration::from_secs(CONNECT_TIMEOUT_SECONDS), lookup).await;
        let found = found.ok().and_then(Result::ok).into_iter().flatten();
        found.map(|place| Address { host: place.ip().to_string(), ..address.clone() }).collect()
    }

    /// One connection; the reason it ended, or `None` when it was told to.
    async fn connection(&mut self, address: &Address, stop: &CancellationToken) -> Option<String> {
        let (client, mut events) = AsyncClient::new(self.library_options(address), LIBRARY_QUEUE);
        // The library is polled to completion in its own future: its poll is not cancel-safe while
        // it writes.
        let (polled, mut from_library) = mpsc::channel(1);
        let polling = async move {
            loop {
                match events.poll().await {
                    // What the library deals with itself.
                    Ok(
                        Polled::Incoming(Incoming::PubAck(_) | Incoming::PingResp(_)) | Polled::Outgoing(_),
                    ) => {}
                    Ok(Polled::Incoming(packet)) => {
                        if polled.send(packet).await.is_err() {
                            return goodbye(events).await;
                        }
                    }
                    Err(error) => return error.to_string(),
                }
            }
        };
        let working = async {
            let reason = self.work(&client, &mut from_library, stop).await;
            if reason.is_none() {
                let _ = client.disconnect().await;
            }
            drop(from_library);
            reason
        };
        tokio::pin!(polling, working);
        tokio::select! {
            broken = &mut polling => Some(broken),
            reason = &mut working => {
                if reason.is_none() {
                    // Long enough for the DISCONNECT to leave; without it the Last Will speaks.
                    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, polling).await;
                }
                reason
            }
        }
    }

    fn library_options(&self, address: &Address) -> MqttOptions {
        let Options { tls, client_id, keep_alive, will, .. } = &self.options;
        let mut options = MqttOptions::new(client_id, &address.host, address.port);
        let packet = u32::try_from(PAYLOAD_BYTES_MAX + PACKET_HEAD_MAX).unwrap_or(u32::MAX);
        options
            .set_keep_alive(*keep_alive)
            .set_clean_start(true)
            .set_manual_acks(true)
            .set_connection_timeout(CONNECT_TIMEOUT_SECONDS)
            .set_max_packet_size(Some(packet))
            .set_receive_maximum(Some(INFLIGHT_MAX))
            .set_outgoing_inflight_upper_limit(INFLIGHT_MAX);
        // An acknowledgement has no answer: what is said next would wait for the kernel's, 40 ms.
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        if address.tls {
            options
                .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(&tls.config))));
        }
        if let Some((user, password)) = &address.login {
            options.set_credentials(user, password);
        }
        if let Some(will) = will {
            let payload = will.payload.to_vec();
            options.set_last_will(LastWill::new(&will.topic, payload, QoS::AtLeastOnce, false, None));
        }
        options
    }

    async fn work(
        &mut self,
        client: &AsyncClient,
        from_library: &mut mpsc::Receiver<Incoming>,
        stop: &CancellationToken,
    ) -> Option<String> {
        let mut up = false;
        let (leave, renew) = (Arc::clone(&self.leave), Arc::clone(&self.renew));
        let mut waiting: VecDeque<(Event, Option<Publish>)> = VecDeque::new();
        let mut read: VecDeque<Publish> = VecDeque::new();
        // In its own future: the library takes messages only as long as its packets are read here.
        let mut sending: Option<BoxFuture<'_, Option<()>>> = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = leave.notified(), if up => {
                    // As if it had not answered: the next one's turn.
                    self.was_up = false;
                    return Some("another broker is wanted".to_owned());
                }
                () = renew.notified() => return Some("this board has another address".to_owned()),
                place = self.events.reserve(), if !waiting.is_empty() => {
                    let place = place.ok()?;
                    if let Some((event, message)) = waiting.pop_front() {
                        place.send(event);
                        read.extend(message);
                    }
                }
                sent = async { sending.as_mut().expect("the condition of this branch").await }, if sending.is_some() => {
                    sent?;
                    sending = None;
                }
                () = std::future::ready(()), if sending.is_none() && !read.is_empty() => {
                    let messages = std::mem::take(&mut read);
                    sending = Some(Box::pin(acknowledge(client, messages)));
                }
                packet = from_library.recv(), if waiting.len() < WAITING_MAX => match packet {
                    Some(Incoming::ConnAck(_)) => {
                        let filters = self.options.filters.iter().map(|f| Filter::new(f, QoS::AtLeastOnce));
                        if let Err(error) = client.subscribe_many(filters).await {
                            return Some(error.to_string());
                        }
                    }
                    Some(Incoming::SubAck(answer)) => {
                        let refused = |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                        if let Some(code) = answer.return_codes.iter().find(|code| refused(code)) {
                            return Some(format!("the broker refuses a subscription: {code:?}"));
                        }
                        up = true;
                        self.was_up = true;
                        self.connected.store(true, Ordering::Release);
                        waiting.push_back((Event::Connected, None));
                    }
                    Some(Incoming::Publish(message)) => {
                        let topic = String::from_utf8_lossy(&message.topic).into_owned();
                        let event = Event::Message { topic, payload: message.payload.clone() };
                        // Only its number is needed to acknowledge it.
                        let message = Publish { topic: Bytes::new(), payload: Bytes::new(), ..message };
                        waiting.push_back((event, Some(message)));
                    }
                    Some(Incoming::Disconnect(why)) => return Some(format!("{:?}", why.reason_code)),
                    Some(_) => {}
                    // The poll has ended and tells why itself.
                    None => std::future::pending().await,
                },
                Some(message) = self.control.recv(), if up && sending.is_none() => {
                    sending = Some(Box::pin(send(client, message)));
                }
                Some(message) = self.bulk.recv(), if up && sending.is_none() => {
                    sending = Some(Box::pin(send(client, message)));
                }
            }
        }
    }
}

/// Tells the library that messages have found their reader; `None` as [`send`].
async fn acknowledge(client: &AsyncClient, messages: VecDeque<Publish>) -> Option<()> {
    for message in messages {
        if client.ack(&message).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
    Some(())
}

/// Hands a message to the library; `None` when that is on its way out and tells why itself.
async fn send(client: &AsyncClient, Outgoing { topic, payload }: Outgoing) -> Option<()> {
    let retain = topics::is_retained(&topic);
    if client.publish(topic, QoS::AtLeastOnce, retain, payload).await.is_err() {
        std::future::pending::<()>().await;
    }
    Some(())
}

/// Polls on until the DISCONNECT is written.
async fn goodbye(mut events: EventLoop) -> String {
    loop {
        match events.poll().await {
            Ok(Polled::Outgoing(rumqttc::Outgoing::Disconnect)) => return "stopped".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

/// Up to a half more, so that a thousand nodes do not come back in one moment.
fn jittered(pause: Duration) -> Duration {
    let [byte] = crate::ids::random_bytes();
    pause + pause * u32::from(byte) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_looked_up_unless_it_has_to_be_proven() {
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        let config = Arc::new(config);
        let places = async |url: &str, any_name: bool| {
            let (_, _, connection) = session(Options {
                endpoints: Endpoints::default(),
                tls: Tls { config: Arc::clone(&config), any_name },
                client_id: "c".to_owned(),
                keep_alive: Duration::from_secs(5),
                filters: Vec::new(),
                will: None,
            });
            let address = url.parse().unwrap();
            connection.places(&address).await.into_iter().map(|place| place.to_string()).collect::<Vec<_>>()
        };
        let local = places("mqtts://localhost:7", true).await;
        assert!(!local.is_empty() && local.iter().all(|place| !place.contains("localhost")), "{local:?}");
        assert!(local.contains(&"mqtts://127.0.0.1:7".to_owned()), "{local:?}");
        assert_eq!(places("mqtts://localhost:7", false).await, ["mqtts://localhost:7"]);
        assert_eq!(places("mqtts://192.0.2.1:7", true).await, ["mqtts://192.0.2.1:7"]);
        assert!(places("mqtts://nowhere.invalid:7", true).await.is_empty());
    }

    #[test]
    fn addresses_are_read() {
        let read = |url: &str| url.parse::<Address>();
        let plain = read("mqtts://master.example:8883").unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.tls), ("master.example", 8883, true));
        let login = read("mqtt://me:se@cret@10.0.0.1").unwrap();
        assert_eq!((login.host.as_str(), login.port), ("10.0.0.1", 1883));
        assert_eq!(login.login, Some(("me".to_owned(), "se@cret".to_owned())));
        for bad in ["master:8883", "http://x", "mqtt://", "mqtt://x:port", "mqtt://x:1/path"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let error = read("mqtt://me:secret@x:port").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
