//! Everything one Service adds to the zone, from the Service and its slices alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::Arc,
};

use smallvec::SmallVec;

use super::{Found, Name, RecordType, Records, Target, Zone, reason::Reason};
use crate::object::{Addressing, Endpoint, EndpointSlice, IpFamily, Protocol, Service};

/// One SRV record: an endpoint of [`ServiceNames`] (or the Service itself) and its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SrvEntry {
    endpoint: u32,
    pub port: u16,
}

impl SrvEntry {
    /// Two records of one set with the same number have the same target.
    pub fn target_number(&self) -> u32 {
        self.endpoint
    }
}

/// [`SrvEntry::endpoint`] of a record that points at the Service's own name.
const ITSELF: u32 = u32::MAX;

#[derive(Debug, PartialEq)]
struct EndpointName {
    /// The endpoint's hostname, or its address with dashes.
    label: Box<str>,
    /// `label` is a hostname somebody chose.
    chosen: bool,
    v4: SmallVec<[Ipv4Addr; 2]>,
    v6: SmallVec<[Ipv6Addr; 1]>,
}

#[derive(Debug, PartialEq)]
struct NamedPort {
    name: Arc<str>,
    protocol: Protocol,
    /// Its records in `ServiceNames::srv`.
    set: Range<usize>,
}

/// The names and records of one Service.
#[derive(Debug, PartialEq)]
pub struct ServiceNames {
    service: Arc<Service>,
    base: Box<[u8]>,
    alias: Option<Box<Name>>,
    v4: Box<[Ipv4Addr]>,
    v6: Box<[Ipv6Addr]>,
    /// By label.
    endpoints: Box<[EndpointName]>,
    srv: Box<[SrvEntry]>,
    ports: Box<[NamedPort]>,
}

/// Endpoints that have records: ready ones, or all of them when the Service says so.
fn published<'a>(
    service: &'a Service,
    slices: &'a [Arc<EndpointSlice>],
) -> impl Iterator<Item = (&'a EndpointSlice, &'a Endpoint, IpAddr)> {
    slices
        .iter()
        .flat_map(|s| s.endpoints.iter().map(move |e| (s.as_ref(), e)))
        .filter(|(_, e)| e.ready || service.publish_not_ready)
        .filter_map(|(s, e)| Some((s, e, *e.addresses.first()?)))
}

/// Endpoints whose address leads back to a name: the schema asks for headless Services; a chosen hostname counts too.
fn has_pointer(service: &Service, chosen: bool) -> bool {
    service.headless() || (chosen && !matches!(service.addressing, Addressing::ExternalName(_)))
}

