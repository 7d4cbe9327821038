//! What is in configMap, secret, downwardAPI and projected volumes.

use std::{fs, io, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};

use super::{
    super::{
        downward,
        env::Lookup,
        record::{Role, Wanted},
        shared::Shared,
    },
    payload::{File, Files},
    place,
};

/// Permission bits where the volume does not say.
const MODE_DEFAULT: i32 = 0o644;
/// How long a token is good for where the volume does not say (seconds).
const TOKEN_SECONDS_DEFAULT: i64 = 3600;
/// How far the clocks of master and node may be apart before a token's age is called unknown.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(10);

/// A token of a projected volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub volume: String,
    pub path: String,
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
    /// What is there now, and until when it is good.
    pub current: Option<(String, Timestamp)>,
    /// It was made just now.
    pub fresh: bool,
}

impl Token {
    /// How long it stays at `now` (the master's time) before it has to be replaced: until four fifths of its
    /// life are over, or a day has gone (upstream's `requiresRefresh`). When a clock was set back, nobody
    /// knows how old it is: it is to be replaced.
    pub fn refresh_in(&self, now: Timestamp) -> Option<Duration> {
        let (_, expires) = self.current.as_ref()?;
        let life = SignedDuration::from_secs(self.expiration_seconds);
        let stays = (life * 4 / 5).min(SignedDuration::from_hours(24));
        if self.fresh {
            return Duration::try_from(stays).ok();
        }
        let left = (*expires - life + stays).duration_since(now);
        let known = left <= stays + CLOCK_SLACK;
        Some(Duration::try_from(left).ok().filter(|_| known).unwrap_or(Duration::ZERO))
    }
}

/// The plugin's name in paths; `None` for volumes of other types.
pub fn plugin(volume: &Volume) -> Option<&'static str> {
    match volume {
        Volume { config_map: Some(_), .. } => Some("configmap"),
        Volume { secret: Some(_), .. } => Some("secret"),
        Volume { downward_api: Some(_), .. } => Some("downward-api"),
        Volume { projected: Some(_), .. } => Some("projected"),
        _ => None,
    }
}

/// Whether the contents of these volumes are kept from disks (upstream wraps them into an emptyDir in memory).
pub fn in_memory(plugin: &str) -> bool {
    plugin != "configmap"
}

/// Where a token is kept for a boot without a master: the first one that a start of the pod's worker found, so
/// that no later one costs the disk a write.
fn kept(shared: &Shared, wanted: &Wanted, volume: &str, path: &str) -> PathBuf {
    shared.pod_dir(&wanted.uid).join("tokens").join(volume).join(path)
}

/// Keeps the tokens of a pod whose volumes are made.
pub fn keep(shared: &Shared, wanted: &Wanted, tokens: &[Token]) -> io::Result<()> {
    for token in tokens {
        let Some((text, _)) = &token.current else { continue };
        let file = kept(shared, wanted, &token.volume, &token.path);
        if fs::read_to_string(&file).is_ok_and(|kept| kept == *text) {
            continue;
        }
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::set_permissions(shared.pod_dir(&wanted.uid).join("tokens"), PermissionsExt::from_mode(0o700))?;
        fs::write(&file, text)?;
    }
    Ok(())
}

/// The tokens of a pod, with what is there of them.
pub fn tokens(shared: &Shared, wanted: &Wanted) -> Vec<Token> {
    let mut out = Vec::new();
    for volume in wanted.volumes() {
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for source in sources.filter_map(|s| s.service_account_token.as_ref()) {
            let read = |file: PathBuf| {
                let text = fs::read_to_string(file).ok()?;
                let expires = expiry(&text)?;
                Some((text, expires))
            };
            let shown = place(shared, wanted, "projected", &volume.name).join(&source.path);
            let current = read(shown).or_else(|| read(kept(shared, wanted, &volume.name, &source.path)));
            out.push(Token {
                volume: volume.name.clone(),
                path: source.path.clone(),
                audiences: source.audience.iter().cloned().collect(),
                expiration_seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT),
                current,
                fresh: false,
            });
        }
    }
    out
}

