use proptest::prelude::*;

use super::*;
use crate::object::{
    Addressing, EndpointPort, Ingress, Labels, LoadBalancer, Meta, ObjectKey, TargetPort, TrafficDistribution,
};

fn meta(name: &str) -> Meta {
    Meta {
        key: ObjectKey::new("default", name),
        uid: name.into(),
        generation: 1,
        creation_timestamp: "2026-11-21T00:00:00Z".into(),
        labels: Labels::new(),
        annotations: Labels::new(),
        deleting: false,
        controller: None,
    }
}

fn service() -> Service {
    Service {
        meta: meta("web"),
        addressing: Addressing::ClusterIp(vec![[10, 96, 0, 10].into()]),
        exposure: Exposure::None,
        selector: None,
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
            app_protocol: None,
        }],
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        external_ips: vec![],
        health_check_node_port: None,
        publish_not_ready: false,
        families: vec![IpFamily::V4],
        distribution: Option::<TrafficDistribution>::None,
    }
}

#[test]
fn the_algorithm_is_the_annotation_s() {
    let mut s = service();
    let decide = |s: &Service| routes(s, &[], &NodeFacts::default(), &Options::default());
    assert_eq!(decide(&s).routes[0].algorithm, Algorithm::Random);
    s.meta.annotations.insert(BALANCING.into(), "round-robin".into());
    assert_eq!(decide(&s).routes[0].algorithm, Algorithm::RoundRobin);
    s.meta.annotations.insert(BALANCING.into(), "RoundRobin".into());
    let wrong = decide(&s);
    assert_eq!(wrong.routes[0].algorithm, Algorithm::Random);
    assert_eq!(wrong.problems.len(), 1);
    assert!(wrong.problems[0].to_string().contains("portolan.dev/balancing"), "{}", wrong.problems[0]);
}

fn load_balancer() -> Service {
    let mut s = service();
    let ingress = |last, proxy| Ingress { ip: [10, 112, 0, last].into(), proxy };
    s.exposure = Exposure::LoadBalancer(LoadBalancer {
        ingress: vec![ingress(1, false), ingress(2, true)],
        ..LoadBalancer::default()
    });
    s.ports[0].node_port = Some(30080);
    s
}

fn endpoint(n: u8, state: &str, node: &str) -> Endpoint {
    Endpoint {
        addresses: vec![[10, 244, 0, n].into()],
        ready: state == "ready",
        serving: state != "down" && state != "gone",
        terminating: state == "draining" || state == "gone",
        hostname: None,
        node: Some(node.into()),
        zone: None,
        hint_zones: vec![],
        hint_nodes: vec![],
        pod: None,
        pod_uid: None,
    }
}

fn slice(name: &str, endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
    Arc::new(EndpointSlice {
        meta: meta(name),
        service: ObjectKey::new("default", "web"),
        managed_by: None,
        address_type: AddressType::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: Some(8080), app_protocol: None }],
        endpoints,
    })
}

fn node() -> NodeFacts {
    NodeFacts { name: "here".into(), zone: Some("a".into()) }
}

/// frontend -> "inside | outside masquerade", endpoints by their last byte.
fn show(service: &Service, endpoints: Vec<Endpoint>) -> Vec<String> {
    let routes = routes(service, &[slice("s", endpoints)], &node(), &Options::default());
    let verdict = |v: &Verdict| match v {
        Verdict::Balance(b) => {
            let last = |b: &Backend| b.ip.to_string().rsplit('.').next().unwrap_or_default().to_owned();
            b.iter().map(last).collect::<Vec<_>>().join(",")
        }
        other => format!("{other:?}").to_lowercase(),
    };
    let line = |r: &Route| {
        let outside = r.outside.as_ref().map(|v| format!(" | {}", verdict(v))).unwrap_or_default();
        format!("{} {}{outside} {:?}", r.frontend, verdict(&r.inside), r.masquerade)
    };
    routes.routes.iter().map(line).collect()
}

#[test]
fn ready_endpoints_answer_on_every_address() {
    let all = vec![endpoint(2, "ready", "here"), endpoint(3, "down", "here"), endpoint(4, "ready", "there")];
    assert_eq!(show(&service(), all.clone()), ["10.96.0.10:80/TCP 2,4 Foreign"]);
    let mut s = load_balancer();
    let expected =
        ["10.96.0.10:80/TCP 2,4 Foreign", "10.112.0.1:80/TCP 2,4 Always", "nodePort IPv4 30080/TCP 2,4 Always"];
    assert_eq!(show(&s, all.clone()), expected, "ipMode Proxy is not short-circuited");
    s.external_policy = TrafficPolicy::Local;
    let expected =
        ["10.96.0.10:80/TCP 2,4 Foreign", "10.112.0.1:80/TCP 2,4 | 2 Node", "nodePort IPv4 30080/TCP 2,4 | 2 Node"];
    assert_eq!(show(&s, all), expected);
}

