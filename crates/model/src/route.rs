//! Who a client reaches: the one place that decides, for every address a Service may be dialled at, which endpoints
//! answer, for traffic from inside and from outside the cluster. It follows the API documentation of Service and
//! EndpointSlice, KEP-1669 (terminating endpoints), KEP-2086 (internalTrafficPolicy), KEP-2433 and KEP-3015 (hints).
//! It knows nothing of kernels, and collisions between Services are its caller's affair.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::object::{
    AddressType, Endpoint, EndpointSlice, Exposure, IpFamily, Problem, Protocol, Service, ServicePort, TrafficPolicy,
    unusable_endpoint,
};

/// The Service is some other proxy's: <https://kubernetes.io/docs/reference/labels-annotations-taints/>
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The Service is headless whatever its clusterIP says; a proxy leaves it alone.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Annotation of a Service: how an endpoint is chosen for a new connection. See [`Algorithm`].
pub const BALANCING: &str = "portolan.dev/balancing";

/// How an endpoint is chosen among those that qualify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Algorithm {
    /// Each with the same probability.
    #[default]
    Random,
    /// One after the other, for each of the Service's addresses and ports by itself.
    RoundRobin,
}

impl Algorithm {
    /// The annotation's value.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "random" => Some(Self::Random),
            "round-robin" => Some(Self::RoundRobin),
            _ => None,
        }
    }
}

/// Where a client dials. Orders nodePorts after addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum At {
    Address(IpAddr),
    /// Any address of the node of this family.
    NodePort(IpFamily),
}

/// What a client may dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub at: At,
    pub protocol: Protocol,
    pub port: u16,
}

impl Frontend {
    pub fn family(&self) -> IpFamily {
        match &self.at {
            At::Address(ip) => IpFamily::of(ip),
            At::NodePort(family) => *family,
        }
    }
}

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.at {
            At::Address(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port)?,
            At::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port)?,
            At::NodePort(family) => write!(f, "nodePort {} {}", family.as_str(), self.port)?,
        }
        write!(f, "/{}", self.protocol)
    }
}

/// Where an endpoint listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub ip: IpAddr,
    pub port: u16,
}

/// What happens to a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To one of these, chosen as [`Route::algorithm`] says. Sorted, without duplicates, never empty.
    Balance(Arc<[Backend]>),
    /// Silently dropped: `Local` policy and no endpoint on this node.
    Drop,
    /// Refused at once: no endpoints anywhere.
    Reject,
}

impl Verdict {
    pub fn backends(&self) -> &[Backend] {
        match self {
            Self::Balance(b) => b,
            _ => &[],
        }
    }
}

/// Which connections get the node's address as their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Those from outside the cluster CIDRs: a ClusterIP.
    Foreign,
    /// All: nodePort, load balancer and external addresses under `externalTrafficPolicy: Cluster`.
    Always,
    /// Only the node's own: `externalTrafficPolicy: Local` keeps the client's address.
    Node,
}

/// One address a Service answers at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub frontend: Frontend,
    /// Name of the Service's port; empty when it has none.
    pub port_name: Arc<str>,
    /// For pods and for the node itself.
    pub inside: Verdict,
    /// For everybody else, when that differs.
    pub outside: Option<Verdict>,
    pub masquerade: Masquerade,
    /// `sessionAffinity: ClientIP`: the timeout in seconds.
    pub affinity: Option<u32>,
    pub algorithm: Algorithm,
    /// Clients that may connect, sorted; empty allows everyone.
    pub source_ranges: Vec<IpNet>,
}

/// All routes of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Sorted by frontend, each frontend once.
    pub routes: Vec<Route>,
    /// Endpoints that may run on this node: the only ones that can reach themselves through the Service. Sorted.
    pub local: Vec<IpAddr>,
    /// Addresses of a Service that some other proxy serves. Sorted.
    pub elsewhere: Vec<IpAddr>,
    pub problems: Vec<Problem>,
}

/// What the decision needs to know of the node that makes it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeFacts {
    pub name: Arc<str>,
    pub zone: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// `spec.externalIPs` that are honoured. None by default: any user who may write a Service could otherwise take
    /// over any address (CVE-2020-8554).
    pub external_ips: Vec<IpNet>,
}

