//! The whole of a cluster in one file: objects, authority, keys, the cluster's id.
//!
//! `sampan backup FILE` writes it while the server runs; `sampan server --restore FILE` begins with it
//! on another board. The file is a tar in zstd, readable by its owner alone: who has it is the cluster.
//! Invariants: a file is there whole or not at all; a restore touches nothing when the file is not
//! good, never replaces a cluster, and raises the cluster's epoch, so that nodes that have seen it no
//! longer obey the master that was left behind.

use std::{
    fs,
    io::{Read, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{
    api::pki,
    clock::{self, Clock as _, SystemClock},
    ids, store,
};

/// The form of the file.
const FORMAT: u32 = 1;
/// zstd's level: a board is patient here, an USB stick is not large.
const LEVEL: i32 = 6;
const META: &str = "backup.json";
const STORE: &str = "state.db";
const CLUSTER: &str = "cluster-id";
const EPOCH: &str = "epoch";
/// What a server's state is made of beside the store, with the modes of the files.
const PARTS: &[(&str, u32)] =
    &[(CLUSTER, 0o644), (EPOCH, 0o644), ("pki/ca.crt", 0o644), ("pki/ca.key", 0o600), ("pki/sa.key", 0o600)];
/// The parts that every cluster has.
const NEEDED: &[&str] = &[STORE, CLUSTER, "pki/ca.crt", "pki/ca.key", "pki/sa.key"];
/// Names the backup that a server's state came from.
const RESTORED: &str = "restored-from";
/// A part of a backup that is not the store is small (bytes).
const PART_BYTES_MAX: u64 = 1 << 20;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub format: u32,
    pub version: String,
    pub cluster: String,
    pub time: String,
}

/// Copies the state of the server that uses `data_dir` into `file`.
///
/// # Errors
/// There is no server's state, or a file cannot be read or written.
pub fn backup(data_dir: &Path, file: &Path) -> anyhow::Result<Meta> {
    let state = data_dir.join("server");
    let database = state.join(STORE);
    if !database.exists() {
        bail!("{} does not exist: this board is no master (--data-dir?)", database.display());
    }
    let beside = |suffix: &str| PathBuf::from(format!("{}.{suffix}", file.display()));
    let (part, copy) = (beside("new"), beside("db"));
    let written = write(&state, &database, &part, &copy);
    // Not there when all went well.
    let _ = fs::remove_file(&copy);
    let meta = written.inspect_err(|_| drop(fs::remove_file(&part)))?;
    fs::rename(&part, file).with_context(|| format!("write {}", file.display()))?;
    sync_folder_of(file)?;
    Ok(meta)
}

fn write(state: &Path, database: &Path, part: &Path, copy: &Path) -> anyhow::Result<Meta> {
    let failed = || format!("write {}", part.display());
    // What a killed backup left.
    let _ = fs::remove_file(part);
    let out =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(part).with_context(failed)?;
    store::copy(database, copy)?;
    fs::set_permissions(copy, fs::Permissions::from_mode(0o600)).with_context(failed)?;
    let meta = Meta {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: read(&state.join(CLUSTER))?.trim().to_owned(),
        time: clock::rfc3339_seconds(SystemClock.now()),
    };
    let mut tar = tar::Builder::new(zstd::Encoder::new(out, LEVEL).with_context(failed)?);
    let mut append = |name: &str, mode: u32, bytes: &mut dyn Read, size: u64| -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(mode);
        tar.append_data(&mut header, name, bytes).with_context(failed)
    };
    let text = serde_json::to_vec_pretty(&meta)?;
    append(META, 0o600, &mut text.as_slice(), text.len() as u64)?;
    for (name, mode) in PARTS {
        let path = state.join(name);
        if path.exists() {
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            append(name, *mode, &mut bytes.as_slice(), bytes.len() as u64)?;
        }
    }
    let mut objects = fs::File::open(copy).with_context(failed)?;
    let size = objects.metadata().with_context(failed)?.len();
    append(STORE, 0o600, &mut objects, size)?;
    let mut out = tar.into_inner().and_then(zstd::Encoder::finish).with_context(failed)?;
    out.flush().and_then(|()| out.sync_all()).with_context(failed)?;
    Ok(meta)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn sync_folder_of(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("sync {}", folder.display()))
}

