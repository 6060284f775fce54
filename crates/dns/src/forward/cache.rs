//! Upstream answers, kept for as long as their TTLs allow.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use model::names::{Name, RecordType};
use smallvec::SmallVec;

use crate::wire::{Message, Query, Rcode, Record, Section, flag};

/// Answers kept at most, in all shards together.
const MAX_ENTRIES: usize = 16 * 1024;
const SHARDS: usize = 16;
/// However long the TTL, an answer is asked for again after this.
const MAX_AGE: u32 = 3600;
/// A "no" is not remembered for longer than this.
const MAX_NEGATIVE: u32 = 300;

/// What tells one upstream question from another: name, type, DNSSEC OK and checking disabled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Flags, type, then the name in wire form.
    octets: SmallVec<[u8; 64]>,
}

impl Key {
    pub fn new(name: &Name, kind: RecordType, query: &Query<'_>) -> Self {
        let mut octets = SmallVec::new();
        octets.push(u8::from(query.dnssec()) | u8::from(query.flags() & flag::CD != 0) << 1);
        octets.extend_from_slice(&kind.0.to_be_bytes());
        octets.extend_from_slice(name.wire());
        Self { octets }
    }

    pub fn dnssec(&self) -> bool {
        self.octets[0] & 1 != 0
    }

    pub fn checking_disabled(&self) -> bool {
        self.octets[0] & 2 != 0
    }

    pub fn kind(&self) -> [u8; 2] {
        [self.octets[1], self.octets[2]]
    }

    pub fn name(&self) -> &[u8] {
        &self.octets[3..]
    }
}

/// A checked message of an upstream server, without its OPT record.
#[derive(Debug)]
pub struct Response {
    pub octets: Box<[u8]>,
    pub records: Box<[Record]>,
    pub flags: u16,
    pub rcode: u16,
    born: Instant,
    /// How long it may be given again.
    lifetime: Duration,
}

impl Response {
    /// `None` when the message is malformed.
    pub fn new(octets: &[u8]) -> Option<Self> {
        let message = Message::parse(octets)?;
        // OPT belongs to the hop, not to the answer. It stands last but for signatures of the hop.
        let keep = message.records.iter().position(|r| r.kind == RecordType::OPT).unwrap_or(message.records.len());
        let end = message.records[..keep].last().map_or(message.question_end, |r| r.end);
        let mut kept: Box<[u8]> = octets[..end].into();
        let additional = message.records[..keep].iter().filter(|r| r.section == Section::Additional).count();
        kept[10..12].copy_from_slice(&(additional as u16).to_be_bytes());
        Some(Self {
            octets: kept,
            records: message.records[..keep].into(),
            flags: message.flags(),
            rcode: message.rcode(),
            born: Instant::now(),
            lifetime: Duration::from_secs(lifetime(&message).into()),
        })
    }

    /// In seconds.
    pub fn age(&self) -> u32 {
        self.born.elapsed().as_secs().try_into().unwrap_or(u32::MAX)
    }

    /// The end of the last record before `limit`.
    pub fn fitting(&self, limit: usize) -> usize {
        let start = self.records.first().map_or(self.octets.len(), Record::start);
        self.records.iter().map(|r| r.end).take_while(|end| *end <= limit).last().unwrap_or(start)
    }
}

fn lifetime(message: &Message<'_>) -> u32 {
    let ttl = |section| message.records.iter().filter(move |r| r.section == section);
    let rcode = message.rcode();
    let answers = ttl(Section::Answer).map(|r| r.ttl).min();
    match answers {
        _ if rcode != Rcode::NOERROR.0 && rcode != Rcode::NXDOMAIN.0 => 0,
        Some(ttl) if rcode == Rcode::NOERROR.0 => ttl.min(MAX_AGE),
        answers => {
            let soa = ttl(Section::Authority).find(|r| r.kind == RecordType::SOA);
            let no = soa.and_then(|r| Some(message.soa_minimum(r)?.min(r.ttl))).unwrap_or(0);
            no.min(answers.unwrap_or(u32::MAX)).min(MAX_NEGATIVE)
        }
    }
}

type Shard = Mutex<HashMap<Key, Arc<Response>>>;

pub struct Cache {
    shards: [Shard; SHARDS],
    state: RandomState,
    longest: Duration,
}

impl Cache {
    /// That keeps nothing for longer than so many seconds.
    pub fn new(longest: Option<u32>) -> Self {
        let longest = Duration::from_secs(longest.unwrap_or(MAX_AGE).min(MAX_AGE).into());
        Self { shards: Default::default(), state: RandomState::new(), longest }
    }

    fn shard(&self, key: &Key) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Response>>> {
        let at = self.state.hash_one(key) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &Key, now: Instant) -> Option<Arc<Response>> {
        let shard = self.shard(key);
        shard.get(key).filter(|r| now < r.born + r.lifetime.min(self.longest)).cloned()
    }

    pub fn put(&self, key: Key, response: &Arc<Response>) {
        if response.lifetime.is_zero() || self.longest.is_zero() {
            return;
        }
        let mut shard = self.shard(&key);
        if shard.len() >= MAX_ENTRIES / SHARDS {
            let now = Instant::now();
            shard.retain(|_, r| now < r.born + r.lifetime);
            // Still full of what is fresh: let go of an arbitrary half.
            if shard.len() >= MAX_ENTRIES / SHARDS {
                let mut keep = false;
                shard.retain(|_, _| {
                    keep = !keep;
                    keep
                });
            }
        }
        shard.insert(key, response.clone());
    }
}
