//! Who asks: client certificates, tokens of ServiceAccounts, bootstrap tokens, anonymous,
//! impersonation.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hyper::header::{AUTHORIZATION, HeaderMap};
use k8s_openapi::api::core::v1::Secret;

use super::{
    Api,
    authz::{Attributes, allowed},
    handler::Presented,
    request::decode,
    status::Refusal,
    tls::CertificateIdentity,
};
use crate::{
    clock::Clock as _,
    objects::{Objects, User, token::Verified},
};

const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const AUTHENTICATED: &str = "system:authenticated";
/// The extra field that names the credential.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const BOOTSTRAP_GROUP: &str = "system:bootstrappers";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Who the request is from, impersonation included.
pub fn authenticate(api: &Api, presented: &Presented, headers: &HeaderMap) -> Result<User, Refusal> {
    let user = itself(api, presented, headers)?;
    impersonated(&api.objects, user, headers)
}

fn itself(api: &Api, presented: &Presented, headers: &HeaderMap) -> Result<User, Refusal> {
    let now = api.time.now();
    if let Presented::Certificate(identity) = presented
        && identity.not_after > now.as_second()
        && api.objects.is_credential_good(&identity.user, &identity.credential_id)
    {
        return Ok(of_certificate(identity));
    }
    let header =
        headers.get(AUTHORIZATION).map(|v| v.to_str().unwrap_or_default().to_owned()).or_else(|| {
            let protocols = headers.get("sec-websocket-protocol").and_then(|v| v.to_str().ok())?;
            websocket_token(protocols).map(|token| format!("Bearer {token}"))
        });
    let Some(header) = header else {
        if !matches!(presented, Presented::Nothing) {
            return Err(Refusal::Unauthorized);
        }
        return Ok(User {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..User::default()
        });
    };
    let (scheme, token) = header.split_once(' ').unwrap_or((&header, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::Unauthorized);
    }
    of_token(&api.objects, token.trim(), &[], now).map(|(user, _)| user).ok_or(Refusal::Unauthorized)
}

/// The user of a bearer token and the audiences it is good for.
pub fn of_token(
    objects: &Objects,
    token: &str,
    audiences: &[String],
    now: jiff::Timestamp,
) -> Option<(User, Vec<String>)> {
    match objects.verify_token(token, audiences, now) {
        Ok(verified) => {
            let audiences = verified.audiences.clone();
            Some((of_account(verified), audiences))
        }
        Err(error) => {
            tracing::debug!(%error, "token refused");
            of_bootstrap_token(objects, token, now).map(|user| (user, Vec::new()))
        }
    }
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

fn of_account(verified: Verified) -> User {
    let Verified { namespace, account, uid, pod, node, id, .. } = verified;
    let mut extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")])]);
    for (pair, name, uid) in [(pod, POD_NAME, POD_UID), (node, NODE_NAME, NODE_UID)] {
        if let Some((of_name, of_uid)) = pair {
            extra.insert(name.to_owned(), vec![of_name]);
            extra.insert(uid.to_owned(), vec![of_uid]);
        }
    }
    User {
        name: format!("system:serviceaccount:{namespace}:{account}"),
        uid,
        groups: account_groups(&namespace),
        extra,
    }
}

fn account_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        AUTHENTICATED.to_owned(),
    ]
}

/// `<id>.<secret>` of a Secret `bootstrap-token-<id>` in `kube-system`.
fn of_bootstrap_token(objects: &Objects, token: &str, now: jiff::Timestamp) -> Option<User> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
        return None;
    }
    let stored = objects.get_typed::<Secret>("kube-system", &format!("bootstrap-token-{id}"))?;
    let text = |key: &str| {
        let value = stored.data.as_ref().and_then(|d| d.get(key))?;
        String::from_utf8(value.0.clone()).ok()
    };
    let right = stored.type_.as_deref() == Some("bootstrap.kubernetes.io/token")
        && stored.metadata.deletion_timestamp.is_none()
        && text("token-id").as_deref() == Some(id)
        && text("usage-bootstrap-authentication").as_deref() == Some("true")
        && text("token-secret").is_some_and(|s| same(s.as_bytes(), secret.as_bytes()));
    let expires = text("expiration").map(|t| t.parse::<jiff::Timestamp>());
    let expired = expires.is_some_and(|end| end.map_or(true, |end| end <= now));
    if !right || expired {
        return None;
    }
    let mut groups = vec![BOOTSTRAP_GROUP.to_owned(), AUTHENTICATED.to_owned()];
    groups.extend(
        text("auth-extra-groups")
            .iter()
            .flat_map(|g| g.split(','))
            .map(|g| g.trim().to_owned())
            .filter(|g| !g.is_empty()),
    );
    Some(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

/// Compares without telling by time where two secrets differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

/// The user that the request wants to be, when it may.
fn impersonated(objects: &Objects, user: User, headers: &HeaderMap) -> Result<User, Refusal> {
    let one = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok().map(str::to_owned))
        .collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA_PREFIX), value.to_str()) {
            extra.entry(decode(key, false)).or_default().push(value.to_owned());
        }
    }
    let uid = one("impersonate-uid").unwrap_or_default();
    let Some(name) = one("impersonate-user") else {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(user);
        }
        return Err(Refusal::internal("requested impersonation without impersonating a user"));
    };
    let check = |group: &str, resource: &str, namespace: &str, name: &str| {
        let what = Attributes {
            verb: "impersonate",
            group,
            resource: resource.to_owned(),
            name,
            namespace,
            ..Attributes::default()
        };
        if allowed(objects, &user, &what) {
            return Ok(());
        }
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {namespace:?}")
        };
        Err(Refusal::Forbidden {
            resource: resource.to_owned(),
            name: name.to_owned(),
            message: format!(
                "{resource} {name:?} is forbidden: User {:?} cannot impersonate resource {resource:?} in API group {group:?} {scope}",
                user.name
            ),
        })
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => check("", "serviceaccounts", namespace, account)?,
        None => check("", "users", "", &name)?,
    }
    for group in &groups {
        check("", "groups", "", group)?;
    }
    for (key, values) in &extra {
        for value in values {
            check("authentication.k8s.io", &format!("userextras/{key}"), "", value)?;
        }
    }
    if !uid.is_empty() {
        check("authentication.k8s.io", "uids", "", &uid)?;
    }
    let mut all = groups;
    if all.is_empty()
        && let Some((namespace, _)) = account
    {
        all = account_groups(namespace);
    }
    let kind = if name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !all.iter().any(|g| g == kind) {
        all.push(kind.to_owned());
    }
    Ok(User { name, uid, groups: all, extra })
}

/// The token of a WebSocket's subprotocol (`base64url.bearer.authorization.k8s.io.<token>`).
fn websocket_token(protocols: &str) -> Option<String> {
    let encoded =
        protocols.split(',').find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let standard: String = encoded
        .chars()
        .map(|c| {
            if c == '-' {
                '+'
            } else if c == '_' {
                '/'
            } else {
                c
            }
        })
        .collect();
    let padded = format!("{standard}{}", "=".repeat((4 - standard.len() % 4) % 4));
    String::from_utf8(BASE64.decode(padded).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same(b"abc", b"abc") && !same(b"abc", b"abd") && !same(b"abc", b"ab"));
        assert_eq!(
            websocket_token("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj").as_deref(),
            Some("abc")
        );
    }
}
