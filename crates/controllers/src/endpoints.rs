//! Services and Pods to the older Endpoints ([`model::slices::endpoints`]).

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cluster::{Error, write::PatchKind};
use model::{ObjectKey, slices::endpoints};
use serde_json::json;

use crate::{
    endpointslice::services_affected,
    hand::Hand,
    queue,
    world::{Table, World, changed},
};

#[derive(Default)]
pub struct Controller {
    /// Services that were seen: when one of them goes, its Endpoints go with it, whoever wrote them.
    seen: Mutex<HashSet<ObjectKey>>,
}

impl queue::Controller for Controller {
    const NAME: &'static str = "endpoint-controller";
    type Key = ObjectKey;

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_complete() && world.endpoints.listed
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<ObjectKey>) {
        services_affected(&old.snapshot, &new.snapshot, keys);
        changed(&old.endpoints.map, &new.endpoints.map, |key, _, _| {
            keys.insert(key.clone());
        });
    }

    async fn reconcile(&self, world: &World, key: &ObjectKey, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let existing = world.endpoints.map.get(key);
        let Some(service) = world.snapshot.services.get(key) else {
            let known = self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(key);
            if let Some(e) = existing.filter(|e| !e.deleting && (known || e.foreign.is_none())) {
                hand.delete(Table::Endpoints, key, &e.uid).await?;
            }
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Ok(None);
        };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        if service.meta.deleting {
            return Ok(None);
        }
        match (endpoints::desired(service, world.snapshot.pods_in(&key.namespace)), existing) {
            (Some(want), None) if world.takes_objects(&key.namespace) => {
                hand.create(Table::Endpoints, &key.namespace, &want).await?;
            }
            (Some(mut want), Some(e)) if endpoints::fingerprint(&want) != e.fingerprint => {
                want["metadata"]["resourceVersion"] = (&*e.resource_version).into();
                hand.update(Table::Endpoints, &want).await?;
            }
            // The selector is gone and what it found is still there: no reader may mistake it for somebody's wish. Only in
            // exactly the state that was seen, lest what a person writes meanwhile is lost.
            (None, Some(e)) if e.foreign.is_none() => {
                let patch = json!({"metadata": {"resourceVersion": &*e.resource_version,
                    "labels": {endpoints::MANAGED_BY: null}}, "subsets": null});
                hand.patch(Table::Endpoints, key, "", PatchKind::Merge, &patch).await?;
            }
            _ => (),
        }
        Ok(None)
    }
}
