//! From a query and a directory to an answer: pure, and the same for UDP and TCP. What the cluster does not know is
//! handed back for the forwarder; this module refuses to know sockets, time and upstream servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::{
    Kind,
    names::{Directory, Found, MAX_LABEL, Name, Reason, RecordType, Records, ServiceNames, SrvEntry},
};

use smallvec::SmallVec;

use crate::wire::{Extended, Full, HEADER, Query, Rcode, Section, Writer, flag};

/// ExternalName Services that point at one another, before we give up.
const MAX_ALIASES: usize = 8;
/// SRV sets up to this size carry their targets' addresses along.
const MAX_ADDITIONAL: usize = 128;
const IN: u16 = 1;

/// What became of a query.
#[derive(Debug)]
pub enum Outcome {
    /// So many octets of the room are the answer.
    Reply(usize, Rcode),
    /// Somebody else knows.
    Ask(Box<Ask>),
}

/// What to ask upstream, and what to do with the result.
#[derive(Debug)]
pub struct Ask {
    pub name: Name,
    pub kind: RecordType,
    /// The answer so far, when an ExternalName Service, or a pod's search path, led out of the zone.
    pub partial: Option<Vec<u8>>,
    /// The whole answer, should it turn out that there is no such name outside: we asked only because the client's
    /// resolver would have done so in the end.
    pub otherwise: Option<Vec<u8>>,
}

/// How one query is to be answered.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Octets the answer may have.
    pub limit: usize,
    /// Any number: where the rotation of a record set starts.
    pub turn: u64,
    /// There are servers to ask about names outside the zone.
    pub recursion: bool,
    /// Who asks, when walks along a pod's search path are to be answered at their first step.
    pub client: Option<IpAddr>,
}

/// Answers a well-formed query into `room`.
pub fn answer(directory: &Directory, query: &Query<'_>, room: &mut [u8], terms: Terms) -> Outcome {
    let recursion = if terms.recursion { flag::RA } else { 0 };
    let mut writer = Writer::new(query, room, terms.limit);
    writer.set(recursion);
    if let Some((rcode, code, text)) = refusal(query) {
        return refuse(writer, rcode, code, text);
    }
    let mut work = Work { directory, kind: query.kind, turn: terms.turn, writer, owner: HEADER };
    let walk = terms.client.and_then(|client| Walk::of(directory, query, client, terms.recursion));
    if let Some(Walk::Inside(target)) = &walk {
        return shortcut(work, query, target);
    }
    let mut name = &query.name;
    for aliases in 0..=MAX_ALIASES {
        match work.step(name, aliases > 0) {
            Step::Done(rcode) => return Outcome::Reply(work.writer.finish(None), rcode),
            Step::No(rcode, code, why) => {
                work.writer.rcode(rcode);
                // Put into words only when the client can read them.
                let why = if work.writer.explains() { why.text(directory) } else { String::new() };
                let length = work.writer.finish(Some((code, &why)));
                if let Some(Walk::Outside(target)) = walk
                    && rcode == Rcode::NXDOMAIN
                    && aliases == 0
                {
                    let otherwise = Some(room[..length].to_vec());
                    return outside(query, room, terms, target, directory.zone().ttl, otherwise);
                }
                return Outcome::Reply(length, rcode);
            }
            Step::Elsewhere => return elsewhere(work.writer, query, *name, aliases > 0, terms.recursion),
            Step::Alias(next) => name = next,
        }
    }
    work.writer.rcode(Rcode::SERVFAIL);
    let why = "ExternalName Services point at each other in a circle";
    Outcome::Reply(work.writer.finish(Some((Extended::OTHER, why))), Rcode::SERVFAIL)
}

/// Questions that nobody gets an answer to.
fn refusal(query: &Query<'_>) -> Option<(Rcode, Extended, &'static str)> {
    if query.edns.is_some_and(|e| e.version > 0) {
        return Some((Rcode::BADVERS, Extended::OTHER, "EDNS version 0 is the only one there is"));
    }
    if query.class != IN {
        return Some((Rcode::REFUSED, Extended::NOT_SUPPORTED, "only class IN is served"));
    }
    match query.kind {
        RecordType::OPT => Some((Rcode::FORMERR, Extended::OTHER, "OPT is not a type to ask for")),
        RecordType::AXFR | RecordType::IXFR => {
            let text = "zone transfers are for the hosts of --transfer-to, by AXFR over TCP, of the cluster's domain";
            Some((Rcode::REFUSED, Extended::PROHIBITED, text))
        }
        RecordType(128..=254) => {
            Some((Rcode::NOTIMP, Extended::NOT_SUPPORTED, "query types of this kind are not served"))
        }
        _ => None,
    }
}

