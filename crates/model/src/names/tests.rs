use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::names::SrvEntry;
use crate::{parse, snapshot::Kind};

fn zone() -> Zone {
    Zone {
        reverse: vec!["10.96.0.0/12".parse().unwrap(), "10.244.0.0/16".parse().unwrap()],
        ..Zone::new("cluster.local").unwrap()
    }
}

fn put(snapshot: &mut Snapshot, object: &Value) {
    let key = parse::key(object).unwrap();
    match object["kind"].as_str().unwrap() {
        "Service" => _ = snapshot.services.insert(key, Arc::new(parse::service(object).0.unwrap())),
        "EndpointSlice" => snapshot.put_slice(Arc::new(parse::endpoint_slice(object).0.unwrap()), None),
        "Pod" => _ = snapshot.pods.insert(key, Arc::new(parse::pod(object).0.unwrap())),
        "Namespace" => _ = snapshot.namespaces.insert(key, Arc::new(parse::namespace(object).0.unwrap())),
        kind => panic!("{kind}"),
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" }, "spec": spec })
}

fn slice(name: &str, service: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }], "endpoints": endpoints,
    })
}

fn snapshot(objects: &[Value]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    put(&mut snapshot, &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default" } }));
    objects.iter().for_each(|o| put(&mut snapshot, o));
    Kind::ALL.iter().for_each(|k| snapshot.mark_listed(*k));
    snapshot
}

/// The answer in one word or a list, for tables of expectations.
fn ask(directory: &Directory, name: &str, t: RecordType) -> String {
    let name: Name = name.parse().unwrap();
    match directory.answer(&name, t).found {
        Found::Elsewhere => "elsewhere".into(),
        Found::NoData(reason) => format!("nodata: {}", directory.explain(&reason)),
        Found::NoName(reason) => format!("nxdomain: {}", directory.explain(&reason)),
        Found::Alias(target) => format!("-> {target}"),
        Found::Records(Records::A(ips)) => format!("{ips:?}"),
        Found::Records(Records::Aaaa(ips)) => format!("{ips:?}"),
        Found::Records(Records::Address(ip)) => format!("{ip}"),
        Found::Records(Records::Srv { service, set }) => {
            let one = |e: &SrvEntry| format!("{}:{}", service.srv_target(e).label.unwrap_or("itself"), e.port);
            set.iter().map(one).collect::<Vec<_>>().join(" ")
        }
        Found::Records(Records::Ptr(targets)) => format!("{:?}", targets.iter().map(|t| t.label).collect::<Vec<_>>()),
        Found::Records(other) => format!("{other:?}"),
    }
}

const A: RecordType = RecordType::A;

fn example() -> Directory {
    let ready = |ip: &str, name: Option<&str>, ready: bool| json!({ "addresses": [ip], "hostname": name, "conditions": { "ready": ready } });
    Directory::of(
        zone(),
        &snapshot(&[
            service(
                "web",
                json!({ "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ports": [{ "name": "http", "port": 80 }, { "port": 53, "name": "dns", "protocol": "UDP" }] }),
            ),
            slice("web-1", "web", json!([ready("10.244.0.3", None, true)])),
            service("redis", json!({ "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] })),
            slice(
                "redis-1",
                "redis",
                json!([ready("10.244.0.5", Some("redis-0"), true), ready("10.244.0.6", Some("redis-1"), false)]),
            ),
            slice(
                "redis-2",
                "redis",
                json!([ready("10.244.0.7", None, true), ready("10.244.0.5", Some("redis-0"), true)]),
            ),
            service("early", json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "ports": [] })),
            slice("early-1", "early", json!([ready("10.244.0.8", None, false)])),
            service("empty", json!({ "clusterIP": "None", "selector": { "app": "empty" } })),
            service("ext", json!({ "type": "ExternalName", "externalName": "database.example.com" })),
            json!({ "kind": "Pod", "metadata": { "name": "p", "namespace": "default" }, "spec": {}, "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.0.5" }] } }),
        ]),
    )
}

