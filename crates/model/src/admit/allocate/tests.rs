use serde_json::json;

use super::super::{default, prepare_create, prepare_update};
use super::*;

fn cluster() -> Allocations {
    Allocations::new(vec!["10.96.0.0/12".parse().expect("cidr")], 30_000..=32_767)
}

fn service(name: &str, spec: Value) -> Value {
    let mut s = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    default("Service", &mut s);
    prepare_create("Service", &mut s);
    s
}

fn create(a: &mut Allocations, name: &str, spec: Value) -> Result<Value, Vec<String>> {
    let mut s = service(name, spec);
    match a.reserve(None, &mut s, 12_345) {
        Ok(r) => {
            a.commit(r);
            Ok(s)
        }
        Err(e) => Err(e.iter().map(ToString::to_string).collect()),
    }
}

fn update(a: &mut Allocations, old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, Vec<String>> {
    let mut new = old.clone();
    change(&mut new);
    default("Service", &mut new);
    prepare_update("Service", old, &mut new);
    match a.reserve(Some(old), &mut new, 99) {
        Ok(r) => {
            a.commit(r);
            Ok(new)
        }
        Err(e) => Err(e.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn seed_017_defaults_of_a_cluster_ip_service() {
    let s = create(&mut cluster(), "a", json!({"ports": [{"port": 80}]})).expect("created");
    let ip = s["spec"]["clusterIP"].as_str().expect("address");
    assert!(ip.starts_with("10.") && s["spec"]["clusterIPs"] == json!([ip]));
    assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(s["spec"]["ipFamilyPolicy"], "SingleStack");
}

#[test]
fn seed_029_requested_addresses() {
    let mut a = cluster();
    let want = || json!({"clusterIP": "10.102.97.154", "ports": [{"port": 80}]});
    let s = create(&mut a, "a", want()).expect("honoured");
    assert_eq!(s["spec"]["clusterIP"], "10.102.97.154");
    assert_eq!(
        create(&mut a, "b", want()).expect_err("taken"),
        [
            "spec.clusterIPs: Invalid value: [\"10.102.97.154\"]: failed to allocate IP 10.102.97.154: provided IP is already allocated"
        ]
    );
    assert_eq!(
        create(&mut a, "b", json!({"clusterIP": "1.2.3.4", "ports": [{"port": 80}]})).expect_err("elsewhere"),
        [
            "spec.clusterIPs: Invalid value: [\"1.2.3.4\"]: failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the \
          valid range. The range of valid IPs is 10.96.0.0/12"
        ]
    );
    a.release(&s);
    create(&mut a, "b", want()).expect("free again");
}

#[test]
fn seed_049_node_port_range() {
    let mut a = cluster();
    let s = create(&mut a, "a", json!({"type": "NodePort", "ports": [{"port": 80}]})).expect("created");
    let port = s["spec"]["ports"][0]["nodePort"].as_u64().expect("port");
    assert!((30_086..=32_767).contains(&port), "the upper band is used first: {port}");
    for outside in [20_080, 80_000] {
        assert_eq!(
            create(&mut a, "b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": outside}]}))
                .expect_err("outside"),
            [format!(
                "spec.ports[0].nodePort: Invalid value: {outside}: provided port is not in the valid range. The range of valid \
                 ports is 30000-32767"
            )]
        );
    }
}

#[test]
fn seed_050_the_range_is_configurable() {
    let mut a = Allocations::new(vec!["10.96.0.0/12".parse().expect("cidr")], 20_000..=32_767);
    create(&mut a, "a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 20_080}]})).expect("in range");
}

#[test]
fn seed_051_automatic_node_ports_are_distinct_and_reusable() {
    let mut a = Allocations::new(vec!["10.96.0.0/12".parse().expect("cidr")], 30_000..=30_002);
    let made: Vec<Value> = ["a", "b", "c"]
        .map(|n| create(&mut a, n, json!({"type": "NodePort", "ports": [{"port": 80}]})).expect("created"))
        .into();
    let mut ports: Vec<u64> = made.iter().filter_map(|s| s["spec"]["ports"][0]["nodePort"].as_u64()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [30_000, 30_001, 30_002]);
    assert!(create(&mut a, "d", json!({"type": "NodePort", "ports": [{"port": 80}]})).is_err());
    a.release(&made[1]);
    let again = create(&mut a, "d", json!({"type": "NodePort", "ports": [{"port": 80}]})).expect("created");
    assert_eq!(again["spec"]["ports"], made[1]["spec"]["ports"]);
}

#[test]
fn seed_053_duplicate_node_ports() {
    let mut a = cluster();
    let spec = || json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]});
    create(&mut a, "a", spec()).expect("created");
    assert_eq!(
        create(&mut a, "b", spec()).expect_err("taken"),
        ["spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"]
    );
    // The refused one took nothing: its address is free, its next try fails the same way.
    create(&mut a, "b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_081}]})).expect("created");
}

#[test]
fn tcp_and_udp_of_one_port_share_a_node_port() {
    let mut a = cluster();
    let s = create(
        &mut a,
        "dns",
        json!({"type": "NodePort", "ports": [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30_053}]}),
    )
    .expect("created");
    assert_eq!(
        (&s["spec"]["ports"][0]["nodePort"], &s["spec"]["ports"][1]["nodePort"]),
        (&json!(30_053), &json!(30_053))
    );
}

