//! Lets a board into the cluster: its token against a certificate.
//!
//! Tokens are Secrets of the type that kubeadm's are, with the name a board has to have (or none)
//! as an annotation. A token is spent with the first board that it lets in; the same request again
//! (its answer was lost on the way) gets the same answer.

use std::collections::VecDeque;

use base64::Engine as _;
use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Secret};
use serde_json::json;

use super::work::Context;
use crate::{
    clock, ids,
    kinds::{Subresource, names, registry},
    mqtt::{
        join::{JoinAnswer, JoinRequest, REQUEST_BYTES_MAX, Welcome},
        messages,
    },
    objects::{DeleteOptions, Error, Objects, User, WriteOptions},
};

/// Where tokens are, and how their Secrets are called.
pub const TOKEN_NAMESPACE: &str = "kube-system";
pub const TOKEN_PREFIX: &str = "bootstrap-token-";
pub const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The only name that a token's board may have.
pub const NODE_ANNOTATION: &str = "sampan.dev/node";
/// The signer of what boards show tokens for; the desk itself, and not the one for kubelets' requests.
const SIGNER: &str = "sampan.dev/node";
/// Answers kept for boards that ask again.
const ANSWERED_MAX: usize = 16;

/// A node's new certificate.
pub struct Signed {
    /// PEM.
    pub certificate: String,
    /// The SHA-256 of its DER form, in hexadecimal.
    pub digest: String,
}

/// Signs a node's certificate: (request, node's name), or says why not; joined in by `app`.
pub type SignNode = Box<dyn Fn(&str, &str) -> Result<Signed, String> + Send + Sync>;

/// What answers boards that join.
pub struct Desk {
    sign: SignNode,
    ca: String,
    answered: VecDeque<(Bytes, JoinAnswer)>,
}

impl Desk {
    /// `ca` is the authority's certificate, PEM.
    pub fn new(sign: SignNode, ca: String) -> Self {
        Self { sign, ca, answered: VecDeque::new() }
    }

    /// The answer to a request as it came; `connected` says whether a node has a link now.
    pub(super) async fn answer(
        &mut self,
        context: &Context,
        connected: impl Fn(&str) -> bool,
        payload: Bytes,
    ) -> JoinAnswer {
        if let Some((_, answer)) = self.answered.iter().find(|(asked, _)| *asked == payload) {
            return answer.clone();
        }
        let request = match messages::decode::<JoinRequest>(&payload) {
            Ok(request) if payload.len() <= REQUEST_BYTES_MAX => request,
            _ => return JoinAnswer::Refused("the request is not understood".to_owned()),
        };
        let taken = connected(&request.node);
        match self.admit(context, taken, &request).await {
            Ok(welcome) => {
                tracing::info!(node = request.node, token = request.token_id, "a board has joined");
                let answer = JoinAnswer::Welcome(Box::new(welcome));
                self.answered.truncate(ANSWERED_MAX - 1);
                self.answered.push_front((payload, answer.clone()));
                answer
            }
            Err(reason) => {
                tracing::warn!(node = request.node, token = request.token_id, reason, "a board was refused");
                JoinAnswer::Refused(reason)
            }
        }
    }

    async fn admit(&self, context: &Context, taken: bool, request: &JoinRequest) -> Result<Welcome, String> {
        let Context { objects, options, writer, .. } = context;
        let name = format!("{TOKEN_PREFIX}{}", request.token_id);
        let secret = objects.get_typed::<Secret>(TOKEN_NAMESPACE, &name);
        check(secret.as_deref(), request, objects.clock().now(), taken)?;
        let Signed { certificate, digest } = (self.sign)(&request.csr, &request.node)?;
        let delete = DeleteOptions {
            uid: secret.and_then(|secret| secret.metadata.uid.clone()),
            ..DeleteOptions::default()
        };
        objects
            .delete(registry::of::<Secret>(), TOKEN_NAMESPACE, &name, &delete, writer)
            .await
            .map_err(|error| format!("the token could not be spent: {error}"))?;
        objects
            .set_credential(&request.node, &digest, writer)
            .await
            .map_err(|error| format!("the certificate could not be noted: {error}"))?;
        if let Err(error) = record(objects, writer, request, &certificate).await {
            tracing::warn!(node = request.node, %error, "the request was not recorded");
        }
        Ok(Welcome {
            certificate,
            ca: self.ca.clone(),
            cluster_cidr: options.cluster_cidr.to_string(),
            service_cidr: options.service_cidr.to_string(),
            cluster_dns: options.cluster_dns.clone(),
            cluster_domain: options.cluster_domain.clone(),
        })
    }
}

