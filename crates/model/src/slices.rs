//! Which pods stand behind a Service, and how they are spread over EndpointSlices (KEP-752) and the older Endpoints.
//! Decides the content of every slice; leaves those alone that are right already, because each rewrite is read by every
//! node. It refuses to know how slices are written and who reads them.

pub mod endpoints;
pub mod mirror;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde_json::{Value, json};

use crate::{
    diff::Changes,
    map::Map,
    object::{
        AddressType, Addressing, Endpoint, EndpointPort, EndpointSlice, IpFamily, Labels, Node, ObjectKey, Pod,
        Service, ServicePort, TargetPort, TrafficDistribution, selects, unusable_endpoint,
    },
};

/// Endpoints in one slice (kube-controller-manager's `--max-endpoints-per-slice`).
pub const MAX_ENDPOINTS: usize = 100;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] on slices made from a selector.
pub const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A slice to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceSpec {
    /// The slice to replace; `None` for a new one.
    pub replaces: Option<Arc<EndpointSlice>>,
    pub service: ObjectKey,
    pub labels: Labels,
    pub address_type: AddressType,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// Endpoints with the same ports and address type may share slices.
type Groups = BTreeMap<(AddressType, Vec<EndpointPort>), Vec<Endpoint>>;

/// The writes that make the slices of `service` right. `pods` are those of its namespace, `existing` all its slices;
/// only those of this controller are touched. A Service without a selector keeps none of ours, so that addresses
/// somebody else publishes never mix with those of former pods.
pub fn reconcile<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a Arc<Pod>>,
    nodes: &Map<ObjectKey, Arc<Node>>,
    existing: &[Arc<EndpointSlice>],
) -> Changes<SliceSpec> {
    let ours: Vec<_> =
        existing.iter().filter(|s| s.managed_by.as_deref() == Some(CONTROLLER) && !s.meta.deleting).cloned().collect();
    let Some(selector) = active_selector(service) else {
        return Changes { delete: ours.iter().map(|s| s.meta.key.clone()).collect(), ..Changes::default() };
    };
    let mut groups = Groups::new();
    for pod in pods.filter(|p| selects(selector, &p.meta.labels) && !p.terminal()) {
        for family in &service.families {
            let Some(ip) = pod.ips.iter().find(|ip| IpFamily::of(ip) == *family && !unusable_endpoint(ip)) else {
                continue;
            };
            let group = groups.entry((address_type(*family), resolve_ports(service, pod))).or_default();
            group.push(endpoint(service, pod, *ip, nodes));
        }
    }
    let families = service.families.iter().map(|f| address_type(*f)).collect();
    let labels = labels(service, CONTROLLER);
    let service = &service.meta.key;
    Arrangement { service, labels, changes: Changes::default() }.arrange(groups, &families, ours)
}

/// The selector if endpoints follow from it at all: an ExternalName is an alias, whatever else it says.
pub fn active_selector(service: &Service) -> Option<&Labels> {
    match service.addressing {
        Addressing::ExternalName(_) => None,
        _ => service.selector.as_ref(),
    }
}

fn address_type(family: IpFamily) -> AddressType {
    match family {
        IpFamily::V4 => AddressType::V4,
        IpFamily::V6 => AddressType::V6,
    }
}

/// The number a Service port means in one pod: a name is looked up among its containers' ports of the same protocol.
pub fn resolve(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(n) => Some(*n),
        TargetPort::Name(name) => {
            pod.ports.iter().find(|p| p.name == *name && p.protocol == port.protocol).map(|p| p.port)
        }
    }
}

