//! Events: what a part of the system says about an object.
//!
//! The name of an Event is made from what it says, so that saying it again counts it up instead of
//! adding another one.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use serde_json::json;

use super::{Error, Objects, WriteOptions};
use crate::{clock, kinds::registry};

/// Where Events about objects without a namespace go.
const DEFAULT_NAMESPACE: &str = "default";
/// Longer messages are cut (bytes), as upstream's API refuses them.
const MESSAGE_LEN_MAX: usize = 1024;

/// What is said about an object.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    pub warning: bool,
    pub reason: &'a str,
    pub message: &'a str,
    pub component: &'a str,
    /// The node that says it; empty for the master.
    pub host: &'a str,
    /// When it happened; `None` for now.
    pub time: Option<Timestamp>,
}

impl Objects {
    /// Records an Event of type `Warning` or `Normal`, said by `component`. An Event that cannot
    /// be recorded stops nobody's work: that is logged.
    pub async fn event(
        &self,
        about: &ObjectReference,
        warning: bool,
        reason: &str,
        message: &str,
        component: &str,
    ) {
        self.say(about, Said { warning, reason, message, component, host: "", time: None }).await;
    }

    /// As [`Self::event`], for who speaks for others.
    pub async fn say(&self, about: &ObjectReference, said: Said<'_>) {
        if let Err(error) = self.try_say(about, said).await {
            tracing::debug!(%error, said.reason, "event not recorded");
        }
    }

    async fn try_say(&self, about: &ObjectReference, said: Said<'_>) -> Result<(), Error> {
        let Said { warning, reason, message, component, host, time } = said;
        let message = cut(message);
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let namespace = about.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
        let same =
            [&text(&about.uid), &text(&about.field_path), reason, message, component].map(str::to_owned);
        let name = format!("{}.{:016x}", text(&about.name), fnv64a(&same));
        let row = registry::of::<Event>();
        let when = clock::rfc3339_seconds(time.unwrap_or_else(|| self.clock.now()));
        let options = WriteOptions::system(component);
        let again = self
            .modify(row, None, namespace, &name, &options, |event| {
                event["count"] = (event["count"].as_i64().unwrap_or(1) + 1).into();
                event["lastTimestamp"] = when.as_str().into();
                Ok(())
            })
            .await;
        match again {
            Err(error) if error.is_not_found() => {}
            done => return done.map(drop),
        }
        let mut source = json!({ "component": component });
        if !host.is_empty() {
            source["host"] = host.into();
        }
        let event = json!({
            "metadata": { "name": name, "namespace": namespace },
            "involvedObject": about,
            "reason": reason,
            "message": message,
            "type": if warning { "Warning" } else { "Normal" },
            "source": source,
            "reportingComponent": component,
            "reportingInstance": host,
            "firstTimestamp": when,
            "lastTimestamp": when,
            "eventTime": null,
            "count": 1,
        });
        self.create(row, namespace, event, &options).await.map(drop)
    }
}

/// At most [`MESSAGE_LEN_MAX`] bytes of a text, whole characters.
fn cut(message: &str) -> &str {
    let end = (0..=message.len().min(MESSAGE_LEN_MAX)).rev().find(|end| message.is_char_boundary(*end));
    &message[..end.unwrap_or(0)]
}

/// FNV-1a, 64 bits, of texts with a separator each.
fn fnv64a(texts: &[String]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{clock::SystemClock, store::Store};

    #[tokio::test]
    async fn saying_the_same_again_counts_up() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(Store::open(&dir.path().join("state.db")).unwrap(), Arc::new(SystemClock));
        let about = ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("default".into()),
            name: Some("p".into()),
            uid: Some("u".into()),
            ..ObjectReference::default()
        };
        for message in ["a", "a", "b"] {
            objects.event(&about, true, "FailedScheduling", message, "default-scheduler").await;
        }
        let mut counts: Vec<_> =
            objects.list_typed::<Event>(None).iter().map(|e| (e.message.clone().unwrap(), e.count)).collect();
        counts.sort();
        assert_eq!(counts, [("a".to_owned(), Some(2)), ("b".to_owned(), Some(1))]);
    }
}
