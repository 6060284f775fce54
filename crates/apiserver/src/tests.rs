//! The API as clients see it: requests against the Router, no network.

mod deletion;
mod mutation;
mod security;
mod services;
mod watching;
mod writing;

use axum::{Router, body::Body};
use futures::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::{ApiServer, Config};

/// A fresh server and a client that is trusted.
struct Lab {
    server: ApiServer,
    router: Router,
    dir: TempDir,
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{:#}", self.body);
        self.body
    }

    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or("")
    }

    fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().filter_map(|v| v.to_str().ok()).collect()
    }
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut config = Config::new(dir.path());
        config.advertise = vec!["10.244.0.1".parse().expect("address")];
        Self::with(config, dir).await
    }

    async fn with(config: Config, dir: TempDir) -> Self {
        let server = ApiServer::open(config).await.expect("open");
        let router = server.trusted("test");
        Self { server, router, dir }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.expect("body").to_bytes();
        let body =
            serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        Answer { code: head.status.as_u16(), headers: head.headers, body }
    }

    async fn call(&self, method: Method, path: &str, content_type: &str, body: Value) -> Answer {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("content-type", content_type).body(body);
        self.send(request.expect("request")).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "", Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, "application/json", body).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, "application/json", body).await
    }

    async fn merge(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PATCH, path, "application/merge-patch+json", body).await
    }

    async fn delete(&self, path: &str, body: Value) -> Answer {
        self.call(Method::DELETE, path, "application/json", body).await
    }

    /// A watch, as a stream of its events.
    async fn watch(&self, path: &str) -> Events {
        let request = Request::get(path).body(Body::empty()).expect("request");
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body().into_data_stream(), buffer: Vec::new() }
    }
}

/// A watch that says nothing for so long has lost something.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

struct Events {
    body: axum::body::BodyDataStream,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event, or `None` when the stream ends.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a JSON line"));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("an event in time");
            self.buffer.extend_from_slice(&frame?.expect("frame"));
        }
    }

    /// `ADDED web@12`
    async fn brief(&mut self) -> String {
        let Some(event) = self.next().await else { return "end".into() };
        let meta = &event["object"]["metadata"];
        let name = meta["name"].as_str().unwrap_or("-");
        format!("{} {name}", event["type"].as_str().unwrap_or(""))
    }
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": value}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "nginx:1.25"}]}})
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
