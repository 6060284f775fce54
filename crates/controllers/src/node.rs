//! Nodes that fell silent: when the Lease of a node is no longer renewed, the node is not ready, and nothing new is
//! placed there.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use cluster::{Error, event::Recorder, write::PatchKind};
use jiff::Timestamp;
use model::{Kind, ObjectKey, workload::rfc3339};
use serde_json::json;

use crate::{
    about,
    hand::Hand,
    queue,
    world::{Table, World, changed},
};

pub struct Controller {
    pub events: Recorder,
    pub state: State,
}

#[derive(Default)]
pub struct State {
    /// Silence before this program ran is not held against a node: it may have been stopped as well.
    started: OnceLock<Timestamp>,
    /// Nodes declared silent by us, to be declared well again by us.
    silent: Mutex<HashSet<Arc<str>>>,
}

impl queue::Controller for Controller {
    const NAME: &'static str = "node-controller";
    type Key = Arc<str>;

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_listed(Kind::Node) && world.leases.listed
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<Arc<str>>) {
        changed(&old.snapshot.nodes, &new.snapshot.nodes, |key, _, _| {
            keys.insert(key.name.clone());
        });
        changed(&old.leases.map, &new.leases.map, |key, _, _| {
            keys.insert(key.name.clone());
        });
    }

    async fn reconcile(&self, world: &World, name: &Arc<str>, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let now = Timestamp::now();
        let started = *self.state.started.get_or_init(|| now);
        let key = ObjectKey::new("", name.clone());
        let Some(node) = world.snapshot.nodes.get(&key) else { return Ok(None) };
        let Some(lease) = world.leases.map.get(&ObjectKey::new("kube-node-lease", name.clone())) else {
            return Ok(None);
        };
        let Ok(renewed) = lease.renewed.parse::<Timestamp>() else { return Ok(None) };
        let silence = now.duration_since(renewed.max(started)).as_secs();
        let left = i64::try_from(lease.seconds).unwrap_or(i64::MAX).saturating_sub(silence);
        let marked = self.state.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(name);
        let me = about("v1", "Node", &node.meta);
        let (status, reason, message) = match (left > 0, node.ready, marked) {
            (false, true, _) => ("Unknown", "NodeStatusUnknown", "The node's agent stopped renewing its lease."),
            (true, false, true) => ("True", "KubeletReady", "The node's agent renews its lease again."),
            (false, false, _) => return Ok(None),
            (true, ..) => return Ok(Some(Duration::from_secs(left.unsigned_abs() + 1))),
        };
        let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": rfc3339(now), "lastTransitionTime": rfc3339(now)});
        let patch = json!({"status": {"conditions": [condition]}});
        hand.patch(Table::Model(Kind::Node), &key, "status", PatchKind::Strategic, &patch).await?;
        let mut silent = self.state.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if status == "True" {
            silent.remove(name);
            self.events.normal(&me, "NodeReady", format!("Node {name} status is now: NodeReady"));
        } else {
            silent.insert(name.clone());
            self.events.normal(&me, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
        }
        Ok(None)
    }
}