/// The Service's ports as this pod serves them; a port whose name the pod does not have is left out.
fn resolve_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let mut ports: Vec<_> = service
        .ports
        .iter()
        .filter_map(|p| {
            Some(EndpointPort {
                name: p.name.clone(),
                protocol: p.protocol,
                port: Some(resolve(p, pod)?),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

/// The pod has a DNS name of its own below the Service.
fn hostname(service: &Service, pod: &Pod) -> Option<Arc<str>> {
    pod.hostname.clone().filter(|_| pod.subdomain.as_ref() == Some(&service.meta.key.name))
}

fn endpoint(service: &Service, pod: &Pod, ip: IpAddr, nodes: &Map<ObjectKey, Arc<Node>>) -> Endpoint {
    let zone = pod.node.as_ref().and_then(|n| nodes.get(&ObjectKey::new("", n.clone()))).and_then(|n| n.zone.clone());
    let ready = service.publish_not_ready || (pod.ready && !pod.meta.deleting);
    let hinted = service.distribution.filter(|_| ready);
    Endpoint {
        addresses: vec![ip],
        ready,
        serving: pod.ready,
        terminating: pod.meta.deleting,
        hostname: hostname(service, pod),
        hint_zones: zone.iter().filter(|_| hinted.is_some()).cloned().collect(),
        hint_nodes: match hinted {
            Some(TrafficDistribution::PreferSameNode) => pod.node.iter().cloned().collect(),
            _ => Vec::new(),
        },
        node: pod.node.clone(),
        zone,
        pod: Some(pod.meta.key.clone()),
        pod_uid: Some(pod.meta.uid.clone()).filter(|u| !u.is_empty()),
    }
}

/// The Service's own labels and those by which slices are found.
fn labels(service: &Service, managed_by: &str) -> Labels {
    let mut labels = service.meta.labels.clone();
    labels.remove(HEADLESS);
    if service.headless() {
        labels.insert(HEADLESS.into(), "".into());
    }
    labels.insert(SERVICE_NAME.into(), service.meta.key.name.clone());
    labels.insert(MANAGED_BY.into(), managed_by.into());
    labels
}

/// What makes two endpoints the same one at two moments.
fn identity(e: &Endpoint) -> (IpAddr, Option<&ObjectKey>) {
    (e.addresses[0], e.pod.as_ref())
}

struct Arrangement<'a> {
    service: &'a ObjectKey,
    labels: Labels,
    changes: Changes<SliceSpec>,
}

impl Arrangement<'_> {
    /// Every address type in `families` ends with at least one slice, if only an empty one: it tells readers that
    /// somebody is looking after this Service.
    fn arrange(
        mut self,
        mut groups: Groups,
        families: &BTreeSet<AddressType>,
        existing: Vec<Arc<EndpointSlice>>,
    ) -> Changes<SliceSpec> {
        for family in families {
            if !groups.keys().any(|(t, _)| t == family) {
                groups.insert((*family, Vec::new()), Vec::new());
            }
        }
        let mut by_group: BTreeMap<(AddressType, Vec<EndpointPort>), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
        let mut spare: Vec<Arc<EndpointSlice>> = Vec::new();
        for slice in existing {
            let mut ports = slice.ports.clone();
            ports.sort();
            let group = (slice.address_type, ports);
            if groups.contains_key(&group) { by_group.entry(group).or_default().push(slice) } else { spare.push(slice) }
        }
        let mut new = Vec::new();
        for (group, endpoints) in groups {
            let slices = by_group.remove(&group).unwrap_or_default();
            self.group(group, endpoints, slices, &mut spare, &mut new);
        }
        // A slice nobody needs becomes one somebody needs: one write instead of two, and no moment without either.
        for mut spec in new {
            match spare.iter().position(|s| s.address_type == spec.address_type) {
                Some(i) => {
                    spec.replaces = Some(spare.remove(i));
                    self.changes.update.push(spec);
                }
                None => self.changes.create.push(spec),
            }
        }
        self.changes.delete.extend(spare.into_iter().map(|s| s.meta.key.clone()));
        self.changes
    }

    fn spec(&self, group: &(AddressType, Vec<EndpointPort>), endpoints: Vec<Endpoint>) -> SliceSpec {
        SliceSpec {
            replaces: None,
            service: self.service.clone(),
            labels: self.labels.clone(),
            address_type: group.0,
            ports: group.1.clone(),
            endpoints,
        }
    }

    fn group(
        &mut self,
        group: (AddressType, Vec<EndpointPort>),
        endpoints: Vec<Endpoint>,
        slices: Vec<Arc<EndpointSlice>>,
        spare: &mut Vec<Arc<EndpointSlice>>,
        new: &mut Vec<SliceSpec>,
    ) {
        let placeholder = endpoints.is_empty();
        let mut wanted: BTreeMap<_, Endpoint> = BTreeMap::new();
        for e in endpoints {
            wanted.insert((e.addresses[0], e.pod.clone()), e);
        }
        // 1. What each slice keeps, with its endpoints brought up to date in place.
        let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
        for slice in slices {
            let keeps = slice.endpoints.iter().filter_map(|e| {
                let (ip, pod) = identity(e);
                wanted.remove(&(ip, pod.cloned()))
            });
            let mut keeps: Vec<_> = keeps.collect();
            let overflow = keeps.split_off(keeps.len().min(MAX_ENDPOINTS));
            wanted.extend(overflow.into_iter().map(|e| ((e.addresses[0], e.pod.clone()), e)));
            kept.push((slice, keeps));
        }
        // 2. New endpoints go where a write happens anyway, fullest slice first; then into one slice with room for the
        //    rest; then into new slices.
        let mut rest: Vec<Endpoint> = wanted.into_values().collect();
        let differs = |slice: &EndpointSlice, now: &[Endpoint], labels: &Labels| {
            slice.endpoints != now || slice.meta.labels != *labels || slice.ports != group.1
        };
        let mut open: Vec<usize> = (0..kept.len())
            .filter(|i| differs(&kept[*i].0, &kept[*i].1, &self.labels) && !kept[*i].1.is_empty())
            .collect();
        open.sort_by_key(|i| std::cmp::Reverse(kept[*i].1.len()));
        for i in open {
            let room = MAX_ENDPOINTS - kept[i].1.len();
            kept[i].1.extend(rest.drain(..room.min(rest.len())));
        }
        let tail = rest.len() % MAX_ENDPOINTS;
        if tail > 0 {
            let fit =
                kept.iter_mut().filter(|(_, now)| MAX_ENDPOINTS - now.len() >= tail).max_by_key(|(_, now)| now.len());
            if let Some((_, now)) = fit {
                now.extend(rest.drain(rest.len() - tail..));
            }
        }
        // 3. Write what changed; an empty slice is spare, but for the one placeholder.
        let mut have_placeholder = false;
        for (slice, now) in kept {
            if now.is_empty() && (!placeholder || have_placeholder) {
                spare.push(slice);
                continue;
            }
            have_placeholder |= now.is_empty();
            if differs(&slice, &now, &self.labels) {
                let mut spec = self.spec(&group, now);
                spec.replaces = Some(slice);
                self.changes.update.push(spec);
            }
        }
        if placeholder && !have_placeholder {
            new.push(self.spec(&group, Vec::new()));
        }
        while !rest.is_empty() {
            let chunk = rest.drain(..rest.len().min(MAX_ENDPOINTS)).collect();
            new.push(self.spec(&group, chunk));
        }
    }
}

/// The owner of a slice, for its `ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceOwner<'a> {
    pub kind: &'static str,
    pub name: &'a str,
    pub uid: &'a str,
}

/// The slice as the API takes it.
pub fn object(spec: &SliceSpec, owner: &SliceOwner<'_>) -> Value {
    let mut metadata = json!({
        "namespace": &*spec.service.namespace,
        "labels": spec.labels,
        "ownerReferences": [{"apiVersion": "v1", "kind": owner.kind, "name": owner.name, "uid": owner.uid,
            "controller": true, "blockOwnerDeletion": true}],
    });
    match &spec.replaces {
        Some(slice) => {
            metadata["name"] = (&*slice.meta.key.name).into();
            metadata["uid"] = (&*slice.meta.uid).into();
            metadata["generateName"] = format!("{}-", spec.service.name).into();
        }
        None => metadata["generateName"] = format!("{}-", spec.service.name).into(),
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": match spec.address_type { AddressType::V4 => "IPv4", AddressType::V6 => "IPv6", AddressType::Fqdn => "FQDN" },
        "ports": spec.ports.iter().map(port_object).collect::<Vec<_>>(),
        "endpoints": spec.endpoints.iter().map(endpoint_object).collect::<Vec<_>>(),
    })
}

