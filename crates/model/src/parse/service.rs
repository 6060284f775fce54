//! Reading a Service.

use std::net::IpAddr;

use serde_json::Value;

use super::read::{Reader, array, empty};
use crate::object::{
    Addressing, Exposure, Ingress, IpFamily, LoadBalancer, Service, ServicePort, TargetPort, TrafficDistribution,
    TrafficPolicy,
};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is not given: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

pub(super) fn service(r: &mut Reader<'_>, v: &Value) -> Option<Service> {
    let meta = r.meta(v)?;
    let (spec, status) = (&v["spec"], &v["status"]);
    let kind = spec["type"].as_str().filter(|t| !t.is_empty()).unwrap_or("ClusterIP");
    let addressing = addressing(r, spec, kind)?;
    let exposure = match kind {
        "NodePort" => Exposure::NodePort,
        "LoadBalancer" => Exposure::LoadBalancer(load_balancer(r, spec, status)),
        _ => Exposure::None,
    };
    let exposed = exposure != Exposure::None;
    let mut external_ips = Vec::new();
    for (i, ip) in array(&spec["externalIPs"]).iter().enumerate() {
        external_ips.extend(r.ip(&format!("spec.externalIPs[{i}]"), ip));
    }
    let families = families(r, spec, &addressing);
    let selector = Some(r.labels(&spec["selector"])).filter(|s| !s.is_empty());
    let affinity = (spec["sessionAffinity"] == "ClientIP").then(|| {
        let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
        seconds.and_then(|s| u32::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(DEFAULT_AFFINITY_SECONDS)
    });
    let distribution = match spec["trafficDistribution"].as_str() {
        None | Some("") => None,
        Some("PreferClose" | "PreferSameZone") => Some(TrafficDistribution::PreferSameZone),
        Some("PreferSameNode") => Some(TrafficDistribution::PreferSameNode),
        Some(other) => {
            r.unsupported("spec.trafficDistribution", other, &["PreferClose", "PreferSameNode", "PreferSameZone"]);
            None
        }
    };
    Some(Service {
        meta,
        addressing,
        ports: ports(r, spec, exposed),
        exposure,
        selector,
        affinity,
        internal_policy: policy(r, spec, "internalTrafficPolicy"),
        external_policy: policy(r, spec, "externalTrafficPolicy"),
        external_ips,
        health_check_node_port: match &spec["healthCheckNodePort"] {
            Value::Null => None,
            n if n.as_i64() == Some(0) => None,
            n => r.port("spec.healthCheckNodePort", n),
        },
        publish_not_ready: spec["publishNotReadyAddresses"].as_bool().unwrap_or(false),
        families,
        distribution,
    })
}

fn addressing(r: &mut Reader<'_>, spec: &Value, kind: &str) -> Option<Addressing> {
    if kind == "ExternalName" {
        let name = spec["externalName"].as_str().unwrap_or_default().trim_end_matches('.');
        if name.is_empty() {
            r.problem("spec.externalName", "Required value");
            return None;
        }
        return Some(Addressing::ExternalName(r.share(name)));
    }
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        r.unsupported("spec.type", kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
        return None;
    }
    let list = array(&spec["clusterIPs"]);
    let (field, list) = match list {
        [] if empty(&spec["clusterIP"]) => {
            r.problem("spec.clusterIPs[0]", "Required value: the Service has no address yet");
            return None;
        }
        [] => ("spec.clusterIP", std::slice::from_ref(&spec["clusterIP"])),
        list => ("spec.clusterIPs", list),
    };
    if list[0] == "None" {
        return Some(Addressing::Headless);
    }
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in list.iter().take(2) {
        if let Some(ip) = r.ip(field, ip)
            && !ips.iter().any(|known| known.is_ipv4() == ip.is_ipv4())
        {
            ips.push(ip);
        }
    }
    (!ips.is_empty()).then_some(Addressing::ClusterIp(ips))
}

fn load_balancer(r: &mut Reader<'_>, spec: &Value, status: &Value) -> LoadBalancer {
    let mut lb = LoadBalancer { class: r.optional_str(&spec["loadBalancerClass"]), ..LoadBalancer::default() };
    for (i, ingress) in array(&status["loadBalancer"]["ingress"]).iter().enumerate() {
        if empty(&ingress["ip"]) {
            continue; // a hostname: nothing to program
        }
        if let Some(ip) = r.ip(&format!("status.loadBalancer.ingress[{i}].ip"), &ingress["ip"]) {
            lb.ingress.push(Ingress { ip, proxy: ingress["ipMode"] == "Proxy" });
        }
    }
    for (i, range) in array(&spec["loadBalancerSourceRanges"]).iter().enumerate() {
        lb.source_ranges.extend(r.net(&format!("spec.loadBalancerSourceRanges[{i}]"), range));
    }
    if lb.source_ranges.is_empty() && !array(&spec["loadBalancerSourceRanges"]).is_empty() {
        // Every range was unreadable. Open to everyone would be the opposite of what was asked for.
        lb.source_ranges.push(ipnet::IpNet::from(IpAddr::from([0, 0, 0, 0])));
    }
    if !empty(&spec["loadBalancerIP"]) {
        lb.requested = r.ip("spec.loadBalancerIP", &spec["loadBalancerIP"]);
    }
    lb
}

fn ports(r: &mut Reader<'_>, spec: &Value, exposed: bool) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, p) in array(&spec["ports"]).iter().enumerate() {
        let protocol = r.protocol(&format!("spec.ports[{i}].protocol"), &p["protocol"]);
        let port = r.port(&format!("spec.ports[{i}].port"), &p["port"]);
        let (Some(protocol), Some(port)) = (protocol, port) else { continue };
        let target = match &p["targetPort"] {
            Value::String(s) if s.is_empty() => TargetPort::Number(port),
            Value::String(s) => match s.parse::<u16>() {
                Ok(n) if n > 0 => TargetPort::Number(n),
                _ => TargetPort::Name(r.share(s)),
            },
            Value::Null => TargetPort::Number(port),
            n if n.as_i64() == Some(0) => TargetPort::Number(port),
            n => match r.port(&format!("spec.ports[{i}].targetPort"), n) {
                Some(n) => TargetPort::Number(n),
                None => continue,
            },
        };
        let node_port = match &p["nodePort"] {
            _ if !exposed => None,
            Value::Null => None,
            n if n.as_i64() == Some(0) => None,
            n => r.port(&format!("spec.ports[{i}].nodePort"), n),
        };
        if ports.iter().any(|other| other.port == port && other.protocol == protocol) {
            r.problem(&format!("spec.ports[{i}]"), &format!("Duplicate value: port {port}/{protocol}"));
            continue;
        }
        let (name, app_protocol) = (r.str(&p["name"]), r.optional_str(&p["appProtocol"]));
        ports.push(ServicePort { name, protocol, port, target, node_port, app_protocol });
    }
    ports
}