/// The `exp` claim of a JSON Web Token (RFC 7519, section 4.1.4); not verified, it is our own.
fn expiry(token: &str) -> Option<Timestamp> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Timestamp::from_second(claims["exp"].as_i64()?).ok()
}

/// The files of a volume.
///
/// # Errors
/// What is missing, in upstream's words.
pub fn files(
    shared: &Shared,
    wanted: &Wanted,
    volume: &Volume,
    ip: Option<Ipv4Addr>,
    tokens: &[Token],
) -> Result<Files, String> {
    let mut files = Files::new();
    let source = Source { shared, wanted, ip };
    if let Some(map) = &volume.config_map {
        let mode = map.default_mode.unwrap_or(MODE_DEFAULT);
        source.config_map(&mut files, &map.name, map.items.as_deref(), map.optional, mode)?;
    } else if let Some(secret) = &volume.secret {
        let mode = secret.default_mode.unwrap_or(MODE_DEFAULT);
        let name = secret.secret_name.clone().unwrap_or_default();
        source.secret(&mut files, &name, secret.items.as_deref(), secret.optional, mode)?;
    } else if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(MODE_DEFAULT);
        source.downward(&mut files, downward.items.as_deref(), mode)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        let mut missing = Vec::new();
        for part in projected.sources.iter().flatten() {
            missing.extend(source.part(&mut files, &volume.name, part, tokens, mode).err());
        }
        if !missing.is_empty() {
            return Err(aggregate(missing));
        }
    }
    Ok(files)
}

struct Source<'a> {
    shared: &'a Shared,
    wanted: &'a Wanted,
    ip: Option<Ipv4Addr>,
}

/// Several errors as one (`k8s.io/apimachinery/pkg/util/errors`).
fn aggregate(errors: Vec<String>) -> String {
    let mut different: Vec<String> = Vec::new();
    for error in errors {
        if !different.contains(&error) {
            different.push(error);
        }
    }
    let all = different.join(", ");
    if different.len() == 1 { all } else { format!("[{all}]") }
}

impl Source<'_> {
    /// One source of a projected volume.
    fn part(
        &self,
        files: &mut Files,
        volume: &str,
        part: &VolumeProjection,
        tokens: &[Token],
        mode: i32,
    ) -> Result<(), String> {
        if let Some(map) = &part.config_map {
            self.config_map(files, &map.name, map.items.as_deref(), map.optional, mode)
        } else if let Some(secret) = &part.secret {
            self.secret(files, &secret.name, secret.items.as_deref(), secret.optional, mode)
        } else if let Some(downward) = &part.downward_api {
            self.downward(files, downward.items.as_deref(), mode)
        } else if let Some(token) = &part.service_account_token {
            let found = tokens.iter().find(|t| t.volume == volume && t.path == token.path);
            let (text, _) = found
                .and_then(|t| t.current.as_ref())
                .ok_or("failed to fetch token: the master has not answered yet")?;
            let (mode, owner) = self.token_access(mode);
            let file = File { bytes: text.clone().into_bytes(), mode, owner };
            files.insert(PathBuf::from(&token.path), file);
            Ok(())
        } else {
            Err("this source of a projected volume is not supported by Sampan".to_owned())
        }
    }

    fn config_map(
        &self,
        files: &mut Files,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), String> {
        let optional = optional == Some(true);
        let Some(map) = self.shared.ledger.config_map(&self.wanted.namespace, name) else {
            return if optional { Ok(()) } else { Err(format!("configmap {name:?} not found")) };
        };
        let text = map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
        let binary = map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
        pick(files, text.chain(binary), items, optional, mode, "configmap references non-existent config key")
    }

    fn secret(
        &self,
        files: &mut Files,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), String> {
        let optional = optional == Some(true);
        let Some(secret) = self.shared.ledger.secret(&self.wanted.namespace, name) else {
            return if optional { Ok(()) } else { Err(format!("secret {name:?} not found")) };
        };
        let all = secret.data.into_iter().flatten().map(|(k, v)| (k, v.0));
        pick(files, all, items, optional, mode, "references non-existent secret key")
    }

    fn downward(
        &self,
        files: &mut Files,
        items: Option<&[DownwardAPIVolumeFile]>,
        mode: i32,
    ) -> Result<(), String> {
        let facts = self.shared.facts(self.wanted, self.ip);
        for item in items.into_iter().flatten() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => downward::field(self.wanted, &field.field_path, &facts)?,
                (None, Some(resource)) => downward::resource(self.wanted, None, resource, &facts)?,
                (None, None) => continue,
            };
            let mode = item.mode.unwrap_or(mode) as u32;
            files.insert(PathBuf::from(&item.path), File { bytes: text.into_bytes(), mode, owner: None });
        }
        Ok(())
    }

    /// Mode and owner of a token: it belongs to the one user of the pod, if there is one, and is for nobody
    /// else but the pod's group.
    fn token_access(&self, mode: i32) -> (u32, Option<u32>) {
        let context = self.wanted.spec.security_context.as_ref();
        let pod = context.and_then(|c| c.run_as_user);
        let mut users = self
            .wanted
            .containers()
            .filter(|(role, _)| *role != Role::Ephemeral)
            .map(|(_, c)| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod));
        let first = users.next().flatten();
        let owner = first.filter(|first| users.all(|user| user == Some(*first)));
        let alone = owner.is_some() || context.is_some_and(|c| c.fs_group.is_some());
        (if alone { 0o600 } else { mode as u32 }, owner.map(|user| user as u32))
    }
}