/// A short answer that says no and why.
pub fn refuse(mut writer: Writer<'_>, rcode: Rcode, code: Extended, text: &str) -> Outcome {
    writer.rcode(rcode);
    Outcome::Reply(writer.finish(Some((code, text))), rcode)
}

/// A name of somebody else's: for the forwarder, if the client wants that and we may.
fn elsewhere(writer: Writer<'_>, query: &Query<'_>, name: Name, aliased: bool, recursion: bool) -> Outcome {
    if aliased && !(recursion && query.recursion_desired()) {
        return Outcome::Reply(writer.finish(None), Rcode::NOERROR);
    }
    if !query.recursion_desired() {
        let text = "not a name of this cluster, and the query asks for no recursion";
        return refuse(writer, Rcode::REFUSED, Extended::NOT_AUTHORITATIVE, text);
    }
    if !recursion {
        let text = "not a name of this cluster, and no upstream server is configured: give one with --dns-upstream";
        return refuse(writer, Rcode::REFUSED, Extended::NOT_AUTHORITATIVE, text);
    }
    Outcome::Ask(Box::new(Ask { name, kind: query.kind, partial: aliased.then(|| writer.suspend()), otherwise: None }))
}

/// Where the walk along the search path that began with this question ends.
enum Walk {
    /// At a name of the cluster.
    Inside(Box<Name>),
    /// At a name outside, unless there is none.
    Outside(Box<Name>),
}

impl Walk {
    /// `www.example.com.NAMESPACE.svc.ZONE`, asked by a pod of that namespace, is the first step of a walk: two more in
    /// the zone would follow, and then `www.example.com`. Names of one label stay: they are Services that are not there.
    fn of(directory: &Directory, query: &Query<'_>, client: IpAddr, recursion: bool) -> Option<Self> {
        let zone = &directory.zone().name;
        let front = query.name.below(zone).filter(|front| *front >= 4)?;
        if query.name.label(front - 1) != b"svc"
            || !matches!(query.kind, RecordType::A | RecordType::AAAA)
            || query.class != IN
            || !query.recursion_desired()
            || directory.namespace_of(&client)?.as_bytes() != query.name.label(front - 2)
        {
            return None;
        }
        let exists = |name: &Name| !matches!(directory.answer(name, query.kind).found, Found::NoName(_));
        // What the first step finds, it finds: endpoints' names have four labels and more.
        if exists(&query.name) {
            return None;
        }
        let asked: SmallVec<[&[u8]; 16]> = query.name.labels().take(front - 2).collect();
        let with = |suffix: &[&[u8]]| {
            let mut name = Name::ROOT;
            asked.iter().chain(suffix).try_for_each(|l| name.push(l)).ok().map(|()| name)
        };
        let svc: SmallVec<[&[u8]; 8]> = std::iter::once(&b"svc"[..]).chain(zone.labels()).collect();
        for name in [with(&svc), with(&svc[1..])].into_iter().flatten() {
            if exists(&name) {
                return Some(Self::Inside(Box::new(name)));
            }
        }
        let own = with(&[])?;
        match own.below(zone) {
            // Written out in full, but with fewer dots than ndots.
            Some(_) => exists(&own).then(|| Self::Inside(Box::new(own))),
            // `redis.production.svc` means the cluster even when it has no such Service.
            None => {
                let last = own.label(own.len() - 1);
                (recursion && last != b"svc" && last != b"local").then(|| Self::Outside(Box::new(own)))
            }
        }
    }
}

/// The answer may be another for another client.
pub fn depends_on_client(directory: &Directory, query: &Query<'_>) -> bool {
    query.name.below(&directory.zone().name).is_some_and(|front| front >= 4)
        && matches!(query.kind, RecordType::A | RecordType::AAAA)
}

/// The end of the walk is in the zone: say so by a CNAME, and add what is there.
fn shortcut(mut work: Work<'_, '_>, query: &Query<'_>, target: &Name) -> Outcome {
    work.writer.set(flag::AA);
    let Step::Alias(target) = work.alias(target) else {
        work.writer.rcode(Rcode::SERVFAIL);
        return Outcome::Reply(work.writer.finish(None), Rcode::SERVFAIL);
    };
    match work.step(target, true) {
        // An ExternalName at the end: its target is for the next question.
        Step::Alias(_) | Step::Elsewhere => Outcome::Reply(work.writer.finish(None), Rcode::NOERROR),
        Step::Done(rcode) => Outcome::Reply(work.writer.finish(None), rcode),
        Step::No(rcode, code, why) => {
            work.writer.rcode(rcode);
            let why = if query.edns.is_some() { why.text(work.directory) } else { String::new() };
            Outcome::Reply(work.writer.finish(Some((code, &why))), rcode)
        }
    }
}

