//! Where objects live. All of them are in memory as serialised JSON, sorted by key; a log makes every acknowledged write
//! durable before anybody sees it. One thread writes: it gathers whatever is waiting into one transaction, so the price of
//! an fsync is shared, and readers never wait for a disk.
//!
//! It decides revisions, order and conflicts. It knows nothing of kinds, HTTP or what an object means, save that
//! `metadata.resourceVersion` is the revision.

mod history;
mod log;
mod redb;
mod writer;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use self::{history::History, writer::Job};
pub use self::{
    history::{Event, EventKind},
    log::{Entry, Loaded, Log, LogError},
    redb::RedbLog,
};

/// One revision of one object, immutable.
pub struct Stored {
    /// Below the resource: `namespace/name`, or `name` for cluster-scoped kinds.
    pub key: Arc<str>,
    /// The write that made it; `metadata.resourceVersion` inside `json` says the same.
    pub revision: u64,
    /// Compact JSON, complete with apiVersion and kind.
    pub json: Box<[u8]>,
}

impl Stored {
    /// The object, parsed. Stored bytes were serialised by this program, so a parse error means a damaged disk: the object
    /// reads as an empty one rather than taking the server down.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_else(|e| {
            tracing::error!(key = %self.key, error = %e, "a stored object is not JSON: the state file is damaged");
            Value::Object(serde_json::Map::new())
        })
    }

    /// The bytes, shared: nothing is copied.
    pub fn bytes(self: &Arc<Self>) -> Bytes {
        Bytes::from_owner(Shared(self.clone()))
    }

    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(ns, _)| ns)
    }

    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&*self.key, |(_, name)| name)
    }
}

struct Shared(Arc<Stored>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.json
    }
}

/// A serialised object with a hole for its resourceVersion, which only the writer knows.
pub struct Encoded {
    json: Vec<u8>,
    hole: usize,
}

impl Encoded {
    /// `object` must be a JSON object; a `metadata` that is missing is added.
    pub fn new(object: &Value) -> Self {
        let empty = serde_json::Map::new();
        let top = object.as_object().unwrap_or(&empty);
        let meta = top.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        let mut json = Vec::with_capacity(1024);
        json.push(b'{');
        for (k, v) in top.iter().filter(|(k, _)| *k != "metadata") {
            write_member(&mut json, k, v);
            json.push(b',');
        }
        json.extend_from_slice(b"\"metadata\":{");
        for (k, v) in meta.iter().filter(|(k, _)| *k != "resourceVersion") {
            write_member(&mut json, k, v);
            json.push(b',');
        }
        json.extend_from_slice(b"\"resourceVersion\":\"");
        let hole = json.len();
        json.extend_from_slice(b"\"}}");
        Self { json, hole }
    }

    fn fill(mut self, revision: u64) -> Box<[u8]> {
        let digits = revision.to_string();
        self.json.splice(self.hole..self.hole, digits.bytes());
        self.json.into_boxed_slice()
    }
}

fn write_member(out: &mut Vec<u8>, key: &str, value: &Value) {
    // Writing a Value into a Vec cannot fail.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// What must be there for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Revision(u64),
}

pub enum Change {
    Put(Encoded),
    /// The object's last words: what watchers see in the DELETED event.
    Delete(Encoded),
}

pub struct Write {
    /// `core/services`, `apps/deployments`.
    pub resource: Arc<str>,
    pub key: Arc<str>,
    pub expect: Expect,
    pub change: Change,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// What was expected is not there: read again and decide again.
    #[error("the object was changed by another writer")]
    Conflict,
    #[error(
        "the write could not be made durable: {0}. Free some space or check the disk under the data directory; reads go on"
    )]
    Log(String),
    #[error("the store is shutting down")]
    Closed,
}

/// A revision that the history no longer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    pub asked: u64,
    pub oldest: u64,
}

/// All objects of one resource, and what happened to them lately.
struct Shard {
    objects: BTreeMap<Arc<str>, Arc<Stored>>,
    history: History,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// The history of every resource starts no earlier than this.
    opened_at: u64,
    shards: HashMap<Arc<str>, Shard>,
}

impl State {
    fn shard(&mut self, resource: &Arc<str>) -> &mut Shard {
        let opened_at = self.opened_at;
        self.shards.entry(resource.clone()).or_insert_with(|| Shard {
            objects: BTreeMap::new(),
            history: History::starting_at(opened_at),
            changed: watch::Sender::new(opened_at),
        })
    }
}

