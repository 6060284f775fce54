//! What the node's load balancer does right now, for people, machines and as ipvsadm prints it. It is read from the
//! kernel (our tables and connection tracking) whenever it is asked for, so it needs no running proxy and shows the
//! same after a restart.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use model::{
    IpFamily, Protocol,
    route::{At, Backend, Frontend},
};
use serde::Serialize;
use sys::{
    conntrack::{Conntrack, Flow},
    nft::Kernel,
};

use crate::{
    Config, Error,
    desired::{Desired, List, Refusal},
    nftables::Nftables,
    target::Target,
};

/// Connections of one endpoint, counted as IPVS does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Established TCP and SCTP.
    pub active: u32,
    /// Opening, closing, and all of UDP.
    pub inactive: u32,
}

/// By where the client dialled and where it was sent.
type Counts = BTreeMap<(IpAddr, u16, Protocol, Backend), Connections>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Only for clients outside the cluster (`externalTrafficPolicy: Local`).
    pub outside_only: bool,
    #[serde(flatten)]
    pub connections: Connections,
}

/// One address and port at which clients are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// `namespace/name:port`; empty where nothing is behind it.
    pub service: String,
    /// `None`: a nodePort, at every address of the node of this family.
    pub address: Option<IpAddr>,
    pub family: &'static str,
    pub protocol: &'static str,
    pub port: u16,
    /// How an endpoint is chosen; `reject` and `drop` where there is none.
    pub scheduler: &'static str,
    /// Timeout in seconds of `sessionAffinity: ClientIP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<u32>,
    pub endpoints: Vec<Endpoint>,
}

/// What the kernel of the calling thread's network namespace holds, whoever put it there.
pub struct Live {
    desired: Desired,
    counts: Counts,
}

impl Live {
    pub fn read() -> Result<Self, Error> {
        // Which networks are configured does not matter for reading; both families are looked at.
        let every = ["0.0.0.0/0", "::/0"].map(|n| n.parse::<ipnet::IpNet>());
        let config = Config { service_cidrs: every.into_iter().flatten().collect(), ..Config::default() };
        let desired = Nftables::new(config, Kernel::open()?).observe()?;
        let flows = Conntrack::open().and_then(|mut c| c.flows(|f| f.dnat)).map_err(Error::Conntrack)?;
        Ok(Self { desired, counts: count(&flows) })
    }

    /// Every frontend once, in order: addresses, then nodePorts.
    pub fn rows(&self) -> Vec<Row> {
        let mut all: Vec<&Frontend> = self.desired.services.keys().chain(self.desired.refused.keys()).collect();
        all.sort();
        all.into_iter().map(|f| self.row(f, None)).collect()
    }

    /// `at`: only connections to this address count.
    fn row(&self, frontend: &Frontend, at: Option<IpAddr>) -> Row {
        let entry = self.desired.services.get(frontend);
        let scheduler = match self.desired.refused.get(frontend) {
            Some(Refusal::Reject) => "reject",
            Some(Refusal::Drop) => "drop",
            None if entry.is_some_and(|e| e.class.behaviour.round_robin.is_some()) => "rr",
            None => "random",
        };
        let address = match frontend.at {
            At::Address(ip) => Some(ip),
            At::NodePort(_) => at,
        };
        let mut lists: BTreeMap<Backend, bool> = BTreeMap::new();
        for (slot, backend) in self.desired.slots(frontend) {
            let outside = slot.list() == List::Outside;
            lists.entry(backend).and_modify(|only| *only &= outside).or_insert(outside);
        }
        let endpoints = lists.into_iter().map(|(backend, outside_only)| Endpoint {
            address: (backend.ip, backend.port).into(),
            outside_only,
            connections: self.connections(frontend, address, backend),
        });
        Row {
            service: entry.map(|e| e.label.to_string()).unwrap_or_default(),
            address,
            family: frontend.family().as_str(),
            protocol: frontend.protocol.as_str(),
            port: frontend.port,
            scheduler,
            persistent: entry.and_then(|e| e.class.behaviour.affinity),
            endpoints: endpoints.collect(),
        }
    }