/// The addresses with a PTR record to this Service or one of its endpoints. Sorted, no duplicates.
pub(super) fn reverse_addresses(service: &Service, slices: &[Arc<EndpointSlice>]) -> Vec<IpAddr> {
    let endpoints =
        published(service, slices).filter(|(_, e, _)| has_pointer(service, e.hostname.is_some())).map(|(_, _, ip)| ip);
    let mut all: Vec<_> = service.cluster_ips().iter().copied().chain(endpoints).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// `10.244.0.7` as `10-244-0-7`, `fd00::7` as `fd00--7`.
fn dashed(ip: &IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

impl ServiceNames {
    pub fn new(service: &Arc<Service>, slices: &[Arc<EndpointSlice>], zone: &Zone) -> Self {
        let key = &service.meta.key;
        let base = service_name(&key.namespace, &key.name, zone);
        let mut names = Self {
            service: service.clone(),
            base: base.wire().into(),
            alias: None,
            v4: Box::default(),
            v6: Box::default(),
            endpoints: Box::default(),
            srv: Box::default(),
            ports: Box::default(),
        };
        match &service.addressing {
            Addressing::ExternalName(target) => {
                names.alias = target.parse().ok().map(Box::new);
                return names;
            }
            Addressing::ClusterIp(ips) => {
                names.v4 = ips.iter().filter_map(v4).collect();
                names.v6 = ips.iter().filter_map(v6).collect();
                names.endpoints = endpoint_names(service, slices);
                names.set_ports(service.ports.iter().map(|p| (p.name.clone(), p.protocol, ITSELF, p.port)));
            }
            Addressing::Headless => {
                names.endpoints = endpoint_names(service, slices);
                let all = || published(service, slices).map(|(_, _, ip)| ip);
                names.v4 = all().filter_map(|ip| v4(&ip)).collect::<BTreeSet<_>>().into_iter().collect();
                names.v6 = all().filter_map(|ip| v6(&ip)).collect::<BTreeSet<_>>().into_iter().collect();
                let endpoints = std::mem::take(&mut names.endpoints);
                let records = published(service, slices).flat_map(|(slice, endpoint, ip)| {
                    let at = find(&endpoints, endpoint_label(endpoint, &ip).as_bytes());
                    slice.ports.iter().filter_map(move |p| Some((p.name.clone(), p.protocol, at? as u32, p.port?)))
                });
                names.set_ports(records);
                names.endpoints = endpoints;
            }
        }
        names
    }

    fn set_ports(&mut self, records: impl Iterator<Item = (Arc<str>, Protocol, u32, u16)>) {
        let mut by_port: BTreeMap<(Arc<str>, Protocol), BTreeSet<SrvEntry>> = BTreeMap::new();
        for (name, protocol, endpoint, port) in records {
            by_port.entry((name, protocol)).or_default().insert(SrvEntry { endpoint, port });
        }
        let mut srv = Vec::new();
        let ports = by_port.into_iter().map(|((name, protocol), set)| {
            let start = srv.len();
            srv.extend(set);
            NamedPort { name, protocol, set: start..srv.len() }
        });
        self.ports = ports.collect();
        self.srv = srv.into();
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// The Service's own name.
    pub fn target(&self) -> Target<'_> {
        Target { label: None, base: &self.base }
    }

    /// Where an SRV record points.
    pub fn srv_target(&self, entry: &SrvEntry) -> Target<'_> {
        let label = self.endpoints.get(entry.endpoint as usize).map(|e| e.label.as_ref());
        Target { label, base: &self.base }
    }

    /// The addresses of an SRV record's target.
    pub fn srv_addresses(&self, entry: &SrvEntry) -> (&[Ipv4Addr], &[Ipv6Addr]) {
        match self.endpoints.get(entry.endpoint as usize) {
            Some(e) => (&e.v4, &e.v6),
            None => (&self.v4, &self.v6),
        }
    }

    pub(super) fn alias(&self) -> Option<&Name> {
        self.alias.as_deref()
    }

    pub(super) fn own_addresses(&self) -> (&[Ipv4Addr], &[Ipv6Addr]) {
        (&self.v4, &self.v6)
    }

    pub(super) fn endpoint_addresses(&self) -> impl Iterator<Item = (&str, &[Ipv4Addr], &[Ipv6Addr])> {
        self.endpoints.iter().map(|e| (&*e.label, &*e.v4, &*e.v6))
    }

    /// The ports that have names.
    pub(super) fn named_ports(&self) -> impl Iterator<Item = (&str, Protocol, &[SrvEntry])> {
        let named = self.ports.iter().filter(|p| !p.name.is_empty());
        named.map(|p| (&*p.name, p.protocol, &self.srv[p.set.clone()]))
    }

    /// The PTR targets of an address.
    pub(super) fn pointers<'a>(&'a self, ip: &IpAddr, into: &mut SmallVec<[Target<'a>; 2]>) {
        if self.service.cluster_ips().contains(ip) {
            into.push(self.target());
        }
        let of_ip = |e: &&EndpointName| match ip {
            IpAddr::V4(ip) => e.v4.contains(ip),
            IpAddr::V6(ip) => e.v6.contains(ip),
        };
        let named = self.endpoints.iter().filter(|e| has_pointer(&self.service, e.chosen)).filter(of_ip);
        into.extend(named.map(|e| Target { label: Some(&e.label), base: &self.base }));
    }

    /// The Service exists and yet none of its names does: a headless one with nobody behind it (schema §2.4.1).
    fn is_void(&self) -> bool {
        self.service.headless() && self.endpoints.is_empty()
    }

    /// What `name` holds, of which the first `front` labels stand before the Service's.
    pub(super) fn find<'a>(&'a self, name: &'a Name, front: usize, t: RecordType) -> Found<'a> {
        if let Addressing::ExternalName(_) = self.service.addressing {
            return match (front, &self.alias) {
                (0, Some(target)) => Found::Alias(target),
                (0, None) => Found::NoData(Reason::BadAlias(self)),
                _ => Found::NoName(Reason::BelowAlias(self)),
            };
        }
        if self.is_void() {
            return Found::NoName(Reason::NoReadyEndpoints(self));
        }
        match front {
            0 => self.own(t),
            1 if name.label(0).starts_with(b"_") => match protocol(name.label(0)) {
                Some(p) if self.ports.iter().any(|n| n.protocol == p && !n.name.is_empty()) => {
                    Found::NoData(Reason::NonTerminal)
                }
                _ => Found::NoName(Reason::NoPort { service: self, port: b"", protocol: name.label(0) }),
            },
            1 => self.endpoint(name.label(0), t),
            2 if name.label(1).starts_with(b"_") => self.named_port(name.label(0), name.label(1), t),
            _ => Found::NoName(Reason::NoEndpoint { service: self, label: name.label(front - 1) }),
        }
    }

    fn own(&self, t: RecordType) -> Found<'_> {
        if t.wants(RecordType::A) && !self.v4.is_empty() {
            Found::Records(Records::A(&self.v4))
        } else if t.wants(RecordType::AAAA) && !self.v6.is_empty() {
            Found::Records(Records::Aaaa(&self.v6))
        } else if t.wants(RecordType::SRV) && !self.srv.is_empty() {
            Found::Records(Records::Srv { service: self, set: self.srv.as_ref().into() })
        } else {
            Found::NoData(self.lacks(t))
        }
    }

    fn lacks(&self, t: RecordType) -> Reason<'_> {
        match t {
            RecordType::A => Reason::NoFamily(self, IpFamily::V4),
            RecordType::AAAA => Reason::NoFamily(self, IpFamily::V6),
            t => Reason::NoType(t),
        }
    }

    fn endpoint<'a>(&'a self, label: &'a [u8], t: RecordType) -> Found<'a> {
        let Some(at) = find(&self.endpoints, label) else {
            return Found::NoName(Reason::NoEndpoint { service: self, label });
        };
        let endpoint = &self.endpoints[at];
        if t.wants(RecordType::A) && !endpoint.v4.is_empty() {
            return Found::Records(Records::A(&endpoint.v4));
        }
        if t.wants(RecordType::AAAA) && !endpoint.v6.is_empty() {
            return Found::Records(Records::Aaaa(&endpoint.v6));
        }
        let set: Vec<_> = self.srv.iter().filter(|s| s.endpoint == at as u32).copied().collect();
        if t.wants(RecordType::SRV) && !set.is_empty() {
            return Found::Records(Records::Srv { service: self, set: set.into() });
        }
        Found::NoData(self.lacks(t))
    }

    fn named_port<'a>(&'a self, port: &'a [u8], proto: &'a [u8], t: RecordType) -> Found<'a> {
        let known = port
            .strip_prefix(b"_")
            .filter(|p| !p.is_empty())
            .zip(protocol(proto))
            .and_then(|(name, p)| self.ports.iter().find(|n| n.protocol == p && eq(name, &n.name)));
        match known {
            None => Found::NoName(Reason::NoPort { service: self, port, protocol: proto }),
            Some(known) if t.wants(RecordType::SRV) => {
                Found::Records(Records::Srv { service: self, set: self.srv[known.set.clone()].into() })
            }
            Some(_) => Found::NoData(Reason::NoType(t)),
        }
    }
}

