//! A Kubernetes API in memory: enough of list, watch, create, merge patch and delete for an agent. It keeps state, and
//! records no calls.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::sync::watch;

#[derive(Clone, Default)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<Store>,
    revision: watch::Sender<u64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { state: Mutex::default(), revision: watch::Sender::new(1) }
    }
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    /// Revision, path, event type, object.
    log: Vec<(u64, String, &'static str, Value)>,
}

fn kind_of(plural: &str) -> &'static str {
    match plural {
        "pods" => "Pod",
        "nodes" => "Node",
        "events" => "Event",
        "leases" => "Lease",
        "configmaps" => "ConfigMap",
        "secrets" => "Secret",
        _ => "Unknown",
    }
}

impl Api {
    pub fn client(&self) -> kube::Client {
        cluster::connect::in_process(Router::new().fallback(handle).with_state(self.clone()))
    }

    pub fn put(&self, path: &str, mut object: Value, event: &'static str) -> Value {
        let mut store = self.inner.state.lock().expect("lock");
        let revision = *self.inner.revision.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        if event == "DELETED" {
            store.objects.remove(path);
        } else {
            store.objects.insert(path.to_owned(), object.clone());
        }
        store.log.push((revision, path.to_owned(), event, object.clone()));
        drop(store);
        self.inner.revision.send_replace(revision);
        object
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.inner.state.lock().expect("lock").objects.get(path).cloned()
    }

    pub fn revision(&self) -> u64 {
        *self.inner.revision.borrow()
    }

    /// Every version of the object at `path` after `revision`.
    pub fn since(&self, revision: u64, path: &str) -> Vec<Value> {
        let store = self.inner.state.lock().expect("lock");
        store.log.iter().filter(|(r, p, ..)| *r > revision && p == path).map(|(.., v)| v.clone()).collect()
    }

    pub fn all(&self, needle: &str) -> Vec<Value> {
        let store = self.inner.state.lock().expect("lock");
        store.objects.iter().filter(|(k, _)| k.contains(needle)).map(|(_, v)| v.clone()).collect()
    }

    /// Waits until `f` holds of the object at `path`; `Value::Null` stands for none.
    pub async fn wait(&self, path: &str, what: &str, f: impl Fn(&Value) -> bool) -> Value {
        let mut revision = self.inner.revision.subscribe();
        let until = async {
            loop {
                revision.borrow_and_update();
                let now = self.get(path).unwrap_or(Value::Null);
                if f(&now) {
                    return now;
                }
                revision.changed().await.expect("api");
            }
        };
        match tokio::time::timeout(std::time::Duration::from_secs(30), until).await {
            Ok(found) => found,
            Err(_) => panic!("{path} never was {what}: {:#}", self.get(path).unwrap_or(Value::Null)),
        }
    }

    pub async fn wait_event(&self, reason: &str, text: &str) {
        let mut revision = self.inner.revision.subscribe();
        let until = async {
            loop {
                revision.borrow_and_update();
                let found = self
                    .all("/events/")
                    .into_iter()
                    .any(|e| e["reason"] == reason && e["message"].as_str().is_some_and(|m| m.contains(text)));
                if found {
                    return;
                }
                revision.changed().await.expect("api");
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(30), until).await.is_err() {
            let all: Vec<_> =
                self.all("/events/").iter().map(|e| format!("{}: {}", e["reason"], e["message"])).collect();
            panic!("no event {reason} with {text:?} among {all:#?}");
        }
    }
}

pub const PODS: &str = "/api/v1/namespaces/default/pods/";

async fn handle(State(api): State<Api>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 24).await.unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let own = path.strip_suffix("/status").unwrap_or(&path).to_owned();
    match parts.method {
        Method::GET if query.contains("watch=true") || query.contains("watch=1") => watch_stream(api, &path, &query),
        Method::GET => match api.get(&path) {
            Some(object) => Json(object).into_response(),
            None if is_list(&path) => list(&api, &path),
            None => missing(&path),
        },
        Method::POST => create(&api, &path, &body),
        Method::PATCH => match api.get(&own) {
            Some(mut object) => {
                let patch: Value = serde_json::from_slice(&body).expect("json");
                merge(&mut object, &patch);
                Json(api.put(&own, object, "MODIFIED")).into_response()
            }
            None => missing(&own),
        },
        Method::DELETE => match api.get(&own) {
            Some(mut object) => {
                let options: Value = serde_json::from_slice(&body).unwrap_or_default();
                let grace = options["gracePeriodSeconds"].as_i64().unwrap_or(30);
                if grace == 0 {
                    return Json(api.put(&own, object, "DELETED")).into_response();
                }
                object["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
                object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                Json(api.put(&own, object, "MODIFIED")).into_response()
            }
            None => missing(&own),
        },
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

fn is_list(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|l| kind_of(l) != "Unknown")
}

fn status(code: StatusCode, reason: &str, message: String) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
        "message": message, "code": code.as_u16()});
    (code, Json(body)).into_response()
}

