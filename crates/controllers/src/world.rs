//! Everything the controllers read, at one moment: the snapshot and the kinds beside it.

use std::sync::Arc;

use cluster::{Resource, objects, resource};
use model::{
    Kind, Meta, ObjectKey, Snapshot,
    map::Map,
    parse,
    slices::endpoints,
    workload::{deployment::Deployment, replicaset::ReplicaSet, statefulset::StatefulSet},
};
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet};

pub use objects::Objects;

/// An Endpoints object as far as controllers need it.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoints {
    pub uid: Arc<str>,
    pub resource_version: Arc<str>,
    pub deleting: bool,
    /// See [`endpoints::fingerprint`].
    pub fingerprint: u64,
    /// The whole object when somebody else wrote it.
    pub foreign: Option<Value>,
}

/// An object of which only the existence counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub uid: Arc<str>,
    pub deleting: bool,
    /// Of a ConfigMap: the certificate in it.
    pub ca: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// `spec.renewTime`, RFC 3339.
    pub renewed: Arc<str>,
    /// `spec.leaseDurationSeconds`
    pub seconds: u64,
}

/// One value that a controller's decision may depend on; replaced whole.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub snapshot: Arc<Snapshot>,
    pub deployments: Arc<Objects<Deployment>>,
    pub replica_sets: Arc<Objects<ReplicaSet>>,
    pub stateful_sets: Arc<Objects<StatefulSet>>,
    pub endpoints: Arc<Objects<Endpoints>>,
    /// ServiceAccounts named `default`.
    pub accounts: Arc<Objects<Named>>,
    /// ConfigMaps named `kube-root-ca.crt`.
    pub roots: Arc<Objects<Named>>,
    /// Of nodes, by the node's name.
    pub leases: Arc<Objects<Lease>>,
}

/// Where a write will show up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Model(Kind),
    Deployments,
    ReplicaSets,
    StatefulSets,
    Endpoints,
    Accounts,
    Roots,
}

impl Table {
    pub fn resource(self) -> Resource {
        match self {
            Self::Model(Kind::Namespace) => resource::NAMESPACE,
            Self::Model(Kind::Node) => resource::NODE,
            Self::Model(Kind::Pod) => resource::POD,
            Self::Model(Kind::Service) => resource::SERVICE,
            Self::Model(Kind::EndpointSlice) => resource::ENDPOINT_SLICE,
            Self::Deployments => resource::DEPLOYMENT,
            Self::ReplicaSets => resource::REPLICA_SET,
            Self::StatefulSets => resource::STATEFUL_SET,
            Self::Endpoints => resource::ENDPOINTS,
            Self::Accounts => resource::SERVICE_ACCOUNT,
            Self::Roots => resource::CONFIG_MAP,
        }
    }
}

impl World {
    /// Everything written to the table up to this resourceVersion is in it.
    pub fn revision(&self, table: Table) -> u64 {
        match table {
            Table::Model(kind) => self.snapshot.revision_of(kind),
            Table::Deployments => self.deployments.revision,
            Table::ReplicaSets => self.replica_sets.revision,
            Table::StatefulSets => self.stateful_sets.revision,
            Table::Endpoints => self.endpoints.revision,
            Table::Accounts => self.accounts.revision,
            Table::Roots => self.roots.revision,
        }
    }

    /// The object with this uid is there and not on its way out.
    pub fn is_alive(&self, table: Table, key: &ObjectKey, uid: &str) -> bool {
        let s = &self.snapshot;
        let meta = |m: Option<&Meta>| m.is_some_and(|m| *m.uid == *uid && !m.deleting);
        let named = |n: Option<&Arc<Named>>| n.is_some_and(|n| *n.uid == *uid && !n.deleting);
        match table {
            Table::Model(Kind::Namespace) => meta(s.namespaces.get(key).map(|o| &o.meta)),
            Table::Model(Kind::Node) => meta(s.nodes.get(key).map(|o| &o.meta)),
            Table::Model(Kind::Pod) => meta(s.pods.get(key).map(|o| &o.meta)),
            Table::Model(Kind::Service) => meta(s.services.get(key).map(|o| &o.meta)),
            // Slices are found by Service; their own key is searched there by who asks.
            Table::Model(Kind::EndpointSlice) => {
                s.slices.values().flat_map(|l| l.iter()).any(|o| o.meta.key == *key && meta(Some(&o.meta)))
            }
            Table::Deployments => meta(self.deployments.map.get(key).map(|o| &o.meta)),
            Table::ReplicaSets => meta(self.replica_sets.map.get(key).map(|o| &o.meta)),
            Table::StatefulSets => meta(self.stateful_sets.map.get(key).map(|o| &o.meta)),
            Table::Endpoints => self.endpoints.map.get(key).is_some_and(|e| *e.uid == *uid && !e.deleting),
            Table::Accounts => named(self.accounts.map.get(key)),
            Table::Roots => named(self.roots.map.get(key)),
        }
    }

