//! The node's load balancing as plain sorted data: which class every frontend has and what is in its slots. Compiling
//! a snapshot into it is pure; what did not change since the last compilation is taken over by pointer, which is a
//! cache and nothing else. How the data is laid out in a kernel is [`crate::layout`]'s affair.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use model::{
    EndpointSlice, IpFamily, Problem, Protocol, Service, ServiceKey, Snapshot,
    map::Map,
    route::{self, Algorithm, Backend, Frontend, Masquerade, NodeFacts, Route, Routes, Verdict},
};
use smallvec::SmallVec;

use crate::slots;

/// A list (0 inside, 1 outside) in bit 16 and a place in it in the lower half. Bit 31 tells the number of a sticky
/// frontend's endpoint from a random slot; the kernel has a map for each and never sees the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Which of a frontend's two lists of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    Inside = 0,
    /// For clients outside the cluster under `externalTrafficPolicy: Local`.
    Outside = 1,
}

impl Slot {
    pub const STICKY: u32 = 1 << 31;

    pub fn new(list: List, place: u16) -> Self {
        Self((list as u32) << 16 | u32::from(place))
    }
    /// The number of an endpoint that clients are remembered to have.
    pub fn sticky(list: List, number: u16) -> Self {
        Self(Self::new(list, number).0 | Self::STICKY)
    }
    pub fn is_sticky(self) -> bool {
        self.0 & Self::STICKY != 0
    }
    /// As the kernel sees it.
    pub fn number(self) -> u32 {
        self.0 & !Self::STICKY
    }
    pub fn list(self) -> List {
        if self.0 >> 16 & 1 == 0 { List::Inside } else { List::Outside }
    }
    pub fn place(self) -> u16 {
        self.0 as u16
    }
}

/// How a frontend treats connections, apart from how many slots it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Behaviour {
    /// Looked up by port alone.
    pub node_port: bool,
    pub masquerade: Masquerade,
    /// Clients from outside have a list of their own with this many slots; none means dropped.
    pub outside: Option<u16>,
    /// Session affinity's timeout in seconds.
    pub affinity: Option<u32>,
    /// The client must be in one of the frontend's source ranges.
    pub ranged: bool,
    /// One after the other instead of at random. The counter is in the rule, so every such frontend has a class of its
    /// own, which this number tells from others.
    pub round_robin: Option<u32>,
}

/// Everything the kernel must know of a frontend to pick a slot. Frontends of one class share their chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    pub behaviour: Behaviour,
    pub slots: u16,
}

impl fmt::Display for Class {
    /// The name of the class's chain; [`Class::parse`] reads it back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.behaviour;
        let kind = match b.masquerade {
            Masquerade::Foreign => "internal",
            Masquerade::Always => "external",
            Masquerade::Node => "local",
        };
        write!(f, "{}{kind}-{}", if b.node_port { "nodeport-" } else { "" }, self.slots)?;
        if let Some(n) = b.outside {
            write!(f, "-outside-{n}")?;
        }
        if let Some(seconds) = b.affinity {
            write!(f, "-sticky-{seconds}")?;
        }
        if b.ranged {
            f.write_str("-ranged")?;
        }
        if let Some(own) = b.round_robin {
            write!(f, "-rr-{own:08x}")?;
        }
        Ok(())
    }
}

impl Class {
    pub fn parse(name: &str) -> Option<Self> {
        let (node_port, rest) = name.strip_prefix("nodeport-").map_or((false, name), |rest| (true, rest));
        let mut words = rest.split('-');
        let masquerade = match words.next()? {
            "internal" => Masquerade::Foreign,
            "external" => Masquerade::Always,
            "local" => Masquerade::Node,
            _ => return None,
        };
        let slots = words.next()?.parse().ok()?;
        let mut behaviour =
            Behaviour { node_port, masquerade, outside: None, affinity: None, ranged: false, round_robin: None };
        while let Some(word) = words.next() {
            match word {
                "outside" => behaviour.outside = Some(words.next()?.parse().ok()?),
                "sticky" => behaviour.affinity = Some(words.next()?.parse().ok()?),
                "ranged" => behaviour.ranged = true,
                "rr" => behaviour.round_robin = Some(u32::from_str_radix(words.next()?, 16).ok()?),
                _ => return None,
            }
        }
        let class = Self { behaviour, slots };
        (class.to_string() == name).then_some(class)
    }
}

