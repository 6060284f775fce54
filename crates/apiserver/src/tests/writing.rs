//! create, get, list, update, patch, status, scale.

use super::*;

#[tokio::test]
async fn a_new_cluster_has_its_first_objects() {
    let lab = Lab::new().await;
    let spaces = lab.get("/api/v1/namespaces").await.expect(200);
    let names: Vec<_> = spaces["items"].as_array().expect("items").iter().map(|n| &n["metadata"]["name"]).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    let kubernetes = lab.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(kubernetes["spec"]["ports"][0]["port"], 443);
    let endpoints = lab.get("/api/v1/namespaces/default/endpoints/kubernetes").await;
    assert_eq!(endpoints.warnings().len(), 1, "deprecated");
    assert_eq!(endpoints.body["subsets"][0]["addresses"][0]["ip"], "10.244.0.1");
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    assert_eq!(lab.get(slices).await.expect(200)["endpoints"][0]["addresses"][0], "10.244.0.1");
}

#[tokio::test]
async fn the_service_kubernetes_comes_back() {
    let lab = Lab::new().await;
    let query = format!("watch=1&fieldSelector=metadata.name%3Dkubernetes&resourceVersion={}", lab.server.revision());
    for path in [SERVICES, "/api/v1/namespaces/default/endpoints"] {
        let mut events = lab.watch(&format!("{path}?{query}")).await;
        lab.delete(&format!("{path}/kubernetes"), Value::Null).await.expect(200);
        assert_eq!(events.brief().await, "DELETED kubernetes");
        assert_eq!(events.brief().await, "ADDED kubernetes");
    }
    assert_eq!(lab.get(&format!("{SERVICES}/kubernetes")).await.expect(200)["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn state_is_found_again_and_bootstrap_writes_nothing_twice() {
    let lab = Lab::new().await;
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let before = lab.server.revision();
    let Lab { server, router, dir } = lab;
    drop((server, router));
    let mut config = Config::new(dir.path());
    config.advertise = vec!["10.244.0.1".parse().expect("address")];
    let lab = Lab::with(config, dir).await;
    assert_eq!(lab.server.revision(), before);
    assert_eq!(lab.get(&format!("{MAPS}/a")).await.expect(200)["data"]["key"], "1");
}

#[tokio::test]
async fn create_fills_in_what_the_server_owns() {
    let lab = Lab::new().await;
    let mut map = config_map("a", "1");
    map["metadata"]["uid"] = "mine".into();
    map["metadata"]["creationTimestamp"] = "1999-01-01T00:00:00Z".into();
    let made = lab.post(MAPS, map).await.expect(201);
    let meta = &made["metadata"];
    assert_eq!((&meta["namespace"], &made["kind"]), (&json!("default"), &json!("ConfigMap")));
    assert_eq!(meta["uid"].as_str().map(str::len), Some(36));
    assert!(meta["creationTimestamp"].as_str().is_some_and(|t| t.len() == 20 && !t.starts_with("1999")));
    assert!(meta["resourceVersion"].as_str().is_some_and(|r| r.parse::<u64>().is_ok()));
    assert_eq!(lab.get(&format!("{MAPS}/a")).await.expect(200), made);
}

#[tokio::test]
async fn refusals_are_statuses_in_upstreams_words() {
    let lab = Lab::new().await;
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    for (answer, code, reason, message) in [
        (lab.get(&format!("{MAPS}/x")).await, 404, "NotFound", "configmaps \"x\" not found"),
        (
            lab.get("/apis/apps/v1/namespaces/default/deployments/x").await,
            404,
            "NotFound",
            "deployments.apps \"x\" not found",
        ),
        (lab.post(MAPS, config_map("a", "2")).await, 409, "AlreadyExists", "configmaps \"a\" already exists"),
        (
            lab.post("/api/v1/namespaces/nope/configmaps", config_map("a", "1")).await,
            404,
            "NotFound",
            "namespaces \"nope\" not found",
        ),
        (
            lab.put(MAPS, config_map("a", "1")).await,
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ),
    ] {
        assert_eq!((answer.code, answer.message()), (code, message));
        assert_eq!((&answer.body["kind"], &answer.body["reason"]), (&json!("Status"), &json!(reason)));
        assert_eq!(answer.body["code"], code);
    }
    let missing = lab.get("/apis/example.com/v1/widgets").await;
    assert_eq!((missing.code, missing.body.as_str()), (404, Some("404 page not found\n")));
    let mut other = config_map("b", "1");
    other["metadata"]["namespace"] = "kube-system".into();
    let refused = lab.post(MAPS, other).await;
    assert_eq!(
        (refused.code, refused.message()),
        (400, "the namespace of the provided object does not match the namespace sent on the request")
    );
}

#[tokio::test]
async fn generated_names_are_free() {
    let lab = Lab::new().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "run-"}});
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let made = lab.post(MAPS, map.clone()).await.expect(201);
        names.insert(made["metadata"]["name"].as_str().expect("name").to_owned());
    }
    assert_eq!(names.len(), 20);
    assert!(names.iter().all(|n| n.starts_with("run-") && n.len() == 9));
}

