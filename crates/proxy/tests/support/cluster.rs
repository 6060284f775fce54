//! A cluster made of API objects as people write them, for tests and benchmarks.
#![allow(dead_code, reason = "each user takes a part")]

use std::sync::Arc;

use model::{Kind, ObjectKey, Snapshot, parse};
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Cluster {
    pub snapshot: Snapshot,
}

impl Cluster {
    /// With one node and nothing else; everything counts as listed.
    pub fn new(node: &str, zone: &str) -> Self {
        let mut cluster = Self { snapshot: Snapshot::default() };
        for kind in Kind::ALL {
            cluster.snapshot.mark_listed(kind);
        }
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node, "uid": node, "labels": {"topology.kubernetes.io/zone": zone}},
        }));
        cluster
    }

    pub fn apply(&mut self, object: &Value) {
        self.snapshot.revision += 1;
        match object["kind"].as_str() {
            Some("Node") => {
                let node = parse::node(object).0.expect("a node");
                self.snapshot.nodes.insert(node.meta.key.clone(), Arc::new(node));
            }
            Some("Service") => {
                let service = parse::service(object).0.expect("a service");
                self.snapshot.services.insert(service.meta.key.clone(), Arc::new(service));
            }
            Some("EndpointSlice") => {
                let slice = parse::endpoint_slice(object).0.expect("a slice");
                self.snapshot.put_slice(Arc::new(slice), None);
            }
            other => panic!("no such kind here: {other:?}"),
        }
    }

    pub fn delete_service(&mut self, name: &str) {
        self.snapshot.revision += 1;
        self.snapshot.services.remove(&ObjectKey::new("default", name));
    }

    /// A Service with these fields in its spec; `status` may carry the load balancer's.
    pub fn service(&mut self, name: &str, spec: Value, status: Value) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "uid": name, "creationTimestamp": "2026-11-21T00:00:00Z"},
            "spec": spec, "status": status,
        }));
    }

    /// Replaces a Service's annotations.
    pub fn annotate(&mut self, name: &str, annotations: &[(&str, &str)]) {
        let key = ObjectKey::new("default", name);
        let mut service = (**self.snapshot.services.get(&key).expect("the service")).clone();
        service.meta.annotations = annotations.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        self.snapshot.revision += 1;
        self.snapshot.services.insert(key, Arc::new(service));
    }

    /// All endpoints of a Service in one slice, ready, on `node`.
    pub fn endpoints(&mut self, service: &str, ports: &[(&str, &str, u16)], node: &str, ips: &[&str]) {
        let endpoints: Vec<Value> =
            ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": node})).collect();
        self.slice(service, ports, endpoints);
    }

    pub fn slice(&mut self, service: &str, ports: &[(&str, &str, u16)], endpoints: Vec<Value>) {
        let v6 = endpoints.first().and_then(|e| e["addresses"][0].as_str()).is_some_and(|ip| ip.contains(':'));
        let family = if v6 { "IPv6" } else { "IPv4" };
        self.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{family}"), "namespace": "default", "uid": format!("{service}-{family}"),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family,
            "ports": ports.iter().map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
                .collect::<Vec<_>>(),
            "endpoints": endpoints,
        }));
    }
}
