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
