//! The load balancer: from a snapshot of the cluster to the node's kernel. [`desired`] says what is to be there,
//! [`layout`] how it lies in nftables, [`nftables`] makes it so, [`target`] is the loop, [`flows`] ends connections
//! that lead nowhere. The API is never called from here. See the README of this crate for every hook and chain.

pub mod desired;
mod elements;
pub mod flows;
pub mod forwarding;
pub mod health;
pub mod layout;
mod listen;
mod loopback;
pub mod nftables;
mod print;
mod run;
mod slots;
pub mod table;
pub mod target;
mod userdata;

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use model::{IpFamily, route};

pub use run::{Proxy, cleanup};

/// Settings of one node's proxy. Names follow kube-proxy's flags where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name in the API: which endpoints are local.
    pub node_name: Arc<str>,
    /// Where ClusterIPs come from: what is unallocated there is refused. Also says which IP families are programmed.
    pub service_cidrs: Vec<IpNet>,
    /// Where pods' addresses come from; other clients of a ClusterIP are masqueraded. Empty: none are.
    pub cluster_cidrs: Vec<IpNet>,
    /// Node addresses at which nodePorts answer; empty: all but the loopback's.
    pub node_port_addresses: Vec<IpNet>,
    /// nodePorts answer on the loopback too (TCP), unless `node_port_addresses` excludes it.
    pub localhost_node_ports: bool,
    /// Masquerade every client of a ClusterIP.
    pub masquerade_all: bool,
    /// Give pods' connections that leave the cluster (for addresses outside `cluster_cidrs` and `service_cidrs`) the
    /// node's address as their source. For nodes whose pod addresses nobody beyond them has a route to; a network
    /// plugin does it elsewhere.
    pub masquerade_outbound: bool,
    /// The interface the node's pods are behind, when it is this program's own: firewalls that drop what is forwarded
    /// (Docker hosts) are opened for it. `None` leaves that to the network plugin.
    pub pod_interface: Option<Arc<str>>,
    /// The one packet mark bit between the translation of a packet's destination and of its source; cleared again.
    pub masquerade_mark: u32,
    /// `spec.externalIPs` within these networks are honoured; none by default (CVE-2020-8554).
    pub external_ips: Vec<IpNet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: "".into(),
            service_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            node_port_addresses: Vec::new(),
            localhost_node_ports: false,
            masquerade_all: false,
            masquerade_outbound: false,
            pod_interface: None,
            masquerade_mark: 0x4000,
            external_ips: Vec::new(),
        }
    }
}

impl Config {
    fn validate(&self) -> Result<(), Error> {
        if self.masquerade_mark.count_ones() != 1 {
            return Err(Error::Config(format!("masquerade mark {:#x} must be a single bit", self.masquerade_mark)));
        }
        if self.service_cidrs.is_empty() {
            return Err(Error::Config("no service CIDR is given, so no IP family would be served".into()));
        }
        if self.masquerade_outbound && self.cluster_cidrs.is_empty() {
            return Err(Error::Config(
                "outbound connections are to be masqueraded, but no cluster CIDR says which are the pods'".into(),
            ));
        }
        Ok(())
    }

    pub fn context(&self) -> desired::Context {
        let families: BTreeSet<IpFamily> = self.service_cidrs.iter().map(|n| IpFamily::of(&n.addr())).collect();
        let options = route::Options { external_ips: self.external_ips.clone() };
        desired::Context { node_name: self.node_name.clone(), families, options }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("proxy settings: {0}")]
    Config(String),
    #[error("nftables: {0}")]
    Nftables(#[from] sys::nft::Error),
    #[error("conntrack: {0}")]
    Conntrack(sys::nft::Error),
    #[error("cannot start the proxy's thread: {0}")]
    Thread(std::io::Error),
}