fn eq(label: &[u8], text: &str) -> bool {
    label.eq_ignore_ascii_case(text.as_bytes())
}

pub(super) fn protocol_label(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Tcp => b"_tcp",
        Protocol::Udp => b"_udp",
        Protocol::Sctp => b"_sctp",
    }
}

/// `_tcp` and the like.
fn protocol(label: &[u8]) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|p| eq(label.get(1..).unwrap_or_default(), p.as_str()))
}

fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}

fn v6(ip: &IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(*ip),
        IpAddr::V4(_) => None,
    }
}

fn endpoint_label(endpoint: &Endpoint, ip: &IpAddr) -> String {
    endpoint.hostname.as_ref().map_or_else(|| dashed(ip), |h| h.to_ascii_lowercase())
}

fn find(endpoints: &[EndpointName], label: &[u8]) -> Option<usize> {
    endpoints.binary_search_by(|e| e.label.as_bytes().cmp(label)).ok()
}

fn endpoint_names(service: &Service, slices: &[Arc<EndpointSlice>]) -> Box<[EndpointName]> {
    let mut by_label: BTreeMap<String, (bool, BTreeSet<IpAddr>)> = BTreeMap::new();
    for (_, endpoint, ip) in published(service, slices) {
        let entry = by_label.entry(endpoint_label(endpoint, &ip)).or_default();
        entry.0 |= endpoint.hostname.is_some();
        entry.1.insert(ip);
    }
    let name = |(label, (chosen, ips)): (String, (bool, BTreeSet<IpAddr>))| EndpointName {
        label: label.into(),
        chosen,
        v4: ips.iter().filter_map(v4).collect(),
        v6: ips.iter().filter_map(v6).collect(),
    };
    by_label.into_iter().map(name).collect()
}

/// `SERVICE.NAMESPACE.svc.ZONE`. Names the API would never have let in give the zone's name.
pub(super) fn service_name(namespace: &str, service: &str, zone: &Zone) -> Name {
    let mut name = Name::ROOT;
    let labels = [service.as_bytes(), namespace.as_bytes(), b"svc"];
    for label in labels.into_iter().chain(zone.name.labels()) {
        if name.push(label).is_err() {
            return zone.name;
        }
    }
    name
}