/// Every address this Service answers at on this node, and what happens there.
pub fn routes(service: &Service, slices: &[Arc<EndpointSlice>], node: &NodeFacts, options: &Options) -> Routes {
    let mut out = Routes::default();
    let labels = &service.meta.labels;
    if service.cluster_ips().is_empty() || labels.contains_key(HEADLESS_LABEL) {
        return out;
    }
    if labels.contains_key(SERVICE_PROXY_NAME) {
        out.elsewhere.extend(service.cluster_ips());
        out.elsewhere.sort();
        return out;
    }
    let algorithm = algorithm(service, &mut out.problems);
    let mut routes = BTreeMap::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        if !service.cluster_ips().iter().any(|ip| IpFamily::of(ip) == family) {
            continue;
        }
        for port in &service.ports {
            let candidates = candidates(service, port, slices, family);
            let reach = reach(service, &candidates, node);
            let local = candidates.iter().filter(|(_, e)| on_node(e, node) != Some(false)).map(|(b, _)| b.ip);
            out.local.extend(local);
            for mut route in port_routes(service, port, family, &reach, options) {
                route.algorithm = algorithm;
                if routes.insert(route.frontend, route.clone()).is_some() {
                    out.problems.push(Problem {
                        kind: "Service",
                        object: service.meta.key.clone(),
                        field: "spec.ports".into(),
                        message: format!("{} is claimed by more than one port", route.frontend),
                    });
                }
            }
        }
    }
    out.routes = routes.into_values().collect();
    out.local.sort();
    out.local.dedup();
    out
}

fn algorithm(service: &Service, problems: &mut Vec<Problem>) -> Algorithm {
    let Some(value) = service.meta.annotations.get(BALANCING) else { return Algorithm::default() };
    Algorithm::parse(value).unwrap_or_else(|| {
        problems.push(Problem {
            kind: "Service",
            object: service.meta.key.clone(),
            field: format!("metadata.annotations[{BALANCING}]"),
            message: format!("{value:?} is none of \"random\" and \"round-robin\"; balanced at random"),
        });
        Algorithm::default()
    })
}

/// Endpoints a port may lead to, each address and port once. The same endpoint in several slices counts as the most
/// able of its copies, so that neither order nor a half-moved slice matters.
fn candidates<'a>(
    service: &Service,
    port: &ServicePort,
    slices: &'a [Arc<EndpointSlice>],
    family: IpFamily,
) -> BTreeMap<Backend, &'a Endpoint> {
    let mut out: BTreeMap<Backend, &Endpoint> = BTreeMap::new();
    let wanted = match family {
        IpFamily::V4 => AddressType::V4,
        IpFamily::V6 => AddressType::V6,
    };
    for slice in slices.iter().filter(|s| s.address_type == wanted && s.service == service.meta.key) {
        for p in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            let number = p.port.unwrap_or(port.port);
            for endpoint in &slice.endpoints {
                let Some(ip) = endpoint.addresses.first() else { continue };
                if number == 0 || IpFamily::of(ip) != family || unusable_endpoint(ip) {
                    continue;
                }
                let known = out.entry(Backend { ip: *ip, port: number }).or_insert(endpoint);
                if ability(endpoint) > ability(known) {
                    *known = endpoint;
                }
            }
        }
    }
    out
}

/// Total order over copies of one endpoint.
fn ability(e: &Endpoint) -> impl Ord + '_ {
    (e.ready, e.serving, e.terminating, e.node.is_some(), &e.node, &e.zone, &e.hint_nodes, &e.hint_zones)
}

fn on_node(e: &Endpoint, node: &NodeFacts) -> Option<bool> {
    e.node.as_ref().map(|n| *n == node.name)
}

/// The endpoints of one port by policy.
struct Reach {
    /// `Cluster` policy.
    cluster: Arc<[Backend]>,
    /// `Local` policy; only filled when some policy of the Service is `Local`.
    local: Arc<[Backend]>,
    /// Some endpoint somewhere could serve: then "none here" is a drop and not a refusal.
    any: bool,
}

fn reach(service: &Service, candidates: &BTreeMap<Backend, &Endpoint>, node: &NodeFacts) -> Reach {
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Arc<[Backend]> {
        candidates.iter().filter(|(_, e)| wanted(e)).map(|(b, _)| *b).collect()
    };
    let draining = |e: &Endpoint| !e.ready && e.serving && e.terminating;
    let topology = topology(candidates, node);
    let mut cluster = pick(&|e| e.ready && topology.admits(e, node));
    if cluster.is_empty() {
        cluster = pick(&draining);
    }
    let uses_local = service.internal_policy == TrafficPolicy::Local || service.external_policy == TrafficPolicy::Local;
    let mut local = Arc::from([]);
    if uses_local {
        let here = |e: &Endpoint| on_node(e, node) == Some(true);
        local = pick(&|e| e.ready && here(e));
        if local.is_empty() {
            local = pick(&|e| draining(e) && here(e));
        }
    }
    let any = candidates.values().any(|e| e.ready || draining(e));
    Reach { cluster, local, any }
}

