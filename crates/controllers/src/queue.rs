//! The loop of every controller. Level-triggered: what changed only says which objects to decide again; the decision
//! reads the newest world. One object is never decided twice at the same time, nor from a world that lacks the last
//! decision's writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{Error, write::Writer};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::sync::watch;

use crate::{
    hand::{Hand, Write},
    world::World,
};

/// Decisions on their way at a time.
const CONCURRENT: usize = 64;
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// A write that has not shown up by then is no longer waited for: the API server may have been restored from a backup.
const LOST: Duration = Duration::from_secs(30);

pub trait Controller: Send + Sync + 'static {
    /// The `fieldManager` of its writes.
    const NAME: &'static str;
    type Key: Ord + Clone + Debug + Send + Sync;

    /// Everything it reads has been listed.
    fn is_ready(&self, world: &World) -> bool;

    /// Adds the keys whose decision may differ between the two worlds.
    fn affected(&self, old: &World, new: &World, keys: &mut BTreeSet<Self::Key>);

    /// Decides about one key and writes. The duration is when to look again although nothing will have changed.
    fn reconcile(
        &self,
        world: &World,
        key: &Self::Key,
        hand: &Hand<'_>,
    ) -> impl Future<Output = Result<Option<Duration>, Error>> + Send;
}

#[derive(Default)]
struct Entry {
    dirty: bool,
    running: bool,
    failures: u32,
    /// Not before this.
    due: Option<Instant>,
    /// Look again then.
    recheck: Option<Instant>,
    writes: Vec<Write>,
    written: Option<Instant>,
}

impl Entry {
    fn idle(&self) -> bool {
        !self.dirty && !self.running && !self.waits() && self.failures == 0
    }

    /// For time to pass or for its writes to show up.
    fn waits(&self) -> bool {
        self.due.is_some() || self.recheck.is_some() || !self.writes.is_empty()
    }

    /// Drops what need not be waited for any more. The answer is when time alone will change something.
    fn settle(&mut self, world: &World, now: Instant) -> Option<Instant> {
        self.writes.retain(|w| !w.is_in(world));
        if self.written.is_some_and(|w| w + LOST <= now) {
            self.writes.clear();
        }
        self.due = self.due.filter(|t| *t > now);
        if self.recheck.is_some_and(|t| t <= now) {
            self.recheck = None;
            self.dirty = true;
        }
        let lost = self.written.filter(|_| !self.writes.is_empty()).map(|w| w + LOST);
        [self.due, self.recheck, lost].into_iter().flatten().min()
    }

    fn may_start(&self) -> bool {
        self.dirty && !self.running && self.due.is_none() && self.writes.is_empty()
    }
}

/// All keys there is something to do or to wait for. Those that wait are few; those that can start may be very many.
struct Queue<K> {
    entries: BTreeMap<K, Entry>,
    ready: BTreeSet<K>,
    waiting: BTreeSet<K>,
}

impl<K: Ord + Clone> Queue<K> {
    fn new() -> Self {
        Self { entries: BTreeMap::new(), ready: BTreeSet::new(), waiting: BTreeSet::new() }
    }

    /// Sorts a key into the right set after its entry has changed.
    fn place(&mut self, key: &K) {
        let Some(entry) = self.entries.get(key) else { return };
        for (set, belongs) in
            [(&mut self.ready, entry.may_start()), (&mut self.waiting, entry.waits() && !entry.running)]
        {
            if belongs {
                set.insert(key.clone());
            } else {
                set.remove(key);
            }
        }
        if entry.idle() {
            self.entries.remove(key);
        }
    }

    fn touch(&mut self, key: K) {
        self.entries.entry(key.clone()).or_default().dirty = true;
        self.place(&key);
    }

    /// Looks through the waiting ones; the answer is when to do so again at the latest.
    fn settle(&mut self, world: &World, now: Instant) -> Option<Instant> {
        let mut wake: Option<Instant> = None;
        for key in self.waiting.iter().cloned().collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&key) {
                wake = [wake, entry.settle(world, now)].into_iter().flatten().min();
            }
            self.place(&key);
        }
        wake
    }

    fn start(&mut self) -> Option<K> {
        let key = self.ready.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.dirty = false;
            entry.running = true;
            entry.recheck = None;
        }
        self.place(&key);
        Some(key)
    }

    fn finish(
        &mut self,
        key: &K,
        result: Result<Option<Duration>, &Error>,
        writes: Vec<Write>,
        now: Instant,
    ) -> Option<Duration> {
        let entry = self.entries.entry(key.clone()).or_default();
        entry.running = false;
        entry.writes = writes;
        entry.written = Some(now);
        let mut wait = None;
        match result {
            Ok(recheck) => {
                entry.failures = 0;
                entry.recheck = recheck.map(|d| now + d);
            }
            Err(_) => {
                let pause = (FIRST_RETRY * 2_u32.saturating_pow(entry.failures.min(16))).min(LAST_RETRY);
                entry.failures += 1;
                entry.dirty = true;
                entry.due = Some(now + pause);
                wait = Some(pause);
            }
        }
        self.place(key);
        wait
    }
}

