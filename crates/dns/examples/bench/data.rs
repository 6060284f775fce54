//! The cluster that is asked about, as objects and as a zone file.

use std::{fmt::Write, sync::Arc};

use model::{
    Kind, Snapshot,
    parse::{self, Parser},
};
use serde_json::{Value, json};

/// ClusterIP Services `s-0` ... in namespace `default`, each with a port `http`.
pub const SMALL: usize = 1_000;
pub const LARGE: usize = 10_000;
/// Headless Services `h-100` and `h-1000` have so many endpoints.
pub const CROWDS: [usize; 2] = [100, 1_000];

pub fn cluster_ip(i: usize) -> String {
    format!("10.{}.{}.{}", 96 + i / 62_500, i / 250 % 250, i % 250 + 1)
}

fn endpoint(i: usize) -> String {
    format!("10.{}.{}.{}", 128 + i / 62_500, i / 250 % 250, i % 250 + 1)
}

fn slice(service: &str, part: usize, addresses: impl Iterator<Item = String>) -> Value {
    let endpoints: Vec<_> = addresses.map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{part}"), "namespace": "default", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// Calls `each` with every object, so that never all of them are in memory as JSON.
pub fn objects(services: usize, mut each: impl FnMut(Value)) {
    for i in 0..services {
        let name = format!("s-{i}");
        let ip = cluster_ip(i);
        each(json!({
            "kind": "Service", "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "selector": {"app": name},
                     "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
        }));
        each(slice(&name, 1, (3 * i..3 * i + 3).map(endpoint)));
    }
    for n in CROWDS {
        let name = format!("h-{n}");
        each(json!({
            "kind": "Service", "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
            "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"name": "http", "port": 8080}]},
        }));
        for part in 0..n.div_ceil(100) {
            each(slice(&name, part, (part * 100..(part + 1) * 100).map(|i| endpoint(100_000 + i))));
        }
    }
}

pub fn snapshot(services: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut parser = Parser::default();
    objects(services, |object| put(&mut snapshot, &mut parser, &object));
    for name in ["default", "kube-system"] {
        let namespace = json!({"kind": "Namespace", "metadata": {"name": name}});
        if let (Some(key), (Some(namespace), _)) = (parse::key(&namespace), parse::namespace(&namespace)) {
            snapshot.namespaces.insert(key, Arc::new(namespace));
        }
    }
    for kind in Kind::ALL {
        snapshot.mark_listed(kind);
    }
    snapshot.revision = 1;
    snapshot
}

pub fn put(snapshot: &mut Snapshot, parser: &mut Parser, object: &Value) {
    if object["kind"] == "Service" {
        if let (Some(key), (Some(service), _)) = (parse::key(object), parser.service(object)) {
            snapshot.services.insert(key, Arc::new(service));
        }
    } else if let (Some(slice), _) = parser.endpoint_slice(object) {
        snapshot.put_slice(Arc::new(slice), None);
    }
}

/// The same names for servers that know nothing of Kubernetes.
pub fn records(services: usize) -> Vec<(String, &'static str, String)> {
    let mut all = Vec::new();
    let name = |s: &str| format!("{s}.default.svc.cluster.local.");
    for i in 0..services {
        let own = name(&format!("s-{i}"));
        all.push((own.clone(), "A", cluster_ip(i)));
        all.push((format!("_http._tcp.{own}"), "SRV", format!("0 100 80 {own}")));
        for ip in (3 * i..3 * i + 3).map(endpoint) {
            all.push((format!("{}.{own}", ip.replace('.', "-")), "A", ip));
        }
    }
    for n in CROWDS {
        let own = name(&format!("h-{n}"));
        for ip in (0..n).map(|i| endpoint(100_000 + i)) {
            all.push((own.clone(), "A", ip.clone()));
            all.push((format!("{}.{own}", ip.replace('.', "-")), "A", ip));
        }
    }
    all
}

pub fn zone_file(services: usize) -> String {
    let mut text = String::from(
        "$ORIGIN cluster.local.\n$TTL 30\n@ 30 IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ 30 IN NS ns.dns\nns.dns 30 IN A 10.96.0.10\n",
    );
    for (name, kind, data) in records(services) {
        // A String takes everything.
        let _ = writeln!(text, "{name} 30 IN {kind} {data}");
    }
    text
}
