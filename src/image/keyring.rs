//! Which credentials go to which registry.
//!
//! In: the text of a `config.json` (`auths`) or `.dockercfg`. Out: credentials for one image, the most specific
//! first. Source: `pkg/credentialprovider/keyring.go`. Invariant: a password never goes to a registry that it was
//! not written down for. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{Credentials, Reference};

/// Credentials by place: a host with `*` for parts of it, a port, the beginning of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring(Vec<(String, Credentials)>);

impl Keyring {
    /// Reads `{"auths": {place: {auth | username, password}}}`, or what is below `auths` alone. What makes no
    /// sense is left out, as Docker does.
    pub fn parse(text: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<Value>(text) else { return Self::default() };
        let auths = value.get("auths").unwrap_or(&value);
        let mut all = Self::default();
        for (place, entry) in auths.as_object().into_iter().flatten() {
            if let Some(credentials) = read(entry) {
                all.add(place, credentials);
            }
        }
        all
    }

    pub fn add(&mut self, place: &str, credentials: Credentials) {
        let place = place.trim_start_matches("https://").trim_start_matches("http://");
        let (host, path) = place.split_once('/').unwrap_or((place, ""));
        let path = path.strip_prefix("v1/").or(path.strip_prefix("v2/")).unwrap_or(path).trim_matches('/');
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        let host = if is_docker(host) { "docker.io" } else { host };
        self.0.push((if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }, credentials));
        self.0.sort_by(|a, b| b.0.cmp(&a.0));
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The credentials for an image.
    pub fn find(&self, image: &Reference) -> Vec<Credentials> {
        let name = image.name();
        self.0.iter().filter(|(place, _)| covers(place, &name)).map(|(_, c)| c.clone()).collect()
    }
}

fn is_docker(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

fn read(entry: &Value) -> Option<Credentials> {
    let text = |key: &str| entry[key].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(Credentials { username, password });
    }
    decode(&text("auth")?)
}

/// `username:password` in base64.
pub fn decode(text: &str) -> Option<Credentials> {
    let pair = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
    let (username, password) = pair.split_once(':')?;
    Some(Credentials { username: username.to_owned(), password: password.trim_matches('\0').to_owned() })
}

/// Whether a place covers `host[:port]/path` (`URLsMatch`).
fn covers(place: &str, name: &str) -> bool {
    let (wanted, path) = place.split_once('/').unwrap_or((place, ""));
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    let port = |host: &str| host.split_once(':').map(|(_, port)| port.to_owned());
    let labels = |host: &str| -> Vec<String> {
        host.split(':').next().unwrap_or_default().split('.').map(str::to_owned).collect()
    };
    let (globs, parts) = (labels(wanted), labels(host));
    port(wanted) == port(host)
        && globs.len() == parts.len()
        && globs.iter().zip(&parts).all(|(glob, part)| glob_matches(glob, part))
        && repository.starts_with(path)
}

fn glob_matches(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((before, after)) => {
            text.len() >= before.len() + after.trim_matches('*').len()
                && text.starts_with(before)
                && text.ends_with(after.trim_matches('*'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_where_it_was_written_down_for() {
        let text = br#"{"auths": {
            "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
            "reg.example:5000": {"auth": "cmVnOnA6cQ=="},
            "reg.example:5000/team": {"username": "team", "password": "p"},
            "*.cloud.example": {"username": "cloud", "password": "p"},
            "http://broken": {"auth": "!"}
        }}"#;
        let ring = Keyring::parse(text);
        let who = |image: &str| {
            let found = ring.find(&image.parse().unwrap());
            found.iter().map(|c| c.username.clone()).collect::<Vec<_>>().join(" ")
        };
        for (image, want) in [
            ("nginx", "hub"),
            ("docker.io/me/app:1", "hub"),
            ("reg.example:5000/app", "reg"),
            ("reg.example:5000/team/app", "team reg"),
            ("reg.example/app", ""),
            ("evil.example:5000/app", ""),
            ("a.cloud.example/app", "cloud"),
            ("a.b.cloud.example/app", ""),
            ("broken/app", "hub"),
        ] {
            assert_eq!(who(image), want, "{image}");
        }
        let found = ring.find(&"reg.example:5000/app".parse().unwrap());
        assert_eq!(found[0].password, "p:q");
        assert_eq!(Keyring::parse(br#"{"a.example": {"username": "u", "password": "p"}}"#).0.len(), 1);
        assert_eq!(Keyring::parse(b"nonsense"), Keyring::default());
    }
}
