//! Network links, addresses and routes of one network namespace, by route netlink: the namespace of the thread that
//! called [`Links::open`], wherever the calls are made later. Knows nothing about pods or Services.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        link::{InfoData, InfoVeth, LinkAttribute},
        route::RouteScope,
    },
};
use tokio::task::AbortHandle;

#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct Error {
    action: String,
    source: io::Error,
}

impl Error {
    pub fn exists(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EEXIST)
    }
    pub fn missing(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH))
    }
}

trait Context<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, rtnetlink::Error> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|e| Error {
            action: action(),
            source: match e {
                rtnetlink::Error::NetlinkError(m) => m.to_io(),
                other => io::Error::other(other.to_string()),
            },
        })
    }
}

/// A route to add: `to` through `via`, or directly on the link when there is no gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub to: IpNet,
    pub via: Option<IpAddr>,
    /// The address connections of this machine start from.
    pub src: Option<IpAddr>,
}

/// A netlink socket bound to one network namespace.
pub struct Links {
    handle: Handle,
    pump: AbortHandle,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Links {
    /// Opens a socket in the calling thread's network namespace. Must be called within a tokio runtime's context.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, pump: tokio::spawn(connection).abort_handle() })
    }

    /// The index of the link, `None` when there is none of that name.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, Error> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        match found.context(|| format!("look up link {name}")) {
            Ok(link) => Ok(link.map(|l| l.header.index)),
            Err(e) if e.missing() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Index and name of every link.
    pub async fn list(&self) -> Result<Vec<(u32, String)>, Error> {
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.context(|| "list links".into())?;
        Ok(links
            .into_iter()
            .filter_map(|l| {
                l.attributes.iter().find_map(|a| match a {
                    LinkAttribute::IfName(name) => Some((l.header.index, name.clone())),
                    _ => None,
                })
            })
            .collect())
    }

    /// A bridge with a fixed hardware address: without one it takes its lowest port's, and neighbours' caches go stale.
    pub async fn add_bridge(&self, name: &str, mac: [u8; 6]) -> Result<(), Error> {
        let message = LinkBridge::new(name).address(mac.to_vec()).up().build();
        self.handle.link().add(message).execute().await.context(|| format!("add bridge {name}"))
    }

    /// A pair: `name` here, up, with `mac`; `peer` in the namespace `peer_ns`, down: the kernel refuses to set a peer up
    /// (ENOTCONN) in the message that creates it.
    pub async fn add_veth(&self, name: &str, mac: [u8; 6], peer: &str, peer_ns: BorrowedFd<'_>) -> Result<(), Error> {
        let far = LinkMessageBuilder::<LinkUnspec>::new().name(peer).setns_by_fd(peer_ns.as_raw_fd()).build();
        let message = LinkVeth::new(name, peer)
            .address(mac.to_vec())
            .up()
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        self.handle.link().add(message).execute().await.context(|| format!("add veth pair {name}, {peer}"))
    }

    /// Sets the link up and, when given, makes it a port of the bridge with index `bridge`.
    pub async fn up(&self, index: u32, bridge: Option<u32>) -> Result<(), Error> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up();
        if let Some(bridge) = bridge {
            message = message.controller(bridge);
        }
        self.handle.link().change(message.build()).execute().await.context(|| format!("set link {index} up"))?;
        if bridge.is_some() {
            // Where br_netfilter is on, a packet whose destination was translated on this bridge is bridged, not
            // routed: a pod that reaches itself through its Service then needs its own port to send back to it.
            let port = LinkBridgePort::new(index).hairpin(true).build();
            let set = self.handle.link().set_port(port).execute().await;
            set.context(|| format!("let port {index} of the bridge send back what came from it"))?;
        }
        Ok(())
    }

    /// No error when the link already has the address.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), Error> {
        let add = self.handle.address().add(index, address.addr(), address.prefix_len()).execute().await;
        match add.context(|| format!("add address {address} to link {index}")) {
            Err(e) if e.exists() => Ok(()),
            other => other,
        }
    }

    /// No error when the same route is there already.
    pub async fn add_route(&self, index: u32, route: Route) -> Result<(), Error> {
        let text = || format!("add route to {}", route.to);
        let invalid = |e: &dyn std::fmt::Display| Error { action: text(), source: io::Error::other(e.to_string()) };
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(index)
            .destination_prefix(route.to.network(), route.to.prefix_len())
            .map_err(|e| invalid(&e))?;
        match route.via {
            Some(via) => message = message.gateway(via).map_err(|e| invalid(&e))?,
            None => message = message.scope(RouteScope::Link),
        }
        if let Some(src) = route.src {
            message = message.pref_source(src).map_err(|e| invalid(&e))?;
        }
        let mut message = message.build();
        if message.header.address_family == AddressFamily::Unspec {
            message.header.address_family =
                if route.to.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        }
        match self.handle.route().add(message).execute().await.context(text) {
            Err(e) if e.exists() => Ok(()),
            other => other,
        }
    }

    /// No error when there is no such link. Its addresses and routes go with it.
    pub async fn delete(&self, index: u32) -> Result<(), Error> {
        match self.handle.link().del(index).execute().await.context(|| format!("delete link {index}")) {
            Err(e) if e.missing() => Ok(()),
            other => other,
        }
    }
}
