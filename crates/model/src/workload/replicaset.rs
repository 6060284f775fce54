//! ReplicaSet: so many pods of one template, no more and no fewer.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Owner, Recheck, Selector, available, count, pod_from};
use crate::object::{Labels, Meta, ObjectKey, Pod, PodPhase};

/// Pods created in one step at most; the rest follow when these are seen.
const BURST: u32 = 500;

#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaSet {
    pub meta: Meta,
    pub replicas: u32,
    pub selector: Option<Selector>,
    pub min_ready_seconds: u32,
    pub template: Arc<Value>,
    pub status: Status,
}

/// The numbers in `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub replicas: u32,
    pub fully_labeled: u32,
    pub ready: u32,
    pub available: u32,
    pub observed_generation: i64,
}

/// One step of a ReplicaSet.
#[derive(Debug, Default)]
pub struct Plan {
    pub create: Vec<Value>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods that match and belong to nobody.
    pub adopt: Vec<Arc<Pod>>,
    /// Pods that belong to it and no longer match.
    pub release: Vec<Arc<Pod>>,
    /// The status to write, when it differs from what is there.
    pub status: Option<Status>,
    pub recheck: Recheck,
}

impl ReplicaSet {
    pub fn owner(&self) -> Owner<'_> {
        Owner { api_version: "apps/v1", kind: "ReplicaSet", name: &self.meta.key.name, uid: &self.meta.uid }
    }
}

/// Pods that count: not finished and not on their way out.
pub fn active(pod: &Pod) -> bool {
    !pod.terminal() && !pod.meta.deleting
}

/// One step towards the wanted number. `pods` are those of its namespace.
pub fn reconcile<'a>(rs: &ReplicaSet, pods: impl Iterator<Item = &'a Arc<Pod>>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut mine: Vec<Arc<Pod>> = Vec::new();
    let mut neighbours: HashMap<Option<Arc<str>>, u32> = HashMap::new();
    for pod in pods {
        let matches = rs.selector.as_ref().is_some_and(|s| s.matches(&pod.meta.labels));
        match &pod.meta.controller {
            Some((_, uid)) if *uid == rs.meta.uid => {
                // A selector that cannot be read lets nobody go.
                if !matches && !rs.meta.deleting && rs.selector.is_some() {
                    plan.release.push(pod.clone());
                } else if active(pod) {
                    *neighbours.entry(pod.node.clone()).or_default() += 1;
                    mine.push(pod.clone());
                }
            }
            None if matches && active(pod) && !rs.meta.deleting => plan.adopt.push(pod.clone()),
            _ => (),
        }
    }
    let status = status(rs, &mine, now, &mut plan.recheck);
    if status != rs.status {
        plan.status = Some(status);
    }
    if rs.meta.deleting || rs.selector.is_none() {
        return plan;
    }
    let have = u32::try_from(mine.len() + plan.adopt.len()).unwrap_or(u32::MAX);
    if have < rs.replicas {
        let prefix = format!("{}-", rs.meta.key.name);
        let pod = pod_from(&rs.template, &rs.meta.key.namespace, &prefix, &rs.owner());
        plan.create = vec![pod; (rs.replicas - have).min(BURST) as usize];
    } else if have > rs.replicas && plan.adopt.is_empty() {
        mine.sort_by_cached_key(|p| rank(p, neighbours.get(&p.node).copied().unwrap_or(0)));
        mine.truncate((have - rs.replicas) as usize);
        plan.delete = mine;
    }
    plan
}

fn status(rs: &ReplicaSet, mine: &[Arc<Pod>], now: Timestamp, recheck: &mut Recheck) -> Status {
    let template_labels: Labels = crate::parse::labels(&rs.template["metadata"]["labels"]);
    let mut s = Status { observed_generation: rs.meta.generation, ..Status::default() };
    for pod in mine {
        s.replicas += 1;
        s.fully_labeled += u32::from(crate::object::selects(&template_labels, &pod.meta.labels));
        s.ready += u32::from(pod.ready);
        s.available += u32::from(available(pod, rs.min_ready_seconds, now, recheck));
    }
    s
}

type Rank = (
    bool,
    u8,
    bool,
    i64,
    std::cmp::Reverse<u32>,
    std::cmp::Reverse<Arc<str>>,
    std::cmp::Reverse<u32>,
    std::cmp::Reverse<Arc<str>>,
    ObjectKey,
);

/// Sorts the pod to miss least first: not placed, not running, not ready, cheap by annotation, crowded on its node,
/// ready for a shorter time, restarted more often, younger.
fn rank(pod: &Pod, on_node: u32) -> Rank {
    let phase = match pod.phase {
        PodPhase::Pending => 0,
        PodPhase::Unknown => 1,
        _ => 2,
    };
    let cost = pod.meta.annotations.get("controller.kubernetes.io/pod-deletion-cost").and_then(|c| c.parse().ok());
    (
        pod.node.is_some(),
        phase,
        pod.ready,
        cost.unwrap_or(0),
        std::cmp::Reverse(on_node),
        std::cmp::Reverse(pod.ready_since.clone()),
        std::cmp::Reverse(pod.restarts),
        std::cmp::Reverse(pod.meta.creation_timestamp.clone()),
        pod.meta.key.clone(),
    )
}

impl Status {
    pub fn parse(v: &Value) -> Self {
        Self {
            replicas: count(&v["replicas"]),
            fully_labeled: count(&v["fullyLabeledReplicas"]),
            ready: count(&v["readyReplicas"]),
            available: count(&v["availableReplicas"]),
            observed_generation: v["observedGeneration"].as_i64().unwrap_or(0),
        }
    }

    /// `status` as the API takes it; zero counts are written so that a merge replaces old ones.
    pub fn object(&self) -> Value {
        json!({"replicas": self.replicas, "fullyLabeledReplicas": self.fully_labeled, "readyReplicas": self.ready,
            "availableReplicas": self.available, "observedGeneration": self.observed_generation})
    }
}

#[cfg(test)]
mod tests;
