//! Services through the whole server: defaults, and addresses and ports that are handed out once.

use std::{collections::BTreeSet, sync::Arc};

use super::*;

fn backend() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "backend-service"}, "spec": {
        "type": "ClusterIP", "selector": {"app": "backend"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}})
}

fn with(name: &str, fields: Value) -> Value {
    let mut object = service(name);
    for (key, value) in fields.as_object().expect("fields") {
        object["spec"][key] = value.clone();
    }
    object
}

#[tokio::test]
async fn seed_017_every_field_and_default_is_shown() {
    let lab = Lab::new().await;
    let made = lab.post(SERVICES, backend()).await.expect(201);
    let spec = &made["spec"];
    let ip = spec["clusterIP"].as_str().expect("clusterIP");
    let range: ipnet::IpNet = "10.96.0.0/12".parse().expect("range");
    assert!(range.contains(&ip.parse::<std::net::IpAddr>().expect("address")));
    assert_eq!(spec["clusterIPs"], json!([ip]));
    for (field, value) in [
        ("type", json!("ClusterIP")),
        ("internalTrafficPolicy", json!("Cluster")),
        ("ipFamilies", json!(["IPv4"])),
        ("ipFamilyPolicy", json!("SingleStack")),
        ("sessionAffinity", json!("None")),
        ("ports", json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}])),
    ] {
        assert_eq!(spec[field], value, "{field}");
    }
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
}

#[tokio::test]
async fn seed_018_cluster_ip_is_the_default_type() {
    let lab = Lab::new().await;
    let mut object = backend();
    object["spec"].as_object_mut().expect("spec").remove("type");
    assert_eq!(lab.post(SERVICES, object).await.expect(201)["spec"]["type"], "ClusterIP");
}

#[tokio::test]
async fn seed_020_protocol_defaults_to_tcp_and_unknown_ones_are_refused() {
    let lab = Lab::new().await;
    assert_eq!(lab.post(SERVICES, service("tcp")).await.expect(201)["spec"]["ports"][0]["protocol"], "TCP");
    let foo = with("foo", json!({"ports": [{"port": 80, "protocol": "FOO"}]}));
    let refused = lab.post(SERVICES, foo).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            422,
            "Service \"foo\" is invalid: spec.ports[0].protocol: Unsupported value: \"FOO\": supported values: \"SCTP\", \
             \"TCP\", \"UDP\""
        )
    );
    assert_eq!(refused.body["details"]["causes"][0]["field"], "spec.ports[0].protocol");
}

#[tokio::test]
async fn seed_029_a_requested_address_is_honoured_once_and_free_again_after() {
    let lab = Lab::new().await;
    let wanted = |name| with(name, json!({"clusterIP": "10.102.97.154"}));
    assert_eq!(lab.post(SERVICES, wanted("nginx")).await.expect(201)["spec"]["clusterIP"], "10.102.97.154");
    let taken = lab.post(SERVICES, wanted("other")).await;
    assert_eq!(taken.code, 422);
    assert!(taken.message().contains("provided IP is already allocated"), "{}", taken.message());
    let outside = lab.post(SERVICES, with("out", json!({"clusterIP": "1.2.3.4"}))).await;
    assert_eq!(outside.code, 422);
    assert!(outside.message().contains("not in the valid range"), "{}", outside.message());
    lab.delete(&format!("{SERVICES}/nginx"), Value::Null).await.expect(200);
    lab.post(SERVICES, wanted("other")).await.expect(201);
    // It is still taken after a restart.
    let Lab { server, router, dir } = lab;
    drop((server, router));
    let lab = Lab::with(Config::new(dir.path()), dir).await;
    assert_eq!(lab.post(SERVICES, wanted("nginx")).await.code, 422);
}

