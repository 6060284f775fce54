//! Answers, written straight into the buffer they are sent from.

use model::names::{Name, RecordType, Target};

use super::{Edns, Extended, HEADER, OPT_SIZE, Query, Rcode, Section, UDP_MAX, flag, option};

/// The message would pass its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A message under way: header, the question as the client spelled it, and records.
pub struct Writer<'b> {
    room: &'b mut [u8],
    length: usize,
    /// Octets that the message may have. Room for the OPT record is not in it until [`Self::finish`].
    limit: usize,
    flags: u16,
    rcode: Rcode,
    /// Answer, authority, additional.
    counts: [u16; 3],
    question: &'b Name,
    edns: Option<&'b Edns>,
}

impl<'b> Writer<'b> {
    /// An answer to `query` with room for `limit` octets, or for fewer if `room` is smaller.
    pub fn new(query: &'b Query<'_>, room: &'b mut [u8], limit: usize) -> Self {
        let question = query.question();
        let reserve = query.opt_size();
        let limit = limit.min(room.len()).saturating_sub(reserve);
        room[..2].copy_from_slice(&query.id());
        room[HEADER..HEADER + question.len()].copy_from_slice(question);
        Self {
            length: HEADER + question.len(),
            room,
            limit,
            flags: flag::QR | query.flags() & (flag::RD | flag::CD),
            rcode: Rcode::NOERROR,
            counts: [0; 3],
            question: &query.name,
            edns: query.edns.as_ref(),
        }
    }

    /// Goes on with a message that [`Self::suspend`] left.
    pub fn resume(query: &'b Query<'_>, room: &'b mut [u8], limit: usize, partial: &[u8]) -> Self {
        let mut writer = Self::new(query, room, limit);
        writer.room[..partial.len()].copy_from_slice(partial);
        writer.length = partial.len();
        writer.flags = u16::from_be_bytes([partial[2], partial[3]]);
        writer.counts[0] = u16::from_be_bytes([partial[6], partial[7]]);
        writer
    }

    /// The message so far, to be resumed once somebody else has answered.
    pub fn suspend(mut self) -> Vec<u8> {
        self.header();
        self.room[..self.length].to_vec()
    }

    pub fn set(&mut self, flags: u16) {
        self.flags |= flags;
    }

    pub fn rcode(&mut self, rcode: Rcode) {
        self.rcode = rcode;
    }

    pub fn len(&self) -> usize {
        self.length
    }

    /// Octets left for records.
    pub fn left(&self) -> usize {
        self.limit.saturating_sub(self.length)
    }

    fn put(&mut self, octets: &[u8]) -> Result<(), Full> {
        if octets.len() > self.left() {
            return Err(Full);
        }
        self.room[self.length..self.length + octets.len()].copy_from_slice(octets);
        self.length += octets.len();
        Ok(())
    }

    /// A whole record or nothing of it. `owner` is the offset of a name already in the message; `data` writes RDATA.
    pub fn record(
        &mut self,
        section: Section,
        owner: usize,
        kind: RecordType,
        ttl: u32,
        data: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let start = self.length;
        let write = || {
            let mut head = [0; 12];
            head[..2].copy_from_slice(&(0xc000 | owner as u16).to_be_bytes());
            head[2..4].copy_from_slice(&kind.0.to_be_bytes());
            head[5] = 1;
            head[6..10].copy_from_slice(&ttl.to_be_bytes());
            self.put(&head)?;
            data(self)?;
            let length = (self.length - start - 12) as u16;
            self.room[start + 10..start + 12].copy_from_slice(&length.to_be_bytes());
            self.counts[section as usize] += 1;
            Ok(())
        };
        write().inspect_err(|_| self.length = start)
    }

    /// A record whose owner is spelled out by `owner`. A whole record or nothing of it.
    pub fn foreign(&mut self, section: Section, write: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        let start = self.length;
        match write(self) {
            Ok(()) => self.counts[section as usize] += 1,
            Err(Full) => {
                self.length = start;
                return Err(Full);
            }
        }
        Ok(())
    }

    pub fn octets(&mut self, octets: &[u8]) -> Result<(), Full> {
        self.put(octets)
    }

    pub fn u16(&mut self, value: u16) -> Result<(), Full> {
        self.put(&value.to_be_bytes())
    }

    pub fn u32(&mut self, value: u32) -> Result<(), Full> {
        self.put(&value.to_be_bytes())
    }

