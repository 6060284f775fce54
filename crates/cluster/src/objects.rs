//! Kinds whose readers need the whole object: a watch kept as a map of raw values, without `managedFields`.

use std::{collections::HashSet, sync::Arc};

use model::{ObjectKey, map::Map, parse};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{Resource, watch as follow, watch::Delta};

/// All objects of one kind at one moment.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub map: Map<ObjectKey, Arc<Value>>,
    /// Everything written to the kind up to this resourceVersion is in the map.
    pub revision: u64,
    /// The kind has been listed completely: absence means something.
    pub listed: bool,
}

/// Follows `resource`, keeping what `trim` leaves of each object. `query` narrows the watch
/// (`fieldSelector=metadata.name%3Dx`). Ends when the receivers are gone.
pub fn spawn(
    client: kube::Client,
    resource: Resource,
    query: String,
    trim: fn(&mut Value),
) -> (watch::Receiver<Arc<Objects>>, JoinHandle<()>) {
    let (publish, receiver) = watch::channel(Arc::new(Objects::default()));
    let task = tokio::spawn(async move {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let source = follow::follow(&client, &resource, &query, |mut delta| {
            if let Delta::Put(v) = &mut delta {
                if let Some(metadata) = v["metadata"].as_object_mut() {
                    metadata.remove("managedFields");
                }
                trim(v);
            }
            tx.send(delta).is_ok()
        });
        let build = async {
            let mut objects = Objects::default();
            let mut seen = None;
            while let Some(delta) = rx.recv().await {
                apply(&mut objects, &mut seen, delta);
                while let Ok(delta) = rx.try_recv() {
                    apply(&mut objects, &mut seen, delta);
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

fn apply(objects: &mut Objects, seen: &mut Option<HashSet<ObjectKey>>, delta: Delta) {
    match delta {
        Delta::Listing => *seen = Some(HashSet::new()),
        Delta::Bookmark(revision) => objects.revision = revision.max(objects.revision),
        Delta::Put(v) => {
            let Some(key) = parse::key(&v) else { return };
            match seen {
                Some(seen) => {
                    seen.insert(key.clone());
                }
                None => objects.revision = parse::revision(&v).max(objects.revision),
            }
            if objects.map.get(&key).is_none_or(|known| **known != v) {
                objects.map.insert(key, Arc::new(v));
            }
        }
        Delta::Gone(v) => {
            if let Some(key) = parse::key(&v) {
                objects.map.remove(&key);
            }
            objects.revision = parse::revision(&v).max(objects.revision);
        }
        Delta::Listed(revision) => {
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
