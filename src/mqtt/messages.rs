//! The messages between a master and its nodes, and their form on the wire.
//!
//! A payload is one byte of form (0: JSON, 1: JSON in zstd) and the text. Unknown fields are
//! ignored, so a peer one minor version away is understood; [`PROTOCOL`] changes when that would
//! not suffice. docs/protocol.md tells the story.

use std::{collections::BTreeMap, net::Ipv4Addr};

use bytes::Bytes;
use ring::digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{Error, PAYLOAD_BYTES_MAX};
use crate::ids::{self, Generation};

/// The protocol's version, and the oldest that is still understood. Both sides speak the older of
/// their two; a newer peer is trusted to do so.
pub const PROTOCOL: u32 = 1;
pub const PROTOCOL_MIN: u32 = 1;
/// Payloads below this are not worth compressing (bytes).
const COMPRESS_FROM_BYTES: usize = 512;
/// What a payload may unpack to (bytes).
const UNPACKED_BYTES_MAX: usize = 32 << 20;
/// zstd's level: its default, fast enough for one core of a board.
const ZSTD_LEVEL: i32 = 3;
/// The items of one message weigh no more than this before compression (bytes), but for a single one.
pub const ITEMS_BYTES_MAX: usize = 1 << 20;

/// What an item of a desired set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ItemKind {
    /// [`NodeConfig`].
    Config,
    ConfigMap,
    Secret,
    PersistentVolume,
    PersistentVolumeClaim,
    /// A namespace's name and labels.
    Namespace,
    Pod,
    /// Service ports with their endpoints, one item a service: `Vec<ServicePort>`.
    Service,
    /// The environment that a namespace's services give to its pods.
    ServiceEnv,
    /// The DNS table's part of one namespace.
    Dns,
    /// The ingress table's part of one namespace.
    Ingress,
    /// Other nodes with neighbouring pod networks: `Vec<net::Peer>`.
    Peers,
    /// A NetworkPolicy, as far as it selects pods of the node: `net::policy::Policy`.
    Policy,
    RuntimeClass,
}

impl ItemKind {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::ConfigMap => "configMap",
            Self::Secret => "secret",
            Self::PersistentVolume => "persistentVolume",
            Self::PersistentVolumeClaim => "persistentVolumeClaim",
            Self::Namespace => "namespace",
            Self::Pod => "pod",
            Self::Service => "service",
            Self::ServiceEnv => "serviceEnv",
            Self::Dns => "dns",
            Self::Ingress => "ingress",
            Self::Peers => "peers",
            Self::Policy => "policy",
            Self::RuntimeClass => "runtimeClass",
        }
    }

    /// Whether items of this kind are the same for all nodes.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Service | Self::ServiceEnv | Self::Dns | Self::Peers)
    }
}

/// Which item.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemKey {
    pub kind: ItemKind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
}

impl ItemKey {
    pub fn new(kind: ItemKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for ItemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// One item of a desired set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Item {
    #[serde(flatten)]
    pub key: ItemKey,
    /// [`hash_of`] the body.
    pub hash: String,
    /// JSON text, never more than one string, so that it can be hashed as it came.
    pub body: String,
}

impl Item {
    pub fn new(key: ItemKey, body: String) -> Self {
        Self { key, hash: hash_of(&body), body }
    }

    /// The body as a type. Kubernetes' types are parsed from bytes everywhere: each other source would be
    /// a megabyte of generic code again.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(self.body.as_bytes()).map_err(|e| Error::Decode(format!("{}: {e}", self.key)))
    }
}

/// The hash of an item's body: the first 128 bits of SHA-256, in hexadecimal.
pub fn hash_of(body: &str) -> String {
    ids::hex(&digest::digest(&digest::SHA256, body.as_bytes()).as_ref()[..16])
}

/// The digest of a set of items: the sum (64-bit lanes, wrapping) of the SHA-256 of every key with
/// its hash. It guards against loss, not against malice, and changes with one item in one step,
/// however large the set is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetDigest([u64; 4]);