    /// Overwrites two octets written before, for lengths known late.
    pub fn patch_u16(&mut self, at: usize, value: u16) {
        self.room[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Overwrites four octets written before.
    pub fn patch_u32(&mut self, at: usize, value: u32) {
        self.room[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Records that were written as mere octets: in the answer, authority and additional sections.
    pub fn add_counts(&mut self, counts: [u16; 3]) {
        for (to, n) in self.counts.iter_mut().zip(counts) {
            *to += n;
        }
    }

    /// A name, compressed against the question: for RDATA of the types of RFC 1035 (RFC 3597 §4).
    pub fn name(&mut self, name: &Name) -> Result<(), Full> {
        let (n, q) = (name.len(), self.question.len());
        let common = (0..n.min(q)).take_while(|i| name.label(n - 1 - i) == self.question.label(q - 1 - i)).count();
        if common == 0 {
            return self.put(name.wire());
        }
        self.put(name.slice(0, n - common))?;
        let at = HEADER + self.question.offset(q - common);
        self.u16(0xc000 | at as u16)
    }

    /// The SOA of a zone whose name stands in the question, the commonest "no" of all, in one piece. `owner` is the offset
    /// of the zone's name.
    pub fn zone_soa(
        &mut self,
        section: Section,
        owner: usize,
        ttl: u32,
        serial: u32,
        minimum: u32,
    ) -> Result<(), Full> {
        #[rustfmt::skip]
        const PATTERN: [u8; 54] = *b"\xc0\x00\x00\x06\x00\x01\0\0\0\0\x00\x2a\
            \x02ns\x03dns\xc0\x00\x0ahostmaster\xc0\x00\
            \0\0\0\0\x00\x00\x1c\x20\x00\x00\x07\x08\x00\x01\x51\x80\0\0\0\0";
        let mut record = PATTERN;
        let pointer = (0xc000 | owner as u16).to_be_bytes();
        for at in [0, 19, 32] {
            record[at..at + 2].copy_from_slice(&pointer);
        }
        for (at, value) in [(6, ttl), (34, serial), (50, minimum)] {
            record[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        self.put(&record)?;
        self.counts[section as usize] += 1;
        Ok(())
    }

    /// A name in full, as SRV wants it (RFC 2782).
    pub fn target(&mut self, target: &Target<'_>) -> Result<(), Full> {
        if let Some(label) = target.label {
            self.put(&[label.len() as u8])?;
            self.put(label.as_bytes())?;
        }
        self.put(target.base)
    }

    /// As many A records of `ips` as fit, from `start` on and around. For the one answer that must be fast.
    /// Returns whether all of them did.
    pub fn addresses<const N: usize, T: Copy>(
        &mut self,
        (owner, ttl): (usize, u32),
        ips: &[T],
        start: usize,
        octets: impl Fn(T) -> [u8; N],
    ) -> bool {
        let size = 12 + N;
        let fit = (self.left() / size).min(ips.len()).min(usize::from(u16::MAX));
        let kind = if N == 4 { RecordType::A } else { RecordType::AAAA };
        let mut head = [0; 12];
        head[..2].copy_from_slice(&(0xc000 | owner as u16).to_be_bytes());
        head[2..4].copy_from_slice(&kind.0.to_be_bytes());
        head[5] = 1;
        head[6..10].copy_from_slice(&ttl.to_be_bytes());
        head[11] = N as u8;
        let (after, before) = (&ips[start..], &ips[..start]);
        let room = self.room[self.length..self.length + fit * size].chunks_exact_mut(size);
        for (to, ip) in room.zip(after.iter().chain(before)) {
            to[..12].copy_from_slice(&head);
            to[12..].copy_from_slice(&octets(*ip));
        }
        self.length += fit * size;
        self.counts[0] += fit as u16;
        fit == ips.len()
    }

    /// Where `zone` stands in the question, if the question's name is in it.
    pub fn zone_offset(&self, zone: &Name) -> Option<usize> {
        self.question.below(zone).map(|front| HEADER + self.question.offset(front))
    }

    fn header(&mut self) {
        let flags = self.flags | self.rcode.0 & flag::RCODE;
        self.room[2..4].copy_from_slice(&flags.to_be_bytes());
        self.room[4..6].copy_from_slice(&[0, 1]);
        for (i, count) in self.counts.iter().enumerate() {
            self.room[6 + 2 * i..8 + 2 * i].copy_from_slice(&count.to_be_bytes());
        }
    }

    /// Does the client understand EDNS, and so an explanation?
    pub fn explains(&self) -> bool {
        self.edns.is_some()
    }

    /// Adds the OPT record if the client sent one, with an explanation if there is room for it, and returns the
    /// message's length.
    pub fn finish(mut self, why: Option<(Extended, &str)>) -> usize {
        if let Some(edns) = self.edns {
            let options = edns.reply.octets();
            self.limit += OPT_SIZE + options.len();
            let mut opt = [0; OPT_SIZE];
            opt[1..3].copy_from_slice(&RecordType::OPT.0.to_be_bytes());
            opt[3..5].copy_from_slice(&(UDP_MAX as u16).to_be_bytes());
            opt[5] = (self.rcode.0 >> 4) as u8;
            opt[7] = if edns.dnssec { 0x80 } else { 0 };
            opt[9..].copy_from_slice(&(options.len() as u16).to_be_bytes());
            if self.put(&opt).is_ok() && self.put(options).is_ok() {
                self.counts[2] += 1;
                if let Some((code, text)) = why {
                    self.explain(code, text);
                }
            }
        }
        self.header();
        self.length
    }

    /// One more option in the OPT record that was just written, an Extended DNS Error, if it fits.
    fn explain(&mut self, code: Extended, text: &str) {
        let mut end = text.len().min(250);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let (start, text) = (self.length, &text.as_bytes()[..end]);
        let mut write = || {
            self.u16(option::EXTENDED_ERROR)?;
            self.u16(2 + text.len() as u16)?;
            self.u16(code.0)?;
            self.put(text)
        };
        match write() {
            Ok(()) => {
                let before = self.edns.map_or(0, |e| e.reply.octets().len());
                self.patch_u16(start - before - 2, (before + self.length - start) as u16);
            }
            Err(Full) => self.length = start,
        }
    }
}

/// An answer of a header alone, to something that could not be read.
pub fn header_only(packet: &[u8], rcode: Rcode, room: &mut [u8]) -> usize {
    room[..HEADER].fill(0);
    room[..2].copy_from_slice(&packet[..2]);
    let flags = u16::from_be_bytes([packet[2], packet[3]]) & (flag::OPCODE | flag::RD) | flag::QR | rcode.0;
    room[2..4].copy_from_slice(&flags.to_be_bytes());
    HEADER
}