fn port_object(p: &EndpointPort) -> Value {
    let mut v = json!({"name": &*p.name, "protocol": p.protocol.as_str()});
    if let Some(port) = p.port {
        v["port"] = port.into();
    }
    if let Some(app) = &p.app_protocol {
        v["appProtocol"] = (&**app).into();
    }
    v
}

fn endpoint_object(e: &Endpoint) -> Value {
    let mut v = json!({
        "addresses": e.addresses,
        "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
    });
    for (field, value) in [("hostname", &e.hostname), ("nodeName", &e.node), ("zone", &e.zone)] {
        if let Some(value) = value {
            v[field] = (&**value).into();
        }
    }
    let named = |list: &[Arc<str>]| list.iter().map(|n| json!({"name": &**n})).collect::<Vec<_>>();
    if !e.hint_zones.is_empty() {
        v["hints"]["forZones"] = named(&e.hint_zones).into();
    }
    if !e.hint_nodes.is_empty() {
        v["hints"]["forNodes"] = named(&e.hint_nodes).into();
    }
    if let Some(pod) = &e.pod {
        v["targetRef"] = json!({"kind": "Pod", "namespace": &*pod.namespace, "name": &*pod.name});
        if let Some(uid) = &e.pod_uid {
            v["targetRef"]["uid"] = (&**uid).into();
        }
    }
    v
}

#[cfg(test)]
mod tests;