/// The end of the walk is outside: ask there, with the CNAME that leads there written already.
fn outside(
    query: &Query<'_>,
    room: &mut [u8],
    terms: Terms,
    target: Box<Name>,
    ttl: u32,
    otherwise: Option<Vec<u8>>,
) -> Outcome {
    let mut writer = Writer::new(query, room, terms.limit);
    writer.set(flag::AA | flag::RA);
    let written = writer.record(Section::Answer, HEADER, RecordType::CNAME, ttl, |w| w.name(&target));
    if written.is_err() {
        writer.set(flag::TC);
    }
    let partial = Some(writer.suspend());
    Outcome::Ask(Box::new(Ask { name: *target, kind: query.kind, partial, otherwise }))
}

/// An explanation, not yet in words.
enum Why<'a> {
    Reason(Reason<'a>),
    Unlisted(Kind),
    /// An ExternalName that is an address.
    Literal(IpAddr),
}

impl Why<'_> {
    fn text(&self, directory: &Directory) -> String {
        match self {
            Self::Reason(reason) => directory.explain(reason),
            Self::Unlisted(kind) => format!("the list of {kind:?} objects has not arrived from the API server yet"),
            Self::Literal(ip) => format!(
                "externalName {ip} is an address where a name belongs: use a Service without selector and an EndpointSlice"
            ),
        }
    }
}

