//! Pods to nodes: the ready node with the fewest pods among those the pod accepts. One machine has one answer; the words
//! and the conditions are those `kubectl describe pod` readers know.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cluster::{Error, event::Recorder, write::PatchKind};
use jiff::Timestamp;
use model::{Kind, Node, ObjectKey, Pod, Snapshot, selects, workload::rfc3339};
use serde_json::json;

use crate::{
    about,
    hand::Hand,
    queue,
    world::{Table, World, changed},
};

pub struct Controller {
    events: Recorder,
    /// Placed by us and not yet seen as placed: they count on their node.
    assumed: Mutex<HashMap<ObjectKey, Arc<str>>>,
}

impl Controller {
    pub fn new(events: Recorder) -> Self {
        Self { events, assumed: Mutex::default() }
    }

    /// The best node, or why there is none.
    fn place(&self, snapshot: &Snapshot, pod: &Pod) -> Result<Arc<Node>, String> {
        let mut assumed = self.assumed.lock().unwrap_or_else(PoisonError::into_inner);
        assumed.retain(|key, _| snapshot.pods.get(key).is_some_and(|p| p.node.is_none()));
        let mut load: HashMap<&str, usize> = HashMap::new();
        for p in snapshot.pods.values().filter(|p| !p.terminal()) {
            if let Some(node) = p.node.as_deref().or_else(|| assumed.get(&p.meta.key).map(|n| &**n)) {
                *load.entry(node).or_default() += 1;
            }
        }
        let mut refused: HashMap<&str, usize> = HashMap::new();
        let mut best: Option<(usize, &Arc<Node>)> = None;
        for node in snapshot.nodes.values() {
            let why = if !selects(&pod.node_selector, &node.meta.labels) {
                "node(s) didn't match Pod's node affinity/selector"
            } else if node.unschedulable {
                "node(s) were unschedulable"
            } else if !node.ready || node.meta.deleting {
                "node(s) were not ready"
            } else {
                let pods = load.get(&*node.meta.key.name).copied().unwrap_or(0);
                if best.is_none_or(|(least, _)| pods < least) {
                    best = Some((pods, node));
                }
                continue;
            };
            *refused.entry(why).or_default() += 1;
        }
        match best {
            Some((_, node)) => {
                assumed.insert(pod.meta.key.clone(), node.meta.key.name.clone());
                Ok(node.clone())
            }
            None if snapshot.nodes.is_empty() => Err("no nodes available to schedule pods".into()),
            None => {
                let mut reasons: Vec<_> = refused.into_iter().map(|(why, n)| format!("{n} {why}")).collect();
                reasons.sort();
                Err(format!("0/{} nodes are available: {}.", snapshot.nodes.len(), reasons.join(", ")))
            }
        }
    }
}

/// It waits for a node and for nobody else's decision.
fn waiting(pod: &Pod) -> bool {
    pod.node.is_none()
        && !pod.meta.deleting
        && !pod.terminal()
        && !pod.gated
        && matches!(&*pod.scheduler, "" | "default-scheduler")
}

impl queue::Controller for Controller {
    const NAME: &'static str = "default-scheduler";
    type Key = ObjectKey;

    fn is_ready(&self, world: &World) -> bool {
        world.snapshot.is_listed(Kind::Pod) && world.snapshot.is_listed(Kind::Node)
    }

    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<ObjectKey>) {
        let (old, new) = (&old.snapshot, &new.snapshot);
        changed(&old.pods, &new.pods, |key, _, after| {
            if after.is_some_and(|p| waiting(p)) {
                keys.insert(key.clone());
            }
        });
        let mut nodes = false;
        changed(&old.nodes, &new.nodes, |_, _, _| nodes = true);
        if nodes {
            keys.extend(new.pods.values().filter(|p| waiting(p)).map(|p| p.meta.key.clone()));
        }
    }

    async fn reconcile(&self, world: &World, key: &ObjectKey, hand: &Hand<'_>) -> Result<Option<Duration>, Error> {
        let Some(pod) = world.snapshot.pods.get(key).filter(|p| waiting(p)) else { return Ok(None) };
        let me = about("v1", "Pod", &pod.meta);
        match self.place(&world.snapshot, pod) {
            Ok(node) => {
                let node = &node.meta.key.name;
                let binding = json!({"apiVersion": "v1", "kind": "Binding",
                    "metadata": {"name": &*key.name, "namespace": &*key.namespace, "uid": &*pod.meta.uid},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": &**node}});
                match hand.bind(key, &binding).await {
                    Ok(()) => {
                        self.events.normal(&me, "Scheduled", format!("Successfully assigned {key} to {node}"));
                        Ok(None)
                    }
                    Err(e) => {
                        self.assumed.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
                        if e.is_not_found() { Ok(None) } else { Err(e) }
                    }
                }
            }
            Err(why) if *pod.reason == *format!("Unschedulable: {why}") => Ok(None),
            Err(why) => {
                let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": why, "lastTransitionTime": rfc3339(Timestamp::now())});
                let patch = json!({"status": {"conditions": [condition]}});
                hand.patch(Table::Model(Kind::Pod), key, "status", PatchKind::Strategic, &patch).await?;
                self.events.warning(&me, "FailedScheduling", why);
                Ok(None)
            }
        }
    }
}
