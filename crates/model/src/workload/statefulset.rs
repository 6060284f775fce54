//! StatefulSet: numbered pods with names that stay. In order: one is created when all below it are ready, one is removed
//! when it is the highest; updates go from the top down to the partition.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Owner, Recheck, Selector, available, count, pod_from, template_hash};
use crate::object::{Meta, ObjectKey, Pod};

pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
pub const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
pub const REVISION_LABEL: &str = "controller-revision-hash";

#[derive(Clone, Debug, PartialEq)]
pub struct StatefulSet {
    pub meta: Meta,
    pub replicas: u32,
    /// `spec.ordinals.start`
    pub start: u32,
    pub selector: Option<Selector>,
    pub template: Arc<Value>,
    pub service_name: String,
    /// `podManagementPolicy: Parallel`
    pub parallel: bool,
    pub update: Update,
    pub min_ready_seconds: u32,
    /// Names of the `volumeClaimTemplates`.
    pub claims: Vec<String>,
    /// `status` as it is there.
    pub status: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    OnDelete,
    /// Pods with an ordinal below the partition keep their template.
    Rolling {
        partition: u32,
    },
}

/// One step of a StatefulSet.
#[derive(Debug, Default)]
pub struct Plan {
    pub create: Vec<Value>,
    pub delete: Vec<Arc<Pod>>,
    /// The status to write, when it differs from what is there.
    pub status: Option<Value>,
    pub recheck: Recheck,
}

impl StatefulSet {
    pub fn owner(&self) -> Owner<'_> {
        Owner { api_version: "apps/v1", kind: "StatefulSet", name: &self.meta.key.name, uid: &self.meta.uid }
    }

    /// The name of the newest revision.
    pub fn update_revision(&self) -> String {
        format!("{}-{}", self.meta.key.name, template_hash(&self.template, count(&self.status["collisionCount"])))
    }

    /// The ordinal in a pod's name.
    pub fn ordinal(&self, pod: &ObjectKey) -> Option<u32> {
        let digits = pod.name.strip_prefix(&*self.meta.key.name)?.strip_prefix('-')?;
        digits.parse().ok().filter(|n: &u32| n.to_string() == digits)
    }

    fn wanted(&self, ordinal: u32) -> bool {
        ordinal >= self.start && ordinal - self.start < self.replicas
    }

    fn pod(&self, ordinal: u32, revision: &str) -> Value {
        let name = format!("{}-{ordinal}", self.meta.key.name);
        let mut pod = pod_from(&self.template, &self.meta.key.namespace, &name, &self.owner());
        pod["metadata"]["labels"][POD_NAME_LABEL] = name.as_str().into();
        pod["metadata"]["labels"][INDEX_LABEL] = ordinal.to_string().into();
        pod["metadata"]["labels"][REVISION_LABEL] = revision.into();
        pod["spec"]["hostname"] = name.as_str().into();
        if !self.service_name.is_empty() {
            pod["spec"]["subdomain"] = self.service_name.as_str().into();
        }
        for claim in &self.claims {
            let volume = json!({"name": claim, "persistentVolumeClaim": {"claimName": format!("{claim}-{name}")}});
            match &mut pod["spec"]["volumes"] {
                Value::Array(list) => {
                    list.retain(|v| v["name"] != claim.as_str());
                    list.push(volume);
                }
                other => *other = json!([volume]),
            }
        }
        pod
    }
}

/// One step. `pods` are those of its namespace. `current` is the template pods below the partition keep, when known.
pub fn reconcile<'a>(set: &StatefulSet, pods: impl Iterator<Item = &'a Arc<Pod>>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut mine: Vec<(u32, Arc<Pod>)> = pods
        .filter(|p| p.meta.controller.as_ref().is_some_and(|(_, uid)| *uid == set.meta.uid))
        .filter_map(|p| Some((set.ordinal(&p.meta.key)?, p.clone())))
        .collect();
    mine.sort_by_key(|(i, _)| *i);
    let newest = set.update_revision();
    plan.status = status(set, &mine, &newest, now, &mut plan.recheck);
    if set.meta.deleting || set.selector.is_none() {
        return plan;
    }
    let healthy =
        |p: &Pod, recheck: &mut Recheck| !p.meta.deleting && available(p, set.min_ready_seconds, now, recheck);
    // Ended pods are replaced under the same name, so they have to go first.
    for (_, p) in mine.iter().filter(|(i, p)| set.wanted(*i) && p.terminal() && !p.meta.deleting) {
        plan.delete.push(p.clone());
    }
    // Upwards: create what is missing.
    for ordinal in (0..set.replicas).map(|i| set.start.saturating_add(i)) {
        match mine.iter().find(|(i, _)| *i == ordinal) {
            None => plan.create.push(set.pod(ordinal, &newest)),
            Some((_, p)) if set.parallel || healthy(p, &mut plan.recheck) => continue,
            Some(_) => return plan,
        }
        if !set.parallel {
            return plan;
        }
    }
    if !plan.create.is_empty() || !plan.delete.is_empty() {
        return plan;
    }
    // Downwards: remove what is too much, the highest first and alone.
    let surplus: Vec<_> = mine.iter().filter(|(i, _)| !set.wanted(*i)).collect();
    if !surplus.is_empty() {
        let leaving = surplus.iter().any(|(_, p)| p.meta.deleting);
        for (_, p) in surplus.into_iter().rev().filter(|(_, p)| !p.meta.deleting) {
            if set.parallel || !leaving {
                plan.delete.push(p.clone());
            }
            if !set.parallel {
                break;
            }
        }
        return plan;
    }
    // Updates: from the top, one at a time, when everybody else is well.
    if let Update::Rolling { partition } = set.update {
        for (i, p) in mine.iter().rev() {
            let up_to_date = p.meta.labels.get(REVISION_LABEL).map(AsRef::as_ref) == Some(newest.as_str());
            if *i >= set.start.saturating_add(partition) && !up_to_date {
                if !p.meta.deleting {
                    plan.delete.push(p.clone());
                }
                return plan;
            }
            if !healthy(p, &mut plan.recheck) {
                return plan;
            }
        }
    }
    plan
}

