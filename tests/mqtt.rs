//! The embedded broker and the client over real TLS connections on loopback, on good links and bad
//! ones; and everything together when everything goes wrong.

mod chaos;
mod proxy;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use sampan::{
    mqtt::{
        Bus, Event, Events, Priority, Will,
        broker::{Broker, Identify, Peer},
        session::{Address, Endpoints, Options, Session, session},
        topics::{self, Leaf, node_client_id},
    },
    tasks::Tasks,
};
use tokio::time::timeout;

const CLUSTER: &str = "test";
const PATIENCE: Duration = Duration::from_mins(1);
/// The shortest that the client library has.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(5);

struct World {
    ca: CertifiedIssuer<'static, KeyPair>,
    tasks: Tasks,
    port: u16,
}

impl World {
    async fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut world = Self { ca, tasks: Tasks::new(), port: 0 };
        let (chain, key) = world.certificate("localhost");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(world.roots()), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        let identify: Identify = Arc::new(|chain: &[CertificateDer<'_>]| {
            let (_, certificate) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
            let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
            match name.strip_prefix("system:node:") {
                Some(node) => Some(Peer::Node(node.to_owned())),
                None => (name == "master").then_some(Peer::Master),
            }
        });
        let broker =
            Broker::bind("127.0.0.1:0".parse().unwrap(), CLUSTER, Arc::new(tls), identify).await.unwrap();
        world.port = broker.local_addr().unwrap().port();
        world.tasks.spawn("broker", |stop| broker.run(stop));
        world
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        roots
    }

    fn certificate(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn options(
        &self,
        name: Option<&str>,
        client_id: &str,
        filters: Vec<String>,
        will: Option<Will>,
    ) -> Options {
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(self.roots());
        let tls = match name {
            Some(name) => {
                let (chain, key) = self.certificate(name);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        Options {
            endpoints: Address { host: "localhost".to_owned(), port: self.port, tls: true, login: None }
                .into(),
            tls: Arc::new(tls).into(),
            client_id: client_id.to_owned(),
            keep_alive: Duration::from_secs(10),
            filters,
            will,
        }
    }

    fn connect(
        &self,
        name: Option<&str>,
        client_id: &str,
        filters: Vec<String>,
        will: Option<Will>,
    ) -> (Arc<Session>, Events) {
        let (bus, events, connection) = session(self.options(name, client_id, filters, will));
        self.tasks.spawn(format!("client {client_id}"), |stop| connection.run(stop));
        (bus, events)
    }

    async fn master(&self) -> (Arc<Session>, Events) {
        let (bus, mut events) = self.connect(Some("master"), "master", topics::master_filters(CLUSTER), None);
        assert_eq!(next(&mut events).await, Event::Connected);
        (bus, events)
    }

    async fn node(&self, name: &str, will: Option<Will>) -> (Arc<Session>, Events) {
        let filters = topics::node_filters(CLUSTER, name);
        let (bus, mut events) =
            self.connect(Some(&format!("system:node:{name}")), &node_client_id(CLUSTER, name), filters, will);
        assert_eq!(next(&mut events).await, Event::Connected);
        (bus, events)
    }
}

async fn next(events: &mut Events) -> Event {
    timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("a living connection")
}

fn message(topic: String, payload: &'static [u8]) -> Event {
    Event::Message { topic, payload: Bytes::from_static(payload) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_in_order_and_a_late_node_hears_the_retained_one() {
    let world = World::new().await;
    let (master, mut from_nodes) = world.master().await;
    let boot = topics::master(CLUSTER);
    master.publish(&boot, Bytes::from_static(b"boot-1"), Priority::Control).await.unwrap();
    let (node, mut from_master) = world.node("a", None).await;
    assert_eq!(next(&mut from_master).await, message(boot, b"boot-1"));

    let up = topics::up(CLUSTER, "a", Leaf::Control);
    for n in 0..500u32 {
        node.publish(&up, Bytes::from(n.to_string()), Priority::Control).await.unwrap();
    }
    for n in 0..500u32 {
        let Event::Message { payload, .. } = next(&mut from_nodes).await else { panic!("no message") };
        assert_eq!(payload, n.to_string());
    }
    let down = topics::down(CLUSTER, "a", Leaf::Control);
    master.publish(&down, Bytes::from_static(b"hello"), Priority::Control).await.unwrap();
    assert_eq!(next(&mut from_master).await, message(down, b"hello"));
    world.tasks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_waits_to_publish_does_not_stop_its_own_connection() {
    let world = World::new().await;
    let (master, mut from_nodes) = world.master().await;
    let (node, mut from_master) = world.node("a", None).await;
    // Each says far more than any queue holds before it reads a word.
    let (up, down) = (topics::up(CLUSTER, "a", Leaf::Control), topics::down(CLUSTER, "a", Leaf::Control));
    let say = async |bus: &dyn Bus, topic: &str| {
        for n in 0..1000u32 {
            bus.publish(topic, Bytes::from(n.to_string()), Priority::Control).await.unwrap();
        }
    };
    let both = async { tokio::join!(say(&*master, &down), say(&*node, &up)) };
    timeout(Duration::from_mins(1), both).await.expect("the connections stand still");
    for events in [&mut from_nodes, &mut from_master] {
        for n in 0..1000u32 {
            let Event::Message { payload, .. } = next(events).await else { panic!("no message") };
            assert_eq!(payload, n.to_string());
        }
    }
    world.tasks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_cannot_speak_or_listen_for_another() {
    let world = World::new().await;
    let (_master, mut from_nodes) = world.master().await;
    let (liar, _events) = world.node("liar", None).await;
    let (_b, mut to_b) = world.node("b", None).await;
    for topic in [topics::up(CLUSTER, "b", Leaf::Control), topics::down(CLUSTER, "b", Leaf::Control)] {
        liar.publish(&topic, Bytes::from_static(b"lie"), Priority::Control).await.unwrap();
    }
    let own = topics::up(CLUSTER, "liar", Leaf::Control);
    liar.publish(&own, Bytes::from_static(b"true"), Priority::Control).await.unwrap();
    assert_eq!(next(&mut from_nodes).await, message(own, b"true"));
    assert!(timeout(Duration::from_millis(300), to_b.recv()).await.is_err(), "b heard a lie");

    // Listening to others' topics: the subscription is refused, nothing arrives.
    let (_spy, mut heard) = world.connect(
        Some("system:node:spy"),
        &node_client_id(CLUSTER, "spy"),
        vec!["sampan/#".to_owned()],
        None,
    );
    let (b, _) = world.node("b2", None).await;
    b.publish(&topics::up(CLUSTER, "b2", Leaf::Control), Bytes::from_static(b"secret"), Priority::Control)
        .await
        .unwrap();
    let first = timeout(Duration::from_millis(500), async {
        loop {
            match heard.recv().await {
                Some(Event::Message { topic, .. }) => return topic,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    });
    assert!(first.await.is_err(), "the spy heard something");
    world.tasks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_wrong_names_are_refused() {
    let world = World::new().await;
    for (certificate, node) in [(None, "a"), (Some("somebody"), "a"), (Some("system:node:a"), "b")] {
        let id = &node_client_id(CLUSTER, node);
        let (bus, mut events) = world.connect(certificate, id, topics::node_filters(CLUSTER, "a"), None);
        assert!(matches!(next(&mut events).await, Event::Disconnected { .. }), "{certificate:?} {id}");
        assert!(!bus.connected());
    }
    world.tasks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_leaves_its_will_at_once() {
    let world = World::new().await;
    let (_master, mut from_nodes) = world.master().await;
    let topic = topics::up(CLUSTER, "a", Leaf::Will);
    let will = Will { topic: topic.clone(), payload: Bytes::from_static(b"gone") };
    let filters = topics::node_filters(CLUSTER, "a");
    let options = world.options(Some("system:node:a"), &node_client_id(CLUSTER, "a"), filters, Some(will));
    let (_bus, mut events, connection) = session(options);
    let task = tokio::spawn(connection.run(sampan::tasks::CancellationToken::new()));
    assert_eq!(next(&mut events).await, Event::Connected);
    // As when the power goes: the socket closes without a goodbye.
    task.abort();
    assert_eq!(next(&mut from_nodes).await, message(topic, b"gone"));
    world.tasks.stop().await;
}

/// A node `a` whose connection passes through a proxy.
async fn through(
    world: &World,
    weather: proxy::Weather,
    keep_alive: Duration,
) -> (proxy::Proxy, Arc<Session>, Events) {
    let proxy = proxy::Proxy::to(([127, 0, 0, 1], world.port).into(), weather).await;
    let will = Will { topic: topics::up(CLUSTER, "a", Leaf::Will), payload: Bytes::from_static(b"gone") };
    let mut options = world.options(
        Some("system:node:a"),
        &node_client_id(CLUSTER, "a"),
        topics::node_filters(CLUSTER, "a"),
        Some(will),
    );
    let address = Address { host: "localhost".to_owned(), port: proxy.port, tls: true, login: None };
    options.endpoints = address.into();
    options.keep_alive = keep_alive;
    let (bus, mut events, connection) = session(options);
    world.tasks.spawn("through the proxy", |stop| connection.run(stop));
    while next(&mut events).await != Event::Connected {}
    (proxy, bus, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_and_lossy_link_carries_everything_in_order_control_first() {
    let world = World::new().await;
    let (_master, mut from_nodes) = world.master().await;
    // 64 kbit/s, half a second there and back, five of a hundred segments lost.
    let weather = proxy::Weather { delay: Duration::from_millis(250), rate: 8_000, loss_percent: 5 };
    let (proxy, node, _events) = through(&world, weather, Duration::from_secs(10)).await;
    let (control, bulk) = (topics::up(CLUSTER, "a", Leaf::Control), topics::up(CLUSTER, "a", Leaf::Stream));
    for n in 0..24u8 {
        node.publish(&bulk, Bytes::from(vec![n; 1_000]), Priority::Bulk).await.unwrap();
    }
    node.publish(&control, Bytes::from_static(b"urgent"), Priority::Control).await.unwrap();
    let (mut before_urgent, mut seen, mut expected) = (0, false, 0);
    while !seen || expected < 24 {
        let Event::Message { topic, payload } = next(&mut from_nodes).await else { panic!("no message") };
        if topic == control {
            (seen, before_urgent) = (true, expected);
        } else {
            assert_eq!(payload[0], expected);
            expected += 1;
        }
    }
    assert!(before_urgent < 16, "{before_urgent} log lines went before a status");
    assert_eq!(proxy.connections(), 1, "it was not given up");
    world.tasks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_cut_is_noticed_by_both_ends_and_a_new_connection_made() {
    let world = World::new().await;
    let (master, mut from_nodes) = world.master().await;
    let (proxy, _node, mut events) = through(&world, proxy::FAIR, KEEP_ALIVE_MIN).await;
    // The NAT has forgotten the connection.
    proxy.stall();
    let start = std::time::Instant::now();
    assert_eq!(next(&mut from_nodes).await, message(topics::up(CLUSTER, "a", Leaf::Will), b"gone"));
    assert!(start.elapsed() < KEEP_ALIVE_MIN * 4, "the broker took {:?}", start.elapsed());
    assert!(matches!(next(&mut events).await, Event::Disconnected { .. }));
    while next(&mut events).await != Event::Connected {}
    let down = topics::down(CLUSTER, "a", Leaf::Control);
    master.publish(&down, Bytes::from_static(b"again"), Priority::Control).await.unwrap();
    assert_eq!(next(&mut events).await, message(down, b"again"));
    // A cut that is told heals in a moment.
    proxy.cut();
    assert!(matches!(next(&mut events).await, Event::Disconnected { .. }));
    let start = std::time::Instant::now();
    while next(&mut events).await != Event::Connected {}
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    world.tasks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_costs_a_few_bytes_and_the_second_endpoint_is_found() {
    let world = World::new().await;
    let (_master, mut from_nodes) = world.master().await;
    let (proxy, _node, _events) = through(&world, proxy::FAIR, KEEP_ALIVE_MIN).await;
    tokio::time::sleep(KEEP_ALIVE_MIN / 2).await;
    let (before, _) = proxy.bytes();
    tokio::time::sleep(KEEP_ALIVE_MIN).await;
    let (after, _) = proxy.bytes();
    // A PINGREQ in TLS 1.3: 2 bytes, and 22 of the record. At the default of one in 10 s: 0.02 kbit/s.
    let pings = (after - before) / 24;
    assert!(after > before && (after - before) % 24 == 0 && pings <= 2, "{} bytes", after - before);
    drop(proxy);

    let filters = topics::node_filters(CLUSTER, "b");
    let mut options = world.options(Some("system:node:b"), &node_client_id(CLUSTER, "b"), filters, None);
    let good = options.endpoints.list()[0].clone();
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    options.endpoints = Endpoints::new(vec![Address { port: dead, ..good.clone() }, good]);
    let (node, mut events, connection) = session(options);
    world.tasks.spawn("two endpoints", |stop| connection.run(stop));
    assert!(matches!(next(&mut events).await, Event::Disconnected { .. }));
    assert_eq!(next(&mut events).await, Event::Connected);
    let up = topics::up(CLUSTER, "b", Leaf::Control);
    node.publish(&up, Bytes::from_static(b"here"), Priority::Control).await.unwrap();
    while next(&mut from_nodes).await != message(up.clone(), b"here") {}
    world.tasks.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_floods_holds_up_nobody_else() {
    let world = World::new().await;
    let (_master, mut from_nodes) = world.master().await;
    let (flooder, _events) = world.node("flooder", None).await;
    let flood = topics::up(CLUSTER, "flooder", Leaf::Control);
    let flooding = tokio::spawn(async move {
        loop {
            if flooder.publish(&flood, Bytes::from_static(b"!"), Priority::Control).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    let (quiet, _quiet_events) = world.node("quiet", None).await;
    let topic = topics::up(CLUSTER, "quiet", Leaf::Control);
    for n in 0..20u8 {
        quiet.publish(&topic, Bytes::from(vec![n]), Priority::Control).await.unwrap();
        let start = std::time::Instant::now();
        loop {
            if next(&mut from_nodes).await
                == (Event::Message { topic: topic.clone(), payload: vec![n].into() })
            {
                break;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
    flooding.abort();
    world.tasks.stop().await;
}
