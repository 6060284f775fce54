use serde_json::json;

use super::super::{default, prepare_create, validate_create, validate_update as update};
use super::*;

fn refusals(spec: Value) -> Vec<String> {
    let mut service = json!({"metadata": {"name": "s", "namespace": "default"}, "spec": spec});
    default("Service", &mut service);
    prepare_create("Service", &mut service);
    validate_create("Service", &service).iter().map(ToString::to_string).collect()
}

#[test]
fn seed_020_protocols() {
    assert_eq!(
        refusals(json!({"ports": [{"port": 80, "protocol": "FOO"}]})),
        ["spec.ports[0].protocol: Unsupported value: \"FOO\": supported values: \"SCTP\", \"TCP\", \"UDP\""]
    );
    assert!(
        refusals(json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 54, "name": "b", "protocol": "SCTP"}]}))
            .len()
            == 1
    );
}

#[test]
fn seed_068_timeout_bounds() {
    for timeout in [0, 86_401, -1] {
        assert_eq!(
            refusals(
                json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout}}})
            ),
            [format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: {timeout}: must be greater than 0 and less than 86400"
            )]
        );
    }
    assert!(refusals(json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_400}}})).is_empty());
}

#[test]
fn seed_069_affinity_values() {
    assert_eq!(
        refusals(json!({"ports": [{"port": 80}], "sessionAffinity": "Foo"})),
        ["spec.sessionAffinity: Unsupported value: \"Foo\": supported values: \"ClientIP\", \"None\""]
    );
}

#[test]
fn seed_071_external_name() {
    assert!(refusals(json!({"type": "ExternalName", "externalName": "database.example.com"})).is_empty());
    assert!(refusals(json!({"type": "ExternalName", "externalName": "database.example.com."})).is_empty());
    assert_eq!(refusals(json!({"type": "ExternalName"})), ["spec.externalName: Required value"]);
    assert_eq!(
        refusals(json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.0.1"})),
        ["spec.clusterIPs: Forbidden: may not be set for ExternalName services"]
    );
}

#[test]
fn seed_090_only_headless_and_external_name_may_have_no_ports() {
    assert!(refusals(json!({"clusterIP": "None", "selector": {"app": "nginx"}})).is_empty());
    assert_eq!(refusals(json!({"selector": {"app": "nginx"}})), ["spec.ports: Required value"]);
    assert_eq!(
        refusals(json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]})),
        ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"]
    );
}

#[test]
fn seed_173_multi_port_names() {
    assert_eq!(
        refusals(json!({"ports": [{"port": 80, "name": "http"}, {"port": 443}]})),
        ["spec.ports[1].name: Required value"]
    );
    assert_eq!(
        refusals(json!({"ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "http"}]})),
        ["spec.ports[1].name: Duplicate value: \"http\""]
    );
    assert!(refusals(json!({"ports": [{"port": 80}]})).is_empty());
    assert_eq!(
        refusals(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]})),
        ["spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}"]
    );
}

#[test]
fn seed_176_external_policy_needs_an_external_type() {
    let spec = json!({"ports": [{"port": 80}], "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
    assert_eq!(
        refusals(spec.clone()),
        ["spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"]
    );
    let mut with_type = spec.clone();
    with_type["type"] = "NodePort".into();
    assert!(refusals(with_type).is_empty());
    let service = json!({"spec": spec});
    assert!(super::warnings(&service)[0].contains("type: NodePort"));
}

#[test]
fn ports_and_types() {
    assert_eq!(
        refusals(json!({"ports": [{"port": 0}]})),
        [
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive"
        ]
    );
    assert_eq!(
        refusals(json!({"type": "Foo", "ports": [{"port": 80}]})),
        [
            "spec.type: Unsupported value: \"Foo\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""
        ]
    );
    assert_eq!(
        refusals(json!({"ports": [{"port": 80, "nodePort": 30080}]})),
        ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
    );
    assert_eq!(
        refusals(json!({"clusterIP": "banana", "ports": [{"port": 80}]})),
        [
            "spec.clusterIPs[0]: Invalid value: \"banana\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
        ]
    );
    assert_eq!(
        refusals(json!({"externalIPs": ["127.0.0.1"], "ports": [{"port": 80}]})),
        ["spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"]
    );
}

#[test]
fn cluster_ip_is_immutable() {
    let old = json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}});
    let mut new = old.clone();
    new["spec"]["clusterIP"] = "10.96.0.6".into();
    new["spec"]["clusterIPs"] = json!(["10.96.0.6"]);
    let e: Vec<String> = update("Service", &old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(e, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set"]);
    assert!(update("Service", &old, &old).is_empty());
}
