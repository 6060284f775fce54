//! Deployment: moves pods from old templates to the newest one, one ReplicaSet per template. The rules (rounding of
//! maxSurge and maxUnavailable, proportional scaling, conditions and their words) are kube-controller-manager's, because
//! `kubectl rollout status`, `wait` and dashboards read them.

mod conditions;
mod scale;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{IntOrPercent, Owner, Recheck, Selector, count, replicaset::ReplicaSet, template_hash};
use crate::object::{Labels, Meta, ObjectKey, Pod};

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of the Deployment that its ReplicaSets do not inherit.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    pub meta: Meta,
    pub replicas: u32,
    pub selector: Option<Selector>,
    /// `spec.selector` as it is, for the ReplicaSets.
    pub selector_object: Arc<Value>,
    pub template: Arc<Value>,
    pub strategy: Strategy,
    pub min_ready_seconds: u32,
    pub paused: bool,
    pub history_limit: usize,
    pub progress_deadline_seconds: u32,
    /// `status` as it is there.
    pub status: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    Recreate,
    RollingUpdate { max_surge: IntOrPercent, max_unavailable: IntOrPercent },
}

/// A write to one ReplicaSet.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    pub replica_set: ObjectKey,
    pub from: u32,
    pub to: u32,
    pub annotations: Labels,
    pub min_ready_seconds: u32,
}

/// One step of a Deployment.
#[derive(Debug, Default)]
pub struct Plan {
    /// The ReplicaSet of the newest template, complete. When its name is taken by a stranger, the next try needs a higher
    /// `status.collisionCount`.
    pub create: Option<Value>,
    pub patch: Vec<Patch>,
    /// History beyond `revisionHistoryLimit`.
    pub delete: Vec<ObjectKey>,
    pub adopt: Vec<ObjectKey>,
    /// The Deployment's own revision annotation is to become this.
    pub revision: Option<String>,
    /// The status to write, when it differs from what is there.
    pub status: Option<Value>,
    pub recheck: Recheck,
}

impl Deployment {
    pub fn owner(&self) -> Owner<'_> {
        Owner { api_version: "apps/v1", kind: "Deployment", name: &self.meta.key.name, uid: &self.meta.uid }
    }

    /// Both zero would never move: then one may be unavailable.
    fn bounds(&self) -> (u32, u32) {
        match self.strategy {
            Strategy::Recreate => (0, 0),
            Strategy::RollingUpdate { max_surge, max_unavailable } => {
                let surge = max_surge.of(self.replicas, true);
                let unavailable = max_unavailable.of(self.replicas, false);
                if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
            }
        }
    }

    pub fn max_surge(&self) -> u32 {
        self.bounds().0
    }

    pub fn max_unavailable(&self) -> u32 {
        self.bounds().1.min(self.replicas)
    }

    fn collisions(&self) -> u32 {
        count(&self.status["collisionCount"])
    }
}

/// A ReplicaSet as the plan changes it.
#[derive(Clone)]
struct Set {
    rs: Arc<ReplicaSet>,
    replicas: u32,
}

struct Step<'a> {
    deployment: &'a Deployment,
    /// The newest template's set.
    new: Option<Set>,
    /// The others, oldest first.
    old: Vec<Set>,
    now: Timestamp,
    plan: Plan,
}

/// One step. `sets` are the ReplicaSets of its namespace, `pods_left` tells whether any pod of that ReplicaSet still
/// exists and is not finished.
pub fn reconcile(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    pods_left: impl Fn(&ReplicaSet) -> bool,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut mine: Vec<Arc<ReplicaSet>> = Vec::new();
    for rs in sets {
        match &rs.meta.controller {
            Some((_, uid)) if *uid == deployment.meta.uid => mine.push(rs.clone()),
            None if !rs.meta.deleting
                && !deployment.meta.deleting
                && deployment.selector.as_ref().is_some_and(|s| s.matches(&rs.meta.labels)) =>
            {
                plan.adopt.push(rs.meta.key.clone());
            }
            _ => (),
        }
    }
    if !plan.adopt.is_empty() {
        return plan; // what they are is known once they are ours
    }
    mine.sort_by(|a, b| (&a.meta.creation_timestamp, &a.meta.key).cmp(&(&b.meta.creation_timestamp, &b.meta.key)));
    let newest = mine.iter().position(|rs| same_template(&rs.template, &deployment.template));
    let set = |rs: Arc<ReplicaSet>| Set { replicas: rs.replicas, rs };
    let new = newest.map(|i| set(mine.remove(i)));
    let old = mine.into_iter().map(set).collect();
    let mut step = Step { deployment, new, old, now, plan };
    step.run(pods_left);
    step.plan
}

