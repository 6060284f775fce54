//! The one thread that writes. It takes what is waiting, decides conflicts in order, gives out revisions, makes the batch
//! durable, and only then shows it to readers and answers.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, TryRecvError},
    },
};

use tokio::sync::oneshot;

use super::{Change, Entry, Event, EventKind, Expect, Log, State, Stored, Write, WriteError, full_key};

pub(super) struct Job {
    pub(super) write: Write,
    pub(super) answer: oneshot::Sender<Result<Arc<Stored>, WriteError>>,
}

/// A batch larger than this only delays its first writer.
const MAX_BATCH: usize = 1_024;

/// A write that passed: what to publish, and whom to tell.
struct Accepted {
    resource: Arc<str>,
    event: Arc<Event>,
    answer: oneshot::Sender<Result<Arc<Stored>, WriteError>>,
}

/// Keys of batches whose append failed. Some of them may have reached the disk all the same; the next append puts back
/// what readers were told is there.
type Suspects = HashSet<(Arc<str>, Arc<str>)>;

pub(super) fn run(mut log: Box<dyn Log>, state: &RwLock<State>, queue: &Receiver<Job>) {
    let mut suspects = Suspects::new();
    while let Ok(first) = queue.recv() {
        let mut jobs = vec![first];
        while jobs.len() < MAX_BATCH {
            match queue.try_recv() {
                Ok(job) => jobs.push(job),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        write_batch(log.as_mut(), state, jobs, &mut suspects);
    }
}

fn write_batch(log: &mut dyn Log, state: &RwLock<State>, jobs: Vec<Job>, suspects: &mut Suspects) {
    let accepted = accept(state, jobs);
    if accepted.is_empty() {
        return;
    }
    let mut batch = restore(state, suspects);
    batch.extend(accepted.iter().map(|a| Entry {
        key: full_key(&a.resource, &a.event.object.key),
        revision: a.event.revision(),
        json: (a.event.kind != EventKind::Deleted).then(|| a.event.object.json.clone()),
    }));
    if let Err(error) = log.append(&batch) {
        tracing::error!(%error, writes = accepted.len(), "a write could not be made durable");
        for a in accepted {
            suspects.insert((a.resource, a.event.object.key.clone()));
            let _ = a.answer.send(Err(WriteError::Log(error.to_string())));
        }
        return;
    }
    suspects.clear();
    drop(batch);
    publish(state, accepted);
}

/// Decides the batch in order: every write sees those before it.
fn accept(state: &RwLock<State>, jobs: Vec<Job>) -> Vec<Accepted> {
    let state = state.read().unwrap_or_else(PoisonError::into_inner);
    let mut revision = state.revision;
    let mut pending: HashMap<(Arc<str>, Arc<str>), Option<Arc<Stored>>> = HashMap::new();
    let mut accepted = Vec::with_capacity(jobs.len());
    for Job { write: Write { resource, key, expect, change }, answer } in jobs {
        let id = (resource, key);
        let before = match pending.get(&id) {
            Some(object) => object.clone(),
            None => state.shards.get(&id.0).and_then(|s| s.objects.get(&id.1)).cloned(),
        };
        let holds = match expect {
            Expect::Absent => before.is_none(),
            Expect::Revision(revision) => before.as_ref().is_some_and(|o| o.revision == revision),
        };
        if !holds {
            let _ = answer.send(Err(WriteError::Conflict));
            continue;
        }
        revision += 1;
        let (kind, encoded) = match (change, &before) {
            (Change::Put(encoded), None) => (EventKind::Added, encoded),
            (Change::Put(encoded), Some(_)) => (EventKind::Modified, encoded),
            (Change::Delete(encoded), _) => (EventKind::Deleted, encoded),
        };
        let object = Arc::new(Stored { key: id.1.clone(), revision, json: encoded.fill(revision) });
        let event = Arc::new(Event { kind, object: object.clone(), before });
        accepted.push(Accepted { resource: id.0.clone(), event, answer });
        pending.insert(id, (kind != EventKind::Deleted).then_some(object));
    }
    accepted
}

fn restore(state: &RwLock<State>, suspects: &Suspects) -> Vec<Entry> {
    if suspects.is_empty() {
        return Vec::new();
    }
    let state = state.read().unwrap_or_else(PoisonError::into_inner);
    let truth = |(resource, key): &(Arc<str>, Arc<str>)| {
        let there = state.shards.get(resource).and_then(|s| s.objects.get(key));
        Entry {
            key: full_key(resource, key),
            revision: there.map_or(state.revision, |o| o.revision),
            json: there.map(|o| o.json.clone()),
        }
    };
    suspects.iter().map(truth).collect()
}

fn publish(state: &RwLock<State>, accepted: Vec<Accepted>) {
    let mut touched: BTreeMap<Arc<str>, (tokio::sync::watch::Sender<u64>, u64)> = BTreeMap::new();
    let mut answers = Vec::with_capacity(accepted.len());
    {
        let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
        for Accepted { resource, event, answer } in accepted {
            state.revision = event.revision();
            let shard = state.shard(&resource);
            match event.kind {
                EventKind::Deleted => shard.objects.remove(&event.object.key),
                _ => shard.objects.insert(event.object.key.clone(), event.object.clone()),
            };
            let revision = event.revision();
            answers.push((answer, event.object.clone()));
            shard.history.push(event);
            touched.entry(resource).or_insert_with(|| (shard.changed.clone(), revision)).1 = revision;
        }
    }
    for (changed, revision) in touched.into_values() {
        changed.send_replace(revision);
    }
    for (answer, object) in answers {
        let _ = answer.send(Ok(object));
    }
}
