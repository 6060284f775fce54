//! ReplicaSets to Pods ([`model::workload::replicaset`]).

use std::{collections::BTreeSet, time::Duration};

use cluster::{Error, event::Recorder, write::PatchKind};
use futures::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use model::{Kind, Meta, ObjectKey, workload::replicaset as model_replicaset};
use serde_json::json;

use crate::{
    about,
    hand::Hand,
    queue,
    world::{Table, World, changed, in_namespace},
};

const PODS: Table = Table::Model(Kind::Pod);

pub struct Controller {
    pub events: Recorder,
}

impl queue::Controller for Controller {
    const NAME: &'static str = "replicaset-controller";
    type Key = ObjectKey;

    fn is_ready(&self, world: &World) -> bool {
        world.replica_sets.listed && world.snapshot.is_listed(Kind::Pod)
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<ObjectKey>) {
        changed(&old.replica_sets.map, &new.replica_sets.map, |key, _, _| {
            keys.insert(key.clone());
        });
        changed(&old.snapshot.pods, &new.snapshot.pods, |_, before, after| {
            for meta in [before, after].into_iter().flatten().map(|p| &p.meta) {
                owners(new, meta, keys);
            }
        });
    }

    async fn reconcile(&self, world: &World, key: &ObjectKey, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let Some(rs) = world.replica_sets.map.get(key) else { return Ok(None) };
        let plan = model_replicaset::reconcile(rs, world.snapshot.pods_in(&key.namespace), Timestamp::now());
        let me = about("apps/v1", "ReplicaSet", &rs.meta);
        for pod in &plan.adopt {
            let patch = json!({"metadata": {"uid": &*pod.meta.uid, "ownerReferences": [rs.owner().reference()]}});
            hand.patch(PODS, &pod.meta.key, "", PatchKind::Strategic, &patch).await?;
        }
        for pod in &plan.release {
            let patch = json!({"metadata": {"uid": &*pod.meta.uid,
                "ownerReferences": [{"$patch": "delete", "uid": &*rs.meta.uid}]}});
            hand.patch(PODS, &pod.meta.key, "", PatchKind::Strategic, &patch).await?;
        }
        let mut result = Ok(());
        if world.takes_objects(&key.namespace) {
            result = self.create(&plan.create, key, &me, hand).await;
        }
        let deletes: FuturesUnordered<_> = plan
            .delete
            .iter()
            .map(|pod| async move { (pod, hand.delete(PODS, &pod.meta.key, &pod.meta.uid).await) })
            .collect();
        for (pod, deleted) in deletes.collect::<Vec<_>>().await {
            match deleted {
                Ok(()) => self.events.normal(&me, "SuccessfulDelete", format!("Deleted pod: {}", pod.meta.key.name)),
                Err(e) => {
                    self.events.warning(&me, "FailedDelete", format!("Error deleting: {e}"));
                    result = Err(e);
                }
            }
        }
        if let Some(status) = plan.status {
            let patch = json!({"status": status.object()});
            hand.patch(Table::ReplicaSets, key, "status", PatchKind::Merge, &patch).await?;
        }
        result.map(|()| plan.recheck.0)
    }
}

impl Controller {
    /// In growing batches, so that a refusal (a quota, an admission) is met once and not five hundred times.
    async fn create(
        &self,
        pods: &[serde_json::Value],
        key: &ObjectKey,
        me: &cluster::event::ObjectReference,
        hand: &Hand<'_>,
    ) -> Result<(), Error> {
        let (mut rest, mut batch) = (pods, 1);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let made: FuturesUnordered<_> = now.iter().map(|pod| hand.create(PODS, &key.namespace, pod)).collect();
            for made in made.collect::<Vec<_>>().await {
                match made {
                    Ok(pod) => {
                        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                        self.events.normal(me, "SuccessfulCreate", format!("Created pod: {name}"));
                    }
                    Err(e) => {
                        self.events.warning(me, "FailedCreate", format!("Error creating: {e}"));
                        return Err(e);
                    }
                }
            }
            rest = later;
            batch *= 2;
        }
        Ok(())
    }
}

/// The ReplicaSet a pod belongs to, or every one that might adopt it.
fn owners(world: &World, pod: &Meta, keys: &mut BTreeSet<ObjectKey>) {
    for rs in in_namespace(&world.replica_sets.map, &pod.key.namespace) {
        let fits = match &pod.controller {
            Some((_, uid)) => *uid == rs.meta.uid,
            None => rs.selector.as_ref().is_some_and(|s| s.matches(&pod.labels)),
        };
        if fits {
            keys.insert(rs.meta.key.clone());
        }
    }
}
