//! The rules mean what `model::route` decides: a packet is walked through the table in memory, expression by
//! expression as the kernel would, and ends where the route of its frontend says, for random clusters.

extern crate portolan_proxy as proxy;

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/walk.rs"]
mod walk;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use cluster::Cluster;
use model::{
    IpFamily, ObjectKey,
    route::{self, At, Masquerade, NodeFacts, Options, Route, Verdict},
};
use proptest::prelude::*;
use proxy::{Config, nftables::Nftables, target::Reconciler};
use serde_json::{Value, json};
use sys::{fake::Fake, nft::Family};
use walk::{Outcome, Packet, walk};

const NODE: [u8; 4] = [192, 0, 2, 1];
const POD: [u8; 4] = [10, 244, 0, 77];
const STRANGER: [u8; 4] = [198, 51, 100, 1];

fn config() -> Config {
    let net = |n: &str| n.parse().expect("a network");
    Config {
        node_name: "node".into(),
        service_cidrs: vec![net("10.96.0.0/12")],
        cluster_cidrs: vec![net("10.244.0.0/16")],
        masquerade_outbound: true,
        ..Config::default()
    }
}

#[derive(Clone, Debug)]
struct Plan {
    kind: &'static str,
    internal_local: bool,
    external_local: bool,
    sticky: bool,
    ranged: bool,
    round_robin: bool,
    /// Last byte, state, on this node.
    endpoints: Vec<(u8, u8, bool)>,
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let kind = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]);
    let flags = prop::array::uniform5(any::<bool>());
    let endpoints = prop::collection::vec((2u8..20, 0u8..3, any::<bool>()), 0..6);
    (kind, flags, endpoints).prop_map(
        |(kind, [internal_local, external_local, sticky, ranged, round_robin], endpoints)| Plan {
            kind,
            internal_local,
            external_local: external_local && kind != "ClusterIP",
            sticky,
            ranged: ranged && kind == "LoadBalancer",
            round_robin,
            endpoints,
        },
    )
}