#[test]
fn the_schema_row_by_row() {
    let d = example();
    let srv = RecordType::SRV;
    for (name, t, want) in [
        ("web.default.svc.cluster.local", A, "[10.96.1.1]"),
        ("WEB.Default.SVC.cluster.LOCAL.", A, "[10.96.1.1]"),
        ("web.default.svc.cluster.local", RecordType::AAAA, "nodata: Service default/web has no IPv6 address"),
        ("web.default.svc.cluster.local", RecordType(15), "nodata: the name exists and has no MX record"),
        ("_http._tcp.web.default.svc.cluster.local", srv, "itself:80"),
        ("_dns._udp.web.default.svc.cluster.local", srv, "itself:53"),
        ("_http._tcp.web.default.svc.cluster.local", A, "nodata: the name exists and has no A record"),
        ("_tcp.web.default.svc.cluster.local", A, "nodata: there are only longer names below this one"),
        (
            "_sctp.web.default.svc.cluster.local",
            A,
            "nxdomain: Service default/web has no port _sctp; it has: _http._tcp, _dns._udp",
        ),
        (
            "_http._udp.web.default.svc.cluster.local",
            srv,
            "nxdomain: Service default/web has no port _http._udp; it has: _http._tcp, _dns._udp",
        ),
        ("10-244-0-3.web.default.svc.cluster.local", A, "[10.244.0.3]"),
        ("redis.default.svc.cluster.local", A, "[10.244.0.5, 10.244.0.7]"),
        ("redis-0.redis.default.svc.cluster.local", A, "[10.244.0.5]"),
        (
            "redis-1.redis.default.svc.cluster.local",
            A,
            "nxdomain: Service default/redis has no ready endpoint with the name redis-1",
        ),
        ("10-244-0-7.redis.default.svc.cluster.local", A, "[10.244.0.7]"),
        ("_http._tcp.redis.default.svc.cluster.local", srv, "10-244-0-7:8080 redis-0:8080"),
        ("redis.default.svc.cluster.local", srv, "10-244-0-7:8080 redis-0:8080"),
        ("redis-0.redis.default.svc.cluster.local", srv, "redis-0:8080"),
        ("early.default.svc.cluster.local", A, "[10.244.0.8]"),
        (
            "empty.default.svc.cluster.local",
            A,
            "nxdomain: headless Service default/empty has no endpoints: no pod with an address matches its selector",
        ),
        ("ext.default.svc.cluster.local", A, "-> database.example.com."),
        (
            "x.ext.default.svc.cluster.local",
            A,
            "nxdomain: Service default/ext is of type ExternalName: there is nothing below it",
        ),
        ("nope.default.svc.cluster.local", A, "nxdomain: namespace default has no Service nope"),
        ("web.nope.svc.cluster.local", A, "nxdomain: namespace nope does not exist"),
        ("default.svc.cluster.local", A, "nodata: there are only longer names below this one"),
        ("nope.svc.cluster.local", A, "nxdomain: namespace nope does not exist"),
        ("svc.cluster.local", A, "nodata: there are only longer names below this one"),
        ("cluster.local", A, "nodata: the name exists and has no A record"),
        ("cluster.local", RecordType::SOA, "Soa"),
        ("cluster.local", RecordType::NS, "Ns"),
        ("dns-version.cluster.local", RecordType::TXT, "Txt(\"1.1.0\")"),
        ("10-244-0-5.default.pod.cluster.local", A, "10.244.0.5"),
        ("10-244-0-9.default.pod.cluster.local", A, "nxdomain: namespace default has no pod with address 10.244.0.9"),
        (
            "web.default.cluster.local",
            A,
            "nxdomain: names in cluster.local are SERVICE.NAMESPACE.svc.cluster.local, names below it, or A-B-C-D.NAMESPACE.pod.cluster.local",
        ),
        ("1.1.96.10.in-addr.arpa", RecordType::PTR, "[None]"),
        ("5.0.244.10.in-addr.arpa", RecordType::PTR, "[Some(\"redis-0\")]"),
        (
            "3.0.244.10.in-addr.arpa",
            RecordType::PTR,
            "nxdomain: 10.244.0.3 is neither a ClusterIP nor an endpoint of a headless Service",
        ),
        ("96.10.in-addr.arpa", RecordType::SOA, "Soa"),
        ("0.244.10.in-addr.arpa", RecordType::PTR, "nodata: there are only longer names below this one"),
        ("8.8.8.8.in-addr.arpa", RecordType::PTR, "elsewhere"),
        ("example.com", A, "elsewhere"),
    ] {
        assert_eq!(ask(&d, name, t), want, "{name} {t}");
    }
}