#[tokio::test]
async fn what_a_refused_or_dry_create_took_is_free_again() {
    let lab = Lab::new().await;
    let wanted = |name: &str| {
        with(name, json!({"type": "NodePort", "clusterIP": "10.96.9.9", "ports": [{"port": 80, "nodePort": 30999}]}))
    };
    lab.post(&format!("{SERVICES}?dryRun=All"), wanted("a")).await.expect(201);
    lab.post(SERVICES, wanted("Not A Name")).await.expect(422);
    lab.post("/api/v1/namespaces/none/services", wanted("a")).await.expect(404);
    lab.post(SERVICES, wanted("a")).await.expect(201);
    let again = lab.post(SERVICES, wanted("a")).await;
    assert!(matches!(again.code, 409 | 422), "{}", again.body);
    let taken =
        lab.post(SERVICES, with("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30999}]}))).await;
    assert_eq!(taken.code, 422);
    assert!(
        taken.message().contains("spec.ports[0].nodePort: Invalid value: 30999: provided port is already allocated"),
        "{}",
        taken.message()
    );
    // A change of type gives the port back.
    lab.merge(&format!("{SERVICES}/a"), json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80}]}}))
        .await
        .expect(200);
    lab.post(SERVICES, with("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30999}]})))
        .await
        .expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_creates_never_share_an_address() {
    let lab = Arc::new(Lab::new().await);
    let tasks: Vec<_> = (0..60)
        .map(|i| {
            let lab = lab.clone();
            tokio::spawn(async move {
                let object = with(&format!("s{i}"), json!({"type": "NodePort"}));
                lab.post(SERVICES, object).await.expect(201)["spec"].clone()
            })
        })
        .collect();
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for task in tasks {
        let spec = task.await.expect("task");
        addresses.insert(spec["clusterIP"].as_str().expect("address").to_owned());
        ports.insert(spec["ports"][0]["nodePort"].as_u64().expect("port"));
    }
    assert_eq!((addresses.len(), ports.len()), (60, 60));
    assert!(ports.iter().all(|p| (30_000..=32_767).contains(p)));
}

#[tokio::test]
async fn seed_185_the_list_has_kubernetes_at_the_first_address() {
    let lab = Lab::new().await;
    let request = Request::get(SERVICES).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = lab.send(request.body(Body::empty()).expect("request")).await.expect(200);
    let cells = table["rows"][0]["cells"].as_array().expect("cells");
    assert_eq!(
        cells[..5],
        [json!("kubernetes"), json!("ClusterIP"), json!("10.96.0.1"), json!("<none>"), json!("443/TCP")]
    );
}

#[tokio::test]
async fn bodies_in_protobuf_are_read_as_the_same_object() {
    // `kubectl create namespace` sends this: magic, type, and an object whose metadata has a name.
    let meta = [&[0x0a, 2][..], b"v1", &[0x12, 9], b"Namespace"].concat();
    let object = [&[0x0a, 6, 0x0a, 4][..], b"prod"].concat();
    let body = [b"k8s\0", &[0x0a, 15][..], &meta, &[0x12, 8], &object, &[0x1a, 0, 0x22, 0]].concat();
    let lab = Lab::new().await;
    let send = |body: Vec<u8>| {
        let request = Request::post("/api/v1/namespaces").header("content-type", "application/vnd.kubernetes.protobuf");
        lab.send(request.body(Body::from(body)).expect("request"))
    };
    let made = send(body).await.expect(201);
    assert_eq!((&made["metadata"]["name"], &made["status"]["phase"]), (&json!("prod"), &json!("Active")));
    assert_eq!(send(b"{}".to_vec()).await.code, 400);
}

#[tokio::test]
async fn seed_126_an_outside_client_is_answered_when_readers_have_the_service() {
    let dir = tempfile::tempdir().expect("dir");
    let mut config = Config::new(dir.path());
    let (asked, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let (taken_in, gate) = tokio::sync::watch::channel(0);
    config.settled = Some(std::sync::Arc::new(move |revision| {
        let _ = asked.send(revision);
        let mut gate = gate.clone();
        Box::pin(async move {
            let _ = gate.wait_for(|done| *done >= revision).await;
        })
    }));
    let lab = Lab::with(config, dir).await;
    let token = std::fs::read_to_string(lab.dir.path().join("token")).expect("token");
    let service = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}});
    let request = Request::post(SERVICES)
        .header("authorization", format!("Bearer {}", token.trim()))
        .header("content-type", "application/json")
        .body(Body::from(service.to_string()))
        .expect("request");
    let outside = tokio::spawn(lab.server.router().oneshot(request));
    let revision = seen.recv().await.expect("it asks before it answers");
    let stored = lab.get(&format!("{SERVICES}/a")).await.expect(200);
    assert_eq!(stored["metadata"]["resourceVersion"], revision.to_string());
    assert!(!outside.is_finished());
    taken_in.send_replace(revision);
    assert_eq!(outside.await.expect("a task").expect("an answer").status(), StatusCode::CREATED);
}
