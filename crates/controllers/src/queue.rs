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
        !self.dirty && !self.running && self.writes.is_empty() && self.recheck.is_none() && self.failures == 0
    }

    /// What is to be waited for before it can be decided; `None` when it can be now.
    fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let lost = self.written.filter(|_| !self.writes.is_empty()).map(|w| w + LOST);
        [self.due, lost].into_iter().flatten().filter(|t| *t > now).max()
    }
}

/// Runs until the world ends.
pub async fn run<C: Controller>(controller: C, client: kube::Client, mut worlds: watch::Receiver<Arc<World>>) {
    let writer = Writer::new(client, C::NAME);
    let (controller, writer) = (&controller, &writer);
    let mut world = Arc::new(World::default());
    let mut entries: BTreeMap<C::Key, Entry> = BTreeMap::new();
    let mut running = FuturesUnordered::new();
    let mut fresh = BTreeSet::new();
    loop {
        let next = worlds.borrow_and_update().clone();
        if controller.is_ready(&next) && !Arc::ptr_eq(&next, &world) {
            controller.affected(&world, &next, &mut fresh);
            world = next;
            for key in std::mem::take(&mut fresh) {
                entries.entry(key).or_default().dirty = true;
            }
        }
        let wake = start(&mut entries, &world, CONCURRENT - running.len(), |key| {
            let (world, key) = (world.clone(), key.clone());
            running.push(async move {
                let hand = Hand::new(writer);
                let result = controller.reconcile(&world, &key, &hand).await;
                (key, result, hand.into_writes())
            });
        });
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = worlds.changed() => if changed.is_err() { return },
            Some((key, result, writes)) = running.next() => finish::<C>(&mut entries, key, result, writes),
            () = sleep => (),
        }
    }
}

/// Starts what can be started; the answer is when something else will become possible by time alone.
fn start<K: Ord>(
    entries: &mut BTreeMap<K, Entry>,
    world: &World,
    room: usize,
    mut go: impl FnMut(&K),
) -> Option<Instant> {
    let now = Instant::now();
    let mut wake: Option<Instant> = None;
    let mut started = 0;
    entries.retain(|key, entry| {
        entry.writes.retain(|w| !w.is_in(world));
        if entry.recheck.is_some_and(|t| t <= now) {
            entry.recheck = None;
            entry.dirty = true;
        }
        if entry.idle() {
            return false;
        }
        if !entry.dirty || entry.running {
            wake = [wake, entry.recheck].into_iter().flatten().min();
            return true;
        }
        match entry.blocked_until(now) {
            Some(at) => wake = [wake, Some(at)].into_iter().flatten().min(),
            None if started == room => (),
            None => {
                started += 1;
                entry.dirty = false;
                entry.running = true;
                entry.due = None;
                entry.recheck = None;
                entry.writes.clear();
                go(key);
            }
        }
        true
    });
    wake
}

fn finish<C: Controller>(
    entries: &mut BTreeMap<C::Key, Entry>,
    key: C::Key,
    result: Result<Option<Duration>, Error>,
    writes: Vec<Write>,
) {
    let now = Instant::now();
    let shown = format!("{key:?}");
    let entry = entries.entry(key).or_default();
    entry.running = false;
    entry.writes = writes;
    entry.written = Some(now);
    match result {
        Ok(recheck) => {
            entry.failures = 0;
            entry.recheck = recheck.map(|d| now + d);
        }
        Err(e) => {
            let wait = (FIRST_RETRY * 2_u32.saturating_pow(entry.failures.min(16))).min(LAST_RETRY);
            entry.failures += 1;
            entry.dirty = true;
            entry.due = Some(now + wait);
            if e.is_conflict() || e.is_not_found() {
                tracing::debug!("{} {shown}: {e}; again in {wait:?}", C::NAME);
            } else {
                tracing::warn!("{} {shown}: {e}; again in {wait:?}", C::NAME);
            }
        }
    }
}
