//! What the store promises: acknowledged is durable, one revision grows, a conflict is seen, a watch misses nothing.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;
use serde_json::json;

use super::*;

const MAPS: &str = "core/configmaps";

fn write(key: &str, expect: Expect, value: u64) -> Write {
    let name = key.rsplit('/').next().unwrap_or(key);
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value.to_string()}});
    Write { resource: MAPS.into(), key: key.into(), expect, change: Change::Put(Encoded::new(&object)) }
}

fn removal(key: &str, revision: u64) -> Write {
    let object = json!({"metadata": {"name": key}});
    Write {
        resource: MAPS.into(),
        key: key.into(),
        expect: Expect::Revision(revision),
        change: Change::Delete(Encoded::new(&object)),
    }
}

#[tokio::test]
async fn a_write_is_read_back_with_its_revision_and_after_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Store::open(dir.path()).expect("open");
    let one = store.write(write("default/a", Expect::Absent, 1)).await.expect("a");
    let two = store.write(write("default/b", Expect::Absent, 2)).await.expect("b");
    assert_eq!((one.revision, two.revision, store.revision()), (1, 2, 2));
    assert_eq!(one.value()["metadata"]["resourceVersion"], "1");
    store.write(removal("default/a", 1)).await.expect("remove");
    drop(store);

    let store = Store::open(dir.path()).expect("again");
    assert_eq!(store.revision(), 3);
    assert!(store.get(MAPS, "default/a").is_none());
    let b = store.get(MAPS, "default/b").expect("b");
    assert_eq!((b.revision, &*b.json), (2, &*two.json));
    assert!(store.events_since(MAPS, 2).is_err(), "history does not reach behind the start");
    assert!(store.events_since(MAPS, 3).expect("now").0.is_empty());
}

#[tokio::test]
async fn the_slower_of_two_writers_is_told() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Store::open(dir.path()).expect("open");
    store.write(write("x", Expect::Absent, 1)).await.expect("create");
    let again = store.write(write("x", Expect::Absent, 2)).await;
    assert!(matches!(again, Err(WriteError::Conflict)));
    let (first, second) =
        tokio::join!(store.write(write("x", Expect::Revision(1), 2)), store.write(write("x", Expect::Revision(1), 3)));
    assert!(first.is_ok() != second.is_ok(), "exactly one wins, in one batch or two");
    assert_eq!(store.revision(), 2);
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Store::open(dir.path()).expect("open");
    let Err(error) = Store::open(dir.path()) else { panic!("opened twice") };
    assert!(matches!(error, LogError::Locked { .. }));
    assert!(error.to_string().contains("portolan down"), "{error}");
    store.close();
    assert!(matches!(store.write(write("x", Expect::Absent, 1)).await, Err(WriteError::Closed)));
    Store::open(dir.path()).expect("after close");
}

