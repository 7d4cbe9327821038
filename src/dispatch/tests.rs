//! The dispatcher against a real store and an in-memory broker; the test plays the node.

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use serde_json::{json, value::RawValue};
use tokio::time::timeout;

use super::*;
use crate::{
    clock::{ManualClock, SharedClock, SystemClock},
    ids::Generation,
    kinds::registry,
    mqtt::{
        Priority,
        memory::{MemoryBroker, MemoryBus},
        messages::{
            Answer, Ask, Desired, Item, ItemKind, NodeInfo, NodeState, PodReport, SetDigest, SharedChange,
            Status,
        },
    },
    objects::DeleteOptions,
    store::Store,
    tasks::Tasks,
};

const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    _dir: tempfile::TempDir,
    objects: Objects,
    broker: MemoryBroker,
    tasks: Tasks,
}

/// The test's node: holds what a ledger would.
struct Board {
    name: String,
    session: String,
    /// Of this start of the kernel.
    boot: String,
    bus: Arc<MemoryBus>,
    events: Events,
    generation: Generation,
    held: BTreeMap<ItemKey, Item>,
}

impl World {
    fn new() -> Self {
        Self::at(Arc::new(SystemClock))
    }

    fn at(clock: SharedClock) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        let objects = Objects::new(store, clock);
        let broker = MemoryBroker::new();
        let (bus, events) = broker.connect("master", topics::master_filters("c"), None);
        let options = Options {
            cluster_dns: "10.43.0.10".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            own_node: Some("master".to_owned()),
            ..Options::sample()
        };
        let tokens: IssueToken = Arc::new(|request| {
            let TokenRequest { node, pod, pod_uid, service_account, .. } = request;
            let given = if node == "a" {
                Ok((format!("token of {service_account} for {pod} {pod_uid}"), jiff::Timestamp::MAX))
            } else {
                Err(format!("{pod} is not on {node}"))
            };
            Box::pin(async move { given })
        });
        let bus: Arc<dyn Bus> = bus;
        let dispatch = Dispatch::new(objects.clone(), options, (bus, events), tokens);
        let tasks = Tasks::new();
        tasks.spawn("dispatch", |stop| dispatch.run(stop));
        Self { _dir: dir, objects, broker, tasks }
    }

    fn board(&self, name: &str, session: &str) -> Board {
        let filters = topics::node_filters("c", name);
        let (bus, events) = self.broker.connect(&format!("{name}-{session}"), filters, None);
        Board {
            name: name.to_owned(),
            session: session.to_owned(),
            boot: String::new(),
            bus,
            events,
            generation: Generation(0),
            held: BTreeMap::new(),
        }
    }

    async fn create(&self, kind: &str, value: serde_json::Value) {
        let kind = registry::by_resource(kind).unwrap();
        self.objects.create(kind, "default", value, &WriteOptions::system("test")).await.unwrap();
    }

    async fn pod(&self, name: &str, node: &str) {
        let pod = json!({"metadata": {"name": name}, "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "image": "i",
                "envFrom": [{"configMapRef": {"name": "settings"}}]}],
        }});
        self.create("pods", pod).await;
    }

    /// The status of a node's condition `Ready`.
    fn ready(&self, node: &str) -> Option<String> {
        let node = self.objects.get_typed::<Node>("", node)?;
        let conditions = node.status.as_ref()?.conditions.clone()?;
        conditions.into_iter().find(|c| c.type_ == "Ready").map(|c| c.status)
    }

    fn get_pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.objects.get_typed::<Pod>("default", name)
    }
}

impl Board {
    async fn say(&self, message: &Up) {
        let topic = topics::up("c", &self.name, Leaf::Control);
        self.bus.publish(&topic, messages::encode(message).unwrap(), Priority::Control).await.unwrap();
    }

    async fn hello(&self, hashes: bool, machine: &str) {
        let info = NodeInfo {
            machine_id: machine.to_owned(),
            kernel_boot_id: self.boot.clone(),
            architecture: "arm64".to_owned(),
            addresses: vec![("InternalIP".to_owned(), "192.0.2.1".to_owned())],
            ..NodeInfo::default()
        };
        let hashes = hashes.then(|| self.held.iter().map(|(k, i)| (k.clone(), i.hash.clone())).collect());
        let hello = Hello {
            protocol: PROTOCOL,
            session: self.session.clone(),
            info,
            generation: self.generation,
            digest: digest_of(&self.held, false),
            shared: digest_of(&self.held, true),
            hashes,
            ..Hello::default()
        };
        self.say(&Up::Hello(Box::new(hello))).await;
    }