/// Shows the request and its answer as a CertificateSigningRequest, as kubelets leave theirs.
async fn record(
    objects: &Objects,
    writer: &WriteOptions,
    request: &JoinRequest,
    certificate: &str,
) -> Result<(), Error> {
    let kind = registry::of::<CertificateSigningRequest>();
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let digest = ring::digest::digest(&ring::digest::SHA256, request.csr.as_bytes());
    let name = format!("node-csr-{}", ids::hex(&digest.as_ref()[..16]));
    // Who asks is written down at admission.
    let board = User {
        name: format!("system:bootstrap:{}", request.token_id),
        groups: ["system:bootstrappers", "system:authenticated"].map(str::to_owned).to_vec(),
        ..User::default()
    };
    let csr = json!({
        "metadata": {"name": name},
        "spec": {
            "request": encode(&request.csr),
            "signerName": SIGNER,
            "usages": ["digital signature", "client auth"],
        },
    });
    objects.create(kind, "", csr, &WriteOptions { user: board, ..writer.clone() }).await?;
    let now = clock::rfc3339_seconds(objects.clock().now());
    let node = request.node.clone();
    objects
        .modify(kind, Some(Subresource::Other("approval")), "", &name, writer, |csr| {
            csr["status"]["conditions"] = json!([{
                "type": "Approved", "status": "True", "reason": "TokenAccepted",
                "message": format!("The board showed a token and is now the node {node}."),
                "lastUpdateTime": now, "lastTransitionTime": now,
            }]);
            Ok(())
        })
        .await?;
    objects
        .modify(kind, Some(Subresource::Status), "", &name, writer, |csr| {
            csr["status"]["certificate"] = encode(certificate).into();
            Ok(())
        })
        .await
        .map(drop)
}

/// Whether a token lets a board in under the name it wants.
fn check(secret: Option<&Secret>, request: &JoinRequest, now: Timestamp, taken: bool) -> Result<(), String> {
    let unknown =
        || "the token is wrong, spent or deleted; `sampan token create` on the master makes a new one";
    let field = |key: &str| {
        let value = &secret?.data.as_ref()?.get(key)?.0;
        std::str::from_utf8(value).ok()
    };
    let secret = secret.filter(|secret| secret.type_.as_deref() == Some(TOKEN_TYPE)).ok_or_else(unknown)?;
    if !field("token-secret").is_some_and(|known| same(known, &request.token_secret)) {
        return Err(unknown().to_owned());
    }
    if let Some(expiration) = field("expiration")
        && !expiration.parse::<Timestamp>().is_ok_and(|end| now < end)
    {
        return Err(format!(
            "the token expired at {expiration}; `sampan token create` on the master makes a new one"
        ));
    }
    let node = &request.node;
    if let Some(wrong) = names::dns_subdomain(node).first() {
        return Err(format!("{node:?} is no name for a node: {wrong}"));
    }
    match secret.metadata.annotations.as_ref().and_then(|all| all.get(NODE_ANNOTATION)) {
        Some(only) if only == node => Ok(()),
        Some(only) => Err(format!("the token is for the node {only:?}: start with --node-name {only}")),
        None if taken => Err(format!(
            "another board with the name {node:?} is connected; give this one its own with --node-name"
        )),
        None => Ok(()),
    }
}

/// Compares without telling by the time it takes where the difference is.
fn same(a: &str, b: &str) -> bool {
    let digest = |text: &str| ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest(a).as_ref() == digest(b).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(node: Option<&str>) -> Secret {
        let encode = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        let mut secret = Secret {
            type_: Some(TOKEN_TYPE.to_owned()),
            data: Some(
                [("token-secret", "right"), ("expiration", "2026-11-24T12:00:00Z")]
                    .map(|(key, value)| (key.to_owned(), encode(value)))
                    .into(),
            ),
            ..Secret::default()
        };
        secret.metadata.annotations = node.map(|node| [(NODE_ANNOTATION.to_owned(), node.to_owned())].into());
        secret
    }

    fn ask(secret: Option<&Secret>, word: &str, node: &str, hour: u32, taken: bool) -> Result<(), String> {
        let request = json!({"tokenId": "x", "tokenSecret": word, "node": node, "csr": ""});
        let now = format!("2026-11-24T{hour:02}:00:00Z").parse().unwrap();
        check(secret, &serde_json::from_value(request).unwrap(), now, taken)
    }

    #[test]
    fn a_token_lets_one_kind_of_board_in() {
        let any = token(None);
        let named = token(Some("kitchen"));
        assert_eq!(ask(Some(&any), "right", "a", 11, false), Ok(()));
        assert_eq!(ask(Some(&named), "right", "kitchen", 11, true), Ok(()));
        let refused = |secret, word, node, hour, taken, why: &str| {
            let reason = ask(secret, word, node, hour, taken).unwrap_err();
            assert!(reason.contains(why), "{reason}");
        };
        refused(None, "right", "a", 11, false, "wrong, spent or deleted");
        refused(Some(&any), "left", "a", 11, false, "wrong, spent or deleted");
        refused(Some(&any), "right", "a", 12, false, "expired at 2026-11-24T12:00:00Z");
        refused(Some(&any), "right", "a", 11, true, "another board with the name \"a\"");
        refused(Some(&any), "right", "a/../+", 11, false, "no name for a node");
        refused(Some(&named), "right", "cellar", 11, false, "--node-name kitchen");
        let mut other = token(None);
        other.type_ = Some("Opaque".to_owned());
        refused(Some(&other), "right", "a", 11, false, "wrong, spent or deleted");
    }
}