/// Makes the state in `file` the state of the server that will use `data_dir`, unless it came from
/// there before.
///
/// # Errors
/// The file is not good, or another cluster is there.
pub fn restore(data_dir: &Path, file: &Path) -> anyhow::Result<()> {
    let state = data_dir.join("server");
    let known = fs::read_to_string(state.join(RESTORED)).ok();
    if known.is_some() && !file.exists() {
        tracing::info!(file = %file.display(), "restored before; the backup is no longer needed");
        return Ok(());
    }
    let digest = digest_of(file)?;
    if known.as_deref() == Some(digest.as_str()) {
        tracing::info!(file = %file.display(), "this backup was restored before");
        return Ok(());
    }
    if state.join(STORE).exists() {
        bail!(
            "--restore {}: there is a cluster in {} already; move it away first",
            file.display(),
            state.display()
        );
    }
    let fresh = data_dir.join("server.restoring");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("remove {}", fresh.display()))?;
    }
    let meta = unpack(file, &fresh).with_context(|| format!("--restore {}", file.display()))?;
    store::verify(&fresh.join(STORE))?;
    let epoch = epoch(&fresh)? + 1;
    pki::write_file(&fresh.join(EPOCH), epoch.to_string().as_bytes(), 0o644)?;
    pki::write_file(&fresh.join(RESTORED), digest.as_bytes(), 0o644)?;
    if state.exists() {
        fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
    }
    fs::rename(&fresh, &state).with_context(|| format!("write {}", state.display()))?;
    sync_folder_of(&state)?;
    tracing::info!(cluster = meta.cluster, made = meta.time, epoch, "the cluster was restored");
    Ok(())
}

/// How often the cluster with this state was restored.
///
/// # Errors
/// The note of it cannot be read.
pub fn epoch(state: &Path) -> anyhow::Result<u64> {
    let path = state.join(EPOCH);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn digest_of(file: &Path) -> anyhow::Result<String> {
    let failed = || format!("read {}", file.display());
    let mut input = fs::File::open(file).with_context(failed)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match input.read(&mut buffer).with_context(failed)? {
            0 => return Ok(ids::hex(context.finish().as_ref())),
            count => context.update(&buffer[..count]),
        }
    }
}

/// Unpacks what belongs to a backup and nothing else; all of it is synced.
fn unpack(file: &Path, folder: &Path) -> anyhow::Result<Meta> {
    let mut archive = tar::Archive::new(zstd::Decoder::new(fs::File::open(file)?)?);
    let mut meta: Option<Meta> = None;
    let mut found = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        if name == META {
            let mut text = String::new();
            entry.by_ref().take(PART_BYTES_MAX).read_to_string(&mut text)?;
            meta = Some(serde_json::from_str(&text)?);
            continue;
        }
        let mode = match PARTS.iter().find(|(part, _)| *part == name) {
            Some((_, mode)) if entry.size() <= PART_BYTES_MAX => *mode,
            None if name == STORE => 0o600,
            _ => bail!("{name:?} does not belong into a backup"),
        };
        let path = folder.join(&name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        std::io::copy(&mut entry, &mut out)?;
        out.sync_all()?;
        found.push(name);
    }
    let Some(meta) = meta else { bail!("this is no backup of a cluster") };
    if meta.format > FORMAT {
        bail!("it was written by a newer version ({})", meta.version);
    }
    if let Some(missing) = NEEDED.iter().find(|part| !found.iter().any(|name| name == *part)) {
        bail!("{missing} is missing in it");
    }
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::pki::Pki,
        store::{Change, Expect, Key, Store, Write},
    };

    async fn write_one(store: &Store, name: &str) {
        let value = serde_json::json!({"metadata": {"name": name}});
        let change = Change::Put { value, durable: true };
        let write = Write { key: Key::new("configmaps", "default", name), expect: Expect::Absent, change };
        store.commit(vec![write]).await.unwrap();
    }

    #[tokio::test]
    async fn a_backup_of_a_running_server_begins_a_cluster_elsewhere_once() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = from.path().join("cluster.backup");
        assert!(backup(from.path(), &file).unwrap_err().to_string().contains("is no master"));
        let state = from.path().join("server");
        let store = Store::open(&state.join(STORE)).unwrap();
        let pki = Pki::open(&state.join("pki")).unwrap();
        fs::write(state.join(CLUSTER), "abc").unwrap();
        write_one(&store, "before").await;
        assert_eq!(backup(from.path(), &file).unwrap().cluster, "abc");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        write_one(&store, "after").await;

        restore(to.path(), &file).unwrap();
        let restored = to.path().join("server");
        assert_eq!(epoch(&restored).unwrap(), 1);
        assert_eq!(Pki::open(&restored.join("pki")).unwrap().ca_pem(), pki.ca_pem());
        let again = Store::open(&restored.join(STORE)).unwrap();
        let names = |store: &Store| {
            let all = store.list("configmaps", None).items;
            all.iter().map(|o| o.key.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&again), ["before"]);
        // The same again changes nothing; another one is refused.
        restore(to.path(), &file).unwrap();
        assert_eq!(epoch(&restored).unwrap(), 1);
        backup(from.path(), &file).unwrap();
        assert!(restore(to.path(), &file).unwrap_err().to_string().contains("there is a cluster"));
        // What is cut off or no backup leaves nothing behind.
        let bytes = fs::read(&file).unwrap();
        let other = tempfile::tempdir().unwrap();
        for bad in [&bytes[..bytes.len() / 2], b"no backup".as_slice()] {
            fs::write(&file, bad).unwrap();
            assert!(restore(other.path(), &file).is_err());
            assert!(!other.path().join("server").exists());
        }
    }
}