#[test]
fn a_search_walk_ends_at_once() {
    let d = example();
    for name in [
        "www.example.com.default.svc.cluster.local",
        "www.example.com.svc.cluster.local",
        "www.example.com.cluster.local",
    ] {
        assert!(ask(&d, name, A).starts_with("nxdomain"), "{name}");
    }
}

#[test]
fn nothing_is_known_before_the_lists() {
    let mut d = Directory::new(zone());
    assert_eq!(d.unlisted(), Some(Kind::Service));
    let mut s = Snapshot::default();
    Kind::ALL.iter().filter(|k| **k != Kind::EndpointSlice).for_each(|k| s.mark_listed(*k));
    d = d.advance(&s);
    assert_eq!(d.unlisted(), Some(Kind::EndpointSlice));
    assert_eq!(example().unlisted(), None);
    // Without the pods, only pod names have to wait.
    let mut s = Snapshot::default();
    Kind::ALL.iter().filter(|k| **k != Kind::Pod).for_each(|k| s.mark_listed(*k));
    d = d.advance(&s);
    assert_eq!(d.unlisted(), Some(Kind::Pod));
    assert_eq!(d.unlisted_for(&"web.default.svc.cluster.local".parse().unwrap()), None);
    assert_eq!(d.unlisted_for(&"10-0-0-1.default.pod.cluster.local".parse().unwrap()), Some(Kind::Pod));
}

#[test]
fn dual_stack_hostnames_join() {
    let mut six = slice("db-6", "db", json!([{ "addresses": ["fd00::5"], "hostname": "db-0" }]));
    six["addressType"] = "IPv6".into();
    let d = Directory::of(
        zone(),
        &snapshot(&[
            service("db", json!({ "clusterIP": "None" })),
            slice("db-4", "db", json!([{ "addresses": ["10.244.0.5"], "hostname": "db-0" }])),
            six,
        ]),
    );
    assert_eq!(ask(&d, "db-0.db.default.svc.cluster.local", A), "[10.244.0.5]");
    assert_eq!(ask(&d, "db-0.db.default.svc.cluster.local", RecordType::AAAA), "[fd00::5]");
    assert_eq!(ask(&d, "_http._tcp.db.default.svc.cluster.local", RecordType::SRV), "db-0:8080");
}

#[test]
fn pod_names_follow_the_option() {
    let ask = |pods, name: &str| {
        let d = Directory::of(Zone { pods, ..zone() }, example().snapshot());
        ask(&d, name, A)
    };
    assert!(ask(PodNames::Disabled, "10-244-0-5.default.pod.cluster.local").starts_with("nxdomain"));
    assert_eq!(ask(PodNames::Insecure, "1-2-3-4.default.pod.cluster.local"), "1.2.3.4");
    assert!(ask(PodNames::Insecure, "1-2-3-4.nope.pod.cluster.local").starts_with("nxdomain"));
    assert!(ask(PodNames::Insecure, "1.2.3.4.default.pod.cluster.local").starts_with("nxdomain"));
}