/// A handle; clones share one store. The last one to go closes the log.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    state: Arc<RwLock<State>>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Store {
    /// Opens `state.redb` below `dir`, which must exist.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        Self::with_log(Box::new(RedbLog::open(&dir.join("state.redb"))?))
    }

    pub fn with_log(mut log: Box<dyn Log>) -> Result<Self, LogError> {
        let Loaded { revision, entries } = log.load()?;
        let mut state = State { revision, opened_at: revision, ..State::default() };
        for Entry { key, revision, json } in entries {
            let (Some((resource, key)), Some(json)) = (split_key(&key), json) else { continue };
            let key: Arc<str> = key.into();
            let stored = Arc::new(Stored { key: key.clone(), revision, json });
            state.shard(&resource.into()).objects.insert(key, stored);
        }
        let state = Arc::new(RwLock::new(state));
        let (jobs, queue) = mpsc::channel();
        let thread_state = state.clone();
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer::run(log, &thread_state, &queue))
            .map_err(|e| LogError::Io(e.to_string()))?;
        Ok(Self(Arc::new(Inner { state, jobs: Mutex::new(Some(jobs)), writer: Mutex::new(Some(writer)) })))
    }

    /// Stops taking writes, waits for those under way, and closes the log so that another process can open it. Reads go on.
    pub fn close(&self) {
        self.0.close();
    }

    /// The newest revision anybody can read.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    pub fn get(&self, resource: &str, key: &str) -> Option<Arc<Stored>> {
        self.read().shards.get(resource)?.objects.get(key).cloned()
    }

    /// Number of objects of a resource.
    pub fn len(&self, resource: &str) -> usize {
        self.read().shards.get(resource).map_or(0, |s| s.objects.len())
    }

    pub fn is_empty(&self, resource: &str) -> bool {
        self.len(resource) == 0
    }

    /// All objects whose key starts with `prefix` ("" or `namespace/`), in key order, with the revision they are true at.
    pub fn list(&self, resource: &str, prefix: &str) -> (u64, Vec<Arc<Stored>>) {
        let state = self.read();
        let objects = state.shards.get(resource).map_or_else(Vec::new, |s| range(&s.objects, prefix));
        (state.revision, objects)
    }

    /// The same at an earlier revision, by undoing what happened since.
    pub fn list_at(&self, resource: &str, prefix: &str, revision: u64) -> Result<Vec<Arc<Stored>>, Compacted> {
        let state = self.read();
        if revision < state.opened_at {
            return Err(Compacted { asked: revision, oldest: state.opened_at });
        }
        let Some(shard) = state.shards.get(resource) else { return Ok(Vec::new()) };
        let undo = shard.history.undo_to(revision)?;
        if undo.is_empty() {
            return Ok(range(&shard.objects, prefix));
        }
        let mut then: BTreeMap<Arc<str>, Arc<Stored>> =
            range(&shard.objects, prefix).into_iter().map(|o| (o.key.clone(), o)).collect();
        for (key, before) in undo.into_iter().filter(|(k, _)| k.starts_with(prefix)) {
            match before {
                Some(object) => then.insert(key, object),
                None => then.remove(&key),
            };
        }
        Ok(then.into_values().collect())
    }

    /// What happened to a resource after `revision`, in order, and the revision this is complete up to.
    pub fn events_since(&self, resource: &str, revision: u64) -> Result<(Vec<Arc<Event>>, u64), Compacted> {
        let state = self.read();
        let Some(shard) = state.shards.get(resource) else {
            return if revision < state.opened_at {
                Err(Compacted { asked: revision, oldest: state.opened_at })
            } else {
                Ok((Vec::new(), state.revision))
            };
        };
        Ok((shard.history.since(revision)?, state.revision))
    }

    /// Wakes when something happened to the resource.
    pub fn subscribe(&self, resource: &Arc<str>) -> watch::Receiver<u64> {
        if let Some(shard) = self.read().shards.get(resource) {
            return shard.changed.subscribe();
        }
        self.0.write().shard(resource).changed.subscribe()
    }

    /// One durable write. Answers after it is on the disk and visible to readers and watchers.
    pub async fn write(&self, write: Write) -> Result<Arc<Stored>, WriteError> {
        let (answer, done) = oneshot::channel();
        {
            let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(jobs) = jobs.as_ref() else { return Err(WriteError::Closed) };
            jobs.send(Job { write, answer }).map_err(|_| WriteError::Closed)?;
        }
        done.await.map_err(|_| WriteError::Closed)?
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn range(objects: &BTreeMap<Arc<str>, Arc<Stored>>, prefix: &str) -> Vec<Arc<Stored>> {
    if prefix.is_empty() {
        return objects.values().cloned().collect();
    }
    objects
        .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
        .take_while(|(k, _)| k.starts_with(prefix))
        .map(|(_, o)| o.clone())
        .collect()
}

/// `/registry/core/services/default/web` as written to the log.
fn full_key(resource: &str, key: &str) -> String {
    format!("/registry/{resource}/{key}")
}

/// The resource (`core/services`) and the key below it.
fn split_key(full: &str) -> Option<(&str, &str)> {
    let rest = full.strip_prefix("/registry/")?;
    let (at, _) = rest.match_indices('/').nth(1)?;
    Some((&rest[..at], &rest[at + 1..]))
}

#[cfg(test)]
mod tests;
