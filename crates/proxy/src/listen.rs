//! The sockets the proxy itself listens on: `healthCheckNodePort`s, and nodePorts on the loopback. They are made equal
//! to what the newest state asks for, on a thread of their own; what is said there is [`crate::health`]'s and
//! [`crate::loopback`]'s affair.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::serve::Listener;
use ipnet::IpNet;
use model::{Snapshot, route::Frontend};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    desired::Desired,
    health::{self, Checks},
    loopback,
};

/// A burst of changes is one.
const PAUSE: Duration = Duration::from_millis(20);
/// When a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Socket {
    Health(u16),
    Loopback(Frontend),
}

pub struct Listen {
    pub config: Config,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub desired: watch::Receiver<Arc<Desired>>,
    /// The last attempt to program the kernel succeeded.
    pub healthy: watch::Receiver<bool>,
}

impl Listen {
    /// In the network namespace of the calling thread.
    pub fn spawn(self, stop: CancellationToken) -> io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("proxy-listen".into()).spawn(move || {
            runtime.block_on(self.run(stop));
        })
    }

    async fn run(mut self, stop: CancellationToken) {
        let (checks, _) = watch::channel(Arc::<Checks>::default());
        let mut open: BTreeMap<Socket, AbortHandle> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        loop {
            let snapshot = self.snapshots.borrow_and_update().clone();
            let desired = self.desired.borrow_and_update().clone();
            // Absence means nothing before everything is listed.
            if snapshot.is_complete() {
                checks.send_replace(Arc::new(health::checks(&snapshot, &self.config.node_name)));
                let wanted = self.wanted(&checks.borrow(), &desired);
                open.retain(|socket, task| {
                    let keep = wanted.contains(socket);
                    if !keep {
                        task.abort();
                    }
                    keep
                });
                refused.retain(|socket| wanted.contains(socket));
                for socket in wanted {
                    if open.contains_key(&socket) {
                        continue;
                    }
                    match self.open(socket, &checks).await {
                        Ok(task) => {
                            refused.remove(&socket);
                            open.insert(socket, task);
                        }
                        Err(error) if refused.insert(socket) => tracing::warn!("{}", complaint(socket, &error)),
                        Err(_) => {}
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.snapshots.changed() => if changed.is_err() { return },
                changed = self.desired.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !refused.is_empty() => {}
            }
        }
    }

    fn wanted(&self, checks: &Checks, desired: &Desired) -> BTreeSet<Socket> {
        let mut out: BTreeSet<Socket> = checks.keys().map(|port| Socket::Health(*port)).collect();
        if self.config.localhost_node_ports {
            let frontends = loopback::frontends(desired, &self.config.node_port_addresses);
            out.extend(frontends.into_iter().map(Socket::Loopback));
        }
        out
    }

    async fn open(&self, socket: Socket, checks: &watch::Sender<Arc<Checks>>) -> io::Result<AbortHandle> {
        match socket {
            Socket::Health(port) => {
                let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
                    Ok(both_families) => both_families,
                    Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err(e),
                    // A kernel without IPv6.
                    Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?,
                };
                let listener = NodePorts { listener, addresses: self.config.node_port_addresses.clone() };
                let router = health::router(port, checks.subscribe(), self.healthy.clone());
                let serve = async move {
                    if let Err(error) = axum::serve(listener, router).await {
                        tracing::warn!("healthCheckNodePort {port} ended: {error}");
                    }
                };
                Ok(tokio::spawn(serve).abort_handle())
            }
            Socket::Loopback(frontend) => {
                let address = loopback::address(frontend.family(), frontend.port);
                let listener = TcpListener::bind(address).await?;
                Ok(tokio::spawn(loopback::serve(listener, frontend, self.desired.clone())).abort_handle())
            }
        }
    }
}

fn complaint(socket: Socket, error: &io::Error) -> String {
    match socket {
        Socket::Health(port) => format!(
            "cannot listen on healthCheckNodePort {port}: {error}; load balancers will take this node for unable until \
             the port is free"
        ),
        Socket::Loopback(f) => {
            let address = loopback::address(f.family(), f.port);
            format!("cannot listen on {address} for a nodePort: {error}; other addresses of the node are not concerned")
        }
    }
}

/// Connections to the addresses at which nodePorts answer; others are closed.
struct NodePorts {
    listener: TcpListener,
    addresses: Vec<IpNet>,
}

impl Listener for NodePorts {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let (stream, client) = Listener::accept(&mut self.listener).await;
            let local = stream.local_addr().map(|a| a.ip().to_canonical());
            if self.addresses.is_empty() || local.is_ok_and(|ip| self.addresses.iter().any(|n| n.contains(&ip))) {
                return (stream, client);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
