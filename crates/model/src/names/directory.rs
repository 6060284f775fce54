//! The zone as a value. Each Service is one entry whose records are worked out when it is first asked for, and kept
//! until the Service or its slices change.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, OnceLock},
};

use smallvec::SmallVec;

use super::{
    Answer, Found, Name, PodNames, RecordType, Records, SCHEMA_VERSION, ServiceNames, Zone, reason::Reason, reverse,
    service::reverse_addresses, table::Table,
};
use crate::{
    object::{IpFamily, ObjectKey, Pod, Service},
    snapshot::{Kind, Slices, Snapshot},
};

#[derive(Debug)]
struct Entry {
    service: Arc<Service>,
    slices: Option<Slices>,
    /// A function of the two fields above and the zone, worked out at the first question.
    names: OnceLock<Box<ServiceNames>>,
}

impl Entry {
    fn slices(&self) -> &[Arc<crate::EndpointSlice>] {
        self.slices.as_ref().map_or(&[], |s| s.as_slice())
    }
}

type Keys = SmallVec<[ObjectKey; 1]>;

/// The names of one snapshot. A clone is cheap; see [`Directory::advance`].
#[derive(Clone, Debug)]
pub struct Directory {
    zone: Arc<Zone>,
    snapshot: Snapshot,
    /// By the wire form of the labels `SERVICE.NAMESPACE`.
    services: Table<Box<[u8]>, Arc<Entry>>,
    /// By address: the Services with a PTR record for it.
    pointers: Table<IpAddr, Keys>,
    /// By address, kept for [`PodNames::Verified`] only.
    pods: Table<IpAddr, Keys>,
}

impl Directory {
    /// Of a cluster of which nothing is known yet.
    pub fn new(zone: Zone) -> Self {
        Self {
            zone: Arc::new(zone),
            snapshot: Snapshot::default(),
            services: Table::default(),
            pointers: Table::default(),
            pods: Table::default(),
        }
    }

    pub fn of(zone: Zone, snapshot: &Snapshot) -> Self {
        Self::new(zone).advance(snapshot)
    }

    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The moment that the answers are about.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// A kind without which "no such name" would be a guess for some name, and which has not been listed yet.
    pub fn unlisted(&self) -> Option<Kind> {
        let pods = self.zone.pods == PodNames::Verified;
        self.missing().or((pods && !self.snapshot.is_listed(Kind::Pod)).then_some(Kind::Pod))
    }

    /// The same for one name: Services are answered while pods are still being listed.
    pub fn unlisted_for(&self, name: &Name) -> Option<Kind> {
        match name.below(&self.zone.name) {
            Some(front @ 1..) if name.label(front - 1) == b"pod" => self.unlisted(),
            _ => self.missing(),
        }
    }

    fn missing(&self) -> Option<Kind> {
        [Kind::Service, Kind::EndpointSlice, Kind::Namespace].into_iter().find(|k| !self.snapshot.is_listed(*k))
    }