impl SetDigest {
    fn lanes(key: &ItemKey, hash: &str) -> [u64; 4] {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [key.kind.name(), &key.namespace, &key.name, hash] {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(context.finish().as_ref().chunks_exact(8)) {
            *lane = bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        }
        lanes
    }

    /// Takes an item in.
    pub fn add(&mut self, key: &ItemKey, hash: &str) {
        self.0
            .iter_mut()
            .zip(Self::lanes(key, hash))
            .for_each(|(lane, more)| *lane = lane.wrapping_add(more));
    }

    /// Takes an item out that is in.
    pub fn remove(&mut self, key: &ItemKey, hash: &str) {
        self.0
            .iter_mut()
            .zip(Self::lanes(key, hash))
            .for_each(|(lane, less)| *lane = lane.wrapping_sub(less));
    }

    /// Enough of it to see a difference.
    pub fn brief(self) -> String {
        format!("{:016x}", self.0[0])
    }

    pub fn of<'a>(items: impl Iterator<Item = (&'a ItemKey, &'a str)>) -> Self {
        let mut sum = Self::default();
        items.for_each(|(key, hash)| sum.add(key, hash));
        sum
    }
}

impl std::fmt::Display for SetDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|lane| write!(f, "{lane:016x}"))
    }
}

/// What every pod of a node needs to know of the cluster; the item [`ItemKind::Config`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeConfig {
    /// `10.42.1.0/24`.
    pub pod_cidr: String,
    /// `10.42.0.0/16`.
    pub cluster_cidr: String,
    pub service_cidr: String,
    /// The address of the cluster's DNS service; empty when it is off.
    pub cluster_dns: String,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The labels of the node, as the master has them.
    pub labels: BTreeMap<String, String>,
    /// Keys and values of the node's taints that pods have to go for (`NoExecute`), without those that the
    /// master sets because it does not hear of the node: who reads this is heard of.
    pub taints: Vec<(String, String)>,
    /// No new pods come here (`kubectl cordon`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// What somebody else advertises of the node: allocatable amounts of extended resources.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extended: BTreeMap<String, String>,
    /// Where the broker is found (URLs), in the order they are tried; empty: where the node joined.
    pub endpoints: Vec<String>,
}

/// What a board is; constant while the node runs, but for addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeInfo {
    pub machine_id: String,
    pub system_uuid: String,
    pub kernel_boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    /// Go's name of the processor: `arm64`, `amd64`, `arm`.
    pub architecture: String,
    pub agent_version: String,
    /// (`InternalIP`, `ExternalIP` or `Hostname`, address).
    pub addresses: Vec<(String, String)>,
    /// All its own IPv4 addresses: who comes from another one is behind a router that translates it.
    pub own_addresses: Vec<Ipv4Addr>,
    /// Quantities.
    pub capacity: BTreeMap<String, String>,
    pub allocatable: BTreeMap<String, String>,
    /// Labels the node gives itself.
    pub labels: BTreeMap<String, String>,
    /// Annotations the node gives itself.
    pub annotations: BTreeMap<String, String>,
    /// It has the part that serves Ingresses, and so has to know their certificates.
    pub serves_ingress: bool,
}

/// The first message of a node on every connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hello {
    pub protocol: u32,
    /// Of this connection; the Last Will names it, so that an old one cannot end a new one.
    pub session: String,
    /// Of this start of the agent.
    pub boot: String,
    /// What tells this board from every other; a copied memory card does not carry it along.
    pub hardware: String,
    /// The node's clock, so that the master can judge the times it tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<jiff::Timestamp>,
    pub info: NodeInfo,
    /// Of the ledger's own items.
    pub generation: Generation,
    pub digest: String,
    /// Of the items that all nodes share.
    pub shared: String,
    /// The hash of every item, when digests alone did not suffice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Vec<(ItemKey, String)>>,
}

/// A node's own part of its desired set, or what has changed of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Desired {
    /// Whom it is for: two boards with one identity hear the same topic.
    pub session: String,
    /// How often the cluster was restored from a backup: a master that was left behind says less.
    pub epoch: u64,
    /// The version that both sides speak.
    pub protocol: u32,
    pub generation: Generation,
    pub put: Vec<Item>,
    pub delete: Vec<ItemKey>,
    /// Of the whole set after this; `None` when more parts of this generation follow.
    pub digest: Option<String>,
    /// In the last part of an answer to a hello: the master's time, by which tokens are good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<jiff::Timestamp>,
}

/// The part of the desired set that all nodes share, or what has changed of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SharedChange {
    /// As [`Desired::epoch`].
    pub epoch: u64,
    pub put: Vec<Item>,
    pub delete: Vec<ItemKey>,
    /// Of the whole part after this; `None` when more of this change follows.
    pub digest: Option<String>,
}

/// Conditions of a pod that only its node sets, and that it takes back by not naming them.
pub const PASSING_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The latest state of one pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodReport {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// A `PodStatus`.
    pub status: Box<RawValue>,
    /// The pod is being deleted, and nothing of it is left on the node.
    #[serde(default)]
    pub gone: bool,
}

