use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::object::{Addressing, Exposure, IpFamily, TargetPort, TrafficPolicy};

fn labels_of(list: &[(&str, &str)]) -> Labels {
    list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

#[test]
fn a_plain_service_reads_whole() {
    let (svc, problems) = service(&json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 3,
            "annotations": {"a": "b", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "selector": {"app": "web"},
            "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "port": 80, "targetPort": "http-web", "nodePort": 30080},
                      {"name": "dns", "port": 53, "protocol": "UDP"}]}
    }));
    assert_eq!(problems, []);
    let svc = svc.expect("usable");
    assert_eq!(svc.meta.key.to_string(), "default/web");
    assert_eq!(svc.meta.annotations, labels_of(&[("a", "b")]));
    assert_eq!(svc.addressing, Addressing::ClusterIp(vec!["10.96.0.7".parse().unwrap()]));
    assert_eq!(svc.exposure, Exposure::NodePort);
    assert_eq!(svc.affinity, Some(10_800));
    assert_eq!(svc.external_policy, TrafficPolicy::Local);
    assert_eq!(svc.families, [IpFamily::V4]);
    assert_eq!(svc.ports[0].target, TargetPort::Name("http-web".into()));
    assert_eq!((svc.ports[0].node_port, svc.ports[1].node_port), (Some(30080), None));
    assert_eq!(svc.ports[1].target, TargetPort::Number(53));
}

#[test]
fn bad_fields_are_left_out_and_named() {
    let (svc, problems) = service(&json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.7", "ports": [
            {"port": 0}, {"port": 80, "protocol": "FOO"}, {"port": 70000}, {"port": "80"}, {"port": 81}, {"port": 81}]}
    }));
    let svc = svc.expect("the good rest is used");
    assert_eq!(svc.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [81]);
    let texts: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
    assert_eq!(
        texts,
        [
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[1].protocol: Unsupported value: \"FOO\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "spec.ports[2].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.ports[3].port: Invalid value: \"80\": must be between 1 and 65535, inclusive",
            "spec.ports[5]: Duplicate value: port 81/TCP",
        ]
    );
}

#[test]
fn unreadable_source_ranges_do_not_open_the_service() {
    let (svc, problems) = service(&json!({
        "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "loadBalancerSourceRanges": ["10.0.0.0/33"]}
    }));
    let Exposure::LoadBalancer(lb) = svc.expect("usable").exposure else { panic!("a LoadBalancer") };
    assert_eq!(lb.source_ranges, ["0.0.0.0/32".parse().unwrap()]);
    assert_eq!(problems.len(), 1);
}

#[test]
fn seed_168_slice_of_a_foreign_address() {
    let (slice, problems) = endpoint_slice(&json!({
        "metadata": {"name": "nginx-abc", "namespace": "default", "labels": {"kubernetes.io/service-name": "nginx"}},
        "addressType": "IPv4", "ports": [],
        "endpoints": [{"addresses": ["202.232.2.180"]}, {"addresses": ["127.0.0.1"]}, {"addresses": ["fd00::1"]}, {}]
    }));
    let slice = slice.expect("usable");
    assert_eq!(slice.endpoints.len(), 1);
    assert!(slice.endpoints[0].ready && slice.endpoints[0].serving && !slice.endpoints[0].terminating);
    assert_eq!(problems.len(), 2);
}

#[test]
fn a_pod_says_why_it_is_not_ready() {
    let (pod, _) = pod(&json!({
        "metadata": {"name": "x", "namespace": "default"},
        "status": {"phase": "Pending", "podIP": "10.244.0.5",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [{"restartCount": 2, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "back-off"}}}]}
    }));
    let pod = pod.expect("usable");
    assert_eq!((&*pod.reason, pod.restarts, pod.ips.len()), ("ImagePullBackOff: back-off", 2, 1));
}

#[test]
fn equal_strings_are_kept_once() {
    let mut strings = Strings::default();
    let (a, b) = (strings.share("app"), strings.share("app"));
    assert!(Arc::ptr_eq(&a, &b));
}

/// Any JSON, with the field names the parsers look for mixed in.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..70_000).prop_map(Value::from),
        prop_oneof!["[a-z.:/0-9]{0,12}", Just("None".to_string()), Just("10.0.0.1".into()), Just("IPv4".into())]
            .prop_map(Value::from),
    ];
    let names = [
        "metadata",
        "name",
        "namespace",
        "labels",
        "spec",
        "status",
        "ports",
        "port",
        "protocol",
        "type",
        "clusterIP",
        "clusterIPs",
        "endpoints",
        "addresses",
        "addressType",
        "conditions",
        "containers",
        "podIPs",
        "ip",
        "targetRef",
        "kubernetes.io/service-name",
        "ipFamilies",
        "selector",
        "loadBalancer",
        "ingress",
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(prop::sample::select(names.to_vec()), inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_string(), v)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_parser_is_total(v in any_json()) {
        let mut parser = Parser::default();
        let _ = parser.service(&v);
        let _ = parser.endpoint_slice(&v);
        let _ = parser.node(&v);
        let _ = parser.pod(&v);
        let _ = parser.namespace(&v);
    }
}
