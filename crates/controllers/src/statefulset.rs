//! StatefulSets to Pods ([`model::workload::statefulset`]).

use std::{collections::BTreeSet, time::Duration};

use cluster::{Error, event::Recorder, write::PatchKind};
use jiff::Timestamp;
use model::{Kind, ObjectKey, workload::statefulset as model_statefulset};
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
    const NAME: &'static str = "statefulset-controller";
    type Key = ObjectKey;

    fn is_ready(&self, world: &World) -> bool {
        world.stateful_sets.listed && world.snapshot.is_listed(Kind::Pod)
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<ObjectKey>) {
        changed(&old.stateful_sets.map, &new.stateful_sets.map, |key, _, _| {
            keys.insert(key.clone());
        });
        changed(&old.snapshot.pods, &new.snapshot.pods, |key, before, after| {
            let owners = [before, after].into_iter().flatten().filter_map(|p| p.meta.controller.as_ref());
            for (kind, uid) in owners {
                let mut sets =
                    in_namespace(&new.stateful_sets.map, &key.namespace).filter(|_| &**kind == "StatefulSet");
                keys.extend(sets.find(|s| s.meta.uid == *uid).map(|s| s.meta.key.clone()));
            }
        });
    }

    async fn reconcile(&self, world: &World, key: &ObjectKey, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let Some(set) = world.stateful_sets.map.get(key) else { return Ok(None) };
        let plan = model_statefulset::reconcile(set, world.snapshot.pods_in(&key.namespace), Timestamp::now());
        let me = about("apps/v1", "StatefulSet", &set.meta);
        let name = &key.name;
        if world.takes_objects(&key.namespace) {
            for pod in &plan.create {
                let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
                match hand.create(PODS, &key.namespace, pod).await {
                    Ok(_) => {
                        let text = format!("create Pod {pod_name} in StatefulSet {name} successful");
                        self.events.normal(&me, "SuccessfulCreate", text);
                    }
                    Err(e) => {
                        let text = format!("create Pod {pod_name} in StatefulSet {name} failed error: {e}");
                        self.events.warning(&me, "FailedCreate", text);
                        return Err(e);
                    }
                }
            }
        }
        for pod in &plan.delete {
            hand.delete(PODS, &pod.meta.key, &pod.meta.uid).await?;
            let text = format!("delete Pod {} in StatefulSet {name} successful", pod.meta.key.name);
            self.events.normal(&me, "SuccessfulDelete", text);
        }
        if let Some(status) = plan.status {
            hand.patch(Table::StatefulSets, key, "status", PatchKind::Merge, &json!({"status": status})).await?;
        }
        Ok(plan.recheck.0)
    }
}