fn missing(path: &str) -> Response {
    status(StatusCode::NOT_FOUND, "NotFound", format!("{path} not found"))
}

fn create(api: &Api, path: &str, body: &Bytes) -> Response {
    let mut object: Value = serde_json::from_slice(body).expect("json");
    let name = object["metadata"]["name"].as_str().unwrap_or("x").to_owned();
    let full = format!("{path}/{name}");
    if api.get(&full).is_some() {
        return status(StatusCode::CONFLICT, "AlreadyExists", format!("{full} exists"));
    }
    object["metadata"]["uid"] = json!(format!("uid-{name}-{}", *api.inner.revision.borrow()));
    object["metadata"]["creationTimestamp"] = json!("2026-11-21T00:00:00Z");
    (StatusCode::CREATED, Json(api.put(&full, object, "ADDED"))).into_response()
}

/// `/api/v1/pods` covers every namespace.
fn covers(list: &str, path: &str) -> bool {
    let plural = list.rsplit('/').next().unwrap_or_default();
    path.starts_with(&format!("{list}/")) || (!list.contains("/namespaces/") && path.contains(&format!("/{plural}/")))
}

fn list(api: &Api, path: &str) -> Response {
    let store = api.inner.state.lock().expect("lock");
    let items: Vec<_> = store.objects.iter().filter(|(k, _)| covers(path, k)).map(|(_, v)| v.clone()).collect();
    let kind = kind_of(path.rsplit('/').next().unwrap_or_default());
    let revision = api.inner.revision.borrow().to_string();
    Json(json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": {"resourceVersion": revision}, "items": items}))
        .into_response()
}

fn watch_stream(api: Api, path: &str, query: &str) -> Response {
    let from = query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok());
    let path = path.to_owned();
    let kind = kind_of(path.rsplit('/').next().unwrap_or_default());
    let start = (from.unwrap_or(0u64), api.inner.revision.subscribe(), api);
    let stream = futures::stream::unfold(start, move |(mut seen, mut revision, api)| {
        let path = path.clone();
        async move {
            loop {
                let now = *revision.borrow_and_update();
                let lines: Vec<u8> = {
                    let store = api.inner.state.lock().expect("lock");
                    let new = store.log.iter().filter(|(r, p, ..)| *r > seen && covers(&path, p));
                    new.flat_map(|(_, _, event, object)| {
                        let mut object = object.clone();
                        object["kind"] = json!(kind);
                        object["apiVersion"] = json!("v1");
                        let mut line = json!({"type": event, "object": object}).to_string().into_bytes();
                        line.push(b'\n');
                        line
                    })
                    .collect()
                };
                seen = seen.max(now);
                if !lines.is_empty() {
                    return Some((Ok::<_, std::io::Error>(lines), (seen, revision, api)));
                }
                revision.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(stream).into_response()
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().expect("object").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}