    async fn next(&mut self) -> Down {
        loop {
            let event = timeout(PATIENCE, self.events.recv()).await.expect("a message in time").unwrap();
            if let Event::Message { topic, payload } = event
                && topics::parse_down(&topic).is_some()
            {
                return messages::decode(&payload).unwrap();
            }
        }
    }

    /// The next message that is for this node alone.
    async fn answer(&mut self) -> Down {
        loop {
            match self.next().await {
                Down::Shared(_) => {}
                other => return other,
            }
        }
    }

    /// Takes a desired set in; returns what it put.
    async fn desired(&mut self) -> Vec<ItemKey> {
        let desired = loop {
            match self.next().await {
                Down::Desired(desired) => break desired,
                Down::Shared(change) => self.shared(change),
                Down::StatusAck { .. } => {}
                other => panic!("not a desired set: {other:?}"),
            }
        };
        self.take(desired)
    }

    fn take(&mut self, desired: Desired) -> Vec<ItemKey> {
        assert!(desired.generation >= self.generation);
        self.generation = desired.generation;
        for key in &desired.delete {
            self.held.remove(key);
        }
        let put = desired.put.iter().map(|item| item.key.clone()).collect();
        self.held.extend(desired.put.into_iter().map(|item| (item.key.clone(), item)));
        assert_eq!(desired.digest, Some(digest_of(&self.held, false)));
        put
    }

    fn shared(&mut self, change: SharedChange) {
        for key in &change.delete {
            self.held.remove(key);
        }
        self.held.extend(change.put.into_iter().map(|item| (item.key.clone(), item)));
        assert_eq!(change.digest, Some(digest_of(&self.held, true)));
    }

    /// Says hello until the master has answered with the set.
    async fn join(&mut self) {
        self.hello(false, "machine").await;
        self.desired().await;
    }

    fn holds(&self, kind: ItemKind, name: &str) -> bool {
        self.held.iter().any(|(key, item)| key.kind == kind && key.name == name && item.body != "null")
    }

    async fn until(&mut self, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            match self.next().await {
                Down::Shared(change) => self.shared(change),
                Down::Desired(desired) => drop(self.take(desired)),
                Down::StatusAck { .. } => {}
                other => panic!("not a set: {other:?}"),
            }
        }
    }
}

fn digest_of(held: &BTreeMap<ItemKey, Item>, shared: bool) -> String {
    let held = held.iter().filter(|(key, _)| key.kind.is_shared() == shared);
    SetDigest::of(held.map(|(key, item)| (key, item.hash.as_str()))).to_string()
}

