//! Listens to everything that is said on a cluster's link, for people who look for a fault.

use std::{fmt::Write as _, fs, path::Path, sync::Arc};

use anyhow::Context;
use serde_json::Value;

use super::{
    link,
    server::{MASTER_GROUP, MASTER_USER},
};
use crate::{
    api::pki::Pki,
    config::{BrokerFiles, LinkClass},
    ids,
    mqtt::{
        Event, messages,
        session::Endpoints,
        topics::{self, Leaf},
    },
    tasks::Tasks,
};

/// Where to listen.
pub struct Tap {
    /// Broker URLs; the embedded one of this machine needs no files.
    pub urls: Vec<String>,
    pub files: BrokerFiles,
    /// Only this node.
    pub node: Option<String>,
    /// Show the contents of Secrets and tokens.
    pub secrets: bool,
}

/// Calls `line` for every message until the process ends.
///
/// # Errors
/// The server's state cannot be read.
pub async fn tap(data_dir: &Path, options: &Tap, mut line: impl FnMut(&str)) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let state = data_dir.join("server");
    let path = state.join("cluster-id");
    let cluster = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let cluster = cluster.trim();
    let addresses = link::addresses(&options.urls)?;
    let tls = if link::is_external(&addresses, &options.files) {
        link::external_tls(&options.files)?
    } else {
        let pki = Pki::open(&state.join("pki"))?;
        link::client_tls(pki.ca_pem(), &pki.issue_client(MASTER_USER, MASTER_GROUP)?)?
    };
    let way = link::Way { endpoints: Endpoints::new(addresses), tls, link: LinkClass::Lan };
    let filters = match &options.node {
        Some(node) => vec![format!("sampan/{cluster}/node/{node}/#")],
        None => vec![format!("sampan/{cluster}/#")],
    };
    let id = format!("sampan-{cluster}-tap-{}", ids::hex(&ids::random_bytes::<4>()));
    let tasks = Arc::new(Tasks::new());
    let (_bus, mut events) = link::connect(&tasks, "tap", &way, link::Client { id, filters, will: None });
    while let Some(event) = events.recv().await {
        match event {
            Event::Connected => eprintln!("listening"),
            Event::Disconnected { reason } => eprintln!("not connected: {reason}"),
            Event::Message { topic, payload } => line(&show(&topic, &payload, options.secrets)),
        }
    }
    Ok(())
}

fn show(topic: &str, payload: &[u8], secrets: bool) -> String {
    // The cluster is the same in every line.
    let short = topic.splitn(3, '/').nth(2).unwrap_or(topic);
    let mut text = format!("{short} {} bytes ", payload.len());
    let is_stream = topics::parse_up(topic).map(|(_, leaf)| leaf) == Some(Leaf::Stream)
        || topics::parse_down(topic) == Some(Leaf::Stream);
    if is_stream {
        text.push_str(&crate::mqtt::stream::describe(payload));
        return text;
    }
    match messages::decode::<Value>(payload) {
        Ok(mut message) => {
            if !secrets {
                hide(&mut message);
            }
            let _ = write!(text, "{message}");
        }
        // The master's boot id.
        Err(_) => text.push_str(&String::from_utf8_lossy(payload)),
    }
    text
}

/// Replaces what nobody should have in his terminal by its length.
fn hide(message: &mut Value) {
    let veil = |value: &mut Value| {
        if let Some(text) = value.as_str() {
            *value = format!("<{} bytes>", text.len()).into();
        }
    };
    let items = message["desired"]["put"].as_array_mut();
    for item in
        items.into_iter().flatten().filter(|item| item["kind"] == "secret" || item["kind"] == "ingress")
    {
        veil(&mut item["body"]);
    }
    if message["answer"]["answer"]["token"]["token"].is_string() {
        veil(&mut message["answer"]["answer"]["token"]["token"]);
    }
    if message["tokenSecret"].is_string() {
        veil(&mut message["tokenSecret"]);
    }
    // Looking at a key that is not there has put a null there.
    for key in ["desired", "answer", "tokenSecret"] {
        if message[key].is_null() || message[key].as_object().is_some_and(|o| o.values().all(Value::is_null))
        {
            crate::kinds::remove(message, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        ids::Generation,
        mqtt::messages::{Desired, Down, Item, ItemKey, ItemKind, encode},
    };

    #[test]
    fn messages_are_readable_and_secrets_are_not() {
        let item =
            |kind, text: &str| Item::new(ItemKey::new(kind, "ns", "x"), format!("{{\"v\":\"{text}\"}}"));
        let desired = Desired {
            generation: Generation(3),
            put: vec![item(ItemKind::Secret, "hunter2"), item(ItemKind::ConfigMap, "plain")],
            ..Desired::default()
        };
        let payload = encode(&Down::Desired(desired)).unwrap();
        let topic = topics::down("c", "a", Leaf::Control);
        let text = show(&topic, &payload, false);
        assert!(text.starts_with("node/a/down/control ") && text.contains("plain"), "{text}");
        assert!(!text.contains("hunter2") && text.contains("<15 bytes>"), "{text}");
        assert!(show(&topic, &payload, true).contains("hunter2"));
        assert_eq!(show(&topics::master("c"), b"b00t", false), "master 4 bytes b00t");
        let frame = Bytes::from_static(&[2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 5, 1, b'h', b'i']);
        let text = show(&topics::up("c", "a", Leaf::Stream), &frame, false);
        assert!(text.ends_with("data stream=0000000000000009 number=5 channel=1 2 bytes"), "{text}");
    }
}
