//! What the tests stand on: an agent with an API in memory, pods of the built-in image, and the proof that nothing is
//! left.

use std::{net::IpAddr, sync::Arc, time::Duration};

use model::Snapshot;
use portolan_agent::{self as agent, Agent, Config, image::Mirror};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::api::{Api, PODS};

/// An agent with an API of its own, in this process's private namespaces.
pub struct Node {
    pub api: Api,
    pub agent: Agent,
    pub config: Config,
    pub dir: Arc<tempfile::TempDir>,
}

pub fn snapshot() -> Snapshot {
    let mut s = Snapshot::default();
    s.revision = u64::MAX;
    for kind in model::Kind::ALL {
        s.mark_listed(kind);
    }
    let mut put = |name: &str, namespace: &str, ip: &str, ports: Value| {
        let v = json!({"metadata": {"name": name, "namespace": namespace, "uid": name}, "spec": {"type": "ClusterIP", "clusterIP": ip,
            "clusterIPs": [ip], "ports": ports}});
        let service = model::parse::service(&v).0.expect("service");
        s.services.insert(service.meta.key.clone(), Arc::new(service));
    };
    put("kubernetes", "default", "10.96.0.1", json!([{"name": "https", "port": 443, "protocol": "TCP"}]));
    put("redis-master", "default", "10.96.0.11", json!([{"port": 6379, "protocol": "TCP"}]));
    s
}

/// Configurations of all agents of this run.
static STARTED: std::sync::Mutex<Vec<Config>> = std::sync::Mutex::new(Vec::new());

pub async fn end_everything() {
    let all = std::mem::take(&mut *STARTED.lock().unwrap());
    for config in all {
        let _ = agent::cleanup(&config).await;
        let _ = std::fs::remove_dir_all(config.data_dir.parent().unwrap());
    }
}

pub async fn begin(api: &Api, config: Config, dir: Arc<tempfile::TempDir>) -> Node {
    STARTED.lock().unwrap().push(config.clone());
    let (_, snapshots) = watch::channel(Arc::new(snapshot()));
    let agent = Agent::start(config.clone(), api.client(), snapshots, CancellationToken::new()).await.expect("agent");
    Node { api: api.clone(), agent, config, dir }
}

pub async fn node_with(mirrors: Vec<Mirror>) -> Node {
    let dir = Arc::new(tempfile::Builder::new().prefix("po").tempdir_in("/var/tmp").expect("dir"));
    let mut config = Config::new("node-1", &dir.path().join("data"), &dir.path().join("run"));
    config.mirrors = mirrors;
    config.shutdown_grace = Duration::from_secs(1);
    begin(&Api::default(), config, dir).await
}

pub async fn node() -> Node {
    node_with(vec![]).await
}

impl Node {
    pub fn create(&self, name: &str, spec: Value) -> String {
        let mut spec = spec;
        spec["nodeName"] = json!("node-1");
        let uid = format!("{name}-{}", rand::random::<u32>());
        let object = json!({"metadata": {"name": name, "namespace": "default", "uid": uid,
            "creationTimestamp": "2026-11-21T00:00:00Z"}, "spec": spec});
        let path = format!("{PODS}{name}");
        self.api.put(&path, object, "ADDED");
        path
    }

    /// A pod of the built-in image that runs `args`.
    pub fn run(&self, name: &str, args: &[&str], more: Value) -> String {
        let mut spec =
            json!({"containers": [{"name": "c", "image": "portolan.dev/echo"}], "terminationGracePeriodSeconds": 1});
        let mut command = vec!["/portolan"];
        command.extend(args);
        spec["containers"][0]["command"] = json!(command);
        if args == ["echo"] {
            spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 8080}});
        }
        if let Value::Object(more) = more {
            for (key, value) in more {
                if let Some(inner) = key.strip_prefix("c.") {
                    spec["containers"][0][inner] = value;
                } else {
                    spec[key] = value;
                }
            }
        }
        self.create(name, spec)
    }

    pub async fn ready(&self, path: &str) -> Value {
        self.api.wait(path, "ready", |p| condition(p, "Ready") == "True").await
    }

    pub async fn ended(&self, path: &str) -> Value {
        self.api.wait(path, "over", |p| matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))).await
    }

    pub async fn logs(&self, pod: &str, query: &str) -> (u16, String) {
        let uri = format!("/containerLogs/default/{pod}/c?{query}");
        let request = axum::http::Request::get(uri).body(axum::body::Body::empty()).unwrap();
        let response = self.agent.router().oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let body = tokio::time::timeout(Duration::from_secs(20), axum::body::to_bytes(response.into_body(), 1 << 24));
        (code, String::from_utf8(body.await.expect("the log ends").unwrap().to_vec()).unwrap())
    }

    /// Runs a pod to its end and returns what it said.
    pub async fn output(&self, name: &str, args: &[&str], more: Value) -> String {
        let mut more = more;
        more["restartPolicy"] = json!("Never");
        let path = self.run(name, args, more);
        self.ended(&path).await;
        self.logs(name, "").await.1
    }

    pub fn delete(&self, path: &str) {
        let mut pod = self.api.get(path).expect("pod");
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(1);
        self.api.put(path, pod, "MODIFIED");
    }

    pub async fn gone(&self, path: &str) {
        self.api.wait(path, "gone", Value::is_null).await;
    }

    pub async fn end(self) {
        self.agent.shutdown().await.expect("shutdown");
        assert_clean(&self.config);
    }
}

pub fn condition(pod: &Value, kind: &str) -> String {
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().find(|c| c["type"] == kind).and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

pub fn ip(pod: &Value) -> IpAddr {
    pod["status"]["podIP"].as_str().expect("podIP").parse().expect("ip")
}

/// Nothing of the agent is left on this (private) host.
pub fn assert_clean(config: &Config) {
    let links = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!links.contains("portolan0") && !links.contains(" po"), "{links}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let run = config.run_dir.to_str().unwrap();
    assert!(!mounts.contains(run), "{mounts}");
    for entry in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let ours = entry.path().join(config.cgroup.strip_prefix("/").unwrap());
        assert!(!ours.exists(), "{}", ours.display());
    }
    let containers = std::fs::read_dir(config.run_dir.join("containers")).map_or(0, Iterator::count);
    assert_eq!(containers, 0);
    for path in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(path.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(run), "a process is left: {}", String::from_utf8_lossy(&line));
    }
}
