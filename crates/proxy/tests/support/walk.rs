//! A small machine for the expressions the proxy writes: one packet, one table, the verdict. It follows the kernel's
//! order of hooks: destination NAT, then the filter chains, then source NAT.

use std::net::IpAddr;

use sys::nft::{Cmp, CtKey, Element, Expr, Header, MetaKey, Reg, SetOp, Table, Value, Verdict};

#[derive(Clone, Debug)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub port: u16,
    /// The one address that is local.
    pub node: IpAddr,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Translated {
        to: IpAddr,
        port: u16,
        masqueraded: bool,
    },
    Dropped,
    Refused,
    Untouched,
    /// To where it was sent, with the node's address as its source.
    Masqueraded,
}

enum Step {
    Continue,
    /// The expression did not match: next rule.
    Break,
    Verdict(Verdict),
    Done(End),
}

enum End {
    Dnat(IpAddr, u16),
    Masquerade,
    Refused,
    Dropped,
    Accepted,
}

struct Machine<'a> {
    table: &'a Table,
    packet: Packet,
    /// What the random number is taken from.
    dice: u32,
    registers: [u8; 64],
    priority: u32,
    mark: u32,
    translated: bool,
    /// Elements the packet path added: set, key, value.
    learned: Vec<(String, Vec<u8>, Vec<u8>)>,
}

pub fn walk(table: &Table, packet: &Packet, dice: u32) -> Outcome {
    // A foreign mark and priority, as other software may have set them.
    let mut m = Machine {
        table,
        packet: packet.clone(),
        dice,
        registers: [0; 64],
        priority: 6,
        mark: 0x00a5_0001,
        translated: false,
        learned: Vec::new(),
    };
    let hook = if packet.from == packet.node { "nat-output" } else { "nat-prerouting" };
    match m.chain(hook) {
        Some(End::Dnat(to, port)) => {
            (m.packet.to, m.packet.port, m.translated) = (to, port, true);
        }
        Some(End::Dropped) => return Outcome::Dropped,
        _ => {}
    }
    let filter = match (packet.from == packet.node, m.packet.to == packet.node) {
        (true, _) => "filter-output",
        (_, true) => "filter-input",
        _ => "filter-forward",
    };
    match m.chain(filter) {
        Some(End::Refused) => return Outcome::Refused,
        Some(End::Dropped) => return Outcome::Dropped,
        _ => {}
    }
    let masqueraded = matches!(m.chain("nat-postrouting"), Some(End::Masquerade));
    assert_eq!(m.mark, 0x00a5_0001, "other software's mark is as it was");
    if m.translated {
        Outcome::Translated { to: m.packet.to, port: m.packet.port, masqueraded }
    } else if masqueraded {
        Outcome::Masqueraded
    } else {
        Outcome::Untouched
    }
}