#[test]
fn nobody_here_is_a_drop_and_nobody_anywhere_a_refusal() {
    let mut s = load_balancer();
    assert_eq!(show(&s, vec![endpoint(2, "down", "here")])[0], "10.96.0.10:80/TCP reject Foreign");
    s.internal_policy = TrafficPolicy::Local;
    s.external_policy = TrafficPolicy::Local;
    assert_eq!(
        show(&s, vec![]),
        ["10.96.0.10:80/TCP reject Foreign", "10.112.0.1:80/TCP reject Node", "nodePort IPv4 30080/TCP reject Node"]
    );
    assert_eq!(
        show(&s, vec![endpoint(2, "ready", "there")]),
        ["10.96.0.10:80/TCP drop Foreign", "10.112.0.1:80/TCP 2 | drop Node", "nodePort IPv4 30080/TCP 2 | drop Node"]
    );
}

#[test]
fn terminating_endpoints_serve_only_when_nobody_else_does() {
    let mut s = load_balancer();
    s.external_policy = TrafficPolicy::Local;
    let all = vec![endpoint(2, "draining", "here"), endpoint(3, "ready", "there"), endpoint(4, "gone", "here")];
    assert_eq!(show(&s, all)[1], "10.112.0.1:80/TCP 3 | 2 Node", "KEP-1669: the fallback is by node under Local");
    let all = vec![endpoint(2, "draining", "here"), endpoint(4, "gone", "here")];
    assert_eq!(show(&service(), all), ["10.96.0.10:80/TCP 2 Foreign"]);
}

#[test]
fn hints_count_when_all_have_them_and_one_is_ours() {
    let hinted = |n, zone: &str| Endpoint { hint_zones: vec![zone.into()], ..endpoint(n, "ready", "there") };
    assert_eq!(show(&service(), vec![hinted(2, "a"), hinted(3, "b")]), ["10.96.0.10:80/TCP 2 Foreign"]);
    assert_eq!(show(&service(), vec![hinted(2, "c"), hinted(3, "b")]), ["10.96.0.10:80/TCP 2,3 Foreign"]);
    let bare = endpoint(4, "ready", "there");
    assert_eq!(show(&service(), vec![hinted(2, "a"), bare]), ["10.96.0.10:80/TCP 2,4 Foreign"]);
    let here = Endpoint { hint_nodes: vec!["here".into()], ..hinted(2, "b") };
    let there = Endpoint { hint_nodes: vec!["there".into()], ..hinted(3, "a") };
    assert_eq!(
        show(&service(), vec![here, there]),
        ["10.96.0.10:80/TCP 2 Foreign"],
        "the node's hint wins over the zone's"
    );
}

#[test]
fn external_ips_need_permission() {
    let mut s = service();
    s.external_ips = vec![[198, 51, 100, 7].into(), [8, 8, 8, 8].into()];
    let slices = [slice("s", vec![endpoint(2, "ready", "here")])];
    assert_eq!(routes(&s, &slices, &node(), &Options::default()).routes.len(), 1);
    let options = Options { external_ips: vec!["198.51.100.0/24".parse().expect("a network")] };
    let allowed: Vec<_> =
        routes(&s, &slices, &node(), &options).routes.iter().map(|r| r.frontend.to_string()).collect();
    assert_eq!(allowed, ["10.96.0.10:80/TCP", "198.51.100.7:80/TCP"]);
}

#[test]
fn other_proxies_services_are_left_alone() {
    let mut s = service();
    s.meta.labels.insert(SERVICE_PROXY_NAME.into(), "other".into());
    let r = routes(&s, &[], &node(), &Options::default());
    assert!(r.routes.is_empty() && r.elsewhere == [IpAddr::from([10, 96, 0, 10])]);
    s.meta.labels.insert(HEADLESS_LABEL.into(), "".into());
    assert_eq!(routes(&s, &[], &node(), &Options::default()), Routes::default());
    s.addressing = Addressing::Headless;
    s.meta.labels.clear();
    assert_eq!(routes(&s, &[], &node(), &Options::default()), Routes::default(), "seed row 93");
}

#[test]
fn bad_endpoints_are_skipped_and_the_rest_serves() {
    let mut bad = endpoint(9, "ready", "here");
    bad.addresses = vec![[127, 0, 0, 1].into()];
    let mut empty = bad.clone();
    empty.addresses = vec![];
    assert_eq!(show(&service(), vec![bad, empty, endpoint(2, "ready", "here")]), ["10.96.0.10:80/TCP 2 Foreign"]);
}

