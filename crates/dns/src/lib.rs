//! The cluster's name server: API to DNS. It answers from the newest snapshot, hands everything outside the cluster to
//! the upstream servers, and says why when it says no. What a name means is decided in [`model::names`]; here are the
//! packets, the sockets and the upstream.

mod answer;
mod cookie;
mod corefile;
mod forward;
mod keep;
mod metrics;
mod serve;
mod sources;
mod transfer;
mod wire;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use model::{
    Snapshot,
    names::{Directory, Name, Zone},
};
use tokio::{runtime, sync::watch};
use tokio_util::sync::CancellationToken;

pub use corefile::{Corefile, Refused};
pub use forward::{Hosts, Upstreams};
pub use model::names::{NameError, PodNames};

use cookie::Secret;
use forward::{Forwarder, Outside};
use metrics::Metrics;
use serve::Shared;
use sources::Sources;

/// At least so long between two writes of the state to disk.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// Everything there is to set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses for UDP and TCP. Prefer the node's own to `0.0.0.0`, so that an answer comes from where it was asked.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, its TTLs, pod names and reverse ranges.
    pub zone: Zone,
    pub upstreams: Upstreams,
    /// Domains outside with name servers of their own.
    pub stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Names outside whose addresses are known beforehand.
    pub hosts: Hosts,
    /// The longest that an answer from outside is remembered, in seconds; `None` for an hour. The cluster's own names
    /// are never remembered: they are known.
    pub cache: Option<u32>,
    /// More addresses under which this server is known (the ClusterIP of the DNS Service), so that an upstream list
    /// which names them makes no loop.
    pub own_addresses: Vec<IpAddr>,
    /// Sources that are answered; empty for all. Others get REFUSED.
    pub allow: Vec<ipnet::IpNet>,
    /// Answer nodes, pods and this host beside [`Self::allow`], and nobody else.
    pub allow_cluster: bool,
    /// Queries a second that one source may ask over UDP; 0 for any number. More are told to come by TCP.
    pub source_rate: u32,
    /// Where the last good state is kept for the next start.
    pub keep: Option<PathBuf>,
    /// Hosts that may transfer the whole zone by AXFR.
    pub transfer_to: Vec<ipnet::IpNet>,
    /// Answer a pod's walk along its search path (`ndots:5`) at the first step. Needs [`PodNames::Verified`], by which
    /// pods' namespaces are known.
    pub search_path: bool,
    /// What NSID (RFC 5001) says; empty for the host's name.
    pub identity: String,
    /// UDP threads and sockets per address; `None` for one per core.
    pub threads: Option<NonZero<usize>>,
    /// Let another server with this setting listen on the same addresses: the next one is started before this one is
    /// stopped, and nobody finds the port closed. Without it a second server is told that the port is taken.
    pub share_port: bool,
    /// Listen on addresses that do not exist yet (`IP_FREEBIND`).
    pub freebind: bool,
    /// Where `/metrics`, `/health` and `/ready` are served, if anywhere.
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// For `zone` at `listen`, with upstream servers from `/etc/resolv.conf` and everybody allowed.
    pub fn new(zone: Zone, listen: Vec<SocketAddr>) -> Self {
        Self {
            listen,
            zone,
            upstreams: Upstreams::default(),
            stubs: Vec::new(),
            hosts: Hosts::default(),
            cache: None,
            own_addresses: Vec::new(),
            allow: Vec::new(),
            allow_cluster: false,
            source_rate: 0,
            keep: None,
            transfer_to: Vec::new(),
            search_path: true,
            identity: String::new(),
            threads: None,
            share_port: false,
            freebind: false,
            metrics: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no address to serve DNS at is configured")]
    NoAddress,
    #[error("cannot serve {what} at {address}: {}", cause(.source, .address))]
    Bind { what: &'static str, address: SocketAddr, source: io::Error },
    #[error("cannot start the threads of the DNS server: {0}; is there a limit on processes (ulimit -u)?")]
    Threads(#[source] io::Error),
}

/// What is the matter with an address, and what to do.
fn cause(source: &io::Error, address: &SocketAddr) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {} is taken by another program (ss -lnup 'sport = {0}' shows which); stop it, or listen elsewhere",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        _ => source.to_string(),
    }
}

/// A running server. It runs until its token is cancelled, whether or not this handle is kept.
pub struct Server {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    applied: watch::Receiver<u64>,
    ended: watch::Receiver<bool>,
}

/// A view of what a server answers from.
#[derive(Clone)]
pub struct Directories(Arc<Shared>);

impl Directories {
    /// The names as they are answered at this moment. Whenever it changes, [`Server::applied`] is notified afterwards.
    pub fn current(&self) -> Arc<Directory> {
        self.0.directory.load_full()
    }
}

/// Bound sockets, before anything runs.
struct Sockets {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
    addresses: Vec<SocketAddr>,
    metrics: Option<std::net::TcpListener>,
}

impl Server {
    /// Binds all sockets, then serves from threads of its own until `stop`. Until the first complete snapshot, the
    /// cluster's names are answered with SERVFAIL.
    pub async fn start(
        config: Config,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        let sockets = bind(&config)?;
        let addresses = sockets.addresses.clone();
        tracing::info!(?addresses, zone = %config.zone.name, upstreams = ?config.upstreams, "serving DNS");
        let metrics_address = sockets.metrics.as_ref().and_then(|l| l.local_addr().ok());
        let port = addresses.first().map_or(53, SocketAddr::port);
        let metrics = Arc::new(Metrics::new(&format!("dns://:{port}"), &config.zone.name.to_string()));
        let own = config.own_addresses.iter().map(|ip| SocketAddr::new(*ip, 53)).chain(addresses.iter().copied());
        let kept = config.keep.as_deref().and_then(|path| recall(path, &snapshots.borrow()));
        let stale = kept.is_some();
        let first = kept.unwrap_or_else(|| snapshots.borrow().as_ref().clone());
        let sources = Sources::new(config.allow, config.allow_cluster, config.source_rate);
        sources.follow(&first);
        let first = Directory::of(config.zone.clone(), &first);
        let outside =
            Outside { upstreams: config.upstreams, stubs: config.stubs, hosts: config.hosts, cache: config.cache };
        let keep = config.keep;
        let shared = Arc::new(Shared {
            directory: ArcSwap::from_pointee(first),
            zone: config.zone,
            forwarder: Arc::new(Forwarder::new(outside, own.collect(), metrics.clone())),
            metrics,
            threads: (sockets.udp.len() / addresses.len().max(1)) as u32,
            sources,
            stale: AtomicBool::new(stale),
            transfer_to: config.transfer_to,
            search_path: config.search_path,
            identity: if config.identity.is_empty() { host_name() } else { config.identity },
            secret: Secret::random(),
            stopped: AtomicBool::new(false),
        });
        let (applied, applied_seen) = watch::channel(shared.directory.load().snapshot().revision);
        let (ended, ended_seen) = watch::channel(false);
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("dns-io")
            .enable_all()
            .build()
            .map_err(Error::Threads)?;
        let runtime = Background(Some(runtime));
        spawn("dns", {
            let shared = shared.clone();
            move || {
                if let Some(runtime) = &runtime.0 {
                    run(&shared, sockets, runtime, (snapshots, keep), &applied, &stop);
                }
                drop(runtime);
                let _ = ended.send(true);
            }
        })?;
        Ok(Self { shared, addresses, metrics_address, applied: applied_seen, ended: ended_seen })
    }

    /// Where it listens, with the ports that the kernel chose for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// The revision of the snapshot that answers are made from.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Everything that answers depend on has been listed.
    pub fn ready(&self) -> bool {
        self.shared.directory.load().unlisted().is_none()
    }

    /// The names as they are answered at this moment, for explanations.
    pub fn directory(&self) -> Arc<Directory> {
        self.shared.directory.load_full()
    }

    /// The same for those who outlive this handle.
    pub fn directories(&self) -> Directories {
        Directories(self.shared.clone())
    }

    /// Counters in the OpenMetrics text format.
    pub fn metrics(&self) -> String {
        self.shared.metrics.text()
    }

    /// Returns when all threads have ended and all sockets are closed.
    pub async fn stopped(&self) {
        // An error means that the sender is gone, and with it the thread.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// A runtime that may be dropped anywhere. Tasks that wait for upstream servers are not waited for.
struct Background(Option<runtime::Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, Error> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(Error::Threads)
}

fn bind(config: &Config) -> Result<Sockets, Error> {
    if config.listen.is_empty() {
        return Err(Error::NoAddress);
    }
    let threads = config.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get);
    let mut sockets = Sockets { udp: Vec::new(), tcp: Vec::new(), addresses: Vec::new(), metrics: None };
    for wanted in &config.listen {
        // TCP first: it does not share its port, so a second server finds out here.
        let failed = |what| move |source| Error::Bind { what, address: *wanted, source };
        let listener = listen(*wanted, config.freebind, config.share_port).map_err(failed("DNS over TCP"))?;
        let address = listener.local_addr().map_err(failed("DNS over TCP"))?;
        for _ in 0..threads {
            sockets.udp.push(serve::udp::bind(address, config.freebind).map_err(failed("DNS over UDP"))?);
        }
        sockets.tcp.push(listener);
        sockets.addresses.push(address);
    }
    if let Some(address) = config.metrics {
        let failed = |source| Error::Bind { what: "DNS metrics", address, source };
        sockets.metrics = Some(listen(address, config.freebind, config.share_port).map_err(failed)?);
    }
    Ok(sockets)
}

fn listen(address: SocketAddr, freebind: bool, share: bool) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(freebind)?,
        SocketAddr::V6(_) => {
            socket.set_freebind_v6(freebind)?;
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
    }
    socket.bind(&address.into())?;
    socket.listen(256)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The state that an earlier process left, unless there is a complete one already.
fn recall(path: &std::path::Path, newest: &Snapshot) -> Option<Snapshot> {
    if newest.is_complete() {
        return None;
    }
    match keep::read(path) {
        Ok(kept) => Some(kept),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the last state cannot be read; starting without it");
            None
        }
    }
}

/// Writes the newest state, and then for a while no more.
async fn keep_on_disk(path: PathBuf, mut newest: watch::Receiver<Option<Arc<Snapshot>>>) {
    while newest.changed().await.is_ok() {
        let Some(snapshot) = newest.borrow_and_update().clone() else { continue };
        let to = path.clone();
        let written = tokio::task::spawn_blocking(move || keep::write(&snapshot, &to)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, path = %path.display(), "the state cannot be kept for the next start");
        }
        tokio::time::sleep(KEEP_EVERY).await;
    }
}

