//! Tokens of ServiceAccounts: JSON Web Tokens signed with ES256 (RFC 7515, RFC 7518 section 3.4),
//! bound to an object and expiring.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    },
};
use serde_json::{Value, json};

use super::{Error, Objects, User, admission};
use crate::{
    ids,
    kinds::{FieldError, registry},
    store::Object,
};

/// Who issues, as tokens and the discovery document name it.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The shortest life of a token (seconds), as upstream.
const EXPIRATION_SECONDS_MIN: i64 = 600;
/// The life of a token whose request names none (seconds).
pub const EXPIRATION_SECONDS_DEFAULT: i64 = 3600;
/// The longest life of a token (seconds): 2^32, as upstream.
const EXPIRATION_SECONDS_MAX: i64 = 1 << 32;
/// Bytes of a token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The key that signs and verifies.
pub struct Signer {
    key: EcdsaKeyPair,
    id: String,
}

/// A key that is no P-256 key in PKCS #8.
#[derive(Debug, thiserror::Error)]
#[error("service account key: {0}")]
pub struct KeyError(String);

/// Why a token proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token is malformed")]
    Malformed,
    #[error("token is not signed by this cluster")]
    Signature,
    #[error("token has expired")]
    Expired,
    #[error("token is for another audience")]
    Audience,
    #[error("token's service account, or what it is bound to, is gone")]
    Revoked,
}

impl Signer {
    /// Of a PKCS #8 document.
    pub fn new(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|e| KeyError(e.to_string()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key, id: BASE64URL.encode(digest) })
    }

    /// A token of these claims.
    fn sign(&self, claims: &Value) -> Result<String, Error> {
        let header = json!({"alg": "ES256", "kid": self.id}).to_string();
        let text = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims.to_string()));
        let signature = self
            .key
            .sign(&SystemRandom::new(), text.as_bytes())
            .map_err(|_| Error::Internal("signing a token failed".to_owned()))?;
        Ok(format!("{text}.{}", BASE64URL.encode(signature)))
    }

    /// The claims of a token that this key has signed.
    fn claims(&self, token: &str) -> Result<Value, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (text, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = text.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| BASE64URL.decode(part).map_err(|_| TokenError::Malformed);
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header["alg"] != "ES256" {
            return Err(TokenError::Signature);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(text.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Malformed)
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    pub fn key_set(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (&point[1..33], &point[33..65]);
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": BASE64URL.encode(x), "y": BASE64URL.encode(y)}]})
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.id)
    }
}

/// What a token is asked for (`authentication.k8s.io/v1` TokenRequestSpec).
#[derive(Debug, Clone, Default)]
pub struct TokenSpec {
    /// Empty: the API server itself.
    pub audiences: Vec<String>,
    pub expiration_seconds: Option<i64>,
    pub bound: Option<Bound>,
}

/// The object with which a token lives and dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// `Pod`, `Secret` or `Node`.
    pub kind: String,
    pub name: String,
    /// Empty: whichever there is.
    pub uid: String,
}

/// A token and its end.
#[derive(Debug, Clone)]
pub struct Issued {
    pub token: String,
    pub audiences: Vec<String>,
    pub expires: jiff::Timestamp,
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub namespace: String,
    pub account: String,
    pub uid: String,
    pub audiences: Vec<String>,
    /// Name and uid.
    pub pod: Option<(String, String)>,
    pub node: Option<(String, String)>,
    /// `jti`
    pub id: String,
}

impl Objects {
    fn signer(&self) -> Result<&Arc<Signer>, Error> {
        let settings = self.settings();
        settings
            .map(|s| &s.tokens)
            .ok_or_else(|| Error::Unsupported("this cluster issues no tokens".to_owned()))
    }

