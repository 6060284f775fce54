//! The cluster as one immutable value. Readers hold a [`Snapshot`] and see a single moment; a change makes a new one
//! that shares everything it did not touch, so that "recompute everything" can skip by pointer.

use std::sync::Arc;

use crate::{
    map::Map,
    object::{EndpointSlice, Namespace, Node, ObjectKey, Pod, Service},
};

pub type ServiceKey = ObjectKey;

/// The kinds a snapshot is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Namespace, Self::Node, Self::Pod, Self::Service, Self::EndpointSlice];
}

/// All slices of one Service, ordered by name.
pub type Slices = Arc<Vec<Arc<EndpointSlice>>>;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The newest resourceVersion that went into this snapshot.
    pub revision: u64,
    pub namespaces: Map<ObjectKey, Arc<Namespace>>,
    pub nodes: Map<ObjectKey, Arc<Node>>,
    pub pods: Map<ObjectKey, Arc<Pod>>,
    pub services: Map<ServiceKey, Arc<Service>>,
    /// By Service (label `kubernetes.io/service-name`), whether or not that Service exists.
    pub slices: Map<ServiceKey, Slices>,
    /// By [`Kind`]: the newest resourceVersion seen of that kind. A writer waits for its own write here.
    revisions: [u64; Kind::ALL.len()],
    listed: u8,
}

impl Snapshot {
    /// The kind has been listed completely at least once: absence means something.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.listed & (1 << kind as u8) != 0
    }

    /// Everything written to this kind up to this resourceVersion is in the snapshot.
    pub fn revision_of(&self, kind: Kind) -> u64 {
        self.revisions[kind as usize]
    }

    /// Notes that the kind is up to date with `revision`; it never goes back.
    pub fn advance(&mut self, kind: Kind, revision: u64) {
        let known = &mut self.revisions[kind as usize];
        *known = revision.max(*known);
        self.revision = self.revision.max(revision);
    }

    pub fn mark_listed(&mut self, kind: Kind) {
        self.listed |= 1 << kind as u8;
    }

    /// Services, slices and nodes are complete: a proxy may act on absence.
    pub fn is_complete(&self) -> bool {
        Kind::ALL.iter().all(|k| self.is_listed(*k))
    }

    pub fn slices_of(&self, service: &ServiceKey) -> &[Arc<EndpointSlice>] {
        self.slices.get(service).map_or(&[], |s| s.as_slice())
    }

    /// Adds or replaces one slice, moving it when its Service label changed.
    pub fn put_slice(&mut self, slice: Arc<EndpointSlice>, previous_service: Option<&ServiceKey>) {
        if let Some(before) = previous_service
            && *before != slice.service
        {
            self.remove_slice(&slice.meta.key.clone(), before);
        }
        let mut list = self.slices.get(&slice.service).map(|s| s.as_ref().clone()).unwrap_or_default();
        match list.binary_search_by(|s| s.meta.key.cmp(&slice.meta.key)) {
            Ok(i) => list[i] = slice.clone(),
            Err(i) => list.insert(i, slice.clone()),
        }
        self.slices.insert(slice.service.clone(), Arc::new(list));
    }

    pub fn remove_slice(&mut self, slice: &ObjectKey, service: &ServiceKey) {
        let Some(list) = self.slices.get(service) else { return };
        let rest: Vec<_> = list.iter().filter(|s| s.meta.key != *slice).cloned().collect();
        if rest.is_empty() {
            self.slices.remove(service);
        } else {
            self.slices.insert(service.clone(), Arc::new(rest));
        }
    }

    /// Pods of one namespace, in name order.
    pub fn pods_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods
            .iter_from(move |k| k.namespace.as_ref() < namespace)
            .take_while(move |(k, _)| k.namespace.as_ref() == namespace)
            .map(|(_, p)| p)
    }

    /// Services of one namespace, in name order.
    pub fn services_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services
            .iter_from(move |k| k.namespace.as_ref() < namespace)
            .take_while(move |(k, _)| k.namespace.as_ref() == namespace)
            .map(|(_, s)| s)
    }
}