/// Starts the threads and tasks, then keeps the directory up to date until `stop`.
fn run(
    shared: &Arc<Shared>,
    sockets: Sockets,
    runtime: &runtime::Runtime,
    (mut snapshots, keep): (watch::Receiver<Arc<Snapshot>>, Option<PathBuf>),
    applied: &watch::Sender<u64>,
    stop: &CancellationToken,
) {
    let mut threads = Vec::new();
    for (i, socket) in sockets.udp.into_iter().enumerate() {
        let (shared, handle) = (shared.clone(), runtime.handle().clone());
        let work = move || {
            let socket = Arc::new(socket);
            // A defect costs the batch it shows itself in, never the service.
            while catch_unwind(AssertUnwindSafe(|| serve::udp::serve(&shared, &socket, &handle))).is_err() {
                tracing::error!("a DNS thread has panicked and starts again; please report it");
            }
        };
        match spawn(&format!("dns-udp-{i}"), work) {
            Ok(thread) => threads.push(thread),
            Err(error) => tracing::error!(%error, "a DNS thread is missing"),
        }
    }
    let _runtime = runtime.enter();
    for listener in sockets.tcp {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => _ = runtime.spawn(serve::tcp::serve(shared.clone(), listener, stop.clone())),
            Err(error) => tracing::error!(%error, "DNS over TCP is missing"),
        }
    }
    if let Some(listener) = sockets.metrics {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => _ = runtime.spawn(serve::metrics_http::serve(shared.clone(), listener, stop.clone())),
            Err(error) => tracing::error!(%error, "DNS metrics are missing"),
        }
    }
    let keeper = keep.map(|path| {
        let (newest, seen) = watch::channel(None);
        runtime.spawn(keep_on_disk(path, seen));
        newest
    });
    runtime.block_on(async {
        loop {
            let changed = tokio::select! {
                changed = snapshots.changed() => changed,
                () = stop.cancelled() => return,
            };
            // Nobody makes snapshots any more: go on serving the last one.
            if changed.is_err() {
                return stop.cancelled().await;
            }
            let begun = Instant::now();
            let newest = snapshots.borrow_and_update().clone();
            let next = shared.directory.load().advance(&newest);
            if shared.stale.load(Ordering::Relaxed) {
                // What is on disk is better than half of a list.
                if next.unlisted().is_some() {
                    continue;
                }
                shared.stale.store(false, Ordering::Relaxed);
            }
            shared.sources.follow(&newest);
            let complete = next.unlisted().is_none();
            shared.directory.store(Arc::new(next));
            shared.metrics.delay.observe(begun.elapsed().as_secs_f64());
            if complete && let Some(keeper) = &keeper {
                keeper.send_replace(Some(newest.clone()));
            }
            shared.metrics.revision.set(newest.revision);
            applied.send_replace(newest.revision);
        }
    });
    shared.stopped.store(true, Ordering::Relaxed);
    for thread in threads {
        // They catch their own panics.
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests;
