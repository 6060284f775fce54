use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::parse;

fn svc(spec: Value) -> Service {
    let v = json!({"metadata": {"name": "web", "namespace": "default", "uid": "svc-uid", "labels": {"tier": "front"}}, "spec": spec});
    parse::service(&v).0.expect("a Service")
}

fn plain() -> Service {
    svc(
        json!({"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
    )
}

fn pod(name: &str, ip: &str, ready: bool) -> Pod {
    let v = json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web", "containers": [{"ports": [{"name": "http-web", "containerPort": 8081}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
    parse::pod(&v).0.expect("a Pod")
}

fn numbered(range: impl Iterator<Item = usize>) -> Vec<Arc<Pod>> {
    range.map(|i| Arc::new(pod(&format!("p{i:05}"), &format!("10.244.{}.{}", i / 250, i % 250 + 1), true))).collect()
}

/// Writes `changes` as the API server would.
fn write(existing: &mut Vec<Arc<EndpointSlice>>, changes: &Changes<SliceSpec>, serial: &mut u32) {
    let owner = SliceOwner { kind: "Service", name: "web", uid: "svc-uid" };
    existing.retain(|s| !changes.delete.contains(&s.meta.key));
    for spec in changes.create.iter().chain(&changes.update) {
        let mut v = object(spec, &owner);
        if let Some(old) = &spec.replaces {
            existing.retain(|s| s.meta.key != old.meta.key);
        } else {
            *serial += 1;
            v["metadata"]["name"] = format!("web-{serial:05}").into();
        }
        let (slice, problems) = parse::endpoint_slice(&v);
        assert_eq!(problems, []);
        existing.push(Arc::new(slice.expect("a slice")));
    }
}

fn settle(service: &Service, pods: &[Arc<Pod>], existing: &mut Vec<Arc<EndpointSlice>>, serial: &mut u32) -> usize {
    let changes = reconcile(service, pods.iter(), &Map::default(), existing);
    write(existing, &changes, serial);
    let again = reconcile(service, pods.iter(), &Map::default(), existing);
    assert!(again.is_empty(), "one round settles: {again:#?}");
    changes.create.len() + changes.update.len() + changes.delete.len()
}

fn addresses(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let mut all: Vec<_> = slices.iter().flat_map(|s| s.endpoints.iter().map(|e| e.addresses[0].to_string())).collect();
    all.sort();
    all
}

#[test]
fn seed_162_a_thousand_and_one_endpoints_make_eleven_slices() {
    let (mut slices, mut serial) = (Vec::new(), 0);
    settle(&plain(), &numbered(0..1001), &mut slices, &mut serial);
    assert_eq!(slices.len(), 11);
    assert!(slices.iter().all(|s| s.endpoints.len() <= MAX_ENDPOINTS));
    let object = endpoints::desired(&plain(), numbered(0..1001).iter()).expect("has a selector");
    assert_eq!(object["metadata"]["annotations"][endpoints::OVER_CAPACITY], "truncated");
    assert_eq!(object["subsets"][0]["addresses"].as_array().map(Vec::len), Some(1000));
}

#[test]
fn seed_163_labels_owner_and_ports_of_a_slice() {
    let changes = reconcile(&plain(), numbered(0..2).iter(), &Map::default(), &[]);
    let v = object(&changes.create[0], &SliceOwner { kind: "Service", name: "web", uid: "svc-uid" });
    assert_eq!(v["metadata"]["generateName"], "web-");
    assert_eq!(
        v["metadata"]["labels"],
        json!({"tier": "front", "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"})
    );
    assert_eq!(v["metadata"]["ownerReferences"][0]["uid"], "svc-uid");
    assert_eq!(v["ports"], json!([{"name": "http", "protocol": "TCP", "port": 8080}]));
    assert_eq!(v["endpoints"][0]["conditions"], json!({"ready": true, "serving": true, "terminating": false}));
    assert_eq!(v["endpoints"][0]["hostname"], "p00000");
    assert_eq!(v["endpoints"][0]["targetRef"]["uid"], "uid-p00000");
}

#[test]
fn seed_045_unready_pod_leaves_endpoints_and_stays_in_slice_as_unready() {
    let pods = [Arc::new(pod("a", "10.244.0.5", true)), Arc::new(pod("b", "10.244.0.6", false))];
    let object = endpoints::desired(&plain(), pods.iter()).expect("has a selector");
    assert_eq!(object["subsets"][0]["addresses"][0]["ip"], "10.244.0.5");
    assert_eq!(object["subsets"][0]["notReadyAddresses"][0]["ip"], "10.244.0.6");
    let changes = reconcile(&plain(), pods.iter(), &Map::default(), &[]);
    let ready: Vec<_> = changes.create[0].endpoints.iter().map(|e| (e.ready, e.serving)).collect();
    assert_eq!(ready, [(true, true), (false, false)]);
}

#[test]
fn a_terminating_pod_serves_but_is_not_ready() {
    let mut p = pod("a", "10.244.0.5", true);
    p.meta.deleting = true;
    let changes = reconcile(&plain(), [Arc::new(p.clone())].iter(), &Map::default(), &[]);
    let e = &changes.create[0].endpoints[0];
    assert_eq!((e.ready, e.serving, e.terminating), (false, true, true));
    let mut publish = plain();
    publish.publish_not_ready = true;
    let changes = reconcile(&publish, [Arc::new(p)].iter(), &Map::default(), &[]);
    assert!(changes.create[0].endpoints[0].ready);
}

#[test]
fn seed_175_named_target_ports_resolve_per_pod() {
    let service = svc(
        json!({"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http-web"}]}),
    );
    let mut other = pod("b", "10.244.0.6", true);
    other.ports[0].port = 9090;
    let mut portless = pod("c", "10.244.0.7", true);
    portless.ports.clear();
    let pods = [Arc::new(pod("a", "10.244.0.5", true)), Arc::new(other), Arc::new(portless)];
    let mut slices = Vec::new();
    settle(&service, &pods, &mut slices, &mut 0);
    let mut ports: Vec<_> = slices.iter().map(|s| s.ports.iter().map(|p| p.port).collect::<Vec<_>>()).collect();
    ports.sort();
    assert_eq!(ports, [vec![], vec![Some(8081)], vec![Some(9090)]]);
    let object = endpoints::desired(&service, pods.iter()).expect("has a selector");
    assert_eq!(object["subsets"].as_array().map(Vec::len), Some(2), "a pod without the port is in no subset");
}

