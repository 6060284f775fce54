//! The five kinds that decide where connections go, as one [`Snapshot`]. Raw objects are parsed where they arrive and
//! dropped. A burst becomes one snapshot because it is published when nothing more is waiting, not after a delay.

use std::{collections::HashSet, sync::Arc};

use model::{
    EndpointSlice, Kind, Namespace, Node, ObjectKey, Pod, Problem, Service, Snapshot,
    map::Map,
    parse::{self, Parser},
};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{Resource, resource, watch as follow, watch::Delta};

/// Deltas in flight between the parsers and the snapshot: bounds memory when a huge list arrives.
const IN_FLIGHT: usize = 1024;

/// A parsed object on its way into the snapshot.
#[allow(clippy::large_enum_variant, reason = "it is only ever in a box")]
enum Object {
    Namespace(Namespace),
    Node(Node),
    Pod(Pod),
    Service(Service),
    Slice(EndpointSlice),
}

enum Change {
    Listing,
    Put(Box<Object>, u64),
    /// An object of which nothing can be used counts as absent.
    Gone(ObjectKey, u64),
    Listed(u64),
    Bookmark(u64),
}

/// Starts the five watches. The first snapshots are incomplete ([`Snapshot::is_complete`]). Ends when the receivers are
/// gone; aborting the handle ends it too.
pub fn spawn(client: kube::Client) -> (watch::Receiver<Arc<Snapshot>>, JoinHandle<()>) {
    let (publish, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let task = tokio::spawn(async move {
        let (tx, mut rx) = mpsc::channel(IN_FLIGHT);
        let mut watches = tokio::task::JoinSet::new();
        for kind in Kind::ALL {
            watches.spawn(feed(client.clone(), kind, tx.clone()));
        }
        drop(tx);
        let mut building = Building::default();
        loop {
            let first = tokio::select! {
                change = rx.recv() => change,
                () = publish.closed() => return,
            };
            let Some((kind, change)) = first else { return };
            building.apply(kind, change);
            while let Ok((kind, change)) = rx.try_recv() {
                building.apply(kind, change);
            }
            publish.send_replace(Arc::new(building.snapshot.clone()));
        }
    });
    (receiver, task)
}

fn resource_of(kind: Kind) -> Resource {
    match kind {
        Kind::Namespace => resource::NAMESPACE,
        Kind::Node => resource::NODE,
        Kind::Pod => resource::POD,
        Kind::Service => resource::SERVICE,
        Kind::EndpointSlice => resource::ENDPOINT_SLICE,
    }
}

async fn feed(client: kube::Client, kind: Kind, tx: mpsc::Sender<(Kind, Change)>) {
    let mut parser = Parser::default();
    // `follow` cannot wait inside its sink, so deltas pass through an unbounded queue of at most one chunk of the stream.
    let (raw_tx, mut raw) = mpsc::unbounded_channel();
    let resource = resource_of(kind);
    let source = follow::follow(&client, &resource, "", |delta| {
        let change = match delta {
            Delta::Listing => Change::Listing,
            Delta::Listed(revision) => Change::Listed(revision),
            Delta::Bookmark(revision) => Change::Bookmark(revision),
            Delta::Put(v) => put(&mut parser, kind, &v),
            Delta::Gone(v) => match parse::key(&v) {
                Some(key) => Change::Gone(key, parse::revision(&v)),
                None => return true,
            },
        };
        raw_tx.send(change).is_ok()
    });
    let forward = async {
        while let Some(change) = raw.recv().await {
            if tx.send((kind, change)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = source => (),
        () = forward => (),
    }
}

fn put(parser: &mut Parser, kind: Kind, v: &Value) -> Change {
    fn tell<T>((object, problems): (Option<T>, Vec<Problem>)) -> Option<T> {
        for p in problems {
            tracing::debug!("{p}");
        }
        object
    }
    let object = match kind {
        Kind::Namespace => tell(parser.namespace(v)).map(Object::Namespace),
        Kind::Node => tell(parser.node(v)).map(Object::Node),
        Kind::Pod => tell(parser.pod(v)).map(Object::Pod),
        Kind::Service => tell(parser.service(v)).map(Object::Service),
        Kind::EndpointSlice => tell(parser.endpoint_slice(v)).map(Object::Slice),
    };
    let revision = parse::revision(v);
    match object {
        Some(object) => Change::Put(Box::new(object), revision),
        None => match parse::key(v) {
            Some(key) => Change::Gone(key, revision),
            None => Change::Bookmark(revision),
        },
    }
}

#[derive(Default)]
struct Building {
    snapshot: Snapshot,
    /// By kind, while a list is coming in: the keys seen in it.
    listing: [Option<HashSet<ObjectKey>>; Kind::ALL.len()],
    /// Slices are indexed by Service in the snapshot; this finds them by their own key.
    slice_service: std::collections::HashMap<ObjectKey, ObjectKey>,
}

impl Building {
    fn apply(&mut self, kind: Kind, change: Change) {
        let s = &mut self.snapshot;
        match change {
            Change::Listing => self.listing[kind as usize] = Some(HashSet::new()),
            Change::Bookmark(revision) => s.advance(kind, revision),
            Change::Put(object, revision) => {
                let key = match *object {
                    Object::Namespace(o) => keep(&mut s.namespaces, o.meta.key.clone(), o),
                    Object::Node(o) => keep(&mut s.nodes, o.meta.key.clone(), o),
                    Object::Pod(o) => keep(&mut s.pods, o.meta.key.clone(), o),
                    Object::Service(o) => keep(&mut s.services, o.meta.key.clone(), o),
                    Object::Slice(o) => self.put_slice(o),
                };
                match &mut self.listing[kind as usize] {
                    // The list's own revision is the newest of it; single ones say nothing before it is complete.
                    Some(seen) => {
                        seen.insert(key);
                    }
                    None => self.snapshot.advance(kind, revision),
                }
            }
            Change::Gone(key, revision) => {
                self.remove(kind, &key);
                if self.listing[kind as usize].is_none() {
                    self.snapshot.advance(kind, revision);
                }
            }
            Change::Listed(revision) => {
                if let Some(seen) = self.listing[kind as usize].take() {
                    for key in self.keys(kind) {
                        if !seen.contains(&key) {
                            self.remove(kind, &key);
                        }
                    }
                }
                self.snapshot.advance(kind, revision);
                self.snapshot.mark_listed(kind);
            }
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice) -> ObjectKey {
        let key = slice.meta.key.clone();
        let before = self.slice_service.insert(key.clone(), slice.service.clone());
        let same = before
            .as_ref()
            .is_some_and(|service| self.snapshot.slices_of(service).iter().any(|s| s.meta.key == key && **s == slice));
        if !same {
            self.snapshot.put_slice(Arc::new(slice), before.as_ref());
        }
        key
    }

    fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        let s = &mut self.snapshot;
        match kind {
            Kind::Namespace => drop(s.namespaces.remove(key)),
            Kind::Node => drop(s.nodes.remove(key)),
            Kind::Pod => drop(s.pods.remove(key)),
            Kind::Service => drop(s.services.remove(key)),
            Kind::EndpointSlice => {
                if let Some(service) = self.slice_service.remove(key) {
                    s.remove_slice(key, &service);
                }
            }
        }
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let s = &self.snapshot;
        match kind {
            Kind::Namespace => s.namespaces.keys().cloned().collect(),
            Kind::Node => s.nodes.keys().cloned().collect(),
            Kind::Pod => s.pods.keys().cloned().collect(),
            Kind::Service => s.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slice_service.keys().cloned().collect(),
        }
    }
}

/// An equal object keeps its place in memory: readers skip it by pointer.
fn keep<T: PartialEq>(map: &mut Map<ObjectKey, Arc<T>>, key: ObjectKey, object: T) -> ObjectKey {
    if map.get(&key).is_none_or(|known| **known != object) {
        map.insert(key.clone(), Arc::new(object));
    }
    key
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, revision: u64) -> Change {
        let v = json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": revision.to_string()}});
        put(&mut Parser::default(), Kind::Pod, &v)
    }

    fn slice(name: &str, service: &str, revision: u64) -> Change {
        let v = json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": revision.to_string(),
            "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4"});
        put(&mut Parser::default(), Kind::EndpointSlice, &v)
    }

    #[test]
    fn a_new_list_sweeps_what_it_does_not_name() {
        let mut b = Building::default();
        for change in [Change::Listing, pod("a", 3), pod("b", 9), Change::Listed(10)] {
            b.apply(Kind::Pod, change);
        }
        assert!(b.snapshot.is_listed(Kind::Pod) && !b.snapshot.is_complete());
        assert_eq!((b.snapshot.pods.len(), b.snapshot.revision_of(Kind::Pod)), (2, 10));
        let kept = b.snapshot.pods.get(&ObjectKey::new("default", "b")).cloned().unwrap();
        for change in [Change::Listing, pod("b", 9), pod("c", 12), Change::Listed(12)] {
            b.apply(Kind::Pod, change);
        }
        let names: Vec<_> = b.snapshot.pods.keys().map(|k| k.name.to_string()).collect();
        assert_eq!(names, ["b", "c"]);
        assert!(Arc::ptr_eq(&kept, b.snapshot.pods.get(&ObjectKey::new("default", "b")).unwrap()));
    }

    #[test]
    fn a_relabelled_slice_moves_and_an_unusable_one_leaves() {
        let mut b = Building::default();
        b.apply(Kind::EndpointSlice, slice("s", "a", 1));
        b.apply(Kind::EndpointSlice, slice("s", "b", 2));
        let of = |b: &Building, s: &str| b.snapshot.slices_of(&ObjectKey::new("default", s)).len();
        assert_eq!((of(&b, "a"), of(&b, "b")), (0, 1));
        b.apply(Kind::EndpointSlice, slice("s", "", 3));
        assert_eq!((of(&b, "a"), of(&b, "b"), b.snapshot.revision), (0, 0, 3));
    }
}
