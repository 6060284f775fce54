//! The Endpoints object of a Service with a selector: the older form, which `kubectl get endpoints` and old clients
//! read. Grouped as kube-controller-manager groups it: ports with the same addresses share a subset.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde_json::{Value, json};

use super::{HEADLESS, active_selector, hostname, resolve};
use crate::object::{IpFamily, Pod, Protocol, Service, selects, unusable_endpoint};

/// Addresses in one Endpoints object; more are left out and [`OVER_CAPACITY`] says so.
pub const MAX_ADDRESSES: usize = 1000;
pub const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub const CONTROLLER: &str = "endpoint-controller";

type Port = (String, Protocol, u16, Option<String>);
/// By address and pod: the entry of the subset, and whether it is ready.
type Addresses = BTreeMap<(IpAddr, String), (Value, bool)>;

/// The Endpoints object as it should be, without resourceVersion; `None` when the Service has no selector and the object
/// belongs to somebody else.
pub fn desired<'a>(service: &Service, pods: impl Iterator<Item = &'a Arc<Pod>>) -> Option<Value> {
    let selector = active_selector(service)?;
    let family = service.families.first().copied().unwrap_or(IpFamily::V4);
    let unready_too = service.publish_not_ready;
    // Per port (None: a headless Service without ports) the addresses and whether they are ready.
    let mut by_port: BTreeMap<Option<Port>, Addresses> = BTreeMap::new();

    let mut candidates: Vec<_> = pods
        .filter(|p| selects(selector, &p.meta.labels) && !p.terminal() && (unready_too || !p.meta.deleting))
        .filter_map(|p| {
            let ip = p.ips.iter().find(|ip| IpFamily::of(ip) == family && !unusable_endpoint(ip))?;
            Some((unready_too || p.ready, *ip, p))
        })
        .collect();
    // Ready ones first, so that truncation costs the unready.
    candidates.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.meta.key.cmp(&b.2.meta.key)));
    let over = candidates.len() > MAX_ADDRESSES;
    for (ready, ip, pod) in candidates.into_iter().take(MAX_ADDRESSES) {
        let mut ports: Vec<Option<Port>> = Vec::new();
        if service.ports.is_empty() {
            if !service.headless() {
                continue;
            }
            ports.push(None);
        }
        for port in &service.ports {
            if let Some(number) = resolve(port, pod) {
                let app = port.app_protocol.as_deref().map(str::to_string);
                ports.push(Some((port.name.to_string(), port.protocol, number, app)));
            }
        }
        for port in ports {
            let name = pod.meta.key.name.to_string();
            by_port.entry(port).or_default().insert((ip, name), (address(service, pod, ip), ready));
        }
    }
    let mut object = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata(service, over)});
    let subsets = repack(by_port);
    if !subsets.is_empty() {
        object["subsets"] = subsets.into();
    }
    Some(object)
}

/// Everything of an Endpoints object that [`desired`] decides, as one number: equal numbers need no write.
pub fn fingerprint(object: &Value) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let none = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    let m = &object["metadata"];
    let mut hasher = DefaultHasher::new();
    let mut subsets = String::new();
    if !none(&object["subsets"]) {
        // Writing to a string cannot fail.
        let _ = crate::workload::canonical(&object["subsets"], &mut subsets);
    }
    subsets.hash(&mut hasher);
    let labels: std::collections::BTreeMap<_, _> =
        m["labels"].as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    labels.hash(&mut hasher);
    m["annotations"][OVER_CAPACITY].as_str().hash(&mut hasher);
    hasher.finish()
}

/// The object was written from a selector and by nobody since: it has the controller's label, no trace of `kubectl apply`,
/// and every address is a pod. What a person writes over it keeps the label, but not the rest.
pub fn ours(object: &Value) -> bool {
    let m = &object["metadata"];
    let all_pods = || {
        let subsets = object["subsets"].as_array().into_iter().flatten();
        let lists = subsets.flat_map(|s| [&s["addresses"], &s["notReadyAddresses"]]);
        lists.filter_map(|l| l.as_array()).flatten().all(|a| a["targetRef"]["kind"] == "Pod")
    };
    m["labels"][MANAGED_BY] == CONTROLLER
        && m["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].is_null()
        && all_pods()
}

fn metadata(service: &Service, over: bool) -> Value {
    let mut labels = service.meta.labels.clone();
    labels.remove(HEADLESS);
    if service.headless() {
        labels.insert(HEADLESS.into(), "".into());
    }
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    let key = &service.meta.key;
    let mut metadata = json!({"name": &*key.name, "namespace": &*key.namespace, "labels": labels});
    if over {
        metadata["annotations"] = json!({OVER_CAPACITY: "truncated"});
    }
    metadata
}

fn address(service: &Service, pod: &Pod, ip: IpAddr) -> Value {
    let mut v = json!({"ip": ip, "targetRef": {"kind": "Pod", "namespace": &*pod.meta.key.namespace,
        "name": &*pod.meta.key.name, "uid": &*pod.meta.uid}});
    if let Some(node) = &pod.node {
        v["nodeName"] = (&**node).into();
    }
    if let Some(hostname) = hostname(service, pod) {
        v["hostname"] = (&*hostname).into();
    }
    v
}

/// Ports that have exactly the same addresses form one subset.
fn repack(by_port: BTreeMap<Option<Port>, Addresses>) -> Vec<Value> {
    let mut subsets: BTreeMap<Vec<((IpAddr, String), bool)>, (Vec<Option<Port>>, Addresses)> = BTreeMap::new();
    for (port, addresses) in by_port {
        let members = addresses.iter().map(|(k, (_, ready))| (k.clone(), *ready)).collect();
        let subset = subsets.entry(members).or_default();
        subset.0.push(port);
        subset.1 = addresses;
    }
    subsets
        .into_values()
        .map(|(ports, addresses)| {
            let of = |wanted: bool| -> Vec<Value> {
                addresses.values().filter(|(_, ready)| *ready == wanted).map(|(v, _)| v.clone()).collect()
            };
            let (ready, not_ready) = (of(true), of(false));
            let mut subset = json!({});
            if !ready.is_empty() {
                subset["addresses"] = ready.into();
            }
            if !not_ready.is_empty() {
                subset["notReadyAddresses"] = not_ready.into();
            }
            let ports: Vec<_> = ports.into_iter().flatten().map(port_object).collect();
            if !ports.is_empty() {
                subset["ports"] = ports.into();
            }
            subset
        })
        .collect()
}

fn port_object((name, protocol, number, app): Port) -> Value {
    let mut v = json!({"port": number, "protocol": protocol.as_str()});
    if !name.is_empty() {
        v["name"] = name.into();
    }
    if let Some(app) = app {
        v["appProtocol"] = app.into();
    }
    v
}
