//! Deployments to ReplicaSets ([`model::workload::deployment`]).

use std::{collections::BTreeSet, time::Duration};

use cluster::{Error, event::Recorder, write::PatchKind};
use jiff::Timestamp;
use model::{
    Kind, Meta, ObjectKey,
    workload::deployment::{self as model_deployment, Deployment},
};
use serde_json::{Value, json};

use crate::{
    about,
    hand::Hand,
    queue,
    world::{Table, World, changed, in_namespace},
};

pub struct Controller {
    pub events: Recorder,
}

impl queue::Controller for Controller {
    const NAME: &'static str = "deployment-controller";
    type Key = ObjectKey;

    fn is_ready(&self, world: &World) -> bool {
        world.deployments.listed && world.replica_sets.listed && world.snapshot.is_listed(Kind::Pod)
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<ObjectKey>) {
        changed(&old.deployments.map, &new.deployments.map, |key, _, _| {
            keys.insert(key.clone());
        });
        changed(&old.replica_sets.map, &new.replica_sets.map, |_, before, after| {
            for meta in [before, after].into_iter().flatten().map(|rs| &rs.meta) {
                owners(new, meta, keys);
            }
        });
        // A Recreate rollout goes on when the last old pod is gone.
        changed(&old.snapshot.pods, &new.snapshot.pods, |key, before, after| {
            let Some(pod) = before.filter(|_| after.is_none_or(|p| p.terminal())) else { return };
            let Some((_, uid)) = &pod.meta.controller else { return };
            let set = in_namespace(&new.replica_sets.map, &key.namespace).find(|rs| rs.meta.uid == *uid);
            if let Some(rs) = set {
                owners(new, &rs.meta, keys);
            }
        });
    }

    async fn reconcile(&self, world: &World, key: &ObjectKey, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let Some(d) = world.deployments.map.get(key) else { return Ok(None) };
        let sets: Vec<_> = in_namespace(&world.replica_sets.map, &key.namespace).cloned().collect();
        let pods_left = |rs: &_| world.snapshot.pods_in(&key.namespace).any(|p| model_deployment::holds_up(p, rs));
        let plan = model_deployment::reconcile(d, &sets, pods_left, Timestamp::now());
        let me = about("apps/v1", "Deployment", &d.meta);
        for orphan in &plan.adopt {
            let patch = json!({"metadata": {"ownerReferences": [d.owner().reference()]}});
            hand.patch(Table::ReplicaSets, orphan, "", PatchKind::Strategic, &patch).await?;
        }
        if let Some(rs) = &plan.create {
            self.create(world, d, rs, hand).await?;
        }
        for p in &plan.patch {
            let patch = json!({"metadata": {"annotations": p.annotations},
                "spec": {"replicas": p.to, "minReadySeconds": p.min_ready_seconds}});
            hand.patch(Table::ReplicaSets, &p.replica_set, "", PatchKind::Merge, &patch).await?;
            if p.from != p.to {
                let direction = if p.to > p.from { "up" } else { "down" };
                let name = &p.replica_set.name;
                let text = format!("Scaled {direction} replica set {name} from {} to {}", p.from, p.to);
                self.events.normal(&me, "ScalingReplicaSet", text);
            }
        }
        for old in &plan.delete {
            if let Some(rs) = world.replica_sets.map.get(old) {
                hand.delete(Table::ReplicaSets, old, &rs.meta.uid).await?;
            }
        }
        if let Some(revision) = &plan.revision {
            let patch = json!({"metadata": {"annotations": {model_deployment::REVISION: revision}}});
            hand.patch(Table::Deployments, key, "", PatchKind::Merge, &patch).await?;
        }
        if let Some(status) = plan.status {
            hand.patch(Table::Deployments, key, "status", PatchKind::Merge, &json!({"status": status})).await?;
        }
        Ok(plan.recheck.0)
    }
}

impl Controller {
    async fn create(&self, world: &World, d: &Deployment, rs: &Value, hand: &Hand<'_>) -> Result<(), Error> {
        if !world.takes_objects(&d.meta.key.namespace) {
            return Ok(());
        }
        let me = about("apps/v1", "Deployment", &d.meta);
        match hand.create(Table::ReplicaSets, &d.meta.key.namespace, rs).await {
            Ok(made) => {
                let (name, replicas) = (&made["metadata"]["name"], &made["spec"]["replicas"]);
                let name = name.as_str().unwrap_or_default();
                self.events.normal(
                    &me,
                    "ScalingReplicaSet",
                    format!("Scaled up replica set {name} from 0 to {replicas}"),
                );
                Ok(())
            }
            Err(e) if e.is_already_exists() => {
                // A stranger, or one with another template and the same hash: the next name is another one.
                let collisions = d.status["collisionCount"].as_u64().unwrap_or(0) + 1;
                let status = json!({"status": {"collisionCount": collisions}});
                hand.patch(Table::Deployments, &d.meta.key, "status", PatchKind::Merge, &status).await
            }
            Err(e) => {
                self.events.warning(&me, "ReplicaSetCreateError", format!("Failed to create new replica set: {e}"));
                Err(e)
            }
        }
    }
}

/// The Deployment a ReplicaSet belongs to, or every one that might adopt it.
fn owners(world: &World, rs: &Meta, keys: &mut BTreeSet<ObjectKey>) {
    for d in in_namespace(&world.deployments.map, &rs.key.namespace) {
        let fits = match &rs.controller {
            Some((_, uid)) => *uid == d.meta.uid,
            None => d.selector.as_ref().is_some_and(|s| s.matches(&rs.labels)),
        };
        if fits {
            keys.insert(d.meta.key.clone());
        }
    }
}
