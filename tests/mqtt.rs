//! The embedded broker and the client over real TLS connections on loopback.

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
        session::{Address, Options, Session, session},
        topics::{self, Leaf, node_client_id},
    },
    tasks::Tasks,
};
use tokio::time::timeout;

const CLUSTER: &str = "test";
const PATIENCE: Duration = Duration::from_secs(10);

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
            address: Address { host: "localhost".to_owned(), port: self.port, tls: true, login: None },
            tls: Arc::new(tls),
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
