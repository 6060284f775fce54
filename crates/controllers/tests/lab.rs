//! The controllers against the real API server, in one process, with a node that runs nothing: it only says that every
//! pod placed on it is running and ready.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{
    Resource, resource,
    write::{DeleteOptions, PatchKind, Propagation, Writer},
};
use model::{ObjectKey, Snapshot, pool::Pool};
use portolan_controllers as controllers;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Generous: only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Lab {
    writer: Writer,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    controllers: JoinSet<()>,
    node: JoinSet<()>,
    _view: tokio::task::JoinHandle<()>,
    _server: apiserver::ApiServer,
    _dir: tempfile::TempDir,
}

fn config() -> controllers::Config {
    let range = "10.112.0.0/24".parse().unwrap();
    controllers::Config {
        pools: vec![Pool { name: "default".into(), ranges: vec![range], auto_assign: true }],
        ca_pem: "-----BEGIN CERTIFICATE-----\n".into(),
    }
}

impl Lab {
    async fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = apiserver::ApiServer::open(apiserver::Config::new(dir.path())).await.unwrap();
        let client = cluster::connect::in_process(server.trusted("test"));
        let (snapshot, view) = cluster::view::spawn(client.clone());
        let controllers = controllers::spawn(client.clone(), snapshot.clone(), config(), CancellationToken::new());
        Self {
            writer: Writer::new(client, "test"),
            snapshot,
            controllers,
            node: JoinSet::new(),
            _view: view,
            _server: server,
            _dir: dir,
        }
    }

    async fn new() -> Self {
        let mut lab = Self::empty().await;
        lab.add_node().await;
        lab
    }

    async fn add_node(&mut self) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.0.0/24"}});
        self.writer.create(&resource::NODE, "", &node).await.unwrap();
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
        self.writer
            .patch(&resource::NODE, &ObjectKey::new("", "n1"), "status", PatchKind::Merge, &status)
            .await
            .unwrap();
        self.node.spawn(run_node(self.writer.clone(), self.snapshot.clone()));
    }

    async fn create(&self, resource: &Resource, object: Value) -> Value {
        self.writer.create(resource, "default", &object).await.unwrap()
    }

    async fn get(&self, resource: &Resource, name: &str) -> Option<Value> {
        let namespace = if resource.namespaced { "default" } else { "" };
        match self.writer.get(resource, &ObjectKey::new(namespace, name)).await {
            Ok(v) => Some(v),
            Err(e) if e.is_not_found() => None,
            Err(e) => panic!("{e}"),
        }
    }

    async fn merge(&self, resource: &Resource, name: &str, patch: Value) {
        self.writer.patch(resource, &key(name), "", PatchKind::Merge, &patch).await.unwrap();
    }

    async fn delete(&self, resource: &Resource, name: &str, propagation: Option<Propagation>) {
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        self.writer.delete(resource, &key(name), &options).await.unwrap();
    }

    /// Waits until the snapshot is as described.
    async fn until(&self, what: &str, f: impl Fn(&Snapshot) -> bool) {
        let mut snapshot = self.snapshot.clone();
        let wait = snapshot.wait_for(|s| f(s));
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what} did not come true");
    }

    /// Waits until an object of a kind outside the snapshot is as described (`None`: it does not exist).
    async fn until_object(
        &self,
        what: &str,
        resource: &Resource,
        name: &str,
        f: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let (mut objects, _task) =
            cluster::objects::spawn(self.writer.client().clone(), resource.clone(), "", |v| Some(v.clone()));
        let key = ObjectKey::new(if resource.namespaced { "default" } else { "" }, name);
        let wait = objects.wait_for(|o| o.listed && f(o.map.get(&key).map(|v| &**v)));
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(objects) => objects.unwrap().map.get(&key).map(|v| (**v).clone()),
            Err(_) => panic!("{what} did not come true: {:#?}", self.get(resource, name).await),
        }
    }

    fn now(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    fn ready(&self, service: &str) -> Vec<String> {
        ready(&self.now(), service)
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// Addresses of the ready endpoints in all slices of a Service.
fn ready(s: &Snapshot, service: &str) -> Vec<String> {
    let endpoints = s.slices_of(&key(service)).iter().flat_map(|s| &s.endpoints).filter(|e| e.ready);
    let mut all: Vec<_> = endpoints.map(|e| e.addresses[0].to_string()).collect();
    all.sort();
    all
}

async fn run_node(writer: Writer, mut snapshot: watch::Receiver<Arc<Snapshot>>) {
    let mut started = HashSet::new();
    let mut last = 1;
    loop {
        let s = snapshot.borrow_and_update().clone();
        for pod in s.pods.values().filter(|p| p.node.is_some()) {
            let key = &pod.meta.key;
            if pod.meta.deleting {
                let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
                let _ = writer.delete(&resource::POD, key, &now).await;
            } else if started.insert(pod.meta.uid.clone()) {
                last += 1;
                let ip = format!("10.244.0.{last}");
                let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T00:00:00Z"}]}});
                let _ = writer.patch(&resource::POD, key, "status", PatchKind::Strategic, &status).await;
            }
        }
        if snapshot.changed().await.is_err() {
            return;
        }
    }
}

fn web_app(replicas: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web-app"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web-app"}},
            "template": {"metadata": {"labels": {"app": "web-app"}}, "spec": {"containers": [
                {"name": "web", "image": "nginx:1.25", "ports": [{"containerPort": 80}]}]}}}})
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn internal() -> Value {
    service("web-app-internal", json!({"selector": {"app": "web-app"}, "ports": [{"port": 80}]}))
}

