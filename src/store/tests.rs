use serde_json::json;

use super::*;

fn put(name: &str, expect: Expect, data: &str) -> Write {
    let value = json!({"metadata": {"name": name, "uid": "u", "labels": {"app": name}}, "data": data});
    Write {
        key: Key::new("configmaps", "default", name),
        expect,
        change: Change::Put { value, durable: true },
    }
}

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(&dir.path().join("state.db")).unwrap()
}

async fn write(store: &Store, write: Write) -> Arc<Object> {
    store.commit(vec![write]).await.unwrap().remove(0)
}

#[test]
fn types_are_read_without_managed_fields() {
    use k8s_openapi::api::core::v1::ConfigMap;
    let tricky = json!({"f:a": {"k:{\"x\":\"]\"}": {}, ".": [[], "]", "\\"]}});
    let fields = json!([{"manager": "m", "fieldsV1": tricky}, {"manager": "n"}]);
    for (labels, name) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut value =
            json!({"data": {"text": "\"managedFields\":[1]"}, "metadata": {"managedFields": fields}});
        if labels {
            value["metadata"]["labels"] = json!({"a": "b"});
        }
        if name {
            value["metadata"]["name"] = "c".into();
        }
        let object = Object::unsaved(Key::new("configmaps", "default", "c"), &value);
        let map = object.typed::<ConfigMap>();
        assert!(map.metadata.managed_fields.is_none());
        assert_eq!(map.metadata.name.is_some(), name);
        assert_eq!(map.metadata.labels.is_some(), labels);
        assert_eq!(map.data.as_ref().unwrap()["text"], "\"managedFields\":[1]");
        assert_eq!(object.value()["metadata"]["managedFields"], fields);
    }
}

#[tokio::test]
async fn an_acknowledged_write_is_there_after_reopening_and_revisions_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let first = write(&store, put("a", Expect::Absent, "1")).await;
    assert_eq!(first.value()["metadata"]["resourceVersion"], first.revision.to_string());
    assert_eq!(first.meta.label("app"), Some("a"));
    drop(store); // no close: as after a kill

    let store = open(&dir);
    let again = store.get(&first.key).unwrap();
    assert_eq!(again.body(), first.body());
    let second = write(&store, put("b", Expect::Absent, "2")).await;
    assert!(second.revision > first.revision);
}

#[tokio::test]
async fn a_commit_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    write(&store, put("b", Expect::Absent, "1")).await;
    let both = vec![put("a", Expect::Absent, "1"), put("b", Expect::Absent, "2")];
    let refused = store.commit(both).await.unwrap_err();
    assert!(matches!(refused, CommitError::Conflict { index: 1, current: Some(_), .. }));
    assert!(store.get(&Key::new("configmaps", "default", "a")).is_none());
}

#[tokio::test]
async fn a_write_on_a_stale_revision_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let a = write(&store, put("a", Expect::Absent, "1")).await;
    write(&store, put("a", Expect::At(a.revision), "2")).await;
    let stale = store.commit(vec![put("a", Expect::At(a.revision), "3")]).await;
    assert!(matches!(stale, Err(CommitError::Conflict { .. })));
}

#[tokio::test]
async fn a_watch_replays_and_follows() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let a = write(&store, put("a", Expect::Absent, "1")).await;
    let mut watch = store.watch("configmaps", a.revision).unwrap();
    assert!(watch.try_next().unwrap().is_none());
    let b = write(&store, put("b", Expect::Absent, "1")).await;
    let last = a.value();
    let delete =
        Write { key: a.key.clone(), expect: Expect::At(a.revision), change: Change::Delete { last } };
    write(&store, delete).await;
    let created = watch.next().await.unwrap();
    assert_eq!((created.kind, created.revision()), (EventKind::Created, b.revision));
    let deleted = watch.next().await.unwrap();
    assert_eq!(deleted.kind, EventKind::Deleted);
    assert!(deleted.object.revision > b.revision);
    assert_eq!(watch.revision().unwrap(), store.revision());
}

#[tokio::test]
async fn a_list_can_be_asked_for_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let a = write(&store, put("a", Expect::Absent, "1")).await;
    let then = write(&store, put("b", Expect::Absent, "1")).await.revision;
    write(&store, put("a", Expect::At(a.revision), "2")).await;
    write(&store, put("c", Expect::Absent, "1")).await;
    let old = store.list_at("configmaps", Some("default"), then).unwrap();
    let names: Vec<_> = old.items.iter().map(|o| (&*o.key.name, o.value()["data"].clone())).collect();
    assert_eq!(names, [("a", json!("1")), ("b", json!("1"))]);
    assert_eq!(store.list("configmaps", None).items.len(), 3);
}

