//! Names with addresses that somebody wrote down, as in `/etc/hosts`. Both directions.

use std::{collections::HashMap, net::IpAddr};

use model::names::{Name, RecordType, reverse_name};

use super::Response;

/// Seconds that such an answer may be kept, unless it is said otherwise.
const TTL: u32 = 3600;

#[derive(Clone, Debug)]
pub struct Hosts {
    names: HashMap<Name, Vec<IpAddr>>,
    /// By reverse name: the first name given for the address.
    pointers: HashMap<Name, Name>,
    pub ttl: u32,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { names: HashMap::new(), pointers: HashMap::new(), ttl: TTL }
    }
}

impl Hosts {
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn add(&mut self, address: IpAddr, name: Name) {
        if let Ok(reverse) = reverse_name(&address).parse() {
            self.pointers.entry(reverse).or_insert(name);
        }
        let addresses = self.names.entry(name).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    /// Adds lines of `ADDRESS NAME...`; says which line is none.
    pub fn read(&mut self, text: &str) -> Result<(), String> {
        for (i, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(address) = words.next() else { continue };
            let wrong = |what: &str| format!("line {}: {what} {line:?}", i + 1);
            let address: IpAddr = address.parse().map_err(|_| wrong("no address at the beginning of"))?;
            for name in words {
                self.add(address, name.parse().map_err(|_| wrong("a bad name in"))?);
            }
        }
        Ok(())
    }

    /// A message as an upstream server would send it. A name that is here has no other addresses elsewhere.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Option<Response> {
        let mut records = Vec::new();
        if let Some(addresses) = self.names.get(name) {
            for address in addresses {
                match address {
                    IpAddr::V4(ip) if kind == RecordType::A => records.push(ip.octets().to_vec()),
                    IpAddr::V6(ip) if kind == RecordType::AAAA => records.push(ip.octets().to_vec()),
                    _ => {}
                }
            }
        } else {
            let target = self.pointers.get(name).filter(|_| kind == RecordType::PTR)?;
            records.push(target.wire().to_vec());
        }
        let mut out = Vec::new();
        for word in [0, 0x8180, 1, records.len() as u16, 0, 0] {
            out.extend(word.to_be_bytes());
        }
        out.extend(name.wire());
        out.extend(kind.0.to_be_bytes());
        out.extend([0, 1]);
        for data in records {
            out.extend([0xc0, 12]);
            out.extend(kind.0.to_be_bytes());
            out.extend([0, 1]);
            out.extend(self.ttl.to_be_bytes());
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        Response::new(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_answers_in_both_directions() {
        let mut hosts = Hosts::default();
        hosts.read("# none\n192.0.2.1 Db.example db # x\n2001:db8::1 db.example\n\n").unwrap();
        let name: Name = "db.example".parse().unwrap();
        assert_eq!(hosts.answer(&name, RecordType::A).unwrap().records.len(), 1);
        assert_eq!(hosts.answer(&name, RecordType::AAAA).unwrap().records.len(), 1);
        assert_eq!(hosts.answer(&name, RecordType::TXT).unwrap().records.len(), 0);
        let reverse = reverse_name(&"192.0.2.1".parse().unwrap()).parse().unwrap();
        assert_eq!(hosts.answer(&reverse, RecordType::PTR).unwrap().records.len(), 1);
        assert!(hosts.answer(&"x.example".parse().unwrap(), RecordType::A).is_none());
        assert_eq!(hosts.read("ok\n").unwrap_err(), "line 1: no address at the beginning of \"ok\"");
    }
}
