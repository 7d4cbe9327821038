//! What a user of this board sees of its node, with a master or without: the pods as the ledger has
//! them, their logs, commands in them, and a restart.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{record::Wanted, shared::Shared, streams};
use crate::mqtt::{
    messages::{ItemKey, ItemKind},
    stream::{Request, Stream},
};

/// What the agent does for a user.
#[derive(Debug)]
pub enum Command {
    Restart { uid: String, container: Option<String>, reply: oneshot::Sender<bool> },
}

/// The node from inside. Cheap to clone.
#[derive(Clone)]
pub struct Local {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Local {
    pub(super) fn new(shared: Arc<Shared>, commands: mpsc::Sender<Command>) -> Self {
        Self { shared, commands }
    }

    /// The pods of this node as API objects, with the status that the node gives them.
    pub fn pods(&self) -> Vec<Value> {
        let with_status = |mut pod: Value| {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            pod["apiVersion"] = "v1".into();
            pod["kind"] = "Pod".into();
            pod["status"] = match self.shared.ledger.record(&uid) {
                Some(record) => json!(record.status),
                None => json!({"phase": "Pending"}),
            };
            pod
        };
        let items = self.shared.ledger.items(ItemKind::Pod);
        items.iter().filter_map(|item| item.read().ok()).map(with_status).collect()
    }

    /// Starts a pod's running containers anew, or one of them.
    ///
    /// # Errors
    /// There is no such pod or container, or the pod would not start again.
    pub async fn restart(
        &self,
        namespace: &str,
        name: &str,
        container: Option<String>,
    ) -> Result<(), String> {
        let key = ItemKey::new(ItemKind::Pod, namespace, name);
        let pod = self.shared.ledger.item(&key).and_then(|item| item.read().ok());
        let wanted = Wanted::new(pod.ok_or_else(|| format!("pod {namespace}/{name} is not on this node"))?);
        if let Some(container) = container.as_ref().filter(|c| wanted.container(c).is_none()) {
            return Err(format!("container {container} is not valid for pod {name}"));
        }
        match wanted.spec.restart_policy.as_deref() {
            None | Some("Always") => {}
            Some(policy) => {
                return Err(format!("pod {name} would not start again: its restartPolicy is {policy}"));
            }
        }
        let (reply, done) = oneshot::channel();
        let command = Command::Restart { uid: wanted.uid, container, reply };
        let stopping = || "the node is stopping".to_owned();
        self.commands.send(command).await.map_err(|_| stopping())?;
        match done.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("pod {namespace}/{name} has not begun yet")),
            Err(_) => Err(stopping()),
        }
    }

    /// Serves a stream to its end.
    pub async fn serve(&self, stream: Stream, request: Request) {
        streams::serve(Arc::clone(&self.shared), stream, request).await;
    }
}