/// The state of the node itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeState {
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
    /// Why the node cannot run pods; empty when it can.
    pub not_ready: String,
    /// (names, size in bytes) of images, the largest first.
    pub images: Vec<(Vec<String>, i64)>,
    /// The platforms that registries lately said an image is built for, by reference.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub platforms: BTreeMap<String, Vec<String>>,
}

/// Statuses that the master has not acknowledged yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub seq: u64,
    pub pods: Vec<PodReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeState>,
}

/// Something worth telling about a pod or the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEvent {
    /// Empty for the node itself.
    #[serde(default)]
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `spec.containers{web}`; empty for the whole object.
    #[serde(default)]
    pub field_path: String,
    /// `Normal` or `Warning`.
    pub warning: bool,
    pub reason: String,
    pub message: String,
    /// When it happened, by the node's clock.
    pub time: jiff::Timestamp,
}

/// What a node asks of its master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// A token of a service account, bound to a pod of this node.
    #[serde(rename_all = "camelCase")]
    Token {
        namespace: String,
        service_account: String,
        pod: String,
        pod_uid: String,
        audiences: Vec<String>,
        expiration_seconds: i64,
    },
    /// The folder of a deleted `local-path` volume of this node is gone: the volume may go.
    FolderRemoved { volume: String, uid: String },
}

/// The answer to [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    #[serde(rename_all = "camelCase")]
    Token {
        token: String,
        expires: jiff::Timestamp,
    },
    Done,
    Refused(String),
}

/// What a node says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Up {
    Hello(Box<Hello>),
    /// The ledger holds this generation.
    Ack {
        generation: Generation,
    },
    Status(Status),
    Events(Vec<NodeEvent>),
    Ask {
        id: u64,
        ask: Ask,
    },
    /// Still here; the master answers only when it knows better.
    Beat {
        session: String,
        generation: Generation,
        /// [`SetDigest::brief`] of what all nodes share.
        #[serde(default)]
        shared: String,
    },
    /// The session ends, by the node's will or by the broker's word.
    Bye {
        session: String,
        clean: bool,
    },
}

/// What a node is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Down {
    Desired(Desired),
    /// To all nodes, or to one that lacks more.
    Shared(SharedChange),
    /// The status with this number is stored; others may have been lost.
    StatusAck {
        seq: u64,
    },
    Answer {
        id: u64,
        answer: Answer,
    },
    /// The master does not know this session: say hello (with all hashes, when `hashes`).
    SayHello {
        hashes: bool,
    },
    /// The master has no place for this node: another board with its name is here, or the
    /// protocol is too far away.
    Refused {
        session: String,
        reason: String,
    },
    /// The node was taken out of the cluster: it ends its pods and forgets who it was.
    Removed {
        session: String,
    },
}

/// Writes a message for the wire.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, Error> {
    let text = serde_json::to_vec(message).map_err(|e| Error::Decode(e.to_string()))?;
    let mut payload = vec![0];
    if text.len() >= COMPRESS_FROM_BYTES
        && let Ok(packed) = zstd::bulk::compress(&text, ZSTD_LEVEL)
        && packed.len() < text.len()
    {
        payload[0] = 1;
        payload.extend_from_slice(&packed);
    } else {
        payload.extend_from_slice(&text);
    }
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(Error::TooLarge(payload.len()));
    }
    Ok(payload.into())
}

