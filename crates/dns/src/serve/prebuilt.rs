//! Answers as they left, for the next who asks the same, octet by octet. They belong to one directory and die with it, so
//! they are never older than the newest snapshot; they are a matter of speed alone. A table from questions to octets, with
//! nothing but a rotation between them, is also what a program in the kernel could answer from.

use std::sync::Arc;

use model::names::{Directory, RecordType};

use crate::{
    metrics::{Tally, Transport},
    wire::{HEADER, Rcode},
};

/// Sets, a power of two, of so many slots each. With answers of usual length, a megabyte when all are full.
const SETS: usize = 1024;
const WAYS: usize = 4;
/// Longer questions and answers are rare, and not worth the room.
const MAX_KEY: usize = 126;
const MAX_ANSWER: usize = 600;

/// The answers of one thread.
pub struct Prebuilt {
    /// Held, so that another directory cannot come to lie in its place.
    directory: Option<Arc<Directory>>,
    epoch: u64,
    /// For each slot the hash of its question, mixed with its epoch: four of them in half a cache line.
    tags: Box<[[u64; WAYS]]>,
    slots: Box<[Slot]>,
    /// Which of a full set goes next.
    victim: usize,
}

#[derive(Default, Clone)]
struct Slot {
    /// Everything behind the id: of the question, then of the answer.
    octets: Vec<u8>,
    key: usize,
    turn: Option<Ring>,
    kind: RecordType,
    rcode: Rcode,
}

/// Address records in an answer, which may begin with any of them.
#[derive(Clone, Copy)]
struct Ring {
    start: usize,
    size: usize,
    count: usize,
}

impl Prebuilt {
    pub fn new() -> Self {
        Self {
            directory: None,
            epoch: 0,
            tags: vec![[0; WAYS]; SETS].into(),
            slots: vec![Slot::default(); SETS * WAYS].into(),
            victim: 0,
        }
    }

    /// Forgets what was not made from `directory`.
    pub fn follow(&mut self, directory: &Arc<Directory>) {
        if !self.directory.as_ref().is_some_and(|d| Arc::ptr_eq(d, directory)) {
            self.directory = Some(directory.clone());
            self.epoch += 1;
        }
    }

    /// Lets go of a directory that nobody asks about.
    pub fn rest(&mut self) {
        self.directory = None;
    }

