//! Which certificate of a node is good: the one it joined with last, or none once it was removed.
//!
//! The ConfigMap `kube-system/sampan-node-credentials` has an entry a node that joined with a token:
//! the SHA-256 of its certificate (DER, hexadecimal), or [`REMOVED`]. A node without an entry (the
//! master's own) is known by its certificate alone.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::{Error, Objects, WriteOptions};
use crate::kinds::registry;

/// Where the entries are.
pub const NAMESPACE: &str = "kube-system";
pub const NAME: &str = "sampan-node-credentials";
/// The entry of a node that was removed.
pub const REMOVED: &str = "removed";
/// What certificates of nodes say.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// How a certificate is named among a user's extra fields.
const DIGEST_PREFIX: &str = "X509SHA256=";

impl Objects {
    fn credential(&self, node: &str) -> Option<String> {
        self.get_typed::<ConfigMap>(NAMESPACE, NAME)?.data.as_ref()?.get(node).cloned()
    }

    /// Whether the user of a certificate may still use it; `id` is `X509SHA256=<hex>` or the hex.
    pub fn is_credential_good(&self, user: &str, id: &str) -> bool {
        let Some(node) = user.strip_prefix(NODE_USER_PREFIX) else { return true };
        let digest = id.strip_prefix(DIGEST_PREFIX).unwrap_or(id);
        self.credential(node).is_none_or(|known| known == digest)
    }

    /// Whether a node was taken out of the cluster and has not joined again.
    pub fn is_node_removed(&self, node: &str) -> bool {
        self.credential(node).as_deref() == Some(REMOVED)
    }

    /// Notes the certificate that a node has from now on, or [`REMOVED`].
    pub async fn set_credential(&self, node: &str, digest: &str, writer: &WriteOptions) -> Result<(), Error> {
        let kind = registry::of::<ConfigMap>();
        let first = json!({"metadata": {"name": NAME}, "data": {node: digest}});
        match self.create(kind, NAMESPACE, first, writer).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        let note = |map: &mut serde_json::Value| {
            map["data"][node] = digest.into();
            Ok(())
        };
        self.modify(kind, None, NAMESPACE, NAME, writer, note).await.map(drop)
    }
}