fn policy(r: &mut Reader<'_>, spec: &Value, field: &str) -> TrafficPolicy {
    match spec[field].as_str() {
        Some("Local") => TrafficPolicy::Local,
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some(other) => {
            r.unsupported(&format!("spec.{field}"), other, &["Cluster", "Local"]);
            TrafficPolicy::Cluster
        }
    }
}

/// `spec.ipFamilies`; without them the families of the addresses, and IPv4 when there are none.
fn families(r: &mut Reader<'_>, spec: &Value, addressing: &Addressing) -> Vec<IpFamily> {
    let mut families = Vec::new();
    for (i, f) in array(&spec["ipFamilies"]).iter().enumerate() {
        let family = match f.as_str() {
            Some("IPv4") => IpFamily::V4,
            Some("IPv6") => IpFamily::V6,
            other => {
                r.unsupported(&format!("spec.ipFamilies[{i}]"), other.unwrap_or_default(), &["IPv4", "IPv6"]);
                continue;
            }
        };
        if !families.contains(&family) {
            families.push(family);
        }
    }
    if families.is_empty()
        && let Addressing::ClusterIp(ips) = addressing
    {
        families = ips.iter().map(IpFamily::of).collect();
    }
    if families.is_empty() {
        families.push(IpFamily::V4);
    }
    families
}
