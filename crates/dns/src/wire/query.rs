//! What a client asked.

use model::names::{Name, RecordType};

use super::{HEADER, OPT_SIZE, Rcode, UDP_MAX, UDP_PLAIN, flag, skip_name, u16_at, u32_at};

/// What the client's OPT record said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP message it takes.
    pub size: u16,
    pub version: u8,
    /// DNSSEC OK.
    pub dnssec: bool,
    /// The client's cookie (RFC 7873).
    pub cookie: Option<[u8; 8]>,
    /// It wants to know which server this is (RFC 5001).
    pub nsid: bool,
    /// What the answer's OPT record will carry, set by whoever knows the server.
    pub reply: ReplyOptions,
}

/// Options of an answer in wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyOptions {
    octets: [u8; Self::ROOM],
    length: u8,
}

impl ReplyOptions {
    /// A cookie of 28 octets and a name.
    const ROOM: usize = 96;
    pub const NONE: Self = Self { octets: [0; Self::ROOM], length: 0 };

    /// Appends an option; its value is cut where there is no more room.
    pub fn push(&mut self, code: u16, value: &[u8]) {
        let start = usize::from(self.length);
        let Some(room) = Self::ROOM.checked_sub(start + 4) else { return };
        let value = &value[..value.len().min(room)];
        self.octets[start..start + 2].copy_from_slice(&code.to_be_bytes());
        self.octets[start + 2..start + 4].copy_from_slice(&(value.len() as u16).to_be_bytes());
        self.octets[start + 4..start + 4 + value.len()].copy_from_slice(value);
        self.length += 4 + value.len() as u8;
    }

    pub fn octets(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }
}

/// Codes of EDNS options.
pub mod option {
    pub const NSID: u16 = 3;
    pub const COOKIE: u16 = 10;
    pub const EXTENDED_ERROR: u16 = 15;
}

/// A well-formed query: one question, in a packet that is kept for its spelling.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    packet: &'a [u8],
    question_end: usize,
    pub name: Name,
    pub kind: RecordType,
    pub class: u16,
    pub edns: Option<Edns>,
}

/// What to tell the sender of something that is no query we can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Nothing: too short to have a sender's id, or itself an answer.
    Silence,
    Code(Rcode),
}

impl<'a> Query<'a> {
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER] = packet.first_chunk().ok_or(Malformed::Silence)?;
        let word = |i: usize| u16::from_be_bytes([header[2 * i], header[2 * i + 1]]);
        let flags = word(1);
        if flags & flag::QR != 0 {
            return Err(Malformed::Silence);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Malformed::Code(Rcode::NOTIMP));
        }
        let formerr = Malformed::Code(Rcode::FORMERR);
        if word(2) != 1 {
            return Err(formerr);
        }
        let (name, at) = Name::read(packet, HEADER).ok_or(formerr)?;
        let kind = RecordType(u16_at(packet, at).ok_or(formerr)?);
        let class = u16_at(packet, at + 2).ok_or(formerr)?;
        let question_end = at + 4;
        let before_additional = u32::from(word(3)) + u32::from(word(4));
        let edns = match before_additional + u32::from(word(5)) {
            0 => None,
            all => edns(packet, question_end, before_additional, all).ok_or(formerr)?,
        };
        Ok(Self { packet, question_end, name, kind, class, edns })
    }

    pub fn id(&self) -> [u8; 2] {
        [self.packet[0], self.packet[1]]
    }

    pub fn flags(&self) -> u16 {
        u16::from_be_bytes([self.packet[2], self.packet[3]])
    }

    pub fn recursion_desired(&self) -> bool {
        self.flags() & flag::RD != 0
    }

    pub fn dnssec(&self) -> bool {
        self.edns.is_some_and(|e| e.dnssec)
    }

    /// Name, type and class as the client spelled them.
    pub fn question(&self) -> &'a [u8] {
        &self.packet[HEADER..self.question_end]
    }

    /// Octets of the answer's OPT record, explanation not counted.
    pub fn opt_size(&self) -> usize {
        self.edns.as_ref().map_or(0, |e| OPT_SIZE + e.reply.octets().len())
    }

    /// The largest UDP answer for this client.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_PLAIN, |e| usize::from(e.size).clamp(UDP_PLAIN, UDP_MAX))
    }
}

/// The OPT record among `all` records, of which it may only be one of those after the first `before`. The outer
/// `None` is a malformed packet.
fn edns(packet: &[u8], mut at: usize, before: u32, all: u32) -> Option<Option<Edns>> {
    let mut found = None;
    for i in 0..all {
        let body = skip_name(packet, at)?;
        let kind = RecordType(u16_at(packet, body)?);
        let length = usize::from(u16_at(packet, body + 8)?);
        let end = body + 10 + length;
        if end > packet.len() {
            return None;
        }
        if kind == RecordType::OPT {
            if i < before || found.is_some() || packet[at] != 0 {
                return None;
            }
            let ttl = u32_at(packet, body + 4)?;
            let mut edns = Edns {
                size: u16_at(packet, body + 2)?,
                version: (ttl >> 16) as u8,
                dnssec: ttl & 0x8000 != 0,
                cookie: None,
                nsid: false,
                reply: ReplyOptions::NONE,
            };
            options(&packet[body + 10..end], &mut edns)?;
            found = Some(edns);
        }
        at = end;
    }
    Some(found)
}

/// `None` when they are malformed.
fn options(mut rest: &[u8], edns: &mut Edns) -> Option<()> {
    while !rest.is_empty() {
        let (code, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let value = rest.get(4..4 + length)?;
        match code {
            option::NSID => edns.nsid = true,
            // Eight octets of the client, and eight to 32 of a server, if any (RFC 7873 §5.2.2).
            option::COOKIE if matches!(length, 8 | 16..=40) => edns.cookie = value.first_chunk().copied(),
            option::COOKIE => return None,
            _ => {}
        }
        rest = &rest[4 + length..];
    }
    Some(())
}