#[tokio::test]
async fn updates_carry_their_revision_or_lose() {
    let lab = Lab::new().await;
    let path = format!("{MAPS}/a");
    let first = lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let mut second = first.clone();
    second["data"]["key"] = "2".into();
    let second = lab.put(&path, second).await.expect(200);
    assert_ne!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    assert_eq!(first["metadata"]["uid"], second["metadata"]["uid"]);

    let mut stale = first;
    stale["data"]["key"] = "3".into();
    let stale = lab.put(&path, stale).await;
    assert_eq!(
        (stale.code, stale.message()),
        (
            409,
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to \
             the latest version and try again"
        )
    );
    // Without a revision it is unconditional; with the same content nothing is written.
    lab.put(&path, config_map("a", "4")).await.expect(200);
    let revision = lab.server.revision();
    let same = lab.put(&path, config_map("a", "4")).await.expect(200);
    assert_eq!(lab.server.revision(), revision);
    assert_eq!(same["metadata"]["resourceVersion"], revision.to_string());
    let renamed = lab.put(&path, config_map("b", "4")).await;
    assert_eq!(
        (renamed.code, renamed.message()),
        (400, "the name of the object (b) does not match the name on the URL (a)")
    );
    let mut other = config_map("a", "5");
    other["metadata"]["uid"] = "00000000-0000-4000-8000-000000000000".into();
    assert_eq!(lab.put(&path, other).await.code, 409);
    assert_eq!(lab.put(&format!("{MAPS}/zz"), config_map("zz", "1")).await.code, 404, "PUT does not create");
}

#[tokio::test]
async fn patches_merge_and_unchanged_ones_write_nothing() {
    let lab = Lab::new().await;
    let path = format!("{MAPS}/a");
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let patched =
        lab.merge(&path, json!({"data": {"more": "x"}, "metadata": {"labels": {"l": "1"}}})).await.expect(200);
    assert_eq!(patched["data"], json!({"key": "1", "more": "x"}));
    let revision = lab.server.revision();
    lab.merge(&path, json!({"data": {"more": "x"}})).await.expect(200);
    assert_eq!(lab.server.revision(), revision);
    let old = lab.merge(&path, json!({"metadata": {"resourceVersion": "1"}, "data": {"more": "y"}})).await;
    assert_eq!(old.code, 409);
    let renamed = lab.merge(&path, json!({"metadata": {"name": "b"}})).await;
    assert_eq!(renamed.code, 422);
    let wrong = lab.call(Method::PATCH, &path, "text/plain", json!({})).await;
    assert_eq!((wrong.code, &wrong.body["reason"]), (415, &json!("UnsupportedMediaType")));
    let apply = lab.call(Method::PATCH, &format!("{MAPS}/new"), "application/apply-patch+yaml", json!({})).await;
    assert_eq!(apply.code, 415, "not 404: {}", apply.message());
}