#[test]
fn seed_063_load_balancers_get_everything() {
    let mut a = cluster();
    let s = create(&mut a, "lb", json!({"type": "LoadBalancer", "ports": [{"port": 80}]})).expect("created");
    assert!(s["spec"]["ports"][0]["nodePort"].is_u64() && s["spec"]["clusterIP"].is_string());
    let s = create(
        &mut a,
        "lb2",
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}),
    )
    .expect("created");
    assert!(s["spec"]["ports"][0].get("nodePort").is_none());
    let s = create(
        &mut a,
        "lb3",
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
    )
    .expect("created");
    assert!(s["spec"]["healthCheckNodePort"].is_u64());
}

#[test]
fn type_changes_take_and_give_back() {
    let mut a = cluster();
    let ports = json!([{"port": 80, "nodePort": 30_080}]);
    let s =
        create(&mut a, "a", json!({"type": "NodePort", "clusterIP": "10.96.0.50", "ports": ports})).expect("created");
    let plain = update(&mut a, &s, |n| n["spec"]["type"] = "ClusterIP".into()).expect("updated");
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    let other = create(&mut a, "b", json!({"type": "NodePort", "ports": ports})).expect("30080 is free again");
    let back = update(&mut a, &plain, |n| n["spec"]["type"] = "NodePort".into()).expect("updated");
    assert!(back["spec"]["ports"][0]["nodePort"].is_u64() && back["spec"]["clusterIP"] == "10.96.0.50");
    let name = update(&mut a, &back, |n| {
        n["spec"]["type"] = "ExternalName".into();
        n["spec"]["externalName"] = "a.b".into();
    })
    .expect("updated");
    assert!(name["spec"].get("clusterIP").is_none() && name["spec"].get("ipFamilies").is_none());
    create(&mut a, "c", json!({"clusterIP": "10.96.0.50", "ports": [{"port": 80}]}))
        .expect("the address is free again");
    let again = update(&mut a, &name, |n| {
        n["spec"] = json!({"type": "ClusterIP", "ports": [{"port": 80}]});
    })
    .expect("updated");
    assert!(again["spec"]["clusterIP"].is_string());
    let same = update(&mut a, &other, |n| n["spec"]["ports"][0]["nodePort"] = 30_090.into()).expect("moved");
    assert_eq!(same["spec"]["ports"][0]["nodePort"], 30_090);
    create(&mut a, "d", json!({"type": "NodePort", "ports": ports})).expect("30080 was given back");
}

#[test]
fn headless_and_families() {
    let mut a = cluster();
    let s = create(&mut a, "h", json!({"clusterIP": "None", "selector": {"a": "b"}})).expect("created");
    assert_eq!((&s["spec"]["clusterIPs"], &s["spec"]["ipFamilyPolicy"]), (&json!(["None"]), &json!("SingleStack")));
    let s = create(&mut a, "h2", json!({"clusterIP": "None"})).expect("created");
    assert_eq!(
        (&s["spec"]["ipFamilies"], &s["spec"]["ipFamilyPolicy"]),
        (&json!(["IPv4", "IPv6"]), &json!("RequireDualStack"))
    );
    assert_eq!(
        create(&mut a, "d", json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}))
            .expect_err("single stack"),
        [
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
        ]
    );
    assert_eq!(
        create(&mut a, "d", json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]})).expect_err("no IPv6"),
        ["spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"]
    );
    let s =
        create(&mut a, "p", json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]})).expect("created");
    assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut dual =
        Allocations::new(vec!["10.96.0.0/12".parse().expect("v4"), "fd00::/108".parse().expect("v6")], 30_000..=32_767);
    let s =
        create(&mut dual, "p", json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]})).expect("created");
    assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(strings(&s["spec"], "clusterIPs").len(), 2);
    let single = update(&mut dual, &s, |n| n["spec"]["ipFamilyPolicy"] = "SingleStack".into()).expect("downgraded");
    assert_eq!(strings(&single["spec"], "clusterIPs").len(), 1);
    let back =
        update(&mut dual, &single, |n| n["spec"]["ipFamilyPolicy"] = "RequireDualStack".into()).expect("upgraded");
    assert_eq!(back["spec"]["clusterIPs"][0], s["spec"]["clusterIPs"][0]);
    assert_eq!(strings(&back["spec"], "clusterIPs").len(), 2);
}

#[test]
fn a_restart_remembers() {
    let mut a = cluster();
    let s = create(
        &mut a,
        "a",
        json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30_080}]}),
    )
    .expect("created");
    let mut b = cluster();
    b.adopt(&s);
    assert!(create(&mut b, "b", json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]})).is_err());
    assert!(create(&mut b, "b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]})).is_err());
    // Nothing that is stored can be wrong enough to stop the start.
    b.adopt(&json!({"metadata": null, "spec": {"clusterIPs": ["x", 3], "ports": [{"nodePort": "y"}, 7], "healthCheckNodePort": -1}}));
}

#[test]
fn rollback_gives_back() {
    let mut a = cluster();
    let mut s = service(
        "a",
        json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30_080}]}),
    );
    let r = a.reserve(None, &mut s, 1).expect("reserved");
    a.rollback(r);
    create(
        &mut a,
        "b",
        json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30_080}]}),
    )
    .expect("free");
}
