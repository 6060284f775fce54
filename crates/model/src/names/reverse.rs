//! `in-addr.arpa` (RFC 1035 §3.5) and `ip6.arpa` (RFC 3596 §2.5): names that stand for addresses or for prefixes of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Name;

/// The network that the longest meaningful end of a name stands for (a whole address is a network of one), and how many
/// labels in front of it mean nothing. `None` when the name is no reverse name.
pub(super) fn longest(name: &Name) -> Option<(usize, IpNet)> {
    let n = name.len();
    if n < 2 || name.label(n - 1) != b"arpa" {
        return None;
    }
    // Labels of the address, the most significant first.
    let digits = (0..n - 2).rev().map(|i| name.label(i));
    match name.label(n - 2) {
        b"in-addr" => {
            let octets: Vec<u8> = digits.take(4).map_while(decimal).collect();
            let mut address = [0u8; 4];
            address[..octets.len()].copy_from_slice(&octets);
            let network = Ipv4Net::new(Ipv4Addr::from(address), octets.len() as u8 * 8).ok()?;
            Some((n - 2 - octets.len(), network.into()))
        }
        b"ip6" => {
            let nibbles = digits.take(32).map_while(|l| match l {
                [digit] => char::from(*digit).to_digit(16),
                _ => None,
            });
            let (bits, count) = nibbles.fold((0u128, 0), |(bits, n), d| (bits << 4 | u128::from(d), n + 1));
            let address = if count == 0 { 0 } else { bits << (4 * (32 - count)) };
            let network = Ipv6Net::new(Ipv6Addr::from(address), count as u8 * 4).ok()?;
            Some((n - 2 - count, network.into()))
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
        let net = |s: &str| longest(&s.parse().unwrap()).map(|(n, net)| format!("{n} {net}"));
        for (name, want) in [
            ("1.0.96.10.in-addr.arpa", "0 10.96.0.1/32"),
            ("x.1.0.96.10.in-addr.arpa", "1 10.96.0.1/32"),
            ("96.10.in-addr.arpa", "0 10.96.0.0/16"),
            ("in-addr.arpa", "0 0.0.0.0/0"),
            ("d.f.ip6.arpa", "0 fd00::/8"),
            ("256.in-addr.arpa", "1 0.0.0.0/0"),
            ("01.10.in-addr.arpa", "1 10.0.0.0/8"),
            ("+1.in-addr.arpa", "1 0.0.0.0/0"),
            ("10.ip6.arpa", "1 ::/0"),
        ] {
            assert_eq!(net(name).as_deref(), Some(want), "{name}");
        }
        assert_eq!(net("arpa"), None);
        assert_eq!(net("example.com"), None);
        assert_eq!(apex_labels(&"10.96.0.0/12".parse().unwrap()), 4);
        assert_eq!(apex_labels(&"fd00:10::/64".parse().unwrap()), 18);
    }

    proptest! {
        #[test]
        fn there_and_back(bits: u128, v4: bool) {
            let ip = if v4 { IpAddr::V4(Ipv4Addr::from(bits as u32)) } else { IpAddr::V6(bits.into()) };
            let name: Name = reverse_name(&ip).parse().unwrap();
            prop_assert_eq!(longest(&name), Some((0, IpNet::from(ip))));
        }
    }
}