/// Runs until the world ends.
pub async fn run<C: Controller>(controller: C, client: kube::Client, mut worlds: watch::Receiver<Arc<World>>) {
    let writer = Writer::new(client, C::NAME);
    let (controller, writer) = (&controller, &writer);
    let mut world = Arc::new(World::default());
    let mut queue: Queue<C::Key> = Queue::new();
    let mut running = FuturesUnordered::new();
    loop {
        let next = worlds.borrow_and_update().clone();
        if controller.is_ready(&next) && !Arc::ptr_eq(&next, &world) {
            let mut fresh = BTreeSet::new();
            controller.affected(&world, &next, &mut fresh);
            world = next;
            fresh.into_iter().for_each(|key| queue.touch(key));
        }
        let wake = queue.settle(&world, Instant::now());
        while running.len() < CONCURRENT
            && let Some(key) = queue.start()
        {
            let world = world.clone();
            running.push(async move {
                let hand = Hand::new(writer);
                let result = controller.reconcile(&world, &key, &hand).await;
                (key, result, hand.into_writes())
            });
        }
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = worlds.changed() => if changed.is_err() { return },
            Some((key, result, writes)) = running.next() => {
                let wait = queue.finish(&key, result.as_ref().map(|d| *d), writes, Instant::now());
                if let (Err(e), Some(wait)) = (&result, wait) {
                    tell(C::NAME, &key, e, wait);
                }
            }
            () = sleep => (),
        }
    }
}

/// A conflict is everyday business; the rest an operator should see.
fn tell(name: &str, key: &impl Debug, e: &Error, wait: Duration) {
    if e.is_conflict() || e.is_not_found() {
        tracing::debug!("{name} {key:?}: {e}; again in {wait:?}");
    } else {
        tracing::warn!("{name} {key:?}: {e}; again in {wait:?}");
    }
}

#[cfg(test)]
mod tests {
    use model::Kind;

    use super::*;
    use crate::world::Table;

    fn failure() -> Error {
        Error::Unreachable { what: "test".into(), cause: "test".into() }
    }

    #[test]
    fn a_key_waits_for_its_own_writes_and_is_never_run_twice_at_once() {
        let (mut q, t) = (Queue::new(), Instant::now());
        let table = Table::Model(Kind::Pod);
        q.touch(1);
        assert_eq!((q.start(), q.start()), (Some(1), None));
        q.touch(1);
        assert_eq!(q.start(), None, "it is running");
        assert_eq!(q.finish(&1, Ok(None), vec![Write::At(table, 7)], t), None);
        let mut snapshot = model::Snapshot::default();
        snapshot.advance(Kind::Pod, 6);
        let world = |s: &model::Snapshot| World { snapshot: Arc::new(s.clone()), ..World::default() };
        assert!(q.settle(&world(&snapshot), t).is_some());
        assert_eq!(q.start(), None, "its write has not shown up");
        snapshot.advance(Kind::Pod, 7);
        assert_eq!(q.settle(&world(&snapshot), t), None);
        assert_eq!(q.start(), Some(1));
        q.finish(&1, Ok(None), Vec::new(), t);
        assert!(q.entries.is_empty() && q.ready.is_empty() && q.waiting.is_empty());
    }

    #[test]
    fn failures_back_off_and_success_forgets_them() {
        let (mut q, t) = (Queue::new(), Instant::now());
        let world = World::default();
        q.touch(1);
        q.start();
        let first = q.finish(&1, Err(&failure()), Vec::new(), t).unwrap();
        assert_eq!((q.start(), q.settle(&world, t)), (None, Some(t + first)));
        q.settle(&world, t + first);
        assert_eq!(q.start(), Some(1));
        let second = q.finish(&1, Err(&failure()), Vec::new(), t).unwrap();
        assert_eq!(second, first * 2);
        q.settle(&world, t + LAST_RETRY);
        assert_eq!(q.start(), Some(1));
        assert_eq!(q.finish(&1, Ok(Some(first)), Vec::new(), t), None);
        assert_eq!(q.settle(&world, t), Some(t + first), "asked to look again");
        q.settle(&world, t + first);
        assert_eq!(q.start(), Some(1));
    }

    #[test]
    fn a_write_that_never_shows_up_does_not_block_for_ever() {
        let (mut q, t) = (Queue::new(), Instant::now());
        q.touch(1);
        q.start();
        q.touch(1);
        q.finish(&1, Ok(None), vec![Write::At(Table::Endpoints, 9)], t);
        assert_eq!(q.settle(&World::default(), t), Some(t + LOST));
        q.settle(&World::default(), t + LOST);
        assert_eq!(q.start(), Some(1));
    }
}
