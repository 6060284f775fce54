//! How the node's load balancing lies in the kernel: a constant set of chains and maps, one small chain for each
//! class in use, and all Service data as map elements. The README of this crate tells it in words.
//! It decides names, types and rules; which data goes in is decided in [`crate::desired`].

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use model::IpFamily;
use sys::nft::{
    Base, Bytes, Chain, ChainType, Cmp, CtKey, Element, Expr, Family, Header, Hook, MetaKey, Reg, Reject, Rule, Set,
    SetDef, SetOp, Table, Verdict, set_flags,
};

use crate::{
    Config,
    desired::{Class, List},
    userdata::{self, Field},
};

pub const TABLE: &str = "portolan";
pub const SERVICES: &str = "services";
pub const NODEPORTS: &str = "nodeports";
pub const ENDPOINTS: &str = "endpoints";
pub const NODEPORT_ENDPOINTS: &str = "nodeport-endpoints";
pub const STICKY: &str = "sticky-endpoints";
pub const NODEPORT_STICKY: &str = "nodeport-sticky-endpoints";
pub const PICKS: &str = "picks";
pub const NODEPORT_PICKS: &str = "nodeport-picks";
pub const AFFINITY: &str = "affinity";
pub const NODEPORT_AFFINITY: &str = "nodeport-affinity";
pub const REJECTED: &str = "rejected";
pub const DROPPED: &str = "dropped";
pub const NODEPORT_REJECTED: &str = "nodeport-rejected";
pub const NODEPORT_DROPPED: &str = "nodeport-dropped";
pub const RANGES: &str = "source-ranges";
pub const HAIRPIN: &str = "hairpin";
pub const ELSEWHERE: &str = "elsewhere";
pub const CLASSES: &str = "classes";
const CLUSTER_CIDRS: &str = "cluster-cidrs";
const SERVICE_CIDRS: &str = "service-cidrs";
const NODE_PORT_ADDRESSES: &str = "nodeport-addresses";
/// Clients one family's sticky frontends remember at a time.
const AFFINITY_SIZE: u32 = 1 << 20;
const CT_NEW: u32 = 0x8;
const CT_STATUS_DNAT: u32 = 0x20;
const RTN_UNICAST: u32 = 1;
const RTN_LOCAL: u32 = 2;
const TCP: u8 = 6;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

pub fn kernel_family(family: IpFamily) -> Family {
    match family {
        IpFamily::V4 => Family::Ip,
        IpFamily::V6 => Family::Ip6,
    }
}

/// The layout of one family under one configuration.
pub struct Layout<'a> {
    pub family: IpFamily,
    pub config: &'a Config,
}

