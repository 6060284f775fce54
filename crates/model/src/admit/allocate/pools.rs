//! Two ranges of numbers with holders: addresses of a CIDR and ports.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;

use crate::object::IpFamily;

/// Addresses of an IPv6 range that are considered: more than anybody will ever use.
const MAX_ADDRESSES: u128 = 1 << 32;

/// Where automatic allocation starts: `size / step`, at least `min`, at most `max`, nothing in a tiny range.
fn band(size: u128, min: u128, max: u128, step: u128) -> u128 {
    if size <= min { 0 } else { (size / step).clamp(min, max) }
}

/// The first free number at or after `offset + pick`, going round in the upper band, then in the lower one.
fn first_free(size: u128, offset: u128, pick: u64, taken: impl Fn(u128) -> bool) -> Option<u128> {
    for (start, length) in [(offset, size - offset), (0, offset)] {
        if length == 0 {
            continue;
        }
        let first = u128::from(pick) % length;
        let found = (0..length).map(|i| start + (first + i) % length).find(|n| !taken(*n));
        if found.is_some() {
            return found;
        }
    }
    None
}

#[derive(Debug)]
pub(super) struct AddressPool {
    pub cidr: IpNet,
    pub family: IpFamily,
    /// The first address that is handed out: the one after the network's.
    base: u128,
    /// How many are handed out.
    size: u128,
    holders: HashMap<IpAddr, Arc<str>>,
}

impl AddressPool {
    pub fn new(cidr: IpNet) -> Self {
        let cidr = cidr.trunc();
        let network = number(cidr.network());
        let last = number(cidr.broadcast());
        // Neither the network's address nor IPv4's broadcast address is usable, as upstream has it.
        let reserved = if cidr.network().is_ipv4() { 2 } else { 1 };
        let size = (last - network + 1).saturating_sub(reserved).min(MAX_ADDRESSES);
        Self { cidr, family: IpFamily::of(&cidr.network()), base: network + 1, size, holders: HashMap::new() }
    }

    pub fn contains(&self, ip: &IpAddr) -> bool {
        IpFamily::of(ip) == self.family && (self.base..self.base + self.size).contains(&number(*ip))
    }

    pub fn adopt(&mut self, ip: IpAddr, owner: &Arc<str>) {
        self.holders.entry(ip).or_insert_with(|| owner.clone());
    }

    pub fn allocate(&mut self, ip: IpAddr, owner: &Arc<str>) -> Result<(), String> {
        if !self.contains(&ip) {
            return Err(format!(
                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                self.cidr
            ));
        }
        if self.holders.contains_key(&ip) {
            return Err("provided IP is already allocated".into());
        }
        self.holders.insert(ip, owner.clone());
        Ok(())
    }

    pub fn allocate_next(&mut self, pick: u64, owner: &Arc<str>) -> Option<IpAddr> {
        let offset = band(self.size, 16, 256, 16);
        let found = first_free(self.size, offset, pick, |n| self.holders.contains_key(&self.address(n)))?;
        let ip = self.address(found);
        self.holders.insert(ip, owner.clone());
        Some(ip)
    }

    pub fn release(&mut self, ip: &IpAddr, owner: &str) {
        if self.holders.get(ip).is_some_and(|o| o.as_ref() == owner) {
            self.holders.remove(ip);
        }
    }

    fn address(&self, index: u128) -> IpAddr {
        let number = self.base + index;
        match self.family {
            // The range is inside a 32-bit network.
            IpFamily::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpFamily::V6 => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[derive(Debug)]
pub(super) struct PortPool {
    range: RangeInclusive<u16>,
    holders: HashMap<u16, Arc<str>>,
}

impl PortPool {
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, holders: HashMap::new() }
    }

    pub fn adopt(&mut self, port: u16, owner: &Arc<str>) {
        self.holders.entry(port).or_insert_with(|| owner.clone());
    }

    pub fn allocate(&mut self, asked: u64, owner: &Arc<str>) -> Result<u16, String> {
        let Some(port) = u16::try_from(asked).ok().filter(|p| self.range.contains(p)) else {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.range.start(),
                self.range.end()
            ));
        };
        if self.holders.contains_key(&port) {
            return Err("provided port is already allocated".into());
        }
        self.holders.insert(port, owner.clone());
        Ok(port)
    }

    pub fn allocate_next(&mut self, pick: u64, owner: &Arc<str>) -> Option<u16> {
        let first = *self.range.start();
        let size = u128::from(self.range.end().checked_sub(first)?) + 1;
        let offset = band(size, 16, 128, 32);
        let number = |n: u128| first + u16::try_from(n).unwrap_or(0);
        let found = first_free(size, offset, pick, |n| self.holders.contains_key(&number(n)))?;
        self.holders.insert(number(found), owner.clone());
        Some(number(found))
    }

    pub fn release(&mut self, port: u16, owner: &str) {
        if self.holders.get(&port).is_some_and(|o| o.as_ref() == owner) {
            self.holders.remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands() {
        // KEP-3070's and KEP-3668's own examples.
        assert_eq!(band(254, 16, 256, 16), 16);
        assert_eq!(band(4094, 16, 256, 16), 255);
        assert_eq!(band(1_048_574, 16, 256, 16), 256);
        assert_eq!(band(2768, 16, 128, 32), 86);
        assert_eq!(band(10, 16, 128, 32), 0);
    }

    #[test]
    fn a_small_range_is_used_up_completely() {
        let owner: Arc<str> = "a/b".into();
        let mut pool = AddressPool::new("10.0.0.0/27".parse().expect("cidr"));
        let mut got = Vec::new();
        while let Some(ip) = pool.allocate_next(7 * got.len() as u64, &owner) {
            got.push(ip);
        }
        assert_eq!(got.len(), 30);
        // The first half came from the upper band.
        assert!(got[..14].iter().all(|ip| *ip >= "10.0.0.17".parse::<IpAddr>().expect("ip")), "{got:?}");
        pool.release(&got[3], "someone/else");
        assert!(pool.allocate_next(0, &owner).is_none(), "only the holder gives back");
        pool.release(&got[3], "a/b");
        assert_eq!(pool.allocate_next(0, &owner), Some(got[3]));
    }
}
