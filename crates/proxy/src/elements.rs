//! Map elements to bytes and back. Which map an element belongs in follows from its frontend.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    IpFamily, Protocol,
    route::{At, Backend, Frontend},
};
use sys::nft::{Bytes, Element, Value};

use crate::{desired::Slot, layout::octets};

/// Appends a field, padded to four bytes.
fn push(key: &mut Bytes, field: &[u8]) {
    key.extend_from_slice(field);
    while !key.len().is_multiple_of(4) {
        key.push(0);
    }
}

fn push_address(key: &mut Bytes, ip: &IpAddr) {
    match ip {
        IpAddr::V4(ip) => key.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => key.extend_from_slice(&ip.octets()),
    }
}

pub fn frontend(f: &Frontend) -> Bytes {
    let mut key = Bytes::new();
    if let At::Address(ip) = &f.at {
        push_address(&mut key, ip);
    }
    push(&mut key, &[f.protocol.number()]);
    push(&mut key, &f.port.to_be_bytes());
    key
}

pub fn slot(f: &Frontend, slot: Slot) -> Bytes {
    let mut key = frontend(f);
    push(&mut key, &slot.number().to_ne_bytes());
    key
}

pub fn backend(b: &Backend) -> Value {
    let mut data = Bytes::new();
    push_address(&mut data, &b.ip);
    push(&mut data, &b.port.to_be_bytes());
    Value::Data(data)
}

pub fn id(number: u32) -> Value {
    Value::Data(Bytes::from_slice(&number.to_ne_bytes()))
}

/// Frontend and the first to last address of a range.
pub fn source_range(f: &Frontend, net: &IpNet) -> Element {
    let key = |ip| {
        let mut key = frontend(f);
        push_address(&mut key, &ip);
        key
    };
    Element { key: key(net.network()), key_end: Some(Box::new(key(net.broadcast()))), ..Element::default() }
}

/// An endpoint on its way to itself.
pub fn hairpin(ip: &IpAddr) -> Bytes {
    let mut key = octets(ip);
    push_address(&mut key, ip);
    key
}

/// Reads fields from the front of a key.
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, _) = self.0.split_first_chunk::<N>()?;
        self.0 = self.0.get(N.next_multiple_of(4)..)?;
        Some(*head)
    }

    pub fn address(&mut self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.take::<4>().map(IpAddr::from),
            IpFamily::V6 => self.take::<16>().map(IpAddr::from),
        }
    }

    pub fn port(&mut self) -> Option<u16> {
        self.take::<2>().map(u16::from_be_bytes)
    }

    pub fn number(&mut self) -> Option<u32> {
        self.take::<4>().map(u32::from_ne_bytes)
    }

    pub fn frontend(&mut self, family: IpFamily, node_port: bool) -> Option<Frontend> {
        let at = if node_port { At::NodePort(family) } else { At::Address(self.address(family)?) };
        let number = self.take::<1>()?[0];
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == number)?;
        Some(Frontend { at, protocol, port: self.port()? })
    }

    pub fn backend(&mut self, family: IpFamily) -> Option<Backend> {
        Some(Backend { ip: self.address(family)?, port: self.port()? })
    }

    /// The network from this address to `last`, if it is one.
    pub fn network(&mut self, family: IpFamily, last: IpAddr) -> Option<IpNet> {
        let first = self.address(family)?;
        let bits = if first.is_ipv4() { 32 } else { 128 };
        (0..=bits).filter_map(|len| IpNet::new(first, len).ok()).find(|n| n.network() == first && n.broadcast() == last)
    }
}
