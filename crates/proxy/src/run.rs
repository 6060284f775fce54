//! The proxy's own thread: netlink blocks, so nothing else shares it. It wakes for every new snapshot, now and then to
//! see whether somebody else changed the ruleset, and after a failure to try again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use model::{Snapshot, route::Frontend};
use sys::nft::{Kernel, Op, Tables, Transaction};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Error,
    desired::Desired,
    flows,
    forwarding::{self, Gate},
    layout::{self, kernel_family},
    listen::Listen,
    nftables::Nftables,
    target::{Reconciler, Target},
};

/// How often the ruleset's generation is looked at.
const DRIFT: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// A running proxy. Rules stay in the kernel when it stops, so that a restart is not noticed; [`cleanup`] removes them.
pub struct Proxy {
    applied: watch::Receiver<u64>,
    desired: watch::Receiver<Arc<Desired>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Proxy {
    /// Programs the network namespace of the calling thread. Fails at once when the kernel cannot be talked to.
    pub fn start(
        config: Config,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        config.validate()?;
        let (applied_tx, applied) = watch::channel(0);
        let (desired_tx, desired) = watch::channel(Arc::default());
        let (healthy, health) = watch::channel(false);
        let listen =
            Listen { config: config.clone(), snapshots: snapshots.clone(), desired: desired.clone(), healthy: health };
        let gate = config.pod_interface.clone().map(Gate::new);
        let target = Nftables::new(config, Kernel::open()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Error::Thread)?;
        let mut worker = Worker {
            reconciler: Reconciler::new(target),
            applied: applied_tx,
            desired: desired_tx,
            flows: Some(BTreeSet::new()),
            gate_due: gate.is_some(),
            gate,
            healthy,
        };
        let listening = listen.spawn(stop.clone()).map_err(Error::Thread)?;
        let thread = std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || runtime.block_on(worker.run(snapshots, stop)))
            .map_err(Error::Thread)?;
        Ok(Self { applied, desired, threads: vec![thread, listening] })
    }

    /// The newest revision that the kernel has taken in; 0 before the first.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// What the kernel holds.
    pub fn desired(&self) -> watch::Receiver<Arc<Desired>> {
        self.desired.clone()
    }

    /// Waits until the threads have ended after its token was cancelled. Blocks.
    pub fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the proxy panicked; the rules stay as they are until the next start");
            }
        }
    }
}

struct Worker {
    reconciler: Reconciler<Nftables<Kernel>>,
    applied: watch::Sender<u64>,
    desired: watch::Sender<Arc<Desired>>,
    /// Frontends whose flows are to be looked at; some at start, when nothing is known. `None`: nothing to do.
    flows: Option<BTreeSet<Frontend>>,
    gate: Option<Gate>,
    /// Somebody may have changed the firewall since the gate was opened.
    gate_due: bool,
    /// The last step succeeded.
    healthy: watch::Sender<bool>,
}

impl Worker {
    async fn run(&mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) {
        let mut retry = RETRY_FIRST;
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let done = self.step(&snapshot);
            self.healthy.send_if_modified(|healthy| std::mem::replace(healthy, done.is_ok()) != done.is_ok());
            let wait = match done {
                Ok(()) => {
                    retry = RETRY_FIRST;
                    DRIFT
                }
                Err(e) => {
                    tracing::warn!("the node's rules could not be brought up to date, trying again: {e}");
                    retry = (retry * 2).min(RETRY_MOST);
                    retry
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = snapshots.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => self.look_for_drift(),
            }
        }
    }

    fn look_for_drift(&mut self) {
        // A failure to look counts as drift: the next step observes and reports it.
        if self.reconciler.target.drifted().unwrap_or(true) {
            self.reconciler.forget();
            self.gate_due = self.gate.is_some();
        }
    }

    fn step(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let Some(before) = self.reconciler.reconcile(snapshot)? else { return Ok(()) };
        let Some(have) = self.reconciler.have() else { return Ok(()) };
        let affected = flows::affected(&before, have);
        if !affected.is_empty() {
            self.flows.get_or_insert_default().extend(affected);
        }
        self.applied.send_if_modified(|revision| std::mem::replace(revision, have.revision) != have.revision);
        self.desired.send_replace(Arc::new(have.clone()));
        if let Some(frontends) = &self.flows {
            let ended = flows::clean(have, frontends)?;
            if ended > 0 {
                tracing::debug!("ended {ended} flows whose endpoint is gone");
            }
            self.flows = None;
        }
        if self.gate_due
            && let Some(gate) = &mut self.gate
        {
            // Services work without it: the rules are in the kernel whatever becomes of this. When somebody changed
            // the firewall meanwhile, the next look notices and tries again.
            if let Err(error) = gate.open() {
                tracing::warn!("cannot see whether the firewall lets pods' packets through: {error}");
            }
            self.gate_due = false;
        }
        Ok(())
    }
}

/// Removes everything a proxy ever put into this network namespace's kernel.
pub fn cleanup() -> Result<(), Error> {
    let mut kernel = Kernel::open()?;
    let table: Arc<str> = layout::TABLE.into();
    for family in [model::IpFamily::V4, model::IpFamily::V6] {
        let family = kernel_family(family);
        if kernel.read(family, &table)?.is_some() {
            let mut t = Transaction::default();
            t.push(family, &table, Op::DeleteTable);
            kernel.commit(&t)?;
        }
    }
    Ok(forwarding::close()?)
}
