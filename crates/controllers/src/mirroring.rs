//! Hand-written Endpoints to EndpointSlices ([`model::slices::mirror`]).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use cluster::Error;
use model::{
    ObjectKey,
    slices::{SliceOwner, mirror},
};

use crate::{
    endpointslice,
    hand::Hand,
    queue,
    world::{World, changed},
};

pub struct Controller;

impl queue::Controller for Controller {
    const NAME: &'static str = "endpointslicemirroring-controller";
    type Key = ObjectKey;

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_complete() && world.endpoints.listed
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<ObjectKey>) {
        changed(&old.snapshot.services, &new.snapshot.services, |key, _, _| {
            keys.insert(key.clone());
        });
        changed(&old.endpoints.map, &new.endpoints.map, |key, _, _| {
            keys.insert(key.clone());
        });
        for change in old.snapshot.slices.changes(&new.snapshot.slices, Arc::ptr_eq) {
            keys.insert(change.key.clone());
        }
    }

    async fn reconcile(&self, world: &World, key: &ObjectKey, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let s = &world.snapshot;
        let service = s.services.get(key).filter(|s| !s.meta.deleting);
        let source = world.endpoints.map.get(key).filter(|e| !e.deleting);
        let changes =
            mirror::reconcile(service.map(|s| &**s), source.and_then(|e| e.foreign.as_ref()), s.slices_of(key));
        let uid = source.map_or("", |e| &e.uid);
        let owner = SliceOwner { kind: "Endpoints", name: &key.name, uid };
        endpointslice::write(world, key, &changes, &owner, hand).await?;
        Ok(None)
    }
}
