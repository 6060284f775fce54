//! DNS cookies (RFC 7873, in the interoperable form of RFC 9018): a client that shows ours again is where it says it is.
//! We never demand one, because all our clients are in the cluster; we give them to those who ask.

use std::net::IpAddr;

/// The secret behind this server's cookies.
#[derive(Clone)]
pub struct Secret([u64; 2]);

impl Secret {
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The server cookie for a client at a time in seconds since 1970: version, reserved, time, hash.
    pub fn server_cookie(&self, client: &[u8; 8], address: IpAddr, now: u32) -> [u8; 16] {
        let mut out = [0; 16];
        out[0] = 1;
        out[4..8].copy_from_slice(&now.to_be_bytes());
        let mut input = [0; 32];
        input[..8].copy_from_slice(client);
        input[8..16].copy_from_slice(&out[..8]);
        let length = match address.to_canonical() {
            IpAddr::V4(ip) => {
                input[16..20].copy_from_slice(&ip.octets());
                20
            }
            IpAddr::V6(ip) => {
                input[16..].copy_from_slice(&ip.octets());
                32
            }
        };
        out[8..].copy_from_slice(&siphash_2_4(self.0, &input[..length]).to_le_bytes());
        out
    }
}

/// <https://www.aumasson.jp/siphash/siphash.pdf>
fn siphash_2_4([k0, k1]: [u64; 2], input: &[u8]) -> u64 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    fn round(v: &mut [u64; 4]) {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    }
    let (words, rest) = input.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    last[7] = input.len() as u8;
    for word in words.iter().chain([&last]) {
        let m = u64::from_le_bytes(*word);
        v[3] ^= m;
        round(&mut v);
        round(&mut v);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9018, appendix A.1.
    #[test]
    fn cookies_are_those_of_the_standard() {
        let secret = Secret([0x3fa4_b2a6_e573_e9e5, 0xcfbf_379e_84dc_e748]);
        let client = 0x2464_c4ab_cf10_c957_u64.to_be_bytes();
        let cookie = secret.server_cookie(&client, "198.51.100.100".parse().unwrap(), 0x5cf7_9f11);
        assert_eq!(u128::from_be_bytes(cookie), 0x0100_0000_5cf7_9f11_1f81_30c3_eee2_9480);
    }
}