enum Step<'a> {
    Done(Rcode),
    No(Rcode, Extended, Why<'a>),
    Elsewhere,
    Alias(&'a Name),
}

/// One answer under way.
struct Work<'d, 'b> {
    directory: &'d Directory,
    kind: RecordType,
    turn: u64,
    writer: Writer<'b>,
    /// Where the name that is being answered stands in the message: in the question, or in the last CNAME.
    owner: usize,
}

impl<'d> Work<'d, '_> {
    /// Answers for `name`, which is the question's or that of an alias.
    fn step<'a>(&mut self, name: &'a Name, aliased: bool) -> Step<'a>
    where
        'd: 'a,
    {
        let directory: &'d Directory = self.directory;
        let answer = directory.answer(name, self.kind);
        if let Found::Elsewhere = answer.found {
            return Step::Elsewhere;
        }
        if let Some(kind) = directory.unlisted_for(name) {
            return Step::No(Rcode::SERVFAIL, Extended::NOT_READY, Why::Unlisted(kind));
        }
        self.writer.set(flag::AA);
        match answer.found {
            Found::Elsewhere => Step::Elsewhere,
            Found::Records(records) => {
                if !self.records(&records) {
                    self.writer.set(flag::TC);
                }
                Step::Done(Rcode::NOERROR)
            }
            Found::Alias(target) => self.alias(target),
            Found::NoData(reason) => self.negative(Rcode::NOERROR, reason, name, answer.apex_labels, aliased),
            Found::NoName(reason) => self.negative(Rcode::NXDOMAIN, reason, name, answer.apex_labels, aliased),
        }
    }

    fn ttl(&self) -> u32 {
        self.directory.zone().ttl
    }

    fn alias<'a>(&mut self, target: &'a Name) -> Step<'a> {
        let (owner, ttl) = (self.owner, self.ttl());
        let at = self.writer.len() + 12;
        if self.writer.record(Section::Answer, owner, RecordType::CNAME, ttl, |w| w.name(target)).is_err() {
            self.writer.set(flag::TC);
            return Step::Done(Rcode::NOERROR);
        }
        self.owner = at;
        if self.kind == RecordType::CNAME || self.kind == RecordType::ANY {
            return Step::Done(Rcode::NOERROR);
        }
        if let Ok(ip) = target.to_string().trim_end_matches('.').parse() {
            return Step::No(Rcode::NXDOMAIN, Extended::OTHER, Why::Literal(ip));
        }
        Step::Alias(target)
    }

    /// "No", with the SOA that says for how long (RFC 2308), and the reason.
    fn negative<'a>(
        &mut self,
        rcode: Rcode,
        reason: Reason<'a>,
        name: &Name,
        apex_labels: usize,
        aliased: bool,
    ) -> Step<'a> {
        let zone = self.directory.zone();
        let ttl = zone.ttl.min(zone.negative_ttl);
        // An alias was asked for by a name of the zone, so the zone's name stands in the question.
        let owner = match aliased {
            false => HEADER + name.offset(name.len() - apex_labels),
            true => self.writer.zone_offset(&zone.name).unwrap_or(HEADER),
        };
        if self.soa(Section::Authority, owner, ttl).is_err() {
            self.writer.set(flag::TC);
        }
        Step::No(rcode, Extended::OTHER, Why::Reason(reason))
    }

    fn soa(&mut self, section: Section, owner: usize, ttl: u32) -> Result<(), Full> {
        let directory = self.directory;
        let zone = directory.zone();
        let serial = directory.snapshot().revision as u32;
        if let Some(at) = self.writer.zone_offset(&zone.name) {
            if at == owner {
                return self.writer.zone_soa(section, owner, ttl, serial, zone.negative_ttl);
            }
        }
        self.writer.record(section, owner, RecordType::SOA, ttl, |w| {
            w.name(&below(&["ns", "dns"], &zone.name))?;
            w.name(&below(&["hostmaster"], &zone.name))?;
            // Serial, refresh, retry, expire, minimum.
            for value in [serial, 7200, 1800, 86400, zone.negative_ttl] {
                w.u32(value)?;
            }
            Ok(())
        })
    }

    /// Writes a record set, rotated. False when not all of it fitted.
    fn records(&mut self, records: &Records<'_>) -> bool {
        let (owner, ttl) = (self.owner, self.ttl());
        let start = |n: usize, turn: u64| (turn % n.max(1) as u64) as usize;
        match records {
            Records::A(ips) => {
                self.writer.addresses((owner, ttl), ips, start(ips.len(), self.turn), |ip: Ipv4Addr| ip.octets())
            }
            Records::Aaaa(ips) => {
                self.writer.addresses((owner, ttl), ips, start(ips.len(), self.turn), |ip: Ipv6Addr| ip.octets())
            }
            Records::Address(IpAddr::V4(ip)) => self.writer.addresses((owner, ttl), &[*ip], 0, |ip| ip.octets()),
            Records::Address(IpAddr::V6(ip)) => self.writer.addresses((owner, ttl), &[*ip], 0, |ip| ip.octets()),
            Records::Srv { service, set } => self.srv(service, set, start(set.len(), self.turn)),
            Records::Ptr(targets) => {
                let start = start(targets.len(), self.turn);
                targets[start..].iter().chain(&targets[..start]).all(|target| {
                    self.writer.record(Section::Answer, owner, RecordType::PTR, ttl, |w| w.target(target)).is_ok()
                })
            }
            Records::Txt(text) => self
                .writer
                .record(Section::Answer, owner, RecordType::TXT, ttl, |w| {
                    w.octets(&[text.len() as u8])?;
                    w.octets(text.as_bytes())
                })
                .is_ok(),
            Records::Ns => {
                let server = below(&["ns", "dns"], &self.directory.zone().name);
                self.writer.record(Section::Answer, owner, RecordType::NS, ttl, |w| w.name(&server)).is_ok()
            }
            Records::Soa => self.soa(Section::Answer, owner, ttl).is_ok(),
        }
    }

    fn srv(&mut self, service: &ServiceNames, set: &[SrvEntry], start: usize) -> bool {
        let (owner, ttl) = (self.owner, self.ttl());
        let weight = (100 / set.len().max(1)).max(1) as u16;
        let mut offsets: SmallVec<[_; 8]> = SmallVec::new();
        for entry in set[start..].iter().chain(&set[..start]) {
            // Owner, type, class, TTL, length, then priority, weight and port stand before the target.
            if offsets.len() < MAX_ADDITIONAL {
                offsets.push((entry, self.writer.len() + 12 + 6));
            }
            let target = service.srv_target(entry);
            let done = self.writer.record(Section::Answer, owner, RecordType::SRV, ttl, |w| {
                w.u16(0)?;
                w.u16(weight)?;
                w.u16(entry.port)?;
                w.target(&target)
            });
            if done.is_err() {
                return false;
            }
        }
        // The targets' addresses are a gift (RFC 2782): whatever does not fit is left out without a word.
        let mut seen: SmallVec<[u32; 8]> = SmallVec::new();
        for (entry, at) in offsets.iter().filter(|(_, at)| *at < 0x4000) {
            if seen.contains(&entry.target_number()) {
                continue;
            }
            seen.push(entry.target_number());
            let (v4, v6) = service.srv_addresses(entry);
            for ip in v4 {
                let _ = self.writer.record(Section::Additional, *at, RecordType::A, ttl, |w| w.octets(&ip.octets()));
            }
            for ip in v6 {
                let _ = self.writer.record(Section::Additional, *at, RecordType::AAAA, ttl, |w| w.octets(&ip.octets()));
            }
        }
        true
    }
}

/// `labels` in front of `zone`, or the zone itself when that would be too long a name.
fn below(labels: &[&str], zone: &Name) -> Name {
    let mut name = Name::ROOT;
    let all = labels.iter().map(|l| l.as_bytes()).chain(zone.labels());
    debug_assert!(labels.iter().all(|l| l.len() <= MAX_LABEL));
    for label in all {
        if name.push(label).is_err() {
            return *zone;
        }
    }
    name
}
