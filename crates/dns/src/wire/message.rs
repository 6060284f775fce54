//! A message of another server: walked record by record, and copied from with its names written out.

use model::names::RecordType;

use super::{Full, HEADER, Writer, flag, skip_name, u16_at, u32_at};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

/// One record of a [`Message`], by its places in it.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub section: Section,
    pub kind: RecordType,
    pub ttl: u32,
    owner: usize,
    /// Where the type stands, behind the owner.
    body: usize,
    pub end: usize,
}

impl Record {
    pub fn start(&self) -> usize {
        self.owner
    }

    /// Where the TTL stands.
    pub fn ttl_at(&self) -> usize {
        self.body + 4
    }

    pub fn data_at(&self) -> usize {
        self.body + 10
    }
}

/// A message whose records all lie inside it.
#[derive(Debug)]
pub struct Message<'a> {
    octets: &'a [u8],
    pub question_end: usize,
    pub records: Vec<Record>,
}

impl<'a> Message<'a> {
    /// `None` when it is malformed or has not exactly one question.
    pub fn parse(octets: &'a [u8]) -> Option<Self> {
        if u16_at(octets, 4)? != 1 {
            return None;
        }
        let question_end = skip_name(octets, HEADER)? + 4;
        let mut at = question_end;
        let mut records = Vec::new();
        for section in [Section::Answer, Section::Authority, Section::Additional] {
            for _ in 0..u16_at(octets, 6 + 2 * section as usize)? {
                let owner = at;
                let body = skip_name(octets, owner)?;
                let kind = RecordType(u16_at(octets, body)?);
                // A TTL with its top bit set means 0 (RFC 2181 §8).
                let ttl = u32_at(octets, body + 4).map(|t| if t > i32::MAX as u32 { 0 } else { t })?;
                let end = body + 10 + usize::from(u16_at(octets, body + 8)?);
                if end > octets.len() {
                    return None;
                }
                records.push(Record { section, kind, ttl, owner, body, end });
                at = end;
            }
        }
        Some(Self { octets, question_end, records })
    }

    pub fn flags(&self) -> u16 {
        u16::from_be_bytes([self.octets[2], self.octets[3]])
    }

    pub fn rcode(&self) -> u16 {
        self.flags() & flag::RCODE
    }

    /// A SOA's last field: how long a "no" may be remembered (RFC 2308 §4).
    pub fn soa_minimum(&self, record: &Record) -> Option<u32> {
        u32_at(self.octets, record.end.checked_sub(4).filter(|at| *at >= record.data_at())?)
    }

    /// Writes one record with every name in full, because pointers mean nothing in another message.
    pub fn copy(&self, record: &Record, ttl: u32, to: &mut Writer<'_>) -> Result<(), Full> {
        to.foreign(record.section, |to| {
            self.copy_name(record.owner, to)?;
            to.octets(&self.octets[record.body..record.body + 4])?;
            to.u32(ttl)?;
            let length_at = to.len();
            to.u16(0)?;
            self.copy_data(record, to)?;
            let length = to.len() - length_at - 2;
            to.patch_u16(length_at, u16::try_from(length).map_err(|_| Full)?);
            Ok(())
        })
    }

    /// RDATA; names in the types of RFC 1035 and in SRV may be compressed, in all others they must not (RFC 3597 §4).
    fn copy_data(&self, record: &Record, to: &mut Writer<'_>) -> Result<(), Full> {
        let (start, end) = (record.data_at(), record.end);
        // Octets in front of the names, and how many names.
        let (front, names) = match record.kind.0 {
            2..=5 | 7..=9 | 12 => (0, 1),
            6 => (0, 2),
            15 | 18 | 21 => (2, 1),
            33 => (6, 1),
            _ => (end - start, 0),
        };
        let mut at = (start + front).min(end);
        to.octets(&self.octets[start..at])?;
        for _ in 0..names {
            self.copy_name(at, to)?;
            at = skip_name(self.octets, at).filter(|at| *at <= end).ok_or(Full)?;
        }
        to.octets(&self.octets[at..end])
    }

    fn copy_name(&self, mut at: usize, to: &mut Writer<'_>) -> Result<(), Full> {
        let mut total = 0;
        // Each pointer must lead further back than the one before, so this ends.
        let mut before = at;
        loop {
            match *self.octets.get(at).ok_or(Full)? {
                0 => return to.octets(&[0]),
                length @ 1..=63 => {
                    let end = at + 1 + usize::from(length);
                    total += usize::from(length) + 1;
                    if total >= model::names::MAX_WIRE {
                        return Err(Full);
                    }
                    to.octets(self.octets.get(at..end).ok_or(Full)?)?;
                    at = end;
                }
                192.. => {
                    let target = usize::from(u16_at(self.octets, at).ok_or(Full)? & 0x3fff);
                    if target >= before || target < HEADER {
                        return Err(Full);
                    }
                    (at, before) = (target, target);
                }
                _ => return Err(Full),
            }
        }
    }
}
