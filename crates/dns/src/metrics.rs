//! What is counted, under the names that CoreDNS has for it, so that existing dashboards go on working. The hot path
//! counts in a [`Tally`] of its own and adds it up once per batch.

use std::{
    array,
    net::SocketAddr,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
};

use model::names::RecordType;
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::wire::Rcode;

type Labels = Vec<(&'static str, String)>;

const TYPES: [(RecordType, &str); 8] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::SRV, "SRV"),
    (RecordType::PTR, "PTR"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::TXT, "TXT"),
    (RecordType::SOA, "SOA"),
    (RecordType::NS, "NS"),
];
/// [`TYPES`] and "other".
const TYPE_SLOTS: usize = TYPES.len() + 1;
const RCODES: [Rcode; 7] =
    [Rcode::NOERROR, Rcode::FORMERR, Rcode::SERVFAIL, Rcode::NXDOMAIN, Rcode::NOTIMP, Rcode::REFUSED, Rcode::BADVERS];
const RCODE_SLOTS: usize = RCODES.len() + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp = 0,
    Tcp = 1,
}

/// Counters of one thread, not shared.
#[derive(Default)]
pub struct Tally {
    requests: [[[u64; TYPE_SLOTS]; 2]; 2],
    responses: [u64; RCODE_SLOTS],
    dirty: bool,
}

impl Tally {
    pub fn request(&mut self, transport: Transport, peer: &SocketAddr, kind: RecordType) {
        let slot = TYPES.iter().position(|(t, _)| *t == kind).unwrap_or(TYPES.len());
        self.requests[transport as usize][usize::from(peer.ip().to_canonical().is_ipv6())][slot] += 1;
        self.dirty = true;
    }

    pub fn response(&mut self, rcode: Rcode) {
        self.responses[RCODES.iter().position(|r| *r == rcode).unwrap_or(RCODES.len())] += 1;
        self.dirty = true;
    }
}

pub struct Metrics {
    registry: Mutex<Registry>,
    requests: [[[Counter; TYPE_SLOTS]; 2]; 2],
    responses: [Counter; RCODE_SLOTS],
    pub cache_hits: Counter,
    pub cache_misses: Counter,
    pub forward_requests: Counter,
    /// Datagrams that were no queries and got no answer.
    pub ignored: Counter,
    /// Queries of sources that had more than their share.
    pub limited: Counter,
    /// From a snapshot's arrival to the first answer that may come from it, in seconds.
    pub delay: Histogram,
    pub revision: Gauge<u64, AtomicU64>,
    pub tcp_connections: Gauge,
}

impl Metrics {
    /// `zone` is the label of that name; `server` as CoreDNS writes it, `dns://:53`.
    pub fn new(server: &str, zone: &str) -> Self {
        let mut registry = Registry::default();
        let requests = Family::<Labels, Counter>::default();
        let responses = Family::<Labels, Counter>::default();
        registry.register("coredns_dns_requests", "DNS requests", requests.clone());
        registry.register("coredns_dns_responses", "DNS responses", responses.clone());
        let base = || vec![("server", server.to_owned()), ("zone", zone.to_owned()), ("view", String::new())];
        let with = |more: &[(&'static str, &str)]| {
            let mut labels = base();
            labels.extend(more.iter().map(|(k, v)| (*k, (*v).to_owned())));
            labels
        };
        let type_name = |i: usize| TYPES.get(i).map_or("other", |(_, name)| *name);
        let requests = array::from_fn(|proto| {
            array::from_fn(|family| {
                array::from_fn(|t| {
                    let labels = with(&[
                        ("proto", ["udp", "tcp"][proto]),
                        ("family", ["1", "2"][family]),
                        ("type", type_name(t)),
                    ]);
                    requests.get_or_create(&labels).clone()
                })
            })
        });
        let responses = array::from_fn(|i| {
            let rcode = RCODES.get(i).map_or("OTHER", |r| r.as_str());
            responses.get_or_create(&with(&[("rcode", rcode)])).clone()
        });
        let mut counter = |name: &str, help: &str| {
            let counter: Counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let cache_hits = counter("coredns_cache_hits", "Answers from upstream that were remembered");
        let cache_misses = counter("coredns_cache_misses", "Questions for upstream that were not remembered");
        let forward_requests = counter("coredns_forward_requests", "Questions to upstream servers");
        let ignored = counter("portolan_dns_ignored", "Packets that were no queries and got no answer");
        let limited =
            counter("portolan_dns_limited", "Queries told to come by TCP because their source asks too often");
        let delay = Histogram::new(exponential_buckets(0.000_01, 4.0, 9));
        registry.register(
            "portolan_dns_event_to_answer_seconds",
            "From the arrival of a change to answers made from it",
            delay.clone(),
        );
        let (revision, tcp_connections) = (Gauge::default(), Gauge::default());
        registry.register(
            "portolan_dns_revision",
            "The newest resourceVersion that answers are made from",
            revision.clone(),
        );
        registry.register("portolan_dns_tcp_connections", "Open TCP connections", tcp_connections.clone());
        Self {
            registry: Mutex::new(registry),
            requests,
            responses,
            cache_hits,
            cache_misses,
            forward_requests,
            ignored,
            limited,
            delay,
            revision,
            tcp_connections,
        }
    }

    /// Adds a tally up and empties it.
    pub fn add(&self, tally: &mut Tally) {
        if !std::mem::take(&mut tally.dirty) {
            return;
        }
        let mine = tally.requests.iter_mut().flatten().flatten().chain(&mut tally.responses);
        let ours = self.requests.iter().flatten().flatten().chain(&self.responses);
        for (n, counter) in mine.zip(ours).filter(|(n, _)| **n > 0) {
            counter.inc_by(std::mem::take(n));
        }
    }

    /// In the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // A String takes everything.
        let _ = encode(&mut out, &registry);
        out
    }
}