/// What stands at a frontend that has endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub class: Class,
    /// `namespace/name:port`, for people who read the ruleset.
    pub label: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    Drop,
    Reject,
}

/// nft shows comments up to 128 bytes with their terminator.
const LABEL_MAX: usize = 127;

/// Everything the kernel is to hold. Two values are equal when the kernel would behave the same and show the same.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Of the snapshot it was compiled from; 0 when observed.
    pub revision: u64,
    pub services: Map<Frontend, Entry>,
    /// Slot, or the endpoint's number under session affinity.
    pub endpoints: Map<(Frontend, Slot), Backend>,
    /// Under session affinity: which endpoint number a random slot means.
    pub picks: Map<(Frontend, Slot), Slot>,
    pub refused: Map<Frontend, Refusal>,
    pub ranges: Map<(Frontend, IpNet), ()>,
    /// Endpoints that may have to reach themselves, with the number of Services that lead to them.
    pub hairpin: Map<IpAddr, u32>,
    /// Service addresses that somebody else serves, which are not refused as unallocated.
    pub elsewhere: Map<IpAddr, u32>,
    /// The classes in use by family, with the number of frontends.
    pub classes: BTreeMap<(IpFamily, Class), u32>,
    /// Numbers of behaviours in class ids; one keeps its number for as long as it is in use.
    pub behaviours: BTreeMap<Behaviour, u16>,
    /// False when what was observed is not, or not only, what this program would have written.
    pub intact: bool,
    pub(crate) memo: Memo,
}

impl PartialEq for Desired {
    fn eq(&self, other: &Self) -> bool {
        let keys = |a: &Map<IpAddr, u32>, b: &Map<IpAddr, u32>| a.changes(b, |_, _| true).is_empty();
        self.services == other.services
            && self.endpoints == other.endpoints
            && self.picks == other.picks
            && self.refused == other.refused
            && self.ranges == other.ranges
            && keys(&self.hairpin, &other.hairpin)
            && keys(&self.elsewhere, &other.elsewhere)
            && self.classes.keys().eq(other.classes.keys())
            && self.intact == other.intact
    }
}

/// The compilation's inputs and intermediate results, for the next one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memo {
    valid: bool,
    services: Map<ServiceKey, Arc<Service>>,
    slices: Map<ServiceKey, Arc<Vec<Arc<EndpointSlice>>>>,
    facts: NodeFacts,
    routes: Map<ServiceKey, Arc<Routes>>,
    claims: Map<Frontend, Claims>,
}

/// The Services that claim a frontend, oldest first: the first one has it.
type Claims = SmallVec<[(Arc<str>, ServiceKey); 1]>;

/// What compilation depends on beside the snapshot. Fixed for the life of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pub node_name: Arc<str>,
    /// Families this proxy programs.
    pub families: BTreeSet<IpFamily>,
    pub options: route::Options,
}