fn shape(
    d: &Directory,
) -> (BTreeMap<Vec<u8>, ServiceNames>, BTreeMap<IpAddr, Vec<String>>, BTreeMap<IpAddr, Vec<String>>) {
    let names = |k: &[u8]| {
        let e = d.services.get(k).unwrap();
        ServiceNames::new(&e.service, e.slices(), d.zone())
    };
    let keys =
        |t: &Table<IpAddr, Keys>| t.iter().map(|(ip, k)| (*ip, k.iter().map(|k| k.to_string()).collect())).collect();
    (d.services.iter().map(|(k, _)| (k.to_vec(), names(k))).collect(), keys(&d.pointers), keys(&d.pods))
}

fn any_object() -> impl Strategy<Value = (Value, bool)> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let ips =
        prop::collection::vec((0u8..5, any::<bool>(), prop::option::of(prop::sample::select(vec!["h0", "h1"]))), 0..4);
    let object = (name.clone(), name, ips, 0u8..6).prop_map(|(name, other, ips, kind)| match kind {
        0 => service(name, json!({ "clusterIP": "None", "publishNotReadyAddresses": ips.len() == 1 })),
        1 => service(name, json!({ "clusterIP": format!("10.96.0.{}", ips.len()), "ports": [{ "port": 80 }] })),
        2 => service(name, json!({ "type": "ExternalName", "externalName": "x.example" })),
        3 | 4 => {
            let endpoints: Vec<_> = ips
                .into_iter()
                .map(|(ip, ready, h)| json!({ "addresses": [format!("10.244.0.{ip}")], "hostname": h, "conditions": { "ready": ready } }))
                .collect();
            slice(name, other, endpoints.into())
        }
        _ => {
            let ips: Vec<_> = ips.into_iter().map(|(ip, ..)| json!({ "ip": format!("10.244.0.{ip}") })).collect();
            json!({ "kind": "Pod", "metadata": { "name": name, "namespace": "default" }, "spec": {}, "status": { "phase": "Running", "podIPs": ips } })
        }
    });
    (object, any::<bool>())
}

proptest! {
    /// Whatever happened in whatever order and however it was batched, the directory is that of its snapshot.
    #[test]
    fn advancing_is_the_same_as_starting_anew(steps in prop::collection::vec((any_object(), prop::bool::weighted(0.2), any::<bool>()), 0..40)) {
        let mut now = snapshot(&[]);
        let mut d = Directory::of(zone(), &now);
        let mut labels: BTreeMap<ObjectKey, ObjectKey> = BTreeMap::new();
        for ((object, _), delete, advance) in steps {
            let key = parse::key(&object).unwrap();
            match (object["kind"].as_str().unwrap(), delete) {
                ("EndpointSlice", delete) => {
                    if let Some(before) = labels.remove(&key) {
                        now.remove_slice(&key, &before);
                    }
                    if !delete {
                        let service = object["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap();
                        labels.insert(key, ObjectKey::new("default", service));
                        put(&mut now, &object);
                    }
                }
                ("Service", true) => _ = now.services.remove(&key),
                ("Pod", true) => _ = now.pods.remove(&key),
                _ => put(&mut now, &object),
            }
            if advance {
                d = d.advance(&now);
            }
        }
        d = d.advance(&now);
        prop_assert_eq!(shape(&d), shape(&Directory::of(zone(), &now)));
    }

    #[test]
    fn any_question_has_an_answer(labels in prop::collection::vec("[a-z0-9_-]{1,8}|_tcp|_http|svc|pod|default|web|redis|10-244-0-5|dns|ns|\\PC{1,5}", 0..7), arpa in 0u8..3, t in 0u16..300) {
        let mut name = Name::ROOT;
        for l in &labels {
            let _ = name.push(l.as_bytes());
        }
        for l in [["cluster", "local"], ["in-addr", "arpa"], ["ip6", "arpa"]][usize::from(arpa)] {
            name.push(l.as_bytes()).unwrap();
        }
        let d = example();
        let answer = d.answer(&name, RecordType(t));
        if let Found::NoData(reason) | Found::NoName(reason) = &answer.found {
            prop_assert!(!d.explain(reason).is_empty());
            prop_assert!(answer.apex_labels >= 2 && answer.apex_labels <= name.len());
        }
    }
}
