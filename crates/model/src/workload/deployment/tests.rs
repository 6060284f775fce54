use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::parse;

fn now() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().unwrap()
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn deployment(replicas: u32, strategy: Value, image: &str) -> Value {
    json!({"metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1, "annotations": {}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy, "template": template(image)},
        "status": {}})
}

/// An API server and a ReplicaSet controller in a few lines: enough to run a rollout to its end.
struct World {
    deployment: Value,
    sets: BTreeMap<String, Value>,
    created: u32,
}

impl World {
    fn new(deployment: Value) -> Self {
        Self { deployment, sets: BTreeMap::new(), created: 0 }
    }

    fn parsed(&self) -> (Deployment, Vec<Arc<ReplicaSet>>) {
        let d = parse::deployment(&self.deployment).0.unwrap();
        let sets = self.sets.values().map(|v| Arc::new(parse::replica_set(v).0.unwrap())).collect();
        (d, sets)
    }

    fn step(&mut self) -> bool {
        let (d, sets) = self.parsed();
        let pods = |rs: &ReplicaSet| rs.status.replicas > 0;
        let plan = reconcile(&d, &sets, pods, now());
        let mut wrote = false;
        if let Some(mut rs) = plan.create {
            self.created += 1;
            rs["metadata"]["uid"] = format!("rs{}", self.created).into();
            rs["metadata"]["creationTimestamp"] = format!("2026-11-21T00:00:{:02}Z", self.created).into();
            rs["metadata"]["generation"] = 1.into();
            rs["status"] = json!({});
            self.sets.insert(rs["metadata"]["name"].as_str().unwrap().into(), rs);
            wrote = true;
        }
        for p in plan.patch {
            let rs = self.sets.get_mut(&*p.replica_set.name).unwrap();
            rs["spec"]["replicas"] = p.to.into();
            for (k, v) in p.annotations {
                rs["metadata"]["annotations"][&*k] = (&*v).into();
            }
            wrote = true;
        }
        for key in plan.delete {
            self.sets.remove(&*key.name);
            wrote = true;
        }
        if let Some(revision) = plan.revision {
            self.deployment["metadata"]["annotations"][REVISION] = revision.into();
            wrote = true;
        }
        if let Some(status) = plan.status {
            self.deployment["status"] = status;
            wrote = true;
        }
        wrote
    }

    /// One pod of one set starts, becomes ready, or stops.
    fn pods_move(&mut self, pick: usize) -> bool {
        let names: Vec<_> = self.sets.keys().cloned().collect();
        for i in 0..names.len() {
            let rs = self.sets.get_mut(&names[(i + pick) % names.len()]).unwrap();
            let want = count(&rs["spec"]["replicas"]);
            let mut s = crate::workload::replicaset::Status::parse(&rs["status"]);
            let before = s;
            s.observed_generation = 1;
            if s.replicas > want {
                s.replicas -= 1;
                s.ready = s.ready.min(s.replicas);
            } else if s.replicas < want {
                s.replicas += 1;
            } else if s.ready < s.replicas {
                s.ready += 1;
            }
            s.available = s.ready;
            if s != before {
                rs["status"] = s.object();
                return true;
            }
        }
        false
    }

    fn totals(&self) -> (u32, u32) {
        let all = self.parsed().1;
        (all.iter().map(|r| r.replicas).sum(), all.iter().map(|r| r.status.available).sum())
    }

    fn settle(&mut self) {
        for i in 0..2000 {
            let wrote = self.step();
            if !self.pods_move(i) && !wrote {
                return;
            }
        }
        panic!("does not come to rest: {:#?} {:#?}", self.deployment, self.sets);
    }
}