#[tokio::test]
async fn dry_runs_show_and_write_nothing() {
    let lab = Lab::new().await;
    let revision = lab.server.revision();
    let shown = lab.post(&format!("{SERVICES}?dryRun=All"), service("web")).await.expect(201);
    assert_eq!(shown["metadata"]["name"], "web");
    assert_eq!(lab.get(&format!("{SERVICES}/web")).await.code, 404);
    assert_eq!(lab.delete(&format!("{SERVICES}/kubernetes?dryRun=All"), Value::Null).await.code, 200);
    assert_eq!(lab.post(&format!("{SERVICES}?dryRun=Some"), service("web")).await.code, 422);
    assert_eq!(lab.server.revision(), revision);
}

#[tokio::test]
async fn lists_select_and_page_at_one_revision() {
    let lab = Lab::new().await;
    for i in 0..7 {
        let mut map = config_map(&format!("m{i}"), "x");
        map["metadata"]["labels"] = json!({"even": (i % 2 == 0).to_string()});
        lab.post(MAPS, map).await.expect(201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().expect("items").iter();
        items.map(|o| o["metadata"]["name"].as_str().expect("name").to_owned()).collect()
    };
    let even = lab.get(&format!("{MAPS}?labelSelector=even%3Dtrue")).await.expect(200);
    assert_eq!(names(&even), ["m0", "m2", "m4", "m6"]);
    let set = lab.get("/api/v1/configmaps?labelSelector=even+in+(true),even&limit=2").await.expect(200);
    assert_eq!(names(&set), ["m0", "m2"]);
    let one = lab.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm3")).await.expect(200);
    assert_eq!(names(&one), ["m3"]);
    assert_eq!(lab.get(&format!("{MAPS}?fieldSelector=data.x%3D1")).await.code, 400);
    assert_eq!(lab.get(&format!("{MAPS}?labelSelector=a+b")).await.code, 400);

    let first = lab.get(&format!("{MAPS}?limit=3")).await.expect(200);
    assert_eq!((names(&first).len(), &first["metadata"]["remainingItemCount"]), (3, &json!(4)));
    // What happens between two pages does not change the list.
    lab.delete(&format!("{MAPS}/m4"), Value::Null).await.expect(200);
    lab.post(MAPS, config_map("m35", "new")).await.expect(201);
    let resume = first["metadata"]["continue"].as_str().expect("continue").to_owned();
    let second = lab.get(&format!("{MAPS}?limit=3&continue={resume}")).await.expect(200);
    assert_eq!(names(&second), ["m3", "m4", "m5"]);
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let resume = second["metadata"]["continue"].as_str().expect("continue").to_owned();
    let third = lab.get(&format!("{MAPS}?limit=3&continue={resume}")).await.expect(200);
    assert_eq!((names(&third), &third["metadata"]["continue"]), (vec!["m6".to_owned()], &Value::Null));
    assert_eq!(lab.get(&format!("{MAPS}?limit=3&continue=xyz")).await.code, 400);
    let revision = first["metadata"]["resourceVersion"].as_str().expect("revision");
    let exact = lab.get(&format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!(names(&exact).len(), 7);
    let future = lab.get(&format!("{MAPS}?resourceVersion=99999")).await;
    assert_eq!((future.code, &future.body["reason"]), (504, &json!("Timeout")));
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let lab = Lab::new().await;
    let path = format!("{PODS}/web");
    let mut new = pod("web");
    new["status"] = json!({"phase": "Running"});
    let made = lab.post(PODS, new).await.expect(201);
    assert_ne!(made["status"]["phase"], "Running", "a client does not create status");
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.0.9"}, "metadata": {"labels": {"x": "y"}}});
    let running = lab.merge(&format!("{path}/status"), status).await.expect(200);
    assert_eq!(running["status"]["phase"], "Running");
    let main = lab.merge(&path, json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"app": "web"}}})).await;
    let main = main.expect(200);
    assert_eq!((&main["status"]["phase"], &main["metadata"]["labels"]["app"]), (&json!("Running"), &json!("web")));
    assert_eq!(lab.get(&format!("{path}/status")).await.expect(200), main);
    assert_eq!(lab.get(&format!("{MAPS}/web/status")).await.code, 404, "configmaps have no status");
}

