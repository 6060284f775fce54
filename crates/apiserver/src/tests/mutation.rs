//! Objects that are nearly right. Whatever a client sends, the answer is a refusal or a result, never a 5xx: a panic
//! anywhere below (decoding, patching, defaulting, validation, allocation, Tables) would show as a 500.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const ROUNDS: usize = 1_500;

fn samples() -> Vec<(&'static str, Value)> {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {
        "containers": [{"name": "c", "image": "nginx:1.25", "ports": [{"containerPort": 80, "name": "http"}],
            "env": [{"name": "A", "value": "b"}, {"name": "P", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}});
    vec![
        (
            SERVICES,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"a": "b"},
                "annotations": {"x": "y"}}, "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080, "protocol": "TCP"},
                    {"name": "dns", "port": 53, "protocol": "UDP"}], "clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "externalIPs": ["1.2.3.4"],
                "externalTrafficPolicy": "Local", "healthCheckNodePort": 30081, "loadBalancerSourceRanges": ["10.0.0.0/8"]}}),
        ),
        (PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": template["spec"]})),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 2,
                "selector": {"matchLabels": {"app": "web"}}, "template": template,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}}}),
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
                "addressType": "IPv4", "ports": [{"port": 80, "name": "", "protocol": "TCP"}],
                "endpoints": [{"addresses": ["10.244.0.2"], "conditions": {"ready": true}, "hints": {"forZones": [{"name": "a"}]}}]}),
        ),
        (
            "/api/v1/namespaces/default/endpoints",
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"},
                "subsets": [{"addresses": [{"ip": "10.244.0.2"}], "ports": [{"port": 80, "name": "http"}]}]}),
        ),
    ]
}

fn odd(rng: &mut StdRng) -> Value {
    match rng.random_range(0..14) {
        0 => Value::Null,
        1 => true.into(),
        2 => (-1).into(),
        3 => 0.into(),
        4 => u64::MAX.into(),
        5 => i64::MIN.into(),
        6 => 1e300.into(),
        7 => "".into(),
        8 => "ü\u{0}/../%00".into(),
        9 => "x".repeat(300).into(),
        10 => json!([]),
        11 => json!({}),
        12 => json!([[[{"a": [null]}]]]),
        _ => json!({"": {"$patch": "delete"}}),
    }
}

/// Replaces, removes or adds something at a random place.
fn mutate(value: &mut Value, rng: &mut StdRng) {
    let deeper = rng.random_range(0..6) > 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = rng.random_range(0..map.len());
            let Some(key) = map.keys().nth(at).cloned() else { return };
            match rng.random_range(0..12) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert("unknownField".into(), odd(rng))),
                _ => mutate(&mut map[&key], rng),
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let at = rng.random_range(0..list.len());
            match rng.random_range(0..8) {
                0 => drop(list.remove(at)),
                1 => {
                    let again = list[at].clone();
                    list.push(again);
                }
                _ => mutate(&mut list[at], rng),
            }
        }
        leaf => *leaf = odd(rng),
    }
}

#[tokio::test]
async fn nearly_right_objects_never_get_a_5xx() {
    let lab = Lab::new().await;
    let samples = samples();
    for (path, object) in &samples {
        lab.post(path, object.clone()).await.expect(201);
    }
    let before = lab.server.revision();
    for seed in 0..ROUNDS as u64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (path, object) = &samples[rng.random_range(0..samples.len())];
        let mut mutant = object.clone();
        for _ in 0..rng.random_range(1..4) {
            mutate(&mut mutant, &mut rng);
        }
        let name = object["metadata"]["name"].as_str().expect("name");
        let one = format!("{path}/{name}?dryRun=All");
        let patch = "application/strategic-merge-patch+json";
        let answer = match rng.random_range(0..4) {
            0 => {
                if mutant["metadata"].is_object() {
                    mutant["metadata"]["name"] = "new".into();
                }
                lab.post(&format!("{path}?dryRun=All"), mutant.clone()).await
            }
            1 => lab.put(&one, mutant.clone()).await,
            2 => lab.call(Method::PATCH, &one, patch, mutant.clone()).await,
            _ => lab.merge(&one, mutant.clone()).await,
        };
        assert!(answer.code < 500, "seed {seed}: {} {}\n{mutant:#}", answer.code, answer.body);
    }
    assert_eq!(lab.server.revision(), before, "dry runs write nothing");
}