    /// Issues a token of a ServiceAccount at `now` (trusted time) to `user`, who may ask for one.
    pub fn issue_token(
        &self,
        user: &User,
        namespace: &str,
        account: &str,
        spec: &TokenSpec,
        now: jiff::Timestamp,
    ) -> Result<Issued, Error> {
        admission::restrict_token(self, user, namespace, account, spec)?;
        let signer = self.signer()?;
        let kind = registry::of::<k8s_openapi::api::core::v1::ServiceAccount>();
        let owner = self.get(kind, namespace, account)?;
        let seconds = spec.expiration_seconds.unwrap_or(EXPIRATION_SECONDS_DEFAULT);
        let invalid = |detail: &str| Error::Invalid {
            kind: "TokenRequest.authentication.k8s.io".to_owned(),
            name: String::new(),
            errors: vec![FieldError::invalid("spec.expirationSeconds", seconds, detail)],
        };
        if seconds < EXPIRATION_SECONDS_MIN {
            return Err(invalid("may not specify a duration less than 10 minutes"));
        }
        if seconds > EXPIRATION_SECONDS_MAX {
            return Err(invalid("may not specify a duration larger than 2^32 seconds"));
        }
        let audiences =
            if spec.audiences.is_empty() { vec![ISSUER.to_owned()] } else { spec.audiences.clone() };
        let mut own = json!({"namespace": namespace,
            "serviceaccount": {"name": account, "uid": &*owner.meta.uid}});
        if let Some(bound) = &spec.bound {
            let object = self.bound_object(namespace, account, bound)?;
            let field = bound.kind.to_ascii_lowercase();
            own[&field] = json!({"name": bound.name, "uid": &*object.meta.uid});
            if bound.kind == "Pod" {
                let node = object.value()["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
                let nodes = registry::of::<k8s_openapi::api::core::v1::Node>();
                if let Ok(node) = self.get(nodes, "", &node) {
                    own["node"] = json!({"name": &*node.key.name, "uid": &*node.meta.uid});
                }
            }
        }
        let (begin, end) = (now.as_second(), now.as_second() + seconds);
        let claims = json!({"aud": audiences, "exp": end, "iat": begin, "nbf": begin, "iss": ISSUER,
            "jti": ids::new_uid(), "kubernetes.io": own,
            "sub": format!("system:serviceaccount:{namespace}:{account}")});
        let expires = jiff::Timestamp::from_second(end).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(Issued { token: signer.sign(&claims)?, audiences, expires })
    }

    fn bound_object(&self, namespace: &str, account: &str, bound: &Bound) -> Result<Arc<Object>, Error> {
        let (kind, namespace) = match bound.kind.as_str() {
            "Pod" => (registry::of::<k8s_openapi::api::core::v1::Pod>(), namespace),
            "Secret" => (registry::of::<k8s_openapi::api::core::v1::Secret>(), namespace),
            "Node" => (registry::of::<k8s_openapi::api::core::v1::Node>(), ""),
            other => {
                let message = format!("cannot bind token for serviceaccount {account:?} to a {other}");
                return Err(Error::BadRequest(message));
            }
        };
        let object = self.get(kind, namespace, &bound.name)?;
        let conflict = |message: String| Error::Conflict {
            resource: kind.resource(),
            name: bound.name.clone(),
            message,
        };
        if !bound.uid.is_empty() && *bound.uid != *object.meta.uid {
            return Err(conflict(format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                bound.uid
            )));
        }
        if bound.kind == "Pod" {
            let own = object.value()["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
            if own != account {
                return Err(Error::BadRequest(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
        }
        Ok(object)
    }

    /// Checks a token at `now` (trusted time) against the objects there are; `audiences` are those
    /// that the asker answers to (empty: the API server).
    pub fn verify_token(
        &self,
        token: &str,
        audiences: &[String],
        now: jiff::Timestamp,
    ) -> Result<Verified, TokenError> {
        let signer = self.signer().map_err(|_| TokenError::Signature)?;
        let claims = signer.claims(token)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if claims["iss"] != ISSUER {
            return Err(TokenError::Signature);
        }
        if claims["exp"].as_i64().unwrap_or(0) <= now.as_second() {
            return Err(TokenError::Expired);
        }
        let own = [ISSUER.to_owned()];
        let wanted = if audiences.is_empty() { &own } else { audiences };
        let named: Vec<String> = claims["aud"].as_array().into_iter().flatten().map(text).collect();
        let common: Vec<String> = named.into_iter().filter(|a| wanted.contains(a)).collect();
        if common.is_empty() {
            return Err(TokenError::Audience);
        }
        let private = &claims["kubernetes.io"];
        let pair = |field: &str| private.get(field).map(|value| (text(&value["name"]), text(&value["uid"])));
        let (account, uid) = pair("serviceaccount").ok_or(TokenError::Malformed)?;
        let namespace = text(&private["namespace"]);
        let lives = |type_name: &str, namespace: &str, pair: &(String, String)| {
            registry::by_type("v1", type_name)
                .and_then(|kind| self.get(kind, namespace, &pair.0).ok())
                .is_some_and(|object| *object.meta.uid == *pair.1)
        };
        let (pod, node, secret) = (pair("pod"), pair("node"), pair("secret"));
        let all_live = lives("ServiceAccount", &namespace, &(account.clone(), uid.clone()))
            && pod.as_ref().is_none_or(|p| lives("Pod", &namespace, p))
            && secret.as_ref().is_none_or(|s| lives("Secret", &namespace, s))
            && (pod.is_some() || node.as_ref().is_none_or(|n| lives("Node", "", n)));
        if !all_live {
            return Err(TokenError::Revoked);
        }
        Ok(Verified { namespace, account, uid, audiences: common, pod, node, id: text(&claims["jti"]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Signer::new(document.as_ref()).unwrap()
    }

    #[test]
    fn only_the_key_that_signed_verifies() {
        let (ours, theirs) = (signer(), signer());
        let token = ours.sign(&json!({"sub": "x"})).unwrap();
        assert_eq!(ours.claims(&token).unwrap(), json!({"sub": "x"}));
        assert_eq!(theirs.claims(&token), Err(TokenError::Signature));
        let unsigned = format!("{}.{}.", BASE64URL.encode(r#"{"alg":"none"}"#), BASE64URL.encode("{}"));
        assert_eq!(ours.claims(&unsigned), Err(TokenError::Signature));
        for bad in ["", ".", "..", "a.b.c", "é.é.é"] {
            assert!(ours.claims(bad).is_err(), "{bad}");
        }
        assert_eq!(ours.key_set()["keys"][0]["crv"], "P-256");
    }
}