fn available(n: u64) -> impl Fn(Option<&Value>) -> bool {
    move |d| {
        d.is_some_and(|d| {
            let s = &d["status"];
            let all =
                s["availableReplicas"].as_u64().unwrap_or(0) == n && s["updatedReplicas"].as_u64().unwrap_or(0) == n;
            all && s["replicas"].as_u64().unwrap_or(0) == n && s["observedGeneration"] == d["metadata"]["generation"]
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_199_to_203_the_complete_example() {
    let lab = Lab::new().await;
    let start = Instant::now();
    lab.create(&resource::DEPLOYMENT, web_app(3)).await;
    lab.create(&resource::SERVICE, internal()).await;
    let external = json!({"type": "LoadBalancer", "selector": {"app": "web-app"}, "ports": [{"port": 80}]});
    lab.create(&resource::SERVICE, service("web-app-external", external)).await;
    lab.until("three ready endpoints", |s| {
        ready(s, "web-app-internal").len() == 3 && ready(s, "web-app-external").len() == 3
    })
    .await;
    println!("three ready endpoints after {:?}", start.elapsed());
    assert_eq!(lab.ready("web-app-internal"), lab.ready("web-app-external"));
    let d = lab.until_object("availability", &resource::DEPLOYMENT, "web-app", available(3)).await.unwrap();
    let reasons: Vec<_> =
        d["status"]["conditions"].as_array().unwrap().iter().map(|c| c["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
    assert_eq!(d["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let svc = lab.get(&resource::SERVICE, "web-app-external").await.unwrap();
    assert_eq!(svc["status"]["loadBalancer"]["ingress"], json!([{"ip": "10.112.0.1", "ipMode": "VIP"}]));
    let ep = lab
        .until_object("Endpoints", &resource::ENDPOINTS, "web-app-internal", |e| {
            e.is_some_and(|e| e["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 3))
        })
        .await
        .unwrap();
    let ips: Vec<_> =
        ep["subsets"][0]["addresses"].as_array().unwrap().iter().map(|a| a["ip"].as_str().unwrap()).collect();
    assert_eq!(ips, lab.ready("web-app-internal"));
    // Row 32: the names.
    for pod in lab.now().pods.values() {
        let hash = &pod.meta.labels["pod-template-hash"];
        assert!(pod.meta.key.name.starts_with(&format!("web-app-{hash}-")), "{}", pod.meta.key);
        assert_eq!(pod.meta.key.name.len(), "web-app-".len() + hash.len() + 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_002_and_038_endpoints_follow_the_scale() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(1)).await;
    lab.create(&resource::SERVICE, internal()).await;
    for n in [2, 5, 1, 3] {
        lab.merge(&resource::DEPLOYMENT, "web-app", json!({"spec": {"replicas": n}})).await;
        lab.until("the scale", |s| ready(s, "web-app-internal").len() == n && s.pods.len() == n).await;
    }
    lab.until_object("status", &resource::DEPLOYMENT, "web-app", available(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_226_a_rollout_replaces_every_pod() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(4)).await;
    lab.until_object("first rollout", &resource::DEPLOYMENT, "web-app", available(4)).await;
    let before: HashSet<_> = lab.now().pods.values().map(|p| p.meta.uid.clone()).collect();
    let template =
        json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}}});
    lab.merge(&resource::DEPLOYMENT, "web-app", template).await;
    lab.until("new pods only", |s| {
        s.pods.len() == 4 && s.pods.values().all(|p| p.ready && !before.contains(&p.meta.uid))
    })
    .await;
    let d = lab.until_object("second rollout", &resource::DEPLOYMENT, "web-app", available(4)).await.unwrap();
    assert_eq!(d["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_and_nothing_twice() {
    let lab = Lab::new().await;
    let made = Arc::new(std::sync::Mutex::new(HashSet::new()));
    let (client, seen) = (lab.writer.client().clone(), made.clone());
    let watch = tokio::spawn(async move {
        cluster::watch::follow(&client, &resource::POD, "", |delta| {
            if let cluster::watch::Delta::Put(v) = delta {
                seen.lock().unwrap().insert(v["metadata"]["uid"].to_string());
            }
            true
        })
        .await;
    });
    for i in 0..12 {
        let mut d = web_app(5);
        let name = format!("d{i}");
        d["metadata"]["name"] = name.as_str().into();
        d["spec"]["selector"]["matchLabels"]["app"] = name.as_str().into();
        d["spec"]["template"]["metadata"]["labels"]["app"] = name.as_str().into();
        lab.create(&resource::DEPLOYMENT, d).await;
    }
    for i in 0..12 {
        lab.until_object("all available", &resource::DEPLOYMENT, &format!("d{i}"), available(5)).await;
    }
    assert_eq!(made.lock().unwrap().len(), 60);
    watch.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_170_a_relabelled_pod_leaves_the_endpoints() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(2)).await;
    lab.create(&resource::SERVICE, internal()).await;
    lab.until("two endpoints", |s| ready(s, "web-app-internal").len() == 2).await;
    let pod = lab.now().pods.values().next().cloned().unwrap();
    let address = pod.ips[0].to_string();
    lab.merge(&resource::POD, &pod.meta.key.name, json!({"metadata": {"labels": {"app": "other"}}})).await;
    lab.until("another pod in its place", |s| {
        let now = ready(s, "web-app-internal");
        now.len() == 2 && !now.contains(&address) && s.pods.len() == 3
    })
    .await;
    let left = lab.get(&resource::POD, &pod.meta.key.name).await.unwrap();
    assert!(left["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{left:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_034_and_188_endpoints_and_slices_come_and_go_with_the_service() {
    let lab = Lab::new().await;
    lab.create(&resource::SERVICE, internal()).await;
    lab.until("one empty slice", |s| s.slices_of(&key("web-app-internal")).len() == 1).await;
    lab.until_object("Endpoints", &resource::ENDPOINTS, "web-app-internal", |e| e.is_some()).await;
    // What others delete is made again.
    let slice = lab.now().slices_of(&key("web-app-internal"))[0].meta.key.name.to_string();
    lab.delete(&resource::ENDPOINT_SLICE, &slice, None).await;
    lab.until("a new slice", |s| s.slices_of(&key("web-app-internal")).iter().any(|s| *s.meta.key.name != *slice))
        .await;
    lab.delete(&resource::SERVICE, "web-app-internal", None).await;
    lab.until("no slices", |s| s.slices_of(&key("web-app-internal")).is_empty()).await;
    lab.until_object("no Endpoints", &resource::ENDPOINTS, "web-app-internal", |e| e.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_164_to_168_hand_written_endpoints() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(2)).await;
    // A headless Service without ports first has a selector (rows 86, 167) ...
    lab.create(&resource::SERVICE, service("nginx", json!({"clusterIP": "None", "selector": {"app": "web-app"}})))
        .await;
    lab.until("pods behind it", |s| ready(s, "nginx").len() == 2).await;
    let ep = lab
        .until_object("addresses", &resource::ENDPOINTS, "nginx", |e| {
            e.is_some_and(|e| e["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 2))
        })
        .await;
    assert!(ep.unwrap()["subsets"][0]["ports"].is_null());
    // ... which is taken away: nothing of the pods stays (trap Z-4).
    lab.merge(&resource::SERVICE, "nginx", json!({"spec": {"selector": null}})).await;
    lab.until("no pods behind it", |s| s.slices_of(&key("nginx")).is_empty()).await;
    lab.until_object("no addresses", &resource::ENDPOINTS, "nginx", |e| e.is_some_and(|e| e["subsets"].is_null()))
        .await;
    lab.merge(&resource::ENDPOINTS, "nginx", json!({"subsets": [{"addresses": [{"ip": "202.232.2.180"}]}]})).await;
    lab.until("the address alone", |s| ready(s, "nginx") == ["202.232.2.180"]).await;
    let slice = lab.now().slices_of(&key("nginx"))[0].clone();
    assert_eq!(slice.managed_by.as_deref(), Some("endpointslicemirroring-controller.k8s.io"));
    // With a ClusterIP and a port, Endpoints written before the Service (rows 164 to 166).
    let by_hand = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "external-database"},
        "subsets": [{"addresses": [{"ip": "192.168.1.100"}], "ports": [{"port": 5432}]}]});
    lab.create(&resource::ENDPOINTS, by_hand).await;
    lab.create(&resource::SERVICE, service("external-database", json!({"ports": [{"port": 5432}]}))).await;
    lab.until("the mirror", |s| ready(s, "external-database") == ["192.168.1.100"]).await;
    let kept = lab.get(&resource::ENDPOINTS, "external-database").await.unwrap();
    assert_eq!(kept["subsets"][0]["addresses"], json!([{"ip": "192.168.1.100"}]));
    lab.delete(&resource::ENDPOINTS, "external-database", None).await;
    lab.until("no mirror", |s| s.slices_of(&key("external-database")).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_in_the_background_the_foreground_and_orphaning() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(2)).await;
    lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(2)).await;
    lab.delete(&resource::DEPLOYMENT, "web-app", Some(Propagation::Background)).await;
    lab.until("no pods", |s| s.pods.is_empty()).await;

    lab.create(&resource::DEPLOYMENT, web_app(2)).await;
    lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(2)).await;
    lab.delete(&resource::DEPLOYMENT, "web-app", Some(Propagation::Foreground)).await;
    lab.until_object("gone", &resource::DEPLOYMENT, "web-app", |d| d.is_none()).await;
    lab.until("no pods", |s| s.pods.is_empty()).await;

    lab.create(&resource::DEPLOYMENT, web_app(2)).await;
    lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(2)).await;
    let rs = lab.now().pods.values().next().unwrap().meta.key.name.rsplit_once('-').unwrap().0.to_string();
    lab.delete(&resource::DEPLOYMENT, "web-app", Some(Propagation::Orphan)).await;
    lab.until_object("gone", &resource::DEPLOYMENT, "web-app", |d| d.is_none()).await;
    let orphan = lab.get(&resource::REPLICA_SET, &rs).await.expect("the ReplicaSet stays");
    assert!(orphan["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{orphan:#}");
    assert_eq!(lab.now().pods.len(), 2);
    // And the next Deployment adopts it.
    lab.create(&resource::DEPLOYMENT, web_app(2)).await;
    lab.until_object("adopted", &resource::REPLICA_SET, &rs, |r| {
        r.is_some_and(|r| r["metadata"]["ownerReferences"][0]["name"] == "web-app")
    })
    .await;
    lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(2)).await;
    assert_eq!(lab.now().pods.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_224_a_namespace_takes_its_contents_along() {
    let lab = Lab::new().await;
    let name = ObjectKey::new("", "production");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "production"}});
    lab.writer.create(&resource::NAMESPACE, "", &namespace).await.unwrap();
    lab.writer.create(&resource::DEPLOYMENT, "production", &web_app(2)).await.unwrap();
    lab.writer.create(&resource::SERVICE, "production", &internal()).await.unwrap();
    lab.until("pods", |s| s.pods_in("production").filter(|p| p.ready).count() == 2).await;
    let (mut accounts, _task) =
        cluster::objects::spawn(lab.writer.client().clone(), resource::SERVICE_ACCOUNT, "", |_| Some(()));
    let account = ObjectKey::new("production", "default");
    let born = accounts.wait_for(|a| a.map.contains_key(&account));
    assert!(tokio::time::timeout(PATIENCE, born).await.is_ok());
    let root = lab.writer.get(&resource::CONFIG_MAP, &ObjectKey::new("production", "kube-root-ca.crt")).await;
    assert!(root.is_ok());
    lab.writer.delete(&resource::NAMESPACE, &name, &DeleteOptions::default()).await.unwrap();
    lab.until("an empty cluster", |s| {
        !s.namespaces.contains_key(&name)
            && s.pods_in("production").next().is_none()
            && s.services_in("production").next().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_a_node_and_says_so() {
    let mut lab = Lab::empty().await;
    lab.create(&resource::DEPLOYMENT, web_app(1)).await;
    lab.until("it says why", |s| {
        s.pods.values().any(|p| &*p.reason == "Unschedulable: no nodes available to schedule pods")
    })
    .await;
    lab.add_node().await;
    lab.until("it is placed", |s| s.pods.values().any(|p| p.node.as_deref() == Some("n1") && p.ready)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_083_a_stateful_set_names_its_pods() {
    let lab = Lab::new().await;
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "pod"},
        "spec": {"replicas": 3, "serviceName": "database-headless", "selector": {"matchLabels": {"app": "database"}},
            "template": {"metadata": {"labels": {"app": "database"}}, "spec": {"containers": [{"name": "db", "image": "redis"}]}}}});
    lab.create(&resource::STATEFUL_SET, set).await;
    let headless = json!({"clusterIP": "None", "selector": {"app": "database"}, "ports": [{"port": 5432}]});
    lab.create(&resource::SERVICE, service("database-headless", headless)).await;
    lab.until("three names", |s| {
        let slices = s.slices_of(&key("database-headless")).iter();
        let mut names: Vec<_> =
            slices.flat_map(|s| &s.endpoints).filter(|e| e.ready).filter_map(|e| e.hostname.as_deref()).collect();
        names.sort_unstable();
        names == ["pod-0", "pod-1", "pod-2"]
    })
    .await;
    lab.merge(&resource::STATEFUL_SET, "pod", json!({"spec": {"replicas": 1}})).await;
    lab.until("the top ones left", |s| s.pods.len() == 1 && s.pods.contains_key(&key("pod-0"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_227_a_restart_finds_everything_in_order() {
    let mut lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(3)).await;
    lab.create(&resource::SERVICE, internal()).await;
    let external = json!({"type": "LoadBalancer", "selector": {"app": "web-app"}, "ports": [{"port": 80}]});
    lab.create(&resource::SERVICE, service("web-app-external", external)).await;
    lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(3)).await;
    lab.until("endpoints", |s| ready(s, "web-app-internal").len() == 3 && ready(s, "web-app-external").len() == 3)
        .await;
    lab.controllers.shutdown().await;
    let before = lab.now();
    lab.controllers =
        controllers::spawn(lab.writer.client().clone(), lab.snapshot.clone(), config(), CancellationToken::new());
    // A change that needs every controller; when it is through, all have looked at everything.
    lab.merge(&resource::DEPLOYMENT, "web-app", json!({"spec": {"replicas": 4}})).await;
    lab.until("four", |s| ready(s, "web-app-internal").len() == 4).await;
    let after = lab.now();
    for (key, pod) in before.pods.iter() {
        assert!(Arc::ptr_eq(pod, after.pods.get(key).expect("still there")), "{key} was touched");
    }
    let addresses =
        |s: &Snapshot| s.services.get(&key("web-app-external")).map(|s| s.ingress_ips().cloned().collect::<Vec<_>>());
    assert_eq!(addresses(&before), addresses(&after));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_the_story_in_known_words() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(1)).await;
    lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(1)).await;
    let (mut events, _task) =
        cluster::objects::spawn(lab.writer.client().clone(), resource::EVENT, "", |v| Some(v.clone()));
    let told = |events: &cluster::objects::Objects<Value>, reason: &str, text: &str| {
        events.map.values().any(|e| e["reason"] == reason && e["message"].as_str().is_some_and(|m| m.contains(text)))
    };
    let wait = events.wait_for(|e| {
        told(e, "ScalingReplicaSet", "Scaled up replica set web-app-")
            && told(e, "SuccessfulCreate", "Created pod: web-app-")
            && told(e, "Scheduled", "Successfully assigned default/web-app-")
    });
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_name_leads_to_another_one() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(1)).await;
    lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(1)).await;
    let rs = lab.now().pods.values().next().unwrap().meta.key.name.rsplit_once('-').unwrap().0.to_string();
    lab.delete(&resource::DEPLOYMENT, "web-app", Some(Propagation::Orphan)).await;
    lab.until_object("gone", &resource::DEPLOYMENT, "web-app", |d| d.is_none()).await;
    // Its labels no longer match, so that the next Deployment of the same template cannot adopt it.
    lab.merge(&resource::REPLICA_SET, &rs, json!({"metadata": {"labels": {"app": "other"}}})).await;
    lab.create(&resource::DEPLOYMENT, web_app(1)).await;
    let d = lab.until_object("available", &resource::DEPLOYMENT, "web-app", available(1)).await.unwrap();
    assert_eq!(d["status"]["collisionCount"], 1);
    assert_eq!(lab.now().pods.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_060_addresses_are_asked_for_refused_and_freed() {
    let lab = Lab::new().await;
    let lb = |ip: &str| json!({"type": "LoadBalancer", "loadBalancerIP": ip, "ports": [{"port": 80}]});
    lab.create(&resource::SERVICE, service("first", lb("10.112.0.77"))).await;
    let has = |s: &Snapshot, name: &str, ip: &str| {
        s.services.get(&key(name)).is_some_and(|s| s.ingress_ips().any(|i| i.ip.to_string() == ip))
    };
    lab.until("the address asked for", |s| has(s, "first", "10.112.0.77")).await;
    lab.create(&resource::SERVICE, service("second", lb("10.112.0.77"))).await;
    let (mut events, _task) =
        cluster::objects::spawn(lab.writer.client().clone(), resource::EVENT, "", |v| Some(v.clone()));
    let refused = "No address for this Service: 10.112.0.77 is already allocated to the Service default/first";
    let wait = events.wait_for(|e| e.map.values().any(|e| e["message"] == refused && e["type"] == "Warning"));
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok());
    lab.merge(&resource::SERVICE, "first", json!({"spec": {"type": "ClusterIP", "loadBalancerIP": null}})).await;
    lab.until("the address goes to who waited", |s| has(s, "second", "10.112.0.77") && !has(s, "first", "10.112.0.77"))
        .await;
    let freed = lab.get(&resource::SERVICE, "first").await.unwrap();
    assert!(freed["status"]["loadBalancer"]["ingress"].is_null(), "{freed:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_045_readiness_moves_an_endpoint_out_and_in() {
    let lab = Lab::new().await;
    lab.create(&resource::DEPLOYMENT, web_app(2)).await;
    lab.create(&resource::SERVICE, internal()).await;
    lab.until("two endpoints", |s| ready(s, "web-app-internal").len() == 2).await;
    let sick = lab.now().pods.keys().next().cloned().unwrap();
    for (status, n) in [("False", 1), ("True", 2)] {
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        lab.writer.patch(&resource::POD, &sick, "status", PatchKind::Strategic, &patch).await.unwrap();
        lab.until("the endpoint follows", |s| ready(s, "web-app-internal").len() == n).await;
        let all: usize = lab.now().slices_of(&key("web-app-internal")).iter().map(|s| s.endpoints.len()).sum();
        assert_eq!(all, 2, "an unready pod stays in its slice");
        lab.until_object("Endpoints follow", &resource::ENDPOINTS, "web-app-internal", |e| {
            e.is_some_and(|e| e["subsets"][0]["addresses"].as_array().map_or(0, Vec::len) == n)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_absent_owners_go_and_of_half_absent_ones_stay() {
    let lab = Lab::new().await;
    let owner = lab.create(&resource::SERVICE, internal()).await;
    let absent = json!({"apiVersion": "v1", "kind": "Service", "name": "was-here", "uid": "00000000-0000-4000-8000-000000000001"});
    let strange = json!({"apiVersion": "example.com/v1", "kind": "Whatever", "name": "x", "uid": "00000000-0000-4000-8000-000000000002"});
    let here =
        json!({"apiVersion": "v1", "kind": "Service", "name": "web-app-internal", "uid": owner["metadata"]["uid"]});
    let map = |name: &str, owners: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}});
    lab.create(&resource::CONFIG_MAP, map("lost", json!([absent.clone()]))).await;
    lab.create(&resource::CONFIG_MAP, map("half", json!([absent, here.clone()]))).await;
    lab.create(&resource::CONFIG_MAP, map("strange", json!([strange]))).await;
    lab.until_object("the lost one goes", &resource::CONFIG_MAP, "lost", |m| m.is_none()).await;
    lab.until_object("the reference goes", &resource::CONFIG_MAP, "half", |m| {
        m.is_some_and(|m| m["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len) == 1)
    })
    .await;
    lab.delete(&resource::SERVICE, "web-app-internal", None).await;
    lab.until_object("then the object", &resource::CONFIG_MAP, "half", |m| m.is_none()).await;
    assert!(lab.get(&resource::CONFIG_MAP, "strange").await.is_some(), "nobody knows whether its owner exists");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_not_ready_until_it_speaks_again() {
    let lab = Lab::new().await;
    lab.until("a node", |s| s.nodes.values().any(|n| n.ready)).await;
    let lease = |time: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n1"},
        "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 1, "renewTime": time}})
    };
    lab.writer.create(&resource::LEASE, "kube-node-lease", &lease("2020-01-01T00:00:00.000000Z")).await.unwrap();
    lab.until("silence is noticed", |s| s.nodes.values().all(|n| !n.ready)).await;
    let renewed = json!({"spec": {"renewTime": "2999-01-01T00:00:00.000000Z"}});
    let name = ObjectKey::new("kube-node-lease", "n1");
    lab.writer.patch(&resource::LEASE, &name, "", PatchKind::Merge, &renewed).await.unwrap();
    lab.until("it is back", |s| s.nodes.values().all(|n| n.ready)).await;
}