impl Step<'_> {
    fn run(&mut self, pods_left: impl Fn(&ReplicaSet) -> bool) {
        let d = self.deployment;
        if d.meta.deleting || d.selector.is_none() {
            self.write_status();
            return;
        }
        if d.paused {
            self.scale_proportionally();
        } else if self.scaling_event() {
            self.revise();
            self.scale_proportionally();
        } else {
            match d.strategy {
                Strategy::RollingUpdate { .. } => self.roll(),
                Strategy::Recreate => self.recreate(pods_left),
            }
        }
        let at_rest = self.plan.patch.is_empty() && self.plan.create.is_none();
        if at_rest && (d.paused || self.complete()) {
            self.forget_history();
        }
        self.write_status();
    }

    fn roll(&mut self) {
        self.revise();
        if self.plan.create.is_some() {
            return;
        }
        let Some(new) = self.new.clone() else { return };
        let wanted = self.wanted_for_new(new.replicas);
        if wanted != new.replicas {
            self.scale_new(wanted);
        } else {
            self.shrink_old();
        }
    }

    /// How many the new ReplicaSet may have now: never more than maxSurge above the wanted number in all.
    fn wanted_for_new(&self, has: u32) -> u32 {
        let d = self.deployment;
        if has >= d.replicas {
            return d.replicas;
        }
        match d.strategy {
            Strategy::Recreate => d.replicas,
            Strategy::RollingUpdate { .. } => {
                let others: u32 = self.old.iter().map(|s| s.replicas).sum();
                let room = (d.replicas + d.max_surge()).saturating_sub(others + has);
                has + room.min(d.replicas - has)
            }
        }
    }

    /// Takes from the old ones what can be missed: first pods that serve nobody, then ready ones down to the minimum.
    fn shrink_old(&mut self) {
        let d = self.deployment;
        let old_count: u32 = self.old.iter().map(|s| s.replicas).sum();
        let Some(new) = self.new.as_ref().filter(|_| old_count > 0) else { return };
        let minimum = d.replicas - d.max_unavailable();
        let new_unavailable = new.replicas.saturating_sub(new.rs.status.available);
        let mut sick = (old_count + new.replicas).saturating_sub(minimum + new_unavailable);
        let available: u32 = self.old.iter().chain(&self.new).map(|s| s.rs.status.available).sum();
        let mut healthy = available.saturating_sub(minimum);
        let mut sizes: Vec<u32> = self.old.iter().map(|s| s.replicas).collect();
        for (set, size) in self.old.iter().zip(&mut sizes) {
            let take = size.saturating_sub(set.rs.status.available).min(sick);
            *size -= take;
            sick -= take;
        }
        for size in &mut sizes {
            let take = (*size).min(healthy).min(sick);
            *size -= take;
            healthy -= take;
            sick -= take;
        }
        for (i, size) in sizes.into_iter().enumerate() {
            self.scale_old(i, size);
        }
    }

    fn recreate(&mut self, pods_left: impl Fn(&ReplicaSet) -> bool) {
        let before = self.plan.patch.len();
        for i in 0..self.old.len() {
            self.scale_old(i, 0);
        }
        if self.plan.patch.len() > before || self.old.iter().any(|s| pods_left(&s.rs)) {
            return;
        }
        self.revise();
        if self.plan.create.is_none() && self.new.is_some() {
            self.scale_new(self.deployment.replicas);
        }
    }

    /// Makes the ReplicaSet of the newest template, or brings its annotations up to date, revision included.
    fn revise(&mut self) {
        let d = self.deployment;
        let newest_old = self.old.iter().map(|s| revision(&s.rs.meta)).max().unwrap_or(0);
        let Some(set) = self.new.clone() else {
            let revision = (newest_old + 1).to_string();
            let hash = template_hash(&d.template, d.collisions());
            let replicas = self.wanted_for_new(0);
            self.plan.create = Some(self.new_set(&hash, &revision, replicas));
            self.note_revision(&revision);
            return;
        };
        let have = revision(&set.rs.meta);
        let mut annotations = inherited(d);
        let revision = have.max(newest_old + 1);
        annotations.insert(REVISION.into(), revision.to_string().into());
        if have != 0 && have < revision {
            let history = set.rs.meta.annotations.get(REVISION_HISTORY).map_or(String::new(), |h| format!("{h},"));
            annotations.insert(REVISION_HISTORY.into(), format!("{history}{have}").into());
        }
        let differs = annotations.iter().any(|(k, v)| set.rs.meta.annotations.get(k) != Some(v));
        if differs || set.rs.min_ready_seconds != d.min_ready_seconds {
            self.patch(&set, set.replicas, annotations);
        }
        self.note_revision(&revision.to_string());
    }

    fn note_revision(&mut self, revision: &str) {
        if self.deployment.meta.annotations.get(REVISION).map(AsRef::as_ref) != Some(revision) {
            self.plan.revision = Some(revision.into());
        }
    }

    fn new_set(&self, hash: &str, revision: &str, replicas: u32) -> Value {
        let d = self.deployment;
        let mut template = (*d.template).clone();
        template["metadata"]["labels"][HASH_LABEL] = hash.into();
        let mut selector = (*d.selector_object).clone();
        selector["matchLabels"][HASH_LABEL] = hash.into();
        let mut annotations = inherited(d);
        annotations.insert(REVISION.into(), revision.into());
        annotations.insert(DESIRED.into(), d.replicas.to_string().into());
        annotations.insert(MAX.into(), (d.replicas + d.max_surge()).to_string().into());
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": format!("{}-{hash}", d.meta.key.name), "namespace": &*d.meta.key.namespace,
                "labels": template["metadata"]["labels"], "annotations": annotations,
                "ownerReferences": [d.owner().reference()],
            },
            "spec": {"replicas": replicas, "minReadySeconds": d.min_ready_seconds, "selector": selector, "template": template},
        })
    }

    fn scale_new(&mut self, to: u32) {
        if let Some(set) = self.new.clone() {
            if set.replicas != to {
                let annotations = self.size_annotations();
                self.patch(&set, to, annotations);
            }
            self.new = Some(Set { replicas: to, ..set });
        }
    }

    fn scale_old(&mut self, i: usize, to: u32) {
        let set = self.old[i].clone();
        if set.replicas != to {
            let annotations = self.size_annotations();
            self.patch(&set, to, annotations);
            self.old[i].replicas = to;
        }
    }

    fn size_annotations(&self) -> Labels {
        let d = self.deployment;
        let entry = |k: &str, n: u32| (Arc::from(k), Arc::from(n.to_string()));
        [entry(DESIRED, d.replicas), entry(MAX, d.replicas + d.max_surge())].into()
    }

    /// One write per ReplicaSet and step: later changes are added to earlier ones.
    fn patch(&mut self, set: &Set, to: u32, annotations: Labels) {
        let key = &set.rs.meta.key;
        if let Some(p) = self.plan.patch.iter_mut().find(|p| p.replica_set == *key) {
            p.to = to;
            p.annotations.extend(annotations);
            return;
        }
        let is_new = self.new.as_ref().is_some_and(|n| n.rs.meta.key == *key);
        self.plan.patch.push(Patch {
            replica_set: key.clone(),
            from: set.rs.replicas,
            to,
            annotations,
            min_ready_seconds: if is_new { self.deployment.min_ready_seconds } else { set.rs.min_ready_seconds },
        });
    }

    fn forget_history(&mut self) {
        let mut idle: Vec<_> = self
            .old
            .iter()
            .filter(|s| s.replicas == 0 && s.rs.status.replicas == 0 && !s.rs.meta.deleting)
            .filter(|s| s.rs.status.observed_generation >= s.rs.meta.generation)
            .collect();
        idle.sort_by_key(|s| revision(&s.rs.meta));
        let surplus = idle.len().saturating_sub(self.deployment.history_limit);
        self.plan.delete = idle.iter().take(surplus).map(|s| s.rs.meta.key.clone()).collect();
    }
}

/// The template without the label that tells templates apart.
fn same_template(set: &Value, deployment: &Value) -> bool {
    let labels = |t: &Value| {
        let mut labels = crate::parse::labels(&t["metadata"]["labels"]);
        labels.remove(HASH_LABEL);
        labels
    };
    let rest = |t: &Value, field: &str| -> Value {
        match &t["metadata"][field] {
            Value::Object(m) if m.is_empty() => Value::Null,
            v => v.clone(),
        }
    };
    labels(set) == labels(deployment)
        && rest(set, "annotations") == rest(deployment, "annotations")
        && set["spec"] == deployment["spec"]
}

fn revision(meta: &Meta) -> u64 {
    meta.annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn inherited(d: &Deployment) -> Labels {
    let mut annotations = d.meta.annotations.clone();
    annotations.retain(|k, _| !OWN_ANNOTATIONS.contains(&&**k));
    annotations
}

/// Whether a pod keeps a Recreate rollout waiting.
pub fn holds_up(pod: &Pod, rs: &ReplicaSet) -> bool {
    !pod.terminal() && pod.meta.controller.as_ref().is_some_and(|(_, uid)| *uid == rs.meta.uid)
}

#[cfg(test)]
mod tests;
