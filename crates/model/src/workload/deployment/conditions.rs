//! The Deployment's status: counts and the conditions `Available` and `Progressing`, in upstream's words.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Step, count};
use crate::workload::set_condition;

/// What a rollout's progress is measured by.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Counts {
    replicas: u32,
    updated: u32,
    ready: u32,
    available: u32,
}

impl Counts {
    fn parse(v: &Value) -> Self {
        Self {
            replicas: count(&v["replicas"]),
            updated: count(&v["updatedReplicas"]),
            ready: count(&v["readyReplicas"]),
            available: count(&v["availableReplicas"]),
        }
    }

    fn better_than(&self, old: &Self) -> bool {
        self.updated > old.updated
            || self.replicas.saturating_sub(self.updated) < old.replicas.saturating_sub(old.updated)
            || self.ready > old.ready
            || self.available > old.available
    }
}

impl Step<'_> {
    fn counts(&self) -> Counts {
        let sum = |f: fn(&super::super::replicaset::Status) -> u32| -> u32 {
            self.old.iter().chain(&self.new).map(|s| f(&s.rs.status)).sum()
        };
        Counts {
            replicas: sum(|s| s.replicas),
            updated: self.new.as_ref().map_or(0, |n| n.rs.status.replicas),
            ready: sum(|s| s.ready),
            available: sum(|s| s.available),
        }
    }

    /// Every pod is of the newest template, available, and there are as many as wanted.
    pub(super) fn complete(&self) -> bool {
        let (c, wanted) = (self.counts(), self.deployment.replicas);
        c.updated == wanted && c.replicas == wanted && c.available == wanted
    }

    pub(super) fn write_status(&mut self) {
        let d = self.deployment;
        let counts = self.counts();
        let old = Counts::parse(&d.status);
        let mut conditions = d.status["conditions"].as_array().cloned().unwrap_or_default();
        if counts.available >= d.replicas - d.max_unavailable() {
            let message = "Deployment has minimum availability.";
            set_condition(&mut conditions, "Available", "True", "MinimumReplicasAvailable", message, self.now);
        } else {
            let message = "Deployment does not have minimum availability.";
            set_condition(&mut conditions, "Available", "False", "MinimumReplicasUnavailable", message, self.now);
        }
        self.progress(&mut conditions, &counts, &old);
        let wanted: u32 = self.old.iter().chain(&self.new).map(|s| s.replicas).sum();
        let mut status = json!({
            "observedGeneration": d.meta.generation,
            "replicas": counts.replicas, "updatedReplicas": counts.updated, "readyReplicas": counts.ready,
            "availableReplicas": counts.available, "unavailableReplicas": wanted.saturating_sub(counts.available),
            "conditions": conditions,
        });
        if d.collisions() > 0 {
            status["collisionCount"] = d.collisions().into();
        }
        // Zero counts may be left out by whoever wrote them.
        let same = |field: &str| match (&d.status[field], &status[field]) {
            (Value::Null, v) => v.as_u64() == Some(0) || v.is_null(),
            (a, b) => a == b,
        };
        let fields = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"];
        let observed = d.status["observedGeneration"] == status["observedGeneration"];
        if !(observed && fields.iter().all(|f| same(f)) && d.status["conditions"] == status["conditions"]) {
            self.plan.status = Some(status);
        }
    }

    fn progress(&mut self, conditions: &mut Vec<Value>, counts: &Counts, old: &Counts) {
        let (d, now) = (self.deployment, self.now);
        let current = conditions.iter().find(|c| c["type"] == "Progressing").cloned();
        let reason = current.as_ref().and_then(|c| c["reason"].as_str()).unwrap_or_default().to_string();
        let mut set = |status: &str, reason: &str, message: &str| {
            set_condition(conditions, "Progressing", status, reason, message, now);
        };
        if d.paused {
            if reason != "ProgressDeadlineExceeded" {
                set("Unknown", "DeploymentPaused", "Deployment is paused");
            }
            return;
        }
        if let Some(rs) = &self.plan.create {
            let name = rs["metadata"]["name"].as_str().unwrap_or_default();
            set("True", "NewReplicaSetCreated", &format!("Created new replica set {name:?}"));
            return;
        }
        let name = self.new.as_ref().map_or(&d.meta.key.name, |n| &n.rs.meta.key.name);
        if reason == "DeploymentPaused" {
            set("Unknown", "DeploymentResumed", "Deployment is resumed");
        }
        let finished = counts.replicas == counts.updated && reason == "NewReplicaSetAvailable";
        if finished {
            return;
        }
        if self.complete() {
            set("True", "NewReplicaSetAvailable", &format!("ReplicaSet {name:?} has successfully progressed."));
        } else if counts.better_than(old) {
            // Every step forward restarts the deadline, also when reason and status stay.
            let since = current.filter(|c| c["status"] == "True").map(|c| c["lastTransitionTime"].clone());
            conditions.retain(|c| c["type"] != "Progressing");
            let message = format!("ReplicaSet {name:?} is progressing.");
            set_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", &message, now);
            if let (Some(since), Some(c)) = (since, conditions.last_mut()) {
                c["lastTransitionTime"] = since;
            }
        } else if let Some(left) = self.deadline_left(current.as_ref()) {
            if left.is_zero() {
                set("False", "ProgressDeadlineExceeded", &format!("ReplicaSet {name:?} has timed out progressing."));
            } else {
                self.plan.recheck.after(left);
            }
        } else if current.is_none() {
            set("True", "FoundNewReplicaSet", &format!("Found new replica set {name:?}"));
        }
    }

    /// Time until `progressDeadlineSeconds` without progress are over. `None` when nothing is being waited for.
    fn deadline_left(&self, current: Option<&Value>) -> Option<Duration> {
        let current = current.filter(|c| c["reason"] != "ProgressDeadlineExceeded")?;
        // The largest number means "no deadline" (API field documentation).
        if self.deployment.progress_deadline_seconds >= i32::MAX.unsigned_abs() {
            return None;
        }
        let since = current["lastUpdateTime"].as_str()?.parse::<jiff::Timestamp>().ok()?;
        let waited = self.now.duration_since(since).as_secs();
        let left = i64::from(self.deployment.progress_deadline_seconds) - waited;
        Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }
}