impl Layout<'_> {
    fn v6(&self) -> bool {
        self.family == IpFamily::V6
    }

    /// 32-bit words in an address.
    fn words(&self) -> u8 {
        if self.v6() { 4 } else { 1 }
    }

    fn own(&self, nets: &[IpNet]) -> Vec<IpNet> {
        let own: Vec<IpNet> =
            nets.iter().map(IpNet::trunc).filter(|n| IpFamily::of(&n.addr()) == self.family).collect();
        let mut out = IpNet::aggregate(&own);
        out.sort();
        out
    }

    /// Everything but the classes: sets with the elements that come from the configuration, and chains with rules.
    pub fn constant(&self) -> Table {
        let mut sets = BTreeMap::new();
        for (name, def) in self.set_defs() {
            let nets = match name {
                CLUSTER_CIDRS => self.own(&self.config.cluster_cidrs),
                SERVICE_CIDRS => self.own(&self.config.service_cidrs),
                NODE_PORT_ADDRESSES => self.own(&self.config.node_port_addresses),
                _ => Vec::new(),
            };
            sets.insert(Arc::from(name), Set { def, elements: intervals(&nets) });
        }
        let chains = self.chains().into_iter().map(|(n, c)| (Arc::from(n), c)).collect();
        Table { sets, chains }
    }

    fn set_defs(&self) -> Vec<(&'static str, SetDef)> {
        use Field::{Address, ClassId, Client, Port, Protocol, Slot};
        let v6 = self.v6();
        let set = |key: &[Field], flags| userdata::set(v6, key, None, flags);
        let map = |key: &[Field], data: &[Field], flags| userdata::set(v6, key, Some(data), flags);
        let frontend = [Address, Protocol, Port];
        let node_port = [Protocol, Port];
        let backend = [Address, Port];
        let slot = [Address, Protocol, Port, Slot];
        let node_slot = [Protocol, Port, Slot];
        let remembered = set_flags::EVAL | set_flags::TIMEOUT;
        let mut out = vec![
            (SERVICES, map(&frontend, &[ClassId], 0)),
            (NODEPORTS, map(&node_port, &[ClassId], 0)),
            (ENDPOINTS, map(&slot, &backend, 0)),
            (NODEPORT_ENDPOINTS, map(&node_slot, &backend, 0)),
            (STICKY, map(&[Address, Protocol, Port, ClassId], &backend, 0)),
            (NODEPORT_STICKY, map(&[Protocol, Port, ClassId], &backend, 0)),
            (PICKS, map(&slot, &[ClassId], 0)),
            (NODEPORT_PICKS, map(&node_slot, &[ClassId], 0)),
            (AFFINITY, map(&[Client, Address, Protocol, Port], &[ClassId], remembered)),
            (NODEPORT_AFFINITY, map(&[Client, Protocol, Port], &[ClassId], remembered)),
            (REJECTED, set(&frontend, 0)),
            (DROPPED, set(&frontend, 0)),
            (NODEPORT_REJECTED, set(&node_port, 0)),
            (NODEPORT_DROPPED, set(&node_port, 0)),
            (RANGES, set(&[Address, Protocol, Port, Client], set_flags::INTERVAL | set_flags::CONCAT)),
            (HAIRPIN, set(&[Client, Address], 0)),
            (ELSEWHERE, set(&[Address], 0)),
            (CLASSES, userdata::verdict_map()),
            (CLUSTER_CIDRS, set(&[Client], set_flags::INTERVAL)),
            (SERVICE_CIDRS, set(&[Address], set_flags::INTERVAL)),
            (NODE_PORT_ADDRESSES, set(&[Address], set_flags::INTERVAL)),
        ];
        for (name, def) in &mut out {
            if matches!(*name, AFFINITY | NODEPORT_AFFINITY) {
                def.size = AFFINITY_SIZE;
            }
        }
        out
    }

    fn chains(&self) -> Vec<(&'static str, Chain)> {
        let base = |kind, hook, priority, rules| Chain { base: Some(Base { kind, hook, priority }), rules };
        let plain = |rules| Chain { base: None, rules };
        let jump = |to: &str| Rule::new([verdict(Verdict::Jump(to.into()))]);
        let new_jump = || {
            let mut exprs = flag_set(CtKey::State, CT_NEW);
            exprs.push(verdict(Verdict::Jump("unserved".into())));
            Rule::new(exprs)
        };
        vec![
            ("nat-prerouting", base(ChainType::Nat, Hook::Prerouting, DSTNAT, vec![jump("dispatch")])),
            ("nat-output", base(ChainType::Nat, Hook::Output, DSTNAT, vec![jump("dispatch")])),
            ("nat-postrouting", base(ChainType::Nat, Hook::Postrouting, SRCNAT, self.masquerade_rules())),
            ("filter-input", base(ChainType::Filter, Hook::Input, 0, vec![new_jump()])),
            ("filter-forward", base(ChainType::Filter, Hook::Forward, 0, vec![new_jump()])),
            ("filter-output", base(ChainType::Filter, Hook::Output, 0, vec![new_jump()])),
            ("dispatch", plain(self.dispatch_rules())),
            ("unserved", plain(self.unserved_rules())),
            ("refuse", plain(self.refuse_rules())),
        ]
    }

    fn dispatch_rules(&self) -> Vec<Rule> {
        let class = |map: &str, mut exprs: Vec<Expr>| {
            exprs.extend([
                lookup(map, Some(Reg(0))),
                Expr::SetMeta { key: MetaKey::Priority, from: Reg(0) },
                Expr::Meta { key: MetaKey::Priority, to: Reg(0) },
                Expr::VerdictMap { set: CLASSES.into(), from: Reg(0) },
            ]);
            Rule::new(exprs)
        };
        let mut node = self.to_this_node();
        node.extend(self.frontend_key(true, 0).0);
        vec![class(SERVICES, self.frontend_key(false, 0).0), class(NODEPORTS, node)]
    }

    /// The destination is an address of this node at which nodePorts answer: never the loopback.
    fn to_this_node(&self) -> Vec<Expr> {
        let mut out = vec![Expr::FibType { source: false, to: Reg(0) }, compare(Cmp::Eq, &RTN_LOCAL.to_ne_bytes())];
        if self.v6() {
            out.push(self.destination(Reg(0)));
            out.push(compare(Cmp::Neq, &std::net::Ipv6Addr::LOCALHOST.octets()));
        } else {
            out.push(Expr::Payload { header: Header::Network, offset: 16, len: 1, to: Reg(0) });
            out.push(compare(Cmp::Neq, &[127]));
        }
        if !self.own(&self.config.node_port_addresses).is_empty() {
            out.push(self.destination(Reg(0)));
            out.push(lookup(NODE_PORT_ADDRESSES, None));
        }
        out
    }

    fn unserved_rules(&self) -> Vec<Rule> {
        let refuse = || verdict(Verdict::Goto("refuse".into()));
        let by_frontend = |set: &str, then: Expr| {
            let mut exprs = self.frontend_key(false, 0).0;
            exprs.extend([lookup(set, None), then]);
            Rule::new(exprs)
        };
        let by_port = |set: &str, then: Expr| {
            let mut exprs = self.to_this_node();
            exprs.extend(self.frontend_key(true, 0).0);
            exprs.extend([lookup(set, None), then]);
            Rule::new(exprs)
        };
        let by_address = |set: &str, then: Expr| Rule::new([self.destination(Reg(0)), lookup(set, None), then]);
        vec![
            by_frontend(REJECTED, refuse()),
            by_frontend(DROPPED, verdict(Verdict::Drop)),
            by_port(NODEPORT_REJECTED, refuse()),
            by_port(NODEPORT_DROPPED, verdict(Verdict::Drop)),
            by_address(ELSEWHERE, verdict(Verdict::Return)),
            by_address(SERVICE_CIDRS, refuse()),
        ]
    }

    fn refuse_rules(&self) -> Vec<Rule> {
        let tcp = [
            Expr::Meta { key: MetaKey::L4Proto, to: Reg(0) },
            compare(Cmp::Eq, &[TCP]),
            Expr::Reject(Reject::TcpReset),
        ];
        let port_unreachable = if self.v6() { 4 } else { 3 };
        vec![Rule::new(tcp), Rule::new([Expr::Reject(Reject::Unreachable(port_unreachable))])]
    }

    fn masquerade_rules(&self) -> Vec<Rule> {
        let mark = self.config.masquerade_mark;
        let mut marked =
            vec![Expr::Meta { key: MetaKey::Mark, to: Reg(0) }, bits(mark, 0), compare(Cmp::Eq, &mark.to_ne_bytes())];
        marked.extend(flag_set(CtKey::Status, CT_STATUS_DNAT));
        marked.extend([
            Expr::Meta { key: MetaKey::Mark, to: Reg(0) },
            bits(!mark, 0),
            Expr::SetMeta { key: MetaKey::Mark, from: Reg(0) },
            Expr::Masquerade,
        ]);
        let mut hairpin = flag_set(CtKey::Status, CT_STATUS_DNAT);
        hairpin.extend([
            self.source(Reg(0)),
            self.destination(Reg(self.words())),
            lookup(HAIRPIN, None),
            Expr::Masquerade,
        ]);
        let mut rules = vec![Rule::new(marked), Rule::new(hairpin)];
        if self.config.masquerade_outbound {
            rules.push(self.outbound_rule());
        }
        rules
    }

    /// From a pod to the world beyond the cluster, where nobody knows a way back to the pod. The destination is the
    /// translated one: a Service may lead outside too.
    fn outbound_rule(&self) -> Rule {
        let outside = |set: &str| Expr::Lookup { set: set.into(), from: Reg(0), to: None, invert: true };
        Rule::new([
            self.source(Reg(0)),
            lookup(CLUSTER_CIDRS, None),
            self.destination(Reg(0)),
            outside(CLUSTER_CIDRS),
            self.destination(Reg(0)),
            outside(SERVICE_CIDRS),
            // Not the node's own addresses (nothing leaves), and no broadcast or multicast on the pods' link.
            Expr::FibType { source: false, to: Reg(0) },
            compare(Cmp::Eq, &RTN_UNICAST.to_ne_bytes()),
            Expr::Masquerade,
        ])
    }

    fn source(&self, to: Reg) -> Expr {
        let (offset, len) = if self.v6() { (8, 16) } else { (12, 4) };
        Expr::Payload { header: Header::Network, offset, len, to }
    }

    fn destination(&self, to: Reg) -> Expr {
        let (offset, len) = if self.v6() { (24, 16) } else { (16, 4) };
        Expr::Payload { header: Header::Network, offset, len, to }
    }

    /// Loads the packet's frontend into the registers from `at`; returns the register behind it.
    fn frontend_key(&self, node_port: bool, at: u8) -> (Vec<Expr>, u8) {
        let mut out = Vec::new();
        let mut next = at;
        if !node_port {
            out.push(self.destination(Reg(next)));
            next += self.words();
        }
        out.push(Expr::Meta { key: MetaKey::L4Proto, to: Reg(next) });
        out.push(Expr::Payload { header: Header::Transport, offset: 2, len: 2, to: Reg(next + 1) });
        (out, next + 2)
    }

    /// The chains of a class, its own first. Rules refer only to these and to constant chains.
    pub fn class_chains(&self, class: &Class) -> Vec<(Arc<str>, Vec<Rule>)> {
        let name: Arc<str> = class.to_string().into();
        let b = &class.behaviour;
        let mut rules = Vec::new();
        if b.ranged {
            rules.push(self.range_rule(b.node_port));
        }
        let pods = !self.own(&self.config.cluster_cidrs).is_empty();
        let mark = self.config.masquerade_mark;
        let masquerade = [
            Expr::Meta { key: MetaKey::Mark, to: Reg(0) },
            bits(!mark, mark),
            Expr::SetMeta { key: MetaKey::Mark, from: Reg(0) },
        ];
        let foreign = |invert| {
            vec![self.source(Reg(0)), Expr::Lookup { set: CLUSTER_CIDRS.into(), from: Reg(0), to: None, invert }]
        };
        let node = || vec![Expr::FibType { source: true, to: Reg(0) }, compare(Cmp::Eq, &RTN_LOCAL.to_ne_bytes())];
        let all = self.config.masquerade_all;
        match b.masquerade {
            model::route::Masquerade::Always => rules.push(Rule::new(masquerade.clone())),
            model::route::Masquerade::Foreign if all => rules.push(Rule::new(masquerade.clone())),
            model::route::Masquerade::Foreign if pods => {
                rules.push(Rule::new(foreign(true).into_iter().chain(masquerade.clone())));
            }
            model::route::Masquerade::Foreign => {}
            model::route::Masquerade::Node => {
                rules.push(Rule::new(node().into_iter().chain(masquerade.clone())));
            }
        }
        let inside = self.pick(class, List::Inside, class.slots);
        let Some(outside) = b.outside else {
            rules.extend(inside);
            return vec![(name, rules)];
        };
        let inner: Arc<str> = format!("{name}-inside").into();
        let go = || verdict(Verdict::Goto(inner.clone()));
        if pods {
            rules.push(Rule::new(foreign(false).into_iter().chain([go()])));
        }
        rules.push(Rule::new(node().into_iter().chain([go()])));
        if outside == 0 {
            rules.push(Rule::new([verdict(Verdict::Drop)]));
        } else {
            rules.extend(self.pick(class, List::Outside, outside));
        }
        vec![(name, rules), (inner, inside)]
    }

    fn range_rule(&self, node_port: bool) -> Rule {
        let (mut exprs, next) = self.frontend_key(node_port, 0);
        exprs.push(self.source(Reg(next)));
        exprs.push(Expr::Lookup { set: RANGES.into(), from: Reg(0), to: None, invert: true });
        exprs.push(verdict(Verdict::Drop));
        Rule::new(exprs)
    }

    /// Chooses one of `n` slots and translates the destination to what is in it.
    fn pick(&self, class: &Class, list: List, n: u16) -> Vec<Rule> {
        let b = &class.behaviour;
        let (modulus, offset) = (n.into(), (list as u32) << 16);
        let random = |to| match b.round_robin {
            Some(_) => Expr::Counter { modulus, offset, to: Reg(to) },
            None => Expr::Random { modulus, offset, to: Reg(to) },
        };
        let endpoints = match (b.affinity.is_some(), b.node_port) {
            (false, false) => ENDPOINTS,
            (false, true) => NODEPORT_ENDPOINTS,
            (true, false) => STICKY,
            (true, true) => NODEPORT_STICKY,
        };
        let dnat = || {
            [lookup(endpoints, Some(Reg(0))), Expr::Dnat { ip6: self.v6(), address: Reg(0), port: Reg(self.words()) }]
        };
        let forget_priority =
            [Expr::Load { value: vec![0; 4], to: Reg(0) }, Expr::SetMeta { key: MetaKey::Priority, from: Reg(0) }];
        let (key, behind) = self.frontend_key(b.node_port, 0);
        let Some(seconds) = b.affinity else {
            let exprs = forget_priority.into_iter().chain(key).chain([random(behind)]).chain(dnat());
            return vec![Rule::new(exprs)];
        };
        // Sticky: the endpoint's number is in the priority. A remembered number replaces the random one; one that
        // leads nowhere any more is forgotten and chosen anew.
        let picks = if b.node_port { NODEPORT_PICKS } else { PICKS };
        let affinity = if b.node_port { NODEPORT_AFFINITY } else { AFFINITY };
        let keep = Expr::SetMeta { key: MetaKey::Priority, from: Reg(0) };
        let choose = || {
            let exprs = [random(behind), lookup(picks, Some(Reg(0))), keep.clone()];
            Rule::new(key.clone().into_iter().chain(exprs))
        };
        let client = || {
            let (frontend, behind) = self.frontend_key(b.node_port, self.words());
            (std::iter::once(self.source(Reg(0))).chain(frontend), behind)
        };
        let remember = |op| {
            let (key, behind) = client();
            let data = Reg(behind.next_multiple_of(4));
            let timeout = if op == SetOp::Update { u64::from(seconds) * 1000 } else { 0 };
            let exprs = [
                Expr::Meta { key: MetaKey::Priority, to: data },
                Expr::Dynset { op, set: affinity.into(), key: Reg(0), data: Some(data), timeout },
            ];
            Rule::new(key.chain(exprs))
        };
        let recall = || Rule::new(client().0.chain([lookup(affinity, Some(Reg(0))), keep.clone()]));
        let go = || {
            let slot = Expr::Meta { key: MetaKey::Priority, to: Reg(behind) };
            Rule::new(key.clone().into_iter().chain([slot]).chain(dnat()))
        };
        vec![
            choose(),
            remember(SetOp::Update),
            recall(),
            go(),
            remember(SetOp::Delete),
            choose(),
            remember(SetOp::Update),
            go(),
        ]
    }
}