fn status(
    set: &StatefulSet,
    mine: &[(u32, Arc<Pod>)],
    newest: &str,
    now: Timestamp,
    recheck: &mut Recheck,
) -> Option<Value> {
    let revision = |p: &Pod| p.meta.labels.get(REVISION_LABEL).map(|r| r.to_string());
    let alive: Vec<_> = mine.iter().filter(|(_, p)| !p.terminal()).collect();
    let number = |f: &mut dyn FnMut(&Pod) -> bool| alive.iter().filter(|(_, p)| f(p)).count();
    let updated = number(&mut |p| !p.meta.deleting && revision(p).as_deref() == Some(newest));
    let ready = number(&mut |p| p.ready && !p.meta.deleting);
    let available = number(&mut |p| !p.meta.deleting && available(p, set.min_ready_seconds, now, recheck));
    let old = set.status["currentRevision"].as_str().filter(|r| !r.is_empty()).unwrap_or(newest);
    // The update is over when every wanted pod runs the newest template.
    let done = updated == alive.len() && updated == set.replicas as usize && ready == updated;
    let current = if done { newest } else { old };
    let on_current = number(&mut |p| !p.meta.deleting && revision(p).as_deref() == Some(current));
    let mut status = json!({
        "observedGeneration": set.meta.generation, "replicas": alive.len(), "readyReplicas": ready,
        "availableReplicas": available, "updatedReplicas": updated, "currentReplicas": on_current,
        "currentRevision": current, "updateRevision": newest,
        "collisionCount": count(&set.status["collisionCount"]),
    });
    if let Some(conditions) = set.status.get("conditions") {
        status["conditions"] = conditions.clone();
    }
    let same = status.as_object().is_some_and(|m| {
        m.iter().all(|(k, v)| match &set.status[k] {
            Value::Null => v.as_u64() == Some(0),
            old => old == v,
        })
    });
    (!same).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn set(replicas: u32, extra: &Value) -> StatefulSet {
        let mut v = json!({"metadata": {"name": "pod", "namespace": "default", "uid": "s", "generation": 1},
            "spec": {"replicas": replicas, "serviceName": "database-headless", "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c"}]}}}});
        for (k, e) in extra.as_object().into_iter().flatten() {
            v["spec"][k] = e.clone();
        }
        parse::stateful_set(&v).0.unwrap()
    }

    fn pod(v: &Value, ready: bool) -> Arc<Pod> {
        let mut v = v.clone();
        v["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]});
        Arc::new(parse::pod(&v).0.unwrap())
    }

    fn names(plan: &[Arc<Pod>]) -> Vec<&str> {
        plan.iter().map(|p| &*p.meta.key.name).collect()
    }

    #[test]
    fn seed_083_pods_come_up_in_order_with_their_names() {
        let s = set(2, &json!({}));
        let first = reconcile(&s, [].iter(), Timestamp::UNIX_EPOCH);
        assert_eq!(first.create.len(), 1);
        let zero = &first.create[0];
        assert_eq!(zero["metadata"]["name"], "pod-0");
        assert_eq!(
            (&zero["spec"]["hostname"], &zero["spec"]["subdomain"]),
            (&json!("pod-0"), &json!("database-headless"))
        );
        assert_eq!(zero["metadata"]["labels"][INDEX_LABEL], "0");
        let waiting = reconcile(&s, [pod(zero, false)].iter(), Timestamp::UNIX_EPOCH);
        assert!(waiting.create.is_empty());
        let next = reconcile(&s, [pod(zero, true)].iter(), Timestamp::UNIX_EPOCH);
        assert_eq!(next.create[0]["metadata"]["name"], "pod-1");
        let all = reconcile(&set(3, &json!({"podManagementPolicy": "Parallel"})), [].iter(), Timestamp::UNIX_EPOCH);
        assert_eq!(all.create.len(), 3);
    }

    #[test]
    fn scale_down_and_updates_start_at_the_top() {
        let three =
            reconcile(&set(3, &json!({"podManagementPolicy": "Parallel"})), [].iter(), Timestamp::UNIX_EPOCH).create;
        let pods: Vec<_> = three.iter().map(|p| pod(p, true)).collect();
        let down = reconcile(&set(1, &json!({})), pods.iter(), Timestamp::UNIX_EPOCH);
        assert_eq!(names(&down.delete), ["pod-2"]);
        let changed =
            json!({"template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "d"}]}}});
        let update = reconcile(&set(3, &changed), pods.iter(), Timestamp::UNIX_EPOCH);
        assert_eq!(names(&update.delete), ["pod-2"]);
        let mut kept = changed.clone();
        kept["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 3}});
        assert!(reconcile(&set(3, &kept), pods.iter(), Timestamp::UNIX_EPOCH).delete.is_empty());
        let rest = reconcile(&set(3, &json!({})), pods.iter(), Timestamp::UNIX_EPOCH);
        assert!(rest.create.is_empty() && rest.delete.is_empty());
        assert_eq!(rest.status.unwrap()["updatedReplicas"], 3);
    }
}
