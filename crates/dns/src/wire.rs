//! The DNS message format (RFC 1035 §4, EDNS RFC 6891, Extended DNS Errors RFC 8914), as far as a name server of
//! authority and a forwarder need it. Reading never trusts a length; writing never passes a limit.

mod message;
mod query;
mod write;

pub use message::{Message, Record, Section};
pub use query::{Edns, Malformed, Query, option};
pub use write::{Full, Writer, header_only};

/// Octets of the message header.
pub const HEADER: usize = 12;
/// The largest message over UDP without EDNS (RFC 1035 §4.2.1).
pub const UDP_PLAIN: usize = 512;
/// The largest message that we send over UDP, and say to receive: it passes every link unfragmented.
pub const UDP_MAX: usize = 1232;
/// Octets of an OPT record without options.
pub const OPT_SIZE: usize = 11;

/// Bits of the header's second 16-bit word.
pub mod flag {
    pub const QR: u16 = 0x8000;
    pub const OPCODE: u16 = 0x7800;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;
    pub const RCODE: u16 = 0x000f;
}

/// A response code (RFC 1035 §4.1.1, RFC 6891 §9). Values above 15 need EDNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rcode(pub u16);

impl Rcode {
    pub const NOERROR: Self = Self(0);
    pub const FORMERR: Self = Self(1);
    pub const SERVFAIL: Self = Self(2);
    pub const NXDOMAIN: Self = Self(3);
    pub const NOTIMP: Self = Self(4);
    pub const REFUSED: Self = Self(5);
    pub const BADVERS: Self = Self(16);

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NOERROR => "NOERROR",
            Self::FORMERR => "FORMERR",
            Self::SERVFAIL => "SERVFAIL",
            Self::NXDOMAIN => "NXDOMAIN",
            Self::NOTIMP => "NOTIMP",
            Self::REFUSED => "REFUSED",
            Self::BADVERS => "BADVERS",
            _ => "OTHER",
        }
    }
}

/// Extended DNS Error codes (RFC 8914 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended(pub u16);

impl Extended {
    pub const OTHER: Self = Self(0);
    pub const NOT_READY: Self = Self(14);
    pub const PROHIBITED: Self = Self(18);
    pub const NOT_AUTHORITATIVE: Self = Self(20);
    pub const NOT_SUPPORTED: Self = Self(21);
    pub const NO_REACHABLE_AUTHORITY: Self = Self(22);
    pub const NETWORK_ERROR: Self = Self(23);
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?))
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*message.get(at..)?.first_chunk()?))
}

/// Where the name at `at` ends; pointers are not followed.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return (at + 1 < message.len()).then_some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