fn verdict(v: Verdict) -> Expr {
    Expr::Verdict(v)
}

fn lookup(set: &str, to: Option<Reg>) -> Expr {
    Expr::Lookup { set: set.into(), from: Reg(0), to, invert: false }
}

fn compare(op: Cmp, value: &[u8]) -> Expr {
    Expr::Cmp { reg: Reg(0), op, value: value.to_vec() }
}

fn bits(mask: u32, xor: u32) -> Expr {
    Expr::Bitwise { from: Reg(0), to: Reg(0), mask: mask.to_ne_bytes(), xor: xor.to_ne_bytes() }
}

fn flag_set(key: CtKey, flag: u32) -> Vec<Expr> {
    vec![Expr::Ct { key, to: Reg(0) }, bits(flag, 0), compare(Cmp::Neq, &[0; 4])]
}

/// Networks as the half-open intervals a plain interval set holds. `nets` are sorted and do not overlap.
fn intervals(nets: &[IpNet]) -> Vec<Element> {
    let element = |key: Bytes, interval_end| Element { key, interval_end, ..Element::default() };
    let mut out = Vec::new();
    let starts: Vec<Bytes> = nets.iter().map(|n| octets(&n.network())).collect();
    if starts.first().is_some_and(|s| s.iter().any(|b| *b != 0)) {
        out.push(element(starts[0].iter().map(|_| 0).collect(), true));
    }
    for (i, net) in nets.iter().enumerate() {
        out.push(element(starts[i].clone(), false));
        if let Some(end) = successor(octets(&net.broadcast()))
            && starts.get(i + 1) != Some(&end)
        {
            out.push(element(end, true));
        }
    }
    out
}

fn successor(mut bytes: Bytes) -> Option<Bytes> {
    for b in bytes.iter_mut().rev() {
        let (next, overflow) = b.overflowing_add(1);
        *b = next;
        if !overflow {
            return Some(bytes);
        }
    }
    None
}

pub fn octets(ip: &IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::from_slice(&ip.octets()),
    }
}
