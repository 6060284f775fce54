//! Services and Pods to EndpointSlices ([`model::slices`]).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use cluster::Error;
use model::{
    Kind, ObjectKey, Pod, Snapshot,
    diff::Changes,
    selects,
    slices::{self, SliceOwner, SliceSpec},
};

use crate::{
    hand::Hand,
    queue,
    world::{Table, World, changed},
};

pub struct Controller;

impl queue::Controller for Controller {
    const NAME: &'static str = "endpointslice-controller";
    type Key = ObjectKey;

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_complete()
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<ObjectKey>) {
        let (old, new) = (&old.snapshot, &new.snapshot);
        services_affected(old, new, keys);
        for change in old.slices.changes(&new.slices, Arc::ptr_eq) {
            keys.insert(change.key.clone());
        }
        let mut zones = false;
        changed(&old.nodes, &new.nodes, |_, before, after| {
            zones |= before.and_then(|n| n.zone.as_ref()) != after.and_then(|n| n.zone.as_ref());
        });
        if zones {
            keys.extend(new.services.keys().cloned());
        }
    }

    async fn reconcile(&self, world: &World, key: &ObjectKey, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let s = &world.snapshot;
        // Slices of a Service that is gone go with it, by ownerReference.
        let Some(service) = s.services.get(key).filter(|s| !s.meta.deleting) else { return Ok(None) };
        let changes = slices::reconcile(service, s.pods_in(&key.namespace), &s.nodes, s.slices_of(key));
        let owner = SliceOwner { kind: "Service", name: &key.name, uid: &service.meta.uid };
        write(world, key, &changes, &owner, hand).await?;
        Ok(None)
    }
}

/// Services that changed, or that select (or selected) a pod that changed.
pub fn services_affected(old: &Snapshot, new: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    changed(&old.services, &new.services, |key, _, _| {
        keys.insert(key.clone());
    });
    changed(&old.pods, &new.pods, |key, before, after| {
        if before.zip(after).is_some_and(|(a, b)| same_endpoint(a, b)) {
            return;
        }
        for service in new.services_in(&key.namespace) {
            let selected = |p: &Arc<Pod>| service.selector.as_ref().is_some_and(|s| selects(s, &p.meta.labels));
            if before.is_some_and(selected) || after.is_some_and(selected) {
                keys.insert(service.meta.key.clone());
            }
        }
    });
}

/// Nothing an endpoint is made of differs.
fn same_endpoint(a: &Pod, b: &Pod) -> bool {
    a.ready == b.ready
        && a.ips == b.ips
        && a.meta.deleting == b.meta.deleting
        && a.meta.labels == b.meta.labels
        && a.meta.uid == b.meta.uid
        && a.terminal() == b.terminal()
        && a.node == b.node
}

/// Make before break: slices are changed and added before others are removed.
pub async fn write(
    world: &World,
    key: &ObjectKey,
    changes: &Changes<SliceSpec>,
    owner: &SliceOwner<'_>,
    hand: &Hand<'_>,
) -> Result<(), Error> {
    let table = Table::Model(Kind::EndpointSlice);
    for slice in &changes.update {
        hand.update(table, &slices::object(slice, owner)).await?;
    }
    for slice in changes.create.iter().filter(|_| world.takes_objects(&key.namespace)) {
        hand.create(table, &key.namespace, &slices::object(slice, owner)).await?;
    }
    for name in &changes.delete {
        let uid = world.snapshot.slices_of(key).iter().find(|s| s.meta.key == *name).map(|s| s.meta.uid.clone());
        hand.delete(table, name, uid.as_deref().unwrap_or_default()).await?;
    }
    Ok(())
}
