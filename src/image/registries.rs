//! How registries are reached: mirrors, rewrite rules, credentials, certificates.
//!
//! In: YAML as k3s' `registries.yaml` has it (`mirrors.<registry>.{endpoint,rewrite}`,
//! `configs.<host>.{auth,tls}`), from a file or from the key `registries` of the configuration. Out: plain
//! settings of a pull. What is not supported is refused with its key, never passed over.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::{Credentials, Keyring, registry::Mirror};
use crate::manifest;

/// Where the settings are looked for when nothing else is said.
const DEFAULT_FILE: &str = "/etc/sampan/registries.yaml";

/// Settings of all registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    /// Where to ask before a registry (`docker.io`; `*` for all others).
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// The node's own credentials.
    pub keyring: Keyring,
    /// Hosts whose certificates are not checked and that may do without TLS.
    pub insecure: Vec<String>,
    /// Files of additional certificates to trust, by host.
    pub authorities: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Written {
    mirrors: BTreeMap<String, WrittenMirror>,
    configs: BTreeMap<String, WrittenHost>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WrittenMirror {
    endpoint: Vec<String>,
    rewrite: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WrittenHost {
    auth: Option<WrittenAuth>,
    tls: Option<WrittenTls>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WrittenAuth {
    username: String,
    password: String,
    /// `username:password` in base64.
    auth: String,
    identity_token: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WrittenTls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

impl Registries {
    /// Reads settings given as text (`{…}` or several lines), or the file at a path. A file that nobody asked
    /// for may be missing.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub fn load(given: Option<&str>) -> Result<Self, String> {
        let place = given.unwrap_or(DEFAULT_FILE);
        if place.starts_with('{') || place.contains('\n') {
            return Self::parse(place).map_err(|error| format!("registries: {error}"));
        }
        match std::fs::read_to_string(place) {
            Ok(text) => Self::parse(&text).map_err(|error| format!("registries {place}: {error}")),
            Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(format!("read registries {place}: {error}")),
        }
    }

    /// Reads the YAML (or JSON) text.
    ///
    /// # Errors
    /// What is wrong, with its key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let written: Option<Written> = manifest::parse_yaml(text)?;
        let written = written.unwrap_or_default();
        let mut all = Self::default();
        let mut logins = BTreeMap::new();
        for (host, config) in written.configs {
            let host = bare(&host).to_owned();
            if let Some(auth) = config.auth {
                let login = credentials(auth).map_err(|e| format!("configs.{host}.auth: {e}"))?;
                all.keyring.add(&host, login.clone());
                logins.insert(host.clone(), login);
            }
            if let Some(tls) = config.tls {
                if tls.cert_file.is_some() || tls.key_file.is_some() {
                    return Err(format!(
                        "configs.{host}.tls: client certificates (cert_file, key_file) are not supported"
                    ));
                }
                if tls.insecure_skip_verify {
                    all.insecure.push(host.clone());
                }
                if let Some(file) = tls.ca_file {
                    all.authorities.insert(host.clone(), file);
                }
            }
        }
        for (registry, mirror) in written.mirrors {
            let rewrite = mirror
                .rewrite
                .iter()
                .map(|(from, to)| rule(from, to).map_err(|e| format!("mirrors.{registry}.rewrite: {e}")))
                .collect::<Result<Vec<_>, String>>()?;
            let mirrors = mirror
                .endpoint
                .into_iter()
                .map(|url| {
                    let credentials = logins.get(host_of(&url)).cloned();
                    Mirror { url, rewrite: rewrite.clone(), credentials }
                })
                .collect();
            all.mirrors.insert(registry, mirrors);
        }
        Ok(all)
    }
}

fn bare(url: &str) -> &str {
    url.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/')
}

fn host_of(url: &str) -> &str {
    bare(url).split('/').next().unwrap_or_default()
}

fn credentials(auth: WrittenAuth) -> Result<Credentials, String> {
    if !auth.identity_token.is_empty() {
        return Err("identity_token is not supported; use username and password".to_owned());
    }
    if !auth.auth.is_empty() {
        return super::keyring::decode(&auth.auth)
            .ok_or_else(|| "auth is not base64 of username:password".to_owned());
    }
    if auth.username.is_empty() {
        return Err("username is missing".to_owned());
    }
    Ok(Credentials { username: auth.username, password: auth.password })
}

/// A rewrite rule as a pair of prefixes: `^library/(.*)` → `mirrored/$1`, or the prefixes themselves.
fn rule(from: &str, to: &str) -> Result<(String, String), String> {
    let unsupported = || {
        format!(
            "{from:?}: {to:?} is not supported: write prefixes (library/: mirrored/) or \"^library/(.*)\": \"mirrored/$1\""
        )
    };
    let plain = |text: &str| !text.contains(['(', ')', '*', '[', ']', '^', '$', '\\', '|', '+', '?']);
    let Some(pattern) = from.strip_prefix('^') else {
        return if plain(from) && plain(to) {
            Ok((from.to_owned(), to.to_owned()))
        } else {
            Err(unsupported())
        };
    };
    let pattern = pattern.strip_suffix('$').unwrap_or(pattern);
    let prefix = pattern.strip_suffix("(.*)").ok_or_else(unsupported)?;
    let target = to.strip_suffix("$1").ok_or_else(unsupported)?;
    if plain(prefix) && plain(target) {
        Ok((prefix.to_owned(), target.to_owned()))
    } else {
        Err(unsupported())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_k3s_is_understood() {
        let all = Registries::parse(
            "mirrors:
  docker.io:
    endpoint: [\"https://cache.example:5000\", \"http://usb.local\"]
    rewrite: {\"^library/(.*)\": \"hub/$1\"}
  \"*\":
    endpoint: [cache.example:5000]
configs:
  cache.example:5000:
    auth: {username: me, password: secret}
    tls: {ca_file: /etc/cache.crt}
  usb.local:
    tls: {insecure_skip_verify: true}
",
        )
        .unwrap();
        let hub = &all.mirrors["docker.io"];
        assert_eq!(hub[0].rewrite, [("library/".to_owned(), "hub/".to_owned())]);
        assert_eq!(hub[0].credentials.as_ref().unwrap().username, "me");
        assert_eq!((hub[1].url.as_str(), &hub[1].credentials), ("http://usb.local", &None));
        assert_eq!(all.mirrors["*"].len(), 1);
        assert_eq!(all.insecure, ["usb.local"]);
        assert_eq!(all.authorities["cache.example:5000"], PathBuf::from("/etc/cache.crt"));
        assert_eq!(all.keyring.find(&"cache.example:5000/x".parse().unwrap()).len(), 1);
        assert_eq!(Registries::parse("").unwrap(), Registries::default());
    }

    #[test]
    fn what_is_not_supported_names_its_key() {
        for (text, want) in [
            ("mirrors: {a: {rewrite: {'^(.*)/x$': '$1'}}}", "mirrors.a.rewrite"),
            ("configs: {a: {auth: {identity_token: x}}}", "configs.a.auth: identity_token"),
            ("configs: {a: {tls: {cert_file: /x}}}", "configs.a.tls: client certificates"),
            ("mirors: {}", "mirors"),
            ("configs: {a: {auth: {auth: '!'}}}", "configs.a.auth: auth is not"),
        ] {
            let error = Registries::parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