#[tokio::test]
async fn scale_reads_and_writes_replicas() {
    let lab = Lab::new().await;
    let base = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
    lab.post(base, deployment).await.expect(201);
    let path = format!("{base}/web/scale");
    let mut scale = lab.get(&path).await.expect(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert_eq!(scale["status"]["selector"], "app=web");
    assert_eq!(lab.merge(&path, json!({"spec": {"replicas": 5}})).await.expect(200)["spec"]["replicas"], 5);
    assert_eq!(lab.get(&format!("{base}/web")).await.expect(200)["spec"]["replicas"], 5);
    scale["spec"]["replicas"] = 3.into();
    assert_eq!(lab.put(&path, scale.clone()).await.code, 409, "made from an older revision");
    scale["metadata"]["resourceVersion"] = Value::Null;
    assert_eq!(lab.put(&path, scale.clone()).await.expect(200)["spec"]["replicas"], 3);
    scale["spec"]["replicas"] = (-1).into();
    assert_eq!(lab.put(&path, scale).await.code, 422);
    assert_eq!(lab.merge(&path, json!({"spec": {"replicas": 0}})).await.expect(200)["spec"], json!({}));
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let lab = Lab::new().await;
    lab.post(PODS, pod("web")).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
    lab.post(&format!("{PODS}/web/binding"), binding.clone()).await.expect(201);
    let bound = lab.get(&format!("{PODS}/web")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let scheduled =
        bound["status"]["conditions"].as_array().expect("conditions").iter().find(|c| c["type"] == "PodScheduled");
    assert_eq!(scheduled.expect("condition")["status"], "True");
    assert_eq!(lab.post(&format!("{PODS}/web/binding"), binding.clone()).await.code, 409);
    assert_eq!(lab.post("/api/v1/namespaces/default/bindings", binding).await.code, 409);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_patches_all_arrive() {
    let lab = std::sync::Arc::new(Lab::new().await);
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let lab = lab.clone();
            tokio::spawn(async move {
                lab.merge(&format!("{MAPS}/a"), json!({"data": {(format!("k{i}")): "v"}})).await.expect(200);
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    let data = lab.get(&format!("{MAPS}/a")).await.expect(200)["data"].as_object().expect("data").len();
    assert_eq!(data, 41);
}

#[tokio::test]
async fn tables_metadata_and_yaml_are_served_to_those_who_ask() {
    let lab = Lab::new().await;
    let ask = |path: &str, accept: &str| {
        let request = Request::get(path).header("accept", accept).body(Body::empty()).expect("request");
        lab.send(request)
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let list = ask(SERVICES, table).await.expect(200);
    assert_eq!((&list["kind"], list["rows"].as_array().map(Vec::len)), (&json!("Table"), Some(1)));
    let one = ask(&format!("{SERVICES}/kubernetes"), table).await.expect(200);
    assert_eq!(one["rows"][0]["cells"][0], "kubernetes");
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = ask(SERVICES, partial).await.expect(200);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0]["spec"].is_null() && list["items"][0]["metadata"]["uid"].is_string());
    let yaml = ask(&format!("{SERVICES}/kubernetes"), "application/yaml").await;
    assert!(yaml.body.as_str().is_some_and(|y| y.contains("clusterIP: 10.96.0.1")), "{}", yaml.body);
    assert_eq!(ask(SERVICES, "application/vnd.kubernetes.protobuf").await.code, 406);
}
