//! From sockets to [`crate::answer`] and back. Answers from the snapshot are given on the spot, by threads that do
//! nothing else; only questions for upstream servers wait, each on a task of its own.

pub mod metrics_http;
pub mod prebuilt;
pub mod tcp;
pub mod udp;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use model::names::{Directory, RecordType, Zone};

use crate::{
    answer::{self, Ask, Outcome, Terms},
    cookie::Secret,
    forward::{self, Forwarder},
    metrics::{Metrics, Tally, Transport},
    sources::{SAMPLE, Sources},
    transfer::Transfer,
    wire::{Extended, Malformed, Query, Rcode, UDP_PLAIN, Writer, flag, header_only, option},
};

/// What all threads and tasks of one server share.
pub struct Shared {
    pub directory: ArcSwap<Directory>,
    pub zone: Zone,
    pub forwarder: Arc<Forwarder>,
    pub metrics: Arc<Metrics>,
    /// UDP sockets at each address.
    pub threads: u32,
    pub sources: Sources,
    /// Answers come from what an earlier process left on disk.
    pub stale: AtomicBool,
    /// Hosts that may transfer the zone.
    pub transfer_to: Vec<IpNet>,
    /// Walks along a pod's search path end at their first step.
    pub search_path: bool,
    /// What NSID says.
    pub identity: String,
    pub secret: Secret,
    pub stopped: AtomicBool,
}

/// What to do about a packet.
pub enum Reaction {
    Silence,
    Reply(usize),
    /// The same, and it is what everybody gets who asks the same, until there is a newer directory.
    Fixed(usize, RecordType, Rcode),
    /// Ask upstream; see [`Shared::forward`].
    Forward(Box<Ask>),
    /// Send the whole zone, over this connection.
    Transfer(Box<Transfer>),
}

impl Shared {
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Reads a packet and answers it into `room`, or says what else to do.
    pub fn react(
        &self,
        directory: &Directory,
        packet: &[u8],
        peer: &std::net::SocketAddr,
        transport: Transport,
        turn: u64,
        (room, tally): (&mut [u8], &mut Tally),
    ) -> Reaction {
        let mut query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Malformed::Silence) => {
                self.metrics.ignored.inc();
                return Reaction::Silence;
            }
            Err(Malformed::Code(rcode)) => {
                tally.response(rcode);
                return Reaction::Reply(header_only(packet, rcode, room));
            }
        };
        tally.request(transport, peer, query.kind);
        if turn.is_multiple_of(SAMPLE) {
            self.sources.sample(peer.ip(), &query.name, query.kind);
        }
        if transport == Transport::Udp && !self.sources.admit(peer.ip()) {
            // "Ask over TCP": a client that is there will, a forged source will not, and it costs the wire no more.
            self.metrics.limited.inc();
            let mut writer = Writer::new(&query, room, UDP_PLAIN);
            writer.set(flag::TC);
            return Reaction::Reply(writer.finish(None));
        }
        self.options(&mut query, peer.ip());
        if query.kind == RecordType::AXFR && transport == Transport::Tcp && self.may_transfer(directory, &query, peer) {
            tally.response(Rcode::NOERROR);
            return Reaction::Transfer(Box::new(Transfer::new(packet)));
        }
        let limit = limit(&query, transport);
        let client = self.search_path.then(|| peer.ip().to_canonical());
        let terms = Terms { limit, turn, recursion: self.forwarder.enabled(), client };
        let mut fixed = false;
        let outcome = if self.sources.allows(directory, peer.ip()) {
            // Cookies are of one client, staleness of one moment, and the end of a walk depends on who walks.
            fixed =
                query.edns.is_none_or(|e| e.reply.octets().is_empty()) && !answer::depends_on_client(directory, &query);
            answer::answer(directory, &query, room, terms)
        } else {
            let text = format!("{} is not among the sources that this server answers", peer.ip().to_canonical());
            answer::refuse(Writer::new(&query, room, limit), Rcode::REFUSED, Extended::PROHIBITED, &text)
        };
        let (length, rcode) = match outcome {
            Outcome::Reply(length, rcode) if fixed => {
                tally.response(rcode);
                return Reaction::Fixed(length, query.kind, rcode);
            }
            Outcome::Reply(length, rcode) => (length, rcode),
            Outcome::Ask(ask) => match self.forwarder.cached(&ask.name, ask.kind, &query) {
                Some(known) => forward::finish(&query, &ask, &Ok(known), self.zone.ttl, room, limit),
                None => return Reaction::Forward(ask),
            },
        };
        tally.response(rcode);
        Reaction::Reply(length)
    }

    /// It may ask, and has not asked too much.
    pub fn admits(&self, directory: &Directory, peer: IpAddr) -> bool {
        self.sources.allows(directory, peer) && self.sources.admit(peer)
    }

    /// What the client asked about ourselves, and its cookie.
    fn options(&self, query: &mut Query<'_>, peer: IpAddr) {
        let Some(edns) = &mut query.edns else { return };
        if self.stale.load(Ordering::Relaxed) {
            let text = b"\0\x03the API server has not been heard since the start";
            edns.reply.push(option::EXTENDED_ERROR, text);
        }
        if edns.nsid {
            edns.reply.push(option::NSID, self.identity.as_bytes());
        }
        if let Some(client) = edns.cookie {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as u32);
            let mut cookie = [0; 24];
            cookie[..8].copy_from_slice(&client);
            cookie[8..].copy_from_slice(&self.secret.server_cookie(&client, peer, now));
            edns.reply.push(option::COOKIE, &cookie);
        }
    }

    fn may_transfer(&self, directory: &Directory, query: &Query<'_>, peer: &std::net::SocketAddr) -> bool {
        let peer = peer.ip().to_canonical();
        query.name == self.zone.name
            && directory.unlisted().is_none()
            && self.transfer_to.iter().any(|net| net.contains(&peer))
    }

    /// The answer to a query whose [`Self::react`] was [`Reaction::Forward`]. Empty only if the packet is none.
    pub async fn forward(&self, packet: &[u8], ask: &Ask, peer: IpAddr, transport: Transport) -> Vec<u8> {
        let Ok(mut query) = Query::parse(packet) else { return Vec::new() };
        self.options(&mut query, peer);
        let answer = self.forwarder.ask(&ask.name, ask.kind, &query).await;
        let limit = limit(&query, transport);
        let mut room = vec![0; limit.max(crate::wire::UDP_PLAIN)];
        let (length, rcode) = forward::finish(&query, ask, &answer, self.zone.ttl, &mut room, limit);
        room.truncate(length);
        let mut tally = Tally::default();
        tally.response(rcode);
        self.metrics.add(&mut tally);
        room
    }
}

fn limit(query: &Query<'_>, transport: Transport) -> usize {
    match transport {
        Transport::Udp => query.udp_limit(),
        Transport::Tcp => usize::from(u16::MAX),
    }
}

/// Numbers for rotation: quick, and evenly spread, which is all that is asked of them (xorshift64*).
pub struct Turns(u64);

impl Turns {
    pub fn new() -> Self {
        Self(rand::random::<u64>() | 1)
    }
}

impl Iterator for Turns {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        Some(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16)
    }
}