pub fn compile(snapshot: &Snapshot, have: &Desired, context: &Context) -> Desired {
    let node = snapshot.nodes.get(&model::ObjectKey::new("", context.node_name.clone()));
    let facts = NodeFacts { name: context.node_name.clone(), zone: node.and_then(|n| n.zone.clone()) };
    let incremental = have.memo.valid && have.intact && have.memo.facts == facts;
    let mut want = if incremental {
        have.clone()
    } else {
        let behaviours = if have.intact { have.behaviours.clone() } else { BTreeMap::new() };
        Desired { behaviours, intact: true, ..Desired::default() }
    };
    want.revision = snapshot.revision;
    let changed: BTreeSet<ServiceKey> = {
        let services = want.memo.services.changes(&snapshot.services, Arc::ptr_eq).into_iter().map(|c| c.key);
        let slices = want.memo.slices.changes(&snapshot.slices, Arc::ptr_eq).into_iter().map(|c| c.key);
        services.chain(slices).cloned().collect()
    };
    let mut touched = BTreeSet::new();
    for key in &changed {
        let service = snapshot.services.get(key);
        let routes = service.map(|s| route::routes(s, snapshot.slices_of(key), &facts, &context.options));
        want.exchange(key, service, routes, context, &mut touched);
    }
    for frontend in touched {
        want.place(frontend, have);
    }
    // A behaviour no frontend has any more gives its number back.
    if want.behaviours.len() > want.classes.len() {
        let used: BTreeSet<_> = want.classes.keys().map(|(_, c)| c.behaviour).collect();
        want.behaviours.retain(|b, _| used.contains(b));
    }
    want.memo.valid = true;
    want.memo.facts = facts;
    want.memo.services = snapshot.services.clone();
    want.memo.slices = snapshot.slices.clone();
    want
}

impl Desired {
    /// What could not be honoured: bad input, and frontends that an older Service has. Walks everything.
    pub fn problems(&self) -> Vec<Problem> {
        let mut out: Vec<Problem> = self.memo.routes.values().flat_map(|r| r.problems.iter().cloned()).collect();
        for (frontend, claims) in self.memo.claims.iter().filter(|(_, c)| c.len() > 1) {
            for (_, loser) in &claims[1..] {
                out.push(Problem {
                    kind: "Service",
                    object: loser.clone(),
                    field: "spec".into(),
                    message: format!("{frontend} belongs to the older Service {}", claims[0].1),
                });
            }
        }
        out
    }

    /// The Service that has a frontend, by the last compilation.
    pub fn owner(&self, frontend: &Frontend) -> Option<&ServiceKey> {
        self.memo.claims.get(frontend).map(|c| &c[0].1)
    }

    /// Backends in the slots of one frontend.
    pub fn slots(&self, frontend: &Frontend) -> impl Iterator<Item = (Slot, Backend)> {
        range(&self.endpoints, *frontend).map(|(s, b)| (s, *b))
    }

    /// Replaces the routes of one Service: claims and shared addresses. Frontends to place again go to `touched`.
    fn exchange(
        &mut self,
        key: &ServiceKey,
        service: Option<&Arc<Service>>,
        routes: Option<Routes>,
        context: &Context,
        touched: &mut BTreeSet<Frontend>,
    ) {
        let mut routes = routes.unwrap_or_default();
        let ours = |ip: &IpAddr| context.families.contains(&IpFamily::of(ip));
        routes.routes.retain(|r| context.families.contains(&r.frontend.family()));
        routes.local.retain(ours);
        routes.elsewhere.retain(ours);
        let before = self.memo.routes.get(key).cloned().unwrap_or_default();
        count(&mut self.hairpin, &before.local, &routes.local);
        count(&mut self.elsewhere, &before.elsewhere, &routes.elsewhere);
        for old in &before.routes {
            touched.insert(old.frontend);
            self.claim(old.frontend, |claims| claims.retain(|(_, k)| k != key));
        }
        if let Some(service) = service {
            for new in &routes.routes {
                touched.insert(new.frontend);
                self.claim(new.frontend, |claims| {
                    claims.push((service.meta.creation_timestamp.clone(), key.clone()));
                    claims.sort();
                });
            }
        }
        if routes == Routes::default() {
            self.memo.routes.remove(key);
        } else {
            self.memo.routes.insert(key.clone(), Arc::new(routes));
        }
    }

