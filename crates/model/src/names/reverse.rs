//! `in-addr.arpa` (RFC 1035 §3.5) and `ip6.arpa` (RFC 3596 §2.5): names that stand for addresses or for prefixes of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Name;

/// The network a reverse name stands for (a whole address is a network of one), and the number of labels of the
/// `arpa` suffix. `None` when the name is no reverse name, or not a well-formed one.
pub(super) fn parse(name: &Name) -> Option<IpNet> {
    let n = name.len();
    if n < 2 || name.label(n - 1) != b"arpa" {
        return None;
    }
    match name.label(n - 2) {
        b"in-addr" if n <= 6 => {
            let mut octets = [0u8; 4];
            for (i, octet) in octets.iter_mut().take(n - 2).enumerate() {
                *octet = decimal(name.label(n - 3 - i))?;
            }
            Ipv4Net::new(Ipv4Addr::from(octets), (n - 2) as u8 * 8).ok().map(IpNet::V4)
        }
        b"ip6" if n <= 34 => {
            let mut bits = 0u128;
            for i in 0..n - 2 {
                let [digit] = name.label(n - 3 - i) else { return None };
                bits |= u128::from(char::from(*digit).to_digit(16)?) << (124 - 4 * i);
            }
            Ipv6Net::new(Ipv6Addr::from(bits), (n - 2) as u8 * 4).ok().map(IpNet::V6)
        }
        _ => None,
    }
}

/// An octet in decimal without leading zeros.
fn decimal(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// Labels of the smallest reverse zone on a label boundary inside `range`: `10.96.0.0/12` is 16 zones of four labels.
pub(super) fn apex_labels(range: &IpNet) -> usize {
    let per_label = if range.addr().is_ipv4() { 8 } else { 4 };
    usize::from(range.prefix_len()).div_ceil(per_label) + 2
}

/// The reverse name of an address, as text with the trailing dot.
pub fn reverse_name(ip: &IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(ip) => {
            let mut text = String::with_capacity(73);
            for octet in ip.octets().iter().rev() {
                text.push_str(&format!("{:x}.{:x}.", octet & 15, octet >> 4));
            }
            text + "ip6.arpa."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_of_addresses_are_networks() {
        let net = |s: &str| parse(&s.parse().unwrap()).map(|n| n.to_string());
        assert_eq!(net("1.0.96.10.in-addr.arpa").as_deref(), Some("10.96.0.1/32"));
        assert_eq!(net("96.10.in-addr.arpa").as_deref(), Some("10.96.0.0/16"));
        assert_eq!(net("in-addr.arpa").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(net("d.f.ip6.arpa").as_deref(), Some("fd00::/8"));
        for bad in ["256.in-addr.arpa", "01.in-addr.arpa", "x.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "10.ip6.arpa", "+1.in-addr.arpa", "arpa"] {
            assert_eq!(net(bad), None, "{bad}");
        }
        assert_eq!(apex_labels(&"10.96.0.0/12".parse().unwrap()), 4);
        assert_eq!(apex_labels(&"fd00:10::/64".parse().unwrap()), 18);
    }

    proptest! {
        #[test]
        fn there_and_back(bits: u128, v4: bool) {
            let ip = if v4 { IpAddr::V4(Ipv4Addr::from(bits as u32)) } else { IpAddr::V6(bits.into()) };
            let name: Name = reverse_name(&ip).parse().unwrap();
            prop_assert_eq!(parse(&name).unwrap().addr(), ip);
        }
    }
}
