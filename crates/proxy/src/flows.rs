//! Connection tracking entries that lead where their frontend no longer leads. TCP ends by itself when its endpoint
//! does; UDP and SCTP clients would go on talking to nobody. Level-triggered: the flows there are against what is
//! desired, with no memory of events. What makes a flow stale is decided here; deleting is [`sys::conntrack`]'s.

use std::collections::BTreeSet;

use model::{
    Protocol,
    route::{At, Backend, Frontend},
};
use sys::conntrack::{Conntrack, Flow};

use crate::{
    Error,
    desired::{Desired, connectionless},
};

/// Frontends whose flows may have become stale between two states. `None`: look at all (nothing is known before).
pub fn affected(have: &Desired, want: &Desired) -> BTreeSet<Frontend> {
    let endpoints = have.endpoints.changes(&want.endpoints, |a, b| a == b).into_iter().map(|c| c.key.0);
    let services = have.services.changes(&want.services, |a, b| a == b).into_iter().map(|c| *c.key);
    endpoints.chain(services).filter(|f| connectionless(f.protocol)).collect()
}

fn protocol(number: u8) -> Option<Protocol> {
    [Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == number)
}

/// The flow was opened to a frontend (one that is desired or one of `affected`) and leads elsewhere than to one of
/// the frontend's endpoints.
pub fn stale(flow: &Flow, want: &Desired, affected: &BTreeSet<Frontend>) -> bool {
    let Some(protocol) = protocol(flow.original.protocol) else { return false };
    let ip = flow.original.destination;
    let port = flow.original.destination_port;
    let by_address = Frontend { at: At::Address(ip), protocol, port };
    let by_port = Frontend { at: At::NodePort(model::IpFamily::of(&ip)), protocol, port };
    let known = |f: &Frontend| want.services.contains_key(f) || want.refused.contains_key(f) || affected.contains(f);
    let frontend = match (known(&by_address), known(&by_port) && flow.dnat) {
        (true, _) => by_address,
        (false, true) => by_port,
        (false, false) => return false,
    };
    let leads_to = Backend { ip: flow.reply.source, port: flow.reply.source_port };
    !want.slots(&frontend).any(|(_, b)| b == leads_to)
}

/// Deletes stale flows; returns how many. `affected` names frontends that may be gone from `want`.
pub fn clean(want: &Desired, affected: &BTreeSet<Frontend>) -> Result<usize, Error> {
    let mut conntrack = Conntrack::open().map_err(Error::Conntrack)?;
    let flows = conntrack.flows(|f| stale(f, want, affected)).map_err(Error::Conntrack)?;
    if flows.is_empty() {
        return Ok(0);
    }
    conntrack.delete(&flows).map_err(Error::Conntrack)
}
