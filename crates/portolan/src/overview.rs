//! The table of Services with every way to reach each, for people and for `-o json`.

use comfy_table::{Table, presets::NOTHING};
use model::{Addressing, Exposure, Service, ServicePort, Snapshot};
use serde::{Deserialize, Serialize};

/// One Service as a client sees it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Row {
    pub namespace: String,
    pub name: String,
    #[serde(rename = "type")]
    pub type_: String,
    /// In the order in which one would try them.
    pub reach: Vec<Way>,
    /// `address:port` of what answers now.
    pub endpoints: Vec<String>,
    /// Endpoints that are known and not ready.
    pub not_ready: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Way {
    pub at: String,
    /// Who can use it.
    pub from: String,
}

/// Facts about the cluster that the Services do not carry.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    pub domain: &'a str,
    pub node_ip: String,
}

const PODS: &str = "pods";
const HERE: &str = "pods, this machine";

pub fn rows(snapshot: &Snapshot, place: &Place<'_>) -> Vec<Row> {
    snapshot.services.values().map(|s| row(snapshot, s, place)).collect()
}

fn way(at: String, from: &str) -> Way {
    Way { at, from: from.to_owned() }
}

fn type_of(service: &Service) -> &'static str {
    match (&service.addressing, &service.exposure) {
        (Addressing::ExternalName(_), _) => "ExternalName",
        (Addressing::Headless, _) => "headless",
        (_, Exposure::None) => "ClusterIP",
        (_, Exposure::NodePort) => "NodePort",
        (_, Exposure::LoadBalancer(_)) => "LoadBalancer",
    }
}

fn row(snapshot: &Snapshot, service: &Service, place: &Place<'_>) -> Row {
    let key = &service.meta.key;
    let name = format!("{}.{}.svc.{}", key.name, key.namespace, place.domain);
    let mut reach = Vec::new();
    let mut endpoints = Vec::new();
    let mut not_ready = 0;
    for slice in snapshot.slices_of(key) {
        for endpoint in &slice.endpoints {
            if !endpoint.ready {
                not_ready += 1;
            } else if let Some(ip) = endpoint.addresses.first() {
                match slice.ports.as_slice() {
                    [] => endpoints.push(ip.to_string()),
                    ports => endpoints.extend(
                        ports
                            .iter()
                            .filter_map(|p| p.port)
                            .map(|port| std::net::SocketAddr::new(*ip, port).to_string()),
                    ),
                }
            }
        }
    }
    endpoints.sort();
    endpoints.dedup();
    match &service.addressing {
        Addressing::ExternalName(target) => reach.push(way(format!("{name} -> {target}"), PODS)),
        Addressing::Headless => reach.push(way(name, PODS)),
        Addressing::ClusterIp(ips) => {
            let list = |port: fn(&ServicePort) -> Option<u16>| {
                let ports = service.ports.iter().filter_map(|p| Some(format!("{}/{}", port(p)?, p.protocol)));
                ports.collect::<Vec<_>>().join(",")
            };
            let ports = list(|p| Some(p.port));
            if let Exposure::LoadBalancer(lb) = &service.exposure {
                reach.extend(lb.ingress.iter().map(|i| way(format!("{}:{ports}", i.ip), HERE)));
            }
            let node_ports = list(|p| p.node_port);
            if !node_ports.is_empty() {
                reach.push(way(format!("{}:{node_ports}", place.node_ip), "whoever reaches the node"));
            }
            reach.extend(ips.iter().map(|ip| way(format!("{ip}:{ports}"), HERE)));
            reach.push(way(format!("{name}:{ports}"), PODS));
        }
    }
    Row {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        type_: type_of(service).into(),
        reach,
        endpoints,
        not_ready,
    }
}

/// Joins the first few and says how many more there are.
fn some(list: &[String]) -> String {
    match list.len() {
        0 => "<none>".to_owned(),
        n if n > 3 => format!("{} + {} more", list[..3].join(","), n - 3),
        _ => list.join(","),
    }
}

pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["SERVICE", "TYPE", "REACH IT AT", "FROM", "ENDPOINTS"]);
    for row in rows {
        let mut endpoints = some(&row.endpoints);
        if row.not_ready > 0 {
            endpoints.push_str(&format!(" ({} not ready)", row.not_ready));
        }
        for (i, way) in row.reach.iter().enumerate() {
            let first = i == 0;
            table.add_row([
                if first { format!("{}/{}", row.namespace, row.name) } else { String::new() },
                if first { row.type_.clone() } else { String::new() },
                way.at.clone(),
                way.from.clone(),
                if first { endpoints.clone() } else { String::new() },
            ]);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use model::parse;
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// A snapshot of these Services and slices.
    pub fn snapshot(objects: &[Value]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for object in objects {
            if object["kind"] == "Service" {
                let service = parse::service(object).0.expect("a service");
                snapshot.services.insert(service.meta.key.clone(), Arc::new(service));
            } else {
                let slice = parse::endpoint_slice(object).0.expect("a slice");
                snapshot.put_slice(Arc::new(slice), None);
            }
        }
        snapshot
    }

    pub fn web(ready: &[&str], not_ready: &[&str]) -> Vec<Value> {
        let endpoint = |ready: bool| move |ip: &&str| json!({"addresses": [ip], "conditions": {"ready": ready}});
        let endpoints: Vec<_> = ready.iter().map(endpoint(true)).chain(not_ready.iter().map(endpoint(false))).collect();
        vec![
            json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web", "uid": "1"}, "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "https", "port": 443, "nodePort": 30443}],
            }, "status": {"loadBalancer": {"ingress": [{"ip": "10.112.0.1", "ipMode": "VIP"}]}}}),
            json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-1", "uid": "2",
                "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}),
        ]
    }

    #[test]
    fn seed_037_every_way_to_reach_a_service() {
        let mut objects = web(&["10.244.0.3", "10.244.0.2"], &["10.244.0.4"]);
        objects.push(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "db", "uid": "3"},
            "spec": {"type": "ExternalName", "externalName": "database.example.com"}}));
        let place = Place { domain: "cluster.local", node_ip: "192.0.2.7".into() };
        let expected = "\
SERVICE       TYPE           REACH IT AT                                            FROM                       ENDPOINTS
default/db    ExternalName   db.default.svc.cluster.local -> database.example.com   pods                       <none>
default/web   LoadBalancer   10.112.0.1:80/TCP,443/TCP                              pods, this machine         10.244.0.2:8080,10.244.0.3:8080 (1 not ready)
                             192.0.2.7:30080/TCP,30443/TCP                          whoever reaches the node
                             10.96.0.7:80/TCP,443/TCP                               pods, this machine
                             web.default.svc.cluster.local:80/TCP,443/TCP           pods";
        assert_eq!(table(&rows(&snapshot(&objects), &place)), expected);
    }

    #[test]
    fn long_lists_are_cut_with_their_number() {
        let list: Vec<String> = (1..=5).map(|i| format!("10.0.0.{i}:80")).collect();
        assert_eq!(some(&list), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more");
        assert_eq!(some(&[]), "<none>");
    }
}