    /// The set of a question, and its tag: never 0, and another one in each epoch.
    fn place(&self, key: &[u8]) -> (usize, u64) {
        let hash = hash(key);
        (hash as usize % SETS, (hash ^ self.epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    /// Writes the answer to `packet`, begun at a record that depends on `turn`.
    pub fn answer(&self, packet: &[u8], turn: u64, room: &mut [u8]) -> Option<(usize, RecordType, Rcode)> {
        let key = packet.get(2..).filter(|k| k.len() <= MAX_KEY)?;
        let (set, tag) = self.place(key);
        let way = self.tags[set].iter().position(|t| *t == tag)?;
        let slot = &self.slots[set * WAYS + way];
        if slot.octets.get(..slot.key)? != key {
            return None;
        }
        let answer = &slot.octets[slot.key..];
        room[..2].copy_from_slice(&packet[..2]);
        room[2..2 + answer.len()].copy_from_slice(answer);
        if let Some(Ring { start, size, count }) = slot.turn {
            let records = &answer[start - 2..start - 2 + size * count];
            let (before, after) = records.split_at((turn % count as u64) as usize * size);
            room[start..start + after.len()].copy_from_slice(after);
            room[start + after.len()..start + records.len()].copy_from_slice(before);
        }
        Some((2 + answer.len(), slot.kind, slot.rcode))
    }

    /// Keeps `answer`, unless another one could be given to the same question.
    pub fn keep(&mut self, packet: &[u8], answer: &[u8], kind: RecordType, rcode: Rcode) {
        let Some(key) = packet.get(2..).filter(|k| k.len() <= MAX_KEY && answer.len() <= MAX_ANSWER) else { return };
        let Some(turn) = ring(packet, answer, kind) else { return };
        let (set, tag) = self.place(key);
        let way = self.tags[set].iter().position(|t| *t == tag || *t == 0).unwrap_or_else(|| {
            self.victim = self.victim.wrapping_add(1);
            self.victim % WAYS
        });
        self.tags[set][way] = tag;
        let slot = &mut self.slots[set * WAYS + way];
        slot.octets.clear();
        slot.octets.extend_from_slice(key);
        slot.octets.extend_from_slice(&answer[2..]);
        (slot.key, slot.turn, slot.kind, slot.rcode) = (key.len(), turn, kind, rcode);
    }
}

/// How an answer may be turned; the outer `None` when that is not known, or it was cut and so differs each time.
fn ring(packet: &[u8], answer: &[u8], kind: RecordType) -> Option<Option<Ring>> {
    let count = usize::from(u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]));
    match count {
        _ if answer[2] & 0x02 != 0 => return None,
        0 | 1 => return Some(None),
        _ => {}
    }
    let size = match kind {
        RecordType::A => 16,
        RecordType::AAAA => 28,
        _ => return None,
    };
    let name = packet[HEADER..].iter();
    let mut start = HEADER + 5;
    let mut skip = 0;
    // The question's name has been read before: this finds its end.
    for octet in name {
        match (skip, *octet) {
            (0, 0) => break,
            (0, length) => skip = usize::from(length),
            _ => skip -= 1,
        }
        start += 1;
    }
    let records = answer.get(start..start + size * count)?;
    let [high, low] = kind.0.to_be_bytes();
    // Each belongs to the question's name and is of the question's type: no alias in front.
    let same = records.chunks(size).all(|r| r[..4] == [0xc0, HEADER as u8, high, low]);
    same.then_some(Some(Ring { start, size, count }))
}

/// Counts as the long way would have done.
pub fn tally(tally: &mut Tally, peer: &std::net::SocketAddr, kind: RecordType, rcode: Rcode) {
    tally.request(Transport::Udp, peer, kind);
    tally.response(rcode);
}

fn hash(key: &[u8]) -> u64 {
    let mut hash = key.len() as u64;
    let mut mix = |word: u64| hash = (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (words, rest) = key.as_chunks::<8>();
    words.iter().for_each(|w| mix(u64::from_le_bytes(*w)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(u64::from_le_bytes(last));
    hash ^ hash >> 29
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;
    use crate::tests::{answer_to, directory, packet};

    /// Kept answers are those of the long way, turned alike.
    #[test]
    fn seed_089_kept_answers_are_the_same_and_turn() {
        let endpoints: String = (0..7).map(|i| format!("- {{ addresses: [10.244.0.{i}] }}\n")).collect();
        let d = Arc::new(directory(&format!(
            "kind: Service\nmetadata: {{ name: h }}\nspec: {{ clusterIP: None }}\n---\nkind: EndpointSlice\nmetadata: {{ name: h-1, labels: {{ kubernetes.io/service-name: h }} }}\naddressType: IPv4\nports: [{{ name: http, port: 80 }}]\nendpoints:\n{endpoints}"
        )));
        let mut kept = Prebuilt::new();
        kept.follow(&d);
        let name = "h.default.svc.cluster.local";
        for (question, kind) in [("A", RecordType::A), ("A +edns", RecordType::A), ("AAAA +edns", RecordType::AAAA)] {
            let asked = packet(&format!("{name} {question}"));
            kept.keep(&asked, &answer_to(&d, &asked, None, 3), kind, Rcode::NOERROR);
            let mut firsts = std::collections::BTreeSet::new();
            for turn in 0..20 {
                let mut room = vec![0; 2048];
                let (length, ..) = kept.answer(&asked, turn, &mut room).unwrap();
                let (ours, long) = (
                    Message::from_vec(&room[..length]).unwrap(),
                    Message::from_vec(&answer_to(&d, &asked, None, turn)).unwrap(),
                );
                let sorted = |m: &Message| {
                    let mut all: Vec<_> = m.answers.iter().map(ToString::to_string).collect();
                    all.sort();
                    (all, m.metadata, m.edns.clone(), m.authorities.clone())
                };
                assert_eq!(sorted(&ours), sorted(&long));
                firsts.extend(ours.answers.first().map(ToString::to_string));
            }
            assert_eq!(firsts.len(), ours_count(kind));
        }
        let srv = packet("_http._tcp.h.default.svc.cluster.local SRV");
        kept.keep(&srv, &answer_to(&d, &srv, None, 0), RecordType::SRV, Rcode::NOERROR);
        assert!(kept.answer(&srv, 0, &mut [0; 2048]).is_none());
        // Another spelling is another question, and another directory forgets everything.
        let asked = packet(&format!("{name} A"));
        assert!(kept.answer(&asked, 0, &mut [0; 2048]).is_some());
        let mut shouted = asked.clone();
        shouted[13] = b'H';
        assert!(kept.answer(&shouted, 0, &mut [0; 2048]).is_none());
        kept.follow(&Arc::new(d.advance(d.snapshot())));
        assert!(kept.answer(&asked, 0, &mut [0; 2048]).is_none());
    }

    fn ours_count(kind: RecordType) -> usize {
        if kind == RecordType::A { 7 } else { 0 }
    }
}