    fn claim(&mut self, frontend: Frontend, edit: impl FnOnce(&mut Claims)) {
        let mut claims = self.memo.claims.get(&frontend).cloned().unwrap_or_default();
        edit(&mut claims);
        if claims.is_empty() {
            self.memo.claims.remove(&frontend);
        } else {
            self.memo.claims.insert(frontend, claims);
        }
    }

    /// Makes the frontend what its first claimant wants. `have` says which slots the kernel holds now.
    fn place(&mut self, frontend: Frontend, have: &Desired) {
        let winner = self.memo.claims.get(&frontend).map(|c| c[0].1.clone());
        let routes = winner.as_ref().and_then(|w| self.memo.routes.get(w).cloned());
        let route = routes
            .as_ref()
            .and_then(|r| r.routes.binary_search_by(|r| r.frontend.cmp(&frontend)).ok().map(|i| &r.routes[i]));
        let mut entry = None;
        let mut refusal = None;
        let (mut slots, mut picks) = (Vec::new(), Vec::new());
        if let (Some(route), Some(owner)) = (route, &winner) {
            match &route.inside {
                Verdict::Drop => refusal = Some(Refusal::Drop),
                Verdict::Reject => refusal = Some(Refusal::Reject),
                Verdict::Balance(inside) => {
                    fill(&frontend, List::Inside, inside, route, have, &mut slots, &mut picks);
                    if let Some(Verdict::Balance(outside)) = &route.outside {
                        fill(&frontend, List::Outside, outside, route, have, &mut slots, &mut picks);
                    }
                    entry = Some(Entry { class: class_of(route), label: label(owner, &route.port_name) });
                }
            }
        }
        let ranges = match (&entry, route) {
            (Some(_), Some(route)) => route.source_ranges.as_slice(),
            _ => &[],
        };
        replace(&mut self.endpoints, frontend, slots);
        replace(&mut self.picks, frontend, picks);
        replace(&mut self.ranges, frontend, ranges.iter().map(|r| (*r, ())).collect());
        set(&mut self.refused, frontend, refusal);
        let before = self.services.get(&frontend).map(|e| e.class);
        let after = entry.as_ref().map(|e| e.class);
        set(&mut self.services, frontend, entry);
        if before != after {
            self.recount(frontend.family(), before, after);
        }
    }

    fn recount(&mut self, family: IpFamily, before: Option<Class>, after: Option<Class>) {
        if let Some(class) = after {
            *self.classes.entry((family, class)).or_default() += 1;
            if !self.behaviours.contains_key(&class.behaviour) {
                let mut taken = vec![false; usize::from(u16::MAX)];
                for n in self.behaviours.values() {
                    if let Some(taken) = taken.get_mut(usize::from(*n)) {
                        *taken = true;
                    }
                }
                let free = (1..u16::MAX).find(|n| !taken[usize::from(*n)]).unwrap_or(u16::MAX);
                self.behaviours.insert(class.behaviour, free);
            }
        }
        if let Some(class) = before
            && let Some(n) = self.classes.get_mut(&(family, class))
        {
            *n -= 1;
            if *n == 0 {
                self.classes.remove(&(family, class));
            }
        }
    }

    /// The data a class has in the kernel's service maps. `None` for a class that is not in use.
    pub fn class_id(&self, class: &Class) -> Option<u32> {
        self.behaviours.get(&class.behaviour).map(|b| u32::from(*b) << 16 | u32::from(class.slots))
    }
}

fn label(owner: &ServiceKey, port: &str) -> Arc<str> {
    let text = if port.is_empty() { owner.to_string() } else { format!("{owner}:{port}") };
    text[..text.floor_char_boundary(LABEL_MAX)].into()
}

fn class_of(route: &Route) -> Class {
    let size = |b: &[Backend]| u16::try_from(b.len()).unwrap_or(u16::MAX);
    Class {
        behaviour: Behaviour {
            node_port: matches!(route.frontend.at, route::At::NodePort(_)),
            masquerade: route.masquerade,
            outside: route.outside.as_ref().map(|v| size(v.backends())),
            affinity: route.affinity,
            ranged: !route.source_ranges.is_empty(),
            round_robin: (route.algorithm == Algorithm::RoundRobin).then(|| own_number(&route.frontend)),
        },
        slots: size(route.inside.backends()),
    }
}

