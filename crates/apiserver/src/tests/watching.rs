//! watch: resume, selectors, bookmarks, ends.

use super::*;

#[tokio::test]
async fn a_watch_resumes_from_a_list() {
    let lab = Lab::new().await;
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let list = lab.get(MAPS).await.expect(200);
    let revision = list["metadata"]["resourceVersion"].as_str().expect("revision").to_owned();
    lab.post(MAPS, config_map("b", "1")).await.expect(201);
    let mut events = lab.watch(&format!("{MAPS}?watch=1&resourceVersion={revision}")).await;
    assert_eq!(events.brief().await, "ADDED b");
    lab.merge(&format!("{MAPS}/a"), json!({"data": {"key": "2"}})).await.expect(200);
    let event = events.next().await.expect("event");
    assert_eq!((&event["type"], &event["object"]["data"]["key"]), (&json!("MODIFIED"), &json!("2")));
    lab.delete(&format!("{MAPS}/b"), Value::Null).await.expect(200);
    let gone = events.next().await.expect("event");
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["metadata"]["resourceVersion"], lab.server.revision().to_string());
    // Other kinds and namespaces are not its business.
    lab.post(SERVICES, service("s")).await.expect(201);
    lab.post("/api/v1/namespaces/kube-system/configmaps", config_map("x", "1")).await.expect(201);
    lab.post(MAPS, config_map("c", "1")).await.expect(201);
    assert_eq!(events.brief().await, "ADDED c");
}

#[tokio::test]
async fn a_watch_without_revision_starts_with_what_is_there() {
    let lab = Lab::new().await;
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    for query in ["watch=true", "watch=1&resourceVersion=0"] {
        let mut events = lab.watch(&format!("{MAPS}?{query}")).await;
        assert_eq!(events.brief().await, "ADDED a", "{query}");
    }
    let mut events = lab.watch(&format!("{MAPS}/a?watch=true")).await;
    assert_eq!(events.brief().await, "ADDED a");
}

#[tokio::test]
async fn a_watch_list_ends_its_first_part_with_a_bookmark() {
    let lab = Lab::new().await;
    for name in ["a", "b"] {
        lab.post(MAPS, config_map(name, "1")).await.expect(201);
    }
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = lab.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.brief().await, "ADDED a");
    assert_eq!(events.brief().await, "ADDED b");
    let mark = events.next().await.expect("bookmark");
    assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    let meta = &mark["object"]["metadata"];
    assert_eq!(meta["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(meta["resourceVersion"], lab.server.revision().to_string());
    lab.post(MAPS, config_map("c", "1")).await.expect(201);
    assert_eq!(events.brief().await, "ADDED c");
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let lab = Lab::new().await;
    let revision = lab.server.revision();
    let mut events = lab.watch(&format!("{MAPS}?watch=1&labelSelector=on%3Dyes&resourceVersion={revision}")).await;
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    let label = |value: Value| json!({"metadata": {"labels": {"on": value}}});
    lab.merge(&format!("{MAPS}/a"), label("yes".into())).await.expect(200);
    assert_eq!(events.brief().await, "ADDED a");
    lab.merge(&format!("{MAPS}/a"), json!({"data": {"key": "2"}})).await.expect(200);
    assert_eq!(events.brief().await, "MODIFIED a");
    lab.merge(&format!("{MAPS}/a"), label(Value::Null)).await.expect(200);
    let left = events.next().await.expect("event");
    assert_eq!((&left["type"], &left["object"]["metadata"]["labels"]["on"]), (&json!("DELETED"), &json!("yes")));
    assert_eq!(left["object"]["metadata"]["resourceVersion"], lab.server.revision().to_string());
    lab.delete(&format!("{MAPS}/a"), Value::Null).await.expect(200);
    lab.merge(&format!("{MAPS}/none"), label("yes".into())).await.expect(404);
    let mut map = config_map("b", "1");
    map["metadata"]["labels"] = json!({"on": "yes"});
    lab.post(MAPS, map).await.expect(201);
    assert_eq!(events.brief().await, "ADDED b");
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_last_bookmark() {
    let lab = Lab::new().await;
    let revision = lab.server.revision();
    let mut events = lab
        .watch(&format!("{MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={revision}"))
        .await;
    let mark = events.next().await.expect("bookmark");
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["resourceVersion"], revision.to_string());
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_forgotten_revision_is_gone() {
    let lab = Lab::new().await;
    let Lab { server, router, dir } = lab;
    drop((server, router));
    let lab = Lab::with(Config::new(dir.path()), dir).await;
    let mut events = lab.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let error = events.next().await.expect("error");
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(error["object"]["reason"], "Expired");
    assert_eq!(events.next().await, None);
    assert_eq!(lab.get(&format!("{MAPS}?watch=1&resourceVersion=99999")).await.code, 504);
}

#[tokio::test]
async fn watches_end_when_the_server_stops() {
    let lab = Lab::new().await;
    let revision = lab.server.revision();
    let mut events = lab.watch(&format!("{MAPS}?watch=1&resourceVersion={revision}")).await;
    lab.server.close();
    assert_eq!(events.next().await, None);
    assert_eq!(lab.post(MAPS, config_map("a", "1")).await.code, 503);
    assert_eq!(lab.get(MAPS).await.code, 200, "reads go on");
}

#[tokio::test]
async fn tables_are_watched_with_columns_once() {
    let lab = Lab::new().await;
    lab.post(SERVICES, service("web")).await.expect(201);
    let request = Request::get(format!("{SERVICES}?watch=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Body::empty())
        .expect("request");
    let response = lab.router.clone().oneshot(request).await.expect("infallible");
    let mut events = Events { body: response.into_body().into_data_stream(), buffer: Vec::new() };
    let first = events.next().await.expect("first");
    assert_eq!((&first["type"], &first["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert_eq!(first["object"]["rows"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_sleeping_watcher_is_told_to_start_again_and_writers_never_wait() {
    let lab = Lab::new().await;
    let revision = lab.server.revision();
    let mut sleeper = lab.watch(&format!("{MAPS}?watch=1&resourceVersion={revision}")).await;
    lab.post(MAPS, config_map("a", "1")).await.expect(201);
    assert_eq!(sleeper.brief().await, "ADDED a");
    // More than the history of a resource holds.
    for i in 0..40 {
        let value = i.to_string().repeat(256 << 10);
        lab.merge(&format!("{MAPS}/a"), json!({"data": {"key": value}})).await.expect(200);
    }
    let gone = sleeper.next().await.expect("event");
    assert_eq!((&gone["type"], &gone["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(sleeper.next().await, None);
}