async fn until(what: &str, wanted: impl Fn() -> bool) {
    let found = timeout(PATIENCE, async {
        while !wanted() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(found.await.is_ok(), "waited in vain for {what}");
}

#[tokio::test]
async fn a_node_gets_its_pods_and_what_they_refer_to_and_nothing_else() {
    let world = World::new();
    world.pod("mine", "a").await;
    world.pod("other", "b").await;
    let mut board = world.board("a", "s1");
    board.join().await;
    assert!(board.holds(ItemKind::Pod, "mine") && !board.holds(ItemKind::Pod, "other"));
    assert!(!board.holds(ItemKind::ConfigMap, "settings"), "it is not there yet");
    assert!(board.held[&ItemKey::new(ItemKind::Config, "", "a")].body.contains("10.42.0.0/24"));

    world.create("configmaps", json!({"metadata": {"name": "settings"}, "data": {"a": "1"}})).await;
    board.until(|b| b.holds(ItemKind::ConfigMap, "settings")).await;
    world.create("configmaps", json!({"metadata": {"name": "strange"}, "data": {"a": "1"}})).await;
    world.pod("second", "a").await;
    board.until(|b| b.holds(ItemKind::Pod, "second")).await;
    assert!(!board.holds(ItemKind::ConfigMap, "strange"));
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_node_that_has_everything_gets_an_empty_answer_and_a_lagging_one_is_healed() {
    let world = World::new();
    world.pod("p", "a").await;
    let mut board = world.board("a", "s1");
    board.join().await;
    // Registration itself changes what a node is told (its addresses): let that settle.
    board.hello(false, "machine").await;
    while !board.desired().await.is_empty() {}
    let generation = board.generation;
    board.hello(false, "machine").await;
    assert!(board.desired().await.is_empty());
    assert_eq!(board.generation, generation);

    // A change is lost on the way; the next sign of life shows it.
    world.broker.lose("a-s1", 1);
    world.pod("lost", "a").await;
    until("the pod to be dispatched", || world.get_pod("lost").is_some()).await;
    loop {
        board
            .say(&Up::Beat { session: "s1".to_owned(), generation: board.generation, shared: String::new() })
            .await;
        if let Ok(Some(Event::Message { payload, .. })) =
            timeout(Duration::from_millis(100), board.events.recv()).await
            && let Ok(Down::SayHello { .. }) = messages::decode(&payload)
        {
            break;
        }
    }
    board.hello(true, "machine").await;
    board.until(|b| b.holds(ItemKind::Pod, "lost")).await;
    world.tasks.stop().await;
}

#[tokio::test]
async fn statuses_are_stored_and_a_pod_that_is_gone_is_removed() {
    let world = World::new();
    world.pod("p", "a").await;
    let mut board = world.board("a", "s1");
    board.join().await;
    let pod = world.get_pod("p").unwrap();
    let uid = pod.metadata.uid.clone().unwrap();
    let report = |uid: &str, phase: &str, gone: bool| {
        let status = json!({"phase": phase}).to_string();
        Up::Status(Status {
            seq: 1,
            pods: vec![PodReport {
                namespace: "default".into(),
                name: "p".into(),
                uid: uid.into(),
                status: RawValue::from_string(status).unwrap(),
                gone,
            }],
            node: Some(NodeState::default()),
        })
    };
    let phase = || world.get_pod("p").and_then(|p| p.status.as_ref()?.phase.clone());
    board.say(&report("somebody else", "Failed", false)).await;
    board.say(&report(&uid, "Running", false)).await;
    until("the status", || phase().as_deref() == Some("Running")).await;
    until("the node to be ready", || world.ready("a").as_deref() == Some("True")).await;
    // Gone without having been deleted (a node's mistake) removes nothing.
    board.say(&report(&uid, "Succeeded", true)).await;
    until("the status", || phase().as_deref() == Some("Succeeded")).await;
    let kind = registry::of::<Pod>();
    let options = DeleteOptions { grace_seconds: Some(5), ..DeleteOptions::default() };
    world.objects.delete(kind, "default", "p", &options, &WriteOptions::system("test")).await.unwrap();
    board.say(&report(&uid, "Succeeded", true)).await;
    until("the pod to go", || world.get_pod("p").is_none()).await;
    board.until(|b| !b.holds(ItemKind::Pod, "p")).await;
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_lost_node_is_unknown_and_a_second_board_of_its_name_is_refused() {
    let world = World::new();
    let mut board = world.board("a", "s1");
    board.join().await;
    let mut clone = world.board("a", "s2");
    clone.hello(true, "another machine").await;
    assert!(matches!(clone.answer().await, Down::Refused { session, .. } if session == "s2"));

    let ready = || world.ready("a");
    board.say(&Up::Bye { session: "an old one".to_owned(), clean: false }).await;
    board.say(&Up::Bye { session: "s1".to_owned(), clean: false }).await;
    until("the node to be unknown", || ready().as_deref() == Some("Unknown")).await;
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_node_that_asks_for_a_token_is_named_and_told_why_it_gets_none() {
    let world = World::new();
    let ask = Ask::Token {
        namespace: "default".into(),
        service_account: "robot".into(),
        pod: "p".into(),
        pod_uid: "u".into(),
        audiences: Vec::new(),
        expiration_seconds: 3600,
    };
    let told = [
        ("a", Answer::Token { token: "token of robot for p u".to_owned(), expires: jiff::Timestamp::MAX }),
        ("b", Answer::Refused("p is not on b".to_owned())),
    ];
    for (node, expected) in told {
        let mut board = world.board(node, "s1");
        board.join().await;
        board.say(&Up::Ask { id: 7, ask: ask.clone() }).await;
        let answer = loop {
            if let Down::Answer { id: 7, answer } = board.next().await {
                break answer;
            }
        };
        assert_eq!(answer, expected, "{node}");
    }
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_node_one_version_newer_is_understood_and_others_are_told() {
    let world = World::new();
    let mut board = world.board("a", "s1");
    // What a newer node might say: fields that are not known are ignored.
    let hello = |protocol: u32| {
        json!({"hello": {"protocol": protocol, "session": "s1", "hardware": "h", "digest": "", "shared": "", "hashes": [],
            "info": {"machineId": "m", "quantumCores": 3}, "novelty": true}})
    };
    let topic = topics::up("c", "a", Leaf::Control);
    let say = async |value: serde_json::Value| {
        board.bus.publish(&topic, messages::encode(&value).unwrap(), Priority::Control).await.unwrap();
    };
    say(json!({"quantumLeap": {"to": "b"}})).await;
    say(hello(PROTOCOL + 1)).await;
    let desired = loop {
        match board.next().await {
            Down::Desired(desired) => break desired,
            Down::Shared(_) => {}
            other => panic!("no desired set: {other:?}"),
        }
    };
    assert_eq!((desired.protocol, desired.session.as_str()), (PROTOCOL, "s1"));
    for version in [PROTOCOL + 2, PROTOCOL_MIN - 1] {
        let payload = messages::encode(&hello(version)).unwrap();
        board.bus.publish(&topic, payload, Priority::Control).await.unwrap();
        let reason = loop {
            match board.next().await {
                Down::Refused { reason, .. } => break reason,
                Down::Desired(_) | Down::Shared(_) | Down::StatusAck { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(reason.contains(&format!("speaks version {version}")), "{reason}");
    }
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_node_hears_what_time_it_is_and_again_when_the_masters_clock_was_set() {
    let start: jiff::Timestamp = "1979-01-01T00:00:00Z".parse().unwrap();
    let clock = Arc::new(ManualClock::new(start));
    let world = World::at(clock.clone());
    let mut board = world.board("a", "s1");
    let time = async |board: &mut Board| {
        board.hello(true, "machine").await;
        loop {
            if let Down::Desired(Desired { now: Some(now), .. }) = board.next().await {
                return now;
            }
        }
    };
    assert_eq!(time(&mut board).await, start);
    board.join().await;
    let by = SignedDuration::from_hours(400_000);
    clock.jump(by);
    // Its next sign of life shows no other difference.
    let beat = Up::Beat { session: "s1".to_owned(), generation: board.generation, shared: String::new() };
    board.say(&beat).await;
    while !matches!(board.next().await, Down::SayHello { hashes: false }) {}
    assert_eq!(time(&mut board).await, start + by);
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_node_that_sends_garbage_harms_nobody() {
    let world = World::new();
    world.pod("p", "good").await;
    let mut good = world.board("good", "s1");
    good.join().await;
    let bad = world.board("bad", "s1");
    let huge = messages::encode(&json!({"hello": {"session": "x".repeat(1 << 20), "protocol": 1}})).unwrap();
    // Unpacks to far more than is allowed.
    let bomb = [&[1][..], &zstd::bulk::compress(&vec![b' '; 40 << 20], 3).unwrap()].concat();
    let garbage =
        [Bytes::new(), Bytes::from_static(b"\x00{"), Bytes::from_static(b"\x07x"), huge, bomb.into()];
    for leaf in [Leaf::Control, Leaf::Stream, Leaf::Will] {
        for payload in &garbage {
            bad.bus.publish(&topics::up("c", "bad", leaf), payload.clone(), Priority::Control).await.unwrap();
        }
    }
    // It speaks of a pod that is not its own.
    let uid = world.get_pod("p").unwrap().metadata.uid.clone().unwrap();
    let report = |phase: &str| PodReport {
        namespace: "default".into(),
        name: "p".into(),
        uid: uid.clone(),
        status: RawValue::from_string(json!({"phase": phase}).to_string()).unwrap(),
        gone: true,
    };
    let mut liar = world.board("liar", "s1");
    liar.join().await;
    liar.say(&Up::Status(Status { seq: 1, pods: vec![report("Failed")], node: None })).await;
    while !matches!(liar.next().await, Down::StatusAck { seq: 1 }) {}
    good.say(&Up::Status(Status { seq: 1, pods: vec![report("Running")], node: None })).await;
    let phase = || world.get_pod("p").and_then(|p| p.status.as_ref()?.phase.clone());
    until("the status of the good one", || phase().as_deref() == Some("Running")).await;
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_told_and_nothing_else() {
    let world = World::new();
    world.pod("p", "a").await;
    let mut board = world.board("a", "s1");
    board.join().await;
    let writer = WriteOptions::system("test");
    let removed = crate::objects::credentials::REMOVED;
    world.objects.set_credential("a", removed, &writer).await.unwrap();
    let told = async |board: &mut Board| loop {
        match board.next().await {
            Down::Removed { session } => return session,
            Down::Desired(_) | Down::Shared(_) | Down::StatusAck { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(&mut board).await, "s1");
    let mut again = world.board("a", "s2");
    again.hello(true, "machine").await;
    assert!(matches!(again.answer().await, Down::Removed { session } if session == "s2"));
    // It joins anew.
    world.objects.set_credential("a", "0123", &writer).await.unwrap();
    again.hello(true, "machine").await;
    again.until(|b| b.holds(ItemKind::Pod, "p")).await;
    assert!(world.objects.is_credential_good("system:node:a", "X509SHA256=0123"));
    assert!(!world.objects.is_credential_good("system:node:a", "X509SHA256=4567"));
    assert!(world.objects.is_credential_good("system:node:b", "X509SHA256=4567"));
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_connected_nodes_lease_is_renewed_in_memory() {
    let world = World::new();
    let kind = registry::of::<Lease>();
    let lease = |node: &str| world.objects.get(kind, "kube-node-lease", node).ok();
    let mut board = world.board("a", "s1");
    board.join().await;
    until("the Lease", || lease("a").is_some()).await;
    let first = lease("a").unwrap();
    assert!(!first.is_durable(), "flash is not worn by heartbeats");
    let node = world.objects.get_typed::<Node>("", "a").unwrap();
    let value = first.value();
    assert_eq!(
        value["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": node.metadata.uid}])
    );
    assert_eq!(
        (&value["spec"]["holderIdentity"], &value["spec"]["leaseDurationSeconds"]),
        (&json!("a"), &json!(40))
    );
    let writer = WriteOptions::system("node");
    report::alive(&world.objects, "a", &writer).await.unwrap();
    let renewed = lease("a").unwrap().value();
    assert!(renewed["spec"]["renewTime"].as_str() > value["spec"]["renewTime"].as_str());
    report::alive(&world.objects, "unknown", &writer).await.unwrap();
    assert!(lease("unknown").is_none());
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_board_that_was_started_anew_is_told_of() {
    let world = World::new();
    let told = || -> Vec<(String, String)> {
        let events = world.objects.list(registry::of::<k8s_openapi::api::core::v1::Event>(), None).items;
        let events = events.iter().map(|event| event.value());
        events
            .filter(|event| event["reason"] == "Rebooted")
            .map(|e| (e["type"].as_str().unwrap().to_owned(), e["message"].as_str().unwrap().to_owned()))
            .collect()
    };
    for (session, boot) in [("s1", "first"), ("s2", "first"), ("s3", "second")] {
        assert_eq!(told(), [], "before {session}");
        let mut board = world.board("a", session);
        boot.clone_into(&mut board.boot);
        board.join().await;
        board.say(&Up::Bye { session: session.to_owned(), clean: true }).await;
    }
    until("the event", || !told().is_empty()).await;
    let message = "Node a has been rebooted, boot id: second".to_owned();
    assert_eq!(told(), [("Warning".to_owned(), message)]);
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_flapping_node_is_not_called_lost_each_time() {
    let world = World::new();
    let conditions = || {
        let node = world.objects.get_typed::<Node>("", "a")?;
        let conditions = node.status.as_ref()?.conditions.clone()?;
        conditions.into_iter().find(|c| c.type_ == "Ready").map(|c| (c.status, c.last_transition_time))
    };
    let ready = |state: &str| conditions().is_some_and(|(status, _)| status == state);
    let mut since = None;
    for loss in 0..4 {
        let session = format!("s{loss}");
        let mut board = world.board("a", &session);
        board.join().await;
        let status = Status { seq: 1, pods: Vec::new(), node: Some(NodeState::default()) };
        board.say(&Up::Status(status)).await;
        until("the node to be Ready", || ready("True")).await;
        if loss == 3 {
            assert_eq!(conditions().unwrap().1, since, "it never stopped being Ready");
            break;
        }
        since = conditions().unwrap().1;
        board.say(&Up::Bye { session, clean: false }).await;
        if loss < 2 {
            until("the node to be lost", || ready("Unknown")).await;
        } else {
            let kind = registry::of::<k8s_openapi::api::core::v1::Event>();
            until("the event", || {
                world.objects.list(kind, None).items.iter().any(|e| e.value()["reason"] == "NodeFlapping")
            })
            .await;
            assert!(ready("True"));
        }
    }
    world.tasks.stop().await;
}

#[tokio::test]
async fn what_all_share_is_said_once_for_all_and_a_lost_word_is_healed() {
    let world = World::new();
    let mut boards = [world.board("a", "s1"), world.board("b", "s1")];
    for board in &mut boards {
        board.join().await;
    }
    let peers = |board: &Board| {
        let items = board.held.values().filter(|item| item.key.kind == ItemKind::Peers);
        items.flat_map(|item| item.read::<Vec<crate::net::Peer>>().unwrap()).count()
    };
    for board in &mut boards {
        board.until(|b| peers(b) == 2).await;
    }
    let [mut one, mut two] = boards;
    world.broker.lose("b-s1", 1);
    let service =
        json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}});
    world.create("services", service).await;
    one.until(|b| b.holds(ItemKind::Service, "web")).await;
    // The other one's next sign of life shows that it has missed something.
    loop {
        let shared = SetDigest::of(
            two.held.iter().filter(|(k, _)| k.kind.is_shared()).map(|(k, i)| (k, i.hash.as_str())),
        );
        two.say(&Up::Beat { session: "s1".to_owned(), generation: two.generation, shared: shared.brief() })
            .await;
        let Ok(Some(Event::Message { payload, .. })) =
            timeout(Duration::from_millis(100), two.events.recv()).await
        else {
            continue;
        };
        match messages::decode(&payload).unwrap() {
            Down::SayHello { hashes: false } => break,
            Down::Shared(change) => two.shared(change),
            Down::Desired(desired) => drop(two.take(desired)),
            other => panic!("{other:?}"),
        }
    }
    two.hello(false, "machine").await;
    two.until(|b| b.holds(ItemKind::Service, "web")).await;
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_node_that_dies_while_the_master_hears_nothing_is_found_out() {
    let world = World::new();
    let mut board = world.board("a", "s1");
    board.join().await;
    let status = Status { seq: 1, pods: Vec::new(), node: Some(NodeState::default()) };
    board.say(&Up::Status(status)).await;
    let ready = || world.ready("a");
    until("the node to be Ready", || ready().as_deref() == Some("True")).await;
    world.broker.cut("master");
    world.broker.cut("a-s1");
    world.broker.reconnect("master");
    let found = timeout(FIRST_HELLO * 2, async {
        while ready().as_deref() != Some("Unknown") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    found.await.expect("nobody missed the node");
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_will_that_comes_too_late_is_contradicted() {
    let world = World::new();
    let mut board = world.board("a", "s1");
    let status = Up::Status(Status { seq: 1, pods: Vec::new(), node: Some(NodeState::default()) });
    for _ in 0..2 {
        board.join().await;
        board.say(&status).await;
        until("the node to be Ready", || world.ready("a").as_deref() == Some("True")).await;
        board.say(&Up::Bye { session: "s1".to_owned(), clean: false }).await;
        while !matches!(board.next().await, Down::SayHello { hashes: false }) {}
    }
    world.tasks.stop().await;
}

#[tokio::test]
async fn a_node_that_is_lost_before_it_is_welcome_is_not_called_connected() {
    let world = World::new();
    let board = world.board("a", "s1");
    board.hello(false, "machine").await;
    board.say(&Up::Bye { session: "s1".to_owned(), clean: false }).await;
    let ready = || world.ready("a");
    until("the node to be unknown", || ready().as_deref() == Some("Unknown")).await;
    // What such a node says before its next hello is not taken.
    let mut again = world.board("a", "s1");
    again.say(&Up::Beat { session: "s1".to_owned(), generation: Generation(0), shared: String::new() }).await;
    assert!(matches!(again.answer().await, Down::SayHello { hashes: false }));
    world.tasks.stop().await;
}