    /// The same zone for a newer snapshot. Costs what has changed.
    #[must_use]
    pub fn advance(&self, snapshot: &Snapshot) -> Self {
        let mut next = self.clone();
        next.snapshot = snapshot.clone();
        let services = self.snapshot.services.changes(&snapshot.services, Arc::ptr_eq);
        let slices = self.snapshot.slices.changes(&snapshot.slices, Arc::ptr_eq);
        let mut keys: Vec<_> = services.iter().map(|c| c.key).chain(slices.iter().map(|c| c.key)).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            next.renew(key);
        }
        if self.zone.pods == PodNames::Verified {
            for change in self.snapshot.pods.changes(&snapshot.pods, Arc::ptr_eq) {
                let (old, new) = (addresses(change.old), addresses(change.new));
                move_key(&mut next.pods, change.key, &old, &new);
            }
        }
        next
    }

    /// Makes one Service's entry anew.
    fn renew(&mut self, key: &ObjectKey) {
        let name = wire_key(key);
        let old = self.services.get(&*name).map_or_else(Vec::new, |e| reverse_addresses(&e.service, e.slices()));
        let mut new = Vec::new();
        match self.snapshot.services.get(key) {
            Some(service) => {
                let slices = self.snapshot.slices.get(key).cloned();
                let entry = Entry { service: service.clone(), slices, names: OnceLock::new() };
                new = reverse_addresses(&entry.service, entry.slices());
                self.services.insert(name.as_slice().into(), Arc::new(entry));
            }
            None => self.services.remove(&*name),
        }
        move_key(&mut self.pointers, key, &old, &new);
    }

    fn service(&self, key: &[u8]) -> Option<&ServiceNames> {
        let entry = self.services.get(key)?;
        Some(entry.names.get_or_init(|| Box::new(ServiceNames::new(&entry.service, entry.slices(), &self.zone))))
    }

    pub(super) fn has_namespace(&self, namespace: &[u8]) -> bool {
        let Ok(namespace) = std::str::from_utf8(namespace) else { return false };
        let at = |k: &ObjectKey| (k.namespace.as_ref(), k.name.as_ref()) < ("", namespace);
        self.snapshot.namespaces.iter_from(at).next().is_some_and(|(k, _)| k.name.as_ref() == namespace)
            || self.snapshot.services_in(namespace).next().is_some()
    }

    /// Some pod has this address, while pods are followed.
    pub fn is_pod(&self, address: &IpAddr) -> bool {
        self.pods.get(address).is_some()
    }

    /// Each kind that answers depend on, and whether it has been listed.
    pub fn listed(&self) -> impl Iterator<Item = (Kind, bool)> {
        let pods = self.zone.pods == PodNames::Verified;
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Namespace].into_iter().chain(pods.then_some(Kind::Pod));
        kinds.map(|k| (k, self.snapshot.is_listed(k)))
    }

    /// The namespace of the pod with this address, while pods are followed and no two namespaces share it.
    pub fn namespace_of(&self, client: &IpAddr) -> Option<&str> {
        let mut all = self.pods.get(client)?.iter().map(|k| k.namespace.as_ref());
        let first = all.next()?;
        all.all(|n| n == first).then_some(first)
    }

    /// The answer to a question of class IN. Pure; at most one hash lookup and one binary search for a Service's name.
    pub fn answer<'a>(&'a self, name: &'a Name, t: RecordType) -> Answer<'a> {
        match name.below(&self.zone.name) {
            Some(front) => Answer { found: self.in_zone(name, front, t), apex_labels: self.zone.name.len() },
            None => self.reverse(name, t),
        }
    }

    fn in_zone<'a>(&'a self, name: &'a Name, front: usize, t: RecordType) -> Found<'a> {
        if front == 0 {
            return apex(t);
        }
        match (name.label(front - 1), front) {
            (b"svc" | b"pod" | b"dns", 1) => Found::NoData(Reason::NonTerminal),
            (b"svc" | b"pod", 2) if self.has_namespace(name.label(0)) => Found::NoData(Reason::NonTerminal),
            (b"svc" | b"pod", 2) => Found::NoName(Reason::NoNamespace(name.label(0))),
            (b"svc", _) => match self.service(name.slice(front - 3, front - 1)) {
                Some(names) => names.find(name, front - 3, t),
                None => Found::NoName(Reason::NoService {
                    namespace: name.label(front - 2),
                    service: name.label(front - 3),
                }),
            },
            (b"pod", 3) => self.pod(name.label(0), name.label(1), t),
            (b"dns-version", 1) if t.wants(RecordType::TXT) => Found::Records(Records::Txt(SCHEMA_VERSION)),
            (b"dns-version", 1) => Found::NoData(Reason::NoType(t)),
            (b"dns", 2) if name.label(0) == b"ns" => self.name_server(name, t),
            _ => Found::NoName(Reason::Form),
        }
    }

    /// `ns.dns.ZONE` has the addresses of the DNS Service.
    fn name_server<'a>(&'a self, name: &'a Name, t: RecordType) -> Found<'a> {
        let names = (t == RecordType::A || t == RecordType::AAAA || t == RecordType::ANY)
            .then(|| self.service(&wire_key(&self.zone.server)))
            .flatten();
        match names.map(|n| n.find(name, 0, t)) {
            Some(found @ Found::Records(_)) => found,
            _ => Found::NoData(Reason::NoType(t)),
        }
    }

    fn pod<'a>(&'a self, label: &'a [u8], namespace: &'a [u8], t: RecordType) -> Found<'a> {
        if self.zone.pods == PodNames::Disabled {
            return Found::NoName(Reason::PodsDisabled);
        }
        let Some(ip) = undashed(label) else { return Found::NoName(Reason::PodForm) };
        let exists = match self.zone.pods {
            PodNames::Verified => {
                self.pods.get(&ip).is_some_and(|pods| pods.iter().any(|p| p.namespace.as_bytes() == namespace))
            }
            _ => self.has_namespace(namespace),
        };
        let wanted = if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        match exists {
            false => Found::NoName(Reason::NoPod { namespace, ip }),
            true if t.wants(wanted) => Found::Records(Records::Address(ip)),
            true => Found::NoData(Reason::NoPodFamily(IpFamily::of(&ip))),
        }
    }

    fn reverse<'a>(&'a self, name: &'a Name, t: RecordType) -> Answer<'a> {
        let elsewhere = Answer { found: Found::Elsewhere, apex_labels: 0 };
        // `junk.1.0.96.10.in-addr.arpa` is in our range as well: find the longest part that means something.
        let Some((skipped, network)) = reverse::longest(name) else { return elsewhere };
        let whole = network.prefix_len() == network.max_prefix_len();
        let ip = network.addr();
        let mut targets = SmallVec::new();
        if whole && skipped == 0 {
            for key in self.pointers.get(&ip).into_iter().flatten() {
                if let Some(names) = self.service(&wire_key(key)) {
                    names.pointers(&ip, &mut targets);
                }
            }
        }
        let range = self.zone.reverse.iter().find(|r| r.contains(&network));
        if !targets.is_empty() && t.wants(RecordType::PTR) {
            let apex_labels = range.map_or(0, reverse::apex_labels);
            return Answer { found: Found::Records(Records::Ptr(targets)), apex_labels };
        }
        let Some(range) = range else { return elsewhere };
        let apex_labels = reverse::apex_labels(range);
        let found = match (skipped, whole) {
            (0, _) if name.len() == apex_labels => apex(t),
            (0, false) => Found::NoData(Reason::NonTerminal),
            (0, true) if !targets.is_empty() => Found::NoData(Reason::NoType(t)),
            (_, true) => Found::NoName(Reason::NoAddress(ip)),
            (_, false) => Found::NoName(Reason::Form),
        };
        // Between the range's own prefix and the next label boundary there is no zone of ours to name in a SOA.
        if name.len() < apex_labels { elsewhere } else { Answer { found, apex_labels } }
    }
}

