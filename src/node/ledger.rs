//! The node's own memory on disk: desired items with their generation, and a record a pod.
//!
//! Invariants: what is to be acted upon is on disk first (WAL, `synchronous=FULL`); all writes that
//! wait share one sync; nothing is written when nothing changes; a damaged file is put aside, and
//! the next hello fills a new one.
//! Deliberately absent: the meaning of items and records.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rusqlite::{Connection, params};
use serde::de::DeserializeOwned;

use super::{env::Lookup, record::Record};
use crate::{
    crash,
    ids::Generation,
    mqtt::messages::{Item, ItemKey, ItemKind, SetDigest},
};

/// SQLite's page cache (KiB, negative by its convention); everything is read once, at start.
const PAGE_CACHE_KIB: i64 = -128;
/// Pages in the WAL before they move to the file (4 KiB each).
const WAL_PAGES_MAX: i64 = 256;

/// Why the ledger could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("open ledger {path}: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("create {path}: {source}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error("write ledger: {0}")]
    Write(rusqlite::Error),
    #[error("write ledger: the process is stopping")]
    Stopped,
}

#[derive(Clone)]
enum Write {
    Put(Arc<Item>),
    Delete(ItemKey),
    Meta(&'static str, String),
    /// (uid, JSON); `None` removes it.
    Record(String, Option<String>),
}

#[derive(Default)]
struct Set {
    generation: Generation,
    items: BTreeMap<ItemKey, Arc<Item>>,
    /// Of the node's own items.
    own: SetDigest,
    /// Of those that all nodes share.
    shared: SetDigest,
    epoch: u64,
}

impl Set {
    fn digest(&mut self, kind: ItemKind) -> &mut SetDigest {
        if kind.is_shared() { &mut self.shared } else { &mut self.own }
    }
}

/// The ledger. Share it in an `Arc`.
pub struct Ledger {
    set: Mutex<Set>,
    waiting: Arc<Mutex<Vec<Write>>>,
    connection: Arc<Mutex<Connection>>,
    /// Records as they are on disk.
    saved: Mutex<BTreeMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of a ledger lock panics")
}

impl Ledger {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| LedgerError::Create { path: folder.into(), source })?;
        }
        let Opened { connection, set, saved } = match connect(path) {
            Ok(opened) => opened,
            Err(error) if is_damage(&error) => {
                tracing::error!(path = %path.display(), %error,
                    "the ledger is damaged; starting with an empty one, the damaged file is kept beside it");
                for suffix in ["", "-wal", "-shm"] {
                    let from = format!("{}{suffix}", path.display());
                    // A side file may well be absent.
                    let _ = std::fs::rename(&from, format!("{}.damaged{suffix}", path.display()));
                }
                connect(path).map_err(|source| LedgerError::Open { path: path.into(), source })?
            }
            Err(source) => return Err(LedgerError::Open { path: path.into(), source }),
        };
        Ok(Self {
            set: Mutex::new(set),
            waiting: Arc::default(),
            connection: Arc::new(Mutex::new(connection)),
            saved: Mutex::new(saved),
        })
    }

    pub fn generation(&self) -> Generation {
        lock(&self.set).generation
    }

    /// Of the node's own items.
    pub fn digest(&self) -> String {
        lock(&self.set).own.to_string()
    }

    /// Of the items that all nodes share.
    pub fn shared_digest(&self) -> SetDigest {
        lock(&self.set).shared
    }

    /// Every key with its hash.
    pub fn hashes(&self) -> Vec<(ItemKey, String)> {
        lock(&self.set).items.iter().map(|(k, i)| (k.clone(), i.hash.clone())).collect()
    }

    pub fn item(&self, key: &ItemKey) -> Option<Arc<Item>> {
        lock(&self.set).items.get(key).cloned()
    }

    pub fn items(&self, kind: ItemKind) -> Vec<Arc<Item>> {
        lock(&self.set).items.values().filter(|i| i.key.kind == kind).cloned().collect()
    }

    /// What the digest of the node's own items would be with these changes, or, when `shared`, of those
    /// that all nodes share.
    pub fn digest_with(&self, put: &[Item], delete: &[ItemKey], shared: bool) -> String {
        let set = lock(&self.set);
        let mut digest = if shared { set.shared } else { set.own };
        let put_keys: BTreeSet<&ItemKey> = put.iter().map(|item| &item.key).collect();
        let gone = delete.iter().collect::<BTreeSet<_>>();
        for item in put_keys.union(&gone).filter_map(|key| set.items.get(*key)) {
            digest.remove(&item.key, &item.hash);
        }
        // Of two items with one key the last one counts.
        let last: BTreeMap<&ItemKey, &str> = put.iter().map(|i| (&i.key, i.hash.as_str())).collect();
        for (key, hash) in last {
            digest.add(key, hash);
        }
        digest.to_string()
    }

    /// Makes the set be of this generation, on disk when this returns.
    pub async fn apply(
        &self,
        generation: Generation,
        put: Vec<Item>,
        delete: Vec<ItemKey>,
    ) -> Result<(), LedgerError> {
        let mut writes = Vec::new();
        {
            let mut set = lock(&self.set);
            for key in delete {
                if let Some(old) = set.items.remove(&key) {
                    set.digest(key.kind).remove(&key, &old.hash);
                    writes.push(Write::Delete(key));
                }
            }
            for item in put {
                let item = Arc::new(item);
                set.digest(item.key.kind).add(&item.key, &item.hash);
                if let Some(old) = set.items.insert(item.key.clone(), Arc::clone(&item)) {
                    set.digest(old.key.kind).remove(&old.key, &old.hash);
                }
                writes.push(Write::Put(item));
            }
            if set.generation != generation {
                set.generation = generation;
                writes.push(Write::Meta("generation", generation.to_string()));
            }
        }
        self.commit(writes).await
    }

    /// The newest epoch of a master that this node has obeyed.
    pub fn epoch(&self) -> u64 {
        lock(&self.set).epoch
    }

    /// Notes a newer epoch, on disk when this returns.
    pub async fn set_epoch(&self, epoch: u64) -> Result<(), LedgerError> {
        if std::mem::replace(&mut lock(&self.set).epoch, epoch) == epoch {
            return Ok(());
        }
        self.commit(vec![Write::Meta("epoch", epoch.to_string())]).await
    }

    /// Everything that is wanted here, for who takes it all away.
    pub fn keys(&self) -> Vec<ItemKey> {
        lock(&self.set).items.keys().cloned().collect()
    }

    /// The records found at start, by uid. One that cannot be read is dropped: the pod is taken as new.
    pub fn records(&self) -> BTreeMap<String, Record> {
        lock(&self.saved)
            .iter()
            .filter_map(|(uid, text)| Some((uid.clone(), serde_json::from_str(text).ok()?)))
            .collect()
    }

    /// What is remembered of one pod.
    pub fn record(&self, uid: &str) -> Option<Record> {
        serde_json::from_str(lock(&self.saved).get(uid)?).ok()
    }

    /// Notes a pod's record, on disk when this returns; nothing happens when it is the same.
    pub async fn save(&self, uid: &str, record: &Record) -> Result<(), LedgerError> {
        let text = serde_json::to_string(record)
            .map_err(|e| LedgerError::Write(rusqlite::Error::ToSqlConversionFailure(Box::new(e))))?;
        if lock(&self.saved).get(uid) == Some(&text) {
            return Ok(());
        }
        lock(&self.saved).insert(uid.to_owned(), text.clone());
        self.commit(vec![Write::Record(uid.to_owned(), Some(text))]).await
    }

    /// Forgets a pod.
    pub async fn forget(&self, uid: &str) -> Result<(), LedgerError> {
        if lock(&self.saved).remove(uid).is_none() {
            return Ok(());
        }
        self.commit(vec![Write::Record(uid.to_owned(), None)]).await
    }

    /// Whoever gets the connection first writes for all that wait.
    async fn commit(&self, writes: Vec<Write>) -> Result<(), LedgerError> {
        if writes.is_empty() {
            return Ok(());
        }
        lock(&self.waiting).extend(writes);
        let (connection, waiting) = (Arc::clone(&self.connection), Arc::clone(&self.waiting));
        let written = tokio::task::spawn_blocking(move || {
            let mut connection = lock(&connection);
            // Taken under the connection's lock: an empty list means that ours is on disk.
            let batch = std::mem::take(&mut *lock(&waiting));
            let result = write_all(&mut connection, &batch);
            if result.is_err() {
                let mut waiting = lock(&waiting);
                let newer = std::mem::replace(&mut *waiting, batch);
                waiting.extend(newer);
            }
            result
        });
        match written.await {
            Ok(result) => result.map_err(LedgerError::Write),
            Err(_) => Err(LedgerError::Stopped),
        }
    }
}