#[test]
fn source_ranges_do_not_overlap() {
    let mut s = load_balancer();
    if let Exposure::LoadBalancer(lb) = &mut s.exposure {
        let net = |n: &str| n.parse().expect("a network");
        lb.source_ranges = vec![net("10.1.2.3/8"), net("10.5.0.0/16"), net("192.0.2.0/25"), net("fd00::/8")];
    }
    let r = routes(&s, &[], &node(), &Options::default());
    let shown: Vec<_> = r.routes[1].source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.0/8", "192.0.2.0/25"]);
    assert!(
        r.routes[0].source_ranges.is_empty() && r.routes[2].source_ranges.is_empty(),
        "only the balancer's address"
    );
    if let Exposure::LoadBalancer(lb) = &mut s.exposure {
        lb.source_ranges = vec!["fd00::/8".parse().expect("a network")];
    }
    let r = routes(&s, &[], &node(), &Options::default());
    assert_eq!(r.routes[1].source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0/32"]);
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let state = prop::sample::select(vec!["ready", "down", "draining", "gone"]);
    let hints = prop::collection::vec(prop::sample::select(vec!["a", "b"]), 0..2);
    (2u8..10, state, prop::sample::select(vec!["here", "there"]), hints).prop_map(|(n, state, node, hints)| Endpoint {
        hint_zones: hints.into_iter().map(Arc::from).collect(),
        ..endpoint(n, state, node)
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(lb, internal_local, external_local)| {
        let mut s = if lb { load_balancer() } else { service() };
        if internal_local {
            s.internal_policy = TrafficPolicy::Local;
        }
        if lb && external_local {
            s.external_policy = TrafficPolicy::Local;
        }
        s
    })
}

proptest! {
    #[test]
    fn order_of_slices_and_endpoints_is_irrelevant(
        s in any_service(), lists in prop::collection::vec(prop::collection::vec(any_endpoint(), 0..6), 0..4), seed in any::<u64>(),
    ) {
        let slices: Vec<_> = lists.iter().enumerate().map(|(i, e)| slice(&format!("s{i}"), e.clone())).collect();
        let mut shuffled: Vec<_> = lists.iter().enumerate().map(|(i, e)| {
            let mut e = e.clone();
            if seed >> i & 1 == 1 { e.reverse(); }
            slice(&format!("s{i}"), e)
        }).collect();
        shuffled.rotate_left(seed as usize % lists.len().max(1));
        let options = Options::default();
        prop_assert_eq!(routes(&s, &slices, &node(), &options), routes(&s, &shuffled, &node(), &options));
    }

    #[test]
    fn never_one_that_is_not_ready_while_a_ready_one_qualifies(
        s in any_service(), list in prop::collection::vec(any_endpoint(), 0..10),
    ) {
        let all = routes(&s, &[slice("s", list.clone())], &node(), &Options::default());
        // Several copies of one address count as the most able one.
        let ready = |b: &Backend| list.iter().any(|e| e.addresses[0] == b.ip && e.ready);
        let draining = |b: &Backend| list.iter().any(|e| e.addresses[0] == b.ip && e.serving && e.terminating);
        let somewhere = list.iter().any(|e| e.ready);
        for route in &all.routes {
            for (verdict, local) in [(Some(&route.inside), false), (route.outside.as_ref(), true)] {
                let Some(verdict) = verdict else { continue };
                let backends = verdict.backends();
                prop_assert!(backends.windows(2).all(|w| w[0] < w[1]), "sorted, each once");
                prop_assert!(backends.iter().all(|b| ready(b)) || backends.iter().all(|b| !ready(b) && draining(b)));
                let cluster = !local && (route.masquerade != Masquerade::Foreign || s.internal_policy == TrafficPolicy::Cluster);
                if cluster && somewhere {
                    prop_assert!(!backends.is_empty() && backends.iter().all(ready));
                }
                if !cluster {
                    for b in backends {
                        prop_assert!(list.iter().any(|e| e.addresses[0] == b.ip && e.node.as_deref() == Some("here")));
                    }
                }
                prop_assert!(matches!(verdict, Verdict::Balance(_)) != backends.is_empty());
            }
        }
    }

    #[test]
    fn nodes_together_reach_every_ready_endpoint(list in prop::collection::vec(any_endpoint(), 0..10)) {
        let mut s = load_balancer();
        s.external_policy = TrafficPolicy::Local;
        // An endpoint has one node: copies that disagree are not what the API server lets through.
        let list: Vec<_> = list.into_iter().map(|e| {
            let even = e.addresses[0].to_string().ends_with(['2', '4', '6', '8']);
            Endpoint { node: Some(if even { "here" } else { "there" }.into()), ..e }
        }).collect();
        let slices = [slice("s", list.clone())];
        let mut reached = std::collections::BTreeSet::new();
        for name in ["here", "there"] {
            let facts = NodeFacts { name: name.into(), zone: None };
            let all = routes(&s, &slices, &facts, &Options::default());
            let lb = all.routes.iter().find(|r| r.frontend.at == At::Address([10, 112, 0, 1].into())).expect("the LB's route");
            reached.extend(lb.outside.iter().flat_map(|v| v.backends()).map(|b| b.ip));
        }
        for e in list.iter().filter(|e| e.ready) {
            prop_assert!(reached.contains(&e.addresses[0]));
        }
    }
}