/// FNV-1a: the same wherever and whenever it is computed, without a register of who has which number. Two frontends
/// with the same number would share a counter, no more.
fn own_number(frontend: &Frontend) -> u32 {
    let family = [frontend.family().as_str().as_bytes(), &crate::elements::frontend(frontend)].concat();
    family.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The slots of one list, and under affinity the picks that lead to them.
fn fill(
    frontend: &Frontend,
    list: List,
    wanted: &[Backend],
    route: &Route,
    have: &Desired,
    slots: &mut Vec<(Slot, Backend)>,
    picks: &mut Vec<(Slot, Slot)>,
) {
    let wanted = &wanted[..wanted.len().min(usize::from(u16::MAX))];
    let old = || have.slots(frontend).filter(|(s, _)| s.list() == list).map(|(s, b)| (s.place(), b));
    if route.affinity.is_none() {
        let places = slots::assign(old(), wanted);
        slots.extend((0..).zip(places).map(|(place, b)| (Slot::new(list, place), b)));
        return;
    }
    let numbered = slots::number(old(), wanted);
    let ids: Vec<Slot> = numbered.iter().map(|(id, _)| Slot::sticky(list, *id)).collect();
    let old = range(&have.picks, *frontend).filter(|(s, _)| s.list() == list).map(|(s, id)| (s.place(), *id));
    picks.extend((0..).zip(slots::assign(old, &ids)).map(|(place, id)| (Slot::new(list, place), id)));
    slots.extend(numbered.into_iter().map(|(id, b)| (Slot::sticky(list, id), b)));
}

fn range<K: Ord + Copy, V: Clone>(map: &Map<(Frontend, K), V>, frontend: Frontend) -> impl Iterator<Item = (K, &V)> {
    map.iter_from(move |(f, _)| *f < frontend).take_while(move |((f, _), _)| *f == frontend).map(|((_, k), v)| (*k, v))
}

/// Makes the entries of one frontend exactly `wanted`, touching only what differs.
fn replace<K: Ord + Copy, V: Clone + PartialEq>(
    map: &mut Map<(Frontend, K), V>,
    frontend: Frontend,
    mut wanted: Vec<(K, V)>,
) {
    wanted.sort_by_key(|(k, _)| *k);
    let stale: Vec<K> =
        range(map, frontend).map(|(k, _)| k).filter(|k| wanted.binary_search_by(|(w, _)| w.cmp(k)).is_err()).collect();
    for key in stale {
        map.remove(&(frontend, key));
    }
    for (key, value) in wanted {
        set(map, (frontend, key), Some(value));
    }
}

fn set<K: Ord + Clone, V: Clone + PartialEq>(map: &mut Map<K, V>, key: K, value: Option<V>) {
    if map.get(&key) == value.as_ref() {
        return;
    }
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// Moves one Service's share in a counted set from `before` to `after`, both sorted.
fn count(map: &mut Map<IpAddr, u32>, before: &[IpAddr], after: &[IpAddr]) {
    for ip in after.iter().filter(|ip| before.binary_search(ip).is_err()) {
        let n = map.get(ip).copied().unwrap_or(0);
        map.insert(*ip, n + 1);
    }
    for ip in before.iter().filter(|ip| after.binary_search(ip).is_err()) {
        match map.get(ip).copied() {
            Some(n) if n > 1 => map.insert(*ip, n - 1),
            _ => map.remove(ip),
        };
    }
}

/// UDP and SCTP have no handshake that fails: their flows must be forgotten when endpoints change.
pub fn connectionless(protocol: Protocol) -> bool {
    protocol != Protocol::Tcp
}