#[test]
fn only_its_owner_reads_the_state_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    drop(RedbLog::open(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // One made by an older version is closed too.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(RedbLog::open(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn lists_of_the_past_and_of_a_namespace() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Store::open(dir.path()).expect("open");
    for key in ["a/1", "a/2", "a-b/1", "b/1"] {
        store.write(write(key, Expect::Absent, 0)).await.expect(key);
    }
    store.write(removal("a/1", 1)).await.expect("remove");
    store.write(write("a/2", Expect::Revision(2), 9)).await.expect("update");
    store.write(write("a/3", Expect::Absent, 0)).await.expect("a/3");
    let keys = |items: &[Arc<Stored>]| items.iter().map(|o| format!("{}@{}", o.key, o.revision)).collect::<Vec<_>>();
    assert_eq!(keys(&store.list(MAPS, "a/").1), ["a/2@6", "a/3@7"]);
    assert_eq!(keys(&store.list_at(MAPS, "a/", 4).expect("4")), ["a/1@1", "a/2@2"]);
    assert_eq!(keys(&store.list_at(MAPS, "", 5).expect("5")), ["a-b/1@3", "a/2@2", "b/1@4"]);
    assert_eq!(keys(&store.list_at(MAPS, "", 0).expect("0")), Vec::<String>::new());
}

/// A log that fails on demand, and may or may not have kept what it failed on.
struct Flaky {
    inner: RedbLog,
    fail: Arc<AtomicUsize>,
    keeps: bool,
}

impl Log for Flaky {
    fn load(&mut self) -> Result<Loaded, LogError> {
        self.inner.load()
    }

    fn append(&mut self, batch: &[Entry]) -> Result<(), LogError> {
        if self.fail.load(Ordering::SeqCst) == 0 {
            return self.inner.append(batch);
        }
        self.fail.fetch_sub(1, Ordering::SeqCst);
        if self.keeps {
            self.inner.append(batch)?;
        }
        Err(LogError::Io("No space left on device".into()))
    }
}

#[tokio::test]
async fn a_failed_write_is_refused_and_never_comes_back() {
    for keeps in [false, true] {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.redb");
        let fail = Arc::new(AtomicUsize::new(0));
        let log = Flaky { inner: RedbLog::open(&path).expect("log"), fail: fail.clone(), keeps };
        let store = Store::with_log(Box::new(log)).expect("store");
        store.write(write("kept", Expect::Absent, 1)).await.expect("kept");
        fail.store(2, Ordering::SeqCst);
        for refused in [write("new", Expect::Absent, 1), write("kept", Expect::Revision(1), 2)] {
            let error = store.write(refused).await.map(|_| ()).expect_err("disk full");
            assert!(error.to_string().contains("No space left"), "{error}");
        }
        assert_eq!(store.get(MAPS, "kept").expect("reads go on").revision, 1);
        store.write(write("later", Expect::Absent, 1)).await.expect("space again");
        drop(store);
        let store = Store::open(dir.path()).expect("again");
        assert!(store.get(MAPS, "new").is_none(), "refused writes are gone (log kept them: {keeps})");
        assert_eq!(store.get(MAPS, "kept").expect("kept").value()["data"]["v"], "1");
        assert!(store.get(MAPS, "later").is_some());
    }
}

/// Applies events to a map as a client would.
fn replay(state: &mut BTreeMap<String, u64>, events: &[Arc<Event>]) {
    for event in events {
        match event.kind {
            EventKind::Deleted => assert!(state.remove(&*event.object.key).is_some(), "a deletion of nothing"),
            EventKind::Added => assert!(state.insert(event.object.key.to_string(), event.revision()).is_none()),
            EventKind::Modified => assert!(state.insert(event.object.key.to_string(), event.revision()).is_some()),
        }
    }
}

fn state_of(items: &[Arc<Stored>]) -> BTreeMap<String, u64> {
    items.iter().map(|o| (o.key.to_string(), o.revision)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A list at any revision and the events after it give the state of now.
    #[test]
    fn list_then_watch_is_the_truth(writes in prop::collection::vec((0_u8..6, 0_u8..3), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("dir");
            let store = Store::open(dir.path()).expect("open");
            for (key, what) in writes {
                let key = format!("n/{key}");
                match (store.get(MAPS, &key), what) {
                    (None, 0) => {}
                    (None, v) => { store.write(write(&key, Expect::Absent, v.into())).await.expect("create"); }
                    (Some(o), 0) => { store.write(removal(&key, o.revision)).await.expect("delete"); }
                    (Some(o), v) => { store.write(write(&key, Expect::Revision(o.revision), v.into())).await.expect("update"); }
                }
            }
            let (now, objects) = store.list(MAPS, "");
            for revision in 0..=now {
                let mut state = state_of(&store.list_at(MAPS, "", revision).expect("list"));
                let (events, upto) = store.events_since(MAPS, revision).expect("events");
                assert_eq!(upto, now);
                assert!(events.is_sorted_by_key(|e| e.revision()));
                replay(&mut state, &events);
                assert_eq!(state, state_of(&objects), "from revision {revision}");
            }
        });
    }
}

#[tokio::test]
async fn history_is_bounded_and_says_so() {
    let big = "x".repeat(1 << 20);
    let mut history = History::starting_at(0);
    for revision in 1..=40 {
        let object = Arc::new(Stored { key: "k".into(), revision, json: big.clone().into_bytes().into() });
        history.push(Arc::new(Event { kind: EventKind::Modified, object, before: None }));
    }
    let oldest = history.since(0).map(|_| ()).expect_err("compacted").oldest;
    assert!((20..40).contains(&oldest), "{oldest}");
    assert_eq!(history.since(oldest).expect("rest").len() as u64, 40 - oldest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_share_commits_and_lose_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Store::open(dir.path()).expect("open");
    store.write(write("counter", Expect::Absent, 0)).await.expect("create");
    let count = |store: Store| async move {
        for _ in 0..25 {
            loop {
                let now = store.get(MAPS, "counter").expect("counter");
                let value: u64 = now.value()["data"]["v"].as_str().expect("v").parse().expect("number");
                match store.write(write("counter", Expect::Revision(now.revision), value + 1)).await {
                    Ok(_) => break,
                    Err(WriteError::Conflict) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        }
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(count(store.clone()))).collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(store.get(MAPS, "counter").expect("counter").value()["data"]["v"], "200");
    assert_eq!(store.revision(), 201);
}

/// The other half of `acknowledged_writes_survive_kill`: writes and says so, until it is killed.
#[test]
#[ignore = "run as a child process by acknowledged_writes_survive_kill"]
fn crash_child() {
    let Ok(dir) = std::env::var("PORTOLAN_CRASH_DIR") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("runtime");
    runtime.block_on(async {
        let store = Store::open(Path::new(&dir)).expect("open");
        let base = store.revision();
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0_u64.. {
                        let key = format!("{base}-{task}/{n}");
                        let stored = store.write(write(&key, Expect::Absent, n)).await.expect("write");
                        println!("\nACK {key} {}", stored.revision);
                        if n % 5 == 4 {
                            let gone = store.write(removal(&key, stored.revision)).await.expect("remove");
                            println!("\nGONE {key} {}", gone.revision);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("task");
        }
    });
}

#[test]
fn acknowledged_writes_survive_kill() {
    let dir = tempfile::tempdir().expect("dir");
    let mut known: BTreeMap<String, Option<u64>> = BTreeMap::new();
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().expect("exe"))
            .args(["--ignored", "--exact", "store::tests::crash_child", "--nocapture", "--test-threads=1"])
            .env("PORTOLAN_CRASH_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("child");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut left = rand::random_range(1..400);
        let mut hear = |line: &str| {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next().and_then(|r| r.parse().ok())) {
                (Some("ACK"), Some(key), Some(revision)) => known.insert(key.into(), Some(revision)),
                (Some("GONE"), Some(key), Some(_)) => known.insert(key.into(), None),
                _ => return false,
            };
            true
        };
        while left > 0 {
            let line = lines.next().expect("the child ended by itself").expect("line");
            left -= usize::from(hear(&line));
        }
        child.kill().expect("kill");
        // What it said before it died counts as well; a line cut in the middle does not.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.iter().take(rest.len().saturating_sub(1)) {
            hear(line);
        }
        child.wait().expect("wait");

        let store = Store::open(dir.path()).expect("open after the kill");
        for (key, revision) in &known {
            let there = store.get(MAPS, key).map(|o| o.revision);
            match revision {
                Some(_) if there.is_none() => {
                    // Its removal may have been under way, not yet acknowledged.
                    let n: u64 = key.rsplit('/').next().and_then(|n| n.parse().ok()).expect("number");
                    assert_eq!(n % 5, 4, "round {round}: {key} was acknowledged and is lost");
                }
                expected => assert_eq!(there, *expected, "round {round}: {key}"),
            }
        }
    }
    assert!(known.len() > 50, "the children wrote {} keys only", known.len());
}
