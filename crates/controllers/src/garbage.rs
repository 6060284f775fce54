//! Garbage: objects whose owners are gone go too; owners that want to go last wait for what they own. Keeps a small graph
//! of all kinds (uid, owners) and confirms every absence with the API before it deletes anything.

mod graph;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use cluster::{
    Error, Resource, discovery,
    watch::{Delta, follow},
    write::{DeleteOptions, PatchKind, Propagation, Writer},
};
use futures::{StreamExt, stream::FuturesUnordered};
use model::{ObjectKey, parse};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};

use graph::{Finalizer, Graph, Item, OwnerRef, Uid};

const CONCURRENT: usize = 32;
const RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Short-lived and never owned by anybody in a way that matters.
const IGNORED: [&str; 1] = ["events"];

enum Change {
    Listing,
    Put(Box<Item>),
    Gone(ObjectKey),
    Listed,
}

/// Runs until dropped.
pub async fn run(client: kube::Client) {
    let mut retry = RETRY;
    let kinds = loop {
        match discovery::resources(&client, &["list", "watch", "delete"]).await {
            Ok(kinds) => break kinds,
            Err(e) => {
                tracing::warn!("garbage collection waits, next try in {retry:?}: {e}");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    };
    let kinds: Vec<Resource> = kinds.into_iter().filter(|k| !IGNORED.contains(&&*k.plural)).collect();
    let (tx, mut rx) = mpsc::unbounded_channel();
    let mut watches = JoinSet::new();
    for (i, kind) in kinds.iter().cloned().enumerate() {
        let (client, tx) = (client.clone(), tx.clone());
        watches.spawn(async move {
            let read = |delta| match delta {
                Delta::Listing => Some(Change::Listing),
                Delta::Listed(_) => Some(Change::Listed),
                Delta::Put(v) => Item::read(i, &v).map(|item| Change::Put(Box::new(item))),
                Delta::Gone(v) => parse::key(&v).map(Change::Gone),
                Delta::Bookmark(_) => None,
            };
            follow(&client, &kind, "", |delta| read(delta).is_none_or(|c| tx.send((i, c)).is_ok())).await;
        });
    }
    drop(tx);
    let writer = Writer::new(client, "generic-garbage-collector");
    let mut collector = Collector {
        graph: Graph::new(kinds.len()),
        retries: HashMap::new(),
        running: HashSet::new(),
        again: HashSet::new(),
    };
    let mut work = FuturesUnordered::new();
    loop {
        for uid in collector.due(CONCURRENT - work.len()) {
            if let Some(task) = collector.plan(&uid, &kinds) {
                collector.running.insert(uid.clone());
                let (writer, kinds) = (&writer, &kinds);
                work.push(async move { (uid, task.run(writer, kinds).await) });
            }
        }
        let wake = collector.retries.values().map(|(at, _)| *at).min();
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = rx.recv() => {
                let Some((kind, change)) = change else { return };
                collector.apply(kind, change);
                while let Ok((kind, change)) = rx.try_recv() {
                    collector.apply(kind, change);
                }
            }
            Some((uid, result)) = work.next() => collector.finish(uid, result),
            () = sleep => (),
        }
    }
}

struct Collector {
    graph: Graph,
    /// When to try again, and how often it failed.
    retries: HashMap<Uid, (Instant, u32)>,
    running: HashSet<Uid>,
    /// Changed while being worked on.
    again: HashSet<Uid>,
}

impl Collector {
    fn apply(&mut self, kind: usize, change: Change) {
        match change {
            Change::Listing => self.graph.listing(kind),
            Change::Put(item) => self.graph.put(*item),
            Change::Gone(key) => self.graph.remove(kind, &key),
            Change::Listed => self.graph.listed(kind),
        }
    }

    /// Up to `room` objects to look at now; none before every kind is known.
    fn due(&mut self, room: usize) -> Vec<Uid> {
        if !self.graph.is_complete() {
            return Vec::new();
        }
        let now = Instant::now();
        let ripe: Vec<_> = self.retries.iter().filter(|(_, (at, _))| *at <= now).map(|(uid, _)| uid.clone()).collect();
        for uid in ripe {
            if let Some((at, _)) = self.retries.get_mut(&uid) {
                *at = now + LAST_RETRY; // kept for its count until it succeeds
            }
            self.graph.look.insert(uid);
        }
        let take: Vec<_> = self.graph.look.iter().take(room).cloned().collect();
        for uid in &take {
            self.graph.look.remove(uid);
        }
        take.into_iter()
            .filter(|uid| {
                let free = !self.running.contains(uid);
                if !free {
                    self.again.insert(uid.clone());
                }
                free
            })
            .collect()
    }

    fn finish(&mut self, uid: Uid, result: Result<(), Error>) {
        self.running.remove(&uid);
        match result {
            Ok(()) => {
                self.retries.remove(&uid);
            }
            Err(e) if e.is_not_found() => {
                self.retries.remove(&uid);
            }
            Err(e) => {
                let failures = self.retries.get(&uid).map_or(0, |(_, n)| *n);
                let wait = (RETRY * 2_u32.saturating_pow(failures.min(10))).min(LAST_RETRY);
                tracing::debug!("garbage collection: {e}; again in {wait:?}");
                self.retries.insert(uid.clone(), (Instant::now() + wait, failures + 1));
            }
        }
        if self.again.remove(&uid) {
            self.graph.look.insert(uid);
        }
    }

    /// What is to be done about an object, decided from the graph alone.
    fn plan(&mut self, uid: &Uid, kinds: &[Resource]) -> Option<Task> {
        let item = self.graph.items.get(uid)?;
        let children: Vec<Uid> = self.graph.children_of(uid).cloned().collect();
        if item.deleting {
            return match item.finalizer {
                Some(Finalizer::Orphan) => {
                    let children = children.iter().filter_map(|c| self.graph.items.get(c).cloned()).collect();
                    Some(Task::Orphan { owner: item.clone(), children })
                }
                Some(Finalizer::Foreground) => {
                    let item = item.clone();
                    let blocking = |c: &Uid| {
                        self.graph.items.get(c).is_some_and(|c| c.owners.iter().any(|o| o.uid == *uid && o.blocks))
                    };
                    if children.iter().any(blocking) {
                        // What it owns is looked at again; when the last of it goes, this is.
                        let idle =
                            children.into_iter().filter(|c| self.graph.items.get(c).is_some_and(|c| !c.deleting));
                        let idle: Vec<_> = idle.collect();
                        self.graph.look.extend(idle);
                        None
                    } else {
                        Some(Task::Release(item))
                    }
                }
                None => None,
            };
        }
        if item.owners.is_empty() {
            return None;
        }
        let (mut solid, mut waiting, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for owner in &item.owners {
            match self.graph.items.get(&owner.uid) {
                Some(o) if o.deleting && o.finalizer == Some(Finalizer::Foreground) => waiting.push(owner.uid.clone()),
                Some(_) => solid.push(owner.uid.clone()),
                // An owner of a kind the API does not serve cannot be judged: leave the object alone.
                None => match kinds.iter().find(|k| owner.is_of(k)) {
                    Some(_) => unknown.push(owner.clone()),
                    None => solid.push(owner.uid.clone()),
                },
            }
        }
        if waiting.is_empty() && unknown.is_empty() {
            return None;
        }
        let has_children = !children.is_empty();
        Some(Task::Judge { item: item.clone(), solid: !solid.is_empty(), waiting, unknown, has_children })
    }
}

#[allow(clippy::large_enum_variant, reason = "one lives at a time per object in work")]
enum Task {
    /// Take the owner off its children, then its finalizer off.
    Orphan { owner: Item, children: Vec<Item> },
    /// Nothing holds it any more: take the finalizer off.
    Release(Item),
    /// Perhaps all its owners are gone.
    Judge { item: Item, solid: bool, waiting: Vec<Uid>, unknown: Vec<OwnerRef>, has_children: bool },
}

impl Task {
    async fn run(self, writer: &Writer, kinds: &[Resource]) -> Result<(), Error> {
        match self {
            Self::Orphan { owner, children } => {
                for child in &children {
                    match disown(writer, kinds, child, &[owner.uid.clone()]).await {
                        Err(e) if e.is_not_found() => (),
                        r => r?,
                    }
                }
                remove_finalizer(writer, kinds, &owner, "orphan").await
            }
            Self::Release(item) => remove_finalizer(writer, kinds, &item, "foregroundDeletion").await,
            Self::Judge { item, mut solid, waiting, unknown, has_children } => {
                let mut gone = waiting.clone();
                for owner in &unknown {
                    if exists(writer, kinds, &item, owner).await? { solid = true } else { gone.push(owner.uid.clone()) }
                }
                if solid {
                    return if gone.is_empty() { Ok(()) } else { disown(writer, kinds, &item, &gone).await };
                }
                let foreground = !waiting.is_empty() && has_children;
                let options = DeleteOptions {
                    uid: Some(item.uid.to_string()),
                    propagation: Some(if foreground { Propagation::Foreground } else { Propagation::Background }),
                    ..DeleteOptions::default()
                };
                match writer.delete(&kinds[item.kind], &item.key, &options).await {
                    Err(e) if e.is_not_found() || e.is_conflict() => Ok(()),
                    r => r.map(drop),
                }
            }
        }
    }
}

/// Asks the API itself: the watches of two kinds may be apart.
async fn exists(writer: &Writer, kinds: &[Resource], item: &Item, owner: &OwnerRef) -> Result<bool, Error> {
    let Some(kind) = kinds.iter().find(|k| owner.is_of(k)) else { return Ok(true) };
    let namespace = if kind.namespaced { &*item.key.namespace } else { "" };
    match writer.get(kind, &ObjectKey::new(namespace, &*owner.name)).await {
        Ok(found) => Ok(found["metadata"]["uid"] == *owner.uid),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

async fn disown(writer: &Writer, kinds: &[Resource], item: &Item, owners: &[Uid]) -> Result<(), Error> {
    let resource = &kinds[item.kind];
    let mut object = writer.get(resource, &item.key).await?;
    if object["metadata"]["uid"] != *item.uid {
        return Ok(());
    }
    let rest: Vec<Value> = object["metadata"]["ownerReferences"]
        .as_array_mut()
        .map(|l| l.drain(..).filter(|o| !owners.iter().any(|u| o["uid"] == **u)).collect())
        .unwrap_or_default();
    let rest = if rest.is_empty() { Value::Null } else { rest.into() };
    let patch = json!({"metadata": {"uid": &*item.uid, "ownerReferences": rest,
        "resourceVersion": object["metadata"]["resourceVersion"]}});
    writer.patch(resource, &item.key, "", PatchKind::Merge, &patch).await.map(drop)
}

async fn remove_finalizer(writer: &Writer, kinds: &[Resource], item: &Item, finalizer: &str) -> Result<(), Error> {
    let resource = &kinds[item.kind];
    let mut object = writer.get(resource, &item.key).await?;
    if object["metadata"]["uid"] != *item.uid {
        return Ok(());
    }
    let rest: Vec<Value> = object["metadata"]["finalizers"]
        .as_array_mut()
        .map(|l| l.drain(..).filter(|f| f != finalizer).collect())
        .unwrap_or_default();
    let patch = json!({"metadata": {"uid": &*item.uid, "finalizers": rest,
        "resourceVersion": object["metadata"]["resourceVersion"]}});
    writer.patch(resource, &item.key, "", PatchKind::Merge, &patch).await.map(drop)
}
