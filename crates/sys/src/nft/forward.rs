//! Forward chains of other software. A chain whose policy is to drop has the last word over every other table's
//! `accept`, so the only remedy is a rule in that very chain. One chain is shared by custom: `FORWARD` in iptables'
//! table `filter`, to whose end every program that forwards adds its own interface. No other is ever touched.

use super::{
    Error, Family, Kernel,
    encode::{self, kind},
};
use crate::netlink::{Encoder, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};

const FORWARD_HOOK: u32 = 2;
const DROP: u32 = 0;
const INET: u8 = 1;
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`
const INTERFACE_KEYS: [u32; 2] = [6, 7];
const REGISTER: u32 = 8;

/// What [`Kernel::admit_forwarding`] found and did. Chains are named `family table chain`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Where rules were appended just now.
    pub opened: Vec<String>,
    /// Chains that drop by default, belong to somebody else alone, and name the interface nowhere in their table.
    pub blocking: Vec<String>,
}

struct Chain {
    family: u8,
    table: String,
    name: String,
}

impl Chain {
    /// iptables and ip6tables made it, and everybody adds to it.
    fn shared(&self) -> bool {
        self.family != INET && self.table == "filter" && self.name == "FORWARD"
    }
}

struct Rule {
    chain: String,
    handle: u64,
    /// Written by [`Kernel::admit_forwarding`] with this owner.
    own: bool,
    names_interface: bool,
}

impl Kernel {
    /// Lets packets from and to this interface through forward chains that would drop them by default. Does nothing
    /// where a rule names the interface already. `owner` marks the rules for [`Kernel::retract_forwarding`].
    pub fn admit_forwarding(&mut self, interface: &str, owner: &str) -> Result<Forwarding, Error> {
        let mut out = Forwarding::default();
        let mut batch = Encoder::batch();
        for (family, name) in [(INET, "inet"), (Family::Ip.number(), "ip"), (Family::Ip6.number(), "ip6")] {
            for chain in self.dropping(family)? {
                let rules = self.rules(family, &chain.table, interface, owner)?;
                if rules.iter().any(|r| r.names_interface) {
                    continue;
                }
                let called = format!("{name} {} {}", chain.table, chain.name);
                if chain.shared() {
                    for key in INTERFACE_KEYS {
                        append(&mut batch, &chain, key, interface, owner);
                    }
                    out.opened.push(called);
                } else {
                    out.blocking.push(called);
                }
            }
        }
        if !out.opened.is_empty() {
            self.socket.commit(batch, encode::describe)?;
        }
        Ok(out)
    }

    /// Removes every rule that [`Kernel::admit_forwarding`] appended for this owner. Returns how many there were.
    pub fn retract_forwarding(&mut self, owner: &str) -> Result<usize, Error> {
        let mut batch = Encoder::batch();
        let mut count = 0;
        for family in [Family::Ip, Family::Ip6] {
            let family = family.number();
            for rule in self.rules(family, "filter", "", owner)?.iter().filter(|r| r.own) {
                batch.begin(kind(encode::DELRULE), NLM_F_REQUEST, family, 0);
                batch.text(1, "filter");
                batch.text(2, &rule.chain);
                batch.u64(3, rule.handle);
                batch.end();
                count += 1;
            }
        }
        if count > 0 {
            self.socket.commit(batch, encode::describe)?;
        }
        Ok(count)
    }

    fn dropping(&mut self, family: u8) -> Result<Vec<Chain>, Error> {
        let mut out = Vec::new();
        let mut e = Encoder::default();
        e.begin(kind(encode::GETCHAIN), NLM_F_REQUEST | NLM_F_DUMP, family, 0);
        e.end();
        self.socket.request(&e, "to list chains", |_, a| {
            let forward = a.nested(4).is_some_and(|hook| hook.u32(1) == Some(FORWARD_HOOK));
            if let (true, Some(DROP), Some(table), Some(name)) = (forward, a.u32(5), a.text(1), a.text(3)) {
                out.push(Chain { family, table: table.into(), name: name.into() });
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn rules(&mut self, family: u8, table: &str, interface: &str, owner: &str) -> Result<Vec<Rule>, Error> {
        let mut out = Vec::new();
        let mut e = Encoder::default();
        e.begin(kind(encode::GETRULE), NLM_F_REQUEST | NLM_F_DUMP, family, 0);
        e.text(1, table);
        e.end();
        let name = [interface.as_bytes(), &[0]].concat();
        self.socket.request(&e, "to list rules", |k, a| {
            // Older kernels do not filter by table.
            if k == kind(encode::NEWRULE) && a.text(1) == Some(table) {
                let expressions = a.get(4).unwrap_or_default();
                out.push(Rule {
                    chain: a.text(2).unwrap_or_default().into(),
                    handle: a.u64(3).unwrap_or(0),
                    own: a.get(7) == Some(&comment(owner)),
                    names_interface: expressions.windows(name.len()).any(|w| w == name),
                });
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// In the words iptables itself uses, which it therefore lists and keeps: `-i` (or `-o`) INTERFACE `-j ACCEPT`.
fn append(batch: &mut Encoder, chain: &Chain, meta_key: u32, interface: &str, owner: &str) {
    let expression = |e: &mut Encoder, name: &str, body: &dyn Fn(&mut Encoder)| {
        e.nest(1, |e| {
            e.text(1, name);
            e.nest(2, |e| body(e));
        });
    };
    let name = [interface.as_bytes(), &[0]].concat();
    batch.begin(kind(encode::NEWRULE), NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND, chain.family, 0);
    batch.text(1, &chain.table);
    batch.text(2, &chain.name);
    batch.nest(4, |e| {
        expression(e, "meta", &|e| {
            e.u32(1, REGISTER);
            e.u32(2, meta_key);
        });
        expression(e, "cmp", &|e| {
            e.u32(1, REGISTER);
            e.u32(2, 0);
            e.nest(3, |e| e.attr(1, &name));
        });
        expression(e, "counter", &|e| {
            e.u64(1, 0);
            e.u64(2, 0);
        });
        expression(e, "immediate", &|e| {
            e.u32(1, 0);
            e.nest(2, |e| e.nest(2, |e| e.u32(1, 1)));
        });
    });
    batch.attr(7, &comment(owner));
    batch.end();
}

/// A rule's comment as libnftnl keeps it.
fn comment(text: &str) -> Vec<u8> {
    [&[encode::COMMENT, text.len() as u8 + 1], text.as_bytes(), &[0]].concat()
}