fn apex<'a>(t: RecordType) -> Found<'a> {
    if t.wants(RecordType::SOA) {
        Found::Records(Records::Soa)
    } else if t == RecordType::NS {
        Found::Records(Records::Ns)
    } else {
        Found::NoData(Reason::NoType(t))
    }
}

/// The labels `SERVICE.NAMESPACE` in wire form, as they stand in a question.
fn wire_key(key: &ObjectKey) -> SmallVec<[u8; 64]> {
    let mut out = SmallVec::new();
    for label in [&key.name, &key.namespace] {
        // Lengths the API would never have let in are cut: such a key is found by nobody.
        out.push(label.len().min(255) as u8);
        out.extend(label.bytes().map(|c| c.to_ascii_lowercase()));
    }
    out
}

/// Drops `key` from the addresses only in `old`, and adds it to those only in `new`. Both are sorted.
fn move_key(table: &mut Table<IpAddr, Keys>, key: &ObjectKey, old: &[IpAddr], new: &[IpAddr]) {
    for gone in old.iter().filter(|ip| new.binary_search(ip).is_err()) {
        let mut keys = table.get(gone).cloned().unwrap_or_default();
        keys.retain(|k| k != key);
        if keys.is_empty() {
            table.remove(gone);
        } else {
            table.insert(*gone, keys);
        }
    }
    for come in new.iter().filter(|ip| old.binary_search(ip).is_err()) {
        let mut keys = table.get(come).cloned().unwrap_or_default();
        if let Err(at) = keys.binary_search(key) {
            keys.insert(at, key.clone());
            table.insert(*come, keys);
        }
    }
}

/// A pod's addresses while it has not ended. Sorted.
fn addresses(pod: Option<&Arc<Pod>>) -> Vec<IpAddr> {
    let mut ips = pod.filter(|p| !p.terminal()).map(|p| p.ips.clone()).unwrap_or_default();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// `10-244-0-7` or `fd00--7` as an address.
fn undashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    if text.contains(['.', ':']) {
        return None;
    }
    if let Ok(ip) = text.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(ip.into());
    }
    text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
