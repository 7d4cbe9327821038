//! Events: what a part of the system says about an object.
//!
//! Saying the same again counts an Event up instead of adding another one ([`super::correlator`]); the
//! names of an object's Events are in the order of their times, as clients show them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use serde_json::json;

use super::{
    Error, Objects, WriteOptions,
    correlator::{Correlated, Keys},
};
use crate::{
    clock,
    kinds::{names, registry},
};

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
        let when = time.unwrap_or_else(|| self.clock.now());
        let correlated = self.said.lock().expect("no holder of the Events' lock panics").correlate(
            keys(about, said),
            cut(message),
            when,
            self.clock.steady(),
        );
        let Some(Correlated { serial, count, first, message }) = correlated else { return Ok(()) };
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let namespace = about.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
        // Some objects have names that an Event must not have.
        let name = format!("{}.{serial:x}", text(&about.name));
        let name = if names::dns_subdomain(&name).is_empty() { name } else { format!("{serial:x}") };
        let row = registry::of::<Event>();
        let when = clock::rfc3339_seconds(when);
        let message = cut(&message);
        let options = WriteOptions::system(component);
        if count > 1 {
            let again = self
                .modify(row, None, namespace, &name, &options, |event| {
                    event["count"] = count.into();
                    event["message"] = message.into();
                    event["lastTimestamp"] = when.as_str().into();
                    Ok(())
                })
                .await;
            match again {
                // Its time was over meanwhile.
                Err(error) if error.is_not_found() => {}
                done => return done.map(drop),
            }
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
            "firstTimestamp": clock::rfc3339_seconds(first),
            "lastTimestamp": when,
            "eventTime": null,
            "count": count,
        });
        self.create(row, namespace, event, &options).await.map(drop)
    }
}

/// What an Event is correlated by.
fn keys(about: &ObjectReference, said: Said<'_>) -> Keys {
    let object = [&about.kind, &about.namespace, &about.name, &about.uid, &about.api_version];
    let object = object.map(|field| field.as_deref().unwrap_or_default());
    let source = fnv64a(FNV_OFFSET, object.into_iter().chain([said.component, said.host]));
    let similar = fnv64a(source, [if said.warning { "Warning" } else { "Normal" }, said.reason]);
    let same = fnv64a(similar, [about.field_path.as_deref().unwrap_or_default(), said.message]);
    Keys { source, similar, same }
}

/// At most [`MESSAGE_LEN_MAX`] bytes of a text, whole characters.
fn cut(message: &str) -> &str {
    let end = (0..=message.len().min(MESSAGE_LEN_MAX)).rev().find(|end| message.is_char_boundary(*end));
    &message[..end.unwrap_or(0)]
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits, of texts with a separator each, going on from another one.
fn fnv64a<'a>(from: u64, texts: impl IntoIterator<Item = &'a str>) -> u64 {
    let bytes = texts.into_iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(from, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
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
        for message in ["c", "a", "c", "b"] {
            objects.event(&about, true, "FailedScheduling", message, "default-scheduler").await;
        }
        // Lists are in the order of names, which is that of the times.
        let listed = objects.list_typed::<Event>(None);
        let counts: Vec<_> = listed.iter().map(|e| (e.message.as_deref().unwrap(), e.count)).collect();
        assert_eq!(counts, [("c", Some(2)), ("a", Some(1)), ("b", Some(1))]);
    }

    #[tokio::test]
    async fn objects_with_any_name_have_events() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::new(Store::open(&dir.path().join("state.db")).unwrap(), Arc::new(SystemClock));
        for name in ["system:node", &"n".repeat(250)] {
            let about = ObjectReference { name: Some(name.into()), ..ObjectReference::default() };
            objects.try_say(&about, said()).await.unwrap();
        }
        assert_eq!(objects.list_typed::<Event>(None).len(), 2);
    }

    fn said() -> Said<'static> {
        Said { warning: false, reason: "R", message: "m", component: "c", host: "", time: None }
    }
}
