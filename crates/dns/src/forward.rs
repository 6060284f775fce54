//! Names outside the cluster: asked of the upstream servers, remembered for as long as their TTLs say. Equal questions
//! that are under way at the same time are asked once. The cluster's own names never come here.

mod cache;
mod exchange;
mod hosts;
mod servers;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use model::names::{Name, RecordType};
use tokio::sync::Semaphore;

pub use cache::Response;
use cache::{Cache, Key};
pub use hosts::Hosts;
use servers::Servers;
pub use servers::Upstreams;

use crate::{
    answer::Ask,
    metrics::Metrics,
    wire::{Extended, Full, Message, Query, Rcode, Section, Writer, flag},
};

/// Everything must be over before the client's own patience ends: 5 s in the C library and in dig.
const PATIENCE: Duration = Duration::from_secs(4);
/// A second server is asked as well when the first has not answered by then.
const HEDGE: Duration = Duration::from_millis(300);
/// Questions under way at the same time. More than that are refused at once, so that memory stays bounded.
const MAX_UNDER_WAY: usize = 4096;

/// Why there is no answer from upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    NoServers,
    Overloaded,
    /// Nobody answered in time, or everybody refused the connection.
    Unreachable(Vec<(SocketAddr, String)>),
    /// Something answered that is no DNS message, or not to our question.
    Nonsense(SocketAddr),
}