impl Lookup for Ledger {
    fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap> {
        self.object(ItemKind::ConfigMap, namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        self.object(ItemKind::Secret, namespace, name)
    }
}

impl Ledger {
    /// An item's body as a type; `None` when it is not there (or of another shape).
    pub fn object<T: DeserializeOwned>(&self, kind: ItemKind, namespace: &str, name: &str) -> Option<T> {
        self.item(&ItemKey::new(kind, namespace, name))?.read().ok()
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

struct Opened {
    connection: Connection,
    set: Set,
    saved: BTreeMap<String, String>,
}

fn pairs(connection: &Connection, query: &str) -> rusqlite::Result<BTreeMap<String, String>> {
    let mut query = connection.prepare(query)?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn connect(path: &Path) -> rusqlite::Result<Opened> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", PAGE_CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_MAX)?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS items (
             kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
             hash TEXT NOT NULL, body TEXT NOT NULL,
             PRIMARY KEY (kind, namespace, name)) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS pods (uid TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;",
    )?;
    let mut set = Set::default();
    {
        let mut query = connection.prepare("SELECT kind, namespace, name, hash, body FROM items")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let kind: String = row.get(0)?;
            // An item of a kind that a newer version knew is left to the master to send again.
            let Ok(kind) = serde_json::from_value::<ItemKind>(kind.into()) else { continue };
            let key = ItemKey { kind, namespace: row.get(1)?, name: row.get(2)? };
            let item = Item { key: key.clone(), hash: row.get(3)?, body: row.get(4)? };
            set.digest(kind).add(&key, &item.hash);
            set.items.insert(key, Arc::new(item));
        }
    }
    let notes = pairs(&connection, "SELECT name, value FROM meta")?;
    set.generation = Generation(notes.get("generation").and_then(|v| v.parse().ok()).unwrap_or(0));
    set.epoch = notes.get("epoch").and_then(|v| v.parse().ok()).unwrap_or(0);
    let saved = pairs(&connection, "SELECT uid, record FROM pods")?;
    Ok(Opened { connection, set, saved })
}

fn write_all(connection: &mut Connection, writes: &[Write]) -> rusqlite::Result<()> {
    crash::point(crash::LEDGER);
    let transaction = connection.transaction()?;
    for write in writes {
        match write {
            Write::Put(item) => transaction
                .prepare_cached("INSERT OR REPLACE INTO items VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![
                    item.key.kind.name(),
                    item.key.namespace,
                    item.key.name,
                    item.hash,
                    item.body
                ])?,
            Write::Delete(key) => transaction
                .prepare_cached("DELETE FROM items WHERE kind = ?1 AND namespace = ?2 AND name = ?3")?
                .execute(params![key.kind.name(), key.namespace, key.name])?,
            Write::Meta(name, value) => transaction
                .prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?
                .execute(params![name, value])?,
            Write::Record(uid, Some(text)) => transaction
                .prepare_cached("INSERT OR REPLACE INTO pods VALUES (?1, ?2)")?
                .execute(params![uid, text])?,
            Write::Record(uid, None) => {
                transaction.prepare_cached("DELETE FROM pods WHERE uid = ?1")?.execute([uid])?
            }
        };
    }
    crash::point(crash::LEDGER);
    transaction.commit()?;
    crash::point(crash::LEDGER);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, body: &str) -> Item {
        Item::new(ItemKey::new(ItemKind::ConfigMap, "ns", name), body.to_owned())
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let ledger = Ledger::open(&path).unwrap();
        ledger.apply(Generation(3), vec![item("a", "{}"), item("b", "{\"x\":1}")], vec![]).await.unwrap();
        ledger.apply(Generation(4), vec![], vec![item("a", "").key]).await.unwrap();
        let record = Record { epoch: 2, ip: Some([10, 0, 0, 1].into()), ..Record::default() };
        ledger.save("u", &record).await.unwrap();
        ledger.save("v", &record).await.unwrap();
        ledger.forget("v").await.unwrap();
        let digest = ledger.digest();
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!((ledger.generation(), ledger.digest()), (Generation(4), digest));
        assert_eq!(ledger.hashes().len(), 1);
        assert_eq!(ledger.records(), [("u".to_owned(), record)].into());
    }

    #[tokio::test]
    async fn a_digest_foretells_an_apply() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        ledger.apply(Generation(1), vec![item("a", "1"), item("b", "1")], vec![]).await.unwrap();
        let (put, delete) = (vec![item("b", "2"), item("c", "1")], vec![item("a", "").key]);
        let foretold = ledger.digest_with(&put, &delete, false);
        ledger.apply(Generation(2), put, delete).await.unwrap();
        assert_eq!(ledger.digest(), foretold);
        // What all nodes share has a digest of its own.
        let put = vec![Item::new(ItemKey::new(ItemKind::Service, "ns", "s"), "[]".to_owned())];
        let shared = ledger.digest_with(&put, &[], true);
        ledger.apply(Generation(2), put, vec![]).await.unwrap();
        assert_eq!((ledger.digest(), ledger.shared_digest().to_string()), (foretold, shared.clone()));
        drop(ledger);
        let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        assert_eq!(ledger.shared_digest().to_string(), shared);
    }

    #[tokio::test]
    async fn writes_that_wait_share_a_transaction_and_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let ledger = Arc::new(Ledger::open(&path).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..40 {
            let ledger = Arc::clone(&ledger);
            tasks.spawn(async move {
                ledger.save(&format!("u{n}"), &Record { epoch: n, ..Record::default() }).await.unwrap();
            });
        }
        tasks.join_all().await;
        drop(ledger);
        assert_eq!(Ledger::open(&path).unwrap().records().len(), 40);
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        std::fs::write(&path, "this is no database, and long enough to be looked at".repeat(40)).unwrap();
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.generation(), Generation(0));
        assert!(dir.path().join("ledger.db.damaged").exists());
    }

    /// Copies of the files at random moments are what a power cut leaves; whatever was acknowledged
    /// before a copy began is in it. The files are copied while nobody writes: between two commits a
    /// WAL may be of any length, and have any part of it in the file already.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_acknowledged_is_lost_when_the_power_goes() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        for number in 1..150u64 {
            let body = format!("{{\"v\":\"{}\"}}", "x".repeat(number as usize * 67 % 5_000));
            let put = vec![item(&format!("i{}", number % 40), &body), item("counter", &number.to_string())];
            let delete = vec![item(&format!("i{}", (number + 20) % 40), "").key];
            ledger.apply(Generation(number), put, delete).await.unwrap();
            let record = Record { epoch: number as u32, ..Record::default() };
            ledger.save("u", &record).await.unwrap();
            if number % 7 != 0 {
                continue;
            }
            for file in ["ledger.db", "ledger.db-wal"] {
                std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
            }
            if number % 2 == 0 {
                use std::io::Write as _;
                let wal = std::fs::File::options().append(true).open(copy.path().join("ledger.db-wal"));
                wal.unwrap().write_all(&[0x5a; 3_000]).unwrap();
            }
            let found = Ledger::open(&copy.path().join("ledger.db")).unwrap();
            assert_eq!((found.generation(), found.digest()), (Generation(number), ledger.digest()));
            assert_eq!(found.records()["u"], record);
            drop(found);
            for file in std::fs::read_dir(copy.path()).unwrap() {
                std::fs::remove_file(file.unwrap().path()).unwrap();
            }
        }
    }
}