fn apply(cluster: &mut Cluster, n: usize, plan: &Plan) {
    let name = format!("s{n}");
    let ip = format!("10.96.0.{}", n + 1);
    let mut spec = json!({"type": plan.kind, "clusterIP": ip, "clusterIPs": [ip],
        "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]});
    if plan.kind != "ClusterIP" {
        spec["ports"][0]["nodePort"] = json!(30000 + n);
    }
    for (field, local) in
        [("internalTrafficPolicy", plan.internal_local), ("externalTrafficPolicy", plan.external_local)]
    {
        if local {
            spec[field] = json!("Local");
        }
    }
    if plan.sticky {
        spec["sessionAffinity"] = json!("ClientIP");
    }
    if plan.ranged {
        spec["loadBalancerSourceRanges"] = json!(["10.0.0.0/8", "192.0.2.0/24"]);
    }
    let status = match plan.kind {
        "LoadBalancer" => json!({"loadBalancer": {"ingress": [{"ip": format!("10.112.0.{}", n + 1)}]}}),
        _ => Value::Null,
    };
    cluster.service(&name, spec, status);
    if plan.round_robin {
        cluster.annotate(&name, &[(route::BALANCING, "round-robin")]);
    }
    let endpoint = |(last, state, here): &(u8, u8, bool)| {
        json!({"addresses": [format!("10.244.{}.{last}", u8::from(!here))], "nodeName": if *here { "node" } else { "other" },
            "conditions": {"ready": *state == 0, "serving": *state < 2, "terminating": *state > 0}})
    };
    cluster.slice(&name, &[("", "TCP", 8080)], plan.endpoints.iter().map(endpoint).collect());
}

/// What the route promises to a client: where it may end, and whether as itself.
fn promised(route: &Route, client: [u8; 4]) -> (Verdict, bool) {
    let inside = client == POD || client == NODE;
    let admitted =
        route.source_ranges.is_empty() || route.source_ranges.iter().any(|r| r.contains(&IpAddr::from(client)));
    let verdict = match &route.outside {
        Some(outside) if !inside => outside.clone(),
        _ => route.inside.clone(),
    };
    let masquerade = match route.masquerade {
        Masquerade::Always => true,
        Masquerade::Foreign => client != POD,
        Masquerade::Node => client == NODE,
    };
    match verdict {
        Verdict::Balance(_) if !admitted => (Verdict::Drop, false),
        Verdict::Balance(_) => (verdict, masquerade),
        other => (other, false),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_end_where_the_route_says(history in prop::collection::vec((0usize..4, any_plan()), 1..10)) {
        let mut cluster = Cluster::new("node", "a");
        let mut reconciler = Reconciler::new(Nftables::new(config(), Fake::default()));
        for (n, plan) in &history {
            apply(&mut cluster, *n, plan);
            reconciler.reconcile(&cluster.snapshot).unwrap_or_else(|e| panic!("{e}"));
        }
        let key = (Family::Ip, Arc::from("portolan"));
        let table = reconciler.target.tables().tables[&key].clone();
        let facts = NodeFacts { name: "node".into(), zone: Some("a".into()) };
        for n in 0..4 {
            let service = ObjectKey::new("default", format!("s{n}"));
            let Some(object) = cluster.snapshot.services.get(&service) else { continue };
            let all = route::routes(object, cluster.snapshot.slices_of(&service), &facts, &Options::default());
            for route in &all.routes {
                let to = match route.frontend.at {
                    At::Address(ip) => ip,
                    At::NodePort(IpFamily::V4) => IpAddr::from(NODE),
                    At::NodePort(IpFamily::V6) => continue,
                };
                for client in [POD, NODE, STRANGER] {
                    let (verdict, masquerade) = promised(route, client);
                    let packet = Packet { from: client.into(), to, protocol: 6, port: route.frontend.port, node: NODE.into() };
                    let mut reached = BTreeSet::new();
                    for dice in 0..60 {
                        match walk(&table, &packet, dice) {
                            Outcome::Translated { to, port, masqueraded } => {
                                prop_assert_eq!(masqueraded, masquerade, "{:?} at {}", client, route.frontend);
                                reached.insert((to, port));
                            }
                            Outcome::Dropped => prop_assert_eq!(&verdict, &Verdict::Drop, "{:?} at {}", client, route.frontend),
                            Outcome::Refused => prop_assert_eq!(&verdict, &Verdict::Reject, "{:?} at {}", client, route.frontend),
                            Outcome::Untouched | Outcome::Masqueraded => {
                                prop_assert!(false, "{client:?} at {} falls through", route.frontend);
                            }
                        }
                    }
                    let wanted: BTreeSet<_> = verdict.backends().iter().map(|b| (b.ip, b.port)).collect();
                    prop_assert_eq!(reached, wanted, "{:?} at {}", client, route.frontend);
                }
            }
        }
        let at = |to: [u8; 4]| Packet { from: POD.into(), to: to.into(), protocol: 6, port: 80, node: NODE.into() };
        prop_assert_eq!(walk(&table, &at([10, 99, 0, 1]), 0), Outcome::Refused, "unallocated");
        prop_assert_eq!(walk(&table, &at([8, 8, 8, 8]), 0), Outcome::Masqueraded, "leaves the cluster");
        prop_assert_eq!(walk(&table, &at([10, 244, 3, 3]), 0), Outcome::Untouched, "pod to pod");
        prop_assert_eq!(walk(&table, &at(NODE), 0), Outcome::Untouched, "pod to node");
        let from = |from: [u8; 4]| Packet { from: from.into(), ..at([8, 8, 8, 8]) };
        for client in [NODE, STRANGER] {
            prop_assert_eq!(walk(&table, &from(client), 0), Outcome::Untouched, "no pod");
        }
    }
}
