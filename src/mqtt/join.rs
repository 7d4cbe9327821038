//! What a board that joins and its master say to each other, and the token that lets it.
//!
//! The token's text is `<cluster>.<sha256 of the authority's certificate, hex>.<id>.<secret>`.

use serde::{Deserialize, Serialize};

use super::Error;

/// Length of a token's id and secret, as Kubernetes has them in bootstrap tokens.
pub const ID_LENGTH: usize = 6;
pub const SECRET_LENGTH: usize = 16;
/// Length of a SHA-256 in hexadecimal.
const PIN_LENGTH: usize = 64;
/// The largest request (bytes): a certificate request is about a thousand.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;

/// What `sampan token create` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub cluster: String,
    /// The authority by the digest of its certificate (DER).
    pub pin: String,
    pub id: String,
    pub secret: String,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}.{}", self.cluster, self.pin, self.id, self.secret)
    }
}

impl std::str::FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let is_word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let parts: Vec<_> = text.trim().split('.').filter(is_word).collect();
        match parts[..] {
            [cluster, pin, id, secret]
                if pin.len() == PIN_LENGTH && id.len() == ID_LENGTH && secret.len() == SECRET_LENGTH =>
            {
                let own = str::to_owned;
                Ok(Self { cluster: own(cluster), pin: own(pin), id: own(id), secret: own(secret) })
            }
            // The text is a secret and is not repeated.
            _ => Err(Error::Token),
        }
    }
}

/// A board asks for its certificate.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest {
    pub token_id: String,
    pub token_secret: String,
    /// The name it wants.
    pub node: String,
    /// PEM; only its key is used.
    pub csr: String,
}

/// What the master says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JoinAnswer {
    Welcome(Box<Welcome>),
    Refused(String),
}

/// What a member of the cluster has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// The node's certificate and the authority's, PEM.
    pub certificate: String,
    pub ca: String,
    pub cluster_cidr: String,
    pub service_cidr: String,
    /// Empty when the cluster has no DNS.
    pub cluster_dns: String,
    pub cluster_domain: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let token = Token {
            cluster: "0a1b2c".to_owned(),
            pin: "ab".repeat(32),
            id: "bcdf24".to_owned(),
            secret: "bcdfghjklmnpqrst".to_owned(),
        };
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert_eq!(format!("{text}\n").parse::<Token>().unwrap(), token);
        for wrong in ["", "a.b.c.d", &text[1..text.len() - 1], &format!("{text}.x"), &text.to_uppercase()] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }
}