fn pick(
    files: &mut Files,
    all: impl Iterator<Item = (String, Vec<u8>)>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    missing: &str,
) -> Result<(), String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files
            .extend(all.map(|(k, bytes)| (PathBuf::from(k), File { bytes, mode: mode as u32, owner: None })));
        return Ok(());
    };
    let mut all: std::collections::BTreeMap<String, Vec<u8>> = all.collect();
    for item in items {
        match all.get_mut(&item.key) {
            Some(bytes) => {
                let mode = item.mode.unwrap_or(mode) as u32;
                files.insert(PathBuf::from(&item.path), File { bytes: bytes.clone(), mode, owner: None });
            }
            None if optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_is_missing_is_told_once() {
        let told = |errors: &[&str]| aggregate(errors.iter().map(|e| (*e).to_owned()).collect());
        assert_eq!(told(&["a", "a"]), "a");
        assert_eq!(told(&["a", "b", "a"]), "[a, b]");
    }

    #[test]
    fn a_token_is_replaced_by_its_age_and_at_once_when_a_clock_was_set() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let minutes = SignedDuration::from_mins;
        let left = |life: i64, expires_in: SignedDuration, fresh: bool| {
            let token = Token {
                volume: "v".to_owned(),
                path: "token".to_owned(),
                audiences: Vec::new(),
                expiration_seconds: life,
                current: Some((String::new(), now + expires_in)),
                fresh,
            };
            token.refresh_in(now).unwrap().as_secs() / 60
        };
        for (life, expires_in, fresh, expected) in [
            (3600, minutes(60), true, 48),
            (3600, minutes(30), false, 18),
            (3600, minutes(5), false, 0),
            (7 * 86_400, minutes(7 * 1440), true, 1440),
            // A month went by.
            (3600, minutes(-43_200), false, 0),
            // The clock was set back.
            (3600, minutes(1440), false, 0),
            // Nobody knows yet whose clock is wrong: not again and again.
            (3600, minutes(-5_000_000), true, 48),
            (3600, minutes(5_000_000), true, 48),
        ] {
            assert_eq!(left(life, expires_in, fresh), expected, "{life} s, ends in {expires_in:?}, {fresh}");
        }
    }
}
