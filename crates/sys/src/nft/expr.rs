//! The expressions rules are made of, one value each for writing, reading back and comparing.

use std::sync::Arc;

use super::Verdict;

/// One of the sixteen 32-bit registers. Longer values take the following ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Network,
    Transport,
}

/// `NFT_META_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    Priority,
    Mark,
    L4Proto,
}

/// `NFT_CT_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    State,
    Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Neq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOp {
    Add,
    Update,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    TcpReset,
    /// ICMP (or ICMPv6) destination unreachable with this code: port unreachable is 3 (or 4).
    Unreachable(u8),
}

/// What a rule does, step by step. Offsets and lengths are bytes; integers from the packet are in network order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    Payload {
        header: Header,
        offset: u8,
        len: u8,
        to: Reg,
    },
    Meta {
        key: MetaKey,
        to: Reg,
    },
    SetMeta {
        key: MetaKey,
        from: Reg,
    },
    Ct {
        key: CtKey,
        to: Reg,
    },
    /// `fib daddr type` (or `fib saddr type`): the `RTN_*` number of the address, host order.
    FibType {
        source: bool,
        to: Reg,
    },
    Load {
        value: Vec<u8>,
        to: Reg,
    },
    Verdict(Verdict),
    /// `to = from & mask ^ xor`, four bytes.
    Bitwise {
        from: Reg,
        to: Reg,
        mask: [u8; 4],
        xor: [u8; 4],
    },
    Cmp {
        reg: Reg,
        op: Cmp,
        value: Vec<u8>,
    },
    Lookup {
        set: Arc<str>,
        from: Reg,
        to: Option<Reg>,
        invert: bool,
    },
    /// Lookup of a verdict, which ends the rule.
    VerdictMap {
        set: Arc<str>,
        from: Reg,
    },
    /// `numgen random mod modulus offset offset`, host order.
    Random {
        modulus: u32,
        offset: u32,
        to: Reg,
    },
    /// `numgen inc mod modulus offset offset`, host order: a counter of this very rule.
    Counter {
        modulus: u32,
        offset: u32,
        to: Reg,
    },
    /// Changes a dynamic set from the packet path. `timeout` in milliseconds, 0 for none.
    Dynset {
        op: SetOp,
        set: Arc<str>,
        key: Reg,
        data: Option<Reg>,
        timeout: u64,
    },
    /// Destination NAT to the address and port in these registers.
    Dnat {
        ip6: bool,
        address: Reg,
        port: Reg,
    },
    /// `masquerade`, with fully random source ports.
    Masquerade,
    Reject(Reject),
    /// Something this program never writes: kept by name, so that a strange rule differs from ours.
    Foreign(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    pub exprs: Vec<Expr>,
}

impl Rule {
    pub fn new(exprs: impl IntoIterator<Item = Expr>) -> Self {
        Self { exprs: exprs.into_iter().collect() }
    }
}
