//! How a registry wants to be asked: challenges of `WWW-Authenticate`.
//!
//! Source: RFC 9110 section 11.6.1; distribution spec, "Token Authentication Specification". Pure.

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    /// A token from `realm`, for `service` and `scope`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge to answer, of all that a response has: a token before a password.
    pub fn parse<'a>(fields: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let challenges: Vec<Self> = fields.into_iter().filter_map(parse_one).collect();
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Self::Bearer { .. }));
        bearer.or(challenges.first()).cloned()
    }

    /// The URL that gives the token.
    pub fn token_url(realm: &str, service: Option<&str>, scope: &str, account: Option<&str>) -> String {
        let mut url = realm.to_owned();
        let mut separator = if realm.contains('?') { '&' } else { '?' };
        for (key, value) in [("service", service), ("scope", Some(scope)), ("account", account)] {
            if let Some(value) = value {
                url.push(separator);
                url.push_str(key);
                url.push('=');
                encode(&mut url, value);
                separator = '&';
            }
        }
        url
    }
}

/// `Bearer key="value",…` or `Basic …`
fn parse_one(field: &str) -> Option<Challenge> {
    let (scheme, mut rest) = field.trim().split_once(' ').unwrap_or((field.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        let Some((key, tail)) = rest.split_once('=') else { break };
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => tail.split_once(',').unwrap_or((tail, "")),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = tail;
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// Percent encoding of a query's value (RFC 3986, unreserved characters stay).
pub fn encode(out: &mut String, text: &str) {
    use std::fmt::Write as _;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        for (fields, want) in [
            (
                &[r#"Bearer realm="https://a/token",service="r",scope="repository:x:pull,push""#][..],
                Some(bearer("https://a/token", Some("r"), Some("repository:x:pull,push"))),
            ),
            (&["bearer realm=https://a , error=\"x\""], Some(bearer("https://a ", None, None))),
            (&["Basic realm=\"r\"", "Bearer realm=\"https://a\""], Some(bearer("https://a", None, None))),
            (&["Basic realm=\"r\""], Some(Challenge::Basic)),
            (&["Bearer service=\"r\""], None),
            (&["Negotiate"], None),
            (&[], None),
        ] {
            assert_eq!(Challenge::parse(fields.iter().copied()), want, "{fields:?}");
        }
    }

    #[test]
    fn token_urls_are_encoded() {
        assert_eq!(
            Challenge::token_url("https://a/t?x=1", Some("r e"), "repository:a/b:pull", Some("me")),
            "https://a/t?x=1&service=r%20e&scope=repository:a/b:pull&account=me"
        );
    }
}
