//! Zone transfer (AXFR, RFC 5936): one snapshot from its SOA to its SOA, in messages made one at a time, so that a
//! transfer of any zone needs the memory of one message and ends when the client goes away.

use std::collections::VecDeque;

use model::{
    ObjectKey,
    names::{Directory, Name, RecordType, SCHEMA_VERSION, ZoneData, ZoneRecord},
};

use crate::wire::{Full, Query, Section, Writer, flag};

/// Octets of one message: compression pointers reach that far.
const MESSAGE: usize = 16 << 10;

/// A transfer under way.
pub struct Transfer {
    question: Vec<u8>,
    /// Records that come next, taken from the Services up to `reached`.
    queue: VecDeque<ZoneRecord>,
    reached: Option<ObjectKey>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Apex,
    Services,
    End,
}

impl Transfer {
    /// Of the zone that `packet`, a query for AXFR, names.
    pub fn new(packet: &[u8]) -> Self {
        Self { question: packet.to_vec(), queue: VecDeque::new(), reached: None, stage: Stage::Apex }
    }

    /// The next message; `None` after the last. Every call must get the same directory.
    pub fn next(&mut self, directory: &Directory) -> Option<Vec<u8>> {
        if self.stage == Stage::End {
            return None;
        }
        let question = std::mem::take(&mut self.question);
        let query = Query::parse(&question).ok()?;
        let mut room = vec![0; MESSAGE];
        let mut writer = Writer::new(&query, &mut room, MESSAGE);
        writer.set(flag::AA);
        self.fill(directory, &mut writer);
        let length = writer.finish(None);
        room.truncate(length);
        self.question = question;
        Some(room)
    }

    /// Writes until the message is full or the zone is at its end.
    fn fill(&mut self, directory: &Directory, writer: &mut Writer<'_>) {
        let zone = directory.zone();
        let ttl = zone.ttl;
        let serial = directory.snapshot().revision as u32;
        let apex = crate::wire::HEADER;
        if self.stage == Stage::Apex {
            // The room is empty: these fit.
            let _ = writer.zone_soa(Section::Answer, apex, ttl, serial, zone.negative_ttl);
            let _ = apex_records(directory, writer);
            self.stage = Stage::Services;
        }
        loop {
            while let Some(record) = self.queue.front() {
                if put(record, ttl, writer).is_err() {
                    return;
                }
                self.queue.pop_front();
            }
            match directory.records_after(self.reached.as_ref()) {
                Some((key, records)) => {
                    self.reached = Some(key);
                    self.queue.extend(records);
                }
                None => {
                    if writer.zone_soa(Section::Answer, apex, ttl, serial, zone.negative_ttl).is_ok() {
                        self.stage = Stage::End;
                    }
                    return;
                }
            }
        }
    }
}

fn apex_records(directory: &Directory, writer: &mut Writer<'_>) -> Result<(), Full> {
    let zone = directory.zone();
    let ttl = zone.ttl;
    let below = |labels: &[&str]| {
        let mut name = Name::ROOT;
        let all = labels.iter().map(|l| l.as_bytes()).chain(zone.name.labels());
        all.into_iter().try_for_each(|l| name.push(l)).map_err(|_| Full)?;
        Ok(name)
    };
    let server = below(&["ns", "dns"])?;
    writer.record(Section::Answer, crate::wire::HEADER, RecordType::NS, ttl, |w| w.name(&server))?;
    for address in directory.snapshot().services.get(&zone.server).iter().flat_map(|s| s.cluster_ips()) {
        let data = match address {
            std::net::IpAddr::V4(ip) => ZoneData::A(*ip),
            std::net::IpAddr::V6(ip) => ZoneData::Aaaa(*ip),
        };
        put(&ZoneRecord { owner: server, data }, ttl, writer)?;
    }
    let version = below(&["dns-version"])?;
    spelled(&version, RecordType::TXT, ttl, writer, |w| {
        w.octets(&[SCHEMA_VERSION.len() as u8])?;
        w.octets(SCHEMA_VERSION.as_bytes())
    })
}

fn put(record: &ZoneRecord, ttl: u32, writer: &mut Writer<'_>) -> Result<(), Full> {
    match &record.data {
        ZoneData::A(ip) => spelled(&record.owner, RecordType::A, ttl, writer, |w| w.octets(&ip.octets())),
        ZoneData::Aaaa(ip) => spelled(&record.owner, RecordType::AAAA, ttl, writer, |w| w.octets(&ip.octets())),
        ZoneData::Cname(target) => spelled(&record.owner, RecordType::CNAME, ttl, writer, |w| w.name(target)),
        ZoneData::Srv { weight, port, target } => spelled(&record.owner, RecordType::SRV, ttl, writer, |w| {
            w.u16(0)?;
            w.u16(*weight)?;
            w.u16(*port)?;
            w.octets(target.wire())
        }),
    }
}

/// A whole record or nothing of it.
fn spelled(
    owner: &Name,
    kind: RecordType,
    ttl: u32,
    writer: &mut Writer<'_>,
    data: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<(), Full> {
    writer.foreign(Section::Answer, |w| {
        w.name(owner)?;
        w.u16(kind.0)?;
        w.u16(1)?;
        w.u32(ttl)?;
        let at = w.len();
        w.u16(0)?;
        data(w)?;
        w.patch_u16(at, (w.len() - at - 2) as u16);
        Ok(())
    })
}