#[test]
fn seed_199_a_new_deployment_makes_one_set_and_becomes_available() {
    let mut w = World::new(deployment(3, json!({}), "nginx:1.25"));
    w.settle();
    assert_eq!(w.sets.len(), 1);
    let (name, rs) = w.sets.iter().next().unwrap();
    let hash = rs["metadata"]["labels"][HASH_LABEL].as_str().unwrap();
    assert_eq!(*name, format!("web-{hash}"));
    assert_eq!(rs["spec"]["selector"]["matchLabels"][HASH_LABEL], hash);
    assert_eq!(rs["metadata"]["annotations"][MAX], "4");
    let status = &w.deployment["status"];
    assert_eq!((count(&status["availableReplicas"]), count(&status["updatedReplicas"])), (3, 3));
    let conditions: Vec<_> = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["type"].as_str().unwrap(), c["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(conditions, [("Available", "MinimumReplicasAvailable"), ("Progressing", "NewReplicaSetAvailable")]);
    assert_eq!(w.deployment["metadata"]["annotations"][REVISION], "1");
}

#[test]
fn rollback_reuses_the_set_with_a_new_revision() {
    let mut w = World::new(deployment(2, json!({}), "a"));
    w.settle();
    w.deployment["spec"]["template"] = template("b");
    w.settle();
    w.deployment["spec"]["template"] = template("a");
    w.settle();
    assert_eq!(w.sets.len(), 2);
    let (_, sets) = w.parsed();
    let live = sets.iter().find(|s| s.replicas == 2).unwrap();
    assert_eq!(live.meta.annotations[REVISION].as_ref(), "3");
    assert_eq!(live.meta.annotations[REVISION_HISTORY].as_ref(), "1");
    assert_eq!(w.deployment["metadata"]["annotations"][REVISION], "3");
}

#[test]
fn history_is_kept_up_to_its_limit() {
    let mut w = World::new(deployment(1, json!({}), "v0"));
    w.deployment["spec"]["revisionHistoryLimit"] = 2.into();
    for i in 0..6 {
        w.deployment["spec"]["template"] = template(&format!("v{i}"));
        w.settle();
    }
    assert_eq!(w.sets.len(), 3);
}

#[test]
fn paused_scales_but_does_not_roll() {
    let mut w = World::new(deployment(2, json!({}), "a"));
    w.settle();
    w.deployment["spec"]["paused"] = true.into();
    w.deployment["spec"]["template"] = template("b");
    w.deployment["spec"]["replicas"] = 5.into();
    w.settle();
    assert_eq!((w.sets.len(), w.totals()), (1, (5, 5)));
    let conditions = w.deployment["status"]["conditions"].clone();
    assert!(conditions.as_array().unwrap().iter().any(|c| c["reason"] == "DeploymentPaused"));
}

#[test]
fn no_progress_in_time_is_said_and_asked_for_in_time() {
    let mut w = World::new(deployment(1, json!({}), "a"));
    w.deployment["spec"]["progressDeadlineSeconds"] = 60.into();
    while w.step() {}
    let (d, sets) = w.parsed();
    let plan = reconcile(&d, &sets, |_| false, now() + Duration::from_secs(10));
    assert_eq!(plan.recheck, Recheck(Some(Duration::from_secs(50))));
    let plan = reconcile(&d, &sets, |_| false, now() + Duration::from_secs(61));
    let conditions = plan.status.unwrap()["conditions"].clone();
    assert!(
        conditions
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["reason"] == "ProgressDeadlineExceeded" && c["status"] == "False")
    );
}

use std::time::Duration;

#[test]
fn recreate_never_mixes_versions() {
    let mut w = World::new(deployment(3, json!({"type": "Recreate"}), "a"));
    w.settle();
    w.deployment["spec"]["template"] = template("b");
    for i in 0..200 {
        let wrote = w.step();
        let (_, sets) = w.parsed();
        assert!(sets.iter().filter(|s| s.replicas.max(s.status.replicas) > 0).count() <= 1);
        if !w.pods_move(i) && !wrote {
            break;
        }
    }
    assert_eq!(w.totals(), (3, 3));
    assert_eq!(w.sets.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Through any sequence of template changes and scalings at any moment: it comes to rest with the newest template
    /// at the wanted size; and while the size is constant, the surge and availability bounds hold at every step.
    #[test]
    fn rollouts_converge_within_their_bounds(
        replicas in 1_u32..9, surge in 0_u32..4, unavailable in 0_u32..4, percent in any::<bool>(),
        changes in prop::collection::vec((0_u8..3, 0_usize..12, 0_u32..9), 0..6),
    ) {
        let bound = |n: u32| if percent { json!(format!("{}%", n * 20)) } else { json!(n) };
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": bound(surge), "maxUnavailable": bound(unavailable)}});
        let mut w = World::new(deployment(replicas, strategy, "v0"));
        w.settle();
        let mut scaled = false;
        for (i, (what, steps, size)) in changes.into_iter().enumerate() {
            if what == 0 {
                w.deployment["spec"]["replicas"] = size.into();
                scaled = true;
            } else {
                w.deployment["spec"]["template"] = template(&format!("v{i}"));
            }
            for s in 0..steps {
                w.step();
                w.pods_move(s);
                if !scaled {
                    let (d, _) = w.parsed();
                    let (total, available) = w.totals();
                    prop_assert!(total <= d.replicas + d.max_surge(), "{} pods for {} + {}", total, d.replicas, d.max_surge());
                    prop_assert!(available >= d.replicas - d.max_unavailable());
                }
            }
        }
        w.settle();
        let (d, sets) = w.parsed();
        prop_assert_eq!(w.totals(), (d.replicas, d.replicas));
        prop_assert!(sets.iter().all(|s| s.replicas == 0 || same_template(&s.template, &d.template)));
        let status = &w.deployment["status"];
        prop_assert_eq!(count(&status["updatedReplicas"]), d.replicas);
        prop_assert_eq!(&status["observedGeneration"], 1);
    }
}
