//! Watches against a server that pages, ends streams, and forgets revisions.

use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::Query, extract::State, response::IntoResponse, routing::get};
use model::{Kind, ObjectKey};
use portolan_cluster as cluster;
use serde_json::{Value, json};

/// Requests so far, as the server saw them.
type Seen = Arc<Mutex<Vec<String>>>;

fn pod(name: &str, revision: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": revision.to_string()}})
}

fn lines(events: &[Value]) -> String {
    events.iter().map(|e| format!("{e}\n")).collect()
}

/// First a list in two pages, a watch that sends one pod and ends, a watch that says 410; then another list, and a watch
/// that stays open.
async fn pods(
    State(seen): State<Seen>,
    Query(q): Query<std::collections::BTreeMap<String, String>>,
) -> axum::response::Response {
    let text = |k: &str| q.get(k).cloned().unwrap_or_default();
    let step = {
        let mut seen = seen.lock().unwrap();
        seen.push(format!("watch={} rv={} continue={}", text("watch"), text("resourceVersion"), text("continue")));
        seen.len()
    };
    match step {
        1 => Json(json!({"metadata": {"resourceVersion": "5", "continue": "t/1"}, "items": [pod("a", 3)]})).into_response(),
        2 => Json(json!({"metadata": {"resourceVersion": "5"}, "items": [pod("b", 4)]})).into_response(),
        3 => lines(&[json!({"type": "ADDED", "object": pod("c", 6)}), json!({"type": "DELETED", "object": pod("a", 7)})]).into_response(),
        4 => lines(&[json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}})]).into_response(),
        5 => Json(json!({"metadata": {"resourceVersion": "20"}, "items": [pod("c", 6), pod("d", 19)]})).into_response(),
        _ => axum::body::Body::from_stream(futures::stream::pending::<Result<String, std::io::Error>>()).into_response(),
    }
}

async fn nothing(Query(q): Query<std::collections::BTreeMap<String, String>>) -> axum::response::Response {
    if q.contains_key("watch") {
        return axum::body::Body::from_stream(futures::stream::pending::<Result<String, std::io::Error>>())
            .into_response();
    }
    Json(json!({"metadata": {"resourceVersion": "5"}, "items": null})).into_response()
}

#[tokio::test]
async fn a_watch_goes_on_after_every_interruption() {
    let seen = Seen::default();
    let router = Router::new()
        .route("/api/v1/pods", get(pods))
        .route("/api/v1/{kind}", get(nothing))
        .route("/apis/discovery.k8s.io/v1/endpointslices", get(nothing))
        .with_state(seen.clone());
    let (mut view, _task) = cluster::view::spawn(cluster::connect::in_process(router));
    let last = tokio::time::timeout(
        std::time::Duration::from_secs(30),
        view.wait_for(|s| s.is_complete() && s.revision_of(Kind::Pod) == 20),
    );
    let snapshot = last.await.expect("in time").expect("open").clone();
    let names: Vec<_> = snapshot.pods.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["default/c", "default/d"]);
    assert!(!snapshot.pods.contains_key(&ObjectKey::new("default", "a")));
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen[..5],
        [
            "watch= rv= continue=",
            "watch= rv= continue=t/1",
            "watch=1 rv=5 continue=",
            "watch=1 rv=7 continue=",
            "watch= rv= continue=",
        ]
    );
}

#[tokio::test]
async fn an_unusable_kubeconfig_is_named() {
    let e = cluster::connect::kubeconfig(std::path::Path::new("/does/not/exist")).await.err().expect("refused");
    let text = e.to_string();
    assert!(text.contains("/does/not/exist") && text.contains("--kubeconfig"), "{text}");
}

#[tokio::test]
async fn a_refusal_carries_reason_and_message() {
    let router = Router::new().route(
        "/api/v1/namespaces/default/pods/x",
        get(|| async {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
                "message": "pods \"x\" not found"});
            (http::StatusCode::NOT_FOUND, Json(status))
        }),
    );
    let writer = cluster::write::Writer::new(cluster::connect::in_process(router), "test");
    let e = writer.get(&cluster::resource::POD, &ObjectKey::new("default", "x")).await.err().expect("refused");
    assert!(e.is_not_found() && !e.is_conflict());
    assert_eq!(e.to_string(), "the API server refused to read Pod default/x: pods \"x\" not found");
}
