//! The connection tracking table: reading flows and deleting single ones. Which flows are stale is not decided here.

use std::net::IpAddr;

use crate::netlink::{Attrs, Encoder, Error, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, SUBSYS_CTNETLINK, Socket};

const CTNL_NEW: u16 = 0;
const CTNL_GET: u16 = 1;
const CTNL_DELETE: u16 = 2;
const TCP_ESTABLISHED: u8 = 3;
const SCTP_ESTABLISHED: u8 = 4;
const IPS_DST_NAT: u32 = 1 << 5;

/// One direction of a flow. Ports are 0 for protocols without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// As the client sent it.
    pub original: Tuple,
    /// As answers arrive: its source is the endpoint when the flow was translated.
    pub reply: Tuple,
    /// The destination was translated.
    pub dnat: bool,
    /// TCP or SCTP between its handshake and its end.
    pub established: bool,
    /// The original tuple as the kernel sent it, zone included: what a deletion must name.
    raw: Vec<u8>,
    zone: Option<[u8; 2]>,
}

fn request(message: u16, flags: u16, family: u8) -> Encoder {
    let mut e = Encoder::default();
    e.begin((SUBSYS_CTNETLINK << 8) | message, NLM_F_REQUEST | flags, family, 0);
    e
}

fn family_of(ip: &IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

/// Conntrack of the network namespace the socket was opened in.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()? })
    }

    /// The flows that `keep` picks, of every protocol and both address families.
    pub fn flows(&mut self, keep: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, Error> {
        let mut out = Vec::new();
        let mut e = request(CTNL_GET, NLM_F_DUMP, 0);
        e.end();
        self.socket.request(&e, "to list connections", |kind, a| {
            if kind == (SUBSYS_CTNETLINK << 8) | CTNL_NEW {
                out.extend(flow(&a).filter(|f| keep(f)));
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Deletes these flows; one that ended meanwhile is no error. Returns how many were deleted.
    pub fn delete(&mut self, flows: &[Flow]) -> Result<usize, Error> {
        let messages: Vec<_> = flows
            .iter()
            .map(|f| {
                let mut e = request(CTNL_DELETE, NLM_F_ACK, family_of(&f.original.source));
                e.nest(1, |e| e.bytes.extend_from_slice(&f.raw));
                if let Some(zone) = f.zone {
                    e.attr(18, &zone);
                }
                e.end();
                e
            })
            .collect();
        let answers = self.socket.acknowledged(&messages)?;
        if answers.contains(&libc::EPERM) {
            return Err(Error::NotPermitted);
        }
        Ok(answers.iter().filter(|errno| **errno == 0).count())
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn tuple(a: &Attrs<'_>) -> Option<Tuple> {
    let (ip, proto) = (a.nested(1)?, a.nested(2)?);
    let port = |kind| proto.get(kind).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes);
    Some(Tuple {
        source: address(ip.get(1).or_else(|| ip.get(3))?)?,
        destination: address(ip.get(2).or_else(|| ip.get(4))?)?,
        protocol: *proto.get(1)?.first()?,
        source_port: port(2),
        destination_port: port(3),
    })
}

/// `CTA_PROTOINFO`: the state is the first attribute of TCP's and of SCTP's part.
fn established(a: &Attrs<'_>) -> bool {
    let state = |protocol| {
        let state = a.nested(4)?.nested(protocol)?.get(1)?;
        state.first().copied()
    };
    state(1) == Some(TCP_ESTABLISHED) || state(3) == Some(SCTP_ESTABLISHED)
}

fn flow(a: &Attrs<'_>) -> Option<Flow> {
    Some(Flow {
        original: tuple(&a.nested(1)?)?,
        reply: tuple(&a.nested(2)?)?,
        established: established(a),
        dnat: a.u32(3).unwrap_or(0) & IPS_DST_NAT != 0,
        raw: a.get(1)?.to_vec(),
        zone: a.get(18).and_then(|z| z.try_into().ok()),
    })
}