    fn connections(&self, frontend: &Frontend, address: Option<IpAddr>, backend: Backend) -> Connections {
        let matching = self.counts.iter().filter(|((ip, port, protocol, to), _)| {
            let at = match address {
                Some(address) => *ip == address,
                // A nodePort at any address but those that have this port to themselves.
                None => {
                    let own = Frontend { at: At::Address(*ip), ..*frontend };
                    IpFamily::of(ip) == frontend.family() && !self.desired.services.contains_key(&own)
                }
            };
            at && *port == frontend.port && *protocol == frontend.protocol && *to == backend
        });
        matching.fold(Connections::default(), |sum, (_, c)| Connections {
            active: sum.active + c.active,
            inactive: sum.inactive + c.inactive,
        })
    }

    /// What `ipvsadm -L -n` would print if IPVS did the work. `node` are the addresses nodePorts answer at.
    pub fn ipvsadm(&self, node: &[IpAddr]) -> String {
        let mut rows = Vec::new();
        let mut all: Vec<&Frontend> = self.desired.services.keys().chain(self.desired.refused.keys()).collect();
        all.sort_by_key(|f| (f.protocol, **f));
        for frontend in all {
            match frontend.at {
                At::Address(_) => rows.push(self.row(frontend, None)),
                At::NodePort(family) => {
                    let here = node.iter().filter(|ip| IpFamily::of(ip) == family && !ip.is_loopback());
                    rows.extend(here.map(|ip| self.row(frontend, Some(*ip))));
                }
            }
        }
        ipvsadm(&rows)
    }
}

fn count(flows: &[Flow]) -> Counts {
    let mut out = Counts::new();
    for flow in flows {
        let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
        let Some(protocol) = known.into_iter().find(|p| p.number() == flow.original.protocol) else { continue };
        let to = Backend { ip: flow.reply.source, port: flow.reply.source_port };
        let key = (flow.original.destination, flow.original.destination_port, protocol, to);
        let connections = out.entry(key).or_default();
        if flow.established {
            connections.active += 1;
        } else {
            connections.inactive += 1;
        }
    }
    out
}

fn ipvsadm(rows: &[Row]) -> String {
    let mut out = String::from(
        "IP Virtual Server version 1.2.1 (size=4096)\n\
         Prot LocalAddress:Port Scheduler Flags\n  \
         -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n",
    );
    for row in rows {
        let Some(address) = row.address else { continue };
        // Refused ones are virtual servers without a destination. Writing to a String cannot fail.
        let scheduler = if row.endpoints.is_empty() { "random" } else { row.scheduler };
        let _ = write!(out, "{:<4} {} {scheduler}", row.protocol, SocketAddr::from((address, row.port)));
        if let Some(seconds) = row.persistent {
            let _ = write!(out, " persistent {seconds}");
        }
        out.push('\n');
        for e in &row.endpoints {
            let Connections { active, inactive } = e.connections;
            let to = e.address.to_string();
            let _ = writeln!(out, "  -> {to:<28} {:<7} {:<6} {active:<10} {inactive:<10}", "Masq", 1);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_041_prints_as_ipvsadm_does() {
        let endpoint = |address: &str, active| Endpoint {
            address: address.parse().expect("an address"),
            outside_only: false,
            connections: Connections { active, inactive: 0 },
        };
        let row = Row {
            service: "default/nginx".into(),
            address: Some([10, 102, 97, 154].into()),
            family: "IPv4",
            protocol: "TCP",
            port: 80,
            scheduler: "rr",
            persistent: None,
            endpoints: vec![endpoint("192.168.76.141:80", 0), endpoint("192.168.100.100:8080", 12)],
        };
        let sticky =
            Row { scheduler: "random", persistent: Some(10800), protocol: "UDP", endpoints: vec![], ..row.clone() };
        let printed = ipvsadm(&[row, sticky]);
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "IP Virtual Server version 1.2.1 (size=4096)",
                "Prot LocalAddress:Port Scheduler Flags",
                "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
                "TCP  10.102.97.154:80 rr",
                "  -> 192.168.76.141:80            Masq    1      0          0",
                "  -> 192.168.100.100:8080         Masq    1      12         0",
                "UDP  10.102.97.154:80 random persistent 10800",
            ]
        );
    }
}