    /// The namespace exists and takes new objects.
    pub fn takes_objects(&self, namespace: &str) -> bool {
        self.snapshot.namespaces.get(&ObjectKey::new("", namespace)).is_some_and(|n| !n.meta.deleting)
    }
}

/// The objects of one namespace in a table of parsed objects.
pub fn in_namespace<'a, T>(map: &'a Map<ObjectKey, Arc<T>>, namespace: &'a str) -> impl Iterator<Item = &'a Arc<T>> {
    map.iter_from(move |k| *k.namespace < *namespace)
        .take_while(move |(k, _)| *k.namespace == *namespace)
        .map(|(_, v)| v)
}

/// The keys of a table whose objects are not the same in both.
pub fn changed<T>(
    old: &Map<ObjectKey, Arc<T>>,
    new: &Map<ObjectKey, Arc<T>>,
    mut each: impl FnMut(&ObjectKey, Option<&Arc<T>>, Option<&Arc<T>>),
) {
    for change in old.changes(new, Arc::ptr_eq) {
        each(change.key, change.old, change.new);
    }
}

/// Joins the watches into one value that is published after every change of any of them.
pub fn spawn(
    client: &kube::Client,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<Arc<World>> {
    macro_rules! follow {
        ($resource:expr, $query:expr, $read:expr) => {{
            let (receiver, task) = objects::spawn(client.clone(), $resource, $query, $read);
            // The watch ends by itself when its receiver goes; the handle only has to go with the set.
            tasks.spawn(async move {
                let _ = task.await;
            });
            receiver
        }};
    }
    let mut snapshot = snapshot;
    let mut deployments = follow!(resource::DEPLOYMENT, "", |v| parse::deployment(v).0);
    let mut replica_sets = follow!(resource::REPLICA_SET, "", |v| parse::replica_set(v).0);
    let mut stateful_sets = follow!(resource::STATEFUL_SET, "", |v| parse::stateful_set(v).0);
    let mut endpoints = follow!(resource::ENDPOINTS, "", read_endpoints);
    let mut accounts = follow!(resource::SERVICE_ACCOUNT, "fieldSelector=metadata.name%3Ddefault", read_named);
    let mut roots = follow!(resource::CONFIG_MAP, "fieldSelector=metadata.name%3Dkube-root-ca.crt", read_named);
    let mut leases = follow!(resource::LEASE, "", read_lease);
    let (publish, receiver) = watch::channel(Arc::new(World::default()));
    tasks.spawn(async move {
        loop {
            let world = World {
                snapshot: snapshot.borrow_and_update().clone(),
                deployments: deployments.borrow_and_update().clone(),
                replica_sets: replica_sets.borrow_and_update().clone(),
                stateful_sets: stateful_sets.borrow_and_update().clone(),
                endpoints: endpoints.borrow_and_update().clone(),
                accounts: accounts.borrow_and_update().clone(),
                roots: roots.borrow_and_update().clone(),
                leases: leases.borrow_and_update().clone(),
            };
            publish.send_replace(Arc::new(world));
            let changed = tokio::select! {
                r = snapshot.changed() => r,
                r = deployments.changed() => r,
                r = replica_sets.changed() => r,
                r = stateful_sets.changed() => r,
                r = endpoints.changed() => r,
                r = accounts.changed() => r,
                r = roots.changed() => r,
                r = leases.changed() => r,
                () = publish.closed() => return,
            };
            if changed.is_err() {
                return; // the program is ending
            }
        }
    });
    receiver
}

fn text(v: &Value) -> Arc<str> {
    v.as_str().unwrap_or_default().into()
}

fn read_endpoints(v: &Value) -> Option<Endpoints> {
    let m = &v["metadata"];
    let foreign = (!endpoints::ours(v)).then(|| {
        let mut v = v.clone();
        if let Some(m) = v["metadata"].as_object_mut() {
            m.remove("managedFields");
        }
        v
    });
    Some(Endpoints {
        uid: text(&m["uid"]),
        resource_version: text(&m["resourceVersion"]),
        deleting: !m["deletionTimestamp"].is_null(),
        fingerprint: endpoints::fingerprint(v),
        foreign,
    })
}

fn read_named(v: &Value) -> Option<Named> {
    let m = &v["metadata"];
    let ca = v["data"]["ca.crt"].as_str().map(Into::into);
    Some(Named { uid: text(&m["uid"]), deleting: !m["deletionTimestamp"].is_null(), ca })
}

fn read_lease(v: &Value) -> Option<Lease> {
    (v["metadata"]["namespace"] == "kube-node-lease").then(|| Lease {
        renewed: text(&v["spec"]["renewTime"]),
        seconds: v["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(40),
    })
}
