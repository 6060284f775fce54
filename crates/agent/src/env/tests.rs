use super::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn snapshot() -> Snapshot {
    let mut s = Snapshot::default();
    let services = [
        json!({"metadata": {"name": "redis-master", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.11",
            "ports": [{"port": 6379, "protocol": "TCP"}]}}),
        json!({"metadata": {"name": "two", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.12",
            "ports": [{"name": "http-main", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
        json!({"metadata": {"name": "headless", "namespace": "default"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}),
        json!({"metadata": {"name": "outside", "namespace": "default"}, "spec": {"type": "ExternalName", "externalName": "a.b"}}),
        json!({"metadata": {"name": "other", "namespace": "team"}, "spec": {"clusterIP": "10.96.0.13", "ports": [{"port": 1}]}}),
        json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.1",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}),
    ];
    for v in services {
        let service = parsed(&v);
        s.services.insert(service.meta.key.clone(), Arc::new(service));
    }
    s
}

fn parsed(v: &Value) -> Service {
    let mut v = v.clone();
    if v["spec"]["clusterIP"].is_string() {
        v["spec"]["clusterIPs"] = json!([v["spec"]["clusterIP"]]);
    }
    model::parse::service(&v).0.expect("a service")
}

fn count(map: &BTreeMap<String, String>, prefix: &str) -> usize {
    map.keys().filter(|k| k.starts_with(prefix)).count()
}

#[test]
fn seed_149_to_155_seven_variables_for_a_service_with_one_port() {
    let vars = service_variables(&snapshot(), "default", true);
    for (name, value) in [
        ("REDIS_MASTER_SERVICE_HOST", "10.96.0.11"),
        ("REDIS_MASTER_SERVICE_PORT", "6379"),
        ("REDIS_MASTER_PORT", "tcp://10.96.0.11:6379"),
        ("REDIS_MASTER_PORT_6379_TCP", "tcp://10.96.0.11:6379"),
        ("REDIS_MASTER_PORT_6379_TCP_PROTO", "tcp"),
        ("REDIS_MASTER_PORT_6379_TCP_PORT", "6379"),
        ("REDIS_MASTER_PORT_6379_TCP_ADDR", "10.96.0.11"),
    ] {
        assert_eq!(vars.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(count(&vars, "REDIS_MASTER_"), 7);
}

#[test]
fn seed_150_named_ports_and_four_more_for_each_further_port() {
    let vars = service_variables(&snapshot(), "default", true);
    assert_eq!(vars["TWO_SERVICE_PORT_HTTP_MAIN"], "80");
    assert_eq!(vars["TWO_SERVICE_PORT"], "80");
    assert_eq!(vars["TWO_PORT"], "tcp://10.96.0.12:80");
    assert_eq!(vars["TWO_PORT_53_UDP"], "udp://10.96.0.12:53");
    // Seven, one for each of the two names, four for the second port.
    assert_eq!(count(&vars, "TWO_"), 7 + 2 + 4);
}

#[test]
fn seed_156_kubernetes_always_and_nothing_for_headless_or_external() {
    let vars = service_variables(&snapshot(), "default", true);
    assert_eq!(count(&vars, "HEADLESS") + count(&vars, "OUTSIDE") + count(&vars, "OTHER"), 0);
    let none = service_variables(&snapshot(), "default", false);
    assert_eq!(none["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
    assert_eq!(count(&none, "KUBERNETES_"), none.len());
    let team = service_variables(&snapshot(), "team", true);
    assert_eq!(team["OTHER_SERVICE_HOST"], "10.96.0.13");
    assert_eq!(team["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
    assert_eq!(count(&team, "REDIS"), 0);
}

#[test]
fn references_expand_as_documented() {
    let know = |n: &str| (n == "A").then(|| "1".to_owned());
    for (text, want) in [
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)", "$(B)"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
    ] {
        assert_eq!(expand(text, know), want, "{text}");
    }
}

#[test]
fn variables_come_from_everywhere_and_the_containers_own_win() {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "labels": {"app": "x"}},
        "spec": {"nodeName": "n", "containers": []}}))
    .expect("pod");
    let container: Container = serde_json::from_value(json!({"name": "c",
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "gone", "optional": true}}],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(P_k)"},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "SVC", "value": "own"}, {"name": "EMPTY"}]}))
    .expect("container");
    let mut refs = References::default();
    refs.config_maps.insert("m".into(), Some(BTreeMap::from([("k".into(), "v".into())])));
    refs.secrets.insert("gone".into(), None);
    refs.secrets.insert("s".into(), Some(BTreeMap::from([("k".into(), b"secret".to_vec())])));
    let services = BTreeMap::from([("SVC".to_owned(), "service".to_owned()), ("T".to_owned(), "t".to_owned())]);
    let vars = variables(&pod, &container, &refs, &Runtime::default(), &services).expect("variables");
    let vars: BTreeMap<_, _> = vars.into_iter().collect();
    for (k, v) in
        [("A", "1"), ("B", "1v"), ("L", "x"), ("S", "secret"), ("SVC", "own"), ("T", "t"), ("P_k", "v"), ("EMPTY", "")]
    {
        assert_eq!(vars.get(k).map(String::as_str), Some(v), "{k}");
    }
    refs.config_maps.insert("m".into(), None);
    let missing = variables(&pod, &container, &refs, &Runtime::default(), &services);
    assert_eq!(missing, Err("configmap \"m\" not found".into()));
    refs.config_maps.insert("m".into(), Some(BTreeMap::new()));
    refs.secrets.insert("s".into(), Some(BTreeMap::new()));
    let missing = variables(&pod, &container, &refs, &Runtime::default(), &services);
    assert_eq!(missing, Err("couldn't find key k in Secret ns/s".into()));
}
