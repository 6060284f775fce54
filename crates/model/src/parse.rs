//! The only reader of raw API objects. Total: whatever arrives, a bad field is left out and reported as a [`Problem`],
//! so that one strange object can never stop a role. It refuses to know what the objects are used for.

mod read;
mod service;
mod workload;

use std::{collections::HashSet, sync::Arc};

use serde_json::Value;

use crate::object::{
    AddressType, ContainerPort, Endpoint, EndpointPort, EndpointSlice, Labels, Namespace, Node, ObjectKey, Pod,
    PodPhase, Problem, Service, unusable_endpoint,
};
use read::Reader;
pub use workload::{deployment, replica_set, stateful_set};

/// Shares equal strings between objects. A cluster repeats the same label keys, node and namespace names in
/// thousands of objects; here each is kept once.
#[derive(Debug, Default)]
pub struct Strings {
    known: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Strings {
    pub fn share(&mut self, s: &str) -> Arc<str> {
        if let Some(known) = self.known.get(s) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(1024) {
            self.known.retain(|s| Arc::strong_count(s) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        let new: Arc<str> = s.into();
        self.known.insert(new.clone());
        new
    }
}

/// A parser that remembers strings from one object to the next. Use one per watch.
#[derive(Debug, Default)]
pub struct Parser {
    strings: Strings,
}

/// What one object gave: `None` when nothing of it can be used, and everything that was left out.
pub type Parsed<T> = (Option<T>, Vec<Problem>);

impl Parser {
    pub fn service(&mut self, v: &Value) -> Parsed<Service> {
        self.read("Service", v, service::service)
    }

    pub fn endpoint_slice(&mut self, v: &Value) -> Parsed<EndpointSlice> {
        self.read("EndpointSlice", v, endpoint_slice_fields)
    }

    pub fn node(&mut self, v: &Value) -> Parsed<Node> {
        self.read("Node", v, node_fields)
    }

    pub fn pod(&mut self, v: &Value) -> Parsed<Pod> {
        self.read("Pod", v, pod_fields)
    }

    pub fn namespace(&mut self, v: &Value) -> Parsed<Namespace> {
        self.read("Namespace", v, |r, v| {
            Some(Namespace {
                meta: r.meta(v)?,
                finalizers: v["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()),
            })
        })
    }

    fn read<T>(
        &mut self,
        kind: &'static str,
        v: &Value,
        fields: impl FnOnce(&mut Reader<'_>, &Value) -> Option<T>,
    ) -> Parsed<T> {
        let mut reader = Reader::new(kind, v, &mut self.strings);
        let object = fields(&mut reader, v);
        (object, reader.problems)
    }
}

pub fn service(v: &Value) -> Parsed<Service> {
    Parser::default().service(v)
}

pub fn endpoint_slice(v: &Value) -> Parsed<EndpointSlice> {
    Parser::default().endpoint_slice(v)
}

pub fn node(v: &Value) -> Parsed<Node> {
    Parser::default().node(v)
}

pub fn pod(v: &Value) -> Parsed<Pod> {
    Parser::default().pod(v)
}

pub fn namespace(v: &Value) -> Parsed<Namespace> {
    Parser::default().namespace(v)
}

/// `metadata.resourceVersion` as a number, 0 when it is missing or not one (KEP-5504: comparable resource versions).
pub fn revision(v: &Value) -> u64 {
    v["metadata"]["resourceVersion"].as_str().and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// Namespace and name, `None` for an object without a name.
pub fn key(v: &Value) -> Option<ObjectKey> {
    let name = v["metadata"]["name"].as_str().filter(|n| !n.is_empty())?;
    Some(ObjectKey::new(v["metadata"]["namespace"].as_str().unwrap_or_default(), name))
}

/// A selector or label map of strings; entries of other types are left out.
pub fn labels(v: &Value) -> Labels {
    v.as_object()
        .map(|m| m.iter().filter_map(|(k, v)| Some((k.as_str().into(), v.as_str()?.into()))).collect())
        .unwrap_or_default()
}

fn endpoint_slice_fields(r: &mut Reader<'_>, v: &Value) -> Option<EndpointSlice> {
    let meta = r.meta(v)?;
    let Some(service) = meta.labels.get("kubernetes.io/service-name").filter(|s| !s.is_empty()) else {
        r.problem(
            "metadata.labels",
            "the label kubernetes.io/service-name is missing: the slice belongs to no Service",
        );
        return None;
    };
    let service = ObjectKey { namespace: meta.key.namespace.clone(), name: service.clone() };
    let address_type = match v["addressType"].as_str() {
        Some("IPv4") => AddressType::V4,
        Some("IPv6") => AddressType::V6,
        Some("FQDN") => AddressType::Fqdn,
        other => {
            r.unsupported("addressType", other.unwrap_or_default(), &["FQDN", "IPv4", "IPv6"]);
            return None;
        }
    };
    let mut ports = Vec::new();
    for (i, p) in read::array(&v["ports"]).iter().enumerate() {
        let Some(protocol) = r.protocol(&format!("ports[{i}].protocol"), &p["protocol"]) else { continue };
        let port = match &p["port"] {
            Value::Null => None,
            n => match r.port(&format!("ports[{i}].port"), n) {
                None => continue,
                some => some,
            },
        };
        let (name, app_protocol) = (r.str(&p["name"]), r.optional_str(&p["appProtocol"]));
        ports.push(EndpointPort { name, protocol, port, app_protocol });
    }
    let mut endpoints = Vec::new();
    if address_type != AddressType::Fqdn {
        for (i, e) in read::array(&v["endpoints"]).iter().enumerate() {
            endpoints.extend(endpoint(r, i, e, address_type));
        }
    }
    let managed_by = meta.labels.get("endpointslice.kubernetes.io/managed-by").cloned();
    Some(EndpointSlice { meta, service, managed_by, address_type, ports, endpoints })
}

fn endpoint(r: &mut Reader<'_>, i: usize, e: &Value, family: AddressType) -> Option<Endpoint> {
    let mut addresses = Vec::new();
    for (j, a) in read::array(&e["addresses"]).iter().enumerate() {
        let field = format!("endpoints[{i}].addresses[{j}]");
        let Some(ip) = r.ip(&field, a) else { continue };
        if ip.is_ipv4() != (family == AddressType::V4) {
            r.problem(&field, &format!("{ip} is not of the slice's addressType"));
        } else if unusable_endpoint(&ip) {
            r.problem(&field, &format!("{ip} may not be in the loopback, link-local, multicast or unspecified range"));
        } else {
            addresses.push(ip);
        }
    }
    if addresses.is_empty() {
        return None;
    }
    let conditions = &e["conditions"];
    let ready = conditions["ready"].as_bool().unwrap_or(true);
    let target = &e["targetRef"];
    let is_pod = target["kind"].as_str() == Some("Pod");
    Some(Endpoint {
        addresses,
        ready,
        serving: conditions["serving"].as_bool().unwrap_or(ready),
        terminating: conditions["terminating"].as_bool().unwrap_or(false),
        hostname: r.optional_str(&e["hostname"]),
        node: r.optional_str(&e["nodeName"]),
        zone: r.optional_str(&e["zone"]),
        hint_zones: read::array(&e["hints"]["forZones"]).iter().filter_map(|z| r.optional_str(&z["name"])).collect(),
        hint_nodes: read::array(&e["hints"]["forNodes"]).iter().filter_map(|n| r.optional_str(&n["name"])).collect(),
        pod: is_pod.then(|| ObjectKey { namespace: r.str(&target["namespace"]), name: r.str(&target["name"]) }),
        pod_uid: if is_pod { r.optional_str(&target["uid"]) } else { None },
    })
}

fn node_fields(r: &mut Reader<'_>, v: &Value) -> Option<Node> {
    let meta = r.meta(v)?;
    let (spec, status) = (&v["spec"], &v["status"]);
    let mut addresses = Vec::new();
    for (i, a) in read::array(&status["addresses"]).iter().enumerate() {
        if matches!(a["type"].as_str(), Some("InternalIP" | "ExternalIP")) {
            addresses.extend(r.ip(&format!("status.addresses[{i}].address"), &a["address"]));
        }
    }
    let mut pod_cidrs = Vec::new();
    for (i, c) in read::array(&spec["podCIDRs"]).iter().enumerate() {
        pod_cidrs.extend(r.net(&format!("spec.podCIDRs[{i}]"), c));
    }
    if pod_cidrs.is_empty() && !spec["podCIDR"].is_null() {
        pod_cidrs.extend(r.net("spec.podCIDR", &spec["podCIDR"]));
    }
    let unschedulable = spec["unschedulable"].as_bool().unwrap_or(false)
        || read::array(&spec["taints"])
            .iter()
            .any(|t| matches!(t["effect"].as_str(), Some("NoSchedule" | "NoExecute")));
    Some(Node {
        zone: meta.labels.get("topology.kubernetes.io/zone").cloned(),
        ready: read::condition(status, "Ready").is_some_and(|c| c["status"] == "True"),
        meta,
        addresses,
        pod_cidrs,
        unschedulable,
    })
}

fn pod_fields(r: &mut Reader<'_>, v: &Value) -> Option<Pod> {
    let meta = r.meta(v)?;
    let (spec, status) = (&v["spec"], &v["status"]);
    let mut ips = Vec::new();
    for (i, ip) in read::array(&status["podIPs"]).iter().enumerate() {
        ips.extend(r.ip(&format!("status.podIPs[{i}].ip"), &ip["ip"]));
    }
    if ips.is_empty() && !read::empty(&status["podIP"]) {
        ips.extend(r.ip("status.podIP", &status["podIP"]));
    }
    let sidecars = read::array(&spec["initContainers"]).iter().filter(|c| c["restartPolicy"] == "Always");
    let mut ports = Vec::new();
    for (i, c) in sidecars.chain(read::array(&spec["containers"])).enumerate() {
        for (j, p) in read::array(&c["ports"]).iter().enumerate() {
            let field = format!("spec.containers[{i}].ports[{j}]");
            let protocol = r.protocol(&format!("{field}.protocol"), &p["protocol"]);
            let port = r.port(&format!("{field}.containerPort"), &p["containerPort"]);
            if let (Some(protocol), Some(port)) = (protocol, port) {
                ports.push(ContainerPort { name: r.str(&p["name"]), protocol, port });
            }
        }
    }
    let ready = read::condition(status, "Ready");
    let restarts =
        read::array(&status["containerStatuses"]).iter().filter_map(|c| c["restartCount"].as_u64()).max().unwrap_or(0);
    let reason = if ready.is_some_and(|c| c["status"] == "True") { String::new() } else { reason(status) };
    Some(Pod {
        meta,
        node: r.optional_str(&spec["nodeName"]),
        phase: match status["phase"].as_str() {
            Some("Running") => PodPhase::Running,
            Some("Succeeded") => PodPhase::Succeeded,
            Some("Failed") => PodPhase::Failed,
            Some("Unknown") => PodPhase::Unknown,
            _ => PodPhase::Pending,
        },
        ips,
        host_network: spec["hostNetwork"].as_bool().unwrap_or(false),
        ready: ready.is_some_and(|c| c["status"] == "True"),
        ready_since: r.str(ready.map_or(&Value::Null, |c| &c["lastTransitionTime"])),
        restarts: u32::try_from(restarts).unwrap_or(u32::MAX),
        node_selector: r.labels(&spec["nodeSelector"]),
        scheduler: r.str(&spec["schedulerName"]),
        gated: !read::array(&spec["schedulingGates"]).is_empty(),
        hostname: r.optional_str(&spec["hostname"]),
        subdomain: r.optional_str(&spec["subdomain"]),
        ports,
        has_readiness_probe: read::array(&spec["containers"]).iter().any(|c| c["readinessProbe"].is_object()),
        reason: r.share(&reason),
    })
}

/// Why a pod is not ready, from the most to the least telling part of its status.
fn reason(status: &Value) -> String {
    let said = |state: &Value| {
        let reason = state["reason"].as_str().filter(|r| !r.is_empty())?;
        Some(match state["message"].as_str().filter(|m| !m.is_empty()) {
            Some(message) => format!("{reason}: {message}"),
            None => match state["exitCode"].as_i64() {
                Some(code) => format!("{reason}: exit code {code}"),
                None => reason.to_string(),
            },
        })
    };
    for list in ["initContainerStatuses", "containerStatuses"] {
        for c in read::array(&status[list]) {
            let waiting = &c["state"]["waiting"];
            if let Some(text) = said(waiting).filter(|_| waiting["reason"] != "PodInitializing") {
                return text;
            }
            let ended = &c["state"]["terminated"];
            if let Some(text) = said(ended).filter(|_| ended["reason"] != "Completed") {
                return text;
            }
        }
    }
    if let Some(text) = said(status) {
        return text;
    }
    for kind in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
        if let Some(c) = read::condition(status, kind).filter(|c| c["status"] == "False")
            && let Some(text) = said(c)
        {
            return text;
        }
    }
    String::new()
}

#[cfg(test)]
mod tests;
