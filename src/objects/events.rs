//! Events: what a part of the system says about an object.
//!
//! The name of an Event is made from what it says, so that saying it again counts it up instead of
//! adding another one.

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use serde_json::json;

use super::{Error, Objects, WriteOptions};
use crate::{clock, kinds::registry};

/// Where Events about objects without a namespace go.
const DEFAULT_NAMESPACE: &str = "default";
/// Longer messages are cut (bytes), as upstream's API refuses them.
const MESSAGE_LEN_MAX: usize = 1024;

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
        if let Err(error) = self.try_event(about, warning, reason, message, component).await {
            tracing::debug!(%error, reason, "event not recorded");
        }
    }

    async fn try_event(
        &self,
        about: &ObjectReference,
        warning: bool,
        reason: &str,
        message: &str,
        component: &str,
    ) -> Result<(), Error> {
        let message = cut(message);
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let namespace = about.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
        let said =
            [&text(&about.uid), &text(&about.field_path), reason, message, component].map(str::to_owned);
        let name = format!("{}.{:016x}", text(&about.name), fnv64a(&said));
        let row = registry::of::<Event>();
        let now = clock::rfc3339_seconds(self.clock.now());
        let options = WriteOptions::system(component);
        let again = self
            .modify(row, None, namespace, &name, &options, |event| {
                event["count"] = (event["count"].as_i64().unwrap_or(1) + 1).into();
                event["lastTimestamp"] = now.as_str().into();
                Ok(())
            })
            .await;
        match again {
            Err(error) if error.is_not_found() => {}
            done => return done.map(drop),
        }
        let event = json!({
            "metadata": { "name": name, "namespace": namespace },
            "involvedObject": about,
            "reason": reason,
            "message": message,
            "type": if warning { "Warning" } else { "Normal" },
            "source": { "component": component },
            "reportingComponent": component,
            "reportingInstance": "",
            "firstTimestamp": now,
            "lastTimestamp": now,
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