impl Machine<'_> {
    fn chain(&mut self, name: &str) -> Option<End> {
        let rules = &self.table.chains.get(name).unwrap_or_else(|| panic!("chain {name} exists")).rules;
        'rules: for rule in rules {
            for expr in &rule.exprs {
                match self.step(expr) {
                    Step::Continue => {}
                    Step::Break => continue 'rules,
                    Step::Done(end) => return Some(end),
                    Step::Verdict(Verdict::Drop) => return Some(End::Dropped),
                    Step::Verdict(Verdict::Accept) => return Some(End::Accepted),
                    Step::Verdict(Verdict::Return) => return None,
                    Step::Verdict(Verdict::Goto(to)) => return self.chain(&to),
                    Step::Verdict(Verdict::Jump(to)) => {
                        if let Some(end) = self.chain(&to) {
                            return Some(end);
                        }
                        continue 'rules;
                    }
                }
            }
        }
        None
    }

    fn put(&mut self, to: Reg, bytes: &[u8]) {
        let at = usize::from(to.0) * 4;
        let words = bytes.len().next_multiple_of(4);
        self.registers[at..at + words].fill(0);
        self.registers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get(&self, from: Reg, len: usize) -> &[u8] {
        let at = usize::from(from.0) * 4;
        &self.registers[at..at + len]
    }

    fn word(&self, from: Reg) -> u32 {
        u32::from_ne_bytes(self.get(from, 4).try_into().expect("four bytes"))
    }

    fn find(&self, set: &str, from: Reg) -> Option<Value> {
        let known = &self.table.sets[set];
        let key = self.get(from, known.def.key.len as usize);
        if let Some((_, _, data)) = self.learned.iter().find(|(s, k, _)| s == set && k == key) {
            return Some(Value::Data(data.as_slice().into()));
        }
        let plain_interval = known.elements.iter().any(|e| e.interval_end);
        if plain_interval {
            let below = known.elements.iter().filter(|e| e.key.as_slice() <= key);
            let last = below.max_by(|a, b| a.key.cmp(&b.key).then(b.interval_end.cmp(&a.interval_end)))?;
            return (!last.interval_end).then_some(Value::Nothing);
        }
        let holds = |e: &&Element| match &e.key_end {
            // Concatenated intervals compare field by field; only the last of ours is wider than one value.
            Some(end) => e.key.as_slice() <= key && key <= end.as_slice(),
            None => e.key.as_slice() == key,
        };
        known.elements.iter().find(holds).map(|e| e.value.clone())
    }

    fn address(bytes: &[u8]) -> IpAddr {
        <[u8; 4]>::try_from(bytes).expect("IPv4").into()
    }

    fn step(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Payload { header: Header::Network, offset, len, to } => {
                let ip = match offset {
                    12 => self.packet.from,
                    16 => self.packet.to,
                    other => panic!("offset {other}"),
                };
                let IpAddr::V4(ip) = ip else { panic!("IPv4 only") };
                self.put(*to, &ip.octets()[..usize::from(*len)]);
            }
            Expr::Payload { header: Header::Transport, offset, to, .. } => {
                assert_eq!(*offset, 2, "the destination port");
                self.put(*to, &self.packet.port.to_be_bytes());
            }
            Expr::Meta { key, to } => {
                let bytes = match key {
                    MetaKey::Priority => self.priority.to_ne_bytes().to_vec(),
                    MetaKey::Mark => self.mark.to_ne_bytes().to_vec(),
                    MetaKey::L4Proto => vec![self.packet.protocol],
                };
                self.put(*to, &bytes);
            }
            Expr::SetMeta { key, from } => {
                let value = self.word(*from);
                match key {
                    MetaKey::Priority => self.priority = value,
                    MetaKey::Mark => self.mark = value,
                    MetaKey::L4Proto => panic!("cannot be set"),
                }
            }
            Expr::Ct { key, to } => {
                let value: u32 = match key {
                    CtKey::State => 8,
                    CtKey::Status => u32::from(self.translated) << 5,
                };
                self.put(*to, &value.to_ne_bytes());
            }
            Expr::FibType { source, to } => {
                let ip = if *source { self.packet.from } else { self.packet.to };
                let kind: u32 = if ip == self.packet.node { 2 } else { 1 };
                self.put(*to, &kind.to_ne_bytes());
            }
            Expr::Load { value, to } => self.put(*to, value),
            Expr::Verdict(v) => return Step::Verdict(v.clone()),
            Expr::Bitwise { from, to, mask, xor } => {
                let value = self.word(*from) & u32::from_ne_bytes(*mask) ^ u32::from_ne_bytes(*xor);
                self.put(*to, &value.to_ne_bytes());
            }
            Expr::Cmp { reg, op, value } => {
                let equal = self.get(*reg, value.len()) == value.as_slice();
                if equal != (*op == Cmp::Eq) {
                    return Step::Break;
                }
            }
            Expr::Lookup { set, from, to, invert } => match (self.find(set, *from), to) {
                (Some(Value::Data(data)), Some(to)) => self.put(*to, &data),
                (found, None) if found.is_some() != *invert => {}
                _ => return Step::Break,
            },
            Expr::VerdictMap { set, from } => match self.find(set, *from) {
                Some(Value::Verdict(v)) => return Step::Verdict(v),
                _ => return Step::Break,
            },
            Expr::Random { modulus, offset, to } | Expr::Counter { modulus, offset, to } => {
                self.put(*to, &(self.dice % modulus + offset).to_ne_bytes());
            }
            Expr::Dynset { op, set, key, data, .. } => {
                let key = self.get(*key, self.table.sets[set].def.key.len as usize).to_vec();
                let data = self.get(data.expect("a map"), 4).to_vec();
                let at = self.learned.iter().position(|(s, k, _)| s == &**set && *k == key);
                match (op, at) {
                    (SetOp::Delete, Some(i)) => drop(self.learned.remove(i)),
                    (SetOp::Add | SetOp::Update, None) => self.learned.push((set.to_string(), key, data)),
                    _ => {}
                }
            }
            Expr::Dnat { address, port, .. } => {
                let port = u16::from_be_bytes(self.get(*port, 2).try_into().expect("two bytes"));
                return Step::Done(End::Dnat(Self::address(self.get(*address, 4)), port));
            }
            Expr::Masquerade => return Step::Done(End::Masquerade),
            Expr::Reject(sys::nft::Reject::TcpReset) if self.packet.protocol != 6 => panic!("a reset for no TCP"),
            Expr::Reject(_) => return Step::Done(End::Refused),
            Expr::Foreign(name) => panic!("{name} is never written"),
        }
        Step::Continue
    }
}