#[test]
fn seed_172_ports_with_the_same_addresses_share_a_subset() {
    let service = svc(json!({"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [
        {"name": "http", "port": 80, "targetPort": 8080}, {"name": "metrics", "port": 9090}]}));
    let object = endpoints::desired(&service, numbered(0..3).iter()).expect("has a selector");
    assert_eq!(object["subsets"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        object["subsets"][0]["ports"],
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "metrics", "port": 9090, "protocol": "TCP"}])
    );
}

#[test]
fn seed_086_headless_without_ports_has_bare_addresses() {
    let service = svc(json!({"clusterIP": "None", "selector": {"app": "web"}}));
    let object = endpoints::desired(&service, numbered(0..2).iter()).expect("has a selector");
    assert_eq!(object["subsets"][0]["addresses"].as_array().map(Vec::len), Some(2));
    assert!(object["subsets"][0]["ports"].is_null());
    assert_eq!(object["metadata"]["labels"]["service.kubernetes.io/headless"], "");
    let changes = reconcile(&service, numbered(0..2).iter(), &Map::default(), &[]);
    assert_eq!((changes.create[0].ports.len(), changes.create[0].endpoints.len()), (0, 2));
}

#[test]
fn dual_stack_services_have_slices_of_both_families() {
    let service = svc(json!({"clusterIPs": ["10.96.0.7", "fd00::7"], "ipFamilies": ["IPv4", "IPv6"],
        "selector": {"app": "web"}, "ports": [{"port": 80}]}));
    let mut both = pod("a", "10.244.0.5", true);
    both.ips.push("fd00:1::5".parse().unwrap());
    let pods = [Arc::new(both), Arc::new(pod("b", "10.244.0.6", true))];
    let mut slices = Vec::new();
    settle(&service, &pods, &mut slices, &mut 0);
    let mut counts: Vec<_> = slices.iter().map(|s| (s.address_type, s.endpoints.len())).collect();
    counts.sort();
    assert_eq!(counts, [(AddressType::V4, 2), (AddressType::V6, 1)]);
    let object = endpoints::desired(&service, pods.iter()).expect("has a selector");
    assert_eq!(object["subsets"][0]["addresses"].as_array().map(Vec::len), Some(2), "the first family only");
}

