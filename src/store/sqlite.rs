//! The SQLite file: schema, opening with repair, writing, copying.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Key, Meta, Object, StoreError};
use crate::ids::Revision;

const SCHEMA_VERSION: i64 = 1;
/// Revisions that may be handed out to memory-only objects before the next note on disk.
const REVISION_RESERVE: u64 = 1 << 20;
/// How old the snapshot may grow before an opening refreshes it.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_hours(24);
/// SQLite's page cache (KiB, negative by its convention); the view is the real cache.
const PAGE_CACHE_KIB: i64 = -256;
/// Pages in the WAL before they move to the file (4 KiB each), and its size on disk after that.
const WAL_PAGES_MAX: i64 = 512;
const WAL_BYTES_KEPT: i64 = 1 << 20;

/// The writer's connection.
pub(super) struct Database {
    connection: Connection,
    /// Revisions below this may be used without a further note on disk.
    ceiling: Revision,
    open_transaction: bool,
}

/// Opens the file, falling back to the snapshot when it is damaged.
pub(super) fn open(path: &Path) -> Result<(Database, Vec<Arc<Object>>, Revision), StoreError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| StoreError::Create { path: folder.into(), source })?;
    }
    let connection = match connect(path).and_then(|c| check(&c).map(|()| c)) {
        Ok(connection) => connection,
        Err(error) if is_damage(&error) => recover(path, &error)?,
        Err(source) => {
            return Err(StoreError::Open { path: path.into(), source });
        }
    };
    let failed = |source| StoreError::Open { path: path.into(), source };
    prepare(&connection, path)?;
    let objects = load(&connection).map_err(failed)?;
    let noted: i64 = connection
        .query_row("SELECT value FROM meta WHERE name = 'ceiling'", [], |row| row.get(0))
        .optional()
        .map_err(failed)?
        .unwrap_or(1);
    let newest = objects.iter().map(|o| o.revision.0).max().unwrap_or(0);
    let revision = Revision(newest.max(noted as u64));
    let mut database = Database { connection, ceiling: revision, open_transaction: false };
    database.reserve(revision).map_err(failed)?;
    snapshot_if_old(path);
    Ok((database, objects, revision))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", PAGE_CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_MAX)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    Ok(connection)
}

fn check(connection: &Connection) -> rusqlite::Result<()> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, Some(verdict)))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

fn snapshot_path(path: &Path) -> PathBuf {
    path.with_extension("snapshot")
}

/// Puts the damaged file aside and the snapshot in its place.
fn recover(path: &Path, damage: &rusqlite::Error) -> Result<Connection, StoreError> {
    let damaged = || StoreError::Damaged { path: path.into(), detail: damage.to_string() };
    let snapshot = snapshot_path(path);
    let good = connect(&snapshot).and_then(|c| check(&c));
    if !snapshot.exists() || good.is_err() {
        return Err(damaged());
    }
    tracing::error!(
        path = %path.display(),
        error = %damage,
        "the store is damaged; going on from the last snapshot, the damaged file is kept beside it"
    );
    for suffix in ["", "-wal", "-shm"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        let to = PathBuf::from(format!("{}.damaged{suffix}", path.display()));
        if from.exists() {
            fs::rename(&from, &to).map_err(|source| StoreError::Create { path: to, source })?;
        }
    }
    fs::copy(&snapshot, path).map_err(|source| StoreError::Create { path: path.into(), source })?;
    connect(path).map_err(|source| StoreError::Open { path: path.into(), source })
}

fn prepare(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Open { path: path.into(), source };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer { path: path.into(), found, known: SCHEMA_VERSION });
    }
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    connection
        .execute_batch(&format!(
            "BEGIN;
             CREATE TABLE objects (
                 id INTEGER PRIMARY KEY,
                 resource TEXT NOT NULL,
                 namespace TEXT NOT NULL,
                 name TEXT NOT NULL,
                 revision INTEGER NOT NULL,
                 body BLOB NOT NULL,
                 UNIQUE (resource, namespace, name)
             );
             CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
             PRAGMA user_version = {SCHEMA_VERSION};
             COMMIT;"
        ))
        .map_err(failed)
}

