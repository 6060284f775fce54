//! nodePorts on the loopback: a listener there and a copy of bytes to an endpoint. The kernel's own way
//! (`route_localnet`) would let neighbours on the network reach what listens on the loopback (CVE-2020-8558). TCP only.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use model::{
    IpFamily, Protocol,
    route::{At, Backend, Frontend},
};
use rand::seq::SliceRandom;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::desired::{Desired, List};

const CONNECT: Duration = Duration::from_secs(3);

pub fn address(family: IpFamily, port: u16) -> SocketAddr {
    let ip = match family {
        IpFamily::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
        IpFamily::V6 => IpAddr::from(Ipv6Addr::LOCALHOST),
    };
    (ip, port).into()
}

/// The frontends to listen for. One without endpoints has no listener, so that it refuses at once.
pub fn frontends(desired: &Desired, node_port_addresses: &[IpNet]) -> BTreeSet<Frontend> {
    let node_ports = desired.services.iter_from(|f| matches!(f.at, At::Address(_))).map(|(f, _)| *f);
    let here = |family| {
        node_port_addresses.is_empty() || node_port_addresses.iter().any(|n| n.contains(&address(family, 0).ip()))
    };
    node_ports.filter(|f| f.protocol == Protocol::Tcp && here(f.family())).collect()
}

/// The endpoints in the order in which to try them: random, or under session affinity always the same as long as they
/// live, for all clients of the loopback are one.
fn order(desired: &Desired, frontend: &Frontend) -> Vec<Backend> {
    let inside = desired.slots(frontend).filter(|(slot, _)| slot.list() == List::Inside);
    let mut out: Vec<Backend> = inside.map(|(_, backend)| backend).collect();
    let sticky = desired.services.get(frontend).is_some_and(|e| e.class.behaviour.affinity.is_some());
    if sticky {
        out.sort_by_cached_key(|backend| {
            let mut hasher = DefaultHasher::new();
            (frontend, backend).hash(&mut hasher);
            hasher.finish()
        });
    } else {
        out.shuffle(&mut rand::rng());
    }
    out
}

/// Until the task is aborted; connections go on after that.
pub async fn serve(listener: TcpListener, frontend: Frontend, desired: watch::Receiver<Arc<Desired>>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let backends = order(&desired.borrow(), &frontend);
                tokio::spawn(async move {
                    if let Err(error) = join(client, &backends).await {
                        tracing::debug!("a connection to {frontend} on the loopback ended: {error}");
                    }
                });
            }
            // Out of files: others have to end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn join(mut client: TcpStream, backends: &[Backend]) -> io::Result<()> {
    for backend in backends {
        let connect = TcpStream::connect((backend.ip, backend.port));
        if let Ok(Ok(mut server)) = tokio::time::timeout(CONNECT, connect).await {
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            return copy_bidirectional(&mut client, &mut server).await.map(drop);
        }
    }
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, "no endpoint answers"))
}