#[test]
fn hints_follow_traffic_distribution() {
    let service = svc(json!({"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80}],
        "trafficDistribution": "PreferSameNode"}));
    let node = json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}}});
    let mut nodes = Map::default();
    nodes.insert(ObjectKey::new("", "n1"), Arc::new(parse::node(&node).0.unwrap()));
    let pods = [Arc::new(pod("a", "10.244.0.5", true)), Arc::new(pod("b", "10.244.0.6", false))];
    let changes = reconcile(&service, pods.iter(), &nodes, &[]);
    let v = object(&changes.create[0], &SliceOwner { kind: "Service", name: "web", uid: "svc-uid" });
    assert_eq!(v["endpoints"][0]["hints"], json!({"forZones": [{"name": "z"}], "forNodes": [{"name": "n1"}]}));
    assert_eq!((&v["endpoints"][0]["zone"], &v["endpoints"][1]["hints"]), (&json!("z"), &Value::Null));
}

#[test]
fn nothing_selected_makes_one_placeholder_that_is_then_used() {
    let (mut slices, mut serial) = (Vec::new(), 0);
    settle(&plain(), &[], &mut slices, &mut serial);
    assert_eq!((slices.len(), slices[0].endpoints.len(), slices[0].ports.len()), (1, 0, 0));
    settle(&plain(), &numbered(0..3), &mut slices, &mut serial);
    assert_eq!((slices.len(), serial), (1, 1), "the placeholder was filled");
    settle(&plain(), &[], &mut slices, &mut serial);
    assert_eq!((slices.len(), addresses(&slices).len()), (1, 0));
}

#[test]
fn seed_168_a_selector_taken_away_takes_its_slices_along() {
    let (mut slices, mut serial) = (Vec::new(), 0);
    settle(&plain(), &numbered(0..250), &mut slices, &mut serial);
    let without = svc(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
    settle(&without, &numbered(0..250), &mut slices, &mut serial);
    assert!(slices.is_empty());
    assert!(endpoints::desired(&without, numbered(0..3).iter()).is_none());
}

#[test]
fn seed_165_hand_written_endpoints_are_mirrored() {
    let service = svc(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 5432}]}));
    let source = json!({"metadata": {"name": "web", "namespace": "default", "uid": "e"}, "subsets": [
        {"addresses": [{"ip": "192.168.1.100"}, {"ip": "127.0.0.1"}], "ports": [{"port": 5432}]},
        {"addresses": [{"ip": "202.232.2.180"}]}]});
    let changes = mirror::reconcile(Some(&service), Some(&source), &[]);
    assert_eq!(changes.create.len(), 2);
    assert_eq!(changes.create[0].labels[MANAGED_BY].as_ref(), mirror::CONTROLLER);
    assert_eq!(changes.create[0].ports.len(), 0);
    assert_eq!(changes.create[1].endpoints.len(), 1, "loopback is left out");
    assert!(mirror::reconcile(Some(&plain()), Some(&source), &[]).is_empty(), "a selector owns its slices");
    let mut skip = source.clone();
    skip["metadata"]["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    assert!(mirror::reconcile(Some(&service), Some(&skip), &[]).is_empty());
}

#[test]
fn one_pod_more_writes_one_slice() {
    let (mut slices, mut serial) = (Vec::new(), 0);
    settle(&plain(), &numbered(0..950), &mut slices, &mut serial);
    assert_eq!(settle(&plain(), &numbered(0..951), &mut slices, &mut serial), 1);
    assert_eq!(settle(&plain(), &numbered(1..951), &mut slices, &mut serial), 1);
    assert_eq!(settle(&plain(), &numbered(1..951), &mut slices, &mut serial), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever pods come and go: one round settles, no endpoint is lost or doubled, no slice is too big, and the number
    /// of writes is bounded by what changed.
    #[test]
    fn slices_converge_with_little_churn(steps in prop::collection::vec((0_usize..400, 0_usize..400, any::<bool>()), 1..12)) {
        let (mut slices, mut serial) = (Vec::new(), 0);
        let mut last: BTreeSet<String> = BTreeSet::new();
        for (a, b, ready) in steps {
            let mut pods = numbered(a.min(b)..a.max(b));
            if let Some(first) = pods.first_mut() {
                let mut p = (**first).clone();
                p.ready = ready;
                *first = Arc::new(p);
            }
            let writes = settle(&plain(), &pods, &mut slices, &mut serial);
            let got = addresses(&slices);
            let mut want: Vec<_> = pods.iter().map(|p| p.ips[0].to_string()).collect();
            want.sort();
            prop_assert_eq!(&got, &want);
            prop_assert!(slices.iter().all(|s| s.endpoints.len() <= MAX_ENDPOINTS));
            let now: BTreeSet<String> = got.into_iter().collect();
            prop_assert!(writes <= now.symmetric_difference(&last).count() + 2);
            last = now;
        }
    }
}
