//! The zone from end to end, as a zone transfer (RFC 5936) and a person want it: every record that stands for itself.
//! Left out is what is only true by computation: names of pods by address, and reverse names.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Directory, Name, ServiceNames, service::protocol_label};
use crate::object::ObjectKey;

#[derive(Clone, Debug, PartialEq)]
pub enum ZoneData {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(Name),
    Srv { weight: u16, port: u16, target: Name },
}

#[derive(Clone, Debug, PartialEq)]
pub struct ZoneRecord {
    pub owner: Name,
    pub data: ZoneData,
}

impl Directory {
    /// The records of the first Service behind `after` in the order of keys, and its key. They are worked out for this
    /// occasion and not kept, so that a transfer leaves memory as it was.
    pub fn records_after(&self, after: Option<&ObjectKey>) -> Option<(ObjectKey, Vec<ZoneRecord>)> {
        let services = &self.snapshot().services;
        let (key, service) = services.iter_from(|k| after.is_some_and(|a| k <= a)).next()?;
        let names = ServiceNames::new(service, self.snapshot().slices_of(key), self.zone());
        Some((key.clone(), names.records()))
    }
}

impl ServiceNames {
    fn records(&self) -> Vec<ZoneRecord> {
        let base = || self.target().base;
        let Some((own, _)) = Name::read(base(), 0) else { return Vec::new() };
        // Labels in front of a name make it too long only if the API let in what it forbids.
        let below = |labels: &[&[u8]]| {
            let mut name = Name::ROOT;
            labels.iter().copied().chain(own.labels()).try_for_each(|l| name.push(l)).ok().map(|()| name)
        };
        let mut out = Vec::new();
        let mut put = |owner: Option<Name>, data: ZoneData| {
            if let Some(owner) = owner {
                out.push(ZoneRecord { owner, data });
            }
        };
        if let Some(alias) = self.alias() {
            put(Some(own), ZoneData::Cname(*alias));
        }
        let (v4, v6) = self.own_addresses();
        v4.iter().for_each(|ip| put(Some(own), ZoneData::A(*ip)));
        v6.iter().for_each(|ip| put(Some(own), ZoneData::Aaaa(*ip)));
        for (label, v4, v6) in self.endpoint_addresses() {
            let owner = below(&[label.as_bytes()]);
            v4.iter().for_each(|ip| put(owner, ZoneData::A(*ip)));
            v6.iter().for_each(|ip| put(owner, ZoneData::Aaaa(*ip)));
        }
        for (port, protocol, set) in self.named_ports() {
            let owner = below(&[format!("_{port}").as_bytes(), protocol_label(protocol)]);
            for entry in set {
                let target = match self.srv_target(entry).label {
                    Some(label) => below(&[label.as_bytes()]),
                    None => Some(own),
                };
                if let Some(target) = target {
                    let weight = (100 / set.len()).max(1) as u16;
                    put(owner, ZoneData::Srv { weight, port: entry.port, target });
                }
            }
        }
        out
    }
}
