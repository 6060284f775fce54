//! API objects in, the node's load balancing out, compared with files that a person can read. Each script is run in
//! both arrival orders, object by object through a table in memory, and at once: the result is the same.

extern crate portolan_proxy as proxy;

#[path = "support/cluster.rs"]
mod cluster;

use cluster::Cluster;
use proxy::{
    Config,
    desired::Desired,
    nftables::Nftables,
    target::{Reconciler, Target},
};
use serde::Deserialize;
use serde_json::Value;
use sys::fake::Fake;

fn config() -> Config {
    let net = |n: &str| n.parse().expect("a network");
    Config {
        node_name: "node".into(),
        service_cidrs: vec![net("10.96.0.0/12"), net("fd00:96::/108")],
        cluster_cidrs: vec![net("10.244.0.0/16"), net("fd00:244::/56")],
        external_ips: vec![net("198.51.100.0/24")],
        ..Config::default()
    }
}

fn objects(yaml: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|d| Value::deserialize(d).expect("YAML"))
        .filter(|v| !v.is_null())
        .collect()
}

fn run(yaml: &str) -> String {
    let forward = objects(yaml);
    let mut backward = forward.clone();
    backward.reverse();
    let mut outcomes = Vec::new();
    for order in [&forward, &backward] {
        let mut cluster = Cluster::new("node", "a");
        let mut stepwise = Reconciler::new(Nftables::new(config(), Fake::default()));
        for object in order {
            cluster.apply(object);
            stepwise.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"));
        }
        let observed = stepwise.target.observe().expect("observed");
        assert!(observed.intact && Some(&observed) == stepwise.have(), "what is read is what was written");
        let fresh = stepwise.target.compile(&cluster.snapshot, &Desired::default());
        assert_eq!(observed.to_string(), fresh.to_string(), "step by step is the same as at once");
        let mut adopted = Reconciler::new(Nftables::new(config(), stepwise.target.tables().clone()));
        adopted.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"));
        assert!(adopted.target.last.is_empty(), "a restart writes nothing");
        let mut problems: Vec<String> = fresh.problems().iter().map(ToString::to_string).collect();
        problems.sort();
        outcomes.push(format!("{fresh}{}", problems.iter().map(|p| format!("problem: {p}\n")).collect::<String>()));
    }
    assert_eq!(outcomes[0], outcomes[1], "the order of arrival does not matter");
    outcomes.remove(0)
}

#[test]
fn every_kind_of_address() {
    insta::assert_snapshot!(run(include_str!("golden/addresses.yaml")));
}

#[test]
fn policies_and_terminating_endpoints() {
    insta::assert_snapshot!(run(include_str!("golden/policies.yaml")));
}

#[test]
fn algorithms() {
    insta::assert_snapshot!(run(include_str!("golden/algorithms.yaml")));
}

#[test]
fn bad_input_and_collisions() {
    insta::assert_snapshot!(run(include_str!("golden/bad.yaml")));
}