/// Reads a message from the wire.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Decode(e.to_string());
    match payload.split_first() {
        Some((0, text)) => serde_json::from_slice(text).map_err(|e| failed(&e)),
        Some((1, packed)) => {
            let text = zstd::bulk::decompress(packed, UNPACKED_BYTES_MAX).map_err(|e| failed(&e))?;
            serde_json::from_slice(&text).map_err(|e| failed(&e))
        }
        Some((form, _)) => Err(Error::Decode(format!("form {form} is not known"))),
        None => Err(Error::Decode("empty payload".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_small_and_large() {
        let status = |text: &str| {
            Up::Status(Status {
                seq: 7,
                pods: vec![PodReport {
                    namespace: "a".into(),
                    name: "b".into(),
                    uid: "u".into(),
                    status: RawValue::from_string(format!("{{\"message\":\"{text}\"}}")).unwrap(),
                    gone: false,
                }],
                node: None,
            })
        };
        for (text, form) in [("x".to_owned(), 0), ("x".repeat(10_000), 1)] {
            let wire = encode(&status(&text)).unwrap();
            assert_eq!(wire[0], form);
            let Up::Status(back) = decode(&wire).unwrap() else { panic!("another message") };
            assert!(back.pods[0].status.get().contains(&text));
        }
    }

    /// What the first release of version 1 says, to the letter. This list only grows: what stands here is in
    /// use on boards that nobody has updated.
    #[test]
    fn what_version_one_says_is_understood() {
        let with_form = |text: &&str| [b"\0", text.as_bytes()].concat();
        let up = [
            r#"{"hello":{"protocol":1,"session":"s","boot":"b","hardware":"h","info":{"machineId":"m","architecture":"arm64",
                "addresses":[["InternalIP","192.0.2.1"]],"capacity":{"cpu":"4"}},"generation":3,"digest":"d","shared":"e",
                "hashes":[[{"kind":"pod","namespace":"ns","name":"p"},"f"]]}}"#,
            r#"{"ack":{"generation":3}}"#,
            r#"{"status":{"seq":1,"pods":[{"namespace":"ns","name":"p","uid":"u","status":{"phase":"Running"}}]}}"#,
            r#"{"status":{"seq":2,"node":{"memoryPressure":false,"images":[[["a:1"],7]]}}}"#,
            r#"{"events":[{"name":"p","uid":"u","warning":true,"reason":"R","message":"m","time":"2026-11-27T00:00:00Z"}]}"#,
            r#"{"ask":{"id":1,"ask":{"token":{"namespace":"ns","serviceAccount":"a","pod":"p","podUid":"u","audiences":[],
                "expirationSeconds":3600}}}}"#,
            r#"{"ask":{"id":2,"ask":{"folderRemoved":{"volume":"v","uid":"u"}}}}"#,
            r#"{"beat":{"session":"s","generation":3}}"#,
            r#"{"bye":{"session":"s","clean":false}}"#,
        ];
        for text in &up {
            decode::<Up>(&with_form(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        let kinds = [
            "config",
            "configMap",
            "secret",
            "persistentVolume",
            "persistentVolumeClaim",
            "namespace",
            "pod",
            "service",
            "serviceEnv",
            "dns",
            "ingress",
            "peers",
            "policy",
            "runtimeClass",
        ];
        for kind in kinds {
            let text = format!(
                r#"{{"desired":{{"session":"s","epoch":0,"protocol":1,"generation":4,"put":[{{"kind":"{kind}",
                "namespace":"ns","name":"n","hash":"h","body":"{{}}"}}],"delete":[{{"kind":"{kind}","name":"o"}}],
                "digest":"d"}}}}"#
            );
            let desired = decode::<Down>(&with_form(&text.as_str()));
            let Ok(Down::Desired(desired)) = desired else { panic!("{text}: {desired:?}") };
            assert_eq!((desired.put.len(), desired.delete.len(), desired.now), (1, 1, None));
        }
        let down = [
            r#"{"shared":{"epoch":0,"put":[],"delete":[],"digest":"d"}}"#,
            r#"{"statusAck":{"seq":1}}"#,
            r#"{"answer":{"id":1,"answer":{"token":{"token":"t","expires":"2026-11-27T00:00:00Z"}}}}"#,
            r#"{"answer":{"id":2,"answer":"done"}}"#,
            r#"{"answer":{"id":3,"answer":{"refused":"why"}}}"#,
            r#"{"sayHello":{"hashes":true}}"#,
            r#"{"refused":{"session":"s","reason":"why"}}"#,
            r#"{"removed":{"session":"s"}}"#,
        ];
        for text in &down {
            decode::<Down>(&with_form(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [&b""[..], b"\x00{", b"\x01garbage", b"\x09{}"] {
            assert!(decode::<Up>(bad).is_err());
        }
    }

    #[test]
    fn a_digest_tells_sets_apart() {
        let key = |n: &str| ItemKey::new(ItemKind::Pod, "ns", n);
        let (a, b) = (key("a"), key("b"));
        let digest = |set: &[(&ItemKey, &str)]| SetDigest::of(set.iter().copied());
        let one = digest(&[(&a, "1"), (&b, "2")]);
        assert_eq!(one, digest(&[(&a, "1"), (&b, "2")]));
        assert_ne!(one, digest(&[(&a, "1"), (&b, "3")]));
        assert_ne!(one, digest(&[(&a, "1")]));
        assert_ne!(digest(&[]), digest(&[(&a, "1")]));
    }
}
