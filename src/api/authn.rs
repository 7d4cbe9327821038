//! Who asks: client certificates, anonymous, impersonation.

use hyper::header::{AUTHORIZATION, HeaderMap};

use super::{Api, handler::Presented, status::Refusal, tls::CertificateIdentity};
use crate::{clock::Clock as _, objects::User};

const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const AUTHENTICATED: &str = "system:authenticated";
/// The extra field that names the credential.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Who the request is from.
pub fn authenticate(api: &Api, presented: &Presented, headers: &HeaderMap) -> Result<User, Refusal> {
    let certificate = match presented {
        Presented::Certificate(identity) if identity.not_after > api.time.now().as_second() => {
            return Ok(of_certificate(identity));
        }
        Presented::Nothing => false,
        Presented::Unknown | Presented::Certificate(_) => true,
    };
    if certificate || headers.contains_key(AUTHORIZATION) {
        return Err(Refusal::Unauthorized);
    }
    Ok(User { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..User::default() })
}

fn of_certificate(identity: &CertificateIdentity) -> User {
    let mut groups = identity.groups.clone();
    groups.push(AUTHENTICATED.to_owned());
    User {
        name: identity.user.clone(),
        uid: String::new(),
        groups,
        extra: [(CREDENTIAL_ID.to_owned(), vec![identity.credential_id.clone()])].into(),
    }
}