#[tokio::test]
async fn history_is_bounded_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut a = write(&store, put("a", Expect::Absent, "0")).await;
    let start = a.revision;
    let mut slow = store.watch("configmaps", start).unwrap();
    for n in 0..1100 {
        let mut write = put("a", Expect::At(a.revision), &n.to_string());
        if let Change::Put { durable, .. } = &mut write.change {
            *durable = false;
        }
        a = store.commit(vec![write]).await.unwrap().remove(0);
    }
    assert!(matches!(store.watch("configmaps", start), Err(StoreError::Expired { .. })));
    assert!(matches!(slow.next().await, Err(StoreError::Expired { .. })));
}

#[tokio::test]
async fn memory_only_objects_never_reach_the_disk_but_their_revisions_are_not_reused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut event = put("e", Expect::Absent, "1");
    if let Change::Put { durable, .. } = &mut event.change {
        *durable = false;
    }
    let event = write(&store, event).await;
    assert!(!event.is_durable());
    drop(store);
    let store = open(&dir);
    assert!(store.get(&event.key).is_none());
    assert!(write(&store, put("a", Expect::Absent, "1")).await.revision > event.revision);
}

#[tokio::test]
async fn a_damaged_file_is_replaced_by_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = open(&dir);
    let a = write(&store, put("a", Expect::Absent, "1")).await;
    store.backup(&path.with_extension("snapshot")).unwrap();
    store.close().await;
    std::fs::write(&path, b"this is not a database, whatever its name says").unwrap();
    let store = open(&dir);
    assert!(store.get(&a.key).is_some());
    assert!(dir.path().join("state.db.damaged").exists());
}

/// What the child of [`nothing_acknowledged_is_lost_when_the_power_goes`] is told its folder by.
const POWER_CUT: &str = "SAMPAN_TEST_POWER_CUT";

#[test]
#[ignore = "the child of the power-cut test: writes until it is killed"]
fn writes_until_it_is_killed() {
    use std::io::Write as _;
    let Ok(folder) = std::env::var(POWER_CUT) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&Path::new(&folder).join("state.db")).unwrap();
        for number in 0u64.. {
            // A new object, and another one changed, in one commit: both or none.
            let text = "x".repeat(number as usize % 3_000);
            let value = serde_json::json!({"metadata": {"name": "n"}, "number": number, "text": text});
            let put = |name: &str, expect| Write {
                key: Key::new("configmaps", "default", name),
                expect,
                change: Change::Put { value: value.clone(), durable: true },
            };
            let one_of_many = format!("o{}", number % 500);
            let expect = |name: &str| {
                let old = store.get(&Key::new("configmaps", "default", name));
                old.map_or(Expect::Absent, |old| Expect::At(old.revision))
            };
            let writes = vec![put(&one_of_many, expect(&one_of_many)), put("counter", expect("counter"))];
            store.commit(writes).await.unwrap();
            println!("acknowledged {number}");
            std::io::stdout().flush().unwrap();
        }
    });
}

/// The files as they are while the writer stands still are what a power cut leaves, and then some: the
/// end of the WAL may be torn. `SAMPAN_POWER_CUTS=1000` for a long run.
#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    use std::{
        io::{BufRead as _, Write as _},
        process::{Command, Stdio},
        sync::atomic::{AtomicU64, Ordering},
    };
    let cuts = std::env::var("SAMPAN_POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let live = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::writes_until_it_is_killed", "--ignored", "--nocapture"])
        .env(POWER_CUT, live.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let newest = Arc::new(AtomicU64::new(0));
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let told = Arc::clone(&newest);
    let reading = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("acknowledged ").and_then(|n| n.parse().ok()) {
                told.store(number, Ordering::SeqCst);
            }
        }
    });
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    let mut seen = 0;
    for cut in 0..cuts {
        let [a, b, c] = crate::ids::random_bytes();
        let goal = newest.load(Ordering::SeqCst) + 1 + u64::from(a) % 40;
        while newest.load(Ordering::SeqCst) < goal {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended");
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_micros(u64::from(b) * 20));
        let acknowledged = newest.load(Ordering::SeqCst);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        while !stopped() {
            std::thread::yield_now();
        }
        // Of its own for each cut: a store that was dropped may still be closing its files.
        let copy = tempfile::tempdir().unwrap();
        for file in ["state.db", "state.db-wal"] {
            if live.path().join(file).exists() {
                std::fs::copy(live.path().join(file), copy.path().join(file)).unwrap();
            }
        }
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
        if cut % 2 == 1 {
            // A torn write at the end of the WAL.
            let mut wal =
                std::fs::File::options().append(true).open(copy.path().join("state.db-wal")).unwrap();
            wal.write_all(&vec![c; usize::from(c) * 16]).unwrap();
        }
        let store = Store::open(&copy.path().join("state.db")).unwrap();
        let number = |name: &str| {
            let object = store.get(&Key::new("configmaps", "default", name));
            object.map(|object| object.value()["number"].as_u64().unwrap())
        };
        let counter = number("counter").expect("the counter");
        assert!(counter >= acknowledged, "{acknowledged} was acknowledged, {counter} is there");
        assert_eq!(number(&format!("o{}", counter % 500)), Some(counter), "half a commit is there");
        seen = counter;
    }
    assert!(seen > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    reading.join().unwrap();
}