#[derive(Clone, Copy)]
enum Topology {
    Anywhere,
    Zone,
    Node,
}

impl Topology {
    fn admits(self, e: &Endpoint, node: &NodeFacts) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Zone => node.zone.as_ref().is_some_and(|z| e.hint_zones.contains(z)),
            Self::Node => e.hint_nodes.contains(&node.name),
        }
    }
}

/// Hints count only when every ready endpoint has them and at least one names this node (or its zone).
fn topology(candidates: &BTreeMap<Backend, &Endpoint>, node: &NodeFacts) -> Topology {
    let ready = || candidates.values().filter(|e| e.ready);
    let by = |mode: Topology| ready().any(|e| mode.admits(e, node));
    if ready().all(|e| !e.hint_nodes.is_empty()) && by(Topology::Node) {
        Topology::Node
    } else if ready().all(|e| !e.hint_zones.is_empty()) && by(Topology::Zone) {
        Topology::Zone
    } else {
        Topology::Anywhere
    }
}

fn verdict(backends: &Arc<[Backend]>, any: bool) -> Verdict {
    match (backends.is_empty(), any) {
        (false, _) => Verdict::Balance(backends.clone()),
        (true, true) => Verdict::Drop,
        (true, false) => Verdict::Reject,
    }
}

fn port_routes(
    service: &Service,
    port: &ServicePort,
    family: IpFamily,
    reach: &Reach,
    options: &Options,
) -> Vec<Route> {
    let mut out = Vec::new();
    let route = |at, number, inside, outside, masquerade, source_ranges| Route {
        frontend: Frontend { at, protocol: port.protocol, port: number },
        port_name: port.name.clone(),
        inside,
        outside,
        masquerade,
        affinity: service.affinity,
        algorithm: Algorithm::default(),
        source_ranges,
    };
    let ours = |ip: &IpAddr| IpFamily::of(ip) == family;
    let internal = match service.internal_policy {
        TrafficPolicy::Cluster => verdict(&reach.cluster, reach.any),
        TrafficPolicy::Local => verdict(&reach.local, reach.any),
    };
    for ip in service.cluster_ips().iter().filter(|ip| ours(ip)) {
        out.push(route(At::Address(*ip), port.port, internal.clone(), None, Masquerade::Foreign, Vec::new()));
    }
    let everywhere = verdict(&reach.cluster, reach.any);
    let (outside, masquerade) = match service.external_policy {
        TrafficPolicy::Cluster => (None, Masquerade::Always),
        TrafficPolicy::Local if everywhere == Verdict::Reject => (None, Masquerade::Node),
        TrafficPolicy::Local => (Some(verdict(&reach.local, true)), Masquerade::Node),
    };
    let external = |at, number, ranges| route(at, number, everywhere.clone(), outside.clone(), masquerade, ranges);
    if let (Some(number), false) = (port.node_port, service.exposure == Exposure::None) {
        out.push(external(At::NodePort(family), number, Vec::new()));
    }
    let ranges = match &service.exposure {
        Exposure::LoadBalancer(lb) => source_ranges(&lb.source_ranges, family),
        _ => Vec::new(),
    };
    for ingress in service.ingress_ips().filter(|i| ours(&i.ip) && !i.proxy) {
        out.push(external(At::Address(ingress.ip), port.port, ranges.clone()));
    }
    for ip in service.external_ips.iter().filter(|ip| ours(ip)) {
        if options.external_ips.iter().any(|net| net.contains(ip)) {
            out.push(external(At::Address(*ip), port.port, Vec::new()));
        }
    }
    // Two kinds of address that coincide (an external IP that is also the load balancer's) are one frontend.
    out.sort_by_key(|r| r.frontend);
    out.dedup_by_key(|r| r.frontend);
    out
}

/// Ranges of this family, widest only, without overlaps: an interval set takes no others. A Service whose ranges are
/// all of the other family admits nobody of this one, which an impossible range says.
fn source_ranges(ranges: &[IpNet], family: IpFamily) -> Vec<IpNet> {
    if ranges.is_empty() {
        return Vec::new();
    }
    let own: Vec<IpNet> = ranges.iter().map(IpNet::trunc).filter(|r| IpFamily::of(&r.addr()) == family).collect();
    if own.is_empty() {
        let nobody: IpAddr = match family {
            IpFamily::V4 => IpAddr::from([0, 0, 0, 0]),
            IpFamily::V6 => IpAddr::from([0u8; 16]),
        };
        return vec![IpNet::from(nobody)];
    }
    let mut out = IpNet::aggregate(&own);
    out.sort();
    out
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