fn load(connection: &Connection) -> rusqlite::Result<Vec<Arc<Object>>> {
    let mut query =
        connection.prepare("SELECT id, resource, namespace, name, revision, body FROM objects")?;
    let mut rows = query.query([])?;
    let mut objects = Vec::new();
    while let Some(row) = rows.next()? {
        let text = |i| -> rusqlite::Result<Arc<str>> { row.get::<_, String>(i).map(Into::into) };
        let body: Vec<u8> = row.get(5)?;
        let value = serde_json::from_slice(&body).map_err(|e| {
            rusqlite::Error::FromSqlConversionFailure(5, rusqlite::types::Type::Blob, Box::new(e))
        })?;
        objects.push(Arc::new(Object {
            key: Key { resource: text(1)?, namespace: text(2)?, name: text(3)? },
            revision: Revision(row.get::<_, i64>(4)? as u64),
            meta: Meta::of(&value),
            body: Bytes::from(body),
            row: Some(row.get(0)?),
            typed: OnceLock::new(),
        }));
    }
    Ok(objects)
}

fn snapshot_if_old(path: &Path) {
    let snapshot = snapshot_path(path);
    let fresh = |at: SystemTime| at.elapsed().is_ok_and(|age| age < SNAPSHOT_AGE_MAX);
    if fs::metadata(&snapshot).and_then(|m| m.modified()).is_ok_and(fresh) {
        return;
    }
    if let Err(error) = backup(path, &snapshot) {
        tracing::warn!(%error, "no snapshot of the store was made");
    }
}

/// Copies the database at `path` to `target` through a file beside it, synced and renamed.
pub(super) fn backup(path: &Path, target: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Backup { path: target.into(), source };
    let made = |source| StoreError::Create { path: target.into(), source };
    let part = target.with_extension("part");
    let _ = fs::remove_file(&part);
    let source = Connection::open(path).map_err(failed)?;
    source.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    source.execute("VACUUM INTO ?1", [part.to_string_lossy()]).map_err(failed)?;
    fs::File::open(&part).and_then(|f| f.sync_all()).map_err(made)?;
    fs::rename(&part, target).map_err(made)?;
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(made)
}

/// Looks at a file that nobody uses.
pub(super) fn verify(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Open { path: path.into(), source };
    let connection = connect(path).map_err(failed)?;
    check(&connection).map_err(|error| match error {
        rusqlite::Error::SqliteFailure(_, Some(detail)) => StoreError::Damaged { path: path.into(), detail },
        source => StoreError::Open { path: path.into(), source },
    })?;
    prepare(&connection, path)
}

impl Database {
    fn begin(&mut self) -> rusqlite::Result<()> {
        if !self.open_transaction {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            self.open_transaction = true;
        }
        Ok(())
    }

    /// Writes an object into its row, or a new one. Returns the row.
    pub fn put(&mut self, row: Option<i64>, object: &Object) -> rusqlite::Result<i64> {
        self.begin()?;
        let revision = object.revision.0 as i64;
        if let Some(row) = row {
            self.connection
                .prepare_cached("UPDATE objects SET revision = ?2, body = ?3 WHERE id = ?1")?
                .execute(params![row, revision, &object.body()[..]])?;
            return Ok(row);
        }
        let Key { resource, namespace, name } = &object.key;
        self.connection
            .prepare_cached(
                "INSERT INTO objects (resource, namespace, name, revision, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .insert(params![resource, namespace, name, revision, &object.body()[..]])
    }

    pub fn delete(&mut self, row: i64) -> rusqlite::Result<()> {
        self.begin()?;
        self.connection.prepare_cached("DELETE FROM objects WHERE id = ?1")?.execute([row])?;
        Ok(())
    }

    /// Ends the group; `newest` is the newest revision it used. Synced when this returns.
    pub fn finish(&mut self, newest: Revision) -> rusqlite::Result<()> {
        if newest >= self.ceiling {
            self.reserve(newest)?;
        }
        if self.open_transaction {
            self.connection.execute_batch("COMMIT")?;
            self.open_transaction = false;
        }
        Ok(())
    }

    /// Drops what the group has written so far.
    pub fn rollback(&mut self) {
        if self.open_transaction {
            let _ = self.connection.execute_batch("ROLLBACK");
            self.open_transaction = false;
        }
    }

    /// Notes on disk that revisions up to a reserve above `newest` may be in use.
    fn reserve(&mut self, newest: Revision) -> rusqlite::Result<()> {
        let ceiling = Revision(newest.0 + REVISION_RESERVE);
        self.note_ceiling(ceiling)?;
        self.ceiling = ceiling;
        Ok(())
    }

    fn note_ceiling(&self, ceiling: Revision) -> rusqlite::Result<()> {
        self.connection.execute(
            "INSERT OR REPLACE INTO meta (name, value) VALUES ('ceiling', ?1)",
            [ceiling.0 as i64],
        )?;
        Ok(())
    }

    /// A clean end: gives unused revisions back and returns free pages to the file system.
    pub fn close(&mut self, newest: Revision) -> rusqlite::Result<()> {
        self.note_ceiling(newest)?;
        self.connection.execute_batch("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")
    }
}