impl Failure {
    pub fn code(&self) -> Extended {
        match self {
            Self::NoServers | Self::Overloaded => Extended::OTHER,
            Self::Unreachable(_) => Extended::NO_REACHABLE_AUTHORITY,
            Self::Nonsense(_) => Extended::NETWORK_ERROR,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServers => f.write_str(
                "there is no upstream server to ask: /etc/resolv.conf names none but ourselves; give one with --dns-upstream",
            ),
            Self::Overloaded => write!(f, "{MAX_UNDER_WAY} questions to upstream servers are under way already"),
            Self::Unreachable(tried) => {
                f.write_str("no upstream server answers:")?;
                for (i, (server, error)) in tried.iter().enumerate() {
                    write!(f, "{} {server}: {error}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Nonsense(server) => write!(f, "upstream server {server} sends malformed answers"),
        }
    }
}

type Answer = Result<Arc<Response>, Arc<Failure>>;
type Flight = Shared<BoxFuture<'static, Answer>>;

/// The servers for all names below one.
struct Route {
    zone: Name,
    servers: Servers,
    /// The server that answered last is asked first.
    preferred: AtomicUsize,
}

/// What there is outside the cluster.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// For all names that no stub domain takes.
    pub upstreams: Upstreams,
    /// Domains with name servers of their own. The longest that fits counts.
    pub stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Names whose addresses are known beforehand.
    pub hosts: Hosts,
    /// The longest that an answer is remembered, in seconds; `None` for an hour.
    pub cache: Option<u32>,
}

/// The way to the servers outside.
pub struct Forwarder {
    /// The longest names first; the last is the root.
    routes: Vec<Route>,
    hosts: Hosts,
    cache: Cache,
    under_way: Mutex<HashMap<Key, Flight>>,
    permits: Semaphore,
    metrics: Arc<Metrics>,
}

impl Forwarder {
    /// `ours` are addresses that lead back to this server and are never asked.
    pub fn new(outside: Outside, ours: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Self {
        let stubs = outside.stubs.into_iter().map(|(zone, servers)| (zone, Upstreams::Servers(servers)));
        let mut routes: Vec<_> = stubs
            .chain([(Name::ROOT, outside.upstreams)])
            .map(|(zone, upstreams)| Route {
                zone,
                servers: Servers::new(upstreams, ours.clone()),
                preferred: AtomicUsize::new(0),
            })
            .collect();
        routes.sort_by_key(|r| std::cmp::Reverse(r.zone.len()));
        Self {
            routes,
            hosts: outside.hosts,
            cache: Cache::new(outside.cache),
            under_way: Mutex::default(),
            permits: Semaphore::new(MAX_UNDER_WAY),
            metrics,
        }
    }

    /// Names outside the zone are somebody's business here.
    pub fn enabled(&self) -> bool {
        !self.hosts.is_empty() || self.routes.iter().any(|r| r.servers.configured())
    }

    /// An answer that is known or remembered: never waits.
    pub fn cached(&self, name: &Name, kind: RecordType, query: &Query<'_>) -> Option<Arc<Response>> {
        if let Some(known) = self.hosts.answer(name, kind) {
            return Some(Arc::new(known));
        }
        let found = self.cache.get(&Key::new(name, kind, query), Instant::now());
        match found {
            Some(_) => self.metrics.cache_hits.inc(),
            None => self.metrics.cache_misses.inc(),
        };
        found
    }

    /// Asks upstream, or joins whoever asks the same already.
    pub async fn ask(self: &Arc<Self>, name: &Name, kind: RecordType, query: &Query<'_>) -> Answer {
        let key = Key::new(name, kind, query);
        let flight = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(&key) {
                Some(flight) => flight.clone(),
                None => {
                    let (forwarder, asked) = (self.clone(), key.clone());
                    let flight = async move {
                        let answer = forwarder.race(&asked).await.map_err(Arc::new);
                        if let Ok(response) = &answer {
                            forwarder.cache.put(asked.clone(), response);
                        }
                        forwarder.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&asked);
                        answer
                    };
                    // On a task of its own: it goes on, and tidies up, when the client that asked first goes away.
                    let task = tokio::spawn(flight);
                    let flight = async move { task.await.unwrap_or_else(|_| Err(Arc::new(Failure::Overloaded))) };
                    let flight = flight.boxed().shared();
                    under_way.insert(key, flight.clone());
                    flight
                }
            }
        };
        flight.await
    }

    /// Asks one server, soon a second one too, and takes the first good answer.
    async fn race(&self, key: &Key) -> Result<Arc<Response>, Failure> {
        let Ok(_permit) = self.permits.try_acquire() else { return Err(Failure::Overloaded) };
        let route =
            Name::read(key.name(), 0).and_then(|(n, _)| self.routes.iter().find(|r| n.below(&r.zone).is_some()));
        let Some(route) = route else { return Err(Failure::NoServers) };
        let servers = route.servers.current();
        if servers.is_empty() {
            return Err(Failure::NoServers);
        }
        let first = route.preferred.load(Ordering::Relaxed) % servers.len();
        let mut attempts: FuturesUnordered<_> = (0..servers.len())
            .map(|turn| {
                let at = (first + turn) % servers.len();
                let server = servers[at];
                async move {
                    tokio::time::sleep(HEDGE * turn as u32).await;
                    self.metrics.forward_requests.inc();
                    let result = exchange::ask(server, key).await;
                    (at, result)
                }
            })
            .collect();
        let deadline = tokio::time::sleep(PATIENCE);
        tokio::pin!(deadline);
        let mut errors = Vec::new();
        // SERVFAIL and REFUSED are answers too, if nobody has a better one.
        let mut poor = None;
        loop {
            tokio::select! {
                next = attempts.next() => match next {
                    Some((at, Ok(response))) if response.rcode == Rcode::SERVFAIL.0 || response.rcode == Rcode::REFUSED.0 => {
                        errors.push((servers[at], Rcode(response.rcode).as_str().to_owned()));
                        poor = Some(response);
                    }
                    Some((at, Ok(response))) => {
                        route.preferred.store(at, Ordering::Relaxed);
                        return Ok(Arc::new(response));
                    }
                    Some((at, Err(error))) => errors.push((servers[at], error)),
                    None => break,
                },
                () = &mut deadline => {
                    for server in &servers {
                        if !errors.iter().any(|(s, _)| s == server) {
                            errors.push((*server, format!("no answer within {} s", PATIENCE.as_secs())));
                        }
                    }
                    break;
                }
            }
        }
        match (poor, errors.as_slice()) {
            (Some(response), _) => Ok(Arc::new(response)),
            (None, [(server, error)]) if error == exchange::NONSENSE => Err(Failure::Nonsense(*server)),
            _ => Err(Failure::Unreachable(errors)),
        }
    }
}

/// Writes what upstream said (or did not) as the answer to `query`, and returns its length.
pub fn finish(
    query: &Query<'_>,
    ask: &Ask,
    answer: &Answer,
    ttl_cap: u32,
    room: &mut [u8],
    limit: usize,
) -> (usize, Rcode) {
    // A walk along a search path: no name outside, then no name at all. Nor do troubles outside change that.
    if let Some(otherwise) = &ask.otherwise
        && answer.as_ref().map_or(true, |r| r.rcode != Rcode::NOERROR.0)
    {
        room[..otherwise.len()].copy_from_slice(otherwise);
        return (otherwise.len(), Rcode::NXDOMAIN);
    }
    match (answer, &ask.partial) {
        (Ok(response), None) => relay(query, response, room, limit),
        (Ok(response), Some(partial)) => {
            let mut writer = Writer::resume(query, room, limit, partial);
            let rcode = Rcode(response.rcode);
            writer.rcode(rcode);
            if append(response, ttl_cap, &mut writer).is_err() {
                writer.set(flag::TC);
            }
            (writer.finish(None), rcode)
        }
        (Err(failure), partial) => {
            let mut writer = match partial {
                Some(partial) => Writer::resume(query, room, limit, partial),
                None => Writer::new(query, room, limit),
            };
            writer.set(flag::RA);
            writer.rcode(Rcode::SERVFAIL);
            (writer.finish(Some((failure.code(), &failure.to_string()))), Rcode::SERVFAIL)
        }
    }
}

/// The records behind an ExternalName: the answer, or the SOA of the "no". Their TTL is at most the zone's.
fn append(response: &Response, ttl_cap: u32, writer: &mut Writer<'_>) -> Result<(), Full> {
    let Some(message) = Message::parse(&response.octets) else { return Ok(()) };
    let age = response.age();
    let positive = message.records.iter().any(|r| r.section == Section::Answer);
    let wanted = if positive { Section::Answer } else { Section::Authority };
    for record in message.records.iter().filter(|r| r.section == wanted) {
        message.copy(record, record.ttl.saturating_sub(age).min(ttl_cap), writer)?;
    }
    Ok(())
}

/// The message as it came, with the client's id and spelling, and TTLs that have been counting down.
fn relay(query: &Query<'_>, response: &Response, room: &mut [u8], limit: usize) -> (usize, Rcode) {
    let rcode = Rcode(response.rcode);
    let reserve = query.opt_size();
    let question = query.question();
    let mut writer = Writer::new(query, room, limit);
    let wants_ad = query.dnssec() || query.flags() & flag::AD != 0;
    writer.set(flag::RA | if wants_ad { response.flags & flag::AD } else { 0 });
    writer.rcode(rcode);
    let start = writer.len();
    let end = if response.octets.len() + reserve <= limit {
        response.octets.len()
    } else {
        response.fitting(writer.left() + start)
    };
    if end < response.octets.len() {
        writer.set(flag::TC);
    }
    debug_assert_eq!(start, crate::wire::HEADER + question.len());
    // Same name, same length: every pointer in the message stays right.
    if writer.octets(&response.octets[start..end]).is_err() {
        writer.set(flag::TC);
        return (writer.finish(None), rcode);
    }
    let age = response.age();
    let mut counts = [0; 3];
    for record in response.records.iter().take_while(|r| r.end <= end) {
        counts[record.section as usize] += 1;
        writer.patch_u32(record.ttl_at(), record.ttl.saturating_sub(age));
    }
    writer.add_counts(counts);
    (writer.finish(None), rcode)
}

#[cfg(test)]
pub(crate) mod tests;
