//! What happened to one resource lately: enough for watches to resume and for lists of the recent past. Bounded in number
//! and bytes; whoever asks for more than it holds is told so and lists again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{Compacted, Stored};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

pub struct Event {
    pub kind: EventKind,
    /// The new object; of a deletion its last state, carrying the deletion's revision.
    pub object: Arc<Stored>,
    /// What was there before: needed when a selector stops matching.
    pub before: Option<Arc<Stored>>,
}

impl Event {
    pub fn revision(&self) -> u64 {
        self.object.revision
    }

    fn bytes(&self) -> usize {
        self.object.json.len() + 64
    }
}

const MAX_EVENTS: usize = 50_000;
const MAX_BYTES: usize = 16 << 20;

pub(super) struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Everything after this revision is in `events`.
    complete_after: u64,
}

impl History {
    pub(super) fn starting_at(revision: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, complete_after: revision }
    }

    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.bytes();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > 1) {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= dropped.bytes();
            self.complete_after = dropped.revision();
        }
    }

    fn first_after(&self, revision: u64) -> Result<usize, Compacted> {
        if revision < self.complete_after {
            return Err(Compacted { asked: revision, oldest: self.complete_after });
        }
        Ok(self.events.partition_point(|e| e.revision() <= revision))
    }

    pub(super) fn since(&self, revision: u64) -> Result<Vec<Arc<Event>>, Compacted> {
        let first = self.first_after(revision)?;
        Ok(self.events.range(first..).cloned().collect())
    }

    /// For every key touched after `revision`, what was there at `revision`.
    pub(super) fn undo_to(&self, revision: u64) -> Result<BTreeMap<Arc<str>, Option<Arc<Stored>>>, Compacted> {
        let first = self.first_after(revision)?;
        let mut undo = BTreeMap::new();
        for event in self.events.range(first..) {
            undo.entry(event.object.key.clone()).or_insert_with(|| event.before.clone());
        }
        Ok(undo)
    }
}
