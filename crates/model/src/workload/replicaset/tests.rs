use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::parse;

fn rs(replicas: u32) -> ReplicaSet {
    let v = json!({"metadata": {"name": "web-abc", "namespace": "default", "uid": "rs", "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}});
    parse::replica_set(&v).0.expect("a ReplicaSet")
}

fn pod(name: &str, owner: Option<&str>, app: &str, ready: bool) -> Arc<Pod> {
    let owners = owner.map(|uid| json!([{"kind": "ReplicaSet", "uid": uid, "controller": true}]));
    let v = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": app}, "ownerReferences": owners},
        "spec": {"nodeName": "n"}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-11-21T00:00:00Z"}]}});
    Arc::new(parse::pod(&v).0.expect("a Pod"))
}

fn now() -> Timestamp {
    "2026-11-21T00:00:10Z".parse().unwrap()
}

#[test]
fn missing_pods_are_made_from_the_template() {
    let plan = reconcile(&rs(3), [pod("a", Some("rs"), "web", true)].iter(), now());
    assert_eq!(plan.create.len(), 2);
    assert_eq!(plan.create[0]["metadata"]["generateName"], "web-abc-");
    assert_eq!(plan.create[0]["metadata"]["ownerReferences"][0]["uid"], "rs");
    assert_eq!(plan.create[0]["metadata"]["labels"], json!({"app": "web"}));
    assert_eq!(plan.status.map(|s| (s.replicas, s.ready, s.available)), Some((1, 1, 1)));
}

#[test]
fn the_unready_go_first_and_strangers_stay() {
    let pods = [
        pod("a", Some("rs"), "web", true),
        pod("b", Some("rs"), "web", false),
        pod("c", Some("rs"), "web", true),
        pod("d", Some("other"), "web", true),
    ];
    let plan = reconcile(&rs(2), pods.iter(), now());
    assert_eq!(plan.delete.iter().map(|p| &*p.meta.key.name).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn seed_170_a_relabelled_pod_is_let_go_and_replaced() {
    let pods = [pod("a", Some("rs"), "other", true), pod("b", Some("rs"), "web", true)];
    let plan = reconcile(&rs(2), pods.iter(), now());
    assert_eq!((plan.release.len(), plan.create.len(), plan.delete.len()), (1, 1, 0));
}

#[test]
fn a_matching_orphan_is_adopted_instead_of_making_another() {
    let pods = [pod("a", None, "web", true)];
    let plan = reconcile(&rs(1), pods.iter(), now());
    assert_eq!((plan.adopt.len(), plan.create.len()), (1, 0));
}

#[test]
fn an_unreadable_selector_changes_nothing() {
    let mut set = rs(5);
    set.selector = None;
    let plan = reconcile(&set, [pod("a", Some("rs"), "web", true)].iter(), now());
    assert_eq!((plan.create.len(), plan.delete.len(), plan.release.len()), (0, 0, 0));
}

#[test]
fn min_ready_seconds_delay_availability() {
    let mut set = rs(1);
    set.min_ready_seconds = 30;
    let plan = reconcile(&set, [pod("a", Some("rs"), "web", true)].iter(), now());
    assert_eq!(plan.status.map(|s| (s.ready, s.available)), Some((1, 0)));
    assert_eq!(plan.recheck, Recheck(Some(std::time::Duration::from_secs(20))));
}

proptest! {
    /// Any mixture of pods comes to the wanted number in a few steps, never overshooting.
    #[test]
    fn converges(replicas in 0_u32..12, start in prop::collection::vec((0_u8..3, any::<bool>()), 0..15)) {
        let mut pods: Vec<_> = start.iter().enumerate().map(|(i, (owner, ready))| {
            pod(&format!("p{i}"), [Some("rs"), Some("other"), None][usize::from(*owner)], "web", *ready)
        }).collect();
        let set = rs(replicas);
        let mine = |pods: &[Arc<Pod>]| pods.iter().filter(|p| p.meta.controller.as_ref().is_some_and(|c| &*c.1 == "rs")).count();
        let mut serial = 100;
        for step in 0..4 {
            let plan = reconcile(&set, pods.iter(), now());
            prop_assert!(plan.create.is_empty() || plan.delete.is_empty());
            let gone: Vec<_> = plan.delete.iter().map(|p| p.meta.key.clone()).collect();
            pods.retain(|p| !gone.contains(&p.meta.key));
            for p in &plan.adopt {
                let i = pods.iter().position(|q| q.meta.key == p.meta.key).unwrap();
                pods[i] = pod(&p.meta.key.name, Some("rs"), "web", p.ready);
            }
            for _ in &plan.create {
                serial += 1;
                pods.push(pod(&format!("p{serial}"), Some("rs"), "web", false));
            }
            prop_assert!(step == 0 || mine(&pods) == replicas as usize);
        }
    }
}
