//! delete, deletecollection, finalizers, grace, namespaces.

use super::*;

#[tokio::test]
async fn what_nothing_holds_goes_at_once() {
    let lab = Lab::new().await;
    let made = lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let status = lab.delete(&format!("{MAPS}/a"), Value::Null).await.expect(200);
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(status["details"], json!({"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}));
    assert_eq!(lab.get(&format!("{MAPS}/a")).await.code, 404);
    assert_eq!(lab.delete(&format!("{MAPS}/a"), Value::Null).await.code, 404);
}

#[tokio::test]
async fn preconditions_are_checked() {
    let lab = Lab::new().await;
    let made = lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let wrong = json!({"preconditions": {"uid": "nope"}});
    let refused = lab.delete(&format!("{MAPS}/a"), wrong).await;
    assert_eq!(refused.code, 409);
    assert!(refused.message().contains("Precondition failed: UID in precondition: nope"), "{}", refused.message());
    let right = json!({"preconditions":
        {"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]}});
    lab.delete(&format!("{MAPS}/a"), right).await.expect(200);
}

#[tokio::test]
async fn finalizers_hold_until_the_last_is_gone() {
    let lab = Lab::new().await;
    let path = format!("{MAPS}/a");
    let mut map = config_map("a", "1");
    map["metadata"]["finalizers"] = json!(["example.com/one", "example.com/two"]);
    lab.post(MAPS, map).await.expect(201);
    let going = lab.delete(&path, Value::Null).await.expect(200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    lab.delete(&path, Value::Null).await.expect(200);
    let more = json!({"metadata": {"finalizers": ["example.com/one", "example.com/two", "example.com/new"]}});
    let refused = lab.merge(&path, more).await;
    assert_eq!(refused.code, 422);
    assert!(refused.message().contains("no new finalizers can be added"), "{}", refused.message());
    lab.merge(&path, json!({"metadata": {"finalizers": ["example.com/two"]}})).await.expect(200);
    assert_eq!(lab.get(&path).await.code, 200);
    // A client cannot take the deletion back.
    let undo = lab.merge(&path, json!({"metadata": {"deletionTimestamp": null}})).await.expect(200);
    assert!(undo["metadata"]["deletionTimestamp"].is_string());
    lab.merge(&path, json!({"metadata": {"finalizers": null}})).await.expect(200);
    assert_eq!(lab.get(&path).await.code, 404);
}

#[tokio::test]
async fn propagation_is_told_to_the_garbage_collector() {
    let lab = Lab::new().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        lab.post(MAPS, config_map(policy.to_lowercase().as_str(), "1")).await.expect(201);
        let path = format!("{MAPS}/{}", policy.to_lowercase());
        let going = lab.delete(&path, json!({"propagationPolicy": policy})).await.expect(200);
        assert_eq!(going["metadata"]["finalizers"], json!([finalizer]));
        lab.delete(&path, json!({"propagationPolicy": "Background"})).await.expect(200);
        assert_eq!(lab.get(&path).await.code, 404);
    }
    assert_eq!(lab.delete(&format!("{MAPS}/x"), json!({"propagationPolicy": "Soon"})).await.code, 422);
}

#[tokio::test]
async fn a_running_pod_is_given_time_and_its_node_the_last_word() {
    let lab = Lab::new().await;
    let path = format!("{PODS}/web");
    lab.post(PODS, pod("web")).await.expect(201);
    lab.delete(&path, Value::Null).await.expect(200);
    assert_eq!(lab.get(&path).await.code, 404, "bound to no node, it goes at once");

    let mut bound = pod("web");
    bound["spec"]["nodeName"] = "n1".into();
    lab.post(PODS, bound).await.expect(201);
    let going = lab.delete(&path, json!({"propagationPolicy": "Background"})).await.expect(200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let hurried = lab.delete(&path, json!({"gracePeriodSeconds": 3})).await.expect(200);
    assert_eq!(hurried["metadata"]["deletionGracePeriodSeconds"], 3);
    // Its node reports the last status while it stops, and then removes it.
    lab.merge(&format!("{path}/status"), json!({"status": {"phase": "Running"}})).await.expect(200);
    assert_eq!(lab.get(&path).await.code, 200);
    lab.delete(&path, json!({"gracePeriodSeconds": 0, "preconditions": {"uid": going["metadata"]["uid"]}}))
        .await
        .expect(200);
    assert_eq!(lab.get(&path).await.code, 404);
}

#[tokio::test]
async fn an_eviction_deletes() {
    let lab = Lab::new().await;
    lab.post(PODS, pod("web")).await.expect(201);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web"}});
    assert_eq!(lab.post(&format!("{PODS}/web/eviction"), eviction).await.expect(201)["status"], "Success");
    assert_eq!(lab.get(&format!("{PODS}/web")).await.code, 404);
}

#[tokio::test]
async fn a_collection_goes_by_selector() {
    let lab = Lab::new().await;
    for name in ["a", "b", "c"] {
        let mut map = config_map(name, "1");
        map["metadata"]["labels"] = json!({"keep": (name == "b").to_string()});
        lab.post(MAPS, map).await.expect(201);
    }
    let gone = lab.delete(&format!("{MAPS}?labelSelector=keep!%3Dtrue"), Value::Null).await.expect(200);
    assert_eq!(gone["items"].as_array().map(Vec::len), Some(2));
    let left = lab.get(MAPS).await.expect(200);
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_namespace_waits_for_its_contents_and_takes_no_more() {
    let lab = Lab::new().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod"},
        "spec": {"finalizers": ["kubernetes"]}});
    lab.post("/api/v1/namespaces", space).await.expect(201);
    lab.post("/api/v1/namespaces/prod/configmaps", config_map("a", "1")).await.expect(201);
    let going = lab.delete("/api/v1/namespaces/prod", Value::Null).await.expect(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = lab.post("/api/v1/namespaces/prod/configmaps", config_map("b", "1")).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            403,
            "configmaps \"b\" is forbidden: unable to create new content in namespace prod because it is being terminated"
        )
    );
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut last = going;
    last["spec"]["finalizers"] = json!([]);
    lab.put("/api/v1/namespaces/prod/finalize", last).await.expect(200);
    assert_eq!(lab.get("/api/v1/namespaces/prod").await.code, 404);
    let kept = lab.delete("/api/v1/namespaces/default", Value::Null).await;
    assert_eq!(
        (kept.code, kept.message()),
        (403, "namespaces \"default\" is forbidden: this namespace may not be deleted")
    );
}
