//! The Kubernetes objects that decide where a connection goes, parsed once (see [`crate::parse`]) into shapes in which
//! what the API forbids cannot be said. Field names are the API's; units are in the names or the documentation.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub use ipnet::IpNet;

/// Namespace and name of an object; cluster-scoped objects have an empty namespace. Orders by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// The part of `metadata` that meaning depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub key: ObjectKey,
    pub uid: Arc<str>,
    /// `metadata.generation`, 0 when the kind has none.
    pub generation: i64,
    /// RFC 3339, as in the API; sorts by age. Empty when unknown.
    pub creation_timestamp: Arc<str>,
    pub labels: Labels,
    pub annotations: Labels,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// The owner with `controller: true`, if any: its kind and uid.
    pub controller: Option<(Arc<str>, Arc<str>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        match s {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// `spec.clusterIP` and `spec.type: ExternalName`: how a Service is reached from inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// One address, or two of different families. Never empty.
    ClusterIp(Vec<IpAddr>),
    /// `clusterIP: None`.
    Headless,
    /// `type: ExternalName`: a DNS name without the trailing dot.
    ExternalName(Arc<str>),
}

/// What `spec.type` adds to the ClusterIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    None,
    NodePort,
    LoadBalancer(LoadBalancer),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadBalancer {
    /// `status.loadBalancer.ingress` entries that carry an address.
    pub ingress: Vec<Ingress>,
    /// `spec.loadBalancerSourceRanges`; empty allows everyone.
    pub source_ranges: Vec<IpNet>,
    /// `spec.loadBalancerClass`
    pub class: Option<Arc<str>>,
    /// `spec.loadBalancerIP`
    pub requested: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    pub ip: IpAddr,
    /// `ipMode: Proxy`: the address belongs to something in front of the nodes, and is not to be short-circuited.
    pub proxy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    Cluster,
    Local,
}

/// `spec.trafficDistribution`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// `PreferClose` and `PreferSameZone` mean the same (KEP-3015).
    PreferSameZone,
    PreferSameNode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    /// A container port's name; it resolves per pod, and only with the same protocol.
    Name(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the only port has no name.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub target: TargetPort,
    pub node_port: Option<u16>,
    pub app_protocol: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub meta: Meta,
    pub addressing: Addressing,
    pub exposure: Exposure,
    /// `None` when there is no selector: somebody else writes the endpoints.
    pub selector: Option<Labels>,
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity: Option<u32>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    pub external_ips: Vec<IpAddr>,
    pub health_check_node_port: Option<u16>,
    pub publish_not_ready: bool,
    pub families: Vec<IpFamily>,
    pub distribution: Option<TrafficDistribution>,
}

impl Service {
    /// Empty for headless and ExternalName Services.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        match &self.addressing {
            Addressing::ClusterIp(ips) => ips,
            _ => &[],
        }
    }
    pub fn headless(&self) -> bool {
        matches!(self.addressing, Addressing::Headless)
    }
    pub fn ingress_ips(&self) -> impl Iterator<Item = &Ingress> {
        match &self.exposure {
            Exposure::LoadBalancer(lb) => lb.ingress.as_slice(),
            _ => &[],
        }
        .iter()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressType {
    V4,
    V6,
    Fqdn,
}

/// One port of a slice. `port: None` means "all ports" (API field documentation of EndpointPort).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: Option<u16>,
    pub app_protocol: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Consumers take the first (API field documentation); the parser refuses an endpoint without a usable one.
    pub addresses: Vec<IpAddr>,
    /// Conditions with the API's defaults applied: a missing `ready` is true, `serving` follows `ready`, `terminating` is false.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub hostname: Option<Arc<str>>,
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    pub hint_zones: Vec<Arc<str>>,
    pub hint_nodes: Vec<Arc<str>>,
    /// `targetRef` when it is a Pod.
    pub pod: Option<ObjectKey>,
    /// `targetRef.uid`: tells a re-created pod of the same name from the one before. Consumers of routes ignore it.
    pub pod_uid: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub meta: Meta,
    /// From the label `kubernetes.io/service-name`.
    pub service: ObjectKey,
    /// The label `endpointslice.kubernetes.io/managed-by`.
    pub managed_by: Option<Arc<str>>,
    pub address_type: AddressType,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub meta: Meta,
    /// `status.addresses` of type InternalIP and ExternalIP.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    pub ready: bool,
    pub unschedulable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub meta: Meta,
    pub node: Option<Arc<str>>,
    pub phase: PodPhase,
    /// `status.podIPs`
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    /// The Ready condition.
    pub ready: bool,
    /// RFC 3339 time of the Ready condition's last transition. Empty when unknown.
    pub ready_since: Arc<str>,
    /// Container restarts, the largest of the pod's containers.
    pub restarts: u32,
    /// `spec.nodeSelector`
    pub node_selector: Labels,
    /// `spec.schedulerName`
    pub scheduler: Arc<str>,
    /// `spec.schedulingGates` is not empty: not to be scheduled yet.
    pub gated: bool,
    pub hostname: Option<Arc<str>>,
    pub subdomain: Option<Arc<str>>,
    /// Of the containers and restartable init containers, in order.
    pub ports: Vec<ContainerPort>,
    /// At least one container has a readiness probe.
    pub has_readiness_probe: bool,
    /// Why it is not ready or not running, in the words of its status: "ImagePullBackOff: ...". Empty when nothing says.
    pub reason: Arc<str>,
}

impl Pod {
    /// Succeeded or Failed: never an endpoint again.
    pub fn terminal(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub meta: Meta,
    /// `spec.finalizers` is not empty: the contents are still to be removed once it is deleting.
    pub finalizers: bool,
}

/// Something in an object that could not be honoured. The good rest of the object is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: &'static str,
    pub object: ObjectKey,
    /// The API field, as kube-apiserver writes paths: `endpoints[3].addresses[0]`.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}: {}", self.kind, self.object, self.field, self.message)
    }
}

/// True for addresses that can never be an endpoint (loopback, link-local, multicast, unspecified, limited broadcast):
/// <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoints-v1/>
pub fn unusable_endpoint(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_unspecified()
                || *v4 == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_multicast()
                || *v6 == Ipv6Addr::UNSPECIFIED
                || (v6.segments()[0] & 0xffc0) == 0xfe80
        }
    }
}

/// Every selector entry is among the labels. An empty selector matches everything; callers treat "no selector" apart.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}
