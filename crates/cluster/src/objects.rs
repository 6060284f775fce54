//! Kinds beside the snapshot, each followed by one watch and kept as what its readers need of it.

use std::{collections::HashSet, sync::Arc};

use model::{ObjectKey, map::Map, parse};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{Resource, watch as follow, watch::Delta};

/// All objects of one kind at one moment.
#[derive(Debug)]
pub struct Objects<T> {
    pub map: Map<ObjectKey, Arc<T>>,
    /// Everything written to the kind up to this resourceVersion is in the map.
    pub revision: u64,
    /// The kind has been listed completely: absence means something.
    pub listed: bool,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { map: Map::default(), revision: 0, listed: false }
    }
}

impl<T> Clone for Objects<T> {
    fn clone(&self) -> Self {
        Self { map: self.map.clone(), revision: self.revision, listed: self.listed }
    }
}

/// Follows `resource`, keeping what `read` makes of each object; `None` counts as absent. `query` narrows the watch
/// (`fieldSelector=metadata.name%3Dx`). Ends when the receivers are gone.
pub fn spawn<T: PartialEq + Send + Sync + 'static>(
    client: kube::Client,
    resource: Resource,
    query: &str,
    read: fn(&Value) -> Option<T>,
) -> (watch::Receiver<Arc<Objects<T>>>, JoinHandle<()>) {
    let (publish, receiver) = watch::channel(Arc::new(Objects::default()));
    let query = query.to_string();
    let task = tokio::spawn(async move {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let source = follow::follow(&client, &resource, &query, |delta| {
            let change = match delta {
                Delta::Listing => Change::Listing,
                Delta::Listed(revision) => Change::Listed(revision),
                Delta::Bookmark(revision) => Change::At(revision),
                Delta::Put(v) => {
                    let Some(key) = parse::key(&v) else { return true };
                    Change::Put(key, read(&v), parse::revision(&v))
                }
                Delta::Gone(v) => {
                    let Some(key) = parse::key(&v) else { return true };
                    Change::Put(key, None, parse::revision(&v))
                }
            };
            tx.send(change).is_ok()
        });
        let build = async {
            let mut objects = Objects::default();
            let mut seen = None;
            while let Some(change) = rx.recv().await {
                apply(&mut objects, &mut seen, change);
                while let Ok(change) = rx.try_recv() {
                    apply(&mut objects, &mut seen, change);
                }
                publish.send_replace(Arc::new(objects.clone()));
            }
        };
        tokio::select! {
            () = source => (),
            () = build => (),
            () = publish.closed() => (),
        }
    });
    (receiver, task)
}

enum Change<T> {
    Listing,
    Put(ObjectKey, Option<T>, u64),
    Listed(u64),
    At(u64),
}

fn apply<T: PartialEq>(objects: &mut Objects<T>, seen: &mut Option<HashSet<ObjectKey>>, change: Change<T>) {
    match change {
        Change::Listing => *seen = Some(HashSet::new()),
        Change::At(revision) => objects.revision = revision.max(objects.revision),
        Change::Put(key, object, revision) => {
            match seen {
                Some(seen) => {
                    seen.insert(key.clone());
                }
                None => objects.revision = revision.max(objects.revision),
            }
            match object {
                Some(new) if objects.map.get(&key).is_some_and(|known| **known == new) => (),
                Some(new) => {
                    objects.map.insert(key, Arc::new(new));
                }
                None => {
                    objects.map.remove(&key);
                }
            }
        }
        Change::Listed(revision) => {
            if let Some(seen) = seen.take() {
                let gone: Vec<_> = objects.map.keys().filter(|k| !seen.contains(k)).cloned().collect();
                for key in gone {
                    objects.map.remove(&key);
                }
            }
            objects.revision = revision.max(objects.revision);
            objects.listed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_count_only_outside_a_list() {
        let mut o = Objects::default();
        let mut seen = None;
        let key = |n: &str| ObjectKey::new("default", n);
        for c in [Change::Listing, Change::Put(key("a"), Some(1), 50), Change::Put(key("b"), Some(1), 2)] {
            apply(&mut o, &mut seen, c);
        }
        assert_eq!((o.revision, o.listed), (0, false));
        apply(&mut o, &mut seen, Change::Listed(51));
        assert_eq!((o.revision, o.listed, o.map.len()), (51, true, 2));
        for c in [Change::Put(key("a"), None, 52), Change::Listing, Change::Listed(60)] {
            apply(&mut o, &mut seen, c);
        }
        assert_eq!((o.revision, o.map.len()), (60, 0));
    }
}
